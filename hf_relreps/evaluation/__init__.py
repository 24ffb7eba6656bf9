"""Look at what stitching gives: every encoder with every decoder, two latent spaces side by side, pictures of both.

Importing this package loads neither matplotlib nor pandas, scikit-learn or datasets; the functions
that need them do.
"""

from hf_relreps.evaluation.anchor_coverage import anchor_coverage
from hf_relreps.evaluation.latent_similarity import LatentSimilarity, latent_similarity
from hf_relreps.evaluation.plots import (
    plot_anchor_coverage,
    plot_anchor_drift,
    plot_latent_spaces,
    plot_reconstructions,
)
from hf_relreps.evaluation.stitching_matrix import StitchingMatrix, stitching_matrix
from hf_relreps.evaluation.tokens import entity_f1


__all__ = [
    "LatentSimilarity",
    "StitchingMatrix",
    "anchor_coverage",
    "entity_f1",
    "latent_similarity",
    "plot_anchor_coverage",
    "plot_anchor_drift",
    "plot_latent_spaces",
    "plot_reconstructions",
    "stitching_matrix",
]
