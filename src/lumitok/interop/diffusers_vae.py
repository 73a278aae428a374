"""diffusers' ``AutoencoderKL``: its folder read, its config as ours, its weights under today's names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from lumitok.config import LDMConfig, Section, first_fault
from lumitok.errors import LumitokError, some
from lumitok.interop.vfm_vae_file import read_file

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Names of the weights in a folder, the better one first; each may be sharded, with an index beside it."""
_INDEX = ".index.json"
_IDLE = {"force_upcast", "_class_name", "_diffusers_version", "_name_or_path"}
# Before diffusers 0.17 an attention's layers were called otherwise.
_OLD = re.compile(r"^(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
Finite = Annotated[float, Field(allow_inf_nan=False)]
Above0 = Annotated[float, Field(allow_inf_nan=False, gt=0)]


class DiffusersConfig(Section):
    """``config.json`` of an ``AutoencoderKL``: diffusers' keys and defaults, bounded to what lumitok has."""

    model_config = ConfigDict(extra="allow")

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    act_fn: Literal["silu", "swish"] = "silu"
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    down_block_types: list[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]]
    up_block_types: list[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]]
    block_out_channels: list[Annotated[int, Field(ge=1)]]
    layers_per_block: int = Field(1, ge=1)
    latent_channels: int = Field(4, ge=1)
    sample_size: int | list[int] = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: Above0 = 0.18215
    shift_factor: Finite | None = None
    latents_mean: list[Finite] | None = None
    latents_std: list[Above0] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        if not levels == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError("block_out_channels, down_block_types and up_block_types have one entry a level")
        if any(width % channels[0] for width in channels):
            raise ValueError(f"block_out_channels are whole multiples of their first, not {channels}")
        if self.attention != [kind.startswith("Attn") for kind in reversed(self.up_block_types)]:
            raise ValueError("lumitok has attention at the same sizes in encoder and decoder")
        if self.use_quant_conv != self.use_post_quant_conv:
            raise ValueError("lumitok has both of use_quant_conv and use_post_quant_conv, or neither")
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean and latents_std come together")
        if self.latents_mean is not None and self.shift_factor:
            raise ValueError("latents_mean and shift_factor both shift the latent; one of them is right")
        return self

    @property
    def attention(self) -> list[bool]:
        """Whether each level has attention, the picture's size first."""
        return [kind.startswith("Attn") for kind in self.down_block_types]

    def unread(self) -> list[str]:
        """Keys that lumitok knows nothing of."""
        return sorted(set(self.model_extra or {}) - _IDLE)


@dataclass(frozen=True)
class DiffusersVAE:
    """A folder's config and weights, and the files that those were in."""

    config: DiffusersConfig
    state: dict[str, Any]
    files: list[Path]


def open_vae(path: Path) -> DiffusersVAE:
    """Read a folder of an ``AutoencoderKL``, one of a pipeline that has it in ``vae/``, or a weights file.

    Nothing in the files is executed.

    Args:
        path: the folder; or a file of weights, such as a variant's, with ``config.json`` beside it.

    Raises:
        LumitokError: a file is missing or damaged, or the config is of another model or of one that
            lumitok does not have.
    """
    if not path.exists():
        raise LumitokError(f"there is no folder or file '{path}'; give an AutoencoderKL that diffusers saved")
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and not (folder / CONFIG).is_file() and (folder / "vae" / CONFIG).is_file():
        folder = folder / "vae"
    if not (folder / CONFIG).is_file():
        raise LumitokError(f"there is no {CONFIG} in '{folder}', so this is no model that diffusers saved")
    config = read_config(folder / CONFIG)
    files = _files(folder) if path.is_dir() else [path]
    state: dict[str, Any] = {}
    for file in files:
        part = read_file(file, "state_dict")
        twice = state.keys() & part.keys()
        if twice:
            raise LumitokError(f"'{file}' holds keys of another part again: {some(sorted(twice), 3)}")
        state |= part
    return DiffusersVAE(config, current_names(state, str(folder)), files)


def read_config(file: Path) -> DiffusersConfig:
    """Read ``config.json``; a LumitokError says what in it lumitok does not have."""
    content = _read_json(file)
    kind = content.get("_class_name")
    if kind != "AutoencoderKL":
        raise LumitokError(f"'{file}' describes a {kind}; lumitok imports diffusers' AutoencoderKL")
    try:
        return DiffusersConfig.model_validate(content)
    except ValidationError as error:
        fault = first_fault(error, DiffusersConfig)
        raise LumitokError(f"'{file}' is of an AutoencoderKL that lumitok does not have: {fault}") from None


def settings_of(config: DiffusersConfig, image_size: int | None = None) -> LDMConfig:
    """Turn the config into ours.

    A diffusion network there gets (z - m) s, with ``shift_factor`` m and ``scaling_factor`` s; ours gets
    (z - mean) / std by channel. So mean = m and std = 1 / s, the same for every channel; with
    ``latents_mean`` and ``latents_std`` in the config mean is the former, std the latter over s. None
    of these is measured here, so there is no count of pictures.

    Args:
        config: diffusers' config.
        image_size: side of the pictures in pixels; None: its ``sample_size``.

    Raises:
        LumitokError: no tokenizer of ours has these sizes.
    """
    sample, channels = config.sample_size, config.block_out_channels
    side = sample if isinstance(sample, int) else max(sample, default=0)
    mean, std = config.latents_mean, config.latents_std
    if mean is None or std is None:
        mean = [config.shift_factor or 0.0] * config.latent_channels
        std = [1.0] * config.latent_channels
    try:
        return LDMConfig(
            image_size=image_size or side,
            downsampling=2 ** (len(channels) - 1),
            latent_channels=config.latent_channels,
            channels=channels[0],
            multipliers=[width // channels[0] for width in channels],
            encoder_blocks=config.layers_per_block,
            decoder_blocks=config.layers_per_block + 1,
            level_attention=config.attention,
            middle_attention=config.mid_block_add_attention,
            groups=config.norm_num_groups,
            latent_convolutions=config.use_quant_conv,
            latents_mean=mean,
            latents_std=[deviation / config.scaling_factor for deviation in std],
        )
    except ValidationError as error:
        fault = first_fault(error, LDMConfig)
        hint = "; name the side of its pictures (--image-size)" if fault.startswith("image_size") else ""
        raise LumitokError(f"lumitok has no autoencoder of this config's sizes: {fault}{hint}") from None


def current_names(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Give an attention's layers the names that diffusers has had since 0.17."""
    renamed: dict[str, Any] = {}
    for key, value in state.items():
        match = _OLD.match(str(key))
        name = f"{match[1]}.{_NEW[match[2]]}.{match[3]}" if match else str(key)
        if name in renamed:
            raise LumitokError(f"'{source}' has '{name}' twice, once under its older name")
        renamed[name] = value
    return renamed


def _files(folder: Path) -> list[Path]:
    """The files of a folder's weights: one, or all that an index names."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}{_INDEX}").is_file():
            return _shards(folder / f"{name}{_INDEX}")
    others = sorted(p.name for kind in ("*.safetensors", "*.bin") for p in folder.glob(kind))
    hint = f"; name one of its files in place of the folder: {some(others, 5)}" if others else ""
    raise LumitokError(f"'{folder}' has no {' or '.join(WEIGHTS)}{hint}")


def _shards(index: Path) -> list[Path]:
    parts = _read_json(index).get("weight_map")
    names = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
    if not names:
        raise LumitokError(f"'{index}' names no files of weights")
    for name in names:
        # An index is a stranger's: it must not name files elsewhere.
        if Path(name).name != name or not (index.parent / name).is_file():
            raise LumitokError(f"'{index}' names the part '{name}', which does not lie beside it")
    return [index.parent / name for name in names]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LumitokError(f"'{file}' is damaged: {error}") from None
    if not isinstance(content, dict):
        raise LumitokError(f"'{file}' is damaged: it holds a {type(content).__name__}, not keys and values")
    return content
