"""Writes real messages into the page of errors: ``python docs/errors_page.py``.

Each section of ``docs/errors.md`` is named after an error and holds code that causes it. The quotation below the code
is replaced by what the error says.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import examples


_SECTION = re.compile(
    r"(?ms)^## (?P<name>\w+)\n(?P<prose>.*?)^```python\n(?P<code>.*?)^```\n\n(?P<said>(?:> [^\n]*\n)*)"
)
_MISSING = re.compile(r"# where (\w+) is not installed")


def page(text: str, names: dict[str, Any]) -> str:
    """The page with its messages as they are now.

    Args:
        text: The page.
        names: Those that every example begins with. Files are written where this runs.
    """
    return _SECTION.sub(lambda section: _with_message(section, names), text)


def sections(text: str) -> list[str]:
    """Names of the errors that have a section with code."""
    return [section["name"] for section in _SECTION.finditer(text)]


def _with_message(section: re.Match[str], names: dict[str, Any]) -> str:
    said = _literal(_message(section["name"], section["code"], names))
    quoted = textwrap.indent(textwrap.fill(said, 140, break_long_words=False, break_on_hyphens=False), "> ")
    return f"## {section['name']}\n{section['prose']}```python\n{section['code']}```\n\n{quoted}\n"


def _message(name: str, code: str, names: dict[str, Any]) -> str:
    expected = examples.resolved(f"errors.{name}")
    with _without(_MISSING.findall(code)), contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(compile(code, name, "exec"), dict(names))
        except expected as error:
            assert type(error) is expected, f"The code of {name} raises {type(error).__name__}."
            return str(error)
    raise AssertionError(f"The code of {name} raises nothing.")


def _literal(text: str) -> str:
    """Markdown that shows a text as it is."""
    return re.sub(r"([\\`*_<>\[\]#])", r"\\\1", text)


@contextlib.contextmanager
def _without(modules: list[str]) -> Iterator[None]:
    """Importing these modules fails inside, as if they were not installed."""
    kept = {name: sys.modules[name] for name in modules if name in sys.modules}
    absent: dict[str, Any] = dict.fromkeys(modules)
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(kept)


def main() -> int:
    """Write the page; the exit code."""
    if os.environ.get(examples.INSIDE) != "1":
        return examples.with_hub(Path(__file__), [])
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        text = page(examples.ERRORS.read_text("utf-8"), examples.beginning())
    examples.ERRORS.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
