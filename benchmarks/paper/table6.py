"""Table 6: stitching across architectures, images.

Five encoders stay frozen: EfficientNet-Lite 0, 1 and 2 with their ImageNet weights (1280 wide, images of 64 pixels a
side), and a small convolutional network and a small vision transformer (64 wide) that are trained here on 8,000 other
images as ordinary classifiers, again and from their own seed for each seed of the table. Each encoder gets a decoder
(LayerNorm and two layers, all seeds distinct), trained on 1,200 images. 300 of these, equally many of each class, are
the anchors. Each decoder reads every encoder: 20 stitched pairs. Score: weighted F1 on 500 test images. Absolute
control: decoders of the same form on absolute embeddings, between encoders of equal width. "Labelled anchors only":
the same, trained on the labels of the anchors alone.

What differs from the paper: it has RexNet and three ViTs with ImageNet weights of timm, 768 anchors drawn uniformly,
CIFAR-100 (20 coarse classes) and ImageNet. Here the data are Fashion-MNIST and CIFAR-10 with fewer images. Two
encoders were trained on the dataset alone, so they differ from the others by more than their architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.assets.images import lite_features
from benchmarks.modalities.image_data import Pixels, pixels_of
from benchmarks.modalities.images import ARCHITECTURES, HOW, POOLINGS
from benchmarks.paper import image_sets
from benchmarks.paper.frozen import (
    ABSOLUTE,
    ANCHORS,
    PROJECTIONS,
    Task,
    compared,
    own_and_stitched,
    percent,
    row_of,
    share,
    stitched_in_short,
)
from benchmarks.paper.options import Options
from benchmarks.paper.tables import names_of
from benchmarks.reporting import markdown
from benchmarks.training import train
from hf_relreps.encoders.images import image_processor
from hf_relreps.pooling import pool


if TYPE_CHECKING:
    from datasets import Dataset

SEEDS = 3
NAMES = ("fashion_mnist", "cifar10")
TITLES = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "mnist": "MNIST", "digits": "digits"}
LITES = (0, 1, 2)
OWN = {"cnn": "CNN", "vit": "ViT"}
SCRATCH_ROWS, TRAIN_ROWS, TEST_ROWS = 8_000, 1_200, 500
EPOCHS = {"fashion_mnist": 2, "cifar10": 4}
# Weighted F1 in per cent, encoder (row) with decoder (column), CIFAR-100 with 20 coarse classes.
PAPER_NAMES = ("RexNet", "ViT-base", "ViT-ResNet", "ViT-small")
PAPER: dict[str, tuple[tuple[float | None, ...], ...]] = {
    "absolute": (
        (82.06, None, None, None),
        (None, 93.15, 4.69, None),
        (None, 6.21, 91.41, None),
        (None, None, None, 90.07),
    ),
    "relative": (
        (80.22, 76.81, 79.79, 75.35),
        (54.98, 91.94, 84.46, 81.23),
        (53.33, 81.42, 90.77, 78.35),
        (59.82, 84.29, 84.66, 88.85),
    ),
}


class Classifier(nn.Module):
    """An ordinary classifier: pooling, one layer."""

    def __init__(self, architecture: str, image_size: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.pooling = ARCHITECTURES[architecture](image_size), POOLINGS[architecture]
        self.output = nn.LazyLinear(classes)
        self(torch.zeros(2, 3, image_size, image_size))  # so that the layer knows its width

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Absolute embeddings (B, D)."""
        return pool(self.encoder(pixel_values), None, self.pooling)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Loss and logits (B, C)."""
        logits_BC = self.output(self.embed(pixel_values))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits_BC, labels)}
        return loss | {"logits": logits_BC}


def run(options: Options) -> dict[str, Any]:
    """Every dataset; quick: little of one, with the two encoders that need no weights, and Lite 0 where it is."""
    rows = [row for name in names(options) for row in measured(name, options)]
    return {"anchors": ANCHORS, "metric": "weighted F1", "encoders": list(rows[0]["encoders"]), "rows": rows}


def names(options: Options) -> tuple[str, ...]:
    """Of the datasets."""
    return image_sets.names(options)[:1] if options.quick else NAMES


def measured(name: str, options: Options) -> list[dict[str, Any]]:
    """Rows of one dataset."""
    scratch, rows, test = parts(name, options)
    labels, test_labels = np.array(rows["label"][:]), np.array(test["label"][:])
    lites = LITES if not options.quick else (0,) if options.assets else ()
    features = {
        f"Lite{version}": [
            lite_features(version, part["image"][:], options.cache, options.assets) for part in (rows, test)
        ]
        for version in lites
    }
    encoders = [*features, *OWN.values()]
    task = Task(test_labels, rows.features["label"].num_classes, 20)
    pixels = [pixels_of(part, image_processor(image_sets.SIZES[name])) for part in (rows, test)]
    scratch_pixels = pixels_of(scratch, image_processor(image_sets.SIZES[name]))
    samples = Pixels(scratch_pixels, torch.as_tensor(scratch["label"][:]))

    def features_of(seed: int) -> dict[str, list[Tensor]]:
        return features | own_features(samples, task.classes, EPOCHS.get(name, 6), pixels, seed)

    return compared(task, labels, features_of, options.seeds, task=name, encoders=encoders)


def parts(name: str, options: Options) -> tuple[Dataset, Dataset, Dataset]:
    """What the two small encoders are trained on, what decoders are trained on, what is tested."""
    scratch, train_rows, test_rows = (800, 500, 250) if options.quick else (SCRATCH_ROWS, TRAIN_ROWS, TEST_ROWS)
    rows = image_sets.load(name, "train", train_rows + scratch, options)
    test = image_sets.load(name, "test", test_rows, options)
    return rows.select(range(train_rows, len(rows))), rows.select(range(train_rows)), test


def own_features(
    samples: Pixels, classes: int, epochs: int, pixels: list[Tensor], seed: int
) -> dict[str, list[Tensor]]:
    """Features of a convolutional net and a transformer that are trained first."""
    found = {}
    for i, architecture in enumerate(OWN):
        own_seed = 100 * seed + 10 + i
        set_seed(own_seed)
        classifier = Classifier(architecture, pixels[0].shape[-1], classes)
        model = train(classifier, samples, own_seed, **HOW, num_train_epochs=epochs)
        with torch.inference_mode():
            parts = [[model.embed(x_BCHW) for x_BCHW in part.split(250)] for part in pixels]
            found[OWN[architecture]] = [torch.cat(part).clone() for part in parts]
    return found


def render(results: dict[str, Any]) -> str:
    """Own and stitched of each dataset, every pair, and the paper's pairs."""
    tasks, found = names_of(results, "task"), [own_and_stitched(results, TITLES)]
    for task in tasks:
        found.append(
            f"Every pair of {TITLES[task]}, encoder by decoder; absolute, cosine, default:\n\n" + _pairs(results, task)
        )
    found.append("The paper's pairs, absolute and relative (CIFAR-100, 20 classes):\n\n" + _paper_pairs())
    return "\n\n".join([*found, _remark(results, tasks)])


def _pairs(results: dict[str, Any], task: str) -> str:
    """Three figures in each cell."""
    rows = [row_of(results, task, kind) for kind in (ABSOLUTE, *PROJECTIONS)]
    names = rows[0]["encoders"]
    lines = [
        (f"**{name}**", *(" / ".join(percent(row["pairs"][i][j]) for row in rows) for j in range(len(names))))
        for i, name in enumerate(names)
    ]
    return markdown(("encoder \\ decoder", *names), lines)


def _paper_pairs() -> str:
    lines = []
    for i, name in enumerate(PAPER_NAMES):
        cells = zip(PAPER["absolute"][i], PAPER["relative"][i], strict=True)
        lines.append((f"**{name}**", *(f"{'-' if a is None else f'{a:.2f}'} / {r:.2f}" for a, r in cells)))
    return markdown(("encoder \\ decoder", *PAPER_NAMES), lines)


def paper_means() -> tuple[float, float]:
    """The paper's mean of own pairs and of stitched ones, relative, in per cent."""
    scores = np.array(PAPER["relative"], dtype=float)
    own = np.eye(len(scores), dtype=bool)
    return float(scores[own].mean()), float(scores[~own].mean())


def _remark(results: dict[str, Any], tasks: list[str]) -> str:
    own, stitched = paper_means()
    lines = [f"Over all pairs, the paper's stitched F1 is {100 * stitched / own:.0f} % of own."]
    for task in tasks:
        shares = [f"{100 * share(row_of(results, task, kind)):.0f} %" for kind in PROJECTIONS]
        lines.append(f"Here, on {TITLES[task]}, it is {shares[0]} with cosines and {shares[1]} with the default.")
    return " ".join(lines)


def headline(results: dict[str, Any]) -> tuple[str, str, str]:
    """Means over pairs of the last dataset, which is nearest to the paper's."""
    task = results["rows"][-1]["task"]
    paper = f"CIFAR-100, stitched: absolute 5.45, relative {paper_means()[1]:.1f}"
    return paper, *stitched_in_short(results, task, TITLES[task])
