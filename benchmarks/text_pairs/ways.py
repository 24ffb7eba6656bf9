"""The two ways to read a pair, and what is compared of each.

- cross: an encoder of pairs (anchors are 768 pairs), fine-tuned with `Trainer` and `AnchorCallback` from a pretrained
  one. Its first layers alone are taken, so that a run takes minutes on a CPU.
- two passes: a frozen encoder of texts (anchors are 768 texts of these pairs) reads each text by itself. A decoder
  of r(u), r(v), |r(u) - r(v)| and r(u) r(v) answers: `RelativeDecoder.fit_ridge`.

Shapes: N pairs, A anchors, D absolute size, R relative size.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import set_seed

from benchmarks.assets.text_encoders import load_text_encoder, text_features
from benchmarks.text_pairs.data import Pairs, Task
from benchmarks.training import train
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeModelForSequenceClassification,
    RelativeSpace,
)
from hf_relreps.pairs import FIELDS
from hf_relreps.projection import frame_of, project_in_chunks


LAYERS = {"minilm": 3, "me5": 3}
CLASSES = {"id2label": {0: "other", 1: "match"}}


class Read(NamedTuple):
    """What one encoder makes of a task, by the parts of it."""

    anchors: Tensor  # (A, D)
    train: Tensor  # (N, D) of pairs, (N, 2, D) of two texts
    labelled: Tensor  # the anchors as pairs
    test: Tensor


@dataclass
class Reader:
    """One encoder with the decoder that was fitted on it."""

    name: str
    read: Read
    decode: Callable[[Tensor], Tensor]  # relative representations of pairs -> logits (N, 2)
    space: RelativeSpace

    def relative(self, x: Tensor) -> Tensor:
        """Relative representations (..., R)."""
        space = self.space.replace(num_anchors=len(self.read.anchors))
        r_NR = project_in_chunks(x.flatten(0, -2), frame_of(self.read.anchors, space), space)
        return r_NR.unflatten(0, x.shape[:-1])


# -- an encoder of pairs


def cross(name: str, task: Task, seed: int, arguments: Namespace, file: Path) -> Reader:
    """Fine-tuned in this call, or in an earlier one that left `file`."""
    folder = file.with_suffix("")
    if not file.is_file():
        _fine_tune(name, task, seed, arguments, file)
    decoder = RelativeDecoder.from_pretrained(folder).eval()
    return Reader(f"{name}-{seed}", Read(**load_file(file)), lambda r: decoder(r).logits, decoder.config.space)


def _fine_tune(name: str, task: Task, seed: int, arguments: Namespace, file: Path) -> None:
    backbone, tokenizer = load_text_encoder(name, arguments.assets)
    backbone = shortened(backbone, LAYERS[name])
    backbone.get_input_embeddings().requires_grad_(False)  # a large table, which little data does not improve
    tokenizer.model_max_length = 64
    set_seed(seed)
    anchors = AnchorSet([str(i) for i in range(len(task.anchors.samples))], {"en": task.anchors.samples})
    with torch.enable_grad():
        model = RelativeModelForSequenceClassification.from_encoder(backbone, anchors, tokenizer, **CLASSES)
        train(
            model,
            rows_of(tokenizer, task.train),
            seed,
            AnchorCallback(fit_samples=400),
            processor=tokenizer,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=16,
            learning_rate=1e-4,
            warmup_steps=0.1,
        )
    encode = model.encoder.encode
    read = {
        "anchors": model.encoder.anchors_AD,
        "train": encode(task.train.samples),
        "test": encode(task.test.samples),
    }
    read["labelled"] = read["anchors"].clone()
    file.parent.mkdir(parents=True, exist_ok=True)
    model.decoder.save_pretrained(file.with_suffix(""))
    save_file({part: x.contiguous() for part, x in read.items()}, file)


def shortened(backbone: Any, layers: int) -> Any:
    """Its first layers."""
    backbone = copy.deepcopy(backbone)
    backbone.encoder.layer = backbone.encoder.layer[:layers]
    backbone.config.num_hidden_layers = layers
    return backbone


def rows_of(tokenizer: Any, pairs: Pairs) -> list[dict[str, Any]]:
    """Two columns as the `Trainer` takes them."""
    texts = ([sample[field] for sample in pairs.samples] for field in FIELDS)
    tokens = tokenizer(*texts, truncation=True)
    return [
        {name: column[i] for name, column in tokens.items()} | {"labels": label}
        for i, label in enumerate(pairs.labels)
    ]


# -- two passes of an encoder of texts


def two_passes(name: str, task: Task, seed: int, arguments: Namespace, cache: Path) -> Reader:
    """A frozen encoder, and a decoder in closed form."""
    of_pairs = [_two_texts(name, pairs, cache, arguments) for pairs in (task.train, task.anchors, task.test)]
    texts = [[sample[field] for field in FIELDS] for sample in task.anchors.samples]
    first = list({text: (i, side) for i, both in enumerate(texts) for side, text in enumerate(both)}.values())
    rows, sides = zip(*first[: len(texts)], strict=True)  # as many anchors as the other way has, of distinct texts
    read = Read(of_pairs[1][list(rows), list(sides)], *of_pairs)
    reader = Reader(f"{name}-{seed}", read, lambda r: r, RelativeSpace())
    reader.decode = fitted_to(reader.relative(read.train), task.train.labels)
    return reader


def _two_texts(name: str, pairs: Pairs, cache: Path, arguments: Namespace) -> Tensor:
    """Embeddings (N, 2, D); each text is read once."""
    texts = [[sample[field] for sample in pairs.samples] for field in FIELDS]
    distinct = list(dict.fromkeys(texts[0] + texts[1]))
    place = {text: i for i, text in enumerate(distinct)}
    x_ND = text_features(name, distinct, cache, arguments.assets)
    return torch.stack([x_ND[[place[text] for text in column]] for column in texts], 1)


# -- what is compared


def accuracy(logits_NC: Tensor, labels: list[int]) -> float:
    """Share of pairs that are told right."""
    return float((logits_NC.argmax(1) == torch.tensor(labels)).float().mean())


def fitted_to(x: Tensor, labels: list[int]) -> Callable[[Tensor], Tensor]:
    """A decoder in closed form of the vectors of pairs (N, D), or of their two texts (N, 2, D)."""
    of_any = RelativeSpace(num_anchors=x.shape[-1], fingerprint="0" * 64)
    decoder = RelativeDecoder.fit_ridge(x, labels, of_any)
    return lambda other: decoder(other).logits


def absolute_control(x: Tensor, labels: list[int]) -> Callable[[Tensor], Tensor]:
    """The same of absolute embeddings, as directions."""
    decode = fitted_to(normalize(x, dim=-1), labels)
    return lambda other: decode(normalize(other, dim=-1))


def of_cosine(x_N2D: Tensor, labels: list[int]) -> float:
    """The threshold of cos(u, v) that tells most training pairs right: the least that two passes have to beat."""
    alike_N = cosine_similarity(*x_N2D.unbind(1))
    thresholds = np.quantile(alike_N, np.linspace(0, 1, 201))
    truth = np.array(labels)
    return float(thresholds[np.argmax([((alike_N.numpy() > t) == truth).mean() for t in thresholds])])
