"""Classifiers of spoken words, stitched across seeds and across three kinds of encoder that read sound differently.

espeak-ng says sixteen words on this machine (apt-get install espeak-ng) in eight accents; the voices of the test are
not those of the training. Each encoder is trained from scratch from a seed of its own: the encoder of a Whisper and an
audio spectrogram transformer, which read spectra, and a Wav2Vec2, which reads the waveform itself. Settings were
chosen on validation voices. The absolute control is logistic regression on the absolute embeddings.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
    set_seed,
)

from benchmarks.modalities.report import Row, record, show
from benchmarks.reporting import console, timed, write
from benchmarks.training import COSINE, named, train
from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForAudioClassification
from hf_relreps.demos.speech import ACCENTS, SAMPLING_RATE, WORDS, load_spoken_words
from hf_relreps.evaluation import stitching_matrix


if TYPE_CHECKING:
    from datasets import Dataset

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
WIDTH = 64  # of all architectures, so that the absolute control exists between them
FRAMES = 64  # of 10 ms, which the spectrogram transformer reads
ANCHOR_SEED = 42


def _whisper() -> PreTrainedModel:
    one_second = {"max_source_positions": 50, "num_mel_bins": 40}
    encoder = {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 1, "max_target_positions": 1}
    tokens = {"vocab_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    return WhisperModel(WhisperConfig(d_model=WIDTH, **one_second, **encoder, **decoder, **tokens))


def _ast() -> PreTrainedModel:
    spectrum = {"num_mel_bins": 64, "max_length": FRAMES, "patch_size": 16, "frequency_stride": 16, "time_stride": 8}
    return ASTModel(ASTConfig(hidden_size=WIDTH, **SIZES, **spectrum))


def _wav2vec2() -> PreTrainedModel:
    convolutions = {
        "conv_dim": (32, 32, 64, 64, 64),
        "conv_stride": (8, 4, 4, 2, 2),
        "conv_kernel": (16, 8, 8, 4, 4),
        "conv_bias": True,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    # With layer norms, padding can be hidden from the encoder; with a group norm it counts in the statistics.
    norms = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "apply_spec_augment": False}
    return Wav2Vec2Model(Wav2Vec2Config(hidden_size=WIDTH, vocab_size=32, **SIZES, **convolutions, **norms))


class Architecture(NamedTuple):
    """How an encoder is built, what reads sounds for it, and how it is trained."""

    build: Callable[[], PreTrainedModel]
    reader: Callable[[], Any]
    epochs: int
    rate: float


ARCHITECTURES = {
    "whisper": Architecture(_whisper, lambda: WhisperFeatureExtractor(feature_size=40, chunk_length=1), 6, 3e-3),
    "ast": Architecture(_ast, lambda: ASTFeatureExtractor(num_mel_bins=64, max_length=FRAMES), 10, 2e-3),
    "wav2vec2": Architecture(_wav2vec2, lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True), 7, 2e-3),
}


@dataclass(frozen=True)
class Budget:
    """How many words, accents and encoders there are, and how many times longer than usual the training is."""

    words: int = len(WORDS)
    accents: int = len(ACCENTS)
    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    longer: int = 1


QUICK = Budget(words=8, accents=3, architectures=("whisper", "ast"), longer=4)


class Heard(torch.utils.data.Dataset):
    """Sounds as a feature extractor gives them, with their labels."""

    def __init__(self, rows: Dataset, reader: Any) -> None:
        arrays = [np.asarray(sound["array"], dtype=np.float32) for sound in rows["audio"][:]]
        self.inputs = reader(arrays, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        self.labels = rows["label"][:]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: tensor[i] for name, tensor in self.inputs.items()} | {"labels": self.labels[i]}


def add_arguments(parser: ArgumentParser) -> None:
    """Sounds and anchors."""
    folder = Path(HF_HOME, "hf_relreps", "spoken_words")
    parser.add_argument("--sounds", type=Path, default=folder, help="where spoken words are kept once they are made")
    parser.add_argument("--anchors", type=int, default=300, help="number of anchors (300)")
    parser.add_argument(
        "--split", choices=["validation", "test"], default="test", help="validation to choose settings (test)"
    )
    parser.set_defaults(seeds=2)


def run(arguments: Namespace) -> dict[str, Any]:
    """Speak, train, stitch, print, draw."""
    budget = QUICK if arguments.quick else Budget()
    seeds = 1 if arguments.quick else arguments.seeds
    words, accents = WORDS[: budget.words], ACCENTS[: budget.accents]
    with timed("spoken words"):
        rows, held_out = (
            load_spoken_words(split, arguments.sounds, words=words, accents=accents, takes=1)
            for split in ("train", arguments.split)
        )
    console.print(f"{len(rows):,} sounds to train on, {len(held_out):,} by other voices for the score")
    how = {"id_column": "utterance", "strategy": "stratified", "seed": ANCHOR_SEED}
    anchors = AnchorSet.from_dataset(rows, min(arguments.anchors, len(rows)), views="audio", **how)
    models = {}
    for kind, name in enumerate(budget.architectures, 1):
        with timed(name):
            for i in range(seeds):
                models[f"{name}-{i + 1}"] = _trained(name, rows, anchors, 100 * kind + i, budget.longer)
    matrix = stitching_matrix(models, models, held_out, metric="f1", train_dataset=rows, progress=False)
    console.print(f"\n{matrix}\n", markup=False)
    figures = [Row.of("spoken words", matrix), *Row.by_architecture("spoken words", matrix)]
    show("macro-F1", figures)
    matrix.plot(arguments.output / "spoken-words.png")
    results = {"score": "macro-F1", "seeds": seeds, "split": arguments.split, "rows": record(figures)}
    write(arguments.output / "results.json", results | {"matrices": {"spoken words": matrix.to_dict()}})
    return results


def _trained(
    name: str, rows: Dataset, anchors: AnchorSet, seed: int, longer: int
) -> RelativeModelForAudioClassification:
    """An encoder and a decoder trained together from a seed of their own."""
    architecture = ARCHITECTURES[name]
    set_seed(seed)
    reader, view, classes = architecture.reader(), anchors.view("audio"), named(rows.features["label"].names)
    model = RelativeModelForAudioClassification.from_encoder(architecture.build(), view, reader, **classes)
    how = COSINE | {"num_train_epochs": architecture.epochs * longer, "learning_rate": architecture.rate}
    return train(model, Heard(rows, reader), seed, AnchorCallback(view, batch_size=100), **how)
