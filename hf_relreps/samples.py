"""Raw samples (texts, pairs, words, conversations, images, ...): what identifies them, how they become batches."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_relreps.conversations import check_conversation, is_conversation, plain, special_tokens, texts_of
from hf_relreps.errors import ConfigurationError, RelrepsError, SampleError
from hf_relreps.pairs import FIELDS, is_pair
from hf_relreps.tokenizer_files import expansion_of
from hf_relreps.words import Word, encodings_of, pieces_of, refuse_half_pairs


logger = logging.get_logger(__name__)
TOLD_OF_TRUNCATION: WeakKeyDictionary[Any, set[int]] = WeakKeyDictionary()  # tokenizer -> its limits

# What a sample of each modality is; a sound as `datasets` decodes it: {"array": floats, "sampling_rate": hertz}.
# A pair of texts is {"text": ..., "text_pair": ...}. A node is its number in the graph.
# A conversation is a list of messages. The type of the others says what they are.
SAMPLE_TYPES: dict[str, type] = {"text": str, "word": Word, "image": Image.Image, "node": Integral}
SPANS = "word_spans"  # among the inputs of a batch of words: sentence, first token and the one after the last (n, 3)
SIDES = ("height", "width")
MOST_PIXELS = 1 << 24  # of one image that an encoder reads: 200 MB as float32
MOST_TIMES_PADDED = 4  # the pixels of an image, where it has more of its own
PIXELS_AT_ONCE, VALUES_AT_ONCE = 1 << 24, 1 << 25  # of the images and of the sounds of one batch, as they are read
LONGEST_FIXED = 8_192  # tokens that each text is padded to where an encoder sees its padding
# Of one text, more than any encoder reads, and of those that are tokenized together: tokens take hundreds of bytes
# each before they are cut off.
MOST_CHARACTERS, CHARACTERS_AT_ONCE = 1_000_000, 1 << 18
CHARACTERS_OF_TOKEN = 16  # on average, at most: a prompt of more than that is cut off, and the text behind it
COUNTS_PIXELS = 1_000_000  # a longest_edge from here on counts an image's pixels (Qwen)
MOST_TILES = 64  # of one image
PANIC = "PanicException"  # what Rust's panics are called in Python, where they are no Exception
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow clips these to 8 bits without a word


def unformatted(dataset: Any, name: str = "dataset") -> Any:
    """A `datasets.Dataset` as one that gives texts, pictures and numbers, whatever format it is set to.

    A transform of the user's own stays. A DataFrame of pandas or polars becomes a dataset, without its index. What is
    neither comes back as it is.

    Raises:
        SampleError: If it is a dict of splits, or streamed, or a DataFrame that cannot become a dataset.
    """
    dataset = _of_frame(dataset, name)
    splits = list(dataset) if isinstance(dataset, Mapping) else []
    if splits and hasattr(dataset[splits[0]], "column_names"):
        raise SampleError(
            f"{name} has several splits ({type(dataset).__name__}: {', '.join(map(repr, splits))}), expected one "
            f"dataset. Choose a split: {name}[{splits[0]!r}]."
        )
    if hasattr(dataset, "column_names") and not hasattr(dataset, "__len__"):
        raise SampleError(
            f"{name} is streamed ({type(dataset).__name__}): a streamed dataset has no length and no row numbers. "
            "Load it without streaming=True, or keep its first rows: Dataset.from_list(list(dataset.take(5000)), "
            "features=dataset.features)."
        )
    form = getattr(dataset, "format", None)
    if not isinstance(form, Mapping) or form["type"] == "custom":
        return dataset
    is_plain = form["type"] is None and set(form["columns"]) == set(dataset.column_names)
    return dataset if is_plain else dataset.with_format(None)


def _of_frame(frame: Any, name: str) -> Any:
    library = type(frame).__module__.partition(".")[0]
    if type(frame).__name__ != "DataFrame" or library not in ("pandas", "polars"):
        return frame
    from datasets import Dataset

    try:
        return Dataset.from_polars(frame) if library == "polars" else Dataset.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise SampleError(
            f"{name} is a DataFrame that cannot become a dataset: {str(error).rstrip('.')}. Drop or convert that "
            f"column, until Dataset.from_{library}(frame) works."
        ) from error


def as_list(samples: Any, name: str = "samples") -> list[Any]:
    """The samples of a list, a column, an array or a generator in their order.

    A pandas Series is read by its order, not by its index, which may differ after a sort or a filter.

    Raises:
        SampleError: If it is one text, a mapping, or holds no samples at all.
    """
    if isinstance(samples, str | bytes):
        raise SampleError(
            f"{name} is the string {samples!r:.60}, expected a list of samples. For one text pass [text]."
        )
    if isinstance(samples, list):
        return samples
    if isinstance(samples, Mapping | Word | Image.Image) or not hasattr(samples, "__iter__"):
        raise SampleError(
            f"{name} is {samples!r:.60} ({type(samples).__name__}), expected a list of samples. For one sample pass "
            "[sample]."
        )
    return list(samples)


def check_samples(samples: Sequence[Any], name: str, rows: Sequence[int] | None = None) -> str:
    """The modality of `samples`, which must all be non-empty texts, all pairs, all words, all conversations, ...

    Args:
        samples: N samples.
        name: What to call them in errors.
        rows: Where each of them lies in what the user knows by that name; counted from zero if left out.

    Raises:
        SampleError: Naming the first sample that cannot be encoded and its position.
    """
    samples = as_list(samples, name)
    if not samples:
        raise SampleError(f"{name} is empty. Expected a list of texts, images or sounds.")
    modality = _modality_of(samples[0]) or "text"
    for i, sample in zip(range(len(samples)) if rows is None else rows, samples, strict=True):
        if _modality_of(sample) != modality:
            raise SampleError(
                f"{name}[{i}] is {sample!r:.60} ({type(sample).__name__}), expected {modality} like every other "
                f"sample. {_advice(sample)}"
            )
        _CHECKS[modality](sample, f"{name}[{i}]")
    return modality


def read_as(modality: str) -> str:
    """What an encoder has to read for samples of a modality: that, and for conversations text."""
    return "text" if modality == "conversation" else modality


def require_modality(found: str, modality: str, where: str) -> None:
    """Raise `SampleError` if the samples in a column, of the modality `found`, are not what an encoder reads."""
    if read_as(found) != modality:
        raise SampleError(
            f"{where} holds {'numbers' if found == 'node' else found}, the encoder reads {modality}. Name the column "
            "that it reads."
        )


def _modality_of(sample: Any) -> str | None:
    if isinstance(sample, Mapping):
        return "pair" if is_pair(sample) else "audio"
    if isinstance(sample, list):
        return "conversation" if is_conversation(sample) else None
    return next((modality for modality, kind in SAMPLE_TYPES.items() if isinstance(sample, kind)), None)


def _advice(sample: Any) -> str:
    if isinstance(sample, tuple) and len(sample) == len(FIELDS):
        return 'Two texts are one sample as {"text": first, "text_pair": second}: hf_relreps.pairs.pairs_of.'
    if isinstance(sample, list | tuple) and sample and all(isinstance(word, str) for word in sample):
        return "Of sentences as lists of words make samples with hf_relreps.words.words_of, or join them to texts."
    return "Drop such rows, or convert the column, before choosing samples."


def _check_text(text: str, name: str) -> None:
    if not text.strip():
        raise SampleError(f"{name} is an empty text, expected at least one character. Drop or fill that row.")
    refuse_half_pairs(text, name)


def _check_pair(pair: Mapping[str, Any], name: str) -> None:
    if set(pair) != set(FIELDS):
        raise SampleError(
            f"{name} is a mapping with {', '.join(map(str, pair))}, expected two texts, {' and '.join(FIELDS)}, and "
            "nothing else. Give both, or a plain text where there is one."
        )
    for field in FIELDS:
        if not isinstance(pair[field], str):
            raise SampleError(
                f"{name}[{field!r}] is {pair[field]!r:.60} ({type(pair[field]).__name__}), expected a text. Drop that "
                "pair, or fill it."
            )
        _check_text(pair[field], f"{name}[{field!r}]")


def _check_word(word: Word, name: str) -> None:
    """Nothing: a word was checked when it was made."""


def _check_image(image: Image.Image, name: str) -> None:
    if image.mode in DEEP_MODES:
        raise SampleError(
            f"{name} is an image of mode {image.mode!r}, expected 8 bits for each channel. Scale its values to 0 ... "
            "255 and convert it to 'L' or 'RGB'."
        )


def _check_sound(sound: Mapping[str, Any], name: str) -> None:
    if {"bytes", "path"} <= set(sound):
        raise SampleError(
            f"{name} is a file that was not decoded, expected an image or a sound. Let the dataset decode it: "
            "dataset.cast_column(column, Image()), or Audio()."
        )
    if {"role", "content"} <= set(sound):
        raise SampleError(
            f"{name} is one message ({sound['role']!r:.60}), expected a conversation: a list of messages. For one "
            "conversation pass [messages]."
        )
    if len(sound) > 1 and all(isinstance(text, str) for text in sound.values()):
        raise SampleError(
            f"{name} is a mapping with {', '.join(map(str, sound))}, expected one text. Put each text in its own "
            "column: dataset.flatten() turns 'translation' into 'translation.en', ..."
        )
    if not {"array", "sampling_rate"} <= set(sound):
        raise SampleError(
            f"{name} is a mapping with {', '.join(map(str, sound)) or 'nothing'}, expected a sound: "
            '{"array": samples in [-1, 1], "sampling_rate": hertz}.'
        )
    if np.ndim(sound["array"]) != 1 or len(sound["array"]) == 0:
        raise SampleError(
            f"{name} has shape {np.shape(sound['array'])}, expected one channel with at least one value."
        )


def _check_node(node: Any, name: str) -> None:
    if isinstance(node, bool) or node < 0:
        raise SampleError(f"{name} is {node!r}, expected the number of a node, counted from 0.")


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "text": _check_text,
    "pair": _check_pair,
    "word": _check_word,
    "image": _check_image,
    "audio": _check_sound,
    "node": _check_node,
    "conversation": check_conversation,
}


def digest_of_samples(samples: Sequence[Any]) -> str:
    """SHA-256 (64 hex digits) over the content and order of texts, pairs, words, conversations, images, ..."""
    sha = hashlib.sha256()
    for sample in samples:
        content = _content(sample)
        sha.update(len(content).to_bytes(8, "big"))  # so that ["ab", "c"] is not ["a", "bc"]
        sha.update(content)
    return sha.hexdigest()


def _content(sample: Any) -> bytes:
    if isinstance(sample, str):
        return sample.encode()
    if isinstance(sample, Word):
        return json.dumps([sample.position, *sample.words], ensure_ascii=False).encode()
    if is_pair(sample):
        return json.dumps([sample[field] for field in FIELDS], ensure_ascii=False).encode()
    if isinstance(sample, list):
        return json.dumps([list(message.values()) for message in plain(sample)], ensure_ascii=False).encode()
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
        samples: N texts, pairs of texts, words, conversations, images, sounds or nodes.
        processor: A tokenizer for texts, pairs and words, with a chat template for conversations; an image processor
            for images, a feature extractor for sounds, a `GraphReader` for nodes.
        batch_size: Samples in a batch; of words sentences, each of which is read once for all of its words.
        max_length: Longest text in tokens; longer ones are truncated, with one warning for each tokenizer.
        padding: Whether texts or sounds of unlike length may share a batch.

    Yields:
        Positions (B,) in `samples`, and the inputs of the encoder by name; of words with their tokens as `SPANS`.

    Raises:
        SampleError: If a sample cannot be encoded, or the tokenizer makes no token of it or cannot pad.
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size} must be at least 1 sample.")
    samples = as_list(samples)
    modality = check_samples(samples, "samples")
    if modality == "node":  # the encoder sees the whole graph anyway
        yield np.arange(len(samples)), dict(processor(nodes=list(samples), return_tensors="pt"))
        return
    if modality == "word":
        yield from _batches_of_words(samples, processor, batch_size, max_length, padding)
        return
    if modality not in ("text", "pair", "conversation"):
        read = _read_images if modality == "image" else _read_sounds
        batch_size = min(batch_size, _most_at_once(samples, modality, processor))
        at_once = padding or modality == "image"
        together = [np.arange(len(samples))] if at_once else _of_one_length([length(sample) for sample in samples])
        for rows in _parts(together, batch_size):
            yield rows, read([samples[i] for i in rows], processor)
        return
    tokenizer = getattr(processor, "tokenizer", processor)
    how = {}
    if modality == "conversation":
        samples, how = texts_of(samples, processor), special_tokens(processor)
    tokens = _tokenize_in_parts(samples, tokenizer, max_length, **how)
    yield from _padded(tokens, tokenizer, batch_size, max_length, padding)


def _padded(
    tokens: Mapping[str, list[list[int]]], tokenizer: Any, batch_size: int, max_length: int | None, padding: bool
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Texts of like length together: their positions, and their tokens."""
    tokens = {key: value for key, value in tokens.items() if key in tokenizer.model_input_names}
    together = _of_one_length([len(ids) for ids in tokens["input_ids"]])
    filled = _fixed_length(tokenizer, max_length)
    for rows in _parts([np.concatenate(together)] if padding or filled else together, batch_size):
        chosen = {key: [tokens[key][i] for i in rows] for key in tokens}
        with explaining(tokenizer):
            padded = dict(tokenizer.pad(chosen, return_tensors="pt", **filled))
        yield rows, padded


def _batches_of_words(
    samples: Sequence[Word], processor: Any, batch_size: int, max_length: int | None, padding: bool
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Sentences in batches, each with the words of it that are asked for and where their pieces lie."""
    tokenizer = getattr(processor, "tokenizer", processor)
    of_sentence: dict[tuple[str, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        of_sentence.setdefault(sample.words, []).append(i)
    texts = [" ".join(words) for words in of_sentence]
    _made_of_each(texts, tokenizer, max_length)
    tokens = _tokenize(texts, tokenizer, max_length)
    asked = list(of_sentence.values())
    pieces = [
        pieces_of([samples[i] for i in rows], encoding, tokenizer)
        for rows, encoding in zip(asked, encodings_of(tokens, tokenizer), strict=True)
    ]
    for sentences, inputs in _padded(tokens, tokenizer, batch_size, max_length, padding):
        on_left = tokenizer.padding_side == "left"
        filled = [inputs["input_ids"].shape[1] - len(tokens["input_ids"][i]) if on_left else 0 for i in sentences]
        spans = [
            np.insert(pieces[i] + shift, 0, place, axis=1)
            for place, (i, shift) in enumerate(zip(sentences, filled, strict=True))
        ]
        rows = np.concatenate([asked[i] for i in sentences])
        yield rows, inputs | {SPANS: torch.from_numpy(np.concatenate(spans))}


def length(sample: Any) -> int:
    """Characters of a text, of both of a pair, of a conversation or a word's sentence; values of a sound; else 0."""
    if is_pair(sample):
        return sum(len(sample[field]) for field in FIELDS)
    if isinstance(sample, list):
        return sum(len(message["content"]) for message in sample)
    if isinstance(sample, Word):
        return sum(map(len, sample.words))
    return len(sample) if isinstance(sample, str) else len(sample["array"]) if isinstance(sample, Mapping) else 0


def longer(sample: Any, times: int) -> Any:
    """A text, each of a pair, each message or a word's sentence several times in a row, or a sound and a bit more."""
    if is_pair(sample):
        return {field: longer(sample[field], times) for field in FIELDS}
    if isinstance(sample, list):
        return [{**message, "content": longer(message["content"], times)} for message in sample]
    if isinstance(sample, Word):
        return Word(sample.words * times, sample.position)
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
    sees_padding = "attention_mask" not in tokenizer.model_input_names and limit <= LONGEST_FIXED
    return {"padding": "max_length", "max_length": limit} if sees_padding else {}


def _most_at_once(samples: Sequence[Any], modality: str, processor: Any) -> int:
    """How many images or sounds may be read at once, by what a processor makes of each: it comes from outside."""
    if modality == "image":
        reader = getattr(processor, "image_processor", processor)
        pixels = max([_canvas_of(reader, samples), *(math.prod(box) for box in _boxes(reader, _ratio_of(samples)))])
        return max(1, int(PIXELS_AT_ONCE / pixels))
    values = getattr(getattr(processor, "feature_extractor", processor), "n_samples", 1)
    return max(1, VALUES_AT_ONCE // max(1, values)) if isinstance(values, int) else 1


def _ratio_of(images: Sequence[Image.Image]) -> float:
    """Of the longer to the shorter side, where that is largest."""
    return max(max(image.size) / max(1, min(image.size)) for image in images)


def _canvas_of(reader: Any, images: Sequence[Image.Image]) -> int:
    """Pixels of a square that holds each of the images: what they may be padded to where they are not resized."""
    return 1 if getattr(reader, "do_resize", True) else max(max(image.size) for image in images) ** 2


def _read_images(images: list[Image.Image], processor: Any) -> dict[str, Tensor]:
    reader = getattr(processor, "image_processor", processor)
    with explaining(reader):
        _refuse_immense_size(reader, _ratio_of(images))
        _refuse_immense_canvas(reader, images)
        return _tensors(reader(images=[image.convert("RGB") for image in images], return_tensors="pt"))


def _read_sounds(sounds: list[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
    reader = getattr(processor, "feature_extractor", processor)
    rates = {sound["sampling_rate"] for sound in sounds}
    if any(rate != reader.sampling_rate for rate in rates):
        raise SampleError(
            f"The sounds have {', '.join(map(str, sorted(rates)))} samples per second, but the encoder reads "
            f"{reader.sampling_rate!r:.60}. Resample them first: dataset.cast_column(name, Audio(sampling_rate=...))."
        )
    arrays = [np.asarray(sound["array"], dtype=np.float32) for sound in sounds]
    how: dict[str, Any] = {"padding": True}
    if hasattr(reader, "n_samples"):  # Whisper reads one fixed length; the mask says where there is sound
        how = {"padding": "max_length", "return_attention_mask": True}
        _warn_of_cut_sounds(arrays, reader)
    with explaining(reader):
        inputs = _tensors(reader(arrays, sampling_rate=reader.sampling_rate, return_tensors="pt", **how))
    if "return_attention_mask" in how and "attention_mask" in inputs:
        inputs["input_features_mask"] = inputs.pop("attention_mask")  # for the few of these encoders that read it
    return inputs


@contextmanager
def explaining(reader: Any) -> Iterator[None]:
    """Settings of a processor come from outside and may be of any type: it then fails in any way.

    Raises:
        SampleError: If it does.
    """
    try:
        yield
    except (RelrepsError, MemoryError):
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise SampleError(
            f"{type(reader).__name__} cannot read these samples: {type(error).__name__}: {error}. Check its settings, "
            "or pass the processor that the encoder was trained with."
        ) from error


def is_failure(error: BaseException) -> bool:
    """Whether something went wrong, in Python or by a panic in Rust; the rest are interruptions."""
    return isinstance(error, Exception) or type(error).__name__ == PANIC


def _refuse_immense_size(reader: Any, ratio: float) -> None:
    """Raise `SampleError` if an image processor would blow images up to gigabytes.

    Args:
        reader: The image processor.
        ratio: Of the longer to the shorter side, where that is largest.
    """
    for height, width in _boxes(reader, ratio):
        if not height * width <= MOST_PIXELS:  # what is no number is refused too
            raise SampleError(
                f"{type(reader).__name__} would resize an image to {height:.0f} x {width:.0f} pixels; the limit is "
                f"{MOST_PIXELS}. Pass the processor that the encoder was trained with."
            )
    for name in ("max_patches", "max_image_tiles", "max_num_tiles"):
        usual, tiles = getattr(type(reader), name, None), getattr(reader, name, None)
        is_tiles = isinstance(usual, int) and usual <= MOST_TILES  # not patches of one image
        if is_tiles and isinstance(tiles, int | float) and not tiles <= MOST_TILES:
            raise SampleError(
                f"{type(reader).__name__} would cut an image into {name}={tiles} tiles; the limit is {MOST_TILES}. "
                "Pass the processor that the encoder was trained with."
            )


def _refuse_immense_canvas(reader: Any, images: Sequence[Image.Image]) -> None:
    """Raise `SampleError` if an image might be padded to a square of many times its own pixels."""
    canvas, own = _canvas_of(reader, images), max(math.prod(image.size) for image in images)
    if canvas > max(MOST_PIXELS, MOST_TIMES_PADDED * own):
        side = math.isqrt(canvas)
        raise SampleError(
            f"{type(reader).__name__} does not resize images and may pad one to {side} x {side} pixels; the limit is "
            f"{MOST_PIXELS}. Cut the image, or pass the processor that the encoder was trained with."
        )


def _boxes(reader: Any, ratio: float) -> list[tuple[float, float]]:
    """Height and width of what an image processor makes of images, where its settings tell."""
    usual = _edges(getattr(type(reader), "size", None))
    found = [
        _sides(getattr(reader, name, None), ratio, usual[3] if any(usual) else None)
        for name in ("size", "crop_size", "pad_size")
    ]
    return [sides for sides in found if all(isinstance(side, int | float) for side in sides)]


def _edges(box: Any) -> list[Any]:
    """Height, width, shortest and longest edge of a box."""
    names = (*SIDES, "shortest_edge", "longest_edge")
    return [box.get(name) if isinstance(box, Mapping) else getattr(box, name, None) for name in names]


def _sides(box: Any, ratio: float, usual: Any) -> tuple[Any, Any]:
    """Height and width of an image that is made to fit a box, whose longest edge is usually `usual`."""
    height, width, shortest, longest = _edges(box)
    if isinstance(height, int | float) and isinstance(width, int | float):
        return height, width
    usual = longest if usual is None else usual
    if isinstance(usual, int) and isinstance(longest, int | float) and usual >= COUNTS_PIXELS:
        return max(longest, shortest if isinstance(shortest, int | float) else 0), 1
    if not isinstance(shortest, int | float):
        return longest, longest
    return shortest, min(shortest * ratio, longest if isinstance(longest, int | float) else float("inf"))


def _warn_of_cut_sounds(arrays: list[np.ndarray], reader: Any) -> None:
    cut = sum(len(array) > reader.n_samples for array in arrays)
    if cut:
        logger.warning_once(
            f"{cut} of {len(arrays)} sounds are longer than {reader.n_samples / reader.sampling_rate:g} s, the most "
            "that the encoder reads: they were truncated."
        )


def _tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def _tokenize_in_parts(
    texts: Sequence[Any], tokenizer: Any, max_length: int | None, **how: Any
) -> dict[str, list[list[int]]]:
    """Tokens of any number of texts, of which only some have more than their ids at a time."""
    found: dict[str, list[list[int]]] = {}
    first, made = 0, _made_of_each(texts, tokenizer, max_length)
    while first < len(texts):
        last, characters = first + 1, made[first]
        while last < len(texts) and characters + made[last] <= CHARACTERS_AT_ONCE:
            characters += made[last]
            last += 1
        tokens = _tokenize(texts[first:last], tokenizer, max_length, first, **how)
        for name, rows in tokens.items():
            found.setdefault(name, []).extend(rows)
        first = last
    return found


def _tokenize(texts: Sequence[Any], tokenizer: Any, max_length: int | None, first: int = 0, **how: Any) -> Any:
    """Tokens of texts, or of pairs: of the longer of two texts more is cut off. The first is `samples[first]`."""
    if tokenizer.pad_token is None:
        raise SampleError(
            f"{type(tokenizer).__name__} has no padding token, so texts of different lengths cannot be batched. Set "
            "one first, for example tokenizer.pad_token = tokenizer.eos_token."
        )
    limit = _limit_of(tokenizer, max_length)
    with explaining(tokenizer):
        tokens = tokenizer(*_columns_of(texts), truncation=True, max_length=limit, **how)
    if "input_ids" not in tokens or "input_ids" not in tokenizer.model_input_names:
        raise SampleError(
            f"{type(tokenizer).__name__} gives {', '.join(tokens)} and its model_input_names are "
            f"{tokenizer.model_input_names}; expected input_ids in both. Load the encoder's own tokenizer."
        )
    for i, ids in enumerate(tokens["input_ids"], first):
        if not ids:
            raise SampleError(
                f"samples[{i}] is {texts[i - first]!r:.60}, of which {type(tokenizer).__name__} makes no tokens. Drop "
                "or fill that row, or let the tokenizer add special tokens."
            )
    if limit not in TOLD_OF_TRUNCATION.get(tokenizer, ()):
        _warn_of_truncation(tokens, limit, tokenizer)
    return tokens


def _made_of_each(texts: Sequence[Any], tokenizer: Any, max_length: int | None) -> list[float]:
    """How many characters a tokenizer may make of each text or pair before it cuts anything off.

    Raises:
        SampleError: If a text is longer than any encoder reads, or becomes so by what its tokenizer does; if what it
            puts before each text alone is longer than the encoder reads.
    """
    expansion, limit = expansion_of(tokenizer), _limit_of(tokenizer, max_length)
    made, growth = [], expansion.growth
    if expansion.prepended > CHARACTERS_OF_TOKEN * limit:
        raise SampleError(
            f"{type(tokenizer).__name__} puts {expansion.prepended:.0f} characters before each text, more than the "
            f"{limit} tokens that the encoder reads can hold; the limit is {CHARACTERS_OF_TOKEN * limit}. Pass the "
            "tokenizer that the encoder was trained with, or a shorter prompt."
        )
    for i, text in enumerate(texts):
        characters = length(text)
        if characters > int(MOST_CHARACTERS / growth):
            raise SampleError(
                f"samples[{i}] has {characters} characters, more than any encoder reads; the limit is "
                f"{int(MOST_CHARACTERS / growth)}. Cut it, or split it into several samples."
            )
        prepended = sum(expansion.prepended_to(part) for column in _columns_of([text]) for part in column)
        made.append(growth * characters + prepended)
        if made[-1] > MOST_CHARACTERS:
            raise SampleError(
                f"samples[{i}] has {characters} characters, into which {type(tokenizer).__name__} puts "
                f"{prepended:.0f} more; the limit is {MOST_CHARACTERS} in all. Cut it, or pass the tokenizer that the "
                "encoder was trained with."
            )
    return made


def _limit_of(tokenizer: Any, max_length: int | None) -> int:
    """Longest text in tokens."""
    return max_length or min(tokenizer.model_max_length, 1_000_000)


def _columns_of(texts: Sequence[Any]) -> list[list[str]]:
    """Texts as a tokenizer takes them: those of pairs in two lists."""
    return [[pair[field] for pair in texts] for field in FIELDS] if is_pair(texts[0]) else [list(texts)]


def _warn_of_truncation(tokens: Any, limit: int, tokenizer: Any) -> None:
    """Count the texts that lost tokens; without a fast tokenizer those that fill the limit, which may have.

    Once for each tokenizer: anchors are encoded again and again, a part at a time, each with a count of its own.
    """
    if tokens.encodings:
        cut = sum(bool(encoding.overflowing) for encoding in tokens.encodings)
        says = "are longer than {} tokens and were truncated: the encoder does not see the rest."
    else:
        cut = sum(len(ids) >= limit for ids in tokens["input_ids"])
        says = "fill all {} tokens: those that are longer were truncated."
    if cut:
        TOLD_OF_TRUNCATION.setdefault(tokenizer, set()).add(limit)
        logger.warning_once(f"{cut} of the first {len(tokens['input_ids'])} texts {says.format(limit)}")


def to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same inputs on another device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def may_read(inputs: Tensor, has_passed: bool = False) -> bool:
    """Whether a check may read the values of inputs: on an accelerator only until it has passed once.

    There it makes the host wait for the device. What is compiled must not depend on values at all.
    """
    return not torch.compiler.is_compiling() and (inputs.device.type == "cpu" or not has_passed)
