"""Own and stitched scores of decoders on frozen spaces, beside the controls without which they prove nothing.

Shapes: N samples, D absolute size, R relative size, C classes, A anchors, E encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.quality.spaces import Spaces
from hf_relreps import RelativeConfig, RelativeDecoder
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


@dataclass(frozen=True)
class Variant:
    """One way to describe and to decode."""

    projection: str
    decoder: str
    strategy: str
    k: int

    def __str__(self) -> str:
        return f"{self.projection}, {self.decoder}, {self.k} {self.strategy}"


@dataclass(frozen=True)
class Cell:
    """One encoder behind one decoder."""

    encoder: str
    decoder: str
    f1: float
    accuracy: float
    val_f1: float


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


def relative(x_ND: Tensor, anchors_AD: Tensor, config: RelativeConfig) -> Tensor:
    """Relative representations (N, R), by the library's own projection."""
    return project_in_chunks(x_ND, frame_of(anchors_AD, config), config)


def config_of(projection: str, k: int, classes: int) -> RelativeConfig:
    """The configuration that a projection stands for."""
    return RelativeConfig(num_anchors=k, num_labels=classes, **PROJECTIONS[projection])


def fit_mlp(r_NR: Tensor, labels_N: np.ndarray, config: RelativeConfig, seed: int) -> Decoder:
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


def fit_ridge(r_NR: Tensor, labels_N: np.ndarray, config: RelativeConfig, seed: int) -> Decoder:
    """The library's closed form; it needs no seed."""
    like: Any = SimpleNamespace(config=config, anchors=None)
    decoder = RelativeDecoder.fit_ridge(r_NR, torch.as_tensor(labels_N), like, num_labels=config.num_labels)
    return _scores(decoder)


def _scores(decoder: RelativeDecoder) -> Decoder:
    @torch.no_grad()
    def scores(r_NR: Tensor) -> Tensor:
        return decoder(r_NR).logits

    return scores


DECODERS: dict[str, Callable[..., Decoder]] = {"mlp": fit_mlp, "ridge": fit_ridge}


def f1(labels_N: np.ndarray, scores_NC: Tensor) -> float:
    """Macro-F1 of the largest scores."""
    return SCORES["f1"](labels_N, scores_NC.argmax(-1).numpy())


def guess(spaces: Spaces) -> float:
    """Macro-F1 of guessing on the test rows."""
    return chance(spaces.labels_N[spaces.test_N], SCORES["f1"], SINGLE)[0]


def cells(spaces: Spaces, variant: Variant, seed: int) -> list[Cell]:
    """Every encoder behind every decoder, with anchors and decoders of one seed."""
    anchors_N = choose(spaces, variant.k, variant.strategy, seed)
    config = config_of(variant.projection, variant.k, spaces.num_classes)
    r = {name: relative(x_ND, x_ND[anchors_N], config) for name, x_ND in spaces.x.items()}
    return _cells(spaces, r, r, lambda _: config, variant.decoder, seed)


def _cells(
    spaces: Spaces, r: Mapping[str, Tensor], readers: Mapping[str, Tensor], config: Any, decoder: str, seed: int
) -> list[Cell]:
    found = []
    for number, own in enumerate(readers):
        train_N, val_N, test_N = spaces.train_N, spaces.val_N, spaces.test_N
        decode = DECODERS[decoder](
            readers[own][train_N], spaces.labels_N[train_N], config(own), 1000 * (seed + 1) + number
        )
        for name, r_NR in r.items():
            if r_NR.shape[-1] != r[own].shape[-1]:
                continue
            val_NC, test_NC = decode(r_NR[val_N]), decode(r_NR[test_N])
            right_N = test_NC.argmax(-1).numpy() == spaces.labels_N[test_N]
            found.append(
                Cell(
                    encoder=name,
                    decoder=own,
                    f1=f1(spaces.labels_N[test_N], test_NC),
                    accuracy=float(right_N.mean()),
                    val_f1=f1(spaces.labels_N[val_N], val_NC),
                )
            )
    return found


def absolute_cells(spaces: Spaces, seed: int) -> list[Cell]:
    """The control: an MLP on absolute embeddings; between encoders of one width."""
    x = {name: nn.functional.normalize(x_ND, dim=-1) for name, x_ND in spaces.x.items()}

    def config(name: str) -> RelativeConfig:
        return RelativeConfig(num_anchors=x[name].shape[-1], num_labels=spaces.num_classes)

    return _cells(spaces, x, x, config, "mlp", seed)


def labelled_anchors(spaces: Spaces, k: int, strategy: str, seed: int) -> float:
    """The control without any stitching: each encoder has a classifier of its own, of the labelled anchors alone."""
    anchors_N = choose(spaces, k, strategy, seed)
    scores = []
    for x_ND in spaces.x.values():
        x_ND = nn.functional.normalize(x_ND - x_ND[anchors_N].mean(0), dim=-1)
        config = RelativeConfig(num_anchors=x_ND.shape[-1], num_labels=spaces.num_classes)
        decode = fit_ridge(x_ND[anchors_N], spaces.labels_N[anchors_N], config, seed)
        scores.append(f1(spaces.labels_N[spaces.test_N], decode(x_ND[spaces.test_N])))
    return float(np.mean(scores))
