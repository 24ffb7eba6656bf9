"""How much of its own score a stitched model keeps, told without labels, against what labels say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score

from hf_relreps import RelativeDecoder, RelativeSpace, compatibility
from hf_relreps.errors import EvaluationError
from hf_relreps.prediction import (
    FEWEST_PAIRS,
    calibrated,
    expected_f1,
    expected_ratio,
    joint,
    predicted,
    taught,
)
from hf_relreps.projection import frame_of, project_in_chunks


MEASURED = Path(__file__).parents[1] / "benchmarks" / "results" / "quality" / "prediction.json"
PREDICTIONS = ("expected", "expected, own known")
ANCHORS, TRAINING, PAIRS = slice(0, 100), slice(100, 500), slice(500, 900)
TESTED = slice(900, None)


def digits():
    """Two encoders of handwritten digits: the pixels, and what a random layer makes of them; and the labels."""
    data = load_digits()
    pixels_ND = torch.tensor(data.images.reshape(len(data.images), -1), dtype=torch.float32) / 16
    layer_DE = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) / 4
    return pixels_ND, torch.tanh((pixels_ND - pixels_ND[ANCHORS].mean(0)) @ layer_DE), torch.tensor(data.target)


def answers(share_exchanged):
    """Logits behind the own encoder and behind the other, some of whose anchors have changed places."""
    own_ND, other_NE, labels_N = digits()
    space = RelativeSpace(num_anchors=100)
    order = torch.arange(100)
    wrong = torch.randperm(100, generator=torch.Generator().manual_seed(1))[: int(100 * share_exchanged)]
    order[wrong] = wrong.roll(1)
    r_NA = project_in_chunks(own_ND, frame_of(own_ND[ANCHORS], space), space)
    config = SimpleNamespace(space=space, modality="image", anchor_view=None)
    like = SimpleNamespace(config=config, anchors=None)
    decoder = RelativeDecoder.fit_ridge(r_NA[TRAINING], labels_N[TRAINING], like, num_labels=10)
    other_NA = project_in_chunks(other_NE, frame_of(other_NE[ANCHORS][order], space), space)
    with torch.no_grad():
        return decoder(r_NA).logits, decoder(other_NA).logits, labels_N


def macro_f1(logits_NC, labels_N):
    return f1_score(labels_N[TESTED], logits_NC[TESTED].argmax(-1), average="macro")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("knows_own", [False, True])
def test_the_expected_ratio_is_near_what_labels_say(share, knows_own):
    own_NC, stitched_NC, labels_N = answers(share)
    measured = macro_f1(stitched_NC, labels_N) / macro_f1(own_NC, labels_N)
    accuracy = float((own_NC[PAIRS].argmax(-1) == labels_N[PAIRS]).float().mean()) if knows_own else None
    expected = expected_ratio(own_NC[PAIRS], stitched_NC[PAIRS], accuracy)
    print(f"{share:.0%} exchanged: expected {expected:.3f}, measured {measured:.3f}")
    assert abs(expected - measured) < 0.1


def test_wrong_pairs_are_expected_to_cost():
    ratios = [expected_ratio(*(logits_NC[PAIRS] for logits_NC in answers(share)[:2])) for share in (0, 0.3, 0.5, 0.7)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 0.9 and ratios[-1] < 0.7


def test_who_says_the_same_keeps_everything():
    own_NC, _, _ = answers(0.0)
    assert expected_ratio(own_NC, own_NC) == 1
    assert expected_ratio(own_NC, 3 * own_NC, 0.9) == pytest.approx(1)


def test_who_knows_nothing_adds_nothing():
    own_NC, _, _ = answers(0.0)
    noise_NC = torch.randn(own_NC.shape, generator=torch.Generator().manual_seed(3))
    p_NC = own_NC.double().softmax(-1)
    q_NC = joint(p_NC, taught(noise_NC.double(), p_NC))
    assert (q_NC - p_NC).abs().mean() < 0.02
    assert expected_ratio(own_NC, noise_NC) < 0.2


def test_calibrated_probabilities_are_as_sure_as_they_are_right():
    own_NC, _, _ = answers(0.0)
    for accuracy in (0.5, 0.9):
        assert calibrated(5 * own_NC.double(), accuracy).amax(-1).mean() == pytest.approx(accuracy, abs=1e-6)


def test_expected_f1_of_sure_answers_is_the_macro_f1():
    labels_N, answers_N = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 0, 2])
    sure_NC = torch.nn.functional.one_hot(labels_N, 4).double()
    assert expected_f1(sure_NC, answers_N) == pytest.approx(f1_score(labels_N, answers_N, average="macro"))


# -- in the report


@pytest.fixture(scope="module")
def english(make_model):
    return make_model(0)


@pytest.fixture(scope="module")
def french(make_model):
    return make_model(1, view="fr")


def many(texts, view):
    return (texts[view] * 3)[:FEWEST_PAIRS]


def test_a_report_says_how_much_is_kept(english, french, texts):
    pairs = (many(texts, "fr"), many(texts, "en"))
    report = compatibility(french, english, own_encoder=english, pairs=pairs, own_accuracy=0.8)
    with torch.no_grad():
        sides = [model.projection(model.encode(samples)) for model, samples in
                 zip((french.encoder, english.encoder), pairs, strict=True)]  # fmt: skip
        logits = [english.decoder.eval()(r_NA).logits for r_NA in sides]
    assert report.expected_ratio == pytest.approx(expected_ratio(logits[1], logits[0], 0.8), abs=1e-6)
    assert re.search(r"expected: keeps \d+ % of the decoder's own macro-F1 \(100 pairs\)", str(report))
    told = report.to_dict()
    assert (told["expected_ratio"], told["num_pairs"]) == (report.expected_ratio, 100)


def test_few_pairs_tell_nothing(english, french, texts):
    pairs = (texts["fr"][:20], texts["en"][:20])
    report = compatibility(french, english, own_encoder=english, pairs=pairs)
    assert report.expected_agreement is not None
    assert report.expected_ratio is None
    assert "expected: not known: found 20 pairs, expected 100 or more" in str(report)


def test_several_labels_for_each_sample_are_not_predicted(make_model, texts):
    model = make_model(0, problem_type="multi_label_classification")
    pairs = (many(texts, "en"), many(texts, "en"))
    report = compatibility(model, model, own_encoder=model, pairs=pairs)
    assert report.expected_agreement == 1 and report.expected_ratio is None
    assert "calibrated only on tasks with one class" in str(report)


def test_the_own_accuracy_is_a_share_and_goes_with_pairs(english, texts):
    with pytest.raises(EvaluationError, match="own_accuracy= needs pairs="):
        compatibility(english, english, own_accuracy=0.9)
    with pytest.raises(EvaluationError, match=r"own_accuracy is 91, expected a number above 0 .* 0.91 for 91 %"):
        compatibility(english, english, own_encoder=english, pairs=(texts["en"], texts["en"]), own_accuracy=91)


@pytest.mark.parametrize(("number", "said"), [(100, "100"), (5000, "5,000")])
def test_a_prediction_says_from_how_many_pairs_it_was_told(number, said):
    own_NC = torch.randn(number, 3, generator=torch.Generator().manual_seed(0))
    assert str(predicted(own_NC, own_NC)) == f"keeps 100 % of the decoder's own macro-F1 ({said} pairs)"


def test_predictions_were_better_than_what_anybody_could_say():
    for settings in json.loads(MEASURED.read_text("utf-8"))["pairs"].values():
        for name, row in settings.items():
            errors = {way: row["all"][way]["mean"] for way in row["all"]}
            for way in PREDICTIONS:
                assert errors[way] < errors["mean of the others"] and errors[way] < errors["nothing is lost"], name
                assert row["all"][way]["spearman"] > 0.8
