"""Run a local Hub by hand, or while a command runs that talks to it.

python -m local_hub --root DIR --port N      until it is interrupted; prints what clients need in their environment
python -m local_hub -- COMMAND ARGS...       while the command runs, with that environment; ends with its exit code
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from . import LocalHub

NOT_STARTED = 2  # exit code, as argparse's for wrong arguments
NO_COMMAND = 127  # exit code, as a shell's


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a Hub, serve until interrupted or until the command ends; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    options, command = _parser().parse_args(given[:at]), given[at + 1 :]
    try:
        from . import LocalHub  # may lack what it needs

        hub = LocalHub(root=options.root, port=options.port)
    except (ImportError, OSError, OverflowError) as error:
        sys.stderr.write(f"local_hub: {_remedy(error, options)}\n")
        return NOT_STARTED
    with hub:
        environment = hub.environment(options.cache.resolve())
        if command:
            return _run(command, os.environ | environment)
        _say(hub, environment)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m local_hub",
        usage="%(prog)s [-h] [--root DIR] [--port N] [--cache DIR] [-- COMMAND ARGS...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder that keeps the repositories (default: a temporary one)"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("local-hub-cache"),
        metavar="DIR",
        help="folder for the caches of clients (default: %(default)s)",
    )
    return parser


def _remedy(error: Exception, options: argparse.Namespace) -> str:
    """What went wrong before the Hub ran, and what to do, in one line."""
    if isinstance(error, ImportError):
        return str(error)
    reason = str(error).rstrip(".")
    return (
        f"Cannot listen on port {options.port}: {reason}. Choose another with --port N, or leave --port out for a "
        "free one."
    )


def _run(command: list[str], environment: dict[str, str]) -> int:
    """The exit code of a command; where a signal ended it, as a shell gives it."""
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        sys.stderr.write(f"local_hub: cannot run {command[0]}: {error.strerror}. Name a program after --.\n")
        return NO_COMMAND
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            continue  # the terminal has told the command as well: the Hub stays until it ends


def _say(hub: LocalHub, environment: dict[str, str]) -> None:
    """Lines for a shell to read."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    comments = [
        f"# local Hub at {hub.url}, repositories in {hub.root}",
        f"# you are {hub.user}: push to {hub.user}/NAME",
    ]
    sys.stdout.write("\n".join([*comments, *exports, ""]))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
