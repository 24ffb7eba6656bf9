"""What talks to the Hub beyond loading and pushing: finding uploads that share anchors, and pulling their files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hf_relreps.anchor_files import FOLDER as ANCHORS_FOLDER
from hf_relreps.anchor_files import RECORD_FILE
from hf_relreps.anchors import AnchorSet, AnchorView
from hf_relreps.configuration import AnyRelativeConfig, config_from, is_ours
from hf_relreps.errors import AnchorError, StitchingError, UploadError
from hf_relreps.model_card import PART_TAG, TAG, VIEW_TAG, CardFacts, anchors_tag, merged, model_card
from hf_relreps.pretrained import RelativePreTrainedModel
from hf_relreps.printing import in_columns
from hf_relreps.saving import BESIDE, write_text
from hf_relreps.sources import CARD_FILE, Source
from hf_relreps.space import RelativeSpace, require_fit
from hf_relreps.uploads import PARTS, weight_files


if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FoundPart:
    """One upload that shares the anchors.

    Args:
        repo_id: Its repository.
        parts: ``encoder``, ``decoder`` or both.
        views: Views of the anchors that it reads, or was trained on: languages, modalities.
        task: What its decoder, or its encoder, is for.
        base_model: What it was made from.
        fits: Whether its parts can be stitched with the given model; ``None`` if only anchors were given.
        reason: Why not.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> next(part.views for part in find_parts(anchors=decoder) if part.repo_id == "me/relative-fr")
        ('fr',)

        ```
    """

    repo_id: str
    parts: tuple[str, ...]
    views: tuple[str, ...]
    task: str | None
    base_model: str | None
    fits: bool | None
    reason: str = ""


class FoundParts(Sequence[FoundPart]):
    """Uploads that share anchors; prints as a table.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> found = find_parts("me/anchors")
        >>> len(found) == len(found.to_pandas())
        True

        ```
    """

    def __init__(self, rows: Sequence[FoundPart], what: str) -> None:
        self.rows = list(rows)
        self.what = what

    @overload
    def __getitem__(self, index: int) -> FoundPart: ...
    @overload
    def __getitem__(self, index: slice) -> list[FoundPart]: ...
    def __getitem__(self, index: int | slice) -> FoundPart | list[FoundPart]:
        """A row, or several."""
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[FoundPart]:
        return iter(self.rows)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a frame."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self.rows], columns=list(FoundPart.__dataclass_fields__))

    def __str__(self) -> str:
        if not self.rows:
            return f"The Hub has no upload with {self.what}."
        table = [("upload", "holds", "view", "task", "base model", "fits")]
        table += [
            (
                row.repo_id,
                " + ".join(row.parts),
                ", ".join(row.views) or "-",
                row.task or "-",
                row.base_model or "-",
                "-" if row.fits is None else "yes" if row.fits else f"no: {row.reason}",
            )
            for row in self.rows
        ]
        return "\n".join(in_columns(table))

    __repr__ = __str__


def find_parts(
    anchors: AnchorSet | AnchorView | RelativePreTrainedModel | str,
    *,
    task: str | None = None,
    language: str | None = None,
    part: str | None = None,
    limit: int | None = 100,
    token: bool | str | None = None,
) -> FoundParts:
    """Uploads on the Hub that share these anchors, by the Hub's own search for tags.

    Args:
        anchors: An anchor set, a model or one of its parts, a fingerprint (16 to 64 hex digits), or the name of a
            repository of any of these.
        task: Only uploads for this task: ``text-classification``, ...
        language: Only uploads with this language or view.
        part: Only uploads with this part: ``encoder`` or ``decoder``.
        limit: Maximum number of uploads.
        token: To see private uploads of its user.

    Raises:
        AnchorError: If `anchors` says nothing that identifies anchors.
        UploadError: If a name is given that cannot be read, or the Hub cannot be reached.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> found = find_parts(anchors=decoder, language="fr", part="encoder")  # print(found) shows a table
        >>> [part.parts for part in found if part.repo_id == "me/relative-fr"]
        [('encoder', 'decoder')]
        >>> model = stitch(found[0].repo_id, decoder)

        ```
    """
    fingerprint, space = _identify(anchors, token)
    tags = [TAG, anchors_tag(fingerprint), *([f"{PART_TAG}{part}"] if part else [])]
    api = HfApi(token=token, library_name="hf_relreps")
    try:
        infos = list(
            api.list_models(
                filter=tags,
                pipeline_tag=task,
                expand=["sha", "tags", "pipeline_tag", "siblings", "cardData"],
                limit=limit,
            )
        )
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise UploadError(f"The search on the Hub failed: {error} Try again later.") from error
    rows = [_describe(info, space, token) for info in infos]
    if language is not None:
        spoken = {info.id for info in infos if language in {*_languages_of(info), *_tagged(info, VIEW_TAG)}}
        rows = [row for row in rows if row.repo_id in spoken]
    rows.sort(key=lambda row: (row.fits is False, row.repo_id))
    return FoundParts(rows, f"anchors {fingerprint[:16]}")


def pull(
    repo_id: str, folder: str | Path, part: str | None = None, revision: str | None = None, token: str | None = None
) -> Path:
    """Copy an upload, or one part of it with its anchors, into a folder from which it loads like any other.

    Args:
        repo_id: Repository.
        folder: Where to; made if it does not exist.
        part: ``encoder`` or ``decoder``; ``anchors`` for the anchors only; all if left out.
        revision: Branch, tag or commit.
        token: Of a user who may read it.

    Raises:
        UploadError: If it cannot be read, or has no such part.
        UploadIntegrityError: If a file is not the one that its repository names; the folder is left as it was.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.hub import pull
        >>> folder = pull("me/relative-en", "decoder-only", part="decoder")
        >>> RelativeDecoder.from_pretrained(folder).config.space.num_anchors
        40

        ```
    """
    if part not in (None, ANCHORS_FOLDER, *PARTS):
        raise UploadError(f"{part!r} is not a part of an upload. Choose one of {', '.join(PARTS)}, {ANCHORS_FOLDER}.")
    source = Source.of(repo_id, revision=revision, token=token).pinned()
    wanted = [name for name in _names_in(source) if _belongs(name, part)]
    if part in PARTS:
        weight_files(source.below(part))
    if not wanted:
        raise UploadError(f"{source} has no {part or 'files'}. List its parts: find_parts({repo_id!r}).")
    files = {name: source.file(name) for name in wanted}  # all of them are here and sound before any is copied
    for name, file in files.items():
        if file is not None:
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return Path(folder)


def write_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """Write the card of the upload in a folder into it, over the one there, whose own words stay.

    Args:
        folder: A saved model, encoder or decoder.
        repo_id: As it will stand in the code to paste.

    Raises:
        UploadError: If the folder has no upload.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.hub import write_card
        >>> english.save_pretrained("folder")
        >>> write_card("folder", repo_id="me/relative-en").name
        'README.md'

        ```
    """
    source = Source.of(folder)
    config = _config_of(source) if source.is_local else None
    if config is None:
        raise UploadError(
            f"{folder} is not a folder with a relative model. Save one there: model.save_pretrained(folder)."
        )
    space: Any = config.space
    anchors: dict[str, Any] = {"num_anchors": space.num_anchors, "fingerprint": space.fingerprint or ""}
    if source.file(f"{ANCHORS_FOLDER}/{RECORD_FILE}"):
        anchors = AnchorSet.load(source).summary()
    card = model_card(repo_id or str(folder), config.to_dict(), anchors, CardFacts())
    file = Path(folder, CARD_FILE)
    write_text(file, merged(card, file.read_text("utf-8-sig") if file.is_file() else None))
    return file


def _identify(anchors: Any, token: bool | str | None) -> tuple[str, RelativeSpace | None]:
    """The fingerprint, and the space that an upload must share, where it is known."""
    if isinstance(anchors, AnchorSet | AnchorView):
        return anchors.fingerprint, None
    if isinstance(anchors, RelativePreTrainedModel):
        return anchors.config.space.fingerprint or "", anchors.config.space
    text = str(anchors)
    if 16 <= len(text) <= 64 and all(digit in "0123456789abcdef" for digit in text):
        return text, None
    source = Source.of(text, token=token)
    config = _config_of(source)
    if config is not None:
        space: Any = config.space
        return space.fingerprint or "", space
    try:
        return AnchorSet.load(source, any_type=True).fingerprint, None
    except UploadError as error:
        raise AnchorError(
            f"{text!r} does not identify anchors: it is neither a fingerprint of 16 to 64 hex digits nor an upload of "
            f"this library. {error}"
        ) from error


def read_config(name: str) -> AnyRelativeConfig | None:
    """The configuration that an upload of ours says it has; ``None`` for any other place."""
    return _config_of(Source.of(name))


def _config_of(source: Source) -> AnyRelativeConfig | None:
    try:
        content = source.pinned().json("config.json")
    except UploadError:
        return None
    return config_from(content) if content is not None and is_ours(content) else None


def _describe(info: ModelInfo, wanted: RelativeSpace | None, token: Any) -> FoundPart:
    names = {sibling.rfilename for sibling in info.siblings or []}
    card = info.card_data.to_dict() if info.card_data else {}
    base = card.get("base_model")
    fits, reason = _fits(info, wanted, token) if wanted is not None else (None, "")
    return FoundPart(
        repo_id=info.id,
        parts=tuple(part for part in PARTS if f"{part}/config.json" in names),
        views=tuple(_tagged(info, VIEW_TAG)),
        task=info.pipeline_tag,
        base_model=", ".join(base) if isinstance(base, list) else base,
        fits=fits,
        reason=reason,
    )


def _fits(info: ModelInfo, wanted: RelativeSpace, token: Any) -> tuple[bool, str]:
    """Whether what the upload says of itself fits; tags are short, and anybody can write them."""
    try:
        content = Source.of(info.id, revision=info.sha, token=token).json("config.json") or {}
        space: Any = config_from(content).space
        require_fit(space, wanted)
    except StitchingError as error:
        differ = [name for name in space.differences(wanted) if name in ("transform", "similarity", "basis_ridge")]
        differ = differ or [name for name in space.differences(wanted) if name in wanted.projection]
        return False, f"other {', '.join(differ)}" if differ else str(error).split(". ")[0]
    except (UploadError, ValueError, TypeError) as error:
        return False, f"cannot be read: {str(error).split('. ')[0]}"
    return True, ""


def _tagged(info: ModelInfo, prefix: str) -> list[str]:
    return [tag.removeprefix(prefix) for tag in info.tags or [] if tag.startswith(prefix)]


def _languages_of(info: ModelInfo) -> list[str]:
    language = (info.card_data.to_dict() if info.card_data else {}).get("language")
    return [language] if isinstance(language, str) else list(language or [])


def _names_in(source: Source) -> list[str]:
    if source.is_local:
        root = Path(source.name)
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    with source.explaining("the list of files"):
        return HfApi(library_name="hf_relreps").list_repo_files(
            source.name, revision=source.commit, token=source.arguments.get("token")
        )


def _belongs(name: str, part: str | None) -> bool:
    folder = name.split("/")[0] if "/" in name else ""
    if folder == BESIDE:  # no part of an upload
        return False
    if part is None:
        return name != ".gitattributes"
    if folder:
        return folder in (part, ANCHORS_FOLDER)
    return part == "encoder" and name not in ("README.md", ".gitattributes")
