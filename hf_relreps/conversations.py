"""A conversation as a sample: a list of messages, which the chat template of a tokenizer turns into one text.

A template is a Jinja program. transformers runs it in a sandbox, where it reaches neither files nor Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_relreps.errors import SampleError
from hf_relreps.words import refuse_half_pairs


ROLES = ("system", "developer", "user", "assistant", "tool")
FIELDS = ("role", "content")  # of a message
# By these names a template writes the tokens that a tokenizer would add.
NAMED_TOKENS = re.compile(r"\b(bos|eos|cls|sep)_token\b")
EXAMPLE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}"


def is_conversation(sample: Any) -> bool:
    """Whether a sample is meant as a conversation: a list, and not one of words."""
    return isinstance(sample, list) and not (sample and all(isinstance(word, str) for word in sample))


def check_conversation(messages: Any, name: str) -> None:
    """Raise `SampleError` unless each message has a known role and a text, and one of them says something.

    Args:
        messages: The conversation.
        name: What to call it in errors.
    """
    if not messages:
        raise SampleError(f"{name} is a conversation without messages, expected at least one. Drop that row.")
    for i, message in enumerate(messages):
        _check_message(message, f"{name}[{i}]")
    if not any(message["content"].strip() for message in messages):
        raise SampleError(f"{name} is a conversation in which nobody says anything. Drop or fill that row.")


def _check_message(message: Any, name: str) -> None:
    if not isinstance(message, Mapping):
        raise SampleError(
            f"{name} is {message!r:.60} ({type(message).__name__}), expected a message of a conversation: "
            '{"role": "user", "content": "Hello"}.'
        )
    missing = [field for field in FIELDS if message.get(field) is None]
    if missing:
        raise SampleError(
            f"{name} has {', '.join(map(str, message)) or 'nothing'}, expected a message with {' and '.join(FIELDS)}; "
            f"{missing[0]} is missing. Rename the keys, or fill the message or leave it out."
        )
    if message["role"] not in ROLES:
        raise SampleError(
            f"{name} has the role {message['role']!r:.60}, expected one of {', '.join(ROLES)}. Rename it."
        )
    if not isinstance(message["content"], str):
        raise SampleError(
            f"{name} has a {type(message['content']).__name__} as content, expected one text. Join its parts."
        )
    more = [key for key, value in message.items() if key not in FIELDS and value is not None]
    if more:
        raise SampleError(
            f"{name} also has {', '.join(map(str, more))}, which no encoder here reads. Write it into the content, or "
            "leave it out."
        )
    refuse_half_pairs(message["content"], name)


def plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A checked conversation with no more than role and content of each message."""
    return [{field: message[field] for field in FIELDS} for message in messages]


def in_one_line(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation for people: who says what."""
    return " / ".join(f"{message['role']}: {message['content']}" for message in messages)


def texts_of(conversations: Sequence[Sequence[Mapping[str, Any]]], processor: Any) -> list[str]:
    """The text that a chat template makes of each conversation, as an encoder reads it.

    Tokenize it with ``add_special_tokens=False`` where the template writes the special tokens itself: most do.

    Args:
        conversations: Lists of messages ``{"role":, "content":}``.
        processor: A tokenizer with a chat template, or what holds one.

    Raises:
        SampleError: If there is no template, it refuses a conversation, or a conversation is none.

    Example:
        ```python
        >>> from hf_relreps.conversations import texts_of
        >>> from hf_relreps.demos.tiny import word_tokenizer
        >>> tokenizer = word_tokenizer(["Hello"])
        >>> tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
        >>> texts_of([[{"role": "user", "content": "Hello"}]], tokenizer)
        ['<user> Hello']

        ```
    """
    tokenizer, template = _tokenizer(processor), template_of(processor)
    texts = []
    for i, messages in enumerate(conversations):
        check_conversation(messages, f"samples[{i}]")
        try:
            text = tokenizer.apply_chat_template(plain(messages), chat_template=template, tokenize=False)
        except MemoryError:
            raise
        except Exception as error:  # a template may come from anywhere, and fail in any way
            raise SampleError(
                f"The chat template of {type(tokenizer).__name__} refuses samples[{i}], "
                f"{in_one_line(messages)!r:.60}: {error}. Change the conversation as it asks, or set another "
                "template: tokenizer.chat_template = ..."
            ) from error
        if not text.strip():
            raise SampleError(
                f"The chat template of {type(tokenizer).__name__} makes an empty text of samples[{i}], "
                f"{in_one_line(messages)!r:.60}. Set another template: tokenizer.chat_template = ..."
            )
        texts.append(text)
    return texts


def template_of(processor: Any) -> str:
    """The chat template of a tokenizer, or of the processor that holds it.

    Raises:
        SampleError: If there is none, or several without a default.
    """
    tokenizer = _tokenizer(processor)
    found = getattr(tokenizer, "chat_template", None) or getattr(processor, "chat_template", None)
    if isinstance(found, Mapping):
        found = found.get("default")
    if not isinstance(found, str):
        raise SampleError(
            f"The samples are conversations, and {type(tokenizer).__name__} has no chat template that makes texts of "
            f'them. Load the tokenizer of a chat model, or set one: tokenizer.chat_template = "{EXAMPLE}".'
        )
    return found


def special_tokens(processor: Any) -> dict[str, bool]:
    """What to tell a tokenizer of a conversation's text: whether to add the special tokens, or the template has them.

    Example:
        ```python
        >>> from hf_relreps.conversations import special_tokens
        >>> from hf_relreps.demos.tiny import word_tokenizer
        >>> tokenizer = word_tokenizer(["Hello"])
        >>> tokenizer.chat_template = "[CLS]{% for m in messages %}{{ m.content }}{{ sep_token }}{% endfor %}"
        >>> special_tokens(tokenizer)
        {'add_special_tokens': False}

        ```
    """
    template, tokenizer = template_of(processor), _tokenizer(processor)
    writes = NAMED_TOKENS.search(template) or any(token in template for token in tokenizer.all_special_tokens)
    return {"add_special_tokens": not writes}


def tokenize(
    conversations: Sequence[Sequence[Mapping[str, Any]]], processor: Any, max_length: int | None = None
) -> dict[str, Any]:
    """Tokens of conversations as `Trainer` takes them, the same that an encoder gets of its anchors.

    Args:
        conversations: Lists of messages.
        processor: An encoder's own is ``model.processor``.
        max_length: Longest text in tokens; the tokenizer's own limit if left out.

    Raises:
        SampleError: As `texts_of`.

    Example:
        ```python
        >>> from hf_relreps.conversations import tokenize
        >>> from hf_relreps.demos.tiny import word_tokenizer
        >>> tokenizer = word_tokenizer(["user Hello"])
        >>> tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
        >>> tokenize([[{"role": "user", "content": "Hello"}]], tokenizer)["input_ids"]
        [[6, 5]]

        ```
    """
    texts, tokenizer = texts_of(conversations, processor), _tokenizer(processor)
    return dict(tokenizer(texts, truncation=True, max_length=max_length, **special_tokens(processor)))


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)
