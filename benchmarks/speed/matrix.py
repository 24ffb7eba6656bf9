"""4 `stitching_matrix` of ten encoders and ten decoders beside ten passes of the encoders over the data."""

from __future__ import annotations

from typing import Any

from benchmarks.speed import subjects
from benchmarks.speed.timing import paired, row
from hf_relreps import stitching_matrix


def run(quick: bool = False) -> dict[str, Any]:
    """A whole matrix over ten passes."""
    n, count = (64, 3) if quick else (256, 10)
    sizes = {"num_hidden_layers": 3}
    models = {f"m{i}": subjects.relative(subjects.absolute(i, **sizes), 300, 64) for i in range(count)}
    words, labels = subjects.texts()
    data = {"en": words[:n], "label": labels[:n]}

    def passes() -> None:
        for model in models.values():
            model.encoder.encode(data["en"])

    figure = paired(lambda: stitching_matrix(models, models, data, progress=False), passes, 1 if quick else 4)
    what = f"{count} x {count}, {n} texts, encoders of 3 layers of 384, 300 anchors"
    return {"rows": [row(what, figure, "at most 1.2")]}
