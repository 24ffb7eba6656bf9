"""Real pairs of texts that match or do not, with negatives that are hard to tell.

- debian: the synopsis of a package and the rest of a description. It is the package's own, or one of the three that
  are most alike to its own by TF-IDF.
- trec: two questions. They are of the same fine kind, of 50; or of other kinds, and then the second is one of the
  three that are most alike to the first.
- vitaminc: a sentence of Wikipedia and a claim that follows from it, or one that is contradicted or left open; from
  each page one of both. Others with few other words have the other label: the natural language inference of VitaminC.

Half of the pairs match. In the first two TF-IDF chooses, not an encoder: none is favoured. No first text or page of a
test pair was trained on or is an anchor; the labels of anchors are read by the control alone that needs them.
Shapes: N texts.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.assets.texts import load_trec, load_vitaminc
from benchmarks.retrieval import synopses_and_documents
from hf_relreps.pairs import pairs_of


TRAIN, ANCHORS, TEST = 1600, 768, 1000  # pairs
NEAREST, TOO_ALIKE = 3, 0.8  # a document that is more alike may describe the same
LONGEST = 120  # characters of a document: what follows costs time only


class Pairs(NamedTuple):
    """Pairs of texts, and whether they match."""

    samples: list[dict[str, str]]
    labels: list[int]


class Task(NamedTuple):
    """Pairs to train on, pairs as anchors, and pairs to test with."""

    train: Pairs
    anchors: Pairs
    test: Pairs


def debian(seed: int, arguments: Namespace, anchors_seed: int = 0) -> Task:
    """Synopses with their own description or one like it."""
    parts = {split: synopses_and_documents(split) for split in ("train", "test")}
    anchors, known = _split(len(parts["train"][0]), ANCHORS // 2, TRAIN // 2, seed, anchors_seed)
    fresh = _not_in(parts["test"][0], parts["train"][0])  # packages may share a synopsis
    test = np.random.default_rng(0).permutation(fresh)[: TEST // 2]

    def made(split: str, rows: np.ndarray, seed: int) -> Pairs:
        queries, documents = ([texts[i] for i in rows] for texts in parts[split])
        return _with_negatives(queries, [document[:LONGEST] for document in documents], seed)

    return Task(made("train", known, seed), made("train", anchors, anchors_seed), made("test", test, 0))


def trec(seed: int, arguments: Namespace, anchors_seed: int = 0) -> Task:
    """Questions with another of the same kind, or one like it of another kind."""
    parts = {split: load_trec(arguments.data / "trec.parquet", split, "fine") for split in ("train", "test")}
    anchors, known = _split(len(parts["train"]), ANCHORS, TRAIN, seed, anchors_seed)
    return Task(
        _of_kinds(parts["train"].select(known), TRAIN, seed),
        _of_kinds(parts["train"].select(anchors), ANCHORS, anchors_seed),
        _of_kinds(parts["test"], TEST, 0),
    )


def vitaminc(seed: int, arguments: Namespace, anchors_seed: int = 0) -> Task:
    """Sentences of Wikipedia with a claim that follows, and with one that does not."""
    rows = load_vitaminc(arguments.assets)
    pages: dict[str, tuple[list[int], list[int]]] = {}
    for i, (page, label) in enumerate(zip(rows["page"], rows["label"], strict=True)):
        pages.setdefault(page, ([], []))[label].append(i)
    usable = [both for both in pages.values() if all(both)]
    test, rest = np.split(np.random.default_rng(0).permutation(len(usable)), [TEST // 2])
    anchors, known = _split(len(rest), ANCHORS // 2, TRAIN // 2, seed, anchors_seed)

    def made(chosen: np.ndarray, seed: int) -> Pairs:
        rng = np.random.default_rng(seed)
        picked = [(int(rng.choice(usable[i][label])), label) for i in chosen for label in (0, 1)]
        picked = [picked[i] for i in rng.permutation(len(picked))]
        texts = rows[[i for i, _ in picked]]
        return Pairs(pairs_of(texts["evidence"], texts["claim"]), [label for _, label in picked])

    return Task(made(rest[known], seed), made(rest[anchors], anchors_seed), made(test, 0))


TASKS: dict[str, Callable[..., Task]] = {"debian": debian, "trec": trec, "vitaminc": vitaminc}


def hard_rows(texts: Sequence[str], others: Sequence[str], allowed: np.ndarray | None = None) -> np.ndarray:
    """For each text the rows of the others that are most alike (N, NEAREST), without itself and what is too alike."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*texts, *others])
    alike = (vectorizer.transform(texts) @ vectorizer.transform(others).T).toarray()
    alike[alike > TOO_ALIKE] = -1
    if allowed is not None:
        alike[~allowed] = -1
    return np.argsort(-alike, axis=1)[:, :NEAREST]


def _not_in(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Rows of the texts that are not among the others."""
    known = set(others)
    return np.array([i for i, text in enumerate(texts) if text not in known])


def _split(n: int, anchors: int, size: int, seed: int, anchors_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the anchors' texts, and others that depend on another seed."""
    chosen, rest = np.split(np.random.default_rng(anchors_seed).permutation(n), [anchors])
    return chosen, np.random.default_rng(1000 + seed).permutation(rest)[:size]


def _with_negatives(queries: list[str], documents: list[str], seed: int) -> Pairs:
    """Each query twice: with its own document and with one of the hard ones."""
    rng = np.random.default_rng(seed)
    wrong = [documents[rng.choice(row)] for row in hard_rows(documents, documents)]
    samples = pairs_of([*queries, *queries], [*documents, *wrong])
    labels = [1] * len(queries) + [0] * len(queries)
    order = rng.permutation(len(labels))
    return Pairs([samples[i] for i in order], [labels[i] for i in order])


def _of_kinds(rows: Any, size: int, seed: int) -> Pairs:
    """Half of the pairs of one kind, half of two."""
    rng = np.random.default_rng(seed)
    texts, kinds = np.array(rows["text"][:]), np.array(rows["label"][:])
    same = kinds[:, None] == kinds
    hard = hard_rows(texts.tolist(), texts.tolist(), ~same)
    np.fill_diagonal(same, False)
    queries = rng.permutation(np.resize(rng.permutation(np.flatnonzero(same.any(1))), size))
    labels = np.arange(size) % 2
    second = [
        rng.choice(np.flatnonzero(same[i]) if label else hard[i]) for i, label in zip(queries, labels, strict=True)
    ]
    return Pairs(pairs_of(texts[queries].tolist(), texts[second].tolist()), labels.tolist())
