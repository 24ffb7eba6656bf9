"""The configuration of an encoder, of a decoder, and of the whole model that is composed of the two.

Each part holds its own copy of the space that gives its numbers their meaning: see `hf_relreps.space`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_relreps.errors import ConfigurationError, UploadError
from hf_relreps.space import SPACE_FIELDS, RelativeSpace, require_one_of, require_whole, require_within


FORMAT_VERSION = 2
POOLINGS = ("cls", "mean", "last", "pooler", "spatial_mean", "none")
CLASSIFIERS = ("mlp", "linear", "head")
AGGREGATIONS = ("concat", "sum")
IMAGE_DECODERS = ("image", "variational")
DECODERS = (*CLASSIFIERS, *IMAGE_DECODERS)
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
MODALITIES = ("text", "image", "audio", "node")
# Which ordinary classifiers can lend their head, and what heads take of their encoder's output.
HEAD_MODALITIES = ("text", "image", "audio")
HEAD_READS = ("pooler", "cls", "mean", "last", "spatial_mean", "patch_mean", "cls_and_patch_mean")
# Which part of a model with several reads a modality: attributes of it, the first that is there and does.
TOWERS = {
    "text": ("encoder", "text_model", "text_encoder", "language_model"),
    "image": (
        *("vision_model", "vision_tower", "vision_encoder", "visual", "image_model", "image_encoder", "image_tower"),
        *("high_res_vision_model", "backbone"),
    ),
    "audio": ("encoder", "audio_model", "audio_tower", "audio_encoder", "speech_encoder"),
}
BELOW_HEADS = ("model", "transformer")

# Words in a downloaded configuration by which transformers would load other code, kernels or files.
SWITCHES = (
    *("auto_map", "custom_pipelines", "trust_remote_code", "code_revision", "transformers_weights", "kernel_config"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "fusion_config"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
)
DECODER_WIDTHS = [256, 128, 64, 32]
# Words in the names of fields that count things, and how many a model may have of them.
MOST = {"num_labels": 1_000_000, "experts": 10_000, "layers": 1_000, "depth": 1_000, "blocks": 1_000, "stages": 1_000}
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
_COMMON = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"format_version"}
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
        fields = {name: kwargs.pop(name) for name in SPACE_FIELDS if name in kwargs}
        self.space = space_of(self.space).replace(**fields)
        # Else a wrapped model's own choice would be reset: the configuration may be a live one.
        for kind in ("attn_implementation", "experts_implementation"):
            kwargs.setdefault(kind, _implementations(self, kind))
        try:
            super().__post_init__(**kwargs)
        except (TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"A field of the configuration is of another type than expected: {error}. Look at num_labels, "
                "id2label, label2id and encoder_config."
            ) from error
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """From a file's content: only declared fields are read, and none that would change how things are loaded."""
        return _read(cls, super().from_dict, config_dict, kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON that say something, the space as a dictionary of its own."""
        idle = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) is None} - _COMMON
        content = {name: value for name, value in super().to_dict().items() if name not in idle}
        return content | {"space": self.space.to_dict()} if isinstance(self.space, RelativeSpace) else content

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: an upload brings a stub, not a copy of this library."""

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
        encoder_is_frozen: Whether the upload refers to the base in place of storing it.
        encoder_adapters: Settings of the adapters (LoRA, ...) that were trained on a frozen base, by name.
        pooling: How token or pixel vectors become one vector of a sample: one of ``cls``, ``mean``, ``last``,
            ``pooler`` (the model's own), ``spatial_mean``, ``none`` (nodes are vectors already); ``None`` chooses what
            suits the encoder.
        embedding_size: D, the width of the pooled absolute embedding.
        max_length: Longest input in tokens; longer texts are truncated. ``None`` leaves it to the tokenizer.
        pad_token_id: The token that fills texts up, by which a mask is made where none is given.
        tower: Which part of a model with several is the encoder: ``encoder``, ``text_model``, ``vision_tower``, ...,
            with dots for a part of a part; ``None`` for the whole.
        padding: Whether samples of unlike length may share a batch: `from_encoder` measures whether padding changes
            an embedding.
        space: The space that samples are described in. Its fields may also be given one by one: similarity, ...
        modality: What the encoder reads: ``text``, ``image``, ``audio`` or ``node``.
        anchor_view: Name of the view of the anchors that it reads.
        anchor_digest: SHA-256 of that view's samples (64 hex digits).
        anchor_gradient: Whether training a graph encoder lets gradients pass through the anchors.
        format_version: Version of the upload's layout.

    Raises:
        ConfigurationError: If a field names something that does not exist, or a number lies outside its range.

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
    pooling: str | None = None
    embedding_size: int | None = None
    max_length: int | None = None
    pad_token_id: int | None = None
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
        if not isinstance(self.encoder_adapters, dict | None):
            raise ConfigurationError(f"encoder_adapters={self.encoder_adapters!r:.60} must hold settings by name.")
        require_one_of("pooling", self.pooling or POOLINGS[0], POOLINGS)
        _check_tower(self.tower)
        if self.anchor_gradient and self.modality != "node":
            raise ConfigurationError(
                "anchor_gradient=True needs anchors that are encoded in the same forward pass as the samples: nodes "
                f"of a graph, not {self.modality}s. Leave it out: AnchorCallback encodes the anchors again and again."
            )
        for name in ("embedding_size", "max_length"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), low=1)
        if self.pad_token_id is not None:
            require_whole("pad_token_id", self.pad_token_id, low=-1)


@strict
class RelativeDecoderConfig(_PartConfig):
    """Configuration of a `RelativeDecoder`: the space that it reads, and what it makes of it. It names no encoder.

    Args:
        decoder_type: ``mlp`` or ``linear`` for classes and numbers, ``image`` or ``variational`` for images, each
            behind a LayerNorm; ``head`` for the head of an ordinary classifier: see `hf_relreps.translation`.
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
        head_modality: What that classifier reads: ``text``, ``image`` or ``audio``.
        head_reads: What its head takes of its own encoder's output: a name in `hf_relreps.heads.READINGS`.
        head_size: E, the width of that.
        head_name_or_path: Hub id of that classifier.
        head_pair: SHA-256 (64 hex digits) of the embedded anchors of the only encoder that fits; ``None`` for any.
        space: The space that it was trained on. Its fields may also be given one by one: similarity, num_anchors, ...
        modality: What was read where it was trained: ``text``, ``image``, ``audio`` or ``node``.
        anchor_view: Name of the view of the anchors that was read there.
        format_version: Version of the upload's layout.

    Raises:
        ConfigurationError: If a field names something that does not exist, or a number lies outside its range.

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

    def __post_init__(self, **kwargs: Any) -> None:
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
                    f"decoder_widths={self.decoder_widths} must hold one positive number for each step."
                )
        require_within("decoder_dropout", self.decoder_dropout, low=0, high=1)
        require_within("decoder_noise", self.decoder_noise, low=0)


class RelativeConfig(PreTrainedConfig):
    """Configuration of a whole relative model: that of its encoder and that of its decoder.

    Plain settings are handed to the part that they concern, and what describes the space to both. So a
    `RelativeConfig` is also where the settings of `from_encoder` may start from.

    Args:
        encoder: The encoder's configuration.
        decoder: The decoder's, with the classes.
        stitched_from: Uploads that the encoder and the decoder were taken from, if they were stitched.
        format_version: Version of the upload's layout.
        **settings: Fields of `RelativeEncoderConfig`, `RelativeDecoderConfig` and `RelativeSpace`.

    Raises:
        ConfigurationError: If a field names something that does not exist, or a number lies outside its range.

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
        """Nothing: an upload brings a stub, not a copy of this library."""

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
            raise ConfigurationError(f"stitched_from={self.stitched_from!r:.60} must be a list of names, or None.")
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


def space_of(found: Any) -> RelativeSpace:
    """A space from itself, from its fields by name, or the default one."""
    if isinstance(found, RelativeSpace):
        return found
    return RelativeSpace() if found is None else RelativeSpace.from_dict(found)


def is_ours(content: Mapping[str, Any] | None) -> bool:
    """Whether the content of a ``config.json`` describes a relative model or a part of one."""
    return content is not None and content.get("model_type") in CONFIG_CLASSES


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
            f"{FORMAT_VERSION}. Make the upload again with the version installed here, or ask its author."
        )


def require_text(field: str, found: Any) -> None:
    """Raise `ConfigurationError` unless a field is a text or ``None``."""
    if not isinstance(found, str | None):
        raise ConfigurationError(f"{field}={found!r:.60} must be a text, or None.")


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
    try:
        return from_dict(_without_switches(known), **kwargs)
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


def refuse_immense(config: Any) -> None:
    """Raise `ConfigurationError` for counts that no model has: each label and each layer costs time and memory."""
    if isinstance(config, list):
        for part in config:
            refuse_immense(part)
    for name, value in config.items() if isinstance(config, dict) else ():
        counts = [count for count in (value if isinstance(value, list) else [value]) if isinstance(count, int | float)]
        words = f"_{name}_".replace("depths", "depth")  # whole words: depthwise is no depth
        most = next((most for word, most in MOST.items() if f"_{word}_" in words), None)
        if most is not None and any(count > most for count in counts):
            raise ConfigurationError(
                f"{name}={value!r:.60} is more than any model has; at most {most} are built. Do not use this upload."
            )
        refuse_immense(value)


def _are_texts(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(text, str) for text in found)


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
