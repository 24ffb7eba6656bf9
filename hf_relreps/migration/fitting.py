"""What `fit` learns from pairs, and what it can say beforehand of how much will be found.

Shapes: N pairs, A pairs that are fitted on, H held-out pairs, M stored vectors, Q queries, D width of the old model, E
width of the new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_relreps.errors import ConfigurationError, EmbeddingError, UploadError, UploadIntegrityError
from hf_relreps.inspection import is_number
from hf_relreps.migration.search import (
    NEAREST,
    QUERIES_AT_ONCE,
    Found,
    RenewedVectors,
    hub_scores,
    nearest_rows,
    two_stages,
)
from hf_relreps.migration.ways import (
    GRIDS,
    ON_UNTOUCHED_INDEX,
    SINGLE,
    TRANSLATORS,
    WAYS,
    Mean,
    Translated,
    Way,
    build,
    translations,
)
from hf_relreps.printing import one_line
from hf_relreps.projection import refuse_directionless
from hf_relreps.saving import finish_save, saving_beside
from hf_relreps.similarities import unit
from hf_relreps.space import require_one_of, require_whole


FEWEST_PAIRS, WANTED_PAIRS = 100, 1000
HELD_OUT, MOST_HELD_OUT = 0.2, 500  # a share of the pairs, and a number
FEWEST_QUERIES, AMONG_THE_FIRST = 30, 3
HELD_OUT_IN_ALL = 300  # of as few pairs several fifths are held out in turn
TUNED_ON, TUNED_AGAINST = 1000, 1500  # pairs and stored vectors on which settings are tried
MOST_STORED = 4000  # stored vectors among which held-out documents are searched
FAR_MORE = 0.1  # of the old model's ten nearest: what another way must keep beyond ``relative`` to be taken
SAME = 0.9999  # cosine from which on two vectors are those of one document
FEWEST_FOUND = 0.2  # of held-out pairs that find their other half, above chance
STRANGER = 0.7  # as near to stored vectors as these are to one another, below which pairs come from elsewhere
WEIGHTS_FILE, FACTS_FILE = "migration.safetensors", "migration.json"
MOST_NUMBER = 1_000_000  # of settings and scores in a file: far above any that are tried or found
FORMAT = 2

# From the share of held-out documents whose nearest stored neighbour stays among the first ten.
VERDICTS = (
    (0.95, "finds as much as the old model"),
    (0.85, "finds most of what the old model finds; search in two stages for the rest"),
    (0.6, "finds the neighbourhood: search in two stages, or give more pairs"),
    (0.0, "finds too little in one stage: search in two stages, and give more pairs"),
)

Vectors = Tensor | np.ndarray


@dataclass(frozen=True)
class Facts:
    """What a `Migration` was fitted on and what was found, as its file says it.

    Args:
        old_size: D.
        new_size: E.
        pairs: N.
        stored: How many stored vectors held-out documents were searched among.
        method: How an index that may be projected is searched, a name in `WAYS`.
        translator: The best of those that leave the index as it is.
        kept: By way, the share of the old model's ten nearest that it finds too, on held-out documents.
        expected: By way, the expected recall@10 as a share of the old model's own.
        settings: By way, what was chosen.
        spreads: By way, the standard deviation of its scores: what the mean divides by.
        old_model: Name of the old model, if it was given.
        new_model: Name of the new model, if it was given.
        agreed: By way, the share of queries without labels that find what the new model finds first among held-out
            pairs, if there were queries.
    """

    old_size: int
    new_size: int
    pairs: int
    stored: int
    method: str
    translator: str
    kept: Mapping[str, float]
    expected: Mapping[str, float]
    settings: Mapping[str, Mapping[str, Any]]
    spreads: Mapping[str, float]
    old_model: str | None = None
    new_model: str | None = None
    agreed: Mapping[str, float] | None = None
    format_version: int = field(default=FORMAT)


class Migration:
    """Searches vectors of an old model with queries of a new one; made by `fit`.

    Vectors may be tensors or arrays; what comes back is of the same kind.

    Args:
        old_ND: The pairs by the old model.
        new_NE: The same by the new one.
        facts: What was chosen.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import Migration, fit
        >>> migration = fit(index[:300], new_vectors[:300], stored=index)
        >>> migration.queries(new_queries).shape  # ask any index of the old vectors with these, by cosine
        (5, 16)
        >>> migration.scores(new_queries, index).shape
        (5, 600)
        >>> hubs = migration.hubs(index, new_vectors[300:400])  # one number for each document, from any queries
        >>> migration.scores(new_queries, index, hubs).shape
        (5, 600)
        >>> second_index = migration.indexed(index, "relative")  # what "relative" compares: 300 pairs, 300 numbers
        >>> second_index.shape, migration.queries(new_queries, "relative").shape
        ((600, 300), (5, 300))
        >>> migration.documents(index).shape  # the other direction: stored vectors in the new space
        (600, 24)
        >>> migration.expected_recall > 0.9, migration.verdict
        (True, 'finds as much as the old model')
        >>> print(migration)
        300 pairs from 24 to 16 dimensions: ...
        >>> migration.save("migration")
        >>> Migration.load("migration").facts == migration.facts
        True

        ```
    """

    def __init__(self, old_ND: Tensor, new_NE: Tensor, facts: Facts) -> None:
        self.old_ND, self.new_NE, self.facts = old_ND, new_NE, facts
        self._ways: dict[str, Way] = {}

    # -- what it does

    def queries(self, new_vectors: Vectors, way: str | None = None) -> Any:
        """Queries of the new model (Q, E) as directions in the old space (Q, D), to ask the index as it is.

        Args:
            new_vectors: Embeddings by the new model.
            way: A name in `WAYS`; `facts.translator` if left out. ``relative`` and ``mean`` give vectors for an index
                of what `indexed` makes of the stored ones (Q, S).

        Raises:
            ConfigurationError: If there is no such way.
            EmbeddingError: If the vectors are not of the new model's width.
        """
        new_QE = self._checked(new_vectors, self.facts.new_size, "new")
        return _like(new_vectors, self._way(self.facts.translator if way is None else way).queries(new_QE))

    def indexed(self, old_vectors: Vectors, way: str | None = None) -> Any:
        """Stored vectors (M, D) as a way compares them with `queries` of the same way, by their inner product (M, S).

        The ways of an untouched index only give them length 1. ``relative`` and ``mean`` project them: for a second
        index beside the first one, which costs no encoding and finds more.

        Args:
            old_vectors: Embeddings by the old model.
            way: A name in `WAYS`; `facts.method` if left out.

        Raises:
            ConfigurationError: If there is no such way.
            EmbeddingError: If the vectors are not of the old model's width.
        """
        old_MD = self._checked(old_vectors, self.facts.old_size, "old")
        return _like(old_vectors, self._way(self.facts.method if way is None else way).documents(old_MD))

    def documents(self, old_vectors: Vectors) -> Any:
        """Stored vectors (M, D) as embeddings of the new space (M, E).

        Raises:
            EmbeddingError: If the vectors are not of the old model's width.
        """
        old_MD = self._checked(old_vectors, self.facts.old_size, "old")
        return _like(old_vectors, torch.stack([way.points(old_MD) for way in self._backwards]).mean(0))

    def scores(self, queries: Vectors, documents: Vectors, hubs: Vectors | None = None, way: str | None = None) -> Any:
        """How near each query (Q, E) is to each stored vector (M, D): (Q, M), larger is nearer.

        Args:
            queries: Embeddings by the new model.
            documents: Embeddings by the old model.
            hubs: What `hubs` gave for the same documents.
            way: A name in `WAYS`; `facts.method` if left out.
        """
        name = self.facts.method if way is None else way
        new_QE = self._checked(queries, self.facts.new_size, "new")
        old_MD = self._checked(documents, self.facts.old_size, "old")
        one = self._way(name)
        scores_QM = one.queries(new_QE) @ one.documents(old_MD).T
        if hubs is not None:
            scores_QM = 2 * scores_QM - self._hubs(hubs, len(old_MD))
        return _like(queries, scores_QM)

    def hubs(self, documents: Vectors, queries: Vectors, way: str | None = None) -> Any:
        """How near each document (M,) is to queries in general: the mean of its ten highest scores.

        `scores` and `search` take it off (cross-domain similarity local scaling, arXiv 1710.04087), so that
        documents that are near to everything are not found by everything.

        Args:
            documents: Stored vectors.
            queries: Some hundreds of queries by the new model, whatever they ask. Not the pairs, which are
                documents.
            way: That of the scores which are corrected.
        """
        name = self.facts.method if way is None else way
        one = self._way(name)
        asking_QS = one.queries(self._checked(queries, self.facts.new_size, "new"))
        old_MD = self._checked(documents, self.facts.old_size, "old")
        parts = [hub_scores(asking_QS, one.documents(x_BD)) for x_BD in old_MD.split(2048)]
        return _like(documents, torch.cat(parts))

    def search(
        self,
        queries: Vectors,
        stored: Vectors,
        encode_new: Callable[[list[Any]], Vectors],
        *,
        candidates: int = 50,
        k: int = NEAREST,
        hubs: Vectors | None = None,
        way: str | None = None,
        renewed: RenewedVectors | str | Path | None = None,
    ) -> Found:
        """The k best documents: candidates by the translated query, put in order by the new model itself.

        The index stays as it is. A candidate is encoded once: its vector is kept in `renewed`.

        Args:
            queries: Embeddings by the new model (Q, E).
            stored: The index (M, D).
            encode_new: From the rows of documents in the index to their embeddings by the new model (B, E).
            candidates: Documents that the new model encodes for each query.
            k: Documents to find.
            hubs: What `hubs` gave with the same way: corrects which become candidates.
            way: How candidates are found; `facts.translator` if left out. ``relative`` often finds better ones, and
                projects all stored vectors at each call.
            renewed: Where the new vectors are kept: a folder, which survives a kill, or what an earlier search used.
                In memory if left out.

        Raises:
            ConfigurationError: If `k` is larger than `candidates`, or either is no whole number above 0.
            EmbeddingError: If vectors are not of their model's width.

        Example:
            Uses the names that the page `docs/api/migration.md` makes.

            ```python
            >>> from hf_relreps.migration import fit
            >>> migration = fit(index[:300], new_vectors[:300], stored=index)
            >>> def encode_new(rows):  # new_model.encode([texts[row] for row in rows])
            ...     return new_vectors[rows]
            >>> found = migration.search(new_queries, index, encode_new, candidates=20, k=3, renewed="renewed")
            >>> found.ids.shape, found.encoded == found.renewed
            ((5, 3), True)
            >>> migration.search(new_queries, index, encode_new, candidates=20, k=3, renewed="renewed").encoded
            0

            ```
        """
        require_whole("k", k, low=1)
        require_whole("candidates", candidates, low=1)
        new_QE = self._checked(queries, self.facts.new_size, "new")
        old_MD = self._checked(stored, self.facts.old_size, "old")
        one = self._way(self.facts.translator if way is None else way)
        hubs_M = None if hubs is None else self._hubs(hubs, len(old_MD))
        documents_MS = one.documents(old_MD)
        return two_stages(
            new_QE,
            (
                nearest_rows(x_QS, documents_MS, candidates, hubs_M)
                for x_QS in one.queries(new_QE).split(QUERIES_AT_ONCE)
            ),
            encode_new,
            k=k,
            renewed=renewed if isinstance(renewed, RenewedVectors) else RenewedVectors(renewed),
            stored=len(old_MD),
        )

    # -- what it says

    @property
    def expected_recall(self) -> float:
        """Recall@10 that `scores` should reach, as a share of the old model's own."""
        return self.facts.expected[self.facts.method]

    @property
    def verdict(self) -> str:
        """The expected recall in words."""
        return next(words for share, words in VERDICTS if self.expected_recall >= share)

    def __repr__(self) -> str:
        facts = self.facts
        old, new = one_line(facts.old_model), one_line(facts.new_model)
        names = f" ({new} asks an index of {old})" if facts.old_model else ""
        few = "" if facts.pairs >= WANTED_PAIRS else f"; {WANTED_PAIRS} pairs would do better"
        return (
            f"{facts.pairs} pairs from {facts.new_size} to {facts.old_size} dimensions{names}: expected recall@10 "
            f"{self.expected_recall:.2f} of the old model's own by {facts.method}, "
            f"{facts.expected[facts.translator]:.2f} by {facts.translator} on the index as it is; {self.verdict}{few}"
        )

    @property
    def report(self) -> str:
        """What to know before anybody switches, in a few lines."""
        facts = self.facts
        old, new = one_line(facts.old_model or "the old model"), one_line(facts.new_model or "the new model")
        lines = [
            f"{facts.pairs} pairs from {facts.new_size} to {facts.old_size} dimensions: {new} asks an index of {old}",
            f"expected recall@{NEAREST}, as a share of the old model's own:",
            f"  {facts.expected[facts.translator]:.2f}  by {facts.translator}, on the index as it is",
        ]
        if facts.method != facts.translator:
            lines.append(f"  {self.expected_recall:.2f}  by {facts.method}, which projects the stored vectors too")
        more = "" if facts.pairs >= WANTED_PAIRS else f" {WANTED_PAIRS} pairs would do better."
        return "\n".join([*lines, f"{_upper(self.verdict)}.{more}"])

    # -- files

    def save(self, folder: str | Path) -> None:
        """Write the pairs and what was chosen into a folder. The pairs' vectors say much of their documents."""
        pairs = {"old_ND": self.old_ND.contiguous(), "new_NE": self.new_NE.contiguous()}
        facts = json.dumps(asdict(self.facts), indent=2, ensure_ascii=False)
        with saving_beside(folder) as place:
            save_file(pairs, place / WEIGHTS_FILE)
            (place / FACTS_FILE).write_text(facts + "\n", "utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UploadError: If a file is missing, or was written by another version.
            UploadIntegrityError: If the pairs are not those that the facts describe.
        """
        folder = Path(folder)
        finish_save(folder)
        for name in (WEIGHTS_FILE, FACTS_FILE):
            if not (folder / name).is_file():
                raise UploadError(f"{folder} has no {name}. Give the folder that Migration.save wrote.")
        try:
            content = json.loads((folder / FACTS_FILE).read_text("utf-8"))
            tensors = load_file(folder / WEIGHTS_FILE)
        except (ValueError, RecursionError, SafetensorError) as error:
            raise UploadIntegrityError(f"{folder} holds no migration that can be read: {error}. Fit anew.") from error
        return cls._of(tensors, content, folder)

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], content: Any, where: Any) -> Self:
        facts = _facts_in(content, where)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        expected = {"old_ND": (facts.pairs, facts.old_size), "new_NE": (facts.pairs, facts.new_size)}
        if shapes != expected:
            raise UploadIntegrityError(f"{where} holds pairs of shapes {shapes}, its facts say {expected}. Fit anew.")
        return cls(*_pairs(tensors["old_ND"], tensors["new_NE"]), facts)

    # -- inside

    def _way(self, name: str) -> Way:
        """The way of that name, fitted on all pairs; ways that are made of others share them."""
        if name not in self._ways:
            require_one_of("way", name, WAYS)
            facts, names = self.facts, _made_of(name)
            if set(names) - set(facts.settings):
                raise ConfigurationError(
                    f"way={name!r} was not fitted. Choose one of {', '.join(facts.kept)}, or fit with "
                    f"ways=[..., {name!r}]."
                )
            if name in SINGLE:
                self._ways[name] = build(name, self.old_ND, self.new_NE, facts.settings[name])
            else:
                self._ways[name] = joined(name, {one: self._way(one) for one in names}, facts.spreads)
        return self._ways[name]

    @cached_property
    def _backwards(self) -> list[Translated]:
        """From the old space to the new one, by what `facts.translator` consists of."""
        names = TRANSLATORS if self.facts.translator == "translated" else (self.facts.translator,)
        return [
            translations(self.old_ND, self.new_NE, name, add_mean=True, **self.facts.settings[name]) for name in names
        ]

    def _checked(self, vectors: Vectors, width: int, which: str) -> Tensor:
        x_BD = _tensor(vectors)
        if x_BD.ndim != 2 or x_BD.shape[1] != width:
            raise EmbeddingError(
                f"The vectors have shape {tuple(x_BD.shape)}, expected (any, {width}). Give vectors of the "
                f"{which} model."
            )
        return x_BD

    def _hubs(self, hubs: Vectors, documents: int) -> Tensor:
        hubs_M = _tensor(hubs)
        if tuple(hubs_M.shape) != (documents,):
            raise EmbeddingError(
                f"hubs has shape {tuple(hubs_M.shape)}, expected ({documents},): one number for each document."
            )
        return hubs_M


@torch.no_grad()
def fit(
    old_vectors: Vectors,
    new_vectors: Vectors,
    *,
    stored: Vectors | None = None,
    queries: Vectors | None = None,
    ways: Sequence[str] = WAYS,
    old_model: str | None = None,
    new_model: str | None = None,
    seed: int = 0,
) -> Migration:
    """Learn from pairs how queries of a new model ask an index of an old one.

    Draw some documents at random from the index, 1,000 if you can, 300 at least, and encode their texts with the new
    model: that is all it needs. There are no labels, and the old model is not asked. A fifth of the pairs is held out
    to choose among the ways and to say how much will be found; the result is fitted on all.

    Args:
        old_vectors: The stored vectors of these documents (N, D).
        new_vectors: The same documents by the new model (N, E), row by row.
        stored: The index, or a sample of it (M, D), for a better forecast; the pairs themselves if left out.
        queries: Some hundreds of queries by the new model (Q, E), whatever they ask: the ways of an untouched index
            are then compared by them. If left out, by held-out documents.
        ways: Among which to choose: names in `WAYS`. ``relative`` is taken for what needs no untouched index, unless
            another keeps far more neighbours.
        old_model: Its name, for the record.
        new_model: Its name, for the record.
        seed: Of the draw of held-out pairs.

    Raises:
        ConfigurationError: If there is no such way.
        EmbeddingError: If the pairs do not belong together: of other numbers, too few, shuffled, or not vectors of the
            model that made the index; if queries are fewer than 30, or of another width.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import fit
        >>> migration = fit(index[:300], new_vectors[:300], stored=index)
        >>> migration.facts.pairs
        300
        >>> fit(index[:300], new_vectors[:300][::-1])
        Traceback (most recent call last):
        hf_relreps.errors.EmbeddingError: ...

        ```
    """
    for way in ways:
        require_one_of("way", way, WAYS)
    if not ways:
        raise ConfigurationError(f"ways is empty. Choose among {', '.join(WAYS)}.")
    old_ND, new_NE = _pairs(old_vectors, new_vectors)
    stored_MD = old_ND if stored is None else _tensor(stored)
    _refuse_strangers(old_ND, stored_MD)
    queries_QE = None if queries is None else _asking(queries, new_NE.shape[1])
    generator = torch.Generator().manual_seed(seed)
    stored_MD = stored_MD[torch.randperm(len(stored_MD), generator=generator)[:MOST_STORED]]
    trials = _trials(old_ND, new_NE, torch.randperm(len(old_ND), generator=generator))
    _refuse_unrelated(trials)
    facts = _choose(trials, stored_MD, ways, queries_QE)
    whole = Facts(
        old_size=old_ND.shape[1],
        new_size=new_NE.shape[1],
        pairs=len(old_ND),
        stored=len(stored_MD),
        old_model=old_model,
        new_model=new_model,
        **facts,
    )
    return Migration(old_ND.clone(), new_NE.clone(), whole)


class _Trial(NamedTuple):
    """Pairs to fit on and pairs that are held out."""

    old_AD: Tensor
    new_AE: Tensor
    old_HD: Tensor
    new_HE: Tensor


def _trials(old_ND: Tensor, new_NE: Tensor, order_N: Tensor) -> list[_Trial]:
    """One fifth held out, or several in turn where one is too small for a steady figure."""
    held = min(round(HELD_OUT * len(old_ND)), MOST_HELD_OUT)
    trials = []
    for i in range(min(-(-HELD_OUT_IN_ALL // held), round(1 / HELD_OUT))):
        out, rest = order_N[i * held : (i + 1) * held], torch.cat([order_N[: i * held], order_N[(i + 1) * held :]])
        trials.append(_Trial(old_ND[rest], new_NE[rest], old_ND[out], new_NE[out]))
    return trials


def _choose(
    trials: Sequence[_Trial], stored_MD: Tensor, ways: Sequence[str], queries_QE: Tensor | None
) -> dict[str, Any]:
    """Settings of each way by how many neighbours of the old model stay.

    The method is ``relative`` unless it is left out or another keeps far more of them, as where one space is a linear
    map of the other: no finer rule that was tried finds more on average (`docs/retrieval.md`). The translator is the
    best by queries, if there are any, else by whether the first neighbour stays.
    """
    names = SINGLE if {"relative", "mean"} & set(ways) else TRANSLATORS
    settings = {name: _best_settings(name, trials, stored_MD[:TUNED_AGAINST]) for name in names}
    asked = [name for name in WAYS if name in ways or name in ON_UNTOUCHED_INDEX]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    agreement: dict[str, list[float]] = {name: [] for name in asked}
    for trial in trials:
        singles = {name: build(name, trial.old_AD, trial.new_AE, settings[name]) for name in names}
        spreads = {name: float(_scores(way, trial.new_HE, stored_MD).std()) for name, way in singles.items()}
        neighbours = _Neighbours(trial.old_HD, stored_MD)
        nearest_Q = None if queries_QE is None else (unit(queries_QE) @ unit(trial.new_HE).T).argmax(1)
        for name in asked:
            way = joined(name, singles, spreads)
            found[name].append(neighbours.found_by(_scores(way, trial.new_HE, stored_MD)))
            if queries_QE is not None and nearest_Q is not None:
                agreement[name].append(_agreed(_scores(way, queries_QE, trial.old_HD), nearest_Q))
    kept, expected = ({name: float(np.mean([one[i] for one in found[name]])) for name in asked} for i in (0, 1))
    agreed = None if queries_QE is None else {name: float(np.mean(some)) for name, some in agreement.items()}
    best = expected if agreed is None else agreed
    translators = [name for name in ON_UNTOUCHED_INDEX if name in ways] or list(ON_UNTOUCHED_INDEX)
    return {
        "method": _method(ways, kept, best),
        "translator": max(translators, key=best.__getitem__),
        "agreed": agreed,
        "kept": kept,
        "expected": expected,
        "settings": settings,
        "spreads": spreads,
    }


def _method(ways: Sequence[str], kept: Mapping[str, float], best: Mapping[str, float]) -> str:
    if "relative" not in ways:
        return max(ways, key=best.__getitem__)
    other = max(ways, key=kept.__getitem__)
    return other if kept[other] >= kept["relative"] + FAR_MORE else "relative"


def _agreed(scores_QH: Tensor, nearest_Q: Tensor) -> float:
    """The share of queries whose nearest held-out pair, by the new model, is among the first by a way."""
    first_QK = scores_QH.topk(AMONG_THE_FIRST).indices
    return float((first_QK == nearest_Q[:, None]).any(1).float().mean())


def _best_settings(name: str, trials: Sequence[_Trial], stored_MD: Tensor) -> Mapping[str, Any]:
    grid = GRIDS[name]
    if len(grid) == 1:
        return grid[0]
    kept = torch.zeros(len(grid))
    for trial in trials:
        neighbours = _Neighbours(trial.old_HD, stored_MD)
        for i, some in enumerate(grid):
            way = build(name, trial.old_AD[:TUNED_ON], trial.new_AE[:TUNED_ON], some)
            kept[i] += neighbours.found_by(_scores(way, trial.new_HE, stored_MD))[0]
    return grid[int(kept.argmax())]


class _Neighbours:
    """The stored vectors that the old model finds nearest to held-out documents, without these documents."""

    def __init__(self, old_HD: Tensor, stored_MD: Tensor) -> None:
        cosine_HM = unit(old_HD) @ unit(stored_MD).T
        self.own_HM = cosine_HM > SAME
        self.nearest_HK = self._nearest(cosine_HM)

    def found_by(self, scores_HM: Tensor) -> tuple[float, float]:
        """The share of them that is among the nearest by other scores too, and the share of the first ones."""
        same_HKK = self._nearest(scores_HM)[:, :, None] == self.nearest_HK[:, None, :]
        return float(same_HKK.any(1).float().mean()), float(same_HKK[:, :, 0].any(1).float().mean())

    def _nearest(self, scores_HM: Tensor) -> Tensor:
        return scores_HM.masked_fill(self.own_HM, -torch.inf).topk(NEAREST).indices


def _scores(way: Way, new_HE: Tensor, old_MD: Tensor) -> Tensor:
    return way.queries(new_HE) @ way.documents(old_MD).T


def joined(name: str, singles: Mapping[str, Way], spreads: Mapping[str, float]) -> Way:
    """A way of that name from those of `SINGLE`."""
    if name in singles:
        return singles[name]
    translators, relative = [singles[one] for one in TRANSLATORS], singles["relative"] if name == "mean" else None
    share = 1 / len(TRANSLATORS) if relative is None else 0.5 / len(TRANSLATORS)
    last = [] if relative is None else [0.5 / spreads["relative"]]  # as much as all translators together
    return Mean(translators, relative, [share / spreads[one] for one in TRANSLATORS] + last)


def _made_of(name: str) -> Sequence[str]:
    """Those of `SINGLE` that a way consists of."""
    return (name,) if name in SINGLE else SINGLE if name == "mean" else TRANSLATORS


# -- files from outside


def _facts_in(content: Any, where: Any) -> Facts:
    """The facts that a file holds: names and numbers of the kinds that `fit` writes, and nothing else.

    Raises:
        UploadError: If it was written by another version, or holds anything else.
    """
    known = {field.name: field for field in fields(Facts)}
    needed = {name for name, one in known.items() if one.default is MISSING}
    if not isinstance(content, dict) or content.get("format_version") != FORMAT or set(content) - set(known):
        raise UploadError(f"{where} holds no migration of format {FORMAT}. Fit it anew with this version.")
    wrong = [name for name, is_right in _RIGHT.items() if name in content and not is_right(content[name])]
    wrong += sorted(needed - set(content))
    wrong = wrong or [name for name in ("method", "translator") if content[name] not in content["expected"]]
    wrong = wrong or (["spreads"] if set(content["spreads"]) != set(content["settings"]) else [])
    if wrong:
        found = f"{content[wrong[0]]!r:.80}" if wrong[0] in content else "nothing"
        raise UploadError(
            f"{FACTS_FILE} of {where} has {wrong[0]}={found}, expected what Migration.save writes. Fit it anew."
        )
    return Facts(**content)


def _is_bounded(found: Any) -> bool:
    return is_number(found) and abs(found) <= MOST_NUMBER


def _is_count(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found > 0


def _are_by_way(found: Any, names: Sequence[str], is_right: Callable[[str, Any], bool]) -> bool:
    return isinstance(found, dict) and all(name in names and is_right(name, one) for name, one in found.items())


def _are_settings(name: str, found: Any) -> bool:
    """Those that are tried for a way, each a number in a range that its mathematics bears."""
    if not isinstance(found, dict) or set(found) != set(GRIDS[name][0]):
        return False
    return all(_is_count(one) if key == "rank" else _is_bounded(one) and one > 0 for key, one in found.items())


_RIGHT: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("old_size", "new_size", "pairs", "stored"), _is_count),
    "method": lambda found: found in WAYS,
    "translator": lambda found: found in ON_UNTOUCHED_INDEX,
    **dict.fromkeys(("kept", "expected"), lambda found: _are_by_way(found, WAYS, lambda _, one: _is_bounded(one))),
    "agreed": lambda found: found is None or _are_by_way(found, WAYS, lambda _, one: _is_bounded(one)),
    "settings": lambda found: _are_by_way(found, SINGLE, _are_settings),
    "spreads": lambda found: _are_by_way(found, SINGLE, lambda _, one: _is_bounded(one) and one > 0),
    **dict.fromkeys(("old_model", "new_model"), lambda found: isinstance(found, str | None)),
}


# -- pairs that belong together


def _pairs(old_vectors: Vectors, new_vectors: Vectors) -> tuple[Tensor, Tensor]:
    old_ND, new_NE = _tensor(old_vectors), _tensor(new_vectors)
    for name, x_ND in (("old", old_ND), ("new", new_NE)):
        if x_ND.ndim != 2:
            raise EmbeddingError(f"The {name} vectors have shape {tuple(x_ND.shape)}, expected (pairs, width).")
    if len(old_ND) != len(new_NE):
        raise EmbeddingError(
            f"There are {len(old_ND)} old vectors and {len(new_NE)} new ones. Row i of both must be of one document."
        )
    if len(old_ND) < FEWEST_PAIRS:
        raise EmbeddingError(
            f"There are {len(old_ND)} pairs, expected {FEWEST_PAIRS} or more; {WANTED_PAIRS} do much better. Draw "
            "more documents from the index at random and encode them with the new model."
        )
    refuse_directionless(old_ND, "old vector")
    refuse_directionless(new_NE, "new vector")
    return old_ND, new_NE


def _refuse_strangers(old_ND: Tensor, stored_MD: Tensor) -> None:
    """Raise `EmbeddingError` if the old side of the pairs does not look like what the index holds."""
    if stored_MD.ndim != 2 or stored_MD.shape[1] != old_ND.shape[1]:
        raise EmbeddingError(
            f"stored has shape {tuple(stored_MD.shape)}, expected (any, {old_ND.shape[1]}): vectors of the old model."
        )
    if len(stored_MD) < FEWEST_PAIRS:
        raise EmbeddingError(f"stored holds {len(stored_MD)} vectors, expected {FEWEST_PAIRS} or more. Leave it out.")
    refuse_directionless(stored_MD, "stored vector")
    centre_D = stored_MD.mean(0)
    shown_MD, shown_ND = unit(stored_MD[:TUNED_AGAINST] - centre_D), unit(old_ND[:TUNED_AGAINST] - centre_D)
    among_M = (shown_MD @ shown_MD.T).fill_diagonal_(-1).amax(1).median()
    towards_N = (shown_ND @ shown_MD.T).amax(1).median()
    if towards_N < STRANGER * among_M:
        raise EmbeddingError(
            f"The old vectors of the pairs are not from the model that made the index: their nearest stored vector "
            f"has a cosine of {towards_N:.2f}, that of stored vectors among themselves {among_M:.2f}. Take the old "
            "side of the pairs from the index itself."
        )


def _asking(queries: Vectors, width: int) -> Tensor:
    queries_QE = _tensor(queries)
    if queries_QE.ndim != 2 or queries_QE.shape[1] != width or len(queries_QE) < FEWEST_QUERIES:
        raise EmbeddingError(
            f"queries has shape {tuple(queries_QE.shape)}, expected ({FEWEST_QUERIES} or more, {width}): queries by "
            "the new model, some hundreds if you can. Or leave them out."
        )
    refuse_directionless(queries_QE, "query")
    return queries_QE


def _refuse_unrelated(trials: Sequence[_Trial]) -> None:
    """Raise `EmbeddingError` unless held-out pairs find one another."""
    found_N = torch.cat([_finds_its_own(trial) for trial in trials])
    found, chance = float(found_N.float().mean()), 1 / len(trials[0].old_HD)
    if found < chance + FEWEST_FOUND:
        raise EmbeddingError(
            f"The pairs do not belong together: of {len(found_N)} that were held out {found:.0%} find their other "
            f"half first, {chance:.0%} would by chance. Look whether row i of both is the same document, and whether "
            "both sides come from the models that you mean."
        )


def _finds_its_own(trial: _Trial) -> Tensor:
    """Whether the new vector of each held-out pair is nearest to its own old one (H,)."""
    scores_HH = _scores(build("procrustes", trial.old_AD, trial.new_AE, {}), trial.new_HE, trial.old_HD)
    return scores_HH.argmax(1) == torch.arange(len(scores_HH))


def _upper(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _tensor(vectors: Vectors) -> Tensor:
    if isinstance(vectors, Tensor):
        return vectors.detach().cpu().float()
    return torch.from_numpy(np.array(vectors, dtype=np.float32))  # a copy: views may be read-only or run backwards


def _like(given: Vectors, result: Tensor) -> Any:
    """As an array where an array was given."""
    return result.to(given.device) if isinstance(given, Tensor) else result.numpy()
