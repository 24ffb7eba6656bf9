"""Small language models from scratch, of two architectures, widths, depths, tokenizers and chat templates.

Shapes: B batch, T tokens, N samples, D width of a model.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken
from tokenizers.implementations import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

from benchmarks.probes.data import ANSWERS, Talk
from benchmarks.training import COSINE, train
from hf_relreps.conversations import tokenize
from hf_relreps.pooling import POOLERS
from hf_relreps.samples import batches
from hf_relreps.words import IGNORED


PAD, END = "<pad>", "</s>"
LONGEST = 64  # tokens
POOLINGS = ("last", "mean")


class Kind(NamedTuple):
    """One way to make a language model."""

    config: Callable[..., Any]
    sizes: dict[str, int]
    tokenizer: Callable[[], Any]
    vocabulary: int
    template: str
    marks: tuple[str, ...]  # tokens that its template writes


KINDS = {
    "llama": Kind(
        LlamaConfig,
        {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
        lambda: ByteLevelBPETokenizer(add_prefix_space=True),
        2000,
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if messages[-1].role == 'user' %}<|assistant|>{% else %}</s>{% endif %}",
        ("<|user|>", "<|assistant|>"),
    ),
    "neox": Kind(
        GPTNeoXConfig,
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
        SentencePieceUnigramTokenizer,
        1500,
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if messages[-1].role == 'user' %}[assistant]{% else %}</s>{% endif %}",
        ("[user]", "[assistant]"),
    ),
}


def tokenizer_of(kind: str, talks: Sequence[Talk]) -> PreTrainedTokenizerFast:
    """A tokenizer trained on what the model is trained on; sections and what the template writes are tokens."""
    how = KINDS[kind]
    texts = [talk[0]["content"] for talk in talks]
    special = [PAD, END, "<unk>", *how.marks, *itertools.chain(*ANSWERS.values())]
    made = how.tokenizer()
    unknown = {"unk_token": "<unk>"} if kind == "neox" else {}
    made.train_from_iterator(
        texts, vocab_size=how.vocabulary, show_progress=False, special_tokens=list(map(AddedToken, special)), **unknown
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token=PAD, eos_token=END, unk_token="<unk>",
        model_max_length=LONGEST, chat_template=how.template, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def trained(kind: str, talks: Sequence[Talk], seed: int, arguments: Namespace, folder: Path) -> tuple[Any, Any]:
    """A language model and its tokenizer, trained in this call or in an earlier one that left `folder`."""
    if not folder.is_dir():
        tokenizer = tokenizer_of(kind, talks)
        set_seed(seed)
        sizes = KINDS[kind].sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST}
        sizes |= {"initializer_range": 0.1}  # the usual 0.02 is for wide models: narrow ones learn slowly from it
        ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        model = AutoModelForCausalLM.from_config(KINDS[kind].config(**sizes, **ends))
        with torch.enable_grad():
            train(
                model,
                rows_of(tokenizer, talks),
                seed,
                collator=DataCollatorForSeq2Seq(tokenizer),
                num_train_epochs=arguments.epochs,
                learning_rate=3e-3,
                train_sampling_strategy="group_by_length",
                **COSINE | {"per_device_train_batch_size": 16},
            )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def rows_of(tokenizer: Any, talks: Sequence[Talk]) -> list[dict[str, Any]]:
    """Tokens of conversations; what the model learns is the assistant's answer."""
    rows = tokenize(talks, tokenizer)["input_ids"]
    return [{"input_ids": ids, "labels": [IGNORED] * (len(ids) - 2) + [ids[-2], IGNORED]} for ids in rows]


def states_of(model: Any, tokenizer: Any, talks: Sequence[Talk]) -> dict[str, Tensor]:
    """By pooling the hidden states (N, depths, D): what `RelativeModel.encode` gives at each `layer`, in one pass."""
    found: dict[str, Tensor] = {}
    for rows, inputs in batches(talks, tokenizer, 64):
        states = model.base_model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        for pooling in POOLINGS:
            x = torch.stack([POOLERS[pooling](hidden_BTD, inputs["attention_mask"]) for hidden_BTD in states], 1)
            found.setdefault(pooling, x.new_empty(len(talks), *x.shape[1:]))[rows] = x
    return found
