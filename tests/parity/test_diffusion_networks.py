"""LightningDiT, SiT, REPA's and REG's networks against the official numbers, imported as a user's file is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumitok.config.networks import LightningDiTConfig, NetworkConfig, SiTConfig
from lumitok.diffusion import DiffusionNetwork, build_network
from lumitok.diffusion.layers import rotary_table, rotate, sin_cos_table, time_waves
from lumitok.interop import lightningdit, sit
from lumitok.interop.networks import Kind, compare_network, split_pairs
from tests.parity.fixtures import Fixture, relative_error

LIGHTNING = ["rope_rms_swiglu", "qknorm", "without_shift", "layernorm_gelu"]


def load(fixture: Fixture, settings: NetworkConfig, kind: Kind) -> DiffusionNetwork:
    compared = compare_network(fixture.weights, settings, kind)
    assert not any(compared.faults.values()), compared.faults
    network = build_network(settings).eval()
    network.load_state_dict(compared.state)
    return network


def guided(fixture: Fixture, network: DiffusionNetwork, scale: float, times: str = "cfg_t") -> Tensor:
    """Guidance on three channels; each half keeps its own prediction of the others, as upstream."""
    x, t, y = (fixture.inputs[name] for name in ("cfg_x", times, "cfg_y"))
    half = x[: len(x) // 2]
    v = network(torch.cat([half, half]), t, y).velocity
    conditional, free = v.chunk(2)
    lead = free[:, :3] + scale * (conditional[:, :3] - free[:, :3])
    return torch.cat([torch.cat([lead, lead]), v[:, 3:]], dim=1)


@pytest.mark.parametrize("name", LIGHTNING)
@torch.no_grad()
def test_lightningdit(name: str) -> None:
    fixture = Fixture(f"lightningdit_{name}")
    said = fixture.arguments
    settings = lightningdit.read_settings(fixture.weights, heads=said["heads"])
    assert settings == LightningDiTConfig(
        in_channels=said["channels"],
        input_size=said["latent_side"],
        patch=said["patch"],
        depth=said["depth"],
        width=said["width"],
        heads=said["heads"],
        classes=said["classes"],
        qk_norm=said["qk_norm"],
        norm="rms" if said["norm"].startswith("RMS") else "layer",
        mlp="swiglu" if said["mlp"].startswith("Swi") else "gelu",
        rotary=said["rope"],
        modulation_shift=said["modulation_shift"],
    )
    network = load(fixture, settings, "lightningdit")
    x, t, y = (fixture.inputs[name] for name in ("x", "t", "y"))
    fixture.check(
        velocity=network(x, t, y).velocity,
        cfg_no_interval=guided(fixture, network, said["cfg_scale"], "cfg_t_below"),
        cfg_above=guided(fixture, network, said["cfg_scale"], "cfg_t_above"),
    )


@torch.no_grad()
def test_sit_without_its_learned_variance() -> None:
    fixture = Fixture("sit_original")
    said = fixture.arguments
    settings = sit.read_settings(fixture.weights, heads=said["heads"])
    assert (settings.patch, settings.in_channels, settings.input_size) == (2, 4, 8)
    assert settings.projector is None
    assert not settings.class_channels
    network = load(fixture, settings, "sit")
    x, t, y = (fixture.inputs[name] for name in ("x", "t", "y"))
    fixture.check(velocity=network(x, t, y).velocity, guided=guided(fixture, network, said["cfg_scale"]))


@torch.no_grad()
def test_repa_with_its_time_turned_round() -> None:
    fixture = Fixture("repa_sit")
    settings = sit.read_settings(fixture.weights, heads=4, projector_block=1)
    assert settings.projector is not None
    assert (settings.projector.hidden, settings.projector.channels) == (32, 20)
    network = load(fixture, settings, "repa")
    x, t, y = (fixture.inputs[name] for name in ("x", "t", "y"))
    out = network(x, 1 - t, y, project=True)
    assert out.projected is not None
    fixture.check(velocity=-out.velocity, projected=out.projected)


@torch.no_grad()
def test_reg_with_its_time_turned_round() -> None:
    fixture = Fixture("reg_sit")
    settings = sit.read_settings(fixture.weights, projector_block=2)
    said = fixture.arguments
    assert isinstance(settings, SiTConfig)
    assert (settings.heads, settings.qk_norm) == (said["heads"], True)
    assert settings.class_channels == said["class_token_channels"]
    network = load(fixture, settings, "reg")
    x, t, y, token = (fixture.inputs[name] for name in ("x", "t", "y", "class_token"))
    out = network(x, 1 - t, y, class_token=token, project=True)
    assert out.projected is not None
    assert out.class_velocity is not None
    fixture.check(velocity=-out.velocity, class_velocity=-out.class_velocity, projected=out.projected)


def test_tables() -> None:
    fixture = Fixture("diffusion_tables")
    said = fixture.arguments
    head = said["rope_head_dim"]
    cos, sin = rotary_table(head, said["rope_side"])
    q = fixture.inputs["q"]

    def halves(x: Tensor) -> Tensor:
        return split_pairs(x.movedim(-1, 0).contiguous(), head).movedim(0, -1)

    assert relative_error(rotate(halves(q), (cos, sin)), halves(fixture.outputs["rope_applied"])) < 1e-6
    t = fixture.inputs["t"]
    fixture.check(
        rope_cos=cos.repeat_interleave(2, dim=1),
        rope_sin=sin.repeat_interleave(2, dim=1),
        sincos_width48_side4=sin_cos_table(48, 4),
        sincos_width64_side16=sin_cos_table(64, 16),
        timestep_256=time_waves(t, 256),
        timestep_32=time_waves(t, 32),
    )
