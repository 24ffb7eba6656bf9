"""Image processors: an upload prepares images as when it was made, and those of timm models are saved."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from files import change
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor, ViTImageProcessorPil
from transformers.utils import is_torchvision_available

from hf_relreps import AnchorSet, RelativeModel
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import AnchorError, ConfigurationError
from hf_relreps.image_processors import like_timm, savable


SIZE = 8
TIMM = {  # as timm describes how a model wants its images
    "input_size": (3, 24, 24),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [photo(8 + i, 12) for i in range(12)]


@pytest.fixture(scope="module")
def anchors(images) -> AnchorSet:
    return AnchorSet([f"photo-{i}" for i in range(12)], {"image": images})


def make_encoder() -> ConvEncoder:
    return ConvEncoder(ConvEncoderConfig(image_size=SIZE, widths=[16, 32])).eval()


# -- with PIL or with torchvision


@pytest.fixture
def saved(anchors, tmp_path) -> Path:
    RelativeModel.from_encoder(make_encoder(), anchors.view("image"), image_processor(SIZE)).save_pretrained(tmp_path)
    return tmp_path


def test_images_are_prepared_as_when_the_upload_was_made(saved):
    """transformers alone takes torchvision wherever it is installed, and resizes differently."""
    assert json.loads((saved / "encoder/config.json").read_text("utf-8"))["image_backend"] == "pil"
    assert RelativeModel.from_pretrained(saved).processor.backend == "pil"


def test_an_upload_whose_backend_is_missing_says_so(saved, images, caplog):
    if is_torchvision_available():
        pytest.skip("torchvision is installed")
    change(saved / "encoder/config.json", image_backend="torchvision")
    assert len(RelativeModel.from_pretrained(saved).encode(images[:2])) == 2
    assert "were prepared by torchvision, which is not installed here" in caplog.text


def test_an_unknown_backend_is_refused(saved):
    change(saved / "encoder/config.json", image_backend="mine")
    with pytest.raises(ConfigurationError, match="image_backend='mine'"):
        RelativeModel.from_pretrained(saved)


def test_torchvision_is_taken_again_where_it_was_taken(anchors, tmp_path):
    pytest.importorskip("torchvision", exc_type=Exception)
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    RelativeModel.from_encoder(make_encoder(), anchors.view("image"), processor).save_pretrained(tmp_path)
    assert RelativeModel.from_pretrained(tmp_path).processor.backend == "torchvision"


def test_a_view_of_another_modality_is_refused_with_those_that_fit(anchors):
    both = anchors.add_view("text", [f"photo {i}" for i in range(12)])
    with pytest.raises(AnchorError, match=r"reads images, but the view 'text' contains texts\. .*there is 'image'"):
        RelativeModel.from_encoder(make_encoder(), both.view("text"), image_processor(SIZE))


# -- of timm models


@pytest.mark.parametrize("size", [(40, 60), (90, 40), (27, 27)])
def test_the_centre_is_cut_out_as_timm_does(size):
    image = photo(*size)
    found = like_timm(TIMM)(images=image, return_tensors="np")["pixel_values"][0]
    scale = math.floor(24 / 0.875) / min(size)
    wide = image.resize([int(side * scale) for side in size], Image.Resampling.BICUBIC)
    left, top = ((side - 24) // 2 for side in wide.size)
    pixels = np.asarray(wide.crop((left, top, left + 24, top + 24)), dtype=np.float64) / 255
    expected = (pixels - TIMM["mean"]) / TIMM["std"]
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)


def test_squashed_images_keep_their_edges():
    found = like_timm(TIMM | {"crop_mode": "squash", "crop_pct": 1.0, "input_size": (3, 24, 32)})
    assert found(images=photo(60, 40), return_tensors="np")["pixel_values"].shape == (1, 3, 24, 32)
    assert (found.size.height, found.size.width) == (24, 32)


@pytest.mark.parametrize(
    "settings",
    [{"crop_mode": "border"}, {"input_size": (3, 24, 32)}, {"input_size": (1, 24, 24)}, {"interpolation": "x"}],
)
def test_what_no_other_processor_does_is_refused_with_what_to_pass(settings):
    with pytest.raises(ConfigurationError, match="Pass an image processor of transformers"):
        like_timm(TIMM | settings)


def test_other_processors_stay_as_they_are():
    processor = ViTImageProcessorPil()
    assert savable(processor) is processor


def test_a_timm_model_is_saved_with_a_processor(tmp_path):
    pytest.importorskip("timm", exc_type=Exception)
    from transformers import TimmWrapperConfig, TimmWrapperImageProcessor, TimmWrapperModel

    inner = TimmWrapperModel(TimmWrapperConfig(architecture="test_resnet", do_pooling=True))
    own = TimmWrapperImageProcessor(pretrained_cfg=inner.timm_model.pretrained_cfg, architecture="test_resnet")
    images = [photo(200 + 8 * i, 180) for i in range(6)]
    view = AnchorSet([f"photo-{i}" for i in range(6)], {"image": images}).view("image")
    model = RelativeModel.from_encoder(inner, view, own).eval()
    x, expected = (one(images=images, return_tensors="pt")["pixel_values"] for one in (model.processor, own))
    torch.testing.assert_close(x, expected, atol=0.02, rtol=0)
    model.save_pretrained(tmp_path)
    assert torch.equal(RelativeModel.from_pretrained(tmp_path).encode(images), model.encode(images))
    assert AutoImageProcessor.from_pretrained(tmp_path) is not None  # for a pipeline
