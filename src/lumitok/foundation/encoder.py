"""A frozen vision foundation model, read at chosen layers (VFM-VAE, arXiv 2510.18457, section 3.1).

pixels (B, 3, H, W) in [0, 1] -> resize by ``scale`` -> the encoder's own mean and std -> feature maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.foundation.registry import Entry, find_entry
from lumitok.foundation.weights import find_weights, hash_weights, load_weights

TRANSFORMERS = ("timm.models.vision_transformer", "timm.models.eva", "timm.models.deit")
"""timm's modules whose models take any picture size through ``dynamic_img_size``."""


@dataclass(frozen=True)
class Features:
    """What an encoder says of a batch of pictures.

    Attributes:
        maps: one (B, C_l, h_l, w_l) for each requested layer, in the requested order.
        tokens: the class token (B, C_l) at the same layers; None where the encoder has none.
    """

    maps: list[Tensor]
    tokens: list[Tensor | None]


class FoundationEncoder(nn.Module):
    """A timm model that turns pixels into feature maps at the layers of its config; frozen unless asked.

    Frozen it stays in eval mode and no parameter asks for a gradient; gradients still flow to the pixels.
    Only the blocks down to the deepest requested layer are kept: ``state_dict``, parameter counts and
    ``weights_hash`` speak of those.

    Layers of a transformer with L blocks: 0 is what enters block 1 (patch and position embedding, and
    the norm before the blocks where the model has one), k the raw output of block k, -1 the end (after
    the final norm, but for EVA-CLIP), -2 the raw last block, -k the raw block L - k + 2. Of a
    convolutional pyramid with S stages: k is stage k, -1 the last, and there is no 0.

    Attributes:
        channels: C_l for each requested layer.
        strides: picture pixels per feature position, for each requested layer.
        patch: pixels that each side of the encoder's input must be a multiple of.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, *, load_weights: bool = True, trainable: bool = False) -> None:
        """Build the encoder and load its weights.

        Args:
            config: name, layers, scale and weights.
            load_weights: False leaves the weights random, whatever the config says; it also works on
                torch's meta device.
            trainable: the encoder belongs to the network it is part of: it is trained and saved with it.

        Raises:
            LumitokError: an unknown name, a layer out of range, weights that cannot be had or do not fit.
        """
        super().__init__()
        self.config = config
        self.name = config.name
        entry = find_entry(config.name)
        self.family = entry.family
        if not config.layers:
            raise LumitokError(
                f"encoder '{self.name}' has no layers to read; give at least one, such as [-1]"
            )
        self.model: Any = _create(entry, config)
        settings = self.model.pretrained_cfg
        full = {key: tensor.shape for key, tensor in self.model.state_dict().items()}
        self._is_transformer = _is_transformer(self.model)
        if self._is_transformer:
            self._cut_transformer()
        else:
            self._cut_pyramid()
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings["std"]).view(1, 3, 1, 1), persistent=False)
        if load_weights and config.weights != "random":
            _load(self.model, full, entry, config)
        self.trainable = trainable
        self.requires_grad_(trainable)
        self.eval()
        self._hash: tuple[Any, str] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of the pixels that they take."""
        parameter: Tensor = next(self.model.parameters())
        return parameter.dtype

    def train(self, mode: bool = True) -> FoundationEncoder:
        """Stay in eval mode where the encoder is frozen; batch norms always do.

        Their statistics are part of the pretrained weights, and the reference of a preservation loss has
        them as they were.
        """
        super().train(mode and self.trainable)
        for part in self.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    # --------------------------------------------------------------------------------------------
    # Sizes

    @property
    def multiple(self) -> int:
        """Picture pixels that a side must be a multiple of, so that it fits the patches."""
        # A scale such as 1.3333 stands for 4/3.
        return (Fraction(self.config.scale).limit_denominator(1000) / self.patch).denominator

    def check_size(self, height: int, width: int) -> None:
        """Check that pictures of this size fit the encoder's patches.

        Args:
            height: of the picture, in pixels, before ``scale``.
            width: likewise.

        Raises:
            LumitokError: naming the nearest sizes that fit.
        """
        self._check_sides(height, width, self.config.scale)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return (h_l, w_l) of each requested layer for a picture size in pixels."""
        self.check_size(height, width)
        rows, columns = (round(side * self.config.scale) for side in (height, width))
        return [(rows // reduction, columns // reduction) for reduction in self._reductions]

    def _check_sides(self, height: int, width: int, scale: float) -> None:
        wrong = []
        for what, side in (("height", height), ("width", width)):
            if not _fits(side, scale, self.patch):
                wrong.append(f"the nearest {what}s that fit are {_nearest_sides(side, scale, self.patch)}")
        if wrong:
            seen = "" if scale == 1 else f", seen at {scale:g} times that size,"
            raise LumitokError(
                f"pictures of {height} x {width} pixels (height x width){seen} do not fit encoder "
                f"'{self.name}', whose input sides are multiples of {self.patch}: {'; '.join(wrong)}"
            )

    # --------------------------------------------------------------------------------------------
    # Pixels to features

    def forward(self, pixels: Tensor, *, scaled: bool = True) -> Features:
        """Read the features of a batch of pictures.

        Args:
            pixels: (B, 3, H, W), floating point, in [0, 1].
            scaled: resize by the config's scale first; False: they have the encoder's input size already.

        Raises:
            LumitokError: pixels of another form, or of a size that does not fit.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise LumitokError(
                f"encoder '{self.name}' wants floating-point pixels (B, 3, H, W) in [0, 1], "
                f"not {pixels.dtype} of shape {tuple(pixels.shape)}"
            )
        height, width = pixels.shape[-2:]
        scale = self.config.scale if scaled else 1.0
        self._check_sides(height, width, scale)
        # At least float32: with antialias, torch resizes nothing narrower on a CPU.
        x = self._resize(pixels.to(torch.promote_types(self.dtype, torch.float32)), scale)
        x = ((x - self.mean) / self.std).to(self.dtype)
        return self._read_transformer(x) if self._is_transformer else self._read_pyramid(x)

    def _resize(self, pixels: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return pixels
        height, width = pixels.shape[-2:]
        return F.interpolate(
            pixels,
            size=(round(height * scale), round(width * scale)),
            mode=self.family.interpolation,
            align_corners=False,
            antialias=scale < 1 and self.family.antialias,
        )

    # --------------------------------------------------------------------------------------------
    # Transformers

    def _cut_transformer(self) -> None:
        """Resolve the layers, and drop the blocks and heads that none of them needs."""
        model, layers = self.model, self.config.layers
        depth = len(model.blocks)
        for layer in layers:
            if not -depth - 1 <= layer <= depth:
                raise LumitokError(
                    f"encoder '{self.name}' has {depth} blocks: its layers go from 0 (the embedding) to "
                    f"{depth}, or from {-depth - 1} (block 1) to -1 (the end); not {layer}"
                )
        blocks = [layer if layer >= 0 else depth if layer == -1 else depth + layer + 2 for layer in layers]
        normed = [layer == -1 and self.family.final_norm for layer in layers]
        self._taps = list(zip(blocks, normed, strict=True))
        model.blocks = model.blocks[: max(blocks)]
        if not any(normed):
            model.norm = nn.Identity()
        model.attn_pool = None
        model.fc_norm, model.head = nn.Identity(), nn.Identity()
        self.patch = int(model.patch_embed.patch_size[0])
        self.channels = [int(model.embed_dim)] * len(layers)
        self._reductions = [self.patch] * len(layers)
        self.strides = [self.patch / self.config.scale] * len(layers)

    def _read_transformer(self, x: Tensor) -> Features:
        model = self.model
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        rope: Tensor | None = None
        if isinstance(model, Eva):
            x, rope = model._pos_embed(model.patch_embed(x))
        else:
            x = model.patch_drop(model._pos_embed(model.patch_embed(x)))
        x = model.norm_pre(x)
        mixed = rope is not None and getattr(model, "rope_mixed", False)
        taken = {0: x}
        for k, block in enumerate(model.blocks, start=1):
            x = block(x) if rope is None else block(x, rope=rope[k - 1] if mixed else rope)
            taken[k] = x
        maps: list[Tensor] = []
        tokens: list[Tensor | None] = []
        for k, normed in self._taps:
            y = model.norm(taken[k]) if normed else taken[k]
            patches = y[:, model.num_prefix_tokens :]
            maps.append(patches.transpose(1, 2).reshape(y.shape[0], y.shape[2], *grid))
            tokens.append(y[:, 0] if model.cls_token is not None else None)
        return Features(maps, tokens)

    # --------------------------------------------------------------------------------------------
    # Convolutional pyramids

    def _cut_pyramid(self) -> None:
        """Resolve the stages, and drop those that none of the layers needs."""
        model, layers = self.model, self.config.layers
        stages = list(getattr(model, "feature_info", []))
        reductions = [int(stage["reduction"]) for stage in stages]
        readable = hasattr(model, "prune_intermediate_layers") and len(set(reductions)) > 1
        if not readable or isinstance(model, VisionTransformer) or model.pretrained_cfg["fixed_input_size"]:
            raise LumitokError(
                f"encoder '{self.name}' is neither a plain vision transformer nor a pyramid that timm can "
                "read stage by stage at any picture size; choose another"
            )
        for layer in layers:
            if layer == 0 or not -len(stages) <= layer <= len(stages):
                why = "a convolutional pyramid has no embedding; " if layer == 0 else ""
                raise LumitokError(
                    f"encoder '{self.name}' cannot be read at layer {layer}: {why}its stages go from 1 to "
                    f"{len(stages)}, or from {-len(stages)} to -1 (the last)"
                )
        taken = [layer - 1 if layer > 0 else len(stages) + layer for layer in layers]
        self._stages = sorted(set(taken))
        self._order = [self._stages.index(stage) for stage in taken]
        model.prune_intermediate_layers(self._stages, prune_norm=True, prune_head=True)
        self.patch = reductions[max(taken)]
        self.channels = [int(stages[stage]["num_chs"]) for stage in taken]
        self._reductions = [reductions[stage] for stage in taken]
        self.strides = [reduction / self.config.scale for reduction in self._reductions]

    def _read_pyramid(self, x: Tensor) -> Features:
        maps = self.model.forward_intermediates(
            x, indices=self._stages, stop_early=True, intermediates_only=True
        )
        return Features([maps[i] for i in self._order], [None] * len(self._order))

    # --------------------------------------------------------------------------------------------

    def weights_hash(self) -> str:
        """SHA-256 of the kept weights: names, shapes, dtypes and bytes, sorted by name.

        It speaks of the blocks in use alone, so encoders read at other depths differ. The result is kept
        until a weight changes.
        """
        state = self.state_dict()
        if any(tensor.is_meta for tensor in state.values()):
            raise LumitokError(f"encoder '{self.name}' stands on the meta device: it has no weights to hash")
        key = [(name, tensor.data_ptr(), tensor.dtype, tensor._version) for name, tensor in state.items()]
        if self._hash is None or self._hash[0] != key:
            self._hash = (key, hash_weights(state.items()))
        return self._hash[1]


def frozen_prefixes(module: nn.Module) -> tuple[str, ...]:
    """Prefixes, such as ``encoder.``, of the names in ``module`` that belong to frozen encoders."""
    return tuple(f"{name}." for name in frozen_encoders(module))


def frozen_encoders(module: nn.Module) -> dict[str, FoundationEncoder]:
    """The frozen encoders inside a module, by their names in it."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, FoundationEncoder) and not part.trainable
    }


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state without its frozen encoders, which are named in a recipe or a config."""
    frozen = frozen_prefixes(module)
    return {name: t for name, t in module.state_dict().items() if not name.startswith(frozen)}


def _is_transformer(model: nn.Module) -> bool:
    # Not the hybrids: a convolutional stem in the place of the patch embedding knows no picture size.
    return isinstance(model, VisionTransformer | Eva) and isinstance(model.patch_embed, PatchEmbed)


def _create(entry: Entry, config: EncoderConfig) -> Any:
    """Build the timm model with random weights, for pictures of any size where it can."""
    reserved = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "features_only"}
    taken = sorted(reserved & config.timm_kwargs.keys())
    if taken:
        raise LumitokError(
            f"timm_kwargs of encoder '{config.name}' cannot set {taken[0]}; use `weights` instead"
        )
    kwargs = dict(config.timm_kwargs)
    if timm.models.model_entrypoint(entry.timm_name.split(".")[0]).__module__ in TRANSFORMERS:
        kwargs.setdefault("dynamic_img_size", True)
    try:
        return timm.create_model(entry.timm_name, pretrained=False, **kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise LumitokError(
            f"timm cannot build encoder '{config.name}' with timm_kwargs {config.timm_kwargs}: {error}"
        ) from error


def _load(model: nn.Module, full: dict[str, torch.Size], entry: Entry, config: EncoderConfig) -> None:
    path = find_weights(entry, config.name, config.weights)
    load_weights(model, full, path, config.name)


def _fits(side: int, scale: float, patch: int) -> bool:
    # A twentieth of a pixel lets a scale such as 1.3333 stand for 4/3.
    seen = round(side * scale)
    return seen > 0 and seen % patch == 0 and abs(side * scale - seen) < 0.05


def _nearest_sides(side: int, scale: float, patch: int) -> str:
    """The nearest lower and upper picture side in pixels that fits, in words."""
    reach = int(64 * patch / scale) + 1
    lower = next((n for n in range(side - 1, max(0, side - reach), -1) if _fits(n, scale, patch)), None)
    upper = next((n for n in range(max(side, 0) + 1, max(side, 0) + reach) if _fits(n, scale, patch)), None)
    found = [str(n) for n in (lower, upper) if n is not None]
    return " and ".join(found) or f"none within {reach} pixels; choose another scale than {scale:g}"
