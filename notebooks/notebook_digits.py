"""Data and encoders for notebook 1: handwritten digits, and ordinary encoders that know nothing of anchors."""

from __future__ import annotations

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL.Image import fromarray
from sklearn.datasets import load_digits
from transformers import set_seed

from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor


processor = image_processor(8)


def digits() -> DatasetDict:
    """The 1,797 digits that come with scikit-learn. On the Hub: ``load_dataset("ylecun/mnist")``."""
    bundled = load_digits()
    images = [fromarray((15 * image).astype("uint8")) for image in bundled.images]
    features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
    rows = Dataset.from_dict({"image": images, "label": bundled.target}, features)
    return rows.train_test_split(0.25, seed=0)


def trained_encoder(train: Dataset, seed: int, epochs: int) -> ConvEncoder:
    """A small convolutional encoder, trained from its own seed with a classifier that is then thrown away."""
    pixels = processor(images=train["image"][:], return_tensors="pt")["pixel_values"]
    labels = torch.tensor(train["label"][:])
    set_seed(seed)
    encoder = ConvEncoder(ConvEncoderConfig(image_size=8, widths=[32, 64]))
    classifier = torch.nn.Linear(64, 10)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *classifier.parameters()], lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(32):
            logits = classifier(encoder(pixels[rows]).last_hidden_state.mean((2, 3)))
            torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return encoder.eval()
