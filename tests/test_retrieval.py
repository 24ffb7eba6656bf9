"""`benchmarks/retrieval.py`: what its numbers are made of, by hand, and that its results are what it prints."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.retrieval import NEAREST, RESULTS, mapped, recall, relative, synopses_and_documents, table
from hf_relreps import RelativeConfig, RelativeSpace


def test_recall_counts_queries_whose_own_document_is_near() -> None:
    index_ND = torch.eye(NEAREST + 2)
    assert recall(3 * index_ND, index_ND) == 1.0
    others_ND = index_ND.sum(0, keepdim=True) - index_ND  # alike to every document but its own
    assert recall(others_ND, index_ND) == 0.0


def test_a_ridge_map_undoes_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND, map_DE = torch.randn(200, 4, generator=generator), torch.randn(4, 6, generator=generator)
    y_NE = x_ND @ map_DE + 5
    found = mapped(x_ND[100:], x_ND[:100], y_NE[:100])
    assert torch.nn.functional.cosine_similarity(found - 5, y_NE[100:] - 5).mean() > 0.99


@pytest.mark.parametrize("space", [RelativeSpace(), RelativeConfig.paper().space], ids=["default", "paper"])
def test_relative_search_does_not_see_a_rotation(space: RelativeSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(120, 16, generator=generator)
    rotation_DD = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    y_ND = x_ND @ rotation_DD
    left, right = relative(x_ND[40:], x_ND[:40], space), relative(y_ND[40:], y_ND[:40], space)
    assert recall(left, right) == 1.0
    assert recall(x_ND[40:], y_ND[40:]) < 0.5


def test_queries_and_documents_are_two_parts_of_one_description() -> None:
    queries, documents = synopses_and_documents("validation")
    assert len(queries) == len(documents) > 100
    assert not set(queries) & set(documents)


def test_the_committed_results_are_whole_and_hold_their_controls() -> None:
    found = json.loads((RESULTS / "results.json").read_text())
    assert found["chance"] == NEAREST / found["documents"]
    by_pair = {(row["query"], row["index"]): row for row in found["rows"]}
    assert len(by_pair) == 9
    assert [pair for pair, row in by_pair.items() if row["absolute"] is None] == [
        pair for pair in by_pair if (pair[0] == "mpnet") != (pair[1] == "mpnet")
    ]
    for row in found["rows"]:
        row["by anchors"] = {int(k): ways for k, ways in row["by anchors"].items()}
    assert "| minilm | me5 | 0.016 |" in table(found)
