"""Weights of the released VFM-VAE: the official generator's keys under our names.

Two layouts are known. The newer one numbers the decoder's blocks (``synthesis.blocks.3``,
``synthesis.z_convs.3``), the older one calls them by the side of their output in pixels
(``synthesis.b64``, ``synthesis.z_convs.64``); :func:`number_blocks` brings the older to the newer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from lumitok.errors import LumitokError

T = TypeVar("T")

_PROJECTION = [
    (r"blocks\.0\.attn\.proj\.", "attention.out."),
    (r"blocks\.0\.attn\.", "attention."),
    (r"blocks\.0\.norm1\.", "norm_attention."),
    (r"blocks\.0\.norm2\.", "norm_mlp."),
    (r"blocks\.0\.norm3\.", "norm_shortcut."),
    (r"blocks\.0\.proj\.", "shortcut."),
    (r"blocks\.0\.mlp\.", "mlp."),
]
_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^ldm_adapter\.patch_quants\.(\d+)\.0\.", r"projections.\1."),
    (r"^ldm_adapter\.final_quant\.", "fuse."),
    (r"^ldm_adapter\.post_quant\.", "expand."),
    (r"^ldm_adapter\.linear_proj\.", "vf_head."),
    *_PROJECTION,
    (r"^mapping\.mlp\.fc0\.", "mapping.first."),
    (r"^mapping\.mlp\.fc1\.", "mapping.second."),
    (r"^synthesis\.", ""),
    (r"\bseperate_upsample_conv\.", "upsample."),
    (r"\blast_upsample_conv\.", "upsample_sum."),
    (r"\bconv0\.", "layers.0."),
    (r"\bconvs1\.(\d+)\.", lambda m: f"layers.{int(m[1]) + 1}."),
    (r"\baffine_pw1\.proj\.", "style.affine."),
    (r"\bdwconv\.", "depthwise."),
    (r"\bpwconv1\.weight$", "expand"),
    (r"\bpwconv1\.bias$", "expand_bias"),
    (r"\bpwconv2\.", "reduce."),
    (r"\bnoise_const$", "noise"),
    (r"\btorgb\.affine\.proj\.", "to_rgb.style.affine."),
    (r"\btorgb\.", "to_rgb."),
    (r"\bself_attns\.(\d+)\.attn\.to_(\w+)\.", r"attention.\1.\2."),
    (r"\bself_attns\.(\d+)\.attn\.null_kv$", r"attention.\1.null"),
    (r"\bself_attns\.(\d+)\.attn\.norm\.", r"attention.\1.norm."),
    (r"\bself_attns\.(\d+)\.ff\.0\.", r"attention.\1.norm_mlp."),
    (r"\bself_attns\.(\d+)\.ff\.1\.", r"attention.\1.mlp_in."),
    (r"\bself_attns\.(\d+)\.ff\.3\.", r"attention.\1.mlp_out."),
]
ENCODER_PREFIX = "vfm_encoder."
"""Where the frozen encoder lies in the official generator."""
CONSTANTS = ("x_avg", "blur_weight", "zero_k_bias")
"""Left out: a running mean that is used at truncation alone, and what our modules build themselves."""
_DROPPED = re.compile(rf"({'|'.join(CONSTANTS)})$")
# Parameters that carry axes of length one there.
_FLAT = re.compile(r"(\.|^)(gamma|expand_bias|to_rgb\.bias)$")
_MATRIX = re.compile(r"(\.|^)(expand|to_rgb\.weight)$")
_SPATIAL = re.compile(r"^z_convs\.(\d+)\.(\d+)\.(\d+)\.(weight|bias)$")


def official_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the official generator's weights, the frozen encoder's left out.

    Keys that no rule knows keep their names, so that a strict load reports them.
    """
    return {name: reshaped(name, state[key]) for key, name in our_names(state).items()}


def our_names(keys: Iterable[str]) -> dict[str, str]:
    """Official key -> our name, without the frozen encoder's keys and the constants we build ourselves.

    All keys of a spatial branch must be there: where its convolutions stand says which is which.
    """
    kept = [key for key in keys if not _DROPPED.search(key) and not key.startswith(ENCODER_PREFIX)]
    first = _first_positions(kept)
    return {key: _rename(key, first) for key in kept}


def wrong_constants(state: Mapping[str, Tensor]) -> list[str]:
    """Name the constants that are not what our modules build in their place."""
    wrong = []
    for key, value in state.items():
        if key.endswith("zero_k_bias") and bool(value.any()):
            wrong.append(f"{key} is not zero")
        if key.endswith("blur_weight"):
            taps = torch.tensor([math.comb(value.shape[-1] - 1, k) for k in range(value.shape[-1])]).float()
            kernel = torch.outer(taps, taps) / taps.sum() ** 2
            if value.shape[-2:] != kernel.shape or not torch.allclose(value.float(), kernel, atol=1e-6):
                wrong.append(f"{key} is not the binomial blur")
    return wrong


def reshaped(name: str, value: Tensor) -> Tensor:
    """Take the axes of length one off a weight that has them there; ``name`` is ours."""
    if _MATRIX.search(name):
        return value.flatten(1) if value.ndim > 1 else value
    return value.flatten() if _FLAT.search(name) else value


def _rename(key: str, first: Mapping[str, int]) -> str:
    name = key
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return _spatial(name, first)


def _first_positions(keys: Iterable[str]) -> dict[str, int]:
    """Where the first convolution of each spatial branch stands: after an unshuffle at 1, else at 0."""
    found: dict[str, int] = {}
    for key in keys:
        match = _SPATIAL.match(key.removeprefix("synthesis."))
        if match:
            found[match[1]] = min(int(match[2]), found.get(match[1], 9))
    return found


def _spatial(name: str, first: Mapping[str, int]) -> str:
    match = _SPATIAL.match(name)
    if match is None:
        return name
    branch, group, item, kind = match.groups()
    parts = ("depthwise", "pointwise", "norm") if int(group) == first[branch] else ("last", "last_norm")
    return f"spatial.{branch}.{parts[int(item)]}.{kind}" if int(item) < len(parts) else name


# ------------------------------------------------------------------------------------------------
# The older layout

_BY_SIDE = {
    "blocks": re.compile(r"^synthesis\.b(\d+)\."),
    "z_convs": re.compile(r"^synthesis\.z_convs\.(\d+)\."),
}


def number_blocks(state: Mapping[str, T]) -> tuple[dict[str, T], int | None]:
    """Bring the older layout, which calls blocks by their side in pixels, to the newer.

    Returns:
        The state with its blocks numbered, and the side of the last block's output in pixels; None
        where they were numbered already.

    Raises:
        LumitokError: the file holds one weight under both names.
    """
    sides = {kind: _numbers(pattern, state) for kind, pattern in _BY_SIDE.items()}
    if min(sides["z_convs"], default=0) < 4:  # No block is that small: these are numbers already.
        sides["z_convs"] = set()
    first = min(sides["blocks"] or sides["z_convs"], default=0)
    renamed: dict[str, T] = {}
    for key, value in state.items():
        name = key
        for kind, pattern in _BY_SIDE.items():
            match = pattern.match(key)
            if match and int(match[1]) in sides[kind]:
                place = math.log2(int(match[1]) / first)
                # A side that is no power of two times the first is no block's: its key stays as it is.
                name = f"synthesis.{kind}.{place:.0f}.{key[match.end() :]}" if place.is_integer() else key
        if name in renamed:
            raise LumitokError(f"the file has '{name}' twice, once under the older name '{key}'")
        renamed[name] = value
    return renamed, max(sides["blocks"], default=None)


def _numbers(pattern: re.Pattern[str], keys: Iterable[str]) -> set[int]:
    return {int(match[1]) for match in map(pattern.match, keys) if match}
