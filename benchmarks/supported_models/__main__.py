"""`python -m benchmarks.supported_models`: sweep over every model type, and write docs/supported_models.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model is built here, none is fetched

import torch  # noqa: E402
import transformers  # noqa: E402

from benchmarks.reporting import quiet  # noqa: E402
from benchmarks.supported_models.inputs import NUM_ANCHORS, NUM_SAMPLES  # noqa: E402
from benchmarks.supported_models.probe import Row  # noqa: E402
from benchmarks.supported_models.report import counts, render  # noqa: E402
from benchmarks.supported_models.sweep import MODEL_TYPES, sweep  # noqa: E402


DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Run the sweep, print a line for each type, write the table unless only some types were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.supported_models", description=__doc__)
    parser.add_argument(
        "--types", type=lambda names: names.split(","), help="only these, separated by commas; writes nothing"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=300, help="time for one type")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder of supported_models.md and .json")
    arguments = parser.parse_args()
    types = arguments.types or list(MODEL_TYPES)
    start = time.monotonic()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        rows = sweep(types, Path(folder), arguments.jobs, arguments.seconds, report=_print)
    record = {
        "command": f"python -m benchmarks.supported_models --jobs {arguments.jobs}",
        "minutes": round((time.monotonic() - start) / 60, 1),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "anchors": NUM_ANCHORS,
        "samples": NUM_SAMPLES,
        "rows": [row.to_dict() for row in rows],
    }
    print(counts(record["rows"]))
    if arguments.types is None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "supported_models.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        (arguments.output / "supported_models.md").write_text(render(record), "utf-8")


def _print(rows: list[Row]) -> None:
    for row in rows:
        says = f"{row.tower or '-'} {row.pooling} {row.width}" if row.works else f"{row.cause}: {row.detail}"
        print(f"{row.model_type:32} {row.modality:6} {'works' if row.works else 'FAILS'} {says}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
