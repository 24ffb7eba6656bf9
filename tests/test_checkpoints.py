"""Which checkpoint of a Trainer was written to its end, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_relreps.checkpoints import find_flaw, last_complete_checkpoint


@pytest.fixture
def run(make_model, make_dataset, tokenizer, tmp_path) -> Path:
    """A folder with two checkpoints that the Trainer wrote."""
    how: dict[str, Any] = {"max_steps": 2, "save_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(str(tmp_path), **how)
    Trainer(make_model(), args, train_dataset=make_dataset(), processing_class=tokenizer).train()
    return tmp_path


def zipped(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state": {}}, file)


def as_deepspeed(checkpoint: Path, with_weights: bool = True) -> None:
    """What the Trainer's folder looks like with DeepSpeed: weights and optimizer lie in a folder of its own."""
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "scheduler.pt").unlink()
    zipped(checkpoint / "global_step2" / "mp_rank_00_model_states.pt")
    zipped(checkpoint / "global_step2" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (checkpoint / "latest").write_text("global_step2")
    if not with_weights:  # ZeRO-3 gathers none unless it is told to
        (checkpoint / "model.safetensors.index.json").unlink()


def as_fsdp(checkpoint: Path, sharded: bool) -> None:
    """What it looks like with FSDP: a file for all, or a folder with a share of each rank."""
    (checkpoint / "optimizer.pt").unlink()
    if sharded:
        (checkpoint / "model.safetensors.index.json").unlink()
        zipped(checkpoint / "pytorch_model_fsdp_0" / "__0_0.distcp")
        zipped(checkpoint / "optimizer_0" / "__0_0.distcp")
    else:
        zipped(checkpoint / "optimizer.bin")


def test_the_newest_whole_checkpoint_is_found(run):
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_checkpoint_of_deepspeed_is_whole(run, with_weights):
    as_deepspeed(run / "checkpoint-2", with_weights)
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")


@pytest.mark.parametrize("sharded", [True, False])
def test_a_checkpoint_of_fsdp_is_whole(run, sharded):
    as_fsdp(run / "checkpoint-2", sharded)
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, Any] = {
    "optimizer.pt is missing": lambda folder: (folder / "optimizer.pt").unlink(),
    "optimizer.pt is truncated": lambda folder: cut(folder / "optimizer.pt"),
    "rng_state.pth is missing": lambda folder: (folder / "rng_state.pth").unlink(),
    "trainer_state.json, the file that is written last, is missing": lambda folder: (
        folder / "trainer_state.json"
    ).unlink(),
    "trainer_state.json is truncated": lambda folder: cut(folder / "trainer_state.json"),
    "encoder/model.safetensors cannot be read": lambda folder: cut(folder / "encoder" / "model.safetensors"),
}


@pytest.mark.parametrize("flaw", DAMAGES)
def test_a_checkpoint_that_was_cut_off_is_passed_over(run, flaw):
    DAMAGES[flaw](run / "checkpoint-2")
    assert flaw in (find_flaw(run / "checkpoint-2") or "")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-1")


def test_a_folder_of_deepspeed_that_is_not_there_is_a_flaw(run):
    as_deepspeed(run / "checkpoint-2")
    (run / "checkpoint-2" / "latest").write_text("global_step3")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-1")


def test_a_checkpoint_of_the_model_alone_is_whole(run):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (run / "checkpoint-2" / name).unlink()
    assert json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
