from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumitok.config.sampling import SamplingConfig
from lumitok.diffusion.guidance import Velocity, guided_velocity, lead_away
from tests.diffusion.fakes import FakeNetwork

LABELS = torch.tensor([0, 2])


def state(class_channels: int = 0) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 4, 2, 2, generator=generator)
    return latent, torch.randn(2, class_channels, generator=generator) if class_channels else None


def plain(network: FakeNetwork, labels: Tensor, t: float) -> Velocity:
    latent, token = state(network.class_channels)
    output = network(latent, torch.full((2,), t), labels, class_token=token)
    network.asked.clear()
    return Velocity(output.velocity, output.class_velocity)


def guided(network: FakeNetwork, t: float, start: float | None = None, **settings: object) -> Velocity:
    guide = settings.pop("guide", None)
    latent, token = state(network.class_channels)
    config = SamplingConfig(**settings)  # type: ignore[arg-type]
    return guided_velocity(network, latent, token, t, LABELS, config, guide=guide, start=start)  # type: ignore[arg-type]


def test_leading_away() -> None:
    good, worse = torch.tensor([[3.0, 3.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert lead_away(good, worse, 2.0).tolist() == [[5, 4, 3]]
    assert lead_away(good, worse, 1.0).tolist() == [[3, 3, 3]]
    assert lead_away(good, worse, 2.0, channels=1).tolist() == [[5, 3, 3]]


def test_classifier_free_guidance_leads_away_from_no_class_in_one_evaluation() -> None:
    network = FakeNetwork()
    good, worse = (plain(network, labels, 0.5).latent for labels in (LABELS, torch.tensor([3, 3])))
    found = guided(network, 0.5, guidance=2.5)
    torch.testing.assert_close(found.latent, worse + 2.5 * (good - worse))
    (asked,) = network.asked
    assert asked.labels == [0, 2, 3, 3]


@pytest.mark.parametrize(
    ("t", "start", "count"),
    [
        (0.1, None, 2),
        (0.25, None, 4),  # Both ends belong to it.
        (0.5, None, 4),
        (0.75, None, 4),
        (0.8, None, 2),
        (0.3, 0.2, 2),  # The step began outside: neither of its evaluations is guided,
        (0.8, 0.7, 4),  # or inside: both are.
    ],
)
def test_outside_the_interval_the_worse_velocity_is_not_computed(
    t: float, start: float | None, count: int
) -> None:
    network = FakeNetwork()
    found = guided(network, t, start, guidance=2.0, guidance_interval=(0.25, 0.75))
    assert [asked.count for asked in network.asked] == [count]
    if count == 2:
        assert torch.equal(found.latent, plain(network, LABELS, t).latent)


def test_guidance_1_is_no_guidance() -> None:
    network = FakeNetwork()
    guided(network, 0.5)
    assert [asked.count for asked in network.asked] == [2]


def test_guidance_of_the_first_channels() -> None:
    network = FakeNetwork()
    everywhere = guided(network, 0.5, guidance=2.0).latent
    found = guided(network, 0.5, guidance=2.0, guidance_channels=3).latent
    assert torch.equal(found[:, :3], everywhere[:, :3])
    assert torch.equal(found[:, 3], plain(network, LABELS, 0.5).latent[:, 3])


@pytest.mark.parametrize(("scale", "expected"), [(None, 2.0), (1.0, 1.0), (3.0, 3.0)])
def test_the_class_token_has_its_own_guidance(scale: float | None, expected: float) -> None:
    network = FakeNetwork(class_channels=5)
    good, worse = (plain(network, labels, 0.5) for labels in (LABELS, torch.tensor([3, 3])))
    found = guided(network, 0.5, guidance=2.0, class_guidance=scale, guidance_channels=3)
    assert good.class_token is not None
    assert worse.class_token is not None
    torch.testing.assert_close(
        found.class_token, worse.class_token + expected * (good.class_token - worse.class_token)
    )
    torch.testing.assert_close(found.latent, lead_away(good.latent, worse.latent, 2.0, channels=3))


def test_autoguidance_leads_away_from_the_second_network() -> None:
    network, guide = FakeNetwork(), FakeNetwork(slope=0.5)
    good, worse = (plain(one, LABELS, 0.5).latent for one in (network, guide))
    found = guided(network, 0.5, guidance=1.5, guide=guide)
    torch.testing.assert_close(found.latent, worse + 1.5 * (good - worse))
    assert [(asked.count, asked.labels) for asked in guide.asked] == [(2, [0, 2])]  # The same classes.
    guided(network, 0.9, guidance=1.5, guidance_interval=(0.0, 0.8), guide=guide)
    assert len(guide.asked) == 1
