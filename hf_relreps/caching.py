"""`encode_dataset`: each sample of a dataset goes through a frozen encoder once, and never again.

Shapes: B batch, D absolute size, R relative size.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import ArrowException

from hf_relreps.backbones import digest_of_weights
from hf_relreps.blocks import ROWS_AT_ONCE, rows_of
from hf_relreps.errors import ConfigurationError, RelrepsError, SampleError, UploadError
from hf_relreps.modeling import RelativeModel, RelativeTaskModel, as_encoder
from hf_relreps.pairs import columns_in, samples_in
from hf_relreps.samples import check_samples, require_modality, unformatted
from hf_relreps.saving import write_text
from hf_relreps.shards import (
    RELATIVE,
    ROWS_PER_SHARD,
    Encoding,
    complete_shards,
    digest_of,
    drop_damaged,
    projected,
    read_shard,
)


if TYPE_CHECKING:
    from datasets import Dataset


def encode_dataset(
    encoder: RelativeModel | RelativeTaskModel,
    dataset: Dataset,
    column: str | Sequence[str],
    *,
    processor: Any = None,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """The dataset with `relative_embeds` (R numbers, as tensors) in place of `column`, encoded once and cached.

    A decoder trains on it with the plain `Trainer`. The cache is reused, in this process or another, as long as the
    data, the encoder's weights and settings, and its processor are the same; otherwise the samples are encoded again.
    The cache holds the absolute embeddings too: for other anchors or another projection nothing is encoded again, and
    a run that was killed goes on. It is on disk, so neither the samples nor the result need to fit into memory.

    Args:
        encoder: A relative model, or a whole one. It is not changed. If you train the encoder, use `AnchorCallback`
            instead.
        dataset: A `datasets.Dataset`, in memory or on disk, or a DataFrame of pandas or polars.
        column: What the encoder reads: texts, images, sounds or nodes; of pairs of texts the two columns.
        processor: Tokenizer or image processor, if not the encoder's own.
        batch_size: Samples that the encoder reads at a time.
        cache_dir: Folder of the cache; by default that of `datasets`.

    Raises:
        SampleError: If there is no such column, or a sample cannot be encoded.
        ConfigurationError: If `dataset` is not a `datasets.Dataset`.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        from hf_relreps import RelativeDecoderConfig
        from hf_relreps.caching import encode_dataset

        encoded = encode_dataset(english.encoder, train, "en")
        new_decoder = RelativeDecoder(RelativeDecoderConfig(space=english.encoder.config.space, num_labels=11))
        Trainer(new_decoder, TrainingArguments("out", max_steps=2, report_to="none"), train_dataset=encoded).train()
        ```
    """
    from datasets import Features, List, Value, config

    encoder, dataset = as_encoder(encoder), unformatted(dataset)
    _refuse_unreadable(dataset, column, encoder.config.modality)
    folder = Path(config.HF_DATASETS_CACHE, "hf_relreps") if cache_dir is None else Path(cache_dir)
    absolute = _encoding(encoder, dataset, column, processor, batch_size, folder)
    anchors = digest_of_weights({"anchors": encoder.anchors_AD})
    fingerprint = digest_of([absolute.folder.name, encoder.config.space.to_dict(), anchors])
    kept = {name: feature for name, feature in dataset.features.items() if name not in columns_in(column)}
    how: dict[str, Any] = {
        **{"batched": True, "batch_size": ROWS_AT_ONCE, "writer_batch_size": ROWS_AT_ONCE, "with_indices": True},
        **{"remove_columns": list(columns_in(column)), "new_fingerprint": fingerprint},
        "desc": f"Projecting {', '.join(columns_in(column))}",
        "features": Features(kept | {RELATIVE: List(Value("float32"), length=encoder.config.space.size)}),
    }
    shards: list[Path] = []
    read = lru_cache(maxsize=1)(read_shard)

    def project(rows: Any, numbers: list[int]) -> dict[str, Any]:
        shard, first = divmod(numbers[0], ROWS_PER_SHARD)  # a batch is a block of a shard
        return {RELATIVE: projected(encoder, read(shards[shard])[first : first + len(numbers)])}

    file = folder / f"relative-{fingerprint}.arrow"
    if not _is_whole(file):
        drop_damaged(absolute.folder)
        absolute.run()
        shards += [shard.file for shard in complete_shards(absolute.folder)]
        _write(lambda place: dataset.map(project, cache_file_name=str(place), **how), file)
    encoded = dataset.map(project, cache_file_name=str(file), **how)
    return encoded.with_format("torch", columns=[RELATIVE], output_all_columns=True)


def _encoding(
    encoder: RelativeModel, dataset: Dataset, column: str | Sequence[str], processor: Any, batch_size: int, cache: Path
) -> Encoding:
    """Absolute embeddings on their way into a folder of the cache that is named by all that they depend on."""
    rows = rows_of(dataset, column, (), ROWS_PER_SHARD)
    encoding = Encoding.of(encoder, rows, cache, processor, batch_size)
    return replace(encoding, folder=cache / f"absolute-{digest_of(encoding.made_by)}")


def _is_whole(file: Path) -> bool:
    """Whether a file of the cache is as it was written: what is cut short or flipped is encoded again."""
    try:
        return _digest_file(file).read_text("utf-8") == _digest_of(file)
    except OSError:
        return False


def _write(encode: Callable[[Path], Any], file: Path) -> None:
    """Write beside the place in the cache, then put it there; nothing stays of what could not be written."""
    try:
        with tempfile.TemporaryDirectory(prefix="writing-", dir=file.parent, ignore_cleanup_errors=True) as place:
            written = Path(place, file.name)
            encode(written)
            if written.is_file():  # not without rows
                digest = _digest_of(written)
                _digest_file(file).unlink(missing_ok=True)
                written.replace(file)
                write_text(_digest_file(file), digest)
    except RelrepsError:
        raise
    except (OSError, ArrowException) as error:
        raise UploadError(
            f"The encoded dataset could not be written to {file.parent}: {error}. Free some space there, or give "
            "another cache_dir."
        ) from error


def _digest_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_unreadable(dataset: Any, column: str | Sequence[str], modality: str) -> None:
    if not hasattr(dataset, "_fingerprint"):
        raise ConfigurationError(
            f"encode_dataset got a {type(dataset).__name__}, expected a datasets.Dataset, whose fingerprint is the "
            "key of the cache. Build one with Dataset.from_dict(columns)."
        )
    wanted = columns_in(column)
    if not set(wanted) <= set(dataset.column_names) or RELATIVE in dataset.column_names:
        raise SampleError(
            f"The dataset has the columns {', '.join(map(repr, dataset.column_names))}, expected "
            f"{', '.join(map(repr, wanted))} among them and no {RELATIVE!r}. Name the column that the encoder reads."
        )
    found = check_samples(samples_in(dataset[:1], column), f"column {column!r}") if len(dataset) else modality
    require_modality(found, modality, f"column {column!r}")
