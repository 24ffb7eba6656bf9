"""Several similarities side by side or summed ("From Bricks to Bridges", ICLR 2024): own and stitched macro-F1.

Decoders are the library's `mlp` on frozen encoders, 300 uniform anchors; nothing was chosen on any of it.
Shapes: N samples, R relative size, A anchors.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.spaces import Spaces
from benchmarks.quality.stitched import choose, f1, fit_mlp, relative
from benchmarks.reporting import console
from hf_relreps import RelativeConfig


ON = ("words", "text")
K = 300
SPACES: dict[str, Any] = {"similarity": ["cosine", "euclidean", "l1"], "basis_ridge": None}
WAYS: dict[str, dict[str, Any]] = {
    "the paper's cosine": {"transform": "none", "similarity": "cosine", "basis_ridge": None},
    "three, side by side": SPACES,
    "three, summed": SPACES | {"decoder_aggregation": "sum"},
    "default": {},
}


def run(arguments: Namespace) -> dict[str, Any]:
    """Each way in each setting: own, stitched, the worst pair, and the deviation of stitched over seeds."""
    found: dict[str, Any] = {}
    for name in ON[:1] if arguments.quick else ON:
        spaces = SETTINGS[name](arguments)
        found[name] = {}
        for way, settings in WAYS.items():
            runs = [_scores(spaces, settings, seed) for seed in range(1 if arguments.quick else arguments.seeds)]
            own, stitched = (np.mean([run[i] for run in runs], axis=0) for i in (0, 1))
            spread = float(np.std([np.mean(run[1]) for run in runs]))
            figures = [own.mean(), stitched.mean(), stitched.min(), stitched.mean() / own.mean()]
            names = ("own", "stitched", "worst", "ratio")
            found[name][way] = dict(zip(names, map(float, figures), strict=True)) | {"spread": spread}
            console.print(name, way, found[name][way])
        _show(name, found[name])
    return found


def _scores(spaces: Spaces, settings: dict[str, Any], seed: int) -> tuple[list[float], list[float]]:
    """Macro-F1 of each own decoder on the test rows, and of each ordered pair."""
    anchors_A = choose(spaces, K, "uniform", seed)
    config = RelativeConfig(num_anchors=K, num_labels=spaces.num_classes, **settings)
    r = {name: relative(x_ND, x_ND[anchors_A], config) for name, x_ND in spaces.x.items()}
    own, stitched = [], []
    for number, (name, r_NR) in enumerate(r.items()):
        decode = fit_mlp(r_NR[spaces.train_N], spaces.labels_N[spaces.train_N], config, 1000 * (seed + 1) + number)
        for other, o_NR in r.items():
            score = f1(spaces.labels_N[spaces.test_N], decode(o_NR[spaces.test_N]))
            (own if other == name else stitched).append(score)
    return own, stitched


def _show(name: str, found: dict[str, dict[str, float]]) -> None:
    names = ("own", "stitched", "spread", "worst", "ratio")
    table = Table(f"{name}: way", *names, box=None)
    for way, figures in found.items():
        table.add_row(way, *(f"{figures[key]:.3f}" for key in names))
    console.print(table)
