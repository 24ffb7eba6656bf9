"""What the modalities share: one row of figures for each setting, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.reporting import show_table


if TYPE_CHECKING:
    from hf_relreps.evaluation import StitchingMatrix


@dataclass(frozen=True)
class Row:
    """The figures of one setting: a relative result means nothing without the absolute control and chance."""

    name: str
    own: float
    stitched: float
    worst: float
    absolute_own: float | None
    absolute_stitched: float | None
    chance: float

    @classmethod
    def of(cls, name: str, matrix: StitchingMatrix) -> Row:
        """Those of a stitching matrix."""
        return cls(name, **{key: figure for key, figure in matrix.summary.items() if key != "ratio"})

    @classmethod
    def by_architecture(cls, name: str, matrix: StitchingMatrix) -> list[Row]:
        """Stitched within architectures, where only the seeds differ, and across them; encoders end in -number."""
        kinds = np.array([encoder.rpartition("-")[0] for encoder in matrix.encoders])
        same = kinds[:, None] == kinds[None, :]
        whole = cls.of(name, matrix)
        rows = []
        for what, pairs in (("seeds", same & ~matrix.is_own), ("architectures", ~same)):
            if pairs.any():
                scores, absolute = matrix.scores[pairs], matrix.absolute
                stitched = {"stitched": float(scores.mean()), "worst": float(scores.min())}
                if absolute is not None:
                    stitched["absolute_stitched"] = float(np.nanmean(absolute[pairs]))
                rows.append(dataclasses.replace(whole, name=f"{name}, {what}", **stitched))
        return rows

    @property
    def ratio(self) -> float:
        """Stitched in shares of own; of errors, how many times own."""
        return self.stitched / self.own


def show(title: str, rows: Sequence[Row], digits: int = 3) -> None:
    """Print rows as a table."""
    heads = ("own", "stitched", "worst", "stitched / own", "absolute own", "absolute stitched", "chance")
    lines = []
    for row in rows:
        name, own, stitched, worst, *controls = dataclasses.astuple(row)
        lines.append((name, own, stitched, worst, f"{row.ratio:.2f}", *controls))
    show_table(title, heads, lines, digits)


def record(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain Python, for JSON."""
    return [dataclasses.asdict(row) | {"ratio": row.ratio} for row in rows]
