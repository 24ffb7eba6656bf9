"""Where a new decoder starts: `AnchorCallback` puts it in closed form on the training set before the first step."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from training import tiny_trainer
from transformers import DataCollatorForTokenClassification

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
    RelativeModelForTokenClassification,
    stitch,
)
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import ConfigurationError, LabelError, SampleError


STILL = {"max_steps": 1, "learning_rate": 0.0}  # nothing is trained: what is there after was there at the start


@pytest.fixture
def dataset(make_dataset):
    return make_dataset("en")


def logits(model, texts):
    return model.eval()(**model.processor(texts, padding=True, return_tensors="pt")).logits.detach()


def in_closed_form(model, texts, labels):
    """The same encoder with `RelativeDecoder.fit_ridge` on all rows."""
    r_NR = model.encoder.projection(model.encoder.encode(texts))
    return stitch(model, RelativeDecoder.fit_ridge(r_NR, labels, model, num_labels=3))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("freeze", [True, False])
def test_a_new_decoder_starts_from_the_closed_form_on_the_training_set(
    make_model, dataset, tokenizer, texts, labels, tmp_path, kind, freeze
):
    model = make_model(0, decoder_type=kind, freeze_encoder=freeze)
    tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(batch_size=7), **STILL).train()
    expected_NC = logits(in_closed_form(model, texts["en"], labels), texts["en"])
    torch.testing.assert_close(logits(model, texts["en"]), expected_NC, atol=1e-3, rtol=1e-3)


def test_a_share_of_a_large_training_set_is_read_and_it_is_spread_over_the_whole(
    make_model, dataset, tokenizer, texts, labels, tmp_path
):
    model = make_model(0)
    tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(fit_samples=20), **STILL).train()
    rows = np.linspace(0, 59, 20).round().astype(int)
    some = in_closed_form(model, [texts["en"][i] for i in rows], [labels[i] for i in rows])
    torch.testing.assert_close(logits(model, texts["en"]), logits(some, texts["en"]), atol=1e-3, rtol=1e-3)


def test_a_streamed_training_set_gives_its_first_rows(make_model, dataset, tokenizer, texts, labels, tmp_path):
    rows = IterableDataset.from_generator(lambda: iter(dataset))
    model = make_model(0)
    tiny_trainer(model, tokenizer, rows, tmp_path, AnchorCallback(fit_samples=30), **STILL).train()
    some = in_closed_form(model, texts["en"][:30], labels[:30])
    torch.testing.assert_close(logits(model, texts["en"]), logits(some, texts["en"]), atol=1e-3, rtol=1e-3)


def test_a_decoder_that_was_loaded_fitted_or_trained_goes_on_from_where_it_is(
    make_model, dataset, tokenizer, texts, labels, tmp_path
):
    kept = make_model(0)
    kept.save_pretrained(tmp_path / "saved")
    loaded = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    fitted = in_closed_form(kept, texts["en"], [0, 1, 2] * 20)  # to labels that are not those of the training
    trained = make_model(0)
    tiny_trainer(trained, tokenizer, dataset, tmp_path, max_steps=1).train()  # without the callback
    for model in (loaded, fitted, trained):
        before = {name: tensor.clone() for name, tensor in model.decoder.named_parameters()}
        tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(), **STILL).train()
        assert all(torch.equal(before[name], tensor) for name, tensor in model.decoder.named_parameters())


def test_without_samples_it_starts_from_random_weights(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0)
    before = model.decoder.output.weight.clone()
    tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(fit_samples=0), **STILL).train()
    assert torch.equal(model.decoder.output.weight, before)
    with pytest.raises(ConfigurationError, match="fit_samples=-1 must be at least 0; 0 starts from random weights"):
        AnchorCallback(fit_samples=-1)


def test_the_training_sees_the_same_rows_and_random_numbers_as_without(make_model, dataset, tokenizer, tmp_path):
    seen = {}
    for samples in (0, 60):
        drawn = seen.setdefault(samples, [])

        class Rows(list):
            def __getitem__(self, row, drawn=drawn):
                numbers = random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002
                drawn.append((row, *numbers))
                return super().__getitem__(row)

        callback = AnchorCallback(fit_samples=samples)
        tiny_trainer(make_model(0), tokenizer, Rows(dataset), tmp_path, callback, max_steps=3).train()
    assert [row for row, *_ in seen[60][:60]] == list(range(60))
    assert seen[60][60:] == seen[0] and len(seen[0]) >= 24


def test_a_resumed_run_does_not_start_again(make_model, dataset, tokenizer, tmp_path):
    def run(model, **arguments):
        how = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
        trainer = tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(), **how)
        trainer.train(**arguments)
        return model

    through = run(make_model(0))
    resumed = run(make_model(1), resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, one), two in zip(through.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"num_labels": 1}, lambda label: float(label)),
        ({"problem_type": "multi_label_classification"}, lambda label: [float(label == i) for i in range(3)]),
        ({"problem_type": "regression"}, lambda label: [float(label == i) for i in range(3)]),
    ],
)
def test_numbers_and_several_labels_start_from_the_closed_form_too(
    make_model, dataset, tokenizer, texts, tmp_path, settings, label
):
    rows = [row | {"labels": label(row["labels"])} for row in dataset]
    names = {"id2label": None, "label2id": None} if "num_labels" in settings else {}
    losses = []
    for samples in (0, 60):
        model = make_model(0, **settings, **names)
        tiny_trainer(model, tokenizer, rows, tmp_path, AnchorCallback(fit_samples=samples), **STILL).train()
        told = torch.tensor([row["labels"] for row in rows])
        inputs = tokenizer(texts["en"], padding=True, return_tensors="pt")
        with torch.no_grad():
            losses.append(float(model.eval()(**inputs, labels=told).loss))
    assert losses[1] < 0.5 * losses[0]


def test_images_start_from_the_closed_form_too(tmp_path):
    greys = np.random.default_rng(0).integers(0, 256, 40)
    images = [Image.new("RGB", (16, 16), (int(grey),) * 3) for grey in greys]
    processor, view = image_processor(16), AnchorSet(map(str, range(12)), {"image": images[:12]}).view()
    conv = ConvEncoder(ConvEncoderConfig(image_size=16, widths=[8, 16]))
    model = RelativeModelForImageClassification.from_encoder(conv, view, processor, num_labels=2)
    pixels, is_bright = processor(images=images, return_tensors="pt")["pixel_values"], torch.tensor(greys > 128).long()
    rows = [{"pixel_values": pixel, "labels": label} for pixel, label in zip(pixels, is_bright, strict=True)]
    tiny_trainer(model, None, rows, tmp_path, AnchorCallback(), **STILL).train()
    assert (model.eval()(pixel_values=pixels).logits.argmax(1) == is_bright).float().mean() > 0.9


def test_where_nothing_can_be_fitted_it_says_why_and_trains(make_model, tokenizer, texts, tmp_path, caplog):
    rows = [dict(tokenizer(texts["en"][0])) | {"labels": i % 3} for i in range(10)]
    with caplog.at_level("WARNING", logger="hf_relreps"):
        tiny_trainer(make_model(0), tokenizer, rows, tmp_path, AnchorCallback(), **STILL).train()
    assert "The decoder starts from random weights. The 10 relative representations have a total" in caplog.text


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("fit_samples", [0, 2000])
def test_labels_that_are_no_classes_are_refused_before_the_training(
    make_model, dataset, tokenizer, tmp_path, column, fit_samples
):
    def train(labels, rows=Dataset.from_list, **settings):
        told = [{"input_ids": row["input_ids"], column: label} for row, label in zip(dataset, labels, strict=True)]
        callback = AnchorCallback(fit_samples=fit_samples)
        trainer = tiny_trainer(make_model(0, **settings), tokenizer, rows(told), tmp_path, callback, **STILL)
        trainer.train()
        return trainer.state.global_step

    with pytest.raises(LabelError, match=r"labels lie in 1 \.\.\. 3, expected 0 \.\.\. 2: 20 of 60 .* num_labels=4\."):
        train([1, 2, 3] * 20)
    with pytest.raises(LabelError, match=r"labels lie in -1 \.\.\. 2, .* 1 of 60 are no classes .* have -100\."):
        train([*[0, 1, 2] * 19, 0, 1, -1])
    if fit_samples:  # a list is not searched, but seen
        with pytest.raises(LabelError, match=r"labels lie in 1 \.\.\. 3"):
            train([1, 2, 3] * 20, rows=list)
    with pytest.raises(LabelError, match=r"has texts such as 'a', expected numbers .* dataset\.class_encode_column"):
        train(["a", "b", "c"] * 20)
    assert train([-100, 1, 2] * 20) == 1
    several = {"problem_type": "multi_label_classification"}
    assert train([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] * 20, **several) == 1
    assert train([7.5, 1.5, 3.5] * 20, id2label={0: "stars"}, label2id={"stars": 0}) == 1
    assert train([7, 1, 3] * 20, id2label={0: "stars"}, label2id={"stars": 0}) == 1


def test_labels_that_a_collator_or_a_transform_makes_are_left_to_these(
    make_model, dataset, tokenizer, texts, labels, tmp_path
):
    rows = Dataset.from_list([{"input_ids": row["input_ids"], "label": row["labels"] + 1} for row in dataset])

    def collate(items):
        labels = torch.tensor([item.pop("label") - 1 for item in items])
        return {**tokenizer.pad(items, return_tensors="pt"), "labels": labels}

    def count_from_0(batch):
        return {"input_ids": batch["input_ids"], "label": [label - 1 for label in batch["label"]]}

    for labelled, collator in ((rows, collate), (rows.with_transform(count_from_0), None)):
        model = make_model(0)
        trainer = tiny_trainer(model, tokenizer, labelled, tmp_path, AnchorCallback(), **STILL)
        trainer.data_collator = collator or trainer.data_collator
        trainer.train()
        assert trainer.state.global_step == 1
        expected_NC = logits(in_closed_form(model, texts["en"], labels), texts["en"])  # of the labels that they make
        torch.testing.assert_close(logits(model, texts["en"]), expected_NC, atol=1e-3, rtol=1e-3)


def test_tokens_with_labels_that_are_no_classes_are_refused_before_the_training(make_bert, tokenizer, texts, tmp_path):
    view = AnchorSet.from_tokens({"en": [text.split() for text in texts["en"]]}, k=20).view()
    model = RelativeModelForTokenClassification.from_encoder(make_bert(0), view, tokenizer, num_labels=2)
    rows = Dataset.from_list([{**tokenizer(text, return_token_type_ids=False)} for text in texts["en"]])

    def train(label):
        told = rows.map(lambda row: {"labels": [-100, *[label] * (len(row["input_ids"]) - 1)]})
        trainer = tiny_trainer(model, tokenizer, told, tmp_path, AnchorCallback(fit_samples=0), **STILL)
        trainer.data_collator = DataCollatorForTokenClassification(tokenizer)
        trainer.train()

    train(1)
    with pytest.raises(LabelError, match=r"labels lie in 2 \.\.\. 2, expected 0 \.\.\. 1"):
        train(2)


def test_names_of_classes_may_be_a_list_or_stand_in_label2id(make_bert, anchors, tokenizer):
    names, view = ["animal", "food", "vehicle"], anchors.view("en")
    for given in ({"id2label": names}, {"label2id": {name: number for number, name in enumerate(names)}}):
        model = RelativeModelForSequenceClassification.from_encoder(make_bert(0), view, tokenizer, **given)
        assert (model.config.num_labels, model.config.id2label) == (3, dict(enumerate(names)))


def test_a_loss_names_labels_that_are_no_classes(make_model, tokenizer, texts):
    inputs = tokenizer(texts["en"][:2], padding=True, return_tensors="pt")
    with pytest.raises(LabelError, match=r"labels lie in 0 \.\.\. 3, expected 0 \.\.\. 2: 1 of 2"):
        make_model(0)(**inputs, labels=torch.tensor([0, 3]))


def test_in_a_loop_of_ones_own_the_decoder_is_fitted_to_batches(make_model, tokenizer, texts, labels):
    model = make_model(0).train()
    batches = [
        {
            **tokenizer(texts["en"][start : start + 8], padding=True, return_tensors="pt"),
            "labels": torch.tensor(labels[start : start + 8]),
        }
        for start in range(0, 60, 8)
    ]
    model.fit_decoder(batches)
    assert model.training and not model.decoder.is_new
    assert (logits(model, texts["en"]).argmax(1) == torch.tensor(labels)).float().mean() > 0.9
    with pytest.raises(SampleError, match="A batch has input_ids, .*; expected labels as well"):
        model.fit_decoder([tokenizer(texts["en"][:2], padding=True, return_tensors="pt")])
    with pytest.raises(SampleError, match="No sample has a label"):
        model.fit_decoder([])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks by the old name
def test_peft_around_the_whole_starts_from_the_closed_form_too(
    make_model, dataset, tokenizer, texts, labels, tmp_path
):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["query"], modules_to_save=["projection", "decoder"])
    whole = make_model(0)
    expected_NC = logits(in_closed_form(whole, texts["en"], labels), texts["en"])
    model = get_peft_model(whole, lora)
    rows = Dataset.from_list(dataset)
    tiny_trainer(model, tokenizer, rows, tmp_path, AnchorCallback(), label_names=["labels"], **STILL).train()
    inputs = tokenizer(texts["en"], padding=True, return_tensors="pt")
    torch.testing.assert_close(model.eval()(**inputs).logits.detach(), expected_NC, atol=1e-3, rtol=1e-3)
