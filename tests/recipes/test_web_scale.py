"""AlignTok's web-scale recipes: the settings of the paper's appendix A, and what differs from ImageNet's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lumitok.config import Recipe, load_recipe
from lumitok.tokenizers import build_tokenizer
from lumitok.training.mixed_aspect import training_sizes

STAGES = {
    "1-latent-alignment": (300_000, ["adapter.*", "decoder.*"], 0),
    "2-perceptual-alignment": (100_000, ["*"], 3),
    "3-decoder-refinement": (50_000, ["decoder.*"], 0),
}


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_has_the_papers_numbers(name: str) -> None:
    steps, trainable, preservation = STAGES[name]
    recipe = load_recipe(f"aligntok/web-scale/{name}")
    (stage,) = recipe.stages
    assert (stage.images / stage.batch_size, stage.batch_size) == (steps, 256)
    assert (stage.generator_lr, stage.discriminator_lr) == (1e-4, 1e-4)
    assert (stage.trainable, stage.losses.preservation) == (trainable, preservation)
    gan_from = 5000 if name == "1-latent-alignment" else 0
    assert stage.losses.gan_from == gan_from * 256
    assert recipe.model.encoder.name == "dinov2-large-registers"
    assert (recipe.data.preparation, recipe.data.buckets, recipe.model.image_size) == (
        "keep-aspect",
        None,
        256,
    )


def differences(ours: Any, theirs: Any, where: str = "") -> set[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return set().union(*(differences(ours[k], theirs[k], f"{where}.{k}") for k in ours))
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = zip(ours, theirs, strict=True)
        return set().union(*(differences(a, b, where) for a, b in pairs)) if ours else set()
    return set() if ours == theirs else {where.removeprefix(".")}


@pytest.mark.parametrize("name", STAGES)
def test_all_else_is_as_on_imagenet(name: str) -> None:
    ours, theirs = (
        load_recipe(f"aligntok/{kind}/{name}").model_dump() for kind in ("web-scale", "imagenet256")
    )
    wanted = {"name", "about", "model.encoder.name", "data.preparation", "stages.images", "stages.batch_size"}
    wanted |= {
        "1-latent-alignment": {"stages.losses.gan_from"},
        "2-perceptual-alignment": {
            "init", "stages.generator_lr", "stages.discriminator_lr", "stages.losses.preservation",
        },
        "3-decoder-refinement": {"init"},
    }[name]  # fmt: skip
    assert differences(ours, theirs) == wanted


def test_the_three_in_one_are_the_three() -> None:
    three = [load_recipe(f"aligntok/web-scale/{name}") for name in STAGES]
    joined = load_recipe("aligntok/web-scale/all")
    assert joined.stages == [stage for recipe in three for stage in recipe.stages]
    assert [recipe.init for recipe in three] == ["", *(f"runs/{recipe.name}" for recipe in three[:2])]
    assert joined.init == ""
    for recipe in three:
        for section in ("model", "data", "patch_discriminator", "training"):
            assert getattr(recipe, section) == getattr(joined, section), section


def test_its_sizes_fit_the_encoders_patches_and_the_latents_grid() -> None:
    recipe: Recipe = load_recipe("aligntok/web-scale/all")
    with torch.device("meta"):
        tokenizer = build_tokenizer(recipe.model, load_weights=False)
    sizes = training_sizes(recipe, tokenizer, [])
    assert (256, 256) in sizes
    assert (512, 256) in sizes
    assert (256, 512) in sizes
    assert len(sizes) == 17
    for height, width in sizes:
        assert min(height, width) == 256
        # The encoder sees sides 14/16 as long, and its grid is the latent's.
        assert tokenizer.encoder.grids(height, width) == [(height // 16, width // 16)]
    with torch.device("meta"):
        height, width = sizes[0]
        output = tokenizer(torch.empty(1, 3, height, width))
    assert output.latent.shape == (1, 32, height // 16, width // 16)
    assert output.sample.shape == (1, 3, height, width)
