"""A run that trains a diffusion network on a tokenizer's latents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lumitok.config.models import EncoderConfig
from lumitok.config.networks import AnyNetwork
from lumitok.config.sampling import SamplingConfig
from lumitok.config.section import Section
from lumitok.config.training import EngineConfig, Switch, check_batch


class LatentDataConfig(Section):
    """Latents to train on."""

    latents: str = ""
    """A latent store: ``lumitok encode`` makes one of pictures, ``lumitok convert-latents`` of LightningDiT's
    shards."""
    tokenizer: str = ""
    """Run, checkpoint or folder of the tokenizer that made them; it decodes the samples drawn on the way.
    Empty: none are drawn. A tokenizer that did not make the store is refused."""
    pictures: str = ""
    """The folder or zip that the store was made from: the alignment loss shows its pictures to an encoder."""
    flip: bool = True
    """Read half of the latents from the store's mirrored view."""
    workers: int = Field(2, ge=0)
    """Processes that open pictures; latents are read without."""


class TimesConfig(Section):
    """How the times are drawn that a network learns at; t = 0 is noise, t = 1 data."""

    kind: Literal["logit-normal", "uniform"] = "logit-normal"
    """``logit-normal``: the sigmoid of a Gaussian (arXiv 2403.03206); ``uniform``: from 0 to 1."""
    mean: float = 0.0
    """Mean of the Gaussian; above 0 leans to data."""
    std: float = Field(1.0, gt=0)
    """Standard deviation of the Gaussian."""
    shift: float = Field(1.0, gt=0)
    """Times are moved to s t / (1 + (s - 1) t): below 1 leans to noise. RAE's alpha is 1 / s."""
    least: float = Field(0.0, ge=0, lt=1)
    """Times below are raised to it (RAE: 0.001)."""


class DiffusionLossConfig(Section):
    """Weights of the losses; a loss of weight 0 is not computed."""

    velocity: float = Field(1.0, gt=0)
    """Mean square error of the velocity."""
    cosine: float = Field(0.0, ge=0)
    """1 - cosine between predicted and true velocity along the channels (LightningDiT: 1)."""
    alignment: float = Field(0.0, ge=0)
    """REPA's: negative cosine between the projected tokens of a block and an encoder's (REPA: 0.5). The
    block is ``network.projector.block``."""
    alignment_encoder: EncoderConfig | None = None
    """The encoder of the alignment; REPA's is ``dinov2-base`` at scale 0.875."""
    class_token: float = Field(0.0, ge=0)
    """REG's: mean square error of the class token's velocity (REG: 0.03)."""

    @model_validator(mode="after")
    def _check(self) -> DiffusionLossConfig:
        if self.alignment > 0 and self.alignment_encoder is None:
            raise ValueError("alignment needs alignment_encoder: name an encoder, such as dinov2-base")
        if self.class_token > 0 and self.alignment_encoder is None:
            raise ValueError("class_token diffuses the token of alignment_encoder: name that encoder")
        return self


class DiffusionStageConfig(Section):
    """One stage of the training; most recipes have one."""

    name: str
    images: int = Field(gt=0)
    """Latents to see in this stage; divided by ``batch_size`` and rounded down it gives the steps."""
    batch_size: int = Field(gt=0)
    """Latents a step over all processes and accumulated parts."""
    lr: float = Field(2e-4, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's."""
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """``linear`` and ``cosine`` fall to ``final_lr`` at the end of the stage."""
    final_lr: float = Field(2e-5, gt=0)
    """Rate that a falling schedule ends at."""
    decay_from: int = Field(0, ge=0)
    """Images seen in this stage before a falling schedule begins to fall."""
    warmup_steps: int = Field(0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of the gradient; a larger one is scaled down. None: as it comes."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of labels replaced by that for no class, so that classifier-free guidance can be had."""
    times: TimesConfig = TimesConfig()
    losses: DiffusionLossConfig = DiffusionLossConfig()


class SamplesConfig(Section):
    """Samples drawn on the way, always from the same noise: the paper's Figure 5 as a by-product."""

    every: int = Field(2000, ge=0)
    """Steps between them; 0: only at the end."""
    count: int = Field(16, ge=1)
    """How many."""
    classes: list[int] | None = None
    """Their classes, repeated as often as need be; None: spread evenly over all."""
    seed: int = Field(0, ge=0)
    sampling: SamplingConfig = SamplingConfig()

    def labels(self, classes: int) -> list[int]:
        """The class of each sample, of a network that knows so many; of one that knows none, no label."""
        if not classes:
            return []
        labels = self.classes or [index * classes // self.count for index in range(self.count)]
        return [labels[index % len(labels)] for index in range(self.count)]


class DiffusionTrainingConfig(EngineConfig):
    """The engine's settings for a diffusion network."""

    compile: Switch = "auto"
    """Compile the network's blocks with torch.compile; ``auto``: on a GPU."""
    ema_decay: float | None = Field(0.9999, ge=0, lt=1)
    """Weight of the past in the average, every step. None: by ``ema_half_life`` and ``ema_ramp``."""
    ema_half_life: int = Field(2_000_000, gt=0)
    log_every: int = Field(100, gt=0)
    checkpoint_every: int = Field(5000, ge=0)
    keep_every: int = Field(0, ge=0)
    """Checkpoints at a multiple of so many steps are kept for good, to measure later; 0: none."""


class DiffusionRecipe(Section):
    """A whole run that trains a diffusion network."""

    name: str = ""
    """Name of the recipe, from its file."""
    about: str = ""
    """What it is for: one sentence for ``lumitok recipes``."""
    out: str = ""
    """Folder of the run; default ``runs/`` and the recipe's name."""
    init: str = ""
    """Run, checkpoint or network folder to begin with: its weights and their average are taken over, the
    optimizer starts anew. Empty: from random weights."""
    network: AnyNetwork
    """``in_channels``, ``input_size`` and ``classes`` are the store's where they are not given."""
    data: LatentDataConfig = LatentDataConfig()
    stages: list[DiffusionStageConfig] = Field(min_length=1)
    samples: SamplesConfig = SamplesConfig()
    training: DiffusionTrainingConfig = DiffusionTrainingConfig()

    @model_validator(mode="after")
    def _check(self) -> DiffusionRecipe:
        for stage in self.stages:
            check_batch(stage.name, stage.images, stage.batch_size, self.training.accumulation)
            if stage.losses.alignment > 0 and self.network.projector is None:
                raise ValueError(
                    f"stage '{stage.name}' has an alignment loss; give network.projector (an empty section, "
                    "{}, is REPA's) or set alignment to 0"
                )
            diffuses = getattr(self.network, "class_channels", 0) > 0
            if diffuses != (stage.losses.class_token > 0):
                raise ValueError(
                    f"stage '{stage.name}': losses.class_token and network.class_channels belong together "
                    "(REG); give both, or neither"
                )
        return self
