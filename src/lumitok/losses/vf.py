"""The VF loss of VA-VAE (arXiv 2501.01423) and its adaptive weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.errors import LumitokError

COSINE_EPS = 1e-8  # torch.nn.functional.cosine_similarity's default.


class VFLoss(NamedTuple):
    """The VF loss and its two terms, each a scalar."""

    total: Tensor
    """distance + cosine."""
    distance: Tensor
    """Marginal distance matrix similarity loss."""
    cosine: Tensor
    """Marginal cosine similarity loss."""


def vf_loss(
    projected: Tensor, features: Tensor, distance_margin: float = 0.0, cosine_margin: float = 0.0
) -> VFLoss:
    """Pull the projected latent P towards the frozen encoder's features A.

    distance = mean over pairs (i, j) of relu(|cos(P_i, P_j) - cos(A_i, A_j)| - distance_margin)
    cosine   = mean over positions i of relu(1 - cosine_margin - cos(P_i, A_i))

    The pairs are all positions of one picture, (i, i) included. A is pooled adaptively (average)
    to the grid of P. Where A has the coarser grid, both are pooled to the coarser side: this is
    lumitok's generalisation, the paper only has finer features. No gradient reaches A. Computed in
    float32 (or float64), also under autocast.

    Args:
        projected: (B, C, h, w), the latent after its 1x1 projection to the encoder's width.
        features: (B, C, H, W), a feature map of the frozen encoder.
        distance_margin: m1, differences up to it cost nothing.
        cosine_margin: m2, cosines from 1 - m2 up cost nothing.
    """
    if projected.ndim != 4 or features.ndim != 4 or projected.shape[:2] != features.shape[:2]:
        raise LumitokError(
            f"the VF loss compares maps with equal batch and channels, but the projected latent is "
            f"{tuple(projected.shape)} and the features are {tuple(features.shape)}; "
            "project the latent to the encoder's width"
        )
    dtype = torch.promote_types(projected.dtype, torch.float32)
    with torch.autocast(projected.device.type, enabled=False):
        grid = min(projected.shape[2], features.shape[2]), min(projected.shape[3], features.shape[3])
        p = F.adaptive_avg_pool2d(projected.to(dtype), grid).flatten(2)
        a = F.adaptive_avg_pool2d(features.detach().to(dtype), grid).flatten(2)
        p = F.normalize(p, dim=1, eps=COSINE_EPS)  # (B, C, N)
        a = F.normalize(a, dim=1, eps=COSINE_EPS)
        difference = torch.bmm(p.mT, p) - torch.bmm(a.mT, a)  # (B, N, N)
        distance = F.relu(difference.abs() - distance_margin).mean()
        cosine = F.relu(1.0 - cosine_margin - (p * a).sum(dim=1)).mean()
    return VFLoss(distance + cosine, distance, cosine)


def adaptive_weight(
    reconstruction: Tensor,
    loss: Tensor,
    parameter: nn.Parameter,
    *,
    scale: float,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    eps: float = 1e-4,
    maximum: float = 1e8,
) -> Tensor:
    """Weight that makes a loss pull on a parameter ``scale`` times as hard as the reconstruction.

    scale * clamp(|d reconstruction / dW| / (|d loss / dW| + eps), 0, maximum), with the Frobenius
    norm (VA-VAE's adaptive weighting, arXiv 2501.01423). The graph is kept for the
    backward pass that follows. The result has no gradient.

    Args:
        reconstruction: scalar, the weighted reconstruction losses without the adversarial one.
        loss: scalar, the loss to weigh, unweighted.
        parameter: W, the last weight that both losses pass through on their way to the encoder.
        scale: the recipe's weight of the loss.
        average: mean of a gradient over the processes, so that the weight is that of the whole batch;
            the released code compares each process's own.
        eps: added to the lower norm.
        maximum: upper bound of the ratio.
    """
    if not parameter.requires_grad:
        raise LumitokError(
            "an adaptive weight compares gradients at a layer that this stage does not train: the last "
            "before the latent, or for patchgan the decoder's last; train it, or set the loss's _adaptive "
            "key to false"
        )
    (upper,) = torch.autograd.grad(reconstruction, parameter, retain_graph=True)
    (lower,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    ratio: Tensor = average(upper.float()).norm() / (average(lower.float()).norm() + eps)
    return scale * ratio.clamp(0.0, maximum)
