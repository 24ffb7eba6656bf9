"""The table of supported models as Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.supported_models.causes import CAUSES, NO_ENCODER, NOT_BUILT


HEAD = """# Supported models

Made by `{command}` in {minutes:.0f} minutes (transformers {transformers}, torch {torch}); not written by hand.

Every model type that this transformers registers for `AutoModel` is built tiny from its configuration, with random
weights, and must do all of this as an encoder: become relative over {anchors} anchors of each modality that it reads
(`RelativeModel.from_encoder`); give each of {samples} samples the same embedding twice, alone and in a batch; be
saved, and loaded through `AutoModel` with bit-equal embeddings; be stitched to a decoder that was made with BERT over
the same anchors' texts. (The loaded weights are copied before they are compared: convolutions differ in the last bit
with where in memory weights lie.) What it shows is that a type *fits*; how well pretrained weights stitch is another
question.

| | types |
|---|---:|
| registered for `AutoModel` | {total} |
| cannot be built here: {not_built} | {n_not_built} |
| no encoder of one modality: {no_encoder} | {n_no_encoder} |
| **left: should work** | **{should}** |
| **work**, in one modality at least | **{works}** ({share:.1%}) |

{by_modality}
"""

COLUMNS = """Columns: *tower*, the part that is the encoder (none: the whole model); *pooling*, chosen by default; *D*,
width of the embedding as measured on the tiny model; *padded*, whether samples of unlike length share a batch (if not,
padding would change embeddings, so only samples of one length do).
"""


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many types there are, cannot be built, are no encoders, should work and do."""
    by_type = _by_type(rows)
    works = {name for name, own in by_type.items() if any(row["works"] for row in own)}
    rest = {name: [row["cause"] for row in own] for name, own in by_type.items() if name not in works}
    not_built = {name for name, causes in rest.items() if all(cause in NOT_BUILT for cause in causes)}
    no_encoder = {
        name for name, causes in rest.items() if all(c in NOT_BUILT + NO_ENCODER for c in causes)
    } - not_built
    return {
        "total": len(by_type),
        "n_not_built": len(not_built),
        "n_no_encoder": len(no_encoder),
        "should": len(by_type) - len(not_built) - len(no_encoder),
        "works": len(works),
    }


def render(record: Mapping[str, Any]) -> str:
    """The document of a sweep's record."""
    rows = record["rows"]
    numbers = counts(rows)
    head = HEAD.format(
        **{name: record[name] for name in ("command", "minutes", "transformers", "torch", "anchors", "samples")},
        **numbers,
        share=numbers["works"] / max(1, numbers["should"]),
        not_built="; ".join(CAUSES[cause] for cause in NOT_BUILT),
        no_encoder="; ".join(CAUSES[cause] for cause in NO_ENCODER),
        by_modality=_by_modality(rows),
    )
    return "\n".join(
        [head, COLUMNS, "## What works", "", _working(rows), "", "## What does not, and why", "", _failing(rows)]
    )


def _by_type(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    by_type = defaultdict(list)
    for row in rows:
        by_type[row["model_type"]].append(row)
    return dict(by_type)


def _by_modality(rows: Sequence[Mapping[str, Any]]) -> str:
    works = Counter(row["modality"] for row in rows if row["works"])
    poolings = Counter((row["modality"], row["pooling"]) for row in rows if row["works"])
    lines = ["| modality | types that work | poolings chosen |", "|---|---:|---|"]
    for modality, n in works.items():
        chosen = ", ".join(f"{name} {count}" for (m, name), count in poolings.most_common() if m == modality)
        lines.append(f"| {modality} | {n} | {chosen} |")
    return "\n".join(lines)


def _working(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| model type | modality | tower | pooling | D | padded |", "|---|---|---|---|---:|---|"]
    for row in rows:
        if row["works"]:
            padded = {True: "yes", False: "no"}[row["padding"]] if row["modality"] != "image" else ""
            cells = (row["model_type"], row["modality"], row["tower"] or "", row["pooling"], row["width"], padded)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _failing(rows: Sequence[Mapping[str, Any]]) -> str:
    """By cause; a type that works in another modality says so."""
    works = {row["model_type"]: row["modality"] for row in rows if row["works"]}
    parts = []
    for cause, meaning in CAUSES.items():
        failing = [row for row in rows if not row["works"] and row["cause"] == cause]
        if failing:
            lines = [f"### {meaning.capitalize()}", "", "| model type | modality | what was found |", "|---|---|---|"]
            for row in failing:
                also = f" (works with {works[row['model_type']]})" if row["model_type"] in works else ""
                detail = row["detail"].replace("|", "\\|").replace("<", "\\<")[:240]
                lines.append(f"| {row['model_type']}{also} | {row['modality']} | {detail} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
