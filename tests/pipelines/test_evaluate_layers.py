"""CKNNA of a tiny network's blocks: the values of their parts, whatever the batch, with REG's class token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lumitok.cli import app
from lumitok.config import DiffusionRecipe, EncoderConfig, save_recipe
from lumitok.data.latents import LatentOrigin
from lumitok.diffusion import build_network
from lumitok.errors import LumitokError
from lumitok.evaluation.cknna import cknna
from lumitok.evaluation.protocol import PictureSet, Protocol
from lumitok.evaluation.results import Number, Results
from lumitok.foundation import FoundationEncoder
from lumitok.foundation.weights import hash_weights
from lumitok.pipelines import evaluate_layers as layers_module
from lumitok.pipelines import representation_plan
from lumitok.pipelines.evaluate_layers import (
    NetworkLayers,
    compare_layers,
    depth_plot,
    evaluate_layers,
    layers_plot,
)
from lumitok.pipelines.latent_diffusion import LatentDiffusionPipeline
from tests.pipelines.drawing import TINY, save_run, save_tokenizer

REFERENCE = EncoderConfig(
    name="timm:vit_tiny_patch16_224",
    weights="random",
    timm_kwargs={"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2},
)
NAME = REFERENCE.name
COUNT = 14


def reference() -> FoundationEncoder:
    torch.manual_seed(2)  # Of its random weights.
    return FoundationEncoder(REFERENCE)


@pytest.fixture(autouse=True)
def _one_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representation_plan, "open_encoder", lambda *_, **__: reference())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(COUNT):
        pixels = rng.integers(0, 128, (32, 32, 3)) + rng.integers(0, 128, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def make(tmp_path: Path, **changes: Any) -> str:
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    save_run(tmp_path / "run", tokenizer, str(tmp_path / "tokenizer"), **{"depth": 3, **changes})
    return str(tmp_path / "run")


def make_reg(tmp_path: Path) -> str:
    """A run of REG: its network diffuses the class token of the encoder that its recipe names."""
    run = tmp_path / "run"
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    losses = {"class_token": 0.03, "alignment_encoder": REFERENCE.model_dump()}
    values = {
        "network": {"type": "sit", **TINY, "depth": 3, "class_channels": 24},
        "data": {"latents": "store", "tokenizer": str(tmp_path / "tokenizer")},
        "stages": [{"name": "only", "images": 8, "batch_size": 8, "losses": losses}],
    }
    recipe = DiffusionRecipe.model_validate(values)
    network = build_network(recipe.network).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    network.save_pretrained(run / "network")
    LatentOrigin(tokenizer.latent_spec).save(run / "network")
    save_recipe(recipe, run / "recipe.yaml")
    return str(run)


def evaluate(run: str, data: Path, **options: Any) -> Results:
    given: dict[str, Any] = {"references": [REFERENCE], "k": 4, "batch_size": 5, "quiet": True}
    return evaluate_layers(run, data, **given | options)


def pixels_of(data: Path) -> torch.Tensor:
    arrays = [np.asarray(Image.open(path)) for path in sorted(data.iterdir())]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def test_the_values_are_those_of_the_parts(tmp_path: Path, data: Path) -> None:
    run = make(tmp_path)
    # At t = 1 there is no noise, and the posterior's mean draws nothing: all can be made by hand.
    results = evaluate(run, data, time=1.0, latent="mean")
    pipe = LatentDiffusionPipeline.from_pretrained(run)
    pixels = pixels_of(data)
    z = pipe.tokenizer.encode(pixels * 2 - 1).latent_dist.mode()
    x = (z - 0.25) / 1.5  # The network's own statistics.
    out = pipe.network(x, torch.ones(COUNT), torch.full((COUNT,), 3), blocks=[1, 2, 3])
    seen = reference()(pixels).maps[-1].mean(dim=(2, 3))
    values = [cknna(out.tokens[block].mean(dim=1), seen, k=4) for block in (1, 2, 3)]
    assert results.tables["layers"] == {NAME: pytest.approx(values, abs=1e-4)}
    assert results[f"CKNNA, block 2 vs {NAME}"] == pytest.approx(values[1], abs=1e-4)
    assert results[f"CKNNA, mean over blocks vs {NAME}"] == pytest.approx(np.mean(values), abs=1e-4)
    assert len({round(value, 4) for value in values}) == 3
    assert results.fingerprint == hash_weights(pipe.network.state_dict().items())


def test_the_batch_changes_nothing_and_the_seed_does(tmp_path: Path, data: Path) -> None:
    run = make(tmp_path)
    one, other = (evaluate(run, data, batch_size=size) for size in (3, COUNT))
    values = one.tables["layers"][NAME]
    assert other.tables["layers"][NAME] == pytest.approx(values, abs=1e-4)
    for options in ({"seed": 1}, {"time": 0.4}, {"latent": "mean"}):
        assert evaluate(run, data, **options).tables["layers"][NAME] != pytest.approx(values, abs=1e-6)


@torch.no_grad()
def test_the_latent_is_half_noise_at_half_the_way(tmp_path: Path, data: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(make(tmp_path))
    given: list[tuple[torch.Tensor, Any, Any]] = []
    pipe.network.register_forward_pre_hook(lambda _, args: given.append(args))
    pixels, draws = pixels_of(data)[:4], [7, 8, 9, 10]
    for time in (1.0, 0.0, 0.5):
        NetworkLayers(pipe, time=time, seed=3).blocks(pixels, draws)
    (clean, *_), (noise, *_), (between, times, labels) = given
    torch.testing.assert_close(between, (clean + noise) / 2)
    assert times.tolist() == [0.5] * 4
    assert labels.tolist() == [3] * 4  # That of no class.
    assert 0.7 < float(noise.std()) < 1.3
    # A picture's noise is its own: of its number, not of its place in the batch.
    NetworkLayers(pipe, time=0.0, seed=3).blocks(pixels[:1], [9])
    assert torch.equal(given[-1][0][0], noise[2])
    assert not torch.equal(noise[0], noise[1])


def test_of_reg_the_class_token_is_noised_and_its_output_left_out(tmp_path: Path, data: Path) -> None:
    run = make_reg(tmp_path)
    pipe = LatentDiffusionPipeline.from_pretrained(run)
    # The recipe's encoder gives the class token.
    results = evaluate(run, data)
    assert len(results.tables["layers"][NAME]) == 3
    Path(run, "recipe.yaml").unlink()
    with pytest.raises(LumitokError, match="no recipe beside it names the encoder"):
        evaluate(run, data, tokenizer=str(tmp_path / "tokenizer"))
    encoder = reference()
    with torch.no_grad():
        layers = NetworkLayers(pipe, class_encoder=encoder)
        found = layers.blocks(pixels_of(data)[:2], [0, 1])
    # 16 places of the latent, without the class token.
    assert [(name, tuple(tokens.shape)) for name, tokens in found] == [
        (f"block {number}", (2, 16, 16)) for number in (1, 2, 3)
    ]
    assert "class token of" in layers.detail
    narrow = REFERENCE.model_copy(update={"timm_kwargs": REFERENCE.timm_kwargs | {"embed_dim": 16}})
    with pytest.raises(LumitokError, match=r"24 channels, and the encoder .* gives 16"):
        NetworkLayers(pipe, class_encoder=FoundationEncoder(narrow))


def test_each_number_says_how_it_was_made(tmp_path: Path, data: Path) -> None:
    run = make(tmp_path)
    results = evaluate(run, data, count=12, seed=5)
    made = {number.name: number.protocol for number in results.numbers}
    protocol = made[f"CKNNA, block 2 vs {NAME}"]
    assert "; spatial tokens at t 0.5, no class, noise by picture, mean over positions" in str(
        protocol.method
    )
    assert (protocol.latent, protocol.seed, protocol.data.count) == ("posterior sample", 5, 12)
    assert str(protocol.extractor).startswith(NAME)
    assert not any(results.how()[1])  # All alike, but for the block in the name.
    other = evaluate(run, data, count=12, seed=5, time=0.25)
    assert other.numbers[1].protocol.unlike(results.numbers[1].protocol)
    assert (results.kind, results.subject) == ("layers", run)
    assert layers_plot(results).png().startswith(b"\x89PNG")


def curves(values: list[float], **changes: Any) -> Results:
    """Results as :func:`evaluate_layers` gives them of one reference."""
    made: dict[str, Any] = {
        "data": PictureSet("val", COUNT, "a" * 64),
        "latent": "posterior sample",
        "method": "k 4; spatial tokens at t 0.5, no class, noise by picture, mean over positions",
        "seed": 0,
    }
    protocol = Protocol(**made | changes)
    numbers = [Number(f"CKNNA, block {i} vs dino", v, protocol) for i, v in enumerate(values, 1)]
    return Results("layers", "x", numbers, tables={"layers": {"dino": values}})


def test_networks_that_were_measured_alike_are_compared() -> None:
    reg = "k 4; spatial tokens at t 0.5, no class, noise by picture{}, mean over positions"
    named = [
        ("one", curves([0.1, 0.2])),
        ("seed", curves([0.2, 0.3], seed=1)),
        ("reg", curves([0.3, 0.4], method=reg.format(", class token of timm:vit noised alike"))),
        ("rae", curves([0.4, 0.5], latent="deterministic")),
        ("mean", curves([0.5, 0.6], latent="posterior's mean")),
        ("time", curves([0.6, 0.7], method=reg.format("").replace("0.5", "0.3"))),
        ("other", curves([0.7, 0.8], data=PictureSet("val", COUNT, "b" * 64))),
    ]
    found = compare_layers(named)
    assert [[name for name, _, _ in one.lines] for one in found] == [
        ["one", "seed", "reg", "rae"],
        ["mean"],
        ["time"],
        ["other"],
    ]
    assert {one.reference for one in found} == {"dino"}
    assert found[0].lines[2][2] == [0.3, 0.4]


def test_blocks_are_numbers_unless_networks_differ_in_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, str]] = []

    def points_plot(lines: Any, *, title: str, xlabel: str) -> None:
        assert title == "t"
        drawn.append((lines, xlabel))

    monkeypatch.setattr(layers_module, "points_plot", points_plot)
    depth_plot([("a", [0.1, 0.2]), ("b", [0.3, 0.4])], "t")
    depth_plot([("a", [0.1, 0.2]), ("b", [0.1, 0.2, 0.3, 0.4])], "t")
    (alike, blocks), (unlike, share) = drawn
    assert ([list(line.steps) for line in alike], blocks) == ([[1, 2], [1, 2]], "block")
    assert [list(line.steps) for line in unlike] == [[0.5, 1], [0.25, 0.5, 0.75, 1]]
    assert share == "share of the blocks"


def test_what_it_refuses(tmp_path: Path, data: Path) -> None:
    run = make(tmp_path)
    with pytest.raises(LumitokError, match=r"from 0, noise, to 1, data; got 1\.5"):
        evaluate(run, data, time=1.5)
    with pytest.raises(LumitokError, match="no foundation encoder to compare with"):
        evaluate(run, data, references=[])


def test_the_command_keeps_results_and_a_plot(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)
    found = evaluate(run, data)
    asked: list[Any] = []

    def measured(*args: Any, **options: Any) -> Results:
        asked.append((args, options))
        return found

    monkeypatch.setattr("lumitok.pipelines.evaluate_layers.evaluate_layers", measured)
    given = ["evaluate", "layers", run, "--data", str(data), "--reference", "dinov2-base", "--time", "0.3"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    (kept,) = (Path(run) / "evaluation").glob("layers-*.json")
    assert Results.load(kept).numbers == found.numbers
    assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    ((args, options),) = asked
    assert args == (run, str(data))
    assert (options["references"], options["time"]) == (["dinov2-base"], 0.3)
