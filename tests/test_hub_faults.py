"""What goes wrong between here and the Hub is said, and never loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification, stitch
from hf_relreps.errors import AnchorIntegrityError, UploadError, UploadIntegrityError


DECODER_FILE = "decoder/model.safetensors"


@pytest.fixture
def pushed(hub, repo_id, make_model):
    make_model(0).push_to_hub(repo_id)
    return repo_id


def sha256_of(repo_id, path):
    return HfApi().get_paths_info(repo_id, path)[0].lfs.sha256


# -- bytes that are not what the repository names


@pytest.mark.parametrize("path", [DECODER_FILE, "encoder/model.safetensors"])
def test_an_altered_file_is_refused_with_both_digests_and_is_gone_from_the_cache(hub, pushed, path):
    hub.corrupt(pushed, path)

    with pytest.raises(UploadIntegrityError) as caught:
        AutoModelForSequenceClassification.from_pretrained(pushed)

    named = sha256_of(pushed, path)
    assert f"the repository says {named}" in str(caught.value)
    assert len([word for word in str(caught.value).replace(",", " ").split() if len(word.rstrip(".")) == 64]) == 2
    hub.faults.clear()
    AutoModelForSequenceClassification.from_pretrained(pushed)


def test_an_altered_config_is_refused_though_it_is_no_large_file(hub, pushed):
    config = hub.store.read_text(hub.store.file(hub.repo(pushed), "main", "decoder/config.json"))
    hub.corrupt(pushed, "decoder/config.json", data=config.replace('"center"', '"whiten"').encode())

    with pytest.raises(UploadIntegrityError, match="git digest is [0-9a-f]{40}, but the repository says [0-9a-f]{40}"):
        RelativeDecoder.from_pretrained(pushed)


def test_a_file_that_was_cut_short_on_its_way_leaves_nothing_that_loads_later(hub, pushed):
    hub.corrupt(pushed, DECODER_FILE, truncate=1000)

    for _ in range(2):
        with pytest.raises(UploadError, match=r"could not be downloaded|was changed"):
            RelativeDecoder.from_pretrained(pushed)

    hub.faults.clear()
    assert RelativeDecoder.from_pretrained(pushed)


def test_a_connection_that_breaks_once_is_taken_up_again(hub, pushed, make_model):
    cut = hub.cut(match=f"GET .*{DECODER_FILE}", after_bytes=1000)

    decoder = RelativeDecoder.from_pretrained(pushed)

    assert cut.hits == 1
    assert torch.equal(decoder.output.weight, make_model(0).decoder.output.weight)


def test_a_sound_file_is_digested_once(hub, pushed, monkeypatch):
    from hf_relreps import sources

    digested, digest_of = [], sources._digest_of

    def watched(file, like):
        digested.append(file)
        return digest_of(file, like)

    monkeypatch.setattr(sources, "_digest_of", watched)
    for _ in range(3):
        RelativeDecoder.from_pretrained(pushed)

    assert [file.name for file in digested] == ["config.json", "model.safetensors"]


def test_an_altered_file_is_refused_in_a_cache_without_symbolic_links_too(hub, pushed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS", True)
    hub.corrupt(pushed, DECODER_FILE)

    with pytest.raises(UploadIntegrityError, match=f"the repository says {sha256_of(pushed, DECODER_FILE)}"):
        RelativeDecoder.from_pretrained(pushed, cache_dir=tmp_path)

    hub.faults.clear()
    assert RelativeDecoder.from_pretrained(pushed, cache_dir=tmp_path)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_cached_file_that_was_changed_on_disk_is_refused(hub, pushed):
    RelativeDecoder.from_pretrained(pushed)
    file = Path(hf_hub_download(pushed, DECODER_FILE)).resolve()
    content = bytearray(file.read_bytes())
    content[-1] ^= 0xFF
    file.write_bytes(content)

    with pytest.raises(UploadIntegrityError, match="changed during the download"):
        RelativeDecoder.from_pretrained(pushed)
    assert RelativeDecoder.from_pretrained(pushed)  # it was removed, so it is fetched anew


def test_tampered_anchors_are_refused_with_both_digests(hub, pushed, anchors, tmp_path):
    others = AnchorSet(anchors.ids, {"en": anchors.view("fr").samples, "fr": anchors.view("fr").samples})
    others.save_pretrained(tmp_path)
    table = (tmp_path / "anchors" / "anchors.parquet").read_bytes()
    hub.corrupt(pushed, "anchors/anchors.parquet", data=table, consistent=True)

    decoder = RelativeDecoder.from_pretrained(pushed)
    with pytest.raises(AnchorIntegrityError, match=f"says {anchors.view('en').digest}"):
        _ = decoder.anchors


# -- repositories that cannot be used


def test_a_repository_that_is_not_there_says_where_was_looked(hub, hub_user):
    with pytest.raises(UploadError, match=r"neither a local folder nor a model repository that your token can see"):
        RelativeDecoder.from_pretrained(f"{hub_user}/nothing")


@pytest.mark.parametrize("door", [RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification])
def test_a_folder_that_is_not_there_says_where_was_looked(hub, tmp_path, door):
    with pytest.raises(UploadError, match=r"is not a folder on this machine \(looked in .*Check the path"):
        door.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UploadError, match="is not a folder on this machine"):
        stitch(str(tmp_path / "nothing"), str(tmp_path / "nothing"))


def test_a_private_repository_of_somebody_else_looks_as_if_it_were_not_there(hub, pushed):
    HfApi().update_repo_settings(pushed, private=True)
    stranger = hub.add_user("stranger")

    with pytest.raises(UploadError, match="log in first: hf auth login"):
        RelativeDecoder.from_pretrained(pushed, token=stranger)
    assert RelativeDecoder.from_pretrained(pushed)


def test_a_gated_repository_says_to_ask_for_access(hub, pushed):
    HfApi().update_repo_settings(pushed, gated="manual")
    stranger = hub.add_user("asker")

    with pytest.raises(UploadError, match="is gated. Ask for access on its page"):
        RelativeDecoder.from_pretrained(pushed, token=stranger)


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "hf auth login"), (403, "ask its owner"), (429, "wait"), (500, "Try again later")]
)
def test_a_hub_that_refuses_says_what_to_do(hub, pushed, monkeypatch, status, remedy):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # it tries five times
    hub.fail(status, match="(HEAD|GET) .*decoder/config.json", times=None)

    with pytest.raises(UploadError, match=remedy):
        RelativeDecoder.from_pretrained(pushed)


def test_an_empty_repository_says_that_it_is_empty(hub, repo_id):
    HfApi().create_repo(repo_id)

    for door in (RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification):
        with pytest.raises(UploadError, match="has no config.json: it is empty"):
            door.from_pretrained(repo_id)


def test_an_ordinary_model_says_how_to_make_it_relative(hub, repo_id, make_bert):
    make_bert(0).push_to_hub(repo_id)

    for door in (RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification):
        with pytest.raises(UploadError, match=r"is an ordinary bert model.*RelativeModel\.from_encoder"):
            door.from_pretrained(repo_id)


def test_a_revision_that_is_not_there_says_so(hub, pushed):
    with pytest.raises(UploadError, match=f"{pushed}@v9 does not exist. Name a branch, tag or commit"):
        RelativeDecoder.from_pretrained(pushed, revision="v9")


def test_a_part_that_is_not_there_says_which_is(hub, repo_id, make_model):
    make_model(0).encoder.push_to_hub(repo_id)

    with pytest.raises(UploadError, match="has no decoder, only its encoder"):
        RelativeDecoder.from_pretrained(repo_id)
    with pytest.raises(UploadError, match="has no decoder, only its encoder"):
        RelativeModelForSequenceClassification.from_pretrained(repo_id)


@pytest.mark.parametrize("door", [RelativeDecoder, RelativeModelForSequenceClassification])
def test_an_upload_of_a_newer_format_says_to_update(upload, door):
    for file in upload.rglob("config.json"):
        newer = json.loads(file.read_text()) | {"format_version": 99, "space": {"similarity": "of the future"}}
        file.write_text(json.dumps(newer))

    with pytest.raises(UploadError, match=r"format version 99.*pip install -U hf_relreps"):
        door.from_pretrained(upload)


# -- uploads that are not whole, or not what they say


def test_an_index_that_points_out_of_the_upload_is_refused(upload, make_model):
    outside = upload.parent / "outside.safetensors"
    shutil.copyfile(upload / DECODER_FILE, outside)
    make_model(0).save_pretrained(upload, max_shard_size="20KB")
    file = upload / "encoder" / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    for target in ("../../outside.safetensors", str(outside), "x/../../../outside.safetensors", "x.bin"):
        index["weight_map"]["projection.anchors_AD"] = target
        file.write_text(json.dumps(index))
        for door in (RelativeModel, RelativeModelForSequenceClassification):
            with pytest.raises(UploadError, match="expected a .safetensors file inside the upload"):
                door.from_pretrained(upload)


def test_the_index_of_a_whole_chooses_no_weights(upload, make_model):
    """Each part is read by its own door: the index at the root is for those who load without this library."""
    outside = upload.parent / "outside.safetensors"
    save_file({"output.bias": torch.ones(3)}, outside, metadata={"format": "pt"})
    file = upload / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["decoder.output.bias"] = "../outside.safetensors"
    file.write_text(json.dumps(index))
    loaded = AutoModelForSequenceClassification.from_pretrained(upload)
    assert torch.equal(loaded.decoder.output.bias, make_model(0).decoder.output.bias)


def test_a_pickle_in_place_of_safetensors_is_not_read(upload):
    weights = load_file(upload / DECODER_FILE)
    (upload / DECODER_FILE).unlink()
    torch.save(weights, upload / "decoder" / "pytorch_model.bin")

    with pytest.raises(UploadError, match="has no weights: expected decoder/model.safetensors"):
        RelativeDecoder.from_pretrained(upload)


def test_a_missing_file_of_weights_is_named(upload):
    (upload / "encoder" / "model.safetensors").unlink()

    with pytest.raises(UploadError, match="has no weights: expected encoder/model.safetensors"):
        RelativeModelForSequenceClassification.from_pretrained(upload)


def test_weights_that_are_cut_short_in_a_folder_are_refused(upload):
    file = upload / DECODER_FILE
    file.write_bytes(file.read_bytes()[:-10])

    for door in (RelativeDecoder, RelativeModelForSequenceClassification):
        with pytest.raises(UploadIntegrityError, match="do not match its configuration"):
            door.from_pretrained(upload)


def test_a_missing_file_of_many_is_named(upload, make_model):
    make_model(0).save_pretrained(upload, max_shard_size="20KB")
    missing = sorted((upload / "encoder").glob("model-*.safetensors"))[1]
    missing.unlink()

    with pytest.raises(UploadError, match=f"lacks encoder/{missing.name}, which its index names"):
        RelativeModelForSequenceClassification.from_pretrained(upload)


def test_weights_of_another_shape_than_the_configuration_says_are_refused(upload):
    weights = load_file(upload / DECODER_FILE)
    weights["decoder.output.weight"] = weights["decoder.output.weight"][:, :-1].contiguous()
    save_file(weights, upload / DECODER_FILE, metadata={"format": "pt"})

    for door in (RelativeDecoder, RelativeModelForSequenceClassification):
        with pytest.raises(UploadIntegrityError, match="do not match its configuration"):
            door.from_pretrained(upload)


def test_weights_that_say_otherwise_than_the_configuration_are_refused_with_both_values(upload):
    file = upload / "decoder" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"space": config["space"] | {"num_anchors": 21}}))

    with pytest.raises(
        UploadIntegrityError, match="contradicts its own configuration.*num_anchors 20 there and 21 here"
    ):
        RelativeDecoder.from_pretrained(upload)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(upload, value):
    weights = load_file(upload / DECODER_FILE)
    weights["decoder.output.weight"][0, 0] = value
    save_file(weights, upload / DECODER_FILE, metadata={"format": "pt"})

    with pytest.raises(UploadIntegrityError, match=r"NaN weights; the first is in (decoder\.)?output\.weight"):
        RelativeModelForSequenceClassification.from_pretrained(upload)
