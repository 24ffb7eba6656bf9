"""`benchmarks/few_pairs.py`: leave-one-out is what leaving one out gives, and decoders read over pairs."""

from __future__ import annotations

import torch
from torch.nn.functional import layer_norm

from benchmarks.few_pairs import fitted, left_out, logits, normed, right
from hf_relreps import RelativeSpace
from hf_relreps.projection import frame_of


def test_an_anchor_is_described_as_if_the_others_were_all():
    anchors_AD = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).double()
    space = RelativeSpace(num_anchors=9, basis_ridge=0.3)
    frame = frame_of(anchors_AD, space)
    assert frame.units_AD is not None
    distances_AA = 2 - 2 * frame.units_AD @ frame.units_AD.T
    kernel_AA = torch.exp(-1.5 * distances_AA / frame.spread)
    expected_AA = torch.zeros(9, 9, dtype=torch.float64)
    for i in range(9):
        rest = [j for j in range(9) if j != i]
        loaded = kernel_AA[rest][:, rest] + 0.3 * torch.eye(8, dtype=torch.float64)
        expected_AA[i, rest] = torch.linalg.solve(loaded, kernel_AA[rest, i])
    expected_AA = layer_norm(expected_AA, (9,), eps=1e-12).float()
    torch.testing.assert_close(left_out(anchors_AD, (1.5, 0.3)), expected_AA, atol=1e-4, rtol=1e-4)


def test_the_regression_reads_a_rotated_space_over_pairs():
    draw = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 8, generator=draw)
    labels_N = torch.arange(120) % 3
    x_ND = centres[labels_N] + torch.randn(120, 8, generator=draw)
    turned_ND = x_ND @ torch.linalg.qr(torch.randn(8, 8, generator=draw))[0]
    z_NR, z_MR = normed(x_ND, x_ND[:40], (1.5, 0.1)), normed(turned_ND, turned_ND[:40], (1.5, 0.1))
    fit = fitted(z_NR[:80], labels_N[:80], 3)
    assert right(logits(fit, z_MR[80:], labels_N[:80]), labels_N[80:]) > 0.9
