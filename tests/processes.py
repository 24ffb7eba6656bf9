"""Commands of several processes, none of which outlives a test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path


HERE = Path(__file__).parent


def run_together(command: Sequence[str], timeout: float, **environment: str) -> str:
    """What a command prints; at the time limit all of its processes end, those that wait for one another too."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A session of its own: its leader's children can be ended with it.
    process = subprocess.Popen(command, env=os.environ | settings, start_new_session=True, **pipes)
    try:
        printed, complaints = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, complaints[-4000:]
    return printed
