"""What the generator minimises in one stage: the weighted sum of its losses."""

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
from lumitok.losses.preservation import preservation_loss
from lumitok.losses.ssim import ssim_loss
from lumitok.losses.vf import VFLoss, adaptive_weight, vf_loss
from lumitok.tokenizers import AlignTok, Tokenizer, TokenizerOutput
from lumitok.training.adversaries import Terms

GAN_LIMIT = 1e4
"""Largest ratio of gradient norms in an adaptive adversarial weight (VQGAN)."""


class GeneratorObjective(nn.Module):
    """L = L_rec + w_vf L_VF + w_sp L_sp + w_kl L_KL + w_gan L_GAN; a loss of weight 0 is not built.

    VFM-VAE's section 3.4 and AlignTok's section 3. L_rec holds the pixel and perceptual terms; its
    gradient alone sets the adaptive weights.

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
        self.vf_encoder: FoundationEncoder | None = None
        if config.vf > 0 and config.vf_encoder is not None:
            alike = [o.vf_encoder for o in built if o.config.vf_encoder == config.vf_encoder]
            known = next((encoder for encoder in alike if encoder is not None), None)
            self.vf_encoder = known or FoundationEncoder(config.vf_encoder)

    def forward(
        self,
        output: TokenizerOutput,
        target: Tensor,
        *,
        encoded: Tensor,
        kept: tuple[Tensor, Tensor] | None,
        images_seen: int,
        tokenizer: Tokenizer,
        others: Terms,
        average: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and every term before weighting, detached, by its name in the log.

        Args:
            output: one forward pass of the tokenizer.
            target: the pictures (B, 3, H, W) in [-1, 1] that ``output.sample`` shall equal.
            encoded: the pictures that were encoded; not ``target`` where an equivariance changed it.
            kept: features and latent of ``encoded`` as the stage's reference has them.
            images_seen: images seen so far in the whole run.
            tokenizer: whose parameters gradient norms are compared at.
            others: what other networks add: discriminators, a diffusion network; empty while there are none.
            average: mean of a tensor over the processes.
        """
        config = self.config
        terms = self._reconstruction(output, target, images_seen)
        scale = target[0].numel() if config.reduction == "sum" else 1
        reconstruction = sum((scale * w * value for w, value in terms.values()), target.new_zeros(()))
        total = reconstruction
        values = {name: value.detach() for name, (_, value) in terms.items()}

        def balanced(
            name: str, value: Tensor, weight: float, parameter: nn.Parameter, most: float = 1e8
        ) -> Tensor:
            found = adaptive_weight(
                reconstruction, value, parameter, scale=weight, average=average, maximum=most
            )
            values[f"{name}_weight"] = found.detach()
            return found * value

        if config.vf > 0:
            alignment = self._alignment(output, encoded)
            if config.vf_adaptive:
                total = total + balanced("vf", alignment.total, config.vf, tokenizer.balance_parameter())
            else:
                total = total + config.vf * alignment.total
            values["vf"] = alignment.total.detach()
            values["vf_distance"] = alignment.distance.detach()
            values["vf_cosine"] = alignment.cosine.detach()
        if kept is not None:
            preserved = self._preservation(output, kept)
            values["preservation"] = preserved.detach()
            if config.preservation_adaptive:
                parameter = tokenizer.balance_parameter()
                if config.preservation_of == "features":  # They do not pass through the adapter.
                    assert isinstance(tokenizer, AlignTok)
                    parameter = tokenizer.features_parameter()
                total = total + balanced("preservation", preserved, config.preservation, parameter)
            else:
                total = total + config.preservation * preserved
        if "multi_resolution_l1" not in terms and len(output.pyramid) > 1:
            # With several processes every trained parameter must take part in the loss, the image heads
            # of the lower blocks too.
            total = total + 0.0 * torch.stack([image.sum() for image in output.pyramid[:-1]]).sum()
        if output.logvar is not None:
            divergence = kl(output.mean, output.logvar)
            values["kl"] = divergence.detach()
            if config.kl > 0:
                total = total + config.kl * divergence
        for name, (factor, value) in others.items():
            values[name] = value.detach()
            if name == "patchgan" and config.patchgan_adaptive:
                total = total + balanced(name, value, factor, tokenizer.last_parameter(), GAN_LIMIT)
            else:
                total = total + factor * value
        values["total"] = total.detach()
        return total, values

    def _alignment(self, output: TokenizerOutput, encoded: Tensor) -> VFLoss:
        """The VF loss between the projected latent and the foundation encoder's features."""
        features = output.features
        if self.vf_encoder is not None:
            with torch.no_grad():
                features = self.vf_encoder((encoded + 1) / 2).maps[-1]
        assert output.projected is not None
        assert features is not None
        return vf_loss(
            output.projected,
            features,
            distance_margin=self.config.vf_distance_margin,
            cosine_margin=self.config.vf_cosine_margin,
        )

    def _preservation(self, output: TokenizerOutput, kept: tuple[Tensor, Tensor]) -> Tensor:
        """How far the latent, or what it is made from, has moved since the stage began."""
        features, latent = kept
        distance = self.config.preservation_distance
        if self.config.preservation_of == "latent":
            return preservation_loss(output.latent, latent, distance)
        assert output.features is not None
        return preservation_loss(output.features, features, distance)

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
