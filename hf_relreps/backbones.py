"""Any `AutoModel` as an encoder: load it, find the part that reads a modality, pool its output, build it again.

A frozen encoder refers to its base model, so that an upload holds only what was trained. An encoder is frozen if none
of its base's weights takes a gradient. Adapters (LoRA, ...) that were trained inside it are its own: they are stored,
the base is not.

Shapes: B batch, D absolute size.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from hf_relreps.anchors import AnchorView
from hf_relreps.configuration import (
    BELOW_HEADS,
    ENCODER_SETTINGS,
    TOWERS,
    AnyRelativeConfig,
    RelativeConfig,
    RelativeDecoderConfig,
    RelativeEncoderConfig,
)
from hf_relreps.errors import ConfigurationError, MissingExtraError, SampleError, UploadError
from hf_relreps.pooling import Interface, default_pooling, pool, reads
from hf_relreps.samples import batches, length, longer, to_device
from hf_relreps.sources import Source
from hf_relreps.space import RelativeSpace
from hf_relreps.uploads import load_processor


ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Settings that follow from the encoder and its anchors.
MEASURED_FIELDS = (
    *("encoder_config", "base_model_name_or_path", "base_model_revision", "base_model_digest", "encoder_is_frozen"),
    *("encoder_adapters", "embedding_size", "pad_token_id", "padding", "modality", "space", "num_anchors"),
    *("fingerprint", "anchor_view", "anchor_digest"),
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
# Settings of an adapter that would import code, load other files or change the base.
ADAPTER_SWITCHES = (
    *("auto_mapping", "base_model_name_or_path", "revision", "megatron_config", "megatron_core", "runtime_config"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "arrow_config"),
)
# Held while a model is built or loaded: meanwhile transformers changes functions of torch and of its own for the whole
# process, and two threads that do so at once leave them changed.
BUILDING = threading.RLock()


# -- Running an encoder


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode after: dropout would blur the anchors."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def share_weights(module: ModuleT, *same: Any) -> ModuleT:
    """A copy whose modules are its own and whose tensors are the same: its mode, hooks and settings change alone.

    Args:
        module: What is copied; hooks of accelerate are bound to the copy.
        *same: Other things that the copy holds by reference.
    """
    memo = {id(thing): thing for thing in same}
    for part in module.modules():
        held = [*part.parameters(recurse=False), *part.buffers(recurse=False), *vars(part).values()]
        memo |= {id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)}
        for hook in _hooks_of(part):  # weights that accelerate holds elsewhere
            memo |= {id(held): held for held in vars(hook).values() if isinstance(held, Mapping)}
    return copy.deepcopy(module, memo)


def _hooks_of(module: nn.Module) -> list[Any]:
    """The hooks that accelerate has put on a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


class Freshness:
    """Whether an encoder's stored anchors are still what its weights make of them.

    Encoders that share their weights share the count of training passes, so that each of them learns of all. Changes
    without a pass (`load_state_dict`, a hand's edit) show in the versions that torch counts for each weight; fused
    optimizers do not count, but they come with passes.
    """

    def __init__(self) -> None:
        self.passes = [0]  # of training, through these weights
        self._seen = 0
        self._weights: list[Tensor] = []
        self._version = 0

    def note_training(self) -> None:
        """A training pass went through the weights: they are about to change."""
        self.passes[0] += 1

    def note_exact(self, backbone: nn.Module) -> None:
        """The stored anchors are those of the weights as they are now."""
        self._seen, self._weights = self.passes[0], [*backbone.parameters()]
        self._version = self._count()

    @property
    def is_stale(self) -> bool:
        """Whether the weights have changed since."""
        return self.passes[0] != self._seen or self._count() != self._version

    def _count(self) -> int:
        return sum(0 if weight.is_inference() else weight._version for weight in self._weights)

    def share(self) -> Freshness:
        """For another encoder with the same weights."""
        shared = Freshness()
        shared.passes, shared._seen = self.passes, self._seen
        shared._weights, shared._version = list(self._weights), self._version
        return shared

    def __deepcopy__(self, memo: Any) -> Freshness:
        """For other weights with the same values: torch counts their versions anew."""
        copied = Freshness()
        copied.passes[0] = int(self.is_stale)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return vars(copy.deepcopy(self))


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only a share of the weights (FSDP, ZeRO-3, tensor parallel): it cannot encode alone."""
    sharded = ("DTensor", "FlatParameter")
    return any(hasattr(weight, "ds_id") or type(weight).__name__ in sharded for weight in model.parameters())


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its inputs; weights that were offloaded lie on no device at all."""
    for part in model.modules():
        for hook in _hooks_of(part):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    tensor = next((t for t in (*model.parameters(), *model.buffers()) if not t.is_meta), None)
    return torch.device("cpu") if tensor is None else tensor.device


def embed(interface: Interface, inputs: dict[str, Any], config: RelativeEncoderConfig) -> tuple[Any, Tensor]:
    """Output of the wrapped model, and its pooled absolute embeddings (B, D)."""
    nodes = inputs.pop("nodes", None)
    output = interface.model(**interface.readable(inputs), return_dict=True)
    if config.modality == "node":
        x_ND = output.last_hidden_state
        return output, x_ND if nodes is None else x_ND[nodes]
    output, mask_BT = interface.unpack(output, inputs)
    return output, pool(output, mask_BT, config.pooling or default_pooling(interface.model, config.modality, output))


def refuse_unknown_tokens(backbone: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise `SampleError` if a tokenizer gives tokens that the encoder has no embedding for."""
    ids = inputs.get("input_ids")
    table = _token_embeddings(backbone)
    if isinstance(ids, Tensor) and table is not None and ids.numel() and int(ids.max()) >= table.num_embeddings:
        raise SampleError(
            f"The tokenizer gives token {int(ids.max())}, the encoder has embeddings for {table.num_embeddings}. "
            "Give the encoder's own tokenizer; for new tokens: model.resize_token_embeddings(len(tokenizer))."
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
    model = AutoModel.from_config(config.encoder_config, trust_remote_code=False, **_pooler_argument(config))
    backbone = without_idle_pooler(tower_of(model, config.tower), config)
    if config.encoder_adapters:
        add_adapters(backbone, config.encoder_adapters)
    return backbone


def describe_architecture(config: Any) -> dict[str, Any]:
    """The fields of a wrapped model's configuration on which its embeddings depend; dropout is for training only."""
    fields = config if isinstance(config, Mapping) else config.to_dict()
    return {
        name: describe_architecture(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if str(name) not in RUNNING_FIELDS and "drop" not in str(name)
    }


def fetch_base(config: RelativeEncoderConfig, **hub_arguments: Any) -> tuple[PreTrainedModel, str]:
    """The base that a frozen encoder refers to, as it is stored there, and its commit.

    Raises:
        UploadError: If it is not on the Hub, not at that commit, or closed to this token.
    """
    name = config.base_model_name_or_path or ""
    if not _is_repo_id(name):
        raise UploadError(f"{name!r} is not the name of a repository on the Hub.")
    source = Source.of(name, **hub_arguments | {"revision": config.base_model_revision}).pinned()
    encoder_config: Any = copy.deepcopy(config.encoder_config)
    encoder_config.dtype = None  # as stored, so that its digest does not depend on how it will be used
    with BUILDING:
        base = AutoModel.from_pretrained(
            source.name, config=encoder_config, trust_remote_code=False, **_pooler_argument(config), **source.arguments
        )
    return without_idle_pooler(tower_of(base, config.tower), config), source.commit or ""


def tower_of(model: PreTrainedModel, name: str | None) -> PreTrainedModel:
    """The part of a model that is the encoder: a path of attributes."""
    if name is None:
        return model
    tower = dict(model.named_modules()).get(name)
    if not isinstance(tower, PreTrainedModel):
        raise ConfigurationError(
            f"tower={name!r} is no model inside {type(model).__name__}. Leave it out, or name one."
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
) -> tuple[PreTrainedModel, Any, Source | None]:
    """The model, its processor, and where it came from on the Hub (not a local path, which would leak into configs).

    Raises:
        ConfigurationError: If it is relative already, came with code of its own, or has no processor.
        UploadError: If it cannot be loaded.
    """
    encoder = without_wrapper(encoder)
    if isinstance(encoder, PreTrainedModel):
        if loader:
            raise ConfigurationError(
                f"{', '.join(sorted(loader))} say how an encoder is loaded by its name, and a loaded "
                f"{type(encoder).__name__} was given. Load it with them: AutoModel.from_pretrained(name, ...)."
            )
        source = Source.of(encoder.config._name_or_path or "")
        model: Any = encoder if _is_auto_model(encoder) else encoder.base_model  # below a head
    else:
        source = Source.of(encoder, **loader)
        model = _load_by_name(source, loader)
    _refuse_relative(model)
    _refuse_foreign_code(model)
    if processor is None:
        if not source.name:
            raise ConfigurationError(
                "A model without a name needs its processor: from_encoder(model, view, tokenizer)."
            )
        processor = load_processor(source)
        _refuse_wordless(processor, source.name)
    return model, processor, source if hub_name(source.name) else None


def _load_by_name(source: Source, loader: dict[str, Any]) -> PreTrainedModel:
    if loader.pop("trust_remote_code", False):
        raise ConfigurationError(
            f"trust_remote_code=True would run code of {source.name}, and nothing could load the upload again without "
            "it. Choose an architecture that transformers knows."
        )
    how = {name: value for name, value in loader.items() if name not in source.arguments}
    with BUILDING:
        return AutoModel.from_pretrained(source.name, trust_remote_code=False, **source.arguments, **how)


def _refuse_relative(model: PreTrainedModel) -> None:
    if isinstance(model.config, AnyRelativeConfig):
        raise ConfigurationError(
            f"This {type(model).__name__} is relative already. For a new decoder on it give the loaded RelativeModel: "
            "RelativeModelForSequenceClassification.from_encoder(encoder, num_labels=...); for other anchors call "
            "encoder.encode_anchors(view), or give encoder.backbone here."
        )


def _refuse_foreign_code(model: PreTrainedModel) -> None:
    """Code that came with a model does not travel: what is made from it could not be loaded again."""
    if type(model).__module__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME:
        raise ConfigurationError(
            f"{type(model).__name__} is code that came with the model (trust_remote_code=True): an upload of it "
            "could not be loaded again. Choose an architecture that transformers knows; or train a decoder alone, on "
            "relative representations that you compute with hf_relreps.projection."
        )


def hub_name(name: str | None) -> str | None:
    """The name if it is one on the Hub: a local path would leak into configurations."""
    return name if name and _is_repo_id(name) else None


def _refuse_wordless(processor: Any, name: str) -> None:
    """Where there are no tokenizer files, transformers makes a tokenizer that knows no words."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if isinstance(tokenizer, PreTrainedTokenizerBase) and len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UploadError(
            f"{name} holds no tokenizer: what transformers makes of it knows {len(tokenizer)} special tokens and no "
            "words. Give the one that the model was trained with: from_encoder(model, view, tokenizer)."
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
            f"from_encoder got a {type(model).__name__}, expected what AutoModel gives for a configuration of type "
            f"{model.config.model_type!r}, or nothing could load it again. Give AutoModel.from_pretrained(name)."
        )


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What says how an encoder is loaded, and the rest."""
    loader = {name: value for name, value in settings.items() if name in LOADER_ARGUMENTS}
    return loader, {name: value for name, value in settings.items() if name not in LOADER_ARGUMENTS}


def refuse_unknown_settings(settings: Mapping[str, Any], known: frozenset[str] | set[str], what: str) -> None:
    """Raise `ConfigurationError` for settings that do not exist, and name the nearest that does."""
    for name in sorted(set(settings) - known):
        near = difflib.get_close_matches(name, sorted(known), n=1)
        raise ConfigurationError(
            f"{what} has no setting {name!r}. "
            + (
                f"Did you mean {near[0]!r}? It has {', '.join(sorted(known))}."
                if near
                else f"It has {', '.join(sorted(known))}."
            )
        )


def resolve_config(
    config: AnyRelativeConfig | RelativeSpace | None,
    backbone: PreTrainedModel,
    view: AnchorView,
    processor: Any,
    source: Source | None,
    settings: Mapping[str, Any],
) -> RelativeEncoderConfig:
    """The configuration that wraps `backbone`: its own settings over those of `config`, the rest measured."""
    refuse_unknown_settings(settings, ENCODER_SETTINGS, "An encoder")
    measured = sorted(set(settings) & set(MEASURED_FIELDS))
    if measured:
        raise ConfigurationError(f"{', '.join(measured)} follow from the encoder and its anchors: leave them out.")
    encoder_config = copy.deepcopy(backbone.config)
    encoder_config._name_or_path = source.name if source else ""
    chosen = _settings_of(config) | dict(settings)
    if chosen.get("tower") is None:
        chosen["tower"] = default_tower(backbone, view.modality)
    _refuse_other_class(backbone, chosen["tower"])
    if view.modality == "text":
        if chosen.get("max_length") is None:
            chosen["max_length"] = longest_text(backbone, processor)
        chosen["pad_token_id"] = _padding_token(processor)
    return RelativeEncoderConfig(
        **chosen,
        encoder_config=encoder_config,
        attn_implementation=backbone.config._attn_implementation,  # type: ignore[call-arg]
        base_model_name_or_path=source.name if source else None,
        base_model_revision=str(source.arguments["revision"]) if source and "revision" in source.arguments else None,
        modality=view.modality,
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


def _settings_of(config: AnyRelativeConfig | RelativeSpace | None) -> dict[str, Any]:
    """The projection, and of a configuration with an encoder how that is read."""
    if config is None:
        return {}
    if isinstance(config, RelativeSpace):
        return config.projection
    if isinstance(config, RelativeDecoderConfig):
        return config.space.projection
    encoder = config.encoder if isinstance(config, RelativeConfig) else config
    own = ("pooling", "max_length", "tower", "anchor_gradient")
    return encoder.space.projection | {name: getattr(encoder, name) for name in own}


@torch.no_grad()
def measure(backbone: PreTrainedModel, view: AnchorView, processor: Any, config: RelativeEncoderConfig) -> None:
    """Fill in what no configuration says: the pooling that suits, D, and whether padding leaves embeddings alone."""
    reads_graphs = reads(backbone, "node")
    if reads_graphs != (view.modality == "node"):
        raise ConfigurationError(
            f"{type(backbone).__name__} takes {'a' if reads_graphs else 'no'} graph (edge_index), the anchors are "
            f"{view.modality}s. Nodes need a graph encoder such as hf_relreps.encoders.graphs.GraphEncoder, and graph "
            "encoders need nodes."
        )
    interface, sample = Interface(backbone), min(view.samples, key=length)

    def embed_together(samples: list[Any]) -> Tensor:
        """The embedding of the first."""
        ((rows, inputs),) = batches(samples, processor, len(samples), config.max_length)
        refuse_unknown_tokens(backbone, inputs)
        output, x_BD = embed(interface, to_device(inputs, device_of(backbone)), config)
        config.pooling = config.pooling or default_pooling(backbone, config.modality, output)
        config.padding = config.padding and not interface.guesses_mask(output, inputs)
        return x_BD[list(rows).index(0)].float()

    with evaluating(backbone):
        x_D = embed_together([sample])
        if view.modality in ("text", "audio"):
            together = [sample, longer(sample, 2), longer(sample, 3)]
            config.padding = config.padding and _bears_padding(x_D, lambda: embed_together(together), backbone.dtype)
    config.embedding_size = x_D.shape[-1]


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
            "This encoder refers to a frozen base model that was not fetched. Load it with from_pretrained(name), "
            "which fetches the base too."
        )


def is_frozen(backbone: nn.Module) -> bool:
    """Whether no weight of the base takes a gradient; adapters may."""
    own = tuple(_own_prefixes(backbone))
    return not any(p.requires_grad for name, p in backbone.named_parameters() if not name.startswith(own))


def own_weights(backbone: nn.Module) -> set[str]:
    """Names of the weights that the base does not have: those of adapters."""
    own = tuple(_own_prefixes(backbone))
    return {name for name in backbone.state_dict() if own and name.startswith(own)}


def base_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """The base's weights, by the names that they have without adapters around them."""
    own = own_weights(backbone)
    return {_bare(name): tensor for name, tensor in backbone.state_dict().items() if name not in own}


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) over names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
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
            f"{type(encoder).__name__} learns prompts, which come before the encoder. Use an adapter that lives "
            "inside its layers, for example LoraConfig."
        )
    model = encoder.get_base_model()
    model.peft_config = encoder.peft_config
    model._hf_peft_config_loaded = True
    return model


def adapter_settings(backbone: nn.Module) -> dict[str, Any] | None:
    """The settings of each adapter as JSON; ``None`` without any."""
    if not getattr(backbone, "_hf_peft_config_loaded", False):
        return None
    adapters: Any = backbone.peft_config
    return {name: _plain(config.to_dict()) for name, config in adapters.items()}


def add_adapters(backbone: PreTrainedModel, adapters: Mapping[str, Any]) -> None:
    """Put adapters of these settings into a base; their weights are to be loaded after.

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
            raise UploadError(f"Adapter {name!r} is of type {kind!r}, which peft {peft.__version__} does not know.")
        config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
        known = set(config_class.__dataclass_fields__) - {*ADAPTER_SWITCHES, "peft_type"}
        backbone.add_adapter(config_class(**{key: value for key, value in settings.items() if key in known}), name)


def load_own_weights(backbone: nn.Module, weights: Mapping[str, Tensor], where: Any) -> None:
    """Fill the adapters.

    Raises:
        UploadError: If the weights are not exactly those of the adapters.
    """
    expected = own_weights(backbone)
    differ = sorted(expected ^ set(weights))
    if differ:
        raise UploadError(
            f"{where} holds {len(weights)} weights of adapters, expected {len(expected)}; the first that differs is "
            f"{differ[0]}. Pull it again, or save the model anew."
        )
    backbone.load_state_dict(dict(weights), strict=False)


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
