"""Features of images by EfficientNet-Lite 0, 1 and 2: three architectures with ImageNet weights, each 1280 wide.

Shapes: N samples, D absolute size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.assets.efficientnet_lite import load_efficientnet_lite
from benchmarks.assets.features import kept
from benchmarks.assets.packages import SITE, make_importable, unpacked
from hf_relreps.demos.images import FASHION_MNIST_FOLDER, load_cifar10, load_fashion_mnist
from hf_relreps.pooling import spatial_mean
from hf_relreps.samples import batches, digest_of_samples


if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_SIZE = 64  # side of what the encoders read: a multiple of 32; small, for speed

ROWS = {"train": 1200, "test": 500}  # that frozen encoders read
DATA_SETS = ("fashion_mnist", "cifar10")


def load_images(name: str, split: str, data: Path | None, assets: Path | None, rows: int | None = None) -> Dataset:
    """A split of a dataset, `image` and `label`, or a random choice of its rows, always the same.

    Args:
        name: "fashion_mnist" or "cifar10".
        split: "train" or "test".
        data: Folder that holds `cifar10.parquet`.
        assets: Folder of assets; Debian's Fashion-MNIST is looked for in the system first.
        rows: How many rows; all if left out.

    Raises:
        ValueError: If there is no such dataset.
    """
    if name not in DATA_SETS:
        raise ValueError(f"Found dataset {name!r}, expected one of {', '.join(DATA_SETS)}.")
    if name == "cifar10":
        dataset = load_cifar10(split, None if data is None else data / "cifar10.parquet")
    else:
        dataset = load_fashion_mnist(split, _fashion_mnist_folder(assets))
    return dataset if rows is None else dataset.shuffle(seed=0).select(range(rows))


def _fashion_mnist_folder(assets: Path | None) -> Path:
    if FASHION_MNIST_FOLDER.is_dir():
        return FASHION_MNIST_FOLDER
    package = "dataset-fashion-mnist"
    return unpacked(package, f"apt-get install {package}", assets) / FASHION_MNIST_FOLDER.relative_to("/")


def lite_features(
    version: int, images: Sequence[Any], cache: Path, assets: Path | None = None, image_size: int = IMAGE_SIZE
) -> Tensor:
    """Features (N, 1280) of images, float32, from `cache` where the same encoder has read the same images before.

    Args:
        version: 0, 1 or 2.
        images: N images of Pillow.
        cache: Folder of kept features.
        assets: Folder of assets, if their `site` is not on `sys.path`.
        image_size: Side that images are resized to.
    """
    if assets is not None:
        make_importable(assets / SITE)
    file = cache / f"lite{version}-{image_size}-{digest_of_samples(images)[:16]}.safetensors"
    return kept(file, lambda: _encode(version, images, image_size))


@torch.inference_mode()
def _encode(version: int, images: Sequence[Any], image_size: int) -> Tensor:
    model, processor = load_efficientnet_lite(version, image_size)
    x_ND = torch.empty(len(images), model.config.hidden_dim)
    for rows, inputs in batches(images, processor, batch_size=32):
        x_ND[rows] = spatial_mean(model(**inputs).last_hidden_state, None)
    return x_ND
