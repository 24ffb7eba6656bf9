"""`RelativeConfig`: everything that makes two parts fit, or not, in one JSON file."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_relreps.errors import ConfigurationError
from hf_relreps.similarities import KERNELS, RBF_GAMMA, SIMILARITIES


FORMAT_VERSION = 1
TRANSFORMS = ("none", "center", "standardize", "whiten")
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
# Words in the names of fields that count things, and how many a model may have of them.
MOST = {"num_labels": 1_000_000, "experts": 10_000, "layers": 1_000, "depth": 1_000, "blocks": 1_000, "stages": 1_000}
TEXT_FIELDS = (
    *("base_model_name_or_path", "base_model_revision", "base_model_digest", "head_name_or_path"),
    *("head_pair", "anchor_fingerprint", "anchor_view", "anchor_digest"),
)
# What a decoder's own configuration does not tell: it never sees an encoder.
ENCODER_FIELDS = (
    *("encoder_config", "base_model_name_or_path", "base_model_revision", "base_model_digest", "encoder_adapters"),
    *("stitched_from", "embedding_size", "max_length"),
)
PROJECTION_FIELDS = ("transform", "similarity", "basis_ridge", "rbf_gamma", "shrinkage")
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
# Those that name what one side of a stitch brings along.
DECODER_FIELDS = (
    *("decoder_type", "decoder_aggregation", "decoder_hidden_size", "decoder_dropout", "decoder_noise"),
    *("head_config", "head_modality", "head_reads", "head_size", "head_name_or_path", "head_pair"),
    *("decoder_widths", "image_size", "num_channels"),
)


@strict
class RelativeConfig(PreTrainedConfig):
    """Configuration of a relative model and of each of its parts.

    Args:
        encoder_config: Configuration of the wrapped `AutoModel`; ``None`` in a decoder's own upload.
        base_model_name_or_path: Hub id that the encoder started from.
        base_model_revision: Commit of it that a frozen encoder refers to.
        base_model_digest: SHA-256 of the weights there (64 hex digits).
        encoder_is_frozen: Whether the upload refers to the base in place of storing it.
        encoder_adapters: Settings of the adapters (LoRA, ...) that were trained on a frozen base, by name.
        stitched_from: Uploads that the encoder and the decoder were taken from, if they were stitched.
        pooling: How token or pixel vectors become one vector of a sample: one of ``cls``, ``mean``, ``last``,
            ``pooler`` (the model's own), ``spatial_mean``, ``none`` (nodes are vectors already); ``None`` chooses what
            suits the encoder.
        embedding_size: D, the width of the pooled absolute embedding.
        max_length: Longest input in tokens; longer texts are truncated. ``None`` leaves it to the tokenizer.
        modality: What the encoder reads: ``text``, ``image``, ``audio`` or ``node``.
        tower: Which part of a model with several is the encoder: ``encoder``, ``text_model``, ``vision_tower``, ...,
            with dots for a part of a part; ``None`` for the whole.
        padding: Whether samples of unlike length may share a batch: `from_encoder` measures whether padding changes
            an embedding.
        num_anchors: A, the number of anchors.
        anchor_fingerprint: Identity of the anchor set (64 hex digits).
        anchor_view: Name of the view that this encoder reads.
        anchor_digest: SHA-256 of that view's samples (64 hex digits).
        anchor_gradient: Whether training a graph encoder lets gradients pass through the anchors.
        transform: What happens to embeddings first, with statistics of the anchors alone: ``none``, ``center``,
            ``standardize`` or ``whiten``.
        similarity: Name in `hf_relreps.similarities.SIMILARITIES`, or a list of names: their product of invariances,
            side by side.
        basis_ridge: Ridge of the change of basis ``K(x, A) (K(A, A) + ridge I)^-1``; ``None`` leaves similarities as
            they are. In units of the mean of the diagonal of ``K(A, A)``.
        rbf_gamma: Sharpness of the ``rbf`` similarity.
        shrinkage: Share of the mean variance that ``whiten`` puts in place of the covariance, in [0, 1].
        decoder_type: ``mlp`` or ``linear`` for classes and numbers, ``image`` or ``variational`` for images, each
            behind a LayerNorm; ``head`` for the head of an ordinary classifier: see `hf_relreps.translation`.
        decoder_aggregation: How the spaces of several similarities become one input of the decoder: ``concat`` side
            by side, or ``sum`` of a LayerNorm and a layer of `decoder_hidden_size` for each.
        decoder_hidden_size: Width of the hidden layer of the ``mlp``, and of the latent of ``variational``.
        decoder_dropout: Dropout before the last layer of the decoder.
        decoder_noise: Standard deviation of the Gaussian noise that training adds to the normalised relative
            representation; it makes a decoder tolerant of another encoder.
        decoder_widths: Channels before each step of an image decoder, each of which doubles the side.
        image_size: Height and width of the images to draw.
        num_channels: Channels of the images to draw.
        head_config: Configuration of the ordinary classifier whose head is the decoder.
        head_modality: What that classifier reads: ``text``, ``image`` or ``audio``.
        head_reads: What its head takes of its own encoder's output: a name in `hf_relreps.heads.READS`.
        head_size: E, the width of that.
        head_name_or_path: Hub id of that classifier.
        head_pair: SHA-256 (64 hex digits) of the embedded anchors of the only encoder that fits; ``None`` for any.
        format_version: Version of the upload's layout.

    Raises:
        ConfigurationError: If a field names something that does not exist, or a number lies outside its range.

    Example:
        ```python
        >>> from hf_relreps import RelativeConfig
        >>> config = RelativeConfig.paper(num_anchors=300, num_labels=5)
        >>> config.similarity, config.similarities, config.relative_size
        ('cosine', ['cosine'], 300)
        >>> config.projection
        {'transform': 'none', 'similarity': ['cosine'], 'basis_ridge': None}
        >>> config.without_encoder().encoder_config is None
        True
        >>> RelativeConfig.from_dict(config.to_dict()).check()

        ```
    """

    model_type = "relreps"
    keys_to_ignore_at_inference = ["relative_embeds", "hidden_states", "attentions"]  # the Trainer collects the rest
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
        "head_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
    }

    encoder_config: PreTrainedConfig | dict | None = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_model_digest: str | None = None
    encoder_is_frozen: bool = False
    encoder_adapters: dict[str, Any] | None = None
    stitched_from: list[str] | None = None
    pooling: str | None = None
    embedding_size: int | None = None
    max_length: int | None = None
    modality: str = "text"
    tower: str | None = None
    padding: bool = True

    num_anchors: int = 0
    anchor_fingerprint: str | None = None
    anchor_view: str | None = None
    anchor_digest: str | None = None
    anchor_gradient: bool = False

    transform: str = "center"
    similarity: str | list[str] = "rbf"
    basis_ridge: float | None = 0.1
    rbf_gamma: float = RBF_GAMMA
    shrinkage: float = 0.3

    decoder_type: str = "mlp"
    decoder_aggregation: str = "concat"
    decoder_hidden_size: int = 256
    decoder_dropout: float = 0.1
    decoder_noise: float = 0.5
    decoder_widths: list[int] = dataclasses.field(default_factory=lambda: [256, 128, 64, 32])
    image_size: int = 28
    num_channels: int = 3
    head_config: PreTrainedConfig | dict | None = None
    head_modality: str | None = None
    head_reads: str | None = None
    head_size: int | None = None
    head_name_or_path: str | None = None
    head_pair: str | None = None

    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_no_architecture("encoder_config", self.encoder_config)
        _refuse_no_architecture("head_config", self.head_config)
        self.similarity = self.similarity if isinstance(self.similarity, str) else _listed(self.similarity)
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
        declared = {field.name for field in dataclasses.fields(cls)} | {"num_labels"}
        known = {name: value for name, value in config_dict.items() if name in declared}
        refuse_immense(known)
        try:
            return super().from_dict(_without_switches(known), **kwargs)
        except (OSError, ValueError):
            raise
        except Exception as error:  # fields of the encoder's configuration may be of any type
            raise ConfigurationError(f"The configuration cannot be read: {type(error).__name__}: {error}") from error

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: an upload brings a stub, not a copy of this library."""

    @classmethod
    def paper(cls, **kwargs: Any) -> Self:
        """The projection of Moschella et al. (ICLR 2023): plain cosines, no transform, no change of basis."""
        return cls(**{"transform": "none", "similarity": "cosine", "basis_ridge": None, **kwargs})

    @property
    def similarities(self) -> list[str]:
        """The names of the similarities as a list."""
        return [self.similarity] if isinstance(self.similarity, str) else list(self.similarity)

    @property
    def relative_size(self) -> int:
        """Width of a relative representation: anchors times similarities."""
        return self.num_anchors * len(self.similarities)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The encoder's text configuration: resizing the vocabulary must reach it, or a reload fails."""
        if isinstance(self.encoder_config, PreTrainedConfig):
            return self.encoder_config.get_text_config(decoder=decoder, encoder=encoder)
        return self

    @property
    def projection(self) -> dict[str, Any]:
        """What an encoder and a decoder must agree on beside the anchors: the settings of the projection in use."""
        settings = {"transform": self.transform, "similarity": self.similarities, "basis_ridge": self.basis_ridge}
        if "rbf" in self.similarities:
            settings["rbf_gamma"] = self.rbf_gamma
        if self.transform == "whiten":
            settings["shrinkage"] = self.shrinkage
        return settings

    def without_encoder(self) -> RelativeConfig:
        """A copy that describes a decoder alone, with the encoder's fields cleared."""
        config = copy.deepcopy(self)
        for name in ENCODER_FIELDS:
            setattr(config, name, None)
        config.encoder_is_frozen = False
        return config

    def check(self) -> None:
        """Raise `ConfigurationError` if any field has no meaning."""
        _whole("format_version", self.format_version, low=1)
        if self.format_version > FORMAT_VERSION:
            raise ConfigurationError(
                f"This upload has format version {self.format_version}; the installed hf_relreps reads up to "
                f"{FORMAT_VERSION}. Update it: pip install -U hf-relreps."
            )
        for name in TEXT_FIELDS:
            if not isinstance(getattr(self, name), str | None):
                raise ConfigurationError(f"{name}={getattr(self, name)!r:.60} must be a text, or None.")
        if self.stitched_from is not None and not _are_texts(self.stitched_from):
            raise ConfigurationError(f"stitched_from={self.stitched_from!r:.60} must be a list of names, or None.")
        if not isinstance(self.encoder_adapters, dict | None):
            raise ConfigurationError(f"encoder_adapters={self.encoder_adapters!r:.60} must hold settings by name.")
        _one_of("pooling", self.pooling or POOLINGS[0], POOLINGS)
        _one_of("modality", self.modality, MODALITIES)
        _check_tower(self.tower)
        _one_of("transform", self.transform, TRANSFORMS)
        _one_of("decoder_type", self.decoder_type, DECODERS)
        _one_of("decoder_aggregation", self.decoder_aggregation, AGGREGATIONS)
        _one_of("head_modality", self.head_modality or HEAD_MODALITIES[0], HEAD_MODALITIES)
        _one_of("head_reads", self.head_reads or HEAD_READS[0], HEAD_READS)
        if not isinstance(self.similarity, str | list) or not self.similarity:
            raise ConfigurationError(
                f"similarity={self.similarity!r} is no similarity. Give one or a list of {', '.join(SIMILARITIES)}."
            )
        if self.anchor_gradient and self.modality != "node":
            raise ConfigurationError(
                "anchor_gradient=True needs anchors that are encoded in the same forward pass as the samples: nodes "
                f"of a graph, not {self.modality}s. Leave it out: AnchorCallback encodes the anchors again and again."
            )
        for name in self.similarities:
            _one_of("similarity", name, tuple(SIMILARITIES))
        if self.problem_type is not None:
            _one_of("problem_type", self.problem_type, PROBLEMS)
        _whole("num_labels", self.num_labels, low=1)
        _whole("num_anchors", self.num_anchors, low=0)
        _whole("decoder_hidden_size", self.decoder_hidden_size, low=1)
        _whole("image_size", self.image_size, low=1)
        _whole("num_channels", self.num_channels, low=1)
        widths = self.decoder_widths if isinstance(self.decoder_widths, list | tuple) else []
        if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
            raise ConfigurationError(
                f"decoder_widths={self.decoder_widths} must hold one positive number for each step."
            )
        for width in widths:
            _whole("decoder_widths", width, low=1)
        for name in ("embedding_size", "max_length", "head_size"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), low=1)
        _within("rbf_gamma", self.rbf_gamma, low=0, strictly=True)
        _within("shrinkage", self.shrinkage, low=0, high=1)
        _within("decoder_dropout", self.decoder_dropout, low=0, high=1)
        _within("decoder_noise", self.decoder_noise, low=0)
        if self.basis_ridge is not None:
            _within("basis_ridge", self.basis_ridge, low=0, strictly=True)
            without_basis = [name for name in self.similarities if name not in KERNELS]
            if without_basis:
                raise ConfigurationError(
                    f"basis_ridge={self.basis_ridge} needs similarities that are kernels ({', '.join(KERNELS)}), "
                    f"found {', '.join(without_basis)}. Set basis_ridge=None, or choose a kernel."
                )


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


def _listed(names: Any) -> Any:
    """A tuple as the list that JSON would give back."""
    return list(names) if isinstance(names, tuple) else names


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


def _one_of(field: str, found: str, expected: tuple[str, ...]) -> None:
    if found not in expected:
        raise ConfigurationError(f"{field}={found!r} does not exist. Choose one of {', '.join(expected)}.")


def _check_tower(found: Any) -> None:
    names = tuple(dict.fromkeys([*(name for parts in TOWERS.values() for name in parts), *BELOW_HEADS]))
    if found is not None and not set(str(found).split(".")) <= set(names):
        _one_of("tower", str(found), names)


def _whole(field: str, found: Any, low: int) -> None:
    if not isinstance(found, int) or isinstance(found, bool) or found < low:
        raise ConfigurationError(f"{field}={found!r} must be a whole number, {low} or more.")


def _within(field: str, found: Any, low: float, high: float = math.inf, strictly: bool = False) -> None:
    if isinstance(found, int | float) and not isinstance(found, bool):
        if (low < found if strictly else low <= found) and found <= high and not math.isinf(found):
            return
    upper = "" if math.isinf(high) else f" and at most {high}"
    raise ConfigurationError(f"{field}={found!r} must be a number {'above' if strictly else 'at least'} {low}{upper}.")
