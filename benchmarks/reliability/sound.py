"""Sound uploads of each kind, tiny, and the doors by which the files of each are read."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    T5Config,
    T5Model,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from hf_relreps import (
    AnchorSet,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeModel,
    RelativeModelForAudioClassification,
    RelativeModelForImageClassification,
    RelativeModelForPairClassification,
    RelativeModelForSequenceClassification,
    RelativeModelForTokenClassification,
    RelativeModelWithDecoders,
    compatibility,
    stitch,
)
from hf_relreps.demos.tiny import small_bert, word_tokenizer
from hf_relreps.hub import write_card
from hf_relreps.migration import Migration, RenewedVectors, fit
from hf_relreps.pairs import pairs_of
from hf_relreps.prediction import FEWEST_PAIRS
from hf_relreps.shards import encode_shards, read_shards
from hf_relreps.sources import Source
from hf_relreps.trust import calibrate
from hf_relreps.uploads import load_processor, weight_files
from hf_relreps.words import words_of


TEXTS = ["a small cat", "a big dog", "two red birds", "old bread", "hot soup", "a slow train", "a blue car", "rain"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEMPLATE = "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
BASE, COMMIT = "me/base", "0123456789abcdef0123456789abcdef01234567"  # what frozen encoders refer to, in the cache
Door = Callable[[Path], Any]


class Kind(NamedTuple):
    """Writes a sound upload into a folder, and the doors by which its files are read."""

    make: Callable[[Path], None]
    doors: dict[str, Door]


# -- what they are made of


def _texts() -> AnchorSet:
    return AnchorSet([f"m{i}" for i in range(len(TEXTS))], {"en": TEXTS, "fr": [text[::-1] for text in TEXTS]})


def _bert() -> Any:
    return small_bert(len(word_tokenizer(TEXTS)), longest=16, width=16, layers=1)


def _photos(n: int = 6) -> AnchorSet:
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 8, 8, 3), generator=noise, dtype=torch.uint8).numpy()
    return AnchorSet([f"i{i}" for i in range(n)], {"photo": [Image.fromarray(image) for image in pixels]})


def _saved(model: Any, place: Path, size: str = "1GB") -> None:
    model.save_pretrained(place, max_shard_size=size)
    write_card(place, "me/sound")


def _texts_upload(place: Path) -> None:
    tokenizer = word_tokenizer(TEXTS)
    _saved(
        RelativeModelForSequenceClassification.from_encoder(_bert(), _texts().view("en"), tokenizer, num_labels=3),
        place,
    )


def _images(place: Path) -> None:
    """Several files with an index for each part."""
    vit = ViTModel(ViTConfig(**SIZES, image_size=8, patch_size=4), add_pooling_layer=False)  # type: ignore[arg-type]
    reader = ViTImageProcessor(size={"height": 8, "width": 8})
    model = RelativeModelForImageClassification.from_encoder(vit, _photos().view("photo"), reader, num_labels=2)
    _saved(model, place, "8KB")


def _sounds(place: Path) -> None:
    noise = np.random.default_rng(0)
    sounds = [{"array": noise.normal(0, 0.1, 1600).astype(np.float32), "sampling_rate": 16_000} for _ in range(6)]
    sizes: Any = {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    config = Wav2Vec2Config(
        **SIZES, **sizes, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, apply_spec_augment=False
    )
    anchors = AnchorSet([f"s{i}" for i in range(6)], {"sound": sounds})
    model = RelativeModelForAudioClassification.from_encoder(
        Wav2Vec2Model(config), anchors.view("sound"), Wav2Vec2FeatureExtractor(), num_labels=2
    )
    _saved(model, place)


def _timm(place: Path) -> None:
    from transformers import TimmWrapperConfig, TimmWrapperImageProcessor, TimmWrapperModel

    config = TimmWrapperConfig(architecture="test_resnet", do_pooling=True)
    inner: Any = TimmWrapperModel(config)
    reader = TimmWrapperImageProcessor(pretrained_cfg=inner.timm_model.pretrained_cfg, architecture="test_resnet")
    model = RelativeModelForImageClassification.from_encoder(inner, _photos().view("photo"), reader, num_labels=2)
    _saved(model, place)


def _encoder_decoder(place: Path) -> None:
    tokenizer = word_tokenizer(TEXTS)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    model = RelativeModelForSequenceClassification.from_encoder(
        T5Model(config), _texts().view("en"), tokenizer, num_labels=3
    )
    _saved(model, place)


def _adapters(place: Path) -> None:
    """LoRA on a frozen base, which lies in the cache of the Hub."""
    from peft import LoraConfig
    from transformers import AutoModel

    base = _base_in_cache()
    bert = AutoModel.from_pretrained(base)
    bert.add_adapter(LoraConfig(r=2, target_modules=["query", "value"], rank_pattern={"query": 3}))
    model = RelativeModelForSequenceClassification.from_encoder(
        bert, _texts().view("en"), word_tokenizer(TEXTS), num_labels=3
    )
    _saved(model, place)


def _base_in_cache() -> str:
    """A BERT that the client finds without asking the Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = Path(HF_HUB_CACHE, f"models--{BASE.replace('/', '--')}")
    snapshot = repository / "snapshots" / COMMIT
    if not snapshot.is_dir():
        _bert().save_pretrained(snapshot)
        word_tokenizer(TEXTS).save_pretrained(snapshot)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        missing = repository / ".no_exist" / COMMIT
        missing.mkdir(parents=True)
        for name in ("adapter_config.json", "config_sentence_transformers.json", "model.safetensors.index.json"):
            (missing / name).touch()
    return BASE


def _processors(place: Path) -> None:
    """An image encoder whose processor holds a tokenizer too."""
    config = CLIPConfig(
        text_config=SIZES | {"vocab_size": 99, "max_position_embeddings": 16},
        vision_config=SIZES | {"image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    reader = CLIPProcessor(image_processor=images, tokenizer=word_tokenizer(TEXTS))
    model = RelativeModelForImageClassification.from_encoder(
        CLIPModel(config), _photos().view("photo"), reader, num_labels=2
    )
    _saved(model, place)


def _tagger(place: Path) -> None:
    words = words_of([text.split() for text in TEXTS])
    anchors = AnchorSet([f"w{i}" for i in range(len(words))], {"en": words})
    model = RelativeModelForTokenClassification.from_encoder(
        _bert(), anchors.view("en"), word_tokenizer(TEXTS), num_labels=3
    )
    _saved(model, place)


def _pairs(place: Path) -> None:
    anchors = AnchorSet([f"p{i}" for i in range(len(TEXTS))], {"en": pairs_of(TEXTS, TEXTS[::-1])})
    model = RelativeModelForSequenceClassification.from_encoder(
        _bert(), anchors.view("en"), word_tokenizer(TEXTS), num_labels=2
    )
    _saved(model, place)


def _compared(place: Path) -> None:
    model = RelativeModelForPairClassification.from_encoder(
        _bert(), _texts().view("en"), word_tokenizer(TEXTS), num_labels=2
    )
    _saved(model, place)


def _conversations(place: Path) -> None:
    tokenizer = word_tokenizer(TEXTS)
    tokenizer.chat_template = TEMPLATE
    talks = [[{"role": "user", "content": text}, {"role": "assistant", "content": "rain"}] for text in TEXTS]
    anchors = AnchorSet([f"c{i}" for i in range(len(TEXTS))], {"en": talks})
    model = RelativeModelForSequenceClassification.from_encoder(_bert(), anchors.view("en"), tokenizer, num_labels=2)
    _saved(model, place)


def _several(place: Path) -> None:
    encoder = RelativeModel.from_encoder(_bert(), _texts().view("en"), word_tokenizer(TEXTS))
    settings = {"section": {"num_labels": 3}, "tone": {"num_labels": 2, "decoder_type": "linear"}}
    decoders = {
        name: RelativeDecoder(RelativeDecoderConfig(space=encoder.config.space, **own))  # type: ignore[arg-type]
        for name, own in settings.items()
    }
    _saved(stitch(encoder, decoders), place)


def _calibrated(place: Path) -> None:
    anchors, tokenizer = _texts(), word_tokenizer([*TEXTS, *(text[::-1] for text in TEXTS)])
    one, other = (
        RelativeModelForSequenceClassification.from_encoder(
            small_bert(len(tokenizer), longest=16, width=16, layers=1), anchors.view(name), tokenizer, num_labels=3
        )
        for name in ("en", "fr")
    )
    texts = TEXTS * (FEWEST_PAIRS // len(TEXTS) + 1)
    pairs = (texts, [text[::-1] for text in texts])
    _saved(calibrate(stitch(one, other), own_encoder=other, pairs=pairs), place)


def _translated(place: Path) -> None:
    """The head of an ordinary classifier as a decoder."""
    tokenizer = word_tokenizer(TEXTS)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, num_labels=3, **SIZES)  # type: ignore[arg-type]
    model = RelativeModelForSequenceClassification.from_classifier(
        BertForSequenceClassification(config), _texts().view("en"), tokenizer
    )
    _saved(model, place)


def _sentence_transformer() -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = Path(os.environ["HF_HOME"], "bert")
    _bert().save_pretrained(folder)
    word_tokenizer(TEXTS).save_pretrained(folder)
    transformer = Transformer(str(folder))
    shutil.rmtree(folder)
    modules = [transformer, Pooling(16, "mean"), Dense(16, 12)]
    return SentenceTransformer(modules=modules, device="cpu")


def _relative_sentences(place: Path) -> None:
    from hf_relreps.sentence_transformers import relative

    relative(_sentence_transformer(), _texts().view("en")).save(str(place))


def _vectors(width: int, n: int = 120) -> torch.Tensor:
    hidden_NH = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return hidden_NH @ torch.randn(6, width, generator=torch.Generator().manual_seed(width))


def _migration(place: Path) -> None:
    from hf_relreps.migration.adapters import query_adapter

    query_adapter(_sentence_transformer(), fit(_vectors(10), _vectors(12))).save(str(place))


def _stores(place: Path) -> None:
    """What others may hand on beside uploads: a migration, a folder of renewed vectors, shards."""
    fit(_vectors(10), _vectors(12)).save(place / "migration")
    renewed = RenewedVectors(place / "renewed")
    renewed.add([3, "a"], torch.eye(2))
    renewed.add([7], torch.ones(1, 2))
    encoder = RelativeModel.from_encoder(_bert(), _texts().view("en"), word_tokenizer(TEXTS))
    from datasets import Dataset

    rows = Dataset.from_dict({"text": TEXTS * 2, "label": [0, 1] * len(TEXTS)})
    encode_shards(encoder, rows, "text", place / "shards", keep=["label"], rows_per_shard=6)


# -- doors: every way in which a file of an upload is read


def whole_as(model_class: Any) -> Door:
    """As a whole model of a class."""
    return lambda upload: model_class.from_pretrained(upload)


def auto(upload: Path) -> None:
    """As transformers' own Auto classes read it."""
    AutoConfig.from_pretrained(upload)
    AutoModelForSequenceClassification.from_pretrained(upload)


def decoder(upload: Path) -> None:
    """The decoder alone, and what it says."""
    loaded = RelativeDecoder.from_pretrained(upload)
    spread = (2, 2) if loaded.config.decoder_type == "pair" else (2,)
    output = loaded(torch.randn(*spread, loaded.config.space.size))
    logits = output.logits if isinstance(output.logits, dict) else {"": output.logits}
    assert all(one.isfinite().all() for one in logits.values())


def encode(upload: Path) -> None:
    """The encoder alone, and what it makes of anchors."""
    encoder = RelativeModel.from_pretrained(upload)
    x_ND = encoder.encode(encoder.anchors.view(encoder.config.anchor_view).samples[:2])
    assert encoder.projection(x_ND).isfinite().all()


DOORS: dict[str, Door] = {
    "index": lambda upload: weight_files(Source.of(upload)),  # as a training that is resumed reads it
    "encoder": RelativeModel.from_pretrained,
    "decoder": decoder,
    "anchors": AnchorSet.from_pretrained,
    "processor": lambda upload: load_processor(Source.of(upload)),
    "encode": encode,
    "stitch": lambda upload: (str(compatibility(upload, upload)), stitch(upload, upload)),
    "card": lambda upload: write_card(upload, "me/sound"),
}


def _sentences(upload: Path) -> None:
    from hf_relreps.sentence_transformers import load_relative

    load_relative(upload, device="cpu")


def _adapter(upload: Path) -> None:
    from hf_relreps.migration.adapters import load_adapter

    assert np.isfinite(load_adapter(upload, device="cpu").encode(TEXTS[:2])).all()


def _load_migration(upload: Path) -> None:
    migration = Migration.load(upload / "migration")
    assert migration.scores(_vectors(12, 3), _vectors(10, 5)).isfinite().all()
    assert str(migration) and migration.report


def _load_renewed(upload: Path) -> None:
    renewed = RenewedVectors(upload / "renewed")
    assert len(renewed.take(renewed.ids)) == len(renewed)


def _load_shards(upload: Path) -> None:
    for _ in read_shards(upload / "shards"):
        pass


def _ours(make: Callable[[Path], None], model_class: Any, *, is_text: bool = False) -> Kind:
    more = {"auto": auto} if is_text else {}
    return Kind(make, {"whole": whole_as(model_class), **more, **DOORS})


OF_TEXTS = RelativeModelForSequenceClassification
KINDS: dict[str, Kind] = {
    "texts": _ours(_texts_upload, OF_TEXTS, is_text=True),
    "images": _ours(_images, RelativeModelForImageClassification),
    "sounds": _ours(_sounds, RelativeModelForAudioClassification),
    "timm": _ours(_timm, RelativeModelForImageClassification),
    "encoder-decoder": _ours(_encoder_decoder, OF_TEXTS, is_text=True),
    "adapters": _ours(_adapters, OF_TEXTS),
    "processors": _ours(_processors, RelativeModelForImageClassification),
    "tagger": _ours(_tagger, RelativeModelForTokenClassification),
    "pairs": _ours(_pairs, OF_TEXTS, is_text=True),
    "two texts compared": _ours(_compared, RelativeModelForPairClassification),
    "conversations": _ours(_conversations, OF_TEXTS, is_text=True),
    "several decoders": _ours(_several, RelativeModelWithDecoders),
    "calibrated": _ours(_calibrated, OF_TEXTS, is_text=True),
    "translated head": _ours(_translated, OF_TEXTS, is_text=True),
    "SentenceTransformer": Kind(_relative_sentences, {"sentences": _sentences}),
    "migration adapter": Kind(_migration, {"adapter": _adapter}),
    "stores": Kind(_stores, {"migration": _load_migration, "renewed": _load_renewed, "shards": _load_shards}),
}
NEEDS = {
    "timm": "timm",
    "adapters": "peft",
    "SentenceTransformer": "sentence_transformers",
    "migration adapter": "sentence_transformers",
}


@lru_cache(maxsize=1)
def kinds() -> list[str]:
    """The kinds whose libraries are installed, and import."""
    return [kind for kind in KINDS if _imports(NEEDS.get(kind))]


def _imports(name: str | None) -> bool:
    if name is None:
        return True
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):  # a torchvision that is not made for this torch
        return False
    return True
