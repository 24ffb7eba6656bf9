"""From absolute embeddings to relative representations: transform, similarity, change of basis.

`project` is the idea as a pure function; `RelativeProjection` is the module that holds the anchors' embeddings.
Shapes: B batch, D absolute size, A anchors, R relative size (A times the number of similarities).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_relreps.configuration import RelativeConfig
from hf_relreps.errors import EmbeddingError
from hf_relreps.similarities import SIMILARITIES


class Frame(NamedTuple):
    """What the anchors alone determine: the frame in which every sample of their encoder is described.

    Args:
        shift_D: Subtracted from embeddings; ``None`` without a transform.
        scale: Multiplied after that: (D,), or (D, D) for ``whiten``; ``None`` without one.
        anchors_AD: The anchors after that transform.
        bases_AA: One inverse for each similarity, or nothing without a change of basis.
    """

    shift_D: Tensor | None
    scale: Tensor | None
    anchors_AD: Tensor
    bases_AA: tuple[Tensor, ...]


def frame_of(anchors_AD: Tensor, config: RelativeConfig) -> Frame:
    """The frame of anchors' embeddings, one factorisation of an (A, A) matrix for each similarity.

    Differentiable in the anchors, so that gradients may pass through them.
    """
    shift_D, scale = _fit_transform(anchors_AD, config)
    anchors_AD = _transform(anchors_AD, shift_D, scale)
    bases_AA = ()
    if config.basis_ridge is not None:
        bases_AA = tuple(_ridge_inverse(f(anchors_AD, anchors_AD), config.basis_ridge) for f in _similarities(config))
    return Frame(shift_D, scale, anchors_AD, bases_AA)


def project(x_BD: Tensor, frame: Frame, config: RelativeConfig) -> Tensor:
    """Relative representations (B, R): each row depends on its own sample and the anchors only.

    With a change of basis, ``r = K(x, A) (K(A, A) + ridge I)^-1``: the ridge coefficients of the sample in the
    anchors' span, which undoes how alike the anchors are to one another.
    """
    x_BD = _transform(x_BD, frame.shift_D, frame.scale)
    r_BR = [similarity(x_BD, frame.anchors_AD) for similarity in _similarities(config)]
    if frame.bases_AA:
        r_BR = [r_BA @ basis_AA for r_BA, basis_AA in zip(r_BR, frame.bases_AA, strict=True)]
    return torch.cat(r_BR, dim=-1)


def _similarities(config: RelativeConfig) -> list[Any]:
    fixed = {"rbf": partial(SIMILARITIES["rbf"], gamma=config.rbf_gamma)}
    return [fixed.get(name, SIMILARITIES[name]) for name in config.similarities]


def _fit_transform(anchors_AD: Tensor, config: RelativeConfig) -> tuple[Tensor | None, Tensor | None]:
    if config.transform == "none":
        return None, None
    shift_D = anchors_AD.mean(0)
    if config.transform == "center":
        return shift_D, None
    if config.transform == "standardize":
        deviation_D = anchors_AD.std(0, correction=0)
        return shift_D, 1 / deviation_D.clamp_min(1e-6 * deviation_D.max().clamp_min(1e-30))
    return shift_D, _shrunk_whitening(anchors_AD - shift_D, config.shrinkage)


def _shrunk_whitening(centred_AD: Tensor, shrinkage: float) -> Tensor:
    """Inverse square root of ``(1 - s) Cov + s tr(Cov)/D I``, in float64."""
    centred_AD = centred_AD.double()
    covariance_DD = centred_AD.T @ centred_AD / len(centred_AD)
    mean_variance = covariance_DD.diagonal().mean()
    identity_DD = torch.eye(len(covariance_DD), dtype=torch.float64, device=centred_AD.device)
    values_D, vectors_DD = torch.linalg.eigh((1 - shrinkage) * covariance_DD + shrinkage * mean_variance * identity_DD)
    values_D = values_D.clamp_min(1e-6 * mean_variance)  # without shrinkage fewer anchors than D leave zeros
    return (vectors_DD * values_D.rsqrt()) @ vectors_DD.T


def _transform(x_BD: Tensor, shift_D: Tensor | None, scale: Tensor | None) -> Tensor:
    if shift_D is not None:
        x_BD = x_BD - shift_D
    if scale is None:
        return x_BD
    return x_BD * scale if scale.ndim == 1 else x_BD @ scale.to(x_BD.dtype)


def _ridge_inverse(kernel_AA: Tensor, ridge: float) -> Tensor:
    """``(K + ridge mean(diag K) I)^-1`` by Cholesky in float64: repeated or collinear anchors are no obstacle."""
    kernel_64 = kernel_AA.double()
    kernel_64 = (kernel_64 + kernel_64.T) / 2
    loading = ridge * kernel_64.diagonal().mean()
    identity_AA = torch.eye(len(kernel_64), dtype=torch.float64, device=kernel_64.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(kernel_64 + loading * identity_AA)).to(kernel_AA.dtype)


class RelativeProjection(nn.Module):
    """Holds the anchors' embeddings and turns absolute embeddings (B, D) into relative representations (B, R).

    The arithmetic is float32 or better whatever the dtype of the model, also under autocast.

    Raises:
        EmbeddingError: From `set_anchors`, if an anchor's embedding has no direction.
    """

    anchors_AD: Tensor

    def __init__(self, config: RelativeConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("anchors_AD", torch.zeros(config.num_anchors, config.embedding_size or 0))
        self._frame: Frame | None = None
        self._frame_key: tuple[Any, ...] | None = None

    def set_anchors(self, anchors_AD: Tensor) -> None:
        """Put new embeddings of the anchors in place of the old ones, after checking them."""
        expected = tuple(self.anchors_AD.shape)
        if tuple(anchors_AD.shape) != expected:
            raise EmbeddingError(
                f"The anchors' embeddings have shape {tuple(anchors_AD.shape)}, expected {expected}: (num_anchors, "
                "embedding_size). Encode the anchor set that the configuration names."
            )
        refuse_directionless(anchors_AD, "anchor")
        with torch.no_grad():
            self.anchors_AD.copy_(anchors_AD)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Relative representations (B, R) of absolute embeddings (B, D)."""
        with torch.autocast(x_BD.device.type, enabled=False):
            frame = self.frame
            return project(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), frame, self.config)

    @property
    def frame(self) -> Frame:
        """The anchors' frame, computed again only after the anchors have changed."""
        if torch.compiler.is_compiling():  # a traced graph cannot ask whether the anchors have changed
            return self._frame if self._frame is not None else frame_of(self.anchors_AD, self.config)
        key = (id(self.anchors_AD), self.anchors_AD._version, self.anchors_AD.device)
        if self._frame is None or key != self._frame_key:
            with torch.inference_mode(False), torch.no_grad():
                self._frame = frame_of(self.anchors_AD.clone(), self.config)
            self._frame_key = key
        return self._frame

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the model, but never below float32: half precision anchors would spoil the change of basis."""
        before_AD = self.anchors_AD
        super()._apply(fn, recurse)
        if self.anchors_AD.dtype != before_AD.dtype and self.anchors_AD.is_floating_point():
            self.anchors_AD = before_AD.to(self.anchors_AD.device)
        self.forget_frame()
        return self

    def forget_frame(self) -> None:
        """Compute the frame again at the next call: the anchors or the settings have changed."""
        self._frame = None


def refuse_directionless(x_ND: Tensor, what: str) -> None:
    """Raise `EmbeddingError` if a row is zero or not finite: it would be equally alike to everything."""
    length_N = torch.linalg.vector_norm(x_ND.float(), dim=-1)
    bad_N = ~torch.isfinite(length_N) | (length_N == 0)
    if bad_N.any():
        first = int(bad_N.nonzero()[0])
        raise EmbeddingError(
            f"{int(bad_N.sum())} of {len(x_ND)} {what} embeddings have no direction; {what} {first} has length "
            f"{float(length_N[first])}, expected a finite length above zero. Look at that sample, the encoder's weights "
            "(diverged training gives infinities) and its pooling."
        )
