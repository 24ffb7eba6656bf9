"""Train tiny relative models on every process of a `torchrun`, and write down what each process saw.

``torchrun --nproc_per_node 2 train_tiny.py OUT K [K ...]`` trains one model for each number of anchors K, with
gradient checkpointing, and writes OUT/K/rank-N.json and the model that the Trainer saved, OUT/K/model. ``7:3`` are
seven anchors that are refreshed in three parts.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, Trainer, TrainerCallback, TrainingArguments

from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForSequenceClassification
from hf_relreps.demos.tiny import word_tokenizer


KINDS = ("cat dog bird horse", "bread soup cake rice")
TEXTS = [
    f"{adjective} {noun}" for kind in KINDS for noun in kind.split() for adjective in "small old red good".split()
]
LABELS = [i // 16 for i in range(32)]


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


def train(out: Path, k: int, rank: int, parts: int = 1) -> None:
    tokenizer = word_tokenizer(TEXTS)
    anchors = AnchorSet([str(i) for i in range(k)], {"en": TEXTS[:: 32 // k][:k]})
    torch.manual_seed(rank)  # each process starts from other weights: distributed training makes them those of rank 0
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    # The mean of a single anchor is itself: nothing would be left of it after centring.
    settings = {"transform": "none", "similarity": ["cosine", "angular"], "basis_ridge": None} if k == 1 else {}
    model = RelativeModelForSequenceClassification.from_encoder(
        bert, anchors.view("en"), tokenizer, num_labels=2, **settings
    )
    at_start = digest([model.encoder.projection.anchors_AD])
    rows = [dict(tokenizer(text)) | {"labels": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    callback = AnchorCallback(anchors.view("en"), tokenizer, refresh_every=2, refresh_parts=parts)
    witness = Witness()
    args = TrainingArguments(
        str(out / "trainer"),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        activation_checkpointing=True,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        logging_strategy="no",
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=rows[::3],
        processing_class=tokenizer,
        callbacks=[callback, witness],
    )
    trainer.train()
    trainer.save_model(str(out / "model"))
    record = {
        "processes": args.world_size,
        "kind": str(args.distributed_state.distributed_type),
        "at_start": at_start,
        "at_steps": witness.at_steps,
        "at_evaluations": witness.at_evaluations,
        "at_end": digest([model.encoder.projection.anchors_AD]),
        "weights": digest(model.parameters()),
        "drift": callback.drift_,
    }
    (out / f"rank-{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    for number in sys.argv[2:]:
        folder = Path(sys.argv[1], number)
        folder.mkdir(parents=True, exist_ok=True)
        k, _, parts = number.partition(":")
        train(folder, int(k), int(os.environ["RANK"]), int(parts or 1))
