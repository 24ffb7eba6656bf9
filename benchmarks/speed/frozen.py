"""3 Frozen encoders: the decoder's training on cached relative representations, in passes of the encoder."""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import PrinterCallback, Trainer, TrainingArguments

from benchmarks.speed import subjects
from benchmarks.speed.timing import clock, row
from hf_relreps import RelativeDecoder
from hf_relreps.caching import encode_dataset


def train(decoder: RelativeDecoder, rows: Any, epochs: int, folder: str) -> None:
    """With the plain `Trainer`."""
    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    args = TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=64, dataloader_pin_memory=False, **quiet
    )
    trainer = Trainer(decoder, args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def run(quick: bool = False) -> dict[str, Any]:
    """Encode and train five epochs; once more; beside one pass of the encoder."""
    from datasets import Dataset

    words, labels = subjects.texts()
    n = 128 if quick else 768
    encoder = subjects.relative(subjects.absolute(), 768, 64).encoder
    found: dict[str, list[Any]] = {"five epochs": [], "again": []}
    for i in range(1 if quick else 3):
        rows = Dataset.from_dict({"text": words[i * n : (i + 1) * n], "label": labels[i * n : (i + 1) * n]})
        with tempfile.TemporaryDirectory() as folder:
            decoder = RelativeDecoder(encoder.config.without_encoder())

            def whole() -> None:
                relative = encode_dataset(encoder, rows, "text", cache_dir=folder)  # noqa: B023
                train(decoder, relative, 5, folder)  # noqa: B023

            passes = clock(lambda: encoder.encode(rows["text"][:]))  # noqa: B023
            first, again = clock(whole), clock(whole)
        found["five epochs"].append((first, passes))
        found["again"].append((again, passes))
    from benchmarks.speed.timing import Pairs

    rows_found = []
    for name, goal in (("five epochs", "at most 1.2"), ("again", "no pass of the encoder")):
        pairs = Pairs()
        for first, second in found[name]:
            pairs.wall.append((first[0], second[0]))
            pairs.processor.append((first[1], second[1]))
        what = "encode, cache, five epochs" if name == "five epochs" else "a second run: five epochs from the cache"
        rows_found.append(row(f"{what}, in passes of the encoder over {n} texts", pairs.to_dict(), goal))
    return {"rows": rows_found}
