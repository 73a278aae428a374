"""REPA's alignment (arXiv 2410.06940): a network's tokens are pulled towards a frozen encoder's.

REG (arXiv 2507.01467) aligns its class token as well, which comes first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder

NORM_EPS = 1e-12  # torch.nn.functional.normalize's default.


def alignment(projected: Tensor, targets: Tensor) -> Tensor:
    """Negative cosine between tokens and targets, mean over the tokens; the mean is REPA's loss.

    Args:
        projected: (B, T, d), the projector's output.
        targets: (B, T, d), see :func:`alignment_targets`; no gradient reaches them.

    Returns:
        (B,), from -1 to 1, float32 or float64, also under autocast.
    """
    if projected.shape != targets.shape:
        raise LumitokError(
            f"the alignment compares tokens (B, T, d) of one shape, but the network projects to "
            f"{tuple(projected.shape)} and the encoder gives {tuple(targets.shape)}; the network's grid must "
            "be the encoder's (its `scale` sets it) and its projector as wide as the encoder"
        )
    dtype = torch.promote_types(projected.dtype, torch.float32)
    ours = F.normalize(projected.to(dtype), dim=-1, eps=NORM_EPS)
    theirs = F.normalize(targets.detach().to(dtype), dim=-1, eps=NORM_EPS)
    return -(ours * theirs).sum(dim=-1).mean(dim=1)


@torch.no_grad()
def alignment_targets(encoder: FoundationEncoder, pixels: Tensor, *, class_token: bool = False) -> Tensor:
    """Read the tokens to align to.

    Pixels are brought to the encoder's size by bicubic interpolation without antialias, whatever its
    family prefers, as REPA and REG do it. They normalise before; a resize whose weights sum to 1
    changes places with that.

    Args:
        encoder: reads one layer; REPA's is ``dinov2-base``, layers [-1], scale 0.875: pictures of 256 px
            seen at 224, 16 x 16 tokens.
        pixels: (B, 3, H, W), in [0, 1].
        class_token: put the encoder's class token first, as REG wants it.

    Returns:
        (B, h w, d), or (B, 1 + h w, d) with the class token.
    """
    if len(encoder.config.layers) != 1:
        raise LumitokError(
            f"the alignment reads one layer of its encoder, not layers {encoder.config.layers}; "
            "choose one, such as [-1]"
        )
    scale = encoder.config.scale
    if scale != 1:
        size = [round(side * scale) for side in pixels.shape[-2:]]
        pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=False)
    features = encoder(pixels, scaled=False)
    tokens: Tensor = features.maps[0].flatten(2).mT
    if not class_token:
        return tokens
    first = features.tokens[0]
    if first is None:
        raise LumitokError(
            f"encoder '{encoder.name}' has no class token to align to; choose one that has, as dinov2-base"
        )
    return torch.cat([first[:, None], tokens], dim=1)
