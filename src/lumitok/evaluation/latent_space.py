"""What a latent space looks like in numbers: spread, smoothness, rank, spectrum.

Everything is gathered batch by batch in float64, channel by channel, and merged over processes; the result
depends on the batches to rounding only. AlignTok's Table 16 has a spatial variance and a total variation
without saying what they are; what is measured here is written in :data:`METHODS`, and no claim is made that
its figures can be met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.spectrum import Moments, Spectrum, SpectrumGatherer, check_alike, checked_maps

NEAR_DEAD = 0.01
"""A channel whose variance is below this part of the channels' mean variance is near-dead."""

METHODS = {
    "spatial variance": "population variance over a picture's positions, mean over channels and pictures",
    "total variation": "sum over a picture's positions of |difference| to the next row and to the next "
    "column (anisotropic), mean over channels and pictures",
    "whitened": "the same with each channel divided by its standard deviation over all pictures",
    "neighbour correlation": "1 - mean squared difference of adjacent positions (rows and columns) / twice "
    "the channel's variance (one minus Geary's C), mean over channels that vary",
    "effective rank": "exp of the entropy of the normalised eigenvalues of the channel covariance over "
    "pictures and positions (Roy & Vetterli 2007)",
    "near-dead channels": f"share of channels whose posterior mean has a variance below {NEAR_DEAD:g} of the "
    "channels' mean variance",
    "standard deviation": "square root of the channels' mean population variance over pictures and positions",
    "skewness": "mean over channels that vary of |third standardised moment|",
    "excess kurtosis": "mean over channels that vary of the fourth standardised moment - 3",
    "spectral slope": "slope of log power against log frequency, least squares over the rings of the "
    "radially averaged spectrum from 1 cycle a picture to the latent's Nyquist frequency; no window",
}
"""How each number is made, in words, for its protocol."""


@dataclass(frozen=True)
class LatentSpace:
    """What was found; each tensor float64, (C,) where nothing else is said.

    Attributes:
        pictures: how many were measured.
        mean: over pictures and positions.
        std: population standard deviation over pictures and positions.
        skewness: third standardised moment; NaN of a constant channel, as the next two.
        kurtosis: fourth standardised moment - 3.
        neighbour_correlation: between positions side by side or one above the other.
        spatial_variance: within a picture, mean over pictures.
        total_variation: of a picture, mean over pictures.
        eigenvalues: of the channel covariance, largest first.
        spectrum: of the whitened channels that vary, their mean.
    """

    pictures: int
    mean: Tensor
    std: Tensor
    skewness: Tensor
    kurtosis: Tensor
    neighbour_correlation: Tensor
    spatial_variance: Tensor
    total_variation: Tensor
    eigenvalues: Tensor
    spectrum: Spectrum

    @property
    def varying(self) -> Tensor:
        """Which channels are not constant: (C,) bool."""
        return self.std > 0

    @property
    def effective_rank(self) -> float:
        """1 to C, see :func:`effective_rank`."""
        return effective_rank(self.eigenvalues)

    def whitened(self, values: Tensor, power: int) -> float:
        """Mean over the channels that vary of a per-channel value over ``std ** power``."""
        kept = self.varying
        return float((values[kept] / self.std[kept] ** power).mean())


def near_dead(variance: Tensor) -> Tensor:
    """Return which channels hold next to nothing of the variance (C,): bool (C,).

    A channel that a KL penalty has emptied is all noise in a posterior sample and constant in the
    posterior's mean: it shows in the variance of the means alone.
    """
    return variance < NEAR_DEAD * variance.mean()


def effective_rank(eigenvalues: Tensor) -> float:
    """Return exp of the entropy of normalised eigenvalues (Roy & Vetterli, EUSIPCO 2007).

    Args:
        eigenvalues: (C,) of a covariance; rounding below zero counts as zero.

    Returns:
        From 1 (one direction) to C (all alike).

    Raises:
        LumitokError: none is positive, or one is not finite.
    """
    values = eigenvalues.detach().double().clamp_min(0.0)
    total = values.sum()
    if not bool(torch.isfinite(values).all()) or not float(total) > 0:
        raise LumitokError("the effective rank needs finite eigenvalues, one of them positive")
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


class LatentStatistics:
    """Statistics of latents of one size, gathered batch by batch.

    Args:
        channels: of the latents.
        height: rows, at least 2.
        width: columns, at least 2.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.shape = (channels, height, width)
        self.spectrum = SpectrumGatherer(channels, height, width)
        self.moments = Moments.empty(channels)
        self.spatial = torch.zeros(channels, dtype=torch.float64)
        self.variation = torch.zeros(channels, dtype=torch.float64)
        self.squared = torch.zeros(channels, dtype=torch.float64)
        self.pictures = 0

    def update(self, latents: Tensor) -> None:
        """Add a batch.

        Args:
            latents: (B, channels, height, width), raw.

        Raises:
            LumitokError: another shape, or NaN or infinite values.
        """
        z = checked_maps(latents, self.shape)
        self.spectrum.update(z)
        self.moments = self.moments.merged(Moments.of(z.movedim(1, 0).flatten(1)))
        self.spatial += z.var(dim=(2, 3), correction=0).sum(dim=0)
        for steps in (z.diff(dim=2), z.diff(dim=3)):
            self.variation += steps.abs().sum(dim=(0, 2, 3))
            self.squared += steps.square().sum(dim=(0, 2, 3))
        self.pictures += len(z)

    def merge(self, other: LatentStatistics) -> None:
        """Add what another one, of latents of the same shape, has seen."""
        check_alike(self.shape, other.shape)
        self.spectrum.merge(other.spectrum)
        self.moments = self.moments.merged(other.moments)
        self.spatial += other.spatial
        self.variation += other.variation
        self.squared += other.squared
        self.pictures += other.pictures

    def result(self) -> LatentSpace:
        """Return what was found.

        Raises:
            LumitokError: fewer than two pictures, or no channel varies.
        """
        if self.pictures < 2:
            raise LumitokError(
                f"the statistics of a latent space need at least 2 pictures, got {self.pictures}"
            )
        _, height, width = self.shape
        moments, varies = self.moments, self.moments.varies
        variance = moments.variance
        if not bool(varies.any()):
            raise LumitokError(
                "no channel of the latents varies, neither from picture to picture nor from position to "
                "position; the tokenizer says nothing of the pictures"
            )
        pairs = self.pictures * ((height - 1) * width + height * (width - 1))
        std = variance.sqrt()
        undefined = torch.full_like(std, math.nan)
        return LatentSpace(
            pictures=self.pictures,
            mean=moments.mean,
            std=std,
            skewness=torch.where(varies, moments.third / moments.count / std**3, undefined),
            kurtosis=torch.where(varies, moments.fourth / moments.count / variance.square() - 3, undefined),
            neighbour_correlation=torch.where(varies, 1 - self.squared / pairs / (2 * variance), undefined),
            spatial_variance=self.spatial / self.pictures,
            total_variation=self.variation / self.pictures,
            eigenvalues=torch.linalg.eigvalsh(moments.covariance).flip(0).clamp_min(0.0),
            spectrum=self.spectrum.result(),
        )
