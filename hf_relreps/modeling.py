"""`RelativeModel`: any `AutoModel` with its pooling and projection; `RelativeTaskModel`: the same and a decoder.

Shapes: B batch, T tokens, N samples, D absolute size, A anchors, R relative size, C classes.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import ModelOutput, logging

from hf_relreps.anchors import AnchorSet, AnchorView, as_view
from hf_relreps.backbones import (
    BUILDING,
    Freshness,
    Unattached,
    adapter_settings,
    add_adapters,
    base_weights,
    build_backbone,
    building,
    describe_architecture,
    digest_of_weights,
    embed,
    evaluating,
    fetch_base,
    first_difference,
    in_forked_children,
    is_frozen,
    load_backbone,
    load_own_weights,
    measure,
    own_weights,
    refuse_unknown_tokens,
    resolve_config,
    split_settings,
    tower_of,
    without_idle_pooler,
)
from hf_relreps.bounds import Bounded
from hf_relreps.configuration import (
    CLASSIFIERS,
    DECODER_SETTINGS,
    ENCODER_SETTINGS,
    MEAN,
    OF_TOKENS,
    SEVERAL,
    AnyRelativeConfig,
    RelativeConfig,
    RelativeDecoderConfig,
    RelativeEncoderConfig,
    changed,
)
from hf_relreps.conversations import is_conversation
from hf_relreps.decoders import RelativeDecoder, names_of_classes, warn_of_training_mode
from hf_relreps.errors import (
    AnchorError,
    ConfigurationError,
    RelrepsError,
    SampleError,
    UploadError,
    UploadIntegrityError,
)
from hf_relreps.idle_layers import LAST_LAYER, left_out_of
from hf_relreps.image_processors import backend_of, savable
from hf_relreps.pairs import is_pair, mark_of_pairs
from hf_relreps.placement import device_of, in_memory, is_sharded, refuse_empty, share_weights
from hf_relreps.pooling import Interface, default_pooling
from hf_relreps.pretrained import RelativePart, RelativePreTrainedModel
from hf_relreps.projection import (
    CHECKED_ANCHORS,
    PROJECTED_AT_ONCE,
    RelativeProjection,
    checked_rows,
    refuse_directionless,
    refuse_stale,
    wide,
)
from hf_relreps.prompts import ids_of_prompt, with_prompt
from hf_relreps.quantization import quantization_of, to_load
from hf_relreps.samples import as_list, batches, digest_of_vocabulary, explaining, may_read, to_device
from hf_relreps.sources import Source
from hf_relreps.space import RelativeSpace, refuse_unknown_settings, require_fit
from hf_relreps.uploads import explain, locate, stored_sizes, stored_weights, weight_files
from hf_relreps.words import Word


logger = logging.get_logger(__name__)

# What a processor of one modality reads.
READS: dict[type, tuple[str, ...]] = {
    PreTrainedTokenizerBase: OF_TOKENS,
    ImageProcessingMixin: ("image",),
    FeatureExtractionMixin: ("audio",),
}
DECODED_AT_ONCE = 4096  # samples
# Of a whole's load: what concerns its decoder too.
DECODER_ARGUMENTS = ("dtype", "torch_dtype", "ignore_mismatched_sizes", "low_cpu_mem_usage", "offload_folder")
BALANCED = ("auto", "balanced", "balanced_low_0", "sequential")  # a decoder follows its encoder
REFRESHING = threading.RLock()  # held while stale anchors are encoded again: the threads that wait find them exact


@in_forked_children
def _let_go_of_anchors() -> None:
    """The thread that refreshed is not there."""
    global REFRESHING
    REFRESHING = threading.RLock()


@dataclass
class RelativeModelOutput(ModelOutput):
    """Output of a `RelativeModel`.

    Args:
        last_hidden_state: Token vectors (B, T, D), or a feature map (B, D, H, W), of the wrapped model.
        pooler_output: Absolute embeddings (B, D); of an encoder of words those of its tokens (B, T, D).
        relative_embeds: Relative representations (B, R), or (B, T, R) of tokens, float32 or better.
        hidden_states: Of every layer, if requested.
        attentions: Of every layer, if requested.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> output = english.encoder(**english.processor(["a game of cards"], return_tensors="pt"))
        >>> output.relative_embeds.shape, output.pooler_output.shape
        (torch.Size([1, 40]), torch.Size([1, 32]))

        ```
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    relative_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RelativeModel(RelativePart):
    """An encoder: any `AutoModel`, its pooling, and the projection on to anchors.

    Its stored anchors are exact whenever they are read outside a training step: where its weights have changed they
    are encoded again first.

    Example:
        ```python
        >>> from hf_relreps import AnchorSet, RelativeModel
        >>> from hf_relreps.demos.tiny import small_bert, word_tokenizer
        >>> texts = ["a cat sleeps", "a dog runs", "two birds sing"]
        >>> tokenizer = word_tokenizer(texts)
        >>> bert = small_bert(len(tokenizer), longest=64, width=32)  # or the name of any AutoModel
        >>> encoder = RelativeModel.from_encoder(bert, AnchorSet("abc", {"en": texts}).view("en"), tokenizer)
        >>> encoder(**tokenizer(["a dog sleeps"], return_tensors="pt")).relative_embeds.shape
        torch.Size([1, 3])

        ```
    """

    config_class = RelativeEncoderConfig
    config: RelativeEncoderConfig
    part = "encoder"
    base_model_prefix = "encoder"  # the attribute of whole models, and the prefix of its weights in their files
    backbone: PreTrainedModel
    projection: RelativeProjection
    _anchor_nodes: Tensor | None = None
    _state_of_base: str | None = None  # digest of the backbone's weights when they were last found to be its base's
    _interface: Interface | None = None
    _bound_to: int | None = None  # which projection knows this encoder
    _saw_prompt: bool = False
    _saw_pairs: bool = False
    _is_proven: bool = False  # whether a forward pass has shown that the configuration asks for nothing immense
    _refreshes_in: int | None = None  # the process: a child that is forked meanwhile refreshes by itself
    _vocabulary: tuple[Any, str | None] | None = None  # which processor was described last, and as what

    def __init__(
        self, config: RelativeEncoderConfig | RelativeConfig, backbone: PreTrainedModel | None = None
    ) -> None:
        config = config.encoder if isinstance(config, RelativeConfig) else config
        super().__init__(config)
        if not isinstance(config.encoder_config, PreTrainedConfig):
            raise ConfigurationError(
                "An encoder needs encoder_config, but it is None. Build an encoder with "
                "RelativeModel.from_encoder(encoder, view)."
            )
        if backbone is not None:
            self.backbone = without_idle_pooler(backbone, config)
        else:
            self.backbone = Unattached() if config.encoder_is_frozen else build_backbone(config)  # type: ignore[assignment]
        config.pooling = config.pooling or default_pooling(self.backbone, config.modality)
        config.layer = LAST_LAYER if config.layer is None else config.layer  # of uploads that do not say
        self.projection = RelativeProjection(config)
        self._freshness = Freshness()
        self.register_state_dict_pre_hook(_refresh_before_reading)
        self.register_load_state_dict_post_hook(_note_load)
        self._bind()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RelativeProjection):
            init.zeros_(module.anchors_AD)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Anchors are kept equal on all ranks by `AnchorCallback`: no need to send them at every forward."""
        return [name for name, _ in self.named_buffers() if name.endswith("projection.anchors_AD")]

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs; hooks of accelerate move them on from there."""
        return device_of(self)

    @property
    def interface(self) -> Interface:
        """Inputs and outputs of the wrapped model, computed once."""
        if self._interface is None or self._interface.model is not self.backbone:
            self._interface = Interface(self.backbone)
        return self._interface

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        anchors_view: AnchorView | AnchorSet,
        processor: Any = None,
        *,
        config: AnyRelativeConfig | RelativeSpace | None = None,
        freeze_encoder: bool = False,
        batch_size: int = 64,
        **settings: Any,
    ) -> Self:
        """Make any `AutoModel` relative to a view of an anchor set, and encode the anchors.

        Args:
            encoder: Name, folder or loaded model, with or without adapters (LoRA, ...) in it.
            anchors_view: The anchors as this encoder reads them: ``anchors.view("fr")``; or a set with one view.
            processor: Tokenizer or image processor; loaded with `encoder` if that is a name.
            config: Where the settings start from, for example ``RelativeConfig.paper()``, or the configuration of a
                decoder that this encoder is to fit.
            freeze_encoder: Whether the encoder is not trained; an upload references it and does not copy it.
            batch_size: Anchors in a batch while they are encoded.
            **settings: Fields of `RelativeEncoderConfig` and `RelativeSpace`: pooling, layer, prompt, transform,
                similarity, ... For a name also how it is loaded: revision, token, dtype, device_map, ...

        Returns:
            An encoder in evaluation mode, as `from_pretrained` gives one; its weights are those of a loaded model.

        Raises:
            ConfigurationError: If a setting does not exist or has no meaning.
            EmbeddingError: If an anchor's embedding has no direction.
        """
        loader, settings = split_settings(settings)
        view = as_view(anchors_view)
        backbone, processor, source = load_backbone(encoder, processor, **loader)
        for kind, (modality, *also) in READS.items():
            if isinstance(processor, kind):
                refuse_other_modality(view, modality, type(processor).__name__, also)
        own = resolve_config(config, backbone, view, processor, source, settings)
        processor = with_prompt(processor, own.prompt)
        device_map: Any = getattr(backbone, "hf_device_map", None)
        backbone = tower_of(backbone, own.tower)
        if freeze_encoder:
            backbone.requires_grad_(False)
        backbone = measure(backbone, view, processor, own)
        model = cls(own, backbone)
        model.projection.to(device_of(backbone))
        if device_map is not None:  # says to pipelines and Trainer that it is placed
            of_parts = getattr(backbone, "hf_device_map", device_map)
            placed: Any = {f"backbone.{name}".rstrip("."): place for name, place in of_parts.items()}
            model.hf_device_map = placed
        model.encode_anchors(view, processor, batch_size=batch_size)
        return model.eval()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        x: Tensor | None = None,
        edge_index: Tensor | None = None,
        nodes: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> RelativeModelOutput | tuple[Any, ...]:
        """Relative representations (B, R) beside the absolute embeddings (B, D); inputs are the wrapped model's.

        An encoder whose anchors are words reads texts token by token: (B, T, R) and (B, T, D). Where nothing is
        trained, padding is not described: its rows of relative_embeds are zeros.

        Raises:
            ConfigurationError: If it has no weights: they lie on the meta device.
            TypeError: If an input has a name that the wrapped model does not know.
        """
        self.refuse_unknown_inputs(inputs)
        if self.projection.anchors_AD.is_meta:  # they are never offloaded
            refuse_empty(self, "the encoder")
        named: dict[str, Any] = {"input_ids": input_ids}
        named |= {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids}
        named |= {"inputs_embeds": inputs_embeds, "pixel_values": pixel_values}
        named |= {"input_values": input_values, "input_features": input_features, "x": x, "edge_index": edge_index}
        named |= {"nodes": nodes, "output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        given = {name: value for name, value in (named | inputs).items() if value is not None}
        self._refuse_promptless(given.get("input_ids"))
        self._refuse_single_texts(given.get("input_ids"))
        warn_of_training_mode(self)
        given = self._with_mask(given)
        output, x_BD = self._run(given)
        if x_BD.requires_grad and not torch.compiler.is_compiling():
            if self.training:
                self._freshness.note_training()
            else:
                x_BD.register_hook(lambda gradients: self._freshness.note_gradients())
        self._bind()
        result = RelativeModelOutput(
            last_hidden_state=getattr(output, "last_hidden_state", None),
            pooler_output=x_BD,
            relative_embeds=self._described(x_BD, given.get("attention_mask"), self._live_anchors(output)),
            hidden_states=self._handed_on(output, output_hidden_states),
            attentions=getattr(output, "attentions", None),
        )
        return result.to_tuple() if return_dict is False else result

    def _described(self, x_BD: Tensor, mask: Any, live_anchors_AD: Tensor | None) -> Tensor:
        """Relative representations; those of padding are zeros where nothing is trained, for nobody reads them."""
        of_tokens = x_BD.ndim == 3 and isinstance(mask, Tensor) and mask.shape == x_BD.shape[:2]
        trained = live_anchors_AD is not None or (torch.is_grad_enabled() and x_BD.requires_grad)
        if not of_tokens or trained or torch.compiler.is_compiling():
            return self.projection(x_BD, live_anchors_AD)
        mask = mask.to(x_BD.device)
        if mask.device.type != "cpu":  # to leave padding out the host would wait there for how much of it there is
            return self.projection(x_BD).masked_fill(~mask.bool().unsqueeze(-1), 0)
        if mask.all():
            return self.projection(x_BD)
        x_ND = x_BD.flatten(0, 1)
        dtype = torch.promote_types(x_ND.dtype, wide(self.projection.anchors_AD.dtype))
        r_NR = x_ND.new_zeros(len(x_ND), self.config.space.size, dtype=dtype)
        for rows_B in mask.flatten().nonzero().squeeze(1).split(PROJECTED_AT_ONCE):
            r_NR[rows_B] = self.projection(x_ND[rows_B])
        return r_NR.unflatten(0, mask.shape)

    def _handed_on(self, output: Any, asked: bool | None) -> Any:
        """All hidden states if asked for: where the encoder reads one of them, the output holds them anyway."""
        asked = getattr(self.backbone.config, "output_hidden_states", False) if asked is None else asked
        is_last = self.interface.place(self.config.layer) == LAST_LAYER
        return getattr(output, "hidden_states", None) if asked or is_last else None

    def refuse_unknown_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Raise `TypeError` if an input that was given has a name that the wrapped model does not know."""
        unknown = [name for name, value in inputs.items() if value is not None and not self.interface.takes(name)]
        if unknown:
            raise TypeError(
                f"{type(self.backbone).__name__} takes no {', '.join(unknown)}. Its inputs are "
                f"{', '.join(self.interface.names)}."
            )

    def _with_mask(self, given: dict[str, Any]) -> dict[str, Any]:
        """The inputs of texts with a mask made from the padding token, where there is padding and no mask."""
        ids, pad = given.get("input_ids"), self.config.pad_token_id
        if ids is None or pad is None or "attention_mask" in given or torch.compiler.is_compiling():
            return given
        is_padding = ids == pad
        if not is_padding.any():
            return given
        logger.warning_once(
            f"input_ids contain the padding token {pad}, but no attention_mask was given: a mask that excludes this "
            "token is used. Pass the tokenizer's attention_mask to be exact."
        )
        return given | {"attention_mask": (~is_padding).long()}

    def _refuse_promptless(self, ids_BT: Tensor | None) -> None:
        """Raise `SampleError` if no text of a batch holds the prompt that the anchors were encoded with."""
        prompt = self.config.prompt_ids if self.config.prompt else None
        if not prompt or ids_BT is None or ids_BT.ndim != 2 or not may_read(ids_BT, self._saw_prompt):
            return
        windows_BWP = ids_BT.unfold(1, len(prompt), 1) if ids_BT.shape[1] >= len(prompt) else ids_BT.new_empty(0, 0, 1)
        if not (windows_BWP == ids_BT.new_tensor(prompt)).all(-1).any():
            raise SampleError(
                f"None of these {len(ids_BT)} texts begins with the prompt {self.config.prompt!r:.60} that the "
                "encoder's anchors begin with: they were not tokenized with the model's own tokenizer, which adds it. "
                "Tokenize with model.processor, and pass it to Trainer (processing_class=model.processor) and to "
                "pipelines (tokenizer=model.processor)."
            )
        self._saw_prompt = True

    def _refuse_single_texts(self, ids_BT: Tensor | None) -> None:
        """Raise `SampleError` if a row of a batch is one text where the encoder reads two, joined by a token."""
        mark = self.config.pair_mark if self.config.modality == "pair" else None
        if not mark or ids_BT is None or ids_BT.ndim != 2 or not may_read(ids_BT, self._saw_pairs):
            return
        is_pair_B = (ids_BT == mark[0]).sum(1) >= mark[1]
        if not is_pair_B.all():
            raise SampleError(
                f"{int((~is_pair_B).sum())} of {len(ids_BT)} inputs are one text, this encoder reads pairs, in "
                f"which token {mark[0]} stands {mark[1]} times. Tokenize both: model.processor(texts, text_pairs). "
                'Pipelines take {"text": ..., "text_pair": ...}.'
            )
        self._saw_pairs = True

    def _live_anchors(self, output: Any) -> Tensor | None:
        """The anchors' embeddings in this very forward pass of a graph, where gradients are to pass through them."""
        if not (self.training and self.config.anchor_gradient):
            return None
        if self._anchor_nodes is None:
            self._anchor_nodes = torch.tensor(self.anchors.view(self.config.anchor_view).samples)
        x_ND = self.interface.at_layer(output, self.config.layer).last_hidden_state
        return x_ND[self._anchor_nodes.to(x_ND.device)]

    def encode(
        self, samples: Sequence[Any], processor: Any = None, *, batch_size: int = 64, progress: bool = False
    ) -> Tensor:
        """Absolute embeddings (N, D) of raw samples in their order, float32 on the CPU.

        In evaluation mode and without gradients, whatever mode the model is in; the mode is restored after.

        Args:
            samples: N texts, pairs of texts, words, conversations (lists of messages) or images.
            processor: Tokenizer or image processor, if not the model's own.
            batch_size: Samples in a batch; of words, sentences.
            progress: Whether to show a progress bar.

        Raises:
            SampleError: If a sample is empty or of another type.
            EmbeddingError: If an embedding has no direction.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> english.encoder.encode(["a game of cards", "a web server"]).shape
            torch.Size([2, 32])

            ```
        """
        samples = as_list(samples)
        self._refuse_other_samples(samples)
        processor = self.processor if processor is None else with_prompt(processor, self.config.prompt)
        parts = batches(samples, processor, batch_size, self.config.max_length, self.config.padding)
        if progress:
            from tqdm.auto import tqdm

            reads_sentences = self.config.modality == "word"  # each once, whatever the number of its words
            total = None if reads_sentences else -(-len(samples) // batch_size)
            parts = tqdm(parts, total=total, desc="Encoding", unit="batch")
        x_ND = self.encode_batches(parts, len(samples))
        refuse_directionless(x_ND, "sample")
        return x_ND

    def _refuse_other_samples(self, samples: Sequence[Any]) -> None:
        """Raise `SampleError` for texts where words or pairs are read and the reverse: all would be misread.

        And for conversations where texts get a prompt, which is no part of any chat template.
        """
        modality, prompt = self.config.modality, self.config.prompt
        reads_words, reads_pairs = modality == "word", modality == "pair"
        first = samples[0] if samples else None
        if isinstance(first, str) and reads_pairs or is_pair(first) and not reads_pairs:
            expected = 'pairs of texts: {"text": ..., "text_pair": ...}' if reads_pairs else f"{modality}s"
            raise SampleError(
                f"samples[0] is {first!r:.60}, this encoder reads {expected}. Give samples like its anchors, or build "
                "an encoder whose anchors are like these samples."
            )
        if is_conversation(first) and (modality != "text" or prompt):
            raise SampleError(
                "samples[0] is a list, as conversations are, and this encoder reads "
                f"{f'texts after {prompt!r:.60}' if prompt else f'{modality}s'}. Give samples like its anchors, or "
                "build an encoder whose anchors are conversations."
            )
        if isinstance(first, Word) and not reads_words:
            raise SampleError(
                f"samples[0] is the word {first.text!r:.60} in its sentence, this encoder reads "
                f"{self.config.modality}s. Give samples like its anchors, or build an encoder whose anchors are "
                "words: AnchorSet.from_tokens."
            )
        if isinstance(first, str) and reads_words:
            raise SampleError(
                f"samples[0] is the text {first!r:.60}, this encoder reads words in their sentences. Make some of "
                "sentences as lists of words: hf_relreps.words.words_of(sentences). Tokens of texts are read by "
                "encoder(**inputs)."
            )

    @torch.no_grad()
    def encode_batches(
        self,
        parts: Iterable[tuple[Any, dict[str, Tensor]]],
        n: int,
        embed: Callable[[dict[str, Tensor]], Tensor] | None = None,
    ) -> Tensor:
        """Absolute embeddings (n, D) of batches made by `hf_relreps.samples.batches`; rows without one stay zero.

        Args:
            parts: Positions and inputs of each batch.
            n: How many samples.
            embed: What embeds the inputs of a batch, if not `embed_inputs` itself.

        Raises:
            ConfigurationError: If this process holds a share of the weights only.
        """
        if embed is None and is_sharded(self.backbone):
            raise ConfigurationError(
                "This process holds a share of the encoder's weights only, and cannot encode alone. Train with "
                "AnchorCallback, which encodes the anchors on all processes together; encode other samples with the "
                "saved model."
            )
        x_ND = torch.zeros(n, self.config.embedding_size or 0)
        with evaluating(self.backbone):  # not itself: leaving training refreshes the anchors
            for rows, inputs in parts:
                x_BD = (embed or self.embed_inputs)(inputs)
                if len(x_BD) != len(rows):
                    raise ConfigurationError(
                        f"The encoder returned {len(x_BD)} embeddings for {len(rows)} samples, expected one for each. "
                        "Choose another pooling or tower."
                    )
                x_ND[rows] = x_BD.float().cpu()
        return x_ND

    def _run(self, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """`embed`; the first samples that a downloaded encoder reads are watched."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self._source is None or self._is_proven or traced or is_sharded(self.backbone):
            return embed(self.interface, inputs, self.config)
        with Bounded(inputs, sum(weight.numel() for weight in self.backbone.parameters())):
            result = embed(self.interface, inputs, self.config)
        self._is_proven = True
        return result

    @torch.no_grad()
    def embed_inputs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Absolute embeddings (B, D) of what a processor returned, in the mode that the encoder is in.

        Raises:
            SampleError: If the encoder cannot read the inputs.
        """
        refuse_unknown_tokens(self.backbone, inputs)
        try:
            return self._run(to_device(inputs, self.device))[1]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, TypeError) as error:  # inputs of a shape or type that it does not take
            raise SampleError(
                f"The encoder cannot read the output of its processor: {type(error).__name__}: {error}. Pass the "
                "processor that it was trained with."
            ) from error

    def encode_anchors(
        self, anchors_view: AnchorView | AnchorSet, processor: Any = None, *, batch_size: int = 64
    ) -> None:
        """Encode a view of an anchor set with the encoder as it is now, and describe every sample by it from now on.

        Its space becomes that of these anchors. A decoder that was trained on others says so still, and is refused.

        Raises:
            AnchorError: If the view has another number of anchors than the configuration, or another modality.
            EmbeddingError: If an anchor's embedding has no direction.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> model = classifier_of("en", seed=3)
            >>> with torch.no_grad():
            ...     _ = model.encoder.backbone.embeddings.word_embeddings.weight.mul_(1.5)  # as a training would
            >>> model.encoder.encode_anchors(anchors.view("en"))
            >>> model.encoder.check_anchors() < 1e-3
            True

            ```
        """
        view = as_view(anchors_view)
        config = self.config
        refuse_other_modality(view, config.modality, "This encoder")
        if len(view) != config.space.num_anchors:
            raise AnchorError(
                f"View {view.name!r} has {len(view)} anchors, but the configuration says {config.space.num_anchors}. "
                "A decoder reads one number for each anchor: use the set that it was trained with."
            )
        processor = None if processor is None else with_prompt(processor, config.prompt)
        self.put_anchors(self.encode(view.samples, processor, batch_size=batch_size), exact=True)
        self.carry(view.anchors, processor)
        self._anchor_nodes = None
        config.space = config.space.replace(fingerprint=view.fingerprint)
        config.anchor_view = view.name
        config.anchor_digest = view.digest

    def _adopt(self, processor: Any) -> Any:
        """Its own processor, which adds the prompt; what has to be known of how it reads is noted."""
        processor = with_prompt(savable(processor), self.config.prompt)
        self.config.image_backend = backend_of(processor)
        if self.config.prompt:
            self.config.prompt_ids = ids_of_prompt(processor)
        if self.config.modality == "pair":
            with explaining(processor):
                self.config.pair_mark = mark_of_pairs(processor)
            if self.config.pair_mark is None:
                logger.warning_once(
                    f"{type(processor).__name__} joins two texts without a token between them: an encoder cannot tell "
                    "where the first ends. Give its tokenizer a post-processor that adds one."
                )
        return processor

    # -- Anchors that stay exact

    def note_training(self) -> None:
        """Take note that a training step may have changed the weights."""
        if any(weight.requires_grad for weight in self.backbone.parameters()):
            self._freshness.note_training()

    def put_anchors(self, anchors_AD: Tensor, *, exact: bool) -> None:
        """Put embeddings of the anchors (A, D) in place of the stored ones; `exact` if all are of the encoder now."""
        self.projection.set_anchors(anchors_AD)
        if exact:
            self._freshness.note_exact(self.backbone)

    @property
    def anchors_AD(self) -> Tensor:
        """Embeddings of the anchors (A, D), exact outside a training step."""
        self.refresh_anchors()
        return self.projection.anchors_AD

    @property
    def has_stale_anchors(self) -> bool:
        """Whether the weights have changed since the anchors were encoded."""
        return self._freshness.is_stale

    def refresh_anchors(self) -> None:
        """Encode the anchors again if the weights have changed since they were encoded; nothing otherwise.

        It is called by whatever reads the anchors outside a training step. Where the anchors cannot be encoded (the
        raw ones or the processor are missing, or this process holds a share of the weights only) it warns.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> model = classifier_of("en", seed=3).train()
            >>> tokens = model.processor(["a game of cards"], return_tensors="pt")
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> model(**tokens, labels=torch.tensor([0])).loss.backward()
            >>> optimizer.step()
            >>> model.encoder.has_stale_anchors
            True
            >>> _ = model.eval()(**tokens)  # reads them
            >>> model.encoder.has_stale_anchors
            False

            ```
        """
        if torch.compiler.is_compiling() or not self._freshness.is_stale:
            return
        with REFRESHING:  # the thread that refreshes comes here again while it encodes, all others wait
            if self._freshness.is_stale and self._refreshes_in != os.getpid():
                self._refresh()

    def train(self, mode: bool = True) -> Self:
        """Switch modes; what leaves training has exact anchors, for a compiled forward cannot ask whether they are."""
        super().train(mode)
        if not mode:
            self.refresh_anchors()
        return self

    def _refresh(self) -> None:
        self._refreshes_in = os.getpid()
        try:
            view = self.anchors.view(self.config.anchor_view)
            self.put_anchors(self.encode(view.samples), exact=True)
        except (AnchorError, UploadError, ConfigurationError) as error:
            logger.warning_once(
                "The encoder was trained after its anchors were encoded, and they could not be encoded again: all "
                f"relative representations are inexact. {error}"
            )
        finally:
            self._refreshes_in = None

    def _bind(self) -> None:
        """Let the projection refresh the anchors before they are read; a copy of it does not know whose it is."""
        if self._bound_to != id(self.projection):
            for part in self.projection.modules():  # peft puts it into a wrapper
                if isinstance(part, RelativeProjection):
                    part.before_reading = self.refresh_anchors
            self._bound_to = id(self.projection)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if not self.has_stale_anchors:  # a copy of what tells that knows no weights yet
            self._freshness.note_exact(self.backbone)
        self._bound_to = None
        self._bind()

    def check_anchors(self, processor: Any = None, *, k: int = CHECKED_ANCHORS) -> float:
        """Encode a few anchors again: whether the stored embeddings are this encoder's own.

        They are not where the encoder was trained on after its anchors were encoded, or where it reads them with
        another tokenizer, pooling or view. Then every relative representation is wrong, though nothing fails.

        Args:
            processor: Tokenizer or image processor, if not the model's own.
            k: How many anchors, spread over the set.

        Returns:
            The largest distance between a stored and a new embedding, as a share of the stored one's length.

        Raises:
            StaleAnchorsError: If that is more than rounding explains.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> english.encoder.check_anchors() < 1e-3
            True

            ```
        """
        anchors_AD = self.anchors_AD
        view = self.anchors.view(self.config.anchor_view)
        rows = checked_rows(len(view), k)
        stored_KD = anchors_AD[rows.to(anchors_AD.device)].detach().cpu().double()
        own_KD = self.encode([view.samples[i] for i in rows], processor).double()
        return refuse_stale(
            stored_KD,
            own_KD,
            self.dtype,
            "this encoder",
            "The encoder was trained on after they were encoded (train with AnchorCallback), or its tokenizer, "
            f"pooling or view {self.config.anchor_view!r} has changed. Encode them again: "
            "encoder.encode_anchors(encoder.anchors.view(name)).",
        )

    def use_projection(self, like: AnyRelativeConfig | RelativeSpace) -> Self:
        """Describe samples with another space's transform, similarity and change of basis.

        The anchors' embeddings stay, so nothing is encoded again; decoders trained before no longer fit.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> encoder = classifier_of("en", seed=3).encoder
            >>> encoder.use_projection(RelativeConfig.paper()).config.space.similarity
            ('cosine',)

            ```
        """
        space: Any = like if isinstance(like, RelativeSpace) else like.space
        self.config.space = self.config.space.replace(**space.projection)
        self.projection.forget_frame()
        return self

    def share(self) -> RelativeModel:
        """Another encoder with the same weights: its settings, its mode and its anchors are its own.

        Training either trains both.

        Raises:
            ConfigurationError: If it has no weights: they lie on the meta device.
        """
        refuse_empty(self, "the encoder")
        held = [one for one in (self._anchors, self._processor, self._source) if one is not None]
        encoder = share_weights(self, *held)
        encoder._freshness = self._freshness.share()
        return encoder

    # -- Saving and loading

    def describe_weights(self) -> dict[str, Any]:
        """The space, how the encoder is read, what its anchors are, its architecture and its vocabulary."""
        config = self.config
        space = {f"space.{name}": value for name, value in config.space.to_dict().items()}
        names = ("modality", "pooling", "layer", "tower", "max_length", "anchor_view", "anchor_digest")
        prompt = {"prompt": config.prompt or ""}  # none is something to say: what is None is not compared
        architecture = {f"encoder_config.{k}": v for k, v in describe_architecture(config.encoder_config).items()}
        reading = {name: getattr(config, name) for name in names} | prompt
        reading |= {"vocabulary": self._words(), "layers_left_out": left_out_of(config.encoder_config)}
        return space | reading | architecture

    def _words(self) -> str | None:
        """Digest of the tokenizer's vocabulary, that of the loaded weights where the processor was not fetched yet."""
        if self._processor is None or self.config.modality not in OF_TOKENS:
            return self._loaded_meaning.get("vocabulary")
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        key = (id(tokenizer), len(tokenizer) if hasattr(tokenizer, "__len__") else 0)  # tokens may be added
        if self._vocabulary is None or self._vocabulary[0] != key:
            self._vocabulary = (key, digest_of_vocabulary(tokenizer))
        return self._vocabulary[1]

    def _prepare_save(self) -> None:
        """Encode the anchors again if the encoder was trained since; warn where they still are not its own."""
        self.refresh_anchors()
        if isinstance(self.backbone, Unattached) or not self.has_raw_anchors or is_sharded(self.backbone):
            return
        try:
            self.check_anchors()
        except RelrepsError as error:
            logger.warning("The saved anchor embeddings may not match the encoder. %s", error)

    def _refer_to_base(self, state_dict: Mapping[str, Tensor]) -> set[str]:
        """Decide whether the upload can refer to the encoder's base, and note that in the configuration."""
        if isinstance(self.backbone, Unattached):
            raise UploadError("This encoder has no weights yet: load it with from_pretrained before you save it.")
        config = self.config
        config.encoder_adapters = adapter_settings(self.backbone)
        config.encoder_quantization = quantization_of(self, self.backbone)
        # Where they are given: a rank of a sharded training that saves alone cannot gather them again.
        weights = {k.removeprefix("backbone."): v for k, v in state_dict.items() if k.startswith("backbone.")}
        config.encoder_is_frozen = is_frozen(self.backbone) and self._is_its_base(weights)
        if not config.encoder_is_frozen:
            config.base_model_digest = None
            return set()
        own = own_weights(self.backbone, weights)
        return {f"backbone.{name}" for name in weights if name not in own}

    def _is_its_base(self, of_backbone: Mapping[str, Tensor]) -> bool:
        """Whether the base on the Hub gives exactly these weights; asked once, unless they change."""
        config, weights = self.config, base_weights(self.backbone, of_backbone)
        state = digest_of_weights(weights)
        if state == self._state_of_base:
            return True
        name = config.base_model_name_or_path
        if name is None:
            logger.warning("The frozen encoder is stored with the upload: it has no name on the Hub.")
            return False
        try:
            base, commit = fetch_base(config)
        except OSError as error:
            logger.warning("The frozen encoder is stored with the upload: its base %s cannot be read: %s", name, error)
            return False
        differs = first_difference(weights, base_weights(base))
        if differs:
            logger.warning("The encoder is stored with the upload: its %s differs from %s.", differs, name)
            return False
        config.base_model_revision, config.base_model_digest = commit, digest_of_weights(base_weights(base))
        self._state_of_base = state
        return True

    @classmethod
    def _resolve_config(
        cls, name: str, kwargs: dict[str, Any], stored: dict[str, Any]
    ) -> tuple[AnyRelativeConfig, dict[str, Any]]:
        config, kwargs = super()._resolve_config(name, kwargs, stored)
        if isinstance(config, RelativeEncoderConfig) and config.encoder_quantization:
            vars(config)["quantization_config"] = to_load(config.encoder_quantization)  # where transformers looks
        return config, kwargs

    def _complete(self, source: Source) -> None:
        """Fetch the base that the upload refers to, check it, and put the upload's own adapters into it.

        Only now, after the load: what a load finds in the model without weights for it, it would fill at random.
        """
        vars(self.config).pop("quantization_config", None)  # `encoder_quantization` says it
        in_memory(self.projection)  # it is small, and read between passes
        self._freshness.note_exact(self.backbone)
        if not isinstance(self.backbone, Unattached):
            return
        config = self.config
        try:
            base, _ = fetch_base(config, **source.arguments)
        except OSError as error:
            raise UploadError(
                f"{source} references the encoder {config.base_model_name_or_path} at commit "
                f"{config.base_model_revision}, which cannot be read: {error} Ask its author to store the encoder in "
                "the upload."
            ) from error
        found = digest_of_weights(base_weights(base))
        if found != config.base_model_digest:
            raise UploadIntegrityError(
                f"{source} references the encoder {config.base_model_name_or_path} with weights of digest "
                f"{config.base_model_digest}, but found {found}: the base was changed, or another version of "
                "transformers loads it differently. Ask its author to store the encoder in the upload."
            )
        base.requires_grad_(False)
        if config.encoder_adapters:
            stored = stored_sizes(weight_files(source.below("encoder")))
            with building(stored):
                add_adapters(base, config.encoder_adapters, stored.largest)
            weights = stored_weights(source.below("encoder"))
            named = {name.removeprefix("encoder."): tensor for name, tensor in weights.items()}
            own = {k.removeprefix("backbone."): v for k, v in named.items() if k.startswith("backbone.")}
            load_own_weights(base, own, source)
        if base.dtype == (config.dtype or base.dtype):
            self._state_of_base = found
        place: dict[str, Any] = {"device": self.projection.anchors_AD.device, "dtype": config.dtype}
        self.backbone = base.to(**place).eval()
        self._freshness.note_exact(self.backbone)

    def get_input_embeddings(self) -> nn.Module:
        """Those of the wrapped model."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put others into the wrapped model: `resize_token_embeddings` does so."""
        self.backbone.set_input_embeddings(value)


class RelativeTaskModel(RelativePreTrainedModel):
    """An encoder and a decoder; subclasses name the inputs of their modality, which the Trainer reads."""

    config_class = RelativeConfig
    config: RelativeConfig
    base_model_prefix = "encoder"
    modality: str  # an empty one reads any
    reads_also: tuple[str, ...] = ()  # other modalities
    decoder_types: tuple[str, ...] = CLASSIFIERS
    new_decoder: dict[str, Any] = {}  # settings of a new decoder, unless others are asked for
    encoder: RelativeModel
    decoder: RelativeDecoder

    def __init__(
        self, config: RelativeConfig, encoder: RelativeModel | None = None, decoder: RelativeDecoder | None = None
    ) -> None:
        super().__init__(config)
        _refuse_other_task(type(self), config)
        self.encoder = RelativeModel(config.encoder) if encoder is None else encoder
        self.decoder = RelativeDecoder(config.decoder) if decoder is None else decoder
        config.encoder, config.decoder = self.encoder.config, self.decoder.config
        if not self.decoder.has_raw_anchors:
            self.decoder.carry(self.encoder._anchors, None)
        self._note_placement()
        self.post_init()

    def _note_placement(self) -> None:
        """Say to pipelines, `Trainer` and saves that the encoder was placed by a device map, if it was."""
        maps: dict[str, Any] = {name: getattr(part, "hf_device_map", None) for name, part in self.parts.items()}
        if maps["encoder"] is not None:
            maps["decoder"] = maps["decoder"] or {"": str(self.decoder.device)}
            places = {f"{name}.{below}".rstrip("."): at for name, of in maps.items() for below, at in of.items()}
            self.hf_device_map = {"": str(self.encoder.device)} | places  # pipelines send inputs to the first

    @classmethod
    def reads(cls, modality: str) -> bool:
        """Whether encoders of this modality may be its own."""
        return modality in (cls.modality, *cls.reads_also) or not cls.modality

    @classmethod
    def from_parts(cls, encoder: RelativeModel, decoder: RelativeDecoder) -> Self:
        """The whole of two parts, which it takes as they are.

        Raises:
            StitchingError: If they do not fit.
        """
        require_fit(encoder.config.space, decoder.config.space)
        return cls(RelativeConfig(encoder=encoder.config, decoder=decoder.config), encoder, decoder)

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        anchors_view: AnchorView | AnchorSet | None = None,
        processor: Any = None,
        *,
        config: AnyRelativeConfig | RelativeSpace | None = None,
        freeze_encoder: bool = False,
        batch_size: int = 64,
        **settings: Any,
    ) -> Self:
        """An encoder made relative, with a new decoder to be trained.

        Args:
            encoder: Name, folder or loaded model: any `AutoModel`, or a loaded `RelativeModel` whose anchors are kept.
            anchors_view: The anchors as this encoder reads them; none for a `RelativeModel`.
            processor: Tokenizer or image processor; loaded with `encoder` if that is a name.
            config: Where the settings start from, for example ``RelativeConfig.paper()``.
            freeze_encoder: Whether training leaves the encoder as it is.
            batch_size: Anchors in a batch while they are encoded.
            **settings: As for `RelativeModel.from_encoder`, with num_labels, id2label, label2id, problem_type and the
                fields of `RelativeDecoderConfig`; for a `RelativeModel` the latter alone.

        Returns:
            A model in evaluation mode, as `from_pretrained` gives one. `Trainer` switches to training mode; a loop of
            your own begins with ``model.train()``.

        Raises:
            AnchorError: If there is no view, or it is of another modality than this class reads.
            ConfigurationError: If a setting does not exist or has no meaning.
        """
        new = {name: value for name, value in settings.items() if name in DECODER_SETTINGS}
        rest = {name: value for name, value in settings.items() if name not in DECODER_SETTINGS}
        if isinstance(encoder, RelativeModel):
            frozen = {"freeze_encoder": True} if freeze_encoder else {}
            cls._refuse_other_encoder(encoder, anchors_view, rest | frozen)
            relative = encoder.share()
        else:
            if anchors_view is None:
                raise AnchorError(f"{cls.__name__}.from_encoder needs a view of an anchor set: anchors.view(name).")
            view = as_view(anchors_view)
            refuse_other_modality(view, cls.modality, cls.__name__, cls.reads_also)
            refuse_unknown_settings(split_settings(rest)[1], ENCODER_SETTINGS | DECODER_SETTINGS, cls.__name__)
            how: dict[str, Any] = {"config": config, "freeze_encoder": freeze_encoder, "batch_size": batch_size}
            relative = RelativeModel.from_encoder(encoder, view, processor, **how, **rest)
        return cls.from_parts(relative, cls._new_decoder(relative, config, new)).eval()

    @classmethod
    def _new_decoder(cls, encoder: RelativeModel, config: Any, settings: dict[str, Any]) -> RelativeDecoder:
        start = getattr(config, "decoder", config)
        start = start if isinstance(start, RelativeDecoderConfig) else RelativeDecoderConfig()
        of_encoder = {"space": encoder.config.space, "modality": encoder.config.modality}
        of_encoder |= {"anchor_view": encoder.config.anchor_view, "head_pair": None}
        names = names_of_classes(settings)
        settings = settings | {"id2label": names} if names else settings
        own = changed(start, of_encoder | cls.new_decoder | settings)
        if own.decoder_type in ("head", MEAN, SEVERAL):
            raise ConfigurationError(
                f"decoder_type={own.decoder_type!r} is not trained from scratch. A 'head' comes from an existing "
                "classifier, and several decoders are trained one by one. Stitch them: stitch(encoder, classifier, "
                "anchors=anchors), stitch(encoder, {'name': decoder}); or train an 'mlp' or 'linear' decoder."
            )
        _refuse_other_task(cls, RelativeConfig(encoder=encoder.config, decoder=own))
        with BUILDING:
            return RelativeDecoder(own).to(encoder.projection.anchors_AD.device)  # type: ignore[arg-type]

    @classmethod
    def _refuse_other_encoder(
        cls, encoder: RelativeModel, anchors_view: AnchorView | AnchorSet | None, settings: Mapping[str, Any]
    ) -> None:
        """An encoder that is relative already keeps its anchors and its settings."""
        config = encoder.config
        if not cls.reads(config.modality):
            raise AnchorError(
                f"{cls.__name__} reads {cls.modality}s, but this encoder reads {config.modality}s. Use the class of "
                "that modality."
            )
        view = None if anchors_view is None else as_view(anchors_view)
        if view is not None and view.digest != config.anchor_digest:
            raise AnchorError(
                f"The encoder uses view {config.anchor_view!r} of {config.space.anchors}, but view {view.name!r} of "
                f"{view.fingerprint[:16]} was given. Leave it out, or first call encode_anchors(view)."
            )
        if settings:
            raise ConfigurationError(
                f"{', '.join(sorted(settings))} cannot be set for a new decoder on a RelativeModel; it takes "
                f"{', '.join(sorted(DECODER_SETTINGS))}. Set the encoder's own settings when you make it relative, or "
                "with encoder.use_projection(config)."
            )

    # -- Loading and saving, part by part

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load both parts of an upload, each with its own dtype.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            *args: As for any `PreTrainedModel`.
            **kwargs: As for any `PreTrainedModel`: `revision`, `token`, `dtype`, `device_map`, ... `id2label` gives
                its classes other names.

        Raises:
            ConfigurationError: If the upload reads another modality than this class, has another number of classes
                than `num_labels` asks for, or the same names of classes as `id2label` in another order; or if a
                keyword asks for other settings.
            StitchingError: If its parts do not fit together.
            UploadError: If the upload lacks a part, or is not one of this library.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        source = locate(pretrained_model_name_or_path, None, kwargs.pop("subfolder", None) or "", kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        adapter, adapter_name = dict(kwargs.pop("adapter_kwargs", None) or {}), kwargs.pop("adapter_name", "default")
        adapter_place = adapter.pop("_adapter_model_path", None)
        may_rename = kwargs.keys() & {"config", "id2label"}
        config, kwargs = cls._resolve_config(source, kwargs)
        _refuse_other_task(cls, config)
        stored = load_whole_config(source, {})[0].decoder.to_dict() if may_rename else {}
        named = RelativeDecoder._take_names(config.decoder, stored, str(source)) if may_rename else {}
        info: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        for name, part_class in (("encoder", RelativeModel), ("decoder", RelativeDecoder)):
            how = _of_part(name, kwargs, parts.get("encoder"))
            how |= {"config": getattr(config, name), "subfolder": source.folder, **source.arguments}
            loaded: Any = part_class.from_pretrained(source.name, output_loading_info=True, **how)
            parts[name] = loaded[0]
            _add_info(info, name, loaded[1])
        require_fit(parts["encoder"].config.space, parts["decoder"].config.space)
        for name, value in named.items():
            setattr(parts["decoder"].config, name, value)
        model = cls(config, **parts)
        if adapter_place is not None:  # of peft, around the whole: `AutoModel` led from it to this base
            model.load_adapter(adapter_place, adapter_name=adapter_name, adapter_kwargs=adapter)
        model.eval()
        return (model, info) if wants_info else model  # type: ignore[return-value]  # as transformers does

    @classmethod
    def _resolve_config(cls, source: Source, kwargs: dict[str, Any]) -> tuple[RelativeConfig, dict[str, Any]]:
        config = kwargs.pop("config", None)
        if isinstance(config, RelativeConfig):
            return copy.deepcopy(config), kwargs
        of_weights = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
        config, kwargs = load_whole_config(source, kwargs)
        return config, kwargs | of_weights

    @property
    def parts(self) -> dict[str, Any]:
        """Both by their names."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    @property
    def anchors(self) -> AnchorSet:
        """The raw anchors: see `RelativeModel.anchors`."""
        return self.encoder.anchors

    @anchors.setter
    def anchors(self, anchors: AnchorSet) -> None:
        self.encoder.anchors = anchors
        self.decoder.carry(anchors, None)

    @property
    def processor(self) -> Any:
        """The tokenizer, image processor or feature extractor of the encoder; see `RelativeModel.processor`."""
        return self.encoder.processor

    @processor.setter
    def processor(self, processor: Any) -> None:
        self.encoder.processor = processor

    @property
    def has_raw_anchors(self) -> bool:
        """Whether the anchors are at hand or can be fetched."""
        return self.encoder.has_raw_anchors

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs."""
        return self.encoder.device

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        return [f"encoder.{name}" for name in self.encoder._ddp_params_and_buffers_to_ignore]

    def require_fit(self) -> None:
        """Raise `StitchingError` if the encoder no longer lives in the space that the decoder was trained on."""
        if torch.compiler.is_compiling():
            return
        for name, part in self.parts.items():
            if getattr(self.config, name) is not part.config:  # a part was exchanged
                setattr(self.config, name, part.config)
        if self.config.encoder.space != self.config.decoder.space:
            require_fit(self.config.encoder.space, self.config.decoder.space)

    def _prepare_save(self) -> None:
        self.require_fit()
        self.encoder._prepare_save()

    def _refer_to_base(self, state_dict: Mapping[str, Tensor]) -> set[str]:
        of_encoder = {k.removeprefix("encoder."): v for k, v in state_dict.items() if k.startswith("encoder.")}
        names = {f"encoder.{name}" for name in self.encoder._refer_to_base(of_encoder)}
        places = [self.encoder._source, self.decoder._source]
        origins = [place.name for place in places if place is not None and not place.is_local]
        if self.decoder._source is None and self.decoder.config.head_name_or_path:
            origins.append(self.decoder.config.head_name_or_path)
        if len(set(origins)) == 2:
            self.config.stitched_from = origins
        return names

    def get_input_embeddings(self) -> nn.Module:
        """Those of the wrapped model."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put others into the wrapped model: `resize_token_embeddings` does so."""
        self.encoder.set_input_embeddings(value)


def as_encoder(model: Any) -> RelativeModel:
    """A relative encoder as it is, and that of a whole model.

    Raises:
        ConfigurationError: If it is neither.
    """
    model = model.encoder if isinstance(model, RelativeTaskModel) else model
    if not isinstance(model, RelativeModel):
        raise ConfigurationError(
            f"The encoder is a {type(model).__name__}, expected a RelativeModel. Make an AutoModel relative: "
            "RelativeModel.from_encoder(model, anchors.view(name), processor)."
        )
    return model


def decode(encoder: RelativeModel, decoders: Mapping[str, RelativeDecoder], x_ND: Tensor) -> dict[str, Tensor]:
    """Decoder name -> logits (N, C) on the CPU, of absolute embeddings (N, D).

    Each chunk is projected once, so memory does not grow with relative representations.
    """
    logits: dict[str, list[Tensor]] = {name: [] for name in decoders}
    for x_BD in x_ND.split(DECODED_AT_ONCE):
        r_BR = encoder.projection(x_BD.to(encoder.device))
        for name, decoder in decoders.items():
            logits[name].append(decoder(relative_embeds=r_BR.to(decoder.device)).logits.float().cpu())
    return {name: torch.cat(chunks) for name, chunks in logits.items()}


def load_whole_config(source: Source, kwargs: dict[str, Any]) -> tuple[RelativeConfig, dict[str, Any]]:
    """The configuration of a whole upload, and the keywords that it did not take.

    Raises:
        UploadError: If the upload is not a whole model of this library.
    """
    content = source.json("config.json")
    if content is None or content.get("model_type") != RelativeConfig.model_type:
        missing = "decoder" if (content or {}).get("model_type") != RelativeDecoderConfig.model_type else "encoder"
        raise explain(source, missing, None)
    try:
        config: Any = RelativeConfig.from_pretrained(
            source.name, return_unused_kwargs=True, **kwargs | source.arguments | source.subfolder_argument
        )
    except (RelrepsError, MemoryError):
        raise
    except Exception as error:  # a configuration from outside makes other code fail in any way
        raise explain(source, None, error) from error
    return config[0], config[1]


def _of_part(name: str, kwargs: Mapping[str, Any], encoder: RelativeModel | None) -> dict[str, Any]:
    """Those of the keywords of a whole's load that concern a part."""
    how = {key: value for key, value in kwargs.items() if key not in ("device_map", "state_dict")}
    how = how if name == "encoder" else {key: how[key] for key in DECODER_ARGUMENTS if key in how}
    device_map, state_dict = kwargs.get("device_map"), kwargs.get("state_dict")
    if isinstance(device_map, Mapping):
        below = {
            key.removeprefix(name).lstrip("."): place
            for key, place in device_map.items()
            if key in ("", name) or key.startswith(f"{name}.")
        }
        how |= {"device_map": below or None}
    elif device_map is not None and (encoder is None or str(device_map) not in BALANCED):
        how |= {"device_map": device_map}
    elif device_map is not None and encoder is not None:
        how |= {"device_map": {"": encoder.device}}
    if state_dict is not None:
        how |= {"state_dict": {key: value for key, value in state_dict.items() if key.startswith(f"{name}.")}}
    return how


def _add_info(info: dict[str, Any], name: str, of_part: Mapping[str, Any]) -> None:
    """Put what a part's load says beside what the other's says, with the names of the whole."""
    for key, value in of_part.items():
        if isinstance(value, set):
            info.setdefault(key, set()).update(value)
        elif isinstance(value, list):
            info.setdefault(key, []).extend(value)
        else:
            info.setdefault(key, value)


def _refresh_before_reading(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """A state dict is read outside a training step."""
    assert isinstance(module, RelativeModel)
    module.refresh_anchors()


def _note_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Weights that came with their anchors are exact; weights that came without leave the anchors stale."""
    assert isinstance(module, RelativeModel)
    for part in module.projection.modules():
        if isinstance(part, RelativeProjection) and part.has_loaded:
            part.has_loaded = False
            module._freshness.note_exact(module.backbone)


def _refuse_other_task(task_class: Any, config: RelativeConfig) -> None:
    """Raise `ConfigurationError` if a class of whole models does not do what a configuration describes."""
    if not task_class.reads(config.modality):
        raise ConfigurationError(
            f"{task_class.__name__} reads {task_class.modality}s, but this encoder reads {config.modality}s. Use the "
            "class of that modality."
        )
    if config.decoder.decoder_type == SEVERAL and SEVERAL not in task_class.decoder_types:
        raise ConfigurationError(
            f"{task_class.__name__} has one decoder, this model has {', '.join(config.decoder.decoders or {})}. Use "
            "RelativeModelWithDecoders, and its select(name) for one of them."
        )
    if config.decoder.decoder_type not in task_class.decoder_types:
        raise ConfigurationError(
            f"decoder_type={config.decoder.decoder_type!r} does not exist for {task_class.__name__}. Choose one of "
            f"{', '.join(task_class.decoder_types)}."
        )


def refuse_other_modality(view: AnchorView, modality: str, who: str, also: Sequence[str] = ()) -> None:
    """Raise `AnchorError` if the anchors are not of the modality that somebody reads."""
    if view.read_as not in (modality, *also):
        fitting = [name for name in view.anchors.views if view.anchors.view(name).read_as == modality]
        raise AnchorError(
            f"{who} reads {modality}s, but the view {view.name!r} contains {view.modality}s. Use a view of "
            f"{modality}s (there is {', '.join(map(repr, fitting)) or 'none'}), or the class of that modality."
        )
