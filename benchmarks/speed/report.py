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
ITEMS += ("imports", "commands", "growth", "decoders", "tokens", "shards")


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
    text = text.replace("{{summary}}", "\n".join(summary)).replace("{{accelerator}}", _accelerator(results.parent))
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(re.sub(r"\{\{.+?\}\}", "*Not measured yet.*", text), "utf-8")


def _accelerator(results: Path) -> str:
    """What `benchmarks.accelerator` measured."""
    from benchmarks.accelerator import RESULTS, tables

    file = results / RESULTS.name
    if not file.exists():
        return "The figures are **not measured**: no accelerator was at hand."
    return "\n".join(tables(json.loads(file.read_text("utf-8"))))


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
    if name == "commands":
        heads = {"what": "a process of its own", "wall": "wall, s", "processor": "processor, s"}
        parts["commands seconds"] = plain(found["seconds"], heads)
    if name == "growth":
        parts |= _growth(found)
    if name == "shards":
        parts |= _shards(found)
    return parts


HUNDRED_MILLION = 100_000_000


def _shards(found: dict[str, Any]) -> dict[str, list[str]]:
    """Memory as rows grow, and what a hundred million texts cost at the speed that was measured."""
    heads = {"rows": "rows", "peak": "peak memory of the process, MB", "disk": "shards, MB"}
    speed, projected = found["cost"]["texts_per_second"], found["cost"]["projected_per_second"]
    cost = [
        ("encoding", f"{speed:,.0f} texts/s", f"{HUNDRED_MILLION / speed / 86400:.0f} core-days"),
        ("reading and projecting", f"{projected:,.0f} rows/s", f"{HUNDRED_MILLION / projected / 3600:.1f} core-hours"),
        ("disk, 384 numbers, float32", "", f"{HUNDRED_MILLION * 384 * 4 / 1e9:.0f} GB"),
        ("disk, 384 numbers, float16", "", f"{HUNDRED_MILLION * 384 * 2 / 1e9:.0f} GB"),
    ]
    half = found["float16"]
    says = f"largest {half['largest']:.1e}, mean {half['mean']:.1e} of the mean absolute value"
    return {
        "shards memory": plain(found["memory"], heads),
        "shards cost": [markdown(("what", "measured on one core", "100 million texts"), cost)],
        "shards float16": [says],
    }


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
