"""Which hidden state of an encoder is read: equal to pooling that of transformers by hand, wherever a model goes."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    EncodecConfig,
    EncodecModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5Model,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput

from hf_relreps import AnchorCallback, AnchorSet, RelativeConfig, RelativeModel, compatibility, stitch
from hf_relreps.caching import encode_dataset
from hf_relreps.encoders.graphs import GraphEncoder, GraphEncoderConfig
from hf_relreps.encoders.images import image_processor
from hf_relreps.errors import ConfigurationError, RelrepsError, StitchingError, UploadIntegrityError
from hf_relreps.exporting import export_program
from hf_relreps.pooling import Interface
from hf_relreps.tasks import GraphReader


LAYERS = (-4, -3, -2, 0, 1, 2, 3)
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
TEXT_MODELS = {
    "bert": lambda words: BertModel(BertConfig(vocab_size=words, **SIZES)),
    "gpt2": lambda words: GPT2Model(
        GPT2Config(vocab_size=words, n_embd=32, n_layer=3, n_head=2, bos_token_id=2, eos_token_id=3)
    ),
    "llama": lambda words: LlamaModel(LlamaConfig(vocab_size=words, **SIZES)),
    "t5": lambda words: T5Model(
        T5Config(vocab_size=words, d_model=32, d_kv=16, d_ff=64, num_layers=3, num_decoder_layers=1, num_heads=2)
    ),
}


@pytest.fixture
def make_deep(make_bert: Any) -> Any:
    """``make_deep(seed)``: a BERT of three layers, so of four hidden states."""
    return lambda seed=0: make_bert(seed, num_hidden_layers=3)


@pytest.fixture
def make_encoder(make_deep: Any, anchors: AnchorSet, tokenizer: Any) -> Any:
    """``make_encoder(seed, view, **settings)``: that BERT, relative."""

    def make(seed: int = 0, view: str = "en", **settings: Any) -> RelativeModel:
        return RelativeModel.from_encoder(make_deep(seed), anchors.view(view), tokenizer, **settings).eval()

    return make


@torch.no_grad()
def hidden_states(backbone: Any, inputs: Any) -> Any:
    return backbone(**inputs, output_hidden_states=True).hidden_states


# -- by hand


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_layer_of_texts_is_pooled_as_the_hidden_state_of_transformers(name, anchors, texts, tokenizer):
    torch.manual_seed(0)
    model = TEXT_MODELS[name](len(tokenizer)).eval()
    inputs = tokenizer(texts["en"][:5], padding=True, return_tensors="pt")
    mask_BT = inputs["attention_mask"]
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    states = hidden_states(model.encoder if name == "t5" else model, given)
    for layer in LAYERS:
        encoder = RelativeModel.from_encoder(model, anchors.view("en"), tokenizer, layer=layer)
        assert (encoder.config.layer, encoder.config.tower) == (layer, "encoder" if name == "t5" else None)
        with torch.no_grad():
            found_BD = encoder(**given).pooler_output
        kept = [state_TD[mask_T.bool()] for state_TD, mask_T in zip(states[layer], mask_BT, strict=True)]
        expected = {"mean": [one.mean(0) for one in kept], "last": [one[-1] for one in kept]}[encoder.config.pooling]
        torch.testing.assert_close(found_BD, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert encoder.config.pooling == ("last" if name in ("gpt2", "llama") else "mean")


def test_a_layer_of_a_vit_is_read_before_the_final_norm(images):
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(**SIZES, image_size=16, patch_size=4)).eval()
    view = AnchorSet(list("abcdefgh"), {"image": images}).view()
    inputs = image_processor(16)(images, return_tensors="pt")
    states = hidden_states(vit, inputs)
    for layer in (-3, -2, 1, 3):
        encoder = RelativeModel.from_encoder(vit, view, image_processor(16), layer=layer)
        assert encoder.config.pooling == "cls"
        torch.testing.assert_close(encoder.encode(images), states[layer][:, 0], atol=1e-5, rtol=1e-5)
    last = RelativeModel.from_encoder(vit, view, image_processor(16))
    torch.testing.assert_close(last.encode(images), vit.layernorm(states[3])[:, 0], atol=1e-5, rtol=1e-5)


def test_a_layer_of_a_convolutional_model_is_a_feature_map_of_its_own_width(images):
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "layer_type": "basic"}
    resnet = ResNetModel(ResNetConfig(**sizes)).eval()
    view = AnchorSet(list("abcdefgh"), {"image": images}).view()
    states = hidden_states(resnet, image_processor(16)(images, return_tensors="pt"))
    for layer, width in ((-1, 24), (-2, 16), (1, 8)):
        encoder = RelativeModel.from_encoder(resnet, view, image_processor(16), layer=layer)
        assert (encoder.config.pooling, encoder.config.embedding_size) == ("spatial_mean", width)
        torch.testing.assert_close(encoder.encode(images), states[layer].mean((2, 3)), atol=1e-5, rtol=1e-5)


def test_a_layer_of_a_graph_encoder_describes_its_nodes():
    pytest.importorskip("torch_geometric")
    torch.manual_seed(0)
    reader = GraphReader(torch.randn(6, 4), torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]]))
    graph = GraphEncoder(GraphEncoderConfig(in_channels=4, hidden_size=8)).eval()
    view = AnchorSet(list("abc"), {"node": [0, 2, 4]}).view()
    states = hidden_states(graph, {"x": reader.x, "edge_index": reader.edge_index})
    for layer in (-2, 0, 2):
        encoder = RelativeModel.from_encoder(graph, view, reader, layer=layer, anchor_gradient=True)
        torch.testing.assert_close(encoder.encode([5, 1]), states[layer][[5, 1]])
        torch.testing.assert_close(encoder.anchors_AD, states[layer][[0, 2, 4]])
        trained = encoder.train()(x=reader.x, edge_index=reader.edge_index)
        assert trained.relative_embeds.shape == (6, 3)


# -- what is asked of the wrapped model, and what is handed on


def asked_of(backbone: Any) -> list[Any]:
    asked: list[Any] = []
    backbone.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs.get("output_hidden_states")), with_kwargs=True
    )
    return asked


def test_the_last_layer_asks_for_no_hidden_states_and_another_for_all(anchors, texts, tokenizer):
    albert = AlbertModel(AlbertConfig(vocab_size=len(tokenizer), embedding_size=32, **SIZES)).eval()
    for layer, expected in ((-1, None), (-2, True)):
        encoder = RelativeModel.from_encoder(albert, anchors.view("en"), tokenizer, layer=layer)
        asked = asked_of(encoder.backbone)
        encoder.encode(texts["en"][:3])
        assert asked == [expected]


def test_hidden_states_are_handed_on_only_to_those_who_ask(make_encoder, texts, tokenizer):
    inputs = tokenizer(texts["en"][:3], padding=True, return_tensors="pt")
    encoder = make_encoder(layer=-2)
    with torch.no_grad():
        output, asked = encoder(**inputs), encoder(**inputs, output_hidden_states=True)
        declined = encoder(**inputs, output_hidden_states=False)
    assert (output.hidden_states, declined.hidden_states) == (None, None)
    assert len(asked.hidden_states) == 3, "of the layers that there are"
    assert torch.equal(asked.pooler_output, output.pooler_output)
    assert torch.equal(declined.pooler_output, output.pooler_output)
    assert torch.equal(output.last_hidden_state, asked.hidden_states[-1]), "what it says by its name"


# -- layers above the one that is read

# What is kept of three layers to read these hidden states; a norm after the last layer takes one layer more.
KEPT = {"bert": {-2: 2, -3: 1, 0: 1, 1: 1, 2: 2}, "gpt2": {-2: 3, -3: 2, 0: 1, 1: 2}, "llama": {-2: 3, 0: 1, 1: 2}}


@pytest.mark.parametrize("name", KEPT)
def test_layers_above_the_one_that_is_read_are_left_out_of_model_and_upload(name, anchors, texts, tokenizer, tmp_path):
    torch.manual_seed(0)
    model = TEXT_MODELS[name](len(tokenizer)).eval()
    for layer, kept in KEPT[name].items():
        encoder = RelativeModel.from_encoder(model, anchors.view("en"), tokenizer, layer=layer)
        assert encoder.config.layer == layer
        assert encoder.backbone.config.num_hidden_layers == kept
        encoder.save_pretrained(tmp_path / str(layer))
        stored = load_file(next((tmp_path / str(layer)).rglob("*.safetensors")))
        numbers = {int(found) for key in stored for found in re.findall(r"\.(?:layer|layers|h)\.(\d+)\.", key)}
        assert numbers == set(range(kept))
        loaded = RelativeModel.from_pretrained(tmp_path / str(layer))
        assert torch.equal(loaded.encode(texts["en"]), encoder.encode(texts["en"]))
        of_user = dict(model.named_parameters())
        assert all(weight is of_user[key] for key, weight in encoder.backbone.named_parameters()), "shared, not copied"
    assert model.config.num_hidden_layers == 3, "the caller's model stays whole"
    assert len(hidden_states(model, tokenizer("a", return_tensors="pt"))) == 4


def test_a_shortened_encoder_is_in_evaluation_mode_and_keeps_the_gradients_of_its_model(make_deep, anchors, tokenizer):
    bert = make_deep().train()
    bert.embeddings.requires_grad_(False)
    encoder = RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer, layer=-2)
    assert not any(part.training for part in encoder.modules())
    assert all(part.training for part in encoder.train().backbone.modules())
    assert not any(weight.requires_grad for weight in encoder.backbone.embeddings.parameters())
    assert all(weight.requires_grad for weight in encoder.backbone.encoder.parameters())


def test_a_layer_counts_those_that_were_left_out(make_encoder, anchors, texts, tokenizer):
    first = make_encoder(layer=-3)
    again = RelativeModel.from_encoder(first.backbone, anchors.view("en"), tokenizer, layer=-3)
    assert torch.equal(again.encode(texts["en"]), first.encode(texts["en"]))
    lower = RelativeModel.from_encoder(first.backbone, anchors.view("en"), tokenizer, layer=0)
    assert torch.equal(lower.encode(texts["en"]), make_encoder(layer=0).encode(texts["en"]))
    for layer in (-1, -2, 2, 3):
        with pytest.raises(
            ConfigurationError,
            match=rf"layer={layer} is not among .* the lowest 1 of 3 layers.*Load the whole model again",
        ):
            RelativeModel.from_encoder(first.backbone, anchors.view("en"), tokenizer, layer=layer)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_how_a_shortened_encoder_attends_can_still_be_chosen(name, anchors, tokenizer):
    model = TEXT_MODELS[name](len(tokenizer)).eval()
    encoder = RelativeModel.from_encoder(model, anchors.view("en"), tokenizer, layer=-3).eval()
    encoder.set_attn_implementation("eager")
    held = {id(part.config) for part in encoder.backbone.modules() if hasattr(part, "config")}
    assert held == {id(encoder.backbone.config)}, "one configuration, which all layers look at"
    output = encoder(**tokenizer(["small cat"], return_tensors="pt"), output_attentions=True)
    assert len(output.attentions) == encoder.backbone.config.num_hidden_layers
    assert model.config._attn_implementation == "sdpa"


def test_a_type_whose_configuration_changes_when_it_is_read_again_is_left_whole(anchors, texts, tokenizer, tmp_path):
    sizes = {**SIZES, "num_hidden_layers": 6, "head_dim": 16, "global_head_dim": 16, "vocab_size": len(tokenizer)}
    kinds = {"hidden_size_per_layer_input": 0, "num_key_value_heads": 2}
    gemma = AutoModel.from_config(AutoConfig.for_model("gemma4_text", **sizes, **kinds)).eval()
    encoder = RelativeModel.from_encoder(gemma, anchors.view("en"), tokenizer, layer=-3)
    encoder.save_pretrained(tmp_path)
    loaded = RelativeModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encode(texts["en"]), encoder.encode(texts["en"]))


@pytest.mark.parametrize("below_a_head", [False, True])
def test_a_model_with_adapters_is_left_whole_and_saved_with_them(
    below_a_head, make_deep, anchors, texts, tokenizer, tmp_path
):
    peft = pytest.importorskip("peft")
    model = BertForSequenceClassification(make_deep().config).eval() if below_a_head else make_deep()
    model.add_adapter(peft.LoraConfig(target_modules=["query"], layers_to_transform=[2], init_lora_weights=False))
    encoder = RelativeModel.from_encoder(model, anchors.view("en"), tokenizer, layer=-2)
    assert encoder.backbone.config.num_hidden_layers == 3
    encoder.save_pretrained(tmp_path)
    loaded = RelativeModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(texts["en"]), encoder.encode(texts["en"]))


@pytest.mark.parametrize("number", [-1, 1.5, [2], 10**12, {"a": 1}, True, None])
def test_a_changed_number_of_layers_is_refused(make_encoder, texts, tmp_path, number):
    make_encoder(layer=-3).save_pretrained(tmp_path)
    for file in tmp_path.rglob("config.json"):
        content = json.loads(file.read_text("utf-8"))
        content["encoder_config"]["layers_left_out"] = number
        file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(RelrepsError, match="layers_left_out|is not among the hidden states"):
        RelativeModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("count", ["x", [1], {"a": 1}, None])
def test_an_ordinary_model_that_says_it_lacks_layers_in_no_number_is_refused(make_deep, anchors, tokenizer, count):
    bert = make_deep()
    bert.config.layers_left_out = count
    with pytest.raises(ConfigurationError, match="layers_left_out=.* must be a whole number of layers"):
        RelativeModel.from_encoder(bert, anchors.view("en"), tokenizer)


def test_parts_of_models_lack_no_layers():
    clip, resnet = CLIPConfig(), ResNetConfig(layers_left_out=1)
    clip.text_config.layers_left_out = 1
    with pytest.raises(ConfigurationError, match=r"text_config\.layers_left_out has no meaning"):
        RelativeConfig(encoder_config=clip, tower="text_model")
    with pytest.raises(ConfigurationError, match="needs a model that counts its layers, but .* is None"):
        RelativeConfig(encoder_config=resnet)
    with pytest.raises(ConfigurationError, match="is a part of a model, which keeps all layers"):
        RelativeConfig(encoder_config=BertConfig(layers_left_out=1), tower="encoder")


# -- refused


@pytest.mark.parametrize("layer", [4, -5, 99])
def test_a_layer_that_does_not_exist_is_refused_with_how_many_there_are(make_encoder, layer):
    with pytest.raises(
        ConfigurationError, match=rf"layer={layer} is not one of the 4 .* BertModel returns\. .* -4 to 3"
    ):
        make_encoder(layer=layer)


@pytest.mark.parametrize("layer", ["-2", 1.5, True])
def test_a_layer_that_is_no_whole_number_is_refused(layer):
    with pytest.raises(ValueError, match="layer"):
        RelativeConfig(layer=layer)
    with pytest.raises(ConfigurationError, match=r"layer=True must be a whole number: -1 is the last hidden state"):
        RelativeConfig(layer=True)


def test_the_model_s_own_pooler_reads_the_last_layer_alone(make_encoder):
    with pytest.raises(
        ConfigurationError, match=r"pooling='pooler' is computed .* layer=-2 reads another one\. Choose cls"
    ):
        make_encoder(layer=-2, pooling="pooler")


def test_a_model_without_hidden_states_is_refused_with_what_to_do():
    encodec = EncodecModel(EncodecConfig(num_filters=4, hidden_size=8, num_lstm_layers=1, codebook_size=16))
    told = r"layer=-2 reads a hidden state below the last, and EncodecModel returns none\. Leave layer out, .* tower="
    with pytest.raises(ConfigurationError, match=told):
        Interface(encodec).asks(-2)
    with pytest.raises(ConfigurationError, match=told):
        Interface(encodec).at_layer(BaseModelOutput(last_hidden_state=torch.ones(1, 2, 3)), -2)


# -- wherever a model goes


def test_a_saved_encoder_keeps_its_layer_and_frozen_ones_too(make_encoder, texts, tmp_path):
    encoder = make_encoder(layer=-2)
    encoder.save_pretrained(tmp_path)
    loaded = RelativeModel.from_pretrained(tmp_path)
    assert loaded.config.layer == -2
    assert torch.equal(loaded.encode(texts["en"]), encoder.encode(texts["en"]))
    assert torch.equal(encoder.share().encode(texts["en"]), encoder.encode(texts["en"]))


def test_a_frozen_base_on_the_hub_is_read_at_its_layer(make_deep, anchors, texts, tokenizer, repo_id, capfd):
    make_deep().push_to_hub(repo_id)
    tokenizer.push_to_hub(repo_id)
    encoder = RelativeModel.from_encoder(repo_id, anchors.view("en"), layer=-3, freeze_encoder=True)
    encoder.push_to_hub(f"{repo_id}-relative")
    loaded = RelativeModel.from_pretrained(f"{repo_id}-relative")
    assert (loaded.config.layer, loaded.config.encoder_is_frozen) == (-3, True)
    assert torch.allclose(loaded.encode(texts["en"]), encoder.encode(texts["en"]), atol=1e-6)
    assert "LOAD REPORT" not in capfd.readouterr().err, "layers above have no place, and need none"


def test_an_upload_from_before_reads_the_last_layer(make_encoder, tmp_path):
    content = make_encoder().config.to_dict()
    del content["layer"]
    make_encoder().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content), "utf-8")
    assert RelativeModel.from_pretrained(tmp_path).config.layer == -1


def test_weights_of_another_layer_are_refused(make_encoder, tmp_path):
    with pytest.raises(ConfigurationError, match=r"layer -2 there and -1 here"):
        make_encoder().load_state_dict(make_encoder(layer=-2).state_dict())
    make_encoder(layer=-2).save_pretrained(tmp_path)
    for file in tmp_path.rglob("config.json"):
        file.write_text(file.read_text("utf-8").replace('"layer": -2', '"layer": -3'), "utf-8")
    with pytest.raises(UploadIntegrityError, match=r"layer -2 there and -3 here"):
        RelativeModel.from_pretrained(tmp_path)


def test_a_cache_of_another_layer_is_not_read(make_encoder, texts, tmp_path):
    from datasets import Dataset

    rows = Dataset.from_dict({"text": texts["en"]})
    encoder = make_encoder()
    before = encode_dataset(encoder, rows, "text", cache_dir=tmp_path)[:]["relative_embeds"]
    encoder.config.layer = -2
    after = encode_dataset(encoder, rows, "text", cache_dir=tmp_path)[:]["relative_embeds"]
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_decoder_takes_a_layer_of_an_ordinary_encoder(make_model, make_deep, anchors, texts, tokenizer):
    decoder = make_model(1).decoder
    model = stitch(make_deep(2), decoder, view="fr", processor=tokenizer, layer=-3)
    expected = RelativeModel.from_encoder(make_deep(2), anchors.view("fr"), tokenizer, layer=-3)
    assert torch.equal(model.encoder.encode(texts["fr"]), expected.encode(texts["fr"]))
    assert stitch(model, decoder, layer=-3).config.encoder.layer == -3  # an encoder brings its own
    with pytest.raises(StitchingError, match=r"reads layer -3, but layer=-2 was given\. Leave layer out"):
        stitch(model, decoder, layer=-2)
    assert "mean of hidden state -3" in str(compatibility(model, decoder))


def test_an_ordinary_classifier_s_head_reads_an_encoder_s_layer(make_deep, anchors, tokenizer, texts):
    torch.manual_seed(0)
    classifier = BertForSequenceClassification(make_deep().config).eval()
    how = {"anchors": anchors, "view": "fr", "decoder_view": "en"}
    processors = {"processor": tokenizer, "decoder_processor": tokenizer}
    model = stitch(make_deep(2), classifier, **how, **processors, layer=-2)
    assert (model.config.encoder.layer, model.config.decoder.decoder_type) == (-2, "head")
    expected = RelativeModel.from_encoder(make_deep(2), anchors.view("fr"), tokenizer, layer=-2)
    assert torch.equal(model.encoder.encode(texts["fr"]), expected.encode(texts["fr"]))
    with pytest.raises(StitchingError, match=r"reads layer -2, but layer=-1 was given"):
        stitch(model, classifier, **how, **processors, layer=-1)


def test_a_configuration_hands_on_its_layer(make_encoder, texts):
    encoder = make_encoder(config=make_encoder(1, layer=-2).config)
    assert encoder.config.layer == -2
    assert torch.equal(encoder.encode(texts["en"]), make_encoder(layer=-2).encode(texts["en"]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_reaches_the_layers_below_and_leaves_those_above(
    checkpointing, make_model, make_deep, make_dataset, anchors, tokenizer, tmp_path
):
    kind = type(make_model())
    model = kind.from_encoder(make_deep(), anchors.view("en"), tokenizer, layer=-2, num_labels=3)
    before = {name: weight.clone() for name, weight in model.encoder.backbone.state_dict().items()}
    how = {"max_steps": 3, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args, rows = TrainingArguments(str(tmp_path), activation_checkpointing=checkpointing, **how), make_dataset("en")
    Trainer(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[AnchorCallback()]).train()
    weights = model.encoder.backbone.state_dict()
    moved = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert {name.split(".")[2] for name in moved if name.startswith("encoder.layer.")} == {"0", "1"}
    assert model.encoder.check_anchors() < 1e-3
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert loaded.encoder.check_anchors() < 1e-3


def test_an_exported_program_reads_the_layer(make_model, make_deep, texts, tokenizer):
    model = stitch(make_deep(2), make_model(1).decoder, view="fr", processor=tokenizer, layer=-2)
    inputs = tokenizer(texts["fr"][:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(export_program(model).module()(**inputs), expected, atol=1e-4, rtol=1e-4)


def test_an_onnx_file_reads_the_layer(make_model, make_deep, texts, tokenizer, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from hf_relreps.exporting import export_onnx

    model = stitch(make_deep(2), make_model(1).decoder, view="fr", processor=tokenizer, layer=-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        file = export_onnx(model, tmp_path / "model.onnx")
    inputs = tokenizer(texts["fr"][:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
    found = session.run(["logits"], given)[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


def test_a_card_says_which_layer_is_read(make_model, make_deep, tokenizer):
    decoder = make_model(1).decoder
    second, last = (stitch(make_deep(2), decoder, view="fr", processor=tokenizer, layer=layer) for layer in (-2, None))
    assert "`mean` pooling of hidden state -2, 32 wide" in str(second.make_card("me/x"))
    assert "hidden state" not in str(last.make_card("me/x"))
