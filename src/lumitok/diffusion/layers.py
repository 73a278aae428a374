"""Layers that the diffusion transformers share: patches, positions, time, attention, MLPs."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.config.networks import ProjectorConfig
from lumitok.diffusion.attention import attend

PERIOD = 10_000.0
"""Longest period of every sinusoid here."""
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (N, head width / 2) of the angles by which each token's pairs are turned."""
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------
# Patches


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut (B, C, H, W) into tokens (B, N, C patch^2), row by row; in a token channel, row, column."""
    if patch == 1:
        return x.flatten(2).transpose(1, 2)
    return F.unfold(x, patch, stride=patch).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """Put tokens (B, N, patch^2 C) of a square together to (B, C, H, W); in a token row, column, channel."""
    side = math.isqrt(tokens.shape[1])
    if patch == 1:
        x: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
        return x
    grid: Tensor = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))  # (B, h, w, p, q, C)
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


# ------------------------------------------------------------------------------------------------
# Positions. The two tables count the other way round: the added one by column first, the rotary by row.


def sin_cos_table(width: int, side: int) -> Tensor:
    """Fixed embedding of a square's positions (side^2, width), which DiT's kind adds to the tokens.

    The first half of the channels is of the column, the second of the row; in each, sines before cosines,
    at the frequencies 10000^(-4 k / width). Computed in float64, given in float32.
    """
    count = width // 4
    frequencies = PERIOD ** -(torch.arange(count, dtype=torch.float64, device=CPU) / count)
    angles = torch.arange(side, dtype=torch.float64, device=CPU)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    across, down = waves.expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    return torch.cat([across, down], dim=2).flatten(0, 1).float()


def rotary_table(head_width: int, side: int) -> Rotation:
    """Angles of rotary positions on a square (RoPE, arXiv 2104.09864, one axis for each half of the pairs).

    The first half of the pairs turns by the row, the second by the column, at the frequencies
    10000^(-4 i / head_width). Returns cosines and sines (side^2, head_width / 2).
    """
    count = head_width // 4
    frequencies = PERIOD ** -(torch.arange(count, dtype=torch.float32, device=CPU) / count)
    angles = torch.arange(side, dtype=torch.float32, device=CPU)[:, None] * frequencies
    down, across = angles[:, None].expand(-1, side, -1), angles.expand(side, -1, -1)
    both = torch.cat([down, across], dim=2).flatten(0, 1)
    return both.cos(), both.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (channel i, channel head_width / 2 + i) of x (..., N, head_width) by its angle.

    The pairs of the official code are neighbours, (2 i, 2 i + 1). Halves do the same with the channels in
    another order, and processors read them in one go; an import reorders queries and keys alike.
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def pass_by(rotation: Rotation | None, count: int) -> Rotation | None:
    """Angles for ``count`` tokens before the others that have no position: they are not turned."""
    if rotation is None or not count:
        return rotation
    cos, sin = rotation
    return F.pad(cos, (0, 0, count, 0), value=1.0), F.pad(sin, (0, 0, count, 0))


# ------------------------------------------------------------------------------------------------
# Time


def time_waves(t: Tensor, width: int) -> Tensor:
    """Waves (B, width) of times (B,): cosines before sines of t 10000^(-2 k / width); t is not scaled."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(steps * (-math.log(PERIOD) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Times (B,) -> (B, width): 256 waves through two linear layers."""

    def __init__(self, width: int, waves: int = 256) -> None:
        super().__init__()
        self.waves = waves
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times in [0, 1]."""
        dtype = next(self.mlp.parameters()).dtype
        embedded: Tensor = self.mlp(time_waves(t, self.waves).to(dtype))
        return embedded


# ------------------------------------------------------------------------------------------------
# Inside a block


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` with weight, at 1e-6, whose weight takes the type of what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width); the mean square is taken in float32."""
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def plain_norm(width: int) -> nn.LayerNorm:
    """LayerNorm without weights, DiT's."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class Linear(nn.Linear):
    """``nn.Linear`` with bias; compiled for a processor, the bias is added where the product is read.

    As a part of the matrix product the bias costs one more pass over the result; the compiler has one to
    read it anyway.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        if x.device.type == "cpu" and torch.compiler.is_compiling():
            product = F.linear(x, self.weight)
            return product + self.bias.to(product.dtype)
        return super().forward(x)


class Attention(nn.Module):
    """Self-attention, its queries and keys normalised in each head where asked.

    ``qk_norm``: ``rms``, RMSNorm; ``layer``, an affine LayerNorm at 1e-5; None, none. All heads share the
    norm's weights.
    """

    def __init__(self, width: int, heads: int, qk_norm: Literal["rms", "layer"] | None = None) -> None:
        super().__init__()
        self.head_width = width // heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        norm = {None: nn.Identity, "rms": RMSNorm, "layer": nn.LayerNorm}[qk_norm]
        self.q_norm, self.k_norm = norm(self.head_width), norm(self.head_width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        # (B, N, 3 width) -> three of (B, heads, N, head width)
        q, k, v = self.qkv(x).unflatten(2, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4).unbind()
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        seen = attend(q.to(v.dtype), k.to(v.dtype), v)
        y: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return y


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202): SiLU of one half of a linear layer, times the other, and a linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = Linear(width, 2 * hidden)
        self.w3 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        y: Tensor = self.w3(F.silu(gate) * value)
        return y


class MLP(nn.Module):
    """DiT's MLP: two linear layers and tanh-approximated GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """``x (1 + scale) + shift``; a shift of None is none."""
    return x * (1 + scale) if shift is None else x * (1 + scale) + shift


# ------------------------------------------------------------------------------------------------
# Out of the blocks


class FinalLayer(nn.Module):
    """Norm, modulation by the condition, and a linear layer to the patches."""

    def __init__(self, width: int, norm: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.norm = norm
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, out_channels)

    def modulated(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, N, width) before the linear layer; ``condition`` (B, 1 or N, width), after SiLU."""
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return modulate(self.norm(x), shift, scale)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, out_channels)."""
        y: Tensor = self.linear(self.modulated(x, condition))
        return y


def projector(width: int, settings: ProjectorConfig | None) -> nn.Sequential | None:
    """REPA's projector at every token: three linear layers with SiLU between; None where there is none."""
    if settings is None:
        return None
    hidden = settings.hidden
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, settings.channels),
    )


def draw_weights(network: nn.Module, zeros: list[nn.Module], small: list[nn.Module | None]) -> None:
    """Draw a network's weights as DiT does: it begins as a network that predicts zero.

    Args:
        network: every linear layer in it is Xavier-uniform with a zero bias, but for
        zeros: the modulations and last layers, which are zero, and
        small: the time's linear layers and the labels' table, which are N(0, 0.02).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in zeros:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    for part in small:
        for parameter in () if part is None else part.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
