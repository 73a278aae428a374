"""Gaussian data, of which the exact velocity is known."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
STD = torch.tensor([0.4, 2.0, 1.0], dtype=torch.float64)


def variance(t: Tensor | float) -> Tensor:
    """Of x_t = t x_1 + (1 - t) x_0, dimension by dimension."""
    return (t * STD) ** 2 + (1 - t) ** 2


def field(x: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
    """The mean of x_1 - x_0 given x_t = x, by the formula for jointly Gaussian variables."""
    return MEAN + (t * STD**2 - (1 - t)) / variance(t) * (x - t * MEAN)


def score(x: Tensor, t: Tensor | float) -> Tensor:
    return -(x - t * MEAN) / variance(t)


def solution(noise: Tensor) -> Tensor:
    """Where the flow carries noise: dx/dt = field has the solution x_t = t MEAN + sqrt(variance) x_0."""
    return MEAN + STD * noise
