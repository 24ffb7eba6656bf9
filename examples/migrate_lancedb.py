"""Search a LanceDB table of an old embedding model with a new one, without encoding its documents again.

    pip install "hf_relreps[sentence-transformers]" lancedb
    python examples/migrate_lancedb.py FOLDER TABLE --new me/new-model --ask "a game of cards"

The table has the columns `id`, `text` and `vector`, and is only read. What the new model encodes lies in the folder
--renewed: a run that is killed goes on from there. With `--renew 1000000 --write` you get the table TABLE_new with the
vectors of the new model, when all documents have been encoded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import lancedb
import numpy as np
from migration_steps import SAMPLE, follow, parser

from hf_relreps.migration import migrate


options = parser(__doc__)
options.add_argument("folder")
options.add_argument("table")
chosen = options.parse_args()

database = lancedb.connect(chosen.folder)
table = database.open_table(chosen.table)


def nearest(queries: np.ndarray, count: int) -> list[dict[Any, str]]:
    """How the table is asked: for each query the texts of its nearest documents, by their ids."""
    asked = [table.search(query).distance_type("cosine").limit(count).to_list() for query in queries]
    return [{row["id"]: row["text"] for row in found} for found in asked]


total = table.count_rows()
sample = table.take_offsets(random.Random(0).sample(range(total), min(SAMPLE, total))).to_arrow()
switched = migrate(
    np.stack(sample["vector"].to_numpy()),
    sample["text"].to_pylist(),
    chosen.new,
    nearest=nearest,
    ids=sample["id"].to_pylist(),
    pairs=chosen.pairs,
    renewed=chosen.renewed,
    progress=True,
)


def documents() -> Iterator[tuple[Any, str]]:
    """All of them, one batch after the other."""
    for batch in table.search().select(["id", "text"]).limit(total).to_batches():
        yield from zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True)


def write(vectors: Any) -> None:
    """A table beside the old one."""
    texts = dict(documents())
    rows = [{"id": one, "text": texts[one], "vector": vector} for one, vector in vectors]
    database.create_table(f"{chosen.table}_new", rows)


follow(switched, documents(), total, write, chosen)
