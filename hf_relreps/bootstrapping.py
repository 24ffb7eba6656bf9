"""Which samples of two encoders mean the same: few known pairs become many, and wrong pairs are found.

A sample is described by its similarities to the known anchors, which both encoders share; two samples of like
descriptions are taken for the same meaning and become anchors themselves, a few at first and more with each round
(compare "Bootstrapping Parallel Anchors for Relative Representations", ICLR 2023 Tiny Papers; the local scaling is
that of "Word Translation without Parallel Data", ICLR 2018, section 2.3).

Shapes: N samples of the left pool, M of the right one, D absolute sizes, S known pairs, A anchors, P pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hf_relreps.errors import AnchorError
from hf_relreps.similarities import unit


NEIGHBOURS = 10  # that the local scaling looks at
FIRST, GROWTH = 10, 1.15  # new pairs of the first round, and how much more of them each round takes
SETTLING = 8  # rounds at most with all pairs, as long as more samples find each other
RESTARTS, KEPT = 6, 0.7  # other starts where the first leads nowhere, each from this share of the known pairs
FEWEST = 5  # known pairs
LEAST_GAIN = 0.15  # of the share of samples that find each other, over what mixed-up pairs reach: docs/quality.md
LEAST_RANK = 0.9  # share of other anchors that a right pair is more alike than
LEAST_RIGHT = 1 / 3  # of the anchors, for the others to be told wrong by them
MOST_ROUNDS = 8


class Encodes(Protocol):
    """Anything that gives embeddings (N, D) of samples: a `RelativeModel`, a sentence-transformers model, ..."""

    def encode(self, samples: Any) -> Any:
        """Embeddings (N, D) of N samples."""


class Pairs(NamedTuple):
    """Rows of the left and the right pool that are taken for the same meaning, the surest first.

    Args:
        left_P: Rows of the left pool.
        right_P: Their partners.
        margin_P: By how much each is more alike than the next best.
        mutual: Share of the smaller pool whose samples are each other's nearest.
    """

    left_P: Tensor
    right_P: Tensor
    margin_P: Tensor
    mutual: float

    def first(self, k: int) -> Pairs:
        """The k surest."""
        return self._replace(left_P=self.left_P[:k], right_P=self.right_P[:k], margin_P=self.margin_P[:k])


@dataclass(frozen=True)
class BootstrapReport:
    """What a bootstrap found, and why it is believed.

    Args:
        known: Number of known pairs.
        found: Number of pseudo-anchors.
        mutual: Share of the smaller pool whose samples are each other's nearest in the end.
        mutual_by_chance: The same after known pairs that were mixed up on purpose. Where both are alike, nothing was
            found.
    """

    known: int
    found: int
    mutual: float
    mutual_by_chance: float

    @property
    def trusted(self) -> bool:
        """Whether the pools can be believed to have been matched."""
        return self.mutual >= self.mutual_by_chance + LEAST_GAIN

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"trusted": self.trusted}

    def __str__(self) -> str:
        return (
            f"{self.known} known pairs and {self.found} found; {self.mutual:.2f} of the samples find each other, "
            f"{self.mutual_by_chance:.2f} with mixed-up pairs"
        )


def bootstrap(
    left_ND: Tensor, right_MD: Tensor, seeds_left_SD: Tensor, seeds_right_SD: Tensor, k: int, seed: int = 42
) -> tuple[Pairs, BootstrapReport]:
    """At most k new pairs of rows of two unpaired pools, and whether to believe them.

    Args:
        left_ND: Embeddings of one pool by one encoder.
        right_MD: Embeddings of another pool by another encoder; the widths may differ.
        seeds_left_SD: Of the known pairs by the first encoder.
        seeds_right_SD: Of the same by the second.
        k: Number of pairs to find.
        seed: Of the other starts.

    Raises:
        AnchorError: If there are fewer than five known pairs.
    """
    known = len(seeds_left_SD)
    if known < FEWEST:
        raise AnchorError(
            f"Found {known} known pairs, expected {FEWEST} or more: with fewer, similarities to them tell nothing. "
            "Add pairs; 25 to 50 are enough for most encoders."
        )
    rng = np.random.default_rng(seed)
    by_chance = grow(left_ND, right_MD, seeds_left_SD, seeds_right_SD.roll(known // 2, 0), k).mutual
    enough = by_chance + LEAST_GAIN
    pairs = _best_start(left_ND, right_MD, seeds_left_SD, seeds_right_SD, k, enough, rng)
    return pairs, BootstrapReport(known, len(pairs.left_P), pairs.mutual, by_chance)


def refuse_unmatched(report: BootstrapReport) -> None:
    """Raise `AnchorError` unless the pools can be believed to have been matched."""
    if not report.trusted:
        raise AnchorError(
            f"The pools cannot be matched: {report.mutual:.2f} of their samples find each other, and with mixed-up "
            f"pairs it is {report.mutual_by_chance:.2f}; expected {LEAST_GAIN} more than that. Give more known pairs "
            f"than {report.known} (25 to 50 are enough for most encoders), or pools that hold the same meanings."
        )


def _best_start(
    left_ND: Tensor, right_MD: Tensor, left_SD: Tensor, right_SD: Tensor, k: int, enough: float, rng: Any
) -> Pairs:
    """From all known pairs; where that leads nowhere, from some of them: which ones decides if the first pairs fit."""
    best = grow(left_ND, right_MD, left_SD, right_SD, k)
    for _ in range(RESTARTS):
        if best.mutual >= enough:
            break
        start = torch.as_tensor(rng.permutation(len(left_SD))[: max(FEWEST, round(KEPT * len(left_SD)))])
        other = grow(left_ND, right_MD, left_SD, right_SD, k, start)
        best = max(best, other, key=lambda pairs: pairs.mutual)
    return best


def grow(
    left_ND: Tensor, right_MD: Tensor, left_SD: Tensor, right_SD: Tensor, k: int, start: Tensor | None = None
) -> Pairs:
    """At most k pairs of rows from S known ones, by matching in rounds; the known ones stay anchors throughout.

    With `start` the first round uses only these of the known pairs.
    """
    some = slice(None) if start is None else start
    anchors = left_SD[some], right_SD[some]
    mutual = 0.0
    for wanted, is_last in _rounds(k):
        pairs = match(left_ND, right_MD, *anchors)
        if is_last and pairs.mutual <= mutual:
            break
        mutual = pairs.mutual
        kept = pairs.first(wanted)
        anchors = torch.cat([left_SD, left_ND[kept.left_P]]), torch.cat([right_SD, right_MD[kept.right_P]])
    return kept._replace(mutual=mutual)


def _rounds(k: int) -> Iterator[tuple[int, bool]]:
    """Number of pairs of each round, and whether the number has stopped growing."""
    wanted = min(FIRST, k)
    while wanted < k:
        yield wanted, False
        wanted = min(k, round(wanted * GROWTH))
    yield k, False
    for _ in range(SETTLING):
        yield k, True


def match(left_ND: Tensor, right_MD: Tensor, anchors_left_AD: Tensor, anchors_right_AD: Tensor) -> Pairs:
    """Rows that are each other's nearest by how alike they are to the anchors, the largest margins first."""
    scaled_NM = _scaled(profiles(left_ND, anchors_left_AD) @ profiles(right_MD, anchors_right_AD).T)
    best_N, best_M = _best(scaled_NM), _best(scaled_NM.T)
    left_P = torch.nonzero(best_M.row[best_N.row] == torch.arange(len(scaled_NM))).flatten()
    right_P = best_N.row[left_P]
    margin_P = torch.minimum(best_N.margin[left_P], best_M.margin[right_P])
    order_P = margin_P.argsort(descending=True, stable=True)
    return Pairs(left_P[order_P], right_P[order_P], margin_P[order_P], len(left_P) / min(scaled_NM.shape))


def profiles(x_ND: Tensor, anchors_AD: Tensor) -> Tensor:
    """Unit rows (N, A): centred cosines to the anchors, those of each anchor standardised over the samples."""
    mean_D = anchors_AD.mean(0)
    return _standardized(unit(x_ND - mean_D) @ unit(anchors_AD - mean_D).T)


def _standardized(r_NA: Tensor) -> Tensor:
    r_NA = r_NA - r_NA.mean(0)
    return unit(r_NA / r_NA.std(0, correction=0).clamp_min(torch.finfo(r_NA.dtype).eps))


def _scaled(similarity_NM: Tensor) -> Tensor:
    """Less the mean similarity to the nearest neighbours on both sides, so that hubs are nobody's nearest by rule."""
    near_N, near_M = _near(similarity_NM), _near(similarity_NM.T)
    return 2 * similarity_NM - near_N[:, None] - near_M


def _near(similarity_NM: Tensor) -> Tensor:
    count = min(NEIGHBOURS, similarity_NM.shape[1])
    return similarity_NM.contiguous().topk(count, dim=1, sorted=False).values.mean(1)


class _Best(NamedTuple):
    row: Tensor
    margin: Tensor


def _best(scaled_NM: Tensor) -> _Best:
    scaled_NM = scaled_NM.clone(memory_format=torch.contiguous_format)
    best = scaled_NM.max(dim=1)
    scaled_NM.scatter_(1, best.indices[:, None], -torch.inf)
    return _Best(best.indices, best.values - scaled_NM.amax(1))


def mismatched(left_AD: Tensor, right_AD: Tensor) -> Tensor:
    """Rows of the anchors whose two views do not mean the same, as their similarities to the other anchors tell.

    A pair is right if its two descriptions, each by the anchors of its own side, are more alike than those of nearly
    all other pairings. Anchors found to be wrong no longer describe the others, so that it is done in rounds.
    """
    good_A = torch.ones(len(left_AD), dtype=torch.bool)
    for _ in range(MOST_ROUNDS):
        scaled_AA = _scaled(_others(left_AD, good_A) @ _others(right_AD, good_A).T)
        own_A = scaled_AA.diagonal()
        rank_A = torch.minimum((own_A[:, None] > scaled_AA).float().sum(1), (own_A > scaled_AA).float().sum(0)) / max(
            1, len(own_A) - 1
        )
        found_A = rank_A >= LEAST_RANK
        if found_A.sum() < max(FEWEST, LEAST_RIGHT * len(left_AD)):
            raise AnchorError(
                f"Only {int(found_A.sum())} of {len(left_AD)} anchors look alike in both views, too few to say which "
                "are wrong. Look whether the two views are in the same order, and whether both encoders suit them."
            )
        if torch.equal(found_A, good_A):
            break
        good_A = found_A
    return torch.nonzero(~good_A).flatten()


def _others(x_AD: Tensor, good_A: Tensor) -> Tensor:
    """Profiles of anchors by the good ones among them, where none says how alike it is to itself."""
    mean_D = x_AD[good_A].mean(0)
    unit_AD = unit(x_AD - mean_D)
    alike_AA = (unit_AD @ unit_AD.T).fill_diagonal_(0)
    return _standardized(alike_AA[:, good_A])
