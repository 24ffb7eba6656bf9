"""Odd numbers through the projection, against a reference in float64 that shares no line with it.

A case is right if it differs from the reference by no more than the reference itself moves when its inputs are
rounded, or if an error names what is wrong. Shapes: B batch, D absolute size, A anchors, R relative size.
"""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import numpy as np
import torch

from benchmarks.reliability.report import Report
from hf_relreps import AnchorSet, RelativeEncoderConfig, RelativeModel, RelativeSpace
from hf_relreps.demos.tiny import small_bert, word_tokenizer
from hf_relreps.errors import EmbeddingError, RelrepsError, SampleError
from hf_relreps.projection import NO_SPREAD, RelativeProjection
from hf_relreps.similarities import KERNELS, SIMILARITIES
from hf_relreps.space import TRANSFORMS


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OF_DIRECTIONS = ("cosine", "angular", "rbf")
ROUNDINGS = 64  # how many roundings a number goes through, about
MANY = 10_000  # anchors


def run(count: int, seed: int) -> Report:
    """Try `count` random spaces, texts of every script, and in the long version ten thousand anchors."""
    report = Report(f"numbers: {count:,} random spaces, seed {seed}")
    worst = 0.0
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        case = case_of(rng)
        try:
            found_BR, expected_BR, allowed_BR = outcome(case, rng)
        except RelrepsError as error:
            report.counts["refused with a reason"] += 1
            expected = case["anchors"] in MAY_BE_REFUSED or _nothing_is_left(case)
            if isinstance(error, EmbeddingError) and not expected:
                report.lost.append(f"case {i} {_named(case)}: refused: {error}")
            continue
        share = _share_of_allowed(found_BR, expected_BR, allowed_BR)
        report.counts["right"] += 1
        worst = max(worst, share if np.isfinite(share) else 0.0)
        if not share <= 1:
            report.lost.append(f"case {i} {_named(case)}: {share:.1f} times what rounding explains")
    report.counts = type(report.counts)({"inputs tried": count}) + report.counts
    report.facts["largest error, as a share of what rounding explains"] = f"{worst:.2f}"
    _texts(report, min(count, 1_000), seed)
    if count >= 1_000:
        _many_anchors(report)
    return report


# -- random spaces

ODD_ANCHORS = ["all the same", "all on one line", "repeated", "opposite pairs", "one with no direction"]
ODD_ANCHORS += ["one that is not finite"]
ODD_SAMPLES = ["anchors themselves", "nearly anchors", "zero", "not a number", "infinite"]
MAY_BE_REFUSED = ("all the same", "all on one line", "one with no direction", "one that is not finite")


def case_of(rng: np.random.Generator) -> dict[str, Any]:
    """A space, what is odd about it, and a way of projecting."""
    names = [str(name) for name in rng.choice(list(SIMILARITIES), rng.choice([1, 1, 1, 2]), replace=False)]
    bounded = set(names) <= set(OF_DIRECTIONS)
    may_have_basis = set(names) <= set(KERNELS)
    return {
        "k": int(rng.choice([1, 2, 3, 5, 17, 64, 300])),
        "d": int(rng.choice([1, 2, 3, 16, 65, 768])),
        "batch": int(rng.choice([0, 1, 2, 7])),
        "dtype": DTYPES[rng.integers(len(DTYPES))],
        "transform": str(rng.choice(TRANSFORMS)),
        "similarity": names,
        "basis_ridge": float(rng.choice([0.03, 0.1, 1.0])) if may_have_basis and rng.random() < 0.6 else None,
        "scale": float(10.0 ** (rng.uniform(-30, 30) if bounded and rng.random() < 0.5 else rng.uniform(-2, 2))),
        "offset": float(rng.choice([0.0, 0.0, 1.0, 10.0, 100.0])),
        "anchors": str(rng.choice(["random"] * 6 + ODD_ANCHORS)),
        "samples": str(rng.choice(["random"] * 4 + ODD_SAMPLES)),
    }


def outcome(case: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the library gives, what the reference gives, and how far they may be apart, each (B, R).

    Raises:
        EmbeddingError: If the library refuses the anchors.
    """
    anchors_AD, x_BD = _space(case, rng)
    names = ("transform", "similarity", "basis_ridge")
    space = RelativeSpace(num_anchors=case["k"], **{name: case[name] for name in names})
    module = RelativeProjection(RelativeEncoderConfig(space=space, embedding_size=case["d"]))
    module = module.to(case["dtype"])  # anchors stay in float32 or better
    module.set_anchors(torch.from_numpy(anchors_AD))
    sample_BD = torch.from_numpy(x_BD).to(case["dtype"])
    found_BR = module(sample_BD).double().numpy()
    assert found_BR.shape == (case["batch"], case["k"] * len(case["similarity"]))
    held_AD, held_BD = module.anchors_AD.double().numpy(), sample_BD.double().numpy()
    with np.errstate(all="ignore"):
        eps = torch.finfo(module.anchors_AD.dtype).eps
        expected_BR, amplified_BR = reference(held_BD, held_AD, space, eps)
        allowed_BR = 2 * eps * amplified_BR + eps * np.abs(expected_BR)
        for _ in range(4):
            moved_BR, _ = reference(_rounded(held_BD, eps, rng), _rounded(held_AD, eps, rng), space, eps)
            allowed_BR = np.maximum(allowed_BR, 4 * np.nan_to_num(np.abs(moved_BR - expected_BR), nan=np.inf))
    return found_BR, expected_BR, allowed_BR + 1e-12


def _space(case: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    k, d, batch = case["k"], case["d"], case["batch"]
    centre_D = rng.standard_normal(d) * case["offset"]
    anchors_AD = rng.standard_normal((k, d)) + centre_D
    match case["anchors"]:
        case "all the same":
            anchors_AD[:] = anchors_AD[0]
        case "all on one line":
            anchors_AD = np.outer(rng.standard_normal(k), anchors_AD[0])
        case "repeated":
            anchors_AD = anchors_AD[rng.integers(0, max(1, k // 2), k)]
        case "opposite pairs":
            anchors_AD[k // 2 :] = -anchors_AD[: k - k // 2]
        case "one with no direction":
            anchors_AD[-1] = 0
        case "one that is not finite":
            anchors_AD[-1, 0] = np.inf
    x_BD = rng.standard_normal((batch, d)) + centre_D
    match case["samples"]:
        case "anchors themselves":
            x_BD = anchors_AD[rng.integers(0, k, batch)].copy()
        case "nearly anchors":
            x_BD = anchors_AD[rng.integers(0, k, batch)] * (1 + 1e-6 * rng.standard_normal((batch, d)))
        case "zero":
            x_BD[-1:] = 0
        case "not a number":
            x_BD[-1:, 0] = np.nan
        case "infinite":
            x_BD[-1:, 0] = np.inf
    return anchors_AD * case["scale"], x_BD * case["scale"]


def _rounded(x: np.ndarray, eps: float, rng: np.random.Generator) -> np.ndarray:
    return x * (1 + ROUNDINGS * eps * rng.uniform(-1, 1, x.shape))


def _share_of_allowed(found_BR: np.ndarray, expected_BR: np.ndarray, allowed_BR: np.ndarray) -> float:
    """The largest error as a share of what is allowed; what is not finite must be so in both."""
    if found_BR.size == 0:
        return 0.0
    finite_BR = np.isfinite(expected_BR) & (np.abs(expected_BR) < 1e30)
    if not np.isfinite(found_BR[finite_BR]).all():
        return float("inf")
    if np.isnan(expected_BR[~finite_BR]).any() and np.isfinite(found_BR[np.isnan(expected_BR)]).any():
        return float("inf")  # a sample that is not a number was given an answer
    errors = np.abs(found_BR - expected_BR)[finite_BR] / allowed_BR[finite_BR]
    return float(errors.max(initial=0.0))


def _nothing_is_left(case: dict[str, Any]) -> bool:
    """Whether few anchors, or one axis, leave a transform or a width nothing to work with."""
    return case["k"] <= 3 or case["d"] <= 2


def _named(case: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in case.items())


# -- the reference


def reference(
    x_BD: np.ndarray, anchors_AD: np.ndarray, space: RelativeSpace, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Relative representations (B, R) in float64, and what each of them is rounded in proportion to."""
    x_BD, anchors_AD = _transformed(x_BD, anchors_AD, space)
    parts, amplified, gamma = [], [], space.rbf_gamma or 0.0
    for name in space.similarity:
        r_BA = _alike(x_BD, anchors_AD, name, gamma)
        size_BA = np.abs(r_BA) * np.sqrt(anchors_AD.shape[1]) + _steepness(anchors_AD, name, gamma, eps)
        if space.basis_ridge is not None:
            kernel_AA = _alike(anchors_AD, anchors_AD, name, gamma)
            ridge = space.basis_ridge * np.mean(np.diag(kernel_AA))
            basis_AA = np.linalg.inv(kernel_AA + ridge * np.eye(len(kernel_AA)))
            r_BA, size_BA = r_BA @ basis_AA, np.sqrt(len(basis_AA)) * size_BA @ np.abs(basis_AA)
        parts.append(r_BA)
        amplified.append(size_BA)
    return np.concatenate(parts, -1), np.concatenate(amplified, -1)


def _transformed(x_BD: np.ndarray, anchors_AD: np.ndarray, space: RelativeSpace) -> tuple[np.ndarray, np.ndarray]:
    if space.transform == "none":
        return x_BD, anchors_AD
    mean_D = anchors_AD.mean(0)
    x_BD, centred_AD = x_BD - mean_D, anchors_AD - mean_D
    if space.transform == "standardize":
        deviation_D = np.sqrt((centred_AD**2).mean(0))
        kept_D = deviation_D > NO_SPREAD * np.abs(anchors_AD).max(0)
        scale_D = np.where(kept_D, 1 / np.where(kept_D, deviation_D, 1), 0)
        return x_BD * scale_D, centred_AD * scale_D
    if space.transform == "whiten":
        covariance_DD = centred_AD.T @ centred_AD / len(centred_AD)
        mean_variance = np.trace(covariance_DD) / len(covariance_DD)
        s = space.shrinkage
        values_D, vectors_DD = np.linalg.eigh((1 - s) * covariance_DD + s * mean_variance * np.eye(len(covariance_DD)))
        kept_D = values_D > NO_SPREAD * mean_variance
        root_D = np.where(kept_D, 1 / np.sqrt(np.where(kept_D, values_D, 1)), 0)
        scale_DD = vectors_DD @ np.diag(root_D) @ vectors_DD.T
        return x_BD @ scale_DD, centred_AD @ scale_DD
    return x_BD, centred_AD


def _steepness(anchors_AD: np.ndarray, name: str, gamma: float, eps: float) -> float:
    """By how much a similarity amplifies the rounding of a cosine."""
    if name == "angular":
        return 1 / np.sqrt(eps)  # arccos at the ends
    if name == "rbf":
        return 1 + 2 * gamma / _spread(anchors_AD)
    return 1.0 if name == "cosine" else 0.0


def _spread(anchors_AD: np.ndarray) -> float:
    k = len(anchors_AD)
    d2_AA = 2 - 2 * np.clip(_units(anchors_AD) @ _units(anchors_AD).T, -1, 1)
    return float(d2_AA.sum() / (k * (k - 1))) if k > 1 else 2.0


def _alike(x_BD: np.ndarray, anchors_AD: np.ndarray, name: str, gamma: float) -> np.ndarray:
    if name == "inner":
        return x_BD @ anchors_AD.T / np.sqrt(anchors_AD.shape[1])
    if name in OF_DIRECTIONS:
        cosine_BA = np.clip(_units(x_BD) @ _units(anchors_AD).T, -1, 1)
        if name == "cosine":
            return cosine_BA
        if name == "angular":
            return 1 - np.arccos(cosine_BA) / np.pi
        return np.exp(-gamma * (2 - 2 * cosine_BA) / _spread(anchors_AD))
    difference_BAD = np.abs(x_BD[:, None] - anchors_AD[None])
    if name == "l1":
        return -difference_BAD.sum(-1)
    if name == "linf":
        return -difference_BAD.max(-1)
    return -np.sqrt((difference_BAD**2).sum(-1))


def _units(x: np.ndarray) -> np.ndarray:
    largest = np.abs(x).max(-1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1)
    length = np.sqrt((x**2).sum(-1, keepdims=True))
    return x / np.where(length > 0, length, 1)


# -- texts

SCRIPTS = (
    *("LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "DEVANAGARI", "THAI", "HANGUL", "HIRAGANA", "CJK UNIFIED"),
    *("ETHIOPIC", "GEORGIAN", "ARMENIAN", "TAMIL", "KHMER", "MATHEMATICAL", "COMBINING", "EMOJI", "CUNEIFORM"),
)


def _texts(report: Report, count: int, seed: int) -> None:
    """Texts of every script, some too long, some empty: encoded as when they are alone, or refused by position."""
    rng = random.Random(seed)
    alphabet = [chr(code) for code in range(0x20, 0x1F700) if unicodedata.name(chr(code), "").startswith(SCRIPTS)]
    plain = ["a small cat", "a big dog", "two red birds", "old bread"]
    tokenizer = word_tokenizer(plain)
    encoder = RelativeModel.from_encoder(
        small_bert(len(tokenizer), longest=16, width=16, layers=1),
        AnchorSet("abcd", {"en": plain}).view("en"),
        tokenizer,
    )
    texts = ["".join(rng.choices(alphabet, k=rng.choice((1, 3, 20, 500)))) for _ in range(count)]
    texts = [text if text.strip() else "x" for text in texts] + ["word " * 5_000]
    together_ND = encoder.encode(texts)
    alone_ND = torch.cat([encoder.encode([text]) for text in texts[:: max(1, count // 50)]])
    difference = float((together_ND[:: max(1, count // 50)] - alone_ND).abs().max())
    report.counts["texts of every script"] = len(texts)
    report.facts["a text alone differs from one in a batch by"] = f"{difference:.1e}"
    if difference > 1e-5 or not together_ND.isfinite().all():
        report.lost.append(f"a text alone differs by {difference}")
    for empty in ("", " ", "\n", "\u3000", "\ud800"):
        try:
            encoder.encode([*plain, empty])
            report.lost.append(f"{empty!r} was encoded")
        except SampleError as error:
            report.counts["empty texts refused"] += 1
            if "[4]" not in str(error):
                report.lost.append(f"{empty!r} was refused without its position: {error}")


def _many_anchors(report: Report) -> None:
    """Ten thousand anchors with a change of basis: r (K + ridge I) must give the similarities back."""
    generator = torch.Generator().manual_seed(0)
    anchors_AD = torch.randn(MANY, 64, generator=generator)
    x_BD = torch.randn(4, 64, generator=generator)
    space = RelativeSpace(num_anchors=MANY)
    module = RelativeProjection(RelativeEncoderConfig(space=space, embedding_size=64))
    module.set_anchors(anchors_AD)
    r_BA = module(x_BD).double().numpy()
    x_BD, anchors_AD = _transformed(x_BD.double().numpy(), anchors_AD.double().numpy(), space)
    gamma, ridge = space.rbf_gamma or 0.0, space.basis_ridge or 0.0
    similar_BA = _alike(x_BD, anchors_AD, "rbf", gamma)
    kernel_AA = _alike(anchors_AD, anchors_AD, "rbf", gamma)
    back_BA = r_BA @ kernel_AA + ridge * r_BA  # the diagonal of rbf is one
    error = float(np.abs(back_BA - similar_BA).max())
    report.counts[f"spaces of {MANY:,} anchors"] = 1
    report.facts[f"{MANY:,} anchors: largest residual"] = f"{error:.1e}"
    if error > 1e-4:
        report.lost.append(f"{MANY} anchors: residual {error}")
