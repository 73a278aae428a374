"""What a stage holds the latent near: the encoding side as it was when the stage began."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lumitok.tokenizers.aligntok import AlignTok
from lumitok.tokenizers.autoencoder import pixels_of


class SemanticReference(nn.Module):
    """A frozen copy of an AlignTok's encoder and adapter."""

    def __init__(self, tokenizer: AlignTok) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(tokenizer.encoder)
        self.adapter = copy.deepcopy(tokenizer.adapter)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures in [-1, 1] -> the encoder's map (B, C, h, w) and z (B, Z, h, w)."""
        (features,) = self.encoder(pixels_of(x, self.encoder)).maps
        return features, self.adapter(features)
