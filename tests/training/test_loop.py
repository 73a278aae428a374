"""The loop: what a run leaves behind, resume, stages, accumulation, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lumitok import Tokenizer
from lumitok.config import Recipe, load_recipe
from lumitok.errors import LumitokError
from lumitok.evaluation.curves import read_history
from lumitok.training import find_tokenizer, train
from lumitok.training.checkpoint import checkpoints, load_place
from tests.training.compare import assert_same, changed, everything


def test_what_a_run_leaves_behind(recipe: Recipe) -> None:
    run = train(recipe)
    assert run == Path(recipe.out)
    assert load_recipe(str(run / "recipe.yaml")) == recipe
    assert [path.name for path in checkpoints(run)] == ["step-00000002", "step-00000004", "step-00000006"]
    history = read_history(run / "history.jsonl")
    logged = [(r["step"], r["images"]) for r in history if r["kind"] == "train"]
    assert logged == [(2, 8), (4, 16), (6, 24)]
    terms = {"l1", "multi_resolution_l1", "feature-distance/timm:vit_tiny_patch16_224", "kl", "vf", "gan"}
    assert terms | {"discriminator", "vf_weight", "images_per_second"} <= history[0]["values"].keys()
    measured = [r for r in history if r["kind"] == "validation"]
    assert [r["step"] for r in measured] == [3, 6]
    assert measured[-1]["values"]["count"] == 4
    with Image.open(run / "grids" / "step-00000006.png") as sheet:
        assert sheet.width > 4 * 32
    assert len(list((run / "examples" / "step-00000006").glob("*.png"))) == 4
    tokenizer = Tokenizer.from_pretrained(find_tokenizer(run))
    assert tokenizer.config.latents_count == 8
    spec = tokenizer.latent_spec
    assert len(spec.mean or ()) == len(spec.std or ()) == 4
    assert min(spec.std or ()) > 0


def test_six_steps_equal_four_a_stop_and_two(recipe: Recipe, tmp_path: Path) -> None:
    whole = train(recipe)
    stopped = tmp_path / "stopped"
    (stopped / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / "step-00000004", stopped / "checkpoints" / "step-00000004")
    shutil.copy(whole / "history.jsonl", stopped / "history.jsonl")
    train(changed(recipe, out=str(stopped)), resume=True)
    last = "checkpoints/step-00000006"
    assert_same(whole / last, stopped / last)
    ours, theirs = (read_history(run / "history.jsonl") for run in (whole, stopped))
    for record in (*ours, *theirs):
        record["values"].pop("images_per_second", None)
    assert ours == theirs


def test_training_moves_the_weights_and_the_seed_decides_how(recipe: Recipe, tmp_path: Path) -> None:
    first = train(recipe) / "checkpoints/step-00000006"
    again = train(changed(recipe, out=str(tmp_path / "again"))) / "checkpoints/step-00000006"
    assert_same(first, again)
    other = (
        train(changed(recipe, out=str(tmp_path / "other"), training__seed=1)) / "checkpoints/step-00000006"
    )
    ours, theirs = everything(first), everything(other)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    early = everything(first.parent / "step-00000002")
    for network in ("generator.safetensors", "discriminator.safetensors"):
        assert any(not torch.equal(ours[name], early[name]) for name in ours if network in name)


def test_l1_falls_when_it_alone_is_trained(recipe: Recipe) -> None:
    alone = changed(
        recipe, stages__0__losses={"l1": 1.0}, stages__0__images=160, training__checkpoint_every=0
    )
    alone = changed(alone, stages__0__generator_lr=5e-3)
    history = [r for r in read_history(train(alone) / "history.jsonl") if r["kind"] == "train"]
    assert history[-1]["values"]["l1"] < 0.9 * history[0]["values"]["l1"]
    assert "discriminator" not in history[0]["values"]


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(recipe: Recipe, tmp_path: Path) -> None:
    # Without draws and without losses whose weight depends on the part, the steps must agree.
    plain = changed(recipe, stages__0__losses={"l1": 1.0, "kl": 1e-6}, stages__0__images=4)
    plain = changed(plain, data__flip=False)
    whole = train(plain)
    parts = train(changed(plain, out=str(tmp_path / "parts"), training__accumulation=2))
    a, b = (read_history(run / "history.jsonl")[0]["values"] for run in (whole, parts))
    assert a["l1"] == pytest.approx(b["l1"], rel=1e-5)
    assert a["generator_gradient"] == pytest.approx(b["generator_gradient"], rel=1e-4)


def test_stages_follow_one_another_with_new_optimizers(recipe: Recipe) -> None:
    first = recipe.stages[0].model_dump() | {"images": 8}
    second = first | {
        "name": "second",
        "images": 8,
        "trainable": ["blocks.*", "mapping.*"],
        "losses": {"l1": 1.0},
    }
    run = train(changed(recipe, stages=[first, second]))
    names = [path.name for path in checkpoints(run)]
    assert names == ["step-00000002", "step-00000004"]
    place = load_place(run / "checkpoints/step-00000004/training")
    assert (place.stage, place.stage_step, place.step, place.images) == (1, 2, 4, 16)
    before, after = (load_file(run / f"checkpoints/{n}/training/generator.safetensors") for n in names)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"blocks", "mapping"}
    steps = load_file(run / "checkpoints/step-00000004/training/generator_optimizer.safetensors")
    assert {float(t) for name, t in steps.items() if name.endswith(".step")} == {2.0}


def test_resume_where_a_stage_ended(recipe: Recipe, tmp_path: Path) -> None:
    first = recipe.stages[0].model_dump() | {"images": 8}
    second = first | {"name": "second", "images": 8, "losses": {"l1": 1.0}}
    two = changed(recipe, stages=[first, second])
    whole = train(two)
    stopped = tmp_path / "stopped"
    (stopped / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints/step-00000002", stopped / "checkpoints/step-00000002")
    train(changed(two, out=str(stopped)), resume=True)
    assert_same(whole / "checkpoints/step-00000004", stopped / "checkpoints/step-00000004")


def test_a_run_is_not_overwritten_and_not_resumed_with_another_recipe(recipe: Recipe) -> None:
    train(changed(recipe, stages__0__images=8))
    with pytest.raises(LumitokError, match="holds a run already; go on with --resume"):
        train(recipe)
    with pytest.raises(LumitokError, match="was started with another 'stages'"):
        train(recipe, resume=True)


def test_only_the_newest_checkpoints_are_kept(recipe: Recipe) -> None:
    run = train(changed(recipe, training__keep=1))
    assert [path.name for path in checkpoints(run)] == ["step-00000006"]


def test_what_cannot_be_trained_says_why(recipe: Recipe) -> None:
    with pytest.raises(LumitokError, match=r"add data\.train=FOLDER_OR_ZIP"):
        train(changed(recipe, data__train=""))
    with pytest.raises(
        LumitokError, match=r"no parameter is named 'block\.\*'; did you mean 'blocks\.\*'"
    ) as told:
        train(changed(recipe, stages__0__trainable=["block.*"]))
    assert "; there are " in str(told.value)
    assert "mapping.*" in str(told.value)


def test_every_stage_is_looked_at_before_the_first_begins(recipe: Recipe, nothing_at_hand: Path) -> None:
    first = recipe.stages[0].model_dump()
    later: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 9, "images": 18}, "in equal groups of at most 8"),
        ({"trainable": ["nothing.*"]}, "no parameter is named"),
        ({"losses": {"lpips": 1.0}}, "needs VGG16's weights"),
    ]
    for index, (change, said) in enumerate(later):
        second = first | {"name": "second"} | change
        with pytest.raises(LumitokError, match=said):
            train(changed(recipe, out=f"{recipe.out}-{index}", stages=[first, second]))
        assert not (Path(f"{recipe.out}-{index}") / "history.jsonl").exists()


def test_the_folder_of_a_tokenizer_is_found(recipe: Recipe, tmp_path: Path) -> None:
    run = train(changed(recipe, stages__0__images=8))
    assert find_tokenizer(run) == run / "tokenizer"
    assert find_tokenizer(run / "tokenizer") == run / "tokenizer"
    checkpoint = checkpoints(run)[-1]
    assert find_tokenizer(checkpoint) == checkpoint / "tokenizer"
    shutil.rmtree(run / "tokenizer")
    assert find_tokenizer(run) == checkpoint / "tokenizer"
    with pytest.raises(LumitokError, match="holds no tokenizer"):
        find_tokenizer(tmp_path)
    with pytest.raises(LumitokError, match="there is no"):
        find_tokenizer(tmp_path / "nowhere")


def test_history_lines_are_json(recipe: Recipe) -> None:
    run = train(changed(recipe, stages__0__images=8))
    for line in (run / "history.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {"step", "images", "stage", "kind", "values"}
