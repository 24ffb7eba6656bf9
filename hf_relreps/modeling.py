"""`RelativeModel`: any `AutoModel` with its pooling and projection; `RelativeTaskModel`: the same and a decoder.

Shapes: B batch, T tokens, N samples, D absolute size, A anchors, R relative size, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from hf_relreps.anchors import AnchorSet, AnchorView
from hf_relreps.base_models import (
    BUILDING,
    Unattached,
    adapter_settings,
    add_adapters,
    base_weights,
    digest,
    first_difference,
    is_frozen,
    load_own_weights,
    own_weights,
)
from hf_relreps.configuration import CLASSIFIERS, DECODER_FIELDS, LABEL_FIELDS, RelativeConfig
from hf_relreps.decoders import RelativeDecoder, warn_of_training_mode
from hf_relreps.errors import (
    AnchorError,
    ConfigurationError,
    RelrepsError,
    SampleError,
    StaleAnchorsError,
    UploadError,
    UploadIntegrityError,
)
from hf_relreps.pooling import default_pooling
from hf_relreps.projection import RelativeProjection, refuse_directionless
from hf_relreps.samples import batches, to_device
from hf_relreps.sources import Source
from hf_relreps.uploads import RelativeUpload, stored_weights
from hf_relreps.wrapping import (
    built,
    configured,
    embed,
    evaluating,
    fetched_base,
    kept,
    loaded,
    measure,
    refuse_unknown_tokens,
    shallow,
    tower_of,
    without_idle_pooler,
)


logger = logging.get_logger(__name__)

CHECKED_ANCHORS = 8
# How far a stored anchor may be from what its encoder makes of it now, as a share of its length: hardware and batches
# round differently. A wrong tokenizer, pooling or view is off by 0.3 and more.
OWN_WITHIN, OWN_WITHIN_HALF = 1e-2, 1e-1


@dataclass
class RelativeModelOutput(ModelOutput):
    """What a `RelativeModel` gives.

    Args:
        last_hidden_state: Token vectors (B, T, D), or a feature map (B, D, H, W), of the wrapped model.
        pooler_output: Absolute embeddings (B, D).
        relative_embeds: Relative representations (B, R), float32 or better.
        hidden_states: Of every layer, if asked for.
        attentions: Of every layer, if asked for.

    Example:
        ```python
        >>> output = english.encoder(**english.processor(["a game of cards"], return_tensors="pt"))
        >>> output.relative_embeds.shape, output.pooler_output.shape
        (torch.Size([1, 40]), torch.Size([1, 32]))

        ```
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
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
        >>> from hf_relreps import AnchorSet, RelativeModel
        >>> from hf_relreps.demos.tiny import small_bert, word_tokenizer
        >>> texts = ["a cat sleeps", "a dog runs", "two birds sing"]
        >>> tokenizer = word_tokenizer(texts)
        >>> bert = small_bert(len(tokenizer), longest=64, width=32)  # or the name of any AutoModel
        >>> encoder = RelativeModel.from_encoder(bert, AnchorSet("abc", {"en": texts}).view("en"), tokenizer)
        >>> encoder(**tokenizer(["a dog sleeps"], return_tensors="pt")).relative_embeds.shape
        torch.Size([1, 3])

        ```
    """

    part = "encoder"
    _anchor_nodes: Tensor | None = None
    _state_of_base: str | None = None  # digest of the backbone's weights when they were last found to be its base's
    backbone: PreTrainedModel
    projection: RelativeProjection

    def __init__(self, config: RelativeConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if not isinstance(config.encoder_config, PreTrainedConfig):
            raise ConfigurationError(
                "An encoder needs encoder_config, which is None: this configuration describes a decoder. "
                "Load it with RelativeDecoder, or build an encoder with RelativeModel.from_encoder(encoder, view)."
            )
        if backbone is not None:
            self.backbone = kept(without_idle_pooler(backbone, config))
        else:
            self.backbone = Unattached() if config.encoder_is_frozen else built(config)  # type: ignore[assignment]
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
        freeze_encoder: bool = False,
        batch_size: int = 64,
        **settings: Any,
    ) -> Self:
        """Make any `AutoModel` relative to a view of an anchor set, and encode the anchors.

        Args:
            encoder: Name, folder or loaded model, with or without adapters (LoRA, ...) in it.
            anchors_view: The anchors as this encoder reads them: ``anchors.view("fr")``.
            processor: Tokenizer or image processor; found beside `encoder` where that is a name.
            config: Where the settings start from, for example ``RelativeConfig.paper()``.
            freeze_encoder: Whether training leaves the encoder as it is; an upload then refers to it, not copies it.
            batch_size: Anchors in a batch while they are encoded.
            **settings: Fields of `RelativeConfig`: pooling, transform, similarity, basis_ridge, num_labels, ...

        Raises:
            ConfigurationError: If a setting does not exist or has no meaning.
            EmbeddingError: If an anchor's embedding has no direction.
        """
        backbone, processor, name = loaded(encoder, processor)
        config = configured(config, backbone, anchors_view, processor, name, settings)
        backbone = tower_of(backbone, config.tower)
        if freeze_encoder:
            backbone.requires_grad_(False)
        measure(backbone, anchors_view, processor, config)
        with BUILDING:
            model = cls(config, backbone)
        model.to(backbone.device)  # type: ignore[arg-type]  # the wrapper of `to` hides self
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
        x: Tensor | None = None,
        edge_index: Tensor | None = None,
        nodes: Tensor | None = None,
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
            x=x,
            edge_index=edge_index,
            nodes=nodes,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        warn_of_training_mode(self)
        output, x_BD = embed(self.backbone, inputs, self.config)
        result = RelativeModelOutput(
            last_hidden_state=getattr(output, "last_hidden_state", None),
            pooler_output=x_BD,
            relative_embeds=self.projection(x_BD, self._live_anchors(output)),
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )
        return result.to_tuple() if return_dict is False else result

    def _live_anchors(self, output: Any) -> Tensor | None:
        """The anchors' embeddings in this very forward pass of a graph, where gradients are to pass through them."""
        if not (self.training and self.config.anchor_gradient):
            return None
        if self._anchor_nodes is None:
            self._anchor_nodes = torch.tensor(self.anchors.view(self.config.anchor_view).samples)
        return output.last_hidden_state[self._anchor_nodes.to(output.last_hidden_state.device)]

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

        Example:
            ```python
            >>> english.encoder.encode(["a game of cards", "a web server"]).shape
            torch.Size([2, 32])

            ```
        """
        processor = self.processor if processor is None else processor
        parts = batches(samples, processor, batch_size, self.config.max_length, self.config.padding)
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
                x_BD = self._embedded(inputs)
                if len(x_BD) != len(rows):
                    raise ConfigurationError(
                        f"The encoder gives {len(x_BD)} embeddings for {len(rows)} samples, expected one for each. "
                        "Choose another pooling or tower."
                    )
                x_ND[rows] = x_BD.float().cpu()
        return x_ND

    def _embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        refuse_unknown_tokens(self.backbone, inputs)
        try:
            return embed(self.backbone, to_device(inputs, self.device), self.config)[1]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, TypeError) as error:  # inputs of a shape or type that it does not take
            raise SampleError(
                f"The encoder cannot read what its processor makes of the samples: {type(error).__name__}: {error}. "
                "Give the processor that it was trained with."
            ) from error

    def encode_anchors(self, anchors_view: AnchorView, processor: Any = None, *, batch_size: int = 64) -> None:
        """Encode a view of an anchor set with the encoder as it is now, and describe every sample by it from now on.

        Raises:
            AnchorError: If the view has another number of anchors than the configuration, or another modality.
            EmbeddingError: If an anchor's embedding has no direction.

        Example:
            ```python
            >>> model = classifier_of("en", seed=3)
            >>> with torch.no_grad():
            ...     _ = model.encoder.backbone.embeddings.word_embeddings.weight.mul_(1.5)  # as a training would
            >>> model.encoder.encode_anchors(anchors.view("en"))
            >>> model.encoder.check_anchors() < 1e-3
            True

            ```
        """
        _refuse_other_modality(anchors_view, self.config.modality, "This encoder")
        if len(anchors_view) != self.config.num_anchors:
            raise AnchorError(
                f"View {anchors_view.name!r} has {len(anchors_view)} anchors, the configuration names "
                f"{self.config.num_anchors}. A decoder reads one number for each anchor: give the set that it was "
                "trained with."
            )
        self.projection.set_anchors(self.encode(anchors_view.samples, processor, batch_size=batch_size))
        self._carries(anchors_view.anchors, processor)
        self._anchor_nodes = None
        self.config.anchor_fingerprint = anchors_view.fingerprint
        self.config.anchor_view = anchors_view.name
        self.config.anchor_digest = anchors_view.digest

    def check_anchors(self, processor: Any = None, *, k: int = CHECKED_ANCHORS) -> float:
        """Encode a few anchors again: whether the stored embeddings are this encoder's own.

        They are not where the encoder was trained on after its anchors were encoded, or where it reads them with
        another tokenizer, pooling or view. Then every relative representation is wrong, though nothing fails.

        Args:
            processor: Tokenizer or image processor, if not the model's own.
            k: How many anchors, spread over the set.

        Returns:
            The largest distance between a stored and a new embedding, as a share of the stored one's length.

        Raises:
            StaleAnchorsError: If that is more than rounding explains.

        Example:
            ```python
            >>> english.encoder.check_anchors() < 1e-3
            True

            ```
        """
        view = self.anchors.view(self.config.anchor_view)
        rows = torch.linspace(0, len(view) - 1, min(k, len(view))).round().long()
        stored_KD = self.projection.anchors_AD[rows.to(self.projection.anchors_AD.device)].detach().cpu().double()
        own_KD = self.encode([view.samples[i] for i in rows], processor).double()
        distance_K = (stored_KD - own_KD).norm(dim=-1) / stored_KD.norm(dim=-1).clamp_min(1e-30)
        largest = float(distance_K.max())
        within = OWN_WITHIN if self.dtype.itemsize >= torch.float32.itemsize else OWN_WITHIN_HALF
        if largest > within:
            raise StaleAnchorsError(
                f"The stored anchors are not this encoder's: encoded again, {int((distance_K > within).sum())} of "
                f"{len(rows)} differ, by up to {largest:.2f} of their length, where rounding explains {within}. The "
                "encoder was trained on after they were encoded (train with AnchorCallback), or its tokenizer, its "
                f"pooling or its view {self.config.anchor_view!r} is another. Encode them anew: "
                "encoder.encode_anchors(encoder.anchors.view(name))."
            )
        return largest

    def _check_before_save(self) -> None:
        """Warn of stored anchors that are not the encoder's own."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return  # a sharded encoder would wait for the other processes
        if isinstance(self.backbone, Unattached) or (self._anchors is None and self._source is None):
            return
        try:
            self.check_anchors()
        except RelrepsError as error:
            logger.warning("The anchors that are saved may not be the encoder's own. %s", error)

    def use_projection(self, like: RelativeConfig) -> Self:
        """Describe samples with another configuration's transform, similarity and change of basis.

        The anchors' embeddings stay, so nothing is encoded again; decoders trained before no longer fit.

        Example:
            ```python
            >>> encoder = classifier_of("en", seed=3).encoder
            >>> encoder.use_projection(RelativeConfig.paper()).config.similarity
            'cosine'

            ```
        """
        for name in like.projection:
            setattr(self.config, name, copy.deepcopy(getattr(like, name)))
        self.config.check()
        self.projection.forget_frame()
        return self

    def _under(self, config: RelativeConfig) -> RelativeModel:
        """The same weights and the same anchors under the configuration of a whole model.

        So what happens to the whole model's configuration does not reach the encoder that it was made from.
        """
        encoder, projection = shallow(self), shallow(self.projection)
        encoder.config = projection.config = config
        projection.forget_frame()
        encoder.projection = projection
        return encoder

    def _refer_to_base(self) -> set[str]:
        """Decide whether the upload can refer to the encoder's base, and note that in the configuration."""
        if isinstance(self.backbone, Unattached):
            raise UploadError("This encoder has no weights yet: load it with from_pretrained before you save it.")
        config = self.config
        config.encoder_adapters = adapter_settings(self.backbone)
        config.encoder_is_frozen = is_frozen(self.backbone) and self._is_its_base()
        if not config.encoder_is_frozen:
            config.base_model_digest = None
            return set()
        own = own_weights(self.backbone)
        return {f"backbone.{name}" for name in self.backbone.state_dict() if name not in own}

    def _is_its_base(self) -> bool:
        """Whether the base on the Hub gives exactly these weights; asked once, unless they change."""
        config, weights = self.config, base_weights(self.backbone)
        state = digest(weights)
        if state == self._state_of_base:
            return True
        name = config.base_model_name_or_path
        if name is None:
            logger.warning("The frozen encoder has no name on the Hub to refer to: it is stored whole.")
            return False
        try:
            base, commit = fetched_base(config)
        except OSError as error:
            logger.warning("The frozen encoder is stored whole, since its base %s cannot be read: %s", name, error)
            return False
        differs = first_difference(weights, base_weights(base))
        if differs:
            logger.warning("The encoder is stored whole: its %s is not the one of %s.", differs, name)
            return False
        config.base_model_revision, config.base_model_digest = commit, digest(base_weights(base))
        self._state_of_base = state
        return True

    def _attach_base(self, source: Source) -> None:
        """Fetch the base that the upload refers to, check it, and put the upload's own adapters into it.

        Only now, after the load: what a load finds in the model without weights for it, it would fill at random.
        """
        if not isinstance(self.backbone, Unattached):
            return
        config = self.config
        try:
            base, _ = fetched_base(config, **source.arguments)
        except OSError as error:
            raise UploadError(
                f"{source} refers to the encoder {config.base_model_name_or_path} at commit "
                f"{config.base_model_revision}, which cannot be read: {error} "
                "Ask its author to store the encoder in the upload."
            ) from error
        found = digest(base_weights(base))
        if found != config.base_model_digest:
            raise UploadIntegrityError(
                f"{source} refers to the encoder {config.base_model_name_or_path} with weights of digest "
                f"{config.base_model_digest}, found {found}: the base was changed, or another version of transformers "
                "reads it differently. Ask its author to store the encoder in the upload."
            )
        base.requires_grad_(False)
        if config.encoder_adapters:
            add_adapters(base, config.encoder_adapters)
            weights = stored_weights(source.below("encoder"))
            named = {name.removeprefix("encoder."): tensor for name, tensor in weights.items()}
            own = {k.removeprefix("backbone."): v for k, v in named.items() if k.startswith("backbone.")}
            load_own_weights(base, own, source)
        if base.dtype == (config.dtype or base.dtype):
            self._state_of_base = found
        place: dict[str, Any] = {"device": self.projection.anchors_AD.device, "dtype": config.dtype}
        self.backbone = base.to(**place).eval()

    def get_input_embeddings(self) -> nn.Module:
        """Those of the wrapped model."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put others into the wrapped model: `resize_token_embeddings` does so."""
        self.backbone.set_input_embeddings(value)


class RelativeTaskModel(RelativePreTrainedModel):
    """An encoder and a decoder; subclasses name the inputs of their modality, which the Trainer reads."""

    modality: str
    decoder_types: tuple[str, ...] = CLASSIFIERS
    encoder: RelativeModel
    decoder: RelativeDecoder

    def __init__(
        self, config: RelativeConfig, encoder: RelativeModel | None = None, decoder: RelativeDecoder | None = None
    ) -> None:
        super().__init__(config)
        if config.decoder_type not in self.decoder_types:
            raise ConfigurationError(
                f"decoder_type={config.decoder_type!r} is none that {type(self).__name__} reads; it takes "
                f"{', '.join(self.decoder_types)}."
            )
        self.encoder = RelativeModel(config) if encoder is None else kept(encoder)
        self.decoder = RelativeDecoder(config) if decoder is None else kept(decoder)
        if self.decoder._anchors is None and self.decoder._source is None:
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
            encoder: Name, folder or loaded model: any `AutoModel`, or a loaded `RelativeModel` whose anchors are kept.
            anchors_view: The anchors as this encoder reads them; none for a `RelativeModel`.
            processor: Tokenizer or image processor; found beside `encoder` where that is a name.
            **settings: As for `RelativeModel.from_encoder`, with num_labels, id2label, label2id, problem_type; for a
                `RelativeModel` these and the decoder's fields.

        Raises:
            AnchorError: If there is no view, or it is of another modality than this class reads.
            ConfigurationError: If a setting does not exist or has no meaning.
        """
        if isinstance(encoder, RelativeModel):
            return cls._on(encoder, anchors_view, settings)
        if anchors_view is None:
            raise AnchorError(f"{cls.__name__}.from_encoder needs a view of an anchor set: anchors.view(name).")
        _refuse_other_modality(anchors_view, cls.modality, cls.__name__)
        encoder = RelativeModel.from_encoder(encoder, anchors_view, processor, **settings)
        _refuse_new_head(encoder.config)
        with BUILDING:
            return cls(encoder.config, encoder)

    @classmethod
    def _on(cls, encoder: RelativeModel, anchors_view: AnchorView | None, settings: dict[str, Any]) -> Self:
        """A new decoder on an encoder that is relative already: the weights are shared, the configuration is not."""
        if encoder.config.modality != cls.modality:
            raise AnchorError(
                f"{cls.__name__} reads {cls.modality}s, this encoder reads {encoder.config.modality}s. "
                "Use the class of that modality."
            )
        if anchors_view is not None and anchors_view.digest != encoder.config.anchor_digest:
            raise AnchorError(
                f"The encoder is described by view {encoder.config.anchor_view!r} of anchors "
                f"{(encoder.config.anchor_fingerprint or 'none')[:16]}, the view given is {anchors_view.name!r} of "
                f"{anchors_view.fingerprint[:16]}. Leave it out, or first call encoder.encode_anchors(view)."
            )
        allowed = {*DECODER_FIELDS, "num_labels", *LABEL_FIELDS}
        unknown = sorted(set(settings) - allowed)
        if unknown:
            raise ConfigurationError(
                f"{', '.join(unknown)} cannot be set for a new decoder on a RelativeModel; it takes "
                f"{', '.join(sorted(allowed))}. What concerns the encoder is set when it is made relative, or with "
                "encoder.use_projection(config)."
            )
        config = copy.deepcopy(encoder.config)
        if config.decoder_type == "head":  # that of an ordinary classifier, from which the encoder was taken
            config.decoder_type = RelativeConfig.decoder_type
        for name, value in settings.items():
            setattr(config, name, value)
        config.check()
        _refuse_new_head(config)
        with BUILDING:
            return cls(config, encoder._under(config))

    @property
    def anchors(self) -> AnchorSet:
        """The raw anchors: see `RelativeModel.anchors`."""
        return self.encoder.anchors

    @property
    def processor(self) -> Any:
        """The tokenizer, image processor or feature extractor of the encoder; see `RelativeModel.processor`."""
        return self.encoder.processor

    @processor.setter
    def processor(self, processor: Any) -> None:
        self.encoder.processor = processor

    def _came_from(self, source: Source) -> None:
        super()._came_from(source)
        self.encoder._came_from(source)
        self.decoder._came_from(source)

    def _check_before_save(self) -> None:
        self.encoder._check_before_save()

    def _save_companions(self, root: Path) -> None:
        self.encoder._save_companions(root)

    def _attach_base(self, source: Source) -> None:
        self.encoder._attach_base(source)

    def _refer_to_base(self) -> set[str]:
        names = {f"encoder.{name}" for name in self.encoder._refer_to_base()}
        for name in ("base_model_revision", "base_model_digest", "encoder_is_frozen", "encoder_adapters"):
            setattr(self.config, name, getattr(self.encoder.config, name))
        places = [self.encoder._source, self.decoder._source]
        origins = [place.name for place in places if place is not None and not place.is_local]
        if self.decoder._source is None and self.config.head_name_or_path:
            origins.append(self.config.head_name_or_path)
        if len(set(origins)) == 2:
            self.config.stitched_from = origins
        return names

    def get_input_embeddings(self) -> nn.Module:
        """Those of the wrapped model."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put others into the wrapped model: `resize_token_embeddings` does so."""
        self.encoder.set_input_embeddings(value)


def _refuse_new_head(config: RelativeConfig) -> None:
    if config.decoder_type == "head":
        raise ConfigurationError(
            "decoder_type='head' is the head of an ordinary classifier, which is not made anew. Take one: "
            "stitch(encoder, classifier, anchors=anchors); or train an 'mlp' or 'linear' decoder."
        )


def _given(**inputs: Any) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if value is not None}


def _refuse_other_modality(view: AnchorView, modality: str, who: str) -> None:
    if view.modality != modality:
        fitting = [name for name in view.anchors.views if view.anchors.view(name).modality == modality]
        raise AnchorError(
            f"{who} reads {modality}s, the view {view.name!r} holds {view.modality}s. Give a view of {modality}s "
            f"(there is {', '.join(map(repr, fitting)) or 'none'}), or take the class of the other modality."
        )
