"""Any ordinary classifier of transformers as a decoder: its head, and where the anchors lie in its own space.

What its head reads of its encoder's output is found by trying: the vector that makes the head alone give the logits
of the whole classifier.
Shapes: B batch, A anchors, E width of what the head reads, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from hf_relreps.anchors import AnchorSet, AnchorView
from hf_relreps.backbones import (
    digest_of_weights,
    evaluating,
    hub_name,
    load_from_safetensors,
    longest_text,
    refuse_unknown_tokens,
)
from hf_relreps.configuration import LABEL_FIELDS, OF_TOKENS, POOLINGS, AnyRelativeConfig, RelativeDecoderConfig
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.errors import AnchorError, SampleError, StitchingError
from hf_relreps.heads import AUTO_CLASSIFIERS, CLASSIFIERS, READINGS, ClassifierHead, encoder_name, vector_argument
from hf_relreps.idle_layers import ADAPTED, LAST_LAYER
from hf_relreps.modeling import RelativeModel
from hf_relreps.placement import device_of
from hf_relreps.pooling import POOLERS, Interface, pool, vectors_of_tokens, vectors_of_words
from hf_relreps.samples import SPANS, batches, to_device
from hf_relreps.sources import Source
from hf_relreps.translation.methods import METHODS, method_of, points_of
from hf_relreps.uploads import load_processor


# By the type of a configuration, the names of its classifiers.
CLASSIFIER_NAMES: tuple[Any, ...] = (
    auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
)
FEWEST_SAMPLES = 10
SAME_LOGITS, SAME_LOGITS_HALF = 1e-3, 3e-2  # as a share of the largest logit: batches round differently


class Reading(NamedTuple):
    """A classifier's head and where the anchors lie for it.

    Args:
        head: Without the encoder; shares its weights with the classifier.
        reads: What it takes of the encoder's output, one of `READINGS`.
        y_AE: The anchors' embeddings.
    """

    head: ClassifierHead
    reads: str
    y_AE: Tensor


def decoder_from_classifier(
    classifier: str | Path | PreTrainedModel,
    anchors_view: AnchorView,
    processor: Any = None,
    *,
    method: str = "kernel_ridge",
    encoder: RelativeModel | None = None,
    batch_size: int = 64,
) -> RelativeDecoder:
    """Turn the head of an ordinary classifier into a decoder for encoders that share the anchors, without training.

    Args:
        classifier: Name, folder or loaded model of `AutoModelForSequenceClassification` or its like for tokens, images
            and audio. Its weights are shared and not changed.
        anchors_view: The anchors as the classifier reads them.
        processor: Tokenizer or image processor; loaded with `classifier` if that is a name.
        method: A name in `METHODS`. Encoders must use the projection of that method; that of ``kernel_ridge`` is the
            default of `RelativeConfig`.
        encoder: For ``procrustes`` and ``cca``, which fit one pair of spaces: the encoder that will be stitched.
        batch_size: Anchors in a batch while they are encoded.

    Raises:
        AnchorError: If the anchors are of a modality that has no classifiers, or not those of `encoder`.
        ConfigurationError: If there is no such method.
        StitchingError: If the model is no classifier, was uploaded without its head, has a head that reads more than
            one vector of a sample, or the method needs `encoder`.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.translation import decoder_from_classifier
        >>> ordinary = BertForSequenceClassification(english.encoder.backbone.config)  # or "me/english-topics"
        >>> topics = decoder_from_classifier(ordinary, anchors.view("en"), english.processor)
        >>> _ = topics.push_to_hub("me/english-topics-decoder")  # kilobytes
        >>> stitch(french, "me/english-topics-decoder").config.decoder.decoder_type
        'head'

        ```
    """
    chosen = method_of(method)
    if chosen.needs_encoder and encoder is None:
        raise StitchingError(
            f"method={method!r} fits one pair of spaces, so it needs the encoder: stitch(encoder, classifier, "
            f"anchors=anchors, method={method!r}), or choose a method for all encoders: kernel_ridge, ridge, inverse."
        )
    if encoder is not None and encoder.config.space.fingerprint != anchors_view.fingerprint:
        raise AnchorError(
            f"The encoder uses {encoder.config.space.anchors}, but the classifier would read "
            f"{anchors_view.fingerprint[:16]}. Use the same anchors for both: "
            "encoder.encode_anchors(anchors.view(name))."
        )
    model, processor, name = _load(classifier, anchors_view.read_as, processor)
    reading = read_head(model, anchors_view, processor, batch_size)
    config = RelativeDecoderConfig(
        space=chosen.space.replace(num_anchors=len(anchors_view), fingerprint=anchors_view.fingerprint),
        decoder_type="head",
        head_config=_own_config(model),
        head_modality=anchors_view.read_as,
        head_reads=reading.reads,
        head_size=reading.y_AE.shape[1],
        head_name_or_path=name,
        head_pair=pair_of(encoder) if chosen.needs_encoder and encoder else None,
        modality=anchors_view.read_as,
        anchor_view=anchors_view.name,
        **{field: copy.deepcopy(getattr(model.config, field)) for field in LABEL_FIELDS},
    )
    decoder = RelativeDecoder(config, reading.head)
    x_AD = None if encoder is None else encoder.anchors_AD
    decoder.placement.put(*points_of(chosen, x_AD, reading.y_AE))
    decoder.carry(anchors_view.anchors, None)
    return decoder.to(device_of(model)).eval()  # type: ignore[arg-type]  # the wrapper of `to` hides self


def relative_parts(
    classifier: str | Path | PreTrainedModel,
    anchors_view: AnchorView,
    processor: Any = None,
    *,
    samples: Sequence[Any] | None = None,
    method: str = "kernel_ridge",
    freeze_encoder: bool = False,
    batch_size: int = 64,
) -> tuple[RelativeModel, RelativeDecoder]:
    """The encoder of an ordinary classifier made relative, and a decoder that gives the classifier's own logits.

    The encoder gives the vector that the head reads, where that is one of the poolings. See
    `RelativeModelForSequenceClassification.from_classifier` for the arguments and what it raises.
    """
    chosen = method_of(method)
    if chosen.needs_encoder:
        raise StitchingError(
            f"method={method!r} fits one pair of spaces, so its decoder would fit no other encoder. Choose a method "
            f"for all encoders: {', '.join(name for name, one in METHODS.items() if not one.needs_encoder)}."
        )
    model, processor, _ = _load(classifier, anchors_view.read_as, processor)
    how: dict[str, Any] = {"config": chosen.space, "freeze_encoder": freeze_encoder, "batch_size": batch_size}
    if samples is not None:
        encoder = RelativeModel.from_encoder(model, anchors_view, processor, **how)
        return encoder, _distilled(model, encoder, samples, batch_size)
    try:
        decoder = decoder_from_classifier(model, anchors_view, processor, method=method, batch_size=batch_size)
    except StitchingError as error:
        raise StitchingError(
            f"{error} Or pass samples= without labels, to fit a decoder to the predictions of the classifier."
        ) from error
    reads = str(decoder.config.head_reads)
    how |= {"pooling": reads} if reads in POOLINGS else {"layer": LAST_LAYER} if reads == "token" else {}
    return RelativeModel.from_encoder(model, anchors_view, processor, **how), decoder


@torch.no_grad()
def _distilled(
    classifier: PreTrainedModel, encoder: RelativeModel, samples: Sequence[Any], batch_size: int
) -> RelativeDecoder:
    """A linear decoder fitted in closed form to the logits of a classifier, on samples without labels."""
    if len(samples) < FEWEST_SAMPLES:
        raise SampleError(
            f"Found {len(samples)} samples to fit a decoder on, expected {FEWEST_SAMPLES} or more of the kind that "
            "the classifier reads. They need no labels."
        )
    logits_NC = _logits(classifier, encoder, samples, batch_size)
    r_NR = encoder.projection(encoder.encode(samples, batch_size=batch_size).to(encoder.device))
    labels = {field: copy.deepcopy(getattr(classifier.config, field)) for field in LABEL_FIELDS}
    problem = labels.pop("problem_type")
    decoder = RelativeDecoder.fit_ridge(r_NR, logits_NC, encoder, **labels, problem_type="regression")
    decoder.config.problem_type = problem
    return decoder.to(encoder.device)  # type: ignore[arg-type]  # the wrapper of `to` hides self


def _logits(classifier: PreTrainedModel, encoder: RelativeModel, samples: Sequence[Any], batch_size: int) -> Tensor:
    """What the whole classifier says of raw samples (N, C), float32 on its own device."""
    interface, config = Interface(classifier), encoder.config
    parts = batches(samples, encoder.processor, batch_size, config.max_length, config.padding)
    logits_NC = torch.empty(0)
    with evaluating(classifier):
        for rows, inputs in parts:
            inputs = to_device(inputs, device_of(classifier))
            spans_n3 = inputs.pop(SPANS, None)
            logits_BC = classifier(**interface.readable(inputs), return_dict=True).logits.float()
            if spans_n3 is not None:
                logits_BC = vectors_of_words(logits_BC, spans_n3, "mean")
            if not len(logits_NC):
                logits_NC = logits_BC.new_empty(len(samples), logits_BC.shape[-1])
            logits_NC[rows] = logits_BC
    return logits_NC


def pair_with_classifier(
    encoder: Any,
    classifier: Any,
    *,
    view: str | None = None,
    processor: Any = None,
    prompt: str | None = None,
    layer: int | None = None,
    anchors: AnchorSet | str | Path | None = None,
    method: str | None = None,
    decoder_view: str | None = None,
    decoder_processor: Any = None,
) -> tuple[RelativeModel, RelativeDecoder]:
    """An encoder with the projection that a translation needs, and an ordinary classifier's head as its decoder.

    Args:
        encoder: A `RelativeModel`, which stays as it is; or an ordinary model, or its name.
        classifier: As for `decoder_from_classifier`.
        view: For an ordinary model: the view of the anchors that it reads.
        processor: For an ordinary model: its processor, if it was not loaded by name.
        prompt: For an ordinary model of texts: what goes before each of them.
        layer: For an ordinary model: which of its hidden states is read. The classifier's head reads what it always
            does.
        anchors: Those that both read, or their name; those of a `RelativeModel` if left out.
        method: A name in `METHODS`; ``kernel_ridge`` if left out.
        decoder_view: The view of the anchors that the classifier reads.
        decoder_processor: The classifier's processor, if it was not loaded by name.

    Raises:
        AnchorError: If one of the two could read several views and none is named.
        StitchingError: If no anchors say where the two spaces meet, or the head cannot be used alone.
    """
    if anchors is not None:
        shared = anchors if isinstance(anchors, AnchorSet) else AnchorSet.from_pretrained(anchors)
    elif isinstance(encoder, RelativeModel):
        shared = encoder.anchors
    else:
        raise StitchingError(
            f"{_name_of(classifier)} is an ordinary classifier and needs anchors. Pass an anchor set that both models "
            "can read: stitch(encoder, classifier, anchors=anchors, view=..., decoder_view=...)."
        )
    space = method_of(method or "kernel_ridge").space
    if isinstance(encoder, RelativeModel):
        relative = encoder.share().use_projection(space)
    else:
        own_view = choose_view(shared, view, _name_of(encoder))
        own: dict[str, Any] = {"prompt": prompt} | ({} if layer is None else {"layer": layer})
        relative = RelativeModel.from_encoder(encoder, own_view, processor, config=space, **own)
    classifier_view = choose_view(shared, decoder_view, _name_of(classifier), "decoder_view")
    how: dict[str, Any] = {"method": method or "kernel_ridge", "encoder": relative}
    return relative, decoder_from_classifier(classifier, classifier_view, decoder_processor, **how)


def choose_view(anchors: AnchorSet, view: str | None, name: str, argument: str = "view") -> AnchorView:
    """The view of that name, or the only one.

    Raises:
        AnchorError: If there are several and none is named: says which there are.
    """
    if view is None and len(anchors.views) > 1:
        whose = "becomes relative with the decoder's anchors, which have the views"
        whose = whose if argument == "view" else "reads the anchors too, which have the views"
        raise AnchorError(
            f"{name} {whose} {', '.join(map(repr, anchors.views))}. Choose the one that it reads: stitch(encoder, "
            f"decoder, {argument}={anchors.views[0]!r})."
        )
    return anchors.view(view)


def _name_of(model: Any) -> str:
    return type(model).__name__ if isinstance(model, PreTrainedModel) else str(model)


def pair_of(encoder: RelativeModel) -> str:
    """What identifies an encoder for a decoder that was fitted to it alone: SHA-256 of its anchors' embeddings."""
    return digest_of_weights({"anchors_AD": encoder.anchors_AD.float()})


@torch.no_grad()
def read_head(classifier: PreTrainedModel, view: AnchorView, processor: Any, batch_size: int = 64) -> Reading:
    """Find out what a classifier's head reads, and encode the anchors as that.

    Raises:
        StitchingError: If no single vector of a sample makes the head give the logits of the whole.
    """
    encoder = classifier._modules[encoder_name(classifier)]
    vector_argument(classifier)
    assert encoder is not None
    of_classifier, of_encoder = Interface(classifier), Interface(encoder)
    outputs: list[Any] = []
    hook = encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    text_config = classifier.config.get_text_config()
    of_tokens = view.read_as in OF_TOKENS
    alone = of_tokens and getattr(text_config, "pad_token_id", None) is None  # some refuse batches then
    limit = longest_text(classifier, processor) if of_tokens else None
    head, reads, y_AE = None, "", torch.empty(0)
    try:
        with evaluating(classifier):
            for rows, inputs in batches(view.samples, processor, 1 if alone else batch_size, limit):
                refuse_unknown_tokens(encoder, inputs)
                spans_n3 = inputs.pop(SPANS, None)
                given = of_classifier.readable(to_device(inputs, device_of(classifier)))
                logits_BC = classifier(**given, return_dict=True).logits
                found = _vectors(of_encoder, outputs.pop(), given, view.read_as)
                if head is None:
                    head, reads = _matching(classifier, found, logits_BC)
                    y_AE = torch.zeros(len(view), dict(found)[reads].shape[-1])
                x_BE = next(x_BE for name, x_BE in found if name == reads)
                if not _same(head(x_BE), logits_BC):
                    raise StitchingError(_unread(classifier, [reads]))
                x_BE = x_BE if spans_n3 is None else vectors_of_words(x_BE, spans_n3.to(x_BE.device), "mean")
                y_AE[rows] = x_BE.float().cpu()
    except (RuntimeError, IndexError, TypeError) as error:
        raise SampleError(
            f"The classifier cannot read the output of its processor: {type(error).__name__}: {error}. Pass the "
            "processor that it was trained with."
        ) from error
    finally:
        hook.remove()
    assert head is not None
    return Reading(head, reads, y_AE)


def _vectors(encoder: Interface, output: Any, inputs: dict[str, Any], modality: str) -> list[tuple[str, Tensor]]:
    """Every vector of a sample that a head may read, by its name in `READINGS`; of words those of all tokens."""
    output, mask_BT = encoder.unpack(output, inputs)
    if modality == "word":
        return [("token", vectors_of_tokens(output, mask_BT))]
    return [(name, x_BE) for name in READINGS for x_BE in _vector(name, output, mask_BT)]


def _vector(name: str, output: Any, mask_BT: Tensor | None) -> Iterator[Tensor]:
    hidden = output.last_hidden_state
    patches = isinstance(hidden, Tensor) and hidden.ndim == 3 and hidden.shape[1] > 1
    if name in POOLERS or name == "pooler":
        try:
            yield pool(output, mask_BT, name)
        except ValueError:  # not of this shape
            return
    elif name == "patch_mean" and patches:
        yield hidden[:, 1:].mean(1)
    elif name == "cls_and_patch_mean" and patches:
        yield torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], -1)


def _matching(
    classifier: PreTrainedModel, found: list[tuple[str, Tensor]], logits_BC: Tensor
) -> tuple[ClassifierHead, str]:
    said = ""
    for reads, x_BE in found:
        head = ClassifierHead(classifier, reads).eval()
        try:
            if _same(head(x_BE), logits_BC):
                return head, reads
        except Exception as error:  # the head's own code, on a vector that it was not made for
            said = f" ({type(error).__name__}: {error})"
    raise StitchingError(_unread(classifier, [reads for reads, _ in found], said))


def _unread(classifier: PreTrainedModel, tried: list[str], said: str = "") -> str:
    return (
        f"The head of {type(classifier).__name__} does not read one vector for each sample: none of "
        f"{', '.join(tried)} makes it give the logits of the whole classifier{said}. Train a decoder on its encoder "
        "instead: RelativeModelForSequenceClassification.from_encoder(classifier, anchors.view(name), processor)."
    )


def _same(found_BC: Tensor, expected_BC: Tensor) -> bool:
    if found_BC.shape != expected_BC.shape:
        return False
    share = SAME_LOGITS if expected_BC.dtype.itemsize >= torch.float32.itemsize else SAME_LOGITS_HALF
    return bool((found_BC - expected_BC).abs().max() <= share * expected_BC.abs().max())


def is_classifier(model: Any) -> bool:
    """Whether this is a classifier as one of the Auto classes gives it, with or without adapters around it."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(model, "config", None)
    return (
        isinstance(model, PreTrainedModel)
        and not isinstance(config, AnyRelativeConfig)
        and any(type(model) in _classes(modality, model.config) for modality in CLASSIFIERS)
    )


def names_classifier(config: Mapping[str, Any]) -> bool:
    """Whether an upload's configuration says that it holds a classifier."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    found = [names.get(model_type) for names in CLASSIFIER_NAMES]
    names = {name for one in found for name in (one if isinstance(one, tuple | list) else [one])}
    return isinstance(architectures, list) and any(isinstance(name, str) and name in names for name in architectures)


def _classes(modality: str, config: Any) -> tuple[Any, ...]:
    found = CLASSIFIERS[modality].get(type(config), ())
    return found if isinstance(found, tuple) else (found,)


def _load(classifier: Any, modality: str, processor: Any) -> tuple[PreTrainedModel, Any, str | None]:
    """The classifier, its processor, and the Hub id it came from."""
    if modality not in AUTO_CLASSIFIERS:
        raise AnchorError(
            f"The view contains {modality}s, for which transformers has no classifiers. Use a view of "
            f"{', '.join(f'{name}s' for name in AUTO_CLASSIFIERS)}."
        )
    auto_class = AUTO_CLASSIFIERS[modality]
    if isinstance(classifier, PreTrainedModel) or hasattr(classifier, "peft_config"):
        name = getattr(classifier.config, "_name_or_path", "")
        model: Any = classifier
    else:
        source = Source.of(classifier)
        name = source.name
        model = _from_hub(auto_class, source)
    _refuse_no_classifier(model, modality)
    if processor is None:
        if not name:
            raise StitchingError(
                "A classifier without a name needs its processor: stitch(encoder, classifier, anchors=anchors, "
                "decoder_processor=tokenizer)."
            )
        processor = load_processor(Source.of(name))
    return model, processor, hub_name(name)


def _from_hub(auto_class: Any, source: Source) -> Any:
    model, info = load_from_safetensors(auto_class, source, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise StitchingError(
            f"{source} lacks {len(missing)} weights of a classifier, the first is {missing[0]}: it was uploaded "
            "without its head, which would be random. Use a model that was fine-tuned for classification."
        )
    return model


def _refuse_no_classifier(model: Any, modality: str) -> None:
    ordinary = type(model) in _classes(modality, model.config) and not isinstance(model.config, AnyRelativeConfig)
    if not ordinary or getattr(model, ADAPTED, False):
        merge = " Merge its adapters first: model.merge_and_unload()." if hasattr(model, "peft_config") else ""
        raise StitchingError(
            f"Found a {type(model).__name__} as decoder, which is neither a decoder of this library nor a classifier "
            f"of {modality}s that {AUTO_CLASSIFIERS[modality].__name__} can load.{merge} Pass a RelativeDecoder, a "
            "whole relative model, or an ordinary classifier with anchors=."
        )


def _own_config(model: PreTrainedModel) -> Any:
    """Its configuration without the place that it was loaded from, which may be a folder of this machine."""
    config = copy.deepcopy(model.config)
    config._name_or_path = ""
    return config
