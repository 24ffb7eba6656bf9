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

CODEC = "a codec: it gives codes, or waveforms again"

# Model type -> (cause, what was found by reading it).
KNOWN: dict[str, tuple[str, str]] = {
    "clvp": ("inputs", "compares a text with a sound: it reads both at once"),
    "dac": ("vectors", CODEC),
    "decision_transformer": ("modality", "reads states, actions and rewards; its token embeddings are never used"),
    "encodec": ("vectors", CODEC),
    "idefics": ("inputs", "reads images between the words of a text: it needs both"),
    "inkling_mm_model": ("large", "2,429 million parameters even when tiny: towers whose widths are not configured"),
    "kyutai_speech_to_text": ("inputs", "each step is a token and 32 codes of sound, from a codec"),
    "mgp-str": ("vectors", "gives the characters' logits only"),
    "mimi": ("vectors", CODEC),
    "mimi_encoder": ("vectors", CODEC),
    "pocket_tts_audio_tokenizer": ("vectors", CODEC),
    "pocket_tts_audio_tokenizer_encoder": ("vectors", CODEC),
    "speecht5": ("inputs", "reads what a prenet makes of texts or sounds, which is not part of this class"),
    "udop": ("inputs", "a text needs the box on its page of each word"),
    "vibevoice_acoustic_tokenizer": ("vectors", CODEC),
    "vit_mae": ("random", "shuffles the patches anew each time, here with none masked; its sums differ by 1e-6"),
    "voxtral_realtime": ("config", "the class of its text model does not exist in this transformers"),
    "voxtral_realtime_text": ("config", "its class does not exist in this transformers"),
    "xcodec": ("vectors", CODEC),
}
