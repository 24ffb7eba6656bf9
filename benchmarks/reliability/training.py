"""A short training that can be killed at any moment and taken up again, and ends the same to the last bit.

``python -m benchmarks.reliability.training`` is not a command: `kill.py` starts `train` in processes of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, modeling_utils, set_seed

from benchmarks.training import tokenized
from hf_relreps import AnchorCallback, AnchorSet, RelativeModel, RelativeModelForSequenceClassification
from hf_relreps.checkpoints import last_complete_checkpoint
from hf_relreps.demos.tiny import small_bert, word_tokenizer


STEPS, SAVE_EVERY, REFRESH_EVERY = 24, 4, 3
KINDS = ("cat dog bird horse", "bread soup cake rice")
TEXTS = [f"{how} {noun}" for kind in KINDS for noun in kind.split() for how in "small old red good".split()]
LABELS = [i // 16 for i in range(32)]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def train(folder: str, resume: str | bool | None, moment: dict[str, Any] | None, steps: int = STEPS) -> None:
    """Train to the end and write ``end.json``; or be killed before that.

    Args:
        folder: Of the run.
        resume: A checkpoint, ``True`` for the newest, ``None`` to begin anew, ``"complete"`` for the newest
            that is whole.
        moment: When to be killed: ``{"seconds": 1.5}`` after the training began, or the n-th time in a place:
            ``{"inside": "refresh", "n": 3}``; ``None`` for never.
        steps: How long the training is.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in ("stdout", "stderr"):
        file = os.open(Path(folder, f"{name}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, getattr(sys, name).fileno())
    trainer = _trainer(Path(folder), steps)
    files = Files(moment["n"] if moment and moment.get("inside") == "save" else None)
    if moment:
        _arm(trainer, moment)
    checkpoint = last_complete_checkpoint(folder) if resume == "complete" else resume
    start = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Exception as error:  # noqa: BLE001  whatever it is, it was said aloud
        Path(folder, "error.json").write_text(json.dumps({"type": type(error).__name__, "says": str(error)}))
        return
    about = {"began_with": str(checkpoint), "seconds": time.monotonic() - start, "files": files.seen}
    Path(folder, "end.json").write_text(json.dumps(_end_of(trainer) | {"about": about}))


def _trainer(folder: Path, steps: int) -> Trainer:
    set_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    anchors = AnchorSet([str(i) for i in range(0, 32, 2)], {"en": TEXTS[::2]})
    bert = small_bert(len(tokenizer), longest=16, width=32)
    model = RelativeModelForSequenceClassification.from_encoder(bert, anchors.view("en"), tokenizer, num_labels=2)
    rows = tokenized(tokenizer, TEXTS, LABELS)
    how = {"max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "lr_scheduler_type": "cosine"}
    how |= {"eval_strategy": "steps", "save_strategy": "steps"}
    how |= dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), SAVE_EVERY)
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True, seed=0, **how)
    data = {"train_dataset": rows, "eval_dataset": rows[::3], "processing_class": tokenizer}
    return Trainer(model, arguments, callbacks=[AnchorCallback(refresh_every=REFRESH_EVERY)], **data)


def _end_of(trainer: Trainer) -> dict[str, Any]:
    """Digests of weights and anchors, and every metric that was measured on the way."""
    weights = trainer.model.state_dict()
    measured = [
        {name: row[name] for name in ("step", "eval_loss", "loss") if name in row} for row in trainer.state.log_history
    ]
    return {
        "step": trainer.state.global_step,
        "weights": {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in weights.items()},
        "metrics": [row for row in measured if len(row) > 1],
    }


# -- being killed


def _arm(trainer: Trainer, moment: dict[str, Any]) -> None:
    if "seconds" in moment:
        trainer.add_callback(_Timer(moment["seconds"]))
        return
    inside, n = moment["inside"], moment["n"]
    if inside == "refresh":
        _kill_inside(RelativeModel, "put_anchors", "set_anchors", n)
    elif inside == "encoding":
        _kill_inside(RelativeModel, "encode_batches", "embed", n)
    elif inside == "between":
        trainer.add_callback(_AtStep(n))


def die() -> None:
    """As the kernel or an operator would: nothing is flushed, nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Timer(TrainerCallback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        def wait() -> None:
            time.sleep(self.seconds)
            die()

        threading.Thread(target=wait, daemon=True).start()


class _AtStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            die()


def _kill_inside(owner: Any, outer: str, inner: str, n: int) -> None:
    """Die when the n-th call of `outer` calls `inner` of the projection or the encoder: half of it is done."""
    from hf_relreps import modeling
    from hf_relreps.projection import RelativeProjection

    calls, depth = [0], [0]
    original = getattr(owner, outer)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        depth[0] += 1
        try:
            return original(self, *args, **kwargs)
        finally:
            depth[0] -= 1

    setattr(owner, outer, counted)
    place: Any = RelativeProjection if inner == "set_anchors" else modeling
    function: Callable[..., Any] = getattr(place, inner)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if depth[0] and calls[0] >= n:
            die()
        return function(*args, **kwargs)

    setattr(place, inner, deadly)


class Files:
    """Counts the files that are written into checkpoints, and dies before, or within, the n-th."""

    def __init__(self, n: int | None) -> None:
        self.n, self.seen = n, 0
        sys.addaudithook(self._heard)
        self._save = modeling_utils.safe_save_file  # weights are written by Rust, of which Python hears nothing
        modeling_utils.safe_save_file = self._save_weights

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and "checkpoint-" in str(arguments[0]) and (arguments[2] or 0) & WRITING:
            self.seen += 1
            if self.seen == self.n:
                die()

    def _save_weights(self, tensors: Any, filename: Any, metadata: Any = None) -> None:
        self.seen += 1
        self._save(tensors, filename, metadata=metadata)
        if self.seen == self.n:
            os.truncate(filename, Path(filename).stat().st_size // 2)
            die()
