"""A frozen encoder is referred to, not copied; an adapted one uploads its adapter."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertForMaskedLM, Trainer, TrainingArguments

from hf_relreps import (
    AnchorCallback,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForSequenceClassification,
    stitch,
)
from hf_relreps.errors import ConfigurationError, UploadError, UploadIntegrityError


# peft still asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
ANCHORS = {"encoder.projection.anchors_AD", "encoder._extra_state"}  # and what they mean
LORA = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query", "value"])


@pytest.fixture
def base_id(new_repo_id, make_bert, tokenizer):
    """An ordinary BERT with its tokenizer on the Hub."""
    name = new_repo_id()
    make_bert(7).push_to_hub(name)
    tokenizer.push_to_hub(name)
    return name


@pytest.fixture
def make_frozen(base_id, anchors):
    def make(**settings):
        return RelativeModelForSequenceClassification.from_encoder(
            base_id, anchors.view("en"), num_labels=3, freeze_encoder=True, **settings
        ).eval()

    return make


@pytest.fixture
def make_adapted(base_id, anchors, tokenizer):
    """A classifier on a BERT with LoRA in it, put there by peft or by transformers, with weights that do something."""

    def make(way="get_peft_model"):
        bert = AutoModel.from_pretrained(base_id)
        if way == "get_peft_model":
            bert = get_peft_model(bert, LORA)
        else:
            bert.add_adapter(LORA)
        model = RelativeModelForSequenceClassification.from_encoder(bert, anchors.view("en"), tokenizer, num_labels=3)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight)
        model.encoder.encode_anchors(anchors.view("en"), tokenizer)
        return model.eval()

    return make


@pytest.fixture
def inputs(tokenizer, texts):
    return tokenizer(texts["en"][:5], padding=True, return_tensors="pt")


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def loads_as(place, model, inputs):
    whole = AutoModelForSequenceClassification.from_pretrained(place)
    return torch.equal(logits(whole, inputs), logits(model, inputs))


def stored(folder, part="encoder"):
    return set(load_file(folder / part / "model.safetensors"))


def edit(folder, change):
    """Change what the configurations in a folder say of the encoder, wherever they say it."""
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text())
        of_encoder = config if config["model_type"] == "relreps_encoder" else config.get("encoder")
        if of_encoder is not None:
            change(of_encoder)
            file.write_text(json.dumps(config))


# -- frozen


@pytest.mark.any_hub
def test_an_upload_of_a_frozen_encoder_holds_only_its_anchors_and_pins_the_base(make_frozen, base_id, tmp_path):
    make_frozen().save_pretrained(tmp_path)

    assert stored(tmp_path) == ANCHORS
    config = json.loads((tmp_path / "config.json").read_text())["encoder"]
    assert config["encoder_is_frozen"] and config["base_model_name_or_path"] == base_id
    assert config["base_model_revision"] == HfApi().model_info(base_id).sha
    assert len(config["base_model_digest"]) == 64
    decoder = json.loads((tmp_path / "decoder" / "config.json").read_text())
    assert not {"encoder_is_frozen", "base_model_revision", "base_model_name_or_path"} & set(decoder)


@pytest.mark.any_hub
def test_it_loads_through_every_door_as_if_it_had_been_stored(make_frozen, repo_id, inputs):
    model = make_frozen()
    model.push_to_hub(repo_id)

    whole = AutoModelForSequenceClassification.from_pretrained(repo_id)

    assert torch.equal(logits(whole, inputs), logits(model, inputs))
    assert not whole.training and not any(p.requires_grad for p in whole.encoder.backbone.parameters())
    positions = whole.encoder.backbone.embeddings.position_ids
    assert positions.equal(torch.arange(64).unsqueeze(0))
    for door in (RelativeModel, AutoModel):
        encoder = door.from_pretrained(repo_id, subfolder="encoder")
        stitched = stitch(encoder, RelativeDecoder.from_pretrained(repo_id))
        assert torch.equal(logits(stitched, inputs), logits(model, inputs))


def test_a_decoder_of_a_frozen_upload_does_not_ask_for_the_base(hub, make_frozen, base_id, repo_id):
    make_frozen().push_to_hub(repo_id)
    hub.requests.clear()

    RelativeDecoder.from_pretrained(repo_id)

    assert not any(base_id in request.path for request in hub.requests)


def test_the_pinned_commit_stays_when_the_base_moves_on(hub, make_frozen, make_bert, base_id, repo_id, inputs):
    model = make_frozen()
    model.push_to_hub(repo_id)
    make_bert(8).push_to_hub(base_id)

    assert loads_as(repo_id, model, inputs)


def test_a_base_that_is_gone_is_a_clear_error_and_never_random(hub, make_frozen, base_id, repo_id, tmp_path):
    make_frozen().push_to_hub(repo_id)
    HfApi().delete_repo(base_id)

    with pytest.raises(
        UploadError, match=rf"references the encoder {base_id} at commit \w{{40}}, which cannot be read"
    ):
        RelativeModelForSequenceClassification.from_pretrained(repo_id, cache_dir=tmp_path)


def test_a_base_that_was_changed_is_refused_with_both_digests(hub, make_frozen, make_bert, base_id, tmp_path):
    make_frozen().save_pretrained(tmp_path)
    make_bert(8).push_to_hub(base_id)
    sha = HfApi().model_info(base_id).sha
    edit(tmp_path, lambda config: config.update(base_model_revision=sha))

    with pytest.raises(UploadIntegrityError, match=r"with weights of digest [0-9a-f]{64}, but found [0-9a-f]{64}"):
        RelativeModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", None])
def test_a_base_is_never_a_path(hub, make_frozen, tmp_path, name):
    make_frozen().save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config.update(base_model_name_or_path=name))

    with pytest.raises(UploadError, match="is not a valid repository name"):
        RelativeModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_frozen_upload_saves_as_one_again_and_trains_on_when_it_is_thawed(hub, make_frozen, repo_id, tmp_path):
    make_frozen().push_to_hub(repo_id)
    whole = AutoModelForSequenceClassification.from_pretrained(repo_id)
    whole.save_pretrained(tmp_path / "again")
    assert stored(tmp_path / "again") == ANCHORS

    whole.encoder.backbone.requires_grad_(True)
    whole.save_pretrained(tmp_path / "thawed")
    assert len(stored(tmp_path / "thawed")) > 30
    assert not json.loads((tmp_path / "thawed" / "config.json").read_text())["encoder"]["encoder_is_frozen"]


def test_an_encoder_that_was_trained_and_then_frozen_is_stored_whole(hub, make_frozen, tmp_path, inputs):
    model = make_frozen()
    with torch.no_grad():
        model.encoder.backbone.encoder.layer[0].output.dense.weight += 1

    model.save_pretrained(tmp_path)

    assert len(stored(tmp_path)) > 30
    assert loads_as(tmp_path, model, inputs)


def test_a_local_base_is_stored_whole(hub, make_bert, anchors, tokenizer, tmp_path, inputs):
    make_bert(7).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = RelativeModelForSequenceClassification.from_encoder(
        str(tmp_path / "base"), anchors.view("en"), num_labels=3, freeze_encoder=True
    ).eval()

    model.save_pretrained(tmp_path / "saved")

    assert len(stored(tmp_path / "saved")) > 30
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    pulled = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(pulled, inputs), logits(model, inputs))


def test_what_the_base_does_not_hold_is_not_left_out(hub, repo_id, make_bert, anchors, tokenizer, tmp_path, inputs):
    BertForMaskedLM(make_bert(7).config).push_to_hub(repo_id)  # it has no pooler
    model = RelativeModelForSequenceClassification.from_encoder(
        repo_id, anchors.view("en"), tokenizer, num_labels=3, freeze_encoder=True, pooling="pooler"
    ).eval()

    model.save_pretrained(tmp_path)

    assert loads_as(tmp_path, model, inputs)


def test_half_precision_refers_to_the_same_base(hub, make_frozen, repo_id):
    make_frozen().push_to_hub(repo_id)

    half = AutoModelForSequenceClassification.from_pretrained(repo_id, dtype=torch.bfloat16)

    assert half.encoder.backbone.dtype == torch.bfloat16
    assert half.encoder.projection.anchors_AD.dtype == torch.float32


def test_an_encoder_without_its_base_says_how_to_get_it(hub, make_frozen, tmp_path):
    model = make_frozen()
    model.save_pretrained(tmp_path)
    empty = RelativeModelForSequenceClassification(model.config)

    with pytest.raises(UploadError, match="Load the encoder with from_pretrained"):
        empty(torch.tensor([[1]]))
    with pytest.raises(UploadError, match="load it with from_pretrained before you save it"):
        empty.save_pretrained(tmp_path)


# -- adapters


@pytest.mark.any_hub
@pytest.mark.parametrize("way", ["get_peft_model", "add_adapter"])
def test_an_adapted_encoder_uploads_its_adapter_and_not_its_base(make_adapted, repo_id, tmp_path, inputs, way):
    model = make_adapted(way)
    model.push_to_hub(repo_id)

    files = HfApi().list_repo_files(repo_id)
    assert not any("adapter_config" in file for file in files)
    model.save_pretrained(tmp_path)
    names = stored(tmp_path) - ANCHORS
    assert names and all("lora_" in name for name in names)
    for place in (repo_id, tmp_path):
        whole = AutoModelForSequenceClassification.from_pretrained(place)
        assert torch.equal(logits(whole, inputs), logits(model, inputs))
        trainable = {name for name, p in whole.encoder.backbone.named_parameters() if p.requires_grad}
        assert trainable and all("lora_" in name for name in trainable)


@pytest.mark.any_hub
def test_an_adapted_encoder_alone_is_pushed_and_loaded(make_adapted, repo_id, inputs):
    model = make_adapted()
    model.encoder.push_to_hub(repo_id)

    encoder = RelativeModel.from_pretrained(repo_id)

    with torch.no_grad():
        assert torch.equal(encoder(**inputs).relative_embeds, model.encoder(**inputs).relative_embeds)


def test_an_adapter_on_a_base_without_a_name_is_stored_with_it(hub, make_bert, anchors, tokenizer, tmp_path, inputs):
    model = RelativeModelForSequenceClassification.from_encoder(
        get_peft_model(make_bert(7), LORA), anchors.view("en"), tokenizer, num_labels=3
    ).eval()

    model.save_pretrained(tmp_path)

    assert any("base_layer" in name for name in stored(tmp_path))
    assert loads_as(tmp_path, model, inputs)


def test_an_adapters_settings_cannot_import_or_load_anything(hub, make_adapted, tmp_path):
    make_adapted().save_pretrained(tmp_path)
    evil = {"megatron_config": {"a": 1}, "megatron_core": "evil_module", "init_lora_weights": "pissa"}
    edit(tmp_path, lambda config: [settings.update(evil) for settings in config["encoder_adapters"].values()])
    assert "evil_module" in (tmp_path / "config.json").read_text()

    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert whole.encoder.backbone.peft_config["default"].megatron_config is None

    for file in tmp_path.rglob("config.json"):
        file.write_text(file.read_text().replace('"LORA"', '"EVIL"'))
    with pytest.raises(UploadError, match="is of type 'EVIL', which peft"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_an_adapter_outside_of_layers_is_refused(hub, base_id, anchors, tokenizer):
    from peft import PromptTuningConfig

    prompted = get_peft_model(
        AutoModel.from_pretrained(base_id), PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)
    )
    with pytest.raises(ConfigurationError, match="learns prompts"):
        RelativeModel.from_encoder(prompted, anchors.view("en"), tokenizer)


@pytest.mark.parametrize("kind", ["frozen", "adapted"])
def test_training_goes_on_from_a_checkpoint_that_refers_to_its_base(
    hub, make_frozen, make_adapted, make_dataset, anchors, tokenizer, tmp_path, inputs, kind
):
    def trainer(folder):
        torch.manual_seed(0)
        args = TrainingArguments(
            str(tmp_path / folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=20,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        model = make_frozen() if kind == "frozen" else make_adapted()
        return Trainer(
            model,
            args,
            train_dataset=make_dataset("en"),
            processing_class=tokenizer,
            callbacks=[AnchorCallback(anchors.view("en"))],
        )

    whole_run = trainer("a")
    whole_run.train()
    resumed = trainer("b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))

    assert len(stored(tmp_path / "a" / "checkpoint-2")) < 20
    assert torch.allclose(logits(resumed.model.eval(), inputs), logits(whole_run.model.eval(), inputs), atol=1e-5)


def test_peft_around_a_whole_model_keeps_working(hub, make_model, make_dataset, repo_id, tmp_path, inputs):
    make_model(0).push_to_hub(repo_id)
    whole = AutoModelForSequenceClassification.from_pretrained(repo_id)
    config = LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query", "value"], modules_to_save=["projection", "decoder"]
    )
    wrapped = get_peft_model(whole, config)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    wrapped.save_pretrained(tmp_path)

    expected = logits(wrapped.eval(), inputs)
    again = AutoModelForSequenceClassification.from_pretrained(repo_id)
    assert torch.equal(logits(PeftModel.from_pretrained(again, tmp_path).eval(), inputs), expected)
    assert torch.allclose(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path), inputs), expected)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lora_alpha": {"x": 7}}, "has settings that peft .* cannot use"),
        ({"r": 16}, "adapter weights of other shapes"),
    ],
)
def test_settings_of_an_adapter_that_are_not_its_own_are_an_upload_error(make_adapted, tmp_path, fields, says):
    make_adapted().save_pretrained(tmp_path)
    edit(tmp_path, lambda of_encoder: of_encoder["encoder_adapters"]["default"].update(fields))
    with pytest.raises(UploadError, match=says):
        RelativeModel.from_pretrained(tmp_path)
