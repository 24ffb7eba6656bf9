"""Words in their sentences as samples: anchors, encoders that read token by token, taggers that are stitched."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from training import tiny_trainer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    pipeline,
)

import hf_relreps_cli
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeEncoderConfig,
    RelativeModel,
    RelativeModelForTokenClassification,
    compatibility,
    stitch,
    stitching_matrix,
)
from hf_relreps.caching import encode_dataset
from hf_relreps.demos.tiny import small_bert, word_tokenizer, wordpiece_tokenizer
from hf_relreps.errors import (
    AnchorError,
    AnchorIntegrityError,
    ConfigurationError,
    EvaluationError,
    SampleError,
)
from hf_relreps.evaluation import entity_f1
from hf_relreps.evaluation.tokens import entities_of
from hf_relreps.exporting import export_program
from hf_relreps.samples import SPANS, batches, check_samples
from hf_relreps.trust import calibrate
from hf_relreps.words import Word, label_tokens, labelled_words, words_of


PEOPLE, CITIES, VERBS = "Anna Paul Marie Omar Lina Peter", "Rome Paris Oslo Cairo Lima Kyoto", "met saw left found"
TAGS = ["O", "B-PER", "B-LOC", "I-LOC"]


def tagged_sentences(n: int, seed: int) -> tuple[list[list[str]], list[list[int]]]:
    """Sentences such as "Anna met Paul in New Rome today", and the tags of their words."""
    rng = np.random.default_rng(seed)
    sentences, tags = [], []
    for _ in range(n):
        one, other = rng.choice(PEOPLE.split(), 2, replace=False)
        verb, city = rng.choice(VERBS.split()), rng.choice(CITIES.split())
        place = ["New", city] if rng.random() < 0.5 else [city]
        end = ["today"] if rng.random() < 0.5 else []
        sentences.append([str(word) for word in (one, verb, other, "in", *place, *end)])
        tags.append([1, 0, 1, 0, 2, *([3] if len(place) == 2 else []), *([0] if end else [])])
    return sentences, tags


SENTENCES, SENTENCE_TAGS = tagged_sentences(60, seed=0)
OTHERS, OTHER_TAGS = tagged_sentences(20, seed=1)
TEXTS = [" ".join(sentence) for sentence in SENTENCES]
NAMES: dict[str, Any] = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: i for i, tag in enumerate(TAGS)}}


@pytest.fixture(scope="module")
def anchors():
    return AnchorSet.from_tokens({"en": SENTENCES}, k=24, seed=3)


@pytest.fixture(scope="module")
def letters():
    """A tokenizer that cuts words into letters."""
    return wordpiece_tokenizer(TEXTS, longest=64, vocabulary_size=60)


@pytest.fixture(scope="module")
def whole_words():
    return word_tokenizer(TEXTS)


def bert(tokenizer: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small_bert(len(tokenizer), longest=64, width=32)


def tagger(anchors: AnchorSet, tokenizer: Any, seed: int = 0, **settings: Any) -> RelativeModelForTokenClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RelativeModelForTokenClassification.from_encoder(
            bert(tokenizer, seed), anchors.view(), tokenizer, **NAMES | settings
        ).eval()


# -- words


def test_a_word_is_told_by_its_sentence_and_its_place():
    word = Word(["The", "bank", "of", "the", "river"], 1)
    assert (word.text, str(word)) == ("bank", "The [bank] of the river")
    assert word == Word(("The", "bank", "of", "the", "river"), 1) != Word(word.words, 3)
    assert Word.at("We met in Rome.", 10, 14) == Word(["We", "met", "in", "Rome", "."], 3)
    assert Word.at("(Rome)", 1, 5) == Word(["(", "Rome", ")"], 1)


@pytest.mark.parametrize(
    ("words", "position", "message"),
    [
        ([], 0, r"The sentence is \[\] \(list\), expected a list of one or more words"),
        ("Rain fell", 0, r"is 'Rain fell' \(str\), expected a list"),
        (["Rain", " "], 0, r"has ' ' as word 1, expected a text that is not empty"),
        (["Rain", None], 0, r"has None as word 1"),
        (["Rain", "\ud800"], 0, "half of a surrogate pair"),
        (["Rain", "fell"], 2, r"position is 2 in a sentence of 2 words, expected 0 to 1"),
        (["Rain", "fell"], -1, r"position is -1 in a sentence of 2 words"),
        (["Rain", "fell"], True, r"position is True"),
    ],
)
def test_a_word_that_is_none_is_refused(words, position, message):
    with pytest.raises(SampleError, match=message):
        Word(words, position)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (1, 4, r"The span 1 to 4 is 'ain' and cuts a word of 'Rain fell' in two"),
        (0, 3, "cuts a word"),
        (4, 5, r"The span 4 to 5 holds no word"),
        (3, 3, "holds no word"),
        (5, 90, r"holds no word of 'Rain fell' \(9 characters\)"),
    ],
)
def test_a_span_that_is_no_word_is_refused(start, end, message):
    with pytest.raises(SampleError, match=message):
        Word.at("Rain fell", start, end)


def test_labels_must_be_as_many_as_words():
    assert labelled_words([["a", "b"], ["c"]], [[1, -100], [None]]) == ([Word(("a", "b"), 0)], [1])
    with pytest.raises(
        SampleError, match=r"labels\[0\] has the name 'LOC', expected numbers of classes\. Number them"
    ):
        label_tokens(None, [["Rome"]], [["LOC"]])
    with pytest.raises(SampleError, match=r"sentences\[1\] has 1 words and 2 labels. Give one label for each word"):
        labelled_words([["a"], ["b"]], [[1], [2, 3]])
    with pytest.raises(SampleError, match="labels of 1 sentences for 2 sentences"):
        labelled_words([["a"], ["b"]], [[1]])
    with pytest.raises(SampleError, match=r"sentences\[1\] is \[\]"):
        words_of([["a"], []])


# -- anchors that are words


def test_anchors_of_words_are_saved_and_keep_their_identity(anchors, tmp_path):
    anchors.save_pretrained(tmp_path)
    loaded = AnchorSet.from_pretrained(tmp_path)
    assert loaded.fingerprint == anchors.fingerprint
    assert loaded.view().samples == anchors.view().samples
    assert loaded.view().digest == anchors.view().digest
    assert anchors.view().modality == "word"
    before = anchors.fingerprint
    other = AnchorSet(anchors.ids, {"en": anchors.view().samples})
    french = [Word(("Ici", word.text, "."), 1) for word in anchors.view().samples]
    assert other.add_view("fr", french).fingerprint == before
    assert other.view("fr").digest != other.view("en").digest
    moved = [Word(word.words, (word.position + 1) % len(word.words)) for word in anchors.view().samples]
    assert AnchorSet(anchors.ids, {"en": moved}).view().digest != anchors.view().digest
    assert "[" in anchors.summary(1)["rows"][0]["en"]


def test_data_sets_read_the_table_of_anchors(anchors, tmp_path):
    anchors.save_pretrained(tmp_path)
    rows = load_dataset("parquet", data_files=str(tmp_path / "anchors/anchors.parquet"), split="train")
    assert rows[0]["en"] == {
        "words": list(anchors.view().samples[0].words),
        "position": anchors.view().samples[0].position,
    }
    again = AnchorSet.from_dataset(rows, k=24, views="en", id_column="id")
    assert set(again.view().samples) == set(anchors.view().samples)


def test_a_table_with_a_word_that_is_none_is_refused(anchors, tmp_path):
    import pyarrow.parquet as pq

    anchors.save_pretrained(tmp_path)
    file = tmp_path / "anchors/anchors.parquet"
    table = pq.read_table(file).to_pylist()
    table[3]["en"]["position"] = 99
    pq.write_table(pq.read_table(file).from_pylist(table), file)
    with pytest.raises(AnchorIntegrityError, match="position is 99"):
        AnchorSet.from_pretrained(tmp_path)


def test_anchors_are_chosen_by_tag_by_frequency_and_by_k_means(anchors):
    words, tags = labelled_words(SENTENCES, SENTENCE_TAGS)
    of_word = dict(zip(words, tags, strict=True))
    chosen = AnchorSet.from_tokens({"en": SENTENCES}, k=16, strategy="stratified", tags=tags)
    assert sorted(of_word[word] for word in chosen.view().samples) == sorted([0, 1, 2, 3] * 4)
    named = [TAGS[tag] for tag in tags]
    for how in ({}, {"strategy": "entities"}):
        half = AnchorSet.from_tokens({"en": SENTENCES}, k=16, tags=named, **how)
        assert [of_word[word] == 0 for word in half.view().samples].count(True) == 8
        assert half.origin["strategy"] == "entities"
    in_turn = AnchorSet.from_tokens({"en": SENTENCES}, k=16, tags=tags)  # numbers do not say which are entities
    assert in_turn.origin["strategy"] == "stratified"
    with pytest.raises(
        AnchorError, match=r"strategy='entities' needs tags='O', .* of every candidate, found '0', '1'"
    ):
        AnchorSet.from_tokens({"en": SENTENCES}, k=16, tags=tags, strategy="entities")
    with pytest.raises(AnchorError, match="of every candidate, there are none"):
        AnchorSet.from_tokens({"en": SENTENCES}, k=16, strategy="entities")
    common = [["the"] * 40, ["rare"]]
    assert "rare" in [w.text for w in AnchorSet.from_tokens({"en": common}, k=2, strategy="stratified").view().samples]
    vectors = torch.eye(4)[[of_word[word] for word in words]]
    by_kind = AnchorSet.from_tokens({"en": words}, k=4, strategy="kmeans", embeddings=vectors)
    assert {of_word[word] for word in by_kind.view().samples} == {0, 1, 2, 3}


def test_tags_may_be_given_sentence_by_sentence():
    flat = [tag for tags in SENTENCE_TAGS for tag in tags]
    nested = AnchorSet.from_tokens({"en": SENTENCES}, k=12, tags=SENTENCE_TAGS)
    assert nested.ids == AnchorSet.from_tokens({"en": SENTENCES}, k=12, tags=flat).ids


def test_a_sentence_that_is_there_twice_gives_each_anchor_once():
    assert len(AnchorSet.from_tokens({"en": [["a", "b"], ["a", "b"], ["c"]]}, k=3)) == 3


def test_views_of_aligned_words_are_parallel():
    english = [Word(("a", "red", "car"), 2), Word(("a", "house"), 1), Word(("we", "sing"), 1)]
    french = [Word(("une", "voiture", "rouge"), 1), Word(("une", "maison"), 1), Word(("nous", "chantons"), 1)]
    pairs = dict(zip(english, french, strict=True))
    found = AnchorSet.from_tokens({"en": english, "fr": french}, k=2)
    assert [pairs[word] for word in found.view("en").samples] == found.view("fr").samples
    with pytest.raises(AnchorError, match=r"The numbers of candidates differ: en 3, fr 2"):
        AnchorSet.from_tokens({"en": english, "fr": french[:2]}, k=2)
    with pytest.raises(AnchorError, match=r"candidates differ: en 3, tags 1"):
        AnchorSet.from_tokens({"en": english}, k=2, strategy="stratified", tags=["N"])
    with pytest.raises(SampleError, match="expected sentences as lists of words, or words, and not both"):
        AnchorSet.from_tokens({"en": [english[0], ["a"]]}, k=2)
    with pytest.raises(SampleError, match=r"view 'en'\[1\] is 'a' \(str\), expected word"):
        AnchorSet(["x", "y"], {"en": [english[0], "a"]})


# -- an encoder that reads words


def test_a_word_is_the_mean_of_its_pieces_in_its_sentence(anchors, letters):
    encoder = tagger(anchors, letters).encoder
    word = next(word for word in words_of(SENTENCES[:1]) if len(letters.tokenize(word.text)) > 1)
    tokens = letters(TEXTS[0], return_tensors="pt")
    places = [i for i, of in enumerate(tokens.word_ids()) if of == word.position]
    assert len(places) > 1
    with torch.no_grad():
        output = encoder(**tokens)
    assert output.pooler_output.shape == (1, tokens.input_ids.shape[1], 32)
    assert output.relative_embeds.shape == (1, tokens.input_ids.shape[1], 24)
    expected = output.pooler_output[0, places].mean(0)
    torch.testing.assert_close(encoder.encode([word])[0], expected)
    # Beside other sentences, out of order and twice: the same.
    mixed = [Word(SENTENCES[5], 1), word, Word(SENTENCES[1], 0), word, Word(SENTENCES[5], 0)]
    for row in (1, 3):
        torch.testing.assert_close(encoder.encode(mixed)[row], expected, atol=1e-6, rtol=1e-5)


def test_one_token_is_described_as_in_any_batch(anchors, letters):
    encoder = tagger(anchors, letters).encoder
    together = letters(TEXTS[:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        alone = encoder(**letters(TEXTS[1], return_tensors="pt")).relative_embeds[0]
        batch = encoder(**together).relative_embeds[1, : len(alone)]
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_pieces_are_found_behind_padding_on_either_side(letters, side):
    padded = wordpiece_tokenizer(TEXTS, longest=64, vocabulary_size=60)
    padded.padding_side = side
    words = [Word(SENTENCES[0], 2), Word(("in", "Rome"), 1)]
    ((rows, inputs),) = batches(words, padded, 2)
    for row, (sentence, start, end) in zip(rows, inputs[SPANS].tolist(), strict=True):
        assert padded.decode(inputs["input_ids"][sentence, start:end]).replace(" ", "") == words[row].text.lower()


def byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    """As GPT-2's: the space before a word is in the word's first token."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>"]))
    return PreTrainedTokenizerFast(tokenizer_object=trained, pad_token="<pad>", model_max_length=64)


def metaspace(texts: list[str]) -> PreTrainedTokenizerFast:
    """As XLM-R's."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.decoder = decoders.Metaspace()
    special = ["<pad>", "<unk>"]
    trained.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=trained, pad_token="<pad>", unk_token="<unk>", model_max_length=64)


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_pieces_are_those_of_the_word_whatever_a_tokenizer_makes_of_spaces(make):
    tokenizer = make(TEXTS)
    for sentence in SENTENCES[:3]:
        words = words_of([sentence])
        ((rows, inputs),) = batches(words, tokenizer, 1)
        spans = inputs[SPANS].tolist()
        assert all(before[2] == after[1] for before, after in pairwise(spans))  # every piece is one word's
        for row, (place, start, end) in zip(rows, spans, strict=True):
            assert tokenizer.decode(inputs["input_ids"][place, start:end]).strip() == words[row].text


def test_words_that_cannot_be_read_are_refused(anchors, letters, whole_words):
    encoder = tagger(anchors, letters).encoder
    long = ("Rome",) * 40
    with pytest.raises(SampleError, match=r"The word 'Rome' is number 39 of 40 .* keeps 64 tokens .* truncated"):
        encoder.encode([Word(long, 39)])
    kept = [Word(long, i) for i in range(40) if _is_read(encoder, Word(long, i))]
    assert kept and kept[-1].position == 64 // len(letters.tokenize("Rome")) - 1  # none that was cut in two
    with pytest.raises(SampleError, match=r"The word '\\u200b', number 1 in its sentence .* has no pieces"):
        encoder.encode([Word(("Rome", "\u200b", "Paris"), 1)])
    with pytest.raises(SampleError, match=r"has no pieces: .* makes no token of it"):
        encoder.encode([Word(("Rome", "\u200b"), 1)])
    with pytest.raises(AnchorError, match="This encoder reads words, but the view 'en' contains texts"):
        encoder.encode_anchors(AnchorSet(anchors.ids, {"en": TEXTS[:24]}).view())

    with pytest.raises(SampleError, match=r"samples\[0\] is the text 'Rome', this encoder reads words"):
        encoder.encode(["Rome"])
    texts = AnchorSet("abc", {"en": TEXTS[:3]})
    of_texts = RelativeModel.from_encoder(bert(letters, 0), texts.view(), letters)
    with pytest.raises(SampleError, match="is the word 'Anna' in its sentence, this encoder reads texts"):
        of_texts.encode([Word(("Anna",), 0)])

    class Slow:
        pad_token, model_max_length, model_input_names, padding_side = "[PAD]", 64, ["input_ids"], "right"

        def __call__(self, texts, **_):
            from transformers import BatchEncoding

            return BatchEncoding({"input_ids": [[1, 2] for _ in texts]})

    with pytest.raises(SampleError, match="Slow does not say which tokens are pieces of which word"):
        list(batches([Word(("a",), 0)], Slow(), 1))


def _is_read(encoder: RelativeModel, word: Word) -> bool:
    try:
        encoder.encode([word])
    except SampleError:
        return False
    return True


def test_a_lower_layer_is_read_where_there_are_enough(anchors, whole_words):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    deep = AutoModel.from_config(BertConfig(vocab_size=len(whole_words), num_hidden_layers=6, **sizes))
    assert RelativeModel.from_encoder(deep, anchors.view(), whole_words).config.layer == -3
    assert RelativeModel.from_encoder(deep, anchors.view(), whole_words, layer=-1).config.layer == -1
    assert RelativeModel.from_encoder(deep, anchors.view(), whole_words, layer=-2).config.layer == -2
    for layer, read in ((None, -3), (-1, -1), (-2, -2)):
        config = RelativeConfig(layer=layer)
        assert RelativeModel.from_encoder(deep, anchors.view(), whole_words, config=config).config.layer == read
    assert tagger(anchors, whole_words).encoder.config.layer == -1
    with pytest.raises(ConfigurationError, match="pooling='pooler' does not exist. Choose one of cls, mean, last"):
        RelativeEncoderConfig(modality="word", pooling="pooler")
    with pytest.raises(
        ConfigurationError, match="prompt='query: ' needs an encoder of texts, but this one reads words"
    ):
        RelativeEncoderConfig(modality="word", prompt="query: ")


def test_a_causal_model_reads_words(anchors):
    tokenizer = byte_level(TEXTS)
    gpt = GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2))
    encoder = RelativeModel.from_encoder(gpt.eval(), anchors.view(), tokenizer)
    assert encoder.check_anchors() < 1e-3
    assert encoder.encode(words_of(SENTENCES[:3])).shape == (sum(map(len, SENTENCES[:3])), 32)


def test_many_tokens_are_projected_in_chunks(anchors, whole_words, monkeypatch):
    encoder = tagger(anchors, whole_words).encoder
    x_BTD = torch.randn(6, 50, 32)
    expected = encoder.projection(x_BTD)
    monkeypatch.setattr("hf_relreps.projection.PROJECTED_AT_ONCE", 64)
    torch.testing.assert_close(encoder.projection(x_BTD), expected, atol=1e-6, rtol=1e-5)
    with torch.enable_grad():
        torch.testing.assert_close(encoder.projection(x_BTD.requires_grad_()), expected, atol=1e-6, rtol=1e-5)


# -- taggers


def rows_of(tokenizer: Any, sentences: list[list[str]], tags: list[list[int]]) -> list[dict[str, Any]]:
    tokens = label_tokens(tokenizer, sentences, tags)
    return [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_described_where_nothing_is_trained(anchors, letters, side):
    model = tagger(anchors, letters)
    inputs = dict(letters(["Anna met Paul", "Anna"], padding=True, padding_side=side, return_tensors="pt"))
    is_read_BT = inputs["attention_mask"].bool()
    described = model(**inputs)  # with gradients: every token
    with torch.no_grad():
        skipped = model(**inputs)
    assert not is_read_BT.all() and described.relative_embeds[~is_read_BT].any()
    assert not skipped.relative_embeds[~is_read_BT].any() and skipped.relative_embeds.dtype == torch.float32
    for name in ("relative_embeds", "logits"):
        torch.testing.assert_close(getattr(skipped, name)[is_read_BT], getattr(described, name)[is_read_BT])


def test_only_the_first_piece_of_a_word_has_its_label(letters):
    tokens = label_tokens(letters, SENTENCES[:3], SENTENCE_TAGS[:3])
    for i in range(3):
        told = [label for label in tokens["labels"][i] if label != -100]
        assert told == SENTENCE_TAGS[i]
        words = letters(TEXTS[i]).word_ids()
        starts = [place for place, label in enumerate(tokens["labels"][i]) if label != -100]
        assert starts == [words.index(word) for word in range(len(SENTENCES[i]))]
    cut = label_tokens(letters, SENTENCES[:1], SENTENCE_TAGS[:1], max_length=6)["labels"][0]
    assert len(cut) == 6
    with pytest.raises(SampleError, match=r"sentences\[0\] has .* words and 1 labels"):
        label_tokens(letters, SENTENCES[:1], [[0]])


@pytest.fixture(scope="module")
def ridge(anchors, whole_words):
    """A frozen encoder that reads whole words, and a decoder fitted to it in closed form."""
    encoder = tagger(anchors, whole_words, seed=1).encoder
    words, labels = labelled_words(SENTENCES, SENTENCE_TAGS)
    r_NR = encoder.projection(encoder.encode(words))
    return encoder, RelativeDecoder.fit_ridge(r_NR, labels, encoder, **NAMES)


def accuracy(model: Any, tokenizer: Any) -> float:
    rows = rows_of(tokenizer, OTHERS, OTHER_TAGS)
    batch = DataCollatorForTokenClassification(tokenizer)(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        found = model(**batch).logits.argmax(-1)
    return float((found == labels)[labels != -100].float().mean())


def test_a_decoder_fitted_in_closed_form_tags(ridge, whole_words, tmp_path, new_repo_id):
    encoder, decoder = ridge
    model = stitch(encoder, decoder)
    assert isinstance(model, RelativeModelForTokenClassification)
    assert accuracy(model, whole_words) > 0.9
    found = np.concatenate([[TAGS.index(tag) for tag in tags] for tags in model.tag(OTHERS)])
    assert (found == np.concatenate(OTHER_TAGS)).mean() > 0.9
    find = pipeline("token-classification", model=model, tokenizer=model.processor, aggregation_strategy="simple")
    found = find("Anna met Paul in New Rome")
    assert [(one["entity_group"], one["word"]) for one in found] == [
        ("PER", "Anna"),
        ("PER", "Paul"),
        ("LOC", "New Rome"),
    ]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    tokens = whole_words(TEXTS[:3], padding=True, return_tensors="pt")
    torch.testing.assert_close(loaded(**tokens).logits, model(**tokens).logits)
    assert RelativeDecoder.from_pretrained(tmp_path).config.modality == "word"
    assert RelativeModel.from_pretrained(tmp_path).anchors.view().samples == encoder.anchors.view().samples
    with pytest.raises(ConfigurationError, match="reads texts, but this encoder reads words"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    name = new_repo_id()
    model.push_to_hub(name)
    by_name = pipeline("token-classification", model=name, aggregation_strategy="simple")
    assert [one["word"] for one in by_name("Anna met Paul in New Rome")] == ["Anna", "Paul", "New Rome"]
    card = model.make_card(name)
    assert card.data.pipeline_tag == "token-classification" and "token by token" not in card.data.tags
    code = card.text.split("```python\n")[1].split("```")[0]
    exec(code, {})


def test_a_decoder_reads_an_encoder_with_another_tokenizer(ridge, anchors, letters):
    """Random weights: what is asked is whether they fit, not how well."""
    _, decoder = ridge
    model = stitch(bert(letters, 5), decoder, view="en", processor=letters)
    assert model.encoder.config.space == decoder.config.space
    tokens = letters(TEXTS[:2], padding=True, return_tensors="pt")
    assert model(**tokens).logits.shape == (*tokens.input_ids.shape, 4)
    report = compatibility(model, decoder)
    assert report.fits
    words = words_of(OTHERS)
    own, _ = ridge
    told = compatibility(model, decoder, own_encoder=own, pairs=(words, words))
    assert 0 <= told.expected_agreement <= 1


def test_a_stitched_tagger_is_calibrated_on_pairs_of_words(ridge, anchors, whole_words):
    own, decoder = ridge
    model = stitch(tagger(anchors, whole_words, seed=7).encoder, decoder)
    words = words_of(tagged_sentences(40, seed=2)[0])
    calibrated = calibrate(model, own_encoder=own, pairs=(words, words))
    assert type(calibrated) is RelativeModelForTokenClassification
    expected = [TAGS[tag] for tags in OTHER_TAGS for tag in tags]
    before, after = (np.mean(np.concatenate(one.tag(OTHERS)) == expected) for one in (model, calibrated))
    assert after > max(before, 0.7)


def test_several_decoders_tag_in_one_pass(ridge, whole_words):
    encoder, decoder = ridge
    model = stitch(encoder, {"entities": decoder, "again": decoder})
    tokens = whole_words(TEXTS[:2], padding=True, return_tensors="pt")
    assert model(**tokens).logits["entities"].shape == (*tokens.input_ids.shape, 4)
    found = model.classify(words_of(OTHERS[:2]))["again"]
    assert [answer["label"] for answer in found] == sum(stitch(encoder, decoder).tag(OTHERS[:2]), [])


def test_every_encoder_with_every_decoder_by_words(ridge, anchors, letters):
    encoder, decoder = ridge
    other = tagger(anchors, letters, seed=2).encoder
    words, labels = labelled_words(SENTENCES, SENTENCE_TAGS)
    fitted = RelativeDecoder.fit_ridge(other.projection(other.encode(words)), labels, other, **NAMES)
    encoders, decoders = {"words": encoder, "letters": other}, {"words": decoder, "letters": fitted}
    rows = Dataset.from_dict({"en": OTHERS, "tags": OTHER_TAGS})
    told: dict[str, Any] = {"label_column": "tags", "progress": False}
    matrix = stitching_matrix(encoders, decoders, rows, metric="accuracy", **told)
    assert matrix.n == sum(map(len, OTHERS))
    assert matrix.scores[0, 0] > 0.9
    entities = stitching_matrix(
        encoders,
        decoders,
        rows,
        metric=entity_f1(TAGS, [len(sentence) for sentence in OTHERS]),
        train_dataset=rows,
        **told,
    )
    assert entities.scores[0, 0] > 0.8 and entities.metric == "entity_f1" and entities.absolute[0, 0] > 0.8
    with pytest.raises(EvaluationError, match=r"row 0 of dataset has 6 words in column 'en' and 1 labels"):
        wrong = Dataset.from_dict({"en": OTHERS, "tags": [[0]] * len(OTHERS)})
        stitching_matrix(encoders, decoders, wrong, metric="accuracy", **told)


def test_entity_f1_counts_whole_entities():
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    score = entity_f1(names, [3, 2])
    labels = np.array([1, 2, 0, 3, 4])
    assert score(labels, labels) == 1
    assert score(labels, np.array([1, 0, 0, 3, 4])) == 0.5  # half an entity is none
    assert score(labels, np.array([0, 0, 0, 0, 0])) == 0
    # An entity ends with its sentence.
    assert entity_f1(names, [1, 1])(np.array([1, 2]), np.array([1, 1])) == 1
    assert entity_f1(names, [2])(np.array([1, 2]), np.array([1, 1])) == 0
    with pytest.raises(EvaluationError, match="'NOUN' is no tag of an entity"):
        entity_f1(["O", "NOUN"], [1])
    with pytest.raises(EvaluationError, match="2 sentences of 5 words in all, found 4"):
        score(labels[:4], labels[:4])


def test_entity_f1_is_no_metric_by_itself():
    with pytest.raises(EvaluationError, match="entity_f1 makes a metric: metric=entity_f1"):
        entity_f1(np.array([0, 1]), np.array([0, 1]))


def test_entity_f1_counts_as_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    names, random = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], np.random.default_rng(0)
    for _ in range(50):
        lengths = random.integers(1, 9, size=6).tolist()
        labels, told = (random.integers(0, 5, size=sum(lengths)) for _ in range(2))
        by_sentence = [
            [[names[i] for i in part] for part in np.split(tags, np.cumsum(lengths)[:-1])] for tags in (labels, told)
        ]
        expected = seqeval.f1_score(*by_sentence, zero_division=0)
        assert entity_f1(names, lengths)(labels, told) == pytest.approx(expected)


def test_entities_are_right_if_their_ends_and_kind_are():
    found = entities_of(["O", "B-PER", "I-PER", "B-PER", "I-LOC", "O"], {0})
    assert set(found) == {(1, 3, "PER"), (3, 4, "PER"), (4, 5, "LOC")}
    labels = np.array([0, 3, 6, 0, 1])  # O B-PER I-PER | O B-LOC
    score = entity_f1(["O", "B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER"], [3, 2])
    assert score(labels, labels) == 1
    assert score(labels, np.array([0, 3, 0, 0, 1])) == 0.5


def test_a_tagger_trains_with_trainer_and_its_anchors_are_exact(anchors, letters, tmp_path):
    model = tagger(anchors, letters, seed=4)
    rows = rows_of(letters, SENTENCES, SENTENCE_TAGS)
    make = partial(tiny_trainer, model, letters, rows, tmp_path, AnchorCallback(anchors.view(), refresh_every=2))
    trainer = make(max_steps=30, eval_rows=rows[:20], compute_metrics=_accuracy_of)
    trainer.data_collator = DataCollatorForTokenClassification(letters)
    before = accuracy(model, letters)
    trainer.train()
    assert not model.decoder.is_new
    assert model.encoder.check_anchors() < 1e-3
    assert accuracy(model.eval(), letters) > max(0.8, before)
    assert trainer.evaluate()["eval_accuracy"] > 0.8


def _accuracy_of(prediction: Any) -> dict[str, float]:
    counted = prediction.label_ids != -100
    found = prediction.predictions.argmax(-1)
    return {"accuracy": float((found == prediction.label_ids)[counted].mean())}


def test_the_closed_form_start_reads_labelled_tokens(anchors, letters):
    model = tagger(anchors, letters, seed=4)
    batch = DataCollatorForTokenClassification(letters)(rows_of(letters, SENTENCES, SENTENCE_TAGS))
    model.fit_decoder([dict(batch)])
    labels = batch.pop("labels")
    with torch.no_grad():
        output = model(**batch)
        expected = RelativeDecoder.fit_ridge(
            output.relative_embeds[labels != -100], labels[labels != -100], model, **NAMES
        )
        torch.testing.assert_close(output.logits, expected(output.relative_embeds).logits, atol=1e-4, rtol=1e-3)
    with pytest.raises(SampleError, match=r"There are labels \(60, 3\) for tokens \(60, \d+\)"):
        model(**batch, labels=labels[:, :3])


def test_labels_that_do_not_count_change_no_loss(anchors, letters):
    model = tagger(anchors, letters)
    batch = DataCollatorForTokenClassification(letters)(rows_of(letters, SENTENCES[:4], SENTENCE_TAGS[:4]))
    loss, logits = model(**batch)[:2]
    counted = batch["labels"] != -100
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[counted], batch["labels"][counted]))


# -- an ordinary classifier of tokens


@pytest.fixture(scope="module")
def ordinary(letters):
    """A BERT that was fine-tuned to tag."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForTokenClassification(
            BertConfig(vocab_size=len(letters), max_position_embeddings=64, **sizes, **NAMES)
        )
        batch = DataCollatorForTokenClassification(letters)(rows_of(letters, SENTENCES, SENTENCE_TAGS))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return model.eval()


def test_an_ordinary_tagger_keeps_its_answers_as_a_relative_model(ordinary, letters):
    many = AnchorSet.from_tokens({"en": SENTENCES}, k=200)
    model = RelativeModelForTokenClassification.from_classifier(ordinary, many.view(), letters)
    assert model.config.decoder.head_reads == "token" and model.encoder.config.layer == -1
    assert accuracy(ordinary, letters) > 0.9
    assert accuracy(model, letters) > 0.95 * accuracy(ordinary, letters)
    assert model.config.id2label == ordinary.config.id2label
    samples = words_of(OTHERS)
    fitted = RelativeModelForTokenClassification.from_classifier(ordinary, many.view(), letters, samples=samples)
    assert fitted.decoder.config.decoder_type == "linear"
    assert fitted.config.id2label == ordinary.config.id2label


def test_the_head_of_an_ordinary_tagger_reads_another_encoder(ordinary, anchors, letters, whole_words, tmp_path):
    encoder = tagger(anchors, whole_words).encoder
    model = stitch(encoder, ordinary, decoder_processor=letters)
    assert isinstance(model, RelativeModelForTokenClassification)
    tokens = whole_words(TEXTS[:2], padding=True, return_tensors="pt")
    logits = model(**tokens).logits
    assert logits.shape == (*tokens.input_ids.shape, 4)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**tokens).logits, logits)
    loss = model(**tokens, labels=torch.zeros_like(tokens.input_ids)).loss
    assert torch.isfinite(loss)


# -- elsewhere


@pytest.mark.slow
def test_a_tagger_is_exported(ridge, whole_words):
    encoder, decoder = ridge
    model = stitch(encoder, decoder)
    tokens = whole_words(TEXTS[:4], padding=True, return_tensors="pt")
    program = export_program(model)
    torch.testing.assert_close(program.module()(**tokens), model(**tokens).logits, atol=1e-4, rtol=1e-3)


def test_the_command_line_tags(ridge, tmp_path, capsys, monkeypatch):
    encoder, decoder = ridge
    stitch(encoder, decoder).save_pretrained(tmp_path)
    folder = str(tmp_path)
    monkeypatch.setattr("sys.argv", ["hf-relreps", "stitch", folder, folder, "--text", "Anna met Paul in New Rome"])
    with pytest.raises(SystemExit) as stop:
        hf_relreps_cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert [line.split(maxsplit=2)[::2] for line in lines] == [["PER", "Anna"], ["PER", "Paul"], ["LOC", "New Rome"]]


def test_encode_dataset_says_how_to_make_words_of_sentences(ridge, tmp_path):
    encoder, _ = ridge
    rows = Dataset.from_dict({"en": OTHERS, "tags": OTHER_TAGS})
    with pytest.raises(SampleError, match=r"words_of"):
        encode_dataset(encoder, rows, "en", cache_dir=tmp_path)


def test_samples_of_words_are_told_from_others():
    assert check_samples(words_of([["a", "b"]]), "samples") == "word"
    with pytest.raises(SampleError, match=r"samples\[1\] is 'a' \(str\), expected word"):
        check_samples([Word(("a",), 0), "a"], "samples")
