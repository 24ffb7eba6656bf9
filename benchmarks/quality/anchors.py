"""Which anchors, how many, and what wrong pairs among them do: macro-F1 of stitched ridge decoders.

Shapes: N samples.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np

from benchmarks.quality.matching import stitched_with
from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.spaces import Spaces
from benchmarks.quality.stitched import all_relative, choose, config_of, exchanged, pair_scores, summary
from benchmarks.reporting import show_table
from hf_relreps.bootstrapping import find_mismatched
from hf_relreps.similarities import unit


ON = {
    "words": [("en", "fr"), ("it", "da"), ("fr", "it")],
    "glosses": [("minilm", "mpnet"), ("me5", "use")],
    "images": [("lite0", "lite1"), ("lite2", "lite0")],
}
SIZES = (50, 100, 200, 300, 500, 768)
STRATEGIES = ("uniform", "stratified", "kmeans", "fps")
WRONG = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
K = 300


def run(arguments: Namespace) -> dict[str, Any]:
    """Curves, and shares of wrong pairs."""
    seeds, found = (1 if arguments.quick else arguments.seeds), {}
    for name in ("words",) if arguments.quick else ON:
        spaces = SETTINGS[name](arguments)
        found[name] = {
            "curve": _curve(spaces, seeds),
            "wrong": [_wrong(spaces, name, share, seeds) for share in WRONG],
        }
        _show(name, found[name])
    return found


def _curve(spaces: Spaces, seeds: int) -> list[dict[str, Any]]:
    rows = []
    for strategy in STRATEGIES:
        for k in SIZES:
            if k <= len(spaces.free_N):
                runs = [_matrix(spaces, choose(spaces, k, strategy, seed)) for seed in range(seeds)]
                names = ("own", "stitched", "distance")
                rows.append({"strategy": strategy, "k": k} | dict(zip(names, np.mean(runs, 0).tolist(), strict=True)))
    return rows


def _matrix(spaces: Spaces, anchors_N: np.ndarray) -> tuple[float, float, float]:
    """Own, stitched, and how far test samples lie from the nearest anchor, over how far from any."""
    config = config_of("default", len(anchors_N), spaces.num_classes)
    found = summary([pair_scores(spaces, all_relative(spaces, anchors_N, config.space), "ridge", 0, config)])
    distances = []
    for x_ND in spaces.x.values():
        u_ND = unit(x_ND - x_ND[anchors_N].mean(0))
        among = 2 - 2 * u_ND[spaces.test_N] @ u_ND[anchors_N].T
        distances.append(float(among.amin(1).mean() / among.mean()))
    return found["own"], found["stitched"], float(np.mean(distances))


def _wrong(spaces: Spaces, name: str, share: float, seeds: int) -> dict[str, float]:
    runs = [_one_wrong(spaces, left, right, share, seed) for left, right in ON[name] for seed in range(seeds)]
    return {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}


def _one_wrong(spaces: Spaces, left: str, right: str, share: float, seed: int) -> dict[str, float]:
    """Some anchors' right sides change places; with all of them, and without those that are found."""
    rng = np.random.default_rng(seed)
    left_N = rng.permutation(spaces.free_N)[:K]
    wrong_K = rng.permutation(K)[: int(share * K)]
    right_N = exchanged(left_N, wrong_K)
    found = set(find_mismatched(spaces.x[left][left_N], spaces.x[right][right_N]).tolist())
    kept = np.array([i for i in range(K) if i not in found])
    truly = np.setdiff1d(np.arange(K), wrong_K)
    return {
        "share": share,
        "found": len(found & set(wrong_K.tolist())) / max(1, len(wrong_K)),
        "false_alarms": len(found - set(wrong_K.tolist())) / max(1, K - len(wrong_K)),
        "all": stitched_with(spaces, left, right, left_N, right_N),
        "kept": stitched_with(spaces, left, right, left_N[kept], right_N[kept]),
        "right_ones": stitched_with(spaces, left, right, left_N[truly], right_N[truly]),
    }


def _show(name: str, found: dict[str, Any]) -> None:
    keys = ("k", "own", "stitched", "distance")
    show_table(f"{name}: strategy", keys, [(row["strategy"], *(row[key] for key in keys)) for row in found["curve"]])
    heads = ("share", "found", "false_alarms", "all", "kept", "right_ones")
    show_table(
        heads[0], heads[1:], [[f"{row['share']:.3f}", *(row[key] for key in heads[1:])] for row in found["wrong"]]
    )
