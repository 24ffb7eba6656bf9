"""6 Encoding texts of real lengths: sorted by length with dynamic padding, beside batches padded to the longest."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed import subjects
from benchmarks.speed.timing import paired, row


def run(quick: bool = False) -> dict[str, Any]:
    """Speed of `RelativeModel.encode` over fixed batches in the order of the data."""
    n, longest = (128, 128) if quick else (512, 256)
    encoder = subjects.relative(subjects.absolute(num_hidden_layers=3), 100, longest).encoder
    words = subjects.texts()[0][:n]
    tokenizer = subjects.tokenizer(longest)
    widest = max(len(ids) for ids in tokenizer(words, truncation=True, max_length=longest)["input_ids"])

    def fixed() -> torch.Tensor:
        parts = []
        with torch.no_grad():
            for start in range(0, n, 64):
                how = {"padding": "max_length", "truncation": True, "max_length": widest, "return_tensors": "pt"}
                inputs = tokenizer(words[start : start + 64], **how)
                parts.append(encoder(**inputs).pooler_output)
        return torch.cat(parts)

    difference = float((encoder.encode(words) - fixed()).abs().max())
    figure = paired(fixed, lambda: encoder.encode(words), 2 if quick else 4)
    note = f"the same rows in the same order: largest difference {difference:.0e}"
    what = f"{n} texts of up to {widest} tokens: fixed batches over sorted ones"
    return {"rows": [row(what, figure, "at least 2", note)]}
