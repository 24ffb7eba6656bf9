"""Node classification: the samples are nodes of a graph, and so are the anchors.

Shapes: N nodes, F features of a node, E edges, B nodes asked for, D absolute size, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_relreps.classification import RelativeClassifier, RelativeClassifierOutput
from hf_relreps.errors import SampleError


class RelativeModelForNodeClassification(RelativeClassifier):
    """A graph encoder and a decoder that gives the classes of nodes.

    With `config.anchor_gradient` training describes nodes by the anchors of the same forward pass, so that gradients
    pass through the anchors too (the paper's graph experiments, section 4.3). In evaluation the stored anchors count,
    as for every other model: `AnchorCallback` keeps them.

    Example:
        ```python
        import torch

        from hf_relreps.encoders.graphs import GraphEncoder, GraphEncoderConfig
        from hf_relreps.nodes import GraphReader, one_graph

        reader = GraphReader(x=torch.eye(6), edge_index=torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]]))
        view = AnchorSet([f"graph/{node}" for node in (0, 2, 4)], {"node": [0, 2, 4]}).view()  # ids say which graph
        gcn = GraphEncoder(GraphEncoderConfig(in_channels=6, hidden_size=8))
        model = RelativeModelForNodeClassification.from_encoder(gcn, view, reader, num_labels=3)

        labels_N, counted_N = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([True, False] * 3)
        items = [reader.item(labels_N, counted_N)]  # the graph is the one item of the data set
        args = TrainingArguments("out", max_steps=1, report_to="none")
        Trainer(model, args, one_graph, train_dataset=items, callbacks=[AnchorCallback()]).train()

        logits_NC = model.eval()(x=reader.x, edge_index=reader.edge_index).logits  # there is no pipeline for graphs
        classes = logits_NC.argmax(-1).tolist()
        ```
    """

    modality = "node"
    main_input_name = "x"

    def forward(
        self,
        x: Tensor | None = None,
        edge_index: Tensor | None = None,
        nodes: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits of all nodes (N, C), or of those asked for (B, C), and the loss where there are labels of the same.

        Args:
            x: Features (N, F) of the whole graph.
            edge_index: Edges (2, E) of the whole graph.
            nodes: Which nodes are asked for (B,); all of them if left out.
            labels: Their classes (N,) or (B,); those of -100 do not count in the loss.
            return_dict: False gives a tuple.

        Raises:
            SampleError: If a node is not one of the graph, or there is not one label for each node.
        """
        if x is not None:
            _check(len(x), nodes, labels)
        return self._classify(labels, return_dict, x=x, edge_index=edge_index, nodes=nodes)


class GraphReader:
    """The processor of node samples: turns node numbers into what a graph encoder reads.

    An upload names nodes, not their graph: after a load say which one it is, ``model.processor = reader``.

    Args:
        x: Features (N, F).
        edge_index: Edges (2, E).

    Example:
        ```python
        >>> from hf_relreps.nodes import GraphReader
        >>> reader = GraphReader(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
        >>> sorted(reader.collate([{"nodes": 0, "labels": 1}, {"nodes": 2, "labels": 0}]))
        ['edge_index', 'labels', 'nodes', 'x']
        >>> reader.item(torch.tensor([0, 1, 0]), torch.tensor([True, True, False]))["labels"].tolist()
        [0, 1, -100]

        ```
    """

    def __init__(self, x: Tensor, edge_index: Tensor) -> None:
        self.x = x
        self.edge_index = edge_index

    def __call__(self, nodes: Sequence[int], return_tensors: str = "pt") -> dict[str, Tensor]:
        """The whole graph and the nodes asked for.

        Raises:
            SampleError: If a node is not one of the graph.
        """
        nodes_B = torch.as_tensor(nodes, dtype=torch.long)
        _check(len(self.x), nodes_B)
        return {"x": self.x, "edge_index": self.edge_index, "nodes": nodes_B}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collator of a data set with a row for each node: its number as `nodes`, and its label as `labels`.

        The encoder sees the whole graph at every step, the loss and the metrics those nodes.
        """
        columns = {name: torch.as_tensor([row[name] for row in rows]) for name in rows[0]}
        return columns | self([row["nodes"] for row in rows])

    def save_pretrained(self, save_directory: Any) -> None:
        """Nothing: an upload names its nodes, the graph stays with its owner."""

    def item(self, labels_N: Tensor, counted_N: Tensor | None = None) -> dict[str, Tensor]:
        """The graph as the one item of a data set for `Trainer`; labels of nodes that do not count become -100.

        See `one_graph`. `collate` is for data sets with one row for each node.
        """
        _check(len(self.x), labels=labels_N)
        labels_N = labels_N if counted_N is None else labels_N.masked_fill(~counted_N, -100)
        return {"x": self.x, "edge_index": self.edge_index, "labels": labels_N}


def _check(size: int, nodes_B: Tensor | None = None, labels: Tensor | None = None) -> None:
    """Refuse nodes that the graph does not have, and labels of another number of nodes."""
    if nodes_B is not None and nodes_B.numel() and not (0 <= int(nodes_B.min()) and int(nodes_B.max()) < size):
        raise SampleError(
            f"Nodes {int(nodes_B.min())} to {int(nodes_B.max())} were asked for, the graph has nodes 0 to {size - 1}. "
            "Give the graph that the nodes were chosen from."
        )
    expected = size if nodes_B is None else len(nodes_B)
    if labels is not None and len(labels) != expected:
        raise SampleError(
            f"There are {len(labels)} labels for {expected} nodes. Give one for each, and -100 for those that do not "
            "count."
        )


def one_graph(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collator of a data set whose one item is a graph: a training step for all of its nodes.

    With `compute_metrics` set `per_device_eval_batch_size` to 1: the Trainer takes the nodes of a batch for samples,
    and cuts those of an incomplete batch.

    Example:
        ```python
        >>> from hf_relreps.nodes import GraphReader, one_graph
        >>> reader = GraphReader(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 0]]))
        >>> sorted(one_graph([reader.item(torch.tensor([0, 1, 0]))]))
        ['edge_index', 'labels', 'x']

        ```
    """
    if len(items) != 1:
        raise SampleError(
            f"A batch holds {len(items)} graphs, expected one. Set per_device_train_batch_size=1, or collate rows of "
            "single nodes with GraphReader.collate."
        )
    return items[0]
