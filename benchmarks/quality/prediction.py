"""Can the stitched score be told without labels? Agreement on unlabelled pairs against what labels measured.

Reads the results of the settings, each row of which holds an encoder behind another's decoder. The ratio of stitched
to own is predicted by a line through what needs no labels; its error is that on settings that the line was not fitted
on, and, beside it, on the setting it was fitted on.
"""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.stitched import Cell
from benchmarks.reporting import console


FAIR = 0.3  # own scores below it make ratios of noise


class Rows(NamedTuple):
    """One row for each stitched pair, variant and seed of one setting."""

    ratio_N: np.ndarray
    agreement_N: np.ndarray
    corrected_N: np.ndarray  # agreement less that of random answers
    belief_N: np.ndarray  # the own encoder's belief in the stitched answers, over that in its own

    def features(self) -> dict[str, np.ndarray]:
        """What may predict, by name."""
        return {"agreement": self.agreement_N, "less chance": self.corrected_N, "belief": self.belief_N}


def run(arguments: Namespace) -> dict[str, Any]:
    """Rank correlations and errors, for all variants and for the default projection alone."""
    found: dict[str, Any] = {}
    for which, default_only in (("all", False), ("default", True)):
        rows = {
            name: _rows(json.loads(path.read_text("utf-8")), default_only)
            for name in SETTINGS
            if (path := arguments.output / f"{name}.json").is_file()
        }
        found[which] = {feature: _errors(rows, feature) for feature in ("agreement", "less chance", "belief")}
        for feature, figures in found[which].items():
            console.print(which, feature, figures)
    return found


def _rows(result: dict[str, Any], default_only: bool) -> Rows:
    found = []
    for variant in result["variants"]:
        if default_only and variant["projection"] != "default":
            continue
        cells = [(seed, Cell(*cell)) for seed, *cell in variant["cells"]]
        own = {(seed, cell.decoder): cell.f1 for seed, cell in cells if cell.encoder == cell.decoder}
        for seed, cell in cells:
            of_own = own[seed, cell.decoder]
            if cell.encoder != cell.decoder and of_own >= FAIR:
                corrected = (cell.agreement - cell.guessed) / (1 - cell.guessed)
                found.append((cell.f1 / of_own, cell.agreement, corrected, cell.beliefs[1] / cell.beliefs[0]))
    return Rows(*np.array(found).T)


def _errors(rows: dict[str, Rows], feature: str) -> dict[str, Any]:
    from scipy.stats import spearmanr

    figures = {}
    for name, of_name in rows.items():
        x_N, y_N = of_name.features()[feature], of_name.ratio_N
        others = [other for key, other in rows.items() if key != name]
        x_M = np.concatenate([other.features()[feature] for other in others])
        y_M = np.concatenate([other.ratio_N for other in others])
        figures[name] = {
            "spearman": round(float(spearmanr(x_N, y_N).statistic), 2),
            "bias": round(float((x_N - y_N).mean()), 3),
            "within": round(_error(np.polyfit(x_N, y_N, 1), x_N, y_N), 3),
            "left_out": round(_error(np.polyfit(x_M, y_M, 1), x_N, y_N), 3),
        }
    return figures


def _error(line: np.ndarray, x_N: np.ndarray, y_N: np.ndarray) -> float:
    return float(np.abs(np.polyval(line, x_N) - y_N).mean())
