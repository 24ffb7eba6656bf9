"""Translation between latent spaces: against textbook solutions, what it does not depend on, and hard anchors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from hf_relreps.configuration import HEAD_MODALITIES, HEAD_READS
from hf_relreps.errors import ConfigurationError, EmbeddingError
from hf_relreps.heads import AUTO_CLASSIFIERS, READINGS
from hf_relreps.translation import METHODS, fit, methods


ALL = list(METHODS)
FOR_ALL_ENCODERS = [name for name, method in METHODS.items() if not method.needs_encoder]


def gaussian(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(d, seed):
    return torch.linalg.qr(gaussian(d, d, seed))[0]


def paired(k=40, d=8, e=6, seed=0, n=7):
    """Anchors in two spaces that a map connects, which is not linear everywhere, and samples of the first."""
    both = gaussian(k + n, d, seed)
    other = torch.tanh(both @ gaussian(d, e, seed + 1)) + 0.1 * gaussian(k + n, e, seed + 2) + 3
    return both[:k], other[:k], both[k:]


def translated(x_BD, x_AD, y_AE, method):
    with torch.no_grad():
        return fit(x_AD, y_AE, method)(x_BD)


def assert_same(found, expected, atol=1e-4):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=atol)


# -- against textbook solutions


def test_ridge_is_the_ridge_regression_of_the_target_on_the_source():
    x_AD, y_AE, x_BD = paired()
    centred_AD = (x_AD - x_AD.mean(0)).numpy()
    penalty = 0.2 * np.mean(np.sum(centred_AD**2, axis=1))
    model = Ridge(alpha=penalty).fit(centred_AD, y_AE.numpy())
    expected_BE = model.predict((x_BD - x_AD.mean(0)).numpy())
    assert_same(translated(x_BD, x_AD, y_AE, "ridge"), torch.tensor(expected_BE))


def test_kernel_ridge_is_the_kernel_ridge_regression_of_directions():
    x_AD, y_AE, x_BD = paired()
    units_AD, units_BD = (torch.nn.functional.normalize(x - x_AD.mean(0)).numpy() for x in (x_AD, x_BD))
    squares = [((a - b) ** 2).sum() for i, a in enumerate(units_AD) for j, b in enumerate(units_AD) if i != j]
    model = KernelRidge(alpha=0.1, kernel="rbf", gamma=1.5 / np.mean(squares))
    model.fit(units_AD, (y_AE - y_AE.mean(0)).numpy())
    expected_BE = model.predict(units_BD) + y_AE.mean(0).numpy()
    assert_same(translated(x_BD, x_AD, y_AE, "kernel_ridge"), torch.tensor(expected_BE))


def test_correlations_without_shrinkage_and_of_full_rank_are_least_squares(monkeypatch):
    monkeypatch.setattr(methods, "CCA_RIDGE", 0.0)
    x_AD, y_AE, x_BD = paired()
    map_DE = torch.linalg.lstsq(x_AD - x_AD.mean(0), y_AE - y_AE.mean(0)).solution
    expected_BE = (x_BD - x_AD.mean(0)) @ map_DE + y_AE.mean(0)
    assert_same(translated(x_BD, x_AD, y_AE, "cca"), expected_BE, atol=1e-3)


def test_correlations_keep_as_many_directions_as_their_rank(monkeypatch):
    monkeypatch.setattr(methods, "CCA_RANK", 2)
    x_AD, y_AE, x_BD = paired(n=30)
    moved_BE = translated(x_BD, x_AD, y_AE, "cca") - y_AE.mean(0)
    assert torch.linalg.matrix_rank(moved_BE, rtol=1e-4) == 2


@pytest.mark.parametrize(("k", "d", "e"), [(40, 8, 8), (300, 16, 16), (40, 8, 20)], ids=str)
def test_procrustes_undoes_any_rotation_scale_and_shift(k, d, e):
    # Into a wider space too: turned inside it, without padding.
    x_ND = gaussian(k + 9, d)
    y_NE = 3.7 * x_ND @ orthogonal(e, 1)[:d] + gaussian(1, e, 2)
    assert_same(translated(x_ND[k:], x_ND[:k], y_NE[:k], "procrustes"), y_NE[k:], atol=1e-3)


def test_procrustes_keeps_angles_and_ratios_of_lengths():
    x_AD, y_AE, x_BD = paired(e=8)
    moved_BE = translated(x_BD, x_AD, y_AE, "procrustes") - y_AE.mean(0)
    centred_BD = x_BD - x_AD.mean(0)
    scale = moved_BE.norm() / centred_BD.norm()
    assert_same(moved_BE @ moved_BE.T, scale**2 * centred_BD @ centred_BD.T, atol=1e-2)


def test_procrustes_moves_only_what_few_anchors_span():
    x_AD, y_AE = gaussian(5, 30), gaussian(5, 20, 1)
    outside_BD = torch.linalg.qr((x_AD - x_AD.mean(0)).T, mode="complete")[0][:, 5:].T
    assert_same(translated(x_AD.mean(0) + outside_BD, x_AD, y_AE, "procrustes"), y_AE.mean(0).expand(25, 20))


def test_inverse_relative_projection_gives_directions_back(monkeypatch):
    monkeypatch.setattr(methods, "INVERSE_RIDGE", 1e-6)
    x_AD = torch.nn.functional.normalize(gaussian(100, 16))
    x_AD = x_AD - x_AD.mean(0)
    turn_DD = orthogonal(16, 1)
    x_BD = gaussian(9, 16, 2)
    found_BD = translated(x_BD, x_AD, x_AD @ turn_DD, "inverse").double()
    assert torch.cosine_similarity(found_BD, x_BD @ turn_DD).min() > 0.999
    assert_same(found_BD.norm(dim=1), x_AD.norm(dim=1).mean().expand(9), atol=1e-2)


def test_inverse_relative_projection_leaves_out_like_and_opposite_anchors():
    distinct_AE = torch.eye(6, dtype=torch.float64)
    doubled_AE = torch.cat([distinct_AE, -distinct_AE, distinct_AE + 1e-3 * gaussian(6, 6)])
    kept = [sorted((rows_S % 6).tolist()) for rows_S in methods._prunings(torch.nn.functional.normalize(doubled_AE))]
    assert kept == [list(range(6))] * methods.ROUNDS


# -- what a translation depends on, and what not


@pytest.mark.parametrize("method", ALL)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(12, 40))
def test_turned_scaled_and_shifted_sources_change_nothing_and_targets_move_what_is_translated(method, seed, k):
    x_AD, y_AE, x_BD = paired(k=k, seed=seed)
    expected_BE = translated(x_BD, x_AD, y_AE, method)

    def move(z_N, scale):
        return scale * z_N @ orthogonal(z_N.shape[1], seed) + 2 * gaussian(1, z_N.shape[1], seed)

    assert_same(
        translated(move(x_BD, 0.2 + seed % 17), move(x_AD, 0.2 + seed % 17), y_AE, method), expected_BE, atol=5e-3
    )
    assert_same(translated(x_BD, x_AD, move(y_AE, 3), method), move(expected_BE.double(), 3), atol=5e-3)


@pytest.mark.parametrize("method", ALL)
def test_one_sample_alone_is_translated_as_in_any_batch(method):
    x_AD, y_AE, x_BD = paired(n=40)
    translate = fit(x_AD.float(), y_AE.float(), method)
    alone_BE = torch.cat([translate(x_BD[i : i + 1].float()) for i in range(40)])
    assert_same(translate(x_BD.float()), alone_BE, atol=1e-5)
    assert translate(x_BD[:0].float()).shape == (0, 6)


@pytest.mark.parametrize("method", FOR_ALL_ENCODERS)
def test_a_method_for_all_encoders_has_the_same_points_whatever_the_source(method):
    x_AD, y_AE, _ = paired()
    one, other = fit(x_AD, y_AE, method).placement, fit(x_AD[:, :5].exp(), y_AE, method).placement
    assert torch.equal(one.points_RE, other.points_RE) and torch.equal(one.shift_E, other.shift_E)


@pytest.mark.parametrize("method", ALL)
def test_it_is_better_than_the_mean_on_samples_it_was_not_fitted_on(method):
    both = gaussian(340, 12, 1)
    other = torch.tanh(both @ gaussian(12, 10, 2) / 3)
    error = (translated(both[300:], both[:300], other[:300], method) - other[300:]).square().mean()
    assert error < 0.5 * (other[300:] - other[:300].mean(0)).square().mean()


# -- hard anchors


HARD = {
    "repeated": lambda a: torch.cat([a, a, a]),
    "more than axes": lambda a: torch.cat([a, *(a[torch.randperm(len(a))] * s for s in (0.5, 2.0, 3.0))]),
    "fewer than axes": lambda a: a[:4],
    "nearly on a line": lambda a: a[:, :1] @ torch.ones(1, a.shape[1], dtype=a.dtype) + 1e-4 * a,
    "far from zero": lambda a: a + 1e3,
    "one axis large": lambda a: a * torch.tensor([1e4] + [1.0] * (a.shape[1] - 1), dtype=a.dtype),
}


@pytest.mark.parametrize("hard", list(HARD))
@pytest.mark.parametrize("method", ALL)
def test_hard_anchors_give_finite_embeddings_of_a_sane_size(method, hard):
    torch.manual_seed(0)
    x_AD, y_AE, _ = paired(k=20)
    x_AD, y_AE = HARD[hard](x_AD), HARD[hard](y_AE)
    found_AE = translated(x_AD.float(), x_AD.float(), y_AE.float(), method)
    assert torch.isfinite(found_AE).all()
    far = (y_AE - y_AE.mean(0)).norm(dim=1).max()
    assert (found_AE - y_AE.mean(0)).norm(dim=1).max() < 4 * far


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_differs_by_the_rounding_of_its_inputs_only(method, dtype):
    x_AD, y_AE, x_BD = paired()
    rounded = [z.to(dtype) for z in (x_AD, y_AE, x_BD)]
    found_BE = fit(rounded[0], rounded[1], method).to(dtype)(rounded[2])
    assert found_BE.dtype == torch.float32
    expected_BE = translated(rounded[2].float(), rounded[0].float(), rounded[1].float(), method)
    assert_same(found_BE, expected_BE)


@pytest.mark.parametrize("method", ALL)
def test_gradients_pass_through_to_samples(method):
    x_AD, y_AE, x_BD = paired()
    x_BD = x_BD.float().requires_grad_()
    fit(x_AD.float(), y_AE.float(), method)(x_BD).square().sum().backward()
    assert torch.isfinite(x_BD.grad).all() and x_BD.grad.any()


def test_a_state_dict_holds_a_translation():
    x_AD, y_AE, x_BD = paired()
    translate, other = fit(x_AD.float(), y_AE.float()), fit(gaussian(40, 8, 5).float(), gaussian(40, 6, 6).float())
    other.load_state_dict(translate.state_dict())
    assert torch.equal(other(x_BD.float()), translate(x_BD.float()))


# -- errors


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(
        ConfigurationError, match=r"method='rotate' does not exist\. Choose one of kernel_ridge, ridge"
    ):
        fit(gaussian(3, 2), gaussian(3, 2), "rotate")


@pytest.mark.parametrize(
    ("x_AD", "y_AE", "message"),
    [
        (
            gaussian(5, 3),
            gaussian(4, 3),
            r"source has 5 anchors, but the target has 4\. Row i of both must be the same anchor",
        ),
        (gaussian(1, 3), gaussian(1, 3), r"source's anchors have shape \(1, 3\), expected \(A, width\) with two"),
        (gaussian(5, 3), gaussian(5, 3)[0], r"target's anchors have shape \(3,\)"),
        (gaussian(5, 3), torch.full((5, 3), torch.nan), r"target anchor 0 has length nan"),
        (torch.zeros(5, 3), gaussian(5, 3), r"source anchor 0 has length 0\.0"),
        (torch.ones(5, 3), gaussian(5, 3), r"All 5 anchors of the source have the same embedding"),
        (gaussian(5, 3), torch.ones(5, 3), r"All 5 anchors of the target have the same embedding"),
    ],
)
def test_anchors_that_say_nothing_are_refused(x_AD, y_AE, message):
    with pytest.raises(EmbeddingError, match=message):
        fit(x_AD, y_AE)


def test_the_configuration_knows_what_heads_read():
    assert tuple(READINGS) == HEAD_READS
    assert tuple(AUTO_CLASSIFIERS) == HEAD_MODALITIES


# -- settings of `fit`


def test_a_ridge_of_ones_own_is_that_of_the_textbook():
    x_AD, y_AE, x_BD = paired()
    centred_AD = (x_AD - x_AD.mean(0)).numpy()
    model = Ridge(alpha=3 * np.mean(np.sum(centred_AD**2, axis=1))).fit(centred_AD, y_AE.numpy())
    expected_BE = torch.tensor(model.predict((x_BD - x_AD.mean(0)).numpy()))
    assert_same(fit(x_AD, y_AE, "ridge", ridge=3.0)(x_BD), expected_BE)


def test_a_rank_of_ones_own_is_kept_and_a_width_changes_the_kernel():
    x_AD, y_AE, x_BD = paired(n=30)
    moved_BE = fit(x_AD, y_AE, "cca", rank=3, ridge=0.01, add_mean=False)(x_BD)
    assert torch.linalg.matrix_rank(moved_BE, rtol=1e-4) == 3
    assert fit(x_AD, y_AE, width=0.5).projection.space.rbf_gamma == 0.5


@pytest.mark.parametrize("method", ALL)
def test_without_the_mean_a_translation_is_shifted_and_nothing_else(method):
    x_AD, y_AE, x_BD = paired()
    moved_BE = fit(x_AD, y_AE, method, add_mean=False)(x_BD)
    assert_same(moved_BE.double() + y_AE.mean(0), translated(x_BD, x_AD, y_AE, method))


def test_a_setting_that_a_method_does_not_have_is_refused():
    with pytest.raises(ConfigurationError, match=r"'procrustes' takes no ridge, found ridge=0\.1\. It takes none"):
        fit(gaussian(5, 3), gaussian(5, 3), "procrustes", ridge=0.1)
    with pytest.raises(ConfigurationError, match=r"takes no rank, found rank=3\. It takes ridge and width"):
        fit(gaussian(5, 3), gaussian(5, 3), rank=3)
    with pytest.raises(ConfigurationError, match=r"ridge=-1 must be a number above 0"):
        fit(gaussian(5, 3), gaussian(5, 3), ridge=-1)
