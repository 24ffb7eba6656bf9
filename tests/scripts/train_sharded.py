"""Train tiny relative models whose weights FSDP2 shards over the processes of a `torchrun`; write what each saw.

``torchrun --nproc_per_node 2 train_sharded.py OUT CASE [CASE ...]`` with the cases

- ``whole``: DDP, to compare with; ``sharded``: FSDP2, with the same data and seeds;
- ``resumed``: FSDP2 from checkpoint-3 of ``sharded``, to the same end;
- ``frozen``: FSDP2 around a frozen encoder;
- ``version1``, ``on-one-rank``: what is refused; what was said is written down. accelerate builds neither on a CPU, so
  torch's own FSDP of version 1 is put around the model, and the setting is switched on in what accelerate has built.

accelerate takes FSDP for granted on accelerators only, and runs DDP on a CPU without a word. So it is told here that
there are GPUs, and nothing else: sharding, gathering and saving are its own and torch's, through gloo.
"""

import datetime
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FullyShardedDataParallel
from train_tiny import LABELS, TEXTS, Witness, digest
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForSequenceClassification
from hf_relreps.demos.tiny import word_tokenizer
from hf_relreps.errors import ConfigurationError


LIMIT = 240  # seconds that a process waits for the others
STEPS, SAVED_AT = 6, 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FSDP = {
    "sharded": {"version": 2},
    "resumed": {"version": 2},
    "frozen": {"version": 2},
    "on-one-rank": {"version": 2},
}


def arguments(case, out):
    layers = {"transformer_layer_cls_to_wrap": ["BertLayer"]}
    settings = {"fsdp": True, "fsdp_config": FSDP[case] | layers} if case in FSDP else {}
    args = TrainingArguments(
        str(out / case / "trainer"),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        eval_strategy="steps",
        eval_steps=SAVED_AT,
        save_strategy="steps",
        save_steps=SAVED_AT,
        logging_strategy="no",
        ddp_timeout=LIMIT,
        **settings,
    )
    if case in FSDP and args.world_size:  # the latter finds the devices
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


def train(case: str, out: Path) -> dict:
    args = arguments(case, out)
    tokenizer = word_tokenizer(TEXTS)
    anchors = AnchorSet([str(i) for i in range(5)], {"en": TEXTS[::6][:5]})
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES))
    model = RelativeModelForSequenceClassification.from_encoder(
        bert, anchors.view("en"), tokenizer, num_labels=2, freeze_encoder=case == "frozen"
    )
    rows = [dict(tokenizer(text)) | {"labels": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    rank = int(os.environ["RANK"])
    batch = tokenizer(TEXTS[rank::2], padding=True, return_tensors="pt")
    model.fit_decoder([{**batch, "labels": torch.tensor(LABELS[rank::2])}])
    # Five anchors in batches of two: two batches on the first process, one on the second.
    callback = AnchorCallback(anchors.view("en"), tokenizer, refresh_every=2, refresh_parts=2, batch_size=2)
    witness = Witness()
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=rows[::3],
        processing_class=tokenizer,
        callbacks=[callback, witness],
    )
    if case == "version1":
        callback.refresh(FullyShardedDataParallel(model, device_id=torch.device("cpu")))
    if case == "on-one-rank":
        trainer.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = True
        callback.on_init_end(args, trainer.state, trainer.control)
    trainer.train(resume_from_checkpoint=str(start_from(out)) if case == "resumed" else None)
    trainer.save_model(str(out / case / "model"))
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in trainer.model.parameters())
    return {
        "kind": str(trainer.accelerator.distributed_type),
        "held": held / sum(p.numel() for p in trainer.model.parameters()),  # share of the weights on this process
        "at_steps": witness.at_steps,
        "at_evaluations": witness.at_evaluations,
        "drift": callback.drift_,
        "anchors": digest([model.encoder.projection.anchors_AD]),
    }


def start_from(out):
    return out / "sharded" / "trainer" / f"checkpoint-{SAVED_AT}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=LIMIT))
    for name in sys.argv[2:]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        try:
            record = train(name, folder)
        except ConfigurationError as error:
            record = {"refused": str(error)}
        (folder / name / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(record))
    torch.distributed.destroy_process_group()
