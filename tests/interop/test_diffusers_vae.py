"""Folders of diffusers' AutoencoderKL: read in all their forms, refused where lumitok has no such model."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.interop.diffusers_vae import DiffusersConfig, current_names, open_vae, read_config, settings_of
from lumitok.interop.ldm import compare_with, diffusers_name
from tests.interop import kl

ONE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def theirs() -> AutoencoderKL:
    return kl.autoencoder_kl()


@pytest.fixture
def folder(theirs: AutoencoderKL, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def same(found: dict[str, Any], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


# The forms of a folder --------------------------------------------------------------------------


def test_a_folder_a_pipelines_folder_and_a_file(theirs: AutoencoderKL, folder: Path) -> None:
    for path in (folder, folder.parent, folder / ONE):
        found = open_vae(path)
        same(found.state, theirs.state_dict())
        assert found.files == [folder / ONE]
    assert settings_of(open_vae(folder).config) == kl.settings(
        latents_mean=[0.0] * 4, latents_std=[1 / 0.18215] * 4
    )


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("attended", [0, 1, 2])
@pytest.mark.parametrize("middle", [True, False])
def test_every_layout_of_levels_and_attention_has_settings(levels: int, attended: int, middle: bool) -> None:
    plain = levels - attended
    theirs = kl.autoencoder_kl(
        block_out_channels=[8] * levels,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * plain + ["AttnDownEncoderBlock2D"] * attended,
        up_block_types=["AttnUpDecoderBlock2D"] * attended + ["UpDecoderBlock2D"] * plain,
        mid_block_add_attention=middle,
    )
    settings = settings_of(DiffusersConfig.model_validate(dict(theirs.config)))
    assert settings.downsampling == 2 ** (levels - 1)
    assert not any(compare_with(theirs.state_dict(), settings, diffusers_name).faults.values())


def test_shards(theirs: AutoencoderKL, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert not (tmp_path / ONE).exists()
    found = open_vae(tmp_path)
    assert len(found.files) > 1
    same(found.state, theirs.state_dict())


def test_a_pickle_of_tensors(theirs: AutoencoderKL, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / ONE).exists()
    same(open_vae(tmp_path).state, theirs.state_dict())


def test_a_pickle_with_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    class Stranger:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "was-run"),))

    (folder / ONE).unlink()
    torch.save({"x": Stranger()}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(LumitokError, match="would run code out of it"):
        open_vae(folder)
    assert not (tmp_path / "was-run").exists()


def test_the_older_names_of_attention(theirs: AutoencoderKL, folder: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"(attentions\.0)\.(to_q|to_k|to_v|to_out\.0)\.")
    state = load_file(folder / ONE)
    renamed = {pattern.sub(lambda m: f"{m[1]}.{old[m[2]]}.", key): value for key, value in state.items()}
    assert len(renamed.keys() - state.keys()) == 16
    save_file(renamed, folder / ONE)
    same(open_vae(folder).state, theirs.state_dict())
    key = next(key for key in renamed if ".query.weight" in key)
    with pytest.raises(LumitokError, match=r"to_q\.weight' twice, once under its older name"):
        current_names(renamed | {key.replace("query", "to_q"): state[key.replace("query", "to_q")]}, "x")


def test_an_attentions_weights_may_be_convolutions(theirs: AutoencoderKL) -> None:
    state = theirs.state_dict()
    wide = {k: v[..., None, None] if ".to_" in k and v.ndim == 2 else v for k, v in state.items()}
    settings = kl.settings()
    matrices, convolutions = (compare_with(s, settings, diffusers_name) for s in (state, wide))
    assert not any(matrices.faults.values())
    same(convolutions.state, matrices.state)


# Scaling ----------------------------------------------------------------------------------------


def config(**changes: Any) -> dict[str, Any]:
    sizes = {"block_out_channels": [32, 32, 64, 64], "latent_channels": 4, "sample_size": 64}
    return {"_class_name": "AutoencoderKL", **kl.SD, **sizes, **changes}


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({}, 0.0, 1 / 0.18215),  # diffusers' default: the first configs do not name it.
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, 0.25, 2.0),
        ({"scaling_factor": 0.5, "latents_mean": [3.0] * 4, "latents_std": [5.0] * 4}, 3.0, 10.0),
    ],
)
def test_scaling_and_shift_become_the_latents_statistics(
    changes: dict[str, Any], mean: float, std: float
) -> None:
    found = DiffusersConfig.model_validate(config(**changes))
    settings = settings_of(found)
    assert settings.latents_mean == [mean] * 4
    assert settings.latents_std == pytest.approx([std] * 4, rel=1e-12)
    assert settings.latents_count is None


def test_the_pictures_side() -> None:
    assert settings_of(DiffusersConfig.model_validate(config())).image_size == 64
    assert settings_of(DiffusersConfig.model_validate(config(sample_size=[96, 64]))).image_size == 96
    odd = DiffusersConfig.model_validate(config(sample_size=100))
    assert settings_of(odd, image_size=128).image_size == 128
    with pytest.raises(LumitokError, match=r"image_size: .*multiple of 32, not 100; name .*--image-size"):
        settings_of(odd)


# What lumitok does not have ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "VQModel"}, "describes a VQModel; lumitok imports diffusers' AutoencoderKL"),
        ({"act_fn": "mish"}, "act_fn: input should be 'silu' or 'swish', not 'mish'"),
        ({"in_channels": 4}, "in_channels: input should be 3, not 4"),
        ({"block_out_channels": [32, 48, 64, 64]}, "whole multiples of their first, not .32, 48, 64, 64"),
        ({"block_out_channels": [32, 64]}, "have one entry a level"),
        ({"down_block_types": kl.VA["down_block_types"][1:]}, "the same sizes in encoder and decoder"),
        ({"down_block_types": ["DownBlock2D"] * 4}, "input should be 'DownEncoderBlock2D' or"),
        ({"use_quant_conv": False}, "both of use_quant_conv and use_post_quant_conv, or neither"),
        ({"scaling_factor": 0.0}, "scaling_factor: input should be greater than 0, not 0.0"),
        ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std come together"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 1.0}, "both shift the latent"),
        ({"block_out_channels": None}, "block_out_channels: input should be a valid list"),
    ],
)
def test_other_models_are_refused_by_what_they_have(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(**changes)))
    with pytest.raises(LumitokError, match=said) as caught:
        read_config(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"block_out_channels": [32], **{k: v[:1] for k, v in kl.SD.items()}},
            "downsampling: .*16 or 32, not 1",
        ),
        ({"block_out_channels": [16] * 4}, "channels is 16, not a multiple of groups, 32"),
        ({"latents_mean": [0.0], "latents_std": [1.0]}, "latents_mean has 1 numbers for 4 latent channels"),
    ],
)
def test_so_are_sizes_that_no_config_of_ours_has(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LumitokError, match="lumitok has no autoencoder of this config's sizes: " + said):
        settings_of(DiffusersConfig.model_validate(config(**changes)))


def test_keys_that_nobody_knows_are_told() -> None:
    found = DiffusersConfig.model_validate(config(force_upcast=False, freeze=True, _name_or_path="x"))
    assert found.unread() == ["freeze"]


# Broken folders ---------------------------------------------------------------------------------


def test_a_folder_that_lacks_something_says_what(folder: Path, tmp_path: Path) -> None:
    def refuse(path: Path, said: str) -> None:
        with pytest.raises(LumitokError, match=said):
            open_vae(path)

    refuse(tmp_path / "nowhere", "there is no folder or file")
    (folder / ONE).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    refuse(folder, r"name one of its files .*: diffusion_pytorch_model\.fp16\.safetensors")
    assert open_vae(folder / "diffusion_pytorch_model.fp16.safetensors").state
    (folder / f"{ONE}.index.json").write_text(json.dumps({"weight_map": {}}))
    refuse(folder, "names no files of weights")
    (tmp_path / "outside.safetensors").write_bytes(b"")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "gone.safetensors"):
        (folder / f"{ONE}.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        refuse(folder, "which does not lie beside it")
    (folder / "config.json").write_text("[1]")
    refuse(folder, "is damaged: it holds a list")
    (folder / "config.json").write_text("{")
    refuse(folder, "is damaged")
    (folder / "config.json").unlink()
    refuse(folder, "there is no config.json in")


def test_a_key_in_two_shards_is_refused(folder: Path) -> None:
    state = load_file(folder / ONE)
    save_file(state, folder / "a.safetensors")
    save_file({"encoder.conv_in.bias": state["encoder.conv_in.bias"]}, folder / "b.safetensors")
    (folder / ONE).unlink()
    parts = {"x": "a.safetensors", "y": "b.safetensors"}
    (folder / f"{ONE}.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(LumitokError, match=r"keys of another part again: encoder\.conv_in\.bias"):
        open_vae(folder)
