"""Taggers that are trained end to end, each alone: small BERTs from scratch, one English, one of another language.

Both learn parts of speech from the first 700 sentences of PUD in their language. Anchors are word pairs that
`find_word_pairs` finds in the first 500, with frozen encoders. Scores are accuracies on the last 300, which nobody has
seen. *Fitted again*: after its training each decoder is replaced by one in closed form, fitted on the same words.
*Calibrated*: that decoder has been calibrated for the other encoder (`hf_relreps.trust.calibrate`) on the word pairs
that are no anchors, without their labels. The control is the same BERTs with ordinary heads, which are then exchanged.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BertForTokenClassification, DataCollatorForTokenClassification, set_seed

from benchmarks.reporting import console
from benchmarks.tokens.languages import ANCHORS, PAIRED
from benchmarks.tokens.measure import Table
from benchmarks.tokens.words import UPOS, Sentence, encode, load_pud
from benchmarks.training import USUAL, named, train
from hf_relreps import AnchorCallback, AnchorSet, RelativeDecoder, RelativeModelForTokenClassification, stitch
from hf_relreps.anchors import AnchorView
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer
from hf_relreps.trust import calibrate
from hf_relreps.word_pairs import WordPairs, find_word_pairs
from hf_relreps.words import Word, label_tokens, labelled_words


LANGUAGES = ("fr",)
TRAINED = 700  # sentences of PUD
LONGEST = 160  # tokens
STEPS = 300  # of 32 sentences
RATE = 5e-4
NUMBERS = {name: number for number, name in enumerate(UPOS)}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracies by language and way, one for each seed: of the English encoder and of the other one."""
    pud = load_pud(arguments.data)
    source = encode("minilm", pud["en"], arguments.cache, arguments.assets).part(range(PAIRED))
    found: dict[str, Any] = {}
    for language in LANGUAGES:
        target = encode("me5", pud[language], arguments.cache, arguments.assets).part(range(PAIRED))
        pairs = find_word_pairs(source.by_sentence(), target.by_sentence())
        data = {name: pud[name][:TRAINED] for name in ("en", language)}
        table = Table()
        for seed in range(arguments.seeds):
            chosen = _words(pairs.choose(ANCHORS, seed=seed), pud, language)
            anchors = AnchorSet.from_tokens(chosen, k=ANCHORS)
            known = {*zip(*chosen.values(), strict=True)}
            rest = [pair for pair in zip(*_words(pairs, pud, language).values(), strict=True) if pair not in known]
            unlabelled = dict(zip(chosen, map(list, zip(*rest, strict=True)), strict=True))
            taggers = {name: Taggers(data[name], anchors.view(name), 2 * seed + (name != "en")) for name in data}
            _score(table, taggers, {name: pud[name][TRAINED:] for name in data}, unlabelled)
            console.print(language, seed, {row: scores["accuracy"][-1] for row, scores in table.found.items()})
        found[language] = table.plain()
    return found


def _words(pairs: WordPairs, pud: dict[str, list[Sentence]], language: str) -> dict[str, list[Word]]:
    """Both words of each pair in their sentences."""
    rows = list(zip(pairs.sentence_P.tolist(), pairs.source_P.tolist(), pairs.target_P.tolist(), strict=True))
    return {
        "en": [Word(pud["en"][sentence].words, word) for sentence, word, _ in rows],
        language: [Word(pud[language][sentence].words, word) for sentence, _, word in rows],
    }


class Taggers:
    """A relative tagger and an ordinary one, trained on the same sentences, each from its own random weights."""

    def __init__(self, sentences: Sequence[Sentence], anchors: AnchorView, seed: int) -> None:
        self.tokenizer = wordpiece_tokenizer([" ".join(one.words) for one in sentences], longest=LONGEST)
        words, labels = [one.words for one in sentences], [[NUMBERS[tag] for tag in one.upos] for one in sentences]
        tokens = label_tokens(self.tokenizer, words, labels)
        rows = [dict(zip(tokens, cells, strict=True)) for cells in zip(*tokens.values(), strict=True)]
        collator = DataCollatorForTokenClassification(self.tokenizer)
        how = USUAL | {"max_steps": STEPS, "learning_rate": RATE}
        set_seed(seed)
        encoder = small_bert(len(self.tokenizer), LONGEST)
        relative = RelativeModelForTokenClassification.from_encoder(
            encoder, anchors, self.tokenizer, layer=-1, id2label=dict(enumerate(UPOS))
        )
        self.relative = train(relative, rows, seed, AnchorCallback(anchors), collator=collator, **how)
        set_seed(seed)
        config = small_bert(len(self.tokenizer), LONGEST).config
        config.update(named(UPOS))
        self.ordinary = train(BertForTokenClassification(config), rows, seed, collator=collator, **how)

        told = labelled_words(words, [one.upos for one in sentences])
        r_WR = self.relative.encoder.projection(self.relative.encoder.encode(told[0]))
        numbers = [NUMBERS[tag] for tag in told[1]]
        self.again = RelativeDecoder.fit_ridge(r_WR, numbers, self.relative.encoder, id2label=dict(enumerate(UPOS)))

    @torch.no_grad()
    def ordinary_tags(self, sentences: Sequence[Sentence], head: Any) -> list[list[str]]:
        """Tags by the ordinary encoder and any head; a word is read at its first piece, as in training."""
        told = []
        for one in sentences:
            ones = label_tokens(self.tokenizer, [one.words], [[1] * len(one.words)])
            labels = torch.tensor(ones.pop("labels"))
            inputs = {name: torch.tensor(value) for name, value in ones.items()}
            logits_1TC = head(self.ordinary.bert(**inputs).last_hidden_state)
            told.append([UPOS[number] for number in logits_1TC[labels == 1].argmax(-1).tolist()])
        return told


def _score(
    table: Table, taggers: dict[str, Taggers], tests: dict[str, Sequence[Sentence]], unlabelled: dict[str, list[Word]]
) -> None:
    for reader, one in taggers.items():
        (other,) = (name for name in taggers if name != reader)
        side = "en" if reader == "en" else "other"
        test = tests[reader]
        words = [list(sentence.words) for sentence in test]
        stitched, again = (stitch(one.relative, part) for part in (taggers[other].relative, taggers[other].again))
        pairs = unlabelled[reader], unlabelled[other]
        calibrated = calibrate(again, own_encoder=taggers[other].relative, pairs=pairs)
        told = {
            "own": one.relative.tag(words),
            "stitched": stitched.tag(words),
            "own, fitted again": stitch(one.relative, one.again).tag(words),
            "stitched, fitted again": again.tag(words),
            "stitched, fitted again, calibrated": calibrated.tag(words),
            "ordinary, own": one.ordinary_tags(test, one.ordinary.classifier),
            "ordinary, heads exchanged": one.ordinary_tags(test, taggers[other].ordinary.classifier),
        }
        for way, tags in told.items():
            table.add(f"{side}: {way}", {"accuracy": _accuracy(tags, test)})


def _accuracy(told: list[list[str]], test: Sequence[Sentence]) -> float:
    pairs = [(a, b) for tags, one in zip(told, test, strict=True) for a, b in zip(tags, one.upos, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)
