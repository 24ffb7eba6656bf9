"""Image encoders: what they give, that they save and load, and that a relative model wraps them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, pipeline

from hf_relreps import AnchorSet, RelativeConfig, RelativeModel, RelativeModelForImageClassification
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import ConfigurationError, SampleError


SIZE = 8  # of scikit-learn's digits


@pytest.fixture(scope="module")
def digits() -> tuple[list[Image.Image], torch.Tensor]:
    """1,797 real handwritten digits of 8x8 pixels, with their labels."""
    data = load_digits()
    images_NHW = (data.images / 16 * 255).astype(np.uint8)
    return [Image.fromarray(image) for image in images_NHW], torch.tensor(data.target)


@pytest.fixture(scope="module")
def anchors(digits: tuple[list[Image.Image], torch.Tensor]) -> AnchorSet:
    return AnchorSet([f"digit-{i}" for i in range(30)], {"image": digits[0][:30]})


def pixels(images: list[Image.Image]) -> torch.Tensor:
    return image_processor(SIZE)(images=images, return_tensors="pt")["pixel_values"]


def make_encoder(seed: int = 0, **config) -> ConvEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvEncoder(ConvEncoderConfig(**{"image_size": SIZE, "widths": [16, 32]} | config)).eval()


# -- ConvEncoder


@pytest.mark.parametrize(("image_size", "side"), [(28, 2), (32, 2), (64, 4)])
def test_the_papers_encoder_halves_an_image_four_times(image_size, side):
    encoder = ConvEncoder(ConvEncoderConfig(image_size=image_size)).eval()
    output = encoder(torch.rand(2, 3, image_size, image_size))
    assert output.last_hidden_state.shape == (2, 256, side, side)
    assert output.pooler_output.shape == (2, 256 * side * side)
    assert encoder.config.hidden_size == 256


def test_hidden_states_go_from_the_pixels_to_the_feature_map():
    output = make_encoder()(torch.rand(2, 3, SIZE, SIZE), output_hidden_states=True)
    assert [tuple(state.shape[1:]) for state in output.hidden_states] == [(3, 8, 8), (16, 4, 4), (32, 2, 2)]
    assert output.hidden_states[-1] is output.last_hidden_state


def test_the_last_activation_is_left_out_unless_asked_for():
    x = torch.rand(4, 3, SIZE, SIZE)
    with_it = make_encoder(hidden_act="relu", last_activation=True)(x).last_hidden_state
    without = make_encoder(hidden_act="relu")(x).last_hidden_state
    assert (without < 0).any()
    torch.testing.assert_close(with_it, without.clamp_min(0))


def test_one_channel_reads_grey_and_rgb_images_alike(digits):
    encoder = make_encoder(num_channels=1)
    rgb = pixels(digits[0][:5])
    torch.testing.assert_close(encoder(rgb).last_hidden_state, encoder(rgb[:, :1]).last_hidden_state)


def test_one_image_alone_gives_what_it_gives_in_a_batch(digits):
    encoder = make_encoder()
    x = pixels(digits[0][:20])
    for _ in range(3):
        encoder.train()(x)  # so that the running statistics are not those of the start
    encoder.eval()
    alone = torch.cat([encoder(image[None]).last_hidden_state for image in x])
    torch.testing.assert_close(alone, encoder(x).last_hidden_state)


def test_only_training_moves_the_running_statistics(digits):
    encoder = make_encoder()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(pixels(digits[0][:20]))
    assert all(torch.equal(before[name], buffer) for name, buffer in encoder.named_buffers())
    encoder.train()(pixels(digits[0][:20]))
    assert not any(torch.equal(before[name], buffer) for name, buffer in encoder.named_buffers())


def test_a_saved_encoder_gives_the_same_bits_through_the_auto_class(digits, tmp_path):
    encoder = make_encoder()
    encoder.train()(pixels(digits[0][:20]))
    encoder.eval().save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is ConvEncoder
    assert not any(info.values())
    x = pixels(digits[0][20:40])
    assert torch.equal(loaded(x).last_hidden_state, encoder(x).last_hidden_state)


def test_a_seed_decides_the_weights_and_the_auto_class_builds_the_same():
    config = AutoConfig.for_model("relreps_conv", image_size=SIZE, widths=[16, 32])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        built = AutoModel.from_config(config)
    same, other = make_encoder(3).state_dict(), make_encoder(4).state_dict()
    assert all(torch.equal(weight, same[name]) for name, weight in built.state_dict().items())
    assert not torch.equal(same["layers.0.0.weight"], other["layers.0.0.weight"])


def test_a_fresh_encoder_of_four_layers_tells_images_apart():
    # transformers' default initialisation is so small that hardly anything is left after four layers: 0.0003 here.
    x = torch.rand(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    map_BDHW = make_encoder(widths=[32, 64, 128, 256])(x).last_hidden_state
    assert map_BDHW.std(0).mean() > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": []}, r"widths=\[\] must be a list of positive numbers"),
        ({"widths": [8, 0]}, r"widths=\[8, 0\] must be a list"),
        ({"num_channels": 0}, "num_channels=0 must be at least 1: 3 for RGB, 1 for grey"),
        ({"hidden_act": "gellu"}, "hidden_act='gellu' does not exist. Choose one of .*gelu"),
    ],
)
def test_a_configuration_without_meaning_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ConvEncoderConfig(**settings)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8)])
def test_pixels_of_another_shape_are_refused_with_the_call_that_mends_it(shape):
    with pytest.raises(SampleError, match=r"expected \(batch, 3, height, width\).*image_processor\(image_size\)"):
        make_encoder()(torch.rand(shape))


# -- the processor


def test_the_processor_keeps_the_exact_pixels_of_images_that_have_the_size(digits):
    x = pixels(digits[0][:10])
    assert x.shape == (10, 3, SIZE, SIZE)
    expected = torch.tensor(np.stack([np.array(image) for image in digits[0][:10]]))
    assert torch.equal((x * 255).round().byte(), expected[:, None].expand(-1, 3, -1, -1))


def test_the_processor_resizes_other_images_and_reads_arrays(digits):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    x = image_processor(16)(images=[photo, photo.convert("L"), np.array(photo)], return_tensors="pt")["pixel_values"]
    assert x.shape == (3, 3, 16, 16)
    assert torch.equal(x[0], x[2])
    assert torch.equal(x[1, 0], x[1, 2])


def test_mean_and_deviation_shift_and_scale_the_pixels(digits):
    plain, scaled = image_processor(SIZE), image_processor(SIZE, mean=0.5, std=0.25)
    x, y = (p(images=digits[0][:3], return_tensors="pt")["pixel_values"] for p in (plain, scaled))
    torch.testing.assert_close(y, (x - 0.5) / 0.25)


@pytest.mark.parametrize("auto_class", [AutoImageProcessor, AutoProcessor])
def test_a_saved_processor_loads_by_the_auto_classes(auto_class, digits, tmp_path):
    image_processor(12, mean=0.1, std=0.2).save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    x = loaded(images=digits[0][:3], return_tensors="pt")["pixel_values"]
    expected = image_processor(12, mean=0.1, std=0.2)(images=digits[0][:3], return_tensors="pt")["pixel_values"]
    assert x.shape == (3, 3, 12, 12)
    torch.testing.assert_close(x, expected, atol=0.05, rtol=0)  # torchvision, where it is, resizes a little otherwise


# -- inside a relative model


@pytest.mark.parametrize(("pooling", "width"), [("spatial_mean", 32), ("pooler", 32 * 2 * 2)])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_relative_model_wraps_it_and_loads_it_again(pooling, width, num_channels, digits, anchors, tmp_path):
    encoder = make_encoder(num_channels=num_channels)
    model = RelativeModel.from_encoder(encoder, anchors.view("image"), image_processor(SIZE), pooling=pooling).eval()
    assert model.config.embedding_size == width
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, subfolder="encoder")
    assert type(loaded) is RelativeModel
    assert type(loaded.backbone) is ConvEncoder
    x = pixels(digits[0][30:50])
    expected, found = model(pixel_values=x), loaded(pixel_values=x)
    assert expected.relative_embeds.shape == (20, 30)
    assert torch.equal(found.relative_embeds, expected.relative_embeds)
    assert torch.equal(loaded.encode(digits[0][30:50]), model.encode(digits[0][30:50]))


def test_cosines_do_not_change_when_the_feature_map_is_scaled(digits, anchors):
    model = RelativeModel.from_encoder(
        make_encoder(),
        anchors.view("image"),
        image_processor(SIZE),
        config=RelativeConfig.paper(pooling="spatial_mean"),
    ).eval()
    x = pixels(digits[0][30:50])
    before = model(pixel_values=x).relative_embeds
    with torch.no_grad():
        for parameter in model.backbone.layers[-1][1].parameters():
            parameter.mul_(7)
    model.encode_anchors(anchors.view("image"))
    torch.testing.assert_close(model(pixel_values=x).relative_embeds, before)


@pytest.fixture(scope="module")
def classifier(digits, anchors) -> RelativeModelForImageClassification:
    """Trained for a few passes over 1,500 digits, with the anchors encoded anew before each."""
    images, labels = digits
    model = RelativeModelForImageClassification.from_encoder(
        make_encoder(),
        anchors.view("image"),
        image_processor(SIZE),
        pooling="spatial_mean",
        id2label={i: f"digit {i}" for i in range(10)},
        label2id={f"digit {i}": i for i in range(10)},
    )
    x, y = pixels(images[:1500]), labels[:1500]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(8):
            model.encoder.encode_anchors(anchors.view("image"))
            model.train()
            for rows in torch.randperm(1500).split(100):
                optimizer.zero_grad()
                model(pixel_values=x[rows], labels=y[rows]).loss.backward()
                optimizer.step()
        model.encoder.encode_anchors(anchors.view("image"))
    return model.eval()


def test_every_weight_gets_a_gradient(digits, anchors):
    model = RelativeModelForImageClassification.from_encoder(
        make_encoder(), anchors.view("image"), image_processor(SIZE), pooling="spatial_mean", num_labels=10
    )
    model.train()(pixel_values=pixels(digits[0][:50]), labels=digits[1][:50]).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_it_learns_to_read_digits(digits, classifier):
    with torch.no_grad():
        predicted = classifier(pixel_values=pixels(digits[0][1500:])).logits.argmax(1)
    assert (predicted == digits[1][1500:]).float().mean() > 0.85  # chance is 0.1


def test_the_pipeline_reads_images_with_what_was_saved(digits, classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    best = classify(digits[0][1500], top_k=1)[0]
    with torch.no_grad():
        logits = classifier(pixel_values=pixels([digits[0][1500]])).logits[0]
    assert best["label"] == f"digit {int(logits.argmax())}"
    assert best["score"] == pytest.approx(float(F.softmax(logits, 0).max()), abs=1e-5)
