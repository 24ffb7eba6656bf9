"""From absolute embeddings to relative representations: transform, similarity, change of basis.

`project` is the idea as a pure function; `RelativeProjection` is the module that holds the anchors' embeddings.
Shapes: B batch, D absolute size, A anchors, R relative size (A times the number of similarities).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_relreps.configuration import RelativeEncoderConfig
from hf_relreps.errors import AnchorError, ConfigurationError, EmbeddingError, RelrepsError, StaleAnchorsError
from hf_relreps.similarities import KERNELS, OF_COSINE, SIMILARITIES, cosine_to, mean_squared_distance, unit
from hf_relreps.space import RelativeSpace


# Samples projected at a time where no gradient is asked for: what fits into a processor's cache between passes, and of
# plain cosines, which are one product, as many as keep its threads busy.
PROJECTED_AT_ONCE, PROJECTED_IN_ONE_PASS = 2048, 8192
NO_SPREAD = 1e-6  # what is smaller than this share of what it was computed from is rounding
CHECKED_ANCHORS = 8  # of a set, encoded again to see whether the stored embeddings are an encoder's own
# How far a stored anchor may be from what its encoder makes of it now, as a share of its length: hardware and batches
# round differently. A wrong tokenizer, pooling or view is off by 0.3 and more.
OWN_WITHIN, OWN_WITHIN_HALF = 1e-2, 1e-1
TINY = torch.finfo(torch.float32).tiny  # from here on down numbers lose digits


class Frame(NamedTuple):
    """What the anchors alone determine: the frame in which every sample of their encoder is described.

    Args:
        shift_D: Subtracted from embeddings; ``None`` without a transform.
        scale: Multiplied after that: (D,), or (D, D) for ``whiten``; ``None`` without one.
        anchors_AD: The anchors after that transform.
        units_AD: Their directions; ``None`` where no similarity reads directions.
        spread: Mean squared distance of these directions; ``None`` without ``rbf``.
        bases_AA: One inverse for each similarity, or nothing without a change of basis.
    """

    shift_D: Tensor | None
    scale: Tensor | None
    anchors_AD: Tensor
    units_AD: Tensor | None
    spread: Tensor | None
    bases_AA: tuple[Tensor, ...]


def frame_of(anchors_AD: Tensor, space: RelativeSpace) -> Frame:
    """The frame of anchors' embeddings, one factorisation of an (A, A) matrix for each similarity.

    Computed in float64 and kept in the anchors' dtype, which is float32 or better. Differentiable in the anchors, so
    that gradients may pass through them (with ``whiten`` as long as no two variances are equal).

    Raises:
        ConfigurationError: If `basis_ridge` is too small for the anchors' similarities to have an inverse.
    """
    precise_AD = anchors_AD.cpu().double() if anchors_AD.device.type == "mps" else anchors_AD.double()
    shift_D, scale = _fit_transform(precise_AD, space)
    precise_AD = _transform(precise_AD, shift_D, scale)
    units_AD = unit(precise_AD) if set(space.similarity) & set(OF_COSINE) else None
    spread = mean_squared_distance(units_AD) if units_AD is not None and "rbf" in space.similarity else None
    frame = Frame(shift_D, scale, precise_AD, units_AD, spread, ())
    if space.basis_ridge is not None:
        kernels_AA = _alike(precise_AD, frame, space)
        frame = frame._replace(bases_AA=tuple(_ridge_inverse(k_AA, space.basis_ridge) for k_AA in kernels_AA))
    return _like(anchors_AD, frame)


def _like(tensor: Tensor, frame: Frame) -> Frame:
    """The frame in the dtype and on the device of `tensor`."""

    def moved(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.to(tensor)

    return Frame(
        moved(frame.shift_D),
        moved(frame.scale),
        frame.anchors_AD.to(tensor),
        moved(frame.units_AD),
        moved(frame.spread),
        tuple(basis_AA.to(tensor) for basis_AA in frame.bases_AA),
    )


def project(x_BD: Tensor, frame: Frame, space: RelativeSpace, out_BR: Tensor | None = None) -> Tensor:
    """Relative representations (B, R): each row depends on its own sample and the anchors only.

    With a change of basis, ``r = K(x, A) (K(A, A) + ridge I)^-1``: the ridge coefficients of the sample in the
    anchors' span, which undoes how alike the anchors are to one another.

    Args:
        x_BD: Absolute embeddings.
        frame: Of their encoder's anchors.
        space: Whose projection.
        out_BR: Where to write them, without gradients.
    """
    x_BD = _transform(x_BD, frame.shift_D, frame.scale)
    one = out_BR if len(space.similarity) == 1 else None
    if frame.bases_AA:
        pairs = zip(_alike(x_BD, frame, space), frame.bases_AA, strict=True)
        r_BR = [torch.matmul(r_BA, basis_AA, out=one) for r_BA, basis_AA in pairs]
    else:
        r_BR = _alike(x_BD, frame, space, one)
    joined = r_BR[0] if len(r_BR) == 1 else torch.cat(r_BR, dim=-1)
    return joined if out_BR is None or joined is out_BR else out_BR.copy_(joined)


def project_in_chunks(x_ND: Tensor, frame: Frame, space: RelativeSpace) -> Tensor:
    """`project` without gradients for any number of samples: memory for the output and one chunk."""
    one_pass = frame.shift_D is None and not frame.bases_AA and space.similarity == ("cosine",)
    rows = PROJECTED_IN_ONE_PASS if one_pass else PROJECTED_AT_ONCE
    if len(x_ND) <= rows:
        return project(x_ND, frame, space)
    r_NR = x_ND.new_empty(len(x_ND), space.size)
    with torch.no_grad():
        for x_BD, r_BR in zip(x_ND.split(rows), r_NR.split(rows), strict=True):
            project(x_BD, frame, space, r_BR)
    return r_NR


def _alike(x_BD: Tensor, frame: Frame, space: RelativeSpace, out_BA: Tensor | None = None) -> list[Tensor]:
    """How alike transformed samples are to the anchors, (B, A) for each similarity; `out_BA` is room for the first."""
    cosine_BA = x_BD if frame.units_AD is None else cosine_to(x_BD, frame.units_AD, out_BA)
    extra = {"rbf": (space.rbf_gamma, frame.spread)}
    return [
        OF_COSINE[name](cosine_BA, *extra.get(name, ()))
        if name in OF_COSINE
        else SIMILARITIES[name](x_BD, frame.anchors_AD)
        for name in space.similarity
    ]


def _fit_transform(anchors_AD: Tensor, space: RelativeSpace) -> tuple[Tensor | None, Tensor | None]:
    if space.transform == "none":
        return None, None
    shift_D = anchors_AD.mean(0)
    if space.transform == "center":
        return shift_D, None
    if space.transform == "standardize":
        deviation_D = anchors_AD.std(0, correction=0)
        constant_D = deviation_D <= NO_SPREAD * anchors_AD.abs().amax(0)
        return shift_D, deviation_D.masked_fill(constant_D, torch.inf).reciprocal()
    return shift_D, _shrunk_whitening(anchors_AD - shift_D, space.shrinkage or 0.0)


def _shrunk_whitening(centred_AD: Tensor, shrinkage: float) -> Tensor:
    """Inverse square root of ``(1 - s) Cov + s tr(Cov)/D I``; directions without variance are left out."""
    covariance_DD = centred_AD.T @ centred_AD / len(centred_AD)
    mean_variance = covariance_DD.diagonal().mean()
    identity_DD = torch.eye(len(covariance_DD), dtype=covariance_DD.dtype, device=covariance_DD.device)
    values_D, vectors_DD = torch.linalg.eigh((1 - shrinkage) * covariance_DD + shrinkage * mean_variance * identity_DD)
    constant_D = values_D <= NO_SPREAD * mean_variance  # without shrinkage: all but A - 1 of them
    return (vectors_DD * values_D.masked_fill(constant_D, torch.inf).rsqrt()) @ vectors_DD.T


def _transform(x_BD: Tensor, shift_D: Tensor | None, scale: Tensor | None) -> Tensor:
    if shift_D is not None:
        x_BD = x_BD - shift_D
    if scale is None:
        return x_BD
    return x_BD * scale if scale.ndim == 1 else x_BD @ scale


def _ridge_inverse(kernel_AA: Tensor, ridge: float) -> Tensor:
    """``(K + ridge mean(diag K) I)^-1`` by Cholesky: repeated or collinear anchors are no obstacle."""
    kernel_AA = (kernel_AA + kernel_AA.T) / 2
    loading = ridge * kernel_AA.diagonal().mean()
    identity_AA = torch.eye(len(kernel_AA), dtype=kernel_AA.dtype, device=kernel_AA.device)
    try:
        return torch.cholesky_inverse(torch.linalg.cholesky(kernel_AA + loading * identity_AA))
    except torch.linalg.LinAlgError as error:
        raise ConfigurationError(
            f"basis_ridge={ridge} is too small for these {len(kernel_AA)} anchors: their similarity matrix cannot be "
            f"inverted ({error}). Raise it; 0.1 is the default."
        ) from error


class WideBuffers(nn.Module):
    """Its buffers move with the model, but never below float32: ``model.half()`` leaves them as they are."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype.itemsize < torch.float32.itemsize:
                self._buffers[name] = buffer.to(moved.device, torch.float32)
        return self


def wide(dtype: torch.dtype) -> torch.dtype:
    """Float32 or better."""
    return torch.promote_types(dtype, torch.float32)


class RelativeProjection(WideBuffers):
    """Holds the anchors' embeddings and turns absolute embeddings (B, D) into relative representations (B, R).

    The arithmetic is float32 or better whatever the dtype of the model and of the stored anchors, also under autocast.
    The anchors' frame is computed again when the anchors or the space have changed. What `torch.compile` made of it
    sees changes by `set_anchors` and `load_state_dict`, and needs `forget_frame` after others.

    Args:
        config: Holds the space, which is read at each call, and the width of the embeddings.

    Attributes:
        before_reading: Called before the anchors are read outside a training step; an encoder renews them there.
        has_loaded: Whether `load_state_dict` has put new anchors here; an encoder takes note of it.

    Raises:
        AnchorError: From the first call, if there are no anchors yet.
        EmbeddingError: From `set_anchors` and the first call, if an anchor's embedding has no direction.
    """

    anchors_AD: Tensor
    before_reading: Callable[[], None] | None = None
    has_loaded: bool = False

    def __init__(self, config: RelativeEncoderConfig) -> None:
        super().__init__()
        self.config = config
        anchors_AD = torch.zeros(config.space.num_anchors, config.embedding_size or 0, dtype=torch.float32)
        self.register_buffer("anchors_AD", anchors_AD)
        self._frame: Frame | None = None
        self._framed_AD: Tensor | None = None  # the tensor that the frame was computed from, and what it was like then
        self._framed_as: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy does not know whose it is: its encoder is not copied with it, but tells it anew."""
        return {name: value for name, value in vars(self).items() if name != "before_reading"}

    @property
    def space(self) -> RelativeSpace:
        """What samples are described in."""
        return self.config.space

    def extra_repr(self) -> str:
        """For `repr`: the space."""
        return str(self.space)

    def set_anchors(self, anchors_AD: Tensor) -> None:
        """Put new embeddings of the anchors in place of the old ones, after checking them."""
        expected = tuple(self.anchors_AD.shape)
        if tuple(anchors_AD.shape) != expected:
            raise EmbeddingError(
                f"The anchors' embeddings have shape {tuple(anchors_AD.shape)}, expected {expected}: (num_anchors, "
                "embedding_size). Encode the anchor set that the configuration names."
            )
        _refuse_unusable(anchors_AD, self.space)
        # A new tensor: what shares the old one describes its samples by that.
        place: dict[str, Any] = {"device": self.anchors_AD.device, "dtype": wide(self.anchors_AD.dtype)}
        before_AD = self.anchors_AD
        self.anchors_AD = anchors_AD.detach().to(**place, copy=True)
        self.forget_frame()
        try:
            self._frame = self._framed()  # now, for a compiled forward takes the frame as it finds it
        except RelrepsError:
            self.anchors_AD = before_AD
            raise

    def forward(self, x_BD: Tensor, live_anchors_AD: Tensor | None = None) -> Tensor:
        """Relative representations (B, R) of absolute embeddings (B, D); (B, T, R) of those of tokens (B, T, D).

        Args:
            x_BD: Absolute embeddings.
            live_anchors_AD: Embeddings of the anchors to use in place of the stored ones, with their gradients.
        """
        if x_BD.ndim == 3:
            return self(x_BD.flatten(0, 1), live_anchors_AD).unflatten(0, x_BD.shape[:2])
        with torch.autocast(x_BD.device.type, enabled=False):
            x_BD = x_BD.to(torch.promote_types(x_BD.dtype, wide(self.anchors_AD.dtype)))
            if live_anchors_AD is not None:
                return project(x_BD, frame_of(live_anchors_AD.to(x_BD.dtype), self.space), self.space)
            frame = _like(x_BD, self.frame)
            if (torch.is_grad_enabled() and x_BD.requires_grad) or torch.compiler.is_compiling():
                return project(x_BD, frame, self.space)
            return project_in_chunks(x_BD, frame, self.space)

    @property
    def frame(self) -> Frame:
        """The anchors' frame, computed again only after the anchors or the space have changed."""
        if torch.compiler.is_compiling():  # a traced graph cannot ask whether the anchors have changed
            return frame_of(self.anchors_AD, self.space) if self._frame is None else self._frame
        if self.before_reading is not None and not (self.training and torch.is_grad_enabled()):
            self.before_reading()
        return self._framed()

    def _framed(self) -> Frame:
        frame, anchors_AD = self._frame, self.anchors_AD
        framed_as = (0 if anchors_AD.is_inference() else anchors_AD._version, self.space)
        if frame is None or self._framed_AD is not anchors_AD or self._framed_as != framed_as:
            _refuse_missing(anchors_AD)
            _refuse_unusable(anchors_AD, self.space)
            with torch.inference_mode(False), torch.no_grad():
                frame = frame_of(anchors_AD.to(wide(anchors_AD.dtype), copy=True), self.space)
            _refuse_unbounded(frame, self.space)
            self._frame, self._framed_AD, self._framed_as = frame, anchors_AD, framed_as
        return frame

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.has_loaded = self.has_loaded or f"{prefix}anchors_AD" in state_dict
        self.forget_frame()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.forget_frame()
        return self

    def forget_frame(self) -> None:
        """Compute the frame again at the next call: the anchors or the settings have changed."""
        self._frame = None


def refuse_directionless(x_ND: Tensor, what: str) -> None:
    """Raise `EmbeddingError` if a row is zero or not finite: it would be equally alike to everything."""
    length_N = torch.linalg.vector_norm(x_ND.detach().float().cpu(), dim=-1, dtype=torch.float64)
    bad_N = ~torch.isfinite(length_N) | (length_N == 0)
    if bad_N.any():
        first = int(bad_N.nonzero()[0])
        raise EmbeddingError(
            f"{int(bad_N.sum())} of {len(x_ND)} {what} embeddings have no direction; {what} {first} has length "
            f"{float(length_N[first])}, expected a finite length above zero. Check that sample, the encoder's weights "
            "(they are infinite if training diverged) and its pooling."
        )


def checked_rows(anchors: int, k: int) -> Tensor:
    """Which k anchors to encode again, spread over the set; all if there are no more."""
    return torch.linspace(0, anchors - 1, min(k, anchors)).round().long()


def refuse_stale(stored_KD: Tensor, own_KD: Tensor, dtype: torch.dtype, whose: str, remedy: str) -> float:
    """The largest distance between stored and new embeddings of some anchors, as a share of the stored one's length.

    Args:
        stored_KD: As they are stored.
        own_KD: As they were encoded just now.
        dtype: Of the weights that encoded them.
        whose: What has them, in errors.
        remedy: Why they may differ, and what to do.

    Raises:
        StaleAnchorsError: If they differ by more than rounding explains.
    """
    distance_K = (stored_KD - own_KD).norm(dim=-1) / stored_KD.norm(dim=-1).clamp_min(1e-30)
    largest = float(distance_K.max())
    within = OWN_WITHIN if dtype.itemsize >= torch.float32.itemsize else OWN_WITHIN_HALF
    if not largest <= within:
        raise StaleAnchorsError(
            f"The stored anchor embeddings do not match {whose}: encoded again, "
            f"{int((distance_K > within).sum())} of {len(stored_KD)} differ, by up to {largest:.2f} of their length, "
            f"where rounding explains up to {within}. {remedy}"
        )
    return largest


def _refuse_denormal(anchors_AD: Tensor) -> None:
    """Raise `EmbeddingError` if an anchor is so small that float32 keeps only a few of its digits."""
    largest_A = anchors_AD.detach().abs().amax(-1).cpu()
    if largest_A.min() < TINY:
        raise EmbeddingError(
            f"Anchor {int(largest_A.argmin())} has no number above {float(largest_A.min()):.3g}; float32 keeps all "
            f"digits of numbers from {TINY:.3g} on. Scale the encoder's outputs up, or check its weights."
        )


def _refuse_unbounded(frame: Frame, space: RelativeSpace) -> None:
    """Raise `EmbeddingError` if what the anchors give does not fit into their dtype: every result would be NaN."""
    parts = (frame.shift_D, frame.scale, frame.units_AD, frame.spread, *frame.bases_AA)
    if not all(part is None or bool(part.isfinite().all()) for part in parts):
        raise EmbeddingError(
            f"The {len(frame.anchors_AD)} anchors vary so little that {space} cannot be computed in "
            f"{str(frame.anchors_AD.dtype).removeprefix('torch.')}. Scale the encoder's outputs up, or set "
            "transform='none' and basis_ridge=None."
        )


def _refuse_missing(anchors_AD: Tensor) -> None:
    if not anchors_AD.any():
        raise AnchorError(
            f"The {len(anchors_AD)} anchors have no embeddings yet: all are zero. Encode them with "
            "model.encode_anchors(anchors.view(name), processor), or load a model that was saved with them."
        )


def _refuse_unusable(anchors_AD: Tensor, space: RelativeSpace) -> None:
    """Raise `EmbeddingError` if an anchor has no direction, or loses it by the transform, or all share one in rbf."""
    refuse_directionless(anchors_AD, "anchor")
    _refuse_denormal(anchors_AD)
    anchors_AD = anchors_AD.detach().cpu().double()
    if space.transform != "none":
        rest_A = torch.linalg.vector_norm(anchors_AD - anchors_AD.mean(0), dim=-1)
        lost_A = rest_A <= NO_SPREAD * torch.linalg.vector_norm(anchors_AD, dim=-1)
        if lost_A.any() if set(space.similarity) & set(KERNELS) else lost_A.all():
            raise EmbeddingError(
                f"{int(lost_A.sum())} of {len(anchors_AD)} anchors lie at the mean of all, the first is anchor "
                f"{int(lost_A.nonzero()[0])}: transform={space.transform!r} maps them to zero. Choose more and "
                "distinct anchors, check that the encoder does not give every sample the same embedding, or set "
                "transform='none'."
            )
    elif "rbf" in space.similarity and len(anchors_AD) > 1 and mean_squared_distance(unit(anchors_AD)) < NO_SPREAD:
        raise EmbeddingError(
            f"All {len(anchors_AD)} anchors have the same direction, so the rbf similarity has no width. Choose "
            "distinct anchors, and check that the encoder does not give every sample the same embedding."
        )
