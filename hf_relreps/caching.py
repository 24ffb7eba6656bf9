"""`encode_dataset`: each sample of a data set goes through a frozen encoder once, and never again.

Shapes: B batch, D absolute size, R relative size.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_relreps.backbones import RUNNING_FIELDS, digest_of_weights
from hf_relreps.errors import ConfigurationError, SampleError
from hf_relreps.modeling import RelativeModel
from hf_relreps.samples import check_samples, unformatted


if TYPE_CHECKING:
    from datasets import Dataset

ROWS_PER_WRITE = 1024  # encoded, then written: memory does not grow with the data set
COLUMN = "relative_embeds"
# Which part of a processor reads a modality.
READERS = {"text": "tokenizer", "image": "image_processor", "audio": "feature_extractor"}
# Left in a tokenizer by its last call, and set anew by the next.
CALL_SETTINGS = ("truncation", "padding")


def encode_dataset(
    encoder: RelativeModel,
    dataset: Dataset,
    column: str,
    *,
    processor: Any = None,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """The data set with `relative_embeds` (R numbers, as tensors) in place of `column`, encoded once and cached.

    A decoder trains on it with the plain `Trainer`. The cache is found again, in this process or another, as long as
    the data, the encoder's weights and settings, its processor, and the anchors are the same; otherwise the samples
    are encoded again. It lives on disk, so neither the samples nor the result need fit into memory.

    Args:
        encoder: Stays as it is: for one that is trained, use `AnchorCallback`.
        dataset: A `datasets.Dataset`, in memory or on disk.
        column: What the encoder reads: texts, images, sounds or nodes.
        processor: Tokenizer or image processor, if not the encoder's own.
        batch_size: Samples that the encoder reads at a time.
        cache_dir: Folder of the cache; that of `datasets` if left out.

    Raises:
        SampleError: If there is no such column, or a sample cannot be encoded.
        ConfigurationError: If the data set is no `datasets.Dataset`.

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

    dataset = unformatted(dataset)
    _refuse_unreadable(dataset, column, encoder.config.modality)
    processor = encoder.processor if processor is None else processor

    def encode(rows: dict[str, Any]) -> dict[str, Any]:
        x_BD = encoder.encode(rows[column], processor, batch_size=batch_size)
        with torch.no_grad():
            r_BR = encoder.projection(x_BD.to(encoder.device))
        return {COLUMN: r_BR.float().cpu().numpy()}

    fingerprint = _fingerprint(encoder, dataset, column, processor)
    folder = Path(config.HF_DATASETS_CACHE, "hf_relreps") if cache_dir is None else Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: feature for name, feature in dataset.features.items() if name != column}
    encoded = dataset.map(
        encode,
        batched=True,
        batch_size=ROWS_PER_WRITE,
        writer_batch_size=ROWS_PER_WRITE,
        remove_columns=column,
        features=Features(kept | {COLUMN: List(Value("float32"), length=encoder.config.space.size)}),
        cache_file_name=str(folder / f"relative-{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        desc=f"Encoding {column}",
    )
    return encoded.with_format("torch", columns=[COLUMN], output_all_columns=True)


def _refuse_unreadable(dataset: Any, column: str, modality: str) -> None:
    if not hasattr(dataset, "_fingerprint"):
        raise ConfigurationError(
            f"encode_dataset got a {type(dataset).__name__}, expected a datasets.Dataset, which says whether its rows "
            "are the ones of the cache. Make one with Dataset.from_dict(columns)."
        )
    if column not in dataset.column_names or COLUMN in dataset.column_names:
        raise SampleError(
            f"The data set has the columns {', '.join(map(repr, dataset.column_names))}, expected {column!r} among "
            f"them and no {COLUMN!r} yet. Name the column that the encoder reads."
        )
    found = check_samples([dataset[0][column]], f"column {column!r}") if len(dataset) else modality
    if found != modality:
        raise SampleError(
            f"column {column!r} holds {'numbers' if found == 'node' else found}, the encoder reads {modality}. Name "
            "the column that it reads."
        )


def _fingerprint(encoder: RelativeModel, dataset: Dataset, column: str, processor: Any) -> str:
    """SHA-256 (64 hex digits) of everything that the encoded data set depends on."""
    config = encoder.config
    says = [
        dataset._fingerprint,
        column,
        digest_of_weights(encoder.state_dict()),  # with the anchors' embeddings among them
        _processor_says(processor, config.modality),
        {name: value for name, value in encoder.backbone.config.to_dict().items() if name not in RUNNING_FIELDS},
        config.space.to_dict(),
        [config.pooling, config.max_length, config.padding, config.modality, config.tower],
    ]
    return hashlib.sha256(json.dumps(says, sort_keys=True, default=str).encode()).hexdigest()


def _processor_says(processor: Any, modality: str) -> Any:
    """What a processor makes of a sample depends on: not where it came from, nor how it was called last."""
    reader = getattr(processor, READERS.get(modality, ""), processor)
    if isinstance(reader, PreTrainedTokenizerBase):
        backend = getattr(reader, "backend_tokenizer", None)
        words = reader.get_vocab() if backend is None else json.loads(backend.to_str())
        sides = [reader.truncation_side, reader.padding_side, reader.model_max_length]
        return [
            {name: value for name, value in words.items() if backend is None or name not in CALL_SETTINGS},
            [type(reader).__name__, sides, reader.model_input_names, reader.special_tokens_map],
        ]
    if hasattr(reader, "to_dict"):
        return reader.to_dict()
    from datasets.fingerprint import Hasher

    return Hasher.hash(reader)
