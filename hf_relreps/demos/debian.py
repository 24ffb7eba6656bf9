"""Debian package descriptions in four languages, bundled: one row = one package = one meaning.

Where they come from is told in `data/README.md`, also how the file is made anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset

DATA_FILE = Path(__file__).parent / "data" / "debian_descriptions.parquet"
LANGUAGES = ("en", "fr", "it", "da")
SECTIONS = ("admin", "doc", "fonts", "games", "graphics", "mail", "math", "net", "science", "sound", "web")
SPLITS = ("train", "validation", "test")


def load_debian_descriptions(split: str | None = None) -> Dataset:
    """Returns the bundled descriptions in memory, with the section as `label`; writes no cache.

    Columns: `package` (fits as an id), `section`, the languages `en`, `fr`, `it`, `da`, `split`, and `label`, a
    `ClassLabel` whose names are the sorted sections. All columns of a row mean the same.

    Args:
        split: "train", "validation" or "test"; None gives all rows.

    Raises:
        ValueError: The split is none of these.

    Example:
        ```python
        >>> from hf_relreps.demos.debian import load_debian_descriptions
        >>> test = load_debian_descriptions("test")
        >>> test.features["label"].names[:3]
        ['admin', 'doc', 'fonts']

        ```
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Dataset, DatasetInfo, Features, Value

    if split is not None and split not in SPLITS:
        raise ValueError(f"Found split {split!r}, expected one of {', '.join(SPLITS)}, or None for all rows.")
    table = pq.read_table(DATA_FILE, filters=None if split is None else [("split", "==", split)])
    labels = pa.array([SECTIONS.index(section) for section in table["section"].to_pylist()], pa.int64())
    texts = {name: Value("string") for name in table.column_names}
    features = Features(texts | {"label": ClassLabel(names=list(SECTIONS))})
    return Dataset(table.append_column("label", labels), info=DatasetInfo(features=features))
