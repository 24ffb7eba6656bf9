"""Node classifiers on citation graphs, stitched across seeds and across GCN, GAT, GIN and GCNII.

All share 300 nodes as anchors, of which most have no label in training. Once gradients pass through the anchors as in
the paper's graph experiments ("gradient"), and once they do not ("refresh"). Scores are those of the test nodes of the
public split, on which nothing was chosen: learning rate, steps and decoder were, on its validation nodes. The absolute
control is logistic regression on the absolute embeddings.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from benchmarks.modalities.report import Row, record, show
from benchmarks.reporting import console, timed, write
from benchmarks.training import train
from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForNodeClassification
from hf_relreps.demos.graphs import NAMES, load_planetoid
from hf_relreps.encoders.graphs import GraphEncoder, GraphEncoderConfig
from hf_relreps.evaluation import StitchingMatrix, stitching_matrix
from hf_relreps.selection import select
from hf_relreps.tasks import GraphReader, one_graph


WIDTH = 64  # of all architectures, so that the absolute control exists between them
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gcn": {"num_layers": 2},
    "gat": {"num_layers": 2, "heads": 8},
    "gin": {"num_layers": 2},
    "gcn2": {"num_layers": 8},
}
ANCHOR_SEED = 42


@dataclass(frozen=True)
class Budget:
    """How long a training is, and which ones there are."""

    steps: int = 40  # of the whole graph
    gradients: tuple[bool, ...] = (True, False)


QUICK = Budget(steps=30, gradients=(True,))


@dataclass(frozen=True)
class Split:
    """A graph, and which of its nodes are for what."""

    name: str
    reader: GraphReader
    labels_N: torch.Tensor
    train_N: torch.Tensor
    test_N: torch.Tensor
    anchors: AnchorSet

    @classmethod
    def of(cls, name: str, arguments: Namespace) -> Split:
        """A public split; anchors are drawn from the nodes that are neither for validation nor for the test."""
        graph = load_planetoid(name, arguments.data, download=arguments.download)
        free = torch.nonzero(~(graph.val_mask | graph.test_mask)).flatten()
        nodes = free[select(len(free), arguments.anchors, seed=ANCHOR_SEED)].tolist()
        anchors = AnchorSet([f"{name}/{node}" for node in nodes], {"node": nodes}, origin={"graph": name})
        reader = GraphReader(graph.x, graph.edge_index)
        return cls(name, reader, graph.y, graph.train_mask, graph.test_mask, anchors)

    def rows(self, chosen_N: torch.Tensor) -> dict[str, list[int]]:
        """Numbers and labels of some nodes as a dataset."""
        return {"node": torch.nonzero(chosen_N).flatten().tolist(), "label": self.labels_N[chosen_N].tolist()}


def add_arguments(parser: ArgumentParser) -> None:
    """Data and anchors."""
    parser.add_argument("--data", type=Path, required=True, help="folder with <graph>/raw/ind.<graph>.*")
    parser.add_argument("--download", action="store_true", help="fetch raw files that are missing into --data")
    parser.add_argument("--graphs", nargs="+", choices=NAMES, default=["Cora", "CiteSeer"], help="which graphs")
    parser.add_argument("--anchors", type=int, default=300, help="number of anchors (300)")
    parser.set_defaults(seeds=2)


def run(arguments: Namespace) -> dict[str, Any]:
    """Train, stitch, print, draw."""
    budget = QUICK if arguments.quick else Budget()
    seeds = 1 if arguments.quick else arguments.seeds
    matrices: dict[str, dict[str, StitchingMatrix]] = {"macro-F1": {}, "accuracy": {}}
    for name in arguments.graphs[:1] if arguments.quick else arguments.graphs:
        split = Split.of(name, arguments)
        for gradient in budget.gradients:
            title = f"{name} {'gradient' if gradient else 'refresh'}"
            with timed(title):
                models = trained(split, gradient, seeds, budget)
            for score, metric in (("macro-F1", "f1"), ("accuracy", "accuracy")):
                matrices[score][title] = _matrix(models, split, metric)
            console.print(f"\n{matrices['macro-F1'][title]}\n", markup=False)
    rows = {
        score: [row for item in found.items() for row in Row.by_architecture(*item)]
        for score, found in matrices.items()
    }
    for score, of_score in rows.items():
        show(f"{score} on held-out nodes", of_score)
    results = {"seeds": seeds, "rows": {score: record(of_score) for score, of_score in rows.items()}}
    results["matrices"] = {title: matrix.to_dict() for title, matrix in matrices["macro-F1"].items()}
    for title, matrix in matrices["macro-F1"].items():
        matrix.plot(arguments.output / f"{title.replace(', ', '-').replace(' ', '-').lower()}.png")
    write(arguments.output / "results.json", results)
    return results


def trained(split: Split, gradient: bool, seeds: int, budget: Budget) -> dict[str, RelativeModelForNodeClassification]:
    """Encoders and decoders trained together, no two from the same seed."""
    return {
        f"{architecture}-{i + 1}": _trained(split, architecture, 1000 * gradient + 100 * kind + i, gradient, budget)
        for kind, architecture in enumerate(ARCHITECTURES, 1)
        for i in range(seeds)
    }


def _trained(
    split: Split, architecture: str, seed: int, gradient: bool, budget: Budget
) -> RelativeModelForNodeClassification:
    set_seed(seed)
    shape = {"in_channels": split.reader.x.shape[1], "hidden_size": WIDTH, **ARCHITECTURES[architecture]}
    model = RelativeModelForNodeClassification.from_encoder(
        GraphEncoder(GraphEncoderConfig(convolution=architecture, **shape)),
        split.anchors.view(),
        split.reader,
        num_labels=int(split.labels_N.max()) + 1,
        decoder_type="linear",
        anchor_gradient=gradient,
    )
    # What gradients pass through is encoded in each forward pass; the stored anchors count only after training.
    callback = AnchorCallback(refresh_every=budget.steps if gradient else 1)
    how = {"max_steps": budget.steps, "per_device_train_batch_size": 1, "lr_scheduler_type": "constant"}
    samples = [split.reader.item(split.labels_N, split.train_N)]
    return train(model, samples, seed, callback, collator=one_graph, learning_rate=0.02, **how)  # the paper's rate


def _matrix(models: dict[str, Any], split: Split, metric: str) -> StitchingMatrix:
    held_out, known = split.rows(split.test_N), split.rows(split.train_N)
    return stitching_matrix(models, models, held_out, metric=metric, train_dataset=known, progress=False)
