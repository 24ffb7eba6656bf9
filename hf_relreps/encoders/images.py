"""Image encoders: the small convolutional net of the paper.

Greyscale images are read as RGB, as transformers' own processors and pipelines do; an encoder with ``num_channels=1``
takes the mean of the channels.

Shapes: B batch, C channels, D absolute size, H and W height and width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ViTImageProcessorPil
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from hf_relreps.errors import ConfigurationError, SampleError


@strict
class ConvEncoderConfig(PreTrainedConfig):
    """Configuration of a `ConvEncoder`; the defaults are those of the paper's image experiments.

    Args:
        widths: Channels after each convolution; the last is D.
        num_channels: C, what the first convolution reads: 3, or 1 for the mean of the channels.
        image_size: Height and width of the images; 28 in MNIST, 32 in CIFAR-10.
        hidden_act: Activation between the convolutions.
        last_activation: Whether the last convolution has one as well. The paper's relative nets do without: cosines
            of vectors that are all positive hardly differ.

    Example:
        ```python
        >>> from hf_relreps.encoders.images import ConvEncoderConfig
        >>> ConvEncoderConfig(widths=[8, 16]).hidden_size
        16

        ```
    """

    model_type = "relreps_conv"

    widths: list[int] = dataclasses.field(default_factory=lambda: [32, 64, 128, 256])
    num_channels: int = 3
    image_size: int = 28
    hidden_act: str = "gelu"
    last_activation: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not self.widths or min(self.widths) < 1:
            raise ConfigurationError(
                f"widths={self.widths} must be a list of positive numbers, one for each convolution."
            )
        if self.num_channels < 1:
            raise ConfigurationError(f"num_channels={self.num_channels} must be at least 1: 3 for RGB, 1 for grey.")
        if self.hidden_act not in ACT2FN:
            raise ConfigurationError(
                f"hidden_act={self.hidden_act!r} does not exist. Choose one of {', '.join(ACT2FN)}."
            )

    @property
    def hidden_size(self) -> int:
        """D, the width of the feature map."""
        return self.widths[-1]


class ConvEncoder(PreTrainedModel):
    """3x3 convolutions of stride 2, each with batch normalisation and an activation.

    Pooling ``spatial_mean`` gives D numbers; ``pooler`` gives the flattened map, as the paper's autoencoders use it.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig
        >>> encoder = ConvEncoder(ConvEncoderConfig(widths=[8, 16]))
        >>> encoder(torch.zeros(2, 3, 28, 28)).last_hidden_state.shape
        torch.Size([2, 16, 7, 7])

        ```
    """

    config_class = ConvEncoderConfig
    config: ConvEncoderConfig
    base_model_prefix = "conv"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: ConvEncoderConfig) -> None:
        super().__init__(config)
        inputs = [config.num_channels, *config.widths]
        last = len(config.widths) - 1
        self.layers = nn.ModuleList(
            _convolution(inputs[i], width, config.hidden_act if i < last or config.last_activation else None)
            for i, width in enumerate(config.widths)
        )
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """Feature map (B, D, H, W) of images (B, C, H, W), and the same map flattened (B, D * H * W)."""
        hidden_BDHW = self._channels(pixel_values)
        hidden_states = [hidden_BDHW]
        for layer in self.layers:
            hidden_BDHW = layer(hidden_BDHW)
            hidden_states.append(hidden_BDHW)
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=hidden_BDHW,
            pooler_output=hidden_BDHW.flatten(1),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _channels(self, pixel_values: Tensor) -> Tensor:
        expected = self.config.num_channels
        if expected == 1 and pixel_values.ndim == 4:
            return pixel_values.mean(1, keepdim=True)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != expected:
            raise SampleError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, expected (batch, {expected}, height, width). "
                "Prepare images with image_processor(image_size), or set num_channels=1 for greyscale images."
            )
        return pixel_values

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        else:
            super()._init_weights(module)


def _convolution(inputs: int, outputs: int, activation: str | None) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
    layers = [convolution, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([ACT2FN[activation]] if activation else []))


def image_processor(image_size: int, mean: float | None = None, std: float | None = None) -> ViTImageProcessorPil:
    """A processor that gives RGB images (B, 3, image_size, image_size) with pixels in [0, 1]; no torchvision needed.

    Images of that size keep their exact pixels, others are resized.

    Args:
        image_size: Height and width.
        mean: Subtracted from the pixels.
        std: What the pixels are divided by; with `mean`, the result leaves [0, 1].

    Example:
        ```python
        >>> from PIL import Image
        >>> from hf_relreps.encoders.images import image_processor
        >>> image_processor(28)(images=Image.new("RGB", (20, 30)), return_tensors="pt")["pixel_values"].shape
        torch.Size([1, 3, 28, 28])

        ```
    """
    return ViTImageProcessorPil(
        do_convert_rgb=True,
        size={"height": image_size, "width": image_size},
        do_normalize=mean is not None or std is not None,
        image_mean=[0.0 if mean is None else mean] * 3,
        image_std=[1.0 if std is None else std] * 3,
    )


AutoConfig.register(ConvEncoderConfig.model_type, ConvEncoderConfig, exist_ok=True)
AutoModel.register(ConvEncoderConfig, ConvEncoder, exist_ok=True)
