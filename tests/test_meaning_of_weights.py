"""What gives weights their meaning is checked wherever weights, settings or inputs come from outside."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_relreps import (
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForAudioClassification,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
    compatibility,
    stitch,
)
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import ConfigurationError, RelrepsError


# -- a checkpoint of other settings


def trainer(model: Any, rows: Any, tokenizer: Any, folder: Path, **arguments: Any) -> Trainer:
    how = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True}
    args = TrainingArguments(str(folder), disable_tqdm=True, **how | arguments)
    return Trainer(model, args, train_dataset=rows, processing_class=tokenizer)


CHANGES: dict[str, dict[str, Any]] = {
    "pooling": {"pooling": "cls"},
    "layer": {"layer": -2},
    "space.similarity": {"similarity": "cosine", "basis_ridge": None},
    "space.transform": {"transform": "none"},
    "space.rbf_gamma": {"rbf_gamma": 2.0},
    "max_length": {"max_length": 16},
    "classes": {
        "id2label": {0: "food", 1: "animal", 2: "vehicle"},
        "label2id": {"food": 0, "animal": 1, "vehicle": 2},
    },
    "decoder_type": {"decoder_type": "linear"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_does_not_go_on_from_a_checkpoint_of_other_settings(name, make_model, make_dataset, tokenizer, tmp_path):
    trainer(make_model(), make_dataset(), tokenizer, tmp_path).train()
    other = make_model(**CHANGES[name])
    with pytest.raises(ConfigurationError, match=re.escape(name)) as caught:
        trainer(other, make_dataset(), tokenizer, tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert " there and " in str(caught.value)


@pytest.mark.parametrize("change", ["other anchors", "other order", "other samples", "other view"])
def test_a_run_does_not_go_on_from_a_checkpoint_of_other_anchors(
    change, make_bert, make_model, make_dataset, anchors, texts, tokenizer, tmp_path
):
    trainer(make_model(), make_dataset(), tokenizer, tmp_path).train()
    samples, ids = anchors.view("en").samples, anchors.ids
    view = {
        "other anchors": AnchorSet([f"other-{i}" for i in range(20)], {"en": texts["en"][1::3]}).view("en"),
        "other order": AnchorSet(ids[::-1], {"en": samples[::-1]}).view("en"),
        "other samples": AnchorSet(ids, {"en": texts["en"][1::3]}).view("en"),
        "other view": anchors.view("fr"),
    }[change]
    labels = {"id2label": dict(enumerate(["animal", "food", "vehicle"]))}
    labels["label2id"] = {name: i for i, name in labels["id2label"].items()}
    other = RelativeModelForSequenceClassification.from_encoder(make_bert(), view, tokenizer, **labels)
    with pytest.raises(ConfigurationError, match="fingerprint|anchor_digest"):
        trainer(other, make_dataset(), tokenizer, tmp_path, max_steps=3).train(resume_from_checkpoint=True)


def test_a_run_does_not_go_on_with_another_architecture_of_the_same_shapes(
    make_bert, anchors, make_dataset, tokenizer, tmp_path
):
    def model(**config: Any) -> Any:
        return RelativeModelForSequenceClassification.from_encoder(
            make_bert(**config), anchors.view("en"), tokenizer, num_labels=3
        )

    trainer(model(), make_dataset(), tokenizer, tmp_path).train()
    with pytest.raises(ConfigurationError, match="encoder_config.num_attention_heads 2 there and 4 here"):
        other = model(num_attention_heads=4)
        trainer(other, make_dataset(), tokenizer, tmp_path, max_steps=3).train(resume_from_checkpoint=True)


def test_the_same_settings_go_on_without_a_word(make_model, make_dataset, tokenizer, tmp_path, caplog):
    trainer(make_model(), make_dataset(), tokenizer, tmp_path).train()
    model = make_model(decoder_dropout=0.3, decoder_noise=0.1)  # how a training goes on is its own affair
    run = trainer(model, make_dataset(), tokenizer, tmp_path, max_steps=3)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 3
    assert "settings" not in caplog.text


# -- an upload opened by another class, or with other classes


def test_another_number_of_classes_is_refused_with_the_way_to_a_new_decoder(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    for auto_class in (AutoModelForSequenceClassification, RelativeModelForSequenceClassification):
        with pytest.raises(ConfigurationError, match="has 3 classes, but num_labels=11") as caught:
            auto_class.from_pretrained(tmp_path, num_labels=11)
        assert "from_encoder(RelativeModel.from_pretrained(" in str(caught.value)
    encoder = RelativeModel.from_pretrained(tmp_path)
    assert RelativeModelForSequenceClassification.from_encoder(encoder, num_labels=11).config.num_labels == 11
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).config.num_labels == 3


def test_classes_are_renamed_by_a_load_but_not_exchanged(make_model, texts, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "saved")
    others = {0: "Tier", 1: "Essen", 2: "Fahrzeug"}
    expected = [
        {"animal": "Tier", "food": "Essen", "vehicle": "Fahrzeug"}[one["label"]] for one in model.classify(texts["en"])
    ]
    for a_class in (AutoModelForSequenceClassification, RelativeModelForSequenceClassification):
        renamed = a_class.from_pretrained(tmp_path / "saved", id2label=others)
        assert [one["label"] for one in renamed.classify(texts["en"])] == expected
        assert renamed.config.id2label == others and renamed.config.label2id["Essen"] == 1
        renamed.save_pretrained(tmp_path / "renamed")
        again = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "renamed")
        assert again.config.id2label == others
        with pytest.raises(
            ConfigurationError, match="has the classes animal, food, vehicle in this order, but id2label="
        ):
            a_class.from_pretrained(tmp_path / "saved", id2label={0: "food", 1: "animal", 2: "vehicle"})
    assert RelativeDecoder.from_pretrained(tmp_path / "saved", id2label=others).config.id2label == others


@pytest.mark.parametrize(
    ("a_class", "settings", "message"),
    [
        (
            RelativeModel,
            {"pooling": "cls"},
            r"other settings than the encoder of .* has\. .*: pooling mean there and cls",
        ),
        (RelativeModelForSequenceClassification, {"pooling": "cls"}, r"from_pretrained knows no 'pooling'\. A loaded"),
        (RelativeModelForSequenceClassification, {"similarity": "rbf"}, r"knows no 'similarity'\. .*use_projection"),
    ],
)
def test_what_the_caller_asks_for_is_not_blamed_on_the_upload(make_model, tmp_path, a_class, settings, message):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        a_class.from_pretrained(tmp_path, **settings)


@pytest.mark.parametrize("other", [RelativeModelForImageClassification, RelativeModelForAudioClassification])
def test_an_upload_of_texts_is_refused_by_classes_of_other_modalities(other, make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=f"{other.__name__} reads .*, but this encoder reads texts"):
        other.from_pretrained(tmp_path)


def test_an_upload_of_images_is_refused_by_the_class_for_texts(images, tmp_path):
    view = AnchorSet([f"image-{i}" for i in range(8)], {"image": images}).view()
    conv = ConvEncoder(ConvEncoderConfig(image_size=16, widths=[8, 16]))
    model = RelativeModelForImageClassification.from_encoder(conv, view, image_processor(16), num_labels=2)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="reads texts, but this encoder reads images"):
        RelativeModelForSequenceClassification.from_pretrained(tmp_path)


# -- what could not be loaded again


def test_an_encoder_whose_code_came_with_it_is_refused_at_once(make_bert, anchors, tokenizer):
    module = ModuleType("transformers_modules.somebody.modeling_own")
    code = "from transformers import BertModel\n\n\nclass OwnModel(BertModel):\n    pass\n"
    exec(code, module.__dict__)
    module.OwnModel.__module__ = module.__name__  # where transformers puts code that came with a model
    own = module.OwnModel(make_bert().config)
    assert isinstance(own, BertModel)
    with pytest.raises(ConfigurationError, match="trust_remote_code=True.* could not be loaded"):
        RelativeModel.from_encoder(own, anchors.view("en"), tokenizer)


@pytest.mark.parametrize(
    "keywords",
    [
        {"variant": "fp16"},
        {"safe_serialization": False},
        {"distributed_checkpoint": True},
        {"save_function": torch.save},
        {"max_shards": 3},
    ],
)
def test_a_keyword_that_would_spoil_an_upload_is_refused_before_anything_is_touched(keywords, make_model, tmp_path):
    make_model(0).save_pretrained(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ConfigurationError, match=next(iter(keywords))):
        make_model(1).save_pretrained(tmp_path, **keywords)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "keywords",
    [{"max_shard_size": "20KB"}, {"save_peft_format": False}, {"variant": None}, {"save_original_format": False}],
)
def test_a_keyword_that_an_upload_can_hold_works_over_an_earlier_save(keywords, make_model, tmp_path):
    make_model(0).save_pretrained(tmp_path)
    model = make_model(1)
    model.save_pretrained(tmp_path, **keywords)
    again = RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


# -- things that are no model


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (nn.DataParallel, "model.module"),
        (torch.compile, "_orig_mod"),
        (lambda model: pipeline("text-classification", model=model, tokenizer=model.processor), "pipeline.model"),
        (lambda model: None, "None"),
        (lambda model: 3, "int"),
    ],
)
def test_what_stands_in_the_place_of_a_model_is_named_with_what_to_pass(wrap, remedy, make_model):
    model = make_model()
    thing = wrap(model)
    for call in (lambda: stitch(thing, model), lambda: stitch(model, thing), lambda: compatibility(thing, model)):
        with pytest.raises(RelrepsError) as caught:
            call()
        assert remedy in str(caught.value)
        assert "Repo id" not in str(caught.value)


# -- inputs


class PatchReader:
    """A processor for Siglip2: patches of 4 x 4 pixels, a mask of those that are there, and the shape of the image."""

    def __call__(self, images: Any, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        rows = [self.read(image) for image in images]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    @staticmethod
    def read(image: Any) -> dict[str, torch.Tensor]:
        width, height = image.size[0] // 4, image.size[1] // 4
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype="float32") / 255)
        patches = pixels.unfold(0, 4, 4).unfold(1, 4, 4).reshape(width * height, 48)
        padded = nn.functional.pad(patches, (0, 0, 0, 16 - len(patches)), value=9.0)  # what the mask must leave out
        mask = (torch.arange(16) < len(patches)).long()
        return {"pixel_values": padded, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([height, width])}

    def save_pretrained(self, folder: Any) -> None:
        """Nothing."""


@pytest.fixture
def siglip2(images):
    config = Siglip2VisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=4, num_patches=16
    )
    views = [image.crop((0, 0, 16, 8 if i % 2 else 16)) for i, image in enumerate(images)]
    view = AnchorSet([f"image-{i}" for i in range(8)], {"image": views}).view()
    torch.manual_seed(0)
    model = Siglip2VisionModel(config)
    return RelativeModelForImageClassification.from_encoder(model, view, PatchReader(), num_labels=2), views


def test_inputs_that_only_the_wrapped_model_knows_reach_it(siglip2):
    model, views = siglip2
    inputs = PatchReader()(views)
    with torch.no_grad():
        encoded = model.eval().encoder(**inputs)
        together = model(**inputs).logits
        alone = torch.cat([model(**PatchReader()([view])).logits for view in views])
    assert torch.allclose(encoded.pooler_output, model.encoder.projection.anchors_AD, atol=1e-5)
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_trainer_keeps_the_columns_that_only_the_wrapped_model_knows(siglip2, tmp_path):
    model, views = siglip2
    rows = [PatchReader.read(view) | {"labels": i % 2} for i, view in enumerate(views)]
    seen: list[set[str]] = []
    model.encoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    how = {"max_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    Trainer(model, TrainingArguments(str(tmp_path), **how), train_dataset=rows).train()
    assert {"pixel_attention_mask", "spatial_shapes"} <= {name for names in seen for name in names}


def test_every_input_that_transformers_processors_make_is_named_for_the_trainer():
    folder = Path(transformers.__file__).parent / "models"
    listed = re.compile(r"model_input_names = \[([^\]]*)\]")
    made = {
        name.strip(" \n\"'")
        for file in folder.rglob("*.py")
        for names in listed.findall(file.read_text("utf-8"))
        for name in names.split(",")
    }
    tasks = (
        RelativeModelForSequenceClassification,
        RelativeModelForImageClassification,
        RelativeModelForAudioClassification,
    )
    named = {name for task in tasks for name in inspect.signature(task.forward).parameters}
    not_ours = {"", "token_ids", "task_inputs", "num_frames_per_video", "num_chunks_per_video"}
    assert {name for name in made - named - not_ours if "video" not in name} == set()


def test_an_input_that_nobody_knows_is_refused_by_name(make_model, tokenizer, texts):
    with pytest.raises(TypeError, match="BertModel takes no pixel_valuez"):
        make_model()(**tokenizer(texts["en"][0], return_tensors="pt"), pixel_valuez=torch.zeros(1))


@pytest.fixture
def gpt2(anchors, tokenizer):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    return RelativeModel.from_encoder(GPT2Model(GPT2Config(**sizes)), anchors.view("en"), tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_without_a_mask_are_not_read_as_padding(side, gpt2, tokenizer):
    texts = ["red dog here", "small old red good cat here there"]
    tokens = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
    assert gpt2.config.pooling == "last"
    with torch.no_grad():
        expected = gpt2.eval()(**tokens).pooler_output
        found = gpt2(input_ids=tokens["input_ids"]).pooler_output
    assert torch.allclose(found, expected, atol=1e-6)


def test_what_weights_mean_is_the_same_through_every_door(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    parts = RelativeModel.from_pretrained(tmp_path), RelativeDecoder.from_pretrained(tmp_path)
    assert isinstance(again.config, RelativeConfig)
    for encoder in (again.encoder, parts[0]):
        assert encoder.describe_weights() == model.encoder.describe_weights()
    for decoder in (again.decoder, parts[1]):
        assert decoder.describe_weights() == model.decoder.describe_weights()
