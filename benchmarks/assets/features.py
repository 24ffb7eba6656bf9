"""What an encoder makes of a dataset, kept in a file: benchmarks read it many times, the encoder once.

Shapes: N samples, D absolute size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def kept(file: Path, encode: Callable[[], Tensor]) -> Tensor:
    """The features (N, D) in `file`, which `encode` makes and this function writes where there is none yet."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        save_file({"x_ND": encode().float().contiguous()}, unfinished)
        unfinished.replace(file)
    return load_file(file)["x_ND"]
