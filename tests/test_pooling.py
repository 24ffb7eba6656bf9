"""How token and pixel vectors become one vector of a sample."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from hf_relreps.errors import ConfigurationError
from hf_relreps.pooling import POOLERS, default_pooling, pool


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output(hidden, **more):
    return SimpleNamespace(last_hidden_state=hidden, **more)


# Two samples: the first two tokens of three count, or the last two.
HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 60.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 60.0]]])
RIGHT = torch.tensor([[1, 1, 0], [1, 1, 1]])
LEFT = torch.tensor([[0, 1, 1], [1, 1, 1]])
BY_HAND = {
    ("cls", "right"): [[1, 2], [1, 2]],
    ("cls", "left"): [[3, 4], [1, 2]],
    ("mean", "right"): [[2, 3], [3, 22]],
    ("mean", "left"): [[4, 32], [3, 22]],
    ("last", "right"): [[3, 4], [5, 60]],
    ("last", "left"): [[5, 60], [5, 60]],
}


@pytest.mark.parametrize(("pooling", "side"), BY_HAND)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32], ids=str)
def test_padding_on_either_side_is_left_out(pooling, side, dtype):
    mask_BT = (RIGHT if side == "right" else LEFT).to(dtype)
    found_BD = pool(output(HIDDEN), mask_BT, pooling)
    torch.testing.assert_close(found_BD, torch.tensor(BY_HAND[pooling, side], dtype=torch.float32))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), left=st.booleans(), more=st.integers(0, 4))
def test_how_much_padding_there_is_does_not_matter(lengths, left, more):
    width = max(lengths) + more
    samples = [gaussian(length, 3, seed=length) for length in lengths]
    hidden_BTD = torch.full((len(lengths), width, 3), 7.0)
    mask_BT = torch.zeros(len(lengths), width, dtype=torch.long)
    for i, sample_TD in enumerate(samples):
        place = slice(width - len(sample_TD), width) if left else slice(0, len(sample_TD))
        hidden_BTD[i, place], mask_BT[i, place] = sample_TD, 1
    for pooling in ("cls", "mean", "last"):
        alone_BD = torch.cat([pool(output(sample_TD[None]), None, pooling) for sample_TD in samples])
        torch.testing.assert_close(pool(output(hidden_BTD), mask_BT, pooling), alone_BD)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_without_a_mask_every_token_counts(pooling):
    expected_BD = pool(output(HIDDEN), torch.ones(2, 3), pooling)
    assert torch.equal(pool(output(HIDDEN), None, pooling), expected_BD)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_stands_in_the_padding_does_not_matter(pooling, bad):
    # Some attention kernels leave NaN in rows that attend to nothing.
    hidden_BTD = HIDDEN.clone()
    hidden_BTD[0, 0] = bad
    assert torch.equal(pool(output(hidden_BTD), LEFT, pooling), pool(output(HIDDEN), LEFT, pooling))


def test_the_mean_over_no_tokens_is_zero_which_the_projection_refuses():
    assert torch.equal(pool(output(HIDDEN), torch.zeros(2, 3), "mean"), torch.zeros(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_half_precision_is_summed_in_float32(dtype, masked):
    hidden_BTD = (1 + 0.1 * gaussian(3, 4000, 4)).to(dtype)
    mask_BT = torch.ones(3, 4000, dtype=torch.long) if masked else None
    found_BD = pool(output(hidden_BTD), mask_BT, "mean")
    assert found_BD.dtype == dtype
    assert torch.equal(found_BD, hidden_BTD.double().mean(1).to(dtype))


def test_double_precision_is_kept():
    hidden_BTD = gaussian(2, 3, 4).double()
    found_BD = pool(output(hidden_BTD), RIGHT, "mean")
    expected_BD = torch.stack([hidden_BTD[0, :2].mean(0), hidden_BTD[1].mean(0)])
    torch.testing.assert_close(found_BD, expected_BD, rtol=1e-14, atol=1e-14)


def test_the_mean_over_a_feature_map():
    hidden_BDHW = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    assert pool(output(hidden_BDHW), None, "spatial_mean").tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]


def test_the_models_own_pooler_gives_vectors_also_where_it_keeps_axes():
    assert pool(output(HIDDEN, pooler_output=torch.ones(2, 5)), RIGHT, "pooler").shape == (2, 5)
    assert pool(output(HIDDEN, pooler_output=torch.ones(2, 5, 1, 1)), None, "pooler").shape == (2, 5)


@pytest.mark.parametrize("pooling", POOLERS)
def test_gradients_reach_what_counts_and_nothing_else(pooling):
    hidden = gaussian(2, 3, 4, *([5] * (pooling == "spatial_mean"))).requires_grad_()
    mask_BT = None if pooling == "spatial_mean" else RIGHT
    pool(output(hidden), mask_BT, pooling).sum().backward()
    assert hidden.grad.abs().sum() > 0
    if mask_BT is not None:
        assert hidden.grad[0, 2].abs().sum() == 0


# -- errors


@pytest.mark.parametrize("missing", [{}, {"pooler_output": None}], ids=str)
def test_a_pooler_that_is_not_there_is_refused(missing):
    with pytest.raises(
        ConfigurationError, match="with a pooler, and this one has none. Choose one of cls, mean, last, sp"
    ):
        pool(output(HIDDEN, **missing), None, "pooler")


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_tokens_are_not_read_from_a_feature_map(pooling):
    message = rf"pooling='{pooling}' reads 3 dimensions, but the encoder returns \(2, 3, 4, 5\)\. Choose spatial_mean"
    with pytest.raises(ConfigurationError, match=message):
        pool(output(torch.ones(2, 3, 4, 5)), None, pooling)


def test_a_feature_map_is_not_read_from_tokens():
    message = r"'spatial_mean' reads 4 dimensions, but the encoder returns \(2, 3, 2\)\. Choose cls, mean"
    with pytest.raises(ConfigurationError, match=message):
        pool(output(HIDDEN), RIGHT, "spatial_mean")


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_mask_of_another_length_is_refused(pooling):
    with pytest.raises(ConfigurationError, match=r"mask of shape \(2, 3\).*, found \(2, 9\): .* Choose pooler"):
        pool(output(HIDDEN), torch.ones(2, 9), pooling)


# -- what suits an encoder

TEXT = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
IMAGE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8}
SWIN = {"image_size": 8, "patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2]}


@pytest.mark.parametrize(
    ("model", "modality", "expected"),
    [
        (lambda: BertModel(BertConfig(**TEXT)), "text", "mean"),
        (lambda: GPT2Model(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2)), "text", "last"),
        (lambda: ViTModel(ViTConfig(patch_size=4, **IMAGE)), "image", "cls"),
        (lambda: SwinModel(SwinConfig(**SWIN)), "image", "mean"),
        (lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])), "image", "spatial_mean"),
    ],
    ids=["bert", "gpt2", "vit", "swin", "resnet"],
)
def test_the_default_suits_the_encoder_and_can_be_read_from_its_output(model, modality, expected):
    model = model().eval()
    with torch.no_grad():
        result = model(torch.ones(2, 3, 8, 8)) if modality == "image" else model(torch.ones(2, 5, dtype=torch.long))
    pooling = default_pooling(model, modality, result)
    assert pooling == expected
    assert pool(result, None, pooling).shape == (2, 8)


def test_the_pooling_of_nodes_is_refused_for_other_samples():
    with pytest.raises(ConfigurationError, match="pooling='none' leaves the vectors of a sample as they are"):
        pool(SimpleNamespace(last_hidden_state=torch.zeros(2, 3, 4)), None, "none")
