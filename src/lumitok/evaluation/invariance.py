"""How far a representation stays where it is when a picture changes and its meaning does not.

VFM-VAE's Figure 2 shows CKNNA with the foundation model when both see the changed pictures, which is
SE-CKNNA change by change. What is measured here is the other question, asked in the paper's public
review: one network's features of the changed picture beside its own of the picture as it is. The frozen
encoder's own value is the yardstick for the latent's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lumitok.errors import LumitokError


@dataclass(frozen=True)
class Invariance:
    """Mean over pictures of the cosine similarity of features of a changed and the unchanged picture.

    Attributes:
        cosine: of the features as they are. Features with a large mean are alike for any two pictures.
        centered: with the mean of the unchanged pictures taken off both. 1: nothing moved; 0: no more alike
            than two different pictures.
    """

    cosine: float
    centered: float


def invariance(unchanged: Tensor, changed: Tensor) -> Invariance:
    """Compare a network's features of changed pictures with those of the same pictures unchanged.

    Args:
        unchanged: (n, C), n of at least 2.
        changed: (n, C), the same pictures in the same order.

    Raises:
        LumitokError: shapes that differ, NaN or infinity, or features that are all alike.
    """
    if unchanged.shape != changed.shape or unchanged.ndim != 2 or len(unchanged) < 2:
        raise LumitokError(
            f"invariance compares two tables (pictures, channels) of one shape with at least 2 pictures; got "
            f"{tuple(unchanged.shape)} and {tuple(changed.shape)}"
        )
    if not bool(torch.isfinite(unchanged).all() and torch.isfinite(changed).all()):
        raise LumitokError("features are NaN or infinite; the network that made them has diverged")
    still, moved = unchanged.double(), changed.double()
    mean = still.mean(dim=0)
    spread = float((still - mean).square().sum(dim=1).mean())
    # Float32 features of one and the same value differ by as much as this when they are summed.
    if spread <= 1e-12 * float(still.square().sum(dim=1).mean()):
        raise LumitokError("the features are alike for all pictures; is the network trained?")
    return Invariance(
        cosine=float(F.cosine_similarity(still, moved).mean()),
        centered=float(F.cosine_similarity(still - mean, moved - mean).mean()),
    )
