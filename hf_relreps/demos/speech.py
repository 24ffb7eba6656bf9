"""Spoken words, made on this machine: espeak-ng says each word in many voices, accents, pitches and speeds.

No two splits have a voice in common, so that a model must know the word and not the speaker.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_relreps.errors import MissingExtraError


if TYPE_CHECKING:
    from datasets import Dataset

PROGRAM = "espeak-ng"
SAMPLING_RATE = 16_000
SECONDS = 0.6
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "left", "right", "stop", "go"),
)
ACCENTS = ("en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-us", "en-us-nyc", "en-029")
VOICES = {
    "train": ("m1", "m2", "m4", "m6", "f1", "f2", "f3", "Alex", "Andrea", "steph"),
    "validation": ("m3", "m7", "f4", "Mario", "linda"),
    "test": ("m8", "Hugo", "Annie", "quincy", "belinda"),
}
PITCHES = (30, 70)  # the range of espeak-ng is 0 to 99
SPEEDS = (130, 200)  # words a minute
FORMAT = 1  # of the kept files: a number for each set of columns
QUIET = 0.01  # of the loudest sample: what lies below it before and after a word is cut off


class Utterance(NamedTuple):
    """One word said once."""

    word: str
    accent: str
    voice: str
    pitch: int
    speed: int


def load_spoken_words(
    split: str,
    folder: str | Path,
    *,
    words: Sequence[str] = WORDS,
    accents: Sequence[str] = ACCENTS,
    takes: int = 2,
    seconds: float = SECONDS,
    seed: int = 0,
) -> Dataset:
    """Returns spoken words with the word as `label`; made at the first call, read from the folder afterwards.

    Columns: `audio`, a sound of one channel as ``{"array": floats in [-1, 1], "sampling_rate": 16000}``; `label`, a
    `ClassLabel` whose names are the words; `utterance`, which fits as an id; `accent`, `voice`, `pitch` and `speed`.
    Every word is said in every accent by every voice of the split.

    Args:
        split: "train", "validation" or "test", with voices of their own.
        folder: Where the sounds are kept.
        words: What is said.
        accents: Languages of espeak-ng: ``espeak-ng --voices=en`` lists them.
        takes: How often each voice says each word in each accent, with other pitches and speeds.
        seconds: Length of each sound; longer ones are cut, shorter ones end in silence.
        seed: Of the pitches and speeds.

    Raises:
        ValueError: There is no such split, or no such accent.
        MissingExtraError: The program espeak-ng is not installed.
    """
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Dataset, DatasetInfo, Features, List, Value

    if split not in VOICES:
        raise ValueError(f"Found split {split!r}, expected one of {', '.join(VOICES)}.")
    utterances = _utterances(split, words, accents, takes, seed)
    file = _file(Path(folder), split, utterances, seconds)
    features = Features(
        {
            "audio": {"array": List(Value("float32")), "sampling_rate": Value("int64")},
            "label": ClassLabel(names=list(words)),
            **{name: Value("string") for name in ("utterance", "accent", "voice")},
            **{name: Value("int64") for name in ("pitch", "speed")},
        }
    )
    if not file.is_file():
        _refuse_unknown(accents, VOICES[split])
        _write(file, utterances, list(words), seconds, features)
    return Dataset(pq.read_table(file), info=DatasetInfo(features=features))


def speak(utterance: Utterance, seconds: float = SECONDS) -> np.ndarray:
    """The sound of one word, 16 kHz, float32 in [-1, 1]: without silence before it, cut or filled up to a length.

    Raises:
        MissingExtraError: The program espeak-ng is not installed.
        RuntimeError: It fails.
    """
    from scipy.signal import resample_poly

    word, accent, voice, pitch, speed = utterance
    settings = ["-v", f"{accent}+{voice}", "-p", str(pitch), "-s", str(speed)]
    with wave.open(io.BytesIO(_run(*settings, "--stdout", "--", word))) as reader:
        rate = reader.getframerate()
        # Written to a pipe, the header promises more samples than there are: all that is there is read.
        whole = np.frombuffer(reader.readframes(reader.getnframes()), dtype="<i2").astype(np.float32) / 2**15
    divisor = np.gcd(rate, SAMPLING_RATE)
    whole = resample_poly(whole, SAMPLING_RATE // divisor, rate // divisor)
    loud = np.flatnonzero(np.abs(whole) > QUIET * np.abs(whole).max())
    length = round(seconds * SAMPLING_RATE)
    cut = whole[loud[0] : loud[-1] + 1][:length]
    return np.pad(cut, (0, length - len(cut))).astype(np.float32).clip(-1, 1)


def _run(*arguments: str) -> bytes:
    """What the program writes."""
    path = shutil.which(PROGRAM)
    if path is None:
        raise MissingExtraError(
            f"Spoken words need the program {PROGRAM}, which is not installed: apt-get install {PROGRAM}"
        )
    done = subprocess.run([path, *arguments], capture_output=True, check=False)
    if done.returncode or not done.stdout:
        told = done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode} and wrote nothing"
        raise RuntimeError(f"{PROGRAM} {' '.join(arguments)} failed: {told}")
    return done.stdout


def _refuse_unknown(accents: Sequence[str], voices: Sequence[str]) -> None:
    """The program itself would say everything in its standard voice."""
    for kind, names, column, asked in (("accent", accents, 1, "--voices"), ("voice", voices, 4, "--voices=variant")):
        known = [line.split()[column].removeprefix("!v/") for line in _run(asked).decode().splitlines()[1:]]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{PROGRAM} has no {kind} {', '.join(map(repr, unknown))}. Look: {PROGRAM} {asked}")


def _utterances(split: str, words: Sequence[str], accents: Sequence[str], takes: int, seed: int) -> list[Utterance]:
    """Every word, accent and voice, with pitches and speeds drawn for each take."""
    rng = np.random.default_rng([seed, list(VOICES).index(split)])
    said = product(range(takes), accents, VOICES[split], words)
    pitches, speeds = ((low, high + 1) for low, high in (PITCHES, SPEEDS))
    drawn = [
        Utterance(word, accent, voice, int(rng.integers(*pitches)), int(rng.integers(*speeds)))
        for _, accent, voice, word in said
    ]
    return list(dict.fromkeys(drawn))  # hardly ever, two takes are the same


def _file(folder: Path, split: str, utterances: list[Utterance], seconds: float) -> Path:
    """Named after all that decides what it holds."""
    content = json.dumps([FORMAT, utterances, seconds]).encode()
    return folder / f"spoken-words-{split}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"


def _write(file: Path, utterances: list[Utterance], words: list[str], seconds: float, features: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ThreadPoolExecutor() as pool:  # the work is done by the program, a process for each word
        arrays = list(pool.map(lambda utterance: speak(utterance, seconds), utterances))
    columns = {name: [getattr(utterance, name) for utterance in utterances] for name in Utterance._fields[1:]}
    columns["audio"] = [{"array": array, "sampling_rate": SAMPLING_RATE} for array in arrays]
    columns["utterance"] = [
        f"{word} {accent}+{voice} {rest[0]} {rest[1]}" for word, accent, voice, *rest in utterances
    ]
    columns["label"] = [words.index(utterance.word) for utterance in utterances]
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    pq.write_table(pa.table({name: columns[name] for name in features}, schema=features.arrow_schema), unfinished)
    unfinished.replace(file)
