"""What tokenizers on a frozen encoder share: pictures -> features -> posterior."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from lumitok.config import FrozenLDMConfig, VFMVAEConfig
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers.autoencoder import Autoencoder, pixels_of, weight_of
from lumitok.tokenizers.posterior import DiagonalGaussian


class FrozenEncoderTokenizer(Autoencoder):
    """A tokenizer that reads a frozen foundation model and has a diagonal Gaussian as its latent.

    A subclass has ``moments``, ``images``, ``size_multiple``, ``last_compression`` and ``last_parameter``;
    its constructor calls ``start_posterior`` and ``make_vf_head`` once what lies before the latent stands.
    """

    settings: VFMVAEConfig | FrozenLDMConfig
    encoder: FoundationEncoder

    @property
    @abstractmethod
    def last_compression(self) -> nn.Linear | nn.Conv2d:
        """The layer that gives the posterior's mean and log-variance."""

    @abstractmethod
    def moments(self, features: list[Tensor]) -> Tensor:
        """Feature maps -> mean and log-variance, stacked (B, 2C, h, w), unclamped, float32."""

    def start_posterior(self) -> None:
        """Let the log-variance begin near the ``initial_logvar`` of the settings."""
        bias = self.last_compression.bias
        assert bias is not None
        with torch.no_grad():
            bias[self.settings.latent_channels :] = self.settings.initial_logvar

    def balance_parameter(self) -> nn.Parameter:
        """The last weight that z passes through; gradient norms at it set the VF loss's weight."""
        return weight_of(self.last_compression)

    def features(self, x: Tensor) -> list[Tensor]:
        """Pictures in [-1, 1] -> the frozen encoder's maps (B, C_l, h_l, w_l), in our type."""
        with torch.no_grad():
            return [f.to(self.dtype) for f in self.encoder(pixels_of(x, self.encoder)).maps]

    def posterior(self, x: Tensor) -> tuple[DiagonalGaussian, Tensor | None]:
        """Pictures in [-1, 1] that fit -> the Gaussian over z, and the encoder's last requested map."""
        features = self.features(x)
        return DiagonalGaussian(self.moments(features)), features[-1]
