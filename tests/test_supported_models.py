"""Any AutoModel becomes an encoder: a fixed choice over all kinds; the whole sweep is `benchmarks/supported_models`.

For each type the probe builds it tiny, makes it relative, encodes twice, alone and in a batch, saves, loads it through
`AutoModel` with equal embeddings, and stitches it to a decoder that was made with BERT.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from benchmarks.supported_models.causes import CAUSES
from benchmarks.supported_models.inputs import MAKERS, anchor_set, processors_for, tokenizer
from benchmarks.supported_models.probe import Row, probe, tiny_model
from benchmarks.supported_models.report import counts, render
from benchmarks.supported_models.sweep import decoder_of_bert
from benchmarks.supported_models.tiny_configs import tiny_config
from hf_relreps import (
    AnchorSet,
    RelativeModel,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
    stitch,
)
from hf_relreps.errors import ConfigurationError
from hf_relreps.samples import batches


DOCS = Path(__file__).parents[1] / "docs"

# Model type -> the modalities that it is probed with, each with the part that is the encoder and the pooling chosen.
CHOICE = {
    "bert": {"text": (None, "mean")},
    "roberta": {"text": (None, "mean")},
    "distilbert": {"text": (None, "mean")},
    "electra": {"text": (None, "mean")},
    "mpnet": {"text": (None, "mean")},
    "deberta-v2": {"text": (None, "mean")},
    "modernbert": {"text": (None, "mean")},
    "xlm-roberta": {"text": (None, "mean")},
    "albert": {"text": (None, "mean")},
    "gpt2": {"text": (None, "last")},
    "llama": {"text": (None, "last")},
    "qwen2": {"text": (None, "last")},
    "qwen3": {"text": (None, "last")},
    "mixtral": {"text": (None, "last")},  # experts, and how they run
    "gemma4_text": {"text": (None, "last")},  # settings that vary from layer to layer
    "levit": {"image": (None, "mean")},  # changes its configuration as it is built
    "t5": {"text": ("encoder", "mean")},
    "bart": {"text": ("encoder", "mean")},
    "vit": {"image": (None, "cls")},
    "dinov2": {"image": (None, "cls")},
    "swin": {"image": (None, "mean")},
    "convnext": {"image": (None, "pooler")},
    "resnet": {"image": (None, "spatial_mean")},
    "mobilenet_v2": {"image": (None, "spatial_mean")},
    "wav2vec2": {"audio": (None, "mean")},
    "hubert": {"audio": (None, "mean")},
    "whisper": {"audio": ("encoder", "mean")},
    "clip": {"text": ("text_model", None), "image": ("vision_model", None)},
    "siglip": {"text": ("text_model", None), "image": ("vision_model", None)},
}


@pytest.fixture(scope="module")
def anchors() -> AnchorSet:
    return anchor_set()


@pytest.fixture(scope="module")
def decoder(anchors: AnchorSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_of_bert(tmp_path_factory.mktemp("bert"), anchors)


def wrapped(model_type: str, modality: str, anchors: AnchorSet, **settings: Any) -> RelativeModel:
    """A tiny model of a type made relative, with the type's own processor."""
    model = tiny_model(model_type)
    processor = next(processors_for(model_type, modality, model.config))
    return RelativeModel.from_encoder(model, anchors.view(modality), processor, **settings).eval()


@pytest.mark.parametrize("model_type", CHOICE)
def test_a_model_type_becomes_an_encoder_that_saves_loads_and_stitches(
    model_type: str, anchors: AnchorSet, decoder: Path
) -> None:
    rows: dict[str, Row] = {row.modality: row for row in probe(model_type, anchors, decoder)}
    for modality, (tower, pooling) in CHOICE[model_type].items():
        row = rows[modality]
        assert row.works, f"{row.cause}: {row.detail}"
        assert row.tower == tower
        assert pooling is None or row.pooling == pooling
        assert row.width and row.width > 0


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "qwen3"])
def test_the_last_token_is_the_same_with_padding_on_either_side(model_type: str, anchors: AnchorSet) -> None:
    model = tiny_model(model_type)
    samples = ["a", "a longer text of several words", "two words"]
    found = {}
    for side in ("left", "right"):
        reader = tokenizer()
        reader.padding_side = side
        encoder = RelativeModel.from_encoder(model, anchors.view("text"), reader)
        with torch.no_grad():
            found[side] = encoder.eval()(**reader(samples, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(found["left"], found["right"], atol=1e-5, rtol=1e-4)


# -- pooling


@pytest.mark.parametrize(
    ("model_type", "modality", "pooling"),
    [
        ("bert", "text", "cls"),
        ("bert", "text", "mean"),
        ("bert", "text", "last"),
        ("bert", "text", "pooler"),
        ("resnet", "image", "spatial_mean"),
        ("resnet", "image", "pooler"),
    ],
)
def test_each_pooling_can_be_set_on_an_encoder_that_it_fits(
    model_type: str, modality: str, pooling: str, anchors: AnchorSet, tmp_path: Path
) -> None:
    encoder = wrapped(model_type, modality, anchors, pooling=pooling)
    assert encoder.config.pooling == pooling
    samples = MAKERS[modality](3, seed=1)
    encoder.save_pretrained(tmp_path)
    # Copied, since convolutions differ in the last bit with where in memory the file's weights lie.
    loaded = copy.deepcopy(AutoModel.from_pretrained(tmp_path))
    assert torch.equal(loaded.encode(samples), encoder.encode(samples))


@pytest.mark.parametrize(
    ("model_type", "modality", "pooling", "fitting"),
    [
        ("bert", "text", "spatial_mean", "Choose cls, mean, last or pooler"),
        ("resnet", "image", "cls", "Choose spatial_mean or pooler"),
        ("t5", "text", "pooler", "and this one has none. Choose one of cls, mean, last"),
    ],
)
def test_a_pooling_that_does_not_fit_is_refused_and_the_fitting_ones_named(
    model_type: str, modality: str, pooling: str, fitting: str, anchors: AnchorSet
) -> None:
    with pytest.raises(ConfigurationError, match=fitting):
        wrapped(model_type, modality, anchors, pooling=pooling)


def test_the_width_is_measured_where_no_configuration_says_it(anchors: AnchorSet) -> None:
    encoder = wrapped("resnet", "image", anchors)
    assert getattr(encoder.backbone.config, "hidden_size", None) is None
    assert encoder.config.embedding_size == encoder.backbone.config.hidden_sizes[-1]


def test_siglip_pools_an_image_with_its_own_attention_head(anchors: AnchorSet) -> None:
    model = tiny_model("siglip")
    processor = next(processors_for("siglip", "image", model.config))
    encoder = RelativeModel.from_encoder(model, anchors.view("image"), processor).eval()
    samples = MAKERS["image"](3, seed=1)
    with torch.no_grad():
        expected = model.vision_model(**processor(images=samples, return_tensors="pt")).pooler_output
    torch.testing.assert_close(encoder.encode(samples), expected)


def test_the_class_token_is_taken_and_no_register(anchors: AnchorSet) -> None:
    encoder = wrapped("dinov2_with_registers", "image", anchors)
    assert encoder.config.pooling == "cls"
    samples = MAKERS["image"](2, seed=1)
    with torch.no_grad():
        output = encoder.backbone(**encoder.processor(images=samples, return_tensors="pt"))
    torch.testing.assert_close(encoder.encode(samples), output.last_hidden_state[:, 0])


# -- padding and length


@pytest.mark.parametrize(
    ("model_type", "modality", "bears"),
    [
        ("bert", "text", True),
        ("gpt2", "text", True),
        ("modernbert", "text", True),
        ("convbert", "text", False),  # convolutions reach into the padding
        ("fnet", "text", False),  # so does a Fourier transform
        ("wav2vec2", "audio", False),  # a group norm over time
        ("parakeet_encoder", "audio", True),
    ],
)
def test_whether_padding_changes_embeddings_is_measured(
    model_type: str, modality: str, bears: bool, anchors: AnchorSet
) -> None:
    encoder = wrapped(model_type, modality, anchors)
    assert encoder.config.padding is bears
    samples = MAKERS[modality](5, seed=1)
    alone = torch.cat([encoder.encode([sample]) for sample in samples])
    torch.testing.assert_close(encoder.encode(samples), alone, atol=1e-4, rtol=1e-3)


def test_wav2vec2_with_layer_norm_and_a_mask_bears_padding(anchors: AnchorSet) -> None:
    config = tiny_config("wav2vec2")
    config.feat_extract_norm = "layer"
    config.conv_bias = True
    reader = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    encoder = RelativeModel.from_encoder(Wav2Vec2Model(config), anchors.view("audio"), reader).eval()
    assert encoder.config.padding
    samples = MAKERS["audio"](4, seed=1)
    alone = torch.cat([encoder.encode([sample]) for sample in samples])
    torch.testing.assert_close(encoder.encode(samples), alone, atol=1e-4, rtol=1e-3)


def test_a_tokenizer_without_a_mask_pads_to_the_one_length_of_its_encoder(anchors: AnchorSet) -> None:
    reader = tokenizer()
    reader.model_input_names = ["input_ids"]
    encoder = RelativeModel.from_encoder(tiny_model("siglip"), anchors.view("text"), reader, max_length=20).eval()
    samples = MAKERS["text"](5, seed=1)
    assert {inputs["input_ids"].shape[1] for _, inputs in batches(samples, reader, 2, 20)} == {20}
    alone = torch.cat([encoder.encode([sample]) for sample in samples])
    torch.testing.assert_close(encoder.encode(samples), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "mpnet", "deberta-v2", "modernbert", "gpt2"])
def test_a_text_longer_than_the_encoder_bears_is_truncated(model_type: str, anchors: AnchorSet) -> None:
    reader = tokenizer()
    reader.model_max_length = int(1e30)
    encoder = RelativeModel.from_encoder(tiny_model(model_type), anchors.view("text"), reader)
    assert 100 < encoder.config.max_length <= 128  # RoBERTa counts positions from behind the padding's
    assert encoder.encode(["word1 " * 500]).isfinite().all()


def test_images_of_unlike_size_in_one_row_of_patches_are_told_apart(anchors: AnchorSet) -> None:
    encoder = wrapped("qwen2_vl", "image", anchors)
    assert encoder.config.tower == "visual"
    sizes = [(56, 56), (112, 56), (56, 168)]
    samples = [image.resize(size) for image, size in zip(MAKERS["image"](3, seed=1), sizes, strict=True)]
    alone = torch.cat([encoder.encode([sample]) for sample in samples])
    assert float((alone - alone[:1]).abs().max()) > 0
    torch.testing.assert_close(encoder.encode(samples), alone, atol=1e-4, rtol=1e-3)


# -- what is stored, what is told


def test_of_an_encoder_decoder_only_the_encoder_is_stored(anchors: AnchorSet, tmp_path: Path) -> None:
    encoder = wrapped("t5", "text", anchors)
    encoder.save_pretrained(tmp_path)
    names = load_file(tmp_path / "encoder" / "model.safetensors")
    assert names and not [name for name in names if "decoder." in name]
    assert sum(name.endswith("embed_tokens.weight") for name in names) == 1


def test_a_model_without_vectors_is_refused_by_name(anchors: AnchorSet) -> None:
    with pytest.raises(ConfigurationError, match="The encoder returns .*audio_codes.*, expected one of"):
        wrapped("encodec", "audio", anchors)


def test_timm_models_become_encoders(anchors: AnchorSet, decoder: Path) -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:  # a torchvision that is not made for this torch
        pytest.skip(f"timm is not there or does not import: it needs a torchvision made for this torch ({error})")
    (row,) = probe("timm_wrapper", anchors, decoder)
    assert row.works, f"{row.cause}: {row.detail}"


# -- across modalities

COLOURS = ((230, 30, 30), (30, 200, 30), (30, 30, 230))


def meanings(n: int, seed: int) -> tuple[list[str], list[Image.Image], torch.Tensor]:
    """Texts and images of the same meaning, one of three: a word says it, or a colour, both with noise."""
    generator = np.random.default_rng(seed)
    kinds = [i % 3 for i in range(n)]
    texts = [" ".join([f"word{kind}"] * 4 + [f"word{generator.integers(10, 30)}"]) for kind in kinds]
    pixels = [np.array(COLOURS[kind]) + generator.normal(0, 25, (48, 48, 3)) for kind in kinds]
    return texts, [Image.fromarray(p.clip(0, 255).astype(np.uint8)) for p in pixels], torch.tensor(kinds)


def trained_on_texts(anchors: AnchorSet) -> RelativeModelForSequenceClassification:
    """A BERT with random weights, and a decoder that learnt to tell the three meanings from texts."""
    model = RelativeModelForSequenceClassification.from_encoder(
        tiny_model("bert"), anchors.view("text"), tokenizer(), num_labels=3
    )
    texts, _, labels = meanings(60, seed=1)
    r_NR = model.encoder.projection(model.encoder.encode(texts))
    optimizer = torch.optim.Adam(model.decoder.parameters(), 1e-2)
    torch.manual_seed(0)
    model.decoder.train()
    for _ in range(60):
        optimizer.zero_grad()
        model.decoder(r_NR, labels).loss.backward()
        optimizer.step()
    return model.eval()


def accuracy(model: Any, samples: list[Any], labels: torch.Tensor) -> float:
    logits = model.decoder(model.encoder.projection(model.encoder.encode(samples))).logits
    return float((logits.argmax(-1) == labels).float().mean())


@pytest.mark.parametrize("model_type", ["vit", "resnet", "clip"])
def test_an_image_encoder_speaks_to_a_decoder_that_read_only_texts(model_type: str) -> None:
    texts, photos, _ = meanings(18, seed=0)
    anchors = AnchorSet(range(18), {"text": texts, "photo": photos})
    model = trained_on_texts(anchors)
    texts, photos, labels = meanings(60, seed=2)
    assert accuracy(model, texts, labels) > 0.95
    vision = tiny_model(model_type)
    processor = next(processors_for(model_type, "image", vision.config))
    stitched = stitch(vision, model, view="photo", processor=processor)
    assert isinstance(stitched, RelativeModelForImageClassification)
    assert accuracy(stitched, photos, labels) > 0.9


def test_it_is_the_anchors_that_carry_the_meaning_across() -> None:
    texts, photos, _ = meanings(18, seed=0)
    moved = AnchorSet(range(18), {"text": texts, "photo": [*photos[1:], photos[0]]})  # each text beside another colour
    model = trained_on_texts(moved)
    _, photos, labels = meanings(60, seed=2)
    vision = tiny_model("vit")
    processor = next(processors_for("vit", "image", vision.config))
    stitched = stitch(vision, model, view="photo", processor=processor)
    assert accuracy(stitched, photos, labels) < 0.1
    assert accuracy(stitched, photos, (labels + 2) % 3) > 0.9


# -- the table


def test_the_table_says_what_the_sweep_recorded_and_nine_tenths_work() -> None:
    record = json.loads((DOCS / "supported_models.json").read_text("utf-8"))
    assert (DOCS / "supported_models.md").read_text("utf-8") == render(record)
    numbers = counts(record["rows"])
    assert numbers["works"] >= 0.9 * numbers["should"] > 0
    works = {row["model_type"] for row in record["rows"] if row["works"]}
    assert works.issuperset(CHOICE)
    assert all(row["cause"] in CAUSES and row["detail"] for row in record["rows"] if not row["works"])
