"""`stitch` an encoder and a decoder that never met, and `compatibility`: look before you do.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_relreps.backbones import evaluating
from hf_relreps.configuration import (
    IMAGE_DECODERS,
    OF_TOKENS,
    SEVERAL,
    RelativeDecoderConfig,
    RelativeEncoderConfig,
    is_ours,
    refuse_other_names,
)
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
from hf_relreps.placement import refuse_empty
from hf_relreps.prediction import Prediction, predicted
from hf_relreps.printing import in_columns, one_line
from hf_relreps.samples import as_list
from hf_relreps.several import RelativeModelWithDecoders
from hf_relreps.sources import Source
from hf_relreps.space import PROJECTION_FIELDS, RelativeSpace, require_fit
from hf_relreps.tasks import task_class_for
from hf_relreps.translation.classifiers import (
    choose_view,
    is_classifier,
    names_classifier,
    pair_of,
    pair_with_classifier,
)


logger = logging.get_logger(__name__)

Part = str | Path | PreTrainedModel


def stitch(
    encoder: Part,
    decoder: Part | Mapping[str, Part],
    *,
    view: str | None = None,
    processor: Any = None,
    prompt: str | None = None,
    layer: int | None = None,
    **of_classifier: Any,
) -> RelativeTaskModel:
    """The encoder of one upload with the decoder of another, without training (paper, section 5).

    Args:
        encoder: A relative model, its encoder, or the name of either. An ordinary model, or its name, becomes relative
            with the decoder's own anchors and projection.
        decoder: A relative model, its decoder, or the name of either. Or an ordinary classifier, such as
            `AutoModelForSequenceClassification` or `AutoModelForTokenClassification` gives, or its name: the encoder
            is translated into its space over shared anchors, see `hf_relreps.translation`. Or several relative ones by
            name: the result is a `RelativeModelWithDecoders`, which runs its encoder once for all of them.
        view: For an ordinary model: the view of the anchors that it reads, for example ``"fr"``.
        processor: For an ordinary model: its tokenizer or image processor, if the model is not given by name.
        prompt: For an ordinary text model: the prefix of every text ("query: "). By default the one in its files; an
            empty text means none.
        layer: For an ordinary model: which hidden state is read, -3 the third from the end. By default the last; for
            words see `RelativeEncoderConfig`.
        **of_classifier: For an ordinary classifier in the decoder's place: `anchors` that both read, or their name
            (those of a relative encoder if left out); `method`, a name in `hf_relreps.translation.METHODS`
            (``kernel_ridge`` if left out); `decoder_view`, the view that the classifier reads; `decoder_processor`,
            its processor, if it was not loaded by name.

    Returns:
        A whole model in evaluation mode that shares the weights of the encoder and has a decoder, settings, mode and
        hooks of its own. Its arguments are not changed. It can be saved, pushed and used in a `pipeline`.

    Raises:
        AnchorError: If an ordinary model could read several views and `view` names none of them.
        ConfigurationError: If one of several decoders has a name that is no identifier, or there is none; or if a part
            lies on the meta device, which holds no weights.
        StaleAnchorsError: If the encoder's stored anchors are not its own.
        StitchingError: If the parts do not share one space; the message shows both sides. Or if the head of a
            classifier cannot be used alone, or several decoders have no names or one name.
        UploadError: If an upload lacks the part that is needed.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> model = stitch("me/relative-fr", "me/relative-en")
        >>> bert, tokenizer = french.encoder.backbone, french.processor  # any AutoModel
        >>> model = stitch(bert, "me/relative-en", view="fr", processor=tokenizer)
        >>> _ = model.push_to_hub("me/french-by-english")
        >>> answers = pipeline("text-classification", model="me/french-by-english")("un jeu de cartes")
        >>> answers[0]["label"] in names.values()
        True
        >>> both = stitch("me/relative-fr", {"section": "me/relative-en", "group": decoder})
        >>> both.classify(["un jeu de cartes"])["section"][0]["label"] in names.values()
        True

        ```
    """
    _refuse_decoder(encoder)
    _refuse_unnamed(decoder)
    if isinstance(decoder, Mapping):
        decoder = _resolve_several(decoder)
    if _is_ordinary(decoder, of_classifier):
        relative = find_encoder(encoder)
        if relative is not None:
            _refuse_other_view(relative, view)
            _refuse_other_prompt(relative, prompt)
            _refuse_other_layer(relative, layer)
            refuse_stale(relative)
        given = encoder if relative is None else relative
        how = {"view": view, "processor": processor, "prompt": prompt, "layer": layer}
        own, head = pair_with_classifier(given, decoder, **how, **of_classifier)
        return task_class_for(own.config.modality, "head").from_parts(own, head).eval()
    _refuse_idle(of_classifier, decoder)
    decoder = resolve_decoder(decoder)
    how = {"view": view, "processor": processor, "prompt": prompt, "layer": layer}
    encoder = resolve_encoder(encoder, decoder=decoder, **how)
    refuse_empty(encoder, "the encoder")
    require_fit(encoder.config.space, decoder.config.space)
    _refuse_other_pair(encoder, decoder)
    refuse_stale(encoder)
    several = decoder.config.decoder_type == SEVERAL
    task_class: type[RelativeTaskModel] = (
        RelativeModelWithDecoders if several else task_class_for(encoder.config.modality, decoder.config.decoder_type)
    )
    own_decoder: Any = decoder.clone().to(encoder.projection.anchors_AD.device)  # type: ignore[arg-type]
    return task_class.from_parts(encoder.share(), own_decoder).eval()


def _resolve_several(decoders: Mapping[str, Part]) -> RelativeDecoder:
    refuse_other_names(decoders)
    for name, decoder in decoders.items():
        if _is_ordinary(decoder, {}):
            raise StitchingError(
                f"Decoder {name!r} is {name_of(decoder)}, an ordinary classifier; several decoders read relative "
                "representations. Make it relative first: RelativeModelForSequenceClassification.from_classifier("
                "classifier, anchors.view(name))."
            )
    return RelativeDecoder.from_decoders({name: resolve_decoder(decoder) for name, decoder in decoders.items()})


def _is_ordinary(decoder: Part, of_classifier: dict[str, Any]) -> bool:
    """Whether what stands in the decoder's place is a classifier of transformers, or the name of one."""
    if not isinstance(decoder, str | Path):
        return is_classifier(decoder)
    config = Source.of(decoder).json("config.json") or {}
    asked = any(of_classifier.get(name) is not None for name in ("anchors", "method"))
    return not is_ours(config) and (asked or names_classifier(config))


def _refuse_other_pair(encoder: RelativeModel, decoder: RelativeDecoder) -> None:
    for one in decoder.named.values():
        _refuse_other_pair(encoder, one)
    if decoder.config.head_pair not in (None, pair_of(encoder)):
        raise StitchingError(
            "Cannot stitch: the decoder was fitted to another encoder, or to this one before its anchors were encoded "
            "again. Fit it to this encoder: stitch(encoder, classifier, method=...), with the classifier "
            f"{decoder.config.head_name_or_path or 'it was made from'}."
        )


def _refuse_idle(of_classifier: dict[str, Any], decoder: Part) -> None:
    idle = [name for name, value in of_classifier.items() if value is not None]
    if idle:
        raise StitchingError(
            f"{', '.join(f'{name}=' for name in idle)} {'is' if len(idle) == 1 else 'are'} for ordinary classifiers; "
            f"{name_of(decoder)} is relative and has its own anchors. Leave {'it' if len(idle) == 1 else 'them'} out."
        )


def resolve_encoder(
    encoder: Part,
    *,
    decoder: RelativeDecoder | None = None,
    view: str | None = None,
    processor: Any = None,
    prompt: str | None = None,
    layer: int | None = None,
) -> RelativeModel:
    """The `RelativeModel` that `encoder` is, holds, names, or becomes with the anchors of `decoder`."""
    relative = find_encoder(encoder)
    if relative is not None:
        _refuse_other_view(relative, view)
        _refuse_other_prompt(relative, prompt)
        _refuse_other_layer(relative, layer)
        return relative
    if decoder is None:
        raise StitchingError(
            f"{name_of(encoder)} is not relative, and without a relative decoder the anchors are unknown. Make it "
            "relative: RelativeModel.from_encoder(encoder, anchors.view(name), processor)."
        )
    anchors_view = choose_view(decoder.anchors, view, name_of(encoder))
    own: dict[str, Any] = {"prompt": prompt} | ({} if layer is None else {"layer": layer})
    return RelativeModel.from_encoder(encoder, anchors_view, processor, config=decoder.config, **own)


def find_encoder(encoder: Part) -> RelativeModel | None:
    """The `RelativeModel` that `encoder` is, holds or names; ``None`` for an ordinary model."""
    _refuse_decoder(encoder)
    if isinstance(encoder, RelativeModel):
        return encoder
    if isinstance(encoder, RelativeTaskModel):
        return encoder.encoder
    if not isinstance(encoder, PreTrainedModel) and not hasattr(encoder, "peft_config") and _is_relative(encoder):
        return RelativeModel.from_pretrained(encoder)
    return None


def _refuse_decoder(encoder: Part) -> None:
    if isinstance(encoder, RelativeDecoder):
        raise StitchingError("Found a RelativeDecoder as encoder. The order is stitch(encoder, decoder).")


def _refuse_unnamed(decoder: Any) -> None:
    """Raise `StitchingError` for several decoders in a row: each answers by its name."""
    if not isinstance(decoder, list | tuple):
        return
    names = [one[0] if isinstance(one, list | tuple) and one else None for one in decoder]
    twice = next((name for i, name in enumerate(names) if name is not None and name in names[:i]), None)
    found = f"a {type(decoder).__name__} of {len(decoder)} decoders"
    raise StitchingError(
        f"Found {found if twice is None else f'two decoders with the name {twice!r:.60}'}, expected a mapping with a "
        "name of its own for each: stitch(encoder, {'section': a, 'tone': b})."
    )


def _refuse_other_view(encoder: RelativeModel, view: str | None) -> None:
    if view not in (None, encoder.config.anchor_view):
        raise StitchingError(
            f"The encoder is relative and reads view {encoder.config.anchor_view!r} of its anchors, but view={view!r} "
            "was given. Leave view out, or encode the other view: encoder.encode_anchors(decoder.anchors.view(name))."
        )


def _refuse_other_prompt(encoder: RelativeModel, prompt: str | None) -> None:
    own = encoder.config.prompt or ""
    if prompt not in (None, own):
        raise StitchingError(
            f"The encoder is relative and its anchors were encoded with the prompt {own!r:.60}, but "
            f"prompt={prompt!r:.60} was given. Leave prompt out, or make the encoder relative again: "
            "RelativeModel.from_encoder(encoder.backbone, view, encoder.processor, config=encoder.config, prompt=...)."
        )


def _refuse_other_layer(encoder: RelativeModel, layer: int | None) -> None:
    own = encoder.config.layer
    if layer not in (None, own):
        raise StitchingError(
            f"The encoder is relative and reads layer {own}, but layer={layer} was given. Leave layer out, or load "
            "the whole model and make it relative again: RelativeModel.from_encoder(name, view, layer=...)."
        )


def resolve_decoder(decoder: Part) -> RelativeDecoder:
    """The `RelativeDecoder` that `decoder` is, holds or names."""
    if isinstance(decoder, RelativeDecoder):
        return decoder
    if isinstance(decoder, RelativeTaskModel):
        return decoder.decoder
    if isinstance(decoder, PreTrainedModel):
        raise StitchingError(
            f"Found a {type(decoder).__name__} as decoder, which does not read relative representations. Pass a "
            "RelativeDecoder, a whole relative model, or the name of an upload; an ordinary classifier also needs "
            "anchors=."
        )
    Source.of(decoder)  # refuses what is no name
    return RelativeDecoder.from_pretrained(decoder)


def refuse_stale(encoder: RelativeModel) -> None:
    """Refresh the encoder's anchors if it was trained since, and raise `StaleAnchorsError` if they are not its own.

    Where that cannot be checked it warns.
    """
    try:
        encoder.check_anchors()
    except (StaleAnchorsError, AnchorIntegrityError, UploadIntegrityError):
        raise
    except (AnchorError, UploadError) as error:  # a part without its samples or its processor
        logger.warning("Could not check the encoder's stored anchor embeddings against its anchor samples: %s", error)


@dataclass(frozen=True)
class Fact:
    """One line of a report: the values of both sides, and whether they fit.

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
        facts: The values of both sides.
        expected_agreement: Share of held-out pairs on which the decoder gives the same class with either encoder;
            ``None`` if no pairs were given. A lower estimate of stitched over own: with the default projection it lies
            0.12 to 0.18 below in text and images, 0.34 in graphs (`docs/quality.md`).
        prediction: How much of the decoder's own macro-F1 the stitched model is expected to keep; ``None`` if no
            pairs were given.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

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
        """Whether `stitch` accepts the two."""
        return all(fact.fits for fact in self.facts)

    @property
    def expected_ratio(self) -> float | None:
        """Expected macro-F1 of the stitched model over the decoder's own; ``None`` if it cannot be predicted."""
        return self.prediction.ratio if self.prediction else None

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
            "num_pairs": self.prediction.num_pairs if self.prediction else None,
            "facts": {fact.name: [fact.encoder, fact.decoder, fact.fits] for fact in self.facts},
        }

    def __str__(self) -> str:
        rows = [("", "encoder", "decoder", "")]
        rows += [(fact.name, fact.encoder, fact.decoder, "ok" if fact.fits else "DIFFERS") for fact in self.facts]
        lines = in_columns(rows)
        if self.expected_agreement is not None:
            lines.append(f"expected agreement with the decoder's own encoder: {self.expected_agreement:.2f}")
        if self.prediction is not None:
            lines.append(f"expected: {self.prediction}")
        return "\n".join([*lines, f"verdict: {one_line(self.verdict)}"])


def compatibility(
    encoder: Part,
    decoder: Part,
    *,
    own_encoder: Part | None = None,
    pairs: tuple[Sequence[Any], Sequence[Any]] | None = None,
    own_accuracy: float | None = None,
) -> CompatibilityReport:
    """Whether two parts fit, before you stitch: facts, a verdict, and with unlabelled pairs the expected quality.

    `docs/quality.md` shows how accurate the expected quality is, for stitches that work and for some that do not.

    Args:
        encoder: A relative model, its encoder, or the name of either.
        decoder: A relative model, its decoder, or the name of either.
        own_encoder: The encoder that the decoder was trained with, to compare with.
        pairs: Samples for `encoder`, and samples of the same meanings for `own_encoder`: neither anchors nor
            training data. At least a hundred are needed to predict how much of its own score the decoder keeps.
        own_accuracy: Accuracy of the decoder with its own encoder, for example from its card. It makes the prediction
            more accurate.

    Raises:
        EvaluationError: If pairs come without `own_encoder`, their numbers differ, the decoder has no classes, or
            `own_accuracy` comes without pairs or is not between 0 and 1.
        StitchingError: If the encoder is not relative.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

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
    facts = [
        *_compare_spaces(left.space, right.space),
        Fact("view", str(left.anchor_view), str(right.anchor_view), fits=True),
        Fact("pooling", _pooling(left), "-", fits=True),
        Fact("absolute size", str(left.embedding_size), "-", fits=True),
        *(Fact(name, "-", _classes(one), fits=True) for name, one in _by_question(right)),
    ]
    for one in (right, *(right.decoders or {}).values()):
        if one.head_pair is not None:
            facts.append(_compare("fitted to", pair_of(encoder)[:16], one.head_pair[:16]))
    facts += _stale(encoder)
    report = CompatibilityReport(facts)
    if pairs is None or not report.fits:
        return report
    own_NC, stitched_NC = _answers(encoder, decoder, own_encoder, pairs)
    choices = (_choices(own_NC, right), _choices(stitched_NC, right))
    agreement = float((choices[0] == choices[1]).float().mean())
    one_class_each = right.problem_type != "multi_label_classification"
    prediction = predicted(own_NC, stitched_NC, own_accuracy, one_class_each=one_class_each)
    return CompatibilityReport(facts, agreement, prediction)


def _pooling(config: RelativeEncoderConfig) -> str:
    return str(config.pooling) if config.layer == -1 else f"{config.pooling} of hidden state {config.layer}"


def _check_accuracy(own_accuracy: float | None, pairs: Any) -> None:
    if own_accuracy is None:
        return
    if pairs is None:
        raise EvaluationError("own_accuracy= needs pairs=. Pass both or neither.")
    if not 0 < own_accuracy <= 1:
        raise EvaluationError(
            f"own_accuracy is {own_accuracy}, expected a number above 0 and up to 1, for example 0.91 for 91 %."
        )


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
    r_NR, own_NR, _ = represented(encoder, decoder, own_encoder, pairs)
    with torch.no_grad(), evaluating(decoder):
        return decoder(own_NR.to(decoder.device)).logits, decoder(r_NR.to(decoder.device)).logits


def as_pairs(pairs: Any) -> tuple[list[Any], list[Any]]:
    """Samples for an encoder, and those of the same meanings for another one.

    Args:
        pairs: Two lists; or a list of pairs, each of a sample for either.

    Raises:
        EvaluationError: If they are neither, or the lists differ in length.
    """
    sides = None if isinstance(pairs, str | Mapping) or hasattr(pairs, "columns") else list(pairs)
    if sides and len(sides) > 2 and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in sides):
        sides = [list(side) for side in zip(*sides, strict=True)]
    if sides is None or len(sides) != 2:
        raise EvaluationError(
            f"pairs is a {type(pairs).__name__}{'' if sides is None else f' of {len(sides)}'}, expected two lists: "
            "samples for the encoder, and those of the same meanings for the decoder's own one. Of a table pass two "
            'columns: (rows["fr"], rows["en"]).'
        )
    left, right = as_list(sides[0], "pairs[0]"), as_list(sides[1], "pairs[1]")
    if len(left) != len(right):
        raise EvaluationError(
            f"pairs has {len(left)} and {len(right)} samples, expected two lists of equal length. Sample i of both "
            "must have the same meaning."
        )
    return left, right


def _warn_of_anchors(encoder: RelativeModel, samples: list[Any]) -> None:
    """An anchor describes itself by its similarity to itself: what is told of it says little of other samples."""
    known = encoder._anchors
    if known is None or encoder.config.modality not in OF_TOKENS:
        return
    shared = len({*map(str, samples)} & {*map(str, known.view(encoder.config.anchor_view).samples)})
    if shared:
        logger.warning(
            f"{shared} of {len(samples)} pairs are anchors, which look better than other samples. Give pairs that are "
            "neither anchors nor training data."
        )


def represented(
    encoder: RelativeModel,
    decoder: RelativeDecoder,
    own_encoder: Part | None,
    pairs: tuple[Sequence[Any], Sequence[Any]],
    *,
    with_anchors: bool = False,
) -> tuple[Tensor, Tensor, int]:
    """Relative representations (N, R) of pairs by an encoder and by the decoder's own; how many are of anchors.

    Raises:
        EvaluationError: If the decoder gives no classes, there is no own encoder, or the numbers of samples differ.
        StitchingError: If the own encoder does not fit the decoder.
    """
    if decoder.config.decoder_type in IMAGE_DECODERS:
        raise EvaluationError(
            "The decoder reconstructs images and has no classes to agree on. Leave pairs out, and compare the "
            "reconstructions with the originals: (model(pixel_values).reconstruction - pixel_values).square()."
        )
    if decoder.config.questions:
        raise EvaluationError(
            f"The decoder is several: {', '.join(decoder.config.questions)}. With pairs give one of them: "
            "compatibility(encoder, decoder.select(name), ...)."
        )
    if decoder.config.problem_type == "regression" or decoder.config.num_labels == 1:
        raise EvaluationError(
            "The decoder is a regression and has no classes to agree on. Leave pairs out, and measure the stitched "
            "model on labelled data: stitching_matrix(encoders, decoders, dataset)."
        )
    if own_encoder is None:
        raise EvaluationError("pairs= needs own_encoder=, the encoder that the decoder was trained with.")
    pairs = as_pairs(pairs)
    own = resolve_encoder(own_encoder)
    require_fit(own.config.space, decoder.config.space)
    found = []
    with torch.no_grad():
        for side, samples in zip((encoder, own), pairs, strict=True):
            _warn_of_anchors(side, samples)
            x_ND = side.encode(samples).to(side.device)
            x_ND = torch.cat([side.anchors_AD.to(x_ND), x_ND]) if with_anchors else x_ND
            found.append(side.projection(x_ND).cpu())
    return found[0], found[1], len(found[0]) - len(pairs[0])


def _choices(logits_NC: Tensor, config: RelativeDecoderConfig) -> Tensor:
    """The class of each sample (N,), or which of the classes it has (N, C)."""
    return logits_NC > 0 if config.problem_type == "multi_label_classification" else logits_NC.argmax(-1)


def _by_question(config: RelativeDecoderConfig) -> list[tuple[str, RelativeDecoderConfig]]:
    """Each decoder with what to call its answers in a report."""
    return [(f"{name} classes", one) for name, one in config.questions.items()] or [("classes", config)]


def _compare_spaces(left: RelativeSpace, right: RelativeSpace) -> list[Fact]:
    """A line for each field that one of the two uses."""
    same = left.fingerprint is not None and left.fingerprint == right.fingerprint
    mine, theirs = left.to_dict(), right.to_dict()
    always = ("transform", "similarity", "basis_ridge")
    used = [name for name in PROJECTION_FIELDS if name in always or (mine[name], theirs[name]) != (None, None)]
    return [
        Fact("anchors", (left.fingerprint or "none")[:16], (right.fingerprint or "none")[:16], fits=same),
        *(_compare(name, mine[name], theirs[name]) for name in ("num_anchors", *used)),
    ]


def _compare(name: str, encoder: Any, decoder: Any) -> Fact:
    def shown(value: Any) -> str:
        return ", ".join(value) if isinstance(value, list) else str(value)

    return Fact(
        "number of anchors" if name == "num_anchors" else name, shown(encoder), shown(decoder), encoder == decoder
    )


def _classes(config: RelativeDecoderConfig) -> str:
    if config.decoder_type in IMAGE_DECODERS:
        return f"images of {config.image_size} x {config.image_size} pixels"
    names = list((config.id2label or {}).values())
    return ", ".join(map(str, names[:3])) + (f", ... ({len(names)})" if len(names) > 3 else "")


def _is_relative(name: Any) -> bool:
    """Whether an upload says that it is one of ours; an upload that cannot be read is left to the loader's words."""
    config = Source.of(name).json("config.json")
    return config is None or is_ours(config)


def name_of(part: Part) -> str:
    """What to call a part in an error."""
    return type(part).__name__ if isinstance(part, PreTrainedModel) else str(part)
