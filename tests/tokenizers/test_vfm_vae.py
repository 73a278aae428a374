"""VFM-VAE: the paper's counts, shapes over the range of settings, and what a forward pass promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from lumitok.config import VFMVAEConfig, block_count, load_recipe
from lumitok.errors import LumitokError
from lumitok.tokenizers import VFMVAE, build_tokenizer
from lumitok.tokenizers.layers import modulated_pointwise
from lumitok.tokenizers.vfm_vae import AttentionProjection

PAPER = "vfm-vae/imagenet256/1-strong-alignment"
ROW_2 = {
    "projection": "convolution",
    "blocks": "stylegan",
    "block_depths": [3, 3, 3, 5, 3, 3],
    "block_attention": [0] * 6,
}
"""Table 3's second row, at whatever size."""


@pytest.fixture
def config(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = tiny_recipe["model"]
    return model


def build(config: dict[str, Any], **changes: Any) -> VFMVAE:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(VFMVAEConfig(**(config | changes)))
    assert isinstance(tokenizer, VFMVAE)
    return tokenizer.eval()


def pyramid_encoder(layers: list[int], scale: float = 1.0) -> dict[str, Any]:
    return {"name": "timm:test_efficientnet", "layers": layers, "scale": scale, "weights": "random"}


def test_the_papers_parameter_counts_part_by_part() -> None:
    with torch.device("meta"):
        parts = build_tokenizer(load_recipe(PAPER).model, load_weights=False).parts()
    millions = {name: round(count / 1e6, 2) for name, count in parts.items()}
    # tokenizers.md of the reference facts, section 2: measured on the official modules.
    expected = {"projections": 9.74, "fuse": 1.85, "expand": 1.91, "vf_head": 0.03, "spatial": 5.51}
    blocks = {f"blocks.{i}": m for i, m in enumerate([28.46, 30.04, 29.87, 23.57, 6.12, 2.14])}
    assert millions == expected | blocks | {"mapping": 0.53}
    assert sum(parts.values()) / 1e6 == pytest.approx(139.77, abs=0.005)


@pytest.mark.parametrize(("size", "count"), [(32, 3), (64, 4), (96, 4), (128, 5), (256, 6), (512, 6)])
def test_block_count_follows_the_size_rule(size: int, count: int) -> None:
    assert block_count(size) == count


@pytest.mark.parametrize("downsampling", [8, 16])
@pytest.mark.parametrize("channels", [16, 32, 64])
def test_latent_and_pyramid_shapes_at_64_px(config: dict[str, Any], downsampling: int, channels: int) -> None:
    tokenizer = build(config, image_size=64, downsampling=downsampling, latent_channels=channels)
    output = tokenizer(torch.rand(2, 3, 64, 64) * 2 - 1)
    side = 64 // downsampling
    assert output.latent.shape == (2, channels, side, side)
    assert [tuple(image.shape) for image in output.pyramid] == [(2, 3, s, s) for s in (8, 16, 32, 64)]
    assert output.projected.shape == (2, 32, side, side)
    assert tokenizer.latent_spec.channels == channels
    assert tokenizer.latent_spec.height == side


@pytest.mark.parametrize("size", [128, 256, 512])
def test_large_pictures_have_the_paper_s_grid(config: dict[str, Any], size: int) -> None:
    with torch.device("meta"):
        tokenizer = build_tokenizer(VFMVAEConfig(**(config | {"image_size": size})), load_weights=False)
        output = tokenizer(torch.empty(1, 3, size, size))
    count = block_count(size)
    assert [image.shape[-1] for image in output.pyramid] == [size >> d for d in reversed(range(count))]
    assert output.latent.shape[-1] == size // 16


def test_feature_maps_of_different_sizes_meet_on_the_latent_grid(config: dict[str, Any]) -> None:
    # Strides 4, 16 and 32 at scale 1: one finer than the latent, one equal, one coarser.
    tokenizer = build(config, image_size=64, encoder=pyramid_encoder([2, 4, 5]), projected_channels=[4, 8, 8])
    assert tokenizer.factors == [0.25, 1.0, 2.0]
    output = tokenizer(torch.rand(1, 3, 64, 64))
    assert output.latent.shape == (1, 4, 4, 4)
    assert output.features.shape[-1] == 2


def test_single_projection_is_one_attention_projection(config: dict[str, Any]) -> None:
    tokenizer = build(config, projection="single")
    assert tokenizer.parts().get("projections", 0) == 0
    assert tokenizer(torch.rand(1, 3, 32, 32)).latent.shape == (1, 4, 2, 2)


def test_maps_that_cannot_meet_the_latent_are_an_error(config: dict[str, Any]) -> None:
    encoder = {**config["encoder"], "scale": 1.5}
    with pytest.raises(LumitokError, match="neither is a multiple"):
        build(config, image_size=64, encoder=encoder)


def test_wrong_lengths_are_named() -> None:
    with pytest.raises(ValidationError, match="projected_channels has 1 numbers for 3 encoder layers"):
        VFMVAEConfig(encoder={"name": "x", "layers": [0, 1, 2]}, projected_channels=[8])  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="block_depths has 2 numbers; give 6"):
        VFMVAEConfig(
            encoder={"name": "x", "layers": [0]},  # type: ignore[arg-type]
            projected_channels=[8],
            block_depths=[1, 1],
        )


def naive_modulation(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor, demodulate: bool) -> Tensor:
    """The definition: a weight a sample, then one convolution a sample."""
    rows = []
    for sample, s in zip(x, style, strict=True):
        w = weight * s
        if demodulate:
            w = w / (w.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
        rows.append(F.conv2d(sample[None], w[:, :, None, None], bias))
    return torch.cat(rows)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulation_equals_a_weight_for_every_sample(demodulate: bool) -> None:
    torch.manual_seed(0)
    shapes = [(3, 6, 4, 5), (7, 6), (3, 6), (7,)]
    ours = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    # float64 throughout, but for the demodulation, which is float32 by design.
    y = modulated_pointwise(ours[0], ours[1], ours[2], bias=ours[3], demodulate=demodulate)
    wanted = naive_modulation(*theirs, demodulate)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    cotangent = torch.randn_like(y)
    (y * cotangent).sum().backward()
    (wanted * cotangent).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_projection_heads_divide_what_they_must() -> None:
    for channels in ((320, 64), (112, 64), (24, 64), (40, 16), (64, 64)):
        projection = AttentionProjection(*channels)
        assert projection(torch.randn(1, channels[0], 2, 3)).shape == (1, channels[1], 2, 3)


@pytest.mark.parametrize("changes", [{}, ROW_2])
def test_gradients_reach_everything_but_the_encoder(config: dict[str, Any], changes: dict[str, Any]) -> None:
    tokenizer = build(config, **changes).train()
    output = tokenizer(torch.rand(2, 3, 32, 32))
    loss = sum(image.square().mean() for image in output.pyramid) + output.projected.square().mean()
    loss.backward()
    reached = {n for n, p in tokenizer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    missing = set(tokenizer.trainable_names()) - reached
    # Zero-initialised outputs hide what lies before them until the first step.
    assert all(".attention." in name for name in missing), missing
    assert not any(name.startswith("encoder.") for name in reached)
    assert not tokenizer.encoder.training


@pytest.mark.parametrize("changes", [{}, ROW_2])
def test_the_latent_carries_the_picture(config: dict[str, Any], changes: dict[str, Any]) -> None:
    tokenizer = build(config, **changes)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    z = tokenizer.encode(x).latent_dist.mode()
    assert not torch.allclose(z[0], z[1])
    torch.testing.assert_close(
        tokenizer.decode(z).sample.clamp(-1, 1), tokenizer.reconstruct(x), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(tokenizer.decode(z[:1]).sample, tokenizer.decode(z[1:]).sample)


def test_sampling_follows_the_generator_and_has_the_posterior_s_spread(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    posterior = tokenizer.encode(torch.rand(1, 3, 32, 32)).latent_dist
    first = posterior.sample(torch.Generator().manual_seed(1))
    assert torch.equal(first, posterior.sample(torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(2)
    draws = torch.stack([posterior.sample(generator) for _ in range(2000)])
    torch.testing.assert_close(draws.mean(0), posterior.mean, atol=0.15, rtol=0)
    torch.testing.assert_close(draws.std(0) / posterior.std, torch.ones_like(posterior.std), atol=0.1, rtol=0)


class Recorder:
    """An equivariance that turns by 90 degrees and notes what it is shown."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def shrink(self, pictures: Tensor) -> Tensor:
        self.seen["pictures"] = pictures
        return pictures[..., :32, :32]

    def latent(self, z: Tensor) -> Tensor:
        self.seen["latent"] = z
        return z.rot90(dims=(2, 3))

    def picture(self, x: Tensor) -> Tensor:
        del x
        raise AssertionError("the target is the training's business")


def test_equivariance_shrinks_before_encoding_and_changes_the_latent_before_decoding(
    config: dict[str, Any],
) -> None:
    tokenizer = build(config)
    recorder = Recorder()
    x = torch.rand(2, 3, 48, 48) * 2 - 1
    output = tokenizer(x, sample_posterior=False, equivariance=recorder)
    plain = tokenizer(x[..., :32, :32], sample_posterior=False)
    assert torch.equal(recorder.seen["pictures"], x)
    assert torch.equal(recorder.seen["latent"], plain.latent)
    # The latent that the losses see, and the VF head's view of it, come before the change.
    assert torch.equal(output.latent, plain.latent)
    assert torch.equal(output.projected, plain.projected)
    assert torch.equal(output.features, plain.features)
    assert torch.equal(output.sample, tokenizer.decode(plain.latent.rot90(dims=(2, 3))).sample)
    assert not torch.allclose(output.sample, plain.sample, atol=1e-3)


def test_with_a_generator_a_picture_a_batch_is_its_halves(config: dict[str, Any]) -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    tokenizer = build(config)
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    whole = tokenizer(x, generator=generators(1, 2, 3, 4))
    halves = [
        tokenizer(x[:2], generator=generators(1, 2)),
        tokenizer(x[2:], generator=generators(3, 4)),
    ]
    for name in ("latent", "sample", "projected"):
        joined = torch.cat([getattr(half, name) for half in halves])
        torch.testing.assert_close(getattr(whole, name), joined, rtol=1e-4, atol=1e-5)
    other = tokenizer(x, generator=generators(1, 2, 3, 5))
    assert torch.equal(other.latent[:3], whole.latent[:3])
    assert not torch.allclose(other.latent[3], whole.latent[3], atol=0.1)
    again = tokenizer.reconstruct(x, sample_posterior=True, generator=generators(1, 2, 3, 4))
    torch.testing.assert_close(again, whole.sample.clamp(-1, 1))


def test_stylegan_blocks_have_the_shapes_of_the_others(config: dict[str, Any]) -> None:
    tokenizer = build(config, image_size=64, **ROW_2)
    assert [len(block.layers) for block in tokenizer.blocks] == [2, 1, 1, 1]  # Pairs, after the upsampling.
    output = tokenizer(torch.rand(2, 3, 64, 128))
    assert [tuple(image.shape[2:]) for image in output.pyramid] == [(s, 2 * s) for s in (8, 16, 32, 64)]
    assert output.latent.shape == (2, 4, 4, 8)
    fuse = tokenizer.fuse
    assert isinstance(fuse, torch.nn.Conv2d)
    assert tokenizer.balance_parameter() is fuse.weight
    assert fuse.weight.shape == (8, 64, 1, 1)


def test_stylegan_blocks_save_and_load(config: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = build(config, **ROW_2)
    tokenizer.save_pretrained(tmp_path)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    loaded = VFMVAE.from_pretrained(tmp_path)
    assert torch.equal(loaded.reconstruct(x), tokenizer.reconstruct(x))
    assert loaded.settings.blocks == "stylegan"


@pytest.mark.parametrize("changes", [{}, {"projection": "single"}, ROW_2])
def test_the_posterior_starts_with_the_log_variance_asked_for(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    x = torch.rand(1, 3, 32, 32)
    shift = build(config, initial_logvar=-6.0, **changes)(x).logvar - build(config, **changes)(x).logvar
    torch.testing.assert_close(shift, torch.full_like(shift, -6.0))


def test_other_sizes_are_padded_by_reflection_and_cropped(config: dict[str, Any]) -> None:
    tokenizer = build(config, image_size=64)
    assert tokenizer.size_multiple == 16
    x = torch.rand(1, 3, 50, 70) * 2 - 1
    padded = tokenizer.pad(x)
    assert padded.shape == (1, 3, 64, 80)
    torch.testing.assert_close(padded[..., 50, :70], x[..., 48, :])  # row 50 mirrors row 48
    assert tokenizer.encode(x).latent_dist.mean.shape == (1, 4, 4, 5)
    assert tokenizer.reconstruct(x).shape == x.shape
    assert tokenizer.reconstruct(torch.rand(1, 3, 8, 64)).shape == (1, 3, 8, 64)
    with pytest.raises(LumitokError, match=r"must be \(batch, 3, height, width\)"):
        tokenizer.encode(torch.rand(3, 64, 64))


def test_return_dict_false_gives_tuples_as_diffusers_does(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    (posterior,) = tokenizer.encode(torch.rand(1, 3, 32, 32), return_dict=False)
    (sample,) = tokenizer.decode(posterior.mode(), return_dict=False)
    assert sample.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"image_size": 288},
            "which its 6 blocks need; the nearest sizes are 256 and 320",
        ),
        ({"block_kernels": [5, 4, 5, 5, 5, 5]}, "odd numbers, not 4"),
        ({"block_latent_channels": [8, 0, 8, 8, 8, 8]}, "no block after one that does not"),
        ({"attention_heads": 3, "image_size": 64}, "not a multiple of attention_heads, 3"),
        ({"block_blurs": [7, 5, 5, 3, 3, 3]}, "should be 3 or 5"),
        ({"blocks": "stylegan", "block_depths": [1, 1, 1, 2, 1, 1]}, "block_depths are odd numbers, not 2"),
        ({"blocks": "stylegan", "legacy_noise": True}, "released weights', whose blocks are convnext"),
    ],
)
def test_settings_that_cannot_be_built_say_why(
    config: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        VFMVAEConfig(**(config | changes))
