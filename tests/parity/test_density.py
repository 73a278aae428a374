"""Density uniformity against LightningDiT's numbers; see README.md here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumitok.evaluation.density import Uniformity, kernel_density, uniformity
from tests.parity.fixtures import Fixture


@pytest.fixture
def fixture() -> Fixture:
    return Fixture("density_uniformity")


def as_outputs(found: Uniformity) -> dict[str, Tensor]:
    values = {"cv": found.cv, "gini": found.gini, "normalised_entropy": found.entropy}
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def test_the_three_figures_of_a_density(fixture: Fixture) -> None:
    fixture.check(**as_outputs(uniformity(fixture.outputs["density"])))


def test_the_kernel_density_and_its_figures(fixture: Fixture) -> None:
    pytest.importorskip("scipy")
    density = kernel_density(fixture.inputs["points"])
    fixture.check(density=torch.from_numpy(density).float(), **as_outputs(uniformity(density)))
