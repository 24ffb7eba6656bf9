"""`RelativeDecoder`: what reads a relative representation. It never sees an encoder.

Images are drawn by the mirror of the paper's convolutional encoder, with or without a variational middle.

Shapes: B batch, N samples, A anchors, R relative size (A times the number of similarities), H hidden, Z latent size,
C classes or channels, H and W height and width of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.utils import ModelOutput, logging

from hf_relreps.backbones import BUILDING
from hf_relreps.configuration import RelativeConfig, RelativeDecoderConfig
from hf_relreps.errors import ConfigurationError, SampleError, StitchingError
from hf_relreps.heads import ClassifierHead, Placement, build_head
from hf_relreps.pretrained import RelativePart, RelativePreTrainedModel
from hf_relreps.projection import wide
from hf_relreps.ridge import RIDGE, class_weights, fit_ridge, sharpness, sharpness_of_several


logger = logging.get_logger(__name__)


@dataclass
class RelativeDecoderOutput(ModelOutput):
    """What a decoder gives: logits (B, C) or images (B, C, H, W), and the loss where there are labels.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> decoder(torch.rand(2, 40), labels=torch.tensor([0, 1])).loss.shape
        torch.Size([])

        ```
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    reconstruction: Tensor | None = None


def warn_of_training_mode(module: nn.Module) -> None:
    """Nobody trains without gradients: whoever predicts in training mode gets answers blurred by dropout and noise."""
    if module.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        logger.warning_once(
            f"This {type(module).__name__} predicts in training mode, so its dropout and noise blur what it gives. "
            "Call model.eval() first."
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


class Drawing(NamedTuple):
    """Images (B, C, H, W) in [0, 1], and what a training adds to their error: the divergence of a latent."""

    images: Tensor
    divergence: Tensor | None = None

    def loss(self, target: Tensor) -> Tensor:
        """Against the images to draw: see `reconstruction_loss`.

        Raises:
            SampleError: If these have another shape, or do not lie in [0, 1].
        """
        refuse_other_pixels(self.images, target)
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


def refuse_other_pixels(drawn: Tensor, target: Tensor) -> None:
    """Raise `SampleError` unless the images to draw have the shape of those drawn, and pixels in [0, 1]."""
    if drawn.shape != target.shape:
        channels, height, width = drawn.shape[1:]
        raise SampleError(
            f"The decoder draws images ({channels}, {height}, {width}), those to draw have shape "
            f"{tuple(target.shape[1:])}. Set image_size and num_channels to theirs: from_encoder(..., "
            "image_size=..., num_channels=...)."
        )
    low, high = target.aminmax()
    if not (low >= 0 and high <= 1):  # written so that NaN is refused
        raise SampleError(
            f"The pixels to draw lie in [{float(low):.2f}, {float(high):.2f}], expected [0, 1]. Use an image "
            "processor with do_normalize=False, or give the images to draw beside what the encoder reads: target=..."
        )


def _sides(image_size: int, steps: int) -> list[int]:
    """Side of the map before each step and at the end: what halving with rounding up gives, read backwards."""
    sides = [image_size]
    for _ in range(steps):
        sides.append(-(-sides[-1] // 2))
    return sides[::-1]


class RelativeDecoder(RelativePart):
    """LayerNorm, then what `config.decoder_type` names: a linear or two-layer map to logits (B, C), or an image.

    Or the head of an ordinary classifier, told where the anchors lie in its own space: see `hf_relreps.translation`.
    Nothing in it looks at the other samples of a batch, so one sample alone gives the same logits. (The paper's
    notebooks normalise each feature over the batch, which nobody can do with one sample.)

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

    def __init__(self, config: RelativeDecoderConfig | RelativeConfig, head: ClassifierHead | None = None) -> None:
        config = config.decoder if isinstance(config, RelativeConfig) else config
        super().__init__(config)
        space = config.space
        if space.size < 2:
            raise ConfigurationError(
                f"A decoder reads one number for each anchor and normalises them, so it needs two; num_anchors is "
                f"{space.num_anchors}. Set it in the config."
            )
        self.placement: Any = None
        self.head: Any = None
        self.aggregation: Any = None
        self.image: Any = None
        self.hidden: Any = None
        self.output: Any = None
        if config.decoder_type == "head":
            self.head = build_head(config) if head is None else head
            self.placement = Placement(space.size, config.head_size or 0)
        else:
            self._build(config)
        self.post_init()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise what is new here; the head of a classifier comes with its weights, or gets them from a load."""
        for name, module in self.named_modules():
            if name and name.split(".")[0] != "head":
                self._init_weights(module)
        super().init_weights()

    def _build(self, config: RelativeDecoderConfig) -> None:
        space: Any = config.space
        inputs, hidden, outputs = space.size, config.decoder_hidden_size, config.num_labels or 0
        eps = 1e-12  # thousands of anchors have variances below 1e-4
        spaces, summed = len(space.similarity), config.decoder_aggregation == "sum"
        # Distances are larger than cosines by far: one norm for all would see nothing but which space is which.
        self.norm: nn.Module = (
            SpaceNorms(space.num_anchors, spaces, eps=eps)
            if summed or (spaces > 1 and space.num_anchors > 1)  # one number normalised by itself is nothing
            else WideLayerNorm(space.size, eps=eps)
        )
        if summed:
            self.aggregation = SpaceSum(space.num_anchors, spaces, hidden)
            inputs = hidden
        self.dropout = nn.Dropout(config.decoder_dropout)
        draw = DRAWING_MODULES.get(config.decoder_type)
        self.image = draw(config, inputs) if draw else None
        self.hidden = nn.Linear(inputs, hidden) if config.decoder_type == "mlp" else None
        self.output = None if self.image else nn.Linear(hidden if self.hidden else inputs, outputs)

    @classmethod
    def _resolve_config(cls, name: str, kwargs: dict[str, Any], stored: dict[str, Any]) -> Any:
        config, kwargs = super()._resolve_config(name, kwargs, stored)
        found, asked = RelativeDecoderConfig.from_dict(stored).num_labels, config.num_labels
        if found != asked:
            raise ConfigurationError(
                f"The decoder of {name} has {found} classes, num_labels={asked} was asked for. For a new decoder on "
                f"its encoder, to be trained: RelativeModelForSequenceClassification.from_encoder("
                f"RelativeModel.from_pretrained({name!r}), num_labels={asked})."
            )
        return config, kwargs

    def describe_weights(self) -> dict[str, Any]:
        """The space that is read, the kind of decoder and its classes in their order."""
        config = self.config
        space = {f"space.{name}": value for name, value in config.space.to_dict().items()}
        names = ("decoder_type", "decoder_aggregation", "problem_type", "head_modality", "head_reads", "head_pair")
        classes = [label for _, label in sorted((config.id2label or {}).items())]
        told = {} if self.image is not None else {"classes": classes}
        return space | {name: getattr(config, name) for name in names} | told

    @classmethod
    @torch.no_grad()
    def fit_ridge(
        cls,
        relative_embeds: Tensor,
        labels: Tensor | Sequence[Any],
        like: RelativePreTrainedModel,
        *,
        ridge: float = RIDGE,
        **label_settings: Any,
    ) -> Self:
        """A linear decoder in closed form: milliseconds on the relative representations of frozen encoders.

        Ridge regression on to the classes, where rare ones count more; the logits are as sharp as suits samples that
        were left out, so they are probabilities of a kind. It loads, saves, trains on and stitches like any other.

        Args:
            relative_embeds: (N, R), of one encoder or of several below one another.
            labels: Classes (N,); several labels as 0 and 1 (N, C); or numbers, for a regression.
            like: An encoder of them, or a model with it: whose anchors and projection these are.
            ridge: Penalty in units of the total variance of the normalised relative representations.
            **label_settings: num_labels, id2label, label2id, problem_type; what the labels tell if left out.

        Raises:
            SampleError: If there is not one label for each sample, or the samples cannot be told apart.
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
        r_NR, labels = torch.as_tensor(relative_embeds), torch.as_tensor(labels)
        if len(labels) != len(r_NR):
            raise SampleError(f"There are {len(labels)} labels for {len(r_NR)} samples. Give one for each.")
        problem = label_settings.get("problem_type") or _problem_of(labels)
        told = {"num_labels": _number_of(labels, problem)} if label_settings.get("id2label") is None else {}
        config = RelativeDecoderConfig(
            space=like.config.space,
            modality=like.config.modality,
            anchor_view=like.config.anchor_view,
            decoder_type="linear",
            **told | label_settings | {"problem_type": problem},
        )
        with BUILDING:
            decoder = cls(config)
        decoder._refuse_other_width(r_NR)
        weight_CR, bias_C = _fitted(decoder.norm(r_NR.float()), labels, config, ridge)
        decoder.output.weight.copy_(weight_CR)
        decoder.output.bias.copy_(bias_C)
        decoder.carry(like.anchors, None)
        return decoder.eval()

    def forward(self, relative_embeds: Tensor, labels: Tensor | None = None) -> RelativeDecoderOutput:
        """Logits (B, C), or images (B, C, H, W), of relative representations (B, R); with labels the loss as well.

        So a decoder trains by itself with `Trainer`, on the relative representations of a frozen encoder. Labels are
        what `config.problem_type` expects, or the images to draw.
        """
        self._refuse_other_width(relative_embeds)
        warn_of_training_mode(self)
        if self.head is not None:
            logits_BC = self.head(self.placement(relative_embeds))
            loss = None if labels is None else self._loss(logits_BC, labels)
            return RelativeDecoderOutput(loss=loss, logits=logits_BC)
        h = self.norm(relative_embeds)
        if self.training and self.config.decoder_noise:  # what another encoder will add: training learns to bear it
            h = h + self.config.decoder_noise * torch.randn_like(h)
        if self.aggregation is not None:
            h = self.aggregation(h)
        if self.image is not None:
            drawing = self.image(self.dropout(h))
            loss = None if labels is None else drawing.loss(labels)
            return RelativeDecoderOutput(loss=loss, reconstruction=drawing.images)
        if self.hidden is not None:
            h = nn.functional.silu(self.hidden(h))
        logits_BC = self.output(self.dropout(h))
        loss = None if labels is None else self._loss(logits_BC, labels)
        return RelativeDecoderOutput(loss=loss, logits=logits_BC)

    def _refuse_other_width(self, relative_embeds: Tensor) -> None:
        space = self.config.space
        if relative_embeds.shape[-1] != space.size:
            raise StitchingError(
                f"The decoder reads relative representations of {space.size} numbers ({space}), found "
                f"{tuple(relative_embeds.shape)}. Use an encoder with the decoder's anchors and projection."
            )

    def _loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """That of `config.problem_type`, in float32 or better; labels may be integers or floats of any size."""
        logits_BC = logits_BC.to(wide(logits_BC.dtype))
        counts = labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        one_of_many = self.config.problem_type in (None, "single_label_classification") and logits_BC.shape[-1] > 1
        labels = labels.long() if counts and one_of_many else labels.to(logits_BC.dtype)
        return ForSequenceClassificationLoss(labels, logits_BC, self.config)

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


def _problem_of(labels: Tensor) -> str:
    """What labels are for: whole numbers name classes, rows of 0 and 1 several labels, the rest is a regression."""
    if labels.ndim == 1:
        return "regression" if labels.is_floating_point() else "single_label_classification"
    zeros_and_ones = bool(((labels == 0) | (labels == 1)).all())
    return "multi_label_classification" if zeros_and_ones else "regression"


def _number_of(labels: Tensor, problem: str) -> int:
    if problem == "single_label_classification":
        return max(int(labels.max()) + 1, 2)
    return labels.shape[1] if labels.ndim > 1 else 1


def _fitted(z_NR: Tensor, labels: Tensor, config: RelativeDecoderConfig, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights (C, R) and bias (C,) of the logits."""
    labels, num_labels = labels.to(z_NR.device), config.num_labels or 0
    if config.problem_type == "single_label_classification":
        labels = labels.long()
        if not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
            raise SampleError(
                f"The labels lie in {int(labels.min())} ... {int(labels.max())}, expected 0 ... {num_labels - 1}. "
                "Set num_labels, or number the classes from 0."
            )
        targets_NC = nn.functional.one_hot(labels, num_labels)
        fit = fit_ridge(z_NR, targets_NC, ridge, class_weights(labels, num_labels))
        scale = sharpness(fit.left_out_NC, labels)
        return scale * fit.weight_CR, scale * fit.bias_C
    targets_NC = labels.reshape(len(labels), -1)
    fit = fit_ridge(z_NR, targets_NC, ridge)
    if config.problem_type == "regression":
        return fit.weight_CR, fit.bias_C
    scale = sharpness_of_several(fit.left_out_NC - 0.5, targets_NC)
    return scale * fit.weight_CR, scale * (fit.bias_C - 0.5)
