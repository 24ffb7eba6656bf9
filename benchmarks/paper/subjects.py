"""Sets of frozen encoders that were fitted apart and read the same samples: what the ablations measure on.

Shapes: N train samples, M test samples, A anchors, D absolute size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.assets.images import lite_features
from benchmarks.assets.texts import load_emoji, load_udhr
from benchmarks.paper import image_sets
from benchmarks.paper.frozen import Space, Task
from benchmarks.paper.options import Options
from hf_relreps.demos.debian import LANGUAGES, load_debian_descriptions


IMAGE_ROWS = {"train": 2000, "test": 800}
TEXT_ROWS = {"train": 2000, "test": 1256}
WIDTH = 256  # of the encoders of texts
EPOCHS = 10


@dataclass(frozen=True)
class Subject:
    """What each encoder makes of the samples, in the same order for all.

    Args:
        name: Of the data.
        train_ND: Encoder -> train samples, which are the candidates for anchors as well.
        test_MD: Encoder -> test samples.
        train_labels_N: Classes of the first.
        test_labels_M: Classes of the others.
        foreign_AD: Name of another domain -> encoder -> samples of it.
    """

    name: str
    train_ND: Mapping[str, Tensor]
    test_MD: Mapping[str, Tensor]
    train_labels_N: np.ndarray
    test_labels_M: np.ndarray
    foreign_AD: Mapping[str, Mapping[str, Tensor]]

    @property
    def task(self) -> Task:
        """What the decoders are to tell."""
        return Task(self.test_labels_M, int(self.train_labels_N.max()) + 1, EPOCHS)

    def spaces(self, anchors: np.ndarray | str) -> dict[str, Space]:
        """With some of the train samples as anchors, or with those of another domain."""
        labels_N = torch.as_tensor(self.train_labels_N)
        return {
            name: Space(
                x_ND,
                self.foreign_AD[anchors][name] if isinstance(anchors, str) else x_ND[anchors],
                self.test_MD[name],
                labels_N,
            )
            for name, x_ND in self.train_ND.items()
        }


def subjects(options: Options) -> Iterable[Subject]:
    """Texts by encoders of four languages; images by three architectures where their weights are at hand."""
    yield texts(options)
    if options.assets is not None and not options.quick:
        yield images("fashion_mnist", "cifar10", options)


def images(name: str, other: str, options: Options) -> Subject:
    """A dataset of images as EfficientNet-Lite 0, 1 and 2 see it, and anchors of another."""
    splits = {split: image_sets.load(name, split, rows, options) for split, rows in IMAGE_ROWS.items()}
    foreign = image_sets.load(other, "train", IMAGE_ROWS["train"], options)["image"][:]

    def read(samples: Sequence[object]) -> dict[str, Tensor]:
        return {f"Lite{i}": lite_features(i, samples, options.cache, options.assets) for i in range(3)}

    train, test = splits["train"], splits["test"]
    return Subject(
        f"{image_sets.TITLES[name]}, EfficientNet-Lite0, 1 and 2",
        read(train["image"][:]),
        read(test["image"][:]),
        np.array(train["label"][:]),
        np.array(test["label"][:]),
        {f"{image_sets.TITLES[other]} images": {name: x_ND[:300] for name, x_ND in read(foreign).items()}},
    )


def texts(options: Options) -> Subject:
    """Debian's bundled descriptions as four encoders see them, one for each language, fitted on its texts alone."""
    splits = {split: load_debian_descriptions(split).shuffle(seed=0) for split in TEXT_ROWS}
    splits = {split: rows.select(range(min(TEXT_ROWS[split], len(rows)))) for split, rows in splits.items()}
    languages = LANGUAGES[:2] if options.quick else LANGUAGES
    foreign = {}
    if options.assets is not None:
        emoji = load_emoji(options.assets, languages).shuffle(seed=0).select(range(300))
        foreign = {"300 emoji": emoji, "50 paragraphs of human rights": load_udhr(options.assets, languages)}
    train_ND, test_MD, foreign_AD = {}, {}, {name: {} for name in foreign}
    for seed, language in enumerate(languages):
        encoder = TextEncoder(splits["train"][language][:], seed)
        train_ND[language], test_MD[language] = (encoder(splits[split][language][:]) for split in TEXT_ROWS)
        for name, rows in foreign.items():
            foreign_AD[name][language] = encoder(rows[language][:])
    labels = (np.array(rows["label"][:]) for rows in splits.values())
    return Subject(f"Debian, encoders of {', '.join(languages)}", train_ND, test_MD, *labels, foreign_AD)


class TextEncoder:
    """Latent semantic analysis: weighted words, factored by an SVD; knows the texts that it was fitted on."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline

        words = TfidfVectorizer(min_df=2, sublinear_tf=True)
        self.pipeline = make_pipeline(words, TruncatedSVD(WIDTH, random_state=seed)).fit(texts)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, D); of a text without any known word, one like all such."""
        x_ND = torch.as_tensor(self.pipeline.transform(texts), dtype=torch.float32)
        empty_N = ~x_ND.any(-1)
        x_ND[empty_N] = 1e-6
        return x_ND
