"""Four gloo processes, as `torchrun` starts them: equal anchors, the end of one process, and an end if one dies.

Two processes of the launcher of `torchrun`, with gradient checkpointing and checkpoints, are in `test_distributed.py`.
"""

from __future__ import annotations

import json

import pytest

from benchmarks.reliability import ranks
from benchmarks.reliability.report import Report


PROCESSES = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of four processes, of which the last was killed in the end; the run; its last seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    done, seconds = ranks.launch(folder, PROCESSES, dies=True)
    return folder, done, seconds


def test_the_stages_cover_what_is_uneven():
    assert any(stage.k < PROCESSES for stage in ranks.STAGES)
    assert any(stage.k > PROCESSES and stage.k % PROCESSES for stage in ranks.STAGES)
    assert any(not stage.is_even() for stage in ranks.STAGES)


def test_all_ranks_have_the_same_anchors_after_each_refresh_and_end_like_one_process(run):
    folder, done, _ = run
    report = Report("ranks")
    ranks.compare(folder, PROCESSES, report)
    assert report.lost == [], done.stderr[-3000:]
    assert report.counts["refreshes after which two ranks were compared"] == 6 * (PROCESSES - 1) * len(ranks.STAGES)
    assert report.counts["ends compared with one process"] == 2


def test_a_rank_that_dies_inside_a_refresh_ends_the_run_with_an_error(run):
    folder, done, seconds = run
    finished = [json.loads((folder / f"finished-{rank}.json").read_text()) for rank in range(PROCESSES)]
    assert finished == [{"stages": len(ranks.STAGES)}] * PROCESSES  # it died after them, not because of them
    assert (folder / "death").is_file()
    assert done.returncode != 0
    assert seconds < 900  # it would wait for ever
