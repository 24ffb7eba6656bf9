"""Pairs of texts, read in two ways and stitched across encoders and seeds.

    python -m benchmarks.text_pairs --assets assets --data data

`data` tells the tasks, `ways` the two ways. For each task and way every encoder is read by the decoder of every
other one. Each encoder of pairs has training pairs, order and decoder of its own seed; all that are stitched share the
anchors. The table shows accuracy on the test pairs:

- own: an encoder with its own decoder. stitched: with another's, of another seed or architecture; and as a share of
  what the encoder reaches with its own.
- absolute: a decoder of absolute embeddings behind another encoder. chance: half of the pairs match.
- labelled anchors: a decoder fitted on the encoder itself, with the labels of the 768 anchor pairs and nothing else.
- cosine: a threshold of cos(u, v), fitted on one encoder and used on the other; it needs no anchors.

Fine-tuned encoders are kept in `--cache`, so that a run that was stopped goes on; tasks and ways that are not measured
again stay in the results. Nothing is chosen on the test pairs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, one_hot

from benchmarks.reporting import console, machine, markdown, quiet, timed, write
from benchmarks.text_pairs.data import TASKS, Task
from benchmarks.text_pairs.ways import (
    LAYERS,
    Reader,
    absolute_control,
    accuracy,
    cross,
    fitted_to,
    of_cosine,
    two_passes,
)


RESULTS = Path(__file__).parents[1] / "results" / "text_pairs"
ENCODERS = ("minilm", "me5")
HEADS = ("task", "way", "own", "stitched", "stitched / own", "absolute", "labelled anchors", "cosine")


def encoders_of_pairs(task: str, arguments: argparse.Namespace) -> tuple[list[Reader], list[Task]]:
    """One for each encoder and seed; all share the anchors."""
    readers, tasks = [], []
    for seed in range(arguments.seeds):
        made = TASKS[task](seed, arguments)
        for i, name in enumerate(arguments.encoders):
            file = arguments.cache / f"{task}-{name}-{seed}-{arguments.epochs}.safetensors"
            if not file.is_file() and time.monotonic() > arguments.until:
                raise SystemExit(f"{arguments.minutes} minutes are over. Run it again: what was made is kept.")
            with timed(f"{task}, cross, {name}, seed {seed}"):
                readers.append(cross(name, made, 100 * i + seed, arguments, file))
            tasks.append(made)
    return readers, tasks


def compared(readers: list[Reader], tasks: list[Task]) -> dict[str, Any]:
    """Every encoder with every decoder: accuracy on the test pairs."""
    found: dict[str, Any] = {"own": {}, "labelled anchors": {}, "stitched": {}, "absolute": {}}
    relative = [{part: one.relative(getattr(one.read, part)) for part in ("labelled", "test")} for one in readers]
    controls = [absolute_control(one.read.train, task.train.labels) for one, task in zip(readers, tasks, strict=True)]
    for one, task, r in zip(readers, tasks, relative, strict=True):
        found["own"][one.name] = accuracy(one.decode(r["test"]), task.test.labels)
        on_anchors = fitted_to(r["labelled"], task.anchors.labels)
        found["labelled anchors"][one.name] = accuracy(on_anchors(r["test"]), task.test.labels)
    for (i, encoder), (j, decoder) in permutations(enumerate(readers), 2):
        labels, name = tasks[i].test.labels, f"{encoder.name} > {decoder.name}"
        found["stitched"][name] = accuracy(decoder.decode(relative[i]["test"]), labels)
        found["absolute"][name] = accuracy(controls[j](encoder.read.test), labels)
    return found


def with_cosine(readers: list[Reader], tasks: list[Task]) -> dict[str, float]:
    """A threshold of one encoder, used on another."""
    thresholds = [of_cosine(one.read.train, task.train.labels) for one, task in zip(readers, tasks, strict=True)]
    found = {}
    for (i, encoder), (j, decoder) in permutations(enumerate(readers), 2):
        matches = cosine_similarity(*encoder.read.test.unbind(1)) > thresholds[j]
        found[f"{encoder.name} > {decoder.name}"] = accuracy(one_hot(matches.long(), 2), tasks[i].test.labels)
    return found


def passes(task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Two passes: each seed has anchors and training pairs of its own, the encoders are stitched within it."""
    found: dict[str, Any] = {}
    for seed in range(arguments.seeds):
        made = TASKS[task](seed, arguments, seed)
        with timed(f"{task}, two passes, seed {seed}"):
            readers = [two_passes(name, made, seed, arguments, arguments.cache) for name in arguments.encoders]
            tasks = [made] * len(readers)
            result = compared(readers, tasks) | {"cosine": with_cosine(readers, tasks)}
        for name, values in result.items():
            found.setdefault(name, {}).update(values)
    return found


def crosses(task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Encoders of pairs: all of them are stitched to one another."""
    return compared(*encoders_of_pairs(task, arguments))


WAYS: dict[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {"cross": crosses, "two passes": passes}


def table(found: dict[str, Any]) -> str:
    """Means over encoders, pairs of them and seeds, with the range."""
    lines = []
    for task, ways in found.items():
        for way, parts in ways.items():
            own = parts["own"]
            kept = [score / own[name.split(" > ")[0]] for name, score in parts["stitched"].items()]
            cells = [_spread(own.values()), _spread(parts["stitched"].values()), _spread(kept)]
            cells += [_spread(parts.get(name, {}).values()) for name in ("absolute", "labelled anchors", "cosine")]
            lines.append([task, way, *cells])
    return markdown(HEADS, lines)


def _spread(values: Any) -> str:
    found = list(values)
    return f"{np.mean(found):.3f} ({min(found):.2f}-{max(found):.2f})" if found else "-"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        "benchmarks.text_pairs", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with trec.parquet")
    parser.add_argument("--cache", type=Path, default=Path(".cache/text_pairs"), help="what encoders say, kept there")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, choices=LAYERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of an encoder of pairs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no training begins after these")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    arguments.until = time.monotonic() + 60 * arguments.minutes
    with quiet(), torch.no_grad():
        file = arguments.output / "results.json"
        found = json.loads(file.read_text("utf-8"))["tasks"] if file.is_file() else {}
        for task in arguments.tasks:
            found[task] = found.get(task, {}) | {way: WAYS[way](task, arguments) for way in arguments.ways}
    console.print(table(found), markup=False)
    write(file, {"machine": machine(), "tasks": found})


if __name__ == "__main__":
    main()
