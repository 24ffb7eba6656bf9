"""`RelativeDecoder`: logits of each sample by itself, its losses, its noise, its precision."""

import pytest
import torch
from torch import nn

from hf_relreps import RelativeConfig, RelativeDecoder
from hf_relreps.errors import ConfigurationError, StitchingError


def make(seed=0, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RelativeDecoder(RelativeConfig(**{"num_anchors": 12, "num_labels": 3} | settings)).eval()


def relative(n, k=12, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed))


TYPES = ["mlp", "linear"]


@pytest.mark.parametrize("kind", TYPES)
def test_one_sample_alone_gets_the_logits_it_gets_in_any_batch(kind):
    decoder, r_BR = make(decoder_type=kind), relative(40)
    together_BC = decoder(r_BR).logits
    alone_BC = torch.cat([decoder(r_BR[i : i + 1]).logits for i in range(40)])
    torch.testing.assert_close(alone_BC, together_BC, rtol=0, atol=1e-6)
    assert decoder(r_BR[:0]).logits.shape == (0, 3)


@pytest.mark.parametrize("kind", TYPES)
def test_it_is_a_layer_norm_and_one_or_two_linear_maps(kind):
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
    if kind == "mlp":
        h = h @ weights["hidden.weight"].T + weights["hidden.bias"]
        h = h * torch.sigmoid(h)
    expected_BC = h @ weights["output.weight"].T + weights["output.bias"]
    torch.testing.assert_close(decoder(r_BR).logits, expected_BC)
    assert set(weights) == {f"{name}.{part}" for name in _layers(kind) for part in ("weight", "bias")}


def _layers(kind):
    return ["norm", "output"] + ["hidden"] * (kind == "mlp")


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
    decoder = make(decoder_type=kind, decoder_noise=0.0, decoder_dropout=0.0).train()
    r_BR = relative(60)
    labels = r_BR[:, :3].argmax(1)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        decoder(r_BR, labels).loss.backward()
        optimizer.step()
    assert (decoder.eval()(r_BR).logits.argmax(1) == labels).float().mean() > 0.95


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
    with pytest.raises(ConfigurationError, match=rf"normalises them, so it needs two; num_anchors is {k}\. Set it"):
        RelativeDecoder(RelativeConfig(num_anchors=k))


def test_relative_representations_of_another_width_are_refused():
    decoder = make(similarity=["rbf", "cosine"])
    message = r"reads relative representations of 24 numbers \(12 anchors, rbf, cosine\), found \(2, 12\)\. Use an"
    with pytest.raises(StitchingError, match=message):
        decoder(relative(2))
