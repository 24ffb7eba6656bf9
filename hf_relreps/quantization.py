"""Encoders whose weights a library has quantized: how that travels with an upload, and is read again.

Only settings that are known are read from an upload: numbers, switches and names of modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from hf_relreps.errors import ConfigurationError, MissingExtraError, RelrepsError


METHOD = "bitsandbytes"  # whose weights can be stored and read again
DTYPES = ("float16", "bfloat16", "float32")
# Its settings that are kept: the type of each, or the values that it may have.
SETTINGS: dict[str, Any] = {
    "load_in_8bit": bool,
    "load_in_4bit": bool,
    "llm_int8_threshold": float,
    "llm_int8_skip_modules": list,
    "llm_int8_has_fp16_weight": bool,
    "bnb_4bit_quant_type": ("fp4", "nf4"),
    "bnb_4bit_use_double_quant": bool,
    "bnb_4bit_compute_dtype": DTYPES,
    "bnb_4bit_quant_storage": ("uint8", *DTYPES),
}


def quantization_of(encoder: nn.Module, backbone: nn.Module) -> dict[str, Any] | None:
    """The settings by which an encoder's weights were quantized, to be stored with them; ``None`` if they were not.

    Args:
        encoder: The `RelativeModel`.
        backbone: The wrapped model inside it, under the name ``backbone``.

    Raises:
        ConfigurationError: If the weights are of a kind that an upload cannot hold.
    """
    quantizers = [getattr(model, "hf_quantizer", None) for model in (encoder, backbone)]
    method: str | None = "another library, or are a part of a quantized model"
    quantizer = next((one for one in quantizers if one is not None), None)
    if quantizer is None:
        if not any(_is_quantized(weight) for weight in backbone.parameters()):
            return None
    else:
        method = getattr(quantizer.quantization_config.quant_method, "value", None)
    if quantizer is None or method != METHOD:
        raise ConfigurationError(
            f"The encoder's weights are quantized by {method}. Uploads hold those of {METHOD} only. Save the decoder "
            "alone (model.decoder.save_pretrained(folder)), and stitch it to the quantized encoder where it is used: "
            "stitch(encoder, folder)."
        )
    found = quantizer.quantization_config.to_dict()
    kept = {name: found[name] for name in SETTINGS if found.get(name) is not None}
    # By name, for transformers would decide anew from the outermost model.
    linear = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    whole = [f"backbone.{name}" for name, module in linear.items() if module.weight.is_floating_point()]
    return kept | {"llm_int8_skip_modules": whole or ["projection"]}


@contextmanager
def quantizing(asked: Any, what: str) -> Iterator[None]:
    """Raise `ConfigurationError` where a library that a `quantization_config` asks for is missing, or needs a GPU."""
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if asked is None or isinstance(error, RelrepsError) or "mismatch" in str(error):
            raise
        raise ConfigurationError(
            f"{what} cannot be quantized as quantization_config asks: {str(error).rstrip('.')}. Load it without "
            "quantization_config, or where there is what this needs."
        ) from error


def plain_tensors(weight: Tensor) -> list[Tensor]:
    """The tensors that hold a weight: itself, or the numbers and the scales of one that torchao has quantized."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight]
    return [part for name in weight.__tensor_flatten__()[0] for part in plain_tensors(getattr(weight, name))]


def _is_quantized(weight: Tensor) -> bool:
    is_wrapper = hasattr(weight, "__tensor_flatten__") and type(weight).__name__ != "DTensor"  # the latter is sharded
    return is_wrapper or not weight.is_floating_point()


def check_quantization(settings: Any) -> None:
    """Raise `ConfigurationError` for settings that no encoder was saved with."""
    known = f"encoder_quantization={settings!r:.80} is not a setting of {METHOD} that is known."
    if settings is None:
        return
    if not isinstance(settings, Mapping) or not set(settings) <= set(SETTINGS):
        raise ConfigurationError(f"{known} Expected {', '.join(SETTINGS)}.")
    for name, value in settings.items():
        expected = SETTINGS[name]
        fits = value in expected if isinstance(expected, tuple) else type(value) in (expected, *_also(expected))
        if not fits or (expected is list and not all(isinstance(text, str) for text in value)):
            wanted = " or ".join(map(repr, expected)) if isinstance(expected, tuple) else expected.__name__
            raise ConfigurationError(f"{known} {name} is {value!r:.60}, expected {wanted}.")
    if settings.get("load_in_8bit", False) == settings.get("load_in_4bit", False):
        raise ConfigurationError(f"{known} One of load_in_8bit and load_in_4bit must be true.")


def _also(expected: type) -> tuple[type, ...]:
    return (int,) if expected is float else ()


def to_load(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as transformers reads them from a configuration.

    Raises:
        MissingExtraError: If bitsandbytes is not installed.
    """
    if find_spec(METHOD) is None:
        raise MissingExtraError(
            f"This encoder's weights are quantized; install {METHOD}: pip install hf_relreps[quantized]."
        )
    return {**settings, "quant_method": METHOD}


def refuse_float8(dtype: Any, what: str) -> None:
    """Raise `ConfigurationError` if somebody is to compute in float8, in which weights can be stored only."""
    if _is_float8(dtype):
        name = str(dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"{what} in {name}: weights can be stored in float8, but torch computes in it only with a library for "
            "quantization. Load in dtype=torch.bfloat16, or pass a quantization_config."
        )


def dtype_to_compute(dtype: Any) -> Any:
    """The dtype in which weights that are stored in `dtype` are loaded: float32 for float8."""
    return torch.float32 if _is_float8(dtype) else dtype


def _is_float8(dtype: Any) -> bool:
    return str(dtype).removeprefix("torch.").startswith("float8")
