"""`RelativeConfig`: what it refuses and how, what survives JSON, and what it tells others."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, BertConfig, CLIPConfig, PreTrainedConfig, ViTConfig

from hf_relreps import RelativeConfig, RelativeModel, RelativeModelForSequenceClassification
from hf_relreps.configuration import DECODERS, FORMAT_VERSION, MODALITIES, POOLINGS, TRANSFORMS
from hf_relreps.errors import ConfigurationError, RelrepsError
from hf_relreps.projection import RelativeProjection
from hf_relreps.similarities import KERNELS, SIMILARITIES


BERT = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def full(**settings):
    """A configuration in which every field differs from its default."""
    return RelativeConfig(
        encoder_config=BertConfig(**BERT),
        base_model_name_or_path="me/bert",
        pooling="cls",
        embedding_size=8,
        max_length=64,
        num_anchors=12,
        anchor_fingerprint="a" * 64,
        anchor_view="fr",
        anchor_digest="b" * 64,
        transform="whiten",
        similarity=["rbf", "cosine"],
        basis_ridge=0.5,
        rbf_gamma=2.5,
        shrinkage=0.7,
        decoder_type="linear",
        decoder_hidden_size=32,
        decoder_dropout=0.25,
        decoder_noise=0.75,
        problem_type="single_label_classification",
        id2label={0: "no", 1: "yes", 2: "perhaps"},
        label2id={"no": 0, "yes": 1, "perhaps": 2},
        **settings,
    )


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling='max' does not exist. Choose one of cls, mean, last, pooler, spatial_mean"),
        ({"pooling": 3}, "pooling=3 does not exist. Choose one of"),
        (
            {"transform": "zscore"},
            "transform='zscore' does not exist. Choose one of none, center, standardize, whiten",
        ),
        ({"modality": "smell"}, "modality='smell' does not exist. Choose one of text, image"),
        ({"tower": "eiffel"}, "tower='eiffel' does not exist. Choose one of encoder, text_model"),
        ({"decoder_type": "tree"}, "decoder_type='tree' does not exist. Choose one of mlp, linear"),
        (
            {"problem_type": "guess"},
            "problem_type='guess' does not exist. Choose one of single_label_classification, m",
        ),
        ({"similarity": "cos"}, "similarity='cos' does not exist. Choose one of cosine, angular, rbf, inner, eucl"),
        ({"similarity": ["rbf", "cos"]}, "similarity='cos' does not exist"),
        ({"similarity": []}, r"similarity=\[\] is no similarity. Give one or a list of cosine, angular"),
        ({"similarity": ""}, "similarity='' is no similarity"),
        ({"similarity": 3}, "similarity=3 is no similarity"),
        ({"similarity": {"rbf": 1}}, r"similarity=\{'rbf': 1\} is no similarity"),
        ({"similarity": [["rbf"]]}, r"similarity=\['rbf'\] does not exist"),
        ({"num_anchors": -1}, "num_anchors=-1 must be a whole number, 0 or more"),
        ({"num_anchors": 2.5}, "num_anchors=2.5 must be a whole number"),
        ({"num_anchors": "300"}, "num_anchors='300' must be a whole number"),
        ({"num_anchors": True}, "num_anchors=True must be a whole number"),
        ({"embedding_size": 0}, "embedding_size=0 must be a whole number, 1 or more"),
        ({"max_length": -1}, "max_length=-1 must be a whole number, 1 or more"),
        ({"decoder_hidden_size": 0}, "decoder_hidden_size=0 must be a whole number, 1 or more"),
        ({"num_labels": 0}, "num_labels=0 must be a whole number, 1 or more"),
        ({"rbf_gamma": 0}, "rbf_gamma=0 must be a number above 0"),
        ({"rbf_gamma": "sharp"}, "rbf_gamma='sharp' must be a number above 0"),
        ({"shrinkage": -0.1}, "shrinkage=-0.1 must be a number at least 0 and at most 1"),
        ({"shrinkage": 1.1}, "shrinkage=1.1 must be a number at least 0 and at most 1"),
        ({"decoder_dropout": 2}, "decoder_dropout=2 must be a number at least 0 and at most 1"),
        ({"decoder_dropout": None}, "decoder_dropout=None must be a number"),
        ({"decoder_noise": -1}, "decoder_noise=-1 must be a number at least 0"),
        ({"decoder_noise": math.nan}, "decoder_noise=nan must be a number at least 0"),
        ({"decoder_noise": math.inf}, "decoder_noise=inf must be a number at least 0"),
        ({"basis_ridge": 0}, "basis_ridge=0 must be a number above 0"),
        ({"basis_ridge": "0.1"}, "basis_ridge='0.1' must be a number above 0"),
        (
            {"similarity": ["rbf", "l1", "linf"]},
            r"basis_ridge=0.1 needs similarities that are kernels \(cosine, angular, rbf, inner\), found l1, linf. "
            "Set basis_ridge=None, or choose a kernel",
        ),
        ({"encoder_config": 3}, r"encoder_config is 3 \(int\), expected the configuration of an AutoModel"),
        ({"encoder_config": {"hidden_size": 8}}, "encoder_config has model_type None, expected the name of an archit"),
        ({"encoder_config": {"model_type": ["bert"]}}, r"encoder_config has model_type \['bert'\], expected the name"),
        ({"id2label": ["no", "yes"]}, "of another type than expected: .* Look at num_labels, id2label"),
        ({"num_labels": "many"}, "of another type than expected: .* Look at num_labels"),
        (
            {"format_version": 2},
            r"has format version 2; the installed hf_relreps reads up to 1\. Update it: pip install",
        ),
        ({"format_version": "1"}, "format_version='1' must be a whole number, 1 or more"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        RelativeConfig(**settings)
    with pytest.raises(ConfigurationError, match=message):  # also from a file
        RelativeConfig.from_dict({"model_type": "relreps"} | settings)


def test_an_encoder_of_an_unknown_architecture_is_a_value_error():
    with pytest.raises(ValueError, match="nonesuch"):
        RelativeConfig(encoder_config={"model_type": "nonesuch"})


def test_a_newer_format_is_told_before_what_it_knows_more():
    with pytest.raises(ConfigurationError, match="has format version 7.*pip install -U hf-relreps"):
        RelativeConfig(format_version=7, similarity="geodesic")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(width=32)
    | st.sampled_from(["rbf", "text", "", "bert"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["model_type", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)
OWN = sorted(set(RelativeConfig().to_dict()) - set(PreTrainedConfig().to_dict()) | {"id2label", "label2id"})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(OWN), JSON, max_size=3))
def test_whatever_a_file_holds_it_is_read_or_refused_by_a_named_error(content):
    try:
        config = RelativeConfig.from_dict({"model_type": "relreps"} | content)
    except (RelrepsError, ValueError):
        return
    config.check()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_is_accepted_and_a_change_of_basis_where_it_is_a_kernel(similarity):
    RelativeConfig(similarity=similarity, basis_ridge=None)
    if similarity in KERNELS:
        RelativeConfig(similarity=similarity, basis_ridge=0.1)
        return
    with pytest.raises(ConfigurationError, match=f"found {similarity}. Set basis_ridge=None"):
        RelativeConfig(similarity=similarity, basis_ridge=0.1)


@pytest.mark.parametrize(
    ("field", "values"),
    [("transform", TRANSFORMS), ("pooling", POOLINGS), ("decoder_type", DECODERS), ("modality", MODALITIES)],
)
def test_every_name_that_messages_offer_is_accepted(field, values):
    for value in values:
        assert getattr(RelativeConfig(**{field: value}), field) == value


def test_whole_numbers_are_numbers():
    config = RelativeConfig(basis_ridge=1, rbf_gamma=2, shrinkage=0, decoder_noise=0, decoder_dropout=1)
    assert config.basis_ridge == 1 and config.shrinkage == 0


# -- files


def test_every_field_survives_a_file(tmp_path):
    config = full()
    config.save_pretrained(tmp_path)
    for loaded in (RelativeConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is RelativeConfig and type(loaded.encoder_config) is BertConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert json.loads((tmp_path / "config.json").read_text())["similarity"] == ["rbf", "cosine"]


def test_a_tuple_of_similarities_is_the_list_that_json_gives_back():
    config = RelativeConfig(similarity=("rbf", "cosine"))
    assert config.similarity == ["rbf", "cosine"]
    assert RelativeConfig.from_dict(config.to_dict()).projection == config.projection


def test_an_encoder_that_holds_several_models_survives_a_file(tmp_path):
    RelativeConfig(encoder_config=CLIPConfig(), tower="text_model").save_pretrained(tmp_path)
    encoder_config = RelativeConfig.from_pretrained(tmp_path).encoder_config
    assert type(encoder_config) is CLIPConfig
    assert encoder_config.text_config.hidden_size == CLIPConfig().text_config.hidden_size


def test_a_file_switches_nothing_on_however_deep_it_asks():
    switch = {"trust_remote_code": True, "auto_map": {"AutoModel": "evil.Model"}}
    encoder = BertConfig(**BERT).to_dict() | switch | {"task_specific_params": {"deep": [switch]}}
    config = RelativeConfig.from_dict(full().to_dict() | switch | {"encoder_config": encoder, "unknown": 1})
    assert "trust_remote_code" not in config.to_json_string() and "evil" not in config.to_json_string()
    assert not hasattr(config, "unknown") and not hasattr(config, "auto_map")
    assert config.encoder_config.hidden_size == 8


# -- what it tells others


def test_the_papers_projection_is_plain_cosines_and_can_be_varied():
    paper = RelativeConfig.paper(num_anchors=5)
    assert paper.projection == {"transform": "none", "similarity": ["cosine"], "basis_ridge": None}
    assert paper.num_anchors == 5
    assert RelativeConfig.paper(transform="center").transform == "center"
    with pytest.raises(ConfigurationError, match="transform='x'"):
        RelativeConfig.paper(transform="x")


def test_the_default_projection_is_the_one_that_measures_best():
    expected = {"transform": "center", "similarity": ["rbf"], "basis_ridge": 0.1, "rbf_gamma": 1.5}
    assert RelativeConfig().projection == expected


def test_the_projection_names_only_what_it_uses():
    assert full().projection == {
        "transform": "whiten",
        "similarity": ["rbf", "cosine"],
        "basis_ridge": 0.5,
        "rbf_gamma": 2.5,
        "shrinkage": 0.7,
    }
    one, other = (RelativeConfig(similarity="cosine", rbf_gamma=gamma) for gamma in (1.0, 2.0))
    assert one.projection == other.projection
    assert RelativeConfig(similarity="cosine").projection == RelativeConfig(similarity=["cosine"]).projection


@pytest.mark.parametrize(("similarity", "expected"), [("cosine", 7), (["cosine"], 7), (["cosine", "l1", "rbf"], 21)])
def test_the_width_of_a_relative_representation(similarity, expected):
    config = RelativeConfig(num_anchors=7, embedding_size=3, similarity=similarity, basis_ridge=None)
    assert config.relative_size == expected
    assert RelativeProjection(config).anchors_AD.shape == (7, 3)


def test_a_decoders_configuration_knows_no_encoder_and_leaves_the_original_alone():
    config = full()
    alone = config.without_encoder()
    for name in ("encoder_config", "base_model_name_or_path", "embedding_size", "max_length"):
        assert getattr(alone, name) is None and getattr(config, name) is not None
    kept = (
        "num_anchors",
        "anchor_fingerprint",
        "projection",
        "decoder_type",
        "id2label",
        "problem_type",
        "decoder_noise",
    )
    assert all(getattr(alone, name) == getattr(config, name) for name in kept)
    alone.id2label[0] = "changed"
    assert config.id2label[0] == "no"


def test_the_text_configuration_is_the_encoders():
    config = full()
    assert config.get_text_config() is config.encoder_config
    assert RelativeConfig(encoder_config=CLIPConfig()).get_text_config().model_type == "clip_text_model"
    assert RelativeConfig(encoder_config=ViTConfig()).get_text_config().model_type == "vit"
    alone = config.without_encoder()
    assert alone.get_text_config() is alone


def test_the_format_is_version_one():
    assert FORMAT_VERSION == RelativeConfig().format_version == 1


# -- settings of from_encoder


@pytest.mark.parametrize("of", [RelativeModel, RelativeModelForSequenceClassification])
def test_a_misspelt_setting_is_refused_with_those_that_exist(of, make_bert, anchors, tokenizer):
    with pytest.raises(ConfigurationError, match="no field similarty; it has .*similarity.*transform"):
        of.from_encoder(make_bert(), anchors.view("en"), tokenizer, similarty="cosine")
    with pytest.raises(ConfigurationError, match="similarity='cosin' does not exist. Choose one of cosine"):
        of.from_encoder(make_bert(), anchors.view("en"), tokenizer, similarity="cosin")
