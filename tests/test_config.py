"""Recipes: reading, overrides, bases, and the sentence a mistake gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lumitok.config import Recipe, dump_recipe, load_any, load_recipe, recipe_names, save_recipe
from lumitok.errors import LumitokError

SMALL: dict[str, Any] = {
    "about": "A recipe for these tests.",
    "model": {
        "encoder": {"name": "some-encoder", "layers": [0, -1]},
        "image_size": 64,
        "projected_channels": [8, 8],
    },
    "stages": [
        {"name": "one", "images": 100, "batch_size": 8, "losses": {"l1": 1.0}},
        {"name": "two", "images": 50, "batch_size": 8, "losses": {"l1": 1.0, "kl": 1e-6}},
    ],
}


def write(folder: Path, tree: Any, name: str = "small.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(tree) if not isinstance(tree, str) else tree)
    return str(path)


@pytest.fixture
def small(tmp_path: Path) -> str:
    return write(tmp_path, SMALL)


# Reading ----------------------------------------------------------------------------------------


def test_a_recipe_is_read_into_types(small: str) -> None:
    recipe = load_recipe(small)
    assert isinstance(recipe, Recipe)
    assert recipe.name == "small"
    assert recipe.model.encoder.layers == [0, -1]
    assert recipe.stages[1].losses.kl == 1e-6
    assert recipe.stages[0].betas == (0.0, 0.99)  # The default.


def test_the_resolved_recipe_reads_back_as_itself(small: str, tmp_path: Path) -> None:
    recipe = load_recipe(small, ["training.seed=7", "data.crop_scale=[0.25, 1]", "name=häuser"])
    save_recipe(recipe, tmp_path / "resolved.yaml")
    again = load_recipe(str(tmp_path / "resolved.yaml"))
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


def test_the_resolved_recipe_names_every_key(small: str) -> None:
    tree = yaml.safe_load(dump_recipe(load_recipe(small)))
    assert set(tree) == set(Recipe.model_fields)
    assert tree["training"]["precision"] == "auto"
    assert tree["stages"][0]["losses"]["gan_from"] == 0


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str, tmp_path: Path) -> None:
    recipe = load_any(name)
    assert recipe.name == name
    assert recipe.about
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_any(str(tmp_path / "recipe.yaml")) == recipe


def test_recipes_are_found_at_any_depth() -> None:
    assert "vfm-vae/imagenet256/1-strong-alignment" in recipe_names()


# Overrides --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read", "wanted"),
    [
        ("data.train=photos", lambda r: r.data.train, "photos"),
        ("data.train=a=b", lambda r: r.data.train, "a=b"),
        ("training.seed=3", lambda r: r.training.seed, 3),
        ("stages.0.generator_lr=1e-3", lambda r: r.stages[0].generator_lr, 1e-3),
        ("stages.1.images=2e3", lambda r: r.stages[1].images, 2000),
        ("stages.1.batch_size=16", lambda r: [s.batch_size for s in r.stages], [8, 16]),
        ("model.encoder.layers=[1, 2]", lambda r: r.model.encoder.layers, [1, 2]),
        ("model.encoder.layers.1=5", lambda r: r.model.encoder.layers, [0, 5]),
        ("data.flip=false", lambda r: r.data.flip, False),
        ("data.validation=null", lambda r: r.data.validation, None),
        ("training.tracker=none", lambda r: r.training.tracker, "none"),
        ("discriminator.encoder.name=d", lambda r: r.discriminator.encoder.name, "d"),
    ],
)
def test_an_override_sets_its_value(small: str, override: str, read: Any, wanted: Any) -> None:
    value = read(load_recipe(small, [override]))
    assert value == wanted
    assert type(value) is type(wanted)


def test_the_last_override_wins(small: str) -> None:
    assert load_recipe(small, ["training.seed=1", "training.seed=2"]).training.seed == 2


# Bases ------------------------------------------------------------------------------------------


def test_a_recipe_is_laid_over_its_base(small: str, tmp_path: Path) -> None:
    child = write(
        tmp_path,
        {"base": "small.yaml", "model": {"image_size": 128}, "stages": {1: {"images": 70}}},
        "child.yaml",
    )
    recipe = load_recipe(child)
    assert recipe.name == "child"
    assert recipe.model.image_size == 128
    assert recipe.model.encoder.name == "some-encoder"
    assert [stage.images for stage in recipe.stages] == [100, 70]
    assert recipe.stages[1].losses.kl == 1e-6


def test_a_base_is_found_from_where_the_recipe_lies(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    child = write(tmp_path / "below", {"base": "../small.yaml", "name": "own"}, "child.yaml")
    monkeypatch.chdir(tmp_path / "below")
    assert load_recipe(child).name == "own"
    assert load_recipe("child.yaml").about == SMALL["about"]


def test_a_list_in_the_child_replaces_the_whole_list(small: str, tmp_path: Path) -> None:
    child = write(tmp_path, {"base": "small.yaml", "stages": [SMALL["stages"][0]]}, "child.yaml")
    assert [stage.name for stage in load_recipe(child).stages] == ["one"]


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("modle.image_size=64", "there is no key 'modle'; did you mean 'model'?"),
        ("start=runs/one", "there is no key 'start'; the weights to begin with are named by 'init'"),
        ("model.image_sise=64", "there is no key 'model.image_sise'; did you mean 'image_size'?"),
        ("stages.0.losses.l2=1", "there is no key 'stages.0.losses.l2'; did you mean 'l1'?"),
        ("stages.1.batchsize=4", "did you mean 'batch_size'?"),
        ("model.encoder.layer=[1]", "did you mean 'layers'?"),
        ("discriminator.imput_size=1", "did you mean 'input_size'?"),
        (
            "training.precision=fp16",
            "training.precision: input should be 'auto', 'fp32' or 'bf16', not 'fp16'",
        ),
        ("model.image_size=100", "model.image_size: input should be a multiple of 32, not 100"),
        ("model.image_size=big", "model.image_size: input should be a valid integer"),
        ("stages=[]", "stages: list should have at least 1 item"),
        ("stages.2.images=1", "'2' is not a place in a list of 2 (0 to 1)"),
        ("stages.one.images=1", "'one' is not a place in a list of 2 (0 to 1)"),
        ("stages=[{nam: one}]", "there is no key 'stages.0.nam'; did you mean 'name'?"),
        ("about.x=1", "about has no keys below it"),
        ("data.train", "is not key=value"),
        ("=3", "is not key=value"),
        ("model.projected_channels=[8]", "projected_channels has 1 numbers for 2 encoder layers"),
        ("model.block_blurs=[3]", "block_blurs has 1 numbers; give 6"),
        ("model.latents_mean=[0.0]", "latents_mean has 1 numbers for 32 latent channels"),
        ("stages.0.losses.gan=1", "stage 'one' has a gan loss; describe the discriminator or set gan to 0"),
        ("stages.0.losses.feature_distance=1", "feature_distance needs feature_distance_encoder"),
        ("training.accumulation=3", "batch_size 8 is not a multiple of training.accumulation 3"),
    ],
)
def test_a_mistake_is_one_sentence(small: str, override: str, sentence: str) -> None:
    with pytest.raises(LumitokError) as caught:
        load_recipe(small, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vf_loss_needs_its_head(small: str) -> None:
    with pytest.raises(LumitokError, match=r"set model\.vf_head to true or vf to 0"):
        load_recipe(small, ["stages.1.losses.vf=1", "model.vf_head=false"])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match=r"the key 'stages\.0\.losses' is missing"):
        load_recipe(write(tmp_path, {**SMALL, "stages": [{"name": "one", "images": 1, "batch_size": 1}]}))


def test_a_wrong_name_names_the_nearest(small: str, tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match="did you mean 'vfm-vae/imagenet256/1-strong-alignment'"):
        load_recipe("vfm-vae/imagenet256/1-strong-alignmnt")
    with pytest.raises(
        LumitokError, match=r"there is no recipe file .*smal\.yaml'; did you mean .*small\.yaml'"
    ):
        load_recipe(str(tmp_path / "smal.yaml"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a list", "it holds a list, not keys and values"),
        ("", "it holds a NoneType"),
        ("a: [1", "is not YAML"),
        ("a: !!python/object:os.system {}", "is not YAML"),
        ("base: small.yaml", "is its own base"),
        ("base: nothing", "there is no recipe 'nothing'"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(LumitokError) as caught:
        load_recipe(write(tmp_path, text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chain: []", "'chain' is a list of recipes"),
        ("chain: vfm-vae/demo", "'chain' is a list of recipes"),
        ("chain: [vfm-vae/demo]\nbase: vfm-vae/demo", "both 'base' and 'chain'"),
        ("chain: [vfm-vae/demos]", "did you mean 'vfm-vae/demo'"),
    ],
)
def test_a_chain_that_is_none_says_why(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(LumitokError, match=said):
        load_recipe(str(tmp_path / "r.yaml"))


def test_a_chain_takes_changes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "chain: [vfm-vae/demo, vfm-vae/demo]\nstages: {2: {images: 80}}\nabout: twice"
    )
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    first, second = (stage.images for stage in load_recipe("vfm-vae/demo").stages)
    assert [stage.images for stage in recipe.stages] == [first, second, 80, second]
    assert recipe.about == "twice"
