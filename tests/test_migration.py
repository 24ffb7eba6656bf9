"""Migration of an index: against exhaustive search, on pairs that do not belong together, saved, killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.errors import ConfigurationError, EmbeddingError, UploadError, UploadIntegrityError
from hf_relreps.migration import WAYS, Migration, RenewedVectors, fit
from hf_relreps.migration.ways import ON_UNTOUCHED_INDEX


PAIRS = 300


def unit(x_BD):
    return torch.nn.functional.normalize(torch.as_tensor(x_BD).float(), dim=-1)


@pytest.fixture(scope="module")
def texts():
    return load_debian_descriptions("train")["en"][:1200]


@pytest.fixture(scope="module")
def vectors(texts):
    """Of real texts by two models: words, and pieces of words; of unlike widths."""
    old = TruncatedSVD(48, random_state=0).fit_transform(TfidfVectorizer(stop_words="english").fit_transform(texts))
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True).fit_transform(texts)
    new = TruncatedSVD(64, random_state=1).fit_transform(pieces)
    return np.float32(old), np.float32(new)


@pytest.fixture(scope="module")
def migration(vectors):
    old, new = vectors
    return fit(old[:PAIRS], new[:PAIRS], stored=old[:1000], old_model="words", new_model="pieces")


def overlap(scores, old_QD, old_MD, k=10):
    """Share of the old model's nearest that other scores find too."""
    nearest, found = (torch.as_tensor(s).topk(k).indices for s in (unit(old_QD) @ unit(old_MD).T, scores))
    return float((nearest[:, :, None] == found[:, None, :]).any(2).float().mean())


# -- what it finds


@pytest.mark.parametrize("way", ["procrustes", "ridge", "cca", "kernel_ridge", "rest", "relative"])
def test_each_way_finds_more_of_the_neighbours_than_chance(migration, vectors, way):
    old, new = vectors
    scores = migration.scores(new[1000:], old[:1000], way=way)
    assert overlap(scores, old[1000:], old[:1000]) > 0.2  # chance .01


def test_an_index_that_was_only_turned_is_searched_as_before(vectors):
    old, _ = vectors
    turn_DD = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))[0].numpy()
    turned = old @ turn_DD
    migration = fit(turned[:PAIRS], old[:PAIRS], ways=["procrustes"])
    centred = torch.as_tensor(old[PAIRS:] - old[:PAIRS].mean(0))
    expected_QD = unit(centred) @ torch.as_tensor(turn_DD)
    torch.testing.assert_close(torch.as_tensor(migration.queries(old[PAIRS:])), expected_QD, atol=1e-3, rtol=1e-3)
    back = torch.as_tensor(migration.documents(turned))
    torch.testing.assert_close(back, torch.as_tensor(old), atol=1e-3, rtol=1e-2)
    assert migration.verdict == "finds as much as the old model"


def test_relative_is_taken_unless_another_way_keeps_far_more_neighbours(migration):
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(600, 16, generator=generator)
    linear = fit(old[:PAIRS], old[:PAIRS] @ torch.randn(16, 24, generator=generator), stored=old).facts
    assert linear.kept[linear.method] > linear.kept["relative"] + 0.1
    facts = migration.facts
    assert facts.method == "relative" and max(facts.kept.values()) < facts.kept["relative"] + 0.1


def test_the_translator_that_was_chosen_is_among_the_best_on_documents_it_has_not_seen(migration, vectors):
    old, new = vectors
    ways = ON_UNTOUCHED_INDEX
    found = {way: overlap(migration.scores(new[1000:], old[:1000], way=way), old[1000:], old[:1000]) for way in ways}
    assert found[migration.facts.translator] > max(found.values()) - 0.02


def test_the_forecast_is_what_is_found_then(migration, vectors):
    old, new = vectors
    scores_QM = torch.as_tensor(migration.scores(new[1000:], old[:1000]))
    first_Q = (unit(old[1000:]) @ unit(old[:1000]).T).argmax(1)
    found = (scores_QM.topk(10).indices == first_Q[:, None]).any(1).float().mean()
    assert abs(float(found) - migration.expected_recall) < 0.1


def test_queries_score_as_the_way_on_the_index_as_it_is_or_on_a_second_one(migration, vectors):
    old, new = vectors
    for way in WAYS:
        stored = unit(old).numpy() if way in ON_UNTOUCHED_INDEX else migration.indexed(old, way)
        expected = migration.queries(new[1000:1010], way) @ stored.T
        np.testing.assert_allclose(migration.scores(new[1000:1010], old, way=way), expected, atol=1e-5)


def test_the_mean_gives_half_the_weight_to_translators_in_units_of_their_spread(migration, vectors):
    old, new = vectors
    translators = ["procrustes", "ridge", "cca", "kernel_ridge", "rest"]
    found = {
        way: migration.scores(new[:5], old, way=way) / migration.facts.spreads[way]
        for way in [*translators, "relative"]
    }
    expected = np.mean([found[way] for way in translators], 0) / 2 + found["relative"] / 2
    np.testing.assert_allclose(migration.scores(new[:5], old, way="mean"), expected, rtol=1e-3, atol=1e-3)


def test_hubs_are_the_mean_of_the_ten_highest_scores_and_are_taken_off(migration, vectors):
    old, new = vectors
    hubs = migration.hubs(old[:50], new[400:500])
    expected = np.sort(migration.scores(new[400:500], old[:50]), axis=0)[-10:].mean(0)
    np.testing.assert_allclose(hubs, expected, rtol=1e-4)
    corrected = migration.scores(new[:5], old[:50], hubs)
    np.testing.assert_allclose(corrected, 2 * migration.scores(new[:5], old[:50]) - hubs, rtol=1e-4, atol=1e-5)


def test_tensors_come_back_as_tensors_and_arrays_as_arrays(migration, vectors):
    _, new = vectors
    assert isinstance(migration.queries(new[:2]), np.ndarray)
    assert isinstance(migration.queries(torch.as_tensor(new[:2])), torch.Tensor)


def test_with_queries_the_ways_of_an_untouched_index_are_compared_by_what_these_find(vectors):
    old, new = vectors
    how = {"stored": old[:1000], "ways": ["procrustes", "kernel_ridge", "relative"]}
    migration = fit(old[:PAIRS], new[:PAIRS], queries=new[1000:1100], **how)
    facts = migration.facts
    assert facts.translator == max(how["ways"][:2], key=facts.agreed.__getitem__)
    plain = fit(old[:PAIRS], new[:PAIRS], **how).facts
    assert plain.agreed is None and plain.expected == facts.expected
    assert all(0.3 < facts.agreed[way] <= 1 for way in how["ways"])  # chance .05: three of sixty
    assert fit(old[:PAIRS], new[:PAIRS], queries=np.roll(new[1000:1100], 1, 1), **how).facts.agreed != facts.agreed


def test_only_the_ways_that_are_asked_for_are_chosen(vectors):
    old, new = vectors
    migration = fit(old[:PAIRS], new[:PAIRS], ways=["ridge"])
    assert (migration.facts.method, migration.facts.translator) == ("ridge", "ridge")
    with pytest.raises(ConfigurationError, match="way='relative' was not fitted. Choose one of procrustes, ridge"):
        migration.scores(new[:2], old, way="relative")


def test_the_report_gives_the_forecast_of_the_index_as_it_is_and_of_the_best_way(migration):
    facts = migration.facts
    first, _, *ways, verdict = migration.report.splitlines()
    assert first == "300 pairs from 64 to 48 dimensions: pieces asks an index of words"
    assert ways[0] == f"  {facts.expected[facts.translator]:.2f}  by {facts.translator}, on the index as it is"
    assert facts.method in ways[-1] and verdict.endswith("1000 pairs would do better.")


def test_it_says_what_it_was_fitted_on(migration):
    said = str(migration)
    assert "300 pairs from 64 to 48 dimensions (pieces asks an index of words)" in said
    assert f"by {migration.facts.method}" in said and "1000 pairs would do better" in said


# -- pairs that do not belong together


def test_pairs_that_do_not_belong_together_are_refused(vectors):
    old, new = vectors
    shuffled = np.random.default_rng(0).permutation(PAIRS)
    with pytest.raises(EmbeddingError, match=r"of 300 that were held out \d+% find their other half first, 2%"):
        fit(old[:PAIRS], new[:PAIRS][shuffled], stored=old)
    with pytest.raises(EmbeddingError, match="do not belong together"):
        fit(old[:PAIRS], new[PAIRS : 2 * PAIRS])


def test_old_vectors_of_another_model_than_that_of_the_index_are_refused(vectors):
    old, new = vectors
    turn_DD = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(3)))[0].numpy()
    with pytest.raises(EmbeddingError, match="not from the model that made the index: their nearest stored vector"):
        fit((old @ turn_DD)[:PAIRS], new[:PAIRS], stored=old)


def test_pairs_of_no_use_are_refused(vectors):
    old, new = vectors
    with pytest.raises(EmbeddingError, match="There are 60 pairs, expected 100 or more"):
        fit(old[:60], new[:60])
    with pytest.raises(EmbeddingError, match="There are 200 old vectors and 199 new ones"):
        fit(old[:200], new[:199])
    with pytest.raises(EmbeddingError, match=r"The new vectors have shape \(64,\), expected \(pairs, width\)"):
        fit(old[:200], new[0])
    with pytest.raises(EmbeddingError, match="1 of 200 new vector embeddings have no direction; new vector 7"):
        fit(old[:200], np.where(np.arange(200)[:, None] == 7, 0, new[:200]))
    with pytest.raises(EmbeddingError, match=r"stored has shape \(1200, 64\), expected \(any, 48\)"):
        fit(old[:200], new[:200], stored=new)
    with pytest.raises(EmbeddingError, match="stored holds 20 vectors, expected 100 or more"):
        fit(old[:200], new[:200], stored=old[:20])
    with pytest.raises(ConfigurationError, match="way='rotate' does not exist"):
        fit(old[:200], new[:200], ways=["rotate"])
    with pytest.raises(EmbeddingError, match=r"queries has shape \(9, 64\), expected \(30 or more, 64\): queries by"):
        fit(old[:200], new[:200], queries=new[:9])
    with pytest.raises(ConfigurationError, match="ways is empty"):
        fit(old[:200], new[:200], ways=[])


def test_vectors_of_another_width_are_refused(migration, vectors):
    old, new = vectors
    with pytest.raises(EmbeddingError, match=r"shape \(1200, 48\), expected \(any, 64\). Give vectors of the new"):
        migration.queries(old)
    with pytest.raises(EmbeddingError, match=r"shape \(1200, 64\), expected \(any, 48\). Give vectors of the old"):
        migration.documents(new)
    with pytest.raises(EmbeddingError, match=r"hubs has shape \(3,\), expected \(1200,\)"):
        migration.scores(new[:2], old, np.zeros(3))
    with pytest.raises(ConfigurationError, match="way='rotate' does not exist. Choose one of procrustes"):
        migration.queries(new, "rotate")


# -- files


def test_saved_and_loaded_it_is_the_same(migration, vectors, tmp_path):
    old, new = vectors
    migration.save(tmp_path)
    loaded = Migration.load(tmp_path)
    assert loaded.facts == migration.facts
    np.testing.assert_array_equal(loaded.scores(new[:9], old), migration.scores(new[:9], old))
    np.testing.assert_array_equal(loaded.queries(new[:9]), migration.queries(new[:9]))
    np.testing.assert_array_equal(loaded.documents(old[:9]), migration.documents(old[:9]))


def test_files_that_are_missing_or_of_another_migration_are_refused(migration, vectors, tmp_path):
    old, new = vectors
    with pytest.raises(UploadError, match="has no migration.safetensors. Give the folder that Migration.save wrote"):
        Migration.load(tmp_path)
    migration.save(tmp_path)
    facts = tmp_path / "migration.json"
    content = json.loads(facts.read_text())
    facts.write_text(json.dumps(content | {"pairs": 299}))
    with pytest.raises(
        UploadIntegrityError, match=r"holds pairs of shapes .*\(300, 48\).*, its facts say .*\(299, 48"
    ):
        Migration.load(tmp_path)
    facts.write_text(json.dumps(content | {"format_version": 9}))
    with pytest.raises(UploadError, match="holds no migration of format 2"):
        Migration.load(tmp_path)
    facts.write_text(json.dumps({"format_version": 2}))
    with pytest.raises(UploadError, match="has expected=nothing, expected what Migration.save writes"):
        Migration.load(tmp_path)
    facts.write_text('{"pairs": 3')
    with pytest.raises(UploadError, match="holds no migration that can be read"):
        Migration.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"ridge": {"seed": 7}}}, {"settings": {"evil": {}}},
        {"settings": {"cca": {"rank": 0, "ridge": 1.0}}},
        {"spreads": {"ridge": 0.0}}, {"spreads": {}}, {"expected": {}}, {"expected": {"ridge": "much"}}, {"kept": 7},
        {"method": ["mean"]}, {"translator": "relative"}, {"old_model": 7}, {"stored": None}, {"pairs": 0},
    ],
)  # fmt: skip
def test_facts_that_fit_does_not_write_are_refused_by_name(migration, tmp_path, change):
    migration.save(tmp_path)
    facts = tmp_path / "migration.json"
    content = json.loads(facts.read_text())
    facts.write_text(json.dumps(content | change))
    with pytest.raises(UploadError, match=r"migration\.json of .* has \w+=.*, expected what Migration\.save writes"):
        Migration.load(tmp_path)
    facts.write_text(json.dumps({name: value for name, value in content.items() if name not in change}))
    with (
        pytest.raises(UploadError, match="has .*=nothing, expected|^$") if "old_model" not in change else nullcontext()
    ):
        Migration.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[" * 9_999, "7"])
def test_files_of_a_migration_that_cannot_be_read_are_upload_errors(migration, tmp_path, text):
    migration.save(tmp_path)
    (tmp_path / "migration.json").write_text(text)
    with pytest.raises(UploadError, match="holds no migration"):
        Migration.load(tmp_path)
    migration.save(tmp_path)
    (tmp_path / "migration.safetensors").write_text(text)
    with pytest.raises(UploadIntegrityError, match="holds no migration that can be read"):
        Migration.load(tmp_path)


def test_pairs_that_are_not_finite_and_names_that_act_on_a_terminal_are_no_danger(migration, tmp_path):
    Migration(migration.old_ND * float("nan"), migration.new_NE, migration.facts).save(tmp_path)
    with pytest.raises(EmbeddingError, match="old vector"):
        Migration.load(tmp_path)
    facts = dataclasses.replace(migration.facts, old_model="\x1b[2J\nold", new_model="\x1b]52;c;x\x07")
    shown = Migration(migration.old_ND, migration.new_NE, facts)
    for text in (repr(shown), shown.report):
        assert "\x1b" not in text and "\x07" not in text and "\\u001b" in text


def test_a_folder_of_renewed_vectors_that_holds_something_else_is_refused(tmp_path):
    for ids, vectors in (
        ("[[1]]", torch.ones(1, 2)),
        ("7", torch.ones(1, 2)),
        ('["a"]', torch.full((1, 2), torch.nan)),
    ):
        save_file({"vectors": vectors}, tmp_path / "x.safetensors", {"ids": ids})
        with pytest.raises(UploadError, match="holds no renewed vectors"):
            RenewedVectors(tmp_path)


# -- two stages


class Encoder:
    """Gives the vectors of the new model, and notes for which documents it was asked."""

    def __init__(self, new):
        self.new, self.asked = new, []

    def __call__(self, rows):
        self.asked += rows
        return self.new[rows]


def test_with_all_documents_as_candidates_the_new_model_searches_alone(migration, vectors):
    old, new = vectors
    found = migration.search(new[1000:], old[:1000], Encoder(new), candidates=1000, k=5)
    expected = (unit(new[1000:]) @ unit(new[:1000]).T).topk(5)
    np.testing.assert_allclose(found.scores, expected.values, atol=1e-5)
    np.testing.assert_array_equal(found.ids[:, 0], expected.indices[:, 0])
    assert (found.encoded, found.renewed, found.share_renewed) == (1000, 1000, 1.0)


def test_two_stages_find_more_of_the_new_models_neighbours_than_one(migration, vectors):
    old, new = vectors
    found = migration.search(new[1000:], old[:1000], Encoder(new), candidates=50, k=10)
    own = (unit(new[1000:]) @ unit(new[:1000]).T).topk(10).indices.numpy()
    once = torch.as_tensor(migration.scores(new[1000:], old[:1000])).topk(10).indices.numpy()

    def shared(ids):
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, own, strict=True)])

    assert shared(found.ids) > shared(once) + 0.1


def test_candidates_are_those_of_translated_queries_and_of_the_hub_correction(migration, vectors):
    old, new = vectors
    translator = migration.facts.translator
    hubs = migration.hubs(old[:1000], new[400:800], translator)
    for given, way in ((None, None), (hubs, None), (None, "relative")):
        encode = Encoder(new)
        migration.search(new[1000:1001], old[:1000], encode, candidates=20, hubs=given, way=way)
        scores = migration.scores(new[1000:1001], old[:1000], given, way or translator)
        assert set(encode.asked) == set(torch.as_tensor(scores).topk(20).indices[0].tolist())


def test_what_was_encoded_once_is_kept(migration, vectors, tmp_path):
    old, new = vectors
    encode = Encoder(new)
    first = migration.search(new[1000:1010], old, encode, renewed=tmp_path / "renewed")
    again = migration.search(new[1000:1010], old, encode, renewed=RenewedVectors(tmp_path / "renewed"))
    *asked, again_asked = encode.asked  # one of them again, to see whether the folder is of this model
    assert first.encoded == len(asked) == len(set(asked)) == again.renewed
    assert again.encoded == 0 and again_asked in asked
    np.testing.assert_array_equal(first.ids, again.ids)


def test_a_kill_in_between_loses_nothing_that_was_whole(vectors, tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys, torch
        from pathlib import Path
        from hf_relreps.migration import RenewedVectors, search
        renewed = RenewedVectors(sys.argv[1])
        renewed.add([1, 2], torch.eye(2))
        write = search.save_file
        def half(tensors, file, metadata):
            write(tensors, file, metadata)
            file.write_bytes(file.read_bytes()[:-3])
            os.kill(os.getpid(), signal.SIGKILL)
        search.save_file = half
        renewed.add([3], torch.ones(1, 2))
        """
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL and list(tmp_path.glob("*.unfinished"))
    renewed = RenewedVectors(tmp_path)
    assert len(renewed) == 2 and renewed.missing([1, 2, 3]) == [3]
    renewed.add([3], torch.ones(1, 2))
    assert torch.equal(RenewedVectors(tmp_path).take([3, 2]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


def test_searches_that_make_no_sense_are_refused(migration, vectors, tmp_path):
    old, new = vectors
    with pytest.raises(ConfigurationError, match="k=10 documents are to be found among 5 candidates"):
        migration.search(new[:2], old, Encoder(new), candidates=5)
    with pytest.raises(ConfigurationError, match="k=0 must be a whole number, 1 or more"):
        migration.search(new[:2], old, Encoder(new), k=0)
    with pytest.raises(EmbeddingError, match=r"of \d+ documents have shape \(1, 64\), expected"):
        migration.search(new[:2], old, lambda rows: new[:1])
    RenewedVectors(tmp_path).add([0], torch.ones(1, 3))
    with pytest.raises(EmbeddingError, match=r"(?i)a folder of renewed vectors is for one (index and one )?new model"):
        migration.search(new[:2], old, Encoder(new), renewed=tmp_path)
    assert migration.search(new[:0], old, Encoder(new)).ids.shape == (0, 10)
