"""Mistakes that would give wrong answers without a word: each is refused, repaired or warned of."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from training import tiny_trainer
from transformers import PreTrainedTokenizerFast

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeModel,
    RelativeModelForSequenceClassification,
    compatibility,
    stitch,
    stitching_matrix,
)
from hf_relreps.errors import AnchorError, ConfigurationError, SampleError, StaleAnchorsError, StitchingError
from hf_relreps.projection import CHECKED_ANCHORS, OWN_WITHIN


@pytest.fixture
def warned(caplog, monkeypatch):
    """Our warnings."""
    monkeypatch.setattr(logging.getLogger("hf_relreps"), "propagate", True)
    caplog.set_level(logging.WARNING, "hf_relreps")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("hf_relreps")]


@pytest.fixture
def shuffled_tokenizer(tokenizer):
    """As many tokens as the encoder's own tokenizer has, and every word is another."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special, rest = words[:4], words[4:]
    vocabulary = {word: i for i, word in enumerate([*special, *rest[::-1]])}
    other = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {name: getattr(tokenizer, name) for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    return PreTrainedTokenizerFast(tokenizer_object=other, model_max_length=64, **names)


def moved(model, weights):
    for weight in weights:
        weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return model


@torch.no_grad()
def trained_on(model):
    """The same model after training without `AnchorCallback`: its encoder moved, its anchors stayed."""
    return moved(model, model.encoder.backbone.parameters())


def changed_unseen(model):
    """The same model after a change that nobody can tell of: torch does not count what is done to `data`."""
    return moved(model, [weight.data for weight in model.encoder.backbone.parameters()])


# -- permuted anchors, another set


def test_permuted_anchors_are_refused(make_bert, make_model, anchors, tokenizer):
    order = np.random.default_rng(0).permutation(len(anchors))
    permuted = AnchorSet([anchors.ids[i] for i in order], {"en": [anchors.view("en").samples[i] for i in order]})
    encoder = RelativeModel.from_encoder(make_bert(1), permuted.view("en"), tokenizer)
    with pytest.raises(StitchingError, match="Both need the same anchors in the same order"):
        stitch(encoder, make_model(0))


def test_anchors_of_another_set_of_the_same_size_are_refused(make_bert, make_model, texts, anchors, tokenizer):
    others = AnchorSet([f"other-{i}" for i in range(20)], {"en": texts["en"][1::3]})
    assert len(others) == len(anchors)
    encoder = RelativeModel.from_encoder(make_bert(1), others.view("en"), tokenizer)
    with pytest.raises(
        StitchingError, match=f"uses 20 anchors {others.fingerprint[:16]}, but the decoder was trained"
    ):
        stitch(encoder, make_model(0))


def test_embeddings_of_anchors_in_another_order_are_found_out(make_model):
    model = make_model(0)
    model.encoder.projection.set_anchors(model.encoder.projection.anchors_AD.flip(0))
    with pytest.raises(StaleAnchorsError, match=r"8 of 8 differ, by up to [01]\.\d\d of their length"):
        stitch(model, make_model(1))


# -- stale anchors


def test_an_encoder_that_was_trained_on_after_its_anchors_were_encoded_gets_fresh_ones(make_model, tokenizer):
    sound, stale = make_model(0), trained_on(make_model(1))
    stitched = stitch(stale, sound)
    assert stitched.encoder.check_anchors() < OWN_WITHIN / 10
    stale.encoder.encode_anchors(stale.anchors.view("en"))
    inputs = tokenizer(["small cat"], return_tensors="pt")
    assert torch.equal(stitch(stale, sound)(**inputs).logits, stitched(**inputs).logits)


def test_an_encoder_whose_anchors_are_not_its_own_is_refused(make_model):
    sound, stale = make_model(0), changed_unseen(make_model(1))
    assert stitch(make_model(1), sound)
    with pytest.raises(StaleAnchorsError, match=r"encoded again, 8 of 8 differ.*train with AnchorCallback"):
        stitch(stale, sound)
    stale.encoder.encode_anchors(stale.anchors.view("en"))  # what the message says
    assert stitch(stale, sound)


@pytest.mark.parametrize("how", ["copy", "share"])
def test_encoders_that_came_from_another_learn_of_changes_too(make_model, how):
    encoder = make_model(0).encoder
    other = copy.deepcopy(encoder) if how == "copy" else encoder.share()
    assert not other.has_stale_anchors
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(2)
    assert other.has_stale_anchors and encoder.has_stale_anchors == (how == "share")
    assert other.check_anchors() < OWN_WITHIN / 10
    other.note_training()
    assert other.has_stale_anchors and encoder.has_stale_anchors == (how == "share")


def test_training_with_the_callback_and_without_it_is_sound(make_model, make_dataset, tokenizer, tmp_path):
    without, with_it = make_model(0), make_model(0)
    tiny_trainer(without, tokenizer, make_dataset(), tmp_path).train()
    tiny_trainer(with_it, tokenizer, make_dataset(), tmp_path, AnchorCallback()).train()
    assert without.encoder.has_stale_anchors and not with_it.encoder.has_stale_anchors
    for model in (without, with_it):
        assert model.encoder.check_anchors() < OWN_WITHIN / 10


def test_a_report_says_that_stored_anchors_are_not_the_encoders_own(make_model):
    report = compatibility(changed_unseen(make_model(1)), make_model(0))
    assert not report.fits and report.verdict == "does not fit: stored anchors"
    assert "encoded again, 8 of 8 differ" in str(report)
    for model in (make_model(1), trained_on(make_model(1))):
        report = compatibility(model, make_model(0))
        assert report.fits and "stored anchor embeddings" not in str(report)


def test_a_matrix_refuses_anchors_that_are_not_the_encoders_own(make_model, texts, labels):
    data = {"en": texts["en"], "label": labels}
    models = {"sound": make_model(0), "stale": changed_unseen(make_model(1))}
    with pytest.raises(StaleAnchorsError):
        stitching_matrix(models, models, data)
    assert stitching_matrix({"trained": trained_on(make_model(1))}, {"sound": make_model(0)}, data).scores


def test_a_save_warns_of_stale_anchors_and_of_none_else(make_model, warned, tmp_path):
    make_model(0).save_pretrained(tmp_path / "sound")
    trained_on(make_model(0)).save_pretrained(tmp_path / "trained")
    assert not warned()
    assert RelativeModel.from_pretrained(tmp_path / "trained").check_anchors() < OWN_WITHIN / 10
    changed_unseen(make_model(0)).save_pretrained(tmp_path / "stale")
    assert any("The saved anchor embeddings may not match the encoder" in message for message in warned())


def test_a_check_encodes_a_few_anchors_and_changes_nothing(make_model):
    model = make_model(0).train()
    before, seen = copy.deepcopy(model.state_dict()), []
    hook = model.encoder.backbone.register_forward_hook(lambda m, a, out: seen.append(len(out.last_hidden_state)))
    distance = model.encoder.check_anchors()
    hook.remove()
    assert sum(seen) == CHECKED_ANCHORS and distance < 1e-5
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rounding_is_not_taken_for_stale_anchors(make_model, dtype):
    model = make_model(0).to(dtype)
    assert model.encoder.check_anchors() < 0.05
    with pytest.raises(StaleAnchorsError):
        changed_unseen(model).encoder.check_anchors()


def test_a_part_without_its_samples_is_stitched_with_a_warning(make_model, warned):
    encoder = make_model(0).encoder
    encoder._anchors = encoder._source = None
    assert stitch(encoder, make_model(1))
    assert any("Could not check" in message for message in warned())


# -- a view, a tokenizer, a pooling that is not the encoder's


def test_a_swapped_view_is_refused_by_its_name_and_found_out_without_it(
    make_model, make_dataset, anchors, tokenizer, tmp_path
):
    model = make_model(0, "en")
    with pytest.raises(AnchorError, match="view 'fr', the model reads view 'en'"):
        tiny_trainer(model, tokenizer, make_dataset(), tmp_path, AnchorCallback(anchors.view("fr"))).train()
    with pytest.raises(StitchingError, match="reads view 'en' of its anchors, but view='fr' was given"):
        stitch(model, make_model(1), view="fr")
    french_AD = model.encoder.encode(anchors.view("fr").samples)
    model.encoder.projection.set_anchors(french_AD)  # the French texts through the English encoder
    with pytest.raises(StaleAnchorsError, match="pooling or view 'en' has changed"):
        stitch(model, make_model(1))


def test_a_tokenizer_of_the_same_size_with_other_tokens_is_found_out(make_model, shuffled_tokenizer, tokenizer):
    model = make_model(0)
    assert len(shuffled_tokenizer) == len(tokenizer)
    assert model.encoder.check_anchors(tokenizer) < OWN_WITHIN
    with pytest.raises(StaleAnchorsError, match="8 of 8 differ"):
        model.encoder.check_anchors(shuffled_tokenizer)
    model.encoder._processor = shuffled_tokenizer
    with pytest.raises(StaleAnchorsError):
        stitch(model, make_model(1))


@pytest.mark.parametrize("when", ["wrapped", "used"])
def test_a_tokenizer_with_more_tokens_than_the_encoder_has_is_refused(make_bert, anchors, tokenizer, when):
    words = 10  # of the encoder
    with pytest.raises(
        SampleError,
        match=r"returned token id \d+, but the encoder has embeddings for (10|35) tokens\. Use the encoder's own",
    ):
        if when == "wrapped":
            RelativeModel.from_encoder(make_bert(0, vocab_size=words), anchors.view("en"), tokenizer)
        else:
            model = RelativeModel.from_encoder(make_bert(0, vocab_size=len(tokenizer)), anchors.view("en"), tokenizer)
            bigger = copy.deepcopy(tokenizer)
            bigger.add_tokens(["newword"])
            assert len(tokenizer) == model.get_input_embeddings().num_embeddings
            model.resize_token_embeddings(35)
            model.encode(["newword"], bigger)


def test_another_pooling_is_found_out(make_model):
    model = make_model(0)
    assert model.config.encoder.pooling == "mean"
    model.config.encoder.pooling = "cls"
    with pytest.raises(StaleAnchorsError, match="pooling"):
        stitch(model, make_model(1))


def test_another_similarity_is_refused(make_model):
    with pytest.raises(StitchingError, match=r"similarity 'cosine' instead of 'rbf'.*use_projection"):
        stitch(make_model(1, similarity="cosine", basis_ridge=None), make_model(0))


# -- labels in another order


def test_labels_of_a_stitched_model_are_the_decoders_in_the_decoders_order(make_model, texts, tokenizer):
    kinds = ["vehicle", "animal", "food"]
    names = {"id2label": dict(enumerate(kinds)), "label2id": {kind: i for i, kind in enumerate(kinds)}}
    encoder, decoder = make_model(1), make_model(0, **names)
    model = stitch(encoder, decoder)
    assert model.config.id2label == dict(enumerate(kinds)) != encoder.config.id2label
    inputs = tokenizer(texts["en"][:5], return_tensors="pt", padding=True)
    expected = decoder.decoder(encoder.encoder(**inputs).relative_embeds).logits
    assert torch.equal(model(**inputs).logits, expected)


def test_weights_for_labels_in_another_order_are_refused(make_model):
    plain, other = make_model(0), make_model(0, id2label={0: "vehicle", 1: "animal", 2: "food"})
    with pytest.raises(
        ConfigurationError, match=r"weights of the decoder .* classes \['animal'.* and \['vehicle'.* here"
    ):
        other.decoder.load_state_dict(plain.decoder.state_dict())


def test_a_matrix_reads_labels_by_name_whatever_their_order(make_model, texts, labels):
    from datasets import ClassLabel, Dataset

    kinds, turned = ["animal", "food", "vehicle"], ["vehicle", "animal", "food"]
    names = {"id2label": dict(enumerate(turned)), "label2id": {kind: i for i, kind in enumerate(turned)}}
    plain, other = make_model(0), make_model(0, **names)
    with torch.no_grad():  # the same answers, numbered in another order
        for own, same in zip(other.decoder.parameters(), plain.decoder.parameters(), strict=True):
            own.copy_(same)
        order = [kinds.index(kind) for kind in turned]
        other.decoder.output.weight.copy_(plain.decoder.output.weight[order])
        other.decoder.output.bias.copy_(plain.decoder.output.bias[order])
    data = Dataset.from_dict({"en": texts["en"], "label": labels}).cast_column("label", ClassLabel(names=kinds))
    matrix = stitching_matrix({"e": plain}, {"plain": plain, "other": other}, data)
    assert matrix.scores[0][0] == matrix.scores[0][1]


# -- dropout left on


def test_loaded_and_stitched_models_are_in_evaluation_mode(make_model, tmp_path):
    model = make_model(0).train()
    model.save_pretrained(tmp_path)
    assert not RelativeModelForSequenceClassification.from_pretrained(tmp_path).training
    assert not stitch(model, make_model(1).train()).training


def test_new_models_are_in_evaluation_mode_as_loaded_ones_are(make_bert, anchors, tokenizer, texts):
    view, bert = anchors.view("en"), make_bert(0, hidden_dropout_prob=0.5).train()
    encoder = RelativeModel.from_encoder(bert, view, tokenizer)
    model = RelativeModelForSequenceClassification.from_encoder(bert, view, tokenizer, num_labels=3)
    headed = RelativeModelForSequenceClassification.from_encoder(encoder.train(), num_labels=3)
    inputs = tokenizer(texts["en"][:2], return_tensors="pt", padding=True)
    for new in (model, headed):
        assert not any(part.training for part in new.modules())
        assert torch.equal(new(**inputs).logits, new(**inputs).logits)
    assert encoder.training  # the new model has a mode of its own


@pytest.mark.parametrize("part", ["whole", "encoder", "decoder"])
def test_predicting_in_training_mode_is_warned_of(make_model, texts, tokenizer, warned, part):
    logging.getLogger("hf_relreps").warning_once.cache_clear()
    model = make_model(0)
    inputs = tokenizer(texts["en"][:2], return_tensors="pt", padding=True)

    def predict():
        if part == "decoder":
            model.decoder(torch.randn(2, 20))
        else:
            (model if part == "whole" else model.encoder)(**inputs)

    predict()
    with torch.no_grad():
        predict()
    model.train()
    predict()  # with gradients: training
    assert not warned()
    with torch.no_grad():
        predict()
    assert any("predicts in training mode" in message and "model.eval()" in message for message in warned())


def test_encoding_and_checking_turn_dropout_off_by_themselves(make_model, texts):
    model = make_model(0)
    calm_ND = model.encoder.encode(texts["en"][:5])
    assert torch.equal(model.train().encoder.encode(texts["en"][:5]), calm_ND)


# -- samples in other containers, labels that do not count, numbers that are too small


def test_a_column_of_pandas_is_read_in_its_order_not_by_its_index(make_model, texts):
    pandas = pytest.importorskip("pandas")
    encoder = make_model(0).encoder
    column = pandas.Series(texts["en"][:6], index=[5, 4, 3, 2, 1, 0])  # as after a sort
    expected_ND = encoder.encode(texts["en"][:6])
    assert torch.equal(encoder.encode(column), expected_ND)
    assert torch.equal(encoder.encode(column[column.index > 1]), encoder.encode(texts["en"][:4]))
    assert torch.equal(encoder.encode(text for text in texts["en"][:6]), expected_ND)
    anchors = AnchorSet(column.index.map(str), {"en": column})
    assert anchors.view("en").samples == texts["en"][:6]


@pytest.mark.parametrize("samples", [{"text": ["a", "b"]}, None, 7])
def test_what_holds_no_samples_in_an_order_is_refused(make_model, samples):
    with pytest.raises(SampleError, match=r"samples is .*, expected a list of samples"):
        make_model(0).encoder.encode(samples)


def test_a_batch_without_labels_that_count_leaves_the_weights_as_they_are(make_model, texts, tokenizer, warned):
    logging.getLogger("hf_relreps").warning_once.cache_clear()
    model = make_model(0).train()
    inputs = tokenizer(texts["en"][:4], return_tensors="pt", padding=True)
    model(**inputs, labels=torch.tensor([0, -100, -100, 1])).loss.backward()
    assert not warned()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.zero_grad()
    before = [weight.detach().clone() for weight in model.parameters()]
    loss = model(**inputs, labels=torch.full((4,), -100)).loss
    loss.backward()
    optimizer.step()
    assert float(loss.detach()) == 0
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert any("No label of a batch counts: all 4 are -100" in message for message in warned())
