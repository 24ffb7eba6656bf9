"""A decoder of English words by MiniLM, read by multilingual-e5 in other languages, through word pairs of PUD.

Pairs come from the first 500 sentences, scores from the others.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.tokens.measure import SPACES, Absolute, Relative, Table, procrustes, scores, trained_on
from benchmarks.tokens.words import Encoded, Sentence, encode, load_ewt, load_pud
from hf_relreps.bootstrapping import pair_nearest
from hf_relreps.similarities import unit
from hf_relreps.word_pairs import WordPairs, find_word_pairs


LANGUAGES = ("fr", "de", "sv")
PAIRED = 500
ANCHORS = 1000
Links = list[tuple[int, int, int]]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores by language, task and way, one for each seed; and how many of the found pairs others find as well."""
    pud, ewt = load_pud(arguments.data), load_ewt(arguments.data)

    def read(name: str, sentences: list[Sentence]) -> Encoded:
        return encode(name, sentences, arguments.cache, arguments.assets)

    english = {name: read(name, ewt["train"]) for name in ("minilm", "me5")}
    english["lower case"] = read("me5", lowered(ewt["train"]))
    source, shared = read("minilm", pud["en"]).part(range(PAIRED)), read("me5", pud["en"]).part(range(PAIRED))
    found: dict[str, Any] = {}
    for language in arguments.languages:
        whole = read("me5", pud[language])
        target, test = whole.part(range(PAIRED)), whole.part(range(PAIRED, len(pud[language])))
        pairs = find_word_pairs(source.by_sentence(), target.by_sentence())
        sets = {"found": _links(pairs), "e5's neighbours": neighbours(shared, target)}
        sets |= {name: links for name, align in ALIGNERS.items() if (links := align(source, target))}
        found[language] = {"pairs": _agreements(pairs, sets)}
        tasks = [task for task in ("upos", "ner") if any(getattr(one, task) for one in test.sentences)]
        for task in tasks:
            table = _of_task(task, english, source, target, test, sets, pairs, arguments.seeds)
            if task == "ner":
                lower_test = read("me5", lowered(test.sentences)).marked(task)
                lower_train = english["lower case"].marked(task)
                for seed in range(arguments.seeds):
                    head = _own_head(lower_train, task, seed)
                    table.add("e5's own English head, lower case", scores(head.say(lower_test.x_WD), lower_test, task))
            found[language][task] = table.plain()
    return found


def lowered(sentences: list[Sentence]) -> list[Sentence]:
    """The same in lower case, as MiniLM reads them: what an encoder loses by it."""
    return [one._replace(words=tuple(word.lower() for word in one.words)) for one in sentences]


def _own_head(english: Encoded, task: str, seed: int) -> Absolute:
    rows = trained_on(english, task, seed)
    return Absolute.fit(english.x_WD[rows], english.labels(task)[rows], task)


def _of_task(
    task: str,
    english: dict[str, Encoded],
    source: Encoded,
    target: Encoded,
    test: Encoded,
    sets: dict[str, Links],
    pairs: WordPairs,
    seeds: int,
) -> Table:
    table, test = Table(), test.marked(task)
    train, multilingual = english["minilm"].marked(task), english["me5"].marked(task)
    sentences = tuple(torch.stack([x_WD.mean(0) for x_WD in side.by_sentence()]) for side in (source, target))
    for seed in range(seeds):
        rows = trained_on(train, task, seed)
        x_WD, labels_W = train.x_WD[rows], train.labels(task)[rows]
        absolute = Absolute.fit(x_WD, labels_W, task)
        own_head = _own_head(multilingual, task, seed)
        table.add("absolute, swapped", scores(absolute.say(test.x_WD), test, task))
        table.add("e5's own English head", scores(own_head.say(test.x_WD), test, task))
        chosen = {name: _drawn(links, seed) for name, links in sets.items()}
        chosen["found"] = _links(pairs.choose(ANCHORS, seed=seed))
        if task == "ner":
            words_PD, _ = pairs.vectors(source.by_sentence(), target.by_sentence())
            rare = (absolute.say(words_PD) != 0).tolist()  # as the English tagger has it: nobody's labels
            chosen["found, half entities"] = _links(pairs.choose(ANCHORS, rare=rare, seed=seed))
        anchors = {name: _vectors(links, source, target) for name, links in chosen.items()}
        labelled_W = _labelled(chosen["found"], source, task)
        known_A = labelled_W >= 0
        alone = Absolute.fit(anchors["found"][1][known_A], labelled_W[known_A], task)
        table.add("labelled anchors alone", scores(alone.say(test.x_WD), test, task))
        moved_WD = procrustes(test.x_WD, anchors["found"][1], anchors["found"][0])
        table.add("Procrustes, found pairs", scores(absolute.say(moved_WD), test, task))
        if "found, half entities" in anchors:
            moved_WD = procrustes(test.x_WD, *reversed(anchors["found, half entities"]))
            table.add("Procrustes, found pairs, half entities", scores(absolute.say(moved_WD), test, task))
        ways = [(name, "ridge 1") for name in chosen] + [("found", "default"), ("found", "paper's cosine")]
        for name, space in ways:
            mine_AD, theirs_AD = anchors[name]
            decoder = Relative.fit(x_WD, labels_W, task, mine_AD, SPACES[space])
            table.add(f"stitched, {name}, {space}", scores(decoder.say(test.x_WD, theirs_AD), test, task))
            if (name, space) == ("found", "default"):
                rest = _vectors(sorted({*_links(pairs)} - {*chosen[name]}), source, target)
                calibrated = decoder.calibrated((theirs_AD, rest[1]), (mine_AD, rest[0]))
                table.add("stitched, found, calibrated", scores(calibrated.say(test.x_WD, theirs_AD), test, task))
        decoder = Relative.fit(x_WD, labels_W, task, sentences[0], SPACES["default"])
        table.add("stitched, sentences, default", scores(decoder.say(test.x_WD, sentences[1]), test, task))
    return table


def _links(pairs: WordPairs) -> Links:
    return list(zip(pairs.sentence_P.tolist(), pairs.source_P.tolist(), pairs.target_P.tolist(), strict=True))


def _drawn(links: Links, seed: int) -> Links:
    rows = np.random.default_rng(seed).permutation(len(links))[:ANCHORS]
    return [links[row] for row in rows]


def _vectors(links: Links, source: Encoded, target: Encoded) -> tuple[Tensor, Tensor]:
    left, right = source.by_sentence(), target.by_sentence()
    return torch.stack([left[i][j] for i, j, _ in links]), torch.stack([right[i][j] for i, _, j in links])


def _labelled(links: Links, source: Encoded, task: str) -> Tensor:
    """Classes (A,) of the English words; -1 in sentences that nobody marked."""
    bounds = np.cumsum([0, *source.lengths])
    empty = [one._replace(ner=one.ner or ("O",) * len(one.words)) for one in source.sentences]
    labels_W = Encoded(empty, source.x_WD).labels(task)
    known = [task == "upos" or one.ner is not None for one in source.sentences]
    return torch.tensor([int(labels_W[bounds[i] + j]) if known[i] else -1 for i, j, _ in links])


def neighbours(source: Encoded, target: Encoded) -> Links:
    """Words of each sentence pair that are each other's nearest where one encoder reads both languages."""
    means = source.x_WD.mean(0), target.x_WD.mean(0)
    links: Links = []
    for i, (left_WD, right_WD) in enumerate(zip(source.by_sentence(), target.by_sentence(), strict=True)):
        pairs = pair_nearest(unit(left_WD - means[0]) @ unit(right_WD - means[1]).T)
        links += [(i, j, q) for j, q in zip(pairs.left_P.tolist(), pairs.right_P.tolist(), strict=True)]
    return links


def by_eflomal(source: Encoded, target: Encoded) -> Links:
    """Words that eflomal links in both directions; nothing where it is not installed (pip install eflomal)."""
    try:
        import eflomal  # type: ignore[import-not-found]
    except ImportError:
        return []
    texts = [[" ".join(words) + "\n" for words in _plain_words(side)] for side in (source, target)]
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("forward", "backward")]
        eflomal.Aligner().align(*texts, links_filename_fwd=files[0], links_filename_rev=files[1])
        ways = [Path(file).read_text("utf-8").splitlines() for file in files]
    return [
        (i, *map(int, link.split("-")))
        for i, lines in enumerate(zip(*ways, strict=True))
        for link in sorted(set(lines[0].split()) & set(lines[1].split()))
    ]


def by_systran(source: Encoded, target: Encoded) -> Links:
    """Words that systran-align links; nothing where it is not installed (pip install systran-align)."""
    try:
        import systran_align  # type: ignore[import-not-found]
    except ImportError:
        return []
    left, right = _plain_words(source), _plain_words(target)
    with tempfile.TemporaryDirectory() as folder:
        sentences, *probabilities = (str(Path(folder, name)) for name in ("sentences", "forward", "backward"))
        lines = [f"{' '.join(one)} ||| {' '.join(other)}" for one, other in zip(left, right, strict=True)]
        Path(sentences).write_text("\n".join(lines) + "\n", "utf-8")
        systran_align.generate_alignment_probabilities(sentences, *probabilities)
        found = systran_align.Aligner(*probabilities).align_batch(left, right)
    return [(i, j, q) for i, one in enumerate(found) for j, q in one["alignments"]]


ALIGNERS = {"eflomal": by_eflomal, "systran-align": by_systran}


def _plain_words(side: Encoded) -> list[list[str]]:
    """Words of each sentence in lower case and without blanks, which a word may hold, as numbers do."""
    return [["_".join(word.lower().split()) for word in one.words] for one in side.sentences]


def _agreements(pairs: WordPairs, sets: dict[str, Links]) -> dict[str, Any]:
    """How many pairs each way gives, and the share of them that each other way gives as well."""
    shared = {
        name: {other: len({*links} & {*rival}) / len(links) for other, rival in sets.items() if other != name}
        for name, links in sets.items()
    }
    numbers = {name: len(links) for name, links in sets.items()}
    return {"report": pairs.report.to_dict(), "number": numbers, "shared": shared}
