"""What `AnchorCallback` adds to the Trainer's log, and that `RelativeTrainer` brings it where `report_to` sends it."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from training import tiny_trainer
from transformers import Trainer

from hf_relreps import AnchorCallback, RelativeTrainer
from hf_relreps.callback import coverage


NAMES = ["anchor_drift", "anchor_coverage"]
LOGGED = {"logging_strategy": "steps", "logging_steps": 2, "max_steps": 6}


TRAINERS = pytest.mark.parametrize("trainer_class", [Trainer, RelativeTrainer])


@pytest.fixture
def dataset(make_dataset: Any) -> list[dict[str, Any]]:
    return make_dataset("en")


def logs_of(trainer: Trainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@TRAINERS
def test_the_log_of_a_step_holds_drift_and_coverage(make_model, dataset, tokenizer, tmp_path, trainer_class):
    callback, arguments = AnchorCallback(refresh_every=1), LOGGED | {"trainer_class": trainer_class}
    trainer = tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, callback, **arguments)
    trainer.train()
    logs = logs_of(trainer)
    assert [entry["step"] for entry in logs] == [2, 4, 6]
    drift = dict(callback.drift_)
    for entry in logs:
        assert entry["anchor_drift"] == (drift[entry["step"] - 1] + drift[entry["step"]]) / 2 > 0
    assert logs[-1]["anchor_coverage"] == coverage(trainer.model.encoder.projection.anchors_AD)


def test_coverage_by_hand():
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert coverage(square + 7) == pytest.approx(0, abs=1e-6)  # the neighbours stand at right angles
    assert coverage(torch.cat([square, 3 * square])) == pytest.approx(1)  # each has another in its direction
    assert coverage(square[:1]) == 1.0


def test_a_log_without_a_refresh_before_it_names_no_drift(make_model, dataset, tokenizer, tmp_path):
    trainer = tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=4), **LOGGED)
    trainer.train()
    assert ["anchor_drift" in entry for entry in logs_of(trainer)] == [False, True, False]
    assert all("anchor_coverage" in entry for entry in logs_of(trainer))


def test_logging_changes_neither_weights_nor_the_number_of_logs_and_evaluations(
    make_model, dataset, tokenizer, tmp_path, monkeypatch
):
    often = LOGGED | {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 1}

    def run() -> Trainer:
        callback = AnchorCallback(refresh_every=2, refresh_parts=2)
        trainer = tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, callback, eval_rows=dataset[:5], **often)
        trainer.train()
        return trainer

    logging = run()
    monkeypatch.delattr(AnchorCallback, "on_log")
    silent = run()
    expected, found = silent.model.state_dict(), logging.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    plain = [{k for k in entry if k not in NAMES} for entry in logging.state.log_history]
    assert plain == [set(entry) for entry in silent.state.log_history]
    assert not any(name in entry for entry in silent.state.log_history for name in NAMES)


def test_a_resumed_run_logs_what_an_uninterrupted_one_logs(make_model, dataset, tokenizer, tmp_path):
    arguments = LOGGED | {"save_strategy": "steps", "save_steps": 2}

    def trainer() -> Trainer:
        return tiny_trainer(
            make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=1, refresh_parts=3), **arguments
        )

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [{name: entry[name] for name in (*NAMES, "loss", "step")} for entry in logs_of(resumed)] == [
        {name: entry[name] for name in (*NAMES, "loss", "step")} for entry in logs_of(whole)
    ]


@TRAINERS
def test_what_the_terminal_shows_holds_them_too(make_model, dataset, tokenizer, tmp_path, capsys, trainer_class):
    arguments = LOGGED | {"trainer_class": trainer_class}
    tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=1), **arguments).train()
    shown = [line for line in capsys.readouterr().out.splitlines() if "'loss'" in line]
    assert len(shown) == 3 and all(name in line for line in shown for name in NAMES)


def test_tensorboard_gets_them(make_model, dataset, tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    arguments = LOGGED | {"report_to": ["tensorboard"], "trainer_class": RelativeTrainer}
    trainer = tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=1), **arguments)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    for name in NAMES:
        found = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert found == pytest.approx({entry["step"]: entry[name] for entry in logs_of(trainer)}, rel=1e-6)


def test_trackio_gets_them(make_model, dataset, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed")
    arguments = LOGGED | {"report_to": ["trackio"], "project": "anchors", "run_name": "one"}
    arguments["trainer_class"] = RelativeTrainer
    trainer = tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=1), **arguments)
    trainer.train()
    found = _trackio_rows(Path(os.environ["TRACKIO_DIR"]))
    for name in NAMES:
        stored = {row["train/global_step"]: row[f"train/{name}"] for row in found if f"train/{name}" in row}
        assert stored == pytest.approx({entry["step"]: entry[name] for entry in logs_of(trainer)})


def _trackio_rows(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("*.db")
    with sqlite3.connect(file) as database:
        return [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
