"""Decoder layers of StyleGAN2 (arXiv 1912.04958): the second row of VFM-VAE's Table 3.

Modulated 3x3 convolutions, one of which doubles the size; the others stand in residual pairs that a
norm precedes and a layer scale follows (StyleGAN-T, arXiv 2301.09515). There is no noise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.tokenizers.layers import Style, demodulation, group_norm


def modulated_convolution(x: Tensor, weight: Tensor, style: Tensor, *, upsample: bool = False) -> Tensor:
    """A convolution whose weight is w_oikl s_i, normalised over i, k and l.

    x (B, I, H, W), weight (O, I, K, K), style (B, I) -> (B, O, H, W); a transposed convolution of stride 2
    if upsampling: (B, O, 2H - 2 + K, 2W - 2 + K). As with the 1x1 convolution, the input and output
    channels are scaled in place of the weight.
    """
    y = x * style.to(x.dtype)[:, :, None, None]
    if upsample:
        y = F.conv_transpose2d(y, weight.transpose(0, 1), stride=2)
    else:
        y = F.conv2d(y, weight, padding=weight.shape[-1] // 2)
    norm = demodulation(weight.float().square().sum(dim=(2, 3)), style)
    return y * norm.to(y.dtype)[:, :, None, None]


class ModulatedConvolution(nn.Module):
    """A modulated 3x3 convolution, bias, leaky ReLU times sqrt(2).

    ``upsample`` doubles height and width: the transposed convolution's result (2H + 1) is smoothed by the
    filter [1, 3, 3, 1] in both directions, zeros around it, and is then 2H wide. The filter's sum is 4, since
    three of four places between the input's are empty.
    """

    smoothing: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, style_channels: int, *, upsample: bool = False
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.style = Style(style_channels, in_channels)
        # Demodulation takes the scale out again; at 1 the rate of learning is StyleGAN2's.
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("smoothing", torch.outer(taps, taps) / 16, persistent=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Features (B, I, H, W), style (B, W) -> (B, O, H, W), or (B, O, 2H, 2W)."""
        y = modulated_convolution(x, self.weight, self.style(w), upsample=self.upsample)
        if self.upsample:
            channels = y.shape[1]
            kernel = self.smoothing.to(y.dtype).expand(channels, 1, 4, 4)
            y = F.conv2d(y, kernel, padding=1, groups=channels)
        y = y + self.bias.to(y.dtype)[None, :, None, None]
        return F.leaky_relu(y, 0.2) * math.sqrt(2)


class ResidualPair(nn.Module):
    """h + gamma * two modulated convolutions of the normalised h."""

    def __init__(self, channels: int, style_channels: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = group_norm(channels, min(32, max(1, channels // 4)))
        self.first = ModulatedConvolution(channels, channels, style_channels)
        self.second = ModulatedConvolution(channels, channels, style_channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Features (B, C, H, W), style (B, W) -> (B, C, H, W)."""
        h = self.second(self.first(self.norm(x), w), w)
        result: Tensor = x + self.gamma.to(h.dtype)[None, :, None, None] * h
        return result
