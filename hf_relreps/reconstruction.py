"""Image reconstruction: autoencoders whose decoder reads only the relative representation (paper, section 5.1).

Shapes: B batch, C channels, H and W height and width, R relative size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_relreps.anchors import AnchorView
from hf_relreps.errors import ConfigurationError
from hf_relreps.modeling import RelativeModel, RelativeTaskModel
from hf_relreps.samples import batches


# What suits drawing where nothing else is chosen. Noise makes a classifier tolerant of another encoder; here it makes
# own and stitched images worse (docs/modalities.md).
DRAWING = {"decoder_type": "image", "decoder_noise": 0.0, "decoder_dropout": 0.0}


@dataclass
class RelativeReconstructionOutput(ModelOutput):
    """What a reconstruction gives: loss, images (B, C, H, W) in [0, 1], relative representations (B, R).

    Example:
        ```python
        >>> from hf_relreps.reconstruction import RelativeReconstructionOutput
        >>> list(RelativeReconstructionOutput(reconstruction=torch.zeros(1, 3, 16, 16)))
        ['reconstruction']

        ```
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    relative_embeds: Tensor | None = None


class RelativeModelForImageReconstruction(RelativeTaskModel):
    """An image encoder and a decoder that draws the image again from its relative representation.

    ``decoder_type="image"`` makes an autoencoder, ``"variational"`` a variational one. Pixels to draw lie in [0, 1];
    they are those that the encoder reads, unless a `target` gives others, which an encoder needs whose image processor
    normalises.

    Example:
        ```python
        >>> from PIL import Image
        >>> from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
        >>> images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
        >>> view = AnchorSet(["red", "green", "blue"], {"image": images}).view()
        >>> conv = ConvEncoder(ConvEncoderConfig(image_size=16, widths=[8, 16]))
        >>> reader = image_processor(16)
        >>> model = RelativeModelForImageReconstruction.from_encoder(conv, view, reader, pooling="pooler").eval()
        >>> inputs = model.processor(images=images, return_tensors="pt")  # no pipeline draws images again
        >>> model(**inputs).reconstruction.shape
        torch.Size([3, 3, 16, 16])

        ```
    """

    modality = "image"
    main_input_name = "pixel_values"
    decoder_types = ("image", "variational")

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        anchors_view: AnchorView | None = None,
        processor: Any = None,
        **settings: Any,
    ) -> Self:
        """An encoder made relative, with a new decoder that draws what the processor makes of an image.

        Args:
            encoder: As for the other tasks.
            anchors_view: As for the other tasks.
            processor: The image processor; `image_size` and `num_channels` are measured from what it makes.
            **settings: As for the other tasks; by default a plain autoencoder without noise and dropout.

        Raises:
            ConfigurationError: If a setting has no meaning, or the processor makes images that are not square.
        """
        start = encoder.config if isinstance(encoder, RelativeModel) else settings.get("config")
        if start is None or start.decoder_type not in cls.decoder_types:
            settings = DRAWING | _measured(encoder, anchors_view, processor) | settings
        return super().from_encoder(encoder, anchors_view, processor, **settings)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        target: Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
        **classes: Any,
    ) -> RelativeReconstructionOutput | tuple[Any, ...]:
        """Images (B, C, H, W) drawn from relative representations, and the loss against what they should be.

        Args:
            pixel_values: What the encoder reads, (B, C, H, W).
            target: The images to draw, pixels in [0, 1]; those that the encoder reads if left out.
            return_loss: Whether to compute the loss.
            return_dict: Whether to give a `ModelOutput` rather than a tuple.
            **classes: `labels` of a data set that has classes beside its images; they are not used.

        Raises:
            SampleError: If the images to draw have another shape than those drawn, or do not lie in [0, 1].
        """
        if set(classes) - {"labels"}:
            raise TypeError(
                f"{type(self).__name__}.forward takes pixel_values, target and return_loss, found "
                f"{', '.join(sorted(classes))}."
            )
        encoded = self.encoder(pixel_values=pixel_values)
        target = pixel_values if target is None else target
        decoded = self.decoder(encoded.relative_embeds, labels=target if return_loss else None)
        result = RelativeReconstructionOutput(decoded.loss, decoded.reconstruction, encoded.relative_embeds)
        return result.to_tuple() if return_dict is False else result


def _measured(encoder: Any, anchors_view: AnchorView | None, processor: Any) -> dict[str, int]:
    """Side and channels of the images that the processor makes; nothing where there is none yet."""
    if isinstance(encoder, RelativeModel):
        anchors_view, processor = encoder.anchors.view(encoder.config.anchor_view), encoder.processor
    if anchors_view is None or anchors_view.modality != "image" or processor is None:
        return {}
    _, inputs = next(batches(anchors_view.samples[:1], processor, 1, None))
    channels, height, width = inputs["pixel_values"].shape[1:]
    if height != width:
        raise ConfigurationError(
            f"The processor makes images of {height} x {width} pixels, a decoder draws square ones. Give a processor "
            "that makes them square: image_processor(image_size)."
        )
    return {"image_size": height, "num_channels": channels}
