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

from lumitok.config import PatchDiscriminatorConfig, Recipe, load_recipe, save_recipe
from lumitok.errors import LumitokError
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.losses.discriminators.patch import PatchDiscriminator
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


def test_each_stage_says_what_it_trains(file: str) -> None:
    stage = {"images": 8, "batch_size": 4, "losses": {"l1": 1.0, "vf": 1.0}}
    tree = yaml.safe_load(Path(file).read_text())
    tree["stages"] = [
        stage | {"name": "all"},
        stage | {"name": "no vf", "losses": {"l1": 1.0}},
        stage | {"name": "part", "images": 12, "trainable": ["blocks.1.*", "mapping.*"]},
    ]
    Path(file).write_text(yaml.safe_dump(tree))
    information = inform(file)
    parts = information.parameters.parts
    assert [(found.name, found.images, found.trainable) for found in information.stages] == [
        ("all", 8, information.parameters.trainable),
        ("no vf", 8, information.parameters.trainable - parts["vf_head"]),
        ("part", 12, parts["blocks.1"] + parts["mapping"]),
    ]
    # Counting the stages changes nothing else.
    assert information.parameters.trainable == sum(parts.values())
    assert information.parameters.frozen > 0
    assert information.as_dict()["stages"][2] == {
        "name": "part",
        "images": 12,
        "trainable": parts["blocks.1"] + parts["mapping"],
    }


def test_the_papers_four_stages_train_what_the_paper_s_do() -> None:
    stages = inform("vfm-vae/imagenet256/all").stages
    # tokenizers.md of the reference facts, section 4.
    assert [round(stage.trainable / 1e6, 2) for stage in stages] == [139.77, 139.77, 128.14, 32.11]


def test_a_pattern_that_names_nothing_is_an_error(file: str) -> None:
    tree = yaml.safe_load(Path(file).read_text())
    tree["stages"][0]["trainable"] = ["block.*"]
    Path(file).write_text(yaml.safe_dump(tree))
    with pytest.raises(LumitokError, match=r"no parameter is named 'block\.\*'; did you mean 'blocks\.\*'"):
        inform(file)


def test_both_discriminators_are_counted(recipe: Recipe, file: str) -> None:
    foundation = inform(file).parameters
    tree = yaml.safe_load(Path(file).read_text()) | {"patch_discriminator": {"channels": 4, "scales": 2}}
    Path(file).write_text(yaml.safe_dump(tree))
    both = inform(file).parameters
    patch = PatchDiscriminator(PatchDiscriminatorConfig(channels=4, scales=2))
    assert foundation.discriminator is not None
    assert both.discriminator == foundation.discriminator + sum(p.numel() for p in patch.parameters())
    assert both.discriminator_frozen == foundation.discriminator_frozen


def test_another_kind_of_tokenizer(file: str) -> None:
    tree = yaml.safe_load(Path(file).read_text())
    encoder = tree["model"]["encoder"] | {"layers": [-1]}
    tree["model"] = {"type": "frozen-ldm", "encoder": encoder, "image_size": 32, "decoder_channels": 32}
    Path(file).write_text(yaml.safe_dump(tree))
    information = inform(file)
    tokenizer = build_tokenizer(load_recipe(file).model)
    assert information.model == "frozen-ldm"
    assert information.parameters.parts == tokenizer.parts()
    assert information.stages[0].trainable == sum(tokenizer.parts().values())
    assert information.gmacs["decode"] > information.gmacs["encode"] > 0


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
    # A tokenizer's folder has the recipe beside it.
    assert inform(str(run_folder / "tokenizer")).stages == wanted.stages


def test_weights_need_not_be_at_hand(run_folder: Path) -> None:
    for weights in run_folder.rglob("*.safetensors"):
        weights.unlink()
    assert inform(str(run_folder)).parameters.trainable > 0


def test_a_tokenizer_alone_tells_nothing_of_a_discriminator(run_folder: Path, file: str) -> None:
    (run_folder / "recipe.yaml").unlink()
    parameters = inform(str(run_folder)).parameters
    assert parameters.discriminator is None
    assert parameters.trainable == inform(file).parameters.trainable
    assert inform(str(run_folder)).stages == []


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
