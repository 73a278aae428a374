"""A diffusion network's training: it learns, resumes to the bit, and refuses what does not belong to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from lumitok.config import DiffusionRecipe, DiffusionStageConfig, ModelConfig, load_diffusion_recipe
from lumitok.data import open_pictures
from lumitok.data.latent_store import open_latent_store, write_header
from lumitok.data.latents import LatentOrigin
from lumitok.diffusion.base import DiffusionNetwork
from lumitok.diffusion.sampling import sample
from lumitok.errors import LumitokError
from lumitok.tokenizers import build_tokenizer
from lumitok.training import train_diffusion
from lumitok.training.checkpoint import checkpoints
from lumitok.training.diffusion_loop import learning_rate
from tests.training.compare import assert_close, assert_same, history, stopped_at
from tests.training.stores import make_store
from tests.training.test_processes import TORCHRUN, launch

ENCODER = {
    "name": "dinov2-small",
    "weights": "random",
    "scale": 0.875,
    "timm_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 28},
}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """Six steps of a tiny LightningDiT in two stages, with LightningDiT's losses."""
    make_store(tmp_path / "store")
    stage = {"name": "first", "images": 24, "batch_size": 8, "lr": 1e-3, "losses": {"cosine": 1.0}}
    second = stage | {"name": "second", "times": {"kind": "uniform"}, "clip_norm": 0.5}
    return {
        "out": str(tmp_path / "run"),
        "network": {"type": "lightningdit", "depth": 2, "width": 16, "heads": 2},
        "data": {"latents": str(tmp_path / "store")},
        "stages": [stage, second],
        "training": {
            "precision": "fp32",
            "log_every": 2,
            "checkpoint_every": 1,
            "keep": 9,
            "ema_decay": 0.5,
            "tracker": "none",
        },
    }


def made(values: dict[str, Any]) -> DiffusionRecipe:
    return DiffusionRecipe.model_validate(values)


def last(run: Path) -> Path:
    return checkpoints(run)[-1]


def test_a_run_leaves_a_network_that_opens(values: dict[str, Any]) -> None:
    run = train_diffusion(made(values))
    network = DiffusionNetwork.from_pretrained(run)
    assert network.latent_shape == (4, 4, 4)
    assert network.null_label == 3
    origin = LatentOrigin.load(run / "network")
    assert origin is not None
    assert origin.classes == ("cat", "dog", "owl")
    assert origin.spec.std == (2.0,) * 4
    found = history(run)
    assert [record["step"] for record in found] == [2, 3, 4, 6]
    assert {"velocity", "cosine", "gradient"} <= found[0]["values"].keys()


def test_pictures_without_classes_are_drawn_without_guidance(tmp_path: Path) -> None:
    make_store(tmp_path / "flat", classes=())
    data = {"data.latents": tmp_path / "flat", "out": tmp_path / "run", "network.size": "null"}
    sizes = {"network.depth": 1, "network.width": 16, "network.heads": 2, "stages.0.images": 4}
    more = {"stages.0.batch_size": 4, "training.tracker": "none"}
    changes = [f"{key}={value}" for key, value in (data | sizes | more).items()]
    recipe = load_diffusion_recipe("lightningdit/small", changes)
    assert recipe.samples.sampling.guided
    run = train_diffusion(recipe)
    left = load_diffusion_recipe(str(run / "recipe.yaml"))
    assert left.network.classes == 0
    assert not left.samples.sampling.guided
    network = DiffusionNetwork.from_pretrained(run)
    assert sample(network, None, [0], left.samples.sampling).isfinite().all()


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_run_that_was_killed_goes_on_to_the_bit(values: dict[str, Any], tmp_path: Path, step: int) -> None:
    whole = train_diffusion(made(values))
    stopped = stopped_at(whole, step, tmp_path / "stopped")
    again = train_diffusion(made(values | {"out": str(stopped)}), resume=True)
    assert_same(last(whole), last(again))
    assert history(whole) == history(again)


def test_moments_are_drawn_anew_and_resume_to_the_bit(values: dict[str, Any], tmp_path: Path) -> None:
    make_store(tmp_path / "moments", kind="moments", dtype="bfloat16")
    values["data"] = {"latents": str(tmp_path / "moments")}
    whole = train_diffusion(made(values))
    stopped = stopped_at(whole, 4, tmp_path / "stopped")
    assert_same(last(whole), last(train_diffusion(made(values | {"out": str(stopped)}), resume=True)))


def test_parts_and_processes_change_only_rounding(values: dict[str, Any], tmp_path: Path) -> None:
    one = train_diffusion(made(values))
    parts = values["training"] | {"accumulation": 2}
    both = made(values | {"out": str(tmp_path / "two"), "training": parts})
    # Of two processes each has a fourth of the batch at a time.
    two = launch(TORCHRUN, both, tmp_path)  # type: ignore[arg-type]
    assert_close(last(one), last(two), atol=2e-5)


def test_it_learns(values: dict[str, Any], tmp_path: Path) -> None:
    # Latents that are constant in each class: the noise, and with it the velocity, can be read off x_t.
    make_store(tmp_path / "plain", spread=0.0)
    values["data"] = {"latents": str(tmp_path / "plain")}
    values["network"] |= {"width": 32}
    values["stages"] = [values["stages"][0] | {"images": 1600, "lr": 1e-2, "losses": {}}]
    values["training"] |= {"checkpoint_every": 0, "log_every": 25}
    found = [record["values"]["velocity"] for record in history(train_diffusion(made(values)))]
    assert found[-1] < 0.6 * found[0]


def test_samples_are_drawn_on_the_way(values: dict[str, Any], tmp_path: Path) -> None:
    model = {"type": "ldm", "image_size": 32, "downsampling": 8, "latent_channels": 4}
    model |= {"channels": 32, "multipliers": [1, 1, 1, 1], "encoder_blocks": 1, "decoder_blocks": 1}
    tokenizer = build_tokenizer(TypeAdapter(ModelConfig).validate_python(model))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    make_store(tmp_path / "own", tokenizer=tokenizer.latent_fingerprint())
    values["data"] = {"latents": str(tmp_path / "own"), "tokenizer": str(tmp_path / "tokenizer")}
    values["samples"] = {"every": 2, "count": 5, "sampling": {"steps": 2, "guidance": 2.0}}
    run = train_diffusion(made(values))
    drawn = sorted(path.name for path in (run / "samples").iterdir())
    assert drawn == ["step-00000002", "step-00000003", "step-00000004", "step-00000006"]
    assert len(list((run / "samples" / drawn[0]).glob("*.png"))) == 5
    with Image.open(run / "grids" / "step-00000006.png") as sheet:
        assert sheet.width > 3 * 32
    # Drawing changes nothing that is learnt.
    without = train_diffusion(made(values | {"out": str(tmp_path / "without"), "samples": {"every": 0}}))
    assert_same(last(run), last(without))


@pytest.fixture
def aligned(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """REG on a tiny random encoder: alignment, class token, pictures that come along."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    names = [f"{index:02d}.png" for index in range(24)]
    for name in names:
        noise = Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8))
        noise.save(tmp_path / "pictures" / name)
    # The store's order is not that of the listing.
    make_store(tmp_path / "named", side=2, names=names[::-1], flip=False)
    values["network"] = {
        "type": "sit",
        "depth": 2,
        "width": 16,
        "heads": 2,
        "class_channels": 32,
        "projector": {"block": 1, "hidden": 16, "channels": 32},
    }
    values["data"] = {
        "latents": str(tmp_path / "named"),
        "pictures": str(tmp_path / "pictures"),
        "flip": False,
        "workers": 0,
    }
    losses = {"alignment": 0.5, "class_token": 0.03, "alignment_encoder": ENCODER}
    values["stages"] = [values["stages"][0] | {"losses": losses}]
    return values


def test_reg_trains_and_resumes_to_the_bit(aligned: dict[str, Any], tmp_path: Path) -> None:
    whole = train_diffusion(made(aligned))
    values = history(whole)[-1]["values"]
    assert {"alignment", "class_token"} <= values.keys()
    assert -1 <= values["alignment"] <= 1
    stopped = stopped_at(whole, 2, tmp_path / "stopped")
    workers = aligned["data"] | {"workers": 1}
    again = train_diffusion(made(aligned | {"out": str(stopped), "data": workers}), resume=True)
    assert_same(last(whole), last(again))


def test_a_store_shows_the_encoder_its_own_pictures(aligned: dict[str, Any], tmp_path: Path) -> None:
    first = history(train_diffusion(made(aligned)))[0]["values"]["alignment"]
    for path in (tmp_path / "pictures").iterdir():
        Image.new("RGB", (40, 32), "red").save(path)
    changed = train_diffusion(made(aligned | {"out": str(tmp_path / "red")}))
    assert history(changed)[0]["values"]["alignment"] != first
    (tmp_path / "pictures" / "03.png").unlink()
    with pytest.raises(LumitokError, match=r"lacks 1 pictures of the store .*03\.png"):
        train_diffusion(made(aligned | {"out": str(tmp_path / "third")}))


def test_other_pictures_of_the_same_names_are_refused(aligned: dict[str, Any], tmp_path: Path) -> None:
    path = Path(aligned["data"]["latents"])
    header = open_latent_store(path).header
    few = open_pictures(tmp_path / "pictures").subset(range(23, -1, -1)).hash_few()  # In the store's order.
    write_header(path, replace(header, few_pictures=few))
    train_diffusion(made(aligned))
    for picture in (tmp_path / "pictures").iterdir():
        Image.new("RGB", (40, 32), "red").save(picture)
    with pytest.raises(LumitokError, match=r"have the names of those .* \('pictures'\), but are others"):
        train_diffusion(made(aligned | {"out": str(tmp_path / "red")}))


def test_another_tokenizer_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    model = {"type": "ldm", "image_size": 32, "downsampling": 8, "latent_channels": 4}
    model |= {"channels": 32, "multipliers": [1, 1, 1, 1], "encoder_blocks": 1, "decoder_blocks": 1}
    build_tokenizer(TypeAdapter(ModelConfig).validate_python(model)).save_pretrained(tmp_path / "other")
    values["data"]["tokenizer"] = str(tmp_path / "other")
    with pytest.raises(LumitokError, match="were made by the tokenizer 'made-up'"):
        train_diffusion(made(values))


def test_a_network_of_other_latents_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    run = train_diffusion(made(values))
    make_store(tmp_path / "others", tokenizer="e" * 64)
    values |= {
        "out": str(tmp_path / "second"),
        "init": str(run),
        "data": {"latents": str(tmp_path / "others")},
    }
    with pytest.raises(LumitokError, match="should go on from"):
        train_diffusion(made(values))


def test_init_goes_on_from_a_run(values: dict[str, Any], tmp_path: Path) -> None:
    first = values | {"stages": values["stages"][:1]}
    run = train_diffusion(made(first))
    second = values | {"stages": values["stages"][1:], "out": str(tmp_path / "second"), "init": str(run)}
    apart = train_diffusion(made(second))
    joined = train_diffusion(made(values | {"out": str(tmp_path / "joined")}))
    ours, theirs = (DiffusionNetwork.from_pretrained(run).state_dict() for run in (apart, joined))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_resume_refuses_other_latents(values: dict[str, Any], tmp_path: Path) -> None:
    train_diffusion(made(values))
    make_store(tmp_path / "larger", count=30)
    values["data"] = {"latents": str(tmp_path / "larger")}
    with pytest.raises(LumitokError, match="the latents changed since"):
        train_diffusion(made(values), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {}}, "names no latents"),
        ({"network": {"type": "sit", "depth": 1, "width": 16, "heads": 2, "in_channels": 8}}, "have 4"),
        ({"network": {"type": "sit", "depth": 1, "width": 16, "heads": 2, "classes": 5}}, "have 3"),
    ],
)
def test_what_does_not_fit_is_said(values: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(LumitokError, match=message):
        train_diffusion(made(values | change))


def test_latents_without_statistics_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "store"
    header = open_latent_store(path).header
    write_header(path, replace(header, spec=replace(header.spec, mean=None, std=None)))
    with pytest.raises(LumitokError, match="carries no latent statistics"):
        train_diffusion(made(values))


def test_a_falling_rate() -> None:
    stage = DiffusionStageConfig(
        name="s", images=1000, batch_size=10, lr=1.0, final_lr=0.1, schedule="linear", decay_from=500,
        warmup_steps=4,
    )  # fmt: skip
    rates = [learning_rate(stage, step, 100) for step in (0, 3, 4, 50, 75, 99)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 1.0, 0.55, 0.118])
