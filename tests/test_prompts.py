"""An encoder that wants a prompt reads it before anchors and samples alike, whoever tokenizes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    ByT5Tokenizer,
    CLIPProcessor,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
    Trainer,
    TrainingArguments,
    XLMRobertaTokenizer,
    pipeline,
)

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForSequenceClassification,
    stitch,
)
from hf_relreps.caching import encode_dataset
from hf_relreps.demos.tiny import wordpiece_tokenizer
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import ConfigurationError, SampleError, StitchingError, UploadIntegrityError
from hf_relreps.exporting import export_program
from hf_relreps.prompts import SENTENCE_TRANSFORMERS_FILE, ids_of_prompt, prompt_of, with_prompt


PROMPT = "query: "
TEXTS = ["a small cat here", "Bread, 12 of them.", "été à la mer", " two birds"]


# -- tokenizers of every kind


def byte_pairs() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=300, **how)
    tokenizer.train_from_iterator(["query: a text", "Query:a small cat"] * 20, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def characters(*special: str) -> list[str]:
    return [*special, *"▁abcdefghijklmnopqrstuvwxyzQBé:,.'0123456789"]


def pieces(*special: str) -> list[tuple[str, float]]:
    return [(piece, 0.0 if piece in special else -2.0) for piece in characters(*special)]


def numbered(*special: str) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(characters(*special))}


def bert_tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", "a", "cat", "##s", "small", ",", "."]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "WordPiece": bert_tokenizer,
    "Unigram": lambda: XLMRobertaTokenizer(vocab=pieces("<s>", "<pad>", "</s>", "<unk>")),
    "Unigram of T5": lambda: T5Tokenizer(vocab=pieces("<pad>", "</s>", "<unk>")),
    "bytes of RoBERTa": lambda: RobertaTokenizer(**byte_pairs()),
    "bytes of Qwen": lambda: Qwen2Tokenizer(**byte_pairs(), pad_token="<pad>"),
    "pairs of Gemma": lambda: GemmaTokenizer(vocab=numbered("<pad>", "<eos>", "<bos>", "<unk>"), merges=[]),
    "pairs of Llama": lambda: LlamaTokenizer(vocab=numbered("<unk>", "<s>", "</s>"), merges=[], pad_token="<unk>"),
    "trained WordPiece": lambda: wordpiece_tokenizer(TEXTS * 5, longest=32),
}


@pytest.mark.parametrize("prompt", ["query: ", "Query:", "Represent this: \n"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_with_a_prompt_gives_the_tokens_of_texts_that_begin_with_it(kind, prompt, tmp_path):
    plain = TOKENIZERS[kind]()
    before = plain.backend_tokenizer.to_str()
    prompted = with_prompt(plain, prompt)
    written = dict(plain([prompt + text for text in TEXTS]))
    assert dict(prompted(TEXTS)) == written
    prompted.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert dict(loaded(TEXTS)) == written, "as whoever loads the upload reads it"
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [raw.encode(text).ids for text in TEXTS] == written["input_ids"], "without transformers, too"
    assert (prompt_of(loaded), loaded.padding_side) == (prompt, plain.padding_side)
    assert with_prompt(loaded, prompt) is loaded
    assert plain.backend_tokenizer.to_str() == before, "the caller's own stays as it is"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_can_be_exchanged_and_taken_away(kind):
    plain = TOKENIZERS[kind]()
    prompted = with_prompt(with_prompt(plain, "passage: "), PROMPT)
    assert prompted(TEXTS)["input_ids"] == plain([PROMPT + text for text in TEXTS])["input_ids"]
    bare = with_prompt(prompted, "")
    assert prompt_of(bare) is None
    assert bare(TEXTS)["input_ids"] == plain(TEXTS)["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_of_a_prompt_are_found_in_every_text(kind):
    prompted = with_prompt(TOKENIZERS[kind](), PROMPT)
    ids = ids_of_prompt(prompted)
    assert ids
    for row in prompted(TEXTS)["input_ids"]:
        assert ids in [row[i : i + len(ids)] for i in range(len(row))]


def test_an_encoder_with_a_prompt_of_some_sentences_is_saved_and_read(make_bert, anchors, tokenizer, tmp_path):
    prompt = "Instruct: " + "given a question, retrieve passages that answer it. " * 4
    encoder = RelativeModel.from_encoder(make_bert(0), anchors.view("en"), tokenizer, prompt=prompt)
    encoder.save_pretrained(tmp_path)
    assert prompt_of(RelativeModel.from_pretrained(tmp_path).processor) == prompt


def test_what_llama_prepends_itself_is_no_prompt():
    llama = TOKENIZERS["pairs of Llama"]()
    assert prompt_of(llama) is None
    assert with_prompt(llama, None) is llama


def test_a_tokenizer_without_a_backend_is_refused_with_what_to_do():
    with pytest.raises(ConfigurationError, match=r"must be a fast one, and ByT5Tokenizer is not.* give prompt=''"):
        with_prompt(ByT5Tokenizer(), PROMPT)


def test_a_prompt_of_special_tokens_is_refused():
    with pytest.raises(ConfigurationError, match=r"'\[MASK\] ' cannot be added by BertTokenizer"):
        with_prompt(bert_tokenizer(), "[MASK] ")


# -- models


@pytest.fixture(scope="module")
def wordpiece(texts) -> PreTrainedTokenizerFast:
    return wordpiece_tokenizer([PROMPT + text for view in texts.values() for text in view], longest=32)


@pytest.fixture(scope="module")
def make(make_bert, anchors, wordpiece) -> Callable[..., RelativeModelForSequenceClassification]:
    """A classifier of three classes behind a tokenizer that knows the words of the prompt."""

    def build(seed: int = 0, view: Any = None, **settings: Any) -> RelativeModelForSequenceClassification:
        bert = make_bert(seed, vocab_size=len(wordpiece))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = RelativeModelForSequenceClassification.from_encoder(
                bert, view or anchors.view("en"), wordpiece, num_labels=3, **settings
            )
        return model.eval()

    return build


def written(texts: list[str]) -> list[str]:
    return [PROMPT + text for text in texts]


def test_a_prompt_is_as_good_as_one_written_into_every_text(make, anchors, texts):
    by_hand = make(view=AnchorSet(anchors.ids, {"en": written(texts["en"][::3])}).view("en"))
    model = make(prompt=PROMPT)
    assert torch.equal(model.encoder.anchors_AD, by_hand.encoder.anchors_AD)
    assert torch.equal(model.encoder.encode(texts["en"]), by_hand.encoder.encode(written(texts["en"])))
    assert not torch.allclose(model.encoder.anchors_AD, make().encoder.anchors_AD, atol=1e-3)
    assert model.encoder.check_anchors() < 1e-3


def test_the_raw_anchors_know_nothing_of_the_prompt(make, anchors, tmp_path):
    model = make(prompt=PROMPT)
    assert model.config.encoder.anchor_digest == anchors.view("en").digest
    assert model.config.space == make().config.space
    model.save_pretrained(tmp_path)
    assert AnchorSet.from_pretrained(tmp_path).view("en").samples == anchors.view("en").samples


def test_whoever_brings_the_plain_tokenizer_to_encode_gets_the_prompt_too(make, texts, wordpiece, tmp_path):
    encoder = make(prompt=PROMPT).encoder
    assert torch.equal(encoder.encode(texts["en"], wordpiece), encoder.encode(texts["en"]))
    assert encoder.check_anchors(wordpiece) < 1e-3
    from datasets import Dataset

    rows = Dataset.from_dict({"text": texts["en"][:8]})
    encoded = encode_dataset(encoder, rows, "text", processor=wordpiece, cache_dir=tmp_path)
    expected = encoder.projection(encoder.encode(texts["en"][:8]))
    assert torch.allclose(encoded[:]["relative_embeds"], expected, atol=1e-5)


def test_pipelines_and_rows_of_the_model_s_tokenizer_read_as_encode_does(make, texts):
    model = make(prompt=PROMPT)
    with torch.no_grad():
        output = model.encoder(**model.processor(texts["en"][:6], padding=True, return_tensors="pt"))
        logits = model.decoder(relative_embeds=output.relative_embeds).logits
    assert torch.allclose(output.pooler_output, model.encoder.encode(texts["en"][:6]), atol=1e-5)
    found = pipeline("text-classification", model=model, tokenizer=model.processor, top_k=None)(texts["en"][:1])
    scores = {answer["label"]: answer["score"] for answer in found[0]}
    for i, share in enumerate(logits.softmax(-1)[0].tolist()):
        assert scores[model.config.id2label[i]] == pytest.approx(share, abs=1e-5)


def test_rows_of_another_tokenizer_are_refused_not_read_without_the_prompt(make, texts, wordpiece):
    model = make(prompt=PROMPT)
    tokens = wordpiece(texts["en"][:6], padding=True, return_tensors="pt")
    with pytest.raises(SampleError, match=r"None of these 6 texts begins with the prompt 'query: '.*model\.processor"):
        model(**tokens)
    with pytest.raises(SampleError, match=r"None of these 1 texts"):
        model(input_ids=torch.tensor([[2]]), attention_mask=torch.tensor([[1]]))
    make()(**tokens)
    model(**wordpiece(written(texts["en"][:6]), padding=True, return_tensors="pt"))  # written by hand: the same


def test_a_training_reads_the_prompt_everywhere(make, texts, labels, wordpiece, tmp_path):
    model = make(prompt=PROMPT)
    rows = [dict(model.processor(text)) | {"labels": label} for text, label in zip(texts["en"], labels, strict=True)]
    args = TrainingArguments(str(tmp_path), max_steps=3, report_to="none", use_cpu=True, disable_tqdm=True)
    callback = AnchorCallback(processor=wordpiece)
    Trainer(model, args, train_dataset=rows, processing_class=model.processor, callbacks=[callback]).train()
    assert prompt_of(model.processor) == PROMPT
    assert model.encoder.check_anchors() < 1e-3
    plain = [dict(wordpiece(text)) | {"labels": label} for text, label in zip(texts["en"], labels, strict=True)]
    with pytest.raises(SampleError, match=r"processing_class=model\.processor"):
        Trainer(make(prompt=PROMPT), args, train_dataset=plain, processing_class=wordpiece).train()


def test_a_saved_model_keeps_its_prompt(make, texts, tmp_path):
    model = make(prompt=PROMPT)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (loaded.config.encoder.prompt, prompt_of(loaded.processor)) == (PROMPT, PROMPT)
    assert torch.equal(loaded.encoder.encode(texts["en"]), model.encoder.encode(texts["en"]))
    found = pipeline("text-classification", model=str(tmp_path))(texts["en"][0])[0]
    with torch.no_grad():
        logits = model(**model.processor(texts["en"][:1], return_tensors="pt")).logits
    assert found["score"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    part = RelativeModel.from_pretrained(tmp_path)
    assert torch.equal(part.encode(texts["en"]), model.encoder.encode(texts["en"]))


def test_an_upload_whose_tokenizer_lost_the_prompt_gets_it_back(make, texts, wordpiece, tmp_path):
    model = make(prompt=PROMPT)
    model.save_pretrained(tmp_path)
    wordpiece.save_pretrained(tmp_path)  # as a Trainer does with the tokenizer that it was given
    loaded = RelativeModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.encode(texts["en"]), model.encoder.encode(texts["en"]))
    with pytest.raises(SampleError, match=r"tokenizer=model\.processor"):
        pipeline("text-classification", model=str(tmp_path))(texts["en"][0])


@pytest.mark.parametrize(("there", "here"), [(PROMPT, None), (None, PROMPT), ("passage: ", PROMPT)])
def test_weights_of_another_prompt_are_refused(make, there, here):
    with pytest.raises(ConfigurationError, match=rf"prompt {there or ''} there and {here or ''} here"):
        make(prompt=here).load_state_dict(make(prompt=there).state_dict())


def test_an_upload_whose_configuration_was_given_another_prompt_is_refused(make, tmp_path):
    make(prompt=PROMPT).save_pretrained(tmp_path)
    for file in (tmp_path / "config.json", tmp_path / "encoder" / "config.json"):
        file.write_text(file.read_text("utf-8").replace(PROMPT, "passage: "), "utf-8")
    with pytest.raises(UploadIntegrityError, match=r"prompt query:  there and passage:  here"):
        RelativeModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_tokenizer_that_has_a_prompt_already_brings_it(make_bert, anchors, wordpiece):
    bert = make_bert(vocab_size=len(wordpiece))
    prompted = with_prompt(wordpiece, PROMPT)
    encoder = RelativeModel.from_encoder(bert, anchors.view("en"), prompted)
    assert (encoder.config.prompt, encoder.processor) == (PROMPT, prompted)
    bare = RelativeModel.from_encoder(bert, anchors.view("en"), prompted, prompt="")
    assert (bare.config.prompt, prompt_of(bare.processor)) == (None, None)
    by_config = RelativeModel.from_encoder(bert, anchors.view("en"), wordpiece, config=RelativeConfig(prompt=PROMPT))
    assert torch.equal(by_config.anchors_AD, encoder.anchors_AD)


def test_a_decoder_takes_an_encoder_with_a_prompt(make, make_bert, anchors, texts, wordpiece):
    decoder = make(seed=1).decoder
    bert = make_bert(2, vocab_size=len(wordpiece))
    model = stitch(bert, decoder, view="fr", processor=wordpiece, prompt=PROMPT)
    assert (model.config.encoder.prompt, prompt_of(model.processor)) == (PROMPT, PROMPT)
    expected = RelativeModel.from_encoder(bert, anchors.view("fr"), wordpiece, prompt=PROMPT)
    assert torch.equal(model.encoder.anchors_AD, expected.anchors_AD)
    again = stitch(model, decoder, prompt=PROMPT)  # an encoder brings its own
    assert torch.equal(again.encoder.encode(texts["fr"]), expected.encode(texts["fr"]))
    with pytest.raises(StitchingError, match=r"with the prompt 'query: ', but prompt='passage: ' was given"):
        stitch(model, decoder, prompt="passage: ")


def test_an_exported_program_takes_what_the_saved_tokenizer_makes_of_plain_texts(make, texts, tmp_path):
    model = make(prompt=PROMPT)
    model.processor.save_pretrained(tmp_path)
    inputs = AutoTokenizer.from_pretrained(tmp_path)(texts["en"][:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        x_BD = model.encoder.encode(texts["en"][:5])
        expected = model.decoder(relative_embeds=model.encoder.projection(x_BD)).logits
    torch.testing.assert_close(export_program(model).module()(**inputs), expected, atol=1e-4, rtol=1e-4)


def test_a_processor_that_holds_a_tokenizer_is_left_as_it_is_and_a_copy_adds_the_prompt():
    holder = CLIPProcessor(image_processor(16), TOKENIZERS["bytes of RoBERTa"]())
    prompted = with_prompt(holder, "a photo of ")
    written = holder(text=["a photo of a small cat"])["input_ids"]
    assert prompted(text=["a small cat"])["input_ids"] == written
    assert (prompt_of(holder), prompt_of(prompted)) == (None, "a photo of ")


def test_texts_alone_have_prompts(images):
    view = AnchorSet(list("abcdefgh"), {"image": images}).view()
    conv = ConvEncoder(ConvEncoderConfig(image_size=16, widths=[8, 16]))
    with pytest.raises(
        ConfigurationError, match=r"prompt='query: ' needs an encoder of texts, but this one reads images"
    ):
        RelativeModel.from_encoder(conv, view, image_processor(16), prompt=PROMPT)


@pytest.mark.parametrize("field", [{"prompt": 3}, {"prompt_ids": "no"}, {"prompt_ids": []}, {"prompt_ids": [-1]}])
def test_a_prompt_that_has_no_meaning_is_refused(field):
    with pytest.raises((ConfigurationError, TypeError), match="prompt"):
        RelativeConfig.from_dict(RelativeConfig(**field).to_dict()).check()


def test_the_card_names_the_prompt(make):
    assert "prompt 'query: '" in make(prompt=PROMPT).make_card("me/x").text
    assert "prompt" not in make().make_card("me/x").text.split("Encoder")[1].split("\n")[0]


# -- the files of sentence-transformers


@pytest.fixture
def folder(make_bert, wordpiece, tmp_path) -> Path:
    make_bert(vocab_size=len(wordpiece)).save_pretrained(tmp_path / "e5")
    wordpiece.save_pretrained(tmp_path / "e5")
    return tmp_path / "e5"


def lay(folder: Path, **content: Any) -> None:
    (folder / SENTENCE_TRANSFORMERS_FILE).write_text(json.dumps(content), "utf-8")


PROMPTS = {"query": PROMPT, "document": "passage: "}


def test_the_default_prompt_of_sentence_transformers_is_found(folder, anchors, texts, caplog):
    lay(folder, prompts=PROMPTS, default_prompt_name="query", model_type="SentenceTransformer")
    encoder = RelativeModel.from_encoder(folder, anchors.view("en"))
    assert (encoder.config.prompt, prompt_of(encoder.processor)) == (PROMPT, PROMPT)
    assert RelativeModel.from_encoder(folder, anchors.view("en"), prompt="passage: ").config.prompt == "passage: "
    assert RelativeModel.from_encoder(folder, anchors.view("en"), prompt="").config.prompt is None
    assert "prompt" not in caplog.text


def test_prompts_without_a_default_are_named_and_none_is_used(folder, anchors, caplog):
    lay(folder, prompts=PROMPTS, default_prompt_name=None)
    with caplog.at_level("WARNING"):
        encoder = RelativeModel.from_encoder(folder, anchors.view("en"))
    assert encoder.config.prompt is None
    assert "query 'query: ', document 'passage: '" in caplog.text
    assert "prompt='query: '" in caplog.text
    caplog.clear()
    RelativeModel.from_encoder(folder, anchors.view("en"), prompt="")
    assert "prompts" not in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        {"prompts": {"query": "", "document": None}, "default_prompt_name": None},
        {"prompts": {"query": ""}, "default_prompt_name": "query"},
        {"prompts": PROMPTS, "default_prompt_name": "query", "model_type": "CrossEncoder"},
        {"prompts": None},
        {"prompts": ["query: "], "default_prompt_name": 3},
        {"similarity_fn_name": "cosine"},
    ],
)
def test_files_that_ask_for_no_prompt_give_none(content, folder, anchors, caplog):
    lay(folder, **content)
    assert RelativeModel.from_encoder(folder, anchors.view("en")).config.prompt is None
    assert "prompt" not in caplog.text


def test_a_damaged_file_is_told_and_gives_no_prompt(folder, anchors, caplog):
    (folder / SENTENCE_TRANSFORMERS_FILE).write_text("{", "utf-8")
    assert RelativeModel.from_encoder(folder, anchors.view("en")).config.prompt is None
    assert re.search(r"Could not read whether .* needs a prompt.*is not valid JSON.*prompt=''", caplog.text)


def test_a_prompt_is_found_on_the_hub_and_travels_with_the_push(folder, make, anchors, texts, new_repo_id, hub):
    lay(folder, prompts=PROMPTS, default_prompt_name="query")
    base, name = new_repo_id(), new_repo_id()
    HfApi().create_repo(base)
    HfApi().upload_folder(repo_id=base, folder_path=folder)
    model = stitch(base, make(seed=1).decoder, view="en")
    assert model.config.encoder.prompt == PROMPT
    model.push_to_hub(name)
    pulled = RelativeModelForSequenceClassification.from_pretrained(name)
    assert torch.equal(pulled.encoder.encode(texts["en"]), model.encoder.encode(texts["en"]))
    assert prompt_of(AutoTokenizer.from_pretrained(name)) == PROMPT
    RelativeDecoder.from_pretrained(name)
