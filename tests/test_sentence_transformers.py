"""A `SentenceTransformer` with relative representations: equal to the library's own, saved, shared, refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from files import change


pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from safetensors.torch import load_file, save_file  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.modules import Dense, Transformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402
from transformers.utils import is_bitsandbytes_available  # noqa: E402

from hf_relreps import AnchorSet, RelativeModel  # noqa: E402
from hf_relreps.errors import (  # noqa: E402
    AnchorError,
    AnchorIntegrityError,
    ConfigurationError,
    StaleAnchorsError,
    StitchingError,
    UploadError,
    UploadIntegrityError,
)
from hf_relreps.sentence_transformers import (  # noqa: E402
    RelativeEmbedding,
    check_same_space,
    load_relative,
    relative,
)


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


def test_a_model_that_cuts_its_embeddings_is_refused_before_anything_is_encoded(absolute, anchors):
    short = SentenceTransformer(modules=list(absolute), device="cpu", truncate_dim=16)
    with pytest.raises(
        ConfigurationError, match="truncate_dim=16, which would truncate .* Set model.truncate_dim = None"
    ):
        relative(short, anchors.view("en"))


@pytest.mark.parametrize("width", [-1, 5])
def test_an_upload_that_cuts_relative_representations_is_refused(width, model, tmp_path):
    model.save(str(tmp_path))
    change(tmp_path / "config_sentence_transformers.json", truncate_dim=width)
    with pytest.raises(ConfigurationError, match=f"truncate_dim={width}, which would truncate"):
        load_relative(tmp_path, device="cpu")


def test_saved_and_loaded_it_gives_the_same(model, texts, anchors, tmp_path):
    model.save(str(tmp_path))
    loaded = load_relative(tmp_path, device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts["fr"]), model.encode(texts["fr"]))
    assert loaded[-1].anchors.fingerprint == anchors.fingerprint
    check_same_space(model, loaded)


def test_pushed_and_pulled_it_gives_the_same(model, texts, hub, repo_id):
    model.push_to_hub(repo_id)
    loaded = load_relative(repo_id, device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts["en"][:5]), model.encode(texts["en"][:5]))


def test_a_pickle_in_the_place_of_its_weights_is_not_opened(model, tmp_path):
    model.save(str(tmp_path))
    folder = next(tmp_path.glob("*_RelativeEmbedding"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UploadError, match="pickle files are not opened"):
        RelativeEmbedding.load(str(folder))


def test_weights_without_the_anchors_embeddings_are_refused(model, tmp_path):
    model.save(str(tmp_path))
    folder = next(tmp_path.glob("*_RelativeEmbedding"))
    save_file({"else": torch.zeros(20, 32)}, folder / "model.safetensors")
    with pytest.raises(UploadIntegrityError, match="does not contain the anchor embeddings"):
        RelativeEmbedding.load(str(folder))


def test_anchors_that_were_exchanged_are_refused_at_load(model, anchors, tmp_path):
    model.save(str(tmp_path))
    folder = next(tmp_path.glob("*_RelativeEmbedding"))
    other = AnchorSet(list(reversed(anchors.ids)), {"en": anchors.view("en").samples})
    other.save_pretrained(folder)
    with pytest.raises(AnchorIntegrityError, match="but its folder has"):
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
    with pytest.raises(StitchingError, match="returns absolute embeddings"):
        check_same_space(model, absolute)


def test_what_cannot_become_relative_is_refused(model, absolute, anchors):
    with pytest.raises(AnchorError, match="already returns relative representations"):
        relative(model, anchors.view("en"))
    nodes = AnchorSet(anchors.ids, {"node": list(range(20))})
    with pytest.raises(AnchorError, match="reads texts, but view 'node' contains nodes"):
        relative(absolute, nodes.view("node"))
    with pytest.raises(AnchorError, match="No view was named; this anchor set has 'en', 'fr'"):
        relative(absolute, anchors)
    with pytest.raises(AnchorError, match="The anchors are a str, expected an AnchorSet or a view"):
        relative(absolute, "en")
    one_view = AnchorSet(anchors.ids, {"en": anchors.view("en").samples})
    assert relative(absolute, one_view)[-1].config.anchor_view == "en"


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
    np.testing.assert_allclose(made.encode(texts["en"][:4]), made.encode(texts["en"][:4], prompt="red "), atol=1e-6)
    assert asked.default_prompt_name is None


def test_absence_is_told_with_the_extra(monkeypatch, tmp_path):
    import runpy
    import sys

    import hf_relreps.sentence_transformers as module
    from hf_relreps.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"hf_relreps\[sentence-transformers\]"):
        runpy.run_path(module.__file__)


# -- what a saved model may ask for


@pytest.fixture
def saved(model, tmp_path):
    model.save(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_anchor_embeddings_that_are_not_the_models_own_are_refused(saved, anchors, absolute):
    file = saved / "2_RelativeEmbedding" / "model.safetensors"
    stored = load_file(file)
    save_file({name: torch.randn_like(tensor) for name, tensor in stored.items()}, file)
    with pytest.raises(StaleAnchorsError, match=r"do not match this model: .* 8 of 8 differ"):
        load_relative(saved)
    changed = relative(absolute, anchors.view("en"))
    changed[-1].projection.set_anchors(torch.randn(20, 32))
    with pytest.raises(StaleAnchorsError, match="do not match this model"):
        check_same_space(relative(absolute, anchors.view("en")), changed)


@pytest.mark.parametrize(
    ("file", "fields", "reason"),
    [
        (
            "config.json",
            {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "/evil"}},
            "model_args=",
        ),
        ("config.json", {"intermediate_size": 99_000_000}, "its weight files contain"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "vocab_file"),
        ("processor_config.json", {"processor_class": "BarkProcessor", "x": {"path": "/evil"}}, "path='/evil'"),
        ("adapter_config.json", {"base_model_name_or_path": "/evil"}, "makes transformers load another model"),
        ("sentence_bert_config.json", {"model_args": {"use_safetensors": False}}, "use_safetensors=False"),
        ("sentence_bert_config.json", {"model_kwargs": {"gguf_file": "/evil"}}, "gguf_file='/evil'"),
        ("sentence_bert_config.json", {"tokenizer_args": {"vocab_file": "/etc/passwd"}}, "vocab_file"),
        ("sentence_bert_config.json", {"backend": "onnx"}, "backend='onnx'"),
        ("sentence_bert_config.json", {"modality_config": {"text": {"method": "push_to_hub"}}}, "modality_config="),
        ("sentence_bert_config.json", {"module_output_name": "evil"}, "module_output_name='evil'"),
        ("sentence_bert_config.json", {"modality_config": 2}, "modality_config=2"),
        ("sentence_bert_config.json", {"module_output_name": ["evil"]}, "module_output_name="),
    ],
)
def test_no_file_of_a_saved_model_names_another(saved, file, fields, reason):
    place = saved / file
    place.write_text(json.dumps((json.loads(place.read_text()) if place.is_file() else {}) | fields))
    for load in (load_relative, lambda name: relative(str(name), AnchorSet(["a"], {"en": ["x"]}).view("en"))):
        with pytest.raises((ConfigurationError, UploadError), match=f"{reason}|module of type 'hf_relreps"):
            load(saved)
    with pytest.raises((ConfigurationError, UploadError), match=reason):
        load_relative(saved)


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        ("2_Dense", {"out_features": 200_000_000}),
        ("2_Dense", {"in_features": "x"}),
        ("3_RelativeEmbedding", {"embedding_size": 99_999}),
        ("3_RelativeEmbedding", {"space": {"num_anchors": 32_000}}),
    ],
)
def test_no_module_is_made_larger_than_its_file(absolute, anchors, tmp_path, place, fields):
    relative(SentenceTransformer(modules=[*absolute, Dense(32, 12)], device="cpu"), anchors.view("en")).save(
        str(tmp_path)
    )
    assert load_relative(tmp_path).get_embedding_dimension() == 20
    file = next((tmp_path / place).glob("*config.json"))
    content = json.loads(file.read_text())
    content |= {"space": content["space"] | fields["space"]} if "space" in fields else fields
    file.write_text(json.dumps(content))
    with pytest.raises(UploadIntegrityError, match="asks for a weight of .* numbers, but its file contains [0-9]+"):
        load_relative(tmp_path)


@pytest.mark.parametrize("fields", [{"module_input_name": "evil"}, {"module_input_name": {}}])
def test_modules_that_read_what_no_module_gives_are_refused(absolute, anchors, tmp_path, fields):
    relative(SentenceTransformer(modules=[*absolute, Dense(32, 12)], device="cpu"), anchors.view("en")).save(
        str(tmp_path)
    )
    file = tmp_path / "2_Dense" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(UploadError, match="cannot be read as a SentenceTransformer.*pull it again"):
        load_relative(tmp_path)


def test_a_token_for_padding_that_the_model_does_not_know_is_refused(absolute, anchors, tmp_path):
    relative(absolute, anchors.view("en")).save(str(tmp_path))
    file = next(tmp_path.rglob("tokenizer_config.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "unheard of"}))
    with pytest.raises(UploadError, match="cannot be read as a SentenceTransformer: IndexError"):
        load_relative(tmp_path)


@pytest.mark.skipif(is_bitsandbytes_available(), reason="bitsandbytes is installed")
def test_a_model_that_asks_for_a_library_that_is_missing_is_refused(absolute, anchors, tmp_path):
    relative(absolute, anchors.view("en")).save(str(tmp_path))
    file = tmp_path / "config.json"
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    file.write_text(json.dumps(json.loads(file.read_text()) | quantized))
    with pytest.raises(UploadError, match="cannot be loaded here: .*bitsandbytes.* use an upload without"):
        load_relative(tmp_path)


@pytest.mark.parametrize("what", ["nothing", "a number that is none"])
def test_weights_of_a_module_that_are_damaged_are_refused(absolute, anchors, tmp_path, what):
    relative(SentenceTransformer(modules=[*absolute, Dense(32, 12)], device="cpu"), anchors.view("en")).save(
        str(tmp_path)
    )
    file = tmp_path / "2_Dense" / "model.safetensors"
    weights = load_file(file)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, file)
    if what == "nothing":
        file.write_bytes(b"")
    with pytest.raises(UploadIntegrityError, match="cannot be read as safetensors|contains infinite or NaN weights"):
        load_relative(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config_sentence_transformers.json", [1]),
        ("config_sentence_transformers.json", {"prompts": 7}),
        ("1_Pooling/config.json", {"evil": 7}),
        (
            "modules.json",
            [{"idx": 0, "name": 7, "path": "", "type": "sentence_transformers.base.modules.Transformer"}],
        ),
    ],
)
def test_settings_of_another_type_are_an_error_that_says_which_model(saved, file, content):
    (saved / file).write_text(json.dumps(content))
    with pytest.raises(UploadError, match="cannot be read"):
        load_relative(saved)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("evil_module.Evil", "1_Pooling"),
        ("sentence_transformers.sentence_transformer.modules.WordEmbeddings", "1_Pooling"),
        ("sentence_transformers.sentence_transformer.modules.Pooling", "../elsewhere"),
        ("sentence_transformers.sentence_transformer.modules.Pooling", "/etc"),
    ],
)
def test_modules_that_are_not_known_or_lie_elsewhere_are_refused(saved, kind, path):
    modules = json.loads((saved / "modules.json").read_text())
    modules[1] |= {"type": kind, "path": path}
    (saved / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UploadError, match="has a module of type"):
        load_relative(saved)
