"""Ablations: what stitching depends on.

Frozen encoders that were fitted separately, a decoder for each, every pair stitched; weighted F1 in per cent.
*Debian*: four encoders (TF-IDF and SVD, 256 wide), one for each language of the bundled package descriptions, 2,000
training samples, 11 sections. *Fashion-MNIST*: EfficientNet-Lite0, 1 and 2 at 64 pixels, 2,000 training images.
Decoders are ours (LayerNorm, two layers) unless another is named. 300 anchors are drawn uniformly from the training
samples, anew for each seed. *Cosine* is the paper's projection, *default* that of `RelativeConfig()`. ± is over pairs
and seeds, unless the text says otherwise.

What differs from the paper: it varies the number of anchors on Cora and CIFAR-100 with a frozen ViT, from 1 to 980.
Decoders that normalise need at least two. The paper shows its results as curves, which we do not have as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.paper.frozen import ABSOLUTE, METRIC, PROJECTIONS, Space, scores_of
from benchmarks.paper.options import Options
from benchmarks.paper.subjects import Subject, subjects
from benchmarks.paper.tables import cell, names_of, rows_of, spread
from benchmarks.reporting import console, markdown, picture
from hf_relreps import RelativeSpace
from hf_relreps.evaluation.scores import SCORES
from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.selection import STRATEGIES, select


SEEDS = 3
ANCHORS, FEW = 300, 50
NUMBERS = (2, 5, 20, 50, 100, 300, 980)
PAPER: dict[str, Any] = {
    "number": "rises steadily with the number of anchors for a frozen encoder",
    "random anchors of a ViT pair on CIFAR-100, by others": {50: 57.8, 100: 64.9, 200: 71.2, 300: 74.4, 600: 77.1},
}
HEAD_WIDTH, HEAD_EPOCHS, HEAD_BATCH, HEAD_RATE = 256, 10, 32, 1e-3

Chosen = Callable[[int], np.ndarray | str]  # seed -> rows of the anchors, or another domain that they come from


class PaperHead(nn.Module):
    """The head of the paper's notebooks: it normalises each feature over the batch, in evaluation as well."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.hidden = nn.Linear(width, HEAD_WIDTH)
        self.output = nn.Linear(HEAD_WIDTH, classes)

    def forward(self, r_BR: Tensor) -> Tensor:
        """Logits (B, C), each of which depends on the whole batch; a batch of one has none."""
        h_BH = torch.tanh(self.hidden(self.norm(r_BR)))
        return self.output(nn.functional.instance_norm(h_BH.T[None])[0].T)


def run(options: Options) -> dict[str, Any]:
    """Every ablation on every subject."""
    parts = {"number": numbers, "selection": selections, "head": heads, "domain": domains, "seeds": dependence}
    rows = []
    for subject in subjects(options):
        for part, measure in parts.items():
            found = track(measure(subject, options), f"{subject.name.split(',')[0]}: {part}", console=console)
            rows += [{"subject": subject.name, "part": part, **row} for row in found]
    results = {"rows": rows}
    draw(results, options.pictures / "ablations-anchors.png")
    return results


def drawn(subject: Subject, count: int, seed: int, strategy: str = "uniform") -> np.ndarray:
    """Rows of the anchors; those that need a space are chosen in the first encoder's."""
    first_ND = next(iter(subject.train_ND.values()))
    return select(len(first_ND), count, strategy, seed, subject.train_labels_N.tolist(), first_ND)


def figures(matrices: Sequence[np.ndarray]) -> dict[str, Any]:
    """Own and stitched, in per cent."""
    scores = 100 * np.stack(matrices)
    own = np.eye(scores.shape[1], dtype=bool)
    return {"own": spread(scores[:, own].ravel()), "stitched": spread(scores[:, ~own].ravel())}


def _seeds(options: Options) -> range:
    return range(1 if options.quick else options.seeds)


def measured(subject: Subject, options: Options, way: RelativeSpace | None, chosen: Chosen) -> dict[str, Any]:
    """Own and stitched over all seeds, with the anchors that `chosen` gives for each; without a way absolute."""
    return figures([scores_of(subject.spaces(chosen(seed)), subject.task, way, seed) for seed in _seeds(options)])


def numbers(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """From two anchors to 980, and the absolute control."""
    absolute = measured(subject, options, None, lambda _: np.arange(1))
    yield {"anchors": None, "projection": ABSOLUTE, "chance": 100 * subject.task.chance, **absolute}
    for count in (5, 50, 300) if options.quick else NUMBERS:
        for name, way in PROJECTIONS.items():
            found = measured(subject, options, way, partial(drawn, subject, count))
            yield {"anchors": count, "projection": name, **found}


def selections(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """Ways to choose few anchors, where the choice matters most."""
    for strategy in STRATEGIES:
        for name, way in PROJECTIONS.items():
            found = measured(subject, options, way, partial(drawn, subject, FEW, strategy=strategy))
            yield {"strategy": strategy, "projection": name, **found}


def domains(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """Anchors of another domain beside as many of the same one."""
    for name, samples in subject.foreign_AD.items():
        count = len(next(iter(samples.values())))
        domains: dict[str, Chosen] = {
            f"{count} of the train samples": partial(drawn, subject, count),
            name: lambda _, name=name: name,
        }
        for projection, way in PROJECTIONS.items():
            for domain, chosen in domains.items():
                yield {"domain": domain, "projection": projection, **measured(subject, options, way, chosen)}


def dependence(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """How much the stitched mean moves with the draw of the anchors, and with the seeds of the decoders."""
    seeds = range(10, 12 if options.quick else 12 + options.seeds)
    for name, way in PROJECTIONS.items():
        for what in ("anchors", "decoders"):
            found = []
            for seed in seeds:
                spaces = subject.spaces(drawn(subject, ANCHORS, seed if what == "anchors" else 10))
                matrix = scores_of(spaces, subject.task, way, seed if what == "decoders" else 10)
                found.append(figures([matrix])["stitched"]["mean"])
            yield {"varied": what, "projection": name, "stitched": spread(found)}


def heads(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """The paper's head, which looks at the other samples, and ours, which does not."""
    ways: dict[str, RelativeSpace | None] = {ABSOLUTE: None, "cosine": PROJECTIONS["cosine"]}
    for name, way in ways.items():
        ours = measured(subject, options, way, partial(drawn, subject, ANCHORS))
        yield {"head": "ours", "reads": "any number at a time", "projection": name, **ours}
        found = [
            _paper_heads(subject.spaces(drawn(subject, ANCHORS, seed)), subject, way, seed) for seed in _seeds(options)
        ]
        for reading in found[0]:
            scores = figures([of_seed[reading] for of_seed in found])
            yield {"head": "the paper's", "reads": reading, "projection": name, **scores}


def _paper_heads(
    spaces: dict[str, Space], subject: Subject, way: RelativeSpace | None, seed: int
) -> dict[str, np.ndarray]:
    """How the samples are read -> scores (E, E)."""
    labels_M, trained, read = subject.test_labels_M, [], []
    for number, space in enumerate(spaces.values()):
        train_NR, test_MR = (_described(x, space, way) for x in (space.train_ND, space.test_MD))
        trained.append(_fit(train_NR, space.train_labels_N, subject.task.classes, 1000 * seed + 300 + number))
        read.append(test_MR)
    batches: dict[str, list[np.ndarray]] = {
        "all at once": [np.arange(len(labels_M))],
        "32 at a time": np.array_split(np.arange(len(labels_M)), -(-len(labels_M) // 32)),
        "one class at a time": [np.flatnonzero(labels_M == label) for label in np.unique(labels_M)],
    }
    return {
        reading: np.array([[_score(head, r_MR, rows, labels_M) for head in trained] for r_MR in read])
        for reading, rows in batches.items()
    }


def _described(x_ND: Tensor, space: Space, way: RelativeSpace | None) -> Tensor:
    if way is None:
        return x_ND
    sized = way.replace(num_anchors=len(space.anchors_AD))
    return project_in_chunks(x_ND, frame_of(space.anchors_AD, sized), sized)


def _fit(r_NR: Tensor, labels_N: Tensor, classes: int, seed: int) -> PaperHead:
    set_seed(seed)
    head = PaperHead(r_NR.shape[1], classes)
    optimizer = torch.optim.Adam(head.parameters(), HEAD_RATE)
    for _ in range(HEAD_EPOCHS):
        for rows in torch.randperm(len(r_NR)).tensor_split(len(r_NR) // HEAD_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(r_NR[rows]), labels_N[rows]).backward()
            optimizer.step()
    return head.eval()


@torch.inference_mode()
def _score(head: PaperHead, r_MR: Tensor, batches: Sequence[np.ndarray], labels_M: np.ndarray) -> float:
    answers_M = np.empty_like(labels_M)
    for rows in batches:
        answers_M[rows] = head(r_MR[rows]).argmax(-1).numpy()
    return SCORES[METRIC].function(labels_M, answers_M)


def draw(results: dict[str, Any], path: Path) -> None:
    """Own and stitched over the number of anchors."""
    names = names_of(results, "subject")
    with picture(path, len(names), (1 + 4.2 * len(names), 3.8)) as (_, axes):
        for ax, subject in zip(axes, names, strict=True):
            for projection, colour in (("cosine", "#1d6996"), ("default", "#e4572e")):
                line = rows_of(results, part="number", subject=subject, projection=projection)
                for what, style in (("own", "--"), ("stitched", "-")):
                    x, y = [row["anchors"] for row in line], [row[what]["mean"] for row in line]
                    ax.plot(x, y, style, color=colour, marker="o", markersize=3, label=f"{projection}, {what}")
            (control,) = rows_of(results, part="number", subject=subject, projection=ABSOLUTE)
            ax.axhline(control["stitched"]["mean"], color="#888880", linewidth=1, label="absolute, stitched")
            ax.axhline(control["chance"], color="#888880", linewidth=1, linestyle=":", label="chance")
            ax.set(xscale="log", xlabel="anchors", title=subject.split(",")[0])
        axes[0].set_ylabel("weighted F1, %")
        axes[-1].legend(frameon=False, fontsize=8, loc="lower right")


def render(results: dict[str, Any]) -> str:
    """A table for each ablation."""
    names = names_of(results, "subject")
    parts = [
        f"**Number of anchors**, own / stitched ({_control(results, names)}):",
        _table(results, names, "number", lambda row: str(row["anchors"]), "anchors"),
        "![Own and stitched over the number of anchors](../benchmarks/results/paper/ablations-anchors.png)",
        f"**Selection** of {FEW} anchors, own / stitched:",
        _table(results, names, "selection", lambda row: row["strategy"], "strategy"),
    ]
    if rows_of(results, part="domain"):
        parts += ["**Domain** of the anchors, own / stitched:", domain_table(results)]
    parts += [
        "**Head**: the paper's normalises each feature over the samples it is given, own / stitched:",
        _table(results, names, "head", lambda row: f"{row['head']}, reads {row['reads']}", "head"),
        f"**Seeds**: stitched, {ANCHORS} anchors; ± is over draws of the anchors, or over seeds of the decoders:",
        _table(results, names, "seeds", lambda row: f"varied: {row['varied']}", ""),
        _remark(results, names),
    ]
    return "\n\n".join(parts)


def _table(
    results: dict[str, Any], names: Sequence[str], part: str, name_of: Callable[[dict[str, Any]], str], head: str
) -> str:
    """Settings down, subjects and projections across."""
    rows = rows_of(results, part=part)
    if part == "number":  # the control has no anchors: it is told above the table
        rows = [row for row in rows if row["projection"] != ABSOLUTE]
    ways = [way for way in (*PROJECTIONS, ABSOLUTE) if any(row["projection"] == way for row in rows)]
    lines = []
    for setting in dict.fromkeys(map(name_of, rows)):
        of_setting = [row for row in rows if name_of(row) == setting]
        cells = [_cell([row for row in of_setting if row["subject"] == name], way) for name in names for way in ways]
        lines.append((setting, *cells))
    heads = [f"{name.split(',')[0]}, {way}" for name in names for way in ways]
    return markdown((head, *heads), lines)


def _control(results: dict[str, Any], names: Sequence[str]) -> str:
    """Absolute decoders, and guessing."""
    rows = [rows_of(results, part="number", subject=name, anchors=None)[0] for name in names]
    return "; ".join(
        f"{row['subject'].split(',')[0]}: absolute {_cell([row], ABSOLUTE)}, chance {row['chance']:.1f}"
        for row in rows
    )


def _cell(rows: list[dict[str, Any]], way: str) -> str:
    """Own and stitched, as far as they were measured."""
    found = [row for row in rows if row["projection"] == way]
    return " / ".join(cell(row[what], 1) for row in found for what in ("own", "stitched") if what in row) or "-"


def domain_table(results: dict[str, Any]) -> str:
    """Anchors of another domain beside as many of the same one."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows_of(results, part="domain"):
        found.setdefault((row["subject"].split(",")[0], row["domain"]), []).append(row)
    lines = [(*names, *(_cell(rows, way) for way in PROJECTIONS)) for names, rows in found.items()]
    return markdown(("data", "anchors", *PROJECTIONS), lines)


def _remark(results: dict[str, Any], names: Sequence[str]) -> str:
    """What the numbers say, in words that follow from them."""
    lines = []
    for name in names:
        default = rows_of(results, part="number", subject=name, projection="default")
        means = [row["stitched"]["mean"] for row in default]
        within = next(row["anchors"] for row in default if row["stitched"]["mean"] > 0.95 * max(means))
        rows = rows_of(results, part="head", subject=name, projection="cosine")
        head = {row["reads"]: row["stitched"]["mean"] for row in rows}
        lines.append(
            f"- {name.split(',')[0]}: with the default projection {within} anchors reach 95 % of the best stitched "
            f"score. The paper's head is stitched at {head['all at once']:.1f} when it sees the whole test set, at "
            f"{head['32 at a time']:.1f} when it sees 32 samples, and at {head['one class at a time']:.1f} when these "
            f"are of one class; ours at {head['any number at a time']:.1f} in each case."
        )
    return "\n".join(lines)


def headline(results: dict[str, Any]) -> tuple[str, str, str]:
    """Whether more anchors are better."""
    name = results["rows"][0]["subject"]
    rows = rows_of(results, part="number", subject=name, projection="cosine")
    (few, low), (many, high) = ((row["anchors"], row["stitched"]["mean"]) for row in (rows[0], rows[-1]))
    ours = f"stitched {low:.0f} % with {few} anchors, {high:.0f} % with {many} (cosines)"
    return PAPER["number"], ours, "yes" if high > low + 10 else "no"
