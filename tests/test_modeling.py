"""`RelativeModel` and the whole models: wrapping, outputs, encoding, and what may be done to them afterwards."""

import copy
import pickle

import pytest
import torch
from transformers import (
    AutoModel,
    BertForSequenceClassification,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    MixtralConfig,
    MixtralModel,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_relreps import (
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
)
from hf_relreps.errors import AnchorError, ConfigurationError, EmbeddingError, SampleError, StitchingError, UploadError


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def without_pooler(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}


@pytest.fixture
def bert_folder(make_bert, tokenizer, tmp_path):
    make_bert(3).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture(scope="module")
def image_anchors(images):
    return AnchorSet([f"picture-{i}" for i in range(6)], {"photo": images[:6]})


@pytest.fixture(scope="module")
def image_processor():
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def tiny_vit():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))


# -- wrapping


def test_wrapping_a_folder_leaves_the_encoders_weights_bit_for_bit(bert_folder, anchors):
    model = RelativeModelForSequenceClassification.from_encoder(str(bert_folder), anchors.view("en"), num_labels=3)
    original = BertModel.from_pretrained(bert_folder)
    assert same(weights(model.encoder.backbone), without_pooler(weights(original)))


def test_wrapping_a_model_made_in_memory_leaves_its_weights_bit_for_bit(make_bert, anchors, tokenizer):
    bert = make_bert(4)
    with torch.no_grad():  # as training by hand would
        bert.encoder.layer[0].attention.self.query.weight.fill_(0.125)
        bert.encoder.layer[1].output.LayerNorm.weight.fill_(2.0)
    before = weights(bert)
    model = RelativeModelForSequenceClassification.from_encoder(bert, anchors.view("en"), tokenizer, num_labels=3)
    assert same(weights(model.encoder.backbone), without_pooler(before))
    assert same(weights(bert), before)


def test_wrapping_does_not_touch_the_users_model_nor_the_random_generator(make_bert, anchors, tokenizer):
    bert = make_bert(0).train()
    bert.encoder.layer[0].eval()  # a part that its owner froze
    config, modes = bert.config.to_dict(), [module.training for module in bert.modules()]
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer)
    RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer, layer=-2)
    assert torch.equal(torch.rand(3), expected)
    assert bert.config.to_dict() == config
    assert bert.config._attn_implementation == "sdpa"
    assert [module.training for module in bert.modules()] == modes
    assert bert.pooler is not None and all(parameter.requires_grad for parameter in bert.parameters())


def test_the_wrapped_model_attends_as_it_did(make_bert, anchors, tokenizer):
    for implementation in ("sdpa", "eager"):
        bert = make_bert(0)
        bert.set_attn_implementation(implementation)
        for layer in (-1, -2):
            model = RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer, layer=layer)
            assert model.backbone.config._attn_implementation == implementation
            assert model.config._attn_implementation == implementation


def test_a_mixture_of_experts_keeps_how_its_experts_run(anchors, texts, tokenizer, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_local_experts": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    mixtral = MixtralModel(MixtralConfig(**sizes, **experts))
    for implementation in ("grouped_mm", "eager"):
        mixtral.set_experts_implementation(implementation)
        encoder = RelativeModel.from_encoder(mixtral, anchors.view("en"), tokenizer)
        assert encoder.backbone.config._experts_implementation == implementation
        encoder.save_pretrained(tmp_path)
        loaded = RelativeModel.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded.encode(texts["en"]), encoder.encode(texts["en"]), atol=1e-5, rtol=1e-5)


def test_a_local_path_does_not_leak_into_the_configuration(bert_folder, anchors):
    for encoder in (str(bert_folder), BertModel.from_pretrained(bert_folder)):
        model = RelativeModel.from_encoder(encoder, anchors.view("en"))
        assert model.config.base_model_name_or_path is None
        assert str(bert_folder) not in model.config.to_json_string()


def test_the_path_of_a_folder_that_has_gone_does_not_leak_either(bert_folder, anchors, tokenizer, tmp_path):
    bert = BertModel.from_pretrained(bert_folder)
    bert_folder.rename(tmp_path / "elsewhere")
    model = RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer)
    assert str(bert_folder) not in model.config.to_json_string()


def test_an_encoder_from_the_hub_is_named_in_the_configuration(make_bert, tokenizer, anchors, repo_id):
    make_bert(0).push_to_hub(repo_id)
    tokenizer.push_to_hub(repo_id)
    model = RelativeModel.from_encoder(repo_id, anchors.view("en"))
    assert model.config.base_model_name_or_path == repo_id
    assert model.processor.get_vocab() == tokenizer.get_vocab()


def test_a_model_with_a_head_gives_what_is_below_it(make_bert, anchors, tokenizer):
    torch.manual_seed(0)
    headed = BertForSequenceClassification(make_bert(0).config).eval()
    model = RelativeModel.from_encoder(headed, anchors.view("en"), tokenizer)
    inputs = tokenizer(["small cat here"], return_tensors="pt")
    expected = headed.bert(**inputs).last_hidden_state
    assert torch.equal(model.eval()(**inputs).last_hidden_state, expected)


def test_a_relative_model_gets_a_new_decoder_and_keeps_its_anchors(make_bert, anchors, tokenizer):
    encoder = RelativeModel.from_encoder(make_bert(0), anchors.view("fr"), tokenizer, similarity="angular")
    config = encoder.config.to_dict()
    names = {0: "a", 1: "b", 2: "c", 3: "d"}
    model = RelativeModelForSequenceClassification.from_encoder(encoder, id2label=names, decoder_type="linear")
    assert model.decoder.output.out_features == 4 and model.decoder.hidden is None
    assert model.config.id2label == names and model.config.anchor_view == "fr"
    assert model.config.space == encoder.config.space and model.config.space.similarity == ("angular",)
    assert torch.equal(model.encoder.projection.anchors_AD, encoder.projection.anchors_AD)
    assert encoder.config.to_dict() == config
    inputs = tokenizer(["petit chat ici"], return_tensors="pt")
    assert torch.equal(model.eval()(**inputs).relative_embeds, encoder.eval()(**inputs).relative_embeds)


def test_what_the_encoder_decides_cannot_be_set_for_a_new_decoder(make_model):
    with pytest.raises(ConfigurationError, match=r"similarity cannot be set .* it takes .*num_labels.*use_projection"):
        RelativeModelForSequenceClassification.from_encoder(make_model(0).encoder, similarity="cosine")


def test_a_relative_model_refuses_a_view_that_it_does_not_read(make_model, anchors):
    encoder = make_model(0, view="en").encoder
    RelativeModelForSequenceClassification.from_encoder(encoder, anchors.view("en"))
    with pytest.raises(
        AnchorError, match=r"uses view 'en' .* but view 'fr' .* was given.* first call encode_anchors\(view\)"
    ):
        RelativeModelForSequenceClassification.from_encoder(encoder, anchors.view("fr"))


def test_wrapping_twice_is_refused(make_model, anchors, tokenizer, tmp_path):
    model = make_model(0)
    model.save_pretrained(tmp_path)
    for already in (model, model.encoder, str(tmp_path)):
        with pytest.raises(ConfigurationError, match=r"RelativeModel is already relative.*encode_anchors\(view\)"):
            RelativeModel.from_encoder(already, anchors.view("en"), tokenizer)


def test_unknown_settings_are_refused_by_name(make_bert, anchors, tokenizer):
    with pytest.raises(ConfigurationError, match=r"no setting 'similarty'\. Did you mean 'similarity'\?$"):
        RelativeModel.from_encoder(make_bert(0), anchors.view("en"), tokenizer, similarty="cosine")


def test_settings_that_follow_from_encoder_and_anchors_are_refused(make_bert, anchors, tokenizer):
    with pytest.raises(ConfigurationError, match="embedding_size, num_anchors are determined by the encoder"):
        RelativeModel.from_encoder(make_bert(0), anchors.view("en"), tokenizer, num_anchors=5, embedding_size=3)


def test_settings_start_from_a_configuration_whatever_else_it_describes(make_bert, make_model, anchors, tokenizer):
    paper = RelativeConfig.paper(num_labels=5, decoder_type="linear")
    model = RelativeModelForSequenceClassification.from_encoder(
        make_bert(0), anchors.view("en"), tokenizer, config=paper, decoder_type="mlp"
    )
    assert model.config.space.projection == paper.space.projection
    assert model.config.num_labels == 5 and model.config.decoder.decoder_type == "mlp"
    assert model.config.space.num_anchors == 20
    other = make_model(1, view="fr", similarity="cosine").config
    model = RelativeModelForSequenceClassification.from_encoder(
        make_bert(0), anchors.view("en"), tokenizer, config=other, num_labels=2
    )
    assert model.config.space.similarity == ("cosine",)
    assert (model.config.anchor_view, model.config.num_labels) == ("en", 2)


def test_a_model_without_a_name_asks_for_its_processor(make_bert, anchors):
    with pytest.raises(ConfigurationError, match=r"needs its processor: from_encoder\(model, view, tokenizer\)"):
        RelativeModel.from_encoder(make_bert(0), anchors.view("en"))


def test_a_folder_without_a_processor_says_so(make_bert, anchors, tmp_path):
    make_bert(0).save_pretrained(tmp_path)
    with pytest.raises(
        UploadError,
        match=r"has no tokenizer: .* 5 special tokens and no words.*from_encoder\(model, view, tokenizer\)",
    ):
        RelativeModel.from_encoder(str(tmp_path), anchors.view("en"))


def test_a_whole_model_asks_for_a_view(make_bert, tokenizer):
    with pytest.raises(AnchorError, match=r"needs a view of an anchor set: anchors.view\(name\)"):
        RelativeModelForSequenceClassification.from_encoder(make_bert(0), processor=tokenizer)


def test_classes_refuse_views_of_another_modality(
    make_bert, anchors, tokenizer, images, image_anchors, image_processor
):
    with pytest.raises(
        AnchorError, match="ForSequenceClassification reads texts, but the view 'photo' contains images"
    ):
        RelativeModelForSequenceClassification.from_encoder(make_bert(0), image_anchors.view(), tokenizer)
    with pytest.raises(AnchorError, match="ForImageClassification reads images, but the view 'en' contains texts"):
        RelativeModelForImageClassification.from_encoder(tiny_vit(), anchors.view("en"), image_processor)
    encoder = RelativeModel.from_encoder(make_bert(0), anchors.view("en"), tokenizer)
    with pytest.raises(AnchorError, match="reads images, but this encoder reads texts. Use the class of that"):
        RelativeModelForImageClassification.from_encoder(encoder)


def test_a_configuration_without_an_encoder_builds_none():
    with pytest.raises(ConfigurationError, match="encoder_config, but it is None. Build an encoder"):
        RelativeModel(RelativeConfig(num_anchors=4))


def test_an_upload_of_a_class_that_automodel_does_not_build_loads_again(tokenizer, anchors, tmp_path):
    """T5's encoder alone: `AutoModel` gives the pair, of which the encoder is taken."""
    torch.manual_seed(0)
    t5 = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2)
    ).eval()
    encoder = RelativeModel.from_encoder(t5, anchors.view("en"), tokenizer)
    encoder.save_pretrained(tmp_path)
    inputs = tokenizer(["small cat here"], return_tensors="pt")
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).relative_embeds, encoder.eval()(**inputs).relative_embeds)
    assert torch.equal(encoder(**inputs).last_hidden_state, t5(**inputs).last_hidden_state)


def test_texts_are_truncated_where_the_position_embeddings_end(tokenizer, anchors):
    """RoBERTa counts positions from behind the padding's: two fewer than `max_position_embeddings`."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = int(1e30)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    roberta = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=20, **sizes))
    encoder = RelativeModel.from_encoder(roberta, anchors.view("en"), tokenizer)
    assert encoder.config.max_length == 18
    assert torch.isfinite(encoder.encode(["cat " * 50])).all()


# -- images


def test_vit_becomes_relative_and_comes_back_from_its_folder(image_anchors, image_processor, images, tmp_path):
    vit = tiny_vit()
    before = weights(vit)
    model = RelativeModelForImageClassification.from_encoder(
        vit, image_anchors.view("photo"), image_processor, num_labels=2
    ).eval()
    assert same(weights(model.encoder.backbone), without_pooler(before))
    inputs = image_processor(images, return_tensors="pt")
    output = model.encoder(**inputs)
    assert model.config.encoder.pooling == "cls"
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert output.relative_embeds.shape == (8, 6)
    model.save_pretrained(tmp_path)
    loaded = RelativeModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert torch.equal(loaded.encoder.encode(images), model.encoder.encode(images))


@pytest.mark.parametrize(("convolutional", "pooling"), [("resnet", "spatial_mean"), ("convnext", "pooler")])
def test_convolutional_encoders_pool_the_mean_of_their_map(
    convolutional, pooling, image_anchors, image_processor, images, tmp_path
):
    torch.manual_seed(0)
    if convolutional == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        network = ResNetModel(ResNetConfig(**sizes))
    else:
        network = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2))
    encoder = RelativeModel.from_encoder(network, image_anchors.view("photo"), image_processor).eval()
    output = encoder(**image_processor(images, return_tensors="pt"))
    assert encoder.config.pooling == pooling and encoder.config.embedding_size == 16
    assert output.last_hidden_state.ndim == 4
    mean_BD = output.last_hidden_state.mean((2, 3))
    # ConvNeXt normalises the mean, as its own classifier reads it.
    expected_BD = mean_BD if convolutional == "resnet" else network.layernorm(mean_BD)
    torch.testing.assert_close(output.pooler_output, expected_BD)
    encoder.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).encode(images), encoder.encode(images))


# -- what it gives


def test_outputs_are_the_wrapped_models_their_mean_and_the_cosines_to_the_anchors(
    make_bert, anchors, tokenizer, texts
):
    bert = make_bert(0).eval()
    encoder = RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer, config=RelativeConfig.paper()).eval()
    inputs = tokenizer(["cat", "small dog here", "old bread"], return_tensors="pt", padding=True)
    with torch.no_grad():
        output, hidden_BTD = encoder(**inputs), bert(**inputs).last_hidden_state
        anchors_AD = torch.stack(
            [bert(**tokenizer([text], return_tensors="pt")).last_hidden_state.mean(1)[0] for text in texts["en"][::3]]
        )
    assert torch.equal(output.last_hidden_state, hidden_BTD)
    means_BD = torch.stack([hidden_BTD[0, :1].mean(0), hidden_BTD[1].mean(0), hidden_BTD[2, :2].mean(0)])
    torch.testing.assert_close(output.pooler_output, means_BD)
    torch.testing.assert_close(encoder.projection.anchors_AD, anchors_AD)
    cosines_BA = torch.nn.functional.cosine_similarity(means_BD[:, None], anchors_AD[None], dim=-1)
    torch.testing.assert_close(output.relative_embeds, cosines_BA)
    assert output.relative_embeds.shape == (3, 20)


def test_several_similarities_lie_side_by_side(make_bert, anchors, tokenizer):
    settings = {"similarity": ["cosine", "euclidean"], "basis_ridge": None, "transform": "none"}
    encoder = RelativeModel.from_encoder(make_bert(0), anchors.view("en"), tokenizer, **settings).eval()
    output = encoder(**tokenizer(["small cat"], return_tensors="pt"))
    x_BD, anchors_AD = output.pooler_output, encoder.projection.anchors_AD
    assert output.relative_embeds.shape == (1, 40)
    torch.testing.assert_close(
        output.relative_embeds[:, :20], torch.cosine_similarity(x_BD[:, None], anchors_AD, dim=-1)
    )
    torch.testing.assert_close(output.relative_embeds[:, 20:], -(x_BD[:, None] - anchors_AD).norm(dim=-1))


def test_layers_attentions_and_tuples_are_given_where_asked_for(make_model, tokenizer):
    model = make_model(0)
    model.set_attn_implementation("eager")
    inputs = tokenizer(["small cat"], return_tensors="pt")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    logits, relative = model(**inputs, return_dict=False)
    assert torch.equal(logits, output.logits) and torch.equal(relative, output.relative_embeds)
    assert len(model.encoder(**inputs, return_dict=False)) == 3


def test_embeddings_of_tokens_may_stand_in_for_the_tokens(make_model, tokenizer):
    model = make_model(0)
    inputs = tokenizer(["small cat here", "dog"], return_tensors="pt", padding=True)
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    given = model(inputs_embeds=embedded, attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(given.logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("pooling", "padding_side"),
    [("mean", "right"), ("cls", "right"), ("last", "right"), ("pooler", "right"), ("mean", "left"), ("last", "left")],
)
def test_a_sample_alone_gives_what_it_gives_in_a_batch(make_model, tokenizer, pooling, padding_side):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = padding_side
    model = make_model(0, pooling=pooling)
    batch = ["cat", "small dog here", "old red bread soup cake rice there", "bus"]
    together = tokenizer(batch, return_tensors="pt", padding=True)
    if padding_side == "left":  # BERT counts positions from the left, padding included: say where each token stands
        together["position_ids"] = (together["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        whole = model(**together)
        for i, text in enumerate(batch):
            alone = model(**tokenizer([text], return_tensors="pt"))
            torch.testing.assert_close(alone.relative_embeds[0], whole.relative_embeds[i], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone.logits[0], whole.logits[i], atol=1e-4, rtol=1e-4)


# -- encoding samples and anchors


def test_encode_keeps_the_order_and_the_mode_and_draws_no_random_numbers(make_model, tokenizer, texts):
    encoder = make_model(0).encoder.train()
    encoder.backbone.embeddings.eval()
    modes = [module.training for module in encoder.modules()]
    samples = ["cat", "old red bread soup cake rice there", "small dog"]
    state = torch.get_rng_state()
    x_ND = encoder.encode(samples, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in encoder.modules()] == modes
    assert not x_ND.requires_grad and x_ND.dtype == torch.float32
    encoder.eval()
    for i, text in enumerate(samples):
        alone = encoder(**tokenizer([text], return_tensors="pt")).pooler_output[0]
        torch.testing.assert_close(x_ND[i], alone, atol=1e-5, rtol=1e-5)


def test_the_mode_comes_back_after_an_error_too(make_model):
    encoder = make_model(0).encoder.train()
    with pytest.raises(SampleError, match="empty text"):
        encoder.encode(["cat", " "])
    with torch.no_grad():
        encoder.backbone.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(EmbeddingError, match="2 of 2 sample embeddings have no direction"):
        encoder.encode(["cat", "dog"])
    assert all(module.training for module in encoder.modules())


def test_anchors_are_the_encoders_own_encoding_of_the_samples(make_model, anchors):
    encoder = make_model(0, view="fr").encoder
    torch.testing.assert_close(encoder.projection.anchors_AD, encoder.encode(anchors.view("fr").samples))
    assert encoder.anchors is anchors


def test_other_anchors_replace_the_old_ones_in_the_configuration_as_well(make_model, anchors, texts):
    model = make_model(0)
    others = AnchorSet([str(i) for i in range(20)], {"en": texts["en"][1:60:3]})
    model.encoder.encode_anchors(others.view("en"))
    assert (
        model.config.space.fingerprint == others.fingerprint
        and model.config.encoder.anchor_digest == others.view("en").digest
    )
    assert model.config.decoder.space.fingerprint == anchors.fingerprint  # which it was trained on
    assert model.anchors is others
    torch.testing.assert_close(model.encoder.projection.anchors_AD, model.encoder.encode(others.view("en").samples))


def test_anchors_that_cannot_be_used_leave_the_encoder_as_it_was(make_model, anchors, texts, image_anchors):
    model = make_model(0)
    config, before = model.config.to_dict(), model.encoder.projection.anchors_AD.clone()
    few = AnchorSet(["a", "b"], {"en": texts["en"][:2]})
    with pytest.raises(AnchorError, match="has 2 anchors, but the configuration says 20"):
        model.encoder.encode_anchors(few.view("en"))
    with pytest.raises(AnchorError, match=r"This encoder reads texts, but the view 'photo' contains images"):
        model.encoder.encode_anchors(image_anchors.view("photo"))
    others = AnchorSet([str(i) for i in range(20)], {"en": texts["en"][1:60:3]})
    sound = model.encoder.backbone.embeddings.LayerNorm.weight.detach().clone()
    with torch.no_grad():
        model.encoder.backbone.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(EmbeddingError):
        model.encoder.encode_anchors(others.view("en"))
    with torch.no_grad():
        model.encoder.backbone.embeddings.LayerNorm.weight.copy_(sound)
    assert model.config.to_dict() == config and model.anchors is anchors
    assert torch.equal(model.encoder.projection.anchors_AD, before)


def test_an_encoder_may_use_another_projection_without_encoding_again(make_model, make_bert, anchors, tokenizer):
    model = make_model(0)
    paper = RelativeModel.from_encoder(
        make_bert(0), anchors.view("en"), tokenizer, config=RelativeConfig.paper()
    ).eval()
    inputs = tokenizer(["small cat"], return_tensors="pt")
    encoder = model.encoder
    assert not torch.allclose(encoder(**inputs).relative_embeds, paper(**inputs).relative_embeds)
    encoder.use_projection(RelativeConfig.paper())
    assert torch.equal(encoder(**inputs).relative_embeds, paper(**inputs).relative_embeds)
    assert encoder.config.space == model.config.space == paper.config.space


def test_a_whole_model_refuses_to_predict_once_its_parts_no_longer_share_a_space(
    make_model, anchors, texts, tokenizer
):
    inputs = tokenizer(["small cat"], return_tensors="pt")
    model = make_model(0)
    model.encoder.use_projection(RelativeConfig.paper())
    with pytest.raises(
        StitchingError, match=r"projection differs .*similarity 'cosine' instead of 'rbf'.*use_projection"
    ):
        model(**inputs)
    model.encoder.use_projection(model.decoder.config)
    assert torch.equal(model(**inputs).logits, make_model(0)(**inputs).logits)
    others = AnchorSet([str(i) for i in range(20)], {"en": texts["en"][1:60:3]})
    model.encoder.encode_anchors(others.view("en"))
    with pytest.raises(StitchingError, match=f"{others.fingerprint[:16]}, but the decoder was trained on .*same"):
        model(**inputs)


# -- what may be done to them


def test_copies_and_pickles_are_independent_and_give_the_same(make_model, tokenizer):
    model = make_model(0)
    inputs = tokenizer(["small cat", "dog"], return_tensors="pt", padding=True)
    expected = model(**inputs).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**inputs).logits, expected)
        other.encoder.projection.set_anchors(torch.randn_like(other.encoder.projection.anchors_AD))
        assert not torch.allclose(other(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)
        assert other.anchors.fingerprint == model.anchors.fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_anchors_in_float32(make_model, tokenizer, dtype, tmp_path):
    model = make_model(0)
    inputs = tokenizer(["small cat", "dog"], return_tensors="pt", padding=True)
    expected = model(**inputs)
    model.save_pretrained(tmp_path)
    loaded = RelativeModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    for half in (loaded, copy.deepcopy(model).to(dtype)):
        assert half.encoder.projection.anchors_AD.dtype == torch.float32
        assert half.encoder.backbone.dtype == half.decoder.dtype == dtype
        assert torch.equal(half.encoder.projection.anchors_AD, model.encoder.projection.anchors_AD)
        output = half(**inputs)
        assert output.relative_embeds.dtype == torch.float32 and output.logits.dtype == dtype
        torch.testing.assert_close(output.relative_embeds, expected.relative_embeds, atol=0.05, rtol=0.05)
        torch.testing.assert_close(output.logits.float(), expected.logits, atol=0.05, rtol=0.05)


def test_double_precision_computes_in_double(make_model, tokenizer):
    model = make_model(0)
    inputs = tokenizer(["small cat", "dog"], return_tensors="pt", padding=True)
    expected = model(**inputs).logits
    double = model.double()(**inputs)
    assert double.relative_embeds.dtype == torch.float64
    torch.testing.assert_close(double.logits.float(), expected, atol=1e-4, rtol=1e-4)


def test_a_half_precision_encoder_can_be_wrapped(make_bert, anchors, tokenizer):
    bert = make_bert(0)
    full = RelativeModel.from_encoder(copy.deepcopy(bert), anchors.view("en"), tokenizer).eval()
    half = RelativeModel.from_encoder(bert.to(torch.bfloat16), anchors.view("en"), tokenizer).eval()
    assert half.projection.anchors_AD.dtype == torch.float32 and half.backbone.dtype == torch.bfloat16
    torch.testing.assert_close(half.projection.anchors_AD, full.projection.anchors_AD, atol=0.05, rtol=0.05)


def test_inference_mode_gives_the_same_and_leaves_training_possible(make_model, make_dataset, anchors, tokenizer):
    model = make_model(0)
    batch = tokenizer.pad(make_dataset()[::8], return_tensors="pt")
    expected = model(**batch).logits
    with torch.inference_mode():
        assert torch.equal(model(**batch).logits, expected)
        model.encoder.encode_anchors(anchors.view("fr"))
        in_french = model(**batch).logits
    assert not torch.allclose(in_french, expected)
    model(**batch).loss.backward()
    assert torch.equal(model(**batch).logits, in_french)


@pytest.mark.parametrize("part", ["whole", "encoder"])
def test_a_resized_vocabulary_is_saved_loaded_and_used(make_model, tokenizer, part, tmp_path):
    model = make_model(0)
    if part == "encoder":
        model = model.encoder
    size = len(tokenizer) + 7
    model.resize_token_embeddings(size)
    assert model.get_input_embeddings().num_embeddings == size
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().num_embeddings == loaded.config.get_text_config().vocab_size == size
    inputs = {"input_ids": torch.tensor([[size - 1, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert torch.equal(loaded(**inputs).relative_embeds, model(**inputs).relative_embeds)


def test_gradients_reach_encoder_and_decoder_but_not_the_anchors(make_model, make_dataset, tokenizer):
    model = make_model(0).train()
    batch = tokenizer.pad(make_dataset()[::8], return_tensors="pt")
    model(**batch).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(
        parameter.grad.abs().sum() > 0 for parameter in model.encoder.backbone.encoder.layer[0].output.parameters()
    )
    assert not model.encoder.projection.anchors_AD.requires_grad


def test_gradient_checkpointing_gives_the_same_gradients(make_model, make_dataset, tokenizer):
    batch = tokenizer.pad(make_dataset()[::8], return_tensors="pt")
    gradients = []
    for checkpointing in (False, True):
        model = make_model(0, decoder_noise=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.encoder.backbone.is_activation_checkpointing
        torch.manual_seed(0)
        model(**batch).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-7, rtol=1e-5, msg=name)


def test_a_whole_model_holds_an_encoder_and_a_decoder_whose_configurations_are_those_of_its_own(make_model):
    model = make_model(0)
    assert isinstance(model.encoder, RelativeModel) and isinstance(model.decoder, RelativeDecoder)
    assert model.config.encoder is model.encoder.config and model.config.decoder is model.decoder.config
    assert model.config.space == model.encoder.config.space == model.decoder.config.space
