"""One command for each promise of docs/reliability.md; each prints what it tried, what was borne and what was lost.

For example ``python -m benchmarks.reliability fuzz --count 10000``. It ends with an error if anything was lost.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from benchmarks.reporting import quiet


COUNTS = {"fuzz": 10_000, "kill": 40, "ranks": 4, "numbers": 3_000, "load": 10_000}
UNITS = {
    "fuzz": "mutated uploads",
    "kill": "kills, every other one at a random moment",
    "ranks": "processes",
    "numbers": "random spaces",
    "load": "predictions of the service loop",
}


def main(words: list[str] | None = None) -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser("benchmarks.reliability", description=__doc__)
    parser.add_argument("what", choices=COUNTS)
    told = ", ".join(f"{what} {count:,} {UNITS[what]}" for what, count in COUNTS.items())
    parser.add_argument("--count", type=int, help=f"how many; otherwise {told}")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    arguments = parser.parse_args(words)
    start = time.monotonic()
    with quiet():
        module = importlib.import_module(f"benchmarks.reliability.{arguments.what}")
        report = module.run(arguments.count or COUNTS[arguments.what], arguments.seed)
    print(f"{report}\nseconds: {time.monotonic() - start:.0f}")  # noqa: T201
    sys.exit(1 if report.lost else 0)


if __name__ == "__main__":
    main()
