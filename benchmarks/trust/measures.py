"""How good a number is at telling wrong answers or foreign inputs, and how far it is from the share of right answers.

Shapes: N samples.
"""

from __future__ import annotations

import numpy as np


BINS = 15  # of equal width, of the calibration error


def auroc(is_bad_N: np.ndarray, trust_N: np.ndarray) -> float:
    """How often a bad sample has less trust than a good one; ties count half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(is_bad_N, -np.asarray(trust_N)))


def risk_coverage(is_wrong_N: np.ndarray, trust_N: np.ndarray) -> float:
    """Mean share of wrong answers over all shares of the most trusted ones that are kept; less is better."""
    kept = is_wrong_N[np.argsort(-np.asarray(trust_N), kind="stable")]
    return float((np.cumsum(kept) / np.arange(1, len(kept) + 1)).mean())


def calibration_error(is_wrong_N: np.ndarray, score_N: np.ndarray) -> float:
    """Mean distance between score and share of right answers, over bins of the score."""
    score_N = np.asarray(score_N, dtype=float)
    bins_N = np.minimum((score_N * BINS).astype(int), BINS - 1)
    parts = [bins_N == one for one in range(BINS)]
    gaps = [abs((~is_wrong_N)[part].mean() - score_N[part].mean()) * part.sum() for part in parts if part.any()]
    return float(np.sum(gaps) / len(score_N))
