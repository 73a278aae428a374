"""The diagonal Gaussian: the reference's numbers, and noise that belongs to the picture."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from lumitok.errors import LumitokError
from lumitok.tokenizers.posterior import DiagonalGaussian
from tests.parity.fixtures import Fixture


@pytest.mark.parametrize("prefix", ["", "wide_"])
def test_it_agrees_with_the_reference(prefix: str) -> None:
    fixture = Fixture("vfmvae_posterior")
    posterior = DiagonalGaussian(fixture.inputs["moments_wide" if prefix else "moments"])
    found = {
        "mean": posterior.mode(),
        "logvar": posterior.logvar,
        "std": posterior.std,
        "kl": posterior.kl(),
        "sample": posterior.mean + posterior.std * fixture.inputs["noise"],
    }
    for name, ours in found.items():
        # Element by element: the extremes of the wide ones would hide all others.
        torch.testing.assert_close(ours, fixture.outputs[prefix + name], rtol=fixture.tolerance, atol=1e-6)
    torch.testing.assert_close(posterior.var, posterior.std.square())


def test_it_draws_what_diffusers_draws() -> None:
    moments = torch.randn(3, 8, 2, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = DiagonalGaussian(moments), DiagonalGaussianDistribution(moments)
    draws = [d.sample(torch.Generator().manual_seed(5)) for d in (ours, theirs)]
    assert torch.equal(*draws)


def test_noise_belongs_to_the_picture_where_each_has_a_generator() -> None:
    def generators(seeds: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    posterior = DiagonalGaussian(torch.zeros(3, 8, 2, 4))
    whole = posterior.sample(generators([4, 7, 9]))
    turned = posterior.sample(generators([9, 4, 7]))
    assert torch.equal(whole, turned[[1, 2, 0]])
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_list_has_a_generator_for_every_picture(count: int) -> None:
    posterior = DiagonalGaussian(torch.zeros(3, 8, 2, 4))
    with pytest.raises(
        LumitokError, match=f"there are {count} generators for 3 pictures; give one a picture"
    ):
        posterior.sample([torch.Generator()] * count)
