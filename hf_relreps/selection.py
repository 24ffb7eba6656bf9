"""Which samples become anchors: pure functions that give row numbers in the anchors' order.

Shapes: N candidates, D absolute size, k anchors.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_relreps.errors import AnchorError
from hf_relreps.similarities import unit


CANDIDATES_AT_ONCE = 4096  # candidates compared with all centroids at a time
STRATEGIES = ("uniform", "stratified", "kmeans", "fps")


def select(
    n: int,
    k: int,
    strategy: str = "uniform",
    seed: int = 42,
    labels: Sequence[Any] | None = None,
    embeddings_ND: Tensor | np.ndarray | None = None,
) -> np.ndarray:
    """k distinct rows out of n, always the same for the same arguments (paper, appendix A.2).

    Args:
        n: Number of candidates.
        k: Number of anchors.
        strategy: ``uniform``; ``stratified`` (classes in turn, needs `labels`); ``kmeans`` (the candidate nearest to
            each of k centroids of unit vectors) and ``fps`` (each next one farthest from all before), both of which
            need `embeddings_ND`.
        seed: For the random generator.
        labels: One label for each candidate.
        embeddings_ND: One row for each candidate.

    Raises:
        AnchorError: If k is below 1 or above n, or the strategy is unknown or lacks an argument that it needs.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.selection import select
        >>> select(1000, 5, seed=42).tolist() == select(1000, 5, seed=42).tolist()
        True
        >>> x_ND = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]])
        >>> 2 in select(4, 2, strategy="fps", embeddings_ND=x_ND)  # it lies far from the others
        True

        ```
    """
    if strategy not in STRATEGIES:
        raise AnchorError(f"strategy={strategy!r} does not exist. Choose one of {', '.join(STRATEGIES)}.")
    if not 1 <= k <= n:
        raise AnchorError(f"Cannot choose k={k} anchors from {n} candidates. Choose k between 1 and {n}.")
    rng = np.random.default_rng(seed)
    if strategy == "uniform":
        return rng.permutation(n)[:k]
    if strategy == "stratified":
        return _take_in_turn(_require(labels, n, strategy, "label_column="), k, rng)
    unit_ND = _directions(_require(embeddings_ND, n, strategy, "embeddings="))
    return _kmeans(unit_ND, k, seed) if strategy == "kmeans" else _farthest_points(unit_ND, k, rng)


def _require(values: Any, n: int, strategy: str, argument: str) -> Any:
    if values is None:
        raise AnchorError(f"strategy={strategy!r} needs {argument}, with one row for each candidate. Pass it.")
    if len(values) != n:
        raise AnchorError(f"{argument} has {len(values)} rows for {n} candidates. Give one row for each.")
    return values


def _directions(embeddings_ND: Any) -> Tensor:
    embeddings_ND = torch.as_tensor(embeddings_ND).detach().float().cpu()
    if embeddings_ND.ndim != 2:
        raise AnchorError(
            f"embeddings= has shape {tuple(embeddings_ND.shape)}, expected two dimensions: a vector for each "
            "candidate. Pass the result of encoder.encode(samples)."
        )
    unit_ND = unit(embeddings_ND)
    bad_N = ~torch.isfinite(unit_ND).all(-1) | (unit_ND == 0).all(-1)
    if bad_N.any():
        raise AnchorError(
            f"{int(bad_N.sum())} of {len(unit_ND)} candidates have embeddings that are zero or not finite, the first "
            f"is candidate {int(bad_N.nonzero()[0])}. Drop those candidates, or encode them again."
        )
    return unit_ND


def _take_in_turn(labels: Sequence[Any], k: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle, then take one of each class in turn until k are found."""
    shuffled = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=int)
    seen: Counter[Any] = Counter()
    for position, row in enumerate(shuffled):
        turn[position] = seen[labels[row]]
        seen[labels[row]] += 1
    return shuffled[np.argsort(turn, kind="stable")[:k]]


def _kmeans(unit_ND: Tensor, k: int, seed: int) -> np.ndarray:
    """The candidate nearest to each centroid; a candidate already taken gives way to the next nearest.

    The centroids come from ten rounds over a share of the candidates, the nearest from all. At 100,000 candidates that
    is quicker than scikit-learn's `MiniBatchKMeans`, at less inertia: each round is a few large matrix products.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning

    shuffled = np.random.default_rng(seed).permutation(len(unit_ND))
    some = unit_ND[shuffled[: max(24 * k, 8192)]].numpy()
    start_kD, _ = kmeans_plusplus(some[: max(2 * k, 1024)], k, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct candidates than k: then some repeat
        means = KMeans(k, init=start_kD, n_init=1, max_iter=10, random_state=seed).fit(some)
    free_N = torch.ones(len(unit_ND), dtype=torch.bool)
    centroids_kD = torch.as_tensor(means.cluster_centers_, dtype=unit_ND.dtype)
    chosen = []
    for row, centroid_D in zip(_find_nearest(unit_ND, centroids_kD), centroids_kD, strict=True):
        if not free_N[row]:
            row = int((unit_ND @ centroid_D).masked_fill(~free_N, -torch.inf).argmax())
        chosen.append(row)
        free_N[row] = False
    return np.array(chosen)


def _find_nearest(unit_ND: Tensor, centroids_kD: Tensor) -> list[int]:
    """The candidate nearest to each centroid, a chunk of candidates at a time: memory is linear in N."""
    found = [(centroids_kD @ unit_BD.T).max(dim=1) for unit_BD in unit_ND.split(CANDIDATES_AT_ONCE)]
    chunk_k = torch.stack([best.values for best in found]).argmax(0)
    row_k = torch.stack([best.indices for best in found])[chunk_k, torch.arange(len(centroids_kD))]
    return (chunk_k * CANDIDATES_AT_ONCE + row_k).tolist()


def _farthest_points(unit_ND: Tensor, k: int, rng: np.random.Generator) -> np.ndarray:
    """From a random start, always the candidate whose nearest chosen one is farthest. Memory is linear in N."""
    chosen = [int(rng.integers(len(unit_ND)))]
    nearest_N = unit_ND @ unit_ND[chosen[0]]
    while len(chosen) < k:
        nearest_N[chosen] = torch.inf  # never twice, even among identical candidates
        chosen.append(int(nearest_N.argmin()))
        nearest_N = torch.maximum(nearest_N, unit_ND @ unit_ND[chosen[-1]])
    return np.array(chosen)
