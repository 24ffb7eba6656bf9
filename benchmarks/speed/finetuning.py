"""2 Fine-tuning with 768 anchors beside the same with an absolute head: a step, a refresh, and what follows.

A step and a refresh are timed beside the absolute step; a schedule costs a step and its share of a refresh.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from benchmarks.speed import subjects
from benchmarks.speed.timing import Pairs, finish, paired, row
from benchmarks.training import tokenized, train
from hf_relreps import AnchorCallback
from hf_relreps.callback import parts_within_budget


K, BATCH, LONGEST = 768, 32, 64
LONG_TRAINING = 10_000  # steps: a short one refreshes each anchor four times, whatever that costs


def stepper(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        model(**inputs).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class Stopwatch(TrainerCallback):
    """Time from the end of the first step to the end of the last, without what a run does once."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when the first ended; the last that is noted is the last."""
        finish()
        now = time.perf_counter(), time.process_time()
        if state.global_step == 1:
            self.first = now
        self.seconds = now[0] - self.first[0], now[1] - self.first[1]


def trainer_seconds(
    model: nn.Module, callbacks: list[TrainerCallback], steps: int, **arguments: Any
) -> tuple[float, float]:
    """Wall and processor time of steps of the real `Trainer`, on the CPU unless its arguments say otherwise."""
    words, labels = subjects.texts()
    tokenizer, watch = subjects.tokenizer(LONGEST), Stopwatch()
    how = {"max_steps": steps, "per_device_train_batch_size": BATCH, "use_cpu": True} | arguments
    rows = tokenized(tokenizer, words[: steps * BATCH], labels)
    train(model, rows, 42, *callbacks, watch, processor=tokenizer, **how)
    return watch.seconds


def by_trainer(steps: int, pairs: int) -> dict[str, Any]:
    """Steps of the `Trainer` with the default callback over the same with an absolute head, alternating."""
    found = Pairs()
    for _ in range(pairs):
        first = trainer_seconds(subjects.relative(subjects.absolute(), K, LONGEST), [AnchorCallback()], steps)
        found.add(first, trainer_seconds(subjects.absolute(), [], steps))
    return found.to_dict()


def run(quick: bool = False) -> dict[str, Any]:
    """Ratios to the absolute step."""
    inputs = subjects.batch(BATCH, LONGEST)
    absolute = subjects.absolute()
    whole = subjects.relative(subjects.absolute(), K, LONGEST)
    callback = AnchorCallback()
    view, encoder = subjects.anchors(K).view("en"), whole.encoder
    n = parts_within_budget(K, BATCH, LONG_TRAINING)
    parts = callback._in_parts(view, subjects.tokenizer(LONGEST), encoder.config, n)
    all_at_once = callback._in_parts(view, subjects.tokenizer(LONGEST), encoder.config, 1)
    reference = stepper(absolute, inputs)
    turns = itertools.count(1)

    def refresh_part() -> None:
        """As the callback does it."""
        callback._parts = parts
        encoder.note_training()
        callback._refresh(encoder, next(turns) * callback.refresh_every, exact=False)

    def refresh_all() -> None:
        callback._parts = all_at_once
        encoder.note_training()
        callback._refresh(encoder, next(turns) * callback.refresh_every, exact=True)

    step = paired(stepper(whole, inputs), reference, 2 if quick else 16)
    part = paired(refresh_part, reference, 2 if quick else 40)  # twice round, since parts differ in length
    every = paired(refresh_all, reference, 2 if quick else 6)
    rows = [
        row("a step without refresh", step),
        row(f"a refresh of a part of {n}, in absolute steps", part),
        row(f"a refresh of all {K} anchors at once, in absolute steps", every),
    ]
    steps = 6 if quick else 101  # the parts come round once in a hundred
    goal = "at most 1.10"
    rows.append(row(f"the Trainer: {steps - 1} steps, default schedule", by_trainer(steps, 1 if quick else 2), goal))
    return {"rows": rows, "schedules": {kind: schedules(step, part, every, kind) for kind in ("wall", "processor")}}


def schedules(step: Any, part: Any, every: Any, kind: str) -> dict[str, float]:
    """What a schedule costs: a step and its share of a refresh, in absolute steps."""
    a, b, c = (figure[kind]["ratio"] for figure in (step, part, every))
    default = a + b / AnchorCallback().refresh_every
    return {
        "all at every step": a + c,
        "all every 20 steps": a + c / 20,
        "a part every 5 steps, the default": default,
        "every step over the default": (a + c) / default,
    }
