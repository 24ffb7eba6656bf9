"""Raw samples (texts, images, sounds, nodes): what identifies them, and how they become batches for an encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_relreps.errors import ConfigurationError, RelrepsError, SampleError


logger = logging.get_logger(__name__)

# What a sample of each modality is; a sound as `datasets` decodes it: {"array": floats, "sampling_rate": hertz}.
# A node is its number in the graph.
SAMPLE_TYPES: dict[str, type] = {"text": str, "image": Image.Image, "audio": Mapping, "node": Integral}
SIDES = ("height", "width")
MOST_PIXELS = 100_000_000
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow clips these to 8 bits without a word


def unformatted(dataset: Any, name: str = "dataset") -> Any:
    """A `datasets.Dataset` as one that gives texts, pictures and numbers, whatever format it is set to.

    A transform of the user's own stays. What is no data set of that library comes back as it is.

    Raises:
        SampleError: If it is a dict of splits, or streamed.
    """
    splits = list(dataset) if isinstance(dataset, Mapping) else []
    if splits and hasattr(dataset[splits[0]], "column_names"):
        raise SampleError(
            f"{name} holds splits ({type(dataset).__name__}: {', '.join(map(repr, splits))}), expected one data set. "
            f"Choose one: {name}[{splits[0]!r}]."
        )
    if hasattr(dataset, "column_names") and not hasattr(dataset, "__len__"):
        raise SampleError(
            f"{name} is streamed ({type(dataset).__name__}): it has neither a length nor row numbers. Load it without "
            "streaming=True, or keep its first rows: Dataset.from_list(list(dataset.take(5000)), "
            "features=dataset.features)."
        )
    form = getattr(dataset, "format", None)
    if not isinstance(form, Mapping) or form["type"] == "custom":
        return dataset
    is_plain = form["type"] is None and set(form["columns"]) == set(dataset.column_names)
    return dataset if is_plain else dataset.with_format(None)


def check_samples(samples: Sequence[Any], name: str, rows: Sequence[int] | None = None) -> str:
    """The modality of `samples`, which must all be non-empty texts, all images, or all sounds.

    Args:
        samples: N samples.
        name: What to call them in errors.
        rows: Where each of them lies in what the user knows by that name; counted from zero if left out.

    Raises:
        SampleError: Naming the first sample that cannot be encoded and its position.
    """
    if isinstance(samples, str):
        raise SampleError(f"{name} is the text {samples!r:.60}, expected a list of samples. For one text give [text].")
    if len(samples) == 0:
        raise SampleError(f"{name} holds no samples. Expected a list of texts, images or sounds.")
    modality = next((m for m, kind in SAMPLE_TYPES.items() if isinstance(samples[0], kind)), "text")
    for i, sample in zip(range(len(samples)) if rows is None else rows, samples, strict=True):
        if not isinstance(sample, SAMPLE_TYPES[modality]):
            raise SampleError(
                f"{name}[{i}] is {sample!r:.60} ({type(sample).__name__}), expected {modality} like every other "
                "sample. Drop such rows, or convert the column, before choosing samples."
            )
        _CHECKS[modality](sample, f"{name}[{i}]")
    return modality


def _check_text(text: str, name: str) -> None:
    if not text.strip():
        raise SampleError(f"{name} is an empty text, expected at least one character. Drop or fill that row.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(
            f"{name} is {text!r:.60}, which holds half of a surrogate pair: no file and no tokenizer takes it. "
            "Replace such characters: text.encode('utf-8', 'replace').decode()."
        ) from error


def _check_image(image: Image.Image, name: str) -> None:
    if image.mode in DEEP_MODES:
        raise SampleError(
            f"{name} is an image of mode {image.mode!r}, expected 8 bits a channel: what is brighter would be cut "
            "off. Scale its values to 0 ... 255 and convert it to 'L' or 'RGB'."
        )


def _check_sound(sound: Mapping[str, Any], name: str) -> None:
    if {"bytes", "path"} <= set(sound):
        raise SampleError(
            f"{name} is a file that was not decoded, expected an image or a sound. Let the data set decode it: "
            "dataset.cast_column(column, Image()), or Audio()."
        )
    if len(sound) > 1 and all(isinstance(text, str) for text in sound.values()):
        raise SampleError(
            f"{name} is a mapping with {', '.join(map(str, sound))}, expected one text. Give each text a "
            "column of its own: dataset.flatten() makes of 'translation' the columns 'translation.en', ..."
        )
    if not {"array", "sampling_rate"} <= set(sound):
        raise SampleError(
            f"{name} is a mapping with {', '.join(map(str, sound)) or 'nothing'}, expected a sound: "
            '{"array": samples in [-1, 1], "sampling_rate": hertz}.'
        )
    if np.ndim(sound["array"]) != 1 or len(sound["array"]) == 0:
        raise SampleError(f"{name} has shape {np.shape(sound['array'])}, expected one channel with one value or more.")


def _check_node(node: Any, name: str) -> None:
    if isinstance(node, bool) or node < 0:
        raise SampleError(f"{name} is {node!r}, expected the number of a node, counted from 0.")


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "text": _check_text,
    "image": _check_image,
    "audio": _check_sound,
    "node": _check_node,
}


def digest_of_samples(samples: Sequence[Any]) -> str:
    """SHA-256 (64 hex digits) over the content and order of texts, images, sounds or nodes."""
    sha = hashlib.sha256()
    for sample in samples:
        content = _content(sample)
        sha.update(len(content).to_bytes(8, "big"))  # so that ["ab", "c"] is not ["a", "bc"]
        sha.update(content)
    return sha.hexdigest()


def _content(sample: Any) -> bytes:
    if isinstance(sample, str):
        return sample.encode()
    if isinstance(sample, Mapping):
        return f"{sample['sampling_rate']} ".encode() + np.asarray(sample["array"], dtype="<f4").tobytes()
    if isinstance(sample, Integral):
        return str(sample).encode()
    return f"{sample.mode} {sample.size} ".encode() + sample.tobytes()


def digest_of_vocabulary(processor: Any) -> str | None:
    """SHA-256 (64 hex digits) of a tokenizer's vocabulary; ``None`` for other processors."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "get_vocab"):
        return None
    words = json.dumps(tokenizer.get_vocab(), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(words.encode()).hexdigest()


def batches(
    samples: Sequence[Any], processor: Any, batch_size: int, max_length: int | None = None, padding: bool = True
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Batches of model inputs with the positions of their samples, longest texts first.

    Texts of like length share a batch, so that padding costs little, and the first batch is the largest: what does
    not fit into memory fails at once.

    Args:
        samples: N texts, images, sounds or nodes.
        processor: A tokenizer for texts, an image processor for images, a feature extractor for sounds, a
            `GraphReader` for nodes.
        batch_size: Samples in a batch.
        max_length: Longest text in tokens; longer ones are truncated, with one warning that counts them.
        padding: Whether texts or sounds of unlike length may share a batch.

    Yields:
        Positions (B,) in `samples`, and the inputs of the encoder by name.

    Raises:
        SampleError: If a sample cannot be encoded, or the tokenizer makes no token of it or cannot pad.
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size} must be at least 1 sample.")
    modality = check_samples(samples, "samples")
    if modality == "node":  # the encoder sees the whole graph anyway
        yield np.arange(len(samples)), dict(processor(nodes=list(samples), return_tensors="pt"))
        return
    if modality != "text":
        read = _read_images if modality == "image" else _read_sounds
        at_once = padding or modality == "image"
        together = [np.arange(len(samples))] if at_once else _of_one_length([length(sample) for sample in samples])
        for rows in _parts(together, batch_size):
            yield rows, read([samples[i] for i in rows], processor)
        return
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = _tokenize(samples, tokenizer, max_length)
    together = _of_one_length([len(ids) for ids in tokens["input_ids"]])
    filled = _fixed_length(tokenizer, max_length)
    for rows in _parts([np.concatenate(together)] if padding or filled else together, batch_size):
        chosen = {key: [tokens[key][i] for i in rows] for key in tokens}
        with _explaining(tokenizer):
            padded = dict(tokenizer.pad(chosen, return_tensors="pt", **filled))
        yield rows, padded


def length(sample: Any) -> int:
    """Characters of a text, values of a sound; images and nodes have none."""
    return len(sample) if isinstance(sample, str) else len(sample["array"]) if isinstance(sample, Mapping) else 0


def longer(sample: Any, times: int) -> Any:
    """A text several times in a row, or a sound and a bit more."""
    if isinstance(sample, str):
        return " ".join([sample] * times)
    array = np.asarray(sample["array"])
    return {**sample, "array": np.resize(array, len(array) * times + len(array) // 3 + 7)}


def _of_one_length(lengths: Sequence[int]) -> list[np.ndarray]:
    """Positions of samples of the same length, the longest first."""
    order = np.argsort([-n for n in lengths], kind="stable")
    return np.split(order, np.flatnonzero(np.diff(np.asarray(lengths)[order])) + 1)


def _parts(together: Sequence[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    for rows in together:
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def _fixed_length(tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    """How to pad for encoders that see the padding (SigLIP): to the one length that they were trained with."""
    limit = max_length or tokenizer.model_max_length
    sees_padding = "attention_mask" not in tokenizer.model_input_names and limit < 1_000_000
    return {"padding": "max_length", "max_length": limit} if sees_padding else {}


def _read_images(images: list[Image.Image], processor: Any) -> dict[str, Tensor]:
    reader = getattr(processor, "image_processor", processor)
    with _explaining(reader):
        _refuse_immense_size(reader)
        return _tensors(reader(images=[image.convert("RGB") for image in images], return_tensors="pt"))


def _read_sounds(sounds: list[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
    reader = getattr(processor, "feature_extractor", processor)
    rates = {sound["sampling_rate"] for sound in sounds}
    if rates != {reader.sampling_rate}:
        raise SampleError(
            f"The sounds have {', '.join(map(str, sorted(rates)))} samples a second, the encoder reads "
            f"{reader.sampling_rate}. Resample them first: dataset.cast_column(name, Audio(sampling_rate=...))."
        )
    arrays = [np.asarray(sound["array"], dtype=np.float32) for sound in sounds]
    how: dict[str, Any] = {"padding": True}
    if hasattr(reader, "n_samples"):  # Whisper reads one fixed length; the mask says where there is sound
        how = {"padding": "max_length", "return_attention_mask": True}
        _warn_of_cut_sounds(arrays, reader)
    with _explaining(reader):
        inputs = _tensors(reader(arrays, sampling_rate=reader.sampling_rate, return_tensors="pt", **how))
    if "return_attention_mask" in how and "attention_mask" in inputs:
        inputs["input_features_mask"] = inputs.pop("attention_mask")  # for the few of these encoders that read it
    return inputs


@contextmanager
def _explaining(reader: Any) -> Iterator[None]:
    """Settings of a processor come from outside and may be of any type: it then fails in any way."""
    try:
        yield
    except (RelrepsError, MemoryError):
        raise
    except Exception as error:
        raise SampleError(
            f"{type(reader).__name__} cannot read these samples: {type(error).__name__}: {error}. Look at its "
            "settings, or give the processor that the encoder was trained with."
        ) from error


def _refuse_immense_size(reader: Any) -> None:
    """Raise `SampleError` if an image processor would blow every image up to gigabytes."""
    for box in (getattr(reader, name, None) for name in ("size", "crop_size", "pad_size")):
        height, width = (box.get(side) if isinstance(box, Mapping) else getattr(box, side, None) for side in SIDES)
        if isinstance(height, int) and isinstance(width, int) and height * width > MOST_PIXELS:
            raise SampleError(
                f"{type(reader).__name__} would make every image {height} x {width} pixels; at most {MOST_PIXELS} are "
                "read. Give the processor that the encoder was trained with."
            )


def _warn_of_cut_sounds(arrays: list[np.ndarray], reader: Any) -> None:
    cut = sum(len(array) > reader.n_samples for array in arrays)
    if cut:
        logger.warning_once(
            f"{cut} of {len(arrays)} sounds are longer than {reader.n_samples / reader.sampling_rate:g} s, which is "
            "all that the encoder reads: they were truncated."
        )


def _tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def _tokenize(texts: Sequence[str], tokenizer: Any, max_length: int | None) -> Mapping[str, list[list[int]]]:
    if tokenizer.pad_token is None:
        raise SampleError(
            f"{type(tokenizer).__name__} has no padding token, so texts of different length cannot share a batch. "
            "Set one first, for example tokenizer.pad_token = tokenizer.eos_token."
        )
    limit = max_length or min(tokenizer.model_max_length, 1_000_000)
    with _explaining(tokenizer):
        tokens = tokenizer(list(texts), truncation=True, max_length=limit)
    if "input_ids" not in tokens or "input_ids" not in tokenizer.model_input_names:
        raise SampleError(
            f"{type(tokenizer).__name__} gives {', '.join(tokens)} and says that models read "
            f"{tokenizer.model_input_names}; expected input_ids in both. Load the encoder's own tokenizer."
        )
    for i, ids in enumerate(tokens["input_ids"]):
        if not ids:
            raise SampleError(
                f"samples[{i}] is {texts[i]!r:.60}, of which {type(tokenizer).__name__} makes no token. "
                "Drop or fill that row, or let the tokenizer add special tokens."
            )
    _warn_of_truncation(tokens, limit)
    return {key: value for key, value in tokens.items() if key in tokenizer.model_input_names}


def _warn_of_truncation(tokens: Any, limit: int) -> None:
    """Count the texts that lost tokens; without a fast tokenizer those that fill the limit, which may have."""
    if tokens.encodings:
        cut = sum(bool(encoding.overflowing) for encoding in tokens.encodings)
        says = "are longer than {} tokens: they were truncated, and what follows is not seen by the encoder."
    else:
        cut = sum(len(ids) >= limit for ids in tokens["input_ids"])
        says = "fill all {} tokens: those that are longer were truncated."
    if cut:
        logger.warning_once(f"{cut} of {len(tokens['input_ids'])} texts {says.format(limit)}")


def to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same inputs on another device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}
