"""`RelativeConfig`: everything that makes two parts fit, or not, in one JSON file."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_relreps.errors import ConfigurationError
from hf_relreps.similarities import KERNELS, RBF_GAMMA, SIMILARITIES


FORMAT_VERSION = 1
TRANSFORMS = ("none", "center", "standardize", "whiten")
POOLINGS = ("cls", "mean", "last", "pooler", "spatial_mean")
DECODERS = ("mlp", "linear")
MODALITIES = ("text", "image", "audio")
TOWERS = ("encoder", "text_model", "vision_model", "text_encoder", "vision_tower", "audio_tower", "audio_model")

# Those that name what one side of a stitch brings along.
DECODER_FIELDS = ("decoder_type", "decoder_hidden_size", "decoder_dropout", "decoder_noise")


@strict
class RelativeConfig(PreTrainedConfig):
    """Configuration of a relative model and of each of its parts.

    Args:
        encoder_config: Configuration of the wrapped `AutoModel`; ``None`` in a decoder's own upload.
        base_model_name_or_path: Hub id that the encoder started from, for the card.
        pooling: How token or pixel vectors become one vector of a sample: one of ``cls``, ``mean``, ``last``,
            ``pooler`` (the model's own), ``spatial_mean``; ``None`` chooses what suits the encoder.
        embedding_size: D, the width of the pooled absolute embedding.
        max_length: Longest input in tokens; longer texts are truncated. ``None`` leaves it to the tokenizer.
        modality: What the encoder reads: ``text``, ``image`` or ``audio``.
        tower: Which part of a model with several is the encoder: ``encoder``, ``text_model``, ``vision_model``, ...;
            ``None`` for the whole.
        num_anchors: A, the number of anchors.
        anchor_fingerprint: Identity of the anchor set (64 hex digits).
        anchor_view: Name of the view that this encoder reads.
        anchor_digest: SHA-256 of that view's samples (64 hex digits).
        transform: What happens to embeddings first, with statistics of the anchors alone: ``none``, ``center``,
            ``standardize`` or ``whiten``.
        similarity: Name in `hf_relreps.similarities.SIMILARITIES`, or a list of names: their product of invariances,
            side by side.
        basis_ridge: Ridge of the change of basis ``K(x, A) (K(A, A) + ridge I)^-1``; ``None`` leaves similarities as
            they are. In units of the mean of the diagonal of ``K(A, A)``.
        rbf_gamma: Sharpness of the ``rbf`` similarity.
        shrinkage: Share of the mean variance that ``whiten`` puts in place of the covariance, in [0, 1].
        decoder_type: ``mlp`` or ``linear``, each behind a LayerNorm.
        decoder_hidden_size: Width of the hidden layer of the ``mlp``.
        decoder_dropout: Dropout before the last layer of the decoder.
        decoder_noise: Standard deviation of the Gaussian noise that training adds to the normalised relative
            representation; it makes a decoder tolerant of another encoder.
        format_version: Version of the upload's layout.

    Raises:
        ConfigurationError: If a field names something that does not exist, or a number lies outside its range.

    Example:
        ```python
        >>> from hf_relreps import RelativeConfig
        >>> RelativeConfig.paper().similarity
        'cosine'

        ```
    """

    model_type = "relreps"
    keys_to_ignore_at_inference = ["relative_embeds", "hidden_states", "attentions"]  # the Trainer collects the rest
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
    }

    encoder_config: PreTrainedConfig | dict | None = None
    base_model_name_or_path: str | None = None
    pooling: str | None = None
    embedding_size: int | None = None
    max_length: int | None = None
    modality: str = "text"
    tower: str | None = None

    num_anchors: int = 0
    anchor_fingerprint: str | None = None
    anchor_view: str | None = None
    anchor_digest: str | None = None

    transform: str = "center"
    similarity: str | list[str] = "rbf"
    basis_ridge: float | None = 0.1
    rbf_gamma: float = RBF_GAMMA
    shrinkage: float = 0.3

    decoder_type: str = "mlp"
    decoder_hidden_size: int = 256
    decoder_dropout: float = 0.1
    decoder_noise: float = 0.5

    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check()

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
        for name in ("encoder_config", "base_model_name_or_path", "embedding_size", "max_length"):
            setattr(config, name, None)
        return config

    def check(self) -> None:
        """Raise `ConfigurationError` if any field has no meaning."""
        _one_of("pooling", self.pooling or POOLINGS[0], POOLINGS)
        _one_of("modality", self.modality, MODALITIES)
        _one_of("tower", self.tower or TOWERS[0], TOWERS)
        _one_of("transform", self.transform, TRANSFORMS)
        _one_of("decoder_type", self.decoder_type, DECODERS)
        if not self.similarities:
            raise ConfigurationError(f"similarity is an empty list. Give one or more of {', '.join(SIMILARITIES)}.")
        for name in self.similarities:
            _one_of("similarity", name, tuple(SIMILARITIES))
        if self.num_anchors < 0:
            raise ConfigurationError(f"num_anchors is {self.num_anchors}; it counts anchors and cannot be negative.")
        _within("rbf_gamma", self.rbf_gamma, low=0, strictly=True)
        _within("shrinkage", self.shrinkage, low=0, high=1)
        _within("decoder_dropout", self.decoder_dropout, low=0, high=1)
        _within("decoder_noise", self.decoder_noise, low=0)
        if self.basis_ridge is not None:
            _within("basis_ridge", self.basis_ridge, low=0, strictly=True)
            without_basis = [name for name in self.similarities if name not in KERNELS]
            if without_basis:
                raise ConfigurationError(
                    f"basis_ridge={self.basis_ridge} needs similarities that are kernels ({', '.join(KERNELS)}), found "
                    f"{', '.join(without_basis)}. Set basis_ridge=None, or choose a kernel."
                )
        if self.format_version > FORMAT_VERSION:
            raise ConfigurationError(
                f"This upload has format version {self.format_version}; the installed hf_relreps reads up to "
                f"{FORMAT_VERSION}. Update it: pip install -U hf-relreps."
            )


def _one_of(field: str, found: str, expected: tuple[str, ...]) -> None:
    if found not in expected:
        raise ConfigurationError(f"{field}={found!r} does not exist. Choose one of {', '.join(expected)}.")


def _within(field: str, found: float, low: float, high: float = math.inf, strictly: bool = False) -> None:
    if not (low < found if strictly else low <= found) or not found <= high or math.isinf(found):
        upper = "" if math.isinf(high) else f" and at most {high}"
        raise ConfigurationError(f"{field}={found} must be {'above' if strictly else 'at least'} {low}{upper}.")
