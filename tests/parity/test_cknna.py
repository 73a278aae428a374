"""CKNNA and SE-CKNNA's transforms against the official code's numbers; see README.md here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lumitok.evaluation.cknna import cknna, normalized, unbiased_cka, unbiased_hsic
from lumitok.evaluation.perturbations import Turn, add_noise, draw_turn, turn
from tests.parity.fixtures import Fixture, relative_error


@pytest.fixture(scope="module")
def numbers() -> Fixture:
    return Fixture("cknna")


@pytest.fixture(scope="module")
def transforms() -> Fixture:
    return Fixture("se_cknna_transforms")


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def test_cknna(numbers: Fixture) -> None:
    a, b = numbers.inputs["a"], numbers.inputs["b"]
    numbers.check(
        cknna_clamped=scalar(cknna(a, b)),
        cknna_clamped_by_row_quantiles=scalar(cknna(a, b, clamp_by="rows")),
        cknna_unclamped=scalar(cknna(a, b, clamp=None)),
        cknna_self_a=scalar(cknna(a, a)),
    )


def test_clamped_and_normalised_features(numbers: Fixture) -> None:
    a, b = numbers.inputs["a"], numbers.inputs["b"]
    for ours, name in [(normalized(a), "clamped_a"), (normalized(b), "clamped_b")]:
        reference = torch.nn.functional.normalize(numbers.outputs[name], dim=1)
        assert relative_error(ours, reference) <= numbers.tolerance


def test_hsic_and_cka(numbers: Fixture) -> None:
    a, b = normalized(numbers.inputs["a"]), normalized(numbers.inputs["b"])
    numbers.check(
        hsic_unbiased_kernels=scalar(unbiased_hsic(a @ a.T, b @ b.T)),
        hsic_unbiased_matrices=scalar(unbiased_hsic(numbers.inputs["matrix_k"], numbers.inputs["matrix_l"])),
        unbiased_cka=scalar(unbiased_cka(a, b)),
    )


def test_noise(transforms: Fixture) -> None:
    level, first = transforms.arguments["noise_level"], transforms.arguments["first_index"]
    pictures = transforms.inputs["images"].numpy().astype(np.uint8)
    noisy = [add_noise(picture, [0.2, level], first + i)[1] for i, picture in enumerate(pictures)]
    transforms.check(noisy=torch.from_numpy(np.stack(noisy)).long())


def test_draws(transforms: Fixture) -> None:
    first = transforms.arguments["first_index"]
    draws = [draw_turn(first + i) for i in range(transforms.arguments["indices"])]
    transforms.check(
        rotation=torch.tensor([draw.degrees for draw in draws]),
        scale_percent=torch.tensor([round(draw.scale * 100) for draw in draws]),
    )


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation(transforms: Fixture, degrees: int) -> None:
    picture = transforms.inputs["images"][0].numpy().astype(np.uint8)
    turned = turn(picture, Turn(degrees, 1.0))
    transforms.check(**{f"rotated_{degrees}": torch.from_numpy(turned).long()})
