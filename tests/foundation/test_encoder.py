"""Every family at a tiny size: layers against timm's own insides, sizes, freezing, cutting, hashing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.foundation import Features, FoundationEncoder
from lumitok.foundation.registry import ENTRIES
from lumitok.foundation.weights import hash_weights

VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 64}
PATCH14 = {**VIT, "img_size": 56}
PYRAMID = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "siglip2-large-patch16-512": VIT,
    "dinov2-small": PATCH14,
    "dinov2-large-registers": PATCH14,
    "dinov3-base": VIT,
    "eva02-clip-base": VIT,
    "mae-base": VIT,
    "clip-base-patch16": VIT,
    "pe-core-base": VIT,
    "pe-spatial-base": VIT,
    "dino-small-patch16": VIT,
    "timm:vit_base_patch16_rope_mixed_224": VIT,
}
PYRAMIDS: dict[str, dict[str, Any]] = {"dinov3-convnext-tiny": PYRAMID, "efficientnet-lite0": {}}


def build(name: str, layers: list[int], scale: float = 1.0, **kwargs: Any) -> FoundationEncoder:
    tiny = {**TRANSFORMERS, **PYRAMIDS}.get(name, VIT)
    config = EncoderConfig(name=name, layers=layers, scale=scale, weights="random", timm_kwargs=tiny)
    return FoundationEncoder(config, **kwargs)


def reference(name: str, tmp_path: Path) -> tuple[Any, str]:
    """A whole timm model with every weight drawn at random, and the file that holds it."""
    timm_name = ENTRIES[name].timm_name if name in ENTRIES else name.removeprefix("timm:")
    tiny = {**TRANSFORMERS, **PYRAMIDS}[name]
    extra = {"dynamic_img_size": True} if name in TRANSFORMERS else {}
    model = timm.create_model(timm_name, **tiny, **extra).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return model, str(path)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer_layers_are_timms(name: str, tmp_path: Path) -> None:
    model, path = reference(name, tmp_path)
    layers = [2, 0, 1, -1, -2, -3, -4, 3]
    encoder = FoundationEncoder(
        EncoderConfig(name=name, layers=layers, weights=path, timm_kwargs=TRANSFORMERS[name])
    )
    seen: dict[int, Tensor] = {}
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.__setitem__(0, inputs[0]))
    for k, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _, __, output, k=k: seen.__setitem__(k, output))
    height, width = 2 * encoder.patch, 5 * encoder.patch
    pixels = torch.rand(2, 3, height, width)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        end = model.forward_features((pixels - mean) / std)
        features = encoder(pixels)
    if name == "eva02-clip-base":
        end = seen[3]
    expected = [seen[2], seen[0], seen[1], end, seen[3], seen[2], seen[1], seen[3]]
    for i, y in enumerate(expected):
        patches = y[:, model.num_prefix_tokens :].unflatten(1, (2, 5)).permute(0, 3, 1, 2)
        torch.testing.assert_close(features.maps[i], patches, msg=lambda m, i=i: f"layer {layers[i]}: {m}")
        token = features.tokens[i]
        if name.startswith("siglip2"):
            assert token is None
        else:
            assert token is not None
            torch.testing.assert_close(token, y[:, 0])


def test_the_end_has_the_final_norm_except_for_eva_clip() -> None:
    # pe-spatial has no final norm in timm at all.
    bare = {name for name in TRANSFORMERS if _ends_bare(build(name, [-1, -2])(torch.rand(1, 3, 112, 112)))}
    assert bare == {"eva02-clip-base", "pe-spatial-base"}


def _ends_bare(features: Features) -> bool:
    return torch.equal(features.maps[0], features.maps[1])


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid_layers_are_timms(name: str, tmp_path: Path) -> None:
    model, path = reference(name, tmp_path)
    stages = len(model.feature_info)
    layers = [2, -1, 1, stages]
    encoder = FoundationEncoder(
        EncoderConfig(name=name, layers=layers, weights=path, timm_kwargs=PYRAMIDS[name])
    )
    pixels = torch.rand(1, 3, 64, 96)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        _, maps = model.forward_intermediates((pixels - mean) / std)
        features = encoder(pixels)
    for got, index in zip(features.maps, (1, stages - 1, 0, stages - 1), strict=True):
        torch.testing.assert_close(got, maps[index])
    assert features.tokens == [None] * 4


@pytest.mark.parametrize("name", [*TRANSFORMERS, *PYRAMIDS])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_shapes_follow_the_picture(name: str, scale: float) -> None:
    encoder = build(name, [-1, 1], scale)
    for side in (encoder.patch, 3 * encoder.patch):
        height, width = round(side / scale), round(2 * side / scale)
        features = encoder(torch.rand(2, 3, height, width))
        grids = encoder.grids(height, width)
        for i, y in enumerate(features.maps):
            assert y.shape == (2, encoder.channels[i], *grids[i])
            assert grids[i] == (height / encoder.strides[i], width / encoder.strides[i])


def test_the_paper_encoder_sees_256_pixels_as_a_grid_of_32() -> None:
    encoder = build("siglip2-large-patch16-512", [0, 2, -1], scale=2.0)
    assert encoder.grids(256, 256) == [(32, 32)] * 3
    assert encoder.strides == [8.0] * 3


@pytest.mark.parametrize(
    ("name", "scale", "mode", "antialias"),
    [
        ("siglip2-large-patch16-512", 2.0, "bilinear", False),
        ("siglip2-large-patch16-512", 0.5, "bilinear", True),
        ("mae-base", 0.5, "bilinear", False),
        ("eva02-clip-base", 0.5, "bicubic", False),
        ("dino-small-patch16", 0.5, "bicubic", True),
        ("pe-core-base", 2.0, "bicubic", False),
        ("clip-base-patch16", 2.0, "bicubic", False),
    ],
)
def test_pixels_are_resized_as_the_family_does(name: str, scale: float, mode: str, antialias: bool) -> None:
    encoder = build(name, [0], scale)
    pixels = torch.rand(1, 3, 64, 96)
    side = (round(64 * scale), round(96 * scale))
    resized = F.interpolate(pixels, side, mode=mode, antialias=antialias)
    torch.testing.assert_close(encoder(pixels).maps, encoder(resized, scaled=False).maps)


@pytest.mark.parametrize("name", ["siglip2-large-patch16-512", "efficientnet-lite0"])
def test_frozen_but_gradients_reach_the_pixels(name: str) -> None:
    encoder = build(name, [1, -1]).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    sum(y.square().sum() for y in encoder(pixels).maps).backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_only_the_blocks_in_use_are_kept() -> None:
    whole, cut = build("dino-small-patch16", [-1]), build("dino-small-patch16", [1, -3])
    assert [
        key for key in cut.state_dict() if key.startswith(("model.blocks.2", "model.norm", "model.head"))
    ] == []
    count = [sum(p.numel() for p in encoder.parameters()) for encoder in (whole, cut)]
    block = sum(p.numel() for p in whole.model.blocks[2].parameters())
    assert count[0] - count[1] == block + 2 * 48
    shallow, deep = build("efficientnet-lite0", [2]), build("efficientnet-lite0", [-1])
    assert len(list(shallow.parameters())) < len(list(deep.parameters())) / 2
    assert shallow.patch == 4


@pytest.mark.parametrize("name", ["siglip2-large-patch16-512", "dinov3-7b"])
def test_large_encoders_stand_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        encoder = FoundationEncoder(EncoderConfig(name=name, layers=[0, 12, -1]), load_weights=False)
        features = encoder(torch.empty(1, 3, 16 * encoder.patch, 8 * encoder.patch))
    assert [y.shape for y in features.maps] == [(1, encoder.channels[0], 16, 8)] * 3
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert 0.9 * ENTRIES[name].millions < millions < ENTRIES[name].millions + 0.06
    with pytest.raises(LumitokError, match="meta device"):
        encoder.weights_hash()


def test_layers_out_of_range_name_the_range() -> None:
    for layer in (4, -5):
        with pytest.raises(LumitokError, match=rf"from 0 \(the embedding\) to 3, or from -4 .* not {layer}"):
            build("dinov2-small", [layer])
    for layer in (6, -6):
        with pytest.raises(LumitokError, match=rf"at layer {layer}: its stages go from 1 to 5, or from -5"):
            build("efficientnet-lite0", [layer])
    with pytest.raises(LumitokError, match="a convolutional pyramid has no embedding"):
        build("efficientnet-lite0", [0])
    with pytest.raises(LumitokError, match="no layers"):
        build("dinov2-small", [])


def test_sizes_that_do_not_fit_name_the_nearest_that_do() -> None:
    encoder = build("dinov2-small", [-1], scale=1.75)
    encoder.check_size(256, 512)
    with pytest.raises(
        LumitokError, match="heights that fit are 248 and 256; the nearest widths that fit are 256 and 264"
    ):
        encoder.check_size(250, 260)
    with pytest.raises(
        LumitokError,
        match=r"250 x 256 .*seen at 1\.75 times.*multiples of 14.*heights that fit are 248 and 256$",
    ):
        encoder(torch.rand(1, 3, 250, 256))
    with pytest.raises(LumitokError, match=r"widths that fit are 256 and 264$"):
        encoder.check_size(256, 257)
    with pytest.raises(LumitokError, match=r"heights that fit are 434 and 448$"):
        encoder(torch.rand(1, 3, 440, 448), scaled=False)
    with pytest.raises(LumitokError, match=r"widths that fit are 16$"):
        build("dino-small-patch16", [-1]).check_size(16, 8)
    build("dino-small-patch16", [-1], scale=1.3333).check_size(384, 12)
    with pytest.raises(LumitokError, match="none within"):
        build("dino-small-patch16", [-1], scale=16 + 16 / 303).check_size(150, 150)


def test_halves_of_a_pixel_do_not_fit() -> None:
    with pytest.raises(LumitokError, match="heights that fit are 32 and 64"):
        build("dino-small-patch16", [-1], scale=0.5).check_size(33, 64)


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 64, 64), torch.zeros(1, 4, 64, 64)],
)
def test_pixels_of_another_form_are_refused(pixels: Tensor) -> None:
    with pytest.raises(LumitokError, match=r"wants floating-point pixels \(B, 3, H, W\)"):
        build("dinov2-small", [-1])(pixels)


@pytest.mark.parametrize(
    "name", ["timm:swin_tiny_patch4_window7_224", "timm:vit_base_r50_s16_224", "timm:mixer_s16_224"]
)
def test_models_that_cannot_be_read_at_any_size_are_refused(name: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(LumitokError, match="neither a plain vision transformer nor a pyramid"),
    ):
        FoundationEncoder(EncoderConfig(name=name), load_weights=False)


def test_timm_kwargs_that_timm_refuses_are_named() -> None:
    for kwargs, message in (
        ({"no_such": 1}, "no_such"),
        ({"checkpoint_path": "x.pth"}, "use `weights` instead"),
    ):
        with pytest.raises(LumitokError, match=message):
            FoundationEncoder(EncoderConfig(name="dinov2-small", weights="random", timm_kwargs=kwargs))


def test_hash_follows_every_weight() -> None:
    torch.manual_seed(0)
    encoder = build("dinov2-small", [-1])
    first = encoder.weights_hash()
    other = build("dinov2-small", [-1])
    assert other.weights_hash() != first
    other.load_state_dict(encoder.state_dict())
    assert other.weights_hash() == first
    with torch.no_grad():
        encoder.model.blocks[1].attn.qkv.bias[0] += 1e-7
    assert encoder.weights_hash() != first
    assert other.to(torch.bfloat16).weights_hash() != first
    zeros = [hash_weights([("w", torch.zeros(2, dtype=dtype))]) for dtype in (torch.float32, torch.int32)]
    assert zeros[0] != zeros[1]
