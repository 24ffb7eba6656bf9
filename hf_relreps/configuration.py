"""The configuration of an encoder, of a decoder, and of the whole model that is composed of the two.

Each part holds its own copy of the space that gives its numbers their meaning: see `hf_relreps.space`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_relreps.errors import ConfigurationError, UploadError
from hf_relreps.idle_layers import left_out_of, place_of, refuse_nested
from hf_relreps.inspection import declared_only, refuse_immense, refuse_unknown_model
from hf_relreps.quantization import check_quantization
from hf_relreps.space import (
    SPACE_FIELDS,
    RelativeSpace,
    refuse_unknown_settings,
    require_one_of,
    require_whole,
    require_within,
)


FORMAT_VERSION = 2
POOLINGS = ("cls", "mean", "last", "pooler", "spatial_mean", "none")
OF_PIECES = ("cls", "mean", "last")  # of the vectors of a word's pieces
SINGLE = ("mlp", "linear", "head")  # decoders that give logits by themselves
MEAN = "mean"  # of the probabilities of decoders of the same classes
CLASSIFIERS = (*SINGLE, MEAN)
AGGREGATIONS = ("concat", "sum")
IMAGE_DECODERS = ("image", "variational")
SEVERAL = "several"  # decoders of one space, by name
PAIR = "pair"  # reads the relative representations of two samples
DECODERS = (*SINGLE, PAIR, *IMAGE_DECODERS)  # those that a setting makes
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
MODALITIES = ("text", "pair", "word", "image", "audio", "node")
IMAGE_BACKENDS = ("pil", "torchvision")  # of transformers' image processors
OF_TOKENS = ("text", "pair", "word")  # modalities whose encoder reads what a tokenizer makes
# Which ordinary classifiers can lend their head, and what heads take of their encoder's output.
HEAD_MODALITIES = ("text", "pair", "word", "image", "audio")
HEAD_READS = ("pooler", "cls", "mean", "last", "spatial_mean", "patch_mean", "cls_and_patch_mean", "token")
# Which part of a model with several reads a modality: attributes of it, the first that is there and does.
TOWERS = {
    "text": ("encoder", "text_model", "text_encoder", "language_model"),
    "image": (
        *("vision_model", "vision_tower", "vision_encoder", "visual", "image_model", "image_encoder", "image_tower"),
        *("high_res_vision_model", "backbone"),
    ),
    "audio": ("encoder", "audio_model", "audio_tower", "audio_encoder", "speech_encoder"),
}
TOWERS["pair"] = TOWERS["word"] = TOWERS["text"]
BELOW_HEADS = ("model", "transformer")

# Words in a downloaded configuration by which transformers would load other code, kernels or files.
SWITCHES = (
    *("auto_map", "custom_pipelines", "trust_remote_code", "code_revision", "transformers_weights", "kernel_config"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "fusion_config"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
    *("quantization_config", "compression_config", "gguf_file", "base_model_tp_plan", "distributed_config"),
)
WRAPPED = ("encoder_config", "head_config")  # fields that hold the configuration of a model of transformers
MOST_DRAWN = 1 << 27  # numbers of one image: 2,048 pixels a side with the usual widths
DECODER_WIDTHS = [256, 128, 64, 32]
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
_COMMON = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"format_version"}
# What transformers' constructor takes beside its fields.
CONSTRUCTOR = frozenset(
    {"model_type", "name_or_path", "num_labels", "torch_dtype", "output_attentions", "pad_token_id"}
    | {"attn_implementation", "experts_implementation", "per_layer_config"}
)
PAPER = {"transform": "none", "similarity": "cosine", "basis_ridge": None}


class _PartConfig(PreTrainedConfig):
    """What the configurations of an encoder and of a decoder share."""

    space: Any = None  # a RelativeSpace, whatever it was given as
    modality: str = "text"
    anchor_view: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        for name in self.sub_configs:
            _refuse_no_architecture(name, getattr(self, name))
        _refuse_unknown(type(self), kwargs)
        fields = {name: kwargs.pop(name) for name in SPACE_FIELDS if name in kwargs}
        self.space = space_of(self.space).replace(**fields)
        # Else a wrapped model's own choice would be reset: the configuration may be a live one.
        for kind in ("attn_implementation", "experts_implementation"):
            kwargs.setdefault(kind, _implementations(self, kind))
        try:
            super().__post_init__(**kwargs)
        except (TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"A field of the configuration has the wrong type: {error}. Check num_labels, id2label, label2id and "
                "encoder_config."
            ) from error
        names: Any = self.id2label
        if isinstance(names, dict):  # files have the numbers as texts, in the order of these
            self.id2label = dict(sorted(names.items()))
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """From a file's content: only declared fields are read, and none that would change how things are loaded."""
        return _read(cls, super().from_dict, config_dict, kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON that say something, the space as a dictionary of its own."""
        idle = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) is None} - _COMMON
        content = {name: value for name, value in super().to_dict().items() if name not in idle}
        if "decoders" in content:
            content["decoders"] = {name: config.to_dict() for name, config in content["decoders"].items()}
        return content | {"space": self.space.to_dict()} if isinstance(self.space, RelativeSpace) else content

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: an upload contains a stub, not a copy of this library."""

    def check(self) -> None:
        """Raise `ConfigurationError` if any field has no meaning."""
        if not isinstance(self.space, RelativeSpace):
            raise ConfigurationError(f"space is {self.space!r:.60}, expected a RelativeSpace.")
        refuse_other_format(self.format_version, "This configuration")
        require_one_of("modality", self.modality, MODALITIES)
        require_text("anchor_view", self.anchor_view)


@strict
class RelativeEncoderConfig(_PartConfig):
    """Configuration of a `RelativeModel`: an encoder, how it is read, and the space that it describes samples in.

    Args:
        encoder_config: Configuration of the wrapped `AutoModel`.
        base_model_name_or_path: Hub id that the encoder started from.
        base_model_revision: Commit of it that a frozen encoder refers to.
        base_model_digest: SHA-256 of the weights there (64 hex digits).
        encoder_is_frozen: Whether the upload references the base instead of storing it.
        encoder_adapters: Settings of the adapters (LoRA, ...) that were trained on a frozen base, by name.
        encoder_quantization: How bitsandbytes has quantized the stored weights, if it has.
        pooling: How token or pixel vectors become one vector of a sample: one of ``cls``, ``mean``, ``last``,
            ``pooler`` (the model's own), ``spatial_mean``, ``none`` (nodes are vectors already); ``None`` chooses what
            suits the encoder. Of words: how the vectors of its pieces become one, the first, their mean or the last.
        layer: Which hidden state is pooled: -1 the last, -3 the third from the end, 0 the output of the embeddings,
            as in the `hidden_states` of transformers. These are taken as the model gives them: GPT-2, Llama, T5 and
            ViT apply their final norm to the last alone. -1 is always `last_hidden_state`. ``None`` chooses: the last,
            and for words -3 where the encoder has six layers or more (`docs/tokens.md` says why). Layers above are
            left out of the encoder where that changes nothing; `layer` counts them all the same.
        embedding_size: D, the width of the pooled absolute embedding.
        max_length: Longest input in tokens; longer texts are truncated. ``None`` leaves it to the tokenizer.
        prompt: Text that the tokenizer adds before every text, anchors and samples alike, as "query: " for e5.
            `from_encoder` finds it in the sentence-transformers files of the encoder where ``None`` is given; an empty
            text means none.
        prompt_ids: Its token ids, to recognise inputs without the prompt.
        pad_token_id: The token that fills texts up, by which a mask is made where none is given.
        image_backend: What its processor prepares images with, ``pil`` or ``torchvision``. They resize slightly
            differently, so an upload is read with its own.
        tower: Which part of a model with several is the encoder: ``encoder``, ``text_model``, ``vision_tower``, ...,
            with dots for a part of a part; ``None`` for the whole.
        padding: Whether samples of unlike length may share a batch: `from_encoder` measures whether padding changes
            an embedding.
        space: The space that samples are described in. Its fields may also be given one by one: similarity, ...
        pair_mark: The token that joins two texts and how often it stands in a pair, to recognise inputs that are none.
        modality: What the encoder reads: ``text``, ``pair`` (two texts at once), ``word`` (texts, token by token),
            ``image``, ``audio`` or ``node``.
        anchor_view: Name of the view of the anchors that it reads.
        anchor_digest: SHA-256 of that view's samples (64 hex digits).
        anchor_gradient: Whether training a graph encoder lets gradients pass through the anchors.
        format_version: Version of the upload's layout.

    Raises:
        ConfigurationError: If a field has an unknown value, or a number is outside its range.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> config = english.encoder.config
        >>> config.pooling, config.embedding_size, config.anchor_view
        ('mean', 32, 'en')

        ```
    """

    model_type = "relreps_encoder"
    keys_to_ignore_at_inference = ["relative_embeds", "hidden_states", "attentions"]  # the Trainer collects the rest
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
    }

    encoder_config: PreTrainedConfig | dict | None = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_model_digest: str | None = None
    encoder_is_frozen: bool = False
    encoder_adapters: dict[str, Any] | None = None
    encoder_quantization: dict[str, Any] | None = None
    pooling: str | None = None
    layer: int | None = None
    embedding_size: int | None = None
    max_length: int | None = None
    prompt: str | None = None
    prompt_ids: list[int] | None = None
    pad_token_id: int | None = None
    pair_mark: list[int] | None = None
    image_backend: str | None = None
    tower: str | None = None
    padding: bool = True
    anchor_digest: str | None = None
    anchor_gradient: bool = False

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The encoder's text configuration: resizing the vocabulary must reach it, or a reload fails."""
        if isinstance(self.encoder_config, PreTrainedConfig):
            return self.encoder_config.get_text_config(decoder=decoder, encoder=encoder)
        return self

    def check(self) -> None:
        """Raise `ConfigurationError` if any field has no meaning."""
        super().check()
        for name in ("base_model_name_or_path", "base_model_revision", "base_model_digest", "anchor_digest"):
            require_text(name, getattr(self, name))
        adapters = self.encoder_adapters
        are_settings = isinstance(adapters, dict) and all(isinstance(one, dict) for one in adapters.values())
        if adapters is not None and not are_settings:
            raise ConfigurationError(
                f"encoder_adapters={self.encoder_adapters!r:.60} must be a dict of settings by adapter name."
            )
        check_quantization(self.encoder_quantization)
        require_one_of("pooling", self.pooling or POOLINGS[0], POOLINGS if self.modality != "word" else OF_PIECES)
        self._check_layer()
        self._check_left_out()
        require_one_of("image_backend", self.image_backend or IMAGE_BACKENDS[0], IMAGE_BACKENDS)
        _check_tower(self.tower)
        if self.anchor_gradient and self.modality != "node":
            raise ConfigurationError(
                "anchor_gradient=True needs anchors that are encoded in the same forward pass as the samples: nodes "
                f"of a graph, not {self.modality}s. Leave it out: AnchorCallback encodes the anchors again during "
                "training."
            )
        self._check_prompt()
        for name in ("embedding_size", "max_length"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), low=1)
        if self.pair_mark is not None and not (_are_tokens(self.pair_mark) and len(self.pair_mark) == 2):
            raise ConfigurationError(f"pair_mark={self.pair_mark!r:.60} must be a token id and a number, or None.")
        if self.pad_token_id is not None:
            require_whole("pad_token_id", self.pad_token_id, low=-1)

    def _check_layer(self) -> None:
        if self.layer is None:
            return
        if not isinstance(self.layer, int) or isinstance(self.layer, bool):
            raise ConfigurationError(
                f"layer={self.layer!r:.60} must be a whole number: -1 is the last hidden state, 0 the output of the "
                "embeddings."
            )
        if self.layer != -1 and self.pooling == "pooler":
            raise ConfigurationError(
                f"pooling='pooler' is computed from the last hidden state, but layer={self.layer} reads another one. "
                "Choose cls, mean, last or spatial_mean, or leave layer out."
            )

    def _check_left_out(self) -> None:
        refuse_nested(self.encoder_config)
        if left_out_of(self.encoder_config) and self.tower is not None:
            raise ConfigurationError(
                f"tower={self.tower!r:.60} is a part of a model, which keeps all layers, but layers_left_out is "
                f"{left_out_of(self.encoder_config)}. Leave it out."
            )
        place_of(self.layer, self.encoder_config)

    def _check_prompt(self) -> None:
        require_text("prompt", self.prompt)
        if self.prompt and self.modality != "text":
            raise ConfigurationError(
                f"prompt={self.prompt!r:.60} needs an encoder of texts, but this one reads {self.modality}s. Leave it "
                "out."
            )
        if self.prompt_ids is not None and not _are_tokens(self.prompt_ids):
            raise ConfigurationError(f"prompt_ids={self.prompt_ids!r:.60} must be a list of token ids, or None.")


@strict
class RelativeDecoderConfig(_PartConfig):
    """Configuration of a `RelativeDecoder`: the space that it reads and its layers. It does not refer to an encoder.

    Args:
        decoder_type: ``mlp`` or ``linear`` for classes and numbers, ``image`` or ``variational`` for images, each
            behind a LayerNorm; ``head`` for the head of an ordinary classifier: see `hf_relreps.translation`;
            ``pair`` for classes of two samples at once; ``several`` for decoders of one space by name; ``mean`` for
            the mean of the probabilities of decoders with the same classes: see `hf_relreps.trust.calibrate`.
        decoder_aggregation: How the spaces of several similarities become one input of the decoder: ``concat`` side
            by side, or ``sum`` of a LayerNorm and a layer of `decoder_hidden_size` for each.
        decoder_hidden_size: Width of the hidden layer of the ``mlp``, and of the latent of ``variational``.
        decoder_dropout: Dropout before the last layer of the decoder.
        decoder_noise: Standard deviation of the Gaussian noise that training adds to the normalised relative
            representation; it makes a decoder tolerant of another encoder.
        decoder_widths: Channels before each step of an image decoder, each of which doubles the side.
        image_size: Height and width of the images to draw; ``None`` for decoders that draw none.
        num_channels: Channels of the images to draw.
        head_config: Configuration of the ordinary classifier whose head is the decoder.
        head_modality: What that classifier reads: ``text``, ``pair``, ``word`` (it classifies tokens), ``image`` or
            ``audio``.
        head_reads: Which output of its encoder the head reads: a name in `hf_relreps.heads.READINGS`.
        head_size: E, the width of that.
        head_name_or_path: Hub id of that classifier.
        head_pair: SHA-256 (64 hex digits) of the embedded anchors of the only encoder that fits; ``None`` for any.
        decoders: Configurations of the decoders of ``several`` and ``mean`` by name, in the order of their names.
        temperature: What the logits of ``mean`` are divided by.
        space: The space that it was trained on. Its fields may also be given one by one: similarity, num_anchors, ...
        modality: What was read where it was trained: ``text``, ``pair``, ``word``, ``image``, ``audio`` or ``node``.
        anchor_view: Name of the view of the anchors that was read there.
        format_version: Version of the upload's layout.

    Raises:
        ConfigurationError: If a field has an unknown value, or a number is outside its range.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps import RelativeDecoder, RelativeDecoderConfig
        >>> config = RelativeDecoderConfig(space=english.encoder.config.space, num_labels=5)
        >>> RelativeDecoder(config).config.space == english.decoder.config.space
        True

        ```
    """

    model_type = "relreps_decoder"
    sub_configs_defaults = {
        "head_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
    }

    decoder_type: str = "mlp"
    decoder_aggregation: str = "concat"
    decoder_hidden_size: int = 256
    decoder_dropout: float = 0.1
    decoder_noise: float = 0.5
    decoder_widths: list[int] | None = None
    image_size: int | None = None
    num_channels: int | None = None
    head_config: PreTrainedConfig | dict | None = None
    head_modality: str | None = None
    head_reads: str | None = None
    head_size: int | None = None
    head_name_or_path: str | None = None
    head_pair: str | None = None
    decoders: dict[str, Any] | None = None
    temperature: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoders is not None:
            self.decoders = _named_decoders(self.decoders)
        if self.decoder_type in IMAGE_DECODERS:
            self.decoder_widths = DECODER_WIDTHS.copy() if self.decoder_widths is None else list(self.decoder_widths)
            self.image_size = 28 if self.image_size is None else self.image_size
            self.num_channels = 3 if self.num_channels is None else self.num_channels
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """Raise `ConfigurationError` if any field has no meaning."""
        super().check()
        for name in ("head_name_or_path", "head_pair"):
            require_text(name, getattr(self, name))
        if self.decoder_type not in (SEVERAL, MEAN):
            require_one_of("decoder_type", self.decoder_type, DECODERS)
        require_one_of("decoder_aggregation", self.decoder_aggregation, AGGREGATIONS)
        require_one_of("head_modality", self.head_modality or HEAD_MODALITIES[0], HEAD_MODALITIES)
        require_one_of("head_reads", self.head_reads or HEAD_READS[0], HEAD_READS)
        if self.problem_type is not None:
            require_one_of("problem_type", self.problem_type, PROBLEMS)
        require_whole("num_labels", self.num_labels, low=1)
        require_whole("decoder_hidden_size", self.decoder_hidden_size, low=1)
        for name in ("image_size", "num_channels", "head_size"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), low=1)
        if self.decoder_widths is not None:
            widths = self.decoder_widths if isinstance(self.decoder_widths, list | tuple) else []
            if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
                raise ConfigurationError(
                    f"decoder_widths={self.decoder_widths} must be a list of positive numbers, one for each step."
                )
        if self.decoder_type in IMAGE_DECODERS:
            self._refuse_immense_images()
        require_within("decoder_dropout", self.decoder_dropout, low=0, high=1)
        require_within("decoder_noise", self.decoder_noise, low=0)
        self._check_decoders()

    def _refuse_immense_images(self) -> None:
        widths = self.decoder_widths or [1]
        side = max(self.image_size or 1, 2 ** min(len(widths), 64))  # each step doubles it
        if side * side * max(widths[-1], self.num_channels or 1) > MOST_DRAWN:
            raise ConfigurationError(
                f"image_size={self.image_size}, num_channels={self.num_channels} and {len(widths)} steps "
                f"(decoder_widths) make more than {MOST_DRAWN} numbers of one image. Draw smaller images."
            )

    @property
    def questions(self) -> dict[str, RelativeDecoderConfig]:
        """Configurations of the decoders of ``several`` by name, each of which answers a question; else nothing."""
        return self.decoders or {} if self.decoder_type == SEVERAL else {}

    def _check_decoders(self) -> None:
        if (self.decoders is None) != (self.decoder_type not in (SEVERAL, MEAN)):
            raise ConfigurationError(
                f"decoder_type={self.decoder_type!r} and decoders={list(self.decoders or {})} contradict each other: "
                f"{SEVERAL!r} and {MEAN!r} have decoders by name, and nothing else has. Make one with "
                "RelativeDecoder.from_decoders."
            )
        if self.temperature is not None:
            require_within("temperature", self.temperature, low=1e-9, high=1e9)
        expected = CLASSIFIERS if self.decoder_type == SEVERAL else SINGLE
        for name, config in (self.decoders or {}).items():
            config.check()
            if config.space != self.space or config.decoder_type not in expected:
                raise ConfigurationError(
                    f"Decoder {name!r} is of type {config.decoder_type!r} and reads {config.space}, expected "
                    f"{', '.join(expected)} that read {self.space}. Make it anew: RelativeDecoder.from_decoders."
                )
            if self.decoder_type == MEAN and config.id2label != self.id2label:
                raise ConfigurationError(
                    f"Decoder {name!r} has the classes {list((config.id2label or {}).values())!r:.60}, the mean "
                    f"{list((self.id2label or {}).values())!r:.60}. A mean is one of the same classes."
                )


class RelativeConfig(PreTrainedConfig):
    """Configuration of a whole relative model: that of its encoder and that of its decoder.

    Plain settings are passed to the part that has them, and the settings of the space to both. So a
    `RelativeConfig` is also where the settings of `from_encoder` may start from.

    Args:
        encoder: The encoder's configuration.
        decoder: The decoder's, with the classes.
        stitched_from: Uploads that the encoder and the decoder were taken from, if they were stitched.
        format_version: Version of the upload's layout.
        **settings: Fields of `RelativeEncoderConfig`, `RelativeDecoderConfig` and `RelativeSpace`.

    Raises:
        ConfigurationError: If a field has an unknown value, or a number is outside its range.

    Example:
        ```python
        >>> from hf_relreps import RelativeConfig
        >>> config = RelativeConfig.paper(num_anchors=300, num_labels=5)
        >>> print(config.space)
        300 anchors none, none, cosine
        >>> config.decoder.num_labels, config.num_labels, config.space.size
        (5, 5, 300)
        >>> RelativeConfig.from_dict(config.to_dict()).check()

        ```
    """

    model_type = "relreps"
    keys_to_ignore_at_inference = RelativeEncoderConfig.keys_to_ignore_at_inference
    sub_configs_defaults = {
        "encoder": SubConfigSpec(config_class=RelativeEncoderConfig),
        "decoder": SubConfigSpec(config_class=RelativeDecoderConfig),
    }

    def __init__(
        self,
        encoder: RelativeEncoderConfig | dict[str, Any] | None = None,
        decoder: RelativeDecoderConfig | dict[str, Any] | None = None,
        stitched_from: list[str] | None = None,
        format_version: int = FORMAT_VERSION,
        **settings: Any,
    ) -> None:
        _refuse_unknown(type(self), settings)
        self.encoder: RelativeEncoderConfig = _part(RelativeEncoderConfig, encoder, settings)
        self.decoder: RelativeDecoderConfig = _part(RelativeDecoderConfig, decoder, settings)
        self.stitched_from = stitched_from
        self.format_version = format_version
        rest = {name: value for name, value in settings.items() if name not in SETTINGS}
        for kind in ("attn_implementation", "experts_implementation"):
            rest.setdefault(kind, _implementations(self, kind))
        super().__init__(**rest)
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """From a file's content: only declared fields are read, and none that would change how things are loaded."""
        return _read(cls, super().from_dict, config_dict, kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON that say something."""
        content = super().to_dict()
        return {name: value for name, value in content.items() if name != "stitched_from" or value is not None}

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: an upload contains a stub, not a copy of this library."""

    @classmethod
    def paper(cls, **settings: Any) -> Self:
        """The projection of Moschella et al. (ICLR 2023): plain cosines, no transform, no change of basis."""
        return cls(**PAPER | settings)

    def __setattr__(self, name: str, value: Any) -> None:
        owner = owner_of(name)
        if owner is not None:
            raise ConfigurationError(
                f"{name} is a setting of the {owner}: set config.{owner}.{name}; nothing reads config.{name}."
            )
        super().__setattr__(name, value)

    @property
    def space(self) -> RelativeSpace:
        """The space of the encoder, which is the decoder's too."""
        return self.encoder.space

    @property
    def modality(self) -> str:
        """What the encoder reads."""
        return self.encoder.modality

    @property
    def anchor_view(self) -> str | None:
        """Which view of the anchors the encoder reads."""
        return self.encoder.anchor_view

    # The classes are the decoder's. transformers asks the whole for them.
    @property  # type: ignore[misc]  # transformers declares a field
    def id2label(self) -> Any:
        """The decoder's names of classes."""
        return self.decoder.id2label

    @id2label.setter
    def id2label(self, value: Any) -> None:
        self._label("id2label", value)

    @property  # type: ignore[misc]  # transformers declares a field
    def label2id(self) -> Any:
        """The decoder's numbers of classes by name."""
        return self.decoder.label2id

    @label2id.setter
    def label2id(self, value: Any) -> None:
        self._label("label2id", value)

    @property  # type: ignore[misc]  # transformers declares a field
    def problem_type(self) -> Any:
        """What the decoder's labels are."""
        return self.decoder.problem_type

    @problem_type.setter
    def problem_type(self, value: Any) -> None:
        self._label("problem_type", value)

    def _label(self, name: str, value: Any) -> None:
        if value is not None or "_post_init_done" in self.__dict__:  # transformers' constructor begins with None
            setattr(self.decoder, name, value)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The encoder's text configuration: resizing the vocabulary must reach it, or a reload fails."""
        return self.encoder.get_text_config(decoder=decoder, encoder=encoder)

    def check(self) -> None:
        """Raise `ConfigurationError` if any field has no meaning."""
        refuse_other_format(self.format_version, "This configuration")
        if self.stitched_from is not None and not _are_texts(self.stitched_from):
            raise ConfigurationError(f"stitched_from={self.stitched_from!r:.60} must be a list of strings, or None.")
        self.encoder.check()
        self.decoder.check()


AnyRelativeConfig = RelativeConfig | RelativeEncoderConfig | RelativeDecoderConfig
CONFIG_CLASSES: dict[str, Any] = {
    config_class.model_type: config_class
    for config_class in (RelativeConfig, RelativeEncoderConfig, RelativeDecoderConfig)
}
# Settings by the part that they concern; what describes the space and where it was learnt concerns both.
SHARED_SETTINGS = frozenset({*SPACE_FIELDS, "space", "modality", "anchor_view"})
ENCODER_SETTINGS = (
    frozenset({field.name for field in dataclasses.fields(RelativeEncoderConfig)} - _COMMON) | SHARED_SETTINGS
)
DECODER_SETTINGS = (
    frozenset(
        {field.name for field in dataclasses.fields(RelativeDecoderConfig)} - _COMMON | {"num_labels", *LABEL_FIELDS}
    )
    - SHARED_SETTINGS
)
SETTINGS = ENCODER_SETTINGS | DECODER_SETTINGS


def owner_of(name: str) -> str | None:
    """Which part a field of a whole configuration belongs to; ``None`` for those that the whole has or hands on.

    transformers itself sets `pad_token_id` on whatever configuration it trains.
    """
    if name in (SHARED_SETTINGS - set(SPACE_FIELDS)) | {"num_labels", *LABEL_FIELDS, "pad_token_id"}:
        return None
    if name in SPACE_FIELDS:
        return "space"
    return "encoder" if name in ENCODER_SETTINGS else "decoder" if name in DECODER_SETTINGS else None


def _refuse_unknown(config_class: Any, given: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for a setting that nothing reads; private fields are transformers' own."""
    known = {field.name for field in dataclasses.fields(config_class)} - _COMMON
    known |= SETTINGS if config_class is RelativeConfig else {*SPACE_FIELDS, *LABEL_FIELDS, "num_labels"}
    shown = {name: value for name, value in given.items() if name not in CONSTRUCTOR | _COMMON and name[:1] != "_"}
    refuse_unknown_settings(shown, known, config_class.__name__)


def refuse_other_names(names: Iterable[Any]) -> None:
    """Raise `ConfigurationError` unless there are names of decoders, each one an identifier."""
    names = list(names)
    wrong = [name for name in names if not isinstance(name, str) or not name.isidentifier()]
    if wrong or not names:
        found = f"{wrong[0]!r:.60}" if wrong else "none"
        raise ConfigurationError(
            f"Decoders need names that are Python identifiers, such as 'section' and 'tone'; found {found}. Give a "
            "mapping: stitch(encoder, {'section': a, 'tone': b})."
        )


def _named_decoders(decoders: Any) -> dict[str, RelativeDecoderConfig]:
    """In the order of their names, which is that of their weights."""
    if not isinstance(decoders, Mapping):
        raise ConfigurationError(f"decoders={decoders!r:.60} must be configurations of decoders by name.")
    refuse_other_names(decoders)
    return {name: _part(RelativeDecoderConfig, decoders[name], {}) for name in sorted(decoders)}


def space_of(found: Any) -> RelativeSpace:
    """A space from itself, from its fields by name, or the default one."""
    if isinstance(found, RelativeSpace):
        return found
    return RelativeSpace() if found is None else RelativeSpace.from_dict(found)


def is_ours(content: Mapping[str, Any] | None) -> bool:
    """Whether the content of a ``config.json`` describes a relative model or a part of one."""
    kind = None if content is None else content.get("model_type")
    return isinstance(kind, str) and kind in CONFIG_CLASSES


def config_from(content: Mapping[str, Any]) -> AnyRelativeConfig:
    """The configuration that a ``config.json`` of ours holds: of a whole model or of a part.

    Raises:
        ConfigurationError: If it holds none, or fields that have no meaning.
        UploadError: If it is of another format.
    """
    if not is_ours(content):
        raise ConfigurationError(
            f"model_type is {content.get('model_type')!r:.60}, expected {', '.join(CONFIG_CLASSES)}."
        )
    return CONFIG_CLASSES[content["model_type"]].from_dict(dict(content))


def refuse_other_format(version: Any, what: str) -> None:
    """Raise `UploadError` unless the layout is the one that this library writes."""
    require_whole("format_version", version, low=1)
    if version > FORMAT_VERSION:
        raise UploadError(
            f"{what} has format version {version}; the installed hf_relreps reads version {FORMAT_VERSION}. "
            "Update it: pip install -U hf_relreps."
        )
    if version < FORMAT_VERSION:
        raise UploadError(
            f"{what} has format version {version}, from before the first release of hf_relreps; this version reads "
            f"{FORMAT_VERSION}. Create the upload again with the installed version, or ask its author to."
        )


def require_text(field: str, found: Any) -> None:
    """Raise `ConfigurationError` unless a field is a text or ``None``."""
    if not isinstance(found, str | None):
        raise ConfigurationError(f"{field}={found!r:.60} must be a string, or None.")


def changed(config: Any, settings: Mapping[str, Any]) -> Any:
    """A new configuration of a part: the fields of `config` with some settings over them.

    Settings may be fields of its space. New classes take the place of all that was said of the old ones.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if settings.get("num_labels") == config.num_labels:  # as many as there are: they keep their names
        settings = {name: value for name, value in settings.items() if name != "num_labels"}
    if {"num_labels", *LABEL_FIELDS} & set(settings):
        fields = {name: value for name, value in fields.items() if name not in LABEL_FIELDS}
    return type(config)(**copy.deepcopy(fields) | dict(settings))


def _part(config_class: Any, content: Any, settings: Mapping[str, Any]) -> Any:
    """The configuration of a part with those of the settings that concern it."""
    known = ENCODER_SETTINGS if config_class is RelativeEncoderConfig else DECODER_SETTINGS | SHARED_SETTINGS
    given = {name: value for name, value in settings.items() if name in known}
    if content is None:
        return config_class(**given)
    if not isinstance(content, config_class | dict):
        raise ConfigurationError(
            f"Found {content!r:.60} ({type(content).__name__}), expected a {config_class.__name__} or its fields."
        )
    config = config_class.from_dict(content) if isinstance(content, dict) else content
    return changed(config, given) if given else config


def _read(config_class: Any, from_dict: Any, content: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """A configuration from outside: see `RelativeConfig.from_dict`."""
    refuse_other_format(content.get("format_version", 1), "The configuration")
    declared = {field.name for field in dataclasses.fields(config_class)} | {"num_labels"}
    declared |= {"encoder", "decoder", "stitched_from", "format_version"} if config_class is RelativeConfig else set()
    known = {name: value for name, value in content.items() if name in declared}
    refuse_immense(known)
    known = _without_switches(known)
    for name in WRAPPED:
        for part in (known, *(known.get(one) for one in ("encoder", "decoder"))):
            if isinstance(part, dict) and isinstance(part.get(name), dict):
                part[name] = declared_only(part[name])
                refuse_unknown_model(part[name], name)
    try:
        return from_dict(known, **kwargs)
    except (OSError, ValueError):
        raise
    except Exception as error:  # fields of the encoder's configuration may be of any type
        raise ConfigurationError(f"The configuration cannot be read: {type(error).__name__}: {error}") from error


def _implementations(config: Any, kind: str) -> dict[str, Any] | None:
    """Which implementation each wrapped model uses now: transformers' constructor would reset it."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    configs = {name: part for name, part in parts.items() if isinstance(part, PreTrainedConfig)}
    found = {name: getattr(part, f"_{kind}", None) for name, part in configs.items()}
    if not any(found.values()):
        return None
    return {"": next(filter(None, found.values())), **found}


def _without_switches(config: Any) -> Any:
    """A configuration from outside, nested ones too, without what would choose code, kernels or other files."""
    if isinstance(config, dict):
        return {name: _without_switches(value) for name, value in config.items() if name not in SWITCHES}
    if isinstance(config, list):
        return [_without_switches(value) for value in config]
    return config


def _are_texts(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(text, str) for text in found)


def _are_tokens(found: Any) -> bool:
    return isinstance(found, list | tuple) and len(found) > 0 and all(isinstance(i, int) and i >= 0 for i in found)


def _refuse_no_architecture(field: str, found: Any) -> None:
    if isinstance(found, dict) and not isinstance(found.get("model_type"), str):
        raise ConfigurationError(
            f"{field} has model_type {found.get('model_type')!r}, expected the name of an architecture such as "
            "'bert'. Give AutoConfig.from_pretrained(name), or pull the upload again."
        )
    if not isinstance(found, dict | PreTrainedConfig | None):
        raise ConfigurationError(
            f"{field} is {found!r:.60} ({type(found).__name__}), expected the configuration of an AutoModel."
        )


def _check_tower(found: Any) -> None:
    names = tuple(dict.fromkeys([*(name for parts in TOWERS.values() for name in parts), *BELOW_HEADS]))
    if found is not None and not set(str(found).split(".")) <= set(names):
        require_one_of("tower", str(found), names)
