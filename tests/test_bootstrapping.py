"""Few known pairs become many, wrong pairs are found, and what cannot be matched is refused in words that mend it."""

import numpy as np
import pytest
import torch

from hf_relreps import AnchorSet, RelativeModel, RelativeModelForSequenceClassification
from hf_relreps.bootstrapping import (
    BootstrapReport,
    assign,
    bootstrap,
    describe,
    find_mismatched,
    grow,
    match,
    match_pools,
    mismatched,
    rank_held_out,
)
from hf_relreps.errors import AnchorError


WIDTHS = {"en": 24, "fr": 40}


def meanings(n, seed=0, d=12):
    """n points whose directions are spread unevenly, as those of meanings are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(1, 0.3, d)


def seen_by(z_ND, width, seed, noise=0.02):
    """What an encoder makes of meanings: turned into its own space, moved, and blurred."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][: z_ND.shape[1]]
    shift = torch.randn(width, generator=generator) / 10
    return z_ND @ basis + shift + noise * torch.randn(len(z_ND), width, generator=generator)


def two_spaces(n, seed=0):
    z_ND = meanings(n, seed)
    return seen_by(z_ND, WIDTHS["en"], seed + 1), seen_by(z_ND, WIDTHS["fr"], seed + 2)


def shuffled(n, seed=3):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


# -- matching


def test_descriptions_are_unchanged_by_rotation_and_scale():
    x_ND, turn = meanings(40), torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0]
    expected = describe(x_ND, x_ND[:10])
    assert torch.allclose(describe(3 * x_ND @ turn, 3 * (x_ND @ turn)[:10]), expected, atol=1e-4)


def test_match_finds_each_row_of_a_rotated_copy_and_orders_by_margin():
    x_ND = meanings(60)
    order = shuffled(60)
    pairs = match(x_ND, x_ND[order], x_ND[:20], x_ND[:20])
    assert pairs.mutual == 1 and torch.equal(order[pairs.right_P], pairs.left_P)
    assert (pairs.margin_P.diff() <= 0).all()


def agreeing(pairs, order):
    """Share of the pairs that are right when the right pool is in another order."""
    return float((order[pairs.right_P] == pairs.left_P).float().mean())


def test_pools_are_assigned_whole_where_their_similarities_agree_and_pairs_are_told_from_strangers():
    left_ND, right_ND = two_spaces(206)
    order = shuffled(200)
    pools, known = (left_ND[6:], right_ND[6:][order]), (left_ND[:6], right_ND[:6])
    pairs = assign(*pools, *known)
    assert agreeing(pairs, order) > 0.95
    assert sorted(pairs.left_P.tolist()) == sorted(pairs.right_P.tolist()) == list(range(200))
    assert (pairs.margin_P.diff() <= 0).all()
    strangers = assign(pools[0], torch.randn(150, 40, generator=torch.Generator().manual_seed(5)), *known)
    assert len(strangers.left_P) == 150


def test_of_large_pools_some_rows_are_assigned(monkeypatch):
    monkeypatch.setattr("hf_relreps.bootstrapping.LARGEST", 50)
    left_ND, right_ND = two_spaces(206)
    pairs = assign(left_ND[6:], right_ND[6:], left_ND[:6], right_ND[:6])
    assert len(pairs.left_P) == 50 and int(pairs.left_P.max()) >= 50


def test_the_assignment_helps_where_nearest_neighbours_lead_nowhere():
    z_ND, order = meanings(155, seed=3), shuffled(150)
    left_ND, right_ND = seen_by(z_ND, 24, 4, noise=0.3), seen_by(z_ND, 40, 5, noise=0.3)
    spaces = left_ND[5:], right_ND[5:][order], left_ND[:5], right_ND[:5]
    pairs, _ = match_pools(*spaces, 80)
    assert agreeing(grow(*spaces, 80), order) < 0.3 < 0.8 < agreeing(pairs, order)


def test_held_out_pairs_are_found_again_unless_the_pairs_are_wrong():
    left_ND, right_ND = two_spaces(320)
    spaces = left_ND[20:], right_ND[20:][shuffled(300)], left_ND[:20]
    right_H = rank_held_out(*spaces, right_ND[:20], 100)
    wrong_H = rank_held_out(*spaces, right_ND[:20].roll(7, 0), 100)
    assert len(right_H) == len(wrong_H) == 6
    assert right_H.min() > 0.97 and wrong_H.mean() < 0.8


@pytest.mark.parametrize(
    ("mutual", "rank", "trusted"), [(0.9, 0.5, True), (0.6, 0.995, True), (0.6, 0.95, False), (0.45, 1.0, False)]
)
def test_trust_needs_more_mutual_samples_than_chance_and_between_the_limits_held_out_pairs(mutual, rank, trusted):
    report = BootstrapReport(25, 275, mutual, 0.4, 8, rank)
    assert report.trusted is report.to_dict()["trusted"] is trusted


def test_few_known_pairs_become_many():
    left_ND, right_ND = two_spaces(320)
    order = shuffled(300)
    pairs, report = match_pools(left_ND[20:], right_ND[20:][order], left_ND[:20], right_ND[:20], 100)
    right = float((order[pairs.right_P] == pairs.left_P).float().mean())
    assert len(pairs.left_P) == 100 and right > 0.95
    assert report.trusted
    assert report.mutual > 2 * report.mutual_by_chance
    assert "20 known pairs and 100 found; " in str(report)
    assert "6 held-out known pairs are closer than " in str(report)


def test_pools_that_share_only_half_of_their_meanings_are_matched():
    left_ND, right_ND = two_spaces(470)
    left = torch.arange(20, 320)
    right = torch.arange(170, 470)[shuffled(300)]
    pairs, report = match_pools(left_ND[left], right_ND[right], left_ND[:20], right_ND[:20], 80)
    precision = float((left[pairs.left_P] == right[pairs.right_P]).float().mean())
    assert report.trusted and precision > 0.8


def test_an_encoder_that_says_nothing_is_not_trusted():
    left_ND, _ = two_spaces(320)
    noise_ND = torch.randn(320, WIDTHS["fr"], generator=torch.Generator().manual_seed(5))
    _, report = match_pools(left_ND[20:], noise_ND[20:], left_ND[:20], noise_ND[:20], 100)
    assert not report.trusted
    assert report.mutual == pytest.approx(report.mutual_by_chance, abs=0.08)


def test_known_pairs_that_are_wrong_are_not_trusted():
    left_ND, right_ND = two_spaces(320)
    _, report = match_pools(left_ND[20:], right_ND[20:], left_ND[:20], right_ND[:20].roll(7, 0), 100)
    assert not report.trusted


def test_the_same_arguments_give_the_same_pairs_and_the_global_state_is_left_alone():
    left_ND, right_ND = two_spaces(220)
    np.random.seed(1)  # noqa: NPY002  the state that must not matter
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    runs = [match_pools(left_ND[20:], right_ND[20:], left_ND[:20], right_ND[:20], 50) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(runs[0][0][:3], runs[1][0][:3], strict=True))
    assert runs[0][1] == runs[1][1]
    assert (np.random.get_state()[1] == before[0]).all() and torch.equal(torch.get_rng_state(), before[1])  # noqa: NPY002


def test_no_more_pairs_than_samples_find_each_other():
    left_ND, right_ND = two_spaces(40)
    pairs = grow(left_ND[15:], right_ND[15:30], left_ND[:15], right_ND[:15], 200)
    assert 10 < len(pairs.left_P) <= 15


# -- wrong pairs


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5])
def test_wrong_pairs_are_found_and_right_ones_are_not(share):
    left_AD, right_AD = two_spaces(200)
    wrong = torch.arange(int(share * 200))
    right_AD[wrong] = right_AD[wrong].roll(1, 0)
    found = set(find_mismatched(left_AD, right_AD).tolist())
    assert len(found & set(wrong.tolist())) >= 0.85 * len(wrong)
    assert len(found - set(wrong.tolist())) <= 4


def test_views_in_another_order_are_refused():
    left_AD, right_AD = two_spaces(200)
    for other_AD in (right_AD.flip(0), right_AD[shuffled(200)]):
        with pytest.raises(AnchorError, match=r"of 200 anchors agree between the two views, .*same order"):
            find_mismatched(left_AD, other_AD)


# -- the door: anchor sets


class Lookup:
    """An encoder that knows its samples by heart."""

    def __init__(self, samples, x_ND):
        self.known = dict(zip(samples, x_ND, strict=True))

    def encode(self, samples):
        return torch.stack([self.known[sample] for sample in samples])


@pytest.fixture(scope="module")
def world():
    """Encoders, 20 anchors, and pools of 200 samples of which those in French are in another order."""
    texts = {name: [f"{name} {i}" for i in range(220)] for name in WIDTHS}
    encoders = {name: Lookup(texts[name], x_ND) for name, x_ND in zip(WIDTHS, two_spaces(220), strict=True)}
    anchors = AnchorSet([str(i) for i in range(20)], {name: texts[name][:20] for name in WIDTHS})
    pools = {"en": texts["en"][20:], "fr": [texts["fr"][20 + i] for i in shuffled(200).tolist()]}
    return encoders, anchors, pools


def test_an_anchor_set_grows_and_says_what_is_pseudo(world, tmp_path):
    encoders, anchors, pools = world
    larger, report = bootstrap(anchors, encoders, pools, k=80)
    assert len(larger) == 80 and larger.ids[:20] == anchors.ids
    assert all(id_.startswith("pseudo-") for id_ in larger.ids[20:])
    numbers = [[text.split()[1] for text in larger.view(name).samples] for name in WIDTHS]
    assert sum(one == other for one, other in zip(*numbers, strict=True)) >= 76
    assert larger.origin["bootstrap"]["found"] == 60 == report.found
    larger.save_pretrained(tmp_path)
    assert AnchorSet.from_pretrained(tmp_path).fingerprint == larger.fingerprint


def test_samples_that_are_anchors_or_repeated_do_not_enter_the_pools(world):
    encoders, anchors, pools = world
    again = {name: [*anchors.view(name).samples, *pool, *pool[:30]] for name, pool in pools.items()}
    assert bootstrap(anchors, encoders, again, k=80)[0].ids == bootstrap(anchors, encoders, pools, k=80)[0].ids


def test_pools_that_cannot_be_matched_are_refused_with_a_reason(world):
    encoders, anchors, pools = world
    mixed = AnchorSet(anchors.ids, {"en": anchors.view("en").samples, "fr": anchors.view("fr").samples[::-1]})
    with pytest.raises(AnchorError, match=r"pools cannot be matched: 0\.\d+ of their samples are mutual.*than 20"):
        bootstrap(mixed, encoders, pools, k=80)


def test_bootstrap_asks_for_what_it_needs(world):
    encoders, anchors, pools = world
    with pytest.raises(AnchorError, match="encoders names 1 views, expected two"):
        bootstrap(anchors, {"en": encoders["en"]}, pools)
    with pytest.raises(AnchorError, match="pools has the views 'en', encoders 'en' and 'fr'"):
        bootstrap(anchors, encoders, {"en": pools["en"]})
    with pytest.raises(AnchorError, match="k=20 must be larger than the 20 known anchors"):
        bootstrap(anchors, encoders, pools, k=20)
    with pytest.raises(AnchorError, match="Found 4 known pairs, expected 5 or more"):
        bootstrap(anchors.without(anchors.ids[4:]), encoders, pools)
    with pytest.raises(
        AnchorError,
        match=r"returned shape \(20,\) for 20 samples of view 'en'|returned shape \(200,\) for 200 samples",
    ):
        lengths = type("Lengths", (), {"encode": lambda self, samples: torch.ones(len(samples))})()
        bootstrap(anchors, {"en": lengths, "fr": encoders["fr"]}, pools)


def test_wrong_translations_are_found_and_dropped(world):
    encoders, anchors, pools = world
    english = [*anchors.view("en").samples, *pools["en"][:80]]
    french = [text.replace("en", "fr") for text in english]
    french[3], french[40], french[41] = french[41], french[3], french[40]
    many = AnchorSet([str(i) for i in range(100)], {"en": english, "fr": french})
    wrong = mismatched(many, encoders)
    assert {"3", "40", "41"} <= set(wrong) and len(wrong) <= 5
    clean = many.without(wrong)
    assert len(clean) == 100 - len(wrong) and clean.fingerprint != many.fingerprint
    assert clean.origin["dropped"] == len(wrong)
    with pytest.raises(AnchorError, match="No anchor has the id '3'"):
        clean.without(["3"])


def test_relative_models_are_encoders_for_it(make_bert, tokenizer, anchors, texts):
    encoders = {
        name: RelativeModel.from_encoder(make_bert(seed), anchors.view(name), tokenizer)
        for seed, name in enumerate(("en", "fr"))
    }
    assert set(mismatched(anchors, encoders)) <= set(anchors.ids)
    wholes = {name: RelativeModelForSequenceClassification.from_encoder(encoders[name]) for name in encoders}
    assert mismatched(anchors, wholes) == mismatched(anchors, encoders)
    with pytest.raises(
        AnchorError, match=r"encoder of view 'fr' is a BertModel, which has no encode\(samples\)\. Make"
    ):
        mismatched(anchors, {"en": encoders["en"], "fr": make_bert(0)})
