"""Writes `docs/quality.md` from the figures in `benchmarks/results/quality`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np

from benchmarks.quality.settings import CHOSEN_ON, ENCODERS, SETTINGS
from benchmarks.reporting import picture, table_head, table_row


DOCUMENT = Path(__file__).parents[2] / "docs" / "quality.md"
TEXT = Path(__file__).parent / "quality_template.md"
PICTURE = Path(__file__).parents[1] / "results" / "quality" / "at_a_glance.png"
GLANCE = ("ridge", 300)  # the decoder and the number of anchors that the picture and the first table show
SHOWN = (("default", "kmeans"), ("default", "uniform"), ("centred cosine", "uniform"), ("cosine", "uniform"))
PREDICTED = {
    "all": "All stitched pairs, most of them bad on purpose",
    "whole": "Those that a user would make: the default projection, 20 to 768 k-means anchors, nothing harmed",
    "many": "Of these the ones with 300 or 768 anchors",
}
POOLS = {"same": "the same samples", "half": "half in common", "none": "none in common"}
SHARES = ("stitched / own", "worst / own", "worst / bound")
NAMES = {"default": "default", "centred cosine": "centred cosine", "cosine": "the paper's cosine"}


def write(results: Path) -> None:
    """Fill the template with what was measured."""
    text = TEXT.read_text("utf-8")
    draw(results)
    parts = {
        "glance": list(_glance(results)),
        "settings": list(_settings(results)),
        "matching": list(_matching(_read(results, "matching"))),
        "unpaired": list(_unpaired(_read(results, "matching"))),
        "trust": list(_trust(_read(results, "matching"))),
        "wrong": list(_wrong(_read(results, "anchors"))),
        "curve": list(_curve(_read(results, "anchors"))),
        "prediction": list(_prediction(_read(results, "prediction"))),
    }
    for name, lines in parts.items():
        text = text.replace("{{" + name + "}}", "\n".join(lines))
    DOCUMENT.write_text(text, "utf-8")


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text("utf-8"))


# -- at a glance


def _found(results: Path) -> dict[str, Any]:
    return {name: _read(results, name) for name in SETTINGS if (results / f"{name}.json").exists()}


def _variant(
    found: dict[str, Any], projection: str, strategy: str, k: int, decoder: str = GLANCE[0]
) -> dict[str, Any]:
    wanted = (projection, strategy, k, decoder)
    return next(v for v in found["variants"] if (v["projection"], v["strategy"], v["k"], v["decoder"]) == wanted)


def of_bound(variant: dict[str, Any]) -> float:
    """The worst pair's score over its bound: what a decoder trained with all labels on that encoder reaches."""
    scores_EE = np.array(variant["pairs"], dtype=float)  # encoder by decoder
    share_EE = scores_EE / scores_EE.diagonal()[:, None]
    return float(share_EE[~np.eye(len(share_EE), dtype=bool)].min())


def _glance(results: Path) -> Iterator[str]:
    heads = (
        "own",
        "stitched, 300 anchors",
        "of own",
        "worst pair, of own",
        "worst pair, of its bound",
        "768 anchors, of own",
    )
    yield table_head(("setting", *heads, "the paper's cosine", "labels of the anchors alone", "absolute", "chance"))
    for name, found in _found(results).items():
        default = _variant(found, "default", "kmeans", GLANCE[1])
        figures = [default[key] for key in ("own", "stitched", "ratio", "worst_ratio")]
        figures += [of_bound(default), _variant(found, "default", "kmeans", 768)["ratio"]]
        cosine, alone = _variant(found, "cosine", "uniform", GLANCE[1]), found["labelled_anchors"]["300 kmeans"][0]
        controls = [cosine["stitched"], alone, found["absolute"]["stitched"], float(found["chance"])]
        yield table_row([f"[{name}](#{_place(name)})", *figures, *controls])


def _place(name: str) -> str:
    """Where the heading of a setting is."""
    kept = "".join(sign for sign in f"{name}: {ENCODERS[name]}".lower() if sign.isalnum() or sign in " -")
    return kept.replace(" ", "-")


def draw(results: Path) -> None:
    """One row of points for each setting: what stitching keeps, between what is above and below it."""
    settings = _found(results)
    marks = {
        "own": ("|", "black", lambda f: _variant(f, "default", "kmeans", GLANCE[1])["own"]),
        "stitched": ("o", "tab:blue", lambda f: _variant(f, "default", "kmeans", GLANCE[1])["stitched"]),
        "stitched, worst pair": ("<", "tab:cyan", lambda f: _variant(f, "default", "kmeans", GLANCE[1])["worst"]),
        "labels of the anchors alone": ("D", "tab:green", lambda f: f["labelled_anchors"]["300 kmeans"][0]),
        "stitched, the paper's cosine": (
            "s",
            "tab:orange",
            lambda f: _variant(f, "cosine", "uniform", 300)["stitched"],
        ),
        "stitched, absolute": ("x", "tab:red", lambda f: f["absolute"]["stitched"]),
        "chance": (".", "tab:gray", lambda f: f["chance"]),
    }
    rows = list(range(len(settings)))[::-1]
    with picture(PICTURE, 1, (8, 3.6)) as (_, (axis,)):
        for row in rows:
            axis.axhline(row, color="tab:gray", alpha=0.2, zorder=0)
        for label, (mark, colour, of) in marks.items():
            size = {"|": 160, ".": 60}.get(mark, 36)
            axis.scatter([of(f) for f in settings.values()], rows, s=size, marker=mark, color=colour, label=label)
        axis.set_yticks(rows, list(settings))
        axis.set_xlim(0, 1)
        axis.set_xlabel("macro-F1 with 300 anchors")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncol=4, fontsize="small", frameon=False)


# -- the tables


def _settings(results: Path) -> Iterator[str]:
    for name in SETTINGS:
        if (results / f"{name}.json").exists():
            yield from _setting(name, _read(results, name))


def _setting(name: str, found: dict[str, Any]) -> Iterator[str]:
    about = "chosen on its validation rows" if name in CHOSEN_ON else "nothing was chosen on it"
    sizes = ", ".join(f"{encoder} {width}" for encoder, width in found["encoders"].items())
    yield f"### {name}: {ENCODERS[name]}"
    rows = found["rows"]
    yield f"{rows['train']:,} training and {rows['test']:,} test rows, {found['seeds']} seeds; {about}."
    yield f"Encoders and their widths: {sizes}.\n"
    yield table_head(("projection, anchors", "decoder", "own", "stitched", "±", "worst", *SHARES))
    for k in sorted({variant["k"] for variant in found["variants"]}):
        for projection, strategy in SHOWN:
            for variant in found["variants"]:
                if (variant["projection"], variant["strategy"], variant["k"]) == (projection, strategy, k):
                    figures = [variant[key] for key in ("own", "stitched", "spread", "worst", "ratio", "worst_ratio")]
                    figures.append(of_bound(variant))
                    yield table_row([f"{NAMES[projection]}, {k} {strategy}", variant["decoder"], *figures])
        for strategy in ("kmeans", "uniform"):
            score, spread = found["labelled_anchors"][f"{k} {strategy}"]
            yield table_row(
                [f"the {k} {strategy} anchors with labels, nothing else", "ridge", "", score, spread, *[""] * 4]
            )
    absolute = found["absolute"]
    figures = ["" if absolute[key] is None else absolute[key] for key in ("own", "stitched", "spread", "worst")]
    yield table_row(["absolute control", "ridge", *figures, "", "", ""])
    yield table_row(["chance", "", "", float(found["chance"]), *[""] * 5])
    if "end_to_end" in found:
        whole = found["end_to_end"]
        figures = [whole["own"], whole["stitched"], "", whole["worst"], whole["stitched"] / whole["own"], "", ""]
        yield table_row(["default, trained end to end", "mlp", *figures])
    yield ""


def _matching(found: dict[str, Any]) -> Iterator[str]:
    ways = ("pairs_only", "neighbours", "sinkhorn", "learned", "library")
    heads = ("pairs only", "neighbours", "Sinkhorn", "learned", "`bootstrap`")
    yield table_head(("setting", "pools", "true pairs", "right", "trusted", *heads, "±", f"{found['k']} true"))
    for row in found["rows"]:
        if row["known"]:
            runs, true = row["runs"], [control["true"] for control in found["controls"][row["setting"]]]
            shares = [float(mean(run["library"][key] for run in runs)) for key in ("precision", "trusted")]
            scores = [float(mean(run[way]["stitched"] for run in runs)) if way in runs[0] else "" for way in ways]
            spread = pstdev(run["library"]["stitched"] for run in runs)
            yield table_row([row["setting"], POOLS[row["pools"]], row["known"], *shares, *scores, spread, mean(true)])


def _unpaired(found: dict[str, Any]) -> Iterator[str]:
    ways = ("centroids, grown", "centroids, assigned")
    yield table_head(("setting", "pools", "right", "grown", "assigned", f"{found['k']} true", "own", "chance"))
    for row in found["rows"]:
        if not row["known"]:
            controls = found["controls"][row["setting"]]
            right = float(mean(run[ways[0]]["precision"] for run in row["runs"]))
            scores = [float(mean(run[way]["stitched"] for run in row["runs"])) for way in ways]
            figures = [float(mean(control[key] for control in controls)) for key in ("true", "own", "chance")]
            yield table_row([row["setting"], POOLS[row["pools"]], right, *scores, *figures])


def _trust(found: dict[str, Any]) -> Iterator[str]:
    yield table_head(("setting", "pools", "runs", "right", "trusted", "trusted but wrong", "refused but right"))
    keys = ("runs", "right", "trusted", "false_trust", "false_refusal")
    for row in found["trust"]:
        yield table_row([row["setting"], POOLS[row["pools"]], *(row[key] for key in keys)])


def _wrong(found: dict[str, Any]) -> Iterator[str]:
    yield table_head(
        ("setting", "wrong", "found", "false alarms", "with all pairs", "without those found", "right ones only")
    )
    for setting, study in found.items():
        for row in study["wrong"]:
            keys = ("found", "false_alarms", "all", "kept", "right_ones")
            yield table_row([setting, f"{row['share']:.0%}", *(float(row[key]) for key in keys)])


def _curve(found: dict[str, Any]) -> Iterator[str]:
    strategies = ("uniform", "stratified", "fps", "kmeans")
    yield table_head(("setting", "anchors", *strategies))
    for setting, study in found.items():
        stitched = {(row["strategy"], row["k"]): row["stitched"] for row in study["curve"]}
        for k in sorted({k for _, k in stitched}):
            yield table_row([setting, k, *(stitched[strategy, k] for strategy in strategies)])


def _prediction(found: dict[str, Any]) -> Iterator[str]:
    by_setting = found["pairs"]["300"]
    ways = list(next(iter(by_setting.values()))["all"])
    for which, caption in PREDICTED.items():
        yield f"{caption}:\n"
        yield table_head(("setting", "stitched / own", *ways, "Spearman", "Spearman, own known"))
        for setting, row in by_setting.items():
            chosen = "" if setting in found["chosen_on"] else " (confirmed)"
            errors = [f"{row[which][way]['mean']:.3f} ({row[which][way]['worst']:.2f})" for way in ways]
            ranks = [f"{row[which][way]['spearman']:.2f}" for way in ways[:2]]
            ratios = "{:.2f} to {:.2f}".format(*row["ratios"][which])
            yield table_row([f"{setting}{chosen}", ratios, *errors, *ranks])
        yield ""
    yield "Mean errors by the number of pairs, mean over settings:\n"
    yield table_head(("pairs", "settings", *(f"{way}, {which}" for way in ways[:2] for which in PREDICTED)))
    for number, settings in found["pairs"].items():
        means = [
            float(mean(r[which][way]["mean"] for r in settings.values())) for way in ways[:2] for which in PREDICTED
        ]
        yield table_row([number, ", ".join(settings), *means])
