"""Losses and samplers of LightningDiT, REPA and REG against the official numbers; see README.md here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumitok.config.networks import NetworkConfig
from lumitok.config.sampling import SamplingConfig
from lumitok.diffusion import DiffusionNetwork, build_network, flow
from lumitok.diffusion.sampling import network_field, pack, run_solver, unpack
from lumitok.diffusion.solvers import Noise, stochastic_time_grid, time_grid
from lumitok.interop import lightningdit, sit
from lumitok.interop.networks import Kind, compare_network
from lumitok.losses.alignment import alignment
from lumitok.losses.velocity import velocity_angle, velocity_error
from tests.parity.fixtures import Fixture


def test_the_loss_of_lightningdit() -> None:
    n = Fixture("lightningdit_transport_loss")
    noise, data, t, predicted = (n.inputs[name] for name in ("x0", "x1", "t", "prediction"))
    target = flow.velocity(noise, data)
    mse, cosine = velocity_error(predicted, target), velocity_angle(predicted, target)
    n.check(xt=flow.interpolate(noise, data, t), target=target, mse=mse, cosine=cosine)
    n.check(total_mean=mse.mean() + cosine.mean())


def test_the_loss_of_repa() -> None:
    n = Fixture("repa_loss")
    noise, data, t = n.inputs["noise"], n.inputs["x"], 1 - n.inputs["t"]
    n.check(
        xt=flow.interpolate(noise, data, t),
        denoising=velocity_error(-n.inputs["prediction"], flow.velocity(noise, data)),
        projection=alignment(n.inputs["projected"], n.inputs["features"]).mean(),
    )


def test_the_loss_of_reg() -> None:
    n = Fixture("reg_loss")
    t = 1 - n.inputs["t"]
    found = {}
    for prefix, noise, data in (("", "noise", "x"), ("class_", "class_noise", "class_token")):
        pair = n.inputs[noise], n.inputs[data]
        found[f"{prefix}xt"] = flow.interpolate(*pair, t)
        predicted = -n.inputs[f"{prefix}prediction"]
        found[f"{prefix}denoising"] = velocity_error(predicted, flow.velocity(*pair))
    projection = alignment(n.inputs["projected"], n.inputs["features"]).mean()
    n.check(**found, projection=projection)
    weights = n.arguments["projection_weight"], n.arguments["class_weight"]
    total = found["denoising"].mean() + weights[0] * projection
    n.check(total=total + weights[1] * found["class_denoising"].mean())


# ------------------------------------------------------------------------------------------------
# Samplers


def load(n: Fixture, settings: NetworkConfig, kind: Kind) -> DiffusionNetwork:
    compared = compare_network(n.weights, settings, kind)
    assert not any(compared.faults.values()), compared.faults
    network = build_network(settings).eval()
    network.load_state_dict(compared.state)
    return network


def no_noise() -> Tensor:
    raise AssertionError("an ordinary differential equation draws no noise")


@torch.no_grad()
def run(
    network: DiffusionNetwork, x: Tensor, y: Tensor, config: SamplingConfig, noise: Noise = no_noise
) -> tuple[Tensor, list[Tensor]]:
    """The final state, and those at which the field was evaluated."""
    states = []
    field = network_field(network, y, config)

    def seen(x: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
        states.append(x)
        return field(x, t, start)

    return run_solver(seen, x.double(), config, noise), states


@pytest.fixture(scope="module")
def lightning() -> tuple[Fixture, DiffusionNetwork]:
    n = Fixture("lightningdit_euler_ode")
    settings = lightningdit.read_settings(n.weights, heads=n.arguments["heads"])
    return n, load(n, settings, "lightningdit")


@pytest.mark.parametrize("prefix", ["", "unshifted_", "guided_"])
def test_eulers_steps_of_lightningdit(lightning: tuple[Fixture, DiffusionNetwork], prefix: str) -> None:
    n, network = lightning
    said = n.arguments
    settings = {"steps": said["updates"]}
    if prefix != "unshifted_":
        settings["shift"] = said["timestep_shift"]
        n.check(times=time_grid(**settings))
    if prefix == "guided_":
        settings["guidance"] = said["cfg_scale"]
        settings["guidance_interval"] = (said["cfg_interval_start"], 1.0)
        settings["guidance_channels"] = said["cfg_channels"]
    x, states = run(network, n.inputs["noise"], n.inputs["y"], SamplingConfig(**settings))
    n.check(**{f"{prefix}final": x})
    if prefix != "unshifted_":
        n.check(**{f"{prefix}trajectory": torch.stack([*states, x])})


def reversed_interval(n: Fixture) -> tuple[float, float]:
    """The interval of guidance in our time."""
    return 1 - n.arguments["guidance_high"], 1 - n.arguments["guidance_low"]


@pytest.fixture(scope="module")
def repa() -> tuple[Fixture, DiffusionNetwork]:
    n = Fixture("repa_samplers")
    settings = sit.read_settings(n.weights, heads=n.arguments["heads"], projector_block=1)
    return n, load(n, settings, "repa")


@pytest.mark.parametrize("prefix", ["", "guided_"])
@pytest.mark.parametrize("solver", ["sde", "ode_euler", "ode_heun"])
def test_the_samplers_of_repa(repa: tuple[Fixture, DiffusionNetwork], solver: str, prefix: str) -> None:
    n, network = repa
    ours = {"sde": "euler-maruyama", "ode_euler": "euler", "ode_heun": "heun"}[solver]
    config = SamplingConfig(solver=ours, steps=n.arguments["steps"])
    if prefix:
        config.guidance, config.guidance_interval = n.arguments["cfg_scale"], reversed_interval(n)
    noises = iter(n.inputs["noise"].double())
    x, _ = run(network, n.inputs["latents"], n.inputs["y"], config, lambda: next(noises))
    n.check(**{f"{prefix}{solver}": x})
    if solver == "sde":
        assert next(noises, None) is None


@pytest.fixture(scope="module")
def reg() -> tuple[Fixture, DiffusionNetwork]:
    n = Fixture("reg_sampler")
    return n, load(n, sit.read_settings(n.weights, projector_block=2), "reg")


@pytest.mark.parametrize("prefix", ["", "guided_", "guided_class0_"])
def test_the_sampler_of_reg(reg: tuple[Fixture, DiffusionNetwork], prefix: str) -> None:
    n, network = reg
    config = SamplingConfig(solver="euler-maruyama", steps=n.arguments["steps"])
    if prefix:
        config.guidance, config.guidance_interval = n.arguments["cfg_scale"], reversed_interval(n)
        # Its 0 stands for the conditional velocity, which is ours at 1.
        config.class_guidance = 1.0 if "class0" in prefix else n.arguments["class_cfg_scale"]
    noises = iter(zip(n.inputs["noise"].double(), n.inputs["class_noise"].double(), strict=True))
    start = pack(n.inputs["latents"], n.inputs["class_latents"])
    x, states = run(network, start, n.inputs["y"], config, lambda: pack(*next(noises)))
    assert next(noises, None) is None
    last, last_class = unpack(states[-1], network.latent_shape)
    final, _ = unpack(x, network.latent_shape)
    n.check(**{f"{prefix}final": final, f"{prefix}last_state": last})
    assert last_class is not None
    n.check(**{f"{prefix}last_class_state": last_class})
    if not prefix:
        n.check(times=1 - stochastic_time_grid(config.steps)[:-1])
