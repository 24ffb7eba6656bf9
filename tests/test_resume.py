"""Training resumed from a checkpoint ends where training without a break ends, bit for bit."""

import json

import pytest
import torch
from training import tiny_trainer

from hf_relreps import AnchorCallback, RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification


@pytest.fixture
def dataset(make_dataset):
    return make_dataset("en")


# Each pair of values of two settings once.
@pytest.mark.parametrize(("ema", "parts", "accumulation"), [(0.0, 1, 1), (0.0, 3, 2), (0.8, 1, 2), (0.8, 3, 1)])
def test_resumed_training_ends_in_the_same_weights_and_anchors(
    make_model, dataset, tokenizer, tmp_path, ema, parts, accumulation
):
    arguments = {
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 3,
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "linear",
    }

    def trainer():
        callback = AnchorCallback(refresh_every=2, refresh_parts=parts, ema=ema)
        return tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, callback, **arguments)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.model.encoder.projection.set_anchors(torch.randn(20, 32))  # all must come from the checkpoint
    with torch.no_grad():
        resumed.model.decoder.output.weight.zero_()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 7
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []


def test_resumed_training_over_epochs_ends_in_the_same_weights_and_anchors(make_model, dataset, tokenizer, tmp_path):
    arguments = {"max_steps": -1, "num_train_epochs": 3, "save_strategy": "epoch", "eval_strategy": "epoch"}

    def trainer():
        callback = AnchorCallback(refresh_every=5, ema=0.5)
        return tiny_trainer(
            make_model(0), tokenizer, dataset[::2], tmp_path, callback, eval_rows=dataset[:5], **arguments
        )

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert whole.state.log_history[-2]["eval_loss"] == resumed.state.log_history[-2]["eval_loss"]


def test_a_checkpoint_is_an_upload_with_all_its_doors(make_model, dataset, tokenizer, anchors, tmp_path):
    trainer = tiny_trainer(
        make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(), max_steps=2, save_strategy="steps", save_steps=2
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "model.safetensors.index.json",
        "encoder/config.json",
        "encoder/model.safetensors",
        "decoder/config.json",
        "decoder/model.safetensors",
        "anchors/anchors.parquet",
        "anchors/anchor_set.json",
        "tokenizer.json",
        "trainer_state.json",
    } <= files
    assert not [name for name in files if name.endswith(".safetensors") and "/" not in name]  # nothing twice
    places = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(places) == set(trainer.model.state_dict())
    whole = RelativeModelForSequenceClassification.from_pretrained(checkpoint)
    parts = RelativeModel.from_pretrained(checkpoint), RelativeDecoder.from_pretrained(checkpoint)
    for part, loaded in zip((whole.encoder, whole.decoder), parts, strict=True):
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in part.state_dict().items())
    assert whole.anchors.fingerprint == anchors.fingerprint
