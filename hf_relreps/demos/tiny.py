"""Small encoders and tokenizers made on the spot: nothing to download, seconds to train."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is the words of `texts`.

    Example:
        ```python
        >>> from hf_relreps.demos.tiny import word_tokenizer
        >>> word_tokenizer(["a cat sleeps"]).tokenize("a cat runs")
        ['a', 'cat', '[UNK]']

        ```
    """
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(tokenizer, longest=64)


def wordpiece_tokenizer(texts: Iterable[str], longest: int, vocabulary_size: int = 8000) -> PreTrainedTokenizerFast:
    """A BERT-like tokenizer trained on `texts`; longer ones are cut after `longest` tokens.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.demos.tiny import wordpiece_tokenizer
        >>> wordpiece_tokenizer(train["en"], longest=32).model_max_length
        32

        ```
    """
    trained = BertWordPieceTokenizer(strip_accents=False)
    trained.train_from_iterator(iter(texts), vocab_size=vocabulary_size, show_progress=False)
    return _fast(trained._tokenizer, longest)


def _fast(tokenizer: Tokenizer, longest: int) -> PreTrainedTokenizerFast:
    inputs = ["input_ids", "attention_mask"]
    between = SPECIAL["sep_token"]
    joined = {"pair": f"$A {between} $B", "special_tokens": [(between, tokenizer.token_to_id(between))]}
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", **joined)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=longest, model_input_names=inputs, **SPECIAL
    )


def small_bert(vocabulary_size: int, longest: int, width: int = 128, layers: int = 2) -> BertModel:
    """A BERT with random weights from the global generator: call `transformers.set_seed` first.

    Example:
        ```python
        >>> from hf_relreps.demos.tiny import small_bert
        >>> small_bert(vocabulary_size=100, longest=32, width=64).config.hidden_size
        64

        ```
    """
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=longest,
    )
    return BertModel(config, add_pooling_layer=False)
