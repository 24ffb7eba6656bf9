"""Pictures and texts of emoji for notebook 10, and two encoders that never see each other's kind of sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from matplotlib import pyplot as plt
from transformers import Trainer, TrainingArguments, set_seed

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
)
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor


EMOJI = Path(__file__).parent / "data" / "emoji.parquet"  # its licence and origin stand beside it
LONGEST = 96  # tokens of a text


def emoji() -> Dataset:
    """1,906 emoji in a random order: a picture, its name with keywords, and one of nine groups as label."""
    import pyarrow.parquet as pq

    return Dataset(pq.read_table(EMOJI)).shuffle(seed=0)


def reader_of_pictures(
    rows: Dataset, anchors: AnchorSet, epochs: int, seed: int
) -> RelativeModelForImageClassification:
    """A convolutional net from random weights, trained on pictures and their labels."""
    set_seed(seed)
    encoder = ConvEncoder(ConvEncoderConfig(image_size=32, widths=[32, 64, 128, 128]))
    model = RelativeModelForImageClassification.from_encoder(
        encoder, anchors.view("image"), image_processor(32), pooling="spatial_mean", **_classes(rows)
    )

    def pixels(some: dict[str, Any]) -> dict[str, Any]:
        return {**model.processor(images=some["image"], return_tensors="pt"), "labels": some["label"]}

    return _trained(model, rows.with_transform(pixels), epochs, seed, learning_rate=2e-3)


def reader_of_texts(
    rows: Dataset, anchors: AnchorSet, epochs: int, seed: int
) -> RelativeModelForSequenceClassification:
    """A BERT from random weights with a vocabulary of its own, trained on texts and their labels."""
    set_seed(seed)
    tokenizer = wordpiece_tokenizer(rows["text"][:], longest=LONGEST)
    model = RelativeModelForSequenceClassification.from_encoder(
        small_bert(len(tokenizer), longest=LONGEST), anchors.view("text"), tokenizer, **_classes(rows)
    )
    tokens = rows.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns=["id", "image", "text"])
    return _trained(model, tokens, epochs, seed, learning_rate=1e-3, processing_class=tokenizer)


def _classes(rows: Dataset) -> dict[str, Any]:
    return {"id2label": dict(enumerate(rows.features["label"].names))}


def _trained(model: Any, rows: Dataset, epochs: int, seed: int, learning_rate: float, **more: Any) -> Any:
    args = TrainingArguments(
        "output",
        seed=seed,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    Trainer(model, args, train_dataset=rows, callbacks=[AnchorCallback()], **more).train()
    return model.eval()


def show(pictures: Sequence[Sequence[Any]], names: Sequence[str]) -> None:
    """Rows of pictures, each with its name on the left."""
    columns = max(map(len, pictures))
    size = (1.6 + 0.55 * columns, 0.55 * len(names))
    figure, axes = plt.subplots(len(names), columns, figsize=size, dpi=80, squeeze=False, layout="constrained")
    for i, (some, name) in enumerate(zip(pictures, names, strict=True)):
        for j, axis in enumerate(axes[i]):
            axis.set(xticks=[], yticks=[], frame_on=False)
            if j < len(some):
                axis.imshow(some[j])
        axes[i, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    plt.show()
