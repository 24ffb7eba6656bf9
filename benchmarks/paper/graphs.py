"""The paper's graph experiments: a graph, its nodes to learn from, and nets that read them.

Shapes: N nodes, F features, D absolute size, A anchors, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.paper.options import Options
from hf_relreps import RelativeSpace
from hf_relreps.demos.graphs import load_planetoid
from hf_relreps.encoders.graphs import GraphEncoder, GraphEncoderConfig
from hf_relreps.projection import frame_of, project


ANCHORS = 300
WIDTH = 64
OF_TRAINING = ("optimizer", "rate")  # in a setting; the rest is of the encoder


@dataclass(frozen=True)
class Split:
    """A citation graph, nine tenths of its nodes to learn from, the others held out, and anchors among the first."""

    x_NF: Tensor
    edge_index: Tensor
    labels_N: Tensor
    train_N: Tensor
    held_out_N: Tensor
    anchors_A: Tensor

    @classmethod
    def of(cls, name: str, options: Options, anchors: int = ANCHORS, seed: int = 42) -> Split:
        """Drawn at random, always the same for the same seed."""
        root = (options.data or options.cache) / "planetoid"
        graph = load_planetoid(name, root, normalize=True, download=options.data is None)
        shuffled_N = torch.randperm(len(graph.y), generator=torch.Generator().manual_seed(seed))
        held_out_N, train_N = shuffled_N.tensor_split([len(shuffled_N) // 10])
        return cls(graph.x, graph.edge_index, graph.y, train_N, held_out_N, train_N[:anchors])

    def accuracy(self, logits_NC: Tensor) -> float:
        """On the nodes that are held out."""
        right_N = logits_NC.argmax(-1) == self.labels_N
        return float(right_N[self.held_out_N].float().mean())


class Net(nn.Module):
    """A graph encoder and a linear head, which reads directions: of absolute vectors or of relative ones.

    Gradients pass through the anchors, which are nodes of the same forward pass.
    """

    def __init__(self, split: Split, setting: dict[str, Any], projection: RelativeSpace | None = None) -> None:
        super().__init__()
        of_encoder = {name: value for name, value in setting.items() if name not in OF_TRAINING}
        shape = {"in_channels": split.x_NF.shape[1], "hidden_size": WIDTH, "self_loops": False}
        self.encoder = GraphEncoder(GraphEncoderConfig(**shape, **of_encoder))
        self.projection, self.anchors_A = projection, split.anchors_A
        width = projection.size if projection else WIDTH
        self.head = nn.Linear(width, int(split.labels_N.max()) + 1)

    def forward(self, split: Split) -> tuple[Tensor, Tensor]:
        """Absolute vectors (N, D), logits (N, C)."""
        h_ND = x_ND = self.encoder(split.x_NF, split.edge_index).last_hidden_state
        if self.projection is not None:
            h_ND = project(x_ND, frame_of(x_ND[self.anchors_A], self.projection), self.projection)
        return x_ND, self.head(normalize(h_ND))


def trained(
    split: Split, setting: dict[str, Any], seed: int, stops: tuple[int, ...], projection: RelativeSpace | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train a net, and give its vectors and logits at every stop."""
    torch.manual_seed(seed)
    net = Net(split, setting, projection)
    optimizer = getattr(torch.optim, setting["optimizer"])(net.parameters(), lr=setting["rate"])
    for step in range(1, max(stops) + 1):
        _, logits_NC = net(split)
        loss = cross_entropy(logits_NC[split.train_N], split.labels_N[split.train_N])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in stops:
            net.eval()
            with torch.no_grad():
                yield net(split)
            net.train()
