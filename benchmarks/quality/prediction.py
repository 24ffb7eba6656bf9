"""Can the stitched score be told without labels? What `compatibility` expects against what labels measured.

Some samples serve as unlabelled pairs, the macro-F1 of own and stitched is measured on the others. Beside the
prediction stand what anybody could say (that nothing is lost; the mean ratio of the other settings) and a line through
the agreement of the two, fitted on the other settings. The formula was chosen on `CHOSEN_ON`; on the other settings
nothing was.
Shapes: N stitched pairs, M samples, C classes.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.quality.doubtful import Stitched, kept
from benchmarks.quality.stitched import f1
from benchmarks.reporting import show_table
from hf_relreps.prediction import expected_ratio


CHOSEN_ON = ("text", "images", "words")
CONFIRMED_ON = ("glosses", "languages", "graphs")
PAIRS = (100, 300, 1000)
SEEDS = {name: 2 for name in CHOSEN_ON} | {name: 1 for name in CONFIRMED_ON}  # of anchors and decoders
GROUPS = ("all", "whole", "many")  # of the stitched pairs: see `Stitched.whole`; many anchors are 300 or more
FAIR = 0.3  # own scores below it make ratios of noise
FEWEST_MEASURED = 600  # samples that must be left to measure on
MOST_PAIRS = 400  # stitched pairs of a setting
WAYS = ("expected", "expected, own known", "nothing is lost", "mean of the others", "agreement, line of the others")


def run(arguments: Namespace) -> dict[str, Any]:
    """Errors by number of pairs, of each group of stitched pairs, in each setting."""
    found: dict[str, Any] = {"chosen_on": CHOSEN_ON, "seeds": SEEDS, "pairs": {}}
    names = ("words",) if arguments.quick else (*CHOSEN_ON, *CONFIRMED_ON)
    stitched = {name: kept(name, arguments, SEEDS[name]) for name in names}
    for number in PAIRS:
        rows = {name: _measured(*stitched[name], number) for name in names if _enough(stitched[name][1], number)}
        found["pairs"][str(number)] = {name: _errors(name, rows) for name in rows}
        _show(number, found["pairs"][str(number)])
    return found


def _enough(labels_SM: np.ndarray, number: int) -> bool:
    return labels_SM.shape[1] - number >= FEWEST_MEASURED


def _measured(pairs: list[Stitched], labels_SM: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """One row for each stitched pair: what was expected of it, what labels say, and how it was made."""
    rows = []
    for i in np.random.default_rng(0).permutation(len(pairs))[:MOST_PAIRS]:
        pair = pairs[i]
        labels_M = labels_SM[pair.seed]
        own = f1(labels_M[number:], pair.own_MC[number:])
        if own >= FAIR:
            ratio = f1(labels_M[number:], pair.stitched_MC[number:]) / own
            seen = pair.own_MC[:number].float(), pair.stitched_MC[:number].float()
            right = float((seen[0].argmax(-1).numpy() == labels_M[:number]).mean())
            groups = (True, pair.whole, pair.whole and pair.way.k >= 300)
            rows.append((ratio, _agreement(*seen), expected_ratio(*seen), expected_ratio(*seen, right), *groups))
    names = ("measured", "agreement", *WAYS[:2], *GROUPS)
    return dict(zip(names, np.array(rows).T, strict=True))


def _agreement(own_MC: Tensor, stitched_MC: Tensor) -> float:
    return float((own_MC.argmax(-1) == stitched_MC.argmax(-1)).float().mean())


def _errors(name: str, rows: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Of one setting: errors of each way to predict, over each group of its pairs."""
    here, others = rows[name], [of_other for key, of_other in rows.items() if key != name] or [rows[name]]
    agreements, ratios = (np.concatenate([other[key] for other in others]) for key in ("agreement", "measured"))
    line = np.polyfit(agreements, ratios, 1)
    guesses = {
        **{way: here[way] for way in WAYS[:2]},
        WAYS[2]: np.ones_like(here["measured"]),
        WAYS[4]: np.polyval(line, here["agreement"]),
    }
    figures: dict[str, Any] = {"ratios": {}, "count": {}}
    for which in GROUPS:
        in_N = here[which] > 0
        measured_N = here["measured"][in_N]
        usual = np.mean([other["measured"][other[which] > 0].mean() for other in others])
        guesses[WAYS[3]] = np.full_like(here["measured"], usual)
        figures[which] = {way: _error(guesses[way][in_N], measured_N) for way in WAYS}
        figures["ratios"][which], figures["count"][which] = [measured_N.min(), measured_N.max()], int(in_N.sum())
    return figures


def _error(guess_N: np.ndarray, measured_N: np.ndarray) -> dict[str, float | None]:
    from scipy.stats import spearmanr

    wrong_N = guess_N - measured_N
    ranks = None if np.ptp(guess_N) == 0 else float(spearmanr(guess_N, measured_N).statistic)
    figures = {"mean": np.abs(wrong_N).mean(), "worst": np.abs(wrong_N).max(), "bias": wrong_N.mean()}
    return {key: float(value) for key, value in figures.items()} | {"spearman": ranks}


def _show(number: int, found: dict[str, Any]) -> None:
    rows = []
    for name, row in found.items():
        for which in GROUPS:
            cells = [row[which][way] for way in WAYS]
            ranks = ["-" if cell["spearman"] is None else f"{cell['spearman']:.2f}" for cell in cells]
            shown = [f"{cell['mean']:.3f} {cell['worst']:.2f} {rank}" for cell, rank in zip(cells, ranks, strict=True)]
            rows.append((f"{name}, {which}", *shown))
    show_table(f"{number} pairs: mean error, worst, Spearman", WAYS, rows)
