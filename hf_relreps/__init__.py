"""Relative representations for transformers: encoders and decoders that fit together though trained apart.

An encoder says where a sample lies; anchors turn that into "how alike to each anchor"; a decoder reads only those
similarities; so an encoder and a decoder that share anchors fit together even if they never met.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from hf_relreps import errors
from hf_relreps.anchors import AnchorSet
from hf_relreps.callback import AnchorCallback
from hf_relreps.classification import (
    RelativeModelForAudioClassification,
    RelativeModelForImageClassification,
    RelativeModelForSequenceClassification,
)
from hf_relreps.configuration import RelativeConfig
from hf_relreps.decoders import RelativeDecoder
from hf_relreps.encoders import graphs, images  # noqa: F401  register themselves with the Auto classes
from hf_relreps.evaluation import latent_similarity, stitching_matrix
from hf_relreps.hub import find_parts
from hf_relreps.modeling import RelativeModel
from hf_relreps.nodes import RelativeModelForNodeClassification
from hf_relreps.reconstruction import RelativeModelForImageReconstruction
from hf_relreps.stitching import compatibility, stitch


__version__ = "0.1.0"

__all__ = [
    "AnchorCallback",
    "AnchorSet",
    "RelativeConfig",
    "RelativeDecoder",
    "RelativeModel",
    "RelativeModelForAudioClassification",
    "RelativeModelForImageClassification",
    "RelativeModelForImageReconstruction",
    "RelativeModelForNodeClassification",
    "RelativeModelForSequenceClassification",
    "compatibility",
    "errors",
    "find_parts",
    "latent_similarity",
    "stitch",
    "stitching_matrix",
]

AutoConfig.register(RelativeConfig.model_type, RelativeConfig, exist_ok=True)
AutoModel.register(RelativeConfig, RelativeModel, exist_ok=True)
AutoModelForSequenceClassification.register(RelativeConfig, RelativeModelForSequenceClassification, exist_ok=True)
AutoModelForAudioClassification.register(RelativeConfig, RelativeModelForAudioClassification, exist_ok=True)
AutoModelForImageClassification.register(RelativeConfig, RelativeModelForImageClassification, exist_ok=True)
