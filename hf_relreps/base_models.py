"""The base model that a frozen encoder refers to, so that an upload holds only what was trained.

An encoder is frozen if none of its base's weights takes a gradient. Adapters (LoRA, ...) that were trained inside it
are its own: they are stored, the base is not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_relreps.errors import ConfigurationError, MissingExtraError, UploadError


# Settings of an adapter that would import code, load other files or change the base.
ADAPTER_SWITCHES = (
    *("auto_mapping", "base_model_name_or_path", "revision", "megatron_config", "megatron_core", "runtime_config"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "arrow_config"),
)


# Held while a model is built or loaded: meanwhile transformers changes functions of torch and of its own for the whole
# process, and two threads that do so at once leave them changed.
BUILDING = threading.RLock()


class Unattached(nn.Module):
    """Stands in a frozen encoder until its base is attached: it holds no weights, random ones least of all."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Say how to get the base.

        Raises:
            UploadError: Always.
        """
        raise UploadError(
            "This encoder refers to a frozen base model that was not fetched. Load it with from_pretrained(name), "
            "which fetches the base too."
        )


def is_frozen(backbone: nn.Module) -> bool:
    """Whether no weight of the base takes a gradient; adapters may."""
    own = tuple(_own_prefixes(backbone))
    return not any(p.requires_grad for name, p in backbone.named_parameters() if not name.startswith(own))


def own_weights(backbone: nn.Module) -> set[str]:
    """Names of the weights that the base does not have: those of adapters."""
    own = tuple(_own_prefixes(backbone))
    return {name for name in backbone.state_dict() if own and name.startswith(own)}


def base_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """The base's weights, by the names that they have without adapters around them."""
    own = own_weights(backbone)
    return {_bare(name): tensor for name, tensor in backbone.state_dict().items() if name not in own}


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) over names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def first_difference(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> str | None:
    """Name of a weight that is not the base's, whatever dtype it was loaded in; ``None`` if all are."""
    for name in sorted({*weights, *base}):
        mine, theirs = weights.get(name), base.get(name)
        if mine is None or theirs is None or not torch.equal(mine.cpu(), theirs.to(mine.dtype).cpu()):
            return name
    return None


def without_wrapper(encoder: Any) -> Any:
    """The `PreTrainedModel` inside a `PeftModel`, with the adapters in its layers; anything else as it is.

    Raises:
        ConfigurationError: If the adapter does not live inside layers: prompts and prefixes.
    """
    if isinstance(encoder, PreTrainedModel) or not hasattr(encoder, "peft_config"):
        return encoder
    if any(getattr(config, "is_prompt_learning", False) for config in encoder.peft_config.values()):
        raise ConfigurationError(
            f"{type(encoder).__name__} learns prompts, which come before the encoder. Use an adapter that lives "
            "inside its layers, for example LoraConfig."
        )
    model = encoder.get_base_model()
    model.peft_config = encoder.peft_config
    model._hf_peft_config_loaded = True
    return model


def adapter_settings(backbone: nn.Module) -> dict[str, Any] | None:
    """The settings of each adapter as JSON; ``None`` without any."""
    if not getattr(backbone, "_hf_peft_config_loaded", False):
        return None
    adapters: Any = backbone.peft_config
    return {name: _plain(config.to_dict()) for name, config in adapters.items()}


def add_adapters(backbone: PreTrainedModel, adapters: Mapping[str, Any]) -> None:
    """Put adapters of these settings into a base; their weights are to be loaded after.

    Raises:
        MissingExtraError: If peft is not installed.
        UploadError: If the settings are not ones that the installed peft knows.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("This encoder has an adapter; install peft: pip install hf_relreps[peft].") from error
    for name, settings in adapters.items():
        kind = settings.get("peft_type")
        if kind not in list(peft.PEFT_TYPE_TO_CONFIG_MAPPING):
            raise UploadError(f"Adapter {name!r} is of type {kind!r}, which peft {peft.__version__} does not know.")
        config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
        known = set(config_class.__dataclass_fields__) - {*ADAPTER_SWITCHES, "peft_type"}
        backbone.add_adapter(config_class(**{key: value for key, value in settings.items() if key in known}), name)


def load_own_weights(backbone: nn.Module, weights: Mapping[str, Tensor], where: Any) -> None:
    """Fill the adapters.

    Raises:
        UploadError: If the weights are not exactly those of the adapters.
    """
    expected = own_weights(backbone)
    differ = sorted(expected ^ set(weights))
    if differ:
        raise UploadError(
            f"{where} holds {len(weights)} weights of adapters, expected {len(expected)}; the first that differs is "
            f"{differ[0]}. Pull it again, or save the model anew."
        )
    backbone.load_state_dict(dict(weights), strict=False)


def _own_prefixes(backbone: nn.Module) -> Iterator[str]:
    """Where adapters keep their weights, as peft's layers tell it."""
    for name, module in backbone.named_modules():
        for attribute in (*getattr(module, "adapter_layer_names", ()), *getattr(module, "other_param_names", ())):
            yield f"{name}.{attribute}."


def _bare(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _plain(value: Any) -> Any:
    """JSON without the settings that must not travel."""
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items() if name not in ADAPTER_SWITCHES}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set):
        return sorted(map(str, value))
    return getattr(value, "value", value)  # an enum's
