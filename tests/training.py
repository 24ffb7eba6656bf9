"""A `Trainer` for tiny models: short runs on the CPU, the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments


def tiny_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    folder: Path,
    *callbacks: TrainerCallback,
    eval_rows: Sequence[dict[str, Any]] | None = None,
    compute_metrics: Any = None,
    trainer_class: type[Trainer] = Trainer,
    **arguments: Any,
) -> Trainer:
    """Batches of eight, a constant learning rate, nothing saved or evaluated unless asked for."""
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": 0}
    steady = {"per_device_train_batch_size": 8, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    rare = {"save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no", "max_steps": 4}
    return trainer_class(
        model=model,
        args=TrainingArguments(str(folder), **quiet | steady | rare | arguments),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        compute_metrics=compute_metrics,
    )
