"""One style for all pictures, readable on light and on dark pages, and what draws and saves in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_relreps.errors import EvaluationError, MissingExtraError


if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER, INK, FRAME, EMPTY, FAINT = "#f4f4f1", "#2b2b2b", "#e4572e", "#dcdcd6", "#c2c2ba"
STYLE: Any = {  # any: the keys that matplotlib knows are a type of their own
    # An opaque neutral ground: a transparent one swallows dark text on a dark page.
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "hatch.color": FAINT,
}
# Up to seven lines or classes that colour-blind readers tell apart, and more that most readers do.
FEW = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#2b2b2b"]
MANY = [*FEW[:6], "#8a3b12", "#6a3d9a", "#b2b200", "#7f7f7f", "#00a5a5", "#e31a1c", "#33691e", "#f48fb1", "#1a237e"]


@contextmanager
def drawing() -> Iterator[ModuleType]:
    """Matplotlib's pyplot in this style.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(
            'Plots need matplotlib, which is not installed. Run: pip install "hf_relreps[plots]"'
        ) from error
    with plt.rc_context(STYLE):
        yield plt


def finished(figure: Figure, path: str | Path | None = None) -> Figure:
    """The figure, written to a file if there is a path, and closed for pyplot: a notebook then shows it once."""
    import matplotlib.pyplot as plt

    plt.close(figure)
    return figure if path is None else save(figure, path)


def save(figure: Figure, path: str | Path) -> Figure:
    """Write the figure to a file, its format told by the suffix, and give it back."""
    figure.savefig(Path(path), dpi=STYLE["savefig.dpi"], facecolor=figure.get_facecolor())
    return figure


def colours_for(count: int) -> list[str]:
    """As many colours, each another one."""
    if count <= len(MANY):
        return (FEW if count <= len(FEW) else MANY)[:count]
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in plt.get_cmap("nipy_spectral")(np.linspace(0.05, 0.95, count))]


def as_rows(values: Any, what: str, ndim: int) -> np.ndarray:
    """Values of a tensor or an array, as floats.

    Raises:
        EvaluationError: If there are none, they have another number of dimensions, or one is not finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=float)
    if array.ndim != ndim or not array.size:
        raise EvaluationError(f"{what} has shape {array.shape}, expected {ndim} dimensions and at least one value.")
    if not np.isfinite(array).all():
        raise EvaluationError(
            f"{what} holds {int((~np.isfinite(array)).sum())} values that are not finite. Drop them."
        )
    return array


def wrapped(parts: Sequence[str], width: int) -> str:
    """Parts with a dot between them, broken into lines only between parts."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 5 <= width:
            lines[-1] += f"  ·  {part}"
        else:
            lines.append(part)
    return "\n".join(lines)
