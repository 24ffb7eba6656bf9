"""A training loop without the Trainer: `AnchorCallback.refresh`, and the example as `accelerate launch` starts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from processes import run_together
from transformers import AutoModelForSequenceClassification

from hf_relreps import AnchorCallback, AnchorSet
from hf_relreps.errors import AnchorError


EXAMPLE = Path(__file__).parents[1] / "examples" / "train_with_accelerate.py"
TIMEOUT = 600  # seconds; a collective that one process never reaches would hang for ever
FEW = ["--epochs", "1", "--rows", "96", "--anchors", "21"]  # 21: no multiple of two processes or four parts


@pytest.fixture
def loop(make_model, make_dataset, tokenizer):
    """A model, and a function that makes one step of training with it."""
    model = make_model(0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = make_dataset("en")[:16]
    batch = tokenizer.pad([{k: row[k] for k in ("input_ids", "attention_mask")} for row in rows], return_tensors="pt")
    labels = torch.tensor([row["labels"] for row in rows])

    def step():
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def moved_rows(before, model):
    return (model.encoder.projection.anchors_AD != before).any(-1).nonzero().flatten().tolist()


def test_a_loop_without_refreshes_leaves_stale_anchors_and_one_refresh_mends_them(loop):
    model, step = loop
    before = model.encoder.projection.anchors_AD.clone()
    for _ in range(3):
        step()
    assert model.encoder.has_stale_anchors and moved_rows(before, model) == []
    AnchorCallback().refresh(model)
    assert not model.encoder.has_stale_anchors and moved_rows(before, model) == list(range(20))
    assert model.encoder.check_anchors() < 1e-5
    assert model.training  # encoding in evaluation mode left no trace


def test_without_a_refresh_whoever_reads_stale_anchors_after_the_loop_mends_them(loop):
    model, step = loop
    before = model.encoder.projection.anchors_AD.clone()
    for _ in range(3):
        step()
    assert model.encoder.check_anchors() < 1e-5
    assert moved_rows(before, model) == list(range(20))
    assert model.training


def test_refreshes_follow_the_schedule_and_take_the_parts_in_turn(loop):
    model, step = loop
    anchors, seen = AnchorCallback(refresh_every=2, refresh_parts=4), []
    for number in range(1, 9):
        step()
        before = model.encoder.projection.anchors_AD.clone()
        anchors.refresh(model, number)
        seen.append(moved_rows(before, model))
    assert [bool(rows) for rows in seen] == [False, True] * 4
    assert sorted(row for rows in seen for row in rows) == list(range(20))  # each anchor once in four refreshes
    assert [number for number, _ in anchors.drift_] == [2, 4, 6, 8]


def test_a_wrapped_model_is_refreshed_and_every_exact_refresh_counts(loop):
    model, step = loop
    anchors, wrapped = AnchorCallback(), torch.nn.ModuleDict({"module": model})
    for _ in range(2):
        step()
        before = model.encoder.projection.anchors_AD.clone()
        anchors.refresh(wrapped)
        assert moved_rows(before, model) == list(range(20))
        assert model.encoder.check_anchors() < 1e-5


def test_anchors_of_another_set_are_refused(loop, texts):
    other = AnchorSet([str(i) for i in range(20)], {"en": texts["en"][:20]})
    with pytest.raises(AnchorError, match="the model was built on"):
        AnchorCallback(other.view("en")).refresh(loop[0], 1)


def launched(processes: int, folder: Path) -> str:
    """What the example prints."""
    several = ["--multi_gpu"] if processes > 1 else []
    settings = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *several, *settings, "--dynamo_backend", "no"]
    command = [*launch, str(EXAMPLE), *FEW, "--output", str(folder)]
    return run_together(command, TIMEOUT, ACCELERATE_USE_CPU="1")


@pytest.mark.slow  # as `torchrun` starts it: test_distributed.py
@pytest.mark.parametrize("processes", [1, 2])
def test_the_example_ends_with_the_same_anchors_on_all_processes_and_saves_a_model(processes, tmp_path):
    printed = launched(processes, tmp_path / "model")
    held = re.findall(r"process (\d) of (\d) holds anchors (\w{16})", printed)
    assert sorted(rank for rank, _, _ in held) == [str(rank) for rank in range(processes)]
    assert {world for _, world, _ in held} == {str(processes)}
    assert len({anchors for _, _, anchors in held}) == 1
    assert re.search(r"epoch 1: loss \d\.\d+, accuracy on the test rows 0\.\d+", printed)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert model.config.space.num_anchors == 21
    assert model.encoder.check_anchors() < 1e-4
