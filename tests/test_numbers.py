"""Odd numbers through the projection against an independent float64 reference; ``make nightly`` tries thousands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.reliability import numbers
from hf_relreps import RelativeConfig
from hf_relreps.projection import RelativeProjection


def test_random_spaces_are_right_to_rounding_or_refused_with_a_reason():
    report = numbers.run(count=200, seed=20)
    assert report.lost == []
    assert report.counts["inputs tried"] == 200
    assert report.counts["right"] > 100 and report.counts["refused with a reason"] > 20
    assert report.counts["empty texts refused"] == 5


@pytest.mark.parametrize("similarity", list(numbers.SIMILARITIES))
def test_the_reference_notices_an_error_of_a_thousandth(similarity, monkeypatch):
    case = numbers.case_of(np.random.default_rng(0)) | {"k": 5, "d": 16, "batch": 3, "dtype": torch.float32}
    case |= {"transform": "center", "similarity": [similarity], "basis_ridge": None, "scale": 1.0, "offset": 0.0}
    case |= {"anchors": "random", "samples": "random"}
    found, expected, allowed = numbers.outcome(case, np.random.default_rng(1))
    assert numbers._share_of_allowed(found, expected, allowed) < 1
    assert numbers._share_of_allowed(found * 1.005, expected, allowed) > 1


@pytest.mark.slow
def test_ten_thousand_anchors_with_a_change_of_basis():
    from benchmarks.reliability.report import Report

    report = Report("many anchors")
    numbers._many_anchors(report)
    assert report.lost == []


def test_ten_thousand_anchors_without_one():
    generator = torch.Generator().manual_seed(0)
    anchors_AD, x_BD = torch.randn(10_000, 16, generator=generator), torch.randn(3, 16, generator=generator)
    config = RelativeConfig.paper(num_anchors=10_000, embedding_size=16).encoder
    module = RelativeProjection(config)
    module.set_anchors(anchors_AD)
    expected, _ = numbers.reference(x_BD.double().numpy(), anchors_AD.double().numpy(), config.space, 1e-7)
    np.testing.assert_allclose(module(x_BD).numpy(), expected, atol=1e-6)
