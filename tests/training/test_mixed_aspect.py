"""Training on pictures that keep their aspect ratios: one size a step, every loss on it, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lumitok.config import DiscriminatorConfig, EncoderConfig, Recipe
from lumitok.data import Pictures
from lumitok.errors import LumitokError
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.training import tokenizer_loop, train
from lumitok.training.checkpoint import checkpoints
from lumitok.training.mixed_aspect import SIZES
from lumitok.training.steps import Part
from tests.training.compare import assert_same, changed, history, stopped_at

SHAPES = [(60, 30)] * 7 + [(40, 40)] * 5 + [(36, 54)] * 6  # Height and width.
WANTED = {(64, 32), (32, 32), (32, 48)}  # What they are brought to.
PATCHES_OF_14 = {
    "name": "timm:vit_tiny_patch16_224",
    "layers": [-1],
    "scale": 0.875,
    "weights": "random",
    "timm_kwargs": {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 2},
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Eighteen pictures of three shapes."""
    rng = np.random.default_rng(0)
    path = tmp_path / "mixed"
    path.mkdir()
    for index, (height, width) in enumerate(SHAPES):
        patches = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        patches.resize((width, height), Image.Resampling.BILINEAR).save(path / f"{index:02d}.png")
    return path


@pytest.fixture
def mixed_recipe(recipe: Recipe, mixed: Path) -> Recipe:
    """AlignTok's stages on patches of 14 px, three steps each, with every loss that needs no download."""
    tree = recipe.model_dump()
    plain = tree["model"]["encoder"] | {"layers": [-1]}
    tree["model"] = {
        "type": "aligntok", "encoder": PATCHES_OF_14, "image_size": 32, "latent_channels": 4,
        "adapter_channels": 8, "decoder_channels": 32, "decoder_multipliers": [1, 1, 1, 1, 2],
        "decoder_blocks": 1, "vf_head": True, "vf_channels": 32,
    }  # fmt: skip
    tree["data"] = {"train": str(mixed), "workers": 0, "preparation": "keep-aspect"}
    tree["patch_discriminator"] = {
        "channels": 4, "strided_layers": 2, "scales": 1, "padding": 1, "norm": "batch", "loss": "hinge",
    }  # fmt: skip
    losses = {
        "reduction": "sum", "l1": 1.0, "ssim": 0.1, "vf": 0.1, "vf_encoder": plain, "gan": 0.1,
        "feature_distance": 0.5, "feature_distance_encoder": plain,
        "patchgan": 0.5, "patchgan_adaptive": True, "feature_matching": 0.1,
    }  # fmt: skip
    common = {"images": 12, "batch_size": 4, "generator_lr": 1e-3, "losses": losses}
    held = losses | {"preservation": 3.0}
    tree["stages"] = [
        {"name": "one", **common, "trainable": ["adapter.*", "decoder.*", "vf_head.*"]},
        {"name": "two", **common, "losses": held},
        {"name": "three", **common, "losses": losses | {"vf": 0}, "trainable": ["decoder.*"]},
    ]
    tree["training"] |= {"accumulation": 2, "log_every": 1, "validate_every": 0}
    return Recipe.model_validate(tree)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[int, ...]]]:
    """The sizes of the parts of each step that is taken."""
    seen: list[set[tuple[int, ...]]] = []
    step = tokenizer_loop.train_step

    def watched(state: Any, parts: list[Part], images: int) -> None:
        seen.append({tuple(part.pictures.shape) for part in parts})
        step(state, parts, images)

    monkeypatch.setattr(tokenizer_loop, "train_step", watched)
    return seen


def test_every_loss_trains_on_one_size_a_step(
    mixed_recipe: Recipe, steps: list[set[tuple[int, ...]]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(mixed_recipe)
    assert all(len(sizes) == 1 for sizes in steps)
    assert set().union(*steps) == {(2, 3, *size) for size in WANTED}
    lines = [record["values"] for record in history(run)]
    assert len(lines) == len(steps) == 9
    assert lines[3]["preservation"] == 0.0  # The reference sees the same picture, whatever its shape.
    assert lines[5]["preservation"] > 0
    for name in ("l1", "ssim", "vf", "gan", "patchgan", "feature_matching", "discriminator"):
        assert all(np.isfinite(values[name]) for values in lines if name in values), name
        assert name in lines[0]
    assert "18 pictures in 3 buckets (height x width): 64x32 7, 32x32 5, 32x48 6;" in capsys.readouterr().err


def test_a_run_goes_on_bit_for_bit_without_reading_headers_again(
    mixed_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = changed(mixed_recipe, stages=[mixed_recipe.stages[1].model_dump()])
    whole = train(held)
    stopped = stopped_at(whole, 2, tmp_path / "stopped")
    (stopped / SIZES).write_bytes((whole / SIZES).read_bytes())

    def read(*_: Any) -> None:
        raise AssertionError("a header was read")

    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "size", read)
        train(changed(held, out=str(stopped)), resume=True)
    assert_same(checkpoints(whole)[-1], checkpoints(stopped)[-1])
    assert history(whole) == history(stopped)


def test_pictures_that_change_their_shape_are_noticed(
    mixed_recipe: Recipe, mixed: Path, tmp_path: Path
) -> None:
    one = changed(mixed_recipe, stages=[mixed_recipe.stages[0].model_dump()])
    whole = train(one)
    stopped = stopped_at(whole, 2, tmp_path / "stopped")  # Without the sizes that were kept.
    Image.new("RGB", (30, 60)).save(mixed / "16.png")
    with pytest.raises(LumitokError, match="the pictures' aspect ratios changed since"):
        train(changed(one, out=str(stopped)), resume=True)


def test_headers_that_cannot_be_read_are_named_and_counted(
    mixed_recipe: Recipe, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mixed / "03.png").write_bytes(b"")
    one = changed(mixed_recipe, stages=mixed_recipe.model_dump()["stages"][:1], data__bad_share=0.2)
    train(one)
    said = capsys.readouterr().err
    assert "17 pictures in 3 buckets" in said
    assert "left out '03.png': the file is empty (1 of 18)" in said
    assert "1 left out: unreadable" in said
    for path in mixed.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(LumitokError, match=r"all pictures of .* are bad"):
        train(changed(one, out=one.out + "-bad"))


def test_sizes_that_do_not_fit_stop_the_run_at_its_beginning(mixed_recipe: Recipe) -> None:
    wrong = changed(mixed_recipe, data__buckets=[(32, 32), (32, 40)])
    with pytest.raises(
        LumitokError, match=r"32x40 .* multiples of 16; the nearest that fit are 32x32 and 32x48"
    ):
        train(wrong)
    # The encoder of a loss has grids too.
    coarse = PATCHES_OF_14 | {"scale": 1.0, "timm_kwargs": {**PATCHES_OF_14["timm_kwargs"], "patch_size": 32}}
    stages = mixed_recipe.model_dump()["stages"][:1]
    stages[0]["losses"] |= {"feature_distance_encoder": coarse}
    with pytest.raises(LumitokError, match="multiples of 32; the nearest that fit are 32x32 and 64x32"):
        train(changed(mixed_recipe, stages=stages, data__buckets=[(48, 32)]))
    # And an equivariance that fits the square may not fit the others.
    stages = mixed_recipe.model_dump()["stages"][:1]
    stages[0]["equivariance"] = {"prior_scales": [0.5], "latent_scales": [0.5]}
    with pytest.raises(LumitokError, match="the picture's side from 48 to 24"):
        train(changed(mixed_recipe, stages=stages))


def test_vfm_vae_with_equivariance_and_its_losses(
    recipe: Recipe, mixed: Path, steps: list[set[tuple[int, ...]]]
) -> None:
    tree = recipe.model_dump()
    tree["data"] |= {"train": str(mixed), "holdout": 0, "preparation": "keep-aspect"}
    tree["data"]["buckets"] = [[64, 32], [32, 32], [32, 64]]
    tree["stages"][0] |= {"images": 32}
    tree["stages"][0]["equivariance"] = {
        "latent_probability": 1.0, "latent_scales": [1.0], "quarter_turns": [1],
    }  # fmt: skip
    values = history(train(Recipe.model_validate(tree)))[-1]["values"]
    assert len(set().union(*steps)) == 3
    for name in ("l1", "multi_resolution_l1", "vf", "kl", "gan", "discriminator"):
        assert np.isfinite(values[name]), name


def test_the_batch_of_a_step_that_is_not_finite_is_kept_in_its_shape(mixed_recipe: Recipe) -> None:
    stages = mixed_recipe.model_dump()["stages"][:1]
    stages[0] |= {"generator_lr": 1e30}
    broken = changed(mixed_recipe, stages=stages)
    with pytest.raises(LumitokError, match="the batch is in"):
        train(broken)
    (kept,) = Path(broken.out).glob("not-finite/*/batch-0.safetensors")
    assert tuple(load_file(kept)["pixels"].shape) in {(4, 3, *size) for size in WANTED}


@pytest.mark.parametrize(
    ("shape", "seen"),
    [((64, 32), (64, 32)), ((24, 60), (32, 80)), ((96, 64), (48, 32)), ((48, 48), (32, 32))],
)
def test_the_foundation_discriminator_sees_the_pictures_shape(
    shape: tuple[int, int], seen: tuple[int, int]
) -> None:
    plain = {**PATCHES_OF_14["timm_kwargs"], "img_size": 32, "patch_size": 16}  # type: ignore[dict-item]
    encoder = EncoderConfig.model_validate(PATCHES_OF_14 | {"scale": 1.0, "timm_kwargs": plain})
    config = DiscriminatorConfig(encoder=encoder, input_size=32, crop_probability=0.0, augment=False)
    discriminator = FoundationDiscriminator(config)
    pictures: Tensor = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    view = discriminator.view(pictures)
    assert tuple(view.shape[-2:]) == seen
    assert torch.equal(view, pictures) == (shape == seen)
    assert discriminator(pictures).shape == (2, seen[0] // 16 * seen[1] // 16)
