"""Pushing over HTTP: one commit holds the whole layout and the card, or nothing changes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_relreps import AnchorCallback, AnchorSet, RelativeDecoder, RelativeModel, RelativeTrainer, stitch
from hf_relreps.errors import UploadError


LAYOUT = {
    *("config.json", "model.safetensors.index.json", "modeling_hf_relreps.py", "README.md"),
    *("encoder/config.json", "encoder/model.safetensors", "decoder/config.json", "decoder/model.safetensors"),
    *("anchors/anchors.parquet", "anchors/anchor_set.json", "tokenizer.json", "tokenizer_config.json"),
}


def files_of(repo_id):
    return set(HfApi().list_repo_files(repo_id)) - {".gitattributes"}


def titles_of(repo_id):
    return [commit.title for commit in HfApi().list_repo_commits(repo_id)]


def card_of(repo_id, revision=None):
    return Path(hf_hub_download(repo_id, "README.md", revision=revision)).read_text("utf-8")


@pytest.fixture
def inputs(tokenizer, texts):
    return tokenizer(texts["en"][:5], padding=True, return_tensors="pt")


def same_outputs(one, other, inputs, name="logits"):
    with torch.no_grad():
        return torch.equal(one(**inputs)[name], other(**inputs)[name])


@pytest.mark.any_hub
def test_a_whole_model_is_pushed_as_one_commit_and_loads_back_through_every_door(repo_id, make_model, inputs):
    model = make_model(0)

    info = model.push_to_hub(repo_id)

    assert info.oid == HfApi().model_info(repo_id).sha
    assert titles_of(repo_id) == ["Upload RelativeModelForSequenceClassification", "initial commit"]
    assert files_of(repo_id) == LAYOUT
    assert same_outputs(AutoModelForSequenceClassification.from_pretrained(repo_id), model, inputs)
    for door in (AutoModel, RelativeModel):
        encoder = door.from_pretrained(repo_id, subfolder="encoder")
        assert same_outputs(encoder, model.encoder, inputs, "relative_embeds")
    decoder = RelativeDecoder.from_pretrained(repo_id)
    assert torch.equal(decoder.output.weight, model.decoder.output.weight)


@pytest.mark.any_hub
def test_parts_and_anchors_are_pushed_alone(new_repo_id, make_model, anchors, inputs):
    model = make_model(0)
    encoder_id, decoder_id, anchors_id = new_repo_id(), new_repo_id(), new_repo_id()

    model.encoder.push_to_hub(encoder_id)
    model.decoder.push_to_hub(decoder_id)
    anchors.push_to_hub(anchors_id)

    assert not any(name.startswith("decoder/") for name in files_of(encoder_id))
    assert not any(name.startswith(("encoder/", "tokenizer")) for name in files_of(decoder_id))
    assert same_outputs(stitch(encoder_id, decoder_id), model, inputs)
    pulled = AnchorSet.from_pretrained(anchors_id)
    assert (pulled.fingerprint, pulled.view("fr").samples) == (anchors.fingerprint, anchors.view("fr").samples)


@pytest.mark.any_hub
def test_pushed_anchors_are_a_data_set_that_datasets_reads(repo_id, anchors):
    from datasets import load_dataset

    anchors.push_to_hub(repo_id, license="mit")

    rows = load_dataset(repo_id, split="train")
    assert rows.column_names == ["id", "en", "fr"]
    assert rows["fr"][:] == anchors.view("fr").samples


@pytest.mark.any_hub
def test_a_push_removes_our_files_of_an_earlier_one_and_keeps_those_of_others(repo_id, make_model, inputs):
    make_model(0).push_to_hub(repo_id, max_shard_size="20KB")
    assert sum(name.startswith("encoder/model-") for name in files_of(repo_id)) > 1
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="encoder/notes.txt", repo_id=repo_id)

    model = make_model(1)
    model.push_to_hub(repo_id)

    assert files_of(repo_id) == LAYOUT | {"encoder/notes.txt"}
    assert same_outputs(AutoModelForSequenceClassification.from_pretrained(repo_id), model, inputs)


@pytest.mark.any_hub
def test_a_push_replaces_an_ordinary_model_that_would_be_loaded_in_its_place(repo_id, make_bert, make_model, inputs):
    make_bert(3).push_to_hub(repo_id)

    model = make_model(0)
    model.push_to_hub(repo_id)

    assert "model.safetensors" not in files_of(repo_id)
    assert same_outputs(AutoModelForSequenceClassification.from_pretrained(repo_id), model, inputs)


@pytest.mark.any_hub
def test_a_push_to_a_branch_or_as_a_pull_request_leaves_main_alone(repo_id, make_model, inputs):
    first, second, third = make_model(0), make_model(1), make_model(2)
    first.push_to_hub(repo_id)
    second.push_to_hub(repo_id, revision="next")
    proposed = third.push_to_hub(repo_id, create_pr=True)

    for model, revision in ((first, None), (second, "next"), (third, proposed.pr_revision)):
        pulled = AutoModelForSequenceClassification.from_pretrained(repo_id, revision=revision)
        assert same_outputs(pulled, model, inputs)


@pytest.mark.any_hub
def test_a_private_push_is_private(repo_id, make_model):
    make_model(0).decoder.push_to_hub(repo_id, private=True, commit_message="Mine", commit_description="For now")

    assert HfApi().model_info(repo_id).private
    assert titles_of(repo_id)[0] == "Mine"


@pytest.mark.any_hub
def test_saving_may_push_too(repo_id, tmp_path, make_model):
    make_model(0).decoder.save_pretrained(tmp_path, push_to_hub=True, repo_id=repo_id, commit_message="Saved")

    assert titles_of(repo_id)[0] == "Saved"
    assert (tmp_path / "decoder" / "model.safetensors").is_file()


def test_two_pushes_at_once_both_arrive_and_mix_nothing(hub, repo_id, make_model, inputs):
    models = [make_model(0), make_model(1)]
    models[0].push_to_hub(repo_id)
    failed = []

    def push(model):
        try:
            model.push_to_hub(repo_id, commit_message=f"From {id(model)}")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=push, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert set(titles_of(repo_id)) >= {f"From {id(models[1])}"}
    pulled = AutoModelForSequenceClassification.from_pretrained(repo_id)
    assert any(same_outputs(pulled, model, inputs) for model in models)


def test_a_push_that_met_another_is_made_again_on_top_of_it_and_keeps_its_card(hub, repo_id, make_model):
    make_model(0).push_to_hub(repo_id)
    hub.fail(412, match="POST .*/commit/", times=1)

    make_model(1).push_to_hub(repo_id)

    assert len(titles_of(repo_id)) == 3
    assert sum("/commit/" in request.path for request in hub.requests if request.method == "POST") == 3


def test_a_push_that_meets_others_again_and_again_gives_up_with_a_clear_error(hub, repo_id, make_model):
    make_model(0).push_to_hub(repo_id)
    hub.fail(412, match="POST .*/commit/", times=None)

    with pytest.raises(UploadError, match=r"3 attempts failed\. Push again later"):
        make_model(1).push_to_hub(repo_id)


@pytest.mark.parametrize("way", ["refused", "cut", "weights lost"])
def test_a_push_that_dies_leaves_the_last_good_revision(hub, repo_id, make_model, inputs, way):
    good = make_model(0)
    good.push_to_hub(repo_id)
    if way == "refused":
        hub.fail(400, match="POST .*/commit/")
    elif way == "weights lost":
        hub.fail(403, match="PUT /lfs/", times=None)
    else:
        hub.fail(403, match="POST .*/preupload/", times=None)

    with pytest.raises(UploadError, match="Push again|write access"):
        make_model(1).push_to_hub(repo_id)

    assert len(titles_of(repo_id)) == 2
    assert same_outputs(AutoModelForSequenceClassification.from_pretrained(repo_id), good, inputs)


def test_a_push_to_somebody_elses_name_says_who_may_write_there(hub, make_model):
    hub.add_user("somebody")

    with pytest.raises(UploadError, match="hf auth login"):
        make_model(0).decoder.push_to_hub("somebody/decoder")


def test_a_push_with_a_token_that_nobody_has_says_to_log_in(hub, repo_id, make_model):
    with pytest.raises(UploadError, match=r"valid token: hf auth login"):
        make_model(0).decoder.push_to_hub(repo_id, token="hf_wrong")


def test_a_name_that_no_repository_can_have_is_refused(hub, make_model):
    with pytest.raises(UploadError, match="is not a valid repository name"):
        make_model(0).decoder.push_to_hub("a/b/c")


# -- Trainer


@pytest.fixture
def train(tmp_path, make_model, make_dataset, anchors, tokenizer):
    """Fine-tune for two epochs with the Trainer; keyword arguments are those of TrainingArguments."""

    def run(model=None, trainer_class=RelativeTrainer, **arguments):
        model = model or make_model(0)
        data = make_dataset("en")
        arguments = {"output_dir": str(tmp_path / "out"), "num_train_epochs": 2, "use_cpu": True} | arguments
        args = TrainingArguments(
            per_device_train_batch_size=20, eval_strategy="epoch", report_to=[], disable_tqdm=True, **arguments
        )
        trainer = trainer_class(
            model,
            args,
            train_dataset=data,
            eval_dataset=data[::2],
            processing_class=tokenizer,
            callbacks=[AnchorCallback(anchors.view("en"))],
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        )
        trainer.train()
        return trainer

    return run


@pytest.mark.any_hub
def test_the_trainers_final_push_has_our_layout_and_our_card(repo_id, train, inputs):
    trainer = train(hub_model_id=repo_id)

    trainer.push_to_hub(license="mit", tags=["mine"], dataset_tags="me/animals", dataset="Animals", tasks=None)

    assert files_of(repo_id) == LAYOUT | {"training_args.bin"}
    assert same_outputs(AutoModelForSequenceClassification.from_pretrained(repo_id), trainer.model, inputs)
    info, card = HfApi().model_info(repo_id), card_of(repo_id)
    assert {"relative-representations", "generated_from_trainer", "mine", "license:mit"} <= set(info.tags)
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-classification")
    assert "peft" not in info.tags
    assert "| learning_rate | 5e-05 |" in card and "| accuracy |" in card
    assert "| step | epoch | training loss | loss | accuracy |" in card
    assert "[me/animals](https://huggingface.co/datasets/me/animals)" in card
    assert "More information needed" not in card


def test_a_card_is_written_without_a_login(make_model, make_dataset, tokenizer, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    args = TrainingArguments(str(tmp_path / "animals"), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = RelativeTrainer(
        make_model(0),
        args,
        train_dataset=make_dataset("en")[:20],
        processing_class=tokenizer,
        callbacks=[AnchorCallback()],
    )
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "animals" / "README.md").read_text("utf-8")
    assert "| learning_rate | 5e-05 |" in card and "relreps-anchors" in card


def test_scores_for_each_class_are_kept_in_a_checkpoint(make_model, make_dataset, tokenizer, tmp_path):
    data = make_dataset("en")[:20]
    args = TrainingArguments(
        **{"output_dir": str(tmp_path), "max_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True},
        **{"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1},
    )
    told = {"compute_metrics": lambda p: {"f1": np.array([0.25, 0.5, 1.0])}, "callbacks": [AnchorCallback()]}
    RelativeTrainer(
        make_model(0), args, train_dataset=data, eval_dataset=data, processing_class=tokenizer, **told
    ).train()
    log = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert [entry["eval_f1"] for entry in log if "eval_f1" in entry] == [[0.25, 0.5, 1.0]]


@pytest.mark.any_hub
def test_the_plain_trainers_final_push_has_our_layout_and_our_tags_on_its_own_card(repo_id, train, anchors, inputs):
    trainer = train(hub_model_id=repo_id, trainer_class=Trainer)

    trainer.push_to_hub(tags=["mine"])

    assert files_of(repo_id) == LAYOUT | {"training_args.bin"}
    assert same_outputs(AutoModelForSequenceClassification.from_pretrained(repo_id), trainer.model, inputs)
    info = HfApi().model_info(repo_id)
    ours = {"relative-representations", "hf_relreps", f"relreps-anchors:{anchors.fingerprint[:16]}"}
    assert ours | {"generated_from_trainer", "mine"} <= set(info.tags)
    assert info.library_name == "transformers"


@pytest.mark.any_hub
def test_every_save_pushes_our_layout_and_card_all_along(repo_id, train, inputs):
    trainer = train(
        hub_model_id=repo_id, push_to_hub=True, hub_strategy="every_save", save_strategy="epoch", hub_always_push=True
    )
    trainer._finish_current_push()

    titles = titles_of(repo_id)
    assert any(title.startswith("Training in progress") for title in titles)
    assert files_of(repo_id) >= LAYOUT
    assert "model.safetensors" not in files_of(repo_id)
    assert HfApi().model_info(repo_id).library_name == "transformers"
    assert "## Anchors" in card_of(repo_id)
    assert same_outputs(AutoModelForSequenceClassification.from_pretrained(repo_id), trainer.model, inputs)

    trainer.push_to_hub()
    assert files_of(repo_id) >= LAYOUT
    for commit in HfApi().list_repo_commits(repo_id)[:-1]:
        assert "library_name: transformers" in card_of(repo_id, revision=commit.commit_id)


@pytest.mark.any_hub
def test_what_a_person_wrote_into_the_card_outlives_the_trainers_push(repo_id, make_model, train):
    make_model(3).push_to_hub(repo_id)
    mark = "<!-- hf_relreps:begin use -->"
    edited = card_of(repo_id).replace(mark, f"I wrote this.\n\n{mark}")
    edited = edited.replace("library_name:", "license: cc0-1.0\nmy_key: my value\nlibrary_name:")
    HfApi().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=repo_id)

    train(hub_model_id=repo_id).push_to_hub()

    card = card_of(repo_id)
    assert card.count("I wrote this.") == 1
    assert "my_key: my value" in card and "license: cc0-1.0" in card
    assert card.count("## Anchors") == 1 and "learning_rate" in card
