"""A Hub on this machine for the notebooks, so that they run without an account and without a network.

The client reads the address of its Hub once, when it is imported. So this comes before any import of `hf_relreps`: the
Hub is started, and the environment set, before anything else.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]  # of the repository


def hub_user(name: str | None = None) -> str:
    """Who pushes: `name` on the real Hub; without a name, the user of a Hub that runs here until this process ends."""
    if name is not None:
        return name
    if "huggingface_hub" in sys.modules:
        raise RuntimeError("The client of the Hub is imported already. Restart the kernel and run this cell first.")
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from local_hub import LocalHub

    hub = LocalHub().start()
    os.environ.update(hub.environment(tempfile.mkdtemp(prefix="notebook-cache-")))
    return hub.user
