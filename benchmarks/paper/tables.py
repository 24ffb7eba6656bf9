"""Figures with their spread, and cells of tables made of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def spread(values: Iterable[float]) -> dict[str, float | int]:
    """Mean and standard deviation (of the sample; 0 of one value), and of how many values."""
    values = [float(value) for value in values]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "n": len(values)}


def cell(figure: dict[str, Any] | float | None, digits: int = 3, scale: float = 1) -> str:
    """``mean ± std`` of what `spread` gave, or a plain number; a dash for nothing."""
    if figure is None:
        return "-"
    if not isinstance(figure, dict):
        return f"{scale * figure:.{digits}f}"
    text = f"{scale * figure['mean']:.{digits}f}"
    return text if figure["n"] < 2 else f"{text} ± {scale * figure['std']:.{digits}f}"
