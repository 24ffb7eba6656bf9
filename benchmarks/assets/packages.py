"""Where the packages lie that carry encoders and data."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


SITE = "site"  # where Python packages lie in a folder of assets


def package_folder(module: str, requirement: str, assets: Path | None) -> Path:
    """The folder of a Python package: in `assets/site`, or wherever Python finds it.

    Args:
        module: Name under which it is imported.
        requirement: What pip installs it by; for the message.
        assets: Folder of assets; `None` if the package is on `sys.path`.

    Raises:
        FileNotFoundError: If it is in neither place.
    """
    if assets is not None and (assets / SITE / module).is_dir():
        return assets / SITE / module
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(missing(module, requirement, assets))
    return Path(found.submodule_search_locations[0])


def missing(module: str, requirement: str, assets: Path | None) -> str:
    """What to say of a package that is in neither place."""
    return (
        f"{module} is neither in {assets or 'a folder of assets (none was given)'} nor on the path of Python. "
        f"Install it: pip install --no-deps --target {assets or 'assets'}/{SITE} {requirement}"
    )


def make_importable(folder: Path) -> None:
    """Let Python import what lies in a folder; what it finds elsewhere goes first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def unpacked(name: str, command: str, assets: Path | None) -> Path:
    """The folder of an npm or Debian package that was unpacked into `assets`, by whichever way.

    Args:
        name: Name of the package.
        command: What gets it; for the message.
        assets: Folder of assets.

    Raises:
        FileNotFoundError: If it is not there.
    """
    for place in () if assets is None else (assets / name / "package", assets / "debs" / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"Found no package {name} in {assets or 'a folder of assets (none was given)'}. Get it: {command}"
    )
