"""Measure what relative representations cost, and write `docs/speed.md` from what was measured.

``python -m benchmarks.speed`` measures all, ``python -m benchmarks.speed projection imports`` some,
``python -m benchmarks.speed --report`` only writes the document.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from benchmarks.reporting import console, machine, quiet, timed, write
from benchmarks.speed import report
from benchmarks.speed.report import ITEMS


RESULTS = Path(__file__).parents[1] / "results" / "speed"
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def measure(name: str, quick: bool, output: Path) -> None:
    """One item, written as JSON with the machine and its load."""
    before = os.getloadavg()[0]
    found = importlib.import_module(f"benchmarks.speed.{name}").run(quick)
    found["machine"] = machine() | {"load": [round(before, 1), round(os.getloadavg()[0], 1)], "quick": quick}
    write(output / f"{name}.json", found)
    console.print("\n".join(report.table(found["rows"])), markup=False)


def main(words: list[str] | None = None) -> None:
    """Run items, then write the document."""
    parser = argparse.ArgumentParser(
        "benchmarks.speed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("items", nargs="*", metavar="item", help=f"all, if left out: {', '.join(ITEMS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes and few pairs: to see that it works")
    parser.add_argument("--report", action="store_true", help="measure nothing, write docs/speed.md")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.items if name not in ITEMS]
    if unknown:
        parser.error(f"there is no item {', '.join(unknown)}; there are {', '.join(ITEMS)}")
    if not WAITING.items() <= os.environ.items():  # read once, when torch is loaded
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:]], os.environ | WAITING)
    for name in () if arguments.report else (arguments.items or ITEMS):
        with quiet(), timed(name):
            measure(name, arguments.quick, arguments.output)
    if not arguments.quick:
        report.write(arguments.output)


if __name__ == "__main__":
    main()
