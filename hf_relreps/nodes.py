"""Node classification: the samples are nodes of a graph, and so are the anchors.

Shapes: N nodes, F features of a node, E edges, B nodes asked for, D absolute size, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_relreps.errors import SampleError
from hf_relreps.modeling import RelativeClassifierOutput, RelativeTaskModel


class RelativeModelForNodeClassification(RelativeTaskModel):
    """A graph encoder and a decoder that gives the classes of nodes.

    With `config.anchor_gradient` training describes nodes by the anchors of the same forward pass, so that gradients
    pass through the anchors too (the paper's graph experiments, section 4.3). In evaluation the stored anchors count,
    as for every other model: `AnchorCallback` keeps them.

    Example:
        ```python
        reader = GraphReader(graph.x, graph.edge_index)
        view = AnchorSet(nodes, {"cora": nodes}).view()
        model = RelativeModelForNodeClassification.from_encoder(GraphEncoder(config), view, reader, num_labels=7)
        Trainer(model, args, train_dataset=[reader.item(labels)], data_collator=one_graph, callbacks=[AnchorCallback()])
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
        """Logits of all nodes (N, C), or of the nodes asked for (B, C); labels of -100 do not count in the loss."""
        return self._classify(labels, return_dict, x=x, edge_index=edge_index, nodes=nodes)


class GraphReader:
    """The processor of node samples: turns node numbers into what a graph encoder reads.

    Args:
        x: Features (N, F).
        edge_index: Edges (2, E).
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
        if len(nodes_B) and not (0 <= int(nodes_B.min()) and int(nodes_B.max()) < len(self.x)):
            raise SampleError(
                f"Nodes {int(nodes_B.min())} to {int(nodes_B.max())} were asked for, the graph has nodes 0 to "
                f"{len(self.x) - 1}. Give the graph that the anchors were chosen from."
            )
        return {"x": self.x, "edge_index": self.edge_index, "nodes": nodes_B}

    def save_pretrained(self, save_directory: Any) -> None:
        """Nothing: an upload names its nodes, the graph stays with its owner."""

    def item(self, labels_N: Tensor, counted_N: Tensor | None = None) -> dict[str, Tensor]:
        """The graph as the one item of a data set for `Trainer`; labels that do not count become -100."""
        labels_N = labels_N if counted_N is None else labels_N.masked_fill(~counted_N, -100)
        return {"x": self.x, "edge_index": self.edge_index, "labels": labels_N}


def one_graph(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collator of a data set whose one item is a graph."""
    if len(items) != 1:
        raise SampleError(f"A batch holds {len(items)} graphs, expected one. Set per_device_train_batch_size=1.")
    return items[0]
