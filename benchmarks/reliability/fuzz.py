"""Thousands of spoilt uploads: each must load as something sound, or end in a clean error, and touch nothing else.

A clean error is a `RelrepsError`, an `OSError` or a `ValueError`. Through an Auto class, transformers reads the
configuration before this library is asked; an error from there is counted by itself.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability import guard
from benchmarks.reliability.mutations import spoil
from benchmarks.reliability.report import Report
from benchmarks.reliability.sound import KINDS, Kind, kinds
from benchmarks.reporting import quiet
from hf_relreps.errors import RelrepsError


MORE_MEMORY = 3 << 30  # the address space that a case may ask for beyond what is there
GROWTH = 256 << 20  # the memory that a case may really use beyond what is there: uploads hold less than 1 MB
AT_ONCE = 256 << 20  # what it may ask for at once, used or not: the kernel ends the process that asks for more
ASKED = 1 << 30  # what it may ask for in all; an arena of an allocator alone is 128 MB
PER_WORKER = 2_000
IN_A_ROW, AT_RANDOM = 200, 2  # so many cases in a row spoil uploads of so many kinds, so that a short run makes few
SILENCE = 1200  # seconds without a word, after which a worker is taken to hang where no alarm reaches it


def run(count: int, seed: int) -> Report:
    """Try `count` spoilt uploads in processes of their own, one after another."""
    report = Report(f"fuzz: {count:,} mutated uploads, seed {seed}")
    outcomes: Counter[str] = Counter()
    spoilt: Counter[str] = Counter()
    uploads: Counter[str] = Counter()
    growth = done = 0
    while done < count:
        worker = _Worker(seed, done, min(count - done, PER_WORKER))
        for line in worker.lines():
            done = line["case"] + 1
            outcomes[line["outcome"]] += 1
            spoilt.update(step.split()[0].rstrip(":") for step in line["what"].split("; "))
            uploads[line["upload"]] += 1
            growth = max(growth, line["growth"])
            if line["lost"]:
                what = f"case {line['case']} ({line['upload']}: {line['what']})"
                report.lost.append(f"{what} through {line['door']}: {line['lost']}")
        if worker.ended:
            outcomes["ended"] += 1
            again = f"python -m benchmarks.reliability.fuzz {seed} {done} 1"
            report.lost.append(f"case {done}: {worker.ended}: {again}")
            done += 1
    report.counts["inputs tried"] = sum(outcomes.values())
    report.counts.update(outcomes)
    report.facts["uploads"] = ", ".join(f"{kind} {n:,}" for kind, n in uploads.most_common())
    report.facts["spoilt"] = ", ".join(f"{kind} {n:,}" for kind, n in spoilt.most_common())
    report.facts["largest growth of memory"] = f"{growth / 2**20:.0f} MB"
    return report


class _Worker:
    """A process that tries cases; one that says nothing for too long is killed.

    Raises:
        RuntimeError: If it ends before its first case.
    """

    def __init__(self, seed: int, first: int, count: int) -> None:
        on = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "OMP_NUM_THREADS", "PYTHONFAULTHANDLER")
        self._home = tempfile.TemporaryDirectory(prefix="relreps-fuzz-", ignore_cleanup_errors=True)
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_CACHE")}
        environment = kept | dict.fromkeys(on, "1") | {"TOKENIZERS_PARALLELISM": "false"}
        environment["HF_HOME"] = str(Path(self._home.name, "cache"))  # which the client reads when it is imported
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
        self.ended = ""  # how, if not when all was done

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
        status = self._process.wait()
        if status != 0:
            asked = f"asked for more than {AT_ONCE >> 20} MB at once"
            self.ended = asked if status == -signal.SIGSYS else "crashed or hung"
            self._errors.seek(0)
            said = self._errors.read()[-3000:]
            if not begun:
                raise RuntimeError(f"The worker ended before its first case: {said}")
            sys.stderr.write(said)
        self._errors.close()
        self._home.cleanup()

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
    cache = Path(os.environ["HF_HOME"])
    with tempfile.TemporaryDirectory(prefix="relreps-fuzz-") as name:
        folder = Path(name)
        upload = folder / "upload"
        sound = _Sound(folder / "sound", upload)
        bait = folder / "bait"
        shutil.copytree(sound.of("texts"), bait)
        watch = guard.Guard([upload, cache], bait)
        guard.end_at_requests_above(AT_ONCE)
        print("ready", file=answers, flush=True)
        for case in range(first, first + count):
            rng = random.Random(f"{seed}-{case}")
            kind = rng.choice(_kinds_of(seed, case))
            place = sound.of(kind)
            shutil.copytree(place, upload)
            what = spoil(upload, rng, bait)
            guard.limit_memory(MORE_MEMORY)
            line = {"case": case, "upload": kind, "what": what}
            line |= _try(upload, KINDS[kind], _door_for(what, KINDS[kind], rng), watch)
            print(json.dumps(line), file=answers, flush=True)
            shutil.rmtree(upload, ignore_errors=True)


def _kinds_of(seed: int, case: int) -> list[str]:
    """The kinds of uploads that this case and its neighbours spoil."""
    return random.Random(f"{seed}-kinds-{case // IN_A_ROW}").sample(kinds(), AT_RANDOM)


class _Sound:
    """Sound uploads by kind, each made when it is first asked for, and read through every one of its doors once.

    So everything that loads lazily is there before anything is watched.
    """

    def __init__(self, folder: Path, upload: Path) -> None:
        self._folder, self._upload = folder, upload

    def of(self, kind: str) -> Path:
        place = self._folder / kind
        if not place.is_dir():
            torch.manual_seed(0)
            KINDS[kind].make(place)
            for door in KINDS[kind].doors.values():
                shutil.copytree(place, self._upload)
                door(self._upload)
                shutil.rmtree(self._upload)
        return place


def _door_for(what: str, kind: Kind, rng: random.Random) -> str:
    """A door that reads what was spoilt, most of the time."""
    fitting = {
        "card": ("card",),
        **dict.fromkeys(("processor", "tokenizer"), ("processor", "encode")),
        "table": ("anchors", "anchors", "whole", "stitch"),
        "record": ("anchors", "anchors", "whole", "stitch", "card"),
        "index": ("index", "whole", "auto", "encoder", "decoder"),
        "weights": ("whole", "encoder", "decoder", "encode"),
        "config": ("whole", "encoder", "decoder", "auto", "card", "encode", "stitch"),
        **{name: (name,) for name in ("migration", "renewed", "shards")},
    }
    wanted = fitting.get(what.split()[0].rstrip(":"), ()) if rng.random() < 0.85 else ()
    doors = [door for door in wanted if door in kind.doors]
    return rng.choice(doors or list(kind.doors))


def _try(upload: Path, kind: Kind, door: str, watch: Any) -> dict[str, Any]:
    lost = ""
    memory = guard.Memory()
    try:
        with watch.watching():
            kind.doors[door](upload)
        outcome = "loaded"
    except guard.Hang:
        outcome, lost = "hung", f"hung for {watch.seconds:.0f} s"
    except BaseException as error:  # noqa: BLE001  also what ends a program: SystemExit, KeyboardInterrupt
        outcome, lost = _judged(error, door)
    used, asked = memory.used, memory.asked
    if used > GROWTH or asked > ASKED:
        lost = lost or f"used {used / 2**20:.0f} MB and asked for {asked / 2**20:.0f} MB"
    if watch.steps:
        lost = f"{watch.steps[0]}; {lost}"
    if any(upload.rglob("evil_ran")):
        lost = f"code of the upload ran; {lost}"
    return {"outcome": "lost" if lost else outcome, "door": door, "lost": lost, "growth": used}


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


if __name__ == "__main__":
    work(*map(int, sys.argv[1:4]))
