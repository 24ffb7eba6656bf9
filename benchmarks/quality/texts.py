"""English texts through MiniLM, mpnet, multilingual-e5 and USE: four encoders that were trained separately."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import numpy as np

from benchmarks.assets.text_encoders import text_features
from benchmarks.assets.texts import load_english
from benchmarks.quality.spaces import Spaces


VAL_SHARE = 1 / 6  # of the training rows


def load(name: str, arguments: Namespace) -> Spaces:
    """All four encoders, frozen: descriptions of Debian's packages, or WordNet's definitions."""
    rows = load_english(name, arguments.data, arguments.assets)
    splits_N = np.array(rows["split"][:])
    known_N = np.flatnonzero(splits_N == "train")
    splits_N = splits_N.astype(object)
    splits_N[known_N[len(known_N) - int(len(known_N) * VAL_SHARE) :]] = "validation"
    texts = rows["text"][:]
    x = {encoder: text_features(encoder, texts, arguments.cache, arguments.assets) for encoder in arguments.encoders}
    return Spaces.of_splits(name, x, np.array(rows["label"][:]), splits_N)


load_debian = partial(load, "debian")
load_glosses = partial(load, "glosses")
