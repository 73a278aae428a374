"""Encoder and decoder of latent diffusion models (arXiv 2112.10752), as VA-VAE (arXiv 2501.01423) has them.

picture -> convolution -> levels, each but the last half the size -> residual, attention, residual -> moments
z -> convolution -> residual, attention, residual -> levels, each but the last twice the size -> picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.nn.group_norm import GroupNorm

GROUPS = 32
"""Groups of every group norm in the published networks. A group of one channel forgets that channel's mean,
so networks narrower than 128 channels want fewer."""


def _norm(channels: int, groups: int) -> GroupNorm:
    return GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each behind norm and swish; a 1x1 convolution where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
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

    def __init__(self, channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
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
    """Residual blocks, each followed by attention if asked for, then half or twice the size if asked for."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        blocks: int,
        *,
        groups: int,
        attention: bool,
        resize: Literal["up", "down"] | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels if index else in_channels, channels, groups) for index in range(blocks)
        )
        self.attention = nn.ModuleList(Attention(channels, groups) for _ in range(blocks if attention else 0))
        self.upsample = nn.Conv2d(channels, channels, 3, padding=1) if resize == "up" else None
        self.downsample = nn.Conv2d(channels, channels, 3, stride=2) if resize == "down" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H, W), or with half or twice the sides."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.attention:
                x = self.attention[index](x)
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if self.downsample is not None:
            # Zeros on the right and below alone: the published weights were trained with that.
            x = self.downsample(F.pad(x, (0, 1, 0, 1)))
        return x


def _levels(
    before: int,
    widths: list[int],
    blocks: int,
    *,
    groups: int,
    attention: Sequence[bool],
    resize: Literal["up", "down"],
) -> nn.Sequential:
    """Levels from ``before`` channels to each width in turn; all but the last resize."""
    last = len(widths) - 1
    return nn.Sequential(
        *(
            Level(
                width_before,
                width,
                blocks,
                groups=groups,
                attention=attention[index],
                resize=resize if index < last else None,
            )
            for index, (width_before, width) in enumerate(zip([before, *widths], widths, strict=False))
        )
    )


def _attended(level_attention: bool | Sequence[bool], levels: int) -> list[bool]:
    """Whether each level has attention, the picture's size first."""
    if isinstance(level_attention, bool):
        return [False] * (levels - 1) + [level_attention]
    return list(level_attention)


def _middle(channels: int, groups: int, attention: bool) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels, groups),
        Attention(channels, groups) if attention else nn.Identity(),
        ResidualBlock(channels, channels, groups),
    )


class LDMEncoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> mean and log-variance of z, stacked (B, 2 Z, h, w).

    Args:
        latent_channels: Z.
        channels: at the picture's size.
        multipliers: factor on ``channels`` at each level, the picture's size first; n of them give
            latents of 1 / 2^(n - 1) of the picture's side, rounded down.
        blocks: residual blocks a level.
        level_attention: whether attention follows each of them: at the latent's size alone, or a bool a
            level, the picture's size first.
        middle_attention: whether it stands between the two residual blocks at the latent's size.
        groups: of every group norm.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        *,
        level_attention: bool | Sequence[bool] = True,
        middle_attention: bool = True,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        widths = [channels * factor for factor in multipliers]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.levels = _levels(
            channels,
            widths,
            blocks,
            groups=groups,
            attention=_attended(level_attention, len(widths)),
            resize="down",
        )
        self.middle = _middle(widths[-1], groups, middle_attention)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2 Z, h, w)."""
        h = self.middle(self.levels(self.conv_in(x)))
        moments: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return moments


class LDMDecoder(nn.Module):
    """Latents (B, Z, h, w) -> pictures (B, 3, H, W) near [-1, 1], not clamped.

    Args:
        latent_channels: Z.
        channels: at the picture's size.
        multipliers: factor on ``channels`` at each level, the picture's size first; n of them give
            pictures of 2^(n - 1) times the latent's side.
        blocks: residual blocks a level.
        level_attention: whether attention follows each of them: at the latent's size alone, or a bool a
            level, the picture's size first.
        middle_attention: whether it stands between the two residual blocks at the latent's size.
        groups: of every group norm.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 3,
        *,
        level_attention: bool | Sequence[bool] = True,
        middle_attention: bool = True,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        widths = [channels * factor for factor in reversed(multipliers)]
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], groups, middle_attention)
        self.levels = _levels(
            widths[0],
            widths,
            blocks,
            groups=groups,
            attention=_attended(level_attention, len(widths))[::-1],
            resize="up",
        )
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, 3, H, W)."""
        x = self.levels(self.middle(self.conv_in(z)))
        result: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return result
