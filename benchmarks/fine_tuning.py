"""Fine-tuning pretrained encoders: relative models beside ordinary classifiers, on the same rows.

`own` fine-tunes one model for each encoder, task, number of rows, learning rate and seed, in each of these ways:

- ordinary: `AutoModelFor...Classification` of transformers, with a new head.
- relative: `from_encoder`, `Trainer`, `AnchorCallback`, as the README has it. Its decoder starts from the closed form.
- other anchors: the same with 300 anchors that are not trained on; they need no labels.
- random start: relative with ``AnchorCallback(fit_samples=0)``, so that the decoder starts from random weights.
- ridge: the frozen encoder and `RelativeDecoder.fit_ridge`; nothing is trained, so it has no learning rate.
- setfit: a sentence encoder that learns to tell pairs of one class from others, and a logistic regression on it.

    python -m benchmarks.fine_tuning own --assets assets --data data --encoders minilm --tasks trec --rows 200 1000

`stitched` fine-tunes encoders apart, each on its own language, rows and seed, and reads every encoder with every
decoder. The control is a logistic regression on the absolute embeddings of each fine-tuned encoder.

    python -m benchmarks.fine_tuning stitched --assets assets --data data --readers minilm:en mpnet:en me5:fr

All have three epochs in batches of 16 and the other defaults of the Trainer. Nothing is chosen on the test rows.
Anchors are drawn from the training rows, 300 at most; those of `stitched` are 300 parallel rows that nobody trains on.
What was measured before is kept in the results and not measured again; `report` prints the tables.

Tasks: `trec` and `trec-fine` (6 and 50 kinds), `debian` (11 sections), `glosses` (8 classes of WordNet) for the text
encoders minilm, mpnet and me5; `cifar10` for the image encoders lite0, lite1 and lite2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    set_seed,
)

from benchmarks.assets.efficientnet_lite import load_efficientnet_lite
from benchmarks.assets.images import load_images
from benchmarks.assets.packages import SITE, make_importable
from benchmarks.assets.text_encoders import PREFIXES, load_text_encoder
from benchmarks.assets.texts import load_debian, load_glosses, load_trec
from benchmarks.reporting import console, machine, markdown, quiet, write
from benchmarks.training import named, tokenized, train
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
    stitch,
    stitching_matrix,
)


RESULTS = Path(__file__).parent / "results" / "fine_tuning"
IMAGE_TASKS = ("cifar10",)
IMAGE_SIZE = 96  # pixels: as sharp as CIFAR-10 needs, and quick
ANCHORS = 300
HOW: dict[str, Any] = {"num_train_epochs": 3, "per_device_train_batch_size": 16}
TEST_ROWS = 500
LONGEST = 160  # characters of a description or definition: what follows costs time only
PAIRS = 20  # for each row, of which half are of one class: SetFit's default


@dataclass
class Task:
    """Rows to train on and to test, with column `text` or `image`, and `label`."""

    rows: Dataset
    test: Dataset
    reads: str

    @property
    def classes(self) -> list[str]:
        """Their names."""
        return self.rows.features["label"].names

    @property
    def test_labels(self) -> Tensor:
        """Of the rows to test (N,)."""
        return torch.tensor(self.test["label"][:])


def load_task(name: str, arguments: argparse.Namespace) -> Task:
    """The rows of a task; the test rows are always the same."""
    data: Path = arguments.data
    if name in IMAGE_TASKS:
        parts = [load_images(name, split, data, arguments.assets) for split in ("train", "test")]
        return Task(parts[0].shuffle(seed=0), parts[1].shuffle(seed=0).select(range(TEST_ROWS)), "image")
    if name in ("trec", "trec-fine"):
        level = "fine" if name == "trec-fine" else "coarse"
        rows, test = (load_trec(data / "trec.parquet", split, level) for split in ("train", "test"))
        return Task(rows.shuffle(seed=0), test, "text")
    whole = (
        load_glosses(arguments.assets, size=8000)
        if name == "glosses"
        else load_debian(data / "debian_descriptions.parquet", languages=("en",)).rename_column("en", "text")
    )
    whole = whole.map(lambda row: {"text": row["text"][:LONGEST]}).shuffle(seed=0)
    return Task(whole.select(range(TEST_ROWS, len(whole))), whole.select(range(TEST_ROWS)), "text")


def load_encoder(name: str, assets: Path | None) -> tuple[PreTrainedModel, Any]:
    """A pretrained encoder with its tokenizer or image processor."""
    if name.startswith("lite"):
        if assets is not None:
            make_importable(assets / SITE)
        return load_efficientnet_lite(int(name.removeprefix("lite")), IMAGE_SIZE)
    return load_text_encoder(name, assets)


def prefixed(encoder: str, texts: Sequence[str]) -> list[str]:
    """Texts as an encoder wants them."""
    return [PREFIXES.get(encoder, "") + text for text in texts]


class Subject:
    """One encoder on the rows of one task: what every way of fine-tuning needs."""

    def __init__(self, encoder: str, task: Task, rows: Dataset, rest: Dataset, assets: Path | None) -> None:
        self.name, self.task, self.assets = encoder, task, assets
        self.encoder, self.processor = load_encoder(encoder, assets)
        self.samples, self.tests, self.rest = self.read(rows), self.read(task.test), rest
        self.labels = list(map(int, rows["label"]))

    def read(self, rows: Dataset) -> list[Any]:
        """Raw samples: texts with the prefix that the encoder was trained with, or images."""
        column = rows[self.task.reads][:]
        return prefixed(self.name, column) if self.task.reads == "text" else [image.convert("RGB") for image in column]

    def inputs(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """What the encoder takes."""
        if self.task.reads == "image":
            return dict(self.processor(list(samples), return_tensors="pt"))
        return dict(self.processor(list(samples), truncation=True, padding=True, return_tensors="pt"))

    def dataset(self) -> list[dict[str, Any]]:
        """The training rows as the Trainer takes them."""
        if self.task.reads == "text":
            return tokenized(self.processor, self.samples, self.labels)
        pixels = [self.inputs([image])["pixel_values"][0] for image in self.samples]
        return [{"pixel_values": pixel, "labels": label} for pixel, label in zip(pixels, self.labels, strict=True)]

    def anchors(self, seed: int, trained_on: bool = True) -> AnchorSet:
        """Rows to train on, 300 at most, or as many other rows; their labels are not used."""
        samples = self.samples if trained_on else self.read(self.rest.select(range(ANCHORS)))
        chosen = np.random.default_rng(seed).permutation(len(samples))[:ANCHORS]
        return AnchorSet([str(i) for i in chosen], {self.task.reads: [samples[i] for i in chosen]})

    def relative(self, seed: int, trained_on: bool = True) -> Any:
        """A relative model with a new decoder."""
        reads_text = self.task.reads == "text"
        kind = RelativeModelForSequenceClassification if reads_text else RelativeModelForImageClassification
        view = self.anchors(seed, trained_on).view(self.task.reads)
        return kind.from_encoder(self.encoder, view, self.processor, **named(self.task.classes))

    @torch.no_grad()
    def accuracy(self, model: Any) -> float:
        """On the test rows."""
        parts = [self.tests[start : start + 50] for start in range(0, len(self.tests), 50)]
        guessed = torch.cat([model(**self.inputs(part)).logits.argmax(-1) for part in parts])
        return float((guessed == self.task.test_labels).float().mean())


def ordinary(subject: Subject, rate: float, seed: int) -> float:
    """The classifier of transformers with a new head on the same encoder."""
    auto: Any = AutoModelForSequenceClassification
    if subject.task.reads == "image":
        auto = AutoModelForImageClassification
    config = type(subject.encoder.config).from_dict(subject.encoder.config.to_dict() | named(subject.task.classes))
    classifier = auto.from_config(config)
    wrapped = getattr(classifier, classifier.base_model_prefix)
    wrapped.load_state_dict(subject.encoder.state_dict(), strict=False)
    return subject.accuracy(_trained(classifier, subject, rate, seed))


def relative(subject: Subject, rate: float, seed: int, trained_on: bool = True, **how: Any) -> float:
    """As the README has it."""
    return subject.accuracy(_trained(subject.relative(seed, trained_on), subject, rate, seed, AnchorCallback(**how)))


def ridge(subject: Subject, rate: float, seed: int) -> float:
    """The frozen encoder with a decoder in closed form."""
    model = subject.relative(seed).eval()
    r_NR = model.encoder.projection(model.encoder.encode(subject.samples))
    decoder = RelativeDecoder.fit_ridge(r_NR, subject.labels, model, **named(subject.task.classes))
    return subject.accuracy(stitch(model, decoder))


def setfit(subject: Subject, rate: float, seed: int) -> float:
    """Few-shot fine-tuning of a sentence encoder as SetFit (Tunstall et al., 2022) does it, one epoch of its pairs.

    Cosines of pairs of one class are drawn to 1, those of others to 0; then comes a logistic regression.
    """
    from sklearn.linear_model import LogisticRegression

    draw, labels_N = np.random.default_rng(seed), np.array(subject.labels)
    pairs = []
    for i, is_same in itertools.product(range(len(labels_N)), (True, False)):
        others = np.flatnonzero((labels_N == labels_N[i]) == is_same)
        pairs += [(i, int(j), float(is_same)) for j in draw.choice(others, PAIRS // 2)] if len(others) else []
    draw.shuffle(pairs)
    encoder, batch = subject.encoder.train(), HOW["per_device_train_batch_size"]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=rate)
    steps = -(-len(pairs) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for start in range(0, len(pairs), batch):
        first, second, same = zip(*pairs[start : start + batch], strict=True)
        x_BD, y_BD = (_mean(encoder, subject, [subject.samples[i] for i in rows]) for rows in (first, second))
        loss = (torch.cosine_similarity(x_BD, y_BD) - torch.tensor(same)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.eval()
    with torch.no_grad():
        x_ND, t_ND = (
            torch.cat([_mean(encoder, subject, s[start : start + 50]) for start in range(0, len(s), 50)]).numpy()
            for s in (subject.samples, subject.tests)
        )
    guessed = LogisticRegression(max_iter=1000).fit(x_ND, labels_N).predict(t_ND)
    return float((guessed == subject.task.test_labels.numpy()).mean())


def _mean(encoder: PreTrainedModel, subject: Subject, texts: Sequence[str]) -> Tensor:
    inputs = subject.inputs(texts)
    mask_BT1 = inputs["attention_mask"][..., None]
    return (encoder(**inputs).last_hidden_state * mask_BT1).sum(1) / mask_BT1.sum(1)


WAYS: dict[str, Callable[[Subject, float, int], float]] = {
    "ordinary": ordinary,
    "relative": relative,
    "other anchors": partial(relative, trained_on=False),
    "random start": partial(relative, fit_samples=0),
    "ridge": ridge,
    "setfit": setfit,
}


def _trained(model: Any, subject: Subject, rate: float, seed: int, *callbacks: Any) -> Any:
    collator = None
    if subject.task.reads == "image":
        collator = _pictures
    how = HOW | {"learning_rate": rate, "remove_unused_columns": False}
    return train(model, subject.dataset(), seed, *callbacks, processor=subject.processor, collator=collator, **how)


def _pictures(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    labels = torch.tensor([item["labels"] for item in items])
    return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": labels}


def measure_own(arguments: argparse.Namespace) -> None:
    """Fine-tune in every way that was not measured yet, and write each score when it is there."""
    file = arguments.output / "own.json"
    found = json.loads(file.read_text("utf-8"))["runs"] if file.is_file() else []
    known = {_key(run) for run in found}
    cells = itertools.product(
        arguments.seeds, arguments.tasks, arguments.encoders, arguments.rows, arguments.rates, arguments.ways
    )
    tasks: dict[str, Task] = {}
    for seed, name, encoder, rows, rate, way in cells:
        run = {"encoder": encoder, "task": name, "rows": rows, "rate": rate, "seed": seed, "way": way}
        run |= {"rate": None} if way == "ridge" else {}
        if _key(run) in known:
            continue
        task = tasks.setdefault(name, load_task(name, arguments))
        order = np.random.default_rng(seed).permutation(len(task.rows))
        mine, rest = task.rows.select(order[:rows]), task.rows.select(order[rows:])
        started = time.monotonic()
        set_seed(seed)
        subject = Subject(encoder, task, mine, rest, arguments.assets)
        run["accuracy"] = WAYS[way](subject, rate, seed)
        run["seconds"] = round(time.monotonic() - started)
        known.add(_key(run))
        found.append(run)
        console.print(" ".join(f"{key} {value}" for key, value in run.items()))
        write(file, {"machine": machine(), "runs": found})


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("encoder", "task", "rows", "rate", "seed", "way"))


def measure_stitched(arguments: argparse.Namespace) -> None:
    """Fine-tune encoders apart, each on rows of its own, and read each with every decoder."""
    readers = [reader.split(":") for reader in arguments.readers]
    names, languages = ["-".join(reader) for reader in readers], tuple(dict.fromkeys(lang for _, lang in readers))
    whole = load_debian(arguments.data / "debian_descriptions.parquet", languages=("en", "fr", "it")).shuffle(seed=0)
    columns = {
        name: prefixed(encoder, [text[:LONGEST] for text in whole[language]])
        for name, (encoder, language) in zip(names, readers, strict=True)
    }
    whole = Dataset.from_dict({**columns, "label": whole["label"]}, features=_features(names, whole))
    test, shared = whole.select(range(TEST_ROWS)), whole.select(range(TEST_ROWS, TEST_ROWS + ANCHORS))
    pool = whole.select(range(TEST_ROWS + ANCHORS, len(whole)))
    anchors = AnchorSet.from_dataset(shared, k=ANCHORS, views=names)
    file = arguments.output / "stitched.json"
    found = json.loads(file.read_text("utf-8"))["runs"] if file.is_file() else []
    known = {(run["rows"], run["rate"], run["seed"], run["way"], tuple(run["readers"])) for run in found}
    for seed, rows, rate in itertools.product(arguments.seeds, arguments.rows, arguments.rates):
        for way in [way for way in arguments.ways if way in ("relative", "random start", "ridge")]:
            if (rows, rate, seed, way, tuple(arguments.readers)) in known:
                continue
            models, parts = {}, []
            for number, (name, (encoder, _)) in enumerate(zip(names, readers, strict=True)):
                own_seed = 100 * seed + number
                chosen = pool.select(np.random.default_rng(own_seed).permutation(len(pool))[:rows])
                parts.append(chosen)
                models[name] = _reader(way, encoder, anchors.view(name), chosen, rate, own_seed, arguments.assets)
                console.print(f"{name} is trained")
            matrix = stitching_matrix(models, models, test, metric="accuracy", train_dataset=parts[0])
            console.print(str(matrix))
            run = {"readers": arguments.readers, "rows": rows, "rate": rate, "seed": seed, "way": way}
            found.append(run | {"languages": languages, "matrix": matrix.to_dict()})
            write(file, {"machine": machine(), "runs": found})


def _features(names: Sequence[str], like: Dataset) -> Any:
    from datasets import Features, Value

    return Features({name: Value("string") for name in names} | {"label": like.features["label"]})


def _reader(way: str, encoder: str, view: Any, rows: Dataset, rate: float, seed: int, assets: Path | None) -> Any:
    """A model of one encoder, fine-tuned on its view of the rows or with a decoder in closed form."""
    set_seed(seed)
    backbone, tokenizer = load_encoder(encoder, assets)
    classes = named(rows.features["label"].names)
    model = RelativeModelForSequenceClassification.from_encoder(backbone, view, tokenizer, **classes)
    if way == "ridge":
        r_NR = model.encoder.projection(model.encoder.encode(rows[view.name][:]))
        return stitch(model, RelativeDecoder.fit_ridge(r_NR, rows["label"][:], model, **classes))
    callback = AnchorCallback(**{"fit_samples": 0} if way == "random start" else {})
    data = tokenized(tokenizer, rows[view.name][:], rows["label"][:])
    return train(model, data, seed, callback, processor=tokenizer, **HOW | {"learning_rate": rate})


def own_table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean accuracy over seeds, and the lowest and highest; ways that nobody measured are left out."""
    cells: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for run in runs:
        like = [other for other in runs if all(other[name] == run[name] for name in ("encoder", "task", "rows"))]
        for rate in {other["rate"] for other in like if other["rate"]} if run["rate"] is None else {run["rate"]}:
            key = (run["encoder"], run["task"], run["rows"], rate)
            cells.setdefault(key, {}).setdefault(run["way"], []).append(run["accuracy"])
    measured = [way for way in WAYS if any(run["way"] == way for run in runs)]
    rows = [
        [
            *key[:3],
            f"{key[3]:g}",
            len(ways["relative"]),
            *(_spread(ways[way]) if way in ways else "-" for way in measured),
        ]
        for key, ways in sorted(cells.items())
        if "relative" in ways
    ]
    return markdown(["encoder", "task", "rows", "learning rate", "seeds", *measured], rows)


def _spread(values: Sequence[float]) -> str:
    mean = np.mean(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(
        "benchmarks.fine_tuning", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["own", "stitched", "report"])
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with trec.parquet and its like")
    parser.add_argument("--encoders", nargs="+", default=["minilm"], help="minilm, mpnet, me5, lite0, lite1, lite2")
    parser.add_argument("--tasks", nargs="+", default=["trec"], help="trec, trec-fine, debian, glosses, cifar10")
    parser.add_argument("--rows", nargs="+", type=int, default=[200, 1000])
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-5])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["ordinary", "relative", "ridge"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--readers", nargs="+", default=["minilm:en", "mpnet:en", "me5:fr", "me5:it"])
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.what == "report":
        print(own_table(json.loads((arguments.output / "own.json").read_text("utf-8"))["runs"]))
        return
    with quiet():
        {"own": measure_own, "stitched": measure_stitched}[arguments.what](arguments)


if __name__ == "__main__":
    main()
