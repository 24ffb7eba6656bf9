"""Which samples of two encoders mean the same: few known pairs become many, and wrong pairs are found.

A sample is described by its similarities to the known anchors, which both encoders share; two samples of like
descriptions are taken for the same meaning and become anchors themselves, a few at first and more with each round
(compare "Bootstrapping Parallel Anchors for Relative Representations", ICLR 2023 Tiny Papers; the local scaling is
that of "Word Translation without Parallel Data", ICLR 2018, section 2.3). A second start takes for the first pairs
those of the assignment under which the similarities within both pools agree best, the known pairs held ("Fast
Approximate Quadratic Programming for Graph Matching", 2015, and "Seeded Graph Matching", 2019); the better of both
counts. Known pairs that were held out test what was found.

Shapes: N samples of the left pool, M of the right one, D absolute sizes, S known pairs, A anchors, P pairs, H pairs
held out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_relreps.anchors import AnchorSet
from hf_relreps.errors import AnchorError
from hf_relreps.samples import digest_of_samples
from hf_relreps.similarities import unit


NEIGHBOURS = 10  # that the local scaling looks at
FIRST, GROWTH = 10, 1.15  # new pairs of the first round, and how much more of them each round takes
SETTLING = 8  # rounds at most with all pairs, as long as more samples find each other
LARGEST = 1000  # rows of a pool that are assigned, as the cost grows with their third power
STEPS, STILL = 30, 1e-3  # of the assignment at most, and the step that is too small to go on
SOFTNESS, BALANCING = 0.05, 30  # of its start, and how often the rows and columns of that are balanced
FEWEST = 5  # known pairs
HELD_OUT = 1 / 3  # of the known pairs, which test what the others find
# Of the share of samples that find each other, over what mixed-up pairs reach: so much says that the match is right,
# so little that it is wrong; between them the pairs that were held out decide (docs/quality.md).
SURE_GAIN, LEAST_GAIN, LEAST_HELD_OUT_RANK = 0.3, 0.15, 0.99
LEAST_RANK = 0.9  # share of other anchors that a right pair is more alike than
LEAST_RIGHT = 1 / 3  # of the anchors, for the others to be told wrong by them
MOST_ROUNDS = 8


class Encodes(Protocol):
    """Anything that returns embeddings (N, D) of samples: a relative model, a sentence-transformers model, ...

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> class Turned:  # stands for another model: the same space with its coordinates reversed
        ...     def encode(self, samples):
        ...         return english.encoder.encode(samples).flip(-1)
        >>> x_ND, y_ND = (some.encode(test["en"]) for some in (english.encoder, Turned()))
        >>> print(round(float(latent_similarity(x_ND, y_ND).cka), 3))
        1.0

        ```
    """

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
    """What a bootstrap found, and the evidence for it.

    Args:
        known: Number of known pairs.
        found: Number of pseudo-anchors.
        mutual: Share of the smaller pool whose samples are mutual nearest neighbours in the end.
        mutual_by_chance: The same with known pairs that were shuffled on purpose. If both are similar, nothing was
            found.
        held_out: Number of known pairs that were held out once, to be found in the pools.
        rank: Share of the others that these were more similar than; one half by chance.
    """

    known: int
    found: int
    mutual: float
    mutual_by_chance: float
    held_out: int
    rank: float

    @property
    def trusted(self) -> bool:
        """Whether the match of the pools can be trusted."""
        gain = self.mutual - self.mutual_by_chance
        return gain >= SURE_GAIN or (gain >= LEAST_GAIN and self.rank >= LEAST_HELD_OUT_RANK)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"trusted": self.trusted}

    def __str__(self) -> str:
        return (
            f"{self.known} known pairs and {self.found} found; {self.mutual:.2f} of the samples are mutual nearest "
            f"neighbours, {self.mutual_by_chance:.2f} with shuffled pairs; {self.held_out} held-out known pairs are "
            f"closer than {self.rank:.2f} of all others"
        )


def bootstrap(
    anchors: AnchorSet,
    encoders: Mapping[str, Encodes],
    pools: Mapping[str, Sequence[Any]],
    k: int = 300,
    *,
    seed: int = 42,
) -> tuple[AnchorSet, BootstrapReport]:
    """Grow a few anchors into k, with two pools of samples that are neither paired nor labelled.

    Pairs are found by the similarities of the samples to the known anchors. The known anchors come first; ids of new
    ones begin with ``pseudo-``. If the two pools cannot be matched, an error says so. `docs/quality.md` shows how many
    known pairs are enough.

    Args:
        anchors: The few that are known, with a view for either encoder.
        encoders: For each of two views the model that embeds its samples: a `RelativeModel` with these anchors, or
            any object whose `encode` takes samples and returns (N, D).
        pools: For each of the two views samples, in any order; anchors and duplicates are ignored.
        k: Number of anchors; fewer if not enough samples find each other.
        seed: For the anchors that are held out once to test the match, and for the samples that are assigned if a pool
            is large.

    Returns:
        The larger anchor set, with these two views, and the evidence for it.

    Raises:
        AnchorError: If the pools cannot be matched, there are fewer than five anchors, or encoders and pools do
            not name the same two views.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.bootstrapping import bootstrap
        >>> encoders = {"en": english.encoder, "other": turned}
        >>> few = AnchorSet(anchors.ids[:20], {view: anchors.view("en").samples[:20] for view in encoders})
        >>> more, report = bootstrap(few, encoders, {"en": train["en"], "other": train["en"][::-1]}, k=60)
        >>> len(more), report.trusted
        (60, True)

        ```
    """
    sides = _two_views(anchors, encoders)
    if k <= len(anchors):
        raise AnchorError(f"k={k} must be larger than the {len(anchors)} known anchors. Ask for more.")
    if set(pools) != set(sides):
        raise AnchorError(
            f"pools has the views {', '.join(map(repr, pools))}, encoders {sides[0]!r} and {sides[1]!r}. Use the same "
            "two names in both."
        )
    fresh = [_drop_known(pools[name], anchors.view(name).samples) for name in sides]
    left_ND, right_MD = (
        _encode(encoders[name], samples, f"pool {name!r}") for name, samples in zip(sides, fresh, strict=True)
    )
    pairs, report = match_pools(left_ND, right_MD, *_encode_views(anchors, encoders), k - len(anchors), seed)
    _refuse_unmatched(report)
    found = [(fresh[0][i], fresh[1][j]) for i, j in zip(pairs.left_P.tolist(), pairs.right_P.tolist(), strict=True)]
    views = {name: [*anchors.view(name).samples, *(pair[side] for pair in found)] for side, name in enumerate(sides)}
    ids = [*anchors.ids, *(f"pseudo-{digest_of_samples(pair)[:24]}" for pair in found)]
    return AnchorSet(ids, views, origin=anchors.origin | {"bootstrap": report.to_dict()}), report


def mismatched(anchors: AnchorSet, encoders: Mapping[str, Encodes]) -> list[str]:
    """Ids of anchors whose two views do not mean the same: wrong translations, rows out of order.

    The similarities of an anchor to all other anchors must be the same in both views. So most anchors must be right.
    Drop those that are found: ``anchors.without(mismatched(anchors, encoders))``.

    Args:
        anchors: With a view for each encoder.
        encoders: For each of two views the model that embeds its samples, as for `bootstrap`.

    Raises:
        AnchorError: If fewer than a third of the anchors agree between the two views.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.bootstrapping import mismatched
        >>> texts = anchors.view("en").samples
        >>> exchanged = [texts[1], texts[0], *texts[2:]]  # by mistake
        >>> pairs = AnchorSet(anchors.ids, {"en": texts, "other": exchanged})
        >>> wrong = mismatched(pairs, {"en": english.encoder, "other": turned})
        >>> wrong == anchors.ids[:2]
        True
        >>> len(pairs.without(wrong))
        38

        ```
    """
    return [anchors.ids[i] for i in find_mismatched(*_encode_views(anchors, encoders)).tolist()]


def _two_views(anchors: AnchorSet, encoders: Mapping[str, Encodes]) -> tuple[str, str]:
    if len(encoders) != 2:
        raise AnchorError(
            f"encoders names {len(encoders)} views, expected two, for example {{'en': encoder, 'fr': other}}."
        )
    left, right = (anchors.view(name).name for name in encoders)
    return left, right


def _drop_known(samples: Sequence[Any], known: Sequence[Any]) -> list[Any]:
    """Those that are not known and were not there before."""
    seen = {digest_of_samples([sample]) for sample in known}
    fresh = []
    for sample in samples:
        name = digest_of_samples([sample])
        if name not in seen:
            seen.add(name)
            fresh.append(sample)
    return fresh


def _encode_views(anchors: AnchorSet, encoders: Mapping[str, Encodes]) -> tuple[Tensor, Tensor]:
    sides = _two_views(anchors, encoders)
    left_AD, right_AD = (_encode(encoders[name], anchors.view(name).samples, f"view {name!r}") for name in sides)
    return left_AD, right_AD


def _encode(encoder: Encodes, samples: Sequence[Any], what: str) -> Tensor:
    """Embeddings (N, D) in float32 on the processor."""
    parts = getattr(encoder, "parts", None)
    encoder = parts.get("encoder", encoder) if isinstance(parts, Mapping) else encoder  # of a whole model
    if not hasattr(encoder, "encode"):
        raise AnchorError(
            f"The encoder of {what} is a {type(encoder).__name__}, which has no encode(samples). Make an AutoModel "
            "relative, RelativeModel.from_encoder(model, anchors.view(name)), or pass a SentenceTransformer."
        )
    x_ND = torch.as_tensor(encoder.encode(list(samples))).detach().float().cpu()
    if x_ND.ndim != 2 or len(x_ND) != len(samples) or not torch.isfinite(x_ND).all():
        raise AnchorError(
            f"The encoder returned shape {tuple(x_ND.shape)} for {len(samples)} samples of {what}, expected finite "
            f"numbers of shape ({len(samples)}, D). Pass an encoder whose encode(samples) returns one vector for each "
            "sample."
        )
    return x_ND


def _refuse_unmatched(report: BootstrapReport) -> None:
    """Raise `AnchorError` unless the pools can be believed to have been matched."""
    if not report.trusted:
        raise AnchorError(
            f"The pools cannot be matched: {report.mutual:.2f} of their samples are mutual nearest neighbours, and "
            f"{report.mutual_by_chance:.2f} with shuffled pairs; expected a difference of {SURE_GAIN}, or of "
            f"{LEAST_GAIN} with held-out pairs closer than {LEAST_HELD_OUT_RANK} of all others (found "
            f"{report.rank:.2f}). Give more known pairs than {report.known} (25 to 50 are enough for most encoders), "
            "or pools with the same meanings."
        )


def match_pools(
    left_ND: Tensor, right_MD: Tensor, seeds_left_SD: Tensor, seeds_right_SD: Tensor, k: int, seed: int = 42
) -> tuple[Pairs, BootstrapReport]:
    """At most k new pairs of rows of two unpaired pools, and whether to believe them.

    Args:
        left_ND: Embeddings of one pool by one encoder.
        right_MD: Embeddings of another pool by another encoder; the widths may differ.
        seeds_left_SD: Of the known pairs by the first encoder.
        seeds_right_SD: Of the same by the second.
        k: Number of pairs to find.
        seed: Of the pairs that are held out, and of the rows that are assigned where a pool is large.

    Raises:
        AnchorError: If there are fewer than five known pairs.
    """
    known = len(seeds_left_SD)
    if known < FEWEST:
        raise AnchorError(
            f"Found {known} known pairs, expected {FEWEST} or more: fewer are too few to match the pools by "
            "(docs/quality.md). Add pairs; 25 to 50 are enough for most encoders."
        )
    spaces = left_ND, right_MD, seeds_left_SD, seeds_right_SD
    by_chance = grow(left_ND, right_MD, seeds_left_SD, seeds_right_SD.roll(known // 2, 0), k).mutual
    by_neighbours, by_assignment = grow(*spaces, k), grow(*spaces, k, assign(*spaces, seed))
    assigned = by_assignment.mutual > by_neighbours.mutual
    pairs = by_assignment if assigned else by_neighbours
    rank_H = rank_held_out(*spaces, k, assigned, seed)
    report = BootstrapReport(known, len(pairs.left_P), pairs.mutual, by_chance, len(rank_H), float(rank_H.mean()))
    return pairs, report


def rank_held_out(
    left_ND: Tensor,
    right_MD: Tensor,
    left_SD: Tensor,
    right_SD: Tensor,
    k: int,
    assigned: bool = False,
    seed: int = 42,
) -> Tensor:
    """For each of H known pairs that lie hidden in the pools: share of the others that it is more alike than.

    The other known pairs grow as all would.
    """
    count = max(1, int(HELD_OUT * len(left_SD)))
    order_S = torch.as_tensor(np.random.default_rng(seed).permutation(len(left_SD)))
    held_H, rest_S = order_S[:count], order_S[count:]
    pools = torch.cat([left_SD[held_H], left_ND]), torch.cat([right_SD[held_H], right_MD])
    known = left_SD[rest_S], right_SD[rest_S]
    pairs = grow(*pools, *known, k, assign(*pools, *known, seed) if assigned else None)
    scaled_NM = _scale_locally(_compare(*pools, *_join(pairs, *pools, *known)))
    of_row_H, of_column_H = _rank(scaled_NM, count)
    return (of_row_H + of_column_H) / 2


def _rank(scaled_NM: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For each of the first pairs on the diagonal: share of its row and of its column that it is more alike than."""
    own_H = scaled_NM.diagonal()[:count]
    of_row_H = (own_H[:, None] > scaled_NM[:count]).float().sum(1) / max(1, scaled_NM.shape[1] - 1)
    of_column_H = (own_H > scaled_NM[:, :count]).float().sum(0) / max(1, len(scaled_NM) - 1)
    return of_row_H, of_column_H


def grow(
    left_ND: Tensor,
    right_MD: Tensor,
    left_SD: Tensor,
    right_SD: Tensor,
    k: int,
    first: Pairs | None = None,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> Pairs:
    """At most k pairs of rows from S known ones, by matching in rounds; the known ones stay anchors throughout.

    With `first` the first round uses these pairs of rows beside the known ones. `scale` makes similarities (N, M)
    comparable among rows and columns, in place of the local scaling.
    """
    pools, known = (left_ND, right_MD), (left_SD, right_SD)
    anchors = known if first is None else _join(first.first(k), *pools, *known)
    mutual = 0.0
    for wanted, is_last in _rounds(k):
        pairs = pair_nearest((scale or _scale_locally)(_compare(*pools, *anchors)))
        if is_last and pairs.mutual <= mutual:
            break
        mutual = pairs.mutual
        surest = pairs.first(wanted)
        anchors = _join(surest, *pools, *known)
    return surest._replace(mutual=mutual)


def _join(pairs: Pairs, left_ND: Tensor, right_MD: Tensor, left_SD: Tensor, right_SD: Tensor) -> tuple[Tensor, Tensor]:
    """The known anchors and the pairs of rows, as anchors of both sides."""
    return torch.cat([left_SD, left_ND[pairs.left_P]]), torch.cat([right_SD, right_MD[pairs.right_P]])


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
    return pair_nearest(_scale_locally(_compare(left_ND, right_MD, anchors_left_AD, anchors_right_AD)))


def pair_nearest(scaled_NM: Tensor) -> Pairs:
    """Rows and columns that are each other's nearest, the largest margins first."""
    best_N, best_M = _best(scaled_NM), _best(scaled_NM.T)
    left_P = torch.nonzero(best_M.row[best_N.row] == torch.arange(len(scaled_NM))).flatten()
    right_P = best_N.row[left_P]
    margin_P = torch.minimum(best_N.margin[left_P], best_M.margin[right_P])
    order_P = margin_P.argsort(descending=True, stable=True)
    return Pairs(left_P[order_P], right_P[order_P], margin_P[order_P], len(left_P) / min(scaled_NM.shape))


def _compare(left_ND: Tensor, right_MD: Tensor, anchors_left_AD: Tensor, anchors_right_AD: Tensor) -> Tensor:
    return describe(left_ND, anchors_left_AD) @ describe(right_MD, anchors_right_AD).T


def describe(x_ND: Tensor, anchors_AD: Tensor) -> Tensor:
    """Unit rows (N, A): centred cosines to the anchors, those of each anchor standardised over the samples."""
    mean_D = anchors_AD.mean(0)
    return _standardize(unit(x_ND - mean_D) @ unit(anchors_AD - mean_D).T)


def _standardize(r_NA: Tensor) -> Tensor:
    r_NA = r_NA - r_NA.mean(0)
    return unit(r_NA / r_NA.std(0, correction=0).clamp_min(torch.finfo(r_NA.dtype).eps))


def _scale_locally(similarity_NM: Tensor) -> Tensor:
    """Less the mean similarity to the nearest neighbours on both sides, so that hubs are nobody's nearest by rule."""
    near_N, near_M = mean_of_nearest(similarity_NM), mean_of_nearest(similarity_NM.T)
    return 2 * similarity_NM - near_N[:, None] - near_M


def mean_of_nearest(similarity_NM: Tensor) -> Tensor:
    """Mean similarity of each row to its nearest neighbours."""
    count = min(NEIGHBOURS, similarity_NM.shape[1])
    return similarity_NM.contiguous().topk(count, dim=1, sorted=False).values.mean(1)


def assign(
    left_ND: Tensor,
    right_MD: Tensor,
    left_SD: Tensor,
    right_SD: Tensor,
    seed: int = 42,
    start_NM: Tensor | None = None,
) -> Pairs:
    """Rows of the pools, each once, so that similarities within both pools and to the known pairs agree best.

    Of a large pool only some rows are assigned. `mutual` is not measured. It starts from how alike rows are to the
    known pairs, unless `start_NM` tells how alike they are.
    """
    rows = _draw(len(left_ND), seed), _draw(len(right_MD), seed + 1)
    pools = left_ND[rows[0]], right_MD[rows[1]]
    alike_NM = _compare(*pools, left_SD, right_SD) if start_NM is None else start_NM[rows[0]][:, rows[1]]
    within, to_known = zip(_kernels(pools[0], left_SD), _kernels(pools[1], right_SD), strict=True)
    share_NM = _climb(*within, to_known[0] @ to_known[1].T, balance(alike_NM))
    left_P, right_P = _assign_once(share_NM)
    share_P = share_NM[left_P, right_P]
    order_P = share_P.argsort(descending=True, stable=True)
    return Pairs(rows[0][left_P[order_P]], rows[1][right_P[order_P]], share_P[order_P], 0.0)


def _draw(count: int, seed: int) -> Tensor:
    return torch.as_tensor(np.random.default_rng(seed).permutation(count)[:LARGEST])


def _kernels(x_ND: Tensor, known_SD: Tensor) -> tuple[Tensor, Tensor]:
    """Centred cosines to the pool (N, N) and to the known samples (N, S)."""
    mean_D = x_ND.mean(0)
    unit_ND = unit(x_ND - mean_D)
    return unit_ND @ unit_ND.T, unit_ND @ unit(known_SD - mean_D).T


# scipy's `quadratic_assignment` finds no more right pairs, in 0.46 s for 0.09 s (pools of 500), 11 s for 0.5 s (1000).
def _climb(left_NN: Tensor, right_MM: Tensor, known_NM: Tensor, share_NM: Tensor) -> Tensor:
    """Frank-Wolfe steps that raise trace(left share right share^T) + 2 trace(known^T share), from a soft start."""
    seen_NM = left_NN @ share_NM @ right_MM
    for _ in range(STEPS):
        left_P, right_P = _assign_once(seen_NM + known_NM)
        step_NM = -share_NM
        step_NM[left_P, right_P] += 1
        change_NM = left_NN[:, left_P] @ right_MM[right_P] - seen_NM
        square = float((change_NM * step_NM).sum())
        linear = 2 * float(((seen_NM + known_NM) * step_NM).sum())
        size = min(1.0, -linear / (2 * square)) if square < 0 else 1.0
        share_NM, seen_NM = share_NM + size * step_NM, seen_NM + size * change_NM
        if size * float(step_NM.norm()) < STILL * len(left_P) ** 0.5:
            break
    return share_NM


def _assign_once(gain_NM: Tensor) -> tuple[Tensor, Tensor]:
    left_P, right_P = linear_sum_assignment(gain_NM.numpy(force=True), maximize=True)
    return torch.as_tensor(left_P), torch.as_tensor(right_P)


def balance(similarity_NM: Tensor) -> Tensor:
    """Shares whose rows and columns sum to nearly one (Sinkhorn's iteration)."""
    share_NM = ((similarity_NM - similarity_NM.max()) / SOFTNESS).exp().clamp_min(1e-30)
    for _ in range(BALANCING):
        share_NM = share_NM / share_NM.sum(1, keepdim=True)
        share_NM = share_NM / share_NM.sum(0, keepdim=True)
    return share_NM


class _Best(NamedTuple):
    row: Tensor
    margin: Tensor


def _best(scaled_NM: Tensor) -> _Best:
    scaled_NM = scaled_NM.clone(memory_format=torch.contiguous_format)
    best = scaled_NM.max(dim=1)
    scaled_NM.scatter_(1, best.indices[:, None], -torch.inf)
    return _Best(best.indices, best.values - scaled_NM.amax(1))


def find_mismatched(left_AD: Tensor, right_AD: Tensor) -> Tensor:
    """Rows of the anchors whose two views do not mean the same, as their similarities to the other anchors tell.

    A pair is right if its two descriptions, each by the anchors of its own side, are more alike than those of nearly
    all other pairings. Anchors found to be wrong no longer describe the others, so that it is done in rounds.
    """
    good_A = torch.ones(len(left_AD), dtype=torch.bool)
    for _ in range(MOST_ROUNDS):
        scaled_AA = _scale_locally(_describe_by_others(left_AD, good_A) @ _describe_by_others(right_AD, good_A).T)
        found_A = torch.minimum(*_rank(scaled_AA, len(scaled_AA))) >= LEAST_RANK
        if found_A.sum() < max(FEWEST, LEAST_RIGHT * len(left_AD)):
            raise AnchorError(
                f"Only {int(found_A.sum())} of {len(left_AD)} anchors agree between the two views, too few to tell "
                "which are wrong. Check that both views are in the same order and that each encoder suits its view."
            )
        if torch.equal(found_A, good_A):
            break
        good_A = found_A
    return torch.nonzero(~good_A).flatten()


def _describe_by_others(x_AD: Tensor, good_A: Tensor) -> Tensor:
    """Profiles of anchors by the good ones among them, where none says how alike it is to itself."""
    mean_D = x_AD[good_A].mean(0)
    unit_AD = unit(x_AD - mean_D)
    alike_AA = (unit_AD @ unit_AD.T).fill_diagonal_(0)
    return _standardize(alike_AA[:, good_A])
