"""Pictures through a tiny random tokenizer and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lumitok.config import Recipe
from lumitok.data import center_crop
from lumitok.errors import LumitokError
from lumitok.evaluation.image_quality import psnr, ssim, to_uint8
from lumitok.pipelines import reconstruct
from lumitok.pipelines.reconstruct import reconstruct_files
from lumitok.tokenizers import Tokenizer, build_tokenizer
from lumitok.tokenizers.autoencoder import Autoencoder


@pytest.fixture(autouse=True)
def _on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "default_device", lambda: torch.device("cpu"))


@pytest.fixture
def checkpoint(tiny_recipe: dict[str, Any], tmp_path: Path) -> str:
    torch.manual_seed(0)
    build_tokenizer(Recipe.model_validate(tiny_recipe).model).save_pretrained(tmp_path / "run" / "tokenizer")
    return str(tmp_path / "run")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "wide.png", tmp_path / "tall.jpg", tmp_path / "below" / "wide.png"]
    paths[2].parent.mkdir()
    for path, shape in zip(paths, [(48, 80, 3), (150, 70, 3), (20, 24, 3)], strict=True):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


def test_each_picture_stands_beside_its_reconstruction(
    checkpoint: str, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = reconstruct_files(checkpoint, pictures, out)
    assert [row.source for row in report.rows] == pictures
    assert len({row.written for row in report.rows}) == 3  # Two share a name.
    assert {row.written for row in report.rows} == set(out.iterdir())
    tokenizer = Tokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    for row in report.rows:
        cropped = np.array(center_crop(Image.open(row.source).convert("RGB"), 32))
        pixels = torch.from_numpy(cropped).permute(2, 0, 1)[None]
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(pixels / 127.5 - 1).latent_dist.mode()).sample
        again = to_uint8(decoded)
        assert row.psnr == pytest.approx(psnr(again / 255, pixels / 255).item())
        assert row.ssim == pytest.approx(ssim(again / 255, pixels / 255).item())
        sheet = np.array(Image.open(row.written))
        assert holds(sheet, cropped)
        assert holds(sheet, again[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("tile", [0, 64])
def test_whole_pictures_keep_their_size(
    tile: int, checkpoint: str, pictures: list[Path], tmp_path: Path
) -> None:
    report = reconstruct_files(checkpoint, pictures, tmp_path / "out", whole=True, tile=tile)
    said = "in tiles of 64 px (overlap 16 px, 4 turns)" if tile else "in one go"
    assert f"taken whole, without a crop, {said}; latent" in report.how
    assert "crop" not in report.how.replace("without a crop", "")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    assert isinstance(tokenizer, Autoencoder)
    if tile:
        tokenizer.enable_tiling(tile)
    for row in report.rows:
        picture = np.array(Image.open(row.source).convert("RGB"))
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
        again = to_uint8(tokenizer.reconstruct(pixels / 127.5 - 1))
        assert again.shape == pixels.shape
        assert row.psnr == pytest.approx(psnr(again / 255, pixels / 255).item())
        assert row.ssim == pytest.approx(ssim(again / 255, pixels / 255).item())
        sheet = np.array(Image.open(row.written))
        assert holds(sheet, picture)
        assert holds(sheet, again[0].permute(1, 2, 0).numpy())


def test_tiles_that_cannot_be_are_refused_in_a_sentence(
    checkpoint: str, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(LumitokError, match="give --whole with --tile, or leave --tile out"):
        reconstruct_files(checkpoint, pictures, out, tile=64)
    with pytest.raises(LumitokError, match="tile is 50 px; this tokenizer wants a multiple of 16"):
        reconstruct_files(checkpoint, pictures, out, whole=True, tile=50)
    monkeypatch.setattr(reconstruct, "open_tokenizer", lambda _: torch.nn.Identity())
    with pytest.raises(LumitokError, match="Identity cannot go tile by tile; leave --tile out"):
        reconstruct_files(checkpoint, pictures, out, whole=True, tile=64)
    assert not out.exists()


def holds(sheet: np.ndarray[Any, Any], picture: np.ndarray[Any, Any]) -> bool:
    """Whether the picture stands somewhere in the sheet, pixel by pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)
    return bool((windows == picture).all(axis=(-3, -2, -1)).any())


def test_the_numbers_say_how_they_were_made(checkpoint: str, pictures: list[Path], tmp_path: Path) -> None:
    how = reconstruct_files(checkpoint, pictures[:1], tmp_path / "out").how
    for word in ("32 x 32", "ADM", "mode", "[0, 1]", "8 bits", "SSIM"):
        assert word in how


def test_a_second_run_gives_the_same(checkpoint: str, pictures: list[Path], tmp_path: Path) -> None:
    first = reconstruct_files(checkpoint, pictures, tmp_path / "one").rows
    second = reconstruct_files(checkpoint, pictures[:1], tmp_path / "two").rows
    assert second[0].psnr == first[0].psnr
    assert second[0].written.read_bytes() == first[0].written.read_bytes()


def test_no_picture_is_overwritten(checkpoint: str, pictures: list[Path], tmp_path: Path) -> None:
    first = reconstruct_files(checkpoint, pictures[:1], tmp_path).rows[0].written
    kept = first.read_bytes()
    again = reconstruct_files(checkpoint, [pictures[0], first], tmp_path).rows
    assert first.read_bytes() == kept
    assert first not in [row.written for row in again]


def test_a_missing_picture_is_told_before_the_model_is_opened(pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match=r"there is no picture '.*wid\.png'; did you mean '.*wide\.png'"):
        reconstruct_files("nowhere", [tmp_path / "wid.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    with pytest.raises(LumitokError, match=r"is a folder; give the pictures in it, such as .*pics/\*\.png"):
        reconstruct_files("nowhere", [tmp_path / "pics"], tmp_path / "out")


def test_a_picture_too_small_for_ssim_goes_without_it(
    checkpoint: str, pictures: list[Path], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 5)).save(tmp_path / "line.png")
    images = [tmp_path / "line.png", pictures[0]]
    report = reconstruct_files(checkpoint, images, tmp_path / "out", whole=True)
    assert [row.ssim is None for row in report.rows] == [True, False]
    assert "No SSIM of pictures with a side below 6 px" in report.how


def test_a_file_that_is_no_picture(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(LumitokError, match=r"'.*notes\.png' is not a picture that can be read"):
        reconstruct_files(checkpoint, [tmp_path / "notes.png"], tmp_path / "out")
