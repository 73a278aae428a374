"""VFM-VAE: a frozen vision foundation model as the encoder of a tokenizer (arXiv 2510.18457).

    pixels -> frozen encoder -> attention projections -> posterior -> z                 Eq. 1 to 3
    z -> Z -> global style w, spatial maps z_i -> N blocks, each with its own image     Eq. 4 to 6

The file follows the data from top to bottom and is longer than most for that reason. Where the
paper and its released code differ, the code is followed and the line says so. Shapes: B pictures,
h x w the latent grid, C channels, d the distance of a block from the last one.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.config import VFMVAEConfig, block_count
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers.frozen import FrozenEncoderTokenizer
from lumitok.tokenizers.layers import EqualizedLinear, Style, group_norm, modulated_pointwise
from lumitok.tokenizers.stylegan import ModulatedConvolution, ResidualPair

# ------------------------------------------------------------------------------------------------
# Feature maps to latent, latent to Z: attention projection (Appendix B.1, from UniTok)


class ProjectionAttention(nn.Module):
    """Self-attention that changes the number of channels.

    Compressing averages the heads, expanding concatenates them. The number of heads is the ratio of
    the channels; where that does not divide, the largest smaller number that does. q and v have a
    bias, k has none.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.compress = in_channels > out_channels
        inner = in_channels if self.compress else out_channels
        ratio = max(in_channels // out_channels, out_channels // in_channels)
        self.heads = next(heads for heads in range(ratio, 0, -1) if inner % heads == 0)
        self.out_channels = out_channels
        self.qkv = nn.Linear(in_channels, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.out = nn.Linear(out_channels, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(tokens, self.qkv.weight, bias)
        q, k, v = qkv.view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, C)
        mixed = F.scaled_dot_product_attention(q, k, v)
        if self.compress:
            mixed = mixed.mean(dim=1)
            if mixed.shape[-1] != self.out_channels:
                mixed = F.adaptive_avg_pool1d(mixed, self.out_channels)
        else:
            mixed = mixed.transpose(1, 2).flatten(2)
        result: Tensor = self.out(mixed)
        return result


class GatedMLP(nn.Module):
    """W2 (GELU(W0 x) * W1 x) on normalised tokens, tanh GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.w0 = nn.Linear(channels, hidden)
        self.w1 = nn.Linear(channels, hidden)
        self.w2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        result: Tensor = self.w2(F.gelu(self.w0(x), approximate="tanh") * self.w1(x))
        return result


class AttentionProjection(nn.Module):
    """A map (B, C_in, h, w) -> (B, C_out, h, w): x' = Linear(LN x) + Attn(LN x); x' + MLP(LN x')."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(in_channels)
        self.attention = ProjectionAttention(in_channels, out_channels)
        self.norm_shortcut = nn.LayerNorm(in_channels)
        self.shortcut = nn.Linear(in_channels, out_channels)
        self.norm_mlp = nn.LayerNorm(out_channels)
        self.mlp = GatedMLP(out_channels, 2 * out_channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)  # (B, h*w, C_in)
        tokens = self.shortcut(self.norm_shortcut(tokens)) + self.attention(self.norm_attention(tokens))
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        result: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
        return result


# ------------------------------------------------------------------------------------------------
# Global branch: Z to one style w (Appendix B.3)


class MappingNetwork(nn.Module):
    """Pooled Z (B, C) -> style w (B, W); its layers learn a hundred times more slowly."""

    def __init__(self, in_channels: int, style_channels: int) -> None:
        super().__init__()
        self.first = EqualizedLinear(in_channels, in_channels, lr_factor=0.01)
        self.second = EqualizedLinear(in_channels, style_channels, lr_factor=0.01)

    def forward(self, pooled: Tensor) -> Tensor:
        x = pooled * torch.rsqrt(pooled.square().mean(dim=1, keepdim=True) + 1e-8)
        result: Tensor = self.second(F.leaky_relu(self.first(x), 0.2))
        return result


# ------------------------------------------------------------------------------------------------
# Spatial branch: Z to what block i sees of it (Appendix B.3; LeakyReLU as in the code)


class SpatialBranch(nn.Module):
    """Z (B, C, h, w) -> (B, mapped, h * factor, w * factor).

    ``factor`` below one unshuffles pixels into channels before the convolutions, above one shuffles
    channels into pixels between them.
    """

    def __init__(self, channels: int, mapped: int, factor: float) -> None:
        super().__init__()
        down, up = max(1, round(1 / factor)), max(1, round(factor))
        self.unshuffle = nn.PixelUnshuffle(down)
        self.depthwise = _depthwise(channels * down**2, 3, bias=False)
        self.pointwise = nn.Conv2d(channels * down**2, mapped * up**2, 1, bias=False)
        self.norm = group_norm(mapped * up**2, 32)
        self.shuffle = nn.PixelShuffle(up)
        self.last = nn.Conv2d(mapped, mapped, 1, bias=False)
        self.last_norm = group_norm(mapped, 32)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(self.pointwise(self.depthwise(self.unshuffle(z))))
        x = self.shuffle(F.leaky_relu(x, 0.2))
        result: Tensor = self.last_norm(self.last(x))
        return result


def _depthwise(channels: int, kernel: int, *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)


# ------------------------------------------------------------------------------------------------
# The blocks (Eq. 4 to 6)


class Upsample(nn.Module):
    """Twice the height and width: norm, separable convolution, pixel shuffle, fixed blur (Appendix B.2).

    ``norm_last`` is the first block's order: the norm follows the shuffle.
    """

    blur_kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int, blur: int, *, norm_last: bool = False) -> None:
        super().__init__()
        channels = out_channels if norm_last else in_channels
        self.norm_last = norm_last
        self.norm = group_norm(channels, min(32, max(1, channels // 4)))
        self.depthwise = _depthwise(in_channels, 3, bias=False)
        self.pointwise = nn.Conv2d(in_channels, 4 * out_channels, 1, bias=False)
        taps = {3: [1.0, 2.0, 1.0], 5: [1.0, 4.0, 6.0, 4.0, 1.0]}[blur]
        kernel = torch.outer(torch.tensor(taps), torch.tensor(taps))
        self.register_buffer("blur_kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.norm_last:
            x = self.norm(x)
        x = F.pixel_shuffle(self.pointwise(self.depthwise(x)), 2)
        if self.norm_last:
            x = self.norm(x)
        channels, size = x.shape[1], self.blur_kernel.shape[0]
        x = F.pad(x, [size // 2] * 4, mode="replicate")
        weight = self.blur_kernel.to(x.dtype).expand(channels, 1, size, size)
        return F.conv2d(x, weight, groups=channels)


class ModulatedConvNeXt(nn.Module):
    """h + gamma * ConvNeXt(h), its first pointwise convolution modulated by the style (Eq. 5)."""

    def __init__(self, channels: int, kernel: int, settings: VFMVAEConfig, noise_side: int) -> None:
        super().__init__()
        self.depthwise = _depthwise(channels, kernel, bias=True)
        self.norm = group_norm(channels, min(32, max(1, channels // 4)))
        self.style = Style(settings.style_channels, channels)
        self.expand = nn.Parameter(torch.empty(4 * channels, channels))
        self.expand_bias = nn.Parameter(torch.zeros(4 * channels))
        self.reduce = nn.Conv2d(4 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((channels,), settings.layer_scale))
        for weight in (self.depthwise.weight, self.expand, self.reduce.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        for bias in (self.depthwise.bias, self.reduce.bias):
            assert bias is not None
            nn.init.zeros_(bias)
        self.noise: Tensor | None
        if settings.legacy_noise:
            self.register_buffer("noise", torch.randn(noise_side, noise_side))
            self.noise_strength = nn.Parameter(torch.zeros(()))
        else:
            self.noise = None

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        h = self.depthwise(x)
        if self.noise is not None:
            noise = F.interpolate(self.noise[None, None], h.shape[-2:], mode="bilinear", align_corners=False)
            h = h + (noise * self.noise_strength).to(h.dtype)
        h = self.norm(h)
        h = modulated_pointwise(h, self.expand, self.style(w), bias=self.expand_bias, demodulate=True)
        h = self.reduce(F.gelu(h))
        result: Tensor = x + self.gamma.to(h.dtype)[None, :, None, None] * h
        return result


class ChannelRMSNorm(nn.Module):
    """L2-normalise the channels, times sqrt(C), times gamma."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gamma[None, :, None, None] * math.sqrt(x.shape[1])
        return (F.normalize(x.float(), dim=1) * scale).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention with a learned null key and value, then a feed-forward; both residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ChannelRMSNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1, bias=False)
        self.k = nn.Conv2d(channels, channels, 1, bias=False)
        self.v = nn.Conv2d(channels, channels, 1, bias=False)
        self.null = nn.Parameter(torch.randn(2, heads, channels // heads))
        self.out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm_mlp = ChannelRMSNorm(channels)
        self.mlp_in = nn.Conv2d(channels, 4 * channels, 1)
        self.mlp_out = nn.Conv2d(4 * channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mlp_out.weight)

    def attend(self, x: Tensor) -> Tensor:
        """The attention branch alone: (B, C, H, W) -> (B, C, H, W)."""
        x = self.norm(x)
        # (B, heads, H*W, C/heads)
        q, k, v = (
            f(x).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3) for f in (self.q, self.k, self.v)
        )
        null = self.null.to(k.dtype)[:, None, :, None].expand(-1, x.shape[0], -1, -1, -1)
        mixed = F.scaled_dot_product_attention(q, torch.cat([null[0], k], 2), torch.cat([null[1], v], 2))
        result: Tensor = self.out(mixed.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[-2:]))
        return result

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        result: Tensor = x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))
        return result


class ToRGB(nn.Module):
    """Features to an image (B, 3, H, W): modulated, not demodulated (Eq. 6)."""

    def __init__(self, channels: int, style_channels: int) -> None:
        super().__init__()
        self.style = Style(style_channels, channels)
        self.weight = nn.Parameter(0.1 * torch.randn(3, channels))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w) / math.sqrt(x.shape[1])
        return modulated_pointwise(x, self.weight, style, bias=self.bias, demodulate=False)


class SynthesisBlock(nn.Module):
    """One block of the decoder: twice the size, refine, attend, and show an image (Eq. 4 to 6)."""

    def __init__(self, in_channels: int, previous: int | None, distance: int, settings: VFMVAEConfig) -> None:
        super().__init__()
        channels, blur = settings.block_channels[distance], settings.block_blurs[distance]
        depth, style = settings.block_depths[distance], settings.style_channels
        self.upsample: Upsample | ModulatedConvolution
        if settings.blocks == "stylegan":
            self.upsample = ModulatedConvolution(in_channels, channels, style, upsample=True)
            self.layers = nn.ModuleList(
                ResidualPair(channels, style, settings.layer_scale) for _ in range(depth // 2)
            )
        else:
            self.upsample = Upsample(in_channels, channels, blur, norm_last=previous is None)
            self.layers = nn.ModuleList(
                ModulatedConvNeXt(
                    channels, settings.block_kernels[distance], settings, settings.image_size >> distance
                )
                for _ in range(depth)
            )
        self.attention = nn.ModuleList(
            SelfAttention(channels, settings.attention_heads)
            for _ in range(settings.block_attention[distance])
        )
        self.upsample_sum = None if previous is None else Upsample(previous, channels, blur)
        self.to_rgb = ToRGB(channels, style)

    def forward(self, x: Tensor, total: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, running sum of features or None, style -> features, running sum, image."""
        x = self.upsample(x) if isinstance(self.upsample, Upsample) else self.upsample(x, w)
        for layer in self.layers:
            x = layer(x, w)
        for attention in self.attention:
            x = attention(x)
        # The paper adds only the block before; the released code carries the sum of all.
        total = x if total is None or self.upsample_sum is None else self.upsample_sum(total) + x
        return x, total, self.to_rgb(total, w)


# ------------------------------------------------------------------------------------------------
# The tokenizer


class VFMVAE(FrozenEncoderTokenizer):
    """The tokenizer of VFM-VAE; ``VFMVAEConfig`` says what its sizes mean."""

    Settings: ClassVar[type[VFMVAEConfig]] = VFMVAEConfig
    encoding_parts: ClassVar[tuple[str, ...]] = ("projections", "fuse")
    settings: VFMVAEConfig

    def __init__(self, settings: VFMVAEConfig, encoder: FoundationEncoder) -> None:
        super().__init__(settings, encoder)
        latent = settings.image_size // settings.downsampling
        grids = [_square(g) for g in encoder.grids(settings.image_size, settings.image_size)]
        self.factors = [
            _factor(grid, latent, layer) for grid, layer in zip(grids, settings.encoder.layers, strict=True)
        ]
        widths = settings.projected_channels
        if settings.projection == "several":
            self.projections = nn.ModuleList(
                # A map coarser than the latent is given the channels that its pixel shuffle takes.
                AttentionProjection(channels, round(width * max(1.0, factor) ** 2))
                for channels, width, factor in zip(encoder.channels, widths, self.factors, strict=True)
            )
        else:
            self.projections = nn.ModuleList(nn.Identity() for _ in encoder.channels)
            widths = list(encoder.channels)
        fused = sum(
            round(width * min(1.0, factor) ** -2)
            if settings.projection == "several"
            else round(width / factor**2)
            for width, factor in zip(widths, self.factors, strict=True)
        )
        self.fuse = _projection(settings, fused, 2 * settings.latent_channels)
        self.start_posterior()
        self.vf_head = self.make_vf_head(encoder.channels[-1])

        self.expand = _projection(settings, settings.latent_channels, settings.post_channels)
        self.mapping = MappingNetwork(settings.post_channels, settings.style_channels)
        count = block_count(settings.image_size)
        self.spatial = nn.ModuleList()
        self.blocks = nn.ModuleList()
        previous: int | None = None
        for distance in reversed(range(count)):
            seen = settings.block_latent_channels[distance]
            if seen:
                # The grid of a block's input is half its output: image / 2^(d + 1).
                factor = settings.downsampling / 2 ** (distance + 1)
                self.spatial.append(SpatialBranch(settings.post_channels, seen, factor))
            self.blocks.append(SynthesisBlock((previous or 0) + seen, previous, distance, settings))
            previous = settings.block_channels[distance]

    @property
    def size_multiple(self) -> int:
        """Pixels that a side must be a multiple of, so that no block's grid is cut."""
        return max(int(self.settings.downsampling), 1 << len(self.blocks))

    @property
    def last_compression(self) -> nn.Linear | nn.Conv2d:
        """The last linear layer of the common projection, or the 1x1 convolution in its place."""
        return self.fuse if isinstance(self.fuse, nn.Conv2d) else self.fuse.mlp.w2

    def last_parameter(self) -> nn.Parameter:
        """The weight of the last block's image."""
        last = self.blocks[-1]
        assert isinstance(last, SynthesisBlock)
        return last.to_rgb.weight

    # --------------------------------------------------------------------------------------------
    # Pictures to latent

    def moments(self, features: list[Tensor]) -> Tensor:
        """Feature maps (Eq. 1) -> mean and log-variance, stacked (B, 2C, h, w), unclamped (Eq. 2)."""
        maps = []
        for feature, project, factor in zip(features, self.projections, self.factors, strict=True):
            projected = project(feature)
            if factor > 1:
                projected = F.pixel_shuffle(projected, round(factor))
            elif factor < 1:
                projected = F.pixel_unshuffle(projected, round(1 / factor))
            maps.append(projected)
        result: Tensor = self.fuse(torch.cat(maps, dim=1))
        return result.float()

    # --------------------------------------------------------------------------------------------
    # Latent to pictures

    def images(self, z: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w), raw -> every block's image (B, 3, s, s), small to large (Eq. 4 to 6)."""
        post = self.expand(z.to(self.dtype))  # Z (B, post_channels, h, w)
        w = self.mapping(post.mean(dim=(2, 3)).to(self.dtype))
        x: Tensor | None = None
        total: Tensor | None = None
        pyramid = []
        for index, block in enumerate(self.blocks):
            if index < len(self.spatial):
                seen = self.spatial[index](post)
                x = seen if x is None else torch.cat([x, seen], dim=1)
            x, total, image = block(x, total, w)
            pyramid.append(image.float())
        return pyramid


def _projection(
    settings: VFMVAEConfig, in_channels: int, out_channels: int
) -> AttentionProjection | nn.Conv2d:
    if settings.projection == "convolution":
        return nn.Conv2d(in_channels, out_channels, 1)
    return AttentionProjection(in_channels, out_channels)


def _square(grid: tuple[int, int]) -> int:
    assert grid[0] == grid[1], "a square picture has square grids"
    return grid[0]


def _factor(grid: int, latent: int, layer: int) -> float:
    """Side of the latent divided by the side of a feature map; one of the two must be a multiple."""
    if grid % latent and latent % grid:
        raise LumitokError(
            f"layer {layer} of the encoder has a {grid}x{grid} grid, the latent {latent}x{latent}; neither "
            "is a multiple of the other: change model.encoder.scale, for example to "
            f"{latent / grid:g} times itself"
        )
    return latent / grid
