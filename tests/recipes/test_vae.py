"""The recipes of the plain VAE, of the SD-VAE's layout and of VA-VAE have their authors' numbers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lumitok.config import LDMConfig, Recipe, load_recipe
from lumitok.evaluation.curves import read_history
from lumitok.tokenizers import LDMVAE, Tokenizer, build_tokenizer
from lumitok.training import train

EPOCH = 1_281_167
LONG = ["1-alignment", "2-reconstruction", "3-margins"]
# Recipe -> parameters, epochs, weight of the VF loss, its margins, images before the adversarial loss.
RUNS: dict[str, tuple[int, int, float, tuple[float, float], int]] = {
    "vae/imagenet256/f16d32": (69_836_067, 50, 0.0, (0, 0), 640_256),
    "vae/imagenet256/sd-vae-f8d4": (83_653_863, 50, 0.0, (0, 0), 640_256),
    "va-vae/imagenet256/dinov2-large": (69_868_835, 50, 0.1, (0.25, 0.5), 640_256),
    "va-vae/imagenet256/siglip2-large": (69_868_835, 40, 0.5, (0, 0), 640_256),
    "va-vae/imagenet256/long/1-alignment": (69_868_835, 100, 0.5, (0, 0), 640_256),
    "va-vae/imagenet256/long/2-reconstruction": (69_868_835, 15, 0.1, (0, 0), 0),
    "va-vae/imagenet256/long/3-margins": (69_868_835, 15, 0.1, (0.25, 0.5), 0),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_the_authors(name: str) -> None:
    count, epochs, weight, margins, start = RUNS[name]
    recipe = load_recipe(name)
    (stage,) = recipe.stages
    assert (stage.images, stage.batch_size) == (epochs * EPOCH, 256)
    assert (stage.generator_lr, stage.discriminator_lr, stage.betas) == (1e-4, 1e-4, (0.5, 0.9))
    losses = stage.losses
    assert (losses.l1, losses.lpips, losses.kl, losses.patchgan) == (1, 1, 1e-6, 0.5)
    assert losses.reduction == "sum"
    assert losses.patchgan_adaptive
    assert losses.vf_adaptive
    assert losses.gan == 0
    assert (losses.vf, losses.gan_from) == (weight, start)
    assert (losses.vf_distance_margin, losses.vf_cosine_margin) == margins
    patch = recipe.patch_discriminator
    assert patch is not None
    assert (patch.scales, patch.padding, patch.norm, patch.loss) == (1, 1, "batch", "hinge")
    assert (recipe.data.preparation, recipe.data.flip) == ("random-crop", False)
    with torch.device("meta"):
        assert sum(build_tokenizer(recipe.model).parts().values()) == count


@pytest.mark.parametrize(("name", "scale"), [("dinov2-large", 0.875), ("siglip2-large", 1.0)])
def test_the_vf_loss_compares_on_the_latents_grid(name: str, scale: float) -> None:
    from lumitok.foundation import FoundationEncoder

    recipe = load_recipe(f"va-vae/imagenet256/{name}")
    config = recipe.stages[0].losses.vf_encoder
    assert config is not None
    assert config.scale == scale
    with torch.device("meta"):
        encoder = FoundationEncoder(config, load_weights=False)
    assert encoder.grids(256, 256) == [(16, 16)]
    assert isinstance(recipe.model, LDMConfig)
    assert encoder.channels == [recipe.model.vf_channels]


def test_the_long_run_in_one_is_its_three() -> None:
    three = [load_recipe(f"va-vae/imagenet256/long/{name}") for name in LONG]
    joined = load_recipe("va-vae/imagenet256/long/all")
    assert joined.stages == [stage for recipe in three for stage in recipe.stages]
    assert joined.init == three[0].init == ""
    for before, after in itertools.pairwise(three):
        assert after.init == f"runs/{before.name}"
        for part in ("model", "training", "patch_discriminator", "data"):
            assert getattr(after, part) == getattr(before, part) == getattr(joined, part)


@pytest.mark.parametrize(
    ("name", "channels", "epochs"), [("vit-encoder", 32, 22), ("vit-encoder-d64", 64, 34)]
)
def test_the_vit_variant_is_aligntok_without_its_weights(name: str, channels: int, epochs: int) -> None:
    recipe = load_recipe(f"va-vae/imagenet256/{name}")
    aligntok = load_recipe("aligntok/imagenet256/d64" if channels == 64 else "aligntok/imagenet256/all")
    ours, theirs = recipe.model.model_dump(), aligntok.model.model_dump()
    assert {key for key in ours if ours[key] != theirs[key]} == {"encoder", "vf_head"}
    assert ours["encoder"] == theirs["encoder"] | {"weights": "random"}
    (stage,) = recipe.stages
    # As many steps as AlignTok's stages together.
    assert stage.images == sum(other.images for other in aligntok.stages)
    assert stage.images == pytest.approx(epochs * EPOCH, rel=0.002)
    assert stage.trainable == ["*"]
    assert (stage.batch_size, stage.generator_lr, stage.losses.vf, stage.losses.kl) == (64, 1e-4, 0.1, 0)


# Training ---------------------------------------------------------------------------------------


class MadeUpLPIPS(nn.Module):
    """Stands in for LPIPS, whose weights no test has."""

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return (image - target).square().mean(dim=(1, 2, 3))


def shrink(recipe: Recipe, tiny_recipe: dict[str, Any], pictures: Path, out: Path) -> Recipe:
    """The recipe's losses, adversarial loss on, at 32 px; two steps of two pictures."""
    tree = recipe.model_dump()
    levels = len(tree["model"]["multipliers"])
    tree["model"] |= {"image_size": 32, "latent_channels": 4, "channels": 32, "vf_channels": 32}
    tree["model"] |= {"multipliers": [1] * levels, "encoder_blocks": 1, "decoder_blocks": 1}
    tree["patch_discriminator"] |= {"channels": 8, "strided_layers": 1}
    (stage,) = tree["stages"]
    stage |= {"images": 4, "batch_size": 2}
    stage["losses"]["gan_from"] = 0
    if stage["losses"]["vf_encoder"] is not None:
        stage["losses"]["vf_encoder"] = tiny_recipe["model"]["encoder"] | {"layers": [-1]}
    tree["data"] |= {"train": str(pictures), "validation": str(pictures), "workers": 0}
    tree["training"] |= {"tracker": "none", "precision": "fp32", "log_every": 1, "grid_every": 0}
    return Recipe.model_validate(tree | {"out": str(out), "init": ""})


@pytest.mark.parametrize(
    "name", ["vae/imagenet256/f16d32", "vae/imagenet256/sd-vae-f8d4", "va-vae/imagenet256/dinov2-large"]
)
def test_each_kind_takes_two_steps(
    name: str, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumitok.training.objective.LPIPS", MadeUpLPIPS)
    (tmp_path / "pictures").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    run = train(shrink(load_recipe(name), tiny_recipe, tmp_path / "pictures", tmp_path / "run"))
    history = [line["values"] for line in read_history(run / "history.jsonl") if line["kind"] == "train"]
    assert len(history) == 2
    for term in ("l1", "lpips", "kl", "patchgan", "patchgan_weight"):
        assert np.isfinite(history[-1][term]), term
    assert ("vf" in history[0]) == ("vf_weight" in history[0]) == name.startswith("va-vae")
    tokenizer = Tokenizer.from_pretrained(run)
    assert isinstance(tokenizer, LDMVAE)
    assert tokenizer.settings.latents_std is not None
