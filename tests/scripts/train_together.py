"""Train tiny relative models on two processes, launched as `torchrun` does, and write down what each of them saw.

``train_together.py OUT CASE [CASE ...]`` writes OUT/CASE/rank-N.json and the model that was
saved, OUT/CASE/model. The cases:

- ``7``, ``1``: DDP with so many anchors, from other weights on each process, with gradient checkpointing; ``7:3`` are
  seven anchors that are refreshed in three parts;
- ``loop``: `examples/train_with_accelerate.py`, a loop without the Trainer; what it prints is OUT/loop/rank-N.txt;
- ``whole``: DDP, to compare with; ``sharded``: FSDP2, with the same data and seeds;
- ``resumed``: FSDP2 from checkpoint-3 of ``sharded``, to the same end;
- ``frozen``: FSDP2 around a frozen encoder;
- ``pieces``, ``pieces-resumed``: FSDP2 whose checkpoints hold each process's piece (SHARDED_STATE_DICT);
- ``half``, ``half-resumed``: FSDP2 in mixed precision, bfloat16;
- ``zero-1``, ``zero-1-resumed``, ``zero-2``, ``zero-2-resumed``, ``zero-2-frozen``, ``zero-3``: stages of DeepSpeed;
- ``version1``, ``on-one-rank``: what is refused; what was said is written down. accelerate builds neither on a CPU, so
  torch's own FSDP of version 1 is put around the model, and the setting is switched on in what accelerate has built.

accelerate takes FSDP for granted on accelerators only, and runs DDP on a CPU without a word. So it is told here that
there are GPUs, and nothing else: sharding, gathering and saving are its own and torch's, through gloo.
"""

import contextlib
import datetime
import hashlib
import json
import os
import runpy
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import BertConfig, BertModel, Trainer, TrainerCallback, TrainingArguments

from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForSequenceClassification
from hf_relreps.demos.tiny import word_tokenizer
from hf_relreps.errors import ConfigurationError


EXAMPLE = Path(__file__).parents[2] / "examples" / "train_with_accelerate.py"
FEW = ["--epochs", "1", "--rows", "64", "--anchors", "21"]  # 21: no multiple of two processes or four parts
LIMIT = 1200  # seconds that a process waits for the others
STEPS, SAVED_AT = 6, 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KINDS = ("cat dog bird horse", "bread soup cake rice")
TEXTS = [
    f"{adjective} {noun}" for kind in KINDS for noun in kind.split() for adjective in "small old red good".split()
]
LABELS = [i // 16 for i in range(32)]
IN_PIECES = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}
FSDP = dict.fromkeys(("sharded", "resumed", "frozen", "half", "half-resumed", "on-one-rank"), {"version": 2})
FSDP |= dict.fromkeys(("pieces", "pieces-resumed"), IN_PIECES)
ZERO = {"zero-1": 1, "zero-2": 2, "zero-2-frozen": 2, "zero-3": 3}  # the stage
ZERO |= {"zero-1-resumed": 1, "zero-2-resumed": 2}
RESUMED = {"resumed": "sharded", "pieces-resumed": "pieces", "half-resumed": "half"}
RESUMED |= {"zero-1-resumed": "zero-1", "zero-2-resumed": "zero-2"}


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


class Witness(TrainerCallback):
    """Comes after `AnchorCallback`: what the anchors are at each step and each evaluation."""

    def __init__(self):
        self.at_steps, self.at_evaluations = [], []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.at_steps.append(digest([model.encoder.projection.anchors_AD]))

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.at_evaluations.append(digest([model.encoder.projection.anchors_AD]))


def arguments(folder, **settings):
    often = {"eval_strategy": "steps", "eval_steps": SAVED_AT, "save_strategy": "steps", "save_steps": SAVED_AT}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    steps = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "ddp_timeout": LIMIT}
    return TrainingArguments(str(folder / "trainer"), **often, **quiet, **steps, **settings)


def make(k, **settings):
    tokenizer = word_tokenizer(TEXTS)
    anchors = AnchorSet([str(i) for i in range(k)], {"en": TEXTS[:: 32 // k][:k]})
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES))
    return RelativeModelForSequenceClassification.from_encoder(
        bert, anchors.view("en"), tokenizer, num_labels=2, **settings
    )


def train(model, args, folder, callback, resume=None):
    """A training that is saved, and what this process saw of it."""
    tokenizer, witness = model.processor, Witness()
    rows = [dict(tokenizer(text)) | {"labels": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=rows[::3],
        processing_class=tokenizer,
        callbacks=[callback, witness],
    )
    if folder.name == "on-one-rank":
        trainer.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = True
        callback.on_init_end(args, trainer.state, trainer.control)
    trainer.train(resume_from_checkpoint=resume)
    if FSDP.get(folder.name) is IN_PIECES:  # as the documentation of transformers tells to
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder / "model"))
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in trainer.model.parameters())
    return {
        "processes": args.world_size,
        "kind": str(trainer.accelerator.distributed_type),
        "held": held / sum(p.numel() for p in trainer.model.parameters()),  # share of the weights on this process
        "at_steps": witness.at_steps,
        "at_evaluations": witness.at_evaluations,
        "drift": callback.drift_,
        "at_end": digest([model.encoder.projection.anchors_AD]),
        "weights": digest(getattr(p, "to_local", lambda p=p: p)() for p in model.parameters()),
    }


def train_apart(case, folder):
    """DDP from weights that differ: it makes them those of rank 0."""
    number, _, parts = case.partition(":")
    torch.manual_seed(int(os.environ["RANK"]))
    # The mean of a single anchor is itself: nothing would be left of it after centring.
    settings = {"transform": "none", "similarity": ["cosine", "angular"], "basis_ridge": None}
    model = make(int(number), **(settings if number == "1" else {}))
    at_start = digest([model.encoder.projection.anchors_AD])
    callback = AnchorCallback(refresh_every=2, refresh_parts=int(parts or 1))
    args = arguments(folder, activation_checkpointing=True)
    return {"at_start": at_start} | train(model, args, folder, callback)


def train_alike(case, folder):
    """The same model in each case, whole or sharded."""
    layers = {"transformer_layer_cls_to_wrap": ["BertLayer"]}
    settings = {"fsdp": True, "fsdp_config": FSDP[case] | layers} if case in FSDP else {}
    if case in ZERO:
        settings = {"deepspeed": {"zero_optimization": {"stage": ZERO[case]}, "train_micro_batch_size_per_gpu": 4}}
    args = arguments(folder, bf16=case.startswith("half"), **settings)
    if case in FSDP and args.world_size:  # the latter finds the devices
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    torch.manual_seed(0)
    model = make(5, freeze_encoder=case.endswith("frozen"))
    rank = int(os.environ["RANK"])
    batch = model.processor(TEXTS[rank::2], padding=True, return_tensors="pt")
    model.fit_decoder([{**batch, "labels": torch.tensor(LABELS[rank::2])}])
    # Five anchors in batches of two: two batches on the first process, one on the second.
    callback = AnchorCallback(refresh_every=2, refresh_parts=2, batch_size=2)
    if case == "version1":
        callback.refresh(FullyShardedDataParallel(model, device_id=torch.device("cpu")))
    start = folder.parent / RESUMED[case] / "trainer" / f"checkpoint-{SAVED_AT}" if case in RESUMED else None
    return train(model, args, folder, callback, None if start is None else str(start))


def run_example(folder):
    """The example's own loop; what it prints goes to a file. It ends its group, so it comes last."""
    os.environ["ACCELERATE_USE_CPU"] = "1"
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.argv = [str(EXAMPLE), *FEW, "--output", str(folder / "model")]
    with (folder / f"rank-{os.environ['RANK']}.txt").open("w") as printed, contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLE), run_name="__main__")


def run(case, folder):
    if case[0].isdigit():
        return train_apart(case, folder)
    return run_example(folder) if case == "loop" else train_alike(case, folder)


@record  # its error, with where it came from, is what the launcher prints
def work(out, cases):
    """What each process does."""
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=LIMIT))
    for case in cases:
        folder = Path(out, case)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = run(case, folder)
        except ConfigurationError as error:
            found = {"refused": str(error)}
        (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # The launcher of `torchrun`; by fork, so that the libraries are imported once.
    how = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork", "max_restarts": 0}
    launch = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="together", monitor_interval=0.1, **how)
    elastic_launch(launch, work)(sys.argv[1], sys.argv[2:])
