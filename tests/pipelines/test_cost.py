"""The cost table: counts of the papers, and measurements that end well, badly, late or not at all."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lumitok.config import Recipe, load_recipe, save_recipe
from lumitok.errors import LumitokError
from lumitok.pipelines import cost_networks
from lumitok.pipelines.cost import Cost, Costs, Request, measure_costs
from lumitok.pipelines.cost_child import Measurement, PeakMemory, Ready, Setting, measure, timed
from lumitok.pipelines.cost_networks import count_sides, count_stage, run_steps, with_random_weights
from lumitok.tokenizers import build_tokenizer

QUICK = Setting("cpu", "fp32", threads=1, repeats=2, limit=60.0)
MIB = 2**20


@pytest.fixture
def tree(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """A tiny AlignTok: a stage with frozen encoder and LPIPS, one that trains and preserves it."""
    encoder = tiny_recipe["model"]["encoder"] | {"layers": [-1], "weights": "nowhere.safetensors"}
    losses = {"l1": 1.0, "lpips": 1.0, "patchgan": 0.5, "patchgan_adaptive": True}
    stage = {"images": 80, "batch_size": 4}
    return {
        "model": {
            "type": "aligntok",
            "encoder": encoder,
            "image_size": 32,
            "latent_channels": 4,
            "adapter_channels": 8,
            "decoder_channels": 32,
            "decoder_multipliers": [1, 1, 1, 1, 1],
            "decoder_blocks": 1,
        },
        "patch_discriminator": {"channels": 4, "strided_layers": 2, "scales": 1, "norm": "batch"},
        "stages": [
            stage | {"name": "one", "losses": losses, "trainable": ["adapter.*", "decoder.*"]},
            stage | {"name": "two", "losses": losses | {"preservation": 1.0}},
        ],
    }


@pytest.fixture
def recipe(tree: dict[str, Any]) -> Recipe:
    found: Recipe = with_random_weights(Recipe.model_validate(tree))
    return found


@pytest.fixture
def file(tree: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


# Counting -----------------------------------------------------------------------------------------


def test_the_stages_have_the_paper_s_parameters() -> None:
    pytest.importorskip("lpips")
    recipe = with_random_weights(load_recipe("aligntok/imagenet256/all"))
    counted = [count_stage(recipe, index) for index in range(3)]
    trained = [(stage.trainable + stage.discriminator) / 1e6 for stage in counted]
    assert [round(number, places) for number, places in zip(trained, (2, 1, 2), strict=True)] == [
        44.25,  # Table 6
        348.6,
        44.18,
    ]
    # Its frozen ones: encoder or the copy of it, and LPIPS; 319.0, 319.0 and 319.1.
    assert [stage.frozen / 1e6 for stage in counted] == pytest.approx([319.1, 319.1, 319.1], abs=0.1)


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [("aligntok/imagenet256/all", 304.4, 41.42), ("va-vae/imagenet256/dinov2-large", 28.41, 41.42)],
)
def test_both_sides_have_the_paper_s_parameters(name: str, encoder: float, decoder: float) -> None:
    model = with_random_weights(load_recipe(name)).model
    with torch.device("meta"):
        tokenizer = build_tokenizer(model, load_weights=False).eval()
    sides = count_sides(tokenizer, 256)
    counted = [sum(side.parameters.values()) / 1e6 for side in sides.values()]
    assert counted == pytest.approx([encoder, decoder], abs=0.04)  # Tables 6 and 8
    assert sides["decode"].macs / 1e9 == pytest.approx(126.5, rel=0.01)  # Table 7
    assert sides["decode"].input_shape == (32, 16, 16)


def test_each_side_reads_its_own_parameters(recipe: Recipe) -> None:
    with torch.device("meta"):
        tokenizer = build_tokenizer(recipe.model, load_weights=False).eval()
    sides = count_sides(tokenizer, 64)
    tops = {verb: {name.split(".")[0] for name in side.parameters} for verb, side in sides.items()}
    assert tops == {"encode": {"encoder", "adapter"}, "decode": {"decoder"}}
    for name, parameter in tokenizer.named_parameters():
        if name.startswith("decoder."):
            assert sides["decode"].parameters[name] == parameter.numel()
    assert sides["decode"].input_shape == (4, 4, 4)
    assert count_sides(tokenizer, 32)["decode"].macs < sides["decode"].macs


def test_no_encoder_s_weights_are_asked_for(tiny_recipe: dict[str, Any]) -> None:
    named = tiny_recipe["model"]["encoder"] | {"weights": "nowhere", "sha256": "0" * 64}
    tiny_recipe["model"]["encoder"] = tiny_recipe["discriminator"]["encoder"] = named
    losses = tiny_recipe["stages"][0]["losses"]
    losses |= {"feature_distance": 1.0, "feature_distance_encoder": named, "vf": 1.0, "vf_encoder": named}
    found = with_random_weights(Recipe.model_validate(tiny_recipe))
    assert "nowhere" not in str(found)
    assert "0" * 64 not in str(found)
    assert found.stages[0].losses.l1 == 1.0


# One measurement ----------------------------------------------------------------------------------


def hold(mebibytes: int, ready: Ready) -> Measurement:
    memory = PeakMemory(torch.device("cpu"))
    kept = torch.ones(20 * MIB // 4)  # As weights.
    return timed(lambda: kept.sum() + torch.ones(mebibytes * MIB // 4), QUICK, memory, ready)


def sleep(seconds: float, ready: Ready) -> Measurement:
    ready()
    time.sleep(seconds)
    raise AssertionError


def ask_for_too_much(ready: Ready) -> Measurement:
    PeakMemory(torch.device("cpu"))
    torch.ones(2**50)
    raise AssertionError


def be_killed(number: int, ready: Ready) -> Measurement:
    ready()
    os.kill(os.getpid(), number)
    time.sleep(60)
    raise AssertionError


def complain(ready: Ready) -> Measurement:
    raise LumitokError("three pictures are too few")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells this exactly")
def test_memory_is_weights_and_work_and_not_what_came_before() -> None:
    filler = torch.ones(200 * MIB // 4)
    peaks = [measure(60, hold, mebibytes).peak_bytes for mebibytes in (0, 100)]
    del filler
    # The sum makes a second tensor of the work's size.
    assert [peak / MIB for peak in peaks if peak is not None] == pytest.approx([20, 220], abs=10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only a run moves, in this process."""
    now = [0.0]
    monkeypatch.setattr("lumitok.pipelines.cost_child.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("lumitok.pipelines.cost_child._limit_memory", lambda: None)
    return now


def runs_of(clock: list[float], seconds: list[float], repeats: int, limit: float) -> Measurement:
    left = iter(seconds)

    def run() -> None:
        clock[0] += next(left)

    setting = Setting("cpu", "fp32", 1, repeats, limit)
    return timed(run, setting, PeakMemory(torch.device("cpu")), lambda: None)


def test_time_is_the_repeats_after_the_warm_up(clock: list[float]) -> None:
    found = runs_of(clock, [9.0, 2.0, 1.0, 4.0], repeats=3, limit=60)
    assert (found.seconds, found.fastest, found.slowest, found.repeats) == (2.0, 1.0, 4.0, 3)


def test_fewer_repeats_where_the_limit_comes_first(clock: list[float]) -> None:
    found = runs_of(clock, [1.0] * 9, repeats=100, limit=4.5)
    assert (found.status, found.repeats) == ("measured", 3)  # With the warm-up four.


def test_what_takes_too_long_is_given_up(clock: list[float]) -> None:
    # By itself where a second run would not end in time, and from outside where the first does not.
    assert runs_of(clock, [3.0], repeats=2, limit=4.0).status == "over the limit"
    assert measure(0.2, sleep, 600) == Measurement("over the limit")


def test_too_little_memory_is_said() -> None:
    assert measure(60, ask_for_too_much).status == "out of memory"
    assert measure(60, be_killed, int(signal.SIGKILL)).status == "out of memory"


def test_other_ends_are_said() -> None:
    assert measure(60, be_killed, int(signal.SIGTERM)).note == "the process ended with SIGTERM"
    assert measure(60, complain) == Measurement("failed", note="three pictures are too few")


# Whole --------------------------------------------------------------------------------------------


def test_a_step_is_the_engine_s_and_has_every_loss(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lpips")
    states, seen = [], []
    real = cost_networks.train_step

    def watch(state: Any, parts: Any, images_seen: int) -> None:
        real(state, parts, images_seen)
        states.append(state)
        seen.append(images_seen)

    monkeypatch.setattr(cost_networks, "train_step", watch)
    # In this process, where the step can be seen; its allocator and limits stay as they are.
    monkeypatch.setattr(cost_networks, "keep_freed_memory", lambda: None)
    monkeypatch.setattr("lumitok.pipelines.cost_child._limit_memory", lambda: None)
    stages = [recipe.stages[0], recipe.stages[1].model_copy(update={"batch_size": 2})]
    divided = recipe.model_copy(
        update={"stages": stages, "training": recipe.training.model_copy(update={"accumulation": 2})}
    )
    found = run_steps(divided, 1, QUICK, lambda: None)
    assert (found.status, found.repeats) == ("measured", 2)
    assert seen == [158] * 3  # A warm-up and two, at the end of the second stage.
    values = states[-1].sums.means()
    assert {"l1", "lpips", "preservation", "patchgan", "patch_discriminator"} <= values.keys()
    assert all(math.isfinite(value) for value in values.values())
    assert states[-1].reference is not None


@pytest.fixture(scope="module")
def quick() -> Request:
    return Request(sizes=(32, 48), batch_sizes=(2, 1), device="cpu", repeats=1, precision="fp32")


def test_a_recipe(file: str) -> None:
    pytest.importorskip("lpips")
    said: list[str] = []
    request = Request(sizes=(48,), batch_sizes=(2,), device="cpu", repeats=1, precision="fp32")
    costs = measure_costs([file, "model.adapter_channels=16"], request, said.append)
    (cost,) = costs.costs
    assert [(row.verb, row.size, row.batch) for row in cost.verbs] == [("encode", 48, 2), ("decode", 48, 2)]
    assert all(row.measured.status == "measured" for row in cost.verbs), cost.verbs
    assert [stage.name for stage in cost.stages] == ["one", "two"]
    for stage in cost.stages:
        assert stage.measured.seconds is not None, stage.measured
        assert stage.hours == pytest.approx(stage.measured.seconds * 20 / 3600)
    encoder, adapter = (
        cost.stages[1].parameters.trainable - cost.parameters.decoder,
        32 * 16 + 16 + 16 * 4 + 4,
    )
    assert cost.parameters.encoder == pytest.approx(encoder, abs=100)
    assert cost.stages[0].parameters.trainable == cost.parameters.decoder + adapter  # The change is made.
    assert len(said) == 2 + 2
    assert costs.device == "cpu"
    assert costs.as_dict()["costs"][0]["verbs"][0]["measured"]["status"] == "measured"


def test_a_folder_needs_no_weights_and_has_no_training(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: Request
) -> None:
    build_tokenizer(recipe.model).save_pretrained(tmp_path / "run" / "tokenizer")
    save_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    for weights in (tmp_path / "run").rglob("*.safetensors"):
        weights.unlink()
    (cost,) = measured_with(monkeypatch, [str(tmp_path / "run")], quick).costs
    assert cost.stages == []
    assert cost.model == "aligntok"
    with pytest.raises(LumitokError, match=r"'training\.seed=1' changes a recipe"):
        measure_costs([str(tmp_path / "run"), "training.seed=1"], quick)


def test_what_is_larger_than_too_much_is_not_run(
    file: str, monkeypatch: pytest.MonkeyPatch, quick: Request
) -> None:
    pytest.importorskip("lpips")
    ran: list[tuple[str, int, int]] = []

    def one(limit: float, job: Any, *arguments: Any) -> Measurement:
        if job is run_steps:
            return Measurement("failed", note="why")
        _, verb, side, batch, _ = arguments
        ran.append((verb, side.input_shape[-1], batch))
        slow = verb == "encode" and (side.input_shape[-1] == 48 or batch == 2)
        return Measurement("over the limit") if slow else Measurement("measured", 1.0, 1.0, 1.0, 1, 1)

    cost = measured_with(monkeypatch, [file], quick, one).costs[0]
    assert ran == [
        ("encode", 32, 1), ("encode", 32, 2), ("encode", 48, 1),
        ("decode", 2, 1), ("decode", 2, 2), ("decode", 3, 1), ("decode", 3, 2),
    ]  # fmt: skip
    assert cost.verbs[3].measured == Measurement(
        "over the limit", note="not run: 32 px, batch 2 was too much"
    )
    assert [stage.measured.note for stage in cost.stages] == ["why", "why"]
    assert cost.stages[0].hours is None


def test_another_training_batch(file: str, monkeypatch: pytest.MonkeyPatch, quick: Request) -> None:
    pytest.importorskip("lpips")
    asked = []

    def one(limit: float, job: Any, *arguments: Any) -> Measurement:
        asked.extend([arguments[0].stages[arguments[1]].batch_size] if job is run_steps else [])
        return Measurement("measured", 1.0, 1.0, 1.0, 1, 1)

    request = Request(quick.sizes, quick.batch_sizes, "cpu", train_batch=16)
    cost: Cost = measured_with(monkeypatch, [file], request, one).costs[0]
    assert asked == [16, 16]
    assert [(stage.batch, stage.hours) for stage in cost.stages] == [(16, None)] * 2
    with pytest.raises(LumitokError, match="16 does not divide into the 3 parts"):
        measure_costs(
            [file, "training.accumulation=3", "stages.0.batch_size=3", "stages.1.batch_size=3"], request
        )


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["vfm-vae/dem"], {}, "did you mean 'vfm-vae/demo'"),
        (["training.seed=1"], {}, "name at least one recipe"),
        (["vfm-vae/demo"], {"sizes": (0,)}, "sizes are whole numbers from 1"),
        (["vfm-vae/demo"], {"device": "tpu"}, "there is no device 'tpu' here; there is cpu"),
    ],
)
def test_mistakes(arguments: list[str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LumitokError, match=message):
        measure_costs(arguments, Request(**changes))


def measured_with(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], request: Request, replacement: Any = None
) -> Costs:
    """Measure without processes."""

    def none(limit: float, job: Any, *arguments: Any) -> Measurement:
        return Measurement("measured", 1.0, 1.0, 1.0, 1, None)

    monkeypatch.setattr("lumitok.pipelines.cost.measure", replacement or none)
    return measure_costs(arguments, request)
