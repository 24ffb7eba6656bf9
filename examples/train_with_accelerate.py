"""A training loop of your own instead of the Trainer: one process or several, on any device, with `accelerate`.

    accelerate launch examples/train_with_accelerate.py
    ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 examples/train_with_accelerate.py

The second line starts two processes on a machine without GPUs: `--cpu --num_processes 2` would start one.

What a relative model adds to the loop are the three lines with `anchors`: while the encoder learns, its anchors move,
and each process encodes its share of them. All processes end with the same anchors, and what is saved is a model like
any other: stitch it, push it, load it with the Auto classes.
"""

from __future__ import annotations

import argparse
import hashlib

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup

from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForSequenceClassification
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer


def main() -> None:
    """Train on bundled data, evaluate after each epoch, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--language", default="en", help="column of the Debian descriptions, and view of the anchors")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4366, help="how many of the training data")
    parser.add_argument("--anchors", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", default="relative-model")
    args = parser.parse_args()

    accelerator = Accelerator()
    set_seed(args.seed)
    data = load_debian_descriptions("train")
    data = data.select(range(args.rows))
    anchor_set = AnchorSet.from_dataset(data, k=args.anchors, views=[args.language], id_column="package")
    # Trained on each process it would differ, so all get that of the first; one loaded by name is the same everywhere.
    (tokenizer,) = broadcast_object_list([wordpiece_tokenizer(data[args.language], longest=32)])
    model = RelativeModelForSequenceClassification.from_encoder(
        small_bert(len(tokenizer), longest=32),
        anchor_set.view(),
        tokenizer,
        id2label=dict(enumerate(data.features["label"].names)),
    )

    def loader(rows, shuffle):
        tokens = rows.map(lambda texts: tokenizer(texts, truncation=True), input_columns=args.language, batched=True)
        tokens = tokens.select_columns(["input_ids", "attention_mask", "label"])
        return DataLoader(tokens, batch_size=32, shuffle=shuffle, collate_fn=DataCollatorWithPadding(tokenizer))

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    model, optimizer, train, test = accelerator.prepare(
        model, optimizer, loader(data, shuffle=True), loader(load_debian_descriptions("test"), shuffle=False)
    )
    schedule = get_linear_schedule_with_warmup(optimizer, 0, args.epochs * len(train))

    anchors = AnchorCallback(refresh_parts=4)  # a quarter of the anchors every five steps
    step = 0
    for epoch in range(args.epochs):
        model.train()
        for batch in train:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            anchors.refresh(model, step)
        anchors.refresh(model)  # exactly, for what follows
        accuracy = evaluate(model, test, accelerator)
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy on the test rows {accuracy:.3f}")

    model = accelerator.unwrap_model(model)
    held = hashlib.sha256(model.encoder.projection.anchors_AD.cpu().numpy().tobytes()).hexdigest()
    print(f"process {accelerator.process_index} of {accelerator.num_processes} holds anchors {held[:16]}", flush=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        model.save_pretrained(args.output)
        print(f"saved to {args.output}")
    accelerator.end_training()


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> float:
    """The share of the rows that the model classifies correctly; each process reads its share of them."""
    model.eval()
    right = total = 0
    for batch in loader:
        answers, labels = accelerator.gather_for_metrics((model(**batch).logits.argmax(-1), batch["labels"]))
        right, total = right + int((answers == labels).sum()), total + len(labels)
    return right / total


if __name__ == "__main__":
    main()
