"""Ordinary classifiers as decoders: how well their heads read encoders of other languages and architectures.

    python -m benchmarks.translation            # --quick: a minute, to see that it works

Three classifiers of package descriptions are trained from scratch as nobody would who thinks of stitching: a BERT on
English, a RoBERTa on French and a DistilBERT on Italian, each seed anew. Then the head of each reads the encoder of
each other, over anchors in both languages, by every method. Macro-F1 on the test rows; nothing was chosen on them.
Beside them stand the head's own encoder, the same head on untranslated embeddings (all are equally wide), chance, and
a decoder of this library fitted on the head's own encoder with `RelativeDecoder.fit_ridge`, on one encoder and on two.
Shapes: N samples, E width, R relative size, C classes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import f1_score
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    PreTrainedModel,
    RobertaConfig,
    set_seed,
)

from benchmarks.reporting import markdown, quiet, write
from benchmarks.training import tokenized, train
from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, stitch
from hf_relreps.demos.debian import SECTIONS, load_debian_descriptions
from hf_relreps.demos.tiny import wordpiece_tokenizer
from hf_relreps.translation import METHODS


WIDTH = 64
LONGEST = 48  # tokens
SIZES = {"vocab_size": 6000, "max_position_embeddings": LONGEST + 2, "num_labels": len(SECTIONS)}
BERT = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * WIDTH}
DISTILBERT = {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 2 * WIDTH}
CONFIGS = {
    "en": BertConfig(**SIZES, **BERT),
    "fr": RobertaConfig(**SIZES, **BERT, pad_token_id=0),
    "it": DistilBertConfig(**SIZES, **DISTILBERT),
}
RESULTS = Path(__file__).parent / "results" / "translation"


def main() -> None:
    """Train, stitch, print, and write `benchmarks/results/translation/`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2, help="how often everything is repeated")
    parser.add_argument("--anchors", type=int, nargs="+", default=[50, 100, 300, 768], help="numbers of anchors")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, one number of anchors, little training")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.anchors, arguments.epochs = 1, [100], 1
    scores: dict[tuple[str, int], list[float]] = defaultdict(list)
    with quiet():
        for seed in range(arguments.seeds):
            for way, k, found in measured(seed, arguments.anchors, arguments.epochs):
                scores[way, k].append(found)
    text = table(scores, arguments.anchors)
    print(text)
    if not arguments.quick:
        rows = [{"way": way, "anchors": k, "macro_f1": found} for (way, k), found in scores.items()]
        write(RESULTS / "scores.json", rows)
        (RESULTS / "table.md").write_text(text + "\n", "utf-8")


def measured(seed: int, numbers: list[int], epochs: float) -> list[tuple[str, int, float]]:
    """Each score as (way, number of anchors, macro-F1); ways that need no anchors have the number 0."""
    train, test = load_debian_descriptions("train"), load_debian_descriptions("test")
    truth_N = np.array(test["label"][:])
    tokenizers = {language: wordpiece_tokenizer(train[language], LONGEST, SIZES["vocab_size"]) for language in CONFIGS}
    classifiers = {
        language: trained(config, train, language, tokenizers[language], 10 * seed + i, epochs)
        for i, (language, config) in enumerate(CONFIGS.items())
    }
    found = [("chance", 0, score(np.random.default_rng(seed).permutation(truth_N), truth_N))]
    for k in numbers:
        anchors = AnchorSet.from_dataset(train, k=k, views=list(CONFIGS), id_column="package", seed=seed)
        spaces = {
            language: RelativeModel.from_encoder(model.base_model, anchors.view(language), tokenizers[language])
            for language, model in classifiers.items()
        }
        x = {language: encoder.encode(test[language][:]) for language, encoder in spaces.items()}
        r = {language: encoder.projection(encoder.encode(train[language][:])) for language, encoder in spaces.items()}
        for own, other in permutations(CONFIGS, 2):
            processors = {"processor": tokenizers[other], "decoder_processor": tokenizers[own]}
            for method in METHODS:
                encoder = classifiers[other].base_model
                views = {"view": other, "decoder_view": own}
                way = {"anchors": anchors, "method": method}
                model = stitch(encoder, classifiers[own], **way, **views, **processors)
                found.append((method, k, score(predicted(model, x[other]), truth_N)))
            third = next(language for language in CONFIGS if language not in (own, other))
            for name, trained_on in (("ridge decoder", [own]), ("ridge decoder on two encoders", [own, third])):
                decoder = fitted(spaces[own], [r[language] for language in trained_on], train["label"][:])
                found.append((name, k, score(predicted(stitch(spaces[other], decoder), x[other]), truth_N)))
            if k == numbers[0]:
                head = model.decoder.head
                found.append(("untranslated", 0, score(head(x[other]).argmax(1), truth_N)))
        if k == numbers[0]:
            for language, model in classifiers.items():
                found.append(("own", 0, score(own_predictions(model, test, language, tokenizers[language]), truth_N)))
    return found


def trained(config: Any, rows: Dataset, language: str, tokenizer: Any, seed: int, epochs: float) -> PreTrainedModel:
    """An ordinary classifier, by the plain `Trainer`."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    how = {"num_train_epochs": epochs, "per_device_train_batch_size": 32, "learning_rate": 2e-3, "use_cpu": True}
    return train(model, tokenized(tokenizer, rows[language][:], rows["label"][:]), seed, processor=tokenizer, **how)


@torch.no_grad()
def own_predictions(model: PreTrainedModel, rows: Dataset, language: str, tokenizer: Any) -> Tensor:
    """What the whole classifier says (N,)."""
    found = []
    for start in range(0, len(rows), 128):
        inputs = tokenizer(rows[start : start + 128][language], truncation=True, padding=True, return_tensors="pt")
        found.append(model(**inputs).logits.argmax(1))
    return torch.cat(found)


@torch.no_grad()
def predicted(model: Any, x_NE: Tensor) -> Tensor:
    """What a stitched model says of embeddings of its encoder (N,)."""
    return model.decoder(model.encoder.projection(x_NE)).logits.argmax(1)


def fitted(encoder: RelativeModel, parts: list[Tensor], labels: list[int]) -> RelativeDecoder:
    """A decoder on the relative representations of one or several encoders."""
    return RelativeDecoder.fit_ridge(torch.cat(parts), labels * len(parts), encoder)


def score(found_N: Any, truth_N: Any) -> float:
    """Macro-F1."""
    return float(f1_score(truth_N, np.asarray(found_N), average="macro"))


def table(scores: dict[tuple[str, int], list[float]], numbers: list[int]) -> str:
    """Mean and worst of the ordered pairs and seeds for each way and number of anchors, as Markdown."""
    rows = [(way, [(way, k) for k in numbers]) for way in (*METHODS, "ridge decoder", "ridge decoder on two encoders")]
    rows += [(way, [(way, 0)]) for way in ("own", "untranslated", "chance")]
    cells = {key: f"{np.mean(found):.3f} ({np.min(found):.3f})" for key, found in scores.items()}
    empty = [""] * (len(numbers) - 1)
    lines = [[way, *(cells[key] for key in keys), *empty[: len(numbers) - len(keys)]] for way, keys in rows]
    return markdown(("", *(f"{k} anchors" for k in numbers)), lines)


if __name__ == "__main__":
    main()
