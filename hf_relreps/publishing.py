"""One push, one commit: a folder of ours becomes the content of a repository, or nothing changes there."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import httpx
from transformers.utils import logging

from hf_relreps.errors import UploadError


logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
ATTEMPTS = 3  # others may push at the same time


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
    with _explaining(repo_id):
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if revision and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Anchors are a table, and travel with the model on purpose.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        save(Path(folder), repo_id)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with _explaining(repo_id):
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
    with _explaining(repo_id):
        return f"{HfApi(token=token, library_name='hf_relreps').whoami()['name']}/{repo_id}"


def card_on_hub(repo_id: str, revision: str | None = None, token: bool | str | None = None) -> str | None:
    """The card that lies in a model repository now; ``None`` if it has none, or does not exist."""
    try:
        with _explaining(repo_id):
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
def _explaining(repo_id: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise UploadError(f"{repo_id} cannot be the name of a repository, which is user/name: {error}") from error
    except RepositoryNotFoundError as error:
        raise UploadError(
            f"There is no {repo_id} that your token can write to. Log in with a token that may write: hf auth login."
        ) from error
    except HfHubHTTPError as error:
        remedy = {
            401: "Log in with a valid token: hf auth login.",
            403: "Log in with a token that may write there, or push to a name of your own: hf auth login.",
            412: f"Others kept pushing to it; {ATTEMPTS} attempts failed. Push again when they are done.",
            429: "It asks for patience: wait a few minutes, then push again.",
        }.get(_status(error), "What was there before is unchanged; push again.")
        raise UploadError(f"The Hub refused the push to {repo_id}: {error} {remedy}") from error
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        if isinstance(error, UploadError):
            raise
        reason = error.__cause__ or error
        raise UploadError(
            f"The push to {repo_id} did not get through: {error} {reason} "
            "What was there before is unchanged; push again."
        ) from error


def _status(error: BaseException | None) -> int:
    response = getattr(error, "response", None)
    return response.status_code if response is not None else 0
