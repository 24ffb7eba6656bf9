"""Notebooks as pages of the site: ``write(folder)`` turns each into Markdown, with the outputs that it holds."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
_LINK = re.compile(r"\]\(([^)#:]+?)(\.ipynb)?(#[^)]*)?\)")


def write(folder: Path) -> None:
    """Write the pages and pictures of all notebooks, and their index, into a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "index.md").write_text(_linked((NOTEBOOKS / "README.md").read_text("utf-8")), "utf-8")
    for file in notebooks():
        cells = json.loads(file.read_text("utf-8"))["cells"]
        blocks = [block for i, cell in enumerate(cells) for block in _blocks(cell, folder, f"{file.stem}_{i}")]
        (folder / f"{file.stem}.md").write_text("\n\n".join(blocks) + "\n", "utf-8")


def notebooks() -> list[Path]:
    """The notebooks in reading order."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def title(notebook: Path) -> str:
    """Its first heading."""
    return "".join(json.loads(notebook.read_text("utf-8"))["cells"][0]["source"]).split("\n")[0].lstrip("# ")


def _blocks(cell: dict[str, Any], folder: Path, name: str) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield _linked(source)
        return
    yield f"```python\n{source}\n```"
    for i, output in enumerate(cell["outputs"]):
        data = output.get("data", {})
        if "image/png" in data:
            picture = folder / f"{name}_{i}.png"
            picture.write_bytes(base64.b64decode("".join(data["image/png"])))
            yield f"![Output of the cell above]({picture.name})"
        elif "".join(data.get("text/plain", "")).startswith("<IPython.core.display.HTML"):
            yield f"```{{raw}} html\n{''.join(data['text/html'])}\n```"
        elif "text" in output or "text/plain" in data:
            text = "".join(output.get("text") or data["text/plain"])
            yield f"```text\n{text.rstrip()}\n```"


def _linked(text: str) -> str:
    """Links to other notebooks lead to their pages; those out of the folder are seen from ``docs/notebooks``."""

    def moved(match: re.Match[str]) -> str:
        target, notebook, place = match[1], match[2], match[3] or ""
        if target.startswith("../docs/"):
            target = target.removeprefix("../docs/").join(["../", ""])
        elif target.startswith("../"):
            target = f"../{target}"
        return f"]({target}{'.md' if notebook else ''}{place})"

    return _LINK.sub(moved, text)
