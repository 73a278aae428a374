"""A frozen encoder with the decoder of latent diffusion models: the baseline of VFM-VAE's Table 3.

pixels -> frozen encoder -> two convolutions -> posterior -> z -> two convolutions -> LDM decoder
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lumitok.config import FrozenLDMConfig
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers.autoencoder import check_grids, weight_of
from lumitok.tokenizers.frozen import FrozenEncoderTokenizer
from lumitok.tokenizers.ldm import LDMDecoder


class FrozenLDM(FrozenEncoderTokenizer):
    """The SD-VAE-style baseline (arXiv 2510.18457, section 4.5); ``FrozenLDMConfig`` has its sizes.

    Several maps of the encoder are concatenated; all must lie on the latent's grid.
    """

    Settings: ClassVar[type[FrozenLDMConfig]] = FrozenLDMConfig
    encoding_parts: ClassVar[tuple[str, ...]] = ("compress",)
    settings: FrozenLDMConfig

    def __init__(self, settings: FrozenLDMConfig, encoder: FoundationEncoder) -> None:
        super().__init__(settings, encoder)
        check_grids(settings, encoder, "frozen-ldm")
        latent, width = settings.latent_channels, settings.adapter_channels
        self.compress = _two_convolutions(sum(encoder.channels), width, 2 * latent)
        self.start_posterior()
        self.vf_head = self.make_vf_head(encoder.channels[-1])
        self.expand = _two_convolutions(latent, width, latent)
        self.decoder = LDMDecoder(
            latent,
            settings.decoder_channels,
            tuple(settings.decoder_multipliers),
            settings.decoder_blocks,
            groups=settings.decoder_groups,
        )

    @property
    def size_multiple(self) -> int:
        """Pixels that a side must be a multiple of."""
        return int(self.settings.downsampling)

    @property
    def last_compression(self) -> nn.Conv2d:
        """The second of the convolutions before sampling."""
        convolution = self.compress[-1]
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    def last_parameter(self) -> nn.Parameter:
        """The weight of the decoder's last convolution."""
        return weight_of(self.decoder.conv_out)

    def moments(self, features: list[Tensor]) -> Tensor:
        """Feature maps -> mean and log-variance, stacked (B, 2C, h, w), unclamped."""
        result: Tensor = self.compress(torch.cat(features, dim=1))
        return result.float()

    def images(self, z: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w), raw -> the one picture (B, 3, H, W)."""
        image: Tensor = self.decoder(self.expand(z.to(self.dtype)))
        return [image.float()]


def _two_convolutions(in_channels: int, inner: int, out_channels: int) -> nn.Sequential:
    # The paper counts the convolutions and says no more: 3x3, with a swish between them.
    return nn.Sequential(
        nn.Conv2d(in_channels, inner, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(inner, out_channels, 3, padding=1),
    )
