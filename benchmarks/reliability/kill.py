"""Kill a training at random moments, and inside refreshes and saves; resume; compare with the run nobody disturbed.

A moment is borne if the resumed run ends in the same weights, anchors and metrics, bit for bit. Beside that each kill
asks what ``resume_from_checkpoint=True`` does with what is left: it must end equal too, or refuse aloud.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.reliability import training
from benchmarks.reliability.report import Report


LIMIT = 3600  # seconds for one run


def run(count: int, seed: int) -> Report:
    """Kill and resume `count` times: one half at random moments, the other in chosen places."""
    rng = random.Random(seed)
    report = Report(f"kill: SIGKILL of a training at {count} moments, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="relreps-kill-") as folder:
        whole, again = end_of(Path(folder, "whole")), end_of(Path(folder, "again"))
        if what_counts(whole) != what_counts(again):
            report.lost.append("two undisturbed runs differ: nothing can be compared")
        kills = 0
        while kills < count:
            moment = moment_of(kills, rng, whole["about"])
            place = Path(folder, "killed")
            for what, lost in trial(place, moment, whole).items():
                report.counts[what] += 1
                kills += what.startswith("killed")
                if lost:
                    report.lost.append(f"{moment}: {what}: {lost}")
            shutil.rmtree(place)
    return report


def moment_of(i: int, rng: random.Random, about: dict[str, Any]) -> dict[str, Any]:
    """Random moments and places take turns."""
    if i % 2 == 0:
        return {"seconds": rng.uniform(0, about["seconds"])}
    if i % 4 == 1:
        return {"inside": "save", "n": rng.randrange(1, about["files"] + 1)}
    places = {"refresh": 10, "encoding": 10, "between": training.STEPS}
    return rng.choice([{"inside": name, "n": rng.randrange(1, most)} for name, most in places.items()])


def trial(folder: Path, moment: dict[str, Any], whole: dict[str, Any], steps: int = training.STEPS) -> dict[str, str]:
    """Kill once, resume in two ways; for each thing that happened why it was lost, or nothing."""
    folder.mkdir()
    code = in_process(folder, None, moment, steps)
    if code == 0:
        return {"ended before its moment": ""}
    happened = {f"killed {describe(moment)}": "" if code == -signal.SIGKILL else f"ended with {code}, expected a kill"}
    copy = folder.with_name(f"{folder.name}-newest")
    shutil.copytree(folder, copy)
    in_process(copy, True, None, steps)
    happened |= _what_newest_did(copy, whole)
    shutil.rmtree(copy)
    in_process(folder, "complete", None, steps)
    found = _read(folder / "end.json")
    same = found is not None and what_counts(found) == what_counts(whole)
    reason = _difference(found, whole) if found else str(_read(folder / "error.json"))
    happened["resumed from the last complete checkpoint: same end, bit for bit"] = "" if same else reason
    return happened


def describe(moment: dict[str, Any]) -> str:
    """Where, without when."""
    return "at a random moment" if "seconds" in moment else f"inside: {moment['inside']}"


def _what_newest_did(folder: Path, whole: dict[str, Any]) -> dict[str, str]:
    error, end = _read(folder / "error.json"), _read(folder / "end.json")
    if error is not None:
        return {"resume_from_checkpoint=True: refused aloud": ""}
    if end is None:
        return {"resume_from_checkpoint=True: neither ended nor refused": "no error and no end"}
    same = what_counts(end) == what_counts(whole)
    return {"resume_from_checkpoint=True: same end": "" if same else _difference(end, whole)}


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    names = [name for name, digest in expected["weights"].items() if found["weights"].get(name) != digest]
    metrics = [(a, b) for a, b in zip(found["metrics"], expected["metrics"], strict=False) if a != b]
    began = found["about"]["began_with"]
    return f"{len(names)} weights differ ({', '.join(names[:2])}); metrics {metrics[:1]}; began with {began}"


def what_counts(end: dict[str, Any]) -> dict[str, Any]:
    """The end of a run without how long it took and what it began with."""
    return {name: value for name, value in end.items() if name != "about"}


def end_of(folder: Path, steps: int = training.STEPS) -> dict[str, Any]:
    """Train without a break.

    Raises:
        RuntimeError: If that fails.
    """
    folder.mkdir()
    code = in_process(folder, None, None, steps)
    end = _read(folder / "end.json")
    if end is None:
        raise RuntimeError(f"The undisturbed run ended with {code}: {_read(folder / 'error.json')}")
    return end


def in_process(folder: Path, resume: str | bool | None, moment: dict[str, Any] | None, steps: int) -> int:
    """The exit code of `training.train` in a process of its own; those imports are made once, not for each."""
    # Who is killed gives nothing back, of which Python would warn at the end.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.reliability.training"])
    process = context.Process(target=training.train, args=(str(folder), resume, moment, steps))
    process.start()
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise RuntimeError(f"A run in {folder} did not end within {LIMIT} s.")
    return process.exitcode


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None
