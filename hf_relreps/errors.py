"""What can go wrong, and what to do about it.

Each message says what was found, what was expected and which call mends it. Each error is also the builtin that people
would catch without knowing this library::

    RelrepsError
    ├── ConfigurationError (ValueError)   a setting that has no meaning: an unknown similarity, a negative ridge
    ├── AnchorError (ValueError)          anchors that cannot be used: none, too few, repeated ids, an unknown view
    │   ├── AnchorIntegrityError          an anchors folder that is not what its digests say: stale or tampered with
    │   └── StaleAnchorsError             stored embeddings that are not what the encoder makes of its anchors now
    ├── SampleError (ValueError)          samples that cannot be encoded: an empty text, a number where a text belongs
    ├── EmbeddingError (ValueError)       embeddings without a direction: zero, infinite, not a number
    ├── PartError (TypeError)             no model, no name of one: a wrapped model, a pipeline, nothing at all
    ├── StitchingError (ValueError)       parts that do not fit: other anchors, another order, another similarity
    ├── UploadError (OSError)             an upload that lacks the part asked for, or is no upload of ours
    │   └── UploadIntegrityError          a file whose bytes are not the ones its repository names
    ├── EvaluationError (ValueError)      a comparison that has no answer: no labels, widths that differ
    └── MissingExtraError (ImportError)   a feature whose packages are not installed
"""

from __future__ import annotations


class RelrepsError(Exception):
    """Root of every error that hf_relreps raises on purpose."""


class ConfigurationError(RelrepsError, ValueError):
    """A setting that has no meaning."""


class AnchorError(RelrepsError, ValueError):
    """Anchors that cannot be used as they are."""


class AnchorIntegrityError(AnchorError):
    """An anchors folder whose content is not what its digests say."""


class StaleAnchorsError(AnchorError):
    """Stored embeddings of anchors that are not what their encoder makes of them now."""


class SampleError(RelrepsError, ValueError):
    """Samples that no encoder can read."""


class EmbeddingError(RelrepsError, ValueError):
    """Embeddings that have no direction: zero, infinite or not a number."""


class PartError(RelrepsError, TypeError):
    """A thing where a model or the name of an upload belongs, and that is neither."""


class StitchingError(RelrepsError, ValueError):
    """An encoder and a decoder that do not fit together."""


class UploadError(RelrepsError, OSError):
    """An upload that lacks the part asked for, or that this library cannot read."""


class UploadIntegrityError(UploadError):
    """A file whose bytes are not the ones that its repository names."""


class EvaluationError(RelrepsError, ValueError):
    """A comparison that has no answer on this data."""


class MissingExtraError(RelrepsError, ImportError):
    """A feature whose packages are not installed; the message names the extra."""
