"""Layers that both kinds of VFM-VAE's decoder blocks are made of: norms, style, modulation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.nn.group_norm import GroupNorm
from lumitok.nn.precision import full_precision


def group_norm(channels: int, groups: int) -> GroupNorm:
    """GroupNorm with the nearest number of groups that divides the channels."""
    return GroupNorm(math.gcd(channels, groups), channels)


class EqualizedLinear(nn.Module):
    """A linear layer that keeps its weights at unit scale and multiplies them at run time."""

    def __init__(
        self, in_channels: int, out_channels: int, *, lr_factor: float = 1.0, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels) / lr_factor)
        self.bias = nn.Parameter(torch.full((out_channels,), bias / lr_factor))
        self.gain = lr_factor / math.sqrt(in_channels)
        self.bias_gain = lr_factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in) -> (B, C_out)."""
        return F.linear(x, self.weight * self.gain, self.bias * self.bias_gain)


class Style(nn.Module):
    """w (B, W) -> one factor for each channel (B, C): m1 * m2 + m3, near 2 at the start."""

    def __init__(self, style_channels: int, channels: int) -> None:
        super().__init__()
        self.affine = EqualizedLinear(style_channels, 3 * channels, bias=1.0)

    def forward(self, w: Tensor) -> Tensor:
        """(B, W) -> (B, C)."""
        affine: Tensor = self.affine(w)
        m1, m2, m3 = affine.chunk(3, dim=1)
        return m1 * m2 + m3


def modulated_pointwise(
    x: Tensor, weight: Tensor, style: Tensor, *, bias: Tensor, demodulate: bool
) -> Tensor:
    """A 1x1 convolution whose weight is w_oi s_i, normalised over i if demodulated.

    x (B, I, H, W), weight (O, I), style (B, I), bias (O). The weight of a sample is never built:
    scaling the input channels by s_i and the output channels by 1 / sqrt(sum_i (w_oi s_i)^2 + 1e-8)
    is the same function, at the cost of an ordinary convolution.
    """
    y = F.conv2d(x * style.to(x.dtype)[:, :, None, None], weight[:, :, None, None])
    offset = bias.to(y.dtype)[None, :, None, None]
    if not demodulate:
        return y + offset
    norm = demodulation(weight.float().square(), style)
    return torch.addcmul(offset, y, norm.to(y.dtype)[:, :, None, None])


def demodulation(energy: Tensor, style: Tensor) -> Tensor:
    """Factors (B, O) that bring modulated weights to unit norm: 1 / sqrt(sum_i e_oi s_i^2 + 1e-8).

    energy (O, I): squared weights, summed over a kernel's places; style (B, I). Computed in float32.
    """
    with full_precision(style):
        return torch.rsqrt(style.float().square() @ energy.float().t() + 1e-8)
