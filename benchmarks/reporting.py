"""What all benchmarks share: what they print, the machine they ran on, and their figures as JSON and Markdown."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


# As wide as the tables where output is piped, and not narrower in a small window.
console = Console(highlight=False, soft_wrap=True, width=max(120, Console().width))

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "numpy", "scikit-learn", "latentis", "faiss-cpu")


@contextmanager
def quiet() -> Iterator[None]:
    """Only what the benchmark itself says; afterwards loggers, bars and warnings are as they were."""
    import datasets
    from transformers.utils import logging as transformers_logging

    levels = {logger: logger.level for logger in map(logging.getLogger, ("hf_relreps", "transformers"))}
    reading, loading = not datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        if reading:
            datasets.enable_progress_bars()
        if loading:
            transformers_logging.enable_progress_bar()


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long it took."""
    started = time.monotonic()
    yield
    console.print(f"{what}: {time.monotonic() - started:.0f} s")


def show_table(title: str, heads: Iterable[str], rows: Iterable[Sequence[Any]], digits: int = 3) -> None:
    """Print rows, whose first cell is their name; a dash for what is not there."""
    table = Table(title, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for head in heads:
        table.add_column(head, justify="right")
    for name, *cells in rows:
        table.add_row(str(name), *("-" if cell is None else _cell(cell, digits) for cell in cells))
    console.print()
    console.print(table)


@contextmanager
def picture(path: Path, columns: int, size: tuple[float, float], **how: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes side by side, in the package's style, written when they are drawn."""
    import matplotlib.pyplot as plt

    from hf_relreps.evaluation.plots import STYLE, save

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False, layout="constrained", **how)
        try:
            yield figure, axes[0]
        finally:
            plt.close(figure)
    save(figure, path)


def machine() -> dict[str, Any]:
    """What figures were measured on."""
    import torch

    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(facts: dict[str, Any]) -> str:
    """The versions of what `machine` gave, as text."""
    return f"Python {facts['python']}, {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}"


def write(path: Path, results: Any, indent: int | None = 1) -> None:
    """As JSON with figures of five digits, which is what a comparison of two runs needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(results), indent=indent, ensure_ascii=False) + "\n", "utf-8")
    console.print(f"\nWritten: {path}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers that are not whole have three digits after the point."""
    return "\n".join([table_head(heads), *map(table_row, rows)])


def table_head(heads: Sequence[str]) -> str:
    """How a table begins."""
    return f"{table_row(heads)}\n|{'---|' * len(heads)}"


def table_row(cells: Sequence[Any]) -> str:
    """One row of it."""
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
