"""Raw samples (texts, images): what they are, what identifies them, and how they become batches for an encoder."""

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

MODALITIES = ("text", "image")


def check_samples(samples: Sequence[Any], name: str) -> str:
    """The modality of `samples`, which must all be non-empty texts or all be images.

    Raises:
        SampleError: Naming the first sample that cannot be encoded and its position.
    """
    if len(samples) == 0:
        raise SampleError(f"{name} holds no samples. Expected a list of texts or images.")
    modality = "image" if isinstance(samples[0], Image.Image) else "text"
    for i, sample in enumerate(samples):
        if modality == "image" and not isinstance(sample, Image.Image):
            raise SampleError(f"{name}[{i}] is a {type(sample).__name__}, expected an image like the first sample.")
        if modality == "text" and not isinstance(sample, str):
            raise SampleError(
                f"{name}[{i}] is {sample!r} ({type(sample).__name__}), expected a text. "
                "Drop rows without a text, or convert the column to strings, before choosing samples."
            )
        if modality == "text" and not sample.strip():
            raise SampleError(f"{name}[{i}] is an empty text, expected at least one character. Drop or fill that row.")
    return modality


def digest(samples: Sequence[Any]) -> str:
    """SHA-256 (64 hex digits) over the content and order of texts or images."""
    sha = hashlib.sha256()
    for sample in samples:
        content = _content(sample)
        sha.update(len(content).to_bytes(8, "big"))  # so that ["ab", "c"] is not ["a", "bc"]
        sha.update(content)
    return sha.hexdigest()


def _content(sample: Any) -> bytes:
    if isinstance(sample, str):
        return sample.encode("utf-8", errors="surrogatepass")
    return f"{sample.mode} {sample.size} ".encode() + sample.tobytes()


def batches(
    samples: Sequence[Any], processor: Any, batch_size: int, max_length: int | None = None
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Batches of model inputs with the positions of their samples, longest texts first.

    Texts of like length share a batch, so that padding costs little, and the first batch is the largest: what does
    not fit into memory fails at once.

    Args:
        samples: N texts or images.
        processor: A tokenizer for texts, an image processor for images.
        batch_size: Samples in a batch.
        max_length: Longest text in tokens; longer ones are truncated, with one warning that counts them.

    Yields:
        Positions (B,) in `samples`, and the inputs of the encoder by name.
    """
    if check_samples(samples, "samples") == "image":
        for start in range(0, len(samples), batch_size):
            rows = np.arange(start, min(start + batch_size, len(samples)))
            yield rows, dict(processor(images=[samples[i].convert("RGB") for i in rows], return_tensors="pt"))
        return
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = _tokenize(samples, tokenizer, max_length)
    order = np.argsort([-len(ids) for ids in tokens["input_ids"]], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, dict(tokenizer.pad({key: [tokens[key][i] for i in rows] for key in tokens}, return_tensors="pt"))


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
