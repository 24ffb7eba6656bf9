"""Ordinary classifiers made relative in one call: what they keep of their own score, and how well they stitch.

    python -m benchmarks.conversion --assets ASSETS --data DATA    # --models DIR keeps the fine-tuned classifiers

MiniLM is fine-tuned on 1,000 questions of TREC (six classes) as anybody would, one classifier for each seed. Then
`from_classifier` makes it relative over anchors among those questions: with its own head, or with a linear decoder
fitted to its logits on samples without labels (the anchors, or all 1,000 questions). Beside them stands a decoder
fitted with labels (`RelativeDecoder.fit_ridge`). Accuracy on the 499 test questions through the own encoder of the
classifier, and through multilingual-e5, which stays frozen and never saw a question. The control is the head on what
e5 gives as it is, which is as wide.
Shapes: N samples, D absolute size.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, set_seed

from benchmarks.assets.text_encoders import PREFIXES, load_text_encoder
from benchmarks.assets.texts import load_trec
from benchmarks.reporting import machine, quiet, show_table, write
from benchmarks.training import named, tokenized, train
from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification


OTHER = "me5"
ROWS = 1000
TRAINING: dict[str, Any] = {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 1e-4}
RESULTS = Path(__file__).parent / "results" / "conversion" / "results.json"
Score = tuple[str, int, float | None, float | None]  # way, number of anchors, own, stitched


def main() -> None:
    """Fine-tune, convert, stitch, print, and write `benchmarks/results/conversion/results.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--assets", type=Path, help="folder of assets")
    parser.add_argument("--data", type=Path, required=True, help="folder with trec.parquet")
    parser.add_argument("--models", type=Path, help="where fine-tuned classifiers are kept; nowhere if left out")
    parser.add_argument("--encoder", default="minilm", help="what is fine-tuned, a name in benchmarks.assets")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--anchors", type=int, nargs="+", default=[300, 768])
    arguments = parser.parse_args()
    scores: dict[tuple[str, int], list[tuple[Any, Any]]] = defaultdict(list)
    with quiet():
        for seed in range(arguments.seeds):
            for way, k, own, stitched in measured(arguments, seed):
                scores[way, k].append((own, stitched))
    rows = [
        {"way": way, "anchors": k, "own": [own for own, _ in found], "stitched": [other for _, other in found]}
        for (way, k), found in scores.items()
    ]
    heads = ("", "anchors", "own", "stitched")
    shown = [(row["way"], str(row["anchors"] or ""), _mean(row["own"]), _mean(row["stitched"])) for row in rows]
    show_table(f"{arguments.encoder}, fine-tuned: accuracy on TREC's test questions", heads, shown)
    write(RESULTS, {"encoder": arguments.encoder, "machine": machine(), "scores": rows})


def measured(arguments: argparse.Namespace, seed: int) -> Iterator[Score]:
    """The scores of one classifier."""
    rows, test = (
        load_trec(arguments.data / "trec.parquet", "train"),
        load_trec(arguments.data / "trec.parquet", "test"),
    )
    rows = with_prefix(rows.select(np.random.default_rng(0).permutation(len(rows))[:ROWS]))
    test = with_prefix(test)
    classifier, tokenizer = fine_tuned(arguments, rows, seed)
    other, other_tokenizer = load_text_encoder(OTHER, arguments.assets)
    truth_N = torch.tensor(test["label"][:])
    for k in arguments.anchors:
        anchors = AnchorSet.from_dataset(rows, k=k, views={"en": "text", OTHER: OTHER}, seed=seed)
        frozen = RelativeModel.from_encoder(other, anchors.view(OTHER), other_tokenizer, pooling="mean")
        z_ND = frozen.encode(test[OTHER][:])

        make, view = RelativeModelForSequenceClassification.from_classifier, anchors.view("en")
        model = make(classifier, view, tokenizer)
        x_ND = model.encoder.encode(test["text"][:])
        if k == arguments.anchors[0]:
            head = model.decoder.head
            own, absolute = (
                share(head(vectors_ND).argmax(1), truth_N) if vectors_ND.shape == x_ND.shape else None
                for vectors_ND in (x_ND, z_ND)
            )
            yield "the classifier", 0, own, absolute
            chance = float(torch.bincount(truth_N).max() / len(truth_N))
            yield "most frequent class", 0, chance, chance
        yield _scored(k, frozen.projection(z_ND), truth_N, "its head", model, model.decoder, x_ND)
        labelled = RelativeDecoder.fit_ridge(
            model.encoder.projection(model.encoder.encode(rows["text"][:])), rows["label"][:], model
        )
        yield _scored(k, frozen.projection(z_ND), truth_N, "ridge on labels, 1,000", model, labelled, x_ND)
        for name, samples in (("the anchors", view.samples), ("1,000", rows["text"][:])):
            fitted = make(classifier, view, tokenizer, samples=samples)
            own_ND = fitted.encoder.encode(test["text"][:])
            yield _scored(
                k, frozen.projection(z_ND), truth_N, f"ridge on its logits, {name}", fitted, fitted.decoder, own_ND
            )


def _scored(k: int, z_NR: Tensor, truth_N: Tensor, way: str, model: Any, decoder: Any, x_ND: Tensor) -> Score:
    own = accuracy(decoder, model.encoder.projection(x_ND), truth_N)
    return way, k, own, accuracy(decoder, z_NR, truth_N)


def with_prefix(rows: Dataset) -> Dataset:
    """The rows with a column of what e5 reads."""
    return rows.add_column(OTHER, [PREFIXES[OTHER] + text for text in rows["text"]])


def fine_tuned(arguments: argparse.Namespace, rows: Dataset, seed: int) -> tuple[PreTrainedModel, Any]:
    """An ordinary classifier and its tokenizer, by the plain `Trainer`."""
    kept = None if arguments.models is None else arguments.models / f"{arguments.encoder}-{seed}"
    if kept is None or not kept.is_dir():
        encoder, tokenizer = load_text_encoder(arguments.encoder, arguments.assets)
        with tempfile.TemporaryDirectory() as folder:
            encoder.save_pretrained(folder)
            set_seed(seed)
            classes = named(rows.features["label"].names)
            model = AutoModelForSequenceClassification.from_pretrained(folder, **classes)
        items = tokenized(tokenizer, rows["text"][:], rows["label"][:])
        train(model, items, seed, processor=tokenizer, use_cpu=True, **TRAINING)
        if kept is None:
            return model, tokenizer
        model.save_pretrained(kept)
        tokenizer.save_pretrained(kept)
    return AutoModelForSequenceClassification.from_pretrained(kept).eval(), AutoTokenizer.from_pretrained(kept)


@torch.no_grad()
def accuracy(decoder: RelativeDecoder, r_NR: Tensor, truth_N: Tensor) -> float:
    """Share of samples whose class the decoder names."""
    return share(decoder(r_NR).logits.argmax(1), truth_N)


def share(found_N: Tensor, truth_N: Tensor) -> float:
    """How often two agree."""
    return float((found_N == truth_N).float().mean())


def _mean(found: list[float | None]) -> float | None:
    numbers = [one for one in found if one is not None]
    return float(np.mean(numbers)) if numbers else None


if __name__ == "__main__":
    main()
