"""Pictures of emoji with their names: pairs of an image and a text, in nine groups.

Pictures are Google's Noto Emoji (Apache-2.0), out of `emoji-datasource-google`; names, keywords and groups come from
`emojibase-data` (MIT). `benchmarks/assets/__init__.py` says how to get both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.assets.packages import unpacked


if TYPE_CHECKING:
    from datasets import Dataset

NAMES, PICTURES = "emojibase-data", "emoji-datasource-google"
VERSIONS = {NAMES: "17.0.0", PICTURES: "16.0.0"}
# the groups of emojibase by their number; the second are building blocks
GROUPS = {
    0: "smileys and emotion",
    1: "people and body",
    3: "animals and nature",
    4: "food and drink",
    5: "travel and places",
    6: "activities",
    7: "objects",
    8: "symbols",
    9: "flags",
}


def load_emoji_pictures(assets: Path | None, languages: tuple[str, ...] = ("en",)) -> Dataset:
    """About 1,900 emoji: `id` (its code), `image`, a text (name and keywords) for each language, `label` (its group).

    Args:
        assets: Folder of assets, with both npm packages.
        languages: The columns of texts.
    """
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    files = _pictures(_folder(PICTURES, assets))
    texts = {language: _entries(_folder(NAMES, assets), language) for language in languages}
    first = texts[languages[0]]
    shared = [code for code in first if code in files and all(code in found for found in texts.values())]
    names = list(GROUPS.values())
    columns: dict[str, list[Any]] = {"id": shared, "image": [on_white(files[code]) for code in shared]}
    columns |= {language: [_text(texts[language][code]) for code in shared] for language in languages}
    columns["label"] = [names.index(GROUPS[first[code]["group"]]) for code in shared]
    features = Features(
        {"id": Value("string"), "image": ImageFeature()}
        | {language: Value("string") for language in languages}
        | {"label": ClassLabel(names=names)}
    )
    return Dataset.from_dict(columns, features=features)


def on_white(file: Path) -> Image.Image:
    """A picture without its transparency, which would become black."""
    picture = Image.open(file).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _folder(package: str, assets: Path | None) -> Path:
    name = f"{package}@{VERSIONS[package]}"
    command = f"npm pack {name} && tar xzf {package}-{VERSIONS[package]}.tgz -C ASSETS/{package}"
    return unpacked(package, command, assets)


def _plain(code: str) -> str:
    """The code without the sign that asks for a picture, which only one of the packages writes everywhere."""
    return code.upper().replace("-FE0F", "")


def _pictures(folder: Path) -> dict[str, Path]:
    entries = json.loads((folder / "emoji.json").read_text("utf-8"))
    pictures = folder / "img" / "google" / "64"
    return {_plain(entry["unified"]): pictures / entry["image"] for entry in entries if entry["has_img_google"]}


def _entries(folder: Path, language: str) -> dict[str, dict[str, Any]]:
    entries = json.loads((folder / language / "data.json").read_text("utf-8"))
    return {_plain(entry["hexcode"]): entry for entry in entries if entry.get("group") in GROUPS}


def _text(entry: dict[str, Any]) -> str:
    return ", ".join([entry["label"], *entry.get("tags", [])])
