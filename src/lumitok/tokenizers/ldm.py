"""The decoder of latent diffusion models (arXiv 2112.10752), as VA-VAE (arXiv 2501.01423) has it.

z -> convolution -> residual, attention, residual -> levels, each but the last twice the size -> picture
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.nn.group_norm import GroupNorm


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each behind norm and swish; a 1x1 convolution where the channels change."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        result: Tensor = self.shortcut(x) + h
        return result


class Attention(nn.Module):
    """Self-attention over all places with a single head, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))  # (B, 1, N, C)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        result: Tensor = x + self.out(mixed.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return result


class Level(nn.Module):
    """Residual blocks, each followed by attention if asked for, then twice the size but at the last level."""

    def __init__(
        self, in_channels: int, channels: int, blocks: int, *, attention: bool, upsample: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels if index else in_channels, channels) for index in range(blocks)
        )
        self.attention = nn.ModuleList(Attention(channels) for _ in range(blocks if attention else 0))
        self.upsample = nn.Conv2d(channels, channels, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, 2H, 2W), or (B, C, H, W) at the last level."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.attention:
                x = self.attention[index](x)
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class LDMDecoder(nn.Module):
    """Latents (B, Z, h, w) -> pictures (B, 3, H, W) near [-1, 1], not clamped.

    Args:
        latent_channels: Z.
        channels: at the picture's size.
        multipliers: factor on ``channels`` at each level, the picture's size first; n of them give
            pictures of 2^(n - 1) times the latent's side.
        blocks: residual blocks a level. Attention follows each of them at the latent's size.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 3,
    ) -> None:
        super().__init__()
        widths = [channels * factor for factor in reversed(multipliers)]
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.middle = nn.Sequential(
            ResidualBlock(widths[0], widths[0]), Attention(widths[0]), ResidualBlock(widths[0], widths[0])
        )
        last = len(widths) - 1
        self.levels = nn.Sequential(
            *(
                Level(before, width, blocks, attention=index == 0, upsample=index < last)
                for index, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
            )
        )
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, 3, H, W)."""
        x = self.levels(self.middle(self.conv_in(z)))
        result: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return result
