"""Debian descriptions in English, French and Italian: small BERTs from scratch, no two from the same seed.

They are trained end to end as relative models and have seen the training labels, so a few labelled anchors are enough
here. Encoders that never saw a label are beside them: latent semantic analysis, a factorisation of the counts of
words, fitted for each language alone.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from benchmarks.assets.features import kept
from benchmarks.quality.spaces import Spaces, trained
from benchmarks.training import DECAYING, tokenized, train
from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForSequenceClassification
from hf_relreps.demos.debian import SECTIONS, load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer


if TYPE_CHECKING:
    from datasets import Dataset

ENCODERS = {"en-1": 11, "en-2": 22, "fr": 33, "it": 44}  # name, which starts with the language: seed
LANGUAGES = {name: name[:2] for name in ENCODERS}
WORDS = ("en", "fr", "it", "da")
LONGEST = 64  # tokens
WIDTH = 256  # of latent semantic analysis
FILE = "end-to-end.safetensors"


def load(arguments: Namespace) -> Spaces:
    """Encoders trained end to end with the default projection; their absolute embeddings."""
    rows = load_debian_descriptions()
    x = trained(
        arguments.cache / FILE,
        lambda: {name: _relative(name) for name in ENCODERS},
        lambda name: rows[LANGUAGES[name]][:],
        load_debian_descriptions("test"),
        inputs=LANGUAGES,
    )
    return Spaces.of_splits("languages", x, np.array(rows["label"][:]), np.array(rows["split"][:]))


def load_words(arguments: Namespace) -> Spaces:
    """Latent semantic analysis: encoders that never saw a label."""
    rows = load_debian_descriptions()
    x = {
        language: kept(arguments.cache / f"lsa-{language}.safetensors", lambda tongue=language: _lsa(rows, tongue))
        for language in WORDS
    }
    return Spaces.of_splits("languages, words", x, np.array(rows["label"][:]), np.array(rows["split"][:]))


def _relative(name: str) -> RelativeModelForSequenceClassification:
    set_seed(ENCODERS[name])
    rows, language = load_debian_descriptions("train"), LANGUAGES[name]
    tokenizer = wordpiece_tokenizer(rows[language][:], LONGEST)
    dataset = tokenized(tokenizer, rows[language][:], rows["label"][:])
    view = AnchorSet.from_dataset(rows, 300, views=list(WORDS), id_column="package", seed=42).view(language)
    model = RelativeModelForSequenceClassification.from_encoder(
        small_bert(len(tokenizer), LONGEST), view, tokenizer, num_labels=len(SECTIONS)
    )
    how = DECAYING | {"num_train_epochs": 6, "learning_rate": 5e-4}
    return train(model, dataset, ENCODERS[name], AnchorCallback(view), processor=tokenizer, **how)


def _lsa(rows: Dataset, language: str) -> Tensor:
    """Term frequencies of the training texts, their largest singular vectors, by language."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, splits = rows[language][:], rows["split"][:]
    counts = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.3)
    known = counts.fit_transform([text for text, split in zip(texts, splits, strict=True) if split == "train"])
    factors = TruncatedSVD(WIDTH, random_state=WORDS.index(language)).fit(known)
    return torch.from_numpy(factors.transform(counts.transform(texts)))
