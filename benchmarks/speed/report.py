"""The document `docs/speed.md`, made from the JSON that the items wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reporting import markdown, table_row, versions


DOCUMENT = Path(__file__).parents[2] / "docs" / "speed.md"
TEXT = Path(__file__).parent / "speed_template.md"
ITEMS = ("inference", "finetuning", "schedules", "frozen", "matrix", "projection", "encoding", "selection")
ITEMS += ("imports", "growth")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: a ratio by wall time and by processor time, with quartiles and range over the pairs."""
    if not rows:
        return []
    heads = ("what", "wall: median (quartiles; range)", "processor: median (quartiles)", "pairs", "goal")
    return [markdown(heads, map(_cells, rows))]


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    what, wall, processor = row["what"] + (f" ({row['note']})" if row["note"] else ""), row["wall"], row["processor"]
    spans = f"{_span(wall['quartiles'])}; {_span(wall['range'])}"
    processor_cell = f"**{processor['ratio']:.3f}** ({_span(processor['quartiles'])})"
    return what, f"{wall['ratio']:.3f} ({spans})", processor_cell, row["pairs"], row["goal"]


def _span(ends: Sequence[float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"


def plain(rows: Sequence[dict[str, Any]], heads: dict[str, str]) -> list[str]:
    """Markdown of rows of numbers."""
    return [markdown(list(heads.values()), [[_number(row.get(name)) for name in heads] for row in rows])]


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value) if isinstance(value, str) else f"{value:.3g}"


def write(results: Path) -> None:
    """Fill the template: ``{{name}}`` becomes what the item of that name measured."""
    text = TEXT.read_text("utf-8")
    summary: list[str] = []
    for name in ITEMS:
        path = results / f"{name}.json"
        found = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": []}
        summary += _goals(found["rows"])
        for key, lines in _parts(name, found).items() if path.exists() else ():
            text = text.replace("{{" + key + "}}", "\n".join(lines))
    text = text.replace("{{summary}}", "\n".join(summary))
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(re.sub(r"\{\{.+?\}\}", "*Not measured yet.*", text), "utf-8")


def _goals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The figures that have a goal: by the wall clock, and by the processor's time."""
    reached = "{:.2f} wall, {:.2f} processor"
    ratios = [(row, reached.format(row["wall"]["ratio"], row["processor"]["ratio"])) for row in rows if row["goal"]]
    return [table_row((row["what"], row["goal"], ratio)) for row, ratio in ratios]


def _parts(name: str, found: dict[str, Any]) -> dict[str, list[str]]:
    parts = {name: [*table(found["rows"]), "", _machine(found["machine"])] if found["rows"] else []}
    if name == "finetuning":
        heads = {"schedule": "of 768 anchors", "wall": "wall", "processor": "processor"}
        rows = [
            {"schedule": key, "wall": found["schedules"]["wall"][key], "processor": value}
            for key, value in found["schedules"]["processor"].items()
        ]
        parts["finetuning schedules"] = plain(rows, heads)
    if name == "schedules":
        parts |= {f"schedules {k}": _schedules(found[k]) for k in ("300", "768")}
    if name == "projection":
        rows = [{"what": key, "peak": value} for key, value in found["peak_memory_in_outputs"].items()]
        parts["projection memory"] = plain(rows, {"what": "projection", "peak": "peak memory, in outputs"})
    if name == "growth":
        parts |= _growth(found)
    return parts


def _schedules(found: dict[str, Any]) -> list[str]:
    rows = [{"schedule": key, **value} for key, value in found.items()]
    heads = {"schedule": "schedule", "anchors_per_sample": "anchors encoded for each training sample"}
    heads |= {"own": "own F1", "stitched": "stitched F1", "worst": "worst"}
    return plain(sorted(rows, key=lambda row: -row["anchors_per_sample"]), heads)


def _growth(found: dict[str, Any]) -> dict[str, list[str]]:
    seconds = {"cosine": "cosine, s", "default": "default, s"}
    disk = {"projection": "projection, s", "to disk": "projection to Arrow, s", "fps": "fps of 50, s"}
    heads = {
        "anchors": {"anchors": "k", **seconds, "frame": "frame after a refresh, s", "frame_MB": "frame, MB"},
        "samples": {"samples": "N", **disk},
        "width": {"width": "D", **seconds},
        "ranks": {"ranks": "ranks", "anchors_of_a_rank": "anchors of a rank", "refresh": "refresh, s of the slowest"},
    }
    return {f"growth {key}": plain(found[key], columns) for key, columns in heads.items()}


def _machine(facts: dict[str, Any]) -> str:
    load, cores = " to ".join(map(str, facts["load"])), f"{facts['cores']} cores of {facts['processor']}"
    return f"*{cores}, {facts['threads']} threads, load {load}; {versions(facts)}.*"
