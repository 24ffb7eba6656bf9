"""2 Fine-tuning with 768 anchors beside the same with an absolute head: a step, a refresh, and what follows.

A step and a refresh are timed beside the absolute step; a schedule costs a step and its share of a refresh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.speed import subjects
from benchmarks.speed.timing import paired, row
from hf_relreps import AnchorCallback
from hf_relreps.samples import batches


K, BATCH, LONGEST = 768, 32, 64


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


def run(quick: bool = False) -> dict[str, Any]:
    """Ratios to the absolute step."""
    inputs = subjects.batch(BATCH, LONGEST)
    absolute = subjects.absolute()
    whole = subjects.relative(subjects.absolute(), K, LONGEST)
    encoder = whole.encoder
    parts = list(batches(subjects.anchors(K).view("en").samples, subjects.tokenizer(LONGEST), 64, LONGEST))
    reference = stepper(absolute, inputs)

    def refresh() -> None:
        encoder.projection.set_anchors(encoder.encode_batches(parts, K))

    pairs = 2 if quick else 10
    step = paired(stepper(whole, inputs), reference, pairs)
    encoding = paired(refresh, reference, 2 if quick else 5)
    rows = [row("a step without refresh", step), row(f"a refresh of {K} anchors, in absolute steps", encoding)]
    n = AnchorCallback.steps_between(K, BATCH)
    every = {}
    for kind in ("wall", "processor"):
        a, c = step[kind]["ratio"], encoding[kind]["ratio"]
        every[kind] = {"every step": a + c, "every 20": a + c / 20, "default": a + c / n}
        every[kind]["every step / default"] = (a + c) / (a + c / n)
    return {"rows": rows, "schedules": every, "default_every": n}
