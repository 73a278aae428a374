"""The baseline on a frozen encoder with the latent diffusion decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lumitok import Tokenizer
from lumitok.config import FrozenLDMConfig
from lumitok.errors import LumitokError
from lumitok.tokenizers import FrozenLDM, build_tokenizer


@pytest.fixture
def config(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    encoder: dict[str, Any] = tiny_recipe["model"]["encoder"]
    return {
        "encoder": encoder | {"layers": [-1]},
        "image_size": 32,
        "latent_channels": 4,
        "adapter_channels": 8,
        "decoder_channels": 32,
        "decoder_multipliers": [1, 1, 1, 1, 2],
        "decoder_blocks": 1,
    }


def build(config: dict[str, Any], **changes: Any) -> FrozenLDM:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(FrozenLDMConfig(**(config | changes)))
    assert isinstance(tokenizer, FrozenLDM)
    return tokenizer.eval()


def test_the_baseline_has_43_million_parameters_and_no_other_width_comes_nearer() -> None:
    encoder = {"name": "siglip2-large-patch16-256", "layers": [0]}  # As wide as the end, and quicker.
    counts = []
    for width in (152, 153, 154):
        with torch.device("meta"):
            settings = FrozenLDMConfig(encoder=encoder, adapter_channels=width)  # type: ignore[arg-type]
            counts.append(sum(build_tokenizer(settings, load_weights=False).parts().values()))
    assert FrozenLDMConfig(encoder=encoder).adapter_channels == 153  # type: ignore[arg-type]
    assert counts[1] == 43_004_309
    assert abs(counts[1] - 43_000_000) < min(abs(count - 43_000_000) for count in (counts[0], counts[2]))


def test_it_gives_what_every_tokenizer_gives(config: dict[str, Any]) -> None:
    tokenizer = build(config, vf_head=True)
    output = tokenizer(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert output.sample.shape == (2, 3, 32, 48)
    assert [image.shape for image in output.pyramid] == [output.sample.shape]
    assert output.latent.shape == output.mean.shape == output.logvar.shape == (2, 4, 2, 3)
    assert output.features.shape == output.projected.shape == (2, 32, 2, 3)
    assert build(config)(torch.rand(1, 3, 32, 32)).projected is None
    assert tokenizer.size_multiple == 16
    assert tokenizer.reconstruct(torch.rand(1, 3, 30, 41)).shape == (1, 3, 30, 41)


def test_two_convolutions_do_not_collapse_into_one(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    a, b = torch.randn(2, 1, 32, 4, 4)
    parts = [tokenizer.moments([x]) for x in (a + b, a, b, torch.zeros_like(a))]
    assert (parts[0] - parts[1] - parts[2] + parts[3]).abs().max() > 1e-3
    y = torch.randn(2, 1, 4, 4, 4)
    parts = [tokenizer.expand(x) for x in (y[0] + y[1], y[0], y[1], torch.zeros_like(y[0]))]
    assert (parts[0] - parts[1] - parts[2] + parts[3]).abs().max() > 1e-3


def test_the_posterior_starts_with_the_log_variance_asked_for(config: dict[str, Any]) -> None:
    x = torch.rand(1, 3, 32, 32)
    shift = build(config, initial_logvar=-6.0)(x).logvar - build(config)(x).logvar
    bias = build(config, initial_logvar=-6.0).last_compression.bias
    assert bias[4:].tolist() == [-6.0] * 4
    assert bias[:4].abs().max() < 1
    torch.testing.assert_close(shift, torch.full_like(shift, -6.0))


def test_gradients_reach_everything_but_the_encoder(config: dict[str, Any]) -> None:
    tokenizer = build(config).train()
    tokenizer(torch.rand(2, 3, 32, 32)).sample.square().mean().backward()
    reached = {n for n, p in tokenizer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    # A bias on all keys alike leaves the softmax as it is; rounding may say otherwise.
    assert {name for name in tokenizer.trainable_names() if not name.endswith(".k.bias")} <= reached
    assert not any(name.startswith("encoder.") for name in reached)
    assert tokenizer.balance_parameter().grad is not None


def test_saved_and_loaded_it_is_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = build(config)
    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, FrozenLDM)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(loaded.reconstruct(x), tokenizer.reconstruct(x))
    assert loaded.fingerprint() == tokenizer.fingerprint()
    half = Tokenizer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    z = half.encode(x.bfloat16()).latent_dist.mode()
    wanted = tokenizer.reconstruct(x)
    assert (half.decode(z).sample - wanted).abs().mean() < 0.15 * wanted.abs().mean()


def test_downsampling_by_8_has_one_level_less(config: dict[str, Any]) -> None:
    encoder = config["encoder"] | {"scale": 2.0}
    changes = {"encoder": encoder, "downsampling": 8, "decoder_multipliers": [1, 1, 1, 2]}
    output = build(config, **changes)(torch.rand(1, 3, 32, 32))
    assert output.latent.shape == (1, 4, 4, 4)
    assert output.sample.shape == (1, 3, 32, 32)


def test_maps_off_the_latents_grid_are_refused_with_the_right_scale(config: dict[str, Any]) -> None:
    encoder = config["encoder"] | {"scale": 2.0}
    said = "layer -1 of the encoder has a 4x4 grid, the latent 2x2; frozen-ldm needs them equal: change "
    with pytest.raises(LumitokError, match=said + r"model\.encoder\.scale to 1"):
        build(config, encoder=encoder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder_multipliers": [1, 2]}, "decoder_multipliers has 2 entries; downsampling 16 needs 5"),
        ({"decoder_multipliers": [1, 0, 1, 1, 1]}, "decoder_multipliers are 1 or more, not 0"),
        ({"decoder_channels": 40}, "multiple of 32"),
        ({"latents_std": [1.0]}, "latents_std has 1 numbers for 4 latent channels"),
    ],
)
def test_settings_that_cannot_be_built_say_why(
    config: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        FrozenLDMConfig(**(config | changes))
