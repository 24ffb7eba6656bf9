"""Runs the examples of the API pages and of the docstrings that they show, against a Hub on this machine.

``python docs/examples.py`` runs all, ``python docs/examples.py docs/api/hub.md`` those of one page. The tests do the
same. Blocks marked ``python`` are run; what stands after ``>>>`` must print what the page says.

Every page begins with the names that the first block of ``docs/api/index.md`` makes. Its blocks go on from one
another; each docstring on it goes on from the last of them.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


DOCS = Path(__file__).parent
API = DOCS / "api"
LIBRARY = "hf_relreps"
ERRORS = DOCS / "errors.md"  # its code is run by `errors_page`
INSIDE = "HF_RELREPS_EXAMPLES"  # set in the process that has a Hub

_FENCE = re.compile(r"^(?P<indent> *)```(?:python|py)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
AUTODOC = re.compile(r"^\[\[autodoc\]\] (?P<name>[\w.]+)\n(?P<members>(?:    - \w+\n)*)", re.MULTILINE)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


@dataclass(frozen=True)
class Entry:
    """One ``[[autodoc]]`` of a page: a name below the library, and those of its members that are shown."""

    name: str
    members: tuple[str, ...] = ()

    @property
    def target(self) -> Any:
        """What the name stands for."""
        return resolved(self.name)

    def docstrings(self) -> Iterator[tuple[str, str]]:
        """Dotted name and docstring of the object and of its members."""
        yield self.name, inspect.getdoc(self.target) or ""
        for member in self.members:
            yield f"{self.name}.{member}", inspect.getdoc(getattr(self.target, member)) or ""


@dataclass
class Story:
    """Blocks that go on from one another: those of a page, or those of one docstring on it."""

    where: str
    blocks: list[str] = field(default_factory=list)


def resolved(name: str) -> Any:
    """The object of a dotted name below the library."""
    target = importlib.import_module(LIBRARY)
    dotted = LIBRARY
    for part in name.split("."):
        dotted = f"{dotted}.{part}"
        if not hasattr(target, part):
            importlib.import_module(dotted)
        target = getattr(target, part)
    return target


def pages() -> list[Path]:
    """The API pages, the errors page last."""
    return [*sorted(API.glob("*.md")), ERRORS]


def entries(page: Path) -> list[Entry]:
    """What a page documents."""
    found = AUTODOC.finditer(page.read_text("utf-8"))
    return [Entry(match["name"], tuple(re.findall(r"- (\w+)", match["members"]))) for match in found]


def blocks(text: str) -> list[str]:
    """The Python blocks of Markdown, in order."""
    return [textwrap.dedent(match["code"]) for match in _FENCE.finditer(text)]


def stories(page: Path) -> list[Story]:
    """The examples of a page: its own, then those of each docstring that it shows."""
    own = blocks(page.read_text("utf-8"))
    if page == API / "index.md":
        own = own[1:]
    told = [Story(page.relative_to(DOCS.parent).as_posix(), own)]
    for entry in entries(page):
        told += [Story(name, blocks(docstring)) for name, docstring in entry.docstrings()]
    return [story for story in told if story.blocks]


def code_of(block: str) -> str:
    """The statements of a block, without prompts and outputs."""
    if ">>>" not in block:
        return block
    return "".join(example.source for example in doctest.DocTestParser().get_examples(block))


def beginning() -> dict[str, Any]:
    """The names that every example begins with: the first block of ``docs/api/index.md``, run."""
    names: dict[str, Any] = {"__name__": "__main__"}
    run(Story("docs/api/index.md", blocks((API / "index.md").read_text("utf-8"))[:1]), names)
    return names


def run(story: Story, names: dict[str, Any]) -> None:
    """Run the blocks of a story one after the other; they may change `names`.

    Raises:
        AssertionError: If a block prints something else than it says, or raises.
    """
    for number, block in enumerate(story.blocks, 1):
        where = f"{story.where}, block {number}"
        if ">>>" in block:
            _run_session(block, names, where)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, where, "exec"), names)


def run_page(page: Path, names: dict[str, Any]) -> Iterator[tuple[str, Exception | None]]:
    """Run what a page shows, and say of each story what went wrong."""
    shared = dict(names)
    for story in stories(page):
        on_page = story.where.startswith("docs/")
        try:
            run(story, shared if on_page else dict(shared))
        except Exception as error:
            yield story.where, error
        else:
            yield story.where, None


def _run_session(block: str, names: dict[str, Any], where: str) -> None:
    test = doctest.DocTestParser().get_doctest(block, {}, where, None, 0)
    test.globs = names
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=_FLAGS, verbose=False)
    failed = runner.run(test, out=report.append, clear_globs=False).failed
    assert not failed, f"{where}\n{''.join(report)}"


def imported_names(source: str) -> set[str]:
    """Names below the library that a piece of code imports: ``AnchorSet``, ``translation.fit``, ..."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == LIBRARY:
            inside = (node.module or "").removeprefix(LIBRARY).lstrip(".")
            found |= {f"{inside}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*"}
    return found


def main(arguments: list[str]) -> int:
    """Run pages against a Hub of their own; the exit code."""
    if os.environ.get(INSIDE) != "1":
        return with_hub(Path(__file__), arguments)
    chosen = [Path(argument).resolve() for argument in arguments] or pages()[:-1]
    shared = beginning()
    failed = 0
    for page in chosen:
        for where, error in run_page(page, shared):
            failed += error is not None
            sys.stdout.write(f"FAILED {where}: {type(error).__name__}: {error}\n" if error else f"ok     {where}\n")
    return int(failed > 0)


def with_hub(script: Path, arguments: list[str]) -> int:
    """Run a script of this folder again as a process that talks to a Hub on this machine; the exit code."""
    # The client of the Hub reads its endpoint when it is imported: hence another process.
    sys.path.append(str(DOCS.parent))
    from local_hub import LocalHub

    with tempfile.TemporaryDirectory() as folder, LocalHub(user="me") as hub:
        quiet = {INSIDE: "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {**os.environ, **hub.environment(Path(folder, "cache")), **quiet}
        command = [sys.executable, script.resolve(), *(Path(argument).resolve() for argument in arguments)]
        return subprocess.run(command, env=environment, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
