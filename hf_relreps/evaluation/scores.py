"""Scores by name, and what guessing would reach.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hf_relreps.errors import EvaluationError


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
RANDOM_DRAWS = 20

Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Score:
    """A number that compares labels with predictions.

    Attributes:
        name: Name as in `SCORES`, or the name of a caller's own function.
        title: Name as a reader sees it.
        function: Called with labels and predictions: class numbers (N,), 0/1 columns (N, C) or values (N,).
        greater_is_better: ``False`` for errors.
        problem_types: For which `problem_type` it has a meaning.
    """

    name: str
    title: str
    function: Metric
    greater_is_better: bool = True
    problem_types: tuple[str, ...] = (SINGLE, MULTI, REGRESSION)

    def __call__(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        """The score of these predictions, which must be a finite number."""
        value = float(self.function(labels, predictions))
        if not np.isfinite(value):
            raise EvaluationError(
                f"{self.name} gave {value} for {len(labels)} samples, expected a finite number. Check the predictions "
                "(the decoder may have diverged) and the labels (there may be only one class)."
            )
        return value

    def best(self, values: list[float]) -> float:
        """The best of several values of this score."""
        return max(values) if self.greater_is_better else min(values)

    def worst(self, values: list[float]) -> float:
        """The worst of several values of this score."""
        return min(values) if self.greater_is_better else max(values)


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(labels, predictions)


def _f1(average: str) -> Metric:
    def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        return f1_score(labels, predictions, average=average, zero_division=0.0)

    return f1


def _mae(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.abs(labels - predictions).mean())


def _mse(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(((labels - predictions) ** 2).mean())


# For classes, mae and mse compare class numbers, as the paper does for stars of reviews.
SCORES = {
    score.name: score
    for score in (
        Score("accuracy", "accuracy", _accuracy, problem_types=(SINGLE, MULTI)),
        Score("f1", "macro F1", _f1("macro"), problem_types=(SINGLE, MULTI)),
        Score("f1_weighted", "weighted F1", _f1("weighted"), problem_types=(SINGLE, MULTI)),
        Score("mae", "mean absolute error", _mae, greater_is_better=False, problem_types=(SINGLE, REGRESSION)),
        Score("mse", "mean squared error", _mse, greater_is_better=False, problem_types=(SINGLE, REGRESSION)),
    )
}


def resolve_score(metric: str | Metric, *, greater_is_better: bool = True) -> Score:
    """The score of that name, or the caller's own function as a score."""
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return Score(name, name, metric, greater_is_better)
    if metric not in SCORES:
        raise EvaluationError(
            f"metric={metric!r} does not exist. Choose one of {', '.join(SCORES)}, or pass a function of "
            "(labels, predictions)."
        )
    return SCORES[metric]


def check_problem(score: Score, problem_type: str) -> None:
    """Raise `EvaluationError` if the score has no meaning for the problem."""
    if problem_type in score.problem_types:
        return
    fitting = ", ".join(name for name, other in SCORES.items() if problem_type in other.problem_types)
    raise EvaluationError(
        f"metric={score.name!r} does not apply to {problem_type}, the problem of these decoders. Choose one of "
        f"{fitting}."
    )


def chance(labels: np.ndarray, score: Score, problem_type: str, *, seed: int = 0) -> tuple[float, str]:
    """What guessing reaches on these labels, and which guess that is.

    The better of two guesses that never look at a sample: always the same answer (the majority class; for errors also
    the median and the mean), and answers drawn at random with the frequencies of the labels (mean of 20 draws).
    """
    constants = [score(labels, guess) for guess in _constant_guesses(labels, problem_type)]
    rng = np.random.default_rng(seed)
    draws = [score(labels, labels[rng.integers(len(labels), size=len(labels))]) for _ in range(RANDOM_DRAWS)]
    constant, drawn = score.best(constants), float(np.mean(draws))
    if score.best([constant, drawn]) == constant:
        return constant, "always the same answer"
    return drawn, "random answers with the frequencies of the labels"


def _constant_guesses(labels: np.ndarray, problem_type: str) -> Iterator[np.ndarray]:
    if problem_type == MULTI:
        yield np.broadcast_to(labels.mean(axis=0) > 0.5, labels.shape).astype(labels.dtype)
        yield np.ones_like(labels)
        return
    if problem_type == SINGLE:
        yield np.full_like(labels, np.bincount(labels).argmax())
    for middle in (np.median(labels, axis=0), labels.mean(axis=0)):
        rounded = np.rint(middle) if problem_type == SINGLE else middle
        yield np.broadcast_to(rounded, labels.shape).astype(labels.dtype)
