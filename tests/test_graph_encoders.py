"""Graph encoders: against dense arithmetic and relabelled nodes, saved and loaded, and on real graphs."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from hf_relreps.demos.graphs import load_planetoid
from hf_relreps.encoders.graphs import CONVOLUTIONS, GraphEncoder, GraphEncoderConfig
from hf_relreps.errors import ConfigurationError, MissingExtraError, SampleError


PLANETOID_ROOT = os.environ.get("PLANETOID_ROOT")

needs_geometric = pytest.mark.usefixtures("_torch_geometric")
needs_planetoid = pytest.mark.skipif(PLANETOID_ROOT is None, reason="PLANETOID_ROOT names no folder with Cora/raw")


@pytest.fixture(scope="session")
def _torch_geometric() -> None:
    pytest.importorskip("torch_geometric")


@pytest.fixture(scope="module")
def club(_torch_geometric: None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zachary's karate club: 34 members (one-hot features), 156 edges, four groups."""
    from torch_geometric.datasets import KarateClub

    data = KarateClub()[0]
    return data.x, data.edge_index, data.y


def make_encoder(convolution: str = "gcn", seed: int = 0, **config) -> GraphEncoder:
    sizes = {"in_channels": 34, "hidden_size": 16, "heads": 4 if convolution == "gat" else 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GraphEncoder(GraphEncoderConfig(**sizes | {"convolution": convolution} | config)).eval()


def dense_neighbours(edge_index: torch.Tensor, nodes: int, self_loops: bool) -> torch.Tensor:
    """D^-1/2 (A + I) D^-1/2 of Kipf and Welling, or without I."""
    adjacency = torch.zeros(nodes, nodes)
    adjacency[edge_index[1], edge_index[0]] = 1
    adjacency += torch.eye(nodes) * self_loops
    scale = adjacency.sum(1).rsqrt()
    return scale[:, None] * adjacency * scale


# -- what an encoder gives


@needs_geometric
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_each_node_gets_a_vector_the_same_at_every_call(convolution, club):
    x, edge_index, _ = club
    encoder = make_encoder(convolution, num_layers=3)
    output = encoder(x, edge_index, output_hidden_states=True)
    assert output.last_hidden_state.shape == (34, 16)
    assert [tuple(state.shape) for state in output.hidden_states] == [(34, 16)] * 4
    assert torch.equal(encoder(x=x, edge_index=edge_index, return_dict=False)[0], output.last_hidden_state)


@needs_geometric
@pytest.mark.parametrize("self_loops", [True, False])
def test_gcn_is_what_dense_matrices_give(self_loops, club):
    x, edge_index, _ = club
    encoder = make_encoder(num_layers=2, self_loops=self_loops, convolution_activation="tanh")
    neighbours = dense_neighbours(edge_index, 34, self_loops)
    expected = encoder.input(x).relu()
    for layer in encoder.convolutions:
        expected = torch.tanh(neighbours @ expected @ layer.lin.weight.T + layer.bias)
    torch.testing.assert_close(encoder(x, edge_index).last_hidden_state, encoder.output(expected))


@needs_geometric
@pytest.mark.parametrize("self_loops", [True, False])
def test_gcn2_is_what_dense_matrices_give(self_loops, club):
    x, edge_index, _ = club
    encoder = make_encoder("gcn2", num_layers=4, self_loops=self_loops, alpha=0.2, theta=0.7)
    neighbours = dense_neighbours(edge_index, 34, self_loops)
    expected = first = encoder.input(x).relu()
    for number, layer in enumerate(encoder.convolutions, start=1):
        beta = torch.tensor(0.7 / number + 1).log()
        mixed = 0.8 * (neighbours @ expected) + 0.2 * first
        expected = ((1 - beta) * mixed + beta * (mixed @ layer.weight1)).relu()
    torch.testing.assert_close(encoder(x, edge_index).last_hidden_state, encoder.output(expected))


@needs_geometric
def test_gin_is_what_dense_matrices_give(club):
    x, edge_index, _ = club
    encoder = make_encoder("gin", num_layers=1)
    sums = torch.eye(34)
    sums[edge_index[1], edge_index[0]] = 1
    expected = encoder.convolutions[0].nn(sums @ encoder.input(x).relu()).relu()
    torch.testing.assert_close(encoder(x, edge_index).last_hidden_state, encoder.output(expected))


@needs_geometric
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_numbering_the_nodes_otherwise_only_reorders_the_vectors(convolution, club):
    x, edge_index, _ = club
    order = torch.randperm(34, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    encoder = make_encoder(convolution)
    expected = encoder(x, edge_index).last_hidden_state[order]
    torch.testing.assert_close(encoder(x[order], place[edge_index]).last_hidden_state, expected)


@needs_geometric
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_a_node_without_edges_has_a_finite_vector(convolution, club):
    x, edge_index, _ = club
    edge_index = edge_index[:, (edge_index != 33).all(0)]
    for self_loops in (True, False):
        vectors = make_encoder(convolution, self_loops=self_loops)(x, edge_index).last_hidden_state
        assert vectors.isfinite().all()


@needs_geometric
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_every_weight_gets_a_gradient_and_dropout_acts_in_training_alone(convolution, club):
    x, edge_index, _ = club
    encoder = make_encoder(convolution).train()
    first = encoder(x, edge_index).last_hidden_state
    assert not torch.equal(first, encoder(x, edge_index).last_hidden_state)
    first.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@needs_geometric
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_it_learns_the_groups_of_the_karate_club(convolution, club):
    x, edge_index, y = club
    encoder, known = make_encoder(convolution, dropout=0.2).train(), torch.tensor([0, 4, 8, 24])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = torch.nn.Linear(16, 4)
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(head(encoder(x, edge_index).last_hidden_state)[known], y[known]).backward()
            optimizer.step()
    predicted = head(encoder.eval()(x, edge_index).last_hidden_state).argmax(1)
    assert len({int(group) for group in y[known]}) == 4
    assert (predicted == y).float().mean() > 0.6  # four nodes are known; always saying the largest group gives 0.38


@needs_geometric
def test_a_deep_net_of_the_paper_still_tells_nodes_apart(club):
    x, edge_index, _ = club
    encoder = GraphEncoder(GraphEncoderConfig.paper(in_channels=34)).eval()
    assert len(encoder.convolutions) == 32
    vectors = encoder(x, edge_index).last_hidden_state
    assert vectors.shape == (34, 300)
    assert vectors.std(0).mean() > 1e-3


# -- saved and loaded


@needs_geometric
@pytest.mark.parametrize("shared_weights", [True, False])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_a_saved_encoder_gives_the_same_bits_through_the_auto_class(convolution, shared_weights, club, tmp_path):
    x, edge_index, _ = club
    encoder = make_encoder(convolution, num_layers=3, alpha=0.3, shared_weights=shared_weights)
    encoder.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is GraphEncoder
    assert not any(info.values())
    assert torch.equal(loaded(x, edge_index).last_hidden_state, encoder(x, edge_index).last_hidden_state)


@needs_geometric
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_a_seed_decides_the_weights_and_the_auto_class_builds_the_same(convolution):
    expected = make_encoder(convolution, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        built = AutoModel.from_config(expected.config).state_dict()
    assert all(torch.equal(built[name], weight) for name, weight in expected.state_dict().items())
    other = make_encoder(convolution, seed=4).state_dict()
    assert not torch.equal(built["input.weight"], other["input.weight"])


def test_a_configuration_keeps_every_field(tmp_path):
    config = GraphEncoderConfig.paper(in_channels=5, convolution_activation="tanh", theta=0.25)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is GraphEncoderConfig
    assert loaded.to_json_string() == config.to_json_string()
    assert (loaded.convolution, loaded.num_layers, loaded.self_loops) == ("gcn2", 32, False)


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"convolution": "sage"}, "convolution='sage' does not exist. Choose one of gcn, gat, gin, gcn2"),
        ({"convolution_activation": "rely"}, "convolution_activation='rely' does not exist"),
        ({"input_activation": "rely"}, "input_activation='rely' does not exist"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"dropout": 1.5}, "dropout=1.5 must be at least 0 and at most 1"),
        (
            {"convolution": "gat", "hidden_size": 10, "heads": 4},
            "heads=4 do not divide hidden_size=10.* hidden_size=12",
        ),
    ],
)
def test_a_configuration_without_meaning_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        GraphEncoderConfig(**settings)


@needs_geometric
@pytest.mark.parametrize(
    ("x", "edge_index", "message"),
    [
        (torch.ones(3, 5), torch.zeros(2, 1, dtype=torch.long), r"shape \(3, 5\), expected \(nodes, 34\)"),
        (torch.ones(3, 34), torch.zeros(1, 2, dtype=torch.long), r"torch.int64 of shape \(1, 2\), expected"),
        (torch.ones(3, 34), torch.zeros(2, 1), r"torch.float32 of shape \(2, 1\), expected torch.int64"),
        (torch.ones(3, 34), torch.tensor([[0], [3]]), "has nodes from 0 to 3, but x has 3 rows"),
        (torch.ones(3, 34), torch.tensor([[-1], [2]]), "has nodes from -1 to 2"),
    ],
)
def test_features_and_edges_that_make_no_graph_are_refused(x, edge_index, message):
    with pytest.raises(SampleError, match=message):
        make_encoder()(x, edge_index)


def test_without_the_package_the_error_names_the_extra_and_configurations_still_load(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    config = GraphEncoderConfig(in_channels=3)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).in_channels == 3
    with pytest.raises(MissingExtraError, match=r"pip install hf_relreps\[graphs\]"):
        AutoModel.from_config(config)


# -- citation graphs


def test_a_missing_package_a_missing_file_and_an_unknown_graph_say_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="'Corra', expected one of Cora, CiteSeer, PubMed"):
        load_planetoid("Corra", tmp_path)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch_geometric", None)
        without.setitem(sys.modules, "torch_geometric.datasets", None)
        with pytest.raises(MissingExtraError, match=r"pip install hf_relreps\[graphs\]"):
            load_planetoid("Cora", tmp_path)


@needs_geometric
def test_missing_raw_files_are_named_with_their_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ind\.cora\.x in .*Cora/raw.*download=True"):
        load_planetoid("Cora", tmp_path)


@needs_geometric
@needs_planetoid
@pytest.mark.parametrize(
    ("name", "nodes", "features", "classes"), [("Cora", 2708, 1433, 7), ("CiteSeer", 3327, 3703, 6)]
)
def test_citation_graphs_have_their_known_size_and_split(name, nodes, features, classes):
    data = load_planetoid(name, PLANETOID_ROOT)
    assert (data.num_nodes, data.num_features, int(data.y.max()) + 1) == (nodes, features, classes)
    masks = [data.train_mask, data.val_mask, data.test_mask]
    assert [int(mask.sum()) for mask in masks] == [20 * classes, 500, 1000]
    assert int(sum(mask.long() for mask in masks).max()) == 1
    normalized = load_planetoid(name, PLANETOID_ROOT, normalize=True).x.sum(1)
    assert ((normalized - 1).abs() < 1e-5).logical_or(normalized == 0).all()


@needs_geometric
@needs_planetoid
def test_a_gcn_of_two_layers_learns_cora():
    data = load_planetoid("Cora", PLANETOID_ROOT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = GraphEncoder(GraphEncoderConfig(in_channels=1433, hidden_size=64, dropout=0.7)).train()
        head = torch.nn.Linear(64, 7)
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 0.005, weight_decay=5e-4)
        for _ in range(40):
            optimizer.zero_grad()
            logits = head(encoder(data.x, data.edge_index).last_hidden_state)
            F.cross_entropy(logits[data.train_mask], data.y[data.train_mask]).backward()
            optimizer.step()
    predicted = head(encoder.eval()(data.x, data.edge_index).last_hidden_state).argmax(1)
    accuracy = (predicted == data.y)[data.test_mask].float().mean().item()
    print(f"Cora, GCN of two layers: test accuracy {accuracy:.3f}")
    assert accuracy > 0.75  # the largest class gives 0.32
