"""Saves that are whole or did not happen: written beside what is there, then put into its place.

A folder is several files, which no system exchanges at once. So a save that was written to its end says so in a mark,
and whoever opens the folder next puts the rest into its place: before the mark the old files count, after it the new.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_relreps.errors import UploadError


BESIDE = ".saving"  # a folder inside the one that is saved to, on the same disk
MARK = "complete.json"  # in it: the save was written to its end


@contextmanager
def saving_beside(folder: str | Path, obsolete: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write into, whose files take their places in `folder` when all of them are written.

    Args:
        folder: Where the files are to lie in the end.
        obsolete: Patterns of files there that go, unless they were written anew.

    Raises:
        UploadError: If weights could not be written; `folder` is as it was.
    """
    root = Path(folder)
    finish_save(root)
    beside = root / BESIDE
    shutil.rmtree(beside, ignore_errors=True)
    files = beside / "files"
    files.mkdir(parents=True)
    try:
        yield files
        written = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())
        write_text(beside / MARK, json.dumps({"files": written, "obsolete": list(obsolete)}))
    except SafetensorError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UploadError(
            f"The weights could not be written to {root}: {error}. The existing files are unchanged. Is the disk full?"
        ) from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finish_save(root)


def finish_save(root: Path, put: Callable[[Path, Path], Any] = Path.replace) -> None:
    """Put the files of a save that was written to its end, and then interrupted, into their places."""
    beside = root / BESIDE
    mark = beside / MARK
    if not mark.is_file():
        return
    told = json.loads(mark.read_text("utf-8"))
    for name in told["files"]:
        source, target = beside / "files" / name, root / name
        if source.is_file():  # else it was put there before the interruption
            target.parent.mkdir(parents=True, exist_ok=True)
            put(source, target)
    for pattern in told["obsolete"]:
        for path in root.glob(pattern):
            if path.is_file() and path.relative_to(root).as_posix() not in told["files"]:
                path.unlink()
    mark.unlink()
    shutil.rmtree(beside, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write a file of text in the place of the one there, whole or not at all."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
