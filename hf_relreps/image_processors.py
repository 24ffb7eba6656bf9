"""Image processors that prepare images the same way wherever an upload is read.

transformers prepares images with torchvision where it is installed and with PIL elsewhere, and both resize slightly
differently; the processor of timm models cannot be saved at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil
from transformers.utils import logging

from hf_relreps.configuration import IMAGE_BACKENDS
from hf_relreps.errors import ConfigurationError
from hf_relreps.sources import Source


logger = logging.get_logger(__name__)

OF_TIMM = "TimmWrapperImageProcessor"


def backend_of(processor: Any) -> str | None:
    """Which of `IMAGE_BACKENDS` a processor prepares images with; none if it reads no images."""
    backend = getattr(getattr(processor, "image_processor", processor), "backend", None)
    return backend if backend in IMAGE_BACKENDS else None


def with_backend(processor: Any, source: Source, backend: str) -> Any:
    """The processor of an upload, which prepares images as when that was made."""
    if backend == backend_of(processor):
        return processor
    images = AutoImageProcessor.from_pretrained(
        source.name, trust_remote_code=False, backend=backend, **source.arguments, **source.subfolder_argument
    )
    if backend_of(images) != backend:
        logger.warning(
            f"The images of {source} were prepared by {backend}, which is not installed here. {backend_of(images)} "
            f"resizes slightly differently, so embeddings change: pip install {backend}."
        )
    if not hasattr(processor, "image_processor"):
        return images
    processor.image_processor = images
    return processor


def savable(processor: Any) -> Any:
    """A processor that is saved with a model: as it is, unless it is that of a timm model.

    Raises:
        ConfigurationError: If it is that of a timm model and prepares images as no other does.
    """
    return like_timm(processor.data_config) if type(processor).__name__ == OF_TIMM else processor


def like_timm(settings: Mapping[str, Any]) -> CLIPImageProcessorPil:
    """An image processor of transformers that does what timm does for evaluation.

    The image is resized to a little more than the model reads, and its centre cut out. Where more has to be cut off
    by an odd number of pixels, the two may choose centres that lie one pixel apart.

    Args:
        settings: The data configuration of timm: input_size (channels, height, width), crop_pct, crop_mode,
            interpolation, mean and std.

    Raises:
        ConfigurationError: If the settings are of another kind, for example with a border round the image.
    """
    channels, height, width = settings["input_size"]
    squashed, interpolation = settings["crop_mode"] == "squash", str(settings["interpolation"]).upper()
    centred = settings["crop_mode"] == "center" and height == width
    if channels != 3 or interpolation not in Image.Resampling.__members__ or not (squashed or centred):
        raise ConfigurationError(
            f"The image processor of this timm model cannot be saved: input_size={tuple(settings['input_size'])}, "
            f"crop_mode={settings['crop_mode']!r}, interpolation={settings['interpolation']!r}. "
            "Expected RGB, a square cut from the centre (or any size with 'squash'), and an interpolation of PIL. "
            "Pass an image processor of transformers: from_encoder(model, view, processor)."
        )
    scaled = [math.floor(side / settings["crop_pct"]) for side in (height, width)]
    size = dict(zip(("height", "width"), scaled, strict=True)) if squashed else {"shortest_edge": scaled[0]}
    return CLIPImageProcessorPil(
        size=size,
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[interpolation],
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )
