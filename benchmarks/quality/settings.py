"""The settings by name, and which of them anything was chosen on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from benchmarks.quality import graphs, images, languages, texts
from benchmarks.quality.spaces import Spaces


SETTINGS: dict[str, Callable[[Namespace], Spaces]] = {
    "text": texts.load_debian,
    "images": images.load,
    "glosses": texts.load_glosses,
    "languages": languages.load,
    "words": languages.load_words,
    "graphs": graphs.load,
}
CHOSEN_ON = ("text", "images")  # on their validation rows; on the others nothing was
TRAINED = {"languages": languages.FILE, "graphs": graphs.FILE}  # end to end; the file is one of the cache
ENCODERS = {
    "text": "MiniLM, mpnet, me5, USE on Debian's descriptions",
    "images": "EfficientNet-Lite 0, 1, 2 on Fashion-MNIST",
    "glosses": "MiniLM, mpnet, me5, USE on WordNet's definitions",
    "languages": "BERTs from scratch, trained end to end, en, en, fr, it",
    "words": "latent semantic analysis, en, fr, it, da",
    "graphs": "GCN, GAT, GIN, GCNII on Cora, two of each",
}
