"""Every shipped recipe: it reads, its model is built, and it takes a step at a tiny size."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lumitok.config import RECIPES, Recipe, load_any, load_recipe, recipe_names
from lumitok.evaluation.curves import read_history
from lumitok.tokenizers import build_tokenizer
from lumitok.training import train

SIDE = 64
TOKENIZERS = [name for name in recipe_names() if isinstance(load_any(name), Recipe)]


class MadeUpLPIPS(nn.Module):
    """Stands in for LPIPS, whose 528 MB of weights no test has; its own tests stand in tests/losses."""

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return (image - target).square().mean(dim=(1, 2, 3))


def tiny(encoder: dict[str, Any]) -> dict[str, Any]:
    """The same layers of an encoder of the same make, random and as narrow as it goes."""
    if encoder["name"].startswith("efficientnet"):
        return encoder | {"name": "timm:test_efficientnet", "weights": "random", "sha256": None}
    depth = max(1, *encoder["layers"])
    patch = 16 if encoder["scale"].is_integer() else 14  # Patches of 14 px have scales such as 1.75.
    shape = {"img_size": 32, "patch_size": patch, "embed_dim": 16, "depth": depth, "num_heads": 2}
    return encoder | {"name": "timm:vit_tiny_patch16_224", "weights": "random", "timm_kwargs": shape}


def shrink(recipe: Recipe, pictures: Path, out: Path) -> Recipe:
    """One step of two pictures of 64 px with every part of the recipe in it."""
    tree = recipe.model_dump()
    model = tree["model"]
    model |= {"image_size": SIDE, "latent_channels": 4}
    if "encoder" in model:
        model["encoder"] = tiny(model["encoder"])
    if model["type"] == "frozen-ldm":
        model |= {"adapter_channels": 8, "decoder_channels": 32}
    elif model["type"] == "ldm":
        ones = [1] * len(model["multipliers"])
        model |= {"channels": 32, "multipliers": ones, "encoder_blocks": 1, "decoder_blocks": 1}
        model |= {"vf_channels": 16}
    elif model["type"] == "aligntok":
        ones = [1] * len(model["decoder_multipliers"])
        model |= {"decoder_channels": 32, "decoder_multipliers": ones, "decoder_blocks": 1}
        model |= {"hybrid_depth": 1, "hybrid_width": 64, "vf_channels": 16}
    elif model["type"] == "rae":
        model |= {"latent_channels": 16, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
        model |= {"decoder_mlp": 32}
    else:
        model |= {
            "projected_channels": [8] * len(model["encoder"]["layers"]),
            "post_channels": 16,
            "style_channels": 16,
            "block_channels": [8, 8, 16, 16, 16, 16],
            "block_depths": [1 if model["blocks"] == "convnext" else 3] * 6,
            "block_latent_channels": [8 if channels else 0 for channels in model["block_latent_channels"]],
        }
    if tree["discriminator"] is not None:
        tree["discriminator"] |= {"encoder": tiny(tree["discriminator"]["encoder"]), "input_size": 32}
    for stage in tree["stages"]:
        stage |= {"images": 2, "batch_size": 2}
        stage["losses"]["gan_from"] = 0
        if any(name.startswith("blocks.") for name in stage["trainable"]):  # The tiny decoder has fewer.
            stage["trainable"] = ["blocks.3.*"]
        if stage["equivariance"] is not None:  # And its grids are not cut to a quarter.
            stage["equivariance"] |= {"latent_scales": [0.5, 1.0], "prior_scales": [0.5]}
        for key in ("feature_distance_encoder", "vf_encoder"):
            if stage["losses"][key] is not None:
                stage["losses"][key] = tiny(stage["losses"][key])
                if key == "vf_encoder" and stage["losses"][key]["name"] == "timm:test_efficientnet":
                    model["vf_channels"] = 48  # Its channels are those of its layer, not ours to choose.
    tree["data"] |= {"train": str(pictures), "validation": str(pictures), "workers": 0, "min_side": 0}
    tree["data"]["holdout"] = 0
    tree["training"] |= {"accumulation": 1, "tracker": "none", "precision": "fp32"}
    tree |= {"out": str(out), "init": ""}
    return Recipe.model_validate(tree)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_there_are_recipes_and_each_says_what_it_is_for() -> None:
    assert {"vfm-vae/demo", "vfm-vae/imagenet256/1-strong-alignment"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_any(name)
        assert recipe.name == name
        assert 20 < len(recipe.about) < 120, name
        assert (RECIPES / f"{name}.yaml").read_text().startswith("#"), name


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_recipe_is_built_at_its_own_size(name: str) -> None:
    with torch.device("meta"):
        tokenizer = build_tokenizer(load_recipe(name).model, load_weights=False)
        size = tokenizer.config.image_size
        assert tokenizer(torch.empty(1, 3, size, size)).sample.shape == (1, 3, size, size)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_recipe_takes_a_step_at_a_tiny_size(
    name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumitok.training.objective.LPIPS", MadeUpLPIPS)
    recipe = load_recipe(name)
    run = train(shrink(recipe, pictures, tmp_path / "run"))
    values = read_history(run / "history.jsonl")[0]["values"]
    losses = recipe.stages[0].losses
    for term in ("lpips", "vf", "gan", "patchgan", "multi_resolution_l1"):
        assert (term in values) == (getattr(losses, term) > 0), term


# The paper's Tables 8 to 10 and the released configurations: what differs between the four stages.
STAGES = {
    "1-strong-alignment": (
        20_000_000,
        1e-4,
        {"l1": 1, "lpips": 10, "multi_resolution_l1": 0.1, "kl": 1e-6, "vf": 5},
    ),
    "2-weak-alignment": (20_000_000, 1e-4, {"l1": 1, "lpips": 10, "kl": 1e-6, "vf": 1}),
    "3-ssim": (1_000_000, 5e-5, {"l1": 1, "lpips": 2, "ssim": 1}),
    "4-patchgan": (3_000_000, 5e-5, {"patchgan": 1, "feature_matching": 10}),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_papers_stages_have_the_papers_numbers(name: str) -> None:
    images, rate, weights = STAGES[name]
    (stage,) = load_recipe(f"vfm-vae/imagenet256/{name}").stages
    assert (stage.images, stage.batch_size) == (images, 512)
    assert (stage.generator_lr, stage.discriminator_lr, stage.betas) == (rate, rate, (0.0, 0.99))
    keys = ["l1", "lpips", "ssim", "multi_resolution_l1", "kl", "vf", "gan", "patchgan", "feature_matching"]
    keys += ["feature_distance"]
    assert {k: getattr(stage.losses, k) for k in keys if getattr(stage.losses, k)} == {**weights, "gan": 1}
    assert stage.losses.vf_adaptive
    assert (stage.losses.vf_distance_margin, stage.losses.vf_cosine_margin) == (0, 0)
    assert (stage.equivariance is None) == (name == "4-patchgan")
    assert stage.losses.multi_resolution_until == (5_000_000 if name == "1-strong-alignment" else None)


def test_all_four_in_one_are_the_four() -> None:
    four = [load_recipe(f"vfm-vae/imagenet256/{name}") for name in STAGES]
    joined = load_recipe("vfm-vae/imagenet256/all")
    assert joined.stages == [stage for recipe in four for stage in recipe.stages]
    assert joined.init == four[0].init == ""
    for before, after in itertools.pairwise(four):
        assert after.init == f"runs/{before.name}"
        assert after.model == before.model == joined.model
        assert after.training == before.training == joined.training
        assert after.discriminator == before.discriminator == joined.discriminator
    assert joined.patch_discriminator == four[-1].patch_discriminator
