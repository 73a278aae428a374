"""A tiny tokenizer and diffusion runs with tiny networks, saved as training leaves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from lumitok.config import DiffusionRecipe, ModelConfig, save_recipe
from lumitok.data.latents import LatentOrigin
from lumitok.diffusion import DiffusionNetwork, build_network
from lumitok.tokenizers import Tokenizer, build_tokenizer

CLASSES = ("cat", "dog", "owl")
TINY: dict[str, Any] = {"depth": 1, "width": 16, "heads": 2, "in_channels": 4, "input_size": 4, "classes": 3}


def save_tokenizer(folder: Path, seed: int = 0, **changes: Any) -> Tokenizer:
    """Save a tokenizer of 32 px whose latents are (4, 4, 4), with statistics."""
    model = {"type": "ldm", "image_size": 32, "downsampling": 8, "latent_channels": 4}
    model |= {"channels": 32, "multipliers": [1, 1, 1, 1], "encoder_blocks": 1, "decoder_blocks": 1}
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(TypeAdapter(ModelConfig).validate_python(model | changes)).eval()
    channels = tokenizer.settings.latent_channels
    tokenizer.set_latent_statistics(torch.full((channels,), 0.5), torch.full((channels,), 2.0), 10)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_run(
    folder: Path, tokenizer: Tokenizer, named: str = "", seed: int = 0, **changes: Any
) -> DiffusionNetwork:
    """Save a run: network, what it knows of its latents, and a recipe that names the tokenizer."""
    values = {
        "network": {"type": "lightningdit", **TINY, **changes},
        "data": {"latents": "store", "tokenizer": named},
        "stages": [{"name": "only", "images": 8, "batch_size": 8}],
        "samples": {"sampling": {"steps": 3}},
    }
    recipe = DiffusionRecipe.model_validate(values)
    torch.manual_seed(seed)
    network = build_network(recipe.network).eval()
    with torch.no_grad():  # As built, networks give zero.
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    network.save_pretrained(folder / "network")
    # Unlike the tokenizer's own, so that a test sees which were taken.
    spec = replace(tokenizer.latent_spec, mean=(0.25,) * 4, std=(1.5,) * 4)
    LatentOrigin(spec, CLASSES if recipe.network.classes else ()).save(folder / "network")
    save_recipe(recipe, folder / "recipe.yaml")
    return network
