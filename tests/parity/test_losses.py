"""Losses and the discriminator against the official VFM-VAE code's numbers; see README.md here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.config import DiscriminatorConfig, EncoderConfig
from lumitok.interop.vfm_vae_discriminator import convert_heads
from lumitok.losses.adversarial import hinge_discriminator, hinge_generator
from lumitok.losses.discriminators import augment as aug
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.losses.discriminators.head import BatchNormLocal, DiscriminatorHead
from lumitok.losses.kl import kl
from lumitok.losses.pixel import l1
from lumitok.losses.vf import adaptive_weight, vf_loss


@dataclass
class Numbers:
    """One parity file."""

    arguments: dict[str, Any]
    tolerance: float
    weight: dict[str, Tensor]
    input: dict[str, Tensor]
    output: dict[str, Tensor]

    def check(self, name: str, ours: Tensor) -> None:
        reference = self.output[name]
        assert ours.shape == reference.shape
        error = (ours.detach() - reference).abs().max() / reference.abs().max()
        assert error <= self.tolerance, f"{name}: {error:.2e}"


def read(name: str) -> Numbers:
    groups: dict[str, dict[str, Tensor]] = {"weight": {}, "input": {}, "output": {}}
    with safe_open(Path(__file__).parent / f"{name}.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            group, rest = key.split(".", 1)
            groups[group][rest] = file.get_tensor(key)
        meta = file.metadata()
    (tolerance,) = json.loads(meta["tolerance"]).values()
    return Numbers(json.loads(meta["arguments"]), tolerance, **groups)


def as_map(tokens: Tensor, side: int) -> Tensor:
    return tokens.mT.unflatten(2, (side, side))


@pytest.mark.parametrize("name", ["vfmvae_vf_loss_m0", "vfmvae_vf_loss_m25_50"])
def test_vf_loss(name: str) -> None:
    n = read(name)
    z = n.input["z"].requires_grad_()
    weight = n.weight["linear_proj.weight"].requires_grad_()
    features = as_map(n.input["features"], n.arguments["feature_side"])
    loss = vf_loss(F.conv2d(z, weight), features, n.arguments["pair_margin"], n.arguments["point_margin"])
    loss.total.backward()
    n.check("loss", loss.total)
    n.check("pair_term", loss.distance)
    n.check("point_term", loss.cosine)
    assert z.grad is not None
    assert weight.grad is not None
    n.check("grad_z", z.grad)
    n.check("grad_projection", weight.grad)


def test_adaptive_weight() -> None:
    n = read("vfmvae_adaptive_weight")
    vf = vf_loss(
        F.conv2d(n.output["z"], n.weight["linear_proj.weight"]),
        as_map(n.input["map_2"], n.arguments["map_side"]),
    )
    n.check("vf_loss", vf.total)
    n.check("reconstruction_loss", l1(F.conv2d(n.output["z"], n.input["toy_decoder"]), n.input["target"]))
    # Two losses with the reference's gradients at the last projection weight.
    w = nn.Parameter(n.weight["final_quant.blocks.0.mlp.w2.weight"])
    reconstruction = (w * n.output["grad_reconstruction"]).sum()
    loss = (w * n.output["grad_vf"]).sum()
    n.check("weight", adaptive_weight(reconstruction, loss, w, scale=n.arguments["vf_weight"]))


def test_l1() -> None:
    n = read("vfmvae_pixel_losses")
    n.check("l1", l1(n.input["generated"], n.input["real"]))


@pytest.mark.parametrize("prefix", ["", "wide_"])
def test_kl(prefix: str) -> None:
    n = read("vfmvae_posterior")
    n.output["mean of kl"] = n.output[f"{prefix}kl"].mean()
    n.check("mean of kl", kl(n.output[f"{prefix}mean"], n.output[f"{prefix}logvar"]))


def test_hinge() -> None:
    n = read("vfmvae_hinge")
    real, fake = n.input["real"].requires_grad_(), n.input["fake"].requires_grad_()
    total = hinge_discriminator(real, fake)
    total.backward()
    n.check("d_total", total)
    assert real.grad is not None
    assert fake.grad is not None
    n.check("grad_real", real.grad)
    n.check("grad_fake", fake.grad)
    n.check("g", hinge_generator(fake))


def test_augmentation() -> None:
    n = read("vfmvae_diffaug")
    inputs = {name: value.flatten() for name, value in n.input.items() if name != "image"}
    draws = aug.AugmentDraws(
        brightness=inputs["u_brightness"] - 0.5,
        saturation=inputs["u_saturation"] * 2.0,
        contrast=inputs["u_contrast"] + 0.5,
        shift_rows=inputs["shift_rows"],
        shift_columns=inputs["shift_columns"],
        cut_rows=inputs["cut_rows"],
        cut_columns=inputs["cut_columns"],
    )
    for name, step in {
        "color": aug.color,
        "translation": aug.translation,
        "cutout": aug.cutout,
        "all": aug.augment,
    }.items():
        n.check(name, step(n.input["image"], draws))


@pytest.mark.parametrize("kind", ["tokens", "maps"])
@pytest.mark.parametrize("batch", [2, 16])
def test_batch_norm_local(kind: str, batch: int) -> None:
    n = read("vfmvae_batchnorm_local")
    norm = BatchNormLocal(n.arguments["channels"])
    layer = "bn1d" if kind == "tokens" else "bn2d"
    norm.load_state_dict({name: n.weight[f"{layer}.{name}"] for name in ("weight", "bias")})
    n.check(f"{kind}_{batch}", norm(n.input[f"{kind}_{batch}"]))


def head_from(n: Numbers) -> DiscriminatorHead:
    state, left_out = convert_heads({f"heads.0.{key}": value.clone() for key, value in n.weight.items()})
    assert left_out == []
    head = DiscriminatorHead(n.arguments["channels"])
    head.load_state_dict({key.removeprefix("0."): value for key, value in state.items()})
    return head


@pytest.mark.parametrize("batch", [2, 16])
def test_discriminator_head(batch: int) -> None:
    n = read("vfmvae_disc_head")
    features = n.input[f"features_{batch}"].requires_grad_()
    logits = head_from(n).eval()(features)
    n.check(f"logits_{batch}", logits[:, None])
    if batch == 2:
        logits.square().sum().backward()
        assert features.grad is not None
        n.check("grad_features", features.grad)


def test_discriminator_head_takes_one_power_iteration_in_training() -> None:
    n = read("vfmvae_disc_head")
    head = head_from(n).train()
    n.check("train_logits", head(n.input["features_2"])[:, None])
    after, _ = convert_heads(
        {f"heads.0.{key.removeprefix('train_')}": v for key, v in n.output.items() if "weight_" in key}
    )
    ours = head.state_dict()
    assert len(after) == 6
    for key, value in after.items():
        torch.testing.assert_close(ours[key.removeprefix("0.")], value, rtol=0, atol=n.tolerance)


@pytest.fixture(scope="module")
def dino() -> tuple[Numbers, FoundationDiscriminator]:
    n = read("vfmvae_disc_dino")
    vit = n.arguments["vit"]
    encoder = EncoderConfig(
        name="timm:vit_small_patch16_224.dino",
        layers=[3, 6, 9, 12, 0],
        weights="random",
        timm_kwargs={
            "img_size": vit["picture"],
            "embed_dim": vit["width"],
            "depth": vit["depth"],
            "num_heads": vit["heads"],
        },
    )
    config = DiscriminatorConfig(
        encoder=encoder,
        interpolation="bilinear",
        input_size=vit["picture"],
        crop_probability=0.0,
        augment=False,
    )
    discriminator = FoundationDiscriminator(config).eval()
    heads, rest = convert_heads(n.weight)
    discriminator.heads.load_state_dict(heads)
    prefix = "dino.model.model."
    assert all(key.startswith(prefix) for key in rest)
    vit_state = {key.removeprefix(prefix): n.weight[key] for key in rest if f"{prefix}norm." not in key}
    discriminator.encoder.model.load_state_dict(vit_state)  # The final norm is read by no tap.
    return n, discriminator


def test_discriminator_taps(dino: tuple[Numbers, FoundationDiscriminator]) -> None:
    n, discriminator = dino
    taps = discriminator.taps((n.input["image_same"] + 1.0) / 2.0)
    for index, tap in enumerate(taps):
        n.check(f"tap_{index}", tap)


@pytest.mark.parametrize("size", ["same", "large", "small"])
def test_discriminator(dino: tuple[Numbers, FoundationDiscriminator], size: str) -> None:
    n, discriminator = dino
    n.check(f"logits_{size}", discriminator(n.input[f"image_{size}"]))
