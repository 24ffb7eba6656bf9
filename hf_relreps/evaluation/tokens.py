"""Sentences as rows of words, and entities among their tags.

Shape suffixes: N words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from hf_relreps.errors import EvaluationError
from hf_relreps.evaluation.labels import column_of
from hf_relreps.evaluation.scores import Metric
from hf_relreps.words import labelled_words


def by_words(dataset: Any, role: str, columns: Collection[str], label_column: str) -> Any:
    """A dataset of sentences, as lists of words, with a row for each word that has a label; any other as it is.

    Raises:
        EvaluationError: If a sentence has not one label for each word.
    """
    sentences = {column: column_of(dataset, column, role, "inputs") for column in columns}
    if not all(_is_sentence(rows[0]) for rows in sentences.values() if rows):
        return dataset
    labels = _named(dataset, label_column, column_of(dataset, label_column, role, "label_column"))
    for column, rows in sentences.items():
        for i, (words, told) in enumerate(zip(rows, labels, strict=True)):
            count = len(told) if isinstance(told, list | tuple) else None
            if count != len(words):
                found = "one label" if count is None else f"{count} labels"
                raise EvaluationError(
                    f"row {i} of {role} has {len(words)} words in column {column!r} and {found} in column "
                    f"{label_column!r}. Give one label for each word; None or -100 where there is none."
                )
    by_column = {column: labelled_words(rows, labels) for column, rows in sentences.items()}
    kept = next(iter(by_column.values()))[1]
    return {column: words for column, (words, _) in by_column.items()} | {label_column: kept}


def _is_sentence(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(word, str) for word in found)


def _named(dataset: Any, label_column: str, labels: list[Any]) -> list[Any]:
    """Labels by their names, where the dataset says these."""
    feature = (getattr(dataset, "features", None) or {}).get(label_column)
    names = getattr(getattr(feature, "feature", None), "names", None)
    if names is None:
        return labels
    return [[names[i] if i is not None and i >= 0 else None for i in told] for told in labels]


def entity_f1(names: Sequence[str] | Mapping[int, str], lengths: Sequence[int]) -> Metric:
    """Micro-averaged F1 of whole entities, as the CoNLL script and seqeval count: boundaries and type must be right.

    Args:
        names: Tags by their number: ``O``, ``B-PER``, ``I-PER``, ...; the `id2label` of a decoder.
        lengths: How many labelled words each sentence has: an entity ends with its sentence.

    Returns:
        A function of (labels, predictions), both class numbers (N,) of all words in their order: a `metric` for
        `stitching_matrix`.

    Raises:
        EvaluationError: If a name is no tag of an entity, or the function is given another number of words.

    Example:
        ```python
        >>> import numpy as np
        >>> from hf_relreps.evaluation import entity_f1
        >>> f1 = entity_f1(["O", "B-PER", "I-PER"], lengths=[3, 2])
        >>> f1(np.array([1, 2, 0, 0, 1]), np.array([1, 0, 0, 0, 1]))  # half a name is none
        0.5

        ```
    """
    tags = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    for name in tags.values():
        if not isinstance(name, str):
            raise EvaluationError(
                f"names contains {name!r:.40}, expected tags. entity_f1 makes a metric: metric=entity_f1(id2label, "
                "[len(words) for words in sentences])."
            )
        if name != "O" and name[:2] not in ("B-", "I-"):
            raise EvaluationError(
                f"{name!r} is no tag of an entity, expected 'O', 'B-...' or 'I-...'. For other tags take accuracy or "
                "f1."
            )
    starts = {0, *accumulate(lengths)}

    def entity_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
        if len(labels) != sum(lengths):
            raise EvaluationError(
                f"lengths tell of {len(lengths)} sentences of {sum(lengths)} words in all, found {len(labels)} words. "
                "Count those that have a label."
            )
        found, told = (set(entities_of([tags[int(i)] for i in row], starts)) for row in (predictions, labels))
        return 2 * len(found & told) / max(1, len(found) + len(told))

    return entity_f1


def entities_of(tags: Sequence[str], starts: Collection[int]) -> Iterator[tuple[int, int, str]]:
    """First word, the one after the last, and the type; an I- without a beginning begins one (as in conlleval)."""
    begin, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        goes_on = tag[:2] == "I-" and tag[2:] == kind and i not in starts
        if goes_on:
            continue
        if kind:
            yield begin, i, kind
        begin, kind = i, tag[2:]
