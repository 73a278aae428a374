"""A file's config from its shapes: the released model's, smaller ones, and files that contradict it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lumitok.config import EncoderConfig, VFMVAEConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.interop.vfm_vae import CONSTANTS, our_names
from lumitok.interop.vfm_vae_settings import official_keys, read_settings
from lumitok.tokenizers import VFMVAE
from tests.interop import official

Shapes = dict[str, torch.Size]
SMALL: dict[str, Any] = {
    "encoder": {
        "name": "timm:vit_tiny_patch16_224",
        "layers": [0, 1],
        "scale": 2.0,
        "timm_kwargs": {"img_size": 64, "embed_dim": 48, "depth": 1, "num_heads": 2},
    },
    "latent_channels": 5,
    "projected_channels": [10, 12],
    "post_channels": 24,
    "style_channels": 20,
    "attention_heads": 4,
    "block_channels": [8, 16, 24, 32, 40, 48],
    "block_kernels": [3, 5, 7, 9, 11, 1],
    "block_depths": [1, 2, 3, 1, 2, 3],
    "block_blurs": [3, 5, 3, 5, 3, 5],
    "block_attention": [0, 1, 0, 2, 0, 1],
    "block_latent_channels": [0, 0, 8, 12, 16, 20],
}
PAPER = {"encoder": {"name": "siglip2-large-patch16-512", "layers": [0, 12, -1], "scale": 2.0}}


def build(config: dict[str, Any]) -> tuple[VFMVAEConfig, VFMVAE]:
    settings = VFMVAEConfig.model_validate(config)
    with torch.device("meta"):
        return settings, VFMVAE.from_settings(settings, load_weights=False)


def shapes_of(config: dict[str, Any]) -> Shapes:
    settings, tokenizer = build(config)
    return {key: value.shape for key, value in official.from_ours(tokenizer, settings).items()}


def bare(config: dict[str, Any]) -> FoundationEncoder:
    encoder = EncoderConfig.model_validate(config["encoder"]).model_copy(update={"scale": 1.0})
    with torch.device("meta"):
        return FoundationEncoder(encoder, load_weights=False)


def read(shapes: Shapes, config: dict[str, Any], **options: Any) -> VFMVAEConfig:
    return read_settings(shapes, bare(config), **options)


def in_use(settings: VFMVAEConfig, blocks: int) -> dict[str, Any]:
    """The config, its lists cut to the blocks that are there."""
    return {k: v[:blocks] if k.startswith("block_") else v for k, v in settings.model_dump().items()}


def test_the_released_model_has_its_783_tensors_and_its_config() -> None:
    config = {**PAPER, "legacy_noise": True}
    settings, tokenizer = build(config)
    state = official.from_ours(tokenizer, settings)
    assert len(state) == 783
    assert sum(tokenizer.parts().values()) == pytest.approx(139.77e6, abs=5e3)
    assert state["synthesis.blocks.0.conv0.pwconv1.weight"].shape == (2048, 512, 1, 1)
    assert state["synthesis.z_convs.0.1.0.weight"].shape == (8192, 1, 3, 3)
    assert read({key: value.shape for key, value in state.items()}, config) == settings


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"image_size": 128},
        {"downsampling": 8},
        {"vf_head": False},
        {"legacy_noise": True},
        {"image_size": 512, "legacy_noise": True},
        {"encoder": {**SMALL["encoder"], "scale": 0.5}},
        {"encoder": {**SMALL["encoder"], "scale": 1.0}},
        {"block_attention": [0] * 6, "attention_heads": 8},
    ],
)
def test_other_sizes_are_read_too(change: dict[str, Any]) -> None:
    config = {**SMALL, **change}
    wanted = VFMVAEConfig.model_validate(config)
    found = read(shapes_of(config), config)
    blocks = 5 if wanted.image_size == 128 else 6
    assert in_use(found, blocks) == in_use(wanted, blocks)


def test_any_key_may_be_missing_or_of_another_shape() -> None:
    config = {**SMALL, "legacy_noise": True, "block_depths": [2, 2, 3, 2, 2, 3]}
    shapes, encoder = shapes_of(config), bare(config)
    wanted = read_settings(shapes, encoder)
    for key in (  # Each is the first that is asked for a size.
        "ldm_adapter.patch_quants.0.0.blocks.0.norm2.weight",
        "ldm_adapter.final_quant.blocks.0.norm1.weight",
        "ldm_adapter.post_quant.blocks.0.norm1.weight",
        "ldm_adapter.post_quant.blocks.0.norm2.weight",
        "synthesis.z_convs.0.1.1.weight",
        "synthesis.z_convs.0.2.0.weight",
        "synthesis.blocks.0.conv0.affine_pw1.proj.weight",
        "synthesis.blocks.0.conv0.dwconv.weight",
        "synthesis.blocks.0.self_attns.0.attn.null_kv",
        "synthesis.blocks.1.seperate_upsample_conv.blur_weight",
        "synthesis.blocks.5.conv0.noise_const",
    ):
        without = {k: v for k, v in shapes.items() if k != key}
        assert read_settings(without, encoder) == wanted, key
        assert read_settings({**without, key: torch.Size((77, 77))}, encoder) == wanted, key


@pytest.mark.parametrize("key", ["synthesis.z_convs.0.0.1.weight", "synthesis.z_convs.0.1.7.weight"])
def test_a_strange_key_confuses_nothing(key: str) -> None:
    shapes = shapes_of(SMALL)
    read({**shapes, key: torch.Size((1, 1, 3, 3))}, SMALL)
    names = our_names([*shapes, key])
    assert len(names) == len([k for k in [*shapes, key] if not k.endswith(CONSTANTS)])


def test_a_whole_block_may_be_missing() -> None:
    shapes = shapes_of(SMALL)
    cut = {key: shape for key, shape in shapes.items() if not key.startswith("synthesis.blocks.2.")}
    found = official_keys(read(cut, SMALL))
    assert [k for k in shapes if k not in cut and k not in found] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1.0}, "fit an encoder input of 2 times the picture's side, not 1"),
        ({"image_size": 128}, "the file's decoder has 6 blocks, for 128 px it would have 5"),
        (
            {"named_size": 256, "image_size": 512},
            "name their last block's side for pictures of 256 px, not 512",
        ),
    ],
)
def test_options_that_contradict_the_shapes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LumitokError, match=message):
        read(shapes_of(SMALL), SMALL, **options)


def test_noise_maps_tell_the_size() -> None:
    shapes = shapes_of({**SMALL, "image_size": 512, "legacy_noise": True})
    assert read(shapes, SMALL, image_size=512).image_size == 512
    with pytest.raises(LumitokError, match="hold noise maps for pictures of 512 px, not 256"):
        read(shapes, SMALL, image_size=256)


def test_an_ambiguous_size_is_the_caller_s() -> None:
    assert read(shapes_of(SMALL), SMALL, image_size=512).image_size == 512
    assert read(shapes_of(SMALL), SMALL, scale=2.0).image_size == 256


def test_sizes_that_no_config_has() -> None:
    shapes = shapes_of(SMALL)
    even = {k: torch.Size((*v[:2], 4, 4)) if k.endswith("dwconv.weight") else v for k, v in shapes.items()}
    with pytest.raises(
        LumitokError, match="no VFM-VAE of this file's sizes: block_kernels are odd numbers, not 4"
    ):
        read(even, SMALL)
    more = shapes | {"synthesis.blocks.6.conv0.gamma": torch.Size((1, 8, 1, 1))}
    with pytest.raises(LumitokError, match="7 blocks; lumitok's has at most 6"):
        read(more, SMALL)
