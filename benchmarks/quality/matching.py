"""Few known pairs, or none, and two unpaired pools: ways to match them, which pairs are right, what they are worth.

The library's way (`hf_relreps.bootstrapping`) beside mutual nearest neighbours alone, Sinkhorn's soft matching in
their place, anchors learned by gradient ("Bootstrapping Parallel Anchors for Relative Representations", 2023), and for
no pairs at all matched centroids ("mini-vec2vec", 2025). Pools hold the same meanings in another order ("same"), share
half of them ("half"), or none ("none").
Shapes: N samples of the left pool, M of the right one, D absolute sizes, S known pairs, A anchors, P pairs, C
clusters.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.spaces import Spaces
from benchmarks.quality.stitched import config_of, f1, fit_ridge, guess, relative
from benchmarks.reporting import console
from hf_relreps.bootstrapping import Pairs, assign, balance, describe, grow, match_pools, pair_nearest
from hf_relreps.similarities import unit


ON = {
    "words": [("en", "fr"), ("it", "da"), ("fr", "it")],
    "glosses": [("minilm", "mpnet"), ("me5", "use"), ("use", "minilm")],
    "images": [("lite0", "lite1"), ("lite2", "lite0"), ("lite1", "lite2")],
    "text": [("minilm", "use"), ("use", "me5"), ("me5", "minilm")],
}
KNOWN = (5, 10, 15, 25, 50)
OVERLAPS = ("same", "half", "none")
LEARNED = (10, 50)  # numbers of known pairs with which anchors are also learned, which is slow
WORTH = 0.9  # of the score with true pairs: a match that gives less is wrong
SHUFFLED = (("same", 10), ("same", 25))  # where known pairs are also mixed up
K = 300
POOL = 500  # meanings: pools that share half of them hold two thirds of them each, and those that share none a half
CLUSTERS, DRAWS, RESTARTS = (15, 20, 25), 12, 10
LEARNING_STEPS, RATE, REMATCHED = 100, 0.02, 10  # of learned anchors; pairs are matched again every so many steps


@dataclass(frozen=True)
class Task:
    """Two encoders, the rows of the known pairs, and the two pools."""

    spaces: Spaces
    left: str
    right: str
    known_S: np.ndarray
    left_N: np.ndarray
    right_M: np.ndarray
    overlap: str
    seed: int

    @classmethod
    def of(cls, spaces: Spaces, pair: tuple[str, str], known: int, overlap: str, seed: int) -> Task:
        """Drawn at random; the pools are the same ones for every number of known pairs."""
        rng = np.random.default_rng(seed)
        rows_N = rng.permutation(spaces.free_N)
        known_S, rest_N = rows_N[:known], rows_N[max(KNOWN) :][:POOL]
        third, half = len(rest_N) // 3, len(rest_N) // 2
        left_N, right_M = {
            "same": (rest_N, rest_N),
            "half": (rest_N[: 2 * third], np.r_[rest_N[:third], rest_N[2 * third :]]),
            "none": (rest_N[:half], rest_N[half:]),
        }[overlap]
        return cls(spaces, *pair, known_S, left_N, rng.permutation(right_M), overlap, seed)

    @property
    def embedded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Left pool, right pool, and the known pairs on either side."""
        x, y = self.spaces.x[self.left], self.spaces.x[self.right]
        return x[self.left_N], y[self.right_M], x[self.known_S], y[self.known_S]

    def found(self, pairs: Pairs) -> dict[str, float]:
        """How many of the pairs are right or of one class, and what they are worth together with the known ones."""
        left_P, right_P = self.left_N[pairs.left_P], self.right_M[pairs.right_P]
        labels_N = self.spaces.labels_N
        return {
            "precision": float((left_P == right_P).mean()),
            "same_class": float((labels_N[left_P] == labels_N[right_P]).mean()),
            "stitched": self.stitched(np.r_[self.known_S, left_P], np.r_[self.known_S, right_P]),
        }

    def stitched(self, left_A: np.ndarray, right_A: np.ndarray | Tensor) -> float:
        """Macro-F1 of the left encoder's ridge decoder behind the right one."""
        return stitched_with(self.spaces, self.left, self.right, left_A, right_A)

    def own(self, left_A: np.ndarray) -> float:
        """The same behind the left encoder."""
        return stitched_with(self.spaces, self.left, self.left, left_A, left_A)


def stitched_with(spaces: Spaces, left: str, right: str, left_A: np.ndarray, right_A: np.ndarray | Tensor) -> float:
    """Macro-F1 of the left encoder's ridge decoder behind the right one, whose anchors are rows or embeddings."""
    config = config_of("default", len(left_A), spaces.num_classes)
    x, y = spaces.x[left], spaces.x[right]
    right_AD = right_A if isinstance(right_A, Tensor) else y[right_A]
    r_NR = relative(x[spaces.train_N], x[left_A], config.space)
    decode = fit_ridge(r_NR, spaces.labels_N[spaces.train_N], config, 0)
    return f1(spaces.labels_N[spaces.test_N], decode(relative(y[spaces.test_N], right_AD, config.space)))


def run(arguments: Namespace) -> dict[str, Any]:
    """All settings whose encoders are there."""
    seeds, names = (1, ("words",)) if arguments.quick else (arguments.seeds, tuple(ON))
    rows: list[dict[str, Any]] = []
    controls: dict[str, list[dict[str, float]]] = {}
    for name in names:
        spaces = SETTINGS[name](arguments)
        controls[name] = controls_of(name, spaces, seeds)
        rows += rows_of(name, spaces, seeds)
    return {"rows": rows, "controls": controls, "trust": trust_of(rows, controls), "pool": POOL, "k": K}


def rows_of(name: str, spaces: Spaces, seeds: int) -> Iterator[dict[str, Any]]:
    """Of one setting; each seed takes another pair of encoders."""
    for known in (0, *KNOWN):
        for overlap in OVERLAPS:
            tasks = [Task.of(spaces, ON[name][seed % len(ON[name])], known, overlap, seed) for seed in range(seeds)]
            runs = [_without_pairs(task) if known == 0 else _with_pairs(task) for task in tasks]
            scores = ", ".join(f"{way} {score:.3f}" for way, score in _means(runs).items())
            console.print(f"{name}, {known} pairs, {overlap}: {scores}")
            yield {"setting": name, "known": known, "pools": overlap, "runs": runs}


def controls_of(name: str, spaces: Spaces, seeds: int) -> list[dict[str, float]]:
    """For each seed: own and stitched scores with so many true pairs as are grown, and chance."""
    found = []
    for seed in range(seeds):
        task = Task.of(spaces, ON[name][seed % len(ON[name])], 0, "same", seed)
        true_A = np.random.default_rng(seed).permutation(spaces.free_N)[:K]
        found.append({"own": task.own(true_A), "true": task.stitched(true_A, true_A), "chance": guess(spaces)})
    return found


def trust_of(rows: list[dict[str, Any]], controls: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """How often the library believes a match that is wrong, and refuses one that is right, by setting and pools."""
    found = []
    for name in controls:
        for overlap in OVERLAPS:
            runs = [
                (run["library"]["trusted"], run["library"]["stitched"] >= WORTH * control["true"])
                for row in rows
                if row["setting"] == name and row["pools"] == overlap and row["known"]
                for run, control in zip(row["runs"], controls[name], strict=True)
            ]
            counts = {
                "right": sum(right for _, right in runs),
                "trusted": sum(trusted for trusted, _ in runs),
                "false_trust": sum(trusted and not right for trusted, right in runs),
                "false_refusal": sum(right and not trusted for trusted, right in runs),
            }
            found.append({"setting": name, "pools": overlap, "runs": len(runs)} | counts)
    return found


def _with_pairs(task: Task) -> dict[str, Any]:
    x_ND, y_MD, left_SD, right_SD = task.embedded
    k, known = K - len(task.known_S), len(task.known_S)
    pairs, report = match_pools(x_ND, y_MD, left_SD, right_SD, k)
    found = {
        "library": task.found(pairs) | report.to_dict(),
        "neighbours": task.found(grow(x_ND, y_MD, left_SD, right_SD, k)),
        "sinkhorn": task.found(grown_softly(x_ND, y_MD, left_SD, right_SD, k)),
        "pairs_only": {"stitched": task.stitched(task.known_S, task.known_S)},
    }
    if known in LEARNED:
        found["learned"] = {"stitched": _learned(task)}
    if (task.overlap, known) in SHUFFLED:
        found["shuffled"] = match_pools(x_ND, y_MD, left_SD, right_SD.flip(0), k)[1].to_dict()
    return found


def _without_pairs(task: Task) -> dict[str, Any]:
    x_ND, y_MD, left_SD, right_SD = task.embedded
    alike_NM = centroids_matched(x_ND, y_MD, task.seed)
    grown = grow(x_ND, y_MD, left_SD, right_SD, K, pair_nearest(alike_NM))
    assigned = assign(x_ND, y_MD, left_SD, right_SD, start_NM=alike_NM).first(K)
    return {"centroids, grown": task.found(grown), "centroids, assigned": task.found(assigned)}


# -- the other ways


def grown_softly(x_ND: Tensor, y_MD: Tensor, left_SD: Tensor, right_SD: Tensor, k: int) -> Pairs:
    """The library's growth where partners are those of a balanced, soft assignment."""
    return grow(x_ND, y_MD, left_SD, right_SD, k, scale=lambda alike_NM: balance(alike_NM).log())


def _learned(task: Task) -> float:
    x_ND, y_MD, left_SD, right_SD = task.embedded
    rng = np.random.default_rng(task.seed)
    chosen_A, start_A = (rng.permutation(len(pool))[: K - len(left_SD)] for pool in (x_ND, y_MD))
    count = min(len(chosen_A), len(start_A))
    anchors_AD = torch.cat([left_SD, x_ND[chosen_A[:count]]])
    learned_AD = learned_anchors(x_ND, y_MD, anchors_AD, right_SD, y_MD[start_A[:count]])
    return task.stitched(np.r_[task.known_S, task.left_N[chosen_A[:count]]], learned_AD)


def learned_anchors(x_ND: Tensor, y_MD: Tensor, left_AD: Tensor, right_SD: Tensor, start_AD: Tensor) -> Tensor:
    """Right anchors, the known ones in front and the others free unit vectors, under which both pools look alike.

    The published objective; its loop was not published, so steps, rate and start are ours.
    """
    means = x_ND.mean(0), y_MD.mean(0)
    x_ND, left_AD = unit(x_ND - means[0]), unit(left_AD - means[0])
    length = (y_MD - means[1]).norm(dim=1).mean()
    y_MD, right_SD = unit(y_MD - means[1]), unit(right_SD - means[1])
    free_AD = unit(start_AD - means[1]).requires_grad_()
    optimizer = torch.optim.Adam([free_AD], lr=RATE)
    wanted_NA = x_ND @ left_AD.T
    for step in range(LEARNING_STEPS):
        seen_MA = y_MD @ torch.cat([right_SD, unit(free_AD)]).T
        if step % REMATCHED == 0:
            used = len(right_SD) if step == 0 else seen_MA.shape[1]
            alike_MN = unit(seen_MA.detach()[:, :used]) @ unit(wanted_NA[:, :used]).T
            partner_M = balance(alike_MN).argmax(1)
        optimizer.zero_grad()
        (seen_MA - wanted_NA[partner_M]).square().sum(1).mean().backward()
        optimizer.step()
    return torch.cat([right_SD, unit(free_AD.detach())]) * length + means[1]


def centroids_matched(x_ND: Tensor, y_MD: Tensor, seed: int) -> Tensor:
    """How alike rows are (N, M) by matched centroids: the mean over several clusterings of either pool."""
    from scipy.optimize import quadratic_assignment

    rng = np.random.default_rng(seed)
    alike_NM = torch.zeros(len(x_ND), len(y_MD))
    for draw in range(DRAWS):
        clusters = CLUSTERS[draw % len(CLUSTERS)]
        centroids = [_centroids(pool, clusters, int(rng.integers(1 << 31))) for pool in (x_ND, y_MD)]
        within = [unit(c_CD - c_CD.mean(0)) for c_CD in centroids]
        kernels = [(c_CD @ c_CD.T).double().numpy() for c_CD in within]
        options = {"maximize": True, "P0": "randomized", "rng": rng}
        results = [quadratic_assignment(*kernels, method="faq", options=options) for _ in range(RESTARTS)]
        best = max(results, key=lambda result: result.fun)
        alike_NM += describe(x_ND, centroids[0]) @ describe(y_MD, centroids[1][torch.as_tensor(best.col_ind)]).T
    return alike_NM / DRAWS


def _centroids(x_ND: Tensor, clusters: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans

    unit_ND = unit(x_ND - x_ND.mean(0)).numpy()
    return torch.from_numpy(KMeans(clusters, n_init=1, max_iter=30, random_state=seed).fit(unit_ND).cluster_centers_)


def _means(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Stitched score of each way."""
    ways = [way for way, found in runs[0].items() if isinstance(found, dict) and "stitched" in found]
    return {way: round(float(np.mean([run[way]["stitched"] for run in runs])), 3) for way in ways}
