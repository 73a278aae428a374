from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.config import EquivarianceConfig
from lumitok.errors import LumitokError
from lumitok.losses.equivariance import Equivariance, check_equivariance, draw_equivariance


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def config(**changes: Any) -> EquivarianceConfig:
    return EquivarianceConfig(**changes)


def test_the_identity_returns_the_same_tensor() -> None:
    x = noise(1, 3, 8, 8)
    nothing = Equivariance()
    assert nothing.identity
    assert nothing.shrink(x) is x
    assert nothing.latent(x) is x
    assert nothing.picture(x) is x


@pytest.mark.parametrize("branch", [{"input_scale": 0.5}, {"latent_scale": 0.5}, {"quarter_turns": 2}])
def test_each_branch_leaves_the_other_alone(branch: dict[str, Any]) -> None:
    x = noise(1, 3, 8, 8)
    transform = Equivariance(**branch)
    assert not transform.identity
    prior = "input_scale" in branch
    assert (transform.shrink(x) is x) == (not prior)
    assert (transform.latent(x) is x) == prior
    assert (transform.picture(x) is x) == prior


def test_a_turn_brings_the_first_row_to_the_last_column() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    once = Equivariance(quarter_turns=1)
    expected = torch.tensor([[3.0, 0.0], [4.0, 1.0], [5.0, 2.0]])
    assert torch.equal(once.latent(x)[0, 0], expected)
    assert torch.equal(once.picture(x)[0, 0], expected)
    assert torch.equal(Equivariance(quarter_turns=3).latent(once.latent(x)), x)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_are_resized_with_antialias_and_latents_without(interpolation: Any) -> None:
    x = noise(2, 3, 16, 24)
    small = Equivariance(latent_scale=0.25, interpolation=interpolation)
    plain = F.interpolate(x, (4, 6), mode="bilinear", align_corners=False)
    smooth = F.interpolate(x, (4, 6), mode=interpolation, align_corners=False, antialias=True)
    assert torch.equal(small.latent(x), plain)
    assert torch.equal(small.picture(x), smooth)
    assert torch.equal(Equivariance(input_scale=0.25, interpolation=interpolation).shrink(x), smooth)
    assert (plain - smooth).abs().max() > 0.1


def test_a_third_may_be_written_with_four_digits() -> None:
    assert Equivariance(input_scale=0.3333).shrink(noise(1, 3, 24, 24)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("side", "scale"), [(10, 0.25), (24, 0.33), (2, 0.001)])
def test_a_side_that_does_not_come_out_whole_is_an_error(side: int, scale: float) -> None:
    x = noise(1, 3, side, side)
    for change in (
        lambda: Equivariance(input_scale=scale).shrink(x),
        lambda: Equivariance(latent_scale=scale).latent(x),
        lambda: Equivariance(latent_scale=scale).picture(x),
    ):
        with pytest.raises(LumitokError, match=rf"scales {side}x{side} by {scale:g}"):
            change()


def test_the_branches_are_drawn_as_often_as_the_code_of_the_paper_draws_them() -> None:
    settings = config(
        latent_scales=[0.25, 0.5, 0.75], interpolation="bicubic"
    )  # Never by chance the identity.
    rng = np.random.default_rng(0)
    count = 8000
    drawn = Counter(draw_equivariance(settings, rng) for _ in range(count))
    assert all(transform.interpolation == "bicubic" for transform in drawn)
    assert all(type(t.quarter_turns) is int and type(t.latent_scale) is float for t in drawn)

    def share(wanted: Equivariance) -> float:
        return drawn.pop(wanted, 0) / count

    def close(expected: float) -> Any:
        return pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / count))

    assert share(Equivariance(interpolation="bicubic")) == close(0.375)
    prior = [share(Equivariance(scale, 1.0, 0, "bicubic")) for scale in (0.25, 0.5, 0.75)]
    assert sum(prior) == close(0.125)
    assert prior == [close(0.125 / 3)] * 3
    latent = [
        share(Equivariance(1.0, scale, turns, "bicubic")) for scale in (0.25, 0.5, 0.75) for turns in range(4)
    ]
    assert sum(latent) == close(0.5)
    assert latent == [close(0.5 / 12)] * 12
    assert not drawn


def test_draws_follow_from_the_seed() -> None:
    def sequence(seed: int) -> list[Equivariance]:
        rng = np.random.default_rng(seed)
        return [draw_equivariance(config(), rng) for _ in range(20)]

    assert sequence(1) == sequence(1)
    assert sequence(1) != sequence(2)


# Pictures, size_multiple and latent of VFM-VAE at 256 px, at 128 px, and at 256 px with downsampling 8.
@pytest.mark.parametrize("sizes", [(256, 64, 16), (128, 32, 8), (256, 64, 32)])
def test_the_scales_of_the_paper_fit(sizes: tuple[int, int, int]) -> None:
    check_equivariance(config(), *sizes)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        (
            {"prior_scales": [0.5, 0.6]},
            (256, 64, 16),
            r"prior_scales: 0\.6 brings the picture's side from 256 to 153\.6, .* a multiple of 64; "
            r"the nearest that fit are 0\.5 and 0\.75",
        ),
        (
            {"latent_scales": [1.0, 0.625]},
            (256, 64, 16),
            r"latent_scales: 0\.625 brings the latent's side from 16 to 10, .* a multiple of 4; "
            r"the nearest that fit are 0\.5 and 0\.75",
        ),
        ({"latent_scales": [0.1]}, (256, 64, 16), r"the nearest that fit are 0\.25$"),
        ({"latent_scales": [0.0005]}, (256, 64, 16), r"to 0\.008, .* the nearest that fit are 0\.25$"),
        ({}, (32, 64, 2), r"a multiple of 64; none fits; set its probability to 0$"),
        ({}, (32, 16, 2), r"prior_scales: 0\.25 .* from 32 to 8, .* the nearest that fit are 0\.5$"),
        ({"prior_probability": 0}, (32, 16, 2), r"latent_scales: 0\.25 .* the nearest that fit are 0\.5$"),
    ],
)
def test_scales_that_do_not_fit_are_named(
    changes: dict[str, Any], sizes: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(LumitokError, match=message):
        check_equivariance(config(**changes), *sizes)


def test_scales_that_are_never_drawn_need_not_fit() -> None:
    odd = [0.123]
    check_equivariance(config(prior_probability=0, prior_scales=odd), 256, 64, 16)
    check_equivariance(config(latent_probability=1, prior_scales=odd), 256, 64, 16)
    check_equivariance(config(latent_probability=0, latent_scales=odd), 256, 64, 16)
