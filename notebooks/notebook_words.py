"""Data and encoders for notebook 9: sentences in two languages, and encoders that each know one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import coo_matrix, csr_matrix, hstack
from sklearn.utils.extmath import randomized_svd
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import wordpiece_tokenizer


PUD = Path(__file__).parent / "data" / "pud.parquet"  # its licence and origin stand beside it
COLOURS = ("#b3d4ff", "#ffd9b3", "#c7ecc0", "#f7c6d9", "#e0d0f5", "#fff2a8", "#d5d5d5", "#bfeaea")
LONGEST = 128  # tokens of a sentence
NEAR = 2  # words on either side that are counted as neighbours


def parallel_sentences() -> Dataset:
    """1,000 sentences as words in English and French, with a part of speech for each word; row i means the same."""
    import pyarrow.parquet as pq

    return Dataset(pq.read_table(PUD))


def texts_of(language: str, sentences: Sequence[Sequence[str]], more: int) -> tuple[list[str], list[str]]:
    """What an encoder of a language may read: these sentences, and descriptions of programs without any label."""
    return [" ".join(words) for words in sentences], load_debian_descriptions()[language][:more]


def encoder_of(
    sentences: Sequence[str], more: Sequence[str], seed: int, width: int, vocabulary: int
) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """An encoder that has read these texts and nothing else: BERT's embeddings of pieces, without layers above them.

    Pieces that have like neighbours and stand in the same sentences get like vectors: the first singular vectors of
    how much oftener two are seen together than by chance. They are turned at random, so encoders of two seeds have no
    direction in common.
    """
    texts = [*sentences, *more]
    tokenizer = wordpiece_tokenizer(texts, LONGEST, vocabulary)
    ids = [found[1:-1] for found in tokenizer(list(texts), truncation=True)["input_ids"]]
    set_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=0,
        num_attention_heads=1,
        max_position_embeddings=LONGEST,
        initializer_range=1e-3,  # of positions, which say little
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.embeddings.word_embeddings.weight.data = _counted(ids, len(sentences), len(tokenizer), width, seed)
    return model, tokenizer


def _counted(ids: Sequence[Sequence[int]], sentences: int, vocabulary: int, width: int, seed: int) -> torch.Tensor:
    """(vocabulary, width): half from neighbours, half from which of the first texts, the sentences, a piece is in."""
    pieces = np.concatenate([np.array(found) for found in ids])
    text = np.repeat(np.arange(len(ids)), [len(found) for found in ids])
    blocks = []
    for distance in range(1, NEAR + 1):
        together = text[:-distance] == text[distance:]
        left, right = pieces[:-distance][together], pieces[distance:][together]
        for one, other in ((left, right), (right, left)):
            blocks.append(_surprise(one, other, (vocabulary, vocabulary)) / distance**0.5)
    half = width // 2
    neighbours = _first_vectors(hstack(blocks), width - half, seed)
    first = text < sentences
    topics = _first_vectors(_surprise(pieces[first], text[first], (vocabulary, sentences)), half, seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
    return torch.tensor(0.1 * np.hstack([neighbours, topics]) @ turn, dtype=torch.float32)


def _surprise(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    """Positive pointwise mutual information of pairs; rare columns count a little less (Levy et al. 2015)."""
    counts = coo_matrix((np.ones(len(rows)), (rows, columns)), shape).tocsr().tocoo()
    of_row = np.bincount(rows, minlength=shape[0])
    of_column = np.bincount(columns, minlength=shape[1]) ** 0.75
    share = of_column / of_column.sum()
    told = np.log(counts.data / (of_row[counts.row] * share[counts.col]))
    kept = told > 0
    return csr_matrix((told[kept], (counts.row[kept], counts.col[kept])), shape)


def _first_vectors(matrix: csr_matrix, number: int, seed: int) -> np.ndarray:
    """Left singular vectors, weighted by the root of their values; rows of equal length."""
    left, values, _ = randomized_svd(matrix, number, random_state=seed)
    rows = left * values**0.5
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6) * number**0.5


def coloured(sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], shown: Sequence[str]) -> str:
    """Sentences as HTML: a word whose tag is among `shown` on its colour, with a legend."""
    colours = dict(zip(shown, COLOURS, strict=False))

    def marked(text: str, tag: str) -> str:
        colour = colours.get(tag)
        style = f"background:{colour};color:#222;padding:1px 4px;border-radius:4px"
        return f'<span style="{style}" title="{tag}">{text}</span>' if colour else text

    rows = [
        " ".join(map(marked, words, told)) for words, told in zip([shown, *sentences], [shown, *tags], strict=True)
    ]
    return "".join(f'<p style="line-height:1.9">{row}</p>' for row in rows)
