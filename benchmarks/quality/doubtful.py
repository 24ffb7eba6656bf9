"""Encoders behind decoders, of which some stitch well and some do not: what a prediction must tell apart.

Beside whole pairs: few anchors, anchors of one class only, anchors some of whose pairs are exchanged, and encoders
that lost most of their directions.
Shapes: N samples of a setting, M of them that nothing is trained on, P stitched pairs, S seeds, D absolute size,
R relative size, C classes, A anchors.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.assets.text_encoders import text_features
from benchmarks.assets.texts import LONGEST, load_debian, load_english, load_glosses
from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.spaces import Spaces
from benchmarks.quality.stitched import DECODERS, all_relative, choose, config_of, exchanged, relative


class Way(NamedTuple):
    """One way to describe."""

    projection: str
    strategy: str
    k: int


WAYS = (
    *(Way("default", "kmeans", k) for k in (20, 50, 100, 300, 768)),
    Way("default", "one class", 300),
    Way("centred cosine", "uniform", 300),
    Way("cosine", "uniform", 300),
    Way("cosine", "uniform", 50),
)
TEXTS = {"text": "debian", "glosses": "glosses"}
MORE_TEXTS = {"debian": 3000, "glosses": 1500}  # 600 alone measure a ratio with an error of .03
MOST_ENCODERS = 4
HARMED = 100  # with fewer anchors nothing else is done to them
EXCHANGED = (0.1, 0.3, 0.5)  # shares of anchors whose pairs are wrong
WEAK = (8, 32)  # principal directions that are left of an encoder


class Stitched(NamedTuple):
    """One encoder behind one decoder, on samples that neither has seen."""

    way: Way
    decoder_type: str
    seed: int
    harm: str
    encoder: str
    decoder: str
    own_MC: Tensor  # scores behind the decoder's own encoder
    stitched_MC: Tensor  # and behind the other

    @property
    def whole(self) -> bool:
        """Whether it is what a user would make: the default projection with anchors that nobody harmed."""
        return self.way.projection == "default" and self.way.strategy == "kmeans" and not self.harm


def spaces_of(name: str, arguments: Namespace) -> Spaces:
    """A setting; of texts with more samples that nothing is trained on."""
    spaces = SETTINGS[name](arguments)
    if len(spaces.x) > MOST_ENCODERS:  # two of each architecture
        spaces = replace(spaces, x={encoder: x_ND for encoder, x_ND in spaces.x.items() if encoder.endswith("-1")})
    if name not in TEXTS:
        return spaces
    texts, labels_M = _more_texts(TEXTS[name], arguments)
    more = {encoder: text_features(encoder, texts, arguments.cache, arguments.assets) for encoder in spaces.x}
    rows_M = len(spaces.labels_N) + np.arange(len(texts))
    return replace(
        spaces,
        x={encoder: torch.cat([x_ND, more[encoder]]) for encoder, x_ND in spaces.x.items()},
        labels_N=np.concatenate([spaces.labels_N, labels_M]),
        test_N=np.concatenate([spaces.test_N, rows_M]),
    )


def _more_texts(name: str, arguments: Namespace) -> tuple[list[str], np.ndarray]:
    known = load_english(name, arguments.data, arguments.assets)
    seen = set(known["text"][:])
    if name == "glosses":
        rows = load_glosses(arguments.assets, size=len(seen) + MORE_TEXTS[name])
    else:
        file = None if arguments.data is None else arguments.data / "debian_descriptions.parquet"
        rows = load_debian(file, languages=("en",)).rename_column("en", "text")
    names = rows.features["label"].names
    labels = {row["text"][:LONGEST]: known.features["label"].names.index(names[row["label"]]) for row in rows}
    new = [text for text in labels if text not in seen]
    texts = [new[i] for i in np.random.default_rng(1).permutation(len(new))[: MORE_TEXTS[name]]]
    return texts, np.array([labels[text] for text in texts])


def kept(name: str, arguments: Namespace, seeds: int) -> tuple[list[Stitched], np.ndarray]:
    """All stitched pairs of one setting, and the labels of their samples (S, M); from the cache if they are there."""
    file = arguments.cache / f"doubtful-{name}-{seeds}.npz"
    if not file.is_file():
        spaces = spaces_of(name, arguments)
        found = list(pairs_of(spaces, seeds))
        np.savez(
            file,
            made=np.array([(*map(str, pair.way), *map(str, pair[1:6])) for pair in found]),
            own_PMC=np.stack([pair.own_MC.half().numpy() for pair in found]),
            stitched_PMC=np.stack([pair.stitched_MC.half().numpy() for pair in found]),
            labels_SM=spaces.labels_N[np.stack([samples_of(spaces, seed) for seed in range(seeds)])],
        )
    content = np.load(file)
    own_PMC, stitched_PMC = (torch.from_numpy(content[key]) for key in ("own_PMC", "stitched_PMC"))
    pairs = [
        Stitched(Way(projection, strategy, int(k)), kind, int(seed), harm, *names, own_PMC[i], stitched_PMC[i])
        for i, (projection, strategy, k, kind, seed, harm, *names) in enumerate(content["made"].tolist())
    ]
    return pairs, content["labels_SM"]


def samples_of(spaces: Spaces, seed: int) -> np.ndarray:
    """Rows that nothing is trained on, in an order of the seed: the first serve as pairs, the others to measure."""
    return np.random.default_rng(seed).permutation(np.concatenate([spaces.val_N, spaces.test_N]))


def pairs_of(spaces: Spaces, seeds: int) -> Iterator[Stitched]:
    """All pairs of one setting."""
    weak = {size: {name: _weakened(x_ND, spaces.free_N, size) for name, x_ND in spaces.x.items()} for size in WEAK}
    for seed in range(seeds):
        rows_N = samples_of(spaces, seed)
        for way in WAYS:
            anchors_A = _anchors(spaces, way, seed)
            if anchors_A is None:
                continue
            config = config_of(way.projection, len(anchors_A), spaces.num_classes)
            r = all_relative(spaces, anchors_A, config.space)
            others = {"": {name: r_NR[rows_N] for name, r_NR in r.items()}}
            if way.k > HARMED:
                for share in EXCHANGED:
                    places = np.random.default_rng(seed).permutation(len(anchors_A))
                    wrong_A = exchanged(anchors_A, places[: int(share * len(anchors_A))])
                    others[f"{share:.0%} of the pairs exchanged"] = {
                        name: relative(x_ND[rows_N], x_ND[wrong_A], config.space) for name, x_ND in spaces.x.items()
                    }
                for size, x in weak.items():
                    others[f"{size} directions left"] = {
                        name: relative(x_ND[rows_N], x_ND[anchors_A], config.space) for name, x_ND in x.items()
                    }
            yield from _behind(spaces, r, others, way, config, seed)


def _behind(spaces: Spaces, r: Any, others: Any, way: Way, config: Any, seed: int) -> Iterator[Stitched]:
    labels_N = spaces.labels_N[spaces.train_N]
    for decoder_type, fit in DECODERS.items():
        for number, own in enumerate(r):
            decode = fit(r[own][spaces.train_N], labels_N, config, 1000 * (seed + 1) + number)
            own_MC = decode(others[""][own])
            for harm, of_harm in others.items():
                for name, r_NR in of_harm.items():
                    if name != own:
                        yield Stitched(way, decoder_type, seed, harm, name, own, own_MC, decode(r_NR))


def _anchors(spaces: Spaces, way: Way, seed: int) -> np.ndarray | None:
    if way.strategy != "one class":
        return choose(spaces, way.k, way.strategy, seed) if way.k <= len(spaces.free_N) else None
    labels_N = spaces.labels_N[spaces.free_N]
    of_class_N = spaces.free_N[labels_N == np.bincount(labels_N).argmax()]
    return np.random.default_rng(seed).permutation(of_class_N)[: way.k]


def _weakened(x_ND: Tensor, free_N: np.ndarray, size: int) -> Tensor:
    """What is left of a space when all but its first principal directions are lost."""
    centred_ND = x_ND - x_ND[free_N].mean(0)
    _, _, directions_DD = torch.linalg.svd(centred_ND[free_N], full_matrices=False)
    return centred_ND @ directions_DD[:size].T
