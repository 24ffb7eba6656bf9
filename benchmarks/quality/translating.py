"""Heads of ordinary classifiers on frozen pretrained encoders, translated to one another's spaces: macro-F1.

The head is a logistic regression on absolute embeddings of its own encoder. Beside the methods of
`hf_relreps.translation` stand the head's own encoder, the head on the other encoder's embeddings as they are (where
the two are equally wide), and a ridge decoder of this library.
Shapes: N samples, D absolute size, A anchors, R relative size.
"""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from itertools import permutations
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.spaces import Spaces
from benchmarks.quality.stitched import Decoder, all_relative, choose, config_of, pair_scores, score
from benchmarks.reporting import show_table
from hf_relreps.translation import METHODS, fit


ON = ("text", "glosses")
SIZES = (50, 100, 300, 768)


def run(arguments: Namespace) -> dict[str, Any]:
    """Mean and worst over ordered pairs and seeds, for each way and number of anchors."""
    found: dict[str, Any] = {}
    for name in ON[:1] if arguments.quick else ON:
        spaces = SETTINGS[name](arguments)
        scores: dict[str, list[float]] = defaultdict(list)
        heads = {encoder: _head(spaces, encoder) for encoder in spaces.x}
        for encoder in spaces.x:
            scores["own"].append(score(spaces, heads[encoder], spaces.x[encoder]))
        for own, other in permutations(spaces.x, 2):
            if spaces.x[own].shape == spaces.x[other].shape:
                scores["untranslated"].append(score(spaces, heads[own], spaces.x[other]))
        for k in SIZES:
            for seed in range(1 if arguments.quick else arguments.seeds):
                for way, found_f1 in _translated(spaces, heads, k, seed):
                    scores[f"{way}, {k}"].append(found_f1)
        found[name] = {way: [float(np.mean(of_way)), float(np.min(of_way))] for way, of_way in scores.items()}
        _show(name, found[name])
    return found


def _translated(spaces: Spaces, heads: dict[str, Decoder], k: int, seed: int) -> list[tuple[str, float]]:
    anchors_A = choose(spaces, k, "uniform", seed)
    config = config_of("default", k, spaces.num_classes)
    scores_EE = pair_scores(spaces, all_relative(spaces, anchors_A, config.space), "ridge", seed, config)
    found = [("ridge decoder", pair) for pair in scores_EE[~np.eye(len(scores_EE), dtype=bool)].tolist()]
    for own, other in permutations(spaces.x, 2):
        for method in METHODS:
            translate = fit(spaces.x[other][anchors_A], spaces.x[own][anchors_A], method)
            found.append((method, score(spaces, heads[own], translate(spaces.x[other]))))
    return found


def _head(spaces: Spaces, name: str) -> Decoder:
    """A classifier of embeddings; in units of their mean length, so that C means the same in each space."""
    x_ND = spaces.x[name][spaces.train_N].numpy()
    size = float(np.linalg.norm(x_ND, axis=1).mean())
    head = LogisticRegression(C=10, max_iter=2000).fit(x_ND / size, spaces.labels_N[spaces.train_N])
    return lambda x_MD: torch.from_numpy(head.decision_function(x_MD.detach().numpy() / size))


def _show(name: str, found: dict[str, list[float]]) -> None:
    rows = [(way, *(f"{way}, {k}" for k in SIZES)) for way in (*METHODS, "ridge decoder")]
    rows += [(way, way) for way in ("own", "untranslated") if way in found]
    shown = [(way, *("{:.3f} ({:.3f})".format(*found[key]) for key in keys)) for way, *keys in rows]
    show_table(name, [f"{k} anchors" for k in SIZES], shown)
