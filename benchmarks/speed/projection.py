"""5 Projection of many embeddings: beside the bare matrix product, latentis, and into a file when memory is short."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.reliability.guard import memory
from benchmarks.speed.timing import paired, row
from hf_relreps import RelativeConfig, RelativeEncoderConfig, RelativeSpace
from hf_relreps.projection import RelativeProjection


D = K = 768
PAPER, DEFAULT = RelativeConfig.paper().space, RelativeSpace()


def made(space: RelativeSpace, anchors_AD: Tensor) -> RelativeProjection:
    """A projection with these anchors."""
    k, d = anchors_AD.shape
    module = RelativeProjection(RelativeEncoderConfig(space=space.replace(num_anchors=k), embedding_size=d))
    module.set_anchors(anchors_AD)
    return module


def _latentis(anchors_AD: Tensor) -> Any:
    """Their cosine projection with these anchors; ``None`` where latentis is not installed."""
    try:
        from latentis.transform.projection import RelativeProjection as Theirs
        from latentis.transform.projection import cosine_proj
    except ImportError:
        return None
    theirs = Theirs(projection_fn=cosine_proj).fit(anchors_AD)
    return lambda x_ND: theirs.transform(x_ND)[0]


def peak(what: str, n: int) -> float:
    """Memory in units of the output that a process of its own needed on top of the embeddings."""
    code = f"from benchmarks.speed.projection import measure_peak; measure_peak({what!r}, {n})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def measure_peak(what: str, n: int) -> None:
    """Print the growth of the largest resident size, over the size of the output."""
    x_ND, anchors_AD = torch.randn(n, D), torch.randn(K, D)
    modules = {"cosine": made(PAPER, anchors_AD), "default": made(DEFAULT, anchors_AD)}
    if what in modules:
        modules[what](x_ND[:5000])  # what is made once for all sizes
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak begins anew
    before = memory("VmRSS")
    r_NK = modules[what](x_ND) if what in modules else normalize(x_ND) @ normalize(anchors_AD).T
    print((memory("VmHWM") - before) / (r_NK.numel() * 4))  # noqa: T201


def run(quick: bool = False) -> dict[str, Any]:
    """Seconds of bare products over ours, so that 1 is as fast and less is slower."""
    n, pairs = (20_000, 3) if quick else (200_000, 7)
    torch.manual_seed(0)
    x_ND, anchors_AD = torch.randn(n, D), torch.randn(K, D)
    plain_AA = torch.randn(K, K)
    cosine, default = made(PAPER, anchors_AD), made(DEFAULT, anchors_AD)

    def bare() -> Tensor:
        return x_ND @ anchors_AD.T

    normalised = paired(bare, lambda: normalize(x_ND) @ normalize(anchors_AD).T, pairs)
    with_basis = paired(lambda: bare() @ plain_AA, lambda: default(x_ND), pairs)
    rows = [
        row("bare x @ a.T over cosine", paired(bare, lambda: cosine(x_ND), pairs), "at least 0.9"),
        row("bare x @ a.T over normalise, then multiply", normalised),
        row("bare x @ a.T @ b over the default (centred rbf, change of basis)", with_basis),
    ]
    theirs = _latentis(anchors_AD)
    if theirs is not None:
        difference = float((theirs(x_ND[:100]) - cosine(x_ND[:100])).abs().max())
        note = f"largest difference of the values {difference:.0e}"
        rows.append(row("bare x @ a.T over latentis 0.0.8", paired(bare, lambda: theirs(x_ND), pairs), "", note))
        over_ours = paired(lambda: theirs(x_ND), lambda: cosine(x_ND), pairs)
        rows.append(row("latentis 0.0.8 over ours", over_ours, "above 1"))
    memory = {what: peak(what, n) for what in ("cosine", "default", "plain")}
    return {"rows": rows, "peak_memory_in_outputs": memory, "n": n}
