"""What anything beyond a tokenizer may know of its latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lumitok.errors import LumitokError


@dataclass(frozen=True)
class LatentSpec:
    """Shape and statistics of a tokenizer's latents, for a picture of the size it was trained on.

    Latents come out of a tokenizer raw. A diffusion network learns them whitened, channel by channel;
    this object alone applies the whitening and takes it back, so it cannot be done on one side only.

    Attributes:
        channels: channels of z.
        height: rows of z.
        width: columns of z.
        mean: mean of each channel over pictures and positions; None while unmeasured.
        std: unbiased standard deviation of each channel; None while unmeasured.
        tokenizer: fingerprint of the tokenizer that makes these latents.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tokenizer: str | None = None

    def whiten(self, z: Tensor) -> Tensor:
        """Return (z - mean) / std; z is (B, channels, h, w), raw."""
        mean, std = self._statistics(z)
        return (z - mean) / std

    def unwhiten(self, z: Tensor) -> Tensor:
        """Return z * std + mean, the inverse of :meth:`whiten`."""
        mean, std = self._statistics(z)
        return z * std + mean

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.std is None:
            raise LumitokError(
                "this tokenizer carries no latent statistics: they are measured at the end of a training "
                "run; measure them with lumitok.training.measure_latents before its latents are whitened"
            )
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise LumitokError(f"latents of shape {tuple(z.shape)} do not fit (B, {self.channels}, h, w)")
        mean = torch.tensor(self.mean, dtype=z.dtype, device=z.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=z.dtype, device=z.device).view(1, -1, 1, 1)
        return mean, std
