"""Group normalisation whose backward pass also holds where only its own parameters are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm``, safe to train behind frozen layers.

    PyTorch's processor kernel for channels-last maps (seen in 2.13) writes the gradient of the input
    also where the input needs none, and the process dies. So the input is made to need one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...)."""
        if torch.is_grad_enabled() and self.weight.requires_grad and not x.requires_grad:
            x = x.detach().requires_grad_()
        return super().forward(x)
