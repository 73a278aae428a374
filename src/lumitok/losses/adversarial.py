"""The losses of generative adversarial networks: hinge and least squares, without a factor of 1/2.

VFM-VAE's released code has no 1/2, taming-transformers and VA-VAE have one; weights of recipes in
lumitok are for the form without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean relu(1 - real) + mean relu(1 + fake), a scalar (arXiv 1705.02894).

    Args:
        real: logits of real pictures, any shape.
        fake: logits of decoded pictures, any shape.
    """
    return F.relu(1.0 - real.float()).mean() + F.relu(1.0 + fake.float()).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Return -mean(fake), a scalar; ``fake`` are the logits of decoded pictures, any shape."""
    return -fake.float().mean()


def hinge_discriminator_scales(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Return the mean over scales of :func:`hinge_discriminator`; one tensor of logits a scale."""
    scales = [hinge_discriminator(ours, theirs) for ours, theirs in zip(real, fake, strict=True)]
    return torch.stack(scales).mean()


def hinge_generator_scales(fake: Sequence[Tensor]) -> Tensor:
    """Return the mean over scales of :func:`hinge_generator`; one tensor of logits a scale."""
    return torch.stack([hinge_generator(logits) for logits in fake]).mean()


def least_squares_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Return the mean over scales of mean (real - 1)^2 + mean fake^2, a scalar (arXiv 1611.04076).

    Args:
        real: logits of real pictures, any shape, one tensor a scale.
        fake: logits of decoded pictures, one tensor a scale.
    """
    scales = [_square(ours, 1.0) + _square(theirs, 0.0) for ours, theirs in zip(real, fake, strict=True)]
    return torch.stack(scales).mean()


def least_squares_generator(fake: Sequence[Tensor]) -> Tensor:
    """Return the mean over scales of mean (fake - 1)^2, a scalar; ``fake``: one tensor of logits a scale."""
    return torch.stack([_square(logits, 1.0) for logits in fake]).mean()


def _square(logits: Tensor, label: float) -> Tensor:
    """Mean squared distance from the label; each scale counts alike, however many logits it has."""
    return (logits.float() - label).square().mean()
