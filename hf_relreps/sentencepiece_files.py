"""What a SentencePiece model (``spiece.model``, ``tokenizer.model``, ...) may hold.

transformers converts such a file, or hands it to a library in C++, where an upload has no ``tokenizer.json``; slow
tokenizers always read it. So it is read here before, by the layout of protocol buffers: a message is a list of fields,
each with a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from hf_relreps.errors import UploadError


LARGEST = 2_000_000  # tokens
MOST_GROWTH = 400  # how many times longer all normalizers together may make a text
# Of one piece of a Unigram vocabulary, usually 16 at most: each place of a text is compared with pieces to their ends,
# and tokenizers frees the tree of them by recursion, which ends the process at a million.
MOST_OF_PIECE = 128
# Over all tokens of a vocabulary without merges, which transformers then makes of all ways to split each of them.
MOST_SPLITS = 1 << 26
# All names under which tokenizers of transformers look for a SentencePiece model or a vocabulary of tiktoken.
VOCABULARY_FILES = (
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "spm.model", "sentencepiece.model"),
    *("spm_char.model", "source.spm", "target.spm", "tiktoken.model"),
)
TEKKEN_FILE = "tekken.json"  # Mistral's vocabulary
RANKED = re.compile(rb"(?:[A-Za-z0-9+/=]++ [0-9]{1,9}\r?\n?)++")  # tokens as tiktoken has them: no model begins so
PIECES, TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER = 1, 2, 3, 4, 5  # fields of the model
PIECE, CHARSMAP = 1, 2  # of one of its pieces, and of a normalizer
SPECIAL_PIECES = (45, 46, 47, 48)  # of the trainer: the pieces of unknown words, of begin and end, and of padding
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # types of fields


class Unknown(Exception):
    """What is not known, in words."""


def refuse_unknown_vocabulary(content: bytes, where: str) -> None:
    """Refuse a SentencePiece model, or a vocabulary of tiktoken, that costs more than its text, and what is neither.

    Raises:
        UploadError: With what was found, and what was expected.
    """
    try:
        if RANKED.fullmatch(content):
            refuse_many_splits(map(len, content.splitlines()))
        else:
            _check_model(content)
    except (Unknown, ValueError, IndexError) as reason:
        raise _refusal(reason, where) from None


def _check_model(content: bytes) -> None:
    pieces, place = _plain_pieces(content)
    for number, value in _fields(content, place):
        if number not in (PIECES, TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER):
            raise Unknown(f"it has a field with the number {number}, expected a SentencePiece model")
        if number == PIECES:
            pieces.append(_piece(value))
        elif number == TRAINER:
            refuse_long_pieces(_text(text) for kind, text in _fields(value) if kind in SPECIAL_PIECES)
        elif number in (NORMALIZER, DENORMALIZER):
            _check_charsmaps(value)
    if not 0 < len(pieces) <= LARGEST:
        raise Unknown(f"it has {len(pieces)} pieces, expected 1 to {LARGEST}")
    refuse_long_pieces(pieces)
    refuse_many_splits(map(len, pieces))


def refuse_unknown_tekken(content: Any, where: str) -> None:
    """Refuse a vocabulary as Mistral has it (the content of its JSON) of very long tokens; nothing, if there is none.

    Raises:
        UploadError: With what was found, and what was expected.
    """
    try:
        refuse_many_splits(len(token["token_bytes"]) for token in (content or {"vocab": ()})["vocab"])
    except (Unknown, LookupError, TypeError) as reason:
        raise _refusal(reason, where) from None


def growth_of_model(content: bytes) -> float:
    """How many times longer the normalizer of a SentencePiece model can make a text."""
    maps = [blob for number, value in _fields(content) if number == NORMALIZER for blob in _charsmaps(value)]
    return max(map(growth_of_charsmap, maps), default=1.0)


def growth_of_charsmap(blob: bytes) -> float:
    """How many times longer a text can become, by SentencePiece's own layout.

    That is the length of a trie, the trie, then the texts that it leads to.

    Raises:
        Unknown: If it is of another layout.
    """
    if not blob:
        return 1.0
    length = int.from_bytes(blob[:4], "little")
    if len(blob) < 4 or length % 4 or 4 + length > len(blob):
        raise Unknown(
            f"its precompiled_charsmap says that its trie has {length} bytes, and has {len(blob)} bytes itself"
        )
    longest = max(len(text.decode("utf-8", "replace")) for text in blob[4 + length :].split(b"\0"))
    return float(max(1, longest))


def refuse_long_pieces(pieces: Iterable[str]) -> None:
    """Refuse pieces of a Unigram vocabulary that are longer than any has."""
    longest = max(map(len, pieces), default=0)
    if longest > MOST_OF_PIECE:
        raise Unknown(f"a piece of its vocabulary has {longest} characters; the limit is {MOST_OF_PIECE}")


def refuse_many_splits(lengths: Iterable[int]) -> None:
    """Refuse a vocabulary of long tokens for which transformers makes merges: of all ways to split them."""
    splits = sum(length**2 for length in lengths)
    if splits > MOST_SPLITS:
        raise Unknown(
            f"it has no merges, and to split its tokens in all ways makes {splits} characters; the limit is "
            f"{MOST_SPLITS}"
        )


def _refusal(reason: Exception, where: str) -> UploadError:
    return UploadError(
        f"{where}: {reason}. If you trust it, load the tokenizer yourself and pass it: from_encoder(model, view, "
        "tokenizer), or model.processor = tokenizer."
    )


def _check_charsmaps(normalizer: bytes) -> None:
    for blob in _charsmaps(normalizer):
        growth = growth_of_charsmap(blob)
        if growth > MOST_GROWTH:
            raise Unknown(f"its normalizer can make a text {growth:.3g} times longer; the limit is {MOST_GROWTH}")


def _charsmaps(normalizer: bytes) -> list[bytes]:
    return [value for number, value in _fields(normalizer) if number == CHARSMAP]


def _plain_pieces(model: bytes) -> tuple[list[str], int]:
    """The pieces that a model begins with, as they are written: a text, its score and its type. Where the rest begins.

    There are hundreds of thousands of them, so they are not read field by field.
    """
    pieces, place, end = [], 0, len(model) - 2
    while place < end and model[place] == 0x0A and model[place + 1] < 128 and model[place + 2] == 0x0A:
        behind = place + 2 + model[place + 1]
        text = place + 4 + model[place + 3]
        rest = model[text:behind]  # a score of four bytes behind 0x15, a type of one behind 0x18
        if model[place + 3] > 127 or behind > len(model) or len(rest) not in (5, 7) or rest[0] != 0x15:
            break
        if len(rest) == 7 and not (rest[5] == 0x18 and rest[6] < 128):
            break
        pieces.append(model[place + 4 : text].decode("utf-8", "replace"))
        place = behind
    return pieces, place


def _piece(message: bytes) -> str:
    """The text of a piece: the last, if it has several."""
    return _text([b"", *(value for number, value in _fields(message) if number == PIECE)][-1])


def _text(value: Any) -> str:
    if not isinstance(value, bytes):
        raise Unknown("a text is a number, expected a SentencePiece model")
    return value.decode("utf-8", "replace")


def _fields(message: Any, place: int = 0) -> Iterator[tuple[int, Any]]:
    """Number and value of each field from a place on; those of a fixed length have none that counts here.

    Raises:
        Unknown: If it is no message, or is cut off.
    """
    if not isinstance(message, bytes):
        raise Unknown("a field holds a number, expected a message")
    end = len(message)
    while place < end:
        key, place = _varint(message, place)
        value: Any = None
        if key & 7 == VARINT:
            value, place = _varint(message, place)
        elif key & 7 == BYTES:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        elif key & 7 in (EIGHT_BYTES, FOUR_BYTES):
            place += 8 if key & 7 == EIGHT_BYTES else 4
        else:
            raise Unknown(f"it has a field of type {key & 7}, expected a SentencePiece model")
        if place > end:
            raise Unknown("it is cut off")
        yield key >> 3, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number at a place, of seven bits in each byte, and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise Unknown("it is cut off")
        byte = message[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise Unknown("it has a number of more than ten bytes, expected a SentencePiece model")
