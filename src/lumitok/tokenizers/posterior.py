"""The distribution over a latent: a diagonal Gaussian, or a single point."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.tokenizers.base import Generators


class DiagonalGaussian:
    """N(mean, std^2), every number of the latent by itself.

    It has what users of diffusers' ``latent_dist`` know. Importing diffusers' own class takes seconds,
    since all of its networks come along.

    Args:
        moments: mean and log-variance stacked (B, 2C, h, w); the log-variance is clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draw z (B, C, h, w).

        Raises:
            LumitokError: a list of generators that has not one a picture.
        """
        if isinstance(generator, list) and len(generator) != len(self.mean):
            raise LumitokError(
                f"there are {len(generator)} generators for {len(self.mean)} pictures; give one a picture, "
                "or a single one that is not in a list"
            )
        noise: Tensor = randn_tensor(
            tuple(self.mean.shape), generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The most likely z (B, C, h, w): the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1), summed over a picture's numbers: (B,)."""
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar).sum(dim=(1, 2, 3))


class PointMass:
    """The distribution of a deterministic latent: all of it at z; drawing gives z.

    Args:
        z: (B, C, h, w).
    """

    logvar = None

    def __init__(self, z: Tensor) -> None:
        self.mean = z

    def sample(self, generator: Generators = None) -> Tensor:
        """Return z; nothing is drawn."""
        del generator
        return self.mean

    def mode(self) -> Tensor:
        """Return z."""
        return self.mean
