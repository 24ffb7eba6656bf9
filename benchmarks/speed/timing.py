"""Ratios of alternating runs: wall time, and processor time, which other work on the same cores disturbs less."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Pairs:
    """Seconds of runs that alternate, in one process."""

    wall: list[tuple[float, float]] = field(default_factory=list)
    processor: list[tuple[float, float]] = field(default_factory=list)

    def add(self, measured: tuple[float, float], reference: tuple[float, float]) -> None:
        """One pair: wall and processor time of either side, as `clock` gives them."""
        self.wall.append((measured[0], reference[0]))
        self.processor.append((measured[1], reference[1]))

    def to_dict(self) -> dict[str, Any]:
        """Medians of both sides, and the spread of their ratio over the pairs."""
        return {"wall": _summary(self.wall), "processor": _summary(self.processor), "pairs": len(self.wall)}


def _summary(seconds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    measured, reference = np.array(seconds).T
    ratios = measured / reference
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "ratio": float(median),
        "quartiles": [float(low), float(high)],
        "range": [float(ratios.min()), float(ratios.max())],
        "seconds": [float(np.median(measured)), float(np.median(reference))],
    }


def finish() -> None:
    """Wait for what an accelerator still computes; nothing where there is none."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def clock(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall time and processor time of all threads, in seconds."""
    finish()
    wall, processor = time.perf_counter(), time.process_time()
    run()
    finish()
    return time.perf_counter() - wall, time.process_time() - processor


def paired(measured: Callable[[], Any], reference: Callable[[], Any], pairs: int) -> dict[str, Any]:
    """`measured` over `reference`, after one run of each to warm up; who goes first alternates."""
    measured(), reference()
    found = Pairs()
    for i in range(pairs):
        gc.collect()
        if i % 2:
            second, first = clock(reference), clock(measured)
        else:
            first, second = clock(measured), clock(reference)
        found.add(first, second)
    return found.to_dict()


def row(what: str, figure: dict[str, Any], goal: str = "", note: str = "") -> dict[str, Any]:
    """One line of the table: what was measured, its ratio, what it should be, and a remark."""
    return {"what": what, **figure, "goal": goal, "note": note}
