"""`hf-relreps quickstart`, as a stranger runs it, on little data: scores mean nothing, but everything happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

from hf_relreps import AnchorSet


def run_quickstart(output: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "hf_relreps_cli", "quickstart", "--quick", "--output"]
    command += [str(output), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp("quickstart")
    return run_quickstart(output), output


def test_the_story_is_told_in_order(run: tuple[str, Path]) -> None:
    steps = [
        "1  Anchors",
        "2  Train and save",
        "3  Load parts",
        "4  The paper's projection",
        "5  Classify",
        "6  Save",
        "Done in",
    ]
    places = [run[0].index(step) for step in steps]
    assert places == sorted(places)


def test_the_matrix_is_written_as_json_with_its_controls(run: tuple[str, Path]) -> None:
    record = json.loads((run[1] / "matrix.json").read_text())
    default = record["default"]
    assert default["encoders"] == default["decoders"] == ["en-1", "en-2", "fr", "it"]
    assert np.shape(default["scores"]) == np.shape(default["absolute"]) == (4, 4)
    assert 0 < default["chance"] < 0.2
    assert record["cosine"]["n"] == default["n"] == 200


def test_even_a_minute_of_training_leaves_the_absolute_control_at_chance(run: tuple[str, Path]) -> None:
    default = json.loads((run[1] / "matrix.json").read_text())["default"]
    assert default["absolute_own"] > 0.3  # the control's decoders read their own encoder
    assert default["absolute_stitched"] < 0.15  # and no other, since no two encoders share a seed


def test_the_picture_shows_the_matrix_and_its_control(run: tuple[str, Path]) -> None:
    with Image.open(run[1] / "matrix.png") as picture:
        assert picture.width > picture.height > 300


def test_three_sentences_are_classified_with_parts_of_two_uploads(run: tuple[str, Path]) -> None:
    table = run[0][run[0].index("5  Classify") :]
    for words in ("Un jeu de course", "Strumento per modificare", "A mail server"):  # typos: ignore
        assert words in table


def test_without_a_hub_user_the_uploads_are_folders_with_cards(run: tuple[str, Path]) -> None:
    uploads = run[1] / "uploads"
    for name in ("relative-debian-en-1", "relative-debian-fr", "relative-debian-fr-by-en"):
        assert f"/{name}" in run[0]
        assert "relreps-anchors:" in (uploads / name / "README.md").read_text("utf-8")
    assert (uploads / "relative-debian-fr-by-en" / "stitching_matrix.png").is_file()
    assert AnchorSet.from_pretrained(uploads / "debian-anchors").fingerprint[:16] in run[0]


@pytest.mark.slow  # the whole story once more
def test_with_a_hub_user_the_four_models_the_anchors_and_the_stitch_are_pushed(hub: Any, tmp_path: Path) -> None:
    finished = run_quickstart(tmp_path, "--hub-user", hub.user)
    assert "2  Train and push" in finished
    for name in ("relative-debian-en-1", "relative-debian-it", "relative-debian-fr-by-en"):
        assert f"{hub.user}/{name}" in finished
        assert HfApi().file_exists(f"{hub.user}/{name}", "encoder/config.json")
    assert HfApi().repo_exists(f"{hub.user}/debian-anchors", repo_type="dataset")
    assert not (tmp_path / "uploads").exists()
