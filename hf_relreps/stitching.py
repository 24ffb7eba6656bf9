"""`stitch` an encoder and a decoder that never met, and `compatibility`: look before you do.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_relreps.anchors import AnchorSet
from hf_relreps.base_models import BUILDING
from hf_relreps.classification import (
    RelativeModelForAudioClassification,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
)
from hf_relreps.configuration import DECODER_FIELDS, IMAGE_DECODERS, LABEL_FIELDS, RelativeConfig
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.errors import (
    AnchorError,
    AnchorIntegrityError,
    EvaluationError,
    StaleAnchorsError,
    StitchingError,
    UploadError,
    UploadIntegrityError,
)
from hf_relreps.modeling import RelativeModel, RelativeTaskModel
from hf_relreps.nodes import RelativeModelForNodeClassification
from hf_relreps.prediction import Prediction, predicted
from hf_relreps.reconstruction import RelativeModelForImageReconstruction
from hf_relreps.sources import Source
from hf_relreps.translation import decoder_from_classifier
from hf_relreps.translation.classifiers import is_classifier, names_classifier, pair_of
from hf_relreps.translation.methods import method_of
from hf_relreps.wrapping import evaluating


logger = logging.get_logger(__name__)

TASK_CLASSES: tuple[type[RelativeTaskModel], ...] = (
    RelativeModelForSequenceClassification,
    RelativeModelForImageClassification,
    RelativeModelForAudioClassification,
    RelativeModelForNodeClassification,
    RelativeModelForImageReconstruction,
)

Part = str | Path | PreTrainedModel


def stitch(
    encoder: Part,
    decoder: Part,
    *,
    view: str | None = None,
    processor: Any = None,
    anchors: AnchorSet | str | Path | None = None,
    method: str | None = None,
    decoder_view: str | None = None,
    decoder_processor: Any = None,
) -> RelativeTaskModel:
    """The encoder of one upload with the decoder of another, without training (paper, section 5).

    Args:
        encoder: A relative model, its encoder, or the name of either. An ordinary model, or its name, becomes relative
            with the decoder's own anchors and projection.
        decoder: A relative model, its decoder, or the name of either. Or an ordinary classifier, such as
            `AutoModelForSequenceClassification` gives, or its name: the encoder is translated into its space over
            shared anchors, see `hf_relreps.translation`.
        view: For an ordinary model: the view of the anchors that it reads, for example ``"fr"``.
        processor: For an ordinary model: its tokenizer or image processor, if it was not loaded by name.
        anchors: For an ordinary classifier: the anchors that both read, or their name; those of a relative encoder if
            left out.
        method: For an ordinary classifier: a name in `hf_relreps.translation.METHODS`; ``kernel_ridge`` if left out.
        decoder_view: For an ordinary classifier: the view of the anchors that it reads.
        decoder_processor: For an ordinary classifier: its tokenizer or image processor, if it was not loaded by name.

    Returns:
        A whole model in evaluation mode that shares the weights of both parts, with a configuration of its own; it can
        be saved, pushed and used in a `pipeline` like any other.

    Raises:
        AnchorError: If an ordinary model could read several views and none, or an unknown one, is named.
        StaleAnchorsError: If the encoder's stored anchors are not its own.
        StitchingError: If the parts do not share anchors, their order, or the projection; with both sides' values. Or
            if the head of an ordinary classifier cannot be used alone.
        UploadError: If an upload lacks the part that it is asked for.

    Example:
        ```python
        >>> model = stitch("me/relative-fr", "me/relative-en")
        >>> bert, tokenizer = french.encoder.backbone, french.processor  # any AutoModel
        >>> model = stitch(bert, "me/relative-en", view="fr", processor=tokenizer)
        >>> _ = model.push_to_hub("me/french-by-english")
        >>> answers = pipeline("text-classification", model="me/french-by-english")("un jeu de cartes")
        >>> answers[0]["label"] in names.values()
        True

        ```
    """
    _refuse_decoder(encoder)
    if _is_ordinary(decoder, asked=anchors is not None or method is not None):
        way = (anchors, method or "kernel_ridge", view, processor, decoder_view, decoder_processor)
        encoder, decoder = _translated(encoder, decoder, *way)
    else:
        told = {"anchors": anchors, "method": method, "decoder_view": decoder_view}
        _refuse_idle(told | {"decoder_processor": decoder_processor}, decoder)
        decoder = resolve_decoder(decoder)
        encoder = resolve_encoder(encoder, decoder=decoder, view=view, processor=processor)
    check_compatible(encoder.config, decoder.config)
    _refuse_other_pair(encoder, decoder)
    refuse_stale(encoder)
    config = copy.deepcopy(encoder.config)
    for name in (*DECODER_FIELDS, *LABEL_FIELDS):
        setattr(config, name, copy.deepcopy(getattr(decoder.config, name)))
    decoder.to(encoder.device)  # type: ignore[arg-type]  # the wrapper of `to` hides self
    with BUILDING:
        model = _task_class(config)(config, encoder._under(config), decoder)
    model._carries(encoder._anchors, encoder._processor)
    return model.eval()


def _translated(
    encoder: Part,
    classifier: Part,
    anchors: AnchorSet | str | Path | None,
    method: str,
    view: str | None,
    processor: Any,
    decoder_view: str | None,
    decoder_processor: Any,
) -> tuple[RelativeModel, RelativeDecoder]:
    """The encoder with the projection that a translation needs, and an ordinary classifier's head as its decoder."""
    relative = _relative_encoder(encoder)
    if anchors is not None:
        shared = anchors if isinstance(anchors, AnchorSet) else AnchorSet.from_pretrained(anchors)
    elif relative is not None:
        shared = relative.anchors
    else:
        raise StitchingError(
            f"{_name(classifier)} is an ordinary classifier, and no anchors say where its space and the encoder's "
            "meet. Give an anchor set that both can read: stitch(encoder, classifier, anchors=anchors, "
            "view=..., decoder_view=...)."
        )
    projection = method_of(method).config()
    if relative is None:
        own_view = _view_for(shared, view, _name(encoder))
        relative = RelativeModel.from_encoder(encoder, own_view, processor, config=projection)
    else:
        _refuse_other_view(relative, view)
        refuse_stale(relative)
        relative = relative._under(copy.deepcopy(relative.config)).use_projection(projection)
    classifier_view = _view_for(shared, decoder_view, _name(classifier), "decoder_view")
    decoder = decoder_from_classifier(classifier, classifier_view, decoder_processor, method=method, encoder=relative)
    return relative, decoder


def _is_ordinary(decoder: Part, asked: bool) -> bool:
    """Whether what stands in the decoder's place is a classifier of transformers, or the name of one."""
    if not isinstance(decoder, str | Path):
        return is_classifier(decoder)
    config = Source.of(decoder).json("config.json") or {}
    return config.get("model_type") != RelativeConfig.model_type and (asked or names_classifier(config))


def _refuse_other_pair(encoder: RelativeModel, decoder: RelativeDecoder) -> None:
    if decoder.config.head_pair not in (None, pair_of(encoder)):
        raise StitchingError(
            "Cannot stitch: the decoder was fitted to one other encoder, or to this one before its anchors were "
            "encoded again. Fit it to this one: stitch(encoder, classifier, method=...), with the classifier "
            f"{decoder.config.head_name_or_path or 'that it was made from'}."
        )


def _refuse_idle(told: dict[str, Any], decoder: Part) -> None:
    idle = [name for name, value in told.items() if value is not None]
    if idle:
        raise StitchingError(
            f"{', '.join(idle)} are for ordinary classifiers; {_name(decoder)} is relative and has its own anchors. "
            "Leave them out."
        )


def _task_class(config: RelativeConfig) -> type[RelativeTaskModel]:
    """What reads this modality and gives what this decoder makes."""
    for task_class in TASK_CLASSES:
        if task_class.modality == config.modality and config.decoder_type in task_class.decoder_types:
            return task_class
    raise StitchingError(
        f"No model reads {config.modality}s and has a decoder of type {config.decoder_type!r}: images are drawn from "
        "images. Use the parts by themselves: decoder(encoder(**inputs).relative_embeds)."
    )


def resolve_encoder(
    encoder: Part, *, decoder: RelativeDecoder | None = None, view: str | None = None, processor: Any = None
) -> RelativeModel:
    """The `RelativeModel` that `encoder` is, holds, names, or becomes with the anchors of `decoder`."""
    _refuse_decoder(encoder)
    relative = _relative_encoder(encoder)
    if relative is not None:
        _refuse_other_view(relative, view)
        return relative
    if decoder is None:
        raise StitchingError(
            f"{_name(encoder)} is not relative, and no decoder says which anchors to use. "
            "Make it relative: RelativeModel.from_encoder(encoder, anchors.view(name), processor)."
        )
    anchors_view = _view_for(decoder.anchors, view, _name(encoder))
    config = copy.deepcopy(decoder.config)
    config.pooling = config.max_length = config.tower = None  # those of the decoder's own encoder
    return RelativeModel.from_encoder(encoder, anchors_view, processor, config=config)


def _refuse_decoder(encoder: Part) -> None:
    if isinstance(encoder, RelativeDecoder):
        raise StitchingError("The encoder's place holds a RelativeDecoder. The order is stitch(encoder, decoder).")


def _relative_encoder(encoder: Part) -> RelativeModel | None:
    if isinstance(encoder, RelativeModel):
        return encoder
    if isinstance(encoder, RelativeTaskModel):
        return encoder.encoder
    if not isinstance(encoder, PreTrainedModel) and _is_relative(encoder):
        return RelativeModel.from_pretrained(encoder)
    return None


def _refuse_other_view(encoder: RelativeModel, view: str | None) -> None:
    if view not in (None, encoder.config.anchor_view):
        raise StitchingError(
            f"The encoder is relative and reads view {encoder.config.anchor_view!r} of its anchors, view={view!r} was "
            "asked for. Leave view out, or encode the other one: encoder.encode_anchors(decoder.anchors.view(name))."
        )


def resolve_decoder(decoder: Part) -> RelativeDecoder:
    """The `RelativeDecoder` that `decoder` is, holds or names."""
    if isinstance(decoder, RelativeDecoder):
        return decoder
    if isinstance(decoder, RelativeTaskModel):
        return decoder.decoder
    if isinstance(decoder, PreTrainedModel):
        raise StitchingError(
            f"The decoder's place holds a {type(decoder).__name__}, which reads no relative representations. "
            "Give a RelativeDecoder, a whole relative model, or the name of an upload of one; an ordinary classifier "
            "goes with anchors=."
        )
    return RelativeDecoder.from_pretrained(decoder)


def check_compatible(encoder: RelativeConfig, decoder: RelativeConfig) -> None:
    """Raise `StitchingError` unless the decoder can read what the encoder says: same anchors, same projection."""
    if not _same_anchors(encoder, decoder):
        raise StitchingError(
            f"Cannot stitch: the encoder is described by {_anchors_of(encoder)}, the decoder was trained on "
            f"{_anchors_of(decoder)}. Anchors and their order must be the same: encode the decoder's with "
            "encoder.encode_anchors(decoder.anchors.view(name)), or pick parts that share an AnchorSet."
        )
    if encoder.projection != decoder.projection:
        differ = [name for name in decoder.projection if encoder.projection.get(name) != decoder.projection[name]]
        sides = [f"{name} {encoder.projection.get(name)!r} and {decoder.projection[name]!r}" for name in differ]
        raise StitchingError(
            f"Cannot stitch: the encoder's projection differs from the one that the decoder was trained on: "
            f"{', '.join(sides)}. Let the encoder use the decoder's: encoder.use_projection(decoder.config)."
        )


def refuse_stale(encoder: RelativeModel) -> None:
    """Raise `StaleAnchorsError` if the encoder's stored anchors are not its own; warn where that cannot be checked."""
    try:
        encoder.check_anchors()
    except (StaleAnchorsError, AnchorIntegrityError, UploadIntegrityError):
        raise
    except (AnchorError, UploadError) as error:  # a part without its samples or its processor
        logger.warning("Whether the encoder's stored anchors are its own could not be checked: %s", error)


def _same_anchors(encoder: RelativeConfig, decoder: RelativeConfig) -> bool:
    known = encoder.anchor_fingerprint is not None
    return known and (encoder.anchor_fingerprint, encoder.num_anchors) == (
        decoder.anchor_fingerprint,
        decoder.num_anchors,
    )


@dataclass(frozen=True)
class Fact:
    """One line of a report: what each side says, and whether that lets them fit.

    Example:
        ```python
        >>> from hf_relreps.stitching import Fact
        >>> Fact("view", encoder="fr", decoder="en", fits=True).fits
        True

        ```
    """

    name: str
    encoder: str
    decoder: str
    fits: bool


@dataclass(frozen=True)
class CompatibilityReport:
    """What is known about a stitch before it is made; prints as a table.

    Args:
        facts: What each side says.
        expected_agreement: Share of held-out pairs on which the decoder gives the same class through either encoder;
            ``None`` if no pairs were given. A lower estimate of stitched over own: with the default projection it lies
            0.12 to 0.18 below in text and images, 0.34 in graphs (`docs/quality.md`).
        prediction: How much of the decoder's own macro-F1 the stitched model is expected to keep, and how wrong that
            may be; ``None`` if no pairs were given.

    Example:
        ```python
        >>> report = compatibility("me/relative-fr", "me/relative-en")
        >>> report.fits, report.verdict
        (True, 'fits: stitch(encoder, decoder)')
        >>> report.to_dict()["facts"]["number of anchors"]
        ['40', '40', True]

        ```
    """

    facts: list[Fact] = field(default_factory=list)
    expected_agreement: float | None = None
    prediction: Prediction | None = None

    @property
    def fits(self) -> bool:
        """Whether `stitch` takes the two."""
        return all(fact.fits for fact in self.facts)

    @property
    def expected_ratio(self) -> float | None:
        """Expected macro-F1 of the stitched model over the decoder's own; ``None`` if it cannot be told."""
        return self.prediction.ratio if self.prediction else None

    @property
    def expected_error(self) -> float | None:
        """Mean error of such predictions where they were measured; ``None`` if there is none."""
        return self.prediction.error if self.prediction else None

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.fits:
            return "fits: stitch(encoder, decoder)"
        return f"does not fit: {', '.join(fact.name for fact in self.facts if not fact.fits)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "fits": self.fits,
            "verdict": self.verdict,
            "expected_agreement": self.expected_agreement,
            "expected_ratio": self.expected_ratio,
            "expected_error": self.expected_error,
            "num_pairs": self.prediction.num_pairs if self.prediction else None,
            "facts": {fact.name: [fact.encoder, fact.decoder, fact.fits] for fact in self.facts},
        }

    def __str__(self) -> str:
        rows = [("", "encoder", "decoder", "")]
        rows += [(fact.name, fact.encoder, fact.decoder, "ok" if fact.fits else "DIFFERS") for fact in self.facts]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        if self.expected_agreement is not None:
            lines.append(f"expected agreement with the decoder's own encoder: {self.expected_agreement:.2f}")
        if self.prediction is not None:
            lines.append(f"expected: {self.prediction}")
        return "\n".join([*lines, f"verdict: {self.verdict}"])


def compatibility(
    encoder: Part,
    decoder: Part,
    *,
    own_encoder: Part | None = None,
    pairs: tuple[Sequence[Any], Sequence[Any]] | None = None,
    own_accuracy: float | None = None,
) -> CompatibilityReport:
    """Look before you stitch: facts, a verdict, and with unlabelled pairs the expected quality.

    How well the expected quality is met was measured on stitches that work and on some that do not: `docs/quality.md`.

    Args:
        encoder: A relative model, its encoder, or the name of either.
        decoder: A relative model, its decoder, or the name of either.
        own_encoder: The encoder that the decoder was trained with, to compare with.
        pairs: Samples for `encoder`, and samples of the same meanings for `own_encoder`: neither anchors nor
            training data. A hundred or more tell how much of its own score the decoder keeps.
        own_accuracy: How often the decoder is right behind its own encoder, as its card may say: with it the
            prediction is better.

    Raises:
        EvaluationError: If pairs come without `own_encoder`, their numbers differ, the decoder gives no classes, or
            `own_accuracy` comes without pairs or is no share.
        StitchingError: If the encoder is not relative.

    Example:
        ```python
        >>> report = compatibility(french, english, own_encoder=english, pairs=(test["fr"], test["en"]))
        >>> print(report)
                           encoder           decoder
        anchors            ...
        verdict: fits: stitch(encoder, decoder)
        >>> 0 <= report.expected_agreement <= 1
        True

        ```
    """
    _check_accuracy(own_accuracy, pairs)
    encoder, decoder = resolve_encoder(encoder), resolve_decoder(decoder)
    left, right = encoder.config, decoder.config
    settings = left.projection | right.projection
    prints = (left.anchor_fingerprint, right.anchor_fingerprint)
    facts = [
        Fact("anchors", _short(prints[0]), _short(prints[1]), fits=prints[0] is not None and prints[0] == prints[1]),
        _fact("number of anchors", left.num_anchors, right.num_anchors),
        Fact("view", str(left.anchor_view), str(right.anchor_view), fits=True),
        *(_fact(name, left.projection.get(name), right.projection.get(name)) for name in settings),
        Fact("pooling", str(left.pooling), "-", fits=True),
        Fact("absolute size", str(left.embedding_size), "-", fits=True),
        Fact("classes", "-", _classes(right), fits=True),
    ]
    if right.head_pair is not None:
        facts.append(_fact("fitted to", pair_of(encoder)[:16], right.head_pair[:16]))
    facts += _stale(encoder)
    report = CompatibilityReport(facts)
    if pairs is None or not report.fits:
        return report
    own_NC, stitched_NC = _answers(encoder, decoder, own_encoder, pairs)
    choices = (_choices(own_NC, right), _choices(stitched_NC, right))
    agreement = float((choices[0] == choices[1]).float().mean())
    kinds = {
        "one_class_each": right.problem_type != "multi_label_classification",
        "of_nodes": left.modality == "node",
    }
    return CompatibilityReport(facts, agreement, predicted(own_NC, stitched_NC, own_accuracy, **kinds))


def _check_accuracy(own_accuracy: float | None, pairs: Any) -> None:
    if own_accuracy is None:
        return
    if pairs is None:
        raise EvaluationError("own_accuracy= is for a prediction, which needs pairs=. Give both or neither.")
    if not 0 < own_accuracy <= 1:
        raise EvaluationError(f"own_accuracy is {own_accuracy}, expected a share above 0 and up to 1: 91 % is 0.91.")


def _stale(encoder: RelativeModel) -> list[Fact]:
    """A line for stored anchors that are not the encoder's own; none for those that are."""
    try:
        refuse_stale(encoder)
    except StaleAnchorsError as error:
        return [Fact("stored anchors", str(error).split(". ")[0], "-", fits=False)]
    return []


def _answers(
    encoder: RelativeModel,
    decoder: RelativeDecoder,
    own_encoder: Part | None,
    pairs: tuple[Sequence[Any], Sequence[Any]],
) -> tuple[Tensor, Tensor]:
    """Logits of the decoder behind its own encoder and behind the other (N, C)."""
    if decoder.config.decoder_type in IMAGE_DECODERS:
        raise EvaluationError(
            "The decoder draws images, which have no classes to agree on. Leave pairs out, and compare what the "
            "stitched model draws with the originals: (model(pixel_values).reconstruction - pixel_values).square()."
        )
    if decoder.config.problem_type == "regression" or decoder.config.num_labels == 1:
        raise EvaluationError(
            "The decoder is a regression, which has no classes to agree on. Leave pairs out, and measure the stitched "
            "model on labelled data: stitching_matrix(encoders, decoders, dataset)."
        )
    if own_encoder is None:
        raise EvaluationError(
            "pairs need own_encoder=, the encoder that the decoder was trained with, to compare with."
        )
    if len(pairs[0]) != len(pairs[1]):
        raise EvaluationError(
            f"pairs hold {len(pairs[0])} and {len(pairs[1])} samples. Give the same meanings to both."
        )
    own = resolve_encoder(own_encoder)
    check_compatible(own.config, decoder.config)
    with torch.no_grad(), evaluating(decoder):
        r_NR, own_NR = (
            side.projection(side.encode(samples).to(side.device))
            for side, samples in zip((encoder, own), pairs, strict=True)
        )
        return decoder(own_NR.to(decoder.device)).logits, decoder(r_NR.to(decoder.device)).logits


def _choices(logits_NC: Tensor, config: RelativeConfig) -> Tensor:
    """The class of each sample (N,), or which of the classes it has (N, C)."""
    return logits_NC > 0 if config.problem_type == "multi_label_classification" else logits_NC.argmax(-1)


def _fact(name: str, encoder: Any, decoder: Any) -> Fact:
    return Fact(name, _shown(encoder), _shown(decoder), fits=encoder == decoder)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _short(fingerprint: str | None) -> str:
    return (fingerprint or "none")[:16]


def _anchors_of(config: RelativeConfig) -> str:
    return f"{config.num_anchors} anchors {_short(config.anchor_fingerprint)}"


def _classes(config: RelativeConfig) -> str:
    if config.decoder_type in IMAGE_DECODERS:
        return f"images of {config.image_size} x {config.image_size} pixels"
    names = list((config.id2label or {}).values())
    return ", ".join(map(str, names[:3])) + (f", ... ({len(names)})" if len(names) > 3 else "")


def _is_relative(name: str | Path) -> bool:
    """Whether an upload says that it is one of ours; an upload that cannot be read is left to the loader's words."""
    config = Source.of(name).json("config.json")
    return config is None or config.get("model_type") == RelativeConfig.model_type


def _view_for(anchors: AnchorSet, view: str | None, name: str, argument: str = "view") -> Any:
    if view is None and len(anchors.views) > 1:
        whose = "becomes relative with the decoder's anchors, which have the views"
        whose = whose if argument == "view" else "reads the anchors too, which have the views"
        raise AnchorError(
            f"{name} {whose} {', '.join(map(repr, anchors.views))}. Say which one it reads: "
            f"stitch(encoder, decoder, {argument}={anchors.views[0]!r})."
        )
    return anchors.view(view)


def _name(part: Part) -> str:
    return type(part).__name__ if isinstance(part, PreTrainedModel) else str(part)
