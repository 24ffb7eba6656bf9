"""Ordinary classifiers as decoders: their heads, translated stitches against an untranslated control, and uploads.

Five architectures are trained for seconds on real data, each from a seed of its own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    ConvNextConfig,
    DebertaV2Config,
    Dinov2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    PoolFormerConfig,
    ResNetConfig,
    RobertaConfig,
    SegformerConfig,
    SiglipConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    pipeline,
    set_seed,
)

from hf_relreps import AnchorSet, RelativeConfig, RelativeDecoder, RelativeModel, compatibility, find_parts, stitch
from hf_relreps import RelativeModelForSequenceClassification as RelativeClassifier
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import word_tokenizer, wordpiece_tokenizer
from hf_relreps.errors import AnchorError, ConfigurationError, StitchingError, UploadError, UploadIntegrityError
from hf_relreps.heads import ClassifierHead
from hf_relreps.translation import METHODS, decoder_from_classifier
from hf_relreps.translation.classifiers import read_head


# -- real data: package descriptions in two languages, and handwritten digits

SECTIONS = ("games", "graphics", "mail", "science", "sound", "web")
PIXELS = ViTImageProcessorPil(
    size={"height": 8, "width": 8}, do_resize=False, image_mean=[0.3] * 3, image_std=[0.4] * 3, do_convert_rgb=True
)
TEXT_SIZES = {"vocab_size": 2000, "max_position_embeddings": 40, "num_labels": len(SECTIONS)}
BERT_SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TEXTS = {
    "bert": BertConfig(**TEXT_SIZES, **BERT_SIZES),
    "roberta": RobertaConfig(**TEXT_SIZES, **BERT_SIZES, pad_token_id=0),
    "distilbert": DistilBertConfig(**TEXT_SIZES, dim=32, n_layers=1, n_heads=2, hidden_dim=64),
}
IMAGES = {
    "vit": ViTConfig(
        image_size=8, patch_size=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        initializer_range=0.15, num_labels=10,
    ),
    "resnet": ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10),
}  # fmt: skip
SEEDS = {"bert": 1, "roberta": 2, "distilbert": 3, "vit": 4, "resnet": 5}
# Which encoder is stitched with the head of which classifier.
PAIRS = [("distilbert", "bert"), ("bert", "roberta"), ("roberta", "distilbert"), ("resnet", "vit"), ("vit", "resnet")]


class World:
    """One task: samples in their splits, what reads them, anchors, and classifiers trained on it."""

    def __init__(self, configs, auto_class, processor, samples, labels, n_train, anchors, epochs, rate):
        self.configs, self.auto_class, self.processor, self.anchors = configs, auto_class, processor, anchors
        self.epochs, self.rate = epochs, rate
        self.samples, self.labels = samples[n_train:], torch.tensor(labels[n_train:])
        self._train = self.inputs(samples[:n_train]), torch.tensor(labels[:n_train])
        self._trained = {}

    def inputs(self, samples):
        if self.auto_class is AutoModelForImageClassification:
            return dict(self.processor(images=samples, return_tensors="pt"))
        return dict(self.processor(samples, padding=True, truncation=True, return_tensors="pt"))

    def classifier(self, name):
        if name not in self._trained:
            set_seed(SEEDS[name])
            model = self.auto_class.from_config(self.configs[name])
            optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate)
            inputs, labels = self._train
            for _ in range(self.epochs):
                for rows in torch.randperm(len(labels)).split(32):
                    optimizer.zero_grad()
                    model(**{key: value[rows] for key, value in inputs.items()}, labels=labels[rows]).loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
            self._trained[name] = model.eval()
        return self._trained[name]

    @torch.no_grad()
    def logits(self, model):
        return model(**self.inputs(self.samples)).logits

    def accuracy(self, logits_NC):
        return float((logits_NC.argmax(1) == self.labels).float().mean())


@pytest.fixture(scope="module")
def texts_world():
    rows = load_debian_descriptions().filter(lambda section: section in SECTIONS, input_columns="section")
    rows = rows.shuffle(seed=0).select(range(2000))
    words = Counter(word for text in rows["en"][:1600] for word in text.split())
    tokenizer = word_tokenizer(word for word, _ in words.most_common(1900))
    tokenizer.model_max_length = 24
    anchors = AnchorSet.from_dataset(rows.select(range(1600)), k=150, views=["en", "fr"], id_column="package")
    labels = [SECTIONS.index(section) for section in rows["section"]]
    return World(TEXTS, AutoModelForSequenceClassification, tokenizer, rows["en"][:], labels, 1600, anchors, 4, 5e-3)


@pytest.fixture(scope="module")
def images_world():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels = (digits.images[order] / 16 * 255).astype(np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    anchors = AnchorSet(range(200), {"digits": images[:200]})
    labels = digits.target[order].tolist()
    return World(IMAGES, AutoModelForImageClassification, PIXELS, images, labels, 1297, anchors, 6, 4e-3)


def world_of(name, request):
    return request.getfixturevalue("images_world" if name in IMAGES else "texts_world")


def translated(world, encoder, decoder, method="kernel_ridge"):
    views = {"view": world.anchors.views[0], "decoder_view": world.anchors.views[0]}
    processors = {"processor": world.processor, "decoder_processor": world.processor}
    own, foreign = world.classifier(encoder).base_model, world.classifier(decoder)
    return stitch(own, foreign, anchors=world.anchors, method=method, **views, **processors)


# -- translation works where no translation does not


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS, ids=map("-".join, PAIRS))
def test_a_head_reads_an_encoder_it_never_met_once_that_is_translated(encoder, decoder, request):
    world = world_of(encoder, request)
    own = world.accuracy(world.logits(world.classifier(decoder)))
    source = world.accuracy(world.logits(world.classifier(encoder)))
    stitched = translated(world, encoder, decoder)
    score = world.accuracy(world.logits(stitched))
    with torch.no_grad():  # all are 32 wide, so the head takes the vectors as they are
        absolute = world.accuracy(stitched.decoder.head(stitched.encoder.encode(world.samples)))
    chance = float(torch.bincount(world.labels).max() / len(world.labels))
    assert own > 0.6 and source > 0.6
    assert score > min(own, source) - 0.08
    assert absolute < chance + 0.15 < score


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_translates_text(method, texts_world):
    stitched = translated(texts_world, "distilbert", "bert", method)
    chance = float(torch.bincount(texts_world.labels).max() / len(texts_world.labels))
    assert texts_world.accuracy(texts_world.logits(stitched)) > chance + 0.2


def test_the_classifier_and_the_encoder_stay_as_they_were(texts_world):
    classifier, encoder = texts_world.classifier("bert"), texts_world.classifier("distilbert")
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    logits_NC, config = texts_world.logits(encoder), classifier.config.to_dict()
    translated(texts_world, "distilbert", "bert")
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert torch.equal(texts_world.logits(encoder), logits_NC)
    assert classifier.config.to_dict() == config


def test_a_relative_encoder_keeps_its_own_projection(texts_world):
    view = texts_world.anchors.view("en")
    bert = texts_world.classifier("bert").base_model
    encoder = RelativeModel.from_encoder(bert, view, texts_world.processor, config=RelativeConfig.paper())
    said = texts_world.processor("a game", return_tensors="pt")
    before_BR = encoder(**said).relative_embeds
    classifier = texts_world.classifier("roberta")
    stitched = stitch(encoder, classifier, decoder_view="en", decoder_processor=texts_world.processor)
    assert stitched.encoder.config.space.similarity == ("rbf",)
    assert encoder.config.space.similarity == ("cosine",)
    assert torch.equal(encoder(**said).relative_embeds, before_BR)
    assert texts_world.accuracy(texts_world.logits(stitched)) > 0.6


def test_a_decoder_made_without_any_encoder_serves_all_that_share_its_anchors(texts_world, tmp_path):
    classifier = texts_world.classifier("bert")
    decoder_from_classifier(classifier, texts_world.anchors.view("en"), texts_world.processor).save_pretrained(
        tmp_path
    )
    assert not (tmp_path / "encoder").exists()
    decoder = RelativeDecoder.from_pretrained(tmp_path)
    for name in ("roberta", "distilbert"):
        encoder = texts_world.classifier(name).base_model
        stitched = stitch(encoder, decoder, view="en", processor=texts_world.processor)
        assert torch.equal(texts_world.logits(stitched), texts_world.logits(translated(texts_world, name, "bert")))


def test_a_translated_head_can_be_trained_on(texts_world):
    stitched = translated(texts_world, "distilbert", "bert").train()
    stitched.encoder.requires_grad_(False)
    stitched.zero_grad()  # of their training
    labels = torch.tensor([0, 1])
    stitched(**texts_world.inputs(["a game", "a lab"]), labels=labels).loss.backward()
    learns = {name for name, p in stitched.named_parameters() if p.grad is not None}
    assert learns == {"decoder.head.model.classifier.weight", "decoder.head.model.classifier.bias"}


# -- uploads


@pytest.mark.parametrize(
    ("encoder", "decoder", "method"),
    [(*pair, "kernel_ridge") for pair in PAIRS] + [("distilbert", "bert", "procrustes")],
)
def test_saved_and_loaded_it_gives_the_same_bits(encoder, decoder, method, request, tmp_path):
    world = world_of(encoder, request)
    stitched = translated(world, encoder, decoder, method)
    stitched.save_pretrained(tmp_path)
    expected_NC = world.logits(stitched)
    loaded = world.auto_class.from_pretrained(tmp_path)
    assert torch.equal(world.logits(loaded), expected_NC)
    parts = (RelativeModel.from_pretrained(tmp_path), RelativeDecoder.from_pretrained(tmp_path))
    assert torch.equal(world.logits(stitch(*parts)), expected_NC)
    names = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert {"decoder.placement.points_RE", "decoder.placement.shift_E"} <= set(names)
    assert not any("embeddings" in name for name in names if name.startswith("decoder."))  # the head alone


def test_loaded_in_half_precision_the_points_stay_float32(texts_world, tmp_path):
    stitched = translated(texts_world, "distilbert", "bert")
    stitched.save_pretrained(tmp_path)
    loaded = RelativeClassifier.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.decoder.head.model.classifier.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.decoder.placement.points_RE, stitched.decoder.placement.points_RE)
    same = texts_world.logits(loaded).argmax(1) == texts_world.logits(stitched).argmax(1)
    assert same.float().mean() > 0.95


def test_names_on_the_hub_are_enough_and_the_result_is_an_upload_like_any_other(texts_world, new_repo_id):
    repos = {name: new_repo_id() for name in ("encoder", "classifier", "anchors", "stitched")}
    for part, model in (
        ("encoder", texts_world.classifier("distilbert")),
        ("classifier", texts_world.classifier("bert")),
    ):
        model.push_to_hub(repos[part])
        texts_world.processor.push_to_hub(repos[part])
    texts_world.anchors.push_to_hub(repos["anchors"])

    stitched = stitch(repos["encoder"], repos["classifier"], anchors=repos["anchors"], view="en", decoder_view="en")
    stitched.push_to_hub(repos["stitched"])
    loaded = AutoModelForSequenceClassification.from_pretrained(repos["stitched"])
    assert torch.equal(texts_world.logits(loaded), texts_world.logits(stitched))

    classify = pipeline(
        "text-classification", model=loaded, tokenizer=AutoTokenizer.from_pretrained(repos["stitched"])
    )
    assert classify(texts_world.samples[0], truncation=True)[0]["label"] in loaded.config.id2label.values()

    decoder = RelativeDecoder.from_pretrained(repos["stitched"])
    assert [found.fits for found in find_parts(decoder)] == [True]
    card = stitched.make_card(repos["stitched"])
    assert card.data.base_model == [repos["encoder"], repos["classifier"]]
    assert f"the head of the bert classifier [{repos['classifier']}]" in card.text


def test_the_page_on_translation_runs(texts_world, new_repo_id, capsys):
    page = (Path(__file__).parents[1] / "docs" / "translation.md").read_text("utf-8")
    names = (
        "french-encoder",
        "english-topics-decoder",
        "english-topics",
        "anchors",
        "french-topics",
        "relative-topics",
    )
    repos = {name: new_repo_id() for name in names}
    for part, name in (("french-encoder", "distilbert"), ("english-topics", "bert")):
        texts_world.classifier(name).push_to_hub(repos[part])
        texts_world.processor.push_to_hub(repos[part])
    texts_world.anchors.push_to_hub(repos["anchors"])
    for name, repo_id in repos.items():
        assert f'"me/{name}"' in page
        page = page.replace(f'"me/{name}"', repr(repo_id))
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/translation.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "LABEL_" in printed
    assert f"{repos['english-topics-decoder']}  decoder" in printed
    assert "torch.Size([2, 48])" in printed
    loaded = AutoModelForSequenceClassification.from_pretrained(repos["french-topics"])
    assert loaded.config.decoder.head_name_or_path == repos["english-topics"]


# -- heads of many kinds


def texts(n=6):
    words = "one two three four five six seven eight nine ten".split()
    return [" ".join(words[i : i + 3 + i % 3]) for i in range(n)]


TINY_BERT = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_BERT |= {"intermediate_size": 16, "max_position_embeddings": 40, "num_labels": 3}
TINY_IMAGE = {"num_labels": 3, "image_size": 8, "patch_size": 2, "hidden_size": 16, "num_hidden_layers": 1}
TINY_IMAGE |= {"num_attention_heads": 2, "intermediate_size": 16}
HEADS = {
    "electra": (ElectraConfig(**TINY_BERT, embedding_size=16), "cls"),
    "deberta": (DebertaV2Config(**TINY_BERT), "cls"),
    "gpt2": (GPT2Config(vocab_size=200, n_embd=16, n_layer=1, n_head=2, n_positions=40, num_labels=3), "last"),
    "dinov2": (Dinov2Config(**TINY_IMAGE), "cls_and_patch_mean"),
    "siglip": (SiglipConfig(vision_config=TINY_IMAGE, text_config=TINY_BERT, num_labels=3), "mean"),
    "clip": (CLIPConfig(vision_config=TINY_IMAGE, text_config=TINY_BERT, num_labels=3), "patch_mean"),
    "convnext": (
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, num_labels=3),
        "pooler",
    ),
    "swin": (
        SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[2], window_size=2, num_labels=3),
        "pooler",
    ),
    "segformer": (
        SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3],
            strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=3,
        ),
        "spatial_mean",
    ),
    "wav2vec2": (
        Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8, 8],
            conv_stride=[5, 4], conv_kernel=[10, 4], num_feat_extract_layers=2, num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, classifier_proj_size=8, num_labels=3,
        ),
        "mean",
    ),
}  # fmt: skip


def classifier_of(config):
    set_seed(0)
    kind = type(config)
    auto_classes = (
        AutoModelForSequenceClassification,
        AutoModelForImageClassification,
        AutoModelForAudioClassification,
    )
    auto_class = next(auto for auto in auto_classes if kind in auto._model_mapping)
    model = auto_class.from_config(config).eval()
    with torch.no_grad():  # biases and scales that are not all zero and one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    modality = dict(zip(auto_classes, ("text", "image", "audio"), strict=True))[auto_class]
    return model, modality


def poolformer():
    """Its head normalises the feature map before it takes the mean: more than one vector of each sample."""
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [3, 3]}
    return classifier_of(PoolFormerConfig(**sizes, strides=[2, 2], padding=[1, 1], num_labels=3))[0]


def bart():
    """Its head looks for the last token that ends a text, which vectors do not have; with a tokenizer."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_labels": 3}
    model, _ = classifier_of(BartConfig(vocab_size=200, max_position_embeddings=40, eos_token_id=3, **sizes))
    tokenizer = wordpiece_tokenizer(texts(), longest=20, vocabulary_size=200)
    tokenizer.eos_token = "[SEP]"
    return model, tokenizer


def samples_of(modality):
    noise = np.random.default_rng(0)
    if modality == "image":
        return [Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(6)]
    if modality == "audio":
        return [{"array": noise.normal(size=400).astype("float32"), "sampling_rate": 16000} for _ in range(6)]
    return texts()


def processor_of(modality):
    if modality == "text":
        tokenizer = wordpiece_tokenizer(texts(), longest=20, vocabulary_size=200)
        return tokenizer
    return PIXELS if modality == "image" else Wav2Vec2FeatureExtractor()


@pytest.mark.parametrize("name", list(HEADS))
def test_what_a_head_reads_is_found_by_trying(name):
    config, reads = HEADS[name]
    model, modality = classifier_of(config)
    samples, processor = samples_of(modality), processor_of(modality)
    view = AnchorSet(range(6), {"own": samples}).view()
    reading = read_head(model, view, processor)
    assert reading.reads == reads
    inputs = {
        "text": lambda: processor(samples, padding=True, return_tensors="pt"),
        "image": lambda: processor(images=samples, return_tensors="pt"),
        "audio": lambda: processor([s["array"] for s in samples], sampling_rate=16000, return_tensors="pt"),
    }[modality]()
    if name == "gpt2":  # which has no padding, so it reads one at a time
        with torch.no_grad():
            expected_NC = torch.cat([model(**processor([text], return_tensors="pt")).logits for text in samples])
    else:
        with torch.no_grad():
            expected_NC = model(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(reading.head(reading.y_AE), expected_NC, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "dinov2", "wav2vec2"])
def test_a_decoder_of_any_kind_of_head_comes_back_from_a_folder(name, tmp_path):
    model, modality = classifier_of(HEADS[name][0])
    view = AnchorSet(range(6), {"own": samples_of(modality)}).view()
    decoder = decoder_from_classifier(model, view, processor_of(modality))
    decoder.save_pretrained(tmp_path)
    r_BR = torch.rand(4, 6)
    assert torch.equal(RelativeDecoder.from_pretrained(tmp_path)(r_BR).logits, decoder(r_BR).logits)


# -- errors


def test_a_head_that_reads_a_whole_feature_map_is_refused():
    model = poolformer()
    view = AnchorSet(range(6), {"own": samples_of("image")}).view()
    with pytest.raises(StitchingError, match="PoolFormerForImageClassification does not read one .* of spatial_mean"):
        read_head(model, view, PIXELS)  # it normalises the map before it takes the mean


def test_a_head_that_takes_no_vectors_is_refused_with_its_own_words():
    model, tokenizer = bart()
    view = AnchorSet(range(6), {"own": [f"{text} [SEP]" for text in texts()]}).view()
    with pytest.raises(
        StitchingError, match="head of BartForSequenceClassification does not read one.*input embeddings"
    ):
        read_head(model, view, tokenizer)


def test_what_is_missing_is_named(texts_world):
    encoder, classifier = texts_world.classifier("bert").base_model, texts_world.classifier("roberta")
    tokenizer, anchors = texts_world.processor, texts_world.anchors
    with pytest.raises(
        StitchingError, match=r"ordinary classifier and needs anchors.*stitch\(encoder, classifier, anch"
    ):
        stitch(encoder, classifier)
    with pytest.raises(AnchorError, match=r"BertModel becomes relative.*'en', 'fr'.*view='en'"):
        stitch(encoder, classifier, anchors=anchors)
    with pytest.raises(
        AnchorError, match=r"RobertaForSequenceClassification reads the anchors too.*decoder_view='en'"
    ):
        stitch(encoder, classifier, anchors=anchors, view="en", processor=tokenizer)
    with pytest.raises(StitchingError, match=r"needs its processor: stitch.*decoder_processor=tokenizer"):
        stitch(encoder, classifier, anchors=anchors, view="en", decoder_view="en", processor=tokenizer)
    with pytest.raises(ConfigurationError, match=r"method='rotate' does not exist"):
        stitch(encoder, classifier, anchors=anchors, method="rotate")
    with pytest.raises(StitchingError, match=r"method='cca' fits one pair of spaces, so it needs the encoder"):
        decoder_from_classifier(classifier, anchors.view("en"), tokenizer, method="cca")


def test_arguments_for_classifiers_are_refused_beside_a_relative_decoder(texts_world):
    stitched = translated(texts_world, "distilbert", "bert")
    with pytest.raises(
        StitchingError, match=r"anchors=, method= are for ordinary classifiers; RelativeDecoder is rel"
    ):
        stitch(stitched.encoder, stitched.decoder, anchors=texts_world.anchors, method="ridge")


def test_other_anchors_than_the_encoders_are_refused(texts_world):
    encoder = translated(texts_world, "distilbert", "bert").encoder
    others = AnchorSet(["a", "b"], {"en": ["a game", "a song"]})
    with pytest.raises(AnchorError, match=r"encoder uses 150 anchors .*, but the classifier would read"):
        stitch(encoder, texts_world.classifier("bert"), anchors=others, decoder_processor=texts_world.processor)


def test_a_decoder_fitted_to_one_encoder_is_refused_for_another(texts_world):
    fitted = translated(texts_world, "distilbert", "bert", "procrustes")
    other = translated(texts_world, "roberta", "bert", "procrustes")
    with pytest.raises(StitchingError, match=r"decoder was fitted to another encoder.*stitch\(encoder, classifier"):
        stitch(other.encoder, fitted.decoder)
    assert compatibility(fitted.encoder, fitted.decoder).fits
    assert compatibility(other.encoder, fitted.decoder).verdict == "does not fit: fitted to"
    assert "It fits one encoder only." in fitted.decoder.make_card("me/decoder").text


def test_a_classifier_without_its_head_is_refused(texts_world, tmp_path):
    texts_world.classifier("bert").base_model.save_pretrained(tmp_path)
    texts_world.processor.save_pretrained(tmp_path)
    with pytest.raises(StitchingError, match=r"lacks \d+ weights of a classifier, the first is .*without its head"):
        decoder_from_classifier(tmp_path, texts_world.anchors.view("en"))


def test_a_classifier_of_another_modality_is_refused(texts_world, images_world):
    with pytest.raises(
        StitchingError, match=r"ViTForImageClassification as decoder, which is neither.*classifier of texts"
    ):
        decoder_from_classifier(images_world.classifier("vit"), texts_world.anchors.view("en"), texts_world.processor)


def test_a_class_of_ones_own_is_refused_since_nothing_could_load_it(texts_world):
    class Own(BertForSequenceClassification):
        pass

    with pytest.raises(StitchingError, match="Found a Own as decoder, which is neither"):
        decoder_from_classifier(Own(TEXTS["bert"]), texts_world.anchors.view("en"), texts_world.processor)


def test_a_model_whose_encoder_is_no_part_of_its_own_has_no_head():
    model = BertModel(TEXTS["bert"])
    with pytest.raises(StitchingError, match=r"BertModel has no submodule 'bert' that holds its encoder"):
        ClassifierHead(model, "cls")


def test_a_head_is_never_made_anew(texts_world):
    stitched = translated(texts_world, "distilbert", "bert")
    fresh = RelativeClassifier.from_encoder(stitched.encoder, num_labels=4)
    assert fresh.config.decoder.decoder_type == "mlp"
    with pytest.raises(ConfigurationError, match=r"decoder_type='head' is not trained from scratch"):
        RelativeClassifier.from_encoder(stitched.encoder, decoder_type="head")
    with pytest.raises(ConfigurationError, match=r"needs head_config, head_modality, head_reads and head_size, found"):
        RelativeDecoder(RelativeConfig(decoder_type="head", num_anchors=5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"head_modality": "image"},
            r"head_config describes a 'distilbert', for which transformers has no classifier",
        ),
        ({"head_reads": "everything"}, r"head_reads='everything' does not exist"),
        ({"head_size": 0}, r"head_size=0 must be a whole number"),
    ],
)
def test_configurations_of_heads_that_cannot_be_are_refused(settings, message):
    head = {"head_config": TEXTS["distilbert"], "head_modality": "text", "head_reads": "cls", "head_size": 32}
    with pytest.raises(ConfigurationError, match=message):
        RelativeDecoder(RelativeConfig(decoder_type="head", num_anchors=5, **head | settings))


@pytest.fixture
def saved_decoder(texts_world, tmp_path):
    translated(texts_world, "distilbert", "bert").decoder.save_pretrained(tmp_path)
    return tmp_path


def doctor(folder, **head):
    for file in (folder / "config.json", folder / "decoder" / "config.json"):
        content = json.loads(file.read_text())
        content["head_config"] |= head
        file.write_text(json.dumps(content))


def test_the_configuration_of_a_head_from_outside_chooses_no_code(saved_decoder):
    doctor(saved_decoder, auto_map={"AutoModelForSequenceClassification": "evil.Evil"}, trust_remote_code=True)
    loaded = RelativeDecoder.from_pretrained(saved_decoder)
    assert type(loaded.head.model) is BertForSequenceClassification
    assert not hasattr(loaded.config.head_config, "auto_map")
    assert not hasattr(loaded.config.head_config, "trust_remote_code")


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        ({"hidden_size": 64}, UploadIntegrityError, "weights of .* do not match its configuration"),
        (
            {"num_hidden_layers": 10**9},
            ConfigurationError,
            "num_hidden_layers=1000000000 is larger than in any known model",
        ),
        ({"model_type": "no-such-type"}, (ConfigurationError, UploadError, ValueError), "no-such-type"),
        ({"model_type": "graph_encoder"}, (ConfigurationError, UploadError, ValueError), "graph_encoder"),
    ],
)
def test_a_head_that_is_not_what_its_configuration_says_is_refused(saved_decoder, head, error, message):
    doctor(saved_decoder, **head)
    with pytest.raises(error, match=message):
        RelativeDecoder.from_pretrained(saved_decoder)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_points_that_are_not_finite_are_refused(saved_decoder, bad):
    file = saved_decoder / "decoder" / "model.safetensors"
    weights = load_file(file)
    weights["placement.points_RE"][3, 4] = bad
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UploadIntegrityError, match="infinite or NaN weights; the first is in placement.points_RE"):
        RelativeDecoder.from_pretrained(saved_decoder)


def test_no_local_path_reaches_a_configuration(texts_world, tmp_path):
    texts_world.classifier("bert").save_pretrained(tmp_path / "classifier")
    texts_world.processor.save_pretrained(tmp_path / "classifier")
    decoder = decoder_from_classifier(tmp_path / "classifier", texts_world.anchors.view("en"))
    decoder.save_pretrained(tmp_path / "decoder")
    saved = [path.read_text() for path in Path(tmp_path, "decoder").rglob("*.json")]
    assert not any(str(tmp_path) in text for text in saved)
