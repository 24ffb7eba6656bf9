"""How far to trust an answer of a stitched model, told without labels: `calibrate` for errors, `Judge` for strangers.

Two numbers, since what tells wrong answers does not tell foreign inputs, and the reverse (`docs/trust.md`).

- *Score*: the decoder, behind its own encoder, teaches a second decoder that reads the other encoder: a ridge
  regression on to its probabilities, on anchors and unlabelled pairs. Where the two disagree, the answer is doubtful.
  The mean of their probabilities is what is believed, as sharp as suits pairs that were left out.
- *Familiarity*: how far a sample lies from the anchors, in units of their own covariance, as a share: how many of them
  lie as far out when each is compared with the others.

Shapes: N samples, K known samples, D absolute size, A anchors, R relative size, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_relreps.backbones import BUILDING, evaluating
from hf_relreps.configuration import MEAN, SINGLE, RelativeDecoderConfig
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.errors import EvaluationError
from hf_relreps.modeling import RelativeTaskModel, decode
from hf_relreps.prediction import FEWEST_PAIRS, sharpening
from hf_relreps.ridge import fit_ridge, sharpness
from hf_relreps.similarities import unit
from hf_relreps.stitching import Part, as_pairs, represented
from hf_relreps.tasks import in_words


SHRINKAGE = 0.01  # share of the mean variance in the covariance of known samples
LEAST = 1e-12


@torch.no_grad()
def calibrate(
    model: RelativeTaskModel, *, own_encoder: Part, pairs: tuple[Sequence[Any], Sequence[Any]]
) -> RelativeTaskModel:
    """A stitched classifier whose probabilities say how often it is right, told from unlabelled pairs.

    Its decoder is the mean of two: the model's own, and one that this has taught behind its own encoder. So the score
    of a `pipeline` is the number to trust, and a few more answers are right (`docs/trust.md`). It is saved, pushed and
    exported like any other model; the encoder still runs once. Another encoder is stitched to the decoder as it was,
    and calibrated by itself.

    Args:
        model: A stitched classifier. It is not changed; the result shares its encoder's weights.
        own_encoder: The encoder that its decoder was trained with.
        pairs: Samples for the model, and samples of the same meanings for `own_encoder`: a hundred or more, neither
            anchors nor training data.

    Raises:
        EvaluationError: If there are too few pairs or their numbers differ, or each sample has not one class.
        StitchingError: If `own_encoder` does not fit the decoder.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.trust import calibrate
        >>> pairs = load_debian_descriptions("test").select(range(120))  # labels are not read
        >>> model = calibrate(stitch(french, english), own_encoder=english, pairs=(pairs["fr"], pairs["en"]))
        >>> answers = pipeline("text-classification", model=model, tokenizer=model.processor)("un jeu de cartes")
        >>> 0 <= answers[0]["score"] <= 1
        True
        >>> model.config.decoder.temperature > 0
        True

        ```
    """
    decoder = model.decoder
    if decoder.config.decoder_type == MEAN:
        raise EvaluationError(
            "The model is calibrated already. Calibrate the model that it was made of: calibrate(stitch(encoder, "
            "decoder), ...)."
        )
    if decoder.config.problem_type == "multi_label_classification" or decoder.config.decoder_type not in SINGLE:
        raise EvaluationError(
            f"The decoder is of type {decoder.config.decoder_type!r} and for {decoder.config.problem_type}; only "
            "where each sample has one class it is known how to calibrate. Of several decoders take one: "
            "model.select(name)."
        )
    pairs = as_pairs(pairs)
    if len(pairs[0]) < FEWEST_PAIRS:
        raise EvaluationError(f"Found {len(pairs[0])} pairs, expected {FEWEST_PAIRS} or more. Give more of them.")
    r_NR, own_NR, num_anchors = represented(model.encoder, decoder, own_encoder, pairs, with_anchors=True)
    with evaluating(decoder):
        mean = mean_with_taught(decoder, r_NR, own_NR, num_anchors)
    return type(model).from_parts(model.encoder.share(), mean).eval()


@torch.no_grad()
def mean_with_taught(decoder: RelativeDecoder, r_NR: Tensor, own_NR: Tensor, num_anchors: int) -> RelativeDecoder:
    """The mean of a decoder and of one that it teaches: see `calibrate`.

    Args:
        decoder: The teacher, in evaluation mode.
        r_NR: Relative representations by the other encoder, of the anchors first and then of the pairs.
        own_NR: Those of the same samples by the decoder's own encoder.
        num_anchors: How many of them are anchors, which say nothing of how sharp to be: they describe themselves.
    """
    r_NR, own_NR = r_NR.to(decoder.device), own_NR.to(decoder.device)
    own_NC = decoder(own_NR).logits.float().softmax(-1)
    config = decoder.config
    labels = {"id2label": config.id2label, "label2id": config.label2id, "problem_type": "single_label_classification"}
    same = {"space": config.space, "modality": config.modality, "anchor_view": config.anchor_view}
    with BUILDING:
        taught = RelativeDecoder(RelativeDecoderConfig(decoder_type="linear", **same, **labels)).to(decoder.device)  # type: ignore[arg-type]
    fit = fit_ridge(taught.norm(r_NR.float()), own_NC)
    scale = sharpness(fit.left_out_NC, own_NC.argmax(-1))
    taught.output.weight.copy_(scale * fit.weight_CR)
    taught.output.bias.copy_(scale * fit.bias_C)
    taught.is_new = False
    left_out_NC = (scale * fit.left_out_NC).softmax(-1)
    log_NC = ((decoder(r_NR).logits.double().softmax(-1) + left_out_NC) / 2).clamp_min(LEAST).log()[num_anchors:]
    said_NC = nn.functional.one_hot(own_NC[num_anchors:].argmax(-1), own_NC.shape[-1]).double()
    decoders = {"taught": taught.eval(), "teacher": decoder}
    return RelativeDecoder.mean_of(decoders, temperature=1 / sharpening(log_NC, said_NC)).eval()


class Familiarity:
    """How many of the known samples are at least as unusual as a sample: a share, near zero for foreign inputs.

    Samples are compared by the directions in which they lie from the mean, in units of the known samples' covariance
    (Mahalanobis). The known ones are compared with the others each, so what is like them is spread evenly over 0 to 1.

    Args:
        known_KD: Absolute embeddings of known samples: the anchors, and more if there are.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.trust import Familiarity
        >>> draw = torch.Generator().manual_seed(0)
        >>> known_KD = torch.randn(400, 8, generator=draw) * torch.tensor([3.0] * 2 + [0.1] * 6)
        >>> familiarity = Familiarity(known_KD)
        >>> bool(familiarity(torch.eye(8)[7:] * 3)[0] < 0.01)
        True

        ```
    """

    def __init__(self, known_KD: Tensor) -> None:
        if known_KD.ndim != 2 or len(known_KD) < 2:
            raise EvaluationError(
                f"The known samples have shape {tuple(known_KD.shape)}, expected (K, D) with two or more. Give the "
                "anchors' embeddings: encoder.anchors_AD."
            )
        known_KD = known_KD.detach().cpu().double()
        self.mean_D = known_KD.mean(0)
        directions_KD = unit(known_KD - self.mean_D)
        self.direction_D = directions_KD.mean(0)
        centred_KD = directions_KD - self.direction_D
        covariance_DD = centred_KD.T @ centred_KD / len(centred_KD)
        shrunk = SHRINKAGE * covariance_DD.diagonal().mean().clamp_min(LEAST)
        identity_DD = torch.eye(len(covariance_DD), dtype=covariance_DD.dtype)
        self.precision_DD = torch.linalg.inv((1 - SHRINKAGE) * covariance_DD + shrunk * identity_DD)
        own_K = self._distance(known_KD)
        # As if each were left out of the covariance (Sherman-Morrison).
        self.known_K = (own_K / (1 - (1 - SHRINKAGE) * own_K / len(own_K)).clamp_min(LEAST)).sort().values

    def _distance(self, x_ND: Tensor) -> Tensor:
        centred_ND = unit(x_ND.detach().cpu().double() - self.mean_D) - self.direction_D
        return ((centred_ND @ self.precision_DD) * centred_ND).sum(-1)

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Shares (N,) in (0, 1] for absolute embeddings (N, D)."""
        nearer_N = torch.searchsorted(self.known_K, self._distance(x_ND))
        return (1 + len(self.known_K) - nearer_N).float() / (1 + len(self.known_K))


class Judge:
    """Answers of a model with the two numbers that say how far to trust them.

    ``score`` is the model's probability: calibrate the model first (`calibrate`), and it tells how often such answers
    are right. ``familiarity`` is near zero for an input that is nothing like what the model knows: see `Familiarity`.
    Answers are right or wrong only where the input is familiar.

    Args:
        model: A whole classifier, stitched or not.
        known: Samples without labels of the kind that the model is for, such as those of the pairs; the anchors count
            as known anyway. A few hundred make foreign inputs stand out more.
        batch_size: Samples in a batch of the encoder.

    Raises:
        EvaluationError: If the model gives no classes or numbers, or has several decoders.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.trust import Judge
        >>> judge = Judge(stitch(french, english), known=test["fr"])
        >>> sorted(judge(["un jeu de cartes"])[0])
        ['familiarity', 'label', 'score']

        ```
    """

    def __init__(self, model: RelativeTaskModel, known: Sequence[Any] | None = None, *, batch_size: int = 64) -> None:
        if model.config.decoder.decoder_type not in (*SINGLE, MEAN):
            raise EvaluationError(
                f"The model's decoder is of type {model.config.decoder.decoder_type!r}, expected one that gives "
                "classes or numbers. Of several decoders take one: model.select(name)."
            )
        self.model, self.batch_size = model, batch_size
        known_KD = model.encoder.anchors_AD.detach().float().cpu()
        if known is not None:
            known_KD = torch.cat([known_KD, model.encoder.encode(known, batch_size=batch_size)])
        self.familiarity = Familiarity(known_KD)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Any]) -> list[dict[str, Any]]:
        """A ``{"label":, "score":, "familiarity":}`` for each sample.

        Raises:
            SampleError: If a sample is empty or of another type.
        """
        encoder, decoder = self.model.encoder, self.model.decoder
        with evaluating(self.model):
            x_ND = encoder.encode(samples, batch_size=self.batch_size)
            logits_NC = decode(encoder, {"one": decoder}, x_ND)["one"]
        answers = in_words(logits_NC, decoder.config)
        best = [answer[0] if isinstance(answer, list) else answer for answer in answers]
        return [one | {"familiarity": share} for one, share in zip(best, self.familiarity(x_ND).tolist(), strict=True)]
