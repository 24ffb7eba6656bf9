"""Small language models and probes of the benchmark: apart, read by depth as an encoder reads them, and steered."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.assets.texts import LANGUAGES
from benchmarks.probes import __main__ as probes
from benchmarks.probes import steering
from benchmarks.probes.data import ANSWERS, CLASSES, ROLES, SECTIONS, load
from benchmarks.probes.language_models import KINDS, POOLINGS, rows_of, states_of, trained
from hf_relreps import AnchorSet, RelativeModel
from hf_relreps.conversations import texts_of


NOUNS = {"en": "tool", "fr": "outil", "it": "strumento", "da": "redskab", "de": "Werkzeug"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    draw = np.random.default_rng(0)
    packages = []
    for i in range(600):
        section, role = draw.choice(SECTIONS), draw.choice(ROLES)
        texts = {name: f"{noun} {i} {section} {role}. {noun} {section} again" for name, noun in NOUNS.items()}
        packages.append({"section": section, "tags": f"role::{role}, made-of::iron", **texts})
    pq.write_table(pa.Table.from_pylist(packages), folder / "debian_descriptions.parquet")
    kinds = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")  # typos: ignore
    questions = [
        {"split": split, "coarse": kinds[i % 6], "fine": "a", "text": f"{split} {kinds[i % 6]} what is it {i} ?"}
        for split in ("train", "test")
        for i in range(120)
    ]
    pq.write_table(pa.Table.from_pylist(questions), folder / "trec.parquet")
    sizes = {"rows": 100, "epochs": 1, "anchors": 40, "fit": 60, "test": 40, "seeds": 1}
    return Namespace(data=folder, cache=folder / "cache", output=folder, **sizes)


@pytest.fixture(scope="module")
def tiny():
    """The same kinds of models, as small as they may be."""
    with pytest.MonkeyPatch.context() as patch:
        for name, how in KINDS.items():
            sizes = how.sizes | {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
            patch.setitem(KINDS, name, how._replace(sizes=sizes, vocabulary=200))
        yield


@pytest.fixture(scope="module")
def readers(arguments, tiny):
    data = load(arguments, 0, 2)
    made = [
        trained(kind, talks, 0, arguments, arguments.cache / kind)
        for kind, talks in zip(KINDS, data.training, strict=True)
    ]
    return [probes.Reader(kind, *parts, data) for kind, parts in zip(KINDS, made, strict=True)]


def test_no_model_is_trained_on_what_probes_read_or_another_model_is_trained_on(arguments):
    one, other = (load(arguments, seed, 2) for seed in (0, 1))
    numbers = [{talk[0]["content"].split()[1] for talk in talks} for talks in one.training]
    assert all(numbers) and not numbers[0] & numbers[1]
    asked = [row for part in (one.anchors, one.fit, one.test) for row in part]
    assert not {row.talk[0]["content"].split()[1] for row in asked if "language" in row.classes} & set.union(*numbers)
    texts = [[str(row.talk) for row in part] for part in (one.anchors, one.fit, one.test)]
    assert len({text for part in texts for text in part}) == sum(map(len, texts))
    assert one.training == other.training and one.test == other.test and one.anchors != other.anchors
    assert {probe for row in asked for probe in row.classes} == set(CLASSES)
    for talks in one.training:  # each model hears all languages and is asked for both
        assert {talk[0]["content"].split()[0] for talk in talks} == set(NOUNS.values())
        assert {talk[1]["content"] for talk in talks} == {*ANSWERS["language"], *ANSWERS["section"]}


def test_classes_are_those_of_the_text(arguments):
    for talk, classes in load(arguments, 0, 2).test:
        said = talk[0]["content"]
        assert ("question" in classes) == (classes.get("form") == 1)
        if "question" in classes:
            assert CLASSES["question"][classes["question"]] in said
        else:
            noun, _, section, role = said.split()
            assert NOUNS[LANGUAGES[classes["language"]]] == noun
            assert (SECTIONS[classes["section"]], ROLES[classes["role"]]) == (section, role)


def test_an_answer_is_one_token_and_the_assistant_begins_where_a_state_is_read(readers):
    for reader in readers:
        mark = KINDS[reader.name].marks[1]
        asked = texts_of([reader.data.test[0].talk], reader.tokenizer)[0]
        assert reader.tokenizer.tokenize(asked)[-1].endswith(mark)
        for answer in (*ANSWERS["section"], *ANSWERS["language"]):
            told = [*reader.data.test[0].talk, {"role": "assistant", "content": answer}]
            assert answer in reader.tokenizer.tokenize(texts_of([told], reader.tokenizer)[0])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_hidden_states_are_what_an_encoder_reads_at_that_layer(readers, pooling):
    for reader in readers:
        talks = [asked.talk for asked in reader.data.test[:8]]
        anchors = AnchorSet([str(i) for i in range(8)], {"talks": talks})
        states = states_of(reader.model, reader.tokenizer, talks)[pooling]
        for layer in range(1, states.shape[1]):
            encoder = RelativeModel.from_encoder(
                reader.model.base_model, anchors, reader.tokenizer, layer=layer, pooling=pooling
            )
            torch.testing.assert_close(states[:, layer], encoder.anchors_AD, atol=1e-5, rtol=1e-4)


def test_the_models_learn_the_answers(readers):
    for reader in readers:
        told = [*reader.data.test[0].talk, {"role": "assistant", "content": "<doc>"}]
        (row,) = rows_of(reader.tokenizer, [told])
        assert [reader.tokenizer.decode([i]) for i in row["labels"] if i != -100] == ["<doc>"]


def test_one_state_is_replaced_and_all_below_it_stays(readers):
    for reader in readers:
        talks = [asked.talk for asked in reader.data.test]
        kinds_VC, depth = steering.tokens_of(reader.tokenizer, "section"), reader.depth(1)
        x_ND = states_of(reader.model, reader.tokenizer, talks)["last"][:, depth]
        plain_NC = steering.says(reader.model, reader.tokenizer, talks, kinds_VC)
        same_NC = steering.says(reader.model, reader.tokenizer, talks, kinds_VC, depth, x_ND)
        torch.testing.assert_close(same_NC, plain_NC)
        other_NC = steering.says(reader.model, reader.tokenizer, talks, kinds_VC, depth, x_ND.flip(0))
        assert not torch.allclose(other_NC, plain_NC)
        torch.testing.assert_close(plain_NC.sum(1), torch.ones(len(talks)))


def test_a_push_has_its_length_and_raises_the_class_and_nothing_is_left_of_what_is_removed():
    torch.manual_seed(0)
    x_ND, weight_CD = torch.randn(6, 8), torch.randn(3, 8)
    own_N, target_N = torch.tensor([0, 1, 2] * 2), torch.tensor([1, 2, 0] * 2)
    where_NCD = steering.gradients(lambda x: x @ weight_CD.T, x_ND)
    torch.testing.assert_close(where_NCD, (weight_CD - weight_CD.mean(0)).expand(6, -1, -1))
    moved_ND = steering.pushed(x_ND, where_NCD, own_N, target_N, 0.5)
    torch.testing.assert_close((moved_ND - x_ND).norm(dim=1), 0.5 * x_ND.norm(dim=1))
    each_N = torch.arange(6)
    gained_NC = (moved_ND - x_ND) @ weight_CD.T
    assert (gained_NC[each_N, target_N] > gained_NC[each_N, own_N]).all()
    logits_NC = steering.without(x_ND, where_NCD) @ (weight_CD - weight_CD.mean(0)).T
    torch.testing.assert_close(logits_NC, logits_NC.mean(0).expand(6, -1), atol=1e-5, rtol=1e-4)


def test_the_whole_is_measured_and_laid_out(readers, arguments):
    with torch.no_grad():
        found = probes.read_by_depth(readers, {"llama": readers[0]})
        cell = probes.steered(*readers, "section", steering.tokens_of(readers[0].tokenizer, "section"), 1, 0)
    assert len([name for name in found["role"] if ", " in name]) == 5
    assert set(found["role"]["mean, 1"]["stitched"]) == {"llama > neox", "neox > llama"}
    assert found["language"]["mean, 0"]["own"]["llama"] > 0.8 > found["language"]["chance"]
    assert cell["push"]["stitched"] != cell["push"]["before"] and cell["remove"]["random"] > 0
    lines = [probes.table([found]), probes.steering_table([{"section, 1/2": {"llama": cell}}])]
    assert [len(text.splitlines()) for text in lines] == [2 + 5 * 5, 2 + 2]
