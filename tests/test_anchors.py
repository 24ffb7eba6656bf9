"""`AnchorSet`: chosen from a dataset, identified, saved, loaded, and refused when it is not what it says."""

import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_relreps import AnchorSet
from hf_relreps.errors import AnchorError, AnchorIntegrityError, RelrepsError, SampleError, UploadError
from hf_relreps.samples import digest_of_samples
from hf_relreps.selection import select


ROWS = 40


def columns(**more):
    rows = range(ROWS)
    plain = {"package": [f"p{i}" for i in rows], "en": [f"word {i}" for i in rows], "fr": [f"mot {i}" for i in rows]}
    return plain | {"label": [i % 3 for i in rows], "number": list(rows)} | more


@pytest.fixture
def dataset():
    return Dataset.from_dict(columns())


@pytest.fixture
def pair():
    return AnchorSet(["cat", "dog", "bird"], {"en": ["a cat", "a dog", "a bird"], "fr": ["chat", "chien", "oiseau"]})


def noise(mode="RGB", seed=0, size=(7, 5)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(values.squeeze(-1) if bands == 1 else values, mode=None)


# -- chosen from a dataset


def test_rows_stay_together_over_the_views(dataset):
    anchors = AnchorSet.from_dataset(dataset, 10, views={"english": "en", "french": "fr"}, id_column="package")
    assert anchors.views == ["english", "french"] and len(anchors) == 10
    rows = [int(id_[1:]) for id_ in anchors.ids]
    assert rows == select(ROWS, 10).tolist()
    assert anchors.view("english").samples == [f"word {row}" for row in rows]
    assert anchors.view("french").samples == [f"mot {row}" for row in rows]


@pytest.mark.parametrize("views", [["en", "fr"], ("en", "fr"), {"en": "en", "fr": "fr"}], ids=str)
def test_views_may_be_a_list_where_they_are_called_as_their_columns(dataset, views):
    anchors = AnchorSet.from_dataset(dataset, 5, views=views)
    assert anchors.views == ["en", "fr"]


def test_one_view_may_be_a_name(dataset):
    anchors = AnchorSet.from_dataset(dataset, 5, views="en")
    assert anchors.view() is anchors.view("en")


def test_the_same_arguments_give_the_same_anchors_and_another_seed_others(dataset):
    chosen = [AnchorSet.from_dataset(dataset, 10, views="en", seed=seed).fingerprint for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("strategy", ["kmeans", "fps"])
@pytest.mark.parametrize("kind", ["list", "array"])
def test_strategies_on_embeddings_see_those_of_complete_rows_only(strategy, kind):
    embeddings = np.random.default_rng(0).standard_normal((ROWS, 4))
    gaps = [None if i < 10 else f"word {i}" for i in range(ROWS)]
    anchors = AnchorSet.from_dataset(
        Dataset.from_dict(columns(en=gaps)),
        5,
        views="en",
        strategy=strategy,
        embeddings=embeddings.tolist() if kind == "list" else embeddings,
    )
    rows = select(30, 5, strategy, embeddings_ND=embeddings[10:]) + 10
    assert anchors.view().samples == [f"word {row}" for row in rows]
    assert anchors.origin == {"strategy": strategy, "seed": 42, "rows": 30}


def test_stratified_reads_the_label_column(dataset):
    renamed = dataset.rename_column("label", "section")
    anchors = AnchorSet.from_dataset(renamed, 9, views="en", strategy="stratified", label_column="section")
    classes = [int(text.split()[1]) % 3 for text in anchors.view().samples]
    assert [classes.count(label) for label in range(3)] == [3, 3, 3]


def test_rows_that_lack_a_view_are_no_candidates():
    gaps = Dataset.from_dict(columns(fr=[None if i % 4 else f"mot {i}" for i in range(ROWS)]))
    anchors = AnchorSet.from_dataset(gaps, 10, views=["en", "fr"])
    assert sorted(int(text.split()[1]) for text in anchors.view("en").samples) == list(range(0, ROWS, 4))
    assert len(AnchorSet.from_dataset(gaps, 30, views="en")) == 30  # where that view is not asked for


def test_a_data_set_with_chosen_rows_and_other_formats_is_read_as_it_looks(dataset):
    some = dataset.select(range(20, 40)).with_format("numpy")
    anchors = AnchorSet.from_dataset(some.with_format(None), 20, views="en", id_column="number")
    assert sorted(map(int, anchors.ids)) == list(range(20, 40))


def test_content_ids_depend_on_the_row_and_not_on_how_views_are_named_or_ordered(dataset):
    one = AnchorSet.from_dataset(dataset, 5, views={"en": "en", "fr": "fr"})
    other = AnchorSet.from_dataset(dataset, 5, views={"fr": "fr", "en": "en"})
    assert one.ids == other.ids
    assert one.ids[0] == digest_of_samples([one.view("en").samples[0], one.view("fr").samples[0]])[:32]


def test_images_are_decoded_for_the_chosen_rows_only():
    images = [noise(seed=i) for i in range(6)]
    table = Dataset.from_dict(
        {"picture": images, "name": list("abcdef")}, Features(picture=ImageFeature(), name=Value("string"))
    )
    broken = table.cast_column("picture", ImageFeature(decode=False))
    rows = select(6, 2).tolist()
    broken = broken.map(lambda row, i: row if i in rows else {"picture": {"bytes": b"no image"}}, with_indices=True)
    broken = broken.cast_column("picture", ImageFeature())
    anchors = AnchorSet.from_dataset(broken, 2, views={"image": "picture", "text": "name"})
    assert anchors.view("image").modality == "image" and anchors.view("text").modality == "text"
    assert all(np.array_equal(anchors.view("image").samples[i], images[row]) for i, row in enumerate(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 41}, "Cannot choose k=41 anchors from 40 candidates"),
        ({"views": ["en", "de"]}, r"no column 'de'; it has package, en, fr, label, number\. Use these names in views"),
        ({"id_column": "uid"}, "no column 'uid'; it has"),
        ({"strategy": "stratified", "label_column": "section"}, "no column 'section'; it has .* label_column"),
        ({"strategy": "best"}, "strategy='best' does not exist"),
        ({"strategy": "kmeans"}, "strategy='kmeans' needs embeddings=, with one row for each candidate"),
        ({"strategy": "kmeans", "embeddings": np.ones((39, 2))}, "embeddings has 39 rows for 40 rows of data"),
        ({"id_column": "label"}, "anchor ids are repeated, the first is '[012]'. .* id_column"),
    ],
    ids=str,
)
def test_what_cannot_be_chosen_is_refused(dataset, arguments, message):
    with pytest.raises(AnchorError, match=message):
        AnchorSet.from_dataset(dataset, **{"k": 10, "views": "en"} | arguments)


@pytest.mark.parametrize(("value", "found"), [("", "is an empty text"), ("  ", "is an empty text")])
def test_an_empty_text_is_refused_with_its_row(value, found):
    texts = Dataset.from_dict(columns(fr=[value if i == 7 else None if i < 5 else f"mot {i}" for i in range(ROWS)]))
    with pytest.raises(SampleError, match=rf"column 'fr'\[7\] {found}.* Drop or fill that row"):
        AnchorSet.from_dataset(texts, 35, views=["en", "fr"])


def test_a_column_of_numbers_is_refused_with_its_row(dataset):
    row = select(ROWS, 5)[0]
    with pytest.raises(SampleError, match=rf"column 'number'\[{row}\] is {row} \(int\), expected text"):
        AnchorSet.from_dataset(dataset, 5, views={"en": "number"})


def test_repeated_rows_without_ids_are_refused(dataset):
    texts = Dataset.from_dict({"en": ["a cat", "a dog"] * 3})
    with pytest.raises(AnchorError, match="anchor ids are repeated.* drop the repeated rows"):
        AnchorSet.from_dataset(texts, 5, views="en")


def test_missing_ids_are_refused():
    texts = Dataset.from_dict(columns(package=[None] * 3 + [f"p{i}" for i in range(3, ROWS)]))
    with pytest.raises(
        AnchorError, match=r"3 anchor ids are None, the first is ids\[\d+\]; expected an id for each anchor"
    ):
        AnchorSet.from_dataset(texts, ROWS, views="en", id_column="package")


def test_a_data_set_without_a_complete_row_is_refused():
    texts = Dataset.from_dict({"en": ["a cat", None], "fr": [None, "chien"]})
    with pytest.raises(AnchorError, match="None of the 2 rows has all of the views en, fr"):
        AnchorSet.from_dataset(texts, 1, views=["en", "fr"])


# -- made by hand


@pytest.mark.parametrize(
    ("ids", "views", "message"),
    [
        ([], {"en": []}, "at least one anchor; the list of ids is empty"),
        (["a"], {}, r"at least one view, for example views=\{'en': texts\}"),
        (["a", "b", "a"], {"en": ["x", "y", "z"]}, "1 anchor ids are repeated, the first is 'a'"),
        ([1, "1"], {"en": ["x", "y"]}, "repeated, the first is '1'"),
        (["a", None], {"en": ["x", "y"]}, r"1 anchor ids are None, the first is ids\[1\]"),
        (["a", "b"], {"en": ["x"]}, "View 'en' has 1 samples for 2 anchors. Give one for each, in their order"),
        (["a", "b"], {"id": ["x", "y"]}, "A view cannot be called 'id'"),
    ],
    ids=str,
)
def test_what_cannot_be_an_anchor_set_is_refused(ids, views, message):
    with pytest.raises(AnchorError, match=message):
        AnchorSet(ids, views)


def test_samples_that_no_encoder_reads_are_refused():
    with pytest.raises(SampleError, match="view 'en' is the string 'xy', expected a list of samples"):
        AnchorSet(["a", "b"], {"en": "xy"})
    with pytest.raises(SampleError, match=r"view 'en'\[1\] is 5 \(int\), expected text"):
        AnchorSet(["a", "b"], {"en": ["x", 5]})
    with pytest.raises(SampleError, match=r"view 'photo'\[0\] is an image of mode 'I;16'"):
        AnchorSet(["a"], {"photo": [Image.new("I;16", (4, 4))]})


def test_ids_that_differ_in_the_end_only_are_distinct():
    assert len(AnchorSet(["a", "a\0", "a "], {"en": ["x", "y", "z"]})) == 3


def test_a_view_is_asked_for_by_name(pair):
    view = pair.view("fr")
    assert (view.name, view.modality, len(view), view.anchors) == ("fr", "text", 3, pair)
    assert view.samples == ["chat", "chien", "oiseau"] and view.fingerprint == pair.fingerprint
    with pytest.raises(AnchorError, match=r"There is no view 'de'; this anchor set has 'en', 'fr'\. .*add_view"):
        pair.view("de")
    with pytest.raises(AnchorError, match="No view was named; this anchor set has 'en', 'fr'"):
        pair.view()


def test_an_added_view_must_fit(pair):
    assert pair.add_view("en", ["a cat", "a dog", "a bird"]) is pair  # the same again does no harm
    with pytest.raises(AnchorError, match="View 'en' exists with other samples. Choose another name"):
        pair.add_view("en", ["a cat", "a dog", "a fish"])
    with pytest.raises(AnchorError, match="View 'it' has 2 samples for 3 anchors"):
        pair.add_view("it", ["gatto", "cane"])
    with pytest.raises(SampleError, match=r"view 'it'\[2\] is an empty text"):
        pair.add_view("it", ["gatto", "cane", ""])
    assert pair.views == ["en", "fr"]


def test_it_tells_what_it_is(pair):
    assert repr(pair) == f"AnchorSet(3 anchors, views en, fr, fingerprint {pair.fingerprint[:16]})"
    assert repr(pair.view("fr")) == f"AnchorView('fr', 3 texts, fingerprint {pair.fingerprint[:16]})"


# -- identity


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.text(max_size=5), min_size=2, max_size=6, unique=True), seed=st.integers(0, 1000))
def test_a_fingerprint_names_the_meanings_and_their_order_and_nothing_else(ids, seed):
    texts = [f"text {i}" for i in range(len(ids))]
    anchors = AnchorSet(ids, {"en": texts})
    before = anchors.fingerprint
    assert anchors.add_view("xx", texts[::-1]).fingerprint == before
    assert AnchorSet(ids, {"yy": texts[::-1]}, origin={"seed": seed}).fingerprint == before
    order = np.random.default_rng(seed).permutation(len(ids))
    moved = AnchorSet([ids[i] for i in order], {"en": texts})
    assert (moved.fingerprint == before) == (order == np.arange(len(ids))).all()


def test_fingerprints_are_not_fooled_by_moved_boundaries():
    sets = [["a,b", "c"], ["a", "b,c"], ['a","b', "c"], ["a", 'b","c'], ["ab", "c"], ["a", "bc"]]
    assert len({AnchorSet(ids, {"en": ["x", "y"]}).fingerprint for ids in sets}) == len(sets)


def test_the_digest_of_a_view_follows_its_samples_and_their_order(pair):
    changed = AnchorSet(pair.ids, {"en": ["a cat", "a dog", "a bird."]})
    moved = AnchorSet(pair.ids, {"en": ["a dog", "a cat", "a bird"]})
    same = AnchorSet(["x", "y", "z"], {"other": ["a cat", "a dog", "a bird"]})
    before = pair.view("en").digest
    assert len({before, changed.view("en").digest, moved.view("en").digest, pair.view("fr").digest}) == 4
    assert same.view("other").digest == before


def test_another_process_finds_the_same_identity_and_reads_anchors_without_the_datasets_library(pair, tmp_path):
    pair.save_pretrained(tmp_path)
    code = (
        "import json, sys\n"
        "from hf_relreps.anchors import AnchorSet\n"
        "before = 'datasets' in sys.modules\n"
        "anchors = AnchorSet.from_pretrained(sys.argv[1])\n"
        "again = AnchorSet(anchors.ids, {name: anchors.view(name).samples for name in anchors.views})\n"
        "print(json.dumps([again.fingerprint, again.view('fr').digest, before, 'datasets' in sys.modules]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [pair.fingerprint, pair.view("fr").digest, False, False]


# -- saved and loaded


def test_a_folder_gives_back_what_was_saved(pair, tmp_path):
    pair.origin = {"dataset": "debian", "seed": 3, "note": "é"}
    pair.save_pretrained(tmp_path)
    assert sorted(path.name for path in (tmp_path / "anchors").iterdir()) == ["anchor_set.json", "anchors.parquet"]
    for place in (tmp_path, str(tmp_path)):
        loaded = AnchorSet.from_pretrained(place)
        assert (loaded.ids, loaded.views, loaded.origin) == (pair.ids, pair.views, pair.origin)
        assert loaded.fingerprint == pair.fingerprint
        assert all(loaded.view(name).samples == pair.view(name).samples for name in pair.views)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=4),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
        lambda name: name != "id"
    ),
)
def test_texts_and_names_of_views_of_every_script_survive(tmp_path_factory, texts, name):
    folder = tmp_path_factory.mktemp("anchors")
    anchors = AnchorSet(map(str, range(len(texts))), {name: texts, "en": texts})
    anchors.save_pretrained(folder)
    loaded = AnchorSet.from_pretrained(folder)
    assert loaded.view(name).samples == texts and loaded.views == list(dict.fromkeys([name, "en"]))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_images_survive_bit_for_bit_beside_texts(tmp_path, mode):
    images = [noise(mode, seed) for seed in range(3)]
    anchors = AnchorSet(list("abc"), {"text": ["x", "y", "z"], "image": images})
    anchors.save_pretrained(tmp_path)
    loaded = AnchorSet.from_pretrained(tmp_path)
    assert [loaded.view(name).modality for name in ("text", "image")] == ["text", "image"]
    for before, after in zip(images, loaded.view("image").samples, strict=True):
        assert after.mode == mode and np.array_equal(before, after)
    assert loaded.view("image").digest == anchors.view("image").digest


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "YCbCr"])
def test_images_of_other_modes_become_rgb_before_they_are_identified(tmp_path, mode):
    image = noise("RGB").convert(mode)
    anchors = AnchorSet(["a"], {"image": [image]})
    assert np.array_equal(anchors.view().samples[0], image.convert("RGB"))
    anchors.save_pretrained(tmp_path)
    assert np.array_equal(AnchorSet.from_pretrained(tmp_path).view().samples[0], image.convert("RGB"))


def test_sounds_survive_bit_for_bit(tmp_path):
    wave = np.random.default_rng(0).uniform(-1, 1, 100).astype(np.float32)
    anchors = AnchorSet(["a"], {"audio": [{"array": wave, "sampling_rate": 16_000}]})
    anchors.save_pretrained(tmp_path)
    sound = AnchorSet.from_pretrained(tmp_path).view().samples[0]
    assert sound["sampling_rate"] == 16_000 and np.array_equal(np.float32(sound["array"]), wave)


def test_the_table_shows_texts_and_images_to_the_datasets_library(tmp_path):
    AnchorSet(["a", "b"], {"en": ["x", "y"], "photo": [noise(seed=1), noise(seed=2)]}).save_pretrained(tmp_path)
    table = Dataset.from_parquet(str(tmp_path / "anchors" / "anchors.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["id", "en", "photo"]
    assert np.array_equal(table[1]["photo"], noise(seed=2))


def test_saving_again_replaces_what_was_there(pair, tmp_path):
    pair.save_pretrained(tmp_path)
    other = AnchorSet(["x"], {"de": ["Hund"]})
    other.save_pretrained(tmp_path)
    assert AnchorSet.from_pretrained(tmp_path).ids == ["x"]


# -- what was changed on the way


def edit_table(folder, change):
    path = folder / "anchors" / "anchors.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def edit_record(folder, change):
    path = folder / "anchors" / "anchor_set.json"
    record = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(change(record)), "utf-8")


def replaced(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


TABLE_CHANGES = {
    "one text": (
        lambda table: replaced(table, "fr", ["chat", "CHIEN", "oiseau"]),
        r"has been changed: the digest of its view 'fr' is [0-9a-f]{64}, but anchor_set.json says [0-9a-f]{64}\. Pull",
    ),
    "rows in another order": (
        lambda table: table.take([1, 0, 2]),
        r"has been changed: the digest of its ids is [0-9a-f]{64}, but anchor_set.json says [0-9a-f]{64}",
    ),
    "texts in another order": (
        lambda table: replaced(table, "en", ["a dog", "a cat", "a bird"]),
        "has been changed: the digest of its view 'en' is",
    ),
    "one id": (lambda table: replaced(table, "id", ["cat", "dog", "fish"]), "the digest of its ids is"),
    "a row less": (lambda table: table.slice(0, 2), "the number of anchors is 2, but anchor_set.json says 3"),
    "no rows": (lambda table: table.slice(0, 0), "the number of anchors is 0, but anchor_set.json says 3"),
    "repeated ids": (
        lambda table: replaced(table, "id", ["cat", "cat", "bird"]),
        "it has no anchors. 1 anchor ids are repeated, the first is 'cat'",
    ),
    "a missing id": (lambda table: replaced(table, "id", ["cat", None, "bird"]), "1 anchor ids are None"),
    "a missing text": (
        lambda table: replaced(table, "fr", ["chat", None, "oiseau"]),
        r"it has no anchors. view 'fr'\[1\] is None",
    ),
    "numbers": (lambda table: replaced(table, "fr", [1.5, 2.5, 3.5]), r"view 'fr'\[0\] is 1.5 \(float\)"),
    "no column of a view": (
        lambda table: table.drop_columns("fr"),
        "cannot be read as anchors: columns are missing: fr. Pull it again",
    ),
    "no ids": (lambda table: table.drop_columns("id"), "cannot be read as anchors: columns are missing: id"),
}


def assert_refused(anchors, folder, edit, change, message):
    anchors.save_pretrained(folder)
    edit(folder, change)
    with pytest.raises(AnchorIntegrityError, match=message) as caught:
        AnchorSet.from_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", TABLE_CHANGES)
def test_a_changed_table_is_refused(pair, tmp_path, name):
    assert_refused(pair, tmp_path, edit_table, *TABLE_CHANGES[name])


def test_a_table_in_which_nothing_but_the_compression_changed_is_read(pair, tmp_path):
    pair.save_pretrained(tmp_path)
    edit_table(tmp_path, lambda table: table)
    assert AnchorSet.from_pretrained(tmp_path).fingerprint == pair.fingerprint


RECORD_CHANGES = {
    "another fingerprint": (
        lambda record: record | {"fingerprint": "0" * 64},
        r"the digest of its ids is [0-9a-f]{64}, but anchor_set.json says 0{64}",
    ),
    "another digest": (
        lambda record: record | {"views": record["views"] | {"en": {"modality": "text", "digest": "0" * 64}}},
        r"the digest of its view 'en' is [0-9a-f]{64}, but anchor_set.json says 0{64}",
    ),
    "no digest": (
        lambda record: record | {"views": record["views"] | {"en": {"modality": "text"}}},
        r"the digest of its view 'en' is [0-9a-f]{64}, but anchor_set.json says None",
    ),
    "another modality": (
        lambda record: record | {"views": {"en": record["views"]["en"] | {"modality": "image"}}},
        "cannot be read as anchors: ",
    ),
    "another number": (
        lambda record: record | {"num_anchors": 4},
        "number of anchors is 3, but anchor_set.json says 4",
    ),
    "a newer format": (
        lambda record: {"format_version": 99, "new": "shape"},
        r"has format version 99; the installed hf_relreps reads up to 1\. Update it: pip install -U hf-relreps",
    ),
    "a list": (lambda record: [record], "is not a valid anchor record"),
    "a number": (lambda record: 7, "is not a valid anchor record"),
    "nothing": (lambda record: {}, r"is not a valid anchor record \(KeyError\('format_version'\)\)"),
    "a version of the wrong type": (
        lambda record: record | {"format_version": "1"},
        "format_version missing or of the",
    ),
    "views of the wrong type": (lambda record: record | {"views": ["en"]}, "views missing or of the wrong type"),
    "a view of the wrong type": (
        lambda record: record | {"views": {"en": "text"}},
        "views missing or of the wrong type",
    ),
    "no views": (lambda record: record | {"views": {}}, "views missing or of the wrong type"),
    "an origin of the wrong type": (lambda record: record | {"origin": 5}, "origin missing or of the wrong type"),
}


@pytest.mark.parametrize("name", RECORD_CHANGES)
def test_a_changed_record_is_refused(pair, tmp_path, name):
    assert_refused(pair, tmp_path, edit_record, *RECORD_CHANGES[name])


def test_a_record_that_names_fewer_views_reads_only_those(pair, tmp_path):
    pair.save_pretrained(tmp_path)
    edit_record(tmp_path, lambda record: record | {"views": {"fr": record["views"]["fr"]}})
    assert AnchorSet.from_pretrained(tmp_path).views == ["fr"]


@pytest.mark.parametrize("content", ["", "not json", "[" * 100_000, "\ufeff{}"], ids=["empty", "text", "deep", "bom"])
def test_a_record_that_is_no_json_is_refused(pair, tmp_path, content):
    pair.save_pretrained(tmp_path)
    (tmp_path / "anchors" / "anchor_set.json").write_text(content, "utf-8")
    with pytest.raises(AnchorIntegrityError, match="anchor_set.json of .* is not a valid anchor record"):
        AnchorSet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("cell", "kind", "says"),
    [
        ({"a": {"a": {"a": {"a": 1}}}}, None, "more nested than any sample is"),
        ({name: 1 for name in "abcde"}, None, "more nested than any sample is"),
        (2**31 - 1, pa.date32(), "contains date32.*, expected texts, bytes or numbers"),
        (2**62, pa.duration("s"), "expected texts, bytes or numbers"),
    ],
)
def test_columns_of_other_types_than_samples_are_refused(cell, kind, says, tmp_path):
    AnchorSet("ab", {"en": ["one", "two"]}).save_pretrained(tmp_path)
    path = tmp_path / "anchors" / "anchors.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("en"), "en", pa.array([cell] * 2, kind)), path)
    with pytest.raises(AnchorIntegrityError, match=says):
        AnchorSet.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["anchor_set.json", "anchors.parquet"])
def test_a_missing_file_is_named(pair, tmp_path, file):
    pair.save_pretrained(tmp_path)
    (tmp_path / "anchors" / file).unlink()
    with pytest.raises(UploadError, match=rf"has no anchors: anchors/{file} does not exist.*save_pretrained"):
        AnchorSet.from_pretrained(tmp_path)


def test_an_empty_folder_holds_no_anchors(tmp_path):
    with pytest.raises(UploadError, match="has no anchors: anchors/anchor_set.json does not exist"):
        AnchorSet.from_pretrained(tmp_path)


def test_a_truncated_table_is_refused_wherever_it_ends(pair, tmp_path):
    pair.save_pretrained(tmp_path)
    path = tmp_path / "anchors" / "anchors.parquet"
    content = path.read_bytes()
    for end in (0, 1, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(AnchorIntegrityError, match="anchors.parquet of .* cannot be read as anchors: .* Pull it"):
            AnchorSet.from_pretrained(tmp_path)


@pytest.mark.parametrize("view", ["text", "image"])
def test_no_flipped_byte_of_a_table_goes_unnoticed_or_ends_in_another_error(tmp_path, view):
    samples = ["a cat", "a dog"] if view == "text" else [noise(seed=1), noise(seed=2)]
    anchors = AnchorSet(["a", "b"], {view: samples})
    anchors.save_pretrained(tmp_path)
    path = tmp_path / "anchors" / "anchors.parquet"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(changed))
        try:
            loaded = AnchorSet.from_pretrained(tmp_path)
        except AnchorIntegrityError:
            refused += 1
        else:  # metadata that nothing reads
            assert (loaded.fingerprint, loaded.view().digest) == (anchors.fingerprint, anchors.view().digest)
    assert refused > 20


def test_broken_pictures_are_refused_whatever_their_bytes(tmp_path):
    anchors = AnchorSet(["a"], {"image": [noise()]})
    anchors.save_pretrained(tmp_path)
    path = tmp_path / "anchors" / "anchors.parquet"
    table = pq.read_table(path)
    png = table["image"][0]["bytes"].as_py()
    rng = np.random.default_rng(0)
    broken = [b"", b"no png", png[:20], png[:-30], None]
    for position in rng.integers(0, len(png), 150):
        changed = bytearray(png)
        changed[position] ^= 1 << rng.integers(8)
        broken.append(bytes(changed))
    for content in broken:
        cell = pa.array([{"bytes": content, "path": None}], table.schema.field("image").type)
        pq.write_table(table.set_column(1, table.schema.field("image"), cell), path)
        try:
            loaded = AnchorSet.from_pretrained(tmp_path)
        except RelrepsError as error:
            assert isinstance(error, AnchorIntegrityError)
        else:
            assert loaded.view().digest == anchors.view().digest


def test_a_picture_that_would_unpack_to_gigabytes_is_refused(tmp_path):
    AnchorSet(["a"], {"image": [noise()]}).save_pretrained(tmp_path)
    path = tmp_path / "anchors" / "anchors.parquet"
    table = pq.read_table(path)
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND"]
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in chunks:
        png += (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    cell = pa.array([{"bytes": png, "path": None}], table.schema.field("image").type)
    pq.write_table(table.set_column(1, table.schema.field("image"), cell), path)
    with pytest.raises(AnchorIntegrityError, match="cannot be read as anchors: Image size .* decompression bomb"):
        AnchorSet.from_pretrained(tmp_path)
