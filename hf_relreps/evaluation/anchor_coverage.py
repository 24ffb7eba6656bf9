"""How near samples are to their anchors.

Shapes: N samples, A anchors, D absolute size, B rows of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_relreps.errors import EvaluationError
from hf_relreps.similarities import unit


if TYPE_CHECKING:
    import numpy as np

SAMPLES_AT_ONCE = 4096


@torch.no_grad()
def anchor_coverage(x_ND: torch.Tensor | np.ndarray, anchors_AD: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Cosine of each sample to the anchor nearest to it (N,), both seen from the mean of the samples.

    The similarities of a sample that is far from every anchor hardly differ from each other. The mean is subtracted
    because embeddings with a large common part are all similar otherwise. It is that of the samples, so anchor sets
    can be compared on the same samples.

    Args:
        x_ND: Absolute embeddings of samples that are no anchors: ``encoder.encode(samples)``.
        anchors_AD: Absolute embeddings of the anchors: ``encoder.projection.anchors_AD``.

    Raises:
        EvaluationError: If their widths differ, or they are not matrices.

    Example:
        ```python
        >>> import torch
        >>> from hf_relreps.evaluation import anchor_coverage
        >>> x_ND = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> anchor_coverage(x_ND, x_ND[:1]).tolist()
        [1.0, -1.0, 0.0, 0.0]

        ```
    """
    x_ND, anchors_AD = torch.as_tensor(x_ND).float(), torch.as_tensor(anchors_AD).float()
    if x_ND.ndim != 2 or anchors_AD.ndim != 2 or x_ND.shape[1] != anchors_AD.shape[1] or not len(anchors_AD):
        raise EvaluationError(
            f"Samples have shape {tuple(x_ND.shape)}, anchors {tuple(anchors_AD.shape)}, expected (N, D) and (A, D). "
            "Pass encoder.encode(samples) and encoder.projection.anchors_AD of the same encoder."
        )
    mean_D = x_ND.mean(0)
    anchors_AD = unit(anchors_AD.to(x_ND.device) - mean_D)
    return torch.cat([(unit(x_BD - mean_D) @ anchors_AD.T).amax(1) for x_BD in x_ND.split(SAMPLES_AT_ONCE)])
