"""Attacks of each kind on the doors of a load: what an upload names, what it asks for, what it expands to.

Each is refused by what is known, not by what is known to be bad; `tests/test_untrusted_uploads.py` tries at random.
"""

from __future__ import annotations

import itertools
import json
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from files import change
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DetrImageProcessorPil,
    JanusImageProcessorPil,
    LevitConfig,
    LongformerConfig,
    LongformerModel,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
    ViTImageProcessorPil,
)

from hf_relreps import (
    AnchorSet,
    RelativeConfig,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForSequenceClassification,
)
from hf_relreps.demos.tiny import word_tokenizer
from hf_relreps.errors import AnchorIntegrityError, ConfigurationError, RelrepsError, SampleError, UploadError
from hf_relreps.inspection import (
    MODEL_TEXTS,
    OF_VIDEOS,
    TABLES,
    declared_only,
    known_adapter,
    refuse_long_tables,
    refuse_unknown_model,
    refuse_unknown_processor,
)
from hf_relreps.parquet_pages import TEXT, _pages, _struct, columns_in, refuse_immense_pages
from hf_relreps.prompts import with_prompt
from hf_relreps.samples import batches
from hf_relreps.sentencepiece_files import VOCABULARY_FILES, growth_of_model, refuse_unknown_vocabulary
from hf_relreps.sources import Source
from hf_relreps.tokenizer_files import expansion_of, refuse_unknown_tokenizer
from hf_relreps.uploads import Stored, inspect_processor, load_processor, stored_sizes, weight_files


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def varint(number):
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


# -- models that a configuration names


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "x.safetensors"}},
        {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"pretrained": True}},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/model"},
        {"model_type": "timm_wrapper", "architecture": "local-dir:/tmp/evil"},
        {"model_type": "timm_wrapper", "architecture": "hf_hub:evil/model"},
        {"model_type": "timm_backbone", "backbone": "hf-hub:evil/model"},
        {"model_type": "detr", "backbone": "evil/model", "use_timm_backbone": False},
        {"model_type": "detr", "backbone": "resnet18"},
        {"model_type": "detr", "backbone_config": {"model_type": "timm_backbone", "backbone": "local-dir:/evil"}},
        {"model_type": "rag", "index_path": "/evil"},
        {"model_type": "layoutlmv2", "detectron2_config_args": {"MODEL.WEIGHTS": "/evil"}},
        {"model_type": "bert", "hidden_act": "/etc/passwd"},
        {"model_type": "never-heard-of"},
        {
            "model_type": "vision-text-dual-encoder",
            "vision_config": {"model_type": "timm_wrapper", "architecture": "a/b"},
        },
    ],
)
@pytest.mark.parametrize("place", ["encoder_config", "head_config"])
def test_a_configuration_names_no_other_model(fields, place):
    part = {"encoder_config": "encoder", "head_config": "decoder"}[place]
    with pytest.raises(ConfigurationError, match=r"load that model yourself and pass it"):
        RelativeConfig.from_dict(
            {"model_type": "relreps", "format_version": 2, part: {place: fields, "format_version": 2}}
        )


def test_no_text_field_of_any_architecture_takes_a_path():
    """The rule is derived from transformers' own classes, so it covers those that come with its next version."""
    tried = 0
    for kind in (
        "bert",
        "vit",
        "wav2vec2",
        "deberta-v2",
        "clip",
        "detr",
        "rag",
        "timm_wrapper",
        "oneformer",
        "whisper",
    ):
        for name, default in list(vars(CONFIG_MAPPING[kind]).items()):
            if isinstance(default, str) and not name.startswith("_") and name not in (*MODEL_TEXTS, "base_config_key"):
                content = {"model_type": kind, name: "../../evil"}
                if name in declared_only(content):
                    tried += 1
                    with pytest.raises(ConfigurationError, match=name):
                        refuse_unknown_model(content, "x")
    assert tried > 10


def test_the_configuration_of_every_architecture_is_read_as_transformers_writes_it():
    refused = {}
    for kind in (
        "bert",
        "modernbert",
        "vit",
        "swin",
        "resnet",
        "convnext",
        "wav2vec2",
        "whisper",
        "clip",
        "siglip",
        "t5",
    ):
        content = json.loads(json.dumps(CONFIG_MAPPING[kind]().to_dict(), default=str))
        try:
            refuse_unknown_model(declared_only(content), kind)
        except ConfigurationError as error:
            refused[kind] = str(error)
    assert refused == {}


@pytest.mark.slow
def test_no_type_of_transformers_is_refused_by_default_or_tiny():
    from benchmarks.supported_models.tiny_configs import tiny_config

    refused, read = {}, 0
    for kind, make in itertools.product(CONFIG_MAPPING, (lambda kind: CONFIG_MAPPING[kind](), tiny_config)):
        try:
            made = make(kind)
        except Exception:  # one that needs settings, or a library that is not installed
            continue
        if kind.startswith("relreps"):  # ours, which is read by itself
            continue
        try:
            refuse_unknown_model(json.loads(made.to_json_string(use_diff=False)), kind)
            read += 1
        except ConfigurationError as error:
            refused[kind] = str(error)
    assert refused == {} and read > 900


def test_timm_models_keep_their_plain_names():
    content = {"model_type": "timm_wrapper", "architecture": "resnet18.a1_in1k", "model_args": {"depth": 3}}
    assert refuse_unknown_model(content, "x") is None
    with pytest.raises(ConfigurationError, match="architecture='hf-hub:me/resnet18'"):  # the name alone made it pass
        refuse_unknown_model(content | {"architecture": "hf-hub:me/resnet18"}, "x")


def test_a_pickle_by_the_name_of_safetensors_is_no_weight(upload, tmp_path):
    mark = tmp_path / "ran"
    (upload / "decoder" / "model.safetensors").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UploadError, match=r"cannot be read as safetensors .*a renamed pickle file"):
        RelativeDecoder.from_pretrained(upload)
    assert not mark.exists()


def test_an_encoder_that_has_only_a_pickle_is_not_opened(tmp_path, make_bert, anchors, tokenizer):
    mark, folder = tmp_path / "ran", tmp_path / "base"
    make_bert(0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Evil(mark), file)
    with pytest.raises(UploadError, match=r"has no safetensors weights, and pickle files are not opened"):
        RelativeModel.from_encoder(str(folder), anchors.view("en"))
    assert not mark.exists()


# -- ordinary models by their names, of which transformers reads the files itself


@pytest.fixture
def ordinary(tmp_path, make_bert, tokenizer):
    """A folder with a sound BERT and its tokenizer."""
    make_bert(0).save_pretrained(tmp_path / "ordinary")
    tokenizer.save_pretrained(tmp_path / "ordinary")
    return tmp_path / "ordinary"


@pytest.mark.parametrize(
    "fields",
    [
        {"transformers_weights": "../elsewhere/model.safetensors"},
        {"gguf_file": "../x.gguf"},
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": {"": "evil/kernel:forward"}},
        {"_experts_implementation": "evil/kernel"},
        {"kernel_config": {"RMSNorm": "evil/kernel:RMSNorm"}},
    ],
)
def test_an_ordinary_encoder_chooses_neither_other_weights_nor_kernels(ordinary, anchors, fields):
    change(ordinary / "config.json", **fields)
    with pytest.raises(ConfigurationError, match="the field could name another model, a folder or a file"):
        RelativeModel.from_encoder(str(ordinary), anchors.view("en"))
    with pytest.raises(ConfigurationError, match="the field could name another model, a folder or a file"):
        RelativeModelForSequenceClassification.from_classifier(str(ordinary), anchors.view("en"))


def test_an_ordinary_encoder_with_plain_words_for_its_attention_is_read(ordinary, anchors):
    change(
        ordinary / "config.json",
        _attn_implementation="sdpa",
        attn_implementation="eager",
        auto_map={"AutoModel": "x.Y"},
    )
    assert RelativeModel.from_encoder(str(ordinary), anchors.view("en")).config.embedding_size == 32


def test_an_adapter_beside_an_ordinary_model_does_not_lead_to_another(ordinary, anchors):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "evil/base", "target_modules": "(a+)+b", "r": 8}
    (ordinary / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(UploadError, match=r"contains adapter_config\.json, .*load it yourself and pass it"):
        RelativeModel.from_encoder(str(ordinary), anchors.view("en"))
    with pytest.raises(UploadError, match=r"contains adapter_config\.json, .*load it yourself and pass it"):
        RelativeModelForSequenceClassification.from_classifier(str(ordinary), anchors.view("en"))


def test_an_ordinary_model_is_built_of_no_more_than_its_files_justify(ordinary, anchors):
    """Weights that are missing would be drawn at random: gigabytes for a number in a file."""
    change(ordinary / "config.json", num_hidden_layers=900, intermediate_size=100_000)
    with pytest.raises(ConfigurationError, match="its weight files contain [0-9]+ numbers"):
        RelativeModel.from_encoder(str(ordinary), anchors.view("en"))
    with pytest.raises(ConfigurationError, match="its weight files contain [0-9]+ numbers"):
        RelativeModelForSequenceClassification.from_classifier(str(ordinary), anchors.view("en"))


@pytest.mark.parametrize("fields", [{"image_size": 3200}, {"patch_size": 1}, {"image_size": [224, 224]}])
def test_a_levit_of_many_patches_is_refused_before_it_walks_through_their_pairs(fields):
    content = LevitConfig().to_dict()
    refuse_unknown_model(content, "config.json")
    with pytest.raises(ConfigurationError, match="make more than 32 patches in a row"):
        refuse_unknown_model(content | fields, "config.json")


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("roformer", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}),
        ("distilbert", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "sinusoidal_pos_embds": True}),
    ],
)
def test_a_table_of_positions_that_is_computed_is_no_longer_than_the_weights_justify(
    tmp_path, anchors, tokenizer, kind, sizes
):
    """Each number takes microseconds, before the shapes of weights are compared."""
    config = CONFIG_MAPPING[kind](vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    encoder = RelativeModel.from_encoder(AutoModel.from_config(config), anchors.view("en"), tokenizer)
    encoder.save_pretrained(tmp_path / "upload")
    assert RelativeModel.from_pretrained(tmp_path / "upload").config.embedding_size == 16
    encoder.backbone.save_pretrained(tmp_path / "ordinary")
    tokenizer.save_pretrained(tmp_path / "ordinary")
    change(tmp_path / "ordinary" / "config.json", max_position_embeddings=90_000)
    for file in (tmp_path / "upload").rglob("config.json"):
        content = json.loads(file.read_text())
        content.get("encoder", content)["encoder_config"]["max_position_embeddings"] = 90_000
        file.write_text(json.dumps(content))
    says = f"a {kind} model with 90000 positions of 16 numbers, .* justify a table of 26[0-9]{{4}}"
    with pytest.raises(ConfigurationError, match=says):
        RelativeModel.from_pretrained(tmp_path / "upload")
    with pytest.raises(ConfigurationError, match=says):
        RelativeModel.from_encoder(str(tmp_path / "ordinary"), anchors.view("en"))


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"model_type": "marian"}, 70_000_000),
        ({"model_type": "marian", "max_position_embeddings": 512, "d_model": 512}, 10_000),
        ({"model_type": "xlm", "sinusoidal_embeddings": True}, 400_000_000),
        ({"model_type": "pegasus", "max_position_embeddings": 1_024, "d_model": 1_024}, 500_000_000),
        ({"model_type": "videomae", "hidden_size": 1_280}, 600_000_000),
        ({"model_type": "distilbert", "max_position_embeddings": 90_000}, 10_000),  # learned: its files hold the table
        ({"model_type": "llama", "max_position_embeddings": 1_048_576}, 10_000),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_tables_of_positions_that_models_have_are_computed(fields, stored):
    assert refuse_long_tables(fields, stored, "x") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "videomae", "num_frames": 90_000},
        {"model_type": "videomae", "image_size": [224, 90_000], "patch_size": [16, 1]},
        {"model_type": "distilbert", "sinusoidal_pos_embds": True, "hidden_size": 90_000},  # by its other name
        {"model_type": "informer", "context_length": 9_000, "prediction_length": 9_000},
        {"model_type": "bert", "encoder_config": {"model_type": "marian", "max_position_embeddings": 9_000}},
    ],
    ids=lambda fields: fields["model_type"],
)
def test_tables_of_positions_are_counted_by_any_of_their_sides(fields):
    with pytest.raises(ConfigurationError, match="computed one by one"):
        refuse_long_tables(fields, 10_000, "x")


def test_every_type_that_computes_its_positions_in_python_is_known():
    models = Path(transformers.__file__).parent / "models"
    found = {file.parent.name for file in models.rglob("modeling_*.py") if "np.power(10000" in file.read_text("utf-8")}
    assert found == {*TABLES, OF_VIDEOS}


def test_a_model_of_thousands_of_tiny_layers_is_refused_before_they_are_all_built(ordinary, anchors, tmp_path):
    """Time goes with modules, each of which has tensors in the files of honest uploads."""
    encoder = RelativeModel.from_encoder(str(ordinary), anchors.view("en"))
    encoder.save_pretrained(tmp_path / "upload")
    change(ordinary / "config.json", num_hidden_layers=1_000, intermediate_size=1)
    for file in (tmp_path / "upload").rglob("config.json"):
        content = json.loads(file.read_text())
        content.get("encoder", content)["encoder_config"] |= {"num_hidden_layers": 1_000, "intermediate_size": 1}
        file.write_text(json.dumps(content))
    says = "asks for more than 2[0-9]{3} modules, but its weight files contain [0-9]+ numbers in [0-9]+ tensors"
    with pytest.raises(ConfigurationError, match=says):
        RelativeModel.from_encoder(str(ordinary), anchors.view("en"))
    with pytest.raises(ConfigurationError, match=says):
        RelativeModel.from_pretrained(tmp_path / "upload")


def test_an_encoder_decoder_with_many_tokens_is_built_though_its_table_is_stored_once(
    tmp_path, monkeypatch, anchors, tokenizer
):
    """Three tables of tokens until they are tied, and a decoder that is built and not stored."""
    monkeypatch.setattr("hf_relreps.backbones.BEYOND_FILES", 0)
    config = T5Config(vocab_size=3_000, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    encoder = RelativeModel.from_encoder(str(tmp_path / "t5"), anchors.view("en"))
    encoder.save_pretrained(tmp_path / "upload")
    assert RelativeModel.from_pretrained(tmp_path / "upload").config.embedding_size == 16


def test_a_small_part_of_a_large_model_is_built_and_a_part_larger_than_its_file_is_not(
    tmp_path, monkeypatch, anchors, tokenizer
):
    """The whole is built on the meta device, where it costs nothing; what stays of it is counted."""
    monkeypatch.setattr("hf_relreps.backbones.BEYOND_FILES", 0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = sizes | {"hidden_size": 256, "intermediate_size": 2_000, "image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    encoder = RelativeModel.from_encoder(clip, anchors.view("en"), tokenizer)
    assert encoder.num_parameters() * 10 < clip.num_parameters()
    encoder.save_pretrained(tmp_path)
    assert RelativeModel.from_pretrained(tmp_path).config.tower == "text_model"
    file = tmp_path / "encoder" / "config.json"
    content = json.loads(file.read_text())
    content["encoder_config"]["text_config"] |= {"intermediate_size": 2_000_000}
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="its weight files contain [0-9]+ numbers"):
        RelativeModel.from_pretrained(tmp_path)


# -- processors


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (
            "processor_config.json",
            {"processor_class": "BarkProcessor", "speaker_embeddings": {"path": "/evil"}},
        ),
        ("processor_config.json", {"processor_class": "Wav2Vec2ProcessorWithLM"}),
        ("processor_config.json", {"processor_class": "AutoModel"}),
        ("processor_config.json", {"processor_class": "InstructBlipProcessor"}),
        (
            "processor_config.json",
            {"audio_tokenizer": {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "/evil"}},
        ),
        ("audio_tokenizer_config.json", {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "evil"}),
        ("preprocessor_config.json", {"image_processor_type": "OneFormerImageProcessor", "repo_path": "evil/repo"}),
        (
            "preprocessor_config.json",
            {"image_processor_type": "ViTImageProcessor", "class_info_file": "../x.json"},
        ),
        ("preprocessor_config.json", {"image_processor_type": "OneFormerImageProcessor"}),
        ("tokenizer_config.json", {"tokenizer_class": "RagTokenizer"}),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"vocab": "/etc/passwd"}),
        ("tokenizer_config.json", {"gguf_file": "../x.gguf"}),
        ("tokenizer_config.json", {"mecab_kwargs": {"mecab_option": "-r /etc/passwd"}}),
        ("tokenizer_config.json", {"sp_model_kwargs": {"model_file": "/etc/passwd"}}),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../../tokenizer.1.0.0.json"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"2000000000": {"content": "x"}}}),
        ("special_tokens_map.json", {"vocab_file": "/etc/passwd"}),
        ("special_tokens_map.json", {"merges_file": {"content": "/etc/passwd"}, "vocab_file": ["/etc/passwd"]}),
        ("preprocessor_config.json", {"n_fft": 60_000, "feature_size": 60_000}),
        ("preprocessor_config.json", {"chunk_length": 10**6, "sampling_rate": 16_000}),
        ("preprocessor_config.json", {"pad_size": 10**12}),
        ("preprocessor_config.json", {"size": {"max_height": 99_999, "max_width": 99_999}}),
        ("preprocessor_config.json", {"size": {"height": 4_000, "width": 4_000}}),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[8_000, 8_000]]}),
        ("preprocessor_config.json", {"codebook_crop_size": {"height": 30_000, "width": 30_000}}),
        ("preprocessor_config.json", {"max_num_patches": 10**7}),
        ("preprocessor_config.json", {"size_divisor": 90_000}),
        ("preprocessor_config.json", {"min_pixels": 10**8}),
        ("preprocessor_config.json", {"chunk_length": 1_800, "sampling_rate": 16_000}),
        ("preprocessor_config.json", {"num_mel_bins": 99_999}),
        ("preprocessor_config.json", {"max_length": 10**6, "num_mel_bins": 128}),
        ("preprocessor_config.json", {"hop_length": 1, "sampling_rate": 48_000, "fft_window_size": 1_024}),
        ("processor_config.json", {"image_processor": {"size_divisor": 90_000}}),
        ("video_preprocessor_config.json", {"num_frames": 10**7}),
    ],
)
def test_a_processor_names_nothing_outside_and_asks_for_no_gigabytes(upload, file, content):
    place = upload / file
    place.write_text(json.dumps((json.loads(place.read_text()) if place.is_file() else {}) | content))
    with pytest.raises(
        UploadError, match=r"load the processor yourself and pass it|is not a processor class\. Do not use it"
    ):
        load_processor(Source.of(upload))


def test_no_file_outside_is_opened_nor_saved_again_for_a_processor(upload, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    change(upload / "tokenizer_config.json", vocab_file=str(tmp_path / "secret.txt"))
    with pytest.raises(UploadError, match="vocab_file"):
        RelativeModel.from_pretrained(upload).processor  # noqa: B018


def test_what_honest_processors_save_is_read():
    tokenizer = {
        **{"tokenizer_class": "BertTokenizer", "model_max_length": 1e30, "do_lower_case": True, "pad_token": "[PAD]"},
        **{"name_or_path": "/home/me/bert", "tokenizer_file": "/home/me/tokenizer.json", "padding_side": "right"},
        **{"auto_map": {"x": ["y", None]}, "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}}},
        **{"chat_template": "{{ x }}", "model_input_names": ["input_ids", "attention_mask"]},
    }
    images = {
        **{"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2},
        **{"image_mean": [0.5], "do_resize": True, "data_format": "channels_first"},
    }
    honest = {"tokenizer_config.json": tokenizer, "preprocessor_config.json": images}
    assert refuse_unknown_processor(honest, "x") is None
    with pytest.raises(UploadError, match="tokenizer_config.json of x has vocab_file='/etc/passwd'"):
        refuse_unknown_processor(honest | {"tokenizer_config.json": tokenizer | {"vocab_file": "/etc/passwd"}}, "x")


# As they lie on the Hub, shortened: each was written by a version of transformers that many uploads were made with.
HONEST = {
    "RT-DETR": (
        "preprocessor_config.json",
        {
            **{"_valid_processor_keys": ["images", "annotations", "masks_path", "do_resize", "format", "data_format"]},
            **{"format": "coco_detection", "image_processor_type": "RTDetrImageProcessor", "pad_size": None},
            **{"image_mean": [0.485, 0.456, 0.406], "resample": 2, "size": {"height": 360, "width": 640}},
        },
    ),
    "SigLIP in PaliGemma": (
        "preprocessor_config.json",
        {
            **{"_valid_processor_keys": ["images", "size", "do_convert_rgb"], "processor_class": "PaliGemmaProcessor"},
            **{"image_processor_type": "SiglipImageProcessor", "image_seq_length": 1024},
        },
    ),
    "Qwen2.5-VL": (
        "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "merge_size": 2,
            "image_processor_type": "Qwen2_5_VLImageProcessor",
        },
    ),
    "SpeechT5": (
        "preprocessor_config.json",
        {
            "win_function": "hann_window",
            "feature_extractor_type": "SpeechT5FeatureExtractor",
            "n_fft": 1024,
            "fmax": 7600,
        },
    ),
    "CLAP": ("preprocessor_config.json", {"padding": "repeatpad", "truncation": "fusion", "top_db": None}),
    "SeamlessM4T": ("preprocessor_config.json", {"language_code": ["__afr__", "__amh__"], "stride": 2}),
    "M2M100": (
        "tokenizer_config.json",
        {
            **{"language_codes": "m2m100", "num_madeup_words": 8, "sp_model_kwargs": {}, "tgt_lang": "th"},
            **{"tokenizer_class": "M2M100Tokenizer", "additional_special_tokens": ["__af__", "__am__"]},
        },
    ),
    "NLLB": (
        "tokenizer_config.json",
        {
            **{"src_lang": "zho_Hant", "tgt_lang": "eng_Latn", "tokenizer_class": "NllbTokenizer"},
            **{"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}},
        },
    ),
    "Wav2Vec2": (
        "tokenizer_config.json",
        {
            **{
                "word_delimiter_token": "|",
                "replace_word_delimiter_char": " ",
                "name_or_path": "./wav2vec2-lithuanian",
            },
            **{"tokenizer_class": "Wav2Vec2CTCTokenizer", "special_tokens_map_file": None},
        },
    ),
    "BERT for Japanese": (
        "tokenizer_config.json",
        {
            **{"word_tokenizer_type": "mecab", "subword_tokenizer_type": "character", "never_split": None},
            **{"mecab_kwargs": {"mecab_dic": "unidic_lite", "mecab_option": None}},
        },
    ),
    "DeepSeek": (
        "tokenizer_config.json",
        {"tokenizer_class": "LlamaTokenizerFast", "chat_template": "{% if x %}../y{% endif %}"},
    ),
    "Marian": ("tokenizer_config.json", {"source_lang": "en", "target_lang": "de", "separate_vocabs": False}),
}


@pytest.mark.parametrize("name", HONEST)
def test_processors_as_they_lie_on_the_hub_are_read(name):
    file, content = HONEST[name]
    assert refuse_unknown_processor({file: content}, name) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "deberta-v2", "pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm", "position_buckets": 256},
        {
            "model_type": "qwen2",
            "sliding_window": 131_072,
            "max_position_embeddings": 131_072,
            "max_window_layers": 28,
        },
        {"model_type": "llama", "rope_theta": 3_580_165_449.0, "max_position_embeddings": 1_048_576},
        {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "pad_token_id": 128_009},
        {
            "model_type": "t5",
            "d_ff": 65_536,
            "feed_forward_proj": "gated-gelu",
            "task_specific_params": {"x": {"prefix": "a b"}},
        },
        {"model_type": "mamba2", "time_step_limit": [0.0, {"__float__": "Infinity"}]},
        {"model_type": "layoutlmv2", "detectron2_config_args": {"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}},
        {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"], "vocab_size": 262_144},
        {"model_type": "wav2vec2", "feat_extract_norm": "layer", "ctc_loss_reduction": "mean", "conv_dim": [512] * 7},
        {
            "model_type": "bert",
            "position_embedding_type": "absolute",
            "_name_or_path": "/home/me/bert",
            "id2label": {"0": "a/b"},
        },
    ],
    ids=lambda fields: fields["model_type"],
)
def test_configurations_as_they_lie_on_the_hub_are_read(fields):
    assert refuse_unknown_model(fields, "x") is None


# -- tokenizers in Rust


def plain(**sections):
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}
    return {"version": "1.0", "added_tokens": [], "model": model} | sections


def doubling(times):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [step] * times}


def test_added_tokens_of_all_files_count_and_those_that_are_not_normalized_by_their_own_length():
    before = {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000}}
    many = {str(i): {"content": f"<unused{i}>", "normalized": False} for i in range(6_400)}  # as Gemma has
    assert refuse_unknown_tokenizer(plain(**before), "x", [{"added_tokens_decoder": many}]) is None
    normalized = {name: token | {"normalized": True} for name, token in many.items()}
    for beside in ({"added_tokens_decoder": normalized}, {token["content"]: 7 for token in many.values()}):
        with pytest.raises(UploadError, match="characters of its 6400 added tokens; the limit is 4194304"):
            refuse_unknown_tokenizer(plain(**before), "x", [beside])


CAPITALS, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
OF_GPT_4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}*{SMALL}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}+{SMALL}*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"normalizer": doubling(20)}, "times longer"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10_000}}, "times longer"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "bb"}}, "matches the empty text"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 60_000}}, "puts 60000 characters before each text"),
        # Its first bytes are what tokenizers allocates.
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}, "trie has 4294967295 bytes"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA="}}, "and has 2 bytes itself"),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [
                        {"type": "Prepend", "prepend": "x" * 900},
                        *[{"type": "Prepend", "prepend": "y" * 900}] * 60,
                    ],
                }
            },
            "puts 50400 characters before each text; the limit is 50000",
        ),
        ({"normalizer": {"type": "Evil"}}, "of type 'Evil'"),
        ({"pre_tokenizer": split(r"(a+)+$")}, "more than linear time"),
        ({"pre_tokenizer": split(r"(x|x)*y")}, "more than linear time"),
        ({"pre_tokenizer": split(r"\s*\s*\s*x")}, "more than linear time"),
        ({"pre_tokenizer": split(r"(.+)\1")}, "more than linear time"),
        # Linear only before the branch that matches the rest of such a run.
        ({"pre_tokenizer": split(r"\s*[\r\n]+")}, "more than linear time"),
        ({"pre_tokenizer": split(r"\s*[\r\n]+|x|\s+")}, "more than linear time"),
        ({"pre_tokenizer": split(f"{CAPITALS}*{SMALL}+")}, "more than linear time"),
        ({"pre_tokenizer": split(f"{CAPITALS}*{SMALL}+|A|{CAPITALS}+{SMALL}*")}, "more than linear time"),
        ({"pre_tokenizer": split(f"{CAPITALS}*{SMALL}+|x{CAPITALS}+{SMALL}*")}, "more than linear time"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(" ")] * 100}}, "more than 64"),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 50,
                }
            },
            "repeats the text",
        ),
        ({"padding": {"strategy": {"Fixed": 10**10}}}, "the limit is 2000000"),
        ({"evil": 1}, "has a field 'evil'"),
        ({"model": {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 300}}, "grows with its square"),
        ({"model": 7}, "has no model"),
        # A text of it takes its length times that of the piece, and the tree of a piece of 10^6 ends the process.
        (
            {"model": {"type": "Unigram", "vocab": [["a" * 200, 0.0]], "unk_id": 0}},
            "has 200 characters; the limit is 128",
        ),
        ({"model": {"type": "BPE", "vocab": {"a" * 9_000: 0}, "merges": []}}, "split its tokens in all ways makes 8"),
        (
            {"added_tokens": [{"content": "a" * 5_000_000, "id": 2}]},
            "makes 5[0-9]{6} characters of its [0-9]+ added tokens",
        ),
        (
            {
                "normalizer": {"type": "Prepend", "prepend": "x" * 50_000},
                "added_tokens": [{"content": str(i), "id": i, "normalized": True} for i in range(100)],
            },
            "makes 5[0-9]{6} characters of its [0-9]+ added tokens",
        ),
    ],
)
def test_a_tokenizer_that_costs_more_than_its_text_is_refused(upload, sections, reason):
    (upload / "tokenizer.json").write_text(json.dumps(plain(**sections)))
    with pytest.raises(UploadError, match=reason):
        load_processor(Source.of(upload))


@pytest.mark.parametrize(
    "pattern",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        " {2,}",
        OF_GPT_4O,
    ],
)
def test_patterns_of_tokenizers_in_wide_use_are_read(upload, pattern):
    (upload / "tokenizer.json").write_text(json.dumps(plain(pre_tokenizer=split(pattern))))
    backend = load_processor(Source.of(upload)).backend_tokenizer
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("it's  12 words")]
    assert "".join(pieces) == "it's  12 words" and len(pieces) > 1


@pytest.mark.parametrize(
    "part",
    [f"{CAPITALS}+{SMALL}*|", "(?i:'s|'t)?|", r"[^\r\n\p{L}\p{N}]?", r"\s*[\r\n]+|\s+|", "a{1,}b*|", "||", "a?"],
)
def test_a_pattern_is_checked_in_a_moment_in_how_many_ways_it_could_be_read(part):
    """With a part that fits nothing behind, all ways are tried: 2 to the power of 30 of some."""
    start = time.process_time()
    with pytest.raises(UploadError, match="more than linear time"):
        refuse_unknown_tokenizer(plain(pre_tokenizer=split(part * (1_990 // len(part)) + "(")), "x")
    assert time.process_time() - start < 60  # it would go on for ever


@pytest.mark.parametrize("run", ["A", " ", "\u3000", "ʰ", "A ", "\n"])
def test_patterns_that_are_read_take_linear_time(run):
    """Ten minutes for each of these where the branch behind a run is missing."""
    read = pre_tokenizers.Split(Regex(OF_GPT_4O), "isolated")
    start = time.process_time()
    for end in ("", "x\n", "1"):
        read.pre_tokenize_str((run * 100_000)[:100_000] + end)
    assert time.process_time() - start < 60


def test_a_panic_of_rust_is_an_error_like_any_other():
    class PanicException(BaseException):
        pass

    class Reader(PreTrainedTokenizerFast):
        def __call__(self, *args, **kwargs):
            raise PanicException("in Rust")

    from tokenizers import Tokenizer, models

    reader = Reader(tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="[PAD]")), pad_token="[PAD]")
    with pytest.raises(SampleError, match="PanicException: in Rust"):
        list(batches(["x"], reader, 1))


# -- vocabularies that transformers converts


def field(number, content):
    """A field of a protocol buffer: bytes, or a number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text):
    return field(1, field(1, text.encode()) + b"\x15" + bytes(4) + field(3, 1))


def charsmap(text):
    """A normalizer with an empty trie, and a text that it could lead to."""
    return field(3, field(1, b"nmt_nfkc") + field(2, bytes(4) + text.encode() + b"\0"))


SOUND = piece("<unk>") + piece("▁a") + field(2, field(3, 1)) + charsmap("x" * 18)


@pytest.mark.parametrize("name", [*VOCABULARY_FILES])
def test_vocabularies_are_looked_at_before_they_are_converted(upload, monkeypatch, name):
    """Where a library that reads them is installed: what is sound is passed on to it."""
    monkeypatch.setattr("hf_relreps.uploads.is_sentencepiece_available", lambda: True)
    (upload / name).write_bytes(SOUND)
    inspect_processor(Source.of(upload))
    (upload / name).write_bytes(SOUND + charsmap("x" * 500))
    with pytest.raises(UploadError, match=f"{name} of .* make a text 500 times longer; the limit is 400"):
        load_processor(Source.of(upload))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (SOUND + field(3, field(2, b"\xff" * 5)), "its trie has 4294967295 bytes, and has 5 bytes itself"),
        (SOUND + field(5, field(2, b"\xff" * 5)), "its trie has 4294967295 bytes"),
        (SOUND + piece("a" * 129), "a piece of its vocabulary has 129 characters; the limit is 128"),
        (field(1, field(1, b"a") + field(1, b"b" * 200)), "has 200 characters"),  # the last counts
        (SOUND + field(2, field(45, b"u" * 999)), "has 999 characters"),
        (SOUND + field(9, b"x"), "a field with the number 9"),
        (SOUND + field(3, 7), "a field holds a number, expected a message"),
        (SOUND + field(1, field(1, 7)), "a text is a number"),
        (SOUND[:-2], "it is cut off"),
        (SOUND + b"\x0b", "a field of type 3"),
        (b"\xff" * 20, "more than ten bytes"),
        (field(2, field(3, 1)), "it has 0 pieces"),
        (b"YQ== 0\n" + b"YWFh" * 3_000 + b" 1\n", "to split its tokens in all ways makes 144"),
    ],
)
def test_a_vocabulary_that_costs_more_than_its_text_is_refused(content, reason):
    with pytest.raises(UploadError, match=f"x: .*{reason}.*load the tokenizer yourself"):
        refuse_unknown_vocabulary(content, "x")


def test_sound_vocabularies_are_read_in_any_order_of_their_fields():
    rest = field(2, field(3, 1)) + charsmap("x" * 18)
    for content in (SOUND, rest + piece("a"), piece("a") + rest + piece("b"), b"YQ== 0\nYWI= 1\n", piece("é" * 60)):
        assert refuse_unknown_vocabulary(content, "x") is None
    assert growth_of_model(SOUND) == 18


def test_a_vocabulary_of_mistral_has_no_long_tokens(upload):
    (upload / "tokenizer.json").unlink()
    (upload / "tekken.json").write_text(json.dumps({"vocab": [{"rank": 0, "token_bytes": "YWFh" * 3_000}]}))
    with pytest.raises(UploadError, match=r"tekken\.json of .* split its tokens in all ways makes 144000000"):
        load_processor(Source.of(upload))


def test_the_text_of_a_slow_tokenizer_is_shorter_where_its_model_makes_it_longer():
    class Model:  # of the sentencepiece library, as far as it tells what it was made of
        def serialized_model_proto(self):
            return piece("a") + charsmap("x" * 180)

    class Slow(PreTrainedTokenizer):
        sp_model = Model()
        vocab_size = 0

        def get_vocab(self):
            return {}

    assert expansion_of(Slow()).growth == 10


def test_all_names_of_vocabularies_in_transformers_are_known():
    found = set()
    for file in (Path(transformers.__file__).parent / "models").rglob("tokenization_*.py"):
        found |= set(re.findall(r'"([\w.]+\.(?:model|spm))"', file.read_text("utf-8")))
    assert found <= {*VOCABULARY_FILES}


# -- adapters

MODULES = [
    name
    for name, _ in BertModel(BertConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=1)).named_modules()
]


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 20_000_000},
        {"rank_pattern": {"query": 20_000_000}},
        {"target_modules": r"(?=x)(.*)\1"},
        {"target_modules": ["../evil/path"]},
        {"parent_library": "os; evil"},
        {"adapters": {"x": "evil/repo"}},
    ],
)
def test_an_adapter_asks_for_no_more_than_its_weights_and_names_modules_only(settings):
    with pytest.raises(UploadError, match="Adapter 'x' has"):
        known_adapter(settings, MODULES, 32, "Adapter 'x'")


def test_a_pattern_that_backtracks_is_matched_in_a_moment():
    start = time.process_time()
    found = known_adapter({"target_modules": r"(.*.*.*.*.*.*)*\.(query|value)x?"}, MODULES * 100, 32, "x")
    assert time.process_time() - start < 120  # it would go on for ever
    assert set(found["target_modules"]) == {name for name in MODULES if name.endswith((".query", ".value"))}


def test_patterns_of_ranks_are_resolved_to_modules_by_the_first_that_fits():
    found = known_adapter({"rank_pattern": {"layer\\.0\\..*query": 4, ".*query": 8}}, MODULES, 32, "x")
    assert found["rank_pattern"] == {
        "encoder.layer.0.attention.self.query": 4,
        "encoder.layer.1.attention.self.query": 8,
    }


# -- numbers that allocate


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", 10**6), ("num_attention_heads", 10**7), ("type_vocab_size", 10**12), ("intermediate_size", 10**9),
        ("max_position_embeddings", 10**8 + 1), ("anything_at_all", 10**9),
    ],
)  # fmt: skip
def test_numbers_that_no_model_has_are_refused(field, value):
    with pytest.raises(ConfigurationError, match=f"{field}=.* is larger than in any known model"):
        refuse_unknown_model({"model_type": "bert", field: value}, "x")


@pytest.mark.parametrize("field", ["intermediate_size", "vocab_size", "max_position_embeddings"])
def test_a_model_is_built_of_no_more_than_its_files_justify(upload, field):
    for file in upload.rglob("config.json"):
        content = json.loads(file.read_text())
        for part in [content["encoder"]] if "encoder" in content else [content]:
            if isinstance(part.get("encoder_config"), dict):
                part["encoder_config"][field] = 99_000_000
        file.write_text(json.dumps(content))
    with pytest.raises(RelrepsError, match="its weight files contain [0-9]+ numbers"):
        RelativeModel.from_pretrained(upload)


def test_the_headers_say_how_much_files_hold(upload):
    stored = stored_sizes(weight_files(Source.of(upload / "decoder")))
    weights = RelativeDecoder.from_pretrained(upload).state_dict()
    # what a part says beside its weights is bytes, each of which may be a packed number
    says = sum(tensor.numel() for tensor in weights.values() if tensor.dtype == torch.uint8)
    assert stored.numbers == sum(tensor.numel() for tensor in weights.values()) + 7 * says
    assert stored.tensors == len(weights)
    assert stored.largest >= 256


# -- anchors

MEMORY = """
import re, sys
from pathlib import Path
from hf_relreps import AnchorSet
from hf_relreps.errors import AnchorIntegrityError
def peak():  # not ru_maxrss, which begins with what the parent process has
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
try:
    AnchorSet.from_pretrained(sys.argv[1])
except AnchorIntegrityError as error:
    print(error)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes as Linux does")
def test_one_long_text_for_many_rows_is_refused_before_it_fills_the_memory(tmp_path):
    rows = 200
    AnchorSet([str(i) for i in range(rows)], {"en": ["x"] * rows}).save_pretrained(tmp_path)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 30_000_000]))
    table = pa.table({"id": [str(i) for i in range(rows)], "en": texts}).replace_schema_metadata(None)
    file = tmp_path / "anchors" / "anchors.parquet"
    pq.write_table(table, file, compression="zstd", use_dictionary=["en"], dictionary_pagesize_limit=1 << 30)
    assert file.stat().st_size < 20_000
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    error, megabytes = done.stdout.strip().rsplit("\n", 1)
    assert "would unpack to" in error
    assert int(megabytes) < 512


@pytest.mark.parametrize("kind", ["rows", "words of one sentence"])
def test_millions_of_short_texts_in_a_kilobyte_are_refused_before_python_has_an_object_for_each(tmp_path, kind):
    n = 5_000_000
    AnchorSet(["a"], {"en": ["x"]}).save_pretrained(tmp_path)
    texts = pa.repeat(pa.scalar("xy"), n)
    columns = {"id": texts, "en": texts}
    if kind != "rows":
        sentence = pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), texts)
        columns = {"id": ["a"], "en": pa.StructArray.from_arrays([sentence, pa.array([0])], ["words", "position"])}
    pq.write_table(pa.table(columns), tmp_path / "anchors" / "anchors.parquet", compression="zstd")
    change(tmp_path / "anchors" / "anchor_set.json", num_anchors=n if kind == "rows" else 1)
    with pytest.raises(AnchorIntegrityError, match="would unpack to [0-9]+ bytes, and [0-9]+ are allowed"):
        AnchorSet.from_pretrained(tmp_path)


def test_a_table_of_many_batches_is_read_whole(tmp_path):
    rows = 10_000
    anchors = AnchorSet([str(i) for i in range(rows)], {"en": [f"text {i}" for i in range(rows)]})
    anchors.save_pretrained(tmp_path)
    assert AnchorSet.from_pretrained(tmp_path).view("en").samples == anchors.view("en").samples


def lying(file, unpacked):
    """The header of the last page of a parquet file asks for this many bytes; its page is shorter by what it grows."""
    content, about = file.read_bytes(), pq.read_metadata(file)
    column = about.row_group(0).column(about.num_columns - 1)
    place = column.data_page_offset
    header, start = _struct(content, place)
    old = b"\x15\x00\x15" + varint(2 * header[2]) + b"\x15" + varint(2 * header[3])
    assert content[place:].startswith(old)
    more = len(varint(2 * unpacked)) - len(varint(2 * header[2]))
    new = b"\x15\x00\x15" + varint(2 * unpacked) + b"\x15" + varint(2 * (header[3] - more))
    assert len(new) == len(old) + more
    end = start + header[3]
    file.write_bytes(content[:place] + new + content[place + len(old) : end - more] + content[end:])


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip"])
def test_the_header_of_a_page_asks_for_no_more_than_its_file_justifies(tmp_path, compression):
    texts = [f"text {i}" * 9 for i in range(500)]
    AnchorSet([str(i) for i in range(500)], {"en": texts}).save_pretrained(tmp_path)
    file = tmp_path / "anchors" / "anchors.parquet"
    pq.write_table(pq.read_table(file), file, compression=compression, use_dictionary=False)
    assert AnchorSet.from_pretrained(tmp_path).view("en").samples == texts
    lying(file, unpacked=2**31 - 1)
    with pytest.raises(AnchorIntegrityError, match="pages of its column 'en' would unpack to 2147[0-9]{6} bytes"):
        AnchorSet.from_pretrained(tmp_path)


@pytest.mark.parametrize("how", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}, {"data_page_size": 100}])
def test_the_pages_of_sound_tables_are_counted_whole(tmp_path, how):
    file = tmp_path / "x.parquet"
    table = pa.table(
        {"id": [str(i) for i in range(3_000)], "n": list(range(3_000)), "s": [[i, None] for i in range(3_000)]}
    )
    pq.write_table(table, file, row_group_size=1_000, **how)
    about, content = pq.read_metadata(file), file.read_bytes()
    expected = [about.row_group(group).column(number) for group in range(3) for number in range(about.num_columns)]
    for column, its in zip(columns_in(content), expected, strict=True):
        assert (column.name, column.num_values) == (its.path_in_schema, its.num_values)
        assert (column.unpacked, column.packed) == (its.total_uncompressed_size, its.total_compressed_size)
        assert (column.first_page, column.dictionary_page) == (its.data_page_offset, its.dictionary_page_offset or 0)
        assert (column.type == TEXT) == (its.physical_type == "BYTE_ARRAY")
        pages = _pages(content, column)
        in_pages = sum(page.values for page in pages) - (pages[0].values if its.has_dictionary_page else 0)
        assert in_pages == column.num_values
        assert sum(page.unpacked for page in pages) <= column.unpacked
    refuse_immense_pages(file, 1 << 20)
    with pytest.raises(ValueError, match="would unpack to"):
        refuse_immense_pages(file, 1 << 10)


def test_no_bit_of_a_footer_ends_the_process(tmp_path):
    """An exception in pyarrow's own view of a damaged column is not caught there: the process would be gone."""
    AnchorSet(["a", "b"], {"en": ["x", "y"], "fr": ["u", "v"]}).save_pretrained(tmp_path)
    file = tmp_path / "anchors" / "anchors.parquet"
    sound = file.read_bytes()
    start = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    refused = 0
    for place in range(start, len(sound), 7):
        for bit in (0, 2, 4, 7):
            changed = bytearray(sound)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            try:
                AnchorSet.from_pretrained(tmp_path)
            except AnchorIntegrityError:
                refused += 1
    assert refused > 100


# -- numbers that only a forward pass reads


@pytest.fixture
def longformer(tmp_path, anchors, tokenizer):
    """A saved encoder that pads its texts to whole windows."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = LongformerConfig(vocab_size=len(tokenizer), max_position_embeddings=70, attention_window=4, **sizes)
    encoder = RelativeModel.from_encoder(LongformerModel(config), anchors.view("en"), tokenizer)
    encoder.save_pretrained(tmp_path / "longformer")
    return tmp_path / "longformer"


def test_a_window_of_a_hundred_million_tokens_is_refused_before_it_is_filled(longformer, texts):
    sound = RelativeModel.from_pretrained(longformer)
    x_ND = sound.encode(texts["en"][:3])
    torch.testing.assert_close(sound.encode(texts["en"][:3]), x_ND)  # watched, then as always
    for file in longformer.rglob("config.json"):
        content = json.loads(file.read_text())
        part = content.get("encoder", content)
        if "encoder_config" in part:
            part["encoder_config"]["attention_window"] = [90_000_000]
            file.write_text(json.dumps(content))
    says = longformer / "encoder" / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(says).items() if not name.endswith("_extra_state")}
    save_file(weights, says, metadata={"format": "pt"})  # which would tell of another architecture
    hostile = RelativeModel.from_pretrained(longformer)
    with pytest.raises(ConfigurationError, match="would make [0-9]+ numbers at once"):
        hostile.encode(texts["en"][:3])
    with pytest.raises(ConfigurationError, match="would make [0-9]+ numbers at once"):
        hostile(**hostile.processor(texts["en"][:3], return_tensors="pt", padding=True))


# -- numbers that are harmless alone and not together


def test_a_text_is_shorter_where_the_tokenizer_makes_it_longer():
    plain, longer = (word_tokenizer(["a b"]) for _ in range(2))
    longer.backend_tokenizer.normalizer = normalizers.Replace("a", "b " * 100)
    assert (expansion_of(plain).growth, expansion_of(longer).growth) == (1.0, 200.0)
    with pytest.raises(SampleError, match=r"samples\[0\] has 6000 characters, .* the limit is 5000"):
        next(batches(["a" * 6_000], longer, 1))
    assert next(batches(["a" * 6_000], plain, 1))


def test_a_tokenizer_that_puts_a_prompt_after_each_added_token_reads_few_of_them():
    tokenizer = word_tokenizer(["a b"])
    tokenizer.add_tokens("z")
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("x " * 10_000)
    assert next(batches(["a z b"], tokenizer, 1, max_length=2_048))
    with pytest.raises(
        SampleError, match=r"samples\[0\] has 200 characters, into which .* puts 2020000 more; the limit"
    ):
        next(batches(["az" * 100], tokenizer, 1, max_length=2_048))


def test_what_stands_before_each_text_is_no_longer_than_what_the_encoder_reads():
    """Many short texts would each take the time of a long one, and all but the prompt would be cut off."""
    tokenizer = word_tokenizer(["a b"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("x " * 5_000)
    with pytest.raises(
        SampleError, match="puts 10000 characters before each text, .* 512 tokens .* the limit is 8192"
    ):
        next(batches(["a", "b"], tokenizer, 1, max_length=512))
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("x " * 4_000)
    assert next(batches(["a", "b"], tokenizer, 1, max_length=512))


def test_a_tokenizer_that_has_changed_is_measured_again():
    tokenizer = word_tokenizer(["a b"])
    assert expansion_of(tokenizer).growth == 1
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "b " * 100)
    assert expansion_of(tokenizer).growth == 200
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("x " * 100)
    assert expansion_of(tokenizer).prepended_to("zz") == 200
    tokenizer.add_tokens("z")
    assert expansion_of(tokenizer).prepended_to("zz") == 600


def test_a_long_text_is_read_behind_a_prompt_by_a_tokenizer_of_many_added_tokens():
    """Gemma has 6,000, of which few stand in any text."""
    tokenizer = word_tokenizer(["a b"])
    tokenizer.add_tokens([f"<unused{i}>" for i in range(6_400)])
    tokenizer = with_prompt(tokenizer, "Represent this sentence for searching relevant passages: ")
    for text in ("a b " * 10_000, "<i> a b " * 5_000):
        assert next(batches([text], tokenizer, 1, max_length=8))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    "sections",
    [
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 16}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "BertNormalizer"}] * 11}},
        {
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 6},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 6},
        },
    ],
)
def test_steps_that_make_characters_longer_are_not_repeated_without_end(sections):
    with pytest.raises(UploadError, match="so many steps of type .* times longer; the limit is 400"):
        refuse_unknown_tokenizer(plain(**sections), "x")


def test_a_text_is_shorter_where_a_step_that_makes_it_longer_is_repeated():
    usual, repeated = (word_tokenizer(["a b"]) for _ in range(2))
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    usual.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step] * 2)
    repeated.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step] * 6)
    assert (expansion_of(usual).growth, expansion_of(repeated).growth) == (1.0, 16.0)


@pytest.mark.parametrize(
    "pattern",
    [
        *("a?" * 7 + r"\p{Lu}", r"a{0,99}a{0,99}\p{Lu}", r"x|(?:a|b)?b?c?d?e?f?g?\p{Lu}"),
        *("(?:a|aa)" * 7 + r"\p{Lu}", "a{1,0}" + "a?" * 20 + r"\p{Lu}", "a{9,0}" * 7 + r"\p{Lu}"),
    ],
)
def test_steps_that_match_one_place_in_many_ways_are_refused(pattern):
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    with pytest.raises(UploadError, match="may take more than linear time"):
        refuse_unknown_tokenizer({"model": {"type": "WordLevel", "vocab": {}}, "pre_tokenizer": step}, "x")


def test_tensors_without_numbers_justify_nothing(tmp_path):
    save_file({"weight": torch.zeros(3, 4), "empty": torch.empty(0, 10**9)}, tmp_path / "model.safetensors")
    assert stored_sizes([tmp_path / "model.safetensors"]) == Stored(numbers=12, tensors=1, largest=4)


# -- numbers that processors of images and sounds read


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("BridgeTower", {"size": {"shortest_edge": 16_000.0}}),
        ("Sam", {"size": {"longest_edge": 16_000}, "do_pad": False}),
        ("Idefics3", {"size": {"longest_edge": 16_000}}),
        ("Qwen2VL", {"size": {"shortest_edge": 10**7, "longest_edge": 12_845_056}}),
        ("Qwen2VL", {"patch_size": 8_192, "merge_size": 2}),
        ("Qwen2VL", {"patch_size": 256, "merge_size": 64}),
        ("Qwen2VL", {"temporal_patch_size": 65}),
        ("Fuyu", {"patch_size": {"height": 30, "width": 4_000}}),
        ("Emu3", {"spatial_factor": 16_384}),
        ("DeepseekVL", {"min_size": 20_000}),
        ("MiniCPMV4_6", {"scale_resolution": 20_000}),
        ("Gemma4", {"patch_size": 4_096}),
        ("Gemma4", {"max_soft_tokens": 10**7}),
        ("LlavaNext", {"crop_size": {"height": 224, "width": 32_768}}),
        ("ImageGPT", {"clusters": [[0.0, 0.0, 0.0]] * 4_000, "size": {"height": 2_000, "width": 2_000}}),
        ("Mllama", {"max_image_tiles": 32_768}),
        ("PerceptionLM", {"max_num_tiles": 36, "tile_size": 4_000}),
    ],
)
def test_numbers_that_blow_images_up_are_refused(kind, fields):
    content = {"image_processor_type": f"{kind}ImageProcessor", **fields}
    with pytest.raises(UploadError, match="limit"):
        refuse_unknown_processor({"preprocessor_config.json": content}, "x")


@pytest.mark.parametrize(
    "fields",
    [
        {"audio_silence_prefix_seconds": 20_000.0, "sampling_rate": 24_000},
        {"audio_delay_seconds": 20_000.0},
        {"frame_length_ms": 500_000, "feature_size": 4},
        {"frame_length_ms": 2_000, "hop_length_ms": 0.01, "sampling_rate": 16_000},
    ],
)
def test_times_that_are_gigabytes_of_sound_are_refused(fields):
    with pytest.raises(UploadError, match="numbers of each sample; the limit is"):
        refuse_unknown_processor({"preprocessor_config.json": fields}, "x")


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"shortest_edge": 3_136, "longest_edge": 12_845_056}, "patch_size": 14, "merge_size": 2},
        {"size": {"shortest_edge": 200_704, "longest_edge": 1_003_520}, "temporal_patch_size": 2},
        {"size": {"shortest_edge": 800, "longest_edge": 1_333}, "normalize_factor": 200.0},
        {"max_patches": 4_096, "patch_size": {"height": 16, "width": 16}},
        {"audio_delay_seconds": 2.5, "frame_length_ms": 32.0, "hop_length_ms": 10.0, "feature_size": 128},
    ],
)
def test_numbers_that_processors_have_are_read(fields):
    assert refuse_unknown_processor({"preprocessor_config.json": fields}, "x") is None


@pytest.mark.parametrize(
    "size", [{"shortest_edge": 16_000.0}, {"longest_edge": 16_000}, {"height": 1e9, "width": 1e9}]
)
def test_sides_count_whatever_type_of_number_they_are(size):
    reader = ViTImageProcessorPil(size={"height": 8, "width": 8})
    reader.size = size
    with pytest.raises(SampleError, match="would resize an image"):
        next(batches([Image.new("RGB", (8, 8))], reader, 1))


def test_an_edge_is_no_number_of_pixels_because_the_file_has_a_large_one():
    reader = DetrImageProcessorPil(size={"shortest_edge": 16_000, "longest_edge": 2_000_000})
    with pytest.raises(SampleError, match="would resize an image to 16000 x 16000"):
        next(batches([Image.new("RGB", (8, 8))], reader, 1))


def test_images_that_are_not_resized_are_not_padded_to_a_canvas_for_all_of_them():
    """A wide one and a high one would make gigabytes of pixels that neither of them has."""
    reader = DetrImageProcessorPil(do_resize=False)
    lines = [Image.new("RGB", (4_000, 1)), Image.new("RGB", (1, 4_000))]
    shapes = [tuple(inputs["pixel_values"].shape) for _, inputs in batches(lines, reader, 8)]
    assert shapes == [(1, 3, 1, 4_000), (1, 3, 4_000, 1)]
    with pytest.raises(SampleError, match="may pad one to 30000 x 30000 pixels; the limit is 16777216"):
        next(batches([Image.new("RGB", (30_000, 1))], JanusImageProcessorPil(do_resize=False), 1))
    squares = [Image.new("RGB", (32, 32))] * 8
    assert [len(rows) for rows, _ in batches(squares, reader, 8)] == [8]


def test_labels_without_names_are_few():
    names = {str(i): str(i) for i in range(30_000)}
    for content in ({"num_labels": 30_000}, {"num_labels": 30_000, "id2label": {"0": "a"}}):
        with pytest.raises(ConfigurationError, match="num_labels=30000 is larger than in any known model"):
            refuse_unknown_model({"model_type": "bert", **content}, "x")
    assert refuse_unknown_model({"model_type": "bert", "num_labels": 30_000, "id2label": names}, "x") is None
