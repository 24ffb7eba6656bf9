"""A Hugging Face Hub on this machine: a real HTTP server for the real `huggingface_hub` client.

Read in this order: `store.py` keeps repositories on disk (what git and LFS do for the Hub, with the ids of `git.py`),
`cards.py` reads what a card says about its repository, `app.py` leads requests to `repositories.py`,
`contents.py` and `uploads.py` (what these share is in `access.py`), `faults.py` breaks things on demand, `server.py`
runs it all.

Nothing here imports `huggingface_hub`, whose endpoint is fixed once it is imported: construct a `LocalHub` (from then
on its port is known), set its `environment()`, and only then import the client. Imports in this folder are relative,
so that it can also be loaded by its path before the rest of the library, which does import the client.

Not spoken, because no client of ours asks for it: Xet (clients set `HF_HUB_DISABLE_XET=1`), discussions and merging of
pull requests, jobs, buckets, webhooks, collections.
"""

from .server import LocalHub
from .store import HubError


__all__ = ["HubError", "LocalHub"]
