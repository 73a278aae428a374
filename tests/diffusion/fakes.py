"""A network whose velocity is a formula, and which remembers what it was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lumitok.diffusion.base import NetworkOutput


@dataclass
class Asked:
    """One evaluation."""

    count: int
    t: float
    labels: list[int] | None
    dtypes: tuple[torch.dtype, torch.dtype]


class FakeNetwork(nn.Module):
    """velocity = slope (label + 1 - t x); the class token's likewise, with twice the slope."""

    def __init__(
        self, *, slope: float = 1.0, classes: int = 3, class_channels: int = 0, channels: int = 4
    ) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.null_label, self.class_channels = classes, class_channels
        self.latent_shape = channels, 2, 2
        self.asked: list[Asked] = []

    @property
    def dtype(self) -> torch.dtype:
        return self.slope.dtype

    @property
    def device(self) -> torch.device:
        return self.slope.device

    def check_labels(self, labels: Tensor) -> None:
        assert int(labels.max()) <= self.null_label

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None, **kwargs: Any) -> NetworkOutput:
        token = kwargs["class_token"]
        named = None if labels is None else labels.tolist()
        self.asked.append(Asked(len(x), float(t[0]), named, (x.dtype, t.dtype)))
        label = torch.zeros(len(x)) if labels is None else labels
        level = (label + 1).to(x.dtype)

        def velocity(state: Tensor, slope: Tensor) -> Tensor:
            sides = [-1, *[1] * (state.ndim - 1)]
            return slope * (level.view(sides) - t.to(x.dtype).view(sides) * state)

        return NetworkOutput(
            velocity(x, self.slope), None if token is None else velocity(token, 2 * self.slope)
        )
