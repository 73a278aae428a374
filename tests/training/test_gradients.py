"""Which parts each stage of the shipped recipes trains: those change in a step, all others keep every bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lumitok.config import ModelConfig, Recipe, load_recipe
from lumitok.evaluation.curves import read_history
from lumitok.tokenizers import build_tokenizer
from lumitok.training import train
from lumitok.training.checkpoint import checkpoints
from tests.recipes.test_recipes import MadeUpLPIPS, shrink
from tests.training.compare import assert_same, history, stopped_at

AFTER_THE_LATENT = {"expand", "mapping", "spatial", "blocks"}
VFM_VAE = {"projections", "fuse", "vf_head", *AFTER_THE_LATENT}
LDM = {"encoder", "quant_conv", "post_quant_conv", "decoder"}
GAN, PATCH = "discriminator", "patch_discriminator"
# Recipe and stage -> the parts that a step changes, a block of the decoder by its number where the stage
# names blocks; and the discriminators that learn beside.
TABLE: dict[tuple[str, int], tuple[set[str], set[str]]] = {
    ("vfm-vae/imagenet256/all", 0): (VFM_VAE, {GAN}),
    ("vfm-vae/imagenet256/all", 1): (VFM_VAE, {GAN}),
    ("vfm-vae/imagenet256/all", 2): (AFTER_THE_LATENT, {GAN}),
    ("vfm-vae/imagenet256/all", 3): ({"spatial.3", "blocks.3", "blocks.4", "blocks.5"}, {GAN, PATCH}),
    ("vfm-vae/ablation/1-sd-vae-baseline", 0): ({"compress", "expand", "decoder"}, {GAN}),
    ("aligntok/imagenet256/all", 0): ({"adapter", "decoder"}, {PATCH}),
    ("aligntok/imagenet256/all", 1): ({"encoder", "adapter", "decoder"}, {PATCH}),
    ("aligntok/imagenet256/all", 2): ({"decoder"}, {PATCH}),
    ("aligntok/imagenet256/ablation/lora", 1): ({"low-rank updates", "adapter", "decoder"}, {PATCH}),
    ("va-vae/imagenet256/vit-encoder", 0): ({"encoder", "adapter", "vf_head", "decoder"}, {PATCH}),
    ("vae/imagenet256/f16d32", 0): (LDM, {PATCH}),
    ("va-vae/imagenet256/dinov2-large", 0): ({*LDM, "vf_head"}, {PATCH}),
    ("rae/imagenet256/dinov2-base-registers", 0): ({"decoder"}, {GAN}),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def _without_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumitok.training.objective.LPIPS", MadeUpLPIPS)


def small(name: str, pictures: Path, out: Path) -> dict[str, Any]:
    """The recipe with tiny networks, and the patterns of its stages as they are."""
    whole = load_recipe(name)
    tree = shrink(whole, pictures, out).model_dump()
    for stage, real in zip(tree["stages"], whole.stages, strict=True):
        stage["trainable"] = real.trainable
    if tree["patch_discriminator"] is not None:
        tree["patch_discriminator"] |= {"channels": 4}
    tree["training"] |= {"checkpoint_every": 1, "keep": 99, "validate_every": 0, "grid_every": 0}
    return tree | {"out": str(out)}


def part(name: str) -> str:
    steps = name.split(".")
    if "lora_" in name:
        return "low-rank updates"
    return ".".join(steps[:2]) if steps[0] in ("blocks", "spatial") else steps[0]


@pytest.mark.parametrize(("name", "stage"), TABLE, ids=lambda value: str(value).replace("imagenet256/", ""))
def test_a_stage_changes_its_parts_and_no_others(
    name: str, stage: int, pictures: Path, tmp_path: Path
) -> None:
    wanted, judges = TABLE[name, stage]
    tree = small(name, pictures, tmp_path / "run")
    tree["stages"] = [tree["stages"][stage]]
    if "blocks.5" in wanted:  # All six blocks are there from 256 px.
        tree["model"]["image_size"] = 256
    torch.manual_seed(0)
    begun = build_tokenizer(Recipe.model_validate(tree).model)
    begun.save_pretrained(tmp_path / "begun")
    if begun.frozen is not None:
        tree["model"]["encoder"]["weights"] = str(tmp_path / "begun" / "encoder.safetensors")
    run = train(Recipe.model_validate(tree | {"init": str(tmp_path / "begun")}))
    (saved,) = checkpoints(run)
    before = load_file(tmp_path / "begun" / "diffusion_pytorch_model.safetensors")
    after = load_file(saved / "training" / "generator.safetensors")
    assert before.keys() == after.keys()
    changed = {part(n) for n in before if not torch.equal(before[n], after[n])}
    assert changed == {p for p in map(part, before) if p in wanted or p.split(".")[0] in wanted}
    assert {p for p in wanted if p not in changed} <= {p.split(".")[0] for p in changed}
    if begun.frozen is not None:
        config = json.loads((saved / "tokenizer" / "config.json").read_text())
        assert config["encoder"]["sha256"] == begun.frozen.weights_hash()
    logged = next(r["values"] for r in read_history(run / "history.jsonl") if r["kind"] == "train")
    assert {GAN, PATCH} & logged.keys() == judges


def test_the_table_has_every_kind_and_every_stage_of_its_recipes() -> None:
    kinds = {load_recipe(name).model.type for name, _ in TABLE}
    assert kinds == {get_args(choice)[1].tag for choice in get_args(get_args(ModelConfig)[0])}
    for whole in ("vfm-vae/imagenet256/all", "aligntok/imagenet256/all"):
        assert [stage for name, stage in TABLE if name == whole] == list(
            range(len(load_recipe(whole).stages))
        )


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("vfm-vae/ablation/1-sd-vae-baseline", 0),
        ("vae/imagenet256/f16d32", 0),
        ("va-vae/imagenet256/dinov2-large", 0),
        ("va-vae/imagenet256/vit-encoder", 0),
        ("aligntok/imagenet256/ablation/lora", 1),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(name: str, stage: int, pictures: Path, tmp_path: Path) -> None:
    tree = small(name, pictures, tmp_path / "run")
    tree["stages"] = [tree["stages"][stage] | {"images": 6}]
    whole = train(Recipe.model_validate(tree))
    stopped = stopped_at(whole, 2, tmp_path / "stopped")
    train(Recipe.model_validate(tree | {"out": str(stopped)}), resume=True)
    assert_same(whole / "checkpoints/step-00000003", stopped / "checkpoints/step-00000003")
    assert history(whole) == history(stopped)
