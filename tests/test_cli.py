"""`hf-relreps` as a terminal sees it: output, exit codes, and no traceback for what a user can mend."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from PIL import Image
from transformers import AutoModelForSequenceClassification, ViTConfig, ViTImageProcessorPil, ViTModel
from transformers.utils import logging as transformers_logging

import hf_relreps_cli
from hf_relreps import (
    AnchorSet,
    RelativeDecoder,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-relreps", *arguments])
        with pytest.raises(SystemExit) as stop:
            hf_relreps_cli.main()
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


COMMANDS = [
    ("quickstart",),
    ("anchors", "show"),
    ("anchors", "choose"),
    ("stitch",),
    ("encode",),
    ("compare",),
    ("find",),
    ("pull",),
    ("migrate",),
    ("card",),
    ("app",),
]


def test_help_names_the_commands_and_the_exit_codes(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command[0] in out for command in COMMANDS)
    assert "Exit codes: 0 success, 1" in out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_teaches_by_examples_whose_options_exist(run: Run, command: tuple[str, ...]) -> None:
    code, out, _ = run(*command, "--help")
    told, _, options = out.partition("Arguments" if "Arguments" in out else "Options")
    examples = [line.strip() for line in told.splitlines() if line.strip().startswith("hf-relreps ")]
    assert code == 0 and examples
    assert all(example.startswith("hf-relreps " + " ".join(command)) for example in examples)
    for option in re.findall(r" (--[a-z-]+)", " ".join(examples)):
        assert option in options


def test_the_version_is_that_of_the_package(run: Run) -> None:
    from hf_relreps import __version__

    assert run("--version")[:2] == (0, f"hf_relreps {__version__}\n")


HELP_LOADS = """
import sys
import hf_relreps_cli
for asked in (["--version"], ["--help"], ["stitch", "--help"], ["anchors", "choose", "--help"]):
    sys.argv = ["hf-relreps", *asked]
    try:
        hf_relreps_cli.main()
    except SystemExit as stop:
        assert not stop.code
print([name for name in ("hf_relreps", "huggingface_hub", "numpy", "torch", "transformers") if name in sys.modules])
"""


def test_version_and_help_answer_without_loading_the_library() -> None:
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", HELP_LOADS], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hf_relreps 0." in done.stdout and done.stdout.count("Usage: ") == 3
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_command_that_does_not_exist_is_a_usage_error(run: Run) -> None:
    code, out, err = run("frobnicate")
    assert (code, out) == (2, "") and "No such command 'frobnicate'" in err


def test_an_interrupted_command_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*parts: Any, **told: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_relreps.stitching.compatibility", interrupted)
    code, out, err = run("compare", "me/a", "me/b")
    assert code == 130 and "Traceback" not in out + err


# -- anchors


@pytest.fixture
def pairs(texts: dict[str, list[str]], tmp_path: Path) -> str:
    lines = ["id,english,fr,label"]
    lines += [f"m{i},{en},{fr},{i // 20}" for i, (en, fr) in enumerate(zip(texts["en"], texts["fr"], strict=True))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "pairs.csv")


CHOOSE = ("-k", "12", "--view", "en=english", "--view", "fr", "--id-column", "id")


def test_anchors_are_chosen_from_a_file_and_shown(run: Run, pairs: str, tmp_path: Path) -> None:
    folder = tmp_path / "chosen"
    code, out, _ = run("anchors", "choose", pairs, *CHOOSE, "--strategy", "stratified", "--output", str(folder))
    chosen = AnchorSet.from_pretrained(folder)
    assert code == 0 and f"saved in {folder}" in out and chosen.fingerprint[:16] in out
    assert (len(chosen), chosen.views) == (12, ["en", "fr"])
    assert sorted(int(name[1:]) // 20 for name in chosen.ids) == [0] * 4 + [1] * 4 + [2] * 4
    code, out, _ = run("anchors", "show", str(folder), "--rows", "2")
    assert code == 0 and "12 anchors" in out and "views: en (text), fr (text)" in out
    assert [line.strip() for line in out.splitlines() if line.startswith("  m")] == chosen.ids[:2]
    assert f"en  {chosen.view('en').samples[0]}" in out


def test_anchors_as_json(run: Run, pairs: str, uploads: dict[str, str], anchors: AnchorSet) -> None:
    code, out, _ = run("anchors", "choose", pairs, *CHOOSE, "--json")
    chosen = json.loads(out)
    assert code == 0 and (chosen["num_anchors"], chosen["saved"]) == (12, None)
    code, out, _ = run("anchors", "show", uploads["en"], "--json")
    assert json.loads(out)["fingerprint"] == anchors.fingerprint


def test_nothing_saved_is_said(run: Run, pairs: str) -> None:
    assert "nothing saved (see --output" in run("anchors", "choose", pairs, *CHOOSE)[1]


def test_the_bundled_data_set_has_a_name(run: Run) -> None:
    code, out, _ = run("anchors", "choose", "debian", "--view", "en", "--view", "it", "--id-column", "package")
    assert code == 0 and "300 anchors" in out


def test_a_data_set_that_cannot_be_read_is_a_sentence(run: Run, hub: Any) -> None:
    for name in ("no/such/file.csv", "nobody/nothing"):
        code, out, err = run("anchors", "choose", name, "--view", "en")
        assert code == 2 and out == "" and f"Cannot load dataset '{name}'" in err


def test_anchors_are_pushed_and_shown_from_the_hub(run: Run, pairs: str, hub: Any, repo_id: str) -> None:
    assert run("anchors", "choose", pairs, *CHOOSE, "--push", repo_id)[0] == 0
    assert "12 anchors" in run("anchors", "show", repo_id)[1]


# -- encode


def test_a_file_is_encoded_into_shards_once(run: Run, uploads: dict[str, str], pairs: str, tmp_path: Path) -> None:
    options = ["--column", "english", "--keep", "id", "--rows-per-shard", "25", "--output", str(tmp_path / "shards")]
    code, out, _ = run("encode", uploads["en"], pairs, *options)
    assert (code, out) == (0, f"60 rows in 3 shards in {tmp_path / 'shards'}; 60 encoded now\n")
    told = json.loads(run("encode", uploads["en"], pairs, *options, "--json")[1])
    assert told == {
        "folder": str(tmp_path / "shards"),
        "shards": 3,
        "rows": 60,
        "is_complete": True,
        "rows_encoded": 0,
    }
    code, out, err = run("encode", uploads["fr"], pairs, *options)
    assert (code, out) == (2, "") and "holds shards of other encoder: weights is" in err


def test_an_ordinary_encoder_needs_anchors_to_encode(
    run: Run, make_model: Callable[..., Any], uploads: dict[str, str], pairs: str, tmp_path: Path
) -> None:
    model = make_model(0)
    for part in (model.encoder.backbone, model.processor):
        part.save_pretrained(tmp_path / "bert")
    options = ["--column", "english", "--output", str(tmp_path / "shards")]
    code, _, err = run("encode", str(tmp_path / "bert"), pairs, *options)
    assert code == 2 and "is an ordinary encoder. Name its anchors with --anchors" in err
    told = json.loads(
        run("encode", str(tmp_path / "bert"), pairs, *options, "--anchors", uploads["en"], "--view", "en", "--json")[1]
    )
    assert told["is_complete"] and told["rows"] == 60


# -- machines

RUN_ALL = """
import json, sys
import hf_relreps_cli
for command in json.loads(sys.argv[1]):
    sys.argv = ["hf-relreps", *command]
    try:
        hf_relreps_cli.main()
    except SystemExit as stop:
        assert not stop.code
"""


def test_an_error_is_json_for_machines_and_a_sentence_for_people(run: Run, uploads: dict[str, str]) -> None:
    code, out, err = run("stitch", uploads["cosine"], uploads["en"], "--json")
    told = json.loads(out)
    assert code == 2 and told["error"] == "StitchingError" and told["message"] in err


def test_output_that_is_piped_holds_no_bars_and_no_colours(
    uploads: dict[str, str], pairs: str, tmp_path: Path
) -> None:
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    commands = [
        ["anchors", "choose", pairs, *CHOOSE, "--output", str(tmp_path / "anchors")],
        ["stitch", uploads["fr"], uploads["en"], "--text", "petit chat", "--output", str(tmp_path / "model")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"saved in" in done.stdout and b"\r" not in done.stdout and b"\x1b" not in done.stdout


def state() -> list[Any]:
    names = ("transformers", "huggingface_hub", "hf_relreps", "hf_relreps.samples")
    bars = [transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()]
    return [*(logging.getLogger(name).level for name in names), *bars, dict(os.environ)]


def test_a_command_leaves_loggers_bars_and_environment_as_they_were(
    run: Run, uploads: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    within = []
    monkeypatch.setattr("hf_relreps.stitching.compatibility", lambda *parts, **told: within.append(state()) or 1 / 0)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.DEBUG)
    before = state()
    with pytest.raises(ZeroDivisionError):
        run("compare", uploads["fr"], uploads["en"])
    assert state() == before
    assert within[0][0] == logging.ERROR and within[0] != before
    assert run("anchors", "show", uploads["en"])[0] == 0
    assert state() == before


# -- the app


def test_without_gradio_the_app_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'pip install "hf_relreps[app]"' in run("app", "--help")[1]  # as the README says
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_relreps.app.page", raising=False)
    code, _, err = run("app")
    assert code == 2 and "pip install 'hf_relreps[app]'" in err


def test_the_app_is_pushed_as_a_space(run: Run, hub: Any, hub_user: str) -> None:
    from huggingface_hub import HfApi

    name = f"{hub_user}/cli-app"
    code, out, _ = run("app", "--push", name)
    assert (code, out) == (0, f"pushed to the Space {name}\n")
    HfApi().delete_repo(name, repo_type="space")


# -- parts


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


def test_compare_says_what_is_kept_where_there_are_pairs(
    run: Run, uploads: dict[str, str], texts: dict[str, list[str]], tmp_path: Path
) -> None:
    from datasets import Dataset

    file = tmp_path / "parallel.csv"
    Dataset.from_dict({name: (texts[name] * 2)[:110] for name in ("en", "fr")}).to_csv(file)
    code, out, _ = run("compare", uploads["fr"], uploads["en"], "--pairs", str(file), "--own-accuracy", "0.7")
    assert code == 0
    assert "% of the decoder's own macro-F1" in out and "(110 pairs)" in out
    Dataset.from_dict({"english": texts["en"]}).to_csv(file)
    code, _, err = run("compare", uploads["fr"], uploads["en"], "--pairs", str(file))
    assert code == 2
    assert "has the columns english, but the uploads read the views fr, en. Rename its columns to the views." in err


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


def test_a_layer_is_for_ordinary_encoders(run, uploads):
    code, _, err = run("stitch", uploads["fr"], uploads["en"], "--layer", "-2")
    assert code == 2
    assert "reads layer -1, but --layer -2 was given. Leave --layer out" in " ".join(err.split())


def test_messages_name_options_not_arguments_of_python(run, uploads, pairs, tmp_path):
    code, _, err = run("stitch", uploads["fr"], uploads["en"], "--view", "en", "--text", "chat")
    assert code == 2 and "but --view en was given. Leave --view out, or" in err and "view=" not in err
    code, out, err = run("stitch", uploads["fr"], uploads["en"], "--decoder-view", "en", "--anchors", "a", "--json")
    assert code == 2 and "--anchors, --decoder-view are for ordinary classifiers" in err
    assert "--decoder-view" in json.loads(out)["message"]
    code, _, err = run("compare", uploads["fr"], uploads["en"], "--own-accuracy", "0.9")
    assert code == 2 and "--own-accuracy needs --pairs. Pass both" in err
    code, _, err = run("anchors", "choose", pairs, "--view", "en", "--id-column", "nothing")
    assert code == 2 and "Use these names in views, --id-column and --label-column" in err
    code, _, err = run("anchors", "choose", pairs, "--view", "en", "--strategy", "kmeans")
    assert code == 2 and "--strategy kmeans needs embeddings, which this command does not make" in err
    code, _, err = run("encode", uploads["en"], pairs, "--column", "en", "--output", str(tmp_path), "--dtype", "int8")
    assert code == 2 and "--dtype int8 does not exist" in err
    code, _, err = run("stitch", uploads["fr"], uploads["en"], "--text", " ")
    assert code == 2 and "--text[0] is an empty text" in err


def test_an_ordinary_encoder_is_asked_for_its_view_by_the_option(run, uploads, make_bert, tokenizer, pairs, tmp_path):
    make_bert(3).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    bert = str(tmp_path / "bert")
    code, _, err = run("stitch", bert, uploads["en"], "--text", "chat")
    assert code == 2 and "Choose the one that it reads: --view en." in err
    code, _, err = run("encode", bert, pairs, "--column", "en", "--output", bert, "--anchors", uploads["en"])
    assert code == 2 and "has the views en, fr. Name the one that" in err and "reads with --view" in err


def test_a_file_where_an_upload_belongs_is_not_looked_for_on_the_hub(run, uploads, tmp_path):
    table = tmp_path / "par.tsv"
    table.write_text("en\tfr\na cat\tun chat\n")
    for command in (
        ["stitch", str(table), uploads["en"]],
        ["compare", uploads["en"], str(table)],
        ["find", str(table)],
    ):
        code, _, err = run(*command)
        assert code == 2 and "par.tsv is a file on this machine, expected a folder, or the name of a repo" in err
    for command in (["compare", uploads["fr"], uploads["en"], "--pairs"], ["anchors", "choose", "--view", "en"]):
        code, _, err = run(*command, str(table))
        assert code == 2 and "par.tsv is a file, expected one of .csv, .json, .jsonl, .parquet" in err


def test_an_image_that_does_not_exist_is_named_before_models_are_loaded(run, image_upload, tmp_path):
    code, _, err = run("stitch", str(image_upload), str(image_upload), "--image", str(tmp_path / "nofile.png"))
    assert code == 2 and "Invalid value for '--image'" in err and "does not" in err
    (tmp_path / "no.png").write_text("no image")
    code, _, err = run("stitch", str(image_upload), str(image_upload), "--image", str(tmp_path / "no.png"))
    assert code == 2 and "--image cannot be read" in err


def test_a_folder_that_does_not_exist_is_a_sentence_and_exit_code_2(run: Run, uploads: dict[str, str]) -> None:
    code, _, err = run("stitch", "./no/such/folder", uploads["en"])
    assert code == 2
    assert "no/such/folder" in err and "Traceback" not in err


def test_stitch_prints_answers_as_json(run: Run, uploads: dict[str, str]) -> None:
    texts = ("petit chat ici", "vieux pain")
    code, out, _ = run("stitch", uploads["fr"], uploads["en"], "--text", texts[0], "--text", texts[1], "--json")
    found = json.loads(out)
    assert code == 0 and [answer["sample"] for answer in found["answers"]] == list(texts)
    assert all(answer["label"] in ("animal", "food", "vehicle") for answer in found["answers"])
    assert (found["saved"], found["pushed"]) == (None, None)


def test_stitch_with_pairs_calibrates_and_says_how_familiar_a_text_is(run, uploads, texts, tmp_path):
    from datasets import Dataset

    file = tmp_path / "parallel.csv"
    Dataset.from_dict({name: (texts[name] * 2)[:110] for name in ("en", "fr")}).to_csv(file)
    how = ("stitch", uploads["fr"], uploads["en"], "--pairs", str(file), "--text", "petit chat ici")
    code, out, err = run(*how, "--output", str(tmp_path / "model"))
    assert code == 0, err
    assert re.search(r"\w+  \d\.\d\d  familiarity \d\.\d\d  petit chat ici", out)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert loaded.config.decoder.decoder_type == "mean"


def test_stitch_prints_the_answers_of_several_decoders(run, uploads, tmp_path):
    english = RelativeModelForSequenceClassification.from_pretrained(uploads["en"])
    RelativeDecoder.from_decoders({"kind": english.decoder, "again": english.decoder}).save_pretrained(tmp_path)
    code, out, err = run("stitch", uploads["fr"], str(tmp_path), "--text", "petit chat ici", "--json")
    assert code == 0, err
    assert [answer["decoder"] for answer in json.loads(out)["answers"]] == ["again", "kind"]


@pytest.fixture(scope="module")
def image_upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue", "white")]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))
    view = AnchorSet(list("abcd"), {"photo": images}).view("photo")
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    names = {"id2label": {0: "warm", 1: "cold"}, "label2id": {"warm": 0, "cold": 1}}
    RelativeModelForImageClassification.from_encoder(vit, view, processor, **names).eval().save_pretrained(folder)
    images[0].save(folder / "red.png")
    return folder


def test_stitch_classifies_an_image(run: Run, image_upload: Path) -> None:
    code, out, err = run("stitch", str(image_upload), str(image_upload), "--image", str(image_upload / "red.png"))
    assert code == 0 and re.match(r"(warm|cold)  0\.\d\d  .*red\.png\n$", out), err


def test_what_the_model_does_not_read_is_refused(run: Run, image_upload: Path, uploads: dict[str, str]) -> None:
    code, _, err = run("stitch", str(image_upload), str(image_upload), "--text", "a cat")
    assert code == 2 and "reads images, but --text was given" in err


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
