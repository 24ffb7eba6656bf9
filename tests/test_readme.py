"""The README's examples run as they stand there, and print what it says."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from readme import README, blocks, made_small, offline_example, quick_start, shape

import hf_relreps_cli
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer


FEW_ROWS = {
    'load_debian_descriptions("train")': 'load_debian_descriptions("train").select(range(320))',
    "k=300": "k=40",
    "num_train_epochs=4": "num_train_epochs=1",
}
Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs code as a script in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def script(code: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, str(README), "exec"), names)
        return names

    return script


def scores(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d\.\d{3}\b", printed)]


def test_the_offline_example_prints_what_the_readme_shows_if_on_few_rows(run, capsys):
    code, shown = offline_example()
    run(made_small(code, FEW_ROWS))
    printed = capsys.readouterr().out
    printed = printed[printed.index("[{'label'") :]  # the Trainer's own log comes before
    assert shape(printed) == shape(shown)
    assert "1,256 samples" in printed  # the test rows are all there, so the shapes are not equal by luck
    assert all(0 <= score <= 1 for score in scores(printed)) and len(scores(printed)) == len(scores(shown))
    label = re.search(r"'label': '([^']+)'", printed)[1]
    assert label in load_debian_descriptions("test").features["label"].names


@pytest.mark.slow
def test_the_offline_example_reaches_the_scores_that_the_readme_shows(run, capsys):
    code, shown = offline_example()
    run(code)
    printed = capsys.readouterr().out
    printed = printed[printed.index("[{'label'") :]
    assert shape(printed) == shape(shown)
    assert "'label': 'games'" in printed
    assert scores(printed) == pytest.approx(scores(shown), abs=0.08)  # other hardware rounds otherwise


def test_an_example_stands_by_line_40_and_install_by_line_75():
    lines = README.read_text("utf-8").splitlines()
    assert lines.index("```python") < 40
    assert lines.index("pip install hf_relreps") < 75


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README.read_text("utf-8"))
    assert "docs/images/stitching_matrix.png" in links
    assert all((README.parent / link).exists() for link in links), links


def test_the_quick_start_reads_french_with_a_decoder_fitted_on_english(run, hub, new_repo_id, capsys):
    code, shown = quick_start()
    rows = load_debian_descriptions("train").select(range(300))
    names = {"sentence-transformers/all-MiniLM-L6-v2": "en", "intfloat/multilingual-e5-small": "fr"}
    for seed, (name, language) in enumerate(names.items()):
        tokenizer = wordpiece_tokenizer(rows[language], 64, 2000)
        torch.manual_seed(seed)
        repository = new_repo_id()
        small_bert(len(tokenizer), 64, width=64, layers=1).push_to_hub(repository)
        tokenizer.push_to_hub(repository)
        code = code.replace(name, repository)
    names = run(made_small(code, {"range(1000)": "range(300)", "k=300": "k=100"}))
    assert shape(capsys.readouterr().out) == shape(shown)
    assert names["french"].config.anchor_view == "fr"


@pytest.fixture
def on_the_hub(hub, hub_user, new_repo_id, make_bert, tokenizer, texts, labels) -> dict[str, str]:
    """Names in the README -> repositories on the Hub of this process, those that are read with something in them."""
    names = {
        name: new_repo_id()
        for name in (
            *("me/parallel-texts", "FacebookAI/roberta-base", "almanach/camembert-base"),
            *("me/anchors", "me/relative-en", "me/relative-fr", "me/french-by-english"),
        )
    }
    rows = {"id": [f"meaning-{i}" for i in range(60)], **texts, "label": labels}
    Dataset.from_dict(rows).push_to_hub(names["me/parallel-texts"])
    for seed, base in enumerate(("FacebookAI/roberta-base", "almanach/camembert-base")):
        make_bert(seed).push_to_hub(names[base])
        tokenizer.push_to_hub(names[base])
    # One name for each language: the README writes them as f"me/relative-{language}".
    return names


def test_the_hub_section_trains_finds_pulls_stitches_and_pushes(run, on_the_hub, capsys, monkeypatch):
    train, stitch, use = blocks("python")[2:]
    prefix = on_the_hub["me/relative-en"] + "-"
    names = {name: repo for name, repo in on_the_hub.items() if not name.startswith("me/relative-")}
    relative = {f"me/relative-{language}": prefix + language for language in ("en", "fr")}
    few = {"k=300": "k=20", "seed=seed)": "seed=seed, max_steps=2)", 'f"me/relative-{': f'f"{prefix}{{'}
    in_training = ("me/anchors", "me/parallel-texts", "FacebookAI/roberta-base", "almanach/camembert-base")
    try:
        run(made_small(train, few | {name: names[name] for name in in_training}))
        for upload in relative.values():
            assert {"encoder/config.json", "decoder/config.json"} <= set(HfApi().list_repo_files(upload))
        found = run(made_small(stitch, relative | {"me/french-by-english": names["me/french-by-english"]}))
        assert prefix + "fr" in capsys.readouterr().out  # of find_parts: the French upload shares the anchors
        assert found["model"].config.anchor_view == "fr"
        run(made_small(use, {"me/french-by-english": names["me/french-by-english"]}))
        assert re.search(r"\[\{'label': '\w+', 'score': 0\.\d+\}\]", capsys.readouterr().out)
        for command in re.findall(r"`hf-relreps (find me/\S+|pull me/[^`]+)`", README.read_text("utf-8"))[-2:]:
            arguments = made_small(command, {"me/relative-en": prefix + "en"}).split()
            monkeypatch.setattr(sys, "argv", ["hf-relreps", *arguments])
            with pytest.raises(SystemExit) as stop:
                hf_relreps_cli.main()
            assert not stop.value.code, capsys.readouterr().err
        assert [path.name for path in Path("decoder").rglob("*.safetensors")] == ["model.safetensors"]
    finally:
        for upload in relative.values():
            HfApi().delete_repo(upload, missing_ok=True)


def test_every_block_of_python_is_run_by_a_test():
    assert len(blocks("python")) == 5  # the quick start, the offline example, and three of the Hub's section
