"""Anchors that are pairs of an image and a text: decoders, descriptions and searches cross from one to the other.

Images are plain colours with noise and texts name the colours, so that encoders without training tell them apart.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline, set_seed

from benchmarks.cross_modal import RESULTS, WAYS, csls, recall, similarity, tables
from benchmarks.cross_modal import fitted as ways_fitted
from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, compatibility, stitch
from hf_relreps.demos.tiny import small_bert, word_tokenizer
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import AnchorError, ConfigurationError


COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
SHADES = ("dark", "light", "pale", "bright")
SIZE = 8


def picture(colour: str, shade: str, draw: np.random.Generator) -> Image.Image:
    strength = 0.4 + 0.2 * SHADES.index(shade)
    noise = draw.normal(scale=12, size=(SIZE, SIZE, 3))
    return Image.fromarray(np.clip(strength * np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """240 pictures and what they show, in an order of chance."""
    draw = np.random.default_rng(0)
    meant = [(colour, shade) for colour in COLOURS for shade in SHADES for _ in range(20)]
    meant = [meant[i] for i in draw.permutation(len(meant))]
    return Dataset.from_dict(
        {
            "id": [f"picture {i}" for i in range(len(meant))],
            "image": [picture(*what, draw) for what in meant],
            "text": [f"a {shade} {colour} square" for colour, shade in meant],
            "label": [list(COLOURS).index(colour) for colour, _ in meant],
        }
    )


@pytest.fixture(scope="module")
def anchors(rows) -> AnchorSet:
    return AnchorSet.from_dataset(rows.select(range(120)), 60, views=["image", "text"], id_column="id")


@pytest.fixture(scope="module")
def reader(rows, anchors) -> RelativeModel:
    """Reads texts."""
    set_seed(1)
    tokenizer = word_tokenizer(rows["text"][:])
    return RelativeModel.from_encoder(
        small_bert(len(tokenizer), longest=16, width=32), anchors.view("text"), tokenizer
    )


@pytest.fixture(scope="module")
def viewer(anchors) -> RelativeModel:
    """Reads images."""
    set_seed(2)
    net = ConvEncoder(ConvEncoderConfig(image_size=SIZE, widths=[16, 48]))
    return RelativeModel.from_encoder(net, anchors.view("image"), image_processor(SIZE))


def fitted(encoder: RelativeModel, samples: list[Any], labels: list[int]) -> RelativeDecoder:
    r_NR = encoder.projection(encoder.encode(samples))
    return RelativeDecoder.fit_ridge(r_NR, labels, encoder, id2label=dict(enumerate(COLOURS)))


def right(encoder: RelativeModel, decoder: RelativeDecoder, samples: list[Any], labels: list[int]) -> float:
    with torch.no_grad():
        said_N = decoder(encoder.projection(encoder.encode(samples))).logits.argmax(1)
    return float((said_N == torch.tensor(labels)).float().mean())


def test_a_set_of_anchors_holds_images_and_texts_of_the_same_meanings(anchors):
    assert [anchors.view(name).modality for name in anchors.views] == ["image", "text"]
    later = AnchorSet(anchors.ids, {"text": anchors.view("text").samples})
    later.add_view("image", anchors.view("image").samples)
    assert later.fingerprint == anchors.fingerprint


def test_a_decoder_of_texts_reads_images_and_the_reverse(rows, reader, viewer):
    train, test = rows.select(range(120)), rows.select(range(120, 240))
    for own, other, mine, theirs in ((reader, viewer, "text", "image"), (viewer, reader, "image", "text")):
        decoder = fitted(own, train[mine][:], train["label"][:])
        assert right(own, decoder, test[mine][:], test["label"][:]) > 0.9
        assert right(other, decoder, test[theirs][:], test["label"][:]) > 0.9
        assert compatibility(other, decoder).fits


def test_shuffled_pairs_leave_the_decoder_at_chance(rows, anchors, reader, viewer):
    train, test = rows.select(range(120)), rows.select(range(120, 240))
    turned = AnchorSet(anchors.ids, {"image": anchors.view("image").samples[7:] + anchors.view("image").samples[:7]})
    wrong = RelativeModel.from_encoder(viewer.backbone, turned.view("image"), viewer.processor)
    decoder = fitted(reader, train["text"][:], train["label"][:])
    assert right(wrong, decoder, test["image"][:], test["label"][:]) < 0.7


def test_an_ordinary_image_encoder_becomes_relative_by_the_view_it_reads(rows, reader, viewer):
    decoder = fitted(reader, rows["text"][:120], rows["label"][:120])
    with pytest.raises(AnchorError, match="'image', 'text'"):
        stitch(viewer.backbone, decoder, processor=viewer.processor)
    model = stitch(viewer.backbone, decoder, view="image", processor=viewer.processor)
    answer = pipeline("image-classification", model=model, image_processor=viewer.processor)(rows[130]["image"])
    assert {one["label"] for one in answer} == set(COLOURS)


@pytest.mark.any_hub
def test_anchors_with_two_modalities_go_to_the_hub_and_back_with_either_part(
    rows, anchors, reader, viewer, new_repo_id
):
    anchors_id, whole_id = new_repo_id(), new_repo_id()
    anchors.push_to_hub(anchors_id)
    pulled = AnchorSet.from_pretrained(anchors_id)
    assert pulled.fingerprint == anchors.fingerprint
    assert [pulled.view(name).digest for name in ("image", "text")] == [
        anchors.view(name).digest for name in ("image", "text")
    ]
    decoder = fitted(reader, rows["text"][:120], rows["label"][:120])
    stitch(reader, decoder).push_to_hub(whole_id)
    alone = RelativeDecoder.from_pretrained(whole_id)
    model = stitch(viewer.backbone, alone, view="image", processor=viewer.processor)
    pixels = viewer.processor(images=rows["image"][120:140], return_tensors="pt")
    expected = stitch(viewer, decoder)(**pixels).logits
    torch.testing.assert_close(model(**pixels).logits, expected, atol=1e-4, rtol=1e-4)
    images_id = new_repo_id()
    model.push_to_hub(images_id)
    loaded = AutoModelForImageClassification.from_pretrained(images_id)
    torch.testing.assert_close(loaded(**pixels).logits, expected, atol=1e-4, rtol=1e-4)
    assert set(loaded.anchors.views) == {"image", "text"}


# -- classes described by texts


DESCRIPTIONS = {
    "red": ["a dark red square", "a light red square"],
    "green": "a bright green square",
    "blue": ["a pale blue square", "a dark blue square", "a bright blue square"],
}


def test_images_are_classified_by_texts_that_describe_the_classes(rows, reader, viewer, tmp_path):
    decoder = RelativeDecoder.from_descriptions(DESCRIPTIONS, reader)
    assert right(viewer, decoder, rows["image"][120:], rows["label"][120:]) > 0.7  # chance is a third
    assert not decoder.is_new and decoder.config.id2label == dict(enumerate(COLOURS))
    stitched = stitch(viewer, decoder)
    stitched.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = viewer.processor(images=rows["image"][:4], return_tensors="pt")
    assert torch.equal(loaded(**pixels).logits, stitched(**pixels).logits)


def test_a_class_scores_by_the_cosine_to_the_mean_of_its_descriptions(reader):
    decoder = RelativeDecoder.from_descriptions(DESCRIPTIONS, reader, scale=3)
    r_NR = reader.projection(reader.encode(["a light green square", *DESCRIPTIONS["red"]]))
    z_NR = torch.nn.functional.normalize(r_NR - r_NR.mean(1, keepdim=True))
    red_R = torch.nn.functional.normalize(z_NR[1:].mean(0), dim=0)
    with torch.no_grad():
        found = decoder(r_NR).logits
    torch.testing.assert_close(found[:, 0], 3 * z_NR @ red_R, atol=1e-4, rtol=1e-4)


def test_descriptions_may_be_images_and_read_texts(rows, reader, viewer):
    shown = {
        colour: [row["image"] for row in rows.select(range(60)) if list(COLOURS)[row["label"]] == colour]
        for colour in COLOURS
    }
    decoder = RelativeDecoder.from_descriptions(
        shown, stitch(viewer, fitted(viewer, rows["image"][:60], rows["label"][:60]))
    )
    assert right(reader, decoder, rows["text"][120:], rows["label"][120:]) > 0.7


def test_classes_without_description_are_refused(reader):
    with pytest.raises(ConfigurationError, match="descriptions of 1 class, expected two"):
        RelativeDecoder.from_descriptions({"red": "red"}, reader)
    with pytest.raises(ConfigurationError, match="1 of 2 classes have no description, the first is 'blue'"):
        RelativeDecoder.from_descriptions({"red": "a red square", "blue": []}, reader)
    with pytest.raises(ConfigurationError, match="scale=0 must be a number above 0"):
        RelativeDecoder.from_descriptions({"red": "a red square", "blue": "a blue square"}, reader, scale=0)


# -- search


def test_each_modality_finds_its_colour_in_the_other(rows, reader, viewer):
    test = rows.select(range(120, 240))
    texts, images = (
        torch.nn.functional.normalize(encoder.projection(encoder.encode(test[column][:])))
        for encoder, column in ((reader, "text"), (viewer, "image"))
    )
    labels = torch.tensor(test["label"][:])
    for scores in (texts @ images.T, images @ texts.T):
        assert (labels[scores.topk(5).indices] == labels[:, None]).float().mean() > 0.9


# -- the benchmark


def test_a_text_that_is_near_to_every_picture_loses_its_lead():
    scores_QM = torch.tensor([[0.5, 0.1, 0.6], [0.1, 0.5, 0.6], [0.1, 0.1, 0.6]])
    assert recall(scores_QM, 1) == pytest.approx(1 / 3)
    assert recall(csls(scores_QM), 1) == 1


def test_settings_are_chosen_on_pairs_that_were_held_out():
    fitted_on = []

    def way(x_AD, y_AE, good):
        fitted_on.append(len(x_AD))
        return (lambda x: x, (lambda y: y) if good else (lambda y: -y))

    x_AD = torch.eye(100)
    maps = ways_fitted(way, [{"good": False}, {"good": True}], x_AD, x_AD)
    assert fitted_on == [80, 80, 100]
    assert recall(similarity(maps, x_AD, x_AD), 1) == 1


@pytest.mark.parametrize("name", [name for name in WAYS if name not in ("InfoNCE",)])
def test_each_way_brings_a_rotated_space_back(name):
    draw = torch.Generator().manual_seed(0)
    x_ND = torch.randn(90, 12, generator=draw)
    turn_DE = torch.linalg.qr(torch.randn(12, 12, generator=draw))[0]
    way, grid = WAYS[name]
    maps = ways_fitted(way, grid, x_ND[:60], (x_ND @ turn_DE)[:60])
    assert recall(similarity(maps, x_ND[60:], (x_ND @ turn_DE)[60:]), 1) > 0.6


def test_the_page_shows_the_tables_of_the_last_run():
    page = (RESULTS.parents[2] / "docs" / "cross_modal.md").read_text("utf-8")
    assert tables(json.loads((RESULTS / "results.json").read_text("utf-8"))) in page
