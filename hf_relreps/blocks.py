"""Data of any size in blocks of rows: datasets, streams, files and datasets on the Hub, each in one order only.

Data has parts that can be read on their own: the files of what is named, one for all other data. A part is cut into
shards of equal numbers of rows, and a shard into blocks, which are what memory holds.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hf_relreps.errors import ConfigurationError, SampleError
from hf_relreps.pairs import columns_in, samples_in
from hf_relreps.samples import check_samples, digest_of_samples, unformatted


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

ROWS_AT_ONCE = 1024  # read, encoded and written: memory does not grow with the data
FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}  # what datasets calls them
FIRST_ROWS = 32  # by which a stream is known again
ENDS = 1 << 16  # bytes at either end of a file, by which it is known again


@dataclass(frozen=True)
class Block:
    """Some rows of a shard.

    Args:
        part: Which part of the data.
        shard: Which shard of that part.
        first: Number of its first row in the part.
        samples: What the encoder reads, B of them.
        kept: The other columns that are asked for, (B, ...).
        ends_shard: Whether it is the last of its shard.
        ends_part: Whether it is the last of its part.
    """

    part: int
    shard: int
    first: int
    samples: list[Any]
    kept: pa.Table
    ends_shard: bool
    ends_part: bool


@dataclass(frozen=True)
class Rows:
    """A `datasets.Dataset` as one part, of which any shard is read without those before it.

    Args:
        data: The dataset.
        column: What the encoder reads; of pairs of texts the two columns.
        keep: Other columns.
        rows_per_shard: Rows of all shards but the last.
        identity: What the data is known by.
    """

    data: Any
    column: str | tuple[str, ...]
    keep: tuple[str, ...]
    rows_per_shard: int
    identity: dict[str, Any]

    @property
    def parts(self) -> int:
        """How many parts the data has."""
        return 1

    @property
    def features(self) -> Features | None:
        """Of the columns that are kept; ``None`` where a stream does not tell."""
        from datasets import Features

        known = self.data.features
        return None if known is None else Features({name: known[name] for name in self.keep})

    @property
    def num_rows(self) -> int | None:
        """How many rows there are; ``None`` for streams, which tell when they end."""
        return len(self.data)

    @property
    def num_shards(self) -> int | None:
        """How many shards there will be; ``None`` for streams."""
        return max(1, -(-len(self.data) // self.rows_per_shard))

    def blocks(self, part: int, wanted: Callable[[int], bool]) -> Iterator[Block]:
        """The blocks of the shards that are wanted, in order."""
        n, has_transform = len(self.data), self.data.format["type"] == "custom"
        read = self.data if has_transform else self.data.select_columns(list(columns_in(self.column)))
        kept = self.data.select_columns(list(self.keep)).with_format("arrow") if self.keep else None
        for shard in filter(wanted, range(self.num_shards or 0)):
            start, stop = shard * self.rows_per_shard, min(n, (shard + 1) * self.rows_per_shard)
            for first in range(start, max(stop, start + 1), ROWS_AT_ONCE):
                last = min(stop, first + ROWS_AT_ONCE)
                table = pa.table({}) if kept is None else kept[first:last]
                samples = samples_in(read[first:last], self.column)
                yield Block(part, shard, first, samples, table, ends_shard=last == stop, ends_part=last == n)


@dataclass(frozen=True)
class Stream(Rows):
    """A `datasets.IterableDataset`, read from its beginning; those of files have each file as a part.

    Args:
        of_files: Whether its files may be read one by one. Otherwise it is one part: the order of its rows, and which
            there are, may depend on all of them.
    """

    of_files: bool = False

    @property
    def parts(self) -> int:
        """How many parts the data has."""
        return self.data.num_shards if self.of_files else 1

    @property
    def num_rows(self) -> int | None:
        """Not known before its end."""
        return None

    @property
    def num_shards(self) -> int | None:
        """Not known before its end."""
        return None

    def blocks(self, part: int, wanted: Callable[[int], bool]) -> Iterator[Block]:
        """The blocks of the shards that are wanted, in order; the others are read and dropped."""
        first, n, is_wanted = 0, self.rows_per_shard, False
        for table, is_last in _with_last(self._tables(part)):
            cuts = [0, *range(n - first % n, len(table), n), len(table)]
            for start, stop in pairwise(cuts):
                shard, piece = first // n, table.slice(start, stop - start)
                ends_part = is_last and stop == len(table)
                ends_shard = ends_part or (first + len(piece)) % n == 0
                if first % n == 0:  # asked once: another run may write the same shard meanwhile
                    is_wanted = wanted(shard)
                if is_wanted:
                    samples, kept = self._samples(piece), piece.select(self.keep)
                    yield Block(part, shard, first, samples, kept, ends_shard, ends_part)
                first += len(piece)

    def _tables(self, part: int) -> Iterator[pa.Table]:
        stream = self.data.shard(self.parts, part) if self.parts > 1 else self.data
        found = False
        for table in stream.with_format("arrow").iter(ROWS_AT_ONCE):
            found = True
            yield table
        if not found:  # a part without rows is one empty shard
            known = self.data.features
            names = (*columns_in(self.column), *self.keep)
            yield (pa.table({n: [] for n in names}) if known is None else known.arrow_schema.empty_table())

    def _samples(self, table: pa.Table) -> list[Any]:
        from datasets import Features

        known = self.data.features or Features.from_arrow_schema(table.schema)
        names = columns_in(self.column)
        features = Features({name: known[name] for name in names})
        return samples_in(features.decode_batch(table.select(names).to_pydict()), self.column)


def _with_last(tables: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, bool]]:
    """Each table, and whether it is the last with rows."""
    held = next(tables)
    for table in tables:
        if len(table):
            if len(held):
                yield held, False
            held = table
    yield held, True


def rows_of(
    data: Dataset | IterableDataset | str | Path | Sequence[str | Path],
    column: str | Sequence[str],
    keep: Sequence[str],
    rows_per_shard: int,
    split: str = "train",
) -> Rows:
    """The rows of what a user names, which `encode_shards` describes.

    Raises:
        SampleError: If it cannot be read, or lacks a column.
        ConfigurationError: If it is no data.
    """
    from datasets import Dataset, IterableDataset

    if rows_per_shard < 1:
        raise ConfigurationError(f"rows_per_shard={rows_per_shard} must be at least 1 row.")
    column = column if isinstance(column, str) else columns_in(column)
    of_files = False
    if isinstance(data, str | Path) or (isinstance(data, Sequence) and data and isinstance(data[0], str | Path)):
        data, identity = _by_name(data, split)
        of_files = True
    elif isinstance(data, IterableDataset):
        identity = {}
    else:
        data = unformatted(data, "data")
        if not isinstance(data, Dataset):
            raise ConfigurationError(
                f"data is a {type(data).__name__}, expected a datasets.Dataset or IterableDataset, files "
                f"({', '.join(FILE_FORMATS)}), or the name of a dataset on the Hub."
            )
        identity = {"dataset": data._fingerprint, "rows": len(data)}
    _refuse_missing(data, column, keep)
    if not of_files and isinstance(data, IterableDataset):
        identity = {"first_rows": _digest_of_first(data, column)}
    what: dict[str, Any] = {"data": data, "column": column, "keep": tuple(keep), "rows_per_shard": rows_per_shard}
    if isinstance(data, IterableDataset):
        return Stream(**what, identity=identity, of_files=of_files)
    return Rows(**what, identity=identity)


def _refuse_missing(data: Any, column: str | tuple[str, ...], keep: Sequence[str]) -> None:
    there = data.column_names
    missing = [] if there is None else [name for name in (*columns_in(column), *keep) if name not in there]
    if missing:
        raise SampleError(
            f"The data has the columns {', '.join(map(repr, there))}, expected {', '.join(map(repr, missing))} among "
            "them. Name the column that the encoder reads, and those to keep."
        )


def _digest_of_first(stream: Any, column: str | tuple[str, ...]) -> str:
    """What a stream is known by: it has no length, and its end may be far away."""
    names = columns_in(column)
    first: dict[str, Any] = next(iter(stream.take(FIRST_ROWS).iter(FIRST_ROWS)), {name: [] for name in names})
    if not set(names) <= set(first):  # a stream that does not tell its columns
        raise SampleError(
            f"The first row has the columns {', '.join(map(repr, first))}, expected "
            f"{', '.join(map(repr, names))} among them. Name the "
            "column that the encoder reads."
        )
    samples = samples_in(first, column)
    if samples:
        check_samples(samples, f"column {column!r}")
    return digest_of_samples(samples)


def _by_name(data: str | Path | Sequence[str | Path], split: str) -> tuple[IterableDataset, dict[str, Any]]:
    """Files, or a dataset on the Hub at its newest commit, as a stream, and what it is known by."""
    from datasets import load_dataset
    from huggingface_hub.utils import httpx

    names = [str(data)] if isinstance(data, str | Path) else [str(name) for name in data]
    try:
        if len(names) == 1 and Path(names[0]).suffix not in FILE_FORMATS and not Path(names[0]).exists():
            at = {"revision": _commit(names[0])}
            return load_dataset(names[0], split=split, streaming=True, **at), {"name": names[0], "split": split} | at
        files = [file for name in names for file in _files(name)]
        kinds = {FILE_FORMATS.get(file.suffix) for file in files}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is None:
            raise ValueError(f"the files are {', '.join(sorted({file.suffix or file.name for file in files}))}")
        stream = load_dataset(kind, data_files=[str(file) for file in files], split="train", streaming=True)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise SampleError(
            f"Cannot read the data {', '.join(names)[:200]!r} with split {split!r}: {str(error).rstrip('.')}. Pass "
            f"{', '.join(FILE_FORMATS)} files of one kind, a folder of them, or a dataset on the Hub."
        ) from error
    known = hashlib.sha256("\n".join(map(_known_by, files)).encode()).hexdigest()
    return stream, {"files": len(files), "digest": known}


def _commit(name: str) -> str:
    """The newest commit of a dataset: a run that goes on after days reads the same rows."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name).sha)


def _files(name: str) -> list[Path]:
    """The file of that name, those of a folder, or those that a pattern finds, in the order of their names."""
    if Path(name).is_file():
        return [Path(name)]
    if Path(name).is_dir():
        found = sorted(file for file in Path(name).rglob("*") if file.suffix in FILE_FORMATS)
    else:
        found = sorted(map(Path, glob.glob(name, recursive=True)))  # noqa: PTH207 -- the pattern may be absolute
    if not found:
        raise FileNotFoundError(f"there is no such file in {name!r}")
    return found


def _known_by(file: Path) -> str:
    """Name, size and ends: reading terabytes once more to know them again would cost more than it is worth."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        ends = hashlib.sha256(stream.read(ENDS))
        stream.seek(max(0, size - ENDS))
        ends.update(stream.read(ENDS))
    return f"{file.name} {size} {ends.hexdigest()[:16]}"
