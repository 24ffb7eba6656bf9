"""Which layer of a frozen encoder to read: accuracy of four layers, own and stitched, in a table for each task.

    python -m benchmarks.layers --assets ASSETS --data DATA

MiniLM and multilingual-e5 read 1,000 training texts; decoders are fitted in closed form on relative representations
over 300 anchors and read test texts behind their own encoder and behind the other. Beside them stand a logistic
regression on absolute embeddings, with its own encoder and with the other, and the most frequent class. Tasks: TREC's
questions (6 kinds), WordNet's definitions (8 classes), and Debian's descriptions (11 sections), which MiniLM reads in
English and multilingual-e5 in French. The last table says what a forward pass costs that hands out all hidden states.
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
from benchmarks.assets.texts import LONGEST, load_debian, load_glosses, load_trec
from benchmarks.reporting import markdown, quiet
from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel


ENCODERS = ("minilm", "me5")
LAYERS = (-1, -2, -3, -4)
ROWS, TEST_ROWS, ANCHORS = 1000, 500, 300
COSTS = ("", "reads the last layer, ms", "reads the third from the end, ms")


class Task(NamedTuple):
    """Rows that anchors are drawn from, of which the first are trained on; test rows; the column of each encoder."""

    train: Dataset
    test: Dataset
    columns: dict[str, str]


class Read(NamedTuple):
    """An encoder at one layer, and its absolute embeddings of the training and the test texts."""

    encoder: RelativeModel
    train_ND: Tensor
    test_ND: Tensor


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        "benchmarks.layers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of the encoders, if they are not installed")
    parser.add_argument("--data", type=Path, required=True, help="folder with trec.parquet and its like")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--draws", type=int, default=3, help="sets of anchors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        loaded = {name: load_text_encoder(name, arguments.assets) for name in ENCODERS}
        for name in arguments.tasks:
            task = TASKS[name](arguments)
            found = {layer: measured(loaded, layer, task, arguments.draws) for layer in LAYERS}
            labels_N = np.array(task.test["label"])
            print(
                f"{name}\n\n{table(found)}\n\nMost frequent class: {np.bincount(labels_N).max() / len(labels_N):.3f}\n"
            )
        print(markdown(COSTS, [cost(name, loaded[name]) for name in ENCODERS]))


def trec(arguments: argparse.Namespace) -> Task:
    """TREC's own split."""
    train, test = (load_trec(arguments.data / "trec.parquet", split) for split in ("train", "test"))
    return Task(train.shuffle(seed=0), test, dict.fromkeys(ENCODERS, "text"))


def glosses(arguments: argparse.Namespace) -> Task:
    """WordNet's definitions."""
    return _split(load_glosses(arguments.assets, size=4000), dict.fromkeys(ENCODERS, "text"))


def debian(arguments: argparse.Namespace) -> Task:
    """Descriptions of Debian's packages, in the language of each encoder."""
    file = arguments.data / "debian_descriptions.parquet"
    return _split(load_debian(file, languages=("en", "fr")), dict(zip(ENCODERS, ("en", "fr"), strict=True)))


def _split(whole: Dataset, columns: dict[str, str]) -> Task:
    texts = set(columns.values())
    whole = whole.map(lambda row: {name: row[name][:LONGEST] for name in texts}).shuffle(seed=0)
    return Task(whole.select(range(TEST_ROWS, len(whole))), whole.select(range(TEST_ROWS)), columns)


TASKS = {"trec": trec, "glosses": glosses, "debian": debian}


def measured(loaded: dict[str, Any], layer: int, task: Task, draws: int) -> dict[str, list[float]]:
    """Accuracies of a layer by column, one for each set of anchors."""
    sets = [AnchorSet.from_dataset(task.train, k=ANCHORS, views=task.columns, seed=draw) for draw in range(draws)]
    labels_N = task.train["label"][:ROWS]
    reads = {name: read(name, loaded[name], layer, sets[0], task) for name in ENCODERS}
    found: dict[str, list[float]] = defaultdict(list)
    for anchors in sets:
        for name, one in reads.items():
            if anchors.fingerprint != one.encoder.config.space.fingerprint:
                one.encoder.encode_anchors(anchors.view(name))
        for own, other in permutations(ENCODERS):
            decoder = RelativeDecoder.fit_ridge(relative(reads[own], "train"), labels_N, reads[own].encoder)
            found[f"{own}, own"].append(right(decoder, reads[own], task.test))
            found[f"{other} behind {own}'s decoder"].append(right(decoder, reads[other], task.test))
    for own, other in permutations(ENCODERS):
        for way, score in absolute(reads[own], reads[other], labels_N, task.test["label"][:]).items():
            found[f"absolute, {way}"].append(score)
    return found


def read(name: str, loaded: Any, layer: int, anchors: AnchorSet, task: Task) -> Read:
    """An encoder made relative at a layer, and what it makes of the texts."""
    model, tokenizer = loaded
    view, column = anchors.view(name), task.columns[name]
    encoder = RelativeModel.from_encoder(model, view, tokenizer, layer=layer, prompt=PREFIXES.get(name, ""))
    return Read(encoder, encoder.encode(task.train[column][:ROWS]), encoder.encode(task.test[column][:]))


@torch.no_grad()
def relative(one: Read, split: str) -> Tensor:
    """Relative representations of the texts of a split."""
    return one.encoder.projection(one.train_ND if split == "train" else one.test_ND)


@torch.no_grad()
def right(decoder: RelativeDecoder, reader: Read, test: Dataset) -> float:
    """Accuracy of a decoder behind an encoder."""
    said_N = decoder(relative(reader, "test")).logits.argmax(1)
    return float((said_N == torch.tensor(test["label"][:])).float().mean())


def absolute(own: Read, other: Read, labels_N: list[int], tested_N: list[int]) -> dict[str, float]:
    """Accuracy of a logistic regression on absolute embeddings, with its own encoder and with the other."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=100, max_iter=2000).fit(unit(own.train_ND), labels_N)
    ways = {"own": own, "swapped": other}
    return {way: float(regression.score(unit(one.test_ND), tested_N)) for way, one in ways.items()}


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
