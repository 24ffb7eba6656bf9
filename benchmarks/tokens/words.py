"""Words in their sentences, their labels, and what encoders make of them: each encoder reads each set once.

A word is the mean of its pieces at a layer. Sentences come from two files: `pud.parquet` (Universal Dependencies PUD
and Universal NER: 1,000 sentences in each of four languages, parallel by id) and `ewt.parquet` (UD English EWT and
Universal NER), both CC BY-SA.
Shapes: S sentences, T tokens, W words of all sentences, D absolute size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.assets.features import kept
from benchmarks.assets.text_encoders import PREFIXES, load_text_encoder
from hf_relreps.pooling import vectors_of_words
from hf_relreps.samples import SPANS, batches, digest_of_samples
from hf_relreps.words import Word


LAYER = -3
LONGEST = 256  # tokens that an encoder reads of a sentence
UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
ENTITIES = ("O", "B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER")
CLASSES = {"upos": UPOS, "ner": ENTITIES, "patches": tuple(map(str, range(10)))}  # of CIFAR-10


class Sentence(NamedTuple):
    """Words and their labels; `ner` is None where nobody marked the entities."""

    words: tuple[str, ...]
    upos: tuple[str, ...]
    ner: tuple[str, ...] | None


@dataclass(frozen=True)
class Encoded:
    """Sentences and the vectors of their words by one encoder.

    Args:
        sentences: S sentences.
        x_WD: Vectors of the words, sentence after sentence.
        starts_S: Row of the first word of each sentence.
    """

    sentences: list[Sentence]
    x_WD: Tensor

    @property
    def lengths(self) -> list[int]:
        """Number of words of each sentence."""
        return [len(sentence.words) for sentence in self.sentences]

    def by_sentence(self) -> list[Tensor]:
        """Vectors of the words of each sentence, (words, D)."""
        return list(self.x_WD.split(self.lengths))

    def part(self, rows: Sequence[int]) -> Encoded:
        """Some of the sentences."""
        vectors = self.by_sentence()
        return Encoded([self.sentences[i] for i in rows], torch.cat([vectors[i] for i in rows]))

    def marked(self, task: str) -> Encoded:
        """The sentences that have labels for a task."""
        return self.part([i for i, sentence in enumerate(self.sentences) if getattr(sentence, task) is not None])

    def labels(self, task: str) -> Tensor:
        """Classes of the words (W,), as numbers of `CLASSES`."""
        numbers = {name: i for i, name in enumerate(CLASSES[task])}
        return torch.tensor([numbers[label] for sentence in self.sentences for label in getattr(sentence, task)])


def load_pud(folder: Path) -> dict[str, list[Sentence]]:
    """For each language the same sentences, in the order of their ids."""
    table = _read(folder / "pud.parquet")
    return {name: _sentences(rows.sort_values("id")) for name, rows in table.groupby("language")}


def load_ewt(folder: Path) -> dict[str, list[Sentence]]:
    """Parts "train" and "test"; a training sentence that stands in the test part is left out."""
    table = _read(folder / "ewt.parquet")
    parts = {name: _sentences(rows) for name, rows in table.groupby("split")}
    tested = {sentence.words for sentence in parts["test"]}
    return parts | {"train": [sentence for sentence in parts["train"] if sentence.words not in tested]}


def _read(file: Path) -> Any:
    import pandas as pd

    return pd.read_parquet(file)


def _sentences(rows: Any) -> list[Sentence]:
    columns = (rows["words"], rows["upos"], rows["ner"])
    return [
        Sentence(tuple(words), tuple(upos), None if ner is None else tuple(ner))
        for words, upos, ner in zip(*columns, strict=True)
    ]


def encode(name: str, sentences: Sequence[Sentence], cache: Path, assets: Path | None, layer: int = LAYER) -> Encoded:
    """Word vectors of sentences, from `cache` where the same encoder has read the same sentences before."""
    words = [list(sentence.words) for sentence in sentences]
    file = cache / f"{name}-{layer}-{digest_of_samples([' '.join(one) for one in words])[:16]}.safetensors"
    return Encoded(list(sentences), kept(file, lambda: _word_vectors(name, words, assets, layer)))


@torch.inference_mode()
def _word_vectors(name: str, sentences: list[list[str]], assets: Path | None, layer: int) -> Tensor:
    """(W, D): means of the pieces of each word, behind the text that the encoder wants before every other."""
    model, tokenizer = load_text_encoder(name, assets)
    prefix = PREFIXES.get(name, "").split()
    words = [Word((*prefix, *words), len(prefix) + i) for words in sentences for i in range(len(words))]
    x_WD = torch.empty(len(words), model.config.hidden_size)
    for rows, inputs in batches(words, tokenizer, batch_size=16, max_length=LONGEST):
        spans_n3 = inputs.pop(SPANS)
        states_BTD = model(**inputs, output_hidden_states=True).hidden_states[layer]
        x_WD[rows] = vectors_of_words(states_BTD, spans_n3, "mean")
    return x_WD
