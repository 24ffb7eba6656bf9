"""Image reconstruction: autoencoders that draw from relative representations, by themselves and stitched."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeModel,
    RelativeModelForImageClassification,
    RelativeModelForImageReconstruction,
    compatibility,
    stitch,
    stitching_matrix,
)
from hf_relreps.decoders import DRAWING_MODULES, Drawing, reconstruction_loss
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import ConfigurationError, EvaluationError, SampleError, StitchingError
from tests.training import tiny_trainer


SIZE, KINDS = 8, ("image", "variational")  # side of scikit-learn's digits
SHAPE = {"decoder_widths": [32, 16], "decoder_hidden_size": 32}


@pytest.fixture(scope="module")
def digits() -> list[Image.Image]:
    """1,797 real handwritten digits of 8x8 pixels."""
    return [Image.fromarray(image) for image in (load_digits().images / 16 * 255).astype(np.uint8)]


@pytest.fixture(scope="module")
def x_NCHW(digits) -> torch.Tensor:
    return image_processor(SIZE)(images=digits, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def rows(x_NCHW) -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": x_CHW} for x_CHW in x_NCHW[:1500]]


@pytest.fixture(scope="module")
def anchors(digits) -> AnchorSet:
    return AnchorSet([f"digit-{i}" for i in range(100)], {"image": digits[:100]})


def make_encoder(seed: int = 0, **config: Any) -> ConvEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvEncoder(ConvEncoderConfig(**{"image_size": SIZE, "widths": [16, 32]} | config)).eval()


def make_model(anchors: AnchorSet, seed: int = 0, **settings: Any) -> RelativeModelForImageReconstruction:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RelativeModelForImageReconstruction.from_encoder(
            make_encoder(seed), anchors.view("image"), image_processor(SIZE), pooling="pooler", **SHAPE | settings
        ).eval()


def drawn(model: RelativeModelForImageReconstruction, x_BCHW: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=x_BCHW).reconstruction


def error(model: RelativeModelForImageReconstruction, x_BCHW: torch.Tensor) -> float:
    return float((drawn(model, x_BCHW) - x_BCHW).square().mean())


@pytest.fixture(scope="module")
def trained(anchors, rows, tmp_path_factory) -> dict[str, list[RelativeModelForImageReconstruction]]:
    """Of each kind two models, trained by the `Trainer` from seeds that no other shares."""

    def train(kind: str, seed: int) -> RelativeModelForImageReconstruction:
        model = make_model(anchors, seed, decoder_type=kind)
        folder = tmp_path_factory.mktemp(f"{kind}-{seed}")
        refresh = AnchorCallback(anchors.view("image"), batch_size=100)
        settings = {"max_steps": 240, "per_device_train_batch_size": 32, "seed": seed, "max_grad_norm": 10.0}
        with torch.random.fork_rng(devices=[]):
            tiny_trainer(model, None, rows, folder, refresh, **settings).train()
        return model.eval()

    return {kind: [train(kind, 10 * i + j + 1) for j in range(2)] for i, kind in enumerate(KINDS)}


# -- what is drawn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 9, 28, 32, 33, 45])
def test_images_of_any_side_are_drawn(kind, size):
    settings = {"decoder_type": kind, "image_size": size, "num_channels": 1, "decoder_widths": [16, 8, 8, 4]}
    decoder = RelativeDecoder(RelativeConfig(num_anchors=20, **settings)).eval()
    images = decoder(torch.rand(3, 20)).reconstruction
    assert images.shape == (3, 1, size, size)
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [28, 33])
def test_a_model_draws_what_its_processor_makes_without_being_told_the_side(kind, size, digits, anchors):
    model = RelativeModelForImageReconstruction.from_encoder(
        make_encoder(), anchors.view("image"), image_processor(size), decoder_type=kind, **SHAPE
    )
    assert (model.config.decoder.image_size, model.config.decoder.num_channels) == (size, 3)
    inputs = image_processor(size)(images=digits[:4], return_tensors="pt")
    output = model(**inputs)
    assert output.reconstruction.shape == inputs["pixel_values"].shape
    assert output.relative_embeds.shape == (4, 100)
    assert output.loss.isfinite()


def test_what_is_left_out_suits_drawing_and_what_is_given_stays(anchors):
    assert make_model(anchors).config.decoder.decoder_type == "image"
    assert make_model(anchors).config.decoder.decoder_noise == 0
    noisy = make_model(anchors, decoder_type="variational", decoder_noise=0.3).config.decoder
    assert (noisy.decoder_type, noisy.decoder_noise) == ("variational", 0.3)
    paper = make_model(anchors, config=RelativeConfig.paper()).config.decoder
    assert (paper.space.similarity, paper.decoder_type, paper.decoder_noise) == (("cosine",), "image", 0)
    whole = RelativeConfig(decoder_type="variational", decoder_noise=0.2, image_size=SIZE)
    assert make_model(anchors, config=whole).config.decoder.decoder_noise == 0.2


def test_a_new_decoder_on_a_relative_encoder_draws_what_that_reads(anchors, x_NCHW):
    encoder = RelativeModel.from_encoder(make_encoder(), anchors.view("image"), image_processor(SIZE))
    model = RelativeModelForImageReconstruction.from_encoder(encoder, **SHAPE).eval()
    own, given = model.encoder.backbone.parameters(), encoder.backbone.parameters()
    assert all(one is other for one, other in zip(own, given, strict=True))
    assert drawn(model, x_NCHW[:2]).shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_alone_is_drawn_as_in_a_batch(kind, trained, x_NCHW):
    model = trained[kind][0]
    alone = torch.cat([drawn(model, x_CHW[None]) for x_CHW in x_NCHW[:5]])
    torch.testing.assert_close(alone, drawn(model, x_NCHW[:5]))


def test_a_variational_decoder_samples_in_training_and_takes_the_mean_in_evaluation(anchors, x_NCHW):
    model = make_model(anchors, decoder_type="variational")
    assert torch.equal(drawn(model, x_NCHW[:4]), drawn(model, x_NCHW[:4]))
    model.decoder.train()
    assert not torch.equal(drawn(model, x_NCHW[:4]), drawn(model, x_NCHW[:4]))
    plain = make_model(anchors)
    plain.decoder.train()
    assert torch.equal(drawn(plain, x_NCHW[:4]), drawn(plain, x_NCHW[:4]))


def test_a_model_can_be_copied_after_a_training_step_without_loss(anchors, x_NCHW):
    model = make_model(anchors, decoder_type="variational").train()
    model(pixel_values=x_NCHW[:4], return_loss=False)
    copied = copy.deepcopy(model).eval()
    assert torch.equal(drawn(copied, x_NCHW[:4]), drawn(model.eval(), x_NCHW[:4]))


# -- the loss


def test_the_loss_is_the_likelihood_of_a_gaussian_with_the_best_variance():
    generator = torch.Generator().manual_seed(0)
    images, target = torch.rand(2, 4, 3, 8, 8, generator=generator)
    variance = (images - target).square().mean()
    density = torch.distributions.Normal(images, variance.sqrt())
    constant = 0.5 * 3 * 64 * (1 + torch.log(torch.tensor(2 * torch.pi)))
    expected = -density.log_prob(target).sum() / 4 - constant
    torch.testing.assert_close(reconstruction_loss(images, target), expected)
    assert reconstruction_loss(target, target).isfinite()


def test_the_divergence_is_that_of_a_gaussian_from_the_standard_one_and_counts_in_training_only():
    config = RelativeDecoderConfig(num_anchors=20, decoder_type="variational", image_size=SIZE, **SHAPE)
    torch.manual_seed(0)
    drawing = DRAWING_MODULES["variational"](config, 20).train()
    h_BR = torch.randn(6, 20)
    deviation = (drawing.log_variance(h_BR) / 2).exp()
    standard = torch.distributions.Normal(0.0, 1.0)
    found = torch.distributions.Normal(drawing.mean(h_BR), deviation)
    expected = torch.distributions.kl_divergence(found, standard).sum(-1).mean()
    result = drawing(h_BR)
    torch.testing.assert_close(result.divergence, expected)
    target = torch.rand_like(result.images)
    torch.testing.assert_close(result.loss(target), reconstruction_loss(result.images, target) + expected)
    assert drawing.eval()(h_BR).divergence is None


def test_a_target_takes_the_place_of_what_the_encoder_reads(trained, x_NCHW):
    model, x_BCHW = trained["image"][0], x_NCHW[:8]
    with torch.no_grad():
        alike = model(pixel_values=x_BCHW, target=x_BCHW).loss
        torch.testing.assert_close(model(pixel_values=x_BCHW).loss, alike)
        assert model(pixel_values=x_BCHW, target=1 - x_BCHW).loss > alike + 50


@pytest.mark.parametrize(("shift", "found"), [(-0.5, r"\[-0\.50, 0\.50\]"), (1.0, r"\[1\.00, 2\.00\]")])
def test_pixels_outside_zero_and_one_are_refused_with_their_range(shift, found, anchors, x_NCHW):
    model = make_model(anchors)
    with pytest.raises(SampleError, match=rf"{found}, expected \[0, 1\]\. .*do_normalize=False.*target="):
        model(pixel_values=x_NCHW[:20] + shift)
    with pytest.raises(SampleError, match=found):
        model(pixel_values=x_NCHW[:20], target=x_NCHW[:20] + shift)
    with pytest.raises(SampleError, match="nan"):
        model(pixel_values=x_NCHW[:2], target=torch.full((2, 3, SIZE, SIZE), torch.nan))
    assert drawn(model, x_NCHW[:20]).shape == (20, 3, SIZE, SIZE)
    shifted = model(pixel_values=x_NCHW[:20] + shift, return_loss=False)
    assert shifted.loss is None
    assert shifted.reconstruction.shape == (20, 3, SIZE, SIZE)


def test_images_of_another_side_than_the_decoder_draws_are_refused(anchors):
    model = make_model(anchors, image_size=16)
    with pytest.raises(
        SampleError,
        match=r"reconstructs images of shape \(3, 16, 16\), but the targets have shape \(3, 8, 8\)\..*image_",
    ):
        model(pixel_values=torch.rand(2, 3, SIZE, SIZE))


def test_an_unknown_input_is_refused_and_classes_beside_the_images_are_not_used(anchors, x_NCHW):
    model = make_model(anchors)
    with pytest.raises(TypeError, match="ConvEncoder takes no input_ids. Its inputs are pixel_values"):
        model(pixel_values=x_NCHW[:2], input_ids=torch.ones(2, 3))
    classes = torch.tensor([3, 4])
    assert torch.equal(model(pixel_values=x_NCHW[:2], labels=classes).loss, model(pixel_values=x_NCHW[:2]).loss)


# -- what cannot be built


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_decoder_of_classes_is_refused_where_images_are_drawn(kind, anchors):
    with pytest.raises(ConfigurationError, match=f"{kind}.* Choose one of image, variational"):
        make_model(anchors, decoder_type=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_of_images_is_refused_where_classes_are_told(kind, anchors):
    with pytest.raises(ConfigurationError, match=f"{kind}.* Choose one of mlp, linear"):
        RelativeModelForImageClassification.from_encoder(
            make_encoder(), anchors.view("image"), image_processor(SIZE), decoder_type=kind, num_labels=10
        )


def test_a_processor_of_images_that_are_not_square_is_refused(anchors):
    wide = image_processor(SIZE)
    wide.size = {"height": 8, "width": 16}
    with pytest.raises(ConfigurationError, match="images of 8 x 16 pixels, but the decoder needs square ones"):
        RelativeModelForImageReconstruction.from_encoder(make_encoder(), anchors.view("image"), wide)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size=0 must be a whole number, 1 or more"),
        ({"num_channels": 0}, "num_channels=0 must be a whole number"),
        ({"decoder_widths": []}, r"decoder_widths=\[\] must be a list of positive numbers, one for each step"),
        ({"decoder_widths": [8, 0]}, r"decoder_widths=\[8, 0\] must be a list of positive numbers, one for each step"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        RelativeConfig(num_anchors=4, decoder_type="image", **settings)


# -- training and stitching


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_a_gradient(kind, anchors, x_NCHW):
    model = make_model(anchors, decoder_type=kind).train()
    model(pixel_values=x_NCHW[:50]).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("kind", KINDS)
def test_training_draws_new_images_far_better_than_the_mean_image(kind, trained, x_NCHW):
    mean_image = float((x_NCHW[:1500].mean(0) - x_NCHW[1500:]).square().mean())
    for model in trained[kind]:
        assert error(model, x_NCHW[1500:]) < 0.5 * mean_image


@pytest.mark.parametrize("kind", KINDS)
def test_the_trained_anchors_are_the_trained_encoders_own(kind, trained, anchors):
    encoder = trained[kind][0].encoder
    torch.testing.assert_close(encoder.projection.anchors_AD, encoder.encode(anchors.view("image").samples))


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_stitched_to_its_own_encoder_draws_the_same(kind, trained, x_NCHW):
    model = trained[kind][0]
    whole = stitch(model.encoder, model.decoder)
    assert type(whole) is RelativeModelForImageReconstruction
    assert torch.equal(drawn(whole, x_NCHW[:10]), drawn(model, x_NCHW[:10]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_draws_what_an_encoder_of_another_seed_reads(kind, trained, x_NCHW):
    one, other = trained[kind]
    own = error(one, x_NCHW[1500:])
    assert error(stitch(other, one), x_NCHW[1500:]) < 1.5 * own


class AbsoluteAutoencoder(nn.Module):
    """The control: the same encoder and decoder with a linear map where the projection was."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.encoder = make_encoder(seed)
        torch.manual_seed(seed)
        self.bottleneck = nn.Linear(128, 100)
        self.decoder = DRAWING_MODULES["image"](
            RelativeDecoderConfig(decoder_type="image", image_size=SIZE, **SHAPE), 100
        )

    def draw(self, pixel_values: torch.Tensor, decoder: nn.Module) -> Drawing:
        return decoder(self.bottleneck(self.encoder(pixel_values).pooler_output))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.draw(pixel_values, self.decoder).loss(pixel_values)}


def test_without_a_projection_decoders_of_two_seeds_cannot_be_exchanged(trained, rows, x_NCHW, tmp_path):
    models = []
    for seed in (31, 32):
        with torch.random.fork_rng(devices=[]):
            models.append(AbsoluteAutoencoder(seed))
            settings = {"max_steps": 240, "per_device_train_batch_size": 32, "seed": seed, "max_grad_norm": 10.0}
            tiny_trainer(models[-1], None, rows, tmp_path / str(seed), **settings).train()
    one, other = (model.eval() for model in models)
    x_BCHW = x_NCHW[1500:]
    mean_image = float((x_NCHW[:1500].mean(0) - x_BCHW).square().mean())
    with torch.no_grad():
        own = float((one.draw(x_BCHW, one.decoder).images - x_BCHW).square().mean())
        stitched = float((other.draw(x_BCHW, one.decoder).images - x_BCHW).square().mean())
    relative = error(stitch(trained["image"][1], trained["image"][0]), x_BCHW)
    assert own < 0.5 * mean_image
    assert stitched > 0.9 * mean_image
    assert relative < 0.4 * stitched


def test_decoders_of_other_anchors_or_another_projection_are_refused(trained, anchors, digits):
    model = trained["image"][0]
    others = AnchorSet([f"digit-{i}" for i in range(100, 200)], {"image": digits[100:200]})
    with pytest.raises(StitchingError, match="encoder.encode_anchors"):
        stitch(make_model(others), model)
    with pytest.raises(StitchingError, match="similarity"):
        stitch(make_model(anchors, config=RelativeConfig.paper()), model)


def test_looking_before_stitching_names_what_is_drawn_and_asks_for_no_classes(trained, digits):
    one, other = trained["image"]
    report = compatibility(other, one)
    assert report.fits
    assert "images of 8 x 8 pixels" in str(report)
    with pytest.raises(EvaluationError, match="reconstructs images and has no classes to agree on"):
        compatibility(other, one, own_encoder=one, pairs=(digits[200:210], digits[200:210]))


def test_a_matrix_of_labels_refuses_decoders_that_draw(trained, digits):
    models = {"one": trained["image"][0]}
    with pytest.raises(
        EvaluationError, match="Decoder 'one' reconstructs images, which cannot be scored with labels.*square"
    ):
        stitching_matrix(models, models, {"image": digits[:10], "label": [0, 1] * 5}, progress=False)


# -- saving


@pytest.mark.parametrize("kind", KINDS)
def test_an_upload_opens_whole_and_in_parts(kind, trained, x_NCHW, tmp_path):
    model, other = trained[kind]
    model.save_pretrained(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")} >= {
        *("encoder/config.json", "encoder/model.safetensors", "decoder/config.json", "decoder/model.safetensors"),
        *("anchors/anchors.parquet", "anchors/anchor_set.json"),
    }
    expected = drawn(model, x_NCHW[:10])
    loaded = RelativeModelForImageReconstruction.from_pretrained(tmp_path).eval()
    assert torch.equal(drawn(loaded, x_NCHW[:10]), expected)
    assert torch.equal(drawn(stitch(model.encoder, str(tmp_path)), x_NCHW[:10]), expected)
    decoder = RelativeDecoder.from_pretrained(tmp_path, subfolder="decoder").eval()
    assert torch.equal(drawn(stitch(other, decoder), x_NCHW[:10]), drawn(stitch(other, model), x_NCHW[:10]))


def test_a_pushed_autoencoder_draws_the_same_when_pulled(trained, x_NCHW, repo_id):
    model = trained["image"][0]
    model.push_to_hub(repo_id)
    pulled = RelativeModelForImageReconstruction.from_pretrained(repo_id).eval()
    assert torch.equal(drawn(pulled, x_NCHW[:10]), drawn(model, x_NCHW[:10]))
    decoder = RelativeDecoder.from_pretrained(repo_id, subfolder="decoder")
    assert torch.equal(drawn(stitch(trained["image"][1], decoder), x_NCHW[:4]), drawn(_stitched(trained), x_NCHW[:4]))


def _stitched(trained: dict[str, list[RelativeModelForImageReconstruction]]) -> RelativeModelForImageReconstruction:
    return stitch(trained["image"][1], trained["image"][0])


# -- the Trainer


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainer_evaluates_without_labels_and_the_loss_falls(kind, anchors, rows, x_NCHW, tmp_path):
    model = make_model(anchors, 7, decoder_type=kind)
    refresh = AnchorCallback(anchors.view("image"), batch_size=100)
    held_out = [{"pixel_values": x_CHW} for x_CHW in x_NCHW[1500:1600]]
    trainer = tiny_trainer(model, None, rows, tmp_path, refresh, eval_rows=held_out, max_steps=40)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 20
    with torch.no_grad():
        assert model.eval()(pixel_values=x_NCHW[1500:1508]).loss < 0


def test_metrics_see_the_images_where_label_names_say_what_they_compare_with(anchors, rows, tmp_path):
    def squared_error(prediction: Any) -> dict[str, float]:
        return {"mse": float(np.square(prediction.predictions - prediction.label_ids).mean())}

    model = make_model(anchors)
    settings = {"label_names": ["pixel_values"], "compute_metrics": squared_error, "eval_rows": rows[:20]}
    found = tiny_trainer(model, None, rows, tmp_path, **settings).evaluate()
    x_BCHW = torch.stack([row["pixel_values"] for row in rows[:20]])
    assert found["eval_mse"] == pytest.approx(error(model, x_BCHW), rel=1e-4)
    assert found["eval_loss"] < 0


def test_a_data_set_with_a_column_of_classes_trains(anchors, digits, tmp_path):
    pixels_NCHW = image_processor(SIZE)(images=digits[:64], return_tensors="np")["pixel_values"]
    dataset = Dataset.from_dict({"pixel_values": pixels_NCHW, "label": [0, 1] * 32}).with_format("torch")
    assert set(dataset.column_names) == {"pixel_values", "label"}
    trainer = tiny_trainer(make_model(anchors), None, dataset, tmp_path, AnchorCallback(), eval_rows=dataset)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])
