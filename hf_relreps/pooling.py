"""What an `AutoModel` reads and gives, and how its vectors of tokens or pixels become one vector of a sample.

Shapes: B batch, T tokens, D absolute size, H and W height and width of a feature map, P patches of all samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from hf_relreps.errors import ConfigurationError
from hf_relreps.idle_layers import LAST_LAYER, left_out_of, place_of


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
POOLERS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
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
                "pooling='pooler' needs an encoder with a pooler, and this one has none. Choose one of "
                f"{', '.join(POOLERS)}."
            )
        return pooled.flatten(1)  # convolutional poolers give (B, D, 1, 1)
    if pooling not in POOLERS:
        raise ConfigurationError(
            f"pooling={pooling!r} leaves the vectors of a sample as they are, which only nodes of a graph bear. "
            f"Choose one of {', '.join(POOLERS)}."
        )
    hidden = vectors(output)
    expected = 4 if pooling == "spatial_mean" else 3
    if hidden.ndim != expected:
        fitting = "spatial_mean or pooler" if hidden.ndim == 4 else "cls, mean, last or pooler"
        raise ConfigurationError(
            f"pooling={pooling!r} reads {expected} dimensions, but the encoder returns {tuple(hidden.shape)}. Choose "
            f"{fitting}."
        )
    if expected == 3 and mask_BT is not None and mask_BT.shape != hidden.shape[:2]:
        raise ConfigurationError(
            f"pooling={pooling!r} needs a mask of shape {tuple(hidden.shape[:2])} like the encoder's vectors, found "
            f"{tuple(mask_BT.shape)}: the encoder returns another number of vectors than it reads tokens. Choose "
            "pooler."
        )
    return POOLERS[pooling](hidden, mask_BT)


def vectors_of_tokens(output: Any, mask_BT: Tensor | None) -> Tensor:
    """The vector of each token (B, T, D).

    Raises:
        ConfigurationError: If the encoder does not give one for each token.
    """
    hidden = vectors(output)
    if hidden.ndim != 3 or (mask_BT is not None and mask_BT.shape != hidden.shape[:2]):
        read = "" if mask_BT is None else f" for tokens {tuple(mask_BT.shape)}"
        raise ConfigurationError(
            f"Words are read token by token, and the encoder gives vectors of shape {tuple(hidden.shape)}{read}, "
            "expected one for each token. Wrap another model, or name the part of it that gives some: tower=..."
        )
    return hidden


def vectors_of_words(hidden_BTD: Tensor, spans_n3: Tensor, pooling: str) -> Tensor:
    """One vector (n, D) for each word from the vectors of its pieces.

    Args:
        hidden_BTD: Vectors of tokens.
        spans_n3: Of each word its sentence, its first token and the one after its last.
        pooling: ``mean``, ``cls`` for the first piece, or ``last``.
    """
    sentence_n1, start_n1, end_n1 = spans_n3.unsqueeze(-1).unbind(1)
    longest = int((end_n1 - start_n1).max())
    place_nP = start_n1 + torch.arange(longest, device=spans_n3.device)
    pieces_nPD = hidden_BTD[sentence_n1, place_nP.clamp_max(hidden_BTD.shape[1] - 1)]
    return POOLERS[pooling](pieces_nPD, place_nP < end_n1)


# Inputs by which a model shows that it reads a modality; `grid_thw` goes with patches of images in one long row.
MAIN_INPUTS = {
    "text": {"input_ids"},
    "pair": {"input_ids"},
    "word": {"input_ids"},
    "image": {"pixel_values", "grid_thw"},
    "audio": {"input_values", "input_features"},
    "node": {"edge_index"},
}
# What a model calls an input -> what processors call it.
CALLED = {
    "grid_thw": "image_grid_thw",
    "hidden_states": "pixel_values",
    "pixel_position_ids": "image_position_ids",
    "input_features_mask": "attention_mask",
    "padding_mask": "attention_mask",
}
# Where models put their vectors, the first that is there; of several feature maps the last.
OUTPUTS = ("last_hidden_state", "encoder_last_hidden_state", "image_embeds", "text_embeds", "feature_maps")


WORD_LAYER, FEWEST_LAYERS = -3, 6  # where words are read unless asked otherwise, in encoders with as many layers

# Methods by which audio encoders tell how many vectors they make of what they read.
SHORTENING = ("_get_feature_vector_attention_mask", "_get_output_attention_mask")


def reads(model: nn.Module, modality: str) -> bool:
    """Whether a model takes inputs of a modality."""
    return bool(MAIN_INPUTS[modality] & set(_parameters(model)))


class Interface:
    """What a model takes and gives, found out once: looking at each forward costs as much as a small layer.

    Args:
        model: The wrapped model.
    """

    def __init__(self, model: Any) -> None:
        parameters = _parameters(model)
        self.model = model
        self.names = tuple(parameters)
        self.takes_all = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters.values())
        self.also = {name: other for name, other in CALLED.items() if other not in parameters}
        takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        self.gives_layers = takes_any or "output_hidden_states" in parameters
        self.left_out = left_out_of(getattr(model, "config", None))  # a frozen base may be missing
        self.counts_positions = "position_ids" in parameters and is_causal(model)
        # Only `hf_relreps.samples` gives this mask to a model that does not take it (Whisper): neither a pipeline nor
        # a dataset does, and their samples must be described like the anchors.
        self.idle_masks = {"input_features_mask"} - set(parameters)
        self.shortens = next((name for name in SHORTENING if hasattr(model, name)), None)

    def takes(self, name: str) -> bool:
        """Whether an input of this name reaches the model."""
        return self.takes_all or name in self.names or name in CALLED.values() or name.startswith("output_")

    def readable(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a processor's outputs that the model takes, by the names that it has for them."""
        names = self.names
        if not self.takes_all:
            named = {name: inputs.get(name, inputs.get(self.also.get(name, ""))) for name in names}
            switches = {name: value for name, value in inputs.items() if name.startswith("output_")}
            inputs = {name: value for name, value in named.items() if value is not None} | switches
        if "use_cache" in names:  # nothing is generated
            inputs = {**inputs, "use_cache": False}
        if "bbox" in names and "bbox" not in inputs and "input_ids" in inputs:  # text on no page, as LayoutLM assumes
            inputs = {**inputs, "bbox": inputs["input_ids"].new_zeros((*inputs["input_ids"].shape, 4))}
        mask_BT = inputs.get("attention_mask")
        places = self.counts_positions and "position_ids" not in inputs and "input_ids" in inputs
        if places and mask_BT is not None and mask_BT.ndim == 2:
            # Padding on the left would shift absolute positions; on the right these are the model's own.
            return dict(inputs) | {"position_ids": (mask_BT.long().cumsum(-1) - 1).clamp_min(0)}
        return dict(inputs)

    def asks(self, layer: int | None) -> dict[str, bool]:
        """What makes the model give the hidden state of a layer: nothing for the last, which it gives anyway.

        Raises:
            ConfigurationError: If it gives no other.
        """
        if self.place(layer) in (None, LAST_LAYER):
            return {}
        if not self.gives_layers:
            raise ConfigurationError(self._no_layers(layer))
        return {"output_hidden_states": True}

    def at_layer(self, output: Any, layer: int | None) -> Any:
        """An output with the hidden state of a layer in place of its vectors; as it is for the last.

        Hidden states are taken as transformers gives them: see `hf_relreps.configuration.RelativeEncoderConfig`.

        Raises:
            ConfigurationError: If there is no such hidden state.
        """
        place = self.place(layer)
        if place is None or place == LAST_LAYER:
            return output
        states = getattr(output, "hidden_states", None)
        if not states:
            raise ConfigurationError(self._no_layers(layer))
        if not -len(states) <= place < len(states):
            raise ConfigurationError(
                f"layer={layer} is not one of the {len(states)} hidden states that {type(self.model).__name__} "
                f"returns. Choose one from {-len(states)} to {len(states) - 1}: -1 is the last, 0 the output of the "
                "embeddings."
            )
        return BaseModelOutput(last_hidden_state=states[place])

    def place(self, layer: int | None) -> int | None:
        """Where the model has a hidden state of the whole encoder: `hf_relreps.idle_layers.place_of`."""
        return place_of(layer, self.model.config) if self.left_out else layer

    def _no_layers(self, layer: int | None) -> str:
        return (
            f"layer={layer} reads a hidden state below the last, and {type(self.model).__name__} returns none. Leave "
            "layer out, wrap another model, or name the submodel that returns hidden states: tower=..."
        )

    def unpack(self, output: Any, inputs: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
        """An output with its vectors as `last_hidden_state`, a row for each sample, and the mask (B, T) of those."""
        hidden = _vectors_or_none(output)
        if hidden is None:
            return output, None
        patches_B, mask_BT = _patches(inputs), None
        # `shape`, not `len`: that would fix the size of the batch in an exported program.
        if hidden.ndim == 3 and hidden.shape[0] == 1 and patches_B.shape[0] > 1:
            hidden = hidden[0]
        if hidden.ndim == 2 and hidden.shape[0] != patches_B.shape[0]:
            hidden, mask_BT = unpacked(hidden, patches_B)
        elif hidden.ndim == 3:
            mask_BT = self._mask_of(hidden, inputs)
        elif hidden.ndim == 4 and hidden.shape[1] == hidden.shape[2] != hidden.shape[3]:  # a square map, width last
            hidden = hidden.movedim(-1, 1)
        output.last_hidden_state = hidden
        return output, mask_BT

    def _mask_of(self, hidden_BTD: Tensor, inputs: Mapping[str, Any]) -> Tensor | None:
        """The mask of an output's vectors: audio encoders give fewer than they read."""
        length, masks = hidden_BTD.shape[1], self._masks(inputs)
        fitting = [mask_BT for mask_BT in masks if mask_BT.shape[1] == length]
        if fitting or not masks or "input_ids" in inputs:
            return next(iter(fitting or masks), None)
        if self.shortens == SHORTENING[0]:
            return self.model._get_feature_vector_attention_mask(length, masks[0])
        if self.shortens == SHORTENING[1]:
            return self.model._get_output_attention_mask(masks[0], target_length=length)
        kept_B = (masks[0].long().sum(-1) * length / masks[0].shape[1]).ceil()  # in proportion: Whisper halves frames
        return torch.arange(length, device=hidden_BTD.device) < kept_B[:, None]

    def _masks(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        idle = self.idle_masks
        return [mask for name, mask in inputs.items() if name.endswith("mask") and name not in idle and mask.ndim == 2]

    def guesses_mask(self, output: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether the mask of an output's vectors is known only in proportion, so that it may be wrong by one."""
        hidden, masks = _vectors_or_none(output), self._masks(inputs)
        if hidden is None or hidden.ndim != 3 or not masks or "input_ids" in inputs:
            return False
        return self.shortens is None and all(mask_BT.shape[1] != hidden.shape[1] for mask_BT in masks)


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def vectors(output: Any) -> Tensor:
    """The vectors of an output: of tokens (B, T, D), of a feature map (B, D, H, W), or of samples (B, D).

    Raises:
        ConfigurationError: If there are none.
    """
    found = _vectors_or_none(output)
    if found is not None:
        return found
    given = ", ".join(output) if isinstance(output, Mapping) else type(output).__name__
    raise ConfigurationError(
        f"The encoder returns {given}, expected one of {', '.join(OUTPUTS)}. Wrap another model, or name the submodel "
        "that returns vectors: tower=..."
    )


def _vectors_or_none(output: Any) -> Tensor | None:
    there = (getattr(output, name, None) for name in OUTPUTS)
    last = (found[-1] if isinstance(found, list | tuple) and found else found for found in there)
    return next((found for found in last if isinstance(found, Tensor)), None)


def unpacked(packed_PD: Tensor, patches_B: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (B, T, D) and their mask (B, T) of samples that come in one long row, one after another.

    Args:
        packed_PD: Vectors of the patches of all samples; there may be fewer than patches, by one factor for all.
        patches_B: Patches of each sample, or numbers in proportion to them.

    Raises:
        ConfigurationError: If the vectors cannot be told apart.
    """
    counts_B = patches_B * len(packed_PD) // patches_B.sum()
    if counts_B.sum() != len(packed_PD):
        raise ConfigurationError(
            f"The encoder gives {len(packed_PD)} vectors in one row for {len(patches_B)} samples, and cannot be split "
            "by sample. Encode samples of the same size together."
        )
    parts = torch.split(packed_PD, counts_B.tolist())
    mask_BT = torch.arange(int(counts_B.max()), device=packed_PD.device) < counts_B.to(packed_PD.device)[:, None]
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True), mask_BT


def _patches(inputs: Mapping[str, Any]) -> Tensor:
    """How many patches each of the B samples has, or numbers in proportion to that."""
    for name in ("image_grid_thw", "grid_thw", "image_sizes", "target_sizes"):
        if name in inputs:
            return inputs[name].prod(-1)
    first = next(value for value in inputs.values() if isinstance(value, Tensor))
    return torch.ones(first.shape[0], dtype=torch.long)


def default_pooling(model: Any, modality: str, output: Any = None) -> str:
    """What suits an encoder.

    For images and sounds the first token where it stands for the whole image, the model's own pooler where it does
    more than take the mean, else the mean over the tokens or the feature map. For texts the model's own choice of a
    token where it makes one (CLIP, DPR), the last token of causal language models, else the mean over the mask. A
    head on top of that, as BERT has one for next sentences, is seldom trained and never the default.

    Args:
        model: The encoder.
        modality: What it reads.
        output: What it gives for some samples; without it the model's own pooler and feature maps are not considered.
    """
    if modality == "node":
        return "none"
    if modality == "word":
        return "mean"
    hidden = _vectors_or_none(output)
    own = _own_pooling(output, hidden)
    if modality in ("text", "pair"):
        picks = own is not None and not isinstance(getattr(model, "pooler", None), nn.Module)
        return "pooler" if picks else "last" if is_causal(model) else "mean"
    plain = "spatial_mean" if hidden is not None and hidden.ndim == 4 else "mean"
    if plain == "mean" and modality == "image" and _has_class_token(model):
        return "cls"
    if own is None:
        return plain
    if hidden is None or hidden.ndim == 2:
        return "pooler"
    mean_BD = POOLERS[plain](hidden, None)
    return plain if own.shape == mean_BD.shape and torch.allclose(own, mean_BD, atol=1e-4) else "pooler"


def default_layer(model: Any, modality: str) -> int:
    """Which hidden state suits: of words a lower one, for the last is shaped by what the encoder was trained to do."""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    are_many = isinstance(layers, int) and layers + left_out_of(model.config) >= FEWEST_LAYERS
    return WORD_LAYER if modality == "word" and are_many else LAST_LAYER


def _own_pooling(output: Any, hidden: Tensor | None) -> Tensor | None:
    """The vector (B, D) of each sample that a model gives by itself, if it does."""
    own = getattr(output, "pooler_output", None)
    if not isinstance(own, Tensor) or own.ndim < 2 or own.shape[2:].numel() != 1:
        return None
    return own.flatten(1) if hidden is None or len(own) == len(hidden) else None


def _has_class_token(model: nn.Module) -> bool:
    return any(name.endswith(("cls_token", "class_embedding", "class_token")) for name, _ in model.named_parameters())


def is_causal(model: Any) -> bool:
    """Whether each token sees only those before it: what the attention says, else what the type is known for."""
    if model.config.is_encoder_decoder:
        return False
    says = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    if says:
        return any(says)
    from transformers.models.auto import modeling_auto as auto

    model_type = model.config.get_text_config().model_type
    return (
        model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
