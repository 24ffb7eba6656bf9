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

from benchmarks.reliability.report import Report
from benchmarks.reporting import quiet


MORE_MEMORY = 3 << 30  # the address space that a case may ask for beyond what is there
GROWTH = 256 << 20  # the memory that a case may really use beyond what is there: uploads hold less than 1 MB
PER_WORKER = 2_000
SILENCE = 300  # seconds without a word, after which a worker is taken to hang where no alarm reaches it


def run(count: int, seed: int, first: int = 0) -> Report:
    """Try `count` spoilt uploads in processes of their own, one after another."""
    report = Report(f"fuzz: {count:,} mutated uploads, seed {seed}")
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    growth, done, last = 0, first, first + count
    while done < last:
        worker = _Worker(seed, done, min(last - done, PER_WORKER))
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
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONFAULTHANDLER": "1",
        }
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
    from benchmarks.reliability import guard
    from benchmarks.reliability.mutations import sound_uploads, spoil

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
                if door is not _image_door or place.name == "images":
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
        "processor:": ("processor", "encode"),
        "processor": ("processor", "encode"),
        "table": ("anchors", "anchors", "whole", "stitch"),
        "record": ("anchors", "anchors", "whole", "stitch", "card"),
        "index": ("whole", "auto"),
        "index:": ("whole", "auto"),
        "weights": ("whole", "encoder", "decoder", "encode"),
        "config": ("whole", "encoder", "decoder", "auto", "card", "encode", "stitch"),
    }
    return rng.choice(fitting.get(kind, tuple(DOORS)) if rng.random() < 0.85 else tuple(DOORS))


def _try(upload: Path, door: str, watch: Any) -> dict[str, Any]:
    from benchmarks.reliability import guard

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
    from hf_relreps.errors import RelrepsError

    if isinstance(error, RelrepsError):
        return "RelrepsError", ""
    if isinstance(error, OSError):
        return "OSError", ""
    if isinstance(error, ValueError):
        return "ValueError", ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "hf_relreps/" in frame.filename]
    if door == "auto" and not ours and isinstance(error, Exception):
        return "refused by transformers before this library is asked", ""
    last = (ours or frames)[-1]
    return "lost", f"{type(error).__name__}: {str(error)[:200]!r} at {Path(last.filename).name}:{last.lineno}"


# -- doors: every way in which a file of an upload is read


def _whole(upload: Path) -> Any:
    from hf_relreps import RelativeModelForImageClassification, RelativeModelForSequenceClassification

    is_image = "photo" in (upload / "README.md").read_text("utf-8", errors="replace") if _is_file(upload) else False
    model_class = RelativeModelForImageClassification if is_image else RelativeModelForSequenceClassification
    return model_class.from_pretrained(upload)


def _is_file(upload: Path) -> bool:
    return (upload / "README.md").is_file()


def _auto_door(upload: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    AutoConfig.from_pretrained(upload)
    if not _is_file(upload) or "photo" not in (upload / "README.md").read_text("utf-8", errors="replace"):
        AutoModelForSequenceClassification.from_pretrained(upload)


def _image_door(upload: Path) -> None:
    from transformers import AutoModelForImageClassification

    AutoModelForImageClassification.from_pretrained(upload)


def _encoder_door(upload: Path) -> None:
    from hf_relreps import RelativeModel

    RelativeModel.from_pretrained(upload)


def _decoder_door(upload: Path) -> None:
    import torch

    from hf_relreps import RelativeDecoder

    decoder = RelativeDecoder.from_pretrained(upload)
    logits_BC = decoder(torch.randn(2, decoder.config.relative_size)).logits
    assert logits_BC.isfinite().all()


def _anchors_door(upload: Path) -> None:
    from hf_relreps import AnchorSet

    AnchorSet.from_pretrained(upload)


def _processor_door(upload: Path) -> None:
    from hf_relreps.sources import Source
    from hf_relreps.uploads import load_processor

    load_processor(Source.of(upload))


def _encode_door(upload: Path) -> None:
    from hf_relreps import RelativeModel

    encoder = RelativeModel.from_pretrained(upload)
    x_ND = encoder.encode(encoder.anchors.view(encoder.config.anchor_view).samples[:2])
    assert encoder.projection(x_ND).isfinite().all()


def _stitch_door(upload: Path) -> None:
    from hf_relreps import compatibility, stitch

    str(compatibility(upload, upload))
    stitch(upload, upload)


def _card_door(upload: Path) -> None:
    from hf_relreps.hub import write_card

    write_card(upload, "me/sound")


DOORS: dict[str, Callable[[Path], Any]] = {
    "whole": _whole,
    "auto": _auto_door,
    "encoder": _encoder_door,
    "decoder": _decoder_door,
    "anchors": _anchors_door,
    "processor": _processor_door,
    "encode": _encode_door,
    "stitch": _stitch_door,
    "card": _card_door,
}


if __name__ == "__main__":
    work(*map(int, sys.argv[1:4]))
