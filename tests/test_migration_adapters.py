"""A `SentenceTransformer` whose embeddings lie in another model's space: saved, pushed, refused."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest


pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.modules import Transformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402

import hf_relreps_cli  # noqa: E402
from hf_relreps.errors import ConfigurationError, EmbeddingError, MissingExtraError  # noqa: E402
from hf_relreps.migration import (  # noqa: E402
    Migration,
    RenewedVectors,
    TextMigration,
    adapters,
    fit,
    in_memory,
    migrate,
)
from hf_relreps.migration.adapters import load_adapter, query_adapter  # noqa: E402


@pytest.fixture(scope="module")
def both(make_bert: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> list[SentenceTransformer]:
    """Two untrained models of one vocabulary, the old one 32 wide, the new one 64."""
    models = []
    for seed, width in ((0, 32), (7, 64)):
        folder = str(tmp_path_factory.mktemp("bert"))
        make_bert(seed, hidden_size=width).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
        pooling = Pooling(transformer.get_embedding_dimension(), "mean")
        models.append(SentenceTransformer(modules=[transformer, pooling], device="cpu"))
    return models


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    from hf_relreps.demos.debian import load_debian_descriptions

    return load_debian_descriptions("train")["en"][:260]


@pytest.fixture(scope="module")
def migration(both: list[SentenceTransformer], sentences: list[str]) -> Migration:
    old, new = both
    return fit(old.encode(sentences[:200]), new.encode(sentences[:200]), old_model="old", new_model="new")


def test_it_finds_texts_in_the_index_of_the_old_model(both, migration, sentences):
    old, new = both
    adapter = query_adapter(new, migration)
    nearest = adapter.similarity(adapter.encode(sentences[200:]), old.encode(sentences[200:])).argmax(1)
    assert (nearest.numpy() == np.arange(60)).mean() > 0.2  # by chance 1 of 60
    assert adapter.get_embedding_dimension() == 32 and new.get_embedding_dimension() == 64


def test_a_sentence_transformer_migrates_with_its_own_prompts_and_is_saved_as_an_adapter(both, sentences, tmp_path):
    old, new = both
    prompted = SentenceTransformer(modules=list(new), device="cpu", prompts={"query": "the ", "document": "a game "})
    index = old.encode(sentences)
    switched = migrate(index, sentences, prompted, pairs=200, ways=["procrustes"], renewed=tmp_path / "renewed")
    kept = switched.renewed.ids[0]
    np.testing.assert_allclose(switched.renewed.take([kept])[0], new.encode("a game " + sentences[kept]), atol=1e-5)
    expected = switched.migration.queries(new.encode(["the card"]))
    np.testing.assert_allclose(switched.queries("card"), expected, atol=1e-5)
    switched.save(tmp_path / "adapter")
    np.testing.assert_allclose(load_adapter(tmp_path / "adapter").encode_query(["card"]), expected, atol=1e-5)
    loaded = TextMigration.load(
        tmp_path / "adapter", nearest=in_memory(index, sentences), renewed=tmp_path / "renewed", device="cpu"
    )
    np.testing.assert_array_equal(loaded.search("card").ids, switched.search("card").ids)


def test_the_command_line_saves_the_adapter_of_a_model_in_a_folder(both, sentences, tmp_path, capsys, monkeypatch):
    old, new = both
    new.save(str(tmp_path / "new"))
    np.save(tmp_path / "old.npy", old.encode(sentences))
    (tmp_path / "texts.txt").write_text("\n".join(sentences), "utf-8")
    command = ["migrate", "old.npy", "--new", "new", "--texts", "texts.txt", "--pairs", "200", "--output", "adapter"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hf-relreps", *command, "--renewed", "renewed"])
    with pytest.raises(SystemExit) as stop:
        hf_relreps_cli.main()
    assert not stop.value.code, capsys.readouterr().err
    assert "200 pairs from 64 to 32 dimensions: new asks an index of the old model" in capsys.readouterr().out
    assert load_adapter(tmp_path / "adapter").get_embedding_dimension() == 32
    assert len(RenewedVectors(tmp_path / "renewed")) == 200


def test_its_card_says_what_it_was_fitted_on(both, migration, tmp_path):
    query_adapter(both[1], migration).save(str(tmp_path))
    card = (tmp_path / "README.md").read_text("utf-8")
    assert migration.report in card and "new asks an index of old" in card and "vectors of the 200 pairs" in card
    assert "base_model" not in card  # no repository
    named = Migration(migration.old_ND, migration.new_NE, replace(migration.facts, new_model="me/new"))
    query_adapter(both[1], named).save(str(tmp_path))
    assert 'base_model: "me/new"' in (tmp_path / "README.md").read_text("utf-8")


def test_it_gives_what_the_migration_gives(both, migration, sentences):
    expected = migration.queries(both[1].encode(sentences[:9]))
    np.testing.assert_allclose(query_adapter(both[1], migration).encode(sentences[:9]), expected, atol=1e-5)


def test_saved_and_loaded_it_gives_the_same(both, migration, sentences, tmp_path):
    adapter = query_adapter(both[1], migration)
    adapter.save(str(tmp_path))
    loaded = load_adapter(tmp_path, device="cpu")
    np.testing.assert_array_equal(loaded.encode(sentences[:9]), adapter.encode(sentences[:9]))
    assert loaded[-1].migration.facts == migration.facts
    assert "old" in repr(loaded[-1])


def test_pushed_and_pulled_it_gives_the_same(both, migration, sentences, hub, repo_id):
    adapter = query_adapter(both[1], migration)
    adapter.push_to_hub(repo_id)
    loaded = load_adapter(repo_id, device="cpu")
    np.testing.assert_array_equal(loaded.encode(sentences[:9]), adapter.encode(sentences[:9]))


def test_models_that_the_migration_was_not_fitted_on_are_refused(both, migration):
    with pytest.raises(EmbeddingError, match="The model gives 32 numbers, the migration was fitted on 64"):
        query_adapter(both[0], migration)
    short = SentenceTransformer(modules=list(both[1]), device="cpu", truncate_dim=16)
    with pytest.raises(ConfigurationError, match="truncate_dim=16, which would truncate the relative representations"):
        query_adapter(short, migration)


def test_absence_is_told_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"hf_relreps\[sentence-transformers\]"):
        runpy.run_path(adapters.__file__)
