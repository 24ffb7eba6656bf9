"""The README's blocks of code, as they stand there, and the same made small."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    """The fenced blocks of one kind (``python``, ``text``, ...), in their order."""
    return [code for name, code in BLOCK.findall(README.read_text("utf-8")) if name == kind]


def quick_start() -> tuple[str, str]:
    """The block with two pretrained encoders of the Hub, and what the README says it prints."""
    return blocks("python")[0], blocks("text")[0]


def offline_example() -> tuple[str, str]:
    """The block that trains two models offline, and what the README says it prints."""
    return blocks("python")[1], blocks("text")[1]


def made_small(code: str, replacements: Mapping[str, str]) -> str:
    """The code with each text replaced, which must be there: an edited README cannot run at full size unnoticed."""
    for written, small in replacements.items():
        assert written in code, f"the README's example no longer holds {written!r}"
        code = code.replace(written, small)
    return code


def shape(printed: str) -> str:
    """What is printed with every number and every label the same: words, brackets and lines stay."""
    return re.sub(r"\d[\d,]*(\.\d+)?", "0", re.sub(r"'label': '[^']+'", "'label': ''", printed)).strip()
