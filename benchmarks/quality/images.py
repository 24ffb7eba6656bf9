"""Fashion-MNIST through EfficientNet-Lite 0, 1 and 2: three architectures, trained separately, equally wide."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import torch

from benchmarks.assets.images import lite_features, load_images
from benchmarks.quality.spaces import Spaces


NAME = "fashion_mnist"
ROWS = {"train": 2000, "test": 800}
VAL_ROWS = 400  # of the training images


def load(arguments: Namespace) -> Spaces:
    """All three encoders, frozen."""
    parts = [load_images(NAME, split, arguments.data, arguments.assets, ROWS[split]) for split in ("train", "test")]
    x = {
        f"lite{version}": torch.cat(
            [lite_features(version, part["image"][:], arguments.cache, arguments.assets) for part in parts]
        )
        for version in (0, 1, 2)
    }
    counts = (ROWS["train"] - VAL_ROWS, VAL_ROWS, ROWS["test"])
    splits_N = np.repeat(["train", "validation", "test"], counts)
    return Spaces.of_splits("images", x, np.concatenate([part["label"][:] for part in parts]), splits_N)
