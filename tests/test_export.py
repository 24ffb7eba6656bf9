"""A stitched model outside of this library: equal answers by `torch.export` and ONNX, close ones in int8."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training import tiny_trainer

from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForImageReconstruction, stitch
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import ConfigurationError
from hf_relreps.exporting import export_onnx, export_program, output_names


LONGER = ["petit chat ici", "rouge", "vieux pain la petit chat ici", "bon bus la", "velo"]


@pytest.fixture(scope="module")
def stitched(make_model: Any, make_dataset: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The encoder of one trained model, the decoder of another."""
    models = make_model(0, "en"), make_model(1, "fr")
    for model, view in zip(models, ("en", "fr"), strict=True):
        folder = tmp_path_factory.mktemp(view)
        rows = make_dataset(view)
        tiny_trainer(model, tokenizer, rows, folder, AnchorCallback(), max_steps=60, learning_rate=5e-3).train()
    return stitch(models[1].eval(), models[0].eval())


@pytest.fixture(scope="module")
def drawing() -> Any:
    pixels = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    view = AnchorSet(list("abcd"), {"image": [Image.fromarray(one) for one in pixels]}).view("image")
    torch.manual_seed(0)
    encoder = ConvEncoder(ConvEncoderConfig(image_size=12, num_channels=1, widths=[4, 8]))
    return RelativeModelForImageReconstruction.from_encoder(
        encoder, view, image_processor(12), pooling="pooler", decoder_widths=[8, 4]
    ).eval()


def expected_of(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs)[output_names(model)[0]]


def test_an_exported_program_gives_the_same_for_any_batch_and_length(stitched):
    program = export_program(stitched)
    for texts in (["chat"], LONGER):
        inputs = stitched.processor(texts, return_tensors="pt", padding=True)
        found = program.module()(**inputs)
        torch.testing.assert_close(found, expected_of(stitched, inputs), atol=1e-4, rtol=1e-4)


def test_a_saved_program_runs_without_this_library(stitched, tmp_path):
    torch.export.save(export_program(stitched), tmp_path / "model.pt2")
    inputs = dict(stitched.processor(LONGER, return_tensors="pt", padding=True))
    torch.save(inputs, tmp_path / "inputs.pt")
    lines = [
        "import sys, torch",
        f"program = torch.export.load({str(tmp_path / 'model.pt2')!r}).module()",
        f"inputs = torch.load({str(tmp_path / 'inputs.pt')!r})",
        "print(*program(**inputs).argmax(-1).tolist())",
        "assert not [name for name in sys.modules if name.startswith(('hf_relreps', 'transformers'))]",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(map(int, done.stdout.split())) == expected_of(stitched, inputs).argmax(-1).tolist()


def test_a_model_that_draws_is_exported_too(drawing):
    program = export_program(drawing)
    pixels = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    found = program.module()(pixel_values=pixels)
    assert output_names(drawing) == ["reconstruction"]
    torch.testing.assert_close(found, expected_of(drawing, {"pixel_values": pixels}), atol=1e-5, rtol=1e-4)


def test_exporting_leaves_the_model_as_it_was(stitched):
    stitched.train()
    try:
        export_program(stitched)
        assert stitched.training
    finally:
        stitched.eval()


def test_onnx_gives_the_same_for_any_batch_and_length(stitched, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    file = export_onnx(stitched, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [place.name for place in session.get_outputs()] == ["logits"]
    assert all(place.shape == ["batch", "tokens"] for place in session.get_inputs())
    for texts in (["chat"], LONGER):
        inputs = stitched.processor(texts, return_tensors="np", padding=True)
        wanted = {place.name: inputs[place.name] for place in session.get_inputs()}
        found = session.run(["logits"], wanted)[0]
        tensors = {name: torch.tensor(value) for name, value in wanted.items()}
        np.testing.assert_allclose(found, expected_of(stitched, tensors), atol=1e-4, rtol=1e-4)


def test_int8_answers_alike(stitched, texts, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    before = {name: tensor.clone() for name, tensor in stitched.state_dict().items()}
    file = export_onnx(stitched, tmp_path / "model.onnx", int8=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = stitched.processor(texts["fr"], return_tensors="pt", padding=True)
    wanted = {place.name: inputs[place.name].numpy() for place in session.get_inputs()}
    found_NC, own_NC = session.run(["logits"], wanted)[0], expected_of(stitched, inputs).numpy()
    assert (own_NC.argmax(-1) == found_NC.argmax(-1)).mean() > 0.9  # by chance 0.33
    assert 0 < np.abs(own_NC - found_NC).max() < 0.2 * np.ptp(own_NC)
    assert len(multiplied_in_int8(file)) > 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in stitched.state_dict().items())
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


def multiplied_in_int8(file: Path) -> list[str]:
    import onnx

    return [node.name for node in onnx.load(file).graph.node if node.op_type == "MatMulInteger"]


def test_int8_of_a_model_that_draws_is_close(drawing, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    file = export_onnx(drawing, tmp_path / "model.onnx", int8=True)
    pixels = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(["reconstruction"], {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(found, expected_of(drawing, {"pixel_values": pixels}), atol=0.05)


def test_nodes_are_refused(stitched):
    class OfNodes:
        config = type("Config", (), {"modality": "node"})()

    with pytest.raises(ConfigurationError, match="nodes of one graph"):
        export_program(OfNodes())


def test_absence_of_onnx_names_the_extra(stitched, monkeypatch):
    from hf_relreps import exporting
    from hf_relreps.errors import MissingExtraError

    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"hf_relreps\[onnx\]"):
        export_onnx(stitched, Path("never.onnx"))


def test_absence_of_onnxruntime_is_told_before_int8(stitched, monkeypatch):
    from hf_relreps import exporting
    from hf_relreps.errors import MissingExtraError

    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(MissingExtraError, match=r"hf_relreps\[onnx\]"):
        export_onnx(stitched, Path("never.onnx"), int8=True)
