"""Moments and spectra against whole-set formulas and signals whose spectrum is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lumitok.errors import LumitokError
from lumitok.evaluation.spectrum import Moments, Spectrum, SpectrumGatherer


def values(channels: int = 3, count: int = 500) -> torch.Tensor:
    draw = torch.randn(channels, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return draw.exp() * torch.tensor([1.0, 10.0, 0.1]).double()[:channels, None] + 1000.0


def test_merged_moments_are_those_of_the_whole() -> None:
    x = values()
    parts = [Moments.of(part) for part in x.split([1, 7, 192, 300], dim=1)]
    merged = Moments.empty(3)
    for part in parts:
        merged = merged.merged(part)
    centred = x - x.mean(dim=1, keepdim=True)
    assert merged.count == 500
    torch.testing.assert_close(merged.mean, x.mean(dim=1))
    torch.testing.assert_close(merged.covariance, torch.cov(x, correction=0))
    torch.testing.assert_close(merged.variance, x.var(dim=1, correction=0))
    torch.testing.assert_close(merged.third, centred.pow(3).sum(1))
    torch.testing.assert_close(merged.fourth, centred.pow(4).sum(1))
    assert merged.merged(Moments.empty(3)) is merged


def test_rounding_is_no_variance() -> None:
    x = torch.stack([torch.full((300,), 0.1).double(), 1e6 + 1e-3 * values(1, 300)[0]])
    halves = Moments.of(x[:, :100]).merged(Moments.of(x[:, 100:]))
    assert halves.varies.tolist() == [False, True]
    assert halves.variance[0] == 0
    assert float(halves.variance[1]) == pytest.approx(float(x[1].var(correction=0)), rel=1e-6)


def gathered(maps: torch.Tensor) -> Spectrum:
    gatherer = SpectrumGatherer(*maps.shape[1:])
    gatherer.update(maps)
    return gatherer.result()


@pytest.mark.parametrize("shape", [(12, 16), (9, 9), (7, 10)])
def test_a_wave_stands_in_its_ring(shape: tuple[int, int]) -> None:
    rows, columns = (torch.arange(side).double() for side in shape)
    wave = torch.cos(2 * math.pi * (rows[:, None] * 2 / shape[0] + columns[None] * 1 / shape[1] + 0.1))
    spectrum = gathered(3.0 * wave[None, None] + 5.0)
    assert spectrum.frequency.tolist() == list(range(1, min(shape) // 2 + 1))
    # sqrt(2^2 + 1) rounds to 2, where the integer grid has 12 modes; the wave and its mirror are two.
    wanted = torch.zeros(len(spectrum.power), dtype=torch.float64)
    wanted[1] = 1 / 12
    torch.testing.assert_close(spectrum.power, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16), (15, 15)])
def test_white_noise_is_flat_and_every_mode_counts_once(shape: tuple[int, int]) -> None:
    noise = torch.randn(400, 2, *shape, generator=torch.Generator().manual_seed(0))
    power = gathered(noise * torch.tensor([1.0, 50.0]).view(2, 1, 1)).power
    torch.testing.assert_close(power, torch.full_like(power, 1 / math.prod(shape)), rtol=0.06, atol=0)


def test_the_radial_average_is_that_of_the_whole_plane() -> None:
    maps = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 3.0
    plane = (np.abs(np.fft.fft2(maps[:, 0].numpy())) ** 2).mean(axis=0) / 64**2
    plane[0, 0] = maps.mean(dim=(2, 3)).var(correction=0)
    f = np.fft.fftfreq(8, 1 / 8)
    ring = np.rint(np.hypot(f[:, None], f[None]))
    wanted = [plane[ring == k].mean() / plane.sum() for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(gathered(maps).power, wanted, rtol=1e-9)
    assert plane.sum() == pytest.approx(float(maps.var(correction=0)))


def test_batches_and_processes_do_not_matter() -> None:
    maps = torch.randn(9, 2, 6, 6, generator=torch.Generator().manual_seed(0)) + 2.0
    whole, one, other = (SpectrumGatherer(2, 6, 6) for _ in range(3))
    whole.update(maps)
    one.update(maps[:2])
    one.update(maps[2:5])
    other.update(maps[5:])
    one.merge(other)
    one.merge(SpectrumGatherer(2, 6, 6))
    torch.testing.assert_close(one.result().power, whole.result().power, rtol=1e-12, atol=0)
    with pytest.raises(LumitokError, match="cannot take in"):
        one.merge(SpectrumGatherer(2, 6, 8))


def test_a_constant_channel_has_no_part_in_it() -> None:
    maps = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    both = torch.cat([maps, torch.full_like(maps, 0.1)], dim=1)
    torch.testing.assert_close(gathered(both).power, gathered(maps).power)
    with pytest.raises(LumitokError, match="no channel varies"):
        gathered(torch.full((5, 2, 6, 6), 0.1))


def test_the_slope_of_a_power_law() -> None:
    frequency = torch.arange(1, 9).double()
    law = Spectrum(frequency, 5.0 * frequency**-1.75)
    assert law.slope() == pytest.approx(-1.75)
    bent = Spectrum(frequency, torch.where(frequency > 4, 1.0, frequency**-3))
    assert bent.slope(up_to=4) == pytest.approx(-3)
    with pytest.raises(LumitokError, match="3 frequencies, got 2"):
        law.slope(up_to=2)
    with pytest.raises(LumitokError, match="no power"):
        Spectrum(frequency, torch.zeros(8).double()).slope()


def test_maps_that_cannot_be_measured() -> None:
    with pytest.raises(LumitokError, match="at least 2 x 2"):
        SpectrumGatherer(3, 1, 4)
    gatherer = SpectrumGatherer(3, 4, 4)
    with pytest.raises(LumitokError, match="no picture"):
        gatherer.result()
    with pytest.raises(LumitokError, match=r"expected a batch \(B, 3, 4, 4\), got \(1, 3, 4, 5\)"):
        gatherer.update(torch.zeros(1, 3, 4, 5))
    with pytest.raises(LumitokError, match="NaN or infinite"):
        gatherer.update(torch.full((1, 3, 4, 4), math.inf))
