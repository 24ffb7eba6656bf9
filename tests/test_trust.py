"""`calibrate`, `Judge`, `Familiarity`: how far to trust an answer, without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, pipeline

from benchmarks.trust import __main__ as trust_benchmark
from benchmarks.trust.measures import auroc, calibration_error, risk_coverage
from hf_relreps import (
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeSpace,
    compatibility,
    stitch,
    stitching_matrix,
)
from hf_relreps.errors import ConfigurationError, EvaluationError
from hf_relreps.exporting import export_program, output_names
from hf_relreps.trust import Familiarity, Judge, calibrate, mean_with_taught


@pytest.fixture(scope="module")
def english(make_model):
    return make_model(0, view="en").eval()


@pytest.fixture(scope="module")
def french(make_model):
    return make_model(1, view="fr").eval()


@pytest.fixture(scope="module")
def pairs(texts):
    return texts["fr"] * 2, texts["en"] * 2


@pytest.fixture(scope="module")
def calibrated(french, english, pairs):
    return calibrate(stitch(french, english), own_encoder=english, pairs=pairs)


def test_pairs_are_two_lists_or_a_list_of_pairs(french, english, pairs, calibrated):
    as_rows = calibrate(stitch(french, english), own_encoder=english, pairs=list(zip(*pairs, strict=True)))
    assert as_rows.config.decoder.temperature == calibrated.config.decoder.temperature
    table = Dataset.from_dict({"fr": pairs[0], "en": pairs[1]}).to_pandas()
    for given in (table, dict(table), pairs[0], [*pairs, pairs[0]]):
        with pytest.raises(EvaluationError, match="expected two lists"):
            compatibility(french, english, own_encoder=english, pairs=given)


def test_pairs_that_are_anchors_are_warned_of(french, english, caplog):
    views = tuple(french.anchors.view(name).samples * 10 for name in ("fr", "en"))
    compatibility(french, english, own_encoder=english, pairs=views)
    assert "pairs are anchors, which look better than other samples" in caplog.text


@torch.no_grad()
def logits_of(model, texts):
    return model(**model.processor(texts, return_tensors="pt", padding=True)).logits


def test_a_calibrated_model_is_an_ordinary_one(calibrated, french, texts, tmp_path):
    assert type(calibrated) is type(french) and not calibrated.training
    calibrated.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(again, texts["fr"]), logits_of(calibrated, texts["fr"]))
    assert again.config.decoder.temperature == calibrated.config.decoder.temperature
    assert again.config.id2label == french.config.id2label
    answer = pipeline("text-classification", model=again, tokenizer=again.processor)(texts["fr"][0])[0]
    assert answer["score"] == pytest.approx(float(logits_of(calibrated, texts["fr"][:1]).softmax(-1).max()), abs=1e-5)


@pytest.mark.slow
def test_a_calibrated_model_is_exported(calibrated, texts):
    inputs = dict(calibrated.processor(texts["fr"][:3], return_tensors="pt", padding=True))
    assert output_names(calibrated) == ["logits"]
    found = export_program(calibrated).module()(**inputs)
    torch.testing.assert_close(found, logits_of(calibrated, texts["fr"][:3]))


def test_it_is_compared_and_scored_like_any_other(calibrated, french, english, pairs, texts):
    report = compatibility(french, calibrated, own_encoder=english, pairs=pairs)
    assert report.fits and report.prediction.num_pairs == 120
    labels = [0, 1, 2] * 20
    matrix = stitching_matrix({"fr": french}, {"mean": calibrated}, {"fr": texts["fr"], "label": labels})
    assert 0 <= matrix.scores[0, 0] <= 1


def test_its_card_is_that_of_a_classifier(calibrated):
    card = str(calibrated.make_card("me/calibrated"))
    assert "mean of the probabilities of 2 decoders, at a temperature of" in card
    assert "library_name: transformers" in card and "RelativeModelWithDecoders" not in card


def test_its_probabilities_are_the_mean_of_both_at_a_temperature(calibrated, texts):
    r_NR = torch.rand(4, calibrated.config.space.size)
    decoder = calibrated.decoder
    with torch.no_grad():
        p_NC = torch.stack([one(r_NR).logits.softmax(-1) for one in decoder.named.values()]).mean(0)
        expected = (p_NC.log() / decoder.config.temperature).softmax(-1)
        torch.testing.assert_close(decoder(r_NR).logits.softmax(-1), expected)
    assert list(decoder.named) == ["taught", "teacher"]
    assert decoder(r_NR, labels=torch.tensor([0, 1, 2, 0])).loss.requires_grad


def test_the_given_model_is_not_changed(french, english, pairs, texts):
    model = stitch(french, english)
    before = logits_of(model, texts["fr"])
    calibrate(model, own_encoder=english, pairs=pairs)
    assert torch.equal(logits_of(model, texts["fr"]), before)
    assert model.config.decoder.decoder_type == "mlp"


def test_the_taught_decoder_mends_what_the_other_encoder_breaks():
    draw = torch.Generator().manual_seed(0)
    space = RelativeSpace(fingerprint="0" * 64, num_anchors=12)
    own_NR = torch.randn(1400, 12, generator=draw)
    labels_N = own_NR[:, :3].argmax(-1)
    r_NR = own_NR + 0.3 * torch.randn(1400, 12, generator=draw)
    r_NR[:, 0] = -r_NR[:, 0]  # one anchor is not read as it was
    decoder = RelativeDecoder.fit_ridge(own_NR[:400], labels_N[:400], space)
    with torch.no_grad():
        mean = mean_with_taught(decoder, r_NR[400:800], own_NR[400:800], 12)
        p_NC, mean_NC = (one(r_NR[800:]).logits.softmax(-1) for one in (decoder, mean))
    wrong = [(one.argmax(-1) != labels_N[800:]).numpy() for one in (p_NC, mean_NC)]
    assert wrong[1].mean() < wrong[0].mean() - 0.03
    assert calibration_error(wrong[1], mean_NC.amax(-1)) < calibration_error(wrong[0], p_NC.amax(-1)) - 0.1
    of_answer_N = mean_NC.gather(1, p_NC.argmax(-1, keepdim=True))[:, 0]
    assert auroc(wrong[0], of_answer_N) > auroc(wrong[0], p_NC.amax(-1)) + 0.05


def test_familiar_samples_are_spread_evenly_and_foreign_ones_are_near_zero():
    draw = torch.Generator().manual_seed(0)
    spread_D = torch.tensor([3.0] * 4 + [0.1] * 60)  # more dimensions than most sets have anchors for
    known_KD, new_ND = (torch.randn(n, 64, generator=draw) * spread_D for n in (80, 2000))
    familiarity = Familiarity(known_KD)
    shares_N = familiarity(new_ND)
    assert abs(float(shares_N.mean()) - 0.5) < 0.1 and 0.01 < float((shares_N < 0.05).float().mean()) < 0.12
    foreign_ND = torch.randn(200, 64, generator=draw) * spread_D.flip(0)
    assert float(familiarity(foreign_ND).max()) == pytest.approx(1 / 81)
    assert torch.equal(familiarity(new_ND[:1]), shares_N[:1])  # a sample alone


def test_a_judge_gives_label_score_and_familiarity(calibrated, texts):
    judge = Judge(calibrated, known=texts["fr"])
    answers = judge(texts["fr"][:5])
    p_NC = logits_of(calibrated, texts["fr"][:5]).softmax(-1)
    assert [one["score"] for one in answers] == pytest.approx(p_NC.amax(-1).tolist(), abs=1e-5)
    assert [one["label"] for one in answers] == [calibrated.config.id2label[c] for c in p_NC.argmax(-1).tolist()]
    assert all(0 < one["familiarity"] <= 1 for one in answers)


def test_a_judge_of_a_regression_gives_its_number(french):
    space = french.config.space
    number = RelativeDecoder(RelativeDecoderConfig(space=space, num_labels=1, problem_type="regression")).eval()
    model = stitch(french, number)
    answer = Judge(model)(["petit chat ici"])[0]
    assert answer["score"] == pytest.approx(float(logits_of(model, ["petit chat ici"])), abs=1e-5)


def test_what_cannot_be_calibrated_or_judged_is_refused(french, english, calibrated, pairs):
    model = stitch(french, english)
    with pytest.raises(EvaluationError, match="Found 3 pairs, expected 100 or more"):
        calibrate(model, own_encoder=english, pairs=(pairs[0][:3], pairs[1][:3]))
    with pytest.raises(EvaluationError, match="pairs has 120 and 119 samples"):
        calibrate(model, own_encoder=english, pairs=(pairs[0], pairs[1][1:]))
    with pytest.raises(EvaluationError, match="calibrated already"):
        calibrate(calibrated, own_encoder=english, pairs=pairs)
    several = {"problem_type": "multi_label_classification", "num_labels": 2}
    multi = stitch(french, RelativeDecoder(RelativeDecoderConfig(space=french.config.space, **several)).eval())
    with pytest.raises(EvaluationError, match="for multi_label_classification; only where each sample has one class"):
        calibrate(multi, own_encoder=english, pairs=pairs)
    many = stitch(french, {"a": english, "b": english})
    for refused in (lambda: Judge(many), lambda: calibrate(many, own_encoder=english, pairs=pairs)):
        with pytest.raises(EvaluationError, match=r"'several'.*model.select\(name\)"):
            refused()
    with pytest.raises(EvaluationError, match=r"shape \(1, 3\), expected \(K, D\)"):
        Familiarity(torch.rand(1, 3))


def test_a_mean_is_one_of_the_same_classes(calibrated):
    content = calibrated.config.decoder.to_dict()
    content["decoders"]["taught"]["id2label"] = {"0": "x", "1": "y", "2": "z"}
    content["decoders"]["taught"].pop("label2id", None)
    with pytest.raises(ConfigurationError, match="Decoder 'taught' has the classes .* A mean is one of the same"):
        RelativeDecoderConfig.from_dict(content)


def test_measures_by_hand():
    wrong_N, trust_N = np.array([True, False, False, True]), np.array([0.1, 0.9, 0.8, 0.85])
    assert auroc(wrong_N, trust_N) == 0.75
    assert risk_coverage(wrong_N, trust_N) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert calibration_error(np.array([False, True]), np.array([0.5, 0.5])) == 0
    assert calibration_error(np.array([False, False]), np.array([0.75, 0.75])) == 0.25


def test_the_guide_shows_the_results(capsys):
    trust_benchmark.main(["--report"])
    guide = (trust_benchmark.RESULTS.parents[2] / "docs" / "trust.md").read_text("utf-8")
    printed = capsys.readouterr().out
    for way in ("| softmax |", "| calibrated |", "| familiarity, anchors and pairs |"):
        for line in (line for line in printed.splitlines() if line.startswith(way)):
            assert line.strip() in guide
