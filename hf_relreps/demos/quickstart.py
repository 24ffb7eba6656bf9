"""The main job, end to end: fine-tune relative models in several languages, upload them, load parts, stitch them.

`launch` is what `hf-relreps quickstart` calls. An upload is a repository of the Hub, or a folder that holds the same
files: what loads and stitches takes the name of either.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from hf_relreps.anchors import AnchorSet
from hf_relreps.callback import AnchorCallback
from hf_relreps.configuration import RelativeConfig
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.demos.tiny import small_bert, wordpiece_tokenizer
from hf_relreps.errors import MissingExtraError
from hf_relreps.evaluation import StitchingMatrix, stitching_matrix
from hf_relreps.model_card import CardFacts
from hf_relreps.modeling import RelativeModel
from hf_relreps.stitching import stitch
from hf_relreps.tasks import RelativeModelForSequenceClassification


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments


@dataclass(frozen=True)
class Recipe:
    """One encoder to train: its name, the language it reads, and a seed that no other shares."""

    name: str
    language: str
    seed: int


# No two share a seed: with a common initialisation even absolute stitching works, and a comparison proves nothing.
RECIPES = (Recipe("en-1", "en", 11), Recipe("en-2", "en", 22), Recipe("fr", "fr", 33), Recipe("it", "it", 44))
NUM_ANCHORS = 300
LONGEST = 64  # tokens; more than half of the descriptions are shorter, the others are cut
FITTED_ON = 1500  # descriptions that the decoders of the paper's projection are fitted on

# Encoder, decoder, and what the encoder reads.
SENTENCES = (
    ("fr", "en-1", "Un jeu de course dans lequel des karts font le tour d'un circuit."),  # typos: ignore
    ("it", "en-2", "Strumento per modificare immagini e fotografie con livelli e filtri."),  # typos: ignore
    ("en-1", "fr", "A mail server that filters spam and delivers messages to local mailboxes."),
)


@dataclass(frozen=True)
class Settings:
    """What a run of the quickstart was asked to do.

    Args:
        output: Folder for the picture, the JSON file and the models.
        user: Name on the Hub under which the uploads appear; without one they are folders in `output`.
        encoder: Name of a pretrained `AutoModel` to fine-tune; small BERTs from scratch without it.
        quick: Less data and one epoch, to see that everything works.
    """

    output: Path
    user: str | None = None
    encoder: str | None = None
    quick: bool = False
    console: Console = field(default_factory=lambda: Console(highlight=False))

    def upload(self, name: str) -> str:
        """A repository of the Hub, or a folder, by its short name."""
        return f"{self.user}/{name}" if self.user else str(self.output / "uploads" / name)

    def model(self, recipe: Recipe) -> str:
        """Where the model of a recipe goes."""
        return self.upload(f"relative-debian-{recipe.name}")

    def training_arguments(self, recipe: Recipe, **arguments: Any) -> TrainingArguments:
        """What all trainings share: the recipe's seed, a progress bar on a terminal, nothing saved before the push."""
        from transformers import TrainingArguments

        return TrainingArguments(
            output_dir=str(self.output / "models" / recipe.name),
            seed=recipe.seed,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=not sys.stderr.isatty(),
            dataloader_pin_memory=torch.cuda.is_available(),
            **arguments,
        )


def launch(output: Path, hub_user: str | None = None, encoder: str | None = None, quick: bool = False) -> None:
    """Run the quickstart as a command: the uploads go to `hub_user` on the Hub, or into folders without one.

    Raises:
        MissingExtraError: If what the extra ``demo`` installs is not there.
    """
    from transformers.utils import logging as transformers_logging

    if find_spec("matplotlib") is None:
        raise MissingExtraError("The quickstart needs matplotlib. Install it: pip install 'hf_relreps[demo]'.")
    transformers_logging.disable_progress_bar()  # of loading and saving; training and encoding keep theirs
    logging.getLogger("hf_relreps").setLevel(logging.ERROR)  # long texts are cut on purpose
    output.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*about to commit a data file.*")  # the anchors, on purpose
        quickstart(Settings(output, hub_user, encoder, quick))


def quickstart(settings: Settings) -> StitchingMatrix:
    """Train, upload, load, stitch, show; writes ``matrix.png`` and ``matrix.json``."""
    started = time.monotonic()
    say, verb = settings.console.print, "push" if settings.user else "save"
    train, test = load_debian_descriptions("train"), load_debian_descriptions("test")
    if settings.quick:
        train, test = train.select(range(800)), test.select(range(200))
    languages = list(dict.fromkeys(recipe.language for recipe in RECIPES))
    say(f"[bold]1  Anchors[/]: {NUM_ANCHORS} of {len(train):,} packages, described in {', '.join(languages)}")
    anchors = AnchorSet.from_dataset(train, NUM_ANCHORS, views=languages, id_column="package", seed=42)
    say(f"   {upload_anchors(settings, anchors)}, fingerprint {anchors.fingerprint[:16]}", soft_wrap=True)

    say(f"\n[bold]2  Train and {verb}[/] {len(RECIPES)} models, each from its own seed")
    if settings.encoder:
        say("   All start from one pretrained model, so they share its latent space: the absolute control may stitch.")
    for recipe in RECIPES:
        train_and_upload(settings, recipe, anchors, train)

    say("\n[bold]3  Load parts[/] of different uploads and stitch every encoder to every decoder")
    encoders = {r.name: RelativeModel.from_pretrained(settings.model(r), subfolder="encoder") for r in RECIPES}
    decoders = {r.name: RelativeDecoder.from_pretrained(settings.model(r), subfolder="decoder") for r in RECIPES}
    matrix = stitching_matrix(encoders, decoders, test, metric="f1", train_dataset=train)
    say(f"\n{matrix}\n", markup=False, soft_wrap=True)

    say("[bold]4  The paper's projection beside it[/]: cosines, new decoders on the same encoders", soft_wrap=True)
    cosine = cosine_matrix(encoders, train.select(range(min(FITTED_ON, len(train)))), test)
    say(_comparison(matrix, cosine))

    say("\n[bold]5  Classify[/] with an encoder of one upload and a decoder of another")
    say(classify(settings))
    write(settings, matrix, cosine)

    say(f"\n[bold]6  {verb.capitalize()} a stitched model[/], with the matrix on its card")
    say(f"   {upload_stitched(settings, matrix)}", soft_wrap=True)
    took = f"{time.monotonic() - started:.0f} s"
    say(f"\nDone in {took}. The matrix: {settings.output}/matrix.png and matrix.json", soft_wrap=True)
    return matrix


def upload_anchors(settings: Settings, anchors: AnchorSet) -> str:
    """Push the anchors as a dataset, or save them; where they are."""
    place = settings.upload("debian-anchors")
    anchors.push_to_hub(place) if settings.user else anchors.save_pretrained(place)
    return place


def train_and_upload(settings: Settings, recipe: Recipe, anchors: AnchorSet, train: Dataset) -> None:
    """Fine-tune one relative model with the `Trainer`, and push or save it."""
    from transformers import Trainer, set_seed

    set_seed(recipe.seed)
    view = anchors.view(recipe.language)
    names = train.features["label"].names
    encoder: Any = settings.encoder
    tokenizer = None
    if encoder is None:
        tokenizer = wordpiece_tokenizer(train[recipe.language][:], LONGEST)
        encoder = small_bert(len(tokenizer), LONGEST)
    model = RelativeModelForSequenceClassification.from_encoder(
        encoder, view, tokenizer, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    tokenizer = model.processor
    rows = train.select_columns([recipe.language, "label"]).map(
        lambda batch: tokenizer(batch[recipe.language], truncation=True, max_length=model.config.encoder.max_length),
        batched=True,
        remove_columns=recipe.language,
        desc=f"   {recipe.name}: tokenize",
    )
    args = settings.training_arguments(
        recipe,
        hub_model_id=settings.model(recipe) if settings.user else None,
        num_train_epochs=1 if settings.quick else 3,
        per_device_train_batch_size=32,
        learning_rate=5e-5 if settings.encoder else 5e-4,
        warmup_steps=0.1,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
    )
    say = settings.console.print
    say(f"   {recipe.name}: {recipe.language}, seed {recipe.seed}, {model.num_parameters():,} weights")
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[AnchorCallback(view)])
    show_progress(trainer, f"   {recipe.name}", say)
    trainer.train()
    if settings.user:
        trainer.push_to_hub()
    else:
        save(model, settings.model(recipe))
    say(f"   {recipe.name}: {'pushed to' if settings.user else 'saved in'} {settings.model(recipe)}", soft_wrap=True)


def save(model: Any, folder: str) -> None:
    """What a push would bring to the Hub, as a folder; over what an earlier run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    model.write_card(folder)


def show_progress(trainer: Trainer, name: str, say: Callable[[str], None]) -> None:
    """A bar on a terminal, a line for each epoch elsewhere; the table of losses would drown the story."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    class Bar(ProgressCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            pass

    class Lines(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            say(f"{name}: epoch {state.epoch:.0f} of {args.num_train_epochs}")

    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    trainer.add_callback(Lines() if trainer.args.disable_tqdm else Bar())


def cosine_matrix(encoders: dict[str, RelativeModel], train: Dataset, test: Dataset) -> StitchingMatrix:
    """The same encoders described by plain cosines, with decoders in closed form."""
    names = dict(enumerate(train.features["label"].names))
    decoders = {}
    for recipe in RECIPES:
        encoder = encoders[recipe.name].use_projection(RelativeConfig.paper())
        r_NR = encoder.projection(encoder.encode(train[recipe.language][:]))
        decoders[recipe.name] = RelativeDecoder.fit_ridge(r_NR, train["label"][:], encoder, id2label=names)
    return stitching_matrix(encoders, decoders, test, metric="f1")


def classify(settings: Settings) -> Table:
    """Three sentences through `pipeline`, each with parts of two uploads."""
    from transformers import pipeline

    uploads = {recipe.name: settings.model(recipe) for recipe in RECIPES}
    table = _table("encoder", "decoder", "text", "section", "score")
    for encoder, decoder, text in SENTENCES:
        model = stitch(uploads[encoder], uploads[decoder])
        found = pipeline("text-classification", model=model, tokenizer=model.processor)(text)[0]
        table.add_row(encoder, decoder, text, found["label"], f"{found['score']:.2f}")
    return table


def upload_stitched(settings: Settings, matrix: StitchingMatrix) -> str:
    """The French encoder with a decoder that was trained on English, as an upload of its own; where it is."""
    french, english = RECIPES[2], RECIPES[0]
    model = stitch(settings.model(french), settings.model(english))
    model.card_facts = CardFacts(
        stitching=matrix.to_dict(),
        picture=settings.output / "matrix.png",
        evaluated_on="Debian package descriptions",
    )
    place = settings.upload("relative-debian-fr-by-en")
    model.push_to_hub(place) if settings.user else save(model, place)
    return place


def _comparison(default: StitchingMatrix, cosine: StitchingMatrix) -> Table:
    table = _table("macro-F1", "own", "stitched", "worst", "stitched / own")
    for name, matrix in (("default", default), ("cosine", cosine)):
        figures = [matrix.own, matrix.stitched, matrix.worst, matrix.ratio]
        table.add_row(name, *(f"{figure:.3f}" for figure in figures if figure is not None))
    table.add_row("absolute control", f"{default.absolute_own:.3f}", f"{default.absolute_stitched:.3f}")
    table.add_row("chance", f"{default.chance:.3f}", f"{default.chance:.3f}")
    return table


def _table(*heads: str) -> Table:
    return Table(*heads, box=None, pad_edge=False, padding=(0, 3, 0, 0))


def write(settings: Settings, matrix: StitchingMatrix, cosine: StitchingMatrix) -> None:
    """The matrix as a picture, and everything as JSON."""
    matrix.plot(settings.output / "matrix.png")
    record = {"default": matrix.to_dict(), "cosine": cosine.to_dict()}
    (settings.output / "matrix.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
