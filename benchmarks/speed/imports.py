"""8 `import hf_relreps` in a process of its own, beside the import of what it needs from other libraries."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.speed.timing import Pairs, row


# The parts of other libraries that a relative model, its callback and its uploads are made of.
NEEDS = """
import torch
from accelerate import PartialState
from huggingface_hub import HfApi, ModelCard, ModelCardData
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, MODEL_MAPPING
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, initialization
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modelcard import extract_hyperparameters_from_trainer
"""


def _child() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(code: str) -> tuple[float, float]:
    wall, processor = time.perf_counter(), _child()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - wall, _child() - processor


def run(quick: bool = False) -> dict[str, Any]:
    """Whole processes, alternating."""
    found = Pairs()
    _seconds("import hf_relreps"), _seconds(NEEDS)
    for _ in range(2 if quick else 7):
        found.add(_seconds("import hf_relreps"), _seconds(NEEDS))
    return {"rows": [row("import hf_relreps over its needs", found.to_dict(), "at most 1.15")]}
