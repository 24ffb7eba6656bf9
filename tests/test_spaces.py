"""One value says whether parts fit: what it holds, when it is equal, and who asks it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hf_relreps import AnchorSet, RelativeConfig, RelativeSpace, compatibility, stitch
from hf_relreps.errors import ConfigurationError, StitchingError
from hf_relreps.space import require_fit


PRINT = "3f9a" * 16


def test_a_space_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RelativeSpace().num_anchors = 3


def test_spaces_are_equal_whatever_way_they_were_written():
    assert RelativeSpace(similarity="cosine", basis_ridge=None) == RelativeSpace(
        similarity=["cosine"], basis_ridge=None, rbf_gamma=7, shrinkage=0.9
    )
    assert RelativeSpace(basis_ridge=1) == RelativeSpace(basis_ridge=1.0, rbf_gamma=1.5)
    assert len({RelativeSpace(), RelativeSpace(similarity=("rbf",))}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "81c0" * 16},
        {"num_anchors": 301},
        {"transform": "none"},
        {"similarity": "cosine"},
        {"similarity": ["rbf", "cosine"]},
        {"basis_ridge": None},
        {"rbf_gamma": 2.0},
        {"transform": "whiten", "shrinkage": 0.1},
    ],
)
def test_every_field_that_is_used_makes_a_difference(change: dict[str, Any]):
    space = RelativeSpace(fingerprint=PRINT, num_anchors=300)
    other = space.replace(**change)
    assert not other.fits(space)
    assert set(change) <= set(other.differences(space)) | {"shrinkage"}
    with pytest.raises(StitchingError):
        require_fit(other, space)


def test_a_space_without_anchors_fits_nothing():
    assert RelativeSpace() == RelativeSpace()
    assert not RelativeSpace().fits(RelativeSpace())


def test_a_space_survives_json():
    space = RelativeSpace(fingerprint=PRINT, num_anchors=300, similarity=("rbf", "cosine"), transform="whiten")
    assert RelativeSpace.from_dict(space.to_dict() | {"unknown": 1}) == space


def test_a_space_prints_in_one_short_line():
    space = RelativeSpace(fingerprint=PRINT, num_anchors=300, similarity=("rbf", "cosine"), transform="whiten")
    assert str(space) == "300 anchors 3f9a3f9a3f9a3f9a, whiten 0.3, rbf 1.5 + cosine, ridge 0.1"


@pytest.mark.parametrize(
    ("field", "value"),
    [("similarity", "dot"), ("similarity", []), ("transform", "pca"), ("basis_ridge", 0), ("num_anchors", 1.5)],
)
def test_a_field_without_meaning_is_refused_by_name(field: str, value: Any):
    with pytest.raises(ConfigurationError, match=field):
        RelativeSpace(**{field: value})


# -- who owns what


def test_each_part_owns_its_copy_and_the_whole_is_composed_of_both(make_model):
    model = make_model()
    assert model.config.encoder is model.encoder.config
    assert model.config.decoder is model.decoder.config
    assert model.config.space == model.encoder.config.space == model.decoder.config.space


@pytest.mark.parametrize(
    ("field", "owner"), [("decoder_noise", "decoder"), ("pooling", "encoder"), ("num_anchors", "space")]
)
def test_a_setting_of_a_part_cannot_be_set_on_the_whole_where_nothing_would_read_it(field, owner, make_model):
    with pytest.raises(ConfigurationError, match=rf"set config\.{owner}\.{field}"):
        setattr(make_model().config, field, 0)


@pytest.fixture
def other_anchors(texts) -> AnchorSet:
    """As many anchors as those of the fixture, of other meanings."""
    return AnchorSet([f"other-{i}" for i in range(1, 60, 3)], {view: texts[view][1::3] for view in texts})


def test_a_decoder_says_what_it_was_trained_on_whatever_happens_to_its_encoder(make_model, other_anchors, tokenizer):
    french, english = make_model(1, "fr"), make_model(2)
    english.encoder.encode_anchors(other_anchors.view("en"), tokenizer)
    french.encoder.encode_anchors(other_anchors.view("fr"), tokenizer)
    assert not compatibility(english, french).fits
    with pytest.raises(StitchingError, match="decoder was trained on"):
        stitch(english, french)


def test_another_projection_of_the_encoder_does_not_reach_the_decoder(make_model):
    french, english = make_model(1, "fr"), make_model(2)
    for model in (french, english):
        model.encoder.use_projection(RelativeConfig.paper())
    with pytest.raises(StitchingError, match="'cosine' instead of 'rbf'"):
        stitch(english, french)


def test_a_model_whose_encoder_left_the_decoders_space_answers_and_saves_nothing(
    make_model, other_anchors, tokenizer, texts, tmp_path
):
    model = make_model()
    inputs = tokenizer(texts["en"][:2], return_tensors="pt", padding=True)
    model.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    model.encoder.encode_anchors(other_anchors.view("en"), tokenizer)
    with pytest.raises(StitchingError), torch.no_grad():
        model(**inputs)
    with pytest.raises(StitchingError):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    assert (tmp_path / "encoder" / "model.safetensors").is_file()


def test_a_stitched_model_is_not_reached_by_what_happens_to_its_sources(make_model, other_anchors, tokenizer, texts):
    french, english = make_model(1, "fr"), make_model(2)
    model = stitch(english, french)
    inputs = tokenizer(texts["en"][:4], return_tensors="pt", padding=True)
    with torch.no_grad():
        before = model(**inputs).logits
        english.encoder.encode_anchors(other_anchors.view("en"), tokenizer)
        english.encoder.use_projection(RelativeConfig.paper())
        french.decoder.output.bias.add_(1)
        assert torch.equal(model(**inputs).logits, before)


def test_a_similarity_is_named_once_and_a_change_of_basis_has_a_limit():
    with pytest.raises(ConfigurationError, match="names one twice"):
        RelativeSpace(similarity=["rbf"] * 2_000)
    with pytest.raises(ConfigurationError, match="takes the square of num_anchors=100000 .*Set basis_ridge=None"):
        RelativeSpace(num_anchors=100_000)
    assert RelativeSpace(num_anchors=100_000, basis_ridge=None).size == 100_000
