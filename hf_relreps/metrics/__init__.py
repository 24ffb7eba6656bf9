"""The library's measures as `evaluate` modules, which load offline from here.

`latent_similarity` compares two latent spaces; `stitching_ratio` says how much of an own pair's score a stitched pair
keeps.
"""

from __future__ import annotations

from pathlib import Path

from hf_relreps.errors import EvaluationError


NAMES = ("latent_similarity", "stitching_ratio")


def path(name: str) -> str:
    """Path of a metric's script, for `evaluate.load`.

    Raises:
        EvaluationError: If there is no such metric.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> import evaluate
        >>> from hf_relreps.metrics import path
        >>> metric = evaluate.load(path("latent_similarity"))
        >>> x_ND = english.encoder.encode(test["en"])
        >>> round(metric.compute(predictions=x_ND, references=2 * x_ND, k=10)["cka"], 3)
        1.0
        >>> own, stitched, labels = [0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1]
        >>> metric = evaluate.load(path("stitching_ratio"))
        >>> metric.compute(predictions=stitched, own_predictions=own, references=labels, metric="accuracy")["ratio"]
        0.75

        ```
    """
    if name not in NAMES:
        raise EvaluationError(f"There is no metric {name!r}. Choose one of {', '.join(NAMES)}.")
    return str(Path(__file__).with_name(f"{name}.py"))
