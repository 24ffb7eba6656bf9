"""The head of an ordinary classifier as a decoder: its own code and weights, run without its encoder.

Whoever knows where the anchors lie in a classifier's space knows where any sample lies that is described by them:
`Placement` turns a relative representation into an embedding there, `ClassifierHead` reads it.
Shapes: B batch, T tokens, R relative size, E width of the classifier's embeddings, C classes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from hf_relreps.configuration import RelativeDecoderConfig
from hf_relreps.errors import ConfigurationError, StitchingError
from hf_relreps.projection import WideBuffers, wide


AUTO_CLASSIFIERS: dict[str, Any] = {
    "text": AutoModelForSequenceClassification,
    "pair": AutoModelForSequenceClassification,
    "word": AutoModelForTokenClassification,
    "image": AutoModelForImageClassification,
    "audio": AutoModelForAudioClassification,
}
CLASSIFIERS: dict[str, Any] = {  # configuration -> class
    "text": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "pair": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "word": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "image": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    "audio": MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
}

# What a head reads of its encoder's output -> an output that says the same with one vector (B, E) of each sample.
# One token stands for all that a head takes the first, the last or the mean of.
READINGS: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "pooler": lambda x_BE: {"pooler_output": x_BE, "last_hidden_state": x_BE[:, None]},
    "cls": lambda x_BE: {"last_hidden_state": x_BE[:, None]},
    "mean": lambda x_BE: {"last_hidden_state": x_BE[:, None]},
    "last": lambda x_BE: {"last_hidden_state": x_BE[:, None]},
    "spatial_mean": lambda x_BE: {"last_hidden_state": x_BE[:, :, None, None]},
    "patch_mean": lambda x_BE: {"last_hidden_state": torch.stack([x_BE, x_BE], 1)},
    "cls_and_patch_mean": lambda x_BE: {"last_hidden_state": x_BE.unflatten(-1, (2, -1))},
    "token": lambda x_BE: {"last_hidden_state": x_BE[:, None]},
}
EMBEDDINGS = {"input_ids": "inputs_embeds"}  # of the inputs of a model the one that may hold vectors


@dataclass
class Standin(ModelOutput):
    """An encoder's output of which only one vector of each sample is known."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    reshaped_hidden_states: Any = None
    mems: Any = None
    router_logits: Any = None


class GivenVectors(nn.Module):
    """Stands where a classifier has its encoder, and hands on the vectors (B, T=1, E) that it is given."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, *args: Any, **kwargs: Any) -> Standin:
        """What the encoder would give, as far as the head reads it."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim == 3]
        return Standin(**READINGS[self.reads](given[0][:, 0]))


class ClassifierHead(nn.Module):
    """What an ordinary classifier does after its encoder, on one vector of each sample: (B, E) -> (B, C).

    The head of a classifier of tokens takes each token by itself: (B, T, E) -> (B, T, C).

    Args:
        classifier: Keeps its encoder; the weights of the head are shared.
        reads: What the head takes of its encoder's output, one of `READINGS`.

    Raises:
        StitchingError: If the classifier has no encoder of its own that could be left out.
    """

    def __init__(self, classifier: PreTrainedModel, reads: str) -> None:
        super().__init__()
        name = encoder_name(classifier)
        self.takes = vector_argument(classifier)
        model = copy.copy(classifier)
        model._modules = dict(classifier._modules) | {name: GivenVectors(reads)}
        model.config = copy.deepcopy(classifier.config)
        text_config = model.config.get_text_config()
        if getattr(text_config, "pad_token_id", None) is None:
            text_config.pad_token_id = 0  # without one some models refuse batches; there is no padding here
        model._tied_weights_keys = {}
        model.all_tied_weights_keys = {}
        self.model = model

    def forward(self, x_BE: Tensor) -> Tensor:
        """Logits (B, C), in the head's own dtype."""
        if x_BE.ndim == 3:
            return self(x_BE.flatten(0, 1)).unflatten(0, x_BE.shape[:2])
        x_B1E = x_BE[:, None].to(self.model.dtype)
        logits = self.model(**{self.takes: x_B1E}, return_dict=True).logits
        return logits[:, 0] if logits.ndim == 3 else logits


def encoder_name(classifier: PreTrainedModel) -> str:
    """The attribute of a classifier that holds its encoder."""
    name = classifier.base_model_prefix
    if isinstance(classifier._modules.get(name), nn.Module):
        return name
    models = [name for name, module in classifier._modules.items() if isinstance(module, PreTrainedModel)]
    if len(models) == 1:  # CLIP's classifier holds its vision tower alone
        return models[0]
    raise StitchingError(
        f"{type(classifier).__name__} has no submodule {name!r} that holds its encoder, so its head cannot be used "
        "alone. Train a decoder instead: RelativeModelForSequenceClassification.from_encoder(encoder, view, "
        "processor)."
    )


def vector_argument(classifier: PreTrainedModel) -> str:
    """The argument of a classifier's `forward` in which vectors pass through to the place of its encoder."""
    main = EMBEDDINGS.get(classifier.main_input_name, classifier.main_input_name)
    if main in inspect.signature(classifier.forward).parameters:
        return main
    raise StitchingError(
        f"{type(classifier).__name__} takes no {main}, so vectors cannot be passed to its head. Choose a classifier "
        "of another architecture."
    )


class Placement(WideBuffers):
    """From relative representations (B, R) to embeddings (B, E) of another space: ``shift_E + r_BR @ points_RE``.

    The numbers of a relative representation weigh points of that space, such as the places of the anchors there.
    Float32 or better whatever the model's dtype; each row depends on its own sample only.
    """

    points_RE: Tensor
    shift_E: Tensor

    def __init__(self, relative_size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("points_RE", torch.zeros(relative_size, width, dtype=torch.float32))
        self.register_buffer("shift_E", torch.zeros(width, dtype=torch.float32))

    @torch.no_grad()
    def put(self, points_RE: Tensor, shift_E: Tensor) -> None:
        """Put other points in place of those before."""
        self.points_RE.copy_(points_RE)
        self.shift_E.copy_(shift_E)

    def forward(self, r_BR: Tensor) -> Tensor:
        """Embeddings (B, E), or (B, T, E)."""
        with torch.autocast(r_BR.device.type, enabled=False):
            r_BR = r_BR.to(torch.promote_types(r_BR.dtype, wide(self.points_RE.dtype)))
            return r_BR @ self.points_RE.to(r_BR.dtype) + self.shift_E.to(r_BR.dtype)


def build_head(config: RelativeDecoderConfig) -> ClassifierHead:
    """The head that a configuration describes, with random weights, to be filled by a load."""
    if None in (config.head_config, config.head_modality, config.head_reads, config.head_size):
        raise ConfigurationError(
            "decoder_type='head' needs head_config, head_modality, head_reads and head_size, found "
            f"{type(config.head_config).__name__}, {config.head_modality}, {config.head_reads} and "
            f"{config.head_size}. Build such a decoder with "
            "hf_relreps.translation.decoder_from_classifier(classifier, anchors.view(name))."
        )
    auto_class = AUTO_CLASSIFIERS[str(config.head_modality)]
    head_config: Any = config.head_config
    if type(head_config) not in CLASSIFIERS[str(config.head_modality)]:
        raise ConfigurationError(
            f"head_config describes a {head_config.model_type!r}, for which transformers has no classifier of "
            f"{config.head_modality}s. Pull the upload again, or ask its author."
        )
    classifier = auto_class.from_config(head_config, trust_remote_code=False)
    return ClassifierHead(classifier, str(config.head_reads))
