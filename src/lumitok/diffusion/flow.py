"""The flow between noise and data: its path, its velocity, its times. The one place of the convention.

Time t runs from 0, noise, to 1, data, along the straight path of rectified flow (arXiv 2209.03003) and
SiT (arXiv 2401.08740):

    x_t = t x_1 + (1 - t) x_0        x_0 ~ N(0, I), x_1 data, as LightningDiT and SiT count it
    v   = dx_t / dt = x_1 - x_0

REPA, REG and RAE count from data to noise: their t is our 1 - t and their velocity our -v. Data are
whitened latents (B, C, h, w), or any other tensors whose first dimension is the batch. Every ``t`` here
is a number, a scalar tensor, or one time a sample, (B,).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lumitok.errors import LumitokError

SHIFT_BASE = 4096
"""Numbers in a latent for which RAE (arXiv 2510.11690) leaves the times as they are."""


def interpolate(noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
    """The state x_t = t data + (1 - t) noise."""
    t = _beside(t, data)
    return t * data + (1 - t) * noise


def velocity(noise: Tensor, data: Tensor) -> Tensor:
    """The velocity v = data - noise, which the network learns to predict at any t."""
    return data - noise


# ------------------------------------------------------------------------------------------------
# What a velocity says of the rest, given the state: x_1 = x + (1 - t) v, x_0 = x - t v


def data_from_velocity(x: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The data x_1 that a velocity at the state x points to."""
    return x + (1 - _beside(t, x)) * v


def noise_from_velocity(x: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The noise x_0 that a velocity at the state x comes from."""
    return x - _beside(t, x) * v


def score_from_velocity(x: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The score, the gradient of log p_t at x: -x_0 / (1 - t); for t under 1."""
    return -noise_from_velocity(x, v, t) / (1 - _beside(t, x))


def velocity_from_data(x: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
    """Inverse of :func:`data_from_velocity`, for t under 1."""
    return (data - x) / (1 - _beside(t, x))


def velocity_from_noise(x: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """Inverse of :func:`noise_from_velocity`, for t over 0."""
    return (x - noise) / _beside(t, x)


def velocity_from_score(x: Tensor, score: Tensor, t: Tensor | float) -> Tensor:
    """Inverse of :func:`score_from_velocity`, for t over 0 and under 1."""
    return velocity_from_noise(x, -score * (1 - _beside(t, x)), t)


# ------------------------------------------------------------------------------------------------
# Times


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise (shift under 1) or data (over 1): t' = s t / (1 + (s - 1) t).

    0 and 1 stay; the inverse is the shift 1 / s. LightningDiT samples with s = 0.3. RAE shifts its own
    time, from data to noise, by alpha: that is s = 1 / alpha here.
    """
    return shift * t / (shift * t + (1 - t))  # This form keeps 1 to the last digit.


def dimension_shift(numbers: int, base: int = SHIFT_BASE) -> float:
    """Shift for latents of so many numbers, C h w: sqrt(base / numbers) (RAE, arXiv 2510.11690).

    The more numbers a latent has, the more noise hides as much of it. RAE's alpha is its inverse.
    """
    return math.sqrt(base / numbers)


def sample_times(
    count: int,
    *,
    kind: Literal["uniform", "logit-normal"] = "logit-normal",
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw times to train at, (count,), float32, on the generator's device.

    Args:
        count: how many.
        kind: ``uniform`` (SiT, REPA, REG); ``logit-normal``: the logistic function of a Gaussian
            (Stable Diffusion 3, arXiv 2403.03206; LightningDiT's with mean 0 and std 1).
        mean: of that Gaussian; over 0 the times lie nearer to data.
        std: of that Gaussian.
        shift: moves the drawn times, see :func:`shift_time`.
        generator: source of the numbers; None: torch's own, on the CPU.
    """
    device = generator.device if generator else None
    if kind == "uniform":
        t = torch.rand(count, generator=generator, device=device)
    elif kind == "logit-normal":
        t = torch.sigmoid(mean + std * torch.randn(count, generator=generator, device=device))
    else:
        raise LumitokError(f"times are drawn 'uniform' or 'logit-normal', not '{kind}'")
    return shift_time(t, shift)


def drop_labels(
    labels: Tensor, null: int, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """Replace labels (B,) by the null label with a probability (arXiv 2207.12598).

    What is learnt without a class is what classifier-free guidance leads away from.
    """
    device = generator.device if generator else None
    dropped = torch.rand(len(labels), generator=generator, device=device) < probability
    return labels.masked_fill(dropped.to(labels.device), null)


def _beside(t: Tensor | float, x: Tensor) -> Tensor | float:
    """Shape times (B,) so that they meet the samples of x."""
    if isinstance(t, float | int) or t.ndim == 0:
        return t
    assert t.shape == x.shape[:1], f"times {tuple(t.shape)} for samples {tuple(x.shape)}"
    return t.view(-1, *[1] * (x.ndim - 1))
