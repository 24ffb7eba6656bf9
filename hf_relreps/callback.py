"""`AnchorCallback`: where a new decoder starts, and when anchors are encoded again while their encoder is trained.

Outside of training steps anchors are exact without it: see `RelativeModel.refresh_anchors`.
Shapes: A anchors, D absolute size.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, gather, reduce
from huggingface_hub import get_token
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_relreps.anchors import AnchorView
from hf_relreps.backbones import evaluating
from hf_relreps.checkpoints import warn_of_cut_checkpoint
from hf_relreps.configuration import RelativeEncoderConfig
from hf_relreps.decoders import refuse_other_classes
from hf_relreps.errors import AnchorError, ConfigurationError, LabelError, RelrepsError
from hf_relreps.model_card import CardFacts, training_facts
from hf_relreps.modeling import RelativeModel
from hf_relreps.placement import FSDP_2, gathering, is_sharded, sharded_root, sharding_of
from hf_relreps.pretrained import RelativePreTrainedModel
from hf_relreps.samples import batches, to_device
from hf_relreps.similarities import unit
from hf_relreps.sources import card_on_hub, full_name
from hf_relreps.tasks import RelativeClassifier
from hf_relreps.words import IGNORED


logger = logging.get_logger(__name__)

STEPS_BETWEEN_PARTS = 5
ROUNDS = 4  # in a short training: anchors that are refreshed less often lag behind (docs/fine_tuning.md)
ANCHORS_PER_SAMPLE = 0.25  # encoded while a sample is trained on: without backward pass about 8 % of its time

Batch = tuple[Any, dict[str, Tensor]]  # positions of anchors, and the encoder's inputs


class AnchorCallback(TrainerCallback):
    """Initialises a new decoder in closed form, and encodes the anchors again while the encoder is trained.

    Before the first step a decoder that was neither loaded, fitted nor trained becomes a ridge regression from the
    encoder's output on the training set to the labels: see `RelativeModelForSequenceClassification.fit_decoder`. So
    the learning rates that suit a pretrained encoder suit the whole (`docs/fine_tuning.md`). A resumed run continues
    with the decoder of its checkpoint.

    No gradient passes through the anchors (paper, section 4.3), and nothing else changes: the encoding runs in
    evaluation mode and draws no random numbers. Each rank encodes its share, and all end up with the same anchors.
    Evaluations and saves need no callback: whatever reads the anchors outside a training step finds them exact. The
    anchors are part of the weights, so a resumed run goes on with them. Where FSDP2 shards the weights no process can
    encode alone: there the callback encodes all anchors before each evaluation and save (`docs/placement.md`).

    Small parts in turn cost little and move the anchors smoothly: they train as well as all anchors at every step,
    where all at once every 50 steps lose points of F1 (`docs/speed.md`).

    What the Trainer logs of a training step (``logging_steps``) gets two more numbers: ``anchor_drift``, the mean
    cosine distance of the refreshes since the last log; and ``anchor_coverage``, the median cosine of an anchor to the
    nearest other one, seen from their mean. The latter is how near a fresh sample like the anchors would lie to one of
    them; towards 1 while the loss stands still, the encoder collapses. `RelativeTrainer` sends both to `report_to`.

    Args:
        anchors_view: The anchors as the encoder reads them; the model's own view if left out.
        processor: Tokenizer or image processor; the model's or the Trainer's own if left out.
        refresh_every: Steps between two scheduled refreshes, of all anchors at once unless `refresh_parts` is given;
            left out, of a part every 5 steps.
        refresh_parts: In how many parts the anchors are refreshed, one at a time in turn; left out, in as many as keep
            the encoding at a quarter of an anchor for each training sample, which is below 10 % of the time; in a
            short training in fewer, so that each anchor is refreshed four times.
        ema: Weight of the old embeddings in a scheduled refresh, in [0, 1); 0 replaces them.
        fit_samples: How many training samples, spread over the dataset, a new decoder is fitted to, with all of their
            labelled tokens where these have classes; 0 starts from random weights.
        batch_size: Anchors in a batch.

    Attributes:
        drift_: One pair for each refresh: the step, and the mean cosine distance that the refreshed anchors have moved
            since they were refreshed before.

    Raises:
        AnchorError: When training begins, if the view is not one of the anchor set that the model was built on.
        ConfigurationError: When training begins, if what peft will save lacks the anchors or the decoder, or if the
            weights are sharded in a way in which the anchors cannot be encoded.
        LabelError: When training begins, if labels of the training set are no classes of the model.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        model = classifier_of("en", seed=3)
        rows = train.map(lambda row: model.processor(row["en"], truncation=True))
        args = TrainingArguments("out", max_steps=2, report_to="none")
        callback = AnchorCallback(anchors.view("en"), refresh_every=1)  # left out: a part every 5 steps
        Trainer(model, args, train_dataset=rows, processing_class=model.processor, callbacks=[callback]).train()
        ```

        ```python
        >>> [step for step, drift in callback.drift_]
        [1, 2]
        >>> model.encoder.check_anchors() < 1e-3  # they are those of the trained encoder
        True

        ```
    """

    def __init__(
        self,
        anchors_view: AnchorView | None = None,
        processor: Any = None,
        *,
        refresh_every: int | None = None,
        refresh_parts: int | None = None,
        ema: float = 0.0,
        fit_samples: int = 2000,
        batch_size: int = 64,
    ) -> None:
        if fit_samples < 0:
            raise ConfigurationError(f"fit_samples={fit_samples} must be at least 0; 0 starts from random weights.")
        if refresh_every is not None and refresh_every < 1:
            raise ConfigurationError(f"refresh_every={refresh_every} must be at least 1 step.")
        if refresh_parts is not None and refresh_parts < 1:
            raise ConfigurationError(
                f"refresh_parts={refresh_parts} must be at least 1; 1 refreshes all anchors at once."
            )
        if not 0 <= ema < 1:
            raise ConfigurationError(f"ema={ema} must be at least 0 and below 1; 0 replaces the old anchors.")
        self.anchors_view = anchors_view
        self.processor = processor
        self.refresh_every = STEPS_BETWEEN_PARTS if refresh_every is None else refresh_every
        self.refresh_parts = 1 if refresh_parts is None and refresh_every is not None else refresh_parts
        self.ema = ema
        self.fit_samples = fit_samples
        self.batch_size = batch_size
        self.drift_: list[tuple[int, float]] = []
        self._encoder: RelativeModel | None = None  # the one that the parts were read for
        self._root: nn.Module | None = None  # of what FSDP2 shards: anchors are encoded through it
        self._spare: dict[str, Tensor] = {}  # inputs for a pass that only gathers weights for other ranks
        self._logged = 0  # how many entries of drift_ went into a log
        self._parts: list[list[Batch]] = []  # of this rank's share of the anchors

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn of a checkpoint whose writing was cut off, which ``resume_from_checkpoint=True`` would choose."""
        _refuse_loading_on_one_rank()
        if state.is_world_process_zero:
            warn_of_cut_checkpoint(args.output_dir)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the view, the labels, and what will be saved; fit a new decoder."""
        model = kwargs["model"]
        encoder = _encoder_of(model)
        _refuse_unsaved(model)
        _refuse_shards(model)
        _refuse_offloaded(model)
        _warn_of_float16(model)
        if state.global_step and getattr(kwargs.get("lr_scheduler"), "last_epoch", None) == 0:
            logger.warning(
                "Training resumes at step %d without the states of the optimizer and scheduler, which the checkpoint "
                "does not contain: the result will differ from an uninterrupted run.",
                state.global_step,
            )
        parts = self.refresh_parts or parts_within_budget(
            encoder.config.space.num_anchors, samples_per_step(args), state.max_steps
        )
        self._begin(model, encoder, kwargs.get("processing_class"), parts)
        if self._root is None:
            encoder.refresh_anchors()
        else:
            self._refresh(encoder, state.global_step, exact=True)
        _refuse_other_labels(model, kwargs.get("train_dataloader"))
        if not state.global_step:
            self._fit_decoder(model, kwargs.get("train_dataloader"), args)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refresh on schedule, and where no process can encode alone before an evaluation and a save."""
        encoder = _encoder_of(kwargs["model"])
        encoder.note_training()  # a compiled model cannot
        if self._is_due_for_all(control):
            self._refresh(encoder, state.global_step, exact=True)
        elif state.global_step % self.refresh_every == 0:
            self._refresh(encoder, state.global_step, exact=False)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refresh before an evaluation and a save, where no process can encode alone."""
        if self._is_due_for_all(control):
            self._refresh(_encoder_of(kwargs["model"]), state.global_step, exact=True)

    def _is_due_for_all(self, control: TrainerControl) -> bool:
        return self._root is not None and (control.should_evaluate or control.should_save)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give all ranks the anchors that the rank which saved has refreshed."""
        encoder = _encoder_of(kwargs["model"])
        if PartialState().num_processes > 1:
            anchors_AD = broadcast(encoder.projection.anchors_AD.contiguous(), from_process=0)
            encoder.put_anchors(anchors_AD, exact=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The trained model's anchors are its own encoder's; with the best checkpoint loaded, they are that one's."""
        self._refresh(_encoder_of(kwargs["model"]), state.global_step, exact=True)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Add drift and coverage of the anchors to the log of a training step."""
        if logs and "loss" in logs and "anchor_coverage" not in logs:
            facts = self.take_facts(kwargs["model"])
            logs.update(facts)  # for the callbacks after this one
            state.log_history[-1].update(facts)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lay out what the Trainer does not copy from a checkpoint, and the card."""
        model = kwargs["model"]
        if not isinstance(model, RelativePreTrainedModel) or not args.output_dir or not state.is_world_process_zero:
            return
        model.save_all_but_weights(args.output_dir)
        loader = kwargs.get("eval_dataloader") or kwargs.get("train_dataloader")
        facts = training_facts(args, state.log_history, getattr(loader, "dataset", None))
        write_card(model, args, facts)

    def take_facts(self, model: nn.Module) -> dict[str, float]:
        """Mean drift since the last call, if there was a refresh, and the current coverage."""
        drift = [moved for _, moved in self.drift_[self._logged :]]
        self._logged = len(self.drift_)
        facts = {"anchor_drift": sum(drift) / len(drift)} if drift else {}
        return facts | {"anchor_coverage": coverage(_encoder_of(model).projection.anchors_AD)}

    def refresh(self, model: nn.Module, step: int | None = None) -> None:
        """Refresh the anchors in a training loop of your own, with `accelerate` or without.

        Call it on every process: after each step, and without `step` before an evaluation, a save and at the end, as
        `examples/train_with_accelerate.py` does.

        Args:
            model: What is trained, as ``accelerator.prepare`` gave it back.
            step: How many steps were made: the part that is due then is refreshed, on the schedule of the constructor
                (all anchors at once unless `refresh_parts` is given). Without it all are, exactly.

        Raises:
            AnchorError: If the view is not one of the anchor set that the model was built on.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> model = classifier_of("en", seed=3)
            >>> callback = AnchorCallback(anchors.view("en"), refresh_every=2)
            >>> for step in range(1, 5):
            ...     callback.refresh(model, step)  # after each step of the training
            >>> callback.refresh(model)  # before an evaluation, a save, and at the end
            >>> model.encoder.check_anchors() < 1e-3
            True

            ```
        """
        encoder = _encoder_of(model)
        if self._encoder is not encoder:
            _refuse_shards(model)
            self._begin(model, encoder, None, self.refresh_parts or 1)
        encoder.note_training()
        if step is None:
            self._refresh(encoder, self.drift_[-1][0] if self.drift_ else 0, exact=True)
        elif step % self.refresh_every == 0:
            self._refresh(encoder, step, exact=False)

    def _fit_decoder(self, model: nn.Module, loader: Any, args: TrainingArguments) -> None:
        """Let a new decoder start from the closed form; nothing else of the training changes."""
        whole = next((part for part in model.modules() if isinstance(part, RelativeClassifier)), None)
        is_new = whole is not None and any(getattr(part, "is_new", False) for part in whole.decoder.modules())
        if whole is None or not is_new or loader is None or not self.fit_samples:
            return
        if is_sharded(whole):
            logger.warning(
                "The decoder starts from random weights: each process holds a share of the model only. To start from "
                "the closed form call model.fit_decoder(batches) before you build the Trainer."
            )
            return
        try:
            with same_randomness():
                found: Any = _first_batches(loader, self.fit_samples, self.batch_size)
                if not args.disable_tqdm and PartialState().is_local_main_process:
                    found = tqdm(found, "Fitting the decoder", unit="batch", delay=2)  # TQDM_DISABLE counts
                whole.fit_decoder(found)
        except LabelError:  # the training could not read them either
            raise
        except RelrepsError as error:
            logger.warning("The decoder starts from random weights. %s", error)

    def _begin(self, model: nn.Module, encoder: RelativeModel, processing_class: Any, parts: int) -> None:
        """Read the anchors and forget what an earlier run left."""
        view = self.anchors_view or encoder.anchors.view(encoder.config.anchor_view)
        _refuse_other_view(view, encoder)
        processor = self.processor or encoder._processor or processing_class or encoder.processor
        encoder.carry(view.anchors, processor)
        processor = encoder.processor  # adds the encoder's prompt
        self._parts = self._in_parts(view, processor, encoder.config, 1 if view.modality == "node" else parts)
        self._encoder, self._root, self.drift_, self._logged = encoder, sharded_root(model), [], 0
        if self._root is not None:
            one = view.samples[:1]
            ((_, self._spare),) = batches(one, processor, 1, encoder.config.max_length, encoder.config.padding)

    def _in_parts(
        self, view: AnchorView, processor: Any, config: RelativeEncoderConfig, parts: int
    ) -> list[list[Batch]]:
        """This rank's share of the anchors in parts of about the same size: lists of batches, some may be empty."""
        world = PartialState()
        mine = view.samples[world.process_index :: world.num_processes]
        found: list[list[Batch]] = [[] for _ in range(parts)]
        if not mine:
            return found
        size, before = min(self.batch_size, -(-len(mine) // parts)), 0
        for rows, inputs in batches(mine, processor, size, config.max_length, config.padding):
            found[before * parts // len(mine)].append((rows, inputs))
            before += len(rows)
        return found

    def _refresh(self, encoder: RelativeModel, step: int, exact: bool) -> None:
        # Where ranks must meet, none may decide for itself that there is nothing to do.
        if PartialState().num_processes == 1 and not encoder.has_stale_anchors:
            return
        turn = step // self.refresh_every % len(self._parts)
        due = self._parts if exact else self._parts[turn : turn + 1]
        old_AD = encoder.projection.anchors_AD.detach().clone()
        new_AD, is_new_A = self._encode(encoder, [batch for part in due for batch in part])
        if not is_new_A.any():  # fewer anchors than parts
            return
        if not exact and self.ema:
            new_AD = self.ema * old_AD + (1 - self.ema) * new_AD
        is_exact = exact or (len(self._parts) == 1 and not self.ema)
        encoder.put_anchors(torch.where(is_new_A[:, None], new_AD, old_AD), exact=is_exact)
        moved = 1 - nn.functional.cosine_similarity(old_AD[is_new_A], new_AD[is_new_A], dim=-1).mean()
        self.drift_.append((step, float(moved)))

    def _encode(self, encoder: RelativeModel, due: list[Batch]) -> tuple[Tensor, Tensor]:
        """Anchors (A, D) with new embeddings, and which have them: of this rank, and by a sum those of the others."""
        world = PartialState()
        k, d = encoder.projection.anchors_AD.shape
        all_AE = encoder.projection.anchors_AD.new_zeros(k, d + 1)  # the last column says which are new
        mine = all_AE[world.process_index :: world.num_processes]
        mine[:, :d] = self._embed(encoder, due, len(mine)).to(mine)
        for rows, _ in due:
            mine[rows, d] = 1
        all_AE = reduce(all_AE, "sum") if world.num_processes > 1 else all_AE
        return all_AE[:, :d], all_AE[:, d] > 0

    def _embed(self, encoder: RelativeModel, due: list[Batch], n: int) -> Tensor:
        """Absolute embeddings (n, D) of this rank's anchors that are due; rows of the others stay zero."""
        if self._root is None:
            return encoder.encode_batches(due, n)
        # Each pass gathers weights from all ranks: those with fewer batches make passes for the others.
        count = torch.tensor([len(due)], device=encoder.projection.anchors_AD.device)
        idle = int(gather(count).max()) - len(due)
        with gathering(self._root, encoder.embed_inputs) as embed, evaluating(encoder.backbone):
            x_ND = encoder.encode_batches(due, n, embed)
            for _ in range(idle):
                embed(to_device(dict(self._spare), encoder.device))
        return x_ND


@contextmanager
def same_randomness() -> Iterator[None]:
    """Random numbers drawn inside, by collators and transforms, are drawn again after."""
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def _first_batches(loader: Any, most: int, batch_size: int) -> Iterator[Any]:
    """This rank's share of a sample of the training set, put together as the Trainer does."""
    dataset, world = loader.dataset, PartialState()
    items: Iterator[Any]
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int))
        items = (dataset[int(row)] for row in rows[world.process_index :: world.num_processes])
    else:
        items = itertools.islice(dataset, -(-most // world.num_processes))
    while part := list(itertools.islice(items, batch_size)):
        yield loader.collate_fn(part)


def write_card(model: RelativePreTrainedModel, args: TrainingArguments, facts: CardFacts) -> None:
    """Write the card of a training into its output folder, over the one on the Hub, whose own words stay.

    Without a login there is none: nothing can be pushed either.
    """
    name, existing = args.hub_model_id or Path(str(args.output_dir)).absolute().name, None
    if args.hub_token or get_token():
        name = full_name(name, args.hub_token)
        existing = card_on_hub(name, args.hub_revision, args.hub_token)
    model.write_card(str(args.output_dir), name, existing, more=facts)


@torch.no_grad()
def coverage(anchors_AD: Tensor) -> float:
    """Median cosine of an anchor to the nearest other one, both seen from the mean of all; 1 for a single anchor."""
    if len(anchors_AD) == 1:
        return 1.0
    units_AD = unit(anchors_AD.float() - anchors_AD.float().mean(0))
    return float((units_AD @ units_AD.T).fill_diagonal_(-1).amax(1).median())


def samples_per_step(args: TrainingArguments) -> int:
    """How many samples a step of the optimizer sees on all ranks."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def parts_within_budget(num_anchors: int, samples: int, steps: int) -> int:
    """In how many parts to refresh, so that `ANCHORS_PER_SAMPLE` is not exceeded, unless the training is short.

    Args:
        num_anchors: A.
        samples: That a step sees.
        steps: Of the whole training; each anchor is refreshed `ROUNDS` times or more.
    """
    affordable = max(1, int(ANCHORS_PER_SAMPLE * STEPS_BETWEEN_PARTS * samples))
    return min(-(-num_anchors // affordable), max(1, steps // (ROUNDS * STEPS_BETWEEN_PARTS)))


def _encoder_of(model: nn.Module) -> RelativeModel:
    for module in model.modules():
        if isinstance(module, RelativeModel):
            return module
    raise ConfigurationError(
        f"AnchorCallback found no RelativeModel inside the {type(model).__name__} that is being trained. Build it "
        "with RelativeModelForSequenceClassification.from_encoder(encoder, anchors.view(name), processor)."
    )


def _refuse_other_labels(model: nn.Module, loader: Any) -> None:
    """Raise `LabelError` if a column of labels, which collators of transformers hand on, has what is no class."""
    from datasets import Dataset

    whole = next((part for part in model.modules() if isinstance(part, RelativeClassifier)), None)
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    collate = getattr(collate, "data_collator", collate)  # inside the one that removes columns
    is_known = (getattr(collate, "__module__", None) or type(collate).__module__).startswith("transformers.")
    if whole is None or not is_known or not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return
    config: Any = whole.decoder.config
    if config.problem_type not in (None, "single_label_classification") or config.num_labels == 1:
        return
    for name in {"label", "labels", "label_ids"} & set(dataset.column_names):
        labels = dataset.with_format("arrow", columns=[name])[:][name].combine_chunks()
        while pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type):  # of the tokens of each row
            labels = labels.flatten()
        if len(labels) and (pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)):
            raise LabelError(
                f"The column {name!r} of the training set has texts such as {labels[0].as_py()!r:.60}, expected "
                f"numbers of classes. Number them before you split: dataset.class_encode_column({name!r})."
            )
        if pa.types.is_integer(labels.type) and not labels.null_count:
            refuse_other_classes(torch.from_numpy(labels.to_numpy().astype("int64")), config.num_labels, but=IGNORED)


def _refuse_unsaved(model: nn.Module) -> None:
    """peft saves what it trains; anchors and decoder are not among that unless they are named."""
    if not hasattr(model, "peft_config"):
        return
    from peft import get_peft_model_state_dict

    saved = set(get_peft_model_state_dict(model))
    own = [name for name, module in model.named_modules() if name.endswith(("projection", "decoder"))]
    lacks_anchors = not any(name.endswith("projection.anchors_AD") for name in saved)
    lacks_decoder = any(name.endswith("decoder") for name in own) and not any(".decoder." in name for name in saved)
    if lacks_anchors or lacks_decoder:
        missing = [name for name, lacks in (("the anchors", lacks_anchors), ("the decoder", lacks_decoder)) if lacks]
        raise ConfigurationError(
            f"peft would save the adapter without {' and '.join(missing)}, and the reloaded model would be wrong. "
            'Name both: LoraConfig(..., modules_to_save=["projection", "decoder"]); or put the adapter into the '
            "encoder first: from_encoder(get_peft_model(bert, LoraConfig(...)), view, processor)."
        )


def _refuse_shards(model: nn.Module) -> None:
    """Raise `ConfigurationError` where each process holds a share of the weights that cannot encode anchors."""
    advice = (
        "Train with FSDP2: TrainingArguments(fsdp=True, fsdp_config={'version': 2}), or `accelerate config` with "
        "fsdp_version 2; or with one copy of the weights for each process (DDP)."
    )
    found = sharding_of(model)
    if found in (None, FSDP_2):
        return
    raise ConfigurationError(
        f"{found}, and AnchorCallback cannot encode the anchors with them: their embeddings would be stale. {advice}"
    )


def _refuse_offloaded(model: nn.Module) -> None:
    """Raise `ConfigurationError` if weights are to be trained that a device map has offloaded: they never change."""
    away = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.is_meta]
    if away:
        raise ConfigurationError(
            f"{len(away)} weights are to be trained, but device_map has offloaded them, and offloaded weights do not "
            f"change; the first is {away[0]}. Load the model without device_map. To train the decoder alone, freeze "
            "the encoder (model.encoder.requires_grad_(False)) and keep the decoder in memory: "
            "device_map={'encoder': 'disk', 'decoder': 'cpu'}."
        )


def _warn_of_float16(model: nn.Module) -> None:
    if any(weight.requires_grad and weight.dtype == torch.float16 for weight in model.parameters()):
        logger.warning(
            "Weights in float16 are trained: AdamW's eps of 1e-8 is zero in float16, so small gradients become large "
            "steps. Load the model in float32, and train with TrainingArguments(fp16=True) or bf16=True."
        )


def _refuse_loading_on_one_rank() -> None:
    """Raise `ConfigurationError` where FSDP2 would load weights on one rank only: accelerate sends it no buffers."""
    plugin = getattr(AcceleratorState(), "fsdp_plugin", None) if AcceleratorState._shared_state else None
    if plugin is not None and plugin.fsdp_version == 2 and plugin.cpu_ram_efficient_loading:
        raise ConfigurationError(
            "FSDP2 with cpu_ram_efficient_loading sends weights to the other processes, but no buffers, and the "
            "anchors are a buffer. Switch it off: fsdp_config={'version': 2, 'cpu_ram_efficient_loading': False}, or "
            "--fsdp_cpu_ram_efficient_loading false for accelerate launch."
        )


def _refuse_other_view(view: AnchorView, encoder: RelativeModel) -> None:
    config, space = encoder.config, encoder.config.space
    if view.fingerprint != space.fingerprint:
        raise AnchorError(
            f"AnchorCallback has anchors {view.fingerprint[:16]} ({len(view)}), but the model was built on "
            f"{space.anchors}. Use the same view for both: from_encoder(encoder, anchors.view(name), ...) and "
            "AnchorCallback(anchors.view(name), ...)."
        )
    if view.digest != config.anchor_digest:
        raise AnchorError(
            f"AnchorCallback has view {view.name!r}, the model reads view {config.anchor_view!r} of the same anchors. "
            "Use the same view for both."
        )
