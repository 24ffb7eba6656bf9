"""Images as they were and as decoders draw them.

Shapes: N images, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_relreps.errors import EvaluationError
from hf_relreps.evaluation.plots.style import PAPER, as_rows, drawing, finished


if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 0.08  # between images, as a share of their side


def plot_reconstructions(
    rows: Mapping[str, Any],
    *,
    count: int = 8,
    title: str = "Reconstructions",
    path: str | Path | None = None,
) -> Figure:
    """A grid of images, one row for each way to reconstruct them, with its mean squared error to the first row.

    Args:
        rows: Name -> images (N, C, H, W) or (N, H, W), pixels in [0, 1]. The first row holds the originals.
        count: How many images of each row are shown, from the first on. Errors are those of all N.
        title: Title of the picture.
        path: File to save the picture to.

    Raises:
        EvaluationError: If the rows do not hold the same number of images of one size.
        MissingExtraError: If matplotlib is not installed.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        from hf_relreps.evaluation import plot_reconstructions

        images_NCHW = torch.rand(8, 3, 16, 16)  # and what two decoders make of them
        rows = {"original": images_NCHW, "own": images_NCHW * 0.9, "stitched": images_NCHW * 0.8}
        plot_reconstructions(rows, path="reconstructions.png")
        ```
    """
    images = {name: _with_channels(values, name) for name, values in rows.items()}
    shapes = {name: values.shape for name, values in images.items()}
    if len(set(shapes.values())) != 1:
        raise EvaluationError(f"The rows differ in shape: {shapes}. Pass reconstructions of the same images.")
    (original_NHWC, *_) = images.values()
    errors = {name: float(np.square(values - original_NHWC).mean()) for name, values in images.items()}
    n, height, width, _ = original_NHWC.shape
    count = min(count, n)
    with drawing() as plt:
        figure, ax = plt.subplots(figsize=(1.6 + 0.85 * count, 0.55 + 0.85 * len(images)), layout="constrained")
        page, centres = _mosaic([values[:count] for values in images.values()])
        ax.imshow(page, interpolation="nearest")
        first, *others = images
        ax.set_yticks(centres, [first, *(f"{name}\nMSE {_short(errors[name])}" for name in others)])
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    return finished(figure, path)


def _with_channels(values: Any, name: str) -> np.ndarray:
    """Images (N, H, W, 3)."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    array = np.asarray(values)
    images_NCHW = as_rows(array[:, None] if array.ndim == 3 else array, f"row {name!r}", 4)
    channels = images_NCHW.shape[1]
    if channels not in (1, 3):
        raise EvaluationError(f"Row {name!r} has images of {channels} channels, expected 1 or 3: (N, C, H, W).")
    return np.repeat(images_NCHW, 3 // channels, axis=1).transpose(0, 2, 3, 1)


def _mosaic(strips: list[np.ndarray]) -> tuple[np.ndarray, list[float]]:
    """Strips of images (count, H, W, 3), one below the other with gaps, and the height of each middle."""
    from matplotlib.colors import to_rgb

    count, height, width, _ = strips[0].shape
    scale = -(-64 // min(height, width))  # small images are enlarged, so that a gap of a few pixels is narrow
    height, width, gap = scale * height, scale * width, max(1, round(GAP * scale * min(height, width)))
    page = np.empty(((height + gap) * len(strips) - gap, (width + gap) * count - gap, 3))
    page[:] = to_rgb(PAPER)
    for row, images in enumerate(strips):
        for column, image_HWC in enumerate(np.clip(images, 0, 1)):
            top, left = (height + gap) * row, (width + gap) * column
            page[top : top + height, left : left + width] = image_HWC.repeat(scale, 0).repeat(scale, 1)
    return page, [(height + gap) * row + height / 2 for row in range(len(strips))]


def _short(error: float) -> str:
    return f"{error:.4f}" if error < 0.1 else f"{error:.3f}"
