"""7 Anchors from 100,000 embeddings, and nearest neighbours of 20,000: beside scikit-learn and faiss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.timing import Pairs, clock, paired, row
from hf_relreps import latent_similarity
from hf_relreps.selection import _directions, _farthest_points, _kmeans


def clustered(n: int, d: int, seed: int = 0) -> Tensor:
    """Unit vectors around 2,000 centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2000, d, generator=generator)
    chosen = torch.randint(0, 2000, (n,), generator=generator)
    return _directions(centres[chosen] + torch.randn(n, d, generator=generator))


def inertia(x_ND: Tensor, centres_kD: Any) -> float:
    """Sum of squared distances to the nearest centre."""
    centres_kD = torch.as_tensor(np.asarray(centres_kD))
    return sum(float(torch.cdist(x_BD, centres_kD).amin(1).square().sum()) for x_BD in x_ND.split(8192))


def neighbours(library: str, x_ND: Tensor, y_ND: Tensor) -> None:
    """What jaccard and mrr ask for: the ten nearest of each row of x, and of y, among all of y."""
    x, y = x_ND.numpy(), y_ND.numpy()
    if library == "faiss":
        import faiss

        index: Any = faiss.IndexFlatIP(y.shape[1])
        index.add(y)
        index.search(x, 10), index.search(y, 10)
        return
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=10, algorithm="brute", metric="cosine").fit(y)
    found.kneighbors(x), found.kneighbors(y)


def run(quick: bool = False) -> dict[str, Any]:
    """Ours over theirs."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    n, d, k = (10_000, 384, 128) if quick else (100_000, 384, 768)
    x_ND = clustered(n, d)
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = x_ND[_kmeans(x_ND, k, 0)]

    def theirs() -> None:
        found["theirs"] = MiniBatchKMeans(k, random_state=0).fit(x_ND.numpy()).cluster_centers_

    pairs = Pairs()  # without a run to warm up: minutes each
    for _ in range(1 if quick else 5):
        pairs.add(clock(ours), clock(theirs))
    centres = KMeans(k, init=found["ours"].numpy(), n_init=1, max_iter=1).fit(x_ND.numpy()).cluster_centers_
    note = (
        f"inertia {inertia(x_ND, centres) / inertia(x_ND, found['theirs']):.3f} of theirs, with our {k} anchors as "
        "start of one round"
    )
    rows = [row(f"kmeans, k = {k} of {n} x {d}, over MiniBatchKMeans", pairs.to_dict(), "at most 1", note)]

    def passes() -> None:
        for i in range(k // 8):
            x_ND @ x_ND[i]  # noqa: B018

    fps = paired(lambda: _farthest_points(x_ND, k // 8, np.random.default_rng(0)), passes, 3 if quick else 5)
    rows.append(row(f"fps, k = {k // 8}, over as many passes of x @ v", fps, "at most 1.5"))
    m = 2_000 if quick else 20_000
    x_ND, y_ND = clustered(m, 300, 1), clustered(m, 300, 2)
    for library in ("scikit-learn", "faiss"):
        try:
            neighbours(library, x_ND[:100], y_ND[:100])
        except ImportError:
            continue
        figure = paired(
            lambda: latent_similarity(x_ND, y_ND, metrics=("jaccard", "mrr")),
            lambda: neighbours(library, x_ND, y_ND),  # noqa: B023
            1 if quick else 3,
        )
        rows.append(row(f"latent_similarity (jaccard, mrr) of {m} x 300 over {library}", figure))
    return {"rows": rows}
