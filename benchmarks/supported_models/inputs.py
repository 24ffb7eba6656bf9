"""Raw samples of each modality, and processors that fit a tiny model."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from hf_relreps import AnchorSet


NUM_ANCHORS = 8
NUM_SAMPLES = 5
RATE = 16000
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
WORDS = [f"word{i}" for i in range(40)]


def texts(n: int, seed: int) -> list[str]:
    """Texts of unlike length."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=int(size))) for size in generator.integers(3, 14, size=n)]


def images(n: int, seed: int) -> list[Image.Image]:
    """Noise, since a tiny model sees no difference between plain colours."""
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(n)]


def sounds(n: int, seed: int) -> list[dict[str, Any]]:
    """Noise of unlike length, about a second."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(RATE // 2, RATE, size=n)
    return [
        {"array": generator.normal(scale=0.3, size=int(n)).astype("float32"), "sampling_rate": RATE} for n in lengths
    ]


MAKERS = {"text": texts, "image": images, "audio": sounds}


def anchor_set() -> AnchorSet:
    """The same meanings as texts, images and sounds: one view for each modality."""
    return AnchorSet(range(NUM_ANCHORS), {name: make(NUM_ANCHORS, seed=0) for name, make in MAKERS.items()})


def tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token, between [CLS] and [SEP]."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL.values(), *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, model_input_names=["input_ids", "attention_mask"], model_max_length=100, **SPECIAL
    )


def processors_for(model_type: str, modality: str, config: PreTrainedConfig) -> Iterator[Any]:
    """Processors to try: the type's own, then the plainest of the modality."""
    if modality == "text":
        yield tokenizer()
    elif modality == "image":
        yield from _image_processors(model_type, config)
    else:
        yield from _feature_extractors(model_type, config)


def _own(model_type: str, names: Any) -> Any:
    """The entry of a type, or of the longest type whose name it begins with: of the whole for one of its towers."""
    fitting = [name for name in names if model_type == name or model_type.startswith((f"{name}_", f"{name}-"))]
    return names[max(fitting, key=len)] if fitting else None


def missing_package(model_type: str, modality: str) -> str | None:
    """Why the type's own processor cannot be made, if that is a package."""
    names = {"image": IMAGE_PROCESSOR_MAPPING_NAMES, "audio": FEATURE_EXTRACTOR_MAPPING_NAMES}.get(modality, {})
    own = _own(model_type, names)
    class_name = own.get("pil", own.get("torchvision")) if isinstance(own, dict) else own
    try:
        getattr(transformers, class_name)() if class_name else None
    except ImportError as error:
        return " ".join(str(error).split())
    except (AttributeError, TypeError, ValueError):
        return None
    return None


def _image_processors(model_type: str, config: PreTrainedConfig) -> Iterator[Any]:
    side = _found(config, ("image_size", "img_size", "input_size", "resolution"), 32)
    side = side[0] if isinstance(side, list | tuple) else side
    own = _own(model_type, IMAGE_PROCESSOR_MAPPING_NAMES)
    name = own.get("pil") if isinstance(own, dict) else own
    for class_name in dict.fromkeys((name, "ViTImageProcessorPil", "Qwen2VLImageProcessorPil")):  # the last: patches
        with contextlib.suppress(ImportError, AttributeError, TypeError):  # it may need a package, or there is none
            yield _sized(getattr(transformers, class_name or ""), side, config)


def _sized(processor_class: Any, side: int, config: PreTrainedConfig) -> Any:
    processor = processor_class()
    size = dict(getattr(processor, "size", None) or {})
    for name in size:
        size[name] = side if name in ("height", "width", "shortest_edge") else size[name]
    settings: dict[str, Any] = {}
    if "longest_edge" in size and not {"shortest_edge"} & set(size):
        size["longest_edge"] = side
    if size and set(size) <= {"height", "width", "shortest_edge", "longest_edge"}:
        settings["size"] = size
    if getattr(processor, "pad_size", None):
        settings["pad_size"] = {"height": side, "width": side}
    if getattr(processor, "crop_size", None):
        settings["crop_size"] = {"height": side, "width": side}
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        nested = {"merge_size": ("spatial_merge_size", "merge_size")}.get(name, (name,))
        found = _found(config, nested, None)
        if getattr(processor, name, None) is not None and found is not None:
            settings[name] = found
    return processor_class(**settings)


def _feature_extractors(model_type: str, config: PreTrainedConfig) -> Iterator[Any]:
    own = _own(model_type, FEATURE_EXTRACTOR_MAPPING_NAMES)
    plain = ("WhisperFeatureExtractor", "SeamlessM4TFeatureExtractor", "Wav2Vec2FeatureExtractor")
    for class_name in dict.fromkeys((own, *plain)):
        with contextlib.suppress(ImportError, AttributeError, TypeError):
            extractor_class = getattr(transformers, class_name or "")
            yield extractor_class(**_audio_settings(extractor_class, config))


def _audio_settings(extractor_class: Any, config: PreTrainedConfig) -> dict[str, Any]:
    takes = inspect.signature(extractor_class.__init__).parameters
    bins = _found(config, ("num_mel_bins", "n_mels", "input_feat_per_channel"), None)
    wanted = {"sampling_rate": RATE, "num_mel_bins": bins, "max_length": _found(config, ("max_length",), None)}
    if extractor_class.__name__ != "Wav2Vec2FeatureExtractor":
        wanted["feature_size"] = bins
    positions = _found(config, ("max_source_positions",), 100)
    wanted["chunk_length"] = positions * 2 * 160 // RATE
    if extractor_class.__name__ == "Wav2Vec2FeatureExtractor":  # as the uploads of group-norm models have it
        wanted["return_attention_mask"] = _found(config, ("feat_extract_norm",), "layer") == "layer"
    return {name: value for name, value in wanted.items() if name in takes and value is not None}


def _found(config: PreTrainedConfig, names: tuple[str, ...], default: Any) -> Any:
    """The first of `names` that a configuration, or else one nested in it, has."""
    nested = [value for value in config.__dict__.values() if isinstance(value, PreTrainedConfig)]
    for place in (config, *nested):
        for name in names:
            if isinstance(getattr(place, name, None), int | list | tuple | str):
                return getattr(place, name)
    return default
