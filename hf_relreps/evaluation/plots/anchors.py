"""Pictures of anchors: how near samples lie to them, and how they move while their encoder trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_relreps.errors import EvaluationError
from hf_relreps.evaluation.plots.style import FAINT, as_rows, colours_for, drawing, finished


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (6.4, 3.6)


def plot_anchor_coverage(coverage: Any, *, path: str | Path | None = None) -> Figure:
    """Share of the samples that have an anchor at least this near; the higher a curve, the better.

    Args:
        coverage: Result of `anchor_coverage` (N,), or a dict of several by name.
        path: File to save the picture to.

    Raises:
        EvaluationError: If there are no values.
        MissingExtraError: If matplotlib is not installed.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        from hf_relreps.evaluation import anchor_coverage, plot_anchor_coverage

        x_ND = english.encoder.encode(test["en"])
        plot_anchor_coverage(anchor_coverage(x_ND, english.encoder.projection.anchors_AD), path="coverage.png")
        ```
    """
    curves = _by_name(coverage)
    values = {name: np.sort(as_rows(near_N, f"coverage {name!r}", 1)) for name, near_N in curves.items()}
    with drawing() as plt:
        figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
        for (name, near_N), colour in zip(values.items(), colours_for(len(values)), strict=True):
            share_N = 100 * (1 - np.arange(len(near_N)) / len(near_N))
            label = f"{name + ', ' if name else ''}median {np.median(near_N):.2f}"
            ax.plot(near_N, share_N, color=colour, linewidth=1.8, label=label)
        ax.set(title="Anchor coverage", xlabel="cosine to the nearest anchor", ylabel="samples at least this near (%)")
        ax.set_ylim(0, 102)
        _finish(ax)
    return finished(figure, path)


def plot_anchor_drift(drift: Any, *, path: str | Path | None = None) -> Figure:
    """How far the anchors had moved each time that `AnchorCallback` encoded them again.

    Args:
        drift: An `AnchorCallback` after training, its `drift_`, or a dict of several of either by name.
        path: File to save the picture to.

    Raises:
        EvaluationError: If nothing was refreshed yet.
        MissingExtraError: If matplotlib is not installed.

    Example:
        ```python
        from hf_relreps.evaluation import plot_anchor_drift

        drift = [(0, 0.0), (5, 0.02), (10, 0.04)]  # or the AnchorCallback itself, after training
        plot_anchor_drift(drift, path="drift.png")
        ```
    """
    curves = {name: _pairs(one, name) for name, one in _by_name(drift).items()}
    with drawing() as plt:
        figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
        for (name, pairs), colour in zip(curves.items(), colours_for(len(curves)), strict=True):
            ax.plot(*pairs.T, color=colour, linewidth=1.5, marker="o", markersize=3, label=name)
        ax.set(
            title="Drift of the anchors",
            xlabel="training step",
            ylabel="change since the previous refresh\n(mean cosine distance)",
        )
        ax.set_ylim(bottom=0)
        _finish(ax, legend=list(curves) != [""])
    return finished(figure, path)


def _by_name(values: Any) -> Mapping[str, Any]:
    return values if isinstance(values, Mapping) else {"": values}


def _pairs(drift: Any, name: str) -> np.ndarray:
    """Steps and distances (T, 2); at step 0 the anchors are new and have not moved."""
    pairs: Sequence[tuple[int, float]] = getattr(drift, "drift_", drift)
    moved = [pair for pair in pairs if pair[0] > 0]
    if not moved:
        raise EvaluationError(
            f"The drift{f' of {name!r}' if name else ''} is empty: no anchors have been refreshed yet. Train with an "
            "AnchorCallback first, and pass that callback or its drift_."
        )
    return as_rows(moved, "drift", 2)


def _finish(ax: Axes, legend: bool = True) -> None:
    ax.grid(color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    if legend:
        ax.legend()
