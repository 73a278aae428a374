"""VFM-VAE's modules against numbers computed with the official code at small sizes."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from lumitok.config import EncoderConfig, VFMVAEConfig
from lumitok.interop.vfm_vae import official_to_ours
from lumitok.tokenizers.vfm_vae import (
    VFMVAE,
    AttentionProjection,
    MappingNetwork,
    ModulatedConvNeXt,
    SelfAttention,
    SpatialBranch,
    SynthesisBlock,
    ToRGB,
    Upsample,
    modulated_pointwise,
)
from tests.parity.fixtures import Fixture


class StubEncoder(nn.Module):
    """Stands in for a frozen encoder where only shapes matter."""

    def __init__(self, channels: list[int], side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        del height, width
        return [(self.side, self.side)] * len(self.channels)


def settings(**changes: Any) -> VFMVAEConfig:
    """The fixtures' small decoder."""
    values: dict[str, Any] = {
        "encoder": EncoderConfig(name="stub", layers=[0]),
        "latent_channels": 8,
        "projected_channels": [8],
        "vf_head": False,
        "post_channels": 32,
        "style_channels": 24,
        "block_channels": [8, 16, 32, 32, 32, 32],
        "block_latent_channels": [0, 0, 16, 16, 16, 32],
    }
    return VFMVAEConfig(**(values | changes))


def load(module: nn.Module, fixture: Fixture, official: str = "", ours: str = "") -> None:
    """Load a fixture's weights through the importer's key mapping, every key accounted for.

    The prefixes say where the module stands in the official model and in ours.
    """
    state = official_to_ours({official + key: value for key, value in fixture.weights.items()})
    module.load_state_dict({key.removeprefix(ours): value for key, value in state.items()}, strict=True)


def as_map(tokens: Tensor) -> Tensor:
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def as_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("name", "channels"), [("compress", (48, 12)), ("expand", (12, 48))])
def test_attention_projection(name: str, channels: tuple[int, int]) -> None:
    fixture = Fixture(f"vfmvae_attnproj_{name}")
    module = AttentionProjection(*channels)
    load(module, fixture, "ldm_adapter.final_quant.", "fuse.")
    fixture.check(tokens=as_tokens(module(as_map(fixture.inputs["tokens"]))))


def test_latent_adapter() -> None:
    fixture = Fixture("vfmvae_latent_adapter")
    model = VFMVAE(
        settings(
            encoder=EncoderConfig(name="stub", layers=[0, 1, 2]),
            image_size=64,
            latent_channels=6,
            projected_channels=[12, 12, 12],
            post_channels=24,
            block_latent_channels=[0, 0, 16, 16, 16, 16],
        ),
        StubEncoder([48, 48, 48], 8),  # type: ignore[arg-type]
    )
    keep = {
        k: v
        for k, v in model.state_dict().items()
        if k.split(".")[0] not in ("projections", "fuse", "expand")
    }
    state = official_to_ours({"ldm_adapter." + key: value for key, value in fixture.weights.items()})
    model.load_state_dict(keep | state, strict=True)
    moments = model.moments([as_map(fixture.inputs[f"map_{i}"]) for i in range(3)])
    fixture.check(moments=moments, post=model.expand(fixture.inputs["z"]))


def test_mapping() -> None:
    fixture = Fixture("vfmvae_mapping")
    module = MappingNetwork(32, 24)
    load(module, fixture, "mapping.", "mapping.")
    fixture.check(w=module(fixture.inputs["pooled"]))


def test_spatial_branch() -> None:
    fixture = Fixture("vfmvae_spatial_branch")
    branches = nn.ModuleList(
        SpatialBranch(32, mapped, factor)
        for mapped, factor in zip([32, 16, 16, 16], [0.25, 0.5, 1.0, 2.0], strict=True)
    )
    state = official_to_ours({"synthesis.z_convs." + key: value for key, value in fixture.weights.items()})
    branches.load_state_dict(
        {key.removeprefix("spatial."): value for key, value in state.items()}, strict=True
    )
    fixture.check(**{f"block_{i}": branch(fixture.inputs["post"]) for i, branch in enumerate(branches)})


@pytest.mark.parametrize("name", ["block0", "blur3", "blur5"])
def test_upsample(name: str) -> None:
    fixture = Fixture(f"vfmvae_upsample_{name}")
    module = Upsample(48, 32, 5 if name == "blur5" else 3, norm_last=name == "block0")
    load(module, fixture)
    fixture.check(y=module(fixture.inputs["x"]))


@pytest.mark.parametrize("noise", [False, True])
def test_modulated_convnext(noise: bool) -> None:
    fixture = Fixture(f"vfmvae_convnext_{'noise' if noise else 'plain'}")
    module = ModulatedConvNeXt(32, 5, settings(legacy_noise=noise), 8)
    load(module, fixture, "synthesis.blocks.0.conv0.", "blocks.0.layers.0.")
    fixture.check(y=module(fixture.inputs["x"], fixture.inputs["w"]))


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_pointwise_and_its_gradients(demodulate: bool) -> None:
    fixture = Fixture("vfmvae_modulated_pointwise")
    x, weight, style, bias = (
        fixture.inputs[name].clone().requires_grad_() for name in ("x", "weight", "style", "bias")
    )
    y = modulated_pointwise(x, weight.flatten(1), style, bias=bias.flatten(), demodulate=demodulate)
    (y * fixture.inputs["cotangent"]).sum().backward()
    kind = "demod" if demodulate else "plain"
    gradients = {
        f"{kind}_grad_{n}": t.grad
        for n, t in zip(("x", "weight", "style", "bias"), (x, weight, style, bias), strict=True)
    }
    fixture.check(**{f"{kind}_y": y}, **{k: g for k, g in gradients.items() if g is not None})
    assert all(g is not None for g in gradients.values())


def test_self_attention() -> None:
    fixture = Fixture("vfmvae_self_attention")
    module = SelfAttention(32, 8)
    load(module, fixture, "synthesis.blocks.0.self_attns.0.", "blocks.0.attention.0.")
    x = fixture.inputs["x"]
    fixture.check(attention_only=module.attend(x), y=module(x))


def test_to_rgb() -> None:
    fixture = Fixture("vfmvae_torgb")
    module = ToRGB(32, 24)
    load(module, fixture, "synthesis.blocks.0.torgb.", "blocks.0.to_rgb.")
    fixture.check(rgb=module(fixture.inputs["x"], fixture.inputs["w"]))


def test_first_synthesis_block() -> None:
    fixture = Fixture("vfmvae_synthesis_block0")
    small = settings(block_depths=[4] * 6, block_attention=[0, 0, 0, 1, 1, 1])
    module = SynthesisBlock(32, None, 5, small)
    load(module, fixture, "synthesis.blocks.0.", "blocks.0.")
    x, total, rgb = module(fixture.inputs["x"], None, fixture.inputs["w"])
    fixture.check(x=x, running_sum=total, rgb=rgb)


def test_second_synthesis_block_with_attention_and_noise() -> None:
    fixture = Fixture("vfmvae_synthesis_block1_attention")
    small = settings(block_depths=[4] * 6, legacy_noise=True)
    module = SynthesisBlock(48, 32, 4, small)
    load(module, fixture, "synthesis.blocks.1.", "blocks.1.")
    x, total, rgb = module(fixture.inputs["x"], fixture.inputs["running_sum"], fixture.inputs["w"])
    fixture.check(x=x, running_sum=total, rgb=rgb)


@pytest.mark.parametrize("noise", [False, True])
def test_whole_decoder(noise: bool) -> None:
    fixture = Fixture(f"vfmvae_decoder_{'noise' if noise else 'plain'}")
    changes: dict[str, Any] = {}
    if noise:
        changes = {
            "legacy_noise": True,
            "block_channels": [4, 8, 16, 32, 32, 32],
            "block_depths": [3, 3, 4, 4, 4, 4],
            "block_attention": [0, 0, 0, 1, 1, 1],
        }
    model = VFMVAE(settings(**changes), StubEncoder([32], 16))  # type: ignore[arg-type]
    keep = {k: v for k, v in model.state_dict().items() if k.split(".")[0] in ("projections", "fuse")}
    model.load_state_dict(keep | official_to_ours(fixture.weights), strict=True)
    decoded = model.decode(fixture.inputs["z"])
    post = model.expand(fixture.inputs["z"])
    fixture.check(
        post=post,
        w=model.mapping(post.mean(dim=(2, 3))),
        image=decoded.sample,
        **{f"rgb_{i}": image for i, image in enumerate(decoded.pyramid[:-1])},
    )
