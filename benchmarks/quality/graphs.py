"""The nodes of Cora through GCN, GAT, GIN and GCNII, two of each, no two from the same seed."""

from __future__ import annotations

from argparse import Namespace

import torch

from benchmarks.modalities.graphs import Budget, Split
from benchmarks.modalities.graphs import trained as trained_models
from benchmarks.quality.spaces import Spaces, trained
from hf_relreps.demos.graphs import load_planetoid


FILE = "cora.safetensors"


def load(arguments: Namespace) -> Spaces:
    """Absolute embeddings of all nodes by encoders that were trained end to end, gradients through the anchors."""
    data = arguments.data / "planetoid"
    graph = load_planetoid("Cora", data)
    split = Split.of("Cora", Namespace(data=data, download=False, anchors=300))
    x = trained(
        arguments.cache / FILE,
        lambda: trained_models(split, True, 2, Budget()),
        lambda _: list(range(len(split.labels_N))),
        split.rows(split.test_N),
        train_dataset=split.rows(split.train_N),
    )
    masks = (graph.train_mask, graph.val_mask, graph.test_mask, ~(graph.val_mask | graph.test_mask))
    return Spaces("graphs", x, graph.y.numpy(), *(torch.nonzero(mask_N).flatten().numpy() for mask_N in masks))
