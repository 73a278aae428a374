"""Pictures and recipes for training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lumitok.config import Recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of 40 x 32 px, each of a few large patches of colour."""
    rng = np.random.default_rng(0)
    path = tmp_path / "pictures"
    path.mkdir()
    for index in range(12):
        patches = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
        patches.resize((40, 32), Image.Resampling.NEAREST).save(path / f"{index:02d}.png")
    return path


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], folder: Path, tmp_path: Path) -> Recipe:
    """Six adversarial steps of four pictures with every loss that needs no download."""
    tiny_recipe["out"] = str(tmp_path / "run")
    tiny_recipe["data"] = {"train": str(folder), "holdout": 4, "workers": 0}
    tiny_recipe["stages"] = [
        {
            "name": "only",
            "images": 24,
            "batch_size": 4,
            "generator_lr": 1e-3,
            "losses": {
                "l1": 1.0,
                "multi_resolution_l1": 0.1,
                "feature_distance": 0.5,
                "feature_distance_encoder": tiny_recipe["model"]["encoder"],
                "kl": 1e-6,
                "vf": 0.5,
                "gan": 0.1,
            },
        }
    ]
    tiny_recipe["training"] = {
        "precision": "fp32",
        "log_every": 2,
        "grid_every": 0,
        "validate_every": 3,
        "checkpoint_every": 2,
        "keep": 9,
        "best": "none",
        "tracker": "none",
    }
    return Recipe.model_validate(tiny_recipe)
