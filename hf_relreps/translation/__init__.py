"""From one latent space into another over shared anchors, and ordinary classifiers as decoders by that.

`methods` holds the mathematics, `classifiers` makes a decoder of any `AutoModelForSequenceClassification`,
`AutoModelForImageClassification` or `AutoModelForAudioClassification`. `stitch` does both.
"""

from hf_relreps.translation.classifiers import decoder_from_classifier
from hf_relreps.translation.methods import METHODS, Translation, fit


__all__ = ["METHODS", "Translation", "decoder_from_classifier", "fit"]
