"""The parity files' weights laid out as the official checkpoints are."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.fixtures import Fixture


def state(name: str) -> dict[str, Tensor]:
    """A parity file's weights by their official keys."""
    return dict(Fixture(name).weights)


def wrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as DistributedDataParallel names them."""
    return {f"module.{key}": value for key, value in weights.items()}


def lightningdit_file(folder: Path, ema: dict[str, Any], model: dict[str, Any]) -> Path:
    """As LightningDiT writes: ``ema`` clean, ``model`` wrapped, the optimiser and its YAML beside."""
    file = folder / "0080000.pt"
    content = {"model": wrapped(model), "ema": ema, "opt": {"state": {}}, "config": {"model": {"name": "x"}}}
    torch.save(content, file)
    return file


def repa_file(folder: Path, ema: dict[str, Any], model: dict[str, Any], depth: int) -> Path:
    """As REPA and REG write: both clean, and the parsed command line."""
    file = folder / "0400000.pt"
    settings = Namespace(encoder_depth=depth, model="SiT-XL/2")
    torch.save({"model": model, "ema": ema, "opt": {}, "args": settings, "steps": 400_000}, file)
    return file
