"""How far a predicted velocity is from the right one; one number a sample, the mean is the loss.

The class token's velocity (REG, arXiv 2507.01467) is judged by :func:`velocity_error` as well.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.errors import LumitokError


def velocity_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean square of the difference, over all but the batch: flow matching's loss.

    Args:
        predicted: (B, C, h, w), or (B, d) for a class token.
        target: data - noise, of the same shape.

    Returns:
        (B,), float32 or float64, also under autocast.
    """
    predicted, target = _pair(predicted, target)
    return (predicted - target).square().flatten(1).mean(dim=1)


def velocity_angle(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cosine along the channels, mean over positions (LightningDiT, arXiv 2501.01423).

    LightningDiT adds it to :func:`velocity_error` with weight 1.

    Args:
        predicted: (B, C, h, w).
        target: data - noise, of the same shape.

    Returns:
        (B,), float32 or float64, also under autocast; from 0 to 2.
    """
    predicted, target = _pair(predicted, target)
    return (1 - F.cosine_similarity(predicted, target, dim=1)).flatten(1).mean(dim=1)


def _pair(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.shape != target.shape:
        raise LumitokError(
            f"the predicted velocity is {tuple(predicted.shape)} and the right one {tuple(target.shape)}; "
            "give a network and latents of one shape"
        )
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    return predicted.to(dtype), target.to(dtype)
