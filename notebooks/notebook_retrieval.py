"""Queries, documents and two small embedding models for notebook 8, which is about what happens to their index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import DistilBertConfig, DistilBertModel, PreTrainedModel, set_seed

from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer


LONGEST = 64  # tokens of a text


def queries_and_documents(rows: int) -> dict[str, Dataset]:
    """By split: the first sentence of a package description is the query, the rest the document to find."""
    data = load_debian_descriptions().select(range(rows))
    data = data.map(lambda row: dict(zip(("query", "_", "document"), row["en"].partition(". "), strict=True)))
    data = data.filter(lambda row: row["document"])
    return {
        split: data.filter(lambda row, split=split: row["split"] == split) for split in ("train", "validation", "test")
    }


def bert(vocabulary_size: int) -> PreTrainedModel:
    """128 wide."""
    return small_bert(vocabulary_size, longest=LONGEST, width=128, layers=1)


def distilbert(vocabulary_size: int) -> PreTrainedModel:
    """192 wide, another architecture."""
    sizes = {"dim": 192, "n_layers": 1, "n_heads": 4, "hidden_dim": 512, "max_position_embeddings": LONGEST}
    return DistilBertModel(DistilBertConfig(vocab_size=vocabulary_size, **sizes))


def trained(
    build: Callable[[int], PreTrainedModel], train: Dataset, vocabulary_size: int, epochs: int, seed: int
) -> Callable[[Sequence[str]], np.ndarray]:
    """An embedding model, trained to tell which document belongs to a query: texts -> vectors (B, D)."""
    set_seed(seed)
    tokenizer = wordpiece_tokenizer(train["en"][:], longest=LONGEST, vocabulary_size=vocabulary_size)
    encoder = build(len(tokenizer))
    sides = {side: _tokens(tokenizer, train[side][:]) for side in ("query", "document")}
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(128):
            queries = _embedded(encoder, _some_words([sides["query"][i] for i in rows], 8))
            documents = _embedded(encoder, _some_words([sides["document"][i] for i in rows], 20))
            cross_entropy(queries @ documents.T / 0.2, torch.arange(len(rows))).backward()
            optimizer.step()
            optimizer.zero_grad()
    encoder.eval()

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        found = np.empty((len(texts), encoder.config.hidden_size), dtype=np.float32)
        tokens = _tokens(tokenizer, list(texts))
        for rows in np.array_split(np.argsort([len(some) for some in tokens]), -(-len(texts) // 256)):
            found[rows] = _embedded(encoder, _padded([tokens[row] for row in rows])).numpy()
        return found

    return encode


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, truncation=True, add_special_tokens=False)["input_ids"]


def _some_words(texts: list[list[int]], count: int) -> Tensor:
    """Random tokens of each text, in their order: no single word decides."""
    kept = [sorted(torch.randperm(len(tokens))[:count].tolist()) for tokens in texts]
    return _padded([[tokens[i] for i in some] for tokens, some in zip(texts, kept, strict=True)])


def _padded(texts: list[list[int]]) -> Tensor:
    ids = torch.zeros(len(texts), max(1, *map(len, texts)), dtype=torch.long)
    for row, tokens in zip(ids, texts, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def _embedded(encoder: PreTrainedModel, ids: Tensor) -> Tensor:
    """The mean of the tokens, of length 1."""
    mask = ids.ne(0).long()
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return normalize((hidden * mask[..., None]).sum(1), dim=-1)
