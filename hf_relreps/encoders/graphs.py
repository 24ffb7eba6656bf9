"""Graph encoders on the layers of `torch_geometric`: GCN, GAT, GIN and GCNII, as transformers models.

`torch_geometric` (extra ``graphs``) is loaded when an encoder is built, so that configurations are known without it.

Shapes: N nodes, F features of a node, E edges, D absolute size.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput

from hf_relreps.errors import ConfigurationError, MissingExtraError, SampleError


CONVOLUTIONS = ("gcn", "gat", "gin", "gcn2")


@strict
class GraphEncoderConfig(PreTrainedConfig):
    """Configuration of a `GraphEncoder`.

    Args:
        convolution: ``gcn``, ``gat``, ``gin`` or ``gcn2`` (GCNII: every layer also sees the first).
        in_channels: F, the features of a node.
        hidden_size: D, the width of every layer and of the output.
        num_layers: How many convolutions; only ``gcn2`` works with many.
        dropout: Share of the features that training drops before each layer.
        input_activation: Between the linear layer that reads the features and the first convolution.
        convolution_activation: After each convolution.
        heads: Attention heads of ``gat``, which share `hidden_size`.
        self_loops: Whether a node is its own neighbour in ``gcn``, ``gat`` and ``gcn2``.
        alpha: Share of the first layer in each layer of ``gcn2``.
        theta: Strength of the weights of ``gcn2``: log(theta / l + 1) in layer l.
        shared_weights: Whether ``gcn2`` uses the same weights for the first layer's share.

    Raises:
        ConfigurationError: If a field has an unknown value, or a number is outside its range.

    Example:
        ```python
        >>> from hf_relreps.encoders.graphs import GraphEncoderConfig
        >>> GraphEncoderConfig.paper(in_channels=1433).num_layers
        32

        ```
    """

    model_type = "relreps_graph"

    convolution: str = "gcn"
    in_channels: int = 1
    hidden_size: int = 300
    num_layers: int = 2
    dropout: float = 0.5
    input_activation: str = "relu"
    convolution_activation: str = "relu"
    heads: int = 1
    self_loops: bool = True
    alpha: float = 0.1
    theta: float = 0.5
    shared_weights: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _one_of("convolution", self.convolution, CONVOLUTIONS)
        _one_of("input_activation", self.input_activation, tuple(ACT2FN))
        _one_of("convolution_activation", self.convolution_activation, tuple(ACT2FN))
        for name in ("in_channels", "hidden_size", "num_layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1.")
        for name, low, high in (("dropout", 0, 1), ("alpha", 0, 1), ("theta", 0, math.inf)):
            if not low <= getattr(self, name) <= high:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least {low} and at most {high}.")
        if self.convolution == "gat" and self.hidden_size % self.heads:
            raise ConfigurationError(
                f"heads={self.heads} do not divide hidden_size={self.hidden_size}. Set "
                f"hidden_size={self.hidden_size - self.hidden_size % self.heads + self.heads}, or other heads."
            )

    @classmethod
    def paper(cls, **kwargs: Any) -> Self:
        """The graph network of Moschella et al. (ICLR 2023): GCNII, 32 layers and 300 channels, without self-loops."""
        return cls(**{"convolution": "gcn2", "num_layers": 32, "hidden_size": 300, "self_loops": False, **kwargs})


class GraphEncoder(PreTrainedModel):
    """A linear layer, graph convolutions, and a linear layer: one vector for each node of a graph.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.encoders.graphs import GraphEncoder, GraphEncoderConfig
        >>> encoder = GraphEncoder(GraphEncoderConfig(in_channels=4, hidden_size=8))
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])  # from node, to node
        >>> encoder(torch.ones(3, 4), edge_index).last_hidden_state.shape
        torch.Size([3, 8])

        ```
    """

    config_class = GraphEncoderConfig
    config: GraphEncoderConfig
    base_model_prefix = "graph"
    main_input_name = "x"

    def __init__(self, config: GraphEncoderConfig) -> None:
        super().__init__(config)
        self.input = nn.Linear(config.in_channels, config.hidden_size)
        self.convolutions = nn.ModuleList(_convolution(config, layer) for layer in range(config.num_layers))
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Node vectors (N, D) of a graph.

        Args:
            x: Features of the nodes (N, F).
            edge_index: Edges (2, E) as pairs of nodes, from and to; an undirected edge is listed in both directions.
            output_hidden_states: Whether to also return the nodes after every layer.
            return_dict: False gives a tuple.

        Raises:
            SampleError: If the features or edges have another shape or type.
        """
        self._check(x, edge_index)
        config = self.config
        hidden_ND = first_ND = ACT2FN[config.input_activation](self.input(self._drop(x)))
        hidden_states = [hidden_ND]
        edges = self._edges(edge_index, hidden_ND)
        for convolution in self.convolutions:
            inputs = (self._drop(hidden_ND), first_ND) if config.convolution == "gcn2" else (self._drop(hidden_ND),)
            hidden_ND = ACT2FN[config.convolution_activation](convolution(*inputs, *edges))
            hidden_states.append(hidden_ND)
        output = BaseModelOutput(
            last_hidden_state=self.output(hidden_ND),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)

    def _edges(self, edge_index: Tensor, hidden_ND: Tensor) -> tuple[Tensor, ...]:
        """The edges, with their normalised weights where the convolution wants them: the same for all layers."""
        if self.config.convolution not in ("gcn", "gcn2"):
            return (edge_index,)
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        nodes, dtype = len(hidden_ND), hidden_ND.dtype
        return gcn_norm(edge_index, None, nodes, add_self_loops=self.config.self_loops, dtype=dtype)

    def _check(self, x: Tensor, edge_index: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.config.in_channels:
            raise SampleError(
                f"x has shape {tuple(x.shape)}, expected (nodes, {self.config.in_channels}): one row of features for "
                "each node of one graph. Build the encoder with in_channels=x.shape[1]."
            )
        if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or edge_index.shape[0] != 2:
            raise SampleError(
                f"edge_index is {edge_index.dtype} of shape {tuple(edge_index.shape)}, expected torch.int64 of shape "
                "(2, edges): the source and target node of each edge."
            )
        low, high = (int(edge_index.min()), int(edge_index.max())) if edge_index.numel() else (0, -1)
        if low < 0 or high >= len(x):
            raise SampleError(
                f"edge_index has nodes from {low} to {high}, but x has {len(x)} rows. Number the nodes from 0 in the "
                "order of x."
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Not transformers' default, whose standard deviation of 0.02 fades out over many layers.
        for name, parameter in module.named_parameters(recurse=False):
            if "bias" in name:
                init.zeros_(parameter)
            else:
                _glorot_(parameter)
        for name, buffer in module.named_buffers(recurse=False):
            if name == "eps":  # how much more a node counts than a neighbour in GIN
                init.zeros_(buffer)


def _convolution(config: GraphEncoderConfig, layer: int) -> nn.Module:
    layers = _layers()
    size = config.hidden_size
    if config.convolution == "gcn":
        return layers.GCNConv(size, size, normalize=False)
    if config.convolution == "gat":
        return layers.GATConv(size, size // config.heads, config.heads, add_self_loops=config.self_loops)
    if config.convolution == "gin":
        return layers.GINConv(nn.Linear(size, size))
    return layers.GCN2Conv(
        size, config.alpha, config.theta, layer + 1, shared_weights=config.shared_weights, normalize=False
    )


def _layers() -> Any:
    try:
        import torch_geometric.nn
    except ImportError as error:
        raise MissingExtraError(
            "Graph encoders need torch_geometric, which is not installed: pip install hf_relreps[graphs]"
        ) from error
    return torch_geometric.nn


def _glorot_(tensor: Tensor) -> None:
    """Glorot's uniform initialisation over the last two dimensions, as in `torch_geometric`."""
    bound = math.sqrt(6 / (tensor.shape[-2] + tensor.shape[-1]))
    init.uniform_(tensor, -bound, bound)


def _one_of(field: str, found: str, expected: tuple[str, ...]) -> None:
    if found not in expected:
        raise ConfigurationError(f"{field}={found!r} does not exist. Choose one of {', '.join(expected)}.")


AutoConfig.register(GraphEncoderConfig.model_type, GraphEncoderConfig, exist_ok=True)
AutoModel.register(GraphEncoderConfig, GraphEncoder, exist_ok=True)
