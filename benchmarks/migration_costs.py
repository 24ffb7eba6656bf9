"""What a query costs after a migration, at a million stored vectors: milliseconds and memory.

The stored vectors are simulated: random directions, of which a search by comparison with all takes as long as of real
ones. The new model is real, and reads real nouns and definitions of WordNet, one query at a time, as they come.

| search                     | what a query needs                                                                |
|----------------------------|-----------------------------------------------------------------------------------|
| plain                      | the new model reads the query; cosines with all stored vectors                    |
| one stage                  | the same, and the query is translated                                             |
| one stage, projected index | the query is projected; compared with a second index, as wide as there are pairs  |
| two stages, first time     | one stage, the new model reads 50 documents, and compares them                    |
| two stages, all known      | one stage, 50 vectors that are kept are compared                                  |

    python -m benchmarks.migration_costs --assets assets

Shapes: M stored vectors, N pairs, D width.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.assets.text_encoders import PREFIXES, WIDTHS, encode_texts, load_text_encoder
from benchmarks.assets.texts import load_glosses
from benchmarks.reporting import machine, markdown, write
from hf_relreps.migration import RenewedVectors, fit
from hf_relreps.migration.search import two_stages
from hf_relreps.similarities import unit


RESULTS = Path(__file__).parent / "results" / "migration" / "costs.json"
PROJECTED_AT_ONCE = 20_000
WARM = 3  # queries before the clock runs
K = 10


def simulated(pairs: int, stored: int, width: int, new_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Old vectors of the pairs, a turned copy of the new ones with noise, and random directions as the index."""
    generator = torch.Generator().manual_seed(0)
    turn_ED = torch.linalg.qr(torch.randn(new_ND.shape[1], width, generator=generator))[0]
    scattered = torch.randn(pairs, width, generator=generator) * new_ND.std() * 0.3
    index_MD = torch.randn(stored, width, generator=generator)
    index_MD /= torch.linalg.vector_norm(index_MD, dim=1, keepdim=True)
    return new_ND @ turn_ED + scattered, index_MD


def timed(ask: Callable[[str], Any], queries: list[str]) -> dict[str, float]:
    """Milliseconds for a query: median, and nine tenths are below the other."""
    spent = []
    for query in queries:
        began = time.perf_counter()
        ask(query)
        spent.append(1000 * (time.perf_counter() - began))
    return {"median": float(np.median(spent[WARM:])), "90 %": float(np.quantile(spent[WARM:], 0.9))}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each kind of search, and the bytes that each holds."""
    model, tokenizer = load_text_encoder(arguments.new, arguments.assets)
    glosses = load_glosses(arguments.assets, size=2 * max(arguments.pairs, 8 * arguments.queries))
    texts, words = list(glosses["text"]), list(glosses["word"])[: arguments.queries + WARM]

    def encode(some: list[str]) -> Tensor:
        return encode_texts(model, tokenizer, [PREFIXES.get(arguments.new, "") + text for text in some])

    new_ND = encode(texts[: arguments.pairs])
    old_ND, index_MD = simulated(arguments.pairs, arguments.stored, arguments.width, new_ND)
    migration = fit(old_ND, new_ND, ways=["procrustes", "relative"])

    def best(query_QD: Tensor, documents_MD: Tensor, count: int = K) -> list[int]:
        return (documents_MD @ query_QD[0]).topk(count).indices.tolist()

    def first(query_QE: Tensor, count: int = K) -> list[int]:
        return best(migration.queries(query_QE, "procrustes"), index_MD, count)

    def second(query: str, kept: RenewedVectors) -> Any:
        query_QE = encode([query])
        rows = first(query_QE, arguments.candidates)
        read = {row: texts[row % len(texts)] for row in rows}
        return two_stages(
            query_QE, [[rows]], lambda ids: encode([read[one] for one in ids]), k=K, renewed=kept, stored=None
        )

    kept = RenewedVectors()
    found: dict[str, dict[str, float]] = {
        "the new model reads the query": timed(lambda query: encode([query]), words),
        "plain": timed(lambda query: best(unit(encode([query]))[:, : arguments.width], index_MD), words),
        "one stage": timed(lambda query: first(encode([query])), words),
        "two stages, first time": timed(lambda query: second(query, kept), words),
        "two stages, all known": timed(lambda query: second(query, kept), words),
    }
    began = time.perf_counter()
    projected_MA = torch.empty(arguments.stored, arguments.pairs)
    for part_BD, part_BA in zip(index_MD.split(PROJECTED_AT_ONCE), projected_MA.split(PROJECTED_AT_ONCE), strict=True):
        part_BA.copy_(migration.indexed(part_BD, "relative"))
    projecting = time.perf_counter() - began
    found["one stage, projected index"] = timed(
        lambda query: best(migration.queries(encode([query]), "relative"), projected_MA), words
    )
    megabytes = {
        "stored vectors": _megabytes(index_MD),
        "projected index": _megabytes(projected_MA),
        "pairs": _megabytes(migration.old_ND, migration.new_NE),
        "a renewed document": _megabytes(new_ND[:1]),
    }
    names = ("new", "stored", "width", "pairs", "candidates", "queries")
    facts = {name: getattr(arguments, name) for name in names} | {"machine": machine()}
    return {**facts, "milliseconds": found, "megabytes": megabytes, "seconds to project the index": projecting}


def _megabytes(*tensors: Tensor) -> float:
    return sum(tensor.nelement() * tensor.element_size() for tensor in tensors) / 1e6


def table(found: dict[str, Any]) -> str:
    """Milliseconds of each kind of search as Markdown."""
    lines = [[name, f"{one['median']:.1f}", f"{one['90 %']:.1f}"] for name, one in found["milliseconds"].items()]
    return markdown(["search", "ms, median", "ms, nine tenths below"], lines)


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(
        "benchmarks.migration_costs", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--new", default="minilm", choices=("minilm", "me5", "mpnet"), help="the new model")
    parser.add_argument("--stored", type=int, default=1_000_000, help="stored vectors")
    parser.add_argument("--width", type=int, default=WIDTHS["minilm"], help="of the stored vectors")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    with torch.inference_mode():
        found = measure(arguments)
    print(table(found), found["megabytes"], f"{found['seconds to project the index']:.0f} s to project", sep="\n\n")
    write(arguments.output, found)


if __name__ == "__main__":
    main()
