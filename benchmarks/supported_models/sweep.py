"""Every model type in a process of its own, with a limit of time and memory: one that fails takes no other with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from benchmarks.supported_models.inputs import anchor_set, tokenizer
from benchmarks.supported_models.probe import Row, probe, tiny_model
from hf_relreps import AnchorSet, RelativeModelForSequenceClassification


MODEL_TYPES = tuple(MODEL_MAPPING_NAMES)


def decoder_of_bert(folder: Path, anchors: AnchorSet) -> Path:
    """An upload whose decoder reads the anchors through BERT's eyes: every type is stitched to it."""
    model = RelativeModelForSequenceClassification.from_encoder(
        tiny_model("bert"), anchors.view("text"), tokenizer(), num_labels=3
    )
    model.save_pretrained(folder)
    return folder


def sweep(
    types: Sequence[str],
    folder: Path,
    jobs: int = 2,
    seconds: float = 180,
    gibibytes: int = 8,
    report: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Rows of all `types`, in their order.

    Args:
        types: Names of model types.
        folder: For the decoder that all are stitched to.
        jobs: Processes at a time.
        seconds: Time for one type.
        gibibytes: Memory for one type.
        report: Called with the rows of each type as soon as they are there.
    """
    torch.set_num_threads(1)
    anchors = anchor_set()
    decoder = decoder_of_bert(folder, anchors)
    _import_models(types)
    # Forked after the imports, so that each starts at once.
    context = multiprocessing.get_context("fork")
    queue, running, rows = list(types), {}, {}
    while queue or running:
        while queue and len(running) < jobs:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_probed, args=(queue[0], anchors, decoder, gibibytes, there))
            process.start()
            there.close()
            running[here] = (queue.pop(0), process, time.monotonic())
        ready = wait(list(running), timeout=1)
        late = [pipe for pipe, (_, _, start) in running.items() if time.monotonic() - start > seconds]
        for pipe in [*ready, *(pipe for pipe in late if pipe not in ready)]:
            model_type, process, start = running.pop(pipe)
            found = _received(pipe, process, model_type, seconds)
            rows[model_type] = [replace(row, seconds=round(time.monotonic() - start, 1)) for row in found]
            report(rows[model_type])
    return [row for model_type in types for row in rows[model_type]]


def _import_models(types: Sequence[str]) -> None:
    for model_type in types:
        with contextlib.suppress(Exception):  # the process of that type will say why
            MODEL_MAPPING[CONFIG_MAPPING[model_type]]


def _probed(model_type: str, anchors: AnchorSet, decoder: Path, gibibytes: int, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (gibibytes << 30, gibibytes << 30))
    pipe.send(probe(model_type, anchors, decoder))


def _received(pipe: Connection, process: Any, model_type: str, seconds: float) -> list[Row]:
    if not pipe.poll():
        process.kill()
        process.join()
        return [Row(model_type, cause="large", detail=f"not done after {seconds:.0f} seconds")]
    try:
        rows = pipe.recv()
    except EOFError:
        process.join()
        return [Row(model_type, cause="large", detail=f"the process ended with {process.exitcode}")]
    process.join()
    return rows
