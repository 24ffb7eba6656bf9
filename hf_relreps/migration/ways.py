"""The ways to compare a query of the new model with a stored vector of the old one.

Each way gives a vector for a query and a vector for a document whose inner product is the score. Those that translate
leave the stored vectors as they are, so that any index can be asked; ``relative`` and ``mean`` project them too.

| way         | query                                                 | stored vector      |
|-------------|-------------------------------------------------------|--------------------|
| procrustes  | rotated                                               | as it is           |
| ridge       | ridge regression                                      | as it is           |
| cca         | by correlated directions                              | as it is           |
| kernel_ridge| kernel ridge regression, rbf kernel                   | as it is           |
| rest        | rotated, and kernel ridge on what the rotation leaves | as it is           |
| translated  | mean of the five above                                | as it is           |
| relative    | relative representation                               | the same           |
| mean        | mean of the scores of translated and relative         | both, side by side |

Shapes: B queries or documents, A pairs, D width of the old model, E width of the new one, S width of what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.similarities import unit
from hf_relreps.space import RelativeSpace
from hf_relreps.translation import Translation
from hf_relreps.translation import fit as fit_translation


TRANSLATORS = ("procrustes", "ridge", "cca", "kernel_ridge", "rest")
SINGLE = (*TRANSLATORS, "relative")
WAYS = (*TRANSLATORS, "translated", "relative", "mean")
ON_UNTOUCHED_INDEX = (*TRANSLATORS, "translated")

# Settings that are tried on held-out pairs; the first is the one to start from.
GRIDS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "procrustes": ({},),
    "ridge": tuple({"ridge": ridge} for ridge in (0.2, 0.05, 1.0, 3.0)),
    "cca": tuple({"rank": rank, "ridge": ridge} for rank, ridge in product((100, 200), (0.1, 0.5, 2.0))),
    "kernel_ridge": tuple({"ridge": ridge, "width": width} for width, ridge in product((1.5, 0.5), (0.1, 0.02, 0.5))),
    "rest": tuple({"ridge": ridge, "width": 1.5} for ridge in (0.5, 0.1, 2.0)),
    # A search wants a larger ridge than a decoder, and held-out pairs chose none better.
    "relative": ({"ridge": 1.0, "width": 1.5},),
}


class Way(Protocol):
    """Makes vectors whose inner product says how near a query is to a document."""

    def queries(self, new_BE: Tensor) -> Tensor:
        """Of embeddings by the new model (B, S)."""

    def documents(self, old_BD: Tensor) -> Tensor:
        """Of stored vectors (B, S)."""


class Translated:
    """A query as a point of the old space, where it is compared with stored vectors by cosine.

    Args:
        parts: Their sum is the point.
    """

    def __init__(self, parts: Sequence[Translation]) -> None:
        self.parts = parts

    def points(self, new_BE: Tensor) -> Tensor:
        """Translated embeddings (B, D)."""
        return torch.stack([part.forward(new_BE) for part in self.parts]).sum(0)

    def queries(self, new_BE: Tensor) -> Tensor:
        """Directions in the old space (B, D)."""
        return unit(self.points(new_BE))

    def documents(self, old_BD: Tensor) -> Tensor:
        """Directions of the stored vectors (B, D)."""
        return unit(old_BD)


class Relative:
    """Both as relative representations: the pairs are the anchors.

    Args:
        old_AD: The pairs by the old model.
        new_AE: The same by the new one.
        space: How they are projected.
    """

    def __init__(self, old_AD: Tensor, new_AE: Tensor, space: RelativeSpace) -> None:
        self.space = space
        self.frames = frame_of(old_AD, space), frame_of(new_AE, space)

    def queries(self, new_BE: Tensor) -> Tensor:
        """Directions of relative representations (B, A)."""
        return unit(project_in_chunks(new_BE, self.frames[1], self.space))

    def documents(self, old_BD: Tensor) -> Tensor:
        """Directions of relative representations (B, A)."""
        return unit(project_in_chunks(old_BD, self.frames[0], self.space))


class Mean:
    """The weighted sum of the scores of several ways; those that translate share the stored vectors.

    Args:
        translators: Give points of the old space.
        relative: Compares relative representations, or ``None``.
        weights: By which each score is multiplied: one for each translator, one for `relative`.
    """

    def __init__(self, translators: Sequence[Way], relative: Way | None, weights: Sequence[float]) -> None:
        self.translators, self.relative, self.weights = translators, relative, weights

    def queries(self, new_BE: Tensor) -> Tensor:
        """Mean point in the old space (B, D), and beside it the relative representation."""
        points = [way.queries(new_BE) * w for way, w in zip(self.translators, self.weights, strict=False)]
        point_BD = torch.stack(points).sum(0)
        if self.relative is None:
            return unit(point_BD)
        return torch.cat([point_BD, self.relative.queries(new_BE) * self.weights[-1]], dim=-1)

    def documents(self, old_BD: Tensor) -> Tensor:
        """Stored vectors (B, D), and beside them relative representations."""
        if self.relative is None:
            return unit(old_BD)
        return torch.cat([unit(old_BD), self.relative.documents(old_BD)], dim=-1)


def translations(source_AE: Tensor, target_AD: Tensor, name: str, add_mean: bool, **settings: Any) -> Translated:
    """The translator of that name, fitted on pairs."""
    if name != "rest":
        return Translated([fit_translation(source_AE, target_AD, name, add_mean=add_mean, **settings)])
    rotate = fit_translation(source_AE, target_AD, "procrustes")
    rest_AD = target_AD - rotate.forward(source_AE)
    if not add_mean:
        rotate.placement.shift_E.zero_()
    return Translated([rotate, fit_translation(source_AE, rest_AD, add_mean=False, **settings)])


def build(name: str, old_AD: Tensor, new_AE: Tensor, settings: Mapping[str, Any]) -> Way:
    """One of `SINGLE`, from the new space to the old one."""
    if name == "relative":
        space = RelativeSpace(num_anchors=len(old_AD), basis_ridge=settings["ridge"], rbf_gamma=settings["width"])
        return Relative(old_AD, new_AE, space)
    return translations(new_AE, old_AD, name, add_mean=False, **settings)
