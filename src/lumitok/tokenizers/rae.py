"""RAE (arXiv 2510.11690): the features of a frozen foundation encoder are the latent.

pixels -> frozen encoder -> layer norm without weights -> z -> ViT decoder -> pixels

The latent has as many channels as the encoder. The decoder is diffusers', and alone it is trained, on
latents with noise. As in RAE it reads z as the encoder gives it: normalised is only what a diffusion network
learns. That is ``LatentSpec``'s business, by channel; RAE's statistics of every single number of z belong to
one picture size, and tiles and other sizes have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumitok.config import RAEConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers.autoencoder import Autoencoder, check_grids, pixels_of, weight_of
from lumitok.tokenizers.base import Generators
from lumitok.tokenizers.posterior import DiagonalGaussian, PointMass

if TYPE_CHECKING:
    from lumitok.tokenizers.rae_decoder import GridDecoder

NORM_EPS = 1e-6
"""Added to the variance in the encoder's last norm; DINOv2's and SigLIP2's."""


class NoisyPoint(PointMass):
    """A deterministic latent that is drawn with noise: z + sigma * n, sigma uniform in [0, noise] a picture.

    Args:
        z: (B, C, h, w).
        noise: largest standard deviation, in z's units.
    """

    def __init__(self, z: Tensor, noise: float = 0.0) -> None:
        super().__init__(z)
        self.noise = noise

    def sample(self, generator: Generators = None) -> Tensor:
        """Draw z (B, C, h, w) with noise.

        Raises:
            LumitokError: a list of generators that has not one a picture.
        """
        z = self.mean
        normal = DiagonalGaussian(z.new_zeros(len(z), 2 * z.shape[1], *z.shape[2:])).sample(generator)
        sigma = self.noise * _uniform(len(z), generator).to(z)
        return z + sigma.view(-1, 1, 1, 1) * normal


class RAE(Autoencoder):
    """The representation autoencoder; ``RAEConfig`` says what its sizes mean.

    Noise comes in training mode alone, in :meth:`forward`; ``encode`` never adds any.
    """

    Settings: ClassVar[type[RAEConfig]] = RAEConfig
    encoding_parts: ClassVar[tuple[str, ...]] = ()
    settings: RAEConfig
    encoder: FoundationEncoder
    decoder: GridDecoder

    def __init__(self, settings: RAEConfig, encoder: FoundationEncoder) -> None:
        super().__init__(settings, encoder)
        _check_encoder(settings, encoder)
        self.vf_head = None
        self.decoder = _make_decoder(settings)

    @property
    def size_multiple(self) -> int:
        """Pixels that a side must be a multiple of."""
        return int(self.settings.downsampling)

    def balance_parameter(self) -> nn.Parameter:
        """There is none.

        Raises:
            LumitokError: always.
        """
        raise LumitokError("RAE's latent is a frozen encoder's: no loss on it can be balanced or trained")

    def last_parameter(self) -> nn.Parameter:
        """The weight of the decoder's last layer."""
        return weight_of(self.decoder.decoder_pred)

    def features(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1] that fit -> the encoder's normalised map (B, C, h, w), float32."""
        with torch.no_grad():
            (features,) = self.encoder(pixels_of(x, self.encoder)).maps
            tokens = features.float().movedim(1, -1)
            return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS).movedim(-1, 1).contiguous()

    def posterior(self, x: Tensor) -> tuple[PointMass, Tensor]:
        """Pictures in [-1, 1] that fit -> z, which in training is drawn with noise; and the encoder's map."""
        z = self.features(x)
        return (NoisyPoint(z, self.settings.noise) if self.training else PointMass(z)), z

    def _encode(self, x: Tensor) -> PointMass:
        return PointMass(super()._encode(x).mode())

    def images(self, z: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w), raw -> the one picture (B, 3, H, W)."""
        pixels = self.decoder.pictures(z.to(self.dtype)).float()
        # The decoder gives pixels as the encoder sees them.
        pixels = pixels * self.encoder.std.float() + self.encoder.mean.float()
        return [2 * pixels - 1]


def _uniform(count: int, generator: Generators) -> Tensor:
    """Numbers in [0, 1), one a picture, from its own generator where each has one."""
    if isinstance(generator, list) and len(generator) > 1:
        return torch.cat([_uniform(1, one) for one in generator])
    one = generator[0] if isinstance(generator, list) else generator
    return torch.rand(count, generator=one, device="cpu" if one is None else one.device).cpu()


def _make_decoder(settings: RAEConfig) -> GridDecoder:
    try:
        from lumitok.tokenizers.rae_decoder import GridDecoder
    except ImportError:
        raise LumitokError(
            "model.type rae uses the decoder of diffusers' AutoencoderRAE, which this diffusers does not "
            "have: pip install 'diffusers>=0.37.1'"
        ) from None
    side = settings.image_size // settings.downsampling
    return GridDecoder(
        hidden_size=settings.latent_channels,
        decoder_hidden_size=settings.decoder_width,
        decoder_num_hidden_layers=settings.decoder_depth,
        decoder_num_attention_heads=settings.decoder_heads,
        decoder_intermediate_size=settings.decoder_mlp,
        num_patches=side * side,
        patch_size=settings.downsampling,
        image_size=settings.image_size,
    )


def _check_encoder(settings: RAEConfig, encoder: FoundationEncoder) -> None:
    if not isinstance(getattr(encoder.model, "norm", nn.Identity()), nn.Identity):
        raise LumitokError(
            "RAE norms the encoder's map itself, without the trained weights of its last norm; set "
            "model.encoder.layers to [-2], the last block before that norm"
        )
    (channels,) = encoder.channels
    if channels != settings.latent_channels:
        raise LumitokError(
            f"the latent of RAE is the encoder's map, which has {channels} channels; set "
            f"model.latent_channels to {channels}, not {settings.latent_channels}"
        )
    check_grids(settings, encoder, "RAE")
