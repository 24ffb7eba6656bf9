"""Search the index of one text encoder with another after a migration: recall against the number of pairs.

The tasks are real: nouns of WordNet and their definitions, the synopsis of a Debian package and the rest of its
description. The pairs are other documents, of which both encoders' vectors are known. For each pair of encoders the
table shows recall@10 and recall@1

- of both encoders by themselves, and without an adapter, where the widths are equal;
- of each way of `hf_relreps.migration`, with the correction of hubs by other queries that have no labels;
- in two stages, where the new encoder ranks 20 or 50 candidates again;
- expected: the forecast of `fit`, from pairs and stored vectors alone, as a share of the old encoder's own recall@10.

    python -m benchmarks.migration --assets assets

Nothing is chosen on the test queries. `--cache` keeps what the encoders say; `benchmarks/assets` names the packages.
Shapes: N documents, Q queries, P texts that pairs are drawn from, D and E widths.
"""

from __future__ import annotations

import argparse
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.assets.text_encoders import text_features
from benchmarks.assets.texts import load_glosses
from benchmarks.reporting import markdown, write
from benchmarks.retrieval import synopses_and_documents
from hf_relreps.migration import WAYS, fit
from hf_relreps.similarities import unit


RESULTS = Path(__file__).parent / "results" / "migration"
ENCODERS = ("minilm", "me5")
SIZES = (300, 1000, 3000)
CANDIDATES = (20, 50)
POOL = 3000  # texts that pairs are drawn from
OTHERS = 1000  # queries without labels
GLOSSES = 2000  # definitions to search in
NEAREST = 10
ENCODED_AT_ONCE = 1000  # texts in a file of the cache


class Texts(NamedTuple):
    """Queries and the documents of the same row; texts of pairs; queries without labels."""

    queries: list[str]
    documents: list[str]
    pool: list[str]
    others: list[str]


class Vectors(NamedTuple):
    """The same by one encoder."""

    queries_QD: Tensor
    documents_QD: Tensor
    pool_PD: Tensor
    others_PD: Tensor


def wordnet(assets: Path | None) -> Texts:
    """Nouns ask, their definitions answer."""
    glosses = load_glosses(assets, size=GLOSSES + POOL + OTHERS)
    words, texts = list(glosses["word"]), list(glosses["text"])
    pool = texts[GLOSSES : GLOSSES + POOL]
    return Texts(words[:GLOSSES], texts[:GLOSSES], pool, words[GLOSSES + POOL :])


def debian(assets: Path | None) -> Texts:
    """The synopsis of a package asks, the rest of its description answers."""
    queries, documents = synopses_and_documents("test")
    others, pool = synopses_and_documents("train")
    return Texts(queries, documents, pool[:POOL], others[-OTHERS:])


DATA = {"wordnet": wordnet, "debian": debian}


def recall(scores_QN: Tensor, at: int = NEAREST) -> float:
    """Share of queries whose own document, the column of the same number, is among the first."""
    return _hits(scores_QN.topk(at).indices)


def _hits(ids_QK: Tensor) -> float:
    return float((ids_QK == torch.arange(len(ids_QK))[:, None]).any(1).float().mean())


def both_recalls(scores_QN: Tensor) -> dict[str, float]:
    """recall@10 and recall@1."""
    return {"recall@10": recall(scores_QN), "recall@1": recall(scores_QN, 1)}


def without_hubs(scores_QN: Tensor, others_PN: Tensor) -> Tensor:
    """Twice the scores less the mean of each document's ten highest scores by other queries."""
    return 2 * scores_QN - others_PN.topk(NEAREST, dim=0).values.mean(0)


def own(of: Vectors) -> dict[str, Any]:
    """What an encoder reaches in an index of its own."""
    documents_DN = unit(of.documents_QD).T
    scores_QN, others_PN = (unit(asking) @ documents_DN for asking in (of.queries_QD, of.others_PD))
    return {"plain": both_recalls(scores_QN), "hubs": both_recalls(without_hubs(scores_QN, others_PN))}


def migrated(old: Vectors, new: Vectors, chosen_A: Tensor) -> dict[str, Any]:
    """All ways and both stages, fitted on the pairs of these rows of the pool."""
    migration = fit(old.pool_PD[chosen_A], new.pool_PD[chosen_A], stored=old.documents_QD)
    facts = migration.facts
    row: dict[str, Any] = {"chosen": facts.method, "translator": facts.translator, "expected": dict(facts.expected)}
    row |= {"settings": {name: dict(some) for name, some in facts.settings.items()}, "ways": {}, "two stages": {}}
    for way in WAYS:
        hubs = migration.hubs(old.documents_QD, new.others_PD, way)
        plain_QN = migration.scores(new.queries_QD, old.documents_QD, way=way)
        row["ways"][way] = {"plain": both_recalls(plain_QN), "hubs": both_recalls(2 * plain_QN - hubs)}
    for way in ("procrustes", "relative"):
        hubs = migration.hubs(old.documents_QD, new.others_PD, way)
        row["two stages"][way] = {}
        for candidates in CANDIDATES:
            how = {"candidates": candidates, "hubs": hubs, "way": way}
            found = migration.search(new.queries_QD, old.documents_QD, new.documents_QD.__getitem__, **how)
            ids_QK = torch.from_numpy(found.ids)
            row["two stages"][way][candidates] = {"recall@10": _hits(ids_QK), "recall@1": _hits(ids_QK[:, :1])}
    return row


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """By dataset and pair of encoders: own recall, and what each number of pairs gives in each draw."""
    settings: list[dict[str, Any]] = []
    found = {"settings": settings, "sizes": list(arguments.sizes), "draws": arguments.draws}
    for data in arguments.data:
        texts = DATA[data](arguments.assets)
        texts = texts._replace(pool=texts.pool[: -(-max(arguments.sizes) // ENCODED_AT_ONCE) * ENCODED_AT_ONCE])
        said = {name: Vectors(*(_encoded(name, some, arguments) for some in texts)) for name in arguments.encoders}
        for old, new in permutations(arguments.encoders, 2):
            here, there = said[old], said[new]
            setting: dict[str, Any] = {"data": data, "old": old, "new": new, "own": own(here), "new's own": own(there)}
            setting |= {"documents": len(texts.documents), "no adapter": None, "by pairs": {}}
            if here.documents_QD.shape[1] == there.queries_QD.shape[1]:
                setting["no adapter"] = both_recalls(unit(there.queries_QD) @ unit(here.documents_QD).T)
            settings.append(setting)
            for size in arguments.sizes:
                setting["by pairs"][size] = rows = []
                for seed in range(arguments.draws):
                    order = np.random.default_rng(seed).permutation(len(texts.pool))
                    rows.append(migrated(here, there, torch.from_numpy(order[:size])))
                    write(arguments.output, found)  # what is measured is not lost if the rest is stopped
    return found


def _encoded(name: str, texts: list[str], arguments: argparse.Namespace) -> Tensor:
    parts = [texts[i : i + ENCODED_AT_ONCE] for i in range(0, len(texts), ENCODED_AT_ONCE)]
    return torch.cat([text_features(name, part, arguments.cache, arguments.assets) for part in parts])


def table(found: dict[str, Any], at: str = "recall@10") -> str:
    """Means over settings and draws as Markdown: shares of the old encoder's own recall, and of the new one's."""
    lines = [["no adapter", *(_share(found, size, lambda s, row: s["no adapter"], at) for size in found["sizes"])]]
    for way in WAYS:
        for kind in ("plain", "hubs"):
            name = f"`{way}`" + (", hubs corrected" if kind == "hubs" else "")
            cells = [_share(found, k, lambda s, row, w=way, o=kind: row["ways"][w][o], at) for k in found["sizes"]]
            lines.append([name, *cells])
    for way in ("procrustes", "relative"):
        for candidates in CANDIDATES:
            name = f"the best {candidates} of `{way}`, hubs corrected, ranked again by the new encoder"
            cells = [
                _share(found, k, lambda s, row, w=way, c=candidates: _by(row["two stages"][w], c), at)
                for k in found["sizes"]
            ]
            lines.append([name, *cells])
    return markdown(["", *(f"{size} pairs" for size in found["sizes"])], lines)


def forecast(found: dict[str, Any]) -> str:
    """Expected and measured shares of the old encoder's own recall@10, by setting and number of pairs."""
    lines = []
    for setting in found["settings"]:
        for size, rows in setting["by pairs"].items():
            base = setting["own"]["plain"]["recall@10"]
            for row in rows:
                chosen = row["chosen"]
                measured = row["ways"][chosen]["plain"]["recall@10"] / base
                names = [setting[name] for name in ("data", "old", "new")]
                lines.append([*names, size, chosen, row["expected"][chosen], measured])
    errors = [abs(line[-1] - line[-2]) for line in lines]
    heads = ["data", "index", "query", "pairs", "chosen", "expected", "measured"]
    return f"{markdown(heads, lines)}\n\nmean absolute error {np.mean(errors):.3f}, largest {max(errors):.3f}"


def _share(found: dict[str, Any], size: int, take: Any, at: str) -> str:
    of_old, of_new = [], []
    for setting in found["settings"]:
        for row in _by(setting["by pairs"], size):
            figures = take(setting, row)
            if figures is not None:
                of_old.append(figures[at] / setting["own"]["plain"][at])
                of_new.append(figures[at] / setting["new's own"]["plain"][at])
    return f"{np.mean(of_old):.3f} / {np.mean(of_new):.3f}" if of_old else "-"


def _by(content: dict[Any, Any], key: int) -> Any:
    """As JSON has them, keys may be text."""
    return content[key] if key in content else content[str(key)]


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        "benchmarks.migration", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--cache", type=Path, default=Path(".cache/migration"), help="what encoders say, kept there")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="of minilm, me5, mpnet, use")
    parser.add_argument("--data", nargs="+", default=tuple(DATA), choices=tuple(DATA))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="numbers of pairs")
    parser.add_argument("--draws", type=int, default=2, help="draws of pairs")
    parser.add_argument("--output", type=Path, default=RESULTS / "results.json", help="where the JSON goes")
    arguments = parser.parse_args()
    with torch.inference_mode():
        found = measure(arguments)
    print(f"{table(found)}\n\n{table(found, 'recall@1')}\n\n{forecast(found)}")
    write(arguments.output, found)


if __name__ == "__main__":
    main()
