"""The diffusion networks that a recipe can name, with every size of theirs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from lumitok.config.section import Section

SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "1p0B": (24, 1536, 24),
    "1p6B": (28, 1792, 28),
}
"""Depth, width and heads of each named size."""
SizeName = Literal["S", "B", "L", "XL", "1p0B", "1p6B"]


class ProjectorConfig(Section):
    """REPA's projector (arXiv 2410.06940, section 3.3): a block's tokens to a foundation encoder's width."""

    block: int = Field(8, ge=1)
    """The block whose output it reads, the first being 1; the paper's is 8 for L and XL, 4 for B."""
    hidden: int = Field(2048, ge=1)
    """Width of its two hidden layers."""
    channels: int = Field(768, ge=1)
    """Width of the encoder's tokens; 768 is DINOv2-Base's."""


class NetworkConfig(Section):
    """What every diffusion network has: a transformer over the patches of a latent."""

    type: str
    """The kind of network."""
    size: SizeName | None = None
    """A named size: it sets ``depth``, ``width`` and ``heads`` where they are not given."""
    in_channels: int = Field(32, ge=1)
    """Channels of the latent."""
    input_size: int = Field(16, ge=1)
    """Rows, and columns, of the latent."""
    patch: int = Field(1, ge=1)
    """Side of a patch, in positions of the latent; a patch is one token."""
    depth: int = Field(28, ge=1)
    """Blocks."""
    width: int = Field(1152, ge=4, multiple_of=4)
    """Channels of a token."""
    heads: int = Field(16, ge=1)
    """Attention heads; a head has width / heads channels."""
    classes: int = Field(1000, ge=0)
    """Classes it is conditioned on; 0: unconditional. The label ``classes`` stands for none of them."""
    projector: ProjectorConfig | None = None
    """A projector for REPA's alignment loss; sampling does not need it."""

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("size") in SIZES:
            sizes = dict(zip(("depth", "width", "heads"), SIZES[values["size"]], strict=True))
            return {**sizes, **values}
        return values

    @model_validator(mode="after")
    def _check_sizes(self) -> NetworkConfig:
        if self.input_size % self.patch:
            raise ValueError(f"input_size {self.input_size} is not a multiple of patch, {self.patch}")
        _check_heads("width", self.width, "heads", self.heads)
        if self.projector is not None and self.projector.block > self.depth:
            raise ValueError(
                f"projector.block is {self.projector.block}, but the network has {self.depth} blocks"
            )
        return self


def _check_heads(name: str, width: int, heads_name: str, heads: int) -> None:
    # Rotary positions turn pairs of channels, half of the pairs by the row and half by the column.
    if width % heads or width // heads % 4:
        raise ValueError(
            f"{name} {width} over {heads} {heads_name} must leave each head a multiple of 4 channels"
        )


class LightningDiTConfig(NetworkConfig):
    """LightningDiT (arXiv 2501.01423); the defaults are XL/1, the paper's."""

    type: Literal["lightningdit"] = "lightningdit"
    qk_norm: bool = False
    """Whether queries and keys are normalised in each head: safer in long training, worse in FID."""
    norm: Literal["rms", "layer"] = "rms"
    """``rms``: RMSNorm with weight; ``layer``: LayerNorm without. ``qk_norm`` is of the same kind."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """``swiglu``: gated, hidden width 2/3 of 4 ``width``; ``gelu``: DiT's, 4 ``width``."""
    rotary: bool = True
    """Whether attention turns queries and keys by their position; the fixed table is added in any case."""
    modulation_shift: bool = True
    """Whether the condition shifts a block's tokens too; False: it scales and gates alone (``wo_shift``)."""


class SiTConfig(NetworkConfig):
    """SiT (arXiv 2401.08740), with the additions of REPA and REG; the defaults are XL at patch 1."""

    type: Literal["sit"] = "sit"
    qk_norm: bool = False
    """Whether queries and keys pass a LayerNorm in each head, as VFM-VAE's REG does."""
    class_channels: int = Field(0, ge=0)
    """Channels of the encoder's class token that is diffused along with the latent (REG, arXiv
    2507.01467); 0: none. 768 is DINOv2-Base's."""


class DiTDHConfig(NetworkConfig):
    """DiT-DH (arXiv 2510.11690): a deep narrow backbone and a shallow wide head; the defaults are XL's."""

    type: Literal["dit-dh"] = "dit-dh"
    in_channels: int = Field(768, ge=1)
    """Channels of the latent; 768 is DINOv2-Base's feature map itself."""
    head_depth: int = Field(2, ge=1)
    """Blocks of the head."""
    head_width: int = Field(2048, ge=4, multiple_of=4)
    """Channels of a token in the head; no fewer than ``in_channels`` is what the paper argues for."""
    head_heads: int = Field(16, ge=1)
    """Attention heads of the head."""
    qk_norm: bool = False
    """Whether queries and keys are normalised in each head."""

    @model_validator(mode="after")
    def _check_head(self) -> DiTDHConfig:
        _check_heads("head_width", self.head_width, "head_heads", self.head_heads)
        return self


def _network_type(network: Any) -> str:
    """The ``type`` of a network as it is read, or of one that is built already."""
    if isinstance(network, dict):
        return str(network.get("type", "lightningdit"))
    return str(getattr(network, "type", ""))


AnyNetwork = Annotated[
    Annotated[LightningDiTConfig, Tag("lightningdit")]
    | Annotated[SiTConfig, Tag("sit")]
    | Annotated[DiTDHConfig, Tag("dit-dh")],
    Discriminator(_network_type),
]
"""Every kind of diffusion network a recipe can name, by ``type``."""
