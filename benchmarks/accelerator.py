"""Measure on an accelerator what relative representations cost: ``python -m benchmarks.accelerator``.

One command of at most eight minutes: what would begin later is left out, and the output says so. Without an
accelerator, or with ``--quick``, sizes are small: that shows that it works, and its figures mean nothing. The figures
go to ``benchmarks/results/accelerator.json``; ``python -m benchmarks.speed --report`` puts them into `docs/speed.md`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from benchmarks.reporting import console, machine, markdown, quiet, timed, write
from benchmarks.speed import subjects
from benchmarks.speed.finetuning import stepper, trainer_seconds
from benchmarks.speed.projection import DEFAULT, PAPER, made
from benchmarks.speed.timing import Pairs, clock, finish, paired
from hf_relreps import AnchorCallback, AnchorSet, RelativeModelForSequenceClassification, stitch


RESULTS = Path(__file__).parent / "results" / "accelerator.json"
MINUTES = 8
# What a host waits for, by the names of torch's profiler: a value read on the host, a copy between host and device.
WAITS = ("aten::_local_scalar_dense", "aten::item", "Memcpy DtoH", "Memcpy HtoD")


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    encoders: dict[str, Any]  # configurations by name; the first is fine-tuned
    batches: tuple[int, ...]
    tokens: int
    anchors: int
    refreshed: tuple[int, ...]
    steps: int
    samples: int  # of the projection
    width: int
    square: int  # side of the product by which the rate of the device is measured
    pairs: int
    compiler: str


def sizes(is_small: bool) -> Sizes:
    """BERT base and a decoder-only model of a billion weights, or very small ones."""
    vocabulary = {"vocab_size": 30522, "num_labels": subjects.NUM_LABELS, "pad_token_id": 0}
    if is_small:
        tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        encoders = {"bert": BertConfig(**vocabulary, **tiny), "llama": LlamaConfig(**vocabulary, **tiny)}
        return Sizes(encoders, (1, 4), 64, 20, (20, 40), 6, 2_000, 32, 128, 1, "eager")
    billion = {"hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 32, "num_key_value_heads": 8}
    encoders = {
        "BERT base": BertConfig(**vocabulary),
        "a decoder-only model of a billion weights": LlamaConfig(**vocabulary, **billion, intermediate_size=8192),
    }
    return Sizes(encoders, (1, 32, 256), 64, 768, (768, 5_000), 101, 1_000_000, 1024, 8192, 10, "inductor")


def device() -> torch.device:
    """The accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def name_of_device() -> str:
    """As its maker calls it."""
    here = device()
    return getattr(torch, here.type).get_device_name() if here.type in ("cuda", "xpu") else here.type


# -- What is measured


def absolute(config: Any, dtype: torch.dtype, seed: int = 0) -> Any:
    """An ordinary classifier with random weights, on the device."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(copy.deepcopy(config))
    return model.to(device(), dtype).eval()


def relative(model: Any, k: int, tokens: int) -> RelativeModelForSequenceClassification:
    """The same encoder, relative to k anchors; beyond the texts that there are, with a number at their end."""
    words = subjects.texts()[0]
    texts = [words[i] if i < len(words) else f"{words[i % len(words)]} {i}" for i in range(k)]
    anchors = AnchorSet([str(i) for i in range(k)], {"en": texts})
    tokenizer = subjects.tokenizer(tokens)
    whole = RelativeModelForSequenceClassification.from_encoder(
        model.base_model, anchors.view("en"), tokenizer, num_labels=subjects.NUM_LABELS
    )
    return whole.eval()


def inputs_of(size: int, tokens: int, labels: bool = False) -> dict[str, Tensor]:
    """A full batch: no padding, so that both models read the same."""
    torch.manual_seed(0)
    ids_BT = torch.randint(5, 8_000, (size, tokens), device=device())
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    return inputs | ({"labels": torch.arange(size, device=device()) % subjects.NUM_LABELS} if labels else {})


def line(what: str, figure: dict[str, Any], goal: str = "") -> dict[str, Any]:
    """A row of the table, by the wall clock: what the host does meanwhile is of no matter."""
    return {"what": what, **figure["wall"], "pairs": figure["pairs"], "goal": goal}


def inference(size: Sizes) -> list[dict[str, Any]]:
    """Relative and stitched classifiers over the absolute one, bf16."""
    rows = []
    for name, config in size.encoders.items():
        model = absolute(config, torch.bfloat16)
        whole = relative(model, size.anchors, size.tokens)
        stitched = stitch(whole, whole.decoder)
        for batch, (kind, subject) in itertools.product(
            size.batches, {"relative": whole, "stitched": stitched}.items()
        ):
            inputs = inputs_of(batch, size.tokens)
            with torch.inference_mode():
                figure = paired(lambda: subject(**inputs), lambda: model(**inputs), size.pairs)  # noqa: B023
            what = f"{kind}, {name}, {batch} x {size.tokens} tokens"
            rows.append(line(what, figure, "at most 1.02" if batch > 1 else ""))
    return rows


def waits(size: Sizes) -> list[dict[str, Any]]:
    """How often a forward pass makes the host wait: ours beside the absolute one's."""
    rows = []
    for name, config in size.encoders.items():
        model = absolute(config, torch.bfloat16)
        subjects_by_name = {"absolute": model, "relative": relative(model, size.anchors, size.tokens)}
        counts = {kind: count_waits(one, inputs_of(2, size.tokens)) for kind, one in subjects_by_name.items()}
        rows.append({"what": f"host waits in a forward pass, {name}", **counts, "goal": "none of ours"})
    return rows


def count_waits(model: Any, inputs: dict[str, Tensor]) -> int:
    """Values that the host reads and copies between host and device in one forward pass, after one to warm up."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device().type == "cuda" else [])]
    with torch.inference_mode():
        model(**inputs)
        finish()
        with profile(activities=activities) as seen:
            model(**inputs)
            finish()
    # `aten::item` calls `_local_scalar_dense`: the latter is counted.
    return sum(event.count for event in seen.key_averages() if event.key.startswith((WAITS[0], *WAITS[2:])))


def finetuning(size: Sizes) -> list[dict[str, Any]]:
    """The `Trainer` with the default schedule over the same with an absolute head, in mixed precision."""
    config, found = next(iter(size.encoders.values())), Pairs()
    on_cpu = device().type == "cpu"
    how = {"use_cpu": on_cpu, "bf16": not on_cpu}
    for _ in range(min(2, size.pairs)):
        whole = relative(absolute(config, torch.float32), size.anchors, size.tokens)
        first = trainer_seconds(whole, [AnchorCallback()], size.steps, **how)
        found.add(first, trainer_seconds(absolute(config, torch.float32), [], size.steps, **how))
    return [line(f"the Trainer: {size.steps - 1} steps, default schedule", found.to_dict(), "at most 1.05")]


def refresh(size: Sizes) -> list[dict[str, Any]]:
    """All anchors at once, in steps of the absolute model."""
    rows = []
    config = next(iter(size.encoders.values()))
    for k in size.refreshed:
        whole = relative(absolute(config, torch.bfloat16), k, size.tokens)
        step = stepper(absolute(config, torch.bfloat16), inputs_of(min(32, size.samples), size.tokens, labels=True))
        callback = AnchorCallback()

        def run() -> None:
            callback.refresh(whole)  # noqa: B023

        rows.append(line(f"a refresh of {k} anchors, in absolute steps of 32", paired(run, step, size.pairs)))
    return rows


def projection(size: Sizes) -> list[dict[str, Any]]:
    """Bare products over ours, so that 1 is as fast; and which share of the device's rate the bare ones reach."""
    rows = []
    torch.manual_seed(0)
    x_ND = torch.randn(size.samples, size.width, device=device())
    anchors_AD = torch.randn(size.anchors, size.width, device=device())
    basis_AA = torch.randn(size.anchors, size.anchors, device=device())
    subjects_by_name = {"cosine": made(PAPER, anchors_AD.cpu()), "the default": made(DEFAULT, anchors_AD.cpu())}
    for name, how, dtype in (
        ("float32", "highest", torch.float32),
        ("TF32", "high", torch.float32),
        ("bf16 inputs", "highest", torch.bfloat16),
    ):
        given_ND = x_ND.to(dtype)
        torch.set_float32_matmul_precision(how)
        rate = matmul_rate(size.square)
        for kind, module in subjects_by_name.items():
            module.to(device())

            def bare() -> Tensor:
                r_NA = given_ND.float() @ anchors_AD.T  # noqa: B023
                return r_NA @ basis_AA if kind != "cosine" else r_NA  # noqa: B023

            with torch.inference_mode():
                figure = paired(bare, lambda: module(given_ND), size.pairs)  # noqa: B023
            products = size.samples * size.anchors * (size.width + (size.anchors if kind != "cosine" else 0))
            reached = 2 * products / figure["wall"]["seconds"][1] / rate
            rows.append(line(f"bare products over {kind}, {name}", figure, "at least 0.85") | {"of the rate": reached})
    torch.set_float32_matmul_precision("highest")
    return rows


def matmul_rate(side: int) -> float:
    """Operations per second of a square product, in the precision that is set: the best of five."""
    a, b = (torch.randn(side, side, device=device()) for _ in range(2))
    return 2 * side**3 / min(clock(lambda: a @ b)[0] for _ in range(5))


def compiled(size: Sizes) -> list[dict[str, Any]]:
    """Both compiled."""
    model = absolute(next(iter(size.encoders.values())), torch.bfloat16)
    whole = relative(model, size.anchors, size.tokens)
    inputs = inputs_of(size.batches[1], size.tokens)
    ours, theirs = (torch.compile(one, backend=size.compiler) for one in (whole, model))
    with torch.inference_mode():
        figure = paired(lambda: ours(**inputs).logits, lambda: theirs(**inputs).logits, size.pairs)
    return [line(f"torch.compile: relative, {size.batches[1]} x {size.tokens} tokens", figure, "at most 1.02")]


def memory(size: Sizes) -> list[dict[str, Any]]:
    """Peak memory of a training step, ours over the absolute one; nothing where torch does not count it."""
    here = device()
    if here.type not in ("cuda", "xpu"):
        return []
    config, counts = next(iter(size.encoders.values())), {}
    counter = getattr(torch, here.type)
    for kind in ("absolute", "relative"):
        model = absolute(config, torch.bfloat16)
        model = model if kind == "absolute" else relative(model, size.anchors, size.tokens)
        step = stepper(model, inputs_of(32, size.tokens, labels=True))
        step()
        counter.reset_peak_memory_stats()
        step()
        counts[kind] = counter.max_memory_allocated() / 2**20
        del model, step
    return [{"what": "peak memory of a training step of 32, MiB", **counts, "goal": ""}]


ITEMS: dict[str, Callable[[Sizes], list[dict[str, Any]]]] = {
    "waits": waits,
    "inference": inference,
    "finetuning": finetuning,
    "refresh": refresh,
    "projection": projection,
    "memory": memory,
    "compiled": compiled,
}


# -- Running and telling it


def measure(size: Sizes, minutes: float) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of all items, and the items that would have begun too late."""
    rows, late, started = [], [], time.monotonic()
    for name, item in ITEMS.items():
        if time.monotonic() - started > 60 * minutes * 0.8:  # none takes more than the rest
            late.append(name)
            continue
        with quiet(), timed(name):
            rows += item(size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows, late


def tables(found: dict[str, Any]) -> list[str]:
    """Markdown: the ratios, then the counts, then where they were measured."""
    ratios = [
        (
            row["what"],
            f"{row['ratio']:.3f} ({row['range'][0]:.2f} to {row['range'][1]:.2f})",
            *_seconds(row),
            row["goal"],
        )
        for row in found["rows"]
        if "ratio" in row
    ]
    counts = [
        (row["what"], row["absolute"], row["relative"], row["goal"]) for row in found["rows"] if "absolute" in row
    ]
    late = f"Left out for want of time: {', '.join(found['late'])}." if found["late"] else ""
    return [
        markdown(("what", "ratio: median (range)", "seconds", "of the matmul rate", "goal"), ratios),
        "",
        markdown(("what", "absolute", "relative", "goal"), counts),
        "",
        f"*{found['device']}{', small sizes' if found['small'] else ''}. {late}*",
    ]


def _seconds(row: dict[str, Any]) -> tuple[str, str]:
    ours, theirs = row["seconds"]
    return f"{ours:.3g} over {theirs:.3g}", f"{row['of the rate']:.0%}" if "of the rate" in row else "-"


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, and write the figures of an accelerator."""
    parser = argparse.ArgumentParser("benchmarks.accelerator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, also on an accelerator")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="when to stop beginning something new")
    parser.add_argument("--output", type=Path, help="where the JSON goes, also that of small sizes")
    arguments = parser.parse_args(words)
    is_small = arguments.quick or device().type == "cpu"
    if device().type == "cpu":
        console.print("No accelerator found: small sizes, to see that it works. Their figures mean nothing.")
    rows, late = measure(sizes(is_small), arguments.minutes)
    found = {"device": name_of_device(), "small": is_small, "rows": rows, "late": late, "machine": machine()}
    console.print("\n".join(tables(found)), markup=False)
    if arguments.output or not is_small:
        write(arguments.output or RESULTS, found)
    return found


if __name__ == "__main__":
    main()
