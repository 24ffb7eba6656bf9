"""Word pairs are found in parallel sentences of two spaces, and what is not parallel is refused."""

import numpy as np
import pytest
import torch

from hf_relreps.errors import AnchorError, EmbeddingError
from hf_relreps.word_pairs import WordPairReport, find_word_pairs


WORDS = 9


def sentences(n=60, noise=0.7, seed=0):
    """Words seen by two encoders of unlike width, in another order on each side, and where each went."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    vocabulary_VD = draw(300, 16)
    turns = [torch.linalg.qr(draw(width, width))[0][:16] for width in (24, 40)]
    source, target, places = [], [], []
    for _ in range(n):
        z_WD = vocabulary_VD[torch.randperm(300, generator=generator)[:WORDS]] + 0.5 * draw(1, 16)  # its own topic
        order = torch.randperm(WORDS, generator=generator)
        source.append(z_WD @ turns[0] + noise * draw(WORDS, 24))
        target.append(z_WD[order] @ turns[1] + noise * draw(WORDS, 40))
        places.append(order.argsort())
    return source, target, places


@pytest.fixture(scope="module")
def world():
    source, target, places = sentences()
    return source, target, places, find_word_pairs(source, target)


def right(pairs, places):
    """For each pair whether it is right."""
    rows = zip(pairs.sentence_P.tolist(), pairs.source_P.tolist(), pairs.target_P.tolist(), strict=True)
    return np.array([int(places[i][j]) == q for i, j, q in rows])


def test_words_of_two_spaces_find_each_other_the_surest_first(world):
    *_, places, pairs = world
    assert len(pairs) > 400 and right(pairs, places).mean() > 0.9
    assert right(pairs, places)[:200].mean() >= right(pairs, places)[-100:].mean()
    assert (pairs.confidence_P.diff() <= 0).all()


def test_no_word_is_in_two_pairs(world):
    pairs = world[3]
    for side in (pairs.source_P, pairs.target_P):
        assert len({*zip(pairs.sentence_P.tolist(), side.tolist(), strict=True)}) == len(pairs)


def test_the_report_says_what_held_out_sentences_say(world):
    report = world[3].report
    assert report.trusted and report.sentences == 60 and report.held_out == 12
    assert max(report.agreement) > report.agreement[0]  # words describe words better than sentences do
    assert report.retrieved > 5 * report.retrieved_by_chance
    assert str(report).startswith("The word pairs can be used: of the words of 12 held-out sentence pairs ")
    assert report.to_dict()["trusted"] is True


def test_turning_and_scaling_a_space_changes_nothing(world):
    source, target, _, pairs = world
    turn_DD = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(5)))[0]
    turned = find_word_pairs([3 * x_WD @ turn_DD for x_WD in source], target)
    links = [{*zip(*(part.tolist() for part in (one.sentence_P, one.source_P, one.target_P)), strict=True)}
             for one in (pairs, turned)]  # fmt: skip
    assert len(links[0] & links[1]) > 0.98 * len(links[0])


def test_chosen_pairs_are_drawn_from_the_surest_and_the_seed_says_which(world):
    source, target, _, pairs = world
    sure = int(0.7 * len(pairs))
    chosen = pairs.choose(100)
    assert len(chosen) == 100 and chosen.confidence_P.min() >= pairs.confidence_P[sure - 1]
    assert torch.equal(chosen.source_P, pairs.choose(100).source_P)
    assert not torch.equal(chosen.sentence_P, pairs.choose(100, seed=1).sentence_P)
    assert len(pairs.choose(10_000)) == sure
    left_PD, right_PD = chosen.vectors(source, target)
    assert left_PD.shape == (100, 24) and right_PD.shape == (100, 40)
    first = (int(part[0]) for part in (chosen.sentence_P, chosen.source_P))
    assert torch.equal(left_PD[0], source[next(first)][next(first)])
    with pytest.raises(AnchorError, match="k=0 must be at least 1 pair"):
        pairs.choose(0)


def test_half_of_the_chosen_pairs_are_of_a_rare_class(world):
    *_, pairs = world
    rare = np.zeros(len(pairs), dtype=bool)
    rare[[0, 5, *range(len(pairs) - 40, len(pairs))]] = True  # the least sure count too

    def rare_among(chosen):
        keys = zip(*(getattr(pairs, name).tolist() for name in ("sentence_P", "source_P", "target_P")), strict=True)
        known = dict(zip(keys, rare.tolist(), strict=True))
        own = zip(*(getattr(chosen, name).tolist() for name in ("sentence_P", "source_P", "target_P")), strict=True)
        return sum(known[key] for key in own)

    chosen = pairs.choose(60, rare=rare.tolist())
    assert (len(chosen), rare_among(chosen)) == (60, 30)
    assert torch.equal(chosen.source_P, pairs.choose(60, rare=rare).source_P)
    assert not torch.equal(chosen.source_P, pairs.choose(60, rare=rare, seed=1).source_P)
    larger = pairs.choose(200, rare=rare)
    assert (len(larger), rare_among(larger)) == (200, 42), "all that there are"
    assert len(pairs.choose(40, rare=[True] * len(pairs))) == 40 and len(pairs.choose(1, rare=rare)) == 1
    for wrong in (rare[:-1], rare.astype(int), [None] * len(pairs)):
        with pytest.raises(AnchorError, match=rf"expected True or False for each of the {len(pairs)} pairs"):
            pairs.choose(60, rare=wrong)


def test_sentences_that_are_not_parallel_are_refused(world):
    source, target, *_ = world
    with pytest.raises(AnchorError, match=r"cannot be used: .* find the parallel sentence, 0\.\d+ by chance\. Look"):
        find_word_pairs(source, target[7:] + target[:7])


def test_a_few_wrong_sentence_pairs_are_borne():
    source, target, places = sentences(100)
    target[:20] = target[1:20] + target[:1]
    pairs = find_word_pairs(source, target)
    assert right(pairs, places)[(pairs.sentence_P >= 20).numpy()].mean() > 0.85
    sure = pairs.sentence_P[: len(pairs) // 2]
    assert (sure < 20).float().mean() < (pairs.sentence_P < 20).float().mean()


def test_what_cannot_be_read_is_refused(world):
    source, target, *_ = world
    with pytest.raises(AnchorError, match="There are 60 source and 59 target sentences"):
        find_word_pairs(source, target[1:])
    with pytest.raises(AnchorError, match="Found 49 sentence pairs, expected 50 or more"):
        find_word_pairs(source[:49], target[:49])
    for bad in (torch.zeros(0, 24), torch.ones(4), torch.ones(4, 23), torch.full((4, 24), torch.nan)):
        with pytest.raises(EmbeddingError, match=r"Sentence 3 of source has vectors \(.*expected finite"):
            find_word_pairs([*source[:3], bad, *source[4:]], target)


def test_the_global_state_is_left_alone_and_a_sentence_may_have_one_word():
    source, target, _ = sentences()
    source[0], target[0] = source[0][:1], target[0][:1]
    before = torch.get_rng_state()
    pairs = find_word_pairs([x_WD.numpy() for x_WD in source], target)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.isfinite(pairs.confidence_P).all() and (pairs.sentence_P == 0).sum() == 1


def test_trust_needs_words_that_find_the_parallel_sentence():
    assert not WordPairReport(60, 12, (0.5, 0.6), 0.4, 0.2, 0.08).trusted
    assert WordPairReport(60, 12, (0.5, 0.6), 0.4, 0.3, 0.08).trusted
