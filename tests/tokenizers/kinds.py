"""Every kind of tokenizer with networks so small that each runs in milliseconds."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from lumitok.config import ModelConfig

VIT: dict[str, Any] = {
    "name": "timm:vit_tiny_patch16_224",
    "layers": [-1],
    "weights": "random",
    "timm_kwargs": {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2},
}
VIT_14 = VIT | {"scale": 0.875, "timm_kwargs": {**VIT["timm_kwargs"], "img_size": 28, "patch_size": 14}}
CNN = {"name": "timm:test_efficientnet", "layers": [2, 4, 5], "weights": "random"}
LDM = {"decoder_channels": 32, "decoder_multipliers": [1, 1, 1, 1, 2], "decoder_blocks": 1}
KINDS: dict[str, dict[str, Any]] = {
    "vfm-vae": {},
    "vfm-vae, legacy noise": {"legacy_noise": True},
    "vfm-vae, stylegan": {"blocks": "stylegan", "projection": "convolution", "block_attention": [0] * 6},
    # A latent's place is 8 px, the decoder's grid 16: an odd number of places must be padded.
    "vfm-vae, f8": {"image_size": 64, "downsampling": 8},
    # Its coarsest map has 32 px a place, more than the decoder's grid of 16 px asks for.
    "vfm-vae, pyramid": {"image_size": 64, "encoder": CNN, "projected_channels": [4, 8, 8]},
    "frozen-ldm": {"type": "frozen-ldm", "encoder": VIT, "adapter_channels": 8, **LDM},
    "aligntok": {"type": "aligntok", "encoder": VIT_14, **LDM},
    "aligntok, low-rank": {"type": "aligntok", "encoder": VIT_14, "lora": {"rank": 2, "alpha": 4}, **LDM},
    "aligntok, hybrid": {
        "type": "aligntok",
        "encoder": VIT,
        "decoder": "hybrid",
        "hybrid_depth": 1,
        "hybrid_width": 64,
        **LDM,
    },
    "ldm": {"type": "ldm", "channels": 32, "multipliers": [1, 1, 1, 1, 2], "encoder_blocks": 1},
    "ldm, f8": {"type": "ldm", "downsampling": 8, "channels": 32, "multipliers": [1, 1, 1, 2]},
    "rae": {
        "type": "rae",
        "encoder": VIT_14 | {"layers": [-2], "timm_kwargs": {**VIT_14["timm_kwargs"], "embed_dim": 4}},
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "decoder_mlp": 16,
    },
}
FROZEN = ("vfm-vae", "frozen-ldm", "rae")
"""One of each kind whose foundation encoder is frozen; the others have none, or train it."""
OTHERS = ("aligntok", "aligntok, low-rank", "aligntok, hybrid", "ldm")


def settings(kind: str, tiny_recipe: dict[str, Any]) -> Any:
    """The kind's typed config; 4 latent channels, pictures of 32 or 64 px."""
    changes = KINDS[kind]
    own = {"image_size": 32, "latent_channels": 4}
    config = (own if "type" in changes else tiny_recipe["model"]) | changes
    return TypeAdapter(ModelConfig).validate_python(config)
