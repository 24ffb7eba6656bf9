"""Writes `docs/quality.md` from the figures in `benchmarks/results/quality`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.quality.settings import CHOSEN_ON, ENCODERS, SETTINGS


DOCUMENT = Path(__file__).parents[2] / "docs" / "quality.md"
TEXT = Path(__file__).parent / "quality_template.md"
SHOWN = (("default", "kmeans"), ("default", "uniform"), ("centred cosine", "uniform"), ("cosine", "uniform"))
NAMES = {"default": "default", "centred cosine": "centred cosine", "cosine": "the paper's cosine"}


def write(results: Path) -> None:
    """Fill the template with what was measured."""
    text = TEXT.read_text("utf-8")
    parts = {
        "settings": list(_settings(results)),
        "bootstrapping": list(_bootstrapping(_read(results, "bootstrapping"))),
        "wrong": list(_wrong(_read(results, "anchors"))),
        "curve": list(_curve(_read(results, "anchors"))),
        "prediction": list(_prediction(_read(results, "prediction"))),
    }
    for name, lines in parts.items():
        text = text.replace("{{" + name + "}}", "\n".join(lines))
    DOCUMENT.write_text(text, "utf-8")


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text("utf-8"))


def _table(heads: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def _settings(results: Path) -> Iterator[str]:
    for name in SETTINGS:
        if (results / f"{name}.json").exists():
            yield from _setting(name, _read(results, name))


def _setting(name: str, found: dict[str, Any]) -> Iterator[str]:
    about = "chosen on its validation rows" if name in CHOSEN_ON else "nothing was chosen on it"
    sizes = ", ".join(f"{encoder} {width}" for encoder, width in found["encoders"].items())
    yield f"### {name}: {ENCODERS[name]}"
    rows = found["rows"]
    yield f"{rows['train']:,} training and {rows['test']:,} test rows, {found['seeds']} seeds; {about}."
    yield f"Encoders and their widths: {sizes}.\n"
    yield from _table(
        ("projection, anchors", "decoder", "own", "stitched", "±", "worst", "stitched / own", "worst / own")
    )
    for k in sorted({variant["k"] for variant in found["variants"]}):
        for projection, strategy in SHOWN:
            for variant in found["variants"]:
                if (variant["projection"], variant["strategy"], variant["k"]) == (projection, strategy, k):
                    figures = [variant[key] for key in ("own", "stitched", "spread", "worst", "ratio", "worst_ratio")]
                    yield _row([f"{NAMES[projection]}, {k} {strategy}", variant["decoder"], *figures])
        for strategy in ("kmeans", "uniform"):
            score, spread = found["labelled_anchors"][f"{k} {strategy}"]
            yield _row(
                [f"the {k} {strategy} anchors with labels, nothing else", "ridge", "", score, spread, "", "", ""]
            )
    absolute = found["absolute"]
    figures = ["" if absolute[key] is None else absolute[key] for key in ("own", "stitched", "spread", "worst")]
    yield _row(["absolute control", "ridge", *figures, "", ""])
    yield _row(["chance", "", "", float(found["chance"]), "", "", "", ""])
    if "end_to_end" in found:
        whole = found["end_to_end"]
        figures = [whole["own"], whole["stitched"], "", whole["worst"], whole["stitched"] / whole["own"], ""]
        yield _row(["default, trained end to end", "mlp", *figures])
    yield ""


def _bootstrapping(found: dict[str, Any]) -> Iterator[str]:
    yield from _table(
        (
            "setting",
            "pools",
            "true pairs",
            "of the pairs found are right",
            "trusted",
            "pairs only",
            "grown",
            "300 true pairs",
        )
    )
    for row in found["rows"]:
        keys = ("precision", "trusted", "seeds_only", "bootstrapped", "true")
        figures = [float(mean(run[key] for run in row["runs"])) for key in keys]
        pools = {"same": "the same samples", "half": "half in common"}[row["pools"]]
        yield _row([row["setting"], pools, row["known"], *figures])


def _wrong(found: dict[str, Any]) -> Iterator[str]:
    yield from _table(
        ("setting", "wrong", "found", "false alarms", "with all pairs", "without those found", "right ones only")
    )
    for setting, study in found.items():
        for row in study["wrong"]:
            keys = ("found", "false_alarms", "all", "kept", "right_ones")
            yield _row([setting, f"{row['share']:.0%}", *(float(row[key]) for key in keys)])


def _curve(found: dict[str, Any]) -> Iterator[str]:
    strategies = ("uniform", "stratified", "fps", "kmeans")
    yield from _table(("setting", "anchors", *strategies))
    for setting, study in found.items():
        stitched = {(row["strategy"], row["k"]): row["stitched"] for row in study["curve"]}
        for k in sorted({k for _, k in stitched}):
            yield _row([setting, k, *(stitched[strategy, k] for strategy in strategies)])


def _prediction(found: dict[str, Any]) -> Iterator[str]:
    yield from _table(
        ("setting", "Spearman", "agreement minus ratio", "error, line fitted there", "error, line of the others")
    )
    for setting, row in found["default"]["agreement"].items():
        yield _row([setting, *(float(row[key]) for key in ("spearman", "bias", "within", "left_out"))])
