"""`RelativeDecoder`: logits of each sample by itself, its losses, its noise, its precision."""

import copy
import logging
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from sklearn.linear_model import Ridge
from torch import nn
from transformers import AutoConfig

from hf_relreps import (
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeEncoderConfig,
    RelativeModel,
    RelativeSpace,
    stitch,
)
from hf_relreps.caching import encode_dataset
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer
from hf_relreps.errors import AnchorError, ConfigurationError, EmbeddingError, LabelError, SampleError, StitchingError
from hf_relreps.ridge import RIDGE, class_weights, fit_ridge, sharpness
from tests.training import tiny_trainer


def make(seed=0, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RelativeDecoder(RelativeConfig(**{"num_anchors": 12, "num_labels": 3} | settings)).eval()


def relative(n, k=12, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed))


def learnt(r_BR, labels_B, **settings):
    """Share of the training labels that a decoder gives after a short training."""
    decoder = make(decoder_noise=0.0, decoder_dropout=0.0, **settings).train()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        decoder(r_BR, labels_B).loss.backward()
        optimizer.step()
    return (decoder.eval()(r_BR).logits.argmax(1) == labels_B).float().mean()


TYPES = ["mlp", "linear"]


@pytest.mark.parametrize("kind", TYPES)
def test_one_sample_alone_gets_the_logits_it_gets_in_any_batch(kind):
    decoder, r_BR = make(decoder_type=kind), relative(40)
    together_BC = decoder(r_BR).logits
    alone_BC = torch.cat([decoder(r_BR[i : i + 1]).logits for i in range(40)])
    torch.testing.assert_close(alone_BC, together_BC, rtol=0, atol=1e-6)
    assert decoder(r_BR[:0]).logits.shape == (0, 3)


@pytest.mark.parametrize("kind", TYPES)
def test_it_is_a_layer_norm_and_a_linear_map_or_two_with_one_past_them(kind):
    decoder, r_BR = make(decoder_type=kind, decoder_hidden_size=7).double(), relative(5).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    weights = decoder.state_dict()
    deviation_BR = r_BR - r_BR.mean(1, keepdim=True)
    h = (
        deviation_BR / deviation_BR.square().mean(1, keepdim=True).sqrt() * weights["norm.weight"]
        + weights["norm.bias"]
    )
    past = 0
    if kind == "mlp":
        past = h @ weights["skip.weight"].T
        h = h @ weights["hidden.weight"].T + weights["hidden.bias"]
        h = h * torch.sigmoid(h)
    expected_BC = h @ weights["output.weight"].T + weights["output.bias"] + past
    torch.testing.assert_close(decoder(r_BR).logits, expected_BC)
    layers = {f"{name}.{part}" for name in _layers(kind) for part in ("weight", "bias")} - {"skip.bias"}
    assert set(weights) == {*layers, "_extra_state"}  # which says what the weights mean


def _layers(kind):
    return ["norm", "output"] + ["hidden", "skip"] * (kind == "mlp")


def test_its_width_is_that_of_all_similarities():
    decoder = make(similarity=["rbf", "cosine"], num_labels=5)
    assert decoder(relative(2, 24)).logits.shape == (2, 5)


def test_it_does_not_see_how_large_relative_representations_are():
    # The coefficients of thousands of anchors have variances of 1e-5 and less: they are normalised like any other.
    decoder, r_BR = make(), relative(5)
    torch.testing.assert_close(decoder(r_BR * 1e-3).logits, decoder(r_BR).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder(r_BR + 2).logits, decoder(r_BR).logits, rtol=1e-4, atol=1e-4)


# -- training and evaluation


@pytest.mark.parametrize("kind", TYPES)
def test_noise_is_added_in_training_and_never_else(kind):
    decoder, r_BR = make(decoder_type=kind, decoder_noise=0.5, decoder_dropout=0.0), relative(5)
    calm_BC = decoder(r_BR).logits
    assert torch.equal(decoder(r_BR).logits, calm_BC)
    decoder.train()
    assert not torch.equal(decoder(r_BR).logits, decoder(r_BR).logits)
    assert torch.equal(decoder.eval()(r_BR).logits, calm_BC)


def test_the_noise_has_the_configured_deviation():
    decoder = make(decoder_type="linear", decoder_noise=0.5, decoder_dropout=0.0, num_labels=12).train()
    with torch.no_grad():
        decoder.output.weight.copy_(torch.eye(12))
        r_BR = relative(1).expand(4000, 12)
        noise_BC = decoder(r_BR).logits - decoder.eval()(r_BR).logits
    assert float(noise_BC.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noise_BC.mean()) == pytest.approx(0, abs=0.02)


def test_without_noise_and_dropout_training_and_evaluation_agree():
    decoder, r_BR = make(decoder_noise=0.0, decoder_dropout=0.0), relative(5)
    assert torch.equal(decoder.train()(r_BR).logits, decoder.eval()(r_BR).logits)


def test_dropout_is_before_the_last_layer_and_in_training_only():
    decoder, r_BR = make(decoder_noise=0.0, decoder_dropout=1.0), relative(5)
    assert torch.equal(decoder.train()(r_BR).logits, decoder.output.bias.expand(5, 3))
    assert not torch.equal(decoder.eval()(r_BR).logits, decoder.output.bias.expand(5, 3))


@pytest.mark.parametrize("kind", TYPES)
def test_it_learns(kind):
    r_BR = relative(60)
    assert learnt(r_BR, r_BR[:, :3].argmax(1), decoder_type=kind) > 0.95


# -- losses


def test_the_loss_of_one_label_among_many():
    decoder, r_BR = make(), relative(4)
    labels = torch.tensor([0, 2, 1, 0])
    output = decoder(r_BR, labels)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    for dtype in (torch.int32, torch.int8, torch.uint8):
        assert torch.equal(decoder(r_BR, labels.to(dtype)).loss, output.loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.float64], ids=str)
def test_the_loss_of_several_labels(dtype):
    decoder, r_BR = make(problem_type="multi_label_classification"), relative(4)
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    output = decoder(r_BR, labels.to(dtype))
    expected = nn.functional.binary_cross_entropy_with_logits(output.logits, labels.float())
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4,), (4, 1)], ids=str)
def test_the_loss_of_a_regression(dtype, shape):
    decoder, r_BR = make(num_labels=1), relative(4)
    targets = torch.tensor([1, 0, 3, -2])
    output = decoder(r_BR, targets.to(dtype).view(shape))
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - targets).square().mean())
    assert decoder(r_BR[:1], targets[:1].to(dtype)).loss.ndim == 0


def test_the_loss_of_a_regression_on_several_targets():
    decoder, r_BR, targets = make(problem_type="regression"), relative(4), relative(4, 3, seed=1)
    output = decoder(r_BR, targets)
    torch.testing.assert_close(output.loss, (output.logits - targets).square().mean())


def test_without_labels_there_is_no_loss():
    assert make()(relative(4)).loss is None


# -- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", TYPES)
def test_weights_of_any_dtype_agree_with_float64_up_to_their_own_rounding(kind, dtype):
    r_BR = 0.95 + 0.01 * relative(6)  # cosines of an encoder whose embeddings share a cone
    decoder = make(decoder_type=kind).to(dtype)
    logits_BC = decoder(r_BR).logits
    assert logits_BC.dtype == dtype
    exact_BC = make(decoder_type=kind).to(dtype).double()(r_BR.double()).logits
    tolerance = {torch.bfloat16: 0.02, torch.float16: 3e-3, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(logits_BC.double(), exact_BC, rtol=0, atol=tolerance)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_loss_of_half_precision_weights_is_float32_and_trains_them(problem):
    decoder = make(problem_type=problem).bfloat16().train()
    labels = torch.tensor([0, 2, 1]) if problem.startswith("single") else torch.ones(3, 3)
    loss = decoder(relative(3), labels).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in decoder.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in decoder.parameters())


def test_under_autocast_it_agrees_with_float32():
    decoder, r_BR = make(), 0.95 + 0.01 * relative(6)
    expected_BC = decoder(r_BR).logits
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(decoder(r_BR).logits.float(), expected_BC, rtol=0, atol=0.02)


def test_compiled_it_gives_the_same():
    decoder, r_BR = make(), relative(4)
    torch.compiler.reset()
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(r_BR).logits, decoder(r_BR).logits)


# -- several spaces


SPACES = {"similarity": ["rbf", "cosine", "l1"], "basis_ridge": None, "num_anchors": 6}


def test_the_sum_of_spaces_is_a_layer_norm_and_a_layer_for_each():
    decoder = make(decoder_type="linear", decoder_aggregation="sum", decoder_hidden_size=7, **SPACES).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    r_BR, weights, total = relative(5, 18).double(), decoder.state_dict(), 0
    for i, r_BA in enumerate(r_BR.split(6, dim=1)):
        h_BA = (r_BA - r_BA.mean(1, keepdim=True)) / r_BA.std(1, keepdim=True, correction=0)
        h_BA = h_BA * weights[f"norm.{i}.weight"] + weights[f"norm.{i}.bias"]
        h_BH = h_BA @ weights[f"aggregation.{i}.weight"].T + weights[f"aggregation.{i}.bias"]
        total = total + h_BH * torch.sigmoid(h_BH)
    expected_BC = total @ weights["output.weight"].T + weights["output.bias"]
    torch.testing.assert_close(decoder(r_BR).logits, expected_BC)


@pytest.mark.parametrize("kind", [*TYPES, "image"])
def test_every_decoder_can_sum_its_spaces(kind, tmp_path):
    decoder = make(decoder_type=kind, decoder_aggregation="sum", image_size=8, decoder_widths=[4, 4], **SPACES)
    r_BR = relative(4, 18)
    together = decoder(r_BR)
    found = together.logits if kind in TYPES else together.reconstruction
    decoder.save_pretrained(tmp_path)
    again = RelativeDecoder.from_pretrained(tmp_path)(r_BR)
    assert torch.equal(again.logits if kind in TYPES else again.reconstruction, found)
    alone = decoder(r_BR[:1])
    torch.testing.assert_close(alone.logits if kind in TYPES else alone.reconstruction, found[:1])


@pytest.mark.parametrize("aggregation", ["sum", "concat"])
def test_a_large_space_does_not_drown_the_others(aggregation):
    decoder, r_BR = make(decoder_aggregation=aggregation, **SPACES), relative(5, 18)
    scale_R = torch.tensor([1.0] * 12 + [1e4] * 6)  # L1 distances grow with the width, cosines do not
    torch.testing.assert_close(decoder(r_BR * scale_R).logits, decoder(r_BR).logits, rtol=1e-3, atol=1e-3)
    one_norm = make(num_anchors=18)
    assert (one_norm(r_BR * scale_R).logits - one_norm(r_BR).logits).abs().max() > 0.05


@pytest.mark.parametrize("aggregation", ["sum", "concat"])
def test_several_spaces_of_unlike_size_are_learnt(aggregation):
    r_BR = relative(60, 18)
    sizes_R = torch.tensor([0.1] * 6 + [1.0] * 6 + [2.0] * 6)
    means_R = torch.tensor([0.0] * 6 + [-1.0] * 6 + [-100.0] * 6)  # of cosines, distances, L1 distances
    labels_B = r_BR[:, [0, 7, 14]].argmax(1)
    assert learnt(means_R + sizes_R * r_BR, labels_B, decoder_aggregation=aggregation, **SPACES) > 0.95


# -- a ridge in closed form


def test_ridge_is_weighted_ridge_regression_with_an_intercept():
    z_NR, targets_NC = relative(50, 6).double(), relative(50, 2, seed=1).double()
    weights_N = relative(1, 50, seed=2)[0].double() + 0.5
    fit = fit_ridge(z_NR, targets_NC, 0.05, weights_N)
    share_N = weights_N / weights_N.sum()
    mean_R = (share_N[:, None] * z_NR).sum(0)
    total_variance = float((share_N[:, None] * (z_NR - mean_R).square()).sum())
    expected = Ridge(alpha=0.05 * total_variance).fit(z_NR.numpy(), targets_NC.numpy(), sample_weight=share_N.numpy())
    np.testing.assert_allclose(fit.weight_CR.numpy(), expected.coef_, rtol=1e-6)
    np.testing.assert_allclose(fit.bias_C.numpy(), expected.intercept_, rtol=1e-6)


def test_what_it_says_of_a_sample_left_out_is_what_a_fit_without_it_says():
    z_NR, targets_NC, weights_N = relative(30, 4).double(), relative(30, 2, seed=1).double(), torch.ones(30)
    left_out_NC = fit_ridge(z_NR, targets_NC, 1e-9, weights_N).left_out_NC
    for i in (0, 13, 29):
        rest = torch.arange(30) != i
        without = fit_ridge(z_NR[rest], targets_NC[rest], 1e-9)
        torch.testing.assert_close(
            left_out_NC[i], z_NR[i] @ without.weight_CR.T + without.bias_C, rtol=1e-4, atol=1e-5
        )


def test_rare_classes_count_more_by_the_root_of_their_rarity():
    labels = torch.tensor([0] * 16 + [1] * 4)
    weights_N = class_weights(labels, 2)
    assert float(weights_N[16] / weights_N[0]) == pytest.approx(2)
    assert float(weights_N[0]) == pytest.approx(math.sqrt(20 / (2 * 16)))


def test_scores_are_sharpened_as_far_as_they_are_right():
    generator = torch.Generator().manual_seed(0)
    logits_NC = 3 * torch.randn(4000, 5, generator=generator)
    labels = torch.distributions.Categorical(logits=logits_NC).sample()
    assert sharpness(logits_NC / 20, labels) == pytest.approx(20, rel=0.2)


class Part(RelativeDecoder):
    """Stands for any part that knows its anchors."""

    anchors = AnchorSet(map(str, range(12)), {"en": [f"text {i}" for i in range(12)]})


def fitted(r_NR, labels, **settings):
    part = Part(RelativeDecoderConfig(num_anchors=12, fingerprint=Part.anchors.fingerprint))
    return RelativeDecoder.fit_ridge(r_NR, labels, part, **settings)


def test_a_fitted_decoder_is_a_linear_one_with_the_labels_it_was_given(tmp_path):
    r_NR = relative(200)
    labels = r_NR[:, :3].argmax(1)
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    decoder = fitted(r_NR, labels, **names)
    assert (decoder(r_NR).logits.argmax(1) == labels).float().mean() > 0.9
    assert decoder.config.decoder_type == "linear" and not decoder.training
    assert decoder.anchors is Part.anchors
    decoder.save_pretrained(tmp_path)
    loaded = RelativeDecoder.from_pretrained(tmp_path)
    assert torch.equal(loaded(r_NR).logits, decoder(r_NR).logits)
    assert loaded.config.id2label == names["id2label"]
    loss = decoder(r_NR, labels).loss
    assert loss < 0.7 * math.log(3)  # probabilities of a kind, not scores near one another


def test_labels_tell_what_they_are_for():
    r_NR = relative(100)
    several = (r_NR[:, :4] > 0.5).long()
    number_N = 3 * r_NR[:, 0] - r_NR[:, 1]
    decoder = fitted(r_NR, several)
    assert decoder.config.problem_type == "multi_label_classification" and decoder.config.num_labels == 4
    assert ((decoder(r_NR).logits > 0) == several.bool()).float().mean() > 0.85
    regression = fitted(r_NR, number_N)
    assert regression.config.problem_type == "regression" and regression.config.num_labels == 1
    assert (regression(r_NR).logits[:, 0] - number_N).square().mean() < 0.3 * number_N.var()
    assert fitted(r_NR, several[:, 0]).config.num_labels == 2


def test_names_of_classes_are_numbered():
    r_NR, labels = relative(60), ["mail", "games", "admin"] * 20
    in_order = {0: "admin", 1: "games", 2: "mail"}
    column = Dataset.from_dict({"r": r_NR.tolist(), "label": labels})
    for given in (labels, np.array(labels), pd.Series(labels, index=range(60, 0, -1)), column["label"]):
        assert fitted(r_NR, given).config.id2label == in_order
    assert fitted(column["r"], labels).config.id2label == in_order
    numbered = fitted(r_NR, labels, id2label={0: "mail", 1: "games", 2: "admin"})
    torch.testing.assert_close(numbered(r_NR).logits[:, [2, 1, 0]], fitted(r_NR, labels)(r_NR).logits)
    assert fitted(r_NR, [2, 1, 0] * 20, label2id={"a": 0, "b": 1, "c": 2}).config.id2label == {0: "a", 1: "b", 2: "c"}
    assert fitted(r_NR, labels, id2label=["mail", "games", "admin"]).config.id2label == numbered.config.id2label
    with pytest.raises(SampleError, match=r"labels\[2\] is 'admin', expected one of mail, games .*Name all classes"):
        fitted(r_NR, labels, id2label={0: "mail", 1: "games"})


def test_classes_without_samples_are_warned_of_unless_they_are_meant(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_relreps"), "propagate", True)
    r_NR, from_1 = relative(60), [1, 2, 3] * 20
    for meant in (
        {"num_labels": 4},
        {"id2label": ["none", "a", "b", "c"]},
        {"label2id": {"x": 0, "a": 1, "b": 2, "c": 3}},
    ):
        fitted(r_NR, from_1, **meant)
    fitted(r_NR, [0, 1, 2] * 20)
    fitted(r_NR, from_1, problem_type="regression")
    assert not caplog.messages
    assert fitted(r_NR, from_1).config.num_labels == 4
    assert caplog.messages[0].startswith(
        "The labels lie in 1 ... 3, and class 0 had no samples, though the decoder has 4 "
    )
    assert "Number the classes from 0 without gaps" in caplog.messages[0]
    fitted(r_NR, [0, 9, 11] * 20)
    assert "classes 1, 2, 3, 4, 5, ... had no samples" in caplog.messages[1]


def test_classes_that_are_no_integers_are_told_from_numbers():
    with pytest.raises(
        LabelError, match=r"num_labels=3 for problem_type='regression'\. Labels that are classes must be int"
    ):
        make(num_labels=3).fit(relative(6), torch.tensor([0.0, 1.0, 2.0] * 2))


def test_classes_keep_their_order_in_a_file(tmp_path):
    names = {number: f"class {number}" for number in range(12)}
    fitted(relative(60), [i % 12 for i in range(60)], id2label=names).save_pretrained(tmp_path)
    assert list(RelativeDecoder.from_pretrained(tmp_path).config.id2label) == list(names)
    assert list(AutoConfig.from_pretrained(tmp_path).id2label) == list(names)


def test_images_that_would_fill_the_memory_are_not_drawn():
    with pytest.raises(ConfigurationError, match="image_size=20000, num_channels=1 and 2 steps .* make more than"):
        RelativeDecoderConfig(decoder_type="image", decoder_widths=[1, 1], image_size=20000, num_channels=1)
    with pytest.raises(ConfigurationError, match="and 20 steps"):
        RelativeDecoderConfig(decoder_type="image", decoder_widths=[1] * 20)


@pytest.mark.parametrize(
    ("r_NR", "labels", "error", "message"),
    [
        (relative(5), [0, 1], SampleError, r"Found 2 labels for 5 samples\. Give one label for each"),
        (torch.ones(5, 12), [0, 1, 0, 1, 0], SampleError, r"total variance of 0\.0, expected a finite number above"),
        (relative(5, 11), [0, 1, 0, 1, 0], StitchingError, r"reads relative representations of 12 numbers"),
        (relative(3), [0, -1, 1], SampleError, r"The labels lie in -1 \.\.\. 1, expected 0 \.\.\. 1"),
        (relative(3), [0.5, float("nan"), 1.0], SampleError, r"labels\[1\] is nan, expected finite numbers"),
        (relative(3), [0, None, 1], SampleError, r"labels\[1\] is None\. Expected a class for each sample"),
        (relative(3), ["a", 3, "b"], SampleError, r"labels\[1\] is 3, expected one of a, b"),
    ],
)
def test_what_cannot_be_fitted_is_refused(r_NR, labels, error, message):
    with pytest.raises(error, match=message):
        fitted(r_NR, labels)


def test_a_space_or_a_configuration_says_as_much_as_an_encoder():
    r_NR, labels = relative(60), [0, 1, 2] * 20
    part = Part(RelativeDecoderConfig(num_anchors=12, fingerprint=Part.anchors.fingerprint, anchor_view="en"))
    expected = RelativeDecoder.fit_ridge(r_NR, labels, part)
    for like in (part.config, part.config.space, RelativeConfig(decoder=part.config, encoder=encoder_config(part))):
        decoder = RelativeDecoder.fit_ridge(r_NR, labels, like)
        assert decoder.config.space == part.config.space
        assert torch.equal(decoder(r_NR).logits, expected(r_NR).logits)
        assert not decoder.has_raw_anchors


def encoder_config(part):
    return RelativeEncoderConfig(space=part.config.space, anchor_view="en")


def test_a_space_of_no_anchors_is_refused_for_a_fitted_decoder():
    message = r"would read 12 anchors none, .* no encoder fits a space without.*like=encoder\.config\.space"
    with pytest.raises(ConfigurationError, match=message):
        RelativeDecoder.fit_ridge(relative(60), [0, 1, 2] * 20, RelativeSpace(num_anchors=12))


# -- a decoder of embeddings that somebody has


@pytest.fixture(scope="module")
def embedded():
    """Package descriptions, and their embeddings by a BERT of random weights: a bag of words."""
    rows = load_debian_descriptions()
    rows = rows.filter(lambda section: section in ("games", "science", "sound"), input_columns="section")
    rows = rows.shuffle(seed=0).select(range(400))
    torch.manual_seed(0)
    tokenizer = wordpiece_tokenizer(rows["en"], longest=24)
    anchors = AnchorSet(rows["package"][:60], {"en": rows["en"][:60], "fr": rows["fr"][:60]})
    encoder = RelativeModel.from_encoder(small_bert(len(tokenizer), longest=24), anchors.view("en"), tokenizer)
    labels = [("games", "science", "sound").index(section) for section in rows["section"]]
    return encoder, encoder.encode(rows["en"][:]), labels


def test_embeddings_become_a_decoder_that_is_the_one_of_their_encoder(embedded):
    encoder, x_ND, labels = embedded
    view = encoder.anchors.view("en")
    decoder = RelativeDecoder.from_embeddings(x_ND, labels, view, encoder.encode(view.samples))
    expected = RelativeDecoder.fit_ridge(encoder.projection(x_ND), labels, encoder)
    assert decoder.config.to_dict() == expected.config.to_dict()
    r_BR = encoder.projection(x_ND[:9])
    torch.testing.assert_close(decoder(r_BR).logits, expected(r_BR).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [np.asarray, np.float16, np.float64, torch.Tensor.tolist], ids=str)
def test_embeddings_of_any_kind_and_rows_of_them_that_are_the_anchors_are_taken(kind, embedded):
    encoder, x_ND, labels = embedded
    decoder = RelativeDecoder.from_embeddings(kind(x_ND), labels, encoder.anchors, np.arange(60))
    assert decoder.config.anchor_view is None  # the set has two
    model = stitch(encoder, decoder)
    right_N = decoder(encoder.projection(x_ND)).logits.argmax(1) == torch.tensor(labels)
    assert right_N.float().mean() > 0.7
    assert model.config.space == encoder.config.space


def test_a_decoder_of_embeddings_is_uploaded_stitched_and_loaded_again(embedded, new_repo_id):
    encoder, x_ND, labels = embedded
    names = {0: "games", 1: "science", 2: "sound"}
    settings = {"space": RelativeConfig.paper(), "id2label": names}
    decoder = RelativeDecoder.from_embeddings(x_ND, labels, encoder.anchors.view("en"), range(60), **settings)
    repo_id = new_repo_id()
    decoder.push_to_hub(repo_id)
    loaded = RelativeDecoder.from_pretrained(repo_id)
    assert loaded.anchors.fingerprint == encoder.anchors.fingerprint
    model = stitch(encoder.backbone, loaded, view="en", processor=encoder.processor)
    assert model.encoder.config.space.similarity == ("cosine",) and model.config.id2label == names
    model.encoder.config.max_length = 24
    right_N = model.decoder(model.encoder.projection(x_ND)).logits.argmax(1) == torch.tensor(labels)
    assert right_N.float().mean() > 0.7


ANCHORS_12 = Part.anchors
X_20 = relative(20, 5)


@pytest.mark.parametrize(
    ("embeddings", "labels", "anchors", "anchor_embeddings", "error", "message"),
    [
        (X_20, [0, 1] * 9, ANCHORS_12, X_20[:12], SampleError, r"Found 18 labels for 20 samples"),
        (
            X_20,
            [0, 1] * 10,
            ANCHORS_12,
            X_20[:11],
            EmbeddingError,
            r"shape \(11, 5\), expected \(12, 5\): one row for",
        ),
        (X_20, [0, 1] * 10, ANCHORS_12, X_20[:12, :4], EmbeddingError, r"shape \(12, 4\), expected \(12, 5\)"),
        (X_20, [0, 1] * 10, ANCHORS_12, range(9, 21), EmbeddingError, r"rows 9 to 20 of the embeddings, .* 0 to 19"),
        (X_20, [0, 1] * 10, ANCHORS_12, [0.5] * 12, EmbeddingError, r"12 numbers of type torch.float32, expected emb"),
        (X_20, [0, 1] * 10, ANCHORS_12, torch.zeros(12, 5), EmbeddingError, r"12 of 12 anchor embeddings have no dir"),
        (
            X_20 / 0,
            [0, 1] * 10,
            ANCHORS_12,
            X_20[:12],
            EmbeddingError,
            r"20 of 20 sample embeddings have no direction",
        ),
        (X_20[0], [0, 1] * 10, ANCHORS_12, X_20[:12], EmbeddingError, r"shape \(5,\), expected \(N, D\)"),
        (
            ["a text"],
            [0],
            ANCHORS_12,
            X_20[:12],
            EmbeddingError,
            r"embeddings is a list that cannot be converted to an array",
        ),
        (X_20, [0, 1] * 10, ["a"] * 12, X_20[:12], AnchorError, r"anchors is a list, expected an AnchorSet or a view"),
        (X_20, [-1, 1] * 10, ANCHORS_12, X_20[:12], SampleError, r"The labels lie in -1 \.\.\. 1"),
    ],
)
def test_embeddings_that_cannot_become_a_decoder_are_refused(
    embeddings, labels, anchors, anchor_embeddings, error, message
):
    with pytest.raises(error, match=message):
        RelativeDecoder.from_embeddings(embeddings, labels, anchors, anchor_embeddings)


# -- one decoder on several encoders


@pytest.fixture(scope="module")
def three_encoders():
    """Frozen BERTs with random weights and seeds of their own: bags of words, one for each language."""
    rows = load_debian_descriptions()
    rows = rows.filter(lambda section: section in ("games", "science", "sound"), input_columns="section")
    rows = rows.class_encode_column("section").rename_column("section", "labels").shuffle(seed=0)
    train, test = rows.select(range(900)), rows.select(range(900, 1300))
    languages = ("en", "fr", "it")
    anchors = AnchorSet.from_dataset(train, k=100, views=list(languages), id_column="package")
    encoded = {}
    for seed, language in enumerate(languages):
        tokenizer = wordpiece_tokenizer(train[language], 64, 2000)
        torch.manual_seed(seed)
        bert = small_bert(len(tokenizer), 64, width=64, layers=1).eval()
        encoder = RelativeModel.from_encoder(bert, anchors.view(language), tokenizer)
        kept = ["labels", language]
        parts = [encode_dataset(encoder, part.select_columns(kept), language) for part in (train, test)]
        encoded[language] = (encoder, *parts)
    return encoded


def accuracy(decoder, part):
    with torch.no_grad():
        logits_NC = decoder.eval()(part["relative_embeds"][:]).logits
    return float((logits_NC.argmax(1) == torch.as_tensor(part["labels"][:])).float().mean())


def test_a_ridge_on_two_encoders_stitches_to_a_third_at_least_as_well_as_on_one(three_encoders):
    single, joint = [], []
    for target in three_encoders:
        others = [encoded for language, encoded in three_encoders.items() if language != target]
        decoders = [_fit(encoder, train) for encoder, train, _ in others]
        both = concatenate_datasets([train for _, train, _ in others])
        decoders.append(_fit(others[0][0], both))
        scores = [accuracy(decoder, three_encoders[target][2]) for decoder in decoders]
        single.append(sum(scores[:2]) / 2)
        joint.append(scores[2])
        stitched = stitch(three_encoders[target][0], decoders[2])
        assert stitched.config.anchor_view == target
    assert min(joint) > 0.5  # a third would be chance
    assert sum(joint) / 3 >= sum(single) / 3 - 0.005


def _fit(encoder, part):
    return RelativeDecoder.fit_ridge(part["relative_embeds"][:], part["labels"][:], encoder, ridge=RIDGE)


def test_the_trainer_trains_one_decoder_on_several_encoders(three_encoders, tmp_path):
    encoder, train_en, _ = three_encoders["en"]
    both = concatenate_datasets([train_en, three_encoders["fr"][1]])
    torch.manual_seed(0)
    decoder = RelativeDecoder(RelativeDecoderConfig(space=encoder.config.space, num_labels=3))
    tiny_trainer(decoder, None, both, tmp_path, max_steps=300, learning_rate=1e-3).train()
    assert accuracy(decoder, three_encoders["it"][2]) > 0.5


def test_the_recipe_for_several_encoders_runs(three_encoders):
    page = (Path(__file__).parents[1] / "docs" / "projections.md").read_text("utf-8")
    (recipe,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert '"me/italian-encoder"' in recipe
    rows = load_debian_descriptions("validation").rename_columns({"section": "old", "en": "text"})
    french = rows.remove_columns("text").rename_column("fr", "text")
    kept = ["text", "label"]
    given = {f"encoder_{language}": encoded[0] for language, encoded in three_encoders.items()}
    given |= {"english": rows.select_columns(kept), "french": french.select_columns(kept)}
    exec(compile(recipe.replace('"me/italian-encoder"', "encoder_it"), "docs/projections.md", "exec"), given)
    assert given["model"].config.anchor_view == "it"
    assert given["model"].config.num_labels == 11


# -- saved and loaded, and errors


@pytest.mark.parametrize("kind", TYPES)
def test_a_folder_gives_back_the_same_decoder(tmp_path, kind):
    decoder, r_BR = make(decoder_type=kind, num_labels=4, id2label={0: "a", 1: "b", 2: "c", 3: "d"}), relative(4)
    decoder.save_pretrained(tmp_path)
    loaded = RelativeDecoder.from_pretrained(tmp_path)
    assert torch.equal(loaded(r_BR).logits, decoder(r_BR).logits)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}


@pytest.mark.parametrize("k", [0, 1])
def test_a_decoder_needs_two_numbers_to_normalise(k):
    with pytest.raises(ConfigurationError, match=rf"so it needs at least two anchors; num_anchors is {k}\. Set it"):
        RelativeDecoder(RelativeConfig(num_anchors=k))


def test_relative_representations_of_another_width_are_refused():
    decoder = make(similarity=["rbf", "cosine"])
    message = r"representations of 24 numbers \(12 anchors .*, rbf 1.5 \+ cosine, .*\), but found \(2, 12\)\. Use an"
    with pytest.raises(StitchingError, match=message):
        decoder(relative(2))


# -- where a training starts from


@pytest.mark.parametrize("aggregation", ["concat", "sum"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_decoder_of_any_kind_can_be_put_in_closed_form_and_trained_on(kind, aggregation):
    r_NR = relative(200, 24)
    labels = r_NR[:, :3].argmax(1)
    decoder = make(decoder_type=kind, decoder_aggregation=aggregation, similarity=["cosine", "rbf"])
    assert decoder.is_new
    decoder.fit(r_NR, labels)
    assert not decoder.is_new
    assert (decoder(r_NR).logits.argmax(1) == labels).float().mean() > 0.8
    before = decoder(r_NR, labels).loss
    optimizer = torch.optim.Adam(decoder.train().parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        decoder(r_NR, labels).loss.backward()
        optimizer.step()
    assert decoder.eval()(r_NR, labels).loss < before
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_an_mlp_in_closed_form_is_the_ridge_and_nothing_else():
    r_NR = relative(200)
    labels = r_NR[:, :3].argmax(1)
    decoder = make(decoder_type="mlp")
    decoder.fit(r_NR, labels)
    torch.testing.assert_close(decoder(r_NR).logits, fitted(r_NR, labels)(r_NR).logits)


def test_a_decoder_is_new_until_it_is_loaded_fitted_or_trained(tmp_path):
    decoder, r_BR, labels_B = make(), relative(8), torch.arange(8) % 3
    decoder(r_BR, labels_B)  # in evaluation mode
    assert decoder.is_new and copy.deepcopy(decoder).is_new
    decoder.save_pretrained(tmp_path)
    assert not RelativeDecoder.from_pretrained(tmp_path).is_new
    other = make()
    other.load_state_dict(decoder.state_dict())
    assert not other.is_new
    decoder.train()(r_BR, labels_B)
    assert not decoder.is_new
    assert not fitted(relative(20), torch.arange(20) % 2).is_new


def test_a_fit_reads_labels_as_the_loss_does():
    r_NR = relative(100)
    several = (r_NR[:, :3] > 0.5).float()
    decoder = make(num_labels=3)
    decoder.fit(r_NR, several)
    assert ((decoder(r_NR).logits > 0) == several.bool()).float().mean() > 0.8
    number_N = 3 * r_NR[:, 0] - r_NR[:, 1]
    regression = make(num_labels=1)
    regression.fit(r_NR, number_N)
    assert (regression(r_NR).logits[:, 0] - number_N).square().mean() < 0.3 * number_N.var()


def test_a_decoder_without_a_closed_form_is_refused():
    decoder = make(decoder_type="image", image_size=8, decoder_widths=[4], num_channels=1)
    assert not decoder.is_new
    with pytest.raises(ConfigurationError, match="type 'image' has no closed form; mlp, linear and pair have one"):
        decoder.fit(relative(10), torch.arange(10) % 2)
