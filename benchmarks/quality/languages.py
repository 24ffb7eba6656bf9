"""Debian descriptions in English, French and Italian: small BERTs from scratch, no two from the same seed.

They are trained end to end as relative models and have seen the training labels, so a few labelled anchors are enough
here. Encoders that never saw a label are beside them: latent semantic analysis, a factorisation of the counts of
words, fitted for each language alone.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from benchmarks.modalities.report import train
from benchmarks.quality.spaces import Spaces, cached
from hf_relreps import AnchorCallback, AnchorSet, RelativeModel, RelativeModelForSequenceClassification
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer
from hf_relreps.evaluation import stitching_matrix


if TYPE_CHECKING:
    from datasets import Dataset

ENCODERS = {"en-1": 11, "en-2": 22, "fr": 33, "it": 44}  # name, which starts with the language: seed
WORDS = ("en", "fr", "it", "da")
LONGEST = 64  # tokens
EPOCHS = 6
NUM_ANCHORS = 300
WIDTH = 256  # of latent semantic analysis


def load(arguments: Namespace) -> Spaces:
    """Encoders trained end to end with the default projection; their absolute embeddings."""
    rows = load_debian_descriptions()
    x = {encoder: end_to_end(encoder, rows, arguments.cache) for encoder in ENCODERS}
    return Spaces.of_splits("languages", x, np.array(rows["label"][:]), np.array(rows["split"][:]))


def load_words(arguments: Namespace) -> Spaces:
    """Latent semantic analysis: encoders that never saw a label."""
    rows = load_debian_descriptions()
    x = {
        language: cached(arguments.cache / f"lsa-{language}.npy", lambda tongue=language: _lsa(rows, tongue))
        for language in WORDS
    }
    return Spaces.of_splits("languages, words", x, np.array(rows["label"][:]), np.array(rows["split"][:]))


def end_to_end(name: str, rows: Dataset, folder: Path) -> Tensor:
    """Absolute embeddings of all rows by an encoder that was trained behind the default projection."""
    where = folder / f"end-to-end-{name}"
    return cached(where.with_suffix(".npy"), lambda: _relative(name, rows, where).encode(rows[name[:2]][:]))


def end_to_end_matrix(folder: Path) -> dict[str, Any]:
    """Encoders and decoders as they were trained, stitched to one another on the test rows."""
    path = folder / "end-to-end.json"
    if not path.is_file():
        models = {
            name: RelativeModelForSequenceClassification.from_pretrained(folder / f"end-to-end-{name}")
            for name in ENCODERS
        }
        inputs = {name: name[:2] for name in ENCODERS}
        matrix = stitching_matrix(
            models, models, load_debian_descriptions("test"), metric="f1", inputs=inputs, progress=False
        )
        path.write_text(json.dumps(matrix.to_dict() | matrix.summary), "utf-8")
    return json.loads(path.read_text("utf-8"))


def _anchors(rows: Dataset) -> AnchorSet:
    known = rows.filter(lambda split: split == "train", input_columns="split")
    return AnchorSet.from_dataset(known, NUM_ANCHORS, views=list(WORDS), id_column="package", seed=42)


def _tokenized(name: str, rows: Dataset) -> tuple[Any, list[dict[str, Any]]]:
    known = rows.filter(lambda split: split == "train", input_columns="split")
    texts = known[name[:2]][:]
    tokenizer = wordpiece_tokenizer(texts, LONGEST)
    tokens = tokenizer(texts, truncation=True)
    columns = (tokens["input_ids"], tokens["attention_mask"], known["label"][:])
    named = ("input_ids", "attention_mask", "labels")
    return tokenizer, [dict(zip(named, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _fit(model: Any, tokenizer: Any, dataset: list[dict[str, Any]], seed: int, folder: Path, *callbacks: Any) -> Any:
    from transformers import DataCollatorWithPadding

    return train(
        model,
        dataset,
        seed,
        folder / "trainer",
        *callbacks,
        collator=DataCollatorWithPadding(tokenizer),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        learning_rate=5e-4,
        warmup_steps=0.1,
        weight_decay=0.01,
    )


def _relative(name: str, rows: Dataset, where: Path) -> RelativeModel:
    set_seed(ENCODERS[name])
    tokenizer, dataset = _tokenized(name, rows)
    view = _anchors(rows).view(name[:2])
    classes = len(set(rows["label"][:]))
    model = RelativeModelForSequenceClassification.from_encoder(
        small_bert(len(tokenizer), LONGEST), view, tokenizer, num_labels=classes
    )
    _fit(model, tokenizer, dataset, ENCODERS[name], where.parent, AnchorCallback(view))
    model.save_pretrained(where)
    return model.encoder


def _lsa(rows: Dataset, language: str) -> Tensor:
    """Term frequencies of the training texts, their largest singular vectors, by language."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, splits = rows[language][:], rows["split"][:]
    counts = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.3)
    known = counts.fit_transform([text for text, split in zip(texts, splits, strict=True) if split == "train"])
    factors = TruncatedSVD(WIDTH, random_state=WORDS.index(language)).fit(known)
    return torch.from_numpy(factors.transform(counts.transform(texts)))
