"""The tokenizers that a recipe can name, with every size of theirs."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from lumitok.config.section import Section


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
    image_size: int = Field(256, ge=32, multiple_of=32)
    """Side in pixels of the pictures it is trained on."""
    downsampling: Literal[2, 4, 8, 16, 32] = 16
    """Picture side divided by latent side."""
    latent_channels: int = Field(32, ge=1)
    """Channels of the latent z."""
    vf_head: bool = False
    """Whether a 1x1 convolution from z to a foundation encoder's width is kept for the VF loss."""
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
    vf_head: bool = True
    """Whether a 1x1 convolution from z to the encoder's width is kept for the VF loss."""
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
        if not 4 <= self.downsampling <= 16:
            raise ValueError(f"VFM-VAE has downsampling 4, 8 or 16, not {self.downsampling}")
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


class LDMConfig(TokenizerConfig):
    """Encoder and decoder of latent diffusion (arXiv 2112.10752), both trained: VAE, VA-VAE, SD-VAE.

    The defaults are VA-VAE's f16d32 (arXiv 2501.01423); SD-VAE's f8d4 has multipliers [1, 2, 4, 4] and
    attention in the middle alone.
    """

    type: Literal["ldm"] = "ldm"
    vf_channels: int = Field(1024, ge=1)
    """Width of the foundation encoder that the VF loss compares with (``losses.vf_encoder``)."""
    channels: int = Field(128, ge=1)
    """Channels at the picture's size."""
    multipliers: list[int] = [1, 1, 2, 2, 4]
    """Factor on ``channels`` at each level, the picture's size first; each further level has half the
    side."""
    encoder_blocks: int = Field(2, ge=1)
    """Residual blocks a level of the encoder."""
    decoder_blocks: int = Field(3, ge=1)
    """Residual blocks a level of the decoder."""
    level_attention: bool | list[bool] = True
    """Whether attention follows each residual block: at the latent's size alone, or a bool a level, the
    picture's size first."""
    middle_attention: bool = True
    """Whether it stands between the two residual blocks in the middle, at the latent's size."""
    groups: int = Field(32, ge=1)
    """Groups of every group norm. A group of one channel forgets its mean: narrow networks want fewer."""
    latent_convolutions: bool = True
    """Whether a 1x1 convolution stands on either side of the latent (``quant_conv``, ``post_quant_conv``)."""

    @field_validator("level_attention")
    @classmethod
    def _shorten(cls, value: bool | list[bool]) -> bool | list[bool]:
        """Say the same network in one way, so that two configs of it are equal."""
        return value[-1] if isinstance(value, list) and value and not any(value[:-1]) else value

    @model_validator(mode="after")
    def _check(self) -> LDMConfig:
        _check_levels("multipliers", self.multipliers, self.downsampling)
        if isinstance(self.level_attention, list):
            _check_count("level_attention", len(self.level_attention), self.downsampling)
        _check_groups("groups", self.groups, "channels", self.channels)
        return self


def _check_groups(name: str, groups: int, channels_name: str, channels: int) -> None:
    if channels % groups:
        raise ValueError(f"{channels_name} is {channels}, not a multiple of {name}, {groups}")


def _check_levels(name: str, multipliers: list[int], downsampling: int) -> None:
    _check_count(name, len(multipliers), downsampling)
    if min(multipliers) < 1:
        raise ValueError(f"{name} are 1 or more, not {min(multipliers)}")


def _check_count(name: str, count: int, downsampling: int) -> None:
    """One entry a level; a level halves the side, but for the last."""
    levels = int(math.log2(downsampling)) + 1
    if count != levels:
        raise ValueError(f"{name} has {count} entries; downsampling {downsampling} needs {levels}")


class LoRAConfig(Section):
    """Low-rank updates of the encoder's linear layers (arXiv 2106.09685), in place of training them whole."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: list[str] = ["qkv", "proj", "fc1", "fc2"]
    """Last names of the linear layers that get an update; timm's attention and MLP layers."""


class AlignTokConfig(TokenizerConfig):
    """AlignTok (arXiv 2509.25162): a foundation encoder, an adapter, and a convolutional decoder.

    The latent is deterministic. The defaults are the paper's f16d32 on DINOv2-Large; also the variant of
    VA-VAE whose encoder is a vision transformer (``encoder.weights: random``).
    """

    type: Literal["aligntok"] = "aligntok"
    encoder: EncoderConfig
    """The foundation encoder that becomes the tokenizer's; its map lies on the latent's grid."""
    lora: LoRAConfig | None = None
    """Train low-rank updates of the encoder alone; None: the encoder's own weights."""
    adapter_channels: int = Field(64, ge=1)
    """Width between the adapter's two layers; 64 follows from the counts of the paper's Table 6."""
    adapter_activation: Literal["gelu", "silu", "relu"] = "gelu"
    """Between the adapter's two layers; the paper does not name it."""
    vf_channels: int = Field(1024, ge=1)
    """Width of the foundation encoder that the VF loss compares with, where there is one."""
    decoder: Literal["ldm", "hybrid"] = "ldm"
    """``ldm``: latent diffusion's, 41.4 M; ``hybrid``: a vision transformer before it (Table 1, 351 M)."""
    decoder_channels: int = Field(128, ge=32, multiple_of=32)
    """Channels of the decoder at the picture's size."""
    decoder_multipliers: list[int] = [1, 1, 2, 2, 4]
    """Factor on ``decoder_channels`` at each level, the picture's size first."""
    decoder_blocks: int = Field(3, ge=1)
    """Residual blocks a level."""
    decoder_groups: int = Field(32, ge=1)
    """Groups of the decoder's group norms. A group of one channel forgets its mean: a narrow decoder wants
    fewer."""
    hybrid_depth: int = Field(24, ge=1)
    """Blocks of the hybrid decoder's transformer."""
    hybrid_width: int = Field(1024, ge=64, multiple_of=64)
    """Width of the hybrid decoder's transformer; a head has 64 channels."""

    @model_validator(mode="after")
    def _check(self) -> AlignTokConfig:
        _check_levels("decoder_multipliers", self.decoder_multipliers, self.downsampling)
        _check_groups("decoder_groups", self.decoder_groups, "decoder_channels", self.decoder_channels)
        if len(self.encoder.layers) != 1:
            raise ValueError(f"AlignTok reads one layer of its encoder, not {len(self.encoder.layers)}")
        return self


class FrozenLDMConfig(TokenizerConfig):
    """The SD-VAE-style baseline of VFM-VAE (arXiv 2510.18457), Table 3; the defaults are the paper's.

    A frozen encoder, two convolutions on either side of the latent, and the decoder of latent diffusion
    (arXiv 2112.10752).
    """

    type: Literal["frozen-ldm"] = "frozen-ldm"
    encoder: EncoderConfig
    """The frozen encoder; its maps lie on the latent's grid. The paper reads the end of SigLIP2-Large
    at 256 px."""
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
    decoder_groups: int = Field(32, ge=1)
    """Groups of the decoder's group norms. A group of one channel forgets its mean: a narrow decoder wants
    fewer."""

    @model_validator(mode="after")
    def _check(self) -> FrozenLDMConfig:
        _check_levels("decoder_multipliers", self.decoder_multipliers, self.downsampling)
        _check_groups("decoder_groups", self.decoder_groups, "decoder_channels", self.decoder_channels)
        return self


class RAEConfig(TokenizerConfig):
    """RAE (arXiv 2510.11690): a frozen encoder's features as they are, and a ViT decoder.

    The latent is deterministic. The defaults are those of the released DINOv2-Base with its ViT-XL decoder.
    """

    type: Literal["rae"] = "rae"
    encoder: EncoderConfig
    """The frozen encoder, read before its last norm (``layers: [-2]``): RAE's norm has no weights. Its map
    lies on the latent's grid."""
    latent_channels: int = Field(768, ge=1)
    """Channels of the latent z: those of the encoder."""
    noise: float = Field(0.8, ge=0)
    """Largest standard deviation of the noise on z that the decoder is trained with, drawn uniformly from 0
    to this for each picture (the paper's tau); none but in training."""
    decoder_width: int = Field(1152, ge=4, multiple_of=4)
    """Width of the decoder's transformer."""
    decoder_depth: int = Field(28, ge=1)
    """Blocks of the decoder's transformer."""
    decoder_heads: int = Field(16, ge=1)
    """Heads of its attention."""
    decoder_mlp: int = Field(4096, ge=1)
    """Width between the two layers of each block's MLP."""

    @model_validator(mode="after")
    def _check(self) -> RAEConfig:
        if len(self.encoder.layers) != 1:
            raise ValueError(f"RAE reads one layer of its encoder, not {len(self.encoder.layers)}")
        if self.vf_head:
            raise ValueError("the latent of RAE is the encoder's map; a VF head has nothing to add to it")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width is {self.decoder_width}, not a multiple of decoder_heads, "
                f"{self.decoder_heads}"
            )
        return self


def _model_type(model: Any) -> str:
    """The ``type`` of a model as it is read, or of one that is built already."""
    return str(model.get("type", "vfm-vae") if isinstance(model, dict) else getattr(model, "type", ""))


ModelConfig = Annotated[
    Annotated[VFMVAEConfig, Tag("vfm-vae")]
    | Annotated[FrozenLDMConfig, Tag("frozen-ldm")]
    | Annotated[AlignTokConfig, Tag("aligntok")]
    | Annotated[LDMConfig, Tag("ldm")]
    | Annotated[RAEConfig, Tag("rae")],
    Discriminator(_model_type),
]
"""Every kind of tokenizer a recipe can name, by ``type``."""
