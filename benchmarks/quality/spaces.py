"""`Spaces`: what several encoders say about the same samples, computed once and kept in a folder.

Shapes: N samples, D absolute size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Spaces:
    """Absolute embeddings of the same N samples by several encoders.

    Args:
        name: Of the setting.
        x: Encoder -> (N, D); the encoders were trained separately.
        labels_N: Class of each sample.
        train_N: Rows that decoders are trained on.
        val_N: Rows on which anything may be chosen.
        test_N: Rows on which nothing is chosen.
        free_N: Rows that anchors are drawn from: unlabelled as far as the anchors are concerned.
    """

    name: str
    x: Mapping[str, Tensor]
    labels_N: np.ndarray
    train_N: np.ndarray
    val_N: np.ndarray
    test_N: np.ndarray
    free_N: np.ndarray

    @classmethod
    def of_splits(cls, name: str, x: Mapping[str, Tensor], labels_N: np.ndarray, splits_N: np.ndarray) -> Spaces:
        """From the name of each row's split; anchors are drawn from the training rows."""
        rows = [np.flatnonzero(splits_N == split) for split in ("train", "validation", "test")]
        return cls(name, x, labels_N, *rows, free_N=rows[0])

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return int(self.labels_N.max()) + 1

    def some(self, per_split: int) -> Spaces:
        """The same with at most so many rows in each split."""
        parts = [rows_N[:per_split] for rows_N in (self.train_N, self.val_N, self.test_N, self.free_N)]
        return Spaces(self.name, self.x, self.labels_N, *parts)


def cached(path: Path | None, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, from a file if it has been made before."""
    if path is not None and path.is_file():
        return torch.from_numpy(np.load(path))
    x_ND = make().float()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, x_ND.numpy())
    return x_ND
