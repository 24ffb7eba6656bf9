"""Classification: an encoder of texts, images or sounds, and a decoder that gives classes or numbers.

Shapes: B batch, T tokens, F frequencies, R relative size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from hf_relreps.modeling import RelativeTaskModel


@dataclass
class RelativeClassifierOutput(ModelOutput):
    """What a relative classifier gives: loss (if there were labels), logits (B, C), relative_embeds (B, R).

    Example:
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


class RelativeClassifier(RelativeTaskModel):
    """An encoder and a decoder that gives logits; subclasses name the inputs of their modality."""

    def _classify(
        self, labels: Tensor | None, return_dict: bool | None, **inputs: Any
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
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


class RelativeModelForSequenceClassification(RelativeClassifier):
    """A text encoder and a decoder that gives the classes of a text: single label, multi label or regression.

    Example:
        ```python
        >>> model = RelativeModelForSequenceClassification.from_encoder(
        ...     english.encoder.backbone, anchors.view("en"), english.processor, id2label={0: "tool", 1: "toy"}
        ... )
        >>> model.eval()(**model.processor(["a game of cards"], return_tensors="pt")).logits.shape
        torch.Size([1, 2])

        ```
    """

    modality = "text"

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
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits (B, C), and the loss where there are labels: (B,) classes, (B, C) for several labels or targets."""
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
        )


class RelativeModelForImageClassification(RelativeClassifier):
    """An image encoder and a decoder that gives the classes of an image.

    Example:
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

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RelativeClassifierOutput | tuple[Any, ...]:
        """Logits (B, C), and the loss where there are labels (B,)."""
        return self._classify(
            labels,
            return_dict,
            pixel_values=pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )


class RelativeModelForAudioClassification(RelativeClassifier):
    """An audio encoder and a decoder that gives the classes of a sound.

    Example:
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

    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
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
        )
