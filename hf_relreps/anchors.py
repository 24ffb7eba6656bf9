"""`AnchorSet`: which samples are anchors, in which order, and how each of them looks in every view.

An anchor is a meaning; a view is one way to express all of them: a language, a modality. The fingerprint names the
meanings and their order, so it stays when a view is added and changes when the order does.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image

from hf_relreps.bootstrapping import BootstrapReport, Encodes, bootstrap, mismatched, refuse_unmatched
from hf_relreps.errors import AnchorError, AnchorIntegrityError, SampleError, UploadError
from hf_relreps.model_card import anchors_card, merged
from hf_relreps.publishing import publish
from hf_relreps.samples import check_samples, digest, unformatted
from hf_relreps.selection import select
from hf_relreps.sources import Source


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from huggingface_hub import CommitInfo


FOLDER = "anchors"
TABLE_FILE = "anchors.parquet"
RECORD_FILE = "anchor_set.json"
ID_COLUMN = "id"  # of the table; the others are views
FORMAT_VERSION = 1
PLAIN_MODES = ("L", "RGB", "RGBA")  # what PNG gives back bit for bit
# What a table may unpack to: what compresses better than this was made to fill the memory.
LITTLE, MOST_UNPACKED = 64 << 20, 100  # bytes, and bytes for each byte of the file
BROKEN_PNG = (SyntaxError, Image.DecompressionBombError)  # what Pillow raises of them beside OSError and ValueError


class AnchorSet:
    """k samples in a fixed order, each with one or more views of the same meaning.

    Args:
        ids: k distinct names of the meanings.
        views: For each view its k samples: texts or images, none of them empty.
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
                f"{len(nameless)} anchor ids are None, the first is ids[{nameless[0]}]; expected a name for each. "
                "Fill the id_column or drop those rows."
            )
        repeated = [id_ for id_, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise AnchorError(
                f"{len(repeated)} anchor ids are there more than once, the first is {repeated[0]!r}. Each meaning may "
                "be an anchor once: drop the repeated rows, or give an id_column that tells them apart."
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
        views: Mapping[str, str] | Sequence[str] | str,
        id_column: str | None = None,
        strategy: str = "uniform",
        seed: int = 42,
        label_column: str = "label",
        embeddings: Any = None,
    ) -> Self:
        """Choose k rows of a data set as anchors.

        Rows in which a view is missing (``None``) are not candidates: a meaning that lacks a language cannot be a
        parallel anchor. An empty text is an error, since it is more likely a mistake.

        Args:
            dataset: A `datasets.Dataset` with one column for each view.
            k: Number of anchors; the paper uses 300 to 768.
            views: Name of the view -> its column; a list where both are the same.
            id_column: Names the meanings. Without it each id is a hash of the row's views, fixed from now on.
            strategy: ``uniform``, ``stratified``, ``kmeans`` or ``fps``: see `hf_relreps.selection.select`.
            seed: Of the choice.
            label_column: Classes for ``stratified``.
            embeddings: (N, D), a row for each row of the data set, for ``kmeans`` and ``fps``: for example
                ``encoder.encode(dataset["en"])``.

        Raises:
            AnchorError: If a column does not exist, ids repeat, or k is larger than the number of complete rows.
            SampleError: If it is not one data set (splits, a stream, a list), or a column holds what no encoder reads.

        Example:
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
                f"dataset is a {type(dataset).__name__}, expected a datasets.Dataset. Make one: "
                "Dataset.from_dict(columns), Dataset.from_list(rows) or Dataset.from_pandas(frame)."
            )
        columns = _columns_of(views)
        wanted = [*columns.values(), *([id_column] if id_column else [])]
        wanted += [label_column] if strategy == "stratified" else []
        missing = [name for name in dict.fromkeys(wanted) if name not in dataset.column_names]
        if missing:
            raise AnchorError(
                f"The data set has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(dataset.column_names)}. Name views, id_column and label_column as they are called there."
            )
        if embeddings is not None and len(embeddings) != len(dataset):
            raise AnchorError(
                f"embeddings has {len(embeddings)} rows for {len(dataset)} rows of data. Encode them all."
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
        samples = {name: anchors[column][:] for name, column in columns.items()}
        for name, column in columns.items():
            if check_samples(samples[name], f"column {column!r}", rows) == "node":
                raise SampleError(
                    f"column {column!r}[{rows[0]}] is {samples[name][0]} (int), expected text, an image or a sound. "
                    "Convert the column; anchors that are nodes are built with AnchorSet(ids, {name: nodes})."
                )
        ids = anchors[id_column][:] if id_column else _content_ids(samples)
        origin = {"strategy": strategy, "seed": seed, "rows": len(complete)}
        return cls(ids, samples, origin=_named(dataset) | origin)

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
        """One view of all anchors; the name may be left out where there is only one.

        Raises:
            AnchorError: If there is no such view, or several and no name.

        Example:
            ```python
            >>> anchors.view("fr")
            AnchorView('fr', 40 texts, fingerprint ...)

            ```
        """
        if name is None and len(self._views) == 1:
            return next(iter(self._views.values()))
        if name not in self._views:
            asked = "Several views and no name given" if name is None else f"There is no view {name!r}"
            raise AnchorError(
                f"{asked}; this anchor set has {', '.join(map(repr, self.views))}. "
                "Name one of these, or add it: anchors.add_view(name, samples)."
            )
        return self._views[name]

    def add_view(self, name: str, samples: Sequence[Any]) -> Self:
        """Add one more expression of the same meanings, in the same order. The fingerprint stays.

        Raises:
            AnchorError: If the number of samples differs, or the view exists with other samples.
            SampleError: If a sample is empty or of a type that no encoder reads.
        """
        if name == ID_COLUMN:
            raise AnchorError(f"A view cannot be called {name!r}: that column holds the ids. Choose another name.")
        if not isinstance(name, str) or not name or "\0" in name:
            raise AnchorError(f"A view cannot be called {name!r}, expected a text such as 'en'. Choose another name.")
        samples = [samples] if isinstance(samples, str) else list(samples)
        if len(samples) != len(self):
            raise AnchorError(
                f"View {name!r} has {len(samples)} samples for {len(self)} anchors. Give one for each, in their order."
            )
        modality = check_samples(samples, f"view {name!r}")
        if modality == "image":
            samples = [image if image.mode in PLAIN_MODES else image.convert("RGB") for image in samples]
        view = AnchorView(name, samples, modality, digest(samples), self)
        if name in self._views and self._views[name].digest != view.digest:
            raise AnchorError(
                f"View {name!r} exists with other samples. Choose another name, or build a new AnchorSet."
            )
        self._views[name] = view
        return self

    def bootstrap(
        self,
        encoders: Mapping[str, Encodes],
        pools: Mapping[str, Sequence[Any]],
        k: int = 300,
        *,
        seed: int = 42,
    ) -> tuple[AnchorSet, BootstrapReport]:
        """k anchors from these few and two pools of samples that nobody paired or labelled.

        Pairs are found by how alike samples are to the anchors that are known already; these stay, in front. What was
        found has an id that begins with ``pseudo-``. Where two pools cannot be matched it is refused; how many known
        pairs are enough is told in `docs/quality.md`.

        Args:
            encoders: For each of two views what embeds its samples: a `RelativeModel` made with these anchors, or
                anything else whose `encode` takes samples and gives (N, D).
            pools: For each of the two views samples, in any order; those that are anchors or repeated are left out.
            k: Number of anchors; fewer where not as many samples find each other.
            seed: Of the anchors that are held out once, to test what the others find.

        Returns:
            The larger anchor set, with these two views, and what speaks for it.

        Raises:
            AnchorError: If the pools cannot be matched, there are fewer than five anchors, or encoders and pools do
                not name the same two views.

        Example:
            ```python
            >>> encoders = {"en": english.encoder, "other": turned}
            >>> few = AnchorSet(anchors.ids[:20], {view: anchors.view("en").samples[:20] for view in encoders})
            >>> more, report = few.bootstrap(encoders, {"en": train["en"], "other": train["en"][::-1]}, k=60)
            >>> len(more), report.trusted
            (60, True)

            ```
        """
        left, right = self._two_views(encoders)
        if k <= len(self):
            raise AnchorError(f"k={k} is not more than the {len(self)} anchors that are there. Ask for more.")
        if set(pools) != {left, right}:
            raise AnchorError(
                f"pools has the views {', '.join(map(repr, pools))}, encoders {left!r} and {right!r}. Give both the "
                "same two."
            )
        fresh = {name: _fresh(pools[name], self.view(name).samples) for name in (left, right)}
        x_ND = {name: _encoded(encoders[name], fresh[name], f"pool {name!r}") for name in (left, right)}
        seeds_SD = {
            name: _encoded(encoders[name], self.view(name).samples, f"view {name!r}") for name in (left, right)
        }
        pairs, report = bootstrap(x_ND[left], x_ND[right], seeds_SD[left], seeds_SD[right], k - len(self), seed)
        refuse_unmatched(report)
        found = [
            (fresh[left][i], fresh[right][j])
            for i, j in zip(pairs.left_P.tolist(), pairs.right_P.tolist(), strict=True)
        ]
        views = {
            name: [*self.view(name).samples, *(pair[side] for pair in found)]
            for side, name in enumerate((left, right))
        }
        ids = [*self.ids, *(f"pseudo-{digest(pair)[:24]}" for pair in found)]
        return AnchorSet(ids, views, origin=self.origin | {"bootstrap": report.to_dict()}), report

    def mismatched(self, encoders: Mapping[str, Encodes]) -> list[str]:
        """Ids of anchors whose two views do not mean the same: wrong translations, rows out of order.

        An anchor is found by its similarities to all other anchors, which must tell the same in both views; so most of
        them must be right. Drop what is found: ``anchors.without(anchors.mismatched(encoders))``.

        Args:
            encoders: For each of two views what embeds its samples, as for `bootstrap`.

        Raises:
            AnchorError: If fewer than a third of the anchors look alike in both views.

        Example:
            ```python
            >>> texts = anchors.view("en").samples
            >>> exchanged = [texts[1], texts[0], *texts[2:]]  # by mistake
            >>> pairs = AnchorSet(anchors.ids, {"en": texts, "other": exchanged})
            >>> wrong = pairs.mismatched({"en": english.encoder, "other": turned})
            >>> wrong == anchors.ids[:2]
            True
            >>> len(pairs.without(wrong))
            38

            ```
        """
        left, right = self._two_views(encoders)
        x_AD = [_encoded(encoders[name], self.view(name).samples, f"view {name!r}") for name in (left, right)]
        return [self.ids[i] for i in mismatched(*x_AD).tolist()]

    def without(self, ids: Sequence[str]) -> AnchorSet:
        """The anchor set without some of its anchors: another one, with a fingerprint of its own.

        Raises:
            AnchorError: If there is no such anchor, or none is left.

        Example:
            ```python
            >>> len(anchors.without(anchors.ids[:3]))
            37

            ```
        """
        unknown = sorted(set(ids) - set(self.ids))
        if unknown:
            raise AnchorError(f"There is no anchor {unknown[0]!r} among these {len(self)}. Give ids of `anchors.ids`.")
        kept = [i for i, id_ in enumerate(self.ids) if id_ not in set(ids)]
        views = {name: [self.view(name).samples[i] for i in kept] for name in self.views}
        return AnchorSet([self.ids[i] for i in kept], views, origin=self.origin | {"dropped": len(self) - len(kept)})

    def _two_views(self, encoders: Mapping[str, Encodes]) -> tuple[str, str]:
        if len(encoders) != 2:
            raise AnchorError(
                f"encoders names {len(encoders)} views, expected two, for example {{'en': encoder, 'fr': other}}."
            )
        left, right = (self.view(name).name for name in encoders)
        return left, right

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write ``anchors/anchors.parquet`` and ``anchors/anchor_set.json`` into a folder.

        Example:
            ```python
            >>> anchors.save_pretrained("folder")
            >>> AnchorSet.from_pretrained("folder").fingerprint == anchors.fingerprint
            True

            ```
        """
        import pyarrow.parquet as pq

        folder = Path(save_directory, FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(_to_table(self), folder / TABLE_FILE, compression="zstd")
        record = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "num_anchors": len(self),
            "views": {view.name: {"modality": view.modality, "digest": view.digest} for view in self._views.values()},
            "origin": self.origin,
        }
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def summary(self, rows: int = 5) -> dict[str, Any]:
        """What a card says about the anchors, as plain values; of the samples the first `rows`."""
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
            UploadError: If there is no such repository, or it holds no anchors.
            AnchorIntegrityError: If the anchors are not those that the digests beside them name.

        Example:
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
        record_file, table_file, source = _find(source, any_type)
        record = _read_record(record_file, source)
        ids, views = _read_table(table_file, source, record)
        try:
            anchors = cls(ids, views, origin=record.get("origin"))
        except (AnchorError, SampleError) as error:
            raise AnchorIntegrityError(
                f"{FOLDER}/{TABLE_FILE} of {source} was changed: it holds no anchors. {error} Pull it again."
            ) from error
        where = f"{FOLDER}/{TABLE_FILE} of {source}"
        _refuse_difference(where, "number of anchors", len(anchors), record["num_anchors"])
        _refuse_difference(where, "digest of its ids", anchors.fingerprint, record["fingerprint"])
        for name, about in record["views"].items():
            _refuse_difference(where, f"digest of its view {name!r}", anchors.view(name).digest, about.get("digest"))
        return anchors


@dataclass(frozen=True, eq=False)
class AnchorView:
    """One view of an anchor set: k samples of one modality, in the set's order.

    Example:
        ```python
        >>> view = anchors.view("en")
        >>> view.name, view.modality, len(view), view.fingerprint == anchors.fingerprint
        ('en', 'text', 40, True)

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

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"AnchorView({self.name!r}, {len(self)} {self.modality}s, fingerprint {self.fingerprint[:16]})"


def _fresh(samples: Sequence[Any], known: Sequence[Any]) -> list[Any]:
    """Those that are not known and were not there before."""
    seen = {digest([sample]) for sample in known}
    fresh = []
    for sample in samples:
        name = digest([sample])
        if name not in seen:
            seen.add(name)
            fresh.append(sample)
    return fresh


def _encoded(encoder: Encodes, samples: Sequence[Any], what: str) -> torch.Tensor:
    """Embeddings (N, D) in float32 on the processor."""
    x_ND = torch.as_tensor(encoder.encode(list(samples))).detach().float().cpu()
    if x_ND.ndim != 2 or len(x_ND) != len(samples) or not torch.isfinite(x_ND).all():
        raise AnchorError(
            f"The encoder gave {tuple(x_ND.shape)} for {len(samples)} samples of {what}, expected finite numbers "
            f"({len(samples)}, D). Give an encoder whose encode(samples) gives one vector for each."
        )
    return x_ND


def _in_words(sample: Any) -> str:
    if isinstance(sample, Image.Image):
        return f"{sample.width} x {sample.height} {sample.mode} image"
    if isinstance(sample, Mapping):
        return f"{len(sample['array']) / sample['sampling_rate']:.1f} s of sound"
    return str(sample)


def _columns_of(views: Mapping[str, str] | Sequence[str] | str) -> dict[str, str]:
    if isinstance(views, str):
        return {views: views}
    return dict(views) if isinstance(views, Mapping) else {name: name for name in views}


def _complete_rows(dataset: Dataset, columns: Mapping[str, str]) -> list[int]:
    """Rows in which no view is missing, from the stored table: nothing is decoded."""
    table = dataset.select_columns(list(dict.fromkeys(columns.values()))).with_format("arrow")[:]
    complete = np.ones(len(dataset), dtype=bool)
    for column in table.columns:
        complete &= column.is_valid().to_numpy()
    return np.flatnonzero(complete).tolist()


def _content_ids(samples: Mapping[str, list[Any]]) -> list[str]:
    """A hash of each row over its views in the order of their names, so that the same row gives the same id."""
    rows = zip(*(samples[name] for name in sorted(samples)), strict=True)
    return [digest(row)[:32] for row in rows]


def _named(dataset: Dataset) -> dict[str, str]:
    """The name of the data set, where it says one."""
    name = dataset.info.dataset_name if dataset.info else None
    return {"dataset": name} if name else {}


def _find(source: Source, any_type: bool) -> tuple[Path, Path, Source]:
    record_path, table_path = f"{FOLDER}/{RECORD_FILE}", f"{FOLDER}/{TABLE_FILE}"
    if any_type and not source.is_local:
        try:
            return _find(source.with_type("dataset"), any_type=False)
        except UploadError:
            source = source.with_type("model")
    record_file = source.file(record_path)
    table_file = source.file(table_path) if record_file else None
    if record_file is None or table_file is None:
        raise UploadError(
            f"{source} holds no anchors: {record_path if record_file is None else table_path} is not there. "
            "Save some there with anchors.save_pretrained(folder) or anchors.push_to_hub(name)."
        )
    return record_file, table_file, source


def _read_record(file: Path, source: Source) -> dict[str, Any]:
    name = f"{FOLDER}/{RECORD_FILE} of {source}"
    try:
        record = json.loads(file.read_text("utf-8"))
        version = record["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AnchorIntegrityError(f"{name} is not a record of anchors ({error!r:.200}). Pull it again.") from error
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise AnchorIntegrityError(
            f"{name} has format version {version}; the installed hf_relreps reads up to {FORMAT_VERSION}. "
            "Update it: pip install -U hf-relreps."
        )
    views = record.get("views")
    types = {"format_version": int, "fingerprint": str, "num_anchors": int, "views": dict, "origin": dict}
    wrong = [field for field, kind in types.items() if not isinstance(record.get(field), kind)]
    if wrong or not views or not all(isinstance(about, dict) for about in views.values()):
        raise AnchorIntegrityError(
            f"{name} is not a record of anchors: {', '.join(wrong) or 'views'} missing or of another type than "
            "expected. Pull it again."
        )
    return record


def _to_table(anchors: AnchorSet) -> pa.Table:
    """A table that `datasets` and the Hub's viewer read as texts and images."""
    import pyarrow as pa
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    sound = {"array": List(Value("float32")), "sampling_rate": Value("int64")}
    types = {"text": Value("string"), "image": ImageFeature(), "audio": sound, "node": Value("int64")}
    columns: dict[str, Any] = {ID_COLUMN: anchors.ids}
    for name in anchors.views:
        view = anchors.view(name)
        columns[name] = [_TO_CELL[view.modality](sample) for sample in view.samples]
    features = {ID_COLUMN: Value("string")} | {name: types[anchors.view(name).modality] for name in anchors.views}
    return pa.table(columns, schema=Features(features).arrow_schema)


def _read_table(file: Path, source: Source, record: dict[str, Any]) -> tuple[list[str], dict[str, list[Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = f"{FOLDER}/{TABLE_FILE} of {source}"
    allowed = LITTLE + MOST_UNPACKED * file.stat().st_size
    try:
        table = pq.ParquetFile(file)
        if table.metadata.num_rows > record["num_anchors"]:
            _refuse_difference(name, "number of anchors", table.metadata.num_rows, record["num_anchors"])
        _refuse_bomb(table.metadata, allowed)
        columns = table.read(columns=[ID_COLUMN, *record["views"]]).to_pydict()
        views = {
            view: _from_pngs(columns[view], allowed) if about.get("modality") == "image" else columns[view]
            for view, about in record["views"].items()
        }
        return columns[ID_COLUMN], views
    except AnchorIntegrityError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, *BROKEN_PNG) as error:
        raise AnchorIntegrityError(f"{name} cannot be read as anchors: {error}. Pull it again.") from error


def _refuse_bomb(about: pq.FileMetaData, allowed: int) -> None:
    """Raise `ValueError` for a table that would unpack to far more than its bytes justify."""
    columns = [
        about.row_group(group).column(column)
        for group in range(about.num_row_groups)
        for column in range(about.num_columns)
    ]
    unpacked = sum(max(column.total_uncompressed_size, 4 * column.num_values) for column in columns)
    if unpacked > allowed:
        raise ValueError(f"it would unpack to {unpacked} bytes, a file of its size may to {allowed}")


def _to_png(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _to_sound(sound: Mapping[str, Any]) -> dict[str, Any]:
    return {"array": np.asarray(sound["array"], dtype=np.float32), "sampling_rate": sound["sampling_rate"]}


_TO_CELL: dict[str, Any] = {"text": str, "image": _to_png, "audio": _to_sound, "node": int}


def _from_pngs(cells: Sequence[Mapping[str, Any]], allowed: int) -> list[Image.Image]:
    images: list[Image.Image] = [Image.open(io.BytesIO(cell["bytes"]), formats=["PNG"]) for cell in cells]
    unpacked = sum(image.width * image.height * len(image.getbands()) for image in images)
    if unpacked > allowed:
        raise ValueError(f"its pictures would unpack to {unpacked} bytes, a file of its size may to {allowed}")
    for image in images:
        image.load()
    return images


def _refuse_difference(where: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise AnchorIntegrityError(
            f"{where} was changed: the {what} is {found}, {RECORD_FILE} expects {expected}. Pull the folder again, or "
            "save the anchors anew with AnchorSet.save_pretrained."
        )
