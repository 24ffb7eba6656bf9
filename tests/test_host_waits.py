"""A pass makes the host wait for an accelerator no more often than the wrapped model's own: it reads no values.

The meta device takes the accelerator's place. It holds no values, so whatever reads one on the host, or copies one
there, is an error. Llama with ``eager`` attention reads none by itself; BERT asks whether there is padding at all.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch import nn
from transformers import BatchEncoding, LlamaConfig, LlamaModel

from hf_relreps import (
    AnchorSet,
    RelativeConfig,
    RelativeModel,
    RelativeModelForImageReconstruction,
    RelativeModelForPairClassification,
    RelativeModelForSequenceClassification,
    RelativeModelForTokenClassification,
    modeling,
)
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.pairs import pairs_of
from hf_relreps.projection import Frame, RelativeProjection


META = torch.device("meta")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def on_device(monkeypatch):
    """A function that moves a model to the meta device, where its anchors stay as exact as they were."""
    monkeypatch.setattr(modeling, "refuse_empty", lambda *args: None)
    autocast = torch.autocast  # which knows no meta device
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **how: nullcontext() if kind == "meta" else autocast(kind, **how)
    )

    def move(model: nn.Module) -> nn.Module:
        for module in model.modules():
            frame = module.frame if isinstance(module, RelativeProjection) else None
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to("meta")
            if frame is not None:
                module._frame = Frame(*(tree(part) for part in frame))
                module._framed_AD = module.anchors_AD
                module._framed_as = (module.anchors_AD._version, module.space)
        return model

    return move


def tree(part: Any) -> Any:
    return tuple(map(tree, part)) if isinstance(part, tuple) else None if part is None else part.to("meta")


@pytest.fixture(scope="module")
def make_llama(tokenizer):
    def make() -> LlamaModel:
        torch.manual_seed(0)
        more = {"vocab_size": len(tokenizer), "pad_token_id": 0, "attn_implementation": "eager"}
        return LlamaModel(LlamaConfig(**SIZES, **more)).eval()

    return make


@pytest.fixture(scope="module")
def make_classifier(make_llama, anchors, tokenizer):
    def make(pooling: str = "last", **settings: Any) -> RelativeModelForSequenceClassification:
        view = anchors.view("en")
        return RelativeModelForSequenceClassification.from_encoder(
            make_llama(), view, tokenizer, num_labels=3, pooling=pooling, **settings
        ).eval()

    return make


def inputs_of(tokenizer: Any, *texts: list[str]) -> BatchEncoding:
    return tokenizer(*texts, return_tensors="pt", padding=True).to("meta")


def labels_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device="meta")


def step(model: nn.Module, inputs: Any, **more: Any) -> list[torch.device]:
    """Where a pass without gradients, and the loss and the gradients of one in training, are computed."""
    with torch.no_grad():
        found = model.eval()(**inputs).to_tuple()
    for part in model.modules():  # not `train()`, which refreshes anchors when it is left
        part.training = True
    loss = model(**inputs, **more).loss
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert gradients
    return [tensor.device for tensor in (*(one for one in found if torch.is_tensor(one)), loss, *gradients)]


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("config", [None, RelativeConfig.paper()])
def test_a_classifier_reads_no_values(pooling, config, on_device, make_classifier, tokenizer, texts):
    model = on_device(make_classifier(pooling, **({} if config is None else {"config": config})))
    inputs = inputs_of(tokenizer, [*texts["en"][:3], "cat"])
    model.decoder._saw_labels = True  # as after the first batch
    assert set(step(model, inputs, labels=labels_of((4,)))) == {META}


def test_a_tagger_reads_no_values(on_device, make_llama, texts, tokenizer):
    sentences = [text.split() for text in texts["en"]]
    anchors = AnchorSet.from_tokens({"en": sentences}, 20)
    model = RelativeModelForTokenClassification.from_encoder(make_llama(), anchors.view(), tokenizer, num_labels=4)
    inputs = inputs_of(tokenizer, [*texts["en"][:3], "cat"])
    on_device(model.eval()).decoder._saw_labels = True
    labels = labels_of(tuple(inputs["input_ids"].shape))
    assert set(step(model, inputs, labels=labels)) == {META}


def test_pairs_are_looked_at_once(on_device, make_llama, texts, tokenizer):
    joining = copy.deepcopy(tokenizer)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    joining.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
    )
    anchors = AnchorSet([str(i) for i in range(20)], {"en": pairs_of(texts["en"][:20], texts["fr"][:20])})
    encoder = RelativeModel.from_encoder(make_llama(), anchors.view(), joining).eval()
    assert encoder.config.pair_mark is not None
    inputs = inputs_of(joining, texts["en"][:3], texts["fr"][:3])
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
            on_device(encoder)(**inputs)
        encoder._saw_pairs = True  # as after the first batch
        encoder(**inputs)


def test_a_pair_of_passes_reads_no_values(on_device, make_llama, anchors, tokenizer, texts):
    model = RelativeModelForPairClassification.from_encoder(
        make_llama(), anchors.view("en"), tokenizer, num_labels=2
    ).eval()
    on_device(model).decoder._saw_labels = True
    inputs = inputs_of(tokenizer, [*texts["en"][:3], "cat"])
    both = {name: torch.stack([tensor, tensor], 1) for name, tensor in inputs.items()}
    assert set(step(model, both, labels=labels_of((4,)))) == {META}


def test_pixels_to_draw_are_looked_at_once(on_device, images):
    anchors = AnchorSet([str(i) for i in range(8)], {"image": images})
    encoder = ConvEncoder(ConvEncoderConfig(image_size=16, widths=[8, 16], num_channels=3))
    model = RelativeModelForImageReconstruction.from_encoder(encoder, anchors.view(), image_processor(16)).eval()
    inputs = {"pixel_values": torch.rand(4, 3, 16, 16, device="meta")}
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        on_device(model)(**inputs)
    model.decoder._saw_pixels = True
    assert set(step(model, inputs)) == {META}


def test_the_first_batch_of_labels_is_looked_at(on_device, make_classifier, tokenizer, texts):
    model = on_device(make_classifier())
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        model(**inputs_of(tokenizer, texts["en"][:2]), labels=labels_of((2,)))
