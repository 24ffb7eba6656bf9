"""Whole models under the real `Trainer`: losses, metrics, accumulation, precision, evaluation and prediction."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from training import tiny_trainer
from transformers import DataCollatorWithPadding, TrainerCallback, ViTConfig, ViTImageProcessorPil, ViTModel

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
)


class Gradients(TrainerCallback):
    """Copies of the gradients before each optimizer step, as they would be applied."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})


@pytest.fixture
def dataset(make_dataset):
    return make_dataset("en")


@pytest.fixture(scope="module")
def steady(make_bert, anchors, tokenizer):
    """``steady(num_labels=..)``: a model without dropout and noise, the same each time."""

    def make(**settings):
        bert = make_bert(0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        torch.manual_seed(0)
        quiet = {"decoder_dropout": 0.0, "decoder_noise": 0.0}
        return RelativeModelForSequenceClassification.from_encoder(
            bert, anchors.view("en"), tokenizer, **quiet | settings
        )

    return make


# -- three kinds of problem


def test_single_label_classification_is_learnt(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0)

    def accuracy(prediction):
        assert isinstance(prediction.predictions, np.ndarray)
        assert prediction.predictions.shape == (60, 3)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer = tiny_trainer(
        model,
        tokenizer,
        dataset,
        tmp_path,
        AnchorCallback(),
        eval_rows=dataset,
        compute_metrics=accuracy,
        max_steps=40,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert model.config.problem_type == "single_label_classification"
    assert after["eval_accuracy"] > 0.9 > before["eval_accuracy"]
    assert after["eval_loss"] < before["eval_loss"]


def test_several_labels_at_once_are_learnt(make_bert, anchors, tokenizer, dataset, tmp_path):
    rows = [row | {"labels": [float(row["labels"] == 0), float(row["labels"] != 2)]} for row in dataset]
    torch.manual_seed(0)
    model = RelativeModelForSequenceClassification.from_encoder(
        make_bert(0), anchors.view("en"), tokenizer, num_labels=2, problem_type="multi_label_classification"
    )
    trainer = tiny_trainer(model, tokenizer, rows, tmp_path, AnchorCallback(), max_steps=60)
    trainer.train()
    prediction = trainer.predict(rows)
    assert prediction.predictions.shape == prediction.label_ids.shape == (60, 2)
    assert ((prediction.predictions > 0) == prediction.label_ids.astype(bool)).mean() > 0.9


def test_a_number_is_learnt(make_bert, anchors, tokenizer, dataset, tmp_path):
    rows = [row | {"labels": row["labels"] - 1.0} for row in dataset]
    torch.manual_seed(0)
    model = RelativeModelForSequenceClassification.from_encoder(
        make_bert(0), anchors.view("en"), tokenizer, num_labels=1
    )
    trainer = tiny_trainer(model, tokenizer, rows, tmp_path, AnchorCallback(), max_steps=60)
    trainer.train()
    prediction = trainer.predict(rows)
    assert model.config.problem_type == "regression"
    assert np.corrcoef(prediction.predictions.squeeze(-1), prediction.label_ids)[0, 1] > 0.9


def test_the_loss_is_that_of_the_problem(steady, tokenizer):
    inputs = tokenizer(["small cat", "old bus"], return_tensors="pt", padding=True)
    single = steady(num_labels=3)(**inputs, labels=torch.tensor([2, 0]))
    torch.testing.assert_close(single.loss, torch.nn.functional.cross_entropy(single.logits, torch.tensor([2, 0])))
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    several = steady(num_labels=3)(**inputs, labels=targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(several.logits, targets)
    torch.testing.assert_close(several.loss, expected)
    number = steady(num_labels=1)(**inputs, labels=torch.tensor([0.5, -2.0]))
    torch.testing.assert_close(number.loss, (number.logits[:, 0] - torch.tensor([0.5, -2.0])).square().mean())


# -- what the Trainer does around them


def test_four_small_batches_accumulate_to_the_gradient_of_the_big_one(steady, dataset, tokenizer, tmp_path):
    seen = []
    for size, accumulation in ((32, 1), (8, 4)):
        gradients = Gradients()
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = tiny_trainer(
            steady(num_labels=3), tokenizer, dataset, tmp_path, gradients, max_steps=1, max_grad_norm=0.0, **arguments
        )
        trainer.train()
        seen.append(gradients.seen[0])
    assert seen[0].keys() == seen[1].keys()
    for name, gradient in seen[0].items():
        torch.testing.assert_close(seen[1][name], gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_gradient_checkpointing_trains_to_the_same_weights(make_model, dataset, tokenizer, tmp_path):
    trained = []
    for checkpointing in (False, True):
        model = make_model(0)
        tiny_trainer(
            model,
            tokenizer,
            dataset,
            tmp_path,
            AnchorCallback(refresh_every=2),
            activation_checkpointing=checkpointing,
        ).train()
        assert model.encoder.backbone.is_activation_checkpointing == checkpointing
        trained.append(model.state_dict())
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_bf16_autocast_trains_close_to_float32(make_model, dataset, tokenizer, tmp_path):
    losses, models = [], []
    for bf16 in (False, True):
        model = make_model(0)
        trainer = tiny_trainer(
            model, tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=3), bf16=bf16, max_steps=12
        )
        losses.append(trainer.train().training_loss)
        models.append(model)
    weights = {name: tensor for name, tensor in models[1].state_dict().items() if not name.endswith("_extra_state")}
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
    assert losses[1] != losses[0]


def test_under_autocast_the_relative_representation_stays_float32(make_model, tokenizer):
    model = make_model(0)
    inputs = tokenizer(["small cat", "old bus"], return_tensors="pt", padding=True)
    with torch.no_grad():
        full = model(**inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(**inputs)
    assert mixed.relative_embeds.dtype == torch.float32 and mixed.logits.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.relative_embeds, full.relative_embeds, atol=0.05, rtol=0.05)


def test_a_compiled_model_trains_with_its_refreshed_anchors(make_model, dataset, tokenizer, tmp_path):
    trained = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model, callback = make_model(0), AnchorCallback(refresh_every=1)
        arguments = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
        tiny_trainer(model, tokenizer, dataset, tmp_path, callback, **arguments).train()
        assert [step for step, _ in callback.drift_] == [1, 2, 3, 4]
        trained.append(model.state_dict())
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_columns_that_the_model_reads_stay_and_others_go(make_model, texts, labels, tokenizer, tmp_path):
    rows = Dataset.from_dict({"sentence": texts["en"], "labels": labels, "number": list(range(60))})
    rows = rows.map(lambda batch: tokenizer(batch["sentence"], return_token_type_ids=True), batched=True)
    trainer = tiny_trainer(make_model(0), tokenizer, rows, tmp_path, AnchorCallback(), eval_rows=rows)
    assert isinstance(trainer.data_collator, DataCollatorWithPadding)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert trainer.label_names == ["labels"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_evaluation_and_prediction_give_plain_logits(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0)
    trainer = tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(), eval_rows=dataset)
    prediction = trainer.predict(dataset)
    batch = tokenizer.pad(dataset, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(prediction.predictions), model(**batch).logits, atol=1e-4, rtol=1e-4)
    assert prediction.label_ids.tolist() == [row["labels"] for row in dataset]
    assert "eval_loss" in trainer.evaluate()


def test_a_decoder_trains_on_a_frozen_encoder(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0)
    model.encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=1)).train()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("decoder.")}


def test_images_are_learnt(tmp_path):
    rng = np.random.default_rng(0)
    labels = [i % 2 for i in range(32)]
    images = [Image.fromarray((rng.integers(0, 120, (16, 16, 3)) + 130 * label).astype(np.uint8)) for label in labels]
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    anchors = AnchorSet([str(i) for i in range(10)], {"photo": images[:10]})
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vit = ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))
    model = RelativeModelForImageClassification.from_encoder(vit, anchors.view("photo"), processor, num_labels=2)
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    rows = Dataset.from_dict({"pixel_values": pixels.numpy(), "labels": labels, "name": [str(i) for i in range(32)]})
    trainer = tiny_trainer(model, processor, rows.with_format("torch"), tmp_path, AnchorCallback(), max_steps=20)
    trainer.train()
    prediction = trainer.predict(rows.with_format("torch"))
    assert (prediction.predictions.argmax(-1) == np.array(labels)).mean() > 0.9
