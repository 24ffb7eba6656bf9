"""Latent similarity against brute force in float64, invariances and errors."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_relreps.errors import EmbeddingError, EvaluationError
from hf_relreps.evaluation import latent_similarity


def gaussian(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def rotation(d, seed=0):
    return np.linalg.qr(gaussian(d, d, seed))[0]


def brute_force(x_ND, y_ND, k):
    """The paper's definitions, one sample at a time."""
    x_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    y_ND = y_ND / np.linalg.norm(y_ND, axis=1, keepdims=True)
    jaccard, mrr, cosine = [], [], []
    for i in range(len(x_ND)):
        found = list(np.argsort(-(y_ND @ x_ND[i]))[:k])
        own = list(np.argsort(-(y_ND @ y_ND[i]))[:k])
        jaccard.append(len(set(found) & set(own)) / len(set(found) | set(own)))
        mrr.append(1 / (found.index(i) + 1) if i in found else 0)
        cosine.append(x_ND[i] @ y_ND[i])
    return {"jaccard": np.mean(jaccard), "mrr": np.mean(mrr), "cosine": np.mean(cosine)}


def brute_force_cka(x_ND, y_NE):
    """CKA from the two N x N Gram matrices."""
    centre_NN = np.eye(len(x_ND)) - 1 / len(x_ND)
    k_NN, l_NN = centre_NN @ x_ND @ x_ND.T @ centre_NN, centre_NN @ y_NE @ y_NE.T @ centre_NN
    return np.sum(k_NN * l_NN) / np.sqrt(np.sum(k_NN * k_NN) * np.sum(l_NN * l_NN))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(3, 60),
    d=st.integers(2, 12),
    noise=st.floats(0, 3),
    chunk_size=st.integers(1, 70),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_every_metric_equals_brute_force_in_chunks_of_any_size(n, d, noise, chunk_size, seed, data):
    k = data.draw(st.integers(1, n - 1))
    x_ND = gaussian(n, d, seed)
    y_ND = x_ND + noise * gaussian(n, d, seed + 1)
    result = latent_similarity(x_ND, y_ND, k=k, chunk_size=chunk_size)
    for name, expected in brute_force(x_ND, y_ND, k).items():
        assert getattr(result, name) == pytest.approx(expected, abs=1e-6)
    assert result.cka == pytest.approx(brute_force_cka(x_ND, y_ND), abs=1e-6)
    assert (result.k, result.n) == (k, n)


def test_a_hand_computed_case():
    # On the unit circle at 0, 10, 60 and 180 degrees; in y the first two have changed places.
    angles = np.deg2rad([0, 10, 60, 180])
    x_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y_ND = x_ND[[1, 0, 2, 3]]
    result = latent_similarity(x_ND, y_ND, k=1)
    # Nearest to x0 is y1 and not y0, likewise for x1; samples 2 and 3 find themselves.
    assert result.jaccard == pytest.approx(2 / 4)
    assert result.mrr == pytest.approx(2 / 4)
    assert result.cosine == pytest.approx((2 * np.cos(np.deg2rad(10)) + 2) / 4)
    # With two neighbours the twin of x0 comes second, and {y0, y1} is what y0 finds as well.
    assert latent_similarity(x_ND, y_ND, k=2).mrr == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)


def test_float32_agrees_with_float64():
    x_ND, y_ND = gaussian(400, 32), gaussian(400, 32) + 0.5 * gaussian(400, 32, 1)
    single = latent_similarity(x_ND.astype(np.float32), y_ND.astype(np.float32))
    double = latent_similarity(x_ND, y_ND)
    for name in ("jaccard", "mrr", "cosine", "cka"):
        assert getattr(single, name) == pytest.approx(getattr(double, name), abs=1e-5)


def test_a_space_equals_itself_and_its_rescaled_rows():
    x_ND = gaussian(50, 8)
    scales_N1 = np.random.default_rng(1).uniform(1e-3, 1e3, (50, 1))
    for other in (x_ND, x_ND * scales_N1):
        result = latent_similarity(x_ND, other)
        assert (result.jaccard, result.mrr) == (1, 1)
        assert result.cosine == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-6, 1e6), width=st.integers(8, 20))
def test_cka_ignores_rotation_reflection_shift_and_scale_also_into_more_dimensions(seed, scale, width):
    x_ND = gaussian(40, 8, seed)
    y_NE = scale * (x_ND @ rotation(width, seed)[:8] + gaussian(1, width, seed + 1))
    assert latent_similarity(x_ND, y_NE, metrics=("cka",)).cka == pytest.approx(1, abs=1e-6)


def test_a_rotation_destroys_what_compares_coordinates_and_a_joint_one_nothing():
    x_ND, y_ND = gaussian(300, 16), gaussian(300, 16) + 0.7 * gaussian(300, 16, 1)
    q_DD = rotation(16, 2)
    apart, together = latent_similarity(x_ND, x_ND @ q_DD), latent_similarity(x_ND @ q_DD, y_ND @ q_DD)
    assert apart.jaccard < 0.1 and apart.mrr < 0.1 and abs(apart.cosine) < 0.2
    before = latent_similarity(x_ND, y_ND)
    for name in ("jaccard", "mrr", "cosine", "cka"):
        assert getattr(together, name) == pytest.approx(getattr(before, name), abs=1e-9)


def test_relative_representations_agree_where_absolute_spaces_do_not():
    x_ND = gaussian(300, 16)
    y_ND = x_ND @ rotation(16, 5)

    def relative(z_ND):
        z_ND = z_ND / np.linalg.norm(z_ND, axis=1, keepdims=True)
        return z_ND @ z_ND[:40].T

    absolute_result, relative_result = latent_similarity(x_ND, y_ND), latent_similarity(relative(x_ND), relative(y_ND))
    assert relative_result.jaccard > 0.99 > 0.1 > absolute_result.jaccard


def test_twins_at_equal_similarity_share_the_better_rank():
    x_ND = np.repeat(gaussian(5, 4), 4, axis=0)  # each vector four times, so all four tie for the first rank
    assert latent_similarity(x_ND, x_ND, k=2).mrr == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_any_precision_are_accepted(dtype):
    x_ND = torch.tensor(gaussian(60, 16)).to(dtype)
    result = latent_similarity(x_ND, x_ND.clone().requires_grad_())
    assert result.jaccard == 1 and result.cosine == pytest.approx(1, abs=1e-6)


def test_huge_and_tiny_vectors_keep_their_direction_in_float32():
    x_ND = torch.tensor(gaussian(60, 16), dtype=torch.float32)
    for scale in (1e-30, 1e30):
        result = latent_similarity(x_ND, x_ND * scale)
        assert result.cosine == pytest.approx(1, abs=1e-5) and result.mrr == 1
        assert result.cka == pytest.approx(1, abs=1e-5)


def test_only_what_was_asked_for_is_measured():
    result = latent_similarity(gaussian(30, 4), gaussian(30, 7, 1), metrics=("cka",), k=1000)
    assert (result.jaccard, result.mrr, result.cosine) == (None, None, None)
    assert "cka" in str(result) and "jaccard" not in str(result)
    assert result.to_dict() == {"jaccard": None, "mrr": None, "cosine": None, "cka": result.cka, "k": 1000, "n": 30}


def test_it_prints_as_a_table():
    x_ND = gaussian(1200, 4)
    lines = str(latent_similarity(x_ND, x_ND, k=3)).splitlines()
    assert lines[0] == "Latent similarity of 1,200 paired samples"
    assert lines[1] == "  jaccard   1.000   share of the 3 nearest neighbours that both spaces agree on"
    assert repr(latent_similarity(x_ND, x_ND, k=3)).splitlines() == lines


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor made inside."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(output) if isinstance(x, torch.Tensor))])
        return output


def test_memory_grows_with_the_samples_and_not_with_their_square(monkeypatch):
    x_ND, y_ND = gaussian(2000, 8), gaussian(2000, 8, 1)
    with LargestTensor() as by_rows:
        latent_similarity(x_ND, y_ND, chunk_size=16)
    assert by_rows.numel <= 16 * 2000
    module = importlib.import_module("hf_relreps.evaluation.latent_similarity")  # its name also names the function
    monkeypatch.setattr(module, "SIMILARITIES_PER_CHUNK", 24_000)
    with LargestTensor() as by_default:
        latent_similarity(x_ND, y_ND)
    assert by_default.numel <= 24_000


@pytest.mark.parametrize(
    ("x", "y", "arguments", "error", "parts"),
    [
        (
            gaussian(5, 3),
            gaussian(6, 3),
            {},
            EvaluationError,
            ["5 rows", "6", "same sample", "Encode the same samples"],
        ),
        (
            gaussian(20, 3),
            gaussian(20, 4),
            {},
            EvaluationError,
            ["3 wide", "4", "relative representations", "('cka',)"],
        ),
        (gaussian(10, 3), gaussian(10, 3), {}, EvaluationError, ["k=10", "10 samples", "1 <= k < 10", "Lower k"]),
        (gaussian(20, 3), gaussian(20, 3), {"k": 0}, EvaluationError, ["k=0", "1 <= k < 20"]),
        (gaussian(20, 3)[0], gaussian(20, 3), {}, EvaluationError, ["x has shape (3,)", "(samples, width)"]),
        (gaussian(0, 3), gaussian(0, 3), {"metrics": ("cka",)}, EvaluationError, ["0 samples", "2 or more"]),
        (
            gaussian(20, 3),
            gaussian(20, 3),
            {"metrics": ("cca",)},
            EvaluationError,
            ["'cca'", "jaccard, mrr, cosine, cka"],
        ),
        (gaussian(20, 3), gaussian(20, 3), {"metrics": ()}, EvaluationError, ["no metric", "jaccard"]),
        (gaussian(20, 3), gaussian(20, 3), {"metrics": "cka"}, EvaluationError, ["'cka'", "metrics=('cka',)"]),
        (gaussian(20, 3), np.ones((20, 3)), {"metrics": ("cka",)}, EvaluationError, ["all 20 rows of y", "collapsed"]),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_reason(x, y, arguments, error, parts):
    with pytest.raises(error) as caught:
        latent_similarity(x, y, **arguments)
    for part in parts:
        assert part in str(caught.value)


def test_vectors_without_direction_are_named_by_row():
    x_ND, y_ND = gaussian(20, 3), gaussian(20, 3)
    y_ND[7] = 0
    with pytest.raises(EmbeddingError, match=r"Row 7 of y is zero \(1 such rows of 20\).*metrics=\('cka',\)"):
        latent_similarity(x_ND, y_ND)
    assert latent_similarity(x_ND, y_ND, metrics=("cka",)).cka > 0.5
    x_ND[4, 1] = np.nan
    with pytest.raises(EmbeddingError, match="Row 4 of x is not finite"):
        latent_similarity(x_ND, y_ND)
