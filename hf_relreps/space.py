"""`RelativeSpace`: the one value that says whether an encoder and a decoder fit together.

Two parts fit if and only if their spaces are equal. How an encoder pools, and in which language it reads the anchors,
is its own affair.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from hf_relreps.errors import ConfigurationError, StitchingError
from hf_relreps.similarities import KERNELS, RBF_GAMMA, SIMILARITIES


TRANSFORMS = ("none", "center", "standardize", "whiten")
MOST_IN_BASIS = 32_768  # anchors whose change of basis is computed: a matrix of their square, 9 GB
SHRINKAGE = 0.3


@dataclass(frozen=True)
class RelativeSpace:
    """What the numbers of a relative representation mean: immutable, compared with ``==``.

    Args:
        fingerprint: Identity of the anchor set (64 hex digits); ``None`` if there is none yet.
        num_anchors: A, the number of anchors.
        transform: How embeddings are normalised first, with statistics of the anchors alone: ``none``, ``center``,
            ``standardize`` or ``whiten``.
        similarity: Name in `hf_relreps.similarities.SIMILARITIES`, or several names: their product of invariances,
            side by side. Kept as a tuple.
        basis_ridge: Ridge of the change of basis ``K(x, A) (K(A, A) + ridge I)^-1``; ``None`` keeps the
            similarities. In units of the mean of the diagonal of ``K(A, A)``.
        rbf_gamma: Sharpness of the ``rbf`` similarity; ``None`` if that is not used.
        shrinkage: Share of the mean variance that ``whiten`` puts in place of the covariance, in [0, 1]; ``None`` for
            other transforms.

    Raises:
        ConfigurationError: If a field has an unknown value, or a number is outside its range.

    Example:
        ```python
        >>> from hf_relreps import RelativeSpace
        >>> space = RelativeSpace(fingerprint="3f9a" * 16, num_anchors=300)
        >>> print(space)
        300 anchors 3f9a3f9a3f9a3f9a, center, rbf 1.5, ridge 0.1
        >>> space == space.replace(similarity="cosine")
        False
        >>> space.replace(similarity="cosine").differences(space)
        {'similarity': ('cosine', 'rbf'), 'rbf_gamma': (None, 1.5)}

        ```
    """

    fingerprint: str | None = None
    num_anchors: int = 0
    transform: str = "center"
    similarity: tuple[str, ...] = ("rbf",)
    basis_ridge: float | None = 0.1
    rbf_gamma: float | None = None
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        given: Any = self.similarity  # a name, or several in a list as JSON has them
        if not isinstance(given, str | list | tuple) or not given:
            raise ConfigurationError(
                f"similarity={given!r:.60} is not a similarity. Give one or a list of {', '.join(SIMILARITIES)}."
            )
        self._put("similarity", (given,) if isinstance(given, str) else tuple(given))
        if self.fingerprint is not None and not isinstance(self.fingerprint, str):
            raise ConfigurationError(f"fingerprint={self.fingerprint!r:.60} must be a string, or None.")
        require_whole("num_anchors", self.num_anchors, low=0)
        require_one_of("transform", self.transform, TRANSFORMS)
        for name in self.similarity:
            require_one_of("similarity", name, tuple(SIMILARITIES))
        if len(set(self.similarity)) < len(self.similarity):
            raise ConfigurationError(
                f"similarity={self.similarity!r:.60} names one twice, which would say the same twice. Name each once."
            )
        if self.rbf_gamma is not None:
            require_within("rbf_gamma", self.rbf_gamma, low=0, strictly=True)
        if self.shrinkage is not None:
            require_within("shrinkage", self.shrinkage, low=0, high=1)
        # What is not used makes no difference between two spaces.
        gamma = RBF_GAMMA if self.rbf_gamma is None else float(self.rbf_gamma)
        shrinkage = SHRINKAGE if self.shrinkage is None else float(self.shrinkage)
        self._put("rbf_gamma", gamma if "rbf" in self.similarity else None)
        self._put("shrinkage", shrinkage if self.transform == "whiten" else None)
        if self.basis_ridge is not None:
            require_within("basis_ridge", self.basis_ridge, low=0, strictly=True)
            self._put("basis_ridge", float(self.basis_ridge))
            if self.num_anchors > MOST_IN_BASIS:
                raise ConfigurationError(
                    f"basis_ridge={self.basis_ridge} takes the square of num_anchors={self.num_anchors} numbers; the "
                    f"limit is {MOST_IN_BASIS} anchors. Set basis_ridge=None, or choose fewer anchors."
                )
            without_basis = [name for name in self.similarity if name not in KERNELS]
            if without_basis:
                raise ConfigurationError(
                    f"basis_ridge={self.basis_ridge} needs similarities that are kernels ({', '.join(KERNELS)}), "
                    f"found {', '.join(without_basis)}. Set basis_ridge=None, or choose a kernel."
                )

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """From a file's content; fields that do not exist are left out.

        Raises:
            ConfigurationError: If it is no mapping, or a field has no meaning.
        """
        if not isinstance(content, Mapping):
            raise ConfigurationError(f"space is {content!r:.60}, expected a dict of its fields.")
        return cls(**{name: value for name, value in content.items() if name in SPACE_FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """For JSON: one similarity as a name, several as a list."""
        similarity = self.similarity[0] if len(self.similarity) == 1 else list(self.similarity)
        return dataclasses.asdict(self) | {"similarity": similarity}

    def replace(self, **fields: Any) -> Self:
        """The same space with some fields replaced."""
        return dataclasses.replace(self, **fields)

    @property
    def size(self) -> int:
        """R, the width of a relative representation: anchors times similarities."""
        return self.num_anchors * len(self.similarity)

    @property
    def projection(self) -> dict[str, Any]:
        """The settings without the anchors: pass them to `replace` to give another space the same projection."""
        return {name: getattr(self, name) for name in PROJECTION_FIELDS}

    def fits(self, other: RelativeSpace) -> bool:
        """Whether an encoder and a decoder of these spaces fit: they are equal, and the anchors are known."""
        return self.fingerprint is not None and self == other

    def differences(self, other: RelativeSpace) -> dict[str, tuple[Any, Any]]:
        """Both values of each field in which they differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {name: (mine[name], theirs[name]) for name in SPACE_FIELDS if mine[name] != theirs[name]}

    @property
    def anchors(self) -> str:
        """The anchors in words: how many, and the begin of their fingerprint."""
        return f"{self.num_anchors} anchors {(self.fingerprint or 'none')[:16]}"

    def __str__(self) -> str:
        words = {"rbf": f"rbf {self.rbf_gamma}"}
        told = [self.anchors, self.transform if self.shrinkage is None else f"whiten {self.shrinkage}"]
        told += [" + ".join(words.get(name, name) for name in self.similarity)]
        return ", ".join([*told, *([] if self.basis_ridge is None else [f"ridge {self.basis_ridge}"])])


SPACE_FIELDS = tuple(field.name for field in dataclasses.fields(RelativeSpace))
PROJECTION_FIELDS = SPACE_FIELDS[2:]  # all but the anchors


def require_fit(encoder: RelativeSpace, decoder: RelativeSpace) -> None:
    """Raise `StitchingError` unless a decoder reads what an encoder gives: the one question, asked here alone.

    Raises:
        StitchingError: With what both sides say, and the call that mends it.
    """
    if decoder.fits(encoder):
        return
    if encoder.fingerprint is None or encoder.anchors != decoder.anchors:
        raise StitchingError(
            f"Cannot stitch: the encoder uses {encoder.anchors}, but the decoder was trained on {decoder.anchors}. "
            "Both need the same anchors in the same order: call encoder.encode_anchors(decoder.anchors.view(name)), "
            "or choose parts that share an AnchorSet."
        )
    sides = [f"{name} {mine!r} instead of {theirs!r}" for name, (mine, theirs) in encoder.differences(decoder).items()]
    raise StitchingError(
        "Cannot stitch: the encoder's projection differs from the one that the decoder was trained with: "
        f"{', '.join(sides)}. Give the encoder the decoder's projection: encoder.use_projection(decoder.config)."
    )


def refuse_unknown_settings(settings: Mapping[str, Any], known: frozenset[str] | set[str], what: str) -> None:
    """Raise `ConfigurationError` for settings that do not exist, and name the nearest that does."""
    for name in sorted(set(settings) - known):
        near = difflib.get_close_matches(name, sorted(known), n=1)
        raise ConfigurationError(
            f"{what} has no setting {name!r}. "
            + (f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(sorted(known))}.")
        )


def require_one_of(field: str, found: Any, expected: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` unless a field names something that exists."""
    if found not in expected:
        raise ConfigurationError(f"{field}={found!r:.60} does not exist. Choose one of {', '.join(expected)}.")


def require_whole(field: str, found: Any, low: int) -> None:
    """Raise `ConfigurationError` unless a field is a whole number that is large enough."""
    if not isinstance(found, int) or isinstance(found, bool) or found < low:
        raise ConfigurationError(f"{field}={found!r:.60} must be a whole number, {low} or more.")


def require_within(field: str, found: Any, low: float, high: float = math.inf, strictly: bool = False) -> None:
    """Raise `ConfigurationError` unless a field is a number in a range."""
    if isinstance(found, int | float) and not isinstance(found, bool):
        if (low < found if strictly else low <= found) and found <= high and not math.isinf(found):
            return
    upper = "" if math.isinf(high) else f" and at most {high}"
    raise ConfigurationError(
        f"{field}={found!r:.60} must be a number {'above' if strictly else 'at least'} {low}{upper}."
    )
