"""A bound on what a forward pass allocates: numbers of a configuration that no weight shows are read only there.

A window, a stride or a size of a spectrogram may ask for gigabytes of padding. So the first samples that go through a
downloaded encoder are watched: the shape of each result is computed before the result is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hf_relreps.errors import ConfigurationError


MOST_NUMBERS = 1 << 26  # of one result, beside the model's own numbers: 256 MB in float32
MOST_STEPS = 1_000_000  # operations of one forward pass
MOST_HEADS = 128  # that compare all tokens of a sample with one another
PER_TOKEN = 64  # values of an image or a sound that become one token, at least


class Bounded(TorchDispatchMode):
    """Inside, an operation whose result would be immense raises an error in place of being done.

    Args:
        inputs: What the model reads: attention may take the square of the tokens in it.
        weights: How many numbers the model holds.

    Raises:
        ConfigurationError: With the operation and the shape of its result.
    """

    def __init__(self, inputs: Mapping[str, Any], weights: int) -> None:
        super().__init__()
        self.most = MOST_NUMBERS + weights + max((_attention(value) for value in inputs.values()), default=0)
        self.steps = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Find the shape of the result first."""
        kwargs = kwargs or {}
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise ConfigurationError(
                f"The encoder takes more than {MOST_STEPS} operations for one batch, expected a few thousand. A "
                "number in its configuration is too large: do not use this upload."
            )
        for result in _shapes(func, args, kwargs):
            if result.numel() > self.most:
                raise ConfigurationError(
                    f"The encoder would make {result.numel()} numbers at once ({func}: {tuple(result.shape)}); the "
                    f"limit for these samples is {self.most}. A number in its configuration is too large: do not use "
                    "this upload."
                )
        return func(*args, **kwargs)


def _attention(value: Any) -> int:
    """How many numbers attention over a batch may make."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 0:
        return 0
    of_sample = value.numel() // len(value)
    tokens = of_sample // PER_TOKEN if value.is_floating_point() else of_sample
    return MOST_HEADS * len(value) * tokens**2


def _shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The results of an operation as tensors without content; none where only the content tells."""
    try:
        args, kwargs = tree_map(_without_content, (args, kwargs))
        if "device" in kwargs:
            kwargs = kwargs | {"device": torch.device("meta"), "pin_memory": None}
        return [result for result in tree_leaves(func(*args, **kwargs)) if isinstance(result, Tensor)]
    except Exception:  # an operation of another library, or one whose shape depends on values
        return []


def _without_content(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if type(value) not in (Tensor, torch.nn.Parameter):
        raise TypeError("a tensor of another library")
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
