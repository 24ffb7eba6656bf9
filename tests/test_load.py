"""Many at once, briefly; ``make nightly`` asks for ten thousand predictions and eight processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from huggingface_hub import HfApi

from benchmarks.reliability import load


@pytest.fixture(scope="module")
def names(hub):
    """Two pushed models that share anchors."""
    pushed = load.push(hub.user)["names"]
    yield pushed
    for name in pushed:
        HfApi().delete_repo(name, missing_ok=True)


def test_sixteen_threads_pull_and_stitch_at_once_and_leave_nothing_changed(names):
    found = load.in_threads(16, 1, names)
    assert found["errors"] == []
    assert found["digests"] == [load.pull(*names)] * 16


def test_processes_share_a_cold_cache(names, tmp_path):
    expected = load.pull(*names)
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "OMP_NUM_THREADS": "1",
    }
    answers = load.in_processes(2, names, environment)
    assert answers == [{"digest": expected}] * 2


def test_a_service_loop_keeps_its_memory(names):
    loop = load.service_loop(500, names)
    assert loop["predictions"] == 500 and not loop["changed"]
    assert loop["grew"] < load.GROWTH
    assert loop["objects"] < 200


def test_one_thread_that_builds_a_model_keeps_others_from_doing_so(names):
    """Otherwise two would leave functions of transformers changed for ever: each puts back what it found."""
    from hf_relreps import RelativeDecoder
    from hf_relreps.backbones import BUILDING

    done = threading.Event()
    thread = threading.Thread(target=lambda: (RelativeDecoder.from_pretrained(names[0]), done.set()))
    with BUILDING:
        thread.start()
        assert not done.wait(1)
    assert done.wait(30)
    thread.join()


FORKED = """
import os, sys, threading
import torch
from transformers import BertConfig, BertModel
from hf_relreps.backbones import BUILDING
from hf_relreps.errors import RelrepsError

def child(what):
    pid = os.fork()
    if pid == 0:
        try:
            with BUILDING:
                print(what, "built", flush=True)
        except RelrepsError as error:
            print(what, str(error)[:70], flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

child("before")
held, done = threading.Event(), threading.Event()
def load():
    with BUILDING:
        held.set()
        done.wait()
thread = threading.Thread(target=load)
thread.start()
held.wait()
child("meanwhile")
done.set()
thread.join()
with BUILDING:
    child("by the same thread")
child("after")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_is_forked_while_a_thread_loads_a_model_is_told_so_and_does_not_hang():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=3600)
    assert done.stdout.splitlines() == [
        "before built",
        "meanwhile This process was forked while another thread loaded a model, which lea",
        "by the same thread built",
        "after built",
    ]


def test_a_child_that_is_forked_while_a_thread_encodes_has_the_modes_of_before(make_model, texts):
    """Else it would wait for the thread, or stay in evaluation mode for ever."""
    from hf_relreps.backbones import evaluating

    model = make_model(0).train()
    inside, done = threading.Event(), threading.Event()

    def encode():
        with evaluating(model):
            inside.set()
            done.wait()

    thread = threading.Thread(target=encode)
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(module.training for module in model.modules()) else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
