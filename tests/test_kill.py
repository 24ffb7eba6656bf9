"""A killed training resumes to exactly the end of one that is not; a half-written checkpoint is never resumed from.

``make nightly`` kills forty times, every other time at a random moment.
"""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from training import tiny_trainer

from benchmarks.reliability import kill
from hf_relreps import AnchorCallback, RelativeModelForSequenceClassification
from hf_relreps.checkpoints import last_complete_checkpoint


STEPS = 9  # saves after steps 4 and 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """How a run ends that nobody disturbs."""
    return kill.end_of(tmp_path_factory.mktemp("kill") / "whole", STEPS)


@pytest.mark.parametrize(
    "moment",
    [{"inside": "encoding", "n": 4}, {"inside": "save", "n": "second checkpoint"}, {"inside": "between", "n": 6}],
    ids=["inside a refresh of the anchors", "inside a save", "between two saves"],
)
def test_a_killed_training_resumes_to_the_same_weights_anchors_and_metrics(tmp_path, whole, moment):
    if moment["n"] == "second checkpoint":
        moment = moment | {"n": whole["about"]["files"] * 3 // 4}
    happened = kill.trial(tmp_path / "run", moment, whole, STEPS)
    assert f"killed {kill.describe(moment)}" in happened
    assert "resumed from the last complete checkpoint: same end, bit for bit" in happened
    assert [lost for lost in happened.values() if lost] == []
    assert len(whole["metrics"]) >= 2 and len(whole["weights"]) > 10


# -- half-written checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, make_model, make_dataset, tokenizer):
    """A run's folder with three checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    tiny_trainer(make_model(0), tokenizer, make_dataset(), folder, AnchorCallback(), **arguments).train()
    return folder


@pytest.fixture
def run(checkpoints, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(checkpoints, tmp_path / "run")


def cut(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def resumed(run, make_model, make_dataset, tokenizer):
    trainer = tiny_trainer(make_model(0), tokenizer, make_dataset(), run, AnchorCallback(), max_steps=7)
    trainer.train(resume_from_checkpoint=True)
    return trainer


FILES = [
    "trainer_state.json",
    "model.safetensors.index.json",
    "encoder/model.safetensors",
    "decoder/model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("way", ["missing", "cut short"])
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over_and_named(
    run, make_model, make_dataset, tokenizer, caplog, monkeypatch, file, way
):
    assert last_complete_checkpoint(run) == str(run / "checkpoint-6")
    spoilt = run / "checkpoint-6" / file
    cut(spoilt) if way == "cut short" else spoilt.unlink()
    monkeypatch.setattr(logging.getLogger("hf_relreps"), "propagate", True)
    caplog.set_level(logging.WARNING, "hf_relreps")

    assert last_complete_checkpoint(run) == str(run / "checkpoint-4")
    tiny_trainer(make_model(0), tokenizer, make_dataset(), run, AnchorCallback())
    says = " ".join(record.getMessage() for record in caplog.records)
    assert f"{run / 'checkpoint-6'} is incomplete: " in says and "last_complete_checkpoint(args.output_dir)" in says
    assert file in says


@pytest.mark.parametrize(
    "file", [file for file in FILES if file not in ("scheduler.pt", "optimizer.pt", "rng_state.pth")]
)
@pytest.mark.parametrize("way", ["missing", "cut short"])
def test_the_trainer_refuses_a_half_written_checkpoint_aloud(run, make_model, make_dataset, tokenizer, file, way):
    spoilt = run / "checkpoint-6" / file
    cut(spoilt) if way == "cut short" else spoilt.unlink()
    with pytest.raises(
        Exception, match=r"checkpoint|safetensors|header|No such file|Expecting|Unterminated|delimiter"
    ):
        resumed(run, make_model, make_dataset, tokenizer)


def test_a_run_that_goes_on_without_its_optimizer_says_so(
    run, make_model, make_dataset, tokenizer, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("hf_relreps"), "propagate", True)
    caplog.set_level(logging.WARNING, "hf_relreps")
    resumed(run, make_model, make_dataset, tokenizer)
    assert not [record for record in caplog.records if "without the state" in record.getMessage()]
    (run / "checkpoint-6" / "optimizer.pt").unlink()  # the Trainer does not mind
    shutil.rmtree(run / "checkpoint-7", ignore_errors=True)
    resumed(run, make_model, make_dataset, tokenizer)
    assert [record for record in caplog.records if "resumes at step 6 without the states" in record.getMessage()]


def test_without_a_checkpoint_there_is_none_to_resume_from(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nothing") is None
    assert last_complete_checkpoint(None) is None


def test_a_checkpoint_of_the_model_alone_is_complete(make_model, make_dataset, tokenizer, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "save_only_model": True}
    tiny_trainer(make_model(0), tokenizer, make_dataset(), tmp_path, AnchorCallback(), **arguments).train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


# -- a save over an earlier one, cut off


def test_a_save_over_another_that_is_cut_off_leaves_the_earlier_one(make_model, tmp_path, monkeypatch):
    """The case that would be silent: new encoder, old decoder, old index, old state of the Trainer."""
    from transformers import modeling_utils

    folder = tmp_path / "checkpoint-2"
    make_model(0).save_pretrained(folder)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    written, save = [], modeling_utils.safe_save_file

    def cut_off(tensors, filename, metadata=None):
        if written:
            raise KeyboardInterrupt
        written.append(filename)
        save(tensors, filename, metadata=metadata)

    monkeypatch.setattr(modeling_utils, "safe_save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        make_model(1).save_pretrained(folder)

    assert len(written) == 1
    (folder / "trainer_state.json").unlink()
    assert before == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_save_over_a_checkpoint_takes_back_the_state_of_the_trainer(make_model, tmp_path):
    folder = tmp_path / "checkpoint-2"
    make_model(0).save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    make_model(1).save_pretrained(folder)
    assert not (folder / "trainer_state.json").exists()
    assert last_complete_checkpoint(tmp_path) is None


def test_the_state_of_a_trainer_outside_of_checkpoints_is_left_alone(make_model, tmp_path):
    (tmp_path / "trainer_state.json").write_text("{}")
    make_model(0).save_pretrained(tmp_path)
    assert (tmp_path / "trainer_state.json").exists()


def test_a_model_can_be_saved_into_the_folder_it_came_from(make_model, tokenizer, texts, tmp_path):
    make_model(0).save_pretrained(tmp_path)
    model = RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    inputs = tokenizer(texts["en"][:3], return_tensors="pt", padding=True)
    before = model(**inputs).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(RelativeModelForSequenceClassification.from_pretrained(tmp_path)(**inputs).logits, before)
