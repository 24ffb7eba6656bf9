"""Run a local Hub by hand: `python -m hf_relreps.demos.local_hub --root DIR --port N`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import threading
from pathlib import Path

from .server import LocalHub


def main() -> None:
    """Serve until interrupted; say what a client needs in its environment."""
    parser = argparse.ArgumentParser(prog="python -m hf_relreps.demos.local_hub", description=__doc__)
    parser.add_argument("--root", type=Path, help="folder that keeps the repositories (default: a temporary one)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--cache", type=Path, default=Path("local-hub-cache"), help="folder for the caches of clients")
    arguments = parser.parse_args()

    with LocalHub(root=arguments.root, port=arguments.port) as hub:
        exports = [
            f"export {name}={shlex.quote(value)}" for name, value in hub.environment(arguments.cache.resolve()).items()
        ]
        sys.stdout.write("\n".join([f"# local Hub at {hub.url}, repositories in {hub.root}", *exports, ""]))
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
