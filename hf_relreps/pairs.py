"""Two texts as one sample, as pipelines of transformers take them: ``{"text": ..., "text_pair": ...}``.

An encoder reads both at once, as its tokenizer joins them. So an anchor is a pair too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hf_relreps.errors import SampleError


FIELDS = ("text", "text_pair")  # of a pair, also in files


def pairs_of(texts: Sequence[str], text_pairs: Sequence[str]) -> list[dict[str, str]]:
    """Each text with that of the same number.

    Args:
        texts: First texts: premises, questions, ...
        text_pairs: As many second ones: hypotheses, answers, ...

    Raises:
        SampleError: If the numbers of texts differ.

    Example:
        ```python
        >>> from hf_relreps.pairs import pairs_of
        >>> pairs_of(["A man sleeps."], ["Nobody is awake."])
        [{'text': 'A man sleeps.', 'text_pair': 'Nobody is awake.'}]

        ```
    """
    for texts_given in (texts, text_pairs):
        if isinstance(texts_given, str):
            raise SampleError(f"Found the text {texts_given!r:.60}, expected a list of texts. For one pass [text].")
    if len(texts) != len(text_pairs):
        raise SampleError(
            f"There are {len(texts)} first texts and {len(text_pairs)} second ones. Give a second text for each first."
        )
    return [dict(zip(FIELDS, pair, strict=True)) for pair in zip(texts, text_pairs, strict=True)]


def is_pair(sample: Any) -> bool:
    """Whether a sample is meant to be a pair, complete or not."""
    return isinstance(sample, Mapping) and any(field in sample for field in FIELDS)


def columns_in(column: str | Sequence[str]) -> tuple[str, ...]:
    """The one column that holds the samples, or the two that hold the texts of pairs.

    Raises:
        SampleError: If there is another number of them.
    """
    names = (column,) if isinstance(column, str) else tuple(column)
    if not 1 <= len(names) <= len(FIELDS):
        raise SampleError(f"Found {len(names)} columns {names!r:.80}, expected one, or two that hold pairs of texts.")
    return names


def samples_in(rows: Any, column: str | Sequence[str]) -> list[Any]:
    """The samples of a dataset or of a batch of its rows, in their order.

    Args:
        rows: What has columns.
        column: Its name, or those of the two that hold the texts of pairs.
    """
    columns = [list(rows[name][:]) for name in columns_in(column)]
    return columns[0] if len(columns) == 1 else pairs_of(*columns)


def mark_of_pairs(processor: Any) -> list[int] | None:
    """The special token that stands more often in a pair than in one text, and how often; ``None`` if none does."""
    tokenizer = getattr(processor, "tokenizer", processor)
    alone, both = (Counter(tokenizer(*texts)["input_ids"]) for texts in (("a",), ("a", "a")))
    ignored = {tokenizer.pad_token_id, tokenizer.unk_token_id}
    marks = [token for token in tokenizer.all_special_ids if token not in ignored and both[token] > alone[token]]
    return [marks[0], both[marks[0]]] if marks else None
