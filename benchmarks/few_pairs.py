"""Few pairs, and pairs with labels: which ridge, which width, and whether the anchors' labels help a stitched decoder.

    python -m benchmarks.few_pairs --assets assets --data data

A decoder in closed form is fitted on the source's labelled samples and reads another encoder over 50 to 2,000 pairs.
Accuracy on test samples, mean of three draws of pairs. Settings: emoji in both directions (EfficientNet-Lite2 and
MiniLM), TREC's questions with 6 and with 50 kinds (MiniLM read by multilingual-e5), Debian's descriptions (MiniLM in
English read by multilingual-e5 in French). Ways:

- stitched: the default; with other ridges and widths of the rbf; with the one of these that brings most held-out pairs
  together (leave-one-out, in closed form, R@10; no label is needed).
- alone: a decoder of the target's own embeddings of the anchors and their labels.
- joint: one regression on the source's samples and on the target's anchors, each described by all others; a tenth, a
  fifth or three tenths as much weight as the samples.
- sum: the logits of stitched and alone, added.
- bound: a decoder of the target's relative representations with all labels.

`joint` and `sum` were chosen on TREC with 6 kinds and on emoji; TREC with 50 kinds and Debian are there to confirm.
Shapes: N samples, A anchors, D absolute size, R relative size, C classes.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, one_hot

from benchmarks.assets.text_encoders import text_features
from benchmarks.assets.texts import LONGEST, load_debian, load_trec
from benchmarks.cross_modal import IMAGE_SIZE, POOL, csls, load, recall
from benchmarks.reporting import markdown, quiet, timed, write
from hf_relreps import RelativeSpace
from hf_relreps.projection import frame_of, project_in_chunks
from hf_relreps.ridge import RidgeFit, class_weights, fit_ridge, sharpness
from hf_relreps.similarities import unit


RESULTS = Path(__file__).parent / "results" / "few_pairs"
SIZES = (50, 100, 300, 768, 2000)
DEFAULT = (1.5, 0.1)  # width and ridge
FRAMES = (DEFAULT, (1.5, 0.03), (1.5, 0.3), (1.5, 1.0), (0.75, 0.1), (0.75, 0.3), (0.75, 1.0), (3.0, 0.1), (3.0, 0.3))
JOINT = (0.1, 0.2, 0.3)
TREC_ROWS, DEBIAN_ROWS, DEBIAN_TEST = 2000, 2100, 600  # a share of each, for speed


class Setting(NamedTuple):
    """What the decoder's encoder and the reading one say about the same samples."""

    source: Tensor
    target: Tensor
    labels_N: Tensor
    train: int  # the first so many are for training and for pairs, the others for the test


def emoji(arguments: argparse.Namespace, source: str) -> Setting:
    """Names and pictures, in an order of chance."""
    data = load(arguments.cache, arguments.assets, IMAGE_SIZE)
    order_N = torch.from_numpy(np.random.default_rng(7).permutation(len(data.labels_N)))
    sides = (data.text, data.image) if source == "text" else (data.image, data.text)
    return Setting(sides[0][order_N], sides[1][order_N], data.labels_N[order_N], POOL)


def trec(arguments: argparse.Namespace, level: str) -> Setting:
    """English questions through two encoders."""
    train, test = (load_trec(arguments.data / "trec.parquet", split, level) for split in ("train", "test"))
    rows = np.random.default_rng(0).permutation(len(train))[:TREC_ROWS]
    texts = [*train.select(rows)["text"], *test["text"]]
    x = [text_features(name, texts, arguments.cache, arguments.assets) for name in ("minilm", "me5")]
    return Setting(*x, torch.tensor([*train.select(rows)["label"], *test["label"]]), TREC_ROWS)


def debian(arguments: argparse.Namespace) -> Setting:
    """English descriptions through MiniLM, and French ones through multilingual-e5."""
    rows = load_debian(arguments.data / "debian_descriptions.parquet")
    rows = rows.select(np.random.default_rng(0).permutation(len(rows)))
    rows = rows.select(range(DEBIAN_ROWS + DEBIAN_TEST))
    names = {"en": "minilm", "fr": "me5"}
    x = [
        text_features(name, [text[:LONGEST] for text in rows[language]], arguments.cache, arguments.assets)
        for language, name in names.items()
    ]
    return Setting(*x, torch.tensor(rows["label"][:]), DEBIAN_ROWS)


SETTINGS: dict[str, Callable[[argparse.Namespace], Setting]] = {
    "emoji, names to pictures": lambda arguments: emoji(arguments, "text"),
    "emoji, pictures to names": lambda arguments: emoji(arguments, "image"),
    "TREC, 6 kinds": lambda arguments: trec(arguments, "coarse"),
    "TREC, 50 kinds": lambda arguments: trec(arguments, "fine"),
    "Debian, English to French": debian,
}


# -- one draw


def normed(x_ND: Tensor, anchors_AD: Tensor, frame: tuple[float, float]) -> Tensor:
    """Relative representations (N, A) as a decoder normalises them."""
    space = RelativeSpace(num_anchors=len(anchors_AD), rbf_gamma=frame[0], basis_ridge=frame[1])
    r_NA = project_in_chunks(x_ND, frame_of(anchors_AD, space), space)
    return layer_norm(r_NA, r_NA.shape[-1:], eps=1e-12)


def left_out(anchors_AD: Tensor, frame: tuple[float, float]) -> Tensor:
    """Each anchor described by all others (A, A), normalised: leave-one-out of kernel ridge regression."""
    space = RelativeSpace(num_anchors=len(anchors_AD), rbf_gamma=frame[0], basis_ridge=frame[1])
    r_AA = project_in_chunks(anchors_AD, frame_of(anchors_AD, space), space).double()
    own_A1 = r_AA.diagonal()[:, None].clone()
    others_AA = r_AA.fill_diagonal_(0) / (1 - own_A1)
    return layer_norm(others_AA, others_AA.shape[-1:], eps=1e-12).float()


def fitted(z_NR: Tensor, labels_N: Tensor, classes: int, counts_N: Tensor | None = None) -> RidgeFit:
    """The regression of `RelativeDecoder.fit_ridge`."""
    weights_N = class_weights(labels_N, classes) * (1 if counts_N is None else counts_N)
    return fit_ridge(z_NR, one_hot(labels_N, classes), weights_N=weights_N)


def logits(fit: RidgeFit, z_NR: Tensor, labels_N: Tensor | None = None) -> Tensor:
    """Scores (N, C); as sharp as suits samples that were left out, if their labels are given."""
    scale = 1.0 if labels_N is None else sharpness(fit.left_out_NC[: len(labels_N)], labels_N)
    return scale * (z_NR.double() @ fit.weight_CR.T + fit.bias_C)


def of_draw(setting: Setting, k: int, seed: int) -> dict[str, float]:
    """Accuracy of each way with one set of pairs."""
    classes = int(setting.labels_N.max()) + 1
    y_N, y_M = setting.labels_N[: setting.train], setting.labels_N[setting.train :]
    pairs_A = torch.from_numpy(np.random.default_rng(100 + seed).permutation(setting.train)[:k])
    anchors = setting.source[pairs_A], setting.target[pairs_A]
    found, together = {}, {}
    for frame in FRAMES:
        z_NR = normed(setting.source[: setting.train], anchors[0], frame)
        z_MR = normed(setting.target[setting.train :], anchors[1], frame)
        stitched = fitted(z_NR, y_N, classes)
        found[_name(frame)] = right(logits(stitched, z_MR), y_M)
        sides = [unit(left_out(anchors_AD, frame)) for anchors_AD in anchors]
        together[_name(frame)] = recall(csls(sides[0] @ sides[1].T), 10)
        if frame == DEFAULT:
            own_NR = normed(setting.target[: setting.train], anchors[1], frame)
            found["bound"] = right(logits(fitted(own_NR, y_N, classes), z_MR), y_M)
            found |= _with_labels(setting, pairs_A, z_NR, z_MR, stitched)
    return found | {"chosen by held-out pairs": found[max(together, key=together.__getitem__)]}


def _with_labels(
    setting: Setting, pairs_A: Tensor, z_NR: Tensor, z_MR: Tensor, stitched: RidgeFit
) -> dict[str, float]:
    classes = int(setting.labels_N.max()) + 1
    y_N, y_M, y_A = setting.labels_N[: setting.train], setting.labels_N[setting.train :], setting.labels_N[pairs_A]
    target_AD = setting.target[pairs_A]
    directions_ND = unit(setting.target - target_AD.mean(0))
    x_ND = layer_norm(directions_ND, directions_ND.shape[-1:])
    own = fitted(x_ND[pairs_A], y_A, classes)
    alone_MC, stitched_MC = logits(own, x_ND[setting.train :], y_A), logits(stitched, z_MR, y_N)
    found = {"alone": right(alone_MC, y_M), "sum": right(alone_MC + stitched_MC, y_M)}
    rows, labels = torch.cat([z_NR, left_out(target_AD, DEFAULT)]), torch.cat([y_N, y_A])
    for share in JOINT:
        counts = torch.cat([torch.ones(len(y_N)), torch.full((len(y_A),), share * len(y_N) / len(y_A))])
        found[f"joint, {share}"] = right(logits(fitted(rows, labels, classes, counts), z_MR), y_M)
    return found


def right(logits_MC: Tensor, labels_M: Tensor) -> float:
    """Accuracy."""
    return float((logits_MC.argmax(1) == labels_M).float().mean())


def _name(frame: tuple[float, float]) -> str:
    return "default" if frame == DEFAULT else f"width {frame[0]}, ridge {frame[1]}"


# -- report


LABELLED = ("default", "alone", "joint, 0.1", "joint, 0.2", "joint, 0.3", "sum", "bound")


WAYS = ("default", *(_name(frame) for frame in FRAMES[1:]), "chosen by held-out pairs")


def table(found: dict[str, dict[str, dict[str, list[float]]]], ways: tuple[str, ...]) -> str:
    """Mean over draws of some ways, and the deviation with the default."""
    rows = []
    for setting, by_size in found.items():
        for k, scores in sorted(by_size.items(), key=lambda item: int(item[0])):
            spread = f"{np.mean(scores['default']):.3f} ± {np.std(scores['default']):.3f}"
            rows.append([setting, int(k), spread, *(float(np.mean(scores[way])) for way in ways[1:])])
    return markdown(("setting", "pairs", *ways), rows)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        "benchmarks.few_pairs", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with trec.parquet, debian_descriptions.parquet"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/cross_modal"), help="what encoders say, kept there")
    parser.add_argument("--draws", type=int, default=3, help="sets of pairs (3)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of pairs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    file = arguments.output / "results.json"  # other numbers of pairs stay in it
    found: dict[str, dict[str, dict[str, list[float]]]] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for name, read in SETTINGS.items():
        with quiet(), timed(name):
            setting = read(arguments)
            found.setdefault(name, {})
            for k in (k for k in arguments.sizes if k <= setting.train):
                scores = defaultdict(list)
                for seed in range(arguments.draws):
                    for way, score in of_draw(setting, k, seed).items():
                        scores[way].append(score)
                found[name][str(k)] = dict(scores)
            write(file, found)
    for ways in (LABELLED, WAYS):
        print(table(found, ways), end="\n\n")


if __name__ == "__main__":
    main()
