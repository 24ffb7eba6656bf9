"""Labels of a dataset and answers of decoders, in one form and one order of classes.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_relreps.configuration import IMAGE_DECODERS
from hf_relreps.errors import EvaluationError, SampleError
from hf_relreps.evaluation.scores import MULTI, REGRESSION, SINGLE
from hf_relreps.pairs import columns_in, samples_in
from hf_relreps.samples import unformatted


if TYPE_CHECKING:
    from hf_relreps.decoders import RelativeDecoder


@dataclass(frozen=True)
class Task:
    """What the decoders answer, and how each one's classes are numbered."""

    problem_type: str
    names: tuple[str, ...] | None  # of the classes, in the labels' order; None where nothing tells
    orders: Mapping[str, np.ndarray]  # decoder name -> its class c is class order[c] of the labels

    @classmethod
    def of(cls, decoders: Mapping[str, RelativeDecoder], dataset: Any, label_column: str) -> Task:
        """The task of these decoders on these labels; refuses decoders and labels that have no common one."""
        drawing = [name for name, decoder in decoders.items() if decoder.config.decoder_type in IMAGE_DECODERS]
        if drawing:
            raise EvaluationError(
                f"Decoder {drawing[0]!r} reconstructs images, which cannot be scored with labels. Compare the "
                "reconstructions with the originals: (stitch(encoder, decoder)(pixel_values).reconstruction - "
                "pixel_values).square().mean()."
            )
        several = [name for name, decoder in decoders.items() if decoder.config.questions]
        if several:
            raise EvaluationError(
                f"Decoder {several[0]!r} is several: {', '.join(decoders[several[0]].named)}; one column of labels "
                "scores one of them. Give it: decoder.select(name)."
            )
        values = column_of(dataset, label_column, "dataset", "label_column")
        problem_type = _problem_type(decoders, values)
        if problem_type == REGRESSION:
            orders = {name: np.arange(decoder.config.num_labels or 1) for name, decoder in decoders.items()}
            return cls(problem_type, None, orders)
        own_names = {name: _class_names(decoder.config.id2label) for name, decoder in decoders.items()}
        names = _label_names(dataset, label_column) or _agreed_names(own_names, values)
        return cls(problem_type, names, {name: _order(name, own_names[name], names) for name in decoders})

    @property
    def num_classes(self) -> int:
        """Number of classes that every decoder knows."""
        return min(map(len, self.orders.values()))

    def labels(self, dataset: Any, label_column: str, role: str) -> np.ndarray:
        """Labels of a dataset: class numbers (N,), 0/1 rows (N, C), or values (N,)."""
        values = column_of(dataset, label_column, role, "label_column")
        where = f"column {label_column!r} of {role}"
        if not values:
            raise EvaluationError(f"{role} has no rows, expected labelled samples.")
        if self.problem_type == REGRESSION:
            return _targets(values, where, {name: len(order) for name, order in self.orders.items()})
        if self.problem_type == MULTI:
            return _zeros_and_ones(values, where, self.num_classes)
        # The labels may be numbered in another order than the classes of the task (a train split of another upload).
        names = _label_names(dataset, label_column)
        if names is not None and self.names is not None:
            order = _order(role, names, self.names)
            values = [int(order[value]) if value is not None and value >= 0 else value for value in values]
        elif isinstance(values[0], str):
            values = _numbers_of(values, self.names, where)
        return _class_numbers(values, where, self.num_classes)

    def predictions(self, decoder_name: str, logits_NC: torch.Tensor) -> np.ndarray:
        """Answers of a decoder in the form and the class order of the labels."""
        if self.problem_type == REGRESSION:
            return logits_NC.squeeze(-1).double().numpy()
        order = self.orders[decoder_name]
        if self.problem_type == SINGLE:
            return order[logits_NC.argmax(dim=-1).numpy()]
        predictions = np.empty(logits_NC.shape, dtype=np.int64)
        predictions[:, order] = (logits_NC > 0).numpy()  # sigmoid > 0.5
        return predictions


def column_of(dataset: Any, column: str | Sequence[str], role: str, argument: str) -> list[Any]:
    """A column as a list, two as pairs of texts; errors name the dataset by its role and the argument to change."""
    try:
        dataset = unformatted(dataset, role)
    except SampleError as error:
        raise EvaluationError(str(error)) from error
    names = getattr(dataset, "column_names", None)
    if names is None:
        names = list(dataset)
    missing = [name for name in columns_in(column) if name not in names]
    if missing:
        raise EvaluationError(
            f"{role} has no column {missing[0]!r} (found: {', '.join(map(str, names))}). Choose with {argument}=..."
        )
    return samples_in(dataset, column)


def _problem_type(decoders: Mapping[str, RelativeDecoder], labels: Sequence[Any]) -> str:
    found: dict[str, str] = {}
    for name, decoder in decoders.items():
        several = len(labels) > 0 and np.ndim(labels[0]) > 0
        guessed = REGRESSION if decoder.config.num_labels == 1 else MULTI if several else SINGLE
        found.setdefault(decoder.config.problem_type or guessed, name)
    if len(found) > 1:
        sides = " and ".join(f"{name!r} {problem_type}" for problem_type, name in found.items())
        raise EvaluationError(f"The decoders solve different problems: {sides}. Make one matrix for each problem.")
    return next(iter(found))


def _class_names(id2label: Mapping[Any, str] | None) -> tuple[str, ...]:
    by_number = {int(number): name for number, name in (id2label or {}).items()}
    return tuple(by_number[number] for number in sorted(by_number))


def _are_generic(names: Sequence[str]) -> bool:
    """Whether names say no more than their number: LABEL_0, LABEL_1, ... or 0, 1, ..."""
    return all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(names))


def _label_names(dataset: Any, label_column: str) -> tuple[str, ...] | None:
    """Names of a `ClassLabel` column, in its order, if they say more than a number."""
    feature = (getattr(dataset, "features", None) or {}).get(label_column)
    names = tuple(getattr(feature, "names", None) or ())
    return names if names and not _are_generic(names) else None


def _agreed_names(own_names: Mapping[str, tuple[str, ...]], labels: Sequence[Any]) -> tuple[str, ...] | None:
    """The decoders' class names, for labels without any; text labels name their classes, so the order is free."""
    told = {name: names for name, names in own_names.items() if not _are_generic(names)}
    if not told:
        return None
    first, *others = told
    differing = [name for name in others if told[name] != told[first]]
    if differing and not (len(labels) and isinstance(labels[0], str)):
        raise EvaluationError(
            f"The labels are numbers without names, and decoders number their classes in different ways: {first!r} as "
            f"{_short(told[first])}, {differing[0]!r} as {_short(told[differing[0]])}. Name the labels: "
            'dataset.cast_column("label", ClassLabel(names=[...])).'
        )
    return told[first]


def _order(owner: str, own_names: tuple[str, ...], names: tuple[str, ...] | None) -> np.ndarray:
    """For each class of the owner, its number among the names."""
    if names is None or (_are_generic(own_names) and len(own_names) == len(names)):
        return np.arange(len(own_names))
    if set(own_names) != set(names) or len(own_names) != len(names):
        missing = _short([name for name in names if name not in own_names])
        extra = _short([name for name in own_names if name not in names])
        raise EvaluationError(
            f"The classes of {owner!r} cannot be aligned with the labels: it lacks {missing} and has {extra} instead. "
            "Rename the classes (decoder.config.id2label, or ClassLabel names), or leave that decoder out."
        )
    return np.array([names.index(name) for name in own_names])


def _numbers_of(values: list[Any], names: tuple[str, ...] | None, where: str) -> list[Any]:
    if names is None:
        raise EvaluationError(
            f"{_capital(where)} contains text ({values[0]!r}), but no decoder names its classes. Set "
            "decoder.config.id2label, or turn the labels into numbers."
        )
    unknown = [value for value in dict.fromkeys(values) if value not in names]
    if unknown:
        raise EvaluationError(
            f"{_capital(where)} holds {unknown[0]!r}, which is not a class of the decoders: {_short(names)}. Rename "
            "or drop those rows."
        )
    return [names.index(value) for value in values]


def _class_numbers(values: list[Any], where: str, num_classes: int) -> np.ndarray:
    labels = _array(values, where, ndim=1)
    wrong = labels[(labels < 0) | (labels >= num_classes) | (labels != np.floor(labels))]
    if len(wrong):
        raise EvaluationError(
            f"{_capital(where)} holds the label {wrong[0]:g} ({len(wrong)} such rows), expected class numbers 0 to "
            f"{num_classes - 1}. Unlabelled rows (-1) must be dropped; higher numbers belong to other decoders."
        )
    return labels.astype(np.int64)


def _zeros_and_ones(values: list[Any], where: str, num_classes: int) -> np.ndarray:
    labels = _array(values, where, ndim=2)
    if labels.shape[1] != num_classes or not np.isin(labels, (0, 1)).all():
        raise EvaluationError(
            f"{_capital(where)} holds rows of {labels.shape[1]} values such as {_short(values[0])}, expected "
            f"{num_classes} zeros and ones: one for each class of the decoders."
        )
    return labels.astype(np.int64)


def _targets(values: list[Any], where: str, widths: Mapping[str, int]) -> np.ndarray:
    labels = _array(values, where, ndim=None)
    rows = labels.reshape(len(labels), -1)
    for name, width in widths.items():
        if rows.shape[1] != width:
            raise EvaluationError(
                f"{_capital(where)} holds {rows.shape[1]} numbers for each row, expected {width}, the "
                f"output size of decoder {name!r}. Choose the column that it was trained on."
            )
    return rows[:, 0] if rows.shape[1] == 1 else rows


def _array(values: list[Any], where: str, ndim: int | None) -> np.ndarray:
    try:
        labels = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EvaluationError(
            f"{_capital(where)} holds labels such as {_short([values[0]])}, not numbers of one shape ({error}). "
            "Expected one label for each row, none of them missing."
        ) from error
    if ndim is not None and labels.ndim != ndim:
        raise EvaluationError(
            f"{_capital(where)} holds labels of shape {labels.shape[1:]}, expected "
            f"{'one number' if ndim == 1 else 'one list of zeros and ones'} for each row. Check the decoders' "
            "problem_type."
        )
    if not np.isfinite(labels).all():
        raise EvaluationError(f"{_capital(where)} holds missing or infinite labels. Drop those rows.")
    return labels


def _short(names: Sequence[Any]) -> str:
    shown = ", ".join(map(str, names[:5])) or "none"
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
