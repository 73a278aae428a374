"""The diffusion networks' recipes: what the papers say, and that each is built and trains at a tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumitok.config import (
    RECIPES,
    DiffusionRecipe,
    load_any,
    load_diffusion_recipe,
    load_recipe,
    recipe_names,
)
from lumitok.diffusion.base import DiffusionNetwork, build_network
from lumitok.errors import LumitokError
from lumitok.training import train_diffusion
from tests.training.stores import make_store

NAMES = [name for name in recipe_names() if isinstance(load_any(name), DiffusionRecipe)]
EPOCH = 1_280_000


@pytest.mark.parametrize(
    ("name", "epochs", "qk_norm"),
    [
        ("lightningdit/imagenet256/xl-64-epochs", 64, False),
        ("lightningdit/imagenet256/xl-64-epochs-qk-norm", 64, True),
        ("lightningdit/imagenet256/xl-80-epochs", 80, True),
        ("lightningdit/imagenet256/xl-560-epochs", 560, True),
        ("lightningdit/imagenet256/xl-800-epochs", 800, False),
        ("lightningdit/imagenet256/xl-800-epochs-qk-norm", 800, True),
        ("reg/imagenet256/xl-64-epochs", 64, True),
        ("reg/imagenet256/xl-80-epochs", 80, True),
        ("reg/imagenet256/xl-480-epochs", 480, True),
        ("reg/imagenet256/xl-640-epochs", 640, True),
        ("repa/imagenet256/xl-80-epochs", 80, False),
    ],
)
def test_a_recipe_sees_as_many_epochs_as_its_name_says(name: str, epochs: int, qk_norm: bool) -> None:
    recipe = load_diffusion_recipe(name)
    assert sum(stage.images for stage in recipe.stages) == epochs * EPOCH
    assert getattr(recipe.network, "qk_norm", None) is qk_norm


@pytest.mark.parametrize("name", NAMES)
def test_each_network_is_built_at_its_own_size(name: str) -> None:
    recipe = load_diffusion_recipe(name)
    with torch.device("meta"):
        network = build_network(recipe.network)
    x = torch.empty(2, *network.latent_shape, device="meta")
    token = torch.empty(2, network.class_channels, device="meta") if network.class_channels else None
    labels = torch.zeros(2, dtype=torch.long, device="meta") if network.null_label else None
    output = network.to("meta")(x, torch.empty(2, device="meta"), labels, class_token=token)
    assert output.velocity.shape == x.shape
    # VFM-VAE's Table 1 counts 675 M, and 685 M with REG, its projector included.
    projector = 0 if network.projector is None else sum(p.numel() for p in network.projector.parameters())
    count = sum(p.numel() for p in network.parameters())
    if "/xl-" in name:
        wanted = 685e6 if network.class_channels else 675e6 + projector
        assert count == pytest.approx(wanted, rel=0.002)


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_takes_a_step_at_a_tiny_size(name: str, tmp_path: Path) -> None:
    recipe = load_diffusion_recipe(name)
    tree = recipe.model_dump()
    regs = bool(getattr(recipe.network, "class_channels", 0))
    tree["network"] |= {"depth": 2, "width": 16, "heads": 2, "in_channels": 4, "input_size": 2}
    if recipe.network.classes:
        tree["network"]["classes"] = 3
    if recipe.network.projector is not None:
        tree["network"]["projector"] = {"block": 1, "hidden": 8, "channels": 32}
    if regs:
        tree["network"]["class_channels"] = 32
    small = {
        "weights": "random",
        "timm_kwargs": {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 28},
    }
    (tmp_path / "pictures").mkdir()
    for index in range(4):
        noise = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{index}.png")
    for stage in tree["stages"]:
        stage |= {"images": 4, "batch_size": 4, "warmup_steps": 0}
        if stage["losses"]["alignment_encoder"] is not None:
            stage["losses"]["alignment_encoder"] |= small
    kind = "moments" if recipe.network.type == "sit" else "samples"
    make_store(tmp_path / "store", count=4, side=2, kind=kind, flip=recipe.data.flip)
    tree["data"] |= {"latents": str(tmp_path / "store"), "pictures": str(tmp_path / "pictures"), "workers": 0}
    tree["training"] |= {"precision": "fp32", "tracker": "none"}
    run = train_diffusion(DiffusionRecipe.model_validate(tree | {"out": str(tmp_path / "run")}))
    assert DiffusionNetwork.from_pretrained(run).latent_shape == (4, 2, 2)


def test_each_file_begins_with_what_it_is_for() -> None:
    for name in NAMES:
        text = " ".join((RECIPES / f"{name}.yaml").read_text().replace("#", " ").split())
        assert f"lumitok train {name} " in text, name
        if "imagenet256" in name:
            assert "GPU-hours" in text, name
            assert "FID of 50,000" in text, name


def test_each_kind_of_recipe_is_refused_where_the_other_is_wanted() -> None:
    with pytest.raises(LumitokError, match="trains a tokenizer, and a diffusion network's is needed"):
        load_diffusion_recipe("vfm-vae/demo")
    with pytest.raises(LumitokError, match="trains a diffusion network, and a tokenizer's is needed"):
        load_recipe("lightningdit/cpu")
