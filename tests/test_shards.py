"""`encode_shards`: any data in, each row once and in order, whatever is killed; `read_shards`: other anchors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value, load_dataset
from processes import run_together
from training import tiny_trainer

from hf_relreps import AnchorSet, RelativeConfig, RelativeDecoder, RelativeDecoderConfig, RelativeModel
from hf_relreps.errors import ConfigurationError, EmbeddingError, MissingExtraError, SampleError, UploadError
from hf_relreps.shards import EncodedShards, encode_shards, read_shards


ROOT = Path(__file__).parents[1]
TIMEOUT = 3600  # seconds; what hangs would do so for ever
KINDS = ["animal", "food", "vehicle"]
HALF = 1200  # rows of each of two files, where processes are killed


@pytest.fixture(scope="module")
def encoder(make_model):
    return make_model(0).encoder


@pytest.fixture(scope="module")
def columns(texts, labels):
    return {"text": texts["en"], "label": labels, "name": [f"n{i}" for i in range(60)]}


@pytest.fixture(scope="module")
def dataset(columns):
    features = Features({"text": Value("string"), "label": ClassLabel(names=KINDS), "name": Value("string")})
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def files(dataset, tmp_path_factory):
    """The rows in three parquet files of 25, 5 and 30."""
    folder = tmp_path_factory.mktemp("files")
    for number, (start, stop) in enumerate(((0, 25), (25, 30), (30, 60))):
        dataset.select(range(start, stop)).to_parquet(folder / f"{number}.parquet")
    return folder


@pytest.fixture
def passes(encoder):
    """How often the encoder ran."""
    seen = []
    handle = encoder.backbone.register_forward_hook(lambda *args: seen.append(1))
    yield seen
    handle.remove()


def stored(folder) -> dict[str, list]:
    """The columns of all shards, in the order of their names."""
    tables = [pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]
    return {name: [one for table in tables for one in table[name].to_pylist()] for name in tables[0].column_names}


def assert_close(found, expected_ND, **how):
    torch.testing.assert_close(torch.as_tensor(found), expected_ND, **({"rtol": 1e-4, "atol": 1e-5} | how))


# -- in: every kind of data


def as_files(files, dataset):
    return str(files / "*.parquet")


def as_a_folder(files, dataset):
    return files


def as_a_list(files, dataset):
    return sorted(files.glob("*.parquet"))


def as_json_lines(files, dataset):
    dataset.to_json(files / "rows.jsonl")
    return files / "rows.jsonl"


def as_a_dataset(files, dataset):
    return dataset


def as_a_stream(files, dataset):
    return dataset.to_iterable_dataset(num_shards=3)


def as_a_filtered_stream(files, dataset):
    return dataset.to_iterable_dataset(num_shards=3).filter(lambda row: True)


def as_a_generator(files, dataset):
    return IterableDataset.from_generator(lambda: iter(dataset))


OF_FILES = (as_files, as_a_folder, as_a_list)


@pytest.mark.parametrize(
    "given", [*OF_FILES, as_json_lines, as_a_dataset, as_a_stream, as_a_filtered_stream, as_a_generator]
)
def test_every_row_is_stored_once_in_the_order_of_the_data(encoder, dataset, files, texts, columns, tmp_path, given):
    data = given(files, dataset)
    try:
        done = encode_shards(encoder, data, "text", tmp_path, keep=["label", "name"], rows_per_shard=8)
    finally:
        (files / "rows.jsonl").unlink(missing_ok=True)
    found = stored(tmp_path)
    assert found["name"] == columns["name"] and found["label"] == columns["label"]
    assert_close(found["absolute_embeds"], encoder.encode(texts["en"]))
    if given in OF_FILES:
        assert found["part"] == [0] * 25 + [1] * 5 + [2] * 30
        assert found["row"] == [*range(25), *range(5), *range(30)]
        assert (done.shards, done.rows, done.rows_encoded) == (4 + 1 + 4, 60, 60)
    else:
        assert found["row"] == list(range(60)) and "part" not in found
        assert (done.shards, done.rows, done.rows_encoded) == (8, 60, 60)
    assert done.is_complete and not list(tmp_path.glob(".*"))


def test_a_dataset_on_the_hub_is_read_at_one_commit(encoder, dataset, texts, tmp_path, hub, repo_id):
    dataset.push_to_hub(repo_id)
    done = encode_shards(encoder, repo_id, "text", tmp_path, rows_per_shard=32)
    assert_close(stored(tmp_path)["absolute_embeds"], encoder.encode(texts["en"]))
    assert done.is_complete
    dataset.select(range(30)).push_to_hub(repo_id)
    with pytest.raises(ConfigurationError, match=r"shards of other data: revision is '\w+\.\.\. there"):
        encode_shards(encoder, repo_id, "text", tmp_path, rows_per_shard=32)


def test_images_are_encoded_and_columns_keep_their_features(dataset, images, tmp_path):
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    view = AnchorSet([str(i) for i in range(4)], {"images": images[:4]}).view("images")
    encoder = RelativeModel.from_encoder(vit, view, processor).eval()
    rows = Dataset.from_dict({"image": images, "label": [0, 1] * 4}).cast_column("label", ClassLabel(names=["a", "b"]))
    for data in (rows, rows.to_iterable_dataset()):
        folder = tmp_path / type(data).__name__
        encode_shards(encoder, data, "image", folder, keep=["label", "image"], rows_per_shard=3)
        assert_close(stored(folder)["absolute_embeds"], encoder.encode(images))
        loaded = load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train")
        assert loaded.features["label"] == rows.features["label"]
        assert loaded[5]["image"].tobytes() == images[5].tobytes()


@pytest.mark.parametrize("streamed", [False, True])
def test_no_rows_are_one_empty_shard(encoder, dataset, tmp_path, streamed):
    nothing = IterableDataset.from_generator(lambda: iter(()), features=dataset.features)
    done = encode_shards(encoder, nothing if streamed else dataset.select([]), "text", tmp_path, keep=["label"])
    assert (done.shards, done.rows, done.is_complete) == (1, 0, True)
    assert list(read_shards(tmp_path, encoder)) == []


def test_the_last_shard_may_end_where_the_data_does(encoder, dataset, tmp_path):
    for data in (dataset.select(range(16)), dataset.select(range(16)).to_iterable_dataset()):
        folder = tmp_path / type(data).__name__
        assert encode_shards(encoder, data, "text", folder, rows_per_shard=8).shards == 2
        assert encode_shards(encoder, data, "text", folder, rows_per_shard=8).rows_encoded == 0


# -- once


def test_a_second_run_does_no_pass(encoder, dataset, files, tmp_path, passes):
    for name, data in {"dataset": dataset, "files": files, "stream": dataset.to_iterable_dataset()}.items():
        encode_shards(encoder, data, "text", tmp_path / name, rows_per_shard=8)
        passes.clear()
        assert encode_shards(encoder, data, "text", tmp_path / name, rows_per_shard=8).rows_encoded == 0
        assert not passes


@pytest.mark.parametrize("given", [as_a_dataset, as_a_stream, as_files])
def test_only_what_is_missing_is_encoded_and_the_rest_is_not_touched(encoder, dataset, files, tmp_path, given):
    data = given(files, dataset)
    encode_shards(encoder, data, "text", tmp_path, rows_per_shard=8)
    shards = sorted(tmp_path.glob("*.parquet"))
    before, states = stored(tmp_path), {file: file.stat().st_mtime_ns for file in shards}
    shards[1].unlink()
    shards[-1].write_bytes(b"PAR1 half")
    rows = 8 + {8: 4, 9: 6}[len(shards)]
    assert encode_shards(encoder, data, "text", tmp_path, rows_per_shard=8).rows_encoded == rows
    after = stored(tmp_path)
    assert after["row"] == before["row"]
    assert_close(after["absolute_embeds"], torch.tensor(before["absolute_embeds"]))
    touched = [file for file in shards if file.stat().st_mtime_ns != states[file]]
    assert touched == [shards[1], shards[-1]]


def test_an_error_leaves_whole_shards_only_and_names_the_row(encoder, texts, tmp_path):
    rows = Dataset.from_dict({"text": [*texts["en"][:21], "", *texts["en"][22:]]})
    with pytest.raises(SampleError, match=r"column 'text'\[21\] is '' \(str\)|column 'text'\[21\] is an empty"):
        encode_shards(encoder, rows, "text", tmp_path, rows_per_shard=8)
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        "part-00000-000000.parquet",
        "part-00000-000001.parquet",
    ]
    with pytest.raises(UploadError, match=r"holds 2 shards, but not yet all of the data"):
        read_shards(tmp_path)


def test_shares_of_processes_are_disjoint_and_together_all(encoder, dataset, files, texts, tmp_path, monkeypatch):
    for given in (as_a_dataset, as_a_stream, as_files):
        folder, encoded = tmp_path / given.__name__, []
        for rank in ("2", "0", "1"):
            monkeypatch.setenv("RANK", rank)
            monkeypatch.setenv("WORLD_SIZE", "3")
            done = encode_shards(encoder, given(files, dataset), "text", folder, rows_per_shard=4)
            encoded.append(done.rows_encoded)
        assert all(encoded) and sum(encoded) == 60 and done.is_complete
        assert_close(stored(folder)["absolute_embeds"], encoder.encode(texts["en"]))


def test_a_rank_that_cannot_be_is_refused(encoder, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigurationError, match="RANK=3 and WORLD_SIZE=3"):
        encode_shards(encoder, dataset, "text", tmp_path)


# -- what is refused


def other_weights(encoder):
    with torch.no_grad():
        next(encoder.backbone.parameters())[7, 3] += 1e-3


def another_pooling(encoder):
    encoder.config.pooling = "cls"


def a_shorter_text(encoder):
    encoder.config.max_length = 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_weights, r"weights is '\w+\.\.\. there"),
        (another_pooling, "pooling is 'mean' there and 'cls' here"),
        (a_shorter_text, r"max_length is \d+ there and 2 here"),
    ],
)
def test_a_folder_of_another_encoder_is_refused_and_says_what_differs(make_model, dataset, tmp_path, change, says):
    encoder = make_model(0).encoder
    encode_shards(encoder, dataset, "text", tmp_path)
    before = stored(tmp_path)
    change(encoder)
    with pytest.raises(ConfigurationError, match=f"holds shards of other encoder: {says}.*Choose another folder"):
        encode_shards(encoder, dataset, "text", tmp_path)
    with pytest.raises(ConfigurationError, match=f"are of another encoder: {says}"):
        read_shards(tmp_path, encoder)
    assert stored(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda says: says.update(part=-1), lambda says: says.update(shard="x"), lambda says: says.pop("ends_part"),
        lambda says: says.update(made_by=[]), lambda says: says["made_by"].pop("encoder"),
        lambda says: says["made_by"]["settings"].update(parts=10**12), lambda says: says["made_by"].update(data=7),
    ],
)  # fmt: skip
def test_a_file_that_says_what_no_shard_says_is_refused(encoder, dataset, tmp_path, change):
    encode_shards(encoder, dataset, "text", tmp_path)
    (file,) = tmp_path.glob("*.parquet")
    says = json.loads(pq.read_metadata(file).metadata[b"hf_relreps"])
    change(says)
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({b"hf_relreps": json.dumps(says).encode()}), file)
    with pytest.raises(ConfigurationError, match="is not a shard that encode_shards wrote"):
        read_shards(tmp_path)


@pytest.mark.parametrize("what", ["no embeddings", "texts", "more rows than its bytes hold"])
def test_a_shard_that_holds_no_embeddings_is_refused(encoder, dataset, tmp_path, what):
    encode_shards(encoder, dataset, "text", tmp_path)
    (file,) = tmp_path.glob("*.parquet")
    table, metadata = pq.read_table(file), pq.read_metadata(file).metadata
    if what == "no embeddings":
        table = table.drop_columns(["absolute_embeds"])
    elif what == "texts":
        place = table.column_names.index("absolute_embeds")
        table = table.set_column(place, "absolute_embeds", pa.array(["x"] * len(table)))
    else:
        table = pa.concat_tables([table.slice(0, 1)] * 100_000)
    pq.write_table(table.replace_schema_metadata(metadata), file)
    with pytest.raises(ConfigurationError, match="bytes, which encode_shards did not write"):
        read_shards(tmp_path)


def test_a_folder_of_other_data_or_settings_is_refused(encoder, dataset, files, tmp_path):
    encode_shards(encoder, dataset, "text", tmp_path / "a")
    with pytest.raises(ConfigurationError, match="shards of other data: dataset is .* rows is 60 there and 59 here"):
        encode_shards(encoder, dataset.select(range(59)), "text", tmp_path / "a")
    with pytest.raises(ConfigurationError, match="of other settings: dtype is 'float32' there and 'float16' here"):
        encode_shards(encoder, dataset, "text", tmp_path / "a", dtype="float16")
    with pytest.raises(ConfigurationError, match=r"of other settings: keep is \[\] there and \['name'\] here"):
        encode_shards(encoder, dataset, "text", tmp_path / "a", keep=["name"])
    encode_shards(encoder, sorted(files.glob("*.parquet"))[:2], "text", tmp_path / "b")
    with pytest.raises(ConfigurationError, match="of other data: files is 2 there and 3 here"):
        encode_shards(encoder, files, "text", tmp_path / "b")
    stream = dataset.to_iterable_dataset()
    encode_shards(encoder, stream, "text", tmp_path / "c")
    with pytest.raises(ConfigurationError, match="of other data: first_rows is"):
        encode_shards(encoder, stream.skip(1), "text", tmp_path / "c")


@pytest.mark.parametrize(
    ("data", "column", "how", "error", "says"),
    [
        (as_a_dataset, "sentence", {}, SampleError, "expected 'sentence' among them"),
        (as_a_stream, "text", {"keep": ["id"]}, SampleError, "expected 'id' among them"),
        (as_a_dataset, "label", {}, SampleError, "column 'label' holds numbers, the encoder reads text"),
        (as_a_dataset, "text", {"dtype": "int8"}, ConfigurationError, "int8"),
        (as_a_dataset, "text", {"rows_per_shard": 0}, ConfigurationError, "rows_per_shard=0"),
        (lambda *_: ["a.txt"], "text", {}, SampleError, r"Cannot read the data 'a\.txt'"),
        (lambda *_: "no/*.parquet", "text", {}, SampleError, r"there is no such file in 'no/\*\.parquet'"),
        (lambda *_: {"text": ["a"]}, "text", {}, ConfigurationError, "data is a dict, expected"),
        (lambda files, _: [*files.glob("*.parquet"), __file__], "text", {}, SampleError, r"\.parquet, \.py"),
    ],
)
def test_what_cannot_be_encoded_is_refused(encoder, dataset, files, tmp_path, data, column, how, error, says):
    with pytest.raises(error, match=says):
        encode_shards(encoder, data(files, dataset), column, tmp_path, **how)
    assert not list(tmp_path.iterdir())


def test_a_hub_that_cannot_be_reached_is_named(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SampleError, match="Cannot read the data 'me/texts' with split 'train'.*Connection refused"):
        encode_shards(encoder, "me/texts", "text", tmp_path)


def test_a_column_with_a_name_of_the_shards_is_refused(encoder, dataset, tmp_path):
    with pytest.raises(ConfigurationError, match="keep names 'row'"):
        encode_shards(encoder, dataset.rename_column("name", "row"), "text", tmp_path, keep=["row"])


def test_no_shards_are_said_to_be_none(tmp_path):
    with pytest.raises(UploadError, match="There are no shards in"):
        read_shards(tmp_path)


# -- out: relative representations


def test_relative_representations_are_read_lazily_in_order_without_a_pass(
    encoder, dataset, texts, labels, tmp_path, passes
):
    encode_shards(encoder, dataset, "text", tmp_path, keep=["label", "name"], rows_per_shard=8)
    with torch.no_grad():
        expected_NR = encoder.projection(encoder.encode(texts["en"]))
    passes.clear()
    rows = read_shards(tmp_path, encoder)
    assert set(rows.column_names) == {"row", "label", "name", "relative_embeds"} and rows.num_shards == 8
    found = list(rows)
    assert [int(row["row"]) for row in found] == list(range(60)) and [int(row["label"]) for row in found] == labels
    assert_close(torch.stack([row["relative_embeds"] for row in found]), expected_NR)
    assert found[3]["name"] == "n3" and not passes


def test_other_anchors_and_another_projection_need_no_second_pass(encoder, dataset, texts, tokenizer, tmp_path):
    encode_shards(encoder, dataset, "text", tmp_path)
    few = AnchorSet([str(i) for i in range(7)], {"en": texts["en"][1:8]})
    other = RelativeModel.from_encoder(encoder.backbone, few.view("en"), tokenizer, config=RelativeConfig.paper())
    with torch.no_grad():
        expected_NR = other.projection(other.encode(texts["en"]))
    seen = []
    handle = encoder.backbone.register_forward_hook(lambda *args: seen.append(1))
    found_NR = torch.stack([row["relative_embeds"] for row in read_shards(tmp_path, other)])
    handle.remove()
    assert_close(found_NR, expected_NR)
    assert found_NR.shape == (60, 7) and not seen


def test_without_an_encoder_the_absolute_embeddings_are_read(encoder, dataset, texts, tmp_path):
    encode_shards(encoder, dataset, "text", tmp_path)
    assert_close(torch.stack([row["absolute_embeds"] for row in read_shards(tmp_path)]), encoder.encode(texts["en"]))


def test_a_decoder_trains_on_shards_with_the_plain_trainer(encoder, dataset, labels, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # seconds after each shuffled pass
    encode_shards(encoder, dataset, "text", tmp_path / "shards", keep=["label"], rows_per_shard=16)
    rows = read_shards(tmp_path / "shards", encoder)
    torch.manual_seed(0)
    decoder = RelativeDecoder(RelativeDecoderConfig(space=encoder.config.space, num_labels=3))
    shuffled = rows.shuffle(seed=0, buffer_size=60)
    tiny_trainer(decoder, None, shuffled, tmp_path / "out", max_steps=60, learning_rate=1e-2).train()
    with torch.no_grad():
        logits = decoder.eval()(torch.stack([row["relative_embeds"] for row in rows])).logits
    assert (logits.argmax(-1) == torch.tensor(labels)).float().mean() > 0.9


def test_float16_takes_half_the_space_and_is_near(encoder, dataset, texts, tmp_path):
    for dtype in ("float32", "float16"):
        encode_shards(encoder, dataset, "text", tmp_path / dtype, dtype=dtype)
    assert "halffloat" in str(
        pq.read_schema(next((tmp_path / "float16").glob("*.parquet"))).field("absolute_embeds").type
    )
    with torch.no_grad():
        expected_NR = encoder.projection(encoder.encode(texts["en"]))
    found_NR = torch.stack([row["relative_embeds"] for row in read_shards(tmp_path / "float16", encoder)])
    assert found_NR.dtype == torch.float32
    assert_close(found_NR, expected_NR, rtol=0, atol=0.02)


def test_what_is_too_large_for_float16_is_refused(make_model, dataset, tmp_path):
    encoder = make_model(0).encoder
    encoder.backbone.encoder.layer[-1].output.LayerNorm.weight.data.fill_(1e6)
    with pytest.raises(EmbeddingError, match=r"rows 0 to 59 of column 'text' reach .*too large for float16"):
        encode_shards(encoder, dataset, "text", tmp_path, dtype="float16")


def test_a_flipped_bit_is_found_when_it_is_read(encoder, dataset, tmp_path):
    encode_shards(encoder, dataset, "text", tmp_path)
    (file,) = tmp_path.glob("*.parquet")
    numbers = pq.read_table(file)["absolute_embeds"].combine_chunks().flatten().to_numpy().tobytes()
    content = bytearray(file.read_bytes())
    content[content.find(numbers[:64]) + 9] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        list(read_shards(tmp_path, encoder))


def test_the_metadata_say_which_encoder_and_data_the_shards_are_of(encoder, dataset, tmp_path):
    encode_shards(encoder, dataset, "text", tmp_path, rows_per_shard=30)
    says = [json.loads(pq.read_metadata(file).metadata[b"hf_relreps"]) for file in sorted(tmp_path.glob("*.parquet"))]
    assert [one["ends_part"] for one in says] == [False, True] and says[0]["made_by"] == says[1]["made_by"]
    made_by = says[0]["made_by"]
    assert {name: made_by["encoder"][name] for name in ("pooling", "layer", "prompt")} == {
        "pooling": "mean",
        "layer": encoder.config.layer,
        "prompt": None,
    }
    assert len(made_by["encoder"]["weights"]) == 64 and made_by["data"]["rows"] == 60


def test_a_full_disk_is_named_with_the_folder_and_leaves_nothing(encoder, dataset, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    with pytest.raises(UploadError, match=r"could not be written to .*Free some space"):
        encode_shards(encoder, dataset, "text", tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- kills


@pytest.fixture(scope="module")
def many(encoder, texts, tmp_path_factory):
    """A saved encoder, 2,400 rows in two files, and their embeddings."""
    folder = tmp_path_factory.mktemp("many")
    encoder.save_pretrained(folder / "encoder")
    rows = Dataset.from_dict({"text": texts["en"] * 40, "id": list(range(2 * HALF))})
    for number in range(2):
        rows.select(range(number * HALF, (number + 1) * HALF)).to_parquet(folder / f"{number}.parquet")
    return folder, encoder.encode(texts["en"]).repeat(40, 1)


def files_in(many: Path) -> list[Path]:
    return [many / "0.parquet", many / "1.parquet"]


def command(many: Path, output: Path) -> list[str]:
    """Four texts at a time: a run that takes seconds, so that it can be killed in its midst."""
    told = ["--column", "text", "--keep", "id", "--output", str(output), "--rows-per-shard", "100", "--json"]
    return ["encode", str(many / "encoder"), *map(str, files_in(many)), *told, "--batch-size", "4"]


def go_on(many: Path, output: Path) -> EncodedShards:
    """The same call in this process."""
    encoder = RelativeModel.from_pretrained(many / "encoder")
    return encode_shards(encoder, files_in(many), "text", output, keep=["id"], rows_per_shard=100)


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}


def kill_midway(arguments: list[str], folder: Path) -> int:
    """Start it, kill it and all that it started when three shards are there, and count the rows of the whole ones."""
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT
    while len(list(folder.glob("part-*.parquet"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline, "no shards were written"
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it was killed"
    started = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *started):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(TIMEOUT)
    psutil.wait_procs(started, TIMEOUT)
    return sum(pq.read_metadata(file).num_rows for file in folder.glob("part-*.parquet"))


def check_all(folder: Path, expected_ND: torch.Tensor) -> None:
    found = stored(folder)
    assert found["id"] == list(range(2 * HALF))
    assert_close(found["absolute_embeds"], expected_ND)
    assert [path for path in folder.iterdir() if not path.match("part-*.parquet")] == []


def test_a_killed_run_goes_on_with_the_shards_that_are_missing(many, tmp_path):
    arguments = [sys.executable, "-m", "hf_relreps_cli", *command(many[0], tmp_path / "shards")]
    there = kill_midway(arguments, tmp_path / "shards")
    assert 300 <= there < 2 * HALF
    done = go_on(many[0], tmp_path / "shards")
    assert done.is_complete and (done.rows, done.shards) == (2 * HALF, 24)
    assert done.rows_encoded == 2 * HALF - there
    check_all(tmp_path / "shards", many[1])


def launched(many: Path, output: Path) -> list[str]:
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "hf_relreps_cli"]
    return [sys.executable, "-m", "accelerate.commands.launch", *launch, *command(many, output)]


@pytest.mark.slow
def test_two_processes_of_accelerate_that_are_killed_go_on_each_with_its_own(many, tmp_path):
    arguments = launched(many[0], tmp_path / "shards")
    there = kill_midway(arguments, tmp_path / "shards")
    assert there < 2 * HALF
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    encoded = [int(rows) for rows in re.findall(r'"rows_encoded": (\d+)', done.stdout)]
    assert len(encoded) == 2 and all(encoded)  # both worked, on files of their own
    assert sum(encoded) == 2 * HALF - there
    check_all(tmp_path / "shards", many[1])


@pytest.mark.slow
def test_one_process_of_two_that_is_killed_stops_no_other_and_its_shards_are_made_by_any_run(many, tmp_path):
    arguments = [sys.executable, "-m", "hf_relreps_cli", *command(many[0], tmp_path / "shards")]
    ranks = [environment() | {"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    silent = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    first, second = (subprocess.Popen(arguments, env=one, **silent) for one in ranks)
    deadline = time.monotonic() + TIMEOUT
    while not list((tmp_path / "shards").glob("part-00000-*.parquet")) and first.poll() is None:
        assert time.monotonic() < deadline, "no shards were written"
        time.sleep(0.01)
    first.kill()
    told = json.loads(second.communicate(timeout=TIMEOUT)[0])
    first.communicate(timeout=TIMEOUT)
    assert told["rows_encoded"] == HALF and not told["is_complete"]
    with pytest.raises(UploadError, match="not yet all of the data"):
        read_shards(tmp_path / "shards")
    done = go_on(many[0], tmp_path / "shards")
    assert done.is_complete and done.rows_encoded < HALF
    check_all(tmp_path / "shards", many[1])


# -- Ray

RAY = """
import json, sys, threading, time
from pathlib import Path
import psutil, ray
from hf_relreps import RelativeModel
from hf_relreps.errors import SampleError
from hf_relreps.shards import encode_shards

many, output, kill = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
encoder = RelativeModel.from_pretrained(f"{many}/encoder")
how = {"keep": ["id"], "rows_per_shard": 100, "batch_size": 4, "ray_actors": 2}
killed = []

def actors():
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in process.name() or any("MapWorker" in word for word in process.cmdline()):
                yield process
        except psutil.Error:  # it has ended
            pass

def kill_an_actor():
    while not killed:
        time.sleep(0.01)
        if list(Path(output).glob("part-*.parquet")):
            for process in actors():  # one that is at work: Ray names processes by what they do
                process.kill()
                killed.append(process.pid)
                break

if kill == "an actor":
    threading.Thread(target=kill_an_actor, daemon=True).start()
files = [f"{many}/{number}.parquet" for number in range(2)]
done = encode_shards(encoder, files, "text", output, **how)
print(json.dumps({"rows": done.rows, "complete": done.is_complete, "encoded": done.rows_encoded, "killed": killed}))
try:
    encode_shards(encoder, files, "id", output + "-other", **how)
except SampleError as error:
    print(error)
"""


def with_ray(many: Path, output: Path, kill: str) -> list[str]:
    return [sys.executable, "-c", RAY, str(many), str(output), kill]


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'hf_relreps[ray]'")


@pytest.mark.slow
@needs_ray
def test_two_actors_of_ray_encode_all_though_one_is_killed(many, tmp_path):
    printed = run_together(with_ray(many[0], tmp_path / "shards", "an actor"), TIMEOUT)
    told = json.loads(re.search(r'^\{"rows".*\}$', printed, re.MULTILINE)[0])  # Ray prints lines of its own
    assert told["complete"] and told["rows"] == 2 * HALF and len(told["killed"]) == 1
    assert re.search("column 'id' of part . holds numbers, the encoder reads text", printed)
    check_all(tmp_path / "shards", many[1])


@pytest.mark.slow
@needs_ray
def test_a_killed_run_of_ray_is_gone_on_with_by_a_plain_process(many, tmp_path):
    there = kill_midway(with_ray(many[0], tmp_path / "shards", "nothing"), tmp_path / "shards")
    done = go_on(many[0], tmp_path / "shards")
    assert done.is_complete and 0 < done.rows_encoded == 2 * HALF - there
    check_all(tmp_path / "shards", many[1])


def test_without_ray_the_extra_is_named(encoder, dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf_relreps\[ray\]'"):
        encode_shards(encoder, dataset, "text", tmp_path, ray_actors=2)
