"""Patches of images as words of texts: what a cell of an EfficientNet-Lite's feature map shows, read across encoders.

A picture is a mosaic of 4 x 4 images of CIFAR-10. Its feature map has 8 x 8 cells, and each lies on one image, whose
class is the cell's label. Anchors are cells of training mosaics.
Shapes: P patches of all mosaics, D absolute size (1280).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.assets.efficientnet_lite import load_efficientnet_lite
from benchmarks.assets.features import kept
from benchmarks.assets.images import load_images
from benchmarks.assets.packages import SITE, make_importable
from benchmarks.tokens.measure import SPACES, Absolute, Relative, Table, procrustes
from hf_relreps.samples import batches, digest_of_samples


VERSIONS = (0, 1, 2)  # the decoder of each reads the next one, that of the last reads the first
TRAINED_ON = 6000  # patches, drawn for each seed
SIZES = (300, 1500)
MOSAICS = {"train": 250, "test": 60}
GRID, TILE, CELL = 4, 64, 32  # images on a side of a mosaic; pixels of an image and of a cell of the feature map


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy by encoder of the decoder and way, one for each seed."""
    if arguments.assets is not None:
        make_importable(arguments.assets / SITE)
    labels, said = {}, {}
    for part, count in MOSAICS.items():
        images, labels[part] = mosaics(arguments, part, count)
        for version in VERSIONS:
            file = arguments.cache / f"patches-lite{version}-{digest_of_samples(images)[:16]}.safetensors"
            said[version, part] = kept(file, lambda version=version, images=images: patch_vectors(version, images))
    table = Table()
    for seed in range(arguments.seeds):
        for own in VERSIONS:
            other = (own + 1) % len(VERSIONS)
            _add(table, seed, own, labels, {part: (said[own, part], said[other, part]) for part in MOSAICS})
    return {"patches": table.plain()}


def mosaics(arguments: argparse.Namespace, part: str, count: int) -> tuple[list[Image.Image], Tensor]:
    """Pictures, and the class of each cell of their feature maps (P,), row by row."""
    rows = load_images("cifar10", part, arguments.data.parent, arguments.assets, rows=count * GRID**2)
    pictures, side = [], GRID * TILE
    for start in range(0, len(rows), GRID**2):
        picture = Image.new("RGB", (side, side))
        for i, image in enumerate(rows[start : start + GRID**2]["image"]):
            picture.paste(image.resize((TILE, TILE), Image.Resampling.BICUBIC), (i % GRID * TILE, i // GRID * TILE))
        pictures.append(picture)
    tiles_NGG = torch.tensor(rows["label"][:]).view(-1, GRID, GRID)
    cells = TILE // CELL
    return pictures, tiles_NGG.repeat_interleave(cells, 1).repeat_interleave(cells, 2).flatten()


@torch.inference_mode()
def patch_vectors(version: int, images: list[Image.Image]) -> Tensor:
    """Vectors (P, D) of the cells of all feature maps, row by row."""
    model, processor = load_efficientnet_lite(version, GRID * TILE)
    cells = (GRID * TILE // CELL) ** 2
    x_NCD = torch.empty(len(images), cells, model.config.hidden_dim)
    for rows, inputs in batches(images, processor, batch_size=16):
        x_NCD[rows] = model(**inputs).last_hidden_state.flatten(2).transpose(1, 2)
    return x_NCD.flatten(0, 1)


def _add(table: Table, seed: int, own: int, labels: dict[str, Tensor], said: dict[str, tuple[Tensor, Tensor]]) -> None:
    order_P = torch.as_tensor(np.random.default_rng(seed).permutation(len(labels["train"])))
    rows, (mine_PD, theirs_PD), (test_PD, read_PD) = order_P[:TRAINED_ON], said["train"], said["test"]
    labels_P = labels["train"][rows]

    def add(row: str, said_P: Tensor) -> None:
        table.add(f"lite{own}, {row}", {"accuracy": float((said_P == labels["test"]).float().mean())})

    absolute = Absolute.fit(mine_PD[rows], labels_P, "patches")
    add("own, absolute", absolute.say(test_PD))
    add("absolute, swapped", absolute.say(read_PD))
    for k in SIZES:
        # The last patches, which no decoder is fitted on.
        mine_AD, theirs_AD = mine_PD[order_P[-k:]], theirs_PD[order_P[-k:]]
        add(f"Procrustes, {k}", absolute.say(procrustes(read_PD, theirs_AD, mine_AD)))
        for name in ("default", "paper's cosine"):
            decoder = Relative.fit(mine_PD[rows], labels_P, "patches", mine_AD, SPACES[name])
            if name == "default":
                add(f"own, relative, {k}", decoder.say(test_PD, mine_AD))
            add(f"stitched, {name}, {k}", decoder.say(read_PD, theirs_AD))
