"""Own and stitched scores of decoders on frozen spaces, beside the controls without which they prove nothing.

Shapes: N samples, D absolute size, R relative size, C classes, A anchors, E encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.quality.spaces import Spaces
from hf_relreps import RelativeDecoder, RelativeDecoderConfig, RelativeSpace
from hf_relreps.evaluation.scores import SCORES, SINGLE, chance
from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.selection import select


PROJECTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "centred cosine": {"transform": "center", "similarity": "cosine", "basis_ridge": None},
    "cosine": {"transform": "none", "similarity": "cosine", "basis_ridge": None},
}
STEPS, BATCH, RATE = 400, 64, 2e-3  # of the mlp, whatever the number of samples

Decoder = Callable[[Tensor], Tensor]  # (N, R) -> scores (N, C)


class Variant(NamedTuple):
    """One way to describe and to decode."""

    projection: str
    decoder: str
    strategy: str
    k: int

    def __str__(self) -> str:
        return f"{self.projection}, {self.decoder}, {self.k} {self.strategy}"


def choose(spaces: Spaces, k: int, strategy: str, seed: int) -> np.ndarray:
    """Rows of anchors; what a strategy looks at is the first encoder alone."""
    first_ND = next(iter(spaces.x.values()))[spaces.free_N]
    labels = spaces.labels_N[spaces.free_N]
    return spaces.free_N[select(len(spaces.free_N), k, strategy, seed, labels, first_ND)]


def exchanged(anchors_A: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Rows of anchors of which some, given by their places, took the place of one another."""
    exchanged_A = anchors_A.copy()
    exchanged_A[wrong] = anchors_A[np.roll(wrong, 1)]
    return exchanged_A


def relative(x_ND: Tensor, anchors_AD: Tensor, space: RelativeSpace) -> Tensor:
    """Relative representations (N, R), by the library's own projection."""
    return project_in_chunks(x_ND, frame_of(anchors_AD, space), space)


def all_relative(spaces: Spaces, anchors_A: np.ndarray, space: RelativeSpace) -> dict[str, Tensor]:
    """Those of every encoder."""
    return {name: relative(x_ND, x_ND[anchors_A], space) for name, x_ND in spaces.x.items()}


def config_of(projection: str, k: int, classes: int) -> RelativeDecoderConfig:
    """The configuration of decoders of a projection, with its space."""
    return RelativeDecoderConfig(num_anchors=k, num_labels=classes, **PROJECTIONS[projection])


def fit_mlp(r_NR: Tensor, labels_N: np.ndarray, config: RelativeDecoderConfig, seed: int) -> Decoder:
    """The library's default decoder with its input noise, on representations of a frozen encoder."""
    set_seed(seed)
    decoder = RelativeDecoder(config).train()
    decayed = [weight for weight in decoder.parameters() if weight.ndim > 1]
    others = [weight for weight in decoder.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    y_N = torch.as_tensor(labels_N)
    for rows in _batches(len(y_N), seed):
        optimizer.zero_grad()
        decoder(r_NR[rows], labels=y_N[rows]).loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return _scores(decoder.eval())


def _batches(n: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(STEPS):
        while len(rows) < min(BATCH, n):
            rows = torch.cat([rows, torch.randperm(n, generator=generator)])
        yield rows[:BATCH]
        rows = rows[BATCH:]


def fit_ridge(r_NR: Tensor, labels_N: np.ndarray, config: RelativeDecoderConfig, seed: int) -> Decoder:
    """The library's closed form; it needs no seed."""
    like: Any = SimpleNamespace(config=config, anchors=None)
    decoder = RelativeDecoder.fit_ridge(r_NR, torch.as_tensor(labels_N), like, num_labels=config.num_labels)
    return _scores(decoder)


def _scores(decoder: RelativeDecoder) -> Decoder:
    return torch.no_grad()(lambda r_NR: decoder(r_NR).logits)


DECODERS: dict[str, Callable[..., Decoder]] = {"mlp": fit_mlp, "ridge": fit_ridge}


def f1(labels_N: np.ndarray, scores_NC: Tensor) -> float:
    """Macro-F1 of the largest scores."""
    return SCORES["f1"](labels_N, scores_NC.argmax(-1).numpy())


def score(spaces: Spaces, decode: Decoder, r_NR: Tensor) -> float:
    """Macro-F1 of a decoder on the test rows."""
    return f1(spaces.labels_N[spaces.test_N], decode(r_NR[spaces.test_N]))


def guess(spaces: Spaces) -> float:
    """Macro-F1 of guessing on the test rows."""
    return chance(spaces.labels_N[spaces.test_N], SCORES["f1"], SINGLE)[0]


def pair_scores(
    spaces: Spaces, r: Mapping[str, Tensor], decoder: str, seed: int, config: RelativeDecoderConfig | None = None
) -> np.ndarray:
    """Scores (E, E) of every encoder (row) behind every decoder (column), with decoders of one seed.

    Without `config` embeddings are absolute, and those that differ in width give no number.
    """
    scores_EE = np.full((len(r), len(r)), np.nan)
    for column, own_NR in enumerate(r.values()):
        of_width = config or RelativeDecoderConfig(num_anchors=own_NR.shape[-1], num_labels=spaces.num_classes)
        train_N, own_seed = spaces.train_N, 1000 * (seed + 1) + column
        decode = DECODERS[decoder](own_NR[train_N], spaces.labels_N[train_N], of_width, own_seed)
        for row, r_NR in enumerate(r.values()):
            if r_NR.shape[-1] == own_NR.shape[-1]:
                scores_EE[row, column] = score(spaces, decode, r_NR)
    return scores_EE


def of_variant(spaces: Spaces, variant: Variant, seed: int, settings: Mapping[str, Any] | None = None) -> np.ndarray:
    """Scores (E, E) with anchors and decoders of one seed; `settings` are those of a projection without a name."""
    anchors_A = choose(spaces, variant.k, variant.strategy, seed)
    settings = PROJECTIONS[variant.projection] if settings is None else settings
    config = RelativeDecoderConfig(num_anchors=variant.k, num_labels=spaces.num_classes, **settings)
    return pair_scores(spaces, all_relative(spaces, anchors_A, config.space), variant.decoder, seed, config)


def absolute(spaces: Spaces, seed: int) -> np.ndarray:
    """The control: an MLP on absolute embeddings; between encoders of one width."""
    return pair_scores(spaces, {n: nn.functional.normalize(x_ND, dim=-1) for n, x_ND in spaces.x.items()}, "mlp", seed)


def labelled_anchors(spaces: Spaces, k: int, strategy: str, seed: int) -> float:
    """The control without any stitching: each encoder has a classifier of its own, of the labelled anchors alone."""
    anchors_N = choose(spaces, k, strategy, seed)
    scores = []
    for x_ND in spaces.x.values():
        x_ND = nn.functional.normalize(x_ND - x_ND[anchors_N].mean(0), dim=-1)
        config = RelativeDecoderConfig(num_anchors=x_ND.shape[-1], num_labels=spaces.num_classes)
        scores.append(score(spaces, fit_ridge(x_ND[anchors_N], spaces.labels_N[anchors_N], config, seed), x_ND))
    return float(np.mean(scores))


def summary(runs: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Own, stitched, the worst pair by its mean over seeds, and the deviation of stitched over seeds."""
    scores_SEE = np.stack(runs)
    is_own_EE = np.eye(scores_SEE.shape[1], dtype=bool)
    own, pairs_EE = scores_SEE[:, is_own_EE], np.where(is_own_EE, np.nan, scores_SEE.mean(0))
    if np.isnan(pairs_EE).all():
        return dict.fromkeys(("stitched", "worst", "spread", "ratio", "worst_ratio")) | {"own": float(own.mean())}
    stitched = np.nanmean(pairs_EE)
    figures = {
        "own": own.mean(),
        "stitched": stitched,
        "worst": np.nanmin(pairs_EE),
        "spread": np.nanstd(np.nanmean(scores_SEE[:, ~is_own_EE], axis=1)),
        "ratio": stitched / own.mean(),
        "worst_ratio": np.nanmin(pairs_EE / own.mean(0)),
    }
    return {name: float(figure) for name, figure in figures.items()}
