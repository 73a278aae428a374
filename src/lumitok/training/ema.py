"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Average of a module's parameters (or buffers) by name, held as a plain dictionary of float32 tensors.

    The weight of the past after a step of n images is 0.5 ** (n / h) with h = min(half_life,
    ramp * images seen), so that early averages follow quickly (EDM2's and StyleGAN's rule). With ``most``
    it is min(most, (1 + n) / (10 + n)) in the n-th step (latent diffusion's rule), or, where that is not
    ``ramped``, ``most`` in every step (DiT's rule).

    Attributes:
        steps: steps that the average has followed, from its beginning or its last restart.
    """

    def __init__(
        self,
        module: nn.Module,
        names: list[str],
        half_life: int,
        ramp: float,
        most: float | None = None,
        *,
        ramped: bool = True,
    ) -> None:
        self.half_life, self.ramp, self.most, self.ramped = half_life, ramp, most, ramped
        self.steps = 0
        parameters: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.parameters = {name: parameters[name] for name in names}
        self.average = {name: p.detach().clone().float() for name, p in self.parameters.items()}

    def decay(self, images_seen: int, batch_size: int) -> float:
        """Weight of the past in the step that brings the count of images to ``images_seen``."""
        if self.most is not None and not self.ramped:
            return self.most
        if self.most is not None:
            return min(self.most, (1 + self.steps) / (10 + self.steps))
        before = images_seen - batch_size
        half_life = min(self.half_life, self.ramp * before)
        return 0.0 if half_life <= 0 else 0.5 ** (batch_size / half_life)

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        """Move the average towards the present weights."""
        self.steps += 1
        weight = 1 - self.decay(images_seen, batch_size)
        now = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), now, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the module for the length of a ``with`` block."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def write(self) -> None:
        """Put the averaged weights into the module, to go on from them."""
        self._write(self.average)

    @torch.no_grad()
    def restart(self) -> None:
        """Let the average begin anew at the present weights."""
        self.steps = 0
        for name, parameter in self.parameters.items():
            self.average[name].copy_(parameter)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a saved average."""
        for name, value in self.average.items():
            value.copy_(state[name])
