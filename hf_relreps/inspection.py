"""What the files of an upload may say: its configurations are read against what is known before any library sees them.

What is not known is refused, with what to do: load that part yourself and hand it over. So a new field of another
library is no new door. The rules are those of transformers' own classes: which types there are, which fields each
declares, which of them hold words.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers import (
    CONFIG_MAPPING,
    PROCESSOR_MAPPING,
    FeatureExtractionMixin,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from hf_relreps.errors import ConfigurationError, UploadError


# Words in the names of fields that count things, and how many a model may have of them.
MOST = {
    **{"num_labels": 50_000, "experts": 100_000, "layers": 1_000, "layer": 1_000, "depth": 1_000, "blocks": 1_000},
    **{"stages": 1_000, "levels": 1_000, "heads": 10_000, "groups": 100_000, "hashes": 1_000, "repeats": 1_000},
}
# Integers beyond the first number only in fields that say how far a model counts, and none beyond the second.
LARGE, LARGEST = 100_000, 100_000_000
MOST_UNNAMED_LABELS = 20_000  # that get their names only as the configuration is read
COUNTERS = (
    *("token", "vocab", "position", "rate", "pixels", "index", "max", "length", "_id_", "ids", "size", "floor"),
    *("anchors", "context", "ctx", "window"),
)
PLAIN_WORD = re.compile(r"[\w.+|-]{0,64}|[0-9]{1,3}/[0-9]{1,3}")
NUMBERS = ("Infinity", "-Infinity", "NaN")  # as transformers spells them in JSON
TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)?")  # of timm's own registry: no scheme, no path
# Fields of model configurations that choose among a model's own parts; every other text is its class's default.
MODEL_WORDS = re.compile(
    r".*(act|act_fn|act_func|activation|activation_function|afn|type|types|mode|norm|reduction|method|strategy|scheme"
    r"|policy|initializer|dtype|expert_selection_fn|scoring_func|attn_layers|fuse_op|approx_mode|decoder_method|loss"
    r"|distribution_output|head_aggregation|scaling|gating|aggregation|upsampler|resi_connection|proj|padding|apply"
    r"|tokenize_function|pos_att_type|approximation_function|for_attention|dequant|rank|d_head|pattern|aspect_ratio"
    r"|out_features|stage_names|features|problem_type|torch_dtype|norm_rel_ebd|norm_mlp|projection_method|pooling"
    r"|indexer_types|logit_scale|init_device|rope_scaling|relative_bias_args|rope_parameters|downsample_rate"
    r"|mlp_ratio|layer_scale|nonlinearity|convolution)"
)
# Fields of model configurations whose texts nothing opens.
MODEL_TEXTS = (
    *("_name_or_path", "name_or_path", "transformers_version", "architectures", "tokenizer_class", "id2label"),
    *("label2id", "task_specific_params", "model_type", "langs", "languages", "default_language", "vocab_list"),
    *("vocabulary_map", "offsets", "doc_sep", "title_sep", "finetuning_task", "processor_class", "dtype"),
)
TIMM_TYPES = ("timm_wrapper", "timm_backbone")
# Fields that no class declares and that transformers reads of any: other files of weights, and layers from the Hub.
OPENED = ("transformers_weights", "gguf_file", "kernel_config", "fusion_config", "custom_pipelines")
MOST_PATCHES = 32  # in a row, of LeViT
# Types that compute a table of positions one number at a time, in Python: the fields whose sum is its length, its
# width, and the field that asks for it, if one does.
TABLES: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    **dict.fromkeys(("marian", "pegasus"), (("max_position_embeddings",), "d_model", None)),
    **dict.fromkeys(("xlm", "flaubert"), (("max_position_embeddings",), "emb_dim", "sinusoidal_embeddings")),
    "distilbert": (("max_position_embeddings",), "dim", "sinusoidal_pos_embds"),
    "roformer": (("max_position_embeddings",), "hidden_size", None),
    **dict.fromkeys(
        ("autoformer", "informer", "time_series_transformer"),
        (("context_length", "prediction_length"), "d_model", None),
    ),
}
OF_VIDEOS = "videomae"  # computes one too, with a row for each patch
# Numbers of such a table that any model may have, the share of its stored numbers beyond these, and the most.
FEW_IN_TABLE, SHARE_OF_STORED, MOST_IN_TABLE = 1 << 18, 1 / 16, 1 << 22
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
# Fields of processors' files that hold words, by how they end, and fields whose texts nothing opens.
PROCESSOR_WORDS = re.compile(
    r".*(_type|_mode|_side|_format|_strategy|_method|_lang|_class|_function|_scale|_norm|_dtype|_backend|_pattern)"
    r"|padding|truncation|interpolation|resample|errors|language|task|backend|device|dtype|mode|architecture|norm"
    r"|mel_norms|mecab_dic|sudachi_split_mode|sudachi_dict_type|input_data_format|return_tensors|model_input_names"
    r"|fusion|preprocessor|reducer|format|language_codes?|_valid_processor_keys|device_map"
)
PROCESSOR_TEXTS = re.compile(
    r".*(_token|_tokens|_prompt|_prefix|chat_template|prefix|suffix|_delimiter_char)"
    r"|token|added_tokens_decoder|added_tokens|never_split|special|content|__type|name_or_path|_name_or_path"
    r"|special_tokens_map_file|tokenizer_file|auto_map|transformers_version|pretrained_cfg|tags_dict|langs|lang2id|id2lang"
    r"|additional_special_tokens|prompt_dictionary|id2label|label2id|tag|custom_load|license|origin_url|_commit_hash"
    r"|response_schema|policy_definitions"
)
READERS = (ProcessorMixin, PreTrainedTokenizerBase, ImageProcessingMixin, FeatureExtractionMixin)
PART_NAMES = ("tokenizer", "image_processor", "feature_extractor", "video_processor")
LOADERS = ("from_pretrained", "_from_pretrained", "_get_arguments_from_pretrained", "_load_tokenizer_from_pretrained")
OPENERS = frozenset(
    {"from_pretrained", "open", "cached_file", "hf_hub_download", "load_metadata", "snapshot_download"}
)
MOST_EDGE, MOST_SHORTEST = 4_096, 1 << 22  # the latter where it counts pixels
FACTOR = r"(?<!normalize_)(?<!rescale_)factor"
# Most of what a processor of images or sounds may say, by the first of these that its field contains. A number of
# pixels that an image is made smaller to costs nothing, one that it is made larger to does.
MOST_BY_WORD = (
    (r"min_.*tokens|soft_tokens", 16_384),  # that an image is made larger to
    (r"token|_ids?$|index|seed|max_pixels|longest_edge|total_pixels", 100_000_000),
    (r"pixels|shortest_edge", MOST_SHORTEST),
    (rf"temporal|merge|tiles|crops|slice|kernel|spatial|{FACTOR}", 64),
    (r"patch_?size|patch_height|patch_width", 256),
    (r"win_length|hop_length", 16_384),
    (r"rate|samples|frames|length|f_?max|f_?min|frequency", 4_000_000),
    (r"divisor|ensure_multiple|pad_size", 2_048),
    (r"mel|feature_size|clusters", 4_096),
    (r"size$|resolution|pinpoints|height|width", MOST_EDGE),
)
LEAST_PIXELS = 50_000  # a longest_edge from here on is no edge: it counts an image's pixels (Qwen)
EDGES = ("height", "width", "shortest_edge", "longest_edge")
UNITS = rf"patch_?size|temporal|merge|kernel|spatial|{FACTOR}"  # an image is a multiple of all of them
MOST_IN_UNIT = 1 << 20  # pixels
TILES = r"tiles|crops|slice|max_patches"  # each of the size of an image
MOST_IN_TILES = 1 << 25
MOST_OTHERWISE = 32_768  # sides, windows, patches
MOST_AREA = 1 << 23  # height times width: 100 MB as float32
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Most of what it may make of one sample, as products of its fields: numbers of a table, or of a sound.
MOST_VALUES = 4_000_000
FILTERS = ("feature_size", "num_mel_bins")
WINDOWS = ("n_fft", "fft_window_size", "win_length", "frame_length")
TIMES = r"second|duration|_s$|_ms$|^chunk_length$"
USUAL_RATE = 48_000  # where a file does not tell
PRODUCTS = (
    *((window, filters) for window in ("n_fft", "fft_window_size") for filters in FILTERS),
    *((length, filters) for length in ("max_length", "nb_max_frames") for filters in FILTERS),
)
LONGEST_SOUND = 60  # seconds that a window is moved over
MOST_SPECTRUM = 1 << 27
MOST_TOKENS = 2_000_000  # what a tokenizer's files may number its tokens to


# -- Configurations of models


def refuse_unknown_model(content: Any, where: str) -> None:
    """Refuse a model's configuration (the content of its JSON) that names other things or is of no known type.

    Args:
        content: With ``model_type``; nested configurations are looked at too.
        where: What to call it in errors.

    Raises:
        ConfigurationError: With the field, and what to do.
    """
    if not isinstance(content, Mapping):
        return
    refuse_immense(content)
    _refuse_names(content, where, _class_of(content, PreTrainedConfig, where))


def _class_of(content: Mapping[str, Any], declared: Any, where: str) -> Any:
    """The class that reads a configuration: that of its type, or the one that the configuration around it declares."""
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind == getattr(declared, "model_type", None):
        return declared
    if kind not in CONFIG_MAPPING:
        raise ConfigurationError(
            f"{where} has model_type {kind!r:.60}, which the installed transformers does not support. {_hand_over()}"
        )
    return CONFIG_MAPPING[kind]


def declared_only(content: Any) -> Any:
    """A model's configuration without texts that its class does not declare: nothing of transformers reads those."""
    kind = content.get("model_type") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return content
    config_class: Any = CONFIG_MAPPING[kind]
    declared = _defaults(config_class)
    kept = {name: value for name, value in content.items() if not isinstance(value, str) or _is_known(name, declared)}
    if "use_pretrained_backbone" in kept:
        kept["use_pretrained_backbone"] = False  # weights are the upload's own
    return {name: declared_only(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _is_known(name: str, declared: Mapping[str, Any]) -> bool:
    return name in declared or name in (*MODEL_TEXTS, "backbone", "architecture")


def _refuse_names(content: Mapping[str, Any], where: str, config_class: Any) -> None:
    declared = _defaults(config_class)
    kind = content.get("model_type")
    for name, value in content.items():
        if str(name) in MODEL_TEXTS:
            continue
        if str(name) in OPENED or str(name).strip("_").startswith(IMPLEMENTATIONS):
            _refuse_opened(str(name), value, where)
            continue
        if name in ("backbone", "architecture"):
            _refuse_place(name, value, where, is_timm=kind in TIMM_TYPES or name == "architecture")
        elif name in ("model_args", "backbone_kwargs"):
            _refuse_texts(name, value, where)
        elif isinstance(value, Mapping) and (
            isinstance(value.get("model_type"), str) or name in _nested(config_class)
        ):
            place = f"{name} of {where}"
            _refuse_names(value, place, _class_of(value, _nested(config_class).get(name, PreTrainedConfig), place))
        else:
            default = declared.get(str(name))
            for text in _texts(value):
                allowed = MODEL_WORDS.fullmatch(str(name)) and PLAIN_WORD.fullmatch(text)
                if name in declared and not allowed and text not in (*NUMBERS, *_texts(default)):
                    _refuse_field(name, text, where)


def _refuse_opened(name: str, value: Any, where: str) -> None:
    """Of fields that any configuration may have: files of weights by name, and code of the Hub in place of layers."""
    texts = list(_texts(value))
    if name in OPENED and texts or not all(PLAIN_WORD.fullmatch(text) for text in texts):
        _refuse_field(name, value, where)


@lru_cache(maxsize=1024)
def _defaults(config_class: Any) -> dict[str, Any]:
    """The declared fields, with the values that a configuration has where nothing is said."""
    if not dataclasses.is_dataclass(config_class):
        return {}
    try:
        make: Any = config_class  # which mypy takes for an instance, after is_dataclass
        made = vars(make())
    except Exception:  # one that cannot do without settings, or without a library
        made = {}
    return {field.name: made.get(field.name, field.default) for field in dataclasses.fields(config_class)}


def _nested(config_class: Any) -> dict[str, Any]:
    return dict(getattr(config_class, "sub_configs", {}) or {})


def _refuse_place(name: str, value: Any, where: str, *, is_timm: bool) -> None:
    if value is None or (is_timm and isinstance(value, str) and TIMM_NAME.fullmatch(value)):
        return
    _refuse_field(name, value, where)


def _refuse_texts(name: str, value: Any, where: str) -> None:
    text = next(_texts(value), None)
    if text is not None or (isinstance(value, Mapping) and any("pretrained" in str(key) for key in value)):
        _refuse_field(name, value, where)


def _refuse_field(name: Any, value: Any, where: str) -> None:
    raise ConfigurationError(
        f"{where} has {name}={value!r:.80}, expected one of the values that its architecture knows: the field could "
        f"name another model, a folder or a file. {_hand_over()}"
    )


def _hand_over() -> str:
    return (
        "If you trust it, load that model yourself and pass it: RelativeModel.from_encoder(model, view, processor); "
        "otherwise do not use this upload."
    )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def refuse_immense(config: Any) -> None:
    """Raise `ConfigurationError` for numbers that no model has: each label and each layer costs time and memory."""
    if isinstance(config, list):
        for part in config:
            refuse_immense(part)
    if isinstance(config, Mapping) and config.get("model_type") == "levit":
        _refuse_fine(config)
    for name, value in config.items() if isinstance(config, Mapping) else ():
        if name == "encoder_adapters":
            continue  # looked at where the base is known
        counts = [count for count in (value if isinstance(value, list) else [value]) if isinstance(count, int | float)]
        most = _most_of(str(name), counts)
        if name == "num_labels" and not _has_names(config, value):
            most = MOST_UNNAMED_LABELS
        if any(abs(count) > most for count in counts):
            raise ConfigurationError(
                f"{name}={value!r:.60} is larger than in any known model; the limit is {most:g}. Do not use this "
                "upload."
            )
        refuse_immense(value)


def _has_names(config: Mapping[str, Any], num_labels: Any) -> bool:
    names = config.get("id2label")
    return isinstance(names, Mapping) and len(names) == num_labels


def _refuse_fine(config: Mapping[str, Any]) -> None:
    """Refuse patches of LeViT that are many: as it is built, it walks through all pairs of them in Python."""
    side, patch = (config.get(name, default) for name, default in (("image_size", 224), ("patch_size", 16)))
    if not all(isinstance(number, int) for number in (side, patch)) or side > MOST_PATCHES * patch:
        raise ConfigurationError(
            f"image_size={side!r:.60} and patch_size={patch!r:.60} make more than {MOST_PATCHES} patches in a row, "
            "which no known LeViT has. Do not use this upload."
        )


def refuse_long_tables(config: Any, stored: int, where: str) -> None:
    """Refuse tables of positions that are computed as a model is built, and are larger than its weights justify.

    Args:
        config: The content of a model's configuration; nested ones are looked at too.
        stored: How many numbers its files of weights hold.
        where: What to call it in errors.

    Raises:
        ConfigurationError: With both sides of the table, and how many numbers it may have.
    """
    if not isinstance(config, Mapping):
        return
    rows, width = _sides_of_table(config)
    most = min(MOST_IN_TABLE, int(FEW_IN_TABLE + SHARE_OF_STORED * stored))
    if rows * width > most:
        raise ConfigurationError(
            f"{where} has a {config['model_type']} model with {rows:.0f} positions of {width:.0f} numbers, computed "
            f"one by one; its weight files contain {stored} numbers, which justify a table of {most}. Do not use this "
            "upload."
        )
    for name, value in config.items():
        refuse_long_tables(value, stored, f"{name} of {where}")


def _sides_of_table(config: Mapping[str, Any]) -> tuple[float, float]:
    """Rows and columns of the table of positions that a type computes in Python; none of any other."""
    kind = config.get("model_type")
    if kind == OF_VIDEOS:
        frames, side, patches = (_numbers(config, name) for name in ("num_frames", "image_size", "patch_size"))
        rows = max(frames) / min(_numbers(config, "tubelet_size")) * (max(side) / min(patches)) ** 2
        return rows, max(_numbers(config, "hidden_size"))
    if not isinstance(kind, str) or kind not in TABLES:
        return 0, 0
    lengths, width, switch = TABLES[kind]
    if switch is not None and not config.get(switch):
        return 0, 0
    return sum(max(_numbers(config, name)) for name in lengths), max(_numbers(config, width))


def _numbers(config: Mapping[str, Any], name: str) -> list[float]:
    """The numbers of a field, by any of its names, or those of its default."""
    config_class: Any = CONFIG_MAPPING[config["model_type"]]
    also = [other for other, own in getattr(config_class, "attribute_map", {}).items() if own == name]
    there = [config[one] for one in (name, *also) if config.get(one) is not None]
    values = there or [_defaults(config_class).get(name)]
    numbers = [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    return [abs(one) for one in numbers if is_number(one) and one] or [1]


def _most_of(name: str, counts: list[Any]) -> float:
    words = f"_{name}_".replace("depths", "depth")  # whole words: depthwise is no depth
    if "theta" in words:
        return float("inf")  # a base of angles, which counts nothing
    if "vocab" in words:
        return LARGEST
    most = next((most for word, most in MOST.items() if f"_{word}_" in words), None)
    if most is not None:
        return most
    if not all(isinstance(count, int) for count in counts):
        return float("inf")  # bases, scales and rates are no counts
    return LARGEST if any(word in words for word in COUNTERS) else LARGE


# -- Configurations of processors


def refuse_unknown_processor(contents: Mapping[str, Any], where: str) -> None:
    """Refuse the configurations of a processor that name other things, or classes that load a part of their own.

    Args:
        contents: What its JSON files hold, by their names; ``config.json`` of the model may be among them.
        where: What to call it in errors.

    Raises:
        UploadError: With the file, the field, and what to do.
    """
    for file, content in contents.items():
        if file == "config.json":
            continue
        _refuse_fields(content, f"{file} of {where}")
        if file not in TOKENIZER_FILES:
            _refuse_immense_reader(content, f"{file} of {where}")
    for name, found in _classes_of(contents):
        _refuse_loading_class(name, found, where)


def _refuse_fields(content: Any, where: str, name: str = "") -> None:
    if isinstance(content, Mapping):
        _refuse_token_numbers(content.get("added_tokens_decoder"), where)
        for key, value in content.items():
            if not PROCESSOR_TEXTS.fullmatch(str(key)):
                _refuse_fields(value, where, str(key))
    elif isinstance(content, list):
        for value in content:
            _refuse_fields(value, where, name)
    elif isinstance(content, str):
        plain = PROCESSOR_WORDS.fullmatch(name) and PLAIN_WORD.fullmatch(content)
        if content and not plain:
            raise UploadError(
                f"{where} has {name}={content!r:.80}: the field could name another model, a folder or a file, and no "
                f"known processor needs it. {_give_processor()}"
            )
    elif is_number(content) and name != "model_max_length":
        if abs(content) > LARGEST:
            raise UploadError(f"{where} has {name}={content}, above the limit of {LARGEST}. {_give_processor()}")


def _refuse_token_numbers(decoder: Any, where: str) -> None:
    numbers = [int(number) for number in decoder if str(number).isdigit()] if isinstance(decoder, Mapping) else []
    if numbers and max(numbers) > MOST_TOKENS:
        raise UploadError(
            f"{where} has token id {max(numbers)}, above the limit of {MOST_TOKENS}. {_give_processor()}"
        )


def _refuse_immense_reader(content: Any, where: str, name: str = "") -> None:
    """Raise `UploadError` if a processor of images or sounds would make gigabytes of a sample."""
    if isinstance(content, Mapping):
        _refuse_products(content, where)
        _refuse_long(content, where)
        _refuse_units(content, where)
        _refuse_edges(content, where)
        sides = [[value for key, value in content.items() if side in str(key)] for side in ("height", "width")]
        _refuse_area([max(values) for values in sides if values and all(map(is_number, values))], name, where)
        for key, value in content.items():
            inner = f"{name}_{key}" if "patch" in name and key in EDGES else str(key)
            _refuse_immense_reader(value, where, name if str(key).isdigit() else inner)
    elif isinstance(content, list):
        _refuse_area(content if len(content) == 2 and all(map(is_number, content)) else [], name, where)
        for value in content:
            _refuse_immense_reader(value, where, name)
    elif is_number(content):
        most = next((most for word, most in MOST_BY_WORD if re.search(word, name)), MOST_OTHERWISE)
        if abs(content) > most:
            raise UploadError(f"{where} has {name}={content}, above the limit of {most}. {_give_processor()}")


def _refuse_edges(size: Mapping[str, Any], where: str) -> None:
    """Refuse edges that images are made as long as; a longest one beside a shortest one only makes them smaller."""
    shortest: Any = size.get("shortest_edge")
    longest: Any = size.get("longest_edge")
    name, edge = ("longest_edge", longest) if shortest is None else ("shortest_edge", shortest)
    counts_pixels = is_number(shortest) and is_number(longest) and longest >= LEAST_PIXELS
    most = MOST_SHORTEST if counts_pixels else MOST_EDGE
    if is_number(edge) and abs(edge) > most:
        raise UploadError(f"{where} has {name}={edge}, above the limit of {most}. {_give_processor()}")


def is_number(found: Any) -> bool:
    """Whether a field of a file holds a number; a switch is none."""
    return isinstance(found, int | float) and not isinstance(found, bool)


def _refuse_area(sides: list[Any], name: str, where: str) -> None:
    if len(sides) == 2 and sides[0] * sides[1] > MOST_AREA:
        raise UploadError(
            f"{where} has {name or 'a size'}={sides[0]} x {sides[1]} pixels, above the limit of {MOST_AREA}. "
            f"{_give_processor()}"
        )


def _refuse_products(content: Mapping[str, Any], where: str) -> None:
    def numbers(*names: str) -> list[Any]:
        return [content[name] for name in names if is_number(content.get(name))]

    for names in PRODUCTS:
        found = numbers(*names)
        if len(found) == 2 and abs(found[0] * found[1]) > MOST_VALUES:
            _refuse_values(dict(zip(names, found, strict=True)), abs(found[0] * found[1]), MOST_VALUES, where)
    rate = max(map(abs, numbers("sampling_rate")), default=USUAL_RATE)
    hop = [*numbers("hop_length"), *(one * rate / 1_000 for one in numbers("hop_length_ms"))]
    windows = [*numbers(*WINDOWS), *(one * rate / 1_000 for one in numbers("frame_length_ms"))]
    if hop:
        made = LONGEST_SOUND * rate / max(min(map(abs, hop)), 1e-9) * max(map(abs, windows), default=400)
        if made > MOST_SPECTRUM:
            _refuse_values({"hop_length": hop[0], "sampling_rate": rate}, made, MOST_SPECTRUM, where)


def _refuse_long(content: Mapping[str, Any], where: str) -> None:
    """Refuse times that are gigabytes of sound; in milliseconds they are windows over it."""
    rate: Any = content.get("sampling_rate")
    rate = abs(rate) if is_number(rate) else USUAL_RATE
    for name, value in content.items():
        if is_number(value) and re.search(TIMES, str(name)):
            each, most = (rate / 1_000, MOST_OTHERWISE) if str(name).endswith("_ms") else (rate, MOST_VALUES)
            if abs(value * each) > most:
                _refuse_values({str(name): value, "sampling_rate": rate}, abs(value * each), most, where)


def _refuse_units(content: Mapping[str, Any], where: str) -> None:
    """Refuse patches, tiles and clusters each of which is allowed, but not all of them together."""
    units = {str(name): _largest(value) for name, value in content.items() if re.search(UNITS, str(name))}
    made = math.prod(side if "temporal" in name else side**2 for name, side in units.items())
    if made > MOST_IN_UNIT:
        _refuse_values(units, made, MOST_IN_UNIT, where)
    pixels = max(_pixels_of(content.get(name)) for name in ("size", "crop_size", "tile_size", "scale_resolution"))
    tiles = {str(name): _largest(value) for name, value in content.items() if re.search(TILES, str(name))}
    for name, count in tiles.items():
        if pixels > 1 and count * pixels > MOST_IN_TILES:
            _refuse_values({name: count, "pixels": pixels}, count * pixels, MOST_IN_TILES, where)
    clusters = content.get("clusters")
    if isinstance(clusters, list) and len(clusters) * pixels > MOST_SPECTRUM:
        _refuse_values({"clusters": len(clusters), "pixels": pixels}, len(clusters) * pixels, MOST_SPECTRUM, where)


def _largest(value: Any) -> float:
    """The largest number of a field, at least one."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    return max([1, *(abs(part) for part in parts if is_number(part))])


def _pixels_of(size: Any) -> float:
    """How many pixels a size asks for, where it tells."""
    if not isinstance(size, Mapping):
        return _largest(size) ** 2
    if is_number(size.get("height")) and is_number(size.get("width")):
        return abs(size["height"] * size["width"])
    if _largest(size.get("longest_edge")) >= LEAST_PIXELS:
        return 1
    return _largest(size) ** 2


def _refuse_values(fields: Mapping[str, Any], made: float, most: int, where: str) -> None:
    told = " and ".join(f"{name}={value}" for name, value in fields.items())
    raise UploadError(
        f"{where} has {told}, which would make {made:.3g} numbers of each sample; the limit is {most}. "
        f"{_give_processor()}"
    )


def _give_processor() -> str:
    return (
        "If you trust it, load the processor yourself and pass it: from_encoder(model, view, processor), or "
        "model.processor = processor."
    )


def _classes_of(contents: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The classes that transformers would choose by these files, as far as it knows them."""
    finders: dict[str, Callable[[str], Any]] = {
        "processor_class": processor_class_from_name,
        "tokenizer_class": tokenizer_class_from_name,
        "image_processor_type": get_image_processor_class_from_name,
        "feature_extractor_type": _feature_extractor_class,
    }
    for content in contents.values():
        part: Any
        for part in (content, *(content.get(name) for name in PART_NAMES)) if isinstance(content, Mapping) else ():
            for field, find in finders.items() if isinstance(part, Mapping) else ():
                name = part.get(field)
                if isinstance(name, str) and (found := _found(find, name)) is not None:
                    yield name, found
    config: Any = contents.get("config.json") or {}
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in PROCESSOR_MAPPING:
        of_model: Any = PROCESSOR_MAPPING[CONFIG_MAPPING[kind]]
        if of_model is not None:
            yield of_model.__name__, of_model


def _feature_extractor_class(name: str) -> Any:
    from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name

    return feature_extractor_class_from_name(name)


def _found(find: Callable[[str], Any], name: str) -> Any:
    try:
        return find(name)
    except Exception:  # another version of transformers, or a library that is not installed: it says so itself
        return None


def _refuse_loading_class(name: str, found: Any, where: str) -> None:
    if isinstance(found, type) and "_backends" in vars(found):
        return  # stands for a class whose library is not installed: transformers says which
    if not (isinstance(found, type) and issubclass(found, READERS)):
        raise UploadError(f"{where} names {name} as its processor, which is not a processor class. Do not use it.")
    own = [base for base in found.__mro__ if base.__module__.startswith("transformers.models.")]
    loads = [method for base in own for method in LOADERS if method in vars(base)]
    openers = (
        {"from_pretrained"} if issubclass(found, PreTrainedTokenizerBase) else OPENERS
    )  # tokenizers open their own vocabulary
    loads += [f"__init__ ({word})" for base in own for word in sorted(_names_in_init(base) & openers)]
    if issubclass(found, ProcessorMixin):
        loads += [part for part in found.get_attributes() if part not in PART_NAMES]
    if loads:
        raise UploadError(
            f"The processor of {where} is a {name}, which loads a part of its own ({loads[0]}), expected one that "
            f"needs only its own files. {_give_processor()}"
        )


def _names_in_init(of_class: type) -> frozenset[str]:
    init = inspect.unwrap(vars(of_class).get("__init__", lambda self: None))
    return frozenset(getattr(getattr(init, "__code__", None), "co_names", ()))


# -- Adapters


def known_adapter(settings: Mapping[str, Any], modules: list[str], largest: int, where: str) -> dict[str, Any]:
    """The settings of an adapter, with its patterns resolved to names of modules.

    Patterns are matched by RE2, in time that grows with the names only; peft would match them by backtracking.

    Args:
        settings: As they are stored, without those that are never read.
        modules: Names of the base's modules.
        largest: The largest side of a stored weight: no number that builds weights is larger.
        where: What to call it in errors.

    Raises:
        UploadError: With the setting, and what was expected.
    """
    return {name: _known_setting(name, value, modules, largest, where) for name, value in settings.items()}


def _known_setting(name: str, value: Any, modules: list[str], largest: int, where: str) -> Any:
    if isinstance(value, bool | float) or value is None:
        return value
    if isinstance(value, int):
        if abs(value) > max(largest, LARGE if name.endswith(("seed", "key")) or "step" in name else 1_024):
            raise UploadError(
                f"{where} has {name}={value}, but no weight stored for it has a dimension above {largest}. Do not use "
                "it."
            )
        return value
    if isinstance(value, list | tuple):
        return [_known_setting(f"one of {name}", one, modules, largest, where) for one in value]
    if name in ("target_modules", "exclude_modules", "feedforward_modules") and isinstance(value, str):
        return value if value == "all-linear" else _matching(value, modules, name, where)
    if isinstance(value, dict):
        if name.endswith("_pattern"):
            value = _resolved(value, modules, name, where)
        return {key: _known_setting(f"{name} {key}", one, modules, largest, where) for key, one in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[\w.-]{0,200}", value):
        return value
    raise UploadError(f"{where} has {name}={value!r:.80}, expected numbers and names of modules. Do not use it.")


def _resolved(patterns: Mapping[str, Any], modules: list[str], name: str, where: str) -> dict[str, Any]:
    """One entry for each module that a pattern names; the first that does counts, as in peft."""
    if all(re.fullmatch(r"[\w.-]{0,200}", str(key)) for key in patterns):
        return dict(patterns)
    found: dict[str, Any] = {}
    for key, value in patterns.items():
        for module in _matching(rf"(.*\.)?({key})", modules, name, where):
            found.setdefault(module, value)
    return found


def _matching(pattern: str, modules: list[str], name: str, where: str) -> list[str]:
    try:
        if len(pattern) > 10_000:
            raise ValueError("it is too long")
        is_match = pc.match_substring_regex(pa.array(modules, pa.string()), f"^(?:{pattern})$").to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise UploadError(
            f"{where} has {name}={pattern!r:.80}, expected names of modules or a pattern without look-around and "
            f"back-references: {error}. Do not use it."
        ) from error
    return [module for module, fits in zip(modules, is_match, strict=True) if fits]
