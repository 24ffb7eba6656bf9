"""An app to stitch two uploads in a browser: see whether they fit, and what the stitched model says.

``hf-relreps app`` starts it on this machine; `push_to_hub` makes a Space of it. It needs ``hf_relreps[app]``.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from hf_relreps.errors import MissingExtraError


SPACE_CARD = """---
title: Stitch encoders and decoders
emoji: 🧵
sdk: gradio
app_file: app.py
pinned: false
tags: [relative-representations]
---

Pick the encoder of one upload and the decoder of another, see whether they fit, and try them. Made with
[hf_relreps](https://pypi.org/project/hf_relreps); on your own machine it is `hf-relreps app`.
"""
SPACE_APP = """from hf_relreps.app import launch

launch()
"""


def launch(encoder: str = "", decoder: str = "", **arguments: Any) -> Any:
    """Start the app; what Gradio's `launch` gives.

    On a Space, or with `share`, only uploads that anybody may read can be opened, whatever the token here may read;
    elsewhere also private ones and folders of this machine.

    Args:
        encoder: Upload that stands in the encoder's place at the start.
        decoder: Upload that stands in the decoder's place at the start.
        **arguments: For Gradio's `launch`: `server_port`, `server_name`, `share`, `prevent_thread_lock`, ...

    Raises:
        MissingExtraError: If Gradio is not installed.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        from hf_relreps.app import launch
        from hf_relreps.errors import MissingExtraError

        try:
            launch("me/relative-fr", "me/relative-en", prevent_thread_lock=True)
        except MissingExtraError as error:
            print(error)  # The app needs Gradio. Install it: ...
        ```
    """
    try:
        from hf_relreps.app.page import CSS, build, theme
    except ImportError as error:
        raise MissingExtraError("The app needs Gradio. Install it: pip install 'hf_relreps[app]'.") from error
    page = build(encoder, decoder, folders="SPACE_ID" not in os.environ and not arguments.get("share"))
    return page.launch(theme=theme(), css=CSS, footer_links=[], **arguments)


def push_to_hub(repo_id: str, *, token: bool | str | None = None, private: bool | None = None) -> CommitInfo:
    """Push the app as a Space.

    Args:
        repo_id: Of the Space.
        token: Of a user who may write there.
        private: Whether a new Space is private.

    Example:
        ```python
        from hf_relreps import app

        app.push_to_hub("me/stitching-app")  # a Space
        ```
    """
    api = HfApi(token=token, library_name="hf_relreps")
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    requirements = f"hf_relreps[app]>={version('hf_relreps')}\n"
    files = {"README.md": SPACE_CARD, "app.py": SPACE_APP, "requirements.txt": requirements}
    operations = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
    return api.create_commit(repo_id, operations, commit_message="Upload with hf_relreps", repo_type="space")
