"""`benchmarks/migration*.py`: what their numbers are made of, by hand, and that the guide shows their results."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import migration_costs
from benchmarks.migration import (
    ANSWERED,
    NEAREST,
    RESULTS,
    RIVALS,
    answered,
    both,
    by_data,
    by_setting,
    choice,
    draw,
    error_of,
    error_of_constants,
    errors_of,
    figures,
    figures_of,
    forecast,
    put_in,
    ranked_again,
    read,
    rows_in,
    rows_of,
    table,
)
from benchmarks.migration_rivals import paper, residual_mlp, universes
from hf_relreps.migration import WAYS
from hf_relreps.similarities import unit


# -- figures


def test_recall_and_ndcg_of_one_document_for_each_query():
    scores_QN = torch.eye(NEAREST + 2)
    relevant_QN = scores_QN.bool()
    assert set(figures(scores_QN.topk(NEAREST).indices, relevant_QN).values()) == {1.0}
    assert set(figures((-scores_QN).topk(NEAREST).indices, relevant_QN).values()) == {0.0}
    third = figures(torch.tensor([[1, 2, 0, 3, 4, 5, 6, 7, 8, 9]]), relevant_QN[:1])
    assert third == {"recall@10": 1.0, "recall@1": 0.0, "ndcg@10": 0.5}  # 1 / log2(3 + 1)


def test_recall_and_ndcg_of_several_documents_are_shares_of_what_ten_can_hold():
    relevant_QN = torch.tensor([[True, False, True, *[False] * 9]])
    found = figures(torch.arange(NEAREST)[None], relevant_QN)
    best = 1 + 1 / math.log2(3)
    assert found == {"recall@10": 1.0, "recall@1": 1.0, "ndcg@10": pytest.approx(1.5 / best)}
    many = figures(torch.arange(NEAREST)[None], torch.ones(1, 12, dtype=torch.bool))
    assert many["recall@10"] == 1 and many["ndcg@10"] == pytest.approx(1)


def test_a_document_that_is_near_to_everything_loses_its_lead():
    scores_QN = torch.zeros(2, NEAREST)
    scores_QN[:, :2] = torch.tensor([[0.6, 0.8], [0.1, 0.8]])
    others_PN = torch.zeros(NEAREST, NEAREST)
    others_PN[:, 1] = 0.8
    relevant_QN = torch.eye(2, NEAREST).bool()
    found = both(scores_QN, others_PN, relevant_QN)
    assert (found["plain"]["recall@1"], found["hubs"]["recall@1"]) == (0.5, 1.0)


def test_queries_with_answers_say_the_share_of_others_the_more_of_them_the_nearer():
    generator = torch.Generator().manual_seed(0)
    own_Q = (torch.rand(1000, generator=generator) < 0.8).double()
    found_Q = own_Q * (torch.rand(1000, generator=generator) < 0.9)
    errors = answered(found_Q, own_Q)
    assert 0.015 < errors[300] < errors[100] < 0.04  # a binomial share of 80 and 240: 0.027 and 0.018 of the rest
    assert answered(own_Q, own_Q) == {100: 0, 300: 0}


def test_candidates_are_put_in_order_by_the_new_encoder():
    new_QN = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    assert ranked_again(torch.tensor([[0, 2, 3]]), new_QN).tolist() == [[3, 2, 0]]


def test_what_was_measured_before_is_read_again_if_its_pairs_are_of_the_same_texts(tmp_path):
    known = {("a", "b", 1000, 1): {"draw": 1}, ("a", "b", 1000, 0): {"draw": 0}, ("b", "a", 300, 0): {"draw": 0}}
    found = put_in({"settings": [{"old": "a", "new": "b"}, {"old": "b", "new": "a"}], "pool": 3000}, known)
    assert found["settings"][0]["by pairs"] == {1000: [{"draw": 0}, {"draw": 1}]}
    file = tmp_path / "wordnet.json"
    assert rows_in(file, 3000) == {}
    file.write_text(json.dumps(found))
    assert rows_in(file, 3000) == known and rows_in(file, 10_000) == {}


# -- rivals


@pytest.fixture(scope="module")
def turned():
    """Three models that see the same points in spaces of their own, two of them 24 wide, one 32."""
    generator = torch.Generator().manual_seed(0)
    points_NK = torch.randn(260, 12, generator=generator) @ torch.diag(torch.linspace(1, 3, 12))
    models = {}
    for name, width in (("a", 24), ("b", 32), ("c", 24)):
        into_KD = torch.linalg.qr(torch.randn(width, 12, generator=generator))[0].T
        models[name] = points_NK @ into_KD + 0.05 * torch.randn(260, width, generator=generator)
    return models


def own_found(queries_QK, documents_QK):
    return float(((queries_QK @ documents_QK.T).argmax(1) == torch.arange(len(queries_QK))).float().mean())


def test_each_rival_finds_the_points_again_of_which_it_saw_no_pair(turned):
    pairs, rest = ({name: x_ND[rows] for name, x_ND in turned.items()} for rows in (slice(200), slice(200, None)))
    for rival in (paper(pairs["a"], pairs["b"]), residual_mlp(pairs["a"], pairs["b"])):
        assert own_found(rival.queries(rest["b"]), rival.documents(rest["a"])) > 0.9  # chance 1/60
    for into in universes(pairs).values():
        for old, new in (("a", "b"), ("b", "a"), ("a", "c"), ("c", "b")):
            assert own_found(into[new](rest[new]), into[old](rest[old])) > 0.9


def test_a_residual_network_begins_with_procrustes_and_comes_nearer(turned):
    bent = {name: torch.tanh(x_ND) if name == "a" else x_ND for name, x_ND in turned.items()}
    from hf_relreps.migration.ways import translations

    old, new = bent["a"], bent["b"]
    rotated = translations(new[:200], old[:200], "procrustes", add_mean=False).queries(new[200:])
    trained = residual_mlp(old[:200], new[:200]).queries(new[200:])
    target = unit(old[200:] - old[:200].mean(0))
    assert (trained * target).sum(1).mean() > (rotated * target).sum(1).mean()


# -- tables


def test_shares_are_means_of_figures_over_own_ones():
    def recalls(value):
        return {"recall@10": value, "recall@1": value, "ndcg@10": value}

    def way(value):
        return {"plain": recalls(value), "hubs": recalls(value)}

    by_count = {str(count): recalls(0.8) for count in (20, 50, 100, 200)}
    row = {
        "kept": {"ridge": 0.5, "cca": 0.4},
        "agreed": {"cca": 0.9, "ridge": 0.8},
        "chosen": "ridge",
        "expected": {"ridge": 0.5},
        "answered": {"100": 0.04, "300": 0.02},
        "rivals": dict.fromkeys(RIVALS, way(0.6)),
    }
    row["two stages"] = dict.fromkeys(("procrustes", "relative"), by_count)
    row["ways"] = dict.fromkeys(WAYS, way(0.2)) | {"ridge": way(0.4)}
    setting = {"data": "d", "old": "a", "new": "b", "own": way(0.8), "new's own": way(0.4), "no adapter": None}
    found = [{"settings": [setting | {"by pairs": {"1000": [row]}}, setting | {"by pairs": {"300": [row]}}]}]
    shown = table(found, sizes=(1000,))
    assert "| `ridge` | 0.500 / 1.000 |" in shown and "| no adapter | - |" in shown
    assert "| residual MLP, hubs corrected | 0.750 / 1.500 |" in shown
    assert "| the best 50 of `relative`, ranked again by the new encoder | 1.000 / 2.000 |" in shown
    assert "| `ridge` | 0.500 | 0.500 | 0.500 |" in figures_of(found, 1000)
    assert "| `mean`, hubs corrected | 0.250 | 0.250 |" in by_data(found)
    assert len(rows_of(found, (1000,))) == 1 and len(rows_of(found)) == 2
    assert "mean absolute error 0.000" in forecast(found) and "| 0.000 | 0.000 | 0.040 | 0.020 |" in forecast(found)
    assert "| d | 1000 | 1.000 | 1.000 | 0.500 | 0.500 | 0.500 |" in choice(found)
    assert "| d | a | b | 0.800 | 0.400 | 0.200 | 0.600 | 0.200 | 0.800 |" in by_setting(found[:1], 1000)


def test_the_picture_shows_every_number_of_pairs(tmp_path):
    figures = dict.fromkeys(("recall@10", "recall@1", "ndcg@10"), 0.5)
    both = {"plain": figures, "hubs": figures}
    row = {"ways": dict.fromkeys(WAYS, both), "two stages": {"relative": {"50": figures}}}
    setting = {"data": "d", "old": "a", "new": "b", "own": both, "new's own": both}
    setting["by pairs"] = {"300": [row], "1000": [row]}
    draw([{"settings": [setting]}], tmp_path / "migration.png")
    assert (tmp_path / "migration.png").stat().st_size > 5000


def test_milliseconds_are_medians_without_the_first_queries():
    assert set(migration_costs.timed(len, ["a"] * 9)) == {"median", "90 %"}


# -- the guide


@pytest.fixture(scope="module")
def guide():
    return (Path(__file__).parents[1] / "docs" / "retrieval.md").read_text()


@pytest.mark.parametrize(
    "made", [by_data, table, figures_of, by_setting, choice, forecast], ids=lambda made: made.__name__
)
def test_the_guide_shows_the_results(made, guide):
    assert made(read(RESULTS)).split("\n\n")[0] in guide


def test_the_guide_says_how_far_the_forecast_is_off(guide):
    gaps = [abs(expected - measured) for _, expected, measured in errors_of(read(RESULTS))]
    assert f"{sum(gaps) / len(gaps):.3f}" in guide and f"{max(gaps):.3f}" in guide
    assert f"{error_of_constants(read(RESULTS)):.3f}" in guide
    assert all(f"{error_of(rows_of(read(RESULTS)), count):.3f}" in guide for count in ANSWERED)
