"""The latent's normalisation while the tokenizer still moves (REPA-E, arXiv 2504.10483)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

EPS = 1e-4


class LiveNormaliser(nn.Module):
    """BatchNorm2d without scale and shift, eps 1e-4, whose batch is a whole step's.

    Scale and shift would let the network shrink the latent to lower its loss. Unlike in torch's layer a
    step's statistics are those of all parts and processes, so that neither changes what is learnt, and
    statistics that are not finite leave the running ones as they are.

    Args:
        channels: of the latent.
        momentum: share of a step's statistics in the running ones.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, z: Tensor) -> Tensor:
        """Normalise raw latents (B, C, h, w) by the running statistics; gradients reach ``z``."""
        return _normalised(z, self.running_mean, self.running_var)

    @torch.no_grad()
    def normalise_step(self, latents: Sequence[Tensor], accelerator: Accelerator) -> list[Tensor]:
        """Normalise a step's raw latents by their own statistics, and move the running ones towards those.

        Args:
            latents: this process's parts, each (B, C, h, w).
            accelerator: adds up the processes'.
        """
        values = sum(z.numel() // z.shape[1] for z in latents) * accelerator.num_processes
        total = torch.stack([z.sum(dim=(0, 2, 3)) for z in latents]).sum(dim=0)
        mean: Tensor = accelerator.reduce(total, reduction="sum") / values
        squares = torch.stack([(z - _beside(mean)).square().sum(dim=(0, 2, 3)) for z in latents]).sum(dim=0)
        squares = accelerator.reduce(squares, reduction="sum")
        unbiased = squares / (values - 1)
        if bool(torch.isfinite(torch.cat([mean, unbiased])).all()):
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return [_normalised(z, mean, squares / values) for z in latents]

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set out from measured means and standard deviations (C,)."""
        self.running_mean.copy_(mean)
        self.running_var.copy_(std.square())

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (C,) that :class:`~lumitok.data.latents.LatentSpec` whitens by as this does."""
        return self.running_mean, (self.running_var + EPS).sqrt()


def _normalised(z: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return (z - _beside(mean)) * _beside((var + EPS).rsqrt())


def _beside(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
