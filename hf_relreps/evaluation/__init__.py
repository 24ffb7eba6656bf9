"""Look at what stitching gives: every encoder with every decoder, and two latent spaces side by side.

Importing this package loads neither matplotlib nor pandas, scikit-learn or datasets; the functions
that need them do.
"""

from hf_relreps.evaluation.latent_similarity import LatentSimilarity, latent_similarity
from hf_relreps.evaluation.stitching_matrix import StitchingMatrix, stitching_matrix


__all__ = ["LatentSimilarity", "StitchingMatrix", "latent_similarity", "stitching_matrix"]
