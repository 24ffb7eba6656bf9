"""Thousands of ways to spoil a sound upload: each from its own number, so that a case can be run again."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from hf_relreps.configuration import CONFIG_CLASSES, SETTINGS


INDEX = "model.safetensors.index.json"
TRAP = """import pathlib
pathlib.Path(__file__).with_name("evil_ran").write_text("evil")
raise SystemExit("evil code ran")
"""
HUGE = 10**12
# What a configuration of ours may hold anywhere, also where a sound one leaves it out.
FIELDS = sorted(SETTINGS | {"encoder", "decoder", "stitched_from", "format_version", "model_type"})


# -- values that a file from outside may hold where something sensible was


def hostile_values(bait: Path) -> list[Any]:
    """Of every type; numbers that are too large, paths that lead out, names that would import or ask."""
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    return [
        *(None, True, False, -1, 0, 1, 2, 3, 7, 16, 2**31, 2**63, HUGE, 10**400, 0.5, -0.5, 1e308, 1e-320),
        *(
            float("nan"),
            float("inf"),
            "",
            " ",
            "x",
            "x" * 50_000,
            "\u0000",
            "\ud800",
            "None",
            "🙂",
            "a\nb",
            "%s",
            "{x}",
        ),
        *("../bait", "../bait/config.json", str(bait), f"{bait}/model.safetensors", f"file://{bait}", "/etc/passwd"),
        *(
            "../../../../etc/passwd",
            "http://127.0.0.1:9/evil",
            "evil/evil",
            "evil_module.Evil",
            "evil/evil--evil.Evil",
        ),
        *("float64", "float16", "int8", "evil", "torch.float32", "bert", "vit", "auto", "llama", "clip"),
        *("cosine", "rbf", "whiten", "mlp", "linear", "image", "variational", "pooler", "cls", "last", "none", "node"),
        *("text", "image", "audio", "regression", "multi_label_classification", "eager", "flash_attention_2"),
        *(
            [],
            {},
            [[]],
            [None],
            [HUGE],
            [0] * 10_000,
            {"a": 1},
            {"0": "x", "1": "y"},
            {"x": "y"},
            deep,
            ["rbf", "cosine"],
        ),
        *({"model_type": "bert"}, {"model_type": "evil"}, {"quant_method": "bitsandbytes"}, {"num_anchors": HUGE}),
        *({"model_type": name} for name in CONFIG_CLASSES),
        *CONFIG_CLASSES,
        *({"factor": 2.0, "rope_type": "dynamic"}, {"peft_type": "LORA"}, ["cosine"] * 2_000),
        *(99_999, 20_000_000, 99_000_000, "(a+)+$", "(.*.*.*)*x", {"(a+)+b": HUGE}, ["(a+)+b"], "hf-hub:evil/model"),
        *(
            {"height": 60_000, "width": 60_000},
            {"shortest_edge": 90_000},
            [1e-45] * 3,
            {"role": "user", "content": "x"},
        ),
    ]


def hostile_keys(bait: Path) -> dict[str, Any]:
    """What would choose code, files or kernels, if anybody read it."""
    evil = "evil_module.Evil"
    return {
        "auto_map": {name: evil for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")},
        "trust_remote_code": True,
        "code_revision": "evil",
        "custom_pipelines": {"evil": {"impl": evil, "pt": ["AutoModel"]}},
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "_name_or_path": str(bait),
        "name_or_path": str(bait),
        "cache_dir": str(bait),
        "subfolder": "../bait",
        "transformers_weights": "../bait/decoder/model.safetensors",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "torch_dtype": "evil",
        "dtype": "float16",
        "model_type": "evil",
        "tokenizer_class": "EvilTokenizer",
        "processor_class": "EvilProcessor",
        "image_processor_type": "EvilImageProcessor",
        "tokenizer_file": f"{bait}/tokenizer.json",
        "vocab_file": f"{bait}/tokenizer.json",
        "base_model_name_or_path": str(bait),
        "encoder_adapters": {"evil": {"peft_type": "LORA", "r": HUGE, "target_modules": ["query"]}},
        "encoder_is_frozen": True,
        "encoder_config": {"model_type": "bert", "hidden_size": HUGE, "vocab_size": HUGE},
        "generation_config": {"evil": evil},
        "head_config": {"model_type": "bert", "hidden_size": HUGE, "vocab_size": HUGE},
        "head_name_or_path": str(bait),
        "encoder": {"model_type": "relreps", "base_model_name_or_path": str(bait), "encoder_is_frozen": True},
        "decoder": {"model_type": "relreps_decoder", "decoder_type": "head", "head_config": {"model_type": "evil"}},
        "space": {"num_anchors": HUGE, "fingerprint": "0" * 64, "similarity": ["inner"] * 1_000, "basis_ridge": None},
        "num_anchors": HUGE,
        "embedding_size": HUGE,
        "num_labels": HUGE,
        "decoder_hidden_size": HUGE,
        "decoder_widths": [2**20] * 64,
        "image_size": 2**40,
        "max_length": HUGE,
        "format_version": HUGE,
        "tower": "encoder",
        "tie_word_embeddings": True,
        "pruned_heads": {"0": [0]},
        "is_encoder_decoder": True,
        "use_bfloat16": True,
        "architectures": [evil],
        "id2label": {str(i): "x" for i in range(1000)},
        "fusion_config": {"evil": evil},
        "kernel_config": {"evil": evil},
        "base_model_tp_plan": {"evil": evil},
        "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "device_map": "auto",
        **{"r": 20_000_000, "lora_alpha": HUGE, "target_modules": "((a+)+)+b", "rank_pattern": {"((.*)*)*x": 7}},
        **{"checkpoint_path": str(bait), "model_args": {"checkpoint_path": f"{bait}/model.safetensors"}},
        **{"architecture": "local-dir:" + str(bait), "backbone": str(bait), "backbone_kwargs": {"pretrained": True}},
        **{"vocab_file": f"{bait}/tokenizer.json", "merges_file": "../bait/config.json", "class_info_file": "../bait"},
        **{"fast_tokenizer_files": ["../bait/tokenizer.1.0.json"], "sp_model_kwargs": {"model_file": str(bait)}},
        **{"audio_tokenizer": {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": str(bait)}},
        **{
            "feature_size": 60_000,
            "n_fft": 60_000,
            "num_mel_bins": 60_000,
            "chunk_length": HUGE,
            "nb_max_frames": HUGE,
        },
        **{"sampling_rate": 1, "do_normalize": "x", "size": {"height": 90_000, "width": 90_000}, "crop_size": 90_000},
        **{"model_kwargs": {"gguf_file": str(bait)}, "config_kwargs": {"trust_remote_code": True}, "backend": "onnx"},
        **{
            "in_features": 99_999,
            "out_features": 99_999_999,
            "word_embedding_dimension": HUGE,
            "dimension": 99_999_999,
        },
        **{"activation_function": evil, "layer_start": -99, "num_hidden_layers": 999, "truncate_dim": -1},
        **{"old_size": HUGE, "pairs": 0, "translator": "evil", "method": "mean", "settings": {"cca": {"rank": HUGE}}},
        **{
            "temperature": 0.0,
            "decoders": {"evil": {"decoder_type": "several"}},
            "prompt": "x" * 90_000,
            "tower": "a.b",
        },
    }


# -- JSON


def spoil_json(path: Path, rng: random.Random, bait: Path) -> str:
    """Change one to three places of a JSON file, or its bytes."""
    if rng.random() < 0.2:
        return _spoil_json_bytes(path, rng)
    content = json.loads(path.read_text("utf-8"))
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content, what = _spoil_node(content, rng, bait)
        done.append(what)
    try:
        path.write_text(json.dumps(content), "utf-8")
    except (TypeError, ValueError, RecursionError):
        path.write_text(str(content)[:100_000], "utf-8", errors="replace")
    return ", ".join(done)


def _spoil_node(content: Any, rng: random.Random, bait: Path) -> tuple[Any, str]:
    places = list(_places(content))
    if not places:
        return rng.choice(hostile_values(bait)), "all replaced"
    container, key = rng.choice(places)
    way = rng.random()
    if way < 0.15 and isinstance(container, dict):
        del container[key]
        return content, f"without {key!r:.60}"
    if way < 0.4 and isinstance(content, dict):
        within = rng.choice([content, *(node[name] for node, name in places if isinstance(node[name], dict))])
        if rng.random() < 0.7:
            name, value = rng.choice(list(hostile_keys(bait).items()))
        else:
            name, value = rng.choice(FIELDS), rng.choice(hostile_values(bait))
        within[name] = copy.deepcopy(value)
        return content, f"{name} = {value!r:.60}"
    if way < 0.45:
        value = copy.deepcopy(rng.choice(places)[0])
    else:
        value = rng.choice(hostile_values(bait))
    container[key] = value
    return content, f"{key!r:.60} = {value!r:.60}"


def _places(node: Any, depth: int = 0) -> Any:
    if depth > 8:
        return
    keys = list(node) if isinstance(node, dict) else range(min(len(node), 50)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key], depth + 1)


def _spoil_json_bytes(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    ways: dict[str, Callable[[], bytes]] = {
        "flipped bits": lambda: flipped(content, rng),
        "cut short": lambda: content[: rng.randrange(len(content))],
        "empty": lambda: b"",
        "deep lists": lambda: b"[" * 200_000,
        "deep objects": lambda: b'{"a":' * 100_000,
        "deep below a key": lambda: content.rstrip()[:-1] + b', "deep": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "no UTF-8": lambda: b"\xff\xfe" + content,
        "a byte order mark": lambda: b"\xef\xbb\xbf" + content,
        "a list": lambda: b"[" + content + b"]",
        "a number of a million digits": lambda: b'{"space": {"num_anchors": ' + b"9" * 1_000_000 + b"}}",
        "repeated keys": lambda: content.rstrip()[:-1] + b', "model_type": "bert", "model_type": "relreps"}',
        "not a number": lambda: b'{"model_type": NaN}',
    }
    name = rng.choice(list(ways))
    path.write_bytes(ways[name]())
    return name


def flipped(content: bytes, rng: random.Random) -> bytes:
    """One to eight bits are others."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


# -- the index


def spoil_index(path: Path, rng: random.Random, bait: Path) -> str:
    """Let the index lead out of the upload, in circles, or nowhere."""
    index = json.loads(path.read_text("utf-8"))
    names = list(index["weight_map"])
    part = "decoder/model.safetensors"
    targets = [
        *("../bait/decoder/model.safetensors", f"{bait}/decoder/model.safetensors", "/etc/passwd"),
        *("../../bait/decoder/model.safetensors", "../decoder/model.safetensors", "../encoder/model.safetensors"),
        *("decoder/../../bait/decoder/model.safetensors", "..\\bait\\decoder\\model.safetensors", "~/x.safetensors"),
        *(INDEX, "config.json", "encoder", "decoder", ".", "", "nothing.safetensors", f"./{part}", f"decoder//{part}"),
        *(f"{part}\u0000", f"{part}/", "pytorch_model.bin", "evil_module.py", "http://127.0.0.1:9/x.safetensors"),
        *("x" * 5_000 + ".safetensors", "//decoder/model.safetensors", "%2e%2e/bait/decoder/model.safetensors"),
        *(None, 0, [], {}, ["decoder/model.safetensors"], HUGE, True),
    ]
    target = rng.choice(targets)
    for name in rng.sample(names, rng.choice((1, 3, len(names)))):
        index["weight_map"][name] = target
    if rng.random() < 0.2:
        index["weight_map"] |= {f"encoder.more.{i}": rng.choice(targets) for i in range(20)}
    path.write_text(json.dumps(index), "utf-8")
    return f"weights in {target!r:.80}"


# -- safetensors


def spoil_safetensors(path: Path, rng: random.Random) -> str:
    """Change the header, its length, or the weights."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.4:
        ways: dict[str, Callable[[], bytes]] = {
            "flipped bits of the header": lambda: flipped(content[: 8 + length], rng) + content[8 + length :],
            "flipped bits of the weights": lambda: content[: 8 + length] + flipped(content[8 + length :], rng),
            "cut short": lambda: content[: rng.randrange(len(content))],
            "empty": lambda: b"",
            "a header of 2**63 bytes": lambda: struct.pack("<Q", 2**63) + content[8:],
            "a header of 90 MB": lambda: struct.pack("<Q", 90_000_000) + content[8:],
            "a header of 0 bytes": lambda: struct.pack("<Q", 0) + content[8:],
            "more bytes than it names": lambda: content + b"\0" * 1000,
            "a deep header": lambda: _with_header(b'{"a":' * 50_000, b""),
            "a pickle": lambda: evil_pickle(),
            "zeros": lambda: content[: 8 + length] + bytes(len(content) - 8 - length),
            "not a number": lambda: content[: 8 + length] + b"\xff" * (len(content) - 8 - length),
        }
        name = rng.choice(list(ways))
        path.write_bytes(ways[name]())
        return name
    header = json.loads(content[8 : 8 + length])
    weights = content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    about = header[name]
    shapes = [[], [0], [HUGE], [HUGE, HUGE], [2**32, 2**32], [-1], [1] * 2_000, about["shape"][::-1]]
    shapes += [[3, 3], None, "x", [1.5]]
    metadata = [{}, {"format": "evil"}, {"format": "tf"}, None, [], {"format": 1}, {"a": "x" * 90_000}]
    offsets = [[0, 0], [0, HUGE], [-8, 8], [8, 0], [0, len(weights)], [2**63, 2**64], [1, 5], None]
    dtypes = ["F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "EVIL", "", None, "C64"]
    choice = rng.randrange(6)
    if choice == 0:
        about["shape"] = rng.choice(shapes)
    elif choice == 1:
        about["data_offsets"] = rng.choice(offsets)
    elif choice == 2:
        about["dtype"] = rng.choice(dtypes)
    elif choice == 3:
        header[rng.choice(["", "x" * 5_000, "encoder.evil", "../bait", name.upper()])] = header.pop(name)
    elif choice == 4:
        header["__metadata__"] = rng.choice(metadata)
    else:
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    path.write_bytes(_with_header(json.dumps(header).encode(), weights))
    return f"header of {name}: {header.get(name)!r:.80}"


def _with_header(header: bytes, weights: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + weights


class _Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('evil pickle ran')",)


def evil_pickle() -> bytes:
    """What runs code in whoever unpickles it."""
    return pickle.dumps(_Evil())


# -- parquet


def spoil_parquet(path: Path, rng: random.Random) -> str:
    """Change the bytes of the table, its columns, its rows, or what it unpacks to."""
    content = path.read_bytes()
    table = pq.read_table(path)
    views = [name for name in table.column_names if name != "id"]
    view = rng.choice(views)
    n = len(table)

    def with_column(name: str, values: Any) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, values)

    def with_pictures(content: bytes | None, path: str | None = None) -> pa.Table:
        return with_column(view, pa.array([{"bytes": content, "path": path}] * n))

    tables: dict[str, Callable[[], pa.Table]] = {
        "no rows": lambda: table.slice(0, 0),
        "one row": lambda: table.slice(0, 1),
        "rows twice": lambda: pa.concat_tables([table, table]),
        "rows in another order": lambda: table.take(pa.array(range(n - 1, -1, -1))),
        "another order of columns": lambda: table.select(table.column_names[::-1]),
        "a view is missing": lambda: table.drop_columns([view]),
        "no ids": lambda: table.drop_columns(["id"]),
        "ids of None": lambda: with_column("id", pa.array([None] * n, pa.string())),
        "ids that are numbers": lambda: with_column("id", pa.array(range(n))),
        "ids that repeat": lambda: with_column("id", pa.array(["x"] * n)),
        "a view of None": lambda: with_column(view, pa.array([None] * n, pa.string())),
        "a view of empty texts": lambda: with_column(view, pa.array([""] * n)),
        "a view of bytes": lambda: with_column(view, pa.array([b"\xff\x00"] * n)),
        "a view of numbers": lambda: with_column(view, pa.array([1.5] * n)),
        "a view of huge numbers": lambda: with_column(view, pa.array([2**62] * n)),
        "a view of lists": lambda: with_column(view, pa.array([[1, 2]] * n)),
        "a view of dates": lambda: with_column(view, pa.array([0] * n, pa.timestamp("ns"))),
        "pictures elsewhere": lambda: with_pictures(None, "../bait/config.json"),
        "pictures that are no pictures": lambda: with_pictures(b"evil"),
        "pictures of gigabytes": lambda: with_pictures(png_bomb(rng)),
        "sounds without a rate": lambda: with_column(view, pa.array([{"array": [0.0]}] * n)),
        "sounds of nonsense": lambda: with_column(view, pa.array([{"array": None, "sampling_rate": -1}] * n)),
        "a long text": lambda: with_column(view, pa.array(["x" * 5_000_000] + ["y"] * (n - 1))),
        # All alike: kilobytes in the file, gigabytes in memory.
        "twenty million rows": lambda: pa.table(
            {c: pa.repeat(pa.scalar("x"), 20_000_000) for c in table.column_names}
        ),
        "a picture as tif": lambda: with_pictures(_tif()),
        "a picture as eps": lambda: with_pictures(b"%!PS-Adobe-3.0 EPSF\n(evil) run"),
    }
    if rng.random() < 0.5:
        changed = content[: rng.randrange(len(content))] if rng.random() < 0.3 else flipped(content, rng)
        path.write_bytes(changed)
        return "bytes of the table"
    if rng.random() < 0.3:
        name, values = structs(n, rng)
        pq.write_table(with_column(view, values), path)
        return name
    name = rng.choice(list(tables))
    if name == "twenty million rows" and rng.random() < 0.8:  # it takes long to make
        name = "no rows"
    compression = rng.choice(["zstd", "snappy", "gzip", "none"])
    pq.write_table(tables[name](), path, compression=compression)
    return f"{name} ({compression})"


def png_bomb(rng: random.Random) -> bytes:
    """Kilobytes that unpack to megapixels, whatever the header says."""
    side = rng.choice((4_000, 13_000, 60_000, 2**31 - 1))
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes((8, rng.choice((0, 2, 3, 6)), 0, 0, 0))
    rows = zlib.compress(b"\0" * min(side * side, 3_000_000))
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT" + rows, b"IEND"):
        content += (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return content


def _tif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TIFF")
    return buffer.getvalue()


def structs(n: int, rng: random.Random) -> tuple[str, pa.Array]:
    """Words, pairs, conversations and sounds that are none."""
    values: list[Any] = [
        *({"words": ["a"], "position": place} for place in (7, -1, 2**62, None)),
        *({"words": words, "position": 0} for words in ([], None, [""], ["a b"], [None], ["x"] * 9_000, ["\n"])),
        *({"text": "a", "text_pair": text} for text in (None, "", "x" * 90_000, "\x00")),
        *([{"role": role, "content": "a"}] for role in ("evil", None, "x" * 9_000, "\x1b[2J")),
        *([{"role": "user", "content": text}] for text in (None, "", "{{ 7 * 7 }}", "x" * 90_000)),
        *([{"role": "user", "content": "a"}] * many for many in (0, 9_000)),
        *({"array": [0.0] * 9, "sampling_rate": rate} for rate in (0, -1, 1, 2**62, None)),
        *(
            {"array": numbers, "sampling_rate": 16_000}
            for numbers in ([], [1e38] * 9, [float("nan")], [0.0] * 400_000)
        ),
    ]
    value = rng.choice(values)
    return f"all {value!r:.60}", pa.array([value] * n)


# -- shards and tokenizers


def spoil_shard(path: Path, rng: random.Random) -> str:
    """Change the bytes of a shard, its columns, or what it says of itself."""
    if rng.random() < 0.4:
        path.write_bytes(flipped(path.read_bytes(), rng))
        return "bytes of the shard"
    table = pq.read_table(path)
    says: Any = (
        json.loads(table.schema.metadata[b"hf_relreps"]) if b"hf_relreps" in (table.schema.metadata or {}) else {}
    )
    says = says or json.loads(pq.read_metadata(path).metadata[b"hf_relreps"])
    what = rng.choice(["a field", "a column", "many rows", "nothing said"])
    if what == "a field":
        says, what = _spoil_node(says, rng, path)
    elif what == "a column":
        column = rng.choice(table.column_names)
        table = table.drop_columns([column])
    elif what == "many rows":
        table = pa.table({name: pa.repeat(pa.scalar(1), 20_000_000) for name in table.column_names})
    metadata = {} if what == "nothing said" else {b"hf_relreps": json.dumps(says).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return what


def spoil_tokenizer(path: Path, rng: random.Random) -> str:
    """Put a step into a tokenizer that costs more than its text."""
    content = json.loads(path.read_text("utf-8"))
    slow = rng.choice(["(a+)+$", "(a|a)*b", "([a-z]*)*x", ".*.*.*=.*", "(?=(a+))+b", "a" * 5_000])
    text, regex = {"String": rng.choice(["", "a"])}, {"Regex": slow}
    long_text = rng.choice(["", "x" * 100_000, "x" * 40])
    steps: list[tuple[str, Any]] = [
        ("normalizer", {"type": "Replace", "pattern": rng.choice([text, regex]), "content": long_text}),
        ("normalizer", {"type": "Prepend", "prepend": long_text}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKC"}] * rng.choice([3, 3_000])}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        ("pre_tokenizer", {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "xx", "prepend_scheme": "always", "split": True}),
        ("post_processor", {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 99}),
        ("truncation", {"direction": "Right", "max_length": HUGE, "strategy": "LongestFirst", "stride": HUGE}),
        ("padding", {"strategy": {"Fixed": HUGE}, "direction": "Right", "pad_to_multiple_of": HUGE, "pad_id": 0}),
        ("model", {"type": "WordPiece", "vocab": {"x": 0}, "unk_token": "x", "max_input_chars_per_word": HUGE}),
        ("model", {"type": "Unigram", "vocab": [["x", float("-inf")]], "unk_id": HUGE}),
        ("model", {"type": "BPE", "vocab": {}, "merges": [["a", "b"]] * 9, "dropout": 7.0}),
        ("added_tokens", [{"id": HUGE, "content": "x", "special": True}]),
    ]
    section, step = rng.choice(steps)
    content[section] = step
    path.write_text(json.dumps(content), "utf-8")
    return f"{section} {step!r:.80}"


# -- the card


def spoil_card(path: Path, rng: random.Random) -> str:
    """Change the metadata or the sections of a card."""
    card = path.read_text("utf-8")
    body = card.split("---\n", 2)[2]
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    metadata = {
        "a billion laughs": laughs,
        "a billion laughs as tags": laughs + "tags: *a9\n",
        "a billion laughs as a licence": laughs + "license: *a9\n",
        "a tag that runs": "license: !!python/object/apply:os.system ['echo evil']\n",
        "a tag that is no tag": "license: !evil x\n",
        "itself": "license: &a [*a]\n",
        "itself as a key": "tags: &a {x: *a}\n",
        "deep lists": "license: " + "[" * 20_000 + "\n",
        "a list": "- a\n- b\n",
        "a number": "7\n",
        "broken": "license: [\n: : :\n",
        "merge keys": "a: &a {x: 1}\n" + "b: {<<: *a, <<: *a}\n",
        "many keys": "".join(f"k{i}: v\n" for i in range(20_000)),
        "tags of numbers": "tags: [1, 2.5, null, true, {a: b}, [c]]\n",
        "languages of numbers": "language: 7\ndatasets: {a: b}\nmetrics: [[x]]\n",
        "results of nonsense": "model-index: 7\n",
        "more results": "model-index:\n- name: x\n  results: [{task: 7}]\n",
        "results without ends": "model-index:\n- name: x\n  results: [{task: {type: t}, metrics: [{value: .nan}]}]\n",
        "keys that are numbers": "1: 2\nnull: x\n2020-01-01: y\n",
        "bytes": "license: !!binary aGVsbG8=\n",
        "a long line": "license: " + "x" * 500_000 + "\n",
        "control characters": "license: \x01\x02\n",
    }
    sections = {
        "many openings": "<!-- hf_relreps:begin use -->\n" * 5_000,
        "many endings": "<!-- hf_relreps:end use -->\n" * 5_000,
        "openings of other names": "".join(f"<!-- hf_relreps:begin s{i} -->\n" for i in range(5_000)),
        "a long memory": "<!-- hf_relreps:sections " + "use " * 100_000 + "-->",
        "many line ends": "\n" * 300_000 + "x",
        "many rules": "---\n" * 50_000,
        "no end of a comment": "<!-- hf_relreps:sections " + "use " * 100_000,
    }
    way = rng.random()
    if way < 0.25:
        path.write_bytes(flipped(path.read_bytes(), rng))
        return "bytes of the card"
    if way < 0.75:
        name = rng.choice(list(metadata))
        path.write_text(f"---\n{metadata[name]}---\n{body}", "utf-8")
        return name
    name = rng.choice(list(sections))
    path.write_text(rng.choice([card + sections[name], sections[name] + card, sections[name]]), "utf-8")
    return name


# -- files that should not be there, or not be what they are


def spoil_files(upload: Path, rng: random.Random, bait: Path) -> str:
    """Add, remove, move or replace whole files."""
    files = sorted(path for path in upload.rglob("*") if path.is_file())
    file = rng.choice(files)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(bait), "r": 2, "target_modules": ["query"]}
    evil = "evil_module.Evil"
    processor = {"processor_class": "EvilProcessor", "auto_map": {"AutoProcessor": evil}}
    encoder, decoder, weights = upload / "encoder", upload / "decoder", "model.safetensors"
    place = rng.choice([upload, encoder, decoder])

    def add(name: str, content: bytes | dict[str, Any]) -> None:
        (place / name).write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)

    ways: dict[str, Callable[[], Any]] = {
        f"without {file.name}": file.unlink,
        f"{file.name} is a folder": lambda: (file.unlink(), file.mkdir()),
        f"{file.name} is a pickle": lambda: file.write_bytes(evil_pickle()),
        f"{file.name} is another file": lambda: (
            shutil.copyfile(rng.choice(files), rng.choice(files), follow_symlinks=True) if len(files) > 1 else None
        ),
        "without encoder": lambda: shutil.rmtree(encoder),
        "without decoder": lambda: shutil.rmtree(decoder),
        "without anchors": lambda: shutil.rmtree(upload / "anchors"),
        "an adapter": lambda: add("adapter_config.json", adapter),
        "an adapter of nonsense": lambda: add("adapter_config.json", b"[[["),
        "pickled weights": lambda: add("pytorch_model.bin", evil_pickle()),
        "pickled adapter": lambda: (add("adapter_config.json", adapter), add("adapter_model.bin", evil_pickle())),
        "a generation config": lambda: add("generation_config.json", {"auto_map": evil, "max_length": "x"}),
        "a processor config": lambda: add("processor_config.json", processor),
        "other weights at the root": lambda: shutil.copyfile(decoder / weights, upload / weights),
        "the parts exchanged": lambda: _exchange(encoder, decoder),
        "the weights exchanged": lambda: _exchange(encoder / weights, decoder / weights),
        "the configs exchanged": lambda: _exchange(
            rng.choice((encoder, decoder)) / "config.json", upload / "config.json"
        ),
        "the parts' configs exchanged": lambda: _exchange(encoder / "config.json", decoder / "config.json"),
        "a template": lambda: add("chat_template.jinja", b"{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    }
    name = rng.choice(list(ways))
    try:
        ways[name]()
    except (shutil.SameFileError, FileNotFoundError):
        pass
    return name


def leave_save(upload: Path, rng: random.Random, bait: Path) -> str:
    """As if a save had been interrupted, which whoever opens the folder finishes."""
    names = [
        *("../bait/config.json", f"{bait}/config.json", "config.json", "decoder/../../bait/config.json", "", "a\0b"),
        *("link/config.json", "**/config.json", "new", 7, None, "x" * 5_000),
    ]
    files = upload / ".saving" / "files"
    way = rng.choice(["files", "obsolete", "a link", "nonsense"])
    if way == "a link":
        files.parent.mkdir(exist_ok=True)
        files.symlink_to(bait)
    else:
        files.mkdir(parents=True, exist_ok=True)
        (files / "config.json").write_bytes(evil_pickle())
        (files.parent / "bait").mkdir(exist_ok=True)
        (files.parent / "bait" / "config.json").write_text("{}")
    (upload / "link").symlink_to(bait)
    name = rng.choice(names)
    told: Any = {"files": [name] if way != "obsolete" else [], "obsolete": [name] if way == "obsolete" else []}
    told = rng.choice([7, [], {}, {"files": 7, "obsolete": {}}, {"files": ["x"]}]) if way == "nonsense" else told
    (files.parent / "complete.json").write_text(json.dumps(told))
    return f"an interrupted save: {way}, {told!r:.80}"


def _exchange(left: Path, right: Path) -> None:
    aside = left.with_name("aside")
    left.rename(aside)
    right.rename(left)
    aside.rename(right)


def add_traps(upload: Path) -> None:
    """Code that must never run lies in every folder of an upload."""
    for folder in (upload, *(path for path in upload.rglob("*") if path.is_dir())):
        for name in ("evil_module.py", "modeling_hf_relreps.py", "tokenization_evil.py", "setup.py"):
            (folder / name).write_text(TRAP, "utf-8")


def forget_settings(upload: Path) -> None:
    """Take from the weights what they say of their settings: else a changed configuration contradicts them at once."""
    for file in upload.glob("*/model*.safetensors"):
        with safe_open(file, "pt") as stored:
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a dict
        kept = {name: tensor for name, tensor in weights.items() if not name.endswith("_extra_state")}
        save_file(kept or weights, file, {"format": "pt"})


def spoil(upload: Path, rng: random.Random, bait: Path) -> str:
    """Spoil an upload in one place, or two; what was done, in words, for the report."""
    add_traps(upload)
    if rng.random() < 0.5:
        forget_settings(upload)
    done = [_spoil_once(upload, rng, bait) for _ in range(rng.choice((1, 1, 1, 2)))]
    return "; ".join(done)


def _spoil_once(upload: Path, rng: random.Random, bait: Path) -> str:
    def any_of(*patterns: str) -> Path | None:
        found = sorted({file for pattern in patterns for file in upload.glob(pattern) if file.is_file()})
        return rng.choice(found) if found else None

    def json_of(path: Path) -> str:
        return spoil_json(path, rng, bait)

    configs = ("config.json", "*/config.json", "*/relreps_config.json")
    of_sentences = ("modules.json", "sentence_*_config.json", "config_sentence_transformers.json")
    migrations = ("migration/migration.json", "*_TranslatedEmbedding/migration.json")
    kinds: list[tuple[float, str, Path | None, Callable[[Path], str]]] = [
        (5, "config", any_of(*configs), json_of),
        (2, "index", any_of(INDEX, f"*/{INDEX}"), lambda path: spoil_index(path, rng, bait)),
        (1, "index", any_of(INDEX, f"*/{INDEX}"), json_of),
        (3, "weights", any_of("model.safetensors", "*/model*.safetensors"), lambda path: spoil_safetensors(path, rng)),
        (2, "record", any_of("anchors/anchor_set.json", "*/anchors/anchor_set.json"), json_of),
        (3, "table", any_of("anchors/*.parquet", "*/anchors/*.parquet"), lambda path: spoil_parquet(path, rng)),
        (2, "card", any_of("README.md"), lambda path: spoil_card(path, rng)),
        (2, "processor", any_of("tokenizer*.json", "*processor*.json"), json_of),
        (2, "tokenizer", any_of("tokenizer.json"), lambda path: spoil_tokenizer(path, rng)),
        (2, "sentences", any_of(*of_sentences), json_of),
        (3, "migration", any_of(*migrations), json_of),
        (1, "migration", any_of("*/migration.safetensors"), lambda path: spoil_safetensors(path, rng)),
        (3, "renewed", any_of("renewed/*.safetensors"), lambda path: spoil_safetensors(path, rng)),
        (4, "shards", any_of("shards/*.parquet"), lambda path: spoil_shard(path, rng)),
        (2, "files", upload, lambda path: spoil_files(path, rng, bait)),
        (1, "save", upload, lambda path: leave_save(path, rng, bait)),
    ]
    there = [kind for kind in kinds if kind[2] is not None]
    _, name, path, way = rng.choices(there, [kind[0] for kind in there])[0]
    assert path is not None
    try:
        what = way(path)
    except (ValueError, OSError, KeyError, IndexError, struct.error, pa.ArrowException, TypeError, RecursionError):
        return f"{name}: spoilt twice"  # the first mutation left nothing that the second could change
    return f"{name} {path.relative_to(upload)}: {what}"
