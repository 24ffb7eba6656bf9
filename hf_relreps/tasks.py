"""What a whole model does: classes of texts, images, sounds and nodes, and images drawn again.

Shapes: B batch, T tokens, F frequencies or features of a node, N nodes, E edges, D absolute size, R relative size,
C classes or channels, H and W height and width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_relreps.anchors import AnchorSet, AnchorView, as_view
from hf_relreps.errors import ConfigurationError, SampleError, StitchingError
from hf_relreps.modeling import RelativeModel, RelativeTaskModel
from hf_relreps.samples import batches


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


@dataclass
class RelativeClassifierOutput(ModelOutput):
    """What a relative classifier gives: loss (if there were labels), logits (B, C), relative_embeds (B, R).

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


class RelativeModelForSequenceClassification(RelativeClassifier):
    """A text encoder and a decoder that gives the classes of a text: single label, multi label or regression.

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
            **inputs,
        )


class RelativeModelForImageClassification(RelativeClassifier):
    """An image encoder and a decoder that gives the classes of an image.

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
    """An audio encoder and a decoder that gives the classes of a sound.

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
    """A graph encoder and a decoder that gives the classes of nodes.

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
        items = [reader.item(labels_N, counted_N)]  # the graph is the one item of the data set
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
        """Logits of all nodes (N, C), or of those asked for (B, C), and the loss where there are labels of the same.

        Args:
            x: Features (N, F) of the whole graph.
            edge_index: Edges (2, E) of the whole graph.
            nodes: Which nodes are asked for (B,); all of them if left out.
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
    """What a reconstruction gives: loss, images (B, C, H, W) in [0, 1], relative representations (B, R).

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
    """An image encoder and a decoder that draws the image again from its relative representation.

    ``decoder_type="image"`` makes an autoencoder, ``"variational"`` a variational one. Pixels to draw lie in [0, 1];
    they are those that the encoder reads, unless a `target` gives others, which an encoder needs whose image processor
    normalises.

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
        """An encoder made relative, with a new decoder that draws what the processor makes of an image.

        Args:
            encoder: As for the other tasks.
            anchors_view: As for the other tasks.
            processor: The image processor; `image_size` and `num_channels` are measured from what it makes.
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
        """Images (B, C, H, W) drawn from relative representations, and the loss against what they should be.

        Args:
            pixel_values: What the encoder reads, (B, C, H, W).
            target: The images to draw, pixels in [0, 1]; those that the encoder reads if left out.
            return_loss: Whether to compute the loss.
            return_dict: Whether to give a `ModelOutput` rather than a tuple.
            **inputs: More inputs of the wrapped model; `labels` beside the images are not used.

        Raises:
            SampleError: If the images to draw have another shape than those drawn, or do not lie in [0, 1].
            TypeError: If an input has a name that the wrapped model does not know.
        """
        self.require_fit()
        inputs.pop("labels", None)  # of a data set that has classes beside its images
        self.encoder.refuse_unknown_inputs(inputs)  # also those that encoders of texts read
        encoded = self.encoder(pixel_values=pixel_values, **inputs)
        target = pixel_values if target is None else target
        decoded = self.decoder(encoded.relative_embeds, labels=target if return_loss else None)
        result = RelativeReconstructionOutput(decoded.loss, decoded.reconstruction, encoded.relative_embeds)
        return result.to_tuple() if return_dict is False else result


TASK_CLASSES: tuple[type[RelativeTaskModel], ...] = (
    RelativeModelForSequenceClassification,
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
        if task_class.modality == modality and decoder_type in task_class.decoder_types:
            return task_class
    raise StitchingError(
        f"No model reads {modality}s and has a decoder of type {decoder_type!r}: images are drawn from images. Use "
        "the parts by themselves: decoder(encoder(**inputs).relative_embeds)."
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
            f"The processor makes images of {height} x {width} pixels, a decoder draws square ones. Give a processor "
            "that makes them square: image_processor(image_size)."
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
        """Collator of a data set with a row for each node: its number as `nodes`, and its label as `labels`.

        The encoder sees the whole graph at every step, the loss and the metrics those nodes.
        """
        columns = {name: torch.as_tensor([row[name] for row in rows]) for name in rows[0]}
        return columns | self([row["nodes"] for row in rows])

    def save_pretrained(self, save_directory: Any) -> None:
        """Nothing: an upload names its nodes, the graph stays with its owner."""

    def item(self, labels_N: Tensor, counted_N: Tensor | None = None) -> dict[str, Tensor]:
        """The graph as the one item of a data set for `Trainer`; labels of nodes that do not count become -100.

        See `one_graph`. `collate` is for data sets with one row for each node.
        """
        _check(len(self.x), labels=labels_N)
        labels_N = labels_N if counted_N is None else labels_N.masked_fill(~counted_N, -100)
        return {"x": self.x, "edge_index": self.edge_index, "labels": labels_N}


def _check(size: int, nodes_B: Tensor | None = None, labels: Tensor | None = None) -> None:
    """Refuse nodes that the graph does not have, and labels of another number of nodes."""
    if nodes_B is not None and nodes_B.numel() and not (0 <= int(nodes_B.min()) and int(nodes_B.max()) < size):
        raise SampleError(
            f"Nodes {int(nodes_B.min())} to {int(nodes_B.max())} were asked for, the graph has nodes 0 to {size - 1}. "
            "Give the graph that the nodes were chosen from."
        )
    expected = size if nodes_B is None else len(nodes_B)
    if labels is not None and len(labels) != expected:
        raise SampleError(
            f"There are {len(labels)} labels for {expected} nodes. Give one for each, and -100 for those that do not "
            "count."
        )


def one_graph(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collator of a data set whose one item is a graph: a training step for all of its nodes.

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
            f"A batch holds {len(items)} graphs, expected one. Set per_device_train_batch_size=1, or collate rows of "
            "single nodes with GraphReader.collate."
        )
    return items[0]
