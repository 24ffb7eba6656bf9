"""Uploads without the samples of their anchors: what stays possible, and what cannot be checked is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download

from hf_relreps import AnchorSet, RelativeModelForSequenceClassification, stitch
from hf_relreps.errors import AnchorIntegrityError, ConfigurationError, UploadError


@pytest.fixture
def pushed(hub, new_repo_id, make_model):
    name = new_repo_id()
    make_model(0).push_to_hub(name)  # with samples first: the second push takes them back
    make_model(0).push_to_hub(name, anchors="digest")
    return name


def test_no_sample_is_in_an_upload_that_names_its_anchors_by_digest(pushed, anchors):
    files = HfApi().list_repo_files(pushed)
    assert not [file for file in files if file.startswith("anchors/")]
    card = Path(hf_hub_download(pushed, "README.md")).read_text("utf-8")
    assert not [text for text in anchors.view("en").samples if text in card]


def test_it_predicts_and_stitches_as_with_its_samples(pushed, make_model, tokenizer, texts):
    inputs = tokenizer(texts["en"][:4], return_tensors="pt", padding=True)
    model = RelativeModelForSequenceClassification.from_pretrained(pushed)
    assert torch.equal(model(**inputs).logits, make_model(0)(**inputs).logits)
    other = make_model(1)
    assert torch.allclose(stitch(other, pushed)(**inputs).logits, stitch(other, make_model(0))(**inputs).logits)


def test_whoever_holds_the_same_anchors_hands_them_over(pushed, anchors, tmp_path):
    model = RelativeModelForSequenceClassification.from_pretrained(pushed)
    with pytest.raises(UploadError, match=r"attach the same set: model\.anchors = anchors"):
        model.anchors  # noqa: B018
    model.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "anchors").exists()
    with pytest.raises(AnchorIntegrityError, match="The set given"):
        model.anchors = AnchorSet(["a"], {"en": ["x"]})
    model.anchors = anchors
    assert model.encoder.check_anchors() < 1e-3


def test_another_word_is_refused_before_anything_is_pushed(make_model):
    with pytest.raises(ConfigurationError, match="anchors"):
        make_model(0).push_to_hub("me/never", anchors="none")


def test_the_first_push_to_a_repository_says_that_samples_travel(hub, new_repo_id, make_model, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_relreps"), "propagate", True)
    name, private = new_repo_id(), new_repo_id()

    def told():
        found = [record.getMessage() for record in caplog.records if "are published in" in record.getMessage()]
        caplog.clear()
        return found

    make_model(0).push_to_hub(name)
    (message,) = told()
    assert f"raw samples of 20 anchors (en, fr) are published in {name}" in message and "anchors='digest'" in message
    make_model(0).push_to_hub(name)
    make_model(0).push_to_hub(private, anchors="digest")
    assert told() == []
