"""Builds `pud.parquet` from clones of Universal Dependencies and Universal NER, in as many languages as there are.

    git clone https://github.com/UniversalDependencies/UD_Portuguese-PUD treebanks/UD_Portuguese-PUD
    git clone https://github.com/UniversalNER/UNER_Portuguese-PUD treebanks/UNER_Portuguese-PUD
    python -m benchmarks.tokens.treebanks treebanks --output data/tokens/pud.parquet

English is needed, as the language of the decoders. Both sets are CC BY-SA. Parts of speech come from UD_*-PUD,
entities from UNER_*-PUD, for those sentences whose words are the same in both: the two have different ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.reporting import console


Lines = list[list[str]]


def main() -> None:
    """Write the table, and say what is in it."""
    parser = argparse.ArgumentParser(
        "benchmarks.tokens.treebanks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds the clones")
    parser.add_argument("--output", type=Path, default=Path("data/tokens/pud.parquet"))
    arguments = parser.parse_args()
    rows = [row for file in sorted(arguments.folder.glob("UD_*-PUD/*.conllu")) for row in rows_of(file)]
    if not rows:
        raise SystemExit(f"There is no UD_*-PUD/*.conllu in {arguments.folder}. Clone the treebanks there first.")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_parquet(arguments.output)
    console.print(table.groupby("language").agg(sentences=("id", "count"), entities=("ner", "count")).to_string())


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """Sentences of a treebank, with the entities that Universal NER has for the same words."""
    language = file.name.split("_")[0]
    clone = file.parents[1] / file.parent.name.replace("UD_", "UNER_", 1)
    marked = {
        tuple(line[1] for line in lines): [_entity(line[2]) for line in lines]
        for entities in clone.glob("*.iob2")
        for _, lines in sentences_of(entities)
    }
    for name, lines in sentences_of(file):
        words = [line[1] for line in lines]
        yield {
            "id": name,
            "language": language,
            "words": words,
            "upos": [line[3] for line in lines],
            "ner": marked.get(tuple(words)),
        }


def sentences_of(file: Path) -> Iterator[tuple[str, Lines]]:
    """Id and columns of the words. Of a word that is split ("del": "de", "el"), the parts count and not the whole."""
    for block in file.read_text("utf-8").strip().split("\n\n"):
        name = next(line for line in block.split("\n") if line.startswith("# sent_id")).partition(" = ")[2]
        lines = [line.split("\t") for line in block.split("\n") if not line.startswith("#")]
        yield name, [line for line in lines if line[0].isdigit()]


def _entity(label: str) -> str:
    """Without the kind "other", which not every language has."""
    return "O" if label.endswith("OTH") else label


if __name__ == "__main__":
    main()
