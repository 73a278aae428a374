"""Latents of a tiny random tokenizer, measured from the checkpoint to the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lumitok.config import Recipe
from lumitok.data import center_crop
from lumitok.errors import LumitokError
from lumitok.evaluation import density
from lumitok.evaluation.density import density_map
from lumitok.evaluation.picture_sets import open_picture_set
from lumitok.evaluation.results import Results, default_path
from lumitok.pipelines import evaluate_latents as module
from lumitok.pipelines.evaluate_latents import evaluate_latents
from lumitok.tokenizers import Tokenizer, build_tokenizer
from tests.pipelines.kinds import KINDS, save_kind

COUNT = 36


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture
def checkpoint(tiny_recipe: dict[str, Any], tmp_path: Path) -> str:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(Recipe.model_validate(tiny_recipe).model)
    folder = tmp_path / "run" / "checkpoints" / "step-00000700" / "tokenizer"
    tokenizer.save_pretrained(folder)
    return str(tmp_path / "run")


@torch.no_grad()
def means(checkpoint: str, data: Path) -> torch.Tensor:
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    paths = sorted(data.glob("*.png"))
    pixels = np.stack([np.array(center_crop(Image.open(path).convert("RGB"), 32)) for path in paths])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tokenizer.encode(x).latent_dist.mode()  # type: ignore[no-any-return]


def as_json(results: Results, folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(results.save(folder / "r.json").read_text())
    return {name: value for name, value in values.items() if name != "made"}


def test_the_numbers_are_those_of_the_latents(checkpoint: str, data: Path) -> None:
    found = evaluate_latents(checkpoint, data, latent="mean", density=False, batch_size=7)
    z = means(checkpoint, data).double()
    assert found["spatial variance"] == pytest.approx(float(z.var(dim=(2, 3), correction=0).mean()), rel=1e-4)
    variation = z.diff(dim=2).abs().sum(dim=(2, 3)) + z.diff(dim=3).abs().sum(dim=(2, 3))
    assert found["total variation"] == pytest.approx(float(variation.mean()), rel=1e-4)
    std = z.movedim(1, 0).flatten(1).std(dim=1, correction=0)
    assert found.tables["channels"]["std"] == pytest.approx(std.tolist(), rel=1e-4)
    assert found.tables["channels"]["std of the posterior's mean"] == found.tables["channels"]["std"]
    white = (z.var(dim=(2, 3), correction=0).mean(0) / std**2).mean()
    assert found["spatial variance, whitened"] == pytest.approx(float(white), rel=1e-4)
    assert found["effective rank"] <= 4
    assert len(found.tables["eigenvalues"]) == 4
    assert found.step == 700
    assert found.fingerprint == Tokenizer.from_pretrained(checkpoint).fingerprint()
    # A grid of 2 x 2 has no slope: said, not silent.
    assert "3 frequencies, got 1" in found.tables["not measured"]["spectral slope"]
    assert found.tables["spectrum"]["white noise"] == 1 / 4


def test_the_same_whatever_the_batches(checkpoint: str, data: Path, tmp_path: Path) -> None:
    one, other = (evaluate_latents(checkpoint, data, batch_size=size, density=False) for size in (36, 5))
    for number in one.numbers:
        assert other[number.name] == pytest.approx(number.value, rel=1e-4), number.name
    again = evaluate_latents(checkpoint, data, batch_size=36, density=False)
    assert as_json(again, tmp_path) == as_json(one, tmp_path)


def test_a_sample_is_not_the_mean(checkpoint: str, data: Path) -> None:
    sampled, mean, other = (
        evaluate_latents(checkpoint, data, latent=latent, density=False, seed=seed)
        for latent, seed in (("sample", 0), ("mean", 0), ("sample", 1))
    )
    assert sampled["standard deviation"] > mean["standard deviation"]
    assert sampled["total variation"] != other["total variation"]
    name = "std of the posterior's mean"
    assert sampled.tables["channels"][name] == mean.tables["channels"][name]
    said = {number.name: number.protocol.latent for number in sampled.numbers}
    assert said["near-dead channels"] == "posterior's mean"  # Its method speaks of it.
    assert {said[name] for name in said if name != "near-dead channels"} == {"posterior sample"}
    assert mean.numbers[0].protocol.latent == "posterior's mean"


def test_each_number_says_how_it_was_made(checkpoint: str, data: Path, tmp_path: Path) -> None:
    found = evaluate_latents(checkpoint, data, count=10, density=False, seed=3)
    chosen = (0, 4, 8, 12, 16, 19, 23, 27, 31, 35)
    for number in found.numbers:
        protocol = number.protocol
        assert protocol.data.count == 10
        assert protocol.data == open_picture_set(data, size=32).protocol_set(chosen)
        assert (protocol.size, protocol.precision, protocol.seed) == (32, "float32", 3)
        assert "centre crop" in (protocol.preparation or "")
        assert len(protocol.method or "") > 20
    assert len({number.protocol.method for number in found.numbers}) == len(found.numbers)
    assert Results.load(found.save(tmp_path / "r.json")).numbers == found.numbers


def test_the_density_over_several_draws(checkpoint: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        module, "density_map", lambda features: seen.append(features) or density_map(features)
    )
    found = evaluate_latents(checkpoint, data, runs=2, batch_size=10, latent="mean")
    z = means(checkpoint, data)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])  # Other positions.
    for features in seen:
        near = (features[:, None] - z.flatten(2).mT).abs().amax(dim=2).amin(dim=1)
        assert float(near.max()) < 1e-4  # Row i is a position of picture i.
    table = found.tables["density"]
    for name, key in (("density CV", "cv"), ("Gini coefficient", "gini"), ("normalised entropy", "entropy")):
        (number,) = (number for number in found.numbers if number.name == name)
        assert number.value == pytest.approx(np.mean(table[key]))
        assert number.spread == pytest.approx(np.std(table[key], ddof=1))
        assert "t-SNE" in (number.protocol.method or "")


def test_pictures_are_written_and_described(checkpoint: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "below" / "out"
    found = evaluate_latents(checkpoint, data, out=out)
    assert {path.name for path in out.iterdir()} == set(found.tables["pictures"])
    assert set(found.tables["pictures"]) == {
        f"{name}-{default_path(out, found).stem.removeprefix('latents-')}.png"
        for name in ("latents-pca", "interpolation", "spectrum", "channels", "directions", "density")
    }
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 300


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer(kind: str, tiny_recipe: dict[str, Any], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint = save_kind(kind, tiny_recipe, tmp_path / kind)
    found = evaluate_latents(checkpoint, data, count=6, density=False, out=out)
    assert found["effective rank"] >= 1
    (words,) = (words for name, words in found.tables["pictures"].items() if name.startswith("latents-pca-"))
    assert ("the encoder's features" in words) == (kind != "ldm")
    assert "frozen" not in words


def test_two_sets_leave_their_pictures_beside_each_other(checkpoint: str, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "a b"
    other.mkdir()
    for path in sorted(data.glob("*.png"))[:2]:
        (other / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    names = set()
    for folder in (data, other):
        names |= set(evaluate_latents(checkpoint, folder, density=False, out=out).tables["pictures"])
    assert names == {path.name for path in out.iterdir()}
    assert sum(name.startswith("channels-a-b-") for name in names) == 1
    assert len(names) == 10


def test_bad_pictures_are_counted(checkpoint: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for path in sorted(data.glob("*.png"))[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "02.png").write_bytes(b"no picture")
    (folder / "04.png").write_bytes((folder / "00.png").read_bytes())
    found = evaluate_latents(checkpoint, folder, density=False, out=tmp_path / "out")
    assert sum(found.left_out.values()) == 1
    unread, copied, few = found.tables["warnings"]
    assert "1 of the pictures could not be read and are not measured: '02.png' (it holds no" in unread
    assert "1 of the 4 pictures are copies of another" in copied
    assert "'04.png' (as '00.png')" in copied
    assert "the latents of 4 pictures" in few
    measured = open_picture_set(folder, size=32).protocol_set([0, 1, 3, 4])
    assert found.numbers[0].protocol.data == measured
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(LumitokError, match=r"none of the 5 pictures can be read:\n.*00\.png"):
        evaluate_latents(checkpoint, folder, density=False)


def test_a_density_that_cannot_be_had_does_not_cost_the_rest(
    checkpoint: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: torch.Tensor) -> None:
        raise LumitokError("channel 2 of the latents does not vary")

    monkeypatch.setattr(module, "density_map", fails)
    found = evaluate_latents(checkpoint, data)
    assert found["effective rank"] >= 1
    for name in ("density CV", "Gini coefficient", "normalised entropy"):
        assert "channel 2" in found.tables["not measured"][name]
        with pytest.raises(KeyError):
            found[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent": "men"}, "unknown latent 'men'.*did you mean 'mean'"),
        ({"count": 1}, "number of pictures is 1; it must be at least 2"),
        ({"runs": 0}, "number of runs is 0"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_arguments_are_looked_at_before_anything_is_opened(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LumitokError, match=message):
        evaluate_latents("nowhere", "nothing", **arguments)


def test_too_few_pictures_for_a_density_answer_before_encoding(
    checkpoint: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("encoded"))
    with pytest.raises(LumitokError, match=r"more than 30 pictures.*there are 20"):
        evaluate_latents(checkpoint, data, count=20)


def test_without_the_libraries_it_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(density.importlib, "import_module", without)
    with pytest.raises(LumitokError, match=r"lumitok\[eval\]"):
        evaluate_latents("nowhere", "nothing")
