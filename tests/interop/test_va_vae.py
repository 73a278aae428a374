"""VA-VAE's files: their sizes worked out from shapes, what is left out counted, other files refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.interop.va_vae import open_va_vae, read_settings
from tests.interop import kl

OTHERS: dict[str, Tensor] = {
    "foundation_model.model.pos_embed": torch.zeros(2),
    "foundation_model.model.norm.bias": torch.zeros(2),
    "loss.logvar": torch.zeros(()),
    "loss.discriminator.main.3.num_batches_tracked": torch.zeros((), dtype=torch.int64),
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return kl.va_vae()[1]


def save(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    return path


def test_official_names(state: dict[str, Tensor]) -> None:
    for name in (
        "encoder.down.4.block.0.nin_shortcut.weight",
        "encoder.down.4.attn.0.proj_out.bias",
        "encoder.down.3.downsample.conv.weight",
        "encoder.mid.attn_1.norm.weight",
        "decoder.up.4.attn.1.q.weight",
        "decoder.up.3.block.0.nin_shortcut.bias",
        "decoder.up.1.upsample.conv.weight",
        "decoder.mid.block_2.conv2.bias",
        "decoder.norm_out.weight",
        "quant_conv.bias",
        "post_quant_conv.weight",
        "linear_proj.weight",
    ):
        assert name in state
    assert not any(name.startswith(("encoder.down.4.down", "decoder.up.0.up")) for name in state)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vf_head": False, "vf_channels": 1024},
        {"downsampling": 8, "multipliers": [1, 2, 3, 1], "level_attention": False, "encoder_blocks": 2},
        {"latent_convolutions": False, "latent_channels": 5, "decoder_blocks": 3},
        {"level_attention": [False, False, False, True, True]},
        {"middle_attention": False},
    ],
)
def test_the_shapes_say_the_settings(changes: dict[str, Any]) -> None:
    tokenizer, state = kl.va_vae(**changes)
    assert read_settings(state, image_size=32) == tokenizer.settings
    assert read_settings(state).image_size == 256
    # Also where a witness is missing, so that the comparison names it alone.
    for gone in ("encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"):
        left = {key: value for key, value in state.items() if key != gone}
        if gone != "decoder.conv_in.weight" or tokenizer.settings.latent_convolutions:
            assert read_settings(left, image_size=32) == tokenizer.settings


def test_wrapped_or_bare_what_is_left_out_is_counted(state: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = {"state_dict": {**state, **OTHERS}, "epoch": 3}
    for content, others in ((wrapped, ["epoch"]), ({**state, **OTHERS}, [])):
        found = open_va_vae(save(tmp_path / "vavae.pt", content))
        assert found.dropped == {"foundation_model": 2, "loss": 1}
        assert list(found.discriminator) == ["main.3.num_batches_tracked"]
        assert found.others == others
        assert found.state.keys() == state.keys()


def test_a_projection_the_other_way_round_is_no_vf_head(state: dict[str, Tensor], tmp_path: Path) -> None:
    other = {"linear_proj.weight": torch.zeros(4, 6, 1, 1), "linear_proj.bias": torch.zeros(4)}
    found = open_va_vae(save(tmp_path / "vavae.pt", {**state, **other}))
    assert found.dropped == {"linear_proj": 2}
    assert not read_settings(found.state).vf_head


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"mapping.x_avg": torch.zeros(2)},
            "is no VA-VAE: none of its 1 keys .*; the first are mapping.x_avg",
        ),
        ({"encoder.down_blocks.0.x": torch.zeros(1)}, "has diffusers' names; .*`import-weights diffusers`"),
        ({"G_ema": {"x": torch.zeros(1)}}, "laid out as a VFM-VAE; .*`import-weights vfm-vae`"),
        ({"state_dict": {}}, "none of its 0 keys .*; the first are none"),
    ],
)
def test_other_files_are_refused(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match=said):
        open_va_vae(save(tmp_path / "other.pt", content))


def test_sizes_that_no_config_has_are_refused(state: dict[str, Tensor]) -> None:
    one = {
        key: value
        for key, value in state.items()
        if not any(f".{side}.{level}." in key for side in ("down", "up") for level in (1, 2, 3, 4))
    }
    with pytest.raises(LumitokError, match=r"downsampling: input should be 2, .*16 or 32, not 1"):
        read_settings(one)
    odd = {k: v[:40] if k.startswith(("encoder.down.1.", "decoder.up.1.")) else v for k, v in state.items()}
    odd |= {k: torch.zeros(40) for k in odd if ".1.block.0.norm2" in k}
    wide = {k: torch.zeros(40, 3, 3, 3) if k == "encoder.conv_in.weight" else v for k, v in odd.items()}
    wide["encoder.conv_in.bias"] = torch.zeros(40)
    with pytest.raises(LumitokError, match="which are not multiples of 40, those of its first convolution"):
        read_settings(wide)
