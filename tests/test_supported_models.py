"""Any AutoModel becomes an encoder: a fixed choice over all kinds; the whole sweep is `benchmarks/supported_models`.

For each type the probe builds it tiny, makes it relative, encodes twice, alone and in a batch, saves, loads it through
`AutoModel` with equal embeddings, and stitches it to a decoder that was made with BERT.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.supported_models.inputs import anchor_set, tokenizer
from benchmarks.supported_models.probe import Row, probe, tiny_model
from benchmarks.supported_models.sweep import decoder_of_bert
from hf_relreps import AnchorSet, RelativeModel


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
