"""AlignTok's three stages: what each trains and from which weights, and that they can be stopped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lumitok.config import Recipe
from lumitok.errors import LumitokError
from lumitok.training import train
from lumitok.training.checkpoint import checkpoints, load_place
from tests.training.compare import assert_same, changed, everything, history, stopped_at


@pytest.fixture
def three(recipe: Recipe) -> Recipe:
    """The three stages, two steps of four pictures each, at the smallest size."""
    tree = recipe.model_dump()
    encoder = tree["model"]["encoder"] | {"layers": [-1]}
    tree["model"] = {
        "type": "aligntok",
        "encoder": encoder,
        "image_size": 32,
        "latent_channels": 4,
        "adapter_channels": 8,
        "decoder_channels": 32,
        "decoder_multipliers": [1, 1, 1, 1, 2],
        "decoder_blocks": 1,
    }
    tree["discriminator"] = None
    tree["patch_discriminator"] = {
        "channels": 4, "strided_layers": 2, "scales": 1, "padding": 1, "norm": "batch", "loss": "hinge",
    }  # fmt: skip
    common = {"images": 8, "batch_size": 4, "generator_lr": 1e-3, "betas": (0.5, 0.9)}
    losses = {"reduction": "sum", "l1": 1.0, "patchgan": 0.5, "patchgan_adaptive": True}
    tree["stages"] = [
        {
            "name": "one",
            **common,
            "trainable": ["adapter.*", "decoder.*"],
            "losses": {**losses, "gan_from": 4},
        },
        {"name": "two", **common, "average": "restart", "losses": {**losses, "preservation": 1.0}},
        {
            "name": "three",
            **common,
            "trainable": ["decoder.*"],
            "begin": "averaged",
            "average": "restart",
            "losses": losses,
        },
    ]
    tree["training"] |= {"ema_decay": 0.9999, "validate_every": 0, "log_every": 1, "checkpoint_every": 1}
    return Recipe.model_validate(tree)


def states(run: Path, kind: str = "generator") -> list[dict[str, Tensor]]:
    return [load_file(folder / f"training/{kind}.safetensors") for folder in checkpoints(run)]


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_each_stage_moves_its_parts_alone(three: Recipe) -> None:
    run = train(three)
    after = states(run)
    steps = [moved(a, b) for a, b in itertools.pairwise(after)]
    everything_ = {"encoder", "adapter", "decoder"}
    # Between steps 2 and 3 lies the first step of stage two; 4 to 5 begins with the averaged weights.
    assert steps == [{"adapter", "decoder"}, everything_, everything_, everything_, {"decoder"}]
    averages = states(run, "ema")
    for name in averages[3]:
        if not name.startswith("decoder."):
            torch.testing.assert_close(after[4][name], averages[3][name], rtol=0, atol=0)
            torch.testing.assert_close(averages[5][name], after[5][name], rtol=1e-6, atol=1e-7)


def test_the_average_begins_anew_with_the_stages_first_weights(three: Recipe) -> None:
    run = train(three)
    raw, averages = states(run), states(run, "ema")
    name = "decoder.conv_out.weight"
    # First step of stage two: (1 + 1) / (10 + 1) of the past, which is where stage one ended.
    expected = torch.lerp(raw[1][name], raw[2][name], 1 - 2 / 11)
    torch.testing.assert_close(averages[2][name], expected)
    assert [load_place(folder / "training").averaged for folder in checkpoints(run)] == [1, 2, 1, 2, 1, 2]


def test_the_second_stage_is_held_near_where_the_first_ended(three: Recipe) -> None:
    run = train(changed(three, training__keep=9))
    lines = [record for record in history(run) if record["kind"] == "train"]
    held = [record["values"].get("preservation") for record in lines]
    assert held[:2] == [None, None]
    assert held[2] == 0.0  # The first step begins at the reference itself.
    assert held[3] > 0
    assert held[4:] == [None, None]
    kept = load_file(checkpoints(run)[2] / "training/reference.safetensors")
    end = states(run)[1]
    assert {name.split(".")[0] for name in kept} == {"encoder", "adapter"}
    assert all(torch.equal(tensor, end[name]) for name, tensor in kept.items())
    assert not (checkpoints(run)[5] / "training/reference.safetensors").exists()


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_resume_within_and_between_the_stages(three: Recipe, tmp_path: Path, step: int) -> None:
    whole = train(three)
    stopped = stopped_at(whole, step, tmp_path / "stopped")
    train(changed(three, out=str(stopped)), resume=True)
    assert_same(whole / "checkpoints/step-00000006", stopped / "checkpoints/step-00000006")
    assert history(whole) == history(stopped)


def test_three_stages_in_one_run_equal_three_runs_in_turn(three: Recipe, tmp_path: Path) -> None:
    whole = train(three)
    start = ""
    for index, stage in enumerate(three.stages):
        out = str(tmp_path / f"run-{index}")
        train(changed(three, stages=[stage.model_dump()], init=start, out=out))
        start = out
    ours = everything(whole / "checkpoints/step-00000006")
    theirs = everything(checkpoints(Path(start))[-1])
    networks = [n for n in ours if n.startswith(("training/generator.", "training/ema.", "training/disc"))]
    assert len(networks) > 50
    assert not [name for name in networks if not torch.equal(ours[name], theirs[name])]


def test_low_rank_updates_leave_the_encoders_own_weights_alone(three: Recipe) -> None:
    tree = three.model_dump()
    tree["model"]["lora"] = {"rank": 2, "alpha": 4}
    tree["stages"] = [tree["stages"][1] | {"trainable": ["encoder.*lora_*", "adapter.*", "decoder.*"]}]
    run = train(Recipe.model_validate(tree))
    first, last = states(run)
    changed_ = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed_
    assert all("lora_" in name or name.startswith(("adapter.", "decoder.")) for name in changed_)
    assert any("lora_" in name for name in changed_)


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ({"preservation_distance": "cosine"}, "preservation"),
        ({"preservation_of": "features"}, "preservation"),
        ({"preservation_adaptive": False}, "preservation"),
    ],
)
def test_the_ablations_losses_run(three: Recipe, losses: dict[str, Any], wanted: str) -> None:
    tree = three.model_dump()
    tree["stages"] = [tree["stages"][1]]
    tree["stages"][0]["losses"] |= losses
    lines = [record for record in history(train(Recipe.model_validate(tree))) if record["kind"] == "train"]
    values = lines[-1]["values"]
    assert values[wanted] > 0
    assert ("preservation_weight" in values) == losses.get("preservation_adaptive", True)


def test_the_vf_loss_can_compare_with_an_encoder_of_its_own(three: Recipe) -> None:
    tree = three.model_dump()
    encoder = tree["model"]["encoder"]
    tree["model"] |= {"vf_head": True, "vf_channels": 32}
    stage = tree["stages"][0] | {"trainable": ["*"]}
    stage["losses"] = {"l1": 1.0, "vf": 1.0, "vf_encoder": encoder}
    tree |= {"stages": [stage], "patch_discriminator": None}
    run = train(Recipe.model_validate(tree))
    assert history(run)[-1]["values"]["vf"] > 0
    assert any(record["kind"] == "validation" and "vf" in record["values"] for record in history(run))
    tree["model"]["vf_channels"] = 48
    with pytest.raises(LumitokError, match=r"set model\.vf_channels to 32"):
        train(changed(Recipe.model_validate(tree), out=three.out + "-other"))


def test_recipes_that_cannot_be_say_why(three: Recipe, recipe: Recipe) -> None:
    def stage(**losses: Any) -> list[dict[str, Any]]:
        return [three.stages[1].model_dump() | {"losses": losses}]

    with pytest.raises(ValueError, match="needs a tokenizer whose foundation encoder is trained"):
        changed(recipe, stages=stage(l1=1.0, preservation=1.0))
    with pytest.raises(ValueError, match="no reconstruction loss has a weight"):
        changed(three, stages=stage(preservation=1.0))
    with pytest.raises(ValueError, match=r"name one as losses\.vf_encoder"):
        changed(three, model__vf_head=True, stages=stage(l1=1.0, vf=1.0))
