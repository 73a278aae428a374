"""Latent statistics measured after the fact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lumitok import Tokenizer
from lumitok.cli import app
from lumitok.data import open_pictures
from lumitok.errors import LumitokError
from lumitok.pipelines.statistics import store_statistics
from lumitok.training import measure_latents
from tests.pipelines.kinds import save_kind


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures, and one that cannot be read."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "9.png").write_bytes(b"no picture")
    return folder


def test_they_are_those_of_the_end_of_a_run_and_nothing_else_changes(
    tiny_recipe: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    folder = Path(save_kind("ldm", tiny_recipe, tmp_path / "run" / "tokenizer"))
    before, weights = json.loads((folder / "config.json").read_text()), Tokenizer.from_pretrained(folder)
    result = CliRunner().invoke(
        app, ["statistics", str(tmp_path / "run"), str(pictures), "--seed", "3"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert "1 pictures could not be read" in result.stdout
    after = json.loads((folder / "config.json").read_text())
    told = ("latents_mean", "latents_std", "latents_count")
    assert {k: v for k, v in after.items() if k not in told} == {
        k: v for k, v in before.items() if k not in told
    }
    wanted = measure_latents(weights, open_pictures(pictures), batch_size=32, limit=100, seed=3)
    opened = Tokenizer.from_pretrained(folder)
    assert opened.latent_spec.mean == tuple(wanted[0].tolist())
    assert opened.latent_spec.std == tuple(wanted[1].tolist())
    assert after["latents_count"] == 5
    assert opened.fingerprint() == weights.fingerprint()
    assert "over 5 pictures" in (folder / "README.md").read_text()
    assert not list(folder.glob("*.partial"))
    opened.latent_spec.whiten(torch.zeros(1, 4, 2, 2))


def test_statistics_that_are_there_are_not_replaced_unasked(
    tiny_recipe: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    folder = save_kind("ldm", tiny_recipe, tmp_path / "saved")
    first = store_statistics(folder, pictures, count=3)
    with pytest.raises(LumitokError, match="--replace measures them anew"):
        store_statistics(folder, pictures)
    assert Tokenizer.from_pretrained(folder).settings.latents_count == first.count
    second = store_statistics(folder, pictures, replace=True)
    assert (second.count, second.unreadable) == (5, 1)
    assert second.mean != first.mean
    with pytest.raises(LumitokError, match="there is no folder 'nobody/nothing'"):
        store_statistics("nobody/nothing", pictures)
