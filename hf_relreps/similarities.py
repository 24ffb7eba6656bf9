"""How alike a sample is to each anchor: pure functions (B, D) x (A, D) -> (B, A).

Larger always means more alike, so distances come with a minus sign. Shapes: B batch, D absolute size, A anchors.

| name      | unchanged by (paper, section 3; "From Bricks to Bridges", section 3)         |
|-----------|------------------------------------------------------------------------------|
| cosine    | rotation, reflection, permutation of the axes, scale of each sample          |
| angular   | the same                                                                     |
| rbf       | the same                                                                     |
| inner     | rotation, reflection, permutation of the axes                                |
| euclidean | rotation, reflection, permutation of the axes, translation                   |
| l1, linf  | permutation and reflection of the axes, translation                          |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize


RBF_GAMMA = 1.5  # flat between 0.5 and 2 for text and images when stitched


def unit(x_BD: Tensor) -> Tensor:
    """Each row over its length, also where the dtype cannot hold the square of that length; zero rows stay zero."""
    largest_B1 = x_BD.detach().abs().amax(-1, keepdim=True)
    return normalize(x_BD / largest_B1.clamp_min(torch.finfo(x_BD.dtype).tiny), dim=-1)


def cosine(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Cosine of the angle to each anchor, in [-1, 1] (the paper's similarity, equation 1)."""
    return unit(x_BD) @ unit(anchors_AD).T


def angular(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """One minus the angle to each anchor in units of pi, in [0, 1]."""
    limit = 1 - torch.finfo(x_BD.dtype).eps  # arccos has no gradient at the ends
    return 1 - cosine(x_BD, anchors_AD).clamp(-limit, limit).arccos() / math.pi


def inner(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Inner product with each anchor over the square root of D, so that its size does not grow with the width."""
    return x_BD @ anchors_AD.T / math.sqrt(anchors_AD.shape[-1])


def euclidean(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Minus the Euclidean distance to each anchor."""
    # By matrix products it would be faster, wrong for near neighbours, and in large batches other than in small ones.
    return -torch.cdist(x_BD, anchors_AD, compute_mode="donot_use_mm_for_euclid_dist")


def l1(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Minus the sum of absolute differences to each anchor."""
    return -torch.cdist(x_BD, anchors_AD, p=1)


def linf(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Minus the largest absolute difference to each anchor."""
    distance_BA = torch.cdist(x_BD, anchors_AD, p=math.inf)
    return -distance_BA.masked_fill(x_BD.isnan().any(-1, keepdim=True), torch.nan)  # which cdist passes over


def rbf(x_BD: Tensor, anchors_AD: Tensor, gamma: float = RBF_GAMMA) -> Tensor:
    """Gaussian of the distance between unit vectors, ``exp(-gamma d^2 / s)``, in (0, 1].

    ``s`` is the mean squared distance over pairs of distinct anchors, so the width of the Gaussian comes from the
    anchors alone: it exists for one sample and for an encoder never seen in training.
    """
    x_BD, anchors_AD = unit(x_BD), unit(anchors_AD)
    squared_distance_BA = (2 - 2 * (x_BD @ anchors_AD.T)).clamp_min(0)
    return torch.exp(-gamma * squared_distance_BA / mean_squared_distance(anchors_AD))


def mean_squared_distance(unit_AD: Tensor) -> Tensor:
    """Mean of ``||a_i - a_j||^2`` over i != j from deviations from the mean: no (A, A) matrix, no cancellation."""
    k = len(unit_AD)
    if k == 1:
        return unit_AD.new_tensor(2.0)  # what two random directions have
    spread = (unit_AD - unit_AD.mean(0)).square().sum()
    return (2 * spread / (k - 1)).clamp_min(torch.finfo(unit_AD.dtype).eps)


SIMILARITIES: dict[str, Callable[..., Tensor]] = {
    "cosine": cosine,
    "angular": angular,
    "rbf": rbf,
    "inner": inner,
    "euclidean": euclidean,
    "l1": l1,
    "linf": linf,
}

# Those whose matrix of the anchors among themselves is positive semi-definite, so that a change of basis exists.
KERNELS = ("cosine", "angular", "rbf", "inner")
