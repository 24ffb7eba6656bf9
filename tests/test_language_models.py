"""Language models that read from left to right as encoders: the last token of a hidden state of any depth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification, stitch
from hf_relreps.demos.tiny import wordpiece_tokenizer
from hf_relreps.errors import SampleError
from hf_relreps.pooling import Interface


KINDS = {"animal": "cat dog bird horse", "food": "bread soup cake rice"}
TEXTS = [
    f"{'so ' * (i % 4)}{start} {thing} {'and more of it ' * (i % 3)}is good"
    for kind in KINDS.values()
    for i, (thing, start) in enumerate((thing, start) for thing in kind.split() for start in ("the", "one", "my old"))
]
LABELS = [i // 12 for i in range(24)]
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 4}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, GROUPED),
    "qwen2": (Qwen2Config, GROUPED),
    "qwen3": (Qwen3Config, GROUPED | {"head_dim": 8}),
    "gpt_neox": (GPTNeoXConfig, SIZES),
    "mistral": (MistralConfig, GROUPED | WINDOW),  # shorter than most texts
    "qwen2 with a window": (Qwen2Config, GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


PIECES = wordpiece_tokenizer(TEXTS, longest=48, vocabulary_size=60)  # lengths differ much


def tokenizer_of(side: str = "right") -> Any:
    tokenizer = copy.deepcopy(PIECES)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side  # else transformers forgets it in a save
    return tokenizer


def model_of(kind: str, seed: int = 0, **how: Any) -> Any:
    config_class, settings = CONFIGS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = config_class(vocab_size=60, max_position_embeddings=64, **settings)
        return AutoModel.from_config(config, **how).eval()


@pytest.fixture(scope="module")
def anchors():
    return AnchorSet([str(i) for i in range(0, 24, 2)], {"en": TEXTS[::2]})


def encoder_of(kind: str, anchors: AnchorSet, side: str = "right", **settings: Any) -> RelativeModel:
    return RelativeModel.from_encoder(model_of(kind), anchors, tokenizer_of(side), **settings)


@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_text_lies_where_it_lies_alone_whatever_it_is_padded_with(kind, layer, anchors):
    right, left = (encoder_of(kind, anchors, side, layer=layer) for side in ("right", "left"))
    assert right.config.pooling == left.config.pooling == "last"
    assert right.config.padding and left.config.padding, "texts of unlike length could not share a batch"
    alone = torch.cat([right.encode([text]) for text in TEXTS])
    torch.testing.assert_close(right.encode(TEXTS), alone, **CLOSE)
    torch.testing.assert_close(left.encode(TEXTS), alone, **CLOSE)
    torch.testing.assert_close(left.anchors_AD, right.anchors_AD, **CLOSE)
    ids = right.processor(TEXTS[5], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = right.backbone(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(alone[5], states[layer][0, -1], **CLOSE)


@pytest.mark.parametrize("kind", ["mistral", "qwen2 with a window"])
def test_a_window_hides_what_lies_before_it(kind):
    """Else the test above would say nothing of windows."""
    model, ids_1T = model_of(kind), torch.arange(10, 40)[None]
    other_1T = ids_1T.clone()
    other_1T[0, 0] = 50
    with torch.no_grad():
        last_D, other_D = (model(input_ids=ids).last_hidden_state[0, -1] for ids in (ids_1T, other_1T))
    whole, _ = CONFIGS[kind]
    assert torch.allclose(last_D, other_D, atol=1e-6) == (whole is MistralConfig)


@pytest.mark.parametrize("kind", CONFIGS)
def test_nothing_is_kept_for_words_that_nobody_writes(kind):
    model = model_of(kind)
    tokens = tokenizer_of()(TEXTS[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model(**tokens).past_key_values is not None
        assert model(**Interface(model).readable(tokens)).past_key_values is None


@pytest.mark.parametrize("kind", CONFIGS)
def test_half_precision_says_about_the_same(kind, anchors):
    """Tokens are equal, so what differs is rounding; the projection of both is in float32."""
    whole = encoder_of(kind, anchors)
    half = RelativeModel.from_encoder(model_of(kind).to(torch.bfloat16), anchors, tokenizer_of("left"))
    assert half.dtype == torch.bfloat16 and half.anchors_AD.dtype == torch.float32
    assert torch.cosine_similarity(whole.encode(TEXTS), half.encode(TEXTS)).min() > 0.999
    r_NR, half_NR = (one.projection(one.encode(TEXTS)) for one in (whole, half))
    assert half_NR.dtype == torch.float32
    nearest, half_nearest = (torch.cdist(r, r).topk(4, largest=False).indices for r in (r_NR, half_NR))
    shared = [len(set(a) & set(b)) for a, b in zip(nearest.tolist(), half_nearest.tolist(), strict=True)]
    assert sum(shared) > 0.8 * nearest.numel()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_probe_at_a_depth_is_saved_loaded_and_read_by_another_type(kind, anchors, tmp_path):
    encoder = encoder_of(kind, anchors, "left", layer=2)
    decoder = RelativeDecoder.fit_ridge(encoder.projection(encoder.encode(TEXTS)), LABELS, encoder)
    model = stitch(encoder, decoder)
    model.save_pretrained(tmp_path)
    loaded = RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    config = loaded.config.encoder
    assert (config.layer, config.pooling, loaded.processor.padding_side) == (2, "last", "left")
    assert type(loaded.encoder.backbone) is type(encoder.backbone)
    before, after = ([one["score"] for one in whole.classify(TEXTS)] for whole in (model, loaded))
    assert after == pytest.approx(before, abs=1e-4)
    other = next(name for name in CONFIGS if name != kind)
    stitched = stitch(model_of(other, seed=1), str(tmp_path), view="en", processor=tokenizer_of(), layer=1)
    assert (stitched.config.encoder.layer, stitched.config.encoder.pooling) == (1, "last")
    assert torch.equal(stitched.decoder(encoder.projection(encoder.encode(TEXTS))).logits.argmax(1),
                       model.decoder(encoder.projection(encoder.encode(TEXTS))).logits.argmax(1))  # fmt: skip
    assert len(stitched.classify(TEXTS)) == len(TEXTS)


def test_without_a_padding_token_the_error_says_how_to_set_one_and_any_will_do(anchors):
    tokenizer = tokenizer_of()
    expected = RelativeModel.from_encoder(model_of("llama"), anchors, tokenizer).encode(TEXTS)
    tokenizer.pad_token = None
    with pytest.raises(SampleError, match=r"has no padding token.*tokenizer\.pad_token = tokenizer\.eos_token"):
        RelativeModel.from_encoder(model_of("llama"), anchors, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token = "[SEP]"
    found = RelativeModel.from_encoder(model_of("llama"), anchors, tokenizer).encode(TEXTS)
    torch.testing.assert_close(found, expected, **CLOSE)
