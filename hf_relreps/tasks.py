"""What a whole model does: classes of texts, words, images, sounds and nodes, and images drawn again.

Shapes: B batch, T tokens, F frequencies or features of a node, N nodes, E edges, D absolute size, R relative size,
C classes or channels, H and W height and width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_relreps.anchors import AnchorSet, AnchorView, as_view
from hf_relreps.backbones import evaluating
from hf_relreps.configuration import PAIR, RelativeDecoderConfig
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.errors import ConfigurationError, RelrepsError, SampleError, StitchingError
from hf_relreps.modeling import RelativeModel, RelativeTaskModel, decode, refuse_other_modality
from hf_relreps.pairs import FIELDS
from hf_relreps.samples import batches, check_samples, to_device
from hf_relreps.translation.classifiers import relative_parts
from hf_relreps.words import IGNORED, words_of


# What processors make for one model or another beside the main inputs.
TEXT_INPUTS = ("bbox",)
IMAGE_INPUTS = (
    *("pixel_attention_mask", "pixel_mask", "pixel_values_local", "high_res_pixel_values", "image_pixel_values"),
    *("flattened_patches", "patches_grid", "spatial_shapes", "aspect_ratio_ids", "aspect_ratio_mask", "num_tiles"),
    *("image_sizes", "target_sizes", "image_grid_thw", "image_grid_hw", "image_grids", "image_position_ids"),
    *("image_attention_mask", "image_num_crops", "image_token_pooling", "images_per_sample", "batch_num_images"),
    *("num_crops", "num_local_patches", "num_soft_tokens_per_image", "prompt_depth", "attention_mask", "images"),
    *("image_patches", "image_input_ids", "image_merge_sizes", "image_patch_indices_per_batch"),
    *("image_patch_indices_per_subsequence",),
)
AUDIO_INPUTS = (
    *(
        "input_features_mask",
        "input_values_mask",
        "padding_mask",
        "is_longer",
        "chunk_sample_lengths",
        "noise_sequence",
    ),
    *("audio", "audio_input_features", "audio_attention_mask", "audio_embed_sizes", "beatsteps"),
    *("extrapolated_beatstep", "n_quantizers"),
)
# What suits drawing where nothing else is chosen. Noise makes a classifier tolerant of another encoder; here it makes
# own and stitched images worse (docs/modalities.md).
DRAWING = {"decoder_type": "image", "decoder_noise": 0.0, "decoder_dropout": 0.0}

# With labels, spread over all: what a decoder is fitted to. With 1,500 anchors that takes 1 GB of memory.
MOST_TOKENS = 20_000


@dataclass
class RelativeClassifierOutput(ModelOutput):
    """Output of a relative classifier: loss (if there were labels), logits (B, C), relative_embeds (B, R).

    Of tokens logits (B, T, C) and relative_embeds (B, T, R).

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> output = english(**english.processor(["a game of cards"], return_tensors="pt"))
        >>> output.logits.shape, output.relative_embeds.shape, output.loss
        (torch.Size([1, 11]), torch.Size([1, 40]), None)

        ```
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    relative_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def naming(*more: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Name more inputs in the signature of a `forward` that takes any: the Trainer drops columns that it lacks."""

    def decorate(forward: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(forward)
        *named, rest = signature.parameters.values()
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in more]
        forward.__signature__ = signature.replace(parameters=[*named, *added, rest])  # type: ignore[attr-defined]
        return forward

    return decorate


class RelativeClassifier(RelativeTaskModel):
    """An encoder and a decoder that gives logits; subclasses name the inputs of their modality."""

    @classmethod
    def from_classifier(
        cls,
        classifier: str | Path | PreTrainedModel,
        anchors_view: AnchorView | AnchorSet,
        processor: Any = None,
        *,
        samples: Sequence[Any] | None = None,
        method: str = "kernel_ridge",
        freeze_encoder: bool = False,
        batch_size: int = 64,
    ) -> Self:
        """An ordinary fine-tuned classifier as a relative model, without training: its encoder and its own head.

        It keeps its classes and, with a few hundred anchors, its score. Its decoder works with other encoders, and its
        encoder with other decoders. How well is measured in `docs/translation.md`.

        Args:
            classifier: Name, folder or loaded model of `AutoModelForSequenceClassification` or its like for tokens,
                images and audio. Weights are shared with it: training the result trains it too.
            anchors_view: The anchors as the classifier reads them: ``anchors.view("en")``. No labels are needed.
            processor: Tokenizer or image processor; found beside `classifier` where that is a name.
            samples: Only for a head that cannot be used alone: raw samples without labels. In place of the head a
                linear decoder is fitted to the classifier's logits for them. It keeps its own score as well, but works
                less well with other encoders than the head does.
            method: How the head is translated: ``kernel_ridge``, ``ridge`` or ``inverse``, see
                `hf_relreps.translation.METHODS`. It decides the projection; that of ``kernel_ridge`` is the default.
            freeze_encoder: Whether training leaves the encoder as it is; an upload then refers to the classifier's
                repository, not copies it.
            batch_size: Samples in a batch while they are encoded.

        Returns:
            A whole model in evaluation mode with the classifier's `id2label`, `label2id` and `problem_type`.

        Raises:
            AnchorError: If the anchors are of another modality than this class reads.
            ConfigurationError: If there is no such method.
            SampleError: If there are too few samples, or the classifier cannot read them.
            StitchingError: If it is no classifier of this modality, was uploaded without its head, or its head cannot
                be used alone and there are no samples.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> ordinary = BertForSequenceClassification(english.encoder.backbone.config)  # or "me/english-topics"
            >>> model = RelativeModelForSequenceClassification.from_classifier(
            ...     ordinary, anchors.view("en"), english.processor
            ... )
            >>> _ = model.push_to_hub("me/relative-topics")
            >>> stitch(french, model).config.id2label == ordinary.config.id2label
            True

            ```
        """
        view = as_view(anchors_view)
        refuse_other_modality(view, cls.modality, cls.__name__, cls.reads_also)
        how: dict[str, Any] = {"samples": samples, "method": method, "freeze_encoder": freeze_encoder}
        return cls.from_parts(*relative_parts(classifier, view, processor, **how, batch_size=batch_size)).eval()

    @torch.no_grad()
    def classify(self, samples: Sequence[Any], *, batch_size: int = 64) -> list[Any]:
        """What the model says of raw samples, as a classification pipeline would; of conversations too.

        In evaluation mode; the mode is restored after. A `pipeline` also takes a single text, and gives the best k
        labels of each: ``pipeline("text-classification", model=model, tokenizer=model.processor, top_k=3)``.

        Args:
            samples: N texts, words, conversations (lists of messages), images, sounds or nodes.
            batch_size: Samples in a batch of the encoder.

        Returns:
            A ``{"label":, "score":}`` for each sample: the most likely class and its probability, or of a regression
            its number. Where a sample may have several labels or a regression gives several numbers, a list of them
            all, of labels the likeliest first.

        Raises:
            SampleError: If a sample is empty or of another type.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> sorted(english.classify(["a game of cards"])[0])
            ['label', 'score']

            ```
        """
        self.require_fit()
        with evaluating(self):
            x_ND = self.encoder.encode(samples, batch_size=batch_size)
            logits_NC = decode(self.encoder, {"one": self.decoder}, x_ND)["one"]
        return in_words(logits_NC, self.decoder.config)

    def _classify(
        self, labels: Tensor | None, return_dict: bool | None, **inputs: Any
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        self.require_fit()
        encoded = self.encoder(**inputs)
        decoded = self.decoder(encoded.relative_embeds, labels)
        result = RelativeClassifierOutput(
            loss=decoded.loss,
            logits=decoded.logits,
            relative_embeds=encoded.relative_embeds,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return result.to_tuple() if return_dict is False else result

    @torch.no_grad()
    def fit_decoder(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Fit the decoder in closed form to the current outputs of the encoder, as a start for training.

        It is a ridge regression onto the labels (see `RelativeDecoder.fit`). `AnchorCallback` does this for a new
        decoder before the first step; call it in a training loop of your own. The encoder runs in evaluation mode.
        With several processes, each passes its share of the batches, and all end up with the same decoder.

        Args:
            batches: Inputs of `forward`, with `labels`; rows, or tokens, whose label is -100 do not count.

        Raises:
            ConfigurationError: If the decoder has no closed form.
            SampleError: If the batches hold no labels, or the samples cannot be told apart.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> model = classifier_of("en", seed=3)
            >>> texts, labels = train["en"][:64], torch.tensor(train["label"][:64])
            >>> inputs = model.processor(texts, padding=True, truncation=True, return_tensors="pt")
            >>> model.fit_decoder([{**inputs, "labels": labels}])
            >>> model.decoder.is_new
            False

            ```
        """
        try:
            mine: Any = self._represented(batches)
        except RelrepsError as error:  # on one process: the others must not wait for it
            mine = error
        found = gather_object([mine])
        for of_rank in found:
            if isinstance(of_rank, RelrepsError):
                raise of_rank
        r_NR, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        if self.modality == "word" and len(labels) > MOST_TOKENS:
            rows = torch.linspace(0, len(labels) - 1, MOST_TOKENS, dtype=torch.float64).round().long()
            r_NR, labels = r_NR[rows], labels[rows]
        for decoder in (part for part in self.decoder.modules() if isinstance(part, RelativeDecoder)):
            decoder.fit(r_NR, labels)

    def _represented(self, batches: Iterable[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Relative representations (N, R) of the samples that have a label, and their labels, on the CPU."""
        r_NR, labels = [], []
        with evaluating(self):
            for batch in batches:
                if batch.get("labels") is None:
                    raise SampleError(f"A batch has {', '.join(batch)}; expected labels as well.")
                told = batch["labels"].cpu()
                inputs = to_device({name: value for name, value in batch.items() if name != "labels"}, self.device)
                r_BR = self(**inputs).relative_embeds.cpu()
                if self.modality == "word":  # a row for each token
                    r_BR, told = r_BR.flatten(0, 1), told.flatten()
                is_counted_B = (told != IGNORED).reshape(len(told), -1).all(1)
                r_NR.append(r_BR[is_counted_B])
                labels.append(told[is_counted_B])
        if not r_NR:
            return torch.empty(0, self.config.space.size), torch.empty(0, dtype=torch.long)
        return torch.cat(r_NR), torch.cat(labels)


def in_words(logits_NC: Tensor, config: RelativeDecoderConfig) -> list[Any]:
    """Answers by the names of the classes: see `RelativeClassifier.classify`."""
    names: Any = config.id2label
    if config.problem_type == "regression" or config.num_labels == 1:
        rows = [[{"label": names[c], "score": score} for c, score in enumerate(row)] for row in logits_NC.tolist()]
        return [row[0] for row in rows] if config.num_labels == 1 else rows
    several = config.problem_type == "multi_label_classification"
    p_NC = logits_NC.sigmoid() if several else logits_NC.softmax(-1)
    best = p_NC.sort(-1, descending=True)
    rows = [
        [{"label": names[c], "score": score} for c, score in zip(classes, scores, strict=True)]
        for classes, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return rows if several else [row[0] for row in rows]


class _TextClassifier(RelativeClassifier):
    """What reads texts."""

    @naming(*TEXT_INPUTS)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits (B, C), and the loss where there are labels: (B,) classes, (B, C) for several labels or targets.

        A model for tokens gives logits of every token (B, T, C), and takes a label of each (B, T), -100 for none.

        Raises:
            SampleError: If a model for tokens is not given one label for each.
        """
        return self._classify(
            labels,
            return_dict,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **inputs,
        )


class RelativeModelForSequenceClassification(_TextClassifier):
    """A text encoder and a decoder for text classification: single label, multi label or regression.

    Anchors are texts, or pairs of texts: then both texts of a sample are read at once (docs/pairs.md).

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> model = RelativeModelForSequenceClassification.from_encoder(
        ...     english.encoder.backbone, anchors.view("en"), english.processor, id2label={0: "tool", 1: "toy"}
        ... )
        >>> model.eval()(**model.processor(["a game of cards"], return_tensors="pt")).logits.shape
        torch.Size([1, 2])

        ```
    """

    modality = "text"
    reads_also = ("pair",)


class RelativeModelForPairClassification(_TextClassifier):
    """A text encoder that reads two texts one after the other, and a decoder that compares them.

    Its anchors are single texts. A frozen encoder will do: the decoder is fitted in closed form to r(u), r(v), their
    difference and their product. An encoder that reads both texts at once, with pairs as anchors, is one for
    `RelativeModelForSequenceClassification`; `docs/pairs.md` compares the two.

    `forward` takes both texts of a sample in one row, as models for multiple choice do: ``input_ids`` is (B, 2, T). So
    `Trainer` trains it with `DataCollatorForMultipleChoice`.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps import RelativeModelForPairClassification
        >>> from hf_relreps.pairs import pairs_of
        >>> r_N2R = torch.stack([english.encoder.projection(english.encoder.encode(texts)) for texts in
        ...     (train["en"][:60], train["en"][:30] + train["en"][60:90])], dim=1)
        >>> same = RelativeDecoder.fit_ridge(r_N2R, [1] * 30 + [0] * 30, english, id2label={0: "other", 1: "same"})
        >>> model = stitch(french, same)  # another encoder, another language
        >>> isinstance(model, RelativeModelForPairClassification)
        True
        >>> sorted(model.classify(pairs_of(["un jeu de cartes"], ["un jeu de cartes"]))[0])
        ['label', 'score']

        ```
    """

    modality = "text"
    decoder_types = (PAIR,)
    new_decoder = {"decoder_type": PAIR}

    def _classify(
        self, labels: Tensor | None, return_dict: bool | None, **inputs: Any
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        self.require_fit()
        given = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in inputs.items() if name not in given}
        main = given.get("input_ids", given.get("inputs_embeds"))
        if main is None or main.ndim < 3 or main.shape[1] != 2:
            raise SampleError(
                f"The inputs have shape {None if main is None else tuple(main.shape)}, expected both texts of each "
                "sample in a row: (B, 2, T). Collate tokenizer([text, text_pair]) of each sample with "
                "DataCollatorForMultipleChoice, or give raw pairs to model.classify(pairs)."
            )
        encoded = self.encoder(**{name: value.flatten(0, 1) for name, value in given.items()}, **rest)
        r_B2R = encoded.relative_embeds.unflatten(0, (-1, 2))
        decoded = self.decoder(r_B2R, labels)
        result = RelativeClassifierOutput(loss=decoded.loss, logits=decoded.logits, relative_embeds=r_B2R)
        return result.to_tuple() if return_dict is False else result

    @torch.no_grad()
    def classify(self, samples: Sequence[Any], *, batch_size: int = 64) -> list[Any]:
        """What a classification pipeline would say of each pair; the encoder reads each text once.

        In evaluation mode; the mode is restored after.

        Args:
            samples: N pairs ``{"text": ..., "text_pair": ...}``: see `hf_relreps.pairs.pairs_of`.
            batch_size: Texts in a batch of the encoder.

        Returns:
            For each pair a ``{"label":, "score":}``; lists of them as for the other tasks.

        Raises:
            SampleError: If a sample is no pair, or one of its texts is empty.
        """
        if check_samples(samples, "samples") != "pair":
            raise SampleError(
                f"samples[0] is {samples[0]!r:.60}, expected two texts: {{'text': ..., 'text_pair': ...}}. Make pairs "
                "of two lists with hf_relreps.pairs.pairs_of(texts, text_pairs)."
            )
        place: dict[str, int] = {}
        rows_N2 = [[place.setdefault(pair[field], len(place)) for field in FIELDS] for pair in samples]
        with evaluating(self):
            x_MD = self.encoder.encode(list(place), batch_size=batch_size)
            r_MR = self.encoder.projection(x_MD.to(self.encoder.device))
            logits_NC = self.decoder(r_MR[torch.tensor(rows_N2)].to(self.decoder.device)).logits
        return in_words(logits_NC.float().cpu(), self.decoder.config)


class RelativeModelForTokenClassification(_TextClassifier):
    """A text encoder and a decoder that gives each token its class: entities, parts of speech.

    Its anchors are words in their sentences, and each token is described by how alike it is to them. So an encoder
    with another tokenizer, or of another language, works behind the same decoder. How labels of words become labels of
    tokens is told in `docs/tokens.md`.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> sentences = [text.split()[:20] for text in train["en"]]
        >>> view = AnchorSet.from_tokens({"en": sentences}, k=30).view()
        >>> tagger = RelativeModelForTokenClassification.from_encoder(
        ...     english.encoder.backbone, view, english.processor, id2label={0: "O", 1: "B-TOOL", 2: "I-TOOL"}
        ... ).eval()
        >>> tagger(**tagger.processor(["a game of cards"], return_tensors="pt")).logits.shape
        torch.Size([1, 4, 3])
        >>> find = pipeline("token-classification", tagger, tokenizer=tagger.processor, aggregation_strategy="average")
        >>> found = find("a game of cards")

        ```
    """

    modality = "word"

    @torch.no_grad()
    def tag(self, sentences: Sequence[Sequence[str]], *, batch_size: int = 64) -> list[list[str]]:
        """The class of each word of each sentence, by its name; a word is read as anchors are, from all its pieces.

        A pipeline reads texts that are not split into words, piece by piece, which tags a little worse: see
        `docs/tokens.md`.

        Args:
            sentences: Lists of words.
            batch_size: Sentences in a batch.

        Raises:
            SampleError: If a word has no pieces, or lies behind the longest length that is read.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> sentences = [text.split()[:20] for text in train["en"]]
            >>> view = AnchorSet.from_tokens({"en": sentences}, k=30).view()
            >>> tagger = RelativeModelForTokenClassification.from_encoder(
            ...     english.encoder.backbone, view, english.processor, id2label={0: "O", 1: "B-TOOL", 2: "I-TOOL"}
            ... )
            >>> [len(tags) for tags in tagger.tag([["a", "game", "of", "cards"], ["a", "server"]])]
            [4, 2]

            ```
        """
        self.require_fit()
        x_ND = self.encoder.encode(words_of(sentences), batch_size=batch_size)
        with evaluating(self.decoder):
            logits_NC = decode(self.encoder, {"one": self.decoder}, x_ND)["one"]
        names: Any = self.config.id2label
        told = iter([names[number] for number in logits_NC.argmax(-1).tolist()])
        return [[next(told) for _ in sentence] for sentence in sentences]

    def _classify(
        self, labels: Tensor | None, return_dict: bool | None, **inputs: Any
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        read = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"]
        if labels is not None and read is not None and labels.shape != read.shape[:2]:
            raise SampleError(
                f"There are labels {tuple(labels.shape)} for tokens {tuple(read.shape[:2])}. Give one for each token: "
                "DataCollatorForTokenClassification(tokenizer) pads them as it pads tokens."
            )
        return super()._classify(labels, return_dict, **inputs)


class RelativeModelForImageClassification(RelativeClassifier):
    """An image encoder and a decoder for image classification.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from PIL import Image
        >>> from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
        >>> images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
        >>> view = AnchorSet(["red", "green", "blue"], {"image": images}).view()
        >>> conv = ConvEncoder(ConvEncoderConfig(image_size=16, widths=[8, 16]))  # or the name of any AutoModel
        >>> model = RelativeModelForImageClassification.from_encoder(conv, view, image_processor(16), num_labels=2)
        >>> len(pipeline("image-classification", model=model, image_processor=model.processor)(images[0]))
        2

        ```
    """

    modality = "image"
    main_input_name = "pixel_values"

    @naming(*IMAGE_INPUTS)
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits (B, C), and the loss where there are labels (B,)."""
        return self._classify(
            labels,
            return_dict,
            pixel_values=pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **inputs,
        )


class RelativeModelForAudioClassification(RelativeClassifier):
    """An audio encoder and a decoder for audio classification.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> import numpy as np
        >>> from transformers import ASTConfig, ASTFeatureExtractor, ASTModel
        >>> waves = [np.sin(np.arange(4000) * pitch).astype("float32") for pitch in (0.1, 0.2, 0.4)]
        >>> sounds = [{"array": wave, "sampling_rate": 16000} for wave in waves]
        >>> view = AnchorSet(["low", "middle", "high"], {"audio": sounds}).view()
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> encoder = ASTModel(ASTConfig(**sizes, max_length=32))  # or the name of any AutoModel
        >>> reader = ASTFeatureExtractor(max_length=32)
        >>> model = RelativeModelForAudioClassification.from_encoder(encoder, view, reader, num_labels=2)
        >>> len(pipeline("audio-classification", model=model, feature_extractor=model.processor)(waves[0]))
        2

        ```
    """

    modality = "audio"
    main_input_name = "input_values"

    @naming(*AUDIO_INPUTS)
    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits (B, C) of waveforms (B, T) or spectra (B, F, T), and the loss where there are labels (B,)."""
        return self._classify(
            labels,
            return_dict,
            input_values=input_values,
            input_features=input_features,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **inputs,
        )


class RelativeModelForNodeClassification(RelativeClassifier):
    """A graph encoder and a decoder that classifies nodes.

    With `config.anchor_gradient` training describes nodes by the anchors of the same forward pass, so that gradients
    pass through the anchors too (the paper's graph experiments, section 4.3). In evaluation the stored anchors count,
    as for every other model: `AnchorCallback` keeps them.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        import torch

        from hf_relreps.encoders.graphs import GraphEncoder, GraphEncoderConfig
        from hf_relreps.tasks import GraphReader, one_graph

        reader = GraphReader(x=torch.eye(6), edge_index=torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]]))
        view = AnchorSet([f"graph/{node}" for node in (0, 2, 4)], {"node": [0, 2, 4]}).view()  # ids say which graph
        gcn = GraphEncoder(GraphEncoderConfig(in_channels=6, hidden_size=8))
        model = RelativeModelForNodeClassification.from_encoder(gcn, view, reader, num_labels=3)

        labels_N, counted_N = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([True, False] * 3)
        items = [reader.item(labels_N, counted_N)]  # the graph is the one item of the dataset
        args = TrainingArguments("out", max_steps=1, report_to="none")
        Trainer(model, args, one_graph, train_dataset=items, callbacks=[AnchorCallback()]).train()

        logits_NC = model.eval()(x=reader.x, edge_index=reader.edge_index).logits  # there is no pipeline for graphs
        classes = logits_NC.argmax(-1).tolist()
        ```
    """

    modality = "node"
    main_input_name = "x"

    def forward(
        self,
        x: Tensor | None = None,
        edge_index: Tensor | None = None,
        nodes: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits of all nodes (N, C), or of the requested ones (B, C), and the loss if there are labels.

        Args:
            x: Features (N, F) of the whole graph.
            edge_index: Edges (2, E) of the whole graph.
            nodes: Requested nodes (B,); all if left out.
            labels: Their classes (N,) or (B,); those of -100 do not count in the loss.
            return_dict: False gives a tuple.

        Raises:
            SampleError: If a node is not one of the graph, or there is not one label for each node.
        """
        if x is not None:
            _check(len(x), nodes, labels)
        return self._classify(labels, return_dict, x=x, edge_index=edge_index, nodes=nodes)


@dataclass
class RelativeReconstructionOutput(ModelOutput):
    """Output of a reconstruction: loss, images (B, C, H, W) in [0, 1], relative representations (B, R).

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.tasks import RelativeReconstructionOutput
        >>> list(RelativeReconstructionOutput(reconstruction=torch.zeros(1, 3, 16, 16)))
        ['reconstruction']

        ```
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    relative_embeds: Tensor | None = None


class RelativeModelForImageReconstruction(RelativeTaskModel):
    """An image encoder and a decoder that reconstructs the image from its relative representation.

    ``decoder_type="image"`` makes an autoencoder, ``"variational"`` a variational one. Target pixels lie in [0, 1]. By
    default they are the pixels that the encoder reads; pass a `target` if the encoder's image processor normalises.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from PIL import Image
        >>> from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
        >>> images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
        >>> view = AnchorSet(["red", "green", "blue"], {"image": images}).view()
        >>> conv = ConvEncoder(ConvEncoderConfig(image_size=16, widths=[8, 16]))
        >>> reader = image_processor(16)
        >>> model = RelativeModelForImageReconstruction.from_encoder(conv, view, reader, pooling="pooler").eval()
        >>> inputs = model.processor(images=images, return_tensors="pt")  # no pipeline draws images again
        >>> model(**inputs).reconstruction.shape
        torch.Size([3, 3, 16, 16])

        ```
    """

    modality = "image"
    main_input_name = "pixel_values"
    decoder_types = ("image", "variational")

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        anchors_view: AnchorView | AnchorSet | None = None,
        processor: Any = None,
        **settings: Any,
    ) -> Self:
        """A relative encoder with a new decoder that reconstructs the images that the processor returns.

        Args:
            encoder: As for the other tasks.
            anchors_view: As for the other tasks.
            processor: The image processor; `image_size` and `num_channels` are measured from its output.
            **settings: As for the other tasks; by default a plain autoencoder without noise and dropout.

        Raises:
            ConfigurationError: If a setting has no meaning, or the processor makes images that are not square.
        """
        start = getattr(settings.get("config"), "decoder", settings.get("config"))
        if getattr(start, "decoder_type", None) not in cls.decoder_types:
            settings = DRAWING | _measure_images(encoder, anchors_view, processor) | settings
        return super().from_encoder(encoder, anchors_view, processor, **settings)

    @naming(*IMAGE_INPUTS)
    def forward(
        self,
        pixel_values: Tensor | None = None,
        target: Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> RelativeReconstructionOutput | tuple[Any, ...]:
        """Images (B, C, H, W) reconstructed from relative representations, and the loss against the target.

        Args:
            pixel_values: What the encoder reads, (B, C, H, W).
            target: The images to draw, pixels in [0, 1]; those that the encoder reads if left out.
            return_loss: Whether to compute the loss.
            return_dict: Whether to give a `ModelOutput` rather than a tuple.
            **inputs: More inputs of the wrapped model; `labels` beside the images are not used.

        Raises:
            SampleError: If the target images have another shape than the output, or are not in [0, 1].
            TypeError: If an input has a name that the wrapped model does not know.
        """
        self.require_fit()
        inputs.pop("labels", None)  # of a dataset that has classes beside its images
        self.encoder.refuse_unknown_inputs(inputs)  # also those that encoders of texts read
        encoded = self.encoder(pixel_values=pixel_values, **inputs)
        target = pixel_values if target is None else target
        decoded = self.decoder(encoded.relative_embeds, labels=target if return_loss else None)
        result = RelativeReconstructionOutput(decoded.loss, decoded.reconstruction, encoded.relative_embeds)
        return result.to_tuple() if return_dict is False else result


TASK_CLASSES: tuple[type[RelativeTaskModel], ...] = (
    RelativeModelForSequenceClassification,
    RelativeModelForPairClassification,
    RelativeModelForTokenClassification,
    RelativeModelForImageClassification,
    RelativeModelForAudioClassification,
    RelativeModelForNodeClassification,
    RelativeModelForImageReconstruction,
)


def task_class_for(modality: str, decoder_type: str) -> type[RelativeTaskModel]:
    """What reads this modality and gives what such a decoder makes.

    Raises:
        StitchingError: If there is none.
    """
    for task_class in TASK_CLASSES:
        if task_class.reads(modality) and decoder_type in task_class.decoder_types:
            return task_class
    raise StitchingError(
        f"No model class combines an encoder of {modality}s with a decoder of type {decoder_type!r}. Use the parts "
        "directly: decoder(encoder(**inputs).relative_embeds)."
    )


def _measure_images(encoder: Any, anchors_view: Any, processor: Any) -> dict[str, int]:
    """Side and channels of the images that the processor makes; nothing where there is none yet."""
    if isinstance(encoder, RelativeModel):
        anchors_view, processor = encoder.anchors.view(encoder.config.anchor_view), encoder.processor
    if anchors_view is None or processor is None or as_view(anchors_view).modality != "image":
        return {}
    _, inputs = next(batches(as_view(anchors_view).samples[:1], processor, 1, None))
    channels, height, width = inputs["pixel_values"].shape[1:]
    if height != width:
        raise ConfigurationError(
            f"The processor returns images of {height} x {width} pixels, but the decoder needs square ones. Use a "
            "square processor: image_processor(image_size)."
        )
    return {"image_size": height, "num_channels": channels}


class GraphReader:
    """The processor of node samples: turns node numbers into what a graph encoder reads.

    An upload names nodes, not their graph: after a load say which one it is, ``model.processor = reader``.

    Args:
        x: Features (N, F).
        edge_index: Edges (2, E).

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.tasks import GraphReader
        >>> reader = GraphReader(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
        >>> sorted(reader.collate([{"nodes": 0, "labels": 1}, {"nodes": 2, "labels": 0}]))
        ['edge_index', 'labels', 'nodes', 'x']
        >>> reader.item(torch.tensor([0, 1, 0]), torch.tensor([True, True, False]))["labels"].tolist()
        [0, 1, -100]

        ```
    """

    def __init__(self, x: Tensor, edge_index: Tensor) -> None:
        self.x = x
        self.edge_index = edge_index

    def __call__(self, nodes: Sequence[int], return_tensors: str = "pt") -> dict[str, Tensor]:
        """The whole graph and the nodes asked for.

        Raises:
            SampleError: If a node is not one of the graph.
        """
        nodes_B = torch.as_tensor(nodes, dtype=torch.long)
        _check(len(self.x), nodes_B)
        return {"x": self.x, "edge_index": self.edge_index, "nodes": nodes_B}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collator of a dataset with a row for each node: its number as `nodes`, and its label as `labels`.

        The encoder sees the whole graph at every step, the loss and the metrics those nodes.
        """
        columns = {name: torch.as_tensor([row[name] for row in rows]) for name in rows[0]}
        return columns | self([row["nodes"] for row in rows])

    def save_pretrained(self, save_directory: Any) -> None:
        """Nothing: an upload names its nodes, the graph stays with its owner."""

    def item(self, labels_N: Tensor, counted_N: Tensor | None = None) -> dict[str, Tensor]:
        """The graph as the one item of a dataset for `Trainer`; labels of nodes that do not count become -100.

        See `one_graph`. `collate` is for datasets with one row for each node.
        """
        _check(len(self.x), labels=labels_N)
        labels_N = labels_N if counted_N is None else labels_N.masked_fill(~counted_N, IGNORED)
        return {"x": self.x, "edge_index": self.edge_index, "labels": labels_N}


def _check(size: int, nodes_B: Tensor | None = None, labels: Tensor | None = None) -> None:
    """Refuse nodes that the graph does not have, and labels of another number of nodes."""
    if nodes_B is not None and nodes_B.numel() and not (0 <= int(nodes_B.min()) and int(nodes_B.max()) < size):
        raise SampleError(
            f"Nodes {int(nodes_B.min())} to {int(nodes_B.max())} were requested, but the graph has nodes 0 to "
            f"{size - 1}. Use the graph that the nodes were chosen from."
        )
    expected = size if nodes_B is None else len(nodes_B)
    if labels is not None and len(labels) != expected:
        raise SampleError(
            f"Found {len(labels)} labels for {expected} nodes. Give one label for each node, -100 for nodes without "
            "one."
        )


def one_graph(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collator of a dataset whose one item is a graph: a training step for all of its nodes.

    With `compute_metrics` set `per_device_eval_batch_size` to 1: the Trainer takes the nodes of a batch for samples,
    and cuts those of an incomplete batch.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> from hf_relreps.tasks import GraphReader, one_graph
        >>> reader = GraphReader(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 0]]))
        >>> sorted(one_graph([reader.item(torch.tensor([0, 1, 0]))]))
        ['edge_index', 'labels', 'x']

        ```
    """
    if len(items) != 1:
        raise SampleError(
            f"A batch has {len(items)} graphs, expected one. Set per_device_train_batch_size=1, or collate rows of "
            "single nodes with GraphReader.collate."
        )
    return items[0]
