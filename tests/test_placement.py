"""Devices, dtypes, hooks and modes: each part keeps its own, and nothing of the caller's is moved or switched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from transformers import AutoModel, pipeline

from hf_relreps import RelativeConfig, RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification, stitch


def answer(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.float()


# -- placed by a device map


DEVICE_MAPS: dict[str, Any] = {
    "auto": "auto",
    "cpu": "cpu",
    "whole on disk": {"": "disk"},
    "encoder on disk": {"encoder": "disk", "decoder": "cpu"},
    "backbone on disk": {"encoder.backbone": "disk", "encoder.projection": "cpu", "decoder": "cpu"},
    "decoder on disk": {"encoder": "cpu", "decoder": "disk"},
}


@pytest.mark.parametrize("device_map", DEVICE_MAPS)
def test_a_model_answers_the_same_wherever_it_is_placed(device_map, make_model, tokenizer, texts, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    how = {"device_map": DEVICE_MAPS[device_map], "offload_folder": str(tmp_path / "offload")}
    placed = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model", **how)
    assert torch.equal(answer(placed, tokenizer, texts["en"][:4]), answer(model, tokenizer, texts["en"][:4]))
    assert placed.device == torch.device("cpu")
    found = pipeline("text-classification", model=placed, tokenizer=tokenizer)(texts["en"][0])
    assert found[0]["label"] in model.config.id2label.values()


def test_what_lies_on_disk_is_stitched_and_saved_like_any_other(make_model, tokenizer, texts, tmp_path):
    english, french = make_model(0), make_model(1, "fr")
    english.save_pretrained(tmp_path / "english")
    how = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "offload")}
    encoder = RelativeModel.from_pretrained(tmp_path / "english", **how)
    expected = answer(stitch(english, french), tokenizer, texts["en"][:4])
    model = stitch(encoder, french)
    assert torch.equal(answer(model, tokenizer, texts["en"][:4]), expected)
    model.save_pretrained(tmp_path / "stitched")
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "stitched")
    assert torch.equal(answer(again, tokenizer, texts["en"][:4]), expected)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("device_map", ["auto", {"": "disk"}])
def test_an_encoder_that_was_placed_becomes_relative_where_it_is(
    device_map, by_name, make_bert, anchors, tokenizer, texts, tmp_path
):
    make_bert(3).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    how = {"device_map": device_map, "offload_folder": str(tmp_path / "offload")}
    expected = RelativeModel.from_encoder(make_bert(3), anchors.view("en"), tokenizer).encode(texts["en"][:4])
    if by_name:
        encoder = RelativeModel.from_encoder(str(tmp_path / "bert"), anchors.view("en"), **how)
    else:
        bert = AutoModel.from_pretrained(tmp_path / "bert", **how)
        encoder = RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer)
    assert torch.allclose(encoder.encode(texts["en"][:4]), expected, atol=1e-5)


# -- dtypes


def test_each_part_comes_back_in_its_own_dtype(make_model, tokenizer, texts, tmp_path):
    model = make_model()
    model.encoder.backbone.bfloat16()
    model.encoder.encode_anchors(model.anchors.view("en"))
    model.save_pretrained(tmp_path)
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    assert (again.encoder.dtype, again.decoder.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(answer(again, tokenizer, texts["en"][:4]), answer(model, tokenizer, texts["en"][:4]))
    other = stitch(make_model(1), again)
    with torch.no_grad():
        assert other(**tokenizer(texts["en"][0], return_tensors="pt")).logits.dtype == torch.float32


def test_a_dtype_that_is_asked_for_is_that_of_both_parts(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    model = RelativeModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (model.encoder.dtype, model.decoder.dtype) == (torch.bfloat16, torch.bfloat16)
    assert model.encoder.projection.anchors_AD.dtype == torch.float32


def test_from_encoder_loads_a_name_in_the_dtype_that_is_asked_for(make_bert, anchors, tokenizer, tmp_path):
    make_bert().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = RelativeModel.from_encoder(str(tmp_path), anchors.view("en"), dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16


@pytest.mark.parametrize("settings", [{}, {"transform": "none", "similarity": "cosine", "basis_ridge": None}])
def test_the_projection_is_computed_in_float32_even_where_its_buffer_is_not(settings, make_model):
    projection = make_model(**settings).encoder.projection
    projection._buffers["anchors_AD"] = projection.anchors_AD.bfloat16()  # as mixed precision of FSDP does
    x_BD = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    found = projection(x_BD.bfloat16())
    assert found.dtype == torch.float32
    projection._buffers["anchors_AD"] = projection.anchors_AD.float()
    assert torch.allclose(found, projection(x_BD.bfloat16().float()), atol=1e-5)


# -- hooks and modes


def test_an_encoder_with_a_hook_of_accelerate_takes_another_projection(make_model, tokenizer, texts):
    model = make_model()
    add_hook_to_module(model.encoder, ModelHook())
    inputs = tokenizer(texts["en"][:3], return_tensors="pt", padding=True)
    other = model.encoder.share().use_projection(RelativeConfig.paper())
    with torch.no_grad():
        embedded = model.encoder(**inputs)
        assert torch.equal(other(**inputs).relative_embeds, other.projection(embedded.pooler_output))
        assert not torch.allclose(other(**inputs).relative_embeds, embedded.relative_embeds)


@pytest.mark.parametrize("mode", [True, False])
def test_stitch_leaves_the_modes_of_what_it_was_given(mode, make_model):
    english, french = make_model(0).train(mode), make_model(1, "fr").train(mode)
    model = stitch(english.encoder, french.decoder)
    assert not any(module.training for module in model.modules())
    assert all(module.training is mode for whole in (english, french) for module in whole.modules())
    model.train()
    assert all(module.training is mode for whole in (english, french) for module in whole.modules())


def test_stitch_shares_the_encoders_weights_and_copies_the_decoders(make_model):
    english, french = make_model(0), make_model(1, "fr")
    model = stitch(english, french)
    table = "backbone.embeddings.word_embeddings.weight"
    assert model.encoder.get_parameter(table) is english.encoder.get_parameter(table)
    assert model.decoder.output.weight is not french.decoder.output.weight
    assert torch.equal(model.decoder.output.weight, french.decoder.output.weight)


def test_the_decoder_that_was_given_stays_on_its_device(make_model):
    decoder = make_model(1, "fr").decoder.to("meta")
    encoder = make_model(0).encoder
    assert isinstance(decoder, RelativeDecoder)
    with pytest.raises(NotImplementedError):  # there is nothing on it to copy
        stitch(encoder, decoder)
    assert decoder.device == torch.device("meta")


def test_a_model_that_loses_its_pooler_to_us_keeps_it_for_its_owner(make_bert, anchors, tokenizer):
    bert = make_bert().train()
    encoder = RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer)
    assert bert.pooler is not None
    assert encoder.backbone.pooler is None
    encoder.eval()
    assert all(module.training for module in bert.modules())
