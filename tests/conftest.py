"""What every test shares."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tests run side by side; sums then also come out alike on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach a hub, also where there is a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No weights of a metric's network: an empty cache of torch hub's, no variable, no network."""

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no network")

    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    for variable in ("LUMITOK_INCEPTION", "LUMITOK_VGG16"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    yield tmp_path
    torch.hub.set_dir(before)


@pytest.fixture
def tiny_recipe() -> dict[str, Any]:
    """A whole recipe with random networks so small that each runs in milliseconds."""
    encoder = {
        "name": "timm:vit_tiny_patch16_224",
        "layers": [0, -1],
        "weights": "random",
        "timm_kwargs": {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2},
    }
    return {
        "about": "Tiny networks for tests.",
        "model": {
            "encoder": encoder,
            "image_size": 32,
            "latent_channels": 4,
            "projected_channels": [8, 8],
            "post_channels": 16,
            "style_channels": 16,
            "attention_heads": 2,
            "block_channels": [8, 8, 16, 16, 16, 16],
            "block_depths": [1] * 6,
            "block_latent_channels": [0, 0, 8, 8, 8, 8],
        },
        "discriminator": {"encoder": encoder, "input_size": 32},
        "stages": [{"name": "only", "images": 8, "batch_size": 4, "losses": {"l1": 1.0}}],
    }
