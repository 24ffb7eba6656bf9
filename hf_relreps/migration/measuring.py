"""What a migration finds for queries whose answers are known.

Pairs of vectors alone cannot tell which of two models understands queries better (`docs/retrieval.md`); some hundreds
of queries with their answers can.

Shapes: Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_relreps.errors import ConfigurationError, SampleError
from hf_relreps.migration.search import Id, as_id


class Measured(NamedTuple):
    """Recall of queries with known answers; made by `TextMigration.measure`.

    The recall of a query is the share of its answers among the first k documents, of k answers at most. Printed, each
    figure has its standard error, that of a share from the same queries on both sides.

    Args:
        one_stage_Q: Recall of each query by the index, asked as it is.
        two_stages_Q: The same after the new model has put the candidates in order.
        today_Q: The same of what the index finds today; ``None`` if that was not given.
        k: Documents that were asked for.
        candidates: Documents that the new model put in order, for each query.

    Example:
        ```python
        >>> import numpy as np
        >>> from hf_relreps.migration import Measured
        >>> measured = Measured(np.array([1.0, 0.0]), np.ones(2), np.ones(2), k=10, candidates=50)
        >>> measured.one_stage, measured.two_stages, measured.today
        (0.5, 1.0, 1.0)
        >>> print(measured)
        recall@10 of 2 queries with known answers
          0.50 ± 0.50  one stage; 0.50 ± 0.50 of what is found today
          1.00 ± 0.00  two stages, 50 candidates; 1.00 ± 0.00 of what is found today
          1.00 ± 0.00  today

        ```
    """

    one_stage_Q: np.ndarray
    two_stages_Q: np.ndarray
    today_Q: np.ndarray | None
    k: int
    candidates: int

    @property
    def one_stage(self) -> float:
        """Mean recall of one stage."""
        return float(self.one_stage_Q.mean())

    @property
    def two_stages(self) -> float:
        """Mean recall of two stages."""
        return float(self.two_stages_Q.mean())

    @property
    def today(self) -> float | None:
        """Mean recall of what the index finds today, if that is known."""
        return None if self.today_Q is None else float(self.today_Q.mean())

    def __str__(self) -> str:
        lines = [f"recall@{self.k} of {len(self.one_stage_Q)} queries with known answers"]
        named = (self.one_stage_Q, "one stage"), (self.two_stages_Q, f"two stages, {self.candidates} candidates")
        lines += [f"  {_mean(recall_Q)}  {name}{self._beside_today(recall_Q)}" for recall_Q, name in named]
        return "\n".join(lines if self.today_Q is None else [*lines, f"  {_mean(self.today_Q)}  today"])

    def _beside_today(self, recall_Q: np.ndarray) -> str:
        if self.today_Q is None or not self.today_Q.any():
            return ""
        share, error = share_of(recall_Q, self.today_Q)
        return f"; {share:.2f} ± {error:.2f} of what is found today"


def share_of(recall_Q: np.ndarray, whole_Q: np.ndarray) -> tuple[float, float]:
    """The mean of one recall as a share of that of another, and its standard error: a ratio of paired means."""
    share = float(recall_Q.mean() / whole_Q.mean())
    return share, _error(recall_Q - share * whole_Q) / float(whole_Q.mean())


def recalls(found: Sequence[Sequence[Any]], answers: Sequence[frozenset[Id]], k: int) -> np.ndarray:
    """The recall@k of each query (Q,), of the ids that were found for it, the best first.

    Raises:
        ConfigurationError: If the ids are numbers and the answers texts, or the other way round.
    """
    rows = [list(map(as_id, row[:k])) for row in found]
    ids, right = {type(id_): id_ for row in rows for id_ in row}, {type(id_): id_ for some in answers for id_ in some}
    if ids and not ids.keys() & right.keys():
        one, other = next(iter(ids.values())), next(iter(right.values()))
        raise ConfigurationError(
            f"The index gives ids such as {one!r}, the answers are such as {other!r}. Give the ids of the index."
        )
    return np.array([len(some & set(row)) / min(k, len(some)) for row, some in zip(rows, answers, strict=True)])


def known_answers(answers: Sequence[Any], queries: int) -> list[frozenset[Id]]:
    """The ids of the right documents of each query.

    Raises:
        ConfigurationError: If an id is neither a number nor text, or there are other numbers of answers and queries.
        SampleError: If a query has no answer.
    """
    if len(answers) != queries:
        raise ConfigurationError(f"There are {queries} queries and answers to {len(answers)}. Give answers to each.")
    known = [frozenset(map(as_id, _several(given))) for given in answers]
    for number, right in enumerate(known):
        if not right:
            raise SampleError(f"Query {number} has no answer. Give the id of a document, or leave the query out.")
    return known


def _several(given: Any) -> Iterable[Any]:
    """An id alone is one answer."""
    return given if isinstance(given, list | tuple | set | frozenset | np.ndarray) else [given]


def _mean(recall_Q: np.ndarray) -> str:
    return f"{recall_Q.mean():.2f} ± {_error(recall_Q):.2f}"


def _error(x_Q: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(x_Q.std(ddof=1) / np.sqrt(len(x_Q))) if len(x_Q) > 1 else float("nan")
