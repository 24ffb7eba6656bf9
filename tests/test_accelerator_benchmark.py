"""`python -m benchmarks.accelerator` with small sizes: it runs on a CPU, and a forward pass makes no host wait."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import accelerator


SIZES = accelerator.sizes(is_small=True)


def test_every_item_is_measured_and_told(tmp_path, capsys):
    found = accelerator.main(["--quick", "--output", str(tmp_path / "found.json")])
    assert found["late"] == [] and found["small"]
    names = " ".join(row["what"] for row in found["rows"])
    for what in ("relative, bert", "stitched, llama", "the Trainer", "refresh of 40", "TF32", "bf16", "torch.compile"):
        assert what in names
    ratios = [row["ratio"] for row in found["rows"] if "ratio" in row]
    assert len(ratios) == 2 * 2 * 2 + 1 + 2 + 6 + 1 and all(0 < ratio < 1000 for ratio in ratios)
    assert json.loads((tmp_path / "found.json").read_text())["device"] == found["device"]
    printed = capsys.readouterr().out
    assert "| relative, bert, 4 x 64 tokens |" in printed


def test_what_would_begin_too_late_is_left_out_and_named():
    rows, late = accelerator.measure(SIZES, minutes=0)
    assert rows == [] and late == list(accelerator.ITEMS)


@pytest.mark.parametrize("name", SIZES.encoders)
def test_a_forward_pass_reads_no_more_values_on_the_host_than_the_absolute_one(name):
    model = accelerator.absolute(SIZES.encoders[name], torch.bfloat16)
    inputs = accelerator.inputs_of(2, SIZES.tokens)
    ours = accelerator.count_waits(accelerator.relative(model, SIZES.anchors, SIZES.tokens), inputs)
    assert ours <= accelerator.count_waits(model, inputs)


def test_the_count_notices_a_value_that_is_read_on_the_host():
    def forward(input_ids, attention_mask):
        return float(input_ids.sum()) + attention_mask.sum().item()

    assert accelerator.count_waits(forward, accelerator.inputs_of(2, SIZES.tokens)) == 2
