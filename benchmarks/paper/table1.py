"""Table 1: two word-embedding spaces over a shared vocabulary.

300 anchors are chosen in the source space and used in both. Every word searches by cosine among all words of the
other space. Jaccard compares the 5 nearest neighbours of its source vector with those of its target vector (*), MRR is
the mean reciprocal rank of the word itself among them, and cosine is that of its two vectors. Words are alphabetic and
have four letters or more; the first 400 are skipped. Each seed draws other anchors.

What differs from the paper: it compares FastText with word2vec, both 300 wide, on 20,000 words. Here GloVe (6B
tokens, 50 wide) is compared with `en_core_web_md`, the pruned 300 wide vectors of spaCy, on the first 6,000 words that
have their own vector in both. The other pair are two count-based spaces (PPMI and SVD, 100 wide) from disjoint halves
of the Debian package descriptions, which differ only in their texts. Absolute control: the narrower space padded with
zeros.

(*) The default of the paper's notebook, whose figures are in the table; `k10` in the results is the same for 10.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.assets.word_vectors import WordSpace, counted, load_from_hub, load_glove, load_spacy, shared_words
from benchmarks.paper.options import Options
from benchmarks.paper.tables import cell, rows_of, spread
from benchmarks.reporting import console, markdown
from hf_relreps import RelativeConfig, RelativeSpace, latent_similarity
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.selection import select


SEEDS = 10
HUB = ("fse/fasttext-wiki-news-subwords-300", "fse/word2vec-google-news-300")  # the paper's, without --assets
ANCHORS = 300
NEIGHBOURS = 5
METRICS = ("jaccard", "mrr", "cosine")
WORDS = 6000
FREQUENT = {f"top_{first}": first for first in (1000, 5000)}
STRATEGIES = ("uniform", "fps", "kmeans", *FREQUENT)
PROJECTIONS = {
    "cosine": RelativeConfig.paper(num_anchors=ANCHORS).space,
    "centred cosine": RelativeConfig.paper(num_anchors=ANCHORS, transform="center").space,
    "default": RelativeSpace(num_anchors=ANCHORS),
}
# Of the notebook behind the table: Jaccard, MRR, cosine from FastText to word2vec, and back.
PAPER: dict[str, Any] = {
    "absolute": ((0.00, 0.00, 0.01), None),
    "uniform": ((0.38, 0.93, 0.86), (0.44, 0.97, 0.86)),
    "fps": ((0.38, 0.94, 0.81), (0.47, 0.98, 0.83)),
    "kmeans": ((0.39, 0.94, 0.87), (0.43, 0.97, 0.87)),
    "top_1000": ((0.30, 0.84, 0.85), (0.40, 0.97, 0.85)),
    "top_5000": ((0.36, 0.91, 0.86), (0.43, 0.97, 0.86)),
}


def run(options: Options) -> dict[str, Any]:
    """Every pair of spaces in both directions."""
    rows: list[dict[str, Any]] = []
    facts = []
    for source, target in _pairs(options):
        words = shared_words(source, target, most=3000 if options.quick else WORDS)
        facts.append({"spaces": [source.name, target.name], "words": len(words)})
        console.print(f"{source.name} and {target.name}: {len(words):,} words")
        spaces = {space.name: torch.as_tensor(space.of(words)) for space in (source, target)}
        for direction in ((source.name, target.name), (target.name, source.name)):
            rows += measured(direction, [spaces[name] for name in direction], options)
    return {"anchors": ANCHORS, "k": NEIGHBOURS, "pairs": facts, "rows": rows}


def _pairs(options: Options) -> Iterable[tuple[WordSpace, WordSpace]]:
    if options.assets is not None:
        glove = load_glove(options.site)
        yield glove, load_spacy(options.site, glove.words)
    elif not options.quick:
        yield load_from_hub(HUB[0]), load_from_hub(HUB[1])
    yield halves(options)


def halves(options: Options) -> tuple[WordSpace, WordSpace]:
    """Word vectors of every other Debian package, and of those between; of --data, or the bundled ones."""
    if options.data is None or options.quick:
        texts = load_debian_descriptions()["en"][:]
    else:
        texts = pq.read_table(options.data / "debian_descriptions.parquet", columns=["en"])["en"].to_pylist()
    texts = list(dict.fromkeys(texts))  # packages of one source often share a text
    return counted("Debian, half 1", texts[::2]), counted("half 2", texts[1::2], seed=1)


def measured(direction: tuple[str, str], spaces_WD: list[Tensor], options: Options) -> list[dict[str, Any]]:
    """Rows of one direction: the absolute control, every strategy with cosines, other projections with uniform."""
    base = {"source": direction[0], "target": direction[1]}
    rows = [base | {"anchors": None, "projection": "absolute", **_figures([_alike(_padded(spaces_WD))])}]
    rows[0]["cka"] = latent_similarity(*spaces_WD, metrics=["cka"]).cka
    settings = [("cosine", strategy) for strategy in STRATEGIES]
    settings += [(projection, "uniform") for projection in PROJECTIONS if projection != "cosine"]
    for projection, strategy in track(settings, " to ".join(direction), console=console):
        space = PROJECTIONS[projection]
        # The spread is small: ten seeds where the paper has ten, and the cheapest half of that elsewhere.
        seeds = options.seeds if (projection, strategy) == ("cosine", "uniform") else min(3, options.seeds)
        seeds = min(2, seeds) if options.quick else seeds
        found = [relative(spaces_WD, chosen(spaces_WD[0], strategy, seed), space) for seed in range(seeds)]
        row = base | {"anchors": strategy, "projection": projection, **_figures([_alike(pair) for pair in found])}
        if strategy == "uniform":
            row["k10"] = _figures([_alike(found[0], k=10)])
        rows.append(row)
    return rows


def chosen(source_WD: Tensor, strategy: str, seed: int) -> np.ndarray:
    """Rows of the anchors, chosen in the source space."""
    if strategy in FREQUENT:
        return select(min(FREQUENT[strategy], len(source_WD)), ANCHORS, seed=seed)
    return select(len(source_WD), ANCHORS, strategy, seed, embeddings_ND=source_WD)


def relative(spaces_WD: list[Tensor], anchors: np.ndarray, space: RelativeSpace) -> list[Tensor]:
    """Both spaces relative to the same words."""
    return [project_in_chunks(x_WD, frame_of(x_WD[anchors], space), space) for x_WD in spaces_WD]


def _alike(pair: list[Tensor], k: int = NEIGHBOURS) -> dict[str, float]:
    found = latent_similarity(*pair, k=k, metrics=METRICS)
    return {name: getattr(found, name) for name in METRICS}


def _figures(found: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread(figures[name] for figures in found) for name in METRICS}


def _padded(spaces_WD: list[Tensor]) -> list[Tensor]:
    widest = max(x_WD.shape[1] for x_WD in spaces_WD)
    return [torch.nn.functional.pad(x_WD, (0, widest - x_WD.shape[1])) for x_WD in spaces_WD]


def render(results: dict[str, Any]) -> str:
    """A table for each pair of spaces: both directions beside the paper's."""
    parts = []
    for fact in results["pairs"]:
        one, other = fact["spaces"]
        parts.append(f"**{one} and {other}**, {fact['words']:,} words; Jaccard, MRR, cosine:\n")
        heads = ("anchors, projection", f"{one} to {other}", "back", "paper: FastText to word2vec", "paper: back")
        parts.append(markdown(heads, _lines(results, one, other)) + "\n")
    return "\n".join([*parts, _remark(results)])


def _lines(results: dict[str, Any], one: str, other: str) -> Iterable[tuple[str, ...]]:
    there, back = rows_of(results, source=one, target=other), rows_of(results, source=other, target=one)
    for row, reverse in zip(there, back, strict=True):
        name = f"{row['anchors']}, {row['projection']}" if row["anchors"] else "absolute"
        of_paper = PAPER.get(row["anchors"] or "absolute") if row["projection"] in ("absolute", "cosine") else None
        paper = [" / ".join(f"{x:.2f}" for x in figures) if figures else "-" for figures in of_paper or (None, None)]
        yield (name, *(" / ".join(cell(each[metric], 2) for metric in METRICS) for each in (row, reverse)), *paper)


def _remark(results: dict[str, Any]) -> str:
    spaces = [fact["spaces"] for fact in results["pairs"]]
    found = [[_mean(results, "mrr", source, anchors) for source, _ in spaces] for anchors in ("uniform", "top_1000")]
    uniform, frequent = (" and ".join(f"{figure:.2f}" for figure in figures) for figures in found)
    return (
        "Where it differs: relative spaces agree far more than absolute ones, as in the paper, but less: MRR "
        f"{uniform} where the paper has 0.93. Anchors out of the 1,000 most frequent words are the paper's weakest "
        f"(0.84); here they reach {frequent}."
    )


def _mean(results: dict[str, Any], metric: str, source: str, anchors: str | None) -> float:
    """Of cosines with some anchors, or of the absolute control."""
    projection = "cosine" if anchors else "absolute"
    return rows_of(results, source=source, anchors=anchors, projection=projection)[0][metric]["mean"]


def headline(results: dict[str, Any]) -> tuple[str, str, str]:
    """MRR of the first pair, uniform anchors."""
    source = results["pairs"][0]["spaces"][0]
    relative, absolute = (_mean(results, "mrr", source, anchors) for anchors in ("uniform", None))
    shape = "yes, lower" if relative > 10 * absolute else "no"
    return "MRR 0.93 relative, 0.00 absolute", f"MRR {relative:.2f} relative, {absolute:.2f} absolute", shape
