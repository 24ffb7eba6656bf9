"""An encoder without the layers above the hidden state that is read.

They cost time, memory and room in uploads, and get no gradient. Where the layers of a model are one list, the lower
ones alone are an ordinary model of the same type. Its configuration counts what was left out, so that ``layer=-3``
names the same hidden state before and after.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_relreps.errors import ConfigurationError
from hf_relreps.placement import share_weights


ADAPTED = "_hf_peft_config_loaded"  # what marks a model of transformers with adapters in it
LAST_LAYER = -1  # what a model gives as its vectors, whether or not it is among its hidden states


def left_out_of(config: Any) -> int:
    """How many layers of the whole model one with this configuration lacks."""
    return getattr(config, "layers_left_out", 0)


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
    Models with adapters are left whole, since the settings of an adapter may name layers.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    if not isinstance(depth, int) or model.config.is_encoder_decoder or getattr(model, ADAPTED, False):
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
    lower.config = shortened(model.config, kept)
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
