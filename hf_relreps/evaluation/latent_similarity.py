"""How alike two latent spaces are, from paired samples.

Shape suffixes: N samples, D and E widths of the two spaces, B rows of a chunk, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize

from hf_relreps.errors import EmbeddingError, EvaluationError


if TYPE_CHECKING:
    import numpy as np

METRICS = ("jaccard", "mrr", "cosine", "cka")
# These compare a row of one space with rows of the other, so both must have the same coordinates.
SHARED_COORDINATES = ("jaccard", "mrr", "cosine")
# Similarities held at a time: 64 MiB in float32, whatever N is.
SIMILARITIES_PER_CHUNK = 2**24
COMPARED_AT_ONCE = 4096

MEANINGS = {
    "jaccard": "share of the {k} nearest neighbours that both spaces agree on",
    "mrr": "mean reciprocal rank of the paired sample",
    "cosine": "mean cosine of the paired vectors",
    "cka": "linear CKA: ignores rotation and scale, takes any widths",
}


@dataclass(frozen=True, repr=False)
class LatentSimilarity:
    """What `latent_similarity` measured; prints as a table.

    Attributes:
        jaccard: Mean Jaccard index of the k nearest neighbours, in [0, 1].
        mrr: Mean reciprocal rank, in [0, 1].
        cosine: Mean cosine of paired rows, in [-1, 1].
        cka: Linear CKA, in [0, 1].
        k: Number of neighbours.
        n: Number of paired samples.

    A metric that was not requested is ``None``.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> found = latent_similarity(english.encoder.encode(test["en"]), turned.encode(test["en"]), metrics=["cka"])
        >>> round(found.cka, 3), found.to_dict()["jaccard"]
        (1.0, None)

        ```
    """

    jaccard: float | None
    mrr: float | None
    cosine: float | None
    cka: float | None
    k: int
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Metrics, k and n as plain numbers."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"Latent similarity of {self.n:,} paired samples"]
        for name in METRICS:
            value = getattr(self, name)
            if value is not None:
                lines.append(f"  {name:<8}{value:>7.3f}   {MEANINGS[name].format(k=self.k)}")
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def latent_similarity(
    x_ND: torch.Tensor | np.ndarray,
    y_NE: torch.Tensor | np.ndarray,
    *,
    k: int = 10,
    metrics: Sequence[str] = METRICS,
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
) -> LatentSimilarity:
    """Compare two latent spaces in which row i is the same sample.

    The first three metrics follow section 4.1 of the paper (Moschella et al., ICLR 2023): row i of x searches among
    all rows of y by cosine, and so does row i of y (which finds itself first).

    - ``jaccard``: intersection over union of the k rows found by each of the two, averaged over i.
    - ``mrr``: 1 / rank of row i of y in what row i of x found, 0 when it is not among the k; the first rank is 1,
      rows at exactly the same similarity share the better rank.
    - ``cosine``: cosine of row i of x and row i of y, averaged.
    - ``cka``: linear centred kernel alignment (Kornblith et al., 2019), the only one that can compare two widths and
      the only one that is invariant to a rotation of one space.

    The search runs from x to y: swapping them changes ``jaccard`` and ``mrr``. Memory grows with N, not with its
    square.

    Args:
        x_ND: One space, a row per sample; relative representations or absolute embeddings.
        y_NE: The other space, rows in the same order.
        k: Number of neighbours, smaller than N.
        metrics: Which to compute: any of ``jaccard``, ``mrr``, ``cosine``, ``cka``.
        chunk_size: Queries that search at a time; ``None`` fits them into 64 MiB.
        device: Where to compute; ``None`` stays where ``x_ND`` is. Below float32 is computed in float32.

    Raises:
        EvaluationError: If the spaces cannot be compared: rows that do not pair, k too large, widths that differ for a
            metric of shared coordinates, a constant space for CKA.
        EmbeddingError: If a vector is not finite, or is zero and a cosine is needed.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps import latent_similarity
        >>> x_ND = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
        >>> print(latent_similarity(x_ND, 3 * x_ND))
        Latent similarity of 100 paired samples
          jaccard   1.000   share of the 10 nearest neighbours that both spaces agree on
          mrr       1.000   mean reciprocal rank of the paired sample
          cosine    1.000   mean cosine of the paired vectors
          cka       1.000   linear CKA: ignores rotation and scale, takes any widths

        ```
    """
    _check_metrics(metrics)
    x_ND, y_NE = _as_pair(x_ND, y_NE, device)
    _check_pair(x_ND, y_NE, k, metrics)
    found: dict[str, float] = {}
    if any(name in SHARED_COORDINATES for name in metrics):
        found.update(_cosine_metrics(x_ND, y_NE, k, metrics, chunk_size))
    if "cka" in metrics:
        found["cka"] = _linear_cka(x_ND, y_NE)
    return LatentSimilarity(**{name: found[name] if name in metrics else None for name in METRICS}, k=k, n=len(x_ND))


def _cosine_metrics(
    x_ND: torch.Tensor, y_ND: torch.Tensor, k: int, metrics: Sequence[str], chunk_size: int | None
) -> dict[str, float]:
    x_ND, y_ND = _unit("x", x_ND), _unit("y", y_ND)
    totals = dict.fromkeys(SHARED_COORDINATES, 0.0)
    search = "jaccard" in metrics or "mrr" in metrics
    size = chunk_size or (max(1, SIMILARITIES_PER_CHUNK // len(y_ND)) if search else COMPARED_AT_ONCE)
    for rows in _chunks(len(x_ND), size):
        totals["cosine"] += float((x_ND[rows] * y_ND[rows]).sum(dim=1).sum())
        if search:
            similarity_BN = x_ND[rows] @ y_ND.T
            nearest_BK = similarity_BN.topk(k, dim=1)
            totals["mrr"] += float(_reciprocal_rank(similarity_BN, nearest_BK.values, rows.start).sum())
        if "jaccard" in metrics:
            own_BK = (y_ND[rows] @ y_ND.T).topk(k, dim=1).indices
            totals["jaccard"] += float(_jaccard(nearest_BK.indices, own_BK).sum())
    return {name: total / len(x_ND) for name, total in totals.items()}


def _reciprocal_rank(similarity_BN: torch.Tensor, nearest_BK: torch.Tensor, first_row: int) -> torch.Tensor:
    """1 / rank of each row's own twin, 0 outside the k nearest; equals share the better rank."""
    twin_B1 = similarity_BN.diagonal(offset=first_row)[:, None]
    rank_B = 1 + (nearest_BK > twin_B1).sum(dim=1)
    return (rank_B <= nearest_BK.shape[1]) / rank_B


def _jaccard(a_BK: torch.Tensor, b_BK: torch.Tensor) -> torch.Tensor:
    """Intersection over union of two rows of K distinct indices each."""
    both_BK2 = torch.cat([a_BK, b_BK], dim=1).sort(dim=1).values
    shared_B = (both_BK2[:, 1:] == both_BK2[:, :-1]).sum(dim=1)
    return shared_B / (both_BK2.shape[1] - shared_B)


def _linear_cka(x_ND: torch.Tensor, y_NE: torch.Tensor) -> float:
    """|Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|): the D x D form, so that N x N is never built."""
    (x_mean_D, x_scale), (y_mean_E, y_scale) = _centre_and_scale("x", x_ND), _centre_and_scale("y", y_NE)
    xx_DD = x_ND.new_zeros(x_ND.shape[1], x_ND.shape[1])
    yy_EE = y_NE.new_zeros(y_NE.shape[1], y_NE.shape[1])
    xy_DE = x_ND.new_zeros(x_ND.shape[1], y_NE.shape[1])
    for rows in _chunks(len(x_ND), COMPARED_AT_ONCE):
        x_BD, y_BE = (x_ND[rows] - x_mean_D) / x_scale, (y_NE[rows] - y_mean_E) / y_scale
        xx_DD.addmm_(x_BD.T, x_BD)
        yy_EE.addmm_(y_BE.T, y_BE)
        xy_DE.addmm_(x_BD.T, y_BE)
    return float(xy_DE.norm()) ** 2 / (float(xx_DD.norm()) * float(yy_EE.norm()))


def _centre_and_scale(side: str, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and largest deviation; dividing by the latter keeps squares inside float32 and leaves CKA as it is."""
    if bool((x_ND == x_ND[0]).all()):
        raise EvaluationError(
            f"CKA is undefined: all {len(x_ND)} rows of {side} are the same vector. Expected rows that differ. Check "
            f"that {side} does not come from a collapsed encoder."
        )
    mean_D = x_ND.mean(dim=0)
    return mean_D, torch.maximum(x_ND.amax(dim=0) - mean_D, mean_D - x_ND.amin(dim=0)).max()


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _unit(side: str, x_ND: torch.Tensor) -> torch.Tensor:
    zero_rows = torch.nonzero(x_ND.abs().amax(dim=1) == 0)
    if len(zero_rows):
        raise EmbeddingError(
            f"Row {int(zero_rows[0])} of {side} is zero ({len(zero_rows)} such rows of {len(x_ND)}): it has no "
            "cosine. Drop those samples from both spaces, or ask only for metrics=('cka',)."
        )
    # Scaled by the largest entry first, otherwise the squares of tiny or huge vectors leave float32.
    return normalize(x_ND / x_ND.abs().amax(dim=1, keepdim=True), dim=1)


def _as_pair(x: Any, y: Any, device: torch.device | str | None) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    device = torch.device(device) if device is not None else x.device
    wider = torch.promote_types(x.dtype, y.dtype)
    # Precision is float32 or better, also for bfloat16 and integer inputs.
    dtype = torch.float64 if wider == torch.float64 and device.type != "mps" else torch.float32
    return x.to(device, dtype), y.to(device, dtype)


def _check_metrics(metrics: Sequence[str]) -> None:
    if isinstance(metrics, str):
        raise EvaluationError(f"metrics={metrics!r} is a string, expected a sequence: metrics=({metrics!r},).")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        found = ", ".join(map(repr, unknown)) or "no metric"
        raise EvaluationError(f"Found {found}, expected one or more of {', '.join(METRICS)}.")


def _check_pair(x_ND: torch.Tensor, y_NE: torch.Tensor, k: int, metrics: Sequence[str]) -> None:
    for side, x in (("x", x_ND), ("y", y_NE)):
        if x.ndim != 2 or x.shape[1] == 0:
            raise EvaluationError(
                f"{side} has shape {tuple(x.shape)}, expected (samples, width): one vector for each sample."
            )
    if len(x_ND) != len(y_NE):
        raise EvaluationError(
            f"x has {len(x_ND)} rows and y has {len(y_NE)}, expected equal numbers: row i of both must be the same "
            "sample. Encode the same samples, in the same order, with both models."
        )
    neighbours = [name for name in metrics if name in ("jaccard", "mrr")]
    if neighbours and not 1 <= k < len(x_ND):
        raise EvaluationError(
            f"k={k} neighbours among {len(x_ND)} samples: expected 1 <= k < {len(x_ND)} for "
            f"{' and '.join(neighbours)}. Lower k or encode more samples."
        )
    if len(x_ND) < 2:
        raise EvaluationError(f"Found {len(x_ND)} samples, expected 2 or more to compare two spaces.")
    shared = [name for name in metrics if name in SHARED_COORDINATES]
    if shared and x_ND.shape[1] != y_NE.shape[1]:
        raise EvaluationError(
            f"x is {x_ND.shape[1]} wide and y is {y_NE.shape[1]}, expected equal widths for {', '.join(shared)}. Pass "
            "relative representations (their width is the number of anchors), or ask only for metrics=('cka',)."
        )
    for side, x in (("x", x_ND), ("y", y_NE)):
        broken = torch.nonzero(~torch.isfinite(x).all(dim=1))
        if len(broken):
            raise EmbeddingError(
                f"Row {int(broken[0])} of {side} is not finite ({len(broken)} such rows of {len(x)}). Expected "
                "numbers: encode in float32, or drop those samples from both spaces."
            )
