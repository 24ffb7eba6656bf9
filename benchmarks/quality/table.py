"""The main table: own and stitched, with all variants and all controls, for one setting."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.quality.spaces import Spaces
from benchmarks.quality.stitched import (
    DECODERS,
    PROJECTIONS,
    Cell,
    Variant,
    absolute_cells,
    cells,
    guess,
    labelled_anchors,
)
from benchmarks.reporting import console


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
        "rows": {split: len(getattr(spaces, f"{split}_N")) for split in ("train", "val", "test", "free")},
        "classes": spaces.num_classes,
        "chance": guess(spaces),
        "seeds": seeds,
        "absolute": summary(repeated(lambda seed: absolute_cells(spaces, seed), seeds)),
        "labelled_anchors": {},
        "variants": [],
    }
    for k, strategy in itertools.product(sizes, STRATEGIES):
        scores = [labelled_anchors(spaces, k, strategy, seed) for seed in range(seeds)]
        found["labelled_anchors"][f"{k} {strategy}"] = [float(np.mean(scores)), float(np.std(scores))]
    for variant in variants(sizes):
        started = time.monotonic()
        runs = repeated(lambda seed, v=variant: cells(spaces, v, seed), seeds)
        found["variants"].append(dataclasses.asdict(variant) | summary(runs) | {"cells": _plain(runs)})
        figures = {key: value for key, value in found["variants"][-1].items() if isinstance(value, float)}
        console.print(
            f"{variant}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()),
            f"({time.monotonic() - started:.0f} s)",
        )
    return found


def repeated(measure: Callable[[int], list[Cell]], seeds: int) -> list[list[Cell]]:
    """The cells of each seed."""
    return [measure(seed) for seed in range(seeds)]


def summary(runs: list[list[Cell]]) -> dict[str, Any]:
    """Own, stitched, the worst pair by its mean over seeds, and the deviation of stitched over seeds."""
    own = [[cell.f1 for cell in run if cell.encoder == cell.decoder] for run in runs]
    stitched = [[cell.f1 for cell in run if cell.encoder != cell.decoder] for run in runs]
    if not stitched[0]:
        return {"own": float(np.mean(own)), "stitched": None, "worst": None, "ratio": None}
    pairs = np.mean(stitched, axis=0)
    own_of = {cell.decoder: np.mean([c.f1 for run in runs for c in run if c.encoder == c.decoder == cell.decoder])
              for cell in runs[0]}  # fmt: skip
    names = [cell.decoder for cell in runs[0] if cell.encoder != cell.decoder]
    return {
        "own": float(np.mean(own)),
        "stitched": float(np.mean(stitched)),
        "worst": float(pairs.min()),
        "spread": float(np.std([np.mean(run) for run in stitched])),
        "ratio": float(np.mean(stitched) / np.mean(own)),
        "worst_ratio": float(min(pair / own_of[name] for pair, name in zip(pairs, names, strict=True))),
        "val_ratio": float(
            np.mean([c.val_f1 for run in runs for c in run if c.encoder != c.decoder])
            / np.mean([c.val_f1 for run in runs for c in run if c.encoder == c.decoder])
        ),
    }


def _plain(runs: list[list[Cell]]) -> list[list[Any]]:
    """Rows of seed and the cell's fields, in the order of `Cell`."""
    return [[seed, *dataclasses.astuple(cell)] for seed, run in enumerate(runs) for cell in run]


def show(name: str, found: dict[str, Any]) -> None:
    """Print the table of one setting."""
    table = Table(f"{name}, macro-F1", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for head in ("own", "stitched", "worst", "ratio", "worst ratio", "spread", "labelled anchors"):
        table.add_column(head, justify="right")
    for row in found["variants"]:
        labelled = found["labelled_anchors"][f"{row['k']} {row['strategy']}"][0]
        figures = [row[key] for key in ("own", "stitched", "worst", "ratio", "worst_ratio", "spread")]
        table.add_row(f"{row['projection']}, {row['decoder']}, {row['k']} {row['strategy']}",
                      *(f"{figure:.3f}" for figure in (*figures, labelled)))  # fmt: skip
    absolute = found["absolute"]
    cells_ = [absolute[key] for key in ("own", "stitched", "worst")]
    table.add_row("absolute control", *("-" if cell is None else f"{cell:.3f}" for cell in cells_))
    table.add_row("chance", f"{found['chance']:.3f}", f"{found['chance']:.3f}")
    console.print()
    console.print(table)
