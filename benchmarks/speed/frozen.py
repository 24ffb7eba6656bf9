"""3 Frozen encoders: the decoder's training on cached relative representations, in passes of the encoder."""

from __future__ import annotations

import tempfile
from typing import Any

from benchmarks.speed import subjects
from benchmarks.speed.timing import Pairs, clock, row
from benchmarks.training import train
from hf_relreps import RelativeDecoder, RelativeDecoderConfig
from hf_relreps.caching import encode_dataset


def run(quick: bool = False) -> dict[str, Any]:
    """Encode and train five epochs; once more; beside one pass of the encoder."""
    from datasets import Dataset

    words, labels = subjects.texts()
    n = 128 if quick else 768
    encoder = subjects.relative(subjects.absolute(), 768, 64).encoder
    config = RelativeDecoderConfig(space=encoder.config.space, num_labels=subjects.NUM_LABELS)
    first, again = Pairs(), Pairs()
    how = {"num_train_epochs": 5, "per_device_train_batch_size": 64}
    for i in range(1 if quick else 3):
        rows = Dataset.from_dict({"text": words[i * n : (i + 1) * n], "label": labels[i * n : (i + 1) * n]})
        with tempfile.TemporaryDirectory() as folder:
            decoder = RelativeDecoder(config)

            def whole() -> None:
                train(decoder, encode_dataset(encoder, rows, "text", cache_dir=folder), 42, **how)  # noqa: B023

            passes = clock(lambda: encoder.encode(rows["text"][:]))  # noqa: B023
            first.add(clock(whole), passes)
            again.add(clock(whole), passes)
    where = f"in passes of the encoder over {n} texts"
    goal = "no pass of the encoder"
    return {
        "rows": [
            row(f"encode, cache, five epochs, {where}", first.to_dict(), "at most 1.2"),
            row(f"a second run: five epochs from the cache, {where}", again.to_dict(), goal),
        ]
    }
