"""Tables of taggers that read words: English across two encoders, other languages behind an English decoder.

`patches` does with cells of feature maps of images what the others do with words.

    python -m benchmarks.tokens --assets assets --data data

DATA holds tokens/pud.parquet and tokens/ewt.parquet (see `words`). eflomal and systran-align are rivals where they are
installed. `--languages pt ru zh` reads languages that nothing was chosen on; `treebanks` builds their data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reporting import console, machine, markdown, quiet, write
from benchmarks.tokens import choices, english, fine_tuned, languages, patches


TABLES = {
    "english": english.measure,
    "entities": english.measure_entities,
    "languages": languages.measure,
    "choices": choices.measure,
    "fine_tuned": fine_tuned.measure,
    "patches": patches.measure,
}
RESULTS = Path(__file__).parents[1] / "results" / "tokens"


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(
        "benchmarks.tokens", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--assets", type=Path, help="folder of the encoders, if they are not installed")
    parser.add_argument("--data", type=Path, required=True, help="folder with tokens/")
    parser.add_argument("--cache", type=Path, default=Path(".cache/tokens"), help="what encoders say, kept there")
    parser.add_argument("--seeds", type=int, default=3, help="draws of anchors and training words")
    parser.add_argument("--languages", nargs="+", default=languages.LANGUAGES, help="of pud.parquet, see `treebanks`")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    arguments.data = arguments.data / "tokens"
    torch.set_num_threads(1)
    for name in arguments.tables:
        with quiet():
            found = TABLES[name](arguments)
        file = arguments.output / f"{name}.json"
        if name == "languages" and file.is_file():
            found = json.loads(file.read_text("utf-8"))["found"] | found
        console.print(report(name, found), markup=False)
        write(file, {"machine": machine(), "seeds": arguments.seeds, "found": found})


def report(name: str, found: dict[str, Any]) -> str:
    """Tables of the means and standard deviations over seeds."""
    if name == "choices":
        return "\n\n".join(map(_choices, found, found.values()))
    if name != "languages":
        return "\n\n".join(_table(title, rows) for title, rows in found.items())
    parts = []
    for language, tasks in found.items():
        parts.append(f"{language}: {tasks['pairs']}")
        parts += [_table(f"{language}, {task}", rows) for task, rows in tasks.items() if task != "pairs"]
    return "\n\n".join(parts)


def _choices(language: str, found: dict[str, Any]) -> str:
    """A row for each number of sentence pairs and share of wrong ones."""
    heads = ("sentence pairs", "wrong", "refused", "retrieved", "by chance", "confirmed by e5's neighbours")
    names = ("retrieved", "retrieved_by_chance", "confirmed")
    rows = [
        [row["sentences"], row["wrong"], "yes" if "refused" in row else "no", *(row.get(name, "-") for name in names)]
        for row in found["trust"]
    ]
    return f"{language}: {found['choice']}\n\n{markdown(heads, rows)}"


def _table(title: str, rows: dict[str, dict[str, list[float]]]) -> str:
    kinds = list(next(iter(rows.values())))
    cells = [[row, *(_cell(scores[kind]) for kind in kinds)] for row, scores in rows.items()]
    return markdown((title, *kinds), cells)


def _cell(scores: list[float]) -> str:
    spread = f" ± {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.3f}{spread}"


if __name__ == "__main__":
    main()
