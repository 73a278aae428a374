"""What the generator minimises in one stage: the weighted sum of its losses (VFM-VAE, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lumitok.config import LossConfig
from lumitok.foundation import FoundationEncoder
from lumitok.losses.feature_distance import FeatureDistance
from lumitok.losses.kl import kl
from lumitok.losses.lpips import LPIPS
from lumitok.losses.pixel import l1, multi_resolution_l1
from lumitok.losses.ssim import ssim_loss
from lumitok.losses.vf import adaptive_weight, vf_loss
from lumitok.tokenizers import TokenizerOutput
from lumitok.training.adversaries import Terms


class GeneratorObjective(nn.Module):
    """L = L_rec + w_vf L_VF + w_kl L_KL + w_gan L_GAN; a loss of weight 0 is neither built nor run.

    L_rec holds the pixel and perceptual terms; its gradient alone sets the adaptive weight of L_VF.

    Args:
        config: the weights.
        built: objectives of other stages, whose perceptual networks are shared where they are the same.
    """

    def __init__(self, config: LossConfig, built: Sequence[GeneratorObjective] = ()) -> None:
        super().__init__()
        self.config = config
        self.lpips: LPIPS | None = None
        if config.lpips > 0:
            self.lpips = next((o.lpips for o in built if o.lpips is not None), None) or LPIPS()
        self.feature_distance: FeatureDistance | None = None
        if config.feature_distance > 0:
            wanted = config.feature_distance_encoder
            assert wanted is not None
            same = [o.feature_distance for o in built if o.config.feature_distance_encoder == wanted]
            found = next((distance for distance in same if distance is not None), None)
            self.feature_distance = found or FeatureDistance(FoundationEncoder(wanted))

    def forward(
        self,
        output: TokenizerOutput,
        target: Tensor,
        *,
        images_seen: int,
        balance: nn.Parameter,
        adversarial: Terms,
        average: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and every term before weighting, detached, by its name in the log.

        Args:
            output: one forward pass of the tokenizer.
            target: the pictures (B, 3, H, W) in [-1, 1] that ``output.sample`` shall equal.
            images_seen: images seen so far in the whole run.
            balance: the parameter at which gradient norms are compared for the VF loss.
            adversarial: what the discriminators add; empty while they are off.
            average: mean of a tensor over the processes.
        """
        terms = self._reconstruction(output, target, images_seen)
        total = sum((weight * value for weight, value in terms.values()), target.new_zeros(()))
        values = {name: value.detach() for name, (_, value) in terms.items()}
        if self.config.vf > 0:
            assert output.projected is not None
            alignment = vf_loss(
                output.projected,
                output.features,
                distance_margin=self.config.vf_distance_margin,
                cosine_margin=self.config.vf_cosine_margin,
            )
            weight: Tensor | float = self.config.vf
            if self.config.vf_adaptive:
                scale = self.config.vf
                weight = adaptive_weight(total, alignment.total, balance, scale=scale, average=average)
                values["vf_weight"] = weight.detach()
            total = total + weight * alignment.total
            values["vf"] = alignment.total.detach()
            values["vf_distance"] = alignment.distance.detach()
            values["vf_cosine"] = alignment.cosine.detach()
        if "multi_resolution_l1" not in terms and len(output.pyramid) > 1:
            # With several processes every trained parameter must take part in the loss, the image heads
            # of the lower blocks too.
            total = total + 0.0 * torch.stack([image.sum() for image in output.pyramid[:-1]]).sum()
        divergence = kl(output.mean, output.logvar)
        values["kl"] = divergence.detach()
        if self.config.kl > 0:
            total = total + self.config.kl * divergence
        for name, (factor, value) in adversarial.items():
            total = total + factor * value
            values[name] = value.detach()
        values["total"] = total.detach()
        return total, values

    def distances(self) -> dict[str, LPIPS | FeatureDistance]:
        """Perceptual distances, (image, target) -> (B,), by their name in the log."""
        found: dict[str, LPIPS | FeatureDistance] = {}
        if self.lpips is not None:
            found["lpips"] = self.lpips
        if self.feature_distance is not None:
            found[self.feature_distance.name] = self.feature_distance
        return found

    def _reconstruction(self, output: TokenizerOutput, target: Tensor, images_seen: int) -> Terms:
        config = self.config
        terms: Terms = {"l1": (config.l1, l1(output.sample, target))}  # Always, for the log.
        for name, distance in self.distances().items():
            weight = config.lpips if name == "lpips" else config.feature_distance
            terms[name] = (weight, distance(output.sample, target).mean())
        if config.ssim > 0:
            terms["ssim"] = (config.ssim, ssim_loss(output.sample, target))
        until = config.multi_resolution_until
        if config.multi_resolution_l1 > 0 and (until is None or images_seen < until):
            lower = multi_resolution_l1(output.pyramid[:-1], target)
            terms["multi_resolution_l1"] = (config.multi_resolution_l1, lower)
        return terms
