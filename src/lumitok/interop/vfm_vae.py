"""Weights of the released VFM-VAE: the official generator's keys under our names."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

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
# Constants that our modules build themselves, and a running mean that is used at truncation alone.
_DROPPED = re.compile(r"(zero_k_bias|blur_weight|x_avg)$")
# Parameters that carry axes of length one there.
_FLAT = re.compile(r"(\.|^)(gamma|expand_bias|to_rgb\.bias)$")
_MATRIX = re.compile(r"(\.|^)(expand|to_rgb\.weight)$")
_SPATIAL = re.compile(r"^z_convs\.(\d+)\.(\d+)\.(\d+)\.(weight|bias)$")


def official_to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the official generator's weights, the frozen encoder's left out.

    Keys that no rule knows keep their names, so that a strict load reports them.
    """
    renamed: dict[str, Tensor] = {}
    first = _first_positions(state)
    for key, value in state.items():
        if _DROPPED.search(key) or key.startswith("vfm_encoder."):
            continue
        name = key
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        name = _spatial(name, first)
        if _MATRIX.search(name):
            value = value.flatten(1)
        elif _FLAT.search(name):
            value = value.flatten()
        renamed[name] = value
    return renamed


def _first_positions(state: dict[str, Tensor]) -> dict[str, int]:
    """Where the first convolution of each spatial branch stands: after an unshuffle at 1, else at 0."""
    found: dict[str, int] = {}
    for key in state:
        match = _SPATIAL.match(key.removeprefix("synthesis."))
        if match:
            found[match[1]] = min(int(match[2]), found.get(match[1], 9))
    return found


def _spatial(name: str, first: dict[str, int]) -> str:
    match = _SPATIAL.match(name)
    if match is None:
        return name
    branch, group, item, kind = match.groups()
    parts = ("depthwise", "pointwise", "norm") if int(group) == first[branch] else ("last", "last_norm")
    return f"spatial.{branch}.{parts[int(item)]}.{kind}"
