"""How a decoder draws an image: the mirror of the paper's convolutional encoder, with or without a variational middle.

Shapes: B batch, R relative size, Z latent size, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_relreps.configuration import RelativeConfig
from hf_relreps.errors import SampleError


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

    def __init__(self, config: RelativeConfig, inputs: int) -> None:
        super().__init__()
        widths = config.decoder_widths
        self.sides = _sides(config.image_size, len(widths))
        self.start = nn.Linear(inputs, widths[0] * self.sides[0] ** 2)
        outputs = [*widths[1:], config.num_channels]
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

    def __init__(self, config: RelativeConfig, inputs: int) -> None:
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
