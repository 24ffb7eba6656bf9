"""Images and texts: how far decoders and searches cross from one to the other, over pairs of a picture and its name.

    python -m benchmarks.cross_modal --assets assets       # --quick: one draw, one number of pairs

About 1,900 emoji are pairs of a picture (Noto Emoji) and a text (name and keywords) in nine groups. EfficientNet-Lite2
has seen ImageNet and no text, MiniLM has seen texts and no image. A draw leaves 1,000 emoji for the test; of the other
906, the first 100, 300 or all are the pairs. Measured on the 1,000:

- the decoder of one modality, fitted on the 906 with their labels, reads the other (accuracy);
- a decoder made of texts that describe the nine groups reads pictures, without any label;
- search of a picture's text among the 1,000, and of a text's picture: R@1 and R@10.

Each way brings both modalities into one space, given the pairs alone. Those with a grid choose from it on a fifth of
the pairs, by R@10 in both directions. Nothing is chosen on the test. *hubs*: scores corrected by the other queries of
the test (CSLS). Controls: the labels of the pairs alone, on the target's own embeddings; the target's own decoder with
all 906 labels; shuffled pairs; chance. Absolute embeddings cannot be read by the other's decoder at all, for they are
384 and 1280 wide.
Shapes: N samples, Q queries, M documents, A pairs, D and E absolute sizes, K size of the shared space, C classes.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.assets.emoji import GROUPS, load_emoji_pictures
from benchmarks.assets.images import lite_features
from benchmarks.assets.text_encoders import text_features
from benchmarks.reporting import markdown, picture, quiet, timed, write
from hf_relreps import RelativeConfig, RelativeDecoder, RelativeDecoderConfig, RelativeSpace
from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.translation import fit as fit_translation


RESULTS = Path(__file__).parent / "results" / "cross_modal"
SIZES = (100, 300, 906)
POOL = 906  # emoji that pairs and labelled samples come from; the other 1,000 are the test
IMAGE_SIZE = 128  # what pictures of 64 pixels are enlarged to
NEAREST = 10
HELD_OUT = 5  # one of so many pairs chooses from a grid
INFONCE_WIDTH, INFONCE_BATCH = 128, 256
SOURCES = ("text", "image")

Map = Callable[[Tensor], Tensor]  # embeddings (N, D) -> the shared space (N, K)
Way = Callable[..., tuple[Map, Map]]  # pairs (A, D), (A, E) -> a map for each side


class Data(NamedTuple):
    """Both views of the same emoji, their groups, and the texts that describe the groups."""

    text: Tensor
    image: Tensor
    labels_N: Tensor
    described_CD: Tensor


# -- ways into one space


def relative(x_AD: Tensor, y_AE: Tensor, **settings: Any) -> tuple[Map, Map]:
    """Relative representations; `settings` are those of `RelativeSpace`."""
    space = RelativeSpace(num_anchors=len(x_AD)).replace(**settings)
    frames = frame_of(x_AD, space), frame_of(y_AE, space)
    return tuple(partial(project_in_chunks, frame=frame, space=space) for frame in frames)  # type: ignore[return-value]


def translated(x_AD: Tensor, y_AE: Tensor, method: str, **settings: Any) -> tuple[Map, Map]:
    """The first side goes over into the second's space, which stays as it is."""
    translate, mean_E = fit_translation(x_AD, y_AE, method, add_mean=False, **settings), y_AE.mean(0)
    return translate.forward, lambda y_ME: y_ME - mean_E


def asif(x_AD: Tensor, y_AE: Tensor, kept: int, power: int) -> tuple[Map, Map]:
    """ASIF (arXiv 2210.01738): the largest cosines to the anchors, raised to a power, all others zero."""

    def map_of(anchors_AD: Tensor) -> Map:
        def sparse(x_ND: Tensor) -> Tensor:
            cosine_NA = normalize(x_ND) @ normalize(anchors_AD).T
            top = cosine_NA.topk(min(kept, len(anchors_AD)))
            return torch.zeros_like(cosine_NA).scatter(1, top.indices, top.values.clamp_min(0) ** power)

        return sparse

    return map_of(x_AD), map_of(y_AE)


def cca(x_AD: Tensor, y_AE: Tensor, rank: int, ridge: float) -> tuple[Map, Map]:
    """Regularised canonical correlations, each direction weighed by its correlation."""
    means, whitens = [], []
    for anchors_AD in (x_AD, y_AE):
        _, s_K, v_KD = torch.linalg.svd((anchors_AD - anchors_AD.mean(0)).double(), full_matrices=False)
        means.append(anchors_AD.mean(0))
        whitens.append(v_KD.T / (s_K.square() + ridge * s_K.square().mean()).sqrt())
    white = [(a - m).double() @ w for a, m, w in zip((x_AD, y_AE), means, whitens, strict=True)]
    u_KR, s_R, v_RK = torch.linalg.svd(white[0].T @ white[1], full_matrices=False)
    turns = [turn_KR[:, :rank] * s_R[:rank] for turn_KR in (u_KR, v_RK.T)]
    maps = [(w @ turn).float() for w, turn in zip(whitens, turns, strict=True)]
    return tuple(partial(_linear, mean_D=m, map_DK=w) for m, w in zip(means, maps, strict=True))  # type: ignore[return-value]


def _linear(x_ND: Tensor, mean_D: Tensor, map_DK: Tensor) -> Tensor:
    return (x_ND - mean_D) @ map_DK


def infonce(x_AD: Tensor, y_AE: Tensor, steps: int, decay: float = 0.1) -> tuple[Map, Map]:
    """Linear maps of both sides, trained so that each sample finds its partner in the batch (as CLIP)."""
    generator = torch.Generator().manual_seed(0)
    means = [anchors_AD.mean(0) for anchors_AD in (x_AD, y_AE)]
    units = [normalize(a - m) for a, m in zip((x_AD, y_AE), means, strict=True)]
    maps = [
        nn.Parameter(torch.randn(u.shape[1], INFONCE_WIDTH, generator=generator) / u.shape[1] ** 0.5) for u in units
    ]
    log_scale = nn.Parameter(torch.tensor(3.0))
    groups = [{"params": maps, "weight_decay": decay}, {"params": [log_scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    for _ in range(steps):
        rows_B = torch.randperm(len(x_AD), generator=generator)[:INFONCE_BATCH]
        dropped = [u[rows_B] * (torch.rand(len(rows_B), u.shape[1], generator=generator) > 0.2) for u in units]
        x_BK, y_BK = (normalize(u @ w) for u, w in zip(dropped, maps, strict=True))
        logits_BB, partners_B = log_scale.exp() * x_BK @ y_BK.T, torch.arange(len(rows_B))
        loss = cross_entropy(logits_BB, partners_B) + cross_entropy(logits_BB.T, partners_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = [w.detach() for w in maps]
    return tuple(  # type: ignore[return-value]
        lambda x_ND, m=m, w=w: normalize(x_ND - m) @ w for m, w in zip(means, found, strict=True)
    )


# Each way with what it may choose from on held-out pairs.
WAYS: dict[str, tuple[Way, list[dict[str, Any]]]] = {
    "relative, default": (relative, [{}]),
    "relative, `basis_ridge=1`": (relative, [{"basis_ridge": 1.0}]),
    "relative, the paper's cosine": (relative, [RelativeConfig.paper().space.projection]),
    "kernel ridge": (partial(translated, method="kernel_ridge"), [{"ridge": ridge} for ridge in (0.1, 0.3, 1.0, 3.0)]),
    "Procrustes": (partial(translated, method="procrustes"), [{}]),
    "CCA": (cca, [{"rank": rank, "ridge": ridge} for rank, ridge in product((50, 200), (0.3, 1.0, 3.0, 10.0))]),
    "ASIF": (asif, [{"kept": kept, "power": power} for kept, power in product((10, 30, 100), (1, 4, 8))]),
    "InfoNCE": (infonce, [{"steps": steps} for steps in (50, 150, 400)]),
}


def fitted(way: Way, grid: list[dict[str, Any]], x_AD: Tensor, y_AE: Tensor) -> tuple[Map, Map]:
    """A way with the settings that find most held-out pairs, fitted on all of them."""
    best = grid[0]
    if len(grid) > 1:
        held = torch.arange(len(x_AD)) % HELD_OUT == 0
        found = []
        for settings in grid:
            maps = way(x_AD[~held], y_AE[~held], **settings)
            scores_QQ = similarity(maps, x_AD[held], y_AE[held])
            found.append(recall(scores_QQ, 10) + recall(scores_QQ.T, 10))
        best = grid[int(np.argmax(found))]
    return way(x_AD, y_AE, **best)


# -- scores


def similarity(maps: tuple[Map, Map], x_QD: Tensor, y_ME: Tensor) -> Tensor:
    """Cosines in the shared space (Q, M)."""
    return normalize(maps[0](x_QD)) @ normalize(maps[1](y_ME)).T


def csls(scores_QM: Tensor) -> Tensor:
    """CSLS (arXiv 1710.04087): less the mean of the ten nearest of each side."""
    documents, queries = (min(NEAREST, size) for size in scores_QM.shape[::-1])
    near_Q1 = scores_QM.topk(documents, 1).values.mean(1, keepdim=True)
    return 2 * scores_QM - near_Q1 - scores_QM.topk(queries, 0).values.mean(0, keepdim=True)


def recall(scores_QM: Tensor, k: int) -> float:
    """Share of queries whose own document, the one of the same number, is among the first k."""
    rank_Q = (scores_QM > scores_QM.diagonal()[:, None]).sum(1)
    return float((rank_Q < k).float().mean())


def decoder(r_NK: Tensor, labels_N: Tensor) -> RelativeDecoder:
    """The library's ridge decoder of representations of any kind."""
    like: Any = SimpleNamespace(config=RelativeDecoderConfig(num_anchors=r_NK.shape[1]), anchors=None)
    return RelativeDecoder.fit_ridge(r_NK, labels_N, like, num_labels=len(GROUPS))


def accuracy(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Share of samples whose largest logit is that of their class."""
    return float((logits_NC.argmax(1) == labels_N).float().mean())


# -- what is measured

DESCRIPTIONS = {
    "smileys and emotion": ("a smiling face", "a sad face", "a heart, love"),
    "people and body": ("a man at work", "a woman who does sports", "a hand, fingers", "a family"),
    "animals and nature": ("a wild animal", "a bird", "a fish", "an insect", "a plant, a flower, a tree"),
    "food and drink": ("a fruit", "a vegetable", "a meal", "a drink"),
    "travel and places": ("a vehicle, a car, a train", "a building", "a clock", "the sky, the weather, the moon"),
    "activities": ("a sport, a ball", "a game", "a medal", "a celebration, a party"),
    "objects": ("clothes", "a tool", "a musical instrument", "a book, paper", "a phone, a computer"),
    "symbols": ("a sign", "an arrow", "a button", "a sign of the zodiac"),
    "flags": ("the flag of a country",),
}
ASKED, SHOWN = 7, 9  # of the picture: texts, and pictures for each
TASKS = ("texts' decoder reads images", "images' decoder reads texts", "images by descriptions")
SEARCHES = ("image to text", "text to image")
TARGETS = {"text": "image", "image": "text"}


def measure(data: Data, k: int, draws: int) -> dict[str, dict[str, list[float]]]:
    """Figures of k pairs by way and task, one for each draw."""
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(draws):
        train_N, test_N = divided(data, seed)
        for name, figures in _of_draw(data, train_N, train_N[:k], test_N):
            for task, figure in figures.items():
                scores[name][task].append(figure)
    return {name: dict(figures) for name, figures in scores.items()}


def divided(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """A draw: emoji that pairs and labelled samples come from, and those of the test."""
    order_N = torch.from_numpy(np.random.default_rng(seed).permutation(len(data.labels_N)))
    return order_N[:POOL], order_N[POOL:]


def _of_draw(data: Data, train_N: Tensor, pairs_A: Tensor, test_N: Tensor) -> Any:
    """Name and figures of each way and control."""
    for name, (way, grid) in WAYS.items():
        yield name, _of_way(data, way, grid, train_N, pairs_A, pairs_A, test_N)
    way, grid = WAYS["relative, default"]
    yield "relative, default, shuffled pairs", _of_way(data, way, grid, train_N, pairs_A, pairs_A.roll(1), test_N)
    alone, own = {}, {}
    for source, task in zip(SOURCES, TASKS, strict=False):
        x_ND = getattr(data, TARGETS[source])
        alone[task] = _own(x_ND, data.labels_N, pairs_A, test_N)
        own[task] = _own(x_ND, data.labels_N, train_N, test_N)
    yield "labels of the pairs alone", alone
    yield f"the target's own decoder, {POOL} labels", own
    share = float(data.labels_N[test_N].bincount().max() / len(test_N))
    found = {f"{search}, R@{k}": k / len(test_N) for search, k in product(SEARCHES, (1, NEAREST))}
    yield "chance; the most frequent group", dict.fromkeys(TASKS, share) | found


def _of_way(
    data: Data,
    way: Way,
    grid: list[dict[str, Any]],
    train_N: Tensor,
    pairs_A: Tensor,
    partners_A: Tensor,
    test_N: Tensor,
) -> dict[str, float]:
    """Accuracies and recalls; `partners_A` are the images of the pairs, `pairs_A` their texts."""
    pairs = {"text": data.text[pairs_A], "image": data.image[partners_A]}
    found: dict[str, float] = {}
    maps: tuple[Map, Map] | None = None
    for source, task, search in zip(SOURCES, TASKS, SEARCHES, strict=False):
        x_ND, y_NE = getattr(data, TARGETS[source]), getattr(data, source)
        if maps is None or isinstance(way, partial):  # a translation goes one way; all others have one shared space
            maps = fitted(way, grid, pairs[TARGETS[source]], pairs[source])
        else:
            maps = maps[1], maps[0]
        decode = decoder(maps[1](y_NE[train_N]), data.labels_N[train_N])
        with torch.no_grad():
            found[task] = accuracy(decode(maps[0](x_ND[test_N])).logits, data.labels_N[test_N])
        scores_QM = similarity(maps, x_ND[test_N], y_NE[test_N])
        for k in (1, NEAREST):
            found[f"{search}, R@{k}"] = recall(scores_QM, k)
            found[f"{search}, hubs, R@{k}"] = recall(csls(scores_QM), k)
        if source == "text":
            found[TASKS[2]] = accuracy(_described(maps, x_ND[test_N], data.described_CD), data.labels_N[test_N])
    return found


def _described(maps: tuple[Map, Map], x_QD: Tensor, described_CD: Tensor) -> Tensor:
    """Cosines (Q, C) to the mean of the descriptions of each group, as `RelativeDecoder.from_descriptions`."""
    counts = [len(texts) for texts in DESCRIPTIONS.values()]
    x_QK, y_MK = (_centred(one) for one in (maps[0](x_QD), maps[1](described_CD)))
    return x_QK @ normalize(torch.stack([part.mean(0) for part in y_MK.split(counts)])).T


def _centred(x_NK: Tensor) -> Tensor:
    return normalize(x_NK - x_NK.mean(1, keepdim=True))


def _own(x_ND: Tensor, labels_N: Tensor, train_N: Tensor, test_N: Tensor) -> float:
    """A decoder of the target's own embeddings."""
    x_ND = normalize(x_ND - x_ND[train_N].mean(0))
    with torch.no_grad():
        return accuracy(decoder(x_ND[train_N], labels_N[train_N])(x_ND[test_N]).logits, labels_N[test_N])


# -- report


def tables(found: dict[str, Any]) -> str:
    """Mean and deviation over draws, as Markdown: classes, then searches with and without the correction of hubs."""
    parts = [_table(found, "accuracy, nine groups", {task: (task,) for task in TASKS})]
    for corrected, caption in (("", "R@1 / R@10 among 1,000"), (", hubs", "R@1 / R@10 among 1,000, hubs corrected")):
        columns = {search: tuple(f"{search}{corrected}, R@{k}" for k in (1, NEAREST)) for search in SEARCHES}
        parts.append(_table(found, caption, columns))
    return "\n\n".join(parts)


def _table(found: dict[str, Any], caption: str, columns: dict[str, tuple[str, ...]]) -> str:
    rows = []
    for name, figures in next(iter(found.values())).items():
        if any(task in figures for tasks in columns.values() for task in tasks):
            cells = [_cell([found[k][name].get(task) for task in tasks]) for tasks in columns.values() for k in found]
            rows.append([name, *cells])
    return markdown([caption, *(f"{column}: {k} pairs" for column in columns for k in found)], rows)


def _cell(values: list[list[float] | None]) -> str:
    """Means, and the deviation of the last."""
    known = [one for one in values if one]
    return f"{' / '.join(f'{np.mean(one):.3f}' for one in known)} ± {np.std(known[-1]):.3f}" if known else ""


def load(cache: Path, assets: Path | None, image_size: int) -> Data:
    """What both encoders say, each once."""
    rows = load_emoji_pictures(assets)
    return Data(
        text=text_features("minilm", rows["en"][:], cache, assets),
        image=lite_features(2, rows["image"][:], cache, assets, image_size),
        labels_N=torch.tensor(rows["label"][:]),
        described_CD=text_features(
            "minilm", [text for texts in DESCRIPTIONS.values() for text in texts], cache, assets
        ),
    )


def draw(arguments: argparse.Namespace, data: Data) -> None:
    """The pictures that the first texts of the first draw find with all pairs; a frame marks their own."""
    from matplotlib.patches import Rectangle

    pairs_A, test_N = divided(data, seed=0)
    maps = relative(data.text[pairs_A], data.image[pairs_A], basis_ridge=1.0)
    found_QK = csls(similarity(maps, data.text[test_N], data.image[test_N]))[:ASKED].topk(SHOWN).indices
    rows = load_emoji_pictures(arguments.assets).select(test_N)
    with picture(arguments.picture, 1, (8.4, 0.62 * ASKED)) as (figure, (axis,)):
        figure.set_facecolor("white")  # as the pictures are
        axis.set(xlim=(-0.6, SHOWN - 0.4), ylim=(ASKED - 0.4, -0.6), xticks=[], yticks=range(ASKED), frame_on=False)
        axis.set_yticklabels([text.split(",")[0] for text in rows["en"][:ASKED]])
        axis.tick_params(length=0)
        for (i, j), row in np.ndenumerate(found_QK.numpy()):
            axis.imshow(rows[int(row)]["image"], extent=(j - 0.4, j + 0.4, i + 0.4, i - 0.4))
            if row == i:
                axis.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, color="tab:green", linewidth=2))


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        "benchmarks.cross_modal", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--cache", type=Path, default=Path(".cache/cross_modal"), help="what encoders say, kept there")
    parser.add_argument("--draws", type=int, default=3, help="of pairs and test (3)")
    parser.add_argument(
        "--image-size", type=int, default=IMAGE_SIZE, help=f"what pictures are resized to ({IMAGE_SIZE})"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="numbers of pairs; others stay in the JSON"
    )
    parser.add_argument("--quick", action="store_true", help="one draw of 100 pairs, writes nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--picture", type=Path, help="where a picture of some searches goes; nothing is measured then")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.draws = SIZES[:1], 1
    file, found = arguments.output / "results.json", {}
    with quiet():
        data = load(arguments.cache, arguments.assets, arguments.image_size)
        if arguments.picture is not None:
            draw(arguments, data)
            return
        for k in arguments.sizes:
            with timed(f"{k} pairs"):
                measured = measure(data, k, arguments.draws)
            if not arguments.quick:
                found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
            found[str(k)] = measured
            found = dict(sorted(found.items(), key=lambda item: int(item[0])))
            if not arguments.quick:
                write(file, found)
    print(tables(found))


if __name__ == "__main__":
    main()
