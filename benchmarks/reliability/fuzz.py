"""Thousands of spoilt uploads: each must load as something sound, or end in a clean error, and touch nothing else.

A clean error is a `RelrepsError`, an `OSError` or a `ValueError`. Through an Auto class, transformers reads the
configuration before this library is asked; an error from there is counted by itself.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks.reliability import guard
from benchmarks.reliability.mutations import sound_uploads, spoil
from benchmarks.reliability.report import Report
from benchmarks.reporting import quiet
from hf_relreps import (
    AnchorSet,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
    compatibility,
    stitch,
)
from hf_relreps.errors import RelrepsError
from hf_relreps.hub import write_card
from hf_relreps.sources import Source
from hf_relreps.uploads import load_processor, weight_files


MORE_MEMORY = 3 << 30  # the address space that a case may ask for beyond what is there
GROWTH = 256 << 20  # the memory that a case may really use beyond what is there: uploads hold less than 1 MB
PER_WORKER = 2_000
SILENCE = 300  # seconds without a word, after which a worker is taken to hang where no alarm reaches it


def run(count: int, seed: int) -> Report:
    """Try `count` spoilt uploads in processes of their own, one after another."""
    report = Report(f"fuzz: {count:,} mutated uploads, seed {seed}")
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    growth = done = 0
    while done < count:
        worker = _Worker(seed, done, min(count - done, PER_WORKER))
        for line in worker.lines():
            done = line["case"] + 1
            outcomes[line["outcome"]] += 1
            kinds.update(step.split()[0].rstrip(":") for step in line["what"].split("; "))
            growth = max(growth, line["growth"])
            if line["lost"]:
                report.lost.append(f"case {line['case']} ({line['what']}) through {line['door']}: {line['lost']}")
        if worker.crashed:
            outcomes["crashed"] += 1
            report.lost.append(f"case {done}: crashed or hung: python -m benchmarks.reliability.fuzz {seed} {done} 1")
            done += 1
    report.counts["inputs tried"] = sum(outcomes.values())
    report.counts.update(outcomes)
    report.facts["spoilt"] = ", ".join(f"{kind} {n:,}" for kind, n in kinds.most_common())
    report.facts["largest growth of memory"] = f"{growth / 2**20:.0f} MB"
    return report


class _Worker:
    """A process that tries cases; one that says nothing for too long is killed.

    Raises:
        RuntimeError: If it ends before its first case.
    """

    def __init__(self, seed: int, first: int, count: int) -> None:
        on = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "OMP_NUM_THREADS", "PYTHONFAULTHANDLER")
        environment = os.environ | dict.fromkeys(on, "1") | {"TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "benchmarks.reliability.fuzz", *map(str, (seed, first, count))]
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,  # nobody is there to answer a question
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        self.crashed = False

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says of each case."""
        assert self._process.stdout is not None
        begun, timer = False, self._timer()
        for text in self._process.stdout:
            timer.cancel()
            begun, timer = True, self._timer()
            if text.startswith("{"):
                yield json.loads(text)
        timer.cancel()
        self.crashed = self._process.wait() != 0
        if self.crashed:
            self._errors.seek(0)
            said = self._errors.read()[-3000:]
            if not begun:
                raise RuntimeError(f"The worker ended before its first case: {said}")
            sys.stderr.write(said)
        self._errors.close()

    def _timer(self) -> threading.Timer:
        timer = threading.Timer(SILENCE, self._process.kill)
        timer.daemon = True
        timer.start()
        return timer


# -- the worker


@quiet()
def work(seed: int, first: int, count: int) -> None:
    """Try `count` cases, one line of JSON for each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes elsewhere
    with tempfile.TemporaryDirectory(prefix="relreps-fuzz-") as name:
        folder = Path(name)
        os.environ["HF_HOME"] = str(folder / "cache")
        sound = sound_uploads(folder / "sound")
        bait = folder / "bait"
        shutil.copytree(sound[0], bait)
        upload = folder / "upload"
        for place in sound:  # everything that loads lazily is loaded now
            for door in DOORS.values():
                shutil.copytree(place, upload)
                door(upload)
                shutil.rmtree(upload)
        watch = guard.Guard([upload, folder / "cache"], bait)
        guard.limit_memory(MORE_MEMORY)
        print("ready", file=answers, flush=True)
        for case in range(first, first + count):
            rng = random.Random(f"{seed}-{case}")
            shutil.rmtree(upload, ignore_errors=True)
            shutil.copytree(rng.choice((sound[0], sound[0], sound[1])), upload)
            what = spoil(upload, rng, bait)
            line = {"case": case, "what": what} | _try(upload, _door_for(what, rng), watch)
            print(json.dumps(line), file=answers, flush=True)


def _door_for(what: str, rng: random.Random) -> str:
    """A door that reads what was spoilt, most of the time."""
    kind = what.split()[0]
    fitting = {
        "card": ("card",),
        **dict.fromkeys(("processor", "processor:"), ("processor", "encode")),
        "table": ("anchors", "anchors", "whole", "stitch"),
        "record": ("anchors", "anchors", "whole", "stitch", "card"),
        **dict.fromkeys(("index", "index:"), ("index", "whole", "auto", "encoder", "decoder")),
        "weights": ("whole", "encoder", "decoder", "encode"),
        "config": ("whole", "encoder", "decoder", "auto", "card", "encode", "stitch"),
    }
    return rng.choice(fitting.get(kind, tuple(DOORS)) if rng.random() < 0.85 else tuple(DOORS))


def _try(upload: Path, door: str, watch: Any) -> dict[str, Any]:
    lost = ""
    guard.forget_peak()
    before = guard.memory("VmRSS")
    try:
        with watch.watching():
            DOORS[door](upload)
        outcome = "loaded"
    except guard.Hang:
        outcome, lost = "hung", f"hung for {watch.seconds:.0f} s"
    except BaseException as error:  # noqa: BLE001  also what ends a program: SystemExit, KeyboardInterrupt
        outcome, lost = _judged(error, door)
    growth = guard.memory() - before
    if growth > GROWTH:
        lost = lost or f"used {growth / 2**20:.0f} MB"
    if watch.steps:
        lost = f"{watch.steps[0]}; {lost}"
    if any(upload.rglob("evil_ran")):
        lost = f"code of the upload ran; {lost}"
    return {"outcome": "lost" if lost else outcome, "door": door, "lost": lost, "growth": growth}


def _judged(error: BaseException, door: str) -> tuple[str, str]:
    for clean in (RelrepsError, OSError, ValueError):
        if isinstance(error, clean):
            return clean.__name__, ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "hf_relreps/" in frame.filename]
    if door == "auto" and not ours and isinstance(error, Exception):
        return "refused by transformers before this library is asked", ""
    last = (ours or frames)[-1]
    return "lost", f"{type(error).__name__}: {str(error)[:200]!r} at {Path(last.filename).name}:{last.lineno}"


# -- doors: every way in which a file of an upload is read


def _is_of_images(upload: Path) -> bool:
    card = upload / "README.md"
    return card.is_file() and "photo" in card.read_text("utf-8", errors="replace")


def _whole(upload: Path) -> None:
    of_images = _is_of_images(upload)
    model_class = RelativeModelForImageClassification if of_images else RelativeModelForSequenceClassification
    model_class.from_pretrained(upload)


def _auto(upload: Path) -> None:
    AutoConfig.from_pretrained(upload)
    if not _is_of_images(upload):
        AutoModelForSequenceClassification.from_pretrained(upload)


def _decoder(upload: Path) -> None:
    decoder = RelativeDecoder.from_pretrained(upload)
    logits_BC = decoder(torch.randn(2, decoder.config.space.size)).logits
    assert logits_BC.isfinite().all()


def _encode(upload: Path) -> None:
    encoder = RelativeModel.from_pretrained(upload)
    x_ND = encoder.encode(encoder.anchors.view(encoder.config.anchor_view).samples[:2])
    assert encoder.projection(x_ND).isfinite().all()


DOORS: dict[str, Callable[[Path], Any]] = {
    "whole": _whole,
    "auto": _auto,
    "index": lambda upload: weight_files(Source.of(upload)),  # as a training that is resumed reads it
    "encoder": RelativeModel.from_pretrained,
    "decoder": _decoder,
    "anchors": AnchorSet.from_pretrained,
    "processor": lambda upload: load_processor(Source.of(upload)),
    "encode": _encode,
    "stitch": lambda upload: (str(compatibility(upload, upload)), stitch(upload, upload)),
    "card": lambda upload: write_card(upload, "me/sound"),
}


if __name__ == "__main__":
    work(*map(int, sys.argv[1:4]))
