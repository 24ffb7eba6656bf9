"""Many at once: threads that pull and stitch, processes that share one cache, and a service that never ends.

Everything goes over HTTP to a Hub on this machine. ``python -m benchmarks.reliability.load WHAT ...`` is what each
process runs.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from benchmarks.reliability.report import Report
from benchmarks.reporting import quiet
from hf_relreps import AnchorSet, RelativeModelForSequenceClassification, stitch
from hf_relreps.demos.tiny import small_bert, word_tokenizer


ENGLISH = ["a small cat", "a big dog", "two red birds", "old bread", "hot soup", "a slow train", "a blue car", "rain"]
FRENCH = ["un petit chat", "un grand chien", "deux oiseaux", "vieux pain", "soupe", "un train", "une voiture", "pluie"]
THREADS, PROCESSES, TIMES = 16, 8, 3
LIMIT = 3600  # seconds
# What a process may grow by in a service loop, after the first tenth of it: arenas of the allocator, no more.
GROWTH = 8 << 20


def run(count: int, seed: int) -> Report:
    """Threads, processes, and a loop of `count` predictions."""
    from local_hub import LocalHub

    report = Report(f"load: {THREADS} threads, {PROCESSES} processes, {count:,} predictions, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="relreps-load-") as folder, LocalHub(port=0) as hub:

        def environment(cache: str) -> dict[str, str]:
            quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            return os.environ | hub.environment(f"{folder}/{cache}") | quiet

        names = in_process("push", [hub.user], environment("push"))["names"]
        expected = in_process("pull", names, environment("alone"))["digest"]
        found = in_process("threads", [str(THREADS), str(TIMES), *names], environment("threads"))
        report.counts["pulls and stitches in threads"] = len(found["digests"])
        report.lost += [f"a thread: {error}" for error in found["errors"]]
        report.lost += [f"a thread got {digest}" for digest in found["digests"] if digest != expected]
        for answer in in_processes(PROCESSES, names, environment("shared")):
            report.counts["processes on one cold cache"] += 1
            if answer.get("digest") != expected:
                report.lost.append(f"a process: {answer}")
        loop = in_process("loop", [str(count), *names], environment("loop"))
        report.counts["predictions of a stitched model"] = loop["predictions"]
        report.facts["memory grew, after the first tenth, by"] = f"{loop['grew'] / 2**20:.1f} MB"
        report.facts["Python objects more than after the first tenth"] = str(loop["objects"])
        if loop["grew"] > GROWTH or loop["changed"]:
            report.lost.append(f"the service loop: {loop}")
    return report


def in_process(what: str, arguments: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """What `main` prints in a process of its own.

    Raises:
        RuntimeError: If it fails.
    """
    done = _started(what, arguments, environment)
    out, errors = done.communicate(timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(f"{what} ended with {done.returncode}: {errors[-3000:]}")
    return json.loads(out.splitlines()[-1])


def in_processes(count: int, names: Sequence[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """The same pull by so many processes at once, on one cache."""
    processes = [_started("pull", names, environment) for _ in range(count)]
    answers = []
    for process in processes:
        out, errors = process.communicate(timeout=LIMIT)
        answers.append(json.loads(out.splitlines()[-1]) if process.returncode == 0 else {"error": errors[-500:]})
    return answers


def _started(what: str, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    environment = environment | {"PYTHONPATH": os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "benchmarks.reliability.load", what, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# -- what the processes do


def push(user: str) -> dict[str, Any]:
    """Two models that share anchors, in two languages."""
    anchors = AnchorSet([f"m{i}" for i in range(8)], {"en": ENGLISH, "fr": FRENCH})
    names = []
    for view, samples in (("en", ENGLISH), ("fr", FRENCH)):
        set_seed(len(names))
        tokenizer = word_tokenizer(samples)
        model = RelativeModelForSequenceClassification.from_encoder(
            small_bert(len(tokenizer), longest=16, width=32), anchors.view(view), tokenizer, num_labels=3
        )
        names.append(f"{user}/load-{view}")
        model.push_to_hub(names[-1])
    return {"names": names}


def pull(english: str, french: str) -> str:
    """A digest of what the French encoder with the English decoder says."""
    model = stitch(french, english)
    inputs = model.processor(FRENCH, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits_BC = model(**inputs).logits
    return hashlib.sha256((logits_BC * 1e4).round().numpy().tobytes()).hexdigest()


def in_threads(threads: int, times: int, names: Sequence[str]) -> dict[str, Any]:
    """Pull and stitch in threads that all start at the same moment, several times each."""
    together = threading.Barrier(threads)
    before = _state_of_transformers()

    def work(_: int) -> tuple[list[str], str | None]:
        together.wait()
        digests: list[str] = []
        try:
            digests += (pull(*names) for _ in range(times))
        except Exception as error:  # noqa: BLE001  whatever it is, it counts as lost
            return digests, f"{type(error).__name__}: {error}"
        return digests, None

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(work, range(threads)))
    errors = [error for _, error in answers if error]
    if _state_of_transformers() != before:
        errors.append("functions of torch or transformers were left changed")
    return {"digests": [digest for digests, _ in answers for digest in digests], "errors": errors}


def _state_of_transformers() -> list[int]:
    """Functions that transformers replaces while it builds a model."""
    functions = [PreTrainedModel.tie_weights, PreTrainedModel.init_weights, torch.linspace]
    return [*map(id, functions), *(id(getattr(torch.nn.init, name)) for name in ("normal_", "zeros_", "ones_"))]


def service_loop(predictions: int, names: Sequence[str]) -> dict[str, Any]:
    """One stitched model answers many times; what the process holds after that, against after a tenth of it."""
    from benchmarks.reliability.guard import memory

    english, french = names
    model = stitch(french, english)
    first, begun, objects = None, 0, 0
    with torch.no_grad():
        for i in range(predictions):
            inputs = model.processor([FRENCH[i % 8], FRENCH[(3 * i) % 8]], return_tensors="pt", padding=True)
            logits_BC = model(**inputs).logits
            if i == 0:
                first = logits_BC
            if i == predictions // 10:
                gc.collect()
                begun, objects = memory("VmRSS"), len(gc.get_objects())
        inputs = model.processor([FRENCH[0], FRENCH[0]], return_tensors="pt", padding=True)
        changed = not torch.allclose(model(**inputs).logits, first, atol=1e-6)
    gc.collect()
    return {
        "predictions": predictions,
        "grew": memory("VmRSS") - begun,
        "objects": len(gc.get_objects()) - objects,
        "changed": changed,
    }


@quiet()
def main(what: str, *arguments: str) -> dict[str, Any]:
    """What one process does, as JSON."""
    torch.set_num_threads(1)
    if what == "push":
        return push(*arguments)
    if what == "pull":
        return {"digest": pull(*arguments)}
    if what == "threads":
        return in_threads(int(arguments[0]), int(arguments[1]), arguments[2:])
    return service_loop(int(arguments[0]), arguments[1:])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])) + "\n")
