"""Cards: what an upload is, in words that a reader wants to keep, filled from a config and plain tables.

It knows no model class. What lies between ``<!-- hf_relreps:begin NAME -->`` and ``<!-- hf_relreps:end NAME -->`` is
written anew at each push; what a person wrote around it, and the metadata they added, stays.
"""

from __future__ import annotations

import json
import re
import textwrap
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml  # type: ignore[import-untyped]
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData, RepoCard
from transformers.utils import logging

from hf_relreps.configuration import (
    IMAGE_DECODERS,
    MEAN,
    OF_TOKENS,
    PAIR,
    SEVERAL,
    RelativeConfig,
    RelativeDecoderConfig,
    RelativeEncoderConfig,
)


logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("model_card_template.md")
ANCHORS_TEMPLATE = Path(__file__).with_name("anchors_card_template.md")
PICTURE_FILE = "stitching_matrix.png"
LIBRARY = "hf_relreps"
TAG = "relative-representations"
ANCHORS_TAG = "relreps-anchors:"
IN_WORDS = "**relative representations**: the similarities of an input to a fixed set of anchor samples"
EXAMPLE_LENGTH = 60  # characters of the text in the code to paste
REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
NO_DATASET = "unknown"  # in the place of an evaluation set that nobody named
PART_TAG = "relreps-part:"
VIEW_TAG = "relreps-view:"
# Code to paste: it runs as it stands.
CODE = {
    "pipeline": """import hf_relreps  # registers its classes with transformers
from transformers import pipeline

classify = pipeline("{task}", model={repo})
print(classify({sample}))
""",
    "conversations": """import hf_relreps

model = hf_relreps.{model_class}.from_pretrained({repo})
print(model.classify([{sample}]))  # a conversation: a list of messages
""",
    "word pipeline": """import hf_relreps
from transformers import pipeline

tag = pipeline("{task}", model={repo}, aggregation_strategy="average")
print(tag(" ".join({sample}.words)))
""",
    "model": """from hf_relreps import {model_class}

model = {model_class}.from_pretrained({repo})
print(model.config)
""",
    "several": """import hf_relreps

model = hf_relreps.RelativeModelWithDecoders.from_pretrained({repo})
print(model.classify([{sample}]))  # one pass, an answer of each decoder
classify = model.select({name})  # the ordinary model of one decoder: for a pipeline, for Trainer
""",
    "two texts": """import hf_relreps

model = hf_relreps.RelativeModelForPairClassification.from_pretrained({repo})
print(model.classify([{{"text": {sample}, "text_pair": {sample}}}]))  # the encoder reads both, the decoder compares
""",
    "encoder": """import hf_relreps

encoder = hf_relreps.RelativeModel.from_pretrained({repo})
x_ND = encoder.encode([{sample}])  # absolute embeddings
r_NR = encoder.projection(x_ND)  # relative representations: one number for each anchor
print(x_ND.shape, r_NR.shape)
""",
    "graph encoder": """from hf_relreps import RelativeModel

encoder = RelativeModel.from_pretrained({repo})
print(encoder.config)
""",
    "decoder": """from hf_relreps import RelativeDecoder, find_parts

decoder = RelativeDecoder.from_pretrained({repo})  # downloads only the decoder
print(find_parts(anchors=decoder))  # uploads with the same anchors; combine them: stitch(encoder, decoder)
""",
}
# What a decoder for each modality, and an encoder of it, are for.
TASKS = {
    "text": "text-classification",
    "pair": "text-classification",
    "word": "token-classification",
    "image": "image-classification",
    "audio": "audio-classification",
    "node": "graph-ml",
}
FEATURES = {
    "text": "feature-extraction",
    "pair": "feature-extraction",
    "word": "feature-extraction",
    "image": "image-feature-extraction",
    "audio": "feature-extraction",
    "node": "graph-ml",
}
DRAWING = "image-to-image"  # the task of the decoders below
MODELS = {"graph-ml": "RelativeModelForNodeClassification", DRAWING: "RelativeModelForImageReconstruction"}
PART_OF = {
    RelativeConfig.model_type: None,
    RelativeEncoderConfig.model_type: "encoder",
    RelativeDecoderConfig.model_type: "decoder",
}
BEGIN = re.compile(r"<!-- hf_relreps:begin (\w+) -->\n")
PUBLIC_URL = re.compile(r"https://[\w./-]+")
END = re.compile(r"<!-- hf_relreps:end (\w+) -->")
KNOWN = re.compile(r"<!-- hf_relreps:sections ([\w ]*) -->\s*\Z")
TRAINER_COMMENT = "generated automatically according to the information the Trainer had access to"


@dataclass(frozen=True)
class CardFacts:
    """Facts that you add to the card of an upload: ``model.card_facts = CardFacts(license="mit", ...)``.

    Args:
        description: A paragraph in Markdown.
        license: As the Hub names it: ``apache-2.0``, ``mit``, ...
        languages: ISO codes; the view's name is taken where it is one.
        datasets: Names on the Hub of the datasets it was trained on.
        metrics: Name -> value on an evaluation set: ``{"accuracy": 0.91}``.
        evaluated_on: Name of that evaluation set.
        results: More results, as `huggingface_hub.EvalResult`.
        training: Hyperparameters by name.
        training_log: One row for each evaluation during training.
        stitching: ``StitchingMatrix.to_dict()``.
        picture: A PNG of that matrix: ``StitchingMatrix.plot(path)``.
        expected: ``compatibility(..., pairs=...).to_dict()`` of a stitched model's parts.
        tags: More tags.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.model_card import CardFacts
        >>> english.card_facts = CardFacts(license="mit", metrics={"accuracy": 0.91}, evaluated_on="me/parallel-texts")
        >>> english.make_card("me/relative-en").data.license
        'mit'

        ```
    """

    description: str = ""
    license: str | None = None
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluated_on: str | None = None
    results: Sequence[EvalResult] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    training_log: Sequence[Mapping[str, Any]] = ()
    stitching: Mapping[str, Any] | None = None
    picture: str | Path | None = None
    expected: Mapping[str, Any] | None = None
    tags: Sequence[str] = ()

    def with_defaults(self, other: CardFacts) -> CardFacts:
        """These facts, and those of `other` where nothing was said."""
        return replace(other, **{name: value for name, value in vars(self).items() if value})


def model_card(repo_id: str, config: Mapping[str, Any], anchors: Mapping[str, Any], facts: CardFacts) -> ModelCard:
    """The card of a whole model, an encoder or a decoder.

    Args:
        repo_id: Repository, or folder, as it stands in the code to paste.
        config: Configuration of the whole or the part, as its ``to_dict`` gives it.
        anchors: ``AnchorSet.summary()``, or only its num_anchors and fingerprint.
        facts: What the author adds.
    """
    part, tags, config = PART_OF[config["model_type"]], model_tags(config), _flatten(config)
    return ModelCard.from_template(
        _metadata(repo_id, config, part, facts, tags),
        template_path=str(TEMPLATE),
        title=repo_id.split("/")[-1],
        what=_what(config, part),
        facts_table=_facts_table(config, part),
        description=facts.description,
        install=install_line(_extras(config, part)),
        source=_repository(),
        use=_use(repo_id, config, part, anchors),
        anchors=_in_words(anchors),
        own_view=None if part == "decoder" else _plain(config.get("anchor_view")),
        training=_training(facts),
        results=_results(facts, _task(config)),
        stitching=_stitching(facts),
        licence=_licence(config, facts),
    )


def model_tags(config: Mapping[str, Any]) -> list[str]:
    """The tags by which others find an upload: its anchors, its parts and its view."""
    part, config = PART_OF[config["model_type"]], _flatten(config)
    parts = [part] if part else ["encoder", "decoder"]
    view = config.get("anchor_view")
    return [
        TAG,
        LIBRARY,
        anchors_tag(config.get("fingerprint") or ""),
        *(f"{PART_TAG}{name}" for name in parts),
        *([f"{VIEW_TAG}{view}"] if view else []),
    ]


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a whole or a part beside one another; of the classes those of the decoder."""
    parts = [config.get("encoder") or {}, config.get("decoder") or {}, config]
    views = [part["anchor_view"] for part in parts if part.get("anchor_view")]  # the encoder's before the decoder's
    fields = {name: value for part in parts for name, value in part.items() if name not in ("encoder", "decoder")}
    return fields | fields.pop("space", {}) | {"anchor_view": views[0] if views else None}


def anchors_card(repo_id: str, anchors: Mapping[str, Any], license: str | None = None) -> DatasetCard:
    """The card of an anchor set's own repository; its metadata lets the Hub's viewer show the anchors."""
    data = DatasetCardData(
        language=_languages(anchors["views"]) or None,
        license=license,
        size_categories="n<1K" if anchors["num_anchors"] < 1000 else "1K<n<10K",
        tags=[TAG, LIBRARY, anchors_tag(anchors["fingerprint"])],
        configs=[{"config_name": "default", "data_files": "anchors/anchors.parquet"}],
    )
    return DatasetCard.from_template(
        data,
        template_path=str(ANCHORS_TEMPLATE),
        title=repo_id.split("/")[-1],
        install=install_line(),
        repo_id=repo_id,
        anchors=_in_words(anchors),
    )


def training_facts(args: Any, log_history: Sequence[Mapping[str, Any]], dataset: Any) -> CardFacts:
    """What a `Trainer` knows: hyperparameters, the course of the training, the last evaluation, the dataset.

    Args:
        args: `TrainingArguments`.
        log_history: ``TrainerState.log_history``.
        dataset: What it trained on.
    """
    evaluations = [log for log in log_history if "eval_loss" in log]
    rows = []
    for log in evaluations:
        losses = [entry["loss"] for entry in log_history if "loss" in entry and entry["step"] <= log["step"]]
        course = {"step": log["step"], "epoch": log.get("epoch"), "training loss": losses[-1] if losses else None}
        rows.append(course | _measured(log))
    last = _measured(evaluations[-1]) if evaluations else {}
    return CardFacts(
        metrics={name: value for name, value in last.items() if name != "loss"},
        datasets=_datasets_of(dataset),
        training=_hyperparameters(args),
        training_log=rows,
    )


def _hyperparameters(args: Any) -> dict[str, Any]:
    """What a reader needs to train the same again."""
    length = {"num_epochs": args.num_train_epochs} if args.max_steps <= 0 else {"training_steps": args.max_steps}
    return {
        "learning_rate": args.learning_rate,
        "train_batch_size": args.train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "num_devices": args.world_size,
        "seed": args.seed,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "warmup_steps": args.warmup_steps,
        "weight_decay": args.weight_decay,
        **length,
        "mixed_precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "no",
    }


def _measured(log: Mapping[str, Any]) -> dict[str, float]:
    timings = ("runtime", "samples_per_second", "steps_per_second", "jit_compilation_time", "model_preparation_time")
    named = {name.removeprefix("eval_"): value for name, value in log.items() if name.startswith("eval_")}
    return {name: value for name, value in named.items() if name not in timings and isinstance(value, int | float)}


def _datasets_of(dataset: Any) -> list[str]:
    """The Hub's names of what a `datasets.Dataset` was loaded from."""
    sources = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    return sorted({match[1] for source in sources if (match := re.match(r"hf://datasets/([^@]+)@", source))})


def anchors_tag(fingerprint: str) -> str:
    """The tag by which uploads with the same anchors find one another."""
    return f"{ANCHORS_TAG}{fingerprint[:16]}"


def merged(card: RepoCard, existing: str | None) -> str:
    """The text of `card`, with what a person wrote in the `existing` one kept."""
    sections = {name: card.text[start:end] for name, start, end in _sections(card.text)}
    known: list[str] = []
    if existing is not None and existing.strip():
        old = _read(existing, type(card))
        _merge_metadata(card, old)
        if TRAINER_COMMENT not in old.text:
            memory = KNOWN.search(old.text)
            known = memory[1].split() if memory else []
            text = old.text[: memory.start()].rstrip("\n") if memory else old.text
            card.text = _merge_text(sections, text, known)
    # Remembered in the card itself: a section that was there once and is gone now was taken over by a person.
    return f"{str(card).rstrip()}\n\n<!-- hf_relreps:sections {' '.join(_union(known, sections))} -->\n"


def _sections(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each section; one pass, for the text may come from anywhere."""
    ends: dict[str, list[int]] = {}
    for match in END.finditer(text):
        ends.setdefault(match[1], []).append(match.end())
    place = 0
    for match in BEGIN.finditer(text):
        later = ends.get(match[1], [])
        i = bisect_right(later, match.end())
        if match.start() >= place and i < len(later):
            place = later[i]
            yield match[1], match.start(), place


def _merge_text(sections: Mapping[str, str], old: str, known: Sequence[str]) -> str:
    """The old text with our sections in their new form; a known one whose comments are gone belongs to its reader."""
    place = 0
    for name, section in sections.items():
        found = next(((start, end) for other, start, end in _sections(old) if other == name), None)
        if found is not None:
            old = old[: found[0]] + section + old[found[1] :]
            place = found[0] + len(section)
        elif name not in known:
            place = place or len(old.rstrip())
            old = f"{old[:place]}\n\n{section}{old[place:]}"
            place += len(section) + 2
    return old


def _merge_metadata(card: RepoCard, old: RepoCard) -> None:
    """Ours over theirs where we know better, both where there may be several, theirs where we say nothing."""
    new, kept = card.data, old.data.__dict__
    theirs = [tag for tag in _texts(kept.get("tags")) if not tag.startswith((ANCHORS_TAG, PART_TAG, VIEW_TAG))]
    for name in ("language", "datasets", "metrics"):
        both = _union(_texts(kept.get(name)), listed(new.get(name)))
        if both:
            new[name] = both
    new["tags"] = _union(listed(new.get("tags")), theirs)
    if kept.get("license"):
        new["license"] = kept["license"]
    if isinstance(new, ModelCardData):
        new.eval_results = _merged_results(new.eval_results or [], kept.get("eval_results") or [])
        new.model_name = new.model_name or kept.get("model_name")
    for name, value in kept.items():
        if new.get(name) is None and name != "eval_results":
            new[name] = value


def _merged_results(new: Sequence[EvalResult], old: Sequence[EvalResult]) -> list[EvalResult] | None:
    return [*new, *_not_told_by(old, new)] or None


def _read(text: str, card_class: type[RepoCard]) -> RepoCard:
    try:
        return card_class(text, ignore_metadata_errors=True)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, yaml.YAMLError) as error:
        logger.warning("The metadata of the existing card cannot be read and will be replaced: %s", error)
        body = re.sub(r"\A---.*?^---", "", text, count=1, flags=re.DOTALL | re.MULTILINE)
        return card_class(f"---\n{{}}\n---\n{body}")


def _metadata(
    repo_id: str, config: Mapping[str, Any], part: str | None, facts: CardFacts, tags: Sequence[str]
) -> ModelCardData:
    origins = [name for name in _origins(config, part) if _repo_id(name)]
    view, base = config.get("anchor_view"), _repo_id(config.get("base_model_name_or_path"))
    head = _repo_id(config.get("head_name_or_path"))
    modality = config.get("modality", "text")
    results = _all_results(facts, _task(config))
    reads_language = modality in OF_TOKENS and view
    return ModelCardData(
        # `pipeline(model=repo)` refuses another library's models; what it can run is a model of transformers.
        library_name="transformers" if part is None and _runs_in_a_pipeline(config) else LIBRARY,
        pipeline_tag=FEATURES[modality] if part == "encoder" else _task(config),
        base_model=origins or {"decoder": head, None: base or head}.get(part, base) or None,
        base_model_relation="merge" if origins else None,
        language=list(facts.languages) or (_languages([view]) if reads_language else None) or None,
        license=facts.license,
        datasets=list(facts.datasets) or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        tags=[*tags, *(tag for tag in facts.tags if tag not in tags)],
        eval_results=results or None,
        model_name=repo_id.split("/")[-1] if results else None,
    )


def _task(config: Mapping[str, Any]) -> str:
    return DRAWING if config.get("decoder_type") in IMAGE_DECODERS else TASKS[config.get("modality", "text")]


def _runs_in_a_pipeline(config: Mapping[str, Any]) -> bool:
    return _task(config) not in MODELS and config.get("decoder_type") not in (SEVERAL, PAIR)


def _eval_results(facts: CardFacts, task: str) -> list[EvalResult]:
    where = facts.evaluated_on or next(iter(facts.datasets), None)
    return [
        EvalResult(
            task_type=task,
            dataset_type=where or NO_DATASET,
            dataset_name=where or "the evaluation set",
            metric_type=name.lower().replace(" ", "_"),
            metric_name=name,
            metric_value=float(value),
        )
        for name, value in facts.metrics.items()
    ]


def _all_results(facts: CardFacts, task: str) -> list[EvalResult]:
    """The author's results and metrics, each metric on each dataset once."""
    return [*facts.results, *_not_told_by(_eval_results(facts, task), facts.results)]


def _not_told_by(results: Sequence[EvalResult], others: Sequence[EvalResult]) -> list[EvalResult]:
    """Those results that `others` do not tell, whatever they call them."""
    return [result for result in results if not any(_is_told_by(result, other) for other in others)]


def _is_told_by(result: EvalResult, other: EvalResult) -> bool:
    """Whether both are the same metric on the same data; data without a name are those that the other names."""
    fields = ["metric_type", "dataset_type", "dataset_config", "dataset_split", "dataset_revision"]
    compared = fields[:1] if result.dataset_type == NO_DATASET else fields
    return all(getattr(result, name) == getattr(other, name) for name in compared)


def _origins(config: Mapping[str, Any], part: str | None) -> list[str]:
    """Where a stitched model's parts come from: the encoder's repository, the decoder's."""
    if part:
        return []
    base, head = config.get("base_model_name_or_path"), config.get("head_name_or_path")
    return list(config.get("stitched_from") or []) or ([base, head] if base and head else [])


def _what(config: Mapping[str, Any], part: str | None) -> str:
    origins, base = _origins(config, part), config.get("base_model_name_or_path")
    of_base = f", based on {_link(base)}," if base else ""
    draws = config.get("decoder_type") in IMAGE_DECODERS
    several = ", ".join(f"`{name}`" for name in _questions(config))
    lends_head = config.get("decoder_type") == "head"
    head = f"the head of {_head_in_words(config)}"
    if part == "decoder" and lends_head:
        works = (
            "It fits one encoder only." if config.get("head_pair") else "It fits any encoder that shares its anchors."
        )
        return (
            f"A decoder: {head}, without its encoder. It reads {IN_WORDS}. They determine where the input lies in the "
            f"head's own latent space. {works}"
        )
    if part == "decoder" and several:
        return (
            f"Several decoders: {several}. They read {IN_WORDS}. One pass of any encoder that shares their anchors "
            "serves them all."
        )
    if part == "decoder":
        regression = config.get("problem_type") == "regression"
        predicts = f"predicts {'a number' if regression else 'its class'}{_each_token(config)}"
        gives = "reconstructs the input as an image" if draws else predicts
        return f"A decoder. It reads {IN_WORDS}, and {gives}. It fits any encoder that shares its anchors."
    if part == "encoder":
        return f"An encoder{of_base} that returns {IN_WORDS}. It fits any decoder that was trained on these anchors."
    if lends_head:
        encoder = f"the encoder of {_link(origins[0])}" if origins else f"an encoder{of_base.rstrip(',')}"
        return (
            f"Stitched without training from {encoder} and {head}. The encoder returns {IN_WORDS}. They determine "
            "where the input lies in the head's own latent space."
        )
    if several:
        encoder = f"the encoder of {_link(origins[0])}" if origins else f"an encoder{of_base.rstrip(',')}"
        return (
            f"{encoder[0].upper()}{encoder[1:]}, and several decoders: {several}. The encoder runs once for all of "
            f"them. They fit because the encoder returns, and the decoders read, {IN_WORDS}."
        )
    if origins:
        encoder, decoder = map(_link, origins)
        return (
            f"Stitched without training from the encoder of {encoder} and the decoder of {decoder}. They fit because "
            f"both use {IN_WORDS}."
        )
    return (
        f"{'An autoencoder' if draws else _kind_of(config)}{of_base} whose decoder reads only {IN_WORDS}. Its encoder "
        "and its decoder can be combined with those of other models that share these anchors, without training."
    )


def _kind_of(config: Mapping[str, Any]) -> str:
    return "A classifier of tokens" if config.get("modality") == "word" else "A classifier"


def _each_token(config: Mapping[str, Any]) -> str:
    return ", token by token" if config.get("modality") == "word" else ""


def _head_in_words(config: Mapping[str, Any]) -> str:
    name, kind = config.get("head_name_or_path"), (config.get("head_config") or {}).get("model_type")
    return f"the {_plain(kind)} classifier {_link(name)}" if name else f"a {_plain(kind)} classifier"


def _facts_table(config: Mapping[str, Any], part: str | None) -> dict[str, str]:
    similarity = config.get("similarity")
    names = similarity if isinstance(similarity, str) else ", ".join(similarity or [])
    ridge = config.get("basis_ridge")
    basis = f", change of basis with ridge {ridge}" if ridge is not None else ""
    table = {"Projection": f"transform `{config.get('transform')}`, similarity `{names}`{basis}"}
    if part != "decoder":
        base, revision = config.get("base_model_name_or_path"), config.get("base_model_revision")
        table["Encoder"] = _encoder_in_words(config, base, revision)
    if part != "encoder" and config.get("decoder_type") == "head":
        reads, size = _plain(config.get("head_reads")), config.get("head_size")
        table["Decoder"] = f"the head of {_head_in_words(config)}, which reads `{reads}`, {size} wide"
    if part != "encoder" and config.get("decoder_type") == MEAN:
        table["Decoder"] = (
            f"the mean of the probabilities of {len(config['decoders'])} decoders, at a temperature of "
            f"{_number(config.get('temperature') or 1)}: its scores say how often such answers are right"
        )
    for name, decoder in _questions(config).items():
        table[f"Decoder `{_plain(name)}`"] = _classes(decoder)
    if part != "encoder" and config.get("decoder_type") not in (*IMAGE_DECODERS, SEVERAL):
        table["Classes"] = _classes(config)
    return table


def _questions(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoders that answer a question each, by name."""
    return config.get("decoders") or {} if config.get("decoder_type") == SEVERAL else {}


def _classes(config: Mapping[str, Any]) -> str:
    labels = [str(label) for label in (config.get("id2label") or {}).values()]
    return _plain(", ".join(labels[:20]) + (f", ... ({len(labels)})" if len(labels) > 20 else ""))


def _encoder_in_words(config: Mapping[str, Any], base: str | None, revision: str | None) -> str:
    layer = "" if config.get("layer") in (None, -1) else f" of hidden state {config['layer']}"
    words = f"`{config.get('pooling')}` pooling{layer}, {config.get('embedding_size')} wide"
    if config.get("prompt"):
        words += f", prompt {_plain(repr(config['prompt']))} (the tokenizer here adds it)"
    if config.get("encoder_is_frozen"):
        kind = "its base, of which only adapters are" if config.get("encoder_adapters") else "frozen, and not"
        return f"{words}; {_link(base, f'/tree/{revision}')} is {kind} stored here"
    return words


def _use(repo_id: str, config: Mapping[str, Any], part: str | None, anchors: Mapping[str, Any]) -> str:
    several = next(iter(_questions(config)), None)
    kind = part or ("several" if several else "pipeline" if _runs_in_a_pipeline(config) else "model")
    if kind == "encoder" and config.get("modality") == "node":
        kind = "graph encoder"  # its graph does not travel with it
    if kind == "model" and config.get("decoder_type") == PAIR:
        kind = "two texts"
    if kind == "pipeline" and config.get("modality") == "word":
        kind = "word pipeline"
    if kind == "pipeline" and _reads_conversations(config, anchors):
        kind = "conversations"
    blocks = [CODE[kind]] if part else [CODE[kind], CODE["decoder"]]
    values = {
        "repo": _string(repo_id),
        "task": _task(config),
        "model_class": MODELS.get(_task(config), "RelativeModelForSequenceClassification"),
        "sample": _sample(repo_id, config, anchors),
        "name": _string(several),
    }
    code = [block.format(**values) for block in blocks]
    between = "\n\nCombine its decoder with other encoders, or its encoder with other decoders:\n\n"
    return between.join(f"```python\n{block}```" for block in code)


def _reads_conversations(config: Mapping[str, Any], anchors: Mapping[str, Any]) -> bool:
    return (anchors.get("views") or {}).get(config.get("anchor_view")) == "conversation"


def _sample(repo_id: str, config: Mapping[str, Any], anchors: Mapping[str, Any]) -> str:
    """An input for the code to paste: an anchor, if the samples are published."""
    modality, view, rows = config.get("modality"), config.get("anchor_view"), anchors.get("rows") or []
    if modality == "text" and not _reads_conversations(config, anchors):
        text = rows[0].get(view) if rows else None
        return _string(textwrap.shorten(str(text or "Put your text here."), EXAMPLE_LENGTH, placeholder=" ..."))
    if rows and view in rows[0]:  # a pair, a word, a conversation, an image, a sound
        return f"hf_relreps.AnchorSet.from_pretrained({_string(repo_id)}).view({_string(view)}).samples[0]"
    if modality == "pair":
        return '{"text": "Put the first text here.", "text_pair": "And the second one here."}'
    if modality == "word":
        return 'hf_relreps.words.Word(["Put", "your", "text", "here", "."], 3)'
    return '"image.png"' if modality == "image" else '"sound.wav"'


def install_line(extras: Sequence[str] = ()) -> str:
    """The command that installs this library: from git if it came from there, else from PyPI.

    Args:
        extras: Extras that the upload needs: ``graphs``, ``peft``.
    """
    needed = f"{LIBRARY}[{','.join(extras)}]" if extras else LIBRARY
    try:
        origin = json.loads(distribution(LIBRARY).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, json.JSONDecodeError):  # run from its sources
        origin = {}
    commit, url = origin.get("vcs_info", {}).get("commit_id"), str(origin.get("url"))
    if commit and PUBLIC_URL.fullmatch(url):  # no local path, and no name or token of who installed it
        return f'pip install "{needed} @ git+{url}@{commit}"'
    if origin and _repository():  # from a checkout or a file, so perhaps no release
        return f'pip install "{needed} @ git+{_repository()}"'
    return f'pip install "{needed}"' if extras else f"pip install {needed}"


def _repository() -> str | None:
    """The address that `Repository` names among the URLs of the project, if any."""
    try:
        urls = distribution(LIBRARY).metadata.get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(line.split(", ", 1) for line in urls)
    url = named.get("Repository", "")
    return url if PUBLIC_URL.fullmatch(url) else None


def _extras(config: Mapping[str, Any], part: str | None) -> list[str]:
    """What the encoder needs: graph encoders torch_geometric, adapters peft, quantized weights bitsandbytes."""
    if part == "decoder":
        return []
    needs = {"graphs": config.get("modality") == "node", "peft": bool(config.get("encoder_adapters"))}
    needs |= {"quantized": bool(config.get("encoder_quantization"))}
    return [extra for extra, needed in needs.items() if needed]


def _in_words(anchors: Mapping[str, Any]) -> dict[str, Any]:
    origin = dict(anchors.get("origin") or {})
    named = f"`{_plain(origin.pop('dataset'))}`" if "dataset" in origin else "a dataset"
    told = ", ".join(f"{_plain(key)} {_plain(value)}" for key, value in origin.items())
    views = {_plain(name): modality for name, modality in (anchors.get("views") or {}).items()}
    return {
        "num_anchors": anchors.get("num_anchors"),
        "fingerprint": anchors.get("fingerprint"),
        "tag": anchors_tag(str(anchors.get("fingerprint"))),
        "views": views,
        "origin": f"{named} ({told})" if told else (named if anchors.get("origin") else ""),
        "table": _table(anchors.get("rows") or []),
    }


def _training(facts: CardFacts) -> str:
    parts = []
    if facts.datasets:
        parts.append(f"Trained on {', '.join(_link(name, at='datasets/') for name in facts.datasets)}.")
    if facts.training:
        parts.append(_table([{"setting": name, "value": value} for name, value in facts.training.items()]))
    if facts.training_log:
        parts.append(_table(facts.training_log))
    return "\n\n".join(parts)


def _results(facts: CardFacts, task: str) -> str:
    rows = [
        {"metric": result.metric_name or result.metric_type, "value": result.metric_value, "on": result.dataset_name}
        for result in _all_results(facts, task)
    ]
    return _table(rows)


def _stitching(facts: CardFacts) -> str:
    matrix, expected = facts.stitching, _expected(facts.expected or {})
    if not matrix:
        picture = f"![Stitching matrix]({PICTURE_FILE})" if facts.picture else ""
        return "\n\n".join(filter(None, [expected, picture]))
    unit = f"{matrix['metric']} on {matrix['n']:,} samples"
    parts = [expected] if expected else []
    parts.append(f"Every encoder (row) with every decoder (column): {unit}. Bold pairs were trained together.")
    parts.append(_matrix_table(matrix, matrix["scores"]))
    if matrix.get("absolute"):
        parts += [
            f"The control without relative representations, {matrix['control']}:",
            _matrix_table(matrix, matrix["absolute"]),
        ]
    told = {name: matrix.get(name) for name in ("own", "stitched", "worst", "ratio", "absolute_stitched", "chance")}
    figures = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in told.items() if value is not None]
    parts.append(f"{', '.join(figures)}.")
    if facts.picture:
        parts.append(f"![Stitching matrix]({PICTURE_FILE})")
    return "\n\n".join(parts)


def _expected(report: Mapping[str, Any]) -> str:
    """What was told of a stitched model before anybody measured it."""
    ratio, pairs = report.get("expected_ratio"), report.get("num_pairs")
    if ratio is None:
        return ""
    return (
        f"Predicted, not measured: the model keeps {100 * ratio:.0f} % of the macro-F1 that its decoder has with its "
        f"own encoder, estimated from {pairs:,} unlabelled pairs."
    )


def _matrix_table(matrix: Mapping[str, Any], scores: Sequence[Sequence[Any]]) -> str:
    own = matrix.get("own_pairs") or {}
    rows = []
    for encoder, row in zip(matrix["encoders"], scores, strict=True):
        cells = {
            decoder: f"**{_number(value)}**" if own.get(encoder) == decoder else _number(value)
            for decoder, value in zip(matrix["decoders"], row, strict=True)
        }
        rows.append({"encoder": encoder, **cells})
    return _table(rows)


def _licence(config: Mapping[str, Any], facts: CardFacts) -> str:
    sources = list(config.get("stitched_from") or [])
    sources = sources or [config.get("base_model_name_or_path"), config.get("head_name_or_path")]
    links = " and ".join(_link(name) for name in sources if name)
    too = f" The licence of {links} applies too." if links else ""
    if facts.license:
        return f"`{facts.license}`.{too}"
    return f"The author gives no licence. Ask before you use the model.{too}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else _number(value) if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _plain(value: Any) -> str:
    """Text that can neither leave its table cell nor be read as markup: samples come from anywhere."""
    text = " ".join(str(value).split())
    text = text if len(text) <= 120 else f"{text[:119]}…"
    return text.translate({ord(mark): f"&#{ord(mark)};" for mark in "&<|`["})


def _repo_id(name: Any) -> str | None:
    """The name, if it can be that of a repository."""
    return str(name) if REPO_ID.fullmatch(str(name or "")) else None


def _link(name: Any, below: str = "", at: str = "") -> str:
    """A link to a repository; what is no name of one is shown as code, so that it cannot lead anywhere else."""
    if _repo_id(name) is None:
        return f"`{_plain(name)}`"
    return f"[{name}](https://huggingface.co/{at}{name}{quote(below)})"


def _string(value: Any) -> str:
    """A string of the code to paste, which can neither end its code block nor its section."""
    text = "" if value is None else json.dumps(str(value), ensure_ascii=False)
    return text.replace("`", "\\u0060").replace("<", "\\u003c")


def _languages(views: Iterable[Any]) -> list[str]:
    """Those names of views that are ISO 639-1 codes."""
    return [str(view) for view in views if re.fullmatch(r"[a-z]{2}", str(view))]


def listed(value: Any) -> list[Any]:
    """A field of metadata that may be missing, one value or several."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _texts(value: Any) -> list[str]:
    """The texts in a field of metadata that may hold anything."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in values if isinstance(text, str)]


def _union(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys([*first, *second]))
