"""English words of EWT, across MiniLM and multilingual-e5: two tokenizers, two architectures."""

from __future__ import annotations

import argparse
from itertools import permutations
from typing import Any

import numpy as np
import torch

from benchmarks.tokens.measure import SPACES, Absolute, Relative, Table, procrustes, scores, trained_on
from benchmarks.tokens.words import encode, load_ewt


ENCODERS = ("minilm", "me5")
SIZES = (300, 1500)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores by task, encoder of the decoder and way, one for each seed."""
    read = _read(arguments)
    return {task: _of_task(read, task, arguments.seeds) for task in ("upos", "ner")}


def measure_entities(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same for entities, where half of the anchors are words of entities."""
    return {"ner": _of_task(_read(arguments), "ner", arguments.seeds, half=True)}


def _read(arguments: argparse.Namespace) -> dict[str, Any]:
    sets = load_ewt(arguments.data)
    return {
        name: {part: encode(name, sets[part], arguments.cache, arguments.assets) for part in sets} for name in ENCODERS
    }


def _anchors(labels_W: torch.Tensor, k: int, seed: int, half: bool) -> torch.Tensor:
    """Rows of k training words; half of them have a label other than the first, if asked for."""
    rows_W = torch.as_tensor(np.random.default_rng(100 + seed).permutation(len(labels_W)))
    if not half:
        return rows_W[:k]
    named_W = labels_W[rows_W] != 0
    return torch.cat([rows_W[named_W][: k // 2], rows_W[~named_W][: k - k // 2]])


def _of_task(read: dict[str, Any], task: str, seeds: int, half: bool = False) -> dict[str, Any]:
    table = Table()
    marked = {name: {part: words.marked(task) for part, words in parts.items()} for name, parts in read.items()}
    for seed in range(seeds):
        for own, other in permutations(ENCODERS):
            train, test = marked[own]["train"], marked[own]["test"]
            other_x_WD = marked[other]["test"].x_WD
            rows = trained_on(train, task, seed)
            x_WD, labels_W = train.x_WD[rows], train.labels(task)[rows]
            absolute = Absolute.fit(x_WD, labels_W, task)
            table.add(f"{own}, own, absolute", scores(absolute.say(test.x_WD), test, task))
            table.add(f"{own}, absolute, swapped", scores(absolute.say(other_x_WD), test, task))
            for k in SIZES:
                chosen_A = _anchors(train.labels(task), k, seed, half)
                mine_AD, theirs_AD = train.x_WD[chosen_A], marked[other]["train"].x_WD[chosen_A]
                moved_WD = procrustes(other_x_WD, theirs_AD, mine_AD)
                table.add(f"{own}, Procrustes, {k}", scores(absolute.say(moved_WD), test, task))
                for name in ("default",) if half else ("default", "paper's cosine"):
                    decoder = Relative.fit(x_WD, labels_W, task, mine_AD, SPACES[name])
                    if name == "default":
                        table.add(f"{own}, own, relative, {k}", scores(decoder.say(test.x_WD, mine_AD), test, task))
                    stitched_W = decoder.say(other_x_WD, theirs_AD)
                    table.add(f"{own}, stitched, {name}, {k}", scores(stitched_W, test, task))
    return table.plain()
