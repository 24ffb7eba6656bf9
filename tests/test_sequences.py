"""Whatever is called in whatever order: no stitched model reads another space, or stale anchors, without a word.

Each run is a random sequence of the public calls on a few models and on what was stitched from them. A shadow keeps
what each decoder was trained on, and of each encoder what its anchors should be.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hf_relreps import (
    AnchorSet,
    RelativeConfig,
    RelativeModelForSequenceClassification,
    RelativeSpace,
    compatibility,
    stitch,
)
from hf_relreps.errors import StaleAnchorsError, StitchingError


WITHIN = 1e-3
WITHIN_HALF = 0.1
PROJECTIONS = (RelativeConfig.paper(), RelativeConfig())


class Sequences(RuleBasedStateMachine):
    """Public calls in random order."""

    world: dict[str, Any]  # what the fixtures gave
    counts: Counter[str]  # what happened in all sequences together

    @initialize()
    def begin(self) -> None:
        make_model, texts = self.world["make_model"], self.world["texts"]
        self.anchors = [
            AnchorSet([f"{name}-{i}" for i in range(20)], {view: texts[view][start::3] for view in texts})
            for start, name in enumerate(("first", "second"))
        ]
        self.tokenizer = self.world["tokenizer"]
        self.models: list[RelativeModelForSequenceClassification] = []
        self.trained_on: list[RelativeSpace] = []
        for seed, view in enumerate(("en", "fr")):
            model = make_model(seed, view)
            model.encoder.encode_anchors(self.anchors[0].view(view), self.tokenizer)
            new = RelativeModelForSequenceClassification.from_encoder(
                model.encoder, id2label=model.config.id2label, label2id=model.config.label2id
            )
            self._add(new, new.decoder.config.space)
        self.inputs = self.tokenizer(texts["en"][:4], return_tensors="pt", padding=True)

    def _add(self, model: RelativeModelForSequenceClassification, space: RelativeSpace) -> None:
        self.models.append(model.eval())
        self.trained_on.append(space)

    def _pick(self, i: int) -> tuple[RelativeModelForSequenceClassification, RelativeSpace]:
        return self.models[i % len(self.models)], self.trained_on[i % len(self.models)]

    @rule(i=st.integers(0, 5), which=st.integers(0, 1), view=st.sampled_from(["en", "fr"]))
    def encode_anchors(self, i: int, which: int, view: str) -> None:
        self._pick(i)[0].encoder.encode_anchors(self.anchors[which].view(view), self.tokenizer)

    @rule(i=st.integers(0, 5), which=st.integers(0, 1))
    def use_projection(self, i: int, which: int) -> None:
        self._pick(i)[0].encoder.use_projection(PROJECTIONS[which])

    @rule(i=st.integers(0, 5))
    def train_a_step(self, i: int) -> None:
        model, space = self._pick(i)
        if model.encoder.config.space != space:
            with pytest.raises(StitchingError):
                model(**self.inputs)
            return
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        model(**self.inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @rule(i=st.integers(0, 5), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
    def to(self, i: int, dtype: torch.dtype) -> None:
        self._pick(i)[0].to(dtype)

    @rule(i=st.integers(0, 5), mode=st.booleans())
    def switch(self, i: int, mode: bool) -> None:
        self._pick(i)[0].train(mode)

    @rule(i=st.integers(0, 5), j=st.integers(0, 5))
    def stitch(self, i: int, j: int) -> None:
        encoder, (decoder, space) = self._pick(i)[0], self._pick(j)
        fits = encoder.encoder.config.space == space
        try:
            assert compatibility(encoder, decoder).fits == fits
            model = stitch(encoder, decoder)
        except (StitchingError, StaleAnchorsError) as error:
            assert not fits or isinstance(error, StaleAnchorsError)
            self.counts["refused"] += 1
            return
        assert fits
        self.counts["stitched"] += 1
        if len(self.models) < 6:
            self._add(model, space)

    @rule(i=st.integers(0, 5))
    def save_and_load(self, i: int) -> None:
        model, space = self._pick(i)
        with tempfile.TemporaryDirectory() as folder:
            if model.encoder.config.space != space:
                with pytest.raises(StitchingError):
                    model.save_pretrained(folder)
                assert not any(Path(folder).iterdir())
                return
            model.save_pretrained(folder)
            again = RelativeModelForSequenceClassification.from_pretrained(folder)
            again.anchors  # noqa: B018  fetched while the folder is there
            again.processor  # noqa: B018
        assert again.decoder.config.space == space
        self.models[i % len(self.models)] = again

    @invariant()
    def decoders_say_what_they_were_trained_on(self) -> None:
        for model, space in zip(getattr(self, "models", []), getattr(self, "trained_on", []), strict=True):
            assert model.decoder.config.space == space

    @rule(i=st.integers(0, 5))
    def answer(self, i: int) -> None:
        """Reading outside a training step: exact anchors of the decoder's own space, or an error."""
        model, space = self._pick(i)
        model.eval()
        if model.encoder.config.space != space:
            with pytest.raises(StitchingError):
                model(**self.inputs)
            return
        with torch.no_grad():
            model(**self.inputs)
        encoder = model.encoder
        view = encoder.anchors.view(encoder.config.anchor_view)
        assert view.fingerprint == space.fingerprint
        own_AD, stored_AD = encoder.encode(view.samples), encoder.projection.anchors_AD
        within = WITHIN if encoder.dtype == torch.float32 else WITHIN_HALF
        off = float(((own_AD - stored_AD).norm(dim=-1) / own_AD.norm(dim=-1)).max())
        assert off < within, f"stale by {off}"
        self.counts["answered"] += 1


def test_no_sequence_of_calls_stitches_what_does_not_fit_or_reads_stale_anchors(make_model, texts, tokenizer):
    Sequences.world = {"make_model": make_model, "texts": texts, "tokenizer": tokenizer}
    Sequences.counts = Counter()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    machine = Sequences.TestCase
    machine.settings = settings(
        max_examples=25,
        stateful_step_count=15,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    machine("runTest").runTest()
    assert all(Sequences.counts[what] > 0 for what in ("stitched", "refused", "answered")), Sequences.counts
