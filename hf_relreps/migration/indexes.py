"""Indexes that lie in files: a sample of their vectors and texts, from `.npy`, parquet or LanceDB. Nothing is written.

Shapes: M rows that were drawn, D width of the old model, E width of the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_relreps.errors import ConfigurationError, EmbeddingError, MissingExtraError, SampleError
from hf_relreps.migration.fitting import MOST_STORED, WANTED_PAIRS, Migration, fit
from hf_relreps.migration.texts import TextMigration, migrate


if TYPE_CHECKING:
    from pyarrow import Table

LANCE = ".lance"
TABLES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}


class Rows(NamedTuple):
    """Rows of an index, drawn at random.

    Args:
        vectors: By the old model (M, D).
        texts: Of the same documents, if there are any.
        new_vectors: By the new model (M, E), if there are any.
        numbers: Of the rows in the index (M,).
    """

    vectors: np.ndarray
    texts: list[str] | None
    new_vectors: np.ndarray | None
    numbers: np.ndarray


def migrate_index(
    index: str | Path,
    new: Any = None,
    *,
    new_vectors: str | Path | None = None,
    texts: str | Path | None = None,
    vector_column: str = "vector",
    text_column: str = "text",
    table: str | None = None,
    pairs: int = WANTED_PAIRS,
    seed: int = 0,
    **how: Any,
) -> Migration | TextMigration:
    r"""`migrate` for an index in files, of which only a sample is read; `fit` where the new vectors are there too.

    The ids of the documents are the numbers of their rows.

    Args:
        index: A `.npy` file of vectors, a parquet file or a folder of them, a table or a folder of LanceDB.
        new: The new model, as for `migrate`.
        new_vectors: Instead of a model: a `.npy` file with its vectors of the same rows, or the column that holds
            them; rows without one are passed over.
        texts: For `.npy`: a file with a text for each row: a `.txt` with a line for each, or a table.
        vector_column: In a table.
        text_column: In a table.
        table: In a folder of LanceDB; may be left out if there is only one.
        pairs: Documents that are encoded, or that are drawn from those which have both vectors.
        seed: Of the draws.
        **how: As for `migrate`; without a new model those of `fit`.

    Raises:
        ConfigurationError: If the index is in no known form, or neither or both of the new model and its vectors are
            given.
        EmbeddingError: If there is no such column of vectors, or vectors do not belong together.
        SampleError: If there are no texts.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from hf_relreps.migration.indexes import migrate_index
        >>> np.save("index.npy", old_index)
        >>> Path("texts.txt").write_text("\n".join(texts), "utf-8") > 0
        True
        >>> migrate_index("index.npy", new_model, texts="texts.txt", pairs=150).migration.facts.pairs
        150

        ```
    """
    if (new is None) == (new_vectors is None):
        raise ConfigurationError(
            "Give either the new model, to encode a sample of the texts, or new_vectors that it made before."
        )
    place, new_place = Path(index), None if new_vectors is None else str(new_vectors)
    draw = _Draw(MOST_STORED + pairs, seed)
    if place.suffix == ".npy":
        rows = _of_arrays(place, texts, text_column, new_place, draw)
    else:
        rows = _of_table(place, table, vector_column, None if new is None else text_column, new_place, draw)
    if new is not None:
        if rows.texts is None:
            raise SampleError(f"{place} holds vectors only. Give texts, a file with the text of each row.")
        return migrate(rows.vectors, rows.texts, new, ids=rows.numbers.tolist(), pairs=pairs, seed=seed, **how)
    assert rows.new_vectors is not None
    whole = np.isfinite(rows.new_vectors).all(1)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(whole))[:pairs]
    return fit(rows.vectors[order], rows.new_vectors[order], stored=rows.vectors, seed=seed, **how)


class _Draw(NamedTuple):
    at_most: int
    seed: int

    def of(self, total: int) -> np.ndarray:
        """Row numbers, rising."""
        chosen = np.random.default_rng(self.seed).choice(total, min(total, self.at_most), replace=False)
        return np.sort(chosen)


def _of_arrays(place: Path, texts: str | Path | None, column: str, new: str | None, draw: _Draw) -> Rows:
    vectors = _array(place)
    rows = draw.of(len(vectors))
    new_vectors = None if new is None else _array(Path(new))
    told = None if texts is None else _texts(Path(texts), column)
    for name, other in ((str(new), new_vectors), (str(texts), told)):
        if other is not None and len(other) != len(vectors):
            raise EmbeddingError(
                f"{place} has {len(vectors)} rows, {name} has {len(other)}. Row i of both must be of one document."
            )
    return Rows(
        vectors[rows].astype(np.float32),
        None if told is None else [told[row] for row in rows],
        None if new_vectors is None else new_vectors[rows].astype(np.float32),
        rows,
    )


def _array(file: Path) -> np.ndarray:
    """An array that stays on the disk; pickles are not opened."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise EmbeddingError(f"{file} is no .npy file of numbers: {error}.") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise EmbeddingError(f"{file} holds {array.dtype} of shape {array.shape}, expected floats (documents, width).")
    return array


def _texts(file: Path, column: str) -> list[str]:
    if file.suffix == ".txt":
        return file.read_text("utf-8").removesuffix("\n").split("\n")
    source = _files(file)
    _refuse_unknown(file, source.schema.names, column, "texts")
    return source.to_table([column])[column].to_pylist()


def _of_table(
    place: Path, table: str | None, vector_column: str, text_column: str | None, new_column: str | None, draw: _Draw
) -> Rows:
    source: Any = _lance(place, table) if _is_lance(place) else _files(place)
    columns = [one for one in (vector_column, text_column, new_column) if one is not None]
    for column in columns:
        _refuse_unknown(place, source.schema.names, column, "texts" if column == text_column else "vectors")
    rows = draw.of(source.count_rows())
    if _is_lance(place):
        found = source.take_offsets(rows.tolist()).select(columns).to_arrow()
    else:
        found = source.take(rows, columns=columns)
    has_vector = found[vector_column].is_valid()
    found = found.filter(has_vector)
    return Rows(
        _vectors(found, vector_column, place),
        None if text_column is None else found[text_column].to_pylist(),
        None if new_column is None else _vectors(found, new_column, place),
        rows[has_vector.to_numpy()],
    )


def _is_lance(place: Path) -> bool:
    return place.suffix == LANCE or (place.is_dir() and any(place.glob(f"*{LANCE}")))


def _lance(place: Path, table: str | None) -> Any:
    """A table of LanceDB."""
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError(f"{place} is a folder of LanceDB. To read it: pip install lancedb.") from error
    folder, names = place, sorted(one.stem for one in place.glob(f"*{LANCE}"))
    if place.suffix == LANCE:
        folder, names = place.parent, [place.stem]
        if not place.is_dir():
            raise FileNotFoundError(f"{place} does not exist. Give the folder of a table of LanceDB.")
    if table is None and len(names) > 1:
        raise ConfigurationError(f"{place} has the tables {', '.join(names)}. Say which one: table.")
    name = table or names[0]
    if name not in names:
        raise ConfigurationError(f"{place} has no table {name!r}, only {', '.join(names)}.")
    return lancedb.connect(folder).open_table(name)


def _files(place: Path) -> Any:
    """A table in a file, or parquet files in a folder."""
    import pyarrow as pa
    import pyarrow.dataset

    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist. Give a .npy or parquet file, or a folder of LanceDB.")
    if place.is_dir():
        files = sorted(str(file) for file in place.rglob("*.parquet"))
        kind = "parquet" if files else None
    else:
        files, kind = [str(place)], TABLES.get(place.suffix)
    if kind is None:
        raise ConfigurationError(
            f"{place} is in no known form. Give a .npy file, {', '.join(TABLES)}, a folder of parquet files, or one "
            "of LanceDB."
        )
    try:
        return pyarrow.dataset.dataset(files, format=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ConfigurationError(f"{place} cannot be read as {kind}: {error}.") from error


def _refuse_unknown(place: Path, names: Sequence[str], column: str, what: str) -> None:
    if column not in names:
        raise (SampleError if what == "texts" else EmbeddingError)(
            f"{place} has no column {column!r} of {what}, only {', '.join(names)}. Name the one that holds them."
        )


def _vectors(table: Table, column: str, place: Path) -> np.ndarray:
    """A column of lists as an array; a row without one is not a number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = table[column].combine_chunks()
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type) or _is_fixed(lists.type)):
        raise EmbeddingError(f"Column {column!r} of {place} holds {lists.type}, expected lists of numbers.")
    whole = lists.is_valid().to_numpy(zero_copy_only=False)
    widths = pc.unique(pc.list_value_length(lists.drop_null())).to_pylist()
    if len(widths) != 1:
        raise EmbeddingError(
            f"Column {column!r} of {place} holds vectors of the widths {sorted(widths)}, expected one."
        )
    vectors = np.full((len(lists), widths[0]), np.nan, dtype=np.float32)
    numbers = pc.cast(lists.drop_null().flatten(), pa.float32(), safe=False)
    vectors[whole] = numbers.to_numpy(zero_copy_only=False).reshape(-1, widths[0])
    return vectors


def _is_fixed(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_fixed_size_list(kind)
