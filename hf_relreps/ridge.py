"""Ridge regression on to classes or numbers in closed form: milliseconds where training takes minutes.

Shapes: N samples, R relative size, C classes or targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_relreps.errors import SampleError


RIDGE = 1.5e-3  # flat around it when stitched, for text and images; one chosen on the encoder's own scores is too weak
ROUNDING = 1e-10  # share of the inputs' mean square that float32 may add to samples that are all alike
SHARPNESSES = torch.logspace(0, 2.5, 101, dtype=torch.float64)


class RidgeFit(NamedTuple):
    """``z_NR @ weight_CR.T + bias_C``, and what it gives for each training sample if that one is left out."""

    weight_CR: Tensor
    bias_C: Tensor
    left_out_NC: Tensor


def fit_ridge(z_NR: Tensor, targets_NC: Tensor, ridge: float = RIDGE, weights_N: Tensor | None = None) -> RidgeFit:
    """Weighted least squares with an intercept and a penalty on the weights, in float64.

    Args:
        z_NR: Inputs.
        targets_NC: What to predict.
        ridge: Penalty in units of the total variance of the inputs.
        weights_N: How much each sample counts; all the same if left out.

    Raises:
        SampleError: If the samples are fewer than two, all alike, or not finite.
    """
    z_NR, targets_NC = z_NR.double(), targets_NC.double()
    weights_N = z_NR.new_ones(len(z_NR)) if weights_N is None else weights_N.double()
    share_N1 = (weights_N / weights_N.sum())[:, None]
    mean_R, mean_C = (share_N1 * z_NR).sum(0), (share_N1 * targets_NC).sum(0)
    centred_NR, wanted_NC = z_NR - mean_R, targets_NC - mean_C
    covariance_RR = centred_NR.T @ (share_N1 * centred_NR)
    spread = covariance_RR.diagonal().sum()
    energy = (share_N1 * z_NR.square()).sum()
    if not torch.isfinite(spread) or spread <= ROUNDING * energy:
        raise SampleError(
            f"The {len(z_NR)} relative representations have a total variance of {float(spread)}, expected a finite "
            "number above zero. Give at least two samples, and check that the encoder does not give every sample the "
            "same embedding."
        )
    identity_RR = torch.eye(len(covariance_RR), dtype=z_NR.dtype, device=z_NR.device)
    lower_RR = torch.linalg.cholesky(covariance_RR + ridge * spread * identity_RR)
    weight_RC = torch.cholesky_solve(centred_NR.T @ (share_N1 * wanted_NC), lower_RR)
    whitened_RN = torch.linalg.solve_triangular(lower_RR, centred_NR.T, upper=False)
    leverage_N1 = share_N1 * (1 + whitened_RN.square().sum(0)[:, None])  # how far each sample pulls its own prediction
    residual_NC = wanted_NC - centred_NR @ weight_RC
    left_out_NC = targets_NC - residual_NC / (1 - leverage_N1).clamp_min(1e-6)
    return RidgeFit(weight_RC.T, mean_C - mean_R @ weight_RC, left_out_NC)


def class_weights(labels_N: Tensor, num_labels: int) -> Tensor:
    """The weight of each sample: rare classes count more, by the square root of how rare they are."""
    counts_C = torch.bincount(labels_N, minlength=num_labels).double()
    return (len(labels_N) / (num_labels * counts_C[labels_N])).sqrt()


def sharpness(scores_NC: Tensor, labels_N: Tensor) -> float:
    """The factor that makes scores logits: of a grid the one with the least cross-entropy."""
    log_NCS = torch.log_softmax(scores_NC.double()[..., None] * SHARPNESSES.to(scores_NC.device), dim=1)
    loss_S = -log_NCS[torch.arange(len(labels_N)), labels_N].mean(0)
    return float(SHARPNESSES[int(loss_S.argmin())])


def sharpness_of_several(scores_NC: Tensor, targets_NC: Tensor) -> float:
    """The same where each of the C labels is a question of its own, answered at zero."""
    scaled_NCS = scores_NC.double()[..., None] * SHARPNESSES.to(scores_NC.device)
    targets_NCS = targets_NC.double()[..., None].expand_as(scaled_NCS)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(scaled_NCS, targets_NCS, reduction="none")
    return float(SHARPNESSES[int(losses.mean((0, 1)).argmin())])
