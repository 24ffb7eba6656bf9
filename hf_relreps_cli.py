"""`hf-relreps`: what a terminal needs of the library. Thin: each command calls one function and prints its result.

It lies beside the package: `import hf_relreps` loads torch and transformers, and `--help` answers without them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_relreps.anchors import AnchorSet
    from hf_relreps.modeling import RelativeModel


TEXT_WIDTH = 96  # of the samples that are shown
LOUD = ("transformers", "huggingface_hub", "hf_relreps.samples")  # samples: long anchors are cut on purpose
PIPELINES = {
    "text": "text-classification",
    "pair": "text-classification",
    "word": "token-classification",
    "image": "image-classification",
}
OPTIONS = {"text": "--text", "pair": "--text-pair", "image": "--image"}


class Command(TyperCommand):
    """A command that loads the library when it runs, not when its help is read."""

    def invoke(self, ctx: Any) -> Any:
        """Run it, and let only its answer be printed; an error gets to know the options."""
        try:
            with _quiet():
                return super().invoke(ctx)
        except Exception as error:
            vars(error)["options"] = {param.name: param.opts[0] for param in self.params if "--" in param.opts[0]}
            raise


app = typer.Typer(
    help="Relative representations: use the encoder of one model with the decoder of another, without training.\n\n"
    "Start with: hf-relreps quickstart. For the options of a command: hf-relreps stitch --help.\n\n"
    "Exit codes: 0 success, 1 the parts do not fit (compare), 2 error, 130 interrupted. Results go to stdout, errors "
    "to stderr.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
anchors_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.add_typer(anchors_app, name="anchors", help="Show anchors, or choose them from a dataset.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for errors too.")]
View = Annotated[str | None, typer.Option(help="For an ordinary encoder: the view of the anchors to encode.")]
Output = Annotated[Path | None, typer.Option(help="Folder to save to.")]
Push = Annotated[str | None, typer.Option(help="Repository to push to.")]
Encoder = Annotated[str, typer.Argument(help="Upload or folder to take the encoder from.")]
Decoder = Annotated[str, typer.Argument(help="Upload or folder to take the decoder from.")]


def _say(text: object, err: bool = False) -> None:
    """Print: what it quotes of an upload is seen, and does nothing to the terminal."""
    from hf_relreps.printing import printable

    typer.echo(printable(text), err=err)


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
    """Options before the command."""


@app.command(cls=Command)
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for the plot, the JSON file and the models.")] = Path(
        "quickstart_output"
    ),
    hub_user: Annotated[
        str | None,
        typer.Option(help="Push to the Hub under this user name (needs a token). Default: save to folders."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Fine-tune this pretrained model instead of small BERTs from scratch.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Little data, one minute: lower scores.")] = False,
) -> None:
    """Train four encoders in three languages, upload them, load their parts and stitch every pair.

    About four minutes on two cores. Without --hub-user it needs no network:
    the uploads are folders in OUTPUT/uploads.

    Examples:
    hf-relreps quickstart
    hf-relreps quickstart --quick --output look
    hf-relreps quickstart --encoder distilbert-base-multilingual-cased --hub-user me
    """
    from hf_relreps.demos.quickstart import launch

    launch(output, hub_user, encoder, quick)


@anchors_app.command("show", cls=Command)
def show_anchors(
    source: Annotated[str, typer.Argument(help="Upload or folder of an anchor set, a model or a part.")],
    rows: Annotated[int, typer.Option(help="How many anchors to print.", min=0)] = 5,
    as_json: AsJson = False,
) -> None:
    """Show the anchors of an upload: their number, fingerprint, views and first samples.

    Two uploads can be stitched only if they have the same fingerprint: the
    same anchors in the same order.

    Examples:
    hf-relreps anchors show me/relative-en
    hf-relreps anchors show ./my-anchors --rows 20
    """
    from hf_relreps.anchors import AnchorSet

    found = AnchorSet.from_pretrained(source)
    _print_json(found.summary(rows)) if as_json else _say(_told(found, rows))


@anchors_app.command("choose", cls=Command)
def choose_anchors(
    dataset: Annotated[
        str, typer.Argument(help="Dataset on the Hub, a .csv, .json, .jsonl or .parquet file, or debian (bundled).")
    ],
    view: Annotated[
        list[str],
        typer.Option(
            help="A view, with its column if the names differ: en, or en=text; with two columns for pairs of texts: "
            "en=premise,hypothesis. Repeat for each view."
        ),
    ],
    k: Annotated[int, typer.Option("--k", "-k", help="Number of anchors; the paper uses 300 to 768.", min=1)] = 300,
    id_column: Annotated[
        str | None, typer.Option(help="Column with a unique id for each row. Default: a hash of the row.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="uniform, or stratified by label.")] = "uniform",
    label_column: Annotated[str, typer.Option(help="Column with the classes, for stratified.")] = "label",
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 42,
    output: Output = None,
    push: Push = None,
    as_json: AsJson = False,
) -> None:
    """Choose k rows of a dataset as anchors. Views are parallel columns, such as translations.

    Examples:
    hf-relreps anchors choose debian --view en --view fr --id-column package --output my-anchors
    hf-relreps anchors choose pairs.csv -k 500 --view en=english --view de=german --push me/anchors
    hf-relreps anchors choose nli.csv -k 768 --view en=premise,hypothesis --output nli-anchors
    """
    from hf_relreps.anchors import AnchorSet
    from hf_relreps.errors import AnchorError

    if strategy in ("kmeans", "fps"):
        raise AnchorError(
            f"--strategy {strategy} needs embeddings, which this command does not make. Choose uniform or stratified, "
            f"or in Python AnchorSet.from_dataset(rows, k, strategy={strategy!r}, embeddings=encoder.encode(texts))."
        )
    rows = _load(dataset, split)
    columns = {name: column or name for name, _, column in (one.partition("=") for one in view)}
    chosen = AnchorSet.from_dataset(
        rows,
        k,
        views={name: column if column in rows.column_names else column.split(",") for name, column in columns.items()},
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
    _say(_told(chosen, 3))
    _say(_done(output, push) or "nothing saved (see --output and --push)")


@app.command(cls=Command)
def stitch(
    encoder: Annotated[
        str, typer.Argument(help="Upload or folder to take the encoder from, or any pretrained model.")
    ],
    decoder: Annotated[str, typer.Argument(help="Upload or folder to take the decoder from, or any classifier.")],
    output: Output = None,
    push: Push = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to classify. Can be repeated.")] = None,
    text_pair: Annotated[
        list[str] | None, typer.Option(help="For models of pairs of texts: the second text of each --text.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="An image file to classify. Can be repeated.", exists=True, dir_okay=False),
    ] = None,
    view: View = None,
    layer: Annotated[
        int | None,
        typer.Option(help="For an ordinary encoder: the hidden state to read, for example -3."),
    ] = None,
    anchors: Annotated[
        str | None, typer.Option(help="For an ordinary classifier as decoder: the anchors that both models encode.")
    ] = None,
    decoder_view: Annotated[
        str | None, typer.Option(help="For an ordinary classifier as decoder: the view of the anchors to encode.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="Unlabelled samples, 100 or more: a dataset or a file whose columns are the two views."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of that dataset.")] = "test",
    as_json: AsJson = False,
) -> None:
    """Stitch an encoder and a decoder without training. Save the model, push it, or try it.

    With pairs the model is calibrated: its scores say how often such answers are right, and answers have a
    familiarity, which is near zero for an input that is nothing like the anchors and the pairs.

    Examples:
    hf-relreps stitch me/relative-fr me/relative-en --text "un jeu de cartes"
    hf-relreps stitch almanach/camembert-base me/relative-en --view fr --output french
    hf-relreps stitch me/bert-nli me/roberta-nli --text "A man sleeps." --text-pair "Nobody is awake."
    hf-relreps stitch me/vit-relative me/resnet-relative --image cat.png --json
    hf-relreps stitch me/relative-fr me/relative-en --pairs parallel.csv --text "un jeu de cartes"
    """
    from hf_relreps.printing import one_line
    from hf_relreps.stitching import stitch as stitch_parts
    from hf_relreps.trust import calibrate

    told: dict[str, Any] = {"view": view, "layer": layer, "anchors": anchors, "decoder_view": decoder_view}
    model = stitch_parts(encoder, decoder, **{name: value for name, value in told.items() if value is not None})
    known = None
    if pairs is not None:
        from hf_relreps.trust import calibrate

        parallel: Any = _parallel(pairs, split, encoder, decoder)
        model, known = calibrate(model, own_encoder=decoder, pairs=parallel), parallel[0]
    answers = _answers(model, *_texts(text or [], text_pair or []), known) + _answers(
        model, "image", image or [], known
    )
    if output is not None:
        model.save_pretrained(output)
    if push is not None:
        model.push_to_hub(push)
    if as_json:
        parts = {"encoder": encoder, "decoder": decoder, "saved": _text(output), "pushed": push}
        _print_json(parts | {"answers": answers})
        return
    labels = [one_line(answer["label"]) for answer in answers]
    widest = max(map(len, labels), default=0)
    for label, answer in zip(labels, answers, strict=True):
        question = f"{answer['decoder']}: " if "decoder" in answer else ""
        familiar = f"  familiarity {answer['familiarity']:.2f}" if "familiarity" in answer else ""
        _say(f"{question}{label:<{widest}}  {answer['score']:.2f}{familiar}  {_shown(answer['sample'])}")
    done = _done(output, push)
    if done or not answers:
        _say(done or "they fit; nothing saved (see --text, --image, --output, --push)")


@app.command(cls=Command)
def encode(
    encoder: Annotated[
        str, typer.Argument(help="Upload or folder to take the encoder from, or any pretrained model with --anchors.")
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            help="Files (.parquet, .jsonl, .json, .csv), a folder of them, a dataset on the Hub, or debian."
        ),
    ],
    column: Annotated[
        str, typer.Option(help="Column that the encoder reads; two for pairs of texts: premise,hypothesis.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the shards.")],
    keep: Annotated[list[str] | None, typer.Option(help="A column to store too. Can be repeated.")] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset on the Hub.")] = "train",
    dtype: Annotated[str, typer.Option(help="Of the stored numbers: float32 or float16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Samples that the encoder reads at a time.", min=1)] = 64,
    rows_per_shard: Annotated[int, typer.Option(help="Rows of a file.", min=1)] = 32_768,
    anchors: Annotated[str | None, typer.Option(help="For an ordinary encoder: its anchors.")] = None,
    view: View = None,
    ray_actors: Annotated[int | None, typer.Option(help="Let this many actors of Ray Data encode.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Encode data of any size into parquet files, each written whole or not at all.

    Run the same command again after an interruption: it encodes what is missing.
    Under accelerate launch each process takes its share. The files hold
    absolute embeddings, so other anchors need no second pass.

    Examples:
    hf-relreps encode me/relative-en texts/*.parquet --column text --output shards
    hf-relreps encode me/relative-en me/dataset --column text --keep id --dtype float16 --output shards
    hf-relreps encode intfloat/e5-small data.jsonl --column text --anchors me/anchors --view en --output shards
    accelerate launch -m hf_relreps_cli encode me/relative-en texts/*.parquet --column text --output shards
    """
    from hf_relreps.demos.debian import load_debian_descriptions
    from hf_relreps.shards import encode_shards

    found = _encoder(encoder, anchors, view)
    found = _on_device(found) if ray_actors is None else found  # actors choose their own
    rows: Any = load_debian_descriptions(split) if data == ["debian"] else data if len(data) > 1 else data[0]
    how: dict[str, Any] = {"keep": keep or (), "split": split, "dtype": dtype, "batch_size": batch_size}
    how |= {"rows_per_shard": rows_per_shard, "ray_actors": ray_actors}
    done = encode_shards(found, rows, column.split(",") if "," in column else column, output, **how)
    if as_json:
        _print_json(dataclasses.asdict(done) | {"folder": str(done.folder)})
        return
    rest = "" if done.is_complete else ", not yet all of the data"
    _say(f"{done.rows:,} rows in {done.shards} shards in {done.folder}{rest}; {done.rows_encoded:,} encoded now")


@app.command(cls=Command)
def compare(
    encoder: Encoder,
    decoder: Decoder,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="100 or more unlabelled samples: a dataset or file with a column for each of the two views."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of that dataset.")] = "test",
    own_accuracy: Annotated[
        float | None, typer.Option(help="Accuracy of the decoder with its own encoder, if known, for example 0.91.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether an encoder and a decoder fit. The exit code is 1 if they do not.

    With --pairs, it also predicts how much of its score the decoder keeps.
    The pairs must be neither anchors nor training data, and the decoder's
    upload must contain its own encoder.

    Examples:
    hf-relreps compare me/relative-fr me/relative-en
    hf-relreps compare me/relative-fr me/relative-en --json | jq .fits
    hf-relreps compare me/relative-fr me/relative-en --pairs parallel.csv --own-accuracy 0.91
    """
    from hf_relreps.stitching import compatibility

    told = {} if pairs is None else {"own_encoder": decoder, "pairs": _parallel(pairs, split, encoder, decoder)}
    report = compatibility(encoder, decoder, own_accuracy=own_accuracy, **told)  # type: ignore[arg-type]
    _print_json(report.to_dict()) if as_json else _say(str(report))
    raise typer.Exit(0 if report.fits else 1)


@app.command(cls=Command)
def find(
    anchors: Annotated[str, typer.Argument(help="Upload of a model, a part or an anchor set, or a fingerprint.")],
    task: Annotated[
        str | None, typer.Option(help="Only uploads for this task, for example text-classification.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Only uploads with this language or view, for example fr.")
    ] = None,
    part: Annotated[str | None, typer.Option(help="Only uploads with this part: encoder or decoder.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the uploads on the Hub that share anchors, and whether they fit.

    Examples:
    hf-relreps find me/relative-en --language fr --part encoder
    hf-relreps find b2c3e1f04a5d6978 --json | jq -r '.[].repo_id'
    """
    from hf_relreps.hub import find_parts

    found = find_parts(anchors, task=task, language=language, part=part)
    _print_json([dataclasses.asdict(row) for row in found]) if as_json else _say(str(found))


@app.command(cls=Command)
def pull(
    repo: Annotated[str, typer.Argument(help="Upload to download.")],
    folder: Annotated[Path, typer.Argument(help="Folder to download to.")],
    part: Annotated[str | None, typer.Option(help="Only this part: encoder, decoder or anchors.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download an upload, or one part of it, to a folder. Every file is checked against the repository's digests.

    Examples:
    hf-relreps pull me/relative-en english
    hf-relreps pull me/relative-en english --part decoder --revision v1
    """
    from hf_relreps.hub import pull as pull_files

    place = pull_files(repo, folder, part=part, revision=revision)
    if as_json:
        _print_json({"repo_id": repo, "part": part, "revision": revision, "folder": str(place)})
        return
    _say(f"{repo}: {part or 'all of it'} is in {place}")


@app.command(cls=Command)
def migrate(
    index: Annotated[
        Path, typer.Argument(help="Your vectors: a .npy file, a parquet file or folder, a LanceDB table or folder.")
    ],
    new: Annotated[
        str | None, typer.Option(help="The new model: a SentenceTransformer on the Hub or in a folder.")
    ] = None,
    new_vectors: Annotated[
        str | None,
        typer.Option(help="Instead of --new: its vectors of the same rows, in a .npy file or a column of INDEX."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="For .npy: a .txt file with a line for each row, or .csv, .jsonl, .parquet.")
    ] = None,
    vector_column: Annotated[str, typer.Option(help="Column with the vectors.")] = "vector",
    text_column: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    table: Annotated[str | None, typer.Option(help="Table of a LanceDB folder. Default: the only one.")] = None,
    pairs: Annotated[int, typer.Option(help="Documents that the new model encodes; 300 at least.", min=100)] = 1000,
    renewed: Annotated[
        Path | None, typer.Option(help="Folder that keeps what is encoded, so that a killed run goes on.")
    ] = None,
    old_name: Annotated[str | None, typer.Option(help="Name of the old model, for the record.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    output: Output = None,
    push: Push = None,
    as_json: AsJson = False,
) -> None:
    """Search an index of an old embedding model with a new one, without encoding it again.

    The new model encodes a sample of the index's texts. The report says how
    much its queries will find. --output saves the adapter: the new model with
    embeddings in the space of the old one. INDEX is only read.

    Examples:
    hf-relreps migrate documents.parquet --new me/new-model --output adapter
    hf-relreps migrate vectors.npy --texts texts.txt --new me/new-model
    hf-relreps migrate lancedb-folder --table docs --new me/new-model --push me/adapter
    hf-relreps migrate old.npy --new-vectors new.npy --output migration
    """
    from hf_relreps.errors import ConfigurationError
    from hf_relreps.migration.indexes import migrate_index

    how: dict[str, Any] = {} if new is None else {"progress": True, "renewed": renewed}
    if new is None and push is not None:
        raise ConfigurationError("--push needs --new: only a model can be pushed. Save what was fitted with --output.")
    how |= {"vector_column": vector_column, "text_column": text_column, "table": table}
    found: Any = migrate_index(
        index, new, new_vectors=new_vectors, texts=texts, pairs=pairs, seed=seed, old_model=old_name, **how
    )
    if output is not None:
        found.save(output)
    if push is not None:
        found.adapter().push_to_hub(push)
    if as_json:
        fitted = found if new is None else found.migration
        told = {
            "expected_recall": fitted.expected_recall,
            "verdict": fitted.verdict,
            **dataclasses.asdict(fitted.facts),
        }
        _print_json(told | {"output": _text(output), "pushed_to": push})
        return
    _say("\n".join(filter(None, [found.report, _done(output, push)])))


@app.command(cls=Command)
def card(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, encoder or decoder.")],
    repo: Annotated[str | None, typer.Option(help="Repository name to show in the code example.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card of a saved upload. What you wrote into it by hand is kept.

    Examples:
    hf-relreps card english --repo me/relative-en
    """
    from hf_relreps.hub import write_card

    file = write_card(folder, repo)
    _print_json({"file": str(file)}) if as_json else _say(f"wrote {file}")


@app.command(name="app", cls=Command)
def open_app(
    encoder: Annotated[str, typer.Argument(help="Upload or folder to preselect as encoder.")] = "",
    decoder: Annotated[str, typer.Argument(help="Upload or folder to preselect as decoder.")] = "",
    port: Annotated[int | None, typer.Option(help="Port. Default: the first free one from 7860.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from other machines.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--browser", help="Open the browser.")] = False,
    push: Annotated[
        str | None, typer.Option(help="Push the app as a Space with this name instead of starting it.")
    ] = None,
) -> None:
    r"""Try an encoder with another upload's decoder in a browser, side by side with the originals.

    It needs Gradio: pip install "hf_relreps\[app]".

    Examples:
    hf-relreps app
    hf-relreps app me/relative-fr me/relative-en --browser
    hf-relreps app --push me/stitching
    """
    from hf_relreps.app import launch, push_to_hub

    if push is not None:
        push_to_hub(push)
        _say(f"pushed to the Space {push}")
        return
    launch(encoder, decoder, server_port=port, server_name=host, inbrowser=browser)


def _encoder(name: str, anchors: str | None, view: str | None) -> RelativeModel:
    """The encoder of an upload, or an ordinary one made relative."""
    from hf_relreps.anchors import AnchorSet
    from hf_relreps.errors import AnchorError
    from hf_relreps.modeling import RelativeModel
    from hf_relreps.stitching import find_encoder

    found = find_encoder(name)
    if found is not None:
        return found
    if anchors is None:
        raise AnchorError(
            f"{name} is an ordinary encoder. Name its anchors with --anchors, and their view with --view."
        )
    chosen = AnchorSet.from_pretrained(anchors)
    if view is None and len(chosen.views) > 1:
        raise AnchorError(
            f"{anchors} has the views {', '.join(chosen.views)}. Name the one that {name} reads with --view."
        )
    return RelativeModel.from_encoder(name, chosen if view is None else chosen.view(view))


def _on_device(encoder: RelativeModel) -> RelativeModel:
    """On the accelerator of this process, where there is one."""
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return encoder.eval()
    index = int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.accelerator.device_count())
    return encoder.eval().to(torch.device(device.type, index))


def _load(name: str, split: str) -> Dataset:
    """A dataset by its name, its file, or bundled."""
    from datasets import load_dataset

    from hf_relreps.blocks import FILE_FORMATS
    from hf_relreps.demos.debian import load_debian_descriptions
    from hf_relreps.errors import AnchorError

    kind = FILE_FORMATS.get(Path(name).suffix)
    if kind is None and Path(name).is_file():
        raise AnchorError(
            f"{name} is a file, expected one of {', '.join(FILE_FORMATS)}. Save the table in one of these formats."
        )
    try:
        if name == "debian":
            return load_debian_descriptions(split)
        if kind is not None:
            return load_dataset(kind, data_files=name, split="train")
        return load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        raise AnchorError(
            f"Cannot load dataset {name!r} with split {split!r}: {str(error).rstrip('.')}. Pass a dataset on the Hub, "
            f"a {', '.join(FILE_FORMATS)} file, or debian."
        ) from error


def _parallel(name: str, split: str, *uploads: str) -> tuple[list[Any], ...]:
    """The column of each upload's own view."""
    from hf_relreps.errors import SampleError
    from hf_relreps.hub import read_config

    rows = _load(name, split)
    views = [str(getattr(read_config(upload), "anchor_view", None)) for upload in uploads]
    missing = [view for view in views if view not in rows.column_names]
    if missing:
        raise SampleError(
            f"{name} has the columns {', '.join(rows.column_names)}, but the uploads read the views "
            f"{', '.join(views)}. Rename its columns to the views."
        )
    return tuple(rows[view][:] for view in views)


def _told(anchors: AnchorSet, rows: int) -> str:
    """What a person wants to know of anchors, with the first of them."""
    from hf_relreps.printing import one_line

    summary = anchors.summary(rows)
    views = ", ".join(one_line(f"{name} ({modality})") for name, modality in summary["views"].items())
    lines = [f"{len(anchors)} anchors, fingerprint {anchors.fingerprint[:16]}", f"views: {views}"]
    origin = ", ".join(one_line(f"{name} {value}") for name, value in summary["origin"].items())
    lines += [f"origin: {origin}"] if origin else []
    widest = max(map(len, summary["views"]))
    for row in summary["rows"]:
        lines += ["", f"  {one_line(row['id'])}"]
        lines += [
            f"    {one_line(name):<{widest}}  {textwrap.shorten(str(row[name]), TEXT_WIDTH, placeholder=' ...')}"
            for name in summary["views"]
        ]
    return "\n".join(lines)


def _texts(texts: list[str], text_pairs: list[str]) -> tuple[str, list[Any]]:
    """What was given as texts: their modality and the samples."""
    if not text_pairs:
        return "text", texts
    from hf_relreps.errors import SampleError
    from hf_relreps.pairs import pairs_of

    try:
        return "pair", pairs_of(texts, text_pairs)
    except SampleError as error:
        raise SampleError(f"--text and --text-pair do not go together: {error}") from error


def _answers(model: Any, modality: str, samples: Sequence[Any], known: Any = None) -> list[dict[str, Any]]:
    """What a stitched model says of samples; with known samples, how familiar they are too."""
    if not samples:
        return []
    from hf_relreps.errors import SampleError
    from hf_relreps.samples import check_samples

    several = model.config.decoder.questions
    of_words = model.config.modality == "word" and modality == "text"  # it reads texts, and tags their words
    compares = model.config.decoder.decoder_type == "pair"  # of texts, the encoder reads one after the other
    reads = "pair" if compares else model.config.modality
    if not (of_words or reads == modality) or not (several or model.config.id2label):
        raise SampleError(f"The stitched model reads {reads}s, but {OPTIONS[modality]} was given. {_instead(reads)}")
    given = list(samples) if modality == "pair" else [str(sample) for sample in samples]
    check_samples(given, OPTIONS[modality])
    try:
        if several and of_words:
            return [{"decoder": name, **tag} for name in several for tag in _tags(model.select(name), given)]
        if of_words:
            return _tags(model, given)
        if several:  # the encoder reads each sample once
            answers = model.classify(_opened(modality, given))
            return [{"decoder": name, **answer} for name, row in answers.items() for answer in _best(given, row)]
        if compares:
            return _best(given, model.classify(given))
        if known is not None:
            from hf_relreps.trust import Judge

            return _best(given, Judge(model, known)(_opened(modality, given)))
        return _best(given, _pipeline(model, modality)(given))
    except (OSError, ValueError) as error:
        raise SampleError(f"{OPTIONS[modality]} cannot be read: {error}") from error


def _instead(reads: str) -> str:
    """How to give what a model reads."""
    if reads == "pair":
        return "Give two texts: --text and --text-pair."
    return "Leave it out, and use the model in Python: hf_relreps.stitch(encoder, decoder)."


def _pipeline(model: Any, modality: str, **how: Any) -> Any:
    from transformers import pipeline

    how |= {"image_processor" if modality == "image" else "tokenizer": model.processor}
    return pipeline(PIPELINES[model.config.modality], model=model, **how)  # type: ignore[call-overload]


def _tags(model: Any, texts: list[str]) -> list[dict[str, Any]]:
    """What a model says of the words of texts."""
    found = _pipeline(model, "text", aggregation_strategy="average")(texts)
    told = [(text[one["start"] : one["end"]], one) for text, row in zip(texts, found, strict=True) for one in row]
    return [{"sample": word, "label": one["entity_group"], "score": float(one["score"])} for word, one in told]


def _best(samples: list[Any], answers: list[Any]) -> list[dict[str, Any]]:
    """Each sample with what is said of it, or the likeliest of that."""
    best = [answer[0] if isinstance(answer, list) else answer for answer in answers]
    return [{"sample": sample, **answer} for sample, answer in zip(samples, best, strict=True)]


def _shown(sample: Any) -> str:
    return " | ".join(sample.values()) if isinstance(sample, dict) else sample


def _opened(modality: str, given: list[Any]) -> list[Any]:
    """Texts and pairs as they are, and the images of files."""
    if modality != "image":
        return given
    from PIL import Image

    return [Image.open(file) for file in given]


def _done(output: Path | None, push: str | None) -> str:
    return ", ".join([*([f"saved in {output}"] if output else []), *([f"pushed to {push}"] if push else [])])


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print_json(content: Any) -> None:
    _say(json.dumps(content, indent=2, ensure_ascii=False))


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
    message = _in_options(str(error), vars(error).get("options", {}))
    _say(f"hf-relreps: {message}", err=True)
    if "--json" in sys.argv:
        _print_json({"error": type(error).__name__, "message": message})


def _in_options(message: str, options: dict[str, str]) -> str:
    """What a message of the library says of its arguments, as the command calls them: --view en for view='en'.

    Calls of Python that it advises stay, but for those of which only the options matter here.
    """
    if not options:
        return message
    any_option = "|".join(sorted(options, key=len, reverse=True))
    message = re.sub(rf"\bstitch\(encoder, decoder, ((?:{any_option})='[^']*')\)", r"\1", message)
    said = [*re.split(r"(\w+\([^()]*(?:\([^()]*\)[^()]*)*\))", message)]
    for i in range(0, len(said), 2):  # between the calls
        part = re.sub(rf"\b({any_option})='([^']*)'", lambda found: f"{options[found[1]]} {found[2]}", said[i])
        part = re.sub(rf"\b({any_option})=(?=[\w-])", lambda found: f"{options[found[1]]} ", part)
        part = re.sub(rf"\b({any_option})=", lambda found: options[found[1]], part)
        part = re.sub(rf"\bLeave ({any_option}) out", lambda found: f"Leave {options[found[1]]} out", part)
        said[i] = re.sub(r"(?<![\w.'-])(\w+_\w+)(?![\w(])", lambda found: options.get(found[1], found[1]), part)
    return "".join(said)


def main() -> None:
    """The entry point: an error that the user can mend is a sentence and exit code 2, not a traceback."""
    try:
        app()
    except Exception as error:
        if not _can_be_mended(error):
            raise
        _explain(error)
        sys.exit(2)


def _can_be_mended(error: Exception) -> bool:
    """Whether it tells the user what to do, as the library's own errors and those of the Hub and of files do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from hf_relreps.errors import RelrepsError

    return isinstance(error, (RelrepsError, HfHubHTTPError, HFValidationError, OSError))


if __name__ == "__main__":
    main()
