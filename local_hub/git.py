"""The object ids of git, so that files, folders and commits here are named as they are on the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def object_id(kind: str, content: bytes) -> str:
    """The id of a git object: `git hash-object -t kind`."""
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git stores in place of a file that LFS keeps."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def folder_ids(blob_ids: Mapping[str, str]) -> dict[str, str]:
    """The id of every folder that these files make, the root under the empty path.

    Raises:
        ValueError: A path is a file and a folder at once.
    """
    entries: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, blob_id in blob_ids.items():
        folder, _, name = path.rpartition("/")
        while folder not in entries:
            entries[folder] = {}
            folder = folder.rpartition("/")[0]
        entries[path.rpartition("/")[0]][name] = ("100644", blob_id)
    if clash := entries.keys() & blob_ids.keys():
        raise ValueError(f"{sorted(clash)[0]!r} cannot be a file and a folder at once")

    ids: dict[str, str] = {}
    for folder in sorted(entries, key=lambda path: path.count("/") if path else -1, reverse=True):
        ids[folder] = object_id("tree", _tree(entries[folder]))
        if folder:
            parent, _, name = folder.rpartition("/")
            entries[parent][name] = ("40000", ids[folder])
    return ids


def _tree(entries: Mapping[str, tuple[str, str]]) -> bytes:
    # git sorts a folder as if its name ended in a slash
    ordered = sorted(entries.items(), key=lambda item: f"{item[0]}/" if item[1][0] == "40000" else item[0])
    return b"".join(b"%s %s\0" % (mode.encode(), name.encode()) + bytes.fromhex(oid) for name, (mode, oid) in ordered)
