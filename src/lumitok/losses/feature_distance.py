"""A perceptual distance on the features of any foundation encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lumitok.foundation import FoundationEncoder

NORM_EPS = 1e-8


class FeatureDistance(nn.Module):
    """Distance of two pictures in the feature space of a frozen encoder. It is not LPIPS.

    d(x, y) = mean over layers of mean over positions of sum over channels (u(x) - u(y))^2, where u
    divides the feature vector of a position by its length: the form of LPIPS (arXiv 1801.03924,
    equation 1) without its learned weights, so its values compare only with themselves.
    """

    def __init__(self, encoder: FoundationEncoder) -> None:
        """Take a frozen encoder; the layers it was made with are those that are compared."""
        super().__init__()
        self.encoder = encoder

    @property
    def name(self) -> str:
        """Name to print beside the number, such as ``feature-distance/efficientnet-lite0``."""
        return f"feature-distance/{self.encoder.name}"

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair, (B,), 0 to 4; gradients reach both pictures.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            target: the same shape.
        """
        ours = self.encoder((image + 1.0) / 2.0).maps
        theirs = self.encoder((target + 1.0) / 2.0).maps
        return torch.stack([_layer(a, b) for a, b in zip(ours, theirs, strict=True)]).mean(dim=0)


def _layer(a: Tensor, b: Tensor) -> Tensor:
    """Distance of two (B, C, h, w) maps, (B,)."""
    dtype = torch.promote_types(a.dtype, torch.float32)  # squares of small differences vanish in bfloat16
    a = F.normalize(a.to(dtype), dim=1, eps=NORM_EPS)
    b = F.normalize(b.to(dtype), dim=1, eps=NORM_EPS)
    return (a - b).square().sum(dim=1).mean(dim=(1, 2))
