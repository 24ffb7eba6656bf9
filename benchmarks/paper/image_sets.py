"""The image datasets of the paper's tables, from --data and --assets, from the Hub, or scikit-learn's digits."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.modalities import image_data
from benchmarks.paper.options import Options
from hf_relreps.demos.images import FASHION_MNIST_FOLDER


if TYPE_CHECKING:
    from datasets import Dataset

FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"  # of Debian
DIGITS = "digits"
SIZES = image_data.SIZES | {DIGITS: 8}
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", DIGITS: "Digits"}


def names(options: Options) -> tuple[str, ...]:
    """Which there are: the paper's, or one that needs no file where a quick run is given none."""
    if not options.quick:
        return ("mnist", "fashion_mnist", "cifar10")
    return (DIGITS,) if options.assets is None else ("mnist",)


def load(name: str, split: str, rows: int | None, options: Options) -> Dataset:
    """A split, or a random choice of its rows, always the same; columns `image` and `label`."""
    if name == DIGITS:
        return _digits(split).select(range(min(rows or 1500, 1500 if split == "train" else 297)))
    return image_data.load(name, split, rows, _where(options))


def _where(options: Options) -> Namespace:
    """As `benchmarks.modalities` is told it."""
    folder = FASHION_MNIST_FOLDER
    if options.assets is not None:
        folder = options.assets / "debs" / FASHION_MNIST_PACKAGE / folder.relative_to("/")
    file = None if options.data is None else options.data / "cifar10.parquet"
    return Namespace(cifar10=file, mnist=None, fashion_mnist=folder, hub=options.assets is None)


def _digits(split: str) -> Dataset:
    """1,797 real digits of 8 x 8 pixels, shuffled: 1,500 to learn from, 297 held out."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    rows = order[:1500] if split == "train" else order[1500:]
    images = [Picture.fromarray((digits.images[row] / 16 * 255).astype(np.uint8)) for row in rows]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict({"image": images, "label": digits.target[rows]}, features=features)
