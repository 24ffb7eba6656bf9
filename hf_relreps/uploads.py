"""One upload, several doors: how a relative model lies in a folder, and how each part is found and checked in it.

::

    config.json                     of the whole: its encoder's and its decoder's
    model.safetensors.index.json    which part's file holds which weight
    encoder/                        config.json, model.safetensors: AutoModel and RelativeModel read only this
    decoder/                        config.json, model.safetensors: RelativeDecoder reads only this
    anchors/                        anchors.parquet, anchor_set.json
    tokenizer.json, ...             the processor's files
    modeling_hf_relreps.py          for those who load with trust_remote_code: imports this library
    README.md                       the card; written when it is pushed

An upload of one part has the same layout without the other. Nothing is stored twice, and a frozen base not at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoProcessor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.import_utils import is_sentencepiece_available, is_tiktoken_available

from hf_relreps.anchor_files import FOLDER as ANCHORS_FOLDER
from hf_relreps.anchors import AnchorSet
from hf_relreps.configuration import (
    AnyRelativeConfig,
    RelativeDecoderConfig,
    is_ours,
    refuse_other_format,
)
from hf_relreps.errors import AnchorIntegrityError, ConfigurationError, UploadError, UploadIntegrityError
from hf_relreps.image_processors import with_backend
from hf_relreps.inspection import TOKENIZER_FILES, refuse_immense, refuse_unknown_processor
from hf_relreps.model_card import PICTURE_FILE
from hf_relreps.quantization import plain_tensors
from hf_relreps.samples import is_failure
from hf_relreps.sentencepiece_files import (
    TEKKEN_FILE,
    VOCABULARY_FILES,
    refuse_unknown_tekken,
    refuse_unknown_vocabulary,
)
from hf_relreps.sources import Source
from hf_relreps.space import RelativeSpace
from hf_relreps.tokenizer_files import refuse_unknown_tokenizer


PARTS = {"encoder": "RelativeModel", "decoder": "RelativeDecoder"}
# What a push may remove from a repository: our files, and a whole ordinary model that would be loaded in their place.
OWN_FILES = (
    *(f"{part}/{name}" for part in PARTS for name in ("config.json", "model*.safetensors", SAFE_WEIGHTS_INDEX_NAME)),
    *("model*.safetensors", SAFE_WEIGHTS_INDEX_NAME, f"{ANCHORS_FOLDER}/anchor*", PICTURE_FILE),
)
PUSH_ARGUMENTS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
# Keywords of transformers' `save_pretrained` -> the values that this layout can hold. What is not here is refused.
SAVE_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "safe_serialization": (True, None),
    "save_peft_format": (True, False, None),  # adapters lie in the encoder's weights, by their own names
    "save_original_format": (True, False, None),
    "variant": (None,),
    "distributed_checkpoint": (False, None),
}
CHECKPOINT = re.compile("checkpoint-[0-9]+")  # what the Trainer calls its folders
TRAINER_STATE_FILE = "trainer_state.json"
TOKENIZER_FILE = "tokenizer.json"
# The JSON files of a processor that transformers reads.
PROCESSOR_FILES = (
    *("config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "audio_tokenizer_config.json"),
    TOKENIZER_FILE,
)
PACKED = 8  # numbers of a quantized weight that share one of the file's, at most
ADAPTER_FILE = "adapter_config.json"  # of peft
EXTRA_STATE = "_extra_state"  # what torch calls what a module says beside its tensors
STUB_FILE = "modeling_hf_relreps.py"
STUB = """# Lets `trust_remote_code=True` find the library that this model was made with: pip install hf_relreps
from hf_relreps import {names}
"""
CONFIGS = ("RelativeConfig", "RelativeEncoderConfig", "RelativeDecoderConfig")
AUTO_CLASSES = {
    "AutoModel": "RelativeModel",
    "AutoModelForSequenceClassification": "RelativeModelForSequenceClassification",
    "AutoModelForTokenClassification": "RelativeModelForTokenClassification",
    "AutoModelForImageClassification": "RelativeModelForImageClassification",
    "AutoModelForAudioClassification": "RelativeModelForAudioClassification",
}


# -- Reading


def locate(name: Any, part: str | None, subfolder: str, arguments: Mapping[str, Any]) -> Source:
    """The upload's own folder in a repository or on this machine, at the commit that its revision names now.

    Args:
        name: Folder or repository id.
        part: ``encoder`` or ``decoder``, whose folder may be the subfolder; ``None`` for a whole model.
        subfolder: Folder inside it.
        arguments: Those of `from_pretrained`.
    """
    folder = subfolder.strip("/")
    if part is not None and folder.split("/")[-1] == part:
        folder = folder.removesuffix(part).rstrip("/")
    return Source.of(name, **arguments).pinned().below(folder)


def fetch_part(source: Source, part: str) -> tuple[dict[str, Any], list[Path]]:
    """Bring all that a part's load will read into the cache, checked: the content of its configuration, its weights.

    Raises:
        UploadError: If it is no upload of ours, lacks the part, or is of another format.
        UploadIntegrityError: If a file is not the one that its repository names.
    """
    place = source.below(part)
    content = place.json("config.json")
    if content is None or not is_ours(content):
        raise explain(source, part, None)
    refuse_other_format(content.get("format_version", 1), str(source))
    if place.file(ADAPTER_FILE) is not None:
        raise UploadError(
            f"{place} contains {ADAPTER_FILE}, which makes transformers load another model instead. This library "
            "stores adapters with the encoder's weights: remove the file, or do not use the upload."
        )
    return content, weight_files(place)


def explain(source: Source, part: str | None, error: Exception | None) -> Exception:
    """What is wrong with an upload that did not load, in words that say what to do."""
    config = source.json("config.json") or source.below("decoder").json("config.json")
    if config is None:
        return UploadError(
            f"{source} has no config.json: it is empty, or not a model. Push one: model.push_to_hub(name)."
        )
    if not is_ours(config):
        return UploadError(
            f"{source} is an ordinary {config.get('model_type')} model, not a relative one. Make it "
            f"relative: RelativeModel.from_encoder({source.name!r}, anchors.view(name)), or "
            f"stitch({source.name!r}, decoder)."
        )
    refuse_other_format(config.get("format_version", 1), str(source))
    if part and source.file(f"{part}/config.json") is None:
        there = next(name for name in PARTS if name != part)
        return UploadError(
            f"{source} has no {part}, only its {there}. Take the {part} from another upload that shares its anchors: "
            "stitch(encoder, decoder) takes both names."
        )
    if isinstance(error, SafetensorError) or (isinstance(error, RuntimeError) and "mismatch" in str(error)):
        return UploadIntegrityError(
            f"The weights of {source} do not match its configuration: {error}. A file is truncated or of another "
            "version: pull it again, or save the model again."
        )
    if isinstance(error, OSError | ValueError):
        return error
    reason = f": {type(error).__name__}: {error}" if error else ""
    return UploadError(f"{source} cannot be read as a relative model{reason}. Pull it again, or ask its author.")


def weight_files(place: Source) -> list[Path]:
    """The files that hold the weights of a whole or a part, fetched and checked, all of them inside the upload.

    Raises:
        UploadError: If there is none, one is missing, or the index names one elsewhere.
    """
    single = place.file(SAFE_WEIGHTS_NAME)
    if single is not None:
        refuse_no_weights(single, place, SAFE_WEIGHTS_NAME)
        return [single]
    weight_map = (place.json(SAFE_WEIGHTS_INDEX_NAME) or {}).get("weight_map")
    below = f"{place.folder}/" if place.folder else ""
    if not isinstance(weight_map, dict) or not weight_map:
        raise UploadError(
            f"{place} has no weights: expected {below}{SAFE_WEIGHTS_NAME}, or {below}{SAFE_WEIGHTS_INDEX_NAME} that "
            "names files. Save it with model.save_pretrained(folder), or push it: model.push_to_hub(name)."
        )
    found = []
    for name in sorted(set(map(str, weight_map.values()))):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or path.suffix != ".safetensors":
            raise UploadError(
                f"The index of {place} names {name!r}, expected a .safetensors file inside the upload. Do not use it."
            )
        file = place.file(name)
        if file is None:
            raise UploadError(f"{place} lacks {below}{name}, which its index names. Push or pull it again, whole.")
        refuse_no_weights(file, place, name)
        found.append(file)
    return found


def refuse_no_weights(file: Path, place: Source, name: str) -> None:
    """Raise `UploadIntegrityError` unless a file is one of safetensors, before any loader gets it."""
    try:
        with safe_open(file, framework="pt"):
            return
    except (SafetensorError, OSError, ValueError) as error:
        raise UploadIntegrityError(
            f"The weights of {place} do not match its configuration: {name} cannot be read as safetensors ({error}). "
            "It is truncated, or a renamed pickle file: pull it again, or do not use it."
        ) from error


@dataclass(frozen=True)
class Stored:
    """What files of weights hold."""

    numbers: int = 0
    tensors: int = 0
    largest: int = 1  # side of a tensor

    def __add__(self, other: Stored) -> Stored:
        """What the files of both hold."""
        return Stored(self.numbers + other.numbers, self.tensors + other.tensors, max(self.largest, other.largest))


def stored_sizes(files: Iterable[Path]) -> Stored:
    """What files of weights hold, by their headers alone."""
    numbers, tensors, largest = 0, 0, 1
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dict
                view = weights.get_slice(name)
                shape = view.get_shape()
                packed = PACKED if view.get_dtype() in ("U8", "I8", "I32") else 1
                numbers += math.prod(shape) * packed
                if math.prod(shape):  # one without numbers costs nothing, however large its sides are
                    tensors += 1
                    largest = max(largest, *shape, 1)
    return Stored(numbers, tensors, largest)


def stored_weights(place: Source) -> dict[str, Tensor]:
    """The weights of a whole or a part by name."""
    return {name: tensor for file in weight_files(place) for name, tensor in load_file(file).items()}


def load_processor(source: Source, image_backend: str | None = None) -> Any:
    """The tokenizer, image processor or feature extractor that lies in an upload or an ordinary model.

    Args:
        source: Where it lies.
        image_backend: What prepares images, where transformers has the choice; its own preference if left out.

    Raises:
        UploadError: If there is none.
    """
    source = pinned_if_it_can_be(source)
    inspect_processor(source)
    try:
        processor = AutoProcessor.from_pretrained(
            source.name, trust_remote_code=False, **source.arguments, **source.subfolder_argument
        )
    except BaseException as error:  # tokenizers raises bare ones, and panics are no Exception
        if not is_failure(error):
            raise
        raise UploadError(
            f"{source} has no processor (tokenizer or image processor) that transformers can load. Pass one when you "
            f"use the model, or save it there: processor.save_pretrained(folder). {error}"
        ) from error
    _inspect_made_tokenizer(processor, source)
    return processor if image_backend is None else with_backend(processor, source, image_backend)


def pinned_if_it_can_be(source: Source) -> Source:
    """At one commit, so that what is looked at is what is read."""
    try:
        return source.pinned()
    except UploadError:
        return source  # a later error says what is the matter


def inspect_processor(source: Source) -> None:
    """Before transformers looks into any of its files: see `hf_relreps.inspection`."""
    contents = {name: content for name in PROCESSOR_FILES if (content := json_if_there(source, name)) is not None}
    refuse_immense(contents.get("config.json"))
    refuse_unknown_processor(
        {name: content for name, content in contents.items() if name != TOKENIZER_FILE}, str(source)
    )
    beside = [content for name, content in contents.items() if name in TOKENIZER_FILES]
    if TOKENIZER_FILE in contents:
        refuse_unknown_tokenizer(contents[TOKENIZER_FILE], f"{TOKENIZER_FILE} of {source}", beside)
    else:
        refuse_unknown_tekken(json_if_there(source, TEKKEN_FILE), f"{TEKKEN_FILE} of {source}")
    _inspect_vocabularies(source)


def _inspect_vocabularies(source: Source) -> None:
    """Files that transformers converts where there is no ``tokenizer.json``; slow tokenizers read them beside one."""
    if not is_sentencepiece_available() and not is_tiktoken_available():
        return  # then nothing can read them
    for name in VOCABULARY_FILES:
        file = file_if_there(source, name)
        if file is not None:
            refuse_unknown_vocabulary(file.read_bytes(), f"{name} of {source}")


def file_if_there(source: Source, name: str) -> Path | None:
    """One file; ``None`` too if it is not to be had, so that transformers does not get it either."""
    try:
        return source.file(name)
    except UploadError:
        return None


def json_if_there(source: Source, name: str) -> dict[str, Any] | None:
    """The content of one JSON file, if it can be had.

    Raises:
        UploadError: If it is no JSON object.
    """
    return None if file_if_there(source, name) is None else source.json(name)


def _inspect_made_tokenizer(processor: Any, source: Source) -> None:
    """One that transformers made of other files (SentencePiece, words) is looked at before it reads a text."""
    backend = getattr(getattr(processor, "tokenizer", processor), "backend_tokenizer", None)
    if backend is not None and source.file(TOKENIZER_FILE) is None:
        refuse_unknown_tokenizer(json.loads(backend.to_str()), f"The tokenizer of {source}")


def load_anchors(source: Source, space: RelativeSpace, view: str | None, digest: str | None) -> AnchorSet:
    """The raw anchors of an upload.

    Raises:
        AnchorIntegrityError: If they are not those that its configuration names.
        UploadError: If it holds none.
    """
    return refuse_other_anchors(AnchorSet.load(source), str(source), space, view, digest)


def refuse_other_anchors(
    anchors: AnchorSet, source: str, space: RelativeSpace, view: str | None, digest: str | None
) -> AnchorSet:
    """The same anchors; raises `AnchorIntegrityError` unless they are those that a configuration names."""
    if anchors.fingerprint != space.fingerprint:
        raise AnchorIntegrityError(
            f"The anchors of {source} have fingerprint {anchors.fingerprint}, but its configuration says "
            f"{space.fingerprint}: the folder is outdated or has been changed. Pull it again, or save the model again."
        )
    if view in anchors.views and digest not in (None, anchors.view(view).digest):
        raise AnchorIntegrityError(
            f"View {view!r} of {source} has digest {anchors.view(view).digest}, but its configuration says {digest}: "
            "the encoder was built on other samples. Pull it again, or save the model again."
        )
    return anchors


def refuse_not_finite(model: nn.Module, name: str) -> None:
    """Raise `UploadIntegrityError` if a weight is infinite or not a number: every output would be."""
    ours = ("anchors_AD", "points_RE", "shift_E")
    bounds = {name for name, _ in model.named_buffers() if not name.endswith(ours)}  # Gemma 4 clips at none
    weights = model.state_dict()
    for key, tensor in ((key, part) for key, weight in weights.items() for part in plain_tensors(weight)):
        if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
            continue
        tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch finds no bounds of float8
        if not all(not bound.isnan() if key in bounds else bound.isfinite() for bound in torch.aminmax(tensor)):
            raise UploadIntegrityError(
                f"{name} contains infinite or NaN weights; the first is in {key}. Its training diverged, or the file "
                "was damaged before the push: use an earlier revision."
            )


def refuse_missing(missing_keys: Iterable[str], part: str, name: str) -> None:
    """Raise `UploadError` if weights are missing from an upload: they would be random."""
    missing = sorted(key for key in missing_keys if not key.endswith(EXTRA_STATE))
    if missing:
        raise UploadError(
            f"{name} lacks {len(missing)} weights, the first is {missing[0]}: it has no complete {part}, and the "
            "missing weights would be random. For a whole model, combine parts: stitch(encoder, decoder); for a new "
            "decoder, fine-tune: RelativeModelForSequenceClassification.from_encoder(encoder, ...)."
        )


# -- Writing


def split_save_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of a save for the push that follows it, and those for transformers' own save.

    Raises:
        ConfigurationError: If a keyword would change what files are called or hold, so that nothing could load them.
    """
    push = {name: value for name, value in arguments.items() if name in (*PUSH_ARGUMENTS, "repo_id")}
    rest = {name: value for name, value in arguments.items() if name not in push}
    for name, value in rest.items():
        if name == "max_shard_size":
            continue
        if name not in SAVE_ARGUMENTS:
            known = ", ".join(sorted({*SAVE_ARGUMENTS, *PUSH_ARGUMENTS, "max_shard_size", "push_to_hub"}))
            raise ConfigurationError(
                f"save_pretrained got {name}={value!r:.60}, which is not an argument; it takes {known}."
            )
        if value not in SAVE_ARGUMENTS[name]:
            raise ConfigurationError(
                f"save_pretrained got {name}={value!r:.60}: the parts of such an upload could not be loaded on their "
                "own. Nothing was written. Leave it out."
            )
    return push, {name: rest[name] for name in ("max_shard_size", "save_original_format") if name in rest}


def obsolete_files(root: Path, parts: Iterable[str]) -> list[str]:
    """Patterns of what an earlier save in a folder leaves, and what a new one takes back.

    Of a checkpoint also the Trainer's state: it belongs to other weights, and nothing resumes without it.
    """
    weights = [f"{part}/{name}" for part in parts for name in ("model*.safetensors", SAFE_WEIGHTS_INDEX_NAME)]
    return [*weights, *([TRAINER_STATE_FILE] if CHECKPOINT.fullmatch(root.name) else [])]


def write_config(config: AnyRelativeConfig, folder: Path) -> None:
    """Write a configuration with the map that leads `trust_remote_code` to the stub."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    file = folder / "config.json"
    classes = {"AutoConfig": type(config).__name__, **AUTO_CLASSES}
    if isinstance(config, RelativeDecoderConfig):
        classes |= {"AutoModel": PARTS["decoder"]}
    auto_map = {auto: f"{STUB_FILE.removesuffix('.py')}.{name}" for auto, name in classes.items()}
    content = json.loads(file.read_text("utf-8")) | {"auto_map": auto_map}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def write_stub(root: Path) -> None:
    """Write the module by which ``trust_remote_code=True`` finds this library."""
    (root / STUB_FILE).write_text(
        STUB.format(names=", ".join([*CONFIGS, PARTS["decoder"], *AUTO_CLASSES.values()])), "utf-8"
    )


def write_index(root: Path, parts: Iterable[str]) -> None:
    """The index at the root points into the parts' folders, so that a whole model loads from them."""
    weight_map: dict[str, str] = {}
    total_size = 0
    for part in parts:
        part_index = root / part / SAFE_WEIGHTS_INDEX_NAME
        files = [SAFE_WEIGHTS_NAME]
        if (root / part / SAFE_WEIGHTS_NAME).is_file():
            part_index.unlink(missing_ok=True)  # of an earlier save in several files
        else:
            files = sorted(set(json.loads(part_index.read_text("utf-8"))["weight_map"].values()))
        for file in files:
            total_size += (root / part / file).stat().st_size
            with safe_open(root / part / file, framework="pt") as weights:
                weight_map |= {key: f"{part}/{file}" for key in weights.keys()}  # noqa: SIM118  not a dict
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (root / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
