"""`RelativeModel`: any `AutoModel` with its pooling and projection; and the same with a decoder on top.

Shapes: B batch, T tokens, N samples, D absolute size, A anchors, R relative size, C classes.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_relreps.anchors import AnchorSet, AnchorView
from hf_relreps.configuration import RelativeConfig
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.errors import AnchorError, ConfigurationError
from hf_relreps.pooling import default_pooling, pool
from hf_relreps.projection import RelativeProjection, refuse_directionless
from hf_relreps.samples import batches, to_device
from hf_relreps.sources import Source
from hf_relreps.uploads import RelativeUpload, load_processor


@dataclass
class RelativeModelOutput(ModelOutput):
    """What a `RelativeModel` gives.

    Args:
        last_hidden_state: Token vectors (B, T, D), or a feature map (B, D, H, W), of the wrapped model.
        pooler_output: Absolute embeddings (B, D).
        relative_embeds: Relative representations (B, R), float32 or better.
        hidden_states: Of every layer, if asked for.
        attentions: Of every layer, if asked for.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    relative_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class RelativeClassifierOutput(ModelOutput):
    """What a relative classifier gives: loss (if there were labels), logits (B, C), relative_embeds (B, R)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    relative_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RelativePreTrainedModel(RelativeUpload):
    """What the encoder and the whole models share: switches that concern the wrapped model."""

    base_model_prefix = "encoder"  # the attribute of whole models, and the prefix of its weights in their files
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever the gradient accumulation

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """`AnchorCallback` keeps the anchors equal on all ranks: no need to send them at every forward."""
        return [name for name, _ in self.named_buffers() if name.endswith("projection.anchors_AD")]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RelativeProjection):
            init.zeros_(module.anchors_AD)


class RelativeModel(RelativePreTrainedModel):
    """An encoder: any `AutoModel`, its pooling, and the projection on to anchors.

    Example:
        ```python
        >>> from transformers import BertConfig, BertModel
        >>> from hf_relreps import AnchorSet, RelativeModel
        >>> from hf_relreps.demos.tiny import word_tokenizer
        >>> texts = ["a cat sleeps", "a dog runs", "two birds sing"]
        >>> tokenizer = word_tokenizer(texts)
        >>> bert = BertModel(BertConfig(len(tokenizer), 32, 1, 2, 64))
        >>> encoder = RelativeModel.from_encoder(bert, AnchorSet("abc", {"en": texts}).view("en"), tokenizer)
        >>> encoder(**tokenizer(["a dog sleeps"], return_tensors="pt")).relative_embeds.shape
        torch.Size([1, 3])

        ```
    """

    part = "encoder"

    def __init__(self, config: RelativeConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if not isinstance(config.encoder_config, PreTrainedConfig):
            raise ConfigurationError(
                "An encoder needs encoder_config, which is None: this configuration describes a decoder. "
                "Load it with RelativeDecoder, or build an encoder with RelativeModel.from_encoder(encoder, view)."
            )
        self.backbone = _built(config) if backbone is None else _kept(_without_idle_pooler(backbone, config))
        config.pooling = config.pooling or default_pooling(self.backbone, config.modality)
        self.projection = RelativeProjection(config)
        self.post_init()

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        anchors_view: AnchorView,
        processor: Any = None,
        *,
        config: RelativeConfig | None = None,
        batch_size: int = 64,
        **settings: Any,
    ) -> Self:
        """Make any `AutoModel` relative to a view of an anchor set, and encode the anchors.

        Args:
            encoder: Name, folder or loaded model.
            anchors_view: The anchors as this encoder reads them: ``anchors.view("fr")``.
            processor: Tokenizer or image processor; found beside `encoder` where that is a name.
            config: Where the settings start from, for example ``RelativeConfig.paper()``.
            batch_size: Anchors in a batch while they are encoded.
            **settings: Fields of `RelativeConfig`: pooling, transform, similarity, basis_ridge, num_labels, ...

        Raises:
            ConfigurationError: If a setting does not exist or has no meaning.
            EmbeddingError: If an anchor's embedding has no direction.
        """
        backbone, processor, name = _loaded(encoder, processor)
        config = _configured(config, backbone, anchors_view, processor, name, settings)
        backbone = _tower(backbone, config.tower)
        config.embedding_size = _measured_width(backbone, anchors_view, processor, config)
        model = cls(config, backbone).to(backbone.device)
        model.encode_anchors(anchors_view, processor, batch_size=batch_size)
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RelativeModelOutput | tuple[Any, ...]:
        """Relative representations (B, R) beside the absolute embeddings (B, D); inputs are the wrapped model's."""
        inputs = _given(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            input_values=input_values,
            input_features=input_features,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        output, x_BD = _embed(self.backbone, inputs, self.config)
        result = RelativeModelOutput(
            last_hidden_state=output.last_hidden_state,
            pooler_output=x_BD,
            relative_embeds=self.projection(x_BD),
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )
        return result.to_tuple() if return_dict is False else result

    def encode(
        self, samples: Sequence[Any], processor: Any = None, *, batch_size: int = 64, progress: bool = False
    ) -> Tensor:
        """Absolute embeddings (N, D) of raw samples in their order, float32 on the CPU.

        In evaluation mode and without gradients, whatever mode the model is in; the mode is restored after.

        Args:
            samples: N texts or images.
            processor: Tokenizer or image processor, if not the model's own.
            batch_size: Samples in a batch.
            progress: Whether to show a progress bar.

        Raises:
            SampleError: If a sample is empty or of another type.
            EmbeddingError: If an embedding has no direction.
        """
        processor = self.processor if processor is None else processor
        parts = batches(samples, processor, batch_size, self.config.max_length)
        if progress:
            from tqdm.auto import tqdm

            parts = tqdm(parts, total=-(-len(samples) // batch_size), desc="Encoding", unit="batch")
        x_ND = self.encode_batches(parts, len(samples))
        refuse_directionless(x_ND, "sample")
        return x_ND

    @torch.no_grad()
    def encode_batches(self, parts: Iterable[tuple[Any, dict[str, Tensor]]], n: int) -> Tensor:
        """Absolute embeddings (n, D) of batches made by `hf_relreps.samples.batches`; rows without one stay zero."""
        x_ND = torch.zeros(n, self.config.embedding_size or 0)
        with evaluating(self):
            for rows, inputs in parts:
                x_ND[rows] = _embed(self.backbone, to_device(inputs, self.device), self.config)[1].float().cpu()
        return x_ND

    def encode_anchors(self, anchors_view: AnchorView, processor: Any = None, *, batch_size: int = 64) -> None:
        """Encode a view of an anchor set with the encoder as it is now, and describe every sample by it from now on.

        Raises:
            AnchorError: If the view has another number of anchors than the configuration.
            EmbeddingError: If an anchor's embedding has no direction.
        """
        if len(anchors_view) != self.config.num_anchors:
            raise AnchorError(
                f"View {anchors_view.name!r} has {len(anchors_view)} anchors, the configuration {self.config.num_anchors}. "
                "A decoder reads one number for each anchor: give the set that it was trained with."
            )
        self._carries(anchors_view.anchors, processor)
        self.projection.set_anchors(self.encode(anchors_view.samples, processor, batch_size=batch_size))
        self.config.anchor_fingerprint = anchors_view.fingerprint
        self.config.anchor_view = anchors_view.name
        self.config.anchor_digest = anchors_view.digest

    def use_projection(self, like: RelativeConfig) -> Self:
        """Describe samples with another configuration's transform, similarity and change of basis.

        The anchors' embeddings stay, so nothing is encoded again; decoders trained before no longer fit.
        """
        for name, value in like.projection.items():
            setattr(self.config, name, value)
        self.config.check()
        self.projection.forget_frame()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)


class _RelativeClassifier(RelativePreTrainedModel):
    """An encoder and a decoder; subclasses name the inputs of their modality, which the Trainer reads."""

    modality: str

    def __init__(
        self, config: RelativeConfig, encoder: RelativeModel | None = None, decoder: RelativeDecoder | None = None
    ) -> None:
        super().__init__(config)
        self.encoder = RelativeModel(config) if encoder is None else _kept(encoder)
        self.decoder = RelativeDecoder(config) if decoder is None else _kept(decoder)
        self.decoder._carries(self.encoder._anchors, None)
        self.post_init()

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        anchors_view: AnchorView | None = None,
        processor: Any = None,
        **settings: Any,
    ) -> Self:
        """An encoder made relative, with a new decoder to be trained.

        Args:
            encoder: Name, folder or loaded model: any `AutoModel`, or a `RelativeModel` whose anchors are kept.
            anchors_view: The anchors as this encoder reads them; not needed for a `RelativeModel`.
            processor: Tokenizer or image processor; found beside `encoder` where that is a name.
            **settings: As for `RelativeModel.from_encoder`; with num_labels, id2label, label2id, problem_type.

        Raises:
            AnchorError: If there is no view, or it is of another modality than this class reads.
            ConfigurationError: If a setting does not exist or has no meaning.
        """
        if not isinstance(encoder, RelativeModel):
            if anchors_view is None:
                raise AnchorError(f"{cls.__name__}.from_encoder needs a view of an anchor set: anchors.view(name).")
            encoder = RelativeModel.from_encoder(encoder, anchors_view, processor, **settings)
        if encoder.config.modality != cls.modality:
            raise AnchorError(
                f"{cls.__name__} reads {cls.modality}s, the view {encoder.config.anchor_view!r} holds "
                f"{encoder.config.modality}s. Take the class of that modality, or another view."
            )
        return cls(encoder.config, encoder)

    @property
    def anchors(self) -> AnchorSet:
        """The raw anchors: see `RelativeModel.anchors`."""
        return self.encoder.anchors

    @property
    def processor(self) -> Any:
        """The tokenizer or image processor of the encoder."""
        return self.encoder.processor

    def _came_from(self, source: Source) -> None:
        super()._came_from(source)
        self.encoder._came_from(source)
        self.decoder._came_from(source)

    def _save_companions(self, root: Path) -> None:
        self.encoder._save_companions(root)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def _classify(
        self, labels: Tensor | None, return_dict: bool | None, **inputs: Any
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        encoded = self.encoder(**inputs)
        decoded = self.decoder(encoded.relative_embeds, labels)
        result = RelativeClassifierOutput(
            loss=decoded.loss,
            logits=decoded.logits,
            relative_embeds=encoded.relative_embeds,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return result.to_tuple() if return_dict is False else result


class RelativeModelForSequenceClassification(_RelativeClassifier):
    """A text encoder and a decoder that gives the classes of a text: single label, multi label or regression."""

    modality = "text"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits (B, C), and the loss where there are labels: (B,) classes, (B, C) for several labels or targets."""
        return self._classify(
            labels,
            return_dict,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )


class RelativeModelForImageClassification(_RelativeClassifier):
    """An image encoder and a decoder that gives the classes of an image."""

    modality = "image"
    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits (B, C), and the loss where there are labels (B,)."""
        return self._classify(
            labels,
            return_dict,
            pixel_values=pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )


class RelativeModelForAudioClassification(_RelativeClassifier):
    """An audio encoder and a decoder that gives the classes of a sound."""

    modality = "audio"
    main_input_name = "input_values"

    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits (B, C) of waveforms (B, T) or spectra (B, F, T), and the loss where there are labels (B,)."""
        return self._classify(
            labels,
            return_dict,
            input_values=input_values,
            input_features=input_features,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )


# Which class reads what: the encoder's modality decides.
CLASSIFIERS: dict[str, type[_RelativeClassifier]] = {
    "text": RelativeModelForSequenceClassification,
    "image": RelativeModelForImageClassification,
    "audio": RelativeModelForAudioClassification,
}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode after: dropout would blur the anchors."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _embed(backbone: nn.Module, inputs: dict[str, Any], config: RelativeConfig) -> tuple[Any, Tensor]:
    """Output of the wrapped model, and its pooled absolute embeddings (B, D)."""
    output = backbone(**inputs, return_dict=True)
    return output, pool(output, _mask_of_output(backbone, output, inputs.get("attention_mask")), config.pooling)


def _mask_of_output(backbone: Any, output: Any, mask_BT: Tensor | None) -> Tensor | None:
    """The mask of the output's vectors: audio encoders give fewer than they read."""
    length = output.last_hidden_state.shape[1]
    if mask_BT is None or output.last_hidden_state.ndim != 3 or mask_BT.shape[1] == length:
        return mask_BT
    if hasattr(backbone, "_get_feature_vector_attention_mask"):
        return backbone._get_feature_vector_attention_mask(length, mask_BT)
    return None  # the encoder reads a fixed length, padding included: Whisper


def _given(**inputs: Any) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if value is not None}


def _kept(module: PreTrainedModel) -> PreTrainedModel:
    """Mark the weights as loaded, so that the `post_init` of what it becomes a part of leaves them alone."""
    for submodule in module.modules():
        submodule._is_hf_initialized = True
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor._is_hf_initialized = True
    return module


def _built(config: RelativeConfig) -> PreTrainedModel:
    """The wrapped model with random weights, to be filled by a load."""
    model_class = MODEL_MAPPING[type(config.encoder_config)]
    idle = config.pooling != "pooler" and _can_do_without_pooler(model_class)
    model = AutoModel.from_config(config.encoder_config, **({"add_pooling_layer": False} if idle else {}))
    return _without_idle_pooler(_tower(model, config.tower), config)


def _tower(model: PreTrainedModel, name: str | None) -> PreTrainedModel:
    """The part of a model that is the encoder."""
    if name is None:
        return model
    tower = getattr(model, name, None)
    if not isinstance(tower, PreTrainedModel):
        raise ConfigurationError(
            f"tower={name!r} is no model inside {type(model).__name__}. Leave it out, or name one."
        )
    return tower


def default_tower(model: PreTrainedModel, modality: str) -> str | None:
    """The encoder of an encoder-decoder; of two towers the one that reads the modality; else the whole model."""
    candidates = {"text": ("text_model", "text_encoder"), "image": ("vision_model", "vision_tower")}
    names = candidates.get(modality, ("audio_model", "audio_tower"))
    names = ("encoder", *names) if model.config.is_encoder_decoder else names
    return next((name for name in names if isinstance(getattr(model, name, None), PreTrainedModel)), None)


def _without_idle_pooler(backbone: PreTrainedModel, config: RelativeConfig) -> PreTrainedModel:
    """The same model, sharing its weights, without a pooler that nobody reads.

    Its weights would get no gradient, which distributed training refuses unless it expects that.
    """
    pooler = getattr(backbone, "pooler", None)
    if config.pooling == "pooler" or not isinstance(pooler, nn.Module):
        return backbone
    if not _can_do_without_pooler(type(backbone)):
        pooler.requires_grad_(False)
        return backbone
    lighter = copy.copy(backbone)  # the caller's model keeps its pooler
    lighter._modules = backbone._modules | {"pooler": None}
    return lighter


def _can_do_without_pooler(model_class: type[PreTrainedModel]) -> bool:
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _loaded(encoder: str | Path | PreTrainedModel, processor: Any) -> tuple[PreTrainedModel, Any, str | None]:
    """The model, its processor, and the Hub id it came from (not a local path, which would leak into configs)."""
    if isinstance(encoder, PreTrainedModel):
        name = encoder.config._name_or_path
        model = encoder
    else:
        name = str(encoder)
        model = AutoModel.from_pretrained(name)
    if processor is None:
        if not name:
            raise ConfigurationError(
                "A model without a name needs its processor: from_encoder(model, view, tokenizer)."
            )
        processor = load_processor(Source.of(name))
    return model, processor, name if name and not Path(name).exists() else None


def _configured(
    config: RelativeConfig | None,
    backbone: PreTrainedModel,
    view: AnchorView,
    processor: Any,
    name: str | None,
    settings: dict[str, Any],
) -> RelativeConfig:
    """The configuration that wraps `backbone`: its own settings over those of `config`, the rest measured."""
    known = {field.name for field in dataclasses.fields(RelativeConfig)} | {"num_labels"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigurationError(
            f"RelativeConfig has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    encoder_config = copy.deepcopy(backbone.config)
    encoder_config._name_or_path = name or ""
    start = {} if config is None else {k: v for k, v in config.to_diff_dict().items() if k in known}
    tower = settings.get("tower", default_tower(backbone, view.modality))
    measured = {
        "pooling": default_pooling(_tower(backbone, tower), view.modality),
        "max_length": _longest(encoder_config, processor) if view.modality == "text" else None,
        "tower": tower,
    }
    return RelativeConfig(
        **measured | start | settings,
        encoder_config=encoder_config,
        attn_implementation=backbone.config._attn_implementation,
        base_model_name_or_path=name,
        modality=view.modality,
        num_anchors=len(view),
        anchor_fingerprint=view.fingerprint,
        anchor_view=view.name,
        anchor_digest=view.digest,
    )


@torch.no_grad()
def _measured_width(backbone: PreTrainedModel, view: AnchorView, processor: Any, config: RelativeConfig) -> int:
    """D, from one anchor: not every configuration says it."""
    _, inputs = next(batches(view.samples[:1], processor, 1, config.max_length))
    with evaluating(backbone):
        return _embed(backbone, to_device(inputs, backbone.device), config)[1].shape[-1]


def _longest(encoder_config: PreTrainedConfig, processor: Any) -> int | None:
    """Longest text in tokens that both the tokenizer and the position embeddings bear."""
    tokenizer = getattr(processor, "tokenizer", processor)
    limits = [tokenizer.model_max_length, getattr(encoder_config.get_text_config(), "max_position_embeddings", None)]
    known = [limit for limit in limits if limit and limit < 1_000_000]
    return min(known) if known else None
