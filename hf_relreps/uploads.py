"""One upload, several doors: how a relative model lies in a folder, and how each part is loaded from it.

::

    config.json                     of the whole
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

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import CommitInfo, ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from hf_relreps.anchors import AnchorSet
from hf_relreps.base_models import BUILDING
from hf_relreps.configuration import FORMAT_VERSION, RelativeConfig, refuse_immense
from hf_relreps.errors import AnchorError, AnchorIntegrityError, RelrepsError, UploadError, UploadIntegrityError
from hf_relreps.model_card import PICTURE_FILE, CardFacts, listed, merged, model_card
from hf_relreps.publishing import CARD_FILE, card_on_hub, full_name, publish
from hf_relreps.sources import Source


logger = logging.get_logger(__name__)

PARTS = {"encoder": "RelativeModel", "decoder": "RelativeDecoder"}
# What a push may remove from a repository: our files, and a whole ordinary model that would be loaded in their place.
OWN_FILES = (
    *(f"{part}/{name}" for part in PARTS for name in ("config.json", "model*.safetensors", SAFE_WEIGHTS_INDEX_NAME)),
    *("model*.safetensors", SAFE_WEIGHTS_INDEX_NAME, "anchors/anchor*", PICTURE_FILE),
)
PUSH_ARGUMENTS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
CHECKPOINT = re.compile("checkpoint-[0-9]+")  # what the Trainer calls its folders
TRAINER_STATE_FILE = "trainer_state.json"
ADAPTER_FILE = "adapter_config.json"  # of peft
STUB_FILE = "modeling_hf_relreps.py"
STUB = """# Lets `trust_remote_code=True` find the library that this model was made with: pip install hf_relreps
from hf_relreps import {names}
"""
AUTO_CLASSES = {
    "AutoConfig": "RelativeConfig",
    "AutoModel": "RelativeModel",
    "AutoModelForSequenceClassification": "RelativeModelForSequenceClassification",
    "AutoModelForImageClassification": "RelativeModelForImageClassification",
    "AutoModelForAudioClassification": "RelativeModelForAudioClassification",
}
AUTO_MAP = {auto: f"{STUB_FILE.removesuffix('.py')}.{name}" for auto, name in AUTO_CLASSES.items()}


class RelativeUpload(PreTrainedModel):
    """A whole model or one of its parts, as it is saved, loaded and pushed.

    It knows where it came from, so that what a part seldom needs (raw anchors, the processor) is fetched only when
    asked for.
    """

    config_class = RelativeConfig
    config: RelativeConfig

    part: ClassVar[str | None] = None  # a key of PARTS; None for a whole model
    card_facts: CardFacts = CardFacts()  # what its author adds to the card

    # The wrapped model answers for its attention; the rest has none, so any implementation will do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    _source: Source | None = None
    _anchors: AnchorSet | None = None
    _processor: Any = None
    _training_facts: CardFacts = CardFacts()  # what a training adds to it
    _card_repo_id: str | None = None
    _kept_card: str | None = None  # the card in a repository before the Trainer writes over it

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
        """The tokenizer, image processor or feature extractor, fetched from the upload at the first call.

        It can be set; that of nodes must be, with their graph, after a load.

        Raises:
            UploadError: If none was given and the upload holds none.
        """
        if self._processor is None:
            if self.config.modality == "node":
                raise UploadError(
                    f"This {type(self).__name__} reads nodes, and no upload holds their graph. Say which one it is: "
                    "model.processor = GraphReader(x, edge_index)."
                )
            if self._source is None:
                raise UploadError(
                    f"This {type(self).__name__} has no processor. Give one: from_encoder(encoder, view, processor), "
                    "or encode(samples, processor)."
                )
            self._processor = load_processor(self._source)
        return self._processor

    @processor.setter
    def processor(self, processor: Any) -> None:
        self._processor = processor

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
        source = Source.of(pretrained_model_name_or_path, **kwargs).pinned()
        cls._fetch_sound_files(source.below(root))
        # All that transformers is about to read is here now.
        kwargs |= source.arguments | {"use_safetensors": True, "force_download": False}
        try:
            with BUILDING:
                loaded: Any = super().from_pretrained(source.name, *args, output_loading_info=True, **kwargs)
        except (RelrepsError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a configuration from outside makes other code fail in any way
            raise cls._explained(source.below(root), error) from error
        model, info = loaded
        _refuse_missing(info["missing_keys"], str(source))
        model._came_from(source.below(root))
        model._attach_base(source.below(root))
        _refuse_not_finite(model, str(source))
        return loaded if wants_info else model

    @classmethod
    def _folders(cls, subfolder: str) -> tuple[str, str]:
        """Folder of the upload inside the repository, and folder of what this class reads."""
        subfolder = subfolder.strip("/")
        if cls.part is None:
            return subfolder, subfolder
        root = subfolder.removesuffix(cls.part).rstrip("/") if subfolder.split("/")[-1] == cls.part else subfolder
        return root, f"{root}/{cls.part}".lstrip("/")

    @classmethod
    def _fetch_sound_files(cls, source: Source) -> None:
        """Bring everything that will be read into the cache, checked, before transformers reads it from there.

        Raises:
            UploadError: If it is no upload of ours, lacks the part, or is of a newer format.
            UploadIntegrityError: If a file is not the one that its repository names.
        """
        place = source.below(cls.part or "")
        config = place.json("config.json")
        if config is None or config.get("model_type") != RelativeConfig.model_type:
            raise cls._explained(source, None)
        version = config.get("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise UploadError(
                f"{source} has format version {version}; the installed hf_relreps reads up to {FORMAT_VERSION}. "
                "Update it: pip install -U hf_relreps."
            )
        if place.file(ADAPTER_FILE) is not None:
            raise UploadError(
                f"{place} holds {ADAPTER_FILE}, by which transformers would load another model in its place. "
                "Adapters of ours live inside the encoder's weights: remove the file, or do not use the upload."
            )
        weight_files(place)

    @classmethod
    def _explained(cls, source: Source, error: Exception | None) -> Exception:
        """What is wrong with an upload that did not load, in words that say what to do."""
        config = source.json("config.json") or source.below("decoder").json("config.json")
        if config is None:
            return UploadError(
                f"{source} holds no config.json: it is empty, or no model. Push one there: model.push_to_hub(name)."
            )
        if config.get("model_type") != RelativeConfig.model_type:
            return UploadError(
                f"{source} is an ordinary {config.get('model_type')} model, not a relative one. Make it "
                f"relative: RelativeModel.from_encoder({source.name!r}, anchors.view(name)), or "
                f"stitch({source.name!r}, decoder)."
            )
        if cls.part and source.file(f"{cls.part}/config.json") is None:
            other = next(part for part in PARTS if part != cls.part)
            return UploadError(
                f"{source} holds no {cls.part}, only its {other}. Take the {cls.part} from another upload that shares "
                "its anchors: stitch(encoder, decoder) takes both names."
            )
        if isinstance(error, SafetensorError) or (isinstance(error, RuntimeError) and "mismatch" in str(error)):
            return UploadIntegrityError(
                f"The weights of {source} are not those that its configuration describes: {error}. "
                "A file is cut short or of another version: pull it again, or save the model anew."
            )
        if isinstance(error, OSError | ValueError):
            return error
        reason = f": {type(error).__name__}: {error}" if error else ""
        return UploadError(f"{source} cannot be read as a relative model{reason}. Pull it again, or ask its author.")

    def _attach_base(self, source: Source) -> None:
        """Fetch what the upload only refers to: nothing, unless it holds a frozen encoder."""

    def _refer_to_base(self) -> set[str]:
        """Names of the weights that need not be stored, since a base holds them."""
        return set()

    def _check_before_save(self) -> None:
        """Warn of what a save would hand on: nothing, unless there is an encoder."""

    def _came_from(self, source: Source) -> None:
        self._source = source

    def _carries(self, anchors: AnchorSet | None, processor: Any) -> None:
        """Remember what `save_pretrained` has to write beside the weights."""
        self._anchors = anchors if anchors is not None else self._anchors
        self._processor = processor if processor is not None else self._processor

    def save_pretrained(  # type: ignore[override]  # what it does not name itself it hands on
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
        push_arguments = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **push_arguments)
        root = Path(save_directory)
        state_dict = self.state_dict() if state_dict is None else state_dict
        referred = self._refer_to_base()
        parts = [self.part] if self.part else list(PARTS)
        if is_main_process:
            self._check_before_save()
            _withdraw(root, parts)
        for part in parts:
            prefix = "" if self.part else f"{part}."
            own = {k: v for k, v in state_dict.items() if k.startswith(prefix) and k not in referred}
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
            config.stitched_from = None
            _save_config(config, root / part)
        self.config.architectures = [type(self).__name__]
        _save_config(self.config, root)
        (root / STUB_FILE).write_text(STUB.format(names=", ".join(AUTO_CLASSES.values())), "utf-8")
        self._save_companions(root)

    def _save_companions(self, root: Path) -> None:
        if self._anchors is not None or self._source is not None:
            self.anchors.save_pretrained(root)
        try:
            processor = self.processor
        except UploadError:
            return  # a decoder alone, or a model built by hand
        processor.save_pretrained(root)

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
    ) -> CommitInfo:
        """Push the upload as one commit, with its card; what a person wrote into the card there stays.

        Args:
            repo_id: Repository; made if it does not exist.
            commit_message: Title of the commit.
            commit_description: The rest of its message.
            private: Whether a new repository is private.
            token: Of a user who may write there; that of ``hf auth login`` if left out.
            revision: Branch; made if it does not exist.
            create_pr: Open a pull request instead.
            max_shard_size: Largest file of weights.
            tags: More tags for the card.

        Raises:
            UploadError: If the token may not write there, or others kept pushing at the same time.
        """

        def save(folder: Path, repo_id: str) -> None:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            self._save_picture(folder)

        return publish(
            repo_id,
            save,
            lambda repo_id, existing: merged(self.make_card(repo_id, CardFacts(tags=tags or ())), existing),
            own_files=OWN_FILES,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    def make_card(self, repo_id: str, more: CardFacts | None = None) -> ModelCard:
        """The card as it would be pushed to a new repository.

        Args:
            repo_id: As it stands in the code to paste.
            more: Facts for this card alone, beside those of `card_facts` and of the training.
        """
        facts = (more or CardFacts()).with_defaults(self.card_facts.with_defaults(self._training_facts))
        try:
            anchors = self.anchors.summary()
        except AnchorIntegrityError:
            raise
        except AnchorError:  # built by hand
            anchors = {"num_anchors": self.config.num_anchors, "fingerprint": self.config.anchor_fingerprint or ""}
        return model_card(repo_id, self.config.to_dict(), self.part, anchors, facts)

    def write_card(self, folder: str | Path, repo_id: str | None = None, existing: str | None = None) -> None:
        """Write the card into a folder.

        Args:
            folder: Where README.md goes.
            repo_id: As it stands in the code to paste; the folder if left out.
            existing: A card whose own words stay; the one in the folder if left out.
        """
        file = Path(folder, CARD_FILE)
        if existing is None and file.is_file():
            existing = file.read_text("utf-8-sig")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(merged(self.make_card(repo_id or str(folder)), existing), "utf-8")
        self._save_picture(Path(folder))

    def before_trainer_push(
        self, folder: str | Path, repo_id: str, facts: CardFacts, *, is_final: bool, **hub_arguments: Any
    ) -> None:
        """Lay out what the Trainer does not: all but the weights, and the card.

        In its final push the Trainer writes a card of its own over this one. Only if it found a card of peft's there
        does it then ask the model for a better one, `create_or_update_model_card`. So it finds that.

        Args:
            folder: The Trainer's output folder.
            repo_id: Where it pushes to.
            facts: What the Trainer knows.
            is_final: Whether it will write its own card.
            **hub_arguments: `token` and `revision` of the push.
        """
        self.save_all_but_weights(folder)
        self._training_facts = facts
        self._card_repo_id = full_name(repo_id, hub_arguments.get("token"))
        self.write_card(folder, self._card_repo_id, card_on_hub(self._card_repo_id, **hub_arguments))
        if is_final:
            file = Path(folder, CARD_FILE)
            self._kept_card = file.read_text("utf-8")
            file.write_text("---\nlibrary_name: peft\n---\n", "utf-8")

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Put our card in place of the Trainer's, with what the Trainer was told: see `before_trainer_push`."""
        file = Path(output_dir, CARD_FILE)
        trainers = ModelCard(file.read_text("utf-8"), ignore_metadata_errors=True).data
        results = trainers.get("eval_results", ())
        known = replace(self._training_facts, metrics={}) if results else self._training_facts
        told = CardFacts(
            license=trainers.get("license"),
            languages=listed(trainers.get("language")),
            datasets=listed(trainers.get("datasets")),
            results=results,
            tags=listed(trainers.get("tags")),
        )
        self._training_facts = told.with_defaults(known)
        self.write_card(output_dir, self._card_repo_id, self._kept_card)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: an upload brings a stub, not a copy of this library."""

    def _save_picture(self, folder: Path) -> None:
        if self.card_facts.picture:
            shutil.copyfile(self.card_facts.picture, folder / PICTURE_FILE)


def load_processor(source: Source) -> Any:
    """The tokenizer, image processor or feature extractor that lies in an upload or an ordinary model.

    Raises:
        UploadError: If there is none.
    """
    _refuse_immense_config(source)
    try:
        return AutoProcessor.from_pretrained(
            source.name, trust_remote_code=False, **source.arguments, **source.subfolder_argument
        )
    except Exception as error:  # tokenizers raises bare ones
        raise UploadError(
            f"{source} holds no processor (tokenizer or image processor) that transformers knows. "
            f"Give one where the model is used, or save it there: processor.save_pretrained(folder). {error}"
        ) from error


def _refuse_immense_config(source: Source) -> None:
    """Before transformers looks into it for a hint at the processor."""
    try:
        content = source.json("config.json")
    except UploadError:
        return  # there need be none
    refuse_immense(content)


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


def _save_config(config: RelativeConfig, folder: Path) -> None:
    """Write a configuration with the map that leads `trust_remote_code` to the stub."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    file = folder / "config.json"
    content = json.loads(file.read_text("utf-8")) | {"auto_map": AUTO_MAP}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def weight_files(place: Source) -> list[Path]:
    """The files that hold the weights of a whole or a part, fetched and checked, all of them inside the upload.

    Raises:
        UploadError: If there is none, one is missing, or the index names one elsewhere.
    """
    single = place.file(SAFE_WEIGHTS_NAME)
    if single is not None:
        return [single]
    weight_map = (place.json(SAFE_WEIGHTS_INDEX_NAME) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UploadError(
            f"{place} holds no weights: neither {SAFE_WEIGHTS_NAME} nor a {SAFE_WEIGHTS_INDEX_NAME} that names files. "
            "Save it with model.save_pretrained(folder), or push it: model.push_to_hub(name)."
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
            raise UploadError(f"{place} lacks {name}, which its index names. Push or pull it again, whole.")
        found.append(file)
    return found


def stored_weights(place: Source) -> dict[str, Tensor]:
    """The weights of a whole or a part by name."""
    return {name: tensor for file in weight_files(place) for name, tensor in load_file(file).items()}


def _refuse_not_finite(model: PreTrainedModel, name: str) -> None:
    """Raise `UploadIntegrityError` if a weight is infinite or not a number: every output would be."""
    ours = ("anchors_AD", "points_RE", "shift_E")
    bounds = {name for name, _ in model.named_buffers() if not name.endswith(ours)}  # Gemma 4 clips at none
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
            continue
        if not all(not bound.isnan() if key in bounds else bound.isfinite() for bound in torch.aminmax(tensor)):
            raise UploadIntegrityError(
                f"{name} holds weights that are infinite or not a number; the first is in {key}. Its training "
                "diverged, or the file was damaged before it was pushed: take an earlier revision."
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


def _withdraw(root: Path, parts: list[str]) -> None:
    """Take back what makes an earlier save in this folder loadable: a save that is cut off leaves no mixture of two.

    The index is written last. Of a checkpoint the Trainer writes its state last, and cannot resume without it.
    """
    (root / SAFE_WEIGHTS_INDEX_NAME).unlink(missing_ok=True)
    if CHECKPOINT.fullmatch(root.name):
        (root / TRAINER_STATE_FILE).unlink(missing_ok=True)
    for part in parts:
        for name in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME):
            (root / part / name).unlink(missing_ok=True)


def _write_index(root: Path, parts: list[str]) -> None:
    """The index at the root points into the parts' folders, so that a whole model loads from them."""
    from safetensors import safe_open

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
