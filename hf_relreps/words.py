"""A word in its sentence as a sample, and which tokens of a tokenizer are its pieces.

A sentence is tokenized as its words with a space between each two. So pieces are told by their place in that text, and
every fast tokenizer will do, whatever it makes of spaces.
Shapes: n words, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import numpy as np

from hf_relreps.errors import SampleError


FIELDS = {"words", "position"}  # of a word in files
IGNORED = -100  # a label that does not count


@dataclass(frozen=True)
class Word:
    """A word in its sentence.

    Args:
        words: All words of the sentence.
        position: Which of them is meant, counted from 0.

    Raises:
        SampleError: If the sentence is empty, one of its words is none, or there is no such position.

    Example:
        ```python
        >>> from hf_relreps.words import Word
        >>> word = Word(["The", "bank", "of", "the", "river"], 1)
        >>> word.text, str(word)
        ('bank', 'The [bank] of the river')

        ```
    """

    words: tuple[str, ...]
    position: int

    def __post_init__(self) -> None:
        _refuse_no_sentence(self.words, "The sentence")
        object.__setattr__(self, "words", tuple(self.words))
        position = self.position
        if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < len(self.words):
            raise SampleError(
                f"position is {position!r:.60} in a sentence of {len(self.words)} words, expected 0 to "
                f"{len(self.words) - 1}: words are counted from 0."
            )

    @classmethod
    def at(cls, text: str, start: int, end: int) -> Self:
        """The word from character `start` to before `end` of a text, whose other words are split at white space.

        Args:
            text: The sentence.
            start: First character of the word.
            end: The character after its last.

        Raises:
            SampleError: If the span is empty, lies outside of the text or cuts a word in two.

        Example:
            ```python
            >>> from hf_relreps.words import Word
            >>> Word.at("We met in Rome.", 10, 14).words
            ('We', 'met', 'in', 'Rome', '.')

            ```
        """
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise SampleError(
                f"The span {start} to {end} holds no word of {text!r:.60} ({len(text)} characters). Give its first "
                "character and the one after its last, as tokenizers' offsets do."
            )
        for place in (start, end):
            if 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum():
                raise SampleError(
                    f"The span {start} to {end} is {text[start:end]!r:.60} and cuts a word of {text!r:.60} in two. "
                    "Move it to the word's ends; where words are written without spaces give them: Word(words, "
                    "position)."
                )
        before = text[:start].split()
        return cls((*before, text[start:end].strip(), *text[end:].split()), len(before))

    @property
    def text(self) -> str:
        """The word alone."""
        return self.words[self.position]

    def __str__(self) -> str:
        marked = [f"[{word}]" if i == self.position else word for i, word in enumerate(self.words)]
        return " ".join(marked)


def words_of(sentences: Sequence[Sequence[str]]) -> list[Word]:
    """Every word of every sentence, in their order.

    Args:
        sentences: Lists of words.

    Raises:
        SampleError: If a sentence is empty, no list of words, or one of its words is empty.

    Example:
        ```python
        >>> from hf_relreps.words import words_of
        >>> [word.text for word in words_of([["Rain", "fell"], ["We", "left"]])]
        ['Rain', 'fell', 'We', 'left']

        ```
    """
    found = []
    for i, sentence in enumerate(sentences):
        _refuse_no_sentence(sentence, f"sentences[{i}]")
        words = tuple(sentence)
        found += [Word(words, position) for position in range(len(words))]
    return found


def labelled_words(
    sentences: Sequence[Sequence[str]], labels: Sequence[Sequence[Any]]
) -> tuple[list[Word], list[Any]]:
    """Every word that has a label, and these labels; -100 and ``None`` are no labels.

    Args:
        sentences: Lists of words.
        labels: For each sentence as many labels.

    Raises:
        SampleError: If there is not one label for each word.

    Example:
        ```python
        >>> from hf_relreps.words import labelled_words
        >>> words, labels = labelled_words([["Rain", "fell"], ["We", "left"]], [["NOUN", "VERB"], [None, "VERB"]])
        >>> labels
        ['NOUN', 'VERB', 'VERB']

        ```
    """
    refuse_other_counts(sentences, labels)
    told = [label for of_sentence in labels for label in of_sentence]
    pairs = [pair for pair in zip(words_of(sentences), told, strict=True) if pair[1] not in (None, IGNORED)]
    return [word for word, _ in pairs], [label for _, label in pairs]


def refuse_other_counts(sentences: Sequence[Sequence[Any]], labels: Sequence[Sequence[Any]]) -> None:
    """Raise `SampleError` unless each sentence has a label for each of its words."""
    if len(sentences) != len(labels):
        raise SampleError(f"There are labels of {len(labels)} sentences for {len(sentences)} sentences. Give both.")
    for i, (words, told) in enumerate(zip(sentences, labels, strict=True)):
        if isinstance(told, str) or len(words) != len(told):
            count = "one text" if isinstance(told, str) else f"{len(told)} labels"
            raise SampleError(
                f"sentences[{i}] has {len(words)} words and {count}. Give one label for each word; None where there "
                "is none."
            )


def label_tokens(
    tokenizer: Any, sentences: Sequence[Sequence[str]], labels: Sequence[Sequence[int]], max_length: int | None = None
) -> dict[str, Any]:
    """Tokens of sentences with `labels` as `Trainer` takes them: the first piece of a word has the word's label.

    All other tokens get -100, which counts neither in a loss nor in a score. Sentences are tokenized as anchors are.

    Args:
        tokenizer: A fast one; an encoder's own is ``model.processor``.
        sentences: Lists of words.
        labels: The class of each word of each sentence; -100 for none.
        max_length: Longest sentence in tokens; what is behind is left out. The tokenizer's own limit if left out.

    Raises:
        SampleError: If there is not one label for each word, or the tokenizer is not fast.

    Example:
        ```python
        >>> from hf_relreps.demos.tiny import word_tokenizer
        >>> from hf_relreps.words import label_tokens
        >>> label_tokens(word_tokenizer(["rain fell"]), [["rain", "fell"]], [[4, 2]])["labels"]
        [[4, 2]]

        ```
    """
    refuse_other_counts(sentences, labels)
    given: Sequence[Sequence[Any]] = labels
    for i, (sentence, of_words) in enumerate(zip(sentences, given, strict=True)):
        _refuse_no_sentence(sentence, f"sentences[{i}]")
        name = next((label for label in of_words if isinstance(label, str)), None)
        if name is not None:
            raise SampleError(
                f"labels[{i}] has the name {name!r:.60}, expected numbers of classes. Number them as id2label of the "
                "model does: [[numbers[name] for name in names] for names in labels]."
            )
    tokens = tokenizer([" ".join(sentence) for sentence in sentences], truncation=True, max_length=max_length)
    found = []
    for words, told, encoding in zip(sentences, labels, encodings_of(tokens, tokenizer), strict=True):
        of_token_T = word_of_tokens(words, encoding)
        starts_T = np.diff(of_token_T, prepend=-1) != 0
        pairs = zip(of_token_T, starts_T & (of_token_T >= 0), strict=True)
        found.append([int(told[word]) if starts else IGNORED for word, starts in pairs])
    return {**tokens, "labels": found}


def encodings_of(tokens: Any, tokenizer: Any) -> list[Any]:
    """What the tokenizers library says of each text.

    Raises:
        SampleError: If the tokenizer is not built on that library.
    """
    if not getattr(tokens, "encodings", None):
        raise SampleError(
            f"{type(tokenizer).__name__} does not say which tokens are pieces of which word. Load a fast tokenizer: "
            "AutoTokenizer.from_pretrained(name)."
        )
    return tokens.encodings


def word_of_tokens(words: Sequence[str], encoding: Any) -> np.ndarray:
    """Which word each token of a sentence belongs to (T,); -1 for those that belong to none."""
    ends = list(accumulate((len(word) + 1 for word in words), initial=-1))[1:]  # the space before a word is its own
    offsets_T2 = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    of_token_T = np.searchsorted(ends, offsets_T2[:, 1] - 1, side="right")
    return np.where(offsets_T2[:, 0] < offsets_T2[:, 1], of_token_T, -1)


def as_words(samples: Sequence[Any]) -> list[Any]:
    """The same samples, with a `Word` for each mapping by which files and datasets tell one."""
    return [Word(**sample) if isinstance(sample, dict) and set(sample) == FIELDS else sample for sample in samples]


def pieces_of(samples: Sequence[Word], encoding: Any, tokenizer: Any) -> np.ndarray:
    """First piece and the one after the last (n, 2) of words of one sentence, among the tokens of that sentence.

    Args:
        samples: Words of one sentence.
        encoding: What the tokenizers library says of the sentence's text.
        tokenizer: Named in errors.

    Raises:
        SampleError: If a word has no pieces, or some were cut off.
    """
    words, name = samples[0].words, type(tokenizer).__name__
    of_token_T = word_of_tokens(words, encoding)
    places = np.flatnonzero(of_token_T >= 0)  # special tokens may lie on either side
    asked = [sample.position for sample in samples]
    first = np.searchsorted(of_token_T[places], asked, side="left")
    after = np.searchsorted(of_token_T[places], asked, side="right")
    behind = int(of_token_T.max(initial=-1))
    for sample, begin, end in zip(samples, first, after, strict=True):
        if encoding.overflowing and sample.position >= behind and _is_cut(sample, encoding):
            raise SampleError(
                f"The word {sample.text!r:.60} is number {sample.position} of {len(words)} in its sentence, of which "
                f"{name} keeps {len(of_token_T)} tokens that end before the word does: it was truncated. Raise "
                f"max_length, or shorten the sentence ({' '.join(words)!r:.60})."
            )
        if begin == end:
            raise SampleError(
                f"The word {sample.text!r:.60}, number {sample.position} in its sentence ({' '.join(words)!r:.60}), "
                f"has no pieces: {name} makes no token of it. Drop it."
            )
    return np.stack([places[first], places[after - 1] + 1], axis=1)


def _is_cut(sample: Word, encoding: Any) -> bool:
    """Whether tokens that were cut off belong to the word, or come before it."""
    cut = [word_of_tokens(sample.words, part) for part in encoding.overflowing]
    found = np.concatenate(cut)
    return bool((found[found >= 0] <= sample.position).any())


def _refuse_no_sentence(words: Any, name: str) -> None:
    if isinstance(words, str) or not isinstance(words, Sequence) or len(words) == 0:
        raise SampleError(
            f"{name} is {words!r:.60} ({type(words).__name__}), expected a list of one or more words. Drop it, or "
            "split its text into words."
        )
    for place, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise SampleError(f"{name} has {word!r:.60} as word {place}, expected a text that is not empty. Drop it.")
    refuse_half_pairs(" ".join(words), name)


def refuse_half_pairs(text: str, name: str) -> None:
    """Raise `SampleError` for a text that no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(
            f"{name} is {text!r:.60}, which contains half of a surrogate pair and cannot be encoded. Replace such "
            "characters: text.encode('utf-8', 'replace').decode()."
        ) from error
