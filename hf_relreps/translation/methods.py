"""Translation between latent spaces: a relative representation of the one, read as a recipe for a point in the other.

Each method is a projection, with statistics of the source's anchors alone, and one point of the target space for each
anchor; a translated sample is their weighted sum. Where the points come from the target alone, every encoder that
shares the anchors can be translated, and neither side needs to see the other:

| method       | translated sample                                            | needs both spaces | source           |
|--------------|--------------------------------------------------------------|-------------------|------------------|
| kernel_ridge | kernel ridge regression on the anchors, rbf kernel           | no                | textbook         |
| ridge        | affine map, ridge regression on the anchors                  | no                | textbook         |
| inverse      | inverse relative projection: pruned, averaged pseudo-inverse | no                | arXiv 2406.15057 |
| procrustes   | rotation or reflection, one scale, shift                     | yes               | arXiv 2311.00664 |
| cca          | regularised canonical correlations of rank `CCA_RANK`        | yes               | textbook         |

Shapes: B batch, A anchors, D and E absolute sizes of source and target, S anchors that were kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_relreps.configuration import RelativeEncoderConfig
from hf_relreps.errors import ConfigurationError, EmbeddingError
from hf_relreps.heads import Placement
from hf_relreps.projection import RelativeProjection, refuse_directionless
from hf_relreps.similarities import unit
from hf_relreps.space import RelativeSpace, require_whole, require_within


NO_VARIANCE = 1e-4  # directions of anchors below this share of the largest: float32 could not bear their inverse
NO_CORRELATION = 1e-6  # singular values below this share of the largest are rounding
CCA_RANK = 100
CCA_RIDGE = 0.1
PRUNED_BELOW = 0.7  # of 1 - |cosine|: anchors nearer to one that is kept are left out
ROUNDS = 8
INVERSE_RIDGE = 0.1

Points = tuple[Tensor, Tensor]  # points (A, E) and shift (E,) of a `Placement`


def anchor_points(x_AD: Tensor, y_AE: Tensor) -> Points:
    """Each anchor counts as the place where the target has it: with ridge coefficients this is ridge regression."""
    shift_E = y_AE.mean(0)
    return y_AE - shift_E, shift_E


def procrustes_points(x_AD: Tensor, y_AE: Tensor) -> Points:
    """The rotation or reflection, and the scale, that bring the source's anchors nearest to the target's.

    Spaces of unlike width need no padding. What the anchors do not span is left out, as the map is not determined
    there.
    """
    x_AD, y_AE, shift_E = _centred(x_AD, y_AE)
    u_DK, s_K, v_KE = torch.linalg.svd(x_AD.T @ y_AE, full_matrices=False)
    kept_K = s_K > NO_CORRELATION * s_K[0]
    scale = s_K.sum() / x_AD.square().sum()
    return _through_products(x_AD, scale * (u_DK * kept_K) @ v_KE), shift_E


def cca_points(x_AD: Tensor, y_AE: Tensor, rank: int | None = None, ridge: float | None = None) -> Points:
    """By way of the directions in which the two spaces correlate most, each as far as it does."""
    x_AD, y_AE, shift_E = _centred(x_AD, y_AE)
    ridge = CCA_RIDGE if ridge is None else ridge
    whiten_DK, _ = _shrunk_roots(x_AD, ridge)
    whiten_EK, colour_KE = _shrunk_roots(y_AE, ridge)
    p_KR, correlation_R, q_RK = torch.linalg.svd((x_AD @ whiten_DK).T @ (y_AE @ whiten_EK), full_matrices=False)
    kept = CCA_RANK if rank is None else rank
    correlation_R = correlation_R * (torch.arange(len(correlation_R), device=x_AD.device) < kept)
    return _through_products(x_AD, whiten_DK @ (p_KR * correlation_R) @ q_RK @ colour_KE), shift_E


def inverse_points(x_AD: Tensor, y_AE: Tensor) -> Points:
    """Inverse relative projection: a point of the target whose cosines to the target's anchors are those given.

    The mean over `ROUNDS` choices of anchors, each pruned so that no two are alike: the pseudo-inverse of like anchors
    is unstable. Pruned are the target's, for theirs is the matrix that is inverted; the paper prunes the source's.
    """
    shift_E = y_AE.mean(0)
    y_AE = y_AE - shift_E
    units_AE = unit(y_AE)
    points_AE = torch.zeros_like(y_AE)
    for rows_S in _prunings(units_AE):
        u_SK, s_K, v_KE = torch.linalg.svd(units_AE[rows_S], full_matrices=False)
        inverse_K = s_K / (s_K.square() + INVERSE_RIDGE * s_K.square().mean())
        points_AE[rows_S] += (u_SK * inverse_K) @ v_KE / ROUNDS
    return points_AE * torch.linalg.vector_norm(y_AE, dim=-1).mean(), shift_E


def _centred(x_AD: Tensor, y_AE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shift_E = y_AE.mean(0)
    return x_AD - x_AD.mean(0), y_AE - shift_E, shift_E


def _through_products(x_AD: Tensor, map_DE: Tensor) -> Tensor:
    """A linear map as points to be weighed by inner products with the anchors: no ridge, no loss in float32."""
    u_AK, s_K, v_KD = torch.linalg.svd(x_AD, full_matrices=False)
    inverse_K = s_K.reciprocal().masked_fill(s_K <= NO_VARIANCE * s_K[0], 0)
    return math.sqrt(x_AD.shape[1]) * (u_AK * inverse_K) @ (v_KD @ map_DE)  # the similarity divides by that root


def _shrunk_roots(x_AD: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Maps to uncorrelated directions of variance below one (D, K), and back (K, D)."""
    _, s_K, v_KD = torch.linalg.svd(x_AD, full_matrices=False)
    root_K = (s_K.square() + ridge * s_K.square().mean()).sqrt()
    return v_KD.T / root_K, root_K[:, None] * v_KD


def _prunings(units_AE: Tensor) -> Iterator[Tensor]:
    """Rows of anchors no two of which are alike: farthest points from `ROUNDS` random starts.

    At least as many as there are axes, where there are: fewer would not determine a point.
    """
    fewest = min(len(units_AE), units_AE.shape[1])
    distance_AA = 1 - (units_AE @ units_AE.T).abs()
    starts = torch.randperm(len(units_AE), generator=torch.Generator().manual_seed(0)).tolist()
    for i in range(ROUNDS):
        kept = [starts[i % len(starts)]]
        nearest_A = distance_AA[kept[0]]
        while len(kept) < fewest or float(nearest_A.max()) >= PRUNED_BELOW:
            kept.append(int(nearest_A.argmax()))
            nearest_A = torch.minimum(nearest_A, distance_AA[kept[-1]])
        yield torch.tensor(kept, device=units_AE.device)


class Method(NamedTuple):
    """A way to translate.

    Args:
        space: How the relative representation that it reads is made; its anchors are left open.
        points: From the anchors in both spaces to the points that it weighs.
        needs_encoder: Whether the points depend on the source space.
        settings: Which of ``ridge``, ``width`` and ``rank`` `fit` takes for it.
    """

    space: RelativeSpace
    points: Callable[..., Points]
    needs_encoder: bool = False
    settings: tuple[str, ...] = ()


_PRODUCTS = RelativeSpace(similarity=("inner",), basis_ridge=None)
METHODS: dict[str, Method] = {
    "kernel_ridge": Method(
        RelativeSpace(similarity=("rbf",), basis_ridge=0.1), anchor_points, settings=("ridge", "width")
    ),
    "ridge": Method(RelativeSpace(similarity=("inner",), basis_ridge=0.2), anchor_points, settings=("ridge",)),
    "inverse": Method(RelativeSpace(similarity=("cosine",), basis_ridge=None), inverse_points),
    "procrustes": Method(_PRODUCTS, procrustes_points, needs_encoder=True),
    "cca": Method(_PRODUCTS, cca_points, needs_encoder=True, settings=("rank", "ridge")),
}


def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigurationError: If there is none.
    """
    if name not in METHODS:
        raise ConfigurationError(f"method={name!r} does not exist. Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def points_of(method: Method, x_AD: Tensor | None, y_AE: Tensor, **settings: float) -> Points:
    """The points of a method, computed in float64; `settings` are those that its `points` takes.

    Raises:
        EmbeddingError: If the anchors are not paired, fewer than two, all alike, or without direction.
    """
    for name, anchors in (("source", x_AD), ("target", y_AE)):
        if anchors is not None:
            _refuse_unusable(anchors, name)
    y_AE = y_AE.detach().cpu().double()
    x_AD = y_AE if x_AD is None else x_AD.detach().cpu().double()  # not read unless the method needs it
    if len(x_AD) != len(y_AE):
        raise EmbeddingError(
            f"The source has {len(x_AD)} anchors, but the target has {len(y_AE)}. Row i of both must be the same "
            "anchor: encode two views of one AnchorSet."
        )
    return method.points(x_AD, y_AE, **settings)


def _refuse_unusable(anchors: Tensor, name: str) -> None:
    if anchors.ndim != 2 or len(anchors) < 2:
        raise EmbeddingError(
            f"The {name}'s anchors have shape {tuple(anchors.shape)}, expected (A, width) with two anchors or more."
        )
    refuse_directionless(anchors, f"{name} anchor")
    anchors = anchors.detach().cpu().double()
    spread = torch.linalg.vector_norm(anchors - anchors.mean(0))
    if spread <= NO_CORRELATION * torch.linalg.vector_norm(anchors):
        raise EmbeddingError(
            f"All {len(anchors)} anchors of the {name} have the same embedding. Choose distinct anchors, and check "
            "that the encoder does not give every sample the same embedding."
        )


class Translation(nn.Module):
    """From embeddings (B, D) of one space to embeddings (B, E) of another; made by `fit`.

    Float32 or better whatever the dtype of the model; each row depends on its own sample only.

    Args:
        projection: The relative representation of the source.
        placement: What it means in the target.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.translation import fit
        >>> views = {model: anchors.view(model.config.anchor_view).samples for model in (french, english)}
        >>> translate = fit(*(model.encoder.encode(samples) for model, samples in views.items()))  # French to English
        >>> translate.forward(french.encoder.encode(["un jeu de cartes"])).shape
        torch.Size([1, 32])

        ```
    """

    def __init__(self, projection: RelativeProjection, placement: Placement) -> None:
        super().__init__()
        self.projection = projection
        self.placement = placement

    def forward(self, x_BD: Tensor) -> Tensor:
        """Embeddings (B, E) of the target space."""
        return self.placement(self.projection(x_BD))


def fit(
    x_AD: Tensor,
    y_AE: Tensor,
    method: str = "kernel_ridge",
    *,
    ridge: float | None = None,
    width: float | None = None,
    rank: int | None = None,
    add_mean: bool = True,
) -> Translation:
    """Fit a translation from the space of `x_AD` into that of `y_AE`: the same anchors in the same order.

    Args:
        x_AD: Embeddings of the anchors by the source's encoder.
        y_AE: Embeddings of the same anchors by the target's.
        method: A name in `METHODS`.
        ridge: Penalty of ``kernel_ridge``, ``ridge`` and ``cca``, in units of the mean variance; the method's own if
            left out.
        width: Sharpness of the kernel of ``kernel_ridge``, as `RelativeSpace.rbf_gamma`.
        rank: Number of directions that ``cca`` keeps.
        add_mean: Whether the mean of the target's anchors is added. To search by cosine leave it out: it pulls all
            queries towards one direction.

    Raises:
        ConfigurationError: If there is no such method, or it has no such setting.
        EmbeddingError: If the anchors are not paired, fewer than two, all alike, or without direction.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.translation import fit
        >>> x_AD = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> turned_AD = x_AD[:, [3, 1, 2, 0, 7, 6, 5, 4]] + 2  # the same space with permuted axes
        >>> translate = fit(x_AD, turned_AD, "procrustes")
        >>> torch.allclose(translate(x_AD), turned_AD, atol=1e-3)
        True

        ```
    """
    chosen = method_of(method)
    settings = {"ridge": ridge, "width": width, "rank": rank}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    _refuse_settings(method, given)
    space = chosen.space.replace(num_anchors=len(x_AD))
    if chosen.space.basis_ridge is None:
        points_AE, shift_E = points_of(chosen, x_AD, y_AE, **given)
    else:
        points_AE, shift_E = points_of(chosen, x_AD, y_AE)
        fields = {"ridge": "basis_ridge", "width": "rbf_gamma"}
        space = space.replace(**{fields[name]: value for name, value in given.items()})
    projection = RelativeProjection(RelativeEncoderConfig(space=space, embedding_size=x_AD.shape[1]))
    translation = Translation(projection, Placement(*points_AE.shape)).to(x_AD.device)
    translation.projection.set_anchors(x_AD)  # after the move, which would forget the anchors' frame
    translation.placement.put(points_AE, shift_E if add_mean else torch.zeros_like(shift_E))
    return translation


def _refuse_settings(method: str, given: dict[str, Any]) -> None:
    takes = METHODS[method].settings
    for name, value in given.items():
        if name not in takes:
            raise ConfigurationError(
                f"method={method!r} takes no {name}, found {name}={value}. It takes {' and '.join(takes) or 'none'}."
            )
        if name == "rank":
            require_whole(name, value, low=1)
        else:
            require_within(name, value, low=0, strictly=True)
