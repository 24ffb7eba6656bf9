"""Relative representations: by hand, invariances, precision, when the frame is computed again, and what is refused."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_relreps import RelativeConfig, RelativeEncoderConfig, RelativeSpace, projection
from hf_relreps.errors import AnchorError, ConfigurationError, EmbeddingError
from hf_relreps.projection import RelativeProjection, frame_of, project, refuse_directionless
from hf_relreps.similarities import KERNELS, SIMILARITIES
from hf_relreps.space import TRANSFORMS


ALL = [*SIMILARITIES, ("rbf", "cosine", "inner")]
WAYS = [
    (transform, similarity, ridge)
    for transform in TRANSFORMS
    for similarity in ALL
    for ridge in (None, 0.1)
    if ridge is None or {similarity} <= set(KERNELS) or not isinstance(similarity, str)
]


def gaussian(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(d, seed):
    """A rotation, or a rotation and a reflection: each in half of the cases."""
    return torch.linalg.qr(gaussian(d, d, seed))[0]


def signed_permutation(d, seed):
    generator = torch.Generator().manual_seed(seed)
    signs_D = torch.randint(0, 2, (d,), generator=generator) * 2 - 1
    return torch.diag(signs_D.double())[torch.randperm(d, generator=generator)]


def space_of(way, anchors_AD):
    transform, similarity, ridge = way
    return RelativeSpace(num_anchors=len(anchors_AD), transform=transform, similarity=similarity, basis_ridge=ridge)


def relative(x_BD, anchors_AD, space):
    return project(x_BD, frame_of(anchors_AD, space), space)


def made(anchors_AD, **settings):
    """A `RelativeProjection` that holds these anchors."""
    num_anchors, embedding_size = anchors_AD.shape
    space = RelativeSpace(num_anchors=num_anchors, **settings)
    module = RelativeProjection(RelativeEncoderConfig(space=space, embedding_size=embedding_size))
    module.set_anchors(anchors_AD)
    return module


def assert_same(found, expected, atol=1e-6):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=atol)


# -- what does not change when the latent space does


def unchanged_by(way, change):
    """Whether the relative representations of a way of projecting are claimed to survive a change of the space."""
    transform, similarity, ridge = way
    names = {similarity} if isinstance(similarity, str) else set(similarity)
    rotates = transform in ("none", "center", "whiten") and not names & {"l1", "linf"}
    of_angles = names <= {"cosine", "angular", "rbf"}
    return {
        "signed permutation": True,
        "rotation": rotates,
        "scale of all": of_angles or transform in ("standardize", "whiten") or (names <= set(KERNELS) and ridge),
        "translation": transform != "none" or names <= {"euclidean", "l1", "linf"},
    }[change]


CHANGES = {
    "signed permutation": lambda z_ND, seed: z_ND @ signed_permutation(z_ND.shape[1], seed),
    "rotation": lambda z_ND, seed: z_ND @ orthogonal(z_ND.shape[1], seed),
    "scale of all": lambda z_ND, seed: z_ND * (0.2 + seed % 17),
    "translation": lambda z_ND, seed: z_ND + 2 * gaussian(1, z_ND.shape[1], seed),
}


CASES = [(way, change) for way in WAYS for change in CHANGES]


@pytest.mark.parametrize(("way", "change"), [case for case in CASES if unchanged_by(*case)], ids=str)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(4, 12), d=st.integers(2, 10))
def test_relative_representations_survive_the_changes_of_the_space_that_their_parts_claim(way, change, seed, k, d):
    x_BD, anchors_AD = gaussian(5, d, seed), gaussian(k, d, seed + 1)
    space = space_of(way, anchors_AD)
    before_BR = relative(x_BD, anchors_AD, space)
    after_BR = relative(CHANGES[change](x_BD, seed + 2), CHANGES[change](anchors_AD, seed + 2), space)
    assert before_BR.shape == (5, space.size)
    assert_same(after_BR, before_BR)


@pytest.mark.parametrize(("way", "change"), [case for case in CASES if not unchanged_by(*case)], ids=str)
def test_they_do_not_survive_what_is_not_claimed(way, change):
    x_BD, anchors_AD = gaussian(5, 6, 1), gaussian(9, 6, 2)
    space = space_of(way, anchors_AD)
    before_BR = relative(x_BD, anchors_AD, space)
    after_BR = relative(CHANGES[change](x_BD, 3), CHANGES[change](anchors_AD, 3), space)
    assert (after_BR - before_BR).abs().max() > 1e-2


@pytest.mark.parametrize("similarity", ["cosine", "rbf", "l1"])
def test_standardize_takes_away_the_scale_of_each_axis(similarity):
    x_BD, anchors_AD = gaussian(5, 6, 1), gaussian(9, 6, 2)
    space = RelativeSpace(transform="standardize", similarity=similarity, basis_ridge=None)
    scale_D = torch.tensor([1e-6, 0.1, 1, 5, 100, 1e6], dtype=torch.float64)
    assert_same(relative(x_BD * scale_D, anchors_AD * scale_D, space), relative(x_BD, anchors_AD, space))


@pytest.mark.parametrize("similarity", ["cosine", "rbf", "euclidean"])
def test_whiten_without_shrinkage_takes_away_any_linear_map(similarity):
    x_BD, anchors_AD = gaussian(5, 6, 1), gaussian(20, 6, 2)
    space = RelativeSpace(transform="whiten", shrinkage=0.0, similarity=similarity, basis_ridge=None)
    map_DE = gaussian(6, 6, 3)
    assert_same(relative(x_BD @ map_DE, anchors_AD @ map_DE, space), relative(x_BD, anchors_AD, space))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_permuted_anchors_permute_the_numbers_of_a_representation(seed):
    x_BD, anchors_AD = gaussian(5, 6, seed), gaussian(9, 6, seed + 1)
    space = RelativeSpace(num_anchors=9)
    order_A = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert_same(relative(x_BD, anchors_AD[order_A], space), relative(x_BD, anchors_AD, space)[:, order_A])


# -- what they are


def test_the_papers_projection_is_plain_cosines():
    x_BD = torch.tensor([[3.0, 4.0]])
    anchors_AD = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -4.0]])
    assert_same(relative(x_BD, anchors_AD, RelativeConfig.paper().space), torch.tensor([[0.6, 0.8, -1.0]]))


def test_a_change_of_basis_computed_by_hand():
    # K(A, A) = [[1, .6], [.6, 1]], its diagonal's mean is 1: K + .6 I = [[1.6, .6], [.6, 1.6]] has determinant 2.2.
    anchors_AD = torch.tensor([[2.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    x_BD = torch.tensor([[0.0, 1.0]], dtype=torch.float64)  # cosines 0 and .8
    space = RelativeSpace(transform="none", similarity="cosine", basis_ridge=0.6)
    expected_BR = torch.tensor([[0.8 * -0.6 / 2.2, 0.8 * 1.6 / 2.2]], dtype=torch.float64)
    assert_same(relative(x_BD, anchors_AD, space), expected_BR, atol=1e-12)


def test_the_default_computed_by_hand():
    # Centred anchors are +-(1, 0): squared distance 4, also the mean of pairs, so K = [[1, e], [e, 1]], e = exp(-1.5).
    anchors_AD = torch.tensor([[6.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    x_BD = torch.tensor([[5.0, 3.0]], dtype=torch.float64)  # centred (0, 2): squared distance 2 to both
    e, half, ridge = math.exp(-1.5), math.exp(-0.75), 0.1
    expected = half / (1 + ridge + e)  # (K + ridge I)^-1 (1, 1) = (1, 1) / (1 + ridge + e)
    found_BR = relative(x_BD, anchors_AD, RelativeSpace())
    assert_same(found_BR, torch.full((1, 2), expected, dtype=torch.float64), atol=1e-12)


def test_standardize_and_whiten_computed_by_hand():
    # Deviations 2 and 4 about the mean (2, 4); the axes do not covary, so whitening is the same without shrinkage.
    anchors_AD = torch.tensor([[4.0, 8.0], [0.0, 8.0], [4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    x_BD = torch.tensor([[8.0, 4.0]], dtype=torch.float64)  # becomes (3, 0); the anchors become (+-1, +-1)
    expected_BR = torch.tensor([[3.0, -3.0, 3.0, -3.0]], dtype=torch.float64) / math.sqrt(2)
    for transform in ("standardize", "whiten"):
        space = RelativeSpace(transform=transform, shrinkage=0.0, similarity="inner", basis_ridge=None)
        assert_same(relative(x_BD, anchors_AD, space), expected_BR, atol=1e-12)
    # Half of the mean variance 10 in place of half of the covariance diag(4, 16): variances 7 and 13.
    space = RelativeSpace(transform="whiten", shrinkage=0.5, similarity="inner", basis_ridge=None)
    expected_BR = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64) * 6 * 2 / 7 / math.sqrt(2)
    assert_same(relative(x_BD, anchors_AD, space), expected_BR, atol=1e-12)


def test_several_similarities_lie_side_by_side():
    x_BD, anchors_AD = gaussian(5, 6, 1), gaussian(9, 6, 2)
    names = ["rbf", "cosine", "angular"]
    parts = [relative(x_BD, anchors_AD, RelativeSpace(similarity=name)) for name in names]
    assert_same(relative(x_BD, anchors_AD, RelativeSpace(similarity=names)), torch.cat(parts, -1))


def test_an_anchor_is_described_by_itself_alone_when_the_ridge_is_small():
    anchors_AD = gaussian(9, 20)
    space = RelativeSpace(similarity="rbf", basis_ridge=1e-9)
    assert_same(relative(anchors_AD, anchors_AD, space), torch.eye(9, dtype=torch.float64), atol=1e-5)


def test_the_configured_gamma_is_used():
    x_BD, anchors_AD = gaussian(5, 6, 1), gaussian(9, 6, 2)
    space = RelativeSpace(transform="none", basis_ridge=None, rbf_gamma=0.7)
    assert_same(relative(x_BD, anchors_AD, space), SIMILARITIES["rbf"](x_BD, anchors_AD, gamma=0.7))


@pytest.mark.parametrize(
    ("similarity", "theirs", "turned"),
    [
        ("cosine", "cosine_proj", lambda r_BA: r_BA),
        ("angular", "angular_proj", lambda r_BA: 1 - r_BA),  # theirs are distances
        ("euclidean", "euclidean_proj", lambda r_BA: -r_BA),
        ("l1", "l1_proj", lambda r_BA: -r_BA),
    ],
)
def test_similarities_equal_those_of_latentis_where_it_is_installed(similarity, theirs, turned):
    latentis = pytest.importorskip("latentis.transform.projection", reason="latentis is not installed")
    x_BD, anchors_AD = gaussian(5, 6, 1), gaussian(9, 6, 2)
    theirs_BA = turned(getattr(latentis, theirs)(x_BD, anchors=anchors_AD))
    ours_BA = relative(x_BD, anchors_AD, RelativeSpace(transform="none", similarity=similarity, basis_ridge=None))
    assert_same(ours_BA, theirs_BA)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_one_sample_alone_is_as_in_any_batch(way):
    x_BD, anchors_AD = gaussian(40, 16).float(), gaussian(30, 16, 1).float()
    space = space_of(way, anchors_AD)
    frame = frame_of(anchors_AD, space)
    together_BR = project(x_BD, frame, space)
    alone_BR = torch.cat([project(x_BD[i : i + 1], frame, space) for i in range(40)])
    torch.testing.assert_close(alone_BR, together_BR, rtol=0, atol=1e-5)


# -- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_dtype_differs_from_a_float64_reference_by_float32_rounding_only(way, dtype):
    x_BD, anchors_AD = gaussian(8, 32).to(dtype), gaussian(50, 32, 1).float()
    space = space_of(way, anchors_AD)
    module = made(anchors_AD, **space.projection)
    found_BR = module(x_BD)
    assert found_BR.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected_BR = relative(x_BD.double(), anchors_AD.double(), space)
    torch.testing.assert_close(found_BR.double(), expected_BR, rtol=1e-4, atol=2e-5)


def test_under_autocast_the_projection_stays_float32():
    x_BD, module = gaussian(8, 32).float(), made(gaussian(50, 32, 1).float())
    expected_BR = module(x_BD)
    module.forget_frame()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x_BD), expected_BR)
        assert_same(module(x_BD.bfloat16()), made(module.anchors_AD)(x_BD.bfloat16().float()))


@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_a_model_in_half_precision_keeps_its_anchors_in_float32(convert):
    model = nn.Sequential(nn.Linear(32, 32), made(gaussian(50, 32, 1).float()))
    before_AD = model[1].anchors_AD.clone()
    getattr(model, convert)()
    assert model[0].weight.dtype == getattr(torch, "float16" if convert == "half" else convert)
    assert torch.equal(model[1].anchors_AD, before_AD)
    assert model(torch.randn(2, 32).to(model[0].weight.dtype)).dtype == torch.float32


def test_a_model_in_double_precision_takes_its_anchors_along_and_back():
    module = made(gaussian(50, 32, 1).float())
    before_AD = module.anchors_AD.clone()
    assert module.double().anchors_AD.dtype == torch.float64
    assert module(gaussian(2, 32)).dtype == torch.float64
    assert module.float().anchors_AD.dtype == torch.float32
    assert torch.equal(module.half().anchors_AD, before_AD)


def test_anchors_are_float32_where_the_default_is_less():
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = RelativeProjection(RelativeEncoderConfig(num_anchors=5, embedding_size=4))
    finally:
        torch.set_default_dtype(torch.float32)
    assert module.anchors_AD.dtype == torch.float32


# -- gradients


@pytest.mark.parametrize("way", [way for way in WAYS if isinstance(way[1], str)], ids=str)
def test_gradients_reach_samples_and_anchors(way):
    x_BD, anchors_AD = gaussian(2, 3).requires_grad_(), gaussian(5, 3, 1).requires_grad_()
    space = space_of(way, anchors_AD)
    # The angle of an anchor with itself is rounded to 1e-8, which finite differences of 1e-6 magnify.
    atol = 2e-3 if way[1] == "angular" else 1e-5
    assert torch.autograd.gradcheck(lambda x, anchors: relative(x, anchors, space), (x_BD, anchors_AD), atol=atol)


def test_the_module_passes_gradients_to_samples_and_none_to_anchors():
    module = made(gaussian(5, 3, 1).float())
    x_BD = gaussian(2, 3).float().requires_grad_()
    module(x_BD).sum().backward()
    assert x_BD.grad.abs().sum() > 0
    assert module.anchors_AD.grad is None


# -- when the frame is computed again


@pytest.fixture
def counted(monkeypatch):
    """The calls of `frame_of` by the module, which are still made."""
    calls = []
    monkeypatch.setattr(projection, "frame_of", lambda *args: calls.append(1) or frame_of(*args))
    return calls


def test_the_frame_is_computed_once_for_many_batches(counted):
    module = made(gaussian(5, 3).float())
    for _ in range(3):
        module(torch.randn(4, 3))
        with torch.no_grad():
            module.eval()(torch.randn(1, 3))
        module.train()
    assert len(counted) == 1


CHANGES_OF_ANCHORS = {
    "set_anchors": lambda module, new_AD: module.set_anchors(new_AD),
    "load_state_dict": lambda module, new_AD: module.load_state_dict({"anchors_AD": new_AD}),
    "load_state_dict with assign": lambda module, new_AD: module.load_state_dict({"anchors_AD": new_AD}, assign=True),
    "in place": lambda module, new_AD: module.anchors_AD.copy_(new_AD),
    "another tensor": lambda module, new_AD: setattr(module, "anchors_AD", new_AD),
}


@pytest.mark.parametrize("how", CHANGES_OF_ANCHORS)
def test_the_frame_follows_the_anchors_however_they_change(how, counted):
    module, x_BD = made(gaussian(5, 3).float()), torch.randn(4, 3)
    module(x_BD)
    for seed in (1, 2, 3):  # again, for a tensor may get the address of the one before
        new_AD = gaussian(5, 3, seed).float()
        CHANGES_OF_ANCHORS[how](module, new_AD.clone())
        assert torch.equal(module(x_BD), made(new_AD)(x_BD))
    assert len(counted) == 1 + 3 * 2


@pytest.mark.parametrize("how", ["set_anchors", "in place"])
def test_the_frame_follows_anchors_that_change_in_inference_mode(how):
    module, x_BD, new_AD = made(gaussian(5, 3).float()), torch.randn(4, 3), gaussian(5, 3, 1).float()
    module(x_BD)
    with torch.inference_mode():
        CHANGES_OF_ANCHORS[how](module, new_AD)
    assert torch.equal(module(x_BD), made(new_AD)(x_BD))


def test_the_frame_follows_the_settings(counted):
    module, x_BD = made(gaussian(5, 3).float()), torch.randn(4, 3)
    module(x_BD)
    module.config.space = module.config.space.replace(similarity="cosine", basis_ridge=None)
    assert torch.equal(module(x_BD), made(module.anchors_AD, similarity="cosine", basis_ridge=None)(x_BD))
    module.config.space = module.config.space.replace(rbf_gamma=3.0)  # which cosine does not read
    module(x_BD)
    assert len(counted) == 3


def test_the_frame_moves_with_the_model(counted):
    module = made(gaussian(5, 3).float())
    assert module.double().frame.bases_AA[0].dtype == torch.float64
    assert module.to("meta").anchors_AD.is_meta
    assert len(counted) == 2


def test_a_copy_has_a_frame_of_its_own():
    module, x_BD = made(gaussian(5, 3).float()), torch.randn(4, 3)
    before_BR = module(x_BD)
    copied = copy.deepcopy(module)
    copied.set_anchors(gaussian(5, 3, 1).float())
    assert torch.equal(module(x_BD), before_BR)
    assert not torch.equal(copied(x_BD), before_BR)


def test_training_works_after_a_first_call_in_inference_mode():
    module = made(gaussian(5, 3).float())
    module.forget_frame()
    with torch.inference_mode():
        module(torch.randn(2, 3))
    x_BD = torch.randn(2, 3, requires_grad=True)
    module(x_BD).sum().backward()
    assert torch.isfinite(x_BD.grad).all()


def test_a_module_built_in_inference_mode_works_outside():
    with torch.inference_mode():
        module = made(gaussian(5, 3).float())
    x_BD = torch.randn(2, 3, requires_grad=True)
    module(x_BD).sum().backward()
    assert torch.equal(module(x_BD), made(gaussian(5, 3).float())(x_BD))


@pytest.mark.parametrize(
    "way",
    [("center", "rbf", 0.1), ("none", "cosine", None), ("whiten", "euclidean", None), ("standardize", "linf", None)],
    ids=str,
)
def test_compiled_it_gives_the_same_also_after_the_anchors_change(way):
    anchors_AD, x_BD = gaussian(9, 6).float(), gaussian(4, 6, 1).float()
    module = made(anchors_AD, **space_of(way, anchors_AD).projection)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_same(compiled(x_BD), module(x_BD), atol=1e-5)
    for seed in (2, 3):
        module.set_anchors(gaussian(9, 6, seed).float())
        assert_same(compiled(x_BD), made(module.anchors_AD, **module.space.projection)(x_BD), atol=1e-5)


def test_compiled_it_follows_loaded_anchors_without_an_eager_call():
    module, x_BD = made(gaussian(9, 6).float()), gaussian(4, 6, 1).float()
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compiled(x_BD)
    new_AD = gaussian(9, 6, 2).float()
    module.load_state_dict({"anchors_AD": new_AD})
    assert_same(compiled(x_BD), made(new_AD)(x_BD), atol=1e-5)


@pytest.mark.parametrize(("transform", "similarity", "ridge"), WAYS)
def test_more_samples_than_a_chunk_holds_are_described_as_each_alone(transform, similarity, ridge):
    x_ND, anchors_AD = gaussian(projection.PROJECTED_IN_ONE_PASS + 50, 6).float(), gaussian(9, 6, 1).float()
    module = made(anchors_AD, transform=transform, similarity=similarity, basis_ridge=ridge)
    some = [0, 1, len(x_ND) - 51, len(x_ND) - 50, len(x_ND) - 1]
    assert_same(module(x_ND)[some], torch.cat([module(x_ND[i : i + 1]) for i in some]), atol=1e-4)


# -- hard numbers


def test_two_thousand_anchors_in_a_narrow_space():
    x_BD, anchors_AD = gaussian(8, 32).float(), gaussian(2000, 32, 1).float()
    found_BR = made(anchors_AD)(x_BD)
    expected_BR = relative(x_BD.double(), anchors_AD.double(), RelativeSpace())
    torch.testing.assert_close(found_BR.double(), expected_BR, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("similarity", KERNELS)
def test_repeated_and_collinear_anchors_share_what_one_would_get(similarity):
    x_BD, anchors_AD = gaussian(4, 6).float(), gaussian(3, 6, 1).float()
    more_AD = torch.cat([anchors_AD, anchors_AD[:1]])
    r_BR = made(more_AD, transform="none", similarity=similarity)(x_BD)
    assert torch.isfinite(r_BR).all()
    torch.testing.assert_close(r_BR[:, 0], r_BR[:, 3], rtol=1e-4, atol=1e-5)
    if similarity != "inner":  # of angles: a longer anchor is the same
        more_AD[3] *= 5
        stretched_BR = made(more_AD, transform="none", similarity=similarity)(x_BD)
        torch.testing.assert_close(stretched_BR, r_BR, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("similarity", KERNELS)
def test_a_tiny_ridge_is_enough_for_anchors_without_repetition(similarity):
    anchors_AD = gaussian(40, 60).float()
    r_AR = made(anchors_AD, transform="none", similarity=similarity, basis_ridge=1e-6)(anchors_AD)
    torch.testing.assert_close(r_AR, torch.eye(40), rtol=0, atol=0.02)


def test_one_anchor_is_enough_without_a_transform():
    x_BD = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    r_BR = made(torch.tensor([[2.0, 0.0]]), transform="none", similarity="cosine", basis_ridge=0.5)(x_BD)
    assert_same(r_BR, torch.tensor([[0.6], [0.0]]) / 1.5)


def test_identical_anchors_are_fine_for_cosines():
    x_BD = gaussian(4, 6).float()
    r_BR = made(gaussian(1, 6, 1).float().repeat(10, 1), transform="none", similarity="cosine")(x_BD)
    assert torch.isfinite(r_BR).all()
    torch.testing.assert_close(r_BR, r_BR[:, :1].expand(4, 10), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1e-30, 1e-12, 1e12, 1e30])
def test_very_short_and_very_long_embeddings_are_described_by_their_directions(length):
    x_BD, anchors_AD = gaussian(4, 6).float(), gaussian(9, 6, 1).float()
    torch.testing.assert_close(made(anchors_AD * length)(x_BD * length), made(anchors_AD)(x_BD), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transform", ["standardize", "whiten"])
def test_an_axis_on_which_all_anchors_agree_does_not_drown_the_others(transform):
    # A dead unit with a bias: the mean is off by rounding, which must not be divided by a deviation near zero.
    x_BD, anchors_AD = gaussian(4, 6).float(), gaussian(9, 6, 1).float()
    x_BD[:, 0] = anchors_AD[:, 0] = 1 / 3
    config = {"transform": transform, "shrinkage": 0.0, "similarity": "cosine", "basis_ridge": None}
    torch.testing.assert_close(
        made(anchors_AD, **config)(x_BD), made(anchors_AD[:, 1:], **config)(x_BD[:, 1:]), rtol=1e-4, atol=1e-4
    )


def test_whiten_without_shrinkage_leaves_out_what_fewer_anchors_than_axes_do_not_span():
    x_BD, anchors_AD = gaussian(4, 20).float(), gaussian(6, 20, 1).float()
    config = {"transform": "whiten", "shrinkage": 0.0, "similarity": "cosine", "basis_ridge": None}
    r_BR = made(anchors_AD, **config)(x_BD)
    assert r_BR.abs().amax(1).min() > 0.3  # and not all near zero, as if the rest were a thousand times larger
    outside_D = torch.linalg.svd(anchors_AD - anchors_AD.mean(0), full_matrices=True)[2][-1]
    assert_same(made(anchors_AD, **config)(x_BD + 5 * outside_D), r_BR, atol=1e-3)


def test_an_empty_batch_gives_no_rows():
    assert made(gaussian(9, 6).float())(torch.zeros(0, 6)).shape == (0, 9)


# -- errors


@pytest.mark.parametrize(
    ("value", "found"), [(0.0, "length 0.0"), (math.nan, "length nan"), (math.inf, "length inf")], ids=str
)
def test_embeddings_without_direction_are_refused_with_their_position(value, found):
    anchors_AD = gaussian(5, 3).float()
    anchors_AD[2] = value
    anchors_AD[4] = value
    module = RelativeProjection(RelativeEncoderConfig(num_anchors=5, embedding_size=3))
    with pytest.raises(EmbeddingError, match=rf"^2 of 5 anchor embeddings .* anchor 2 has {found}, expected a finite"):
        module.set_anchors(anchors_AD)
    with pytest.raises(EmbeddingError, match=rf"^2 of 5 sample embeddings .* sample 2 has {found}"):
        refuse_directionless(anchors_AD, "sample")


@pytest.mark.parametrize("transform", ["none", "center", "whiten", "standardize"])
def test_anchors_whose_numbers_have_lost_their_digits_are_refused(transform):
    with pytest.raises(EmbeddingError, match=r"Anchor [0-9] has no number above .*e-4"):
        made(gaussian(8, 4).float() * 1e-40, transform=transform)


def test_anchors_that_vary_too_little_for_float32_are_refused_in_place_of_nan():
    module, x_BD = made(gaussian(8, 4).float(), transform="standardize"), torch.randn(2, 4)
    before_BR = module(x_BD)
    anchors_AD = gaussian(8, 4, 1).float()
    anchors_AD[:, 0] = torch.linspace(1e-39, 2e-39, 8)  # its deviation has no inverse in float32
    with pytest.raises(EmbeddingError, match=r"vary so little that .* cannot be computed in float32"):
        module.set_anchors(anchors_AD)
    assert torch.equal(module(x_BD), before_BR)


def test_refused_anchors_leave_those_before_in_place():
    module, x_BD = made(gaussian(5, 3).float()), torch.randn(2, 3)
    before_BR = module(x_BD)
    for bad_AD in (torch.zeros(5, 3), torch.ones(5, 3)):
        with pytest.raises(EmbeddingError):
            module.set_anchors(bad_AD)
    assert torch.equal(module(x_BD), before_BR)


def test_what_float32_cannot_hold_has_no_direction():
    refuse_directionless(torch.full((1, 3), 1e-30), "sample")
    refuse_directionless(torch.full((1, 3), 1e30), "sample")
    for value in (1e-60, 1e60):
        with pytest.raises(EmbeddingError, match="sample 0 has length"):
            refuse_directionless(torch.full((1, 3), value, dtype=torch.float64), "sample")


def test_anchors_of_another_shape_are_refused():
    module = RelativeProjection(RelativeEncoderConfig(num_anchors=5, embedding_size=3))
    with pytest.raises(
        EmbeddingError, match=r"have shape \(4, 3\), expected \(5, 3\): \(num_anchors, embedding_size\)"
    ):
        module.set_anchors(torch.ones(4, 3))


def test_a_module_without_anchors_says_so():
    module = RelativeProjection(RelativeEncoderConfig(num_anchors=5, embedding_size=3))
    with pytest.raises(AnchorError, match=r"5 anchors have no embeddings yet.*model\.encode_anchors"):
        module(torch.ones(1, 3))


def test_loaded_anchors_are_checked_before_they_are_used():
    module = made(gaussian(5, 3).float())
    module.load_state_dict({"anchors_AD": torch.full((5, 3), math.nan)})
    with pytest.raises(EmbeddingError, match="5 of 5 anchor embeddings have no direction; anchor 0 has length nan"):
        module(torch.ones(1, 3))


@pytest.mark.parametrize("transform", ["center", "standardize", "whiten"])
@pytest.mark.parametrize("similarity", ["rbf", "inner", "euclidean"])
def test_anchors_of_which_a_transform_leaves_nothing_are_refused(transform, similarity):
    settings = {"transform": transform, "similarity": similarity, "basis_ridge": None}
    for anchors_AD in (torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0]]).repeat(4, 1)):
        k = len(anchors_AD)
        with pytest.raises(EmbeddingError, match=rf"{k} of {k} anchors lie at the mean .* anchor 0: .*'{transform}'"):
            made(anchors_AD, **settings)
    noise_AD = torch.tensor([[3.0, 4.0]]).repeat(4, 1)
    noise_AD[0] += 5e-7  # as a batch of another size would give
    with pytest.raises(EmbeddingError, match="lie at the mean of all.*does not give every sample the same embedding"):
        made(noise_AD, **settings)


def test_an_anchor_at_the_mean_of_the_others_is_named():
    anchors_AD = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 2.0]])
    with pytest.raises(EmbeddingError, match="1 of 5 anchors lie at the mean of all, the first is anchor 2"):
        made(anchors_AD)
    r_BR = made(anchors_AD, similarity="euclidean", basis_ridge=None)(torch.tensor([[1.0, 1.0]]))
    assert_same(r_BR, torch.tensor([[-1.0, -1.0, 0.0, -1.0, -1.0]]))


def test_anchors_of_one_direction_are_refused_for_rbf():
    anchors_AD = gaussian(1, 6).float() * torch.arange(1, 11)[:, None]
    with pytest.raises(EmbeddingError, match="All 10 anchors have the same direction, so the rbf similarity"):
        made(anchors_AD, transform="none")


def test_a_ridge_too_small_for_repeated_anchors_is_refused():
    anchors_AD = gaussian(5, 3).float().repeat(3, 1)
    with pytest.raises(ConfigurationError, match=r"basis_ridge=1e-18 is too small for these 15 anchors.* 0\.1 is"):
        made(anchors_AD, transform="none", similarity="cosine", basis_ridge=1e-18)


# -- in a model


def test_a_model_in_half_precision_keeps_its_anchors_and_gives_float32(make_model, texts, tokenizer):
    model = make_model(0)
    before_AD = model.encoder.projection.anchors_AD.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.encoder.projection.anchors_AD, before_AD)
    output = model(**tokenizer(texts["en"][:3], padding=True, return_tensors="pt"))
    assert output.relative_embeds.dtype == torch.float32
    assert output.logits.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_loaded_in_half_precision_has_the_saved_anchors_in_float32(make_model, tmp_path, dtype):
    model = make_model(0)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert loaded.decoder.output.weight.dtype == dtype
    assert torch.equal(loaded.encoder.projection.anchors_AD, model.encoder.projection.anchors_AD)


def test_encode_names_the_sample_whose_embedding_has_no_direction(make_model, texts, tokenizer):
    encoder = make_model(0).encoder
    word = tokenizer.convert_tokens_to_ids("fish")
    with torch.no_grad():
        encoder.get_input_embeddings().weight[word] = math.nan
    first = next(i for i, text in enumerate(texts["en"]) if "fish" in text)
    with pytest.raises(
        EmbeddingError, match=rf"of 60 sample embeddings have no direction; sample {first} has length nan"
    ):
        encoder.encode(texts["en"])
