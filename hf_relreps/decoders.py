"""`RelativeDecoder`: what reads a relative representation. It never sees an encoder.

Images are drawn by the mirror of the paper's convolutional encoder, with or without a variational middle.

Shapes: B batch, N samples, D absolute size, A anchors, R relative size (A times the number of similarities), H hidden,
Z latent size, C classes or channels, H and W height and width of an image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.utils import ModelOutput, logging

from hf_relreps.anchors import AnchorSet, AnchorView
from hf_relreps.backbones import BUILDING
from hf_relreps.configuration import (
    CLASSIFIERS,
    MEAN,
    PAIR,
    SEVERAL,
    AnyRelativeConfig,
    RelativeConfig,
    RelativeDecoderConfig,
    RelativeEncoderConfig,
    refuse_other_names,
)
from hf_relreps.errors import (
    AnchorError,
    ConfigurationError,
    EmbeddingError,
    LabelError,
    SampleError,
    StitchingError,
)
from hf_relreps.heads import ClassifierHead, Placement, build_head
from hf_relreps.placement import share_weights
from hf_relreps.pretrained import RelativePart, RelativePreTrainedModel
from hf_relreps.projection import RelativeProjection, refuse_directionless, wide
from hf_relreps.ridge import RIDGE, class_weights, fit_ridge, sharpness, sharpness_of_several
from hf_relreps.samples import as_list, may_read
from hf_relreps.similarities import unit
from hf_relreps.sources import Source
from hf_relreps.space import RelativeSpace, require_within
from hf_relreps.words import IGNORED


logger = logging.get_logger(__name__)


@dataclass
class RelativeDecoderOutput(ModelOutput):
    """Output of a decoder: logits (B, C) or images (B, C, H, W), and the loss if there are labels.

    Several decoders give logits (B, C) each, by their names.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> decoder(torch.rand(2, 40), labels=torch.tensor([0, 1])).loss.shape
        torch.Size([])

        ```
    """

    loss: Tensor | None = None
    logits: Tensor | dict[str, Tensor] | None = None
    reconstruction: Tensor | None = None


def warn_of_training_mode(module: nn.Module) -> None:
    """Nobody trains without gradients: whoever predicts in training mode gets answers blurred by dropout and noise."""
    if module.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        logger.warning_once(
            f"This {type(module).__name__} predicts in training mode, so dropout and noise change its output. Call "
            "model.eval() first."
        )


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm that rounds to its weights' dtype last: half precision cannot tell cosines near one apart."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised in float32 or better, in the dtype of the weights."""
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        wide = nn.functional.layer_norm(input.to(dtype), self.normalized_shape, weight, bias, self.eps)
        return wide.to(self.weight.dtype)


class SpaceNorms(nn.ModuleList):
    """A LayerNorm for each of the spaces that lie side by side in a relative representation."""

    def __init__(self, num_anchors: int, num_spaces: int, eps: float) -> None:
        super().__init__(WideLayerNorm(num_anchors, eps=eps) for _ in range(num_spaces))

    def forward(self, r_BR: Tensor) -> Tensor:
        """The same width; each space normalised by itself."""
        parts = r_BR.split(r_BR.shape[-1] // len(self), dim=-1)
        return torch.cat([norm(r_BA) for norm, r_BA in zip(self, parts, strict=True)], dim=-1)


class SpaceSum(nn.ModuleList):
    """A layer for each space and the sum of what they give: which space matters is learnt for each sample.

    With `SpaceNorms` before it this is the aggregation of "From Bricks to Bridges" (ICLR 2024): LayerNorm and MLP for
    each space, then their sum. The second layer of each MLP is the next layer of the decoder: it comes after the sum.
    """

    def __init__(self, num_anchors: int, num_spaces: int, hidden: int) -> None:
        super().__init__(nn.Linear(num_anchors, hidden) for _ in range(num_spaces))

    def forward(self, h_BR: Tensor) -> Tensor:
        """From (B, R) to (B, H)."""
        parts = h_BR.split(h_BR.shape[-1] // len(self), dim=-1)
        h_BHS = torch.stack([layer(part) for layer, part in zip(self, parts, strict=True)], dim=-1)
        return nn.functional.silu(h_BHS).sum(-1)


class PairBlocks(nn.Module):
    """What a linear map needs to compare two samples: r(u), r(v), |r(u) - r(v)| and r(u) r(v).

    Each of the four is scaled as a whole, to a mean variance of one in the pairs that a decoder was fitted to. So how
    far apart two samples lie stays to be seen, as a LayerNorm of each pair would not let it.
    """

    scales: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scales", torch.ones(4))

    def adapt(self, r_B2R: Tensor) -> None:
        """Take the scales of some pairs."""
        deviations = [block_BR.float().var(0).mean().sqrt() for block_BR in self._blocks(r_B2R)]
        self.scales.copy_(1 / torch.stack(deviations).clamp_min(1e-12))

    def forward(self, r_B2R: Tensor) -> Tensor:
        """From (B, 2, R) to (B, 4 R), in the dtype of the weights."""
        blocks = zip(self._blocks(r_B2R), self.scales.to(r_B2R.dtype), strict=True)
        return torch.cat([block_BR * scale for block_BR, scale in blocks], dim=-1).to(self.scales.dtype)

    @staticmethod
    def _blocks(r_B2R: Tensor) -> tuple[Tensor, ...]:
        u_BR, v_BR = r_B2R.unbind(-2)
        return u_BR, v_BR, (u_BR - v_BR).abs(), u_BR * v_BR


class Drawing(NamedTuple):
    """Images (B, C, H, W) in [0, 1], and what a training adds to their error: the divergence of a latent."""

    images: Tensor
    divergence: Tensor | None = None

    def loss(self, target: Tensor) -> Tensor:
        """Against the images to draw: see `reconstruction_loss`.

        Raises:
            SampleError: If these have another shape.
        """
        refuse_other_shape(self.images, target)
        error = reconstruction_loss(self.images, target)
        return error if self.divergence is None else error + self.divergence


class ImageDecoder(nn.Module):
    """From (B, R) to images (B, C, H, W), pixels in [0, 1]: linear, GELU, mirrored encoder (paper, section 5.1)."""

    def __init__(self, config: RelativeDecoderConfig, inputs: int) -> None:
        super().__init__()
        widths = list(config.decoder_widths or ())
        self.sides = _sides(config.image_size or 1, len(widths))
        self.start = nn.Linear(inputs, widths[0] * self.sides[0] ** 2)
        outputs = [*widths[1:], config.num_channels or 1]
        steps: list[nn.Module] = []
        for i, (width, output) in enumerate(zip(widths, outputs, strict=True)):
            extra = self.sides[i + 1] - (2 * self.sides[i] - 1)  # 3x3 of stride 2 gives 2n - 1 or 2n
            steps.append(nn.ConvTranspose2d(width, output, kernel_size=3, stride=2, padding=1, output_padding=extra))
            if i < len(widths) - 1:
                steps += [nn.BatchNorm2d(output), nn.GELU()]
        self.steps = nn.Sequential(*steps)

    def forward(self, h_BR: Tensor) -> Drawing:
        """Images alone: nothing is sampled."""
        side = self.sides[0]
        start = nn.functional.gelu(self.start(h_BR)).unflatten(-1, (-1, side, side))
        return Drawing(torch.sigmoid(self.steps(start)))


class VariationalImageDecoder(nn.Module):
    """The same behind a Gaussian latent whose mean and variance come from the relative representation.

    Both stand after the projection, so that the encoder's part stays the same as in the plain autoencoder. Training
    samples; evaluation takes the mean, so that an image is drawn the same way each time.
    """

    def __init__(self, config: RelativeDecoderConfig, inputs: int) -> None:
        super().__init__()
        self.mean = nn.Linear(inputs, config.decoder_hidden_size)
        self.log_variance = nn.Linear(inputs, config.decoder_hidden_size)
        self.image = ImageDecoder(config, config.decoder_hidden_size)

    def forward(self, h_BR: Tensor) -> Drawing:
        """Images of the mean; in training of a sample, with the divergence of the latent from a standard Gaussian."""
        mean_BZ = self.mean(h_BR)
        if not self.training:
            return self.image(mean_BZ)
        log_variance_BZ = self.log_variance(h_BR).clamp(-20, 20)
        divergence_B = 0.5 * (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ).float().sum(-1)
        sample_BZ = mean_BZ + torch.randn_like(mean_BZ) * (log_variance_BZ / 2).exp()
        return Drawing(self.image(sample_BZ).images, divergence_B.mean())


DRAWING_MODULES: dict[str, type[ImageDecoder] | type[VariationalImageDecoder]] = {
    "image": ImageDecoder,
    "variational": VariationalImageDecoder,
}


def reconstruction_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of a Gaussian with the best shared variance, per image: ``n / 2 log(mse)``, n pixels.

    With that variance the squared error needs no weight against the divergence of a latent.
    """
    error = nn.functional.mse_loss(drawn.float(), target.float())
    return 0.5 * target[0].numel() * torch.log(error.clamp_min(1e-8))


def refuse_other_shape(drawn: Tensor, target: Tensor) -> None:
    """Raise `SampleError` unless the images to draw have the shape of those drawn."""
    if drawn.shape != target.shape:
        channels, height, width = drawn.shape[1:]
        raise SampleError(
            f"The decoder reconstructs images of shape ({channels}, {height}, {width}), but the targets have shape "
            f"{tuple(target.shape[1:])}. Set image_size and num_channels to match: from_encoder(..., image_size=..., "
            "num_channels=...)."
        )


def refuse_other_pixels(target: Tensor) -> None:
    """Raise `SampleError` unless the pixels of the images to draw lie in [0, 1]."""
    low, high = target.aminmax()
    if not (low >= 0 and high <= 1):  # written so that NaN is refused
        raise SampleError(
            f"The target pixels lie in [{float(low):.2f}, {float(high):.2f}], expected [0, 1]. Use an image processor "
            "with do_normalize=False, or pass the target images as target=..."
        )


def _sides(image_size: int, steps: int) -> list[int]:
    """Side of the map before each step and at the end: what halving with rounding up gives, read backwards."""
    sides = [image_size]
    for _ in range(steps):
        sides.append(-(-sides[-1] // 2))
    return sides[::-1]


LEAST = 1e-12  # of a probability whose logarithm is taken
FITTED = ("mlp", "linear", PAIR)  # kinds of decoders that have a closed form
DESCRIBED_SCALE = 20.0  # of the cosines to descriptions


class RelativeDecoder(RelativePart):
    """LayerNorm, then what `config.decoder_type` names: a linear or two-layer map to logits (B, C), or an image.

    Or the head of an ordinary classifier, which gets the anchors' places in its own space: `hf_relreps.translation`.
    The output for a sample does not depend on the other samples of the batch. (The paper's
    notebooks normalise each feature over the batch, which is impossible with one sample.)

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps import RelativeDecoder, RelativeDecoderConfig
        >>> decoder = RelativeDecoder(RelativeDecoderConfig(num_anchors=300, num_labels=5))
        >>> decoder(torch.rand(2, 300)).logits.shape
        torch.Size([2, 5])

        ```
    """

    config_class = RelativeDecoderConfig
    config: RelativeDecoderConfig
    part = "decoder"
    base_model_prefix = "decoder"  # the prefix of its weights in a whole model's file
    main_input_name = "relative_embeds"
    _saw_labels: bool = False  # that one counts
    _saw_pixels: bool = False

    def __init__(
        self,
        config: RelativeDecoderConfig | RelativeConfig,
        head: ClassifierHead | None = None,
        decoders: Sequence[RelativeDecoder] | None = None,
    ) -> None:
        config = config.decoder if isinstance(config, RelativeConfig) else config
        super().__init__(config)
        space = config.space
        if space.size < 2:
            raise ConfigurationError(
                "A decoder normalises the relative representation, so it needs at least two anchors; num_anchors is "
                f"{space.num_anchors}. Set it in the config."
            )
        self.placement: Any = None
        self.decoders: Any = None
        self.head: Any = None
        self.aggregation: Any = None
        self.image: Any = None
        self.hidden: Any = None
        self.skip: Any = None
        self.output: Any = None
        self.is_new = config.decoder_type in FITTED  # random weights: neither loaded, nor fitted, nor trained
        self.register_load_state_dict_post_hook(_note_load)
        if config.decoder_type == "head":
            self.head = build_head(config) if head is None else head
            self.placement = Placement(space.size, config.head_size or 0)
        elif config.decoders is not None:  # in the order of their names, which may be those of methods
            made = [RelativeDecoder(one) for one in config.decoders.values()] if decoders is None else decoders
            self.decoders = nn.ModuleList(made)
        else:
            self._build(config)
        self.post_init()

    def _complete(self, source: Source) -> None:
        self.is_new = False

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise what is new here; what was a model before comes with its weights, or gets them from a load."""
        for name, module in self.named_modules():
            if name and name.split(".")[0] not in ("head", "decoders"):
                self._init_weights(module)
        if self.skip is not None:  # the hidden layer begins alone
            init.zeros_(self.skip.weight)
        super().init_weights()

    def _build(self, config: RelativeDecoderConfig) -> None:
        space: Any = config.space
        inputs, hidden, outputs = space.size, config.decoder_hidden_size, config.num_labels or 0
        eps = 1e-12  # thousands of anchors have variances below 1e-4
        spaces, summed = len(space.similarity), config.decoder_aggregation == "sum" and config.decoder_type != PAIR
        self.norm: nn.Module
        if config.decoder_type == PAIR:
            self.norm, inputs = PairBlocks(), 4 * space.size
        elif summed or (spaces > 1 and space.num_anchors > 1):  # one number normalised by itself is nothing
            # Distances are larger than cosines by far: one norm for all would see nothing but which space is which.
            self.norm = SpaceNorms(space.num_anchors, spaces, eps=eps)
        else:
            self.norm = WideLayerNorm(space.size, eps=eps)
        if summed:
            self.aggregation = SpaceSum(space.num_anchors, spaces, hidden)
            inputs = hidden
        self.dropout = nn.Dropout(config.decoder_dropout)
        draw = DRAWING_MODULES.get(config.decoder_type)
        self.image = draw(config, inputs) if draw else None
        if config.decoder_type == "mlp":
            self.hidden = nn.Linear(inputs, hidden)
            self.skip = nn.Linear(space.size, outputs, bias=False)
        self.output = None if self.image else nn.Linear(hidden if self.hidden else inputs, outputs)

    @classmethod
    def _resolve_config(cls, name: str, kwargs: dict[str, Any], stored: dict[str, Any]) -> Any:
        config, kwargs = super()._resolve_config(name, kwargs, stored)
        found, asked = RelativeDecoderConfig.from_dict(stored).num_labels, config.num_labels
        if found != asked:
            raise ConfigurationError(
                f"The decoder of {name} has {found} classes, but num_labels={asked} was given. For a new, untrained "
                "decoder on its encoder: "
                f"RelativeModelForSequenceClassification.from_encoder(RelativeModel.from_pretrained({name!r}), "
                f"num_labels={asked})."
            )
        return config, kwargs

    @classmethod
    def _take_names(cls, config: Any, stored: dict[str, Any], name: str) -> dict[str, Any]:
        """Loaded weights are those of the stored classes; these get their other names after."""
        found, asked = RelativeDecoderConfig.from_dict(stored), config.id2label
        if len(asked or ()) != len(found.id2label or ()):  # which is refused
            return {}
        if not asked or not found.id2label or asked == found.id2label:
            return {}
        if set(asked.values()) == set(found.id2label.values()):
            raise ConfigurationError(
                f"The decoder of {name} has the classes {', '.join(map(str, found.id2label.values()))} in this order, "
                f"but id2label={asked!r:.200} was given: its answers would get each other's names. Leave it out."
            )
        config.id2label, config.label2id = found.id2label, found.label2id
        return {"id2label": asked, "label2id": {label: number for number, label in asked.items()}}

    def describe_weights(self) -> dict[str, Any]:
        """The space that is read, the kind of decoder and its classes in their order."""
        config = self.config
        space = {f"space.{name}": value for name, value in config.space.to_dict().items()}
        names = ("decoder_type", "decoder_aggregation", "problem_type", "head_modality", "head_reads", "head_pair")
        classes = [label for _, label in sorted((config.id2label or {}).items())]
        told: dict[str, Any] = {} if self.image is not None or config.decoder_type == SEVERAL else {"classes": classes}
        told |= {} if self.decoders is None else {"decoders": list(self.named)}
        return space | {name: getattr(config, name) for name in names} | told

    # -- Several decoders of one space

    @classmethod
    def from_decoders(cls, decoders: Mapping[str, RelativeDecoder]) -> Self:
        """Decoders of one space as one, which answers all their questions about a relative representation.

        It is saved, pushed and stitched like any other: `stitch(encoder, decoders)` gives a whole model that runs its
        encoder once. It gives ``logits`` (B, C) by name.

        Args:
            decoders: By the names of their questions, each a Python identifier. They are copied.

        Raises:
            ConfigurationError: If there is none, or a name is no identifier.
            StitchingError: If two read other spaces, or one draws images or is several decoders itself.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> tone = RelativeDecoder(RelativeDecoderConfig(space=decoder.config.space, num_labels=3)).eval()
            >>> both = RelativeDecoder.from_decoders({"section": decoder, "tone": tone})
            >>> both(torch.rand(2, 40)).logits["tone"].shape
            torch.Size([2, 3])
            >>> _ = both.push_to_hub("me/decoders")
            >>> model = stitch("me/relative-fr", "me/decoders")

            ```
        """
        refuse_other_names(decoders)
        first, *_ = decoders.values()
        for name, decoder in decoders.items():
            _refuse_other_kind(name, decoder)
            if decoder.config.space != first.config.space:
                raise StitchingError(
                    f"Decoder {name!r} reads {decoder.config.space}, {next(iter(decoders))!r} reads "
                    f"{first.config.space}: one encoder describes samples in one space. Stitch them one by one, or "
                    "take decoders that share anchors and projection."
                )
        return cls._joined(decoders, decoder_type=SEVERAL)

    @classmethod
    def mean_of(cls, decoders: Mapping[str, RelativeDecoder], temperature: float) -> Self:
        """The mean of the probabilities of decoders that have the same classes and read one space."""
        first, *_ = decoders.values()
        labels = {"id2label": first.config.id2label, "label2id": first.config.label2id}
        how: dict[str, Any] = labels | {"problem_type": "single_label_classification", "temperature": temperature}
        return cls._joined(decoders, decoder_type=MEAN, **how)

    @classmethod
    def _joined(cls, decoders: Mapping[str, RelativeDecoder], **settings: Any) -> Self:
        """Copies of decoders as one."""
        named: dict[str, Any] = {name: decoders[name].clone() for name in sorted(decoders)}
        first, *_ = decoders.values()
        configs = {name: decoder.config for name, decoder in named.items()}
        views = {config.anchor_view for config in configs.values()}
        same = {"space": first.config.space, "modality": first.config.modality}
        same |= {"anchor_view": first.config.anchor_view if len(views) == 1 else None}
        config = RelativeDecoderConfig(decoders=configs, **same | settings)
        config.decoders = configs  # those that the decoders hold
        with BUILDING:
            joined = cls(config, decoders=[decoder.to(first.device) for decoder in named.values()])
        joined.train(first.training)
        joined.carry(next((one._anchors for one in named.values() if one._anchors is not None), None), None)
        joined._source = None if joined._anchors is not None else first._source
        return joined

    @property
    def named(self) -> dict[str, RelativeDecoder]:
        """Its decoders by name; none unless it is several, or the mean of several.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> list(RelativeDecoder.from_decoders({"section": decoder, "group": decoder}).named)
            ['group', 'section']

            ```
        """
        return dict(zip(self.config.decoders or (), self.decoders if self.decoders is not None else (), strict=True))

    def select(self, name: str) -> RelativeDecoder:
        """One of several decoders: it shares its weights with this one.

        Raises:
            StitchingError: If there is no decoder of that name.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> both = RelativeDecoder.from_decoders({"section": decoder, "group": decoder})
            >>> both.select("section").config.num_labels
            11

            ```
        """
        if name not in self.named:
            raise StitchingError(
                f"There is no decoder {name!r:.60} here, there is {', '.join(map(repr, self.named)) or 'one'}. Choose "
                "one of several by its name."
            )
        held = [one for one in (self._anchors, self._source) if one is not None]
        found = share_weights(self.named[name], *held)
        found.carry(self._anchors, None)
        found._source = found._source or self._source
        return found

    @classmethod
    @torch.no_grad()
    def fit_ridge(
        cls,
        relative_embeds: Tensor,
        labels: Tensor | Sequence[Any],
        like: RelativePreTrainedModel | AnyRelativeConfig | RelativeSpace,
        *,
        ridge: float = RIDGE,
        **label_settings: Any,
    ) -> Self:
        """A linear decoder in closed form: milliseconds on the relative representations of frozen encoders.

        Ridge regression on to the classes, where rare ones count more; the logits are as sharp as suits samples that
        were left out, so they are probabilities of a kind. It loads, saves, trains on and stitches like any other.

        Args:
            relative_embeds: (N, R), of one encoder or of several below one another; (N, 2, R) of pairs of samples
                makes a decoder for `RelativeModelForPairClassification`.
            labels: Classes (N,), as numbers or names; several labels as 0 and 1 (N, C); or numbers, for a regression.
            like: An encoder of them, or a model with it: whose anchors and projection these are. A configuration or a
                space says as much, but brings no raw anchors along: an upload then lacks them.
            ridge: Penalty in units of the total variance of the normalised relative representations.
            **label_settings: num_labels, id2label, label2id, problem_type; what the labels tell if left out. Names are
                numbered in their order then.

        Raises:
            ConfigurationError: If `like` is a configuration or a space without the anchors' fingerprint.
            SampleError: If there is not one label for each sample, or all samples are equal.
            StitchingError: If the relative representations are not as wide as those of `like`.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> from hf_relreps.caching import encode_dataset
            >>> encoded = encode_dataset(english.encoder, train, "en")
            >>> r_NR, labels = encoded["relative_embeds"][:], encoded["label"][:]
            >>> ridge = RelativeDecoder.fit_ridge(r_NR, labels, english, id2label=names)
            >>> model = stitch(french, ridge)  # or stitch("almanach/camembert-base", ridge, view="fr")
            >>> model.config.id2label[0]
            'admin'

            ```
        """
        told: Any = like if isinstance(like, RelativeSpace | AnyRelativeConfig) else like.config
        space = told if isinstance(told, RelativeSpace) else told.space
        if like is told and space.fingerprint is None:
            raise ConfigurationError(
                f"The decoder would read {space}: no encoder fits a space without an anchor fingerprint. Pass the "
                "encoder or its space: like=encoder.config.space."
            )
        names = () if told is space else ("modality", "anchor_view")
        settings = {name: getattr(told, name) for name in names} | {"space": space}
        decoder = cls._fit(_numbers(relative_embeds, "relative_embeds"), labels, settings, ridge, label_settings)
        if isinstance(like, RelativePreTrainedModel):
            decoder.carry(like.anchors, None)
        return decoder

    @classmethod
    @torch.no_grad()
    def from_embeddings(
        cls,
        embeddings: Any,
        labels: Tensor | Sequence[Any],
        anchors: AnchorSet | AnchorView,
        anchor_embeddings: Any,
        *,
        space: RelativeSpace | AnyRelativeConfig | None = None,
        ridge: float = RIDGE,
        **label_settings: Any,
    ) -> Self:
        """A linear decoder in closed form from embeddings that you have: no encoder is loaded, nothing is trained.

        The embeddings become relative to those of the anchors; the rest is as in `fit_ridge`. The decoder knows its
        anchors, so it is saved, pushed and stitched like any other.

        Args:
            embeddings: Absolute embeddings (N, D) of one encoder, from anywhere: an array, a tensor, what
                ``SentenceTransformer.encode`` gives.
            labels: Classes (N,), as numbers or names; several labels as 0 and 1 (N, C); or numbers, for a regression.
            anchors: Which samples are the anchors: the set, or the view of it that the encoder read.
            anchor_embeddings: Embeddings (A, D) of the anchors by the same encoder, in their order; or whole numbers
                (A,): which rows of `embeddings` the anchors are.
            space: Whose transform, similarity and change of basis to use, the default's if left out. An encoder must
                use the same to be stitched; `stitch` sees to that for an ordinary one.
            ridge: Penalty in units of the total variance of the normalised relative representations.
            **label_settings: num_labels, id2label, label2id, problem_type; what the labels tell if left out. Names are
                numbered in their order then.

        Raises:
            AnchorError: If `anchors` is no anchor set and no view.
            EmbeddingError: If the embeddings are not (N, D), those of the anchors not (A, D) or rows that exist, or
                one has no direction.
            SampleError: If there is not one label for each sample, or all samples are equal.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> x_ND = english.encoder.encode(train["en"])  # or SentenceTransformer("...").encode(train["en"])
            >>> anchors_AD = english.encoder.encode(anchors.view("en").samples)
            >>> quick = RelativeDecoder.from_embeddings(
            ...     x_ND, train["label"], anchors.view("en"), anchors_AD, id2label=names
            ... )
            >>> model = stitch(french, quick)  # or stitch("almanach/camembert-base", quick, view="fr")
            >>> model.config.id2label[0]
            'admin'

            ```
        """
        if not isinstance(anchors, AnchorSet | AnchorView):
            raise AnchorError(
                f"anchors is a {type(anchors).__name__}, expected an AnchorSet or a view of one, which decides which "
                "encoders fit. Build one from the samples: AnchorSet(ids, {'en': texts})."
            )
        views = [anchors] if isinstance(anchors, AnchorView) else [anchors.view(name) for name in anchors.views]
        x_ND, anchors_AD = _absolute(embeddings, anchor_embeddings, len(anchors))
        told = RelativeSpace() if space is None else space
        told = told if isinstance(told, RelativeSpace) else told.space
        told = told.replace(num_anchors=len(anchors), fingerprint=anchors.fingerprint)
        projection = RelativeProjection(RelativeEncoderConfig(space=told, embedding_size=x_ND.shape[1]))
        projection.set_anchors(anchors_AD)
        settings = {"space": told, "modality": views[0].read_as}
        settings |= {"anchor_view": views[0].name if len(views) == 1 else None}
        decoder = cls._fit(projection(x_ND), labels, settings, ridge, label_settings)
        decoder.carry(views[0].anchors, None)
        return decoder

    @classmethod
    @torch.no_grad()
    def from_descriptions(
        cls, descriptions: Mapping[str, str | Sequence[str]], encoder: Any, *, scale: float = DESCRIBED_SCALE
    ) -> Self:
        """A classifier made of texts that describe its classes, without a labelled sample.

        A sample belongs to the class whose descriptions its relative representation resembles most: the cosine of
        both, each normalised as decoders do. Stitched to an encoder of images over anchors with both views, it
        classifies images by texts alone. It loads, saves, trains on and stitches like any other. An encoder with
        ``basis_ridge=1`` is better for it than one with the default (`docs/cross_modal.md`).

        Args:
            descriptions: Name of the class -> a text that describes it, or several: names of its members, captions.
                Any samples that the encoder reads may stand for a class.
            encoder: The encoder of the descriptions, relative; or a whole model with it.
            scale: What cosines are multiplied by. It decides how sure the scores are, not which class is first.

        Raises:
            ConfigurationError: If there are fewer than two classes, a class without description, or `scale` is not
                above zero.
            SampleError: If the encoder cannot read a description.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> described = RelativeDecoder.from_descriptions(
            ...     {"game": ["a game of cards", "a racing game"], "mail": "a program that sends and receives mail"},
            ...     english,
            ... )
            >>> model = stitch(french, described)  # or an encoder of images, over anchors with texts and images
            >>> pipeline("text-classification", model=model, tokenizer=model.processor)("un jeu de cartes")[0].keys()
            dict_keys(['label', 'score'])

            ```
        """
        encoder = getattr(encoder, "encoder", encoder)
        if not isinstance(descriptions, Mapping):
            raise ConfigurationError(
                f"descriptions is a {type(descriptions).__name__}, expected the name of each class with a text or "
                'several: {"cat": "a picture of a cat", "dog": "a picture of a dog"}.'
            )
        given = {name: [texts] if isinstance(texts, str) else list(texts) for name, texts in descriptions.items()}
        _refuse_undescribed(given)
        require_within("scale", scale, low=0, strictly=True)
        counts = [len(texts) for texts in given.values()]
        x_ND = encoder.encode([text for texts in given.values() for text in texts])
        r_NR = encoder.projection(x_ND.to(encoder.device))
        config = RelativeDecoderConfig(
            space=encoder.config.space,
            modality=encoder.config.modality,
            anchor_view=encoder.config.anchor_view,
            id2label=dict(enumerate(given)),
            decoder_type="linear",
            problem_type="single_label_classification",
        )
        with BUILDING:
            decoder = cls(config)
        z_NR = nn.functional.normalize(decoder.norm(r_NR.float().cpu()), dim=-1)
        mean_CR = torch.stack([z_NR.mean(0) for z_NR in z_NR.split(counts)])
        decoder.output.weight.copy_(scale * unit(mean_CR) / math.sqrt(z_NR.shape[1]))
        decoder.output.bias.zero_()
        decoder.is_new = False
        decoder.carry(encoder.anchors, None)
        return decoder.eval()

    @classmethod
    def _fit(
        cls, r_NR: Tensor, labels: Any, settings: dict[str, Any], ridge: float, label_settings: dict[str, Any]
    ) -> Self:
        labels, label_settings = _numbered(labels, label_settings)
        _refuse_other_number(r_NR, labels)
        problem = label_settings.get("problem_type") or _problem_of(labels)
        told = {"num_labels": _number_of(labels, problem)} if label_settings.get("id2label") is None else {}
        kind = {"decoder_type": "linear" if r_NR.ndim < 3 else PAIR, "problem_type": problem}
        config = RelativeDecoderConfig(**settings | told | label_settings | kind)
        if problem == "single_label_classification" and not label_settings.keys() & {"num_labels", "id2label"}:
            _warn_of_empty_classes(labels)
        with BUILDING:
            decoder = cls(config)
        decoder.fit(r_NR, labels, ridge=ridge)
        return decoder.eval()

    @torch.no_grad()
    def fit(self, relative_embeds: Tensor, labels: Tensor, *, ridge: float = RIDGE) -> None:
        """Replace the weights by those of a ridge regression, for example as the start of a training.

        An ``mlp`` gets them past its hidden layer, which then adds nothing until it is trained.

        Args:
            relative_embeds: (N, R), or (N, 2, R) of pairs, as `forward` takes them.
            labels: As for `fit_ridge`.
            ridge: As for `fit_ridge`.

        Raises:
            ConfigurationError: If this decoder draws images, or is the head of a classifier.
            SampleError: If there is not one label for each sample, or all samples are equal.
            StitchingError: If the relative representations are not as wide as those that it reads.

        Example:
            ```python
            >>> import torch
            >>> from hf_relreps import RelativeDecoder, RelativeDecoderConfig
            >>> decoder = RelativeDecoder(RelativeDecoderConfig(num_anchors=8, num_labels=2)).eval()
            >>> r_NR = torch.rand(50, 8)
            >>> labels = (r_NR[:, 0] > r_NR[:, 1]).long()
            >>> decoder.fit(r_NR, labels)
            >>> bool((decoder(r_NR).logits.argmax(-1) == labels).float().mean() > 0.9)
            True

            ```
        """
        if self.config.decoder_type not in FITTED:
            raise ConfigurationError(
                f"A decoder of type {self.config.decoder_type!r} has no closed form; {', '.join(FITTED[:-1])} and "
                f"{FITTED[-1]} have one."
            )
        _refuse_other_number(relative_embeds, labels)
        self._refuse_other_width(relative_embeds)
        if isinstance(self.norm, PairBlocks):
            self.norm.adapt(relative_embeds.to(self.norm.scales.device))
        steps = [self.norm] if self.skip is not None or self.aggregation is None else [self.norm, self.aggregation]
        read = copy.deepcopy(nn.Sequential(*steps)).float()  # half precision would round what is regressed on
        h_NR = read(relative_embeds.to(self.output.weight.device).float())
        problem: Any = self.config.problem_type or _problem_of(labels, self.config.num_labels)
        self.config.problem_type = problem
        weight_CR, bias_C = _fitted(h_NR, labels, self.config, ridge)
        if self.skip is not None:
            self.output.weight.zero_()
        (self.output if self.skip is None else self.skip).weight.copy_(weight_CR)
        self.output.bias.copy_(bias_C)
        self.is_new = False

    def forward(self, relative_embeds: Tensor, labels: Tensor | None = None) -> RelativeDecoderOutput:
        """Logits (B, C), or images (B, C, H, W), of relative representations (B, R); with labels the loss as well.

        Those of tokens (B, T, R) give logits (B, T, C); labels (B, T) of -100 do not count in the loss. A decoder of
        pairs reads those of two samples (B, 2, R).

        So `Trainer` can train a decoder on the relative representations of a frozen encoder. Labels are
        what `config.problem_type` expects, or the images to draw.
        """
        self._refuse_other_width(relative_embeds)
        warn_of_training_mode(self)
        if self.config.decoder_type == SEVERAL:
            return self._answer_all(relative_embeds, labels)
        if self.config.decoder_type == MEAN:
            logits_BC = self._mean(relative_embeds)
            loss = None if labels is None else self._loss(logits_BC, labels)
            return RelativeDecoderOutput(loss=loss, logits=logits_BC)
        if self.head is not None:
            logits_BC = self.head(self.placement(relative_embeds))
            loss = None if labels is None else self._loss(logits_BC, labels)
            return RelativeDecoderOutput(loss=loss, logits=logits_BC)
        if self.training and torch.is_grad_enabled():
            self.is_new = False
        h = self.norm(relative_embeds)
        if self.training and self.config.decoder_noise:  # what another encoder will add: training learns to bear it
            h = h + self.config.decoder_noise * torch.randn_like(h)
        past = None if self.skip is None else self.skip(h)
        if self.aggregation is not None:
            h = self.aggregation(h)
        if self.image is not None:
            drawing = self.image(self.dropout(h))
            loss = None if labels is None else self._loss_of_drawing(drawing, labels)
            return RelativeDecoderOutput(loss=loss, reconstruction=drawing.images)
        if self.hidden is not None:
            h = nn.functional.silu(self.hidden(h))
        logits_BC = self.output(self.dropout(h))
        logits_BC = logits_BC if past is None else logits_BC + past
        loss = None if labels is None else self._loss(logits_BC, labels)
        return RelativeDecoderOutput(loss=loss, logits=logits_BC)

    def _answer_all(self, r_BR: Tensor, labels: Any) -> RelativeDecoderOutput:
        if labels is not None:
            raise ConfigurationError(
                f"Labels were given to the decoders {', '.join(self.named)}, which answer several questions. Train "
                "one of them: select(name)."
            )
        return RelativeDecoderOutput(logits={name: decoder(r_BR).logits for name, decoder in self.named.items()})

    def _mean(self, r_BR: Tensor) -> Tensor:
        """Logarithms of mean probabilities, sharpened or flattened: their softmax is what is believed."""
        logits = [decoder(r_BR).logits for decoder in self.decoders]
        p_SBC = torch.stack([one.to(wide(one.dtype)).softmax(-1) for one in logits])
        return p_SBC.mean(0).clamp_min(LEAST).log() / (self.config.temperature or 1.0)

    def _refuse_other_width(self, relative_embeds: Tensor) -> None:
        space = self.config.space
        if relative_embeds.shape[-1] != space.size:
            raise StitchingError(
                f"The decoder reads relative representations of {space.size} numbers ({space}), but found "
                f"{tuple(relative_embeds.shape)}. Use an encoder with the decoder's anchors and projection."
            )
        if self.config.decoder_type == PAIR and relative_embeds.shape[-2:-1] != (2,):
            raise StitchingError(
                f"The decoder compares two samples and reads relative representations of (B, 2, {space.size}), but "
                f"found {tuple(relative_embeds.shape)}. Stack those of both: torch.stack([r_u, r_v], 1), or ask "
                "RelativeModelForPairClassification."
            )

    def _loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """That of `config.problem_type`, in float32 or better; labels may be integers or floats of any size."""
        logits_BC = logits_BC.to(wide(logits_BC.dtype))
        counts = labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        one_of_many = self.config.problem_type in (None, "single_label_classification") and logits_BC.shape[-1] > 1
        labels = labels.long() if counts and one_of_many else labels.to(logits_BC.dtype)
        is_read = one_of_many and may_read(labels, self._saw_labels)
        if is_read and counts:
            refuse_other_classes(labels, logits_BC.shape[-1], but=IGNORED)
        loss = ForSequenceClassificationLoss(labels, logits_BC, self.config)
        if not one_of_many:
            return loss
        any_counts = (labels != IGNORED).any()
        if is_read:
            self._saw_labels = bool(any_counts)
            if not self._saw_labels:
                logger.warning_once(
                    f"No label of a batch counts: all {labels.numel()} are {IGNORED}. Its loss is 0 in place of NaN, "
                    "which would spoil the weights. If this holds for all batches, nothing is learned: check the "
                    "labels."
                )
        return torch.where(any_counts, loss, logits_BC.sum() * 0.0)

    def _loss_of_drawing(self, drawing: Drawing, target: Tensor) -> Tensor:
        loss = drawing.loss(target)
        if may_read(target, self._saw_pixels):
            refuse_other_pixels(target)
            self._saw_pixels = True
        return loss

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.ConvTranspose2d) and module.bias is not None:
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PairBlocks):
            init.ones_(module.scales)


def _refuse_other_kind(name: str, decoder: Any) -> None:
    """Raise `StitchingError` unless it is one decoder that gives logits."""
    kind = decoder.config.decoder_type if isinstance(decoder, RelativeDecoder) else type(decoder).__name__
    if kind not in CLASSIFIERS:
        raise StitchingError(
            f"Decoder {name!r} is of type {kind!r}, expected {', '.join(CLASSIFIERS)}: those that give logits. Stitch "
            "one that draws images by itself; of several decoders give each: decoder.select(name)."
        )


def _refuse_undescribed(descriptions: Mapping[str, Sequence[Any]]) -> None:
    """Raise `ConfigurationError` unless there are two classes or more, each with a description."""
    if len(descriptions) < 2:
        raise ConfigurationError(
            f"Found descriptions of {len(descriptions)} class, expected two classes or more: pass "
            '{"cat": "a picture of a cat", "dog": "a picture of a dog"}.'
        )
    empty = [name for name, texts in descriptions.items() if not texts]
    if empty:
        raise ConfigurationError(
            f"{len(empty)} of {len(descriptions)} classes have no description, the first is {empty[0]!r:.60}. Give "
            "each a text, or leave the class out."
        )


def refuse_other_classes(labels: Tensor, num_labels: int, *, but: int | None = None) -> None:
    """Raise `LabelError` unless all labels are numbers of classes, but for one that does not count."""
    counts = torch.ones_like(labels, dtype=torch.bool) if but is None else labels != but
    is_wrong = counts & ((labels < 0) | (labels >= num_labels))
    if not is_wrong.any():
        return
    counted, wrong = labels[counts], int(is_wrong.sum())
    low, high = int(counted.min()), int(counted.max())
    advice = f"Rows without a label have {IGNORED}" if low < 0 else f"Number them from 0, or set num_labels={high + 1}"
    raise LabelError(
        f"The labels lie in {low} ... {high}, expected 0 ... {num_labels - 1}: {wrong} of {len(counted)} are no "
        f"classes of the model. {advice}."
    )


def _note_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Weights that were loaded are no random ones."""
    assert isinstance(module, RelativeDecoder)
    module.is_new = False


def _refuse_other_number(r_NR: Tensor, labels: Tensor) -> None:
    if len(labels) != len(r_NR):
        raise SampleError(f"Found {len(labels)} labels for {len(r_NR)} samples. Give one label for each sample.")
    if len(labels) == 0:
        raise SampleError("No sample has a label. Give at least two labelled samples.")


def _absolute(embeddings: Any, anchor_embeddings: Any, k: int) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and those of the k anchors (A, D), float32 or better, after checking them."""
    x_ND, given = _numbers(embeddings, "embeddings"), _numbers(anchor_embeddings, "anchor_embeddings")
    if x_ND.ndim != 2:
        raise EmbeddingError(f"The embeddings have shape {tuple(x_ND.shape)}, expected (N, D): a row for each sample.")
    x_ND = x_ND.to(wide(x_ND.dtype))
    refuse_directionless(x_ND, "sample")
    if given.ndim == 1:
        given = x_ND[_rows(given, len(x_ND))]
    if tuple(given.shape) != (k, x_ND.shape[1]):
        raise EmbeddingError(
            f"The anchors' embeddings have shape {tuple(given.shape)}, expected {(k, x_ND.shape[1])}: one row for "
            f"each of the {k} anchors in their order, as wide as the embeddings. Encode anchors.view(name).samples "
            "with the same encoder."
        )
    return x_ND, given.to(x_ND)


def _numbers(given: Any, name: str) -> Tensor:
    given = given[:] if isinstance(given, Sequence) else given  # a column of `datasets` as a list
    try:
        return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise EmbeddingError(
            f"{name} is a {type(given).__name__} that cannot be converted to an array of numbers: {error}. Pass an "
            "array or a tensor."
        ) from error


def _rows(rows_A: Tensor, n: int) -> Tensor:
    if rows_A.is_floating_point() or rows_A.dtype == torch.bool:
        raise EmbeddingError(
            f"anchor_embeddings has {len(rows_A)} numbers of type {rows_A.dtype}, expected embeddings (A, D) or "
            "integers (A,), the rows of the embeddings that are the anchors."
        )
    rows_A = rows_A.long()
    if len(rows_A) and not 0 <= int(rows_A.min()) <= int(rows_A.max()) < n:
        raise EmbeddingError(
            f"The anchors are rows {int(rows_A.min())} to {int(rows_A.max())} of the embeddings, which have rows 0 to "
            f"{n - 1}. Count the rows from 0."
        )
    return rows_A


def names_of_classes(settings: Mapping[str, Any]) -> Any:
    """Number -> name, from `id2label`, which may be a list, or from `label2id` where that stands alone."""
    names, numbers = settings.get("id2label"), settings.get("label2id")
    if isinstance(names, list | tuple):
        return dict(enumerate(names))
    if names is None and numbers is not None:
        return {number: name for name, number in numbers.items()}
    return names


def _numbered(given: Any, settings: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Labels as numbers, and their settings: names are numbered as these say, or else in their order."""
    names = names_of_classes(settings)
    given = given if isinstance(given, Tensor | np.ndarray) else as_list(given, "labels")
    if not isinstance(given, Tensor) and any(isinstance(label, str) for label in given):
        if names is None:
            names = dict(enumerate(sorted({label for label in given if isinstance(label, str)})))
        numbers = {name: int(number) for number, name in names.items()}
        unknown = [i for i, label in enumerate(given) if label not in numbers]
        if unknown:
            raise SampleError(
                f"labels[{unknown[0]}] is {given[unknown[0]]!r:.60}, expected one of {', '.join(map(str, numbers))}"
                f"{f' ({len(unknown)} labels are none of these)' if len(unknown) > 1 else ''}. Name all classes in "
                "id2label."
            )
        given = [numbers[label] for label in given]
    try:
        labels = torch.as_tensor(given if isinstance(given, Tensor) else np.asarray(given))
    except (TypeError, ValueError, RuntimeError) as error:
        row = next((i for i, label in enumerate(given) if not isinstance(label, int | float)), 0)
        raise SampleError(
            f"labels[{row}] is {given[row]!r:.60}. Expected a class for each sample, as number or name; rows of 0 and "
            "1; or numbers, for a regression."
        ) from error
    if labels.is_floating_point() and not torch.isfinite(labels).all():
        row = int((~torch.isfinite(labels)).nonzero()[0, 0])
        raise SampleError(f"labels[{row}] is {labels[row].tolist()}, expected finite numbers. Leave that sample out.")
    return labels, settings if names is None else settings | {"id2label": names}


def _problem_of(labels: Tensor, num_labels: int | None = None) -> str:
    """What labels are for: whole numbers name classes, rows of 0 and 1 several labels, the rest is a regression."""
    if num_labels == 1:
        return "regression"
    if labels.ndim == 1:
        return "regression" if labels.is_floating_point() else "single_label_classification"
    zeros_and_ones = bool(((labels == 0) | (labels == 1)).all())
    return "multi_label_classification" if zeros_and_ones else "regression"


def _number_of(labels: Tensor, problem: str) -> int:
    if problem == "single_label_classification":
        return max(int(labels.max()) + 1, 2)
    return labels.shape[1] if labels.ndim > 1 else 1


def _warn_of_empty_classes(labels: Tensor) -> None:
    """Nobody said how many classes there are: one without samples is likely a mistake in their numbers."""
    low, high = int(labels.min()), int(labels.max())
    empty = sorted(set(range(high + 1)) - set(labels.tolist()))
    if low < 0 or not empty:  # a negative number is refused
        return
    listed = f"{', '.join(map(str, empty[:5]))}{', ...' if len(empty) > 5 else ''}"
    which = f"class {listed}" if len(empty) == 1 else f"classes {listed}"
    logger.warning(
        f"The labels lie in {low} ... {high}, and {which} had no samples, though the decoder has {high + 1} classes. "
        "Number the classes from 0 without gaps. If this is meant, say how many there are with num_labels or id2label."
    )


def _fitted(z_NR: Tensor, labels: Tensor, config: RelativeDecoderConfig, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights (C, R) and bias (C,) of the logits."""
    labels, num_labels = labels.to(z_NR.device), config.num_labels or 0
    if config.problem_type == "single_label_classification":
        labels = labels.long()
        refuse_other_classes(labels, num_labels)
        targets_NC = nn.functional.one_hot(labels, num_labels)
        fit = fit_ridge(z_NR, targets_NC, ridge, class_weights(labels, num_labels))
        scale = sharpness(fit.left_out_NC, labels)
        return scale * fit.weight_CR, scale * fit.bias_C
    targets_NC = labels.reshape(len(labels), -1)
    if targets_NC.shape[1] != num_labels:
        are_numbers = targets_NC.shape[1] == 1 and config.problem_type == "regression"
        advice = (
            "Labels that are classes must be integers: labels.long()." if are_numbers else "Set num_labels to that."
        )
        raise LabelError(
            f"Each sample has {targets_NC.shape[1]} labels, expected num_labels={num_labels} for "
            f"problem_type={config.problem_type!r}. {advice}"
        )
    fit = fit_ridge(z_NR, targets_NC, ridge)
    if config.problem_type == "regression":
        return fit.weight_CR, fit.bias_C
    scale = sharpness_of_several(fit.left_out_NC - 0.5, targets_NC)
    return scale * fit.weight_CR, scale * (fit.bias_C - 0.5)
