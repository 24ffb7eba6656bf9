"""Any `AutoModel` as an encoder: load it, find the part that reads a modality, pool its output, build it again.

Shapes: B batch, D absolute size.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from hf_relreps.anchors import AnchorView
from hf_relreps.base_models import BUILDING, add_adapters, without_wrapper
from hf_relreps.configuration import (
    BELOW_HEADS,
    DECODER_FIELDS,
    LABEL_FIELDS,
    PROJECTION_FIELDS,
    TOWERS,
    RelativeConfig,
)
from hf_relreps.errors import ConfigurationError, SampleError, UploadError
from hf_relreps.pooling import default_pooling, guesses_mask, pool, readable, reads, spread
from hf_relreps.samples import batches, length, longer, to_device
from hf_relreps.sources import Source
from hf_relreps.uploads import RelativeUpload, load_processor


ModelT = TypeVar("ModelT", bound=nn.Module)

# Settings that follow from the encoder and its anchors.
MEASURED_FIELDS = (
    "encoder_config",
    "base_model_name_or_path",
    "embedding_size",
    "padding",
    "modality",
    "num_anchors",
    "anchor_fingerprint",
    "anchor_view",
    "anchor_digest",
    "format_version",
)


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


def shallow(module: Any) -> Any:
    """A copy that holds the same parameters, buffers and submodules, and can be given others."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def embed(backbone: nn.Module, inputs: dict[str, Any], config: RelativeConfig) -> tuple[Any, Tensor]:
    """Output of the wrapped model, and its pooled absolute embeddings (B, D)."""
    nodes = inputs.pop("nodes", None)
    output = backbone(**readable(backbone, inputs), return_dict=True)
    if config.modality == "node":
        x_ND = output.last_hidden_state
        return output, x_ND if nodes is None else x_ND[nodes]
    output, mask_BT = spread(backbone, output, inputs)
    return output, pool(output, mask_BT, config.pooling or default_pooling(backbone, config.modality, output))


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


def kept(module: ModelT) -> ModelT:
    """Mark the weights as loaded, so that the `post_init` of what it becomes a part of leaves them alone."""
    marked: list[Any] = [*module.modules(), *module.parameters(), *module.buffers()]
    for module_or_tensor in marked:
        module_or_tensor._is_hf_initialized = True
    return module


def built(config: RelativeConfig) -> PreTrainedModel:
    """The wrapped model with random weights, to be filled by a load."""
    model = AutoModel.from_config(config.encoder_config, trust_remote_code=False, **_pooler_argument(config))
    backbone = without_idle_pooler(tower_of(model, config.tower), config)
    if config.encoder_adapters:
        add_adapters(backbone, config.encoder_adapters)
    return backbone


def fetched_base(config: RelativeConfig, **hub_arguments: Any) -> tuple[PreTrainedModel, str]:
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


def without_idle_pooler(backbone: PreTrainedModel, config: RelativeConfig) -> PreTrainedModel:
    """The same model, sharing its weights, without a pooler that nobody reads.

    Its weights would get no gradient, which distributed training refuses unless it expects that.
    """
    pooler = getattr(backbone, "pooler", None)
    if config.pooling == "pooler" or not isinstance(pooler, nn.Module):
        return backbone
    if not _can_do_without_pooler(type(backbone)):
        pooler.requires_grad_(False)
        return backbone
    lighter = shallow(backbone)  # the caller's model keeps its pooler
    lighter._modules["pooler"] = None
    return lighter


def _can_do_without_pooler(model_class: Any) -> bool:
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _pooler_argument(config: RelativeConfig) -> dict[str, bool]:
    """What tells `AutoModel` to build no pooler that nobody would read."""
    model_class = MODEL_MAPPING[type(config.encoder_config)]  # type: ignore[index]
    idle = config.pooling != "pooler" and _can_do_without_pooler(model_class)
    return {"add_pooling_layer": False} if idle else {}


def loaded(encoder: str | Path | PreTrainedModel, processor: Any) -> tuple[PreTrainedModel, Any, str | None]:
    """The model, its processor, and the Hub id it came from (not a local path, which would leak into configs)."""
    encoder = without_wrapper(encoder)
    if isinstance(encoder, PreTrainedModel):
        name = encoder.config._name_or_path
        model: Any = encoder if _is_auto_model(encoder) else encoder.base_model  # below a head
    else:
        source = Source.of(encoder)
        name = source.name
        with BUILDING:
            model = AutoModel.from_pretrained(name, trust_remote_code=False, **source.arguments)
    if isinstance(model, RelativeUpload):
        raise ConfigurationError(
            f"This {type(model).__name__} is relative already. For a new decoder on it give the loaded RelativeModel: "
            "RelativeModelForSequenceClassification.from_encoder(encoder, num_labels=...); for other anchors call "
            "encoder.encode_anchors(view), or give encoder.backbone here."
        )
    if processor is None:
        if not name:
            raise ConfigurationError(
                "A model without a name needs its processor: from_encoder(model, view, tokenizer)."
            )
        processor = load_processor(Source.of(name))
        _refuse_wordless(processor, name)
    return model, processor, hub_name(name)


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


def configured(
    config: RelativeConfig | None,
    backbone: PreTrainedModel,
    view: AnchorView,
    processor: Any,
    name: str | None,
    settings: dict[str, Any],
) -> RelativeConfig:
    """The configuration that wraps `backbone`: its own settings over those of `config`, the rest measured."""
    known = {field.name for field in dataclasses.fields(RelativeConfig)} | {"num_labels"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigurationError(
            f"RelativeConfig has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    measured = sorted(set(settings) & set(MEASURED_FIELDS))
    if measured:
        raise ConfigurationError(f"{', '.join(measured)} follow from the encoder and its anchors: leave them out.")
    encoder_config = copy.deepcopy(backbone.config)
    encoder_config._name_or_path = name or ""
    chosen = _chosen(config, settings)
    if chosen.get("tower") is None:
        chosen["tower"] = default_tower(backbone, view.modality)
    _refuse_other_class(backbone, chosen["tower"])
    if chosen.get("max_length") is None and view.modality == "text":
        chosen["max_length"] = longest_text(backbone, processor)
    return RelativeConfig(
        **chosen,
        encoder_config=encoder_config,
        attn_implementation=backbone.config._attn_implementation,  # type: ignore[call-arg]
        base_model_name_or_path=name,
        modality=view.modality,
        num_anchors=len(view),
        anchor_fingerprint=view.fingerprint,
        anchor_view=view.name,
        anchor_digest=view.digest,
    )


@torch.no_grad()
def measure(backbone: PreTrainedModel, view: AnchorView, processor: Any, config: RelativeConfig) -> None:
    """Fill in what no configuration says: the pooling that suits, D, and whether padding leaves embeddings alone."""
    reads_graphs = reads(backbone, "node")
    if reads_graphs != (view.modality == "node"):
        raise ConfigurationError(
            f"{type(backbone).__name__} takes {'a' if reads_graphs else 'no'} graph (edge_index), the anchors are "
            f"{view.modality}s. Nodes need a graph encoder such as hf_relreps.encoders.graphs.GraphEncoder, and graph "
            "encoders need nodes."
        )
    sample = min(view.samples, key=length)

    def embedded(samples: list[Any]) -> Tensor:
        ((rows, inputs),) = batches(samples, processor, len(samples), config.max_length)
        refuse_unknown_tokens(backbone, inputs)
        output, x_BD = embed(backbone, to_device(inputs, backbone.device), config)
        config.pooling = config.pooling or default_pooling(backbone, config.modality, output)
        config.padding = config.padding and not guesses_mask(backbone, output, inputs)
        return x_BD[list(rows).index(0)].float()

    with evaluating(backbone):
        x_D = embedded([sample])
        if view.modality in ("text", "audio"):
            together = [sample, longer(sample, 2), longer(sample, 3)]
            config.padding = config.padding and _bears_padding(x_D, lambda: embedded(together), backbone.dtype)
    config.embedding_size = x_D.shape[-1]


def _bears_padding(x_D: Tensor, beside_longer: Callable[[], Tensor], dtype: torch.dtype) -> bool:
    """Whether a sample's embedding stays the same beside a longer one; an encoder that breaks does not bear it."""
    try:
        difference_D = beside_longer() - x_D
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return bool(difference_D.abs().max() <= (1e-3 if dtype == torch.float32 else 5e-2) * x_D.abs().max())


def _chosen(config: RelativeConfig | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The projection, pooling, decoder and labels of `config`, with `settings` over them."""
    if config is None:
        return dict(settings)
    fields = [*PROJECTION_FIELDS, *DECODER_FIELDS, "pooling", "max_length", "tower"]
    if not {"num_labels", *LABEL_FIELDS} & set(settings):
        fields += LABEL_FIELDS
    return {name: copy.deepcopy(getattr(config, name)) for name in fields} | settings


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
