"""AlignTok's semantic preservation loss (arXiv 2509.25162, section 3.3)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from lumitok.errors import LumitokError


def preservation_loss(now: Tensor, kept: Tensor, distance: Literal["l2", "cosine"] = "l2") -> Tensor:
    """Distance of what is encoded now from what was encoded when the stage began, a scalar, in float32.

    ``l2``: mean over all numbers of (now - kept)^2 (L_sp); ``cosine``: mean over positions of 1 - the
    cosine along the channels (Table 1's variant). No gradient reaches ``kept``.

    Args:
        now: latents or features (B, C, h, w).
        kept: the same shape.
        distance: which of the two.

    Raises:
        LumitokError: the shapes differ.
    """
    if now.shape != kept.shape:
        raise LumitokError(
            f"the preservation loss compares maps of one shape, got {tuple(now.shape)} and "
            f"{tuple(kept.shape)}; encode the same pictures with both"
        )
    now, kept = now.float(), kept.detach().float()
    if distance == "cosine":
        return (1.0 - F.cosine_similarity(now, kept, dim=1)).mean()
    return F.mse_loss(now, kept)
