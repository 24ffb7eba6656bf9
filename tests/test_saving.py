"""A save over a good folder, cut off at any write: the old one or the new one is there, whole, never neither."""

from __future__ import annotations

import io
import json
import threading

import pytest
import torch
from safetensors import SafetensorError

from hf_relreps import AnchorSet, RelativeDecoder, RelativeModelForSequenceClassification
from hf_relreps.backbones import evaluating
from hf_relreps.errors import UploadError
from hf_relreps.saving import BESIDE, finish_save, saving_beside
from hf_relreps.sources import Source


class Cut(BaseException):
    """As if the process had been killed: nothing after it runs but `finally`, which a test cannot take away."""


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and BESIDE not in path.parts
    }


def save(folder, files):
    with saving_beside(folder, obsolete=["*.old"]) as place:
        for name, text in files.items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(text)


OLD = {"a/x": "old", "a/y": "old", "z": "old", "left.old": "old"}
NEW = {"a/x": "new", "a/y": "new", "z": "new", "b/new": "new"}


@pytest.mark.parametrize("moves", range(len(NEW) + 1))
def test_a_save_that_is_killed_while_files_take_their_places_is_finished_by_the_next_who_opens(tmp_path, moves):
    save(tmp_path, OLD)
    beside = tmp_path / BESIDE
    done = []

    def dying(source, target):
        if len(done) == moves:
            raise Cut
        done.append(target)
        source.replace(target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_relreps.saving.finish_save", lambda root: None)
        save(tmp_path, NEW)
    assert (beside / "complete.json").is_file()
    if moves < len(NEW):
        with pytest.raises(Cut):
            finish_save(tmp_path, dying)
    Source.of(tmp_path)
    assert content(tmp_path) == {name: text.encode() for name, text in NEW.items()}
    assert not beside.exists()


@pytest.mark.parametrize("writes", range(len(NEW)))
def test_a_save_that_dies_at_any_write_leaves_the_old_one(tmp_path, writes):
    save(tmp_path, OLD)
    before = content(tmp_path)
    with pytest.raises(OSError, match="No space left"), saving_beside(tmp_path) as place:
        for i, (name, text) in enumerate(NEW.items()):
            if i == writes:
                raise OSError(28, "No space left on device")
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(text)
    assert content(tmp_path) == before
    assert not (tmp_path / BESIDE).exists()


def test_what_a_killed_process_left_half_written_does_not_count(tmp_path):
    save(tmp_path, OLD)
    before = content(tmp_path)
    (tmp_path / BESIDE / "files").mkdir(parents=True)
    (tmp_path / BESIDE / "files" / "z").write_text("half")
    Source.of(tmp_path)
    assert content(tmp_path) == before
    save(tmp_path, NEW)
    assert content(tmp_path) == {name: text.encode() for name, text in NEW.items()}


@pytest.mark.parametrize(
    ("files", "obsolete"),
    [
        (["../victim"], []),
        (["a/../../victim"], []),
        (["/victim"], []),
        (["link/victim"], []),
        ([], ["../victim"]),
        ([], ["**/x"]),
        ([], [""]),
        (["a\0b"], []),
    ],
)
def test_the_mark_of_a_save_reaches_nothing_outside_of_its_folder(tmp_path, files, obsolete):
    """A folder that was downloaded may hold one too: whoever opens it next must not write or remove for it."""
    (tmp_path / "victim").write_text("mine")
    folder = tmp_path / "upload"
    save(folder, OLD)
    (folder / "link").symlink_to(tmp_path)
    before = content(folder)
    beside = folder / BESIDE
    (beside / "files" / "link").mkdir(parents=True)
    (beside / "files" / "link" / "victim").write_text("theirs")
    (beside / "victim").write_text("theirs")
    (beside / "complete.json").write_text(json.dumps({"files": files, "obsolete": obsolete}))
    with pytest.raises(UploadError, match="complete.json names .*, expected files inside of"):
        Source.of(folder)
    assert (tmp_path / "victim").read_text() == "mine"
    assert content(folder) == before


def test_a_save_takes_nothing_from_outside_and_writes_nothing_there_through_links(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "upload"
    outside.mkdir()
    (outside / "key").write_text("mine")
    save(folder, OLD)
    (folder / BESIDE).mkdir()
    (folder / BESIDE / "files").symlink_to(outside)
    mark = folder / BESIDE / "complete.json"
    mark.write_text(json.dumps({"files": ["key"], "obsolete": []}))
    with pytest.raises(UploadError, match="complete.json names 'key', expected files inside of"):
        Source.of(folder)
    mark.write_text(json.dumps({"files": [], "obsolete": ["link/*"]}))
    (folder / "link").symlink_to(outside)
    Source.of(folder)
    assert [path.name for path in outside.iterdir()] == ["key"]
    (folder / BESIDE).symlink_to(outside)
    save(folder, NEW)
    assert [path.name for path in outside.iterdir()] == ["key"]
    assert (folder / "z").read_text() == "new"


@pytest.mark.parametrize(
    "told", ["", "[]", "{}", '{"files": "x", "obsolete": []}', '{"files": [1], "obsolete": []}', "[" * 9999]
)
def test_a_mark_that_cannot_be_read_is_an_upload_error(tmp_path, told):
    (tmp_path / BESIDE).mkdir()
    (tmp_path / BESIDE / "complete.json").write_text(told)
    with pytest.raises(UploadError, match="cannot be read .*Remove the folder"):
        Source.of(tmp_path)


def faults(make_model, what):
    if what == "anchors":
        return lambda folder: AnchorSet(["b"], {"en": ["y"]}).save_pretrained(folder)
    model = make_model(1)
    return (model if what == "model" else model.decoder).save_pretrained


@pytest.mark.parametrize("what", ["model", "decoder", "anchors"])
def test_models_decoders_and_anchors_survive_a_fault_at_every_write(tmp_path, make_model, monkeypatch, what):
    """Each call by which Python opens, makes or puts a file fails in its turn, until a save has none left to fail."""
    folder = tmp_path / "good"
    make_model(0).save_pretrained(folder)
    before, save_over = content(folder), faults(make_model, what)
    real, count, number = io.open, [0], 0
    for number in range(1, 60):
        count[0] = 0

        def failing(file, mode="r", *args, number=number, **kwargs):
            if isinstance(mode, str) and set(mode) & set("wxa"):
                count[0] += 1
                if count[0] == number:
                    raise OSError(28, "No space left on device")
            return real(file, mode, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", failing)
            patch.setattr("io.open", failing)
            try:
                save_over(folder)
                break
            except OSError:
                pass
        assert content(folder) == before, number
    assert number > 1
    assert content(folder) != before


def test_weights_that_cannot_be_written_are_an_oserror_and_the_earlier_model_stays(tmp_path, make_model, monkeypatch):
    from transformers import modeling_utils

    make_model(0).save_pretrained(tmp_path)
    before = content(tmp_path)

    def full(*args, **kwargs):
        raise SafetensorError("IoError: No space left on device")

    monkeypatch.setattr(modeling_utils, "safe_save_file", full)
    with pytest.raises(UploadError, match="could not be written .*The existing files are unchanged"):
        make_model(1).save_pretrained(tmp_path)
    assert content(tmp_path) == before
    RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    RelativeDecoder.from_pretrained(tmp_path)


# -- threads that encode a model in training mode


def test_a_model_is_in_evaluation_mode_until_the_last_thread_has_left():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    inside, may_leave = threading.Event(), threading.Event()

    def stay():
        with evaluating(model):
            inside.set()
            may_leave.wait(60)

    thread = threading.Thread(target=stay)
    with evaluating(model):
        thread.start()
        assert inside.wait(60)
    assert [module.training for module in model] == [False, False]
    may_leave.set()
    thread.join()
    assert [module.training for module in model] == [True, False]


def test_threads_that_encode_a_model_in_training_mode_all_get_its_answer(make_model, texts):
    encoder = make_model(0, decoder_dropout=0.5).encoder
    encoder.backbone.config.hidden_dropout_prob = 0.5
    expected = encoder.encode(texts["en"][:8])
    encoder.train()
    found = []

    def work():
        for _ in range(10):
            found.append(encoder.encode(texts["en"][:8]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(torch.allclose(one, expected, atol=1e-5) for one in found)
    assert encoder.backbone.training
