"""One command for each modality: own, stitched, absolute control and chance as a table, a picture and JSON.

For example ``python -m benchmarks.modalities images --quick``; ``images --help`` tells the arguments of each.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.reporting import quiet


MODALITIES = ("images", "reconstruction", "graphs", "audio")
RESULTS = Path(__file__).parents[1] / "results"


def parser_of(name: str) -> argparse.ArgumentParser:
    """The arguments that all modalities share, and those of one."""
    module = importlib.import_module(f"benchmarks.modalities.{name}")
    parser = argparse.ArgumentParser(
        f"benchmarks.modalities {name}", description=module.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little data, to see that it works: below one minute")
    parser.add_argument("--seeds", type=int, default=3, help="encoders of each kind, each from its own seed")
    parser.add_argument("--output", type=Path, default=RESULTS / name, help="where pictures and JSON go")
    module.add_arguments(parser)
    return parser


def main(words: list[str] | None = None) -> None:
    """Run one modality."""
    choice = argparse.ArgumentParser("benchmarks.modalities", description=__doc__, add_help=False)
    choice.add_argument("modality", choices=MODALITIES)
    chosen, rest = choice.parse_known_args(words)
    parser = parser_of(chosen.modality)
    arguments = parser.parse_args(rest)
    if arguments.seeds < 2:
        parser.error(f"--seeds {arguments.seeds}: stitching needs two encoders of each kind or more")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with quiet():
        importlib.import_module(f"benchmarks.modalities.{chosen.modality}").run(arguments)


if __name__ == "__main__":
    main()
