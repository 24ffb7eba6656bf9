"""1 Inference: relative and stitched beside `AutoModelForSequenceClassification`, on the same encoder and batch."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed import subjects
from benchmarks.speed.timing import paired, row
from hf_relreps import stitch


def run(quick: bool = False) -> dict[str, Any]:
    """Ratios for batches of one and of 32 texts, 300 and 768 anchors."""
    rows = []
    model, other = subjects.absolute(), subjects.absolute(1)
    for k in (300, 768):
        whole = subjects.relative(model, k, 64)
        stitched = stitch(whole, subjects.relative(other, k, 64))
        for size in (1, 32):
            inputs = subjects.batch(size, 64)
            del inputs["labels"]
            for name, subject in (("relative", whole), ("stitched", stitched)):
                if name == "stitched" and (k, size) != (768, 32):
                    continue
                pairs = 5 if quick else (100 if size == 1 else 24)
                with torch.inference_mode():
                    figure = paired(lambda: subject(**inputs), lambda: model(**inputs), pairs)  # noqa: B023
                shape = " x ".join(map(str, inputs["input_ids"].shape))
                goal = "at most 1.02" if size == 32 else ""
                rows.append(row(f"{name}, {k} anchors, {shape} tokens", figure, goal))
    return {"rows": rows}
