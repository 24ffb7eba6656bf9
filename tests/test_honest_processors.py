"""Every tokenizer, image processor, feature extractor and processor that can be made is read as it was saved."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from hf_relreps.errors import UploadError
from hf_relreps.inspection import READERS
from hf_relreps.sources import Source
from hf_relreps.uploads import inspect_processor, load_processor


WORDS = [*("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), *("<s>", "</s>", "<pad>", "<unk>", "<mask>", "a", "b", "c")]
# Tokens that processors of several modalities ask their tokenizer for.
NAMED = ("image", "video", "audio", "boi", "eoi", "boa", "eoa", "image_start", "image_end", "start_image", "end_image")
REFUSED = {
    "OneFormerImageProcessor": "repo_path",  # names a repository that it loads names of classes from
    "OneFormerImageProcessorPil": "repo_path",
    "OneFormerProcessor": "repo_path",
    "BarkProcessor": "loads a part of its own",  # pickled speakers
    "SeamlessM4TTokenizer": "may take more than linear time",  # " +▁": the square of a run of spaces
}
PARTS = {"image_processor": "CLIPImageProcessor", "feature_extractor": "WhisperFeatureExtractor"}


def classes() -> list[Any]:
    """The classes that read samples, as far as their libraries are installed."""
    found = set()
    for name in dir(transformers):
        try:
            one = getattr(transformers, name)
        except Exception:  # a library that is not installed
            continue
        if isinstance(one, type) and issubclass(one, READERS):
            found.add(one)
    return sorted(found, key=lambda one: (issubclass(one, ProcessorMixin), one.__name__))


def tokenizer() -> PreTrainedTokenizerFast:
    """With every token that a processor may ask for."""
    tokens = {f"{name}_token": f"<{name}>" for name in NAMED}
    vocabulary = {word: i for i, word in enumerate([*WORDS, *tokens.values()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, extra_special_tokens=tokens)


def ways(of_class: Any, made: dict[str, Any], folder: Any) -> list[Any]:
    """How it may be made, the simplest first."""
    if issubclass(of_class, ProcessorMixin):
        own = {type(one).__module__.rpartition(".")[0]: one for one in made.values()}
        parts = {}
        for part in of_class.get_attributes():
            like = PARTS.get(part)
            module = of_class.__module__.rpartition(".")[0]
            known = [own[module]] if module in own and part.split("_")[0] in type(own[module]).__name__.lower() else []
            known += [one for name, one in made.items() if like and name.startswith(like)]
            parts[part] = tokenizer() if part == "tokenizer" else known[0] if known else None
        return [lambda: of_class(**parts)]
    if not issubclass(of_class, PreTrainedTokenizerBase):
        return [of_class]
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    files = {"vocab.txt": "\n".join(WORDS), "vocab.json": json.dumps(vocabulary), "merges.txt": "#version: 0.2\na b\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    text, table, merges = (str(folder / name) for name in files)
    scores = [(word, -float(i)) for i, word in enumerate(WORDS)]
    return [
        of_class,
        *(
            lambda given=given: of_class(**given)
            for given in ({"vocab": vocabulary}, {"vocab": vocabulary, "merges": []})
        ),
        *(lambda given=given: of_class(*given) for given in ((text,), (table,), (table, merges))),
        lambda: of_class(vocab_file=text, merges_file=merges),
        lambda: of_class(vocab=scores),
    ]


def first_that_is_made(tries: list[Any]) -> Any:
    for make in tries:
        try:
            return make()
        except Exception:  # one that wants other arguments, or a library that is not installed
            continue
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_an_honest_processor_saves_is_read(tmp_path):
    made: dict[str, Any] = {}
    refused = {}
    for number, one in enumerate(classes()):
        if inspect.isabstract(one):
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        found = first_that_is_made(ways(one, made, tmp_path))
        if found is None:
            continue
        try:
            found.save_pretrained(folder)
        except NotImplementedError:  # a base class
            continue
        try:
            inspect_processor(Source.of(folder))
            load_processor(Source.of(folder))
            made[one.__name__] = found
        except UploadError as error:
            refused[one.__name__] = str(error)
    for name in {*refused} & {*REFUSED}:
        assert REFUSED[name] in refused.pop(name)
    assert refused == {}
    assert len(made) > 300
