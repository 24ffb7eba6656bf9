"""A Hub on this machine for the notebooks, so that they run without an account and without a network.

The client reads the address of its Hub once, when it is imported. So this comes before any import of `hf_relreps`:
`LocalHub` is loaded by its path, and the environment set, before anything else.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path


def hub_user(name: str | None = None) -> str:
    """Who pushes: `name` on the real Hub; without a name, the user of a Hub that runs here until this process ends."""
    if name is not None:
        return name
    if "huggingface_hub" in sys.modules:
        raise RuntimeError("The client of the Hub is imported already. Restart the kernel and run this cell first.")
    package = importlib.util.find_spec("hf_relreps")
    if package is None or package.origin is None:
        raise ImportError('hf_relreps is not installed. Run: pip install "hf_relreps[demo]"')
    folder = Path(package.origin).parent / "demos" / "local_hub"
    spec = importlib.util.spec_from_file_location("notebook_hub", folder / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"There is no {folder / '__init__.py'}. Install hf_relreps again.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    hub = module.LocalHub().start()
    os.environ.update(hub.environment(tempfile.mkdtemp(prefix="notebook-cache-")))
    return str(hub.user)
