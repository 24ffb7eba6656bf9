"""Run the notebooks from top to bottom and write their outputs into them: `make notebooks`, or name some files.

What stays in a file is what a reader of the page needs: no durations, no progress bars. A notebook that warns, or
prints a path of this machine, is refused and left as it was. The picture that the README shows is copied from its
notebook to `docs/images`.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


FOLDER = Path(__file__).parent
# Notebook -> where the first picture in it is copied to.
PICTURES = {"01_relative_in_ten_lines": FOLDER.parent / "docs" / "images" / "latent_spaces.png"}
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Bars would be in the way of a page; warnings are for whoever runs the notebook, and are refused below.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait without spinning: beside other work on the same cores training is many times faster so.
    "OMP_WAIT_POLICY": "PASSIVE",
}
# The Trainer writes how long it took and how long it will; its bar in a notebook says "[411/411 00:21, Epoch 3/3]".
DURATION = re.compile(r"(?<=\d) \d\d(?::\d\d)+( < \d\d(?::\d\d)+)?(, [\d.]+ it/s)?(?=, |\])")
EMPTY_TABLE = re.compile(r"<tbody>\s*</tbody>")  # of a Trainer that logs nothing
BAR = re.compile(r"<progress .*?</progress>\s*", re.DOTALL)
NOTED = re.compile(r"TqdmWarning: IProgress not found|from \.autonotebook import tqdm|^\s*$")


def execute(notebook: Any, folder: Path = FOLDER, timeout: int = 900) -> Any:
    """The notebook with the outputs of a run from top to bottom, in a process of its own that starts in `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        before = dict(os.environ)
        # What the notebooks write goes where it is removed; what they import beside them is found.
        paths = [str(folder), *filter(None, [before.get("PYTHONPATH")])]
        os.environ.update(QUIET | {"PYTHONPATH": os.pathsep.join(paths)})
        try:
            client = NotebookClient(
                notebook,
                timeout=timeout,
                kernel_name="python3",
                record_timing=False,
                extra_arguments=["--IPKernelApp.log_level=40"],
                resources={"metadata": {"path": scratch}},
            )
            client.execute()
        finally:
            os.environ.clear()
            os.environ.update(before)
        return tidied(notebook, scratch)


def picture(notebook: Any) -> bytes:
    """The first picture among the outputs, as a PNG file holds it."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return base64.b64decode(next(o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})))


def tidied(notebook: Any, scratch: str = "") -> Any:
    """The notebook without what changes from run to run; raises `ValueError` for what should not be on a page."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        cell.outputs = _joined(output for output in map(_timeless, cell.outputs) if not _is_noise(output))
        for output in cell.outputs:
            _refuse_unfit(output, cell.source, scratch)
    return notebook


def _timeless(output: Any) -> Any:
    """The output without durations and without what belongs to a display that lives."""
    output.pop("transient", None)
    html = output.get("data", {}).get("text/html")
    if html is not None:
        output.data["text/html"] = DURATION.sub("", BAR.sub("", html))
    return output


def _joined(outputs: Iterable[Any]) -> list[Any]:
    """One piece of text for each stream that follows itself."""
    found: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and found and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def _is_noise(output: Any) -> bool:
    if output.output_type == "stream" and output.name == "stderr":
        return all(NOTED.search(line) for line in output.text.splitlines())
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return True
    html = data.get("text/html", "")
    return "<" in html and (not re.sub(r"<[^>]*>|\s", "", html) or EMPTY_TABLE.search(html) is not None)


def _refuse_unfit(output: Any, source: str, scratch: str) -> None:
    texts = [value for kind, value in output.get("data", {}).items() if "image" not in kind]
    text = "".join(map(str, [output.get("text", ""), *texts]))
    where = f"The cell that begins with {source.splitlines()[0]!r}"
    if output.output_type == "stream" and output.name == "stderr":
        raise ValueError(f"{where} warns: {text.strip()[:2000]}")
    for place in filter(None, (scratch, str(Path.home()), str(FOLDER.parent), tempfile.gettempdir() + "/")):
        if len(place) > 1 and place in text:
            raise ValueError(f"{where} prints the path {place}, which no other machine has: {text.strip()[:2000]}")


def main() -> None:
    """Run the notebooks that were named, or all, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="files (all, if none is named)")
    for path in parser.parse_args().notebooks or sorted(FOLDER.glob("*.ipynb")):
        started = time.monotonic()
        try:
            notebook = execute(nbformat.read(path, as_version=4))
        except (ValueError, CellExecutionError) as error:
            raise SystemExit(f"{path.name}: {error}") from error
        nbformat.write(notebook, path)
        if path.stem in PICTURES:
            PICTURES[path.stem].parent.mkdir(exist_ok=True)
            PICTURES[path.stem].write_bytes(picture(notebook))
        print(f"{path.name}  {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
