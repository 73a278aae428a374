from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lumitok.config.networks import LightningDiTConfig, SiTConfig
from lumitok.config.sampling import SamplingConfig
from lumitok.diffusion import build_network
from lumitok.diffusion.base import DiffusionNetwork
from lumitok.diffusion.sampling import evaluations, pack, sample, unpack
from lumitok.errors import LumitokError
from tests.diffusion.fakes import FakeNetwork

SOLVERS: dict[str, dict[str, Any]] = {
    "euler": {},
    "heun": {},
    "dopri5": {},
    "euler-maruyama": {},
    "ddim": {"eta": 1.0},
}
SEEDS = [11, 3, 11, 7]
LABELS = [0, 2, 1, 3]


def draw(network: Any, seeds: list[int] = SEEDS, labels: Any = LABELS, **settings: Any) -> Tensor:
    others = {key: settings.pop(key) for key in ("guide", "report") if key in settings}
    return sample(network, labels, seeds, SamplingConfig(**settings), **others)


def filled(network: DiffusionNetwork) -> DiffusionNetwork:
    """With no layer at zero, as networks begin: those would predict nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


TINY: dict[str, Any] = {
    "in_channels": 4, "input_size": 4, "depth": 2, "width": 32, "heads": 4, "classes": 3,
}  # fmt: skip


@pytest.fixture(scope="module", params=["lightningdit", "sit with class token"])
def network(request: pytest.FixtureRequest) -> DiffusionNetwork:
    torch.manual_seed(0)
    if request.param == "lightningdit":
        return filled(build_network(LightningDiTConfig(**TINY)))
    return filled(build_network(SiTConfig(**TINY, class_channels=6)))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_depend_on_those_beside_it(network: DiffusionNetwork, solver: str) -> None:
    settings = {"solver": solver, "steps": 6, "shift": 0.5, **SOLVERS[solver]}
    settings |= {"guidance": 2.0, "guidance_interval": (0.2, 0.9), "guidance_channels": 3}
    together = draw(network, **settings)
    assert together.shape == (4, 4, 4, 4)
    for place, (seed, label) in enumerate(zip(SEEDS, LABELS, strict=True)):
        alone = draw(network, [seed], [label], **settings)
        torch.testing.assert_close(alone[0], together[place], atol=1e-5, rtol=0)
    assert float((together[0] - together[2]).abs().max()) > 1e-3  # The same seed, another class.
    same_class = draw(network, [3, 4], [1, 1], **settings)
    assert float((same_class[0] - same_class[1]).abs().max()) > 0.1


def test_the_class_token_is_part_of_the_state() -> None:
    network = FakeNetwork(class_channels=5)
    seen = []
    network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0].shape, kwargs["class_token"].clone())), with_kwargs=True
    )
    draw(network, solver="euler", steps=2)
    assert [shape for shape, _ in seen] == [(4, 4, 2, 2)] * 2
    assert [token.shape for _, token in seen] == [(4, 5)] * 2
    moved = seen[1][1] - seen[0][1]
    velocity = 2.0 * (torch.tensor(LABELS) + 1.0)  # The fake's at t = 0.
    torch.testing.assert_close(moved, 0.5 * velocity[:, None].expand(4, 5))


def test_packing_is_undone_by_unpacking() -> None:
    latent, token = torch.randn(2, 4, 2, 3), torch.randn(2, 5)
    assert pack(latent, None) is latent
    again = unpack(pack(latent, token), (4, 2, 3))
    assert torch.equal(again[0], latent)
    assert again[1] is not None
    assert torch.equal(again[1], token)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_runs_in_its_own_dtype_and_the_state_in_float64(dtype: torch.dtype) -> None:
    network = FakeNetwork().to(dtype)
    found = draw(network, steps=3)
    assert found.dtype == torch.float32
    assert {asked.dtypes for asked in network.asked} == {(dtype, torch.float32)}
    assert [asked.t for asked in network.asked] == pytest.approx([0, 1 / 3, 2 / 3])


def test_a_state_in_bfloat16_would_stand_still() -> None:
    """A thousand small steps: each would be lost in rounding if the state had the network's dtype."""
    network = FakeNetwork(slope=0.01).to(torch.bfloat16)
    exact = draw(FakeNetwork(slope=0.01), [1], [2], steps=1000)
    torch.testing.assert_close(draw(network, [1], [2], steps=1000), exact, atol=2e-4, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_progress_is_reported(solver: str) -> None:
    network, told = FakeNetwork(), []
    settings = {"solver": solver, "steps": 4, **SOLVERS[solver]}
    draw(network, report=lambda done, total: told.append((done, total)), **settings)
    total = {"heun": 7, "dopri5": None}.get(solver, 4)
    assert evaluations(SamplingConfig(**settings)) == total
    assert told == [(done, total) for done in range(1, len(network.asked) + 1)]
    assert total is None or len(told) == total


def test_the_interval_saves_evaluations() -> None:
    network = FakeNetwork()
    draw(network, steps=8, guidance=3.0, guidance_interval=(0.125, 0.5))
    assert [asked.count for asked in network.asked] == [4, 8, 8, 8, 8, 4, 4, 4]


def test_a_network_without_classes() -> None:
    network = FakeNetwork(classes=0)
    assert draw(network, labels=None, steps=2).shape == (4, 4, 2, 2)
    assert network.asked[0].labels is None
    draw(network, labels=None, steps=2, guidance=2.0, guide=FakeNetwork(classes=0))
    with pytest.raises(LumitokError, match="knows no classes"):
        draw(network)
    with pytest.raises(LumitokError, match="no labels were given"):
        draw(network, labels=None, guidance=2.0)


def test_no_labels_are_null_labels() -> None:
    network = FakeNetwork()
    draw(network, labels=None, steps=1)
    assert network.asked[0].labels == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [], "labels": []}, "no seeds"),
        ({"labels": [0, 1]}, "4 seeds and labels of shape \\(2,\\)"),
        ({"guidance": 2.0, "guidance_channels": 5}, "guidance_channels is 5, but the latent has 4"),
        ({"class_guidance": 2.0}, "this network has none"),
        ({"guidance": 2.0, "autoguidance": "runs/small"}, "autoguidance, runs/small, and give it"),
        ({"guidance": 2.0, "guide": FakeNetwork(classes=5)}, "classes are 3 and 5"),
        ({"guidance": 2.0, "guide": FakeNetwork(channels=2)}, "latents are"),
    ],
)
def test_what_does_not_belong_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LumitokError, match=message):
        draw(FakeNetwork(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_interval": (0.5, 0.5)}, "0 <= low < high <= 1"),
        ({"guidance_interval": (0.5, 1.5)}, "0 <= low < high <= 1"),
        ({"autoguidance": "runs/small"}, "leads nowhere at guidance 1"),
        ({"eta": 0.5}, "belongs to the solver ddim, not to euler"),
        ({"guidance": 0.5}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SamplingConfig(**settings)
