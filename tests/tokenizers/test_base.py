"""The contract, for every kind: saving, loading, the encoder named by its hash, latent statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumitok import Tokenizer
from lumitok.errors import LumitokError
from lumitok.tokenizers import build_tokenizer
from lumitok.tokenizers.base import ENCODER_WEIGHTS, WEIGHTS
from tests.tokenizers.kinds import FROZEN, OTHERS, settings


@pytest.fixture(params=(*FROZEN, *OTHERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


frozen_only = pytest.mark.parametrize("kind", FROZEN, indirect=True)


@pytest.fixture
def encoder_file(kind: str, tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """Weights for a frozen tiny encoder, as a user would have them in a file."""
    torch.manual_seed(5)
    encoder = build_tokenizer(settings(kind, tiny_recipe)).frozen
    path = tmp_path / "vit.safetensors"
    if encoder is not None:
        save_file({k: v.contiguous() for k, v in encoder.model.state_dict().items()}, path)
    return path


@pytest.fixture
def tokenizer(kind: str, tiny_recipe: dict[str, Any], encoder_file: Path) -> Tokenizer:
    config = settings(kind, tiny_recipe)
    if kind in FROZEN:
        config.encoder.weights = str(encoder_file)
    torch.manual_seed(6)
    return build_tokenizer(config).eval()


def picture() -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = Tokenizer.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(tokenizer)
    assert not loaded.training
    assert torch.equal(loaded.reconstruct(picture()), tokenizer.reconstruct(picture()))
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_the_latent_s_fingerprint_changes_with_the_latent_alone(tokenizer: Tokenizer) -> None:
    whole, latent = tokenizer.fingerprint(), tokenizer.latent_fingerprint()
    assert whole != latent
    with torch.no_grad():
        before = tokenizer.encode(picture()).latent_dist.mode()
        for part, module in tokenizer.named_children():
            weights = {name: p.clone() for name, p in module.named_parameters()}
            if not weights or module is tokenizer.frozen:
                continue
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            moved = not torch.equal(tokenizer.encode(picture()).latent_dist.mode(), before)
            assert (tokenizer.latent_fingerprint() != latent) == moved, part
            assert tokenizer.fingerprint() != whole
            for name, parameter in module.named_parameters():
                parameter.copy_(weights[name])
        assert (tokenizer.fingerprint(), tokenizer.latent_fingerprint()) == (whole, latent)
        if tokenizer.frozen is not None:
            next(tokenizer.frozen.parameters()).add_(0.1)
            assert tokenizer.latent_fingerprint() != latent


def test_a_run_s_folder_opens_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    assert Tokenizer.from_pretrained(tmp_path / "run").fingerprint() == tokenizer.fingerprint()


@frozen_only
def test_the_encoder_is_named_by_its_hash_and_not_copied(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert not any(name.startswith("encoder.") for name in load_file(tmp_path / WEIGHTS))
    assert not (tmp_path / ENCODER_WEIGHTS).exists()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["encoder"]["sha256"] == tokenizer.encoder.weights_hash()
    assert config["_class_name"] == type(tokenizer).__name__


@frozen_only
def test_another_encoder_s_weights_are_refused(
    tokenizer: Tokenizer, encoder_file: Path, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    state = load_file(encoder_file)
    state["patch_embed.proj.bias"] += 1
    save_file(state, encoder_file)
    with pytest.raises(LumitokError, match="but this tokenizer was trained with"):
        Tokenizer.from_pretrained(tmp_path / "saved")


@frozen_only
def test_the_encoder_s_file_may_have_moved(tokenizer: Tokenizer, encoder_file: Path, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    moved = encoder_file.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(LumitokError):
        Tokenizer.from_pretrained(tmp_path / "saved")
    loaded = Tokenizer.from_pretrained(tmp_path / "saved", encoder_weights=str(moved))
    assert torch.equal(loaded.reconstruct(picture()), tokenizer.reconstruct(picture()))


@frozen_only
def test_a_bundled_encoder_needs_no_other_file(
    tokenizer: Tokenizer, encoder_file: Path, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "saved", bundle_encoder=True)
    encoder_file.unlink()
    loaded = Tokenizer.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.reconstruct(picture()), tokenizer.reconstruct(picture()))


@frozen_only
def test_a_random_encoder_is_always_bundled(kind: str, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = build_tokenizer(settings(kind, tiny_recipe)).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.reconstruct(picture()), tokenizer.reconstruct(picture()))


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_every_wrong_key_is_reported(tokenizer: Tokenizer, tmp_path: Path, fault: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    name = next(n for n, t in sorted(state.items()) if t.dim() == 1 and len(t) != 3)
    size = len(state[name])
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        state["third.bias"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3)
    save_file(state, tmp_path / WEIGHTS)
    said = {
        "missing": f"missing {name}",
        "unexpected": "unexpected third.bias",
        "shape": rf"{name} is \(3,\), not \({size},\)",
    }
    with pytest.raises(LumitokError, match=said[fault]):
        Tokenizer.from_pretrained(tmp_path)


def test_folders_that_are_no_tokenizers_say_so(tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match="holds no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(LumitokError, match="there is no folder"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"_class_name": "VFMVEA"}')
    with pytest.raises(LumitokError, match="did you mean 'VFMVAE'"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "FrozenEncoderTokenizer"}')
    with pytest.raises(LumitokError, match="holds a 'FrozenEncoderTokenizer', not a tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(LumitokError, match="the hub did not give"):
        Tokenizer.from_pretrained("nobody/nothing")


def test_a_damaged_file_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LumitokError, match="is damaged"):
        Tokenizer.from_pretrained(tmp_path)


def test_statistics_travel_and_whitening_inverts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match="no latent statistics"):
        tokenizer.latent_spec.whiten(torch.zeros(1, 4, 2, 2))
    mean, std = torch.arange(4.0), torch.arange(4.0) + 0.5
    tokenizer.set_latent_statistics(mean, std, 99)
    tokenizer.save_pretrained(tmp_path)
    spec = Tokenizer.from_pretrained(tmp_path).latent_spec
    z = torch.randn(3, 4, 2, 2)
    white = spec.whiten(z)
    torch.testing.assert_close(white[:, 3], (z[:, 3] - 3.0) / 3.5)
    torch.testing.assert_close(spec.unwhiten(white), z)
    with pytest.raises(LumitokError, match="do not fit"):
        spec.whiten(torch.zeros(1, 5, 2, 2))
    assert spec.tokenizer == tokenizer.latent_fingerprint()


def test_half_precision_encodes_decodes_and_saves(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "full")
    half = Tokenizer.from_pretrained(tmp_path / "full", torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.frozen is None or half.frozen.dtype == torch.float32
    with torch.no_grad():  # 8 bits of mantissa, through the few wide sums of tiny random networks.
        z = tokenizer.encode(picture()).latent_dist.mode()
        ours, theirs = half.encode(picture().bfloat16()).latent_dist.mode(), z
        assert (ours - theirs).abs().mean() < 0.1 * theirs.abs().mean()
        ours, theirs = half.decode(z.bfloat16()).sample, tokenizer.decode(z).sample
        assert (ours - theirs).abs().mean() < 0.1 * theirs.abs().mean()
    half.save_pretrained(tmp_path / "half")
    Tokenizer.from_pretrained(tmp_path / "half")


def test_subfolders_and_runs_are_looked_into(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "run" / "checkpoints" / "step-00000002" / "tokenizer")
    assert Tokenizer.from_pretrained(tmp_path / "run").fingerprint() == tokenizer.fingerprint()
    again = Tokenizer.from_pretrained(tmp_path, subfolder="run/checkpoints/step-00000002/tokenizer")
    assert again.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('{"_class_name": "VFMVAE"', "is damaged"),
        ('["VFMVAE"]', "it holds a list"),
        ('{"_class_name": "VFMVAE", "image_sise": 3}', "no key 'image_sise'; did you mean 'image_size'"),
    ],
)
def test_a_broken_config_is_one_sentence(tmp_path: Path, change: str, said: str) -> None:
    (tmp_path / "config.json").write_text(change)
    with pytest.raises(LumitokError, match=said):
        Tokenizer.from_pretrained(tmp_path)
