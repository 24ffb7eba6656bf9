"""A Hugging Face Hub on this machine: a real HTTP server for the real `huggingface_hub` client.

Tests, notebooks and `make quickstart` talk to it; it needs starlette and uvicorn, and is no part of what is installed.
`python -m local_hub --help`, from the root of the repository, tells how to run it by hand.

Read in this order: `store.py` keeps repositories on disk (what git and LFS do for the Hub, with the ids of `git.py`),
`cards.py` reads what a card says about its repository, `app.py` leads requests to `repositories.py`,
`contents.py` and `uploads.py` (what these share is in `access.py`), `faults.py` breaks things on demand, `server.py`
runs it all.

Nothing here imports `huggingface_hub`, whose endpoint is fixed once it is imported: construct a `LocalHub` (from then
on its port is known), set its `environment()`, and only then import the client, or the library that does.

Not spoken, because no client of ours asks for it: Xet (clients set `HF_HUB_DISABLE_XET=1`), discussions and merging of
pull requests, jobs, buckets, webhooks, collections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .server import LocalHub
    from .store import HubError

__all__ = ["HubError", "LocalHub"]


def __getattr__(name: str) -> Any:
    """`HubError` and `LocalHub`, imported when asked for, so that `python -m local_hub` can say what lacks."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import server, store
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The local Hub needs {error.name}, which is not installed. Run: pip install starlette uvicorn",
            name=error.name,
        ) from error
    return {"HubError": store.HubError, "LocalHub": server.LocalHub}[name]
