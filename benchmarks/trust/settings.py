"""What the trust of an answer is measured on: a decoder, its own encoder, another one, and inputs that are foreign.

| setting | decoder of | behind | classes | foreign |
|---|---|---|---|---|
| trec, trec-fine | MiniLM or me5 | the other | 6, 50 kinds of questions | definitions, descriptions |
| debian-fr, debian-it | MiniLM, English | me5, French or Italian | 11 sections | names of emoji |
| glosses | MiniLM or me5 | the other | 8 kinds of things | questions, descriptions |
| cifar10 | EfficientNet-Lite 0 or 1 | the other | 10 | pictures of emoji |
| emoji | MiniLM, names of emoji | EfficientNet-Lite 0, their pictures | 9 groups | CIFAR-10 |

me5 is multilingual-e5-small. Beside the packages of `benchmarks.assets` the pictures of emoji are needed: ``npm pack
emoji-datasource-google@16.0.0``, unpacked into ``assets/emoji-datasource-google``.
Shapes: N samples, D absolute size, A anchors, P pairs, M test samples, F foreign inputs.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from benchmarks.assets.images import lite_features, load_images
from benchmarks.assets.packages import unpacked
from benchmarks.assets.text_encoders import text_features
from benchmarks.assets.texts import load_emoji, load_glosses, load_trec
from hf_relreps.demos.debian import load_debian_descriptions


TRAIN, PAIRS, POOL = 1200, 300, 800  # samples with labels; pairs without; where anchors are drawn from
TEST, FOREIGN = 1000, 300
LONGEST = 160  # characters of a text
CHOSEN_ON = ("trec", "trec-fine", "debian-fr", "emoji")  # anything was chosen on these alone
CONFIRMED_ON = ("glosses", "debian-it", "cifar10")


class Case(NamedTuple):
    """One decoder behind one other encoder. Rows of `own` and `other` are the same samples."""

    own: Tensor  # (N, D) of the decoder's own encoder
    other: Tensor  # (N, D) of the encoder that it is stitched to
    labels_N: np.ndarray
    train_N: np.ndarray
    pairs_P: np.ndarray
    pool_N: np.ndarray
    test_M: np.ndarray
    foreign: Mapping[str, Tensor]  # (F, D) each, by the other encoder

    def anchors(self, k: int, seed: int) -> np.ndarray:
        """Rows of k anchors (A,)."""
        return np.random.default_rng(seed).permutation(self.pool_N)[:k]


def _case(own: Tensor, other: Tensor, labels: Any, is_test: np.ndarray, foreign: Mapping[str, Tensor]) -> Case:
    """Anchors, pairs and training samples are three parts of what is no test."""
    known_N = np.random.default_rng(1).permutation(np.flatnonzero(~is_test))
    train = min(TRAIN, len(known_N) // 2)
    pairs = min(PAIRS, (len(known_N) - train) // 3)
    pool = known_N[train + pairs :][:POOL]
    parts = known_N[:train], known_N[train : train + pairs], pool
    return Case(own, other, np.asarray(labels), *parts, np.flatnonzero(is_test)[:TEST], foreign)


def _texts(name: str, texts: list[str], arguments: Namespace) -> Tensor:
    return text_features(name, [text[:LONGEST] for text in texts], arguments.cache, arguments.assets)


def _debian_rows() -> Any:
    rows = load_debian_descriptions().shuffle(seed=0)
    is_test = np.array(rows["split"][:]) == "test"
    kept = np.concatenate([np.flatnonzero(~is_test)[: TRAIN + PAIRS + POOL], np.flatnonzero(is_test)[:TEST]])
    return rows.select(kept), np.arange(len(kept)) >= TRAIN + PAIRS + POOL


def _descriptions() -> list[str]:
    return load_debian_descriptions("validation")["en"][:FOREIGN]


def _glosses(arguments: Namespace) -> Any:
    return load_glosses(arguments.assets, size=TRAIN + PAIRS + POOL + TEST)


def _questions(arguments: Namespace) -> list[str]:
    return load_trec(arguments.data / "trec.parquet", "test")["text"][:FOREIGN]


def trec(arguments: Namespace, level: str = "coarse") -> Iterator[Case]:
    """Questions, in either direction."""
    parts = [load_trec(arguments.data / "trec.parquet", split, level) for split in ("train", "test")]
    known = parts[0].shuffle(seed=0).select(range(TRAIN + PAIRS + POOL))
    texts = [*known["text"], *parts[1]["text"]]
    labels = [*known["label"], *parts[1]["label"]]
    foreign = {"glosses": _glosses(arguments)["text"][:FOREIGN], "descriptions": _descriptions()}
    yield from _both(texts, labels, np.arange(len(texts)) >= len(known), foreign, arguments)


def glosses(arguments: Namespace) -> Iterator[Case]:
    """Definitions of nouns, in either direction."""
    rows = _glosses(arguments)
    is_test = np.arange(len(rows)) >= len(rows) - TEST
    foreign = {"questions": _questions(arguments), "descriptions": _descriptions()}
    yield from _both(rows["text"][:], rows["label"][:], is_test, foreign, arguments)


def _both(texts: Any, labels: Any, is_test: Any, foreign: Any, arguments: Namespace) -> Iterator[Case]:
    x = {name: _texts(name, texts, arguments) for name in ("minilm", "me5")}
    for own, other in (("minilm", "me5"), ("me5", "minilm")):
        away = {name: _texts(other, inputs, arguments) for name, inputs in foreign.items()}
        yield _case(x[own], x[other], labels, is_test, away)


def debian(arguments: Namespace, language: str = "fr") -> Iterator[Case]:
    """A decoder of English descriptions behind an encoder that reads another language."""
    rows, is_test = _debian_rows()
    names = load_emoji(arguments.assets, ("en", language))[language][:FOREIGN]
    foreign = {"emoji": _texts("me5", names, arguments)}
    own, other = _texts("minilm", rows["en"][:], arguments), _texts("me5", rows[language][:], arguments)
    yield _case(own, other, rows["label"][:], is_test, foreign)


def cifar10(arguments: Namespace) -> Iterator[Case]:
    """Photographs, in either direction."""
    parts = [
        load_images("cifar10", split, arguments.data, arguments.assets, rows)
        for split, rows in (("train", TRAIN + PAIRS + POOL), ("test", TEST))
    ]
    images, labels = ([*parts[0][name], *parts[1][name]] for name in ("image", "label"))
    pictures = _pictures(arguments, _emoji_rows(arguments)[-FOREIGN:])
    x, away = ([_lite(v, what, arguments) for v in (0, 1)] for what in (images, pictures))
    for own, other in ((0, 1), (1, 0)):
        yield _case(x[own], x[other], labels, np.arange(len(images)) >= len(parts[0]), {"emoji": away[other]})


def emoji(arguments: Namespace) -> Iterator[Case]:
    """A decoder of the names of emoji behind an encoder of their pictures."""
    rows = _emoji_rows(arguments)
    groups = sorted({row["group"] for row in rows})
    labels = [groups.index(row["group"]) for row in rows]
    photographs = load_images("cifar10", "test", arguments.data, arguments.assets, FOREIGN)["image"][:]
    own = _texts("minilm", [", ".join([row["label"], *row["tags"]]) for row in rows], arguments)
    other = _lite(0, _pictures(arguments, rows), arguments)
    foreign = {"photographs": _lite(0, photographs, arguments)}
    yield _case(own, other, labels, np.arange(len(rows)) >= len(rows) - 400, foreign)


def _lite(version: int, images: list[Any], arguments: Namespace) -> Tensor:
    return lite_features(version, images, arguments.cache, arguments.assets)


def _emoji_rows(arguments: Namespace) -> list[dict[str, Any]]:
    """Those that have a picture, a name and a group, in random order."""
    folder = unpacked("emojibase-data", "npm pack emojibase-data@17.0.0", arguments.assets)
    rows = json.loads((folder / "en" / "data.json").read_text("utf-8"))
    rows = [row for row in rows if row.get("group") is not None and _picture(arguments, row).is_file()]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def _picture(arguments: Namespace, row: Mapping[str, Any]) -> Path:
    folder = unpacked("emoji-datasource-google", "npm pack emoji-datasource-google@16.0.0", arguments.assets)
    return folder / "img" / "google" / "64" / f"{row['hexcode'].lower()}.png"


def _pictures(arguments: Namespace, rows: list[dict[str, Any]]) -> list[Any]:
    from PIL import Image

    pictures = []
    for row in rows:
        picture = Image.open(_picture(arguments, row)).convert("RGBA")
        pictures.append(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
    return pictures


SETTINGS: dict[str, Callable[[Namespace], Iterator[Case]]] = {
    "trec": trec,
    "trec-fine": lambda arguments: trec(arguments, "fine"),
    "debian-fr": debian,
    "emoji": emoji,
    "glosses": glosses,
    "debian-it": lambda arguments: debian(arguments, "it"),
    "cifar10": cifar10,
}
