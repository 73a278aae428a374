"""Losses and the discriminator against the official VFM-VAE code's numbers; see README.md here."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.config import DiscriminatorConfig, EncoderConfig, PatchDiscriminatorConfig
from lumitok.interop.vfm_vae_discriminator import head_key, patch_key
from lumitok.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    least_squares_discriminator,
    least_squares_generator,
)
from lumitok.losses.discriminators import augment as aug
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.losses.discriminators.head import BatchNormLocal, DiscriminatorHead
from lumitok.losses.discriminators.patch import PatchDiscriminator
from lumitok.losses.equivariance import Equivariance
from lumitok.losses.feature_matching import feature_matching
from lumitok.losses.kl import kl
from lumitok.losses.pixel import l1, multi_resolution_l1
from lumitok.losses.ssim import ssim_loss
from lumitok.losses.vf import adaptive_weight, vf_loss
from tests.parity.fixtures import Fixture, relative_error


def as_map(tokens: Tensor, side: int) -> Tensor:
    return tokens.mT.unflatten(2, (side, side))


@pytest.mark.parametrize("name", ["vfmvae_vf_loss_m0", "vfmvae_vf_loss_m25_50"])
def test_vf_loss(name: str) -> None:
    n = Fixture(name)
    z = n.inputs["z"].requires_grad_()
    weight = n.weights["linear_proj.weight"].requires_grad_()
    features = as_map(n.inputs["features"], n.arguments["feature_side"])
    loss = vf_loss(F.conv2d(z, weight), features, n.arguments["pair_margin"], n.arguments["point_margin"])
    loss.total.backward()
    n.check(loss=loss.total, pair_term=loss.distance, point_term=loss.cosine)
    assert z.grad is not None
    assert weight.grad is not None
    n.check(grad_z=z.grad, grad_projection=weight.grad)


def test_adaptive_weight() -> None:
    n = Fixture("vfmvae_adaptive_weight")
    vf = vf_loss(
        F.conv2d(n.outputs["z"], n.weights["linear_proj.weight"]),
        as_map(n.inputs["map_2"], n.arguments["map_side"]),
    )
    n.check(vf_loss=vf.total)
    n.check(reconstruction_loss=l1(F.conv2d(n.outputs["z"], n.inputs["toy_decoder"]), n.inputs["target"]))
    # Two losses with the reference's gradients at the last projection weight.
    w = nn.Parameter(n.weights["final_quant.blocks.0.mlp.w2.weight"])
    reconstruction = (w * n.outputs["grad_reconstruction"]).sum()
    loss = (w * n.outputs["grad_vf"]).sum()
    n.check(weight=adaptive_weight(reconstruction, loss, w, scale=n.arguments["vf_weight"]))


def test_pixel_losses() -> None:
    n = Fixture("vfmvae_pixel_losses")
    generated, real = n.inputs["generated"], n.inputs["real"]
    n.check(l1=l1(generated, real), ssim_loss=ssim_loss(generated, real))


@pytest.mark.parametrize("prefix", ["", "wide_"])
def test_kl(prefix: str) -> None:
    n = Fixture("vfmvae_posterior")
    ours = kl(n.outputs[f"{prefix}mean"], n.outputs[f"{prefix}logvar"])
    assert relative_error(ours, n.outputs[f"{prefix}kl"].mean()) <= n.tolerance


def test_hinge() -> None:
    n = Fixture("vfmvae_hinge")
    real, fake = n.inputs["real"].requires_grad_(), n.inputs["fake"].requires_grad_()
    total = hinge_discriminator(real, fake)
    total.backward()
    n.check(d_total=total)
    assert real.grad is not None
    assert fake.grad is not None
    n.check(grad_real=real.grad, grad_fake=fake.grad, g=hinge_generator(fake))


def test_augmentation() -> None:
    n = Fixture("vfmvae_diffaug")
    inputs = {name: value.flatten() for name, value in n.inputs.items() if name != "image"}
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
        n.check(**{name: step(n.inputs["image"], draws)})


@pytest.mark.parametrize("kind", ["tokens", "maps"])
@pytest.mark.parametrize("batch", [2, 16])
def test_batch_norm_local(kind: str, batch: int) -> None:
    n = Fixture("vfmvae_batchnorm_local")
    norm = BatchNormLocal(n.arguments["channels"])
    layer = "bn1d" if kind == "tokens" else "bn2d"
    norm.load_state_dict({name: n.weights[f"{layer}.{name}"] for name in ("weight", "bias")})
    n.check(**{f"{kind}_{batch}": norm(n.inputs[f"{kind}_{batch}"])})


def head_from(n: Fixture) -> DiscriminatorHead:
    head = DiscriminatorHead(n.arguments["channels"])
    keys = {name: head_key(f"0.{name}").removeprefix("heads.0.") for name in head.state_dict()}
    assert set(keys.values()) == set(n.weights)
    head.load_state_dict({name: n.weights[key].clone() for name, key in keys.items()})
    return head


@pytest.mark.parametrize("batch", [2, 16])
def test_discriminator_head(batch: int) -> None:
    n = Fixture("vfmvae_disc_head")
    features = n.inputs[f"features_{batch}"].requires_grad_()
    logits = head_from(n).eval()(features)
    n.check(**{f"logits_{batch}": logits[:, None]})
    if batch == 2:
        logits.square().sum().backward()
        assert features.grad is not None
        n.check(grad_features=features.grad)


def test_discriminator_head_takes_one_power_iteration_in_training() -> None:
    n = Fixture("vfmvae_disc_head")
    head = head_from(n).train()
    n.check(train_logits=head(n.inputs["features_2"])[:, None])
    vectors = {name: v for name, v in head.state_dict().items() if "weight_" in name}
    assert len(vectors) == 6
    for name, value in vectors.items():
        after = n.outputs[f"train_{head_key(f'0.{name}').removeprefix('heads.0.')}"]
        torch.testing.assert_close(value, after, rtol=0, atol=n.tolerance)


@pytest.fixture(scope="module")
def dino() -> tuple[Fixture, FoundationDiscriminator]:
    n = Fixture("vfmvae_disc_dino")
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
    keys = {name: head_key(name) for name in discriminator.heads.state_dict()}
    discriminator.heads.load_state_dict({name: n.weights[key] for name, key in keys.items()})
    prefix = "dino.model.model."
    rest = n.weights.keys() - set(keys.values())
    assert all(key.startswith(prefix) for key in rest)
    vit_state = {key.removeprefix(prefix): n.weights[key] for key in rest if f"{prefix}norm." not in key}
    discriminator.encoder.model.load_state_dict(vit_state)  # The final norm is read by no tap.
    return n, discriminator


def test_discriminator_taps(dino: tuple[Fixture, FoundationDiscriminator]) -> None:
    n, discriminator = dino
    taps = discriminator.taps((n.inputs["image_same"] + 1.0) / 2.0)
    for index, tap in enumerate(taps):
        n.check(**{f"tap_{index}": tap})


@pytest.mark.parametrize("size", ["same", "large", "small"])
def test_discriminator(dino: tuple[Fixture, FoundationDiscriminator], size: str) -> None:
    n, discriminator = dino
    n.check(**{f"logits_{size}": discriminator(n.inputs[f"image_{size}"])})


@pytest.fixture
def patch() -> tuple[Fixture, PatchDiscriminator]:
    n = Fixture("vfmvae_patchgan")
    sizes = {"channels": "first_channels", "strided_layers": "strided_layers", "scales": "scales"}
    config = PatchDiscriminatorConfig(**{ours: n.arguments[theirs] for ours, theirs in sizes.items()})
    discriminator = PatchDiscriminator(config)
    keys = {name: patch_key(name, config.scales) for name in discriminator.state_dict()}
    assert set(keys.values()) == set(n.weights)
    discriminator.load_state_dict({name: n.weights[key] for name, key in keys.items()})
    return n, discriminator


def test_patch_discriminator(patch: tuple[Fixture, PatchDiscriminator]) -> None:
    n, discriminator = patch
    judged = discriminator(n.inputs["fake"])
    names = [f"fake_scale{i}_layer{j}" for i, layers in enumerate(judged) for j, _ in enumerate(layers)]
    assert len(names) == 15
    n.check(**dict(zip(names, (layer for layers in judged for layer in layers), strict=True)))


def test_losses_on_the_patch_discriminator(patch: tuple[Fixture, PatchDiscriminator]) -> None:
    n, discriminator = patch
    fake_pictures = n.inputs["fake"].requires_grad_()
    real, fake = discriminator(n.inputs["real"]), discriminator(fake_pictures)
    real_logits, fake_logits = [layers[-1] for layers in real], [layers[-1] for layers in fake]
    matching, generator = feature_matching(real, fake), least_squares_generator(fake_logits)
    n.check(feature_matching=matching, g_mse=generator)
    hinge = torch.stack([hinge_discriminator(a, b) for a, b in zip(real_logits, fake_logits, strict=True)])
    for name, loss in {
        "mse": least_squares_discriminator(real_logits, fake_logits),
        "hinge": hinge.mean(),
    }.items():
        expected = n.outputs[f"d_real_{name}"] + n.outputs[f"d_fake_{name}"]
        assert relative_error(loss, expected) <= n.tolerance
    n.check(g_hinge=torch.stack([hinge_generator(logits) for logits in fake_logits]).mean())
    (matching + generator).backward()
    assert fake_pictures.grad is not None
    n.check(grad_fake=fake_pictures.grad)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("case", range(4))
def test_equivariance(case: int, interpolation: Literal["bilinear", "bicubic"]) -> None:
    n = Fixture("vfmvae_equivariance")
    scale, degrees = n.arguments["cases"][case]["scale"], n.arguments["cases"][case]["rotation"]
    turned = Equivariance(latent_scale=scale, quarter_turns=degrees // 90, interpolation=interpolation)
    tag = f"scale{round(100 * scale)}_rot{degrees}"
    n.check(**{f"latent_{tag}": turned.latent(n.inputs["z"])})
    n.check(**{f"image_{interpolation}_{tag}": turned.picture(n.inputs["image"])})


def test_smaller_targets() -> None:
    n = Fixture("vfmvae_equivariance")
    image = n.inputs["image"]
    for index, scale in enumerate([1 / 2, 1 / 8]):
        for mode in ("bilinear", "bicubic"):
            shrunk = Equivariance(input_scale=scale, interpolation=mode).shrink(image)
            n.check(**{f"multiscale_{mode}_{index}": shrunk})
    images = [n.outputs[f"multiscale_bilinear_{index}"] for index in range(2)]
    assert multi_resolution_l1(images, image) <= n.tolerance


def test_the_patch_discriminator_of_vqgan() -> None:
    """On one scale, with batch statistics; VA-VAE's and AlignTok's."""
    n = Fixture("taming_patchgan")
    config = PatchDiscriminatorConfig(
        channels=n.arguments["first_channels"],
        strided_layers=n.arguments["strided_layers"],
        scales=1,
        padding=n.arguments["padding"],
        norm="batch",
        loss="hinge",
    )
    discriminator = PatchDiscriminator(config)
    # Its sequence: convolution, slope, then convolution, norm, slope in turn, and the logits.
    places = {0: "0.conv", 2: "1.conv", 3: "1.norm", 5: "2.conv", 6: "2.norm", 8: "3.conv", 9: "3.norm"}
    places[11] = "4.conv"
    state = {}
    for name, tensor in n.weights.items():
        _, index, kind = name.split(".")
        if kind in ("weight", "bias"):  # Running statistics belong to an eval mode that ours has not.
            state[f"networks.0.{places[int(index)]}.{kind}"] = tensor
    discriminator.load_state_dict(state)
    n.check(logits_train=discriminator(n.inputs["image"])[0][-1])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_vf_loss_of_va_vae_and_its_weight(reduction: str) -> None:
    """With margins, and against a likelihood that is summed over a picture or not."""
    n = Fixture(f"vavae_loss_{reduction}")
    weights = {name: nn.Parameter(w) for name, w in n.weights.items() if name.startswith("toy_")}
    encoder = weights["toy_encoder.weight"], weights["toy_encoder.bias"]
    moments = F.conv2d(n.inputs["hidden"], *encoder, padding=1)
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    z = mean + torch.exp(0.5 * logvar) * n.inputs["noise"]
    decoder = weights["toy_decoder.weight"], weights["toy_decoder.bias"]
    image = F.conv2d(F.interpolate(z, scale_factor=8, mode="nearest"), *decoder, padding=1)
    n.check(reconstruction=image)
    if reduction == "sum":  # Ours is summed over a picture.
        n.check(kl_loss=kl(mean, logvar))
    found = vf_loss(
        F.conv2d(z, n.weights["linear_proj.weight"]),
        n.inputs["features"],
        distance_margin=n.arguments["pair_margin"],
        cosine_margin=n.arguments["point_margin"],
    )
    difference = (image - n.inputs["picture"]).abs()
    likelihood = difference.mean()
    if reduction == "sum":
        likelihood = (difference / math.exp(0.3) + 0.3).sum() / len(image)
    at = weights["toy_encoder.weight"]
    weight = adaptive_weight(likelihood, found.total, at, scale=n.arguments["vf_weight"])
    n.check(vf_loss=found.total, vf_weight=weight)
