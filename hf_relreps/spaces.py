"""Push a small Gradio Space: a few text files as one commit."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi


def push_space(
    repo_id: str,
    files: Mapping[str, str],
    *,
    extra: str = "",
    token: bool | str | None = None,
    private: bool | None = None,
) -> CommitInfo:
    """Make the Space if it does not exist, and push its files with a ``requirements.txt`` that names this library.

    Args:
        repo_id: Of the Space.
        files: Name -> content.
        extra: Of this library that the Space needs.
        token: Of a user who may write there.
        private: Whether a new Space is private.
    """
    api = HfApi(token=token, library_name="hf_relreps")
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    name = f"hf_relreps[{extra}]" if extra else "hf_relreps"
    content = {**files, "requirements.txt": f"{name}>={version('hf_relreps')}\n"}
    operations = [CommitOperationAdd(file, text.encode()) for file, text in content.items()]
    return api.create_commit(repo_id, operations, commit_message="Upload with hf_relreps", repo_type="space")
