"""Several gloo processes: the same anchors on each after every refresh, the end of one process, and a rank that dies.

``python -m benchmarks.reliability.ranks FOLDER 4`` starts them with the launcher of torchrun, forked from itself: to
import torch and transformers in each takes longer than all that they do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks.reliability.report import Report
from benchmarks.reliability.training import LABELS, TEXTS
from benchmarks.training import QUIET, tokenized
from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForSequenceClassification
from hf_relreps.demos.tiny import small_bert, word_tokenizer


LIMIT = 1800  # seconds for all processes together; a collective that one never reaches would hang for ever
GLOBAL_BATCH = 16
# What sums in another order explain, after six steps of a network in float32.
TOLERANCE = 1e-5
DYING_STEP = 2


@dataclass(frozen=True)
class Stage:
    """One training of all processes: k anchors, and rows that fill the last batches or do not."""

    k: int
    rows: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.k}-anchors-{self.rows}-rows"

    def is_even(self) -> bool:
        """Whether every process has full batches, so that one process sees the same batches."""
        return self.rows % GLOBAL_BATCH == 0


# k larger than the ranks and not divisible by them, smaller than them, divisible; shards that are uneven.
STAGES = (Stage(7, 32), Stage(3, 32), Stage(8, 27))


def run(count: int, seed: int) -> Report:
    """Train on 2 and on `count` processes, and on one; then let one of them die."""
    report = Report(f"ranks: gloo under torchrun, seed {seed}")
    for processes in sorted({2, count}):
        with tempfile.TemporaryDirectory(prefix="relreps-ranks-") as folder:
            done, seconds = launch(Path(folder), processes, dies=True)
            compare(Path(folder), processes, report)
            if done.returncode == 0:
                report.lost.append(f"{processes} processes: one died and the run ended without an error")
            report.counts[f"{processes} processes: a rank that died ended the run with an error"] += 1
            report.facts[f"{processes} processes: seconds from the death to the end"] = f"{seconds:.0f}"
    return report


def launch(folder: Path, processes: int, dies: bool) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run the stages in so many processes; with `dies`, the last rank is killed in the end, inside a refresh.

    Returns:
        The run, and the seconds from the death to its end.
    """
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.reliability.ranks",
            str(folder),
            str(processes),
            *(["dies"] if dies else []),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    death = folder / "death"
    return done, time.time() - death.stat().st_mtime if death.is_file() else 0.0


def compare(folder: Path, processes: int, report: Report) -> None:
    """Count what all ranks agree on, and how far they are from one process."""
    for stage in STAGES:
        where = f"{processes} processes, {stage.name}"
        files = [folder / f"{stage.name}-rank-{rank}.pt" for rank in range(processes)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            report.lost.append(f"{where}: {missing[0]} was not written")
            continue
        ranks = [torch.load(file, weights_only=True) for file in files]
        for other in ranks[1:]:
            equal = [torch.equal(a, b) for a, b in zip(ranks[0]["refreshes"], other["refreshes"], strict=True)]
            report.counts["refreshes after which two ranks were compared"] += len(equal)
            if not all(equal):
                report.lost.append(f"{where}: anchors differ after refresh {equal.index(False)}")
            if any(not torch.equal(a, other["weights"][name]) for name, a in ranks[0]["weights"].items()):
                report.lost.append(f"{where}: ranks end with other weights")
        if stage.is_even():
            alone = train(stage, processes=1, folder=folder / "alone")
            far = max(float((a - ranks[0]["weights"][name]).abs().max()) for name, a in alone["weights"].items())
            report.counts["ends compared with one process"] += 1
            report.facts[f"{where}: largest difference from one process"] = f"{far:.1e}"
            if far > TOLERANCE:
                report.lost.append(f"{where}: {far:.1e} from one process")


class _Witness(TrainerCallback):
    """Comes after `AnchorCallback`: the anchors after each step that refreshed them."""

    def __init__(self) -> None:
        self.refreshes: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.refreshes.append(model.encoder.projection.anchors_AD.clone())


class _Dies(AnchorCallback):
    """The last rank is killed inside a refresh, which the others have begun as well."""

    def __init__(self, folder: Path) -> None:
        super().__init__(refresh_every=1)
        self.folder = folder

    def _encode(self, *args: Any) -> Any:
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if last and len(self.drift_) >= DYING_STEP:
            (self.folder / "death").write_text("now")
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._encode(*args)


def train(stage: Stage, processes: int, folder: Path, callback: AnchorCallback | None = None) -> dict[str, Any]:
    """Train as one of so many processes: the anchors after each refresh, and the weights at the end."""
    set_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    anchors = AnchorSet([str(i) for i in range(stage.k)], {"en": TEXTS[:: 32 // stage.k][: stage.k]})
    bert = small_bert(len(tokenizer), longest=16, width=32)
    bert.config.hidden_dropout_prob = bert.config.attention_probs_dropout_prob = 0.0
    calm = {"decoder_dropout": 0.0, "decoder_noise": 0.0}  # each rank draws its own random numbers
    model = RelativeModelForSequenceClassification.from_encoder(
        type(bert)(bert.config, add_pooling_layer=False), anchors.view("en"), tokenizer, num_labels=2, **calm
    )
    rows = tokenized(tokenizer, TEXTS, LABELS)
    # Adam would turn rounding of a tiny gradient into a whole step.
    how = QUIET | {"optim": "sgd", "learning_rate": 0.05, "per_device_train_batch_size": GLOBAL_BATCH // processes}
    arguments = TrainingArguments(str(folder / f"{stage.name}-trainer"), use_cpu=True, max_steps=6, seed=0, **how)
    witness = _Witness()
    refresh = callback or AnchorCallback(refresh_every=2)
    trainer = Trainer(
        model, arguments, train_dataset=rows[: stage.rows], processing_class=tokenizer, callbacks=[refresh, witness]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"refreshes": witness.refreshes, "weights": {name: w.clone() for name, w in model.state_dict().items()}}


def main(folder: Path, dies: bool) -> None:
    """What each process does."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for stage in STAGES:
        torch.save(train(stage, processes, folder), folder / f"{stage.name}-rank-{rank}.pt")
    (folder / f"finished-{rank}.json").write_text(json.dumps({"stages": len(STAGES)}))
    if dies:
        train(STAGES[0], processes, folder, _Dies(folder))


def fork(processes: int, folder: Path, dies: bool) -> None:
    """Start the processes as ``torchrun --standalone`` does, and raise as it does when one of them fails."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, main)(folder, dies)


if __name__ == "__main__":
    fork(int(sys.argv[2]), Path(sys.argv[1]), "dies" in sys.argv[3:])
