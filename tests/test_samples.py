"""What a sample is, what identifies it, and how samples become batches."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    PreTrainedTokenizerFast,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from hf_relreps import samples as module
from hf_relreps.errors import ConfigurationError, SampleError
from hf_relreps.samples import batches, check_samples, digest_of_samples, to_device


WORDS = [f"w{i}" for i in range(50)]
SIZE = {"height": 8, "width": 8}


def word_tokenizer(special=False, **settings):
    """A word is a token; with `special`, [CLS] and [SEP] around them."""
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | settings
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        words.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def texts_of(lengths):
    """Texts of so many words, no two alike in their first word and length."""
    return [" ".join(WORDS[(i + j) % 50] for j in range(length)) for i, length in enumerate(lengths)]


def picture(value, mode="RGB", size=(6, 5)):
    return Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).convert(mode)


def sound(value, n=400, rate=16_000):
    return {"array": np.sin(np.arange(n) * value).astype(np.float32), "sampling_rate": rate}


@pytest.fixture
def warned(caplog):
    """The warnings of the module, whether or not they were given before."""
    module.logger.warning_once.cache_clear()
    return lambda: [record.getMessage() for record in caplog.records if record.name == module.logger.name]


# -- batches


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40), batch_size=st.integers(1, 50))
def test_batches_hold_each_text_once_the_longest_first_with_no_more_padding_than_needed(lengths, batch_size):
    tokenizer, texts = word_tokenizer(), texts_of(lengths)
    parts = list(batches(texts, tokenizer, batch_size))
    rows = np.concatenate([rows for rows, _ in parts])
    assert sorted(rows.tolist()) == list(range(len(texts)))
    in_order = [lengths[row] for row in rows]
    assert in_order == sorted(lengths, reverse=True)
    assert [len(rows) for rows, _ in parts[:-1]] == [batch_size] * (len(parts) - 1)
    for rows, inputs in parts:
        assert inputs["input_ids"].shape == (len(rows), max(lengths[row] for row in rows))
        for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
            assert tokenizer.decode(ids[mask.bool()]) == texts[row]


def test_texts_of_one_length_stay_in_their_order():
    rows = [rows.tolist() for rows, _ in batches(texts_of([3] * 7), word_tokenizer(), 3)]
    assert rows == [[0, 1, 2], [3, 4, 5], [6]]


def test_padding_is_on_the_side_that_the_tokenizer_has():
    ((_, inputs),) = batches(["w1 w2 w3", "w1"], word_tokenizer(padding_side="left"), 2)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_only_what_the_encoder_reads_is_in_a_batch():
    tokenizer = word_tokenizer(model_input_names=["input_ids", "attention_mask"])
    ((_, inputs),) = batches(["w1 w2"], tokenizer, 1)
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_a_processor_that_holds_a_tokenizer_serves_as_one():
    class Processor:
        tokenizer = word_tokenizer()

    ((_, inputs),) = batches(["w1 w2"], Processor(), 1)
    assert inputs["input_ids"].shape == (1, 2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_images_of_every_mode_of_eight_bits_are_read(mode):
    processor = ViTImageProcessor(size=SIZE)
    images = [picture(value, mode) for value in (0, 120, 255)]
    parts = list(batches(images, processor, 2))
    assert [rows.tolist() for rows, _ in parts] == [[0, 1], [2]]
    pixels = torch.cat([inputs["pixel_values"] for _, inputs in parts])
    assert pixels.shape == (3, 3, 8, 8)
    means = pixels.mean((1, 2, 3))
    assert means[0] < means[1] < means[2] or mode == "1" and means[0] <= means[1] <= means[2]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_eight_bits_are_refused(mode):
    with pytest.raises(
        SampleError, match=rf"samples\[1\] is an image of mode '{mode}', expected 8 bits for each channel"
    ):
        list(batches([picture(1), Image.new(mode, (4, 4))], ViTImageProcessor(size=SIZE), 2))


def test_sounds_are_padded_to_the_longest_of_a_batch():
    reader = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    ((rows, inputs),) = batches([sound(0.1, 300), sound(0.2, 400)], reader, 2)
    assert rows.tolist() == [0, 1]
    assert inputs["input_values"].shape == (2, 400)
    assert inputs["attention_mask"].sum(1).tolist() == [300, 400]


def test_sounds_of_another_rate_are_refused():
    with pytest.raises(
        SampleError, match=r"have 8000, 16000 samples per second, but the encoder reads 16000\. Resample"
    ):
        list(batches([sound(0.1), sound(0.2, rate=8_000)], Wav2Vec2FeatureExtractor(), 2))


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_needs_a_sample(batch_size):
    with pytest.raises(ConfigurationError, match=f"batch_size={batch_size} must be at least 1 sample"):
        list(batches(["w1"], word_tokenizer(), batch_size))


def test_inputs_move_to_a_device():
    moved = to_device({"input_ids": torch.ones(1, 2)}, torch.device("meta"))
    assert moved["input_ids"].device.type == "meta"


# -- truncation


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("of", ["max_length", "the tokenizer"])
def test_texts_that_lose_tokens_are_counted_and_those_that_just_fit_are_not(warned, special, of):
    limit, words = 8, 6 if special else 8
    tokenizer = word_tokenizer(special, **({} if of == "max_length" else {"model_max_length": limit}))
    texts = texts_of([words, words + 1, words + 9, 1])
    parts = list(batches(texts, tokenizer, 2, max_length=limit if of == "max_length" else None))
    assert max(inputs["input_ids"].shape[1] for _, inputs in parts) == limit
    assert warned() == [
        "2 of the first 4 texts are longer than 8 tokens and were truncated: the encoder does not see the rest."
    ]


def test_a_tokenizer_that_truncates_again_and_again_is_warned_of_once_for_each_limit(warned):
    tokenizer = word_tokenizer()
    for long in ([9], [9, 9], [9, 1, 9]):
        list(batches(texts_of(long), tokenizer, 2, max_length=8))
    assert len(warned()) == 1 and warned()[0].startswith("1 of the first 1 texts are longer than 8 tokens")
    list(batches(texts_of([9, 9]), tokenizer, 2, max_length=7))
    list(batches(texts_of([9, 9, 9]), word_tokenizer(), 2, max_length=8))
    assert [told.split(" texts")[0] for told in warned()] == [
        "1 of the first 1",
        "2 of the first 2",
        "3 of the first 3",
    ]


def test_texts_that_fit_give_no_warning(warned):
    list(batches(texts_of([8, 8, 1]), word_tokenizer(), 2, max_length=8))
    list(batches(texts_of([900]), word_tokenizer(), 2))  # a tokenizer without a limit
    assert warned() == []


def test_a_slow_tokenizer_is_believed_as_far_as_it_tells(warned):
    from transformers import CanineTokenizer

    list(batches(["abc", "abcdefgh"], CanineTokenizer(), 2, max_length=6))
    assert warned() == ["1 of the first 2 texts fill all 6 tokens: those that are longer were truncated."]


# -- what is refused


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (None, r"is None \(NoneType\), expected text like every other sample"),
        (7, r"is 7 \(int\), expected text like every other sample.* convert the column"),
        (["w1"], r"is \['w1'\] \(list\), expected text"),
        (picture(1), r"is <PIL.* \(Image\), expected text"),
        ("", "is an empty text, expected at least one character"),
        (" \n\t ", "is an empty text"),
        ("a\ud800b", r"is 'a\\ud800b', which contains half of a surrogate pair.*'utf-8', 'replace'"),
    ],
    ids=["None", "number", "list", "image", "empty", "spaces", "surrogate"],
)
def test_what_is_no_text_is_refused_with_its_position(bad, found):
    with pytest.raises(SampleError, match=rf"column 'en'\[2\] {found}"):
        check_samples(["w1", "w2", bad, "w3"], "column 'en'")
    with pytest.raises(SampleError, match=rf"column 'en'\[30\] {found}"):
        check_samples(["w1", "w2", bad, "w3"], "column 'en'", rows=[10, 20, 30, 40])


def test_the_first_sample_may_be_the_bad_one():
    with pytest.raises(SampleError, match=r"samples\[0\] is 3\.5 \(float\), expected text"):
        check_samples([3.5, "w1"], "samples")


def test_a_long_sample_is_not_printed_whole():
    with pytest.raises(SampleError) as caught:
        check_samples(["w1", list(range(10_000))], "samples")
    assert len(str(caught.value)) < 250


def test_texts_among_images_are_refused():
    with pytest.raises(SampleError, match=r"samples\[1\] is 'w1' \(str\), expected image like every other"):
        check_samples([picture(1), "w1"], "samples")


def test_no_samples_and_one_text_in_place_of_a_list_are_refused():
    with pytest.raises(SampleError, match="samples is empty. Expected a list of texts, images or sounds"):
        check_samples([], "samples")
    with pytest.raises(
        SampleError, match=r"samples is the string 'a cat', expected a list of samples. .* pass \[text\]"
    ):
        check_samples("a cat", "samples")


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ({"path": "a.wav"}, r"is a mapping with path, expected a sound: \{\"array\""),
        ({}, "is a mapping with nothing, expected a sound"),
        ({"array": np.zeros((2, 5)), "sampling_rate": 8}, r"has shape \(2, 5\), expected one channel"),
        ({"array": [], "sampling_rate": 8}, r"has shape \(0,\), expected one channel with at least one value"),
    ],
    ids=["path", "nothing", "stereo", "silent"],
)
def test_what_is_no_sound_is_refused(bad, found):
    with pytest.raises(SampleError, match=rf"samples\[1\] {found}"):
        check_samples([sound(0.1), bad], "samples")


def test_each_modality_is_recognised():
    assert check_samples(["a cat", "猫", "🐈", "\u202eabc"], "samples") == "text"  # typos: ignore
    assert check_samples([picture(1), picture(2, "L")], "samples") == "image"
    assert check_samples([sound(0.1)], "samples") == "audio"


def test_a_tokenizer_without_a_padding_token_is_refused():
    tokenizer = word_tokenizer(pad_token=None)
    with pytest.raises(SampleError, match=r"has no padding token.*tokenizer\.pad_token = tokenizer\.eos_token"):
        list(batches(["w1"], tokenizer, 1))


def test_a_text_without_tokens_is_refused():
    # Spaces that str.strip does not know, and the tokenizer does.
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("\u200b", "removed")
    with pytest.raises(SampleError, match=r"samples\[1\] is '\\u200b', of which .* makes no token"):
        list(batches(["w1", "\u200b"], tokenizer, 2))


# -- what identifies samples


def test_a_digest_is_sha256_of_lengths_and_contents():
    # The same for ever: uploads carry it.
    assert digest_of_samples(["ab", "ü"]) == sha256(b"\0\0\0\0\0\0\0\2ab" + b"\0\0\0\0\0\0\0\2\xc3\xbc").hexdigest()
    assert digest_of_samples(["ab", "ü"]) == "8f5c2ab015ee73f6682a82fd3dc955cd4f79e1d57955f1b76af51646de5a81c0"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=5), st.lists(st.text(max_size=4), min_size=1, max_size=5))
def test_digests_differ_unless_the_texts_are_the_same(left, right):
    assert (digest_of_samples(left) == digest_of_samples(right)) == (left == right)


def test_a_digest_is_not_fooled_by_moved_boundaries():
    divided = (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"])
    assert len({digest_of_samples(texts) for texts in divided}) == 5


def test_a_digest_follows_order_pixels_size_and_mode():
    images = [picture(1), picture(2)]
    others = [
        images[::-1],
        [picture(1), picture(3)],
        [picture(1), picture(2, size=(5, 6))],
        [picture(1), picture(2, "L")],
    ]
    assert len({digest_of_samples(samples) for samples in (images, *others)}) == 5
    assert digest_of_samples([picture(1), picture(2)]) == digest_of_samples(images)


def test_a_digest_follows_the_rate_and_the_values_of_a_sound():
    sounds = [sound(0.1), sound(0.1, rate=8_000), sound(0.2), sound(0.1, n=399)]
    assert len({digest_of_samples([one]) for one in sounds}) == 4
    as_list = {"array": sounds[0]["array"].tolist(), "sampling_rate": 16_000}
    assert digest_of_samples([as_list]) == digest_of_samples(sounds[:1])


# -- what a processor from outside makes of a batch


def test_few_images_are_read_at_once_where_a_processor_makes_large_ones(monkeypatch):
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 3_000)
    images = [Image.new("RGB", (8, 8)) for _ in range(5)]
    large, small = ({"height": side, "width": side} for side in (32, 8))
    assert [len(rows) for rows, _ in batches(images, ViTImageProcessor(size=large), 64)] == [2, 2, 1]
    assert [len(rows) for rows, _ in batches(images, ViTImageProcessor(size=small), 64)] == [5]


def test_few_sounds_are_read_at_once_where_each_is_filled_up(monkeypatch):
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 40_000)
    sounds = [{"array": np.ones(160, np.float32), "sampling_rate": 16_000} for _ in range(3)]
    assert [len(rows) for rows, _ in batches(sounds, WhisperFeatureExtractor(chunk_length=1), 64)] == [2, 1]
    assert [len(rows) for rows, _ in batches(sounds, Wav2Vec2FeatureExtractor(), 64)] == [3]


def test_texts_are_not_filled_up_to_a_limit_that_no_encoder_has():
    tokenizer = word_tokenizer(model_max_length=900_000, model_input_names=["input_ids"])
    ((_, inputs),) = batches(texts_of([3, 5]), tokenizer, 8)
    assert inputs["input_ids"].shape == (2, 5)


def test_texts_are_tokenized_some_at_a_time_and_none_that_no_encoder_reads(monkeypatch):
    samples, tokenizer = texts_of([3, 5, 1, 40, 2, 9]), word_tokenizer()
    whole = [(rows.tolist(), inputs["input_ids"].tolist()) for rows, inputs in batches(samples, tokenizer, 2)]
    monkeypatch.setattr(module, "CHARACTERS_AT_ONCE", 20)
    parts = [(rows.tolist(), inputs["input_ids"].tolist()) for rows, inputs in batches(samples, tokenizer, 2)]
    assert parts == whole
    with pytest.raises(SampleError, match=r"samples\[1\] has 2000000 characters, more than any encoder reads.*Cut it"):
        list(batches(["w1", "w2 " * 666_666 + "w3"], tokenizer, 2))
