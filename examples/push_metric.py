"""Push a metric of the library as a Space, so that `evaluate.load("me/latent_similarity")` finds it.

    python examples/push_metric.py latent_similarity me/latent_similarity

It needs a token that may write there, from `hf auth login` or in `HF_TOKEN`.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hf_relreps import metrics


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


def main() -> int:
    """Push the metric that is named; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metric", choices=metrics.NAMES)
    parser.add_argument("space", help="user or organization, a slash, and the name of the metric")
    parser.add_argument("--private", action="store_true", help="only you can see and use a new Space")
    options = parser.parse_args()
    try:
        print(push_metric(options.metric, options.space, private=options.private))
    except (ValueError, OSError, HfHubHTTPError) as error:
        print(f"push_metric: {error}", file=sys.stderr)
        return 2
    return 0


def push_metric(name: str, repo_id: str, *, private: bool | None = None) -> CommitInfo:
    """Make the Space if it does not exist, and push the metric's script, a card and a page to try it, as one commit.

    Args:
        name: Of the metric.
        repo_id: Space; `evaluate` looks for a script of its name, so it must end with ``/`` and the metric's name.
        private: Whether a new Space is private.

    Raises:
        EvaluationError: If there is no such metric.
        ValueError: If the Space has another name.
    """
    files = files_of(name, repo_id)
    api = HfApi(library_name="hf_relreps")
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    operations = [CommitOperationAdd(file, text.encode()) for file, text in files.items()]
    return api.create_commit(repo_id, operations, commit_message="Upload with hf_relreps", repo_type="space")


def files_of(name: str, repo_id: str) -> dict[str, str]:
    """What the Space of a metric holds: name -> content."""
    script = Path(metrics.path(name))
    owner, _, last = repo_id.rpartition("/")
    if last != name:
        raise ValueError(
            f"evaluate.load({repo_id!r}) looks for {last}.py, the metric is {name}. Push it to {owner or 'me'}/{name}."
        )
    facts = {
        "name": name,
        "repo_id": repo_id,
        "title": name.replace("_", " ").capitalize(),
        "description": DESCRIPTIONS[name],
        "example": EXAMPLES[name],
    }
    return {
        script.name: script.read_text("utf-8"),
        "README.md": SPACE_CARD.format(**facts),
        "app.py": SPACE_APP.format(**facts),
        "requirements.txt": f"hf_relreps>={version('hf_relreps')}\n",
    }


if __name__ == "__main__":
    sys.exit(main())
