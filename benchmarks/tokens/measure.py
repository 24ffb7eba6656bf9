"""What a tagger scores: decoders in closed form on relative representations of words, and their rivals.

Shapes: W words, A anchors, D absolute size, C classes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.tokens.words import CLASSES, Encoded
from hf_relreps import RelativeDecoder, RelativeSpace
from hf_relreps.evaluation import entity_f1
from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.ridge import RIDGE, class_weights, fit_ridge
from hf_relreps.similarities import unit
from hf_relreps.trust import mean_with_taught


TRAINED_ON = 12_000  # words, drawn for each seed
SPACES = {
    "default": RelativeSpace(),
    "paper's cosine": RelativeSpace(transform="none", similarity="cosine", basis_ridge=None),
    "ridge 1": RelativeSpace(basis_ridge=1.0),
}
Scores = dict[str, float]


@dataclass(frozen=True)
class Absolute:
    """Ridge regression on the directions of absolute vectors, with the same penalty and weights as a decoder."""

    weight_CD: Tensor
    bias_C: Tensor

    @classmethod
    def fit(cls, x_WD: Tensor, labels_W: Tensor, task: str) -> Absolute:
        """Of words and their classes."""
        wanted_WC = torch.nn.functional.one_hot(labels_W, len(CLASSES[task]))
        fit = fit_ridge(unit(x_WD), wanted_WC, RIDGE, class_weights(labels_W, len(CLASSES[task])))
        return cls(fit.weight_CR, fit.bias_C)

    def say(self, x_WD: Tensor) -> Tensor:
        """Classes (W,)."""
        return (unit(x_WD).double() @ self.weight_CD.T + self.bias_C).argmax(1)


@dataclass(frozen=True)
class Relative:
    """A decoder that reads relative representations."""

    decoder: RelativeDecoder
    space: RelativeSpace

    @classmethod
    def fit(cls, x_WD: Tensor, labels_W: Tensor, task: str, anchors_AD: Tensor, space: RelativeSpace) -> Relative:
        """Of words and their classes, described by anchors of the same encoder."""
        space = space.replace(num_anchors=len(anchors_AD), fingerprint="0" * 64)
        r_WA = project_in_chunks(x_WD, frame_of(anchors_AD, space), space)
        return cls(RelativeDecoder.fit_ridge(r_WA, labels_W, space, id2label=dict(enumerate(CLASSES[task]))), space)

    def describe(self, x_WD: Tensor, anchors_AD: Tensor) -> Tensor:
        """Relative representations (W, A) by any encoder whose vectors of the anchors are given."""
        return project_in_chunks(x_WD, frame_of(anchors_AD, self.space), self.space)

    @torch.no_grad()
    def say(self, x_WD: Tensor, anchors_AD: Tensor) -> Tensor:
        """Classes (W,) of words."""
        return self.decoder(self.describe(x_WD, anchors_AD)).logits.argmax(1)

    def calibrated(self, theirs: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> Relative:
        """For another encoder, by `hf_relreps.trust`: of both the vectors of the anchors and of unlabelled words."""
        r_WA, own_WA = (self.describe(torch.cat(side), side[0]) for side in (theirs, own))
        return Relative(mean_with_taught(self.decoder, r_WA, own_WA, len(own[0])), self.space)


def procrustes(x_WD: Tensor, from_AD: Tensor, to_AD: Tensor) -> Tensor:
    """Vectors in the other space: moved, turned and scaled as suits the anchors best."""
    left_AD, right_AD = from_AD - from_AD.mean(0), to_AD - to_AD.mean(0)
    u_DD, _, v_DD = torch.linalg.svd(left_AD.T @ right_AD)
    return (x_WD - from_AD.mean(0)) @ (u_DD @ v_DD) * (right_AD.norm() / left_AD.norm()) + to_AD.mean(0)


def trained_on(encoded: Encoded, task: str, seed: int) -> Tensor:
    """Rows of the words that decoders are fitted on."""
    rows = np.random.default_rng(seed).permutation(len(encoded.x_WD))[:TRAINED_ON]
    return torch.as_tensor(rows)


def scores(said_W: Tensor, read: Encoded, task: str) -> Scores:
    """Accuracy of parts of speech; of entities the micro-F1 of words that are not O, and that of whole entities."""
    labels_W = read.labels(task)
    if task == "upos":
        return {"accuracy": float((said_W == labels_W).float().mean())}
    both = ((said_W == labels_W) & (labels_W != 0)).sum()
    word = float(2 * both / ((said_W != 0).sum() + (labels_W != 0).sum()))
    return {"word F1": word, "entity F1": entity_f1(CLASSES[task], read.lengths)(labels_W.numpy(), said_W.numpy())}


class Table:
    """Scores by row, and by what is scored, one for each seed."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, row: str, found: Scores) -> None:
        """The scores of one seed."""
        for name, score in found.items():
            self.found[row][name].append(score)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {row: dict(found) for row, found in self.found.items()}
