"""The library's measures as `evaluate` modules: from the package, offline, and from a Space of the Hub."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import pytest
import torch

from hf_relreps import errors, latent_similarity, metrics


EXAMPLE = Path(__file__).parents[1] / "examples" / "push_metric.py"


@pytest.fixture(scope="module")
def x_ND() -> torch.Tensor:
    return torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def y_ND(x_ND: torch.Tensor) -> torch.Tensor:
    return x_ND + torch.randn(60, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a metric of the package opened the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_latent_similarity_gives_what_the_function_gives(
    x_ND: torch.Tensor, y_ND: torch.Tensor, offline: None
) -> None:
    metric = evaluate.load(metrics.path("latent_similarity"))
    expected = latent_similarity(x_ND, y_ND, k=5).to_dict()
    found = metric.compute(predictions=x_ND, references=y_ND, k=5)
    assert found == {name: pytest.approx(expected[name], abs=1e-6) for name in ("jaccard", "mrr", "cosine", "cka")}
    assert 0.05 < found["jaccard"] < 0.95


def test_batches_that_are_added_one_by_one_are_one_comparison(x_ND: torch.Tensor, y_ND: torch.Tensor) -> None:
    metric = evaluate.load(metrics.path("latent_similarity"))
    for rows in (slice(0, 20), slice(20, 60)):
        metric.add_batch(predictions=x_ND[rows].numpy(), references=y_ND[rows].numpy())
    expected = latent_similarity(x_ND, y_ND, metrics=("cosine",)).cosine
    assert metric.compute(metrics=["cosine"]) == {"cosine": pytest.approx(expected, abs=1e-6)}


def test_widths_may_differ_for_cka(x_ND: torch.Tensor) -> None:
    metric = evaluate.load(metrics.path("latent_similarity"))
    found = metric.compute(predictions=x_ND, references=x_ND[:, :3], metrics=["cka"])
    assert set(found) == {"cka"} and 0 < found["cka"] < 1


def test_stitching_ratio_of_classes_by_hand() -> None:
    metric = evaluate.load(metrics.path("stitching_ratio"))
    answers = {"own_predictions": [0, 1, 1, 1], "references": [0, 1, 1, 1]}
    found = metric.compute(predictions=[0, 1, 1, 0], **answers, metric="accuracy")
    assert found == {"stitched": 0.75, "own": 1.0, "ratio": 0.75, "chance": 0.75}
    macro_f1 = metric.compute(predictions=[0, 1, 1, 0], **answers)
    assert macro_f1["stitched"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_stitching_ratio_of_values_by_hand() -> None:
    metric = evaluate.load(metrics.path("stitching_ratio"), "regression")
    found = metric.compute(predictions=[1.0, 4.0], own_predictions=[1.0, 3.0], references=[1.0, 2.0])
    assert (found["stitched"], found["own"], found["ratio"]) == (1.0, 0.5, 2.0)
    assert 0 < found["chance"] <= 0.5


def test_a_ratio_to_nothing_is_none() -> None:
    metric = evaluate.load(metrics.path("stitching_ratio"))
    found = metric.compute(predictions=[0, 1], own_predictions=[1, 0], references=[0, 1], metric="accuracy")
    assert found["ratio"] is None and found["stitched"] == 1.0


@pytest.mark.parametrize("name", metrics.NAMES)
def test_the_example_in_the_description_is_true(name: str) -> None:
    metric = evaluate.load(metrics.path(name))
    lines = metric.inputs_description.split("Examples:")[1].splitlines()
    code = [line.strip()[4:] for line in lines if line.strip().startswith((">>>", "..."))]
    expected = next(line for line in lines if line.strip().startswith("{"))
    scope = {"evaluate": evaluate, "hf_relreps": __import__("hf_relreps")}
    statements = ast.parse("\n".join(code)).body
    exec(compile(ast.Module(statements[:-1], []), "example", "exec"), scope)
    found = eval(compile(ast.Expression(statements[-1].value), "example", "eval"), scope)
    assert found == pytest.approx(ast.literal_eval(expected.strip()))


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(errors.EvaluationError, match="no metric 'accuracy'.*latent_similarity, stitching_ratio"):
        metrics.path("accuracy")


@pytest.fixture(scope="module")
def push_metric() -> Callable[..., Any]:
    return runpy.run_path(str(EXAMPLE))["push_metric"]


def test_pushed_as_a_space_it_loads_by_its_name(
    hub: Any, hub_user: str, x_ND: torch.Tensor, push_metric: Callable[..., Any]
) -> None:
    from huggingface_hub import HfApi

    repo_id = f"{hub_user}/latent_similarity"
    push_metric("latent_similarity", repo_id)
    try:
        assert sorted(HfApi().list_repo_files(repo_id, repo_type="space")) == [
            ".gitattributes",
            "README.md",
            "app.py",
            "latent_similarity.py",
            "requirements.txt",
        ]
        metric = evaluate.load(repo_id)
        assert metric.compute(predictions=x_ND, references=2 * x_ND)["mrr"] == 1.0
    finally:
        HfApi().delete_repo(repo_id, repo_type="space")


def test_a_space_of_another_name_is_refused(push_metric: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="Push it to me/stitching_ratio"):
        push_metric("stitching_ratio", "me/ratio")
