"""Prompts: the text that some encoders want before every text, such as "query: " for e5.

The tokenizer adds it, as the first step of its own backend. So there is one place for anchors, samples, rows of the
`Trainer`, pipelines and exported models, it is saved with the tokenizer, and whoever loads that needs nothing of this
library. The raw samples, their digests and the fingerprint of the anchors stay as they are.
"""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer, Prepend, Sequence
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from hf_relreps.errors import ConfigurationError, UploadError
from hf_relreps.sources import Source


logger = logging.get_logger(__name__)

SENTENCE_TRANSFORMERS_FILE = "config_sentence_transformers.json"
WORD_START = "▁"  # what tokenizers like Llama's prepend themselves
# Beginnings of texts: tokens of a prompt may merge with what follows it.
PROBES = ("a text", "Text, again", "12 texts", "(a text)", '"a text"', ": text", "- text", "été", "中文", " text")


def prompt_of(processor: Any) -> str | None:
    """The text that a tokenizer adds before every text; ``None`` if it adds none."""
    backend = _backend(_tokenizer(processor))
    return None if backend is None else _split(backend.normalizer)[0]


def with_prompt(processor: Any, prompt: str | None) -> Any:
    """A processor whose tokenizer adds `prompt` before every text, in place of what it adds now; itself if it does.

    Args:
        processor: A tokenizer, or what holds one; it stays as it is.
        prompt: ``None`` or an empty text for none.

    Raises:
        ConfigurationError: If the tokenizer cannot add it.
    """
    tokenizer = _tokenizer(processor)
    if (prompt or None) == prompt_of(processor):
        return processor
    prompted = _prompted(tokenizer, prompt or None)
    if tokenizer is processor:
        return prompted
    holder = copy.copy(processor)
    holder.tokenizer = prompted
    return holder


def ids_of_prompt(processor: Any) -> list[int] | None:
    """The tokens of a prompt that are the same whatever text follows; ``None`` if there are none."""
    if prompt_of(processor) is None:
        return None
    rows = _tokenizer(processor)(list(PROBES), add_special_tokens=False)["input_ids"]
    same = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        same += 1
    return rows[0][:same] or None


def find_prompt(source: Source) -> str | None:
    """The default prompt in the sentence-transformers files of an encoder; ``None`` if they name none.

    Where there are prompts and none is the default, a warning names them: which one suits, only the user knows.
    """
    try:
        content = source.json(SENTENCE_TRANSFORMERS_FILE) or {}
    except UploadError as error:
        logger.warning_once(
            f"Could not read whether {source} needs a prompt, so none is used: {error} Set it with prompt=..., or "
            "prompt='' for none."
        )
        return None
    if content.get("model_type", "SentenceTransformer") != "SentenceTransformer":  # a reranker's are of other use
        return None
    prompts = _texts_by_name(content.get("prompts"))
    name = content.get("default_prompt_name")
    if isinstance(name, str) and name in prompts:
        return prompts[name] or None
    wanted = {name: text for name, text in prompts.items() if text}
    if wanted:
        named = ", ".join(f"{name} {text!r:.60}" for name, text in list(wanted.items())[:10])
        logger.warning_once(
            f"{source} was trained with prompts but names no default, so none is used: {named}. Choose one with "
            f"prompt={next(iter(wanted.values()))!r:.60}, or none with prompt=''."
        )
    return None


def _texts_by_name(found: Any) -> dict[str, str]:
    items = found.items() if isinstance(found, dict) else ()
    return {name: text or "" for name, text in items if isinstance(text, str | None)}


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def _backend(tokenizer: Any) -> Tokenizer | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend if isinstance(backend, Tokenizer) else None


def _split(normalizer: Normalizer | None) -> tuple[str | None, Normalizer | None]:
    """The prompt that a backend begins with, and what it does to a text after that."""
    steps: list[Any] = [normalizer]
    if isinstance(normalizer, Sequence):
        steps = [normalizer[i] for i in range(len(normalizer))]
    first, rest = steps[0] if steps else None, steps[1:]
    if not isinstance(first, Prepend) or first.prepend == WORD_START:
        return None, normalizer
    return first.prepend, (rest[0] if rest else None) if len(rest) < 2 else Sequence(rest)


def _prompted(tokenizer: Any, prompt: str | None) -> Any:
    """A copy that adds another prompt."""
    backend = _backend(tokenizer)
    if backend is None:
        raise ConfigurationError(
            f"prompt={prompt!r:.60} is added by the tokenizer, which must be a fast one, and "
            f"{type(tokenizer).__name__} is not. Load a fast tokenizer, or write the prompt into the anchors and into "
            "every text yourself and give prompt=''."
        )
    prompted = copy.deepcopy(tokenizer)
    own = prompted.backend_tokenizer
    _, rest = _split(own.normalizer)
    own.normalizer = rest if rest is not None else Sequence([])
    written = None if prompt is None else prompted([prompt + probe for probe in PROBES])["input_ids"]
    if prompt is not None:
        own.normalizer = Sequence([Prepend(prompt), *([] if rest is None else [rest])])
    # Classes of one architecture make their backend anew when they are loaded, and would forget the prompt.
    for name in ("model_input_names", "padding_side", "truncation_side"):
        prompted.init_kwargs[name] = getattr(tokenizer, name)
    prompted.__class__ = PreTrainedTokenizerFast
    if written is not None and prompted(list(PROBES))["input_ids"] != written:
        raise ConfigurationError(
            f"prompt={prompt!r:.60} cannot be added by {type(tokenizer).__name__}: the tokens differ from those of a "
            "text that begins with the prompt (special tokens in a prompt do this). Write the prompt into the anchors "
            "and into every text yourself and give prompt=''."
        )
    return prompted
