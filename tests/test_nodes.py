"""Node classification end to end: training, gradients through anchors, stored anchors, stitched architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, Trainer, TrainingArguments, ViTConfig, ViTModel

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForNodeClassification,
    RelativeModelForSequenceClassification,
    stitch,
    stitching_matrix,
)
from hf_relreps.encoders.graphs import GraphEncoder, GraphEncoderConfig
from hf_relreps.errors import AnchorError, ConfigurationError, SampleError, UploadError
from hf_relreps.tasks import GraphReader, one_graph


pytest.importorskip("torch_geometric")

NODES, GROUPS = 120, 3
ANCHORS = list(range(0, NODES, 3))  # 40 nodes of all groups
WITH_LABELS = torch.arange(NODES) % 5 == 1
HELD_OUT = torch.arange(NODES) % 5 == 3


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    """The group of each node."""
    return torch.arange(NODES) * GROUPS // NODES


@pytest.fixture(scope="module")
def reader(labels) -> GraphReader:
    """A graph with planted groups: nodes of one group are linked more often, and their noisy features are alike."""
    rng = np.random.default_rng(0)
    same = (labels[:, None] == labels).numpy()
    linked = np.triu(rng.random((NODES, NODES)) < np.where(same, 0.12, 0.01), 1)
    one_way = torch.as_tensor(np.stack(np.nonzero(linked)))
    x = F.one_hot(labels, 16).float() + torch.as_tensor(rng.normal(0, 0.5, (NODES, 16)), dtype=torch.float32)
    return GraphReader(x, torch.cat([one_way, one_way.flip(0)], 1))


@pytest.fixture(scope="module")
def anchors() -> AnchorSet:
    return AnchorSet([f"planted/{node}" for node in ANCHORS], {"node": ANCHORS})


@pytest.fixture(scope="module")
def make(reader, anchors):
    """``make(convolution, seed, **settings)``: an untrained classifier of nodes."""

    def build(convolution: str = "gcn", seed: int = 0, **settings) -> RelativeModelForNodeClassification:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = {"in_channels": 16, "hidden_size": 24, "heads": 4 if convolution == "gat" else 1}
            encoder = GraphEncoder(GraphEncoderConfig(convolution=convolution, num_layers=2, **sizes))
            return RelativeModelForNodeClassification.from_encoder(
                encoder, anchors.view(), reader, num_labels=GROUPS, **settings
            )

    return build


@pytest.fixture(scope="module")
def make_trainer(reader, labels):
    """``make_trainer(model, folder, **arguments)``: of the whole graph, a step an epoch."""

    def build(model, folder, **arguments) -> Trainer:
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": 0, "logging_strategy": "no"}
        steady = {
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
        }
        rare = {"save_strategy": "no", "eval_strategy": "no", "max_steps": 25}
        return Trainer(
            model,
            TrainingArguments(str(folder), **quiet | steady | rare | arguments),
            one_graph,
            train_dataset=[reader.item(labels, WITH_LABELS)],
            eval_dataset=[reader.item(labels, HELD_OUT)],
            callbacks=[AnchorCallback(refresh_every=5)],
        )

    return build


def own_encoding(model, reader) -> torch.Tensor:
    """What the encoder itself says of the anchor nodes."""
    with torch.no_grad():
        return model.encoder.backbone.eval()(reader.x, reader.edge_index).last_hidden_state[ANCHORS]


# -- training


@pytest.mark.parametrize("anchor_gradient", [True, False])
def test_it_learns_from_few_labels_and_keeps_the_anchors_of_its_own_encoder(
    anchor_gradient, make, make_trainer, reader, labels, tmp_path
):
    model = make(seed=1, anchor_gradient=anchor_gradient)
    before_AD = model.encoder.projection.anchors_AD.clone()
    make_trainer(model, tmp_path).train()
    stored_AD = model.eval().encoder.projection.anchors_AD
    assert not torch.allclose(stored_AD, before_AD)
    torch.testing.assert_close(stored_AD, own_encoding(model, reader), rtol=1e-5, atol=1e-5)
    predicted = model(reader.x, reader.edge_index).logits.argmax(1)
    assert (predicted == labels)[HELD_OUT].float().mean() > 0.85  # the largest group has a share of 0.33


def test_evaluation_during_training_reads_the_anchors_of_that_moment(make, make_trainer, reader, labels, tmp_path):
    model = make(anchor_gradient=True)
    seen = []

    def compute_metrics(predictions):
        seen.append((model.encoder.projection.anchors_AD.clone(), own_encoding(model, reader)))
        counted = predictions.label_ids != -100
        assert counted.sum() == HELD_OUT.sum()
        hits = predictions.predictions.argmax(-1) == predictions.label_ids
        return {"accuracy": hits[counted].mean()}

    trainer = make_trainer(model, tmp_path, max_steps=6, eval_strategy="steps", eval_steps=3)
    trainer.compute_metrics = compute_metrics
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_accuracy" in entry] == [3, 6]
    for stored_AD, own_AD in seen:
        torch.testing.assert_close(stored_AD, own_AD, rtol=1e-5, atol=1e-5)


def test_rows_of_single_nodes_train_and_are_scored_like_any_data_set(make, reader, labels, tmp_path):
    rows, held_out = (
        [{"nodes": node, "labels": int(labels[node])} for node in torch.nonzero(chosen).flatten().tolist()]
        for chosen in (WITH_LABELS, HELD_OUT)
    )
    seen = []

    def compute_metrics(predictions):
        seen.append(predictions.label_ids.tolist())
        return {"accuracy": (predictions.predictions.argmax(-1) == predictions.label_ids).mean()}

    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no"}
    trainer = Trainer(
        make(),
        TrainingArguments(str(tmp_path), max_steps=25, per_device_train_batch_size=24, learning_rate=0.02, **quiet),
        reader.collate,
        train_dataset=rows,
        eval_dataset=held_out,
        compute_metrics=compute_metrics,
        callbacks=[AnchorCallback(refresh_every=5)],
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.85
    assert seen == [[row["labels"] for row in held_out]]


def test_training_resumed_from_a_checkpoint_ends_in_the_same_weights_and_anchors(make, make_trainer, tmp_path):
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(make(anchor_gradient=True), tmp_path, **arguments)
    whole.train()
    resumed = make_trainer(make(seed=7, anchor_gradient=True), tmp_path, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


# -- gradients through the anchors


def loss_of(model, reader, labels, nodes) -> torch.Tensor:
    model.train()
    for module in model.modules():  # nothing random, so that two losses can be compared
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.decoder.decoder_noise = model.encoder.backbone.config.dropout = 0.0
    return model(reader.x, reader.edge_index, nodes=nodes, labels=labels[nodes]).loss


def test_gradients_reach_nodes_that_are_anchors_alone_only_when_asked_for(make, labels):
    # Two groups without an edge between them: all nodes asked for lie in one, the anchors in the other.
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    ring = torch.arange(10)
    one_way = torch.cat([torch.stack([ring, (ring + 1) % 10]), torch.stack([ring, (ring + 1) % 10]) + 10], 1)
    edge_index = torch.cat([one_way, one_way.flip(0)], 1)
    anchors = AnchorSet([f"rings/{node}" for node in range(10)], {"node": list(range(10))})
    for anchor_gradient in (True, False):
        torch.manual_seed(0)
        model = RelativeModelForNodeClassification.from_encoder(
            GraphEncoder(GraphEncoderConfig(in_channels=16, hidden_size=8)),
            anchors.view(),
            GraphReader(x, edge_index),
            num_labels=2,
            anchor_gradient=anchor_gradient,
        )
        features = x.clone().requires_grad_()
        asked = torch.arange(10, 20)
        loss_of(model, GraphReader(features, edge_index), torch.arange(20) % 2, asked).backward()
        assert features.grad[10:].abs().sum() > 0
        assert bool(features.grad[:10].abs().sum() > 0) is anchor_gradient


def test_without_dropout_live_and_stored_anchors_describe_alike(make, reader, labels):
    nodes = torch.arange(NODES)
    losses = [
        loss_of(make(anchor_gradient=anchor_gradient), reader, labels, nodes) for anchor_gradient in (1 > 0, 1 < 0)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_in_evaluation_the_stored_anchors_count(make, reader):
    model = make(anchor_gradient=True).eval()
    before = model(reader.x, reader.edge_index).logits
    model.encoder.projection.set_anchors(torch.randn(len(ANCHORS), 24, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(model(reader.x, reader.edge_index).logits, before)


def test_other_anchors_are_live_as_soon_as_they_are_encoded(make, reader, labels):
    model = make(anchor_gradient=True)
    nodes = torch.arange(NODES)
    first = loss_of(model, reader, labels, nodes)
    others = [node + 1 for node in ANCHORS]
    model.encoder.encode_anchors(AnchorSet([f"planted/{n}" for n in others], {"node": others}).view(), reader)
    model.config.decoder.space = model.config.space  # the decoder is to learn on with them
    second = loss_of(model, reader, labels, nodes)
    model.config.encoder.anchor_gradient = False
    assert not torch.isclose(first, second)
    torch.testing.assert_close(second, loss_of(model, reader, labels, nodes), rtol=1e-4, atol=1e-5)


def test_gradients_through_anchors_of_texts_are_refused():
    with pytest.raises(ConfigurationError, match="nodes of a graph, not texts"):
        RelativeConfig(modality="text", anchor_gradient=True)


# -- nodes and labels


def test_labels_of_minus_100_do_not_count(make, reader, labels):
    model = make().eval()
    output = model(reader.x, reader.edge_index, labels=reader.item(labels, WITH_LABELS)["labels"])
    expected = F.cross_entropy(output.logits[WITH_LABELS], labels[WITH_LABELS])
    torch.testing.assert_close(output.loss, expected)


def test_nodes_asked_for_get_the_logits_that_they_have_among_all(make, reader):
    model = make().eval()
    nodes = torch.tensor([7, 3, 3, 119])
    every = model(reader.x, reader.edge_index)
    some = model(reader.x, reader.edge_index, nodes=nodes)
    torch.testing.assert_close(some.logits, every.logits[nodes])
    torch.testing.assert_close(some.relative_embeds, every.relative_embeds[nodes])
    torch.testing.assert_close(model.encoder.encode(nodes.tolist()), model.encoder.encode(range(NODES))[nodes])
    assert model(reader.x, reader.edge_index, nodes=nodes, return_dict=False)[0].shape == (4, GROUPS)


def test_numbers_of_numpy_are_nodes(make):
    encoder = make().encoder
    torch.testing.assert_close(encoder.encode(list(np.array([4, 5]))), encoder.encode([4, 5]))
    assert (
        AnchorSet("ab", {"node": list(np.array([4, 5]))}).view().digest
        == AnchorSet("ab", {"node": [4, 5]}).view().digest
    )


@pytest.mark.parametrize("nodes", [[0, NODES], [-1, 5]])
def test_nodes_outside_the_graph_are_refused(nodes, make, reader):
    asked = f"Nodes {min(nodes)} to {max(nodes)} were requested, but the graph has nodes 0 to {NODES - 1}"
    with pytest.raises(SampleError, match=asked):
        reader(nodes)
    with pytest.raises(SampleError, match=asked):
        make()(reader.x, reader.edge_index, nodes=torch.tensor(nodes))


def test_anchors_outside_the_graph_are_refused(make, reader):
    with pytest.raises(SampleError, match="Nodes 5 to 500 were requested"):
        RelativeModelForNodeClassification.from_encoder(
            GraphEncoder(GraphEncoderConfig(in_channels=16)), AnchorSet("ab", {"node": [5, 500]}).view(), reader
        )


def test_labels_of_another_number_than_nodes_are_refused(make, reader, labels):
    with pytest.raises(SampleError, match="Found 120 labels for 2 nodes. Give one label for each"):
        make()(reader.x, reader.edge_index, nodes=torch.tensor([1, 2]), labels=labels)
    with pytest.raises(SampleError, match="Found 3 labels for 120 nodes"):
        reader.item(labels[:3])


def test_a_batch_of_two_graphs_is_refused(reader, labels):
    with pytest.raises(SampleError, match="has 2 graphs, expected one. Set per_device_train_batch_size=1"):
        one_graph([reader.item(labels)] * 2)


def test_anchors_of_another_modality_are_refused(anchors, reader, make, make_bert, tokenizer):
    with pytest.raises(
        AnchorError, match="RelativeModelForNodeClassification reads nodes, but the view 'en' contains texts"
    ):
        RelativeModelForNodeClassification.from_encoder(
            GraphEncoder(GraphEncoderConfig(in_channels=16)), AnchorSet("ab", {"en": ["a", "b"]}).view(), reader
        )
    with pytest.raises(AnchorError, match="RelativeModelForSequenceClassification reads texts"):
        RelativeModelForSequenceClassification.from_encoder(make_bert(), anchors.view(), tokenizer)
    with pytest.raises(AnchorError, match="this encoder reads nodes"):
        RelativeModelForSequenceClassification.from_encoder(make().encoder)


# -- saved, loaded, stitched


def test_saved_and_loaded_it_gives_the_same_and_asks_for_its_graph(make, make_trainer, reader, tmp_path):
    model = make("gcn2", anchor_gradient=True)
    make_trainer(model, tmp_path / "trainer", max_steps=3).train()
    model.eval().save_pretrained(tmp_path / "upload")
    whole = RelativeModelForNodeClassification.from_pretrained(tmp_path / "upload")
    encoder = AutoModel.from_pretrained(tmp_path / "upload", subfolder="encoder")
    decoder = RelativeDecoder.from_pretrained(tmp_path / "upload")
    assert isinstance(encoder, RelativeModel)
    expected = model(reader.x, reader.edge_index)
    torch.testing.assert_close(whole(reader.x, reader.edge_index).logits, expected.logits)
    relative = encoder(x=reader.x, edge_index=reader.edge_index).relative_embeds
    torch.testing.assert_close(decoder(relative).logits, expected.logits)
    assert whole.anchors.view().samples == ANCHORS
    with pytest.raises(
        UploadError, match=r"uploads do not contain the graph.*model.processor = GraphReader\(x, edge_index\)"
    ):
        whole.encoder.encode([1, 2])
    whole.processor = reader
    torch.testing.assert_close(whole.encoder.encode([1, 2]), model.encoder.encode([1, 2]))


def test_loaded_it_can_be_trained_further(make, make_trainer, reader, tmp_path):
    make(anchor_gradient=True).save_pretrained(tmp_path / "upload")
    model = RelativeModelForNodeClassification.from_pretrained(tmp_path / "upload")
    model.processor = reader
    make_trainer(model, tmp_path / "trainer", max_steps=2).train()
    torch.testing.assert_close(model.encoder.projection.anchors_AD, own_encoding(model, reader), rtol=1e-5, atol=1e-5)


def test_stitched_across_architectures_it_is_far_above_the_absolute_control(
    make, make_trainer, reader, labels, tmp_path
):
    models = {}
    for seed, convolution in enumerate(("gcn", "gat", "gin", "gcn2")):
        models[convolution] = make(convolution, seed=10 + seed, anchor_gradient=seed % 2 == 0, decoder_type="linear")
        make_trainer(models[convolution], tmp_path, seed=10 + seed).train()
    rows, known = (
        {"node": torch.nonzero(chosen).flatten().tolist(), "label": labels[chosen].tolist()}
        for chosen in (HELD_OUT, WITH_LABELS)
    )
    matrix = stitching_matrix(models, models, rows, metric="accuracy", train_dataset=known, progress=False)
    assert matrix.own > 0.85
    assert matrix.stitched > 0.9 * matrix.own
    assert matrix.absolute_own > 0.85
    assert matrix.absolute_stitched < 0.6
    stitched = stitch(models["gcn"], models["gin"])
    assert isinstance(stitched, RelativeModelForNodeClassification)
    accuracy = (stitched(reader.x, reader.edge_index).logits.argmax(1) == labels)[HELD_OUT].float().mean()
    assert float(accuracy) == pytest.approx(matrix.to_pandas().loc["gcn", "gin"])


def test_a_graph_encoder_does_not_read_texts(tokenizer):
    encoder = GraphEncoder(GraphEncoderConfig(in_channels=16))
    with pytest.raises(ConfigurationError, match=r"GraphEncoder takes a graph \(edge_index\), the anchors are texts"):
        RelativeModel.from_encoder(encoder, AnchorSet("ab", {"en": ["a", "b"]}).view(), tokenizer)


def test_an_image_encoder_does_not_become_one_of_nodes(reader, anchors):
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8))
    with pytest.raises(ConfigurationError, match=r"ViTModel takes no graph \(edge_index\), the anchors are nodes"):
        RelativeModelForNodeClassification.from_encoder(vit, anchors.view(), reader)
