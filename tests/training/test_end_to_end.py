"""Tokenizer and network together: which loss reaches what, the live normalisation, resume to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from lumitok import Tokenizer
from lumitok.config import EndToEndRecipe, Recipe, load_any, load_diffusion_recipe, load_recipe
from lumitok.data.latents import LatentOrigin
from lumitok.diffusion.base import DiffusionNetwork
from lumitok.errors import LumitokError
from lumitok.pipelines.latent_diffusion import LatentDiffusionPipeline
from lumitok.training import end_to_end_loop as loop
from lumitok.training import train, train_end_to_end
from lumitok.training.checkpoint import checkpoints
from lumitok.training.diffusion_steps import _forward
from lumitok.training.end_to_end_setup import EndToEndRun, start_end_to_end
from lumitok.training.end_to_end_steps import EndToEndState, network_parts
from lumitok.training.live_normaliser import LiveNormaliser
from lumitok.training.seeds import StepDraws
from lumitok.training.steps import Part, reconstruct
from tests.training.compare import assert_close, assert_same, history, stopped_at
from tests.training.test_processes import TORCHRUN, launch

ENCODER = {
    "name": "dinov2-small",
    "weights": "random",
    "scale": 0.875,
    "timm_kwargs": {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 28},
}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """Four adversarial steps in two stages, of a tiny VAE and a tiny SiT."""
    rng = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / "pictures" / "abc"[index % 3]
        path.mkdir(parents=True, exist_ok=True)
        patches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        patches.resize((32, 32), Image.Resampling.NEAREST).save(path / f"{index:02d}.png")
    stage = {
        "name": "first",
        "images": 8,
        "batch_size": 4,
        "generator_lr": 1e-3,
        "losses": {"l1": 1.0, "kl": 1e-6, "patchgan": 0.1},
        "network_losses": {"alignment": 0.5, "alignment_encoder": ENCODER},
    }
    model = {"type": "ldm", "image_size": 32, "downsampling": 8, "latent_channels": 4}
    model |= {"channels": 32, "multipliers": [1, 1, 1, 1], "encoder_blocks": 1, "decoder_blocks": 1}
    projector = {"block": 1, "hidden": 16, "channels": 32}
    return {
        "out": str(tmp_path / "run"),
        "model": model,
        "network": {
            "type": "sit",
            "depth": 2,
            "width": 16,
            "heads": 2,
            "patch": 2,
            "projector": projector,
        },
        "data": {"train": str(tmp_path / "pictures"), "workers": 0},
        "patch_discriminator": {"channels": 8, "scales": 1, "strided_layers": 1, "padding": 1},
        "stages": [stage, stage | {"name": "second", "clip_norm": 0.5, "times": {"kind": "uniform"}}],
        "samples": {"every": 2, "count": 3, "sampling": {"steps": 2}},
        "training": {
            "precision": "fp32",
            "log_every": 1,
            "checkpoint_every": 1,
            "keep": 9,
            "ema_decay": 0.5,
            "network_ema_decay": 0.5,
            "statistics_images": 8,
            "tracker": "none",
        },
    }


def made(values: dict[str, Any]) -> EndToEndRecipe:
    return EndToEndRecipe.model_validate(values)


def last(run: Path) -> Path:
    return checkpoints(run)[-1]


# ------------------------------------------------------------------------------------------------
# Gradients


def begun(values: dict[str, Any]) -> tuple[EndToEndRun, EndToEndState, Part]:
    """A run at its first step, with a network whose zero-initialised layers let gradients through."""
    run = start_end_to_end(made(values), resume=False)
    generator = torch.Generator().manual_seed(0)
    for parameter in run.network.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    state = loop._enter(run, run.recipe.stages[0])
    pictures = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    return run, state, Part(pictures, StepDraws(0, 0, 0, 0, 4), torch.tensor([0, 1, 2, 0]))


def reached(run: EndToEndRun) -> set[str]:
    """Parts with a gradient that is not zero."""
    parts: dict[str, nn.Module] = {
        "encoder": run.tokenizer.encoder,
        "decoder": run.tokenizer.decoder,
        "network": run.network.blocks,
        "projector": run.network.projector,
        "final layer": run.network.final_layer,
    }
    if run.discriminators is not None:
        parts["discriminators"] = run.discriminators
    return {
        name
        for name, part in parts.items()
        if any(p.grad is not None and bool(p.grad.count_nonzero()) for p in part.parameters())
    }


def loss_of(state: EndToEndState, part: Part, name: str) -> Tensor:
    """One loss by itself: the tokenizer's alignment, or one of the network's step."""
    output = reconstruct(state.tokenizer, part, None)
    terms = state.align(part, output)
    if name == "l1":
        return (output.sample - part.pictures).abs().mean()
    if name != "tokenizer_alignment":
        (latent,) = network_parts(state)
        terms = _forward(state.network, latent)[1]
    return terms[name][1]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("l1", {"encoder", "decoder"}),
        ("tokenizer_alignment", {"encoder"}),
        ("velocity", {"network", "final layer"}),
        ("alignment", {"network", "projector"}),
    ],
)
def test_which_loss_reaches_what(values: dict[str, Any], name: str, parts: set[str]) -> None:
    run, state, part = begun(values)
    loss_of(state, part, name).backward()
    assert reached(run) == parts
    assert all(parameter.requires_grad for parameter in state.network.parameters)


def test_both_passes_see_one_noise_and_the_tokenizer_keeps_its_labels(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["stages"][0]["label_dropout"] = 0.999
    run, state, part = begun(values)
    seen: list[tuple[Tensor, ...]] = []
    predict = type(run.network).predict

    def watched(self: Any, x: Tensor, t: Tensor, labels: Tensor, **options: Any) -> Any:
        seen.append((x, t, labels))
        assert options.get("until", 2) == (1 if len(seen) == 1 else 2)
        return predict(self, x, t, labels, **options)

    monkeypatch.setattr(type(run.network), "predict", watched)
    loss_of(state, part, "velocity")
    (x, t, labels), (later_x, later_t, later_labels) = seen
    assert torch.equal(t, later_t)
    assert not state.seen[0].data.requires_grad  # Nor does it hold the tokenizer's graph.
    assert labels.tolist() == [0, 1, 2, 0]
    assert later_labels.tolist() == [3] * 4
    # The same noise and latents; only the statistics are others: one line a channel.
    gap = ((later_x - x).detach() / t.view(-1, 1, 1, 1)).transpose(0, 1).flatten(1)
    z = state.seen[0].data.transpose(0, 1).flatten(1)
    for ours, theirs in zip(gap, z, strict=True):
        assert abs(float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])) > 0.999


# ------------------------------------------------------------------------------------------------
# Live normalisation


def test_the_live_normalisation_is_batch_norm() -> None:
    ours, theirs = LiveNormaliser(4, 0.1), nn.BatchNorm2d(4, eps=1e-4, momentum=0.1, affine=False)
    accelerator = Accelerator(cpu=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        z = torch.randn(6, 4, 3, 5, generator=generator) * torch.tensor([0.01, 1, 3, 9]).view(1, -1, 1, 1) + 2
        whole = torch.cat(ours.normalise_step(z.split(2), accelerator))  # In parts: the batch is the step's.
        torch.testing.assert_close(whole, theirs(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    theirs.eval()
    torch.testing.assert_close(ours(z), theirs(z))
    mean, std = (value.view(1, -1, 1, 1) for value in ours.statistics)
    torch.testing.assert_close((z - mean) / std, theirs(z))


def test_what_is_not_finite_leaves_the_running_statistics() -> None:
    normaliser = LiveNormaliser(2, 0.1)
    normaliser.normalise_step([torch.full((2, 2, 2, 2), float("nan"))], Accelerator(cpu=True))
    assert normaliser.running_mean.tolist() == [0, 0]
    assert normaliser.running_var.tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------
# The run


def test_a_run_leaves_a_tokenizer_and_a_network_that_belong_together(values: dict[str, Any]) -> None:
    run = train_end_to_end(made(values))
    for folder in (run, last(run)):
        tokenizer, network = Tokenizer.from_pretrained(folder), DiffusionNetwork.from_pretrained(folder)
        origin = LatentOrigin.load(folder / "network")
        assert origin is not None
        assert origin.spec == tokenizer.latent_spec
        assert origin.classes == ("a", "b", "c")
        assert network.latent_shape == (4, 4, 4)
        assert network.null_label == 3
        pipeline = LatentDiffusionPipeline.from_pretrained(folder)
        assert len(pipeline(class_labels=[1], num_inference_steps=1).images) == 1
    resolved = load_any(str(run / "recipe.yaml"))
    assert isinstance(resolved, EndToEndRecipe)
    assert resolved.network.in_channels == 4
    found = history(run)
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    wanted = {"l1", "kl", "patchgan", "patch_discriminator", "tokenizer_alignment", "velocity", "alignment"}
    assert wanted | {"generator_gradient", "gradient"} <= found[0]["values"].keys()
    assert [path.name for path in sorted((run / "sample-grids").iterdir())] == [
        "step-00000002.png",
        "step-00000004.png",
    ]


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_was_killed_goes_on_to_the_bit(values: dict[str, Any], tmp_path: Path, step: int) -> None:
    whole = train_end_to_end(made(values))
    stopped = stopped_at(whole, step, tmp_path / "stopped")
    again = train_end_to_end(made(values | {"out": str(stopped)}), resume=True)
    assert_same(last(whole), last(again))
    assert history(whole) == history(again)
    for name in ("tokenizer/config.json", "network/latents.json"):
        assert (whole / name).read_text() == (again / name).read_text()


def test_parts_and_processes_change_only_rounding(values: dict[str, Any], tmp_path: Path) -> None:
    values["stages"] = [values["stages"][0] | {"losses": {"l1": 1.0}, "generator_lr": 1e-4}]
    values["patch_discriminator"] = None
    one = train_end_to_end(made(values))
    parts = values["training"] | {"accumulation": 2}
    both = made(values | {"out": str(tmp_path / "two"), "training": parts})
    two = launch(TORCHRUN, both, tmp_path)  # type: ignore[arg-type]
    assert_close(last(one), last(two), atol=3e-4)


def test_a_number_that_is_not_finite_is_left_out_once(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["training"]["skip_not_finite"] = 1
    real = loop.next_parts
    calls = []

    def spoilt(*args: Any) -> list[Part]:
        parts = real(*args)
        calls.append(len(parts))
        if len(calls) == 2:
            parts[0].pictures[0, 0, 0, 0] = float("nan")
        return parts

    monkeypatch.setattr(loop, "next_parts", spoilt)
    run = train_end_to_end(made(values))
    assert history(run)[-1]["values"]["skipped_steps"] == 1
    origin = LatentOrigin.load(run / "network")
    assert origin is not None
    assert np.isfinite(origin.spec.mean or ()).all()


def test_it_begins_with_a_tokenizer_and_others_begin_with_it(values: dict[str, Any], tmp_path: Path) -> None:
    first = train_end_to_end(made(values))
    recipe = tmp_path / "second.yaml"
    shutil.copy(first / "recipe.yaml", recipe)
    changes = [f"init={first}", f"out={tmp_path / 'second'}", "stages.0.generator_lr=1e-5"]
    second = load_any(str(recipe), changes)
    assert isinstance(second, EndToEndRecipe)
    run = start_end_to_end(second, resume=False)
    ours, theirs = run.tokenizer.state_dict(), Tokenizer.from_pretrained(first).state_dict()
    gaps = [float((ours[name] - theirs[name]).abs().max()) for name in ours]
    assert max(gaps) < 0.01  # The raw weights, near their average of two steps' length.
    # A tokenizer's run goes on from it: discriminators and all.
    tree = values | {"init": str(first), "out": str(tmp_path / "third")}
    stage = {k: v for k, v in values["stages"][0].items() if k != "network_losses"}
    tree |= {"stages": [stage], "training": {"tracker": "none", "precision": "fp32", "best": "none"}}
    third = Recipe.model_validate({k: v for k, v in tree.items() if k not in ("network", "samples")})
    Tokenizer.from_pretrained(train(third))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"type": "sit", "depth": 1, "width": 16, "heads": 2}}, "network.projector"),
        ({"data": {"preparation": "keep-aspect"}}, "takes squares"),
    ],
)
def test_what_does_not_fit_is_said(values: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(values | change)


def test_an_encoding_side_that_stands_still_is_refused(values: dict[str, Any]) -> None:
    values["stages"][0]["trainable"] = ["decoder.*"]
    with pytest.raises(LumitokError, match="trains nothing before the latent"):
        train_end_to_end(made(values))
    with pytest.raises(LumitokError, match=r"train\(\) trains tokenizers"):
        train(made(values))  # type: ignore[arg-type]


def test_another_network_is_refused(values: dict[str, Any]) -> None:
    values["network"]["in_channels"] = 8
    with pytest.raises(
        LumitokError, match=r"network.in_channels is 8, but this recipe's tokenizer .* have 4"
    ):
        train_end_to_end(made(values))


# ------------------------------------------------------------------------------------------------
# The recipe


def test_the_recipe_is_the_papers() -> None:
    recipe = load_any("repa-e/imagenet256/sit-xl")
    assert isinstance(recipe, EndToEndRecipe)
    (stage,) = recipe.stages
    assert stage.images == 400_000 * 256
    assert (stage.tokenizer_alignment, stage.network_losses.alignment) == (1.5, 0.5)
    assert (recipe.network.depth, recipe.network.width, recipe.network.projector.block) == (28, 1152, 8)  # type: ignore[union-attr]
    for load in (load_recipe, load_diffusion_recipe):
        with pytest.raises(LumitokError, match="trains a tokenizer and a diffusion network together"):
            load("repa-e/imagenet256/sit-xl")


def test_the_recipe_takes_a_step_at_a_tiny_size(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class MadeUpLPIPS(nn.Module):
        def forward(self, image: Tensor, target: Tensor) -> Tensor:
            return (image - target).square().mean(dim=(1, 2, 3))

    monkeypatch.setattr("lumitok.training.objective.LPIPS", MadeUpLPIPS)
    recipe = load_any("repa-e/imagenet256/sit-xl")
    assert isinstance(recipe, EndToEndRecipe)
    tree = recipe.model_dump()
    tree["model"] |= values["model"]
    tree["network"] |= values["network"] | {"in_channels": 4, "input_size": 4, "classes": 3}
    tree["data"] |= values["data"]
    tree["patch_discriminator"] |= {"channels": 8, "strided_layers": 1}
    tree["stages"][0] |= {"images": 4, "batch_size": 4}
    tree["stages"][0]["network_losses"]["alignment_encoder"] |= ENCODER
    tree["samples"] |= {"count": 1, "sampling": {"steps": 1}}
    tree["training"] |= {"precision": "fp32", "tracker": "none", "statistics_images": 4}
    run = train_end_to_end(EndToEndRecipe.model_validate(tree | {"out": values["out"]}))
    assert history(run)[0]["values"]["lpips"] > 0
