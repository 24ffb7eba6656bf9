"""What an anchor set looks like as files: a table with a column for each view, and a record that says what it holds.

Files from outside are data: a table that would unpack to far more than its bytes justify is refused before it is read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from hf_relreps.errors import AnchorIntegrityError, UploadError
from hf_relreps.pairs import FIELDS
from hf_relreps.parquet_pages import Column, refuse_immense_pages
from hf_relreps.sources import Source


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


FOLDER = "anchors"
TABLE_FILE = "anchors.parquet"
RECORD_FILE = "anchor_set.json"
ID_COLUMN = "id"  # of the table; the others are views
ANCHORS_FORMAT = 1
PLAIN_MODES = ("L", "RGB", "RGBA")  # what PNG gives back bit for bit
# What a table may unpack to: what compresses better than this was made to fill the memory.
LITTLE, MOST_UNPACKED = 64 << 20, 100  # bytes, and bytes for each byte of the file
ROWS_AT_ONCE = 4096  # of a table, unless its texts are long
DEEPEST, MOST_FIELDS = 3, 4  # of a sample: a conversation is a list of records of two texts
BROKEN_PNG = (SyntaxError, Image.DecompressionBombError)  # what Pillow raises of them beside OSError and ValueError


class ViewContent(NamedTuple):
    """One view as the files hold it; a record from outside may lack modality and digest."""

    modality: str | None
    digest: str | None
    samples: Sequence[Any]


@dataclass(frozen=True)
class AnchorContent:
    """What the files hold, as plain values: ids and samples in the table, the others in the record."""

    ids: list[str]
    fingerprint: str
    views: dict[str, ViewContent]
    origin: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """What lies beside the table, as JSON."""
        return {
            "format_version": ANCHORS_FORMAT,
            "fingerprint": self.fingerprint,
            "num_anchors": len(self.ids),
            "views": {name: {"modality": view.modality, "digest": view.digest} for name, view in self.views.items()},
            "origin": self.origin,
        }


def write_anchors(content: AnchorContent, folder: str | Path) -> None:
    """Write the table and its record into a folder below `folder`."""
    import pyarrow.parquet as pq

    place = Path(folder, FOLDER)
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(_to_table(content), place / TABLE_FILE, compression="zstd")
    (place / RECORD_FILE).write_text(json.dumps(content.record(), indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_anchors(source: Source, any_type: bool = False) -> tuple[AnchorContent, str]:
    """What the files of a `Source` hold, and what to call them in errors. Digests are not compared yet.

    With `any_type` a dataset repository of that name comes before a model's.

    Raises:
        UploadError: If there are no anchors.
        AnchorIntegrityError: If a file is not what it should be, or would fill the memory.
    """
    record_file, table_file, source = _find(source, any_type)
    record = _read_record(record_file, f"{FOLDER}/{RECORD_FILE} of {source}")
    place = f"{FOLDER}/{TABLE_FILE} of {source}"
    columns = _read_table(table_file, place, record)
    views = {
        name: ViewContent(about.get("modality"), about.get("digest"), columns[name])
        for name, about in record["views"].items()
    }
    return AnchorContent(columns[ID_COLUMN], record["fingerprint"], views, record["origin"]), place


def refuse_changes(found: AnchorContent, stored: AnchorContent, place: str) -> None:
    """Raise `AnchorIntegrityError` unless the anchors found are those that the record names."""
    _refuse_difference(place, "digest of its ids", found.fingerprint, stored.fingerprint)
    for name, view in stored.views.items():
        _refuse_difference(place, f"digest of its view {name!r}", found.views[name].digest, view.digest)


def _refuse_difference(place: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise AnchorIntegrityError(
            f"{place} has been changed: the {what} is {found}, but {RECORD_FILE} says {expected}. Pull the folder "
            "again, or save the anchors again with AnchorSet.save_pretrained."
        )


def _find(source: Source, any_type: bool) -> tuple[Path, Path, Source]:
    record_path, table_path = f"{FOLDER}/{RECORD_FILE}", f"{FOLDER}/{TABLE_FILE}"
    if any_type and not source.is_local:
        try:
            return _find(source.with_type("dataset"), any_type=False)
        except UploadError:
            source = source.with_type("model")
    record_file = source.file(record_path)
    table_file = source.file(table_path) if record_file else None
    if record_file is None or table_file is None:
        raise UploadError(
            f"{source} has no anchors: {record_path if record_file is None else table_path} does not exist. Save "
            "anchors with anchors.save_pretrained(folder) or anchors.push_to_hub(name). If the model was pushed "
            "without its anchor samples (anchors='digest'), attach the same set: model.anchors = anchors."
        )
    return record_file, table_file, source


def _read_record(file: Path, name: str) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text("utf-8"))
        version = record["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AnchorIntegrityError(f"{name} is not a valid anchor record ({error!r:.200}). Pull it again.") from error
    if isinstance(version, int) and version > ANCHORS_FORMAT:
        raise AnchorIntegrityError(
            f"{name} has format version {version}; the installed hf_relreps reads up to {ANCHORS_FORMAT}. "
            "Update it: pip install -U hf-relreps."
        )
    views = record.get("views")
    types = {"format_version": int, "fingerprint": str, "num_anchors": int, "views": dict, "origin": dict}
    wrong = [field for field, kind in types.items() if not isinstance(record.get(field), kind)]
    if wrong or not views or not all(isinstance(about, dict) for about in views.values()):
        raise AnchorIntegrityError(
            f"{name} is not a valid anchor record: {', '.join(wrong) or 'views'} missing or of the wrong type. Pull "
            "it again."
        )
    return record


def _to_table(content: AnchorContent) -> pa.Table:
    """A table that `datasets` and the Hub's viewer read as texts and images."""
    import pyarrow as pa
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    sound = {"array": List(Value("float32")), "sampling_rate": Value("int64")}
    word = {"words": List(Value("string")), "position": Value("int64")}
    types: dict[str | None, Any] = {
        "text": Value("string"),
        "pair": {field: Value("string") for field in FIELDS},
        "word": word,
        "image": ImageFeature(),
        "audio": sound,
        "node": Value("int64"),
        "conversation": List({"role": Value("string"), "content": Value("string")}),
    }
    columns: dict[str, Any] = {ID_COLUMN: content.ids}
    features = {ID_COLUMN: Value("string")}
    for name, view in content.views.items():
        columns[name] = [_TO_CELL[view.modality](sample) for sample in view.samples]
        features[name] = types[view.modality]
    return pa.table(columns, schema=Features(features).arrow_schema)


def _read_table(file: Path, place: str, record: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The ids and the samples of each view that the record names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    allowed = LITTLE + MOST_UNPACKED * file.stat().st_size
    try:
        table = pq.ParquetFile(file)
        _refuse_difference(place, "number of anchors", table.metadata.num_rows, record["num_anchors"])
        column_chunks = refuse_immense_pages(file, allowed)
        _refuse_bomb(column_chunks, allowed)
        wanted = [ID_COLUMN, *record["views"]]
        missing = set(wanted) - set(table.schema_arrow.names)
        if missing:
            raise ValueError(f"columns are missing: {', '.join(sorted(missing))}")
        for name in wanted:
            _refuse_other_type(table.schema_arrow.field(name).type, name)
        columns = _read_columns(table, column_chunks, wanted, allowed)
        images = [name for name, about in record["views"].items() if about.get("modality") == "image"]
        return {name: columns[name] for name in (ID_COLUMN, *record["views"])} | {
            name: _from_pngs(columns[name], allowed) for name in images
        }
    except AnchorIntegrityError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, *BROKEN_PNG) as error:
        raise AnchorIntegrityError(f"{place} cannot be read as anchors: {error}. Pull it again.") from error


def _refuse_other_type(kind: pa.DataType, name: str, depth: int = 0) -> None:
    """Raise `ValueError` unless cells are texts, bytes, numbers, or lists and records of a few of these."""
    import pyarrow as pa

    kinds = pa.types
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind) or kinds.is_struct(kind):
        if depth == DEEPEST or kind.num_fields > MOST_FIELDS:
            raise ValueError(f"column {name} is of type {kind!s:.80}, more nested than any sample is")
        for i in range(kind.num_fields):
            _refuse_other_type(kind.field(i).type, name, depth + 1)
        return
    text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_binary(kind) or kinds.is_large_binary(kind)
    if not (text or kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_null(kind)):
        raise ValueError(f"column {name} contains {kind!s:.80}, expected texts, bytes or numbers")


def _read_columns(
    table: pq.ParquetFile, chunks: Sequence[Column], names: Sequence[str], allowed: int
) -> dict[str, list[Any]]:
    """The columns as lists, read a few rows at a time: one text may stand for many rows, and unpacks with each."""
    largest = max((column.unpacked for column in chunks), default=1)
    rows = max(1, min(ROWS_AT_ONCE, allowed // max(1, largest)))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    unpacked = 0
    for batch in table.iter_batches(batch_size=rows, columns=list(names), use_threads=False):
        unpacked += batch.nbytes
        _refuse_unpacked(unpacked, allowed)
        for name, cells in batch.to_pydict().items():
            columns[name] += cells
    return columns


def _refuse_unpacked(unpacked: int, allowed: int) -> None:
    if unpacked > allowed:
        raise ValueError(f"it would unpack to {unpacked} bytes, and {allowed} are allowed for a file of its size")


def _refuse_bomb(columns: Sequence[Column], allowed: int) -> None:
    """Raise `ValueError` for a table that would unpack to far more than its bytes justify."""
    _refuse_unpacked(sum(max(column.unpacked, 4 * column.num_values) for column in columns), allowed)


def _to_png(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _to_sound(sound: Mapping[str, Any]) -> dict[str, Any]:
    return {"array": np.asarray(sound["array"], dtype=np.float32), "sampling_rate": sound["sampling_rate"]}


_TO_CELL: dict[str | None, Any] = {
    **{"text": str, "pair": dict, "word": asdict, "conversation": list},
    **{"image": _to_png, "audio": _to_sound, "node": int},
}


def _from_pngs(cells: Sequence[Mapping[str, Any]], allowed: int) -> list[Image.Image]:
    images: list[Image.Image] = [Image.open(io.BytesIO(cell["bytes"]), formats=["PNG"]) for cell in cells]
    unpacked = sum(image.width * image.height * len(image.getbands()) for image in images)
    if unpacked > allowed:
        raise ValueError(
            f"its images would unpack to {unpacked} bytes, and {allowed} are allowed for a file of its size"
        )
    for image in images:
        image.load()
    return images
