"""The discriminator of VFM-VAE: small heads on a frozen encoder's features.

The design is StyleGAN-T's (arXiv 2301.09515, section 3.2). VFM-VAE (arXiv 2510.18457, section 3.4)
speaks of DINOv2; its released code has DINO ViT-S/16, which the recipes follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.config import DiscriminatorConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.losses.discriminators.augment import augment, draw
from lumitok.losses.discriminators.head import DiscriminatorHead


class FoundationDiscriminator(nn.Module):
    """Logits for every position of every layer that the frozen encoder gives.

    Only the heads train. Random numbers come from CPU generators: the augmentation of a picture from its
    own, the crop from one that the batch shares; where none are given, both from torch's global one.
    """

    def __init__(self, config: DiscriminatorConfig, *, load_weights: bool = True) -> None:
        """Build the encoder and one head a layer.

        Args:
            config: encoder, its layers and what it sees.
            load_weights: False: a randomly initialised encoder, for tests and for counting.
        """
        super().__init__()
        self.config = config
        self.encoder = FoundationEncoder(config.encoder, load_weights=load_weights)
        if config.input_size % self.encoder.patch:
            raise LumitokError(
                f"the discriminator's input_size is {config.input_size} pixels, and {self.encoder.name} sees "
                f"multiples of {self.encoder.patch}; set discriminator.input_size to such a number"
            )
        self.heads = nn.ModuleList(DiscriminatorHead(channels) for channels in self.encoder.channels)

    def forward(
        self,
        pictures: Tensor,
        generators: Sequence[torch.Generator] | None = None,
        shared: torch.Generator | None = None,
    ) -> Tensor:
        """Judge pictures.

        Args:
            pictures: (B, 3, H, W) in [-1, 1]. B is at most 8 or a multiple of 8.
            generators: one a picture, for its augmentation.
            shared: for the crop.

        Returns:
            (B, L) logits, L the positions of all layers together, layer after layer.
        """
        if self.config.augment:
            height, width = pictures.shape[-2:]
            pictures = augment(pictures, draw(len(pictures), height, width, generators))
        return self.judge(self.taps(self.view((pictures + 1.0) / 2.0, shared)))

    def view(self, pixels: Tensor, shared: torch.Generator | None = None) -> Tensor:
        """Bring pixels to what the encoder sees: a random crop or a resize.

        Where the picture is larger, a crop of (input_size, input_size) at one random place for the batch
        with probability ``crop_probability``. A resize brings the short side to ``input_size`` and keeps the
        shape, the long side rounded to whole patches. Shrinking is with antialias, enlarging without.
        """
        size = self.config.input_size
        height, width = pixels.shape[-2:]
        larger = min(height, width) > size
        if larger and torch.rand((), generator=shared).item() < self.config.crop_probability:
            top = int(torch.randint(0, height - size + 1, (), generator=shared))
            left = int(torch.randint(0, width - size + 1, (), generator=shared))
            return pixels[..., top : top + size, left : left + size]
        patches = size / min(height, width) / self.encoder.patch
        seen = [round(side * patches) * self.encoder.patch for side in (height, width)]
        if [height, width] == seen:
            return pixels
        return F.interpolate(
            pixels,
            seen,
            mode=self.config.interpolation or self.encoder.family.interpolation,
            align_corners=False,
            antialias=larger,
        )

    def taps(self, pixels: Tensor) -> list[Tensor]:
        """Features of each layer as (B, C, N), the class token added to every position."""
        features = self.encoder(pixels, scaled=False)
        return [
            feature.flatten(2) if token is None else feature.flatten(2) + token[:, :, None]
            for feature, token in zip(features.maps, features.tokens, strict=True)
        ]

    def judge(self, taps: list[Tensor]) -> Tensor:
        """Run every head on its layer and join the logits, (B, L)."""
        return torch.cat([head(tap) for head, tap in zip(self.heads, taps, strict=True)], dim=1)
