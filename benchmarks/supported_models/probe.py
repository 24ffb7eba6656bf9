"""What one model type does: built tiny, wrapped, saved, loaded, stitched; and if it does not, why."""

from __future__ import annotations

import inspect
import tempfile
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, set_seed

from benchmarks.supported_models.inputs import MAKERS, NUM_SAMPLES, processors_for
from benchmarks.supported_models.tiny_configs import SCALES, Scale, tiny_config
from hf_relreps import AnchorSet, RelativeModel, stitch
from hf_relreps.pooling import READS, reads
from hf_relreps.wrapping import default_tower, tower_of


MOST_PARAMETERS = 300_000_000
TOLERANCE = 1e-3  # relative to the largest value: summation order differs between batch sizes


@dataclass
class Row:
    """One line of the table: a model type as an encoder of one modality."""

    model_type: str
    modality: str = ""
    works: bool = False
    tower: str | None = None
    pooling: str | None = None
    width: int | None = None
    processor: str | None = None
    cause: str = ""
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Unlike(Exception):
    """Two embeddings that had to be alike and are not."""


def probe(model_type: str, anchors: AnchorSet, decoder: Path) -> list[Row]:
    """One row for each modality that a type reads; one row without a modality if it cannot be built or reads none."""
    failures = []
    rows: dict[str, Row] = {}
    for scale in SCALES:
        try:
            model = tiny_model(model_type, scale)
        except Exception as error:
            failures.append(error)
            continue
        for modality in _modalities(model):
            if modality not in rows or not rows[modality].works:
                row = _probe_modality(model_type, model, modality, anchors, decoder)
                rows[modality] = row if row.works or modality not in rows else rows[modality]
        if rows and all(row.works for row in rows.values()):
            break
        if not rows:
            return [Row(model_type, cause="other modality", detail=f"reads {', '.join(_names(model))[:80]}")]
    if rows:
        return list(rows.values())
    return [Row(model_type, cause="not built", detail=_told(failures[0]))]


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
    return AutoModel.from_config(tiny_config(model_type, scale)).eval()


def _names(model: PreTrainedModel) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


def _modalities(model: PreTrainedModel) -> list[str]:
    return [modality for modality in READS if reads(tower_of(model, default_tower(model, modality)), modality)]


def _probe_modality(model_type: str, model: PreTrainedModel, modality: str, anchors: AnchorSet, decoder: Path) -> Row:
    first = None
    for processor in processors_for(model_type, modality, model.config):
        row = Row(model_type, modality, processor=type(processor).__name__)
        try:
            _check(row, model, processor, anchors, decoder)
        except Exception as error:
            row.cause, row.detail = _cause(error), _told(error)
        if row.works:
            return row
        first = first or row
    assert first is not None
    return first


def _check(row: Row, model: PreTrainedModel, processor: Any, anchors: AnchorSet, decoder: Path) -> None:
    row.tower = default_tower(model, row.modality)
    encoder = RelativeModel.from_encoder(model, anchors.view(row.modality), processor).eval()
    row.pooling, row.width = encoder.config.pooling, encoder.config.embedding_size
    samples = MAKERS[row.modality](NUM_SAMPLES, seed=1)
    x_ND = encoder.encode(samples)
    _alike(x_ND, encoder.encode(samples), "two runs", tolerance=0)
    single_ND = torch.cat([encoder.encode([sample]) for sample in samples])
    _alike(x_ND, single_ND, "one sample alone and in a batch", tolerance=TOLERANCE)
    if float((x_ND - x_ND[:1]).abs().max()) == 0:
        raise Unlike("all samples have the same embedding")
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        loaded = AutoModel.from_pretrained(folder).eval()
        _alike(x_ND, loaded.encode(samples), "before saving and after loading", tolerance=0)
    stitched = stitch(loaded, decoder)
    logits = stitched.decoder(stitched.encoder.projection(x_ND)).logits
    if logits.shape != (NUM_SAMPLES, stitched.config.num_labels) or not logits.isfinite().all():
        raise Unlike(f"stitched logits have shape {tuple(logits.shape)} and are finite: {logits.isfinite().all()}")
    row.works = True


def _alike(left_ND: Tensor, right_ND: Tensor, what: str, tolerance: float) -> None:
    difference = float((left_ND - right_ND).abs().max() / left_ND.abs().max())
    if not difference <= tolerance:
        raise Unlike(f"{what} differ by {difference:.1e} of the largest value")


def _cause(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "needs a package"
    return "unlike" if isinstance(error, Unlike) else "error"


def _told(error: BaseException) -> str:
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-2:]]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({' > '.join(places)})"
