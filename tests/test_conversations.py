"""Conversations as samples: lists of messages, which a tokenizer's chat template turns into texts."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from training import tiny_trainer
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast, pipeline

import hf_relreps_cli
from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForSequenceClassification,
    compatibility,
    stitch,
)
from hf_relreps.app.pairs import Pair
from hf_relreps.caching import encode_dataset
from hf_relreps.conversations import special_tokens, texts_of, tokenize
from hf_relreps.errors import AnchorIntegrityError, ConfigurationError, SampleError
from hf_relreps.exporting import export_program
from hf_relreps.samples import batches, check_samples, digest_of_samples
from hf_relreps.trust import Judge


CHAT = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}"
STRICT = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate') }}{% endif %}{{ m.content }} {% endfor %}"""
THINGS = {"animal": "cat dog bird horse", "food": "bread soup cake rice", "vehicle": "train car boat plane"}
ANSWERS = "yes no maybe later".split()


def talk(thing: str, answer: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"do you like the {thing}"},
        {"role": "assistant", "content": f"{answer} I do"},
    ]


KINDS = [(thing, kind) for kind, things in enumerate(THINGS.values()) for thing in things.split()]
ROWS = [(talk(thing, answer), kind) for (thing, kind), answer in product(KINDS, ANSWERS)]
TALKS, LABELS = [conversation for conversation, _ in ROWS], [kind for _, kind in ROWS]
NAMES: dict[str, Any] = {"id2label": dict(enumerate(THINGS)), "label2id": {kind: i for i, kind in enumerate(THINGS)}}


def chat_tokenizer(template: str | None = CHAT) -> PreTrainedTokenizerFast:
    """A word is a token; <s> goes before every text unless the caller says otherwise."""
    marks = ["<pad>", "<s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    words = dict.fromkeys(word for messages in TALKS for message in messages for word in message["content"].split())
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*marks, *words])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "unk_token": "<unk>", "model_max_length": 64}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=marks[3:], model_input_names=inputs, **special,
        chat_template=template,
    )  # fmt: skip


def llama(tokenizer: Any, seed: int = 0) -> LlamaModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaModel(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def anchors():
    rows = Dataset.from_dict({"en": TALKS, "id": [str(i) for i in range(len(TALKS))]})
    return AnchorSet.from_dataset(rows, k=16, views="en", id_column="id")


@pytest.fixture(scope="module")
def probe(anchors, tokenizer):
    """An encoder of conversations and a decoder that was fitted behind it."""
    encoder = RelativeModel.from_encoder(llama(tokenizer), anchors, tokenizer)
    r_NR = encoder.projection(encoder.encode(TALKS))
    return encoder, RelativeDecoder.fit_ridge(r_NR, torch.tensor(LABELS), encoder, **NAMES)


def labels_of(answers: list[dict[str, Any]]) -> list[int]:
    return [NAMES["label2id"][answer["label"]] for answer in answers]


def share_right(answers: list[dict[str, Any]]) -> float:
    return sum(found == label for found, label in zip(labels_of(answers), LABELS, strict=True)) / len(LABELS)


# -- what a conversation is


def test_a_conversation_is_told_from_other_samples():
    assert check_samples(TALKS[:2], "samples") == "conversation"
    with pytest.raises(SampleError, match=r"samples\[1\] is 'a' \(str\), expected conversation"):
        check_samples([TALKS[0], "a"], "samples")
    with pytest.raises(SampleError, match=r"words_of"):
        check_samples([["a", "b"]], "samples")
    with pytest.raises(SampleError, match=r"samples\[0\] is one message \('user'\).* pass \[messages\]"):
        check_samples(TALKS[0], "samples")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"samples\[1\] is a conversation without messages"),
        ([{"role": "human", "content": "a"}], r"samples\[1\]\[0\] has the role 'human', expected one of system"),
        ([TALKS[0][0], {"role": "user"}], r"samples\[1\]\[1\] has role, expected .*; content is missing"),
        ([{"from": "human", "value": "a"}], r"samples\[1\]\[0\] has from, value, expected .*; role is missing"),
        ([{"role": "user", "content": None}], r"samples\[1\]\[0\] has role, content, .*; content is missing"),
        (
            [{"role": "user", "content": [{"text": "a"}]}],
            r"samples\[1\]\[0\] has a list as content",
        ),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], r"samples\[1\]\[0\] also has tool_calls"),
        ([{"role": "user", "content": " "}], r"samples\[1\] is a conversation in which nobody says anything"),
        ([{"role": "user", "content": "\ud800"}], r"samples\[1\]\[0\] is .* half of a surrogate pair"),
        ([TALKS[0][0], "a"], r"samples\[1\]\[1\] is 'a' \(str\), expected a message"),
    ],
)
def test_a_conversation_that_is_none_is_refused_with_its_place(messages, message):
    with pytest.raises(SampleError, match=message):
        check_samples([TALKS[0], messages], "samples")


def test_the_digest_is_that_of_roles_and_contents_in_their_order():
    one, other = TALKS[0], TALKS[1]
    assert digest_of_samples([one]) == digest_of_samples([[{**m, "name": None} for m in one]])
    different = [[one], [one[::-1]], [other], [one[:1]], [[{**one[0], "role": "system"}, one[1]]], [one[:1], one[1:]]]
    assert len({digest_of_samples(samples) for samples in different}) == len(different)


# -- templates and tokens


def test_tokens_are_those_of_the_chat_template(tokenizer):
    ((rows, inputs),) = batches(TALKS[:3], tokenizer, 3)
    for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
        expected = tokenizer.apply_chat_template(TALKS[row], tokenize=True)["input_ids"]
        assert ids[mask.bool()].tolist() == expected
        assert expected.count(tokenizer.bos_token_id) == 1
    assert tokenize(TALKS[:2], tokenizer)["input_ids"] == [
        tokenizer.apply_chat_template(messages)["input_ids"] for messages in TALKS[:2]
    ]


@pytest.mark.parametrize(
    ("template", "adds"),
    [
        (CHAT, False),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}", True),
        ("<s>{% for m in messages %}{{ m.content }} {% endfor %}", False),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", False),
    ],
)
def test_the_tokenizer_adds_its_special_tokens_where_the_template_writes_none(template, adds):
    tokenizer = chat_tokenizer(template)
    assert special_tokens(tokenizer) == {"add_special_tokens": adds}
    ((_, inputs),) = batches(TALKS[:1], tokenizer, 1)
    first, second = inputs["input_ids"][0, :2].tolist()
    begins = template.startswith(("<s>", "{{ bos_token }}"))
    assert (first == tokenizer.bos_token_id) == (adds or begins) and second != tokenizer.bos_token_id


def test_the_template_may_lie_in_the_processor_that_holds_the_tokenizer_and_have_a_name(tokenizer):
    class Processor:
        tokenizer = chat_tokenizer(None)
        chat_template = CHAT

    assert texts_of(TALKS[:1], Processor()) == texts_of(TALKS[:1], tokenizer)
    named = chat_tokenizer(None)
    named.chat_template = {"default": CHAT, "tool_use": "{{ 1 / 0 }}"}
    assert texts_of(TALKS[:1], named) == texts_of(TALKS[:1], tokenizer)


def test_without_a_template_the_error_says_how_to_set_one_that_works():
    tokenizer = chat_tokenizer(None)
    with pytest.raises(SampleError, match=r"no chat template .*tokenizer\.chat_template = ") as error:
        list(batches(TALKS[:1], tokenizer, 1))
    line = str(error.value).partition("set one: ")[2].removesuffix(".")
    exec(line, {"tokenizer": tokenizer})
    assert texts_of(TALKS[:1], tokenizer) == ["user: do you like the cat\nassistant: yes I do\n"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (STRICT, r"refuses samples\[1\], 'assistant: yes.*: Roles must alternate"),
        ("{{ 1 // 0 }}", r"refuses samples\[0\].*division"),
        ("{% for m in %}", r"refuses samples\[0\]"),
        ("{{ messages.clear() }}", r"refuses samples\[0\]"),
        (" ", r"makes an empty text of samples\[0\]"),
    ],
)
def test_a_template_that_fails_is_named_with_the_sample(template, message):
    with pytest.raises(SampleError, match=message):
        list(batches([TALKS[0], TALKS[0][::-1]], chat_tokenizer(template), 2))


# -- anchors


def test_anchors_of_conversations_are_saved_and_keep_their_identity(anchors, tmp_path):
    anchors.save_pretrained(tmp_path)
    loaded = AnchorSet.from_pretrained(tmp_path)
    assert loaded.view().samples == anchors.view().samples and loaded.view().digest == anchors.view().digest
    assert loaded.fingerprint == anchors.fingerprint
    assert (anchors.view().modality, anchors.view().read_as) == ("conversation", "text")
    assert repr(anchors.view()).startswith("AnchorView('en', 16 conversations")
    other = AnchorSet(anchors.ids, {"en": anchors.view().samples}).add_view("plain", [str(i) for i in range(16)])
    assert other.fingerprint == anchors.fingerprint and other.view("plain").modality == "text"
    assert anchors.summary(1)["rows"][0]["en"].startswith("user: do you like the ")
    assert AnchorSet.from_dataset(Dataset.from_dict({"en": TALKS}), k=4, views="en").ids


def test_data_sets_read_the_table_of_anchors(anchors, tmp_path):
    anchors.save_pretrained(tmp_path)
    rows = load_dataset("parquet", data_files=str(tmp_path / "anchors/anchors.parquet"), split="train")
    assert rows[0]["en"] == anchors.view().samples[0]


def test_a_table_with_an_unknown_role_is_refused(anchors, tmp_path):
    import pyarrow.parquet as pq

    anchors.save_pretrained(tmp_path)
    file = tmp_path / "anchors/anchors.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[3]["en"][0]["role"] = "stranger"
    pq.write_table(table.from_pylist(rows, schema=table.schema), file)
    with pytest.raises(AnchorIntegrityError, match=r"\[3\]\[0\] has the role 'stranger'"):
        AnchorSet.from_pretrained(tmp_path)


def test_a_row_of_a_dataset_that_is_no_conversation_is_named():
    rows = Dataset.from_dict({"en": [TALKS[0], []]})
    with pytest.raises(SampleError, match=r"column 'en'\[1\] is a conversation without messages"):
        AnchorSet.from_dataset(rows, k=2, views="en")


# -- encoders and decoders


def test_an_encoder_describes_a_conversation_as_in_any_batch_and_as_its_text(probe, tokenizer):
    encoder, _ = probe
    assert (encoder.config.modality, encoder.config.pooling) == ("text", "last")
    together = encoder.encode(TALKS)
    alone = torch.cat([encoder.encode([messages]) for messages in TALKS[:5]])
    torch.testing.assert_close(together[:5], alone, atol=1e-5, rtol=1e-4)
    inputs = tokenizer.apply_chat_template(TALKS[0], return_tensors="pt", return_dict=True)
    with torch.no_grad():
        expected_1TD = encoder.backbone(**inputs).last_hidden_state
    torch.testing.assert_close(alone[:1], expected_1TD[:, -1], atol=1e-5, rtol=1e-4)


def test_a_probe_answers_alone_in_a_pipeline_and_from_the_hub(probe, anchors, new_repo_id):
    encoder, decoder = probe
    model = stitch(encoder, decoder)
    answers = model.classify(TALKS)
    assert share_right(answers) > 0.9
    assert [one["label"] for one in Judge(model)(TALKS)] == [one["label"] for one in answers]
    run = pipeline("text-classification", model=model, tokenizer=model.processor)
    found = run(texts_of(TALKS, model.processor), **special_tokens(model.processor))
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in answers], abs=1e-4)
    name = new_repo_id()
    model.push_to_hub(name)
    pulled = RelativeModelForSequenceClassification.from_pretrained(name)
    assert pulled.classify(TALKS[:3])[0]["score"] == pytest.approx(answers[0]["score"], abs=1e-4)
    assert pulled.anchors.view().samples == anchors.view().samples
    code = model.make_card(name).text.split("```python\n")[1].split("```")[0]
    assert "classify(" in code
    exec(code, {})
    assert RelativeDecoder.from_pretrained(name, subfolder="decoder").config.modality == "text"
    both = stitch(name, {"kind": decoder, "again": decoder})
    assert labels_of(both.classify(TALKS)["again"]) == labels_of(answers)


def test_a_decoder_reads_conversations_behind_another_model_and_template(probe, anchors):
    _, decoder = probe
    other = chat_tokenizer("{% for m in messages %}{{ m.role }} says {{ m.content }} {% endfor %}")
    model = stitch(llama(other, seed=5), decoder, view="en", processor=other)
    assert model.encoder.config.space == decoder.config.space
    assert len(model.classify(TALKS)) == len(TALKS)  # random weights: what is asked is whether they fit


def test_pairs_may_be_conversations(probe, anchors):
    own, decoder = probe
    samples = anchors.view().samples * 10
    report = compatibility(own, decoder, own_encoder=own, pairs=(samples, samples))
    assert report.expected_agreement == 1


def test_texts_and_conversations_meet_in_one_encoder(probe, tokenizer):
    """Its anchors are conversations; a text that says the same in the same tokens lies in the same place."""
    encoder, _ = probe
    text = texts_of(TALKS[:1], tokenizer)[0].removeprefix("<s>")
    torch.testing.assert_close(encoder.encode([text]), encoder.encode(TALKS[:1]), atol=1e-5, rtol=1e-4)


def test_a_classifier_of_conversations_trains_with_trainer(anchors, tmp_path):
    tokenizer = chat_tokenizer()
    model = RelativeModelForSequenceClassification.from_encoder(llama(tokenizer, 4), anchors, tokenizer, **NAMES)
    data = Dataset.from_dict({"messages": TALKS, "labels": LABELS})
    rows = data.map(
        lambda batch: tokenize(batch["messages"], model.processor), batched=True, remove_columns="messages"
    )
    trainer = tiny_trainer(model, model.processor, rows, tmp_path, AnchorCallback(anchors.view()), max_steps=20)
    trainer.train()
    assert model.encoder.check_anchors() < 1e-3
    assert share_right(model.classify(TALKS)) > 0.9
    assert torch.equal(
        torch.from_numpy(trainer.predict(rows).predictions.argmax(-1)), torch.tensor(labels_of(model.classify(TALKS)))
    )


def test_a_dataset_of_conversations_is_encoded_again_for_another_template(anchors, tmp_path):
    tokenizer = chat_tokenizer()
    encoder = RelativeModel.from_encoder(llama(tokenizer), anchors, tokenizer)
    rows = Dataset.from_dict({"messages": TALKS[:6]})
    encoded = encode_dataset(encoder, rows, "messages", cache_dir=tmp_path)["relative_embeds"][:]
    torch.testing.assert_close(encoded, encoder.projection(encoder.encode(TALKS[:6])), atol=1e-5, rtol=1e-4)
    encoder.processor.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    again = encode_dataset(encoder, rows, "messages", cache_dir=tmp_path)["relative_embeds"][:]
    assert not torch.allclose(encoded, again, atol=1e-3)


def test_conversations_are_refused_where_other_samples_or_prompts_are_read(anchors, tokenizer):
    with pytest.raises(ConfigurationError, match=r"prompt='query: ' goes before texts, and the anchors are conv"):
        RelativeModel.from_encoder(llama(tokenizer), anchors, tokenizer, prompt="query: ")
    texts = AnchorSet(["a", "b"], {"en": ["do you like the cat", "no I do"]})
    encoder = RelativeModel.from_encoder(llama(tokenizer), texts, tokenizer, prompt="do ")
    with pytest.raises(SampleError, match=r"samples\[0\] is a list, as conversations are, .* reads texts after 'do '"):
        encoder.encode(TALKS)


@pytest.mark.slow
def test_a_probe_is_exported(probe):
    model = stitch(*probe)
    inputs = model.processor.apply_chat_template(TALKS[:4], padding=True, return_tensors="pt", return_dict=True)
    program = export_program(model)
    torch.testing.assert_close(program.module()(**inputs), model(**inputs).logits, atol=1e-4, rtol=1e-3)


# -- elsewhere


def test_the_command_line_chooses_and_shows_conversations(tmp_path, capsys, monkeypatch):
    file, folder = tmp_path / "talks.jsonl", str(tmp_path / "anchors")
    file.write_text("\n".join(json.dumps({"messages": messages}) for messages in TALKS), "utf-8")
    chosen = ["anchors", "choose", str(file), "-k", "5", "--view", "en=messages", "--output", folder]
    for arguments in (chosen, ["anchors", "show", folder, "--rows", "2"]):
        monkeypatch.setattr("sys.argv", ["hf-relreps", *arguments])
        with pytest.raises(SystemExit) as stop:
            hf_relreps_cli.main()
        assert not stop.value.code
    shown = capsys.readouterr().out
    assert "en (conversation)" in shown and shown.count("user: do you like the ") >= 2
    assert len(AnchorSet.from_pretrained(folder)) == 5


def test_the_app_begins_without_an_example_where_anchors_are_conversations(probe, tmp_path):
    stitch(*probe).save_pretrained(tmp_path)
    pair = Pair.load(str(tmp_path), str(tmp_path))
    assert pair.example is None
    assert pair.answers("do you like the cat")
