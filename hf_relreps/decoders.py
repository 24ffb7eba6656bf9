"""`RelativeDecoder`: what reads a relative representation. It never sees an encoder.

Shapes: B batch, R relative size, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.utils import ModelOutput, logging

from hf_relreps.configuration import RelativeConfig
from hf_relreps.errors import ConfigurationError, StitchingError
from hf_relreps.image_decoders import IMAGE_DECODERS
from hf_relreps.uploads import RelativeUpload


logger = logging.get_logger(__name__)


@dataclass
class RelativeDecoderOutput(ModelOutput):
    """What a decoder gives: logits (B, C) or images (B, C, H, W), and the loss where there are labels."""

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


class RelativeDecoder(RelativeUpload):
    """LayerNorm, then what `config.decoder_type` names: a linear or two-layer map to logits (B, C), or an image.

    Nothing in it looks at the other samples of a batch, so one sample alone gives the same logits. (The paper's
    notebooks normalise each feature over the batch, which nobody can do with one sample.)

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps import RelativeConfig, RelativeDecoder
        >>> decoder = RelativeDecoder(RelativeConfig(num_anchors=300, num_labels=5))
        >>> decoder(torch.rand(2, 300)).logits.shape
        torch.Size([2, 5])

        ```
    """

    part = "decoder"
    base_model_prefix = "decoder"  # the prefix of its weights in a whole model's file
    main_input_name = "relative_embeds"
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever the gradient accumulation

    def __init__(self, config: RelativeConfig) -> None:
        super().__init__(config)
        if config.relative_size < 2:
            raise ConfigurationError(
                f"A decoder reads one number for each anchor and normalises them, so it needs two; num_anchors is "
                f"{config.num_anchors}. Set it in the config."
            )
        self.norm = WideLayerNorm(config.relative_size, eps=1e-12)  # thousands of anchors have variances below 1e-4
        self.dropout = nn.Dropout(config.decoder_dropout)
        inputs, hidden, outputs = config.relative_size, config.decoder_hidden_size, config.num_labels or 0
        draw = IMAGE_DECODERS.get(config.decoder_type)
        self.image = draw(config, inputs) if draw else None
        self.hidden = nn.Linear(inputs, hidden) if config.decoder_type == "mlp" else None
        self.output: Any = None if self.image else nn.Linear(hidden if self.hidden else inputs, outputs)
        self.post_init()

    def forward(self, relative_embeds: Tensor, labels: Tensor | None = None) -> RelativeDecoderOutput:
        """Logits (B, C), or images (B, C, H, W), of relative representations (B, R); with labels the loss as well.

        So a decoder trains by itself with `Trainer`, on the relative representations of a frozen encoder. Labels are
        what `config.problem_type` expects, or the images to draw.
        """
        if relative_embeds.shape[-1] != self.config.relative_size:
            raise StitchingError(
                f"The decoder reads relative representations of {self.config.relative_size} numbers "
                f"({self.config.num_anchors} anchors, {', '.join(self.config.similarities)}), found "
                f"{tuple(relative_embeds.shape)}. Use an encoder with the decoder's anchors and projection."
            )
        warn_of_training_mode(self)
        h = self.norm(relative_embeds)
        if self.training and self.config.decoder_noise:  # what another encoder will add: training learns to bear it
            h = h + self.config.decoder_noise * torch.randn_like(h)
        if self.image is not None:
            drawing = self.image(self.dropout(h))
            loss = None if labels is None else drawing.loss(labels)
            return RelativeDecoderOutput(loss=loss, reconstruction=drawing.images)
        if self.hidden is not None:
            h = nn.functional.silu(self.hidden(h))
        logits_BC = self.output(self.dropout(h))
        loss = None if labels is None else self._loss(logits_BC, labels)
        return RelativeDecoderOutput(loss=loss, logits=logits_BC)

    def _loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """That of `config.problem_type`, in float32 or better; labels may be integers or floats of any size."""
        logits_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
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
