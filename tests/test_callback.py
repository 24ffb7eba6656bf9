"""`AnchorCallback`: when anchors are refreshed, with what, and that nothing else changes."""

import copy

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from training import tiny_trainer
from transformers import BertForSequenceClassification, EarlyStoppingCallback, TrainerCallback

from hf_relreps import AnchorCallback, AnchorSet, RelativeModel, RelativeModelForSequenceClassification
from hf_relreps.callback import parts_within_budget
from hf_relreps.errors import AnchorError, ConfigurationError


@pytest.fixture
def dataset(make_dataset):
    return make_dataset("en")


def own_encoding(encoder):
    """The anchors as the encoder gives them now: each text alone, through `forward`, which leaves the stored ones."""
    samples, processor = encoder.anchors.view(encoder.config.anchor_view).samples, encoder.processor
    encoder = encoder.clone().eval()  # reading them would refresh them
    with torch.no_grad():
        rows = [encoder(**processor([text], return_tensors="pt")).pooler_output[0] for text in samples]
    return torch.stack(rows)


def assert_anchors_are_its_own(encoder):
    torch.testing.assert_close(encoder.projection.anchors_AD, own_encoding(encoder), atol=1e-5, rtol=1e-5)


class AnchorsAfterEachStep(TrainerCallback):
    """After `AnchorCallback` in the list: the anchors, and how far they are from the encoder as it is then."""

    def __init__(self):
        self.anchors, self.gaps, self.at_evaluation = [], [], []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        anchors_AD = model.encoder.projection.anchors_AD
        self.anchors.append(anchors_AD.clone())
        self.gaps.append(float((anchors_AD - own_encoding(model.encoder)).abs().max()))

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        gap = (model.encoder.projection.anchors_AD - own_encoding(model.encoder)).abs().max()
        self.at_evaluation.append((state.global_step, float(gap)))


class StopAt(TrainerCallback):
    """Ends a training early that was planned to be longer."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


# -- the schedule


def test_anchors_are_refreshed_on_schedule_and_at_the_end(make_model, dataset, tokenizer, anchors, tmp_path):
    callback, after = AnchorCallback(anchors.view("en"), tokenizer, refresh_every=3), AnchorsAfterEachStep()
    tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, callback, after, max_steps=8).train()
    assert [step for step, _ in callback.drift_] == [3, 6, 8]
    changed = [not torch.equal(before, now) for before, now in zip(after.anchors, after.anchors[1:], strict=False)]
    assert changed == [False, True, False, False, True, False, False]  # from step to step: 1-2, 2-3, ...
    assert all((gap < 1e-5) == (step in (3, 6)) for step, gap in enumerate(after.gaps, start=1))


def test_drift_says_how_far_the_anchors_have_moved(make_model, dataset, tokenizer, tmp_path):
    callback, after = AnchorCallback(refresh_every=2), AnchorsAfterEachStep()
    model = make_model(0)
    first = model.encoder.projection.anchors_AD.clone()
    tiny_trainer(model, tokenizer, dataset, tmp_path, callback, after, max_steps=4).train()
    assert [step for step, _ in callback.drift_[:2]] == [2, 4]
    (_, at_two), (_, at_four) = callback.drift_[:2]
    for drift, old, new in ((at_two, first, after.anchors[1]), (at_four, after.anchors[1], after.anchors[3])):
        assert drift == pytest.approx(1 - float(torch.cosine_similarity(old, new).mean()), abs=1e-6)
        assert drift > 1e-4


def test_a_model_whose_anchors_are_stale_starts_with_fresh_ones(make_model, dataset, tokenizer, tmp_path):
    model, gaps = make_model(0), []

    class AtStart(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            gaps.append(float((model.encoder.projection.anchors_AD - own_encoding(model.encoder)).abs().max()))

    with torch.no_grad():
        model.encoder.get_input_embeddings().weight.mul_(2)
    assert (
        model.encoder.has_stale_anchors and (own_encoding(model.encoder) - model.encoder.projection.anchors_AD).any()
    )
    callback = AnchorCallback(refresh_every=100)
    tiny_trainer(model, tokenizer, dataset, tmp_path, callback, AtStart(), max_steps=2).train()
    assert gaps[0] < 1e-5 < gaps[1]
    assert_anchors_are_its_own(model.encoder)


def test_a_training_replaces_anchors_that_were_not_the_encoders_own(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0)
    model.encoder.projection.set_anchors(torch.randn(20, 32))
    callback = AnchorCallback(refresh_every=100)
    tiny_trainer(model, tokenizer, dataset, tmp_path, callback, max_steps=1, learning_rate=0.0).train()
    assert callback.drift_[0][1] > 0.5
    assert_anchors_are_its_own(model.encoder)


def test_without_the_callback_the_anchors_stay_until_they_are_read(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0)
    before = model.encoder.projection.anchors_AD.clone()
    tiny_trainer(model, tokenizer, dataset, tmp_path).train()
    assert torch.equal(model.encoder.projection.anchors_AD, before)
    model.eval()(**tokenizer(["small cat"], return_tensors="pt"))
    assert_anchors_are_its_own(model.encoder)


# -- a part at a time


def rows_that_changed(before_AD, after_AD):
    return set((before_AD != after_AD).any(-1).nonzero().flatten().tolist())


def test_each_part_is_refreshed_in_turn_until_all_anchors_have_been(make_model, dataset, tokenizer, tmp_path):
    callback, after = AnchorCallback(refresh_every=1, refresh_parts=4), AnchorsAfterEachStep()
    own = []

    class Own(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            own.append(own_encoding(model.encoder))

    model = make_model(0)
    before_AD = model.encoder.projection.anchors_AD.clone()
    tiny_trainer(model, tokenizer, dataset, tmp_path, callback, after, Own(), max_steps=9).train()
    turns = []
    for now_AD, own_AD in zip(after.anchors, own, strict=True):
        turns.append(rows_that_changed(before_AD, now_AD))
        rows = sorted(turns[-1])
        torch.testing.assert_close(now_AD[rows], own_AD[rows], atol=1e-5, rtol=1e-5)
        before_AD = now_AD
    assert [len(turn) for turn in turns] == [5] * 9
    assert set.union(*turns[:4]) == set(range(20))
    assert turns[4:8] == turns[:4]
    assert_anchors_are_its_own(model.encoder)


def test_by_default_a_part_of_the_anchors_is_refreshed_every_five_steps(make_model, dataset, tokenizer, tmp_path):
    after = AnchorsAfterEachStep()
    model = make_model(0)
    arguments = {"max_steps": 80, "per_device_train_batch_size": 4}
    tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(), after, StopAt(11), **arguments).train()
    changed = [rows_that_changed(*pair) for pair in zip(after.anchors, after.anchors[1:], strict=False)]
    assert [step for step, rows in enumerate(changed, start=2) if rows] == [5, 10]
    assert [len(changed[step - 2]) for step in (5, 10)] == [5, 5]  # a quarter of an anchor for each of 20 samples
    assert not changed[3] & changed[8]
    assert_anchors_are_its_own(model.encoder)


@pytest.mark.parametrize(("k", "samples", "parts"), [(768, 32, 20), (300, 32, 8), (20, 4096, 1), (100, 1, 100)])
def test_the_default_number_of_parts_keeps_to_a_quarter_of_an_anchor_for_each_sample(k, samples, parts):
    assert parts_within_budget(k, samples, 10_000) == parts
    assert -(-k // parts) <= max(1, 0.25 * 5 * samples)


@pytest.mark.parametrize(("steps", "parts"), [(1, 1), (38, 1), (188, 9), (1000, 15)])
def test_in_a_short_training_each_anchor_is_refreshed_four_times_all_the_same(steps, parts):
    assert parts_within_budget(300, 16, steps) == parts


def test_checkpoints_and_evaluations_find_all_anchors_exact_also_when_parts_are_refreshed(
    make_model, dataset, tokenizer, tmp_path
):
    after = AnchorsAfterEachStep()
    steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    callback = AnchorCallback(refresh_every=1, refresh_parts=3)
    tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, callback, after, eval_rows=dataset[:6], **steps).train()
    for step in (3, 6):
        assert_anchors_are_its_own(RelativeModel.from_pretrained(tmp_path / f"checkpoint-{step}"))
    assert [step for step, _ in after.at_evaluation] == [2, 4, 6]
    assert all(gap < 1e-5 for _, gap in after.at_evaluation)
    assert all(gap > 1e-5 for gap in after.gaps)  # between them the schedule refreshes one part


def test_more_parts_than_anchors_leave_turns_without_a_refresh(make_model, dataset, tokenizer, tmp_path):
    callback, after = AnchorCallback(refresh_every=1, refresh_parts=30), AnchorsAfterEachStep()
    tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, callback, after, max_steps=31).train()
    changed = [rows_that_changed(*pair) for pair in zip(after.anchors, after.anchors[1:], strict=False)]
    assert sorted(map(len, changed)) == [0] * 10 + [1] * 20
    assert set.union(*changed) == set(range(20))


# -- exact where they are read


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize("evaluates", [True, False])
def test_a_checkpoints_anchors_are_its_own_encoders(
    make_model, dataset, tokenizer, tmp_path, strategy, evaluates, ema
):
    after = AnchorsAfterEachStep()
    tiny_trainer(
        make_model(0),
        tokenizer,
        dataset[::2],  # four steps an epoch
        tmp_path,
        AnchorCallback(refresh_every=3, ema=ema),
        after,
        eval_rows=dataset[:6],
        max_steps=8,
        save_strategy=strategy,
        save_steps=2,
        eval_strategy=strategy if evaluates else "no",
        eval_steps=2,
    ).train()
    steps = [2, 4, 6, 8] if strategy == "steps" else [4, 8]
    assert sorted(int(path.name.removeprefix("checkpoint-")) for path in tmp_path.glob("checkpoint-*")) == steps
    encoders = [RelativeModel.from_pretrained(tmp_path / f"checkpoint-{step}") for step in steps]
    for encoder in encoders:
        assert_anchors_are_its_own(encoder)
    assert not torch.equal(encoders[0].projection.anchors_AD, encoders[1].projection.anchors_AD)
    assert [step for step, _ in after.at_evaluation] == (steps if evaluates else [])
    assert all(gap < 1e-5 for _, gap in after.at_evaluation)


BACK_TO_BEST = {
    **dict.fromkeys(("save_strategy", "eval_strategy"), "steps"),
    **dict.fromkeys(("save_steps", "eval_steps"), 2),
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,  # the first is best: so there is something to go back to
}


def test_the_best_checkpoint_is_loaded_with_its_anchors(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0)
    trainer = tiny_trainer(
        model,
        tokenizer,
        dataset,
        tmp_path,
        AnchorCallback(refresh_every=3),
        eval_rows=dataset[:8],
        max_steps=6,
        **BACK_TO_BEST,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert best.processor is not None  # loaded, so that the state dict can name its vocabulary
    for name, tensor in best.state_dict().items():
        if name != "encoder.projection.anchors_AD":
            assert torch.equal(model.state_dict()[name], tensor), name
    assert_anchors_are_its_own(best.encoder)
    assert_anchors_are_its_own(model.encoder)


def test_saving_only_what_is_best_saves_its_own_anchors(make_model, dataset, tokenizer, tmp_path):
    tiny_trainer(
        make_model(0),
        tokenizer,
        dataset,
        tmp_path,
        AnchorCallback(refresh_every=100),
        eval_rows=dataset[:8],
        max_steps=6,
        save_strategy="best",
        eval_strategy="steps",
        eval_steps=3,
        metric_for_best_model="eval_loss",
    ).train()
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        assert_anchors_are_its_own(RelativeModel.from_pretrained(checkpoint))


def test_a_run_that_stops_early_ends_with_exact_anchors(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0)
    trainer = tiny_trainer(
        model,
        tokenizer,
        dataset,
        tmp_path,
        AnchorCallback(refresh_every=100),
        EarlyStoppingCallback(1),
        eval_rows=dataset[:8],
        max_steps=50,
        **BACK_TO_BEST,
    )
    trainer.train()
    assert trainer.state.global_step < 50
    assert_anchors_are_its_own(model.encoder)


def test_the_trained_model_is_saved_with_its_own_anchors(make_model, dataset, tokenizer, tmp_path):
    trainer = tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=100), max_steps=5)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    assert_anchors_are_its_own(RelativeModel.from_pretrained(tmp_path / "final"))


# -- moving average


def test_scheduled_refreshes_blend_and_forced_ones_are_exact(make_model, dataset, tokenizer, tmp_path):
    callback, after = AnchorCallback(refresh_every=1, ema=0.75), AnchorsAfterEachStep()
    model = make_model(0)
    before = model.encoder.projection.anchors_AD.clone()
    encodings = []

    class Encodings(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            encodings.append(own_encoding(model.encoder))

    tiny_trainer(
        model,
        tokenizer,
        dataset,
        tmp_path,
        callback,
        after,
        Encodings(),
        eval_rows=dataset[:4],
        max_steps=5,
        eval_strategy="steps",
        eval_steps=3,
    ).train()
    for step in (1, 2, 3):
        before = 0.75 * before + 0.25 * encodings[step - 1]
        torch.testing.assert_close(after.anchors[step - 1], before, atol=1e-5, rtol=1e-5)
    assert [(step, gap < 1e-5) for step, gap in after.at_evaluation] == [(3, True), (5, True)]
    blended = 0.75 * encodings[2] + 0.25 * encodings[3]  # the evaluation has read them
    torch.testing.assert_close(after.anchors[3], blended, atol=1e-5, rtol=1e-5)
    assert_anchors_are_its_own(model.encoder)  # the end is exact again


# -- nothing else changes


def test_a_refresh_draws_no_random_numbers_and_keeps_every_modules_mode(
    make_model, dataset, tokenizer, anchors, tmp_path
):
    model = make_model(0).train()
    model.encoder.backbone.encoder.layer[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    callback = AnchorCallback(anchors.view("en"), tokenizer, refresh_every=1)
    trainer = tiny_trainer(model, tokenizer, dataset, tmp_path, callback)
    args, state, control = trainer.args, trainer.state, trainer.control
    callback.on_train_begin(args, state, control, model=model)
    state.global_step = 1
    model.encoder.projection.set_anchors(torch.randn(20, 32))
    generator = torch.get_rng_state()
    callback.on_step_end(args, state, control, model=model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [step for step, _ in callback.drift_] == [1]
    assert_anchors_are_its_own(model.encoder)


def test_refreshing_a_frozen_encoder_at_each_step_trains_the_same_decoder(make_model, dataset, tokenizer, tmp_path):
    trained = []
    for callbacks in ([], [AnchorCallback(refresh_every=1, fit_samples=0)]):
        model = make_model(0)
        model.encoder.requires_grad_(False)
        tiny_trainer(model, tokenizer, dataset, tmp_path, *callbacks).train()
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


# -- what it is built with


def test_without_arguments_it_finds_the_models_own_view_and_processor(make_model, dataset, tokenizer, tmp_path):
    model = make_model(0, view="fr")
    callback = AnchorCallback()
    tiny_trainer(model, None, [dict(row) for row in dataset[:1]] * 8, tmp_path, callback, max_steps=2).train()
    assert_anchors_are_its_own(model.encoder)
    assert model.config.anchor_view == "fr"


def test_after_a_load_it_finds_view_and_processor_in_the_upload(make_model, dataset, tokenizer, tmp_path):
    make_model(0).save_pretrained(tmp_path / "saved")
    model = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    tiny_trainer(model, tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=2)).train()
    assert_anchors_are_its_own(model.encoder)


def test_the_trainers_restored_callback_state_does_no_harm(make_model, dataset, tokenizer, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": True}
    tiny_trainer(
        make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(refresh_every=2), max_steps=3, **arguments
    ).train()
    model, callback = make_model(0), AnchorCallback(refresh_every=2)
    trainer = tiny_trainer(model, tokenizer, dataset, tmp_path, callback, max_steps=6, **arguments)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert callback in trainer.callback_handler.callbacks
    assert [step for step, _ in callback.drift_] == [4, 6]
    assert_anchors_are_its_own(RelativeModel.from_pretrained(tmp_path / "checkpoint-6"))


# -- what it refuses


@pytest.mark.parametrize(("arguments", "message"), [
    ({"refresh_every": 0}, "refresh_every=0 must be at least 1 step"),
    ({"refresh_parts": 0}, "refresh_parts=0 must be at least 1; 1 refreshes all anchors at once"),
    ({"ema": 1.0}, "ema=1.0 must be at least 0 and below 1; 0 replaces"),
    ({"ema": -0.1}, "ema=-0.1 must be at least 0"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        AnchorCallback(**arguments)


def test_anchors_that_the_model_was_not_built_on_are_refused(make_model, dataset, tokenizer, anchors, texts, tmp_path):
    others = AnchorSet(anchors.ids[::-1], {"en": texts["en"][::3][::-1]})
    trainer = tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(others.view("en"), tokenizer))
    with pytest.raises(AnchorError) as caught:
        trainer.train()
    message = str(caught.value)
    assert others.fingerprint[:16] in message and anchors.fingerprint[:16] in message
    assert "Use the same view for both" in message


def test_a_view_that_the_model_does_not_read_is_refused(make_model, dataset, tokenizer, anchors, tmp_path):
    trainer = tiny_trainer(make_model(0), tokenizer, dataset, tmp_path, AnchorCallback(anchors.view("fr"), tokenizer))
    with pytest.raises(
        AnchorError, match="AnchorCallback has view 'fr', the model reads view 'en' of the same anchors"
    ):
        trainer.train()


def test_a_model_without_a_relative_part_is_refused(make_bert, dataset, tokenizer, tmp_path):
    config = copy.deepcopy(make_bert(0).config)
    config.num_labels = 3
    trainer = tiny_trainer(BertForSequenceClassification(config), tokenizer, dataset, tmp_path, AnchorCallback())
    with pytest.raises(ConfigurationError, match="no RelativeModel inside the BertForSequenceClassification"):
        trainer.train()


def test_weights_that_zero_3_has_partitioned_are_refused(make_model):
    model = make_model()
    model.encoder.backbone.encoder.layer[0].output.dense.weight.ds_id = 7  # as DeepSpeed marks them
    with pytest.raises(ConfigurationError, match="DeepSpeed ZeRO-3 has partitioned the weights.*Train with FSDP2"):
        AnchorCallback().refresh(model)


def test_weights_of_tensor_parallel_training_are_refused(make_model, tmp_path):
    model = make_model()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        parallelize_module(model.encoder.backbone.encoder.layer[0].intermediate, mesh, {"dense": ColwiseParallel()})
        with pytest.raises(ConfigurationError, match="tensor parallelism has sharded the weights.*fsdp_version 2"):
            AnchorCallback().refresh(model)
        with pytest.raises(ConfigurationError, match="holds a share of the encoder's weights only, and cannot encode"):
            model.encoder.encode(["old horse"])
    finally:
        torch.distributed.destroy_process_group()
