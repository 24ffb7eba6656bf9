"""The nodes of Cora through GCN, GAT, GIN and GCNII, two of each, no two from the same seed."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.modalities.graphs import Budget, Split, trained
from benchmarks.quality.spaces import Spaces
from hf_relreps.demos.graphs import load_planetoid
from hf_relreps.evaluation import stitching_matrix


NAME = "Cora"
SEEDS = 2


def load(arguments: Namespace) -> Spaces:
    """Absolute embeddings of all nodes by encoders that were trained end to end, gradients through the anchors."""
    x = _kept(arguments.data / "planetoid", arguments.cache)
    graph = load_planetoid(NAME, arguments.data / "planetoid")
    free_N = ~(graph.val_mask | graph.test_mask)
    masks = (graph.train_mask, graph.val_mask, graph.test_mask, free_N)
    return Spaces("graphs", x, graph.y.numpy(), *(torch.nonzero(mask_N).flatten().numpy() for mask_N in masks))


def end_to_end_matrix(folder: Path) -> dict[str, Any]:
    """Encoders and decoders as they were trained, stitched to one another on the test nodes."""
    return json.loads((folder / "cora.json").read_text("utf-8"))


def _kept(data: Path, folder: Path) -> dict[str, Tensor]:
    file = folder / "cora.safetensors"
    if not file.is_file():
        split = Split.of(NAME, Namespace(data=data, download=False, anchors=300))
        models = trained(split, True, SEEDS, Budget(), folder)
        held_out, known = split.rows(split.test_N), split.rows(split.train_N)
        matrix = stitching_matrix(models, models, held_out, metric="f1", train_dataset=known, progress=False)
        folder.joinpath("cora.json").write_text(json.dumps(matrix.to_dict() | matrix.summary), "utf-8")
        nodes = list(range(len(split.labels_N)))
        save_file({name: model.encoder.encode(nodes).contiguous() for name, model in models.items()}, file)
    return load_file(file)
