"""A `SentenceTransformer` with relative representations: equal to the library's own, saved, shared, refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch


pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.modules import Transformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402

from hf_relreps import AnchorSet, RelativeModel  # noqa: E402
from hf_relreps.errors import AnchorError, AnchorIntegrityError, ConfigurationError, StitchingError  # noqa: E402
from hf_relreps.sentence_transformers import RelativeEmbedding, check_same_space, relative  # noqa: E402


@pytest.fixture(scope="module")
def make_sentence_transformer(make_bert: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def make(seed: int = 0, **config: Any) -> SentenceTransformer:
        folder = tmp_path_factory.mktemp("bert")
        make_bert(seed, **config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(str(folder))
        pooling = Pooling(transformer.get_embedding_dimension(), "mean")
        return SentenceTransformer(modules=[transformer, pooling], device="cpu")

    return make


@pytest.fixture(scope="module")
def absolute(make_sentence_transformer: Any) -> SentenceTransformer:
    return make_sentence_transformer(0)


@pytest.fixture
def model(absolute: SentenceTransformer, anchors: AnchorSet) -> SentenceTransformer:
    return relative(absolute, anchors.view("en"))


def test_it_gives_what_a_relative_model_gives(model, make_bert, anchors, tokenizer, texts):
    expected = RelativeModel.from_encoder(make_bert(0), anchors.view("en"), tokenizer, pooling="mean").eval()
    with torch.no_grad():
        r_NR = expected(**tokenizer(texts["en"], return_tensors="pt", padding=True)).relative_embeds
    np.testing.assert_allclose(model.encode(texts["en"]), r_NR, atol=1e-5)
    assert model.get_embedding_dimension() == 20


def test_the_model_it_was_made_from_stays_as_it_was(model, absolute, texts):
    assert absolute.encode(texts["en"][:2]).shape == (2, 32)
    assert model[0] is absolute[0]


def test_settings_are_those_of_the_projection(absolute, anchors, texts):
    paper = relative(absolute, anchors.view("en"), transform="none", similarity="cosine", basis_ridge=None)
    x_ND, x_AD = (torch.tensor(absolute.encode(some)) for some in (texts["en"], anchors.view("en").samples))
    expected = torch.nn.functional.normalize(x_ND) @ torch.nn.functional.normalize(x_AD).T
    np.testing.assert_allclose(paper.encode(texts["en"]), expected, atol=1e-5)
    with pytest.raises(ConfigurationError, match="similarity"):
        relative(absolute, anchors.view("en"), similarity="cosinus")


def test_saved_and_loaded_it_gives_the_same(model, texts, anchors, tmp_path):
    model.save(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts["fr"]), model.encode(texts["fr"]))
    assert loaded[-1].anchors.fingerprint == anchors.fingerprint
    check_same_space(model, loaded)


def test_pushed_and_pulled_it_gives_the_same(model, texts, hub, repo_id):
    model.push_to_hub(repo_id)
    loaded = SentenceTransformer(repo_id, trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts["en"][:5]), model.encode(texts["en"][:5]))


def test_anchors_that_were_exchanged_are_refused_at_load(model, anchors, tmp_path):
    model.save(str(tmp_path))
    folder = next(tmp_path.glob("*_RelativeEmbedding"))
    other = AnchorSet(list(reversed(anchors.ids)), {"en": anchors.view("en").samples})
    other.save_pretrained(folder)
    with pytest.raises(AnchorIntegrityError, match="beside it lie"):
        RelativeEmbedding.load(str(folder))


def test_two_models_of_other_widths_find_each_others_texts(make_sentence_transformer, absolute, anchors, texts):
    """Two untrained models of one vocabulary: the words in common are all that they share."""
    wide = make_sentence_transformer(7, hidden_size=64)
    models = [relative(one, anchors.view("en")) for one in (absolute, wide)]
    check_same_space(*models)
    left, right = (torch.tensor(model.encode(texts["en"])) for model in models)
    others = [i for i in range(60) if i % 3]
    ranks = models[0].similarity(left[others], right).argsort(descending=True)[:, :10]
    found = [others[row] in ranks[row] for row in range(len(others))]
    assert np.mean(found) > 0.5  # by chance 10 of 60


def test_models_that_share_no_index_are_told_apart(model, absolute, anchors, texts):
    fewer = AnchorSet(anchors.ids[:10], {"en": anchors.view("en").samples[:10]})
    with pytest.raises(StitchingError, match="20 anchors .*10 anchors .*one AnchorSet"):
        check_same_space(model, relative(absolute, fewer.view("en")))
    with pytest.raises(StitchingError, match="rbf 1.5, ridge 0.1, the other in .*, cosine, .*the same settings"):
        check_same_space(model, relative(absolute, anchors.view("en"), similarity="cosine"))
    with pytest.raises(StitchingError, match="gives absolute embeddings"):
        check_same_space(model, absolute)


def test_what_cannot_become_relative_is_refused(model, absolute, anchors):
    with pytest.raises(AnchorError, match="relative representations already"):
        relative(model, anchors.view("en"))
    nodes = AnchorSet(anchors.ids, {"node": list(range(20))})
    with pytest.raises(AnchorError, match="reads texts, view 'node' holds nodes"):
        relative(absolute, nodes.view("node"))


def test_what_is_saved_says_no_more_than_it_needs(model, anchors, tmp_path):
    model.save(str(tmp_path))
    (file,) = tmp_path.glob("*_RelativeEmbedding/relreps_config.json")
    config = json.loads(file.read_text())
    space = config["space"]
    assert (space["num_anchors"], config["embedding_size"], space["similarity"]) == (20, 32, "rbf")
    assert space["fingerprint"] == anchors.fingerprint and "id2label" not in config
    short = anchors.fingerprint[:16]
    assert repr(model[-1]) == f"RelativeEmbedding(20 anchors {short}, center, rbf 1.5, ridge 0.1)"


def test_prompts_stay_and_the_anchors_may_have_one(make_sentence_transformer, anchors, texts):
    asked = make_sentence_transformer(0)
    asked.prompts = {"query": "red ", "document": ""}
    made = relative(asked, anchors.view("en"), prompt_name="query")
    assert made.prompts == asked.prompts
    x_AD = torch.tensor(asked.encode([f"red {text}" for text in anchors.view("en").samples]))
    torch.testing.assert_close(made[-1].projection.anchors_AD, x_AD, atol=1e-5, rtol=1e-5)


def test_absence_is_told_with_the_extra(monkeypatch, tmp_path):
    import runpy
    import sys

    import hf_relreps.sentence_transformers as module
    from hf_relreps.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"hf_relreps\[sentence-transformers\]"):
        runpy.run_path(module.__file__)
