"""The page: which components there are, and what happens when one is used. What they show is made in `render`."""

from __future__ import annotations

from typing import Any

import gradio as gr
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hf_relreps.app.pairs import load_pair, refuse_closed
from hf_relreps.app.render import CSS, answers_html, error_html, hint_html, report_html
from hf_relreps.errors import RelrepsError
from hf_relreps.hub import find_parts
from hf_relreps.model_card import PART_TAG, TAG


__all__ = ["CSS", "build", "theme"]

TITLE = "Stitch encoders and decoders"
INTRODUCTION = f"""# {TITLE}
Relative representations describe each sample by its similarity to a fixed set of anchors. A decoder reads only these
similarities. So the encoder of one upload and the decoder of another work together without training, if they share
anchors.
"""
PLACES = {True: "Upload on the Hub, or a folder on this machine", False: "Upload on the Hub"}
FOUND_AT_MOST = 100
EXPLANATION = """**Own** is the answer of the encoder with the decoder it was trained with. **Stitched** is the pair
that you chose. **Absolute** is the control: the same pair without relative representations. If it answers as well as
stitched, the two encoders already share a latent space, and stitching them proves nothing. One sample proves nothing
either: `stitching_matrix` measures all pairs on a dataset, with the chance level.
"""
BEGINNING = (
    "Nothing to compare yet? hf-relreps quickstart makes uploads in folders, for example "
    "quickstart_output/uploads/relative-debian-fr and quickstart_output/uploads/relative-debian-en-1."
)
READS = {
    "pair": "This encoder reads pairs of texts. Stitch it in Python: hf_relreps.stitch(encoder, decoder).",
    "word": "This encoder reads words. Tag in Python: hf_relreps.stitch(encoder, decoder).tag(sentences).",
    "audio": "This encoder reads sounds. Stitch it in Python: hf_relreps.stitch(encoder, decoder).",
    "node": "This encoder reads a graph, which is not part of an upload. Stitch it in Python, with a GraphReader.",
}


def theme() -> Any:
    """Gradio's plain one, in fonts that need no network."""
    fonts = ["system-ui", "sans-serif"]
    return gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )


def build(encoder: str = "", decoder: str = "", *, folders: bool = True) -> Any:
    """The page, ready to be launched.

    Args:
        encoder: Name that stands in the encoder's place at the start.
        decoder: Name that stands in the decoder's place at the start.
        folders: Whether folders of this machine may be opened.
    """

    def compare(encoder: str, decoder: str, view: str, text: str, image: Any) -> list[Any]:
        try:
            pair = _pair(encoder, decoder, view, folders)
        except RelrepsError as error:
            return [error_html(str(error)), *_inputs(None), ""]
        hint = hint_html(READS[pair.modality]) if pair.modality in READS else ""
        given = image if pair.modality == "image" else text
        return [report_html(pair.report) + hint, *_inputs(pair.modality, given or pair.example), ""]

    def begin(*given: Any) -> list[Any]:
        if encoder and decoder:
            return compare(*given)
        return [hint_html(BEGINNING if folders else ""), *_inputs(None), ""]

    def answer(encoder: str, decoder: str, view: str, text: str, image: Any, other: str) -> str:
        try:
            pair = _pair(encoder, decoder, view, folders)
            sample = image if pair.modality == "image" else (text or "").strip()
            if sample is None or isinstance(sample, str) and not sample:
                return hint_html("First type a text or drop an image.")
            answers = pair.answers(sample)
            if other and other.strip() and pair.modality == "text":
                answers.append(pair.answer_of_other(other.strip()))
            return answers_html(answers)
        except RelrepsError as error:
            return error_html(str(error))

    with gr.Blocks(title=TITLE) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row(equal_height=False):
            with gr.Column():
                encoder_box = _upload_box("Encoder", encoder, folders)
                find_encoders = gr.Button("Find encoders on the Hub", size="sm", variant="secondary")
            with gr.Column():
                decoder_box = _upload_box("Decoder", decoder, folders)
                find_decoders = gr.Button("Find decoders that share its anchors", size="sm", variant="secondary")
        with gr.Accordion("The encoder is not relative", open=False):
            view_box = gr.Textbox(
                label="View of the anchors that the encoder reads",
                info="Any pretrained model becomes relative with the decoder's own anchors, for example: fr",
            )
        compare_button = gr.Button("Compare", variant="primary")
        report = gr.HTML(padding=False)
        with gr.Column(visible=False) as sample_column:
            gr.Markdown("## Try it")
            text_box = gr.Textbox(label="Text, as the encoder reads it", lines=2, visible=False)
            other_box = gr.Textbox(
                label="The same in the language of the decoder's own encoder (optional)", lines=1, visible=False
            )
            image_box = gr.Image(label="Image", type="pil", sources=["upload", "clipboard"], height=220, visible=False)
            try_button = gr.Button("Try", variant="primary")
        answers = gr.HTML(padding=False)
        with gr.Accordion("How to read this", open=False):
            gr.Markdown(EXPLANATION)

        inputs = [encoder_box, decoder_box, view_box]
        samples = [sample_column, text_box, other_box, image_box]
        compared = [*inputs, text_box, image_box]
        page.load(begin, compared, [report, *samples, answers])
        compare_button.click(compare, compared, [report, *samples, answers])
        for event in (try_button.click, text_box.submit, other_box.submit):
            event(answer, [*inputs, text_box, image_box, other_box], answers)
        find_encoders.click(lambda: _encoders_on_hub(folders), None, [encoder_box, report])
        find_decoders.click(lambda name: _decoders_for(name, folders), encoder_box, [decoder_box, report])
    return page


def _upload_box(label: str, value: str, folders: bool) -> Any:
    choices = [value] if value else []
    return gr.Dropdown(
        choices, value=value or None, label=label, info=PLACES[folders], allow_custom_value=True, filterable=True
    )


def _pair(encoder: str | None, decoder: str | None, view: str | None, folders: bool) -> Any:
    names = [(name or "").strip() for name in (encoder, decoder)]
    for name, place in zip(names, ("an encoder", "a decoder"), strict=True):
        if not name:
            raise RelrepsError(f"Name {place} first: an upload such as me/relative-en.")
        if not folders:
            refuse_closed(name)
    return load_pair(*names, (view or "").strip() or None)


def _inputs(modality: str | None, sample: Any = None) -> list[Any]:
    """Which of the inputs are there: the column, text, the other text, image; what is read holds a sample."""
    reads_text, reads_images = modality == "text", modality == "image"
    return [
        gr.Column(visible=reads_text or reads_images),
        gr.update(visible=True, value=sample) if reads_text else gr.update(visible=False),
        gr.update(visible=reads_text),
        gr.update(visible=True, value=sample) if reads_images else gr.update(visible=False),
    ]


def _encoders_on_hub(folders: bool) -> list[Any]:
    try:
        infos = HfApi(library_name="hf_relreps", token=None if folders else False).list_models(
            filter=[TAG, f"{PART_TAG}encoder"], limit=FOUND_AT_MOST
        )
        names = sorted(info.id for info in infos)
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        return [gr.update(), error_html(f"The search on the Hub failed: {error}")]
    return _choices(names, "uploads with an encoder")


def _decoders_for(encoder: str | None, folders: bool) -> list[Any]:
    if not (encoder or "").strip():
        return [gr.update(), error_html("Name an encoder first: decoders are found by its anchors.")]
    try:
        name = str(encoder).strip()
        if not folders:
            refuse_closed(name)
        rows = find_parts(name, part="decoder", limit=FOUND_AT_MOST, token=None if folders else False)
    except RelrepsError as error:
        return [gr.update(), error_html(str(error))]
    names = [row.repo_id for row in rows if row.fits is not False]
    return _choices(names, f"decoders that share the anchors of {encoder} and fit")


def _choices(names: list[str], what: str) -> list[Any]:
    told = f"{len(names)} {what}: choose one in the list." if names else f"There are no {what} on the Hub."
    return [gr.update(choices=names, value=names[0] if names else None), hint_html(told)]
