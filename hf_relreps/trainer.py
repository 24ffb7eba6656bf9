"""`RelativeTrainer`: a `Trainer` that reports on the anchors and pushes the model's own card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import Trainer

from hf_relreps.callback import AnchorCallback, write_card
from hf_relreps.model_card import CardFacts, listed, training_facts
from hf_relreps.pretrained import RelativePreTrainedModel
from hf_relreps.sources import CARD_FILE


class RelativeTrainer(Trainer):
    """`Trainer` that sends drift and coverage of the anchors to `report_to`, and pushes the card of the model.

    The plain `Trainer` trains, saves and pushes too, but pushes its own card, with the tags by which others find the
    upload.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        from hf_relreps import RelativeTrainer

        model = classifier_of("en", seed=3)
        rows = train.map(lambda row: model.processor(row["en"], truncation=True))
        args = TrainingArguments("out", max_steps=2, report_to="none")
        trainer = RelativeTrainer(model, args, train_dataset=rows, processing_class=model.processor)
        trainer.add_callback(AnchorCallback(anchors.view("en")))
        trainer.train()
        ```
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the values of the Trainer, with drift and coverage of the anchors at training steps.

        Arrays, such as a score for each class, become lists: a checkpoint holds the log as JSON.
        """
        logs = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in logs.items()}
        callback = next((one for one in self.callback_handler.callbacks if isinstance(one, AnchorCallback)), None)
        if callback is not None and "loss" in logs and self.model is not None:
            logs |= callback.take_facts(self.model)
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model's own card into the output folder, with the facts of this training."""
        super().create_model_card(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, RelativePreTrainedModel) or not self.is_world_process_zero():
            return
        file = Path(str(self.args.output_dir), CARD_FILE)
        by_trainer = file.read_text("utf-8")
        told = ModelCard(by_trainer, ignore_metadata_errors=True).data
        facts = training_facts(self.args, self.state.log_history, self.eval_dataset or self.train_dataset)
        results = told.get("eval_results") or ()
        more = CardFacts(
            license=told.get("license"),
            languages=listed(told.get("language")),
            datasets=listed(told.get("datasets")),
            results=results,
            tags=listed(told.get("tags")),
        )
        known = replace(facts, metrics={}) if results else facts
        file.unlink()  # or it would be kept as a person's
        try:
            write_card(model, self.args, more.with_defaults(known))
        except BaseException:
            file.write_text(by_trainer, "utf-8")
            raise
