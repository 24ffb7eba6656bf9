"""`encode_dataset`: encoded once, found again, and never when something that it depends on has changed."""

import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from training import tiny_trainer

from hf_relreps import RelativeConfig, RelativeDecoder, RelativeDecoderConfig, RelativeModel
from hf_relreps.caching import encode_dataset
from hf_relreps.demos.tiny import word_tokenizer
from hf_relreps.errors import ConfigurationError, SampleError, UploadError


@pytest.fixture
def encoder(make_model):
    return make_model(0).encoder


@pytest.fixture
def dataset(texts, labels):
    return Dataset.from_dict({"text": texts["en"], "label": labels, "row": list(range(len(labels)))})


@pytest.fixture
def encode(tmp_path):
    """``encode(encoder, dataset)``: the encoded dataset, and whether the encoder ran for it."""

    def run(encoder, dataset, **arguments):
        passes = []
        handle = encoder.backbone.register_forward_hook(lambda *args: passes.append(1))
        encoded = encode_dataset(encoder, dataset, "text", cache_dir=tmp_path, **arguments)
        handle.remove()
        return encoded, bool(passes)

    return run


def test_each_row_holds_the_relative_representation_of_its_own_sample(encoder, dataset, encode, texts):
    encoded, ran = encode(encoder, dataset)
    assert ran
    with torch.no_grad():
        expected_NR = encoder.projection(encoder.encode(texts["en"]))
    torch.testing.assert_close(encoded[:]["relative_embeds"], expected_NR, rtol=1e-5, atol=1e-5)


def test_the_other_columns_stay_in_their_order(encoder, dataset, encode, labels):
    encoded, _ = encode(encoder, dataset)
    assert set(encoded.column_names) == {"label", "row", "relative_embeds"}
    assert encoded["row"][:] == list(range(60))
    assert encoded["label"][:] == labels


def test_a_second_run_does_no_pass_of_the_encoder(encoder, dataset, encode):
    first, _ = encode(encoder, dataset)
    second, ran = encode(encoder, dataset)
    assert not ran
    assert torch.equal(second[:]["relative_embeds"], first[:]["relative_embeds"])


def test_the_cache_is_found_by_an_encoder_and_data_that_were_loaded_anew(encoder, dataset, encode, tmp_path):
    encode(encoder, dataset)
    encoder.save_pretrained(tmp_path / "saved")
    loaded = RelativeModel.from_pretrained(tmp_path / "saved")
    again = Dataset.from_dict({name: dataset[name][:] for name in dataset.column_names})
    assert not encode(loaded, again)[1]


def test_another_process_finds_the_cache(encoder, tmp_path):
    words = {"text": ["old horse", "red cake"]}
    encoder.save_pretrained(tmp_path / "saved")
    encode_dataset(encoder, Dataset.from_dict(words), "text", cache_dir=tmp_path)
    code = f"""
from datasets import Dataset
from hf_relreps import RelativeModel
from hf_relreps.caching import encode_dataset
encoder = RelativeModel.from_pretrained({str(tmp_path / "saved")!r})
passes = []
encoder.backbone.register_forward_hook(lambda *args: passes.append(1))
encode_dataset(encoder, Dataset.from_dict({words}), "text", cache_dir={str(tmp_path)!r})
print("passes:", len(passes))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "passes: 0"


def test_calls_of_the_tokenizer_in_between_change_nothing(encoder, dataset, encode):
    encode(encoder, dataset)
    encoder.processor(["a b c"] * 2, truncation=True, max_length=4, padding="max_length")
    assert not encode(encoder, dataset)[1]


def other_weights(encoder):
    with torch.no_grad():
        next(encoder.backbone.parameters())[7, 3] += 1e-3


def other_anchors(encoder):
    encoder.projection.anchors_AD[2] += 1e-3


def another_projection(encoder):
    encoder.use_projection(RelativeConfig.paper())


def another_pooling(encoder):
    encoder.config.pooling = "cls"


def a_shorter_text(encoder):
    encoder.config.max_length = 2


@pytest.mark.parametrize("change", [other_weights, another_pooling, a_shorter_text])
def test_what_changes_the_embeddings_is_encoded_again(make_model, dataset, encode, change):
    encoder = make_model(0).encoder
    before, _ = encode(encoder, dataset)
    before_NR = before[:]["relative_embeds"]
    change(encoder)
    after, ran = encode(encoder, dataset)
    assert ran
    assert not torch.equal(after[:]["relative_embeds"], before_NR)


@pytest.mark.parametrize("change", [other_anchors, another_projection])
def test_other_anchors_and_other_projections_need_no_pass_of_the_encoder(make_model, dataset, encode, texts, change):
    encoder = make_model(0).encoder
    before, _ = encode(encoder, dataset)
    before_NR = before[:]["relative_embeds"]
    change(encoder)
    after, ran = encode(encoder, dataset)
    assert not ran
    assert not torch.equal(after[:]["relative_embeds"], before_NR)
    with torch.no_grad():
        expected_NR = encoder.projection(encoder.encode(texts["en"]))
    torch.testing.assert_close(after[:]["relative_embeds"], expected_NR, rtol=1e-4, atol=1e-5)


def test_another_processor_encodes_again(encoder, dataset, encode, texts):
    encode(encoder, dataset)
    other = word_tokenizer(sorted(set(" ".join(texts["en"]).split()))[::-2])  # other numbers for the same words
    assert encode(encoder, dataset, processor=other)[1]
    assert not encode(encoder, dataset)[1]


def test_other_rows_or_another_order_are_encoded(encoder, dataset, encode):
    encode(encoder, dataset)
    assert encode(encoder, dataset.select(range(10)))[1]
    turned, ran = encode(encoder, dataset.select(range(9, -1, -1)))
    assert ran
    straight, _ = encode(encoder, dataset.select(range(10)))
    torch.testing.assert_close(
        turned[:]["relative_embeds"].flip(0), straight[:]["relative_embeds"], rtol=1e-4, atol=1e-5
    )


def test_a_decoder_trains_on_it_with_the_plain_trainer(encoder, dataset, encode, labels, tmp_path):
    encoded, _ = encode(encoder, dataset)
    torch.manual_seed(0)
    decoder = RelativeDecoder(RelativeDecoderConfig(space=encoder.config.space, num_labels=3))
    trainer = tiny_trainer(decoder, None, encoded, tmp_path, max_steps=60, learning_rate=1e-2)
    trainer.train()
    with torch.no_grad():
        found = decoder.eval()(encoded[:]["relative_embeds"]).logits.argmax(-1)
    assert (found == torch.tensor(labels)).float().mean() > 0.9


def test_relative_representations_of_several_similarities_fit(make_model, dataset, encode):
    encoder = make_model(0, similarity=["rbf", "cosine"]).encoder
    encoded, _ = encode(encoder, dataset)
    assert encoded[0]["relative_embeds"].shape == (2 * len(encoder.anchors),)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(encoder, dataset):
    with pytest.raises(SampleError, match=r"columns 'text', 'label', 'row', expected 'sentence' among them"):
        encode_dataset(encoder, dataset, "sentence")


def test_a_whole_model_stands_for_its_encoder_and_another_model_is_refused(make_model, make_bert, dataset, tmp_path):
    model = make_model(0)
    of_both = [encode_dataset(one, dataset, "text", cache_dir=tmp_path) for one in (model, model.encoder)]
    assert torch.equal(*(encoded["relative_embeds"][:] for encoded in of_both))
    with pytest.raises(
        ConfigurationError, match=r"The encoder is a BertModel, expected a RelativeModel\. Make an Auto"
    ):
        encode_dataset(make_bert(0), dataset, "text", cache_dir=tmp_path)


def test_what_cannot_say_whether_it_is_the_same_is_refused(encoder):
    with pytest.raises(ConfigurationError, match="got a list, expected a datasets.Dataset"):
        encode_dataset(encoder, [{"text": "old horse"}], "text")


DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "flipped": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 255]) + content[len(content) // 2 + 1 :]
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("lies_in", ["relative-*.arrow", "absolute-*/*.parquet"])
def test_what_lies_damaged_in_the_cache_is_made_again(encoder, dataset, encode, tmp_path, damage, lies_in):
    first, _ = encode(encoder, dataset)
    before = first[:]["relative_embeds"].clone()
    (file,) = tmp_path.glob(lies_in)
    content = file.read_bytes()
    for relative in tmp_path.glob("*.arrow"):  # where it is whole, nothing else is read
        relative.unlink()
    file.write_bytes(DAMAGES[damage](content))
    again, ran = encode(encoder, dataset)
    assert ran == file.match("*.parquet")
    assert torch.equal(again[:]["relative_embeds"], before)


def test_a_full_disk_is_named_with_the_folder_and_leaves_nothing_half_written(
    encoder, dataset, encode, tmp_path, monkeypatch
):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
        with pytest.raises(UploadError, match=r"could not be written to .*give another folder"):
            encode(encoder, dataset)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with monkeypatch.context() as patch:
        patch.setattr("datasets.arrow_writer.ArrowWriter.write_batch", full)
        patch.setattr("datasets.arrow_writer.ArrowWriter.write_table", full)
        with pytest.raises(UploadError, match=r"could not be written to .*give another cache_dir"):
            encode(encoder, dataset)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".parquet"]
    assert not encode(encoder, dataset)[1]  # the embeddings are there


def test_a_dataset_of_several_shards_gives_the_same(encoder, texts, encode, monkeypatch, tmp_path):
    monkeypatch.setattr("hf_relreps.caching.ROWS_PER_SHARD", 2048)
    rows = Dataset.from_dict({"text": (texts["en"] * 84)[:5000]})
    encoded, _ = encode(encoder, rows)
    assert len(list(tmp_path.glob("absolute-*/*.parquet"))) == 3
    with torch.no_grad():
        expected_NR = encoder.projection(encoder.encode(texts["en"]))
    found_NR = encoded[:]["relative_embeds"]
    torch.testing.assert_close(found_NR, expected_NR.repeat(84, 1)[:5000], rtol=1e-4, atol=1e-5)
