"""Tiny configurations of any model type: every size, depth and vocabulary made small by the name of its field.

Names are much the same over six hundred types, so a short list of rules does for nearly all of them; `OVERRIDES` holds
what rules cannot know.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig


VOCABULARY = 320  # ids above it are moved below it; the words of the texts lie far below
PAD, BOS, EOS = 0, 2, 3  # as the tokenizer of `samples.py` has them


@dataclass(frozen=True)
class Scale:
    """How small: width of hidden states, heads, layers, side of an image."""

    width: int = 64
    heads: int = 4
    layers: int = 2
    image: int = 32
    patch: int = 8
    widths: bool = True  # whether widths change at all


# One after the other until a model builds and runs: some types relate their layers to one another, or want more room.
SCALES = (
    Scale(),
    Scale(layers=4),
    Scale(width=128, layers=4, image=64, patch=16),
    Scale(layers=4, image=64, patch=16, widths=False),
)

Rule = tuple[str, Callable[[Any, Scale], Any]]

# The first whose pattern matches a field's name decides; only whole numbers and lists of them are changed.
RULES: list[Rule] = [
    (r".*input_dim", lambda v, s: v),
    (r"num_queries", lambda v, s: min(v, 5)),  # no more than places in a small image
    (r".*(kernel|stride|dilation|conv_size|ratio|rate|factor|multiplier|std|eps)s?(_size)?$", lambda v, s: v),
    (r"(.*_)?pad_token_id|.*pad_index", lambda v, s: PAD),
    (r"(.*_)?(bos|decoder_start)_token_id|bos_index", lambda v, s: BOS),
    (r"(.*_)?eos_token_id|eos_index|sep_token_id", lambda v, s: EOS),
    (
        r".*(vocab_size|vocab_sizes)(_per_layer_input)?|num_embeddings|text_vocab_size",
        lambda v, s: _at_most(v, VOCABULARY),
    ),
    (r".*(max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length)", lambda v, s: _at_most(v, 128)),
    (r".*max_source_positions", lambda v, s: _at_most(v, 100)),  # two seconds for Whisper
    (
        r".*(num_experts_per_tok|num_experts_per_token|moe_topk|moe_top_k|moe_k|router_top_k|top_k_experts)",
        lambda v, s: min(v, 2),
    ),
    (r".*(n_shared_experts|num_shared_experts|shared_expert_count)", lambda v, s: min(v, 1)),
    (r".*(experts|n_routed_experts|num_local_experts|moe_num_experts)$", lambda v, s: _at_most(v, 4)),
    (r"(n_group|topk_group|num_expert_group)", lambda v, s: 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", lambda v, s: min(v, 1)),
    (r"moe_layer_end_index", lambda v, s: s.layers - 1),
    (
        r".*(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups|multi_query_group_num)",
        lambda v, s: _at_most(v, 2),
    ),
    (r".*(attention_heads|n_heads?|num_heads|_heads|attn_heads)(_per_layer|_per_stage)?$", lambda v, s: _heads(v, s)),
    (r"mamba_d_head|mamba_head_dim", lambda v, s: 2 * s.width // s.heads),
    (r".*(qk_rope_head_dim|rotary_dim)", lambda v, s: min(v, 8)),
    (r".*(head_dim|d_kv|kv_channels|dim_head|d_head|head_size)$", lambda v, s: s.width // s.heads),
    (r".*lora_rank", lambda v, s: min(v, 16)),
    (
        r"(depths?|num_block_repeats|stage_num_blocks|blocks_per_stage|block_sizes|n_attn_blocks|encoder_depths)$",
        lambda v, s: _depths(v, s),
    ),
    (
        r".*(num_hidden_layers|n_layers?|num_layers|_layers|^layers|num_blocks|resampler_depth|n_blocks)$",
        lambda v, s: _layers(v, s),
    ),
    (r".*(image_size|img_size|resolution|pretrain_image_size|crop_size)$", lambda v, s: _filled(v, s.image)),
    (r"patch_size", lambda v, s: _filled(v, min(s.patch, _first(v)))),
    (
        r".*(intermediate_size|ffn_dim|d_ff|mlp_dim|ffn_size|d_inner|dff|dim_ff|ffn_hidden_size|feedforward_dim|linear_units|dim_feedforward)$",
        lambda v, s: _widths(v, s, 2),
    ),
    (
        r".*(hidden_sizes?|hidden_dims?|d_model|embed_dims?|n_embd|emb_dim|dim|projection_dim|embedding_size|embedding_dim|"
        r"output_dim|out_hidden_size|project_dim|proj_dim|hidden_channels|encoder_hidden_sizes|width|channels|embed_dim_per_stage|"
        r"embeds_hidden_size|projection_size|projector_hidden_size|pooler_output_size|output_hidden_size|hidden_size_per_layer_input|"
        r"latent_dim|feature_size|lru_width|conv_dim|tdnn_dim)$",
        lambda v, s: _widths(v, s),
    ),
    (r"upsample_groups", lambda v, s: s.width),
    (r"window_size", lambda v, s: 2 if _first(v) <= 16 else _filled(v, 16)),
    (
        r".*(window_size|sliding_window|attention_window|chunk_size|attention_chunk_size|local_attention)$",
        lambda v, s: v if _first(v) <= 16 else _filled(v, 16),
    ),
]


def _at_most(value: Any, limit: int) -> Any:
    return [min(v, limit) for v in value] if isinstance(value, list | tuple) else min(value, limit)


def _first(value: Any) -> int:
    return value[0] if isinstance(value, list | tuple) else value


def _filled(value: Any, size: int) -> Any:
    """A pair stays a pair."""
    return type(value)([size] * len(value)) if isinstance(value, list | tuple) else size


def _heads(value: Any, scale: Scale) -> Any:
    if isinstance(value, list | tuple):
        return [min(2**i, scale.heads) for i in range(len(value))]
    return min(value, scale.heads)


def _depths(value: Any, scale: Scale) -> Any:
    return [1] * len(value) if isinstance(value, list | tuple) else min(value, scale.layers)


def _layers(value: Any, scale: Scale) -> Any:
    """Numbers of layers; a list of such a name holds positions of layers."""
    if isinstance(value, list | tuple):
        return value
    return min(value, scale.layers)


def _widths(value: Any, scale: Scale, factor: int = 1) -> Any:
    """One width, or those of the stages, which keep their proportions."""
    if isinstance(value, list | tuple):
        least = max(1, min(v for v in value if v))
        return [max(1, round(v / least)) * scale.width * factor // 4 for v in value]
    return scale.width * factor if value > scale.width * factor else value


def tiny_config(model_type: str, scale: Scale = SCALES[0]) -> PreTrainedConfig:
    """The configuration of a type in miniature."""
    config = _tiny(CONFIG_MAPPING[model_type](), scale, OVERRIDES.get(model_type, {}))
    return type(config).from_dict(config.to_dict())  # as it is stored: some types compute nested fields only then


def _tiny(default: PreTrainedConfig, scale: Scale, overrides: dict[str, Any]) -> PreTrainedConfig:
    """The like of `default`, which may be nested in another configuration that set some of its fields."""
    config_class = type(default)
    fresh = config_class()
    settings: dict[str, Any] = {}
    for name, value in default.__dict__.items():
        if isinstance(value, PreTrainedConfig) and name in _names(config_class):
            own = OVERRIDES.get(value.model_type, {}) | overrides.get(name, {})
            settings[name] = _tiny(value, scale, own)
    for field in _own_fields(config_class):
        value = default.__dict__.get(field.name)
        if field.default is not None and field.name not in settings:  # those that are None are computed from others
            changed = _changed(field.name, value, scale, default)
            if changed != value or value != fresh.__dict__.get(field.name):
                settings[field.name] = changed
    _keep_one_head_for_each(settings, default)
    stages = default.__dict__.get("_out_features") or []
    if len(stages) > 1:  # a backbone that gives several feature maps
        layers = len(default.stage_names) - 1
        few = isinstance(settings.get("num_hidden_layers"), int) and layers > 4
        ends = range(scale.layers - min(len(stages), scale.layers) + 1, scale.layers + 1)
        settings["out_features"] = [f"stage{i}" for i in ends] if few else list(stages)
    nested = {name for name, value in settings.items() if isinstance(value, PreTrainedConfig)}
    return config_class(**settings | {name: value for name, value in overrides.items() if name not in nested})


def _keep_one_head_for_each(settings: dict[str, Any], default: PreTrainedConfig) -> None:
    """As many heads for keys and values as for queries where it was so: latent attention relies on it."""
    own = default.__dict__
    if own.get("num_key_value_heads") == own.get("num_attention_heads") and "num_attention_heads" in settings:
        settings["num_key_value_heads"] = settings["num_attention_heads"]


def _depth_of(default: PreTrainedConfig) -> int:
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth")
    return next((v for v in map(default.__dict__.get, names) if isinstance(v, int)), 0)


def _names(config_class: type[PreTrainedConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def _own_fields(config_class: type[PreTrainedConfig]) -> Iterator[Any]:
    common = _names(PreTrainedConfig)
    return (f for f in dataclasses.fields(config_class) if f.name not in common or "token_id" in f.name)


# Rules that scale widths, which `Scale.widths` switches off.
WIDE = re.compile(
    r".*(hidden|dim|width|channel|embed|intermediate|ffn|d_ff|d_model|d_inner|dff|heads?|d_kv|projection|groups)"
)


def _changed(name: str, value: Any, scale: Scale, default: PreTrainedConfig) -> Any:
    layers = _depth_of(default)
    if name == "initializer_range" and isinstance(value, float):
        return max(value, 0.02)  # BLIP's 1e-10 is made for pretrained weights
    if isinstance(value, dict):
        return _sections(value, scale) if scale.widths else value
    if isinstance(value, list | tuple) and layers > scale.layers and len(value) == layers:
        value = list(value[: scale.layers])
    if isinstance(value, bool) or not _is_numbers(value):
        return value
    if _names_positions(name, value, layers):
        return _positions(value, scale.layers, layers)
    common = re.fullmatch(r"(.*_)?(pad|bos|eos|sep|decoder_start)_token_id", name)
    if re.search(r"token_(id|index)s?$|_id$", name) and not common:
        return _special(value, name)
    for pattern, rule in RULES:
        if re.fullmatch(pattern, name):
            changes_width = WIDE.match(name) and not re.search(r"layers|vocab|experts|num_embeddings", name)
            return rule(value, scale) if scale.widths or not changes_width else value
    return value


def _sections(value: dict[str, Any], scale: Scale) -> dict[str, Any]:
    """Rotary embeddings of time, height and width share half a head."""
    if "mrope_section" not in value:
        return value
    half = scale.width // scale.heads // 2
    return value | {"mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]}


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    return isinstance(value, int)


def _names_positions(name: str, value: Any, layers: int) -> bool:
    """Whether a list names layers: which attend globally, whose output is taken, ..."""
    of_layers = re.search(
        r"(index(es)?|indices|_idxs?|layer_ids|extract_layers|hook_ids|_layers|layer_indexes)$", name
    )
    return isinstance(value, list | tuple) and bool(of_layers) and layers > 0 and name != "encode_proj_layers"


def _positions(value: Any, new: int, old: int) -> list[int]:
    return list(dict.fromkeys(v if v < 0 else min(v * new // old, new - 1) for v in value))


def _special(value: Any, name: str) -> Any:
    """An id below the vocabulary that no word has; another one for another name."""
    if isinstance(value, list | tuple):
        return [_special(v, f"{name}{i}") for i, v in enumerate(value)]
    return value if value < VOCABULARY else 200 + sum(map(ord, name)) % (VOCABULARY - 200)


MROPE = (
    *("glm4v_text", "glm_image_text", "hunyuan_vl_text", "qwen2_5_omni_text", "qwen2_5_vl_text"),
    *("qwen2_vl_text", "glm_ocr_text", "paddleocr_vl_text"),
)
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
IMAGE_TOKEN = {"<image>": 210, "<|image token|>": 210, "IMGIMGA": 211}

# What the rules cannot know, by model type; a nested dictionary concerns the nested configuration of that name.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bit": {"num_groups": 4},
    "blt": {"encoder_config": {"hidden_size_global": 64}, "decoder_config": {"hidden_size_global": 64}},
    "chameleon": {"vocabulary_map": IMAGE_TOKEN},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": ROTARY | {"mrope_section": [2, 3, 3]},
            "sliding_attention": ROTARY | {"mrope_section": [2, 3, 3]},
        }
    },
    "cosmos3_edge_text": {"rope_parameters": ROTARY | {"mrope_section": [2, 3, 3]}},
    "cvt": {"depth": [1, 2, 3]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_ocr2_text": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"], "num_hidden_layers": 2},
    "depth_pro": {"patch_size": 32, "image_size": 128, "intermediate_hook_ids": [1, 0]},
    "dots1": {"num_local_experts": 4, "n_routed_experts": 4},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "emu3": {"vocabulary_map": IMAGE_TOKEN},
    "ernie4_5_vl_moe_text": {"rope_parameters": ROTARY | {"mrope_section": [3, 3, 2]}},
    "esm": {"vocab_size": 64, "pad_token_id": PAD, "mask_token_id": 1},
    "falcon_h1": {"mamba_d_ssm": 128},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "funnel": {"architectures": ["FunnelModel"]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v_moe_text": {"rope_parameters": ROTARY | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granite4_vision": {"deepstack_layer_map": [], "downsample_rate": "1/2"},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "longcat_flash": {"head_dim": 8},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "mamba2": {"head_dim": 32, "n_groups": 1},
    "efficientnet": {  # two stages of the seven: each of its blocks takes five digits off what goes through
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "expand_ratios": [1, 6],
        "num_block_repeats": [1, 1],
        "depth_coefficient": 1.0,
    },
    "ministral": {"head_dim": 16},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "nemotron_h": {"n_groups": 1, "mamba_num_heads": 4, "mamba_head_dim": 32},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "sam2_hiera_det_model": {
        "image_size": [128, 128],
        "hidden_size": 16,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 1, 2, 4],
        "blocks_per_stage": [1, 1, 1, 1],
        "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [],
    },
    "sam2_vision_model": {"backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 64},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "vit_mae": {"mask_ratio": 0.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "num_hidden_layers": 2},
} | {name: {"rope_parameters": ROTARY | {"mrope_section": [2, 3, 3]}, "head_dim": 16} for name in MROPE}
