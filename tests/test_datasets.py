"""What the `datasets` library hands over: features, formats, splits and streams work, or the error says how."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Translation, Value
from PIL import Image as Picture

from hf_relreps import AnchorSet, stitching_matrix
from hf_relreps.caching import encode_dataset
from hf_relreps.errors import EvaluationError, SampleError


KINDS = ["animal", "food", "vehicle"]
FORMATS = ["torch", "numpy", "pandas", "arrow"]


@pytest.fixture(scope="module")
def rows(texts, labels):
    features = {
        "en": Value("string"),
        "fr": Value("large_string"),
        "label": ClassLabel(names=KINDS),
        "id": Value("int32"),
    }
    columns = {"en": texts["en"], "fr": texts["fr"], "label": labels, "id": list(range(60))}
    return Dataset.from_dict(columns, features=Features(features))


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    drawn = [Picture.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(6)]
    return Dataset.from_dict({"image": drawn}, features=Features({"image": Image()}))


def anchors_of(dataset, **settings):
    return AnchorSet.from_dataset(dataset, k=9, **{"views": ["en", "fr"], "id_column": "id"} | settings)


# -- anchors


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_changes_nothing_about_the_anchors(rows, form):
    plain, formatted = anchors_of(rows), anchors_of(rows.with_format(form))
    assert formatted.fingerprint == plain.fingerprint
    assert [formatted.view(name).digest for name in ("en", "fr")] == [plain.view(name).digest for name in ("en", "fr")]


def test_columns_that_a_format_hides_can_still_be_views(rows):
    assert anchors_of(rows.with_format("numpy", columns=["label"])).views == ["en", "fr"]


def test_a_transform_of_the_users_own_is_applied(rows):
    upper = rows.with_transform(lambda batch: {name: [str(value).upper() for value in batch[name]] for name in batch})
    assert all(text.isupper() for text in anchors_of(upper).view("en").samples)


def test_anchors_are_stratified_by_a_class_label(rows):
    kinds = [int(id_) // 20 for id_ in anchors_of(rows, strategy="stratified").ids]
    assert sorted(kinds) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_pictures_are_decoded_whatever_the_format(pictures, form):
    anchors = AnchorSet.from_dataset(pictures.with_format(form), k=3, views=["image"])
    assert anchors.view().modality == "image" and anchors.view().samples[0].size == (8, 8)


def test_files_that_are_not_decoded_are_refused_with_the_cast(pictures):
    with pytest.raises(
        SampleError, match=r"not decoded, expected an image or a sound.*cast_column\(column, Image\(\)\)"
    ):
        AnchorSet.from_dataset(pictures.cast_column("image", Image(decode=False)), k=3, views=["image"])


def test_translations_are_views_once_they_are_flattened(texts):
    pairs = [{"en": en, "fr": fr} for en, fr in zip(texts["en"], texts["fr"], strict=True)]
    features = Features({"translation": Translation(languages=["en", "fr"])})
    dataset = Dataset.from_dict({"translation": pairs}, features=features)
    with pytest.raises(SampleError, match=r"mapping with en, fr, expected one text.*dataset.flatten\(\)"):
        AnchorSet.from_dataset(dataset, k=9, views=["translation"])
    views = {"en": "translation.en", "fr": "translation.fr"}
    assert AnchorSet.from_dataset(dataset.flatten(), k=9, views=views).views == ["en", "fr"]


def test_a_column_of_classes_is_no_view(rows):
    with pytest.raises(SampleError, match=r"column 'label'\[\d+\] is \d \(int\), expected text"):
        anchors_of(rows, views=["label"])


@pytest.mark.parametrize("thing", [[{"en": "cat"}], {"en": ["cat"]}])
def test_what_is_no_data_set_is_told_how_to_become_one(thing):
    with pytest.raises(SampleError, match=r"expected a datasets\.Dataset\. Build one: Dataset\.from_dict"):
        anchors_of(thing)


# -- splits and streams, everywhere

SPLITS = (
    r"has several splits \(DatasetDict: 'train', 'test'\), expected one dataset. Choose a split: dataset\['train'\]"
)
STREAM = r"dataset is streamed \(IterableDataset\).*without streaming=True, or keep its first rows: Dataset\.from_list"


@pytest.fixture(params=["splits", "stream"])
def unfit(request, rows):
    """What is not one dataset with numbered rows, and what the error says of it."""
    if request.param == "stream":
        return rows.to_iterable_dataset(), STREAM
    return DatasetDict({"train": rows, "test": rows}), SPLITS


def test_splits_and_streams_are_refused_by_name(unfit, make_model):
    dataset, says = unfit
    model = make_model(0)
    with pytest.raises(SampleError, match=says):
        anchors_of(dataset)
    with pytest.raises(SampleError, match=says):
        encode_dataset(model.encoder, dataset, "en")
    with pytest.raises(EvaluationError, match=says):
        stitching_matrix({"en": model}, {"en": model}, dataset)


def test_what_the_error_about_a_stream_says_works(rows):
    stream = rows.to_iterable_dataset()
    kept = Dataset.from_list(list(stream.take(30)), features=stream.features)
    assert kept.features == rows.features and len(anchors_of(kept)) == 9


# -- encoding and measuring


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_changes_nothing_about_what_is_encoded_and_measured(rows, make_model, tmp_path, form):
    model = make_model(0)
    plain, formatted = rows.select(range(0, 60, 4)), rows.select(range(0, 60, 4)).with_format(form)
    expected, found = (encode_dataset(model.encoder, one, "en", cache_dir=tmp_path) for one in (plain, formatted))
    assert found["relative_embeds"][:].equal(expected["relative_embeds"][:])
    matrices = [stitching_matrix({"en": model}, {"en": model}, one, progress=False) for one in (plain, formatted)]
    assert matrices[0].scores == matrices[1].scores


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_are_datasets_without_their_index(rows, make_model, tmp_path, library):
    pytest.importorskip(library)
    frame = rows.to_pandas() if library == "pandas" else rows.to_polars()
    if library == "pandas":
        frame = frame.sample(frac=1.0, random_state=0).sort_values("id")  # as the index of a frame that was filtered
        frame.index = frame.index + 100
    assert anchors_of(frame).fingerprint == anchors_of(rows).fingerprint
    encoder = make_model(0).encoder
    encoded = [encode_dataset(encoder, data, "en", cache_dir=tmp_path) for data in (frame, rows)]
    assert encoded[0].column_names == encoded[1].column_names
    assert (encoded[0]["relative_embeds"][:] == encoded[1]["relative_embeds"][:]).all()
    files = len(list(tmp_path.iterdir()))
    encode_dataset(encoder, frame, "en", cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == files  # the same frame is found in the cache
    models = {"en": make_model(0)}
    assert stitching_matrix(models, models, frame).scores == stitching_matrix(models, models, rows).scores


def test_a_data_frame_that_cannot_become_a_dataset_is_refused_with_the_column():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(
        SampleError, match=r"DataFrame that cannot become a dataset: .*column en .*Dataset\.from_pandas"
    ):
        AnchorSet.from_dataset(pandas.DataFrame({"en": ["a cat", 3]}), k=1, views="en")


def test_a_column_that_the_encoder_does_not_read_is_refused_before_it_is_encoded(rows, make_model):
    with pytest.raises(SampleError, match=r"column 'label' holds numbers, the encoder reads text"):
        encode_dataset(make_model(0).encoder, rows, "label")


@pytest.mark.parametrize("feature", [Value("int8"), Value("string")])
def test_labels_may_be_numbers_or_names(rows, make_model, feature):
    model, plain = make_model(0), rows.select(range(0, 60, 4))
    values = [KINDS[i] if feature.dtype == "string" else i for i in plain["label"]]
    other = plain.remove_columns("label").add_column("label", values).cast_column("label", feature)
    scores = [stitching_matrix({"en": model}, {"en": model}, one, progress=False).scores for one in (plain, other)]
    assert scores[0] == scores[1]
