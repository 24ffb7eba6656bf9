"""FSDP2 over two processes: anchors that neither can encode alone are the same on both, and exact where it counts."""

from __future__ import annotations

import json

import pytest
import torch
from processes import HERE, TWO, run_together

from hf_relreps import RelativeModelForSequenceClassification


TIMEOUT = 600  # seconds for all cases; each process waits 240 for the other
CASES = ("whole", "sharded", "resumed", "frozen", "version1", "on-one-rank")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with what each process wrote down in each case, and the models that were saved."""
    out = tmp_path_factory.mktemp("sharded")
    run_together([*TWO, str(HERE / "scripts" / "train_sharded.py"), str(out), *CASES], TIMEOUT)
    return out


def records(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def load(folder):
    return RelativeModelForSequenceClassification.from_pretrained(folder)


def largest_difference(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return max(float((mine[name].float() - theirs[name].float()).abs().max()) for name in mine if "_extra" not in name)


@pytest.mark.parametrize("case", ["sharded", "resumed", "frozen"])
def test_each_process_holds_about_half_of_the_weights_and_all_of_the_anchors(runs, case):
    first, second = records(runs / case)
    assert "FSDP" in first["kind"]
    assert 0.4 < first["held"] < 0.6 and first["held"] + second["held"] == pytest.approx(1, abs=0.05)
    assert first["anchors"] == second["anchors"]


def test_both_processes_have_the_same_anchors_after_each_step_and_at_each_evaluation(runs):
    first, second = records(runs / "sharded")
    assert first["at_steps"] == second["at_steps"]
    assert first["at_evaluations"] == second["at_evaluations"]
    assert first["drift"] == second["drift"]
    assert len(set(first["at_steps"])) == 5  # a part after 2 and 4, all after 3 and 6, where models are saved
    assert [step for step, _ in first["drift"]] == [0, 2, 3, 4, 6, 6]
    assert first["at_evaluations"] == [first["at_steps"][2], first["at_steps"][5]]


@pytest.mark.parametrize("saved", ["model", "trainer/checkpoint-3", "trainer/checkpoint-6"])
@pytest.mark.parametrize("case", ["sharded", "frozen"])
def test_what_was_saved_has_the_anchors_of_its_own_encoder(runs, case, saved):
    model = load(runs / case / saved)
    assert type(model).__name__ == "RelativeModelForSequenceClassification"
    assert model.config.architectures == [type(model).__name__]
    own_AD = model.encoder.encode(model.anchors.view("en").samples)
    torch.testing.assert_close(model.encoder.projection.anchors_AD, own_AD, atol=1e-5, rtol=1e-5)


def test_sharded_training_ends_where_training_with_whole_copies_does(runs):
    assert "MULTI_CPU" in records(runs / "whole")[0]["kind"]
    whole, sharded = load(runs / "whole" / "model"), load(runs / "sharded" / "model")
    at_start = load(runs / "sharded" / "trainer" / "checkpoint-3")
    assert largest_difference(whole, sharded) < 1e-3 < largest_difference(at_start, sharded)


def test_a_resumed_training_ends_where_one_without_interruption_does(runs):
    assert largest_difference(load(runs / "sharded" / "model"), load(runs / "resumed" / "model")) < 1e-6
    assert records(runs / "resumed")[0]["at_evaluations"] == records(runs / "sharded")[0]["at_evaluations"][1:]


def test_a_frozen_encoder_keeps_its_weights_and_anchors_and_its_decoder_learns(runs):
    first = records(runs / "frozen")[0]
    assert len(set(first["at_steps"])) == 1
    early, late = load(runs / "frozen" / "trainer" / "checkpoint-3"), load(runs / "frozen" / "model")
    assert largest_difference(early.encoder, late.encoder) == 0
    assert largest_difference(early.decoder, late.decoder) > 1e-4


@pytest.mark.parametrize(
    ("case", "said"),
    [("version1", "FSDP version 1 has sharded the weights"), ("on-one-rank", "sends weights to the other processes")],
)
def test_what_cannot_work_is_refused_with_what_to_do_instead(runs, case, said):
    for record in records(runs / case):
        assert said in record["refused"]
        assert "'version': 2" in record["refused"]
