"""What a recipe that trains on pictures says, of whatever it trains."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lumitok.config.models import ModelConfig
from lumitok.config.section import Section
from lumitok.config.training import (
    DataConfig,
    DiscriminatorConfig,
    PatchDiscriminatorConfig,
    StageConfig,
    TrainingConfig,
    check_batch,
)


class PictureRecipe(Section):
    """What every run on pictures names."""

    name: str = ""
    """Name of the recipe, from its file."""
    about: str = ""
    """What it is for: one sentence for ``lumitok recipes``."""
    out: str = ""
    """Folder of the run; default ``runs/`` and the recipe's name."""
    init: str = ""
    """Run, checkpoint or tokenizer folder to begin with: its generator, average and discriminators are
    taken over, the optimizers start anew. Empty: from random weights."""
    model: ModelConfig
    """The tokenizer; ``model: init`` stands for that of the checkpoint which ``init`` names."""
    data: DataConfig = DataConfig()
    discriminator: DiscriminatorConfig | None = None
    patch_discriminator: PatchDiscriminatorConfig | None = None
    stages: list[StageConfig] = Field(min_length=1)
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for stage in self.stages:
            if stage.losses.gan > 0 and self.discriminator is None:
                raise ValueError(
                    f"stage '{stage.name}' has a gan loss; describe the discriminator or set gan to 0"
                )
            if stage.losses.patchgan > 0 and self.patch_discriminator is None:
                raise ValueError(
                    f"stage '{stage.name}' has a patchgan loss; describe the patch_discriminator (an empty "
                    "section, {}, is the paper's) or set patchgan to 0"
                )
            if stage.losses.vf > 0 and not self.model.vf_head:
                raise ValueError(f"stage '{stage.name}' has a vf loss; set model.vf_head to true or vf to 0")
            if stage.losses.vf > 0 and stage.losses.vf_encoder is None and "vf_channels" in vars(self.model):
                raise ValueError(
                    f"stage '{stage.name}' has a vf loss, and a tokenizer of type {self.model.type} no "
                    "frozen encoder of its own; name one as losses.vf_encoder"
                )
            if stage.losses.preservation > 0 and self.model.type != "aligntok":
                raise ValueError(
                    f"stage '{stage.name}' has a preservation loss, which needs a tokenizer whose foundation "
                    f"encoder is trained: model.type aligntok, not {self.model.type}"
                )
            check_batch(stage.name, stage.images, stage.batch_size, self.training.accumulation)
        return self
