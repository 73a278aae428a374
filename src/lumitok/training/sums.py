"""Means of what is logged, over processes and steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass
class Sums:
    """Sum and count of every value since the last log line."""

    values: dict[str, list[float]] = field(default_factory=dict)

    @staticmethod
    def average(accelerator: Accelerator, values: dict[str, Tensor]) -> dict[str, float]:
        """Means of scalars over the processes, so that all of them see the same numbers."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        reduced = accelerator.reduce(stacked, reduction="mean")
        return dict(zip(values, reduced.tolist(), strict=True))

    def collect(self, values: dict[str, float]) -> None:
        """Add a step's values to the means of the next log line."""
        for name, value in values.items():
            total, count = self.values.get(name, (0.0, 0))
            self.values[name] = [total + value, count + 1]

    def means(self) -> dict[str, float]:
        """Means over the steps since the last call."""
        means = {name: total / count for name, (total, count) in self.values.items()}
        self.values = {}
        return means
