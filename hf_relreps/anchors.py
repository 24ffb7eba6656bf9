"""`AnchorSet`: which samples are anchors, in which order, and how each of them looks in every view.

An anchor is a meaning; a view is one way to express all of them: a language, a modality. The fingerprint names the
meanings and their order, so it stays when a view is added and changes when the order does.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image

from hf_relreps.anchor_files import (
    FOLDER,
    ID_COLUMN,
    PLAIN_MODES,
    RECORD_FILE,
    TABLE_FILE,
    AnchorContent,
    ViewContent,
    read_anchors,
    refuse_changes,
    write_anchors,
)
from hf_relreps.conversations import in_one_line, plain
from hf_relreps.errors import AnchorError, AnchorIntegrityError, SampleError
from hf_relreps.model_card import anchors_card, merged
from hf_relreps.pairs import columns_in, is_pair, samples_in
from hf_relreps.samples import as_list, check_samples, digest_of_samples, read_as, unformatted
from hf_relreps.saving import saving_beside
from hf_relreps.selection import select
from hf_relreps.sources import Source, publish
from hf_relreps.words import Word, as_words, words_of


if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import CommitInfo


ENTITIES = "entities"  # a strategy for words: see `AnchorSet.from_tokens`


class AnchorSet:
    """k samples in a fixed order, each with one or more views of the same meaning.

    Args:
        ids: k distinct names of the meanings.
        views: For each view its k samples: texts, pairs of texts (``{"text": ..., "text_pair": ...}``), words
            (`hf_relreps.words.Word`), conversations (lists of messages ``{"role":, "content":}``), images, ..., none
            of them empty.
        origin: Where the anchors come from, for cards: any JSON object.

    Raises:
        AnchorError: If there are no anchors or no views, ids repeat, or a view has another length.
        SampleError: If a sample is empty or of a type that no encoder reads.

    Example:
        ```python
        >>> from hf_relreps import AnchorSet
        >>> anchors = AnchorSet(["cat", "dog"], {"en": ["a cat", "a dog"], "fr": ["un chat", "un chien"]})
        >>> len(anchors), anchors.views
        (2, ['en', 'fr'])
        >>> anchors.view("fr").samples[1]
        'un chien'
        >>> before = anchors.fingerprint
        >>> anchors.add_view("it", ["un gatto", "un cane"]).fingerprint == before
        True

        ```
    """

    def __init__(
        self, ids: Sequence[str], views: Mapping[str, Sequence[Any]], origin: Mapping[str, Any] | None = None
    ) -> None:
        self.ids = [str(id_) for id_ in ids]
        if not self.ids:
            raise AnchorError("An anchor set needs at least one anchor; the list of ids is empty.")
        nameless = [i for i, id_ in enumerate(ids) if id_ is None]
        if nameless:
            raise AnchorError(
                f"{len(nameless)} anchor ids are None, the first is ids[{nameless[0]}]; expected an id for each "
                "anchor. Fill the id_column or drop those rows."
            )
        repeated = [id_ for id_, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise AnchorError(
                f"{len(repeated)} anchor ids are repeated, the first is {repeated[0]!r}. A meaning can be an anchor "
                "only once: drop the repeated rows, or choose an id_column with unique values."
            )
        if not views:
            raise AnchorError("An anchor set needs at least one view, for example views={'en': texts}.")
        self.origin = dict(origin or {})
        self._views: dict[str, AnchorView] = {}
        for name, samples in views.items():
            self.add_view(name, samples)

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        k: int,
        *,
        views: Mapping[str, str | Sequence[str]] | Sequence[str] | str,
        id_column: str | None = None,
        strategy: str = "uniform",
        seed: int = 42,
        label_column: str = "label",
        embeddings: Any = None,
    ) -> Self:
        """Choose k rows of a dataset as anchors.

        Rows in which a view is missing (``None``) are not candidates: a meaning that lacks a language cannot be a
        parallel anchor. An empty text is an error, since it is more likely a mistake.

        Args:
            dataset: A `datasets.Dataset`, or a DataFrame of pandas or polars, with one column for each view.
            k: Number of anchors; the paper uses 300 to 768.
            views: Name of the view -> its column, or the two columns of pairs of texts: ``{"en": ("premise",
                "hypothesis")}``; a list where view and column are called the same.
            id_column: Column with the ids of the anchors. Without it each id is a hash of the row's views.
            strategy: ``uniform``, ``stratified``, ``kmeans`` or ``fps``: see `hf_relreps.selection.select`.
            seed: Seed of the choice.
            label_column: Classes for ``stratified``.
            embeddings: (N, D), a row for each row of the dataset, for ``kmeans`` and ``fps``: for example
                ``encoder.encode(dataset["en"])``.

        Raises:
            AnchorError: If a column does not exist, ids repeat, or k is larger than the number of complete rows.
            SampleError: If it is not one dataset (splits, a stream, a list), or no encoder reads what a column has.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> from hf_relreps.demos.debian import load_debian_descriptions
            >>> rows = load_debian_descriptions("train")
            >>> AnchorSet.from_dataset(rows, k=300, views=["en", "fr"], id_column="package")
            AnchorSet(300 anchors, views en, fr, fingerprint ...)

            ```
        """
        dataset = unformatted(dataset)
        if not hasattr(dataset, "column_names"):
            raise SampleError(
                f"dataset is a {type(dataset).__name__}, expected a datasets.Dataset. Build one: "
                "Dataset.from_dict(columns) or Dataset.from_list(rows)."
            )
        columns = _columns_of(views)
        wanted = [*_names_in(columns), *([id_column] if id_column else [])]
        wanted += [label_column] if strategy == "stratified" else []
        missing = [name for name in dict.fromkeys(wanted) if name not in dataset.column_names]
        if missing:
            raise AnchorError(
                f"The dataset has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(dataset.column_names)}. Use these names in views, id_column and label_column."
            )
        if embeddings is not None and len(embeddings) != len(dataset):
            raise AnchorError(
                f"embeddings has {len(embeddings)} rows for {len(dataset)} rows of data. Give one embedding for each "
                "row."
            )
        complete = _complete_rows(dataset, columns)
        if not complete:
            raise AnchorError(f"None of the {len(dataset)} rows has all of the views {', '.join(columns)}.")
        chosen = select(
            len(complete),
            k,
            strategy,
            seed,
            labels=dataset.select(complete)[label_column][:] if strategy == "stratified" else None,
            embeddings_ND=None if embeddings is None else torch.as_tensor(embeddings)[complete],
        )
        rows = [complete[i] for i in chosen]
        anchors = dataset.select(rows)
        samples = {name: as_words(samples_in(anchors, column)) for name, column in columns.items()}
        for name, column in columns.items():
            if check_samples(samples[name], f"column {column!r}", rows) == "node":
                raise SampleError(
                    f"column {column!r}[{rows[0]}] is {samples[name][0]} (int), expected text, an image or a sound. "
                    "Convert the column; for the nodes of a graph use AnchorSet(ids, {name: nodes})."
                )
        ids = anchors[id_column][:] if id_column else _content_ids(samples)
        origin = {"strategy": strategy, "seed": seed, "rows": len(complete)}
        return cls(ids, samples, origin=_name_of(dataset) | origin)

    @classmethod
    def from_tokens(
        cls,
        views: Mapping[str, Sequence[Word] | Sequence[Sequence[str]]],
        k: int,
        *,
        tags: Sequence[Any] | None = None,
        strategy: str | None = None,
        seed: int = 42,
        embeddings: Any = None,
    ) -> Self:
        """Choose k words in their sentences as anchors: an encoder reads texts token by token with them.

        Args:
            views: Name of the view -> its candidates: sentences as lists of words, all of whose words count; or single
                words. With several views row i means the same in each, such as a word and its translation, each in a
                sentence of its own: words then.
            k: Number of anchors.
            tags: One for each candidate, in the order of `words_of(sentences)` or sentence by sentence, for
                ``entities`` and ``stratified``.
            strategy: ``entities`` takes words of entities and others in turn, so that half of the anchors show
                entities, as far as there are as many; or as for `from_dataset`. ``stratified`` takes tags in turn;
                without tags words that are about as frequent, so that rare ones come as often as frequent ones. If
                left out: ``entities`` where `tags` are ``O``, ``B-...`` and ``I-...``, ``uniform`` where there are
                none. `docs/tokens_measured.md` says what this is worth.
            seed: Of the choice.
            embeddings: (N, D), one for each candidate, for ``kmeans`` and ``fps``: ``encoder.encode(words)``.

        Raises:
            AnchorError: If views have other numbers of candidates, there are fewer than k, there is not one tag or
                embedding for each, or the strategy does not suit the tags.
            SampleError: If a sentence is empty, or a word is none.

        Example:
            ```python
            >>> from hf_relreps import AnchorSet
            >>> sentences = [["Rain", "fell", "in", "Rome"], ["We", "left", "the", "city"]]
            >>> anchors = AnchorSet.from_tokens({"en": sentences}, k=5)
            >>> anchors.view().modality, str(AnchorSet.from_tokens({"en": sentences}, k=8).view().samples[0])
            ('word', ...)

            ```
        """
        if not isinstance(views, Mapping):
            raise AnchorError(
                f"views is a {type(views).__name__}, expected the name of each view with its sentences: "
                "AnchorSet.from_tokens({'en': sentences}, k=300)."
            )
        found = {name: _words_in(given, name) for name, given in views.items()}
        counts = {name: len(words) for name, words in found.items()}
        if tags is not None and len(tags) and all(isinstance(tag, list | tuple) for tag in tags):
            tags = [tag for of_sentence in tags for tag in of_sentence]
        told = {"tags": tags, "embeddings": embeddings}
        counts |= {name: len(given) for name, given in told.items() if given is not None}
        if len(set(counts.values())) > 1:
            sides = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise AnchorError(
                f"The numbers of candidates differ: {sides}. Give the same words in each view, and one tag and one "
                "embedding for each: those of words_of(sentences)."
            )
        first: dict[tuple[Word, ...], int] = {}  # a sentence may be there more than once
        for i, row in enumerate(zip(*found.values(), strict=True)):
            first.setdefault(row, i)
        rows = list(first.values())
        tags = None if tags is None else [tags[i] for i in rows]
        strategy, labels = _strategy_of_words(strategy, tags, next(iter(found.values())), rows)
        chosen = select(
            len(rows),
            k,
            "stratified" if strategy == ENTITIES else strategy,
            seed,
            labels=labels,
            embeddings_ND=None if embeddings is None else torch.as_tensor(embeddings)[rows],
        )
        samples = {name: [words[rows[i]] for i in chosen] for name, words in found.items()}
        return cls(_content_ids(samples), samples, origin={"strategy": strategy, "seed": seed, "words": len(rows)})

    @property
    def views(self) -> list[str]:
        """Names of the views, in the order they were added."""
        return list(self._views)

    @property
    def fingerprint(self) -> str:
        """Identity of the meanings and their order: SHA-256 of the ids (64 hex digits)."""
        return hashlib.sha256(json.dumps(self.ids, ensure_ascii=False).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"AnchorSet({len(self)} anchors, views {', '.join(self.views)}, fingerprint {self.fingerprint[:16]})"

    def view(self, name: str | None = None) -> AnchorView:
        """One view of all anchors. The name is optional if there is only one.

        Raises:
            AnchorError: If there is no such view, or several and no name.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> anchors.view("fr")
            AnchorView('fr', 40 texts, fingerprint ...)

            ```
        """
        if name is None and len(self._views) == 1:
            return next(iter(self._views.values()))
        if name not in self._views:
            asked = "No view was named" if name is None else f"There is no view {name!r}"
            raise AnchorError(
                f"{asked}; this anchor set has {', '.join(map(repr, self.views))}. "
                "Name one of these, or add it: anchors.add_view(name, samples)."
            )
        return self._views[name]

    def add_view(self, name: str, samples: Sequence[Any]) -> Self:
        """Add a view of the same anchors, in the same order. The fingerprint does not change.

        Raises:
            AnchorError: If the number of samples differs, or the view exists with other samples.
            SampleError: If a sample is empty or of a type that no encoder reads.
        """
        if name == ID_COLUMN:
            raise AnchorError(f"A view cannot be called {name!r}: that column holds the ids. Choose another name.")
        if not isinstance(name, str) or not name or "\0" in name:
            raise AnchorError(
                f"A view cannot be called {name!r}, expected a string such as 'en'. Choose another name."
            )
        samples = as_words(as_list(samples, f"view {name!r}"))
        if len(samples) != len(self):
            raise AnchorError(
                f"View {name!r} has {len(samples)} samples for {len(self)} anchors. Give one for each, in their order."
            )
        modality = check_samples(samples, f"view {name!r}")
        if modality == "image":
            samples = [image if image.mode in PLAIN_MODES else image.convert("RGB") for image in samples]
        if modality == "conversation":
            samples = [plain(messages) for messages in samples]
        view = AnchorView(name, samples, modality, digest_of_samples(samples), self)
        if name in self._views and self._views[name].digest != view.digest:
            raise AnchorError(
                f"View {name!r} exists with other samples. Choose another name, or build a new AnchorSet."
            )
        self._views[name] = view
        return self

    def without(self, ids: Sequence[str]) -> AnchorSet:
        """A new anchor set without some of the anchors; it has another fingerprint.

        Raises:
            AnchorError: If there is no such anchor, or none is left.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> len(anchors.without(anchors.ids[:3]))
            37

            ```
        """
        unknown = sorted(set(ids) - set(self.ids))
        if unknown:
            raise AnchorError(
                f"No anchor has the id {unknown[0]!r}. Use ids from `anchors.ids`; there are {len(self)}."
            )
        kept = [i for i, id_ in enumerate(self.ids) if id_ not in set(ids)]
        views = {name: [self.view(name).samples[i] for i in kept] for name in self.views}
        return AnchorSet([self.ids[i] for i in kept], views, origin=self.origin | {"dropped": len(self) - len(kept)})

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write ``anchors/anchors.parquet`` and ``anchors/anchor_set.json`` into a folder.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> anchors.save_pretrained("folder")
            >>> AnchorSet.from_pretrained("folder").fingerprint == anchors.fingerprint
            True

            ```
        """
        with saving_beside(save_directory) as folder:
            write_anchors(self._content(), folder)

    def _content(self) -> AnchorContent:
        views = {name: ViewContent(view.modality, view.digest, view.samples) for name, view in self._views.items()}
        return AnchorContent(self.ids, self.fingerprint, views, self.origin)

    def summary(self, rows: int = 5) -> dict[str, Any]:
        """A summary for cards, as plain values, with the first `rows` samples."""
        views = {name: self.view(name) for name in self.views}
        return {
            "num_anchors": len(self),
            "fingerprint": self.fingerprint,
            "views": {name: view.modality for name, view in views.items()},
            "origin": self.origin,
            "rows": [
                {"id": self.ids[i]} | {name: _in_words(view.samples[i]) for name, view in views.items()}
                for i in range(min(rows, len(self)))
            ],
        }

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
    ) -> CommitInfo:
        """Push to a dataset repository, as one commit, with a card that lets the Hub's viewer show the anchors.

        Args:
            repo_id: Repository; made if it does not exist.
            commit_message: Title of the commit.
            commit_description: The rest of its message.
            private: Whether a new repository is private.
            token: Of a user who may write there; that of ``hf auth login`` if left out.
            revision: Branch; made if it does not exist.
            create_pr: Open a pull request instead.
            license: Of the samples, as the Hub names it: ``cc-by-4.0``, ...

        Raises:
            UploadError: If the token may not write there, or others kept pushing at the same time.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            anchors.push_to_hub("me/anchors", license="cc-by-4.0")
            ```
        """
        return publish(
            repo_id,
            lambda folder, _: self.save_pretrained(folder),
            lambda name, existing: merged(anchors_card(name, self.summary(), license), existing),
            own_files=[f"{FOLDER}/{TABLE_FILE}", f"{FOLDER}/{RECORD_FILE}"],
            repo_type="dataset",
            commit_message=commit_message or f"Upload {len(self)} anchors",
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> Self:
        """Load from a local folder, a dataset repository or a model repository.

        Args:
            source: Folder or repository id.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`; `repo_type`
                where a model and a dataset share the name.

        Raises:
            UploadError: If there is no such repository, or it has no anchors.
            AnchorIntegrityError: If the anchors do not match their digests.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> AnchorSet.from_pretrained("me/anchors").views
            ['en', 'fr']
            >>> AnchorSet.from_pretrained("me/relative-en").fingerprint == anchors.fingerprint  # its own
            True

            ```
        """
        repo_type = kwargs.pop("repo_type", None)
        folder = (kwargs.pop("subfolder", None) or "").strip("/").removesuffix(FOLDER)
        place = Source.of(source, **kwargs).below(folder)
        return cls.load(place if repo_type is None else place.with_type(repo_type), any_type=repo_type is None)

    @classmethod
    def load(cls, source: Source, any_type: bool = False) -> Self:
        """Load from a `Source`; with `any_type` a dataset repository of that name comes before a model's."""
        stored, place = read_anchors(source, any_type)
        try:
            samples = {name: view.samples for name, view in stored.views.items()}
            anchors = cls(stored.ids, samples, origin=stored.origin)
        except (AnchorError, SampleError) as error:
            raise AnchorIntegrityError(
                f"{place} has been changed: it has no anchors. {error} Pull it again."
            ) from error
        refuse_changes(anchors._content(), stored, place)
        return anchors


@dataclass(frozen=True, eq=False)
class AnchorView:
    """One view of an anchor set: k samples of one modality, in the set's order.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> view = anchors.view("en")
        >>> view.name, view.modality, len(view), view.fingerprint == anchors.fingerprint
        ('en', 'text', 40, True)
        >>> talk = [{"role": "user", "content": "Hello"}]
        >>> AnchorSet(["hello"], {"talks": [talk]}).view().read_as
        'text'

        ```
    """

    name: str
    samples: list[Any]
    modality: str
    digest: str
    anchors: AnchorSet

    @property
    def fingerprint(self) -> str:
        """That of the anchor set."""
        return self.anchors.fingerprint

    @property
    def read_as(self) -> str:
        """The modality of the encoders that read it: that of its samples, and of conversations text."""
        return read_as(self.modality)

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"AnchorView({self.name!r}, {len(self)} {self.modality}s, fingerprint {self.fingerprint[:16]})"


def as_view(anchors: AnchorView | AnchorSet) -> AnchorView:
    """A view as it is, and the only view of a set.

    Raises:
        AnchorError: If a set has several: says which. If it is no set and no view.
    """
    if not isinstance(anchors, AnchorSet | AnchorView):
        raise AnchorError(
            f"The anchors are a {type(anchors).__name__}, expected an AnchorSet or a view of one. Make one of "
            "samples: AnchorSet.from_dataset(rows, k=300, views=['text']), or AnchorSet(ids, {'text': texts})."
        )
    return anchors.view() if isinstance(anchors, AnchorSet) else anchors


def _in_words(sample: Any) -> str:
    if isinstance(sample, list):
        return in_one_line(sample)
    if isinstance(sample, Image.Image):
        return f"{sample.width} x {sample.height} {sample.mode} image"
    if is_pair(sample):
        return f"{sample['text']} | {sample['text_pair']}"
    if isinstance(sample, Mapping):
        return f"{len(sample['array']) / sample['sampling_rate']:.1f} s of sound"
    return str(sample)


def _words_in(given: Any, name: str) -> list[Word]:
    """Candidates of a view: single words as they are, of sentences all words."""
    given = as_words(list(given))
    if given and all(isinstance(sample, Word) for sample in given):
        return given
    if any(isinstance(sample, Word) for sample in given) or not given:
        raise SampleError(
            f"View {name!r} holds {len(given)} candidates, expected sentences as lists of words, or words, and not "
            "both. Make words of sentences with hf_relreps.words.words_of(sentences)."
        )
    return words_of(given)


def _strategy_of_words(
    asked: str | None, tags: Sequence[Any] | None, words: Sequence[Word], rows: Sequence[int]
) -> tuple[str, Sequence[Any] | None]:
    """The strategy, and the classes that it takes in turn, if it does; `tags` are those of the rows."""
    of_entities = tags is not None and all(tag == "O" or str(tag).startswith(("B-", "I-")) for tag in tags)
    strategy = asked or ("uniform" if tags is None else ENTITIES if of_entities else "stratified")
    if strategy == ENTITIES:
        if not of_entities:
            some = sorted({*map(str, tags or ())})[:8]
            found = f"found {', '.join(map(repr, some))}" if some else "there are none"
            raise AnchorError(
                f"strategy={ENTITIES!r} needs tags='O', 'B-...' or 'I-...' of every candidate, {found}. Give the "
                "names of the tags, or take strategy='stratified', which takes any tags in turn."
            )
        return strategy, [tag == "O" for tag in tags or ()]
    if strategy != "stratified":
        return strategy, None
    return strategy, _bands(words, rows) if tags is None else tags


def _bands(words: Sequence[Word], rows: Sequence[int]) -> list[int]:
    """How frequent the words of these rows are among all, in powers of two."""
    counts = Counter(word.text.lower() for word in words)
    return [counts[words[i].text.lower()].bit_length() for i in rows]


def _columns_of(views: Mapping[str, Any] | Sequence[str] | str) -> dict[str, Any]:
    if isinstance(views, str):
        return {views: views}
    return dict(views) if isinstance(views, Mapping) else {name: name for name in views}


def _names_in(columns: Mapping[str, Any]) -> list[str]:
    """Every column that a view is made of, once."""
    return list(dict.fromkeys(name for column in columns.values() for name in columns_in(column)))


def _complete_rows(dataset: Dataset, columns: Mapping[str, Any]) -> list[int]:
    """Rows in which no view is missing, from the stored table: nothing is decoded."""
    table = dataset.select_columns(_names_in(columns)).with_format("arrow")[:]
    complete = np.ones(len(dataset), dtype=bool)
    for column in table.columns:
        complete &= column.is_valid().to_numpy()
    return np.flatnonzero(complete).tolist()


def _content_ids(samples: Mapping[str, list[Any]]) -> list[str]:
    """A hash of each row over its views in the order of their names, so that the same row gives the same id."""
    rows = zip(*(samples[name] for name in sorted(samples)), strict=True)
    return [digest_of_samples(row)[:32] for row in rows]


def _name_of(dataset: Dataset) -> dict[str, str]:
    """The name of the dataset, where it says one."""
    name = dataset.info.dataset_name if dataset.info else None
    return {"dataset": name} if name else {}
