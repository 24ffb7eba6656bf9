"""What the tests share: a Hub on this machine, and models so small that they train in a second.

The client of the Hub reads its endpoint once, when it is imported. So the local Hub is constructed here, and its
environment set, before anything imports `huggingface_hub`. Each process of pytest has a Hub and a cache of its own.
With ``HF_RELREPS_REAL_HUB=1`` and ``HF_TOKEN`` the environment stays as it is, and ``pytest -m hub`` runs the tests
marked ``any_hub`` against the real Hub.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # also where pytest was not started as a module

from local_hub import LocalHub  # noqa: E402


REAL_HUB = os.environ.get("HF_RELREPS_REAL_HUB") == "1" and "HF_TOKEN" in os.environ
CACHE = tempfile.TemporaryDirectory(prefix="hf-relreps-tests-")
LOCAL_HUB = None if REAL_HUB else LocalHub(port=0)
os.environ.update({"HF_HOME": CACHE.name} if REAL_HUB else LOCAL_HUB.environment(CACHE.name))
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import HfApi  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast  # noqa: E402

from hf_relreps import AnchorSet, RelativeModelForSequenceClassification  # noqa: E402


# -- Hubs


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "any_hub: knows only the client, so it runs on the real Hub as well (-m hub)")


# These files take longest, so they come first: what begins last must be short where processes share the tests.
LONGEST = (
    *("quickstart", "distributed", "shards", "ranks", "untrusted_uploads", "load", "notebooks", "paper", "kill"),
    *("docs", "readme", "accelerate", "reconstruction", "image_classification"),
)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
    if REAL_HUB:
        for item in items:
            if item.get_closest_marker("any_hub"):
                item.add_marker(pytest.mark.hub)


@pytest.fixture(scope="session")
def hub() -> Iterator[Any]:
    """The running `LocalHub` that the client of this process talks to."""
    if LOCAL_HUB is None:
        pytest.skip("needs the local Hub; HF_RELREPS_REAL_HUB=1 asks for the real one")
    with LOCAL_HUB:
        yield LOCAL_HUB


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_looked_for_among_new_objects() -> None:
    """The Trainer collects garbage after each training: among all that is imported, most of a tiny training's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _each_test_starts_with_a_sound_hub() -> Iterator[None]:
    yield
    if LOCAL_HUB is not None:
        LOCAL_HUB.faults.clear()
        LOCAL_HUB.requests.clear()


@pytest.fixture(scope="session")
def hub_user(request: pytest.FixtureRequest) -> str:
    """Who the client's token stands for, on the local or the real Hub."""
    return HfApi().whoami()["name"] if REAL_HUB else request.getfixturevalue("hub").user


@pytest.fixture
def new_repo_id(hub_user: str) -> Iterator[Callable[[], str]]:
    """Gives names of repositories that do not exist yet; what was made under them is deleted afterwards."""
    names = []

    def name() -> str:
        names.append(f"{hub_user}/relreps-{uuid.uuid4().hex[:12]}")
        return names[-1]

    yield name
    if LOCAL_HUB is not None:
        LOCAL_HUB.faults.clear()
    for repo_id, repo_type in product(names, ("model", "dataset")):
        HfApi().delete_repo(repo_id, repo_type=repo_type, missing_ok=True)


@pytest.fixture
def repo_id(new_repo_id: Callable[[], str]) -> str:
    """One name of a repository that does not exist yet."""
    return new_repo_id()


# -- a tiny world: 60 meanings of three kinds (animals, food, vehicles) in two languages

NOUNS = {
    "en": ("cat dog bird horse fish", "bread soup cake rice cheese", "train car boat plane bus"),
    "fr": ("chat chien oiseau cheval poisson", "pain soupe gateau riz fromage", "train voiture bateau avion autobus"),
}
ADJECTIVES = {"en": "small old red good", "fr": "petit vieux rouge bon"}
PLACES = {"en": "here there", "fr": "ici la"}


def _sentences(view: str) -> list[str]:
    nouns = [noun for kind in NOUNS[view] for noun in kind.split()]
    pairs = product(nouns, ADJECTIVES[view].split())
    places = PLACES[view].split()
    return [f"{adjective} {noun} {places[i % 2]}" for i, (noun, adjective) in enumerate(pairs)]


@pytest.fixture(scope="session")
def texts() -> dict[str, list[str]]:
    """60 distinct texts in each of the views ``en`` and ``fr``; row i means the same in both."""
    return {view: _sentences(view) for view in NOUNS}


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Eight pictures of noise, 16 x 16."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(8)]


@pytest.fixture(scope="session")
def labels() -> list[int]:
    """The kind of each text: 0 animal, 1 food, 2 vehicle."""
    return [i // 20 for i in range(60)]


@pytest.fixture(scope="session")
def tokenizer(texts: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """A word is a token."""
    words = dict.fromkeys(word for view in texts.values() for text in view for word in text.split())
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words_only.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_only,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


@pytest.fixture(scope="session")
def anchors(texts: dict[str, list[str]]) -> AnchorSet:
    """Every third text, in both views: 20 anchors."""
    return AnchorSet([f"meaning-{i}" for i in range(0, 60, 3)], {view: texts[view][::3] for view in texts})


@pytest.fixture(scope="session")
def make_bert(tokenizer: PreTrainedTokenizerFast) -> Callable[..., BertModel]:
    """``make_bert(seed, **config)``: a BERT of two layers, 32 wide."""

    def make(seed: int = 0, **config: Any) -> BertModel:
        vocabulary = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return BertModel(BertConfig(**vocabulary | sizes | config))

    return make


@pytest.fixture(scope="session")
def make_model(
    make_bert: Callable[..., BertModel], anchors: AnchorSet, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., RelativeModelForSequenceClassification]:
    """``make_model(seed, view="en", **settings)``: a tiny relative classifier of three classes, untrained."""

    def make(seed: int = 0, view: str = "en", **settings: Any) -> RelativeModelForSequenceClassification:
        kinds = ["animal", "food", "vehicle"]
        names = {"id2label": dict(enumerate(kinds)), "label2id": {kind: i for i, kind in enumerate(kinds)}}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = RelativeModelForSequenceClassification.from_encoder(
                make_bert(seed), anchors.view(view), tokenizer, **names | settings
            )
        return model.eval()

    return make


@pytest.fixture
def upload(tmp_path: Path, make_model: Callable[..., RelativeModelForSequenceClassification]) -> Path:
    """A folder with a saved whole model."""
    make_model(0).save_pretrained(tmp_path / "upload")
    return tmp_path / "upload"


@pytest.fixture(scope="session")
def make_dataset(
    texts: dict[str, list[str]], labels: list[int], tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], list[dict[str, Any]]]:
    """``make_dataset(view)``: the 60 texts as tokens with their labels, as `Trainer` takes them."""

    def make(view: str = "en") -> list[dict[str, Any]]:
        return [dict(tokenizer(text)) | {"labels": label} for text, label in zip(texts[view], labels, strict=True)]

    return make
