"""Whole models for places without this library: `torch.export`, and ONNX, in int8 too.

A stitched model is exported like any other: its anchors become constants of the program.
Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_relreps.backbones import evaluating
from hf_relreps.configuration import IMAGE_DECODERS, OF_TOKENS, PAIR
from hf_relreps.errors import ConfigurationError, MissingExtraError
from hf_relreps.modeling import RelativeTaskModel
from hf_relreps.samples import batches
from hf_relreps.words import Word


EXAMPLES = 3  # a batch of one would fix its size in the program
LONGEST = 1_000_000  # what tokenizers give that know no limit is larger


class _Whole(nn.Module):
    """The model with one tensor as its output, or with those of several decoders by name."""

    def __init__(self, model: RelativeTaskModel) -> None:
        super().__init__()
        self.model = model
        self.output = "reconstruction" if model.config.decoder.decoder_type in IMAGE_DECODERS else "logits"
        self.settings = {"return_loss": False} if self.output == "reconstruction" else {}

    def forward(  # torch.export wants names
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= {"pixel_values": pixel_values, "input_values": input_values, "input_features": input_features}
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        return getattr(self.model(**given, **self.settings), self.output)


def output_names(model: RelativeTaskModel) -> list[str]:
    """Names of the outputs of the exported program.

    One, ``logits`` (B, C) or ``reconstruction`` (B, C, H, W); of a `RelativeModelWithDecoders` those of its decoders.

    A model of tokens gives logits (B, T, C).

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.exporting import output_names
        >>> output_names(english)
        ['logits']
        >>> output_names(stitch(french, {"section": english, "group": decoder}))
        ['group', 'section']

        ```
    """
    if model.config.decoder.decoder_type in IMAGE_DECODERS:
        return ["reconstruction"]
    return list(model.config.decoder.questions) or ["logits"]


@torch.no_grad()
def export_program(model: RelativeTaskModel) -> torch.export.ExportedProgram:
    """A whole model as a program of `torch.export`, for any batch size and any length of texts that it reads.

    The program takes the outputs of the model's processor as keyword arguments and returns one tensor, or of a
    `RelativeModelWithDecoders` one for each decoder by its name. Save it with ``torch.export.save``; it runs without
    this library.

    Args:
        model: A whole model, stitched or not, with its processor and its anchors: the first of these are the example
            that the program is traced with.

    Raises:
        ConfigurationError: If the model reads nodes, whose graph would be fixed in the program, or two texts one after
            the other.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.exporting import export_program
        >>> model = stitch("me/relative-fr", "me/relative-en")
        >>> program = export_program(model)
        >>> program.module()(**tokenizer(["un jeu de cartes"], return_tensors="pt")).shape
        torch.Size([1, 11])
        >>> torch.export.save(program, "french.pt2")

        ```
    """
    inputs = _example(model)
    with evaluating(model):
        whole = _Whole(model).eval()
        assert model.encoder.projection.frame  # now: in the program it is a constant, not a factorisation
        sizes = {name: _sizes(tensor, model) for name, tensor in inputs.items()}
        return torch.export.export(whole, (), kwargs=inputs, dynamic_shapes=sizes, strict=False)


def export_onnx(model: RelativeTaskModel, file: str | Path, *, int8: bool = False) -> Path:
    """A whole model as an ONNX file, made by `export_program`; `output_names` gives the names of its outputs.

    Args:
        model: As for `export_program`.
        file: Where to save it; large weights are saved in a second file next to it.
        int8: Whether weights are stored and multiplied in int8: a quarter of the size, faster on a CPU, and slightly
            different outputs. The documentation says by how much.

    Raises:
        ConfigurationError: If the model reads nodes, or two texts one after the other.
        MissingExtraError: If onnx and onnxscript are not installed, or for int8 onnxruntime.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> import onnxruntime
        >>> from hf_relreps.exporting import export_onnx
        >>> file = export_onnx(stitch("me/relative-fr", "me/relative-en"), "french.onnx", int8=True)
        >>> inputs = dict(tokenizer(["un jeu de cartes"], return_tensors="np"))
        >>> onnxruntime.InferenceSession(file).run(["logits"], inputs)[0].shape
        (1, 11)

        ```
    """
    needed = ["onnx", "onnxscript", *(["onnxruntime"] if int8 else [])]
    if any(find_spec(package) is None for package in needed):
        raise MissingExtraError("The ONNX export needs extra packages. Install them: pip install 'hf_relreps[onnx]'.")
    if not int8:
        return _in_float(model, Path(file))
    with tempfile.TemporaryDirectory() as folder:
        return _in_int8(_in_float(model, Path(folder, "float.onnx")), Path(file))


def _in_float(model: RelativeTaskModel, file: Path) -> Path:
    program, inputs = export_program(model), _example(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        made: Any = torch.onnx.export(
            program,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=output_names(model),
            dynamic_shapes={name: _sizes(tensor, model) for name, tensor in inputs.items()},
            verbose=False,
        )
    made.save(str(file))
    return file


def _in_int8(whole: Path, file: Path) -> Path:
    """Weights once, a scale for each row; what is multiplied with them as it comes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = whole.with_name("prepared.onnx")
    large = any(one.suffix != ".onnx" for one in whole.parent.iterdir())  # weights beside the file: above 2 GB
    quant_pre_process(whole, prepared, skip_symbolic_shape=True, save_as_external_data=large)
    # Unsigned: signed weights overflow on processors without VNNI.
    quantize_dynamic(prepared, file, weight_type=QuantType.QUInt8, per_channel=True, use_external_data_format=large)
    return file


def _example(model: RelativeTaskModel) -> dict[str, Tensor]:
    """What the processor makes of the first anchors."""
    _refuse_nodes(model)
    samples = list(model.anchors.view(model.config.anchor_view).samples[:EXAMPLES])
    samples += samples[:1] * (EXAMPLES - len(samples))
    samples = [" ".join(sample.words) if isinstance(sample, Word) else sample for sample in samples]
    ((_, inputs),) = batches(samples, model.processor, EXAMPLES, model.config.encoder.max_length)
    names = inspect.signature(_Whole.forward).parameters
    return {name: tensor.to(model.device) for name, tensor in inputs.items() if name in names}


def _sizes(tensor: Tensor, model: RelativeTaskModel) -> dict[int, Any]:
    """Which sizes of an input may change: the batch, and the length of texts."""
    sizes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if model.config.modality in OF_TOKENS and tensor.ndim == 2:
        longest = min(getattr(model.processor, "model_max_length", LONGEST), _positions(model), LONGEST)
        sizes[1] = torch.export.Dim("tokens", max=int(longest))
    return sizes


def _positions(model: RelativeTaskModel) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONGEST


def _refuse_nodes(model: RelativeTaskModel) -> None:
    if model.config.modality == "node":
        raise ConfigurationError(
            "The model reads nodes of one graph, which would become part of the exported program. Only models of "
            "texts, images and sounds can be exported."
        )
    if model.config.decoder.decoder_type == PAIR:
        raise ConfigurationError(
            "The model reads two texts one after the other, for which there is no exported program. Export one that "
            "reads both at once: RelativeModelForSequenceClassification with anchors that are pairs."
        )
