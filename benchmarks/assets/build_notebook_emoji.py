"""Makes `notebooks/data/emoji.parquet`, the pictures and texts of notebook 10.

    python -m benchmarks.assets.build_notebook_emoji --assets assets

`benchmarks/assets/__init__.py` says how to get the two packages.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value
from PIL.Image import Resampling

from benchmarks.assets.emoji import load_emoji_pictures


OUTPUT = Path(__file__).parents[2] / "notebooks" / "data" / "emoji.parquet"
SIDE, COLOURS = 32, 32


def png(picture: Any) -> bytes:
    """The picture in a few hundred bytes: smaller, and with a palette."""
    file = io.BytesIO()
    small = picture.resize((SIDE, SIDE), Resampling.LANCZOS)
    small.quantize(COLOURS, dither=0).save(file, "PNG", optimize=True)
    return file.getvalue()


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser("benchmarks.assets.build_notebook_emoji", description=__doc__)
    parser.add_argument("--assets", type=Path, help="folder of packages")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    rows = load_emoji_pictures(arguments.assets)
    columns = {
        "id": rows["id"][:],
        "image": [{"bytes": png(row["image"]), "path": None} for row in rows],
        "text": rows["en"][:],
        "label": rows["label"][:],
    }
    kinds = {"id": Value("string"), "image": Image(), "text": Value("string"), "label": rows.features["label"]}
    Dataset.from_dict(columns, features=Features(kinds)).to_parquet(arguments.output)


if __name__ == "__main__":
    main()
