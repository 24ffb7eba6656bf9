"""Relative representations for transformers: encoders and decoders that fit together though trained apart.

An encoder says where a sample lies; anchors turn that into "how alike to each anchor"; a decoder reads only those
similarities; so an encoder and a decoder that share anchors fit together even if they never met.
"""

from typing import Any

from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_relreps import errors
from hf_relreps.anchors import AnchorSet
from hf_relreps.callback import AnchorCallback
from hf_relreps.configuration import RelativeConfig, RelativeDecoderConfig, RelativeEncoderConfig
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.encoders import graphs, images  # noqa: F401  register themselves with the Auto classes
from hf_relreps.evaluation import latent_similarity, stitching_matrix
from hf_relreps.hub import find_parts
from hf_relreps.modeling import RelativeModel
from hf_relreps.several import RelativeModelWithDecoders
from hf_relreps.space import RelativeSpace
from hf_relreps.stitching import compatibility, stitch
from hf_relreps.tasks import (
    RelativeModelForAudioClassification,
    RelativeModelForImageClassification,
    RelativeModelForImageReconstruction,
    RelativeModelForNodeClassification,
    RelativeModelForPairClassification,
    RelativeModelForSequenceClassification,
    RelativeModelForTokenClassification,
)


__version__ = "0.1.0"

__all__ = [
    "AnchorCallback",
    "AnchorSet",
    "RelativeConfig",
    "RelativeDecoder",
    "RelativeDecoderConfig",
    "RelativeEncoderConfig",
    "RelativeModel",
    "RelativeModelForAudioClassification",
    "RelativeModelForImageClassification",
    "RelativeModelForImageReconstruction",
    "RelativeModelForNodeClassification",
    "RelativeModelForPairClassification",
    "RelativeModelForSequenceClassification",
    "RelativeModelForTokenClassification",
    "RelativeModelWithDecoders",
    "RelativeSpace",
    "RelativeTrainer",
    "compatibility",
    "errors",
    "find_parts",
    "latent_similarity",
    "stitch",
    "stitching_matrix",
]

AutoConfig.register(RelativeConfig.model_type, RelativeConfig, exist_ok=True)
AutoConfig.register(RelativeEncoderConfig.model_type, RelativeEncoderConfig, exist_ok=True)
AutoConfig.register(RelativeDecoderConfig.model_type, RelativeDecoderConfig, exist_ok=True)
AutoModel.register(RelativeEncoderConfig, RelativeModel, exist_ok=True)
AutoModel.register(RelativeDecoderConfig, RelativeDecoder, exist_ok=True)
# Of a whole model `AutoModel` gives the encoder, whose class has a configuration of its own.
MODEL_MAPPING.register(RelativeConfig, RelativeModel, exist_ok=True)  # type: ignore[arg-type]
AutoModelForSequenceClassification.register(RelativeConfig, RelativeModelForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(RelativeConfig, RelativeModelForTokenClassification, exist_ok=True)
AutoModelForAudioClassification.register(RelativeConfig, RelativeModelForAudioClassification, exist_ok=True)
AutoModelForImageClassification.register(RelativeConfig, RelativeModelForImageClassification, exist_ok=True)


def __getattr__(name: str) -> Any:
    """`RelativeTrainer` when it is asked for: the `Trainer` below it loads much that nothing else needs."""
    if name == "RelativeTrainer":
        from hf_relreps.trainer import RelativeTrainer

        return RelativeTrainer
    raise AttributeError(f"module 'hf_relreps' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
