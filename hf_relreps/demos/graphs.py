"""Citation graphs: Cora, CiteSeer and PubMed, whose nodes are papers and whose labels are fields."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_relreps.errors import MissingExtraError


if TYPE_CHECKING:
    from torch_geometric.data import Data

NAMES = ("Cora", "CiteSeer", "PubMed")
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def load_planetoid(name: str, root: str | Path, *, normalize: bool = False, download: bool = False) -> Data:
    """Returns one graph: `x` (N, F), `edge_index`, `y`, and its public split as `train_mask`, `val_mask`, `test_mask`.

    Nothing is written, except by a download. The raw files are pickles: take them only from a source you trust.

    Args:
        name: "Cora", "CiteSeer" or "PubMed".
        root: Folder with `<name>/raw/ind.<name>.*`, as `torch_geometric.datasets.Planetoid` keeps them.
        normalize: Whether to scale the features of each node to a sum of one, as the paper does; without, nets of few
            training nodes learn faster.
        download: Whether to fetch raw files that are missing.

    Raises:
        ValueError: There is no such graph.
        FileNotFoundError: Raw files are missing.
        MissingExtraError: `torch_geometric` is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"Found graph {name!r}, expected one of {', '.join(NAMES)}.")
    try:
        from torch_geometric.datasets import Planetoid
        from torch_geometric.io import read_planetoid_data
        from torch_geometric.transforms import NormalizeFeatures
    except ImportError as error:
        raise MissingExtraError(
            "Citation graphs are read by torch_geometric, which is not installed: pip install hf_relreps[graphs]"
        ) from error
    raw = Path(root) / name / "raw"
    missing = [part for part in PARTS if not (raw / f"ind.{name.lower()}.{part}").is_file()]
    if missing and not download:
        raise FileNotFoundError(
            f"There is no ind.{name.lower()}.{missing[0]} in {raw}. Name another root, or fetch it: download=True."
        )
    data = Planetoid(str(root), name)[0] if missing else read_planetoid_data(str(raw), name)
    return NormalizeFeatures()(data) if normalize else data
