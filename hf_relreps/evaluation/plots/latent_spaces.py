"""Latent spaces side by side, as in the paper's first figure.

Shapes: N samples, D absolute size, R relative size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_relreps.errors import EvaluationError
from hf_relreps.evaluation.plots.style import FAINT, as_rows, colours_for, drawing, finished


if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 2000  # more only hide one another
OUTSIDE = 0.01  # share of points on each side that may lie beyond the frame, so that one does not shrink the others


def plot_latent_spaces(
    absolute: Mapping[str, Any],
    relative: Mapping[str, Any] | None = None,
    *,
    labels: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    shared_axes: bool = True,
    path: str | Path | None = None,
) -> Figure:
    """The same samples in the latent spaces of several encoders: absolute above, relative below (paper, figure 1).

    All spaces of a row are drawn along the two main directions of its first space: this is what a decoder that was
    trained on the first space would see of the others. Spaces of another width have no common axes, so each of them is
    drawn along its own two main directions, and its label says so.

    Args:
        absolute: Name of the encoder -> absolute embeddings (N, D) of the same samples: ``encoder.encode(samples)``.
        relative: The same names -> relative representations (N, R): ``encoder.projection(x_ND)``.
        labels: One class for each sample, a number or a name, for the colours. Without labels the colour of a sample
            shows its position in the first panel.
        class_names: Names of the classes 0, 1, ...
        shared_axes: ``False`` draws each space along its own two main directions.
        path: File to save the picture to.

    Raises:
        EvaluationError: If spaces do not hold the same number of samples, or names or labels do not fit.
        MissingExtraError: If matplotlib is not installed.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        from hf_relreps.evaluation import plot_latent_spaces

        x = {"en": english.encoder.encode(test["en"]), "fr": french.encoder.encode(test["fr"])}
        r = {"en": english.encoder.projection(x["en"]), "fr": french.encoder.projection(x["fr"])}
        plot_latent_spaces(x, r, labels=test["label"], class_names=list(names.values()), path="spaces.png")
        ```
    """
    rows = {"Absolute": absolute} if relative is None else {"Absolute": absolute, "Relative": relative}
    spaces = {
        title: {name: as_rows(x, f"{title} {name!r}", 2) for name, x in row.items()} for title, row in rows.items()
    }
    _refuse_unpaired(spaces, labels)
    n = len(next(iter(spaces["Absolute"].values())))
    places = {title: _places(row, shared_axes) for title, row in spaces.items()}
    shown = np.random.default_rng(0).permutation(n)[:MOST_POINTS]
    first = next(iter(places["Absolute"].values()))[0]
    with drawing() as plt:
        size = 0.9 + 2.6 * len(absolute) + (1.5 if labels is not None else 0), 0.4 + 2.75 * len(rows)
        figure, axes = plt.subplots(len(rows), len(absolute), figsize=size, squeeze=False, layout="constrained")
        colours, entries = _colours(labels, class_names, first, plt)
        for (title, row), line in zip(places.items(), axes, strict=True):
            for ax, (name, (xy_N2, note)) in zip(line, row.items(), strict=True):
                ax.scatter(*xy_N2[shown].T, c=[colours[i] for i in shown], s=7, alpha=0.8, linewidths=0)
                _frame(ax, [xy for xy, other in row.values() if other == note] if shared_axes else [xy_N2])
                ax.set_title(f"{title}: {name}")
                ax.set_xlabel(note, fontsize=8)
        if entries:
            handles = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in entries.values()]
            figure.legend(handles, list(entries), loc="outside right center", title="class")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return finished(figure, path)


def _refuse_unpaired(spaces: Mapping[str, Mapping[str, np.ndarray]], labels: Sequence[Any] | None) -> None:
    names = [list(row) for row in spaces.values()]
    if not names[0] or names[-1] != names[0]:
        raise EvaluationError(
            f"The absolute spaces are {names[0]}, the relative ones {names[-1]}. Pass both for the same encoders, in "
            "the same order."
        )
    counts = {f"{title} {name!r}": len(x_ND) for title, row in spaces.items() for name, x_ND in row.items()}
    counts |= {} if labels is None else {"labels": len(labels)}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise EvaluationError(f"The numbers of rows differ: {found}. Row i must be the same sample everywhere.")


def _places(spaces: Mapping[str, np.ndarray], shared: bool) -> dict[str, tuple[np.ndarray, str]]:
    """Name -> the samples in two dimensions (N, 2), and what these are."""
    (first_name, first_ND), *_ = spaces.items()
    mean_D, axes_D2, share = _main_directions(first_ND)
    found = {}
    for name, x_ND in spaces.items():
        if shared and x_ND.shape[1] == first_ND.shape[1]:
            note = f"main directions of {first_name} ({share:.0%} of its variance)"
            found[name] = ((x_ND - mean_D) @ axes_D2, note)
        else:
            own_mean_D, own_axes_D2, own_share = _main_directions(x_ND)
            found[name] = ((x_ND - own_mean_D) @ own_axes_D2, f"its own main directions ({own_share:.0%})")
    return found


def _main_directions(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean (D,), the two directions of most variance (D, 2), and their share of it."""
    mean_D = x_ND.mean(0)
    centred_ND = x_ND - mean_D
    variances_D, directions_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    axes_D2 = directions_DD[:, ::-1][:, :2]
    axes_D2 = np.pad(axes_D2, ((0, 0), (0, 2 - axes_D2.shape[1])))  # a space of one dimension
    # Eigenvectors have no sign of their own: the largest entry of each is positive.
    axes_D2 = axes_D2 * np.sign(np.take_along_axis(axes_D2, np.abs(axes_D2).argmax(0)[None], 0) + 1e-300)
    return mean_D, axes_D2, float(variances_D[::-1][:2].sum() / max(variances_D.sum(), 1e-300))


def _colours(
    labels: Sequence[Any] | None, names: Sequence[str] | None, xy_N2: np.ndarray, plt: Any
) -> tuple[list[Any], dict[str, Any]]:
    """A colour for each sample, and the entries of the legend."""
    if labels is None:
        turn_N = np.arctan2(*xy_N2.T) / (2 * np.pi) + 0.5
        return list(plt.get_cmap("hsv")(turn_N, alpha=0.8)), {}
    plain = [label.item() if hasattr(label, "item") else label for label in labels]
    classes = sorted(set(plain), key=lambda label: (isinstance(label, str), label))
    unnamed = [label for label in classes if names is not None and not 0 <= label < len(names)]
    if unnamed:
        raise EvaluationError(
            f"labels contain {unnamed[0]!r}, but class_names names only classes 0 to {len(names or ()) - 1}. Name all "
            "classes."
        )
    of_class = dict(zip(classes, colours_for(len(classes)), strict=True))
    return [of_class[label] for label in plain], {
        str(label if names is None else names[label]): colour for label, colour in of_class.items()
    }


def _frame(ax: Any, drawn: list[np.ndarray]) -> None:
    """Equal scales, limits that hold nearly all points of all panels that share axes, and no numbers: no unit."""
    both_N2 = np.concatenate(drawn)
    low_2, high_2 = np.quantile(both_N2, [OUTSIDE, 1 - OUTSIDE], axis=0)
    half = 0.55 * float((high_2 - low_2).max() or 1.0)
    centre_2 = (low_2 + high_2) / 2
    ax.set(xlim=(centre_2[0] - half, centre_2[0] + half), ylim=(centre_2[1] - half, centre_2[1] + half))
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set(visible=True, color=FAINT)
