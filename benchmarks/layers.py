"""Which layer of a frozen encoder to read: accuracy on TREC of three layers, own and stitched, in a table.

    python -m benchmarks.layers --assets ASSETS --data DATA

MiniLM and multilingual-e5 read 1,000 training questions; decoders are fitted in closed form on relative
representations over 300 anchors and read the test questions behind their own encoder and behind the other. Beside them
stand a logistic regression on absolute embeddings, with its own encoder and with the other, and the most frequent
class. The second table says what a forward pass costs that hands out all hidden states.
Shapes: N samples, D absolute size.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from benchmarks.assets.text_encoders import PREFIXES, load_text_encoder
from benchmarks.assets.texts import load_trec
from benchmarks.reporting import markdown, quiet
from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel
from hf_relreps.anchors import AnchorView


ENCODERS = ("minilm", "me5")
LAYERS = (-1, -2, -3)
ROWS, ANCHORS = 1000, 300
COSTS = ("", "reads the last layer, ms", "reads the third from the end, ms")


class Read(NamedTuple):
    """An encoder at one layer, and its absolute embeddings of the training and the test questions."""

    encoder: RelativeModel
    train_ND: Tensor
    test_ND: Tensor


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        "benchmarks.layers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of the encoders, if they are not installed")
    parser.add_argument("--data", type=Path, required=True, help="folder with trec.parquet")
    parser.add_argument("--draws", type=int, default=3, help="sets of anchors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        loaded = {name: load_text_encoder(name, arguments.assets) for name in ENCODERS}
        train, test = (load_trec(arguments.data / "trec.parquet", split) for split in ("train", "test"))
        rows = train.shuffle(seed=0).select(range(ROWS))
        found = {layer: measured(loaded, layer, train, rows, test, arguments.draws) for layer in LAYERS}
        print(table(found))
        labels_N = np.array(test["label"])
        print(f"\nMost frequent class: {np.bincount(labels_N).max() / len(labels_N):.3f}\n")
        print(markdown(COSTS, [cost(name, loaded[name]) for name in ENCODERS]))


def measured(
    loaded: dict[str, Any], layer: int, train: Dataset, rows: Dataset, test: Dataset, draws: int
) -> dict[str, list[float]]:
    """Accuracies of a layer by column, one for each set of anchors."""
    views = [AnchorSet.from_dataset(train, k=ANCHORS, views=["text"], seed=draw).view() for draw in range(draws)]
    reads = {name: read(name, loaded[name], layer, views[0], rows, test) for name in ENCODERS}
    found: dict[str, list[float]] = defaultdict(list)
    for view in views:
        for one in reads.values():
            if view.fingerprint != one.encoder.config.space.fingerprint:
                one.encoder.encode_anchors(view)
        for own, other in permutations(ENCODERS):
            decoder = RelativeDecoder.fit_ridge(relative(reads[own], "train"), rows["label"][:], reads[own].encoder)
            found[f"{own}, own"].append(right(decoder, reads[own], test))
            found[f"{other} behind {own}'s decoder"].append(right(decoder, reads[other], test))
    for own, other in permutations(ENCODERS):
        for way, score in absolute(reads[own], reads[other], rows, test).items():
            found[f"absolute, {way}"].append(score)
    return found


def read(name: str, loaded: Any, layer: int, view: AnchorView, rows: Dataset, test: Dataset) -> Read:
    """An encoder made relative at a layer, and what it makes of the questions."""
    model, tokenizer = loaded
    encoder = RelativeModel.from_encoder(model, view, tokenizer, layer=layer, prompt=PREFIXES.get(name, ""))
    return Read(encoder, encoder.encode(rows["text"][:]), encoder.encode(test["text"][:]))


@torch.no_grad()
def relative(one: Read, split: str) -> Tensor:
    """Relative representations of the questions of a split."""
    return one.encoder.projection(one.train_ND if split == "train" else one.test_ND)


@torch.no_grad()
def right(decoder: RelativeDecoder, reader: Read, test: Dataset) -> float:
    """Accuracy of a decoder behind an encoder."""
    said_N = decoder(relative(reader, "test")).logits.argmax(1)
    return float((said_N == torch.tensor(test["label"][:])).float().mean())


def absolute(own: Read, other: Read, rows: Dataset, test: Dataset) -> dict[str, float]:
    """Accuracy of a logistic regression on absolute embeddings, with its own encoder and with the other."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=100, max_iter=2000).fit(unit(own.train_ND), rows["label"][:])
    ways = {"own": own, "swapped": other}
    return {way: float(regression.score(unit(one.test_ND), test["label"][:])) for way, one in ways.items()}


def unit(x_ND: Tensor) -> Any:
    """Embeddings of length one, as an array."""
    return torch.nn.functional.normalize(x_ND).numpy()


@torch.no_grad()
def cost(name: str, loaded: Any, repeats: int = 15) -> list[Any]:
    """Median milliseconds of a forward pass of 32 texts of 64 tokens, that reads the last layer or another."""
    model, tokenizer = loaded
    view = AnchorSet("abc", {"en": ["a question", "an answer", "a game of cards"]}).view()
    inputs = {"input_ids": torch.full((32, 64), 100), "attention_mask": torch.ones(32, 64, dtype=torch.long)}
    encoders = [RelativeModel.from_encoder(model, view, tokenizer, layer=layer).eval() for layer in (-1, -3)]
    seconds: list[list[float]] = [[] for _ in encoders]
    for _ in range(repeats):
        for times, encoder in zip(seconds, encoders, strict=True):  # in turn: the machine is shared
            begin = time.perf_counter()
            encoder(**inputs)
            times.append(time.perf_counter() - begin)
    return [name, *(f"{1000 * np.median(times):.0f}" for times in seconds)]


def table(found: dict[int, dict[str, list[float]]]) -> str:
    """Mean and standard deviation over the sets of anchors, a row for each layer."""
    heads = list(next(iter(found.values())))
    cells = [[str(layer), *(cell(scores[head], head) for head in heads)] for layer, scores in found.items()]
    return markdown(("layer", *heads), cells)


def cell(scores: list[float], head: str) -> str:
    """The mean, and the deviation over sets of anchors; the absolute control has none, it is a mean of encoders."""
    varies = len(scores) > 1 and not head.startswith("absolute")
    spread = f" ± {np.std(scores, ddof=1):.3f}" if varies else ""
    return f"{np.mean(scores):.3f}{spread}"


if __name__ == "__main__":
    main()
