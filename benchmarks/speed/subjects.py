"""What is measured: encoders of the size of MiniLM with random weights, and real texts."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from hf_relreps import AnchorSet, RelativeModelForSequenceClassification
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import wordpiece_tokenizer


NUM_LABELS = 11
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


@cache
def texts() -> tuple[list[str], list[int]]:
    """English descriptions of Debian packages, and their sections."""
    rows = load_debian_descriptions("train")
    return rows["en"][:], rows["label"][:]


@cache
def tokenizer(longest: int) -> PreTrainedTokenizerFast:
    """One of 8,000 pieces."""
    return wordpiece_tokenizer(texts()[0], longest)


def anchors(k: int) -> AnchorSet:
    """The last of the texts, which no training below uses."""
    return AnchorSet([str(i) for i in range(k)], {"en": texts()[0][-k:]})


def absolute(seed: int = 0, **sizes: Any) -> BertForSequenceClassification:
    """An ordinary classifier."""
    torch.manual_seed(seed)
    settings = {"vocab_size": 30522, "num_labels": NUM_LABELS} | MINILM | sizes
    return BertForSequenceClassification(BertConfig(**settings)).eval()


def relative(model: BertForSequenceClassification, k: int, longest: int) -> RelativeModelForSequenceClassification:
    """The same encoder, relative to k anchors."""
    return RelativeModelForSequenceClassification.from_encoder(
        model.bert, anchors(k).view("en"), tokenizer(longest), num_labels=NUM_LABELS
    ).eval()


def batch(size: int, longest: int) -> dict[str, torch.Tensor]:
    """Inputs with labels."""
    words, labels = texts()
    inputs = tokenizer(longest)(words[:size], truncation=True, padding=True, max_length=longest, return_tensors="pt")
    return dict(inputs) | {"labels": torch.tensor(labels[:size])}
