"""Any `AutoModel` as an encoder: load it, find the part that reads a modality, pool its output, build it again.

A frozen encoder refers to its base model, so that an upload holds only what was trained. An encoder is frozen if none
of its base's weights takes a gradient. Adapters (LoRA, ...) that were trained inside it are its own: they are stored,
the base is not.

Shapes: B batch, D absolute size.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, TRANSFORMERS_DYNAMIC_MODULE_NAME

from hf_relreps.anchors import AnchorView
from hf_relreps.configuration import (
    BELOW_HEADS,
    ENCODER_SETTINGS,
    OF_TOKENS,
    TOWERS,
    AnyRelativeConfig,
    RelativeConfig,
    RelativeDecoderConfig,
    RelativeEncoderConfig,
    is_ours,
)
from hf_relreps.errors import ConfigurationError, MissingExtraError, RelrepsError, SampleError, UploadError
from hf_relreps.idle_layers import ADAPTED, fewer_layers, lowest, shortened
from hf_relreps.image_processors import savable
from hf_relreps.inspection import known_adapter, refuse_long_tables, refuse_unknown_model
from hf_relreps.placement import device_of, refuse_empty, share_weights
from hf_relreps.pooling import (
    Interface,
    default_layer,
    default_pooling,
    pool,
    reads,
    vectors_of_tokens,
    vectors_of_words,
)
from hf_relreps.prompts import find_prompt, prompt_of
from hf_relreps.quantization import plain_tensors, quantizing, refuse_float8
from hf_relreps.samples import SPANS, batches, length, longer, to_device
from hf_relreps.sources import Source
from hf_relreps.space import RelativeSpace, refuse_unknown_settings
from hf_relreps.uploads import (
    ADAPTER_FILE,
    Stored,
    file_if_there,
    json_if_there,
    load_processor,
    pinned_if_it_can_be,
    stored_sizes,
    weight_files,
)


logger = logging.getLogger(__name__)

# Settings that follow from the encoder and its anchors.
MEASURED_FIELDS = (
    *("encoder_config", "base_model_name_or_path", "base_model_revision", "base_model_digest", "encoder_is_frozen"),
    *("encoder_adapters", "encoder_quantization", "embedding_size", "prompt_ids", "pad_token_id", "pair_mark"),
    *("padding", "modality", "space", "num_anchors", "fingerprint", "anchor_view", "anchor_digest"),
)
# Keywords of `from_encoder` that say how an encoder is loaded by its name; all others are settings.
LOADER_ARGUMENTS = frozenset(
    (
        *("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder", "dtype", "device_map"),
        *("max_memory", "offload_folder", "offload_buffers", "attn_implementation", "quantization_config"),
        *("trust_remote_code", "use_safetensors", "variant"),
    )
)
# Of a wrapped model's configuration: where it comes from, how it runs, and what only a model with a head reads.
RUNNING_FIELDS = (
    *("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "id2label", "label2id"),
    *("problem_type", "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"),
)
# What types raise whose configuration or layers do not come in any number.
UNBUILT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, StrictDataclassError)
# Fields that follow from others, and that a model changes as it is built (LeViT).
CHANGED_FIELDS = ("down_ops",)
# Settings of an adapter that would import code, load other files or change the base.
ADAPTER_SWITCHES = (
    *("auto_mapping", "base_model_name_or_path", "revision", "megatron_config", "megatron_core", "runtime_config"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "arrow_config"),
)
# What a model may be built of: so many times the numbers that its files hold (an encoder-decoder has three tables of
# tokens until they are tied, and of its two halves one may be stored), and more for computed buffers.
TIMES_STORED, BEYOND_FILES = 4, 1 << 24
# No type of transformers has more than 2.5 modules for each stored tensor, and adapters have 6. A whole model that is
# built for one part of it, which alone is stored, has more beside.
TIMES_TENSORS, BEYOND_TENSORS, BESIDE_A_PART, MOST_MODULES = 8, 2_000, 10_000, 200_000
MODES = threading.Lock()
_evaluated: dict[nn.Module, tuple[bool, int]] = {}  # the mode that a module had, and how many evaluate it now


def in_forked_children(function: Callable[[], None]) -> Callable[[], None]:
    """Have a child that is forked call a function first: no other thread of its parent is there with it."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=function)
    return function


class BuildLock:
    """A lock that is held while a model is built or loaded.

    Meanwhile transformers changes functions of torch and of its own for the whole process, and two threads that do so
    at once leave them changed. So a child that is forked at that moment cannot build models any more: nobody there
    lets the lock go, and nobody puts the functions back. It is told so in place of waiting.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_lost = False
        in_forked_children(self._look)

    def _look(self) -> None:
        if self._lock.acquire(blocking=False):  # free, or held by the thread that forked
            self._lock.release()
        else:
            self._is_lost = True

    def __enter__(self) -> None:
        if self._is_lost:
            raise RelrepsError(
                "This process was forked while another thread loaded a model, which leaves torch half changed; "
                "expected a fork at another time. Fork before threads load models, or start processes with spawn: "
                "multiprocessing.get_context('spawn')."
            )
        self._lock.acquire()

    def __exit__(self, *of_error: object) -> None:
        self._lock.release()


BUILDING = BuildLock()


class Budget:
    """What a model may be built of by the thread that made this, where files hold so much."""

    def __init__(self, stored: Stored) -> None:
        self.stored, self.allowed = stored, TIMES_STORED * stored.numbers + BEYOND_FILES
        self.allowed_modules = min(MOST_MODULES, TIMES_TENSORS * stored.tensors + BEYOND_TENSORS)
        self.modules, self.numbers = 0, 0
        self.is_whole = True  # of a model that is built for one part of it, what lies on the meta device is free
        self._thread = threading.get_ident()

    def count_module(self, *_: Any) -> None:
        """A module was put into its place."""
        if self.is_own:
            self.modules += 1
            self._refuse_above(self.allowed_modules, self.modules, "modules")

    def count_numbers(self, module: nn.Module, name: str, tensor: Any) -> None:
        """A weight or a buffer was put into its place."""
        if isinstance(tensor, Tensor) and self.is_own:
            before = module._parameters.get(name) if name in module._parameters else module._buffers.get(name)
            self.numbers += self._counted(tensor) - (0 if before is None else self._counted(before))
            self._refuse_above(self.allowed, self.numbers, "numbers")

    def _counted(self, tensor: Tensor) -> int:
        return tensor.numel() if self.is_whole or not tensor.is_meta else 0

    @property
    def is_own(self) -> bool:
        """Whether this thread made it."""
        return threading.get_ident() == self._thread

    @contextmanager
    def for_a_part(self) -> Iterator[Callable[[nn.Module], None]]:
        """Inside, a whole model is built on the meta device; afterwards the part that is kept is counted."""
        self.is_whole = False
        self.allowed_modules += BESIDE_A_PART
        try:
            yield self._count_part
        finally:
            self.is_whole = True

    def _count_part(self, part: nn.Module) -> None:
        self.numbers += sum(tensor.numel() for tensor in (*part.parameters(), *part.buffers()) if tensor.is_meta)
        self._refuse_above(self.allowed, self.numbers, "numbers")

    def _refuse_above(self, most: int, found: int, what: str) -> None:
        if found > most:
            raise ConfigurationError(
                f"The configuration asks for more than {most} {what}, but its weight files contain "
                f"{self.stored.numbers} numbers in {self.stored.tensors} tensors. Do not use this upload."
            )


_budgets: list[Budget] = []  # of the thread that holds BUILDING, the innermost last


@contextmanager
def building(stored: Stored) -> Iterator[None]:
    """Hold `BUILDING`, and refuse a model that is built of more than files that hold so much justify.

    Each module, weight and buffer is counted when it is put into its place: whatever field asked for it. A weight that
    several modules share is stored once, and counts for each of them until they are tied.

    Raises:
        ConfigurationError: If a configuration asks for more.
    """
    hooks, budget = torch.nn.modules.module, Budget(stored)
    with BUILDING, ExitStack() as counting:
        for register, hook in (
            (hooks.register_module_module_registration_hook, budget.count_module),
            (hooks.register_module_parameter_registration_hook, budget.count_numbers),
            (hooks.register_module_buffer_registration_hook, budget.count_numbers),
        ):
            counting.callback(register(hook).remove)
        _budgets.append(budget)
        counting.callback(_budgets.pop)
        yield


@in_forked_children
def _forget_threads() -> None:
    """Let go of a lock that another thread held, and restore the modes that it would have restored."""
    global MODES
    MODES = threading.Lock()
    for module, (was_training, _) in _evaluated.items():
        module.training = was_training
    _evaluated.clear()


# -- Running an encoder


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode after: dropout would blur the anchors.

    Threads may be inside at once: the last to leave gives a module its mode back.
    """
    modules = list(model.modules())
    with MODES:
        for module in modules:
            was_training, count = _evaluated.get(module, (module.training, 0))
            _evaluated[module] = (was_training, count + 1)
    try:
        model.eval()  # not under the lock: it may encode anchors, for which others wait
        yield
    finally:
        with MODES:
            for module in modules:
                was_training, count = _evaluated.pop(module, (False, 1))  # not there in a child that was forked inside
                if count > 1:
                    _evaluated[module] = (was_training, count - 1)
                elif was_training:
                    module.training = True


def building_of(config: Any, files: Iterable[Path], where: str) -> AbstractContextManager[None]:
    """`building` by what files of weights hold, where they justify the tables that the configuration asks for.

    Raises:
        ConfigurationError: If they do not.
    """
    stored = stored_sizes(files)
    refuse_long_tables(config, stored.numbers, where)
    return building(stored)


class Freshness:
    """Whether an encoder's stored anchors are still what its weights make of them.

    Encoders that share their weights share the count of training passes, so that each of them learns of all. Changes
    without a pass (`load_state_dict`, a hand's edit) show in the versions that torch counts for each weight; fused
    optimizers do not count, but they come with passes. Gradients in evaluation mode are either looked at or trained
    with: there sums of the weights tell.
    """

    def __init__(self) -> None:
        self.passes = [0]  # of training, through these weights
        self.gradients = [0]  # that came back in evaluation mode
        self._seen = self._seen_gradients = 0
        self._weights: list[Tensor] = []
        self._version = 0
        self._sums: list[float] | None = None  # of the weights, when gradients first came back

    def note_training(self) -> None:
        """A training pass went through the weights: they are about to change."""
        self.passes[0] += 1

    def note_gradients(self) -> None:
        """Gradients came back in evaluation mode: the weights may be about to change."""
        if self._sums is None and not self.is_stale:
            self._sums = self._sum()
        self.gradients[0] += 1

    def note_exact(self, backbone: nn.Module) -> None:
        """The stored anchors are those of the weights as they are now."""
        self._seen, self._weights = self.passes[0], [*backbone.parameters()]
        self._version = self._count()
        self._seen_gradients, self._sums = self.gradients[0], None

    @property
    def is_stale(self) -> bool:
        """Whether the weights have changed since."""
        if self.passes[0] != self._seen or self._count() != self._version:
            return True
        if self.gradients[0] == self._seen_gradients:
            return False
        if self._sums is None or self._sum() != self._sums:  # None: they came back to one that shares the weights
            return True
        if all(weight.grad is None for weight in self._weights):  # there is nothing left to train with
            self._seen_gradients, self._sums = self.gradients[0], None
        return False

    def _count(self) -> int:
        return sum(0 if weight.is_inference() else weight._version for weight in self._weights)

    def _sum(self) -> list[float]:
        """Of the weights, or of the shards of them that lie here."""
        trained = (weight.detach() for weight in self._weights if weight.requires_grad and not weight.is_meta)
        held = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained)
        return [float(weight.sum(dtype=torch.float64)) for weight in held]

    def share(self) -> Freshness:
        """For another encoder with the same weights."""
        shared = Freshness()
        shared.passes, shared._seen = self.passes, self._seen
        shared.gradients, shared._seen_gradients = self.gradients, self._seen_gradients
        shared._weights, shared._version = list(self._weights), self._version
        shared._sums = self._sums
        return shared

    def __deepcopy__(self, memo: Any) -> Freshness:
        """For other weights with the same values: torch counts their versions anew."""
        copied = Freshness()
        copied.passes[0] = int(self.is_stale)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return vars(copy.deepcopy(self))


def embed(interface: Interface, inputs: dict[str, Any], config: RelativeEncoderConfig) -> tuple[Any, Tensor]:
    """Output of the wrapped model, and its pooled absolute embeddings (B, D).

    An encoder of words gives those of all tokens (B, T, D), or of the n words that `SPANS` asks for (n, D).
    """
    nodes, spans_n3 = inputs.pop("nodes", None), inputs.pop(SPANS, None)
    output = interface.model(**interface.readable(inputs) | interface.asks(config.layer), return_dict=True)
    at_layer = interface.at_layer(output, config.layer)
    if config.modality == "node":
        x_ND = at_layer.last_hidden_state
        return output, x_ND if nodes is None else x_ND[nodes]
    read, mask_BT = interface.unpack(at_layer, inputs)
    output = read if at_layer is output else interface.unpack(output, inputs)[0]
    pooling = config.pooling or default_pooling(interface.model, config.modality, read)
    if config.modality == "word":
        x_BTD = vectors_of_tokens(read, mask_BT)
        return output, x_BTD if spans_n3 is None else vectors_of_words(x_BTD, spans_n3, pooling)
    return output, pool(read, mask_BT, pooling)


def refuse_unknown_tokens(backbone: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise `SampleError` if a tokenizer gives tokens that the encoder has no embedding for."""
    ids = inputs.get("input_ids")
    table = _token_embeddings(backbone)
    if isinstance(ids, Tensor) and table is not None and ids.numel() and int(ids.max()) >= table.num_embeddings:
        raise SampleError(
            f"The tokenizer returned token id {int(ids.max())}, but the encoder has embeddings for "
            f"{table.num_embeddings} tokens. Use the encoder's own tokenizer; for added tokens call "
            "model.resize_token_embeddings(len(tokenizer))."
        )


def _token_embeddings(backbone: nn.Module) -> nn.Embedding | None:
    try:
        table = backbone.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # models that read characters, images, sounds
        return None
    return table if isinstance(table, nn.Embedding) else None


# -- Building and loading one


def build_backbone(config: RelativeEncoderConfig) -> PreTrainedModel:
    """The wrapped model with random weights, to be filled by a load."""
    how: dict[str, Any] = {"trust_remote_code": False} | _pooler_argument(config)
    if config.tower is None or not _budgets or not _budgets[-1].is_own:
        backbone = tower_of(AutoModel.from_config(config.encoder_config, **how), config.tower)
    else:
        with _budgets[-1].for_a_part() as count:
            backbone = tower_of(AutoModel.from_config(config.encoder_config, **how), config.tower)
            count(backbone)
    backbone = without_idle_pooler(backbone, config)
    if config.encoder_adapters:
        add_adapters(backbone, config.encoder_adapters)
    return backbone


def describe_architecture(config: Any) -> dict[str, Any]:
    """The fields of a wrapped model's configuration on which its embeddings depend; dropout is for training only."""
    fields = config if isinstance(config, Mapping) else config.to_dict()
    return {
        name: describe_architecture(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if str(name) not in (*RUNNING_FIELDS, *CHANGED_FIELDS) and "drop" not in str(name)
    }


def fetch_base(config: RelativeEncoderConfig, **hub_arguments: Any) -> tuple[PreTrainedModel, str]:
    """The base that a frozen encoder refers to, as it is stored there, and its commit.

    Raises:
        UploadError: If it is not on the Hub, not at that commit, or closed to this token.
    """
    name = config.base_model_name_or_path or ""
    if not _is_repo_id(name):
        raise UploadError(f"{name!r} is not a valid repository name.")
    source = Source.of(name, **hub_arguments | {"revision": config.base_model_revision}).pinned()
    encoder_config: Any = copy.deepcopy(config.encoder_config)
    encoder_config.dtype = None  # as stored, so that its digest does not depend on how it will be used
    refuse_adapter(source, "the encoder itself")
    how: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, **_pooler_argument(config)}
    where = f"The encoder that refers to {source}"
    built = building_of(encoder_config.to_dict(), weight_files(source), where)
    with built, _without_load_report() as held_back:
        try:
            base = AutoModel.from_pretrained(source.name, config=encoder_config, **how, **source.arguments)
        except RuntimeError as error:  # weights of other shapes
            raise UploadError(
                f"The weights of {source} do not fit the configuration of the encoder that refers to it: {error} "
                f"{' '.join(held_back)} Ask the author of the encoder to store it in the upload."
            ) from error
    return without_idle_pooler(tower_of(base, config.tower), config), source.commit or ""


@contextmanager
def _without_load_report() -> Iterator[list[str]]:
    """Keep back, and give, what transformers tells of weights without a place: those that matter have a digest."""
    thread = threading.get_ident()
    held_back: list[str] = []

    def is_no_report(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage() and record.thread == thread
        if is_report:
            held_back.append(record.getMessage())
        return not is_report

    modeling = logging.getLogger("transformers.modeling_utils")
    modeling.addFilter(is_no_report)
    try:
        yield held_back
    finally:
        modeling.removeFilter(is_no_report)


def refuse_adapter(source: Source, expected: str) -> None:
    """Raise `UploadError` if files of peft lie beside a model: transformers would load whatever they name."""
    if file_if_there(source, ADAPTER_FILE) is not None:
        raise UploadError(
            f"{source} contains {ADAPTER_FILE}, which makes transformers load another model instead; expected "
            f"{expected}. If you trust it, load it yourself and pass it: AutoModel.from_pretrained({source.name!r})."
        )


def tower_of(model: PreTrainedModel, name: str | None) -> PreTrainedModel:
    """The part of a model that is the encoder: a path of attributes."""
    if name is None:
        return model
    tower = dict(model.named_modules()).get(name)
    if not isinstance(tower, PreTrainedModel):
        raise ConfigurationError(
            f"tower={name!r} is not a submodel of {type(model).__name__}. Leave it out, or name one."
        )
    return tower


def default_tower(model: PreTrainedModel, modality: str) -> str | None:
    """The encoder of an encoder-decoder; of two towers the one that reads the modality; else the whole model."""
    names = TOWERS.get(modality, ())
    names = names if _is_auto_model(model) else (*BELOW_HEADS, *names)
    for name in names:
        part = model._modules.get(name)
        if isinstance(part, PreTrainedModel) and reads(part, modality):
            below = default_tower(part, modality)
            return name if below is None else f"{name}.{below}"
    return None


def without_idle_pooler(backbone: PreTrainedModel, config: RelativeEncoderConfig) -> PreTrainedModel:
    """The same model, sharing its weights, without a pooler that nobody reads.

    Its weights would get no gradient, which distributed training refuses unless it expects that.
    """
    pooler = getattr(backbone, "pooler", None)
    if config.pooling == "pooler" or not isinstance(pooler, nn.Module):
        return backbone
    if not _can_do_without_pooler(type(backbone)):
        pooler.requires_grad_(False)
        return backbone
    lighter = share_weights(backbone)  # the caller's model keeps its pooler
    lighter._modules["pooler"] = None
    return lighter


def _can_do_without_pooler(model_class: Any) -> bool:
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _pooler_argument(config: RelativeEncoderConfig) -> dict[str, bool]:
    """What tells `AutoModel` to build no pooler that nobody would read."""
    model_class = MODEL_MAPPING[type(config.encoder_config)]  # type: ignore[index]
    idle = config.pooling != "pooler" and _can_do_without_pooler(model_class)
    return {"add_pooling_layer": False} if idle else {}


def load_backbone(
    encoder: str | Path | PreTrainedModel, processor: Any, **loader: Any
) -> tuple[PreTrainedModel, Any, Source]:
    """The model, its processor, and where it came from; the name of that is empty where nobody knows.

    Raises:
        ConfigurationError: If it is relative already, came with code of its own, or has no processor.
        UploadError: If it cannot be loaded.
    """
    encoder = without_wrapper(encoder)
    if isinstance(encoder, PreTrainedModel):
        if loader:
            raise ConfigurationError(
                f"{', '.join(sorted(loader))} apply to an encoder that is loaded by name, but a loaded "
                f"{type(encoder).__name__} was given. Pass them when you load it: AutoModel.from_pretrained(name, "
                "...)."
            )
        source = Source.of(encoder.config._name_or_path or "")
        model: Any = encoder if _is_auto_model(encoder) else _below_head(encoder)
    else:
        source = Source.of(encoder, **loader)
        model = _load_by_name(source, loader)
    _refuse_relative(model)
    _refuse_foreign_code(model)
    refuse_empty(model, "the encoder")
    refuse_float8(model.dtype, "The encoder's weights are")
    if processor is None:
        if not source.name:
            raise ConfigurationError(
                "A model without a name needs its processor: from_encoder(model, view, tokenizer)."
            )
        processor = load_processor(source)
        _refuse_wordless(processor, source.name)
    return model, savable(processor), source


def _below_head(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of a model with a head; adapters inside it are known to the whole model only."""
    base: Any = model.base_model
    if getattr(model, ADAPTED, False) and base is not model:
        base.peft_config = model.peft_config
        setattr(base, ADAPTED, True)
    return base


def _load_by_name(source: Source, loader: dict[str, Any]) -> PreTrainedModel:
    if loader.pop("trust_remote_code", False):
        raise ConfigurationError(
            f"trust_remote_code=True would run code from {source.name}, and the upload could not be loaded without "
            "that code. Choose an architecture that transformers supports."
        )
    how = {name: value for name, value in loader.items() if name not in source.arguments}
    refuse_float8(how.get("dtype"), f"{source} was asked for")
    with quantizing(how.get("quantization_config"), str(source)):
        return load_from_safetensors(AutoModel, source, **how)


def load_from_safetensors(auto_class: Any, source: Source, **how: Any) -> Any:
    """What an Auto class loads from there, never from a pickle unless `use_safetensors=False` asks for one.

    Raises:
        ConfigurationError: If its configuration names other things, or asks for more than its weights justify.
        UploadError: If there is a pickle only, or files of peft that name another model.
    """
    how.setdefault("use_safetensors", True)
    source = pinned_if_it_can_be(source)
    try:
        with _building_as_stored(source, how):
            return auto_class.from_pretrained(source.name, trust_remote_code=False, **source.arguments, **how)
    except OSError as error:
        if "safetensors" not in str(error) or isinstance(error, UploadError):
            raise
        raise UploadError(
            f"{source} has no safetensors weights, and pickle files are not opened, since they can run code. Use a "
            "revision with safetensors (on the Hub, a bot often adds them in a pull request: revision='refs/pr/1'), "
            "or, if you trust the author, load the model yourself and pass it: "
            f"{auto_class.__name__}.from_pretrained({source.name!r}, use_safetensors=False). {error}"
        ) from error


def _building_as_stored(source: Source, how: Mapping[str, Any]) -> AbstractContextManager[None]:
    """What transformers is about to read is looked at first: its configuration, and how much its files hold."""
    place = source.below(how.get("subfolder") or "")
    content = json_if_there(place, "config.json")
    if is_ours(content):  # checked as it is read
        return BUILDING
    refuse_adapter(place, "the model itself")
    refuse_unknown_model(content, f"config.json of {place}")
    is_there = any(file_if_there(place, name) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if not is_there or how.get("variant") or not how["use_safetensors"]:
        return BUILDING
    return building_of(content, weight_files(place), f"config.json of {place}")


def _refuse_relative(model: PreTrainedModel) -> None:
    if isinstance(model.config, AnyRelativeConfig):
        raise ConfigurationError(
            f"This {type(model).__name__} is already relative. For a new decoder on it, pass the RelativeModel: "
            "RelativeModelForSequenceClassification.from_encoder(encoder, num_labels=...); for other anchors call "
            "encoder.encode_anchors(view), or pass encoder.backbone here."
        )


def _refuse_foreign_code(model: PreTrainedModel) -> None:
    """Code that came with a model does not travel: what is made from it could not be loaded again."""
    if type(model).__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME:
        raise ConfigurationError(
            f"{type(model).__name__} is defined by code that came with the model (trust_remote_code=True), so its "
            "upload could not be loaded. Choose an architecture that transformers supports, or fit only a decoder: "
            "RelativeDecoder.from_embeddings."
        )


def hub_name(name: str | None) -> str | None:
    """The name if it is one on the Hub: a local path would leak into configurations."""
    return name if name and _is_repo_id(name) else None


def _refuse_wordless(processor: Any, name: str) -> None:
    """Where there are no tokenizer files, transformers makes a tokenizer that knows no words."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if isinstance(tokenizer, PreTrainedTokenizerBase) and len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UploadError(
            f"{name} has no tokenizer: transformers builds one with {len(tokenizer)} special tokens and no words. "
            "Pass the tokenizer that the model was trained with: from_encoder(model, view, tokenizer)."
        )


def _is_repo_id(name: str) -> bool:
    if not name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:  # a folder that has gone
        return False
    return True


def _is_auto_model(model: PreTrainedModel) -> bool:
    """Whether `AutoModel` builds this class from its configuration."""
    expected: Any = MODEL_MAPPING.get(type(model.config), type(model))
    return isinstance(model, expected)


def _refuse_other_class(model: PreTrainedModel, tower: str | None) -> None:
    """Only what `AutoModel` builds from a configuration can be loaded again."""
    if tower is None and not _is_auto_model(model):
        raise ConfigurationError(
            f"from_encoder got a {type(model).__name__}, expected the class that AutoModel loads for model_type "
            f"{model.config.model_type!r}. Pass AutoModel.from_pretrained(name)."
        )


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What says how an encoder is loaded, and the rest."""
    loader = {name: value for name, value in settings.items() if name in LOADER_ARGUMENTS}
    return loader, {name: value for name, value in settings.items() if name not in LOADER_ARGUMENTS}


def resolve_config(
    config: AnyRelativeConfig | RelativeSpace | None,
    backbone: PreTrainedModel,
    view: AnchorView,
    processor: Any,
    source: Source,
    settings: Mapping[str, Any],
) -> RelativeEncoderConfig:
    """The configuration that wraps `backbone`: its own settings over those of `config`, the rest measured."""
    refuse_unknown_settings(settings, ENCODER_SETTINGS, "An encoder")
    measured = sorted(set(settings) & set(MEASURED_FIELDS))
    if measured:
        raise ConfigurationError(
            f"{', '.join(measured)} are determined by the encoder and its anchors. Leave them out."
        )
    encoder_config = copy.deepcopy(backbone.config)
    name = hub_name(source.name)  # a local path would leak
    encoder_config._name_or_path = name or ""
    vars(encoder_config).pop("quantization_config", None)  # said by `encoder_quantization` where weights are stored
    chosen = _settings_of(config) | dict(settings)
    if chosen.get("tower") is None:
        chosen["tower"] = default_tower(backbone, view.read_as)
    _refuse_other_class(backbone, chosen["tower"])
    if chosen.get("layer") is None:
        chosen["layer"] = default_layer(backbone, view.modality)
    if view.read_as in OF_TOKENS:
        if chosen.get("max_length") is None:
            chosen["max_length"] = longest_text(backbone, processor)
        chosen["pad_token_id"] = _padding_token(processor)
    if view.modality == "conversation":
        _refuse_prompt(chosen.get("prompt"))
    if view.modality == "text":
        chosen["prompt"] = _choose_prompt(chosen.get("prompt"), processor, source)
    return RelativeEncoderConfig(
        **chosen,
        encoder_config=encoder_config,
        attn_implementation=backbone.config._attn_implementation,  # type: ignore[call-arg]
        base_model_name_or_path=name,
        base_model_revision=str(source.arguments["revision"]) if name and "revision" in source.arguments else None,
        modality=view.read_as,
        num_anchors=len(view),
        fingerprint=view.fingerprint,
        anchor_view=view.name,
        anchor_digest=view.digest,
    )


def _padding_token(processor: Any) -> int | None:
    """The token that fills texts up; ``None`` where encoders see it as any other (SigLIP)."""
    tokenizer = getattr(processor, "tokenizer", processor)
    has_mask = "attention_mask" in getattr(tokenizer, "model_input_names", ())
    return getattr(tokenizer, "pad_token_id", None) if has_mask else None


def _refuse_prompt(prompt: str | None) -> None:
    if prompt:
        raise ConfigurationError(
            f"prompt={prompt!r:.60} goes before texts, and the anchors are conversations, whose text the chat "
            "template makes. Leave prompt out, and write it into the template or a system message."
        )


def _choose_prompt(asked: str | None, processor: Any, source: Source) -> str | None:
    """What was asked for; else what the tokenizer adds already, or the files beside the encoder name."""
    if asked is not None:
        return asked or None
    found = prompt_of(processor)
    if found is None and (source.is_local or hub_name(source.name)):
        found = find_prompt(source)
    return found


def _settings_of(config: AnyRelativeConfig | RelativeSpace | None) -> dict[str, Any]:
    """The projection, and of a configuration with an encoder how that is read."""
    if config is None:
        return {}
    if isinstance(config, RelativeSpace):
        return config.projection
    if isinstance(config, RelativeDecoderConfig):
        return config.space.projection
    encoder = config.encoder if isinstance(config, RelativeConfig) else config
    own = ("pooling", "layer", "max_length", "prompt", "tower", "anchor_gradient")
    return encoder.space.projection | {name: getattr(encoder, name) for name in own}


@torch.no_grad()
def measure(
    backbone: PreTrainedModel, view: AnchorView, processor: Any, config: RelativeEncoderConfig
) -> PreTrainedModel:
    """Fill in what no configuration says: the pooling that suits, D, and whether padding leaves embeddings alone.

    Returns:
        The encoder to wrap: where it reads a lower layer, without those above, if it gives the same without them.
    """
    reads_graphs = reads(backbone, "node")
    if reads_graphs != (view.modality == "node"):
        raise ConfigurationError(
            f"{type(backbone).__name__} takes {'a' if reads_graphs else 'no'} graph (edge_index), the anchors are "
            f"{view.modality}s. Nodes need a graph encoder such as hf_relreps.encoders.graphs.GraphEncoder, and graph "
            "encoders need nodes."
        )
    whole, sample = Interface(backbone), min(view.samples, key=length)

    def embed_together(samples: list[Any], interface: Interface = whole) -> Tensor:
        """The embedding of the first."""
        ((rows, inputs),) = batches(samples, processor, len(samples), config.max_length)
        refuse_unknown_tokens(interface.model, inputs)
        output, x_BD = embed(interface, to_device(inputs, device_of(interface.model)), config)
        read = interface.at_layer(output, config.layer)
        config.pooling = config.pooling or default_pooling(interface.model, config.modality, read)
        config.padding = config.padding and not interface.guesses_mask(read, inputs)
        return x_BD[list(rows).index(0)].float()

    with evaluating(backbone):
        x_D = embed_together([sample])
        if view.read_as in (*OF_TOKENS, "audio"):
            together = [sample, longer(sample, 2), longer(sample, 3)]
            config.padding = config.padding and _bears_padding(x_D, lambda: embed_together(together), backbone.dtype)
    config.embedding_size = x_D.shape[-1]

    def gives_the_same(part: PreTrainedModel) -> bool:
        with evaluating(part):
            return torch.equal(embed_together([sample], Interface(part)), x_D)

    return _without_idle_layers(backbone, config, gives_the_same)


def _without_idle_layers(
    backbone: PreTrainedModel, config: RelativeEncoderConfig, gives_the_same: Callable[[PreTrainedModel], bool]
) -> PreTrainedModel:
    """The lower part of an encoder that gives the same embeddings and can be built again, else the whole."""
    whole = without_idle_pooler(backbone, config)
    for kept in fewer_layers(whole, config.layer) if config.tower is None else ():
        shorter: Any = copy.deepcopy(config)
        try:
            lower = lowest(whole, kept)
            shorter.encoder_config = shortened(config.encoder_config, kept)
            is_it = gives_the_same(lower) and gives_the_same(_built_again(lower, shorter))
        except torch.OutOfMemoryError:
            raise
        except UNBUILT as error:  # its type forbids it
            logger.debug("%s keeps all layers: %s", type(backbone).__name__, error)
            continue
        if is_it:
            config.encoder_config = shorter.encoder_config
            return lower
    return backbone


def _built_again(backbone: PreTrainedModel, config: RelativeEncoderConfig) -> PreTrainedModel:
    """The model that a load makes of a configuration, with weights that are there: some types count their layers."""
    encoder_config: Any = config.encoder_config
    stored = encoder_config.to_dict()
    if type(encoder_config).from_dict(copy.deepcopy(stored)).to_dict() != stored:
        raise ValueError(f"{type(encoder_config).__name__} changes when it is read again.")
    with BUILDING, torch.device("meta"):
        built = build_backbone(config)
    built.load_state_dict(backbone.state_dict(), assign=True)
    for name, buffer in backbone.named_buffers():  # also those that are never stored
        above, _, own = name.rpartition(".")
        setattr(built.get_submodule(above), own, buffer)
    return built


def _bears_padding(x_D: Tensor, beside_longer: Callable[[], Tensor], dtype: torch.dtype) -> bool:
    """Whether a sample's embedding stays the same beside a longer one; an encoder that breaks does not bear it."""
    try:
        difference_D = beside_longer() - x_D
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return bool(difference_D.abs().max() <= (1e-3 if dtype == torch.float32 else 5e-2) * x_D.abs().max())


def longest_text(backbone: PreTrainedModel, processor: Any) -> int | None:
    """Longest text in tokens that both the tokenizer and the position embeddings bear."""
    tokenizer = getattr(processor, "tokenizer", processor)
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, positions and positions - _padding_positions(backbone)]
    known = [limit for limit in limits if limit and 0 < limit < 1_000_000]
    return min(known) if known else None


def _padding_positions(backbone: nn.Module) -> int:
    """Rows of the position embeddings that no token uses: RoBERTa and its like count from behind the padding's."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


# -- A frozen base and what was trained inside it


class Unattached(nn.Module):
    """Stands in a frozen encoder until its base is attached: it holds no weights, random ones least of all."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Say how to get the base.

        Raises:
            UploadError: Always.
        """
        raise UploadError(
            "This encoder references a frozen base model that was not loaded. Load the encoder with "
            "from_pretrained(name), which loads its base too."
        )


def is_frozen(backbone: nn.Module) -> bool:
    """Whether no weight of the base takes a gradient; adapters may."""
    own = tuple(_own_prefixes(backbone))
    return not any(p.requires_grad for name, p in backbone.named_parameters() if not name.startswith(own))


def own_weights(backbone: nn.Module, names: Iterable[str] | None = None) -> set[str]:
    """Names of the weights that the base does not have: those of adapters."""
    own = tuple(_own_prefixes(backbone))
    return {name for name in (backbone.state_dict() if names is None else names) if own and name.startswith(own)}


def base_weights(backbone: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The base's weights, by the names that they have without adapters around them.

    Args:
        backbone: Whose.
        weights: All of its weights, where they were gathered already.
    """
    weights = backbone.state_dict() if weights is None else weights
    own = own_weights(backbone, weights)
    return {_bare(name): tensor for name, tensor in weights.items() if name not in own}


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) over names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in plain_tensors(tensor):
            sha.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def first_difference(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> str | None:
    """Name of a weight that is not the base's, whatever dtype it was loaded in; ``None`` if all are."""
    for name in sorted({*weights, *base}):
        mine, theirs = weights.get(name), base.get(name)
        if mine is None or theirs is None or not torch.equal(mine.cpu(), theirs.to(mine.dtype).cpu()):
            return name
    return None


def without_wrapper(encoder: Any) -> Any:
    """The `PreTrainedModel` inside a `PeftModel`, with the adapters in its layers; anything else as it is.

    Raises:
        ConfigurationError: If the adapter does not live inside layers: prompts and prefixes.
    """
    if isinstance(encoder, PreTrainedModel) or not hasattr(encoder, "peft_config"):
        return encoder
    if any(getattr(config, "is_prompt_learning", False) for config in encoder.peft_config.values()):
        raise ConfigurationError(
            f"{type(encoder).__name__} learns prompts outside the encoder's layers. Use an adapter inside the layers, "
            "for example LoraConfig."
        )
    model = encoder.get_base_model()
    model.peft_config = encoder.peft_config
    setattr(model, ADAPTED, True)
    return model


def adapter_settings(backbone: nn.Module) -> dict[str, Any] | None:
    """The settings of each adapter as JSON; ``None`` without any."""
    if not getattr(backbone, ADAPTED, False):
        return None
    adapters: Any = backbone.peft_config
    return {name: _plain(config.to_dict()) for name, config in adapters.items()}


def add_adapters(backbone: PreTrainedModel, adapters: Mapping[str, Any], largest: int | None = None) -> None:
    """Put adapters of these settings into a base; their weights are to be loaded after.

    Args:
        backbone: The base.
        adapters: Settings by name.
        largest: The largest side of a weight that is stored for them: no number that builds weights is larger. The
            base's, if left out.

    Raises:
        MissingExtraError: If peft is not installed.
        UploadError: If the settings are not ones that the installed peft knows.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("This encoder has an adapter; install peft: pip install hf_relreps[peft].") from error
    for name, settings in adapters.items():
        kind = settings.get("peft_type")
        if kind not in list(peft.PEFT_TYPE_TO_CONFIG_MAPPING):
            raise UploadError(
                f"Adapter {name!r} is of type {kind!r}, which peft {peft.__version__} does not support. Update it: "
                "pip install -U peft."
            )
        config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
        known = set(config_class.__dataclass_fields__) - {*ADAPTER_SWITCHES, "peft_type"}
        own = {key: value for key, value in settings.items() if key in known}
        modules = [module for module, _ in backbone.named_modules()]
        most = largest or max((max(weight.shape, default=1) for weight in backbone.parameters()), default=1)
        own = known_adapter(own, modules, most, f"Adapter {name!r}")
        try:
            backbone.add_adapter(config_class(**own), name)
        except (TypeError, AttributeError, LookupError) as error:
            raise UploadError(
                f"Adapter {name!r} has settings that peft {peft.__version__} cannot use ({type(error).__name__}: "
                f"{error}). Pull it again, or ask its author."
            ) from error


def load_own_weights(backbone: nn.Module, weights: Mapping[str, Tensor], where: Any) -> None:
    """Fill the adapters.

    Raises:
        UploadError: If the weights are not exactly those of the adapters.
    """
    expected = own_weights(backbone)
    differ = sorted(expected ^ set(weights))
    if differ:
        raise UploadError(
            f"{where} contains {len(weights)} adapter weights, expected {len(expected)}; the first difference is "
            f"{differ[0]}. Pull it again, or save the model again."
        )
    try:
        backbone.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        raise UploadError(
            f"{where} contains adapter weights of other shapes than its settings say: {error}. Pull it again, or save "
            "the model again."
        ) from error


def _own_prefixes(backbone: nn.Module) -> Iterator[str]:
    """Where adapters keep their weights, as peft's layers tell it."""
    for name, module in backbone.named_modules():
        for attribute in (*getattr(module, "adapter_layer_names", ()), *getattr(module, "other_param_names", ())):
            yield f"{name}.{attribute}."


def _bare(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _plain(value: Any) -> Any:
    """JSON without the settings that must not travel."""
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items() if name not in ADAPTER_SWITCHES}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set):
        return sorted(map(str, value))
    return getattr(value, "value", value)  # an enum's
