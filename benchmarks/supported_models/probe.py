"""What one model type does: built tiny, wrapped, saved, loaded, stitched; and if it does not, why."""

from __future__ import annotations

import copy
import inspect
import re
import tempfile
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, set_seed

from benchmarks.supported_models.causes import KNOWN
from benchmarks.supported_models.inputs import MAKERS, NUM_SAMPLES, missing_package, processors_for
from benchmarks.supported_models.tiny_configs import SCALES, Scale, tiny_config
from hf_relreps import AnchorSet, RelativeModel, stitch
from hf_relreps.backbones import default_tower, tower_of
from hf_relreps.pooling import reads


MOST_PARAMETERS = 300_000_000
TOLERANCE = 1e-3  # of the largest value: the order of a sum differs between batch sizes
MISSING_INPUTS = re.compile(
    r"missing \d+ required positional|must specify|have to specify|cannot specify both"
    r"|cannot be `None`|not-None|pair of PIL"
)


@dataclass(frozen=True)
class Row:
    """One line of the table: a model type as an encoder of one modality."""

    model_type: str
    modality: str = ""
    works: bool = False
    tower: str | None = None
    pooling: str | None = None
    padding: bool | None = None
    width: int | None = None
    processor: str | None = None
    cause: str = ""
    detail: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Unlike(Exception):
    """Two embeddings that had to be alike and are not."""


def probe(model_type: str, anchors: AnchorSet, decoder: Path) -> list[Row]:
    """One row for each modality that a type reads; one row without a modality if it cannot be built or reads none."""
    failure: Exception | None = None
    rows: dict[str, Row] = {}
    for scale in SCALES:
        try:
            model = tiny_model(model_type, scale)
            modalities = _modalities(model)
        except Exception as error:
            failure = failure or error
            continue
        if not modalities:
            return [_explained(Row(model_type, cause="modality", detail=f"reads {', '.join(_names(model))[:80]}"))]
        for modality in modalities:
            if modality not in rows or not rows[modality].works:
                rows[modality] = _probe_modality(model_type, model, modality, anchors, decoder)
        if all(row.works for row in rows.values()):
            break
    if rows:
        return [_explained(row) for row in rows.values()]
    assert failure is not None
    cause = _cause(failure)
    return [_explained(Row(model_type, cause="config" if cause == "other" else cause, detail=_told(failure)))]


def tiny_model(model_type: str, scale: Scale = SCALES[0]) -> PreTrainedModel:
    """A tiny model of a type with random weights.

    Raises:
        MemoryError: If it has too many parameters even when tiny.
    """
    config = tiny_config(model_type, scale)
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    except RuntimeError:  # some look at values while they are built
        size = 0
    if size > MOST_PARAMETERS:
        raise MemoryError(f"{size / 1e6:.0f} million parameters even when tiny")
    set_seed(0)
    model = AutoModel.from_config(tiny_config(model_type, scale)).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # or nothing would be left of an image after many of them
            nn.init.kaiming_normal_(module.weight)
    return model


def _names(model: PreTrainedModel) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


def _modalities(model: PreTrainedModel) -> list[str]:
    towers = {modality: tower_of(model, default_tower(model, modality)) for modality in MAKERS}
    found = [modality for modality, tower in towers.items() if reads(tower, modality)]
    videos = isinstance(getattr(towers["image"].config, "num_frames", None), int)
    return [modality for modality in found if modality != "image" or not videos]


def _probe_modality(model_type: str, model: PreTrainedModel, modality: str, anchors: AnchorSet, decoder: Path) -> Row:
    failing = []
    for processor in processors_for(model_type, modality, model.config):
        about = {"model_type": model_type, "modality": modality, "processor": type(processor).__name__}
        try:
            return Row(**about, works=True, **_checked(model, modality, processor, anchors, decoder))
        except Exception as error:
            tower = default_tower(model, modality)
            failing.append(Row(**about, tower=tower, cause=_cause(error), detail=_told(error)))
    row = failing[0] if failing else Row(model_type, modality, cause="package", detail="no processor can be made")
    package = missing_package(model_type, modality)
    if package is None:
        return row
    return replace(row, cause="package", detail=f"{package.split('.')[0]}; with another processor: {row.detail}")


def _checked(
    model: PreTrainedModel, modality: str, processor: Any, anchors: AnchorSet, decoder: Path
) -> dict[str, Any]:
    """What is measured of a type that does all that it should.

    Raises:
        Unlike: If embeddings change from run to run, with the batch, or by saving and loading.
    """
    encoder = RelativeModel.from_encoder(model, anchors.view(modality), processor).eval()
    samples = MAKERS[modality](NUM_SAMPLES, seed=1)
    x_ND = encoder.encode(samples)
    _alike(x_ND, encoder.encode(samples), "two runs", tolerance=0)
    if float((x_ND - x_ND[:1]).abs().max()) == 0:
        raise Unlike("all samples have the same embedding")
    single_ND = torch.cat([encoder.encode([sample]) for sample in samples])
    _alike(x_ND, single_ND, "one sample alone and in a batch", tolerance=TOLERANCE)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        # Copied, since convolutions differ in the last bit with where in memory the file's weights lie.
        loaded = copy.deepcopy(AutoModel.from_pretrained(folder)).eval()
        _alike(x_ND, loaded.encode(samples), "before saving and after loading", tolerance=0)
        stitched = stitch(loaded, decoder)
    logits = stitched.decoder(stitched.encoder.projection(x_ND)).logits
    if logits.shape != (NUM_SAMPLES, stitched.config.num_labels) or not logits.isfinite().all():
        raise Unlike(f"stitched logits have shape {tuple(logits.shape)}, finite: {bool(logits.isfinite().all())}")
    config = encoder.config
    return {
        "tower": config.tower,
        "pooling": config.pooling,
        "padding": config.padding,
        "width": config.embedding_size,
    }


def _alike(left_ND: Tensor, right_ND: Tensor, what: str, tolerance: float) -> None:
    difference = float((left_ND - right_ND).abs().max() / left_ND.abs().max())
    if not difference <= tolerance:
        raise Unlike(f"{what} differ by {difference:.1e} of the largest value")


def _cause(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "package"
    if isinstance(error, MemoryError):
        return "large"
    if isinstance(error, Unlike):
        return "random" if "two runs" in str(error) else "batch" if "in a batch" in str(error) else "other"
    if "no vectors of a sample" in str(error):
        return "vectors"
    return "inputs" if MISSING_INPUTS.search(str(error)) else "other"


def _explained(row: Row) -> Row:
    """A failure with what was found by reading the model, where the error alone does not tell."""
    if row.works or row.model_type not in KNOWN:
        return row
    cause, detail = KNOWN[row.model_type]
    return replace(row, cause=cause, detail=detail)


def _told(error: BaseException) -> str:
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-2:]]
    says = re.sub(r"(?<![\w<])/(?:[^\s/]+/)+", "", " ".join(str(error).split()))  # no folders of this machine
    return f"{type(error).__name__}: {says[:300]} ({' > '.join(places)})"
