"""AlignTok (arXiv 2509.25162): a vision foundation model becomes the encoder of a tokenizer.

pixels -> foundation encoder -> two-layer adapter -> z -> convolutional decoder -> pixels

The latent is deterministic. Three stages make it (section 3): the adapter and the decoder learn on the
frozen encoder; then everything, held near where the first stage left z; then the decoder alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lumitok.config import AlignTokConfig, LoRAConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers.autoencoder import Autoencoder, check_grids, pixels_of, weight_of
from lumitok.tokenizers.ldm import LDMDecoder
from lumitok.tokenizers.posterior import PointMass

HEAD_WIDTH = 64
"""Channels of an attention head of the hybrid decoder."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}


class Adapter(nn.Module):
    """A: two linear layers at every position, from the encoder's width to the latent's channels."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, activation: str) -> None:
        super().__init__()
        self.first = nn.Linear(in_channels, inner)
        self.activation = _ACTIVATIONS[activation]()
        self.last = nn.Linear(inner, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, Z, h, w)."""
        y: Tensor = self.last(self.activation(self.first(features.movedim(1, -1))))
        return y.movedim(-1, 1)


class HybridDecoder(nn.Module):
    """A vision transformer on the latent's grid, then latent diffusion's decoder (Table 1, GigaTok's order).

    z -> linear -> transformer with a fixed sine-cosine position -> norm -> :class:`LDMDecoder`. How the two
    join is not published; read this way it has 348.3 M parameters of the paper's 351 M.
    """

    def __init__(self, settings: AlignTokConfig) -> None:
        super().__init__()
        width = settings.hybrid_width
        self.embed = nn.Linear(settings.latent_channels, width)
        self.blocks = nn.Sequential(
            *(Block(width, width // HEAD_WIDTH, qkv_bias=True) for _ in range(settings.hybrid_depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.convolutional = _ldm_decoder(settings, width)

    @property
    def conv_out(self) -> nn.Conv2d:
        """The convolution that gives the picture."""
        return self.convolutional.conv_out

    def forward(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, 3, H, W)."""
        rows, columns = z.shape[-2:]
        tokens = self.embed(z.flatten(2).transpose(1, 2))  # (B, h w, width)
        tokens = tokens + sine_cosine_position(rows, columns, tokens.shape[-1]).to(tokens)
        seen = self.norm(self.blocks(tokens)).transpose(1, 2).unflatten(2, (rows, columns))
        picture: Tensor = self.convolutional(seen)
        return picture


class AlignTok(Autoencoder):
    """The tokenizer of AlignTok; ``AlignTokConfig`` says what its sizes mean.

    Its foundation encoder is trained and saved with the rest. ``features`` and ``adapter`` are what the
    second stage's preservation loss holds near their beginning.
    """

    Settings: ClassVar[type[AlignTokConfig]] = AlignTokConfig
    encoding_parts: ClassVar[tuple[str, ...]] = ("encoder", "adapter")
    trains_encoder: ClassVar[bool] = True
    settings: AlignTokConfig
    encoder: FoundationEncoder

    def __init__(self, settings: AlignTokConfig, encoder: FoundationEncoder) -> None:
        super().__init__(settings, encoder)
        check_grids(settings, encoder, "AlignTok")
        if settings.lora is not None:
            _add_lora(encoder, settings.lora)
        self.adapter = Adapter(
            encoder.channels[0],
            settings.adapter_channels,
            settings.latent_channels,
            settings.adapter_activation,
        )
        self.vf_head = self.make_vf_head(settings.vf_channels)
        if settings.decoder == "hybrid":
            self.decoder: HybridDecoder | LDMDecoder = HybridDecoder(settings)
        else:
            self.decoder = _ldm_decoder(settings, settings.latent_channels)

    @property
    def size_multiple(self) -> int:
        """Pixels that a side must be a multiple of."""
        return int(self.settings.downsampling)

    def balance_parameter(self) -> nn.Parameter:
        """The adapter's last layer, the last that z passes through (tokenizers.md 10 says why)."""
        return weight_of(self.adapter.last)

    def features_parameter(self) -> nn.Parameter:
        """The last matrix of the encoder that is trained: what its map, before the adapter, comes from."""
        trained = [p for p in self.encoder.parameters() if p.ndim > 1 and p.requires_grad]
        return trained[-1] if trained else next(self.encoder.parameters())

    def last_parameter(self) -> nn.Parameter:
        """The weight of the decoder's last convolution."""
        return weight_of(self.decoder.conv_out)

    def features(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1] that fit -> the encoder's map (B, C, h, w)."""
        (features,) = self.encoder(pixels_of(x, self.encoder)).maps
        assert isinstance(features, Tensor)
        return features

    def posterior(self, x: Tensor) -> tuple[PointMass, Tensor | None]:
        """Pictures in [-1, 1] that fit -> z, all of the distribution at one point, and the encoder's map."""
        features = self.features(x)
        z: Tensor = self.adapter(features)
        return PointMass(z.float()), features

    def images(self, z: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w), raw -> the one picture (B, 3, H, W)."""
        image: Tensor = self.decoder(z.to(self.dtype))
        return [image.float()]


def sine_cosine_position(rows: int, columns: int, width: int) -> Tensor:
    """Fixed embedding of a grid's positions (rows * columns, width): half for the row, half for the column.

    Frequencies 10000^(-2 i / (width / 2)), sines before cosines (arXiv 2111.06377's, as usual for ViTs).
    """
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    halves = []
    for length in (rows, columns):
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        halves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    down, across = halves
    both = [down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)]
    return torch.cat(both, dim=-1).reshape(rows * columns, width).float()


def _ldm_decoder(settings: AlignTokConfig, in_channels: int) -> LDMDecoder:
    return LDMDecoder(
        in_channels,
        settings.decoder_channels,
        tuple(settings.decoder_multipliers),
        settings.decoder_blocks,
        groups=settings.decoder_groups,
    )


def _add_lora(encoder: FoundationEncoder, lora: LoRAConfig) -> None:
    """Give the encoder's linear layers low-rank updates; their own weights then stand still."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise LumitokError("model.lora needs the package peft: pip install 'lumitok[lora]'") from None
    config: Any = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets
    )
    try:
        # The attention and MLP layers alone: the patch embedding's projection has a name like theirs.
        inject_adapter_in_model(config, getattr(encoder.model, "blocks", encoder.model))
    except ValueError as error:
        raise LumitokError(f"model.lora.targets: {error}") from None
