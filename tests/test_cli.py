"""`hf-relreps` as a terminal sees it: output, exit codes, and no traceback for what a user can mend."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from hf_relreps import RelativeDecoder, RelativeModelForSequenceClassification, cli


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-relreps", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return command


@pytest.fixture(scope="module")
def uploads(
    make_model: Callable[..., RelativeModelForSequenceClassification], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uploads")
    models = {
        "en": make_model(0),
        "fr": make_model(1, "fr"),
        "cosine": make_model(2, similarity="cosine", basis_ridge=None),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def test_help_names_the_commands(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("quickstart", "stitch", "compare"))


def test_compare_says_that_parts_fit(run: Run, uploads: dict[str, str]) -> None:
    code, out, _ = run("compare", uploads["fr"], uploads["en"])
    assert code == 0
    assert "verdict: fits" in out


def test_compare_says_what_differs_and_fails(run: Run, uploads: dict[str, str]) -> None:
    code, out, _ = run("compare", uploads["cosine"], uploads["en"])
    assert code == 1
    assert "does not fit: similarity, basis_ridge" in out


def test_compare_prints_json_for_machines(run: Run, uploads: dict[str, str]) -> None:
    _, out, _ = run("compare", uploads["fr"], uploads["en"], "--json")
    assert json.loads(out)["fits"] is True


def test_stitch_saves_a_model_that_loads(run: Run, uploads: dict[str, str], tmp_path: Path) -> None:
    code, out, _ = run("stitch", uploads["fr"], uploads["en"], "--output", str(tmp_path), "--text", "petit chat ici")
    assert code == 0
    assert "petit chat ici" in out and f"saved in {tmp_path}" in out
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.anchor_view == "fr"


def test_a_stitch_that_cannot_fit_is_a_sentence_and_exit_code_2(run: Run, uploads: dict[str, str]) -> None:
    code, out, err = run("stitch", uploads["cosine"], uploads["en"])
    assert code == 2
    assert "Cannot stitch" in err and "use_projection" in err
    assert "Traceback" not in out + err


def test_a_folder_that_does_not_exist_is_a_sentence_and_exit_code_2(run: Run, uploads: dict[str, str]) -> None:
    code, _, err = run("stitch", "./no/such/folder", uploads["en"])
    assert code == 2
    assert "no/such/folder" in err and "Traceback" not in err


@pytest.fixture
def pushed(make_model: Callable[..., RelativeModelForSequenceClassification], hub: Any, repo_id: str) -> str:
    make_model(1, "fr").push_to_hub(repo_id)
    return repo_id


def test_find_lists_uploads_that_share_anchors(run: Run, uploads: dict[str, str], pushed: str) -> None:
    code, out, _ = run("find", uploads["en"], "--language", "fr")
    assert code == 0
    assert pushed in out


def test_find_prints_json_for_machines(run: Run, uploads: dict[str, str], pushed: str) -> None:
    _, out, _ = run("find", uploads["en"], "--part", "decoder", "--json")
    assert pushed in [row["repo_id"] for row in json.loads(out)]


def test_pull_copies_one_part_that_then_loads(run: Run, pushed: str, tmp_path: Path) -> None:
    code, out, _ = run("pull", pushed, str(tmp_path), "--part", "decoder")
    assert code == 0 and "decoder" in out
    assert not (tmp_path / "encoder").exists()
    assert RelativeDecoder.from_pretrained(tmp_path).config.num_labels == 3


def test_card_is_written_into_a_folder(run: Run, uploads: dict[str, str]) -> None:
    code, out, _ = run("card", uploads["en"], "--repo", "me/relative-en")
    assert code == 0
    assert "README.md" in out and "me/relative-en" in Path(uploads["en"], "README.md").read_text()


def test_an_upload_that_does_not_exist_is_a_sentence(run: Run, hub: Any, tmp_path: Path) -> None:
    code, _, err = run("pull", "nobody/nothing", str(tmp_path))
    assert code == 2
    assert "nobody/nothing" in err and "Traceback" not in err
