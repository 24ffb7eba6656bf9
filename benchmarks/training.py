"""Training as the benchmarks do it: by the plain `Trainer`, quietly and without checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments


QUIET: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
# Of a model from scratch, unless a benchmark says otherwise.
USUAL: dict[str, Any] = {"per_device_train_batch_size": 32, "warmup_steps": 0.1}
COSINE: dict[str, Any] = USUAL | {"lr_scheduler_type": "cosine"}
DECAYING: dict[str, Any] = USUAL | {"weight_decay": 0.01}


def train(
    model: Any,
    dataset: Any,
    seed: int,
    *callbacks: TrainerCallback,
    processor: Any = None,
    collator: Any = None,
    **arguments: Any,
) -> Any:
    """The model in evaluation mode, trained; batches are padded by `processor`, or put together by `collator`."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, seed=seed, dataloader_pin_memory=False, **QUIET | arguments)
        parts: dict[str, Any] = {"processing_class": processor, "data_collator": collator}
        trainer = Trainer(model, args, train_dataset=dataset, callbacks=list(callbacks), **parts)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def tokenized(tokenizer: Any, texts: Sequence[str], labels: Iterable[int]) -> list[dict[str, Any]]:
    """Texts with their labels as the `Trainer` takes them."""
    tokens = tokenizer(texts, truncation=True)
    columns = (tokens["input_ids"], tokens["attention_mask"], map(int, labels))
    names = ("input_ids", "attention_mask", "labels")
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=False)]


def named(classes: Sequence[str]) -> dict[str, Any]:
    """The names of classes as configurations take them."""
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
