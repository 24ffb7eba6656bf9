"""`RelativeDecoder`: what reads a relative representation. It never sees an encoder.

Shapes: B batch, R relative size, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.utils import ModelOutput

from hf_relreps.configuration import RelativeConfig
from hf_relreps.errors import ConfigurationError
from hf_relreps.uploads import RelativeUpload


@dataclass
class RelativeDecoderOutput(ModelOutput):
    """What a decoder gives: logits (B, C), and the loss where there are labels."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class RelativeDecoder(RelativeUpload):
    """LayerNorm, then a linear or two-layer map from relative representations (B, R) to logits (B, C).

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
        if config.num_anchors == 0:
            raise ConfigurationError("A decoder reads one number for each anchor; num_anchors is 0. Set it in the config.")
        hidden = config.decoder_hidden_size
        is_mlp = config.decoder_type == "mlp"
        self.norm = nn.LayerNorm(config.relative_size)
        self.hidden = nn.Linear(config.relative_size, hidden) if is_mlp else None
        self.dropout = nn.Dropout(config.decoder_dropout)
        self.output = nn.Linear(hidden if is_mlp else config.relative_size, config.num_labels)
        self.post_init()

    def forward(self, relative_embeds: Tensor, labels: Tensor | None = None) -> RelativeDecoderOutput:
        """Logits (B, C) of relative representations (B, R); with labels the loss of `config.problem_type` as well.

        So a decoder trains by itself with `Trainer`, on the relative representations of a frozen encoder.
        """
        h = self.norm(relative_embeds.to(self.norm.weight.dtype))
        if self.training and self.config.decoder_noise:  # what another encoder will add: training learns to bear it
            h = h + self.config.decoder_noise * torch.randn_like(h)
        if self.hidden is not None:
            h = nn.functional.silu(self.hidden(h))
        logits_BC = self.output(self.dropout(h))
        loss = None if labels is None else ForSequenceClassificationLoss(labels, logits_BC, self.config)
        return RelativeDecoderOutput(loss=loss, logits=logits_BC)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
