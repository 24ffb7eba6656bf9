"""`hf-relreps`: what a terminal needs of the library. Thin: each command calls one function and prints its result."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_relreps.errors import RelrepsError


app = typer.Typer(
    help="Relative representations: encoders and decoders that fit together though trained apart.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
View = Annotated[str | None, typer.Option(help="For an ordinary encoder: the view of the anchors that it reads.")]


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for the picture, the JSON and the models.")] = Path(
        "quickstart_output"
    ),
    hub_user: Annotated[
        str | None, typer.Option(help="Push to the real Hub under this name (needs a token); else to a local one.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Fine-tune this pretrained model instead of small BERTs from scratch.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Little data, to see that all works: no scores.")] = False,
) -> None:
    """Train four encoders in three languages, push them, pull parts of them and stitch every pair."""
    from hf_relreps.demos.quickstart import launch

    raise typer.Exit(launch(output, hub_user, encoder, quick))


@app.command()
def stitch(
    encoder: Annotated[str, typer.Argument(help="Upload or folder whose encoder is taken; or any pretrained model.")],
    decoder: Annotated[str, typer.Argument(help="Upload or folder whose decoder is taken.")],
    output: Annotated[Path | None, typer.Option(help="Folder to save the stitched model in.")] = None,
    push: Annotated[str | None, typer.Option(help="Repository to push the stitched model to.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to classify; may be given several times.")] = None,
    view: View = None,
    as_json: AsJson = False,
) -> None:
    """Put an encoder and a decoder together without training; save it, push it, or try it on texts.

    Example: `hf-relreps stitch me/relative-fr me/relative-en --text "un jeu de cartes"`
    """
    from transformers import pipeline

    from hf_relreps.stitching import stitch as stitch_parts

    model = stitch_parts(encoder, decoder, view=view)
    if output is not None:
        model.save_pretrained(output)
    if push is not None:
        model.push_to_hub(push)
    found = pipeline("text-classification", model=model, tokenizer=model.processor)(list(text)) if text else []
    rows = [{"text": one, **answer} for one, answer in zip(text or [], found, strict=True)]
    if as_json:
        saved = str(output) if output else None
        _print_json({"encoder": encoder, "decoder": decoder, "saved": saved, "pushed": push, "texts": rows})
        return
    for row in rows:
        typer.echo(f"{row['label']:<12} {row['score']:.2f}  {row['text']}")
    done = [f"saved in {output}"] if output else []
    done += [f"pushed to {push}"] if push else []
    typer.echo(f"{encoder} + {decoder}: " + (", ".join(done) or "they fit; nothing saved (see --output, --push)"))


@app.command()
def compare(
    encoder: Annotated[str, typer.Argument(help="Upload or folder of the encoder.")],
    decoder: Annotated[str, typer.Argument(help="Upload or folder of the decoder.")],
    as_json: AsJson = False,
) -> None:
    """Say whether an encoder and a decoder fit, and why not. The exit code is 1 if they do not."""
    from hf_relreps.stitching import compatibility

    report = compatibility(encoder, decoder)
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

    Example: `hf-relreps find me/relative-en --language fr --part encoder`
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
) -> None:
    """Copy an upload, or one part of it, into a folder; every file is checked against the repository's digests."""
    from hf_relreps.hub import pull as pull_files

    typer.echo(f"{repo}: {part or 'all of it'} is in {pull_files(repo, folder, part=part, revision=revision)}")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, encoder or decoder.")],
    repo: Annotated[str | None, typer.Option(help="Repository as it will stand in the code to paste.")] = None,
) -> None:
    """Write the card of a saved upload into its folder; what a person wrote into it stays."""
    from hf_relreps.hub import write_card

    typer.echo(f"wrote {write_card(folder, repo)}")


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def main() -> None:
    """The entry point: an error that the user can mend is a sentence on stderr and exit code 2, not a traceback."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        app()
    except RelrepsError as error:
        typer.echo(f"hf-relreps: {error}", err=True)
        sys.exit(2)
