"""Anchors are exact whenever they are read outside a training step, whoever asks and in whatever order."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_relreps import AnchorCallback, RelativeModelForSequenceClassification, compatibility, stitch
from hf_relreps.errors import ConfigurationError
from hf_relreps.exporting import export_program


EXACT = 1e-5


@pytest.fixture
def trained(make_model, make_dataset, tokenizer):
    """Gives a model of which one training step has just changed the weights."""

    def train(seed: int = 0, view: str = "en", **settings: Any) -> RelativeModelForSequenceClassification:
        model = make_model(seed, view, **settings)
        step(model, make_dataset(view), tokenizer)
        return model

    return train


def step(
    model: Any, rows: list[dict[str, Any]], tokenizer: Any, training: bool = True, fused: bool | None = None
) -> None:
    batch = tokenizer.pad([{k: v for k, v in row.items() if k != "labels"} for row in rows[::6]], return_tensors="pt")
    labels = torch.tensor([row["labels"] for row in rows[::6]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=fused)
    model.train(training)
    model(**batch, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def distance(model: RelativeModelForSequenceClassification) -> float:
    """How far the stored anchors are from what the encoder makes of them, without healing them."""
    encoder = model.encoder
    stored_AD = encoder.projection.anchors_AD.clone()
    own_AD = encoder.encode(encoder.anchors.view(encoder.config.anchor_view).samples)
    return float(((stored_AD - own_AD).norm(dim=-1) / own_AD.norm(dim=-1)).max())


def test_training_leaves_anchors_stale(trained):
    model = trained()
    assert model.encoder.has_stale_anchors
    assert distance(model) > 0.05


def evaluate(model: Any, inputs: Any, folder: Path) -> None:
    with torch.no_grad():
        model.eval()(**inputs)


def project(model: Any, inputs: Any, folder: Path) -> None:
    model.encoder.eval().projection(torch.randn(3, 32))


def predict_in_training_mode(model: Any, inputs: Any, folder: Path) -> None:
    with torch.no_grad():
        model(**inputs)


READERS: dict[str, Any] = {
    "evaluation": evaluate,
    "projection": project,
    "prediction in training mode": predict_in_training_mode,
    "state_dict": lambda model, inputs, folder: model.state_dict(),
    "save": lambda model, inputs, folder: model.save_pretrained(folder),
    "check_anchors": lambda model, inputs, folder: model.encoder.check_anchors(),
    "stitch": lambda model, inputs, folder: stitch(model, model),
    "compatibility": lambda model, inputs, folder: compatibility(model, model),
    "export": lambda model, inputs, folder: export_program(model),
}


@pytest.mark.parametrize("reader", READERS)
def test_whatever_reads_the_anchors_finds_them_exact(reader, trained, tokenizer, texts, tmp_path):
    model = trained()
    READERS[reader](model, tokenizer(texts["en"][:2], return_tensors="pt", padding=True), tmp_path)
    assert not model.encoder.has_stale_anchors
    assert distance(model) < EXACT


def test_what_was_saved_after_training_without_a_callback_is_exact(trained, tmp_path):
    trained().save_pretrained(tmp_path)
    assert distance(RelativeModelForSequenceClassification.from_pretrained(tmp_path)) < EXACT


def test_a_training_step_reads_the_anchors_as_they_are(trained, make_dataset, tokenizer):
    model = trained()
    before_AD = model.encoder.projection.anchors_AD.clone()
    step(model, make_dataset(), tokenizer)
    assert torch.equal(model.encoder.projection.anchors_AD, before_AD)


def test_nothing_is_encoded_again_without_need(make_model, tokenizer, texts, monkeypatch):
    model = make_model()
    encoded: list[Any] = []
    monkeypatch.setattr(type(model.encoder), "encode", lambda *args, **kwargs: encoded.append(args))
    inputs = tokenizer(texts["en"][:2], return_tensors="pt")
    model.train()
    model.eval()
    with torch.no_grad():
        model(**inputs)
    model(**inputs)  # with gradients, in evaluation mode
    model.state_dict()
    assert not encoded


@pytest.mark.parametrize("fused", [False, True])
def test_a_loop_that_forgets_the_training_mode_leaves_no_stale_anchors(make_model, make_dataset, tokenizer, fused):
    model = make_model()
    sharing = stitch(model, model)
    for _ in range(2):
        step(model, make_dataset(), tokenizer, training=False, fused=fused)
        assert sharing.encoder.has_stale_anchors
    model.state_dict()
    assert distance(model) < EXACT


def test_looking_at_gradients_encodes_nothing_again(make_model, tokenizer, texts, monkeypatch):
    model = make_model()
    encoded: list[Any] = []
    monkeypatch.setattr(type(model.encoder), "encode", lambda *args, **kwargs: encoded.append(args))
    inputs = tokenizer(texts["en"][:2], return_tensors="pt")
    for _ in range(2):
        model(**inputs).logits.sum().backward()  # what words an answer depends on
        assert not model.encoder.has_stale_anchors
    model.zero_grad()
    model(**inputs)
    assert not encoded


def test_a_change_by_hand_is_noticed_too(make_model):
    model = make_model()
    with torch.no_grad():
        model.encoder.backbone.embeddings.word_embeddings.weight.mul_(1.5)
    assert model.encoder.has_stale_anchors
    model.encoder.refresh_anchors()
    assert distance(model) < EXACT


def test_weights_that_are_loaded_without_their_anchors_leave_these_stale_and_with_them_exact(make_model):
    model, other = make_model(0), make_model(1)
    model.encoder.backbone.load_state_dict(other.encoder.backbone.state_dict())
    assert model.encoder.has_stale_anchors
    model.load_state_dict(other.state_dict())
    assert not model.encoder.has_stale_anchors
    assert distance(model) < EXACT


def test_encoders_that_share_weights_all_learn_that_these_were_trained(make_model, make_dataset, tokenizer, texts):
    english, french = make_model(0), make_model(1, "fr")
    model = stitch(english, french)
    step(model, make_dataset(), tokenizer)
    assert english.encoder.has_stale_anchors
    evaluate(english, tokenizer(texts["en"][:2], return_tensors="pt"), Path())
    assert distance(english) < EXACT
    assert model.encoder.has_stale_anchors  # its own anchors are its own affair
    evaluate(model, tokenizer(texts["en"][:2], return_tensors="pt"), Path())
    assert distance(model) < EXACT


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_keeps_what_is_known_and_refreshes_its_own_anchors(copied, make_model, trained):
    assert not copied(make_model()).encoder.has_stale_anchors
    stale = trained()
    model = copied(stale)
    assert model.encoder.has_stale_anchors
    model.encoder.projection.eval()(torch.randn(2, 32))
    assert distance(model) < EXACT
    assert distance(stale) > 0.05


def test_threads_that_read_at_once_all_find_exact_anchors(trained, tokenizer, texts):
    stale = trained()
    model = copy.deepcopy(stale).eval()
    inputs = tokenizer(texts["en"][:2], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model(**inputs).logits
    for module in stale.modules():  # without the switch that would refresh them
        module.training = False
    found: list[torch.Tensor] = []

    def read() -> None:
        with torch.no_grad():
            found.append(stale(**inputs).logits)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert all(torch.allclose(logits, expected, atol=1e-5) for logits in found)


def test_stale_anchors_that_cannot_be_encoded_again_are_warned_of(trained, tokenizer, texts, caplog):
    model = trained()
    model.encoder._anchors = model.decoder._anchors = None
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").propagate = True
        evaluate(model, tokenizer(texts["en"][:2], return_tensors="pt"), Path())
    assert "could not be encoded again" in caplog.text


def test_a_compiled_model_answers_with_exact_anchors_after_a_training(make_model, make_dataset, tokenizer, texts):
    model = make_model()
    compiled = torch.compile(model, backend="eager")
    inputs = tokenizer(texts["en"][:4], return_tensors="pt", padding=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    compiled.train()
    compiled(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    optimizer.step()
    compiled.eval()
    with torch.no_grad():
        found = compiled(**inputs).logits
        assert distance(model) < EXACT
        assert torch.allclose(found, model(**inputs).logits, atol=1e-5)


# -- with a Trainer, in any order


class SavesAndEvaluates(TrainerCallback):
    """What somebody else's callback, a signal handler or a checkpoint just in time asks for."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            control.should_save = control.should_evaluate = True


class SavesDirectly(TrainerCallback):
    """A handler that saves without asking the Trainer."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            kwargs["model"].save_pretrained(Path(args.output_dir, "direct"))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("with_schedule", [True, False])
def test_a_save_that_another_callback_asks_for_is_exact_in_any_order(
    order, with_schedule, make_model, make_dataset, anchors, tokenizer, tmp_path
):
    model, rows = make_model(), make_dataset()
    callbacks = [
        *([AnchorCallback(anchors.view("en"))] if with_schedule else []),
        SavesAndEvaluates(),
        SavesDirectly(),
    ]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=0.02,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    how = {"train_dataset": rows, "eval_dataset": rows[:8], "processing_class": tokenizer}
    Trainer(model, args, callbacks=callbacks[::order], **how).train()
    for saved in ("checkpoint-3", "direct"):
        assert distance(RelativeModelForSequenceClassification.from_pretrained(tmp_path / saved)) < EXACT
    with torch.no_grad():
        model.eval()(**tokenizer("red dog here", return_tensors="pt"))
    assert distance(model) < EXACT


# -- adapters of peft around the whole model


def lora(**settings: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], **settings)


def train_adapter(model: Any, rows: Any, anchors: Any, tokenizer: Any, folder: Path) -> Trainer:
    how = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 0.02, "save_strategy": "no"}
    args = TrainingArguments(str(folder), **how, report_to="none", use_cpu=True, disable_tqdm=True)
    callbacks = [AnchorCallback(anchors.view("en"))]
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks)
    trainer.train()
    return trainer


PEFT_ASKS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks by the old name


@PEFT_ASKS
@pytest.mark.parametrize("named", [None, ["decoder"], ["projection"]])
def test_an_adapter_that_would_be_saved_without_anchors_or_decoder_is_refused_before_training(
    named, make_model, make_dataset, anchors, tokenizer, tmp_path
):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make_model(), lora(modules_to_save=named))
    with pytest.raises(ConfigurationError, match=r'modules_to_save=\["projection", "decoder"\]'):
        train_adapter(model, make_dataset(), anchors, tokenizer, tmp_path)


@PEFT_ASKS
def test_an_adapter_that_names_anchors_and_decoder_comes_back_exact(
    make_model, make_dataset, anchors, tokenizer, texts, tmp_path
):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make_model(), lora(modules_to_save=["projection", "decoder"]))
    trainer = train_adapter(model, make_dataset(), anchors, tokenizer, tmp_path)
    trainer.save_model(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(make_model(), tmp_path / "adapter").eval()
    inputs = tokenizer(texts["en"][:8], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected, found = (one(**inputs).logits for one in (model.eval(), again))
    assert torch.allclose(found, expected, atol=1e-6)
