"""What a card (README.md) says about its repository: its metadata, what is wrong with it, and the tags it gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]


FRONT_MATTER = re.compile(r"^\s*---[\r\n]+([\S\s]*?)[\r\n]+---(\r\n|\n|$)")
ARXIV_LINK = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")
REPO_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
# On a dataset these card keys become tags with the key in front; on a model `language` stands alone.
DATASET_TAG_KEYS = ("task_categories", "task_ids", "language", "multilinguality", "license", "size_categories")


def read_card(readme: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none or none that can be read."""
    match = FRONT_MATTER.match(readme)
    if match is None:
        return {}
    try:
        card = _load(match.group(1))
    except (yaml.YAMLError, RecursionError):  # thousands of brackets
        return {}
    return card if isinstance(card, dict) else {}


class _Plain(yaml.SafeLoader):
    """YAML without aliases, by which a few lines stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


def _load(text: str) -> Any:
    return yaml.load(text, _Plain)  # noqa: S506  a safe loader


def check_card(readme: str) -> tuple[list[str], list[str]]:
    """Errors, for which the Hub refuses a card, and warnings."""
    match = FRONT_MATTER.match(readme)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        card = _load(match.group(1))
    except (yaml.YAMLError, RecursionError) as error:
        return [f"the YAML metadata cannot be read: {error}"], []
    if not isinstance(card, dict):
        return [f"the YAML metadata must be key: value pairs, found {type(card).__name__}"], []
    return list(_card_errors(card)), []


def _card_errors(card: dict[str, Any]) -> Iterator[str]:
    for key in ("tags", "language", "datasets", "base_model", "license", "metrics"):
        for index, value in enumerate(as_list(card.get(key))):
            if not isinstance(value, str):
                yield f'"{key}[{index}]" must be a string, found {value!r}'
    for key in ("pipeline_tag", "library_name"):
        if not isinstance(card.get(key, ""), str):
            yield f'"{key}" must be a string, found {card[key]!r}'
    for key, place in (("base_model", "models"), ("datasets", "datasets")):
        for value in as_list(card.get(key)):
            if isinstance(value, str) and not REPO_ID.match(value):
                yield f'"{key}" with value "{value}" is not valid. Use an id from https://hf.co/{place}.'
    yield from _model_index_errors(card.get("model-index"))


def _model_index_errors(model_index: Any) -> Iterator[str]:
    for i, model in enumerate(as_list(model_index)):
        yield from _missing(model, ("name", "results"), f"model-index[{i}]")
        results = model.get("results") if isinstance(model, dict) else None
        for j, result in enumerate(as_list(results)):
            where = f"model-index[{i}].results[{j}]"
            yield from _missing(result, ("task", "dataset", "metrics"), where)
            if not isinstance(result, dict):
                continue
            yield from _missing(result.get("task", {"type": ""}), ("type",), f"{where}.task")
            yield from _missing(result.get("dataset", {"type": "", "name": ""}), ("type", "name"), f"{where}.dataset")
            for k, metric in enumerate(as_list(result.get("metrics"))):
                yield from _missing(metric, ("type", "value"), f"{where}.metrics[{k}]")


def _missing(value: Any, keys: Iterable[str], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f'"{where}" must be key: value pairs, found {type(value).__name__}'
        return
    for key in keys:
        if key not in value:
            yield f'"{where}.{key}" is required'


def model_tags(card: dict[str, Any], readme: str, paths: Iterable[str], config: dict[str, Any]) -> list[str]:
    """The tags of a model, as its card, its files and its config give them."""
    names = set(paths)
    tags = [card.get("library_name"), config.get("model_type"), card.get("pipeline_tag"), *as_list(card.get("tags"))]
    if any(name.endswith(".safetensors") for name in names):
        tags.append("safetensors")
    tags += [f"dataset:{dataset}" for dataset in as_list(card.get("datasets"))]
    tags += as_list(card.get("language"))
    tags += [f"arxiv:{paper}" for paper in ARXIV_LINK.findall(readme)]
    bases = as_list(card.get("base_model"))
    relation = card.get("base_model_relation") or ("adapter" if "adapter_config.json" in names else "finetune")
    tags += [f"base_model:{base}" for base in bases] + [f"base_model:{relation}:{base}" for base in bases]
    tags += [f"license:{licence}" for licence in as_list(card.get("license"))]
    if "model-index" in card:
        tags.append("model-index")
    return unique([*tags, "region:us"])


def dataset_tags(card: dict[str, Any], readme: str, paths: Iterable[str]) -> list[str]:
    """The tags of a dataset or a space, as its card and its files give them."""
    tags: list[Any] = [f"{key}:{value}" for key in DATASET_TAG_KEYS for value in as_list(card.get(key))]
    if any(path.endswith(".parquet") for path in paths):
        tags += ["format:parquet", "library:datasets"]
    tags += [f"arxiv:{paper}" for paper in ARXIV_LINK.findall(readme)]
    return unique([*tags, *as_list(card.get("tags")), "region:us"])


def read_config(text: str) -> dict[str, Any]:
    """What the Hub keeps of a config.json; empty where it cannot be read."""
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            return {}
        kept = {key: config[key] for key in ("architectures", "model_type", "auto_map") if key in config}
        json.dumps(kept)  # some versions of Python read what they cannot write
    except (ValueError, RecursionError):  # thousands of brackets
        return {}
    return kept


def as_list(value: Any) -> list[Any]:
    """A list of what may be nothing, one thing or a list of things."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def unique(tags: Iterable[Any]) -> list[str]:
    """The tags that are words, each once, in their order."""
    return list(dict.fromkeys(str(tag) for tag in tags if tag))
