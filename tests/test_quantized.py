"""Encoders that bitsandbytes has quantized: relative, trained on, saved and built again; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from files import change
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from training import tiny_trainer
from transformers import AutoModel, BitsAndBytesConfig, FineGrainedFP8Config, TorchAoConfig
from transformers.quantizers import AutoHfQuantizer

from hf_relreps import AnchorCallback, RelativeModel, RelativeModelForSequenceClassification, stitch
from hf_relreps.backbones import digest_of_weights
from hf_relreps.errors import ConfigurationError, MissingExtraError
from hf_relreps.quantization import check_quantization, plain_tensors, quantization_of


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


@pytest.fixture
def by_torchao(make_bert, tmp_path):
    """An encoder that torchao has quantized to eight bits, and how."""
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install torchao")
    make_bert().save_pretrained(tmp_path / "bert")
    how = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    return AutoModel.from_pretrained(tmp_path / "bert", quantization_config=how), how


def test_an_encoder_of_torchao_is_read_trained_on_and_stitched(
    by_torchao, make_model, make_bert, anchors, tokenizer, texts, make_dataset, tmp_path
):
    kinds = {"num_labels": 3}
    model = RelativeModelForSequenceClassification.from_encoder(by_torchao[0], anchors.view("en"), tokenizer, **kinds)
    whole = RelativeModelForSequenceClassification.from_encoder(make_bert(), anchors.view("en"), tokenizer, **kinds)
    found_BD, expected_BD = (one.encoder.encode(texts["en"][:4]) for one in (model, whole))
    assert 0 < float((found_BD - expected_BD).norm()) < 0.01 * float(expected_BD.norm())
    assert digest_of_weights(model.encoder.backbone.state_dict()) != digest_of_weights(make_bert().state_dict())
    model.encoder.requires_grad_(False)
    before, anchors_AD = model.decoder.output.weight.clone(), model.encoder.projection.anchors_AD.clone()
    tiny_trainer(model, tokenizer, make_dataset("en")[:16], tmp_path / "run", AnchorCallback()).train()
    assert not torch.equal(model.decoder.output.weight, before)
    assert torch.equal(model.encoder.projection.anchors_AD, anchors_AD)
    with pytest.raises(ConfigurationError, match="quantized by torchao. Uploads hold those of bitsandbytes only"):
        model.save_pretrained(tmp_path / "model")
    model.decoder.save_pretrained(tmp_path / "decoder")
    expected = answer(model.eval(), tokenizer, texts["en"][:4])
    assert torch.equal(answer(stitch(model.encoder, tmp_path / "decoder"), tokenizer, texts["en"][:4]), expected)
    assert answer(stitch(model, make_model(1, "fr")), tokenizer, texts["en"][:4]).shape == (4, 3)


def test_an_upload_is_quantized_by_torchao_when_it_is_loaded(by_torchao, make_model, tokenizer, texts, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    again = RelativeModelForSequenceClassification.from_pretrained(
        tmp_path / "model", quantization_config=by_torchao[1]
    )
    assert type(again.encoder.backbone.encoder.layer[0].output.dense.weight).__name__ == "Int8Tensor"
    assert type(again.decoder.output.weight) is nn.Parameter
    found, expected = (answer(one, tokenizer, texts["en"][:4]) for one in (again, model))
    assert 0 < float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())


def in_fp8(folder: Path) -> None:
    """Store the layers' weights as the fp8 uploads on the Hub do: float8 with a scale for each block of 128 x 128."""
    file, blocks = folder / "model.safetensors", (128, 128)
    weights = load_file(file)
    for name in [name for name, weight in weights.items() if ".layer." in name and weight.ndim == 2]:
        n, m = weights[name].shape
        in_blocks = weights[name].reshape(n // 128, 128, m // 128, 128)
        scale = in_blocks.abs().amax((1, 3)) / 448  # the largest number of the format
        weights[name] = (in_blocks / scale[:, None, :, None]).reshape(n, m).to(torch.float8_e4m3fn)
        weights[name.replace(".weight", ".weight_scale_inv")] = scale
    save_file(weights, file, metadata={"format": "pt"})
    how = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(blocks)}
    change(folder / "config.json", quantization_config=how)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator computes in fp8")
def test_an_encoder_in_fp8_becomes_float32_without_an_accelerator(make_bert, anchors, tokenizer, texts, tmp_path):
    bert = make_bert(hidden_size=128, intermediate_size=256)
    bert.save_pretrained(tmp_path / "bert")
    in_fp8(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    view = anchors.view("en")
    model = RelativeModelForSequenceClassification.from_encoder(str(tmp_path / "bert"), view, num_labels=3).eval()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    found_BD, expected_BD = (
        model.encoder.encode(texts["en"][:4]),
        RelativeModel.from_encoder(bert, view, tokenizer).encode(texts["en"][:4]),
    )
    assert 0 < float((found_BD - expected_BD).norm()) < 0.05 * float(expected_BD.norm())
    model.save_pretrained(tmp_path / "model")
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(answer(again, tokenizer, texts["en"][:4]), answer(model, tokenizer, texts["en"][:4]))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator computes in fp8")
def test_what_quantization_needs_is_said_where_it_is_missing(make_model, make_bert, anchors, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    make_bert().save_pretrained(tmp_path / "bert")
    how = {"quantization_config": FineGrainedFP8Config()}
    says = "cannot be quantized as quantization_config asks: No GPU or XPU found.*Load it without"
    with pytest.raises(ConfigurationError, match=f"The encoder of .*model {says}"):
        RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model", **how)
    with pytest.raises(ConfigurationError, match=f"bert {says}"):
        RelativeModel.from_encoder(str(tmp_path / "bert"), anchors.view("en"), tokenizer, **how)


def test_the_tensors_inside_a_weight_are_those_that_are_read():
    halves = TwoTensor(torch.ones(2), torch.zeros(2))
    assert [float(part.sum()) for part in plain_tensors(halves)] == [2, 0]
    assert plain_tensors(weight := torch.ones(3)) == [weight]
    assert digest_of_weights({"a": halves}) != digest_of_weights({"a": TwoTensor(torch.ones(2), torch.ones(2))})
    model = nn.Linear(2, 1)
    model.weight = nn.Parameter(TwoTensor(torch.ones(1, 2), torch.zeros(1, 2)))
    with pytest.raises(ConfigurationError, match="quantized by another library"):
        quantization_of(nn.Module(), model)


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
