"""The page: which components there are, and what happens when one is used. What they show is made in `render`."""

from __future__ import annotations

from typing import Any

import gradio as gr
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hf_relreps.app.pairs import load_pair, refuse_folder
from hf_relreps.app.render import CSS, answers_html, error_html, hint_html, report_html
from hf_relreps.errors import RelrepsError
from hf_relreps.hub import find_parts
from hf_relreps.model_card import PART_TAG, TAG


__all__ = ["CSS", "build", "theme"]

TITLE = "Stitch encoders and decoders"
INTRODUCTION = f"""# {TITLE}
An encoder says where a sample lies; anchors turn that into how alike it is to each anchor; a decoder reads only that.
So the encoder of one upload and the decoder of another fit together without training, if they share anchors.
"""
PLACES = {True: "Upload of the Hub, or a folder of this machine", False: "Upload of the Hub"}
FOUND_AT_MOST = 100
EXPLANATION = """**Own** is what the encoder's upload says with the decoder it was trained with. **Stitched** is what
you asked for. **Absolute** is the control: the same encoder and decoder, as if their latent spaces were the same; if
it answers as well as stitched, the two encoders are relatives, and stitching them proves nothing. One sample proves
nothing either: `stitching_matrix` measures all pairs on a data set, beside chance.
"""
READS = {
    "audio": "This encoder reads sounds. Stitch it in Python: hf_relreps.stitch(encoder, decoder).",
    "node": "This encoder reads nodes of a graph, which no upload holds. Stitch it in Python, with a GraphReader.",
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

    def compare(encoder: str, decoder: str, view: str) -> list[Any]:
        try:
            pair = _pair(encoder, decoder, view, folders)
        except RelrepsError as error:
            return [error_html(str(error)), *_inputs(None), ""]
        hint = hint_html(READS[pair.modality]) if pair.modality in READS else ""
        return [report_html(pair.report) + hint, *_inputs(pair.modality), ""]

    def answer(encoder: str, decoder: str, view: str, text: str, image: Any, other: str) -> str:
        try:
            pair = _pair(encoder, decoder, view, folders)
            sample = image if pair.modality == "image" else (text or "").strip()
            if sample is None or isinstance(sample, str) and not sample:
                return hint_html("Type a text, or drop an image, first.")
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
        with gr.Accordion("The encoder is no relative model", open=False):
            view_box = gr.Textbox(
                label="View of the anchors that it reads",
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
        compare_button.click(compare, inputs, [report, *samples, answers])
        for event in (try_button.click, text_box.submit, other_box.submit):
            event(answer, [*inputs, text_box, image_box, other_box], answers)
        find_encoders.click(_encoders_on_hub, None, [encoder_box, report])
        find_decoders.click(_decoders_for, encoder_box, [decoder_box, report])
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
            refuse_folder(name)
    return load_pair(*names, (view or "").strip() or None)


def _inputs(modality: str | None) -> list[Any]:
    """Which of the inputs are there: the column, text, the other text, image."""
    there = [modality in ("text", "image"), modality == "text", modality == "text", modality == "image"]
    return [gr.Column(visible=there[0]), *(gr.update(visible=one) for one in there[1:])]


def _encoders_on_hub() -> list[Any]:
    try:
        infos = HfApi(library_name="hf_relreps").list_models(filter=[TAG, f"{PART_TAG}encoder"], limit=FOUND_AT_MOST)
        names = sorted(info.id for info in infos)
    except (HfHubHTTPError, OSError) as error:
        return [gr.update(), error_html(f"The Hub did not search: {error}")]
    return _choices(names, "uploads with an encoder")


def _decoders_for(encoder: str | None) -> list[Any]:
    if not (encoder or "").strip():
        return [gr.update(), error_html("Name an encoder first: decoders are found by the anchors that they share.")]
    try:
        rows = find_parts(str(encoder).strip(), part="decoder", limit=FOUND_AT_MOST)
    except RelrepsError as error:
        return [gr.update(), error_html(str(error))]
    names = [row.repo_id for row in rows if row.fits is not False]
    return _choices(names, f"decoders that share the anchors of {encoder} and fit")


def _choices(names: list[str], what: str) -> list[Any]:
    told = f"{len(names)} {what}: choose one in the list." if names else f"There are no {what} on the Hub."
    return [gr.update(choices=names, value=names[0] if names else None), hint_html(told)]
