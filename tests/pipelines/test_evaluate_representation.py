"""A tiny random tokenizer, an encoder and the pixels, measured on tiny pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lumitok.config import EncoderConfig, Recipe
from lumitok.data import center_crop
from lumitok.errors import LumitokError
from lumitok.evaluation.cknna import cknna
from lumitok.evaluation.perturbations import names as change_names
from lumitok.evaluation.perturbations import perturb
from lumitok.evaluation.picture_sets import open_picture_set
from lumitok.evaluation.probe import ProbeSettings
from lumitok.evaluation.results import Results
from lumitok.pipelines import evaluate_representation as pipeline
from lumitok.pipelines.representation_plan import Subject
from lumitok.tokenizers import Tokenizer, build_tokenizer

OWN = "timm:vit_tiny_patch16_224"
OTHER = EncoderConfig(
    name="timm:vit_small_patch16_224",
    weights="random",
    timm_kwargs={"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2},
)
LATENT_PROBES = ["latent", OWN, "pixels"]


@pytest.fixture
def checkpoint(tiny_recipe: dict[str, Any], tmp_path: Path) -> str:
    torch.manual_seed(0)
    build_tokenizer(Recipe.model_validate(tiny_recipe).model).save_pretrained(tmp_path / "run" / "tokenizer")
    return str(tmp_path / "run")


def fill(folder: Path, seed: int, count: int = 10, classes: tuple[str, ...] = ("dark", "light")) -> Path:
    """Noisy pictures, the classes of one brightness each."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 128, (40, 36, 3)) + 127 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fill(tmp_path / "val", seed=0)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return fill(tmp_path / "train", seed=1, count=20)


def evaluate(subject: Subject, data: Path, **options: Any) -> Results:
    torch.manual_seed(2)  # Of encoders with random weights.
    return pipeline.evaluate_representation(
        subject, data, **{"k": 4, "batch_size": 8, "quiet": True, **options}
    )


def names(results: Results) -> list[str]:
    return [number.name for number in results.numbers]


def test_all_that_is_measured_of_a_tokenizer(checkpoint: str, data: Path, train: Path) -> None:
    results = evaluate(checkpoint, data, train_data=train, references=[OWN, OTHER])
    found = names(results)
    assert len(set(found)) == len(found)
    blocks = [("latent", ""), (OWN, f"{OWN} ")]
    for reference in (OWN, OTHER.name):
        assert f"CKNNA vs {reference}" in found
        assert f"CKNNA, {OWN} layer 0 vs {reference}" in found
        assert f"SE-CKNNA vs {reference}" in found
        for change in change_names():
            assert f"SE-CKNNA vs {reference}, {change}" in found
    assert f"SE-CKNNA, {OWN} vs {OTHER.name}, noise 0.10" in found
    assert f"CKNNA, {OWN} vs {OWN}" not in found
    for block, _ in blocks:
        for change in change_names():
            assert f"invariance (cosine), {block}, {change}" in found
            assert f"invariance (centred cosine), {block}, {change}" in found
    for block in LATENT_PROBES:
        for pooling in ("mean-pooled", "flattened"):
            assert f"linear probe, {block}, {pooling}" in found
    assert results.kind == "representation"
    assert results.fingerprint == Tokenizer.from_pretrained(Path(checkpoint) / "tokenizer").fingerprint()
    assert results.left_out == {}


def test_the_values_are_those_of_the_parts(checkpoint: str, data: Path) -> None:
    results = evaluate(checkpoint, data, latent="mean")
    tokenizer = Tokenizer.from_pretrained(Path(checkpoint) / "tokenizer")
    files = sorted(data.rglob("*.png"), key=lambda path: path.relative_to(data).as_posix())
    crops = [np.array(center_crop(Image.open(path), 32)) for path in files]
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            z = tokenizer.encode(x / 127.5 - 1).latent_dist.mode()
            end = tokenizer.encoder(x / 255).maps[-1]
        return [values.mean(dim=(2, 3)) for values in (z, end)]

    assert results[f"CKNNA vs {OWN}"] == pytest.approx(cknna(*features(pixels), k=4), abs=1e-4)
    changed = {name: features(groups[0].pixels) for name, groups in perturb(pixels, range(20)).items()}
    scores = [cknna(*both, k=4) for both in changed.values()]
    for name, score in zip(changed, scores, strict=True):
        assert results[f"SE-CKNNA vs {OWN}, {name}"] == pytest.approx(score, abs=1e-4)
    assert results[f"SE-CKNNA vs {OWN}"] == pytest.approx(np.mean(scores), abs=1e-4)
    z, end = features(pixels)
    for block, still, place in (("latent", z, 0), (OWN, end, 1)):
        moved = changed["noise 0.20"][place]
        cosine = torch.nn.functional.cosine_similarity(still, moved).mean().item()
        assert results[f"invariance (cosine), {block}, noise 0.20"] == pytest.approx(cosine, abs=1e-4)


def test_each_number_says_how_it_was_made(checkpoint: str, data: Path, train: Path) -> None:
    results = evaluate(checkpoint, data, train_data=train, references=[OTHER], count=15, seed=3)
    made = {number.name: number.protocol for number in results.numbers}
    compared = made[f"CKNNA vs {OTHER.name}"]
    assert (compared.data.count, compared.size, compared.seed) == (15, 32, 3)
    assert compared.latent == "posterior sample"
    assert compared.extractor == f"{OTHER.name}, seen at 32 px"
    assert compared.weights is not None
    assert all(
        word in str(compared.method) for word in ("k 4", "unbiased HSIC", "0.95", "mean over positions")
    )
    perturbed = made[f"SE-CKNNA vs {OTHER.name}, noise 0.10"]
    assert "noise 0.10" in str(perturbed.method)
    assert perturbed.unlike(compared)
    assert "mean over 4 noise levels and 1 rotation" in str(made[f"SE-CKNNA vs {OTHER.name}"].method)
    assert made[f"CKNNA, {OWN} vs {OTHER.name}"].latent is None
    probed = made["linear probe, latent, flattened"]
    assert (probed.data.count, probed.reference and probed.reference.count) == (20, 40)
    assert probed.reference is not None
    assert probed.reference.files == open_picture_set(train, size=32).protocol_set().files
    assert "Adam 0.001, batch 256, 3 epochs" in str(probed.method)
    assert str(probed.method).endswith("flattened")
    assert made["linear probe, pixels, mean-pooled"].weights is None
    units = {number.unit for number in results.numbers if number.name.startswith("linear probe")}
    assert units == {"%"}


def test_a_probe_learns_what_is_there_to_learn(checkpoint: str, data: Path, train: Path) -> None:
    settings = ProbeSettings(epochs=20, batch_size=8, learning_rate=0.01, standardize=True)
    results = evaluate(checkpoint, data, train_data=train, probe=settings)
    assert results["linear probe, pixels, flattened"] == 100
    assert results["linear probe, pixels, mean-pooled"] == 100
    blind = fill(data.parent / "blind", seed=0)
    for path in blind.rglob("*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    results = evaluate("pixels", blind, train_data=train, probe=settings, size=32)
    assert results["linear probe, pixels, flattened"] == 50


def test_too_little_memory_changes_the_way_and_not_the_result(
    checkpoint: str, data: Path, train: Path
) -> None:
    settings = ProbeSettings(batch_size=16)
    options: dict[str, Any] = {"train_data": train, "changes": False, "probe": settings}
    stored = evaluate(checkpoint, data, **options)
    # 60 pictures of 3,072 + 3 + 16 + 4 + 128 + 32 numbers take 0.00073 GiB, the largest layer 0.00009.
    streamed = evaluate(checkpoint, data, memory=0.0005, **options)
    assert names(stored) == names(streamed)
    for number in stored.numbers:
        assert streamed[number.name] == pytest.approx(number.value, abs=1e-6)


def test_a_layer_that_does_not_fit_is_left_out_aloud(checkpoint: str, data: Path, train: Path) -> None:
    results = evaluate(checkpoint, data, train_data=train, changes=False, memory=0.00005)
    found = [name for name in names(results) if name.startswith("linear probe")]
    assert "linear probe, pixels, flattened" not in found
    assert "linear probe, latent, flattened" in found
    (reason,) = results.left_out
    assert reason.startswith("linear probe, pixels, flattened: training its 3,072 x 2 weights")


def test_an_encoder_alone(data: Path, train: Path) -> None:
    config = OTHER.model_copy(update={"layers": [0, 1, -1]})
    results = evaluate(config, data, train_data=train, size=32)
    name = OTHER.name
    assert results.subject == name
    assert f"CKNNA, {name} layer 1 vs {name}" in names(results)
    assert f"SE-CKNNA, {name} layer 0 vs {name}, noise 0.05" in names(results)
    assert f"linear probe, {name} layer 0, mean-pooled" in names(results)
    assert f"invariance (cosine), {name}" in names(results)
    made = {number.name: number.protocol for number in results.numbers}
    assert results.fingerprint is not None
    assert results.fingerprint == made[f"invariance (cosine), {name}"].weights
    assert f"CKNNA, {name} vs {name}" not in names(results)


class Toy(nn.Module):
    """Any network that hands out its blocks' tokens."""

    name, weights, detail = "toy", "0" * 64, "at noise 0.3"

    def blocks(self, pixels: torch.Tensor, draws: Sequence[int]) -> list[tuple[str, torch.Tensor]]:
        assert len(draws) == len(pixels)
        assert len(pixels) == 1 or not torch.backends.cudnn.allow_tf32  # One is blank, to see the blocks.
        tokens = nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2)
        return [("toy 1", tokens), ("toy 2", tokens.tanh())]


def test_an_open_network(data: Path, train: Path) -> None:
    allowed = torch.backends.cudnn.allow_tf32
    results = evaluate(Toy(), data, train_data=train, references=[OTHER], size=32)
    assert torch.backends.cudnn.allow_tf32 == allowed
    found = {number.name: number.protocol for number in results.numbers}
    for block in ("toy 1", "toy 2"):
        assert f"SE-CKNNA, {block} vs {OTHER.name}, noise 0.05" in found
        assert found[f"invariance (cosine), {block}"].extractor == f"{block}, at noise 0.3"
        assert found[f"linear probe, {block}, flattened"].weights == "0" * 64
    assert (results.subject, results.fingerprint) == ("toy", "0" * 64)
    with pytest.raises(LumitokError, match="nothing to measure 'toy' by"):
        evaluate(Toy(), data, size=32)


def test_it_warns_of_few_pictures_and_of_training_on_what_is_measured(data: Path, train: Path) -> None:
    options: dict[str, Any] = {"references": [OTHER], "size": 32, "changes": False}
    (few,) = evaluate("pixels", data, train_data=train, **options).tables["warnings"]
    assert "this is of 20: compare equal counts" in few
    copy = fill(data.parent / "copy", seed=0)
    for same in (data, copy):
        _, alike = evaluate("pixels", data, train_data=same, train_count=15, **options).tables["warnings"]
        assert f"the same 20 files ('{same.name}' and 'val')" in alike


def test_invariance_is_of_the_posteriors_mean(checkpoint: str, data: Path) -> None:
    sampled, meant = (evaluate(checkpoint, data, latent=latent) for latent in ("sample", "mean"))
    made = {number.name: number.protocol for number in sampled.numbers}
    for name in ("invariance (cosine), latent", "invariance (centred cosine), latent, noise 0.20"):
        assert sampled[name] == pytest.approx(meant[name], abs=1e-5)
        assert made[name].latent == "posterior's mean"
    assert "mean over 4 noise levels and 1 rotation with scale" in str(
        made["invariance (cosine), latent"].method
    )
    assert "; noise 0.20, drawn" in str(made["invariance (cosine), latent, noise 0.20"].method)
    assert made[f"SE-CKNNA vs {OWN}"].latent == "posterior sample"
    assert sampled[f"SE-CKNNA vs {OWN}"] != pytest.approx(meant[f"SE-CKNNA vs {OWN}"], abs=1e-6)


def test_pixels_against_an_encoder(data: Path) -> None:
    results = evaluate("pixels", data, references=[OTHER], size=32, changes=False)
    assert names(results) == [f"CKNNA, pixels vs {OTHER.name}"]


def test_without_training_data_there_is_no_probe_and_without_changes_no_se_cknna(
    checkpoint: str, data: Path
) -> None:
    found = names(evaluate(checkpoint, data, changes=False))
    assert found == [f"CKNNA vs {OWN}", f"CKNNA, {OWN} layer 0 vs {OWN}"]


def test_a_second_run_gives_the_same(checkpoint: str, data: Path) -> None:
    one, other = (evaluate(checkpoint, data, batch_size=size) for size in (3, 20))
    for number in one.numbers:
        assert other[number.name] == pytest.approx(number.value, abs=1e-4)
    reseeded = evaluate(checkpoint, data, seed=1)
    assert reseeded[f"CKNNA vs {OWN}"] != pytest.approx(one[f"CKNNA vs {OWN}"], abs=1e-6)


def test_bad_pictures_are_counted_and_named(checkpoint: str, data: Path, train: Path) -> None:
    (data / "dark" / "3.png").write_bytes(b"no picture")
    (train / "light" / "5.png").write_bytes(b"")
    (data / "notes.txt").write_text("not a picture")
    results = evaluate(checkpoint, data, train_data=train)
    assert results.left_out == {
        "not a picture by its extension": 1,
        "unreadable": 1,
        "unreadable, training set": 1,
    }
    assert list(results.tables["unreadable"]) == ["dark/3.png"]
    assert list(results.tables["unreadable, training set"]) == ["light/5.png"]
    made = {number.name: number.protocol for number in results.numbers}
    assert made[f"CKNNA vs {OWN}"].data.count == 19
    reference = made["linear probe, latent, mean-pooled"].reference
    assert reference is not None
    assert reference.count == 39


def test_results_survive_their_file(checkpoint: str, data: Path, train: Path, tmp_path: Path) -> None:
    results = evaluate(checkpoint, data, train_data=train)
    assert Results.load(results.save(tmp_path / "found.json")).numbers == results.numbers


def test_classes_that_are_missing_or_differ(checkpoint: str, data: Path, train: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (32, 32)).save(flat / "a.png")
    with pytest.raises(LumitokError, match="'flat' has no classes"):
        evaluate(checkpoint, data, train_data=flat)
    fill(train, seed=3, count=2, classes=("grey",))
    with pytest.raises(LumitokError, match=r"other classes: only 'train' has grey; a probe"):
        evaluate(checkpoint, data, train_data=train)


def test_what_it_refuses(checkpoint: str, data: Path) -> None:
    with pytest.raises(LumitokError, match=r"neither a folder with a tokenizer.*did you mean 'dinov2-large'"):
        evaluate("dinov2-larg", data)
    with pytest.raises(LumitokError, match="nothing to measure 'pixels' by"):
        evaluate("pixels", data, size=32)
    with pytest.raises(LumitokError, match="with k 30 needs more than 30 pictures, and there are 20"):
        evaluate(checkpoint, data, k=30)
    with pytest.raises(LumitokError, match="layers are chosen of an encoder alone"):
        evaluate(checkpoint, data, layers=[1])
    with pytest.raises(LumitokError, match=f"the reference '{OWN}' is named twice"):
        evaluate(checkpoint, data, references=[OWN, OWN])
    with pytest.raises(LumitokError, match="start at 1; got count 0"):
        evaluate(checkpoint, data, count=0)
