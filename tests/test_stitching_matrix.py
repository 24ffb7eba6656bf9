"""Every pair of encoder and decoder: scores, the absolute control, chance, tables and pictures.

The encoders are BERTs with random weights, each from its own seed: their embeddings tell words apart, which is all
that the synthetic topics need. The decoders are trained on relative representations in a second.
"""

import functools
import json
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset

from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification
from hf_relreps.demos.tiny import small_bert, word_tokenizer
from hf_relreps.errors import EvaluationError, MissingExtraError, StitchingError
from hf_relreps.evaluation import StitchingMatrix, stitching_matrix
from hf_relreps.evaluation.scores import SCORES, chance


TOPICS = ["sea", "sky", "war", "tea"]
WORDS = [f"{topic}{i}" for topic in TOPICS for i in range(8)] + [f"filler{i}" for i in range(16)]


def topics(n, seed):
    """Texts of one topic each with filler words; the second language is the first in capitals."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(TOPICS), size=n)
    texts = []
    for label in labels:
        words = [f"{TOPICS[label]}{i}" for i in rng.integers(8, size=4)] + [
            f"filler{i}" for i in rng.integers(16, size=3)
        ]
        texts.append(" ".join(rng.permutation(words)))
    return {"lower": texts, "upper": [text.upper() for text in texts], "label": labels.tolist()}


def named(columns, names=TOPICS):
    """The same as a dataset whose labels have names, numbered in the order of `names`."""
    labels = [names.index(TOPICS[label]) for label in columns["label"]]
    return Dataset.from_dict(columns | {"label": labels}).cast_column("label", ClassLabel(names=list(names)))


@functools.cache
def tokenizer():
    return word_tokenizer([*WORDS, *(word.upper() for word in WORDS)])


@functools.cache
def anchors(seed=100):
    columns = topics(60, seed)
    return AnchorSet([f"{seed}-{i}" for i in range(60)], {"lower": columns["lower"], "upper": columns["upper"]})


def encoder(seed, view, hidden=32, anchor_set=None, **settings):
    torch.manual_seed(seed)
    bert = small_bert(len(tokenizer()), longest=40, width=hidden, layers=1)
    return RelativeModel.from_encoder(bert, (anchor_set or anchors()).view(view), tokenizer(), **settings)


def train_decoder(own_encoder, columns, targets, seed, **settings):
    """A decoder trained on the relative representations of one encoder, as the head of a whole model."""
    torch.manual_seed(seed)
    model = RelativeModelForSequenceClassification.from_encoder(own_encoder)
    config = model.config.decoder
    for name, value in settings.items():
        setattr(config, name, value)
    decoder = RelativeDecoder(config)
    r_NR = own_encoder.projection(own_encoder.encode(columns[own_encoder.config.anchor_view]))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    targets = torch.as_tensor(targets)
    losses = {"regression": torch.nn.MSELoss(), "multi_label_classification": torch.nn.BCEWithLogitsLoss()}
    loss = losses.get(settings.get("problem_type"), torch.nn.CrossEntropyLoss())
    for _ in range(80):
        logits = decoder(r_NR).logits
        loss(logits.squeeze(-1) if logits.shape[-1] == 1 else logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder.eval()


def names_of(classes):
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


TRAIN, TEST = topics(400, 1), topics(300, 2)


@functools.cache
def encoders():
    return {
        "low-1": encoder(1, "lower"),
        "low-2": encoder(2, "lower"),
        "up": encoder(3, "upper"),
        "wide": encoder(4, "upper", 48),
    }


@functools.cache
def decoders():
    return {
        name: train_decoder(part, TRAIN, TRAIN["label"], seed, **names_of(TOPICS))
        for seed, (name, part) in enumerate(encoders().items(), 10)
    }


@functools.cache
def matrix():
    return stitching_matrix(encoders(), decoders(), named(TEST), train_dataset=named(TRAIN))


def predicted(name, decoder_name, columns=TEST):
    own = encoders()[name]
    with torch.no_grad():
        r_NR = own.projection(own.encode(columns[own.config.anchor_view]))
        return decoders()[decoder_name](r_NR).logits.argmax(-1).numpy()


def test_foreign_decoders_work_through_anchors_and_fail_on_absolute_embeddings():
    result = matrix()
    assert result.own > 0.9
    assert result.stitched > 0.9 * result.own
    assert result.absolute_own > 0.9
    assert result.absolute_stitched < result.chance + 0.2
    assert 0.1 < result.chance < 0.3


def test_each_cell_is_the_score_of_that_encoder_with_that_decoder():
    from sklearn.metrics import f1_score

    for i, row in enumerate(encoders()):
        for j, column in enumerate(decoders()):
            expected = f1_score(TEST["label"], predicted(row, column), average="macro")
            assert matrix().scores[i, j] == pytest.approx(expected)


def test_whole_models_stand_for_both_of_their_parts():
    wholes = {}
    for name in ("low-1", "up"):
        wholes[name] = RelativeModelForSequenceClassification.from_encoder(encoders()[name])
        wholes[name].decoder = decoders()[name]
    result = stitching_matrix(wholes, wholes, named(TEST))
    expected = matrix().to_pandas().loc[["low-1", "up"], ["low-1", "up"]]
    np.testing.assert_allclose(result.scores, expected)


def test_uploads_are_loaded_by_name_and_named_by_it(tmp_path):
    ids = []
    for name in ("low-1", "up"):
        model = RelativeModelForSequenceClassification.from_encoder(encoders()[name])
        model.config.id2label, model.config.label2id = names_of(TOPICS).values()
        model.decoder = decoders()[name]
        model.save_pretrained(tmp_path / name)
        ids.append(str(tmp_path / name))
    result = stitching_matrix(ids, ids, named(TEST))
    assert (result.encoders, result.decoders) == (tuple(ids), tuple(ids))
    np.testing.assert_allclose(result.scores, matrix().to_pandas().loc[["low-1", "up"], ["low-1", "up"]], atol=1e-6)


def test_each_encoder_reads_the_samples_once_however_many_decoders_there_are():
    reads = dict.fromkeys(encoders(), 0)
    hooks = []
    for name, part in encoders().items():

        def count(module, args, output, name=name):
            reads[name] += len(output.last_hidden_state)

        hooks.append(part.backbone.register_forward_hook(count))
    stitching_matrix(encoders(), decoders(), TEST)
    for hook in hooks:
        hook.remove()
    few_anchors = 8  # to see that they are its own
    assert reads == dict.fromkeys(encoders(), len(TEST["label"]) + few_anchors)


def test_one_batch_size_or_another_gives_the_same_scores():
    result = stitching_matrix(encoders(), decoders(), named(TEST), batch_size=7)
    np.testing.assert_allclose(result.scores, matrix().scores)


def test_modes_and_devices_are_as_before_also_after_an_error():
    part, head = encoders()["low-1"], decoders()["low-1"]
    answers = predicted("low-1", "low-1")
    part.train()
    part.backbone.encoder.eval()
    head.train()
    modes = [module.training for module in (*part.modules(), *head.modules())]
    assert len(set(modes)) == 2
    result = stitching_matrix({"low-1": part}, {"low-1": head}, TEST, device="cpu")
    assert result.scores[0, 0] == pytest.approx(matrix().scores[0, 0])  # dropout was off

    def fails_once_the_encoder_has_run(labels, predictions):
        return 1 / (predictions != answers).sum()

    with np.errstate(divide="raise"), pytest.raises(FloatingPointError) as caught:  # held: nothing is tidied by chance
        stitching_matrix({"low-1": part}, {"low-1": head}, TEST, metric=fails_once_the_encoder_has_run)
    assert [module.training for module in (*part.modules(), *head.modules())] == modes, caught.value
    assert part.device.type == "cpu"
    part.eval()
    head.eval()


def test_the_absolute_control_is_fitted_on_the_own_encoder_and_applied_to_equal_widths():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    control = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    control.fit(encoders()["low-2"].encode(TRAIN["lower"]).numpy(), TRAIN["label"])
    predictions = control.predict(encoders()["up"].encode(TEST["upper"]).numpy())
    frame = matrix().to_pandas(absolute=True)
    assert frame.loc["up", "low-2"] == pytest.approx(f1_score(TEST["label"], predictions, average="macro"))
    is_missing = frame.isna()
    assert is_missing.loc["wide"].tolist() == [True, True, True, False]
    assert is_missing["wide"].tolist() == [True, True, True, False]
    assert is_missing.to_numpy().sum() == 6


def test_encoders_of_one_seed_stitch_absolutely_and_the_control_shows_it():
    twins = {"a": encoder(1, "lower"), "b": encoder(1, "lower")}
    heads = {"a": decoders()["low-1"], "b": decoders()["low-2"]}
    result = stitching_matrix(twins, heads, TEST, train_dataset=TRAIN)
    assert result.absolute_stitched == pytest.approx(result.absolute_own)


def test_the_own_pair_can_be_named_and_decoders_without_one_have_no_control():
    heads = {"x": decoders()["low-1"], "y": decoders()["up"]}
    rows = {name: encoders()[name] for name in ("low-1", "low-2")}
    result = stitching_matrix(rows, heads, TEST, own={"low-1": "x"}, train_dataset=TRAIN)
    assert result.is_own.tolist() == [[True, False], [False, False]]
    assert np.isnan(result.absolute[:, 1]).all() and not np.isnan(result.absolute[:, 0]).any()
    assert result.own == result.scores[0, 0]
    assert result.stitched == pytest.approx(np.mean([result.scores[0, 1], *result.scores[1]]))


def test_figures_are_means_over_own_and_over_other_pairs():
    result = StitchingMatrix(
        encoders=("a", "b"),
        decoders=("a", "b"),
        scores=np.array([[0.8, 0.6], [0.4, 1.0]]),
        own_pairs={"a": "a", "b": "b"},
        absolute=np.array([[0.9, np.nan], [0.1, 0.7]]),
        chance=0.25,
        guess="always the same answer",
        metric="f1",
        title="macro F1",
        greater_is_better=True,
        n=10,
    )
    assert result.summary == pytest.approx(
        {
            "own": 0.9,
            "stitched": 0.5,
            "worst": 0.4,
            "ratio": 0.5 / 0.9,
            "absolute_own": 0.8,
            "absolute_stitched": 0.1,
            "chance": 0.25,
        }
    )


def test_without_own_pairs_there_is_no_ratio_and_without_stitches_no_mean():
    apart = stitching_matrix({"a": encoders()["low-1"]}, {"b": decoders()["up"]}, TEST)
    assert (apart.own, apart.ratio) == (None, None) and apart.stitched == apart.scores[0, 0]
    alone = stitching_matrix({"a": encoders()["low-1"]}, {"a": decoders()["low-1"]}, TEST)
    assert (alone.stitched, alone.worst, alone.ratio) == (None, None, None)
    for result in (apart, alone):
        assert "chance" in str(result) and json.dumps(result.to_dict())


def test_inputs_choose_another_column_than_the_view():
    renamed = {"texts": TEST["lower"], "label": TEST["label"]}
    result = stitching_matrix({"a": encoders()["low-1"]}, {"a": decoders()["low-1"]}, renamed, inputs={"a": "texts"})
    assert result.scores[0, 0] == pytest.approx(matrix().scores[0, 0])


# Classes and labels


def reordered_decoder():
    """The decoder of low-1, trained with its classes numbered backwards."""
    backwards = TOPICS[::-1]
    targets = [backwards.index(TOPICS[label]) for label in TRAIN["label"]]
    return train_decoder(encoders()["low-1"], TRAIN, targets, 10, **names_of(backwards))


def test_classes_in_another_order_are_aligned_by_name():
    heads = {"forwards": decoders()["low-1"], "backwards": reordered_decoder()}
    for dataset in (
        named(TEST),
        named(TEST, ["war", "tea", "sea", "sky"]),
        TEST | {"label": [TOPICS[i] for i in TEST["label"]]},
    ):
        result = stitching_matrix({"low-1": encoders()["low-1"]}, heads, dataset)
        assert result.scores.min() > 0.9


def test_a_train_set_with_another_order_of_classes_fits_the_same_control():
    shuffled = named(TRAIN, ["war", "tea", "sea", "sky"])
    result = stitching_matrix(encoders(), decoders(), named(TEST), train_dataset=shuffled)
    np.testing.assert_allclose(result.absolute, matrix().absolute, atol=0.02)


def test_numbers_are_taken_as_they_are_where_decoders_agree_or_name_nothing():
    np.testing.assert_allclose(stitching_matrix(encoders(), decoders(), TEST).scores, matrix().scores)
    nameless = {
        "low-1": train_decoder(
            encoders()["low-1"], TRAIN, TRAIN["label"], 10, **names_of([f"LABEL_{i}" for i in range(4)])
        )
    }
    for dataset in (TEST, named(TEST)):
        assert stitching_matrix({"low-1": encoders()["low-1"]}, nameless, dataset).scores[0, 0] > 0.9


def test_several_labels_are_scored_with_a_threshold_of_one_half():
    def several(columns):
        return [
            [float(i == label or topic in text) for i, topic in enumerate(TOPICS)]
            for label, text in zip(columns["label"], columns["lower"], strict=True)
        ]

    settings = {"problem_type": "multi_label_classification", **names_of(TOPICS)}
    rows = {name: encoders()[name] for name in ("low-1", "up")}
    heads = {name: train_decoder(part, TRAIN, several(TRAIN), 5, **settings) for name, part in rows.items()}
    test, train = TEST | {"label": several(TEST)}, TRAIN | {"label": several(TRAIN)}
    result = stitching_matrix(rows, heads, test, train_dataset=train)
    assert result.own > 0.9 and result.stitched > 0.8 and result.absolute_stitched < 0.7
    from sklearn.metrics import f1_score

    with torch.no_grad():
        own = rows["low-1"]
        logits = heads["up"](own.projection(own.encode(TEST["lower"]))).logits
    expected = f1_score(np.array(several(TEST)), torch.sigmoid(logits) > 0.5, average="macro")
    assert result.scores[0, 1] == pytest.approx(expected)
    with pytest.raises(EvaluationError, match=r"labels of shape \(\), expected one list of zeros and ones"):
        stitching_matrix(rows, heads | {"up": heads["low-1"]}, TEST)


def test_a_regression_is_scored_by_errors_where_less_is_better():
    def length(columns):
        return [float(text.count("sea")) for text in columns["lower"]]

    rows = {name: encoders()[name] for name in ("low-1", "up")}
    settings = {"problem_type": "regression", **names_of(["LABEL_0"])}
    heads = {name: train_decoder(part, TRAIN, length(TRAIN), 5, **settings) for name, part in rows.items()}
    test, train = TEST | {"label": length(TEST)}, TRAIN | {"label": length(TRAIN)}
    result = stitching_matrix(rows, heads, test, metric="mae", train_dataset=train)
    assert not result.greater_is_better
    assert result.own < result.stitched < result.chance < result.absolute_stitched
    assert result.worst == result.scores[~result.is_own].max()
    assert result.chance == pytest.approx(np.abs(np.array(length(TEST)) - np.median(length(TEST))).mean())
    assert f"({result.ratio:.2f} times own, worst" in str(result)
    # Errors are coloured from 0 to the largest one, dark being good as for scores.
    assert result.plot().axes[0].images[0].get_clim() == (0, np.max([result.scores, result.absolute]))
    with pytest.raises(EvaluationError, match="'f1' does not apply to regression.*mae, mse"):
        stitching_matrix(rows, heads, test)
    pairs = TEST | {"label": [[1.0, 2.0]] * 300}
    with pytest.raises(
        EvaluationError, match="2 numbers for each row, expected 1, the output size of decoder 'low-1'"
    ):
        stitching_matrix(rows, heads, pairs, metric="mae")


# Scores and chance


def test_metrics_by_name_equal_scikit_learn():
    from sklearn import metrics

    predictions, labels = predicted("low-1", "up"), TEST["label"]
    expected = {
        "accuracy": metrics.accuracy_score(labels, predictions),
        "f1": metrics.f1_score(labels, predictions, average="macro"),
        "f1_weighted": metrics.f1_score(labels, predictions, average="weighted"),
        "mae": metrics.mean_absolute_error(labels, predictions),
        "mse": metrics.mean_squared_error(labels, predictions),
    }
    for name, value in expected.items():
        result = stitching_matrix({"low-1": encoders()["low-1"]}, {"up": decoders()["up"]}, TEST, metric=name)
        assert result.scores[0, 0] == pytest.approx(value)
        assert result.metric == name


def test_a_function_is_a_metric():
    def share_of_tea(labels, predictions):
        return float((predictions[labels == 3] == 3).mean())

    result = stitching_matrix({"a": encoders()["low-1"]}, {"a": decoders()["low-1"]}, TEST, metric=share_of_tea)
    labels = np.array(TEST["label"])
    assert result.scores[0, 0] == pytest.approx((predicted("low-1", "low-1")[labels == 3] == 3).mean())
    assert result.metric == "share_of_tea" and "share_of_tea" in str(result)


def test_chance_is_the_better_of_one_answer_and_random_answers():
    skewed = np.array([0] * 90 + [1] * 10)
    assert chance(skewed, SCORES["accuracy"], "single_label_classification") == (0.9, "always the same answer")
    balanced = np.arange(1000) % 10
    value, guess = chance(balanced, SCORES["f1"], "single_label_classification")
    # One class for all reaches 2 * 0.1 / 1.1 / 10 = 0.018, random answers about 0.1.
    assert value == pytest.approx(0.1, abs=0.01) and "random" in guess
    assert chance(balanced, SCORES["mae"], "single_label_classification")[0] == pytest.approx(2.5)
    values = np.random.default_rng(0).normal(size=500)
    assert chance(values, SCORES["mse"], "regression")[0] == pytest.approx(values.var())


def test_chance_is_the_same_at_every_call():
    labels = np.random.default_rng(0).integers(5, size=200)
    calls = {chance(labels, SCORES["f1"], "single_label_classification") for _ in range(3)}
    assert len(calls) == 1


# Tables and pictures


def test_it_prints_tables_with_own_pairs_in_brackets_and_a_summary():
    text = str(matrix())
    lines = text.splitlines()
    assert lines[0] == "Stitching matrix: macro F1 on 300 samples"
    assert lines[2].split() == ["encoder", "\\", "decoder", "low-1", "low-2", "up", "wide"]
    first = lines[3].split()
    assert (
        first[0] == "low-1"
        and first[1] == f"[{matrix().scores[0, 0]:.3f}]"
        and first[2] == f"{matrix().scores[0, 1]:.3f}"
    )
    assert "Absolute control: logistic regression on absolute embeddings" in lines
    assert lines[-1].startswith(f"own {matrix().own:.3f}") and lines[-1].endswith(f"chance {matrix().chance:.3f}")
    assert f"stitched {matrix().stitched:.3f} ({matrix().ratio:.1%} of own, worst {matrix().worst:.3f})" in lines[-1]
    assert max(map(len, lines)) < 120
    assert repr(matrix()) == text


def test_long_names_become_numbers_that_a_table_explains():
    long = {f"someone-with-a-name/relative-encoder-{name}": part for name, part in encoders().items()}
    heads = {f"someone-with-a-name/relative-encoder-{name}": part for name, part in decoders().items()}
    lines = str(stitching_matrix(long, heads, TEST)).splitlines()
    assert lines[2].split() == ["encoder", "\\", "decoder", "1", "2", "3", "4"]
    assert lines[3].split()[:2] == ["1", "someone-with-a-name/relative-encoder-low-1"]
    others = {f"another-owner/decoder-{name}": part for name, part in decoders().items()}
    text = str(stitching_matrix(long, others, TEST))
    assert "  2  another-owner/decoder-low-2" in text.splitlines()


def test_the_frame_has_encoders_as_rows():
    frame = matrix().to_pandas()
    assert (frame.index.name, frame.columns.name) == ("encoder", "decoder")
    assert frame.loc["up", "low-1"] == matrix().scores[2, 0]
    without = stitching_matrix({"a": encoders()["low-1"]}, {"a": decoders()["low-1"]}, TEST)
    with pytest.raises(EvaluationError, match="no absolute control. Pass train_dataset="):
        without.to_pandas(absolute=True)


def test_json_holds_every_figure_and_nulls_where_there_is_no_control(tmp_path):
    found = json.loads(matrix().to_json(tmp_path / "matrix.json").read_text())
    assert found == matrix().to_dict()
    assert found["scores"] == matrix().scores.tolist()
    assert found["absolute"][0][3] is None
    assert found["own_pairs"] == {name: name for name in encoders()}
    assert (found["own"], found["stitched"], found["chance"]) == (matrix().own, matrix().stitched, matrix().chance)


def test_the_picture_shows_both_matrices_with_their_values_and_frames(tmp_path):
    from matplotlib import pyplot as plt
    from matplotlib.image import imread
    from matplotlib.patches import Rectangle

    open_before = plt.get_fignums()  # by other tests in this process
    figure = matrix().plot(tmp_path / "matrix.png")
    relative, absolute, colours = figure.axes
    assert [relative.get_title(), absolute.get_title()] == ["Relative", "Absolute control"]
    assert [text.get_text() for text in relative.texts] == [f"{value:.2f}" for value in matrix().scores.flat]
    assert len(absolute.texts) == 10
    frames = [patch for patch in relative.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    assert len(frames) == 4
    assert relative.images[0].get_clim() == absolute.images[0].get_clim() == (0, 1)
    assert (relative.get_xlabel(), relative.get_ylabel()) == ("decoder", "encoder")
    assert colours.get_ylabel() == "macro F1"
    assert (imread(tmp_path / "matrix.png")[..., 3] == 1).all()  # opaque
    assert plt.get_fignums() == open_before  # a notebook shows it once


def test_a_missing_matplotlib_is_named_with_the_command_that_installs_it(monkeypatch):
    result = matrix()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtraError, match=r'pip install "hf_relreps\[plots\]"'):
        result.plot()


# Errors


def one(**changes):
    """Arguments of a small comparison that works, with changes."""
    arguments = {
        "encoders": {"low-1": encoders()["low-1"]},
        "decoders": {"low-1": decoders()["low-1"]},
        "dataset": TEST,
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (lambda: {"encoders": "me/model"}, ["encoders='me/model'", "a list of repository ids"]),
        (lambda: {"encoders": [encoders()["up"]]}, ["contains a RelativeModel", "no name", "encoders={'name': model"]),
        (lambda: {"decoders": ["me/a", "me/a"]}, ["'me/a' twice", "Pass a dict"]),
        (lambda: {"encoders": {}}, ["encoders={}", "a dict of names"]),
        (lambda: {"metric": "bleu"}, ["metric='bleu'", "accuracy, f1, f1_weighted, mae, mse"]),
        (lambda: {"inputs": {"up": "lower"}}, ["inputs names the encoder 'up'", "low-1"]),
        (lambda: {"inputs": {"low-1": "body"}}, ["dataset has no column 'body'", "lower, upper, label", "inputs="]),
        (lambda: {"label_column": "topic"}, ["dataset has no column 'topic'", "label_column="]),
        (lambda: {"own": {"up": "low-1"}}, ["own names the encoder 'up'", "low-1"]),
        (lambda: {"own": {"low-1": "up"}}, ["own names the decoder 'up'", "low-1"]),
        (lambda: {"dataset": {"lower": [], "label": []}}, ["dataset has no rows"]),
        (lambda: {"dataset": TEST | {"label": [-1] * 300}}, ["the label -1 (300 such rows)", "0 to 3", "Unlabelled"]),
        (lambda: {"dataset": TEST | {"label": [4] + [0] * 299}}, ["the label 4 (1 such rows)", "0 to 3"]),
        (lambda: {"dataset": TEST | {"label": [None] + [0] * 299}}, ["missing or infinite labels"]),
        (
            lambda: {"dataset": TEST | {"label": [[0, 1]] * 300}},
            ["rows of 2 values such as 0, 1", "expected 4 zeros and ones"],
        ),
        (lambda: {"dataset": TEST | {"label": ["sea"] * 299 + ["pie"]}}, ["holds 'pie'", "sea, sky, war, tea"]),
        (lambda: {"dataset": named(TEST, [*TOPICS, "pie"])}, ["'low-1' cannot be aligned", "lacks pie", "id2label"]),
        (lambda: {"train_dataset": {"lower": ["sea0"] * 3, "label": [1] * 3}}, ["only class 1", "Shuffle"]),
        (lambda: {"train_dataset": {"label": [1, 2]}}, ["train_dataset has no column 'lower'", "inputs="]),
        (
            lambda: {"encoders": encoders(), "own": {"low-1": "low-1", "up": "low-1"}},
            ["decoder 'low-1' to low-1 and up", "one encoder"],
        ),
        (
            lambda: {"decoders": {"low-1": decoders()["low-1"], "backwards": reordered_decoder()}},
            ["numbers without names", "'low-1' as sea, sky", "'backwards' as tea, war", "ClassLabel(names="],
        ),
        (lambda: {"metric": lambda labels, predictions: float("nan")}, ["gave nan", "300 samples", "finite"]),
    ],
)
def test_a_question_without_an_answer_is_refused_with_a_reason(changes, parts):
    with pytest.raises(EvaluationError) as caught:
        stitching_matrix(**one(**changes()))
    for part in parts:
        assert part in str(caught.value)


def test_decoders_of_different_problems_do_not_share_a_matrix():
    regression = train_decoder(
        encoders()["low-1"], TRAIN, [1.0] * 400, 0, problem_type="regression", **names_of(["LABEL_0"])
    )
    with pytest.raises(EvaluationError, match="'low-1' single_label_classification and 'r' regression"):
        stitching_matrix(**one(decoders={"low-1": decoders()["low-1"], "r": regression}))


def test_a_model_without_a_name_is_told_how_to_get_one(make_model):
    with pytest.raises(
        EvaluationError, match=r"encoders is a RelativeModelForSequenceClassification, which has no name"
    ):
        stitching_matrix(make_model(0), make_model(0), None)


def test_parts_that_do_not_fit_are_refused_before_any_encoder_runs():
    stranger = encoder(9, "lower", anchor_set=anchors(seed=101))
    hook = encoders()["low-1"].backbone.register_forward_hook(lambda *_: pytest.fail("an encoder ran"))
    try:
        with pytest.raises(StitchingError, match="anchors"):
            stitching_matrix(**one(encoders={"low-1": encoders()["low-1"], "stranger": stranger}))
    finally:
        hook.remove()
