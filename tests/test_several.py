"""`RelativeModelWithDecoders`: one pass of the encoder, the answers of each decoder, in one upload."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from hf_relreps import (
    AnchorSet,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeModel,
    RelativeModelWithDecoders,
    compatibility,
    stitch,
    stitching_matrix,
)
from hf_relreps.errors import ConfigurationError, EvaluationError, StitchingError
from hf_relreps.exporting import export_onnx, export_program, output_names
from hf_relreps.printing import one_line


TEXTS = ["petit chat ici", "vieux pain la"]


@pytest.fixture(scope="module")
def french(make_model):
    return make_model(1, view="fr").eval()


@pytest.fixture(scope="module")
def decoders(make_model):
    """Classes, a number, and several labels; one has the name of a method of every module."""
    kind = make_model(0, view="en").eval().decoder
    torch.manual_seed(0)
    space = kind.config.space
    number = {"num_labels": 1, "problem_type": "regression", "decoder_type": "linear"}
    labels = {"id2label": {0: "old", 1: "red"}, "problem_type": "multi_label_classification"}
    more = {"type": number, "look": labels}
    made = {name: RelativeDecoder(RelativeDecoderConfig(space=space, **how)).eval() for name, how in more.items()}
    return {"kind": kind, **made}


@pytest.fixture(scope="module")
def model(french, decoders):
    return stitch(french, decoders)


@torch.no_grad()
def said(model, inputs=None):
    return model(**(inputs or model.processor(TEXTS, return_tensors="pt", padding=True))).logits


def assert_same(found, expected):
    assert list(found) == list(expected) == ["kind", "look", "type"]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_each_decoder_says_what_it_says_alone(model, french, decoders):
    assert isinstance(model, RelativeModelWithDecoders) and not model.training
    assert_same(said(model), {name: said(stitch(french, decoders[name])) for name in sorted(decoders)})


def test_the_encoder_runs_once(model):
    passes = []
    hook = model.encoder.backbone.register_forward_hook(lambda *_: passes.append(1))
    try:
        said(model)
        assert len(passes) == 1
        model.classify(TEXTS)
        assert len(passes) == 2
    finally:
        hook.remove()


def test_what_was_given_is_not_changed(model, decoders):
    before = said(stitch(model.encoder, decoders["kind"]))
    changed = stitch(model.encoder, decoders)
    with torch.no_grad():
        for weight in changed.decoder.parameters():
            weight.add_(1)
    assert torch.equal(said(stitch(model.encoder, decoders["kind"])), before)


def test_answers_are_those_of_pipelines_and_numbers(model):
    answers = model.classify(TEXTS)
    for name in ("kind", "type"):
        one = model.select(name)
        alone = pipeline("text-classification", model=one, tokenizer=one.processor)(TEXTS)
        assert [answer["label"] for answer in answers[name]] == [answer["label"] for answer in alone]
        assert [answer["score"] for answer in answers[name]] == pytest.approx(
            [one["score"] for one in alone], abs=1e-5
        )
    look = said(model)["look"].sigmoid()
    assert [{row["label"] for row in rows} for rows in answers["look"]] == [{"old", "red"}] * 2
    assert [rows[0]["score"] for rows in answers["look"]] == pytest.approx(look.amax(-1).tolist(), abs=1e-5)


def test_a_selected_model_shares_its_weights(model, decoders):
    one = model.select("kind")
    assert one.config.id2label == decoders["kind"].config.id2label
    assert one.decoder.output.weight is model.decoder.named["kind"].output.weight
    assert one.anchors is model.anchors


def test_a_saved_model_comes_back_whole_and_in_parts(model, decoders, tmp_path):
    model.save_pretrained(tmp_path)
    held = {path.name for path in tmp_path.iterdir()}
    assert {"encoder", "decoder", "anchors", "config.json"} <= held
    assert_same(said(RelativeModelWithDecoders.from_pretrained(tmp_path)), said(model))
    part = RelativeDecoder.from_pretrained(tmp_path)
    assert list(part.named) == ["kind", "look", "type"] and part.anchors.fingerprint == model.anchors.fingerprint
    assert part.select("kind").config.id2label == decoders["kind"].config.id2label
    assert len(part.select("kind").anchors) == len(model.anchors)
    assert_same(said(stitch(tmp_path, tmp_path)), said(model))
    assert isinstance(AutoModel.from_pretrained(tmp_path), RelativeModel)


def test_weights_are_stored_once(model, tmp_path):
    model.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
    assert len([name for name in index if "decoders.0" in name]) == len(model.decoder.named["kind"].state_dict())
    assert {place.split("/")[0] for place in index.values()} == {"encoder", "decoder"}


def test_a_class_with_one_decoder_says_which_class_has_several(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="this model has kind, look, type. Use RelativeModelWithDecoders"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_an_upload_is_pushed_with_a_card_that_names_the_decoders(model, hub_user, repo_id):
    model.push_to_hub(repo_id)
    again = RelativeModelWithDecoders.from_pretrained(repo_id)
    assert_same(said(again), said(model))
    card = one_line(str(model.make_card(repo_id)))
    assert "several decoders: `kind`, `look`, `type`" in card and "library_name: hf_relreps" in card
    assert "| Decoder `look` | old, red |" in card and 'model.select("kind")' in card
    assert "Several decoders: `kind`, `look`, `type`" in str(again.decoder.make_card(repo_id))


def test_a_report_lists_the_answers_of_each(french, model, decoders):
    report = compatibility(french, model)
    assert report.fits
    classes = {fact.name: fact.decoder for fact in report.facts if fact.name.endswith("classes")}
    assert list(classes) == ["kind classes", "look classes", "type classes"] and classes["look classes"] == "old, red"
    with pytest.raises(EvaluationError, match=r"is several: kind, look, type. With pairs give one .* decoder.select"):
        compatibility(french, model, own_encoder=french, pairs=(TEXTS, TEXTS))
    rows = {"fr": TEXTS, "label": [0, 1]}
    with pytest.raises(EvaluationError, match=r"Decoder 'model' is several: .* decoder.select\(name\)"):
        stitching_matrix({"fr": french}, {"model": model}, rows)


def test_decoders_of_another_space_are_refused(french, decoders, make_model, texts):
    other = make_model(2, view="fr", similarity="cosine", basis_ridge=None)
    with pytest.raises(StitchingError, match="Decoder 'other' reads .*cosine, 'kind' reads .*one encoder describes"):
        stitch(french, {"kind": decoders["kind"], "other": other})
    away = make_model(2, view="fr")
    away.encoder.encode_anchors(AnchorSet(range(20), {"fr": texts["fr"][:20]}).view("fr"))
    with pytest.raises(StitchingError, match="Cannot stitch: the encoder uses 20 anchors"):
        stitch(away, decoders)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "identifiers, such as 'section' and 'tone'; found none. Give a mapping"),
        ({"not a name": "kind"}, "found 'not a name'. Give a mapping"),
        ({3: "kind"}, "found 3. Give a mapping"),
    ],
)
def test_names_are_identifiers(french, decoders, named, message):
    with pytest.raises(ConfigurationError, match=message):
        stitch(french, {name: decoders[decoder] for name, decoder in named.items()})


def test_decoders_without_names_or_with_one_name_are_refused(french, decoders):
    one, other = decoders["kind"], decoders["look"]
    with pytest.raises(StitchingError, match=r"Found a list of 2 decoders, expected a mapping .*'section': a"):
        stitch(french, [one, other])
    with pytest.raises(StitchingError, match="Found two decoders with the name 'kind', expected a mapping"):
        stitch(french, [("kind", one), ("kind", other)])


def test_several_decoders_are_not_one_of_several(french, model):
    with pytest.raises(StitchingError, match=r"Decoder 'all' is of type 'several', expected mlp, linear, head"):
        stitch(french, {"all": model})


def test_an_ordinary_classifier_among_several_is_refused(french, decoders):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ordinary = BertForSequenceClassification(BertConfig(**sizes, vocab_size=20))
    with pytest.raises(StitchingError, match="Decoder 'tone' is BertForSequenceClassification, .*from_classifier"):
        stitch(french, {"kind": decoders["kind"], "tone": ordinary})


def test_decoders_are_not_made_with_the_model(french):
    with pytest.raises(ConfigurationError, match=r"are not made with it: train each, .* stitch\(encoder, \{'section'"):
        RelativeModelWithDecoders.from_encoder(french.encoder, num_labels=2)


def test_a_decoder_that_is_not_there_and_labels_are_refused(model):
    with pytest.raises(StitchingError, match="no decoder 'tone' here, there is 'kind', 'look', 'type'"):
        model.select("tone")
    with pytest.raises(ConfigurationError, match=r"Labels were given to the decoders kind, look, type"):
        model.decoder(torch.rand(2, model.config.space.size), labels=torch.tensor([0, 1]))


def test_a_configuration_of_several_decoders_must_agree_with_itself(model):
    config = model.config.decoder.to_dict()
    again = RelativeDecoderConfig.from_dict(json.loads(json.dumps(config)))
    assert again.to_dict() == config
    with pytest.raises(ConfigurationError, match="contradict each other"):
        RelativeDecoderConfig(**{"space": model.config.space, "decoder_type": "several"})
    config["decoders"]["look"]["space"]["similarity"] = "cosine"
    config["decoders"]["look"]["space"]["basis_ridge"] = None
    with pytest.raises(ConfigurationError, match="Decoder 'look' is of type 'mlp' and reads .*cosine"):
        RelativeDecoderConfig.from_dict(config)


def test_one_graph_gives_all_answers(model, tmp_path):
    inputs = dict(model.processor(TEXTS, return_tensors="pt", padding=True))
    assert output_names(model) == ["kind", "look", "type"]
    assert_same(export_program(model).module()(**inputs), said(model, inputs))


@pytest.mark.slow
def test_one_onnx_file_gives_all_answers(model, tmp_path):
    inputs = dict(model.processor(TEXTS, return_tensors="pt", padding=True))
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "model.onnx"))
    wanted = {place.name: inputs[place.name].numpy() for place in session.get_inputs()}
    for name, found in zip(output_names(model), session.run(output_names(model), wanted), strict=True):
        torch.testing.assert_close(torch.tensor(found), said(model, inputs)[name], atol=1e-4, rtol=1e-4)
