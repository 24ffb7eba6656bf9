"""`RelativePreTrainedModel`: how a whole model or one of its parts is loaded, saved, pushed and described.

Where the files of an upload lie is told in `hf_relreps.uploads`.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import CommitInfo, ModelCard
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_relreps.anchor_files import FOLDER as ANCHORS_FOLDER
from hf_relreps.anchors import AnchorSet
from hf_relreps.backbones import building_of
from hf_relreps.configuration import AnyRelativeConfig, RelativeConfig, RelativeDecoderConfig, RelativeEncoderConfig
from hf_relreps.errors import (
    AnchorError,
    AnchorIntegrityError,
    ConfigurationError,
    RelrepsError,
    UploadError,
    UploadIntegrityError,
)
from hf_relreps.model_card import PICTURE_FILE, CardFacts, merged, model_card, model_tags
from hf_relreps.placement import in_memory, is_offloaded, refuse_empty
from hf_relreps.quantization import dtype_to_compute, quantizing, refuse_float8
from hf_relreps.saving import saving_beside, write_text
from hf_relreps.sources import CARD_FILE, Source, publish
from hf_relreps.space import require_one_of
from hf_relreps.uploads import (
    EXTRA_STATE,
    OWN_FILES,
    PARTS,
    explain,
    fetch_part,
    load_anchors,
    load_processor,
    locate,
    obsolete_files,
    refuse_missing,
    refuse_not_finite,
    refuse_other_anchors,
    split_save_arguments,
    write_config,
    write_index,
    write_stub,
)


logger = logging.get_logger(__name__)

CARD_ROWS = 5  # of the anchors that a card shows


class RelativePreTrainedModel(PreTrainedModel):
    """A whole model or one of its parts, as it is saved, loaded and pushed.

    It knows where it came from, so that what a part seldom needs (raw anchors, the processor) is fetched only when
    asked for.
    """

    config: Any

    part: ClassVar[str | None] = None  # a key of PARTS; None for a whole model
    card_facts: CardFacts = CardFacts()  # what its author adds to the card
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever the gradient accumulation

    # The wrapped model answers for its attention and its experts; the rest has none: any implementation will do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    _source: Source | None = None
    _anchors: AnchorSet | None = None
    _processor: Any = None

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def init_weights(self) -> None:
        """Tie weights. They come initialised: a wrapped model does so itself, and a load fills the rest."""
        self.tie_weights(recompute_mapping=False)

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that it holds by their names."""
        raise NotImplementedError

    # -- What travels with it

    @property
    def anchors(self) -> AnchorSet:
        """The raw anchors, fetched from the upload at the first call.

        They can be set, where an upload was pushed without them: the same set, as its fingerprint and digest tell.

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
            digest = getattr(self.config, "anchor_digest", None)
            self._anchors = load_anchors(self._source, self.config.space, self.config.anchor_view, digest)
        return self._anchors

    @anchors.setter
    def anchors(self, anchors: AnchorSet) -> None:
        self._anchors = refuse_other_anchors(
            anchors,
            "The set given",
            self.config.space,
            self.config.anchor_view,
            getattr(self.config, "anchor_digest", None),
        )

    @property
    def processor(self) -> Any:
        """The tokenizer, image processor or feature extractor, fetched from the upload at the first call.

        It can be set; that of nodes must be, with their graph, after a load.

        Raises:
            UploadError: If none was given and the upload has none.
        """
        if self._processor is None:
            if self.config.modality == "node":
                raise UploadError(
                    f"This {type(self).__name__} reads the nodes of a graph, and uploads do not contain the graph. "
                    "Set it: model.processor = GraphReader(x, edge_index)."
                )
            if self._source is None:
                raise UploadError(
                    f"This {type(self).__name__} has no processor. Pass one: from_encoder(encoder, view, processor), "
                    "or encode(samples, processor)."
                )
            image_backend = getattr(self.config, "image_backend", None)
            self._processor = self._adopt(load_processor(self._source, image_backend))
        return self._processor

    @processor.setter
    def processor(self, processor: Any) -> None:
        self._processor = None if processor is None else self._adopt(processor)

    def _adopt(self, processor: Any) -> Any:
        """A processor as it is to be used here: as it is, unless it is an encoder's."""
        return processor

    def carry(self, anchors: AnchorSet | None, processor: Any) -> None:
        """Remember what `save_pretrained` has to write beside the weights."""
        self._anchors = anchors if anchors is not None else self._anchors
        self._processor = self._adopt(processor) if processor is not None else self._processor

    @property
    def has_raw_anchors(self) -> bool:
        """Whether the anchors are at hand or can be fetched."""
        return self._anchors is not None or self._source is not None

    # -- Saving

    def save_pretrained(  # type: ignore[override]  # what it does not name itself it hands on
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save all parts with their configurations, the anchors and the processor.

        Existing files are replaced only when all is written: an interrupted save leaves the previous one.

        Args:
            save_directory: Folder; made if it does not exist.
            is_main_process: Whether this process writes what is not weights.
            state_dict: Weights to save in place of the model's own.
            **kwargs: As for any `PreTrainedModel`: `max_shard_size`, `push_to_hub`, ...

        Raises:
            ConfigurationError: If a keyword would make files that cannot be loaded again, if the encoder's weights are
                quantized in a way that cannot be stored, or if weights lie on the
                meta device, which holds no values; nothing is written then.
            StitchingError: If the parts do not fit together; nothing is written then.
        """
        wants_push = kwargs.pop("push_to_hub", False)
        push_arguments, how = split_save_arguments(kwargs)
        root = Path(save_directory)
        refuse_empty(self, f"this {type(self).__name__}")
        self._prepare_save()
        if wants_push:
            push_arguments = {name: value for name, value in push_arguments.items() if value is not None}
            self.push_to_hub(push_arguments.pop("repo_id", root.name), **push_arguments)
        state_dict = self.state_dict() if state_dict is None else self._with_own_anchors(state_dict)
        referred = self._refer_to_base(state_dict)
        with saving_beside(root, obsolete_files(root, self.parts)) if is_main_process else nullcontext(root) as place:
            for name in self.parts:
                prefix = "" if self.part else f"{name}."
                own = {k: v for k, v in state_dict.items() if k.startswith(prefix) and k not in referred}
                super().save_pretrained(place / name, is_main_process=is_main_process, state_dict=own, **how)
            if is_main_process:
                self.save_all_but_weights(place)
                write_index(place, self.parts)

    def save_all_but_weights(self, save_directory: str | Path) -> None:
        """Write the configurations of the whole and of each part, the anchors and the processor."""
        root = Path(save_directory)
        for name, part in self.parts.items():
            part.config.architectures = [PARTS[name]]
            part.config.dtype = str(part.dtype).removeprefix("torch.")
            write_config(part.config, root / name)
        self.config.architectures = [type(self).__name__.removeprefix("FSDP")]  # which FSDP2 puts before it
        write_config(self.config, root)
        write_stub(root)
        if self.has_raw_anchors:
            self._save_anchors(root)
        try:
            processor = self.processor
        except UploadError:
            return  # a decoder alone, or a model built by hand
        processor.save_pretrained(root)

    def _save_anchors(self, root: Path) -> None:
        try:
            anchors = self.anchors
        except UploadError as error:  # pushed without samples, or out of reach now
            logger.warning("The anchor samples are not saved with the model. %s", error)
            return
        anchors.save_pretrained(root)

    def _prepare_save(self) -> None:
        """Renew or check what is about to be handed on: nothing, unless there is an encoder."""

    def _refer_to_base(self, state_dict: Mapping[str, Tensor]) -> set[str]:
        """Names of the weights that need not be stored, since a base holds them."""
        return set()

    def _with_own_anchors(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Weights that were gathered before the save, with the anchors as they are now."""
        own = {name: buffer for name, buffer in self.named_buffers() if name.endswith("projection.anchors_AD")}
        extra = {name: state for name, state in self._extra_states().items() if name not in state_dict}
        return state_dict | {name: buffer for name, buffer in own.items() if name in state_dict} | extra

    def _extra_states(self) -> dict[str, Tensor]:
        prefixes = {part: "" if self.part else f"{name}." for name, part in self.parts.items()}
        return {f"{prefix}{EXTRA_STATE}": part.get_extra_state() for part, prefix in prefixes.items()}

    # -- The Hub

    def push_to_hub(  # type: ignore[override]  # transformers' own is wrapped beyond recognition
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: list[str] | None = None,
        anchors: str = "samples",
    ) -> CommitInfo:
        """Push the upload as one commit, with its card. What you wrote into the card by hand is kept.

        The raw anchor samples are published with it, for everybody who can read the repository. If they must stay
        private, ``anchors="digest"`` leaves them out. Such a part can be stitched by anybody who has the same anchors,
        identified by their fingerprint. Nobody else can encode these anchors with another encoder, or check that the
        stored anchor embeddings match the encoder.

        Args:
            repo_id: Repository; made if it does not exist.
            commit_message: Title of the commit.
            commit_description: The rest of its message.
            private: Whether a new repository is private.
            token: Of a user with write access; that of ``hf auth login`` if left out.
            revision: Branch; made if it does not exist.
            create_pr: Open a pull request instead.
            max_shard_size: Largest file of weights.
            tags: More tags for the card.
            anchors: ``samples``, or ``digest`` for no more of them than fingerprint, digest and embeddings.

        Raises:
            ConfigurationError: If `anchors` is another word.
            UploadError: If the token may not write there, or others kept pushing at the same time.
        """

        def save(folder: Path, repo_id: str) -> None:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            self._save_picture(folder)
            if anchors == "digest":
                shutil.rmtree(folder / ANCHORS_FOLDER, ignore_errors=True)

        def card(repo_id: str, existing: str | None) -> str:
            if existing is None and anchors == "samples":
                self._tell_what_travels(repo_id)
            return merged(self._card(repo_id, CardFacts(tags=tags or ()), rows), existing)

        require_one_of("anchors", anchors, ("samples", "digest"))
        rows = 0 if anchors == "digest" else CARD_ROWS
        return publish(
            repo_id,
            save,
            card,
            own_files=OWN_FILES,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    def _tell_what_travels(self, repo_id: str) -> None:
        """Before the first push to a repository: that the anchors are samples, and how to leave them out."""
        try:
            anchors = self.anchors
        except (AnchorError, UploadError):  # built by hand, or pushed without samples
            return
        logger.warning(
            f"The raw samples of {len(anchors)} anchors ({', '.join(anchors.views)}) are published in {repo_id}, for "
            "everybody who can read it. If they must stay private, delete that repository and push with "
            "anchors='digest'."
        )

    def make_card(self, repo_id: str, more: CardFacts | None = None) -> ModelCard:
        """The card as it would be pushed to a new repository.

        Args:
            repo_id: Repository name to show in the code example.
            more: Facts for this card alone, beside those of `card_facts`.
        """
        return self._card(repo_id, more)

    def _card(self, repo_id: str, more: CardFacts | None, rows: int = CARD_ROWS) -> ModelCard:
        facts = (more or CardFacts()).with_defaults(self.card_facts)
        try:
            anchors = self.anchors.summary(rows)
        except AnchorIntegrityError:
            raise
        except (AnchorError, UploadError):  # built by hand, or pushed without samples
            space = self.config.space
            anchors = {"num_anchors": space.num_anchors, "fingerprint": space.fingerprint or ""}
        return model_card(repo_id, self.config.to_dict(), anchors, facts)

    def write_card(
        self,
        folder: str | Path,
        repo_id: str | None = None,
        existing: str | None = None,
        more: CardFacts | None = None,
    ) -> None:
        """Write the card into a folder.

        Args:
            folder: Where README.md goes.
            repo_id: As it stands in the code to paste; the folder if left out.
            existing: A card whose own words stay; the one in the folder if left out.
            more: Facts for this card alone, beside those of `card_facts`.
        """
        file = Path(folder, CARD_FILE)
        if existing is None and file.is_file():
            existing = file.read_text("utf-8-sig")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, merged(self.make_card(repo_id or str(folder), more), existing))
        self._save_picture(Path(folder))

    @property
    def model_tags(self) -> list[str]:  # type: ignore[override]  # told from the configuration, not set
        """The tags by which others find the upload; the Trainer puts them into the card that it writes."""
        return [*model_tags(self.config.to_dict()), *self.card_facts.tags]

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Add tags to the card."""
        more = [tags] if isinstance(tags, str) else tags
        self.card_facts = replace(self.card_facts, tags=list(dict.fromkeys([*self.card_facts.tags, *more])))

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: an upload contains a stub, not a copy of this library."""

    def _save_picture(self, folder: Path) -> None:
        if self.card_facts.picture:
            shutil.copyfile(self.card_facts.picture, folder / PICTURE_FILE)


UNKNOWN_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")
KEEPS_SETTINGS = (
    "A loaded model keeps its settings: leave that out. For another projection call encoder.use_projection(config); "
    "for another pooling, layer or prompt make the encoder relative again with RelativeModel.from_encoder."
)


class OtherWeightsError(ConfigurationError):
    """Weights that were made with other settings than the model has that is to take them."""


class RelativePart(RelativePreTrainedModel):
    """An encoder or a decoder: it lies in a folder of its own inside an upload, and its weights say what they mean."""

    @property
    def parts(self) -> dict[str, Any]:
        """Itself, by the name of what it is."""
        return {str(self.part): self}

    def clone(self) -> Self:
        """A copy with weights of its own, all in memory, which travels with the same anchors and processor.

        Raises:
            ConfigurationError: If it has no weights: they lie on the meta device.
        """
        refuse_empty(self, f"the {self.part}")
        held = (self._anchors, self._processor, self._source)
        copied = copy.deepcopy(self, {id(one): one for one in held if one is not None})
        return in_memory(copied) if is_offloaded(copied) else copied

    # -- Loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load from a folder or a repository: the whole, or with a part's class only that part's files.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            *args: As for any `PreTrainedModel`.
            **kwargs: As for any `PreTrainedModel`: `revision`, `token`, `dtype`, `device_map`, ...

        Raises:
            ConfigurationError: If a keyword asks for other settings than the weights were made with.
            UploadError: If the upload lacks the part, or is not one of this library.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        part = cls.part or ""
        source = locate(pretrained_model_name_or_path, part, kwargs.pop("subfolder", None) or "", kwargs)
        stored, files_of_weights = fetch_part(source, part)
        wants_info = kwargs.pop("output_loading_info", False)
        place = source.below(part)
        # All that transformers is about to read is here now.
        files = source.arguments | {"use_safetensors": True, "force_download": False, "subfolder": place.folder}
        refuse_float8(kwargs.get("dtype", kwargs.get("torch_dtype")), f"The {part} was asked for")
        if isinstance(kwargs.get("device_map"), dict) and "" not in kwargs["device_map"]:
            kwargs["device_map"] = kwargs["device_map"] | {EXTRA_STATE: "cpu"}  # else accelerate misses a place for it
        try:
            given = set(kwargs)
            config, kwargs = cls._resolve_config(source.name, kwargs | files, stored)
            named = {} if "config" in given else cls._take_names(config, stored, str(source))
            config.dtype = dtype_to_compute(config.dtype)
            asked = kwargs.get("quantization_config")
            is_frozen = getattr(config, "encoder_is_frozen", False)  # then its base has files of its own
            asked_for = {} if is_frozen else config.to_dict()
            built = building_of(asked_for, files_of_weights, f"The configuration of {source}")
            with built, quantizing(asked, f"The {part} of {source}"):
                loaded: Any = super().from_pretrained(
                    source.name, *args, config=config, output_loading_info=True, **kwargs | files
                )
        except OtherWeightsError as error:
            if given & set(stored):
                raise ConfigurationError(
                    f"from_pretrained was asked for other settings than the {part} of {source} has. "
                    f"{str(error).split('. ')[0]}. {KEEPS_SETTINGS}"
                ) from error
            raise UploadIntegrityError(
                f"The {part} of {source} contradicts its own configuration: {str(error).split('. ')[0]}. Pull it "
                "again, or ask its author."
            ) from error
        except (RelrepsError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a configuration from outside makes other code fail in any way
            unknown = UNKNOWN_KEYWORD.search(str(error)) if isinstance(error, TypeError) else None
            if unknown is not None and unknown[1] in given:
                raise ConfigurationError(f"from_pretrained knows no {unknown[1]!r:.60}. {KEEPS_SETTINGS}") from error
            raise explain(source, part, error) from error
        model, info = loaded
        for name, value in named.items():
            setattr(model.config, name, value)
        refuse_missing(info["missing_keys"], part, str(source))
        model._source = source
        model._complete(source)
        refuse_not_finite(model, str(source))
        return loaded if wants_info else model

    @classmethod
    def _resolve_config(
        cls, name: str, kwargs: dict[str, Any], stored: dict[str, Any]
    ) -> tuple[AnyRelativeConfig, dict[str, Any]]:
        """The configuration of what is loaded, and the keywords that it did not take."""
        config = kwargs.pop("config", None)
        if isinstance(config, RelativeConfig) and cls.part:
            config = getattr(config, cls.part)
        if isinstance(config, RelativeEncoderConfig | RelativeDecoderConfig):
            return config, kwargs
        config_class: Any = cls.config_class
        return config_class.from_pretrained(name, return_unused_kwargs=True, **kwargs)

    @classmethod
    def _take_names(cls, config: Any, stored: dict[str, Any], name: str) -> dict[str, Any]:
        """Other names of classes that were asked for, out of a configuration; none, unless it is of a decoder."""
        return {}

    def _complete(self, source: Source) -> None:
        """Add what a load leaves open: nothing, unless it is an encoder."""

    # -- What weights mean, in the state dict itself

    _loaded_meaning: Mapping[str, Any] = MappingProxyType({})  # what those said that were loaded last

    def describe_weights(self) -> dict[str, Any]:
        """What gives the weights their meaning, as JSON: weights of another meaning are refused by a load."""
        return {}

    def get_extra_state(self) -> Tensor:
        """`describe_weights` as bytes, for the state dict of this part."""
        content = json.dumps(self.describe_weights(), sort_keys=True, default=str).encode()
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Refuse weights that mean something else here.

        Raises:
            ConfigurationError: With what both sides say.
        """
        if not isinstance(state, Tensor) or state.is_meta:
            return
        try:
            found = json.loads(bytes(state.cpu().numpy()))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise OtherWeightsError(
                f"The weights of the {self.part} do not name the settings they were made with. Save the model again."
            )
        own = json.loads(json.dumps(self.describe_weights(), default=str))
        self._loaded_meaning = found
        # What one side does not know is not compared.
        differ = [name for name in own if None not in (own[name], found.get(name)) and own[name] != found[name]]
        if differ:
            sides = [f"{name} {_shorten(found[name])} there and {_shorten(own[name])} here" for name in differ[:3]]
            more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
            raise OtherWeightsError(
                f"These weights of the {self.part} were made with other settings: {'; '.join(sides)}{more}. Build the "
                "model with the same settings to continue with them, or train in another output_dir."
            )


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
