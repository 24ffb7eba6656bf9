"""Conversations for small language models, and what probes ask of them.

In most of them the user gives the one-line synopsis of a Debian package in one of five languages, and the assistant
names either the package's section or the language, in one token. The others are questions of TREC, which the models
never saw. A probe reads the state at which the assistant begins:

- language: en, fr, it, da or de; section: twelve of Debian. The models are trained to name them.
- role: program, library, files for development, documentation or data, as Debian's tags say. The models are not told.
- form: a question, or a synopsis in English. The models are not told.
- question: what TREC's six kinds of questions ask for. The models are not told.

No package or question that a probe is fitted on or tested with is among those that a model is trained on.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.assets.texts import LANGUAGES, load_trec


SECTIONS = tuple("admin devel doc games java libdevel libs net perl python science utils".split())
ROLES = ("program", "shared-lib", "devel-lib", "documentation", "app-data")
QUESTIONS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")  # typos: ignore
FORMS = ("synopsis", "question")
CLASSES = {"language": LANGUAGES, "section": SECTIONS, "form": FORMS, "role": ROLES, "question": QUESTIONS}
TOLD = ("language", "section")
ANSWERS = {probe: tuple(f"<{name}>" for name in CLASSES[probe]) for probe in TOLD}  # a token each
HELD = 0.25  # share of the packages that no model is trained on
LONGEST = 60  # characters of what the user says

Talk = list[dict[str, str]]


class Asked(NamedTuple):
    """A conversation up to the assistant's turn, and its classes by probe; those that are not known are left out."""

    talk: Talk
    classes: dict[str, int]


class Data(NamedTuple):
    """What the models are trained on, and what the probes of one seed read."""

    training: list[list[Talk]]  # for each model
    anchors: list[Asked]
    fit: list[Asked]
    test: list[Asked]


def load(arguments: Namespace, seed: int, models: int) -> Data:
    """All models have their own packages to train on; anchors and rows to fit on depend on the seed."""
    packages = read_packages(arguments.data / "debian_descriptions.parquet")
    train, test = (load_trec(arguments.data / "trec.parquet", split) for split in ("train", "test"))
    questions = [_question(row) for row in train]
    held = int(HELD * len(packages))
    draws = [np.random.default_rng(i) for i in range(models)]
    pools = [[_spoken(row, draws[i]) for row in packages[held + i :: models][: arguments.rows]] for i in range(models)]
    rng = np.random.default_rng(1000)
    asked = [_synopsis(row, rng) for row in packages[:held]]
    told = [one for one in asked if {"section", "role"} & set(one.classes)]
    at = min(arguments.test, len(told) // 3)
    draw = np.random.default_rng(seed)
    rest = [told[at:][i] for i in draw.permutation(len(told) - at)]
    others = [questions[i] for i in draw.permutation(len(questions))]
    a, q = arguments.anchors * 3 // 4, arguments.anchors // 4  # a quarter are questions
    return Data(
        pools,
        rest[:a] + others[:q],
        rest[a : a + arguments.fit] + others[q : q + arguments.fit],
        told[:at] + [_question(row) for row in test],
    )


def read_packages(file: Any) -> list[dict[str, Any]]:
    """Packages in an order that is always the same: `section`, `tags`, and synopses by language."""
    import pyarrow.parquet as pq

    found = {}
    for row in pq.read_table(file, columns=["section", "tags", *LANGUAGES]).to_pylist():
        said = {name: row[name].split(". ")[0] for name in LANGUAGES if row[name]}
        if "en" in said:
            found.setdefault(said["en"], {"section": row["section"], "tags": row["tags"] or "", "said": said})
    rows = list(found.values())
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def _spoken(row: dict[str, Any], rng: np.random.Generator) -> Talk:
    """A whole conversation to train on."""
    talk, classes = _synopsis(row, rng)
    probe = str(rng.choice([probe for probe in TOLD if probe in classes]))
    return [*talk, _message("assistant", ANSWERS[probe][classes[probe]])]


def _synopsis(row: dict[str, Any], rng: np.random.Generator) -> Asked:
    language = str(rng.choice(list(row["said"])))
    classes = {"language": LANGUAGES.index(language)} | ({"form": 0} if language == "en" else {})
    if row["section"] in SECTIONS:
        classes["section"] = SECTIONS.index(row["section"])
    roles = [role for role in ROLES if f"role::{role}" in row["tags"].split(", ")]
    if len(roles) == 1:
        classes["role"] = ROLES.index(roles[0])
    return Asked([_message("user", row["said"][language][:LONGEST])], classes)


def _question(row: dict[str, Any]) -> Asked:
    return Asked([_message("user", row["text"][:LONGEST])], {"form": 1, "question": row["label"]})


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
