"""What tokenizers on a frozen encoder share: pictures -> features -> posterior -> z -> pictures."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from lumitok.config import TokenizerConfig
from lumitok.errors import LumitokError
from lumitok.tokenizers.base import DecoderOutput, Equivariance, Generators, Tokenizer, TokenizerOutput
from lumitok.tokenizers.posterior import DiagonalGaussian


class FrozenEncoderTokenizer(Tokenizer):
    """A tokenizer that reads a frozen foundation model and has a diagonal Gaussian as its latent.

    ``encode`` and ``decode`` are diffusers' ``AutoencoderKL``'s: pictures in [-1, 1], latents raw.
    Pictures of any height and width are encoded: what a side lacks to a multiple of
    ``size_multiple`` is padded by reflection, and :meth:`reconstruct` crops it off again.

    A subclass has ``moments``, ``images``, ``size_multiple`` and ``last_compression``; its constructor calls
    ``start_posterior`` and ``make_vf_head`` once what lies before the latent stands.
    """

    settings: TokenizerConfig
    vf_head: nn.Conv2d | None

    @property
    @abstractmethod
    def last_compression(self) -> nn.Linear | nn.Conv2d:
        """The layer that gives the posterior's mean and log-variance."""

    def start_posterior(self) -> None:
        """Let the log-variance begin near the ``initial_logvar`` of the settings."""
        bias = self.last_compression.bias
        assert bias is not None
        with torch.no_grad():
            bias[self.settings.latent_channels :] = self.settings.initial_logvar

    def balance_parameter(self) -> nn.Parameter:
        """The last weight that z passes through; gradient norms at it set the VF loss's weight."""
        weight = self.last_compression.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def make_vf_head(self) -> nn.Conv2d | None:
        """The 1x1 convolution from z to the encoder's width that the VF loss needs, where it is asked for."""
        if not self.settings.vf_head:
            return None
        head = nn.Conv2d(self.settings.latent_channels, self.encoder.channels[-1], 1, bias=False)
        nn.init.xavier_normal_(head.weight, gain=0.5)
        return head

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Pixels that a side must be a multiple of, so that no grid is cut."""

    @abstractmethod
    def moments(self, features: list[Tensor]) -> Tensor:
        """Feature maps -> mean and log-variance, stacked (B, 2C, h, w), unclamped, float32."""

    @abstractmethod
    def images(self, z: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w), raw -> the decoder's images, float32, small to large, not clamped."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the trained weights; the frozen encoder may have another."""
        own = (part for name, part in self.named_children() if name != "encoder")
        parameter: Tensor = next(p for part in own for p in part.parameters())
        return parameter.dtype

    # --------------------------------------------------------------------------------------------
    # Pictures to latent

    def features(self, x: Tensor) -> list[Tensor]:
        """Pictures in [-1, 1] -> the frozen encoder's maps (B, C_l, h_l, w_l), in our type."""
        pixels = ((x.float() + 1) / 2).to(self.encoder.dtype)
        with torch.no_grad():
            return [f.to(self.dtype) for f in self.encoder(pixels).maps]

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """Pictures (B, 3, H, W) in [-1, 1] -> ``latent_dist``, a :class:`DiagonalGaussian` over z.

        Raises:
            LumitokError: the pictures are not (B, 3, H, W), or are too small to pad.
        """
        posterior = DiagonalGaussian(self.moments(self.features(self.pad(x))))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def pad(self, x: Tensor) -> Tensor:
        """Pad pictures by reflection on the right and below, to multiples of ``size_multiple``."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise LumitokError(f"pictures must be (batch, 3, height, width), not {tuple(x.shape)}")
        height, width = x.shape[-2:]
        bottom, right = -height % self.size_multiple, -width % self.size_multiple
        if bottom >= height or right >= width:
            least = self.size_multiple // 2 + 1
            raise LumitokError(f"pictures of {height}x{width} px are too small; sides start at {least} px")
        return F.pad(x, (0, right, 0, bottom), mode="reflect") if bottom or right else x

    # --------------------------------------------------------------------------------------------
    # Latent to pictures

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, h, w), raw -> ``sample`` and ``pyramid``.

        ``generator`` is there for diffusers' pipelines; decoding draws nothing.
        """
        del generator
        pyramid = self.images(z)
        return DecoderOutput(pyramid[-1], pyramid) if return_dict else (pyramid[-1],)

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
            x: pictures (B, 3, H, W) in [-1, 1], sides multiples of ``size_multiple``.
            sample_posterior: draw z; False: take the mean.
            generator: draws z; a list has one a picture.
            equivariance: the step's transforms: pictures are shrunk before they are encoded, the latent
                is changed before it is decoded. The VF head sees the latent before the change.

        Raises:
            LumitokError: a list of generators that has not one a picture.
        """
        features = self.features(x if equivariance is None else equivariance.shrink(x))
        posterior = DiagonalGaussian(self.moments(features))
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        pyramid = self.images(z if equivariance is None else equivariance.latent(z))
        return TokenizerOutput(
            sample=pyramid[-1],
            pyramid=pyramid,
            latent=z,
            mean=posterior.mean,
            logvar=posterior.logvar,
            features=features[-1],
            projected=None if self.vf_head is None else self.vf_head(z),
        )

    @torch.no_grad()
    def reconstruct(self, x: Tensor, sample_posterior: bool = False, generator: Generators = None) -> Tensor:
        """Pictures of any size in [-1, 1] -> pictures of that size in [-1, 1], clamped."""
        output = self.forward(self.pad(x), sample_posterior, generator)
        return output.sample[..., : x.shape[-2], : x.shape[-1]].clamp(-1, 1)
