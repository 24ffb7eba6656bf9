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
    """The first token's vector."""
    return hidden_BTD[:, 0]


def mean(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The mean over the tokens that the mask keeps; summed in float32 whatever the model's dtype."""
    if mask_BT is None:
        return hidden_BTD.float().mean(1).to(hidden_BTD.dtype)
    mask_BT1 = mask_BT.unsqueeze(-1).float()
    mean_BD = (hidden_BTD.float() * mask_BT1).sum(1) / mask_BT1.sum(1).clamp_min(1)
    return mean_BD.to(hidden_BTD.dtype)


def last(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The last token's vector that the mask keeps, with padding on either side."""
    if mask_BT is None:
        return hidden_BTD[:, -1]
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = (mask_BT.long() * positions_T).argmax(1)
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]


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
            f"pooling={pooling!r} reads {expected} dimensions, the encoder gives {tuple(hidden.shape)}. Choose {fitting}."
        )
    return POOLINGS[pooling](hidden, mask_BT)


CONVOLUTIONAL = ("resnet", "convnext", "convnextv2", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet", "bit")


def default_pooling(model: PreTrainedModel, modality: str) -> str:
    """What suits an encoder: the map's mean for convolutions, the first token where a vision transformer has one for
    the whole image, the last token of causal language models, the mean over the mask for everything else."""
    if model.config.model_type in CONVOLUTIONAL:
        return "spatial_mean"
    if modality == "image" and any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters()):
        return "cls"
    return "last" if modality == "text" and _is_causal(model.config) else "mean"


def _is_causal(config: PreTrainedConfig) -> bool:
    from transformers.models.auto import modeling_auto as auto

    model_type = config.get_text_config().model_type
    return (
        model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
