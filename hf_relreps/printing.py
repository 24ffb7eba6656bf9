"""Strangers' text for a terminal or a page, and tables in columns."""

from __future__ import annotations

import re
from collections.abc import Sequence


# What moves the cursor, colours, turns the direction of writing, or hides: C0, DEL, C1, marks of direction.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def printable(text: object) -> str:
    """A stranger's text for a terminal or a page: characters that act instead of being seen are shown as escapes.

    Lines stay lines; see `one_line`.
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", str(text))


def one_line(text: object) -> str:
    """`printable`, and no line of its own: for a cell, a label, a name."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def in_columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows of a table as lines for a terminal, each column as wide as its widest cell; cells as `one_line`."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
