"""One encoder and several decoders: a model that reads each sample once and answers all their questions.

Shapes: B batch, N samples, C classes, R relative size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from hf_relreps.backbones import evaluating
from hf_relreps.configuration import SEVERAL
from hf_relreps.errors import ConfigurationError
from hf_relreps.modeling import RelativeTaskModel, decode
from hf_relreps.tasks import in_words, task_class_for


@dataclass
class RelativeAnswers(ModelOutput):
    """What several decoders give: logits (B, C) by their names, relative_embeds (B, R).

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> model = stitch(french, {"section": english, "group": decoder})
        >>> output = model(**model.processor(["un jeu de cartes"], return_tensors="pt"))
        >>> output.logits["section"].shape, output.relative_embeds.shape
        (torch.Size([1, 11]), torch.Size([1, 40]))

        ```
    """

    logits: dict[str, Tensor] | None = None
    relative_embeds: Tensor | None = None


class RelativeModelWithDecoders(RelativeTaskModel):
    """An encoder and several decoders of its space: one pass of the encoder, an answer of each decoder by its name.

    `stitch` makes it of an encoder and a mapping of decoders. It is saved, loaded, pushed and exported like any other
    model. What reads one `logits`, such as a `pipeline` or `Trainer`, takes one decoder: see `select`.

    Example:
        Uses the names that the first block of `docs/api/index.md` makes.

        ```python
        >>> model = stitch("me/relative-fr", {"section": "me/relative-en", "group": decoder})
        >>> answers = model.classify(["un jeu de cartes"])
        >>> sorted(answers), sorted(answers["section"][0])
        (['group', 'section'], ['label', 'score'])
        >>> _ = model.push_to_hub("me/french-questions")
        >>> from hf_relreps import RelativeModelWithDecoders
        >>> list(RelativeModelWithDecoders.from_pretrained("me/french-questions").decoder.named)
        ['group', 'section']

        ```
    """

    modality = ""
    decoder_types = (SEVERAL,)

    @classmethod
    def from_encoder(cls, *args: Any, **settings: Any) -> Self:
        """Nothing: its decoders are trained one by one.

        Raises:
            ConfigurationError: Always, with what to call.
        """
        raise ConfigurationError(
            f"The decoders of a {cls.__name__} are not made with it: train each, or fit it, and put them together: "
            "stitch(encoder, {'section': a, 'tone': b})."
        )

    def forward(self, return_dict: bool | None = None, **inputs: Any) -> RelativeAnswers | tuple[Any, ...]:
        """Logits (B, C) by the names of the decoders; inputs are the wrapped model's.

        Raises:
            TypeError: If an input has a name that the wrapped model does not know.
        """
        self.require_fit()
        encoded = self.encoder(**inputs)
        logits = self.decoder(encoded.relative_embeds).logits
        result = RelativeAnswers(logits=logits, relative_embeds=encoded.relative_embeds)
        return result.to_tuple() if return_dict is False else result

    def select(self, name: str) -> RelativeTaskModel:
        """The ordinary whole model of one decoder, for a `pipeline` or `Trainer`; it shares the weights of this one.

        Raises:
            StitchingError: If there is no decoder of that name.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> model = stitch(french, {"section": english, "group": decoder})
            >>> section = model.select("section")
            >>> answers = pipeline("text-classification", model=section, tokenizer=section.processor)("un jeu")
            >>> answers[0]["label"] in names.values()
            True

            ```
        """
        decoder = self.decoder.select(name)
        task_class = task_class_for(self.config.modality, decoder.config.decoder_type)
        whole = task_class.from_parts(self.encoder.share(), decoder)
        return whole.train(self.training)

    @torch.no_grad()
    def classify(self, samples: Sequence[Any], *, batch_size: int = 64) -> dict[str, list[Any]]:
        """What each decoder says of raw samples, as a classification pipeline would; the encoder reads them once.

        In evaluation mode; the mode is restored after.

        Args:
            samples: N texts, conversations (lists of messages), images or sounds.
            batch_size: Samples in a batch of the encoder.

        Returns:
            By the name of the decoder a ``{"label":, "score":}`` for each sample: the most likely class and its
            probability, or of a regression its number. Where a sample may have several labels or a regression gives
            several numbers, a list of them all, of labels the likeliest first.

        Raises:
            SampleError: If a sample is empty or of another type.

        Example:
            Uses the names that the first block of `docs/api/index.md` makes.

            ```python
            >>> model = stitch(french, {"section": english, "group": decoder})
            >>> len(model.classify(test["fr"])["group"])
            60

            ```
        """
        with evaluating(self):
            x_ND = self.encoder.encode(samples, batch_size=batch_size)
            logits = decode(self.encoder, self.decoder.named, x_ND)
        return {name: in_words(logits[name], decoder.config) for name, decoder in self.decoder.named.items()}
