"""Where an upload lies: a local folder, or a repository on the Hub at one revision."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_relreps.errors import UploadError


# Keyword arguments of `from_pretrained` that say where files come from, and nothing else.
SOURCE_ARGUMENTS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


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
        """From the arguments of a `from_pretrained` call; those that do not concern the place are left out."""
        given = {key: kwargs[key] for key in SOURCE_ARGUMENTS if kwargs.get(key) is not None}
        return cls(str(name), repo_type, tuple(given.items()))

    def with_type(self, repo_type: str) -> Source:
        """The same name as another type of repository."""
        return replace(self, repo_type=repo_type)

    def below(self, folder: str) -> Source:
        """A folder of this place."""
        return replace(self, folder=f"{self.folder}/{folder}".strip("/"))

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.name).is_dir()

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
        """
        path = f"{self.folder}/{path}".lstrip("/")
        if self.is_local:
            found = Path(self.name, path)
            return found if found.is_file() else None
        try:
            return Path(hf_hub_download(self.name, path, repo_type=self.repo_type, **self.arguments))
        except LocalEntryNotFoundError as error:
            raise UploadError(
                f"{path} of {self} is not in the local cache and the Hub cannot be reached. "
                "Connect once to fetch it, or give a local folder."
            ) from error
        except EntryNotFoundError:
            return None
        except GatedRepoError as error:
            raise UploadError(f"{self} is gated. Ask for access on its page, then log in: hf auth login.") from error
        except RepositoryNotFoundError as error:
            raise UploadError(
                f"{self} is neither a local folder nor a {self.repo_type} repository that your token can see. "
                "Check the spelling; for a private repository log in first: hf auth login."
            ) from error
        except RevisionNotFoundError as error:
            raise UploadError(f"{self} does not exist. Name a branch, a tag or a commit of that repository.") from error
        except HfHubHTTPError as error:
            raise UploadError(f"The Hub did not give {path} of {self}: {error}") from error

    def json(self, path: str) -> dict[str, Any] | None:
        """The content of one JSON file; ``None`` if the upload does not hold it."""
        found = self.file(path)
        if found is None:
            return None
        try:
            content = json.loads(found.read_text("utf-8"))
        except ValueError as error:
            raise UploadError(f"{path} of {self} is not JSON: {error}. Pull it again, or ask its author.") from error
        if not isinstance(content, dict):
            raise UploadError(f"{path} of {self} holds a {type(content).__name__}, expected a JSON object.")
        return content

    def __str__(self) -> str:
        revision = self.arguments.get("revision")
        return f"{self.name}@{revision}" if revision else self.name
