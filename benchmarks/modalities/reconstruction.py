"""Autoencoders and variational ones whose decoders read only relative representations, stitched across seeds.

Every encoder, bottleneck and decoder starts from a seed of its own. Beside the relative models stands the absolute
control: the same encoder and decoder with a linear bottleneck where the projection was. Chance is the mean image.
The score is the mean squared error of a pixel on the test images, times 1,000 as in the paper's table 3.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.modalities import image_data
from benchmarks.modalities.report import Row, record, show
from benchmarks.reporting import picture, timed, write
from benchmarks.training import COSINE, train
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeModelForImageReconstruction,
)
from hf_relreps.decoders import DRAWING_MODULES
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.evaluation import StitchingMatrix


if TYPE_CHECKING:
    from datasets import Dataset

KINDS = {"image": "AE", "variational": "VAE"}
PROJECTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "cosine": {"transform": "none", "similarity": "cosine", "basis_ridge": None},
}
ABSOLUTE = "absolute"
CONTROL = "autoencoders with a linear bottleneck in place of the projection"
TITLES = {"image": "Autoencoder", "variational": "Variational autoencoder"} | {
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "digits": "Digits",
}
CHUNK = 500  # images at a time
SHOWN = 8  # images in a picture
GAP = 2  # pixels between them


@dataclass(frozen=True)
class Setting:
    """One dataset, and how long to train on it."""

    name: str
    anchors: AnchorSet
    train_NCHW: Tensor
    test_NCHW: Tensor
    epochs: int

    @classmethod
    def of(cls, name: str, rows: Dataset, held_out: Dataset, anchors: int, epochs: int) -> Setting:
        """With stratified anchors out of the images to learn from."""
        views = AnchorSet.from_dataset(rows, anchors, views={"image": "image"}, strategy="stratified")
        processor = image_processor(rows[0]["image"].height)
        return cls(name, views, *(image_data.pixels_of(split, processor) for split in (rows, held_out)), epochs)

    @property
    def size(self) -> int:
        """Height and width of the images."""
        return self.train_NCHW.shape[-1]

    @property
    def chance(self) -> float:
        """Error of the mean training image."""
        return 1000 * float((self.test_NCHW - self.train_NCHW.mean(0)).square().mean())


@dataclass(frozen=True)
class Outcome:
    """Errors of all pairs, and the first images as own and as stitched pairs draw them."""

    matrix: StitchingMatrix
    drawn: Mapping[str, Tensor]

    def beside(self, control: Outcome) -> Outcome:
        """The same with the absolute control."""
        matrix = replace(self.matrix, absolute=control.matrix.scores, control=CONTROL)
        relative = {f"relative_{name}": images for name, images in self.drawn.items()}
        return Outcome(matrix, relative | {f"absolute_{name}": images for name, images in control.drawn.items()})


class AbsoluteAutoencoder(nn.Module):
    """The control: encoder, linear bottleneck as wide as the relative representation, the same decoder."""

    def __init__(self, encoder: ConvEncoder, width: int, config: RelativeDecoderConfig) -> None:
        super().__init__()
        side = config.image_size
        with torch.no_grad():
            flat = encoder.eval()(torch.zeros(1, config.num_channels, side, side)).pooler_output.shape[-1]
        self.encoder = encoder
        self.bottleneck = nn.Linear(flat, width)
        self.decoder = DRAWING_MODULES[config.decoder_type](config, width)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Absolute embeddings (B, width)."""
        return self.bottleneck(self.encoder(pixel_values).pooler_output)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The loss; what the `Trainer` needs."""
        return {"loss": self.decoder(self.encode(pixel_values)).loss(pixel_values)}


def add_arguments(parser: ArgumentParser) -> None:
    """Data sets, and how many anchors."""
    image_data.add_arguments(parser)
    parser.set_defaults(seeds=2)
    parser.add_argument("--anchors", type=int, default=500, help="number of anchors (500, as in the paper)")


def run(arguments: Namespace) -> dict[str, Any]:
    """Train, stitch, print, draw."""
    results: dict[str, Any] = {"score": "mean squared error of a pixel, times 1,000", "seeds": arguments.seeds}
    few = 1 if arguments.quick else None
    names, kinds = image_data.chosen(arguments)[:few], list(KINDS)[:few]
    for name in names:
        setting = _setting(name, arguments)
        rows: list[Row] = []
        shown: dict[str, Outcome] = {}
        for kind in kinds:
            with timed(f"{name}, {KINDS[kind]}: {arguments.seeds} x {len(PROJECTIONS) + 1} trainings"):
                control = outcome_of(setting, kind, ABSOLUTE, arguments.seeds)
                for projection in PROJECTIONS:
                    outcome = outcome_of(setting, kind, projection, arguments.seeds).beside(control)
                    rows.append(Row.of(f"{KINDS[kind]}, {projection}", outcome.matrix))
                    shown.setdefault(kind, outcome)  # the default projection is the first
        show(f"{name}: mean squared error x 1000", rows, digits=2)
        results[name] = {"train": len(setting.train_NCHW), "test": len(setting.test_NCHW), "rows": record(rows)}
        results[name] |= {"epochs": setting.epochs, "anchors": len(setting.anchors)}
        draw(setting, shown, arguments.output / f"{name}.png")
    write(arguments.output / "results.json", results)
    return results


def _setting(name: str, arguments: Namespace) -> Setting:
    quick = arguments.quick
    rows = image_data.load(name, "train", 2000 if quick else 6000, arguments)
    held_out = image_data.load(name, "test", 200 if quick else 1000, arguments)
    num_anchors = min(arguments.anchors, 100 if quick else len(rows))
    return Setting.of(name, rows, held_out, num_anchors, epochs=4 if quick else 6)


def outcome_of(setting: Setting, kind: str, projection: str, seeds: int) -> Outcome:
    """Errors of every encoder with every decoder, and a few images: own and stitched."""
    encoded, decoders = {}, {}
    for i in range(seeds):
        # No two models share a seed, those of other projections and kinds included.
        seed = 1000 * (1 + list(KINDS).index(kind)) + 100 * (*PROJECTIONS, ABSOLUTE).index(projection) + i
        encoded[f"seed {i + 1}"], decoders[f"seed {i + 1}"] = _trained(setting, kind, projection, seed)
    errors, drawn = _stitched(encoded, decoders, setting.test_NCHW)
    names: dict[str, Any] = {"encoders": tuple(encoded), "decoders": tuple(encoded)}
    names["own_pairs"] = {name: name for name in encoded}
    score = {"metric": "mse", "title": "MSE x 1000", "greater_is_better": False, "guess": "mean image"}
    n, chance = len(setting.test_NCHW), setting.chance
    return Outcome(StitchingMatrix(scores=errors, absolute=None, n=n, chance=chance, **names, **score), drawn)


def _trained(setting: Setting, kind: str, projection: str, seed: int) -> tuple[Tensor, nn.Module]:
    """What a trained encoder makes of the test images (N, R), and its decoder."""
    set_seed(seed)
    encoder = ConvEncoder(ConvEncoderConfig(image_size=setting.size))
    callbacks = []
    if projection == ABSOLUTE:
        config = RelativeDecoderConfig(decoder_type=kind, image_size=setting.size)
        model: Any = AbsoluteAutoencoder(encoder, len(setting.anchors), config)
    else:
        view, processor = setting.anchors.view("image"), image_processor(setting.size)
        model = RelativeModelForImageReconstruction.from_encoder(
            encoder, view, processor, pooling="pooler", decoder_type=kind, **PROJECTIONS[projection]
        )
        callbacks = [AnchorCallback(view, batch_size=250)]
    how = COSINE | {"num_train_epochs": setting.epochs, "learning_rate": 2e-3}
    train(model, image_data.Pixels(setting.train_NCHW), seed, *callbacks, **how)
    with torch.no_grad():
        parts = [_encode(model, x_BCHW) for x_BCHW in setting.test_NCHW.split(CHUNK)]
    return torch.cat(parts), model.decoder


def _encode(model: Any, x_BCHW: Tensor) -> Tensor:
    if isinstance(model, AbsoluteAutoencoder):
        return model.encode(x_BCHW)
    return model.encoder(pixel_values=x_BCHW).relative_embeds


@torch.no_grad()
def _stitched(
    encoded: Mapping[str, Tensor], decoders: Mapping[str, nn.Module], target_NCHW: Tensor
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Errors (encoders, decoders), and the first images of the first encoder by its own and by the next decoder."""
    errors = np.zeros((len(encoded), len(decoders)))
    drawn: dict[str, Tensor] = {}
    for row, h_NR in enumerate(encoded.values()):
        for column, decoder in enumerate(decoders.values()):
            images = torch.cat([_draw(decoder, h_BR) for h_BR in h_NR.split(CHUNK)])
            errors[row, column] = 1000 * float((images - target_NCHW).square().mean())
            if row == 0 and column < 2:
                drawn["own" if column == 0 else "stitched"] = images[:SHOWN]
    return errors, drawn


def _draw(decoder: nn.Module, h_BR: Tensor) -> Tensor:
    return decoder(h_BR).reconstruction if isinstance(decoder, RelativeDecoder) else decoder(h_BR).images


def draw(setting: Setting, outcomes: Mapping[str, Outcome], path: Path) -> None:
    """A grid of images: what was to be drawn, and what came out: own and stitched, relative and absolute."""
    original = setting.test_NCHW[:SHOWN]
    with picture(path, len(outcomes), (0.5 + 6.3 * len(outcomes), 3.6)) as (figure, axes):
        for ax, (kind, outcome) in zip(axes, outcomes.items(), strict=True):
            summary = outcome.matrix.summary
            strips = {"original": original} | {
                f"{name.replace('_', ' ')}\n{summary[name.removeprefix('relative_')]:.1f}": images
                for name, images in outcome.drawn.items()
            }
            ax.imshow(_mosaic(list(strips.values())), interpolation="nearest")
            centres = [GAP + (setting.size + GAP) * i + setting.size / 2 for i in range(len(strips))]
            ax.set_yticks(centres, list(strips))
            ax.tick_params(length=0)
            ax.set_xticks([])
            ax.spines[:].set_visible(False)
            ax.set_title(f"{TITLES[kind]} on {TITLES[setting.name]}")
        numbers = f"numbers: MSE x 1000 on {len(setting.test_NCHW):,} test images, mean over pairs"
        figure.supxlabel(f"{numbers}  ·  mean image {setting.chance:.1f}", fontsize=9)


def _mosaic(strips: list[Tensor]) -> np.ndarray:
    """Strips of images (S, C, H, W), one below the other, as one picture with gaps in the colour of the page."""
    from matplotlib.colors import to_rgb

    from hf_relreps.evaluation.plots import PAPER

    side = strips[0].shape[-1]
    step = side + GAP
    page = np.empty((GAP + step * len(strips), GAP + step * len(strips[0]), 3))
    page[:] = to_rgb(PAPER)
    for row, images in enumerate(strips):
        for column, image_CHW in enumerate(images):
            top, left = GAP + step * row, GAP + step * column
            page[top : top + side, left : left + side] = image_CHW.permute(1, 2, 0).numpy()
    return page
