"""transformers' own doors: Auto classes, pipelines, `torch.compile`, shards, precision and attention at load."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from hf_relreps import (
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
)


@pytest.fixture
def model(make_model):
    return make_model(0)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "upload")
    return tmp_path / "upload"


@pytest.fixture
def inputs(tokenizer):
    return tokenizer(["small cat here", "old bus"], return_tensors="pt", padding=True)


@pytest.fixture(scope="module")
def image_model(images):
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vit = ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))
    anchors = AnchorSet([str(i) for i in range(4)], {"photo": images[:4]})
    return RelativeModelForImageClassification.from_encoder(
        vit, anchors.view("photo"), processor, id2label={0: "noise", 1: "signal"}, label2id={"noise": 0, "signal": 1}
    ).eval()


# -- Auto classes


def test_auto_classes_open_the_whole_and_the_encoder(model, folder, inputs):
    assert type(AutoConfig.from_pretrained(folder)) is RelativeConfig
    whole = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(whole) is RelativeModelForSequenceClassification and not whole.training
    assert torch.equal(whole(**inputs).logits, model(**inputs).logits)
    expected = model.encoder(**inputs)
    for door in (
        AutoModel.from_pretrained(folder),
        AutoModel.from_pretrained(folder, subfolder="encoder"),
        RelativeModel.from_pretrained(folder),
        RelativeModel.from_pretrained(folder, subfolder="encoder"),
    ):
        assert type(door) is RelativeModel
        assert torch.equal(door(**inputs).relative_embeds, expected.relative_embeds)
        assert door.anchors.fingerprint == model.anchors.fingerprint
    for decoder in (
        RelativeDecoder.from_pretrained(folder),
        RelativeDecoder.from_pretrained(folder, subfolder="decoder"),
    ):
        assert torch.equal(decoder(expected.relative_embeds).logits, model(**inputs).logits)
        assert not hasattr(decoder.config, "encoder_config")


def test_auto_classes_make_the_same_from_a_configuration(folder):
    config = AutoConfig.from_pretrained(folder)
    assert type(AutoModel.from_config(config)) is RelativeModel
    assert type(AutoModelForSequenceClassification.from_config(config)) is RelativeModelForSequenceClassification


def test_an_encoder_saved_alone_opens_by_itself(model, inputs, tmp_path):
    model.encoder.save_pretrained(tmp_path)
    assert not (tmp_path / "decoder").exists()
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).relative_embeds, model(**inputs).relative_embeds)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == model.processor.get_vocab()


def test_automodel_opens_an_image_classifier(image_model, images, tmp_path):
    image_model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    inputs = image_model.processor(images, return_tensors="pt")
    assert type(loaded) is RelativeModelForImageClassification
    assert torch.equal(loaded(**inputs).logits, image_model(**inputs).logits)


# -- pipelines


def test_text_classification_from_object_and_folder(model, folder, tokenizer, texts):
    from_object = pipeline("text-classification", model=model, tokenizer=tokenizer)
    from_folder = pipeline("text-classification", model=str(folder))
    with torch.no_grad():
        probabilities = model(**tokenizer(texts["en"][:6], return_tensors="pt", padding=True)).logits.softmax(-1)
    for answers in (from_object(texts["en"][:6]), from_folder(texts["en"][:6])):
        assert [answer["label"] for answer in answers] == [
            model.config.id2label[int(i)] for i in probabilities.argmax(-1)
        ]
        np.testing.assert_allclose([answer["score"] for answer in answers], probabilities.amax(-1), atol=1e-4)
    every = from_folder("small cat here", top_k=None)
    assert {answer["label"] for answer in every} == {"animal", "food", "vehicle"}
    assert sum(answer["score"] for answer in every) == pytest.approx(1, abs=1e-5)
    assert from_folder(texts["en"][:6], batch_size=3)[5]["label"] == from_object(texts["en"][5])[0]["label"]


def test_image_classification_from_object_and_folder(image_model, images, tmp_path):
    image_model.save_pretrained(tmp_path)
    from_object = pipeline("image-classification", model=image_model, image_processor=image_model.processor)
    from_folder = pipeline("image-classification", model=str(tmp_path))
    with torch.no_grad():
        logits = image_model(**image_model.processor(images, return_tensors="pt")).logits
    for answers in (from_object(images), from_folder(images)):
        assert [answer[0]["label"] for answer in answers] == [
            image_model.config.id2label[int(i)] for i in logits.argmax(-1)
        ]


def test_feature_extraction_gives_the_vectors_of_the_tokens(model, folder, tokenizer):
    with torch.no_grad():
        expected = model.encoder(**tokenizer(["small cat here"], return_tensors="pt")).last_hidden_state
    from_object = pipeline("feature-extraction", model=model.encoder, tokenizer=tokenizer)("small cat here")
    from_folder = pipeline("feature-extraction", model=str(folder))("small cat here")
    for features in (from_object, from_folder):
        assert np.shape(features) == (1, 3, 32)
        np.testing.assert_allclose(features, expected, atol=1e-5)


# -- torch.compile


def test_a_compiled_model_gives_the_same_also_after_its_anchors_change(model, inputs):
    torch._dynamo.reset()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    # The graph that dynamo traces is run as it is: what could go stale is the trace, and C++ need not be there.
    compiled = torch.compile(model, backend=count)
    expected = []
    with torch.no_grad():
        for _ in range(4):
            found = compiled(**inputs).logits  # before the model itself is asked, which would renew the frame
            expected.append(model(**inputs).logits)
            torch.testing.assert_close(found, expected[-1], atol=1e-5, rtol=1e-4)
            model.encoder.projection.set_anchors(torch.randn(20, 32))
    assert not torch.allclose(expected[0], expected[1])
    assert graphs
    assert len(graphs) < 4, "new anchors must not be traced anew each time"


def test_a_compiled_model_trains(model, make_dataset, tokenizer):
    torch._dynamo.reset()
    batch = tokenizer.pad(make_dataset()[::8], return_tensors="pt")
    compiled = torch.compile(model, backend="aot_eager")
    compiled(**batch).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_inductor_gives_the_same_also_after_its_anchors_change(model, inputs):
    torch._dynamo.reset()
    compiled = torch.compile(model)
    with torch.no_grad():
        for _ in range(3):
            found = compiled(**inputs).logits
            torch.testing.assert_close(found, model(**inputs).logits, atol=1e-4, rtol=1e-3)
            model.encoder.projection.set_anchors(torch.randn(20, 32))


# -- at load


def test_an_upload_of_many_shards_loads_whole_and_in_part(model, inputs, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "encoder").glob("model-*.safetensors"))) > 2
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(places) == set(model.state_dict())
    assert all((tmp_path / file).is_file() for file in places.values())
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(whole(**inputs).logits, model(**inputs).logits)
    encoder = AutoModel.from_pretrained(tmp_path, subfolder="encoder")
    assert torch.equal(encoder(**inputs).relative_embeds, model(**inputs).relative_embeds)
    decoder = RelativeDecoder.from_pretrained(tmp_path)
    assert torch.equal(decoder(model(**inputs).relative_embeds).logits, model(**inputs).logits)


def test_saving_again_with_fewer_shards_leaves_none_of_the_old(model, inputs, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    with torch.no_grad():
        model.decoder.output.bias.add_(1)
    model.save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "encoder").glob("*.safetensors")] == ["model.safetensors"]
    for door in (AutoModelForSequenceClassification, RelativeModelForSequenceClassification):
        assert torch.equal(door.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(**inputs).relative_embeds, model(**inputs).relative_embeds)


@pytest.mark.parametrize("door", [AutoModelForSequenceClassification, AutoModel])
def test_the_asked_for_attention_reaches_the_wrapped_model(folder, inputs, door, model):
    for implementation in ("eager", "sdpa"):
        loaded = door.from_pretrained(folder, attn_implementation=implementation)
        backbone = loaded.encoder.backbone if door is AutoModelForSequenceClassification else loaded.backbone
        assert backbone.config._attn_implementation == implementation
        torch.testing.assert_close(
            loaded(**inputs).relative_embeds, model(**inputs).relative_embeds, atol=1e-4, rtol=1e-4
        )
    assert door.from_pretrained(folder).config._attn_implementation == "sdpa"
    assert "attn_implementation" not in (folder / "encoder" / "config.json").read_text()


def test_a_device_map_places_all_parts(folder, inputs, model):
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, device_map={"": "cpu"})
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_a_bf16_load_computes_relative_representations_in_float32(folder, inputs, model):
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype="bfloat16")
    assert loaded.encoder.backbone.dtype == torch.bfloat16
    assert loaded.encoder.projection.anchors_AD.dtype == torch.float32
    assert torch.equal(loaded.encoder.projection.anchors_AD, model.encoder.projection.anchors_AD)
    torch.testing.assert_close(loaded(**inputs).logits.float(), model(**inputs).logits, atol=0.05, rtol=0.05)
    encoder = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert encoder.projection.anchors_AD.dtype == torch.float32


def test_anchors_stored_in_half_precision_are_read_into_float32(model, folder):
    file = folder / "encoder" / "model.safetensors"
    stored = {name: t.bfloat16() if name.endswith("anchors_AD") else t for name, t in load_file(file).items()}
    save_file(stored, file, {"format": "pt"})
    for dtype in (torch.float32, torch.bfloat16):
        anchors_AD = AutoModel.from_pretrained(folder, dtype=dtype).projection.anchors_AD
        assert anchors_AD.dtype == torch.float32
        torch.testing.assert_close(anchors_AD, model.encoder.projection.anchors_AD, atol=0.02, rtol=0.02)


def test_a_model_saved_in_bf16_comes_back_with_float32_anchors(model, inputs, tmp_path):
    anchors_AD = model.encoder.projection.anchors_AD.clone()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    for options in ({}, {"dtype": torch.float32}):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, **options)
        assert loaded.dtype == options.get("dtype", torch.bfloat16)
        assert torch.equal(loaded.encoder.projection.anchors_AD, anchors_AD)
        torch.testing.assert_close(
            loaded(**inputs).logits.float(), model(**inputs).logits.float(), atol=0.05, rtol=0.05
        )
