"""`hf-relreps`: what a terminal needs of the library. Thin: each command calls one function and prints its result."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_relreps.errors import AnchorError, RelrepsError, SampleError


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_relreps.anchors import AnchorSet


TEXT_WIDTH = 96  # of the samples that are shown
FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
LOUD = ("transformers", "huggingface_hub", "hf_relreps.samples")  # samples: long anchors are cut on purpose
PIPELINES = {"text": "text-classification", "image": "image-classification"}

app = typer.Typer(
    help="Relative representations: encoders and decoders that fit together though trained apart.\n\n"
    "Begin with: hf-relreps quickstart. Each command tells more: hf-relreps stitch --help.\n\n"
    "Exit codes: 0 done, 1 the answer is no (compare), 2 something to mend, 130 interrupted. What is asked for goes "
    "to stdout, what went wrong to stderr.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
anchors_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.add_typer(anchors_app, name="anchors", help="Look at anchors, or choose them from a data set.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines, also of what went wrong.")]
View = Annotated[str | None, typer.Option(help="For an ordinary encoder: the view of the anchors that it reads.")]
Output = Annotated[Path | None, typer.Option(help="Folder to save in.")]
Push = Annotated[str | None, typer.Option(help="Repository to push to.")]
Encoder = Annotated[str, typer.Argument(help="Upload or folder whose encoder is taken.")]
Decoder = Annotated[str, typer.Argument(help="Upload or folder whose decoder is taken.")]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"hf_relreps {version('hf_relreps')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command."""


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for the picture, the JSON and the models.")] = Path(
        "quickstart_output"
    ),
    hub_user: Annotated[
        str | None, typer.Option(help="Push to the Hub under this name (needs a token); else save in folders.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Fine-tune this pretrained model instead of small BERTs from scratch.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Little data, to see that all works: no scores.")] = False,
) -> None:
    """Train four encoders in three languages, upload them, load parts of them and stitch every pair.

    Seven minutes on two cores. Without --hub-user it needs no network: the uploads are folders in OUTPUT/uploads.

    Examples:
    hf-relreps quickstart
    hf-relreps quickstart --quick --output look
    hf-relreps quickstart --encoder distilbert-base-multilingual-cased --hub-user me
    """
    from hf_relreps.demos.quickstart import launch

    launch(output, hub_user, encoder, quick)


@anchors_app.command("show")
def show_anchors(
    source: Annotated[str, typer.Argument(help="Upload or folder of anchors, of a model or of a part.")],
    rows: Annotated[int, typer.Option(help="How many anchors to print.", min=0)] = 5,
    as_json: AsJson = False,
) -> None:
    """Print what anchors an upload has: how many, their fingerprint, their views, and the first of them.

    Two uploads can be stitched if their fingerprints are equal: they name the same meanings in the same order.

    Examples:
    hf-relreps anchors show me/relative-en
    hf-relreps anchors show ./my-anchors --rows 20
    """
    from hf_relreps.anchors import AnchorSet

    found = AnchorSet.from_pretrained(source)
    _print_json(found.summary(rows)) if as_json else typer.echo(_told(found, rows))


@anchors_app.command("choose")
def choose_anchors(
    dataset: Annotated[
        str, typer.Argument(help="Data set of the Hub, a .csv, .json, .jsonl or .parquet file, or debian (bundled).")
    ],
    view: Annotated[
        list[str],
        typer.Option(help="A view and, if it is called otherwise, its column: en, or en=text. One for each."),
    ],
    k: Annotated[int, typer.Option("--k", "-k", help="How many; the paper takes 300 to 768.", min=1)] = 300,
    id_column: Annotated[str | None, typer.Option(help="Column that names the rows; else a hash of each.")] = None,
    strategy: Annotated[str, typer.Option(help="uniform, or stratified by label.")] = "uniform",
    label_column: Annotated[str, typer.Option(help="Classes for stratified.")] = "label",
    split: Annotated[str, typer.Option(help="Of the data set.")] = "train",
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 42,
    output: Output = None,
    push: Push = None,
    as_json: AsJson = False,
) -> None:
    """Choose k rows of a data set as anchors; one row is one meaning, its views are parallel columns.

    Examples:
    hf-relreps anchors choose debian --view en --view fr --id-column package --output my-anchors
    hf-relreps anchors choose pairs.csv -k 500 --view en=english --view de=german --push me/anchors
    """
    from hf_relreps.anchors import AnchorSet

    columns = {name: column or name for name, _, column in (one.partition("=") for one in view)}
    chosen = AnchorSet.from_dataset(
        _load(dataset, split),
        k,
        views=columns,
        id_column=id_column,
        strategy=strategy,
        seed=seed,
        label_column=label_column,
    )
    if output is not None:
        chosen.save_pretrained(output)
    if push is not None:
        chosen.push_to_hub(push)
    if as_json:
        _print_json(chosen.summary() | {"saved": _text(output), "pushed": push})
        return
    typer.echo(_told(chosen, 3))
    typer.echo(_done(output, push) or "nothing saved: --output folder, or --push me/anchors")


@app.command()
def stitch(
    encoder: Annotated[str, typer.Argument(help="Upload or folder whose encoder is taken; or any pretrained model.")],
    decoder: Annotated[str, typer.Argument(help="Upload or folder whose decoder is taken; or any classifier.")],
    output: Output = None,
    push: Push = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to classify; may be given several times.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image file to classify; several times too.")] = None,
    view: View = None,
    anchors: Annotated[
        str | None, typer.Option(help="For an ordinary classifier as decoder: the anchors that both read.")
    ] = None,
    decoder_view: Annotated[
        str | None, typer.Option(help="For an ordinary classifier: the view of the anchors that it reads.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put an encoder and a decoder together without training; save it, push it, or try it.

    Examples:
    hf-relreps stitch me/relative-fr me/relative-en --text "un jeu de cartes"
    hf-relreps stitch almanach/camembert-base me/relative-en --view fr --output french
    hf-relreps stitch me/vit-relative me/resnet-relative --image cat.png --json
    """
    from hf_relreps.stitching import stitch as stitch_parts

    told = {"view": view, "anchors": anchors, "decoder_view": decoder_view}
    model = stitch_parts(encoder, decoder, **{name: value for name, value in told.items() if value is not None})
    answers = _answers(model, "text", text or []) + _answers(model, "image", image or [])
    if output is not None:
        model.save_pretrained(output)
    if push is not None:
        model.push_to_hub(push)
    if as_json:
        parts = {"encoder": encoder, "decoder": decoder, "saved": _text(output), "pushed": push}
        _print_json(parts | {"answers": answers})
        return
    widest = max((len(answer["label"]) for answer in answers), default=0)
    for answer in answers:
        typer.echo(f"{answer['label']:<{widest}}  {answer['score']:.2f}  {answer['sample']}")
    done = _done(output, push)
    if done or not answers:
        typer.echo(done or "they fit; nothing saved (see --text, --image, --output, --push)")


@app.command()
def compare(
    encoder: Encoder,
    decoder: Decoder,
    pairs: Annotated[
        str | None,
        typer.Option(help="Unlabelled samples, 100 or more: a data set or a file whose columns are the two views."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of that data set.")] = "test",
    own_accuracy: Annotated[
        float | None, typer.Option(help="How often the decoder is right behind its own encoder, if known: 0.91.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether an encoder and a decoder fit, and why not. The exit code is 1 if they do not.

    With pairs, samples that are neither anchors nor training data, it also says how much of its own score the decoder
    is expected to keep; the decoder's upload must hold its own encoder.

    Examples:
    hf-relreps compare me/relative-fr me/relative-en
    hf-relreps compare me/relative-fr me/relative-en --json | jq .fits
    hf-relreps compare me/relative-fr me/relative-en --pairs parallel.csv --own-accuracy 0.91
    """
    from hf_relreps.stitching import compatibility

    told = {} if pairs is None else {"own_encoder": decoder, "pairs": _parallel(pairs, split, encoder, decoder)}
    report = compatibility(encoder, decoder, own_accuracy=own_accuracy, **told)  # type: ignore[arg-type]
    _print_json(report.to_dict()) if as_json else typer.echo(str(report))
    raise typer.Exit(0 if report.fits else 1)


@app.command()
def find(
    anchors: Annotated[str, typer.Argument(help="An upload of a model, a part or anchors; or a fingerprint.")],
    task: Annotated[str | None, typer.Option(help="Only for this task, for example text-classification.")] = None,
    language: Annotated[str | None, typer.Option(help="Only with this language or view, for example fr.")] = None,
    part: Annotated[str | None, typer.Option(help="Only uploads that hold an encoder, or a decoder.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the uploads on the Hub that share anchors, and whether they fit.

    Examples:
    hf-relreps find me/relative-en --language fr --part encoder
    hf-relreps find b2c3e1f04a5d6978 --json | jq -r '.[].repo_id'
    """
    from hf_relreps.hub import find_parts

    found = find_parts(anchors, task=task, language=language, part=part)
    _print_json([dataclasses.asdict(row) for row in found]) if as_json else typer.echo(str(found))


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="Upload to copy.")],
    folder: Annotated[Path, typer.Argument(help="Folder to copy it into.")],
    part: Annotated[str | None, typer.Option(help="Only this part: encoder, decoder or anchors.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Copy an upload, or one part of it, into a folder; every file is checked against the repository's digests.

    Examples:
    hf-relreps pull me/relative-en english
    hf-relreps pull me/relative-en english --part decoder --revision v1
    """
    from hf_relreps.hub import pull as pull_files

    place = pull_files(repo, folder, part=part, revision=revision)
    if as_json:
        _print_json({"repo_id": repo, "part": part, "revision": revision, "folder": str(place)})
        return
    typer.echo(f"{repo}: {part or 'all of it'} is in {place}")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, encoder or decoder.")],
    repo: Annotated[str | None, typer.Option(help="Repository as it will stand in the code to paste.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the card of a saved upload into its folder; what a person wrote into it stays.

    Examples:
    hf-relreps card english --repo me/relative-en
    """
    from hf_relreps.hub import write_card

    file = write_card(folder, repo)
    _print_json({"file": str(file)}) if as_json else typer.echo(f"wrote {file}")


@app.command(name="app")
def open_app(
    encoder: Annotated[str, typer.Argument(help="Upload or folder in the encoder's place at the start.")] = "",
    decoder: Annotated[str, typer.Argument(help="Upload or folder in the decoder's place at the start.")] = "",
    port: Annotated[int | None, typer.Option(help="Port; a free one from 7860 on if left out.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--browser", help="Open it in the browser.")] = False,
    push: Annotated[str | None, typer.Option(help="Push it as a Space of this name, and start nothing.")] = None,
) -> None:
    """Try an encoder with another upload's decoder in a browser: the report, and their answers side by side.

    It needs Gradio: pip install gradio.

    Examples:
    hf-relreps app
    hf-relreps app me/relative-fr me/relative-en --browser
    hf-relreps app --push me/stitching
    """
    from hf_relreps.app import launch, push_to_hub

    if push is not None:
        push_to_hub(push)
        typer.echo(f"pushed to the Space {push}")
        return
    launch(encoder, decoder, server_port=port, server_name=host, inbrowser=browser)


def _load(name: str, split: str) -> Dataset:
    """A data set by its name, its file, or bundled."""
    from datasets import load_dataset

    from hf_relreps.demos.debian import load_debian_descriptions

    kind = FILE_FORMATS.get(Path(name).suffix)
    try:
        if name == "debian":
            return load_debian_descriptions(split)
        if kind is not None:
            return load_dataset(kind, data_files=name, split="train")
        return load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        raise AnchorError(
            f"There is no data set {name!r} with a split {split!r} to read: {str(error).rstrip('.')}. Give one of the "
            f"Hub, a {', '.join(FILE_FORMATS)} file, or debian."
        ) from error


def _parallel(name: str, split: str, *uploads: str) -> tuple[list[Any], ...]:
    """The column of each upload's own view."""
    from hf_relreps.hub import read_config

    rows = _load(name, split)
    views = [str(getattr(read_config(upload), "anchor_view", None)) for upload in uploads]
    missing = [view for view in views if view not in rows.column_names]
    if missing:
        raise SampleError(
            f"{name} has the columns {', '.join(rows.column_names)}; the uploads read the views {', '.join(views)}. "
            "Name its columns as the views."
        )
    return tuple(rows[view][:] for view in views)


def _told(anchors: AnchorSet, rows: int) -> str:
    """What a person wants to know of anchors, with the first of them."""
    summary = anchors.summary(rows)
    views = ", ".join(f"{name} ({modality})" for name, modality in summary["views"].items())
    lines = [f"{len(anchors)} anchors, fingerprint {anchors.fingerprint[:16]}", f"views: {views}"]
    origin = ", ".join(f"{name} {value}" for name, value in summary["origin"].items())
    lines += [f"origin: {origin}"] if origin else []
    widest = max(map(len, summary["views"]))
    for row in summary["rows"]:
        lines += ["", f"  {row['id']}"]
        lines += [
            f"    {name:<{widest}}  {textwrap.shorten(str(row[name]), TEXT_WIDTH, placeholder=' ...')}"
            for name in summary["views"]
        ]
    return "\n".join(lines)


def _answers(model: Any, modality: str, samples: Sequence[Any]) -> list[dict[str, Any]]:
    """What a stitched model says of samples, by its `pipeline`."""
    if not samples:
        return []
    if model.config.modality != modality or modality not in PIPELINES or not model.config.id2label:
        raise SampleError(
            f"The stitched model reads {model.config.modality}s, --{modality} was given. Leave it out, and use the "
            "model in Python: hf_relreps.stitch(encoder, decoder)."
        )
    from transformers import pipeline

    parts = {"text": "tokenizer", "image": "image_processor"}
    classify = pipeline(PIPELINES[modality], model=model, **{parts[modality]: model.processor})  # type: ignore[call-overload]
    given = [str(sample) for sample in samples]
    try:
        found = classify(given)
    except (OSError, ValueError) as error:
        raise SampleError(f"--{modality} cannot be read: {error}") from error
    best = [answer[0] if isinstance(answer, list) else answer for answer in found]
    return [{"sample": sample, **answer} for sample, answer in zip(given, best, strict=True)]


def _done(output: Path | None, push: str | None) -> str:
    return ", ".join([*([f"saved in {output}"] if output else []), *([f"pushed to {push}"] if push else [])])


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings would drown the answer; bars of downloads show on a terminal only. Afterwards all is as it was."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    levels = {logger: logger.level for logger in map(logging.getLogger, LOUD)}
    loading, downloads = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    settings = {"DATASETS_VERBOSITY": "error"}
    if not sys.stderr.isatty():
        settings["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    settings = {name: value for name, value in settings.items() if name not in os.environ}
    try:
        os.environ.update(settings)  # read when a command imports datasets
        for logger in levels:
            logger.setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()  # and with them those of downloads
        if downloads and sys.stderr.isatty():
            enable_progress_bars()
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        if loading:
            transformers_logging.enable_progress_bar()
        if downloads:
            enable_progress_bars()
        else:
            disable_progress_bars()
        for name in settings:
            os.environ.pop(name, None)


def _explain(error: Exception) -> None:
    """One sentence on stderr, and for machines the same as JSON on stdout."""
    typer.echo(f"hf-relreps: {error}", err=True)
    if "--json" in sys.argv:
        _print_json({"error": type(error).__name__, "message": str(error)})


def main() -> None:
    """The entry point: an error that the user can mend is a sentence and exit code 2, not a traceback."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with _quiet():
            app()
    except (RelrepsError, HfHubHTTPError, HFValidationError, OSError) as error:
        _explain(error)
        sys.exit(2)
