"""What all tokenizers share: pictures -> distribution over z -> z -> pictures, of any size."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lumitok.config import AlignTokConfig, FrozenLDMConfig, RAEConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers.base import DecoderOutput, Equivariance, Generators, Tokenizer, TokenizerOutput
from lumitok.tokenizers.posterior import DiagonalGaussian, PointMass
from lumitok.tokenizers.tiling import Tiling, in_tiles

Posterior = DiagonalGaussian | PointMass


@dataclass
class EncoderOutput:
    """What ``encode`` returns; diffusers' pipelines take either of the two."""

    latent_dist: Posterior

    @property
    def latent(self) -> Tensor:
        """The most likely z (B, C, h, w), raw; where the latent is deterministic, the latent."""
        return self.latent_dist.mode()


class Autoencoder(Tokenizer):
    """A tokenizer that is an encoding and a decoding side with a latent z between them.

    ``encode`` and ``decode`` are those of diffusers' autoencoders: pictures in [-1, 1], latents raw.
    Pictures of any height and width are encoded: what a side lacks to a multiple of ``encoded_multiple``
    is padded by reflection, and :meth:`reconstruct` crops it off again. Latents of any height and width
    are decoded. Large pictures can go tile by tile (:meth:`enable_tiling`).

    A subclass has ``posterior``, ``images``, ``size_multiple``, and the two parameters at which gradients
    are compared.
    """

    vf_head: nn.Conv2d | None
    tiling: Tiling | None = None
    use_slicing: bool = False
    """Whether the pictures of a batch are encoded and decoded one after another."""

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Pixels that a side must be a multiple of, so that no grid is cut."""

    @property
    def encoded_multiple(self) -> int:
        """Pixels that a side must be a multiple of to be encoded: the foundation encoder has patches too."""
        if self.foundation is None:
            return self.size_multiple
        return math.lcm(self.size_multiple, self.foundation.multiple)

    @abstractmethod
    def posterior(self, x: Tensor) -> tuple[Posterior, Tensor | None]:
        """Pictures in [-1, 1] that fit -> distribution over z; the foundation encoder's last map or None."""

    @abstractmethod
    def images(self, z: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w), raw -> the decoder's images, float32, small to large, not clamped."""

    def make_vf_head(self, width: int) -> nn.Conv2d | None:
        """The 1x1 convolution from z to a foundation encoder's width that the VF loss needs, if asked for."""
        if not self.settings.vf_head:
            return None
        head = nn.Conv2d(self.settings.latent_channels, width, 1, bias=False)
        nn.init.xavier_normal_(head.weight, gain=0.5)
        return head

    @property
    def dtype(self) -> torch.dtype:
        """Type of the trained weights; a frozen encoder may have another."""
        own = (part for part in self.children() if part is not self.frozen)
        parameter: Tensor = next(p for part in own for p in part.parameters())
        return parameter.dtype

    # --------------------------------------------------------------------------------------------
    # Pictures to latent

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Posterior]:
        """Pictures (B, 3, H, W) in [-1, 1] -> ``latent_dist``, the distribution over z.

        Raises:
            LumitokError: the pictures are not (B, 3, H, W), or have no pixels.
        """
        padded = self.pad(x)
        parts = [self._encode(part) for part in self._slices(padded)]
        posterior = parts[0] if len(parts) == 1 else _joined(parts)
        return EncoderOutput(posterior) if return_dict else (posterior,)

    def pad(self, x: Tensor) -> Tensor:
        """Pad pictures by reflection on the right and below, to multiples of ``encoded_multiple``.

        Raises:
            LumitokError: the pictures are not (B, 3, H, W), or have no pixels.
        """
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise LumitokError(
                f"pictures must be (batch, 3, height, width), none of them 0, not {tuple(x.shape)}"
            )
        return _reflected(x, self.encoded_multiple)

    def _encode(self, x: Tensor) -> Posterior:
        if self.tiling is None:
            return self.posterior(x)[0]
        kinds: list[type[Posterior]] = []

        def numbers(tile: Tensor) -> list[Tensor]:
            posterior, _ = self.posterior(tile)
            kinds.append(type(posterior))
            return [_numbers(posterior)]

        (blended,) = in_tiles(self, numbers, x, self.tiling, self.encoded_multiple)
        return kinds[0](blended)

    # --------------------------------------------------------------------------------------------
    # Latent to pictures

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, h, w), raw -> ``sample`` and ``pyramid``.

        Latents that the decoder's grid would cut are padded by reflection, and the pictures cropped.
        ``generator`` is there for diffusers' pipelines; decoding draws nothing.

        Raises:
            LumitokError: the latents are not (B, C, h, w).
        """
        del generator
        channels, factor = self.settings.latent_channels, self.settings.downsampling
        if z.ndim != 4 or z.shape[1] != channels or 0 in z.shape:
            raise LumitokError(
                f"latents must be (batch, {channels}, height, width), none of them 0, not {tuple(z.shape)}"
            )
        padded = _reflected(z, self.size_multiple // factor)
        parts = [self._decode(part) for part in self._slices(padded)]
        images = parts[0] if len(parts) == 1 else [torch.cat(level) for level in zip(*parts, strict=True)]
        pyramid = [_cropped(image, z, padded) for image in images]
        return DecoderOutput(pyramid[-1], pyramid) if return_dict else (pyramid[-1],)

    def _decode(self, z: Tensor) -> list[Tensor]:
        factor = int(self.settings.downsampling)
        if self.tiling is None:
            return self.images(z)
        places = replace(self.tiling, tile=self.tiling.tile // factor, overlap=self.tiling.overlap // factor)
        return in_tiles(self, self.images, z, places, self.size_multiple // factor)

    # --------------------------------------------------------------------------------------------
    # Large pictures, large batches

    def enable_tiling(self, tile: int | None = None, overlap: int | None = None, turns: int = 4) -> None:
        """Encode and decode pictures larger than a tile tile by tile, without gradients.

        The working memory is then that of one tile, whatever the picture's size. Where the network lies on
        another device than the picture or latent, only tiles travel to it, and the result comes back.

        Args:
            tile: side in picture pixels, a multiple of ``encoded_multiple``; None: 512, or twice
                ``image_size`` where that is more.
            overlap: what neighbouring tiles share, in picture pixels; None: a quarter of the tile.
            turns: how often the tiles are run, so that they agree on what a layer must know of the whole
                picture (``whole_picture``); the time grows with it. 1: every tile by itself.

        Raises:
            LumitokError: sides that do not fit the network's grids.
        """
        step = self.encoded_multiple
        if tile is None:
            tile = -(-max(512, 2 * int(self.settings.image_size)) // step) * step
        if overlap is None:
            overlap = tile // 4 // step * step
        tiling = Tiling(tile, overlap, turns)
        tiling.check(step)
        self.tiling = tiling

    def disable_tiling(self) -> None:
        """Encode and decode pictures of any size in one go."""
        self.tiling = None

    def enable_slicing(self) -> None:
        """Encode and decode the pictures of a batch one after another."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self.use_slicing = False

    def _slices(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(1) if self.use_slicing else (x,)

    # --------------------------------------------------------------------------------------------
    # Both

    def forward(
        self,
        x: Tensor,
        sample_posterior: bool = True,
        generator: Generators = None,
        equivariance: Equivariance | None = None,
    ) -> TokenizerOutput:
        """Encode and decode: all that training needs.

        Args:
            x: pictures (B, 3, H, W) in [-1, 1], sides multiples of ``encoded_multiple``.
            sample_posterior: draw z; False: take the mean.
            generator: draws z; a list has one a picture.
            equivariance: the step's transforms: pictures are shrunk before they are encoded, the latent
                is changed before it is decoded. The VF head sees the latent before the change.

        Raises:
            LumitokError: a list of generators that has not one a picture.
        """
        posterior, features = self.posterior(x if equivariance is None else equivariance.shrink(x))
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        pyramid = self.images(z if equivariance is None else equivariance.latent(z))
        return TokenizerOutput(
            sample=pyramid[-1],
            pyramid=pyramid,
            latent=z,
            mean=posterior.mean,
            logvar=posterior.logvar,
            features=features,
            projected=None if self.vf_head is None else self.vf_head(z.to(self.dtype)),
        )

    @torch.no_grad()
    def reconstruct(self, x: Tensor, sample_posterior: bool = False, generator: Generators = None) -> Tensor:
        """Pictures of any size in [-1, 1] -> pictures of that size in [-1, 1], clamped."""
        encoded = self.encode(x)
        assert isinstance(encoded, EncoderOutput)
        posterior = encoded.latent_dist
        decoded = self.decode(posterior.sample(generator) if sample_posterior else posterior.mode())
        assert isinstance(decoded, DecoderOutput)
        return decoded.sample[..., : x.shape[-2], : x.shape[-1]].clamp(-1, 1)


def _reflected(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) on the right and below to multiples, mirrored at the last row as often as need be."""
    for dim in (2, 3):
        side = x.shape[dim]
        if side % multiple:
            # 0 1 2 1 0 1 ...: a swing of side - 1 steps each way; torch's own padding stops after one.
            swing = max(1, side - 1)
            places = torch.arange(side + -side % multiple, device=x.device) % (2 * swing)
            x = x.index_select(dim, (swing - (places - swing).abs()).clamp(max=side - 1))
    return x


def _cropped(image: Tensor, z: Tensor, padded: Tensor) -> Tensor:
    """Take off what padded latents added to an image; half a pixel of a small one stays."""
    height, width = (
        -(-side * image.shape[dim] // padded.shape[dim]) for dim, side in ((2, z.shape[2]), (3, z.shape[3]))
    )
    return image[..., :height, :width]


def _numbers(posterior: Posterior) -> Tensor:
    """What a distribution is built from."""
    return (
        posterior.mean if posterior.logvar is None else torch.cat([posterior.mean, posterior.logvar], dim=1)
    )


def _joined(parts: list[Posterior]) -> Posterior:
    return type(parts[0])(torch.cat([_numbers(part) for part in parts]))


def weight_of(layer: nn.Module) -> nn.Parameter:
    """The weight of a linear layer or a convolution, as a parameter."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def pixels_of(x: Tensor, encoder: FoundationEncoder) -> Tensor:
    """Pictures in [-1, 1] -> what a foundation encoder takes: pixels in [0, 1], in its own type."""
    return ((x.float() + 1) / 2).to(encoder.dtype)


def check_grids(
    settings: AlignTokConfig | FrozenLDMConfig | RAEConfig, encoder: FoundationEncoder, name: str
) -> None:
    """Raise a LumitokError where a layer that the encoder is read at has another grid than the latent.

    Args:
        settings: of the tokenizer.
        encoder: the tokenizer's.
        name: of the tokenizer's kind.
    """
    latent = settings.image_size // settings.downsampling
    grids = encoder.grids(settings.image_size, settings.image_size)
    for layer, (rows, columns) in zip(settings.encoder.layers, grids, strict=True):
        if (rows, columns) != (latent, latent):
            raise LumitokError(
                f"layer {layer} of the encoder has a {rows}x{columns} grid, the latent {latent}x{latent}; "
                f"{name} needs them equal: change model.encoder.scale to "
                f"{settings.encoder.scale * latent / rows:g}"
            )
