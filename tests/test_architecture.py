"""The shape of the project: what is public, what importing costs, what stays outside."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import hf_relreps


ROOT = Path(__file__).parents[1]
PUBLIC_NAMES = [
    "AnchorCallback",
    "AnchorSet",
    "RelativeConfig",
    "RelativeDecoder",
    "RelativeDecoderConfig",
    "RelativeEncoderConfig",
    "RelativeModel",
    "RelativeModelForAudioClassification",
    "RelativeModelForImageClassification",
    "RelativeModelForImageReconstruction",
    "RelativeModelForNodeClassification",
    "RelativeModelForPairClassification",
    "RelativeModelForSequenceClassification",
    "RelativeModelForTokenClassification",
    "RelativeModelWithDecoders",
    "RelativeSpace",
    "RelativeTrainer",
    "compatibility",
    "errors",
    "find_parts",
    "latent_similarity",
    "stitch",
    "stitching_matrix",
]
# Needed by some rooms, or by one function: whoever only imports hf_relreps must not wait for them.
NOT_ON_IMPORT = ["datasets", "matplotlib", "pandas", "sklearn", "starlette", "torch_geometric", "uvicorn"]
# Opening a socket fails, as does asking for an address.
IMPORT_WITHOUT_NETWORK = f"""
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("importing hf_relreps opened the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import hf_relreps
print([name for name in {NOT_ON_IMPORT} if name in sys.modules])
"""
OUTSIDE = re.compile("|".join(["[.][.]/" + "shared", "/" + "work/", "/" + "tmp/venv"]))
UNREAD_SUFFIXES = {".parquet", ".png", ".safetensors"}


def test_the_public_names_are_these():
    assert hf_relreps.__all__ == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_can_be_imported_and_says_what_it_is(name):
    thing = getattr(hf_relreps, name)
    # Of its own: a class would otherwise show the text of the class above it.
    text = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert text and text.strip()


def test_the_errors_are_public_and_share_a_root():
    errors = importlib.import_module("hf_relreps.errors")
    found = [
        e
        for _, e in inspect.getmembers(errors, inspect.isclass)
        if e.__module__ == errors.__name__ and issubclass(e, Exception)
    ]
    assert len(found) > 1
    assert all(issubclass(error, errors.RelrepsError) and error.__doc__ for error in found)


def test_importing_is_quiet_light_and_needs_no_network():
    done = subprocess.run([sys.executable, "-c", IMPORT_WITHOUT_NETWORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_changelog_metadata_and_installation_agree_on_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[:2] == ["Unreleased", project["version"]]
    assert version("hf_relreps") == project["version"]


def test_no_file_mentions_a_path_outside_the_project():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [ROOT / name for name in listed.stdout.splitlines() if Path(name).suffix not in UNREAD_SUFFIXES]
    assert ROOT / "pyproject.toml" in files
    assert [str(file) for file in files if file.is_file() and OUTSIDE.search(file.read_text(errors="replace"))] == []
