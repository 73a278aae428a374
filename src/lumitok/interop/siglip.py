"""SigLIP's vision tower: transformers' ``SiglipVisionModel`` under the names of timm's vision transformer.

The two compute the same function. transformers keeps queries, keys and values in three matrices, timm
stacks them in one; the attention pool at the end is the other way round.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Newer transformers nests the tower once less than 4.50 did.
_TOWER = re.compile(r"((?:\w+\.)*vision_model\.)(?:embeddings|encoder\.layers|post_layernorm)\..*")
_STEM = {
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
    "embeddings.position_embedding.weight": "pos_embed",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
}
_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_POOL = "head."  # Attention over the patch tokens, which VFM-VAE reads before it.
_IDS = "embeddings.position_ids"  # Older versions store the numbers 0, 1, 2, ... as well.


def nesting(keys: Iterable[str]) -> str | None:
    """Find what all keys of a SigLIP vision tower begin with; None where there is no tower."""
    matches = (_TOWER.fullmatch(key) for key in keys)
    found = Counter(match[1] for match in matches if match)
    return found.most_common(1)[0][0] if found else None


def timm_names(depth: int) -> dict[str, list[str]]:
    """Map timm's name to the key it is made of, or to the three that are stacked in it."""
    made = {ours: [theirs] for theirs, ours in _STEM.items()}
    for i in range(depth):
        for kind in ("weight", "bias"):
            for theirs, ours in _BLOCK.items():
                made[f"blocks.{i}.{ours}.{kind}"] = [f"encoder.layers.{i}.{theirs}.{kind}"]
            made[f"blocks.{i}.attn.qkv.{kind}"] = [f"encoder.layers.{i}.{name}.{kind}" for name in _QKV]
    return made


def wanted_shapes(timm_shapes: Mapping[str, torch.Size], depth: int) -> dict[str, torch.Size]:
    """Shapes by key that a tower without nesting must have to fit a timm model of these shapes."""
    wanted: dict[str, torch.Size] = {}
    for ours, theirs in timm_names(depth).items():
        shape = timm_shapes[ours]
        if ours == "pos_embed":  # (1, N, C) there, (N, C) here.
            shape = shape[1:]
        wanted |= dict.fromkeys(theirs, torch.Size((shape[0] // len(theirs), *shape[1:])))
    return wanted


def is_spare(key: str) -> bool:
    """Whether a key without nesting is known and not needed: the attention pool, the position numbers."""
    return key.startswith(_POOL) or key == _IDS


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a whole tower without nesting to timm's names, in float32."""
    depth = len({key.split(".")[2] for key in state if key.startswith("encoder.layers.")})
    made = {
        ours: torch.cat([state[key].float() for key in theirs]) for ours, theirs in timm_names(depth).items()
    }
    made["pos_embed"] = made["pos_embed"][None]
    return made
