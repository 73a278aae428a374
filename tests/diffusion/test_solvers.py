"""Each solver against Gaussian data, where the way from noise to data is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lumitok.diffusion import solvers
from lumitok.diffusion.solvers import stochastic_time_grid, time_grid
from lumitok.errors import LumitokError
from tests.diffusion import gaussian


def never() -> Tensor:
    raise AssertionError("no noise is drawn here")


def start(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, len(gaussian.MEAN), generator=generator, dtype=torch.float64)


def error(x: Tensor) -> float:
    return float((x - gaussian.solution(start())).abs().max())


@pytest.mark.parametrize("shift", [1.0, 0.3])
@pytest.mark.parametrize(("solver", "order"), [(solvers.euler, 1), (solvers.heun, 2)])
def test_a_solver_meets_its_order(solver: object, order: int, shift: float) -> None:
    errors = [error(solver(gaussian.field, start(), time_grid(n, shift))) for n in (80, 160, 320)]  # type: ignore[operator]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_heun_ends_with_an_euler_step() -> None:
    """So that the field is never asked at the last time."""
    asked = []

    def field(x: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
        asked.append((float(t), None if start is None else float(start)))
        return gaussian.field(x, t)

    solvers.heun(field, start(), time_grid(4))
    assert asked == [(0, None), (0.25, 0), (0.25, None), (0.5, 0.25), (0.5, None), (0.75, 0.5), (0.75, None)]


def test_dopri5_meets_its_tolerance_and_stays_in_time() -> None:
    asked = []

    def field(x: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
        asked.append(float(t))
        return gaussian.field(x, t)

    counts = []
    for tolerance in (1e-6, 1e-9):
        asked.clear()
        x = solvers.dopri5(field, start(), time_grid(1), atol=tolerance, rtol=tolerance)
        assert error(x) < 20 * tolerance
        assert max(asked) <= 1
        counts.append(len(asked))
    assert counts[0] < counts[1]


def test_dopri5_says_why_it_cannot_go_on() -> None:
    def field(x: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
        return x * math.nan

    with pytest.raises(LumitokError, match=r"dopri5 cannot go on with atol 1e-06.*euler"):
        solvers.dopri5(field, start(), time_grid(1), atol=1e-6, rtol=1e-3)


def gaussian_of(run: object, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the result, exactly: the solver is linear in its start and in each noise.

    Row 0 of the batch starts at the mean 0 without noise, row 1 has a start of 1, row 2 + i a noise of 1 in
    step i; what each adds to row 0 is a deviation.
    """
    x = torch.zeros(2 + steps, len(gaussian.MEAN), dtype=torch.float64)
    x[1] = 1
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        unit = torch.zeros_like(x)
        unit[2 + drawn] = 1
        drawn += 1
        return unit

    x = run(x, noise)  # type: ignore[operator]
    assert drawn == steps - 1  # None in the last step.
    return x[0], (x[1:] - x[0]).square().sum(0)


def test_euler_maruyama_has_the_datas_mean_and_variance() -> None:
    misses = []
    for steps in (100, 200, 400):
        times = stochastic_time_grid(steps, last=1 / steps)
        mean, variance = gaussian_of(
            lambda x, noise: solvers.euler_maruyama(gaussian.field, x, times, noise),  # noqa: B023
            steps,
        )
        misses.append(float((mean - gaussian.MEAN).abs().max() + (variance - gaussian.STD**2).abs().max()))
    assert misses[-1] < 0.04
    for coarse, fine in pairwise(misses):
        assert coarse / fine == pytest.approx(2, abs=0.2)  # First order in the distribution.


def test_euler_maruyama_at_repas_settings() -> None:
    times = stochastic_time_grid(250)
    mean, variance = gaussian_of(
        lambda x, noise: solvers.euler_maruyama(gaussian.field, x, times, noise), 250
    )
    torch.testing.assert_close(mean, gaussian.MEAN, atol=0.02, rtol=0)
    torch.testing.assert_close(variance.sqrt(), gaussian.STD, atol=0.0, rtol=0.03)


def test_ddim_without_noise_is_euler() -> None:
    times = time_grid(7, 0.3)
    ours = solvers.ddim(gaussian.field, start(), times, never, eta=0.0)
    torch.testing.assert_close(ours, solvers.euler(gaussian.field, start(), times))


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_has_the_datas_mean_and_variance(eta: float) -> None:
    misses = []
    for steps in (100, 200, 400):
        mean, variance = gaussian_of(
            lambda x, noise: solvers.ddim(gaussian.field, x, time_grid(steps), noise, eta=eta),  # noqa: B023
            steps,
        )
        misses.append(float((mean - gaussian.MEAN).abs().max() + (variance - gaussian.STD**2).abs().max()))
    assert misses[-1] < 0.05
    for coarse, fine in pairwise(misses):
        assert coarse / fine == pytest.approx(2, abs=0.2)


def test_grids() -> None:
    assert time_grid(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert len(time_grid(249, 0.3)) == 250  # LightningDiT's "250".
    grid = stochastic_time_grid(250)
    assert len(grid) == 251
    assert (grid[0], grid[-1]) == (0, 1)
    assert grid[-2] == pytest.approx(0.96)
    assert stochastic_time_grid(250, 0.3)[-2] == pytest.approx(0.96)
    assert stochastic_time_grid(1).tolist() == [0, 1]
