"""Few known pairs and two unpaired pools: how many of the found pairs are right, and what they are worth stitched.

Pools hold the same meanings in another order ("same"), or share half of them ("half").
Shapes: N samples.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.spaces import Spaces
from benchmarks.quality.stitched import config_of, f1, fit_ridge, relative
from benchmarks.reporting import console
from hf_relreps.bootstrapping import bootstrap


ON = {"words": [("en", "fr"), ("it", "da"), ("fr", "it")], "glosses": [("minilm", "mpnet"), ("me5", "use")],
      "images": [("lite0", "lite1"), ("lite2", "lite0")]}  # fmt: skip
KNOWN = (10, 15, 25, 50)
K = 300
POOL = 1000  # meanings, of which pools that share half of them hold two thirds each


@dataclass(frozen=True)
class Pools:
    """Rows of the known pairs and of the two pools."""

    known_N: np.ndarray
    left_N: np.ndarray
    right_N: np.ndarray

    @classmethod
    def of(cls, rows_N: np.ndarray, known: int, overlap: str, seed: int) -> Pools:
        """Drawn at random."""
        rng = np.random.default_rng(seed)
        rows_N = rng.permutation(rows_N)
        known_N, rest_N = rows_N[:known], rows_N[known : known + POOL]
        if overlap == "same":
            return cls(known_N, rest_N, rng.permutation(rest_N))
        third = len(rest_N) // 3
        return cls(known_N, rest_N[: 2 * third], rng.permutation(np.r_[rest_N[:third], rest_N[2 * third :]]))


def run(arguments: Namespace) -> dict[str, Any]:
    """All settings whose encoders are there."""
    seeds, rows = (1 if arguments.quick else arguments.seeds), []
    for name in ("words",) if arguments.quick else ON:
        spaces = SETTINGS[name](arguments)
        for known in KNOWN:
            for overlap in ("same", "half"):
                runs = [
                    _one(spaces, left, right, known, overlap, seed)
                    for left, right in ON[name]
                    for seed in range(seeds)
                ]
                rows.append({"setting": name, "known": known, "pools": overlap, "runs": runs})
                console.print(name, known, overlap, _means(runs))
    _show(rows)
    return {"rows": rows, "pool": POOL, "k": K}


def _one(spaces: Spaces, left: str, right: str, known: int, overlap: str, seed: int) -> dict[str, float]:
    pools = Pools.of(spaces.free_N, known, overlap, seed)
    x, y = spaces.x[left], spaces.x[right]
    s_N, l_N, r_N = pools.known_N, pools.left_N, pools.right_N
    pairs, report = bootstrap(x[l_N], y[r_N], x[s_N], y[s_N], K - known)
    found = np.r_[s_N, l_N[pairs.left_P]], np.r_[s_N, r_N[pairs.right_P]]
    true_N = np.random.default_rng(seed).permutation(spaces.free_N)[:K]
    return {
        "precision": float((l_N[pairs.left_P] == r_N[pairs.right_P]).mean()),
        "mutual": report.mutual,
        "by_chance": report.mutual_by_chance,
        "trusted": float(report.trusted),
        "seeds_only": stitched_with(spaces, left, right, s_N, s_N),
        "bootstrapped": stitched_with(spaces, left, right, *found),
        "true": stitched_with(spaces, left, right, true_N, true_N),
    }


def stitched_with(spaces: Spaces, left: str, right: str, left_N: np.ndarray, right_N: np.ndarray) -> float:
    """Macro-F1 of the left encoder's ridge decoder behind the right one."""
    config = config_of("default", len(left_N), spaces.num_classes)
    rows = spaces.train_N, spaces.test_N
    r = [
        relative(spaces.x[name][row], spaces.x[name][torch.as_tensor(a)], config)
        for name, row, a in zip((left, right), rows, (left_N, right_N), strict=True)
    ]
    decode = fit_ridge(r[0], spaces.labels_N[rows[0]], config, 0)
    return f1(spaces.labels_N[rows[1]], decode(r[1]))


def _means(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([run[name] for run in runs])), 3) for name in runs[0]}


def _show(rows: list[dict[str, Any]]) -> None:
    names = ("precision", "mutual", "by_chance", "trusted", "seeds_only", "bootstrapped", "true")
    table = Table("setting", "known", "pools", *names, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        figures = _means(row["runs"])
        table.add_row(row["setting"], str(row["known"]), row["pools"], *(f"{figures[name]:.2f}" for name in names))
    console.print(table)
