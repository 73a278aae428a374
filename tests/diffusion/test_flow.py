from __future__ import annotations

import math

import pytest
import torch

from lumitok.diffusion import flow
from lumitok.errors import LumitokError
from tests.diffusion import gaussian

TIMES = [0.01, 0.3, 0.5, 0.77, 0.99]


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise, data = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64)
    return noise, data


def test_noise_is_at_0_and_data_at_1() -> None:
    noise, data = pair()
    assert torch.equal(flow.interpolate(noise, data, 0.0), noise)
    assert torch.equal(flow.interpolate(noise, data, torch.ones(5)), data)


@pytest.mark.parametrize("t", [*TIMES, torch.tensor(TIMES)])
def test_the_velocity_is_the_derivative_of_the_path(t: torch.Tensor | float) -> None:
    noise, data = pair()
    moved = flow.interpolate(noise, data, t + 1e-3) - flow.interpolate(noise, data, t)
    torch.testing.assert_close(moved / 1e-3, flow.velocity(noise, data), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [*TIMES, torch.tensor(TIMES, dtype=torch.float64)])
def test_conversions_find_what_the_path_was_made_of(t: torch.Tensor | float) -> None:
    noise, data = pair()
    x, v = flow.interpolate(noise, data, t), flow.velocity(noise, data)
    torch.testing.assert_close(flow.data_from_velocity(x, v, t), data)
    torch.testing.assert_close(flow.noise_from_velocity(x, v, t), noise)
    torch.testing.assert_close(flow.velocity_from_data(x, data, t), v)
    torch.testing.assert_close(flow.velocity_from_noise(x, noise, t), v)
    torch.testing.assert_close(flow.velocity_from_score(x, flow.score_from_velocity(x, v, t), t), v)


@pytest.mark.parametrize("t", TIMES)
def test_the_score_is_that_of_a_gaussian(t: float) -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    v = gaussian.field(x, torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(flow.score_from_velocity(x, v, t), gaussian.score(x, t))


def test_shifted_times() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    moved = flow.shift_time(t, 0.3)
    assert moved[0] == 0
    assert moved[-1] == 1
    assert (moved[1:-1] < t[1:-1]).all()  # Nearer to noise.
    torch.testing.assert_close(flow.shift_time(moved, 1 / 0.3), t)
    assert flow.shift_time(torch.tensor(0.5), 0.3) == pytest.approx(0.15 / 0.65)


def test_the_shift_by_dimension_is_raes_in_its_own_time() -> None:
    numbers = 768 * 16 * 16
    alpha = math.sqrt(numbers / 4096)
    assert alpha == pytest.approx(6.93, abs=2e-3)
    u = torch.linspace(0, 1, 11, dtype=torch.float64)  # From data to noise.
    theirs = alpha * u / (1 + (alpha - 1) * u)
    torch.testing.assert_close(1 - flow.shift_time(1 - u, flow.dimension_shift(numbers)), theirs)
    assert flow.dimension_shift(4096) == 1


def test_times_are_drawn_from_their_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    uniform = flow.sample_times(50_000, kind="uniform", generator=generator)
    torch.testing.assert_close(uniform.quantile(quantiles), quantiles, atol=0.01, rtol=0)
    normal = torch.special.ndtri(quantiles.double()).float()
    drawn = flow.sample_times(50_000, mean=-0.5, std=2.0, generator=generator)
    expected = torch.sigmoid(-0.5 + 2 * normal)
    torch.testing.assert_close(drawn.quantile(quantiles), expected, atol=0.01, rtol=0)
    shifted = flow.sample_times(50_000, mean=-0.5, std=2.0, shift=0.3, generator=generator)
    torch.testing.assert_close(shifted.quantile(quantiles), flow.shift_time(expected, 0.3), atol=0.01, rtol=0)


def test_times_follow_from_the_generator() -> None:
    first, again = (flow.sample_times(4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_an_unknown_kind_of_times() -> None:
    with pytest.raises(LumitokError, match="'uniform' or 'logit-normal', not 'normal'"):
        flow.sample_times(4, kind="normal")  # type: ignore[arg-type]


def test_labels_are_dropped_one_by_one() -> None:
    labels = torch.arange(10_000) % 10
    dropped = flow.drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0))
    gone = dropped == 10
    assert gone.float().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped[~gone], labels[~gone])
    assert torch.equal(flow.drop_labels(labels, 10, 0.0), labels)
    assert (flow.drop_labels(labels, 10, 1.0) == 10).all()
