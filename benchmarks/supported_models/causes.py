"""Why a model type is no encoder here: the kinds of causes, and what reading a model told where no error did."""

from __future__ import annotations


CAUSES = {
    "package": "needs a package that is not installed here",
    "config": "cannot be built from its configuration alone",
    "large": "too large or too slow for this sweep even when tiny",
    "modality": "reads neither texts, images nor sounds",
    "inputs": "needs more than a processor makes of one sample of one modality",
    "vectors": "gives no vectors of a sample, but waveforms, codes or logits",
    "random": "gives another embedding of the same sample each time",
    "batch": "gives another embedding of a sample in another batch",
    "other": "fails in another way",
}
# These cannot be built here, or are no encoders of one modality: the rest is what should work.
NOT_BUILT = ("package", "config", "large")
NO_ENCODER = ("modality", "inputs", "vectors")

# Model type -> (cause, what was found).
KNOWN: dict[str, tuple[str, str]] = {}
