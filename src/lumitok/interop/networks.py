"""DiT's kind of network elsewhere: the official keys of our weights, and what is to be done to them.

LightningDiT's, SiT's, REPA's and REG's keys are of one family. Fixed tables of theirs are compared with
ours and not kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lumitok.config.networks import SIZES, LightningDiTConfig, NetworkConfig, SiTConfig
from lumitok.diffusion import build_network
from lumitok.diffusion.layers import rotary_table, sin_cos_table, time_waves
from lumitok.errors import LumitokError
from lumitok.interop.faults import compare
from lumitok.interop.ldm import Comparison
from lumitok.interop.witnesses import Witnesses

Kind = Literal["lightningdit", "sit", "repa", "reg"]
REVERSED: set[str] = {"repa", "reg"}
"""Those whose time runs from data at 0 to noise at 1, with the velocity noise - data."""
_NAMES = [
    (r"^patch_embedding\.", "x_embedder.proj."),
    (r"^time_embedding\.", "t_embedder."),
    (r"^conditioner\.table\.", "y_embedder.embedding_table."),
    (r"^class_embedding\.linear\.", "cls_projectors2."),
    (r"^class_embedding\.norm\.", "wg_norm."),
    (r"^class_layer\.", "final_layer.linear_cls."),
    (r"\.modulation\.", ".adaLN_modulation.1."),
    (r"^final_layer\.norm\.", "final_layer.norm_final."),
    (r"^projector\.", "projectors.0."),
]
TOLERANCE = 1e-5
"""How far a fixed table may lie from ours."""


def official_name(name: str) -> str:
    """Our name of a weight of LightningDiT or SiT -> the official one."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


# ------------------------------------------------------------------------------------------------
# What the shapes say


def witnesses(state: Mapping[str, Any]) -> Witnesses:
    """Ask the shapes of a state's tensors."""
    return Witnesses({key: value.shape for key, value in state.items() if isinstance(value, Tensor)})


def common_sizes(seen: Witnesses, heads: int | None, tokens_before: int = 0) -> dict[str, Any]:
    """Sizes that every network has, by the names of our config.

    Args:
        seen: the file's shapes.
        heads: what the user says; None: as the file or a named size says.
        tokens_before: tokens that the table of positions has before the patches'.

    Raises:
        LumitokError: the heads cannot be known, or the patches are no square.
    """
    width = seen.most(r"blocks\.\d+\.attn\.proj\.(weight|bias)", 0) or 0
    depth = seen.count(r"blocks\.(\d+)\.")
    patch = seen.most(r"x_embedder\.proj\.weight", 2) or 1
    patches = (seen.most(r"pos_embed", 1) or 0) - tokens_before
    side = math.isqrt(max(patches, 0))
    if side**2 != patches or not patches:
        raise LumitokError(f"the file has a table of {patches} positions, which is no square of patches")
    return {
        "in_channels": seen.most(r"x_embedder\.proj\.weight", 1),
        "input_size": side * patch,
        "patch": patch,
        "depth": depth,
        "width": width,
        "heads": heads or _heads(seen, depth, width),
        "classes": max((seen.most(r"y_embedder\.embedding_table\.weight", 0) or 1) - 1, 0),
    }


def _heads(seen: Witnesses, depth: int, width: int) -> int:
    head = seen.most(r"blocks\.\d+\.attn\.[qk]_norm\.weight", 0) or seen.most(r"feat_rope\.freqs_\w+", 1)
    if head:
        return width // head
    named = {(depth, width): heads for depth, width, heads in SIZES.values()}
    if (depth, width) not in named:
        raise LumitokError(
            f"no shape in the file says how many attention heads a network of depth {depth} and width "
            f"{width} has, and no size is called so; name their number (--heads)"
        )
    return named[depth, width]


# ------------------------------------------------------------------------------------------------
# Comparing and converting


def compare_network(state: Mapping[str, Any], settings: NetworkConfig, kind: Kind) -> Comparison:
    """Compare an official state with a network of these settings, key by key, and convert it.

    The time of REPA and REG is turned round here, once: see :func:`turn_time`. A learned variance, the
    second half of the output's channels, is dropped.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_network(settings).state_dict().items()}
    names = {official_name(name): name for name in shapes}
    assert len(names) == len(shapes), "no two of our names have the same official one"
    learned = has_learned_sigma(state, settings)
    wanted = {key: _official_shape(name, shapes[name], settings, learned) for key, name in names.items()}
    tables = _tables(settings)
    faults = compare(state, {**wanted, **{key: table.shape for key, table in tables.items()}})
    faults["not what lumitok builds"] = [
        key
        for key, table in tables.items()
        if isinstance(value := state.get(key), Tensor)
        and value.shape == table.shape
        and not torch.allclose(value.double(), table.double(), rtol=0, atol=TOLERANCE)
    ]
    if any(faults.values()):
        return Comparison(faults, {})
    ours = {name: state[key].float() for key, name in names.items()}
    ours["patch_embedding.weight"] = ours["patch_embedding.weight"].flatten(1)
    if learned:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            ours[name] = drop_sigma(ours[name], settings.in_channels)
    if isinstance(settings, LightningDiTConfig) and settings.rotary:
        _reorder_pairs(ours, settings)
    if kind in REVERSED:
        turn_time(ours)
    return Comparison(faults, {name: value.contiguous() for name, value in ours.items()})


def has_learned_sigma(state: Mapping[str, Any], settings: NetworkConfig) -> bool:
    """Whether the file's last layer has a second half of channels, for a variance."""
    rows = witnesses(state).most(r"final_layer\.linear\.(weight|bias)", 0)
    return rows == 2 * settings.in_channels * settings.patch**2


def _official_shape(name: str, shape: torch.Size, settings: NetworkConfig, learned: bool) -> torch.Size:
    if name == "patch_embedding.weight":  # A convolution there, a linear layer on patches here.
        return torch.Size((shape[0], settings.in_channels, settings.patch, settings.patch))
    if learned and name.startswith("final_layer.linear."):
        return torch.Size((2 * shape[0], *shape[1:]))
    return shape


def _tables(settings: NetworkConfig) -> dict[str, Tensor]:
    """The fixed tables that an official file has, as we would build them."""
    side = settings.input_size // settings.patch
    position = sin_cos_table(settings.width, side)
    if isinstance(settings, SiTConfig) and settings.class_channels:
        position = torch.cat([torch.zeros(1, settings.width), position])
    tables = {"pos_embed": position[None]}
    if isinstance(settings, LightningDiTConfig) and settings.rotary:
        cos, sin = rotary_table(settings.width // settings.heads, side)
        tables["feat_rope.freqs_cos"] = cos.repeat_interleave(2, dim=1)
        tables["feat_rope.freqs_sin"] = sin.repeat_interleave(2, dim=1)
    return tables


def drop_sigma(rows: Tensor, channels: int) -> Tensor:
    """Keep of each position's 2 C rows (patch^2 2 C, ...) the first C, the velocity's."""
    kept: Tensor = rows.unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1)
    return kept


def split_pairs(rows: Tensor, head_width: int) -> Tensor:
    """Bring each head's rows from neighbouring pairs to halves, which :func:`rotate` turns.

    Attention does not see the order of a head's channels, as long as queries and keys have the same.
    """
    paired: Tensor = rows.unflatten(0, (-1, head_width // 2, 2))
    return paired.transpose(1, 2).flatten(0, 2)


def _reorder_pairs(ours: dict[str, Tensor], settings: NetworkConfig) -> None:
    head = settings.width // settings.heads
    for name, value in ours.items():
        if re.search(r"\.attn\.qkv\.", name):
            q, k, v = value.chunk(3)
            ours[name] = torch.cat([split_pairs(q, head), split_pairs(k, head), v])
        elif re.search(r"\.attn\.[qk]_norm\.", name):
            ours[name] = split_pairs(value, head)


def turn_time(ours: dict[str, Tensor]) -> None:
    """Turn a network that goes from data at t = 0 to noise into ours, from noise at t = 0 to data.

    Its time is 1 - t. With f the frequencies, cos(f (1 - t)) = cos f cos ft + sin f sin ft and sin(f (1 - t))
    = sin f cos ft - cos f sin ft: the waves of 1 - t are a fixed linear map of those of t, which the first
    linear layer takes in. Its velocity is noise - data, so the last layers change sign.
    """
    name = "time_embedding.mlp.0.weight"
    weight = ours[name].double()
    cos, sin = time_waves(torch.ones(1), weight.shape[1]).double()[0].chunk(2)  # At t = 1 they are of f.
    of_cos, of_sin = weight.chunk(2, dim=1)
    turned = torch.cat([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], dim=1)
    ours[name] = turned.float()
    for name in ours:
        if name.startswith(("final_layer.linear.", "class_layer.")):
            ours[name] = -ours[name]
