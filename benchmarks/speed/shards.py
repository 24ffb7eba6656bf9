"""10 Encoding a data set into shards: throughput over the bare encoder in a loop, and memory as the rows grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reliability.guard import memory
from benchmarks.speed import subjects
from benchmarks.speed.timing import Pairs, clock, row
from hf_relreps.shards import encode_shards, read_shards


ROWS = (10_000, 40_000, 160_000)
LONGEST = 64


def bare(encoder: Any, words: list[str]) -> torch.Tensor:
    """What anyone writes: batches in the order of the data, padded to their longest, mean pooling."""
    tokenizer, backbone = subjects.tokenizer(LONGEST), encoder.backbone
    parts = []
    with torch.no_grad():
        for start in range(0, len(words), 64):
            how = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
            inputs = tokenizer(words[start : start + 64], **how)
            x_BTD, mask_BT = backbone(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
            parts.append((x_BTD * mask_BT).sum(1) / mask_BT.sum(1))
    return torch.cat(parts)


def speed(quick: bool) -> tuple[list[dict[str, Any]], float]:
    """Throughput of `encode_shards` over the bare loop and over `encode` of all texts at once; texts per second."""
    from datasets import Dataset

    n = 256 if quick else 2048
    encoder = subjects.relative(subjects.absolute(), 300, LONGEST).encoder
    words = subjects.texts()[0][:n]
    rows = Dataset.from_dict({"text": words})
    loop, at_once = Pairs(), Pairs()

    def shards(folder: str) -> None:
        encode_shards(encoder, rows, "text", folder)

    for _ in range(1 if quick else 5):
        with tempfile.TemporaryDirectory() as folder:
            ours = clock(lambda: shards(folder))  # noqa: B023
            stored = read_shards(folder).with_format("numpy")
            found_ND = np.concatenate([part["absolute_embeds"] for part in stored.iter(1024)])
        loop.add(clock(lambda: bare(encoder, words)), ours)  # theirs over ours: of speeds, not of times
        at_once.add(clock(lambda: encoder.encode(words)), ours)
    difference = float(np.abs(found_ND - bare(encoder, words).numpy()).max())
    what = f"encode_shards of {n} texts of up to {LONGEST} tokens, one core: speed over"
    note = f"largest difference of the embeddings {difference:.0e}"
    lines = [
        row(f"{what} the bare encoder in a loop", loop.to_dict(), "at least 0.95", note),
        row(f"{what} `encode` of all texts, sorted by length", at_once.to_dict()),
    ]
    return lines, n / loop.to_dict()["wall"]["seconds"][1]


def synthetic(n: int) -> Iterator[dict[str, Any]]:
    """Rows of a stream that lies nowhere."""
    for i in range(n):
        yield {"text": f"package {i} of {n}", "id": i}


def peak(n: int) -> None:
    """What a process of its own does: n rows of a stream through a tiny encoder; its peak memory."""
    from datasets import IterableDataset

    encoder = subjects.relative(subjects.absolute(num_hidden_layers=1, hidden_size=48), 50, LONGEST).encoder
    stream = IterableDataset.from_generator(synthetic, gen_kwargs={"n": n})
    with tempfile.TemporaryDirectory() as folder:
        done = encode_shards(encoder, stream, "text", folder, keep=["id"])
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    assert done.is_complete and done.rows == n
    print(json.dumps({"peak": round(memory("VmHWM") / 2**20), "disk": size / 2**20}))


def memories(quick: bool) -> list[dict[str, Any]]:
    """Peak memory of processes with more and more rows."""
    rows = []
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    for n in (500, 1000) if quick else ROWS:
        command = [sys.executable, "-m", "benchmarks.speed.shards", str(n)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, check=True)
        rows.append({"rows": n, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def half(quick: bool) -> dict[str, Any]:
    """How far relative representations of embeddings that were stored as float16 are from those of float32."""
    from datasets import Dataset

    n = 256 if quick else 1024
    encoder = subjects.relative(subjects.absolute(num_hidden_layers=2), 300, LONGEST).encoder
    rows, found = Dataset.from_dict({"text": subjects.texts()[0][:n]}), {}
    for dtype in ("float32", "float16"):
        with tempfile.TemporaryDirectory() as folder:
            encode_shards(encoder, rows, "text", folder, dtype=dtype)
            read = read_shards(folder, encoder).with_format("numpy")
            found[dtype] = np.concatenate([part["relative_embeds"] for part in read.iter(1024)])
    difference = np.abs(found["float16"] - found["float32"])
    scale = float(np.abs(found["float32"]).mean())
    return {"largest": float(difference.max()) / scale, "mean": float(difference.mean()) / scale}


def projecting(quick: bool) -> float:
    """Rows per second that `read_shards` reads and projects on 300 anchors, 384 wide."""
    from datasets import Dataset

    n = 256 if quick else 2048
    encoder = subjects.relative(subjects.absolute(num_hidden_layers=1), 300, LONGEST).encoder
    rows = Dataset.from_dict({"text": (subjects.texts()[0][:n])})
    with tempfile.TemporaryDirectory() as folder:
        encode_shards(encoder, rows, "text", folder)
        read = read_shards(folder, encoder).with_format("numpy")
        seconds = clock(lambda: [len(part["row"]) for part in read.iter(1024)])[0]
    return n / seconds


def run(quick: bool = False) -> dict[str, Any]:
    """Speed, memory and what half precision costs."""
    rows, texts_per_second = speed(quick)
    cost = {"texts_per_second": texts_per_second, "projected_per_second": projecting(quick)}
    return {"rows": rows, "memory": memories(quick), "float16": half(quick), "cost": cost}


if __name__ == "__main__":
    peak(int(sys.argv[1]))
