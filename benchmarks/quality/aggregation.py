"""Several similarities side by side or summed ("From Bricks to Bridges", ICLR 2024): own and stitched macro-F1.

Decoders are the library's `mlp` on frozen encoders, 300 uniform anchors; nothing was chosen on any of it.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.stitched import PROJECTIONS, Variant, of_variant, summary
from benchmarks.reporting import show_table


ON = ("words", "text")
SPACES: dict[str, Any] = {"similarity": ["cosine", "euclidean", "l1"], "basis_ridge": None}
WAYS: dict[str, dict[str, Any]] = {
    "the paper's cosine": PROJECTIONS["cosine"],
    "three, side by side": SPACES,
    "three, summed": SPACES | {"decoder_aggregation": "sum"},
    "default": {},
}
FIGURES = ("own", "stitched", "spread", "worst", "ratio")


def run(arguments: Namespace) -> dict[str, Any]:
    """Each way in each setting: own, stitched, the worst pair, and the deviation of stitched over seeds."""
    found: dict[str, Any] = {}
    for name in ON[:1] if arguments.quick else ON:
        spaces, seeds = SETTINGS[name](arguments), range(1 if arguments.quick else arguments.seeds)
        found[name] = {
            way: summary([of_variant(spaces, Variant(way, "mlp", "uniform", 300), seed, settings) for seed in seeds])
            for way, settings in WAYS.items()
        }
        show_table(name, FIGURES, [(way, *(row[key] for key in FIGURES)) for way, row in found[name].items()])
    return found
