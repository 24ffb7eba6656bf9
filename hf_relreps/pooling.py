"""How the vectors of tokens or pixels become one vector of a sample.

Shapes: B batch, T tokens, D absolute size, H and W height and width of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_relreps.errors import ConfigurationError


def cls(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The first token's vector that the mask keeps, with padding on either side."""
    if mask_BT is None:
        return hidden_BTD[:, 0]
    return _rows(hidden_BTD, mask_BT.long().argmax(1))  # the first of equal values


def mean(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The mean over the tokens that the mask keeps; summed in float32 or better whatever the model's dtype."""
    wide_BTD = hidden_BTD.to(torch.promote_types(hidden_BTD.dtype, torch.float32))
    if mask_BT is None:
        return wide_BTD.mean(1).to(hidden_BTD.dtype)
    kept_BT1 = mask_BT.bool().unsqueeze(-1)
    sum_BD = wide_BTD.masked_fill(~kept_BT1, 0).sum(1)  # filled, for padding may hold NaN
    return (sum_BD / kept_BT1.sum(1).clamp_min(1)).to(hidden_BTD.dtype)


def last(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The last token's vector that the mask keeps, with padding on either side."""
    if mask_BT is None:
        return hidden_BTD[:, -1]
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return _rows(hidden_BTD, (mask_BT.long() * positions_T).argmax(1))


def _rows(hidden_BTD: Tensor, positions_B: Tensor) -> Tensor:
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), positions_B]


def spatial_mean(hidden_BDHW: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The mean over the feature map of a convolutional encoder."""
    return hidden_BDHW.flatten(2).mean(-1)


# The pooler of the model itself needs its whole output, so `pool` reads it there.
POOLINGS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "cls": cls,
    "mean": mean,
    "last": last,
    "spatial_mean": spatial_mean,
}


def pool(output: Any, mask_BT: Tensor | None, pooling: str) -> Tensor:
    """One vector (B, D) for each sample from the output of an `AutoModel`.

    Raises:
        ConfigurationError: If the output does not have what this pooling reads.
    """
    if pooling == "pooler":
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ConfigurationError(
                "pooling='pooler' reads the encoder's own pooler, which it does not have. "
                f"Choose one of {', '.join(POOLINGS)}."
            )
        return pooled.flatten(1)  # convolutional poolers give (B, D, 1, 1)
    hidden = output.last_hidden_state
    expected = 4 if pooling == "spatial_mean" else 3
    if hidden.ndim != expected:
        fitting = "spatial_mean or pooler" if hidden.ndim == 4 else "cls, mean, last or pooler"
        raise ConfigurationError(
            f"pooling={pooling!r} reads {expected} dimensions, the encoder gives {tuple(hidden.shape)}. "
            f"Choose {fitting}."
        )
    if expected == 3 and mask_BT is not None and mask_BT.shape != hidden.shape[:2]:
        raise ConfigurationError(
            f"pooling={pooling!r} reads a mask of {tuple(hidden.shape[:2])} like the encoder's vectors, found "
            f"{tuple(mask_BT.shape)}: the encoder gives another number of vectors than it takes tokens. Choose pooler."
        )
    return POOLINGS[pooling](hidden, mask_BT)


CONVOLUTIONAL = ("relreps_conv", "resnet", "convnext", "convnextv2", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet", "bit")


def default_pooling(model: PreTrainedModel, modality: str) -> str:
    """What suits an encoder.

    The map's mean for convolutions, the first token where a vision transformer has one for the whole image, the last
    token of causal language models, the mean over the mask for everything else.
    """
    if modality == "node":
        return "none"
    if model.config.model_type in CONVOLUTIONAL:
        return "spatial_mean"
    names = [name for name, _ in model.named_parameters()] if modality == "image" else []
    if any(name.endswith(("cls_token", "class_embedding")) for name in names):
        return "cls"
    return "last" if modality == "text" and _is_causal(model.config) else "mean"


def _is_causal(config: PreTrainedConfig) -> bool:
    from transformers.models.auto import modeling_auto as auto

    model_type = config.get_text_config().model_type
    return (
        model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
