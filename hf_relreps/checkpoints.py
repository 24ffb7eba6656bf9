"""Checkpoints of a `Trainer`: which one was written to its end, whoever wrote it (Trainer, DeepSpeed, FSDP)."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from hf_relreps.errors import UploadError
from hf_relreps.sources import Source
from hf_relreps.uploads import CHECKPOINT, TRAINER_STATE_FILE, weight_files


logger = logging.get_logger(__name__)

DEEPSPEED_TAG_FILE = "latest"  # names the folder in which DeepSpeed keeps weights and optimizer
FSDP_MODELS = ("pytorch_model_fsdp*",)
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*")


def last_complete_checkpoint(output_dir: str | Path | None) -> str | None:
    """The newest complete checkpoint of a Trainer; ``None`` if there is none.

    A run that was killed while it saved leaves a folder that the Trainer would choose but cannot resume from. So use
    ``trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))``, at the first start and later.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        from hf_relreps.checkpoints import last_complete_checkpoint

        rows = [{"relative_embeds": torch.rand(40), "labels": 0}] * 4
        args = TrainingArguments("runs", max_steps=2, save_steps=1, report_to="none")
        trainer = Trainer(decoder, args, train_dataset=rows)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint("runs"))  # None at first: from the beginning
        ```
    """
    return next((str(folder) for folder in find_checkpoints(output_dir) if find_flaw(folder) is None), None)


def warn_of_cut_checkpoint(output_dir: str | Path | None) -> None:
    """Warn of a checkpoint whose writing was cut off, which ``resume_from_checkpoint=True`` would choose."""
    newest = next(iter(find_checkpoints(output_dir)), None)
    flaw = None if newest is None else find_flaw(newest)
    if flaw:
        logger.warning(
            "%s is incomplete: %s. Resume from the last complete checkpoint: "
            "trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir)), from "
            "hf_relreps.checkpoints.",
            newest,
            flaw,
        )


def find_checkpoints(output_dir: str | Path | None) -> list[Path]:
    """The checkpoints in a Trainer's folder, newest first."""
    folders = Path(output_dir).glob("checkpoint-*") if output_dir else []
    found = [folder for folder in folders if CHECKPOINT.fullmatch(folder.name) and folder.is_dir()]
    return sorted(found, key=lambda folder: int(folder.name.split("-")[1]), reverse=True)


def find_flaw(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is missing or was not written to its end; ``None`` if all are whole."""
    state_file = checkpoint / TRAINER_STATE_FILE
    try:
        if not isinstance(json.loads(state_file.read_text("utf-8")), dict):
            return f"{state_file.name} contains no state"
    except OSError:
        return f"{state_file.name}, the file that is written last, is missing"
    except ValueError:
        return f"{state_file.name} is truncated"
    return _flaw_of_weights(checkpoint) or _flaw_of_training(checkpoint)


def _flaw_of_weights(checkpoint: Path) -> str | None:
    if _deepspeed_folder(checkpoint) or _held(checkpoint, FSDP_MODELS):
        return None
    try:
        files = weight_files(Source.of(checkpoint))
    except UploadError as error:
        return str(error)
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file.relative_to(checkpoint)} cannot be read ({error})"
    return None


def _flaw_of_training(checkpoint: Path) -> str | None:
    """What is missing of the states that a resumed training needs; without any the Trainer was told to save none."""
    processes = PartialState().num_processes
    names = ["scheduler.pt"]
    names += [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    there = [name for name in names if (checkpoint / name).is_file()]
    optimizer = _held(checkpoint, OPTIMIZERS) or _deepspeed_folder(checkpoint)
    if _deepspeed_folder(checkpoint):  # its scheduler may lie in the same folder
        names.remove("scheduler.pt")
    missing = [name for name in names if name not in there] + ([] if optimizer else ["optimizer.pt"])
    if missing and (there or optimizer):
        return f"{sorted(missing)[0]} is missing"
    files = [checkpoint / name for name in (*there, "optimizer.pt", "optimizer.bin")]
    broken = [file.name for file in files if file.is_file() and not zipfile.is_zipfile(file)]
    return f"{broken[0]} is truncated" if broken else None


def _deepspeed_folder(checkpoint: Path) -> Path | None:
    try:
        folder = checkpoint / (checkpoint / DEEPSPEED_TAG_FILE).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def _held(checkpoint: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a file or a filled folder of such a name is there."""
    found = [path for pattern in patterns for path in checkpoint.glob(pattern)]
    return any(path.is_file() or any(path.iterdir()) for path in found)
