"""`RelativeConfig` and its two parts: what they refuse and how, what survives JSON, and what they tell others."""

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, BertConfig, CLIPConfig, ViTConfig

from hf_relreps import (
    RelativeConfig,
    RelativeDecoderConfig,
    RelativeEncoderConfig,
    RelativeModel,
    RelativeModelForSequenceClassification,
    RelativeSpace,
)
from hf_relreps.configuration import (
    DECODER_SETTINGS,
    DECODERS,
    ENCODER_SETTINGS,
    FORMAT_VERSION,
    MODALITIES,
    POOLINGS,
    SHARED_SETTINGS,
    changed,
)
from hf_relreps.errors import ConfigurationError, RelrepsError, UploadError
from hf_relreps.projection import RelativeProjection
from hf_relreps.similarities import KERNELS, SIMILARITIES
from hf_relreps.space import SPACE_FIELDS, TRANSFORMS


BERT = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def full(**settings):
    """A configuration in which many fields of each part differ from their defaults."""
    return RelativeConfig(
        encoder_config=BertConfig(**BERT),
        base_model_name_or_path="me/bert",
        pooling="cls",
        embedding_size=8,
        max_length=64,
        num_anchors=12,
        fingerprint="a" * 64,
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


def file_with(settings):
    """The content of a ``config.json`` that holds these settings where they belong."""
    content = {"model_type": "relreps", "format_version": FORMAT_VERSION}
    for name, known in (("encoder", ENCODER_SETTINGS), ("decoder", DECODER_SETTINGS | SHARED_SETTINGS)):
        own = {key: value for key, value in settings.items() if key in known and key not in SPACE_FIELDS}
        space = {key: value for key, value in settings.items() if key in SPACE_FIELDS}
        content[name] = {"model_type": f"relreps_{name}", "format_version": FORMAT_VERSION, "space": space} | own
    return content | {key: value for key, value in settings.items() if key in ("format_version", "stitched_from")}


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
        ({"modality": "smell"}, "modality='smell' does not exist. Choose one of text, pair, word, image"),
        ({"tower": "eiffel"}, "tower='eiffel' does not exist. Choose one of encoder, text_model"),
        ({"decoder_type": "tree"}, "decoder_type='tree' does not exist. Choose one of mlp, linear"),
        (
            {"problem_type": "guess"},
            "problem_type='guess' does not exist. Choose one of single_label_classification, m",
        ),
        ({"similarity": "cos"}, "similarity='cos' does not exist. Choose one of cosine, angular, rbf, inner, eucl"),
        ({"similarity": ["rbf", "cos"]}, "similarity='cos' does not exist"),
        ({"similarity": []}, r"similarity=\[\] is not a similarity. Give one or a list of cosine, angular"),
        ({"similarity": ""}, "similarity='' is not a similarity"),
        ({"similarity": 3}, "similarity=3 is not a similarity"),
        ({"similarity": {"rbf": 1}}, r"similarity=\{'rbf': 1\} is not a similarity"),
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
        ({"id2label": ["no", "yes"]}, "has the wrong type: .* Check num_labels, id2label"),
        ({"num_labels": "many"}, "has the wrong type: .* Check num_labels"),
        ({"format_version": "2"}, "format_version='2' must be a whole number, 1 or more"),
        ({"fingerprint": 3}, "fingerprint=3 must be a string, or None"),
        ({"stitched_from": "me/english"}, "stitched_from='me/english' must be a list of strings, or None"),
        ({"decoder_type": "image", "image_size": 0}, "image_size=0 must be a whole number, 1 or more"),
        (
            {"decoder_type": "image", "decoder_widths": []},
            r"decoder_widths=\[\] must be a list of positive numbers",
        ),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        RelativeConfig(**settings)
    with pytest.raises(ConfigurationError, match=message):  # also from a file
        RelativeConfig.from_dict(file_with(settings))


@pytest.mark.parametrize("settings", [{"encoder": 3}, {"decoder": ["mlp"]}, {"encoder": RelativeDecoderConfig()}])
def test_what_is_no_configuration_of_a_part_is_refused(settings):
    with pytest.raises(ConfigurationError, match=r"(?s)Found .*, expected a Relative(En|De)coderConfig or its fields"):
        RelativeConfig(**settings)


def test_a_space_is_given_as_one_or_by_its_fields():
    space = RelativeSpace(num_anchors=5, similarity=("cosine",))
    for given_space in (space, space.to_dict()):
        config = RelativeConfig(space=given_space)
        assert config.space == config.encoder.space == config.decoder.space == space
    assert RelativeConfig(space=space, transform="none").space == space.replace(transform="none")
    with pytest.raises(ConfigurationError, match="space is 3, expected a dict of its fields"):
        RelativeConfig(space=3)


def test_an_encoder_of_an_unknown_architecture_is_a_value_error():
    with pytest.raises(ValueError, match="nonesuch"):
        RelativeConfig(encoder_config={"model_type": "nonesuch"})


def test_a_newer_format_is_told_before_what_it_knows_more():
    message = "has format version 7; the installed hf_relreps reads version 2. Update it: pip install -U hf_relreps"
    with pytest.raises(UploadError, match=message):
        RelativeConfig.from_dict(file_with({"format_version": 7, "similarity": "geodesic"}))
    with pytest.raises(UploadError, match=message):
        RelativeConfig(format_version=7)


@pytest.mark.parametrize("config_class", [RelativeConfig, RelativeEncoderConfig, RelativeDecoderConfig])
@pytest.mark.parametrize("content", [{"format_version": 1}, {}], ids=["of version 1", "without a version"])
def test_the_format_before_the_first_release_is_refused_with_what_to_do(config_class, content):
    message = "has format version 1, from before the first release .*; this version reads 2. Create the upload again"
    with pytest.raises(UploadError, match=message):
        config_class.from_dict({"model_type": config_class.model_type, "similarity": "rbf"} | content)


def test_a_part_of_an_older_format_is_refused_inside_a_whole():
    content = full().to_dict()
    content["encoder"]["format_version"] = 1
    with pytest.raises(UploadError, match="has format version 1"):
        RelativeConfig.from_dict(content)


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
SETTINGS = st.dictionaries(st.sampled_from(sorted(ENCODER_SETTINGS | DECODER_SETTINGS)), JSON, max_size=3)
OF_WHOLES = st.dictionaries(
    st.sampled_from(["encoder", "decoder", "stitched_from", "format_version"]), JSON, max_size=1
)


@settings(max_examples=200, deadline=None)
@given(SETTINGS, OF_WHOLES)
def test_whatever_a_file_holds_it_is_read_or_refused_by_a_named_error(content, of_whole):
    try:
        config = RelativeConfig.from_dict(file_with(content) | of_whole)
    except (RelrepsError, ValueError):
        return
    config.check()
    assert RelativeConfig.from_dict(config.to_dict()).space == config.space


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
        config = RelativeConfig(**{field: value})
        places = [part for part in (config.space, config.encoder, config.decoder) if hasattr(part, field)]
        assert places and all(getattr(part, field) == value for part in places)


def test_whole_numbers_are_numbers():
    settings = {"transform": "whiten", "basis_ridge": 1, "rbf_gamma": 2, "shrinkage": 0}
    config = RelativeConfig(decoder_noise=0, decoder_dropout=1, **settings)
    assert config.space.basis_ridge == 1 and config.space.shrinkage == 0 and config.space.rbf_gamma == 2


# -- files


def test_every_field_survives_a_file(tmp_path):
    config = full(stitched_from=["me/a", "me/b"])
    config.save_pretrained(tmp_path)
    for loaded in (RelativeConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is RelativeConfig and type(loaded.encoder.encoder_config) is BertConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert loaded.space == loaded.encoder.space == loaded.decoder.space == config.space
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["encoder"]["space"] == content["decoder"]["space"]
    assert content["encoder"]["space"]["similarity"] == ["rbf", "cosine"]


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_part_survives_a_file_of_its_own(name, tmp_path):
    part = getattr(full(), name)
    part.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(part)
    assert loaded.to_dict() | {"_name_or_path": ""} == part.to_dict() | {"_name_or_path": ""}
    assert loaded.space == part.space


def test_a_file_holds_the_two_parts_and_nothing_of_theirs_beside_them(tmp_path):
    full().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert set(content) == {"model_type", "format_version", "encoder", "decoder", "transformers_version"}
    kinds = [of["model_type"] for of in (content, content["encoder"], content["decoder"])]
    assert kinds == ["relreps", "relreps_encoder", "relreps_decoder"]
    assert "id2label" not in content["encoder"] and content["decoder"]["id2label"]["0"] == "no"
    assert not {"pooling", "encoder_config", "max_length"} & set(content["decoder"])


def test_what_is_none_is_not_written(tmp_path):
    # Of a space None says something: no change of basis.
    RelativeConfig.paper(num_anchors=5).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert None not in content.values()
    for name in ("encoder", "decoder"):
        assert None not in content[name].values()
        assert content[name]["space"]["basis_ridge"] is None
    assert RelativeConfig.from_pretrained(tmp_path).space.basis_ridge is None


def test_only_a_decoder_that_draws_has_the_sizes_of_images():
    drawing = {"decoder_widths", "image_size", "num_channels"}
    assert not drawing & set(RelativeConfig().to_dict()["decoder"])
    content = RelativeConfig(decoder_type="image", image_size=32).to_dict()["decoder"]
    assert drawing <= set(content) and content["image_size"] == 32 and content["num_channels"] == 3


def test_one_similarity_is_a_name_in_a_file_and_several_are_a_list():
    config = RelativeConfig(similarity=("rbf", "cosine"))
    assert config.space.similarity == ("rbf", "cosine")
    assert config.to_dict()["encoder"]["space"]["similarity"] == ["rbf", "cosine"]
    assert RelativeConfig.from_dict(config.to_dict()).space == config.space
    assert RelativeConfig().to_dict()["encoder"]["space"]["similarity"] == "rbf"


def test_an_encoder_that_holds_several_models_survives_a_file(tmp_path):
    RelativeConfig(encoder_config=CLIPConfig(), tower="text_model").save_pretrained(tmp_path)
    encoder_config = RelativeConfig.from_pretrained(tmp_path).encoder.encoder_config
    assert type(encoder_config) is CLIPConfig
    assert encoder_config.text_config.hidden_size == CLIPConfig().text_config.hidden_size


def test_a_file_switches_nothing_on_however_deep_it_asks():
    switch = {"trust_remote_code": True, "auto_map": {"AutoModel": "evil.Model"}}
    encoder = BertConfig(**BERT).to_dict() | switch | {"task_specific_params": {"deep": [switch]}}
    content = full().to_dict()
    content["encoder"] |= switch | {"encoder_config": encoder, "unknown": 1}
    content["decoder"] |= switch | {"unknown": 1}
    config = RelativeConfig.from_dict(content | switch | {"unknown": 1})
    assert "trust_remote_code" not in config.to_json_string() and "evil" not in config.to_json_string()
    for part in (config, config.encoder, config.decoder):
        assert not hasattr(part, "unknown") and not hasattr(part, "auto_map")
    assert config.encoder.encoder_config.hidden_size == 8


# -- what it tells others


def test_the_papers_projection_is_plain_cosines_and_can_be_varied():
    space = RelativeConfig.paper(num_anchors=5).space
    assert (space.transform, space.similarity, space.basis_ridge) == ("none", ("cosine",), None)
    assert space.num_anchors == 5
    assert RelativeConfig.paper(transform="center").space.transform == "center"
    with pytest.raises(ConfigurationError, match="transform='x'"):
        RelativeConfig.paper(transform="x")


def test_the_default_projection_is_the_one_that_measures_best():
    expected = {"transform": "center", "similarity": ("rbf",), "basis_ridge": 0.1, "rbf_gamma": 1.5}
    assert RelativeConfig().space.projection == expected | {"shrinkage": None}


def test_the_projection_names_only_what_it_uses():
    assert full().space.projection == {
        "transform": "whiten",
        "similarity": ("rbf", "cosine"),
        "basis_ridge": 0.5,
        "rbf_gamma": 2.5,
        "shrinkage": 0.7,
    }
    one, other = (RelativeConfig(similarity="cosine", rbf_gamma=gamma, shrinkage=gamma / 4) for gamma in (1.0, 2.0))
    assert one.space == other.space and one.space.rbf_gamma is one.space.shrinkage is None
    assert RelativeConfig(similarity="cosine").space == RelativeConfig(similarity=["cosine"]).space


@pytest.mark.parametrize(("similarity", "expected"), [("cosine", 7), (["cosine"], 7), (["cosine", "l1", "rbf"], 21)])
def test_the_width_of_a_relative_representation(similarity, expected):
    config = RelativeConfig(num_anchors=7, embedding_size=3, similarity=similarity, basis_ridge=None)
    assert config.space.size == expected
    assert RelativeProjection(config.encoder).anchors_AD.shape == (7, 3)


def test_plain_settings_reach_the_part_that_they_concern_and_the_space_both():
    config = full()
    assert config.encoder.pooling == "cls" and config.encoder.max_length == 64 and config.encoder.embedding_size == 8
    assert config.decoder.decoder_type == "linear" and config.decoder.decoder_noise == 0.75
    assert config.encoder.space == config.decoder.space == config.space
    assert config.encoder.anchor_view == config.decoder.anchor_view == config.anchor_view == "fr"
    assert RelativeConfig(modality="image").decoder.modality == RelativeConfig(modality="image").modality == "image"


def test_settings_beside_a_part_change_a_copy_of_it():
    part = full().encoder
    config = RelativeConfig(encoder=part, pooling="mean")
    assert config.encoder.pooling == "mean" and config.encoder.max_length == 64
    assert part.pooling == "cls"
    assert RelativeConfig(encoder=part).encoder is part  # nothing to change


def test_a_decoders_configuration_knows_no_encoder_and_an_encoders_no_classes():
    config = full()
    for name in ("encoder_config", "base_model_name_or_path", "embedding_size", "max_length"):
        assert not hasattr(config.decoder, name) and getattr(config.encoder, name) is not None
        assert name not in config.decoder.to_dict()
    for name in ("decoder_type", "decoder_noise", "head_config"):
        assert not hasattr(config.encoder, name)
    assert not {"id2label", "label2id", "problem_type"} & set(json.loads(config.encoder.to_json_string()))


def test_a_decoders_configuration_that_is_made_from_another_leaves_that_alone():
    config = full()
    alone = changed(config.decoder, {"decoder_noise": 0.1})
    kept = ("space", "decoder_type", "id2label", "problem_type", "anchor_view")
    assert all(getattr(alone, name) == getattr(config.decoder, name) for name in kept)
    alone.id2label[0] = "changed"
    assert config.id2label[0] == "no" and config.decoder.decoder_noise == 0.75


def test_the_classes_of_the_whole_are_those_of_its_decoder():
    config = full()
    assert config.id2label is config.decoder.id2label and config.label2id is config.decoder.label2id
    assert config.num_labels == 3 and config.problem_type == "single_label_classification"
    config.id2label, config.problem_type = {0: "left", 1: "right"}, "regression"
    assert config.decoder.id2label == {0: "left", 1: "right"} and config.num_labels == 2
    assert config.decoder.problem_type == "regression"
    config.num_labels = 4
    assert config.decoder.num_labels == len(config.decoder.id2label) == 4
    assert copy.deepcopy(config).num_labels == 4
    assert RelativeConfig(num_labels=5).decoder.num_labels == 5


def test_new_classes_take_the_place_of_all_that_was_said_of_the_old():
    config = changed(full().decoder, {"num_labels": 2})
    assert config.num_labels == 2 and config.problem_type is None
    assert set(config.label2id) == set(config.id2label.values())
    assert "perhaps" not in config.label2id


def test_the_text_configuration_is_the_encoders():
    config = full()
    assert config.get_text_config() is config.encoder.encoder_config
    assert RelativeConfig(encoder_config=CLIPConfig()).get_text_config().model_type == "clip_text_model"
    assert RelativeConfig(encoder_config=ViTConfig()).get_text_config().model_type == "vit"
    assert config.decoder.get_text_config() is config.decoder


def test_the_format_is_version_two():
    assert FORMAT_VERSION == RelativeConfig().format_version == 2
    assert RelativeEncoderConfig().format_version == RelativeDecoderConfig().format_version == 2


# -- settings of from_encoder


@pytest.mark.parametrize("of", [RelativeModel, RelativeModelForSequenceClassification])
def test_a_misspelt_setting_is_refused_with_those_that_exist(of, make_bert, anchors, tokenizer):
    message = "has no setting 'similarty'. Did you mean 'similarity'.$"
    with pytest.raises(ConfigurationError, match=message):
        of.from_encoder(make_bert(), anchors.view("en"), tokenizer, similarty="cosine")
    with pytest.raises(ConfigurationError, match="similarity='cosin' does not exist. Choose one of cosine"):
        of.from_encoder(make_bert(), anchors.view("en"), tokenizer, similarity="cosin")


@pytest.mark.parametrize("of", [RelativeConfig, RelativeConfig.paper, RelativeEncoderConfig, RelativeDecoderConfig])
def test_a_misspelt_field_of_a_configuration_is_refused_with_the_nearest(of):
    name = "RelativeConfig" if of == RelativeConfig.paper else of.__name__
    with pytest.raises(ConfigurationError, match=f"{name} has no setting 'similarty'. Did you mean 'similarity'.$"):
        of(similarty="cosine")
    with pytest.raises(ConfigurationError, match=f"{name} has no setting 'num_label'. Did you mean 'num_labels'.$"):
        of(num_label=3)


@pytest.mark.parametrize("config", [RelativeConfig(num_labels=3), RelativeEncoderConfig(), RelativeDecoderConfig()])
def test_what_a_file_holds_beside_our_fields_is_passed_over_and_what_transformers_knows_is_taken(config, tmp_path):
    read = type(config).from_dict(config.to_dict() | {"from_a_later_version": 1, "similarty": "cosine"})
    assert read.to_dict() == config.to_dict() and not hasattr(read, "from_a_later_version")
    assert type(config)(**config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    told = {"output_attentions": True, "dtype": "float32", "attn_implementation": "eager"}
    loaded = type(config).from_pretrained(tmp_path, **told)
    assert loaded.output_attentions and copy.deepcopy(loaded).to_dict() == loaded.to_dict()


def test_a_setting_unlike_any_other_is_refused_without_a_guess(make_bert, anchors, tokenizer):
    with pytest.raises(ConfigurationError, match="has no setting 'zzz'. It has .*similarity"):
        RelativeModel.from_encoder(make_bert(), anchors.view("en"), tokenizer, zzz=1)


def test_an_encoder_alone_takes_no_settings_of_a_decoder(make_bert, anchors, tokenizer):
    with pytest.raises(ConfigurationError, match="An encoder has no setting 'num_labels'"):
        RelativeModel.from_encoder(make_bert(), anchors.view("en"), tokenizer, num_labels=3)
