"""What the generator minimises in one stage: the weighted sum of its losses (VFM-VAE, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lumitok.config import LossConfig
from lumitok.foundation import FoundationEncoder
from lumitok.losses.adversarial import hinge_generator
from lumitok.losses.feature_distance import FeatureDistance
from lumitok.losses.kl import kl
from lumitok.losses.lpips import LPIPS
from lumitok.losses.pixel import l1, multi_resolution_l1
from lumitok.losses.vf import adaptive_weight, vf_loss
from lumitok.tokenizers import VFMVAEOutput


class GeneratorObjective(nn.Module):
    """L = L_rec + w_vf L_VF + w_kl L_KL + w_gan L_GAN; a loss of weight 0 is neither built nor run.

    L_rec holds the pixel and perceptual terms; its gradient alone sets the adaptive weight of L_VF.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.lpips = LPIPS() if config.lpips > 0 else None
        self.feature_distance: FeatureDistance | None = None
        if config.feature_distance > 0:
            assert config.feature_distance_encoder is not None
            self.feature_distance = FeatureDistance(FoundationEncoder(config.feature_distance_encoder))

    def forward(
        self,
        output: VFMVAEOutput,
        target: Tensor,
        *,
        images_seen: int,
        balance: nn.Parameter,
        discriminator: nn.Module | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and every term before weighting, detached, by its name in the log.

        Args:
            output: one forward pass of the tokenizer.
            target: the pictures (B, 3, H, W) in [-1, 1].
            images_seen: images seen so far in the whole run.
            balance: the parameter at which gradient norms are compared for the VF loss.
            discriminator: None while the adversarial loss is off.
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
                weight = adaptive_weight(total, alignment.total, balance, scale=self.config.vf)
                values["vf_weight"] = weight.detach()
            total = total + weight * alignment.total
            values["vf"] = alignment.total.detach()
            values["vf_distance"] = alignment.distance.detach()
            values["vf_cosine"] = alignment.cosine.detach()
        if "multi_resolution_l1" not in terms:
            # With several processes every trained parameter must take part in the loss, the image heads
            # of the lower blocks too.
            total = total + 0.0 * torch.stack([image.sum() for image in output.pyramid[:-1]]).sum()
        divergence = kl(output.mean, output.logvar)
        values["kl"] = divergence.detach()
        if self.config.kl > 0:
            total = total + self.config.kl * divergence
        if discriminator is not None:
            adversarial = hinge_generator(discriminator(output.sample))
            total = total + self.config.gan * adversarial
            values["gan"] = adversarial.detach()
        values["total"] = total.detach()
        return total, values

    def _reconstruction(
        self, output: VFMVAEOutput, target: Tensor, images_seen: int
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms of L_rec: name -> (weight, value)."""
        config = self.config
        terms: dict[str, tuple[float, Tensor]] = {"l1": (config.l1, l1(output.sample, target))}
        if self.lpips is not None:
            terms["lpips"] = (config.lpips, self.lpips(output.sample, target).mean())
        if self.feature_distance is not None:
            distance = self.feature_distance(output.sample, target).mean()
            terms[self.feature_distance.name] = (config.feature_distance, distance)
        until = config.multi_resolution_until
        if config.multi_resolution_l1 > 0 and (until is None or images_seen < until):
            lower = multi_resolution_l1(output.pyramid[:-1], target)
            terms["multi_resolution_l1"] = (config.multi_resolution_l1, lower)
        return terms


def first_not_finite(values: dict[str, Tensor]) -> str | None:
    """Name of the first term that is not finite, if any."""
    return next((name for name, value in values.items() if not torch.isfinite(value)), None)
