"""Two processes, launched as `torchrun` does: the same anchors on both, exact where it counts.

DDP, FSDP2 (anchors that neither process can encode alone), and a loop without the Trainer.
"""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from processes import HERE, run_together

from hf_relreps import RelativeModelForSequenceClassification


TIMEOUT = 600  # seconds for all cases; each process waits 240 for the other
# 7 anchors (not a multiple of two), 1 (fewer than processes), 7 in 3 parts; the loop ends its group, so it comes last.
DDP, FSDP_2 = (
    ("7", "1", "7:3", "whole"),
    ("sharded", "resumed", "frozen", "pieces", "pieces-resumed", "half", "half-resumed"),
)
CASES = (*DDP, *FSDP_2, "version1", "on-one-rank", "loop")
ZERO = ("whole", "zero-1", "zero-1-resumed", "zero-2", "zero-2-resumed", "zero-2-frozen", "zero-3")


def run_cases(out, *cases, **environment):
    """Run cases of `scripts/train_together.py`; the folder with what each process wrote down, and the saved models."""
    run_together(
        [sys.executable, str(HERE / "scripts" / "train_together.py"), str(out), *cases], TIMEOUT, **environment
    )
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return run_cases(tmp_path_factory.mktemp("together"), *CASES)


def records(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def load(folder):
    return RelativeModelForSequenceClassification.from_pretrained(folder)


def largest_difference(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return max(float((mine[name].float() - theirs[name].float()).abs().max()) for name in mine if "_extra" not in name)


# -- DDP


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


# -- FSDP2


@pytest.mark.parametrize("case", FSDP_2)
def test_each_process_holds_about_half_of_the_weights_and_all_of_the_anchors(runs, case):
    first, second = records(runs / case)
    assert "FSDP" in first["kind"]
    assert 0.4 < first["held"] < 0.6 and first["held"] + second["held"] == pytest.approx(1, abs=0.05)
    assert first["at_end"] == second["at_end"]


def test_both_have_the_same_anchors_where_neither_can_encode_alone(runs):
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


def test_checkpoints_in_pieces_end_as_whole_ones_do(runs):
    checkpoint = runs / "pieces" / "trainer" / "checkpoint-3"
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir() and not (checkpoint / "encoder").exists()
    assert records(runs / "pieces")[0]["at_steps"] == records(runs / "sharded")[0]["at_steps"]
    expected = load(runs / "sharded" / "model")
    for case in ("pieces", "pieces-resumed"):
        assert largest_difference(expected, load(runs / case / "model")) < 1e-6


def test_mixed_precision_ends_with_the_same_anchors_on_both_and_weights_in_float32(runs):
    first, second = records(runs / "half")
    assert first["at_steps"] == second["at_steps"] and first["at_evaluations"] == second["at_evaluations"]
    model = load(runs / "half" / "model")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert 1e-4 < model.encoder.check_anchors() < 2e-2  # they were encoded in bfloat16
    assert largest_difference(model, load(runs / "half-resumed" / "model")) < 1e-6


# -- DeepSpeed


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install deepspeed")
    return run_cases(tmp_path_factory.mktemp("zero"), *ZERO, DS_ACCELERATOR="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["zero-1", "zero-2"])
def test_zero_ends_with_the_weights_of_ddp_and_the_same_anchors_on_both(zero, case):
    first, second = records(zero / case)
    assert "DEEPSPEED" in first["kind"]
    for what in ("at_steps", "at_evaluations", "at_end", "weights", "drift"):
        assert first[what] == second[what]
    assert largest_difference(load(zero / "whole" / "model"), load(zero / case / "model")) < 1e-3
    for saved in ("model", "trainer/checkpoint-3"):
        model = load(zero / case / saved)
        own_AD = model.encoder.encode(model.anchors.view("en").samples)
        torch.testing.assert_close(model.encoder.projection.anchors_AD, own_AD, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_zero_resumes_exactly_and_leaves_a_frozen_encoder_as_it_is(zero):
    for case in ("zero-1", "zero-2"):
        assert largest_difference(load(zero / case / "model"), load(zero / f"{case}-resumed" / "model")) < 1e-6
    first = records(zero / "zero-2-frozen")[0]
    assert max(moved for _, moved in first["drift"]) < 1e-6  # batches round differently
    early, late = load(zero / "zero-2-frozen" / "trainer" / "checkpoint-3"), load(zero / "zero-2-frozen" / "model")
    assert largest_difference(early.encoder.backbone, late.encoder.backbone) == 0
    assert largest_difference(early.decoder, late.decoder) > 1e-4


@pytest.mark.slow
def test_zero_3_is_refused(zero):
    assert all(
        "DeepSpeed ZeRO-3 has partitioned the weights" in record["refused"] for record in records(zero / "zero-3")
    )


# -- a loop without the Trainer


def test_the_example_ends_with_the_same_anchors_on_both_processes_and_saves_a_model(runs):
    printed = "".join((runs / "loop" / f"rank-{rank}.txt").read_text() for rank in range(2))
    held = re.findall(r"process (\d) of (\d) holds anchors (\w{16})", printed)
    assert [told[:2] for told in held] == [("0", "2"), ("1", "2")]
    assert held[0][2] == held[1][2]
    assert re.search(r"epoch 1: loss \d\.\d+, accuracy on the test rows 0\.\d+", printed)
    model = load(runs / "loop" / "model")
    assert model.config.space.num_anchors == 21
    assert model.encoder.check_anchors() < 1e-4
