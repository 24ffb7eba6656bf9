"""Which words of parallel sentences mean the same: anchors for token models, without a dictionary or shared encoder.

Two encoders have no common space, but a sentence and its translation are an anchor. Similarities to the sentences
describe words roughly; words of a sentence pair that are each other's nearest become the next anchors, and so on, as
`hf_relreps.bootstrapping` does with samples. Sentence pairs that give no anchors test each round.
Shapes: S sentence pairs, W words, D absolute size, A anchors, P pairs of words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_relreps.bootstrapping import mean_of_nearest, pair_nearest
from hf_relreps.errors import AnchorError, EmbeddingError
from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.similarities import unit
from hf_relreps.space import RelativeSpace


SPACE = RelativeSpace(basis_ridge=1.0)  # first pairs are noisy: ten times the default's ridge
FEWEST = 50  # sentence pairs
HELD_OUT = 0.2  # of the sentence pairs
SUREST = 0.7  # share of the pairs that anchors are drawn from
ANCHORS = 1500  # at most, of a round
REFERENCE = 2000  # words at most, among which the local scaling looks for neighbours
MOST_ROUNDS, STILL = 6, 0.005  # rounds, and the gain that is too small to go on
SENTENCES_AT_ONCE = 200
# Words that find the parallel sentence, over chance: 0.30 to 0.44 where 30 % of 50 to 200 sentence pairs were wrong on
# purpose, at most 0.17 where 60 % were (benchmarks/tokens/choices.py).
LEAST_RETRIEVED = 0.2


@dataclass(frozen=True)
class WordPairReport:
    """The evidence for word pairs, from sentence pairs that gave no anchors.

    Args:
        sentences: Number of sentence pairs.
        held_out: Number of those that gave no anchors.
        agreement: For each round, share of the words of held-out sentences that are each other's nearest in their
            sentence pair; of the side with fewer words. The first round has the sentences as anchors.
        by_chance: The same in the round that was kept, with held-out sentences paired wrongly on purpose.
        retrieved: Share of held-out words whose nearest of all held-out words stands in the parallel sentence.
        retrieved_by_chance: The same for words that are drawn at random.
    """

    sentences: int
    held_out: int
    agreement: tuple[float, ...]
    by_chance: float
    retrieved: float
    retrieved_by_chance: float

    @property
    def trusted(self) -> bool:
        """Whether the sentences are parallel and the pairs can be used."""
        return self.retrieved - self.retrieved_by_chance >= LEAST_RETRIEVED

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"agreement": list(self.agreement), "trusted": self.trusted}

    def __str__(self) -> str:
        verdict = "The word pairs can be used" if self.trusted else "The word pairs cannot be used"
        return (
            f"{verdict}: of the words of {self.held_out} held-out sentence pairs {max(self.agreement):.2f} find each "
            f"other, {self.by_chance:.2f} in wrong pairs; {self.retrieved:.2f} find the parallel sentence, "
            f"{self.retrieved_by_chance:.2f} by chance"
        )


@dataclass(frozen=True)
class WordPairs:
    """Words of parallel sentences that are taken for the same meaning, the surest first.

    Args:
        sentence_P: Number of the sentence pair.
        source_P: Position of the word in the source sentence.
        target_P: Position of its partner in the target sentence.
        confidence_P: By how much both are more alike than either is to its next best.
        report: The evidence.
    """

    sentence_P: Tensor
    source_P: Tensor
    target_P: Tensor
    confidence_P: Tensor
    report: WordPairReport = field(repr=False)

    def __len__(self) -> int:
        return len(self.sentence_P)

    def choose(self, k: int = ANCHORS, *, rare: Sequence[bool] | None = None, seed: int = 42) -> WordPairs:
        """At most k pairs for anchors: drawn at random from the surest 70 %.

        The surest alone are poor anchors: names, numbers and punctuation, hardly a verb (`docs/tokens_measured.md`).

        Args:
            k: How many.
            rare: Whether each pair is of a rare class, for example because a tagger takes the source word for a part
                of an entity. Half of the k are drawn from all such pairs; more or less where either kind is too few.
            seed: Of the draw.

        Raises:
            AnchorError: If `k` is less than one, or `rare` does not say it of each pair.

        Example:
            Uses the names that the first block on word pairs of `docs/api/anchors.md` makes.

            ```python
            >>> len(pairs.choose(100)), len(pairs.choose(10_000)) == int(0.7 * len(pairs))
            (100, True)
            >>> is_first = (pairs.source_P == 0).tolist()
            >>> bool((pairs.choose(100, rare=is_first).source_P == 0).float().mean() >= 0.5)
            True

            ```
        """
        if k < 1:
            raise AnchorError(f"k={k} must be at least 1 pair. Ask for some hundreds.")
        random, sure = np.random.default_rng(seed), max(1, int(SUREST * len(self)))
        if rare is None:
            rows = random.permutation(sure)[:k]
        else:
            is_rare_P = np.asarray(rare)
            if is_rare_P.shape != (len(self),) or is_rare_P.dtype != bool:
                raise AnchorError(
                    f"rare is {is_rare_P.dtype} of shape {is_rare_P.shape}, expected True or False for each of the "
                    f"{len(self)} pairs: sentence_P and source_P say which words they are."
                )
            drawn = random.permutation(np.flatnonzero(is_rare_P))
            others = random.permutation(np.flatnonzero(~is_rare_P[:sure]))[: k - min(k // 2, len(drawn))]
            rows = np.concatenate([drawn[: k - len(others)], others])
        rows_K = torch.as_tensor(np.sort(rows))
        names = ("sentence_P", "source_P", "target_P", "confidence_P")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows_K] for name in names})

    def vectors(self, source: Sequence[Any], target: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Vectors (P, D) of the source words and of their partners, out of the sentences that were searched."""
        rows = zip(self.sentence_P.tolist(), self.source_P.tolist(), self.target_P.tolist(), strict=True)
        sides = [(torch.as_tensor(source[i])[j], torch.as_tensor(target[i])[q]) for i, j, q in rows]
        return torch.stack([left for left, _ in sides]), torch.stack([right for _, right in sides])


def find_word_pairs(source: Sequence[Any], target: Sequence[Any], *, seed: int = 42) -> WordPairs:
    """Pairs of words from parallel sentences that two encoders read, one for each side.

    Args:
        source: For each of S sentences the vectors of its words (words, D), for example means of their pieces at a
            layer.
        target: For each of their translations, in the same order, the same by the other encoder; widths may differ.
        seed: Of the sentences that are held out, and of the pairs that become anchors.

    Returns:
        The pairs of all sentences, and the evidence for them.

    Raises:
        AnchorError: If there are fewer than 50 sentence pairs, unlike numbers of sentences, or the sentences do not
            look parallel.
        EmbeddingError: If a sentence has no words, widths differ, or numbers are not finite.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.word_pairs import find_word_pairs
        >>> generator = torch.Generator().manual_seed(0)
        >>> source = [torch.randn(8, 24, generator=generator) for _ in range(60)]
        >>> turn_DD = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0]
        >>> target = [(x_WD @ turn_DD).flip(0) for x_WD in source]  # another space, words in another order
        >>> pairs = find_word_pairs(source, target)
        >>> bool((pairs.target_P == 7 - pairs.source_P).float().mean() > 0.9), pairs.report.trusted
        (True, True)

        ```
    """
    sides = _checked(source, target)
    order_S = np.random.default_rng(seed).permutation(len(source))
    held = np.sort(order_S[: int(HELD_OUT * len(source))])
    rest = np.sort(order_S[len(held) :])
    tested, fitted = (_Sides(*([side[i] for i in rows] for side in sides)) for rows in (held, rest))
    anchors, report = _refine(fitted, tested, seed)
    if not report.trusted:
        raise AnchorError(
            f"{report}. Look whether the sentences are in the same order on both sides, whether both encoders suit "
            f"their languages, and give more sentence pairs than {len(source)}."
        )
    return _pairs(sides, anchors, _reference(fitted, seed), report)


class _Sides(NamedTuple):
    """The same number of sentences of each side, as vectors of their words; or anchors (A, D) of each."""

    source: Any
    target: Any


def _checked(source: Sequence[Any], target: Sequence[Any]) -> _Sides:
    if len(source) != len(target):
        raise AnchorError(
            f"There are {len(source)} source and {len(target)} target sentences. Give each its translation, in order."
        )
    if len(source) < FEWEST:
        raise AnchorError(
            f"Found {len(source)} sentence pairs, expected {FEWEST} or more: with fewer, similarities to them say "
            "nothing about words. 500 are enough for most encoders."
        )
    return _Sides(_vectors(source, "source"), _vectors(target, "target"))


def _vectors(sentences: Sequence[Any], side: str) -> list[Tensor]:
    found = [torch.as_tensor(x_WD).detach().float().cpu() for x_WD in sentences]
    width = found[0].shape[-1] if found[0].ndim else 0
    for i, x_WD in enumerate(found):
        if x_WD.ndim != 2 or not len(x_WD) or x_WD.shape[1] != width or not torch.isfinite(x_WD).all():
            raise EmbeddingError(
                f"Sentence {i} of {side} has vectors {tuple(x_WD.shape)}, expected finite numbers (words, {width}) of "
                "one word or more. Leave empty sentences out on both sides, and look at that sentence."
            )
    return found


def _refine(fitted: _Sides, tested: _Sides, seed: int) -> tuple[_Sides, WordPairReport]:
    """The anchors of the round in which most held-out words agree, and the evidence for them."""
    reference, known = _reference(fitted, seed), _reference(tested, seed)
    anchors = _Sides(*(torch.stack([x_WD.mean(0) for x_WD in side]) for side in fitted))
    kept, agreement = anchors, [_agreement(tested, anchors, known)]
    while len(agreement) < MOST_ROUNDS:
        found = _pairs(fitted, anchors, reference, _NO_REPORT)
        anchors = _Sides(*found.choose(seed=seed).vectors(*fitted))
        agreement.append(_agreement(tested, anchors, known))
        before = max(agreement[:-1])
        if agreement[-1] > before:
            kept = anchors
        if agreement[-1] < before + STILL:
            break
    wrong = _Sides(tested.source, tested.target[1:] + tested.target[:1])
    report = WordPairReport(
        len(fitted.source) + len(tested.source),
        len(tested.source),
        tuple(agreement),
        _agreement(wrong, kept, known),
        *_retrieved(tested, kept),
    )
    return kept, report


def _reference(sides: _Sides, seed: int) -> _Sides:
    """Some words of each side, to tell which words are near to everything."""
    random = np.random.default_rng(seed)
    words = [torch.cat(side) for side in sides]
    return _Sides(*(x_WD[torch.as_tensor(random.permutation(len(x_WD))[:REFERENCE])] for x_WD in words))


def _described(x_WD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Relative representations (W, A) of length one."""
    space = SPACE.replace(num_anchors=len(anchors_AD))
    return unit(project_in_chunks(x_WD, frame_of(anchors_AD, space), space))


def _similarities(sides: _Sides, anchors: _Sides, reference: _Sides) -> Iterator[Tensor]:
    """For each sentence pair how alike its words are (words, words), less what each is to anything."""
    near_WA = _Sides(*(_described(*pair) for pair in zip(reference, anchors, strict=True)))
    for first in range(0, len(sides.source), SENTENCES_AT_ONCE):
        some = _Sides(*(side[first : first + SENTENCES_AT_ONCE] for side in sides))
        lengths = [[len(x_WD) for x_WD in side] for side in some]
        r_WA = _Sides(*(_described(torch.cat(side), a_AD) for side, a_AD in zip(some, anchors, strict=True)))
        hub_W = (
            mean_of_nearest(r_WA.source @ near_WA.target.T).split(lengths[0]),
            mean_of_nearest(r_WA.target @ near_WA.source.T).split(lengths[1]),
        )
        parts = zip(r_WA.source.split(lengths[0]), r_WA.target.split(lengths[1]), *hub_W, strict=True)
        for left_WA, right_WA, left_W, right_W in parts:
            yield 2 * left_WA @ right_WA.T - left_W[:, None] - right_W


def _pairs(sides: _Sides, anchors: _Sides, reference: _Sides, report: WordPairReport) -> WordPairs:
    """Words of each sentence pair that are each other's nearest, the surest of all sentences first."""
    found = [pair_nearest(scaled_WW) for scaled_WW in _similarities(sides, anchors, reference)]
    sentence_P = torch.arange(len(found)).repeat_interleave(torch.tensor([len(pairs.left_P) for pairs in found]))
    source_P, target_P = torch.cat([pairs.left_P for pairs in found]), torch.cat([pairs.right_P for pairs in found])
    # A word without a rival is no evidence.
    margin_P = torch.cat([pairs.margin_P for pairs in found]).nan_to_num(posinf=0.0)
    order_P = margin_P.argsort(descending=True, stable=True)
    return WordPairs(sentence_P[order_P], source_P[order_P], target_P[order_P], margin_P[order_P], report)


def _agreement(sides: _Sides, anchors: _Sides, reference: _Sides) -> float:
    """Share of the words that are each other's nearest in their sentence pair, of the side with fewer."""
    found = [(pair_nearest(scaled_WW), min(scaled_WW.shape)) for scaled_WW in _similarities(sides, anchors, reference)]
    return sum(len(pairs.left_P) for pairs, _ in found) / sum(words for _, words in found)


def _retrieved(sides: _Sides, anchors: _Sides) -> tuple[float, float]:
    """Share of words whose nearest of all words stands in the parallel sentence, both ways, and that of chance."""
    r_WA = _Sides(*(_described(torch.cat(side), a_AD) for side, a_AD in zip(sides, anchors, strict=True)))
    of_W = [torch.arange(len(side)).repeat_interleave(torch.tensor([len(x_WD) for x_WD in side])) for side in sides]
    alike_WW = r_WA.source @ r_WA.target.T
    scaled_WW = alike_WW - mean_of_nearest(alike_WW)[:, None] / 2 - mean_of_nearest(alike_WW.T) / 2
    ways = ((scaled_WW, of_W[0], of_W[1]), (scaled_WW.T, of_W[1], of_W[0]))
    right = [(there_W[one_WW.argmax(1)] == here_W).float().mean() for one_WW, here_W, there_W in ways]
    same = (of_W[0][:, None] == of_W[1]).float().mean()
    return float(sum(right) / 2), float(same)


_NO_REPORT = WordPairReport(0, 0, (0.0,), 0.0, 0.0, 0.0)  # of rounds, which are not judged one by one
