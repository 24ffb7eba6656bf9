"""Other ways to search an index of one model with another, beside which `benchmarks.migration` puts ours.

| rival                | idea                                                                   | stored vectors |
|----------------------|------------------------------------------------------------------------|----------------|
| paper's cosine       | relative representations by plain cosines on both sides, 2209.15430    | projected      |
| residual MLP         | Procrustes, and a small network on what it leaves, as Drift-Adapter    | as they are    |
| all at once, GPA     | generalised Procrustes: each model is turned into one shared space     | turned         |
| ... corrected        | the same; directions in which models disagree are shrunk, as in GCPA   | turned, shrunk |
| all at once, CCA     | generalised CCA: directions in which all models agree                  | projected      |

The last three fit one map for each model, whatever their number: any model asks the index of any other. Settings are
chosen by held-out pairs. All are written here anew, in the manner of the papers.
Shapes: N pairs, A pairs that are fitted on, B vectors, D and E widths, K width of the shared space, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_relreps import RelativeConfig
from hf_relreps.migration.ways import Relative, translations
from hf_relreps.similarities import unit


HELD_OUT = 0.2
HIDDEN, EPOCHS, PATIENCE, BATCH, LEARNING_RATE = 256, 200, 10, 64, 1e-3
ROUNDS = 5  # it moves little after three
SHRINKING = (0.1, 1.0, 10.0)
RANK, RIDGES = 200, (0.1, 0.5, 2.0)

Map = Callable[[Tensor], Tensor]


class Rival(NamedTuple):
    """Makes vectors whose inner product says how near a query is to a document."""

    queries: Map
    documents: Map


def paper(old_ND: Tensor, new_NE: Tensor) -> Rival:
    """Relative representations by plain cosines on both sides."""
    space = RelativeConfig.paper().space.replace(num_anchors=len(old_ND))
    way = Relative(old_ND, new_NE, space)
    return Rival(way.queries, way.documents)


def residual_mlp(old_ND: Tensor, new_NE: Tensor, seed: int = 0) -> Rival:
    """Procrustes and a network of one hidden layer on top, trained until held-out pairs come no nearer."""
    generator = torch.Generator().manual_seed(seed)
    order_N = torch.randperm(len(old_ND), generator=generator)
    held = round(HELD_OUT * len(order_N))
    out, rest = order_N[:held], order_N[held:]
    rotate = translations(new_NE[rest], old_ND[rest], "procrustes", add_mean=False)
    mean_E, target_ND = new_NE.mean(0), unit(old_ND - old_ND[rest].mean(0))
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(new_NE.shape[1], old_ND.shape[1])
        x_NE, start_ND, target_ND = (
            part.clone() for part in (unit(new_NE - mean_E), rotate.queries(new_NE), target_ND)
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        best, state, worse = _distance(network, x_NE[out], start_ND[out], target_ND[out]).item(), _copy(network), 0
        for _ in range(EPOCHS):
            for rows in rest[torch.randperm(len(rest), generator=generator)].split(BATCH):
                optimizer.zero_grad()
                _distance(network, x_NE[rows], start_ND[rows], target_ND[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                now = _distance(network, x_NE[out], start_ND[out], target_ND[out]).item()
            best, state, worse = (now, _copy(network), 0) if now < best else (best, state, worse + 1)
            if worse == PATIENCE:
                break
        network.load_state_dict(state)
        network.requires_grad_(False)
    return Rival(lambda x_BE: unit(rotate.queries(x_BE) + network(unit(x_BE - mean_E))), unit)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    """It begins as zero, so that the beginning is Procrustes."""
    network = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, outputs))
    for parameter in network[2].parameters():
        nn.init.zeros_(parameter)
    return network


def _distance(network: nn.Module, x_BE: Tensor, start_BD: Tensor, target_BD: Tensor) -> Tensor:
    return 1 - (unit(start_BD + network(x_BE)) * target_BD).sum(-1).mean()


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def universes(pairs: Mapping[str, Tensor], seed: int = 0) -> dict[str, dict[str, Map]]:
    """By rival, and by model, the map into the space that all models share.

    Args:
        pairs: By model the same texts, row by row (N, D of the model).
        seed: Of the pairs that are held out to choose settings.
    """
    order_N = torch.randperm(len(next(iter(pairs.values()))), generator=torch.Generator().manual_seed(seed))
    held = round(HELD_OUT * len(order_N))
    out, rest = ({name: x_ND[rows] for name, x_ND in pairs.items()} for rows in (order_N[:held], order_N[held:]))
    turned, rest_turned = _Turned(pairs), _Turned(rest)
    shrinking = max(SHRINKING, key=lambda setting: _agreement(rest_turned.maps(setting), out))
    ridge = max(RIDGES, key=lambda setting: _agreement(_generalised_cca(rest, setting), out))
    return {
        "all at once, GPA": turned.maps(None),
        "all at once, GPA corrected": turned.maps(shrinking),
        "all at once, CCA": _generalised_cca(pairs, ridge),
    }


def _agreement(maps: Mapping[str, Map], out: Mapping[str, Tensor]) -> float:
    """Share of held-out texts that find their own vector first, mean over pairs of models."""
    said = [maps[name](x_ND) for name, x_ND in out.items()]
    own_H = torch.arange(len(said[0]))
    shares = [((a @ b.T).argmax(1) == own_H).float().mean() for a in said for b in said if a is not b]
    return float(torch.stack(shares).mean())


class _Turned:
    """All models, each turned to their mean, again and again."""

    def __init__(self, pairs: Mapping[str, Tensor]) -> None:
        self.means = {name: x_ND.mean(0) for name, x_ND in pairs.items()}
        self.width = max(x_ND.shape[1] for x_ND in pairs.values())
        self.widths = {name: x_ND.shape[1] for name, x_ND in pairs.items()}
        centred = {name: _padded((x_ND - self.means[name]).double(), self.width) for name, x_ND in pairs.items()}
        centred = {name: x_NK * x_NK.square().sum(1).mean().rsqrt() for name, x_NK in centred.items()}
        self.shared_NK = next(iter(centred.values()))
        for _ in range(ROUNDS):
            self.turns = {name: _turn(x_NK, self.shared_NK) for name, x_NK in centred.items()}
            turned = [x_NK @ self.turns[name] for name, x_NK in centred.items()]
            self.shared_NK = torch.stack(turned).mean(0)
        self.apart_MK = torch.cat([x_NK - self.shared_NK for x_NK in turned])

    def maps(self, shrinking: float | None) -> dict[str, Map]:
        """Into the shared space, where directions in which the models differ are shrunk if there is a setting."""
        shrink_KK = torch.eye(self.width, dtype=torch.float64)
        if shrinking is not None:
            values_K, vectors_KK = torch.linalg.eigh(self.apart_MK.T @ self.apart_MK / len(self.apart_MK))
            shrink_KK = (vectors_KK * (values_K + shrinking * values_K.mean()).rsqrt()) @ vectors_KK.T

        def into(name: str) -> Map:
            map_DK = (self.turns[name] @ shrink_KK)[: self.widths[name]].float()
            return lambda x_BD: unit((x_BD - self.means[name]) @ map_DK)

        return {name: into(name) for name in self.turns}


def _padded(x_ND: Tensor, width: int) -> Tensor:
    return nn.functional.pad(x_ND, (0, width - x_ND.shape[1]))


def _turn(from_NK: Tensor, to_NK: Tensor) -> Tensor:
    u_KK, _, v_KK = torch.linalg.svd(from_NK.T @ to_NK)
    return u_KK @ v_KK


def _generalised_cca(pairs: Mapping[str, Tensor], ridge: float) -> dict[str, Map]:
    """The directions in which the whitened models agree most, each weighted by how far they do."""
    means = {name: x_ND.mean(0) for name, x_ND in pairs.items()}
    whiteners = {name: _whitener((x_ND - means[name]).double(), ridge) for name, x_ND in pairs.items()}
    white = [(x_ND - means[name]).double() @ whiteners[name] for name, x_ND in pairs.items()]
    _, agreement_R, v_RW = torch.linalg.svd(torch.cat(white, dim=1), full_matrices=False)
    rank = min(RANK, len(agreement_R))
    parts = v_RW[:rank].split([x_ND.shape[1] for x_ND in white], dim=1)

    def into(name: str, part_RD: Tensor) -> Map:
        map_DR = (whiteners[name] @ part_RD.T * agreement_R[:rank]).float()
        return lambda x_BD: unit((x_BD - means[name]) @ map_DR)

    return {name: into(name, part_RD) for name, part_RD in zip(pairs, parts, strict=True)}


def _whitener(x_ND: Tensor, ridge: float) -> Tensor:
    values_D, vectors_DD = torch.linalg.eigh(x_ND.T @ x_ND)
    return vectors_DD * (values_D + ridge * values_D.mean()).rsqrt()
