"""Latents whose statistics are known, by whole-set formulas and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.latent_space import (
    METHODS,
    LatentSpace,
    LatentStatistics,
    effective_rank,
    near_dead,
)


def latents(count: int = 12, channels: int = 3, height: int = 5, width: int = 4) -> Tensor:
    draw = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0)).double()
    scale = torch.tensor([1.0, 0.01, 30.0])[:channels].view(-1, 1, 1)
    return draw.exp() * scale + torch.tensor([0.0, -7.0, 100.0])[:channels].view(-1, 1, 1)


def measured(z: Tensor, *parts: int) -> LatentSpace:
    gatherer = LatentStatistics(*z.shape[1:])
    for part in z.split(list(parts) or [len(z)]):
        gatherer.update(part)
    return gatherer.result()


def test_channels_by_the_textbook() -> None:
    z = latents()
    found = measured(z)
    flat = z.movedim(1, 0).flatten(1)
    mean, std = flat.mean(dim=1), flat.std(dim=1, correction=0)
    standard = (flat - mean[:, None]) / std[:, None]
    assert found.pictures == 12
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.std, std)
    torch.testing.assert_close(found.skewness, standard.pow(3).mean(1))
    torch.testing.assert_close(found.kurtosis, standard.pow(4).mean(1) - 3)
    wanted = torch.linalg.eigvalsh(torch.cov(flat, correction=0)).flip(0)
    torch.testing.assert_close(found.eigenvalues, wanted)
    assert found.effective_rank == effective_rank(found.eigenvalues)


def test_variance_and_variation_in_space_by_loops() -> None:
    z = latents(3, 2, 3, 4)
    found = measured(z)
    for channel in range(2):
        variance, variation, squared, pairs = 0.0, 0.0, 0.0, 0
        for picture in z[:, channel].tolist():
            cells = [cell for row in picture for cell in row]
            mean = sum(cells) / len(cells)
            variance += sum((cell - mean) ** 2 for cell in cells) / len(cells)
            for y in range(3):
                for x in range(4):
                    for step in [(y + 1, x), (y, x + 1)]:
                        if step[0] < 3 and step[1] < 4:
                            difference = picture[step[0]][step[1]] - picture[y][x]
                            variation += abs(difference)
                            squared += difference**2
                            pairs += 1
        assert float(found.spatial_variance[channel]) == pytest.approx(variance / 3)
        assert float(found.total_variation[channel]) == pytest.approx(variation / 3)
        geary = squared / pairs / (2 * float(z[:, channel].var(correction=0)))
        assert float(found.neighbour_correlation[channel]) == pytest.approx(1 - geary)


def test_a_ramp_by_hand() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(2, 1, 4, 4)
    found = measured(ramp)
    assert found.spatial_variance.item() == pytest.approx(1.25)
    assert found.total_variation.item() == pytest.approx(12)
    assert found.whitened(found.spatial_variance, 2) == pytest.approx(1)
    assert found.whitened(found.total_variation, 1) == pytest.approx(12 / math.sqrt(1.25))


def test_neighbours() -> None:
    noise = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(measured(noise).neighbour_correlation) == pytest.approx(0, abs=0.03)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert float(measured(checks.expand(2, 1, 8, 8)).neighbour_correlation) == pytest.approx(-1)
    flat = torch.randn(50, 1, 1, 1).expand(50, 1, 8, 8)
    assert float(measured(flat).neighbour_correlation) == pytest.approx(1)


def test_whitening_takes_the_scale_out() -> None:
    z = latents()
    scaled = z * torch.tensor([100.0, 3.0, 0.01]).view(3, 1, 1) + 9.0
    one, other = measured(z), measured(scaled)
    for power, name in ((2, "spatial_variance"), (1, "total_variation")):
        assert not torch.allclose(getattr(one, name), getattr(other, name))
        assert other.whitened(getattr(other, name), power) == pytest.approx(
            one.whitened(getattr(one, name), power)
        )
    torch.testing.assert_close(one.spectrum.power, other.spectrum.power)
    torch.testing.assert_close(one.neighbour_correlation, other.neighbour_correlation)


def test_the_rank_that_is_made_use_of() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, -1e-18])) == pytest.approx(1)
    halves = torch.tensor([2.0, 1.0, 1.0])  # Entropy of 1/2, 1/4, 1/4: 1.5 bits.
    assert effective_rank(halves) == pytest.approx(2**1.5)
    generator = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:, :2]
    plane = torch.einsum("cd,ndhw->nchw", mix, torch.randn(400, 2, 4, 4, generator=generator))
    assert measured(plane).effective_rank == pytest.approx(2, rel=0.01)
    for wrong in ([0.0, 0.0], [1.0, math.nan]):
        with pytest.raises(LumitokError, match="effective rank"):
            effective_rank(torch.tensor(wrong))


def test_channels_that_hold_next_to_nothing() -> None:
    share = torch.tensor([1.0, 1.0, 0.003, 0.0, 0.005])  # Of a mean of 0.4016.
    assert near_dead(share).tolist() == [False, False, True, True, False]


def test_batches_and_processes_do_not_matter() -> None:
    z = latents()
    whole, single = measured(z), measured(z, *[1] * 12)
    first, second = LatentStatistics(3, 5, 4), LatentStatistics(3, 5, 4)
    first.update(z[:5])
    second.update(z[5:])
    first.merge(second)
    first.merge(LatentStatistics(3, 5, 4))  # A process whose share was empty.
    for other in (single, first.result()):
        assert other.pictures == 12
        for name, value in vars(whole).items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(getattr(other, name), value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other.spectrum.power, whole.spectrum.power, rtol=1e-9, atol=0)
    with pytest.raises(LumitokError, match="cannot take in"):
        first.merge(LatentStatistics(3, 4, 4))


def test_low_precision_latents_are_summed_in_float64() -> None:
    z = latents().bfloat16()
    torch.testing.assert_close(measured(z).std, measured(z.double()).std, rtol=0, atol=0)


def test_a_constant_channel_is_known_as_one() -> None:
    z = latents()
    z[:, 1] = 0.1
    found = measured(z, 5, 7)
    assert found.varying.tolist() == [True, False, True]
    assert found.std[1] == 0
    for name in ("skewness", "kurtosis", "neighbour_correlation"):
        assert torch.isnan(getattr(found, name)).tolist() == [False, True, False], name
    assert math.isfinite(found.whitened(found.total_variation, 1))
    assert math.isfinite(found.effective_rank)


def test_latents_that_cannot_be_measured() -> None:
    with pytest.raises(LumitokError, match="at least 2 x 2"):
        LatentStatistics(3, 1, 1)
    with pytest.raises(LumitokError, match="at least 2 pictures, got 1"):
        measured(latents(1))
    with pytest.raises(LumitokError, match="no channel of the latents varies"):
        measured(torch.full((4, 3, 5, 4), 0.1))
    broken = latents()
    broken[0, 0, 0, 0] = math.nan
    with pytest.raises(LumitokError, match="NaN or infinite"):
        measured(broken)
    with pytest.raises(LumitokError, match=r"expected a batch \(B, 3, 5, 4\)"):
        LatentStatistics(3, 5, 4).update(latents(2, 3, 4, 4))


def test_every_method_is_in_words() -> None:
    assert all(len(words) > 20 for words in METHODS.values())
