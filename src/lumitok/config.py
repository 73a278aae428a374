"""The typed form of a recipe.

A recipe is YAML: it names a model, its data, its discriminator and the stages of its training.
Every key is a field below, with its meaning and its unit; an unknown key or a wrong value is a
:class:`~lumitok.errors.LumitokError` that names the key, the nearest right one and the file.

This module imports neither torch nor a model, so that the command line stays quick. It is long because
every key of a recipe stands here, in one place.
"""

from __future__ import annotations

import contextlib
import math
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from lumitok.errors import LumitokError, nearest

RECIPES = Path(__file__).parent / "recipes"


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values keep the type that is written here."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


# ------------------------------------------------------------------------------------------------
# Models


class EncoderConfig(Section):
    """A frozen vision foundation model and what is read from it."""

    name: str
    """A registered short name (``lumitok doctor`` lists them) or ``timm:NAME``."""
    layers: list[int] = [-1]
    """Layers to read: 0 the embedding with position, k the raw output of block k, -1 the end."""
    scale: float = Field(1.0, gt=0)
    """Side of the encoder's input divided by the side of the picture (2.0: 256 px seen at 512)."""
    weights: str | None = None
    """None: the registered weights; ``random``: none at all; otherwise a local file."""
    sha256: str | None = None
    """Hash the encoder's weights must have; written when a tokenizer is saved, checked when loaded."""
    timm_kwargs: dict[str, Any] = {}
    """Extra arguments for ``timm.create_model``, for example to make a tiny model in a test."""


class TokenizerConfig(Section):
    """What every tokenizer has."""

    type: str
    """The kind of tokenizer."""
    encoder: EncoderConfig
    """The frozen encoder."""
    image_size: int = Field(256, ge=32, multiple_of=32)
    """Side in pixels of the pictures it is trained on."""
    downsampling: Literal[8, 16] = 16
    """Picture side divided by latent side."""
    latent_channels: int = Field(32, ge=1)
    """Channels of the latent z."""
    vf_head: bool = True
    """Whether a 1x1 convolution from z to the encoder's width is kept for the VF loss."""
    initial_logvar: float = 0.0
    """Log-variance of the posterior before training. At 0, the paper's, the noise is larger than the
    signal and training spends its first images on turning it down; short runs start lower."""
    latents_mean: list[float] | None = None
    """Channel means of the latent, measured at the end of training."""
    latents_std: list[float] | None = None
    """Channel standard deviations (unbiased) of the latent."""
    latents_count: int | None = None
    """How many pictures the statistics were measured on."""

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        for name in ("latents_mean", "latents_std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.latent_channels:
                raise ValueError(
                    f"{name} has {len(value)} numbers for {self.latent_channels} latent channels"
                )
        return self


BLOCKS = 6  # Sizes below run over the distance from the last decoder block, the last block first.


class VFMVAEConfig(TokenizerConfig):
    """VFM-VAE (arXiv 2510.18457), Tables 9 and 10; the defaults are the paper's.

    Lists of six run over the distance of a decoder block from the last one, last block first; a
    decoder with fewer blocks (pictures under 256 px) uses the front of each list.
    """

    type: Literal["vfm-vae"] = "vfm-vae"
    encoder: EncoderConfig
    """The frozen encoder; the paper reads layers [0, 12, -1] of SigLIP2-Large at 512 px."""
    image_size: int = Field(256, ge=32, multiple_of=32)
    """Side in pixels of the pictures it is trained on; it sets the number of decoder blocks."""
    projection: Literal["several", "single", "convolution"] = "several"
    """``several``: each feature map has its own attention projection, then one fuses them (the
    released code); ``single``: the maps are concatenated and projected once (the paper's text);
    ``convolution``: 1x1 convolutions take the concatenated maps to z and z to Z (Table 3, row 2)."""
    projected_channels: list[int] = [64, 64, 64]
    """Channels of each projected feature map, one number a layer of the encoder; ``several`` alone
    projects them."""
    post_channels: int = Field(512, ge=1)
    """Channels of Z, the expanded latent that every decoder branch reads."""
    style_channels: int = Field(512, ge=1)
    """Channels of the global style w."""
    blocks: Literal["convnext", "stylegan"] = "convnext"
    """``convnext``: separable upsampling and modulated ConvNeXt layers; ``stylegan``: modulated 3x3
    convolutions, the first of which upsamples (Table 3, row 2)."""
    block_channels: list[int] = [128, 256, 512, 512, 512, 512]
    """Channels of each decoder block."""
    block_kernels: list[int] = [7, 7, 7, 7, 5, 5]
    """Kernel size of the depthwise convolutions; ``stylegan`` has none."""
    block_depths: list[int] = [5, 5, 7, 7, 7, 7]
    """Layers in each block: modulated ConvNeXt layers, or modulated 3x3 convolutions, an odd number: one
    that upsamples and residual pairs."""
    block_blurs: list[Literal[3, 5]] = [5, 5, 5, 3, 3, 3]
    """Size of the fixed blur after each separable upsampling: 3 or 5."""
    block_attention: list[int] = [0, 0, 0, 2, 2, 2]
    """Self-attention blocks at the end of each block."""
    block_latent_channels: list[int] = [0, 0, 128, 128, 256, 512]
    """Channels of the spatial branch given to each block; 0: the block does not see the latent."""
    attention_heads: int = Field(8, ge=1)
    """Heads of the decoder's self-attention; a head has block channels / heads channels."""
    layer_scale: float = Field(1e-5, gt=0)
    """Initial value of the factor on each residual of a block's layers."""
    legacy_noise: bool = False
    """The released weights' constant noise maps; only for importing them."""

    @model_validator(mode="after")
    def _check(self) -> VFMVAEConfig:
        if self.projection == "several" and len(self.projected_channels) != len(self.encoder.layers):
            raise ValueError(
                f"projected_channels has {len(self.projected_channels)} numbers for "
                f"{len(self.encoder.layers)} encoder layers; give one number a layer"
            )
        lists = [name for name in type(self).model_fields if name.startswith("block_")]
        for name in lists:
            value = getattr(self, name)
            if len(value) != BLOCKS:
                raise ValueError(f"{name} has {len(value)} numbers; give {BLOCKS}, last block first")
        self._check_blocks()
        if self.blocks == "stylegan":
            self._check_stylegan()
        return self

    def _check_blocks(self) -> None:
        count = block_count(self.image_size)
        if self.image_size % 2**count:
            lower = self.image_size // 2**count * 2**count
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {2**count}, which its {count} blocks "
                f"need; the nearest sizes are {lower} and {lower + 2**count}"
            )
        for kernel in self.block_kernels:
            if kernel < 1 or kernel % 2 == 0:
                raise ValueError(f"block_kernels are odd numbers, not {kernel}")
        seen = [channels > 0 for channels in self.block_latent_channels[:count]]
        if seen != sorted(seen) or not seen[-1]:
            raise ValueError(
                "block_latent_channels: the first block sees the latent, and no block after one that does not"
            )
        for distance in range(count):
            channels = self.block_channels[distance]
            if self.block_attention[distance] and channels % self.attention_heads:
                raise ValueError(
                    f"block_channels[{distance}] is {channels}, not a multiple of attention_heads, "
                    f"{self.attention_heads}"
                )

    def _check_stylegan(self) -> None:
        for depth in self.block_depths:
            if depth < 1 or depth % 2 == 0:
                raise ValueError(
                    f"with blocks: stylegan, block_depths are odd numbers, not {depth}: one convolution that "
                    "upsamples and residual pairs"
                )
        if self.legacy_noise:
            raise ValueError("legacy_noise is the released weights', whose blocks are convnext")


def block_count(image_size: int) -> int:
    """Blocks of VFM-VAE's decoder: 6 from 256 px, one less for each halving below."""
    return 6 + min(0, math.floor(math.log2(image_size / 256)))


class FrozenLDMConfig(TokenizerConfig):
    """The SD-VAE-style baseline of VFM-VAE (arXiv 2510.18457), Table 3; the defaults are the paper's.

    A frozen encoder, two convolutions on either side of the latent, and the decoder of latent diffusion
    (arXiv 2112.10752).
    """

    type: Literal["frozen-ldm"] = "frozen-ldm"
    encoder: EncoderConfig
    """The frozen encoder; its maps lie on the latent's grid. The paper reads the end of SigLIP2-Large
    at 256 px."""
    vf_head: bool = False
    """Whether a 1x1 convolution from z to the encoder's width is kept for the VF loss."""
    adapter_channels: int = Field(153, ge=1)
    """Channels between the two convolutions before sampling, and between the two after it. The paper
    does not give them; 153 comes nearest to its 43.0 M parameters."""
    decoder_channels: int = Field(128, ge=32, multiple_of=32)
    """Channels of the decoder at the picture's size."""
    decoder_multipliers: list[int] = [1, 1, 2, 2, 4]
    """Factor on ``decoder_channels`` at each level, the picture's size first; each further level has half
    the side."""
    decoder_blocks: int = Field(3, ge=1)
    """Residual blocks a level."""

    @model_validator(mode="after")
    def _check(self) -> FrozenLDMConfig:
        levels = int(math.log2(self.downsampling)) + 1
        if len(self.decoder_multipliers) != levels:
            raise ValueError(
                f"decoder_multipliers has {len(self.decoder_multipliers)} numbers; downsampling "
                f"{self.downsampling} needs {levels}"
            )
        if min(self.decoder_multipliers) < 1:
            raise ValueError(f"decoder_multipliers are 1 or more, not {min(self.decoder_multipliers)}")
        return self


def _model_type(model: Any) -> str:
    """The ``type`` of a model as it is read, or of one that is built already."""
    return str(model.get("type", "vfm-vae") if isinstance(model, dict) else getattr(model, "type", ""))


ModelConfig = Annotated[
    Annotated[VFMVAEConfig, Tag("vfm-vae")] | Annotated[FrozenLDMConfig, Tag("frozen-ldm")],
    Discriminator(_model_type),
]
"""Every kind of tokenizer a recipe can name, by ``type``."""


# ------------------------------------------------------------------------------------------------
# Data, losses, stages


class DataConfig(Section):
    """Pictures to train on and pictures held out."""

    train: str = ""
    """A folder of pictures, with or without class folders, or a zip of one."""
    validation: str | dict[str, str] | None = None
    """Pictures that are never trained on: another folder or zip, or several by name, measured apart."""
    holdout: int = Field(0, ge=0)
    """Without ``validation``: how many pictures of ``train`` to hold out, chosen by ``holdout_seed``."""
    holdout_seed: int = 0
    preparation: Literal["random-square", "center-crop"] = "random-square"
    """``random-square``: VFM-VAE's, a square of 0.5 to 1 times the short side at a random place,
    resized with Lanczos; ``center-crop``: ADM's centre crop."""
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
        return self


class LossConfig(Section):
    """Weights of the generator's losses; a loss of weight 0 is not built.

    The equations stand with each loss in ``lumitok.losses``.
    """

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
    """VF loss (cosine and distance matrix) between the projected latent and the encoder."""
    vf_adaptive: bool = True
    """Multiply ``vf`` by the ratio of gradient norms, reconstruction over VF."""
    vf_distance_margin: float = 0.0
    vf_cosine_margin: float = 0.0
    gan: float = Field(0.0, ge=0)
    """Adversarial loss (hinge) against ``discriminator``."""
    patchgan: float = Field(0.0, ge=0)
    """Adversarial loss (least squares) against ``patch_discriminator``."""
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
        return self

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
    """Side in pixels of what the encoder sees."""
    crop_probability: float = Field(0.5, ge=0, le=1)
    """Probability, a batch, of a random crop instead of a resize where the picture is larger."""
    augment: bool = True
    """Differentiable augmentation: color, translation, cutout."""


class PatchDiscriminatorConfig(Section):
    """PatchGAN on several scales (pix2pixHD, arXiv 1711.11585, as VFM-VAE uses it)."""

    channels: int = Field(64, ge=1)
    """Channels of the first layer; they double with each layer up to eight times as many."""
    strided_layers: int = Field(3, ge=1)
    """Layers that halve the picture."""
    scales: int = Field(3, ge=1)
    """Networks; each sees the picture at half the size of the one before."""


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
    losses: LossConfig


class TrainingConfig(Section):
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
    grid_every: int = Field(500, ge=0)
    """Steps between grids of reconstructions; 0: only at the end."""
    validate_every: int = Field(500, ge=0)
    """Steps between measurements on the held-out pictures; 0: only at the end."""
    validation_images: int = Field(256, gt=0)
    """At most this many held-out pictures are measured."""
    checkpoint_every: int = Field(1000, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep: int = Field(2, gt=0)
    """Newest checkpoints kept; the best one is kept besides."""
    best: Literal["psnr", "ssim", "l1", "none"] = "psnr"
    """Measurement on the held-out pictures by which a checkpoint is the best so far; with several
    held-out sets their mean."""
    skip_not_finite: int = Field(0, ge=0)
    """Steps of a run whose loss or gradient may be infinite or not a number: their update is left out
    and counted. One more stops the run."""
    statistics_images: int = Field(10_000, gt=0)
    """Images on which the latent's statistics are measured at the end."""
    bundle_encoder: bool = False
    """Copy the frozen encoder's weights into the final tokenizer's folder."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


class Recipe(Section):
    """A whole run."""

    name: str = ""
    """Name of the recipe, from its file."""
    about: str = ""
    """What it is for: one sentence for ``lumitok recipes``."""
    out: str = ""
    """Folder of the run; default ``runs/`` and the recipe's name."""
    start: str = ""
    """Run, checkpoint or tokenizer folder to begin with: its generator, average and discriminators are
    taken over, the optimizers start anew. Empty: from random weights."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    discriminator: DiscriminatorConfig | None = None
    patch_discriminator: PatchDiscriminatorConfig | None = None
    stages: list[StageConfig] = Field(min_length=1)
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
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
            if stage.images < stage.batch_size:
                raise ValueError(
                    f"stage '{stage.name}' has {stage.images} images for a batch of {stage.batch_size}, so "
                    "not a single step; give more images or a smaller batch_size"
                )
            if stage.batch_size % self.training.accumulation:
                raise ValueError(
                    f"stage '{stage.name}': batch_size {stage.batch_size} is not a multiple of "
                    f"training.accumulation {self.training.accumulation}"
                )
        return self


# ------------------------------------------------------------------------------------------------
# Reading


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, such as ``vfm-vae/demo``."""
    return sorted(p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a shipped recipe, or of a YAML file named by its path."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            beside = [str(p) for p in (*path.parent.glob("*.yaml"), *path.parent.glob("*.yml"))]
            raise LumitokError(f"there is no recipe file '{name}'{nearest(name, beside)}")
        return path
    names = recipe_names()
    if name not in names:
        raise LumitokError(f"there is no recipe '{name}'{nearest(name, names)} (`lumitok recipes` lists all)")
    return RECIPES / f"{name}.yaml"


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by name or path and apply ``key=value`` overrides.

    Args:
        name: a shipped recipe's name or the path of a YAML file.
        overrides: such as ``data.train=photos`` or ``stages.0.batch_size=16``; values are YAML.
    """
    path = recipe_path(name)
    tree = _read(path)
    tree.setdefault("name", path.stem if name.endswith((".yaml", ".yml")) else name)
    for override in overrides:
        _override(tree, override)
    return _validate(tree, source=str(name))


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML: every key, defaults included."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100, allow_unicode=True)
    return text


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe."""
    path.write_text(dump_recipe(recipe), encoding="utf-8")


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file over the recipe that its ``base`` names, or the recipes that its ``chain`` names."""
    path = path.resolve()
    if path in seen:
        raise LumitokError(f"recipe {path} is its own base: {' -> '.join(str(p) for p in (*seen, path))}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LumitokError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise LumitokError(f"{path} is not a recipe: it holds a {type(tree).__name__}, not keys and values")
    base, chain = tree.pop("base", None), tree.pop("chain", None)
    if base is not None and chain is not None:
        raise LumitokError(f"{path} has both 'base' and 'chain'; keep one of them")
    if chain is not None:
        return _chained(chain, tree, path, seen)
    if base is None:
        return tree
    merged: dict[str, Any] = _merge(_parent(base, path, seen), tree)
    return merged


def _parent(name: Any, path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Read a recipe that the one at ``path`` builds on."""
    if str(name).endswith((".yaml", ".yml")):
        name = path.parent / str(name)  # A file is named from where the recipe lies.
    parent = _read(recipe_path(str(name)), (*seen, path))
    for key in ("name", "out"):  # The child's own.
        parent.pop(key, None)
    return parent


def _chained(chain: Any, tree: dict[str, Any], path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Join recipes into one that runs through the stages of all in turn."""
    if not isinstance(chain, list) or not chain:
        raise LumitokError(f"{path}: 'chain' is a list of recipes, not {chain!r}")
    links = [_parent(name, path, seen) for name in chain]
    joined: dict[str, Any] = {}
    for link in links:
        joined = _merge(joined, link)
    joined["stages"] = [stage for link in links for stage in link.get("stages", [])]
    joined["start"] = links[0].get("start", "")  # The others start from the one before.
    merged: dict[str, Any] = _merge(joined, tree)
    return merged


def _merge(base: Any, change: Any) -> Any:
    """Lay ``change`` over ``base``: sections key by key; a section of numbers over a list, item by item."""
    if isinstance(base, dict) and isinstance(change, dict):
        if "type" in base and change.get("type", base["type"]) != base["type"]:
            return change  # A model of another type has other keys.
        return {**base, **{k: _merge(base[k], v) if k in base else v for k, v in change.items()}}
    if isinstance(base, list) and isinstance(change, dict):
        items = list(base)
        for key, value in change.items():
            place = _index(items, str(key), f"{key}: {value}")
            items[place] = _merge(items[place], value)
        return items
    return change


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise LumitokError(f"'{override}' is not key=value, for example data.train=photos")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text.
        with contextlib.suppress(ValueError):
            value = float(value) if value[:1].isdigit() else value
    node: Any = tree
    *path, last = key.split(".")
    for depth, step in enumerate(path):
        if isinstance(node, list):
            node = node[_index(node, step, override)]
        else:
            if node.get(step) is None:
                node[step] = {}
            node = node[step]
        if not isinstance(node, dict | list):
            raise LumitokError(f"'{override}': {'.'.join(path[: depth + 1])} has no keys below it")
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(items: list[Any], step: str, override: str) -> int:
    if not step.isdigit() or int(step) >= len(items):
        raise LumitokError(
            f"'{override}': '{step}' is not a place in a list of {len(items)} (0 to {len(items) - 1})"
        )
    return int(step)


def _validate(tree: dict[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise LumitokError(f"recipe {source}: {first_fault(error)}") from None


def first_fault(error: ValidationError, kind: type[Section] | None = None) -> str:
    """Say the first thing that is wrong in one sentence; a misspelt key before all else.

    Args:
        error: what pydantic found.
        kind: the section that was read; None: a whole recipe.
    """
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    where, known = _follow(first["loc"], kind or Recipe)
    if first["type"] == "extra_forbidden":
        return f"there is no key '{where}'{nearest(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"the key '{where}' is missing"
    if first["type"] == "union_tag_invalid":
        return _wrong_type(where, first)
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict | BaseModel) else f", not {first['input']!r}"
    return f"{where + ': ' if where else ''}{message[:1].lower() + message[1:]}{got}"


def _wrong_type(where: str, fault: Any) -> str:
    if not isinstance(fault["input"], dict):
        return f"{where}: input should be a section with keys and values, not {fault['input']!r}"
    wrong, known = fault["ctx"]["tag"], [tag.strip("' ") for tag in fault["ctx"]["expected_tags"].split(",")]
    return f"{where}.type: there is no '{wrong}', only {' and '.join(known)}{nearest(wrong, known)}"


def _follow(location: tuple[int | str, ...], kind: Any) -> tuple[str, list[str]]:
    """Where a fault lies as the recipe writes it, and the keys that are right beside its last step.

    Where a section may be of several types, pydantic names the chosen one as a step of its own.
    """
    steps: list[str] = []
    known: list[str] = []
    for step in location:
        sections = _sections_of(kind)
        chosen = [s for s in sections if "type" in s.model_fields and s.model_fields["type"].default == step]
        if len(sections) > 1 and chosen:
            kind = chosen[0]
            continue
        steps.append(str(step))
        if isinstance(step, str):
            fields = sections[0].model_fields if sections else {}
            known = list(fields)
            kind = fields[step].annotation if step in fields else None
    return ".".join(steps), known


def _sections_of(annotation: Any) -> list[type[Section]]:
    """Find the section classes inside an annotation such as ``list[StageConfig]`` or ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if typing.get_origin(annotation) in (list, tuple, typing.Union, types.UnionType, Annotated):
        return [found for part in typing.get_args(annotation) for found in _sections_of(part)]
    return []
