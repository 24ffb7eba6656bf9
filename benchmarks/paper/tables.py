"""Figures with their spread, and cells of tables made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def rows_of(results: Mapping[str, Any], **where: Any) -> list[dict[str, Any]]:
    """The rows of results in which these fields are so."""
    return [row for row in results["rows"] if all(row.get(name) == value for name, value in where.items())]


def names_of(results: Mapping[str, Any], field: str) -> list[Any]:
    """What stands in a field of the rows, each once and in their order."""
    return list(dict.fromkeys(row[field] for row in results["rows"]))


def span(values: Iterable[float], digits: int = 1) -> str:
    """From the least to the most."""
    values = list(values)
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
