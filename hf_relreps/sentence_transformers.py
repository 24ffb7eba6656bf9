"""A `SentenceTransformer` that gives relative representations, so that different models share one index.

`relative` adds a last module to a model. Texts that one such model encoded can be searched with another, of another
width and training, as long as both were made with the same anchors and settings: nothing is trained or encoded again.

Shapes: B batch, D absolute size, R relative size.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_relreps.anchors import AnchorSet, AnchorView, as_view
from hf_relreps.backbones import building
from hf_relreps.configuration import RelativeEncoderConfig
from hf_relreps.errors import (
    AnchorError,
    AnchorIntegrityError,
    ConfigurationError,
    MissingExtraError,
    RelrepsError,
    StitchingError,
    UploadError,
    UploadIntegrityError,
)
from hf_relreps.inspection import refuse_long_tables, refuse_unknown_model
from hf_relreps.projection import CHECKED_ANCHORS, RelativeProjection, checked_rows, refuse_stale
from hf_relreps.sources import Source
from hf_relreps.space import PROJECTION_FIELDS, RelativeSpace, refuse_unknown_settings
from hf_relreps.uploads import (
    ADAPTER_FILE,
    Stored,
    inspect_processor,
    refuse_no_weights,
    refuse_not_finite,
    stored_sizes,
    weight_files,
)


try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Module
except ImportError as error:
    raise MissingExtraError(
        "hf_relreps.sentence_transformers needs sentence-transformers 6 or newer. Install it: pip install "
        "'hf_relreps[sentence-transformers]'."
    ) from error


NOT_RELATIVE = (
    "One of the models returns absolute embeddings, which no other model shares. Make it relative: "
    "hf_relreps.sentence_transformers.relative(model, anchors.view(name))."
)
MODULES_FILE = "modules.json"
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "WeightedLayerPooling")
NAMES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
SETTINGS_FILES = tuple(f"sentence_{name}_config.json" for name in NAMES)
# Settings of a Transformer module whose words nothing opens, and switches that no upload may set.
WORD_ARGUMENTS = ("transformer_task", "modality_config", "module_output_name", "processing_kwargs", "padding_side")
SWITCHES = ("use_safetensors", "trust_remote_code", "weights_only", "ignore_mismatched_sizes", "backend")
READING = re.compile(r"forward|get_\w+_features")  # methods of a model that a modality may be read by
OUTPUTS = (None, "token_embeddings", "sentence_embedding")  # what a transformer is called to give
SIDES = {"Dense": ("in_features", "out_features"), "LayerNorm": ("dimension",)}  # of the weights of modules
SAVED_FIELDS = ("embedding_size", "anchor_view", "anchor_digest", "format_version")


class RelativeEmbedding(Module):
    """The last module of a `SentenceTransformer`: absolute embeddings (B, D) -> relative representations (B, R).

    It is saved with the embeddings of the anchors and the raw anchors beside them.

    Args:
        config: Holds the space, and what identifies the anchors.
        anchors: The raw anchors.

    Example:
        Uses the names that the page `docs/api/sentence_transformers.md` makes.

        ```python
        >>> from hf_relreps.sentence_transformers import RelativeEmbedding, relative
        >>> model = relative(old_model, anchors.view("en"))
        >>> model[-1].get_embedding_dimension()
        40
        >>> model.save("relative-minilm")  # each module by its own `save`
        >>> RelativeEmbedding.load("relative-minilm", subfolder="2_RelativeEmbedding").anchors.views
        ['en', 'fr']

        ```
    """

    config_file_name = "relreps_config.json"

    def __init__(self, config: RelativeEncoderConfig, anchors: AnchorSet) -> None:
        super().__init__()
        self.config = config
        self.anchors = anchors
        self.projection = RelativeProjection(config)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Put the relative representation in the place of ``sentence_embedding``."""
        features["sentence_embedding"] = self.projection(features["sentence_embedding"])
        return features

    def get_embedding_dimension(self) -> int:
        """R, the number of anchors times the number of similarities."""
        return self.projection.space.size

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for the file that is saved."""
        return {name: getattr(self.config, name) for name in SAVED_FIELDS} | {"space": self.projection.space.to_dict()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.projection.space})"

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the settings, the anchors' embeddings and the raw anchors into a folder."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=True)
        self.anchors.save_pretrained(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:  # type: ignore[override]
        """Read what `save` wrote, from a folder or the Hub.

        Raises:
            UploadError: If the settings are missing.
            AnchorIntegrityError: If the anchors are not those that the settings name.
        """
        names = ("token", "cache_folder", "revision", "local_files_only")
        place = {"subfolder": subfolder} | {name: kwargs[name] for name in names if name in kwargs}
        content = cls.load_config(model_name_or_path, **place)
        if not content:
            raise UploadError(f"{model_name_or_path} has no {subfolder}/{cls.config_file_name}. Save the model again.")
        config = RelativeEncoderConfig.from_dict(content)
        folder = cls.load_dir_path(model_name_or_path, **place)
        anchors = AnchorSet.load(Source.of(str(folder)))
        fingerprint = config.space.fingerprint
        if anchors.fingerprint != fingerprint:
            raise AnchorIntegrityError(
                f"{model_name_or_path} was built on anchors {fingerprint}, but its folder has {anchors.fingerprint}. "
                "Pull it again."
            )
        file = cls.load_file_path(model_name_or_path, filename=SAFE_WEIGHTS_NAME, **place)
        if file is None:
            raise UploadError(
                f"{model_name_or_path} has no {subfolder}/{SAFE_WEIGHTS_NAME}; pickle files are not opened. Save the "
                "model again."
            )
        refuse_no_weights(Path(file), Source.of(str(folder)), SAFE_WEIGHTS_NAME)
        sides = (config.space.num_anchors, config.embedding_size or 1)
        _refuse_more_than_stored(sides, stored_sizes([Path(file)]).numbers, f"{model_name_or_path}/{subfolder}")
        module = cls(config, anchors)
        try:
            module.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise UploadIntegrityError(
                f"{model_name_or_path} does not contain the anchor embeddings that its settings describe: {error}. "
                "Pull it again."
            ) from error
        return module


def relative(
    model: SentenceTransformer | str | Path,
    anchors_view: AnchorView | AnchorSet,
    *,
    prompt_name: str | None = None,
    batch_size: int = 64,
    **settings: Any,
) -> SentenceTransformer:
    """A `SentenceTransformer` that returns relative representations, made from an ordinary one.

    Args:
        model: A model, or its name.
        anchors_view: The anchors as this model reads them: texts; or a set with one view.
        prompt_name: Prompt of the model to encode the anchors with, and texts that `encode` is given none for; the
            default one of the model if left out.
        batch_size: Anchors in a batch.
        **settings: Fields of `RelativeSpace`: transform, similarity, basis_ridge, ...

    Raises:
        AnchorError: If the anchors are no texts, or the model is relative already.
        ConfigurationError: If a setting does not exist or has no meaning, or the model has a `truncate_dim`.

    Example:
        Uses the names that the page `docs/api/sentence_transformers.md` makes.

        ```python
        >>> from hf_relreps.sentence_transformers import check_same_space, relative
        >>> old = relative(old_model, anchors.view("en"))  # or "sentence-transformers/all-MiniLM-L6-v2"
        >>> new = relative(new_model, anchors.view("en"))  # or "sentence-transformers/all-mpnet-base-v2"
        >>> check_same_space(old, new)
        >>> index = old.encode(test["en"])
        >>> new.similarity(new.encode(["a game of cards"]), index).shape  # the index stays as it is
        torch.Size([1, 60])

        ```
    """
    anchors_view = as_view(anchors_view)
    model = model if isinstance(model, SentenceTransformer) else load_with_module(str(model))
    if anchors_view.modality != "text":
        raise AnchorError(
            f"A SentenceTransformer reads texts, but view {anchors_view.name!r} contains {anchors_view.modality}s. "
            "Use a view of texts."
        )
    refuse_truncated(model)
    if _relative_module(model) is not None:
        raise AnchorError(
            "The model already returns relative representations. Start from the original SentenceTransformer."
        )
    how: dict[str, Any] = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
    how |= {} if prompt_name is None else {"prompt_name": prompt_name}
    encode: Any = model.encode
    x_AD: Tensor = encode(list(anchors_view.samples), **how)
    refuse_unknown_settings(settings, set(PROJECTION_FIELDS), "A relative space")
    config = RelativeEncoderConfig(
        space=RelativeSpace(fingerprint=anchors_view.fingerprint, num_anchors=len(anchors_view), **settings),
        embedding_size=x_AD.shape[1],
        anchor_view=anchors_view.name,
        anchor_digest=anchors_view.digest,
    )
    module = RelativeEmbedding(config, anchors_view.anchors).to(x_AD.device)
    module.projection.set_anchors(x_AD.float())
    default = model.default_prompt_name if prompt_name is None else prompt_name  # samples as the anchors
    prompts: Any = {"prompts": model.prompts, "default_prompt_name": default}
    return SentenceTransformer(modules=[*model, module], device=str(model.device), **prompts).eval()


def load_relative(name: str | Path, **arguments: Any) -> SentenceTransformer:
    """Load a saved relative model without ``trust_remote_code``: no code from the upload runs.

    Args:
        name: Folder or repository.
        **arguments: As for `SentenceTransformer`: device, revision, token, ...

    Raises:
        StaleAnchorsError: If the stored anchor embeddings are not the model's own: see `check_anchors`.

    Example:
        Uses the names that the page `docs/api/sentence_transformers.md` makes.

        ```python
        >>> from hf_relreps.sentence_transformers import load_relative, relative
        >>> relative(old_model, anchors.view("en")).save("relative-minilm")
        >>> load_relative("relative-minilm").encode(["a game of cards"]).shape
        (1, 40)

        ```
    """
    model = load_with_module(name, RelativeEmbedding, **arguments)
    check_anchors(model)
    return model


@torch.no_grad()
def check_anchors(model: SentenceTransformer, *, k: int = CHECKED_ANCHORS) -> float:
    """Encode a few anchors again: whether the stored embeddings are this model's own.

    They are not where the model was trained on, or where its tokenizer or prompt has changed. Then every relative
    representation is wrong, though nothing fails. `load_relative` and `check_same_space` do this.

    Args:
        model: Made by `relative`.
        k: How many anchors, spread over the set.

    Returns:
        The largest distance between the relative representation of a stored and a new embedding, as a share of the
        stored one's length.

    Raises:
        StaleAnchorsError: If that is more than rounding explains.

    Example:
        Uses the names that the page `docs/api/sentence_transformers.md` makes.

        ```python
        >>> from hf_relreps.sentence_transformers import check_anchors, relative
        >>> check_anchors(relative(old_model, anchors.view("en"))) < 1e-3
        True

        ```
    """
    module = _relative_module(model)
    if module is None:
        raise StitchingError(NOT_RELATIVE)
    view = module.anchors.view(module.config.anchor_view)
    rows = checked_rows(len(view), k)
    anchors_AD = module.projection.anchors_AD
    stored_KR = module.projection(anchors_AD[rows.to(anchors_AD.device)]).cpu().double()
    encode: Any = model.encode
    own_KR = encode([view.samples[i] for i in rows], convert_to_tensor=True, show_progress_bar=False).cpu().double()
    return refuse_stale(
        stored_KR,
        own_KR,
        model.dtype or torch.float32,
        "this model",
        "The model was trained on after they were encoded, or its tokenizer or prompt has changed. Make it relative "
        "again: relative(SentenceTransformer(modules=list(model)[:-1]), anchors.view(name)).",
    )


def load_with_module(name: str | Path, module: type[nn.Module] | None = None, **arguments: Any) -> SentenceTransformer:
    """A saved model, with one module of this library whose class is ours and not the upload's.

    Raises:
        ConfigurationError: If a configuration in it names another model, asks for more than its weights justify, or
            truncates what the module of this library gives.
        UploadError: If it has modules, arguments or files that are not known, or cannot read a text.
    """
    own = {} if module is None else {f"{module.__module__}.{module.__name__}": module}
    source = _source_of(name, arguments)
    stored = _inspect(source, set(own))
    how: dict[str, Any] = arguments | {"trust_remote_code": False}
    how["model_kwargs"] = {"use_safetensors": True} | (arguments.get("model_kwargs") or {})
    if source.commit:
        how["revision"] = source.commit
    try:
        with building(stored):
            model = SentenceTransformer._load_with_module_classes(source.name, own, **how)
        if module is not None:
            refuse_truncated(model)
        refuse_not_finite(model, str(source))
        if model.supports("text"):
            # Names that modules hand on, and the token that pads the shorter text, are looked at only then.
            model.encode(["a", "a a"], show_progress_bar=False)
        return model
    except (RelrepsError, torch.OutOfMemoryError):
        raise
    except ImportError as error:  # a backend, or a quantization that a module's configuration asks for
        raise UploadError(
            f"{source} cannot be loaded here: {str(error).rstrip('.')}. Install what it needs, or use an upload "
            "without quantization_config."
        ) from error
    except RuntimeError as error:  # weights of other shapes, also from one module to the next
        raise UploadIntegrityError(
            f"The weights of {source} do not match its configuration: {error}. Pull it again, or save the model again."
        ) from error
    except (TypeError, AttributeError, LookupError, StrictDataclassError) as error:  # settings of another type
        raise UploadError(
            f"{source} cannot be read as a SentenceTransformer: {type(error).__name__}: {error}. A file of settings "
            "was changed: pull it again, or save the model again."
        ) from error


def _source_of(name: str | Path, arguments: Mapping[str, Any]) -> Source:
    place: dict[str, Any] = {"cache_dir": arguments.get("cache_folder")} | dict(arguments)
    full = str(name)
    if not Path(full).exists() and "/" not in full:  # as sentence-transformers reads a short name
        full = f"sentence-transformers/{full}"
    return Source.of(full, **place).pinned()


def _inspect(source: Source, own: set[str]) -> Stored:
    """Read what `SentenceTransformer` is about to read; what its files of weights hold.

    Raises:
        ConfigurationError: If a configuration names another model.
        UploadError: If there are modules, arguments or files that are not known.
    """
    stored = Stored()
    for kind, place in _modules_of(source, own):
        if kind != "Transformer":
            weights, held = place.file(SAFE_WEIGHTS_NAME), Stored()
            if weights is not None:
                refuse_no_weights(weights, place, SAFE_WEIGHTS_NAME)
                held = stored_sizes([weights])
            settings = place.json("config.json") or {}
            wanted = tuple(settings.get(name, 1) for name in SIDES.get(kind, ()))
            if weights is not None or wanted:
                _refuse_more_than_stored(wanted, held.numbers, f"config.json of {place}")
            stored += held
            continue
        if place.file(ADAPTER_FILE) is not None:
            raise UploadError(
                f"{place} contains {ADAPTER_FILE}, which makes transformers load another model. {_hand_over(source)}"
            )
        refuse_unknown_model(place.json("config.json"), f"config.json of {place}")
        inspect_processor(place)
        for file in SETTINGS_FILES:
            _refuse_arguments(place.json(file) or {}, f"{file} of {place}", source)
        held = stored_sizes(weight_files(place))
        refuse_long_tables(place.json("config.json"), held.numbers, f"config.json of {place}")
        stored += held
    return stored


def _modules_of(source: Source, own: set[str]) -> Iterator[tuple[str, Source]]:
    """Each module's class, by its last name, and the folder that it lies in."""
    file = source.file(MODULES_FILE)
    if file is None:
        yield "Transformer", source
        return
    try:
        modules = json.loads(file.read_text("utf-8"))
        named = [(str(module["type"]), str(module["path"])) for module in modules]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UploadError(f"{MODULES_FILE} of {source} cannot be read: {error!r:.100}. Pull it again.") from error
    for kind, path in named:
        is_known = kind.startswith("sentence_transformers.") and kind.rpartition(".")[2] in KNOWN_MODULES
        if not (is_known or kind in own) or not re.fullmatch(r"\w[\w.-]*|", path):
            raise UploadError(
                f"{source} has a module of type {kind!r:.80} in {path!r:.40}, expected one of "
                f"{', '.join(KNOWN_MODULES)} in a folder of its own. {_hand_over(source)}"
            )
        yield kind.rpartition(".")[2], source.below(path)


def _refuse_arguments(settings: Mapping[str, Any], where: str, source: Source) -> None:
    """Raise `UploadError` for arguments of transformers' loaders that could name other things."""
    for name, value in settings.items():
        arguments = value if isinstance(value, Mapping) and name.endswith(("_args", "_kwargs")) else {name: value}
        for argument, given in arguments.items():
            plain = given is None or isinstance(given, bool | int | float) or argument in WORD_ARGUMENTS
            known = argument != "modality_config" or _calls_known_methods(given)
            known = known and (
                argument != "module_output_name" or (isinstance(given, str | None) and given in OUTPUTS)
            )
            if argument in SWITCHES or not plain or not known:
                raise UploadError(f"{where} has {argument}={given!r:.80}, which is not known. {_hand_over(source)}")


def _calls_known_methods(modalities: Any) -> bool:
    """Whether the methods of the model that would be called are those that read samples."""
    if not isinstance(modalities, Mapping):
        return modalities is None
    named = [about.get("method") if isinstance(about, Mapping) else None for about in modalities.values()]
    return all(isinstance(name, str) and READING.fullmatch(name) for name in named)


def _refuse_more_than_stored(sides: tuple[Any, ...], stored: int, where: str) -> None:
    """Raise `UploadIntegrityError` if a module would be made with a weight of these sides and its file holds less."""
    if not all(isinstance(side, int) and side > 0 for side in sides) or math.prod(sides) > stored:
        shape = " x ".join(map(str, sides))
        raise UploadIntegrityError(
            f"{where} asks for a weight of {shape:.80} numbers, but its file contains {stored}: the weights do not "
            "match the configuration. Pull it again."
        )


def _hand_over(source: Source) -> str:
    return f"If you trust it, load it yourself and pass it: relative(SentenceTransformer({source.name!r}), view)."


def refuse_truncated(model: SentenceTransformer) -> None:
    """Raise `ConfigurationError` if a model cuts its embeddings after its last module, which would be ours."""
    if model.truncate_dim is not None:
        raise ConfigurationError(
            f"The model has truncate_dim={model.truncate_dim}, which would truncate the relative representations. Set "
            "model.truncate_dim = None, and encode again what was encoded with it."
        )


def check_same_space(model: SentenceTransformer, other: SentenceTransformer) -> None:
    """Raise `StitchingError` unless both give relative representations that may be compared with one another.

    Raises:
        StaleAnchorsError: If the stored anchor embeddings of one are not its own: see `check_anchors`.

    Example:
        Uses the names that the page `docs/api/sentence_transformers.md` makes.

        ```python
        >>> from hf_relreps.sentence_transformers import check_same_space, relative
        >>> check_same_space(relative(old_model, anchors.view("en")), relative(new_model, anchors.view("en")))
        >>> check_same_space(relative(old_model, anchors.view("en")), new_model)
        Traceback (most recent call last):
        hf_relreps.errors.StitchingError: ...

        ```
    """
    spaces = []
    for one in (model, other):
        module = _relative_module(one)
        if module is None:
            raise StitchingError(NOT_RELATIVE)
        check_anchors(one)
        spaces.append(module.projection.space)
    left, right = spaces
    if not left.fits(right):
        raise StitchingError(
            f"The models cannot share an index: one returns relative representations in {left}, the other in {right}. "
            "Build both with views of one AnchorSet and the same settings."
        )


def _relative_module(model: SentenceTransformer) -> RelativeEmbedding | None:
    return next((module for module in model if isinstance(module, RelativeEmbedding)), None)
