"""How far to trust an answer of a stitched model: what tells wrong answers, what tells foreign inputs, in tables.

    python -m benchmarks.trust --assets ASSETS --data DATA          # all settings; --report prints the tables again

Frozen encoders; each decoder (a ridge regression, and an `mlp` that is trained) is fitted behind its own encoder and
read behind the other. Nothing sees a label of the test samples. What `hf_relreps.trust` does was chosen on
`settings.CHOSEN_ON` and confirmed on `settings.CONFIRMED_ON`.
Shapes: N samples, P pairs, M test samples, D absolute size, A anchors, R relative size, C classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.reporting import console, markdown, quiet, timed, write
from benchmarks.trust.measures import auroc, calibration_error, risk_coverage
from benchmarks.trust.settings import CHOSEN_ON, SETTINGS, Case
from hf_relreps import RelativeDecoder, RelativeDecoderConfig, RelativeEncoderConfig, RelativeSpace
from hf_relreps.evaluation import anchor_coverage
from hf_relreps.prediction import sharpening
from hf_relreps.projection import RelativeProjection
from hf_relreps.trust import Familiarity, mean_with_taught


RESULTS = Path(__file__).parents[1] / "results" / "trust"
SIZES = (300, 768)
EPOCHS, BATCH, RATE = 20, 32, 1e-3  # of the mlp
KINDS = ("ridge", "mlp")
GOALS = {"errors": "softmax + .03", "foreign": "above .85", "calibration": "below .06"}


def main(words: list[str] | None = None) -> None:
    """Measure settings, or print what was measured."""
    parser = argparse.ArgumentParser("benchmarks.trust", description=__doc__.split("\n")[0])
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), metavar="setting", help=", ".join(SETTINGS))
    parser.add_argument("--report", action="store_true", help="measure nothing, print the tables")
    parser.add_argument("--seeds", type=int, default=2, help="of anchors and decoders (2)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/trust"), help="what encoders say, kept there")
    parser.add_argument("--assets", type=Path, help="folder of packages; see benchmarks/assets")
    parser.add_argument("--data", type=Path, help="folder with trec.parquet and cifar10.parquet")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    for name in () if arguments.report else arguments.settings:
        with quiet(), timed(name):
            write(arguments.output / f"{name}.json", measured(name, arguments), indent=None)
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(arguments.output.glob("*.json"))}
    for title, table in tables({name: found[name] for name in SETTINGS if name in found}).items():
        console.print(f"\n{title}\n\n{table}", markup=False)


def measured(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each direction, number of anchors, seed and kind of decoder."""
    rows = []
    for direction, case in enumerate(SETTINGS[name](arguments)):
        for k in SIZES:
            for seed in range(arguments.seeds):
                anchors_A = case.anchors(k, seed)
                told = {"direction": direction, "anchors": len(anchors_A), "seed": seed}
                rows += [told | row for row in _of_case(case, anchors_A, seed)]
    return rows


def _of_case(case: Case, anchors_A: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    space = RelativeSpace(fingerprint="0" * 64, num_anchors=len(anchors_A))
    own, other = (_projection(x_ND, anchors_A, space) for x_ND in (case.own, case.other))
    with torch.no_grad():
        taught_on = np.concatenate([anchors_A, case.pairs_P])
        r_NR, own_NR = other(case.other[taught_on]), own(case.own[taught_on])
        test_MR, own_test_MR = other(case.other[case.test_M]), own(case.own[case.test_M])
        away = {name: (x_FD, other(x_FD)) for name, x_FD in case.foreign.items()}
        train_NR = own(case.own[case.train_N])
    labels_N, num_labels = torch.tensor(case.labels_N[case.train_N]), int(case.labels_N.max()) + 1
    decoders = {
        "ridge": RelativeDecoder.fit_ridge(train_NR, labels_N, space, num_labels=num_labels),
        "mlp": _mlp(train_NR, labels_N, space, num_labels, seed),
    }
    truth_M = case.labels_N[case.test_M]
    for kind, decoder in decoders.items():
        both = decoders["mlp" if kind == "ridge" else "ridge"]
        with torch.no_grad():
            yield {"decoder": kind} | _figures(
                decoder, both, r_NR, own_NR, test_MR, own_test_MR, truth_M, case, anchors_A, away
            )


def _figures(
    decoder: RelativeDecoder,
    second: RelativeDecoder,
    r_NR: Tensor,
    own_NR: Tensor,
    test_MR: Tensor,
    own_test_MR: Tensor,
    truth_M: np.ndarray,
    case: Case,
    anchors_A: np.ndarray,
    away: dict[str, tuple[Tensor, Tensor]],
) -> dict[str, Any]:
    k = len(anchors_A)
    mean = mean_with_taught(decoder, r_NR, own_NR, k)
    logits_MC, said_MC = decoder(test_MR).logits, mean(test_MR).logits.softmax(-1)
    p_MC, answers_M = logits_MC.softmax(-1), logits_MC.argmax(-1)
    wrong_M, wrong_of_mean_M = answers_M.numpy() != truth_M, said_MC.argmax(-1).numpy() != truth_M
    only_anchors = mean_with_taught(decoder, torch.cat([r_NR[:k]] * 2), torch.cat([own_NR[:k]] * 2), k)
    two_MC = (p_MC + second(test_MR).logits.softmax(-1)) / 2
    # Seen from the mean of all that is asked: it knows more than one sample tells.
    coverage_M = anchor_coverage(case.other[case.test_M], case.other[anchors_A])
    top = p_MC.topk(2).values
    errors = {
        "softmax": p_MC.amax(-1),
        "margin": top[:, 0] - top[:, 1],
        "entropy": (p_MC * p_MC.clamp_min(1e-12).log()).sum(-1),
        "coverage of the batch": coverage_M,
        "length of r": test_MR.norm(dim=-1),
        "margin and coverage of the batch": _ranks(top[:, 0] - top[:, 1]) + _ranks(coverage_M),
        "mlp and ridge": _of(two_MC, answers_M),
        "taught on anchors": _of(only_anchors(test_MR).logits.softmax(-1), answers_M),
        "calibrated": _of(said_MC, answers_M),
    }
    # The temperature of the softmax alone, from the same pairs.
    own_P = torch.nn.functional.one_hot(decoder(own_NR[k:]).logits.argmax(-1), logits_MC.shape[-1]).double()
    tempered_MC = (logits_MC * sharpening(decoder(r_NR[k:]).logits.double(), own_P)).softmax(-1)
    untempered_MC = mean(test_MR).logits.mul(mean.config.temperature or 1).softmax(-1)
    scores = {"softmax": p_MC, "softmax, temperature": tempered_MC, "mlp and ridge": two_MC}
    scores |= {"mean without temperature": untempered_MC, "calibrated": said_MC}
    return {
        "accuracy": {
            "own": float((decoder(own_test_MR).logits.argmax(-1).numpy() == truth_M).mean()),
            "stitched": float(1 - wrong_M.mean()),
            "calibrated": float(1 - wrong_of_mean_M.mean()),
        },
        "temperature": mean.config.temperature,
        "errors": {way: auroc(wrong_M, trust_M.numpy()) for way, trust_M in errors.items()}
        | {"calibrated, its own answers": auroc(wrong_of_mean_M, said_MC.amax(-1).numpy())},
        "risk coverage": {way: risk_coverage(wrong_M, trust_M.numpy()) for way, trust_M in errors.items()}
        | {"calibrated, its own answers": risk_coverage(wrong_of_mean_M, said_MC.amax(-1).numpy())},
        "calibration": {
            way: calibration_error(one.argmax(-1).numpy() != truth_M, one.amax(-1).numpy())
            for way, one in scores.items()
        },
        "foreign": _foreign(decoder, case, anchors_A, test_MR, away),
    }


def _foreign(
    decoder: RelativeDecoder,
    case: Case,
    anchors_A: np.ndarray,
    test_MR: Tensor,
    away: dict[str, tuple[Tensor, Tensor]],
) -> dict[str, dict[str, float]]:
    test_MD, anchors_AD = case.other[case.test_M], case.other[anchors_A]
    familiar = Familiarity(anchors_AD)
    more = Familiarity(torch.cat([anchors_AD, case.other[case.pairs_P]]))
    found: dict[str, dict[str, float]] = {}
    for name, (x_FD, r_FR) in away.items():
        coverage = anchor_coverage(torch.cat([test_MD, x_FD]), anchors_AD)
        ways = {
            "softmax": torch.cat([decoder(r).logits.softmax(-1).amax(-1) for r in (test_MR, r_FR)]),
            "coverage of the batch": coverage,
            "length of r": torch.cat([test_MR, r_FR]).norm(dim=-1),
            "familiarity, anchors": familiar(torch.cat([test_MD, x_FD])),
            "familiarity, anchors and pairs": more(torch.cat([test_MD, x_FD])),
        }
        is_foreign = np.repeat([False, True], [len(test_MD), len(x_FD)])
        found[name] = {way: auroc(is_foreign, trust.numpy()) for way, trust in ways.items()}
        found[name]["share below .05, own"] = float((more(test_MD) < 0.05).float().mean())
        found[name]["share below .05, foreign"] = float((more(x_FD) < 0.05).float().mean())
    return found


def _projection(x_ND: Tensor, anchors_A: np.ndarray, space: RelativeSpace) -> RelativeProjection:
    projection = RelativeProjection(RelativeEncoderConfig(space=space, embedding_size=x_ND.shape[1]))
    projection.set_anchors(x_ND[anchors_A])
    return projection


def _mlp(r_NR: Tensor, labels_N: Tensor, space: RelativeSpace, num_labels: int, seed: int) -> RelativeDecoder:
    """The default decoder, from where `AnchorCallback` starts it."""
    torch.manual_seed(seed)
    decoder = RelativeDecoder(RelativeDecoderConfig(space=space, num_labels=num_labels))
    decoder.fit(r_NR, labels_N)
    decoder.train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for rows_B in torch.randperm(len(r_NR)).split(BATCH):
            optimizer.zero_grad()
            decoder(r_NR[rows_B], labels=labels_N[rows_B]).loss.backward()
            optimizer.step()
    return decoder.eval()


def _of(p_MC: Tensor, answers_M: Tensor) -> Tensor:
    return p_MC.gather(1, answers_M[:, None])[:, 0]


def _ranks(values_M: Tensor) -> Tensor:
    return values_M.argsort().argsort().double()


def tables(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Means over directions, numbers of anchors and seeds, as Markdown; a column for each setting."""
    made = {}
    heads = [*(f"{name}" if name in CHOSEN_ON else f"{name} (confirmed)" for name in found)]
    for kind in KINDS:
        rows = {name: [row for row in of if row["decoder"] == kind] for name, of in found.items()}
        for what in ("errors", "risk coverage", "calibration", "accuracy"):
            ways = list(dict.fromkeys(way for of in rows.values() for way in of[0][what]))
            cells = [[way, *(_mean([row[what][way] for row in of]) for of in rows.values())] for way in ways]
            made[f"{what}, {kind} decoder"] = markdown([GOALS.get(what, ""), *heads], cells)
    # Foreign inputs: those of the ridge decoder; its softmax aside, the numbers are the encoder's alone.
    rows = {name: [row for row in of if row["decoder"] == "ridge"] for name, of in found.items()}
    columns = [(name, away) for name, of in rows.items() for away in of[0]["foreign"]]
    ways = list(rows[columns[0][0]][0]["foreign"][columns[0][1]])
    cells = [
        [way, *(_mean([row["foreign"][away][way] for row in rows[name]]) for name, away in columns)] for way in ways
    ]
    made["foreign"] = markdown([GOALS["foreign"], *(f"{name}: {away}" for name, away in columns)], cells)
    return made


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    main()
