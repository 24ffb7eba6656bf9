"""`evaluate` module: how alike two latent spaces are, from paired samples."""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_relreps.evaluation.latent_similarity import METRICS, latent_similarity


DESCRIPTION = """
How alike two latent spaces are, from samples that both describe (Moschella et al., 2023, section 4.1): Jaccard index
of the nearest neighbours, mean reciprocal rank, cosine, and linear CKA.
"""
INPUTS = """
Args:
    predictions: (N, D) one space, a row for each sample.
    references: (N, E) the other space, rows in the same order; E may differ from D if only cka is asked for.
    k: Number of neighbours, smaller than N; 10 if left out.
    metrics: Which to compute: any of jaccard, mrr, cosine, cka; all if left out.
Returns:
    A number for each metric that was asked for.
Examples:
    >>> x = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]]
    >>> metric = evaluate.load(hf_relreps.metrics.path("latent_similarity"))
    >>> metric.compute(predictions=x, references=x, k=2)
    {'jaccard': 1.0, 'mrr': 1.0, 'cosine': 1.0, 'cka': 1.0}
"""
CITATION = """
@inproceedings{moschella2023relative,
  title     = {Relative representations enable zero-shot latent space communication},
  author    = {Moschella, Luca and Maiorca, Valentino and Fumero, Marco and Norelli, Antonio and Locatello, Francesco
               and Rodol{\\`a}, Emanuele},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}
"""


class LatentSimilarityMetric(evaluate.Metric):
    """`hf_relreps.latent_similarity` of predictions and references."""

    def _info(self) -> evaluate.MetricInfo:
        vectors = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": vectors, "references": vectors}),
        )

    def _compute(self, predictions: Any, references: Any, k: int = 10, metrics: Any = METRICS) -> dict[str, float]:
        found = latent_similarity(
            np.asarray(predictions), np.asarray(references), k=k, metrics=tuple(metrics)
        ).to_dict()
        return {name: value for name, value in found.items() if name not in ("k", "n") and value is not None}
