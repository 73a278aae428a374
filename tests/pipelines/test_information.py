"""The numbers of ``lumitok info``: counted on nothing, equal to those of the real networks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lumitok.config import Recipe, load_recipe, save_recipe
from lumitok.errors import LumitokError
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.pipelines.information import inform
from lumitok.tokenizers import build_tokenizer


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(tiny_recipe)


@pytest.fixture
def file(tiny_recipe: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return str(path)


@pytest.fixture
def run_folder(recipe: Recipe, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    build_tokenizer(recipe.model).save_pretrained(folder / "tokenizer")
    save_recipe(recipe, folder / "recipe.yaml")
    return folder


def test_parameters_are_those_of_the_real_networks(recipe: Recipe, file: str) -> None:
    parameters = inform(file).parameters
    tokenizer = build_tokenizer(recipe.model)
    assert parameters.parts == tokenizer.parts()
    assert parameters.trainable == sum(p.numel() for p in tokenizer.parameters() if p.requires_grad)
    assert parameters.frozen == sum(p.numel() for p in tokenizer.encoder.parameters())
    assert recipe.discriminator is not None
    discriminator = FoundationDiscriminator(recipe.discriminator)
    assert parameters.discriminator == sum(p.numel() for p in discriminator.heads.parameters())
    assert parameters.discriminator_frozen == sum(p.numel() for p in discriminator.encoder.parameters())


def test_the_latent_and_the_cost_are_those_of_the_real_network(recipe: Recipe, file: str) -> None:
    information = inform(file)
    tokenizer = build_tokenizer(recipe.model).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # Meta tensors take this way too.
        with FlopCounterMode(display=False) as encoding:
            z = tokenizer.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode()
        with FlopCounterMode(display=False) as decoding:
            tokenizer.decode(z)
    assert tuple(information.latent.values()) == tuple(z.shape[1:]) == (4, 2, 2)
    assert information.gmacs["encode"] == pytest.approx(encoding.get_total_flops() / 2e9, rel=1e-12)
    assert information.gmacs["decode"] == pytest.approx(decoding.get_total_flops() / 2e9, rel=1e-12)


def test_a_run_a_checkpoint_and_a_recipe_give_the_same(run_folder: Path, file: str) -> None:
    checkpoint = run_folder / "checkpoints" / "step-00000001"
    shutil.copytree(run_folder / "tokenizer", checkpoint / "tokenizer")
    shutil.copy(run_folder / "recipe.yaml", checkpoint / "recipe.yaml")
    wanted = inform(file)
    for folder in (run_folder, run_folder / "tokenizer", checkpoint):
        found = inform(str(folder))
        assert (found.parameters, found.gmacs, found.latent) == (
            wanted.parameters,
            wanted.gmacs,
            wanted.latent,
        )


def test_weights_need_not_be_at_hand(run_folder: Path) -> None:
    for weights in run_folder.rglob("*.safetensors"):
        weights.unlink()
    assert inform(str(run_folder)).parameters.trainable > 0


def test_a_tokenizer_alone_tells_nothing_of_a_discriminator(run_folder: Path, file: str) -> None:
    (run_folder / "recipe.yaml").unlink()
    parameters = inform(str(run_folder)).parameters
    assert parameters.discriminator is None
    assert parameters.trainable == inform(file).parameters.trainable


def test_a_recipe_without_discriminator(file: str) -> None:
    Path(file).write_text(yaml.safe_dump(load_recipe(file, ["discriminator=null"]).model_dump(mode="json")))
    assert inform(file).parameters.discriminator is None


@pytest.mark.parametrize("config", ["not json", "[]", "{}", '{"encoder": 3}'])
def test_a_config_that_is_damaged(run_folder: Path, config: str) -> None:
    (run_folder / "tokenizer" / "config.json").write_text(config)
    with pytest.raises(LumitokError, match=r"config\.json does not describe a tokenizer: ") as caught:
        inform(str(run_folder))
    assert "\n" not in str(caught.value)


def test_neither_recipe_nor_folder() -> None:
    with pytest.raises(LumitokError, match="did you mean 'vfm-vae/imagenet256/1-strong-alignment'"):
        inform("vfm-vae/imagenet256/1-strong")
