"""Paths between latents, and sheets made by a tiny random tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lumitok.config import Recipe
from lumitok.errors import LumitokError
from lumitok.evaluation.image_quality import to_uint8
from lumitok.evaluation.pictures import align_colors, latent_pca, resized
from lumitok.evaluation.protocol import PictureSet, Protocol
from lumitok.evaluation.results import Number, Results
from lumitok.pipelines.latent_pictures import (
    CELL,
    interpolate,
    interpolation_sheet,
    latent_plots,
    pca_sheet,
)
from lumitok.tokenizers import Tokenizer, build_tokenizer
from tests.pipelines.kinds import save_kind


def latent(seed: int) -> Tensor:
    return torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("how", ["linear", "spherical"])
def test_a_path_begins_and_ends_at_the_latents(how: Any) -> None:
    start, end = latent(0), 3 * latent(1)
    torch.testing.assert_close(interpolate(start, end, 0.0, how), start)
    torch.testing.assert_close(interpolate(start, end, 1.0, how), end)
    # Walked the other way it is the same path.
    torch.testing.assert_close(interpolate(start, end, 0.3, how), interpolate(end, start, 0.7, how))
    # Near-parallel latents, where a quotient of sines has no digits left.
    close = interpolate(start, start * (1 + 1e-7), 0.5, how)
    torch.testing.assert_close(close, start)


def test_the_linear_path_by_hand() -> None:
    torch.testing.assert_close(
        interpolate(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 8.0), 0.25, "linear"),
        torch.full((1, 2, 2), 2.0),
    )


def test_the_spherical_path_keeps_length_and_speed() -> None:
    start, end = torch.tensor([3.0, 0.0]).view(2, 1, 1), torch.tensor([0.0, 3.0]).view(2, 1, 1)
    for fraction in (0.25, 0.5, 0.8):
        x, y = interpolate(start, end, fraction, "spherical").flatten().tolist()
        assert (x, y) == pytest.approx(
            (3 * math.cos(fraction * math.pi / 2), 3 * math.sin(fraction * math.pi / 2))
        )


def test_latents_without_a_path() -> None:
    with pytest.raises(LumitokError, match="of one shape"):
        interpolate(latent(0), latent(1)[:2], 0.5, "linear")
    with pytest.raises(LumitokError, match=r"'sferical'.*did you mean 'spherical'"):
        interpolate(latent(0), latent(1), 0.5, "sferical")  # type: ignore[arg-type]
    with pytest.raises(LumitokError, match="no direction"):
        interpolate(latent(0), 0 * latent(1), 0.5, "spherical")
    with pytest.raises(LumitokError, match="opposite"):
        interpolate(latent(0), -latent(0), 0.5, "spherical")


@pytest.fixture
def tokenizer(tiny_recipe: dict[str, Any]) -> Tokenizer:
    torch.manual_seed(0)
    return build_tokenizer(Recipe.model_validate(tiny_recipe).model).eval()


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def cells(sheet: Image.Image) -> set[bytes]:
    """All windows of a sheet would be many: the cells, found by the ground around them."""
    pixels = np.asarray(sheet)
    ground = (pixels == 250).all(axis=2)
    rows, columns = (runs(~ground.all(axis=axis)) for axis in (1, 0))
    return {pixels[y : y + CELL, x : x + CELL].tobytes() for y in rows for x in columns}


def runs(filled: np.ndarray[Any, Any]) -> list[int]:
    """Starts of the stretches of a cell's length."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], filled.astype(int), [0]])))
    return [int(a) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a == CELL]


def as_cell(picture: Tensor) -> bytes:
    return np.asarray(resized(picture, CELL, CELL)).tobytes()


@torch.no_grad()
def test_the_sheet_of_interpolations(tokenizer: Tokenizer, pictures: Tensor) -> None:
    found = cells(interpolation_sheet(tokenizer, pictures))
    means = tokenizer.encode(pictures.float() / 127.5 - 1).latent_dist.mode()
    for first in (0, 2):
        start, end = means[first : first + 2]
        assert as_cell(pictures[first]) in found
        assert as_cell(pictures[first + 1]) in found
        for how in ("linear", "spherical"):
            between = torch.stack([interpolate(start, end, t / 6, how) for t in range(7)])  # type: ignore[arg-type]
            decoded = to_uint8(tokenizer.decode(between).sample)
            assert as_cell(decoded[0]) in found
            assert as_cell(decoded[2]) in found
    half = ((pictures[0].float() + pictures[1].float()) / 2).round().byte()
    assert as_cell(half) in found
    with pytest.raises(LumitokError, match="two pictures, got 1"):
        interpolation_sheet(tokenizer, pictures[:1])


@torch.no_grad()
def test_the_sheet_of_latents_beside_features(tokenizer: Tokenizer, pictures: Tensor) -> None:
    found = cells(pca_sheet(tokenizer, pictures))
    # The tiny encoder has a grid of 2 x 2, as the latent; its last layer is shown.
    features = tokenizer.encoder(pictures.float() / 255).maps[-1]
    latents = tokenizer.encode(pictures.float() / 127.5 - 1).latent_dist.mode()
    shown = latent_pca(features)
    colored = align_colors(latent_pca(latents), shown)
    for row in (pictures, *(to_uint8(maps, low=0.0, high=1.0) for maps in (shown, colored))):
        assert all(as_cell(picture) in found for picture in row)
    assert len(found) == 12


@torch.no_grad()
def test_the_sheet_of_a_tokenizer_without_a_foundation_encoder(
    tiny_recipe: dict[str, Any], tmp_path: Path, pictures: Tensor
) -> None:
    tokenizer = Tokenizer.from_pretrained(save_kind("ldm", tiny_recipe, tmp_path / "ldm"))
    found = cells(pca_sheet(tokenizer, pictures))
    latents = latent_pca(tokenizer.encode(pictures.float() / 127.5 - 1).latent_dist.mode())
    for row in (pictures, to_uint8(latents, low=0.0, high=1.0)):
        assert all(as_cell(picture) in found for picture in row)
    assert len(found) == 8


def results() -> Results:
    protocol = Protocol(data=PictureSet("some", 2, "0"))
    return Results(
        "latents",
        "run",
        [Number("effective rank", 1.5, protocol)],
        tables={
            "channels": {"mean": [0.0, 1.0], "std": [1.0, 2.0], "near-dead": [False, False]},
            "eigenvalues": [2.0, 1.0],
            "spectrum": {
                "latent": {"frequency": [1.0, 2.0], "power": [0.2, 0.1]},
                "pictures": {"frequency": [1.0, 2.0, 3.0], "power": [0.2, 0.1, 0.0]},
                "white noise": 0.25,
            },
        },
    )


def test_plots_are_drawn_from_what_was_saved(tmp_path: Path) -> None:
    plots = latent_plots(Results.load(results().save(tmp_path / "r.json")))
    assert list(plots) == ["spectrum", "channels", "directions"]
    assert "effective rank 1.5" in plots["directions"].svg()
    assert plots["spectrum"].svg()  # A frequency without power is left out.
    other = results()
    other.kind = "reconstruction"
    with pytest.raises(LumitokError, match="kind 'reconstruction'"):
        latent_plots(other)
