"""SiT (arXiv 2401.08740), and what REPA (2410.06940) and REG (2507.01467) add to it.

latent -> patches + fixed position -> blocks(time + class) -> norm, modulation -> velocity

REPA reads the tokens after a block through a projector. REG diffuses the class token of a foundation
encoder along with the latent: it stands before the patches as one more token.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.config.networks import SiTConfig
from lumitok.diffusion.base import DiffusionNetwork, LabelConditioner, NetworkOutput
from lumitok.diffusion.layers import (
    MLP,
    Attention,
    FinalLayer,
    TimeEmbedding,
    draw_weights,
    modulate,
    patchify,
    plain_norm,
    projector,
    sin_cos_table,
    unpatchify,
)


class SiTBlock(nn.Module):
    """DiT's block with adaLN-zero: attention and MLP, each modulated and gated by the condition."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = plain_norm(width), plain_norm(width)
        self.attn = Attention(width, heads, "layer" if qk_norm else None)
        self.mlp = MLP(width, 4 * width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, N, width) -> the same; ``condition`` (B, 1, width), after SiLU."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        result: Tensor = x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return result


class ClassTokenEmbedding(nn.Module):
    """REG's class token (B, channels) -> one token (B, 1, width): a linear layer and an affine LayerNorm."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, class_token: Tensor) -> Tensor:
        """Embed it; it has no position."""
        token: Tensor = self.norm(self.linear(class_token))
        return token[:, None]


class SiT(DiffusionNetwork):
    """The network of SiT, REPA and REG; ``SiTConfig`` says what its sizes mean.

    It has no learned variance: SiT's own predicts one and drops it.
    """

    Settings: ClassVar[type[SiTConfig]] = SiTConfig
    settings: SiTConfig

    def __init__(self, settings: SiTConfig) -> None:
        super().__init__(settings)
        width, patch, side = settings.width, settings.patch, settings.input_size // settings.patch
        values = settings.in_channels * patch**2
        self.patch_embedding = nn.Linear(values, width)
        self.register_buffer("position", sin_cos_table(width, side), persistent=False)
        self.time_embedding = TimeEmbedding(width)
        self.conditioner = LabelConditioner(settings.classes, width)
        channels = settings.class_channels
        self.class_embedding = ClassTokenEmbedding(channels, width) if channels else None
        self.blocks = nn.ModuleList(
            SiTBlock(width, settings.heads, qk_norm=settings.qk_norm) for _ in range(settings.depth)
        )
        self.final_layer = FinalLayer(width, plain_norm(width), values)
        self.class_layer = nn.Linear(width, channels) if channels else None
        self.projector = projector(width, settings.projector)
        self._draw()

    def _draw(self) -> None:
        modulations = [cast(nn.Linear, block.modulation) for block in self.blocks]
        last: list[nn.Module] = [self.final_layer.modulation, self.final_layer.linear]
        last += [] if self.class_layer is None else [self.class_layer]
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
        patch = self.settings.patch
        tokens = self.patch_embedding(patchify(x, patch)) + self.position
        patches = tokens.shape[1]
        if self.class_embedding is not None:
            tokens = torch.cat([self.class_embedding(class_token), tokens], dim=1)
        condition = self.conditioner(labels, self.time_embedding(t))
        vector = F.silu(condition.vector)[:, None]
        tokens, kept = self.run_blocks(tokens, condition, vector, blocks=blocks, until=until)
        seen = self.final_layer.modulated(tokens, vector)
        velocity = unpatchify(self.final_layer.linear(seen[:, -patches:]), patch)
        of_class = None if self.class_layer is None else self.class_layer(seen[:, 0])
        return NetworkOutput(velocity, of_class, tokens=kept)
