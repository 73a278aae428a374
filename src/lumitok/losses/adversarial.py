"""The hinge loss of generative adversarial networks (arXiv 1705.02894), without a factor of 1/2.

VFM-VAE's released code has no 1/2, taming-transformers and VA-VAE have one; weights of recipes in
lumitok are for the form without.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean relu(1 - real) + mean relu(1 + fake), a scalar.

    Args:
        real: logits of real pictures, any shape.
        fake: logits of decoded pictures, any shape.
    """
    return F.relu(1.0 - real.float()).mean() + F.relu(1.0 + fake.float()).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Return -mean(fake), a scalar; ``fake`` are the logits of decoded pictures, any shape."""
    return -fake.float().mean()
