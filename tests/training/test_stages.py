"""Stages that chain, in one run or as runs of their own, and beginnings from other weights."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lumitok import Tokenizer
from lumitok.config import Recipe
from lumitok.errors import LumitokError
from lumitok.tokenizers import build_tokenizer
from lumitok.training import steps, train
from lumitok.training.checkpoint import checkpoints, load_place
from tests.training.compare import assert_same, changed, everything, history, stopped_at


@pytest.fixture
def four(recipe: Recipe, tmp_path: Path) -> Recipe:
    """Four stages as the paper's, two steps of eight each, at the smallest size."""
    # One file for every encoder: random ones would differ with the order in which a run builds its parts.
    encoder = recipe.model.encoder
    torch.manual_seed(3)
    model = timm.create_model(encoder.name.removeprefix("timm:"), num_classes=0, **encoder.timm_kwargs)
    save_file(model.state_dict(), tmp_path / "encoder.safetensors")
    assert recipe.discriminator is not None
    for named in (encoder, recipe.discriminator.encoder):
        named.weights = str(tmp_path / "encoder.safetensors")
    distance = {"feature_distance": 0.5, "feature_distance_encoder": recipe.model.encoder.model_dump()}
    common: dict[str, Any] = {"images": 16, "batch_size": 8, "generator_lr": 1e-3}
    turned = {"latent_scales": [1.0], "prior_probability": 0.0}
    after_latent = ["expand.*", "mapping.*", "spatial.*", "blocks.*"]
    stages = [
        {"losses": {"l1": 1.0, **distance, "multi_resolution_l1": 0.1, "kl": 1e-6, "vf": 5.0, "gan": 1.0}},
        {"losses": {"l1": 1.0, **distance, "kl": 1e-6, "vf": 1.0, "gan": 1.0}},
        {"losses": {"l1": 1.0, **distance, "ssim": 1.0, "gan": 1.0}, "trainable": after_latent},
        {
            "losses": {"gan": 1.0, "patchgan": 1.0, "feature_matching": 10.0},
            "trainable": ["blocks.2.*"],
        },
    ]
    listed = [
        {"name": f"stage-{number}", **common, **stage, **({} if number == 4 else {"equivariance": turned})}
        for number, stage in enumerate(stages, start=1)
    ]
    return changed(recipe, stages=listed, patch_discriminator={"channels": 4}, training__validate_every=0)


def test_four_stages_in_one_run_equal_four_runs_in_turn(four: Recipe, tmp_path: Path) -> None:
    whole = train(four)
    start = ""
    for index, stage in enumerate(four.stages):
        # A recipe of its own knows no discriminator that only later stages use.
        patch = four.patch_discriminator if index == 3 else None
        out = str(tmp_path / f"run-{index}")
        train(changed(four, stages=[stage.model_dump()], init=start, out=out, patch_discriminator=patch))
        start = out
    last = checkpoints(Path(start))[-1]
    assert last.name == "step-00000002"
    ours, theirs = everything(whole / "checkpoints/step-00000008"), everything(last)
    networks = [n for n in ours if n.startswith(("training/generator.", "training/ema.", "training/disc"))]
    assert len(networks) > 100
    assert not [name for name in networks if not torch.equal(ours[name], theirs[name])]
    place = load_place(last / "training")
    assert (place.images, place.images_before, place.stages_before) == (64, 48, 3)


def test_what_each_stage_moves_and_logs(four: Recipe) -> None:
    run = train(changed(four, training__log_every=2))
    states = [
        load_file(run / f"checkpoints/step-0000000{step}/training/generator.safetensors")
        for step in (2, 4, 6, 8)
    ]
    moved = [
        {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        for before, after in itertools.pairwise(states)
    ]
    everything_ = {"projections", "fuse", "vf_head", "expand", "mapping", "spatial", "blocks"}
    assert moved == [everything_, {"expand", "mapping", "spatial", "blocks"}, {"blocks"}]
    lines = [r["values"].keys() for r in history(run) if r["kind"] == "train"]
    assert "vf_weight" in lines[0]
    assert "vf_weight" in lines[1]
    assert {"ssim", "gan"} <= lines[2]
    assert "vf" not in lines[2]
    assert {"patchgan", "feature_matching", "patch_discriminator", "discriminator"} <= lines[3]
    measured = [r["values"] for r in history(run) if r["kind"] == "validation"]
    assert len(measured) == 4
    assert {"psnr", "ssim", "l1", "vf", "count"} <= measured[0].keys()
    assert any(name.startswith("feature-distance/") for name in measured[3])
    # The latent stands still from the third stage on; only the average still follows it.
    assert measured[3]["vf"] == pytest.approx(measured[1]["vf"], rel=0.01)


@pytest.mark.parametrize("step", [3, 4, 7])
def test_resume_within_and_between_the_stages(four: Recipe, tmp_path: Path, step: int) -> None:
    often = changed(four, training__checkpoint_every=1)
    whole = train(often)
    stopped = stopped_at(whole, step, tmp_path / "stopped")
    train(changed(often, out=str(stopped)), resume=True)
    assert_same(whole / "checkpoints/step-00000008", stopped / "checkpoints/step-00000008")
    assert history(whole) == history(stopped)


def test_the_transform_is_drawn_anew_each_step_and_alike_everywhere(
    four: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    real = steps.draw_equivariance

    def watch(config: Any, rng: Any) -> Any:
        drawn.append(real(config, rng))
        return drawn[-1]

    monkeypatch.setattr(steps, "draw_equivariance", watch)
    one = changed(four, stages=[four.stages[0].model_dump() | {"images": 96}], patch_discriminator=None)
    train(one)
    assert len({transform.quarter_turns for transform in drawn}) > 1
    first, drawn[:] = list(drawn), []
    shutil.rmtree(one.out)
    train(changed(one, training__accumulation=2))  # Another number of parts, the same transforms.
    assert drawn == first


def test_a_run_starts_from_a_tokenizer_alone(four: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(5)
    tokenizer = build_tokenizer(four.model)
    tokenizer.save_pretrained(tmp_path / "saved")
    opened = Tokenizer.from_pretrained(tmp_path / "saved")
    still = four.stages[1].model_dump() | {"generator_lr": 1e-30}
    one = changed(four, stages=[still], init=str(tmp_path / "saved"))
    run = train(changed(one, patch_discriminator=None))
    trained = load_file(checkpoints(run)[-1] / "training" / "generator.safetensors")
    wanted = {n: t for n, t in opened.state_dict().items() if not n.startswith("encoder.")}
    assert trained.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(trained[name], tensor, msg=name)


def test_a_start_that_does_not_fit_says_why(four: Recipe, tmp_path: Path) -> None:
    one = changed(four, stages=[four.stages[0].model_dump()], patch_discriminator=None)
    with pytest.raises(LumitokError, match="init: there is no folder 'nowhere'"):
        train(changed(one, init="nowhere"))
    before = train(one)
    other = changed(one, init=str(before), out=str(tmp_path / "other"))
    said = r"is of another model .*: model\.block_channels is \[8, .*\] there and \[8, .*\] here\. Take the"
    with pytest.raises(LumitokError, match=said):
        train(changed(other, model__block_channels=[8, 8, 8, 8, 8, 8]))
    with pytest.raises(LumitokError, match="was trained on an encoder with the hash"):
        train(changed(other, model__encoder__weights="random"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LumitokError, match="holds no tokenizer"):
        train(changed(other, init=str(tmp_path / "empty")))


def test_a_scale_that_fits_no_grid_is_refused_before_the_run_begins(four: Recipe) -> None:
    stage = four.stages[0].model_dump() | {"equivariance": {"latent_scales": [0.3], "prior_probability": 0.0}}
    with pytest.raises(LumitokError, match=r"latent_scales: 0\.3 brings the latent's side"):
        train(changed(four, stages=[stage]))
    assert not Path(four.out).exists()


def test_an_unfinished_run_is_no_start_unless_its_checkpoint_is_named(four: Recipe, tmp_path: Path) -> None:
    one = changed(four, stages=[four.stages[0].model_dump()], patch_discriminator=None)
    run = train(changed(one, training__checkpoint_every=1))
    shutil.rmtree(run / "checkpoints/step-00000002")
    after = changed(one, init=str(run), out=str(tmp_path / "after"))
    with pytest.raises(
        LumitokError, match="is at step 1 of 2; finish it with --resume, or name the checkpoint"
    ):
        train(after)
    train(changed(after, init=str(run / "checkpoints/step-00000001")))


def test_a_run_is_not_taken_up_with_other_pictures_or_another_encoder(four: Recipe, tmp_path: Path) -> None:
    one = changed(four, stages=[four.stages[0].model_dump()], patch_discriminator=None)
    run = train(changed(one, training__checkpoint_every=1))
    shutil.rmtree(run / "checkpoints/step-00000002")
    folder = Path(one.data.train)
    shutil.copy(folder / "00.png", folder / "new.png")
    with pytest.raises(LumitokError, match=r"the pictures changed since .*8 with names .* then, 9 with"):
        train(one, resume=True)
    (folder / "new.png").unlink()
    weights = load_file(tmp_path / "encoder.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, tmp_path / "encoder.safetensors")
    with pytest.raises(LumitokError, match="the encoder encoder changed since"):
        train(one, resume=True)
