"""Probes of one language model that read another one, by depth, and whether the other model uses what they read.

    python -m benchmarks.probes --data data

For each seed a Llama-like and a GPT-NeoX-like model of two layers are trained from scratch, apart from
one another: other packages, tokenizers, chat templates, widths and seeds (`data`, `language_models`). Decoders are
fitted in closed form to relative representations of one model's hidden states, at three depths and with two poolings,
and read the other model at the same share of its depth. Accuracy on test conversations, mean and range over
directions and seeds:

- own: a model with its own decoder. stitched: with that of the other; and as a share of its own.
- absolute: a decoder of hidden states as they are, behind the same kind of model from another seed. It cannot read
  the other kind, whose states have another width.
- labelled anchors: a decoder fitted on the model itself, with the labels of the anchors and nothing else.
- chance: the most frequent class.

Then the state at which the assistant begins is changed along what a decoder reads (`steering`):

- push: from its own class to another one, drawn at random, by half of its length. Share of the next token that is of
  the other class, as it was and after.
- remove: all directions that tell the classes apart. Share of the next token that is of the state's own class.

along the other model's decoder, pulled back through this model's anchors (stitched), the same times the covariance of
this model's unlabelled states (pattern, as Haufe et al., 2014), the model's own decoder, its class means, and random
directions. Models are kept in `--cache`. Decoders and directions choose nothing on the test conversations; the design
of the benchmark was changed after a look at them.
Shapes: N samples, D width, C classes, R relative size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.probes import steering
from benchmarks.probes.data import CLASSES, TOLD, Asked, Data, load
from benchmarks.probes.language_models import KINDS, POOLINGS, states_of, trained
from benchmarks.reporting import console, machine, markdown, quiet, timed, write
from hf_relreps import RelativeDecoder, RelativeSpace
from hf_relreps.projection import Frame, frame_of, project


RESULTS = Path(__file__).parents[1] / "results" / "probes"
STEPS = ("0", "1/2", "1")  # share of a model's layers
PARTS = ("anchors", "fit", "test")
STEERED = (1,)  # steps with layers above and below
SPACE = RelativeSpace(fingerprint="0" * 64)
STRENGTH = 0.5
HEADS = ("probe", "pooling", "depth", "own", "stitched", "stitched / own", "absolute", "labelled anchors", "chance")
STEERING_HEADS = (
    "next token",
    "depth",
    "change",
    "before",
    "stitched",
    "stitched, pattern",
    "own probe",
    "class means",
    "random",
)


@dataclass
class Reader:
    """One language model, and its hidden states of what the probes of a seed read."""

    name: str
    model: Any
    tokenizer: Any
    data: Data
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in PARTS:
            talks = [asked.talk for asked in getattr(self.data, part)]
            self.states[part] = states_of(self.model, self.tokenizer, talks)

    def depth(self, step: int) -> int:
        """The hidden state at a share of the layers."""
        return step * self.model.config.num_hidden_layers // (len(STEPS) - 1)

    def at(self, part: str, pooling: str, step: int) -> Tensor:
        """Hidden states (N, D)."""
        return self.states[part][pooling][:, self.depth(step)]

    def frame(self, pooling: str, step: int) -> tuple[Frame, RelativeSpace]:
        """What relative representations at a depth are computed with."""
        anchors_AD = self.at("anchors", pooling, step)
        space = SPACE.replace(num_anchors=len(anchors_AD))
        return frame_of(anchors_AD, space), space

    def relative(self, part: str, pooling: str, step: int) -> Tensor:
        """Relative representations (N, R)."""
        return project(self.at(part, pooling, step), *self.frame(pooling, step))


def labelled(asked: list[Asked], probe: str) -> tuple[Tensor, Tensor]:
    """Rows that a probe has a class of, and the classes."""
    rows = [i for i, one in enumerate(asked) if probe in one.classes]
    return torch.tensor(rows), torch.tensor([asked[i].classes[probe] for i in rows])


def fitted(x_NR: Tensor, classes_N: Tensor, probe: str) -> RelativeDecoder:
    """A decoder in closed form of vectors of any kind."""
    like = SPACE.replace(num_anchors=x_NR.shape[1])
    return RelativeDecoder.fit_ridge(x_NR, classes_N, like, num_labels=len(CLASSES[probe])).eval()


def right(decoder: RelativeDecoder, x_NR: Tensor, classes_N: Tensor) -> float:
    """Share of classes that are told right."""
    return float((decoder(x_NR).logits.argmax(1) == classes_N).float().mean())


def read_by_depth(readers: list[Reader], others: dict[str, Reader]) -> dict[str, Any]:
    """Accuracies by probe, pooling and depth; `others` are of the same kinds from another seed."""
    data = readers[0].data
    rows = {probe: {part: labelled(getattr(data, part), probe) for part in PARTS} for probe in CLASSES}
    found: dict[str, Any] = {}
    for probe, parts in rows.items():
        counts = torch.bincount(parts["test"][1])
        sizes = {part: len(classes_N) for part, (_, classes_N) in parts.items()}
        found[probe] = {"chance": float(counts.max() / counts.sum()), "rows": sizes}
    for pooling in POOLINGS:
        # Before any layer the last token is the same in all conversations.
        for step in range(1 if pooling == "last" else 0, len(STEPS)):
            spaces = [Space(one, others.get(one.name), pooling, step) for one in readers]
            for probe, parts in rows.items():
                found[probe][f"{pooling}, {STEPS[step]}"] = compared(spaces, parts, probe)
    return found


class Space:
    """What one reader makes of all parts at one depth, and what another seed of its kind makes of the test part."""

    def __init__(self, one: Reader, other: Reader | None, pooling: str, step: int) -> None:
        self.name = one.name
        self.relative = {part: one.relative(part, pooling, step) for part in PARTS}
        self.absolute = normalize(one.at("fit", pooling, step), dim=-1)
        self.other = "" if other is None else other.name
        self.of_other = None if other is None else normalize(other.at("test", pooling, step), dim=-1)


def compared(spaces: list[Space], parts: dict[str, tuple[Tensor, Tensor]], probe: str) -> dict[str, dict[str, float]]:
    """Accuracies of one probe at one depth."""
    cell: dict[str, dict[str, float]] = {name: {} for name in ("own", "stitched", "absolute", "labelled anchors")}
    (anchors, on_anchors), (fit, on_fit), (test, wanted) = (parts[part] for part in PARTS)
    for one in spaces:
        decoder = fitted(one.relative["fit"][fit], on_fit, probe)
        for other in spaces:
            way, name = ("own", one.name) if other is one else ("stitched", f"{other.name} > {one.name}")
            cell[way][name] = right(decoder, other.relative["test"][test], wanted)
        decoder = fitted(one.relative["anchors"][anchors], on_anchors, probe)
        cell["labelled anchors"][one.name] = right(decoder, one.relative["test"][test], wanted)
        if one.of_other is not None:
            decoder = fitted(one.absolute[fit], on_fit, probe)
            cell["absolute"][f"{one.other} > {one.name}"] = right(decoder, one.of_other[test], wanted)
    return cell


def steered(one: Reader, other: Reader, probe: str, kinds_VC: Tensor, step: int, seed: int) -> dict[str, Any]:
    """What the model `one` says next, with its states changed along decoders of `other` and along controls."""
    data, depth = one.data, one.depth(step)
    fit, on_fit = labelled(data.fit, probe)
    test, own_N = labelled(data.test, probe)
    talks, x_ND = [data.test[i].talk for i in test], one.at("test", "last", step)[test]
    frame, space = one.frame("last", step)
    num = len(CLASSES[probe])

    def pulled_back(reader: Reader) -> Tensor:
        decoder = fitted(reader.relative("fit", "last", step)[fit], on_fit, probe)
        return steering.gradients(lambda x: decoder(project(x, frame, space)).logits, x_ND)

    where = {"stitched": pulled_back(other)}
    where["stitched, pattern"] = where["stitched"] @ torch.cov(one.at("fit", "last", step)[fit].T)
    where["own probe"] = pulled_back(one)
    where["class means"] = steering.class_means(one.at("fit", "last", step)[fit], on_fit, num, len(test))
    where["random"] = steering.at_random(where["stitched"], seed)
    target_N = (own_N + torch.from_numpy(np.random.default_rng(seed).integers(1, num, len(own_N)))) % num
    each_N = torch.arange(len(test))

    def says(moved_ND: Tensor | None) -> Tensor:
        return steering.says(one.model, one.tokenizer, talks, kinds_VC, depth, moved_ND)

    plain_NC = says(None)
    push = {"before": float(plain_NC[each_N, target_N].mean())}
    remove = {"before": float(plain_NC[each_N, own_N].mean())}
    for name, where_NCD in where.items():
        moved_ND = steering.pushed(x_ND, where_NCD, own_N, target_N, STRENGTH)
        push[name] = float(says(moved_ND)[each_N, target_N].mean())
        remove[name] = float(says(steering.without(x_ND, where_NCD))[each_N, own_N].mean())
    return {"push": push, "remove": remove, "says its class": float((plain_NC.argmax(1) == own_N).float().mean())}


def all_steered(readers: list[Reader], seed: int) -> dict[str, Any]:
    """Both directions, at the depths with layers above and below."""
    found: dict[str, Any] = {}
    for one, other in zip(readers, readers[::-1], strict=True):
        for probe in TOLD:
            kinds_VC = steering.tokens_of(one.tokenizer, probe)
            for step in STEERED:
                cell = steered(one, other, probe, kinds_VC, step, seed)
                found.setdefault(f"{probe}, {STEPS[step]}", {})[one.name] = cell
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is not there yet, read and steer, for each seed."""
    found: dict[str, Any] = {"read": [], "steered": []}
    readers: list[dict[str, Reader]] = []
    number = len(KINDS) * arguments.seeds
    for seed in range(arguments.seeds):
        data = load(arguments, seed, number)
        made = {}
        for i, kind in enumerate(KINDS):
            folder = arguments.cache / f"{kind}-{seed}-{arguments.rows}-{arguments.epochs}-of-{number}"
            with timed(f"{kind}, seed {seed}"):
                parts = trained(kind, data.training[len(KINDS) * seed + i], seed, arguments, folder)
                made[kind] = Reader(f"{kind}-{seed}", *parts, data)
        readers.append(made)
    for seed, made in enumerate(readers):
        beside = readers[(seed + 1) % len(readers)]
        others = {one.name: beside[kind] for kind, one in made.items() if len(readers) > 1}
        with timed(f"seed {seed}, read"):
            found["read"].append(read_by_depth(list(made.values()), others))
        with timed(f"seed {seed}, steered"):
            found["steered"].append(all_steered(list(made.values()), seed))
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Means over directions and seeds, with the range."""
    lines = []
    for probe in CLASSES:
        for cell in (name for name in found[0][probe] if ", " in name):
            parts: dict[str, list[float]] = {}
            for seed in (one[probe][cell] for one in found):
                for name, scores in seed.items():
                    parts.setdefault(name, []).extend(scores.values())
                kept = [score / seed["own"][name.split(" > ")[0]] for name, score in seed["stitched"].items()]
                parts.setdefault("stitched / own", []).extend(kept)
            chance = f"{np.mean([one[probe]['chance'] for one in found]):.3f}"
            lines.append([probe, *cell.split(", "), *(_spread(parts[name]) for name in HEADS[3:-1]), chance])
    return markdown(HEADS, lines)


def steering_table(found: list[dict[str, Any]]) -> str:
    """The same of what the models say next."""
    lines = []
    for cell in found[0]:
        for change in ("push", "remove"):
            parts = [one[change] for seed in found for one in seed[cell].values()]
            lines.append(
                [*cell.split(", "), change, *(_spread([p[name] for p in parts]) for name in STEERING_HEADS[3:])]
            )
    return markdown(STEERING_HEADS, lines)


def _spread(values: Iterable[float]) -> str:
    found = list(values)
    return f"{np.mean(found):.3f} ({min(found):.2f}-{max(found):.2f})" if found else "-"


def parser() -> argparse.ArgumentParser:
    """What can be set."""
    made = argparse.ArgumentParser(
        "benchmarks.probes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of debian_descriptions and trec")
    made.add_argument("--cache", type=Path, default=Path(".cache/probes"), help="the language models, kept there")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--rows", type=int, default=7000, help="packages that each model is trained on")
    made.add_argument("--epochs", type=int, default=4, help="of each model")
    made.add_argument("--anchors", type=int, default=768)
    made.add_argument("--fit", type=int, default=2500, help="packages, and questions, that probes are fitted on")
    made.add_argument("--test", type=int, default=1000, help="packages that they are tested with")
    made.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    return made


def main() -> None:
    """Measure, print the tables, write the JSON."""
    arguments = parser().parse_args()
    with quiet(), torch.no_grad():
        found = measure(arguments)
    console.print(table(found["read"]), "\n", markup=False)
    console.print(steering_table(found["steered"]), markup=False)
    write(arguments.output / "results.json", {"machine": machine(), **found})


if __name__ == "__main__":
    main()
