"""Encoders that bitsandbytes has quantized: relative, trained on, saved and built again; what cannot be is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from files import change
from torch import nn
from training import tiny_trainer
from transformers import AutoModel, BitsAndBytesConfig, FineGrainedFP8Config
from transformers.quantizers import AutoHfQuantizer

from hf_relreps import AnchorCallback, RelativeModel, RelativeModelForSequenceClassification, stitch
from hf_relreps.errors import ConfigurationError, MissingExtraError
from hf_relreps.quantization import check_quantization, quantization_of


SETTINGS: dict[str, Any] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "4bit twice": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
}


def answer(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.float()


@pytest.fixture(params=SETTINGS)
def quantized(request, make_bert, anchors, tokenizer, tmp_path):
    """A classifier on an encoder that was quantized when it was loaded; and how."""
    pytest.importorskip("bitsandbytes")
    make_bert().save_pretrained(tmp_path / "bert")
    how = BitsAndBytesConfig(**SETTINGS[request.param])
    bert = AutoModel.from_pretrained(tmp_path / "bert", quantization_config=how)
    torch.manual_seed(0)
    model = RelativeModelForSequenceClassification.from_encoder(bert, anchors.view("en"), tokenizer, num_labels=3)
    return model.eval()


def packed(model: Any) -> list[str]:
    return [type(weight).__name__ for weight in model.parameters() if not weight.is_floating_point()]


def test_a_quantized_encoder_is_stored_quantized_and_built_again(quantized, make_model, tokenizer, texts, tmp_path):
    quantized.save_pretrained(tmp_path / "model")
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert packed(again) == packed(quantized) and len(packed(again)) == 12  # the products of two layers
    assert torch.equal(answer(again, tokenizer, texts["en"][:4]), answer(quantized, tokenizer, texts["en"][:4]))
    assert again.encoder.check_anchors() < 1e-2
    content = json.loads((tmp_path / "model" / "encoder" / "config.json").read_text())
    assert "quantization_config" not in content and content["encoder_quantization"]
    again.save_pretrained(tmp_path / "third")
    third = stitch(str(tmp_path / "third"), make_model(1, "fr"))
    assert packed(third) == packed(quantized)
    expected = answer(stitch(quantized, make_model(1, "fr")), tokenizer, texts["en"][:4])
    assert torch.equal(answer(third, tokenizer, texts["en"][:4]), expected)


def test_a_decoder_is_trained_on_a_quantized_encoder(quantized, make_dataset, tokenizer, tmp_path):
    quantized.encoder.requires_grad_(False)
    before, anchors_AD = quantized.decoder.output.weight.clone(), quantized.encoder.projection.anchors_AD.clone()
    rows = make_dataset("en")[:16]
    trainer = tiny_trainer(
        quantized, tokenizer, rows, tmp_path / "run", AnchorCallback(), save_strategy="steps", save_steps=4
    )
    trainer.train()
    assert not torch.equal(quantized.decoder.output.weight, before)
    assert torch.equal(quantized.encoder.projection.anchors_AD, anchors_AD)
    saved = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert torch.equal(saved.decoder.output.weight, quantized.decoder.output.weight)


def test_an_upload_is_quantized_when_it_is_loaded(make_model, tokenizer, texts, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = make_model()
    model.save_pretrained(tmp_path)
    how = BitsAndBytesConfig(load_in_8bit=True)
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=how)
    assert set(packed(again.encoder)) == {"Int8Params"} and packed(again.decoder) == []
    assert again.encoder.projection.anchors_AD.dtype == torch.float32
    found, expected = (answer(one, tokenizer, texts["en"][:4]) for one in (again, model))
    assert 0 < float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_weights_that_an_upload_cannot_hold_are_refused_before_anything_is_written(make_model, tmp_path):
    model = make_model()
    model.encoder.backbone.hf_quantizer = AutoHfQuantizer.from_config(FineGrainedFP8Config())
    with pytest.raises(ConfigurationError, match="quantized by fp8. Uploads hold those of bitsandbytes only. Save"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    del model.encoder.backbone.hf_quantizer
    weight = model.encoder.backbone.encoder.layer[0].output.dense.weight.to(torch.int8)
    model.encoder.backbone.encoder.layer[0].output.dense.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ConfigurationError, match="quantized by another library, or are a part of a quantized model"):
        model.save_pretrained(tmp_path / "model")
    assert quantization_of(make_model().encoder, make_model().encoder.backbone) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("all", "Expected load_in_8bit"),
        ({"load_in_8bit": True, "path": "/etc"}, "Expected load_in_8bit"),
        ({"load_in_8bit": 1}, "load_in_8bit is 1, expected bool"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "save"}, "expected 'float16' or 'bfloat16' or 'float32'"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": [1]}, "expected list"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "One of load_in_8bit and load_in_4bit must be true"),
    ],
)
def test_settings_of_an_upload_that_are_not_known_are_refused(settings, said):
    with pytest.raises(ConfigurationError, match="is not a setting of bitsandbytes that is known") as refused:
        check_quantization(settings)
    assert said in str(refused.value)


def test_without_bitsandbytes_the_message_says_to_install_it(upload, monkeypatch):
    change(upload / "encoder" / "config.json", encoder_quantization={"load_in_8bit": True})
    monkeypatch.setattr("hf_relreps.quantization.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install hf_relreps\[quantized\]"):
        RelativeModel.from_pretrained(upload)
