"""8 What the command line costs before a command runs, beside `hf`, the command of huggingface_hub."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import Pairs, row


ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-c")
OURS = (*PYTHON, "import sys; sys.argv[0] = 'hf-relreps'; from hf_relreps_cli import main; main()")
THEIRS = (*PYTHON, "import sys; sys.argv[0] = 'hf'; from huggingface_hub.cli.hf import main; main()")
COMMANDS = {  # what is measured, and what it is measured against
    "hf-relreps --version": ((*OURS, "--version"), "hf --version", (*THEIRS, "--version")),
    "hf-relreps --help": ((*OURS, "--help"), "hf --help", (*THEIRS, "--help")),
    "hf-relreps stitch --help": ((*OURS, "stitch", "--help"), "hf download --help", (*THEIRS, "download", "--help")),
}
IMPORTS = {
    "import hf_relreps": (
        (*PYTHON, "import hf_relreps"),
        "from transformers import PreTrainedModel",
        (*PYTHON, "from transformers import PreTrainedModel"),
    ),
    "import torch": ((*PYTHON, "import torch"), "import transformers", (*PYTHON, "import transformers")),
}


def _child() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(command: tuple[str, ...]) -> tuple[float, float]:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    wall, processor = time.perf_counter(), _child()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - wall, _child() - processor


def run(quick: bool = False) -> dict[str, Any]:
    """Whole processes, alternating."""
    rows, seconds = [], []
    for what, (ours, beside, theirs) in (COMMANDS | IMPORTS).items():
        _seconds(ours), _seconds(theirs)  # fill the caches of files
        found = Pairs()
        for _ in range(1 if quick else 5):
            found.add(_seconds(ours), _seconds(theirs))
        figure = found.to_dict()
        for place, name in enumerate((what, beside)):
            took = {clock: figure[clock]["seconds"][place] for clock in ("wall", "processor")}
            seconds.append({"what": name, **took})
        if what in COMMANDS:
            rows.append(row(f"{what} over {beside}", figure, "at most 1"))
    return {"rows": rows, "seconds": seconds}
