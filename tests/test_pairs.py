"""Two texts as one sample: anchors, an encoder of both, classifiers that are trained, stitched and shared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, processors
from training import tiny_trainer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    pipeline,
)

import hf_relreps_cli
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForSequenceClassification,
    RelativeModelForTokenClassification,
    compatibility,
    stitch,
    stitching_matrix,
)
from hf_relreps.caching import encode_dataset
from hf_relreps.demos.tiny import small_bert, word_tokenizer, wordpiece_tokenizer
from hf_relreps.errors import AnchorError, AnchorIntegrityError, ConfigurationError, RelrepsError, SampleError
from hf_relreps.exporting import export_program
from hf_relreps.pairs import columns_in, mark_of_pairs, pairs_of
from hf_relreps.samples import batches, check_samples, digest_of_samples
from hf_relreps.trust import Judge


ANIMALS, FOOD = "cat dog horse bird", "bread soup rice cake"
COLUMNS = ("premise", "hypothesis")
NAMES: dict[str, Any] = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}


def claims(n: int, seed: int) -> Dataset:
    """Such as "the old cat here" and "some food waits today", which is a match or not; no text alone tells."""
    rng = np.random.default_rng(seed)
    rows: dict[tuple[str, str], int] = {}
    while len(rows) < n:
        kind, claim = rng.integers(2, size=2)
        noun = rng.choice((ANIMALS, FOOD)[kind].split())
        premise = f"the {rng.choice('small old red good'.split())} {noun} {rng.choice(['here', 'there'])}"
        what = ("an animal", "some food")[claim]
        hypothesis = f"{what} {rng.choice('waits is rests lies'.split())} {rng.choice('today now again'.split())}"
        rows[premise, hypothesis] = int(kind == claim)
    return Dataset.from_list(
        [dict(zip(COLUMNS, texts, strict=True)) | {"label": label} for texts, label in rows.items()]
    )


TRAIN, TEST = claims(256, seed=0), claims(60, seed=1)
PAIRS = pairs_of(TRAIN["premise"][:], TRAIN["hypothesis"][:])
OTHERS = pairs_of(TEST["premise"][:], TEST["hypothesis"][:])
TEXTS = [text for pair in PAIRS for text in pair.values()]


@pytest.fixture(scope="module")
def anchors():
    return AnchorSet.from_dataset(TRAIN, 40, views={"en": COLUMNS})


@pytest.fixture(scope="module")
def whole_words():
    return word_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def letters():
    """A tokenizer that cuts words into letters, and pairs as BERT's does."""
    tokenizer = wordpiece_tokenizer(TEXTS, longest=96, vocabulary_size=60)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def bert(tokenizer: Any, seed: int, width: int = 32) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small_bert(len(tokenizer), longest=96, width=width)


def classifier(anchors: AnchorSet, tokenizer: Any, seed: int = 0, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RelativeModelForSequenceClassification.from_encoder(
            bert(tokenizer, seed), anchors, tokenizer, **NAMES | settings
        ).eval()


def rows_of(tokenizer: Any, dataset: Dataset) -> Dataset:
    """As the user prepares them: two columns are tokenized together."""
    rows = dataset.map(lambda row: tokenizer(row["premise"], row["hypothesis"], truncation=True), batched=True)
    return rows.remove_columns(list(COLUMNS))


@pytest.fixture(scope="module")
def trained(anchors, whole_words, tmp_path_factory):
    """Two classifiers from seeds of their own, trained by the plain Trainer."""
    models = {}
    for seed in (1, 2):
        model = classifier(anchors, whole_words, seed=seed)
        folder = tmp_path_factory.mktemp("trained")
        how: dict[str, Any] = {"max_steps": 120, "per_device_train_batch_size": 16, "seed": seed}
        tiny_trainer(model, whole_words, rows_of(whole_words, TRAIN), folder, AnchorCallback(), **how).train()
        models[str(seed)] = model.eval()
    return models


def accuracy(model: Any) -> float:
    answers = pipeline("text-classification", model=model, tokenizer=model.processor)(OTHERS)
    return float(np.mean([NAMES["label2id"][one["label"]] for one in answers] == np.array(TEST["label"])))


# -- pairs as samples


def test_pairs_are_told_from_texts_and_sounds():
    assert check_samples(PAIRS, "samples") == "pair"
    assert check_samples(["a"], "samples") == "text"
    assert check_samples([{"array": np.zeros(4), "sampling_rate": 8000}], "samples") == "audio"


def test_both_texts_and_their_order_make_a_pair():
    pair, turned = pairs_of(["a b"], ["c"]), pairs_of(["c"], ["a b"])
    digests = [digest_of_samples(samples) for samples in (pair, turned, pairs_of(["a"], ["b c"]), ["a b c"])]
    assert len(set(digests)) == 4
    assert digest_of_samples([dict(reversed(pair[0].items()))]) == digests[0]  # not the order of the keys


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([{"text": "a"}], r"samples\[0\] is a mapping with text, expected two texts, text and text_pair"),
        ([{"text_pair": "a"}], r"samples\[0\] is a mapping with text_pair, expected two texts"),
        ([PAIRS[0], PAIRS[1] | {"label": 1}], r"samples\[1\] is a mapping with text, text_pair, label, expected two"),
        ([{"text": "a", "text_pair": None}], r"samples\[0\]\['text_pair'\] is None \(NoneType\), expected a text"),
        ([{"text": "a", "text_pair": ["b"]}], r"samples\[0\]\['text_pair'\] is \['b'\] \(list\), expected a text"),
        ([{"text": " ", "text_pair": "b"}], r"samples\[0\]\['text'\] is an empty text"),
        ([{"text": "a", "text_pair": "\ud800"}], r"samples\[0\]\['text_pair'\] is .* half of a surrogate pair"),
        ([PAIRS[0], "a text"], r"samples\[1\] is 'a text' \(str\), expected pair like every other sample"),
        (["a text", PAIRS[0]], r"samples\[1\] is .* \(dict\), expected text like every other sample"),
        ([PAIRS[0], None], r"samples\[1\] is None \(NoneType\), expected pair like every other sample"),
        ([("a", "b")], r'Two texts are one sample as \{"text": first, "text_pair": second\}: hf_relreps.pairs'),
    ],
)
def test_what_is_no_pair_is_refused(samples, says):
    with pytest.raises(SampleError, match=says):
        check_samples(samples, "samples")


def test_columns_become_pairs():
    assert pairs_of(["a"], ["b"]) == [{"text": "a", "text_pair": "b"}]
    with pytest.raises(SampleError, match="There are 2 first texts and 1 second ones"):
        pairs_of(["a", "b"], ["c"])
    with pytest.raises(SampleError, match="Found the text 'one', expected a list of texts"):
        pairs_of(["a"], "one")
    assert columns_in("one") == ("one",) and columns_in(["one", "other"]) == ("one", "other")
    with pytest.raises(SampleError, match="Found 3 columns"):
        columns_in(["a", "b", "c"])


def test_a_tokenizer_joins_both_and_cuts_both(letters):
    short = {"text": "cat", "text_pair": "dog"}
    long = {"text": "cat " * 60, "text_pair": "dog " * 50}
    ((rows, inputs),) = batches([short, long], letters, 2, max_length=40)
    row = list(rows).index(0)
    assert letters.decode(inputs["input_ids"][row], skip_special_tokens=True) == "cat dog"
    ids, types, mask = (inputs[name][1 - row] for name in ("input_ids", "token_type_ids", "attention_mask"))
    assert int(mask.sum()) == 40 and types.tolist() == sorted(types.tolist())
    assert 17 <= int((types == 0).sum()) <= 23  # of both some is left
    assert (ids == letters.sep_token_id).sum() == 2
    expected = letters(short["text"], short["text_pair"])["input_ids"]
    assert inputs["input_ids"][row][: len(expected)].tolist() == expected


def test_the_token_between_two_texts_is_found(letters, whole_words, tokenizer):
    assert mark_of_pairs(letters) == [letters.sep_token_id, 2]
    assert mark_of_pairs(whole_words) == [whole_words.sep_token_id, 1]
    assert mark_of_pairs(tokenizer) is None  # joins them without one


# -- anchors


def test_anchors_are_pairs(anchors, tmp_path, new_repo_id):
    view = anchors.view("en")
    assert (view.modality, len(view)) == ("pair", 40)
    assert repr(view).startswith("AnchorView('en', 40 pairs")
    again = AnchorSet.from_dataset(TRAIN, 40, views={"en": list(COLUMNS)})
    assert (again.fingerprint, again.view().digest) == (anchors.fingerprint, view.digest)
    anchors.save_pretrained(tmp_path)
    loaded = AnchorSet.from_pretrained(tmp_path)
    assert loaded.view("en").samples == view.samples and loaded.view("en").digest == view.digest
    name = new_repo_id()
    anchors.push_to_hub(name)
    assert AnchorSet.from_pretrained(name).view("en").samples == view.samples
    first = view.samples[0]
    assert anchors.summary(1)["rows"][0]["en"] == f"{first['text']} | {first['text_pair']}"
    rows = Dataset.from_parquet(str(tmp_path / "anchors" / "anchors.parquet"))
    assert rows["en"][0] == first  # as the Hub's viewer reads it
    assert AnchorSet.from_dataset(rows, 10, views="en", id_column="id").view().samples[0] in view.samples


def test_a_view_may_hold_pairs_of_another_language(anchors):
    turned = [{"text": pair["text_pair"], "text_pair": pair["text"]} for pair in anchors.view().samples]
    both = AnchorSet(anchors.ids, {"en": anchors.view().samples, "xx": turned})
    assert both.fingerprint == anchors.fingerprint and both.view("xx").digest != both.view("en").digest


def test_rows_without_one_of_the_texts_are_no_anchors():
    rows = Dataset.from_dict({"a": ["x", None, "y"], "b": ["u", "v", None]})
    assert AnchorSet.from_dataset(rows, 1, views={"en": ("a", "b")}).view().samples == pairs_of(["x"], ["u"])
    with pytest.raises(AnchorError, match="Cannot choose k=2 anchors from 1 candidates"):
        AnchorSet.from_dataset(rows, 2, views={"en": ("a", "b")})
    with pytest.raises(AnchorError, match="The dataset has no column 'c'"):
        AnchorSet.from_dataset(rows, 1, views={"en": ("a", "c")})
    empty = Dataset.from_dict({"a": ["x"], "b": [" "]})
    with pytest.raises(SampleError, match=r"column \('a', 'b'\)\[0\]\['text_pair'\] is an empty text"):
        AnchorSet.from_dataset(empty, 1, views={"en": ("a", "b")})


def test_changed_pairs_are_noticed(anchors, tmp_path):
    import pyarrow.parquet as pq

    anchors.save_pretrained(tmp_path)
    file = tmp_path / "anchors" / "anchors.parquet"
    table = pq.read_table(file)
    for value, says in (("other", "has been changed: the digest of its view 'en'"), (None, "is None")):
        rows = table.to_pylist()
        rows[3]["en"]["text_pair"] = value
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), file)
        with pytest.raises(AnchorIntegrityError, match=says):
            AnchorSet.from_pretrained(tmp_path)


# -- encoders


def test_an_encoder_reads_both_at_once(anchors, letters):
    encoder = RelativeModel.from_encoder(bert(letters, 3), anchors, letters).eval()
    assert (encoder.config.modality, encoder.config.padding) == ("pair", True)
    assert encoder.check_anchors() < 1e-3
    pair = OTHERS[0]
    changed = pair | {"text_pair": "an animal is here"}
    x_ND = encoder.encode([pair, changed, pair])
    torch.testing.assert_close(x_ND[0], x_ND[2])
    assert (x_ND[0] - x_ND[1]).norm() > 1e-2 * x_ND[0].norm()
    tokens = letters(pair["text"], pair["text_pair"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(encoder(**tokens).pooler_output, x_ND[:1])


def test_single_texts_are_refused_by_an_encoder_of_pairs_and_the_reverse(anchors, letters):
    model = classifier(anchors, letters)
    with pytest.raises(SampleError, match="samples.0. is 'one text', this encoder reads pairs of texts"):
        model.encoder.encode(["one text"])
    with pytest.raises(SampleError, match="1 of 2 inputs are one text, this encoder reads pairs"):
        both = letters(["a cat", "a dog"], ["is here", "is there"], padding="max_length", max_length=40)
        both["input_ids"][1] = letters("a dog is there", padding="max_length", max_length=40)["input_ids"]
        model(**{name: torch.tensor(value) for name, value in both.items()})
    classify = pipeline("text-classification", model=model, tokenizer=letters)
    for one in ("one text", {"text": "one text"}):
        with pytest.raises(SampleError, match='Pipelines take {"text": ..., "text_pair": ...}'):
            classify(one)
    texts = AnchorSet([str(i) for i in range(3)], {"en": ["a cat", "a dog", "some food"]})
    of_texts = RelativeModel.from_encoder(bert(letters, 0), texts, letters)
    with pytest.raises(SampleError, match="is {'text': 'the.*, this encoder reads texts. Give samples like its"):
        of_texts.encode(OTHERS)


def test_a_tokenizer_that_joins_texts_without_a_mark_is_warned_of(anchors, tokenizer, caplog):
    model = bert(tokenizer, 0)
    with caplog.at_level("WARNING"):
        encoder = RelativeModel.from_encoder(model, anchors, tokenizer)
    assert "joins two texts without a token between them" in caplog.text
    assert encoder.config.pair_mark is None


def test_a_causal_model_reads_pairs(anchors, whole_words):
    gpt = GPT2Model(GPT2Config(vocab_size=len(whole_words), n_positions=96, n_embd=32, n_layer=2, n_head=2)).eval()
    encoder = RelativeModel.from_encoder(gpt, anchors, whole_words)
    assert encoder.config.pooling == "last" and encoder.check_anchors() < 1e-3


def test_a_prompt_is_no_setting_of_pairs(anchors, letters):
    with pytest.raises(ConfigurationError, match="needs an encoder of texts, but this one reads pairs"):
        RelativeModel.from_encoder(bert(letters, 0), anchors, letters, prompt="query: ")


def test_encoded_pairs_are_cached(anchors, letters, tmp_path):
    encoder = RelativeModel.from_encoder(bert(letters, 3), anchors, letters)
    encoded = encode_dataset(encoder, TEST, COLUMNS, cache_dir=tmp_path)
    assert set(encoded.column_names) == {"label", "relative_embeds"}
    expected = encoder.projection(encoder.encode(OTHERS))
    torch.testing.assert_close(encoded["relative_embeds"][:], expected, atol=1e-5, rtol=1e-4)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    encode_dataset(encoder, TEST, COLUMNS, cache_dir=tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
    with pytest.raises(SampleError, match="expected 'premise', 'nothing' among them"):
        encode_dataset(encoder, TEST, ("premise", "nothing"), cache_dir=tmp_path)
    with pytest.raises(SampleError, match="column 'premise' holds text, the encoder reads pair"):
        encode_dataset(encoder, TEST, "premise", cache_dir=tmp_path)


# -- classifiers


def test_two_columns_train_a_classifier_and_its_decoder_is_read_by_another(trained):
    for model in trained.values():
        assert model.encoder.check_anchors() < 1e-2
        assert accuracy(model) > 0.9
    stitched = stitch(trained["1"], trained["2"])
    assert isinstance(stitched, RelativeModelForSequenceClassification)
    assert accuracy(stitched) > 0.85
    report = compatibility(trained["1"], trained["2"], own_encoder=trained["2"], pairs=(PAIRS[:120], PAIRS[:120]))
    assert report.fits
    matrix = stitching_matrix(
        trained, trained, TEST, inputs=dict.fromkeys(trained, COLUMNS), metric="accuracy", train_dataset=TRAIN,
        progress=False,
    )  # fmt: skip
    assert matrix.scores.min() > 0.85 and matrix.n == 60
    assert matrix.scores[0, 1] == pytest.approx(accuracy(stitched))


def test_a_matrix_reads_a_column_of_pairs(trained):
    rows = Dataset.from_dict({"en": OTHERS, "label": TEST["label"][:]})
    matrix = stitching_matrix(trained, trained, rows, metric="accuracy", progress=False)
    assert matrix.scores[0, 0] == pytest.approx(accuracy(trained["1"]))


def test_a_classifier_of_pairs_is_saved_and_pushed(trained, tmp_path, new_repo_id):
    model = trained["1"]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.encoder.pair_mark == model.config.encoder.pair_mark
    tokens = model.processor(TEST["premise"][:4], TEST["hypothesis"][:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**tokens).logits, model(**tokens).logits)
    assert RelativeDecoder.from_pretrained(tmp_path).config.modality == "pair"
    assert RelativeModel.from_pretrained(tmp_path).anchors.view().samples == model.anchors.view().samples
    name = new_repo_id()
    model.push_to_hub(name)
    classify = pipeline("text-classification", model=name)
    assert classify(OTHERS[:3]) == pipeline("text-classification", model=model, tokenizer=model.processor)(OTHERS[:3])
    card = model.make_card(name)
    first = model.anchors.view().samples[0]
    assert card.data.pipeline_tag == "text-classification"
    assert first["text"] in card.text and first["text_pair"] in card.text
    exec(card.text.split("```python\n")[1].split("```")[0], {})


def test_a_card_without_anchors_shows_how_pairs_are_given(trained, tmp_path, new_repo_id):
    name = new_repo_id()
    trained["1"].push_to_hub(name, anchors="digest")
    from huggingface_hub import ModelCard

    code = ModelCard.load(name).text.split("```python\n")[1].split("```")[0]
    assert '"text_pair": "And the second one here."' in code
    exec(code, {})


def test_a_tokenizer_that_lacks_its_separator_is_refused(anchors, letters):
    content = json.loads(letters.backend_tokenizer.to_str())
    del content["post_processor"]["special_tokens"]["[SEP]"]
    broken = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), pad_token="[PAD]")
    with pytest.raises(SampleError, match="cannot read these samples: PanicException"):
        RelativeModel.from_encoder(bert(letters, 0), anchors.view("en"), broken)


def test_an_ordinary_cross_encoder_becomes_relative(anchors, letters):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = BertConfig(vocab_size=len(letters), max_position_embeddings=96, **sizes, **NAMES)
        ordinary = BertForSequenceClassification(config).eval()
    model = RelativeModelForSequenceClassification.from_classifier(ordinary, anchors, letters)
    tokens = letters(TEST["premise"][:], TEST["hypothesis"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        found, expected = model(**tokens).logits, ordinary(**tokens).logits
    difference = [logits[:, 1] - logits[:, 0] for logits in (found, expected)]
    assert float(torch.corrcoef(torch.stack(difference))[0, 1]) > 0.8  # .92 to .97 for ten seeds; not related: 0


def test_several_decoders_answer_for_pairs(trained):
    both = stitch(trained["1"], {"one": trained["1"].decoder, "other": trained["2"].decoder})
    answers = both.classify(OTHERS[:5])
    assert {name: len(rows) for name, rows in answers.items()} == {"one": 5, "other": 5}
    assert len(Judge(trained["1"], PAIRS[:100])(OTHERS[:5])) == 5


def test_a_classifier_of_pairs_is_exported(trained):
    program = export_program(trained["1"])
    tokens = trained["1"].processor(TEST["premise"][:3], TEST["hypothesis"][:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**tokens), trained["1"](**tokens).logits, atol=1e-4, rtol=1e-4)


def test_classes_for_other_samples_refuse_pairs(anchors, letters):
    with pytest.raises(AnchorError, match="reads words, but the view 'en' contains pairs"):
        RelativeModelForTokenClassification.from_encoder(bert(letters, 0), anchors, letters)


# -- the command line


def run(*arguments: Any) -> Any:
    from typer.testing import CliRunner

    return CliRunner().invoke(hf_relreps_cli.app, [str(argument) for argument in arguments])


def test_the_command_line_chooses_shows_and_reads_pairs(trained, tmp_path):
    TRAIN.to_csv(tmp_path / "claims.csv")
    told = run("anchors", "choose", tmp_path / "claims.csv", "-k", 7, "--view", "en=premise,hypothesis",
               "--output", tmp_path / "anchors")  # fmt: skip
    assert told.exit_code == 0 and "views: en (pair)" in told.stdout
    shown = run("anchors", "show", tmp_path / "anchors", "--rows", 1)
    first = AnchorSet.from_pretrained(tmp_path / "anchors").view().samples[0]
    assert f"{first['text']} | {first['text_pair']}" in shown.stdout
    for seed, model in trained.items():
        model.save_pretrained(tmp_path / seed)
    two = ("--text", OTHERS[0]["text"], "--text-pair", OTHERS[0]["text_pair"])
    answer = json.loads(run("stitch", tmp_path / "1", tmp_path / "2", *two, "--json").stdout)["answers"][0]
    assert answer["sample"] == OTHERS[0]
    stitched = stitch(trained["1"], trained["2"])
    expected = pipeline("text-classification", model=stitched, tokenizer=stitched.processor)(OTHERS[0])
    assert answer["label"] == expected["label"] and answer["score"] == pytest.approx(expected["score"], abs=1e-4)
    assert (
        f"{OTHERS[0]['text']} | {OTHERS[0]['text_pair']}" in run("stitch", tmp_path / "1", tmp_path / "2", *two).stdout
    )


def test_the_command_line_says_how_pairs_are_given(trained, tmp_path):
    trained["1"].save_pretrained(tmp_path / "1")
    for given, says in (
        (("--text", "one"), "reads pairs, but --text was given. Give two texts: --text and --text-pair"),
        (("--text", "one", "--text", "two", "--text-pair", "three"), "do not go together: There are 2 first texts"),
        (("--text-pair", "three"), "do not go together: There are 0 first texts and 1 second ones"),
    ):
        error = run("stitch", tmp_path / "1", tmp_path / "1", *given).exception
        assert isinstance(error, RelrepsError) and says in str(error)
