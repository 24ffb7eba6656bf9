"""Many at once, briefly; ``make nightly`` asks for ten thousand predictions and eight processes."""

from __future__ import annotations

import os
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
    answers = load.in_processes(3, names, environment)
    assert answers == [{"digest": expected}] * 3


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
