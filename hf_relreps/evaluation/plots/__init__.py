"""Pictures in one style, readable on light and on dark pages. Each is a matplotlib figure, saved if a path is given.

`plot_latent_spaces` (absolute and relative, side by side), `plot_anchor_coverage`, `plot_anchor_drift` and
`plot_reconstructions`; a stitching matrix draws itself: `StitchingMatrix.plot`.
"""

from hf_relreps.evaluation.plots.anchors import plot_anchor_coverage, plot_anchor_drift
from hf_relreps.evaluation.plots.heat_maps import heat_maps
from hf_relreps.evaluation.plots.latent_spaces import plot_latent_spaces
from hf_relreps.evaluation.plots.reconstructions import plot_reconstructions
from hf_relreps.evaluation.plots.style import PAPER, STYLE, save


__all__ = [
    "PAPER",
    "STYLE",
    "heat_maps",
    "plot_anchor_coverage",
    "plot_anchor_drift",
    "plot_latent_spaces",
    "plot_reconstructions",
    "save",
]
