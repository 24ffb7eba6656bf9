"""Search a faiss index of an old embedding model with a new one, without encoding its documents again.

    pip install "hf_relreps[sentence-transformers]" faiss-cpu
    python examples/migrate_faiss.py old.faiss texts.txt --new me/new-model --ask "a game of cards"

`texts.txt` has the text of each row in its line. The index file is only read. What the new model encodes lies in the
folder --renewed: a run that is killed goes on from there. With `--renew 1000000 --write` you get the index new.faiss
with the vectors of the new model, when all documents have been encoded.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from migration_steps import SAMPLE, follow, parser

from hf_relreps.migration import migrate


options = parser(__doc__)
options.add_argument("index", help="file of the index: vectors of length 1, or compared by their inner product")
options.add_argument("texts", help="file with a line for each row")
options.add_argument("--output", default="new.faiss", help="where --write puts the new index")
chosen = options.parse_args()

index = faiss.read_index(chosen.index)
texts = Path(chosen.texts).read_text("utf-8").splitlines()


def nearest(queries: np.ndarray, count: int) -> list[dict[int, str]]:
    """How the index is asked: for each query the texts of its nearest rows."""
    return [{row: texts[row] for row in rows if row >= 0} for rows in index.search(queries, count)[1].tolist()]


rows = random.Random(0).sample(range(index.ntotal), min(SAMPLE, index.ntotal))
switched = migrate(
    index.reconstruct_batch(rows),
    [texts[row] for row in rows],
    chosen.new,
    nearest=nearest,
    ids=rows,
    pairs=chosen.pairs,
    renewed=chosen.renewed,
    progress=True,
)


def write(vectors: Any) -> None:
    """A new index beside the old one, with the same row numbers."""
    by_row = np.float32([vector for _, vector in sorted(vectors)])
    faiss.normalize_L2(by_row)
    new = faiss.IndexFlatIP(by_row.shape[1])
    new.add(by_row)
    faiss.write_index(new, chosen.output)


follow(switched, enumerate(texts), index.ntotal, write, chosen)
