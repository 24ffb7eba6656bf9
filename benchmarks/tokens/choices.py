"""What the numbers of `hf_relreps.word_pairs` rest on, measured on the first 500 sentences of PUD alone.

How many sentence pairs are enough, how many may be wrong, and which pairs make anchors.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.tokens.languages import ANCHORS, LANGUAGES, PAIRED, neighbours
from benchmarks.tokens.measure import SPACES, Relative, scores, trained_on
from benchmarks.tokens.words import Encoded, encode, load_ewt, load_pud
from hf_relreps.errors import AnchorError
from hf_relreps.word_pairs import WordPairs, find_word_pairs


SENTENCES, WRONG = (50, 100, 200), (0.0, 0.3, 0.6, 1.0)
SEARCHED = 350  # sentences that give pairs, where the others up to `PAIRED` are tagged


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """By language: the evidence for each number and share of wrong sentence pairs, and accuracy by choice of pairs."""
    pud, train = load_pud(arguments.data), load_ewt(arguments.data)["train"]

    def read(name: str, language: str) -> Encoded:
        return encode(name, pud[language], arguments.cache, arguments.assets).part(range(PAIRED))

    source, shared = read("minilm", "en"), read("me5", "en")
    english = encode("minilm", train, arguments.cache, arguments.assets)
    found: dict[str, Any] = {}
    for language in LANGUAGES:
        target = read("me5", language)
        known = {*neighbours(shared, target)}
        rows = [_row(source, target, known, n, wrong) for n in SENTENCES for wrong in WRONG]
        found[language] = {"trust": rows, "choice": _choice(english, source, target)}
    return found


def _row(source: Encoded, target: Encoded, known: set[Any], n: int, wrong: float) -> dict[str, Any]:
    order = np.arange(n)
    order[: int(wrong * n)] = np.roll(order[: int(wrong * n)], 1)
    left, right = source.by_sentence()[:n], target.by_sentence()
    right = [right[i] for i in order]
    row: dict[str, Any] = {"sentences": n, "wrong": wrong}
    try:
        pairs = find_word_pairs(left, right)
    except AnchorError as error:
        return row | {"refused": str(error)}
    links = zip(pairs.sentence_P.tolist(), pairs.source_P.tolist(), pairs.target_P.tolist(), strict=True)
    return row | pairs.report.to_dict() | {"confirmed": len({*links} & known) / len(pairs)}


def _choice(english: Encoded, source: Encoded, target: Encoded) -> dict[str, float]:
    sides = [side.part(range(SEARCHED)).by_sentence() for side in (source, target)]
    test, rows = target.part(range(SEARCHED, PAIRED)), trained_on(english, "upos", 0)
    pairs = find_word_pairs(*sides)
    sure = torch.arange(ANCHORS)
    parts = (pairs.sentence_P, pairs.source_P, pairs.target_P, pairs.confidence_P)
    surest = WordPairs(*(part[sure] for part in parts), report=pairs.report)
    found = {}
    for name, chosen in {"the surest": surest, "drawn": pairs.choose(ANCHORS)}.items():
        mine_AD, theirs_AD = chosen.vectors(*sides)
        labels_W = english.labels("upos")[rows]
        decoder = Relative.fit(english.x_WD[rows], labels_W, "upos", mine_AD, SPACES["default"])
        found[name] = scores(decoder.say(test.x_WD, theirs_AD), test, "upos")["accuracy"]
    return found
