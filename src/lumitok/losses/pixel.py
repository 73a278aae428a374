"""Reconstruction losses on pixels (VFM-VAE, arXiv 2510.18457, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from lumitok.errors import LumitokError


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, a scalar.

    Args:
        image: (B, C, H, W), normally in [-1, 1]; values outside count as they are.
        target: the same shape.
    """
    if image.shape != target.shape:
        raise LumitokError(
            f"l1 compares pictures of one shape, but got {tuple(image.shape)} and {tuple(target.shape)}; "
            "resize one of them first"
        )
    return (image - target).abs().mean()


def multi_resolution_l1(images: Sequence[Tensor], target: Tensor) -> Tensor:
    """L1 at several resolutions: sum over i of mean |f_i(x) - x_i| (section 3.4).

    f_i resizes the real picture x to the size of the decoder's i-th image x_i, bilinear with
    antialias. The caller chooses the images; the paper's are those below the full resolution.

    Args:
        images: decoder images, each (B, C, h_i, w_i).
        target: the real picture (B, C, H, W).

    Returns:
        A scalar: the unweighted sum of the means.
    """
    if not images:
        raise LumitokError("multi_resolution_l1 got no images; give the decoder's lower-resolution images")
    total = target.new_zeros(())
    for image in images:
        size = (image.shape[-2], image.shape[-1])
        small = target
        if size != (target.shape[-2], target.shape[-1]):
            small = F.interpolate(target, size=size, mode="bilinear", align_corners=False, antialias=True)
        total = total + l1(image, small)
    return total
