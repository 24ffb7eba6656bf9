"""10 How cost grows: with anchors, samples, the encoder's width and the number of processes.

Embeddings are simulated. Seconds are processor time of all threads, the median of three runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.projection import DEFAULT, PAPER, made
from benchmarks.speed.timing import clock
from hf_relreps.selection import select


ANCHORS = (50, 300, 768, 2000, 5000)
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (128, 384, 768, 1536)
RANKS = (1, 2, 4)


def seconds(run: Callable[[], Any], times: int = 3) -> float:
    """Median processor time after a run to warm up."""
    run()
    return float(np.median([clock(run)[1] for _ in range(times)]))


def by_anchors(quick: bool) -> list[dict[str, Any]]:
    """Projection of 10,000 embeddings of 384 numbers, and what a refresh costs beside the encoding."""
    x_ND = torch.randn(10_000, 384)
    rows = []
    for k in ANCHORS[:3] if quick else ANCHORS:
        anchors_AD = torch.randn(k, 384)
        default, cosine = made(DEFAULT, anchors_AD), made(PAPER, anchors_AD)
        once = 1 if k > 1000 else 3
        found = {"anchors": k, "cosine": seconds(lambda: cosine(x_ND))}  # noqa: B023
        found["default"] = seconds(lambda: default(x_ND), once)  # noqa: B023
        found["frame"] = seconds(lambda: default.set_anchors(anchors_AD), once)  # noqa: B023
        rows.append(found | {"frame_MB": (k * k + 2 * k * 384) * 4 / 1e6})
    return rows


def by_samples(quick: bool) -> list[dict[str, Any]]:
    """Projection on 300 anchors, writing the result as Arrow, and selection."""
    rows = []
    module = made(DEFAULT, torch.randn(300, 384))
    for n in SAMPLES[:2] if quick else SAMPLES:
        x_ND = torch.randn(n, 384)
        fps = seconds(lambda: select(len(x_ND), 50, "fps", embeddings_ND=x_ND), 1) if n < 1e6 else None  # noqa: B023
        projected = seconds(lambda: module(x_ND), 1)  # noqa: B023
        rows.append({"samples": n, "projection": projected, "to disk": written(module, x_ND), "fps": fps})
    return rows


def written(module: Any, x_ND: torch.Tensor) -> float:
    """Processor time of projecting and writing in chunks, as `encode_dataset` writes."""
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({"relative_embeds": List(Value("float32"), length=module.space.size)})

    def run() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            ArrowWriter(features=features, path=f"{folder}/r.arrow") as writer,
        ):
            for x_BD in x_ND.split(1024):
                writer.write_batch({"relative_embeds": module(x_BD).numpy()})
            writer.finalize()

    return clock(run)[1]


def by_width(quick: bool) -> list[dict[str, Any]]:
    """Projection of 10,000 embeddings on 768 anchors."""
    rows = []
    for d in WIDTHS[:2] if quick else WIDTHS:
        x_ND, anchors_AD = torch.randn(10_000, d), torch.randn(768, d)
        default, cosine = made(DEFAULT, anchors_AD), made(PAPER, anchors_AD)
        found = {"cosine": seconds(lambda: cosine(x_ND)), "default": seconds(lambda: default(x_ND))}  # noqa: B023
        rows.append({"width": d, **found})
    return rows


def by_ranks(quick: bool) -> list[dict[str, Any]]:
    """A refresh of 768 anchors under torchrun: the processor time of the slowest rank."""
    rows = []
    for ranks in RANKS[:2] if quick else RANKS:
        with tempfile.TemporaryDirectory() as folder:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
            command = [*launch, "-m", "benchmarks.speed.growth", folder]
            subprocess.run(command, env=environment, check=True, capture_output=True)
            found = [json.loads(path.read_text()) for path in Path(folder).glob("rank-*.json")]
        slowest = max(found, key=lambda rank: rank["refresh"])
        rows.append({"ranks": ranks, "refresh": slowest["refresh"], "anchors_of_a_rank": slowest["anchors"]})
    return rows


def rank(folder: str) -> None:
    """What each process of torchrun does: two steps, each with a refresh."""
    from benchmarks.speed import subjects
    from benchmarks.training import tokenized, train
    from hf_relreps import AnchorCallback

    refreshes = []

    class Timed(AnchorCallback):
        def _encode(self, *args: Any) -> Any:
            started = time.process_time()
            encoded = super()._encode(*args)
            refreshes.append(time.process_time() - started)
            return encoded

    model = subjects.relative(subjects.absolute(num_hidden_layers=2), 768, 64)
    words, labels = subjects.texts()
    tokenizer = subjects.tokenizer(64)
    how = {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 8, "ddp_find_unused_parameters": False}
    train(model, tokenized(tokenizer, words[:64], labels), 42, Timed(refresh_every=1), processor=tokenizer, **how)
    index, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    record = {"refresh": float(np.median(refreshes)), "anchors": len(range(index, 768, ranks))}
    Path(folder, f"rank-{index}.json").write_text(json.dumps(record))


def run(quick: bool = False) -> dict[str, Any]:
    """All four tables."""
    torch.manual_seed(0)
    tables = {"anchors": by_anchors, "samples": by_samples, "width": by_width, "ranks": by_ranks}
    return {"rows": [], **{name: measure(quick) for name, measure in tables.items()}}


if __name__ == "__main__":
    rank(sys.argv[1])
