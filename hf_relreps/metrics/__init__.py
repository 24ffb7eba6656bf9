"""The library's measures as `evaluate` modules, which load offline from here and can be pushed as metric Spaces.

`latent_similarity` compares two latent spaces; `stitching_ratio` says how much of an own pair's score a stitched pair
keeps.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitInfo

from hf_relreps.errors import EvaluationError
from hf_relreps.spaces import push_space


NAMES = ("latent_similarity", "stitching_ratio")

SPACE_CARD = """---
title: {title}
sdk: gradio
app_file: app.py
pinned: false
tags: [evaluate, metric, relative-representations]
description: {description}
---

# {title}

{description}

```python
import evaluate

metric = evaluate.load("{repo_id}")
{example}
```

Made with [hf_relreps](https://pypi.org/project/hf_relreps), where it also loads without the Hub:
`evaluate.load(hf_relreps.metrics.path("{name}"))`.
"""
SPACE_APP = """import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load("{repo_id}"))
"""
DESCRIPTIONS = {
    "latent_similarity": "How alike two latent spaces are, from samples that both describe.",
    "stitching_ratio": "How much of an own pair's score a stitched encoder and decoder keep, beside chance.",
}
EXAMPLES = {
    "latent_similarity": "metric.compute(predictions=x, references=y, k=10)  # row i of both is the same sample",
    "stitching_ratio": "metric.compute(predictions=stitched, own_predictions=own, references=labels, metric='f1')",
}


def path(name: str) -> str:
    """Where the script of a metric lies, for `evaluate.load`.

    Raises:
        EvaluationError: If there is no such metric.

    Example:
        ```python
        >>> import evaluate
        >>> from hf_relreps.metrics import path
        >>> metric = evaluate.load(path("latent_similarity"))
        >>> x_ND = english.encoder.encode(test["en"])
        >>> round(metric.compute(predictions=x_ND, references=2 * x_ND, k=10)["cka"], 3)
        1.0
        >>> own, stitched, labels = [0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1]
        >>> metric = evaluate.load(path("stitching_ratio"))
        >>> metric.compute(predictions=stitched, own_predictions=own, references=labels, metric="accuracy")["ratio"]
        0.75

        ```
    """
    if name not in NAMES:
        raise EvaluationError(f"There is no metric {name!r}. Choose one of {', '.join(NAMES)}.")
    return str(Path(__file__).with_name(f"{name}.py"))


def push_to_hub(
    name: str, repo_id: str, *, token: bool | str | None = None, private: bool | None = None
) -> CommitInfo:
    """Push a metric as a Space, so that `evaluate.load(repo_id)` finds it.

    Args:
        name: Of the metric.
        repo_id: Space; `evaluate` looks for a script of its name, so it must end with ``/`` and the metric's name.
        token: Of a user who may write there.
        private: Whether a new Space is private.

    Raises:
        EvaluationError: If there is no such metric, or the Space has another name.

    Example:
        ```python
        from hf_relreps import metrics

        metrics.push_to_hub("stitching_ratio", "me/stitching_ratio")
        ```
    """
    script = Path(path(name))
    owner, _, last = repo_id.rpartition("/")
    if last != name:
        raise EvaluationError(
            f"evaluate.load({repo_id!r}) looks for {last}.py, the metric is {name}. Push it to {owner}/{name}."
        )
    facts = {
        "name": name,
        "repo_id": repo_id,
        "title": name.replace("_", " ").capitalize(),
        "description": DESCRIPTIONS[name],
        "example": EXAMPLES[name],
    }
    files = {
        script.name: script.read_text("utf-8"),
        "README.md": SPACE_CARD.format(**facts),
        "app.py": SPACE_APP.format(**facts),
    }
    return push_space(repo_id, files, token=token, private=private)
