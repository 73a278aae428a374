"""LightningDiT (arXiv 2501.01423): DiT with RMSNorm, SwiGLU and rotary positions.

latent -> patches + fixed position -> blocks(time + class) -> norm, modulation -> velocity
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.config.networks import LightningDiTConfig
from lumitok.diffusion.base import DiffusionNetwork, LabelConditioner, NetworkOutput
from lumitok.diffusion.layers import (
    MLP,
    Attention,
    FinalLayer,
    RMSNorm,
    Rotation,
    SwiGLU,
    TimeEmbedding,
    draw_weights,
    modulate,
    patchify,
    plain_norm,
    projector,
    rotary_table,
    sin_cos_table,
    unpatchify,
)

NormKind = Literal["rms", "layer"]


class LightningBlock(nn.Module):
    """Attention and MLP, each normalised, modulated by the condition and gated by it (adaLN-zero).

    ``shifts``: whether the modulation shifts, too; without, the order of its parts is scale, gate.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qk_norm: bool = False,
        norm: NormKind = "rms",
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        shifts: bool = True,
    ) -> None:
        super().__init__()
        self.shifts = shifts
        self.norm1, self.norm2 = block_norm(width, norm), block_norm(width, norm)
        self.attn = Attention(width, heads, norm if qk_norm else None)
        self.mlp = SwiGLU(width, int(2 / 3 * 4 * width)) if mlp == "swiglu" else MLP(width, 4 * width)
        self.modulation = nn.Linear(width, (6 if shifts else 4) * width)

    def forward(self, x: Tensor, condition: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Tokens (B, N, width) -> the same; ``condition`` (B, 1 or N, width), after SiLU."""
        parts = self.modulation(condition)
        if self.shifts:
            shift1, scale1, gate1, shift2, scale2, gate2 = parts.chunk(6, dim=-1)
        else:
            shift1 = shift2 = None
            scale1, gate1, scale2, gate2 = parts.chunk(4, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rotation)
        result: Tensor = x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return result


def block_norm(width: int, norm: NormKind) -> nn.Module:
    """``rms``: RMSNorm with weight; ``layer``: LayerNorm without."""
    return RMSNorm(width) if norm == "rms" else plain_norm(width)


class LightningDiT(DiffusionNetwork):
    """The network of LightningDiT; ``LightningDiTConfig`` says what its sizes mean.

    A fixed sine-cosine table is added to the tokens and, as it does in the official code, rotary positions
    turn queries and keys as well.
    """

    Settings: ClassVar[type[LightningDiTConfig]] = LightningDiTConfig
    settings: LightningDiTConfig

    def __init__(self, settings: LightningDiTConfig) -> None:
        super().__init__(settings)
        width, patch, side = settings.width, settings.patch, settings.input_size // settings.patch
        values = settings.in_channels * patch**2
        self.patch_embedding = nn.Linear(values, width)
        self.register_buffer("position", sin_cos_table(width, side), persistent=False)
        cos, sin = rotary_table(width // settings.heads, side)
        self.register_buffer("rotation_cos", cos if settings.rotary else None, persistent=False)
        self.register_buffer("rotation_sin", sin if settings.rotary else None, persistent=False)
        self.time_embedding = TimeEmbedding(width)
        self.conditioner = LabelConditioner(settings.classes, width)
        self.blocks = nn.ModuleList(
            LightningBlock(
                width,
                settings.heads,
                qk_norm=settings.qk_norm,
                norm=settings.norm,
                mlp=settings.mlp,
                shifts=settings.modulation_shift,
            )
            for _ in range(settings.depth)
        )
        self.final_layer = FinalLayer(width, block_norm(width, settings.norm), values)
        self.projector = projector(width, settings.projector)
        self._draw()

    def _draw(self) -> None:
        modulations = [cast(nn.Linear, block.modulation) for block in self.blocks]
        last = [self.final_layer.modulation, self.final_layer.linear]
        draw_weights(self, [*modulations, *last], [self.time_embedding, self.conditioner.table])

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None,
        *,
        class_token: Tensor | None,
        blocks: set[int],
        until: int | None = None,
    ) -> NetworkOutput:
        """Predict the velocity of latents (B, C, H, W) at times t (B,); see :meth:`forward`."""
        assert class_token is None, "forward has checked it"
        patch = self.settings.patch
        tokens = self.patch_embedding(patchify(x, patch)) + self.position
        condition = self.conditioner(labels, self.time_embedding(t))
        rotation = None if self.rotation_cos is None else (self.rotation_cos, self.rotation_sin)
        vector = F.silu(condition.vector)[:, None]
        tokens, kept = self.run_blocks(tokens, condition, vector, rotation, blocks=blocks, until=until)

        velocity = unpatchify(self.final_layer(tokens, vector), patch)
        return NetworkOutput(velocity, tokens=kept)
