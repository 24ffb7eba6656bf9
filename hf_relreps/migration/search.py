"""Search in two stages: candidates by a translated query, then the new model itself, whose vectors are kept.

Shapes: B documents, M stored vectors, Q queries, C candidates, K documents found, S width of what finds candidates, E
width of the new model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from hf_relreps.errors import ConfigurationError, EmbeddingError, UploadError
from hf_relreps.similarities import unit


NEAREST = 10
ENCODED_AT_ONCE = 256  # documents between two files: the most that a kill loses
QUERIES_AT_ONCE = 256
SUFFIX, UNFINISHED = ".safetensors", ".unfinished"
SAME_MODEL = 0.95  # cosine of two encodings of one document by one model, with room for other batches and types

Id = int | str


class Found(NamedTuple):
    """What a search found.

    Args:
        ids: Of documents (Q, K), the best first: rows of the index, or the ids that a store gave.
        scores: Cosines by the new model (Q, K).
        encoded: Documents that this search had to encode.
        renewed: Documents of which the new vector is kept now.
        stored: Documents in the index; ``None`` where a store does not say.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import Found, fit
        >>> migration = fit(index[:300], new_vectors[:300], stored=index)
        >>> found = migration.search(new_queries, index, lambda rows: new_vectors[rows], candidates=30)
        >>> isinstance(found, Found), found.share_renewed < 0.25
        (True, True)

        ```
    """

    ids: np.ndarray
    scores: np.ndarray
    encoded: int
    renewed: int
    stored: int | None

    @property
    def share_renewed(self) -> float | None:
        """How much of the index has a vector of the new model by now, where the size of the index is known."""
        return None if self.stored is None else self.renewed / self.stored


class RenewedVectors:
    """New vectors of documents, by the id that they have in the index: in memory, or in a folder that survives a kill.

    Each batch becomes a file of its own, which is renamed when it is whole; what a kill leaves unfinished is not read.

    Args:
        folder: Where the files lie; in memory if left out. A folder is for one index and one new model.

    Raises:
        EmbeddingError: If files hold vectors of several widths.
        UploadError: If a file in the folder was not written by this class.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.migration import RenewedVectors
        >>> renewed = RenewedVectors("renewed-documents")
        >>> renewed.add([7, 3], torch.eye(2))
        >>> RenewedVectors("renewed-documents").take([3])  # another process, later
        tensor([[0., 1.]])
        >>> 7 in renewed, renewed.ids
        (True, [7, 3])

        ```
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._vectors: dict[Id, Tensor] = {}
        if self.folder is not None and self.folder.is_dir():
            for file in sorted(self.folder.glob(f"*{SUFFIX}")):
                self._keep(*_read(file))
        self.unchecked = next(iter(self._vectors), None)  # one that lay in the folder: is it of the new model?

    def __len__(self) -> int:
        return len(self._vectors)

    def __contains__(self, id_: Id) -> bool:
        return id_ in self._vectors

    @property
    def ids(self) -> list[Id]:
        """Of the documents whose new vector is kept."""
        return list(self._vectors)

    def missing(self, ids: Iterable[Id]) -> list[Id]:
        """Those of `ids` of which there is no vector yet."""
        return [id_ for id_ in ids if id_ not in self._vectors]

    def add(self, ids: Sequence[Id], vectors_BE: Tensor) -> None:
        """Keep vectors; on return they are in their file."""
        self._keep(ids, vectors_BE)
        if self.folder is None or not ids:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"{uuid4().hex}{SUFFIX}"  # several processes may share the folder
        unfinished = place.with_name(f"{place.name}{UNFINISHED}")
        save_file({"vectors": vectors_BE.contiguous()}, unfinished, {"ids": json.dumps(list(ids))})
        unfinished.replace(place)

    def take(self, ids: Iterable[Id]) -> Tensor:
        """Their vectors (B, E)."""
        return torch.stack([self._vectors[id_] for id_ in ids])

    def _keep(self, ids: Sequence[Id], vectors_BE: Tensor) -> None:
        width = len(next(iter(self._vectors.values()))) if self._vectors else vectors_BE.shape[-1]
        if vectors_BE.ndim != 2 or len(vectors_BE) != len(ids) or vectors_BE.shape[1] != width:
            raise EmbeddingError(
                f"The new vectors of {len(ids)} documents have shape {tuple(vectors_BE.shape)}, expected "
                f"({len(ids)}, {width}). The new model must give one vector for each document, all of one width, and "
                "a folder of renewed vectors is for one new model."
            )
        self._vectors |= zip(ids, vectors_BE, strict=True)


def _read(file: Path) -> tuple[list[Id], Tensor]:
    try:
        with safe_open(file, "pt") as content:
            ids, vectors_BE = json.loads(content.metadata()["ids"]), content.get_tensor("vectors")
        if not isinstance(ids, list) or not all(isinstance(id_, int | str) for id_ in ids):
            raise TypeError("its ids are not whole numbers and texts")
        if not vectors_BE.isfinite().all():
            raise ValueError("a vector is not finite")
        return ids, vectors_BE.float()
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UploadError(
            f"{file} holds no renewed vectors ({type(error).__name__}: {error}). Give a folder of its own for them, "
            "or remove that file: its documents are encoded again."
        ) from error


def as_id(given: Any) -> Id:
    """An id as files keep it.

    Raises:
        ConfigurationError: If it is neither a whole number nor text.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, Integral):
        return int(given)
    raise ConfigurationError(
        f"The id of a document is {given!r}, a {type(given).__name__}, expected a whole number or text. Give str(id)."
    )


def two_stages(
    new_QE: Tensor,
    candidates: Iterable[Sequence[Sequence[Id]]],
    encode_new: Callable[[list[Id]], Any],
    *,
    k: int,
    renewed: RenewedVectors,
    stored: int | None,
) -> Found:
    """Put candidates in order by the new model.

    Args:
        new_QE: Queries by the new model.
        candidates: For each `QUERIES_AT_ONCE` of them, the ids of the candidates of each.
        encode_new: From ids to vectors of the new model.
        k: Documents to find.
        renewed: New vectors that are known; those that are missing are added.
        stored: Documents in the index, where that is known.

    Raises:
        ConfigurationError: If a query has fewer candidates than `k`.
    """
    ids: list[list[Id]] = []
    scores, encoded = [], 0
    for some_QE, some in zip(new_QE.split(QUERIES_AT_ONCE), candidates, strict=False):
        _refuse_too_few(some, k, stored)
        encoded += renew(dict.fromkeys(id_ for row in some for id_ in row), encode_new, renewed)
        for row, query_E in zip(some, unit(some_QE), strict=True):
            best = (unit(renewed.take(row)) @ query_E).topk(k)
            ids.append([row[i] for i in best.indices.tolist()])
            scores.append(best.values)
    return Found(
        np.array(ids) if ids else np.empty((0, k), dtype=np.int64),
        torch.stack(scores).numpy() if scores else np.empty((0, k), dtype=np.float32),
        encoded,
        len(renewed),
        stored,
    )


def _refuse_too_few(candidates: Sequence[Sequence[Id]], k: int, stored: int | None) -> None:
    fewest = min(map(len, candidates), default=k)
    if fewest < k:
        of = "" if stored is None else f", of {stored} stored vectors"
        raise ConfigurationError(
            f"k={k} documents are to be found among {fewest} candidates{of}. Ask for k or more candidates, or for "
            "fewer documents."
        )


def nearest_rows(asking_QS: Tensor, documents_MS: Tensor, count: int, hubs_M: Tensor | None = None) -> list[list[int]]:
    """The rows of the documents whose inner product with each query is largest."""
    scores_QM = asking_QS @ documents_MS.T
    scores_QM = scores_QM if hubs_M is None else 2 * scores_QM - hubs_M
    return scores_QM.topk(min(count, len(documents_MS))).indices.tolist()


def hub_scores(asking_PS: Tensor, documents_MS: Tensor) -> Tensor:
    """The mean of the ten highest scores of each document (M,) by queries in general."""
    nearest = min(NEAREST, len(asking_PS))
    parts = [(x_BS @ asking_PS.T).topk(nearest).values.mean(1) for x_BS in documents_MS.split(2048)]
    return torch.cat(parts)


def renew(
    ids: Iterable[Id], encode_new: Callable[[list[Id]], Any], renewed: RenewedVectors, progress: bool = False
) -> int:
    """Encode the documents whose new vector is not kept yet; how many.

    Raises:
        EmbeddingError: If what the folder kept of a document is not what the new model says.
    """
    ids = list(ids)
    refuse_other_model(ids, encode_new, renewed)
    missing = renewed.missing(ids)
    with shown(len(ids), progress) as bar:
        bar.update(len(ids) - len(missing))
        for i in range(0, len(missing), ENCODED_AT_ONCE):
            some = missing[i : i + ENCODED_AT_ONCE]
            renewed.add(some, vectors_of(some, encode_new))
            bar.update(len(some))
    return len(missing)


def vectors_of(given: list[Any], encode: Callable[[list[Any]], Any]) -> Tensor:
    """What the new model gives (B, E), as float32 on the CPU."""
    return torch.as_tensor(encode(given)).detach().cpu().float()


def shown(total: int | None, progress: bool, title: str = "Encoding") -> Any:
    """A progress bar, on a terminal only."""
    return tqdm(total=total, desc=title, unit="document", disable=None if progress else True)


def refuse_other_model(ids: list[Id], encode_new: Callable[[list[Id]], Any], renewed: RenewedVectors) -> None:
    """Raise `EmbeddingError` unless the model says again what the folder kept of one document; asked once."""
    known = renewed.unchecked if renewed.unchecked in ids else None
    if known is None and renewed.unchecked is not None:
        known = next((id_ for id_ in ids if id_ in renewed), None)
    if known is None:
        return
    kept_BE, now_BE = renewed.take([known]), vectors_of([known], encode_new)
    cosine = float((unit(kept_BE) * unit(now_BE)).sum()) if kept_BE.shape == now_BE.shape else 0.0
    if cosine < SAME_MODEL:
        raise EmbeddingError(
            f"{renewed.folder} keeps a vector of document {known!r} whose cosine with what the new model says now is "
            f"{cosine:.2f}, expected {SAME_MODEL} or more. A folder of renewed vectors is for one index and one new "
            "model: give another folder."
        )
    renewed.unchecked = None
