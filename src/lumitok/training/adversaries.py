"""The discriminators of a run as one module, with what each of them says of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lumitok.config import LossConfig, PictureRecipe
from lumitok.foundation import frozen_encoders, frozen_prefixes
from lumitok.losses.adversarial import (
    hinge_discriminator,
    hinge_discriminator_scales,
    hinge_generator,
    hinge_generator_scales,
    least_squares_discriminator,
    least_squares_generator,
)
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.losses.discriminators.patch import PatchDiscriminator
from lumitok.losses.feature_matching import feature_matching

Terms = dict[str, tuple[float, Tensor]]
"""Name of a loss -> (weight, value)."""


PatchLoss = Literal["least-squares", "hinge"]
PATCH_LOSSES = {
    "least-squares": (least_squares_discriminator, least_squares_generator),
    "hinge": (hinge_discriminator_scales, hinge_generator_scales),
}
"""The PatchGAN's loss, and its opponent's: logits of real and fake pictures, one tensor a scale."""


@dataclass
class Judgement:
    """What the discriminators say of a batch."""

    foundation: Tensor | None
    """Logits (B, L)."""
    patch: list[list[Tensor]] | None
    """A list a scale: features of each layer, then the logits."""


class Discriminators(nn.Module):
    """All discriminators of a recipe; a stage asks those whose loss it weighs."""

    def __init__(
        self, foundation: FoundationDiscriminator | None = None, patch: PatchDiscriminator | None = None
    ) -> None:
        super().__init__()
        self.foundation = foundation
        self.patch = patch

    @classmethod
    def of(cls, recipe: PictureRecipe, device: torch.device | None = None) -> Discriminators | None:
        """Build those that a stage of the recipe uses; None where no stage uses one.

        Args:
            recipe: the run's.
            device: where to put them, the PatchGAN channels last; None: they stay where they are made.
        """
        foundation = patch = None
        if recipe.discriminator is not None and any(stage.losses.gan > 0 for stage in recipe.stages):
            foundation = FoundationDiscriminator(recipe.discriminator)
        if recipe.patch_discriminator is not None and any(s.losses.patchgan > 0 for s in recipe.stages):
            patch = PatchDiscriminator(recipe.patch_discriminator)
        if foundation is None and patch is None:
            return None
        found = cls(foundation, patch)
        if device is not None:
            found.to(device)
            if patch is not None:
                patch.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return found

    def identity(self) -> dict[str, Any]:
        """What no shape of a weight shows and these weights are of no use without, by what it is called.

        Of a frozen encoder the short hash of its weights, and the layers that the heads read, in order.
        """
        found: dict[str, Any] = {}
        for name, part in frozen_encoders(self).items():
            found[f"the discriminator's {name}"] = part.weights_hash()[:12]
            found[f"the layers of the discriminator's {name}"] = list(part.config.layers)
        if self.patch is not None:
            found["the patch discriminator's padding"] = self.patch.config.padding
        return found

    @property
    def patch_loss(self) -> PatchLoss:
        """The loss that the PatchGAN is trained with."""
        return "least-squares" if self.patch is None else self.patch.config.loss

    def set_trained(self, losses: LossConfig, on: bool) -> list[nn.Parameter]:
        """Let gradients reach the parameters of the discriminators in use, or none; return those.

        A frozen encoder's parameters are never among them.
        """
        frozen = frozen_prefixes(self)
        used = {"foundation": losses.gan > 0, "patch": losses.patchgan > 0}
        chosen = []
        for name, parameter in self.named_parameters():
            if name.startswith(frozen):
                continue
            wanted = used[name.split(".")[0]]
            parameter.requires_grad_(on and wanted)
            if wanted:
                chosen.append(parameter)
        return chosen

    def forward(
        self,
        pictures: Tensor,
        losses: LossConfig,
        generators: Sequence[torch.Generator],
        shared: torch.Generator,
    ) -> Judgement:
        """Judge pictures (B, 3, H, W) in [-1, 1]; ``generators``: one a picture, ``shared``: the batch's."""
        foundation = patch = None
        if self.foundation is not None and losses.gan > 0:
            foundation = self.foundation(pictures, generators=generators, shared=shared)
        if self.patch is not None and losses.patchgan > 0:
            patch = self.patch(pictures)
        return Judgement(foundation, patch)


def discriminator_terms(real: Judgement, fake: Judgement, loss: PatchLoss) -> Terms:
    """What the discriminators minimise: each its own loss, weight 1; ``loss`` is the PatchGAN's."""
    terms: Terms = {}
    if real.foundation is not None and fake.foundation is not None:
        terms["discriminator"] = (1.0, hinge_discriminator(real.foundation, fake.foundation))
    if real.patch is not None and fake.patch is not None:
        logits = ([scale[-1] for scale in side.patch or ()] for side in (real, fake))
        terms["patch_discriminator"] = (1.0, PATCH_LOSSES[loss][0](*logits))
    return terms


def generator_terms(
    fake: Judgement, real: list[list[Tensor]] | None, losses: LossConfig, loss: PatchLoss
) -> Terms:
    """What the generator minimises against them.

    ``real``: what the PatchGAN sees in the pictures themselves; needed for feature matching alone.
    ``loss``: the PatchGAN's.
    """
    terms: Terms = {}
    if fake.foundation is not None:
        terms["gan"] = (losses.gan, hinge_generator(fake.foundation))
    if fake.patch is not None:
        logits = [scale[-1] for scale in fake.patch]
        terms["patchgan"] = (losses.patchgan, PATCH_LOSSES[loss][1](logits))
        if losses.feature_matching > 0:
            assert real is not None
            matching = feature_matching(real, fake.patch)
            terms["feature_matching"] = (losses.feature_matching, matching)
    return terms
