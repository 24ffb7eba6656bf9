"""Ablations: what stitching depends on.

Frozen encoders that were fitted apart, a decoder for each, every pair stitched; weighted F1 in per cent. *Debian*:
four encoders (TF-IDF and SVD, 256 wide), one for each language of the bundled package descriptions, 2,000 to learn
from, 11 sections. *Fashion-MNIST*: EfficientNet-Lite0, 1 and 2 at 64 pixels, 2,000 images to learn from. Decoders are
ours (LayerNorm, two layers) unless another is named; 300 anchors are drawn uniformly from the train samples, others
for each seed. *Cosine* is the paper's projection, *default* that of `RelativeConfig()`. ± is over pairs and seeds,
unless something else is said.

What differs from the paper: it varies the number of anchors on Cora and CIFAR-100 with a frozen ViT, from 1 to 980;
two is the least that a decoder which normalises can read. Its figures are curves that we do not have as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.paper.frozen import ABSOLUTE, METRIC, PROJECTIONS, Space, absolute_scores, relative_scores
from benchmarks.paper.options import Options
from benchmarks.paper.subjects import Subject, subjects
from benchmarks.paper.tables import cell, spread
from benchmarks.reporting import console, markdown
from hf_relreps import RelativeConfig
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
READINGS = ("all at once", "32 at a time", "one class at a time")


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


def numbers(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """From two anchors to 980, and the absolute control."""
    task = subject.task
    absolute = [absolute_scores(subject.spaces(np.arange(1)), task, seed) for seed in _seeds(options)]
    yield {"anchors": None, "projection": ABSOLUTE, "chance": 100 * task.chance, **figures(absolute)}
    for count in (5, 50, 300) if options.quick else NUMBERS:
        spaces = [subject.spaces(drawn(subject, count, seed)) for seed in _seeds(options)]
        for name, config in PROJECTIONS.items():
            found = [relative_scores(of_seed, task, config, seed) for seed, of_seed in enumerate(spaces)]
            yield {"anchors": count, "projection": name, **figures(found)}


def selections(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """Ways to choose few anchors, where the choice matters most."""
    for strategy in STRATEGIES:
        spaces = [subject.spaces(drawn(subject, FEW, seed, strategy)) for seed in _seeds(options)]
        for name, config in PROJECTIONS.items():
            found = [relative_scores(of_seed, subject.task, config, seed) for seed, of_seed in enumerate(spaces)]
            yield {"strategy": strategy, "projection": name, **figures(found)}


def domains(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """Anchors of another domain beside as many of the same one."""
    for name, samples in subject.foreign_AD.items():
        count = len(next(iter(samples.values())))
        for projection, config in PROJECTIONS.items():
            for domain in (f"{count} of the train samples", name):
                found = [
                    relative_scores(
                        subject.spaces(name if domain == name else drawn(subject, count, seed)),
                        subject.task,
                        config,
                        seed,
                    )
                    for seed in _seeds(options)
                ]
                yield {"domain": domain, "projection": projection, **figures(found)}


def dependence(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """How much the stitched mean moves with the draw of the anchors, and with the seeds of the decoders."""
    count = 2 if options.quick else 2 + options.seeds
    for name, config in PROJECTIONS.items():
        for what in ("anchors", "decoders"):
            found = []
            for seed in range(count):
                anchors = drawn(subject, ANCHORS, 10 + seed if what == "anchors" else 10)
                matrix = relative_scores(
                    subject.spaces(anchors), subject.task, config, 10 + seed if what == "decoders" else 10
                )
                found.append(figures([matrix])["stitched"]["mean"])
            yield {"varied": what, "projection": name, "stitched": spread(found)}


def heads(subject: Subject, options: Options) -> Iterable[dict[str, Any]]:
    """The paper's head, which looks at the other samples, and ours, which does not."""
    ways: dict[str, RelativeConfig | None] = {ABSOLUTE: None, "cosine": PROJECTIONS["cosine"]}
    for name, config in ways.items():
        spaces = [subject.spaces(drawn(subject, ANCHORS, seed)) for seed in _seeds(options)]
        ours = [
            relative_scores(of_seed, subject.task, config, seed)
            if config
            else absolute_scores(of_seed, subject.task, seed)
            for seed, of_seed in enumerate(spaces)
        ]
        yield {"head": "ours", "reads": "any number at a time", "projection": name, **figures(ours)}
        found: dict[str, list[np.ndarray]] = {reading: [] for reading in READINGS}
        for seed, of_seed in enumerate(spaces):
            for reading, matrix in _paper_heads(of_seed, subject, config, seed).items():
                found[reading].append(matrix)
        for reading, matrices in found.items():
            yield {"head": "the paper's", "reads": reading, "projection": name, **figures(matrices)}


def _paper_heads(
    spaces: dict[str, Space], subject: Subject, config: RelativeConfig | None, seed: int
) -> dict[str, np.ndarray]:
    """How the samples are read -> scores (E, E)."""
    labels_M, trained, read = subject.test_labels_M, [], []
    for number, space in enumerate(spaces.values()):
        train_NR, test_MR = (_described(x, space, config) for x in (space.train_ND, space.test_MD))
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


def _described(x_ND: Tensor, space: Space, config: RelativeConfig | None) -> Tensor:
    if config is None:
        return x_ND
    sized = RelativeConfig(**config.projection, num_anchors=len(space.anchors_AD))
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
    import matplotlib.pyplot as plt

    from hf_relreps.evaluation.plots import STYLE, save

    names = list(dict.fromkeys(row["subject"] for row in results["rows"]))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(names), figsize=(1 + 4.2 * len(names), 3.8), squeeze=False, layout="constrained"
        )
        for ax, subject in zip(axes[0], names, strict=True):
            rows = _rows(results, "number", subject)
            for projection, colour in (("cosine", "#1d6996"), ("default", "#e4572e")):
                line = [row for row in rows if row["projection"] == projection]
                for what, style in (("own", "--"), ("stitched", "-")):
                    x, y = [row["anchors"] for row in line], [row[what]["mean"] for row in line]
                    ax.plot(x, y, style, color=colour, marker="o", markersize=3, label=f"{projection}, {what}")
            control = next(row for row in rows if row["projection"] == ABSOLUTE)
            ax.axhline(control["stitched"]["mean"], color="#888880", linewidth=1, label="absolute, stitched")
            ax.axhline(control["chance"], color="#888880", linewidth=1, linestyle=":", label="chance")
            ax.set_xscale("log")
            ax.set_xlabel("anchors")
            ax.set_title(subject.split(",")[0])
        axes[0, 0].set_ylabel("weighted F1, %")
        axes[0, -1].legend(frameon=False, fontsize=8, loc="lower right")
    plt.close(figure)
    save(figure, path)


def _rows(results: dict[str, Any], part: str, subject: str) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if (row["part"], row["subject"]) == (part, subject)]


def render(results: dict[str, Any]) -> str:
    """A table for each ablation."""
    names = list(dict.fromkeys(row["subject"] for row in results["rows"]))
    parts = [
        f"**Number of anchors**, own / stitched ({_control(results, names)}):",
        _table(results, names, "number", lambda row: str(row["anchors"]), "anchors"),
        "![Own and stitched over the number of anchors](../benchmarks/results/paper/ablations-anchors.png)",
        f"**Selection** of {FEW} anchors, own / stitched:",
        _table(results, names, "selection", lambda row: row["strategy"], "strategy"),
    ]
    if any(row["part"] == "domain" for row in results["rows"]):
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
    rows = [row for row in results["rows"] if row["part"] == part]
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
    rows = {name: next(row for row in _rows(results, "number", name) if row["anchors"] is None) for name in names}
    return "; ".join(
        f"{name.split(',')[0]}: absolute {_cell([row], ABSOLUTE)}, chance {row['chance']:.1f}"
        for name, row in rows.items()
    )


def _cell(rows: list[dict[str, Any]], way: str) -> str:
    """Own and stitched, as far as they were measured."""
    found = [row for row in rows if row["projection"] == way]
    return " / ".join(cell(row[what], 1) for row in found for what in ("own", "stitched") if what in row) or "-"


def domain_table(results: dict[str, Any]) -> str:
    """Anchors of another domain beside as many of the same one."""
    rows = [row for row in results["rows"] if row["part"] == "domain"]
    keys = dict.fromkeys((row["subject"], row["domain"]) for row in rows)
    lines = [
        (
            subject.split(",")[0],
            domain,
            *(
                _cell([r for r in rows if (r["subject"], r["domain"]) == (subject, domain)], way)
                for way in PROJECTIONS
            ),
        )
        for subject, domain in keys
    ]
    return markdown(("data", "anchors", *PROJECTIONS), lines)


def _remark(results: dict[str, Any], names: Sequence[str]) -> str:
    """What the numbers say, in words that follow from them."""
    lines = []
    for name in names:
        default = [row for row in _rows(results, "number", name) if row["projection"] == "default"]
        means = [row["stitched"]["mean"] for row in default]
        within = next(row["anchors"] for row in default if row["stitched"]["mean"] > 0.95 * max(means))
        head = {
            row["reads"]: row["stitched"]["mean"]
            for row in _rows(results, "head", name)
            if row["projection"] == "cosine"
        }
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
    rows = [row for row in _rows(results, "number", name) if row["projection"] == "cosine"]
    (few, low), (many, high) = ((row["anchors"], row["stitched"]["mean"]) for row in (rows[0], rows[-1]))
    ours = f"stitched {low:.0f} % with {few} anchors, {high:.0f} % with {many} (cosines)"
    return PAPER["number"], ours, "yes" if high > low + 10 else "no"
