"""`from_classifier`: ordinary classifiers become relative models with their own encoder, head and classes."""

# ruff: noqa: F401, F811  # fixtures of another file

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertModel,
    PoolFormerConfig,
    pipeline,
)

from hf_relreps import (
    AnchorSet,
    RelativeDecoder,
    RelativeModelForAudioClassification,
    RelativeModelForImageClassification,
    RelativeModelForNodeClassification,
    RelativeModelForSequenceClassification,
    stitch,
)
from hf_relreps.demos.tiny import wordpiece_tokenizer
from hf_relreps.errors import AnchorError, ConfigurationError, SampleError, StitchingError
from tests.test_classifier_heads import (
    HEADS,
    PIXELS,
    SECTIONS,
    TEXTS,
    bart,
    classifier_of,
    images_world,
    poolformer,
    processor_of,
    samples_of,
    texts,
    texts_world,
)


TASKS = {
    "text": RelativeModelForSequenceClassification,
    "image": RelativeModelForImageClassification,
    "audio": RelativeModelForAudioClassification,
}


def converted(world, name, **settings):
    view = world.anchors.view(world.anchors.views[0])
    task = RelativeModelForSequenceClassification if name in TEXTS else RelativeModelForImageClassification
    return task.from_classifier(world.classifier(name), view, world.processor, **settings)


def world_of(name, request):
    return request.getfixturevalue("texts_world" if name in TEXTS else "images_world")


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "vit", "resnet"])
def test_a_converted_classifier_keeps_its_score(name, request):
    world = world_of(name, request)
    model = converted(world, name)
    own = world.accuracy(world.logits(world.classifier(name)))
    assert world.accuracy(world.logits(model)) > own - 0.02  # of 400 or 500 samples
    assert model.config.decoder.decoder_type == "head" and not model.training


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_its_encoder_gives_what_its_head_reads(name, texts_world):
    classifier, model = texts_world.classifier(name), converted(texts_world, name)
    x_ND = model.encoder.encode(texts_world.samples[:20])
    with torch.no_grad():
        expected_NC = classifier(**texts_world.inputs(texts_world.samples[:20])).logits
        torch.testing.assert_close(model.decoder.head(x_ND), expected_NC, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("encoder", "decoder"), [("roberta", "bert"), ("bert", "distilbert")])
def test_converted_classifiers_stitch_with_one_another_where_their_heads_alone_do_not(encoder, decoder, texts_world):
    one, other = converted(texts_world, encoder), converted(texts_world, decoder)
    score = texts_world.accuracy(texts_world.logits(stitch(one, other)))
    with torch.no_grad():
        absolute = texts_world.accuracy(other.decoder.head(one.encoder.encode(texts_world.samples)))
    chance = float(torch.bincount(texts_world.labels).max() / len(texts_world.labels))
    assert absolute < chance + 0.15 < score
    assert score > 0.55


def test_samples_without_labels_make_a_linear_decoder_that_keeps_the_score_too(texts_world):
    samples = texts_world.anchors.view("en").samples
    model = converted(texts_world, "bert", samples=samples)
    own = texts_world.accuracy(texts_world.logits(texts_world.classifier("bert")))
    assert texts_world.accuracy(texts_world.logits(model)) > own - 0.08
    assert model.config.decoder.decoder_type == "linear"


def test_the_classes_and_the_kind_of_problem_come_along(texts_world, tmp_path):
    classifier = texts_world.classifier("bert")
    before = classifier.config.to_dict()
    classifier.config.id2label = dict(enumerate(SECTIONS))
    classifier.config.label2id = {name: i for i, name in enumerate(SECTIONS)}
    classifier.config.problem_type = "multi_label_classification"
    samples = texts_world.anchors.view("en").samples
    try:
        for how in ({}, {"samples": samples}):
            converted(texts_world, "bert", **how).save_pretrained(tmp_path)
            loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
            assert list(loaded.config.id2label.values()) == list(SECTIONS)
            assert loaded.config.problem_type == "multi_label_classification"
            targets = torch.zeros(1, len(SECTIONS))
            assert loaded(**texts_world.inputs(["a game"]), labels=targets).loss < 5
    finally:
        for field in ("id2label", "label2id", "problem_type"):
            setattr(classifier.config, field, before[field])


def test_a_name_on_the_hub_is_enough_and_the_upload_is_read_by_a_pipeline(texts_world, new_repo_id):
    ordinary, relative = new_repo_id(), new_repo_id()
    texts_world.classifier("distilbert").push_to_hub(ordinary)
    texts_world.processor.push_to_hub(ordinary)
    model = RelativeModelForSequenceClassification.from_classifier(ordinary, texts_world.anchors.view("en"))
    model.push_to_hub(relative)
    loaded = AutoModelForSequenceClassification.from_pretrained(relative)
    assert torch.equal(texts_world.logits(loaded), texts_world.logits(model))
    classify = pipeline("text-classification", model=loaded, tokenizer=AutoTokenizer.from_pretrained(relative))
    assert classify("a game", truncation=True)[0]["label"] in loaded.config.id2label.values()
    other = converted(texts_world, "bert")
    stitched = stitch(other, RelativeDecoder.from_pretrained(relative))
    assert texts_world.accuracy(texts_world.logits(stitched)) > 0.55


def test_a_frozen_one_refers_to_the_classifier_and_comes_back(texts_world, new_repo_id, tmp_path):
    ordinary = new_repo_id()
    texts_world.classifier("bert").push_to_hub(ordinary)
    texts_world.processor.push_to_hub(ordinary)
    view = texts_world.anchors.view("en")
    model = RelativeModelForSequenceClassification.from_classifier(ordinary, view, freeze_encoder=True)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["base_model_name_or_path"] == ordinary
    names = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert not any("backbone" in name for name in names)
    loaded = RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(texts_world.logits(loaded), texts_world.logits(model))


def test_images_come_back_from_a_folder(images_world, tmp_path):
    model = converted(images_world, "vit")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(images_world.logits(loaded), images_world.logits(model))


@pytest.mark.parametrize("name", list(HEADS))
def test_classifiers_of_every_tested_kind_become_relative(name):
    model, modality = classifier_of(HEADS[name][0])
    view = AnchorSet(range(6), {"own": samples_of(modality)}).view()
    relative = TASKS[modality].from_classifier(model, view, processor_of(modality))
    assert relative.config.decoder.head_reads == HEADS[name][1]
    assert relative.decoder(relative.encoder.projection(relative.encoder.anchors_AD)).logits.shape == (6, 3)


# -- heads that cannot be used alone


def test_a_classifier_whose_head_cannot_be_used_alone_becomes_relative_by_samples():
    model = poolformer()
    samples = samples_of("image") * 2
    view = AnchorSet(range(6), {"own": samples[:6]}).view()
    with pytest.raises(StitchingError, match=r"does not read one vector .* Or pass samples= without labels"):
        RelativeModelForImageClassification.from_classifier(model, view, PIXELS)
    relative = RelativeModelForImageClassification.from_classifier(model, view, PIXELS, samples=samples)
    assert relative(**PIXELS(images=samples, return_tensors="pt")).logits.shape == (12, 3)


def test_what_the_whole_classifier_says_of_samples_is_what_the_decoder_is_fitted_to():
    model, tokenizer = bart()
    samples = [f"{text} [SEP]" for text in texts() + texts(7)]
    view = AnchorSet(range(6), {"own": samples[:6]}).view()
    relative = RelativeModelForSequenceClassification.from_classifier(model, view, tokenizer, samples=samples)
    inputs = tokenizer(samples, padding=True, return_tensors="pt")
    with torch.no_grad():
        given_NC, found_NC = model(**inputs).logits, relative(**inputs).logits
    torch.testing.assert_close(found_NC.mean(0), given_NC.mean(0), rtol=1e-3, atol=1e-3)  # of a fit with intercept
    assert (found_NC - given_NC).norm() < 0.7 * (given_NC - given_NC.mean(0)).norm()


# -- errors


def test_too_few_samples_are_refused(texts_world):
    with pytest.raises(SampleError, match=r"Found 3 samples to fit a decoder on, expected 10 or more"):
        converted(texts_world, "bert", samples=["a game", "a lab", "a song"])


def test_methods_for_one_pair_and_unknown_ones_are_refused(texts_world):
    with pytest.raises(StitchingError, match=r"'cca' fits one pair of spaces.*kernel_ridge, ridge, inverse"):
        converted(texts_world, "bert", method="cca")
    with pytest.raises(ConfigurationError, match=r"method='rotate' does not exist"):
        converted(texts_world, "bert", method="rotate")


def test_another_modality_is_refused(texts_world, images_world):
    text, image = texts_world.anchors.view("en"), images_world.anchors.view()
    classifier = images_world.classifier("vit")
    with pytest.raises(AnchorError, match=r"RelativeModelForSequenceClassification reads texts, .* contains images"):
        RelativeModelForSequenceClassification.from_classifier(classifier, image, PIXELS)
    with pytest.raises(
        StitchingError, match=r"ViTForImageClassification as decoder, which is neither.*classifier of texts"
    ):
        RelativeModelForSequenceClassification.from_classifier(classifier, text, texts_world.processor)
    nodes = AnchorSet(["g/0", "g/1"], {"node": [0, 1]}).view()
    with pytest.raises(AnchorError, match=r"The view contains nodes, for which transformers has no classifiers"):
        RelativeModelForNodeClassification.from_classifier(classifier, nodes)


def test_what_is_no_classifier_is_refused(texts_world):
    view = texts_world.anchors.view("en")
    for model in (BertModel(TEXTS["bert"]), converted(texts_world, "bert")):
        with pytest.raises(StitchingError, match=rf"Found a {type(model).__name__} as decoder, which is neither"):
            RelativeModelForSequenceClassification.from_classifier(model, view, texts_world.processor)
