"""Feature matching: a reconstruction looks to the discriminator as its picture does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over scales of the sum over layers of the mean |f(real) - f(fake)|, a scalar.

    pix2pixHD's (arXiv 1711.11585, equation 4) with VFM-VAE's weights: every layer counts 1. The logits
    take no part. No gradient reaches the features of the real pictures.

    Args:
        real: what ``PatchDiscriminator`` gives for real pictures, a list a scale: features, then logits.
        fake: the same for their reconstructions, picture by picture.
    """
    scales = [
        torch.stack([_l1(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True)]).sum()
        for ours, theirs in zip(fake, real, strict=True)
    ]
    return torch.stack(scales).mean()


def _l1(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.float() - theirs.detach().float()).abs().mean()
