"""Does a language model use what a probe of another one reads? Its next token, with the state changed along the probe.

That two models agree in cosines, or that a probe reads a class, does not say that the model works with it. So the
decoder of another model is pulled back through the relative projection: the gradient of its logits by the hidden
state is a direction in this model's own space. The state at which the assistant begins is moved along it, and the
layers above go on from there.

Shapes: N samples, D width, C classes, V tokens, B batch, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.probes.data import ANSWERS, Talk
from hf_relreps.samples import batches


Logits = Callable[[Tensor], Tensor]  # hidden states (N, D) -> logits (N, C) of a probe


def tokens_of(tokenizer: Any, probe: str) -> Tensor:
    """Which token (V, C) is the answer of which class."""
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(ANSWERS[probe])))
    return torch.nn.functional.one_hot(ids, len(tokenizer)).T.float()


def says(
    model: Any, tokenizer: Any, talks: Sequence[Talk], kinds_VC: Tensor, depth: int = 0, moved_ND: Tensor | None = None
) -> Tensor:
    """How likely each class is as next token, among all classes (N, C).

    With `moved_ND` the hidden state of the last token at a depth is replaced.
    """
    found_NC = torch.empty(len(talks), kinds_VC.shape[1])
    for rows, inputs in batches(talks, tokenizer, 64):
        last_B = inputs["attention_mask"].sum(1) - 1  # padding is on the right
        with replaced(model, depth, last_B, None if moved_ND is None else moved_ND[rows]):
            states_BTD = model.base_model(**inputs, use_cache=False).last_hidden_state
        logits_BV = model.get_output_embeddings()(states_BTD[torch.arange(len(rows)), last_B])
        mass_BC = logits_BV.softmax(-1) @ kinds_VC
        found_NC[rows] = mass_BC / mass_BC.sum(1, keepdim=True)
    return found_NC


@contextmanager
def replaced(model: Any, depth: int, last_B: Tensor, moved_BD: Tensor | None) -> Iterator[None]:
    """The hidden state of each last token is another one; depth 1 is what the first layer gives."""
    if moved_BD is None:
        yield
        return

    def replace(module: Any, inputs: Any, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD.clone()
        hidden_BTD[torch.arange(len(last_B)), last_B] = moved_BD
        return hidden_BTD

    hook = model.base_model.layers[depth - 1].register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def gradients(logits_of: Logits, x_ND: Tensor) -> Tensor:
    """Where each class lies from each state: the gradients (N, C, D) of the logits, less their mean."""
    with torch.enable_grad():
        x_ND = x_ND.detach().clone().requires_grad_()
        logits_NC = logits_of(x_ND)
        num = logits_NC.shape[1]
        parts = [torch.autograd.grad(logits_NC[:, c].sum(), x_ND, retain_graph=True)[0] for c in range(num)]
    found_NCD = torch.stack(parts, 1)
    return found_NCD - found_NCD.mean(1, keepdim=True)


def class_means(x_ND: Tensor, classes_N: Tensor, num: int, rows: int) -> Tensor:
    """The same of labelled states of the model itself: where the mean of each class lies from that of all."""
    of_class = [x_ND[classes_N == c] for c in range(num)]
    means_CD = torch.stack([one.mean(0) if len(one) else x_ND.mean(0) for one in of_class])
    return (means_CD - means_CD.mean(0)).expand(rows, -1, -1)


def at_random(like_NCD: Tensor, seed: int) -> Tensor:
    """The same, but anywhere: for each class one direction."""
    drawn_CD = torch.from_numpy(np.random.default_rng(seed).normal(size=like_NCD.shape[1:])).to(like_NCD.dtype)
    return (drawn_CD - drawn_CD.mean(0)).expand_as(like_NCD)


def pushed(x_ND: Tensor, where_NCD: Tensor, own_N: Tensor, target_N: Tensor, strength: float) -> Tensor:
    """States moved from their own class to another, by a share of their length."""
    each_N = torch.arange(len(x_ND))
    way_ND = normalize(where_NCD[each_N, target_N] - where_NCD[each_N, own_N], dim=-1)
    return x_ND + strength * x_ND.norm(dim=-1, keepdim=True) * way_ND


def without(x_ND: Tensor, where_NCD: Tensor) -> Tensor:
    """States with nothing but the mean in the C - 1 directions that tell the classes apart."""
    basis_NDK = torch.linalg.qr(where_NCD[:, :-1].mT).Q  # the last one is minus the sum of the others
    apart_ND = x_ND - x_ND.mean(0)
    return x_ND - (basis_NDK @ (basis_NDK.mT @ apart_ND[..., None]))[..., 0]
