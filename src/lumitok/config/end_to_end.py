"""A run that trains a tokenizer and a diffusion network together (REPA-E, arXiv 2504.10483)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lumitok.config.diffusion import (
    DiffusionLossConfig,
    DiffusionRecipe,
    DiffusionStageConfig,
    LatentDataConfig,
    SamplesConfig,
    TimesConfig,
)
from lumitok.config.networks import AnyNetwork
from lumitok.config.picture_recipe import PictureRecipe
from lumitok.config.training import StageConfig, Switch, TrainingConfig


class EndToEndStageConfig(StageConfig):
    """One stage: the tokenizer's, and what the network adds.

    ``schedule``, ``warmup_steps`` and ``clip_norm`` hold for tokenizer, discriminators and network alike.
    """

    tokenizer_alignment: float = Field(1.5, gt=0)
    """Weight in the tokenizer's objective of the alignment loss, whose gradient comes to it through the
    network; the network's own weight of it is ``network_losses.alignment``."""
    network_lr: float = Field(1e-4, gt=0)
    network_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """AdamW's, for the network; its weight decay is 0."""
    network_losses: DiffusionLossConfig
    """The network's losses. Their gradients end at the latents: none reaches the tokenizer."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of labels replaced by that for no class in the network's step."""
    times: TimesConfig = TimesConfig()

    @property
    def diffusion(self) -> DiffusionStageConfig:
        """The network's part, as a stage of its own."""
        return DiffusionStageConfig(
            name=self.name,
            images=self.images,
            batch_size=self.batch_size,
            lr=self.network_lr,
            betas=self.network_betas,
            clip_norm=self.clip_norm,
            label_dropout=self.label_dropout,
            times=self.times,
            losses=self.network_losses,
        )


class EndToEndTrainingConfig(TrainingConfig):
    """The engine's settings; ``ema_decay``, ``ema_half_life`` and ``ema_ramp`` are the tokenizer's."""

    statistics_images: int = Field(10_000, gt=0)
    """Images on which the latent's statistics are measured at the beginning; the live normalisation sets
    out from them."""
    network_ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Weight of the past in the average of the network and of the live statistics, every step."""
    compile: Switch = "auto"
    """Compile the network's blocks with torch.compile; ``auto``: on a GPU."""


class EndToEndRecipe(PictureRecipe):
    """A whole run that trains tokenizer and network together; ``init`` names the tokenizer to begin with."""

    network: AnyNetwork
    """``in_channels``, ``input_size`` and ``classes`` are the tokenizer's and the pictures' where they are
    not given; it begins from random weights."""
    stages: list[EndToEndStageConfig] = Field(min_length=1)  # type: ignore[assignment]
    samples: SamplesConfig = SamplesConfig()
    training: EndToEndTrainingConfig = EndToEndTrainingConfig()
    normaliser_momentum: float = Field(0.1, gt=0, le=1)
    """Share of each step's statistics in the running ones that normalise the latent (BatchNorm's)."""

    def diffusion(self, tokenizer: str = "") -> DiffusionRecipe:
        """The network's side as a recipe of its own, on the latents of ``tokenizer``."""
        return DiffusionRecipe(
            network=self.network,
            data=LatentDataConfig(tokenizer=tokenizer),
            stages=[stage.diffusion for stage in self.stages],
            samples=self.samples,
        )

    @model_validator(mode="after")
    def _check_network(self) -> EndToEndRecipe:
        if self.network.projector is None:
            raise ValueError(
                "an end-to-end run aligns through network.projector; give it (an empty section, {}, is "
                "REPA's)"
            )
        if getattr(self.network, "class_channels", 0):
            raise ValueError("an end-to-end run diffuses no class token; set network.class_channels to 0")
        if self.data.preparation == "keep-aspect":
            raise ValueError("an end-to-end run takes squares; data.preparation cannot be keep-aspect")
        for stage in self.stages:
            if stage.network_losses.alignment == 0:
                raise ValueError(
                    f"stage '{stage.name}': network_losses.alignment is 0, and no other loss trains the "
                    "projector that the tokenizer is aligned through; REPA-E's is 0.5"
                )
            if stage.network_losses.class_token > 0:
                raise ValueError(f"stage '{stage.name}': set network_losses.class_token to 0")
            if stage.equivariance is not None:
                raise ValueError(
                    f"stage '{stage.name}': equivariance resizes what the network takes at one size; leave "
                    "it out"
                )
        return self
