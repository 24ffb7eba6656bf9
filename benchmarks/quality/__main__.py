"""How much of its own score a model keeps when its parts are stitched: one command for each setting and each study.

For example ``python -m benchmarks.quality words`` needs nothing but the package; ``text``, ``glosses`` and ``images``
need encoders out of packages, which `benchmarks.assets` names; ``--quick`` takes little of everything.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks.quality import report
from benchmarks.quality.settings import SETTINGS, TRAINED
from benchmarks.reporting import quiet, timed, write


RESULTS = Path(__file__).parents[1] / "results" / "quality"
STUDIES = ("matching", "anchors", "prediction", "aggregation", "translating")
TEXT_ENCODERS = ("minilm", "use", "me5", "mpnet")
QUICK_ROWS = 400  # of each split


def main(words: list[str] | None = None) -> None:
    """Run settings and studies."""
    arguments = _arguments(words)
    if arguments.report:
        report.write(arguments.output)
        return
    arguments.cache.mkdir(parents=True, exist_ok=True)
    for name in arguments.what:
        with quiet(), timed(name):
            if name in STUDIES:
                found = importlib.import_module(f"benchmarks.quality.{name}").run(arguments)
            else:
                found = setting(name, arguments)
        if not arguments.quick:
            write(arguments.output / f"{name}.json", found, indent=None)


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks.quality", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=[], metavar="what", help=_choices())
    parser.add_argument("--report", action="store_true", help="measure nothing, write docs/quality.md")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--seeds", type=int, default=3, help="of anchors and decoders (3)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/quality"), help="what encoders say, kept there")
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--data", type=Path, help="folder with trec.parquet and planetoid/")
    parser.add_argument("--encoders", nargs="+", default=TEXT_ENCODERS, choices=TEXT_ENCODERS, help="of the texts")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.what if name not in (*SETTINGS, *STUDIES)]
    if unknown or not (arguments.what or arguments.report):
        parser.error(f"found {', '.join(unknown) or 'nothing to measure'}, expected some of:\n{_choices()}")
    return arguments


def _choices() -> str:
    return f"settings: {', '.join(SETTINGS)}\nstudies: {', '.join(STUDIES)}"


def setting(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The main table of one setting."""
    from benchmarks.quality.table import SIZES, run, show

    spaces = SETTINGS[name](arguments)
    if arguments.quick:
        spaces = spaces.some(QUICK_ROWS)
    found = run(spaces, 1 if arguments.quick else arguments.seeds, (100,) if arguments.quick else SIZES)
    if name in TRAINED:
        found["end_to_end"] = json.loads((arguments.cache / TRAINED[name]).with_suffix(".json").read_text("utf-8"))
    show(name, found)
    return found


if __name__ == "__main__":
    main()
