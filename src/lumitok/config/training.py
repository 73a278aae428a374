"""Data, losses, stages and the engine's settings."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lumitok.config.models import EncoderConfig
from lumitok.config.section import Section


def _unread(value: object) -> object:
    """YAML reads on and off as true and false."""
    return ("off", "on")[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_unread)]


class DataConfig(Section):
    """Pictures to train on and pictures held out."""

    train: str = ""
    """A folder of pictures, with or without class folders, or a zip of one."""
    validation: str | dict[str, str] | None = None
    """Pictures that are never trained on: another folder or zip, or several by name, measured apart."""
    holdout: int = Field(0, ge=0)
    """Without ``validation``: how many pictures of ``train`` to hold out, chosen by ``holdout_seed``."""
    holdout_seed: int = 0
    preparation: Literal["random-square", "random-crop", "center-crop", "keep-aspect"] = "random-square"
    """``random-square``: VFM-VAE's, a square of 0.5 to 1 times the short side at a random place,
    resized with Lanczos; ``random-crop``: AlignTok's, the short side resized to the picture's size, a
    square at a random place; ``center-crop``: ADM's centre crop; ``keep-aspect``: AlignTok's for the web,
    resized to cover the bucket nearest to the picture's aspect ratio, and cropped to it at a random place."""
    buckets: list[tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]] | None = None
    """Sizes for ``keep-aspect``, [height, width] in pixels, multiples of what the networks' grids need. The
    pictures of a step are of one size. None: the short side is the model's ``image_size``, the long side
    up to twice that, in steps of about an eighth (256: 256, 288, ... 512), landscape and portrait."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Side of the random square divided by the picture's short side."""
    flip: bool = True
    """Mirror half of the training pictures."""
    min_side: int = Field(0, ge=0)
    """Leave out pictures whose short side is below this many pixels (the paper: 256)."""
    workers: int = Field(2, ge=0)
    """Processes that open pictures."""
    bad_share: float = Field(0.01, ge=0, le=1)
    """Share of the pictures that may be unreadable. Each is named, counted and replaced by another; one
    more, and the run stops with the list. 0: the first one stops it."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_scale is two shares of the short side, 0 < low <= high <= 1, not {self.crop_scale}"
            )
        if self.validation and self.holdout:
            raise ValueError("validation and holdout both name held-out pictures; keep one of them")
        if self.buckets is not None:
            self._check_buckets(self.buckets)
        return self

    def _check_buckets(self, buckets: list[tuple[int, int]]) -> None:
        if self.preparation != "keep-aspect":
            raise ValueError(
                f"buckets are the sizes of preparation keep-aspect, not of {self.preparation}; leave them out"
            )
        if not buckets:
            raise ValueError("buckets is an empty list; name sizes, or leave it out for the default")
        known: dict[Fraction, tuple[int, int]] = {}
        for height, width in buckets:
            other = known.setdefault(Fraction(height, width), (height, width))
            if other != (height, width) or buckets.count(other) > 1:
                raise ValueError(
                    f"buckets {list(other)} and {[height, width]} have one aspect ratio, and a picture goes "
                    "to the bucket nearest to its own; keep one of them"
                )


class LossConfig(Section):
    """Weights of the generator's losses; a loss of weight 0 is not built.

    The equations stand with each loss in ``lumitok.losses``.
    """

    reduction: Literal["mean", "sum"] = "mean"
    """``sum``: pixel and perceptual losses are multiplied by the 3 H W numbers of a picture, as latent
    diffusion and VA-VAE have it; it changes their ratio to ``kl`` and the bound of adaptive weights."""
    l1: float = Field(0.0, ge=0)
    lpips: float = Field(0.0, ge=0)
    """LPIPS on VGG16; needs its weights (``lumitok doctor`` says whether they are at hand)."""
    feature_distance: float = Field(0.0, ge=0)
    """Perceptual distance on the features of ``feature_distance_encoder``. Not LPIPS."""
    feature_distance_encoder: EncoderConfig | None = None
    ssim: float = Field(0.0, ge=0)
    """1 - SSIM, on pictures in [-1, 1]."""
    multi_resolution_l1: float = Field(0.0, ge=0)
    """L1 of the image at every lower resolution, weight of each."""
    multi_resolution_until: int | None = Field(None, ge=0)
    """Number of images seen after which ``multi_resolution_l1`` is 0; None: never."""
    kl: float = Field(0.0, ge=0)
    vf: float = Field(0.0, ge=0)
    """VF loss (cosine and distance matrix) between the projected latent and a foundation encoder."""
    vf_encoder: EncoderConfig | None = None
    """The foundation encoder of the VF loss where it is not the tokenizer's own frozen one."""
    vf_adaptive: bool = True
    """Multiply ``vf`` by the ratio of gradient norms, reconstruction over VF."""
    vf_distance_margin: float = 0.0
    vf_cosine_margin: float = 0.0
    preservation: float = Field(0.0, ge=0)
    """AlignTok's semantic preservation: hold the latent near that of the stage's beginning."""
    preservation_adaptive: bool = True
    """Multiply ``preservation`` by the ratio of gradient norms, reconstruction over preservation."""
    preservation_distance: Literal["l2", "cosine"] = "l2"
    preservation_of: Literal["latent", "features"] = "latent"
    """``features``: hold the encoder's map, before the adapter."""
    gan: float = Field(0.0, ge=0)
    """Adversarial loss (hinge) against ``discriminator``."""
    patchgan: float = Field(0.0, ge=0)
    """Adversarial loss against ``patch_discriminator``."""
    patchgan_adaptive: bool = False
    """Multiply ``patchgan`` by the ratio of gradient norms at the decoder's last layer, reconstruction over
    adversarial (VQGAN, arXiv 2012.09841), at most 10,000."""
    feature_matching: float = Field(0.0, ge=0)
    """L1 between the features that ``patch_discriminator`` sees in a picture and its reconstruction."""
    gan_from: int = Field(0, ge=0)
    """Number of images seen before the discriminators join."""

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if self.feature_distance > 0 and self.feature_distance_encoder is None:
            raise ValueError(
                "feature_distance needs feature_distance_encoder: name an encoder and its layers"
            )
        if self.feature_matching > 0 and self.patchgan == 0:
            raise ValueError("feature_matching compares features of the PatchGAN; give patchgan a weight too")
        adaptive = {"vf": self.vf_adaptive, "preservation": self.preservation_adaptive}
        adaptive["patchgan"] = self.patchgan_adaptive
        for name, on in adaptive.items():
            if on and getattr(self, name) > 0 and not self.perceptual:
                raise ValueError(
                    f"{name}_adaptive compares with the reconstruction's gradient, and no reconstruction "
                    f"loss has a weight; give l1 one, or set {name}_adaptive to false"
                )
        return self

    @property
    def perceptual(self) -> bool:
        """Whether any loss but those against discriminators looks at the pictures."""
        return any(
            weight > 0
            for weight in (self.l1, self.lpips, self.feature_distance, self.ssim, self.multi_resolution_l1)
        )

    @property
    def adversarial(self) -> bool:
        """Whether any discriminator takes part."""
        return self.gan > 0 or self.patchgan > 0


class DiscriminatorConfig(Section):
    """A discriminator on a frozen encoder's features (StyleGAN-T's, as VFM-VAE uses it)."""

    encoder: EncoderConfig
    """The paper's recipe: ``dino-small-patch16``, layers [3, 6, 9, 12, 0]."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pictures are brought to ``input_size``; None: as the discriminator's encoder prefers. The
    released code follows the tokenizer's encoder: bilinear for SigLIP and MAE, else bicubic."""
    input_size: int = Field(224, ge=16)
    """Side in pixels of what the encoder sees; of pictures that are no squares, the short side."""
    crop_probability: float = Field(0.5, ge=0, le=1)
    """Probability, a batch, of a random crop instead of a resize where the picture is larger."""
    augment: bool = True
    """Differentiable augmentation: color, translation, cutout."""


class PatchDiscriminatorConfig(Section):
    """PatchGAN; the defaults are those of VFM-VAE's last stage (pix2pixHD, arXiv 1711.11585).

    VQGAN's, which VA-VAE and AlignTok use: ``scales: 1, padding: 1, norm: batch, loss: hinge``.
    """

    channels: int = Field(64, ge=1)
    """Channels of the first layer; they double with each layer up to eight times as many."""
    strided_layers: int = Field(3, ge=1)
    """Layers that halve the picture."""
    scales: int = Field(3, ge=1)
    """Networks; each sees the picture at half the size of the one before."""
    padding: Literal[1, 2] = 2
    """Pixels that each convolution (kernel 4) pads."""
    norm: Literal["local", "batch"] = "local"
    """``local``: statistics of groups of at most 8 pictures; ``batch``: of all that one process sees at
    once, so that several processes do not repeat one to the letter."""
    loss: Literal["least-squares", "hinge"] = "least-squares"


class EquivarianceConfig(Section):
    """Equivariance regularisation (EQ-VAE, arXiv 2502.09509; VFM-VAE, section 3.4, both its branches).

    Each step draws one transform for all pictures. With ``latent_probability`` the latent is resized and
    turned, and the decoder must give the picture resized and turned alike. Otherwise, with
    ``prior_probability``, the picture is resized before it is encoded.
    """

    latent_probability: float = Field(0.5, ge=0, le=1)
    latent_scales: list[float] = Field([0.25, 0.5, 0.75, 1.0], min_length=1)
    """Factors on the latent's side, one drawn at random."""
    quarter_turns: list[int] = Field([0, 1, 2, 3], min_length=1)
    """Turns by 90 degrees, one drawn at random."""
    prior_probability: float = Field(0.25, ge=0, le=1)
    """Probability, where the latent is left as it is."""
    prior_scales: list[float] = Field([0.25, 0.5, 0.75], min_length=1)
    """Factors on the picture's side, one drawn at random."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pictures are resized (with antialias; latents always bilinear without). The released code
    takes bicubic where the encoder is DINOv2, EVA-CLIP or Qwen."""

    @model_validator(mode="after")
    def _check(self) -> EquivarianceConfig:
        for name in ("latent_scales", "prior_scales"):
            if not all(0 < scale <= 1 for scale in getattr(self, name)):
                raise ValueError(f"{name} are above 0 and at most 1, not {getattr(self, name)}")
        if not all(0 <= turn <= 3 for turn in self.quarter_turns):
            raise ValueError(f"quarter_turns are 0, 1, 2 or 3, not {self.quarter_turns}")
        return self


class StageConfig(Section):
    """One stage of the training. All that differs between stages stands here."""

    name: str
    images: int = Field(gt=0)
    """Images to see in this stage; divided by ``batch_size`` and rounded down it gives the steps."""
    batch_size: int = Field(gt=0)
    """Images a step over all processes and accumulated parts."""
    generator_lr: float = Field(1e-4, gt=0)
    discriminator_lr: float = Field(1e-4, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.0, 0.99)
    """Adam's, for both networks."""
    schedule: Literal["constant", "cosine"] = "constant"
    """``cosine`` falls to a hundredth of the rate at the end of the stage."""
    warmup_steps: int = Field(0, ge=0)
    trainable: list[str] = ["*"]
    """Patterns of parameter names that this stage trains, such as ``blocks.*``; the frozen encoder
    is never among them."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of each network's gradient; a larger one is scaled down. None: as it comes."""
    equivariance: EquivarianceConfig | None = None
    """Equivariance regularisation; None: none."""
    begin: Literal["raw", "averaged"] = "raw"
    """Weights that the stage begins with: those that were trained, or their average."""
    average: Literal["continue", "restart"] = "continue"
    """``restart``: the average begins anew with the stage's first weights."""
    losses: LossConfig


class EngineConfig(Section):
    """The engine's settings; seed, precision, accumulation and the average's change what is learnt."""

    seed: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bfloat16 autocast where the processor has fast bfloat16, else float32."""
    accumulation: int = Field(1, ge=1)
    """Parts a step's batch is divided into, to save memory."""
    ema_half_life: int = Field(160_000, gt=0)
    """Images after which an old weight counts half in the average."""
    ema_ramp: float = Field(0.05, gt=0)
    """The half-life is at most this share of the images seen so far."""
    log_every: int = Field(50, gt=0)
    """Steps between log lines."""
    checkpoint_every: int = Field(1000, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep: int = Field(2, gt=0)
    """Newest checkpoints kept."""
    skip_not_finite: int = Field(0, ge=0)
    """Steps of a run whose loss or gradient may be infinite or not a number: their update is left out
    and counted. One more stops the run."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


class TrainingConfig(EngineConfig):
    """The engine's settings for a tokenizer."""

    ema_decay: float | None = Field(None, ge=0, lt=1)
    """Weight of the past in the average: at most this, and at most (1 + n) / (10 + n) in its n-th step
    (latent diffusion's). None: by ``ema_half_life`` and ``ema_ramp``, counted in images."""
    grid_every: int = Field(500, ge=0)
    """Steps between grids of reconstructions; 0: only at the end."""
    validate_every: int = Field(500, ge=0)
    """Steps between measurements on the held-out pictures; 0: only at the end."""
    validation_images: int = Field(256, gt=0)
    """At most this many held-out pictures are measured."""
    keep: int = Field(2, gt=0)
    """Newest checkpoints kept; the best one is kept besides."""
    best: Literal["psnr", "ssim", "l1", "none"] = "psnr"
    """Measurement on the held-out pictures by which a checkpoint is the best so far; with several
    held-out sets their mean."""
    statistics_images: int = Field(10_000, gt=0)
    """Images on which the latent's statistics are measured at the end."""
    bundle_encoder: bool = False
    """Copy the frozen encoder's weights into the final tokenizer's folder."""


def check_batch(name: str, images: int, batch_size: int, accumulation: int) -> None:
    """Raise a ValueError where a stage has not a single step, or a batch that does not divide."""
    if images < batch_size:
        raise ValueError(
            f"stage '{name}' has {images} images for a batch of {batch_size}, so "
            "not a single step; give more images or a smaller batch_size"
        )
    if batch_size % accumulation:
        raise ValueError(
            f"stage '{name}': batch_size {batch_size} is not a multiple of "
            f"training.accumulation {accumulation}"
        )
