"""What the examples `migrate_faiss.py`, `migrate_lancedb.py`, `migrate_qdrant.py` and `migrate_pgvector.py` share.

Their options, and the steps: fit, report, ask, and what is done only if you ask for it: renew, write.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hf_relreps.migration import TextMigration


SAMPLE = 5000  # documents that are read of the store: 1,000 for the new model, the others for the forecast


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of all four."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--new", required=True, help="the new model: a SentenceTransformer on the Hub or in a folder")
    options.add_argument("--pairs", type=int, default=1000, help="documents that it encodes to begin with")
    options.add_argument("--renewed", default="renewed", help="folder that keeps what it encoded")
    options.add_argument(
        "--answered", type=Path, metavar="FILE", help="lines of a query, a tab and the id of its document: the recall"
    )
    options.add_argument("--ask", nargs="*", default=[], metavar="QUERY", help="queries, in two stages")
    options.add_argument("--renew", type=int, default=0, metavar="N", help="encode N more documents")
    options.add_argument(
        "--write", action="store_true", help="write the new vectors beside the old, once all are there"
    )
    return options


def follow(
    switched: TextMigration,
    documents: Iterable[tuple[Any, str]],
    total: int,
    write: Callable[[Iterator[tuple[Any, Any]]], None],
    chosen: argparse.Namespace,
) -> None:
    """Say what to expect, measure, ask, and renew and write what was asked for."""
    print(switched.report)
    if chosen.answered:
        lines = [line.split("\t") for line in chosen.answered.read_text("utf-8").splitlines()]
        print(
            switched.measure([query for query, _ in lines], [int(one) if one.isdigit() else one for _, one in lines])
        )
    for query in chosen.ask:
        found = switched.search(query, k=3)
        for one, score in zip(found.ids[0].tolist(), found.scores[0], strict=True):
            print(f"{query}: {one} {score:.2f}")
    if chosen.renew:
        print(f"encoded {switched.renew(documents, at_most=chosen.renew, progress=True)} documents")
    print(f"{len(switched.renewed)} of {total} documents have a new vector")
    if chosen.write:
        if len(switched.renewed) < total:
            raise SystemExit("Not written: documents are missing. Encode them all first: --renew with a large number.")
        write((one, switched.renewed.take([one])[0].tolist()) for one in switched.renewed.ids)
        print("written beside the old vectors")
