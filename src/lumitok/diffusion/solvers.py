"""Ways from noise, t = 0, to data, t = 1: each a function of a velocity field, a state and times.

A solver keeps no state and counts nothing. It calls its field once a step (Heun: twice but for the last
step, dopri5 as often as it needs) and draws noise, where it is stochastic, from the source it is given.
Times are float64 and on the CPU wherever the state is, so that no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lumitok.diffusion.flow import data_from_velocity, noise_from_velocity, shift_time
from lumitok.errors import LumitokError

LAST_JUMP = 0.04
"""Length of Euler-Maruyama's last step, which is deterministic (SiT, arXiv 2401.08740; REPA, REG)."""


class Field(Protocol):
    """A velocity field: dx/dt at a state and a time."""

    def __call__(self, x: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the velocity at x, in its shape and dtype.

        Args:
            x: the state; its first dimension is the batch.
            t: scalar.
            start: where the step began that asks, if not at t. A guidance interval is judged there, so
                that a step of two evaluations is guided in both or in none, as REPA has it.
        """


Noise = Callable[[], Tensor]
"""Draws standard normal noise of the state's shape."""


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """Times of ``steps`` steps from 0 to 1, (steps + 1,), closer together near noise for shift under 1.

    The field is evaluated ``steps`` times. LightningDiT's ``num_sampling_steps`` counts the times
    instead: its 250 are 249 steps.
    """
    return shift_time(torch.linspace(0, 1, steps + 1, dtype=torch.float64), shift)


def stochastic_time_grid(steps: int, shift: float = 1.0, last: float = LAST_JUMP) -> Tensor:
    """Times for :func:`euler_maruyama`, (steps + 1,): all steps but the last end at 1 - ``last``.

    REPA's and REG's with shift 1: their 250 steps are 249 stochastic ones and the last.
    """
    stochastic = shift_time(torch.linspace(0, 1, steps, dtype=torch.float64), shift) * (1 - last)
    return torch.cat([stochastic, torch.ones(1, dtype=torch.float64)])


def euler(field: Field, x: Tensor, times: Tensor) -> Tensor:
    """Euler's method, of first order; one evaluation a step."""
    for t, after in pairwise(times):
        x = x + (after - t) * field(x, t)
    return x


def heun(field: Field, x: Tensor, times: Tensor) -> Tensor:
    """Heun's method, of second order; two evaluations a step but one for the last.

    The last step is Euler's, as in EDM (arXiv 2206.00364) and REPA: no network learns the velocity at
    t = 1 well, and a single step of first order leaves the order as it is.
    """
    for index, (t, after) in enumerate(pairwise(times)):
        v = field(x, t)
        predicted: Tensor = x + (after - t) * v
        if index == len(times) - 2:
            return predicted
        x = x + (after - t) * (v + field(predicted, after, t)) / 2
    return x


def dopri5(field: Field, x: Tensor, times: Tensor, *, atol: float, rtol: float) -> Tensor:
    """Dormand and Prince's method of fifth order with its own steps (torchdiffeq).

    The state is solved as one system, whose error is a mean over all of it: give one sample at a time
    where the result must not depend on its neighbours. The field is never asked beyond the last time.

    Args:
        field: the velocity.
        x: state at the first time.
        times: of which the first and the last count.
        atol: absolute error of a step.
        rtol: relative error of a step.

    Raises:
        LumitokError: no step was short enough, or the field gave what is not finite.
    """
    from torchdiffeq import odeint  # It loads SciPy, which nothing else here needs.

    ends = times[[0, -1]].to(x)
    try:
        states = odeint(
            lambda t, state: field(state, t),
            x,
            ends,
            method="dopri5",
            atol=atol,
            rtol=rtol,
            options={"step_t": ends[1:]},
        )
    except AssertionError as error:
        raise LumitokError(
            f"dopri5 cannot go on with atol {atol:g} and rtol {rtol:g} ({error}); loosen them, or use a "
            "solver with fixed steps, such as euler"
        ) from error
    final: Tensor = states[-1]
    return final


def euler_maruyama(field: Field, x: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """Euler-Maruyama on the reverse equation with diffusion 2 (1 - t) (SiT; REPA's and REG's sampler).

    dx = (v + w s / 2) dt + sqrt(w) dW with w = 2 (1 - t) and the score s = -x_0 / (1 - t), so that the
    drift is v - x_0 and regular everywhere. The last step is the drift alone.
    """
    for index, (t, after) in enumerate(pairwise(times)):
        v = field(x, t)
        x = x + (after - t) * (v - noise_from_velocity(x, v, t))
        if index < len(times) - 2:
            x = x + torch.sqrt(2 * (1 - t) * (after - t)) * noise()
    return x


def ddim(field: Field, x: Tensor, times: Tensor, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """DDIM (arXiv 2010.02502) on the straight path: the data that v points to, with other noise.

    With b = max(0, (1 - t') (1 - eta (t' - t) / (1 - t))),
    x' = t' x_1 + b x_0 + sqrt((1 - t')^2 - b^2) n. At eta 0 no noise n is drawn and this is Euler's
    method; at eta 1 the noise is renewed as far as DDPM does.
    """
    for t, after in pairwise(times):
        v = field(x, t)
        data, start = data_from_velocity(x, v, t), noise_from_velocity(x, v, t)
        left = 1 - after
        kept = (left * (1 - eta * (after - t) / (1 - t))).clamp(min=0)
        x = after * data + kept * start
        if eta > 0 and left > 0:
            x = x + torch.sqrt(left.square() - kept.square()) * noise()
    return x
