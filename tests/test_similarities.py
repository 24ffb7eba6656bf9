"""Each similarity: a case computed by hand, the invariances it claims, none that it does not, and hard numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_relreps.similarities import KERNELS, MANY, SIMILARITIES, cosine, mean_squared_distance, rbf, unit


ALL = list(SIMILARITIES)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def gaussian(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scales(n, seed=0):
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 0.2


def rotation(d, seed):
    """Orthogonal with determinant 1."""
    q_DD = torch.linalg.qr(gaussian(d, d, seed))[0]
    q_DD[:, 0] *= torch.linalg.det(q_DD).sign()
    return q_DD


def reflection(d, seed):
    """Householder: mirrors at a hyperplane of any direction."""
    v_D = unit(gaussian(1, d, seed))[0]
    return torch.eye(d, dtype=torch.float64) - 2 * torch.outer(v_D, v_D)


def axis_reflection(d, seed):
    signs_D = torch.randint(0, 2, (d,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.diag(signs_D.double())


def permutation(d, seed):
    return torch.eye(d, dtype=torch.float64)[torch.randperm(d, generator=torch.Generator().manual_seed(seed))]


# What may happen to a latent space: samples and anchors -> samples and anchors.
CHANGES = {
    "rotation": lambda x, a, seed: (x @ rotation(x.shape[1], seed), a @ rotation(x.shape[1], seed)),
    "reflection": lambda x, a, seed: (x @ reflection(x.shape[1], seed), a @ reflection(x.shape[1], seed)),
    "axis reflection": lambda x, a, seed: (
        x @ axis_reflection(x.shape[1], seed),
        a @ axis_reflection(x.shape[1], seed),
    ),
    "permutation": lambda x, a, seed: (x @ permutation(x.shape[1], seed), a @ permutation(x.shape[1], seed)),
    "scale of all": lambda x, a, seed: (x * scales(1, seed), a * scales(1, seed)),
    "scale of each": lambda x, a, seed: (x * scales(len(x), seed)[:, None], a * scales(len(a), seed + 1)[:, None]),
    "translation": lambda x, a, seed: (x + 3 * gaussian(1, x.shape[1], seed), a + 3 * gaussian(1, x.shape[1], seed)),
    "scale of axes": lambda x, a, seed: (x * scales(x.shape[1], seed), a * scales(x.shape[1], seed)),
}
OF_ANGLES = {"rotation", "reflection", "axis reflection", "permutation", "scale of all", "scale of each"}
CLAIMED = {
    "cosine": OF_ANGLES,
    "angular": OF_ANGLES,
    "rbf": OF_ANGLES,
    "inner": {"rotation", "reflection", "axis reflection", "permutation"},
    "euclidean": {"rotation", "reflection", "axis reflection", "permutation", "translation"},
    "l1": {"axis reflection", "permutation", "translation"},
    "linf": {"axis reflection", "permutation", "translation"},
}
PAIRS = [(name, change) for name in ALL for change in CHANGES]


@pytest.mark.parametrize(("name", "change"), [pair for pair in PAIRS if pair[1] in CLAIMED[pair[0]]])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), k=st.integers(1, 8), d=st.integers(2, 12))
def test_each_similarity_has_the_invariances_it_claims(name, change, seed, n, k, d):
    x_BD, anchors_AD = gaussian(n, d, seed), gaussian(k, d, seed + 1)
    before_BA = SIMILARITIES[name](x_BD, anchors_AD)
    after_BA = SIMILARITIES[name](*CHANGES[change](x_BD, anchors_AD, seed + 2))
    assert before_BA.shape == (n, k)
    torch.testing.assert_close(after_BA, before_BA, rtol=1e-9, atol=1e-7 if name == "angular" else 1e-9)


@pytest.mark.parametrize(("name", "change"), [pair for pair in PAIRS if pair[1] not in CLAIMED[pair[0]]])
def test_no_similarity_has_an_invariance_it_does_not_claim(name, change):
    x_BD, anchors_AD = gaussian(6, 8, 1), gaussian(5, 8, 2)
    before_BA = SIMILARITIES[name](x_BD, anchors_AD)
    after_BA = SIMILARITIES[name](*CHANGES[change](x_BD, anchors_AD, 3))
    assert (after_BA - before_BA).abs().max() > 0.05


SAMPLE = [[3.0, 4.0]]
ANCHORS = [[1.0, 0.0], [0.0, 2.0], [-3.0, -4.0]]
# Unit anchors e1, e2, -(.6, .8): squared distances 2, 2 + 2 * .6, 2 + 2 * .8, so their mean is (6 + 2.8) / 3.
SPREAD = 8.8 / 3
BY_HAND = {
    "cosine": [0.6, 0.8, -1.0],
    "angular": [1 - math.acos(0.6) / math.pi, 1 - math.acos(0.8) / math.pi, 0.0],
    "inner": [3 / math.sqrt(2), 8 / math.sqrt(2), -25 / math.sqrt(2)],
    "euclidean": [-math.sqrt(20), -math.sqrt(13), -10.0],
    "l1": [-6.0, -5.0, -14.0],
    "linf": [-4.0, -3.0, -8.0],
    "rbf": [math.exp(-1.5 * 0.8 / SPREAD), math.exp(-1.5 * 0.4 / SPREAD), math.exp(-1.5 * 4 / SPREAD)],
}


@pytest.mark.parametrize("name", ALL)
def test_a_hand_computed_case(name):
    found_BA = SIMILARITIES[name](*(torch.tensor(rows, dtype=torch.float64) for rows in (SAMPLE, ANCHORS)))
    torch.testing.assert_close(found_BA, torch.tensor([BY_HAND[name]], dtype=torch.float64), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_more_alike_to_an_anchor_than_the_anchor_itself(name):
    anchors_AD = unit(gaussian(30, 8))  # of one length, for the inner product prefers long ones
    r_AA = SIMILARITIES[name](anchors_AD, anchors_AD)
    assert (r_AA.argmax(1) == torch.arange(30)).all()
    torch.testing.assert_close(r_AA, r_AA.T)


def test_the_range_of_each_similarity_is_as_its_docstring_says():
    x_BD, anchors_AD = gaussian(500, 3).float(), gaussian(200, 3, 1).float()
    x_BD = torch.cat([x_BD, anchors_AD, -anchors_AD])
    rounding = 1e-6
    assert SIMILARITIES["cosine"](x_BD, anchors_AD).abs().max() <= 1 + rounding
    assert 0 <= SIMILARITIES["angular"](x_BD, anchors_AD).min() < 1e-3
    assert 0.999 < SIMILARITIES["angular"](x_BD, anchors_AD).max() <= 1
    assert 0 < SIMILARITIES["rbf"](x_BD, anchors_AD).min()
    assert SIMILARITIES["rbf"](x_BD, anchors_AD).max() <= 1
    assert all(SIMILARITIES[name](x_BD, anchors_AD).max() <= 0 for name in ("euclidean", "l1", "linf"))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("k", [5, 40])  # torch measures distances in another way beyond 25
def test_one_sample_alone_is_as_in_any_batch(name, k):
    x_BD, anchors_AD = gaussian(64, 16).float(), gaussian(k, 16, 1).float()
    in_batch_BA = SIMILARITIES[name](x_BD, anchors_AD)
    for i in (0, 31, 63):
        torch.testing.assert_close(
            SIMILARITIES[name](x_BD[i : i + 1], anchors_AD)[0], in_batch_BA[i], rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch_gives_no_rows(name):
    assert SIMILARITIES[name](torch.zeros(0, 8), gaussian(5, 8).float()).shape == (0, 5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_precision_differs_from_float64_by_the_rounding_of_its_inputs(name, dtype):
    x_BD, anchors_AD = gaussian(20, 16).to(dtype), gaussian(10, 16, 1).to(dtype)
    exact_BA = SIMILARITIES[name](x_BD.double(), anchors_AD.double())
    # As the projection does it: half precision is widened first.
    found_BA = SIMILARITIES[name](x_BD.float(), anchors_AD.float())
    torch.testing.assert_close(found_BA.double(), exact_BA, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["cosine", "angular", "rbf"])
@pytest.mark.parametrize("length", [1e-30, 1e-15, 1e15, 1e30])
def test_directions_count_however_short_or_long_a_vector_is(name, length):
    x_BD, anchors_AD = gaussian(4, 8).float(), gaussian(5, 8, 1).float()
    expected_BA = SIMILARITIES[name](x_BD, anchors_AD)
    torch.testing.assert_close(SIMILARITIES[name](x_BD * length, anchors_AD), expected_BA)
    torch.testing.assert_close(SIMILARITIES[name](x_BD, anchors_AD * length), expected_BA)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ALL)
def test_what_is_not_finite_stays_so_and_spoils_no_other_sample(name, bad):
    x_BD, anchors_AD = gaussian(3, 8), gaussian(5, 8, 1)
    x_BD[1, 2] = bad
    r_BA = SIMILARITIES[name](x_BD, anchors_AD)
    assert not torch.isfinite(r_BA[1]).any()
    torch.testing.assert_close(r_BA[[0, 2]], SIMILARITIES[name](x_BD[[0, 2]], anchors_AD))


def test_near_neighbours_far_from_the_origin_are_told_apart():
    x_BD = torch.full((40, 16), 1000.0)
    x_BD[:, 0] += torch.arange(40)
    expected_BA = -(torch.arange(40)[:, None] - torch.arange(40)).abs().float()
    torch.testing.assert_close(SIMILARITIES["euclidean"](x_BD, x_BD), expected_BA)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_right(name):
    x_BD, anchors_AD = gaussian(3, 5).requires_grad_(), gaussian(4, 5, 1).requires_grad_()
    assert torch.autograd.gradcheck(SIMILARITIES[name], (x_BD, anchors_AD))


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_where_a_sample_is_an_anchor_or_its_opposite(name):
    anchors_AD = gaussian(4, 5).float()
    x_BD = torch.cat([anchors_AD, -anchors_AD, 2 * anchors_AD]).requires_grad_()
    SIMILARITIES[name](x_BD, anchors_AD).square().sum().backward()
    assert torch.isfinite(x_BD.grad).all()


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(2, 30), d=st.integers(1, 6))
def test_kernels_are_positive_semidefinite(name, seed, k, d):
    anchors_AD = gaussian(k, d, seed)
    kernel_AA = SIMILARITIES[name](anchors_AD, anchors_AD)
    assert torch.linalg.eigvalsh(kernel_AA).min() > -1e-6 * kernel_AA.diagonal().mean()


@pytest.mark.parametrize("name", sorted(set(ALL) - set(KERNELS)))
def test_what_is_not_among_the_kernels_is_none(name):
    anchors_AD = gaussian(10, 6)
    assert torch.linalg.eigvalsh(SIMILARITIES[name](anchors_AD, anchors_AD)).min() < -0.1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(2, 20), d=st.integers(1, 10))
def test_the_mean_squared_distance_equals_that_over_all_pairs(seed, k, d):
    anchors_AD = unit(gaussian(k, d, seed))
    pairs = torch.pdist(anchors_AD).square()
    torch.testing.assert_close(mean_squared_distance(anchors_AD), pairs.mean().clamp_min(1e-15), rtol=1e-9, atol=1e-12)


def test_the_width_of_rbf_is_right_for_anchors_in_a_narrow_cone():
    anchors_AD = unit(torch.ones(300, 64) + 0.001 * gaussian(300, 64).float())
    exact = torch.pdist(anchors_AD.double()).square().mean()
    assert exact < 3e-6
    torch.testing.assert_close(mean_squared_distance(anchors_AD).double(), exact, rtol=1e-3, atol=0)


def test_one_anchor_gives_rbf_the_width_of_random_directions():
    x_BD = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    r_BA = SIMILARITIES["rbf"](x_BD, torch.tensor([[2.0, 0.0]]), gamma=1.0)
    torch.testing.assert_close(r_BA, torch.tensor([[1.0], [math.exp(-1)]]))


def test_a_larger_gamma_makes_rbf_sharper():
    x_BD, anchors_AD = gaussian(5, 8), gaussian(6, 8, 1)
    blunt_BA, sharp_BA = (SIMILARITIES["rbf"](x_BD, anchors_AD, gamma=gamma) for gamma in (0.5, 2.0))
    torch.testing.assert_close(sharp_BA, blunt_BA**4)


@pytest.mark.parametrize("length", [1, 1e-20, 1e20])
def test_many_samples_have_the_same_cosines_as_few_whatever_their_length(length):
    x_BD, anchors_AD = length * gaussian(MANY + 1, 8), gaussian(5, 8, 1)
    few_BA = torch.cat([cosine(part_BD.float(), anchors_AD.float()) for part_BD in x_BD.split(10)])
    torch.testing.assert_close(cosine(x_BD.float(), anchors_AD.float()), few_BA, rtol=0, atol=1e-6)
    torch.testing.assert_close(few_BA.double(), cosine(x_BD, anchors_AD), rtol=0, atol=1e-6)


def test_many_samples_pass_the_same_gradients_to_samples_and_anchors_as_few():
    found = []
    for rows in (MANY + 1, 10):
        x_BD, anchors_AD = gaussian(MANY + 1, 8).float().requires_grad_(), gaussian(5, 8, 1).float().requires_grad_()
        sum(rbf(part_BD, anchors_AD).square().sum() for part_BD in x_BD.split(rows)).backward()
        found.append((x_BD.grad, anchors_AD.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
