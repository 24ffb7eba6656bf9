"""Where uploads lie, a local folder or a repository at one revision, and how a folder becomes one commit there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import (
    CommitInfo,
    HfApi,
    ResolvedRevision,
    constants,
    get_cached_repo_tree,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx, validate_repo_id  # httpx: whichever HTTP client it uses, under one name
from transformers.utils import logging

from hf_relreps.errors import PartError, UploadError, UploadIntegrityError
from hf_relreps.saving import finish_save


logger = logging.get_logger(__name__)

DEEPEST = 64  # levels of a JSON file
CARD_FILE = "README.md"
ATTEMPTS = 3  # others may push at the same time
# Keyword arguments of `from_pretrained` that say where files come from, and nothing else.
SOURCE_ARGUMENTS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")  # SHA-256 of an LFS file, SHA-1 of a git blob
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A folder or repository, and how to reach it.

    Args:
        name: A local folder, or a repository id.
        repo_type: ``model`` or ``dataset``.
        options: Those of `SOURCE_ARGUMENTS` that were given.
        folder: Folder inside it that holds the upload; empty for the root.
    """

    name: str
    repo_type: str = "model"
    options: tuple[tuple[str, Any], ...] = ()
    folder: str = ""

    @classmethod
    def of(cls, name: Any, repo_type: str = "model", **kwargs: Any) -> Source:
        """From the arguments of a `from_pretrained` call; those that do not concern the place are left out.

        A name may carry its revision: ``"me/relative-en@v1"``.

        Raises:
            PartError: If it is no name, but a model, a pipeline, ``None``.
            UploadError: If it is the name of a file on this machine.
        """
        if not isinstance(name, (str, os.PathLike)):
            refuse_unnamed(name)
        name = os.fspath(name)
        if Path(name).is_file():
            raise UploadError(
                f"{name} is a file on this machine, expected a folder, or the name of a repository. Pass the folder "
                "that was saved with save_pretrained(folder)."
            )
        finish_save(Path(name))
        given = {key: kwargs[key] for key in SOURCE_ARGUMENTS if kwargs.get(key) is not None}
        place, at, revision = name.partition("@")
        if not at or Path(name).exists():
            return cls(name, repo_type, tuple(given.items()))
        return cls(place, repo_type, tuple(({"revision": revision} | given).items()))

    def with_type(self, repo_type: str) -> Source:
        """The same name as another type of repository."""
        return replace(self, repo_type=repo_type)

    def below(self, folder: str) -> Source:
        """A folder of this place."""
        return replace(self, folder=f"{self.folder}/{folder}".strip("/"))

    def pinned(self) -> Source:
        """The same place at the commit that its revision names now: one question to the Hub, and none after it.

        Raises:
            UploadError: If there is no such folder, repository or revision, or it is closed to this token.
        """
        if self.is_local or self.commit:
            return self
        options = {key: value for key, value in self.arguments.items() if key != "force_download"}
        with self.explaining("its revision"):
            validate_repo_id(self.name)
            revision = HfApi(library_name="hf_relreps").resolve_revision(
                self.name, repo_type=self.repo_type, **options
            )
        return replace(self, options=tuple((self.arguments | {"revision": revision}).items()))

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.name).is_dir()

    @property
    def commit(self) -> str | None:
        """The commit that it is pinned to."""
        revision = self.arguments.get("revision")
        if isinstance(revision, ResolvedRevision):
            return revision.resolved
        return revision if revision and COMMIT.fullmatch(revision) else None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a `from_pretrained` call on the same place."""
        return dict(self.options)

    @property
    def subfolder_argument(self) -> dict[str, str]:
        """`subfolder` for a `from_pretrained` call, where there is one."""
        return {"subfolder": self.folder} if self.folder else {}

    def file(self, path: str) -> Path | None:
        """The local path of one file, fetched if need be; ``None`` if the upload does not hold it.

        Raises:
            UploadError: If the repository or revision does not exist, is closed to this token, or cannot be reached.
            UploadIntegrityError: If the bytes that arrived are not those that the repository names.
        """
        path = f"{self.folder}/{path}".lstrip("/")
        if self.is_local:
            found = Path(self.name, path)
            return found if found.is_file() else None
        if self._is_known_to_be_missing(path):
            return None
        try:
            with self.explaining(path):
                validate_repo_id(self.name)
                found = Path(
                    hf_hub_download(
                        self.name, path, repo_type=self.repo_type, library_name="hf_relreps", **self.arguments
                    )
                )
        except _NotThere:
            return None
        self._refuse_altered(path, found)
        return found

    def json(self, path: str) -> dict[str, Any] | None:
        """The content of one JSON file; ``None`` if the upload does not hold it."""
        found = self.file(path)
        if found is None:
            return None
        try:
            content = json.loads(found.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UploadError(
                f"{path} of {self} is not valid JSON: {error}. Pull it again, or ask its author."
            ) from error
        if not isinstance(content, dict):
            raise UploadError(f"{path} of {self} contains a {type(content).__name__}, expected a JSON object.")
        if _is_deeper(content, DEEPEST):
            raise UploadError(f"{path} of {self} is nested more than {DEEPEST} deep. Do not use it.")
        return content

    def _is_known_to_be_missing(self, path: str) -> bool:
        """Whether the cache remembers that this commit has no such file: then nobody needs to be asked."""
        if not self.commit or self.arguments.get("force_download"):
            return False
        cache_dir = self.arguments.get("cache_dir")
        known = try_to_load_from_cache(self.name, path, cache_dir, self.commit, self.repo_type)
        if known is not None:
            return not isinstance(known, str)
        try:  # left by a `snapshot_download`
            tree = get_cached_repo_tree(self.name, repo_type=self.repo_type, revision=self.commit, cache_dir=cache_dir)
        except CachedRepoTreeNotFoundError:
            return False
        return path not in {file.path for file in tree}

    def _refuse_altered(self, path: str, found: Path) -> None:
        """Compare a downloaded file with the digest that its repository names; once, then it is remembered.

        The client compares only sizes. The cache names each content by its digest.
        """
        expected = found.readlink().name if found.is_symlink() else self._digest_by_asking(path)
        if not expected or not DIGEST.fullmatch(expected) or _is_verified(found, expected):
            return
        actual = _digest_of(found, expected)
        if actual == expected:
            _remember_verified(found, expected)
            return
        _forget(found)
        kind = "SHA-256" if len(expected) == 64 else "git digest"
        raise UploadIntegrityError(
            f"{path} of {self} was changed during the download: its {kind} is {actual}, but the repository says "
            f"{expected}. The file was removed from the cache: pull it again, and check the connection or mirror if "
            "this repeats."
        )

    def _digest_by_asking(self, path: str) -> str | None:
        """For caches without symbolic links, whose files do not bear their digest as a name."""
        if self.arguments.get("local_files_only") or constants.HF_HUB_OFFLINE:
            return None
        token, revision = self.arguments.get("token"), self.commit or self.arguments.get("revision")
        with self.explaining(path):
            infos = HfApi(library_name="hf_relreps").get_paths_info(
                self.name, path, revision=revision, repo_type=self.repo_type, token=token
            )
        files = [info for info in infos if isinstance(info, RepoFile)]
        return next((file.lfs.sha256 if file.lfs else file.blob_id for file in files), None)

    @contextmanager
    def explaining(self, what: str) -> Iterator[None]:
        """Turn the client's errors into ones that say what to do."""
        remedies = {
            401: "Log in with a valid token: hf auth login.",
            403: "Your token has no read access: ask its owner, or log in with another token: hf auth login.",
            429: "The rate limit was reached: wait a few minutes, or log in for a higher limit.",
        }
        refused, lost = f"The Hub refused {what} of {self}", f"{what} of {self} could not be downloaded"
        with _explaining_transport(refused, lost, remedies, "Nothing was kept. Try again later."):
            try:
                yield
            except (LocalEntryNotFoundError, RevisionResolutionError) as error:
                if isinstance(error.__cause__, HfHubHTTPError):  # the Hub was reached, and refused
                    raise error.__cause__ from error.__cause__.__cause__
                raise UploadError(
                    f"{what} of {self} is not in the local cache and the Hub cannot be reached. "
                    "Connect once to fetch it, or give a local folder."
                ) from error
            except EntryNotFoundError as error:
                raise _NotThere(what) from error
            except GatedRepoError as error:
                raise UploadError(
                    f"{self} is gated. Ask for access on its page, then log in: hf auth login."
                ) from error
            except RepositoryNotFoundError as error:
                raise UploadError(
                    f"{self} is neither a local folder nor a {self.repo_type} repository that your token can see. "
                    "Check the spelling; for a private repository log in first: hf auth login."
                ) from error
            except RevisionNotFoundError as error:
                raise UploadError(
                    f"{self} does not exist. Name a branch, tag or commit of that repository."
                ) from error
            except HFValidationError as error:
                raise UploadError(
                    f"{self.name} is not a folder on this machine (looked in {Path.cwd()}) and not a valid repository "
                    "name (user/name). Check the path."
                ) from error

    def __str__(self) -> str:
        revision = self.arguments.get("revision")
        return f"{self.name}@{revision}" if revision else self.name


class _NotThere(Exception):
    """The repository is there, the file is not."""


def refuse_unnamed(thing: object, expected: str = "a folder, or the name of a repository") -> NoReturn:
    """Say what was given where a name belongs, and what of it to pass instead.

    Args:
        thing: What was given.
        expected: What the caller takes.

    Raises:
        PartError: Always.
    """
    given = "None" if thing is None else type(thing).__name__
    raise PartError(f"Found {given}, expected {expected}. {_what_to_pass(thing)}")


def _what_to_pass(thing: object) -> str:
    """Told by what the thing has: the libraries that such things come from need not be installed."""
    if hasattr(thing, "_orig_mod"):
        return "Pass the model from before torch.compile: model._orig_mod."
    if any(base.__name__ == "SentenceTransformer" for base in type(thing).__mro__):
        return "Pass the transformer inside it: model[0].auto_model."
    if hasattr(thing, "module"):
        return "Pass the model inside the wrapper: model.module."
    if callable(thing) and hasattr(thing, "model") and hasattr(thing, "tokenizer"):
        return "Pass the model inside the pipeline: pipeline.model."
    if hasattr(thing, "save_pretrained"):
        return "It has no name yet: save it with save_pretrained(folder), then pass the folder."
    return "Pass a folder, or a repository as user/name."


def publish(
    repo_id: str,
    save: Callable[[Path, str], None],
    card: Callable[[str, str | None], str],
    *,
    own_files: Sequence[str],
    repo_type: str = "model",
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Push what `save` writes as one commit; a push that dies on the way leaves the repository as it was.

    Args:
        repo_id: Repository; made if it does not exist.
        save: Writes the files into a folder, given that and the full name of the repository.
        card: The card's text from the full name of the repository and the card that lies there, if any.
        own_files: Patterns of files that belong to us: those that `save` does not write are removed.
        repo_type: ``model`` or ``dataset``.
        commit_message: Title of the commit.
        commit_description: The rest of its message.
        private: Whether a new repository is private.
        token: Of a user who may write there.
        revision: Branch; made if it does not exist.
        create_pr: Open a pull request instead.

    Raises:
        UploadError: If the token may not write there, or others kept pushing at the same time.
    """
    api = HfApi(token=token, library_name="hf_relreps")
    with _explaining_push(repo_id):
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if revision and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Anchors are a table, and travel with the model on purpose.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        save(Path(folder), repo_id)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with _explaining_push(repo_id):
                    # What is read here is what the commit builds on: if another comes between, the Hub refuses ours.
                    parent = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
                    text = card(repo_id, _card_at(repo_id, repo_type, parent, token))
                    Path(folder, CARD_FILE).write_text(text, "utf-8")
                    return api.upload_folder(
                        repo_id=repo_id,
                        repo_type=repo_type,
                        folder_path=folder,
                        commit_message=commit_message,
                        commit_description=commit_description,
                        revision=revision,
                        create_pr=create_pr,
                        parent_commit=parent,
                        delete_patterns=list(own_files),
                    )
            except UploadError as error:
                if _status(error.__cause__) != 412 or attempt == ATTEMPTS:
                    raise
                logger.info("Somebody else pushed to %s at the same time; pushing on top of that.", repo_id)
    raise AssertionError("unreachable")


def full_name(repo_id: str, token: bool | str | None = None) -> str:
    """The name of a repository with its owner, who is the token's user where none is named."""
    if "/" in repo_id:
        return repo_id
    with _explaining_push(repo_id):
        return f"{HfApi(token=token, library_name='hf_relreps').whoami()['name']}/{repo_id}"


def card_on_hub(repo_id: str, revision: str | None = None, token: bool | str | None = None) -> str | None:
    """The card that lies in a model repository now; ``None`` if it has none, or does not exist."""
    try:
        with _explaining_push(repo_id):
            api = HfApi(token=token, library_name="hf_relreps")
            commit = api.repo_info(repo_id, revision=revision).sha
            return _card_at(repo_id, "model", commit, token)
    except UploadError:
        return None


def _card_at(repo_id: str, repo_type: str, commit: str | None, token: bool | str | None) -> str | None:
    try:
        found = hf_hub_download(repo_id, CARD_FILE, repo_type=repo_type, revision=commit, token=token)
    except EntryNotFoundError:
        return None
    return Path(found).read_text("utf-8-sig")


@contextmanager
def _explaining_push(repo_id: str) -> Iterator[None]:
    """Turn the client's errors into ones that say what to do."""
    remedies = {
        401: "Log in with a valid token: hf auth login.",
        403: "Log in with a token that has write access (hf auth login), or push to your own namespace.",
        412: f"Others pushed at the same time; {ATTEMPTS} attempts failed. Push again later.",
        429: "The rate limit was reached: wait a few minutes, then push again.",
    }
    refused, lost = f"The Hub refused the push to {repo_id}", f"The push to {repo_id} failed"
    with _explaining_transport(refused, lost, remedies, "The repository is unchanged. Push again."):
        try:
            yield
        except HFValidationError as error:
            raise UploadError(f"{repo_id} is not a valid repository name (user/name): {error}") from error
        except RepositoryNotFoundError as error:
            raise UploadError(
                f"{repo_id} does not exist, or your token cannot write to it. Log in with a token that has write "
                "access: hf auth login."
            ) from error


@contextmanager
def _explaining_transport(refused: str, lost: str, remedies: Mapping[int, str], otherwise: str) -> Iterator[None]:
    """What pulls and pushes share: answers of the Hub that are no success, by status, and connections that break."""
    try:
        yield
    except UploadError:
        raise
    except HfHubHTTPError as error:
        raise UploadError(f"{refused}: {error} {remedies.get(_status(error), otherwise)}") from error
    except (httpx.HTTPError, RuntimeError, OSError) as error:  # hf_xet raises RuntimeError
        reasons = ": ".join(str(one) for one in (error, error.__cause__) if one)
        raise UploadError(f"{lost}: {reasons.rstrip('.')}. {otherwise}") from error


def _status(error: BaseException | None) -> int:
    response = getattr(error, "response", None)
    return response.status_code if response is not None else 0


def _digest_of(file: Path, like: str) -> str:
    """Of the kind that `like` is: SHA-256 of the bytes, or SHA-1 of them as a git blob."""
    with file.open("rb") as stream:
        if len(like) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        sha1 = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            sha1.update(chunk)
    return sha1.hexdigest()


def _state_of(file: Path) -> str:
    real = file.resolve()
    stat = real.stat()
    return f"{real} {stat.st_size} {stat.st_mtime_ns}"


def _memory_of(expected: str) -> Path:
    return Path(constants.HF_HOME, "hf_relreps", "verified", expected)


def _is_verified(file: Path, expected: str) -> bool:
    try:
        return _memory_of(expected).read_text("utf-8") == _state_of(file)
    except OSError:
        return False


def _remember_verified(file: Path, expected: str) -> None:
    """Written beside the cache, not into it; without write access each load verifies anew."""
    memory = _memory_of(expected)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(_state_of(file), "utf-8")
    except OSError:
        return


def _forget(file: Path) -> None:
    """Remove a file from the cache, so that it is never loaded later."""
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _is_deeper(content: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than so deep."""
    level = [content]
    for _ in range(depth):
        cells = (cell for one in level for cell in (one.values() if isinstance(one, dict) else one))
        level = [cell for cell in cells if isinstance(cell, dict | list)]
    return bool(level)
