"""One pass, many decoders: a model with ten decoders beside the same model with one."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed import subjects
from benchmarks.speed.timing import paired, row
from hf_relreps import RelativeDecoder, stitch


DECODERS = 10


def run(quick: bool = False) -> dict[str, Any]:
    """Ratios for batches of one and of 32 texts: ten over one, and ten models of one decoder over one of ten."""
    rows = []
    one = subjects.relative(subjects.absolute(), 300, 64)
    others = {f"question_{i}": RelativeDecoder(one.decoder.config).eval() for i in range(DECODERS)}
    ten = stitch(one.encoder, others)
    for size in (1, 32):
        inputs = subjects.batch(size, 64)
        del inputs["labels"]
        pairs = 5 if quick else (100 if size == 1 else 24)
        shape = " x ".join(map(str, inputs["input_ids"].shape))
        with torch.inference_mode():
            figure = paired(lambda: ten(**inputs), lambda: one(**inputs), pairs)  # noqa: B023
            rows.append(row(f"{DECODERS} decoders over one, {shape} tokens", figure, "at most 1.05" * (size == 32)))
            if size == 32:
                alone = [stitch(one.encoder, decoder) for decoder in others.values()]
                figure = paired(lambda: [model(**inputs) for model in alone], lambda: ten(**inputs), pairs // 4)  # noqa: B023
                rows.append(row(f"{DECODERS} models of one decoder over one of {DECODERS}, {shape} tokens", figure))
    return {"rows": rows}
