"""What a ``tokenizer.json`` may hold: steps that are known, none of which blows a text up, patterns in linear time.

The tokenizer itself is code in Rust that Python cannot interrupt or bound: what it is given is read here before.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from hf_relreps.errors import UploadError
from hf_relreps.sentencepiece_files import (
    LARGEST,
    MOST_GROWTH,
    Unknown,
    growth_of_charsmap,
    growth_of_model,
    refuse_long_pieces,
    refuse_many_splits,
)


MOST_STEPS = 64
MOST_ADDED = 64  # tokens that a step adds to each text
MOST_PREPENDED = 50_000  # characters that all normalizers together put before a text: prompts may be long
MOST_INPUT_CHARS = 256  # of a word that WordPiece looks at, 100 or 200 in known ones: time grows with the square
MOST_OF_ADDED = 1 << 22  # characters of all added tokens, as the normalizers make them
UNICODE_GROWTH = 18  # of one character, in the forms NFKC and NFKD
# Each makes some characters longer, again and again where there are several: tokenizers have two of them at most.
GROWING, USUAL_GROWING = {"ByteLevel", "Metaspace", "BertNormalizer"}, 2
LENGTHENING = ("Precompiled", "Replace", "ByteLevel")  # beyond the forms of Unicode
MOST_COUNTED = 10_000  # added tokens that are looked for in a text: Gemma has 6,000

# One character of a pattern: a class, a property, an escape or a letter. It and a branch are read in one way only
# (atomic groups): a pattern of 300 characters that can be read in several would keep this check itself busy for ever.
_ONE = (
    r"(?>\\[pP]\{\^?\w{1,30}\}|\\[sSdDwWrntv]|\\u[0-9A-Fa-f]{4}|\\x\{?[0-9A-Fa-f]{2,6}\}?|\\[^\w\s]"
    r"|[^\\\[\](){}|*+?^$]|\[\^?(?>\\[pP]\{\^?\w{1,30}\}|\\.|[^\]\\&]|&(?!&))++\])"
)
_WORDS = r"(?:\(\?(?:i)?:(?:['’]?\w{1,4}(?:\|['’]?\w{1,4}|\|)*+)\))"  # (?i:'s|'t|'re) and its like
_BOUNDED = rf"(?:{_WORDS}\??|{_ONE}(?:\?|\{{[0-9]{{1,2}}(?:,[0-9]{{1,2}})?\}})?+)"
_ENDLESS = rf"(?:{_ONE}(?:[*+]|\{{[0-9]{{1,2}},\}})\+?)"
# A run behind which a step may fail is read again from each of its places, which takes the square of its length,
# unless the next branch matches the whole of it. So these are read only with that branch, as in known tokenizers.
_CAPITALS, _SMALL = r"\[\\p\{Lu\}\\p\{Lt\}\\p\{Lm\}\\p\{Lo\}\\p\{M\}\]", r"\[\\p\{Ll\}\\p\{Lm\}\\p\{Lo\}\\p\{M\}\]"
_CASED = (
    rf"{_CAPITALS}\*{_SMALL}\+(?:{_WORDS}\?)?"
    rf"\|(?:\[\^\\r\\n\\p\{{L\}}\\p\{{N\}}\]\?)?{_CAPITALS}\+(?:{_SMALL}\*)?"
)
_NEW_LINES = r"\\s\*\[\\r\\n\]\+\|\\s\+(?:\(\?!\\S\))?"
_KNOWN_RUNS = rf"(?:{_CASED}|{_NEW_LINES}|\\s\+\(\?!\\S\))"  # of the last all but one are matched
_OPEN_END = rf"(?:{_ONE}(?:\*|\{{0,\}})\+?)"
# Bounded steps, then an endless run at the end, after which nothing can fail: so no run is ever taken back.
_RUN = rf"(?:{_KNOWN_RUNS}|{_ENDLESS}(?:{_OPEN_END})?)(?:{_WORDS}\?)?"
_BRANCH = rf"(?>\^?(?:{_BOUNDED}){{0,40}}(?:{_RUN})?(?=\||\Z))"
LINEAR = re.compile(rf"{_BRANCH}(?:\|{_BRANCH})*+")
MOST_WAYS = 64  # in which the steps of a branch can match one place: each is tried where what follows fails
KNOWN_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"  # of BLOOM: a class inside a class

PLAIN = {"type"}
NORMALIZERS: dict[str, set[str]] = {
    "BertNormalizer": {"clean_text", "handle_chinese_chars", "strip_accents", "lowercase"},
    **{name: set() for name in ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "ByteLevel")},
    "Strip": {"strip_left", "strip_right"},
    "Prepend": {"prepend"},
    "Replace": {"pattern", "content"},
    "Precompiled": {"precompiled_charsmap"},
    "Sequence": {"normalizers"},
}
PRE_TOKENIZERS: dict[str, set[str]] = {
    **{name: set() for name in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts")},
    "ByteLevel": {"add_prefix_space", "trim_offsets", "use_regex"},
    "Metaspace": {"replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"},
    "Punctuation": {"behavior"},
    "Digits": {"individual_digits"},
    "CharDelimiterSplit": {"delimiter"},
    "Split": {"pattern", "behavior", "invert"},
    "FixedLength": {"length"},
    "Sequence": {"pretokenizers"},
}
POST_PROCESSORS: dict[str, set[str]] = {
    "BertProcessing": {"sep", "cls"},
    "RobertaProcessing": {"sep", "cls", "trim_offsets", "add_prefix_space"},
    "ByteLevel": {"add_prefix_space", "trim_offsets", "use_regex"},
    "TemplateProcessing": {"single", "pair", "special_tokens"},
    "Sequence": {"processors"},
}
DECODERS = {
    *("BPEDecoder", "ByteLevel", "WordPiece", "Metaspace", "CTC", "Sequence", "Replace", "Fuse", "Strip"),
    "ByteFallback",
}
MODELS: dict[str, set[str]] = {
    "WordLevel": {"vocab", "unk_token"},
    "WordPiece": {"vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"},
    "BPE": {
        *("vocab", "merges", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk"),
        *("byte_fallback", "ignore_merges"),
    },
    "Unigram": {"vocab", "unk_id", "byte_fallback"},
}
SECTIONS = {
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"),
    "model",
}


def refuse_unknown_tokenizer(content: Any, where: str, beside: Iterable[Any] = ()) -> None:
    """Refuse the content of a ``tokenizer.json`` with steps that are not known, or that cost more than their text.

    Args:
        content: What it holds.
        where: What to call it in errors.
        beside: What the other files of the tokenizer hold, whose added tokens it gets as well.

    Raises:
        UploadError: With the step, and what was expected.
    """
    try:
        if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
            raise Unknown("it has no model, expected a saved tokenizer")
        _expect_fields("tokenizer", content, SECTIONS)
        _check_normalizers(content.get("normalizer"))
        _check_pre_tokenizers(content.get("pre_tokenizer"))
        _check_repeats(content)
        _check_post_processors(content.get("post_processor"))
        for step in _steps(content.get("decoder"), "decoders"):
            _expect_type(step, DECODERS, "decoder")
        _check_model(content["model"])
        for name in ("truncation", "padding"):
            _check_numbers(name, content.get(name))
        for token in content.get("added_tokens") or ():
            _check_numbers("added_tokens", {"id": token.get("id")})
        _check_added(content, beside)
    except Unknown as reason:
        raise UploadError(
            f"{where}: {reason}. If you trust it, load the tokenizer yourself and pass it: from_encoder(model, view, "
            "tokenizer), or model.processor = tokenizer."
        ) from None
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise UploadError(f"{where} is not a valid saved tokenizer: {error!r:.100}. Pull it again.") from error


def _check_normalizers(section: Any) -> None:
    steps = list(_steps(section, "normalizers"))
    for step in steps:
        _expect(step, NORMALIZERS, "normalizer")
    for growth, prepended in _expanded(steps, lambda step: _GROWTHS.get(step["type"], lambda _: 1.0)(step)):
        if growth > MOST_GROWTH:
            raise Unknown(f"its normalizers can make a text {growth:.3g} times longer; the limit is {MOST_GROWTH}")
        if prepended > MOST_PREPENDED:
            raise Unknown(f"it puts {prepended:.0f} characters before each text; the limit is {MOST_PREPENDED}")


def _expanded(
    steps: Iterable[Mapping[str, Any]], growth_of_step: Callable[[Mapping[str, Any]], float]
) -> Iterator[tuple[float, float]]:
    """After each step: how many times longer a text can be, and how many characters stand before it."""
    growth, prepended = 1.0, 0.0
    for step in steps:
        times = growth_of_step(step)
        growth, prepended = times * growth, times * prepended + len(step.get("prepend", ""))
        yield growth, prepended


def _check_pre_tokenizers(section: Any) -> None:
    for step in _steps(section, "pretokenizers"):
        _expect(step, PRE_TOKENIZERS, "pre-tokenizer")
        if step["type"] == "Split":
            _shortest_match(step["pattern"])
        if step["type"] == "Metaspace":
            _expect_short("replacement", step.get("replacement", "▁"), 1)


def _check_repeats(content: Mapping[str, Any]) -> None:
    growth = _growth_of_repeats(content.get("normalizer"), content.get("pre_tokenizer"))
    if growth > MOST_GROWTH:
        raise Unknown(
            f"it has so many steps of type {', '.join(sorted(GROWING))} that they can make a text {growth:.3g} times "
            f"longer; the limit is {MOST_GROWTH}"
        )


def _check_post_processors(section: Any) -> None:
    added = 0
    for step in _steps(section, "processors"):
        _expect(step, POST_PROCESSORS, "post-processor")
        for name in ("single", "pair"):
            added += _count_of_template(name, step.get(name) or (), step.get("special_tokens") or {})
    if added > MOST_ADDED:
        raise Unknown(f"its post-processor adds {added} tokens to each text; the limit is {MOST_ADDED}")


def _count_of_template(name: str, pieces: Any, special: Mapping[str, Any]) -> int:
    texts = [piece["Sequence"]["id"] for piece in pieces if "Sequence" in piece]
    if len(set(texts)) != len(texts):
        raise Unknown(f"its template {name!r} repeats the text")
    tokens = [piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece]
    return sum(len(special[token]["ids"]) if token in special else 1 for token in tokens)


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type")
    if kind is None:  # of older files
        kind = next((name for name, fields in MODELS.items() if set(model) - PLAIN <= fields), None)
    if kind not in MODELS:
        raise Unknown(f"its model is of type {kind!r:.60}, expected one of {', '.join(MODELS)}")
    _expect_fields("model", model, MODELS[kind] | PLAIN)
    if model.get("max_input_chars_per_word", 0) > MOST_INPUT_CHARS:
        raise Unknown(
            f"max_input_chars_per_word={model['max_input_chars_per_word']} is more than {MOST_INPUT_CHARS}, and time "
            "grows with its square"
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        _expect_short(name, model.get(name) or "", MOST_ADDED)
    _check_numbers("model", {"unk_id": model.get("unk_id")})
    pieces = model.get("vocab") or ()
    if not isinstance(pieces, Mapping):
        refuse_long_pieces(piece for piece, *_ in pieces)
    elif not model.get("merges"):
        refuse_many_splits(map(len, pieces))


def _check_added(content: Mapping[str, Any], beside: Iterable[Any]) -> None:
    """Refuse added tokens that are long, or that become so: some are normalized as the tokenizer is made."""
    added = {token for part in (content.get("added_tokens"), *beside) for token in _added_in(part)}
    steps = list(_steps(content.get("normalizer"), "normalizers"))
    times = math.prod(_GROWTHS[step["type"]](step) for step in steps if step["type"] in LENGTHENING)
    before = sum(len(step.get("prepend", "")) for step in steps)
    characters = sum(
        times * (before + len(_decomposed(token))) if is_normalized else len(token) for token, is_normalized in added
    )
    if characters > MOST_OF_ADDED:
        raise Unknown(
            f"it makes {characters:.0f} characters of its {len(added)} added tokens; the limit is {MOST_OF_ADDED}"
        )


def _decomposed(text: str) -> str:
    """The longest of the forms of Unicode."""
    return text if text.isascii() else unicodedata.normalize("NFKD", text)


def _added_in(content: Any) -> Iterator[tuple[str, bool]]:
    """What a file of a tokenizer may add to its tokens, and whether that is normalized.

    Plain texts are special tokens, which are not; the keys of ``added_tokens.json``, which have numbers, are.
    """
    if isinstance(content, str):
        yield content, False
    elif isinstance(content, list):
        for part in content:
            yield from _added_in(part)
    elif isinstance(content, Mapping) and isinstance(content.get("content"), str):
        yield content["content"], bool(content.get("normalized", True))
    elif isinstance(content, Mapping):
        for name, part in content.items():
            if name == "chat_template":
                continue
            yield from _added_in(part)
            if type(part) is int:  # a switch is none
                yield str(name), True


def _steps(section: Any, inside: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a section in their order, those inside of sequences too."""
    waiting, count = [] if section is None else [section], 0
    while waiting:
        step = waiting.pop(0)
        count += 1
        if count > MOST_STEPS:
            raise Unknown(f"it has more than {MOST_STEPS} {inside}")
        waiting[:0] = step.get(inside) or () if step.get("type") == "Sequence" else ()
        yield step


def _expect(step: Mapping[str, Any], known: Mapping[str, set[str]], what: str) -> None:
    _expect_type(step, known, what)
    _expect_fields(step["type"], step, known[step["type"]] | PLAIN)


def _expect_type(step: Mapping[str, Any], known: Any, what: str) -> None:
    if step.get("type") not in known:
        raise Unknown(f"it has a {what} of type {step.get('type')!r:.60}, expected one of {', '.join(sorted(known))}")


def _expect_fields(what: str, found: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise Unknown(f"its {what} has a field {unknown[0]!r:.60}, expected {', '.join(sorted(known))}")


def _expect_short(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise Unknown(f"{name} has {len(text)} characters; the limit is {most}")


def _check_numbers(where: str, found: Any) -> None:
    values = found.values() if isinstance(found, Mapping) else [found]
    for value in values:
        if isinstance(value, Mapping):
            _check_numbers(where, value)
        elif isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
            raise Unknown(f"{where} contains the number {value}; the limit is {LARGEST}")


def _growth_of_replace(step: Mapping[str, Any]) -> float:
    shortest = _shortest_match(step["pattern"])
    if shortest == 0:
        raise Unknown(f"it replaces a pattern that matches the empty text: {step['pattern']!r:.80}")
    return max(1.0, len(step["content"]) / shortest)


def _growth_of_precompiled(step: Mapping[str, Any]) -> float:
    try:
        blob = base64.b64decode(step["precompiled_charsmap"] or "", validate=True)
    except (binascii.Error, TypeError) as error:
        raise Unknown(f"its precompiled_charsmap is not valid base64: {error}") from error
    return growth_of_charsmap(blob)


_GROWTHS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "Replace": _growth_of_replace,
    "Precompiled": _growth_of_precompiled,
    "NFKC": lambda _: float(UNICODE_GROWTH),
    "NFKD": lambda _: float(UNICODE_GROWTH),
    "ByteLevel": lambda _: 2.0,
}


def _shortest_match(pattern: Mapping[str, Any]) -> int:
    """How many characters a pattern matches at least; refuses one whose time may grow faster than its text."""
    if "String" in pattern:
        return len(pattern["String"])
    text = pattern["Regex"]
    if text == KNOWN_PATTERN:
        return 1
    if len(text) > 2_000 or not LINEAR.fullmatch(text) or _most_ways(text) > MOST_WAYS:
        raise Unknown(f"it has the pattern {text!r:.80}, which may take more than linear time")
    try:
        can_be_empty = re.fullmatch(re.sub(r"\\[pP]\{[^}]*\}", "x", text), "") is not None
    except re.error:
        can_be_empty = True
    return 0 if can_be_empty else 1


def _most_ways(text: str) -> int | float:
    """In how many ways the bounded steps of a branch can match one place, of the branch with the most."""
    plain = re.sub(r"\[\^?(?:\\.|[^\]\\])*\]|\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\.", "x", text)
    plain = re.sub(r"\(\?(?:i:|:|!)", "(", plain)
    branches = re.sub(r"\(([^()]*)\)", _as_step, plain).split("|")
    return max(math.prod(map(_ways, _STEP.findall(branch))) for branch in branches)


_STEP = re.compile(r"\?|\{(\d+),(\d+)\}")


def _as_step(group: re.Match[str]) -> str:
    """A group of words as one step with as many ways as it has words."""
    return f"x{{1,{group[1].count('|') + 1}}}"


def _ways(bounds: tuple[str, str]) -> int | float:
    least, most = map(int, bounds) if bounds[0] else (0, 1)
    return most - least + 1 if least <= most else math.inf  # the other way round it has a meaning of its own


def _growth_of_repeats(normalizer: Any, pre_tokenizer: Any) -> float:
    """How many times longer steps make a text that repeat what one of them has done already."""
    steps = [*_steps(normalizer, "normalizers"), *_steps(pre_tokenizer, "pretokenizers")]
    return 2.0 ** max(0, sum(step.get("type") in GROWING for step in steps) - USUAL_GROWING)


class Expansion(NamedTuple):
    """What a tokenizer can make of a text, beyond what usual ones do."""

    growth: float = 1.0  # how many times longer, beyond what forms of Unicode do to it
    prepended: float = 0.0  # characters before each piece; 0 where they are as few as those of usual tokenizers
    added: Mapping[str, Sequence[str]] = MappingProxyType({})  # by first character: tokens that cut a text into pieces

    def prepended_to(self, text: str) -> float:
        """How many characters are put into a text: before it, and again after each added token in it."""
        if not self.prepended:
            return 0.0
        there = [token for first in {*text} for token in self.added.get(first, ())]
        pieces = len(text) if len(there) > MOST_COUNTED else sum(map(text.count, there))
        return self.prepended * (1 + pieces)


def expansion_of(tokenizer: Any) -> Expansion:
    """What a tokenizer can make of a text: measured again when its steps or tokens have changed."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    try:
        steps = [_state(getattr(backend, name, None)) for name in ("normalizer", "pre_tokenizer")]
        state = (*steps, None if backend is None else backend.get_vocab_size())
        if _KNOWN.get(tokenizer, (None,))[0] != state:
            _KNOWN[tokenizer] = state, _measured(tokenizer)
        return _KNOWN[tokenizer][1]
    except Exception:  # steps of the user's own: those of uploads are known
        return Expansion()


def _state(step: Any) -> bytes | None:
    return None if step is None else step.__getstate__()


def _measured(tokenizer: Any) -> Expansion:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    slow: Any = getattr(tokenizer, "sp_model", None)
    if backend is None and slow is not None:
        return Expansion(max(1.0, growth_of_model(slow.serialized_model_proto()) / UNICODE_GROWTH))
    states = [_state(getattr(backend, name, None)) for name in ("normalizer", "pre_tokenizer")]
    normalizer, pre_tokenizer = (None if state is None else json.loads(state) for state in states)
    *_, (growth, prepended) = (1.0, 0.0), *_expanded(_steps(normalizer, "normalizers"), _more_than_usual)
    growth *= _growth_of_repeats(normalizer, pre_tokenizer)
    if prepended <= UNICODE_GROWTH:
        return Expansion(growth)
    added: dict[str, list[str]] = {}
    for token in filter(None, map(str, backend.get_added_tokens_decoder().values())):
        added.setdefault(token[0], []).append(token)
    return Expansion(growth, prepended, added)


def _more_than_usual(step: Mapping[str, Any]) -> float:
    if step["type"] == "Precompiled":
        return max(1.0, _growth_of_precompiled(step) / UNICODE_GROWTH)
    return _growth_of_replace(step) if step["type"] == "Replace" else 1.0


_KNOWN: WeakKeyDictionary[Any, tuple[Any, Expansion]] = WeakKeyDictionary()  # the state that it was measured in
