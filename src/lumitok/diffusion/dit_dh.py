"""DiT-DH (RAE, arXiv 2510.11690, section 4.3): a transformer for latents of very many channels.

latent -> patches -> deep backbone(time + class) -> SiLU(tokens + time) -> a condition for each token
latent -> patches -> shallow wide head(that condition) -> velocity

A network must be at least as wide as its latent has channels; here the head alone is.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.config.networks import DiTDHConfig
from lumitok.diffusion.base import DiffusionNetwork, LabelConditioner, NetworkOutput
from lumitok.diffusion.layers import (
    FinalLayer,
    RMSNorm,
    Rotation,
    draw_weights,
    patchify,
    projector,
    rotary_table,
    sin_cos_table,
    unpatchify,
)
from lumitok.diffusion.lightningdit import LightningBlock


class FourierTimeEmbedding(nn.Module):
    """Times (B,) -> (B, width): waves at 256 frequencies drawn from N(0, 1) through two linear layers."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(frequencies))
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times in [0, 1]."""
        assert isinstance(self.frequencies, Tensor)
        angles = 2 * math.pi * t.float()[:, None] * self.frequencies.float()
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        embedded: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return embedded


class DiTDH(DiffusionNetwork):
    """The network of RAE; ``DiTDHConfig`` says what its sizes mean.

    Its blocks are LightningDiT's. The backbone's tokens have a fixed position added, the head's do not; both
    have rotary positions. ``blocks`` counts the backbone's, which the projector reads as well.
    """

    Settings: ClassVar[type[DiTDHConfig]] = DiTDHConfig
    settings: DiTDHConfig

    def __init__(self, settings: DiTDHConfig) -> None:
        super().__init__(settings)
        width, head, side = settings.width, settings.head_width, settings.input_size // settings.patch
        values = settings.in_channels * settings.patch**2
        qk_norm = settings.qk_norm
        self.time_embedding = FourierTimeEmbedding(width)
        self.conditioner = LabelConditioner(settings.classes, width)

        self.patch_embedding = nn.Linear(values, width)
        self.register_buffer("position", sin_cos_table(width, side), persistent=False)
        self._keep_rotation("rotation", rotary_table(width // settings.heads, side))
        self.blocks = nn.ModuleList(
            LightningBlock(width, settings.heads, qk_norm=qk_norm) for _ in range(settings.depth)
        )
        self.to_head = nn.Linear(width, head) if width != head else nn.Identity()

        self.head_patch_embedding = nn.Linear(values, head)
        self._keep_rotation("head_rotation", rotary_table(head // settings.head_heads, side))
        self.head = nn.ModuleList(
            LightningBlock(head, settings.head_heads, qk_norm=qk_norm) for _ in range(settings.head_depth)
        )
        self.final_layer = FinalLayer(head, RMSNorm(head), values)
        self.projector = projector(width, settings.projector)
        self._draw()

    def _keep_rotation(self, name: str, rotation: tuple[Tensor, Tensor]) -> None:
        for part, table in zip(("cos", "sin"), rotation, strict=True):
            self.register_buffer(f"{name}_{part}", table, persistent=False)

    def _draw(self) -> None:
        modulations = [block.modulation for block in (*self.blocks, *self.head)]
        last = [self.final_layer.modulation, self.final_layer.linear]
        draw_weights(self, [*modulations, *last], [self.time_embedding, self.conditioner.table])

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block of the backbone and of the head by itself."""
        super().compile_blocks(**options)
        for block in self.head:
            block.compile(**options)

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
        patches = patchify(x, self.settings.patch)
        time = self.time_embedding(t)
        condition = self.conditioner(labels, time)

        tokens = self.patch_embedding(patches) + self.position
        rotation: Rotation | None = (self.rotation_cos, self.rotation_sin)
        # SiLU twice: RAE's code has one before the blocks, and one begins each of its modulations.
        vector = F.silu(F.silu(condition.vector))[:, None]
        tokens, kept = self.run_blocks(tokens, condition, vector, rotation, blocks=blocks, until=until)

        of_token = F.silu(self.to_head(F.silu(tokens + time[:, None])))
        tokens = self.head_patch_embedding(patches)
        for block in self.head:
            tokens = block(tokens, of_token, (self.head_rotation_cos, self.head_rotation_sin))
        velocity = unpatchify(self.final_layer(tokens, of_token), self.settings.patch)
        return NetworkOutput(velocity, tokens=kept)
