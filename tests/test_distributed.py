"""Two processes under `torchrun`: the same anchors and weights on both, whatever the number of anchors."""

import json

import pytest
import torch
from processes import HERE, TWO, run_together

from hf_relreps import RelativeModelForSequenceClassification


TIMEOUT = 3600  # seconds; a collective that one process never reaches would hang for ever


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run of two processes, with 7 anchors (not a multiple of two) and 1 (fewer than processes)."""
    out = tmp_path_factory.mktemp("torchrun")
    run_together([*TWO, str(HERE / "scripts" / "train_tiny.py"), str(out), "7", "1", "7:3"], TIMEOUT)
    return out


def records(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("k", ["7", "1"])
def test_both_processes_have_the_same_anchors_after_each_step_and_at_each_evaluation(runs, k):
    first, second = records(runs / k)
    assert first["processes"] == 2 and "MULTI_CPU" in first["kind"]
    assert first["at_start"] != second["at_start"]  # so that equality later is worth something
    assert first["at_steps"] == second["at_steps"]
    assert first["at_evaluations"] == second["at_evaluations"]
    assert first["at_steps"][0] == first["at_start"]  # both began with the anchors of rank 0's weights
    assert len(set(first["at_steps"])) == 4  # refreshed after steps 2, 4 and 6; the first anchors before
    at_3, at_6 = first["at_evaluations"]
    assert at_3 not in first["at_steps"] and at_6 == first["at_steps"][5]  # the former by the evaluation itself
    assert first["at_end"] == second["at_end"] == first["at_steps"][-1]
    assert [step for step, _ in first["drift"]] == [2, 4, 6, 6]  # the last: the end of the training
    assert first["drift"] == second["drift"]


def test_both_processes_have_the_same_anchors_when_parts_are_refreshed_in_turn(runs):
    first, second = records(runs / "7:3")
    assert first["at_steps"] == second["at_steps"]
    assert first["at_evaluations"] == second["at_evaluations"]
    assert first["weights"] == second["weights"]
    assert len(set(first["at_steps"])) == 4
    assert first["drift"] == second["drift"]
    parts, whole = dict(map(tuple, first["drift"])), dict(map(tuple, records(runs / "7")[0]["drift"]))
    assert parts.keys() == whole.keys()
    assert parts[2] != whole[2]  # the mean over other anchors: a part of them


@pytest.mark.parametrize("k", ["7", "1"])
def test_both_processes_end_with_the_same_weights(runs, k):
    first, second = records(runs / k)
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize("k", ["7", "1"])
@pytest.mark.parametrize("saved", ["model", "trainer/checkpoint-3", "trainer/checkpoint-6"])
def test_what_was_saved_loads_and_its_anchors_are_its_own_encoders(runs, k, saved):
    model = RelativeModelForSequenceClassification.from_pretrained(runs / k / saved)
    assert model.config.space.num_anchors == int(k)
    own_AD = model.encoder.encode(model.anchors.view("en").samples)
    torch.testing.assert_close(model.encoder.projection.anchors_AD, own_AD, atol=1e-5, rtol=1e-5)
    logits = model(**model.processor(["old horse", "red cake"], return_tensors="pt", padding=True)).logits
    assert torch.isfinite(logits).all()
