"""What a reload in half precision does to a classifier's logits, and how much of that comes from the anchors.

    python -m benchmarks.precision --assets assets

Real encoder (all-MiniLM-L6-v2), 11 sections of Debian packages, 300 anchors. The decoder is fitted in closed form on
2,000 descriptions of the train split; logits are those of the test split. Each figure is the root mean square change
of a logit against the model in float32, as a share of the logits' standard deviation, over `--seeds` draws of anchors:

- encoder: the encoder in half precision, anchors and decoder as they were. The encoder's own rounding.
- reload: the whole upload loaded with ``dtype=``, as a user does.
- anchors as stored: float32 encoder and decoder with the anchors of that reload. They are stored in float32.
- anchors rounded: the same with anchors in half precision, which this library does not do. The control.
- anchors encoded again: encoder in half precision with anchors that it has encoded itself.
- absolute: a ridge classifier on the absolute embeddings, encoder in half precision. The control without anchors.

Shapes: N samples, D absolute size, A anchors, R relative size, C classes.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.assets.text_encoders import load_text_encoder
from benchmarks.reporting import console, machine, markdown, quiet, write
from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, RelativeModelForSequenceClassification
from hf_relreps.demos.debian import load_debian_descriptions


RESULTS = Path(__file__).parent / "results" / "precision.json"
HALVES = (torch.bfloat16, torch.float16)
ANCHORS, FITTED, LONGEST = 300, 2_000, 64
RIDGE = 0.1  # of the absolute control, in units of the mean variance


def absolute_logits(x_ND: Tensor, fitted_ND: Tensor, labels_N: Tensor) -> Tensor:
    """Of a ridge regression from absolute embeddings to classes (N, C), fitted on others."""
    mean_D, targets_NC = fitted_ND.mean(0), torch.nn.functional.one_hot(labels_N).double()
    centred_ND = (fitted_ND - mean_D).double()
    covariance_DD = centred_ND.T @ centred_ND
    loading = RIDGE * covariance_DD.diagonal().mean() * torch.eye(len(covariance_DD), dtype=torch.float64)
    map_DC = torch.linalg.solve(covariance_DD + loading, centred_ND.T @ (targets_NC - targets_NC.mean(0)))
    return ((x_ND - mean_D).double() @ map_DC + targets_NC.mean(0)).float()


@torch.no_grad()
def relative_logits(model: RelativeModelForSequenceClassification, x_ND: Tensor, decoder: RelativeDecoder) -> Tensor:
    """Of absolute embeddings (N, D), float32: by the projection of a model and a decoder."""
    return decoder(relative_embeds=model.encoder.projection(x_ND)).logits.float()


def with_anchors(model: Any, anchors_AD: Tensor) -> Any:
    """The same model with other embeddings of its anchors."""
    other = copy.deepcopy(model)
    other.encoder.put_anchors(anchors_AD.float(), exact=True)
    return other


def change(logits_NC: Tensor, reference_NC: Tensor) -> tuple[float, float]:
    """Root mean square change as a share of the standard deviation, and the share of answers that differ."""
    moved = (logits_NC - reference_NC).square().mean().sqrt() / reference_NC.std()
    return float(moved), float((logits_NC.argmax(1) != reference_NC.argmax(1)).float().mean())


def of_seed(bert: Any, tokenizer: Any, features: dict[Any, Any], labels_N: Tensor, seed: int) -> dict[Any, Any]:
    """By half precision and what was changed: how much logits change, and how many answers."""
    words = load_debian_descriptions("train")["en"][FITTED:]
    chosen = np.random.default_rng(seed).choice(len(words), ANCHORS, replace=False)
    view = AnchorSet([str(i) for i in chosen], {"en": [words[int(i)] for i in chosen]}).view("en")
    model = RelativeModelForSequenceClassification.from_encoder(
        bert, view, tokenizer, num_labels=int(labels_N.max()) + 1, max_length=LONGEST
    ).eval()
    exact_ND, fitted_ND = features[torch.float32]
    model.decoder.fit(model.encoder.projection(fitted_ND), labels_N)
    reference_NC, found = relative_logits(model, exact_ND, model.decoder), {}
    absolute_NC = absolute_logits(exact_ND, fitted_ND, labels_N)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for dtype in HALVES:
            x_ND = features[dtype][0]
            reloaded = RelativeModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
            stored_AD = reloaded.encoder.projection.anchors_AD
            again = copy.deepcopy(reloaded)
            again.encoder.encode_anchors(view)
            own = model.decoder
            cases = {
                "encoder": relative_logits(model, x_ND, own),
                "reload": relative_logits(reloaded, x_ND, reloaded.decoder),
                "anchors as stored": relative_logits(with_anchors(model, stored_AD), exact_ND, own),
                "anchors rounded": relative_logits(with_anchors(model, stored_AD.to(dtype)), exact_ND, own),
                "anchors encoded again": relative_logits(again, x_ND, own),
            }
            found[dtype] = {name: change(logits_NC, reference_NC) for name, logits_NC in cases.items()}
            found[dtype]["absolute"] = change(absolute_logits(x_ND, fitted_ND, labels_N), absolute_NC)
    return found


def encode(bert: Any, tokenizer: Any, dtype: torch.dtype, *texts: list[str]) -> list[Tensor]:
    """Absolute embeddings (N, D) of lists of texts by the encoder in a precision; none but float32 fits a decoder."""
    view = AnchorSet(["0", "1", "2"], {"en": texts[0][:3]}).view("en")
    encoder = RelativeModel.from_encoder(copy.deepcopy(bert).to(dtype), view, tokenizer, max_length=LONGEST)
    return [encoder.encode(some) for some in (texts if dtype == torch.float32 else texts[:1])]


def main(words: list[str] | None = None) -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser("benchmarks.precision", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--assets", type=Path, help="folder of assets: see benchmarks/assets")
    parser.add_argument("--seeds", type=int, default=5, help="draws of anchors")
    parser.add_argument("--samples", type=int, default=500, help="texts of the test split")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args(words)
    train, test = load_debian_descriptions("train"), load_debian_descriptions("test")
    texts, fitted = test["en"][: arguments.samples], train["en"][:FITTED]
    labels_N = torch.tensor(train["label"][:FITTED])
    with quiet():
        bert, tokenizer = load_text_encoder("minilm", arguments.assets)
        features = {dtype: encode(bert, tokenizer, dtype, texts, fitted) for dtype in (torch.float32, *HALVES)}
        runs = [of_seed(bert, tokenizer, features, labels_N, seed) for seed in range(arguments.seeds)]
    rows = []
    for dtype in HALVES:
        for name in runs[0][dtype]:
            moved, differ = np.array([run[dtype][name] for run in runs]).T
            rows.append(
                {
                    "precision": str(dtype).removeprefix("torch."),
                    "what": name,
                    "change": [float(moved.mean()), float(moved.min()), float(moved.max())],
                    "answers": float(differ.mean()),
                }
            )
    shown = [
        (row["precision"], row["what"], "{:.5f} ({:.5f} to {:.5f})".format(*row["change"]), f"{row['answers']:.2%}")
        for row in rows
    ]
    console.print(markdown(("precision", "changed", "change of a logit (range)", "answers that differ"), shown))
    write(arguments.output, {"rows": rows, "seeds": arguments.seeds, "machine": machine()})


if __name__ == "__main__":
    main()
