"""Search a PostgreSQL table of an old embedding model (pgvector) with a new one, without encoding its texts again.

    pip install "hf_relreps[sentence-transformers]" "psycopg[binary]"
    python examples/migrate_pgvector.py postgresql://me@localhost/shop TABLE --new me/new-model --ask "a game of cards"

The table has the columns `id`, `text` and `embedding`, and is only read. What the new model encodes lies in the folder
--renewed: a run that is killed goes on from there. With `--renew 1000000 --write` the table gets a column
`embedding_new` with the vectors of the new model, in one transaction, when all documents have been encoded.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psycopg
from migration_steps import SAMPLE, follow, parser
from psycopg.sql import SQL, Identifier, Literal

from hf_relreps.migration import migrate


options = parser(__doc__)
options.add_argument("database", help="postgresql://user@host/name")
options.add_argument("table")
chosen = options.parse_args()

database = psycopg.connect(chosen.database, autocommit=True)
name = Identifier(chosen.table)


def nearest(queries: np.ndarray, count: int) -> list[dict[Any, str]]:
    """How the table is asked: for each query the texts of its nearest documents, by their ids."""
    ask = SQL("SELECT id, text FROM {} ORDER BY embedding <=> %s::vector LIMIT %s").format(name)
    return [dict(database.execute(ask, (str(query), count)).fetchall()) for query in queries.tolist()]


# as good as random, and the same in each run, so that one goes on where it was
draw = SQL("SELECT id, text, embedding::text FROM {} WHERE embedding IS NOT NULL ORDER BY md5(id::text) LIMIT %s")
ids, texts, vectors = zip(*database.execute(draw.format(name), (SAMPLE,)).fetchall(), strict=True)
switched = migrate(
    np.array([json.loads(vector) for vector in vectors]),
    texts,
    chosen.new,
    nearest=nearest,
    ids=ids,
    pairs=chosen.pairs,
    renewed=chosen.renewed,
    progress=True,
)


def write(vectors: Any) -> None:
    """A column beside the old one."""
    width = Literal(switched.migration.facts.new_size)
    with database.transaction(), database.cursor() as cursor:
        cursor.execute(SQL("ALTER TABLE {} ADD COLUMN embedding_new vector({})").format(name, width))
        update = SQL("UPDATE {} SET embedding_new = %s::vector WHERE id = %s").format(name)
        cursor.executemany(update, ((str(vector), one) for one, vector in vectors))


everything = SQL("SELECT id, text FROM {} ORDER BY id").format(name)
((total,),) = database.execute(SQL("SELECT count(*) FROM {}").format(name)).fetchall()
follow(switched, database.cursor().stream(everything), total, write, chosen)
database.close()
