"""1 Taggers: relative beside `AutoModelForTokenClassification`, on the same encoder and batch."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForTokenClassification

from benchmarks.speed import subjects
from benchmarks.speed.timing import paired, row
from hf_relreps import AnchorSet, RelativeModelForTokenClassification


LONGEST = 128
NUM_TAGS = 17
# By default words are read at the third layer from the end, and the two above are left out.
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    ", last layer": {"layer": -1},
    ", last layer, no change of basis": {"layer": -1, "basis_ridge": None},
}


def run(quick: bool = False) -> dict[str, Any]:
    """Ratios for 32 texts of 128 tokens each, and for 32 texts of their own lengths, by anchors and projection."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64} if quick else {}
    model = BertForTokenClassification(BertConfig(**subjects.MINILM | sizes, num_labels=NUM_TAGS)).eval()
    batches = {"32 x 128 tokens": _full(), "32 texts of up to 128 tokens": _padded()}
    rows = []
    for k, (how, settings) in itertools.product((1000, 1500), SETTINGS.items()):
        whole = _relative(model, k, settings)
        for name, inputs in batches.items():
            with torch.inference_mode():
                figure = paired(lambda: whole(**inputs), lambda: model(**inputs), 3 if quick else 5)  # noqa: B023
            share = f"{float(inputs['attention_mask'].float().mean()):.0%} of the tokens are no padding"
            what = f"{name}, {k} anchors{how}"
            rows.append(row(what, figure, "at most 1.05", share))
    return {"rows": rows}


def _relative(
    model: BertForTokenClassification, k: int, settings: dict[str, Any]
) -> RelativeModelForTokenClassification:
    """The same encoder, relative to k words."""
    sentences = [text.split()[:20] for text in subjects.texts()[0][-k:]]
    anchors = AnchorSet.from_tokens({"en": sentences}, k)
    return RelativeModelForTokenClassification.from_encoder(
        model.bert, anchors.view(), subjects.tokenizer(LONGEST), num_labels=NUM_TAGS, **settings
    ).eval()


def _full() -> dict[str, Tensor]:
    long = [" ".join(subjects.texts()[0][i : i + 8]) for i in range(0, 256, 8)]
    return dict(subjects.tokenizer(LONGEST)(long, truncation=True, return_tensors="pt"))


def _padded() -> dict[str, Tensor]:
    inputs = subjects.batch(32, LONGEST)
    del inputs["labels"]
    return inputs
