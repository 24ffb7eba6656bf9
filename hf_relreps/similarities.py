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
SHORT, LONG = 1e-12, 1e15  # lengths between which the squares keep float32's precision
MANY = 1024  # rows from which on it pays to look whether all lengths lie between


def unit(x_BD: Tensor) -> Tensor:
    """Each row over its length, also where the dtype cannot hold the square of that length; zero rows stay zero."""
    tiny = torch.finfo(x_BD.dtype).tiny
    if x_BD.dtype == torch.float32 and x_BD.device.type != "mps":  # one pass: float64 holds the squares
        length_B1 = torch.linalg.vector_norm(x_BD, dim=-1, keepdim=True, dtype=torch.float64)
        return x_BD / length_B1.to(x_BD.dtype).clamp_min(tiny)
    largest_B1 = torch.linalg.vector_norm(x_BD.detach(), math.inf, dim=-1, keepdim=True)
    return normalize(x_BD / largest_B1.clamp_min(tiny), dim=-1)


def cosine(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Cosine of the angle to each anchor, in [-1, 1] (the paper's similarity, equation 1).

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.similarities import cosine
        >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[0.6000, 0.8000]])

        ```
    """
    return cosine_to(x_BD, unit(anchors_AD))


def cosine_to(x_BD: Tensor, units_AD: Tensor, out_BA: Tensor | None = None) -> Tensor:
    """`cosine` to anchors of length one, without gradients into `out_BA` if there is one.

    Of many samples the product is divided by their lengths, not the samples: that is one pass less over memory.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # then nothing may depend on values
    if not traced and x_BD.dtype == torch.float32 and x_BD.device.type == "cpu" and len(x_BD) >= MANY:
        length_B1 = torch.linalg.vector_norm(x_BD, dim=-1, keepdim=True)
        if length_B1.amin() > SHORT and length_B1.amax() < LONG:  # float32 holds the squares
            product_BA = torch.matmul(x_BD, units_AD.T, out=out_BA)
            return product_BA / length_B1 if product_BA.requires_grad else product_BA.div_(length_B1)
    return torch.matmul(unit(x_BD), units_AD.T, out=out_BA)


def angular(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """One minus the angle to each anchor in units of pi, in [0, 1].

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.similarities import angular
        >>> angular(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor([[0.7500, 0.2500]])

        ```
    """
    return angular_of(cosine(x_BD, anchors_AD))


def angular_of(cosine_BA: Tensor) -> Tensor:
    """`angular` of cosines."""
    limit = 1 - torch.finfo(cosine_BA.dtype).eps  # arccos has no gradient at the ends
    return 1 - cosine_BA.clamp(-limit, limit).arccos() / math.pi


def inner(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Inner product with each anchor over the square root of D, so that its size does not grow with the width.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.similarities import inner
        >>> inner(torch.ones(1, 4), torch.ones(2, 4))
        tensor([[2., 2.]])

        ```
    """
    return x_BD @ anchors_AD.T / math.sqrt(anchors_AD.shape[-1])


def euclidean(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Minus the Euclidean distance to each anchor.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.similarities import euclidean
        >>> euclidean(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[-5.]])

        ```
    """
    # By matrix products it would be faster, wrong for near neighbours, and in large batches other than in small ones.
    return -torch.cdist(x_BD, anchors_AD, compute_mode="donot_use_mm_for_euclid_dist")


def l1(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Minus the sum of absolute differences to each anchor.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.similarities import l1
        >>> l1(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[-7.]])

        ```
    """
    return -torch.cdist(x_BD, anchors_AD, p=1)


def linf(x_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Minus the largest absolute difference to each anchor.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.similarities import linf
        >>> linf(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[-4.]])

        ```
    """
    distance_BA = torch.cdist(x_BD, anchors_AD, p=math.inf)
    return -distance_BA.masked_fill(x_BD.isnan().any(-1, keepdim=True), torch.nan)  # which cdist passes over


def rbf(x_BD: Tensor, anchors_AD: Tensor, gamma: float = RBF_GAMMA) -> Tensor:
    """Gaussian of the distance between unit vectors, ``exp(-gamma d^2 / s)``, in (0, 1].

    ``s`` is the mean squared distance over pairs of distinct anchors, so the width of the Gaussian comes from the
    anchors alone: it exists for one sample and for an encoder never seen in training.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.similarities import rbf
        >>> rbf(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[1.0000, 0.2231]])

        ```
    """
    units_AD = unit(anchors_AD)
    return rbf_of(cosine_to(x_BD, units_AD), gamma, mean_squared_distance(units_AD))


def rbf_of(cosine_BA: Tensor, gamma: float, spread: Tensor) -> Tensor:
    """`rbf` of cosines; `spread` is the anchors' `mean_squared_distance`."""
    # Of unit vectors d^2 is 2 - 2 cosine. In place, for this is a large matrix that is read and written at each step.
    return (cosine_BA.clamp_max(1).sub_(1) * (2 * gamma / spread)).exp_()


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

# Those that read directions only, as functions of the cosine: one product serves them all.
OF_COSINE: dict[str, Callable[..., Tensor]] = {
    "cosine": lambda cosine_BA: cosine_BA,
    "angular": angular_of,
    "rbf": rbf_of,
}

# Those whose matrix of the anchors among themselves is positive semi-definite, so that a change of basis exists.
KERNELS = ("cosine", "angular", "rbf", "inner")
