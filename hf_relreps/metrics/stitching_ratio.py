"""`evaluate` module: how much of an own pair's score a stitched pair keeps."""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_relreps.evaluation.scores import REGRESSION, SINGLE, chance, check_problem, resolve_score


DESCRIPTION = """
A stitched pair (an encoder and a decoder that never met) against an own pair (the decoder's own encoder) on the same
samples: the score of both, their ratio, and the chance level. The ratio alone proves
nothing: it is also 1 if both pairs are at chance.
"""
INPUTS = """
Args:
    predictions: (N,) classes, or values, that the stitched pair predicts.
    own_predictions: (N,) what the own pair predicts.
    references: (N,) true classes, or values.
    metric: accuracy, f1 (macro; the default), f1_weighted, mae or mse.
Returns:
    stitched, own, ratio (stitched / own; None if own is 0) and chance. For mae and mse a ratio above 1 is a loss.
Examples:
    >>> metric = evaluate.load(hf_relreps.metrics.path("stitching_ratio"))
    >>> metric.compute(predictions=[0, 1, 1, 0], own_predictions=[0, 1, 1, 1], references=[0, 1, 1, 1],
    ...                metric="accuracy")
    {'stitched': 0.75, 'own': 1.0, 'ratio': 0.75, 'chance': 0.75}
Load it with the configuration "regression" for values: evaluate.load(path, "regression").
"""
CITATION = ""


class StitchingRatio(evaluate.Metric):
    """Scores of a stitched and an own pair, their ratio, and chance."""

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float64" if self.config_name == "regression" else "int64")
        names = ("predictions", "own_predictions", "references")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(dict.fromkeys(names, value)),
        )

    def _compute(
        self, predictions: Any, own_predictions: Any, references: Any, metric: str | None = None
    ) -> dict[str, float | None]:
        problem_type = REGRESSION if self.config_name == "regression" else SINGLE
        score = resolve_score(metric or ("mae" if problem_type == REGRESSION else "f1"))
        check_problem(score, problem_type)
        labels_N = np.asarray(references)
        stitched, own = (score(labels_N, np.asarray(found)) for found in (predictions, own_predictions))
        guessed, _ = chance(labels_N, score, problem_type)
        return {"stitched": stitched, "own": own, "ratio": stitched / own if own else None, "chance": guessed}
