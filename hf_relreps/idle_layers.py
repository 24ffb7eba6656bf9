"""An encoder without the layers above the hidden state that is read.

They cost time, memory and room in uploads. Where the layers of a model are one list, the lower ones alone are an
ordinary model of the same type. Types with a norm after the last layer keep one layer that gets no gradient. The
configuration counts what was left out, so that ``layer=-3`` names the same hidden state before and after.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_relreps.errors import ConfigurationError
from hf_relreps.placement import is_offloaded, share_weights


FIELD = "layers_left_out"  # of the configuration
ADAPTED = "_hf_peft_config_loaded"  # what marks a model of transformers with adapters in it
LAST_LAYER = -1  # what a model gives as its vectors, whether or not it is among its hidden states


def left_out_of(config: Any) -> int:
    """How many layers of the whole model one with this configuration lacks.

    Raises:
        ConfigurationError: If it does not say so in a whole number, or not how many layers there are.
    """
    count = getattr(config, FIELD, 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ConfigurationError(f"{FIELD}={count!r:.60} must be a whole number of layers, 0 or more.")
    kept = getattr(config, "num_hidden_layers", None)
    if count and not isinstance(kept, int):
        raise ConfigurationError(
            f"{FIELD}={count} needs a model that counts its layers, but num_hidden_layers is {kept!r:.60}. Leave it "
            "out."
        )
    return count


def refuse_nested(config: Any) -> None:
    """Raise `ConfigurationError` if a part of a model is said to lack layers: submodels are always whole."""
    for name, nested in vars(config).items() if config is not None else ():
        if isinstance(nested, PreTrainedConfig):
            if hasattr(nested, FIELD):
                raise ConfigurationError(f"{name}.{FIELD} has no meaning: submodels keep all layers. Leave it out.")
            refuse_nested(nested)


def place_of(layer: int | None, config: Any) -> int | None:
    """Where a model has hidden state `layer` of the whole one; counted from the end if it lacks layers.

    Raises:
        ConfigurationError: If it lacks the layer.
    """
    if layer is None or not left_out_of(config):
        return layer
    kept = config.num_hidden_layers
    place = layer + left_out_of(config) if layer < 0 else layer - kept - 1
    if not -kept - 1 <= place <= LAST_LAYER:
        raise ConfigurationError(
            f"layer={layer} is not among the hidden states of the lowest {kept} of {kept + left_out_of(config)} "
            "layers, and this encoder has no others: they were left out when it was wrapped to read a lower layer. "
            "Load the whole model again."
        )
    return place


def fewer_layers(model: PreTrainedModel, layer: int | None) -> range:
    """How many of its lowest layers may do for a hidden state, the fewest first; which do is left to be tried.

    After the last layer some types apply a norm that hidden states below do not have: then one layer more is needed.
    Models with adapters are left whole, since the settings of an adapter may name layers, and so are quantized and
    offloaded ones.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    is_special = any(getattr(model, name, None) for name in (ADAPTED, "hf_quantizer")) or is_offloaded(model)
    if not isinstance(depth, int) or model.config.is_encoder_decoder or is_special:
        return range(0)
    place = place_of(layer, model.config)
    if place is None or place == LAST_LAYER:
        return range(0)
    needed = place if place >= 0 else depth + 1 + place
    return range(max(needed, 1), min(needed + 2, depth))


def lowest(model: PreTrainedModel, kept: int) -> PreTrainedModel:
    """The model without its uppermost layers, sharing its weights; its configuration says what was left out.

    Raises:
        ValueError: If its layers are not one list.
    """
    depth = model.config.num_hidden_layers
    names = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if len(names) != 1:
        raise ValueError(f"{type(model).__name__} has {len(names)} lists of {depth} layers, expected one.")
    lower: Any = share_weights(model)
    vars(lower.config).update(vars(shortened(model.config, kept)))  # in place: all modules hold this one
    above, _, own = names[0].rpartition(".")
    setattr(lower.get_submodule(above), own, nn.ModuleList(list(lower.get_submodule(names[0]))[:kept]))
    if hasattr(lower, "hf_device_map"):
        there = {part for part, _ in lower.named_modules()} | {part for part, _ in lower.named_parameters()}
        lower.hf_device_map = {part: device for part, device in lower.hf_device_map.items() if part in there}
    return lower


def shortened(config: Any, kept: int) -> Any:
    """The configuration of a model's lowest layers; lists with an entry for each layer lose theirs."""
    shorter, depth = copy.deepcopy(config), config.num_hidden_layers
    for field, value in vars(config).items():
        if "layer" in field and isinstance(value, list | tuple) and len(value) == depth:
            vars(shorter)[field] = value[:kept]
    shorter.num_hidden_layers = kept
    shorter.layers_left_out = left_out_of(config) + depth - kept
    return shorter
