"""How a decoder draws an image: the mirror of the paper's convolutional encoder, with or without a variational middle.

Shapes: B batch, R relative size, Z latent size, C channels, H and W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_relreps.configuration import RelativeConfig


class ImageDecoder(nn.Module):
    """From (B, R) to images (B, C, H, W) with pixels in [0, 1] (paper, section 5.1: linear, GELU, mirrored encoder)."""

    def __init__(self, config: RelativeConfig, inputs: int) -> None:
        super().__init__()
        widths = config.decoder_widths
        self.sides = _sides(config.image_size, len(widths))
        self.start = nn.Linear(inputs, widths[0] * self.sides[0] ** 2)
        outputs = [*widths[1:], config.num_channels]
        steps = []
        for i, (width, output) in enumerate(zip(widths, outputs, strict=True)):
            extra = self.sides[i + 1] - (2 * self.sides[i] - 1)  # 3x3 of stride 2 gives 2n - 1 or 2n
            steps.append(nn.ConvTranspose2d(width, output, kernel_size=3, stride=2, padding=1, output_padding=extra))
            if i < len(widths) - 1:
                steps += [nn.BatchNorm2d(output), nn.GELU()]
        self.steps = nn.Sequential(*steps)

    def forward(self, h_BR: Tensor) -> Tensor:
        side = self.sides[0]
        start = nn.functional.gelu(self.start(h_BR)).unflatten(-1, (-1, side, side))
        return torch.sigmoid(self.steps(start))

    def loss(self, drawn: Tensor, target: Tensor) -> Tensor:
        """Against the images to draw: see `reconstruction_loss`."""
        return reconstruction_loss(drawn, target)


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
        self._divergence: Tensor | None = None  # of the last forward pass in training

    def forward(self, h_BR: Tensor) -> Tensor:
        mean_BZ, log_variance_BZ = self.mean(h_BR), self.log_variance(h_BR).clamp(-20, 20)
        if not self.training:
            return self.image(mean_BZ)
        self._divergence = 0.5 * (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ).sum(-1).mean()
        return self.image(mean_BZ + torch.randn_like(mean_BZ) * (log_variance_BZ / 2).exp())

    def loss(self, drawn: Tensor, target: Tensor) -> Tensor:
        """The same, and in training the divergence of the latent from a standard Gaussian."""
        divergence, self._divergence = self._divergence, None
        return reconstruction_loss(drawn, target) + (0.0 if divergence is None else divergence)


IMAGE_DECODERS: dict[str, type[ImageDecoder] | type[VariationalImageDecoder]] = {
    "image": ImageDecoder,
    "variational": VariationalImageDecoder,
}


def reconstruction_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of a Gaussian with the best shared variance, per image: ``n / 2 log(mse)``, n pixels.

    With that variance the squared error needs no weight against the divergence of a latent.
    """
    error = nn.functional.mse_loss(drawn.float(), target.float())
    return 0.5 * target[0].numel() * torch.log(error.clamp_min(1e-8))


def _sides(image_size: int, steps: int) -> list[int]:
    """Side of the map before each step and at the end: what halving with rounding up gives, read backwards."""
    sides = [image_size]
    for _ in range(steps):
        sides.append(-(-sides[-1] // 2))
    return sides[::-1]
