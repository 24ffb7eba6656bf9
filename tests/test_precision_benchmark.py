"""`python -m benchmarks.precision` with a tiny encoder: a reload in half precision changes nothing by its anchors."""

from __future__ import annotations

import pytest
import torch

from benchmarks import precision
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, word_tokenizer


def test_a_change_is_told_in_standard_deviations_and_in_answers():
    reference_NC = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    moved, differ = precision.change(reference_NC * torch.tensor([[1.0], [-1.0]]), reference_NC)
    assert moved == pytest.approx(float(torch.tensor(2.0).sqrt() / reference_NC.std()))
    assert differ == 0.5
    assert precision.change(reference_NC, reference_NC) == (0.0, 0.0)


def test_anchors_of_a_reload_change_no_logit_and_rounded_ones_would(monkeypatch):
    monkeypatch.setattr(precision, "FITTED", 120)
    monkeypatch.setattr(precision, "ANCHORS", 20)
    train = load_debian_descriptions("train")
    texts, labels_N = train["en"][:160], torch.tensor(train["label"][:120])
    tokenizer = word_tokenizer(texts)
    torch.manual_seed(0)
    bert = small_bert(len(tokenizer), longest=64, width=32).eval()
    features = {
        dtype: precision.encode(bert, tokenizer, dtype, texts[120:], texts[:120])
        for dtype in (torch.float32, *precision.HALVES)
    }
    found = precision.of_seed(bert, tokenizer, features, labels_N, seed=0)
    for dtype in precision.HALVES:
        changes = {name: moved for name, (moved, _) in found[dtype].items()}
        assert changes["anchors as stored"] == 0 < changes["anchors rounded"]
        assert 0 < changes["encoder"] < 1 and 0 < changes["reload"] < 1
