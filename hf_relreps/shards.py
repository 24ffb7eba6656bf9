"""`encode_shards`: a data set of any size through an encoder, once, into parquet; `read_shards`: what is made of it.

What is stored are absolute embeddings: other anchors and other projections need no second pass of the encoder.
Shapes: B batch, N rows, D absolute size, R relative size.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_relreps.backbones import RUNNING_FIELDS, digest_of_weights
from hf_relreps.blocks import ROWS_AT_ONCE, Block, Rows, rows_of
from hf_relreps.configuration import OF_TOKENS
from hf_relreps.errors import (
    ConfigurationError,
    EmbeddingError,
    MissingExtraError,
    RelrepsError,
    UploadError,
)
from hf_relreps.modeling import RelativeModel, RelativeTaskModel, as_encoder
from hf_relreps.prompts import with_prompt
from hf_relreps.samples import check_samples, require_modality
from hf_relreps.space import require_one_of, require_whole


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.get_logger(__name__)

ABSOLUTE, RELATIVE, ROW, PART = "absolute_embeds", "relative_embeds", "row", "part"
ROWS_PER_SHARD = 32_768  # 50 MB of 384 numbers in float32: what a killed process loses
DTYPES = ("float32", "float16")
MADE_BY = b"hf_relreps"  # in the metadata of each file
MOST_SHARDS = 1 << 32
WRITING = ".writing-"  # what the name of a file begins with until it is whole
# Which part of a processor reads a modality.
READERS = dict.fromkeys(OF_TOKENS, "tokenizer") | {"image": "image_processor", "audio": "feature_extractor"}
# Left in a tokenizer by its last call, and set anew by the next.
CALL_SETTINGS = ("truncation", "padding")


@dataclass(frozen=True)
class EncodedShards:
    """What a folder of shards holds, and what was done.

    Args:
        folder: Where the shards are.
        shards: How many there are now.
        rows: How many rows they hold.
        is_complete: Whether they are all of the data. Not yet where other processes are still at theirs.
        rows_encoded: How many of these rows were encoded by this call.
    """

    folder: Path
    shards: int
    rows: int
    is_complete: bool
    rows_encoded: int


def encode_shards(
    encoder: RelativeModel | RelativeTaskModel,
    data: Dataset | IterableDataset | str | Path | Sequence[str | Path],
    column: str | Sequence[str],
    folder: str | Path,
    *,
    keep: Sequence[str] = (),
    split: str = "train",
    processor: Any = None,
    batch_size: int = 64,
    dtype: str = "float32",
    rows_per_shard: int = ROWS_PER_SHARD,
    ray_actors: int | None = None,
) -> EncodedShards:
    """Encode a data set of any size, and store the absolute embeddings (N, D) as parquet files in `folder`.

    Each shard is written whole or not at all. The same call after an interruption encodes the shards that are missing.
    Under `accelerate launch` or `torchrun` each process takes its share of the shards; processes do not wait for one
    another. Memory does not grow with the data.

    The files hold `absolute_embeds`, the columns to keep, and the number of the `row`; where the data is several
    files, that is the row of the file whose number is in `part`. Their metadata say which encoder they are of:
    weights, layer, pooling, prompt and processor.

    Args:
        encoder: Is not changed, and used where it is: move it to a GPU before.
        data: A dataset, also a streamed one; `.parquet`, `.jsonl`, `.json` or `.csv` files, a folder of them or a
            pattern such as ``"texts/*.parquet"``; or the name of a dataset on the Hub. What is named is streamed.
        column: What the encoder reads; of pairs of texts the two columns.
        folder: Of the shards. It is made if it does not exist.
        keep: Other columns to store, for example an id or a label.
        split: Of a dataset on the Hub.
        processor: Tokenizer or image processor, if not the encoder's own.
        batch_size: Samples that the encoder reads at a time.
        dtype: Of the stored numbers: ``"float32"`` or ``"float16"``.
        rows_per_shard: Rows of a file. Choose it so that each process has several.
        ray_actors: Let this many actors of Ray Data encode, on the GPUs of its cluster if there are any. Needs
            ``pip install "hf_relreps[ray]"``, and a folder and data that all its machines see.

    Raises:
        SampleError: If the data cannot be read, lacks a column, or a sample cannot be encoded; the message names it.
        ConfigurationError: If the folder holds shards of another encoder, of other data or with other settings.
        EmbeddingError: If an embedding has no direction, or is too large for `dtype`.
        UploadError: If the folder cannot be written to.
        MissingExtraError: If Ray is asked for and not installed.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.shards import EncodedShards, encode_shards
        >>> how = {"keep": ["label"], "rows_per_shard": 64}
        >>> done: EncodedShards = encode_shards(english.encoder, train, "en", "shards", **how)
        >>> done.shards, done.rows, done.is_complete
        (4, 200, True)
        >>> encode_shards(english.encoder, train, "en", "shards", **how).rows_encoded
        0

        ```
    """
    require_one_of("dtype", dtype, DTYPES)
    rows = rows_of(data, column, keep, rows_per_shard, split)
    job = Encoding.of(as_encoder(encoder), rows, Path(folder), processor, batch_size, dtype)
    return job.run(*_share()) if ray_actors is None else _run_with_ray(job, ray_actors)


def read_shards(
    folder: str | Path, encoder: RelativeModel | RelativeTaskModel | None = None, *, processor: Any = None
) -> IterableDataset:
    """What `encode_shards` stored, in the order of the data; with an encoder as relative representations.

    Nothing is encoded, copied or held in memory: rows are read and projected as they are asked for. A decoder trains
    on it with the plain `Trainer` (`max_steps=`).

    Args:
        folder: Of the shards.
        encoder: The encoder of the shards, with any anchors and any projection. Its `relative_embeds` (R numbers) take
            the place of `absolute_embeds`.
        processor: The one that `encode_shards` was given, if not the encoder's own.

    Raises:
        UploadError: If there are no shards, or not yet all.
        ConfigurationError: If the shards are of another encoder.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.shards import encode_shards, read_shards
        >>> _ = encode_shards(english.encoder, train, "en", "shards", keep=["label"], rows_per_shard=64)
        >>> first = next(iter(read_shards("shards", english.encoder)))
        >>> first["row"], first["relative_embeds"].shape
        (tensor(0), torch.Size([40]))

        ```
    """
    from datasets import Features, List, Value, load_dataset
    from pyarrow.dataset import ParquetFragmentScanOptions

    shards = complete_shards(Path(folder))
    checked = {"fragment_scan_options": ParquetFragmentScanOptions(page_checksum_verification=True)}
    names: Any = [str(shard.file) for shard in shards]
    stored = load_dataset("parquet", data_files=names, split="train", streaming=True, **checked)
    if encoder is None:
        return stored.with_format("torch")
    encoder = as_encoder(encoder)
    _refuse_other_encoder(encoder, processor, shards[0].made_by["encoder"], folder)
    kept = {name: feature for name, feature in stored.features.items() if name != ABSOLUTE}
    features = Features(kept | {RELATIVE: List(Value("float32"), length=encoder.config.space.size)})

    def relative(table: pa.Table) -> pa.Table:
        r_BR = projected(encoder, embeddings_in(table))
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(r_BR.reshape(-1)), r_BR.shape[1])
        return table.drop_columns([ABSOLUTE]).append_column(RELATIVE, numbers)

    made = stored.with_format("arrow").map(relative, batched=True, batch_size=ROWS_AT_ONCE, features=features)
    return made.with_format("torch")


def projected(encoder: RelativeModel, x_BD: Tensor) -> np.ndarray:
    """Relative representations (B, R) of absolute embeddings (B, D), float32."""
    with torch.no_grad():
        return encoder.projection(x_BD.to(encoder.device)).float().cpu().numpy()


def embeddings_in(table: pa.Table) -> Tensor:
    """Absolute embeddings (B, D) of rows of a shard, float32."""
    column = table[ABSOLUTE].combine_chunks()
    x_BD = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    return torch.from_numpy(x_BD.astype(np.float32))


# -- Encoding


@dataclass(frozen=True)
class Encoding:
    """Data on its way through an encoder into a folder.

    Args:
        encoder: Reads the samples.
        rows: The data.
        folder: Of the shards.
        processor: Reads them for the encoder.
        batch_size: Samples that the encoder reads at a time.
        dtype: Of the stored numbers.
        made_by: What all shards say of the encoder, the data and the settings.
    """

    encoder: RelativeModel
    rows: Rows
    folder: Path
    processor: Any
    batch_size: int
    dtype: str
    made_by: dict[str, Any]

    @classmethod
    def of(
        cls,
        encoder: RelativeModel,
        rows: Rows,
        folder: Path,
        processor: Any = None,
        batch_size: int = 64,
        dtype: str = "float32",
    ) -> Encoding:
        """With what the shards will say, after a look at the columns' names."""
        taken = {ABSOLUTE, RELATIVE, ROW, PART} & set(rows.keep)
        if taken:
            raise ConfigurationError(
                f"keep names {', '.join(map(repr, sorted(taken)))}, which the shards use themselves. Rename the "
                "column in the data first."
            )
        processor = encoder.processor if processor is None else with_prompt(processor, encoder.config.prompt)
        settings: dict[str, Any] = {"column": rows.column, "keep": list(rows.keep), "dtype": dtype}
        settings |= {"rows_per_shard": rows.rows_per_shard, "parts": rows.parts}
        made_by = {"encoder": describe_encoder(encoder, processor), "data": rows.identity, "settings": settings}
        made_by = json.loads(json.dumps(made_by))  # as the shards will say it
        return cls(encoder, rows, folder, processor, batch_size, dtype, made_by)

    def run(self, index: int = 0, count: int = 1) -> EncodedShards:
        """Encode what is missing of the share of process `index` among `count`, and look what is there then."""
        done, encoded = self.begin(), 0
        with _bar(self.rows, done, index, count) as bar:
            for rows in self.encode(index, count):
                encoded += rows
                bar.update(rows)
        return self.end(encoded)

    def begin(self) -> int:
        """Make the folder, or look whether its shards are of this run; how many rows they hold."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_written(self.folder, error) from error
        return _rows_in(shards_in(self.folder, self.made_by))

    def encode(self, index: int, count: int) -> Iterator[int]:
        """Write the shards of a share that are missing; the rows of each block.

        Which shards these are depends on nothing else: two processes never take the same one, and none is left.
        """
        for part in range(self.rows.parts):
            has_all = self.rows.parts >= count  # then each process reads its own parts only
            if not has_all or part % count == index:
                yield from self._encode_part(part, 0 if has_all else index - part, 1 if has_all else count)

    def end(self, encoded: int) -> EncodedShards:
        """What is there now. Where that is all, nothing else stays."""
        there = shards_in(self.folder, self.made_by)
        is_complete = _is_complete(there, self.rows.parts)
        if is_complete:
            for left in self.folder.glob(f"{WRITING}*"):  # of processes that were killed
                left.unlink(missing_ok=True)
        shards = sum(map(len, there.values()))
        return EncodedShards(self.folder, shards, _rows_in(there), is_complete, encoded)

    def place_of(self, part: int, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"part-{part:05d}-{shard:06d}.parquet"

    def _encode_part(self, part: int, index: int, count: int) -> Iterator[int]:
        """Of a part every shard whose number leaves the rest `index` when divided by `count`, where it is missing."""
        is_stream = self.rows.num_shards is None  # which is read to its end to know what is missing
        if is_stream and _is_whole(shards_in(self.folder, self.made_by, part).get(part, {})):
            return

        def wanted(shard: int) -> bool:
            return (shard - index) % count == 0 and _whole_shard(self.place_of(part, shard)) is None

        file: _ShardFile | None = None
        try:
            for block in self.rows.blocks(part, wanted):
                file = file or _ShardFile(self, block)
                file.write(block, self._encode(block))
                yield len(block.samples)
                if block.ends_shard:
                    file.finish(block.ends_part)
                    file = None
        finally:
            if file is not None:
                file.drop()

    def _encode(self, block: Block) -> np.ndarray:
        """Absolute embeddings (B, D) of a block, as they are stored."""
        if not block.samples:
            return np.zeros((0, self.encoder.config.embedding_size or 0), self.dtype)
        numbers = range(block.first, block.first + len(block.samples))
        where = f"column {self.rows.column!r}" + (f" of part {block.part}" if self.rows.parts > 1 else "")
        require_modality(check_samples(block.samples, where, numbers), self.encoder.config.modality, where)
        try:
            x_BD = self.encoder.encode(block.samples, self.processor, batch_size=self.batch_size).numpy()
        except RelrepsError as error:
            raise type(error)(f"In rows {numbers[0]} to {numbers[-1]} of {where}: {error}") from error
        with np.errstate(over="ignore"):  # is looked for below
            stored_BD = x_BD.astype(self.dtype)
        if not np.isfinite(stored_BD).all():
            raise EmbeddingError(
                f"The embeddings of rows {numbers[0]} to {numbers[-1]} of {where} reach {np.abs(x_BD).max():.3g}, "
                f"which is too large for {self.dtype}. Store them as float32."
            )
        return stored_BD


def _share() -> tuple[int, int]:
    """Which of how many processes this is, as `accelerate launch` and `torchrun` tell; no process waits for others."""
    index, count = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not 0 <= index < count:
        raise ConfigurationError(
            f"The environment says RANK={index} and WORLD_SIZE={count}, expected a rank from 0 to below the number "
            "of processes. Start the processes with accelerate launch or torchrun, or unset both."
        )
    return index, count


def _bar(rows: Rows, done: int, index: int, count: int) -> Any:
    """Of the first process's rows where there are several. `datasets.disable_progress_bars` hides it."""
    from datasets.utils import tqdm

    of_several = f" (process 1 of {count})" if count > 1 else ""
    how: dict[str, Any] = {"initial": done, "total": rows.num_rows} if count == 1 else {}
    how |= {"disable": True} if index else {}
    return tqdm(desc=f"Encoding {rows.column}{of_several}", unit=" rows", **how)


class _ShardFile:
    """A shard that is being written, beside its place; it is put there when it is whole."""

    def __init__(self, job: Encoding, block: Block) -> None:
        self.job, self.part, self.shard = job, block.part, block.shard
        self.file = job.place_of(block.part, block.shard)
        self.beside = job.folder / f"{WRITING}{platform.node()}-{os.getpid()}-{self.file.name}"
        self.writer: pq.ParquetWriter | None = None

    def drop(self) -> None:
        """Leave nothing of what was not written to its end."""
        if self.writer is not None:
            self.writer.close()
        self.beside.unlink(missing_ok=True)

    def write(self, block: Block, x_BD: np.ndarray) -> None:
        """A block, as a row group of its own."""
        numbers = np.arange(block.first, block.first + len(x_BD), dtype=np.int64)
        columns: dict[str, Any] = {PART: np.full(len(x_BD), block.part, np.int32)} if self.job.rows.parts > 1 else {}
        columns |= {ROW: numbers, **{name: block.kept[name] for name in block.kept.column_names}}
        columns[ABSOLUTE] = pa.FixedSizeListArray.from_arrays(pa.array(x_BD.reshape(-1)), x_BD.shape[1])
        try:
            if self.writer is None:
                self.writer = self._open(pa.table(columns).schema, x_BD)
            if len(x_BD):  # readers fail at row groups without rows
                self.writer.write_table(pa.table(columns).cast(self.writer.schema), row_group_size=len(x_BD))
        except (OSError, pa.ArrowException) as error:
            raise _not_written(self.job.folder, error) from error

    def _open(self, schema: pa.Schema, x_BD: np.ndarray) -> pq.ParquetWriter:
        """With the features of the columns, as `datasets` reads them. Numbers of embeddings do not compress."""
        from datasets import Features, List, Value

        known = self.job.rows.features
        own = {PART: Value("int32"), ROW: Value("int64")}
        own[ABSOLUTE] = List(Value(str(x_BD.dtype)), length=x_BD.shape[1])
        inferred = Features.from_arrow_schema(schema)
        features = Features({name: own.get(name) or (known or inferred)[name] for name in schema.names})
        others = [name for name in schema.names if name != ABSOLUTE]
        return pq.ParquetWriter(
            self.beside,
            features.arrow_schema,
            compression={**dict.fromkeys(others, "zstd"), f"{ABSOLUTE}.list.element": "none"},
            use_dictionary=others,
            write_statistics=others,
            write_page_checksum=True,
        )

    def finish(self, ends_part: bool) -> None:
        """Say what it is of, and put it into its place."""
        says = {"shard": self.shard, "part": self.part, "ends_part": ends_part, "made_by": self.job.made_by}
        assert self.writer is not None
        try:
            self.writer.add_key_value_metadata({MADE_BY: json.dumps(says).encode()})
            self.writer.close()
            with self.beside.open("rb") as written:
                os.fsync(written.fileno())
            self.beside.replace(self.file)
        except OSError as error:
            if self.file.exists() and not self.beside.exists():
                return  # another run wrote the same shard, and has tidied up
            raise _not_written(self.job.folder, error) from error


def _not_written(folder: Path, error: Exception) -> UploadError:
    return UploadError(
        f"The shards could not be written to {folder}: {error}. Free some space there, or give another folder; the "
        "shards that are there stay."
    )


# -- Ray


class _Actor:
    """An encoder of its own for each actor, on its GPU if there are any. Ray starts it anew if it dies."""

    def __init__(self, job: Encoding, shares: int) -> None:
        self.job, self.shares = job, shares
        if torch.cuda.is_available():
            encoder: torch.nn.Module = job.encoder
            encoder.to("cuda")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """How many rows of a share were encoded, or the error: of what is raised Ray hands on the text only."""
        try:
            return {"rows": [sum(self.job.encode(int(batch["id"][0]), self.shares))], "error": [b""]}
        except RelrepsError as error:
            return {"rows": [0], "error": [pickle.dumps(error)]}


def _run_with_ray(job: Encoding, actors: int) -> EncodedShards:
    """Each share is a row of a dataset of Ray, which hands it to the next free actor, and again if that dies."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray_actors needs Ray: pip install 'hf_relreps[ray]'") from error
    require_whole("ray_actors", actors, 1)
    if not ray.is_initialized():
        ray.init()
    job.begin()
    parts = job.rows.parts
    shares = job.rows.num_shards or (parts if parts > 1 else actors)
    # Items lie in memory: to read a range takes a CPU, which the actors may all hold.
    tasks = ray.data.from_items([{"id": share} for share in range(shares)], override_num_blocks=shares)
    how: dict[str, Any] = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}
    how |= {"batch_size": 1, "compute": ray.data.ActorPoolStrategy(size=actors)}
    encoded = 0
    for row in tasks.map_batches(_Actor, fn_constructor_args=(job, shares), **how).iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])  # noqa: S301 -- of our own actors
        encoded += row["rows"]
    return job.end(encoded)


# -- What is in a folder


@dataclass(frozen=True)
class _Shard:
    """A whole file of a folder: where it is, and what it says."""

    file: Path
    rows: int
    schema: pa.Schema
    part: int
    number: int
    ends_part: bool
    made_by: dict[str, Any]


def shards_in(
    folder: Path, made_by: Mapping[str, Any] | None = None, part: int | None = None
) -> dict[int, dict[int, _Shard]]:
    """The whole shards in a folder, or of one part, in order, of each part by number.

    Raises:
        ConfigurationError: If one of them was not made as `made_by` says, or as the first of them was.
    """
    found: dict[int, dict[int, _Shard]] = {}
    for file in sorted(folder.glob("part-*.parquet" if part is None else f"part-{part:05d}-*.parquet")):
        shard = _whole_shard(file)
        if shard is not None:
            made_by = made_by or shard.made_by
            _refuse_other(shard.made_by, made_by, folder)
            found.setdefault(shard.part, {})[shard.number] = shard
    return found


def _whole_shard(file: Path) -> _Shard | None:
    """What a file says of itself; ``None`` if it is not there, or cannot be read: then it counts as missing.

    Raises:
        ConfigurationError: If something else wrote it.
    """
    if not file.is_file():
        return None
    try:
        told = pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        logger.warning(f"{file} is no whole shard, and counts as missing: {type(error).__name__}: {error}")
        return None
    if MADE_BY not in (told.metadata or {}):
        raise ConfigurationError(f"{file} is not a shard that encode_shards wrote. Choose another folder.")
    schema = told.schema.to_arrow_schema().remove_metadata()
    return _Shard(file, told.num_rows, schema, **_said_by(told.metadata[MADE_BY], file))


def _said_by(text: bytes, file: Path) -> dict[str, Any]:
    """What a shard says of itself: numbers, and by what it was made."""
    try:
        says = json.loads(text)
        found = {"part": says["part"], "number": says["shard"], "ends_part": says["ends_part"]}
        made_by = says["made_by"]
        whole = (found["part"], found["number"], made_by["settings"]["parts"])
        if not all(isinstance(one, int) and 0 <= one <= MOST_SHARDS for one in whole):
            raise ValueError(f"its numbers are {whole}")
        if not all(isinstance(about, dict) for about in made_by.values()) or "encoder" not in made_by:
            raise ValueError("it does not say by what it was made")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"{file} is not a shard that encode_shards wrote ({error!r:.100}). Choose another folder."
        ) from error
    return found | {"made_by": made_by}


def drop_damaged(folder: Path) -> None:
    """Remove the shards whose content is not what was written."""
    for part in shards_in(folder).values():
        for shard in part.values():
            try:
                read_shard(shard.file)
            except (OSError, pa.ArrowException):
                shard.file.unlink(missing_ok=True)


def read_shard(file: Path) -> Tensor:
    """The absolute embeddings (N, D) of a shard, compared with the checksums of its pages."""
    return embeddings_in(pq.ParquetFile(file, page_checksum_verification=True).read([ABSOLUTE]))


def _rows_in(there: Mapping[int, Mapping[int, _Shard]]) -> int:
    return sum(shard.rows for part in there.values() for shard in part.values())


def _is_whole(part: Mapping[int, _Shard]) -> bool:
    """Whether a part is there from its first shard to its last."""
    return bool(part) and sorted(part) == list(range(len(part))) and part[len(part) - 1].ends_part


def _is_complete(there: Mapping[int, Mapping[int, _Shard]], parts: int) -> bool:
    return all(_is_whole(there.get(part, {})) for part in range(parts))


def complete_shards(folder: Path) -> list[_Shard]:
    """The shards of a folder in the order of the data, if they are all there."""
    there = shards_in(folder)
    shards = [part[number] for _, part in sorted(there.items()) for number in sorted(part)]
    if not shards:
        raise UploadError(
            f"There are no shards in {folder}. Write them with encode_shards(encoder, data, column, folder)."
        )
    if not _is_complete(there, shards[0].made_by["settings"]["parts"]):
        raise UploadError(
            f"{folder} holds {len(shards)} shards, but not yet all of the data. Run the same encode_shards again: it "
            "encodes what is missing."
        )
    for shard in shards:
        _refuse_no_embeddings(shard, shards[0].schema)
    return shards


def _refuse_no_embeddings(shard: _Shard, schema: pa.Schema) -> None:
    """Raise `ConfigurationError` unless a shard has the columns of the first, and the bytes that its rows need."""
    found = shard.schema
    column = found.field(ABSOLUTE).type if ABSOLUTE in found.names else pa.null()
    is_right = pa.types.is_fixed_size_list(column) and pa.types.is_floating(column.value_type) and found == schema
    bytes_of_rows = shard.rows * column.list_size * column.value_type.bit_width // 8 if is_right else 0
    if not is_right or bytes_of_rows > shard.file.stat().st_size:  # embeddings are stored as they are
        raise ConfigurationError(
            f"{shard.file} has {shard.rows} rows of {', '.join(map(str, found))[:200]} in {shard.file.stat().st_size} "
            "bytes, which encode_shards did not write. Encode the data anew in another folder."
        )


# -- Whose they are


def describe_encoder(encoder: RelativeModel, processor: Any) -> dict[str, Any]:
    """Everything that an absolute embedding depends on but its sample; the anchors and the projection are not."""
    config = encoder.config
    architecture = {k: v for k, v in encoder.backbone.config.to_dict().items() if k not in RUNNING_FIELDS}
    names = ("modality", "pooling", "layer", "max_length", "padding", "tower", "prompt")
    return {
        **{name: getattr(config, name) for name in names},
        "weights": digest_of_weights(encoder.backbone.state_dict()),
        "architecture": digest_of(architecture),
        "processor": digest_of(_processor_says(processor, config.modality)),
    }


def digest_of(says: Any) -> str:
    """SHA-256 (64 hex digits) of what can be written as JSON."""
    return hashlib.sha256(json.dumps(says, sort_keys=True, default=str).encode()).hexdigest()


def _processor_says(processor: Any, modality: str) -> Any:
    """What a processor makes of a sample depends on: not where it came from, nor how it was called last."""
    reader = getattr(processor, READERS.get(modality, ""), processor)
    if isinstance(reader, PreTrainedTokenizerBase):
        backend = getattr(reader, "backend_tokenizer", None)
        words = reader.get_vocab() if backend is None else json.loads(backend.to_str())
        sides = [reader.truncation_side, reader.padding_side, reader.model_max_length, reader.chat_template]
        return [
            {name: value for name, value in words.items() if backend is None or name not in CALL_SETTINGS},
            [type(reader).__name__, sides, reader.model_input_names, reader.special_tokens_map],
        ]
    if hasattr(reader, "to_dict"):
        return reader.to_dict()
    from datasets.fingerprint import Hasher

    return Hasher.hash(reader)


def _refuse_other(theirs: Mapping[str, Any], mine: Mapping[str, Any], folder: Path) -> None:
    """Raise `ConfigurationError` if a shard is of another encoder, of other data, or with other settings."""
    for what, ours in mine.items():
        if theirs.get(what) != ours:
            raise ConfigurationError(
                f"{folder} holds shards of other {what}: {_differences(theirs.get(what, {}), ours)}. Choose another "
                "folder, or delete this one."
            )


def _refuse_other_encoder(encoder: RelativeModel, processor: Any, theirs: Mapping[str, Any], folder: Any) -> None:
    processor = encoder.processor if processor is None else with_prompt(processor, encoder.config.prompt)
    mine = json.loads(json.dumps(describe_encoder(encoder, processor)))
    if theirs != mine:
        raise ConfigurationError(
            f"The shards in {folder} are of another encoder: {_differences(theirs, mine)}. Read them with the encoder "
            "that they are of (its anchors and its projection may differ), or encode the data again."
        )


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    names = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
    return ", ".join(f"{name} is {_short(theirs.get(name))} there and {_short(mine.get(name))} here" for name in names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
