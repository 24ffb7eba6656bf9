"""One upload, several doors: how a relative model lies in a folder, and how each part is loaded from it.

::

    config.json                     of the whole
    model.safetensors.index.json    which part's file holds which weight
    encoder/                        config.json, model.safetensors: AutoModel and RelativeModel read only this
    decoder/                        config.json, model.safetensors: RelativeDecoder reads only this
    anchors/                        anchors.parquet, anchor_set.json
    tokenizer.json, ...             the processor's files

An upload of one part has the same layout without the other. Nothing is stored twice.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import AutoProcessor, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from hf_relreps.anchors import AnchorSet
from hf_relreps.configuration import RelativeConfig
from hf_relreps.errors import AnchorError, AnchorIntegrityError, RelrepsError, UploadError
from hf_relreps.sources import Source


logger = logging.get_logger(__name__)

PARTS = {"encoder": "RelativeModel", "decoder": "RelativeDecoder"}


class RelativeUpload(PreTrainedModel):
    """A whole model or one of its parts, as it is saved, loaded and pushed.

    It knows where it came from, so that what a part seldom needs (raw anchors, the processor) is fetched only when
    asked for.
    """

    config_class = RelativeConfig
    config: RelativeConfig

    part: ClassVar[str | None] = None  # a key of PARTS; None for a whole model

    # The wrapped model answers for its attention; the rest has none, so any implementation will do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    _source: Source | None = None
    _anchors: AnchorSet | None = None
    _processor: Any = None

    @property
    def anchors(self) -> AnchorSet:
        """The raw anchors, fetched from the upload at the first call.

        Raises:
            AnchorError: If the model was built by hand and never given any.
            AnchorIntegrityError: If the upload's anchors are not those that its configuration names.
        """
        if self._anchors is None:
            if self._source is None:
                raise AnchorError(
                    f"This {type(self).__name__} has no anchor set. Build it with from_encoder(encoder, "
                    "anchors.view(name), processor), or load it from an upload."
                )
            anchors = AnchorSet.load(self._source)
            refuse_other_anchors(anchors, self.config, self._source)
            self._anchors = anchors
        return self._anchors

    @property
    def processor(self) -> Any:
        """The tokenizer or image processor of the encoder, fetched from the upload at the first call.

        Raises:
            UploadError: If none was given and the upload holds none.
        """
        if self._processor is None:
            if self._source is None:
                raise UploadError(
                    f"This {type(self).__name__} has no processor. Give one: from_encoder(encoder, view, processor), "
                    "or encode(samples, processor)."
                )
            self._processor = load_processor(self._source)
        return self._processor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load from a folder or a repository: the whole, or with a part's class only that part's files.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            *args: As for any `PreTrainedModel`.
            **kwargs: As for any `PreTrainedModel`: `revision`, `token`, `dtype`, `device_map`, ...

        Raises:
            UploadError: If the upload lacks the part, or is not one of this library.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        root, kwargs["subfolder"] = cls._folders(kwargs.pop("subfolder", None) or "")
        wants_info = kwargs.pop("output_loading_info", False)
        name = str(pretrained_model_name_or_path)
        try:
            model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        except RelrepsError:
            raise
        except (OSError, ValueError) as error:
            raise cls._explained(Source.of(name, **kwargs), root, error) from error
        _refuse_missing(info["missing_keys"], name)
        commit = getattr(model.config, "_commit_hash", None)
        model._came_from(Source.of(name, **kwargs | ({"revision": commit} if commit else {})).below(root))
        return (model, info) if wants_info else model

    @classmethod
    def _folders(cls, subfolder: str) -> tuple[str, str]:
        """Folder of the upload inside the repository, and folder of what this class reads."""
        subfolder = subfolder.strip("/")
        if cls.part is None:
            return subfolder, subfolder
        root = subfolder.removesuffix(cls.part).rstrip("/") if subfolder.split("/")[-1] == cls.part else subfolder
        return root, f"{root}/{cls.part}".lstrip("/")

    @classmethod
    def _explained(cls, source: Source, root: str, error: Exception) -> Exception:
        """What is wrong with an upload that did not load, in words that say what to do."""
        config = source.below(root).json("config.json")
        if config is None:
            return UploadError(f"{source} holds no config.json: it is empty or no model. {error}")
        if config.get("model_type") != RelativeConfig.model_type:
            return UploadError(
                f"{source} is an ordinary {config.get('model_type')} model, not a relative one. Make it relative: "
                f"{cls.__name__}.from_encoder({source.name!r}, anchors.view(name)), or stitch({source.name!r}, decoder)."
            )
        if cls.part and source.below(root).file(f"{cls.part}/config.json") is None:
            other = next(part for part in PARTS if part != cls.part)
            return UploadError(
                f"{source} holds no {cls.part}, only its {other}. Take the {cls.part} from another upload that shares "
                "its anchors: stitch(encoder, decoder) takes both names."
            )
        return error

    def _came_from(self, source: Source) -> None:
        self._source = source

    def _carries(self, anchors: AnchorSet | None, processor: Any) -> None:
        """Remember what `save_pretrained` has to write beside the weights."""
        self._anchors = anchors if anchors is not None else self._anchors
        self._processor = processor if processor is not None else self._processor

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the upload's layout: each part with its configuration, the anchors and the processor.

        Args:
            save_directory: Folder; made if it does not exist.
            is_main_process: Whether this process writes what is not weights.
            state_dict: Weights to save in place of the model's own.
            **kwargs: As for any `PreTrainedModel`: `max_shard_size`, `push_to_hub`, ...
        """
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        root = Path(save_directory)
        state_dict = self.state_dict() if state_dict is None else state_dict
        parts = [self.part] if self.part else list(PARTS)
        for part in parts:
            own = state_dict if self.part else {k: v for k, v in state_dict.items() if k.startswith(f"{part}.")}
            super().save_pretrained(root / part, is_main_process=is_main_process, state_dict=own, **kwargs)
        if is_main_process:
            self.save_all_but_weights(root)
            _write_index(root, parts)

    def save_all_but_weights(self, save_directory: str | Path) -> None:
        """Write the configurations of the whole and of each part, the anchors and the processor."""
        root = Path(save_directory)
        for part in [self.part] if self.part else list(PARTS):
            config = copy.deepcopy(self.config) if part == "encoder" else self.config.without_encoder()
            config.architectures = [PARTS[part]]
            (root / part).mkdir(parents=True, exist_ok=True)
            config.save_pretrained(root / part)
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(root)
        self._save_companions(root)

    def _save_companions(self, root: Path) -> None:
        if self._anchors is not None or self._source is not None:
            self.anchors.save_pretrained(root)
        try:
            processor = self.processor
        except UploadError:
            return  # a decoder alone, or a model built by hand
        processor.save_pretrained(root)


def load_processor(source: Source) -> Any:
    """The tokenizer, image processor or feature extractor that lies in an upload or an ordinary model.

    Raises:
        UploadError: If there is none.
    """
    try:
        return AutoProcessor.from_pretrained(source.name, **source.arguments, **source.subfolder_argument)
    except (OSError, ValueError) as error:
        raise UploadError(
            f"{source} holds no processor (tokenizer or image processor) that transformers knows. "
            f"Give one where the model is used, or save it there: processor.save_pretrained(folder). {error}"
        ) from error


def refuse_other_anchors(anchors: AnchorSet, config: RelativeConfig, where: Any) -> None:
    """Raise `AnchorIntegrityError` if `anchors` are not those that a configuration names."""
    if anchors.fingerprint != config.anchor_fingerprint:
        raise AnchorIntegrityError(
            f"The anchors of {where} have fingerprint {anchors.fingerprint}, its configuration names "
            f"{config.anchor_fingerprint}: the folder is stale or was changed. Pull it again, or save the model anew."
        )
    view = config.anchor_view
    if view in anchors.views and config.anchor_digest not in (None, anchors.view(view).digest):
        raise AnchorIntegrityError(
            f"View {view!r} of {where} has digest {anchors.view(view).digest}, its configuration names "
            f"{config.anchor_digest}: the encoder was built on other samples. Pull it again, or save the model anew."
        )


def _refuse_missing(missing_keys: set[str], name: str) -> None:
    if not missing_keys:
        return
    parts = sorted({key.split(".")[0] for key in missing_keys} & set(PARTS))
    first = sorted(missing_keys)[0]
    raise UploadError(
        f"{name} lacks {len(missing_keys)} weights, the first is {first}"
        + (f": it holds no complete {' and no complete '.join(parts)}. " if parts else ". ")
        + "They would have been random. For a whole model combine parts: stitch(encoder, decoder); for a new decoder "
        "fine-tune: RelativeModelForSequenceClassification.from_encoder(encoder, ...)."
    )


def _write_index(root: Path, parts: list[str]) -> None:
    """The index at the root points into the parts' folders, so that a whole model loads from them."""
    from safetensors import safe_open

    weight_map, total_size = {}, 0
    for part in parts:
        part_index = root / part / SAFE_WEIGHTS_INDEX_NAME
        files = [SAFE_WEIGHTS_NAME]
        if part_index.is_file():
            files = sorted(set(json.loads(part_index.read_text("utf-8"))["weight_map"].values()))
        for file in files:
            total_size += (root / part / file).stat().st_size
            with safe_open(root / part / file, framework="pt") as weights:
                weight_map |= {key: f"{part}/{file}" for key in weights.keys()}  # noqa: SIM118  not a dict
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (root / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
