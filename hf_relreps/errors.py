"""What can go wrong, and what to do about it.

Each message says what was found, what was expected and which call fixes it. Each error is also the builtin that people
would catch without knowing this library::

    RelrepsError
    ├── ConfigurationError (ValueError)   an invalid setting: an unknown similarity, a negative ridge
    ├── AnchorError (ValueError)          anchors that cannot be used: none, too few, repeated ids, an unknown view
    │   ├── AnchorIntegrityError          an anchors folder that does not match its digests: outdated or changed
    │   └── StaleAnchorsError             stored anchor embeddings that do not match the encoder
    ├── SampleError (ValueError)          samples that cannot be encoded: an empty text, a number where a text belongs
    │   └── LabelError                    labels that are no classes of the model: 6 where there are 6 classes
    ├── EmbeddingError (ValueError)       embeddings without a direction: zero, infinite, not a number
    ├── PartError (TypeError)             neither a model nor the name of one: a wrapped model, a pipeline, None
    ├── StitchingError (ValueError)       parts that do not fit: other anchors, another order, another similarity
    ├── UploadError (OSError)             an upload that lacks the requested part, or is not of this library
    │   └── UploadIntegrityError          a file that does not match the digest in its repository
    ├── EvaluationError (ValueError)      a comparison that is undefined: no labels, widths that differ
    └── MissingExtraError (ImportError)   a feature whose packages are not installed
"""

from __future__ import annotations

from hf_relreps.printing import printable


class RelrepsError(Exception):
    """Base class of all errors of hf_relreps."""

    def __str__(self) -> str:
        """The message; what it quotes of an upload cannot write on a terminal."""
        return printable(super().__str__())


class ConfigurationError(RelrepsError, ValueError):
    """An invalid setting."""


class AnchorError(RelrepsError, ValueError):
    """Anchors that cannot be used as they are."""


class AnchorIntegrityError(AnchorError):
    """An anchors folder that does not match its digests."""


class StaleAnchorsError(AnchorError):
    """Stored anchor embeddings that do not match the encoder."""


class SampleError(RelrepsError, ValueError):
    """Samples that no encoder can read."""


class LabelError(SampleError):
    """Labels that are no classes of the model that is trained on them."""


class EmbeddingError(RelrepsError, ValueError):
    """Embeddings that have no direction: zero, infinite or not a number."""


class PartError(RelrepsError, TypeError):
    """An argument that is neither a model nor the name of an upload."""


class StitchingError(RelrepsError, ValueError):
    """An encoder and a decoder that do not fit together."""


class UploadError(RelrepsError, OSError):
    """An upload that lacks the requested part, or that this library cannot read."""


class UploadIntegrityError(UploadError):
    """A file that does not match the digest in its repository."""


class EvaluationError(RelrepsError, ValueError):
    """A comparison that is undefined for this data."""


class MissingExtraError(RelrepsError, ImportError):
    """A feature whose packages are not installed; the message names the extra."""
