"""Raw samples (texts, images, sounds): what they are, what identifies them, and how they become batches for an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_relreps.errors import SampleError


logger = logging.get_logger(__name__)

# What a sample of each modality is; a sound as `datasets` decodes it: {"array": floats, "sampling_rate": hertz}.
MODALITIES: dict[str, type] = {"text": str, "image": Image.Image, "audio": Mapping}


def check_samples(samples: Sequence[Any], name: str) -> str:
    """The modality of `samples`, which must all be non-empty texts, all images, or all sounds.

    Raises:
        SampleError: Naming the first sample that cannot be encoded and its position.
    """
    if len(samples) == 0:
        raise SampleError(f"{name} holds no samples. Expected a list of texts, images or sounds.")
    modality = next((m for m, kind in MODALITIES.items() if isinstance(samples[0], kind)), "text")
    for i, sample in enumerate(samples):
        if not isinstance(sample, MODALITIES[modality]):
            raise SampleError(
                f"{name}[{i}] is {sample!r:.60} ({type(sample).__name__}), expected {modality} like every other sample. "
                "Drop such rows, or convert the column, before choosing samples."
            )
        if modality == "text" and not sample.strip():
            raise SampleError(f"{name}[{i}] is an empty text, expected at least one character. Drop or fill that row.")
        if modality == "audio":
            _check_sound(sample, f"{name}[{i}]")
    return modality


def _check_sound(sound: Mapping[str, Any], name: str) -> None:
    if not {"array", "sampling_rate"} <= set(sound):
        raise SampleError(
            f"{name} is a mapping with {', '.join(map(str, sound)) or 'nothing'}, expected a sound: "
            '{"array": samples in [-1, 1], "sampling_rate": hertz}.'
        )
    if np.ndim(sound["array"]) != 1 or len(sound["array"]) == 0:
        raise SampleError(f"{name} has shape {np.shape(sound['array'])}, expected one channel with at least one value.")


def digest(samples: Sequence[Any]) -> str:
    """SHA-256 (64 hex digits) over the content and order of texts, images or sounds."""
    sha = hashlib.sha256()
    for sample in samples:
        content = _content(sample)
        sha.update(len(content).to_bytes(8, "big"))  # so that ["ab", "c"] is not ["a", "bc"]
        sha.update(content)
    return sha.hexdigest()


def _content(sample: Any) -> bytes:
    if isinstance(sample, str):
        return sample.encode("utf-8", errors="surrogatepass")
    if isinstance(sample, Mapping):
        return f"{sample['sampling_rate']} ".encode() + np.asarray(sample["array"], dtype="<f4").tobytes()
    return f"{sample.mode} {sample.size} ".encode() + sample.tobytes()


def batches(
    samples: Sequence[Any], processor: Any, batch_size: int, max_length: int | None = None
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Batches of model inputs with the positions of their samples, longest texts first.

    Texts of like length share a batch, so that padding costs little, and the first batch is the largest: what does
    not fit into memory fails at once.

    Args:
        samples: N texts, images or sounds.
        processor: A tokenizer for texts, an image processor for images, a feature extractor for sounds.
        batch_size: Samples in a batch.
        max_length: Longest text in tokens; longer ones are truncated, with one warning that counts them.

    Yields:
        Positions (B,) in `samples`, and the inputs of the encoder by name.
    """
    modality = check_samples(samples, "samples")
    if modality != "text":
        read = _read_images if modality == "image" else _read_sounds
        for start in range(0, len(samples), batch_size):
            rows = np.arange(start, min(start + batch_size, len(samples)))
            yield rows, read([samples[i] for i in rows], processor)
        return
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = _tokenize(samples, tokenizer, max_length)
    order = np.argsort([-len(ids) for ids in tokens["input_ids"]], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, dict(tokenizer.pad({key: [tokens[key][i] for i in rows] for key in tokens}, return_tensors="pt"))


def _read_images(images: list[Image.Image], processor: Any) -> dict[str, Tensor]:
    reader = getattr(processor, "image_processor", processor)
    return dict(reader(images=[image.convert("RGB") for image in images], return_tensors="pt"))


def _read_sounds(sounds: list[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
    reader = getattr(processor, "feature_extractor", processor)
    rates = {sound["sampling_rate"] for sound in sounds}
    if rates != {reader.sampling_rate}:
        raise SampleError(
            f"The sounds have {', '.join(map(str, sorted(rates)))} samples a second, the encoder reads "
            f"{reader.sampling_rate}. Resample them first: dataset.cast_column(name, Audio(sampling_rate=...))."
        )
    arrays = [np.asarray(sound["array"], dtype=np.float32) for sound in sounds]
    padding = "max_length" if hasattr(reader, "n_samples") else True  # Whisper reads one fixed length
    return dict(reader(arrays, sampling_rate=reader.sampling_rate, return_tensors="pt", padding=padding))


def _tokenize(texts: Sequence[str], tokenizer: Any, max_length: int | None) -> Mapping[str, list[list[int]]]:
    if tokenizer.pad_token is None:
        raise SampleError(
            f"{type(tokenizer).__name__} has no padding token, so texts of different length cannot share a batch. "
            "Set one first, for example tokenizer.pad_token = tokenizer.eos_token."
        )
    limit = max_length or min(tokenizer.model_max_length, 1_000_000)
    tokens = tokenizer(list(texts), truncation=True, max_length=limit)
    full = sum(len(ids) >= limit for ids in tokens["input_ids"])
    if full:
        logger.warning_once(f"{full} of {len(texts)} texts fill all {limit} tokens and may have been truncated.")
    return {key: value for key, value in tokens.items() if key in tokenizer.model_input_names}


def to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same inputs on another device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}
