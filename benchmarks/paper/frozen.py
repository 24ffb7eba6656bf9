"""Encoders that stay as they are, each with a decoder of its own, and every pair of them stitched.

Shapes: N train samples, M test samples, A anchors, D absolute size, R relative size, C classes, E encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from transformers import set_seed

from benchmarks.paper.tables import cell, names_of, rows_of, spread
from benchmarks.reporting import console, markdown
from hf_relreps import RelativeConfig, RelativeDecoder, RelativeDecoderConfig, RelativeSpace
from hf_relreps.evaluation.scores import SCORES, SINGLE, chance
from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.selection import select


METRIC = "f1_weighted"  # the paper's
PROJECTIONS = {"cosine": RelativeConfig.paper().space, "default": RelativeSpace()}
ABSOLUTE, LABELLED = "absolute", "labelled anchors only"
ANCHORS = 300
BATCH, RATE, DECAY = 64, 1e-3, 0.01


@dataclass(frozen=True)
class Space:
    """What one encoder makes of the samples: of its own train samples, of the anchors, of the test samples."""

    train_ND: Tensor
    anchors_AD: Tensor
    test_MD: Tensor
    train_labels_N: Tensor


@dataclass(frozen=True)
class Task:
    """What is to be told about the test samples.

    Args:
        test_labels_M: Their classes, the same for every encoder.
        classes: C.
        epochs: How often a decoder sees its train samples.
        anchor_labels_A: Classes of the anchors, where they have any.
    """

    test_labels_M: np.ndarray
    classes: int
    epochs: int = 10
    anchor_labels_A: np.ndarray | None = None

    def score(self, decoder: RelativeDecoder, r_MR: Tensor) -> float:
        """Weighted F1 of a decoder on the test samples."""
        with torch.inference_mode():
            answers_M = decoder(relative_embeds=r_MR).logits.argmax(-1).numpy()
        return SCORES[METRIC].function(self.test_labels_M, answers_M)

    @property
    def chance(self) -> float:
        """What guessing reaches."""
        return chance(self.test_labels_M, SCORES[METRIC], SINGLE)[0]


def relative_scores(spaces: Mapping[str, Space], task: Task, projection: RelativeSpace, seed: int) -> np.ndarray:
    """Scores (E, E) of every encoder (row) with every decoder (column), which reads similarities to the anchors."""
    anchors = len(next(iter(spaces.values())).anchors_AD)
    projection = projection.replace(num_anchors=anchors)
    config = RelativeDecoderConfig(space=projection, num_labels=task.classes)
    frames = [frame_of(space.anchors_AD, projection) for space in spaces.values()]
    decoders, tests = [], []
    for i, (space, frame) in enumerate(zip(spaces.values(), frames, strict=True)):
        r_NR = project_in_chunks(space.train_ND, frame, projection)
        decoders.append(trained(r_NR, space.train_labels_N, config, task.epochs, seed=1000 * seed + i))
        tests.append(project_in_chunks(space.test_MD, frame, projection))
    return np.array([[task.score(decoder, r_MR) for decoder in decoders] for r_MR in tests])


def absolute_scores(spaces: Mapping[str, Space], task: Task, seed: int) -> np.ndarray:
    """The same with decoders of the same form that read absolute embeddings; NaN where widths differ."""
    decoders = [
        absolute_decoder(space.train_ND, space.train_labels_N, task, seed=1000 * seed + 500 + i)
        for i, space in enumerate(spaces.values())
    ]
    scores = np.full((len(spaces), len(spaces)), np.nan)
    for row, space in enumerate(spaces.values()):
        for column, decoder in enumerate(decoders):
            if decoder.config.space.size == space.test_MD.shape[1]:
                scores[row, column] = task.score(decoder, space.test_MD)
    return scores


def labelled_scores(spaces: Mapping[str, Space], task: Task, seed: int) -> np.ndarray:
    """Scores (E,) of absolute decoders that learn from the labelled anchors of their encoder alone.

    That is what whoever has no decoder could do with the same anchors, if these have labels.
    """
    labels_A = torch.as_tensor(task.anchor_labels_A)
    found = []
    for i, space in enumerate(spaces.values()):
        # As many steps as the other decoders make.
        rounds = task.epochs * len(space.train_ND) // len(labels_A)
        decoder = absolute_decoder(space.anchors_AD, labels_A, task, 1000 * seed + 700 + i, epochs=rounds)
        found.append(task.score(decoder, space.test_MD))
    return np.array(found)


def absolute_decoder(
    x_ND: Tensor, labels_N: Tensor, task: Task, seed: int, epochs: int | None = None
) -> RelativeDecoder:
    """A decoder whose "anchors" are the coordinates of the absolute space."""
    config = RelativeDecoderConfig(num_anchors=x_ND.shape[1], num_labels=task.classes)
    return trained(x_ND, labels_N, config, epochs or task.epochs, seed)


def trained(r_NR: Tensor, labels_N: Tensor, config: RelativeDecoderConfig, epochs: int, seed: int) -> RelativeDecoder:
    """A decoder on what is computed once: AdamW, batches of 64, a rate that falls to nothing."""
    set_seed(seed)
    decoder = RelativeDecoder(config).train()
    steps = epochs * -(-len(r_NR) // BATCH)
    optimizer = torch.optim.AdamW(decoder.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(r_NR)).split(BATCH):
            optimizer.zero_grad()
            decoder(relative_embeds=r_NR[rows], labels=labels_N[rows]).loss.backward()
            optimizer.step()
            schedule.step()
    return decoder.eval()


def summary(kind: str, matrices: Sequence[np.ndarray], chance: float, **facts: Any) -> dict[str, Any]:
    """A row of results: own and stitched pairs over all seeds, and the mean of each pair."""
    scores = np.stack(matrices)  # seeds, E, E
    own = np.eye(scores.shape[1], dtype=bool)
    stitched = scores[:, ~own]
    stitched = stitched[~np.isnan(stitched)]
    return facts | {
        "kind": kind,
        "own": spread(scores[:, own].ravel()),
        "stitched": spread(stitched) if stitched.size else None,
        "worst": float(stitched.min()) if stitched.size else None,
        "by_seed": [None if np.isnan(m[~own]).all() else float(np.nanmean(m[~own])) for m in scores],
        "chance": chance,
        "pairs": [[None if np.isnan(x) else round(float(x), 4) for x in row] for row in scores.mean(0)],
    }


def scores_of(spaces: Mapping[str, Space], task: Task, projection: RelativeSpace | None, seed: int) -> np.ndarray:
    """Scores (E, E) of relative decoders, or without a projection of absolute ones."""
    return relative_scores(spaces, task, projection, seed) if projection else absolute_scores(spaces, task, seed)


def compared(
    task: Task,
    labels_N: np.ndarray,
    features_of: Callable[[int], Mapping[str, tuple[Tensor, Tensor]]],
    seeds: int,
    **facts: Any,
) -> list[dict[str, Any]]:
    """A row of results for absolute decoders, relative ones, and those of the labelled anchors, over several seeds.

    Args:
        task: What is to be told; its anchors are drawn here, as many of each class.
        labels_N: Classes of the train samples.
        features_of: Seed -> encoder -> features of the train samples and of the test samples.
        seeds: How many.
        **facts: For each row; `task` is the name of the task.
    """
    kinds: dict[str, RelativeSpace | None] = {ABSOLUTE: None, **PROJECTIONS}
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in (*kinds, LABELLED)}
    for seed in track(range(seeds), facts["task"], console=console):
        chosen = select(len(labels_N), min(ANCHORS, len(labels_N)), "stratified", seed, labels=labels_N.tolist())
        y_N, of_seed = torch.as_tensor(labels_N), replace(task, anchor_labels_A=labels_N[chosen])
        spaces = {
            name: Space(train_ND, train_ND[chosen], test_MD, y_N)
            for name, (train_ND, test_MD) in features_of(seed).items()
        }
        for kind, projection in kinds.items():
            found[kind].append(scores_of(spaces, of_seed, projection, seed))
        found[LABELLED].append(labelled_scores(spaces, of_seed, seed))
    facts |= {"train": len(labels_N), "test": len(task.test_labels_M)}
    rows = [summary(kind, found[kind], task.chance, **facts) for kind in kinds]
    scores = np.stack(found[LABELLED])
    only = {"kind": LABELLED, "own": spread(scores.ravel()), "stitched": None, "chance": task.chance}
    return [*rows, facts | only | {"by_encoder": scores.mean(0).round(4).tolist()}]


def row_of(results: Mapping[str, Any], task: str, kind: str) -> dict[str, Any]:
    """The row of a task and a kind."""
    return rows_of(results, task=task, kind=kind)[0]


def own_and_stitched(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Two lines for each task: a decoder on its own encoder, and on the others."""
    heads = ("weighted F1, %", "", ABSOLUTE, *(f"relative, {kind}" for kind in PROJECTIONS), LABELLED, "chance")
    lines = []
    for task in names_of(results, "task"):
        rows = [row_of(results, task, kind) for kind in (ABSOLUTE, *PROJECTIONS, LABELLED)]
        for which, title in (("own", titles[task]), ("stitched", "")):
            lines.append((title, which, *(percent(row[which]) for row in rows), percent(rows[0]["chance"])))
    return markdown(heads, lines)


def share(row: Mapping[str, Any]) -> float:
    """Stitched in shares of own."""
    return row["stitched"]["mean"] / row["own"]["mean"]


def stitched_in_short(results: Mapping[str, Any], task: str, title: str) -> tuple[str, str]:
    """Stitched F1 of a task in one line, and whether relative decoders are far above absolute ones."""
    absolute, cosine, default = (row_of(results, task, kind)["stitched"] for kind in (ABSOLUTE, *PROJECTIONS))
    figures = [percent(figure and figure["mean"]) for figure in (absolute, cosine, default)]
    above = absolute is None or cosine["mean"] > absolute["mean"] + 0.2
    line = f"{title}, stitched: absolute {figures[0]}, relative {figures[1]}, default {figures[2]}"
    return line, "yes" if above else "no"


def percent(figure: dict[str, Any] | float | None) -> str:
    """A cell in per cent, as the paper has them."""
    return cell(figure, 1, 100)
