"""A `SentenceTransformer` that gives relative representations, so that different models share one index.

`relative` adds a last module to a model. Texts that one such model encoded can be searched with another, of another
width and training, as long as both were made with the same anchors and settings: nothing is trained or encoded again.

Shapes: B batch, D absolute size, R relative size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from torch import Tensor

from hf_relreps.anchors import AnchorSet, AnchorView
from hf_relreps.backbones import refuse_unknown_settings
from hf_relreps.configuration import RelativeEncoderConfig
from hf_relreps.errors import AnchorError, AnchorIntegrityError, MissingExtraError, StitchingError, UploadError
from hf_relreps.projection import RelativeProjection
from hf_relreps.sources import Source
from hf_relreps.space import PROJECTION_FIELDS, RelativeSpace


try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Module
except ImportError as error:
    raise MissingExtraError(
        "hf_relreps.sentence_transformers needs sentence-transformers 6 or newer. Install it: pip install "
        "'hf_relreps[sentence-transformers]'."
    ) from error


SAVED_FIELDS = ("embedding_size", "anchor_view", "anchor_digest", "format_version")


class RelativeEmbedding(Module):
    """The last module of a `SentenceTransformer`: absolute embeddings (B, D) -> relative representations (B, R).

    It is saved with the embeddings of the anchors and the raw anchors beside them.

    Args:
        config: Holds the space, and what identifies the anchors.
        anchors: The raw anchors.

    Example:
        Uses the names that the page `docs/api/sentence_transformers.md` makes.

        ```python
        >>> from hf_relreps.sentence_transformers import RelativeEmbedding, relative
        >>> model = relative(old_model, anchors.view("en"))
        >>> model[-1].get_embedding_dimension()
        40
        >>> model.save("relative-minilm")  # each module by its own `save`
        >>> RelativeEmbedding.load("relative-minilm", subfolder="2_RelativeEmbedding").anchors.views
        ['en', 'fr']

        ```
    """

    config_file_name = "relreps_config.json"

    def __init__(self, config: RelativeEncoderConfig, anchors: AnchorSet) -> None:
        super().__init__()
        self.config = config
        self.anchors = anchors
        self.projection = RelativeProjection(config)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Put the relative representation in the place of ``sentence_embedding``."""
        features["sentence_embedding"] = self.projection(features["sentence_embedding"])
        return features

    def get_embedding_dimension(self) -> int:
        """R, the number of anchors times the number of similarities."""
        return self.projection.space.size

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for the file that is saved."""
        return {name: getattr(self.config, name) for name in SAVED_FIELDS} | {"space": self.projection.space.to_dict()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.projection.space})"

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the settings, the anchors' embeddings and the raw anchors into a folder."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=True)
        self.anchors.save_pretrained(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:  # type: ignore[override]
        """Read what `save` wrote, from a folder or the Hub.

        Raises:
            UploadError: If the settings are missing.
            AnchorIntegrityError: If the anchors are not those that the settings name.
        """
        names = ("token", "cache_folder", "revision", "local_files_only")
        place = {"subfolder": subfolder} | {name: kwargs[name] for name in names if name in kwargs}
        content = cls.load_config(model_name_or_path, **place)
        if not content:
            raise UploadError(f"{model_name_or_path} has no {subfolder}/{cls.config_file_name}. Save the model again.")
        config = RelativeEncoderConfig.from_dict(content)
        folder = cls.load_dir_path(model_name_or_path, **place)
        anchors = AnchorSet.load(Source.of(str(folder)))
        fingerprint = config.space.fingerprint
        if anchors.fingerprint != fingerprint:
            raise AnchorIntegrityError(
                f"{model_name_or_path} was made with anchors {fingerprint}, beside it lie "
                f"{anchors.fingerprint}. Pull it again."
            )
        module = cls(config, anchors)
        cls.load_torch_weights(model_name_or_path, model=module, **place)
        return module


def relative(
    model: SentenceTransformer | str | Path,
    anchors_view: AnchorView,
    *,
    prompt_name: str | None = None,
    batch_size: int = 64,
    **settings: Any,
) -> SentenceTransformer:
    """A `SentenceTransformer` with the modules of another, that gives relative representations.

    Args:
        model: A model, or its name.
        anchors_view: The anchors as this model reads them: texts.
        prompt_name: Prompt of the model to encode the anchors with; the default one of the model if left out.
        batch_size: Anchors in a batch.
        **settings: Fields of `RelativeSpace`: transform, similarity, basis_ridge, ...

    Raises:
        AnchorError: If the anchors are no texts, or the model is relative already.
        ConfigurationError: If a setting does not exist or has no meaning.

    Example:
        Uses the names that the page `docs/api/sentence_transformers.md` makes.

        ```python
        >>> from hf_relreps.sentence_transformers import check_same_space, relative
        >>> old = relative(old_model, anchors.view("en"))  # or "sentence-transformers/all-MiniLM-L6-v2"
        >>> new = relative(new_model, anchors.view("en"))  # or "sentence-transformers/all-mpnet-base-v2"
        >>> check_same_space(old, new)
        >>> index = old.encode(test["en"])
        >>> new.similarity(new.encode(["a game of cards"]), index).shape  # the index stays as it is
        torch.Size([1, 60])

        ```
    """
    model = model if isinstance(model, SentenceTransformer) else SentenceTransformer(str(model))
    if anchors_view.modality != "text":
        raise AnchorError(
            f"A SentenceTransformer reads texts, view {anchors_view.name!r} holds {anchors_view.modality}s."
        )
    if _relative_module(model) is not None:
        raise AnchorError("The model gives relative representations already. Start from the one it was made from.")
    how: dict[str, Any] = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
    how |= {} if prompt_name is None else {"prompt_name": prompt_name}
    encode: Any = model.encode
    x_AD: Tensor = encode(list(anchors_view.samples), **how)
    refuse_unknown_settings(settings, set(PROJECTION_FIELDS), "A relative space")
    config = RelativeEncoderConfig(
        space=RelativeSpace(fingerprint=anchors_view.fingerprint, num_anchors=len(anchors_view), **settings),
        embedding_size=x_AD.shape[1],
        anchor_view=anchors_view.name,
        anchor_digest=anchors_view.digest,
    )
    module = RelativeEmbedding(config, anchors_view.anchors).to(x_AD.device)
    module.projection.set_anchors(x_AD.float())
    prompts: Any = {"prompts": model.prompts, "default_prompt_name": model.default_prompt_name}
    return SentenceTransformer(modules=[*model, module], device=str(model.device), **prompts).eval()


def check_same_space(model: SentenceTransformer, other: SentenceTransformer) -> None:
    """Raise `StitchingError` unless both give relative representations that may be compared with one another.

    Example:
        Uses the names that the page `docs/api/sentence_transformers.md` makes.

        ```python
        >>> from hf_relreps.sentence_transformers import check_same_space, relative
        >>> check_same_space(relative(old_model, anchors.view("en")), relative(new_model, anchors.view("en")))
        >>> check_same_space(relative(old_model, anchors.view("en")), new_model)
        Traceback (most recent call last):
        hf_relreps.errors.StitchingError: ...

        ```
    """
    spaces = []
    for one in (model, other):
        module = _relative_module(one)
        if module is None:
            raise StitchingError(
                "A model gives absolute embeddings, which no other model shares. Make it relative: "
                "hf_relreps.sentence_transformers.relative(model, anchors.view(name))."
            )
        spaces.append(module.projection.space)
    left, right = spaces
    if not left.fits(right):
        raise StitchingError(
            f"The models do not share an index: one describes texts in {left}, the other in {right}. Make both with "
            "views of one AnchorSet and the same settings."
        )


def _relative_module(model: SentenceTransformer) -> RelativeEmbedding | None:
    return next((module for module in model if isinstance(module, RelativeEmbedding)), None)
