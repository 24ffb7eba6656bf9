"""Image classifiers whose decoders read only relative representations, stitched across seeds and architectures.

Small convolutional nets and small vision transformers are trained from scratch by the `Trainer`, each from a seed of
its own. EfficientNet-Lite 0, 1 and 2 come pretrained and stay frozen: their images are encoded once, and a decoder is
trained on the relative representations. The absolute control is logistic regression on the absolute embeddings.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, ViTConfig, ViTModel, set_seed

from benchmarks.assets.efficientnet_lite import load_efficientnet_lite
from benchmarks.modalities import image_data
from benchmarks.modalities.report import Row, record, show
from benchmarks.reporting import console, timed, write
from benchmarks.training import COSINE, DECAYING, named, train
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeModel,
    RelativeModelForImageClassification,
)
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.evaluation import StitchingMatrix, stitching_matrix


if TYPE_CHECKING:
    from datasets import Dataset

LAYERS = 3  # of the transformer
WIDTH = 64  # of both architectures, so that the absolute control exists between them as well
FROZEN_SIZE = 96  # side of the images that EfficientNet-Lite reads


@dataclass(frozen=True)
class Budget:
    """How much of a dataset is used, and how often."""

    train: int | None
    test: int | None
    epochs: dict[str, int]
    control: int = 3000  # training images that the absolute control is fitted on
    batch_size: int = 64


BUDGETS = {
    "fashion_mnist": Budget(None, None, {"cnn": 1, "vit": 1}),
    "mnist": Budget(None, None, {"cnn": 6, "vit": 12}, batch_size=32),
    "cifar10": Budget(10_000, 2_000, {"cnn": 6, "vit": 6}, batch_size=32),
}
QUICK = Budget(3000, 1000, {"cnn": 2, "vit": 3}, control=1000, batch_size=32)
FROZEN = Budget(2000, 1000, {"decoder": 20}, control=1000)


def _cnn(size: int) -> PreTrainedModel:
    return ConvEncoder(ConvEncoderConfig(image_size=size, widths=[32, 64, 128, WIDTH]))


def _vit(size: int) -> PreTrainedModel:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS}
    sizes["num_attention_heads"] = 4
    # 16 patches are what a few minutes allow. The usual initializer_range of 0.02 suits nets that are ten times as
    # wide: this one would hardly learn.
    config = ViTConfig(image_size=size, patch_size=size // 4, initializer_range=0.1, **sizes)
    return ViTModel(config, add_pooling_layer=False)


ARCHITECTURES: dict[str, Callable[[int], PreTrainedModel]] = {"cnn": _cnn, "vit": _vit}
POOLINGS = {"cnn": "spatial_mean", "vit": "mean"}
HOW = COSINE | DECAYING | {"learning_rate": 2e-3}  # both are trained


def add_arguments(parser: ArgumentParser) -> None:
    """Data sets and encoders."""
    image_data.add_arguments(parser)
    parser.add_argument("--anchors", type=int, default=300, help="number of anchors (300)")
    parser.set_defaults(seeds=2)


def run(arguments: Namespace) -> dict[str, Any]:
    """Train, stitch, print, draw."""
    names = image_data.chosen(arguments)
    names = names[:1] if arguments.quick else names
    matrices: dict[str, StitchingMatrix] = {}
    rows: list[Row] = []
    for name in names:
        with timed(name):
            matrices[name] = from_scratch(name, QUICK if arguments.quick else BUDGETS[name], arguments)
        rows += Row.by_architecture(name, matrices[name])
    if not arguments.quick:
        name = f"{names[0]}, EfficientNet-Lite"
        with timed(name):
            matrices[name] = frozen(names[0], FROZEN, arguments)
        rows.append(Row.of(name, matrices[name]))
    show("macro-F1", rows)
    results = {"score": "macro-F1", "seeds": arguments.seeds, "rows": record(rows)}
    results["matrices"] = {name: matrix.to_dict() for name, matrix in matrices.items()}
    for name, matrix in matrices.items():
        matrix.plot(arguments.output / f"{name.replace(', ', '-').lower()}.png")
    write(arguments.output / "results.json", results)
    return results


def from_scratch(name: str, budget: Budget, arguments: Namespace) -> StitchingMatrix:
    """Encoders and decoders trained together, no two from the same seed."""
    rows = image_data.load(name, "train", budget.train, arguments)
    held_out = image_data.load(name, "test", budget.test, arguments)
    anchors = _anchors(rows, arguments)
    size = image_data.SIZES[name]
    labels_N = rows.with_format("torch")["label"][:]
    pixels = image_data.Pixels(image_data.pixels_of(rows, image_processor(size)), labels_N)
    models = {}
    for architecture, epochs in budget.epochs.items():
        for i in range(arguments.seeds):
            seed = 100 * (1 + list(ARCHITECTURES).index(architecture)) + i
            set_seed(seed)
            view = anchors.view("image")
            model = RelativeModelForImageClassification.from_encoder(
                *(ARCHITECTURES[architecture](size), view, image_processor(size)),
                **named(rows.features["label"].names),
                pooling=POOLINGS[architecture],
            )
            how = HOW | {"num_train_epochs": epochs, "per_device_train_batch_size": budget.batch_size}
            name = f"{architecture}-{i + 1}"
            models[name] = train(model, pixels, seed, AnchorCallback(view, batch_size=250), **how)
    return _matrix(models, models, rows, held_out, budget)


def frozen(name: str, budget: Budget, arguments: Namespace) -> StitchingMatrix:
    """Three pretrained architectures: each encodes the images once, and gets a decoder."""
    rows = image_data.load(name, "train", budget.train, arguments)
    held_out = image_data.load(name, "test", budget.test, arguments)
    view = _anchors(rows, arguments).view("image")
    encoders, decoders = {}, {}
    for version in (0, 1, 2):
        net, processor = load_efficientnet_lite(version, FROZEN_SIZE)
        encoder = RelativeModel.from_encoder(net, view, processor, freeze_encoder=True).eval()
        encoders[f"Lite{version}"] = encoder
        decoders[f"Lite{version}"] = _decoder(encoder, rows, 300 + version, budget.epochs["decoder"])
    return _matrix(encoders, decoders, rows, held_out, budget)


def _decoder(encoder: RelativeModel, rows: Dataset, seed: int, epochs: int) -> RelativeDecoder:
    """A decoder trained on what a frozen encoder says about the training images."""
    from datasets import Dataset

    set_seed(seed)
    r_NR = encoder.projection(encoder.encode(rows["image"][:], batch_size=32))
    encoded = Dataset.from_dict({"relative_embeds": r_NR.numpy(), "labels": rows["label"][:]})
    classes = named(rows.features["label"].names)
    config = RelativeDecoderConfig(space=encoder.config.space, modality="image", **classes)
    decoder = RelativeDecoder(config)
    how = {"num_train_epochs": epochs, "per_device_train_batch_size": 64, "learning_rate": 1e-3}
    return train(decoder, encoded, seed, **how)


def _anchors(rows: Dataset, arguments: Namespace) -> AnchorSet:
    return AnchorSet.from_dataset(rows, arguments.anchors, views={"image": "image"}, strategy="stratified")


def _matrix(
    encoders: dict[str, Any], decoders: dict[str, Any], rows: Dataset, held_out: Dataset, budget: Budget
) -> StitchingMatrix:
    some = rows.shuffle(seed=1).select(range(min(budget.control, len(rows))))
    matrix = stitching_matrix(encoders, decoders, held_out, metric="f1", train_dataset=some, batch_size=250)
    console.print(f"\n{matrix}\n", markup=False)
    return matrix
