"""Pictures: what they show is checked on the figure itself; each is opaque, or a dark page would swallow it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.image import imread

from hf_relreps import AnchorCallback
from hf_relreps.errors import EvaluationError, MissingExtraError
from hf_relreps.evaluation import (
    anchor_coverage,
    plot_anchor_coverage,
    plot_anchor_drift,
    plot_latent_spaces,
    plot_reconstructions,
)


N = 60
LABELS = [i % 3 for i in range(N)]
NAMES = ["cat", "dog", "bird"]
DRIFT = [(0, 0.0), (5, 0.3), (10, 0.1)]


def clouds(width: int = 8, seed: int = 0) -> torch.Tensor:
    """Three clouds, their centres far apart."""
    generator = torch.Generator().manual_seed(seed)
    centres_CD = 5 * torch.eye(3, width)
    return centres_CD[LABELS] + torch.randn(N, width, generator=generator)


def turned(x_ND: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """The same cloud, rotated."""
    generator = torch.Generator().manual_seed(seed)
    return x_ND @ torch.linalg.qr(torch.randn(x_ND.shape[1], x_ND.shape[1], generator=generator)).Q


def images(seed: int = 0, channels: int = 1) -> torch.Tensor:
    return torch.rand(10, channels, 4, 4, generator=torch.Generator().manual_seed(seed))


PICTURES: dict[str, Callable[..., Any]] = {
    "latent spaces": lambda **path: plot_latent_spaces({"a": clouds()}, {"a": clouds()}, labels=LABELS, **path),
    "anchor coverage": lambda **path: plot_anchor_coverage(anchor_coverage(clouds(), clouds()[:5]), **path),
    "anchor drift": lambda **path: plot_anchor_drift(DRIFT, **path),
    "reconstructions": lambda **path: plot_reconstructions({"original": images(), "own": images(1)}, **path),
}


def points(ax: Any) -> np.ndarray:
    return ax.collections[0].get_offsets().data


# -- what all of them share


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_a_picture_is_saved_opaque_given_back_and_left_to_the_notebook(draw, tmp_path):
    figure = draw(path=tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")
    assert (pixels[..., 3] == 1).all() and pixels.std() > 0.05
    assert figure.axes[0].get_title()
    assert not plt.get_fignums()


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_without_matplotlib_the_extra_is_named(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtraError, match=r'pip install "hf_relreps\[plots\]"'):
        draw()


def test_drawing_leaves_the_style_of_others_alone():
    before = dict(plt.rcParams)
    PICTURES["latent spaces"]()
    assert dict(plt.rcParams) == before


# -- latent spaces


def test_a_rotated_space_looks_different_absolute_and_the_same_relative():
    x_ND = clouds()
    unit_ND, turned_ND = (torch.nn.functional.normalize(x, dim=-1) for x in (x_ND, turned(x_ND)))
    relative = {"a": unit_ND @ unit_ND[:20].T, "b": turned_ND @ turned_ND[:20].T}
    figure = plot_latent_spaces({"a": x_ND, "b": turned(x_ND)}, relative, labels=LABELS, class_names=NAMES)
    above_a, above_b, below_a, below_b = map(points, figure.axes)
    np.testing.assert_allclose(below_a, below_b, atol=1e-4)
    assert np.abs(above_a - above_b).max() > 1
    assert [ax.get_title() for ax in figure.axes] == ["Absolute: a", "Absolute: b", "Relative: a", "Relative: b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == NAMES


def test_own_axes_undo_a_rotation_and_shared_ones_do_not():
    spaces = {"a": clouds(), "b": turned(clouds())}
    shared, own = (plot_latent_spaces(spaces, shared_axes=shared) for shared in (True, False))
    assert not np.allclose(*map(np.abs, map(points, shared.axes)), atol=0.1)
    np.testing.assert_allclose(*map(np.abs, map(points, own.axes)), atol=1e-4)
    assert own.axes[1].get_xlabel().startswith("its own")


def test_a_space_of_another_width_is_drawn_along_its_own_directions_and_says_so():
    figure = plot_latent_spaces({"a": clouds(), "b": clouds(12), "c": turned(clouds())})
    said = [ax.get_xlabel().split(" (")[0] for ax in figure.axes]
    assert said == ["main directions of a", "its own main directions", "main directions of a"]


def test_without_labels_a_sample_keeps_its_colour_in_all_panels():
    figure = plot_latent_spaces({"a": clouds(), "b": clouds(seed=1)})
    first, second = (ax.collections[0].get_facecolors() for ax in figure.axes)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first, axis=0)) > 3 and not figure.legends


def test_one_outlier_does_not_shrink_the_others():
    x_ND = torch.cat([clouds(), clouds(), clouds()])
    x_ND[0] = 1000
    ax = plot_latent_spaces({"a": x_ND}).axes[0]
    assert np.ptp(ax.get_xlim()) < 200


def test_many_classes_each_have_a_colour():
    figure = plot_latent_spaces({"a": clouds()}, labels=list(range(N)))
    assert len({handle.get_color() for handle in figure.legends[0].legend_handles}) == N


@pytest.mark.parametrize(
    ("spaces", "says"),
    [
        (({"a": clouds()}, {"b": clouds()}), r"absolute spaces are \['a'\], the relative ones \['b'\]"),
        (({"a": clouds(), "b": clouds()[:5]},), r"The numbers of rows differ: Absolute 'a' 60, Absolute 'b' 5"),
        (({"a": torch.full((3, 2), torch.nan)},), r"Absolute 'a' holds 6 values that are not finite"),
        (({"a": torch.zeros(3)},), r"Absolute 'a' has shape \(3,\), expected 2 dimensions"),
        (({},), r"absolute spaces are \[\]"),
    ],
)
def test_spaces_that_do_not_pair_are_refused(spaces, says):
    with pytest.raises(EvaluationError, match=says):
        plot_latent_spaces(*spaces)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(EvaluationError, match="labels 3"):
        plot_latent_spaces({"a": clouds()}, labels=[0, 1, 2])
    with pytest.raises(EvaluationError, match="labels contain 2, but class_names names only classes 0 to 1"):
        plot_latent_spaces({"a": clouds()}, labels=LABELS, class_names=NAMES[:2])


# -- anchors


def test_coverage_is_the_cosine_to_the_nearest_anchor_seen_from_the_mean():
    x_ND = torch.tensor([[11.0, 0.0], [9.0, 0.0], [10.0, 1.0], [10.0, -1.0]])
    torch.testing.assert_close(anchor_coverage(x_ND, x_ND[:1]), torch.tensor([1.0, -1.0, 0.0, 0.0]))
    torch.testing.assert_close(anchor_coverage(x_ND.numpy(), x_ND[:2].numpy()), torch.tensor([1.0, 1.0, 0.0, 0.0]))


def test_more_anchors_never_cover_less_whatever_the_rotation():
    x_ND = clouds(seed=3)
    few, more = anchor_coverage(x_ND, x_ND[:4]), anchor_coverage(x_ND, x_ND[:20])
    assert (more >= few - 1e-6).all() and (more > few + 0.1).any()
    torch.testing.assert_close(anchor_coverage(turned(x_ND), turned(x_ND)[:4]), few, atol=1e-4, rtol=0)


def test_anchors_of_another_encoder_are_refused():
    with pytest.raises(EvaluationError, match=r"shape \(60, 8\), anchors \(60, 12\)"):
        anchor_coverage(clouds(), clouds(12))


def test_a_coverage_curve_falls_from_all_samples_and_names_its_median():
    figure = plot_anchor_coverage({"few": torch.tensor([0.5, 0.1, 0.9]), "many": [1.0, 1.0, 1.0]})
    few, many = figure.axes[0].lines
    np.testing.assert_allclose(few.get_xydata(), [[0.1, 100], [0.5, 200 / 3], [0.9, 100 / 3]])
    assert [line.get_label() for line in (few, many)] == ["few, median 0.50", "many, median 1.00"]
    assert "(%)" in figure.axes[0].get_ylabel()


def test_drift_is_drawn_from_a_callback_or_its_pairs():
    callback = AnchorCallback()
    callback.drift_ = DRIFT
    figure = plot_anchor_drift({"callback": callback, "pairs": DRIFT})
    for line in figure.axes[0].lines:
        np.testing.assert_allclose(line.get_xydata(), DRIFT[1:])  # at step 0 nothing has moved
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["callback", "pairs"]
    assert plot_anchor_drift(callback).axes[0].get_legend() is None


def test_a_drift_before_any_training_is_refused():
    with pytest.raises(EvaluationError, match="drift of 'en' is empty: no anchors have been refreshed yet"):
        plot_anchor_drift({"en": AnchorCallback()})


# -- reconstructions


def test_rows_of_images_carry_their_error_to_the_first_row():
    original = images()
    rows = {"original": original, "own": original + 0.1, "stitched": 1 - original}
    figure = plot_reconstructions(rows, count=3, title="Digits")
    stitched = float((1 - 2 * original).square().mean())
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["original", "own\nMSE 0.0100", f"stitched\nMSE {stitched:.3f}"]
    assert figure.axes[0].get_title() == "Digits"


def test_the_pixels_of_an_image_stand_where_they_belong():
    original = torch.zeros(2, 3, 2, 2)
    original[0, 0, 0, 1] = 1  # the first image: its right upper pixel is red
    page = plot_reconstructions({"original": original}).axes[0].images[0].get_array()
    red = (page == [1, 0, 0]).all(-1)
    assert red[:32, 32:64].all() and red.sum() == 32 * 32


def test_grey_images_and_images_without_channels_are_the_same():
    grey, flat = (plot_reconstructions({"original": x}).axes[0].images[0] for x in (images(), images()[:, 0]))
    np.testing.assert_array_equal(grey.get_array(), flat.get_array())


def test_images_that_cannot_be_compared_are_refused():
    with pytest.raises(EvaluationError, match="The rows differ"):
        plot_reconstructions({"original": images(), "own": images()[:3]})
    with pytest.raises(EvaluationError, match="2 channels, expected 1 or 3"):
        plot_reconstructions({"original": images(channels=2)})
