"""An upload is untrusted input: whatever it holds, it loads as something sound or is refused; nothing else is touched.

Mutations and watchdogs are those of `benchmarks/reliability`; ``make nightly`` tries ten thousand.
"""

from __future__ import annotations

import json
import re
import signal
import struct
import subprocess
import sys
import time
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from files import change

from benchmarks.reliability import fuzz
from hf_relreps import (
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeModel,
    RelativeModelForSequenceClassification,
)
from hf_relreps.anchor_files import LITTLE
from hf_relreps.errors import AnchorError, AnchorIntegrityError, ConfigurationError, SampleError, UploadError
from hf_relreps.hub import write_card
from hf_relreps.sources import Source
from hf_relreps.uploads import load_processor, weight_files


@pytest.fixture
def upload(upload):
    """A folder with a saved whole model and its card."""
    write_card(upload, "me/upload")
    return upload


def seconds_of(call):
    start = time.process_time()
    call()
    return time.process_time() - start


# -- the fuzz suite

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify and /proc are Linux")


@linux
def test_spoilt_uploads_load_or_are_refused_and_touch_nothing_else():
    report = fuzz.run(count=120, seed=20)
    assert report.lost == []
    assert report.counts["inputs tried"] == 120
    assert report.counts["RelrepsError"] > 35 and report.counts["loaded"] > 35  # both ways are really taken


TRICKS = {
    "open(bait / 'config.json').read()": "touched the bait",
    "load_file(bait / 'model.safetensors')": "touched the bait",  # in Rust, of which Python hears nothing
    "(upload.parent / 'x').write_text('')": "wrote",
    "subprocess.run(['true'])": "subprocess.Popen",
    "socket.create_connection(('127.0.0.1', 9))": "socket.connect",
    "exec(compile('1', 'evil', 'exec'))": "compile",
    "time.sleep(99)": "Hang",
    "(upload / 'x').write_text('')": "nothing",
    "(upload / 'd').mkdir(); (upload / 'd' / 'y').write_text(''); shutil.rmtree(upload / 'd')": "nothing",
    "os.remove('x', dir_fd=os.open(upload.parent, os.O_RDONLY))": "os.remove",
}
WATCHED = """
import contextlib, os, pathlib, shutil, socket, subprocess, sys, time, torch
from safetensors.torch import load_file, save_file
from benchmarks.reliability.guard import Guard, Hang
upload, bait = pathlib.Path(sys.argv[1], "upload"), pathlib.Path(sys.argv[1], "bait")
upload.mkdir(); bait.mkdir()
(bait / "config.json").write_text("{}")
save_file({"x": torch.ones(1)}, bait / "model.safetensors")
guard = Guard([upload], bait)
for trick in sys.argv[2:]:
    guard.seconds = 0.2 if "sleep" in trick else 20  # of a machine that is busy with others, six times that
    try:
        with contextlib.suppress(OSError), guard.watching():
            exec(trick)
        print(*guard.steps or ["nothing"], sep="; ")
    except Hang:
        print("Hang")
"""


@linux
def test_the_watchdogs_of_the_fuzz_suite_notice(tmp_path):
    command = [sys.executable, "-c", WATCHED, str(tmp_path), *TRICKS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    noticed = done.stdout.splitlines()
    for steps, expected in zip(noticed, TRICKS.values(), strict=True):
        assert any(step.startswith(expected) for step in steps.split("; ")), (steps, expected)


ASKS = """
import mmap, sys
from benchmarks.reliability.guard import Memory, end_at_requests_above
memory = Memory()
held = [mmap.mmap(-1, 100 << 20) for _ in range(3)]  # asked for, and never used
print(memory.used >> 20, memory.asked >> 20)
held = bytearray(100 << 20)
print(memory.used >> 20, flush=True)
end_at_requests_above(256 << 20)
held = bytearray(200 << 20)
print("soon", flush=True)
try:
    exec(sys.argv[1])
except MemoryError:
    print("caught by whoever asked")
"""


@linux
@pytest.mark.parametrize(
    "ask", ["bytearray(64 << 30)", "bytearray(257 << 20)", "mmap.mmap(-1, 9 << 20).resize(1 << 40)"]
)
def test_memory_that_is_asked_for_counts_though_it_is_refused_or_never_used(ask):
    done = subprocess.run([sys.executable, "-c", ASKS, ask], capture_output=True, text=True)
    (unused, asked), (used,), (soon,) = map(str.split, done.stdout.splitlines())
    assert int(unused) < 50 and int(asked) >= 300 and int(used) >= 100 and soon == "soon"
    assert done.returncode == -signal.SIGSYS


# -- what it found, one by one


DOORS = {
    "config.json": RelativeModelForSequenceClassification.from_pretrained,
    "decoder/config.json": RelativeDecoder.from_pretrained,
    "decoder/model.safetensors.index.json": RelativeDecoder.from_pretrained,
    "model.safetensors.index.json": lambda upload: weight_files(Source.of(upload)),  # a whole load reads the parts'
}


@pytest.mark.parametrize("file", DOORS)
def test_deep_json_is_refused(upload, file):
    (upload / "decoder" / "model.safetensors").unlink()  # else its index is not read
    (upload / file).write_text('{"a": ' * 100_000)
    with pytest.raises(UploadError, match="is not valid JSON: maximum recursion depth"):
        DOORS[file](upload)


@pytest.mark.parametrize(
    ("field", "count"), [("num_labels", 10**12), ("num_labels", 1e300), ("num_hidden_layers", 10**12)]
)
@pytest.mark.parametrize("nested", [False, True])
def test_counts_that_no_model_has_are_refused_at_once(upload, field, count, nested):
    file = upload / "config.json"
    content = json.loads(file.read_text())
    part = content["encoder"]["encoder_config"] if nested or field == "num_hidden_layers" else content["decoder"]
    part.pop("id2label", None)
    part[field] = count
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=f"{field}=.* is larger than in any known model; the limit is"):
        RelativeModelForSequenceClassification.from_pretrained(upload)


def test_counts_are_refused_where_transformers_reads_the_configuration_for_a_processor(upload):
    file = upload / "config.json"
    content = json.loads(file.read_text())
    del content["decoder"]["id2label"]
    content["decoder"]["num_labels"] = 10**12
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="num_labels=1000000000000 is larger than in any known model"):
        load_processor(Source.of(upload))


@pytest.mark.parametrize("field", ["num_anchors", "embedding_size", "decoder_hidden_size"])
def test_immense_shapes_are_refused_without_being_made(upload, field):
    for file in upload.rglob("config.json"):
        content = json.loads(file.read_text())
        for part in [content[name] for name in ("encoder", "decoder") if name in content] or [content]:
            (part["space"] if field == "num_anchors" else part)[field] = 10**12
        file.write_text(json.dumps(content))
    of_shape, of_space = (
        "do not match its configuration",
        "num_anchors 20 there and 1000000000000 here",
    )
    expected = of_space if field == "num_anchors" else of_shape
    for door in (RelativeModelForSequenceClassification, RelativeDecoder, RelativeModel):
        if not (door is RelativeModel and field == "decoder_hidden_size"):
            if not (door is RelativeDecoder and field == "embedding_size"):  # which a decoder does not read
                with pytest.raises((UploadError, ConfigurationError), match=f"{expected}|larger than in any"):
                    door.from_pretrained(upload)


def test_an_immense_header_of_weights_is_refused(upload):
    file = upload / "decoder" / "model.safetensors"
    header = json.dumps({"output.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}})
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(100))
    with pytest.raises(UploadError):
        RelativeDecoder.from_pretrained(upload)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("encoder", "anchor_view", ["en"]),
        ("decoder", "anchor_view", ["en"]),
        ("encoder", "fingerprint", 2),
        ("decoder", "fingerprint", 2),
        ("encoder", "encoder_adapters", [1]),
        ("encoder", "encoder_adapters", {"default": "LORA"}),
        ("encoder", "space", 7),
        ("decoder", "space", ["x"]),
    ],
)
def test_fields_of_another_type_are_refused_by_name(part, field, value):
    fields = {"space": {field: value}} if field == "fingerprint" else {field: value}
    with pytest.raises(ConfigurationError, match=field):
        RelativeConfig.from_dict({"model_type": "relreps", "format_version": 2, part: fields | {"format_version": 2}})


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_part_of_another_type_is_refused(part):
    for found in (7, [1], "evil", True):
        with pytest.raises(ConfigurationError, match="expected a Relative.*Config or its fields"):
            RelativeConfig.from_dict({"model_type": "relreps", "format_version": 2, part: found})


def test_widths_that_are_no_numbers_are_refused():
    for widths in ([[1], 2], "abc", 7, []):
        with pytest.raises((ConfigurationError, ValueError), match="decoder_widths"):
            RelativeDecoderConfig.from_dict({"format_version": 2, "decoder_widths": widths})


def test_an_adapter_file_does_not_lead_to_another_model(upload, make_model, tmp_path):
    make_model(1).save_pretrained(tmp_path / "elsewhere")
    adapter = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(tmp_path / "elsewhere"),
        "target_modules": ["query"],
    }
    for folder in (upload, upload / "encoder", upload / "decoder"):
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
    for door in (RelativeModelForSequenceClassification, RelativeModel, RelativeDecoder):
        with pytest.raises(UploadError, match=r"contains adapter_config\.json, which makes transformers load another"):
            door.from_pretrained(upload)


def test_an_adapter_file_on_the_hub_does_not_lead_to_another_repository(hub, new_repo_id, make_model):
    from huggingface_hub import HfApi

    sound, hostile = new_repo_id(), new_repo_id()
    make_model(0).push_to_hub(sound)
    make_model(1).push_to_hub(hostile)
    adapter = json.dumps({"peft_type": "LORA", "base_model_name_or_path": sound}).encode()
    HfApi().upload_file(path_or_fileobj=adapter, path_in_repo="decoder/adapter_config.json", repo_id=hostile)
    hub.requests.clear()
    with pytest.raises(UploadError, match=r"contains adapter_config\.json"):
        RelativeDecoder.from_pretrained(hostile)
    assert not [request.path for request in hub.requests if sound in request.path]


def test_a_processor_never_asks_to_run_the_uploads_code(upload, monkeypatch):
    def asked(question):
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", asked)
    (upload / "tokenization_evil.py").write_text("raise SystemExit('code of the upload ran')")
    change(
        upload / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"]},
    )
    with pytest.raises(UploadError, match="has no processor"):
        load_processor(Source.of(upload))


def test_a_tokenizer_file_that_is_nonsense_is_refused(upload):
    (upload / "tokenizer.json").write_text('{"version": "1.0", "model": 7}')
    with pytest.raises(UploadError, match="has no model"):
        load_processor(Source.of(upload))


def test_a_tokenizer_that_calls_its_tokens_something_else_is_refused(upload):
    change(upload / "tokenizer_config.json", model_input_names=["evil"])
    with pytest.raises(SampleError, match="expected input_ids"):
        RelativeModel.from_pretrained(upload).encode(["small cat here"])


@pytest.mark.parametrize(
    "settings",
    [{"rescale_factor": "x"}, {"size": {"height": {}, "width": 8}}, {"size": {"height": 2**31, "width": 8}}],
)
def test_an_image_processor_of_nonsense_is_a_sample_error(settings):
    from PIL import Image
    from transformers import ViTImageProcessor

    from hf_relreps.samples import batches

    reader = ViTImageProcessor(size={"height": 8, "width": 8})
    for name, value in settings.items():
        setattr(reader, name, value)
    with pytest.raises(SampleError, match=r"cannot read these samples|would resize an image to"):
        list(batches([Image.new("RGB", (8, 8))], reader, 1))


# -- anchors that unpack to gigabytes


def test_a_table_of_more_rows_than_its_record_says_is_refused_before_it_is_unpacked(upload):
    file = upload / "anchors" / "anchors.parquet"
    rows = 2_000_000
    pq.write_table(pa.table({name: pa.repeat(pa.scalar("x"), rows) for name in ("id", "en", "fr")}), file)
    assert file.stat().st_size < 20_000
    with pytest.raises(AnchorIntegrityError, match="the number of anchors is 2000000, but anchor_set.json says 20"):
        AnchorSet.from_pretrained(upload)


def test_a_table_that_would_unpack_to_gigabytes_is_refused_though_its_record_agrees(upload):
    file = upload / "anchors" / "anchors.parquet"
    rows = 10_000_000
    pq.write_table(pa.table({name: pa.repeat(pa.scalar("x"), rows) for name in ("id", "en", "fr")}), file)
    change(upload / "anchors" / "anchor_set.json", num_anchors=rows)
    with pytest.raises(AnchorIntegrityError, match="would unpack to [0-9]+ bytes, and [0-9]+ are allowed"):
        AnchorSet.from_pretrained(upload)


def test_pictures_that_would_unpack_to_gigabytes_together_are_refused(tmp_path):
    side = 6_000  # 108 MB as RGB: each alone is below what Pillow takes for a bomb
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND"):
        png += (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    folder = tmp_path / "anchors"
    folder.mkdir()
    ids = [str(i) for i in range(20)]
    pq.write_table(pa.table({"id": ids, "photo": [{"bytes": png, "path": None}] * 20}), folder / "anchors.parquet")
    record = {"format_version": 1, "fingerprint": "", "num_anchors": 20, "origin": {}}
    record["views"] = {"photo": {"modality": "image", "digest": ""}}
    (folder / "anchor_set.json").write_text(json.dumps(record))
    assert side * side * 3 * 20 > LITTLE
    with pytest.raises(AnchorIntegrityError, match="its images would unpack to 2160000000 bytes"):
        AnchorSet.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["", "a\0b", 7])
def test_a_view_has_a_name_that_a_table_can_hold(name):
    with pytest.raises(AnchorError, match="A view cannot be called"):
        AnchorSet(["a"], {name: ["x"]})


# -- cards

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    "metadata",
    [
        LAUGHS,
        LAUGHS + "tags: *a9\n",
        LAUGHS + "license: *a9\n",
        "license: !!python/object/apply:os.system ['echo evil']\n",
        "license: " + "[" * 20_000 + "\n",
        "license: &a [*a]\n",
        "tags: [1, null, {a: b}]\nlanguage: 7\ndatasets: {a: b}\n",
        "1: 2\nnull: x\n",
    ],
    ids=["laughs", "laughs as tags", "laughs as a licence", "code", "deep", "itself", "other types", "other keys"],
)
def test_a_hostile_card_is_read_or_written_anew_in_a_moment(upload, metadata):
    file = upload / "README.md"
    body = file.read_text().split("---\n", 2)[2]
    file.write_text(f"---\n{metadata}---\n{body}")
    assert seconds_of(lambda: write_card(upload, "me/upload")) < 30
    assert "relative-representations" in file.read_text()
    assert file.stat().st_size < 100_000


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 200_000 + "x",
        "".join(f"<!-- hf_relreps:begin s{i} -->\n" for i in range(5_000)),
        "<!-- hf_relreps:begin use -->\n" * 5_000,
        "<!-- hf_relreps:sections " + "use " * 50_000,
    ],
    ids=["line ends", "openings", "the same opening", "a memory without an end"],
)
def test_a_card_of_many_marks_is_merged_in_a_moment(upload, text):
    file = upload / "README.md"
    file.write_text(file.read_text() + text)
    assert seconds_of(lambda: write_card(upload, "me/upload")) < 30
    assert len(re.findall("hf_relreps:end use", file.read_text())) == 1


@pytest.mark.parametrize(
    "name", ["x](http://evil.example) [y", "http://evil.example/x", "me/upload\n# A title", "a/b/c"]
)
def test_a_base_that_is_no_repository_gets_no_link_in_the_card(upload, name):
    file = upload / "config.json"
    config = json.loads(file.read_text())
    config["encoder"]["base_model_name_or_path"] = name
    file.write_text(json.dumps(config))
    write_card(upload, "me/upload")
    card = (upload / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]).get("base_model") is None
    told = f"`{' '.join(name.split())}`".replace("[", "&#91;")
    assert told in card and "](http://evil" not in card.replace(told, "")
    assert not re.search(r"\]\(https://huggingface\.co/[^)]*(evil|title|a/b/c)", card)
