"""The variational autoencoder of latent diffusion, both sides trained: VAE, VA-VAE and SD-VAE.

pictures -> LDM encoder -> (1x1 convolution) -> posterior -> z -> (1x1 convolution) -> LDM decoder

VA-VAE (arXiv 2501.01423) differs from the plain VAE in its training alone: a VF loss holds z near a
foundation encoder's features, through a 1x1 convolution that is kept as the VF head.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lumitok.config import LDMConfig
from lumitok.tokenizers.autoencoder import Autoencoder, weight_of
from lumitok.tokenizers.ldm import LDMDecoder, LDMEncoder
from lumitok.tokenizers.posterior import DiagonalGaussian


class LDMVAE(Autoencoder):
    """Latent diffusion's autoencoder (arXiv 2112.10752); ``LDMConfig`` has its sizes.

    It stands where diffusers' ``AutoencoderKL`` does, and computes the same.
    """

    Settings: ClassVar[type[LDMConfig]] = LDMConfig
    encoding_parts: ClassVar[tuple[str, ...]] = ("encoder", "quant_conv")
    settings: LDMConfig
    encoder: LDMEncoder  # type: ignore[assignment]  # There is no foundation encoder here.

    def __init__(self, settings: LDMConfig) -> None:
        super().__init__(settings)
        latent = settings.latent_channels
        sizes = (latent, settings.channels, tuple(settings.multipliers))
        rest: dict[str, Any] = {
            "level_attention": settings.level_attention,
            "middle_attention": settings.middle_attention,
            "groups": settings.groups,
        }
        self.encoder = LDMEncoder(*sizes, settings.encoder_blocks, **rest)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if settings.latent_convolutions else None
        self.vf_head = self.make_vf_head(settings.vf_channels)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if settings.latent_convolutions else None
        self.decoder = LDMDecoder(*sizes, settings.decoder_blocks, **rest)
        bias = (self.quant_conv or self.encoder.conv_out).bias
        assert bias is not None
        with torch.no_grad():
            bias[latent:] = settings.initial_logvar

    @property
    def size_multiple(self) -> int:
        """Pixels that a side must be a multiple of."""
        return int(self.settings.downsampling)

    def balance_parameter(self) -> nn.Parameter:
        """The weight of the encoder's last convolution, as in VA-VAE."""
        return weight_of(self.encoder.conv_out)

    def last_parameter(self) -> nn.Parameter:
        """The weight of the decoder's last convolution."""
        return weight_of(self.decoder.conv_out)

    def posterior(self, x: Tensor) -> tuple[DiagonalGaussian, None]:
        """Pictures in [-1, 1] that fit -> the Gaussian over z; there are no features."""
        moments: Tensor = self.encoder(x.to(self.dtype))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return DiagonalGaussian(moments.float()), None

    def images(self, z: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w), raw -> the one picture (B, 3, H, W)."""
        z = z.to(self.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        image: Tensor = self.decoder(z)
        return [image.float()]

    def level_widths(self) -> list[int]:
        """Channels of each level, the picture's size first."""
        return [self.settings.channels * factor for factor in self.settings.multipliers]
