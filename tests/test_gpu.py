"""What a CPU cannot show: `make test-gpu` on an accelerator. ``HF_RELREPS_GPU=cpu`` tries the tests themselves."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from training import tiny_trainer
from transformers import AutoModel, BitsAndBytesConfig

from benchmarks import accelerator as benchmark
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeModel,
    RelativeModelForSequenceClassification,
    RelativeModelForTokenClassification,
    stitch,
)


pytestmark = pytest.mark.gpu
ON_CPU = os.environ.get("HF_RELREPS_GPU") == "cpu"
HALVES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def device():
    if ON_CPU:
        return torch.device("cpu")
    if not torch.accelerator.is_available():
        pytest.skip("there is no accelerator")
    return torch.accelerator.current_accelerator()


def answer(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    inputs = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    with torch.no_grad():
        return model(**inputs).logits.float().cpu()


def assert_close(found, expected, dtype=torch.float32):
    within = 1e-3 if dtype == torch.float32 else 5e-2
    assert float((found - expected).abs().max()) < within * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("placed", ["auto", "by hand"])
def test_a_model_answers_as_on_the_cpu(placed, dtype, device, make_model, tokenizer, texts, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    how = {"device_map": "auto"} if placed == "auto" else {}
    there = RelativeModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype, **how).to(device)
    assert there.device.type == device.type
    assert there.encoder.projection.anchors_AD.device.type == device.type
    assert there.encoder.projection.anchors_AD.dtype == torch.float32
    assert_close(answer(there, tokenizer, texts["en"][:8]), answer(model, tokenizer, texts["en"][:8]), dtype)


def test_what_does_not_fit_lies_in_the_hosts_memory_and_on_disk(device, make_model, tokenizer, texts, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    first = "cpu" if device.type == "cpu" else device.index or 0
    room = {first: "30KB"} if first == "cpu" else {first: "30KB", "cpu": "30KB"}
    how = {"device_map": "auto", "max_memory": room, "offload_folder": str(tmp_path / "offload")}
    placed = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model", **how)
    assert_close(answer(placed, tokenizer, texts["en"][:8]), answer(model, tokenizer, texts["en"][:8]))
    placed.save_pretrained(tmp_path / "again")
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(answer(again, tokenizer, texts["en"][:8]), answer(model, tokenizer, texts["en"][:8]))


def test_layers_on_two_devices_are_one_encoder(device, make_bert, anchors, tokenizer, texts, tmp_path):
    if torch.accelerator.device_count() < 2 and not ON_CPU:
        pytest.skip("there is one accelerator only")
    make_bert().save_pretrained(tmp_path)
    places = ["cpu", "cpu"] if ON_CPU else [0, 1]
    whole = dict.fromkeys(["embeddings", "encoder.layer.0"], places[0])
    whole |= dict.fromkeys(["encoder.layer.1", "pooler"], places[1])
    bert = AutoModel.from_pretrained(tmp_path, device_map=whole)
    encoder = RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer)
    expected = RelativeModel.from_encoder(make_bert(), anchors.view("en"), tokenizer).encode(texts["en"][:8])
    assert_close(encoder.encode(texts["en"][:8]), expected)


def test_parts_on_different_devices_are_stitched_on_the_encoders(device, make_model, tokenizer, texts):
    english, french = make_model(0), make_model(1, "fr")
    expected = answer(stitch(english, french), tokenizer, texts["en"][:8])
    model = stitch(english.encoder.share().to(device), french.decoder)
    assert model.decoder.device.type == device.type and french.decoder.device.type == "cpu"
    assert_close(answer(model, tokenizer, texts["en"][:8]), expected)


@pytest.mark.parametrize("how", [{}, {"bf16": True}, {"fp16": True}])
def test_the_trainer_ends_with_anchors_of_its_own_encoder(how, device, make_model, make_dataset, tokenizer, tmp_path):
    if ON_CPU and "fp16" in how:
        pytest.skip("float16 on a CPU has no scaler of gradients")
    model = make_model()
    callback = AnchorCallback(refresh_every=2)
    arguments = how | {"use_cpu": ON_CPU, "save_strategy": "steps", "save_steps": 4}
    trainer = tiny_trainer(model, tokenizer, make_dataset("en")[:32], tmp_path, callback, **arguments)
    trainer.train()
    assert model.device.type == device.type and callback.drift_
    assert model.encoder.check_anchors() < 1e-2
    saved = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert saved.encoder.check_anchors() < 1e-2


def test_a_compiled_model_answers_the_same(device, make_model, tokenizer, texts):
    model = make_model().to(device).eval()
    expected = answer(model, tokenizer, texts["en"][:8])
    inputs = tokenizer(texts["en"][:8], return_tensors="pt", padding=True).to(device)
    compiled = torch.compile(model, backend="eager" if ON_CPU else "inductor")
    with torch.no_grad():
        assert_close(compiled(**inputs).logits.float().cpu(), expected)


@pytest.mark.parametrize("how", [{"load_in_8bit": True}, {"load_in_4bit": True}])
def test_a_quantized_encoder_is_stored_and_built_again(how, device, make_bert, anchors, tokenizer, texts, tmp_path):
    pytest.importorskip("bitsandbytes")
    make_bert().save_pretrained(tmp_path / "bert")
    bert = AutoModel.from_pretrained(tmp_path / "bert", quantization_config=BitsAndBytesConfig(**how))
    model = RelativeModelForSequenceClassification.from_encoder(bert, anchors.view("en"), tokenizer, num_labels=3)
    model.eval().save_pretrained(tmp_path / "model")
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert again.device.type == device.type
    assert_close(answer(again, tokenizer, texts["en"][:8]), answer(model, tokenizer, texts["en"][:8]), torch.float16)


def test_a_forward_pass_copies_nothing_between_host_and_device(device):
    sizes = benchmark.sizes(is_small=True)
    for config in sizes.encoders.values():
        model = benchmark.absolute(config, torch.bfloat16)
        inputs = benchmark.inputs_of(2, sizes.tokens)
        ours = benchmark.count_waits(benchmark.relative(model, sizes.anchors, sizes.tokens), inputs)
        assert ours <= benchmark.count_waits(model, inputs)


def test_a_tagger_answers_as_on_the_cpu_and_reads_no_padding_on_the_host(device, make_bert, tokenizer, texts):
    anchors = AnchorSet.from_tokens({"en": [text.split() for text in texts["en"]]}, 20)
    model = RelativeModelForTokenClassification.from_encoder(make_bert(), anchors.view(), tokenizer, num_labels=4)
    inputs = dict(tokenizer([*texts["en"][:3], "cat"], return_tensors="pt", padding=True))
    with torch.no_grad():
        expected = model.eval()(**inputs)
        there = {name: tensor.to(device) for name, tensor in inputs.items()}
        found = model.to(device)(**there)
    assert_close(found.relative_embeds.cpu(), expected.relative_embeds)
    assert_close(found.logits.cpu(), expected.logits)
    assert not found.relative_embeds[~there["attention_mask"].bool()].any()
    if not ON_CPU:
        assert benchmark.count_waits(model, there) <= benchmark.count_waits(model.encoder.backbone, there)


def test_peak_memory_of_a_training_step_is_counted(device):
    rows = benchmark.memory(benchmark.sizes(is_small=True))
    assert ON_CPU or rows[0]["relative"] < 2 * rows[0]["absolute"]
