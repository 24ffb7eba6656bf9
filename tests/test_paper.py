"""The paper's tables, measured again: their quick runs have the paper's shape, and the page says what was measured."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.assets.word_vectors import counted, load_spacy, shared_words
from benchmarks.paper import __main__ as command
from benchmarks.paper import ablations, report, table1, table2, table3
from benchmarks.paper.options import Options
from benchmarks.paper.tables import cell, spread
from hf_relreps import RelativeConfig, RelativeDecoder, RelativeDecoderConfig


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    return Options(seeds=2, quick=True, data=None, assets=None, cache=tmp_path_factory.mktemp("paper"))


def test_table_1_relative_word_spaces_agree_and_absolute_ones_do_not(options: Options) -> None:
    results = table1.run(options)
    rows = {(row["anchors"], row["projection"]): row for row in results["rows"] if row["source"] == "half 2"}
    absolute, uniform = rows[None, "absolute"], rows["uniform", "cosine"]
    for metric in table1.METRICS:
        assert uniform[metric]["mean"] > 3 * absolute[metric]["mean"]
    assert uniform["mrr"]["mean"] > 0.3 > 0.05 > absolute["mrr"]["mean"]
    assert absolute["cka"] > 0.2  # they are alike, up to a rotation
    assert {row["anchors"] for row in results["rows"]} == {None, *table1.STRATEGIES}
    assert "MRR 0.00" not in table1.headline(results)[1]
    assert "| uniform, cosine | " in table1.render(results)


def test_table_3_relative_autoencoders_stitch_and_absolute_ones_do_not(options: Options) -> None:
    results = table3.run(options)
    rows = {row["way"]: row for row in results["rows"]}
    relative, absolute = rows["cosine"], rows["absolute"]
    assert relative["stitched"]["mean"] < 0.5 * absolute["stitched"]["mean"]
    assert relative["stitched"]["mean"] < 0.7 * relative["mean_image"] < absolute["stitched"]["mean"]
    assert absolute["own"]["mean"] < 0.5 * absolute["mean_image"]
    assert (options.pictures / "table3-digits.png").stat().st_size > 1000
    assert "Digits, AE" in table3.render(results)


def test_heads_of_the_paper_look_at_the_whole_batch_and_ours_do_not() -> None:
    r_BR = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    head = ablations.PaperHead(20, 5).eval()
    ours = RelativeDecoder(RelativeDecoderConfig(num_anchors=20, num_labels=5)).eval()
    with torch.inference_mode():
        assert not torch.allclose(head(r_BR)[:32], head(r_BR[:32]), atol=1e-3)
        assert torch.allclose(ours(r_BR).logits[:32], ours(r_BR[:32]).logits, atol=1e-5)
        with pytest.raises(ValueError, match="spatial element"):
            head(r_BR[:1])


def test_an_image_net_encodes_anchors_without_gradient_and_apart_from_the_batch() -> None:
    net = table2.ImageNet(8, 3, RelativeConfig.paper(num_anchors=4).space).train()
    other = copy.deepcopy(net)
    x_BF, anchors_AF = torch.randn(16, 8), torch.randn(4, 8, requires_grad=True)
    net(x_BF, anchors_AF).sum().backward()
    other(x_BF, 100 * anchors_AF)
    assert anchors_AF.grad is None
    assert net.projector[0].weight.grad.abs().sum() > 0
    assert torch.equal(net.projector[1].running_mean, other.projector[1].running_mean)
    assert net.projector.training


# -- the runner


def test_a_run_is_recorded_as_anyone_would_type_it(tmp_path: Path) -> None:
    options = Options(seeds=4, quick=False, data=tmp_path, assets=tmp_path, cache=tmp_path / "cache")
    assert command._command("table1", options) == (
        "python -m benchmarks.paper table1 --seeds 4 --data DATA --assets ASSETS"
    )


def test_missing_folders_and_unknown_tables_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"Found no folder .*nowhere.*given as --data"):
        Options(seeds=1, quick=True, data=tmp_path / "nowhere", assets=None, cache=tmp_path)
    with pytest.raises(SystemExit):
        command.main(["table9"])
    assert "found table9" in capsys.readouterr().err


def test_the_page_says_what_the_committed_figures_say(tmp_path: Path) -> None:
    report.write(page=tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text("utf-8") == report.PAGE.read_text("utf-8")


@pytest.mark.parametrize("file", sorted(report.RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_committed_figures_are_of_whole_runs_and_name_no_folder(file: Path) -> None:
    results = json.loads(file.read_text("utf-8"))
    assert results["rows"]
    assert "--quick" not in results["run"]["command"]
    assert "/" not in results["run"]["command"]
    assert results["run"]["machine"]["versions"].keys() >= {"torch", "transformers"}


def test_a_spread_is_a_mean_with_the_deviation_of_a_sample() -> None:
    assert spread([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
    assert cell(spread([0.5, 0.7]), 1, 100) == "60.0 ± 14.1"
    assert cell(spread([0.5])) == "0.500"
    assert cell(None) == "-"


# -- word vectors


def test_vectors_of_spacy_are_found_by_the_hash_of_their_word(tmp_path: Path) -> None:
    folder = tmp_path / "en_package" / "vocab"
    folder.mkdir(parents=True)
    with (folder / "vectors").open("wb") as file:
        np.save(file, np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    # The keys that spaCy's documentation gives for "coffee" and "apple"; a row of -1 has no vector.
    keys = {3197928453018144401: 2, 8566208034543834098: 1, 5: -1}
    packed = bytes([0x80 | len(keys)])
    for key, row in keys.items():
        packed += b"\xcf" + struct.pack(">Q", key) + struct.pack("b", row)
    (folder / "key2row").write_bytes(packed)
    space = load_spacy(tmp_path, ["tea", "coffee", "apple"], "en_package")
    assert space.words == ["coffee", "apple"]
    assert space.of(["apple", "coffee"]).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(FileNotFoundError, match="pip install --no-deps --target"):
        load_spacy(tmp_path, ["tea"], "other_package")


def test_counted_vectors_bring_words_of_like_neighbours_together() -> None:
    texts = ["the red apple is sweet", "the red cherry is sweet", "a fast engine runs loud", "a fast motor runs loud"]
    space = counted("fruits and machines", texts * 5, width=4)
    x_WD = space.of(["apple", "cherry", "engine", "motor"])
    x_WD /= np.linalg.norm(x_WD, axis=1, keepdims=True)
    likeness_WW = x_WD @ x_WD.T
    assert likeness_WW[0, 1] > 0.9 > 0.3 > likeness_WW[0, 2]
    assert likeness_WW[2, 3] > 0.9
    other = counted("the same", texts * 5, width=4)
    assert set(shared_words(space, other, skip=0)) >= {"apple", "sweet"}
    assert all(len(word) > 3 for word in shared_words(space, other, skip=0))
