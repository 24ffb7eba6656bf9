"""From an index of texts and a new model to a search that uses both: `migrate`.

`hf_relreps.migration.fit` works on vectors alone; here the new model is at hand, and the texts that the index holds.

Shapes: M stored vectors, Q queries, B texts, C candidates, D width of the old model, E width of the new one, S width
of what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from hf_relreps.errors import ConfigurationError, EmbeddingError, SampleError
from hf_relreps.migration.fitting import FEWEST_PAIRS, MOST_STORED, WANTED_PAIRS, Migration, Vectors, fit
from hf_relreps.migration.measuring import Measured, known_answers, recalls
from hf_relreps.migration.search import (
    ENCODED_AT_ONCE,
    NEAREST,
    QUERIES_AT_ONCE,
    Found,
    Id,
    RenewedVectors,
    as_id,
    hub_scores,
    nearest_rows,
    refuse_other_model,
    renew,
    shown,
    two_stages,
    vectors_of,
)
from hf_relreps.migration.ways import WAYS
from hf_relreps.samples import as_list
from hf_relreps.space import require_whole


if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BEFORE_SWITCHING = (
    "This is a rough forecast from documents alone. Queries with known answers say more: measure(queries, answers)."
)

Encode = Callable[[list[str]], Any]
# Queries (Q, S) and a count -> for each query the texts of its nearest documents, by their ids, the nearest first.
Nearest = Callable[[np.ndarray, int], Sequence[Mapping[Any, str]]]


class TextMigration:
    """A new model searches the index of an old one; made by `migrate`, or by `load` from what was saved.

    Args:
        migration: Fitted on vectors of the new model.
        new: The new model: a `SentenceTransformer`, its name, or a function from texts to vectors (B, E).
        new_queries: If the new model reads queries in another way than documents: a function like `new`. A
            `SentenceTransformer` needs none: it adds its own prompts.
        nearest: How the index is asked: from queries (Q, D) and a count to the texts of the nearest documents of each
            query, by their ids. One line for each store; the `examples` folder has those of four.
        renewed: Where new vectors are kept: a folder, which survives a kill, or what another search used. In memory
            if left out.
        way: That of the queries which `nearest` is given; `migration.facts.translator` if left out, which leaves the
            index as it is.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import TextMigration, migrate
        >>> migrate(old_index, texts, new_model, pairs=150).save("switched")
        >>> table = dict(enumerate(texts))  # stands for a store of yours
        >>> def nearest(queries, count):
        ...     rows = (queries @ old_index.T).argsort(1)[:, ::-1][:, :count]
        ...     return [{int(row): table[int(row)] for row in some} for some in rows]
        >>> switched = TextMigration.load("switched", nearest=nearest, renewed="renewed-texts")
        >>> switched.queries("a game of cards").shape  # one stage: ask the store with these
        (1, 32)
        >>> found = switched.search(["a game of cards", "a web server"], k=3, candidates=20)  # two stages
        >>> found.ids.shape, found.renewed <= 40
        ((2, 3), True)
        >>> asked = [text.partition(". ")[0] for text in texts[:100]]  # queries whose answers you know
        >>> measured = switched.measure(asked, range(100), k=3, candidates=20)  # print(measured) shows all of it
        >>> measured.one_stage <= measured.two_stages
        True
        >>> switched.renew(table.items(), at_most=50)  # some more, whenever there is time
        50

        ```
    """

    def __init__(
        self,
        migration: Migration,
        new: SentenceTransformer | str | Path | Encode,
        *,
        new_queries: Encode | None = None,
        nearest: Nearest | None = None,
        renewed: RenewedVectors | str | Path | None = None,
        way: str | None = None,
    ) -> None:
        self.migration = migration
        self.way = migration.facts.translator if way is None else way
        self.model, self._encode, self._encode_queries = _encoders(new, new_queries)
        self.nearest = nearest
        self.renewed = _kept(renewed)

    def queries(self, texts: str | Sequence[str]) -> np.ndarray:
        """What to ask the index with, by cosine: queries as directions (Q, D)."""
        return self._asking(self._read(texts))

    def search(self, texts: str | Sequence[str], *, k: int = NEAREST, candidates: int = 50) -> Found:
        """The k best documents: the index gives candidates, the new model puts them in order.

        The index is only read. A candidate is encoded once: its vector is kept in `renewed`.

        Args:
            texts: One query or several.
            k: Documents to find.
            candidates: Documents that the index is asked for and the new model encodes, for each query.

        Raises:
            ConfigurationError: If there is no `nearest`, or the index gives fewer documents than `k`.
            EmbeddingError: If `renewed` is the folder of another model or index.
        """
        return self._search(texts, k, candidates)[1]

    def measure(
        self,
        queries: Sequence[str],
        answers: Sequence[Any],
        *,
        today: Sequence[Sequence[Any]] | None = None,
        k: int = NEAREST,
        candidates: int = 50,
    ) -> Measured:
        """Recall of queries whose answers are known, in one stage and in two: 300 queries tell it within 0.04.

        The forecast of `report` is made of documents, and cannot know how well each model understands queries. What is
        encoded here is kept in `renewed`, as by a search.

        Args:
            queries: Q texts.
            answers: For each of them the id of the right document, or several.
            today: For each of them the ids that the index finds today by queries of the old model, the best first: to
                see what changes.
            k: Documents to find.
            candidates: Documents that the new model puts in order, for each query.

        Raises:
            ConfigurationError: As `search` does, or if there are other numbers of queries and answers.
            SampleError: If there are no queries, or one has no answer.
        """
        queries = as_list(queries, "queries")
        if not queries:
            raise SampleError("There are no queries. Give some hundreds whose answers are known.")
        right = known_answers(as_list(answers, "answers"), len(queries))
        if today is not None and len(today) != len(queries):
            raise ConfigurationError(f"today has the ids of {len(today)} queries, expected {len(queries)}.")
        first, found = self._search(queries, k, candidates)
        return Measured(
            recalls(first, right, k),
            recalls(found.ids.tolist(), right, k),
            None if today is None else recalls(today, right, k),
            k,
            candidates,
        )

    def renew(
        self, documents: Iterable[tuple[Any, str]], *, at_most: int | None = None, progress: bool = False
    ) -> int:
        """Encode documents that no search has renewed yet; how many.

        What is encoded is kept at once, so a run that is killed goes on where it was: documents that are known are
        passed over. The store is not written: `renewed.ids` and `renewed.take(ids)` are what to write.

        Args:
            documents: Ids and texts, in any order: read one after the other, so they may come from a cursor.
            at_most: Documents to encode in this call.
            progress: Whether to show a progress bar, on a terminal.
        """
        left = islice(self._missing(documents), at_most)
        count = 0
        with shown(at_most, progress, "Renewing") as bar:
            while some := dict(islice(left, ENCODED_AT_ONCE)):
                count += renew(some, _of(some, self._encode), self.renewed)
                bar.update(len(some))
        return count

    def _missing(self, documents: Iterable[tuple[Any, str]]) -> Iterator[tuple[Id, str]]:
        for given, text in documents:
            one = as_id(given)
            if one not in self.renewed:
                yield one, text
            else:
                refuse_other_model([one], _of({one: text}, self._encode), self.renewed)

    def adapter(self) -> SentenceTransformer:
        """The new model as a `SentenceTransformer` whose embeddings lie in the old space: see `query_adapter`.

        Raises:
            ConfigurationError: If the new model is a function.
        """
        from hf_relreps.migration.adapters import query_adapter

        if self.model is None:
            raise ConfigurationError(
                "The new model is a function, of which no SentenceTransformer can be made. Save what was fitted: "
                "migration.save(folder)."
            )
        return query_adapter(self.model, self.migration)

    @property
    def report(self) -> str:
        """What to know before anybody switches: see `Migration.report`."""
        return f"{self.migration.report}\n{BEFORE_SWITCHING}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.migration})"

    def save(self, folder: str | Path) -> None:
        """Write the adapter, which any `SentenceTransformer` code can use; of a function only what was fitted."""
        if self.model is None:
            self.migration.save(folder)
        else:
            self.adapter().save(str(folder))

    @classmethod
    def load(cls, name: str | Path, new: Encode | None = None, *, device: str | None = None, **how: Any) -> Self:
        """Read what `save` wrote, from a folder or the Hub.

        Args:
            name: Folder or repository.
            new: The new model, if it was a function.
            device: Where a `SentenceTransformer` runs.
            **how: As for the class: nearest, renewed, new_queries, way.
        """
        if new is not None:
            return cls(Migration.load(name), new, **how)
        from hf_relreps.migration.adapters import load_adapter, new_model_of

        adapter = load_adapter(name, device=device)
        return cls(cast(Any, adapter[-1]).migration, new_model_of(adapter), **how)

    # -- inside

    def _search(self, texts: str | Sequence[str], k: int, candidates: int) -> tuple[list[list[Id]], Found]:
        """The candidates of each query, the nearest first, and the search among them."""
        require_whole("k", k, low=1)
        require_whole("candidates", candidates, low=1)
        ask = self.nearest
        if ask is None:
            raise ConfigurationError(
                "There is no index to ask. Give nearest, a function from queries and a count to the texts of the "
                "nearest documents by their ids; in_memory(vectors, texts) makes one of arrays."
            )
        new_QE = self._read(texts)
        known: dict[Id, str] = {}
        first: list[list[Id]] = []

        def candidates_of(x_QE: Tensor) -> list[list[Id]]:
            given = list(ask(self._asking(x_QE), candidates))
            _refuse_no_texts(given, len(x_QE))
            found = [{as_id(one): text for one, text in row.items()} for row in given]
            for row in found:
                known.update(row)
            ids = [list(row) for row in found]
            first.extend(ids)
            return ids

        found = two_stages(
            new_QE,
            map(candidates_of, new_QE.split(QUERIES_AT_ONCE)),
            _of(known, self._encode),
            k=k,
            renewed=self.renewed,
            stored=getattr(ask, "stored", None),
        )
        return first, found

    def _read(self, texts: str | Sequence[str]) -> Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            return torch.empty(0, self.migration.facts.new_size)
        return vectors_of(texts, self._encode_queries)

    def _asking(self, new_QE: Tensor) -> np.ndarray:
        return self.migration.queries(new_QE, self.way).numpy()


def migrate(
    old_vectors: Vectors,
    texts: Sequence[str],
    new: SentenceTransformer | str | Path | Encode,
    *,
    new_queries: Encode | None = None,
    nearest: Nearest | None = None,
    ids: Sequence[Any] | None = None,
    queries: Sequence[str] | None = None,
    pairs: int = WANTED_PAIRS,
    renewed: RenewedVectors | str | Path | None = None,
    ways: Sequence[str] = WAYS,
    old_model: str | None = None,
    new_model: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TextMigration:
    """Search the index of an old model with a new one, and know beforehand how much it will find.

    The new model encodes a sample of the index's own texts. With the vectors that the index has of them, that is all
    it needs: the old model is not asked, there are no labels, and the index is only read.

    Args:
        old_vectors: Stored vectors (M, D): the index, or rows of it that were drawn at random.
        texts: Their texts, row by row.
        new: The new model: a `SentenceTransformer`, its name, or a function from texts to vectors (B, E).
        new_queries: If a function reads queries in another way than documents.
        nearest: How a store is asked, see `TextMigration`. If left out, `old_vectors` are searched in memory, by the
            best way: one that projects them keeps as many numbers for each as there are pairs.
        ids: Those of the documents in the store, row by row; row numbers if left out.
        queries: Some hundreds of queries, whatever they ask, of which no answers are known: from a log, for instance.
            The ways of an untouched index are compared by them, and a search in memory corrects for documents that are
            near to everything.
        pairs: Documents that the new model encodes: 1,000 if you can, 300 at least. Rows without a text or with a text
            that was drawn before are passed over.
        renewed: A folder that keeps what the new model encodes, for a run that is killed, and for the search.
        ways: Among which to choose: names in `WAYS`.
        old_model: Its name, for the record.
        new_model: Its name, for the record; that of a `SentenceTransformer` if left out.
        seed: Of the draws.
        progress: Whether to show a progress bar, on a terminal.

    Raises:
        ConfigurationError: If there is no such way, or an id is neither a number nor text.
        EmbeddingError: If the numbers of texts and vectors differ, there are too few, or vectors and texts do not
            belong together.
        SampleError: If too few rows have a text.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import migrate
        >>> switched = migrate(old_index, texts, new_model, pairs=150)  # or "sentence-transformers/all-mpnet-base-v2"
        >>> print(switched.report)
        150 pairs from 32 to 32 dimensions: ...
        >>> found = switched.search("a game of cards", k=3)
        >>> [texts[row] for row in found.ids[0]]
        [...]
        >>> adapter = switched.adapter()  # one stage: a SentenceTransformer for the code that asks the index today

        ```
    """
    require_whole("pairs", pairs, low=FEWEST_PAIRS)
    if nearest is not None and ids is None:
        raise ConfigurationError(
            "nearest gives the ids of a store, but ids was left out. Give the ids that the texts have in it."
        )
    old_vectors, texts = _matrix(old_vectors), as_list(texts, "texts")
    ids = None if ids is None else as_list(ids, "ids")
    _refuse_unequal(old_vectors, texts, ids)
    rows = np.random.default_rng(seed).permutation(len(texts))
    drawn = _drawn(rows, old_vectors, texts, pairs)
    kept = _kept(renewed)
    if isinstance(new, str | Path):
        new_model, new = new_model or _name_of(new), _loaded(new)
    _, encode, encode_queries = _encoders(new, new_queries)
    asked = {as_id(row if ids is None else ids[row]): str(texts[row]) for row in drawn}
    if len(asked) < len(drawn):
        raise ConfigurationError(f"{len(drawn)} documents have {len(asked)} ids. Each needs an id of its own.")
    renew(asked, _of(asked, encode), kept, progress)
    asking_QE = None if queries is None else vectors_of(list(queries), encode_queries)
    migration = fit(
        _rows(old_vectors, drawn),
        kept.take(asked),
        stored=_some_others(old_vectors, rows, drawn),
        queries=asking_QE,
        ways=ways,
        old_model=old_model,
        new_model=new_model,
        seed=seed,
    )
    way = migration.facts.translator
    if nearest is None:
        way = migration.facts.method
        others = None if asking_QE is None else migration.queries(asking_QE, way)
        nearest = in_memory(migration.indexed(old_vectors, way), texts, ids, others)
    return TextMigration(migration, new, new_queries=new_queries, nearest=nearest, renewed=kept, way=way)


class in_memory:
    """A `nearest` for `TextMigration` that compares each query with all vectors, by cosine.

    Args:
        vectors: Stored vectors (M, D).
        texts: Their texts.
        ids: Of the documents; row numbers if left out.
        others: Some hundreds of other queries, as it will be asked (P, D): to take off each document's mean of its ten
            highest scores by them, so that none is found by everything.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import in_memory
        >>> nearest = in_memory(old_index, texts)
        >>> list(nearest(old_index[7:8], 1)[0])
        [7]

        ```
    """

    def __init__(
        self,
        vectors: Vectors,
        texts: Sequence[str],
        ids: Sequence[Any] | None = None,
        others: Vectors | None = None,
    ) -> None:
        texts = as_list(texts, "texts")
        ids = None if ids is None else as_list(ids, "ids")
        _refuse_unequal(vectors, texts, ids)
        self.vectors_MD = torch.nn.functional.normalize(torch.as_tensor(np.asarray(vectors)).float(), dim=-1)
        self.texts, self.ids = texts, ids
        self.stored = len(texts)
        self.hubs_M = None if others is None else hub_scores(torch.as_tensor(others).float(), self.vectors_MD)

    def __call__(self, queries: np.ndarray, count: int) -> list[dict[Any, str]]:
        """See `TextMigration`."""
        found = nearest_rows(torch.as_tensor(queries).float(), self.vectors_MD, count, self.hubs_M)
        return [{row if self.ids is None else self.ids[row]: self.texts[row] for row in rows} for rows in found]


# -- inside


def _refuse_no_texts(given: list[Any], queries: int) -> None:
    """Raise `ConfigurationError` unless a store gave texts by their ids for each query."""
    what = "For each query return the texts of its nearest documents by their ids: {7: 'a text', 3: 'another'}."
    if len(given) != queries:
        raise ConfigurationError(f"nearest gave candidates of {len(given)} queries, expected {queries}. {what}")
    for row in given:
        if not isinstance(row, Mapping):
            raise ConfigurationError(f"nearest gave a {type(row).__name__}, expected a mapping. {what}")


def _encoders(new: Any, new_queries: Encode | None) -> tuple[SentenceTransformer | None, Encode, Encode]:
    """The new model if it is a `SentenceTransformer`, and how it reads documents and queries."""
    if isinstance(new, str | Path):
        new = _loaded(new)
    if hasattr(new, "encode_document"):  # a SentenceTransformer, which adds the prompts that it was trained with
        how = {"show_progress_bar": False}
        return new, partial(new.encode_document, **how), new_queries or partial(new.encode_query, **how)
    if not callable(new):
        raise ConfigurationError(
            f"new is a {type(new).__name__}, expected a SentenceTransformer, its name, or a function from texts to "
            "vectors."
        )
    return None, new, new_queries or new


def _loaded(name: str | Path) -> SentenceTransformer:
    from hf_relreps.sentence_transformers import load_with_module

    return load_with_module(str(name))


def _name_of(name: str | Path) -> str:
    """Of a model: of a folder on this machine only its last part."""
    return Path(name).name if Path(name).is_dir() else str(name)


def _kept(renewed: RenewedVectors | str | Path | None) -> RenewedVectors:
    return renewed if isinstance(renewed, RenewedVectors) else RenewedVectors(renewed)


def _of(texts: Mapping[Id, str], encode: Encode) -> Callable[[list[Id]], Any]:
    """From ids to vectors."""
    return lambda ids: encode([texts[one] for one in ids])


def _matrix(vectors: Vectors) -> np.ndarray:
    return vectors.detach().cpu().float().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors)


def _refuse_unequal(vectors: Any, texts: Sequence[str], ids: Sequence[Any] | None) -> None:
    if vectors.ndim != 2:
        raise EmbeddingError(f"The stored vectors have shape {tuple(vectors.shape)}, expected (documents, width).")
    counts = {"vectors": len(vectors), "texts": len(texts)} | ({} if ids is None else {"ids": len(ids)})
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise EmbeddingError(f"There are {told}. Row i of each must be of one document.")


def _drawn(rows: np.ndarray, vectors: np.ndarray, texts: Sequence[str], pairs: int) -> list[int]:
    """The first rows that have a direction, and a text that none before them has."""
    drawn: dict[str, int] = {}
    for row in rows.tolist():
        text = texts[row]
        if not isinstance(text, str) and text is not None:
            raise SampleError(f"texts[{row}] is a {type(text).__name__}, expected a text.")
        if text and text.strip() and _have_direction(vectors[row][None])[0]:
            drawn.setdefault(text, row)
        if len(drawn) == pairs:
            break
    if len(drawn) < FEWEST_PAIRS:
        raise SampleError(
            f"{len(drawn)} of {len(rows)} rows have a text of their own and a vector, expected {FEWEST_PAIRS} or "
            "more. Give more rows of the index."
        )
    return list(drawn.values())


def _some_others(vectors: np.ndarray, rows: np.ndarray, drawn: Sequence[int]) -> np.ndarray:
    """Stored vectors for the forecast: others than those of the pairs, if there are enough."""
    others = rows[~np.isin(rows, drawn)]
    some = _rows(vectors, (others if len(others) >= len(drawn) else rows)[:MOST_STORED])
    return some[_have_direction(some)]


def _rows(vectors: np.ndarray, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(vectors[np.asarray(rows)], dtype=np.float32)


def _have_direction(vectors_BD: np.ndarray) -> np.ndarray:
    return np.isfinite(vectors_BD).all(1) & vectors_BD.any(1)
