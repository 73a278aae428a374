"""Structural similarity as a loss (VFM-VAE, arXiv 2510.18457, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from lumitok.errors import LumitokError

LEAST_SIDE = 6
"""Pixels: the 11 px window reaches 5 beyond the border, where the picture is reflected."""


def ssim_loss(image: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM (Wang et al. 2004), the mean over all pictures, a scalar from 0 to 2.

    torchmetrics' SSIM: a Gaussian window of 11 px with sigma 1.5, reflected borders, data range 2. Both
    pictures are clamped to [-1, 1], so that values outside get no gradient. In float32 (or float64),
    also under autocast.

    Args:
        image: (B, C, H, W), sides of at least 6 px.
        target: the same shape.

    Raises:
        LumitokError: the shapes differ, or the pictures are too small.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if image.ndim != 4 or image.shape != target.shape:
        raise LumitokError(
            f"SSIM compares pictures (batch, channels, height, width) of one shape, but got "
            f"{tuple(image.shape)} and {tuple(target.shape)}; resize one of them first"
        )
    if min(image.shape[-2:]) < LEAST_SIDE:
        raise LumitokError(
            f"SSIM's window of 11 px needs sides of at least {LEAST_SIDE} px, but the pictures are "
            f"{image.shape[-2]}x{image.shape[-1]}; train on larger ones or set the ssim loss to 0"
        )
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        similarity = structural_similarity_index_measure(
            image.to(dtype), target.to(dtype), data_range=(-1.0, 1.0)
        )
    assert isinstance(similarity, Tensor)
    return 1.0 - similarity
