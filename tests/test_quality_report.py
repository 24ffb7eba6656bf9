"""The page of stitching quality says what was measured."""

from __future__ import annotations

import json

from benchmarks.quality import __main__ as quality
from benchmarks.quality import report


def test_the_page_is_made_of_the_recorded_figures(tmp_path, monkeypatch):
    committed = report.DOCUMENT.read_text("utf-8")
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "quality.md")
    monkeypatch.setattr(report, "PICTURE", tmp_path / "at_a_glance.png")
    quality.main(["--report"])
    assert (tmp_path / "quality.md").read_text("utf-8") == committed
    assert "{{" not in committed
    assert (tmp_path / "at_a_glance.png").stat().st_size > 10_000


def test_a_pair_is_compared_with_what_its_encoder_can_reach():
    assert report.of_bound({"pairs": [[0.8, 0.4], [0.45, 0.5]]}) == 0.5  # encoder by decoder; own on the diagonal


def test_the_default_keeps_more_of_own_than_the_papers_cosine_in_every_setting():
    for name in ("text", "images", "glosses", "languages", "words", "graphs"):
        found = json.loads((quality.RESULTS / f"{name}.json").read_text("utf-8"))
        ratio = {(v["projection"], v["decoder"]): v["ratio"] for v in found["variants"] if v["strategy"] == "uniform"}
        for decoder in ("mlp", "ridge"):
            assert ratio["default", decoder] > ratio["cosine", decoder]
        assert found["absolute"]["stitched"] < 0.2
