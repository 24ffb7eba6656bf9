"""A `SentenceTransformer` of the new model whose embeddings lie in the space of the old one.

Shapes: B batch, D width of the old model, E width of the new one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from hf_relreps.errors import EmbeddingError, MissingExtraError
from hf_relreps.migration.fitting import FACTS_FILE, Migration
from hf_relreps.printing import printable
from hf_relreps.sentence_transformers import load_with_module, refuse_truncated


try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Module
except ImportError as error:
    raise MissingExtraError(
        "hf_relreps.migration.adapters needs sentence-transformers 6 or newer. Install it: pip install "
        "'hf_relreps[sentence-transformers]'."
    ) from error


CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, relative-representations, index-migration]{base}
---

# Queries of a new embedding model for the index of an old one

```
{report}
```

The expected recall is the share of held-out pairs whose nearest of {stored} stored documents, by the old model, is
among the first ten that this model finds. No labels were used.

```python
from hf_relreps.migration.adapters import load_adapter

queries = load_adapter("this repository").encode_query(["a game of cards"])  # by cosine
```

The upload contains the old and new vectors of the {pairs} pairs. Embeddings can reveal their texts: keep it as private
as the index.
"""


class TranslatedEmbedding(Module):
    """The last module of a `SentenceTransformer`: embeddings (B, E) -> directions in the old space (B, D).

    It is saved with the migration: the pairs' vectors and what was chosen.

    Args:
        migration: Made by `hf_relreps.migration.fit`.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import fit
        >>> from hf_relreps.migration.adapters import TranslatedEmbedding
        >>> module = TranslatedEmbedding(fit(index[:300], new_vectors[:300]))
        >>> module.get_embedding_dimension()
        16
        >>> module.save("module")
        >>> TranslatedEmbedding.load("module").migration.facts == module.migration.facts
        True

        ```
    """

    config_file_name = FACTS_FILE

    def __init__(self, migration: Migration) -> None:
        super().__init__()
        self.migration = migration

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Put the translated embedding in the place of ``sentence_embedding``."""
        features["sentence_embedding"] = self.migration.queries(features["sentence_embedding"])
        return features

    def get_embedding_dimension(self) -> int:
        """D, the width of the old model."""
        return self.migration.facts.old_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.migration})"

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the migration into a folder."""
        self.migration.save(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:  # type: ignore[override]
        """Read what `save` wrote, from a folder or the Hub.

        Raises:
            UploadError: If a file is missing, or was written by another version.
            UploadIntegrityError: If the pairs are not those that the facts describe.
        """
        names = ("token", "cache_folder", "revision", "local_files_only")
        place = {name: kwargs[name] for name in names if name in kwargs}
        return cls(Migration.load(Path(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **place) or "")))


def query_adapter(model: SentenceTransformer | str | Path, migration: Migration) -> SentenceTransformer:
    """The new model with embeddings in the space of the old one, so that its queries can search the index as it is.

    Args:
        model: The new model, or its name.
        migration: Fitted on vectors of this model.

    Raises:
        ConfigurationError: If the model cuts embeddings (`truncate_dim`), which would cut the translated ones.
        EmbeddingError: If the migration was fitted on embeddings of another width.

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import fit
        >>> from hf_relreps.migration.adapters import load_adapter, query_adapter
        >>> migration = fit(old_index[:150], new_model.encode(texts[:150]), stored=old_index)
        >>> adapter = query_adapter(new_model, migration)  # push_to_hub, save, ... as of any model
        >>> adapter.encode(["a game of cards"]).shape == old_index[:1].shape
        True
        >>> adapter.save("adapter")
        >>> load_adapter("adapter").get_embedding_dimension()
        32

        ```
    """
    if not isinstance(model, SentenceTransformer):
        model = load_with_module(str(model))
    facts = migration.facts
    refuse_truncated(model)
    if model.get_embedding_dimension() != facts.new_size:
        raise EmbeddingError(
            f"The model gives {model.get_embedding_dimension()} numbers, the migration was fitted on "
            f"{facts.new_size}. Fit it on pairs that this model encoded."
        )
    adapter = _of_modules([*model, TranslatedEmbedding(migration)], model, similarity_fn_name="cosine")
    adapter._model_card_text = _card(migration)  # type: ignore[assignment]  # None until a model is saved
    return adapter


def _card(migration: Migration) -> str:
    facts = migration.facts
    named = facts.new_model is not None and facts.new_model.count("/") == 1  # a repository
    base = f"\nbase_model: {json.dumps(facts.new_model)}" if named else ""
    return CARD.format(report=printable(migration.report), base=base, pairs=facts.pairs, stored=facts.stored)


def new_model_of(adapter: SentenceTransformer) -> SentenceTransformer:
    """The new model by itself: an adapter without its last module."""
    return _of_modules(list(adapter)[:-1], adapter)


def _of_modules(modules: list[Any], like: SentenceTransformer, **how: Any) -> SentenceTransformer:
    prompts: Any = {"prompts": like.prompts, "default_prompt_name": like.default_prompt_name}
    return SentenceTransformer(modules=modules, device=str(like.device), **prompts, **how).eval()


def load_adapter(name: str | Path, **arguments: Any) -> SentenceTransformer:
    """Load a saved `query_adapter` without ``trust_remote_code``: no code from the upload runs.

    Args:
        name: Folder or repository.
        **arguments: As for `SentenceTransformer`: device, revision, token, ...

    Example:
        Uses the names that the page `docs/api/migration.md` makes.

        ```python
        >>> from hf_relreps.migration import fit
        >>> from hf_relreps.migration.adapters import load_adapter, query_adapter
        >>> query_adapter(new_model, fit(old_index[:150], new_model.encode(texts[:150]))).save("my-adapter")
        >>> load_adapter("my-adapter").encode(["a game of cards"]).shape
        (1, 32)

        ```
    """
    return load_with_module(name, TranslatedEmbedding, **arguments)
