"""Search with one text encoder in the index of another: recall@10, with relative representations and without.

The task is real: the one-line synopsis of a Debian package is the query, the rest of its description the document to
find among all those of the test split. Anchors are drawn from the train split. Three encoders, trained apart:
all-MiniLM-L6-v2 (384 wide), multilingual-e5-small (384), all-mpnet-base-v2 (768). For every pair of query encoder and
index encoder the table shows:

- absolute: the embeddings as they are. The control; it exists where the widths are equal.
- paper: relative representations with plain cosines.
- default: relative representations as `hf_relreps.sentence_transformers.relative` makes them.
- ridge map: what a linear map fitted on the same anchors reaches, from the query encoder's space to the index's. It
  needs a map for each pair; a relative index serves all encoders.

    python -m benchmarks.retrieval --assets assets

Anchors come from `--seeds` draws: mean, and the range over draws. Nothing is chosen on the test split. About ten
minutes on two cores the first time; `--cache` keeps what the encoders say. `benchmarks/assets` names the packages.
Shapes: N samples, Q queries, A anchors, D and E absolute sizes.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.assets.text_encoders import text_features
from benchmarks.reporting import markdown, write
from hf_relreps import RelativeConfig, RelativeSpace
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.projection import frame_of, project_in_chunks


RESULTS = Path(__file__).parent / "results" / "retrieval"
ENCODERS = ("minilm", "me5", "mpnet")
PROJECTIONS = {"paper": RelativeConfig.paper().space, "default": RelativeSpace()}
SIZES = (100, 300, 1000)
POOL = 1500  # texts that anchors are drawn from
LONGEST = 160  # characters of a document: what follows costs time only
SHORTEST = 30  # characters that a synopsis and a document must have
NEAREST = 10
RIDGE = 0.1  # in units of the mean variance, as `RelativeSpace.basis_ridge`


def synopses_and_documents(split: str) -> tuple[list[str], list[str]]:
    """First sentence of each English description, which is the package's synopsis, and the rest."""
    pairs = [text.split(". ", 1) for text in load_debian_descriptions(split)["en"]]
    pairs = [pair for pair in pairs if len(pair) == 2 and min(map(len, pair)) >= SHORTEST]
    return [query for query, _ in pairs], [document[:LONGEST] for _, document in pairs]


def recall(query_QD: Tensor, index_ND: Tensor) -> float:
    """Share of queries whose own document, the row of the same number, is among the nearest by cosine."""
    nearest_QK = (normalize(query_QD) @ normalize(index_ND).T).topk(NEAREST).indices
    return float((nearest_QK == torch.arange(len(query_QD))[:, None]).any(1).float().mean())


def relative(x_ND: Tensor, anchors_AD: Tensor, space: RelativeSpace) -> Tensor:
    """Relative representations (N, R)."""
    space = space.replace(num_anchors=len(anchors_AD))
    return project_in_chunks(x_ND, frame_of(anchors_AD, space), space)


def mapped(x_ND: Tensor, from_AD: Tensor, to_AE: Tensor) -> Tensor:
    """Embeddings (N, D) in another space (N, E), by ridge regression on the anchors."""
    from_mean_D, to_mean_E = from_AD.mean(0), to_AE.mean(0)
    centred_AD = (from_AD - from_mean_D).double()
    covariance_DD = centred_AD.T @ centred_AD
    covariance_DD += RIDGE * covariance_DD.diagonal().mean() * torch.eye(len(covariance_DD), dtype=torch.float64)
    map_DE = torch.linalg.solve(covariance_DD, centred_AD.T @ (to_AE - to_mean_E).double())
    return (x_ND - from_mean_D) @ map_DE.float() + to_mean_E


def measure(arguments: argparse.Namespace) -> dict:
    """Recall of each pair of encoders, by each way and number of anchors."""
    queries, documents = synopses_and_documents("test")
    pool = [text[:LONGEST] for text in load_debian_descriptions("train")["en"][:POOL]]
    said = {
        name: [text_features(name, texts, arguments.cache, arguments.assets) for texts in (queries, documents, pool)]
        for name in arguments.encoders
    }
    draws = {
        (k, seed): np.random.default_rng(seed).permutation(POOL)[:k] for k in SIZES for seed in range(arguments.seeds)
    }
    rows = []
    for asking, indexed in product(arguments.encoders, repeat=2):
        (query_QD, _, asking_PD), (_, index_NE, indexed_PE) = said[asking], said[indexed]
        row = {"query": asking, "index": indexed, "absolute": None, "by anchors": {}}
        if query_QD.shape[1] == index_NE.shape[1]:
            row["absolute"] = recall(query_QD, index_NE)
        for k in SIZES:
            found: dict[str, list[float]] = {name: [] for name in (*PROJECTIONS, "ridge map")}
            for seed in range(arguments.seeds):
                chosen_A = draws[k, seed]
                from_AD, to_AE = asking_PD[chosen_A], indexed_PE[chosen_A]
                for name, space in PROJECTIONS.items():
                    found[name].append(recall(relative(query_QD, from_AD, space), relative(index_NE, to_AE, space)))
                found["ridge map"].append(recall(mapped(query_QD, from_AD, to_AE), index_NE))
            row["by anchors"][k] = found
        rows.append(row)
    return {"queries": len(queries), "documents": len(documents), "chance": NEAREST / len(documents), "rows": rows}


def table(found: dict) -> str:
    """What `measure` found, as Markdown."""
    ways = [(k, way) for k in SIZES for way in (*PROJECTIONS, "ridge map")]
    heads = ["query", "index", "absolute", *(f"{way}, {k}" for k, way in ways)]
    lines = []
    for row in found["rows"]:
        cells = [row["query"], row["index"], "-" if row["absolute"] is None else f"{row['absolute']:.3f}"]
        cells += [_spread(row["by anchors"][k][way]) for k, way in ways]
        lines.append(cells)
    return f"{markdown(heads, lines)}\n\nchance {found['chance']:.3f}, {found['documents']} documents"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        "benchmarks.retrieval", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--cache", type=Path, default=Path(".cache/retrieval"), help="what encoders say, kept there")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="of minilm, me5, mpnet, use")
    parser.add_argument("--seeds", type=int, default=5, help="draws of anchors")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    with torch.inference_mode():
        found = measure(arguments)
    print(table(found))
    write(arguments.output / "results.json", found)


if __name__ == "__main__":
    main()
