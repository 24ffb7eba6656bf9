"""Every encoder with every decoder, beside the absolute control and chance.

Shape suffixes: N samples, D absolute width, B rows of a chunk, C classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from transformers.utils import logging

from hf_relreps.backbones import evaluating
from hf_relreps.errors import EvaluationError
from hf_relreps.evaluation.labels import Task, column_of
from hf_relreps.evaluation.scores import MULTI, REGRESSION, SINGLE, Metric, chance, check_problem, resolve_score
from hf_relreps.evaluation.tokens import by_words
from hf_relreps.modeling import RelativeModel, decode
from hf_relreps.pairs import columns_in
from hf_relreps.space import require_fit
from hf_relreps.stitching import refuse_stale, resolve_decoder, resolve_encoder


if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel


Part = TypeVar("Part")

# Relative representations held at a time: rows, whatever the number of samples.
# Column heads longer than this become numbers, so that a table of repository ids still fits a terminal.
LONGEST_HEAD = 10
CONTROL = "logistic regression on absolute embeddings"
CONTROLS = {SINGLE: CONTROL, MULTI: CONTROL, REGRESSION: "ridge regression on absolute embeddings"}


@dataclass(frozen=True, eq=False, repr=False)
class StitchingMatrix:
    """Scores of every encoder (rows) with every decoder (columns); prints as tables.

    Attributes:
        encoders: Names of the rows.
        decoders: Names of the columns.
        scores: Score of each pair, (encoders, decoders).
        own_pairs: Encoder name -> name of the decoder that was trained on it.
        absolute: Scores of the absolute control, same shape as `scores`; NaN where widths differ or where no encoder
            of this matrix owns the decoder. ``None`` without the control.
        chance: What guessing reaches on the same labels.
        guess: Which guess `chance` is.
        metric: Name of the score.
        title: The score's name as a reader sees it.
        greater_is_better: ``False`` for errors.
        n: Number of samples.
        control: What the absolute control's decoders are.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> models = {"en": "me/relative-en", "fr": "me/relative-fr"}
        >>> matrix = stitching_matrix(models, models, test)
        >>> matrix.to_pandas().shape
        (2, 2)
        >>> matrix.ratio == matrix.stitched / matrix.own, matrix.worst <= matrix.stitched
        (True, True)
        >>> matrix.summary["stitched"] == matrix.stitched, matrix.to_dict()["n"]
        (True, 60)
        >>> _ = matrix.plot("matrix.png")
        >>> matrix.to_json("matrix.json").name
        'matrix.json'

        ```
    """

    encoders: tuple[str, ...]
    decoders: tuple[str, ...]
    scores: np.ndarray
    own_pairs: Mapping[str, str]
    absolute: np.ndarray | None
    chance: float
    guess: str
    metric: str
    title: str
    greater_is_better: bool
    n: int
    control: str = CONTROL

    @property
    def is_own(self) -> np.ndarray:
        """True where the decoder was trained on the encoder, (encoders, decoders)."""
        return np.array([[self.own_pairs.get(row) == column for column in self.decoders] for row in self.encoders])

    @property
    def own(self) -> float | None:
        """Mean score of the own pairs, ``None`` if there are none."""
        return _mean(self.scores[self.is_own])

    @property
    def stitched(self) -> float | None:
        """Mean score of all other pairs, ``None`` if there are none."""
        return _mean(self.scores[~self.is_own])

    @property
    def worst(self) -> float | None:
        """The worst score of a stitched pair."""
        values = self.scores[~self.is_own]
        return None if not values.size else float(values.min() if self.greater_is_better else values.max())

    @property
    def ratio(self) -> float | None:
        """`stitched` / `own`: mean over mean, not a mean of ratios. For errors a ratio above 1 is a loss."""
        return None if self.own is None or self.stitched is None or self.own == 0 else self.stitched / self.own

    @property
    def absolute_own(self) -> float | None:
        """Mean score of the absolute control's own pairs."""
        return None if self.absolute is None else _mean(self.absolute[self.is_own])

    @property
    def absolute_stitched(self) -> float | None:
        """Mean score of the absolute control's stitched pairs of equal width."""
        return None if self.absolute is None else _mean(self.absolute[~self.is_own])

    @property
    def summary(self) -> dict[str, float | None]:
        """The main figures, by name."""
        names = ("own", "stitched", "worst", "ratio", "absolute_own", "absolute_stitched", "chance")
        return {name: getattr(self, name) for name in names}

    def to_pandas(self, *, absolute: bool = False) -> pd.DataFrame:
        """Scores as a `DataFrame` with encoders as rows; optionally those of the absolute control."""
        import pandas as pd

        if absolute and self.absolute is None:
            raise EvaluationError(
                "This matrix has no absolute control. Pass train_dataset=... to stitching_matrix to fit one."
            )
        values = self.absolute if absolute else self.scores
        rows, columns = pd.Index(self.encoders, name="encoder"), pd.Index(self.decoders, name="decoder")
        return pd.DataFrame(values, index=rows, columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python, ready for JSON; cells without a value are ``None``."""
        return {
            "metric": self.metric,
            "greater_is_better": self.greater_is_better,
            "n": self.n,
            "encoders": list(self.encoders),
            "decoders": list(self.decoders),
            "own_pairs": dict(self.own_pairs),
            "scores": _plain(self.scores),
            "absolute": None if self.absolute is None else _plain(self.absolute),
            "control": None if self.absolute is None else self.control,
            "guess": self.guess,
            **self.summary,
        }

    def to_json(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON and return the path."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def plot(self, path: str | Path | None = None) -> Figure:
        """Heat maps of the scores and of the absolute control in one colour scale; saved if a path is given.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        from hf_relreps.evaluation.plots import heat_maps, save

        panels = {"Relative": self.scores}
        notes = ["framed: own pair"] if self.own is not None else []
        if self.absolute is not None:
            panels["Absolute control"] = self.absolute
            notes += ["hatched: no control"] if np.isnan(self.absolute).any() else []
        figure = heat_maps(
            panels,
            rows=self.encoders,
            columns=self.decoders,
            framed=self.is_own,
            row_label="encoder",
            column_label="decoder",
            colour_label=self.title,
            notes=[*notes, *self._summary_parts()],
            greater_is_better=self.greater_is_better,
        )
        return figure if path is None else save(figure, path)

    def __str__(self) -> str:
        parts = [f"Stitching matrix: {self.title} on {self.n:,} samples", "", self._table(self.scores)]
        if self.absolute is not None:
            parts += ["", f"Absolute control: {self.control}", "", self._table(self.absolute)]
        parts += ["", *self._legend(), "   ·   ".join(self._summary_parts())]
        return "\n".join(parts)

    __repr__ = __str__

    @property
    def _numbered(self) -> bool:
        return max(map(len, self.decoders)) > LONGEST_HEAD

    def _table(self, values: np.ndarray) -> str:
        heads = [str(i) if self._numbered else name for i, name in enumerate(self.decoders, 1)]
        rows = list(self.encoders)
        if self._numbered and self.encoders == self.decoders:
            digits = len(str(len(rows)))
            rows = [f"{i:>{digits}}  {name}" for i, name in enumerate(rows, 1)]
        cells = [
            [_cell(value, own) for value, own in zip(row, marks, strict=True)]
            for row, marks in zip(values, self.is_own, strict=True)
        ]
        width = max(len(text) for text in [*(head + " " for head in heads), *(cell for row in cells for cell in row)])
        corner = r"encoder \ decoder"
        first = max(len(corner), *map(len, rows))
        # A number stands one column left of the cell's edge, which is the place of the bracket of an own pair.
        lines = ["  ".join([f"  {corner:<{first}}", *(f"{head + ' ':>{width}}" for head in heads)]).rstrip()]
        for name, row in zip(rows, cells, strict=True):
            lines.append("  ".join([f"  {name:<{first}}", *(f"{cell:>{width}}" for cell in row)]).rstrip())
        return "\n".join(lines)

    def _legend(self) -> list[str]:
        lines = []
        if self._numbered and self.encoders != self.decoders:
            lines += ["decoders:", *(f"  {i}  {name}" for i, name in enumerate(self.decoders, 1)), ""]
        marks = []
        if self.own is not None:
            marks.append("[ ] own pair: the decoder was trained on this encoder")
        if self.absolute is not None and np.isnan(self.absolute).any():
            marks.append("- no control: widths differ, or the decoder's own encoder is not among the rows")
        return [*lines, *marks, ""] if marks else lines

    def _of_own(self) -> str:
        if self.ratio is None:
            return ""
        return f"{self.ratio:.1%} of own, " if self.greater_is_better else f"{self.ratio:.2f} times own, "

    def _summary_parts(self) -> list[str]:
        parts = [] if self.own is None else [f"own {_number(self.own)}"]
        if self.stitched is not None and self.worst is not None:
            parts.append(f"stitched {_number(self.stitched)} ({self._of_own()}worst {_number(self.worst)})")
        if self.absolute_stitched is not None:
            parts.append(f"absolute stitched {_number(self.absolute_stitched)}")
        return [*parts, f"chance {_number(self.chance)}"]


@torch.no_grad()
def stitching_matrix(
    encoders: Mapping[str, Any] | Sequence[str],
    decoders: Mapping[str, Any] | Sequence[str],
    dataset: Any,
    *,
    metric: str | Metric = "f1",
    greater_is_better: bool = True,
    inputs: Mapping[str, str | Sequence[str]] | None = None,
    label_column: str = "label",
    own: Mapping[str, str] | None = None,
    train_dataset: Any = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> StitchingMatrix:
    """Score every pair of encoder and decoder on the same samples; each encoder reads them once.

    The result also contains chance and, with `train_dataset`, the absolute control. For the control each encoder gets
    its own decoder (logistic regression, or ridge for regression, on its standardised absolute embeddings of the train
    samples), which is then applied to the absolute embeddings of every other encoder of equal width.

    The control is meaningful only if the encoders come from different seeds. Two encoders that start from the same
    initialisation, or from one pretrained model, may share their absolute space. Then the control works when stitched
    too, and a relative score proves nothing. The control's decoders share nothing by themselves: their fit is convex
    and does not start from random weights.

    Args:
        encoders: Name -> `RelativeModel`, full relative model or repository id; a list of ids is named by its ids.
        decoders: Name -> `RelativeDecoder`, full relative model or repository id; a list of ids as above.
        dataset: Samples, a `datasets.Dataset` or a dict of columns. Columns that encoders read are parallel: one row
            is one meaning, with one label. For encoders of words also sentences, as lists of words, with lists of as
            many labels.
        metric: ``f1`` (macro), ``f1_weighted``, ``accuracy``, ``mae``, ``mse`` or a function of (labels, predictions).
        greater_is_better: Whether a larger value of a function passed as `metric` is the better one.
        inputs: Encoder name -> column that it reads, or the two columns of pairs of texts; default is the encoder's
            own `anchor_view`.
        label_column: Column of the labels: classes (names or numbers; aligned by name with each decoder's `id2label`
            where both have names), 0/1 rows for multi label, numbers for regression.
        own: Encoder name -> name of the decoder trained on it; default is the decoder of the same name.
        train_dataset: Samples to fit the absolute control on, with the same columns.
        batch_size: Samples that an encoder reads at a time.
        device: Device to which each part is moved for its run, and back after it; ``None`` runs each where it is.
        progress: Whether to show a progress bar; never shown when output is piped.

    Raises:
        StaleAnchorsError: If an encoder's stored anchors are not its own.
        StitchingError: If a decoder does not fit an encoder.
        EvaluationError: If columns, labels or names do not allow a score.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> models = {"en": "me/relative-en", "fr": "me/relative-fr"}
        >>> print(stitching_matrix(models, models, test, train_dataset=train))
        Stitching matrix: macro F1 on 60 samples
        ...
        own ... stitched ... absolute stitched ... chance ...

        ```
    """
    score = resolve_score(metric, greater_is_better=greater_is_better)
    encoder_parts = _resolve("encoders", encoders, resolve_encoder)
    decoder_parts = _resolve("decoders", decoders, resolve_decoder)
    for encoder in encoder_parts.values():
        for decoder in decoder_parts.values():
            require_fit(encoder.config.space, decoder.config.space)
    for encoder in encoder_parts.values():
        refuse_stale(encoder)
    own_pairs = _own_pairs(own, tuple(encoder_parts), tuple(decoder_parts))
    columns = _columns_read(encoder_parts, inputs)
    if all(encoder.config.modality == "word" for encoder in encoder_parts.values()):
        dataset = by_words(dataset, "dataset", set(columns.values()), label_column)
        if train_dataset is not None:
            own_read = {columns[name] for name in own_pairs}
            train_dataset = by_words(train_dataset, "train_dataset", own_read, label_column)
    task = Task.of(decoder_parts, dataset, label_column)
    check_problem(score, task.problem_type)
    data = _Data.of(dataset, "dataset", columns, task, label_column)
    train_data = None
    if train_dataset is not None:
        own_columns = {name: columns[name] for name in own_pairs}
        train_data = _Data.of(train_dataset, "train_dataset", own_columns, task, label_column)
    guessed, guess = chance(data.labels, score, task.problem_type)

    shape = len(encoder_parts), len(decoder_parts)
    scores, absolute = np.full(shape, np.nan), np.full(shape, np.nan)
    with ExitStack() as stack:
        for decoder in decoder_parts.values():
            stack.enter_context(_moved(decoder, device))
        run = _Run(batch_size, device, progress)
        controls = {} if train_data is None else _fit_controls(run, encoder_parts, own_pairs, train_data, task)
        encoded = stack.enter_context(closing(run.encode(encoder_parts, data, "encoders")))
        for row, (encoder, x_ND) in enumerate(encoded):
            for column, (name, logits_NC) in enumerate(decode(encoder, decoder_parts, x_ND).items()):
                scores[row, column] = score(data.labels, task.predictions(name, logits_NC))
                if name in controls and controls[name].n_features_in_ == x_ND.shape[1]:
                    absolute[row, column] = score(data.labels, controls[name].predict(x_ND.numpy()))
    return StitchingMatrix(
        encoders=tuple(encoder_parts),
        decoders=tuple(decoder_parts),
        scores=scores,
        own_pairs=own_pairs,
        absolute=None if train_data is None else absolute,
        chance=guessed,
        guess=guess,
        metric=score.name,
        title=score.title,
        greater_is_better=score.greater_is_better,
        n=len(data.labels),
        control=CONTROLS[task.problem_type],
    )


@dataclass(frozen=True)
class _Data:
    """Samples and labels of a dataset, columns checked."""

    samples: Mapping[str, list[Any]]  # encoder name -> what it reads; names of one column share the list
    labels: np.ndarray

    @classmethod
    def of(cls, dataset: Any, role: str, columns: Mapping[str, str], task: Task, label_column: str) -> _Data:
        read = {column: column_of(dataset, column, role, "inputs") for column in dict.fromkeys(columns.values())}
        labels = task.labels(dataset, label_column, role)
        return cls({name: read[column] for name, column in columns.items()}, labels)


@dataclass(frozen=True)
class _Run:
    """How encoders run: one after the other, each once."""

    batch_size: int
    device: torch.device | str | None
    progress: bool

    def encode(
        self, encoders: Mapping[str, RelativeModel], data: _Data, title: str
    ) -> Generator[tuple[RelativeModel, torch.Tensor]]:
        """Each encoder, still where it runs, with its absolute embeddings on the CPU; close it to put all back."""
        # disable=None: no bar where output is piped
        bar = logging.tqdm(encoders.items(), desc=title, unit="encoder", disable=None if self.progress else True)
        for name, encoder in bar:
            bar.set_postfix_str(name)
            with _moved(encoder, self.device):
                yield encoder, encoder.encode(data.samples[name], batch_size=self.batch_size).float().cpu()


def _fit_controls(
    run: _Run, encoders: Mapping[str, RelativeModel], own_pairs: Mapping[str, str], data: _Data, task: Task
) -> dict[str, Any]:
    """Decoder name -> the absolute control in its place, fitted on the encoder that owns the decoder."""
    owners = {name: encoders[name] for name in own_pairs}
    with closing(run.encode(owners, data, "absolute control")) as encoded:
        return {
            own_pairs[name]: _fit_control(x_ND.numpy(), data.labels, task)
            for name, (_, x_ND) in zip(owners, encoded, strict=True)
        }


def _fit_control(x_ND: np.ndarray, labels: np.ndarray, task: Task) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if task.problem_type == SINGLE and len(np.unique(labels)) < 2:
        raise EvaluationError(
            f"train_dataset contains only class {labels[0]}, expected two or more to fit the absolute control. "
            "Shuffle before you select rows, or leave train_dataset out."
        )
    classifier = LogisticRegression(max_iter=2000)
    models = {SINGLE: classifier, MULTI: OneVsRestClassifier(classifier), REGRESSION: Ridge()}
    return make_pipeline(StandardScaler(), models[task.problem_type]).fit(x_ND, labels)


@contextmanager
def _moved(part: PreTrainedModel, device: torch.device | str | None) -> Iterator[None]:
    """In evaluation mode and on the device; afterwards as it was."""
    home = part.device
    with evaluating(part):
        if device is not None:
            _to(part, device)
        try:
            yield
        finally:
            if device is not None:
                _to(part, home)


def _to(part: torch.nn.Module, device: torch.device | str) -> None:
    part.to(device)  # as a plain module: the types of the one in transformers take the device for the model


def _resolve(role: str, things: Mapping[str, Any] | Sequence[str], resolve: Callable[[Any], Part]) -> dict[str, Part]:
    if isinstance(things, torch.nn.Module):
        raise EvaluationError(
            f"{role} is a {type(things).__name__}, which has no name for the table. Pass a dict: "
            f"{role}={{'name': model, ...}}."
        )
    if isinstance(things, str) or not things:
        raise EvaluationError(f"{role}={things!r}: expected a dict of names, or a list of repository ids.")
    if isinstance(things, Mapping):
        return {name: resolve(thing) for name, thing in things.items()}
    nameless = [type(thing).__name__ for thing in things if not isinstance(thing, str | Path)]
    if nameless:
        raise EvaluationError(
            f"{role} is a list that contains a {nameless[0]}, which has no name for the table. Pass a dict: "
            f"{role}={{'name': model, ...}}."
        )
    repeated = [thing for thing, count in Counter(map(str, things)).items() if count > 1]
    if repeated:
        raise EvaluationError(f"{role} names {repeated[0]!r} twice, expected each once. Pass a dict to rename one.")
    return {str(thing): resolve(thing) for thing in things}


def _own_pairs(own: Mapping[str, str] | None, encoders: tuple[str, ...], decoders: tuple[str, ...]) -> dict[str, str]:
    if own is None:
        return {name: name for name in encoders if name in decoders}
    for side, found, expected in (("encoder", own, encoders), ("decoder", own.values(), decoders)):
        unknown = [name for name in found if name not in expected]
        if unknown:
            raise EvaluationError(f"own names the {side} {unknown[0]!r}, expected one of {', '.join(expected)}.")
    shared = [name for name, count in Counter(own.values()).items() if count > 1]
    if shared:
        owners = " and ".join(encoder for encoder, decoder in own.items() if decoder == shared[0])
        raise EvaluationError(
            f"own gives decoder {shared[0]!r} to {owners}. Expected one encoder: the one that it was trained on."
        )
    return {name: own[name] for name in encoders if name in own}


def _columns_read(encoders: Mapping[str, RelativeModel], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Encoder name -> column that it reads."""
    inputs = inputs or {}
    unknown = [name for name in inputs if name not in encoders]
    if unknown:
        raise EvaluationError(f"inputs names the encoder {unknown[0]!r}, expected one of {', '.join(encoders)}.")
    columns = {}
    for name, encoder in encoders.items():
        column = inputs.get(name, encoder.config.anchor_view)
        if column is None:
            raise EvaluationError(
                f"Encoder {name!r} has no anchor view, so the column that it reads is unknown. Pass "
                f"inputs={{{name!r}: 'column'}}."
            )
        columns[name] = column if isinstance(column, str) else columns_in(column)
    return columns


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def _plain(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def _number(value: float) -> str:
    return f"{value:.3f}"


def _cell(value: float, own: bool) -> str:
    if np.isnan(value):
        return "- "
    return f"[{_number(value)}]" if own else f"{_number(value)} "
