"""Devices, dtypes, hooks and modes: each part keeps its own, and nothing of the caller's is moved or switched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import load_file, save_file
from training import tiny_trainer
from transformers import AutoModel, BertModel, pipeline

from hf_relreps import (
    AnchorCallback,
    RelativeConfig,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForSequenceClassification,
    stitch,
)
from hf_relreps.errors import ConfigurationError, UploadIntegrityError


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


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_a_placed_model_is_trained_saved_and_stitched(
    device_map, make_model, make_dataset, tokenizer, texts, tmp_path
):
    make_model().save_pretrained(tmp_path / "model")
    model = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model", device_map=device_map)
    tiny_trainer(model, tokenizer, make_dataset("en")[:16], tmp_path / "run", AnchorCallback(refresh_every=2)).train()
    assert model.encoder.check_anchors() < 1e-5
    model.eval().save_pretrained(tmp_path / "trained")
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "trained", device_map=device_map)
    assert torch.equal(answer(again, tokenizer, texts["en"][:4]), answer(model, tokenizer, texts["en"][:4]))
    other = make_model(1, "fr")
    for encoder, decoder, same in ((again, other, (model, other)), (other, again, (other, model))):
        found = answer(stitch(encoder, decoder), tokenizer, texts["en"][:4])
        assert torch.equal(found, answer(stitch(*same), tokenizer, texts["en"][:4]))


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


def test_little_memory_puts_on_disk_what_does_not_fit(make_model, tokenizer, texts, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    how = {"device_map": "auto", "max_memory": {"cpu": "30KB"}, "offload_folder": str(tmp_path / "offload")}
    placed = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model", **how)
    assert any(weight.is_meta for weight in placed.encoder.parameters())
    assert torch.equal(answer(placed, tokenizer, texts["en"][:4]), answer(model, tokenizer, texts["en"][:4]))


@pytest.fixture
def on_disk(make_model, tmp_path):
    """A model, and the same with all weights and, if asked for, buffers on disk."""
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    how = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "offload")}

    def load(**more):
        return RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model", **how | more)

    return model, load


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_a_decoder_on_disk_is_stitched_and_the_one_that_was_given_stays_there(
    offload_buffers, on_disk, make_model, tokenizer, texts
):
    model, load = on_disk
    other, placed = make_model(1, "fr"), load(offload_buffers=offload_buffers)
    stitched = stitch(other, placed)
    assert torch.equal(
        answer(stitched, tokenizer, texts["fr"][:4]), answer(stitch(other, model), tokenizer, texts["fr"][:4])
    )
    assert not any(weight.is_meta for weight in stitched.parameters())
    stitched.to("cpu")  # as a user may: it is not bound to the one that was given
    assert all(weight.is_meta for weight in placed.decoder.parameters())
    assert torch.equal(answer(placed, tokenizer, texts["en"][:4]), answer(model, tokenizer, texts["en"][:4]))


def test_anchors_stay_in_memory_where_buffers_are_offloaded(on_disk, tokenizer, texts, tmp_path):
    model, load = on_disk
    placed = load(offload_buffers=True)
    assert torch.equal(placed.encoder.projection.anchors_AD, model.encoder.projection.anchors_AD)
    assert placed.encoder.check_anchors() < 1e-5
    placed.save_pretrained(tmp_path / "again")
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(answer(again, tokenizer, texts["en"][:4]), answer(model, tokenizer, texts["en"][:4]))


def test_weights_that_a_device_map_offloaded_are_not_trained_in_vain(on_disk, make_dataset, tokenizer, tmp_path):
    trainer = tiny_trainer(on_disk[1](), tokenizer, make_dataset("en")[:16], tmp_path / "run", AnchorCallback())
    with pytest.raises(ConfigurationError, match="offloaded weights do not change; the first is encoder.backbone"):
        trainer.train()


def test_a_decoder_is_trained_on_an_encoder_that_lies_on_disk(on_disk, make_dataset, tokenizer, tmp_path):
    model = on_disk[1](device_map={"encoder": "disk", "decoder": "cpu"})
    model.encoder.requires_grad_(False)
    before, anchors_AD = model.decoder.output.weight.clone(), model.encoder.projection.anchors_AD.clone()
    tiny_trainer(model, tokenizer, make_dataset("en")[:16], tmp_path / "run", AnchorCallback()).train()
    assert not torch.equal(model.decoder.output.weight, before)
    assert torch.equal(model.encoder.projection.anchors_AD, anchors_AD)


# -- without values: the meta device


def test_an_encoder_on_the_meta_device_does_not_become_relative(make_bert, anchors, tokenizer):
    with torch.device("meta"):
        bert = BertModel(make_bert().config)
    with pytest.raises(
        ConfigurationError, match="weights of the encoder lie on the meta device, which holds no values"
    ):
        RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer)


def test_a_model_on_the_meta_device_says_that_it_has_no_weights(make_model, tokenizer, texts, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    model = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model", device_map="meta")
    with pytest.raises(ConfigurationError, match="weights of the encoder lie on the meta device, which holds no"):
        answer(model, tokenizer, texts["en"][:2])
    with pytest.raises(
        ConfigurationError, match="weights of this RelativeModelForSequenceClassification lie on the meta"
    ):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(ConfigurationError, match="weights of the encoder lie on the meta device"):
        stitch(model, make_model(1, "fr"))


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_in_half_precision_is_trained_saved_and_stitched(
    dtype, make_bert, make_model, make_dataset, anchors, tokenizer, texts, tmp_path, caplog
):
    model = RelativeModelForSequenceClassification.from_encoder(
        make_bert().to(dtype), anchors.view("en"), tokenizer, num_labels=2
    )
    rows = [row | {"labels": row["labels"] % 2} for row in make_dataset("en")[:16]]
    with caplog.at_level("WARNING", "hf_relreps"):
        tiny_trainer(model, tokenizer, rows, tmp_path / "run", AnchorCallback(refresh_every=2)).train()
    assert ("eps of 1e-8 is zero in float16" in caplog.text) is (dtype == torch.float16)
    model.eval()
    assert model.encoder.projection.anchors_AD.dtype == torch.float32
    assert model.encoder.check_anchors() < 1e-2
    model.save_pretrained(tmp_path / "model")
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert (again.encoder.dtype, again.decoder.dtype) == (dtype, torch.float32)
    assert torch.equal(answer(again, tokenizer, texts["en"][:4]), answer(model, tokenizer, texts["en"][:4]))
    for whole in (stitch(again, make_model(1, "fr")), stitch(make_model(1, "fr"), again)):
        assert torch.isfinite(answer(whole, tokenizer, texts["en"][:4])).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_reload_in_half_precision_leaves_the_anchors_as_they_were(dtype, make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    assert again.encoder.dtype == dtype
    assert torch.equal(again.encoder.projection.anchors_AD, model.encoder.projection.anchors_AD)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_the_encoder_and_leaves_the_projection_alone(dtype, make_model, tokenizer, texts):
    model = make_model().eval()
    inputs = tokenizer(texts["en"][:4], return_tensors="pt", padding=True)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = model.encoder(**inputs)
    assert found.relative_embeds.dtype == torch.float32
    expected = model.encoder.projection(found.pooler_output.float())
    assert torch.equal(found.relative_embeds, expected)


def test_the_trainer_in_mixed_precision_ends_with_anchors_of_its_own_encoder(
    make_model, make_dataset, tokenizer, tmp_path
):
    model = make_model()
    trainer = tiny_trainer(
        model, tokenizer, make_dataset("en")[:16], tmp_path, AnchorCallback(refresh_every=2), bf16=True
    )
    trainer.train()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.encoder.check_anchors() < 1e-2


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def in_float8(folder: Path, dtype: torch.dtype, change: Any = None) -> None:
    """Store the weights of the encoder's layers in eight bits."""
    file = folder / "encoder" / "model.safetensors"
    weights = load_file(file)
    names = [name for name, weight in weights.items() if ".layer." in name and weight.ndim == 2]
    weights |= {name: weights[name].to(dtype) for name in names}
    if change is not None:
        weights[names[0]][0, 0] = change
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", FLOAT8)
def test_an_upload_with_weights_in_float8_is_read_in_a_dtype_that_computes(
    dtype, make_model, tokenizer, texts, tmp_path
):
    model = make_model().eval()
    model.save_pretrained(tmp_path)
    in_float8(tmp_path, dtype)
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    found, expected = (answer(one, tokenizer, texts["en"][:4]) for one in (again, model))
    assert 0 < float((found - expected).abs().max()) < 0.5 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", FLOAT8)
def test_weights_in_float8_that_are_no_numbers_are_refused(dtype, make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    in_float8(tmp_path, dtype, change=float("nan"))
    with pytest.raises(UploadIntegrityError, match="infinite or NaN weights; the first is in backbone.encoder.layer"):
        RelativeModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_nobody_computes_in_float8(dtype, make_model, make_bert, anchors, tokenizer, texts, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    said = "float8.*: weights can be stored in float8, but torch computes in it only with a library"
    with pytest.raises(ConfigurationError, match=f"The encoder was asked for in {said}"):
        RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=dtype)
    with pytest.raises(ConfigurationError, match=f"The encoder's weights are in {said}"):
        RelativeModel.from_encoder(make_bert().to(dtype), anchors.view("en"), tokenizer)
    make_bert().save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigurationError, match=f"bert was asked for in {said}"):
        RelativeModel.from_encoder(str(tmp_path / "bert"), anchors.view("en"), tokenizer, dtype=dtype)


def test_a_decoder_that_was_saved_in_float8_is_read_in_float32(make_model, tokenizer, texts, tmp_path):
    model = make_model()
    model.decoder.to(torch.float8_e5m2).save_pretrained(tmp_path)
    again = RelativeDecoder.from_pretrained(tmp_path)
    assert again.dtype == torch.float32
    assert torch.equal(again.output.weight, model.decoder.output.weight.float())


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
    with pytest.raises(ConfigurationError, match="weights of the decoder lie on the meta device"):
        stitch(encoder, decoder)
    assert decoder.device == torch.device("meta")


def test_a_model_that_loses_its_pooler_to_us_keeps_it_for_its_owner(make_bert, anchors, tokenizer):
    bert = make_bert().train()
    encoder = RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer)
    assert bert.pooler is not None
    assert encoder.backbone.pooler is None
    encoder.eval()
    assert all(module.training for module in bert.modules())


# -- docs/placement.md


def test_each_cell_of_the_page_works_is_refused_or_is_not_measured_and_names_what_exists():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "placement.md").read_text("utf-8")
    rows = [line[1:-1].split("|") for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if len(row) == 6]
    heads = [row[1].strip() for row in rows if row[1].strip().startswith("inference")]
    cells = [cell.strip() for row in rows if row[1].strip() not in heads for cell in row[1:]]
    assert len(cells) == 25 * 5
    assert all(re.match("works|refused|not measured|as ", cell) for cell in cells)
    tests = "\n".join(file.read_text("utf-8") for file in root.glob("tests/test_*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 15 and [name for name in named if f"def {name}(" not in tests] == []
    code = "\n".join(file.read_text("utf-8") for file in root.glob("hf_relreps/*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    quoted = re.findall(r'refused: "([^"]+)"', page)
    assert (
        len(quoted) == 10 and [text for text in quoted if text.replace("bitsandbytes", "{METHOD}") not in joined] == []
    )
    assert "should" not in page
