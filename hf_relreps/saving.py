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
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

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
    if beside.is_symlink():  # no save of ours: what is written must stay inside
        beside.unlink()
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
    """Put the files of a save that was written to its end, and then interrupted, into their places.

    A folder may have come from anywhere, and its mark with it: nothing outside of the folder is written or removed.

    Raises:
        UploadError: If the mark names files outside of the folder, or cannot be read; nothing is changed then.
    """
    beside = root / BESIDE
    mark = beside / MARK
    if not mark.is_file():
        return
    files, obsolete = _told_by(mark, root)
    for name in files:
        source, target = beside / "files" / name, root / name
        if source.is_file():  # else it was put there before the interruption
            target.parent.mkdir(parents=True, exist_ok=True)
            put(source, target)
    for pattern in obsolete:
        for path in root.glob(pattern):
            if path.is_file() and path.relative_to(root).as_posix() not in files and _is_inside(path, root):
                path.unlink()
    mark.unlink()
    shutil.rmtree(beside, ignore_errors=True)


def _told_by(mark: Path, root: Path) -> tuple[list[str], list[str]]:
    """The files that a mark names, and the patterns of those that go."""
    try:
        told = json.loads(mark.read_text("utf-8"))
        files, obsolete = told["files"], told["obsolete"]
        if not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in told.values()
        ):
            raise TypeError("it holds no lists of names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UploadError(
            f"{mark} cannot be read ({error!r:.100}), expected what an interrupted save leaves. Remove the folder "
            f"{mark.parent}: the files beside it are those from before that save."
        ) from error
    for name in (*files, *obsolete):
        path = PurePosixPath(name)
        if path.is_absolute() or {"..", "**"} & set(path.parts) or "\\" in name or "\0" in name or not name:
            _refuse_outside(mark, name)
    for name in files:
        if not (_is_inside(root / name, root) and _is_inside(mark.parent / "files" / name, root)):
            _refuse_outside(mark, name)
    return files, obsolete


def _is_inside(path: Path, root: Path) -> bool:
    """Whether the folder that holds a file is inside of `root`, links followed."""
    return path.parent.resolve().is_relative_to(root.resolve())


def _refuse_outside(mark: Path, name: str) -> NoReturn:
    raise UploadError(
        f"{mark} names {name!r:.80}, expected files inside of {mark.parent.parent}. No save of this library left it: "
        f"do not use this folder, or remove {mark.parent}."
    )


def write_text(file: Path, text: str) -> None:
    """Write a file of text in the place of the one there, whole or not at all."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
