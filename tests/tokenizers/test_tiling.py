"""Tiles: where they lie, what is exact, what settles, and that memory stays flat."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from lumitok.config import ModelConfig
from lumitok.errors import LumitokError
from lumitok.nn.group_norm import GroupNorm
from lumitok.tokenizers import build_tokenizer, whole_picture
from lumitok.tokenizers.autoencoder import Autoencoder
from lumitok.tokenizers.ldm import Attention
from lumitok.tokenizers.posterior import DiagonalGaussian, PointMass
from lumitok.tokenizers.stylegan import ModulatedConvolution
from lumitok.tokenizers.tiling import Tiling, blend_weights, in_tiles, spans
from lumitok.tokenizers.vfm_vae import AttentionProjection, ModulatedConvNeXt, Upsample

KINDS: dict[str, dict[str, Any]] = {
    "vfm-vae": {"layer_scale": 0.3},
    "vfm-vae, legacy noise": {"layer_scale": 0.3, "legacy_noise": True},
    "vfm-vae, stylegan": {"blocks": "stylegan", "projection": "convolution", "block_attention": [0] * 6},
    "ldm": {
        "type": "ldm",
        "channels": 32,
        "multipliers": [1, 1, 1, 1, 2],
        "encoder_blocks": 1,
        "decoder_blocks": 1,
    },
    "aligntok": {
        "type": "aligntok",
        "decoder_channels": 32,
        "decoder_multipliers": [1, 1, 1, 1, 2],
        "decoder_blocks": 1,
    },
}


@pytest.fixture
def build(tiny_recipe: dict[str, Any]) -> Callable[[str], Autoencoder]:
    def built(kind: str) -> Autoencoder:
        torch.manual_seed(0)
        model = tiny_recipe["model"]
        config = KINDS[kind]
        config = ({"image_size": 32, "latent_channels": 4} if "type" in config else model) | config
        if config.get("type") == "aligntok":
            config["encoder"] = model["encoder"] | {"layers": [-1]}
        tokenizer = build_tokenizer(TypeAdapter(ModelConfig).validate_python(config)).eval()
        assert isinstance(tokenizer, Autoencoder)
        for module in tokenizer.modules():  # Nothing that begins at zero may hide.
            if isinstance(module, ModulatedConvNeXt) and module.noise is not None:
                nn.init.constant_(module.noise_strength, 0.5)
        return tokenizer

    return built


def uneven(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Maps whose mean and spread change from end to end, so that no tile is like the whole."""
    generator = torch.Generator().manual_seed(1)
    ramp = torch.linspace(-1, 1, height)[:, None] + torch.linspace(-1, 2, width)
    return ramp + (0.3 + ramp.abs()) * torch.randn(batch, channels, height, width, generator=generator)


# ------------------------------------------------------------------------------------------------
# Where tiles lie, and their weights


@pytest.mark.parametrize("length", [4, 16, 20, 24, 36, 100])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 0), (16, 4), (16, 8), (8, 4)])
def test_tiles_cover_an_axis_on_the_grid(length: int, tile: int, overlap: int) -> None:
    parts = spans(length, tile, overlap, step=4)
    assert parts[0].start == 0
    assert parts[-1].stop == length
    assert all(part.stop - part.start == min(tile, length) for part in parts)
    cores = [place for part in parts for place in range(*part.core)]
    assert cores == list(range(length))
    for part in parts:
        assert all(place % 4 == 0 for place in (part.start, part.stop, *part.core))
        assert part.start <= part.core[0] < part.core[1] <= part.stop
    for first, second in pairwise(parts):
        assert first.stop - second.start >= overlap
    # No more of them than it takes.
    assert len(parts) == 1 or tile + (len(parts) - 2) * (tile - overlap) < length


@pytest.mark.parametrize("scale", [0.25, 1, 8])
@pytest.mark.parametrize(("length", "overlap"), [(16, 8), (36, 8), (100, 4), (100, 0)])
def test_weights_sum_to_one_and_leave_a_tile_s_border_out(length: int, overlap: int, scale: float) -> None:
    parts = spans(length, 16, overlap, step=4)
    weights = blend_weights(parts, overlap, scale)
    total = torch.zeros(round(length * scale), dtype=torch.float64)
    for part, weight in zip(parts, weights, strict=True):
        assert (weight >= 0).all()
        total[round(part.start * scale) : round(part.stop * scale)] += weight
    torch.testing.assert_close(total, torch.ones_like(total))
    quarter = int(overlap * scale / 4)
    if len(parts) > 1 and quarter:
        assert not weights[0][-quarter:].any()
        assert not weights[1][:quarter].any()
        steps = weights[1].diff().abs()
        assert steps.max() <= 2 / (overlap * scale) + 1e-9  # A ramp, not a step.


# ------------------------------------------------------------------------------------------------
# What is exact


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_tile_is_the_untiled_result_bit_for_bit(build: Callable[[str], Autoencoder], kind: str) -> None:
    tokenizer, x = build(kind), uneven(2, 3, 50, 64)
    posterior, z = tokenizer.encode(x).latent_dist, torch.randn(2, 4, 4, 3)
    pyramid = tokenizer.decode(z).pyramid
    tokenizer.enable_tiling(tile=64, overlap=16)
    tiled = tokenizer.encode(x).latent_dist
    assert type(tiled) is type(posterior)
    assert torch.equal(tiled.mean, posterior.mean)
    assert (tiled.logvar is None) == (posterior.logvar is None)
    assert tiled.logvar is None or torch.equal(tiled.logvar, posterior.logvar)
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.decode(z).pyramid, pyramid, strict=True))


def test_convolutions_alone_are_exact_once_the_overlap_covers_their_reach() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.PixelShuffle(2), nn.Conv2d(2, 3, 5, padding=2)
    )
    runs = []
    network.register_forward_hook(lambda *_: runs.append(1))
    x = uneven(1, 4, 24, 40)
    whole = network(x).detach()
    # 1 place, and 2 of the places half that size: under 2 of the input's. A quarter of 8 is 2.
    (tiled,) = in_tiles(network, lambda t: [network(t)], x, Tiling(16, 8))
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6)
    assert len(runs) == 1 + 2 * 4  # Nothing reads all places: the tiles run once.
    (tiled,) = in_tiles(network, lambda t: [network(t)], x, Tiling(16, 4))
    assert (tiled - whole).abs().max() > 1e-3


@pytest.mark.parametrize("layer", ["norm", "attention", "projection"])
@pytest.mark.parametrize("height", [12, 6])  # 6: tiles that are not square.
def test_a_layer_that_reads_all_places_is_exact_in_the_second_turn(layer: str, height: int) -> None:
    torch.manual_seed(0)
    network: nn.Module = {
        "norm": lambda: GroupNorm(4, 32),
        "attention": lambda: Attention(32),
        "projection": lambda: AttentionProjection(32, 8),
    }[layer]()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = uneven(2, 32, height, 20)
    whole = network(x).detach()
    (tiled,) = in_tiles(network, lambda t: [network(t)], x, Tiling(8, 4, turns=2))
    torch.testing.assert_close(tiled, whole, rtol=1e-3, atol=1e-4)
    (alone,) = in_tiles(network, lambda t: [network(t)], x, Tiling(8, 4, turns=1))
    assert (alone - whole).abs().max() > 0.02


def test_sampled_tokens_stand_for_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = AttentionProjection(8, 16)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    # Every token four times over: one in four says everything, if it counts for four.
    x = uneven(1, 8, 8, 12).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    monkeypatch.setattr(whole_picture, "TOKENS", 8 * 12)
    seen: list[int] = []
    network.norm_attention.register_forward_hook(lambda _m, _i, output: seen.append(output.shape[1]))
    (tiled,) = in_tiles(network, lambda t: [network(t)], x, Tiling(8, 4, turns=2))
    assert max(seen) == 8 * 8 + 8 * 12 - 4 * 4
    torch.testing.assert_close(tiled, network(x).detach(), rtol=1e-4, atol=1e-5)


def test_statistics_are_of_what_each_tile_last_had() -> None:
    moments = whole_picture._Moments()
    tiles = [(part, part) for part in spans(40, 16, 4)]
    values = torch.randn(2, 3, 70) * 0.1 + 100
    pieces = values.split([10, 20, 40], dim=2)
    for wrong in (1e30, float("nan")):
        for tile, piece in zip(tiles, pieces, strict=True):
            moments.note(tile, torch.full_like(piece, wrong)[..., None])
    for tile, piece in zip(tiles[:2], pieces, strict=False):
        moments.note(tile, piece[..., None])
    variance, mean = torch.var_mean(values[..., :30], dim=2, correction=0)
    torch.testing.assert_close(moments.moments(), (mean.double(), variance.double()), rtol=1e-3, atol=1e-5)
    moments.note(tiles[2], pieces[2][..., None])
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    torch.testing.assert_close(moments.moments(), (mean.double(), variance.double()), rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------
# What settles


def blind_to_neighbours(tokenizer: Autoencoder) -> Autoencoder:
    """Clear all but the middle of every convolution and blur, so that a tile's border does nothing.

    What is left is what tiles must learn of each other, and it must be met in full.
    """
    for module in tokenizer.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size in {(3, 3), (5, 5)}:
            keep_the_middle(module.weight)
        elif isinstance(module, Upsample):
            keep_the_middle(module.blur_kernel)
        elif isinstance(module, ModulatedConvolution):
            keep_the_middle(module.weight)
            module.smoothing.zero_()[1:3, 1:3] = 1
    return tokenizer


def keep_the_middle(kernel: Tensor) -> None:
    middle = kernel.shape[-1] // 2
    kept = kernel[..., middle, middle].clone() * 3
    kernel.zero_()
    kernel[..., middle, middle] = kept


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tiles_come_to_agree_on_the_whole_picture(build: Callable[[str], Autoencoder], kind: str) -> None:
    tokenizer, z = blind_to_neighbours(build(kind)), uneven(1, 4, 6, 8)
    whole = tokenizer.decode(z).pyramid
    errors = []
    for turns in (1, 8):
        tokenizer.enable_tiling(tile=64, overlap=32, turns=turns)
        tiled = tokenizer.decode(z).pyramid
        assert [image.shape for image in tiled] == [image.shape for image in whole]
        errors.append([(a - b).abs().mean() / b.std() for a, b in zip(tiled, whole, strict=True)])
    alone, together = errors
    assert all(b < a * 1e-2 for a, b in zip(alone, together, strict=True)), errors
    tokenizer.disable_tiling()
    assert torch.equal(tokenizer.decode(z).sample, whole[-1])


@torch.no_grad()
def test_encoding_comes_to_agree_too(build: Callable[[str], Autoencoder]) -> None:
    tokenizer, x = blind_to_neighbours(build("ldm")), uneven(1, 3, 96, 96).clamp(-1, 1)
    whole = tokenizer.encode(x).latent_dist
    errors = []
    for turns in (1, 8):
        tokenizer.enable_tiling(tile=64, overlap=32, turns=turns)
        tiled = tokenizer.encode(x).latent_dist
        assert isinstance(tiled, DiagonalGaussian)
        errors.append(
            [(a - b).abs().mean() for a, b in ((tiled.mean, whole.mean), (tiled.logvar, whole.logvar))]
        )
    assert all(b < a * 1e-2 for a, b in zip(*errors, strict=True)), errors
    torch.testing.assert_close(tiled.std, torch.exp(0.5 * tiled.logvar))


@torch.no_grad()
def test_a_deterministic_latent_stays_one(build: Callable[[str], Autoencoder]) -> None:
    tokenizer, x = build("aligntok"), uneven(1, 3, 64, 100)
    tokenizer.enable_tiling(tile=32, overlap=16)
    posterior = tokenizer.encode(x).latent_dist
    assert isinstance(posterior, PointMass)
    assert posterior.mean.shape == (1, 4, 4, 7)
    assert tokenizer.reconstruct(x).shape == x.shape


# ------------------------------------------------------------------------------------------------
# Memory, and leaving things as they were


def largest(tokenizer: Autoencoder, side: int) -> int:
    """Numbers in the largest tensor that any layer gave while a picture went there and back."""
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(note) for module in tokenizer.modules()]
    tokenizer.reconstruct(uneven(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return max(sizes)


@pytest.mark.parametrize("kind", ["vfm-vae", "ldm"])
def test_memory_stays_flat_as_the_picture_grows(
    build: Callable[[str], Autoencoder], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_picture, "TOKENS", 16)
    tokenizer = build(kind)
    one = largest(tokenizer, 32)
    assert largest(tokenizer, 64) == 4 * one
    tokenizer.enable_tiling(tile=32, overlap=16, turns=2)
    assert largest(tokenizer, 32) == largest(tokenizer, 48) == largest(tokenizer, 80) == one


def test_layers_are_left_as_they_were(build: Callable[[str], Autoencoder]) -> None:
    tokenizer = build("vfm-vae, legacy noise")
    expand = tokenizer.expand

    def mine(x: Tensor) -> Tensor:
        return type(expand).forward(expand, x)

    expand.forward = mine
    noise = {name: buffer.clone() for name, buffer in tokenizer.named_buffers()}

    def broken(tile: Tensor) -> list[Tensor]:
        tokenizer.images(tile)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        in_tiles(tokenizer, broken, torch.randn(1, 4, 4, 4), Tiling(2, 1))
    assert expand.forward is mine
    assert [m for m in tokenizer.modules() if "forward" in m.__dict__] == [expand]
    assert all(torch.equal(buffer, noise[name]) for name, buffer in tokenizer.named_buffers())


@torch.no_grad()
def test_slices_are_the_batch(build: Callable[[str], Autoencoder]) -> None:
    tokenizer, x = build("vfm-vae"), uneven(3, 3, 32, 48)
    posterior = tokenizer.encode(x).latent_dist
    pyramid = tokenizer.decode(posterior.mean).pyramid
    batches: list[int] = []
    hook = tokenizer.expand.register_forward_hook(lambda _m, inputs, _o: batches.append(len(inputs[0])))
    tokenizer.enable_slicing()
    sliced = tokenizer.encode(x).latent_dist
    torch.testing.assert_close(sliced.mean, posterior.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sliced.logvar, posterior.logvar, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode(posterior.mean).pyramid, pyramid, rtol=1e-4, atol=1e-5)
    assert batches == [1, 1, 1]
    tokenizer.disable_slicing()
    tokenizer.decode(posterior.mean)
    assert batches[3:] == [3]
    hook.remove()


# ------------------------------------------------------------------------------------------------
# Settings


def test_without_sizes_a_tile_is_512_px_or_twice_the_trained_side(
    build: Callable[[str], Autoencoder],
) -> None:
    tokenizer = build("ldm")
    assert tokenizer.tiling is None
    tokenizer.enable_tiling()
    assert tokenizer.tiling == Tiling(tile=512, overlap=128, turns=4)
    tokenizer.settings = tokenizer.settings.model_copy(update={"image_size": 288})
    tokenizer.enable_tiling()
    assert tokenizer.tiling == Tiling(tile=576, overlap=144)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tile": 50}, "tile is 50 px; this tokenizer wants a multiple of 16, 32 at least: give 48 or 64"),
        ({"tile": 16}, "tile is 16 px; this tokenizer wants a multiple of 16, 32 at least: give 32 or 48"),
        ({"tile": -8}, "tile is -8 px; .*: give 32 or 48"),
        ({"tile": 64, "overlap": 20}, "overlap is 20 px; with tiles of 64 px .* from 0 to 32: give 16 or 32"),
        ({"tile": 64, "overlap": 48}, "overlap is 48 px; .* from 0 to 32: give 32$"),
        ({"tile": 64, "overlap": -1}, "overlap is -1 px; .*: give 0 or 16"),
        ({"turns": 0}, "turns is 0; give 1"),
    ],
)
def test_silly_tiles_are_refused(
    build: Callable[[str], Autoencoder], settings: dict[str, int], said: str
) -> None:
    tokenizer = build("vfm-vae, stylegan")
    # Its decoder has three blocks, whose grid is 8 px, but the latent's is 16.
    with pytest.raises(LumitokError, match=said):
        tokenizer.enable_tiling(**settings)
    assert tokenizer.tiling is None
