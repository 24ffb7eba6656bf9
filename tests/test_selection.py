"""Every strategy: k distinct rows, the same for the same seed, and what it promises of them."""

import tracemalloc
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_relreps.errors import AnchorError
from hf_relreps.selection import STRATEGIES, select
from hf_relreps.similarities import unit


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def clusters(n, of, d, noise, seed=0):
    """n points about `of` centres on the sphere, and the centre of each."""
    which = torch.randint(0, of, (n,), generator=torch.Generator().manual_seed(seed))
    return unit(gaussian(of, d, seed + 1))[which] + noise * gaussian(n, d, seed + 2), which


def needs(n):
    """What any strategy may ask for."""
    return {"labels": [f"class {i % 4}" for i in range(n)], "embeddings_ND": gaussian(n, 6)}


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=8, deadline=None)
@given(n=st.integers(1, 60), data=st.data(), seed=st.integers(0, 2**31))
def test_every_strategy_gives_k_distinct_rows_and_the_same_for_the_same_seed(strategy, n, data, seed):
    k = data.draw(st.integers(1, n))
    rows = select(n, k, strategy, seed, **needs(n))
    assert rows.shape == (k,) and len(set(rows.tolist())) == k
    assert 0 <= rows.min() and rows.max() < n
    assert (select(n, k, strategy, seed, **needs(n)) == rows).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_seed_gives_other_rows(strategy):
    chosen = {tuple(sorted(select(200, 10, strategy, seed, **needs(200)))) for seed in range(5)}
    assert len(chosen) == 5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_global_random_state_is_neither_read_nor_changed(strategy):
    np.random.seed(1)  # noqa: NPY002  the state that must not matter
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    rows = select(200, 10, strategy, 7, **needs(200))
    after = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    assert (before[0] == after[0]).all() and torch.equal(before[1], after[1])
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert (select(200, 10, strategy, 7, **needs(200)) == rows).all()


def test_uniform_chooses_every_row_equally_often_and_in_every_place():
    draws, n, k = 4000, 10, 4
    chosen = np.array([select(n, k, "uniform", seed) for seed in range(draws)])
    for place in [chosen.ravel(), chosen[:, 0], chosen[:, 3]]:
        counts = np.bincount(place, minlength=n)
        expected = len(place) / n
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 27.9  # the value that 9 degrees of freedom exceed once in a thousand


def test_fewer_uniform_anchors_are_the_first_of_more():
    assert (select(100, 5) == select(100, 50)[:5]).all()


def test_stratified_takes_classes_in_turn():
    labels = ["common"] * 90 + ["rare"] * 7 + ["single"] * 1
    rows = select(98, 20, "stratified", labels=labels)
    assert Counter(labels[row] for row in rows) == {"common": 12, "rare": 7, "single": 1}
    for start, of in ((0, 3), (3, 2), (5, 2)):  # the single one is used up after the first turn
        assert len({labels[row] for row in rows[start : start + of]}) == of


@settings(max_examples=10, deadline=None)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=6), data=st.data(), seed=st.integers(0, 1000))
def test_stratified_counts_differ_by_one_at_most_where_the_classes_are_large_enough(counts, data, seed):
    labels = [name for name, count in enumerate(counts) for _ in range(count)]
    k = data.draw(st.integers(1, len(labels)))
    taken = Counter(labels[row] for row in select(len(labels), k, "stratified", seed, labels=labels))
    most = max(taken.values())
    for name, count in enumerate(counts):
        assert taken[name] == count or taken[name] >= most - 1


def test_stratified_favours_no_class_when_there_are_more_classes_than_anchors():
    labels = [i % 6 for i in range(60)]
    first = Counter(labels[select(60, 2, "stratified", seed, labels=labels)[0]] for seed in range(300))
    assert set(first) == set(range(6)) and min(first.values()) > 25


@pytest.mark.parametrize("labels", [[None, "a", None, 3], np.array([1, 1, 0, 0]), [True, False, None, 2.5]], ids=str)
def test_labels_may_be_of_any_type(labels):
    first_two = select(4, 2, "stratified", labels=labels)
    assert labels[first_two[0]] != labels[first_two[1]]


def inertia(x_ND, rows):
    """Mean squared distance of unit vectors to the nearest chosen one."""
    unit_ND = unit(x_ND)
    return float((2 - 2 * (unit_ND @ unit_ND[rows].T).amax(1)).mean())


def test_kmeans_takes_one_of_each_cluster():
    x_ND, cluster_N = clusters(2000, 12, 16, noise=0.02)
    rows = select(2000, 12, "kmeans", embeddings_ND=x_ND)
    assert len(set(cluster_N[rows].tolist())) == 12


def test_kmeans_anchors_lie_nearer_to_the_data_than_uniform_ones():
    x_ND, _ = clusters(1500, 20, 16, noise=0.1)
    uniform = [inertia(x_ND, select(1500, 20, "uniform", seed)) for seed in range(10)]
    assert inertia(x_ND, select(1500, 20, "kmeans", embeddings_ND=x_ND)) < 0.7 * min(uniform)


def coverage(x_ND, rows):
    """Squared distance of the candidate that is farthest from all chosen ones."""
    unit_ND = unit(x_ND)
    return float((2 - 2 * (unit_ND @ unit_ND[rows].T).amax(1)).max())


def separation(x_ND, rows):
    """Smallest squared distance between two chosen ones."""
    return float(torch.pdist(unit(x_ND)[rows]).min() ** 2)


def test_fps_spreads_anchors_farther_apart_than_uniform_ones():
    x_ND = gaussian(800, 5)
    rows = select(800, 20, "fps", embeddings_ND=x_ND)
    uniform = [select(800, 20, "uniform", seed) for seed in range(20)]
    assert separation(x_ND, rows) > 2 * max(separation(x_ND, other) for other in uniform)
    assert coverage(x_ND, rows) < 0.8 * min(coverage(x_ND, other) for other in uniform)


def test_fps_takes_the_farthest_each_time():
    x_ND = gaussian(60, 4).double()
    rows = select(60, 15, "fps", embeddings_ND=x_ND)
    unit_ND = unit(x_ND)
    for k in range(1, 15):
        nearest_N = (unit_ND @ unit_ND[rows[:k]].T).amax(1)
        assert nearest_N[rows[k]] == pytest.approx(float(nearest_N.min()), abs=1e-6)


@pytest.mark.parametrize("strategy", ["kmeans", "fps"])
def test_memory_grows_with_n_and_not_with_its_square(strategy):
    n = 20_000
    x_ND = gaussian(n, 4).numpy()
    select(100, 3, strategy, embeddings_ND=x_ND[:100])  # imports
    tracemalloc.start()  # numpy reports to it; torch's share is bounded below
    select(n, 3, strategy, embeddings_ND=x_ND)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * x_ND.nbytes < n * n


def test_fps_makes_no_tensor_larger_than_its_embeddings():
    largest = []

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.numel())
            return result

    x_ND = gaussian(3000, 4)
    with Sizes():
        select(3000, 10, "fps", embeddings_ND=x_ND)
    assert 3000 <= max(largest) <= x_ND.numel()


@pytest.mark.parametrize("strategy", ["kmeans", "fps"])
def test_identical_candidates_are_chosen_once_each_and_without_warnings(strategy):
    x_ND = torch.cat([gaussian(2, 4)] * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = select(20, 15, strategy, embeddings_ND=x_ND)
    assert len(set(rows.tolist())) == 15


@pytest.mark.parametrize("strategy", ["kmeans", "fps"])
def test_embeddings_may_be_lists_arrays_or_tensors_of_any_dtype_and_length(strategy):
    x_ND = gaussian(50, 4)
    expected = select(50, 5, strategy, embeddings_ND=x_ND).tolist()
    for same_ND in (x_ND.tolist(), x_ND.numpy(), x_ND.double(), x_ND.clone().requires_grad_(), x_ND * 1e30):
        assert select(50, 5, strategy, embeddings_ND=same_ND).tolist() == expected
    assert len(set(select(50, 5, strategy, embeddings_ND=x_ND.bfloat16()).tolist())) == 5


# -- errors


@pytest.mark.parametrize("k", [0, -1, 11])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_k_outside_of_the_data_is_refused(strategy, k):
    with pytest.raises(AnchorError, match=rf"Cannot choose k={k} anchors from 10 candidates.* between 1 and 10"):
        select(10, k, strategy, **needs(10))


def test_an_unknown_strategy_is_refused():
    with pytest.raises(
        AnchorError, match="strategy='best' does not exist. Choose one of uniform, stratified, kmeans, fps"
    ):
        select(10, 2, "best")


@pytest.mark.parametrize(
    ("strategy", "argument"), [("stratified", "label_column="), ("kmeans", "embeddings="), ("fps", "embeddings=")]
)
def test_what_a_strategy_needs_is_named(strategy, argument):
    with pytest.raises(AnchorError, match=f"strategy='{strategy}' needs {argument}, with one row for each candidate"):
        select(10, 2, strategy)
    short = {"labels": [0] * 9, "embeddings_ND": gaussian(9, 4)}
    with pytest.raises(AnchorError, match=f"{argument} has 9 rows for 10 candidates"):
        select(10, 2, strategy, **short)


@pytest.mark.parametrize("strategy", ["kmeans", "fps"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_embeddings_without_direction_are_refused_with_their_position(strategy, value):
    x_ND = gaussian(10, 4)
    x_ND[[3, 7]] = value
    with pytest.raises(AnchorError, match="2 of 10 candidates have .* zero or not finite, the first is candidate 3"):
        select(10, 2, strategy, embeddings_ND=x_ND)


@pytest.mark.parametrize("strategy", ["kmeans", "fps"])
def test_embeddings_of_another_shape_are_refused(strategy):
    with pytest.raises(AnchorError, match=r"embeddings= has shape \(10, 2, 3\), expected two dimensions"):
        select(10, 2, strategy, embeddings_ND=torch.ones(10, 2, 3))
