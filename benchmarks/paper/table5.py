"""Table 5: stitching across architectures, text.

Four encoders that were trained separately stay frozen: all-MiniLM-L6-v2 (384 wide), all-mpnet-base-v2 (768),
multilingual-e5-small (384) and USE-multilingual (512, no transformer). Each gets its own decoder (LayerNorm and two
layers, all seeds distinct), and every decoder reads every encoder: 12 stitched pairs for each task and seed. Each seed
draws its own 300 anchors, equally many of each class, from the train rows. Score: weighted F1. Absolute control:
decoders of the same form on absolute embeddings; only MiniLM and E5 have the same width. "Labelled anchors only" is
the alternative without a decoder: train on the labels of the anchors alone.

What differs from the paper: it has BERT cased and uncased, ELECTRA and RoBERTa (all 768 wide, token 0), 768 anchors,
and TREC, DBpedia and Amazon reviews. Here TREC has 1,500 train questions and all 499 test questions (6 kinds, and 50
kinds, which are not in the paper). The other datasets are replaced by 1,600 Debian package descriptions (11 sections,
cut after 160 characters) and 1,600 WordNet definitions (8 classes), a quarter of them for the test. The paper's
decoders normalise each feature over the whole test set, so that each answer depends on the other samples; ours do not.
Without `--assets` and `--data` the paper's encoders, TREC and DBpedia come from the Hub.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.assets.text_encoders import WIDTHS, text_features
from benchmarks.assets.texts import ENGLISH, HUB, load_english, load_english_from_hub
from benchmarks.paper.frozen import (
    ABSOLUTE,
    ANCHORS,
    LABELLED,
    PROJECTIONS,
    Task,
    compared,
    own_and_stitched,
    row_of,
    share,
    stitched_in_short,
)
from benchmarks.paper.options import Options
from benchmarks.paper.tables import names_of, span
from benchmarks.reporting import markdown


SEEDS = 3
HUB_ENCODERS = ("bert-base-cased", "bert-base-uncased", "google/electra-base-discriminator", "roberta-base")
EPOCHS = {"debian": 15, "glosses": 15, "trec": 15, "trec-fine": 20, "dbpedia": 10}
TITLES = {
    "debian": "Debian, 11 sections",
    "glosses": "WordNet, 8 classes",
    "trec": "TREC, 6 kinds",
    "trec-fine": "TREC, 50 kinds",
    "dbpedia": "DBpedia, 14 classes",
}
# Weighted F1 in per cent: absolute own and stitched, relative own and stitched; see READ.
PAPER: dict[str, tuple[float, float, float, float]] = {
    "TREC": (91.70, 21.49, 88.08, 75.89),
    "DBpedia": (98.62, 6.96, 97.42, 80.47),
    "Amazon coarse": (87.81, 49.58, 85.08, 72.37),
    "Amazon fine": (55.33, 19.01, 48.92, 33.24),
}
READ = {"TREC": (1, 3), "DBpedia": (1, 3), "Amazon coarse": (1, 3), "Amazon fine": ()}  # the others are recollected


def run(options: Options) -> dict[str, Any]:
    """Every task with every encoder; quick: two encoders on the first task."""
    tasks = ENGLISH if options.data else tuple(HUB)
    names = tuple(WIDTHS) if options.assets else HUB_ENCODERS
    if options.quick:
        tasks, names = ENGLISH[:1], ("minilm", "use") if options.assets else HUB_ENCODERS[:2]
    rows = [row for task in tasks for row in measured(task, names, options)]
    return {"anchors": ANCHORS, "metric": "weighted F1", "encoders": list(names), "rows": rows}


def measured(name: str, encoders: tuple[str, ...], options: Options) -> list[dict[str, Any]]:
    """Rows of one task."""
    packaged = options.data is not None or options.quick
    dataset = load_english(name, options.data, options.assets) if packaged else load_english_from_hub(name)
    split = np.array(dataset["split"][:])
    kept = np.arange(len(dataset)) if not options.quick else np.r_[0:250, 400:1000]
    texts, labels = [dataset["text"][i] for i in kept.tolist()], np.array(dataset["label"][:])[kept]
    train, test = np.flatnonzero(split[kept] == "train"), np.flatnonzero(split[kept] == "test")
    x_ND = {encoder: text_features(encoder, texts, options.cache, options.assets) for encoder in encoders}
    features = {encoder: (x[train], x[test]) for encoder, x in x_ND.items()}
    classes = dataset.features["label"].num_classes
    task = Task(labels[test], classes, EPOCHS[name])
    return compared(task, labels[train], lambda _: features, options.seeds, task=name, classes=classes)


def render(results: dict[str, Any]) -> str:
    """Own and stitched of each task, ours and the paper's."""
    paper = ("the paper's", "", ABSOLUTE, "relative, cosine")
    parts = [own_and_stitched(results, TITLES), markdown(paper, paper_lines()), _remark(results)]
    return "\n\n".join(parts)


def paper_lines() -> Iterable[tuple[str, ...]]:
    """The paper's figures, in brackets where they are recollected only."""
    for name, figures in PAPER.items():
        cells = [f"{x:.2f}" if i in READ[name] else f"({x:.2f})" for i, x in enumerate(figures)]
        yield name, "own", cells[0], cells[2]
        yield "", "stitched", cells[1], cells[3]


def _remark(results: dict[str, Any]) -> str:
    """How much of own survives, there and here; and what the anchors' labels alone give."""
    tasks = names_of(results, "task")
    shares = {kind: [100 * share(row_of(results, task, kind)) for task in tasks] for kind in PROJECTIONS}
    ranges = {kind: f"{span(found, 0)} %" for kind, found in shares.items()}
    paper = span((100 * figures[3] / figures[2] for figures in PAPER.values()), 0)
    ahead = [TITLES[task] for task in tasks if _lead(results, task) > 0]
    behind = [TITLES[task] for task in tasks if _lead(results, task) <= 0]
    lines = [
        f"A stitched pair keeps {ranges['cosine']} of own with the paper's cosines (in the paper "
        f"{paper} %) and {ranges['default']} with the default; the spread "
        "is over pairs and seeds."
    ]
    if ahead:
        lines.append(f"Stitched with the default is better than the labels of the anchors alone: {', '.join(ahead)}.")
    if behind:
        lines.append(f"It is not better than these: {', '.join(behind)}.")
    return " ".join(lines)


def _lead(results: dict[str, Any], task: str) -> float:
    return row_of(results, task, "default")["stitched"]["mean"] - row_of(results, task, LABELLED)["own"]["mean"]


def headline(results: dict[str, Any]) -> tuple[str, str, str]:
    """Stitched F1 of TREC (of the first task where it was not measured)."""
    tasks = names_of(results, "task")
    task = "trec" if "trec" in tasks else tasks[0]
    return "TREC, stitched: absolute 21.49, relative 75.89", *stitched_in_short(results, task, TITLES[task])
