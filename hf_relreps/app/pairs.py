"""`Pair`: the parts of two uploads, and what each way of putting them together says about a sample.

Nothing here knows the page. Shapes: B batch, D absolute size, R relative size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from PIL import Image
from torch import Tensor

from hf_relreps.backbones import evaluating
from hf_relreps.configuration import IMAGE_DECODERS, is_ours
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.errors import RelrepsError, UploadError
from hf_relreps.modeling import RelativeModel
from hf_relreps.printing import one_line
from hf_relreps.sources import Source
from hf_relreps.stitching import CompatibilityReport, compatibility, resolve_encoder


PAIRS_KEPT = 4


@dataclass(frozen=True)
class Answer:
    """What one way of putting parts together says about a sample.

    Args:
        title: The way: ``own``, ``stitched``, ``absolute``.
        parts: Which encoder and which decoder, in words.
        scores: Class -> probability, or nothing.
        value: Of a regression.
        image: That a decoder draws.
        why_not: Why there is no answer.
    """

    title: str
    parts: str
    scores: dict[str, float] = field(default_factory=dict)
    value: float | None = None
    image: Image.Image | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Pair:
    """The encoder of one upload and the decoder of another, and what else the two uploads hold.

    Args:
        encoder_name: Upload of the encoder.
        decoder_name: Upload of the decoder.
        encoder: The encoder.
        decoder: The decoder.
        own_decoder: That of the encoder's upload; ``None`` if it holds none.
        own_encoder: That of the decoder's upload; ``None`` if it holds none.
        report: Whether encoder and decoder fit.
    """

    encoder_name: str
    decoder_name: str
    encoder: RelativeModel
    decoder: RelativeDecoder
    own_decoder: RelativeDecoder | None
    own_encoder: RelativeModel | None
    report: CompatibilityReport

    @classmethod
    def load(cls, encoder_name: str, decoder_name: str, view: str | None = None) -> Pair:
        """Load both uploads, as far as they hold what is needed.

        Args:
            encoder_name: Upload or folder; or any pretrained model, which becomes relative with the decoder's anchors.
            decoder_name: Upload or folder.
            view: For an ordinary encoder: the view of the anchors that it reads.

        Raises:
            RelrepsError: If one cannot be loaded; the message says what to do.
        """
        decoder = RelativeDecoder.from_pretrained(decoder_name)
        encoder = resolve_encoder(encoder_name, decoder=decoder, view=view or None)
        return cls(
            encoder_name=encoder_name,
            decoder_name=decoder_name,
            encoder=encoder,
            decoder=decoder,
            own_decoder=_held(RelativeDecoder, encoder_name),
            own_encoder=_held(RelativeModel, decoder_name),
            report=compatibility(encoder, decoder),
        )

    @property
    def modality(self) -> str:
        """What the encoder reads."""
        return self.encoder.config.modality

    @property
    def example(self) -> Any:
        """A sample to begin with: the first anchor as the encoder reads it, if that is a text or an image."""
        view = self.encoder.anchors.view(self.encoder.config.anchor_view)
        return view.samples[0] if view.modality in ("text", "image") else None

    def answers(self, sample: Any) -> list[Answer]:
        """Own, stitched and absolute, in this order; each says why if it has nothing to say."""
        with torch.no_grad(), evaluating(self.encoder):
            x_1D = self.encoder.encode([sample])
            return [self._own(x_1D), self._stitched(x_1D), self._absolute(x_1D)]

    def answer_of_other(self, sample: Any) -> Answer:
        """The decoder with the encoder that it was trained on, which may read another language."""
        title, parts = "own of the decoder", f"{_short(self.decoder_name)}: its own encoder and decoder"
        if self.own_encoder is None:
            return Answer(title, parts, why_not="This upload has no encoder.")
        with torch.no_grad(), evaluating(self.own_encoder):
            r_1R = self.own_encoder.projection(self.own_encoder.encode([sample]).to(self.own_encoder.device))
            return _read(self.decoder, r_1R, title, parts)

    def _own(self, x_1D: Tensor) -> Answer:
        title, parts = "own", f"{_short(self.encoder_name)}: its own encoder and decoder"
        if self.own_decoder is None:
            return Answer(title, parts, why_not="This upload has no decoder.")
        return _read(self.own_decoder, self._relative(x_1D), title, parts)

    def _stitched(self, x_1D: Tensor) -> Answer:
        title = "stitched"
        parts = f"encoder of {_short(self.encoder_name)}, decoder of {_short(self.decoder_name)}"
        if not self.report.fits:
            return Answer(title, parts, why_not=f"The parts do not fit: {self.report.verdict.split(': ')[-1]}.")
        return _read(self.decoder, self._relative(x_1D), title, parts)

    def _absolute(self, x_1D: Tensor) -> Answer:
        """The sample's absolute embedding, read as if the encoder shared the space of the decoder's own encoder.

        It is compared with that encoder's embeddings of the anchors. If the two spaces were the same, nothing would
        change; so this is what the decoder makes of an encoder without relative representations.
        """
        title, parts = "absolute", "the same parts without relative representations: the control"
        if not self.report.fits:
            return Answer(title, parts, why_not="The parts do not fit.")
        if self.own_encoder is None:
            return Answer(title, parts, why_not="The decoder's upload has no encoder to compare with.")
        widths = x_1D.shape[1], self.own_encoder.config.embedding_size
        if widths[0] != widths[1]:
            return Answer(title, parts, why_not=f"No control: the spaces are {widths[0]} and {widths[1]} wide.")
        return _read(self.decoder, self.own_encoder.projection(x_1D.to(self.own_encoder.device)), title, parts)

    def _relative(self, x_1D: Tensor) -> Tensor:
        return self.encoder.projection(x_1D.to(self.encoder.device))


@lru_cache(maxsize=PAIRS_KEPT)
def load_pair(encoder_name: str, decoder_name: str, view: str | None = None) -> Pair:
    """`Pair.load`, of which the last few are kept."""
    return Pair.load(encoder_name, decoder_name, view)


def refuse_closed(name: str) -> None:
    """Raise `UploadError` for a name that is no repository which anybody may read: where strangers may type it.

    The page runs with its owner's token, which may read more.
    """
    if Path(name).exists() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UploadError(f"{name!r} is not a valid repository name: expected a name such as me/relative-en.")
    try:
        info = HfApi(library_name="hf_relreps", token=False).model_info(name.partition("@")[0])
    except (HfHubHTTPError, HFValidationError) as error:
        raise UploadError(f"{name} is not public, or does not exist: this page opens public uploads only.") from error
    if info.private or info.gated:
        raise UploadError(f"{name} is private or gated: this page opens public uploads only.")


def _held(part: Any, name: str) -> Any:
    """The part of an upload, ``None`` if it holds none."""
    source = Source.of(name)
    content = source.json("config.json")
    if not is_ours(content):
        return None
    if source.file(f"{part.part}/config.json") is None:
        return None
    try:
        return part.from_pretrained(name)
    except RelrepsError:  # a frozen base that cannot be fetched: it is only for the comparison
        return None


def _read(decoder: RelativeDecoder, r_1R: Tensor, title: str, parts: str) -> Answer:
    """What a decoder makes of a relative representation."""
    config = decoder.config
    if config.questions:
        return Answer(title, parts, why_not=f"It is several decoders: {', '.join(config.questions)}. Give one alone.")
    with torch.no_grad(), evaluating(decoder):
        output = decoder(r_1R.to(decoder.device))
    if config.decoder_type in IMAGE_DECODERS:
        return Answer(title, parts, image=_drawn(output.reconstruction[0]))
    logits_C = output.logits[0].float().cpu()
    if config.problem_type == "regression" or config.num_labels == 1:
        return Answer(title, parts, value=float(logits_C[0]))
    several = config.problem_type == "multi_label_classification"
    probabilities_C = logits_C.sigmoid() if several else logits_C.softmax(-1)
    names: dict[Any, str] = config.id2label or {}
    return Answer(title, parts, scores={one_line(names.get(i, i)): float(p) for i, p in enumerate(probabilities_C)})


def _drawn(image_CHW: Tensor) -> Image.Image:
    pixels_HWC = (image_CHW.clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)


def _short(name: str) -> str:
    """The last part of a name."""
    return name.rstrip("/").split("/")[-1]
