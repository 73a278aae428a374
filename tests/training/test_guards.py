"""Numbers that are not finite: named, written down, left out as often as allowed, never hidden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lumitok.config import Recipe
from lumitok.errors import LumitokError
from lumitok.losses.kl import kl
from lumitok.training import guards, steps, train
from lumitok.training.checkpoint import checkpoints, load_place
from lumitok.training.sums import Sums
from tests.training.compare import changed, everything, history


def poison(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    """Make the KL term not a number in the steps ``at``, counted from 1."""
    calls = {"count": 0}

    def sick(mean: Tensor, logvar: Tensor) -> Tensor:
        calls["count"] += 1
        return kl(mean, logvar) * (float("nan") if calls["count"] in at else 1.0)

    monkeypatch.setattr("lumitok.training.objective.kl", sick)


def test_a_loss_that_is_not_finite_stops_the_run_names_it_and_writes_the_batch(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4})
    with pytest.raises(LumitokError, match=r"'kl' is nan at step 4.*last good checkpoint is .*step-00000002"):
        train(recipe)
    run = Path(recipe.out)
    assert [path.name for path in checkpoints(run)] == ["step-00000002"]
    said = json.loads((run / guards.FOLDER / "step-00000004" / "generator-0.json").read_text())
    assert said["term"] == "kl"
    assert said["values"]["kl"] == "nan"
    assert any(name.startswith("fuse.") for name in said["parameters"])
    assert not any(name.startswith("vf_head.") for name in said["parameters"])  # KL does not reach it.
    assert len(said["pictures"]) == 4
    pixels = load_file(run / guards.FOLDER / "step-00000004" / "batch-0.safetensors")["pixels"]
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (4, 3, 32, 32)
    good = everything(run / "checkpoints" / "step-00000002")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in good.values())


def test_a_gradient_that_is_not_finite_is_found_though_every_loss_is(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sick(torch.autograd.Function):
        @staticmethod
        def forward(_: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * float("inf")

    monkeypatch.setattr("lumitok.training.objective.kl", lambda mean, logvar: Sick.apply(kl(mean, logvar)))
    with pytest.raises(LumitokError, match=r"'generator_gradient' is nan at step 1 \(parameters: proj"):
        train(recipe)
    said = json.loads((Path(recipe.out) / guards.FOLDER / "step-00000001" / "generator-0.json").read_text())
    assert {name.split(".")[0] for name in said["parameters"]} == {"projections", "fuse"}


def test_steps_may_be_left_out_and_are_counted(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {3, 5})
    run = train(changed(recipe, training__skip_not_finite=2))
    assert load_place(run / "checkpoints/step-00000006/training").skipped == 2
    lines = [r["values"] for r in history(run) if r["kind"] == "train"]
    assert [line.get("skipped_steps") for line in lines] == [None, 1, 2]
    assert all(value == value for line in lines for value in line.values())
    assert sorted(path.name for path in (run / guards.FOLDER).iterdir()) == ["step-00000003", "step-00000005"]
    steps = load_file(run / "checkpoints/step-00000006/training/generator_optimizer.safetensors")
    assert {float(t) for name, t in steps.items() if name.endswith(".step")} == {4.0}


def test_one_step_too_many_stops_also_when_the_first_were_before_a_resume(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {1})
    one = changed(recipe, training__skip_not_finite=1, training__checkpoint_every=2)
    original = Sums.collect
    state = {"steps": 0}

    def stop(self: Sums, values: dict[str, float]) -> None:
        state["steps"] += 1
        if state["steps"] == 8:
            raise KeyboardInterrupt
        original(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(Sums, "collect", stop)
        with pytest.raises(KeyboardInterrupt):
            train(one)
    poison(monkeypatch, {1})
    with pytest.raises(LumitokError, match="after 1 steps left out"):
        train(one, resume=True)


def test_a_weight_that_is_not_finite_stops_the_run_and_is_not_saved(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"count": 0}
    original = torch.optim.Adam.step

    def sick(self: torch.optim.Adam, *args: object) -> object:
        result = original(self)
        calls["count"] += 1
        if calls["count"] == 8:  # The discriminator's and the generator's step take turns.
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("inf")
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", sick)
    with pytest.raises(LumitokError, match=r"step 4 made weights infinite .*parameters: projections\.0"):
        train(recipe)
    assert [path.name for path in checkpoints(Path(recipe.out))] == ["step-00000002"]


def test_gradient_norms_are_logged_part_by_part(recipe: Recipe) -> None:
    values = history(train(changed(recipe, stages__0__images=8)))[0]["values"]
    parts = {name for name in values if name.startswith("generator_gradient/")}
    assert {"generator_gradient/fuse", "generator_gradient/blocks.0", "generator_gradient/vf_head"} <= parts
    assert "discriminator_gradient/foundation" in values


def test_the_norm_of_the_whole_is_that_of_its_parts() -> None:
    network = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.ModuleList([nn.Linear(2, 2)])})
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    norms = guards.gradient_norms(network, "g")
    assert set(norms) == {"g", "g/a", "g/b.0"}
    flat = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(norms["g"], flat.norm())
    torch.testing.assert_close(norms["g"] ** 2, norms["g/a"] ** 2 + norms["g/b.0"] ** 2)


def test_clipping_bounds_the_step_but_the_log_shows_the_norm_as_it_came(
    recipe: Recipe, tmp_path: Path
) -> None:
    seen: list[float] = []
    original = torch.optim.Adam.step

    def watch(self: torch.optim.Adam, *args: object) -> object:
        gradients = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
        seen.append(float(torch.nn.utils.get_total_norm(gradients)))
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", watch)
        clipped = train(changed(recipe, stages__0__images=8, stages__0__clip_norm=1e-3))
    assert max(seen) <= 1.01e-3
    free = train(changed(recipe, out=str(tmp_path / "free"), stages__0__images=4))
    logged, plain = (history(run)[0]["values"]["generator_gradient"] for run in (clipped, free))
    assert logged > 1e-2
    assert logged == pytest.approx(plain, rel=0.5)


def test_a_step_in_which_both_networks_fail_is_one_step_left_out(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"count": 0}
    real = steps.reconstruct

    def sick(*arguments: Any) -> Any:
        output = real(*arguments)
        calls["count"] += 1
        return replace(output, sample=output.sample * float("nan")) if calls["count"] == 3 else output

    monkeypatch.setattr(steps, "reconstruct", sick)
    run = train(changed(recipe, training__skip_not_finite=1))
    assert load_place(run / "checkpoints/step-00000006/training").skipped == 1
    said = {path.name for path in (run / guards.FOLDER / "step-00000003").iterdir()}
    assert said == {"discriminators-0.json", "generator-0.json", "batch-0.safetensors"}


def test_a_run_that_broke_goes_on_with_the_settings_that_the_message_names(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        poison(patch, {4})
        with pytest.raises(LumitokError, match=r"stages\.N\.generator_lr"):
            train(recipe)
    mended = changed(recipe, stages__0__generator_lr=1e-4, stages__0__clip_norm=1.0)
    run = train(changed(mended, training__skip_not_finite=3), resume=True)
    assert [path.name for path in checkpoints(run)][-1] == "step-00000006"
    said = capsys.readouterr().err
    assert "with stages.0.clip_norm None -> 1.0, stages.0.generator_lr 0.001 -> 0.0001" in said


def test_weights_that_are_large_pass_and_infinite_ones_are_named(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    parameters = list(network.parameters())
    guard = guards.Guard(tmp_path, rank=0, allowed=0)
    guard.watch(7, [torch.zeros(1, 3, 2, 2, dtype=torch.uint8)], ["a.png"])
    with torch.no_grad():
        network.weight.fill_(1e30)  # Its square is beyond float32.
    guard.check_weights(network, parameters)
    for wrong in (float("inf"), float("nan")):
        with torch.no_grad():
            network.weight[0, 1] = wrong
        with pytest.raises(LumitokError, match=r"step 7 made weights infinite .*\(parameters: weight\)"):
            guard.check_weights(network, parameters)
