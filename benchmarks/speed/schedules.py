"""Schedules of refreshing anchors: quality against cost, on the quickstart's data.

For each schedule small BERTs are trained in two languages, each from its own seed, and every encoder is stitched to
every decoder. Cost is counted, not timed: anchors encoded for each training sample, in passes of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from benchmarks.training import DECAYING, tokenized, train
from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForSequenceClassification, stitching_matrix
from hf_relreps.callback import _encoder_of
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer
from hf_relreps.samples import batches


LANGUAGES = ("en", "fr")
LONGEST = 32
SEEDS = (1, 2)
EPOCHS = 4


class Counting(AnchorCallback):
    """Counts the anchors that it encodes while training goes on."""

    encoded = 0

    def _encode(self, encoder: Any, due: Any) -> Any:
        self.encoded += sum(len(rows) for rows, _ in due)
        return super()._encode(encoder, due)


class Scheduled(Counting):
    """Refreshes of another kind than every few steps: subclasses say what happens after a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the schedule does."""
        encoder = _encoder_of(kwargs["model"])
        encoder.note_training()
        self.after(encoder, state.global_step)

    def after(self, encoder: Any, step: int) -> None:
        """After an optimiser step."""
        raise NotImplementedError

    def encode_some(self, encoder: Any, rows: list[int]) -> Tensor:
        """Embeddings of a few anchors."""
        self.encoded += len(rows)
        samples = encoder.anchors.view(encoder.config.anchor_view).samples
        parts = batches([samples[i] for i in rows], encoder.processor, 64, encoder.config.max_length)
        return encoder.encode_batches(parts, len(rows))


class Drift(Scheduled):
    """A few anchors are asked every few steps how far they have moved; all are refreshed when it is far."""

    def __init__(self, limit: float, probe: int = 16, every: int = 10) -> None:
        super().__init__()
        self.limit, self.probe, self.every = limit, probe, every

    def after(self, encoder: Any, step: int) -> None:
        """Ask, and refresh if need be."""
        if step % self.every:
            return
        k = encoder.config.space.num_anchors
        rows = list(range(0, k, k // self.probe))
        old_AD, new_AD = encoder.projection.anchors_AD[rows], self.encode_some(encoder, rows)
        if float(1 - torch.cosine_similarity(old_AD, new_AD).mean()) > self.limit:
            self._refresh(encoder, step, exact=True)


class Settling(Scheduled):
    """Often at first, then at steps that grow by a factor."""

    def __init__(self, first: int, factor: float) -> None:
        super().__init__()
        self.steps, step = set(), float(first)
        while step < 1e5:
            self.steps.add(round(step))
            step = max(step + first, step * factor)

    def after(self, encoder: Any, step: int) -> None:
        """Refresh at the steps of the sequence."""
        if step in self.steps:
            self._refresh(encoder, step, exact=True)


class InBatch(Scheduled):
    """No pass at all: anchors that come by in a training batch leave their embeddings, blurred by dropout."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen to the encoder."""
        super().on_train_begin(args, state, control, **kwargs)
        encoder = _encoder_of(kwargs["model"])
        samples = encoder.anchors.view(encoder.config.anchor_view).samples
        tokens = encoder.processor(samples, truncation=True, max_length=encoder.config.max_length)["input_ids"]
        self.rows = {tuple(ids): i for i, ids in enumerate(tokens)}
        self.found: dict[int, Tensor] = {}
        encoder.register_forward_hook(self.listen, with_kwargs=True)

    def listen(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Keep the embeddings of anchors."""
        if not module.training:
            return
        for ids, kept, x_D in zip(kwargs["input_ids"], kwargs["attention_mask"], output.pooler_output, strict=True):
            row = self.rows.get(tuple(ids[kept.bool()].tolist()))
            if row is not None:
                self.found[row] = x_D.detach()

    def after(self, encoder: Any, step: int) -> None:
        """Put them in place."""
        if self.found:
            anchors_AD = encoder.projection.anchors_AD.clone()
            anchors_AD[list(self.found)] = torch.stack(list(self.found.values()))
            self.found = {}
            encoder.projection.set_anchors(anchors_AD)


SCHEDULES: dict[str, Callable[[], Counting]] = {
    "every step": lambda: Counting(refresh_every=1),
    "every 20": lambda: Counting(refresh_every=20),
    "every 50": lambda: Counting(refresh_every=50),
    "every 100": lambda: Counting(refresh_every=100),
    "only at the end": lambda: Counting(refresh_every=10**6),
    "a part every 5 (the default)": lambda: Counting(),
    "a fifth every 10": lambda: Counting(refresh_every=10, refresh_parts=5),
    "every 50, EMA 0.5": lambda: Counting(refresh_every=50, ema=0.5),
    "when moved by 0.02": lambda: Drift(0.02),
    "settling, from 5, by 1.3": lambda: Settling(5, 1.3),
    "in-batch reuse": lambda: InBatch(),
}


def trained(language: str, seed: int, anchors: AnchorSet, rows: Any, callback: Counting, epochs: int) -> Any:
    """One small BERT with its decoder."""
    set_seed(seed)
    tokenizer = wordpiece_tokenizer(rows[language][:], LONGEST)
    model = RelativeModelForSequenceClassification.from_encoder(
        small_bert(len(tokenizer), LONGEST), anchors.view(language), tokenizer, num_labels=11
    )
    dataset = tokenized(tokenizer, rows[language][:], rows["label"][:])
    how = DECAYING | {"num_train_epochs": epochs, "learning_rate": 5e-4}
    return train(model, dataset, seed, callback, processor=tokenizer, **how)


def measure(k: int, names: Iterable[str], seeds: Sequence[int], epochs: int, quick: bool) -> dict[str, Any]:
    """Own and stitched macro-F1 of each schedule, and the anchors that it encoded for each training sample."""
    rows, test = load_debian_descriptions("train"), load_debian_descriptions("validation")
    if quick:
        rows, test = rows.select(range(640)), test.select(range(100))
    anchors = AnchorSet.from_dataset(rows, k, views=list(LANGUAGES), id_column="package", seed=42)
    found: dict[str, Any] = {}
    for name in names:
        models, encoded = {}, 0
        for j, language in enumerate(LANGUAGES):
            for seed in seeds:
                callback = SCHEDULES[name]()
                models[f"{language}-{seed}"] = trained(language, 100 * seed + j, anchors, rows, callback, epochs)
                encoded += callback.encoded - k  # those at the end are there anyway
        columns = {key: key[:2] for key in models}
        matrix = stitching_matrix(models, models, test, metric="f1", inputs=columns, progress=False)
        found[name] = {"own": matrix.own, "stitched": matrix.stitched, "worst": matrix.worst}
        found[name]["anchors_per_sample"] = encoded / (len(rows) * epochs * len(models))
        print(k, name, {key: round(value, 4) for key, value in found[name].items()}, flush=True)  # noqa: T201
    return found


def run(quick: bool = False) -> dict[str, Any]:
    """The curve with 300 anchors; with 768 the default beside every step."""
    seeds, epochs = ((1,), 1) if quick else (SEEDS, EPOCHS)
    return {
        "rows": [],
        "300": measure(300, SCHEDULES, seeds, epochs, quick),
        "768": measure(768, ("every step", "a part every 5 (the default)"), seeds, epochs, quick),
    }
