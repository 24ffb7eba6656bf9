"""The main table: own and stitched, with all variants and all controls, for one setting."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.quality.spaces import Spaces
from benchmarks.quality.stitched import (
    DECODERS,
    PROJECTIONS,
    Variant,
    absolute,
    guess,
    labelled_anchors,
    of_variant,
    summary,
)
from benchmarks.reporting import console, show_table


SIZES = (300, 768)
STRATEGIES = ("kmeans", "uniform")


def variants(sizes: Sequence[int] = SIZES) -> Iterator[Variant]:
    """The default with both ways to choose anchors, and cosines with uniform ones, as in the paper."""
    for k, decoder, (name, strategy) in itertools.product(sizes, DECODERS, itertools.product(PROJECTIONS, STRATEGIES)):
        if name == "default" or strategy == "uniform":
            yield Variant(name, decoder, strategy, k)


def run(spaces: Spaces, seeds: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Everything about one setting as plain Python."""
    sizes = [k for k in sizes if k <= len(spaces.free_N)]
    found: dict[str, Any] = {
        "encoders": {name: x_ND.shape[-1] for name, x_ND in spaces.x.items()},
        "rows": {split: len(getattr(spaces, f"{split}_N")) for split in ("train", "test")},
        "chance": guess(spaces),
        "seeds": seeds,
        "absolute": summary([absolute(spaces, seed) for seed in range(seeds)]),
        "labelled_anchors": {},
        "variants": [],
    }
    for k, strategy in itertools.product(sizes, STRATEGIES):
        scores = [labelled_anchors(spaces, k, strategy, seed) for seed in range(seeds)]
        found["labelled_anchors"][f"{k} {strategy}"] = [float(np.mean(scores)), float(np.std(scores))]
    for variant in variants(sizes):
        started = time.monotonic()
        runs = [of_variant(spaces, variant, seed) for seed in range(seeds)]
        figures, pairs = summary(runs), np.mean(runs, axis=0).round(4).tolist()  # encoder by decoder
        found["variants"].append(variant._asdict() | figures | {"pairs": pairs})
        told = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        console.print(f"{variant}: {told} ({time.monotonic() - started:.0f} s)")
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """Print the table of one setting."""
    rows = []
    for row in found["variants"]:
        labelled = found["labelled_anchors"][f"{row['k']} {row['strategy']}"][0]
        figures = [row[key] for key in ("own", "stitched", "worst", "ratio", "worst_ratio", "spread")]
        rows.append((f"{row['projection']}, {row['decoder']}, {row['k']} {row['strategy']}", *figures, labelled))
    rows.append(("absolute control", *(found["absolute"][key] for key in ("own", "stitched", "worst"))))
    rows.append(("chance", found["chance"], found["chance"]))
    heads = ("own", "stitched", "worst", "ratio", "worst ratio", "spread", "labelled anchors")
    show_table(f"{name}, macro-F1", heads, rows)
