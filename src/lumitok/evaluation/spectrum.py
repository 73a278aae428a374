"""Central moments and power spectra of maps, gathered batch by batch in float64 and merged over processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lumitok.errors import LumitokError

ROUNDING = 1e-24
"""A variance below this part of the mean's square is rounding in float64, and the channel constant."""


@dataclass(frozen=True)
class Moments:
    """Central moments of C channels, merged as in Pebay (SAND2008-6212, 2008): no digits lost to the mean.

    Attributes:
        count: values a channel.
        mean: (C,) float64.
        second: (C, C), sums of products about the mean.
        third: (C,), sums of cubes about the mean.
        fourth: (C,), sums of fourth powers about the mean.
    """

    count: int
    mean: Tensor
    second: Tensor
    third: Tensor
    fourth: Tensor

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Return those of no value at all."""
        zero = torch.zeros(channels, dtype=torch.float64)
        return cls(0, zero, torch.zeros(channels, channels, dtype=torch.float64), zero, zero)

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Return those of values (C, n), n at least 1."""
        values = values.double()
        mean = values.mean(dim=1)
        centred = values - mean[:, None]
        cubes = centred.pow(3)
        return cls(values.shape[1], mean, centred @ centred.T, cubes.sum(1), (cubes * centred).sum(1))

    def merged(self, other: Moments) -> Moments:
        """Return those of both sets of values together."""
        if not self.count or not other.count:
            return self if self.count else other
        a, b = self.count, other.count
        n = a + b
        delta = other.mean - self.mean
        mine, theirs = self.second.diagonal(), other.second.diagonal()
        third = (
            self.third + other.third
            + delta**3 * (a * b * (a - b) / n**2)
            + 3 * delta * (a * theirs - b * mine) / n
        )  # fmt: skip
        fourth = (
            self.fourth + other.fourth
            + delta**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * delta.square() * (a * a * theirs + b * b * mine) / n**2
            + 4 * delta * (a * other.third - b * self.third) / n
        )  # fmt: skip
        second = self.second + other.second + torch.outer(delta, delta) * (a * b / n)
        return Moments(n, self.mean + delta * (b / n), second, third, fourth)

    @property
    def varies(self) -> Tensor:
        """Which channels differ by more than rounding: (C,) bool."""
        return self.second.diagonal() / self.count > ROUNDING * self.mean.square()

    @property
    def covariance(self) -> Tensor:
        """Population covariance (C, C), zero where a channel does not vary."""
        return self.second / self.count * torch.outer(self.varies, self.varies)

    @property
    def variance(self) -> Tensor:
        """Population variance (C,), exactly zero where a channel does not vary."""
        return self.covariance.diagonal()


@dataclass(frozen=True)
class Spectrum:
    """Radially averaged power spectrum.

    Attributes:
        frequency: (K,) cycles a picture, 1 to the Nyquist frequency of the shorter side.
        power: (K,) float64: mean share of a channel's power that one mode of this ring holds. The constant
            part of a picture counts as power too where it differs from the mean of all pictures. White
            noise on h x w positions has 1 / (h w) everywhere, so grids of any size can be compared.
    """

    frequency: Tensor
    power: Tensor

    def slope(self, up_to: float = math.inf) -> float:
        """Return the slope of log power over log frequency; natural pictures have about -2.

        Args:
            up_to: highest frequency of the fit, cycles a picture.

        Raises:
            LumitokError: fewer than three rings, or one without power.
        """
        kept = self.frequency <= up_to
        if int(kept.sum()) < 3:
            raise LumitokError(
                f"the slope of a spectrum needs 3 frequencies, got {int(kept.sum())}; the latent grid is too "
                "small for it"
            )
        if not bool((self.power[kept] > 0).all()):
            raise LumitokError("a frequency of the spectrum has no power, so its slope is not defined")
        x, y = self.frequency[kept].double().log(), self.power[kept].log()
        x = x - x.mean()
        return float((x * y).sum() / x.square().sum())


class SpectrumGatherer:
    """Power spectra of maps of one size, gathered batch by batch: periodograms without a window.

    Args:
        channels: of the maps.
        height: rows, at least 2.
        width: columns, at least 2.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        if min(height, width) < 2:
            raise LumitokError(
                f"neighbours and a spectrum need maps of at least 2 x 2 positions, got {height} x {width}"
            )
        self.shape = (channels, height, width)
        self.power = torch.zeros(channels, height, width // 2 + 1, dtype=torch.float64)
        self.constant = Moments.empty(channels)
        """Of the pictures' means: the mode of frequency 0."""

    def update(self, maps: Tensor) -> None:
        """Add maps (B, channels, height, width)."""
        maps = checked_maps(maps, self.shape)
        mean = maps.mean(dim=(2, 3))
        modes = torch.fft.rfft2(maps - mean[:, :, None, None], norm="forward")
        self.power += (modes.real.square() + modes.imag.square()).sum(dim=0)
        self.constant = self.constant.merged(Moments.of(mean.T))

    def merge(self, other: SpectrumGatherer) -> None:
        """Add what another one, of the same shape, has seen."""
        check_alike(self.shape, other.shape)
        self.power += other.power
        self.constant = self.constant.merged(other.constant)

    def result(self) -> Spectrum:
        """Return the radial average over the channels that vary.

        Raises:
            LumitokError: nothing was added, or no channel varies.
        """
        if not self.constant.count:
            raise LumitokError("no picture was measured; give at least one that can be read")
        _, height, width = self.shape
        power = self.power / self.constant.count
        power[:, 0, 0] = self.constant.variance
        columns = torch.arange(width // 2 + 1)
        # A real map's modes come in pairs and one of each is kept; two columns hold both of theirs.
        twice = torch.where((columns == 0) | (2 * columns == width), 1.0, 2.0).double()
        total = (power * twice).sum(dim=(1, 2))
        varies = total > ROUNDING * self.constant.mean.square()
        if not bool(varies.any()):
            raise LumitokError("no channel varies, so there is no spectrum: all are of one colour")
        share = (power[varies] / total[varies].view(-1, 1, 1)).mean(dim=0)
        rows = torch.fft.fftfreq(height, 1.0 / height, dtype=torch.float64)
        ring = (rows[:, None].square() + columns[None].square()).sqrt().round().long().flatten()
        weight = twice.expand_as(share).flatten()
        sums = torch.zeros(int(ring.max()) + 1, dtype=torch.float64)
        counts = sums.clone().index_add_(0, ring, weight)
        sums.index_add_(0, ring, share.flatten() * weight)
        kept = slice(1, min(height, width) // 2 + 1)
        return Spectrum(torch.arange(len(sums))[kept].double(), (sums / counts)[kept])


def checked_maps(maps: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return a batch of maps (B, *shape) as float64 on the CPU.

    Raises:
        LumitokError: another shape, or NaN or infinite values.
    """
    if maps.ndim != 4 or tuple(maps.shape[1:]) != shape:
        raise LumitokError(
            f"expected a batch (B, {', '.join(map(str, shape))}), got {tuple(maps.shape)}; pictures of one "
            "measurement have one size"
        )
    maps = maps.detach().cpu().double()  # In this order: not every device has float64.
    if not bool(torch.isfinite(maps).all()):
        raise LumitokError("the maps hold NaN or infinite values; the model that made them has diverged")
    return maps


def check_alike(mine: tuple[int, int, int], theirs: tuple[int, int, int]) -> None:
    """Raise a LumitokError where statistics of maps of two shapes are about to be merged."""
    if mine != theirs:
        raise LumitokError(f"statistics of maps of {mine} cannot take in those of {theirs}")
