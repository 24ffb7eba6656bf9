"""Tables of numbers side by side, as heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_relreps.evaluation.plots.style import EMPTY, FRAME, PAPER, drawing, finished, wrapped


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "YlGnBu"
# In letters: names above the first are slanted, above the second numbered or upright, above the third shortened.
LONGEST_FLAT, LONGEST_SLANTED, LONGEST_NAME = 6, 16, 40
TURNS: dict[str, dict[str, Any]] = {
    "flat": {},
    "slanted": {"rotation": 40, "ha": "right", "rotation_mode": "anchor"},
    "upright": {"rotation": 90},
}
LETTER = 0.075  # width of a letter in inches


def heat_maps(
    panels: Mapping[str, np.ndarray],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    framed: np.ndarray,
    row_label: str,
    column_label: str,
    colour_label: str,
    notes: Sequence[str] = (),
    greater_is_better: bool = True,
) -> Figure:
    """Tables of numbers side by side, coloured on one scale; NaN cells are hatched.

    Args:
        panels: Title -> values (rows, columns).
        rows: Names of the rows.
        columns: Names of the columns.
        framed: Which cells get a frame, (rows, columns).
        row_label: What the rows are.
        column_label: What the columns are.
        colour_label: What the colours measure.
        notes: What stands below the panels, one after the other.
        greater_is_better: ``False`` turns the colours round, so that dark is good either way.
    """
    names = _Names.of(rows, columns)
    low, high = _limits(list(panels.values()), greater_is_better)
    with drawing() as plt:
        figure, axes = plt.subplots(
            1, len(panels), figsize=names.size(len(panels)), sharey=True, squeeze=False, layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        image = None
        for ax, (title, values) in zip(axes[0], panels.items(), strict=True):
            colours = plt.get_cmap(COLOURS if greater_is_better else f"{COLOURS}_r")
            image = _heat_map(ax, values, framed, colours, low, high)
            _label(ax, title, names, column_label)
        axes[0, 0].set_ylabel(row_label)
        figure.colorbar(image, ax=axes, label=colour_label, shrink=0.9, aspect=25, pad=0.02)
        if notes:
            figure.supxlabel(wrapped(notes, width=int(12 * figure.get_figwidth())), fontsize=9)
    return finished(figure)


def _heat_map(ax: Axes, values: np.ndarray, framed: np.ndarray, colours: Any, low: float, high: float) -> Any:
    from matplotlib.patches import Rectangle

    image = ax.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high, aspect="auto")
    size = _cell_font_size(values.shape[1])
    for (row, column), value in np.ndenumerate(values):
        corner = (column - 0.5, row - 0.5)
        if np.isnan(value):
            ax.add_patch(Rectangle(corner, 1, 1, facecolor=EMPTY, hatch="////", edgecolor="none", linewidth=0))
        else:
            ink = "white" if _luminance(*image.to_rgba(value)[:3]) < 0.45 else "black"
            ax.text(column, row, _short_number(value), ha="center", va="center", color=ink, fontsize=size)
        if framed[row, column]:
            inner = (column - 0.45, row - 0.45)
            ax.add_patch(Rectangle(inner, 0.9, 0.9, fill=False, edgecolor=FRAME, linewidth=2))
    return image


def _label(ax: Axes, title: str, names: _Names, column_label: str) -> None:
    ax.set_xticks(range(len(names.columns)), names.columns, **TURNS[names.turn])
    ax.set_yticks(range(len(names.rows)), names.rows)
    # Lines between the cells, in the colour of the ground.
    ax.set_xticks(np.arange(len(names.columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(names.rows) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color=PAPER, linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.set_xlabel(column_label)
    ax.set_title(title)
    for spine in ax.spines.values():
        spine.set_visible(False)


@dataclass(frozen=True)
class _Names:
    """Names as they are drawn, and how those of the columns are turned."""

    rows: list[str]
    columns: list[str]
    turn: str

    @classmethod
    def of(cls, rows: Sequence[str], columns: Sequence[str]) -> _Names:
        short_rows, short_columns = [_shorten(name) for name in rows], [_shorten(name) for name in columns]
        longest = max(map(len, columns))
        if longest <= LONGEST_FLAT:
            return cls(short_rows, short_columns, "flat")
        if longest <= LONGEST_SLANTED:
            return cls(short_rows, short_columns, "slanted")
        if list(rows) == list(columns):  # long names stand once, at the rows; the columns give their numbers
            numbered = [f"{name}   {number}" for number, name in enumerate(short_rows, 1)]
            return cls(numbered, [str(number) for number in range(1, len(rows) + 1)], "flat")
        return cls(short_rows, short_columns, "upright")

    def size(self, panels: int) -> tuple[float, float]:
        """Width and height of a figure that holds them, in inches."""
        share = {"flat": 0.0, "slanted": 0.65, "upright": 1.0}[self.turn]
        width = panels * max(2.4, 0.72 * len(self.columns)) + LETTER * max(map(len, self.rows)) + 1.8
        height = max(1.4, 0.55 * len(self.rows)) + LETTER * share * max(map(len, self.columns)) + 1.7
        return width, height


def _cell_font_size(columns: int) -> float:
    return 10 if columns <= 8 else max(6, 10 - 0.3 * (columns - 8))


def _limits(panels: Sequence[np.ndarray], shares: bool) -> tuple[float, float]:
    """0 to 1 for shares, so that pictures compare; else from 0, or from the lowest value, to the highest."""
    values = np.concatenate([panel[~np.isnan(panel)] for panel in panels])
    low, high = min(0.0, float(values.min())), float(values.max())
    return (low, 1.0) if high <= 1 and (shares or high == low) else (low, high)


def _luminance(red: float, green: float, blue: float) -> float:
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _short_number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"


def _shorten(name: str) -> str:
    """The name, or its two ends: repository ids of one owner differ at the end, ids of several at the start."""
    if len(name) <= LONGEST_NAME:
        return name
    head = LONGEST_NAME // 3
    return f"{name[:head]}…{name[head + 1 - LONGEST_NAME :]}"
