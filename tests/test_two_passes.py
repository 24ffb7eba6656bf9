"""Two texts that an encoder reads one after the other, and a decoder that compares their relative representations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from training import tiny_trainer
from transformers import DataCollatorForMultipleChoice

import hf_relreps_cli
from hf_relreps import (
    AnchorCallback,
    RelativeDecoder,
    RelativeModelForPairClassification,
    RelativeModelForSequenceClassification,
    stitch,
)
from hf_relreps.decoders import PairBlocks
from hf_relreps.errors import ConfigurationError, SampleError, StitchingError
from hf_relreps.exporting import export_program
from hf_relreps.pairs import pairs_of


NAMES: dict[str, Any] = {"id2label": {0: "other", 1: "same"}, "label2id": {"other": 0, "same": 1}}


@pytest.fixture(scope="module")
def task(texts) -> tuple[list[dict[str, str]], list[int]]:
    """Pairs of texts, half of which are about the same thing; text i is about thing i // 4."""
    rng = np.random.default_rng(0)
    first, same = rng.integers(60, size=300), np.arange(300) % 2
    other = (first // 4 * 4 + 4 + rng.integers(56, size=300)) % 60
    second = np.where(same, first // 4 * 4 + rng.integers(4, size=300), other)
    return pairs_of([texts["en"][i] for i in first], [texts["en"][i] for i in second]), same.tolist()


def represented(encoder: Any, pairs: list[dict[str, str]]) -> torch.Tensor:
    """(N, 2, R)."""
    both = [encoder.projection(encoder.encode([pair[name] for pair in pairs])) for name in ("text", "text_pair")]
    return torch.stack(both, dim=1)


@pytest.fixture(scope="module")
def fitted(make_model, task) -> RelativeDecoder:
    pairs, same = task
    encoder = make_model(1).encoder
    return RelativeDecoder.fit_ridge(represented(encoder, pairs), same, encoder, **NAMES)


def accuracy(model: RelativeModelForPairClassification, task: Any) -> float:
    answers = model.classify(task[0])
    return float(np.mean([NAMES["label2id"][one["label"]] for one in answers] == np.array(task[1])))


def test_a_decoder_reads_both_their_difference_and_their_product():
    blocks = PairBlocks()
    r_12R = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])
    assert blocks(r_12R).tolist() == [[1, 2, 3, -1, 2, 3, 3, -2]]
    r_N2R = torch.randn(500, 2, 8) * torch.tensor([1.0, 30.0]).reshape(1, 2, 1)
    blocks.adapt(r_N2R)
    for block in blocks(r_N2R).split(8, dim=-1):
        assert block.var(0).mean() == pytest.approx(1, abs=1e-4)
    swapped = blocks(r_N2R.flip(1)).split(8, dim=-1)
    for place in (2, 3):  # neither knows which came first
        torch.testing.assert_close(swapped[place], blocks(r_N2R).split(8, dim=-1)[place])


def test_a_decoder_of_pairs_is_fitted_stitched_and_kept(make_model, fitted, task, tmp_path, new_repo_id):
    assert fitted.config.decoder_type == "pair"
    own = stitch(make_model(1).encoder, fitted)
    assert isinstance(own, RelativeModelForPairClassification)
    assert accuracy(own, task) > 0.8
    stitched = stitch(make_model(2).encoder, fitted)
    assert accuracy(stitched, task) > 0.6
    stitched.save_pretrained(tmp_path)
    loaded = RelativeModelForPairClassification.from_pretrained(tmp_path)
    assert [one["score"] for one in loaded.classify(task[0][:9])] == pytest.approx(
        [one["score"] for one in stitched.classify(task[0][:9])], abs=1e-6
    )
    assert torch.equal(loaded.decoder.norm.scales, fitted.norm.scales)
    again = stitch(make_model(3).encoder, RelativeDecoder.from_pretrained(tmp_path))
    assert isinstance(again, RelativeModelForPairClassification)
    name = new_repo_id()
    stitched.push_to_hub(name)
    code = stitched.make_card(name).text.split("```python\n")[1].split("```")[0]
    exec(code, {})
    with pytest.raises(ConfigurationError, match="decoder_type='pair' does not exist for RelativeModelForSequence"):
        RelativeModelForSequenceClassification.from_pretrained(tmp_path)


def test_what_classify_and_forward_say_is_the_same(make_model, fitted, task):
    model = stitch(make_model(1).encoder, fitted)
    pairs = task[0][:6]
    rows = [dict(model.processor([pair["text"], pair["text_pair"]])) | {"label": 1} for pair in pairs]
    batch = DataCollatorForMultipleChoice(model.processor)(rows)
    with torch.no_grad():
        output = model(**batch)
    assert output.relative_embeds.shape == (6, 2, 20) and output.loss > 0
    scores = output.logits.softmax(-1).max(-1).values.tolist()
    assert [one["score"] for one in model.classify(pairs)] == pytest.approx(scores, abs=1e-5)


def test_the_trainer_trains_it_from_the_closed_form(make_bert, anchors, tokenizer, task, tmp_path):
    torch.manual_seed(0)
    model = RelativeModelForPairClassification.from_encoder(make_bert(4), anchors.view("en"), tokenizer, **NAMES)
    rows = Dataset.from_list(
        [{"pair": list(pair.values()), "label": label} for pair, label in zip(*task, strict=True)]
    )
    data = rows.map(lambda row: tokenizer(row["pair"], truncation=True), remove_columns="pair")
    trainer = tiny_trainer(model, tokenizer, data, tmp_path, AnchorCallback(), max_steps=60, learning_rate=1e-3)
    trainer.data_collator = DataCollatorForMultipleChoice(tokenizer)
    trainer.train()
    assert not model.decoder.is_new and model.encoder.check_anchors() < 1e-2
    assert accuracy(model.eval(), task) > 0.85


def test_what_does_not_fit_is_refused(make_model, fitted, task):
    model = stitch(make_model(1).encoder, fitted)
    with pytest.raises(StitchingError, match=r"compares two samples and reads .* \(B, 2, 20\), but found \(3, 20\)"):
        fitted(torch.rand(3, 20))
    with pytest.raises(SampleError, match=r"The inputs have shape \(1, 3\), expected both texts of each sample"):
        model(**model.processor(["small cat here"], return_tensors="pt"))
    with pytest.raises(SampleError, match=r"samples\[0\] is 'one text', expected two texts"):
        model.classify(["one text"])
    with pytest.raises(SampleError, match=r"samples\[0\] is a mapping with text, expected two texts"):
        model.classify([{"text": "one"}])
    with pytest.raises(ConfigurationError, match="reads two texts one after the other"):
        export_program(model)


def test_the_command_line_compares_two_texts(make_model, fitted, task, tmp_path):
    from typer.testing import CliRunner

    stitch(make_model(1).encoder, fitted).save_pretrained(tmp_path / "own")
    make_model(2).save_pretrained(tmp_path / "other")
    given = ["stitch", str(tmp_path / "other"), str(tmp_path / "own"), "--text", task[0][0]["text"]]
    told = CliRunner().invoke(hf_relreps_cli.app, [*given, "--text-pair", task[0][0]["text_pair"], "--json"])
    answer = json.loads(told.stdout)["answers"][0]
    expected = stitch(make_model(2).encoder, fitted).classify(task[0][:1])[0]
    assert answer["sample"] == task[0][0] and answer["score"] == pytest.approx(expected["score"], abs=1e-5)
    error = CliRunner().invoke(hf_relreps_cli.app, given).exception
    assert isinstance(error, SampleError) and "Give two texts: --text and --text-pair" in str(error)
