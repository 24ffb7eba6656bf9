"""How much of its own score a decoder keeps behind another encoder, told without labels.

What the decoder says behind either encoder is taken as two witnesses of one unknown class. What they believe together
tells how often each is right, class by class: where the own encoder hardly knows better, to disagree costs little.
Shapes: N samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


FEWEST_PAIRS = 100
# What the own encoder alone believes, if it is calibrated: two encoders do not err independently of one another.
WEIGHT_OF_OWN = 1 / 3
SHARPEST = 100.0  # scores are multiplied by no more, and divided by no more
STEPS = 40  # of halving between the two


@dataclass(frozen=True)
class Prediction:
    """The share of its macro-F1 that a decoder is expected to keep with another encoder; prints as a sentence.

    Args:
        num_pairs: Number of pairs of samples that it is based on.
        ratio: Stitched over own; ``None`` if it cannot be predicted. `docs/quality.md` shows how accurate it was.
        why_not: Why it cannot be predicted.

    Example:
        ```python
        >>> from hf_relreps.prediction import Prediction
        >>> print(Prediction(num_pairs=300, ratio=0.956))
        keeps 96 % of the decoder's own macro-F1 (300 pairs)

        ```
    """

    num_pairs: int
    ratio: float | None = None
    why_not: str = ""

    def __str__(self) -> str:
        if self.ratio is None:
            return f"not known: {self.why_not}"
        return f"keeps {100 * self.ratio:.0f} % of the decoder's own macro-F1 ({self.num_pairs:,} pairs)"


def predicted(
    own_NC: Tensor,
    stitched_NC: Tensor,
    own_accuracy: float | None = None,
    *,
    one_class_each: bool = True,
) -> Prediction:
    """`expected_ratio`, where it can be told.

    Args:
        own_NC: Logits of the decoder behind its own encoder.
        stitched_NC: Logits of the decoder behind the other one, for the same samples.
        own_accuracy: How often the decoder is right behind its own encoder, if that is known.
        one_class_each: Whether each sample has one class, not several.
    """
    num_pairs = len(own_NC)
    if not one_class_each:
        return Prediction(
            num_pairs, why_not="the prediction was calibrated only on tasks with one class for each sample"
        )
    if num_pairs < FEWEST_PAIRS:
        return Prediction(num_pairs, why_not=f"found {num_pairs} pairs, expected {FEWEST_PAIRS} or more")
    return Prediction(num_pairs, expected_ratio(own_NC, stitched_NC, own_accuracy))


def expected_ratio(own_NC: Tensor, stitched_NC: Tensor, own_accuracy: float | None = None) -> float:
    """Expected macro-F1 of the stitched answers over that of the own ones.

    Args:
        own_NC: Logits of the decoder behind its own encoder.
        stitched_NC: Logits of the decoder behind the other one, for the same samples.
        own_accuracy: How often the decoder is right behind its own encoder, if that is known: decoders often believe
            more than they know.
    """
    own_NC, stitched_NC = own_NC.double(), stitched_NC.double()
    answers = own_NC.argmax(-1), stitched_NC.argmax(-1)
    p_NC = own_NC.softmax(-1) if own_accuracy is None else calibrated(own_NC, own_accuracy)
    by_both = _ratio(joint(p_NC, taught(stitched_NC, p_NC)), *answers)
    if own_accuracy is None:
        return by_both
    return WEIGHT_OF_OWN * _ratio(p_NC, *answers) + (1 - WEIGHT_OF_OWN) * by_both


def _ratio(p_NC: Tensor, own_N: Tensor, stitched_N: Tensor) -> float:
    return expected_f1(p_NC, stitched_N) / expected_f1(p_NC, own_N)


def calibrated(logits_NC: Tensor, accuracy: float) -> Tensor:
    """Probabilities (N, C), as sure on average as the answers are right."""

    def too_sure(factor: float) -> bool:
        return float((factor * logits_NC).softmax(-1).amax(-1).mean()) > accuracy

    return (_largest_below(too_sure) * logits_NC).softmax(-1)


def taught(logits_NC: Tensor, p_NC: Tensor) -> Tensor:
    """Probabilities (N, C), as sure as the least cross-entropy with `p_NC` asks for.

    A decoder behind an encoder that does not fit is sure of what is not so.
    """
    return (sharpening(logits_NC, p_NC) * logits_NC).softmax(-1)


def sharpening(logits_NC: Tensor, p_NC: Tensor) -> float:
    """The factor of logits with the least cross-entropy against probabilities; one over a temperature."""
    wanted = float((p_NC * logits_NC).sum(-1).mean())

    def too_sure(factor: float) -> bool:  # the slope of the cross-entropy, which is convex in the factor
        return float(((factor * logits_NC).softmax(-1) * logits_NC).sum(-1).mean()) > wanted

    return _largest_below(too_sure)


def joint(p_NC: Tensor, other_NC: Tensor) -> Tensor:
    """What two believe together if they err independently of one another (N, C)."""
    q_NC = p_NC * other_NC / p_NC.mean(0).clamp_min(1e-12)
    return q_NC / q_NC.sum(-1, keepdim=True).clamp_min(1e-300)


def expected_f1(p_NC: Tensor, answers_N: Tensor) -> float:
    """Macro-F1 of answers where `p_NC` tells how likely each class is."""
    chosen_NC = torch.nn.functional.one_hot(answers_N, p_NC.shape[-1]).to(p_NC.dtype)
    right_C, both_C = (p_NC * chosen_NC).sum(0), p_NC.sum(0) + chosen_NC.sum(0)
    return float((2 * right_C / both_C.clamp_min(1e-12))[both_C > 0].mean())


def _largest_below(too_much: Callable[[float], bool]) -> float:
    """The factor at which a growing thing becomes too much."""
    low, high = -math.log(SHARPEST), math.log(SHARPEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if too_much(math.exp(middle)) else (middle, high)
    return math.exp(low)
