"""Pairs of texts of the benchmark: what is compared must be hard, balanced and apart from what was trained on."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest

from benchmarks.retrieval import synopses_and_documents
from benchmarks.text_pairs.data import ANCHORS, LONGEST, TEST, TRAIN, debian, hard_rows


@pytest.fixture(scope="module")
def tasks():
    return [debian(seed, Namespace()) for seed in (0, 1)]


def test_half_of_the_pairs_match_and_no_test_text_is_known(tasks):
    for task in tasks:
        assert [len(part.samples) for part in task] == [TRAIN, ANCHORS, TEST]
        assert [sum(part.labels) for part in task] == [TRAIN // 2, ANCHORS // 2, TEST // 2]
        train, anchors, test = ({sample["text"] for sample in part.samples} for part in task)
        assert not test & train and not test & anchors


def test_seeds_share_anchors_and_test_pairs_and_have_training_pairs_of_their_own(tasks):
    one, other = tasks
    assert one.anchors == other.anchors and one.test == other.test and one.train != other.train


def test_what_matches_is_the_own_description_and_what_does_not_is_one_like_it(tasks):
    own = dict(zip(*synopses_and_documents("test"), strict=True))
    test = tasks[0].test
    for sample, label in zip(test.samples, test.labels, strict=True):
        assert (own[sample["text"]][:LONGEST] == sample["text_pair"]) == bool(label)


def test_the_nearest_are_found_without_oneself_and_what_is_not_allowed():
    texts = ["red car", "red car fast", "blue boat fast", "blue boat old", "green tree"]
    rows = hard_rows(texts, texts)
    assert all(i not in row[:1] for i, row in enumerate(rows)) and rows[2, 0] == 3
    allowed = np.ones((5, 5), dtype=bool)
    allowed[2, 3] = False
    assert hard_rows(texts, texts, allowed)[2, 0] == 1
