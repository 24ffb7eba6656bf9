"""Image reconstruction: autoencoders whose decoder reads only the relative representation (paper, section 5.1).

Shapes: B batch, C channels, H and W height and width, R relative size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from hf_relreps.errors import SampleError
from hf_relreps.modeling import RelativeTaskModel


@dataclass
class RelativeReconstructionOutput(ModelOutput):
    """What a reconstruction gives: loss, images (B, C, H, W) in [0, 1], relative representations (B, R)."""

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    relative_embeds: Tensor | None = None


class RelativeModelForImageReconstruction(RelativeTaskModel):
    """An image encoder and a decoder that draws the image again from its relative representation.

    ``decoder_type="image"`` makes an autoencoder, ``"variational"`` a variational one. Pixels lie in [0, 1], so the
    image processor must not normalise them; the target is what the encoder reads unless `labels` give another.

    Example:
        ```python
        encoder = ConvEncoder(ConvEncoderConfig(image_size=28))
        model = RelativeModelForImageReconstruction.from_encoder(
            encoder, anchors.view(), image_processor(28), pooling="pooler", decoder_type="image", image_size=28
        )
        ```
    """

    modality = "image"
    main_input_name = "pixel_values"
    decoder_types = ("image", "variational")

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> RelativeReconstructionOutput | tuple[Any, ...]:
        """Images (B, C, H, W) drawn from relative representations, and the loss against `labels` or the input.

        Raises:
            SampleError: If the target does not lie in [0, 1].
        """
        encoded = self.encoder(pixel_values=pixel_values)
        target = pixel_values if labels is None else labels
        if target.amin() < 0 or target.amax() > 1:
            raise SampleError(
                f"The pixels to reconstruct lie in [{float(target.amin()):.2f}, {float(target.amax()):.2f}], expected "
                "[0, 1]. Use an image processor with do_normalize=False, or give the target as labels."
            )
        decoded = self.decoder(encoded.relative_embeds, labels=target)
        result = RelativeReconstructionOutput(decoded.loss, decoded.reconstruction, encoded.relative_embeds)
        return result.to_tuple() if return_dict is False else result
