"""The autoencoder of latent diffusion: VAE, VA-VAE, SD-VAE; and as an AutoencoderKL in diffusers' hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from pydantic import ValidationError
from torch import Tensor

from lumitok import Tokenizer
from lumitok.config import LDMConfig
from lumitok.errors import LumitokError
from lumitok.tokenizers import LDMVAE, build_tokenizer

TINY: dict[str, Any] = {
    "image_size": 32,
    "latent_channels": 4,
    "channels": 32,
    "multipliers": [1, 1, 1, 1, 2],
    "encoder_blocks": 1,
    "decoder_blocks": 1,
}
F8: dict[str, Any] = {"downsampling": 8, "multipliers": [1, 1, 1, 2], "level_attention": False}
SD_VAE: dict[str, Any] = {
    "downsampling": 8,
    "latent_channels": 4,
    "multipliers": [1, 2, 4, 4],
    "level_attention": False,
}


def build(**changes: Any) -> LDMVAE:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(LDMConfig(**(TINY | changes)))
    assert isinstance(tokenizer, LDMVAE)
    return tokenizer.eval()


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


# The contract -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {"encoder": 28_413_248, "quant_conv": 4160, "post_quant_conv": 1056, "decoder": 41_417_603}),
        (SD_VAE, {"encoder": 34_163_592, "quant_conv": 72, "post_quant_conv": 20, "decoder": 49_490_179}),
    ],
    ids=["VA-VAE's f16d32", "SD-VAE's f8d4"],
)
def test_the_published_sizes_have_their_counts(changes: dict[str, Any], parts: dict[str, int]) -> None:
    with torch.device("meta"):
        assert build_tokenizer(LDMConfig(**changes)).parts() == parts
        with_head = build_tokenizer(LDMConfig(vf_head=True, **changes)).parts()
    head = {"vf_head": 1024 * LDMConfig(**changes).latent_channels}
    assert with_head == parts | head
    assert changes != SD_VAE or sum(parts.values()) == 83_653_863


def test_it_gives_what_every_tokenizer_gives() -> None:
    tokenizer = build(vf_head=True, vf_channels=6)
    output = tokenizer(pictures(2, 3, 32, 48))
    assert output.sample.shape == (2, 3, 32, 48)
    assert [image.shape for image in output.pyramid] == [output.sample.shape]
    assert output.latent.shape == output.mean.shape == output.logvar.shape == (2, 4, 2, 3)
    assert output.features is None
    assert output.projected.shape == (2, 6, 2, 3)
    torch.testing.assert_close(output.projected, tokenizer.vf_head(output.latent))
    assert build()(pictures(1, 3, 32, 32)).projected is None
    assert tokenizer.foundation is None
    assert tokenizer.frozen is None
    assert tokenizer.trainable_names() == [name for name, _ in tokenizer.named_parameters()]


@pytest.mark.parametrize(("changes", "multiple"), [({}, 16), (F8, 8)])
def test_every_size_comes_back_as_it_was(changes: dict[str, Any], multiple: int) -> None:
    tokenizer = build(**changes)
    assert tokenizer.size_multiple == multiple
    z = tokenizer.encode(pictures(1, 3, 30, 41)).latent_dist.mean
    assert z.shape == (1, 4, 32 // multiple, 48 // multiple)
    x = pictures(1, 3, 30, 41)
    assert tokenizer.reconstruct(x).shape == x.shape
    whole = pictures(1, 3, 32, 48)
    wanted = tokenizer.decode(tokenizer.encode(whole).latent).sample.clamp(-1, 1)
    torch.testing.assert_close(tokenizer.reconstruct(whole), wanted)


@pytest.mark.parametrize("convolutions", [True, False])
def test_the_posterior_starts_with_the_log_variance_asked_for(convolutions: bool) -> None:
    x = pictures(1, 3, 32, 32)
    started = build(initial_logvar=-6.0, latent_convolutions=convolutions)
    shift = started(x).logvar - build(latent_convolutions=convolutions)(x).logvar
    torch.testing.assert_close(shift, torch.full_like(shift, -6.0))
    last = started.quant_conv if convolutions else started.encoder.conv_out
    assert last is not None
    assert last.bias is not None
    assert last.bias[:4].abs().max() < 1


def test_attention_at_the_latents_size_is_on_both_sides_or_neither() -> None:
    for on in (True, False):
        tokenizer = build(level_attention=on)
        assert [len(level.attention) for level in tokenizer.encoder.levels] == [0, 0, 0, 0, int(on)]
        assert [len(level.attention) for level in tokenizer.decoder.levels] == [int(on), 0, 0, 0, 0]


@pytest.mark.parametrize("convolutions", [True, False])
def test_gradients_reach_everything(convolutions: bool) -> None:
    tokenizer = build(latent_convolutions=convolutions, vf_head=True, vf_channels=6).train()
    output = tokenizer(pictures(2, 3, 32, 32))
    assert output.projected is not None
    (output.sample.square().mean() + output.projected.square().mean()).backward()
    reached = {n for n, p in tokenizer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    # A bias on all keys alike leaves the softmax as it is; rounding may say otherwise.
    assert {name for name in tokenizer.trainable_names() if not name.endswith(".k.bias")} <= reached
    assert tokenizer.balance_parameter() is tokenizer.encoder.conv_out.weight
    assert tokenizer.last_parameter() is tokenizer.decoder.conv_out.weight


@pytest.mark.parametrize("changes", [{"vf_head": True}, F8 | {"latent_convolutions": False}])
def test_saved_and_loaded_it_is_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = build(**changes)
    tokenizer.set_latent_statistics(torch.arange(4.0), torch.arange(4.0) + 1, 7)
    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, LDMVAE)
    assert loaded.settings == tokenizer.settings
    x = pictures(1, 3, 32, 32)
    assert torch.equal(loaded.reconstruct(x), tokenizer.reconstruct(x))
    assert loaded.fingerprint() == tokenizer.fingerprint()
    half = Tokenizer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    z, wanted = half.encode(x.bfloat16()).latent, tokenizer.decode(tokenizer.encode(x).latent).sample
    assert (half.decode(z).sample - wanted).abs().mean() < 0.15 * wanted.abs().mean()
    with pytest.raises(LumitokError, match="LDMVAE, which has no frozen encoder; drop encoder_weights"):
        Tokenizer.from_pretrained(tmp_path, encoder_weights="some.safetensors")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"multipliers": [1, 2]}, "multipliers has 2 entries; downsampling 16 needs 5"),
        ({"multipliers": [1, 0, 1, 1, 1]}, "multipliers are 1 or more, not 0"),
        ({"channels": 40}, "channels is 40, not a multiple of groups, 32"),
    ],
)
def test_settings_that_cannot_be_built_say_why(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LDMConfig(**(TINY | changes))


# Where diffusers' users have an AutoencoderKL ----------------------------------------------------


def retrieve_latents(
    encoder_output: Any, generator: torch.Generator | None = None, sample_mode: str = "sample"
) -> Tensor:
    """As in diffusers' image-to-image pipelines, whose import takes a minute."""
    if hasattr(encoder_output, "latent_dist") and sample_mode == "sample":
        drawn: Tensor = encoder_output.latent_dist.sample(generator)
        return drawn
    assert hasattr(encoder_output, "latent_dist")
    most: Tensor = encoder_output.latent_dist.mode()
    return most


@pytest.fixture
def opened(tmp_path: Path) -> LDMVAE:
    """A saved folder as a user of diffusers opens it, its latents scaled by 0.5 after a shift of 0.25."""
    tokenizer = build(**F8, latents_mean=[0.25] * 4, latents_std=[2.0] * 4)
    tokenizer.save_pretrained(tmp_path)
    return LDMVAE.from_pretrained(tmp_path)


@torch.no_grad()
def test_encode_sample_scale_decode_as_diffusers_pipelines_do(opened: LDMVAE) -> None:
    factor = 2 ** (len(opened.config.block_out_channels) - 1)
    processor = VaeImageProcessor(vae_scale_factor=factor)
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    x = processor.preprocess(picture[None] / 255.0)
    generator = torch.Generator().manual_seed(5)
    z = retrieve_latents(opened.encode(x), generator)
    assert z.shape == (1, opened.config.latent_channels, 32 // factor, 48 // factor)
    scaled = (z - opened.config.shift_factor) * opened.config.scaling_factor
    torch.testing.assert_close(scaled, opened.latent_spec.whiten(z))
    back = scaled / opened.config.scaling_factor + opened.config.shift_factor
    images = opened.decode(back, return_dict=False, generator=generator)[0]
    torch.testing.assert_close(images, opened.decode(z).sample)
    (image,) = processor.postprocess(images, output_type="pil")
    assert image.size == (48, 32)
    assert torch.equal(retrieve_latents(opened.encode(x), sample_mode="argmax"), opened.encode(x).latent)
    (posterior,) = opened.encode(x, return_dict=False)
    assert torch.equal(posterior.mean, opened.encode(x).latent)


def test_statistics_are_told_to_diffusers_in_one_way_alone(opened: LDMVAE) -> None:
    def told(tokenizer: LDMVAE) -> list[Any]:
        return [tokenizer.config[name] for name in ("scaling_factor", "shift_factor", "latents_mean")]

    assert told(opened) == [0.5, 0.25, None]
    assert opened.config.latents_std is None
    assert opened.latent_spec.mean == (0.25,) * 4
    assert opened.latent_spec.std == (2.0,) * 4
    opened.set_latent_statistics(torch.arange(4.0), torch.full((4,), 2.0), 7)
    assert told(opened) == [1.0, 0.0, [0.0, 1.0, 2.0, 3.0]]
    assert opened.config.latents_std == [2.0] * 4
    assert opened.latent_spec.mean == (0.0, 1.0, 2.0, 3.0)
    assert told(build()) == [1.0, 0.0, None]
    assert build().latent_spec.mean is None


def test_a_stock_pipeline_runs_with_it_unchanged(opened: LDMVAE) -> None:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=16,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    pipeline = DiTPipeline(transformer, opened, DDIMScheduler(num_train_timesteps=10))
    pipeline.set_progress_bar_config(disable=True)
    given: list[Tensor] = []
    opened.decoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    result = pipeline(
        [3], num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="np"
    )
    assert result.images.shape == (1, 32, 32, 3)
    assert np.isfinite(result.images).all()
    assert result.images.std() > 0
    assert given[0].shape == (1, 4, 4, 4)
