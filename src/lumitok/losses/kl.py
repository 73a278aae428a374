"""Divergence of the posterior from the standard normal distribution."""

from __future__ import annotations

from torch import Tensor


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) = 1/2 sum(mean^2 + sigma^2 - 1 - log sigma^2).

    The sum runs over channels and positions, the mean over the batch (Kingma and Welling,
    arXiv 1312.6114, appendix B; the L_KL of VFM-VAE, arXiv 2510.18457, section 3.4).

    Args:
        mean: (B, C, h, w).
        logvar: (B, C, h, w), logarithm of the variance, already clamped by the distribution.

    Returns:
        A scalar in nats a picture.
    """
    mean, logvar = mean.float(), logvar.float()
    per_element = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
    return per_element.flatten(1).sum(dim=1).mean()
