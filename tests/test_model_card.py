"""Cards: what they say, that their code runs, and that a person's words stay."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, hf_hub_download

from hf_relreps import AnchorSet, RelativeConfig, stitch
from hf_relreps.evaluation.stitching_matrix import StitchingMatrix
from hf_relreps.hub import write_card
from hf_relreps.model_card import CardFacts, anchors_card, merged, model_card


MATRIX = StitchingMatrix(
    encoders=("me/en", "me/fr"),
    decoders=("me/en", "me/fr"),
    scores=np.array([[0.91, 0.87], [0.86, 0.92]]),
    own_pairs={"me/en": "me/en", "me/fr": "me/fr"},
    absolute=np.array([[0.9, 0.31], [np.nan, 0.9]]),
    chance=0.2,
    guess="majority class",
    metric="f1",
    title="Macro-F1",
    greater_is_better=True,
    n=1234,
)


def code_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def card_of(repo_id, repo_type="model"):
    return Path(hf_hub_download(repo_id, "README.md", repo_type=repo_type)).read_text("utf-8")


def facts_of(text):
    return yaml.safe_load(text.split("---")[1])


@pytest.mark.any_hub
@pytest.mark.parametrize("kind", ["whole", "encoder", "decoder", "anchors"])
def test_the_code_in_a_card_runs(repo_id, make_model, anchors, capsys, kind):
    model = make_model(0)
    thing = {"whole": model, "encoder": model.encoder, "decoder": model.decoder, "anchors": anchors}[kind]
    thing.push_to_hub(repo_id)

    card = card_of(repo_id, "dataset" if kind == "anchors" else "model")
    blocks = code_blocks(card)

    assert len(blocks) == (2 if kind == "whole" else 1)
    for block in blocks:
        assert repo_id in block
        exec(compile(block, f"card of {kind}", "exec"), {})
    expected = {"whole": "score", "encoder": "torch.Size([1, 20])", "decoder": repo_id, "anchors": "20 anchors"}
    assert expected[kind] in capsys.readouterr().out


@pytest.mark.any_hub
def test_the_hub_knows_what_a_card_says(repo_id, make_model, anchors):
    model = make_model(0)
    model.config.encoder.base_model_name_or_path = "google-bert/bert-base-uncased"
    model.card_facts = CardFacts(
        license="mit", datasets=["me/animals"], metrics={"accuracy": 0.9}, evaluated_on="me/animals"
    )

    model.push_to_hub(repo_id, tags=["mine"])

    info = HfApi().model_info(repo_id)
    assert {
        *("relative-representations", "hf_relreps", f"relreps-anchors:{anchors.fingerprint[:16]}", "mine", "en"),
        *("license:mit", "dataset:me/animals", "base_model:google-bert/bert-base-uncased", "arxiv:2209.15430"),
    } <= set(info.tags)
    assert info.pipeline_tag == "text-classification"
    (result,) = info.card_data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("accuracy", 0.9, "me/animals")


@pytest.mark.parametrize(
    ("part", "library", "task"),
    [
        ("whole", "transformers", "text-classification"),
        ("encoder", "hf_relreps", "feature-extraction"),
        ("decoder", "hf_relreps", "text-classification"),
    ],
)
def test_only_what_a_pipeline_can_run_is_called_a_transformers_model(part, library, task):
    anchors = {"num_anchors": 1, "fingerprint": "a"}
    whole = RelativeConfig()
    config = {"whole": whole, "encoder": whole.encoder, "decoder": whole.decoder}[part]
    data = model_card("me/x", config.to_dict(), anchors, CardFacts()).data

    assert (data.library_name, data.pipeline_tag) == (library, task)


@pytest.mark.parametrize(
    ("settings", "task", "name"),
    [
        ({"modality": "node"}, "graph-ml", "RelativeModelForNodeClassification"),
        ({"modality": "image", "decoder_type": "image"}, "image-to-image", "RelativeModelForImageReconstruction"),
    ],
)
def test_a_model_that_no_pipeline_runs_is_loaded_by_its_class(settings, task, name):
    config = RelativeConfig(**settings).to_dict()
    card = model_card("me/x", config, {"num_anchors": 1, "fingerprint": "a"}, CardFacts())

    assert (card.data.library_name, card.data.pipeline_tag) == ("hf_relreps", task)
    assert f'model = {name}.from_pretrained("me/x")' in code_blocks(card.text)[0]


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install hf_relreps"),
        ({"url": "file:///home/me/hf_relreps", "dir_info": {"editable": True}}, "pip install hf_relreps"),
        ({"url": "https://git.example/me/relreps.git"}, "pip install hf_relreps"),
        (
            {"url": "https://git.example/me/relreps.git"},
            'pip install "hf_relreps @ git+https://git.example/me/relreps.git@a1b2c3"',
        ),
        ({"url": "https://me:secret@git.example/me/relreps.git"}, "pip install hf_relreps"),
        ({"url": "ssh://git@git.example/me/relreps.git"}, "pip install hf_relreps"),
        (
            {"url": "file:///home/me/hf_relreps", "dir_info": {}},
            'pip install "hf_relreps @ git+https://git.example/our/hf_relreps"',
        ),
        (None, "pip install hf_relreps"),
    ],
    ids=[
        *("an index", "a checkout", "an archive", "git", "git with a token", "git over ssh"),
        *("a checkout with a repository", "an index with a repository"),
    ],
)
def test_a_card_installs_the_library_from_where_its_author_did_if_others_can(
    tmp_path, monkeypatch, request, origin, line
):
    folder = tmp_path / "hf_relreps-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.4\nName: hf_relreps\nVersion: 0.1.0\n")
    if "repository" in request.node.callspec.id:
        with (folder / "METADATA").open("a") as file:
            file.write("Project-URL: Repository, https://git.example/our/hf_relreps\n")
    elif "git" in request.node.callspec.id:
        origin = origin | {"vcs_info": {"vcs": "git", "commit_id": "a1b2c3"}}
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(tmp_path))
    summary = {"num_anchors": 1, "fingerprint": "a"}

    card = model_card("me/x", RelativeConfig().to_dict(), summary, CardFacts())
    assert f"```bash\n{line}\n```" in card.text
    assert f"```bash\n{line}\n```" in anchors_card("me/x", summary | {"views": {"en": "text"}}).text


def test_a_card_installs_what_its_encoder_needs_beside_the_library():
    def installs(config):
        text = model_card("me/x", config.to_dict(), {"num_anchors": 1, "fingerprint": "a"}, CardFacts()).text
        return re.search(r"```bash\n(.*)\n```", text)[1]

    nodes = RelativeConfig(modality="node")
    assert "hf_relreps[graphs]" in installs(nodes) and "hf_relreps[graphs]" in installs(nodes.encoder)
    assert "graphs" not in installs(nodes.decoder)
    assert "hf_relreps[peft]" in installs(RelativeConfig(encoder_adapters={"default": {"peft_type": "LORA"}}))


def test_a_card_says_what_was_expected_of_a_stitch_and_from_how_many_pairs():
    anchors = {"num_anchors": 1, "fingerprint": "a"}
    report = {"expected_ratio": 0.962, "num_pairs": 1300}

    def text(facts):
        return model_card("me/x", RelativeConfig().to_dict(), anchors, facts).text

    told = "keeps 96 % of the macro-F1 that its decoder has with its own encoder, estimated from 1,300 unlabelled"
    assert told in text(CardFacts(expected=report))
    both = text(CardFacts(expected=report, stitching=MATRIX.to_dict()))
    assert both.index(told) < both.index("Every encoder (row)")
    assert "## Stitching" not in text(CardFacts(expected=report | {"expected_ratio": None}))


def test_a_card_names_anchors_training_results_and_the_stitching_matrix(tmp_path, make_model):
    MATRIX.plot(tmp_path / "matrix.png")
    model = make_model(0)
    model.card_facts = CardFacts(
        description="For animals.",
        training={"learning_rate": 5e-5},
        training_log=[{"step": 10, "loss": 0.5}],
        results=[EvalResult("text-classification", "me/d", "D", "f1", 0.75)],
        stitching=MATRIX.to_dict(),
        picture=tmp_path / "matrix.png",
    )
    model.write_card(tmp_path / "card", "me/x")

    card = (tmp_path / "card" / "README.md").read_text("utf-8")
    assert (tmp_path / "card" / "stitching_matrix.png").read_bytes() == (tmp_path / "matrix.png").read_bytes()
    for line in (
        "For animals.",
        "| meaning-0 | small cat here | petit chat ici |",
        "| learning_rate | 5e-05 |",
        "| 10 | 0.5 |",
        "| f1 | 0.75 | D |",
        "| me/en | **0.91** | 0.87 |",
        "| me/fr | - | **0.9** |",
        "own 0.915, stitched 0.865, worst 0.86, ratio 0.9454, absolute stitched 0.31, chance 0.2.",
        "![Stitching matrix](stitching_matrix.png)",
    ):
        assert line in card


def test_samples_and_names_cannot_leave_their_place_in_a_card():
    evil = "a | b <!-- hf_relreps:end anchors --> <script> ``` [x](y)\n# no heading"
    anchors = AnchorSet(["1", "2"], {'en"\n```': [evil, "b"]}, origin={"dataset": evil})
    config = RelativeConfig(anchor_view='en"\n```', num_anchors=2).to_dict()

    text = str(model_card("me/x", config, anchors.summary(), CardFacts()))

    assert text.count("<!-- hf_relreps:end anchors -->") == 1
    assert "<script>" not in text and "\n# no heading" not in text
    assert [compile(block, "card", "exec") for block in code_blocks(text)]


# -- a person's words


@pytest.fixture
def card():
    """A function that makes a new card, each time with the given facts."""

    def make(**facts):
        config = RelativeConfig(num_anchors=2, fingerprint="ab" * 32, anchor_view="en").to_dict()
        return model_card("me/x", config, {"num_anchors": 2, "fingerprint": "ab" * 32}, CardFacts(**facts))

    return make


def test_words_around_our_sections_stay_and_ours_are_written_anew(card):
    first = merged(card(description="Old words of ours."), None)
    edited = first.replace("# x\n", "# My title\n\nMy words.\n").replace("## Licence", "## Licence of ours")

    second = merged(card(description="New words of ours."), edited)

    assert "# My title\n\nMy words." in second and "# x\n" not in second
    assert "New words of ours." in second and "Old words of ours." not in second
    assert "## Licence of ours" not in second
    assert merged(card(description="New words of ours."), second) == second


def test_a_section_whose_comments_were_removed_is_its_readers(card):
    first = merged(card(), None)
    edited = re.sub(r"<!-- hf_relreps:(begin|end) citation -->\n?", "", first).replace("## Citation", "## How to cite")

    second = merged(card(), edited)

    assert second.count("```bibtex") == 1 and "## How to cite" in second


def test_a_section_that_is_new_comes_in_its_place(card):
    second = merged(card(stitching=MATRIX.to_dict()), merged(card(), None))

    order = re.findall(r"^## (\w+)", second, flags=re.MULTILINE)
    assert order == ["Use", "Anchors", "Stitching", "Licence", "Citation"]


def test_a_card_that_was_not_ours_keeps_its_text_before_ours(card):
    second = merged(card(), "---\nlicense: mit\ntags: [theirs]\n---\n\n# Theirs\n\nTheir text.\n")

    data = facts_of(second)
    assert data["license"] == "mit" and "theirs" in data["tags"] and "relative-representations" in data["tags"]
    assert second.index("Their text.") < second.index("## Use")


def test_metadata_of_a_person_stays_and_stale_anchors_go(card):
    first = merged(card(metrics={"accuracy": 0.8}), None)
    edited = first.replace("library_name: transformers", "library_name: other\nlicense: mit\nthumbnail: cat.png")
    edited = edited.replace("relreps-anchors:abababababababab", "relreps-anchors:0000000000000000")

    second = facts_of(merged(card(metrics={"accuracy": 0.9}, license="apache-2.0"), edited))

    assert (second["library_name"], second["license"], second["thumbnail"]) == ("transformers", "mit", "cat.png")
    assert [tag for tag in second["tags"] if "anchors" in tag] == ["relreps-anchors:abababababababab"]
    results = second["model-index"][0]["results"]
    assert [metric["value"] for result in results for metric in result["metrics"]] == [0.9]


def test_a_metric_stands_once_in_a_card_however_often_and_wherever_it_was_told(card):
    first = merged(card(metrics={"accuracy": 0.8}), None)  # as a training pushes it that does not know its data's name
    named = EvalResult("text-classification", "me/animals", "Animals", "accuracy", 0.9, metric_name="Accuracy")

    second = merged(card(metrics={"accuracy": 0.9, "f1": 0.7}, results=[named]), first)

    results = facts_of(second)["model-index"][0]["results"]
    told = [(result["dataset"]["type"], *metric.values()) for result in results for metric in result["metrics"]]
    assert told == [("me/animals", "accuracy", 0.9, "Accuracy"), ("unknown", "f1", 0.7, "f1")]
    assert second.count("| 0.9 |") == 1 and "| 0.8 |" not in second
    elsewhere = merged(card(metrics={"accuracy": 0.6}, evaluated_on="me/plants"), second)
    kept = [result["dataset"]["type"] for result in facts_of(elsewhere)["model-index"][0]["results"]]
    assert kept == ["me/plants", "me/animals", "unknown"]


def test_metadata_that_cannot_be_read_is_written_anew_and_the_text_stays(card):
    second = merged(card(), "---\nlicense: [mit\n---\n\nTheir text.\n")

    assert facts_of(second)["library_name"] == "transformers" and "Their text." in second


@pytest.mark.any_hub
def test_an_edited_card_outlives_the_next_push(repo_id, make_model):
    make_model(0).push_to_hub(repo_id)
    edited = ModelCard.load(repo_id)
    edited.text = edited.text.replace("# relreps", "My words.\n\n# relreps")
    edited.data.license = "mit"
    edited.push_to_hub(repo_id)

    make_model(1).push_to_hub(repo_id)

    assert ModelCard.load(repo_id).text.count("My words.") == 1
    assert ModelCard.load(repo_id).data.license == "mit"


# -- cards of folders


def test_a_folder_gets_a_card_whose_code_runs(tmp_path, make_model, hub, capsys):
    make_model(0).save_pretrained(tmp_path)

    card = write_card(tmp_path).read_text("utf-8")

    exec(compile(code_blocks(card)[0], "card", "exec"), {})
    assert "score" in capsys.readouterr().out
    assert write_card(tmp_path).read_text("utf-8") == card


def test_a_stitched_model_names_where_its_parts_come_from(new_repo_id, make_model, hub):
    english, french = new_repo_id(), new_repo_id()
    make_model(0, "en").push_to_hub(english)
    make_model(1, "fr").push_to_hub(french)
    stitched = stitch(french, english)
    stitched.push_to_hub(new_repo_id())

    card = str(stitched.make_card("me/x"))
    assert f"the encoder of [{french}]" in card and f"the decoder of [{english}]" in card
