"""Tables 3 and 4 of VFM-VAE: what each recipe counts, how it differs from its neighbour, that it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lumitok import Tokenizer
from lumitok.config import RECIPES, FrozenLDMConfig, Recipe, VFMVAEConfig, load_recipe, recipe_names
from lumitok.errors import LumitokError
from lumitok.evaluation.curves import read_history
from lumitok.tokenizers import FrozenLDM, build_tokenizer
from lumitok.training import train

ABLATION = "vfm-vae/ablation"
ROWS = {
    "1-sd-vae-baseline": (43_004_309, 43.0),
    "2-multi-scale": (87_818_962, 88.0),
    "3-modern-blocks": (131_470_610, 132.3),
    "4-encoder": (139_770_642, 140.6),
}
"""Trainable parameters here, and the paper's in millions."""
ENCODERS = ["eva-clip-large", "dinov2-large", "siglip2-large"]


def differences(first: Any, second: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Keys of two trees whose values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in first | second:
            found |= differences(first.get(key), second.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return differences(dict(enumerate(first)), dict(enumerate(second)), path)
    return {} if first == second else {path: (first, second)}


def change(first: str, second: str) -> dict[str, tuple[Any, Any]]:
    trees = [load_recipe(f"{ABLATION}/{name}").model_dump() for name in (first, second)]
    found = differences(*trees)
    return {key: value for key, value in found.items() if key not in ("name", "about")}


# The tables -------------------------------------------------------------------------------------


def test_every_recipe_of_the_tables_is_known_here() -> None:
    found = {name.removeprefix(f"{ABLATION}/") for name in recipe_names() if name.startswith(ABLATION)}
    assert found == {*ROWS, *(f"encoders/{name}" for name in ENCODERS)}


@pytest.mark.parametrize("row", ROWS)
def test_the_rows_count_what_their_headers_and_the_docs_say(row: str) -> None:
    count, paper = ROWS[row]
    with torch.device("meta"):
        parts = build_tokenizer(load_recipe(f"{ABLATION}/{row}").model, load_weights=False).parts()
    assert sum(parts.values()) == count
    said = f"{count / 1e6:.2f} M here, {paper:.1f} M in the paper"
    assert said in (RECIPES / ABLATION / f"{row}.yaml").read_text()
    assert abs(count / 1e6 - paper) < 0.01 * paper
    docs = Path(__file__).parents[2] / "docs" / "ablation.md"
    assert f"| {count:,} | {paper:.1f} M | {count / 1e6 - paper:+.2f} M |" in docs.read_text()


@pytest.mark.parametrize("name", ENCODERS)
def test_another_encoder_is_one_changed_line_on_a_grid_of_32(name: str) -> None:
    text = (RECIPES / ABLATION / "encoders" / f"{name}.yaml").read_text()
    tree = yaml.safe_load(text)
    assert set(tree) == {"base", "about", "model"}
    assert tree["base"] == f"{ABLATION}/4-encoder"
    assert [line for line in text.splitlines() if "encoder:" in line] == [
        f"  encoder: {{name: {tree['model']['encoder']['name']}, scale: {tree['model']['encoder']['scale']}}}"
    ]
    recipe = load_recipe(f"{ABLATION}/encoders/{name}")
    with torch.device("meta"):
        tokenizer = build_tokenizer(recipe.model, load_weights=False)
    assert tokenizer.encoder.grids(256, 256) == [(32, 32)] * 3
    assert tokenizer.encoder.channels == [1024] * 3
    assert sum(tokenizer.parts().values()) == ROWS["4-encoder"][0]
    changed = change("4-encoder", f"encoders/{name}")
    assert set(changed) == (
        set() if name == "siglip2-large" else {"model.encoder.name", "model.encoder.scale"}
    )


def test_each_row_changes_what_the_paper_says_it_does() -> None:
    assert set(change("3-modern-blocks", "4-encoder")) == {
        "model.encoder.name",
        "model.encoder.layers",
        "model.encoder.scale",
        "model.projected_channels",
    }
    assert set(change("2-multi-scale", "3-modern-blocks")) == {
        "model.projection",
        "model.blocks",
        *(f"model.block_depths.{i}" for i in (2, 3, 4, 5)),
        *(f"model.block_attention.{i}" for i in (3, 4, 5)),
    }
    first = change("1-sd-vae-baseline", "2-multi-scale")
    assert {key: value for key, value in first.items() if not key.startswith("model.")} == {
        "stages.0.losses.multi_resolution_l1": (0.0, 0.1),
        "stages.0.losses.kl": (0.0, 1e-6),
        "stages.0.losses.vf": (0.0, 5.0),
    }
    assert first["model.type"] == ("frozen-ldm", "vfm-vae")


def test_the_rows_differ_from_stage_1_in_their_length_alone() -> None:
    stage_1 = load_recipe("vfm-vae/imagenet256/1-strong-alignment").model_dump()
    changed = differences(stage_1, load_recipe(f"{ABLATION}/4-encoder").model_dump())
    assert set(changed) == {"name", "about", "stages.0.name", "stages.0.images"}
    assert changed["stages.0.images"] == (20_000_000, 5_000_000)


# Training ---------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(8):
        # Blue on the left, with a bright square: something that a few steps can learn.
        pixels = np.full((32, 32, 3), (20, 20, 160), dtype=np.uint8)
        pixels[8:16, 4 * index : 4 * index + 8] = 230
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def tiny(tree: dict[str, Any], row: str, pictures: Path, out: Path) -> Recipe:
    """A row's model and losses at the size of ``tiny_recipe``, but for the perceptual loss."""
    whole = load_recipe(f"{ABLATION}/{row}")
    small = tree["model"] | {"initial_logvar": -6.0}
    small["encoder"] = small["encoder"] | {"layers": whole.model.encoder.layers}
    if isinstance(whole.model, FrozenLDMConfig):
        kept = {key: small[key] for key in ("encoder", "image_size", "latent_channels", "initial_logvar")}
        small = kept | {"type": "frozen-ldm", "adapter_channels": 8, "decoder_channels": 32}
        small |= {"decoder_multipliers": [1] * 5, "decoder_blocks": 1}
    else:
        small |= {"projection": whole.model.projection, "blocks": whole.model.blocks, "layer_scale": 0.1}
        small |= {"block_attention": whole.model.block_attention, "block_depths": [3] * 6}
    losses = whole.stages[0].losses.model_dump() | {"lpips": 0.0, "gan": 0.01}
    stage = {"name": "tiny", "images": 120, "batch_size": 4, "generator_lr": 3e-3, "betas": [0.9, 0.99]}
    tree |= {
        "model": small,
        "out": str(out),
        "data": {"train": str(pictures), "validation": str(pictures), "workers": 0, "crop_scale": [1.0, 1.0]},
        "stages": [
            stage | {"losses": losses, "equivariance": {"latent_scales": [0.5, 1.0], "prior_scales": [0.5]}}
        ],
        "training": {
            "precision": "fp32",
            "log_every": 5,
            "grid_every": 0,
            "tracker": "none",
            "ema_half_life": 20,
        },
    }
    return Recipe.model_validate(tree)


@pytest.mark.parametrize("row", ["1-sd-vae-baseline", "2-multi-scale"])
def test_the_new_networks_learn(
    row: str, tiny_recipe: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    recipe = tiny(tiny_recipe, row, pictures, tmp_path / "run")
    run = train(recipe)
    history = [line["values"] for line in read_history(run / "history.jsonl") if line["kind"] == "train"]
    assert history[-1]["l1"] < 0.6 * history[0]["l1"]
    assert ("vf" in history[0]) == ("multi_resolution_l1" in history[0]) == (row == "2-multi-scale")
    assert "gan" in history[0]
    tokenizer = Tokenizer.from_pretrained(run)
    assert isinstance(tokenizer, FrozenLDM) == (row == "1-sd-vae-baseline")
    assert tokenizer.config.latents_count == 8


# Kinds of model in a recipe ---------------------------------------------------------------------

OWN: dict[str, Any] = {
    "about": "A recipe for these tests.",
    "model": {"type": "frozen-ldm", "encoder": {"name": "some-encoder"}, "decoder_blocks": 2},
    "stages": [{"name": "one", "images": 8, "batch_size": 8, "losses": {"l1": 1.0}}],
}


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(OWN))
    return str(path)


def test_a_model_without_a_type_is_vfm_vae(own: str, tmp_path: Path) -> None:
    assert isinstance(load_recipe(own).model, FrozenLDMConfig)
    model = {"encoder": {"name": "some-encoder"}, "projected_channels": [8]}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(OWN | {"model": model}))
    assert isinstance(load_recipe(str(tmp_path / "plain.yaml")).model, VFMVAEConfig)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "model.adapter_channel=8",
            "there is no key 'model.adapter_channel'; did you mean 'adapter_channels'?",
        ),
        ("model.block_depths=[1]", "there is no key 'model.block_depths'"),
        ("model.encoder.layer=[1]", "there is no key 'model.encoder.layer'; did you mean 'layers'?"),
        (
            "model.adapter_channels=0",
            "model.adapter_channels: input should be greater than or equal to 1, not 0",
        ),
        ("model.encoder.scale=-1", "model.encoder.scale: input should be greater than 0, not -1"),
        (
            "model.decoder_multipliers=[1]",
            "model: decoder_multipliers has 1 entries; downsampling 16 needs 5",
        ),
        ("model.encoder={}", "the key 'model.encoder.name' is missing"),
        (
            "model.type=frozen-lmd",
            "model.type: there is no 'frozen-lmd', only vfm-vae, frozen-ldm, aligntok, ldm, rae; did you "
            "mean 'frozen-ldm'?",
        ),
        ("model.type=[1]", "model.type: there is no '[1]', only vfm-vae, frozen-ldm, aligntok, ldm"),
        ("model=3", "model: input should be a section with keys and values, not 3"),
        ("stages.0.losses.vf=1", "set model.vf_head to true or vf to 0"),
    ],
)
def test_a_mistake_in_a_model_is_one_sentence_without_its_type(
    own: str, override: str, sentence: str
) -> None:
    with pytest.raises(LumitokError) as caught:
        load_recipe(own, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_type_replaces_that_of_the_base(own: str, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    other = {"type": "vfm-vae", "encoder": {"name": "other"}, "projected_channels": [8]}
    child.write_text(yaml.safe_dump({"base": "own.yaml", "model": other}))
    model = load_recipe(str(child)).model
    assert isinstance(model, VFMVAEConfig)
    assert model.encoder.name == "other"
    same = {"type": "frozen-ldm", "adapter_channels": 8}
    child.write_text(yaml.safe_dump({"base": "own.yaml", "model": same}))
    model = load_recipe(str(child)).model
    assert isinstance(model, FrozenLDMConfig)
    assert (model.encoder.name, model.adapter_channels, model.decoder_blocks) == ("some-encoder", 8, 2)
