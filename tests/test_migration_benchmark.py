"""`benchmarks/migration.py`: what its numbers are made of, by hand, and that the guide shows its results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.migration import NEAREST, RESULTS, both_recalls, forecast, table, without_hubs


def test_recall_counts_queries_whose_own_document_is_near():
    scores_QN = torch.eye(NEAREST + 2)
    assert both_recalls(scores_QN) == {"recall@10": 1.0, "recall@1": 1.0}
    assert both_recalls(-scores_QN) == {"recall@10": 0.0, "recall@1": 0.0}


def test_a_document_that_is_near_to_everything_loses_its_lead():
    scores_QN = torch.tensor([[0.6, 0.8], [0.1, 0.8]])
    others_PN = torch.tensor([[0.0, 0.8]]).repeat(NEAREST, 1)
    assert without_hubs(scores_QN, others_PN).argmax(1).tolist() == [0, 1]


def test_shares_are_means_of_figures_over_own_ones():
    def recalls(value):
        return {"recall@10": value, "recall@1": value}

    def way(value):
        return {"plain": recalls(value), "hubs": recalls(value)}

    from hf_relreps.migration import WAYS

    row = {"chosen": "ridge", "expected": {"ridge": 0.5}, "two stages": {}}
    row["two stages"] = dict.fromkeys(("procrustes", "relative"), {"20": recalls(0.4), "50": recalls(0.8)})
    row["ways"] = dict.fromkeys(WAYS, way(0.2)) | {"ridge": way(0.4)}
    setting = {"data": "d", "old": "a", "new": "b", "own": way(0.8), "new's own": way(0.4), "no adapter": None}
    found = {"settings": [setting | {"by pairs": {"1000": [row]}}], "sizes": [1000]}
    assert "| `ridge` | 0.500 / 1.000 |" in table(found) and "| no adapter | - |" in table(found)
    assert "the best 50 of `relative`, hubs corrected, ranked again by the new encoder | 1.000 / 2.000" in table(found)
    assert "mean absolute error 0.000" in forecast(found)


@pytest.mark.parametrize("made", [table, forecast], ids=lambda made: made.__name__)
def test_the_guide_shows_the_results(made):
    found = json.loads((RESULTS / "results.json").read_text())
    guide = (Path(__file__).parents[1] / "docs" / "retrieval.md").read_text()
    assert made(found).split("\n\n")[0] in guide
    assert np.isfinite([row["ways"]["mean"]["plain"]["recall@10"] for row in _rows(found)]).all()


def _rows(found):
    return [row for setting in found["settings"] for rows in setting["by pairs"].values() for row in rows]
