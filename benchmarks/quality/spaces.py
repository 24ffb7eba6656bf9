"""`Spaces`: what several encoders say about the same samples, computed once and kept in a folder.

Shapes: N samples, D absolute size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_relreps.evaluation import stitching_matrix


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


def trained(
    file: Path, make: Callable[[], dict[str, Any]], samples: Callable[[str], Sequence[Any]], held_out: Any, **how: Any
) -> dict[str, Tensor]:
    """Absolute embeddings (N, D) by models that are trained end to end, kept in a file.

    Args:
        file: Where they are kept; beside it, as JSON, how the models stitch to one another as they were trained.
        make: Trains them.
        samples: Name of a model -> what it encodes.
        held_out: What they are stitched on.
        **how: More for `stitching_matrix`.
    """
    if not file.is_file():
        models = make()
        matrix = stitching_matrix(models, models, held_out, metric="f1", progress=False, **how)
        x = {name: model.encoder.encode(samples(name)).contiguous() for name, model in models.items()}
        file.with_suffix(".json").write_text(json.dumps(matrix.summary), "utf-8")
        save_file(x, file)
    return load_file(file)
