"""Small sets of pictures and a quick stand-in for Inception, for the tests of generation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lumitok.evaluation.extractors import Extracted
from lumitok.evaluation.results import Results
from lumitok.pipelines.evaluate_generation import Settings, evaluate_generation

SIDE = 8
FEW = Settings(k=2, split_size=3, kid_subsets=3, kid_subset_size=4)


class StandIn:
    """Random projections of a picture's pixels, of Inception's widths: as quick as Inception is slow."""

    description, weights, dim, registered = "stand-in", "0" * 64, 2048, True

    def __init__(self, name: str = "inception") -> None:
        self.name = name

    def __call__(self, pixels: Tensor) -> Extracted:
        x = pixels.flatten(1).float() / 255
        made = [
            x @ torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(width))
            for width in (2048, 2023, 1008)
        ]
        return Extracted(*made) if self.name == "inception" else Extracted(made[0])


def pictures(count: int, seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    """Pictures that differ in their colour as well as in their noise."""
    draw = np.random.default_rng(seed)
    colours = draw.uniform(0, 200, (count, 1, 1, 3))
    return (colours + draw.uniform(0, 50, (count, side, side, 3))).round().astype(np.uint8)


def write(folder: Path, arrays: NDArray[np.uint8], suffix: str = "png") -> Path:
    folder.mkdir()
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number:03d}.{suffix}")
    return folder


class Tensors(torch.utils.data.Dataset[Tensor]):
    """Pictures as torch-fidelity takes them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def judge(samples: Path, reference: Path, **options: Any) -> Results:
    return evaluate_generation(samples, reference, **{"settings": FEW, "batch_size": 4} | options)


def warned(results: Results, pattern: str) -> bool:
    return any(re.search(pattern, warning) for warning in results.tables["warnings"])
