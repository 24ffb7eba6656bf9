"""Search a Qdrant collection of an old embedding model with a new one, without encoding its documents again.

    pip install "hf_relreps[sentence-transformers]" qdrant-client
    python examples/migrate_qdrant.py PLACE COLLECTION --new me/new-model --ask "a game of cards"

PLACE is the address of a server (http://...) or the folder of the local mode. The payload `text` holds the texts. The
collection is only read. What the new model encodes lies in the folder --renewed: a run that is killed goes on from
there. With `--renew 1000000 --write` you get the collection COLLECTION_new with the vectors of the new model, when all
documents have been encoded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from migration_steps import SAMPLE, follow, parser
from qdrant_client import QdrantClient, models

from hf_relreps.migration import migrate


options = parser(__doc__)
options.add_argument("place")
options.add_argument("collection")
chosen = options.parse_args()

client = QdrantClient(**{"url" if "://" in chosen.place else "path": chosen.place})


def nearest(queries: np.ndarray, count: int) -> list[dict[Any, str]]:
    """How the collection is asked: for each query the texts of its nearest documents, by their ids."""
    asked = [client.query_points(chosen.collection, query=query, limit=count).points for query in queries.tolist()]
    return [{point.id: point.payload["text"] for point in found} for found in asked]


def points(with_payload: bool = False) -> Iterator[Any]:
    """All of the collection, one page after the other."""
    offset = None
    while True:
        page, offset = client.scroll(chosen.collection, limit=1000, offset=offset, with_payload=with_payload)
        yield from page
        if offset is None:
            return


ids = [point.id for point in points()]
drawn = random.Random(0).sample(ids, min(SAMPLE, len(ids)))  # the same in each run, so that one goes on where it was
found = {point.id: point for point in client.retrieve(chosen.collection, drawn, with_vectors=True)}
sample = [found[one] for one in drawn]
switched = migrate(
    np.array([point.vector for point in sample]),
    [point.payload["text"] for point in sample],
    chosen.new,
    nearest=nearest,
    ids=[point.id for point in sample],
    pairs=chosen.pairs,
    renewed=chosen.renewed,
    progress=True,
)


def documents() -> Iterator[tuple[Any, str]]:
    """All of them."""
    return ((point.id, point.payload["text"]) for point in points(with_payload=True))


def write(vectors: Any) -> None:
    """A collection beside the old one."""
    name, texts = f"{chosen.collection}_new", dict(documents())
    new = (models.PointStruct(id=one, vector=vector, payload={"text": texts[one]}) for one, vector in vectors)
    while some := list(islice(new, 256)):
        if not client.collection_exists(name):
            of_width = models.VectorParams(size=len(some[0].vector), distance=models.Distance.COSINE)
            client.create_collection(name, vectors_config=of_width)
        client.upsert(name, some)


follow(switched, documents(), client.count(chosen.collection).count, write, chosen)
client.close()
