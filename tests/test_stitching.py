"""`stitch` and `compatibility`: what fits gives the right logits, what does not is refused in words that mend it."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from training import tiny_trainer
from transformers import pipeline

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeConfig,
    RelativeModel,
    RelativeModelForSequenceClassification,
    compatibility,
    stitch,
)
from hf_relreps.errors import AnchorError, EvaluationError, StitchingError, UploadError


def logits_of(model, tokenizer, texts):
    with torch.no_grad():
        return model(**tokenizer(texts, return_tensors="pt", padding=True)).logits


def frozen(model):
    """Everything about a model that a stitch must not change."""
    return copy.deepcopy(model.config.to_dict()), {name: t.clone() for name, t in model.state_dict().items()}


def assert_unchanged(model, before):
    config, weights = before
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def english(make_model):
    return make_model(0, view="en")


@pytest.fixture
def french(make_model):
    names = {"id2label": {0: "animal", 1: "nourriture", 2: "transport"}}
    names["label2id"] = {name: i for i, name in names["id2label"].items()}
    return make_model(1, view="fr", **names)


def saved(model, folder):
    model.save_pretrained(folder)
    return str(folder)


# -- what fits


@pytest.mark.parametrize("form", ["parts", "wholes", "folders", "parts' folders"])
def test_a_models_own_stitch_gives_its_own_logits_bit_for_bit(english, tokenizer, texts, tmp_path, form):
    pairs = {
        "parts": (english.encoder, english.decoder),
        "wholes": (english, english),
        "folders": (saved(english, tmp_path / "whole"),) * 2,
        "parts' folders": (saved(english.encoder, tmp_path / "e"), saved(english.decoder, tmp_path / "d")),
    }
    stitched = stitch(*pairs[form])
    assert torch.equal(logits_of(stitched, tokenizer, texts["en"]), logits_of(english, tokenizer, texts["en"]))


@pytest.mark.parametrize("form", ["parts", "wholes", "folders"])
def test_an_encoder_and_a_decoder_of_two_uploads_become_one_model(english, french, tokenizer, texts, tmp_path, form):
    pairs = {
        "parts": (french.encoder, english.decoder),
        "wholes": (french, english),
        "folders": (saved(french, tmp_path / "fr"), saved(english, tmp_path / "en")),
    }
    stitched = stitch(*pairs[form])
    assert isinstance(stitched, RelativeModelForSequenceClassification)
    with torch.no_grad():
        inputs = tokenizer(texts["fr"], return_tensors="pt", padding=True)
        expected = english.decoder(french.encoder(**inputs).relative_embeds).logits
    assert torch.equal(logits_of(stitched, tokenizer, texts["fr"]), expected)
    assert stitched.config.anchor_view == "fr"
    assert stitched.config.id2label == english.config.id2label and stitched.config.label2id == english.config.label2id


def test_a_stitched_model_is_in_evaluation_mode(english, french):
    stitched = stitch(french.train(), english.train())
    assert not any(module.training for module in stitched.modules())


def test_stitching_changes_neither_part(english, french, tokenizer):
    before = frozen(english), frozen(french)
    stitched = stitch(french.encoder, english.decoder)
    assert_unchanged(english, before[0])
    assert_unchanged(french, before[1])
    # Nor does what is done to the stitched model's settings later.
    stitched.encoder.use_projection(RelativeConfig.paper())
    stitched.config.problem_type = "multi_label_classification"
    assert_unchanged(english, before[0])
    assert_unchanged(french, before[1])
    assert stitched.config.space.similarity == stitched.encoder.projection.config.space.similarity == ("cosine",)
    assert french.encoder.anchors.views == english.decoder.anchors.views == ["en", "fr"]


def test_each_part_keeps_its_own_anchor_samples(make_bert, english, texts, tokenizer):
    """The encoder's set lacks the view that the decoder's has: another stitch may still need it."""
    only_french = AnchorSet(english.anchors.ids, {"fr": texts["fr"][::3]})
    encoder = RelativeModel.from_encoder(make_bert(1), only_french.view("fr"), tokenizer)
    stitched = stitch(encoder, english.decoder)
    assert stitched.anchors.views == ["fr"] and english.decoder.anchors.views == ["en", "fr"]
    stitch(make_bert(2), english.decoder, view="en", processor=tokenizer)


def test_a_stitched_model_is_saved_and_loaded_like_any_other(english, french, tokenizer, texts, tmp_path):
    stitched = stitch(french, english)
    stitched.save_pretrained(tmp_path)
    loaded = RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, tokenizer, texts["fr"]), logits_of(stitched, tokenizer, texts["fr"]))
    assert loaded.config.id2label == english.config.id2label and loaded.config.anchor_view == "fr"
    assert loaded.anchors.fingerprint == french.anchors.fingerprint
    again = stitch(str(tmp_path), str(tmp_path))
    assert torch.equal(logits_of(again, tokenizer, texts["fr"]), logits_of(stitched, tokenizer, texts["fr"]))


def test_settings_changed_after_the_stitch_are_saved(english, french, tokenizer, texts, tmp_path):
    stitched = stitch(french, english)
    stitched.encoder.encode_anchors(french.anchors.view("en"))
    stitched.save_pretrained(tmp_path)
    loaded = RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, tokenizer, texts["en"]), logits_of(stitched, tokenizer, texts["en"]))
    assert loaded.anchors.view(loaded.config.anchor_view).name == "en"


def test_a_stitched_model_whose_encoder_left_the_space_is_not_saved(english, french, tokenizer, texts, tmp_path):
    stitched = stitch(french, english)
    stitched.encoder.use_projection(RelativeConfig.paper())
    for use in (
        lambda: stitched.save_pretrained(tmp_path / "out"),
        lambda: logits_of(stitched, tokenizer, texts["en"]),
    ):
        with pytest.raises(StitchingError, match="projection differs .* similarity 'cosine' instead of 'rbf'"):
            use()
    assert not (tmp_path / "out").exists()
    stitched.encoder.use_projection(stitched.decoder.config)
    stitched.save_pretrained(tmp_path / "out")
    loaded = RelativeModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(loaded, tokenizer, texts["fr"]), logits_of(stitched, tokenizer, texts["fr"]))


def test_a_stitched_model_answers_in_a_pipeline_with_the_decoders_labels(english, french, tokenizer, texts):
    stitched = stitch(french, english)
    answers = pipeline("text-classification", model=stitched, tokenizer=tokenizer)(texts["fr"][:5])
    expected = logits_of(stitched, tokenizer, texts["fr"][:5]).softmax(-1)
    assert [answer["label"] for answer in answers] == [english.config.id2label[int(i)] for i in expected.argmax(-1)]
    np.testing.assert_allclose([answer["score"] for answer in answers], expected.amax(-1), atol=1e-4)


def test_a_stitched_model_can_be_trained_on(english, french, make_dataset, tokenizer, tmp_path):
    stitched = stitch(french, english)
    config = copy.deepcopy(french.config.to_dict())
    tiny_trainer(stitched, tokenizer, make_dataset("fr"), tmp_path, AnchorCallback(refresh_every=2)).train()
    own_AD = stitched.encoder.encode(stitched.anchors.view("fr").samples)
    torch.testing.assert_close(stitched.encoder.projection.anchors_AD, own_AD, atol=1e-5, rtol=1e-5)
    assert french.config.to_dict() == config


# -- an ordinary model as encoder


def test_an_ordinary_model_becomes_relative_with_the_decoders_anchors_and_projection(
    make_bert, make_model, tokenizer, texts
):
    decoder = make_model(0, similarity=["angular", "cosine"], rbf_gamma=2.0, pooling="cls", max_length=7).decoder
    stitched = stitch(make_bert(5), decoder, view="fr", processor=tokenizer)
    by_hand = RelativeModel.from_encoder(
        make_bert(5), decoder.anchors.view("fr"), tokenizer, similarity=["angular", "cosine"]
    )
    spaces = [part.config.space for part in (stitched, decoder, by_hand)]
    assert spaces[0].projection == spaces[1].projection == spaces[2].projection
    assert stitched.config.anchor_view == "fr"
    own = stitched.config.encoder
    assert own.pooling == "mean" and own.max_length == 64  # not those of another encoder
    with torch.no_grad():
        inputs = tokenizer(texts["fr"], return_tensors="pt", padding=True)
        expected = decoder(by_hand.eval()(**inputs).relative_embeds).logits
    assert torch.equal(logits_of(stitched, tokenizer, texts["fr"]), expected)
    assert stitched.config.num_labels == 3 and stitched.config.id2label == decoder.config.id2label


def test_an_ordinary_model_by_name_brings_its_own_tokenizer(make_bert, english, tokenizer, texts, tmp_path):
    make_bert(5).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    english.decoder.save_pretrained(tmp_path / "decoder")
    by_name = stitch(str(tmp_path / "bert"), str(tmp_path / "decoder"), view="fr")
    by_object = stitch(make_bert(5), english.decoder, view="fr", processor=tokenizer)
    assert torch.equal(logits_of(by_name, tokenizer, texts["fr"]), logits_of(by_object, tokenizer, texts["fr"]))


def test_an_ordinary_model_and_an_upload_of_the_hub(make_bert, english, tokenizer, texts, new_repo_id):
    bert, decoder = new_repo_id(), new_repo_id()
    make_bert(5).push_to_hub(bert)
    tokenizer.push_to_hub(bert)
    english.push_to_hub(decoder)
    stitched = stitch(bert, decoder, view="fr")
    expected = stitch(make_bert(5), english.decoder, view="fr", processor=tokenizer)
    assert torch.equal(logits_of(stitched, tokenizer, texts["fr"]), logits_of(expected, tokenizer, texts["fr"]))


def test_of_several_views_one_must_be_named(make_bert, english, tokenizer):
    with pytest.raises(AnchorError, match=r"BertModel becomes relative .* views 'en', 'fr'.*view='en'\)"):
        stitch(make_bert(5), english.decoder, processor=tokenizer)


def test_a_view_that_the_anchors_lack_is_refused(make_bert, english, tokenizer):
    with pytest.raises(AnchorError, match=r"There is no view 'ja'; this anchor set has 'en', 'fr'.*anchors.add_view"):
        stitch(make_bert(5), english.decoder, view="ja", processor=tokenizer)


def test_of_one_view_none_need_be_named(make_bert, make_model, texts, tokenizer):
    only = AnchorSet([str(i) for i in range(10)], {"en": texts["en"][:10]})
    model = RelativeModelForSequenceClassification.from_encoder(make_bert(0), only.view(), tokenizer, num_labels=2)
    assert stitch(make_bert(5), model, processor=tokenizer).config.anchor_view == "en"


def test_a_relative_encoder_that_reads_another_view_is_refused(french, english):
    assert stitch(french, english, view="fr").config.anchor_view == "fr"
    with pytest.raises(StitchingError, match=r"reads view 'fr' .* but view='en' was given.*encoder.encode_anchors"):
        stitch(french, english, view="en")


# -- what does not fit, and the call that mends it


def anchored(make_bert, tokenizer, seed, anchors, **settings):
    torch.manual_seed(seed)
    view = anchors.view("fr")
    return RelativeModelForSequenceClassification.from_encoder(
        make_bert(seed), view, tokenizer, num_labels=3, **settings
    ).eval()


def other_anchors(texts, rows):
    return AnchorSet([f"meaning-{i}" for i in rows], {view: [texts[view][i] for i in rows] for view in texts})


@pytest.mark.parametrize(("rows", "k"), [(range(1, 60, 3), 20), (range(57, -1, -3), 20)], ids=["others", "reversed"])
def test_other_anchors_or_another_order_are_refused_and_mended(make_bert, tokenizer, english, texts, rows, k):
    model = anchored(make_bert, tokenizer, 1, other_anchors(texts, rows))
    with pytest.raises(StitchingError) as caught:
        stitch(model, english)
    message = str(caught.value)
    assert f"{k} anchors {model.config.space.fingerprint[:16]}" in message
    assert f"20 anchors {english.config.space.fingerprint[:16]}" in message
    assert "encoder.encode_anchors(decoder.anchors.view(name))" in message
    encoder, decoder, name = model.encoder, english.decoder, "fr"
    encoder.encode_anchors(decoder.anchors.view(name))
    mended = stitch(encoder, decoder)
    fresh = stitch(anchored(make_bert, tokenizer, 1, decoder.anchors), decoder)
    assert torch.equal(logits_of(mended, tokenizer, texts["fr"]), logits_of(fresh, tokenizer, texts["fr"]))


def test_another_number_of_anchors_is_refused(make_bert, tokenizer, english, texts):
    model = anchored(make_bert, tokenizer, 1, other_anchors(texts, range(0, 30, 3)))
    with pytest.raises(StitchingError, match=r"uses 10 anchors .* trained on 20 anchors"):
        stitch(model, english)
    with pytest.raises(AnchorError, match="has 20 anchors, but the configuration says 10"):
        model.encoder.encode_anchors(english.anchors.view("fr"))
    backbone = model.encoder.backbone  # what the message of `stitch` leaves: parts that share a set
    stitch(backbone, english, view="fr", processor=tokenizer)


DIFFERENT = {
    "similarity": ({"similarity": "cosine"}, "similarity 'cosine' instead of 'rbf'"),
    "several similarities": ({"similarity": ["rbf", "cosine"]}, "similarity ['rbf', 'cosine'] instead of 'rbf'"),
    "transform": ({"transform": "none"}, "transform 'none' instead of 'center'"),
    "ridge": ({"basis_ridge": 0.01}, "basis_ridge 0.01 instead of 0.1"),
    "no ridge": ({"basis_ridge": None}, "basis_ridge None instead of 0.1"),
    "gamma": ({"rbf_gamma": 0.5}, "rbf_gamma 0.5 instead of 1.5"),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_another_projection_is_refused_and_mended(make_bert, tokenizer, english, texts, difference):
    settings, sides = DIFFERENT[difference]
    encoder = anchored(make_bert, tokenizer, 1, english.anchors, **settings).encoder
    decoder = english.decoder
    with pytest.raises(StitchingError) as caught:
        stitch(encoder, decoder)
    assert sides in str(caught.value)
    assert "encoder.use_projection(decoder.config)" in str(caught.value)
    assert not compatibility(encoder, decoder).fits
    encoder.use_projection(decoder.config)
    mended = stitch(encoder, decoder)
    fresh = stitch(anchored(make_bert, tokenizer, 1, english.anchors), decoder)
    assert torch.equal(logits_of(mended, tokenizer, texts["fr"]), logits_of(fresh, tokenizer, texts["fr"]))


def test_a_setting_that_neither_projection_uses_does_not_matter(make_bert, tokenizer, make_model, english, texts):
    decoder = make_model(0, similarity="cosine").decoder
    told, untold = (
        stitch(anchored(make_bert, tokenizer, 1, english.anchors, similarity="cosine", **unused), decoder)
        for unused in ({"rbf_gamma": 9.0, "shrinkage": 0.9}, {})
    )
    assert told.config.space == untold.config.space and told.config.space.rbf_gamma is None
    assert torch.equal(logits_of(told, tokenizer, texts["fr"]), logits_of(untold, tokenizer, texts["fr"]))


def test_whitening_with_another_shrinkage_is_refused(make_bert, tokenizer, make_model, english):
    encoder = anchored(make_bert, tokenizer, 1, english.anchors, transform="whiten", shrinkage=0.9)
    with pytest.raises(StitchingError, match=r"shrinkage 0\.9 instead of 0\.3"):
        stitch(encoder, make_model(0, transform="whiten"))


def test_a_decoder_in_the_encoders_place_is_refused(english):
    with pytest.raises(
        StitchingError, match=r"Found a RelativeDecoder as encoder. The order is stitch\(encoder, decoder\)"
    ):
        stitch(english.decoder, english.encoder)


@pytest.mark.parametrize("wrong", ["encoder", "without a head"])
def test_a_model_that_reads_no_relative_representations_is_refused_as_decoder(english, make_bert, wrong):
    decoder = english.encoder if wrong == "encoder" else make_bert(0)
    with pytest.raises(
        StitchingError, match=f"Found a {type(decoder).__name__} as decoder, which does not read relative"
    ):
        stitch(english.encoder, decoder)


def test_an_encoders_upload_is_refused_as_decoder_and_the_reverse(english, tmp_path):
    english.encoder.save_pretrained(tmp_path / "encoder-only")
    english.decoder.save_pretrained(tmp_path / "decoder-only")
    with pytest.raises(UploadError, match=r"encoder-only has no decoder, only its encoder"):
        stitch(english, str(tmp_path / "encoder-only"))
    with pytest.raises(UploadError, match=r"decoder-only has no encoder, only its decoder"):
        stitch(str(tmp_path / "decoder-only"), english)


def test_an_ordinary_upload_is_refused_as_decoder(english, make_bert, tmp_path):
    make_bert(0).save_pretrained(tmp_path)
    with pytest.raises(UploadError, match="is an ordinary bert model, not a relative one"):
        stitch(english, str(tmp_path))


def test_parts_that_name_no_anchors_are_not_taken_for_equal(make_bert, tokenizer, english):
    nameless = copy.deepcopy(english)
    for part in (nameless.encoder, nameless.decoder):
        part.config.space = part.config.space.replace(fingerprint=None)
    with pytest.raises(StitchingError, match="uses 20 anchors none"):
        stitch(nameless, nameless)
    assert compatibility(nameless, nameless).verdict == "does not fit: anchors"


# -- looking before


def test_a_report_that_fits_reads_like_this(english, french):
    short = english.config.space.fingerprint[:16]
    rows = [
        ("", "encoder", "decoder", ""),
        ("anchors", short, short, "ok"),
        ("number of anchors", "20", "20", "ok"),
        ("transform", "center", "center", "ok"),
        ("similarity", "rbf", "rbf", "ok"),
        ("basis_ridge", "0.1", "0.1", "ok"),
        ("rbf_gamma", "1.5", "1.5", "ok"),
        ("view", "fr", "en", "ok"),
        ("pooling", "mean", "-", "ok"),
        ("absolute size", "32", "-", "ok"),
        ("classes", "-", "animal, food, vehicle", "ok"),
    ]
    table = [f"{name:<17}  {left:<16}  {right:<21}  {fits}".rstrip() for name, left, right, fits in rows]
    report = compatibility(french, english)
    assert str(report).splitlines() == [*table, "verdict: fits: stitch(encoder, decoder)"]


def test_a_report_that_does_not_fit_names_every_difference(make_bert, tokenizer, english, texts):
    others = other_anchors(texts, range(0, 30, 3))
    model = anchored(make_bert, tokenizer, 1, others, similarity=["angular", "cosine"], transform="none")
    report = compatibility(model, english)
    assert not report.fits
    assert report.verdict == "does not fit: anchors, number of anchors, transform, similarity, rbf_gamma"
    lines = str(report).splitlines()
    assert re.search(r"^similarity +angular, cosine +rbf +DIFFERS$", str(report), re.M)
    assert re.search(r"^number of anchors +10 +20 +DIFFERS$", str(report), re.M)
    assert lines[-1] == f"verdict: {report.verdict}"
    assert report.expected_agreement is None


def test_a_report_takes_names_and_is_json(english, french, tmp_path):
    report = compatibility(saved(french, tmp_path / "fr"), saved(english, tmp_path / "en"))
    content = json.loads(json.dumps(report.to_dict()))
    assert content == report.to_dict()
    assert content["fits"] is True and content["facts"]["view"] == ["fr", "en", True]


def test_an_encoder_agrees_with_itself_wholly(english, texts):
    report = compatibility(english, english, own_encoder=english, pairs=(texts["en"][1::3], texts["en"][1::3]))
    assert report.expected_agreement == 1.0
    assert "expected agreement with the decoder's own encoder: 1.00" in str(report)


def test_agreement_is_the_share_of_equal_choices(english, french, tokenizer, texts):
    left, right = texts["fr"][1::3], texts["en"][1::3]
    report = compatibility(french, english, own_encoder=english.encoder, pairs=(left, right))
    choices = [logits_of(stitch(encoder, english), tokenizer, side).argmax(-1) for encoder, side in
               ((french, left), (english, right))]  # fmt: skip
    assert report.expected_agreement == pytest.approx(float((choices[0] == choices[1]).float().mean()))


def test_agreement_on_several_labels_counts_each_of_them(make_model, tokenizer, texts):
    settings = {"problem_type": "multi_label_classification"}
    english, french = make_model(0, **settings), make_model(1, view="fr", **settings)
    pairs = (texts["fr"][1::3], texts["en"][1::3])
    report = compatibility(french, english, own_encoder=english, pairs=pairs)
    choices = [logits_of(stitch(encoder, english), tokenizer, side) > 0 for encoder, side in
               zip((french, english), pairs, strict=True)]  # fmt: skip
    assert report.expected_agreement == pytest.approx(float((choices[0] == choices[1]).float().mean()))


def test_agreement_asks_for_what_it_needs(english, french, make_bert, anchors, tokenizer, texts):
    pairs = (texts["fr"][:4], texts["en"][:4])
    with pytest.raises(EvaluationError, match="pairs= needs own_encoder="):
        compatibility(french, english, pairs=pairs)
    with pytest.raises(EvaluationError, match="pairs has 4 and 3 samples"):
        compatibility(french, english, own_encoder=english, pairs=(pairs[0], pairs[1][:3]))
    number = RelativeModelForSequenceClassification.from_encoder(
        make_bert(0), anchors.view("en"), tokenizer, num_labels=1
    )
    with pytest.raises(EvaluationError, match="a regression and has no classes to agree on"):
        compatibility(french, number, own_encoder=number, pairs=pairs)


def test_an_ordinary_model_has_no_report(make_bert, english):
    with pytest.raises(StitchingError, match=r"BertModel is not relative.*RelativeModel.from_encoder"):
        compatibility(make_bert(0), english)


# -- the idea itself


def test_a_decoder_works_behind_an_encoder_it_never_met(make_model, make_dataset, labels, tokenizer, texts, tmp_path):
    """Two languages, two seeds, parallel anchors; beside it the absolute control, which must fail, and chance.

    A third of the texts are anchors, so accuracy is counted on the others.
    """
    models, held_out = {}, [i for i in range(60) if i % 3]
    truth = torch.tensor([labels[i] for i in held_out])
    for seed, view in ((1, "en"), (2, "fr")):
        models[view] = make_model(seed, view=view)
        trainer = tiny_trainer(
            models[view], tokenizer, make_dataset(view), tmp_path / view, AnchorCallback(refresh_every=5),
            max_steps=60, seed=seed,
        )  # fmt: skip
        trainer.train()
        models[view].eval()

    def accuracy(logits):
        return float((logits.argmax(-1) == truth).float().mean())

    chance = 1 / 3
    for encoder, decoder in (("en", "fr"), ("fr", "en")):
        samples = [texts[encoder][i] for i in held_out]
        own = accuracy(logits_of(models[encoder], tokenizer, samples))
        stitched = accuracy(logits_of(stitch(models[encoder], models[decoder]), tokenizer, samples))
        absolute = accuracy(_absolute_control(models[encoder], models[decoder], samples, texts[decoder], labels))
        print(
            f"{encoder}->{decoder}: own {own:.2f} stitched {stitched:.2f} absolute {absolute:.2f} chance {chance:.2f}"
        )
        assert own > 0.95
        assert stitched > 0.9
        assert absolute < stitched - 0.3


def _absolute_control(encoder, decoder, samples, training_texts, labels):
    """A decoder fitted on the absolute embeddings of one encoder, applied to those of the other."""
    from sklearn.linear_model import LogisticRegression

    own_ND = decoder.encoder.encode(training_texts)
    control = LogisticRegression(max_iter=2000).fit(own_ND.numpy(), labels)
    assert control.score(own_ND.numpy(), labels) > 0.95  # it is a good decoder at home
    return torch.tensor(control.predict_proba(encoder.encoder.encode(samples).numpy()))
