"""Pulling over HTTP: only what is needed moves, and nothing from outside is more than data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, compatibility, stitch
from hf_relreps.errors import UploadError
from hf_relreps.hub import pull


@pytest.fixture
def pushed(hub, repo_id, make_model):
    """The name of a pushed whole model."""
    make_model(0).push_to_hub(repo_id)
    hub.requests.clear()
    return repo_id


def in_new_process(code, *arguments, **environment):
    """What a new Python process with its own environment prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pulling_a_decoder_asks_for_nothing_but_the_decoder(hub, pushed):
    RelativeDecoder.from_pretrained(pushed)

    files = {request.path.partition("/resolve/")[2].partition("/")[2] for request in hub.requests} - {""}
    assert files == {"decoder/config.json", "decoder/model.safetensors", "decoder/adapter_config.json"}
    assert [request.status for request in hub.requests if "adapter_config" in request.path] == [404]


def test_pulling_a_decoder_moves_at_most_a_hundredth_of_an_upload_with_a_bert_base_sized_encoder(
    hub, repo_id, make_bert, make_model, anchors, tokenizer
):
    from hf_relreps import RelativeModelForSequenceClassification

    big = make_bert(0, hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=1)
    big.embeddings.word_embeddings = torch.nn.Embedding(101_000, 768)  # as many bytes as all of BERT base
    big.config.vocab_size = 101_000
    whole = RelativeModelForSequenceClassification.from_encoder(
        big.half(), anchors.view("en"), tokenizer, num_labels=3
    )
    whole.push_to_hub(repo_id)
    stored = sum(file.size for file in HfApi().model_info(repo_id, files_metadata=True).siblings)
    hub.requests.clear()

    RelativeDecoder.from_pretrained(repo_id)

    moved = sum(request.sent for request in hub.requests)
    assert stored > 150_000_000
    assert moved <= stored / 100


@pytest.mark.parametrize("door", [RelativeDecoder, RelativeModel, AutoModelForSequenceClassification, AutoModel])
def test_a_warm_reload_asks_the_hub_once(hub, pushed, door):
    door.from_pretrained(pushed)
    hub.requests.clear()

    door.from_pretrained(pushed)

    assert [(request.method, request.path) for request in hub.requests] == [("GET", f"/api/models/{pushed}")]


def test_a_reload_at_a_commit_asks_the_hub_nothing(hub, pushed):
    commit = HfApi().model_info(pushed).sha
    RelativeDecoder.from_pretrained(pushed, revision=commit)
    hub.requests.clear()

    RelativeDecoder.from_pretrained(pushed, revision=commit)

    assert hub.requests == []


OFFLINE = """
import sys
from transformers import AutoModelForSequenceClassification
from hf_relreps import RelativeDecoder, stitch
for name in sys.argv[1:]:
    whole = AutoModelForSequenceClassification.from_pretrained(name)
    decoder = RelativeDecoder.from_pretrained(name)
    print(len(decoder.anchors), stitch(whole, decoder).processor.model_max_length)
"""


def test_all_works_offline_from_the_cache(hub, pushed, new_repo_id, make_model):
    whole = AutoModelForSequenceClassification.from_pretrained(pushed)
    RelativeDecoder.from_pretrained(pushed)
    assert whole.anchors and whole.processor
    downloaded = new_repo_id()
    make_model(1).push_to_hub(downloaded)
    snapshot_download(downloaded)
    hub.requests.clear()

    assert in_new_process(OFFLINE, pushed, downloaded, HF_HUB_OFFLINE="1").split() == ["20", "64"] * 2
    assert hub.requests == []


@pytest.mark.any_hub
def test_revision_reaches_every_door(repo_id, make_model, anchors):
    first, second = make_model(0), make_model(1)
    first.push_to_hub(repo_id)
    HfApi().create_tag(repo_id, tag="v1")
    second.push_to_hub(repo_id)

    for door, weight in (
        (RelativeDecoder, lambda m: m.output.weight),
        (RelativeModel, lambda m: m.projection.anchors_AD),
        (AutoModelForSequenceClassification, lambda m: m.decoder.output.weight),
    ):
        expected = first if door is AutoModelForSequenceClassification else getattr(first, door.part)
        assert torch.equal(weight(door.from_pretrained(repo_id, revision="v1")), weight(expected))
        assert not torch.equal(weight(door.from_pretrained(repo_id)), weight(expected))
    old = stitch(f"{repo_id}@v1", f"{repo_id}@v1")
    assert torch.equal(old.decoder.output.weight, first.decoder.output.weight)
    assert compatibility(f"{repo_id}@v1", repo_id).fits
    assert AnchorSet.from_pretrained(repo_id, revision="v1").fingerprint == anchors.fingerprint


@pytest.mark.any_hub
def test_an_upload_may_lie_in_a_subfolder_of_a_repository(repo_id, tmp_path, make_model, anchors, tokenizer, texts):
    model = make_model(0)
    model.save_pretrained(tmp_path / "a" / "b")
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=tmp_path)

    decoder = RelativeDecoder.from_pretrained(repo_id, subfolder="a/b/decoder")
    assert torch.equal(decoder.output.weight, model.decoder.output.weight)
    assert len(decoder.anchors) == 20
    whole = AutoModelForSequenceClassification.from_pretrained(repo_id, subfolder="a/b")
    x = tokenizer(texts["en"][:2], return_tensors="pt")
    assert torch.equal(whole(**x).logits, model(**x).logits)
    assert AnchorSet.from_pretrained(repo_id, subfolder="a/b").fingerprint == anchors.fingerprint


PIPELINE = """
import sys
import hf_relreps
from transformers import pipeline
print(pipeline(model=sys.argv[1])(sys.argv[2])[0]["label"])
"""


@pytest.mark.any_hub
def test_a_stitched_model_loads_in_a_new_process_by_a_pipeline_without_a_task(new_repo_id, make_model, texts):
    english, french, stitched = new_repo_id(), new_repo_id(), new_repo_id()
    make_model(0, "en").push_to_hub(english)
    make_model(1, "fr").push_to_hub(french)
    model = stitch(french, english)
    model.push_to_hub(stitched)

    text = texts["fr"][7]
    label = pipeline("text-classification", model=model, tokenizer=model.processor)(text)[0]["label"]
    assert in_new_process(PIPELINE, stitched, text) == label
    card = HfApi().model_info(stitched).card_data
    assert (card.base_model, card["base_model_relation"]) == ([french, english], "merge")
    AutoModelForSequenceClassification.from_pretrained(stitched).push_to_hub(stitched)
    assert HfApi().model_info(stitched).card_data.base_model == [french, english]


# -- trust_remote_code

REMOTE = """
import sys
from transformers import AutoModel, AutoModelForSequenceClassification
assert "hf_relreps" not in sys.modules
encoder = AutoModel.from_pretrained(sys.argv[1], subfolder="encoder", trust_remote_code=True)
whole = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(whole).__module__, type(encoder).__name__)
whole.save_pretrained(sys.argv[2])
"""
WITHOUT_PACKAGE = """
import importlib.util, sys
find_spec = importlib.util.find_spec
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_relreps":
            raise ImportError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForSequenceClassification
try:
    AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    print(error)
"""


@pytest.mark.any_hub
def test_trust_remote_code_loads_the_model_without_importing_us_first(repo_id, tmp_path, make_model):
    make_model(0).push_to_hub(repo_id)

    assert in_new_process(REMOTE, repo_id, str(tmp_path / "saved")) == "hf_relreps.tasks RelativeModel"
    assert [file.name for file in (tmp_path / "saved").glob("*.py")] == ["modeling_hf_relreps.py"]


@pytest.mark.any_hub
def test_without_the_package_trust_remote_code_names_the_pip_command(repo_id, make_model):
    make_model(0).push_to_hub(repo_id)

    assert "pip install hf_relreps" in in_new_process(WITHOUT_PACKAGE, repo_id)


def test_loading_never_runs_code_of_an_upload_or_lets_its_config_choose_what_is_loaded(hub, pushed, tmp_path):
    folder = tmp_path / "upload"
    shutil.copytree(snapshot_download(pushed), folder)
    trap = "raise SystemExit('code of the upload ran')\n"
    (folder / "modeling_hf_relreps.py").write_text(trap)
    (folder / "encoder" / "modeling_evil.py").write_text(trap)
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text())
        evil = {
            "auto_map": {name: "modeling_evil.Evil" for name in ("AutoConfig", "AutoModel")},
            "trust_remote_code": True,
            "custom_pipelines": {"evil": {"impl": "modeling_evil.Evil", "pt": ["AutoModel"]}},
            "attn_implementation": "evil/kernel",
            "_attn_implementation": "evil/kernel",
            "transformers_weights": "../elsewhere.safetensors",
        }
        encoder = config.get("encoder", config)  # of the whole, or the part's own
        for described in (config, encoder, encoder.get("encoder_config", {}), config.get("decoder", {})):
            described |= evil
        file.write_text(json.dumps(config))

    whole = AutoModelForSequenceClassification.from_pretrained(folder)

    wrapped = whole.config.encoder.encoder_config
    assert wrapped._attn_implementation == "sdpa"
    assert not hasattr(wrapped, "auto_map") and not hasattr(whole.config, "transformers_weights")
    assert isinstance(AutoModel.from_pretrained(folder, subfolder="encoder"), RelativeModel)


# -- pull


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_fails_while_it_lists_files_is_an_upload_error(hub, pushed, tmp_path, status, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it asks again
    hub.fail(status, match="GET .*/tree/", times=None)
    with pytest.raises(UploadError, match=r"(?s)The Hub refused the list of files of .*(Try again later|rate limit)"):
        pull(pushed, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("part", "there", "not_there"),
    [
        (None, {"encoder", "decoder", "anchors"}, set()),
        ("decoder", {"decoder", "anchors"}, {"encoder"}),
        ("encoder", {"encoder", "anchors"}, {"decoder"}),
        ("anchors", {"anchors"}, {"encoder", "decoder"}),
    ],
)
def test_a_pulled_part_lies_in_a_folder_and_loads_from_it(hub, pushed, tmp_path, part, there, not_there):
    folder = pull(pushed, tmp_path / "here", part)

    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    assert folders >= there and not folders & not_there
    assert len(AnchorSet.from_pretrained(folder)) == 20
    if "decoder" in there:
        assert len(RelativeDecoder.from_pretrained(folder).anchors) == 20
    if "encoder" in there:
        assert RelativeModel.from_pretrained(folder).encode(["small cat here"]).shape == (1, 32)
