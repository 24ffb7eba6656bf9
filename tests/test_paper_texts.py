"""The quick version of table 4 on the bundled descriptions: the shape that the paper found must be there."""

import pytest

from benchmarks.paper import table4
from benchmarks.paper.frozen import ABSOLUTE, PROJECTIONS, trained
from benchmarks.paper.options import Options
from hf_relreps import RelativeDecoderConfig


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return table4.run(Options(seeds=1, quick=True, data=None, assets=None, cache=tmp_path_factory.mktemp("cache")))


def figures(results, anchors, kind):
    return next(row for row in results["rows"] if (row["anchors"], row["kind"]) == (anchors, kind))


@pytest.mark.slow
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_decoder_reads_the_encoder_of_another_language_by_relative_representations_alone(results, projection):
    absolute = figures(results, "", ABSOLUTE)
    relative = figures(results, table4.IN_DOMAIN, projection)
    assert relative["stitched"]["mean"] > absolute["stitched"]["mean"] + 0.2
    assert relative["stitched"]["mean"] > 2 * relative["chance"]


@pytest.mark.slow
def test_absolute_decoders_work_on_their_own_encoder_and_are_at_chance_on_another(results):
    absolute = figures(results, "", ABSOLUTE)
    assert absolute["own"]["mean"] > 0.5
    assert absolute["stitched"]["mean"] < absolute["chance"] + 0.1


@pytest.mark.slow
def test_models_that_are_trained_with_their_decoders_stitch_as_well(results):
    together, control = (figures(results, table4.END_TO_END, kind) for kind in ("default", ABSOLUTE))
    assert together["stitched"]["mean"] > control["stitched"]["mean"] + 0.2


@pytest.mark.slow
def test_the_section_of_the_page_shows_ours_beside_the_papers(results):
    text = table4.render(results)
    assert "| the paper's fr | 54.41 | 78.49 | 70.41 |" in text
    assert f"{100 * figures(results, table4.IN_DOMAIN, 'default')['worst']:.1f}" in text
    assert table4.headline(results)[-1] == "yes"


def test_a_decoder_of_the_tables_learns_what_its_samples_tell():
    import torch

    draw = torch.Generator().manual_seed(0)
    labels_N = torch.arange(400) % 2
    r_NR = torch.randn(400, 8, generator=draw)
    r_NR[:, 0] += 6 * labels_N
    decoder = trained(r_NR, labels_N, RelativeDecoderConfig(num_anchors=8, num_labels=2), epochs=30, seed=1)
    answers_N = decoder(relative_embeds=r_NR).logits.argmax(-1)
    assert (answers_N == labels_N).float().mean() > 0.95
