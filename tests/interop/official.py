"""Files of the official layouts with made-up weights: the parity fixtures' decoders, the rest random."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.config import VFMVAEConfig
from lumitok.interop.vfm_vae import our_names
from lumitok.interop.vfm_vae_settings import official_keys
from lumitok.tokenizers import VFMVAE
from tests.parity.fixtures import Fixture

WIDTH, DEPTH, HEADS, POSITIONS = 32, 2, 2, 1024  # The tiny tower: 512 px in patches of 16.
LAYERS = (0, 1, -1)
TIMM = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": 512}
NESTED = "vfm_encoder.encoder.vision_model.vision_model."


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def projection(into: int, out: int, seed: int) -> dict[str, Tensor]:
    """One official attention projection that compresses."""
    shapes = {
        **norm("norm1", into),
        **norm("norm2", out),
        **norm("norm3", into),
        "attn.qkv.weight": (3 * into, into),
        "attn.q_bias": (into,),
        "attn.v_bias": (into,),
        **linear("attn.proj", out, out),
        **linear("proj", out, into),
        **norm("mlp.norm", out),
        **linear("mlp.w0", 2 * out, out),
        **linear("mlp.w1", 2 * out, out),
        **linear("mlp.w2", out, 2 * out),
    }
    state = {**random_state(shapes, seed), "attn.zero_k_bias": torch.zeros(into)}
    return {f"blocks.0.{key}": value for key, value in state.items()}


def tower(seed: int = 7) -> dict[str, Tensor]:
    """A SigLIP vision tower as transformers stores it, without nesting."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (WIDTH, 3, 16, 16),
        "embeddings.patch_embedding.bias": (WIDTH,),
        "embeddings.position_embedding.weight": (POSITIONS, WIDTH),
        **norm("post_layernorm", WIDTH),
        "head.probe": (1, 1, WIDTH),
        "head.attention.in_proj_weight": (3 * WIDTH, WIDTH),
        "head.attention.in_proj_bias": (3 * WIDTH,),
        **linear("head.attention.out_proj", WIDTH, WIDTH),
        **norm("head.layernorm", WIDTH),
        **linear("head.mlp.fc1", 4 * WIDTH, WIDTH),
        **linear("head.mlp.fc2", WIDTH, 4 * WIDTH),
    }
    for i in range(DEPTH):
        at = f"encoder.layers.{i}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= linear(f"{at}self_attn.{name}", WIDTH, WIDTH)
        shapes |= norm(f"{at}layer_norm1", WIDTH) | norm(f"{at}layer_norm2", WIDTH)
        shapes |= linear(f"{at}mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{at}mlp.fc2", WIDTH, 4 * WIDTH)
    return random_state(shapes, seed)


def generator(fixture: Fixture, *, vf_head: bool = True) -> dict[str, Tensor]:
    """A whole official generator in the newer layout around a fixture's decoder."""
    state = {f"{NESTED}{key}": value for key, value in tower().items()}
    for i in range(3):
        made = projection(WIDTH, 8, seed=i)
        state |= {f"ldm_adapter.patch_quants.{i}.0.{key}": value for key, value in made.items()}
    state |= {f"ldm_adapter.final_quant.{k}": v for k, v in projection(3 * 8 * 4, 16, seed=3).items()}
    if vf_head:
        state |= random_state({"ldm_adapter.linear_proj.weight": (WIDTH, 8, 1, 1)}, 4)
    return state | fixture.weights


def older(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same generator with its blocks named by the side of their output."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"synthesis\.blocks\.(\d)", lambda m: f"synthesis.b{8 << int(m[1])}", key)
        key = re.sub(r"synthesis\.z_convs\.(\d)", lambda m: f"synthesis.z_convs.{8 << int(m[1])}", key)
        renamed[key] = value
    return renamed


def discriminators() -> dict[str, Tensor]:
    """An official discriminator of the last stage: heads on a tiny DINO, and a PatchGAN."""
    patch = Fixture("vfmvae_patchgan").weights
    return Fixture("vfmvae_disc_dino").weights | {f"patchgan_discriminator.{k}": v for k, v in patch.items()}


def checkpoint(path: Path, state: Mapping[str, Any], **others: Any) -> Path:
    """Write a file as the official training does; G differs from G_ema, D is empty unless it is given."""
    other = {k: v + 1 if isinstance(v, Tensor) else v for k, v in state.items()}
    content = {"G": other, "D": {}, "G_ema": dict(state)}
    torch.save({**content, "training_set_kwargs": {"resolution": 256, "path": "x"}, **others}, path)
    return path


def features(state: Mapping[str, Tensor], pictures: Tensor) -> list[Tensor]:
    """What transformers computes from pictures in [-1, 1] seen at twice their size: all hidden states, then
    the end behind the last norm. Maps (B, C, h, w)."""
    x = F.interpolate((pictures + 1) / 2, scale_factor=2, mode="bilinear", align_corners=False)
    stem = "embeddings.patch_embedding"
    x = F.conv2d((x - 0.5) / 0.5, state[f"{stem}.weight"], state[f"{stem}.bias"], stride=16)
    side = x.shape[-1]
    x = x.flatten(2).transpose(1, 2) + state["embeddings.position_embedding.weight"]

    def apply(kind: str, name: str, x: Tensor) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return (
            F.linear(x, weight, bias) if kind == "linear" else F.layer_norm(x, (WIDTH,), weight, bias, 1e-6)
        )

    found = [x]
    for i in range(DEPTH):
        at = f"encoder.layers.{i}"
        y = apply("norm", f"{at}.layer_norm1", x)
        q, k, v = (
            apply("linear", f"{at}.self_attn.{n}_proj", y).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for n in "qkv"
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(WIDTH / HEADS)).softmax(-1)
        x = x + apply("linear", f"{at}.self_attn.out_proj", (weights @ v).transpose(1, 2).flatten(2))
        y = apply("linear", f"{at}.mlp.fc1", apply("norm", f"{at}.layer_norm2", x))
        x = x + apply("linear", f"{at}.mlp.fc2", F.gelu(y, approximate="tanh"))
        found.append(x)
    found.append(apply("norm", "post_layernorm", x))
    return [y.transpose(1, 2).unflatten(2, (side, side)) for y in found]


def from_ours(tokenizer: VFMVAE, settings: VFMVAEConfig) -> dict[str, Tensor]:
    """The generator's state under official names and in official shapes, the encoder left out."""
    keys, ours = official_keys(settings), tokenizer.state_dict()
    names, state = our_names(keys), {}
    for key in keys:
        if key in names:
            value = ours[names[key]]
            if key.endswith(("pwconv1.weight", "torgb.weight")):
                value = value[..., None, None]
            elif key.endswith(("pwconv1.bias", "torgb.bias")) or re.search(r"conv(0|s1\.\d+)\.gamma$", key):
                value = value[None, :, None, None]
            elif key.endswith("gamma"):
                value = value[:, None, None]
        elif key.endswith("blur_weight"):
            module = tokenizer.get_submodule(
                names[key.replace("blur_weight", "norm.bias")].removesuffix(".norm.bias")
            )
            size = module.blur_kernel.shape[0]  # type: ignore[union-attr, index]
            taps = torch.tensor([1.0, 2, 1] if size == 3 else [1.0, 4, 6, 4, 1])
            kernel = torch.outer(taps, taps)
            value = (kernel / kernel.sum()).repeat(module.pointwise.out_channels // 4, 1, 1, 1)  # type: ignore[union-attr, operator]
        else:
            value = torch.zeros(settings.style_channels)
        state[key] = value
    return state
