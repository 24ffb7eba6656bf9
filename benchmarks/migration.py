"""Search the index of one text encoder with another after a migration: recall against the number of pairs.

The tasks are real:

- `wordnet`: nouns ask, their definitions answer;
- `debian`: the synopsis of a package asks, the rest of its description answers;
- `trec`: a question asks, those that ask for the same of 50 kinds of things answer (many for each).

The pairs are other documents, of which both encoders' vectors are known. For each pair of encoders and number of pairs
the tables show recall@10, recall@1 and nDCG@10

- of both encoders by themselves, and without an adapter, where the widths are equal;
- of each way of `hf_relreps.migration`, with the correction of hubs by other queries that have no labels;
- of the rivals in `benchmarks.migration_rivals`, with the same correction;
- in two stages, where the new encoder ranks 20 to 200 candidates again;
- chosen: always `relative`, as `fit` does, beside other rules that need no labels: the expected share, the ten
  neighbours of documents, what queries without labels find of held-out pairs, always the mean;
- expected: the forecast of `fit`, as a share of the old encoder's own recall@10;
- answered: what 100 or 300 of the queries say with their answers of the share that the others find.

    python -m benchmarks.migration --assets assets --data data --sizes 300 1000 3000 10000

Nothing is chosen on the test queries. What was measured before is not measured again, if the same encoders are named
and the pairs are drawn from as many texts. `--cache` keeps what the encoders say; `benchmarks/assets` names the
packages. `benchmarks.migration_costs` measures time and memory.
Shapes: N documents, Q queries, P texts that pairs are drawn from, K documents found, D and E widths.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.assets.text_encoders import text_features
from benchmarks.assets.texts import load_glosses, load_trec
from benchmarks.migration_rivals import Rival, paper, residual_mlp, universes
from benchmarks.reporting import markdown, picture, write
from benchmarks.retrieval import synopses_and_documents
from hf_relreps.migration import WAYS, Migration, fit
from hf_relreps.migration.fitting import joined
from hf_relreps.migration.ways import SINGLE, build
from hf_relreps.similarities import unit


RESULTS = Path(__file__).parent / "results" / "migration"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "migration.png"
ENCODERS = ("minilm", "me5", "mpnet")
SIZES = (300, 1000, 3000)
CANDIDATES = (20, 50, 100, 200)
POOL = 3000  # texts that pairs are drawn from; of WordNet as many more as are asked for
OTHERS = 500  # queries without labels
DOCUMENTS = 1000  # to search in, where there are more
NEAREST = 10
HELD_OUT = 0.2
FIGURES = ("recall@10", "recall@1", "ndcg@10")
RIVALS = ("paper's cosine", "residual MLP", "all at once, GPA", "all at once, GPA corrected", "all at once, CCA")
FIRST_STAGES = ("procrustes", "relative")
ANSWERED, ANSWERED_DRAWS = (100, 300), 50  # queries whose answers are known, and how often they are drawn
ENCODED_AT_ONCE = 1000  # texts in a file of the cache


class Texts(NamedTuple):
    """Queries, documents, which of them belong together; texts of pairs; queries without labels."""

    queries: list[str]
    documents: list[str]
    pool: list[str]
    others: list[str]
    relevant_QN: Tensor


class Vectors(NamedTuple):
    """The same by one encoder."""

    queries_QD: Tensor
    documents_ND: Tensor
    pool_PD: Tensor
    others_PD: Tensor


def wordnet(arguments: argparse.Namespace) -> Texts:
    """Nouns ask, their definitions answer."""
    paired = max(POOL, *arguments.sizes)
    glosses = load_glosses(arguments.assets, size=DOCUMENTS + paired + OTHERS)
    words, texts = list(glosses["word"]), list(glosses["text"])
    own_QN = torch.eye(DOCUMENTS, dtype=torch.bool)
    pool = texts[DOCUMENTS : DOCUMENTS + paired]
    return Texts(words[:DOCUMENTS], texts[:DOCUMENTS], pool, words[DOCUMENTS + paired :], own_QN)


def debian(arguments: argparse.Namespace) -> Texts:
    """The synopsis of a package asks, the rest of its description answers."""
    queries, documents = synopses_and_documents("test")
    others, pool = synopses_and_documents("train")
    own_QN = torch.eye(len(queries), dtype=torch.bool)
    return Texts(queries, documents, pool[:POOL], others[-OTHERS:], own_QN)


def trec(arguments: argparse.Namespace) -> Texts:
    """A question asks, those of the same kind answer."""
    asking, answering = (load_trec(arguments.data / "trec.parquet", split, "fine") for split in ("test", "train"))
    answering = answering.shuffle(seed=0)
    texts, labels = list(answering["text"]), torch.tensor(answering["label"])
    relevant_QN = torch.tensor(asking["label"])[:, None] == labels[:DOCUMENTS]
    answered_Q = relevant_QN.any(1)
    queries = [text for text, answered in zip(asking["text"], answered_Q, strict=True) if answered]
    pool, others = texts[DOCUMENTS : DOCUMENTS + POOL], texts[DOCUMENTS + POOL :][:OTHERS]
    return Texts(queries, texts[:DOCUMENTS], pool, others, relevant_QN[answered_Q])


TASKS: dict[str, Callable[[argparse.Namespace], Texts]] = {"wordnet": wordnet, "debian": debian, "trec": trec}


def figures(ids_QK: Tensor, relevant_QN: Tensor) -> dict[str, float]:
    """recall@10, recall@1 and nDCG@10 of the documents found, the best first.

    Of a query with many documents recall is the share of the first ones that are among them.
    """
    hits_QK, there_Q = hits(ids_QK, relevant_QN)
    gains_K = 1 / torch.arange(2, NEAREST + 2).double().log2()
    return {
        "recall@10": float((hits_QK.sum(1) / there_Q).mean()),
        "recall@1": float(hits_QK[:, 0].mean()),
        "ndcg@10": float((hits_QK @ gains_K / gains_K.cumsum(0)[there_Q - 1]).mean()),
    }


def hits(ids_QK: Tensor, relevant_QN: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the first ten documents answer (Q, 10), and how many could (Q,)."""
    return relevant_QN.gather(1, ids_QK[:, :NEAREST]).double(), relevant_QN.sum(1).clamp(max=NEAREST)


def recall_of_each(scores_QN: Tensor, relevant_QN: Tensor) -> Tensor:
    """recall@10 of each query (Q,)."""
    hits_QK, there_Q = hits(scores_QN.topk(NEAREST).indices, relevant_QN)
    return hits_QK.sum(1) / there_Q


def answered(found_Q: Tensor, own_Q: Tensor) -> dict[int, float]:
    """How far the share that some queries find is from the share that the others find, in the mean of many draws.

    Args:
        found_Q: Recall of each query by a migration.
        own_Q: The same by the old encoder itself.
    """
    draw, errors = np.random.default_rng(0), {}
    for count in ANSWERED:
        gaps = []
        for _ in range(ANSWERED_DRAWS):
            order_Q = torch.from_numpy(draw.permutation(len(own_Q)))
            known, rest = (float(found_Q[some].sum() / own_Q[some].sum()) for some in order_Q.tensor_split([count]))
            gaps.append(abs(known - rest))
        errors[count] = float(np.mean(gaps))
    return errors


def hub_scores(others_PN: Tensor) -> Tensor:
    """The mean of each document's ten highest scores by other queries."""
    return others_PN.topk(NEAREST, dim=0).values.mean(0)


def both(scores_QN: Tensor, others_PN: Tensor, relevant_QN: Tensor) -> dict[str, Any]:
    """Figures of scores as they are, and of twice the scores less those of hubs."""
    corrected_QN = 2 * scores_QN - hub_scores(others_PN)
    found = {"plain": scores_QN, "hubs": corrected_QN}
    return {name: figures(some_QN.topk(NEAREST).indices, relevant_QN) for name, some_QN in found.items()}


def of_rival(rival: Rival, old: Vectors, new: Vectors, relevant_QN: Tensor) -> dict[str, Any]:
    """What it finds."""
    documents_KN = rival.documents(old.documents_ND).T
    scores_QN, others_PN = (rival.queries(asking) @ documents_KN for asking in (new.queries_QD, new.others_PD))
    return both(scores_QN, others_PN, relevant_QN)


def migrated(
    old: Vectors, new: Vectors, chosen_A: Tensor, relevant_QN: Tensor, shared: Mapping[str, Rival]
) -> dict[str, Any]:
    """All ways, rivals and both stages, fitted on the pairs of these rows of the pool."""
    old_AD, new_AE = old.pool_PD[chosen_A], new.pool_PD[chosen_A]
    migration = fit(old_AD, new_AE, stored=old.documents_ND)
    facts = migration.facts
    row: dict[str, Any] = {"chosen": facts.method, "translator": facts.translator, "expected": dict(facts.expected)}
    row |= {"kept": dict(facts.kept), "agreed": agreement(old_AD, new_AE, new.others_PD, migration)}
    row |= {"settings": {name: dict(some) for name, some in facts.settings.items()}, "ways": {}, "two stages": {}}
    new_QN, old_QN = (unit(one.queries_QD) @ unit(one.documents_ND).T for one in (new, old))
    own_Q = recall_of_each(old_QN, relevant_QN)
    for way in WAYS:
        hubs_N = migration.hubs(old.documents_ND, new.others_PD, way)
        plain_QN = migration.scores(new.queries_QD, old.documents_ND, way=way)
        corrected_QN = 2 * plain_QN - hubs_N
        found = {"plain": plain_QN, "hubs": corrected_QN}
        row["ways"][way] = {n: figures(one.topk(NEAREST).indices, relevant_QN) for n, one in found.items()}
        if way == facts.method:
            row["answered"] = answered(recall_of_each(plain_QN, relevant_QN), own_Q)
        if way in FIRST_STAGES:
            ids_QC = corrected_QN.topk(max(CANDIDATES)).indices
            row["two stages"][way] = {
                count: figures(ranked_again(ids_QC[:, :count], new_QN), relevant_QN) for count in CANDIDATES
            }
    rivals = {"paper's cosine": paper(old_AD, new_AE), "residual MLP": residual_mlp(old_AD, new_AE), **shared}
    row["rivals"] = {name: of_rival(rival, old, new, relevant_QN) for name, rival in rivals.items()}
    return row


def agreement(old_AD: Tensor, new_AE: Tensor, others_PE: Tensor, migration: Migration) -> dict[str, float]:
    """Share of queries without labels that find, among held-out pairs, what the new encoder finds first in three."""
    held = round(HELD_OUT * len(old_AD))
    facts, nearest_P = migration.facts, (unit(others_PE) @ unit(new_AE[:held]).T).argmax(1)
    singles = {name: build(name, old_AD[held:], new_AE[held:], facts.settings[name]) for name in SINGLE}
    found = {}
    for name in WAYS:
        way = joined(name, singles, facts.spreads)
        first_PK = (way.queries(others_PE) @ way.documents(old_AD[:held]).T).topk(3).indices
        found[name] = float((first_PK == nearest_P[:, None]).any(1).float().mean())
    return found


def ranked_again(ids_QC: Tensor, new_QN: Tensor) -> Tensor:
    """Candidates in the order of the new encoder's own scores, as `Migration.search` has them."""
    return ids_QC.gather(1, new_QN.gather(1, ids_QC).topk(min(NEAREST, ids_QC.shape[1])).indices)


def measure(task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """By pair of encoders: own figures, and what each number of pairs gives in each draw."""
    texts = TASKS[task](arguments)
    relevant_QN = texts.relevant_QN
    said = {name: encoded(name, texts, arguments) for name in arguments.encoders}
    settings = {}
    for old, new in permutations(said, 2):
        setting: dict[str, Any] = {"data": task, "old": old, "new": new, "own": own(said[old], relevant_QN)}
        setting |= {"new's own": own(said[new], relevant_QN), "no adapter": None}
        if said[old].documents_ND.shape[1] == said[new].queries_QD.shape[1]:
            untouched = Rival(unit, unit)
            setting["no adapter"] = of_rival(untouched, said[old], said[new], relevant_QN)["plain"]
        settings[old, new] = setting
    pool = len(said[arguments.encoders[0]].pool_PD)
    found = {"settings": list(settings.values()), "sizes": list(arguments.sizes), "draws": arguments.draws}
    found |= {"documents": len(texts.documents), "queries": len(texts.queries), "pool": pool}
    file = arguments.output / f"{task}.json"
    known = rows_in(file, pool)
    for seed, size in product(range(arguments.draws), arguments.sizes):
        if size > pool or (seed and size == pool):  # too many, or the same pairs again
            continue
        chosen_A = torch.from_numpy(np.random.default_rng(seed).permutation(pool)[:size])
        missing = [pair for pair in settings if (*pair, size, seed) not in known]
        maps = universes({name: said[name].pool_PD[chosen_A] for name in said}) if missing else {}
        for old, new in missing:
            shared = {name: Rival(into[new], into[old]) for name, into in maps.items()}
            row = migrated(said[old], said[new], chosen_A, relevant_QN, shared)
            known[old, new, size, seed] = row | {"draw": seed}
        if missing:
            write(file, put_in(found, known))  # what is measured is not lost if the rest is stopped
    return put_in(found, known)


Key = tuple[str, str, int, int]  # old and new encoder, number of pairs, draw


def put_in(found: dict[str, Any], known: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
    """What was found with all rows of its settings, by the number of pairs and in the order of the draws."""
    for setting in found["settings"]:
        rows: dict[int, list[dict[str, Any]]] = {}
        for (old, new, size, _), row in sorted(known.items(), key=lambda item: item[0][2:]):
            if (old, new) == (setting["old"], setting["new"]):
                rows.setdefault(size, []).append(row)
        setting["by pairs"] = rows
    return found


def rows_in(file: Path, pool: int) -> dict[Key, dict[str, Any]]:
    """What was measured before with pairs of the same texts: by old and new encoder, number of pairs and draw."""
    before = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if before.get("pool") != pool:
        return {}
    return {
        (setting["old"], setting["new"], int(size), row["draw"]): row
        for setting in before["settings"]
        for size, rows in setting["by pairs"].items()
        for row in rows
    }


def own(of: Vectors, relevant_QN: Tensor) -> dict[str, Any]:
    """What an encoder reaches in an index of its own."""
    return of_rival(Rival(unit, unit), of, of, relevant_QN)


def encoded(name: str, texts: Texts, arguments: argparse.Namespace) -> Vectors:
    """What an encoder says of all texts."""
    needed = -(-max(arguments.sizes) // ENCODED_AT_ONCE) * ENCODED_AT_ONCE
    texts = texts._replace(pool=texts.pool[:needed])
    return Vectors(*(_in_parts(name, some, arguments) for some in texts[:4]))


def _in_parts(name: str, texts: list[str], arguments: argparse.Namespace) -> Tensor:
    parts = [texts[i : i + ENCODED_AT_ONCE] for i in range(0, len(texts), ENCODED_AT_ONCE)]
    return torch.cat([text_features(name, part, arguments.cache, arguments.assets) for part in parts])


# -- tables


class Row(NamedTuple):
    """One draw of pairs in one setting."""

    setting: dict[str, Any]
    size: int
    content: dict[str, Any]


Take = Callable[[Row], dict[str, float] | None]
MAIN_LINES = (
    "no adapter",
    *(f"{name}, hubs corrected" for name in ("residual MLP", "all at once, GPA corrected")),
    *(f"`{name}`, hubs corrected" for name in ("procrustes", "relative", "mean")),
    *(f"the best {count} of `relative`, ranked again by the new encoder" for count in (50, 100)),
)


def rows_of(found: list[dict[str, Any]], sizes: tuple[int, ...] | None = None) -> list[Row]:
    """Of the settings that were measured with all of these numbers of pairs."""
    rows = []
    for setting in (one for result in found for one in result["settings"]):
        by_size = {int(size): some for size, some in setting["by pairs"].items()}  # JSON makes text of numbers
        if sizes is None or set(sizes) <= set(by_size):
            rows += [Row(setting, size, row) for size in sizes or by_size for row in by_size[size]]
    return rows


def lines_of() -> dict[str, Take]:
    """What each line of the tables shows."""
    lines: dict[str, Take] = {"no adapter": lambda row: row.setting["no adapter"]}
    for group, names in (("rivals", RIVALS), ("ways", WAYS)):
        for name in names:
            for kind, more in (("plain", ""), ("hubs", ", hubs corrected")):
                title = f"`{name}`{more}" if group == "ways" else f"{name}{more}"
                lines[title] = lambda row, g=group, n=name, k=kind: row.content[g][n][k]  # type: ignore[misc]
    for way in FIRST_STAGES:
        for count in CANDIDATES:
            title = f"the best {count} of `{way}`, ranked again by the new encoder"
            lines[title] = lambda row, w=way, c=count: _by(row.content["two stages"][w], c)  # type: ignore[misc]
    return lines


def common(found: list[dict[str, Any]]) -> tuple[int, ...]:
    """The numbers of pairs that every setting was measured with."""
    sizes = [{row.size for row in rows_of([{"settings": [one]}])} for result in found for one in result["settings"]]
    return tuple(sorted(set.intersection(*sizes)))


def table(found: list[dict[str, Any]], at: str = "recall@10", sizes: tuple[int, ...] | None = None) -> str:
    """Means over settings and draws as Markdown: shares of the old encoder's own figure, and of the new one's."""
    sizes = sizes or common(found)
    rows = rows_of(found, sizes)
    lines = [
        [name, *(_share([row for row in rows if row.size == size], take, at) for size in sizes)]
        for name, take in lines_of().items()
    ]
    return markdown(["", *(f"{size:,} pairs" for size in sizes)], lines)


def by_data(found: list[dict[str, Any]]) -> str:
    """recall@10 as a share of the old encoder's own, for each data set and number of pairs."""
    columns: dict[str, list[Row]] = {}
    for row in rows_of(found):
        columns.setdefault(f"{row.setting['data']}: {row.size:,}", []).append(row)
    takes = lines_of()
    lines = [
        [name, *(_share(rows, takes[name], "recall@10").split(" / ")[0] for rows in columns.values())]
        for name in MAIN_LINES
    ]
    return markdown(["pairs", *columns], lines)


def figures_of(found: list[dict[str, Any]], size: int | None = None) -> str:
    """All three figures as shares of the old encoder's own, hubs corrected."""
    size = size or common(found)[-1]
    rows = rows_of(found, (size,))
    kept = {name: take for name, take in lines_of().items() if "hubs corrected" in name or "the best" in name}
    lines = [
        [name.replace(", hubs corrected", ""), *(_share(rows, take, at).split(" / ")[0] for at in FIGURES)]
        for name, take in kept.items()
    ]
    return markdown([f"{size:,} pairs, hubs corrected", *FIGURES], lines)


def by_setting(found: list[dict[str, Any]], size: int | None = None) -> str:
    """recall@10 itself, of each pair of encoders, mean over draws, hubs corrected."""
    size = size or common(found)[-1]
    heads = [
        "data",
        "index",
        "query",
        "old own",
        "new own",
        "`procrustes`",
        "residual MLP",
        "`relative`",
        "the best 50",
    ]
    lines = []
    for setting in (one for result in found for one in result["settings"]):
        rows = [row.content for row in rows_of([{"settings": [setting]}], (size,))]
        if not rows:
            continue
        taken = [
            [row["ways"]["procrustes"]["hubs"] for row in rows],
            [row["rivals"]["residual MLP"]["hubs"] for row in rows],
            [row["ways"]["relative"]["hubs"] for row in rows],
            [_by(row["two stages"]["relative"], 50) for row in rows],
        ]
        means = [float(np.mean([one["recall@10"] for one in some])) for some in taken]
        owns = [setting[name]["plain"]["recall@10"] for name in ("own", "new's own")]
        lines.append([*(setting[name] for name in ("data", "old", "new")), *owns, *means])
    return markdown(heads, lines)


def choice(found: list[dict[str, Any]]) -> str:
    """How much of the best way's recall@10 is reached by the way that is chosen without labels, by data and pairs."""
    lines = []
    rows = rows_of(found)
    for data, size in dict.fromkeys((row.setting["data"], row.size) for row in rows):
        some = [row.content for row in rows if (row.setting["data"], row.size) == (data, size)]
        shares = [[_reached(row, choose(row)) for row in some] for choose in CHOICES.values()]
        lines.append([data, size, *map(float, np.mean(shares, 1))])
    return markdown(["data", "pairs", *CHOICES], lines)


CHOICES: dict[str, Callable[[dict[str, Any]], str]] = {
    "by the expected share": lambda row: max(row["expected"], key=row["expected"].__getitem__),
    "by ten neighbours": lambda row: max(row["kept"], key=row["kept"].__getitem__),
    "by queries": lambda row: max(row["agreed"], key=row["agreed"].__getitem__),
    "always `relative`": lambda row: "relative",
    "always `mean`": lambda row: "mean",
}


def _reached(row: dict[str, Any], way: str) -> float:
    measured = {name: one["plain"]["recall@10"] for name, one in row["ways"].items()}
    return measured[way] / max(measured.values())


def errors_of(found: list[dict[str, Any]]) -> list[tuple[Row, float, float]]:
    """Expected and measured shares of the old encoder's own recall@10, by the way that was chosen."""
    triples = []
    for row in rows_of(found):
        chosen = row.content["chosen"]
        measured = row.content["ways"][chosen]["plain"]["recall@10"] / row.setting["own"]["plain"]["recall@10"]
        triples.append((row, row.content["expected"][chosen], measured))
    return triples


def forecast(found: list[dict[str, Any]]) -> str:
    """Expected and measured shares, by data and number of pairs: means, and the errors."""
    lines = []
    triples = errors_of(found)
    for data, size in dict.fromkeys((row.setting["data"], row.size) for row, _, _ in triples):
        here = [one for one in triples if (one[0].setting["data"], one[0].size) == (data, size)]
        expected, measured = np.array([one[1:] for one in here]).T
        gap, rows = np.abs(expected - measured), [row for row, _, _ in here]
        known = (error_of(rows, count) for count in ANSWERED)
        lines.append([data, size, *map(float, (expected.mean(), measured.mean(), gap.mean(), gap.max(), *known))])
    heads = ["data", "pairs", "expected", "measured", "mean absolute error", "largest"]
    heads += [f"error with {count} answers" for count in ANSWERED]
    everything = [abs(e - m) for _, e, m in triples]
    known = ", ".join(f"with {count} answers {error_of(rows_of(found), count):.3f}" for count in ANSWERED)
    in_all = f"mean absolute error {np.mean(everything):.3f}, largest {max(everything):.3f}; {known}"
    return (
        f"{markdown(heads, lines)}\n\n{in_all}; of the best constant for each data set {error_of_constants(found):.3f}"
    )


def error_of_constants(found: list[dict[str, Any]]) -> float:
    """Mean absolute error if all shares of a data set were forecast to be their median: known afterwards only."""
    shares: dict[str, list[float]] = {}
    for row, _, measured in errors_of(found):
        shares.setdefault(row.setting["data"], []).append(measured)
    return float(np.mean(np.concatenate([np.abs(np.array(some) - np.median(some)) for some in shares.values()])))


def error_of(rows: list[Row], count: int) -> float:
    """Mean absolute error of the share that so many queries with answers say."""
    return float(np.mean([_by(row.content["answered"], count) for row in rows]))


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """recall@10 against the number of pairs, a panel for each task: means over encoders measured with all numbers."""
    with picture(path, len(found), (3.4 * len(found), 3.8), sharey=True) as (figure, axes):
        for axis, result in zip(axes, found, strict=True):
            sizes = sorted({row.size for row in rows_of([result])})
            rows = rows_of([result], tuple(sizes))
            for name, colour, style, take in CURVES:
                points = [_mean([row for row in rows if row.size == size], take) for size in sizes]
                axis.plot(sizes, points, style, color=colour, label=name)
            data = result["settings"][0]["data"]
            encoders = sorted({row.setting["old"] for row in rows} | {row.setting["new"] for row in rows})
            axis.set(xscale="log", xlabel="pairs")
            axis.set_title(f"{data}: {', '.join(encoders)}", fontsize="medium")
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axis.minorticks_off()
        axes[0].set_ylabel("recall@10")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")


CURVES: tuple[tuple[str, str, str, Take], ...] = (
    ("a model by itself, mean of them", "0.4", "--", lambda row: row.setting["own"]["plain"]),
    ("one stage, Procrustes", "tab:orange", "o-", lambda row: row.content["ways"]["procrustes"]["hubs"]),
    ("one stage, relative", "tab:blue", "o-", lambda row: row.content["ways"]["relative"]["hubs"]),
    ("two stages, 50 candidates", "tab:green", "o-", lambda row: _by(row.content["two stages"]["relative"], 50)),
)


def _mean(rows: list[Row], take: Take) -> float:
    return float(np.mean([(take(row) or {})["recall@10"] for row in rows]))


def _share(rows: list[Row], take: Take, at: str) -> str:
    """Mean over settings, of each the mean over its draws."""
    pairs: dict[tuple[str, ...], list[list[float]]] = {}
    for row in rows:
        taken, setting = take(row), row.setting
        if taken is not None:
            shares = [taken[at] / setting[whose]["plain"][at] for whose in ("own", "new's own")]
            pairs.setdefault((setting["data"], setting["old"], setting["new"]), []).append(shares)
    means = np.mean([np.mean(some, 0) for some in pairs.values()], 0) if pairs else []
    return " / ".join(f"{share:.3f}" for share in means) or "-"


def _by(content: dict[Any, Any], key: int) -> Any:
    """As JSON has them, keys may be text."""
    return content[key] if key in content else content[str(key)]


def read(folder: Path) -> list[dict[str, Any]]:
    """What was measured before, task by task."""
    files = [folder / f"{task}.json" for task in TASKS]
    return [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]


def main() -> None:
    """Measure, print the tables, write the JSON and the picture."""
    parser = argparse.ArgumentParser(
        "benchmarks.migration", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with trec.parquet")
    parser.add_argument("--cache", type=Path, default=Path(".cache/migration"), help="what encoders say, kept there")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="of minilm, me5, mpnet, use")
    parser.add_argument("--tasks", nargs="*", default=tuple(TASKS), help="nothing: print what was measured before")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="numbers of pairs")
    parser.add_argument("--draws", type=int, default=3, help="draws of pairs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON, one for each task")
    parser.add_argument("--picture", type=Path, help="where the picture goes")
    arguments = parser.parse_args()
    with torch.inference_mode():
        for task in arguments.tasks:
            write(arguments.output / f"{task}.json", measure(task, arguments))
    found = read(arguments.output)
    print(*(made(found) for made in (by_data, table, figures_of, by_setting, choice, forecast)), sep="\n\n")
    if arguments.picture is not None:
        draw(found, arguments.picture)


if __name__ == "__main__":
    main()
